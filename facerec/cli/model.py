"""`facerec-model info PATH`: size, cost and speed of a model."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from facerec.cli.base import Program, option
from facerec.errors import ConfigError, counted, size_text

if TYPE_CHECKING:
    from facerec.models.model import Model

program = Program("facerec-model", "Look at a model.")
main, run = program.main, program.run


@program.command(
    "info",
    option("path", "any model that facerec-eval takes, or a hub folder", metavar="PATH"),
    option("--device", "auto, cpu, cuda, cuda:N or mps", default="auto"),
    option("--batches", "batch sizes", default="1,8,32"),
    option("--precision", "", choices=("fp32", "bf16", "fp16"), default="fp32"),
)
def info(options: argparse.Namespace) -> None:
    """Size, cost and speed.

    Shows what a model takes and gives, its parameters, FLOPs, memory, latency and throughput.

    A multiply-add counts as one FLOP, as papers of the field do. Latency is the median of repeated passes,
    without decoding and flip-TTA; run it on an idle machine.

    examples:
      facerec-model info runs/x/checkpoints/best.pt
      facerec-model info w600k_r50.onnx --device cpu --batches 1,8
    """
    from facerec.models.opening import load_model

    batches = _batches(options.batches)
    model = load_model(options.path, device=options.device)
    for name, value in _facts(model):
        print(f"{name:<12}{value}")
    print()
    for line in _speeds(model, batches, options.precision):
        print(line, flush=True)


def _batches(text: str) -> list[int]:
    try:
        batches = [int(part) for part in text.split(",")]
    except ValueError:
        batches = []
    if not batches or min(batches) < 1 or max(batches) > 100_000:
        raise ConfigError("--batches", text, "must be numbers from 1 to 100,000 with commas between them")
    return batches


def _facts(model: Model) -> Iterator[tuple[str, str]]:
    import numpy as np

    from facerec.backbones.flops import inference_bytes, multiply_adds
    from facerec.models.networks import ForeignNetwork
    from facerec.models.onnx_network import OnnxNetwork

    foreign = isinstance(model.backbone, ForeignNetwork)
    assert model.path is not None
    files = model.backbone.files if isinstance(model.backbone, ForeignNetwork) else [model.path]
    yield "model", f"{model.path}, {size_text(sum(Path(one).stat().st_size for one in files))}"
    yield "backbone", str(model.config.get("backbone", {}).get("name", type(model.backbone).__name__))
    yield "input", f"{model.input}{'' if model.knows_input else ' (not in the file: the usual one)'}"
    image_BHWC = np.zeros((1, *model.input.shape, 3), np.uint8)
    yield "embedding", f"{model.embed(image_BHWC, flip=False).shape[1]} numbers"
    if isinstance(model.backbone, OnnxNetwork):
        yield "parameters", f"{model.backbone.numbers:,}, constants included"
    parameters = sum(one.numel() for one in model.backbone.parameters())
    state = [*model.backbone.parameters(), *model.backbone.buffers()]
    if parameters:
        yield "parameters", f"{parameters:,}; {size_text(sum(one.nbytes for one in state))} in memory"
    if not foreign:
        yield (
            "FLOPs",
            f"{multiply_adds(model.backbone, model.input.shape) / 1e9:.3f} G multiply-adds an image",
        )
        held = inference_bytes(model.backbone, model.input.shape)
        yield "activations", f"{size_text(held)} an image, at most at once"
    yield "threshold", "none" if model.threshold is None else str(model.threshold)


def _speeds(model: Model, batches: list[int], precision: str) -> list[str]:
    import torch

    from facerec.models.model import measure
    from facerec.reporting.text_table import aligned

    where = str(model.device)
    if model.device.type == "cpu":
        threads = torch.get_num_threads()
        where += f", {counted(threads, 'thread')}"
    rows = [[f"batch ({where}, {precision})", "latency", "images/s", "peak memory"]]
    for batch in batches:
        speed = measure(model, batch, precision=precision)
        peak = "–" if speed.peak is None else size_text(speed.peak)
        rows.append([f"{batch}", f"{1000 * speed.seconds:.1f} ms", f"{speed.images_per_second:.1f}", peak])
    return [line.rstrip() for line in aligned(rows)]
