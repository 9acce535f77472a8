"""The base of all loggers: where they write, and what is made once for all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from facerec.errors import setting_text
from facerec.settings import flat
from facerec.training.reporter import Reporter, Results, Run

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure


_IMAGES = 32  # of the first batch


class Figures:
    """What loggers of a run share: figures of the newest evaluation, drawn when the first logger asks for
    them, and images of the first batch.
    """

    def __init__(self) -> None:
        self._results: Results = {}
        self._drawn: dict[str, dict[str, Figure]] = {}
        self._watched = False
        self._batch_BCHW: torch.Tensor | None = None

    def of(self, results: Results) -> dict[str, dict[str, Figure]]:
        """Return the figures of `results`."""
        if results is not self._results:
            from facerec.reporting.verification_figures import figures_of  # slow to load

            self._results = results
            self._drawn = {name: figures_of(name, {name: result}) for name, result in results.items()}
        return self._drawn

    def watch(self, run: Run) -> None:
        """Keep the images of the first batch that the backbone gets from now on; once, whoever asks."""
        if self._watched:
            return
        self._watched = True

        def keep(module: Any, given: tuple[torch.Tensor, ...]) -> None:
            if self._batch_BCHW is None:  # copied to the host when it is asked for
                self._batch_BCHW = given[0].detach()[:_IMAGES].clone()
            hook.remove()

        hook = run.embed.register_forward_pre_hook(keep)

    def first_batch(self, run: Run) -> np.ndarray | None:
        """Return the watched images (B, H, W, 3) as the network gets them; None before there are any.

        uint8, with mean and std undone but not the order of the channels: those of a network that takes BGR
        have red and blue exchanged.
        """
        if self._batch_BCHW is None:
            return None
        mean, std = (np.asarray(one, np.float32) for one in (run.input.mean, run.input.std))
        image_BHWC = self._batch_BCHW.float().cpu().numpy().transpose(0, 2, 3, 1) * std + mean
        return np.rint(np.clip(image_BHWC, 0, 255)).astype(np.uint8)


def numbers_of(results: Results) -> dict[str, float]:
    """Return all numbers of an evaluation: ``lfw/accuracy`` and so on, then their means over the sets, of
    those that each set supports, under ``mean/accuracy``.
    """
    by_set = {}
    for name, result in results.items():
        numbers = {number.key: number.value for number in result.numbers()}
        for key in ("accuracy_exact", "best_threshold", "xnorm"):
            numbers.setdefault(key, getattr(result, key))
        by_set[name] = {k: float(x) for k, x in numbers.items() if x is not None and math.isfinite(x)}
    flat = {f"{name}/{key}": value for name, numbers in by_set.items() for key, value in numbers.items()}
    for key in next(iter(by_set.values()), {}):
        if key not in ("best_threshold", "xnorm") and all(key in numbers for numbers in by_set.values()):
            flat[f"mean/{key}"] = sum(numbers[key] for numbers in by_set.values()) / len(by_set)
    return flat


def numbers_of_run(run: Run, results: Results) -> dict[str, float]:
    """Return the numbers of an evaluation, and those of the averaged weights: ``ema/lfw/accuracy``."""
    averaged = numbers_of(run.averaged).items()
    return numbers_of(results) | {f"ema/{name}": value for name, value in averaged}


def grouped(numbers: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a row under names that services group: those of steps (``train/loss``) before
    those of sets (``val_lfw/accuracy``); without step and those that are None.
    """
    kept = {name: value for name, value in numbers.items() if value is not None and name != "step"}
    return {f"val_{name}" if "/" in name else f"train/{name}": value for name, value in kept.items()}


def hyperparameters(config: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Return the settings by dotted names in the types that services take, without those of records."""
    settings = {key: value for key, value in config.items() if key not in ("output_dir", "logger", "plugins")}
    return {
        name: value if isinstance(value, bool | int | float | str) else setting_text(value)
        for name, value in flat(settings).items()
    }


@dataclass(kw_only=True, eq=False)
class Logger(Reporter):
    """A reporter that a configuration can choose; further parameters of a subclass are its settings.

    Args:
        folder: the run's.
        figures: shared by all loggers of the run.

    Attributes:
        writes: the file or folder in the run's folder that it writes; empty: none.
    """

    folder: Path
    figures: Figures
    writes: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if self.writes:
            self.path = self.folder / self.writes
