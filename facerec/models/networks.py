"""Networks that bring their own graph as modules from images to embeddings; TorchScript programs.

Shape suffixes: B images, C channels, H height, W width, D embedding size.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from facerec.errors import CheckpointError, FacerecError, counted

log = logging.getLogger("facerec.evaluation")

# Batch sizes to try on a network that does not declare its own.
_TRIED = (1, 2, 4, 8, 16, 32, 64, 128)
_COMPARED = (2, 5)  # batch sizes whose rows are compared when a network is opened; others when they are met
_MOST: Final = 1 << 28  # numbers in a batch of images: 1 GiB


class Output(NamedTuple):
    """One output of a network; `value` is None where it is no array of real numbers."""

    name: str
    shape: tuple[int, ...]
    value: Tensor | None


class _NoEmbeddingsError(Exception):
    """The network gives no embeddings for a batch; the text says why."""


class ForeignNetwork(nn.Module):
    """A network whose batch size may be fixed: batches are cut for it, the last part filled up with zeros.

    The embedding of an image must not depend on its position in a batch or on the other images: this is
    compared when the network is opened, and again at the first batch of each size. A network of free batch
    size that fails it gets one image at a time. Subclasses write `_run`.

    Attributes:
        batch: the only number of images it takes at once; None: any.
        takes_pixels: numbers from 0 to 255 rather than around 0.
        files: the files it was read from.
    """

    batch: int | None = None
    takes_pixels = False

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.where = f"ckpt={path}"
        self.files = [path]
        self._output: int | None = None  # which of its outputs is the embedding
        self._compared: set[int] = {1}  # batch sizes whose rows were compared
        self._distance = math.inf  # the largest between embeddings of different images

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Raw embeddings (B, D), float32, on the CPU or the device that made them."""
        self._compare(len(image_BCHW), image_BCHW.shape[2:])
        count = self.batch or len(image_BCHW)
        try:
            return self._embed(image_BCHW, count)
        except _NoEmbeddingsError as error:
            images = counted(count, "image")
            raise CheckpointError(f"{self.where}: gives no embeddings for {images}: {error}") from error

    def probe(self, shape: tuple[int, int]) -> int:
        """Run it on images of `shape` to choose its output and batch size; returns the embedding size D.

        Raises:
            CheckpointError: it takes no such images, gives no (B, D) or several, or embeddings that depend on
                chance or on the rest of the batch.
        """
        reasons: list[str] = []
        declared = self.batch
        with torch.inference_mode():
            for count in (declared,) if declared else _TRIED:
                if count * 3 * math.prod(shape) > _MOST:
                    reasons.append(f"a batch of {count} would take more than {_MOST >> 28} GiB")
                    break
                image_BCHW = patterns(max(count, 3), shape, self.takes_pixels)
                try:
                    embedding_BD = self._embed(image_BCHW, count)
                    again_BD = self._embed(image_BCHW, count)
                except _NoEmbeddingsError as error:
                    reasons.append(str(error))
                    continue
                self._distance = float((embedding_BD[1:] - embedding_BD[:1]).norm(dim=1).max())
                if not self._distance > 0:
                    alike = "%s: gives different images the same embedding, or none that is finite"
                    log.warning(alike, self.where)
                if not self._alike(again_BD, embedding_BD):
                    raise CheckpointError(f"{self.where}: gives an image another embedding each time")
                if count == 1 and not declared:  # any size, unless one fails
                    for several in _COMPARED:
                        self._compare(several, shape)
                else:
                    self.batch = count
                    if reason := self._dependence(count, shape):
                        raise CheckpointError(
                            f"{self.where}: takes batches of {count} only, and the embedding of an image "
                            f"depends on the others there ({reason}); export it in inference mode, or for a "
                            "batch of one"
                        )
                return embedding_BD.shape[1]
        size = "×".join(map(str, shape))
        raise CheckpointError(
            f"{self.where}: gives no embeddings (B, D) for images (B, 3, {size}): {reasons[0]}; if it is "
            "made for another size, set input.size"
        )

    def _compare(self, count: int, shape: Sequence[int]) -> None:
        """Fall back to batches of one unless the rows of a batch of `count` are those of its images alone."""
        if self.batch is not None or count in self._compared:
            return
        self._compared.add(count)
        if reason := self._dependence(count, shape):
            self.batch = 1
            log.warning("%s: is right for one image at a time only (of %d: %s)", self.where, count, reason)

    def _dependence(self, count: int, shape: Sequence[int]) -> str | None:
        """What is wrong where a batch in another order, or some of its images alone, give other rows."""
        image_BCHW = patterns(count, shape, self.takes_pixels)
        some = sorted({0, count // 2, count - 1})
        try:
            batch_BD = self._embed(image_BCHW, count)
            rolled_BD = self._embed(image_BCHW.roll(1, 0), count)
            alone_BD = torch.cat([self._embed(image_BCHW[i : i + 1], self.batch or 1) for i in some])
        except _NoEmbeddingsError as error:
            return str(error)
        if self._alike(rolled_BD, batch_BD.roll(1, 0)) and self._alike(alone_BD, batch_BD[some]):
            return None
        return "its rows depend on each other, or on their position"

    def _alike(self, one_BD: Tensor, other_BD: Tensor) -> bool:
        """Return True for equality but for rounding: 1 % of the norm, a tenth of the distance of images."""
        if one_BD.shape != other_BD.shape:
            return False
        norm_B = other_BD.norm(dim=1)
        limit_B = (norm_B / 100).clamp(max=self._distance / 10).maximum(norm_B / 1e5)
        return not bool(((one_BD - other_BD).norm(dim=1) > limit_B).any())

    def _embed(self, image_BCHW: Tensor, count: int) -> Tensor:
        """Embeddings (B, D) in batches of `count`; raises `_NoEmbeddingsError`."""
        parts = []
        for piece in image_BCHW.split(count):
            missing = count - len(piece)
            filled = nn.functional.pad(piece, (0, 0, 0, 0, 0, 0, 0, missing)) if missing else piece
            try:
                outputs = self._run(filled.contiguous())
            except FacerecError:  # not about these images
                raise
            # Operators raise any type, by runtime and version: it does not take these images.
            except Exception as error:
                raise _NoEmbeddingsError(first_line(error)) from error
            parts.append(self._chosen(outputs, count)[: len(piece)].float())
        return torch.cat(parts)

    def _chosen(self, outputs: Sequence[Output], count: int) -> Tensor:
        """The output that is the embedding: the only one with a row of at least two numbers per image."""
        fitting = {i: rows for i, one in enumerate(outputs) if (rows := _rows(one, count)) is not None}
        if self._output is None and len(fitting) > 1:
            shown = ", ".join(f"{outputs[i].name} {outputs[i].shape}" for i in fitting)
            fitting = {i: rows for i, rows in fitting.items() if outputs[i].name == "embedding"}
            if len(fitting) != 1:
                raise CheckpointError(
                    f"{self.where}: several of its outputs may be the embedding: {shown}; export it with one "
                    'of them, or call that one "embedding"'
                )
            log.info("%s: of its outputs %s the one called embedding is used", self.where, shown)
        if self._output is None and fitting:
            (self._output,) = fitting
        if self._output not in fitting:
            shapes = ", ".join(str(output.shape) for output in outputs)
            raise _NoEmbeddingsError(f"it returns {shapes or 'no tensor'} for {counted(count, 'image')}")
        return fitting[self._output]

    def _run(self, image_BCHW: Tensor) -> list[Output]:
        """All outputs for (B, 3, H, W) float32."""
        raise NotImplementedError


class ScriptedNetwork(ForeignNetwork):
    """A TorchScript program, which may run as early as while it is loaded: for trusted files only."""

    def __init__(self, path: Path, device: torch.device) -> None:
        super().__init__(path)
        self._device = device
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # torch asks for torch.export; files remain
                program = torch.jit.load(str(path), map_location=device)
        except (RuntimeError, ValueError, OSError) as error:
            raise CheckpointError(f"{self.where}: torch cannot load it: {first_line(error)}") from error
        if hasattr(program, "training"):  # a frozen one has no modes any more
            program.eval()
        self._program = (program,)  # not a submodule: its modules may lack what others have
        self._type = next(
            (one.dtype for one in program.parameters() if one.is_floating_point()), torch.float32
        )

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The parameters of the program, for their device."""
        return self._program[0].parameters(recurse)

    def _run(self, image_BCHW: Tensor) -> list[Output]:
        result = self._program[0](image_BCHW.to(self._device, self._type))
        if isinstance(result, Tensor):
            result = [result]
        outputs = result.items() if isinstance(result, dict) else enumerate(result)
        return [
            Output(str(name), tuple(value.shape), value)
            for name, value in outputs
            if isinstance(value, Tensor)
        ]


def _rows(output: Output, count: int) -> Tensor | None:
    """An output with a row of at least two numbers per image: (B, D), (B, D, 1, 1), or (D,) for one image."""
    value = output.value
    if value is None:
        return None
    if count == 1 and value.ndim == 1:
        value = value[None]
    fits = value.ndim >= 2 and value.shape[0] == count and max(value.shape[1:]) == value[0].numel() >= 2
    return value.flatten(1) if fits else None


def patterns(count: int, shape: Sequence[int], pixels: bool) -> Tensor:
    """Different images of large and small structure, in [−1, 1] or as `pixels`; the same in every call."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 4, generator=generator) * 2 - 1
    large = nn.functional.interpolate(coarse, size=tuple(shape), mode="bilinear")
    fine = torch.rand(1, 3, *shape, generator=generator) * 2 - 1
    pattern_BCHW = 0.8 * large + 0.2 * fine
    return (pattern_BCHW * 127.5 + 127.5).round() if pixels else pattern_BCHW


def first_line(error: Exception) -> str:
    """The most informative line of an error: TorchScript's last, onnxruntime's first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1 if "TorchScript" in lines[0] else 0][:300]
