"""A recipe trained in float64 on given batches from a given start, to compare it with its program.

The start and the batches follow from names and numbers alone, so that another program can be given the same:

- Each entry of the backbone's state dict comes from `numpy.random.default_rng(zlib.crc32(name))`: what has
  two or more axes is standard normal times √(1/fan_in), biases 0.01 · normal, other single axes
  1 + 0.05 · normal, PReLU slopes 0.25, running means and counters 0, running variances 1; class weights are
  0.01 · normal, of the name ``head.weight``.
- Batch t comes from `default_rng(1000 + t)`: RGB images (B, H, W, 3), then labels. Before it torch's own
  generator, of which dropout draws, is seeded with 2000 + t.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import hydra
import numpy as np
import numpy.typing as npt
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from torch import Tensor, nn

from facerec.cli.mistakes import config_folder
from facerec.images.preprocessing import Preprocessing
from facerec.loading.batch import Batch
from facerec.training.loop import Trainer
from facerec.training.run import assemble
from tests.tiny_run import MemoryImages


def composed(name: str, *overrides: str) -> dict[str, Any]:
    """Return the plain settings of a recipe."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = hydra.compose("train", [f"experiment={name}", "output_dir=x", *overrides])
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def start_value(name: str, shape: tuple[int, ...], slopes: bool) -> npt.NDArray[np.float64]:
    """Return the first value of the entry `name` of a state dict."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if len(shape) > 1:
        return rng.standard_normal(shape) * np.sqrt(1 / np.prod(shape[1:]))
    if "bias" in name:
        return 0.01 * rng.standard_normal(shape)
    constants = {"running_mean": 0.0, "running_var": 1.0, "num_batches_tracked": 0.0}
    constant = 0.25 if slopes else constants.get(name.rpartition(".")[2])
    return 1 + 0.05 * rng.standard_normal(shape) if constant is None else np.full(shape, constant)


def images_and_labels(seed: int, count: int, size: int, classes: int) -> tuple[Tensor, Tensor]:
    """Return the images (uint8, RGB) and labels of one batch."""
    rng = np.random.default_rng(seed)
    image_BHWC = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return torch.from_numpy(image_BHWC), torch.from_numpy(rng.integers(0, classes, count))


def exactly(
    batch: Batch, device: torch.device, input: Preprocessing, fused: None = None
) -> tuple[Tensor, Tensor]:
    """Prepare a batch as `facerec.loading.batch.prepare` does, in float64."""
    out_BHWC = torch.empty(batch.image_BHWC.shape)
    image_BCHW = input.normalise(batch.image_BHWC, out_BHWC)
    torch.manual_seed(2000 + int(batch.index_B[0]))
    return image_BCHW.contiguous(), batch.label_B


def trained(recipe: str, wanted: dict[str, Any], folder: Path, *overrides: str) -> dict[str, Any]:
    """Train a recipe as its program was trained for `wanted`, and return the same measures."""
    classes, count, steps = wanted["C"], wanted["B"], len(wanted["steps"])
    per_epoch, size = wanted.get("steps_per_epoch", steps), wanted.get("size", 112)
    config = composed(
        recipe,
        *(f"trainer.batch_size={count}", f"data.size={size}", "trainer.device=cpu"),
        *("eval.targets=[]", "eval.every_steps=0"),
        "trainer.precision=fp32",  # torch's default type, which is float64 here
        *overrides,
    )
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        undrawn = MemoryImages("given", np.arange(per_epoch * count) % classes, classes=classes)
        with mock.patch("facerec.training.run.open_faces", lambda data: undrawn):
            trainer = assemble(config, folder)
        rows = _steps(trainer, wanted, size, per_epoch)
        trainer.backbone.eval()
        image_BHWC, label_B = images_and_labels(1999, count, size, classes)
        last = Batch(image_BHWC, label_B, label_B < 0, np.full(count, -1), 0, (count,))
        with torch.no_grad():
            embedding_BD = trainer.backbone(exactly(last, trainer.device, trainer.input)[0])[:4]
        weight_CD = trainer.head.weight.detach()
        return {
            "steps": rows,
            "eval_embedding_first8": embedding_BD[:, :8].tolist(),
            "eval_norm": embedding_BD.norm(dim=1).tolist(),
            "head_weight_first": weight_CD[:3, :4].tolist(),
            "head_weight_norm": weight_CD.norm().item(),
        }
    finally:
        torch.set_default_dtype(usual)


def _steps(trainer: Trainer, wanted: dict[str, Any], size: int, per_epoch: int) -> list[dict[str, float]]:
    count, classes = wanted["B"], wanted["C"]
    backbone, head = trainer.backbone, trainer.head
    backbone.to(memory_format=torch.contiguous_format)  # dropout draws in the order of memory
    slopes = {f"{name}.weight" for name, part in backbone.named_modules() if isinstance(part, nn.PReLU)}
    with torch.no_grad():
        for name, value in backbone.state_dict().items():
            value.copy_(torch.from_numpy(start_value(name, tuple(value.shape), name in slopes)))
        rng = np.random.default_rng(zlib.crc32(b"head.weight"))
        head.weight.copy_(torch.from_numpy(rng.standard_normal(tuple(head.weight.shape)) * 0.01))

    def batches(epoch: int, start: int = 0) -> Iterator[Batch]:
        for step in range(per_epoch):
            number = epoch * per_epoch + step
            image_BHWC, label_B = images_and_labels(1000 + number, count, size, classes)
            index_B = np.full(count, number)
            yield Batch(image_BHWC, label_B, label_B < 0, index_B, (step + 1) * count, (count,))

    rows: list[dict[str, float]] = []

    def noted(loss: Tensor, batches: int) -> tuple[Tensor, Tensor]:
        norms = [
            nn.utils.get_total_norm([p.grad for p in part.parameters() if p.grad is not None]).item()
            for part in (backbone, head)
        ]
        row = {"step": len(rows) + 1, "lr": trainer.lr, "loss": loss.item()}
        rows.append(row | {"backbone_grad_norm": norms[0], "head_grad_norm": norms[1]})
        return update(loss, batches)

    update, done = trainer.update_weights, trainer.done
    with (
        mock.patch.object(trainer, "done", lambda: done() or len(rows) == len(wanted["steps"])),
        mock.patch.object(trainer.loader, "batches", batches),
        mock.patch.object(trainer, "update_weights", noted),
        mock.patch.object(trainer, "save"),
        mock.patch("facerec.training.loop.prepare", exactly),
    ):
        trainer.fit()
    return rows
