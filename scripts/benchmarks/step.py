"""A training step from batch to update: ours in bf16 and channels-last, against the plain one in fp32.

Ours is the trainer that `facerec-train` builds: uint8 batches prepared, backbone, head without one-hot masks,
gradient norm and guard, fused SGD. The reference is written plainly: contiguous fp32, torch's own PReLU,
one-hot ArcFace over all logits, SGD. Steps are taken in turn; the fastest of each counts. The floor is the
step's multiply-adds at the speed of large matrix products of that precision, measured in the same run: ours
over it is the MFU. The parts are those of the fastest step; the rest is what lies between them (preparing
images, learning rate).
"""

import argparse
import copy
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from head import arcface
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from table import Row, best
from torch import Tensor, nn

from facerec.backbones.flops import multiply_adds
from facerec.backbones.prelu import PReLU
from facerec.cli.mistakes import config_folder
from facerec.device import matmul_speed, peak_memory, wait_for
from facerec.loading.batch import Batch, prepare
from facerec.training.loop import Trainer
from facerec.training.run import assemble

PARTS = ("forward", "head", "backward", "optimizer", "rest")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", default="iresnet50", help="with commas (default %(default)s)")
    parser.add_argument("--batch", default="16", help="images per step, with commas (default %(default)s)")
    parser.add_argument("--device", default="cpu", type=torch.device, help="cpu or cuda")
    parser.add_argument("--classes", type=int, default=10_572, help="default %(default)s")
    parser.add_argument(
        "--steps", type=int, default=4, help="after a first that is left out (default %(default)s)"
    )
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16", "fp16"), help="of ours")
    parser.add_argument(
        "--compile", default="", help="also ours with these of trainer.compile, with commas; minutes more"
    )
    parser.add_argument("--checkpoint", action="store_true", help="also ours recomputing its activations")
    parser.add_argument("--quick", action="store_true", help="mobilefacenet, 8 images, 1,000 classes")
    parser.add_argument("--threads", type=int, help="of torch (default: its own)")


def rows(options: argparse.Namespace) -> Iterator[Row]:
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.quick:
        options.backbone, options.batch, options.classes = "mobilefacenet", "8", 1000
    for name in options.backbone.split(","):
        for batch in options.batch.split(","):
            yield from step_rows(name, argparse.Namespace(**vars(options) | {"batch": int(batch)}))


def step_rows(name: str, options: argparse.Namespace) -> Iterator[Row]:
    """Measure images per second and the milliseconds of the parts, reference and ours in turn."""
    speed = matmul_speed(options.device, options.precision)
    with tempfile.TemporaryDirectory(prefix="facerec-benchmark-") as folder:
        ways: dict[str, Callable[[list[Batch]], Clock]] = {}
        trainer, steps = build_trainer(name, options, Path(folder))
        ways["plain"] = PlainStep(trainer)
        ways[options.precision] = lambda batches: timed_step(trainer, batches)
        others = [f"compile={mode}" for mode in options.compile.split(",") if mode]
        for way in [*others, *(["checkpoint_activations=true"] if options.checkpoint else [])]:
            other, _ = build_trainer(name, options, Path(folder), f"trainer.{way}")
            ways[f"{options.precision}, {way}"] = lambda batches, other=other: timed_step(other, batches)
            if other.fused is not None:
                yield prepare_row(other, steps[0][0])
        clocks: dict[str, list[Clock]] = {way: [] for way in ways}
        for batches_of_step in steps:
            for way, step in ways.items():
                clocks[way].append(step(batches_of_step))
    fastest = {way: min(taken[1:], key=lambda clock: clock.total) for way, taken in clocks.items()}
    plain, eager = fastest.pop("plain"), clocks[options.precision][-1].loss
    floor = speed / (3 * 2 * multiply_adds(trainer.backbone))
    for way, ours in fastest.items():
        title = f"{name} {way}, B={options.batch}"
        yield Row(title, options.batch / ours.total, "img/s", floor, options.batch / plain.total)
        for part in PARTS:
            yield Row(f"  {part}", 1e3 * ours.seconds[part], "ms", reference=1e3 * plain.seconds[part])
        if way != options.precision:
            yield Row(
                "  loss of the last step, eager code's beside it", clocks[way][-1].loss, "", reference=eager
            )
    if options.device.type == "cuda":
        yield Row(
            f"{name}, B={options.batch}, peak memory of all ways", peak_memory(options.device) / 1e6, "MB"
        )


@dataclass
class Clock:
    """The seconds of a step by part, for each of which the device is waited for."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    since: float = field(default_factory=time.perf_counter)
    loss: float = 0.0

    def spent(self, part: str) -> None:
        """Add the time since the previous call to `part`."""
        wait_for(self.device)
        now = time.perf_counter()
        self.seconds[part] += now - self.since
        self.since = now

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def split_backward(self, embedding_BD: Tensor) -> None:
        """Count the backward pass down to the embeddings as the head's, the remainder as the backbone's."""
        embedding_BD.register_hook(lambda _: self.spent("head"))


# Ours ------------------------------------------------------------------------------------------------------


def build_trainer(
    name: str, options: argparse.Namespace, folder: Path, *overrides: str
) -> tuple[Trainer, list[list[Batch]]]:
    """Return the trainer that `facerec-train` would build, and the batches of its first steps."""
    settings = [
        f"backbone={name}",
        "head=arcface",
        "data=synthetic",
        "data.workers=1",
        f"data.identities={options.classes}",
        f"data.images={options.classes + options.batch * (options.steps + 1)}",
        "eval.targets=[]",
        f"output_dir={folder}",
        f"trainer.batch_size={options.batch}",
        f"trainer.precision={options.precision}",
        f"trainer.device={options.device}",
    ]
    with initialize_config_dir(str(config_folder()), version_base=None):
        composed = compose("train", overrides=[*settings, *overrides])
    config: Mapping[str, Any] = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
    trainer = assemble(config, folder)
    trainer.set_modes()
    return trainer, list(itertools.islice(trainer.batches_of_steps(), options.steps + 1))


def timed_step(trainer: Trainer, batches_of_step: list[Batch]) -> Clock:
    """Time a step of the trainer from outside, by wrapping the methods it calls."""
    forward, head, update = trainer.forward, trainer.head.forward, trainer.update_weights
    clock = Clock(trainer.device)

    def timed_forward(image_BCHW: Tensor) -> Tensor:
        clock.spent("rest")
        embedding_BD = forward(image_BCHW)
        clock.spent("forward")
        clock.split_backward(embedding_BD)
        return embedding_BD

    def timed_head(*arguments: Any) -> Any:
        output = head(*arguments)
        clock.spent("head")
        return output

    def timed_update(loss: Tensor, batches: int) -> tuple[Tensor, Tensor]:
        clock.spent("backward")
        result = update(loss, batches)
        clock.spent("optimizer")
        clock.loss = float(loss)
        return result

    wrapped = {"forward": timed_forward, "update_weights": timed_update}
    trainer.__dict__.update(wrapped)
    trainer.head.forward = timed_head  # type: ignore[method-assign]
    try:
        trainer.step(batches_of_step)
    finally:
        del trainer.head.forward
        for key in wrapped:
            del trainer.__dict__[key]
    clock.spent("rest")
    return clock


def prepare_row(trainer: Trainer, batch: Batch) -> Row:
    """Measure mirroring and normalising by one compiled kernel, beside the eager code."""
    milliseconds = []
    for fused in (trainer.fused, None):

        def work(fused: Any = fused) -> None:
            prepare(batch, trainer.device, trainer.input, fused)
            wait_for(trainer.device)

        work()  # compiles
        milliseconds.append(1e3 * best(work, 10))
    title = f"mirror and normalise, one kernel beside eager code, B={len(batch.label_B)}"
    return Row(title, milliseconds[0], "ms", reference=milliseconds[1])


# The reference ---------------------------------------------------------------------------------------------


class PlainStep:
    """The same step as it is usually written, from the same weights."""

    def __init__(self, trainer: Trainer) -> None:
        self.backbone = copy.deepcopy(trainer.backbone).to(memory_format=torch.contiguous_format)
        for module in self.backbone.modules():
            if isinstance(module, PReLU):
                module.__class__ = nn.PReLU
        self.device = trainer.device
        self.weight = nn.Parameter(trainer.head.weight.detach().clone())
        weights = [*self.backbone.parameters(), self.weight]
        self.optimizer = torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=5e-4)

    def __call__(self, batches_of_step: list[Batch]) -> Clock:
        clock = Clock(self.device)
        self.optimizer.zero_grad()
        for batch in batches_of_step:
            image_BHWC, mirror_B, label_B = (
                x.to(self.device) for x in (batch.image_BHWC, batch.mirror_B, batch.label_B)
            )
            image_BHWC = torch.where(mirror_B[:, None, None, None], image_BHWC.flip(2), image_BHWC)
            image_BCHW = image_BHWC.permute(0, 3, 1, 2).contiguous().float().sub(127.5).div(127.5)
            clock.spent("rest")
            embedding_BD = self.backbone(image_BCHW)
            clock.spent("forward")
            clock.split_backward(embedding_BD)
            loss = arcface(embedding_BD.float(), self.weight, label_B)
            clock.spent("head")
            loss.backward()
            clock.spent("backward")
        self.optimizer.step()
        clock.spent("optimizer")
        return clock
