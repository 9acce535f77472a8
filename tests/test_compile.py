"""`torch.compile` takes every backbone whole: no graph breaks, in training and under autocast."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
import torch._dynamo
from omegaconf import OmegaConf
from torch import Tensor

from facerec.backbones import create_backbone
from facerec.backbones.base import Backbone
from facerec.backbones.iresnet import Block
from facerec.backbones.recomputation import recompute_activations
from facerec.cli.mistakes import config_folder
from facerec.errors import ConfigError
from facerec.training.run import assemble
from facerec.training.settings import TrainerSettings
from tests.backbone_families import PUBLISHED_FAMILIES, slow_but
from tests.tiny_run import tiny_trainer


@pytest.fixture(autouse=True)
def _forget_graphs() -> None:
    torch._dynamo.reset()


def made(name: str) -> tuple[Backbone, Tensor]:
    """A backbone in training, and images for it, as the trainer holds them."""
    torch.manual_seed(0)
    backbone = create_backbone(name, embedding_size=8, input_size=32).train()
    backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    image_BCHW = torch.randn(4, 3, *backbone.input_size)
    return backbone, image_BCHW.contiguous(memory_format=torch.channels_last)


def graphs_and_breaks(module: torch.nn.Module, image_BCHW: Tensor) -> tuple[int, int]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch._dynamo.explain(module)(image_BCHW)
    return found.graph_count, found.graph_break_count


@pytest.mark.parametrize("name", slow_but(("iresnet18", "sphere20"), PUBLISHED_FAMILIES))
def test_a_backbone_is_one_graph(name: str) -> None:
    assert graphs_and_breaks(*made(name)) == (1, 0)


def test_a_graph_break_would_be_seen() -> None:
    class Asking(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if x.sum().item() > 0 else x - 1

    assert graphs_and_breaks(Asking(), torch.ones(3))[1] > 0


class TwoBlocks(Backbone):
    """Little to trace, and with the batch norm and the PReLU of the large ones."""

    def __init__(self) -> None:
        super().__init__(8, 16)
        self.units = torch.nn.Sequential(Block(3, 8, 2), Block(8, 8, 1))

    def _embed(self, image_BCHW: Tensor) -> Tensor:
        return self.units(image_BCHW).mean((2, 3))


def test_with_recomputed_activations_too() -> None:
    backbone = TwoBlocks().train()
    recompute_activations(backbone)
    assert graphs_and_breaks(backbone, torch.randn(4, 3, 16, 16)) == (1, 0)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_graph_trains_as_the_backbone_does(recompute: bool) -> None:
    """Traced through the backward pass, without code generation: the same operations, other PReLU apart."""
    torch.manual_seed(0)
    plain, image_BCHW = TwoBlocks().train(), torch.randn(4, 3, 16, 16)
    compiled = copy.deepcopy(plain)
    recompute_activations(compiled, recompute)
    call = torch.compile(compiled, backend="aot_eager")
    results = []
    for module, embed in ((plain, plain), (compiled, call)):
        for _ in range(2):
            embedding_BD = embed(image_BCHW)
        embedding_BD.square().sum().backward()
        grads = {name: parameter.grad for name, parameter in module.named_parameters()}
        results.append((embedding_BD.detach(), grads, dict(module.named_buffers())))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


def test_a_run_says_what_compiling_costs_on_a_cpu(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    settings = ["data=synthetic", "data.identities=4", "data.images=24", "data.size=32"]
    settings += ["backbone=mobilefacenet", "eval.targets=[]", "trainer.device=cpu"]
    for given in ("false", "true", "reduce-overhead"):
        with hydra.initialize_config_dir(str(config_folder()), version_base=None):
            composed = hydra.compose(
                "train", [*settings, f"trainer.compile={given}", f"output_dir={tmp_path}"]
            )
        config: Any = OmegaConf.to_container(composed, resolve=True)
        assemble(config, tmp_path)
    plain, graphs = [message for message in caplog.messages if message.startswith("compile")]
    assert "on a CPU the first steps take minutes" in plain and "CUDA graphs" not in plain
    assert graphs.startswith(plain) and graphs.endswith("; reduce-overhead: it has no CUDA graphs")
    with pytest.raises(ConfigError, match=r"^trainer\.accumulate=2: with trainer\.compile=reduce-overhead"):
        TrainerSettings(compile="reduce-overhead", accumulate=2)


@pytest.mark.slow
def test_a_mode_of_the_compiler_trains_as_eager_code_does(tmp_path: Path) -> None:
    """On a CPU without its CUDA graphs; tests/test_on_device.py has them."""
    options: dict[str, Any] = {"dropout": 0.0, "trainer_max_steps": 3}
    eager, compiled = (
        tiny_trainer(tmp_path / str(mode), trainer_compile=mode, **options)
        for mode in (False, "reduce-overhead")
    )
    for trainer in (eager, compiled):
        trainer.fit()
    for name, value in eager.backbone.state_dict().items():
        torch.testing.assert_close(compiled.backbone.state_dict()[name], value, rtol=1e-4, atol=1e-5)
