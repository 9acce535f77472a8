"""TensorBoard: scalars, histograms, settings, the first batch, figures, and embeddings with their faces."""

from __future__ import annotations

import logging
import re
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from facerec.errors import require
from facerec.reporting.loggers import LOGGERS
from facerec.reporting.loggers.base import Logger, grouped, hyperparameters, numbers_of_run
from facerec.training.parallel import is_sharded
from facerec.training.reporter import Results, Run

log = logging.getLogger(__name__)

_SPRITE = 48  # pixels, height and width of a face in the projector


@LOGGERS.register("tensorboard")
@dataclass(kw_only=True, eq=False)
class TensorBoard(Logger):
    """Scalars of each row, numbers and figures of each evaluation; hparams, histograms and the projector.

    Args:
        histogram_every: logged steps between histograms of the cosines; 0: none.
        projector: images of the first set in the embedding projector, written at the end; 0: none.
    """

    histogram_every: int = 10
    projector: int = 300
    writes = "tensorboard"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("histogram_every", self.histogram_every), ("projector", self.projector)):
            require(value >= 0, f"logger.tensorboard.{name}", value, "must be 0 (none) or more")

    def started(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        step = run.position.step
        # What a killed run has written beyond its last checkpoint comes again, and readers shall drop it.
        self._writer = SummaryWriter(str(self.path), purge_step=step + 1 if step else 0)
        self._known = run.position.evaluated
        self._results: Results = {}
        self._batch_shown = False
        # Its thread prints a traceback where it cannot write; the next call here raises the same error.
        self._excepthook = threading.excepthook
        threading.excepthook = self._unless_storage
        self.figures.watch(run)
        if not step or run.changes:
            self._write_settings(run, step)

    def logged(self, run: Run, row: Mapping[str, Any]) -> None:
        step = row["step"]
        for name, value in grouped(row).items():
            self._writer.add_scalar(name, value, step)
        every = self.histogram_every * run.settings.log_every
        if every and (step % every == 0 or step == run.settings.log_every):
            for name, cosine_B in getattr(run.head, "per_sample", {}).items():
                self._writer.add_histogram(f"train_cosines/{name}", cosine_B.float().cpu().clamp(-1, 1), step)
        batch_BHWC = None if self._batch_shown else self.figures.first_batch(run)
        self._batch_shown = True
        if batch_BHWC is not None:
            self._writer.add_images("train_first_batch", batch_BHWC, step, dataformats="NHWC")

    def evaluated(self, run: Run, results: Results) -> None:
        step = run.position.step
        if step == self._known:  # a finished run that is started again
            return
        self._results = results
        for name, value in grouped(numbers_of_run(run, results)).items():
            self._writer.add_scalar(name, value, step)
        for name, figures in self.figures.of(results).items() if run.eval_settings.figures else ():
            for kind, figure in figures.items():
                self._writer.add_figure(f"val_{name}/{kind}", figure, step)

    def saving(self, run: Run) -> None:
        self._writer.flush()

    def finished(self, run: Run) -> None:
        try:
            wanted = self._results and self.projector and run.progress().fraction >= 1
            if wanted and is_sharded(run.embed):
                log.info(
                    "tensorboard: no projector with trainer.fsdp=true, as one process alone cannot embed"
                )
            elif wanted:
                self._write_projector(run)
            self._writer.close()
        finally:
            threading.excepthook = self._excepthook

    def _write_settings(self, run: Run, step: int) -> None:
        """The configuration as text, and as hyperparameters with the numbers to compare runs by."""
        import yaml  # type: ignore[import-untyped]
        from torch.utils.tensorboard.summary import hparams

        text = yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True)
        self._writer.add_text("config", "".join(f"    {line}\n" for line in text.splitlines()), step)
        # Not add_hparams, which makes a run of its own beside this one.
        names = ("val_mean/accuracy", "val_mean/accuracy_exact", "val_mean/auc", "train/loss")
        for summary in hparams(hyperparameters(run.config), dict.fromkeys(names, 0.0)):
            self._writer._get_file_writer().add_summary(summary)

    def _write_projector(self, run: Run) -> None:
        """Embeddings of the first set's images, with their names and faces; those of before are removed."""
        import numpy as np
        import torch

        from facerec.evaluation.embedding import HeldImages

        source = next((one.source for one in self._results.values() if one.source is not None), None)
        if source is None:
            return
        place_2N = np.unique(source.index_2N, return_index=True)[1]
        place_K = np.sort(place_2N)[: self.projector]  # each image once, in the order of the pairs
        image_KHWC = np.empty((len(place_K), *run.input.shape, 3), np.uint8)
        images = HeldImages(source.images, source.where)
        for at, image in enumerate(source.index_2N[place_K]):
            images.decode_into(int(image), image_KHWC[at])
        embedding_KD = run.model().embed(image_KHWC, flip=run.eval_settings.flip)
        identities = source.identity_2N
        names = [str(place // 2) if identities is None else str(identities[place]) for place in place_K]
        image_KCHW = torch.from_numpy(image_KHWC).permute(0, 3, 1, 2).float() / 255
        face_KCHW = torch.nn.functional.interpolate(image_KCHW, (_SPRITE, _SPRITE), mode="area")
        for old in self.path.iterdir():
            if old.is_dir() and re.fullmatch(r"\d{5,}", old.name):
                shutil.rmtree(old)
        (self.path / "projector_config.pbtxt").unlink(missing_ok=True)
        names = [" ".join(name.split()) for name in names]
        self._writer.add_embedding(embedding_KD, names, face_KCHW, run.position.step, source.name)

    def _unless_storage(self, args: threading.ExceptHookArgs) -> None:
        if not isinstance(args.exc_value, OSError):
            self._excepthook(args)
