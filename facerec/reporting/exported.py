"""Export a model, judge what was written as the original was judged, and say both in one table.

Shape suffixes: N images, H height, W width, C channels, D embedding size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facerec.errors import counted, require, size_text
from facerec.evaluation.details import choose_threshold
from facerec.evaluation.protocols.base import create_protocol
from facerec.evaluation.results import Result
from facerec.evaluation.verify import VerificationResult
from facerec.images.images import Images
from facerec.loading.opening import open_images
from facerec.models import hub
from facerec.models.export import export, store_threshold
from facerec.models.model import Model, Threshold, measure
from facerec.models.opening import load_model
from facerec.registry import build
from facerec.reporting.model_card import CardSettings, model_card
from facerec.reporting.text_table import aligned

SAMPLE = 200  # images for the ranges of int8, and to compare embeddings on

log = logging.getLogger(__name__)

Judge = Callable[[Model], Mapping[str, Result]]


def export_and_judge(
    model: Model,
    path: Path,
    *,
    format: Any,
    eval: Mapping[str, Any],
    far: float | None,
    calibration: str | None,
    card: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Iterator[str]:
    """Export, and yield the lines to print: the file, what it takes and gives, the table.

    Args:
        model: on the CPU.
        format, options: see `facerec.models.export.export`.
        eval: the section of the configuration; both are evaluated where it names targets, and a threshold
            at `far` (see `choose_threshold`) on the first of them is stored.
        calibration: images as `open_images` takes them: for int8, and to compare on.
        card: settings of the model card.

    Raises:
        ConfigError: a setting that is out of range, or that the others have no use for.
        UserError, FacerecError: see `export` and the protocols.
    """
    described = build(CardSettings, "card", card)
    judge: Judge | None = None
    if eval.get("targets"):
        judge = create_protocol(eval).begin(model)
    require(far is None or judge is not None, "far", far, "needs eval.targets, whose first it is chosen on")
    sample_NHWC = None if calibration is None else _sample(open_images(calibration), model)
    before = {} if judge is None else judge(model)
    _threshold(before, far)  # a FAR that the set does not support is refused before anything is written
    export(model, path, format, sample_NHWC=sample_NHWC, **options)
    try:
        written = load_model(path, device="cpu")
        after = {} if judge is None else judge(written)
        written.threshold = _threshold(after, far)
        if written.threshold is not None:
            store_threshold(path, written.threshold)
        if format == "hub":
            model.threshold = written.threshold
            hub.write_card(path, model_card(path.name, model, after, described))
    except BaseException:
        log.warning("%s: was written, but not judged, so it has no threshold and no card", path)
        raise
    yield f"{path}"
    yield from _sheet(written, options)
    yield ""
    yield from _table(model, written, before, after, path, sample_NHWC)


def _threshold(results: Mapping[str, Result], far: float | None) -> Threshold | None:
    """The threshold on the first target; None where that is no set of pairs."""
    name, first = next(iter(results.items()), ("", None))
    return choose_threshold(name, first, far) if isinstance(first, VerificationResult) else None


def _sample(images: Images, model: Model) -> np.ndarray:
    """Some images, evenly spread over all."""
    positions = np.unique(np.linspace(0, len(images) - 1, SAMPLE).astype(int)).tolist()
    sample_NHWC = np.empty((len(positions), *model.input.shape, 3), np.uint8)
    for row, position in enumerate(positions):
        images.decode_into(position, sample_NHWC[row])
    return sample_NHWC


def _sheet(written: Model, options: Mapping[str, Any]) -> Iterator[str]:
    """What the file takes and gives."""
    image_BHWC = np.zeros((1, *written.input.shape, 3), np.uint8)
    sides = "{}, {}".format(*written.input.shape)
    if options["preprocessing"]:
        yield f"  input      image: uint8 (N, {sides}, 3), RGB, 0 … 255; it prepares them itself"
    else:
        order = written.input.channels.upper()
        mean, std = written.input.mean, written.input.std
        yield f"  input      image: float32 (N, 3, {sides}), {order}, (x − {mean}) / {std} of x = 0 … 255"
    unit = "unit vectors" if options["normalise"] else "raw: divide by the length"
    yield f"  output     embedding: float32 (N, {written.embed(image_BHWC).shape[1]}), {unit}"
    if written.threshold is not None:
        yield f"  threshold  {written.threshold}"


def _table(
    model: Model,
    written: Model,
    before: Mapping[str, Result],
    after: Mapping[str, Result],
    path: Path,
    sample_NHWC: np.ndarray | None,
) -> list[str]:
    what = "noise" if sample_NHWC is None else counted(len(sample_NHWC), "image")
    if sample_NHWC is None:
        generator = np.random.default_rng(0)
        sample_NHWC = generator.integers(0, 256, (8, *model.input.shape, 3), dtype=np.uint8)
    original_ND, exported_ND = (one.embed(sample_NHWC, batch_size=32) for one in (model, written))
    difference = f"{max(0.0, 1 - float((original_ND * exported_ND).sum(1).min())):.1e}"
    threads = torch.get_num_threads()
    heads = ["", *before, "size", f"one image, {counted(threads, 'thread')}"]
    rows = [[*heads, f"largest 1 − cosine, {what}"]]
    for one, results, file, differs in ((model, before, model.path, "–"), (written, after, path, difference)):
        scores = [_with_interval(result) for result in results.values()]
        latency = f"{1000 * measure(one, 1).seconds:.1f} ms"
        rows.append([str(file and file.name), *scores, _size(file), latency, differs])
    return [line.rstrip() for line in aligned(rows)]


def _with_interval(result: Result) -> str:
    number = result.headline
    if number is None:
        return "–"
    return f"{number.text} ({number.interval_text})" if number.interval else number.text


def _size(path: Path | None) -> str:
    files = [] if path is None else [path] if path.is_file() else list(path.rglob("*"))
    return size_text(sum(one.stat().st_size for one in files if one.is_file()))
