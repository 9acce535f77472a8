"""Weights of other lineages load whole, whatever they are wrapped in, or not at all."""

from __future__ import annotations

import argparse
import datetime
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from facerec.backbones import BACKBONES, create_backbone
from facerec.errors import CheckpointError
from facerec.models import checkpoint
from facerec.models.recognition import recognise
from facerec.models.weights import load_pretrained

SMALL = {"embedding_size": 8, "input_size": 32}
State = dict[str, Tensor]


def small(name: str = "mobilefacenet", **parameters: Any) -> nn.Module:
    return create_backbone(name, **{**SMALL, **parameters})


def state_of(name: str, **parameters: Any) -> State:
    """Names and shapes of a backbone; its values take no memory."""
    with torch.device("meta"):
        return create_backbone(name, **parameters).state_dict()


def same(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def trained() -> State:
    """The weights of a backbone whose running statistics are no longer those of the start."""
    torch.manual_seed(0)
    backbone = small().train()
    with torch.no_grad():
        backbone(torch.rand(4, 3, 32, 32))
    return backbone.state_dict()


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


def with_attribute(value: Tensor) -> Tensor:
    """As a parameter with an attribute of its own; counters as they are."""
    result = nn.Parameter(value, requires_grad=value.is_floating_point())
    result.lr_scale = 0.1  # type: ignore[attr-defined]
    return result


KERNEL = {"head.kernel": torch.ones(8, 3), "head.t": torch.ones(1)}
WRAPPED: dict[str, Callable[[State], dict[str, Any]]] = {
    "bare": lambda state: state,
    "DataParallel": lambda state: prefixed(state, "module."),
    "torch.compile in DistributedDataParallel": lambda state: prefixed(state, "module._orig_mod."),
    "ours": lambda state: {
        "backbone": state,
        "head": KERNEL,
        "config": {"backbone": {"name": "x"}},
        "step": 3,
    },
    "InsightFace": lambda state: {"epoch": 1, "state_dict_backbone": state, "state_dict_softmax_fc": KERNEL},
    "Lightning (AdaFace)": lambda state: {"epoch": 1, "state_dict": {**prefixed(state, "model."), **KERNEL}},
    "a key called model": lambda state: {"model": prefixed(state, "module."), "optimizer": {"state": {}}},
    "two wrappers": lambda state: {"model": {"state_dict": state}},
    "a wrapper of any name": lambda state: {
        "net_state_dict": state,
        "optimizer_state_dict": {"state": {i: {"exp_avg": torch.ones(2)} for i in range(999)}},
        "head_state_dict": KERNEL,
    },
    "wrappers of any names": lambda state: {"trainer": {"epoch": 3, "networks": {"face": state}}},
    "beside a Namespace and NumPy's numbers": lambda state: {
        "state_dict": state,
        "args": argparse.Namespace(lr=0.1, milestones=[10, 20]),
        "best": np.float64(0.99),
        "confusion": np.zeros((3, 2), np.int64),
        "when": datetime.date(2020, 1, 1),
        "callbacks": {argparse.Namespace: {"monitor": "loss"}, ("a", ("b",)): 1},
        "names": {"a", "b"},
    },
    "parameters and attributes": lambda state: {k: with_attribute(v) for k, v in state.items()},
    "half precision": lambda state: {k: v.half() if v.is_floating_point() else v for k, v in state.items()},
    "without batch counters": lambda state: {k: v for k, v in state.items() if "num_batches" not in k},
}


OBJECTS = ("beside a Namespace and NumPy's numbers", "parameters and attributes")


@pytest.mark.parametrize(
    ("kind", "zipped"), [*((kind, True) for kind in WRAPPED), *((kind, False) for kind in OBJECTS)]
)
def test_weights_load_out_of_any_wrapper(tmp_path: Path, trained: State, kind: str, zipped: bool) -> None:
    torch.save(WRAPPED[kind](trained), tmp_path / "weights.pth", _use_new_zipfile_serialization=zipped)
    backbone = small()
    load_pretrained(backbone, tmp_path / "weights.pth")
    expected = trained
    if kind == "half precision":
        expected = {k: v.half().float() if v.is_floating_point() else v for k, v in trained.items()}
    if kind == "without batch counters":
        expected = {k: torch.zeros_like(v) if "num_batches" in k else v for k, v in trained.items()}
    assert same(backbone.state_dict(), expected)


def test_what_is_left_out_is_said(tmp_path: Path, trained: State, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({**prefixed(trained, "model."), **KERNEL}, tmp_path / "weights.ckpt")
    with caplog.at_level(logging.INFO):
        load_pretrained(small(), tmp_path / "weights.ckpt")
    assert "333 entries loaded; left out: head.kernel, head.t" in caplog.text


def test_the_classifier_of_sphereface_files_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = small("sphere20").state_dict()
    torch.save({**state, "fc6.weight": torch.ones(8, 10574)}, tmp_path / "sphere20a.pth")
    backbone = small("sphere20")
    with caplog.at_level(logging.INFO):
        load_pretrained(backbone, tmp_path / "sphere20a.pth")
    assert same(backbone.state_dict(), state)
    assert "left out: fc6.weight" in caplog.text


def changed(state: State, **changes: Tensor | None) -> State:
    """`state` with entries replaced, added, or (None) taken out; a double underscore stands for a dot."""
    result = {**state, **{name.replace("__", "."): value for name, value in changes.items()}}
    return {name: value for name, value in result.items() if value is not None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: changed(s, bn__weight=None), r"1 missing \(bn\.weight\)"),
        (lambda s: changed(s, bn__scale=torch.ones(8)), r"1 unexpected \(bn\.scale\)"),
        (
            lambda s: changed(s, bn__bias=torch.ones(9)),
            r"1 of another shape or type \(bn\.bias \[9\] for \[8\]\)",
        ),
        (lambda s: {k: v.to(torch.int8) for k, v in s.items()}, r"conv1\.conv\.weight of torch\.int8"),
        (lambda s: {k: v + 0j for k, v in s.items()}, r"conv1\.conv\.weight of torch\.complex64"),
        (
            lambda s: {name: value for name, value in s.items() if not name.startswith("conv_4.")},
            r"102 missing \(conv_4\.model\.0\.conv\.conv\.weight, .* and 99 more\); it is none of the known",
        ),
        (lambda s: small(embedding_size=16).state_dict(), r"linear\.weight \[16, 512\] for \[8, 512\]"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_nothing_is_loaded(
    tmp_path: Path, trained: State, change: Callable[[State], State], message: str
) -> None:
    torch.save(change(trained), tmp_path / "weights.pth")
    backbone = small()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(
        CheckpointError, match=rf"backbone\.pretrained=.*weights\.pth: does not fit.*{message}"
    ):
        load_pretrained(backbone, tmp_path / "weights.pth")
    assert same(backbone.state_dict(), before)


def test_weights_of_another_backbone_are_named(tmp_path: Path) -> None:
    state = create_backbone("mbf", embedding_size=64).state_dict()
    torch.save({"state_dict": prefixed(state, "module.")}, tmp_path / "weights.pth")
    hint = r"it fits backbone=mbf backbone\.embedding_size=64 data\.size=112$"
    with pytest.raises(CheckpointError, match=hint) as caught:
        load_pretrained(small(), tmp_path / "weights.pth")
    assert "\n" not in str(caught.value)


def test_the_size_of_the_images_of_another_backbone_is_named_as_one_types_it(tmp_path: Path) -> None:
    state = create_backbone("mobilefacenet", embedding_size=64, input_size=[112, 96]).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"backbone\.embedding_size=64 'data\.size=\[112,96\]'$"):
        load_pretrained(small(), tmp_path / "weights.pth")


def test_a_file_that_would_run_something_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil\.pth: has no weights; .* state_dict \(of \w+\.system\)"):
        load_pretrained(small(), tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.pth", None, "no such file"),
        ("missing.safetensors", None, "no such file"),
        ("broken.pth", b"not a checkpoint", "not a checkpoint, or a damaged one"),
        ("broken.safetensors", b"not one either", "not a safetensors file, or a damaged one"),
    ],
)
def test_files_without_weights_are_named(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if name == "broken.safetensors":
        pytest.importorskip("safetensors")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"^backbone\.pretrained=.*{name}: {message}"):
        load_pretrained(small(), tmp_path / name)


def test_a_checkpoint_without_tensors_says_what_it_holds(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "x.pt", {"step": 3, "epoch": 1})
    with pytest.raises(CheckpointError, match=r"x\.pt: has no weights; .* this holds step, epoch"):
        load_pretrained(small(), tmp_path / "x.pt")


def test_the_wrapper_of_a_lineage_counts_more_than_a_larger_one(tmp_path: Path, trained: State) -> None:
    torch.save({"net": trained, "larger": {str(i): torch.ones(1) for i in range(999)}}, tmp_path / "w")
    backbone = small()
    load_pretrained(backbone, tmp_path / "w")
    assert same(backbone.state_dict(), trained)


@pytest.mark.parametrize("name", sorted({*BACKBONES.names()} - {"timm"}))
def test_every_backbone_is_recognised_by_its_weights(name: str) -> None:
    known = {"name": name, "embedding_size": 512, "input_size": 112}
    assert recognise(state_of(name)) == known


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mobilefacenet", {"embedding_size": 128, "input_size": 112}),
        ("sphere20", {"embedding_size": 512, "input_size": [112, 96]}),
        ("ir_50", {"embedding_size": 256, "input_size": 224}),
        ("adaface_ir_18", {"embedding_size": 100, "input_size": 112}),
        ("vit_s", {"embedding_size": 77, "input_size": 224}),
    ],
)
def test_sizes_are_recognised(name: str, parameters: dict[str, Any]) -> None:
    state = prefixed(state_of(name, **parameters), "module.")
    assert recognise(state) == {"name": name, **parameters}


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"weight": torch.ones(3)},
        {"fc.bias": torch.ones(())},
        pytest.param(lambda: state_of("iresnet18", input_size=64), id="an input size nobody publishes"),
        pytest.param(lambda: changed(state_of("mbf"), conv_sep=torch.ones(1)), id="one entry more"),
    ],
)
def test_other_weights_are_not_recognised(state: State | Callable[[], State]) -> None:
    assert recognise(state() if callable(state) else state) is None


def test_weights_of_nothing_known_are_given_up_after_a_few_parameters_of_each_backbone() -> None:
    made: list[str] = []
    register = nn.modules.module.register_module_parameter_registration_hook
    hook = register(lambda _, name, __: made.append(name))
    try:
        assert recognise({f"layers.{i}.weight": torch.zeros(3, 3) for i in range(400)}) is None
    finally:
        hook.remove()
    assert len(made) < 40 * len(BACKBONES.names())
