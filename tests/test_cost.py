"""What a run costs: the estimate against hand calculations, real tensors, and scripts/plan."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from facerec.heads import create_head
from facerec.training.cost import HeadSize, estimate, of_run, size
from facerec.training.sampled_rows import sampled_rows
from tests.tiny_run import tiny_trainer

PLAN = Path(__file__).parents[1] / "scripts" / "plan.py"

# 64 processes, 10 million classes, batch 128: G = 8,192, R = 156,250.
LARGE: dict[str, Any] = {
    "parameters": 65_156_160,
    "multiply_adds": 12.09e9,
    "batch_size": 128,
    "processes": 64,
}


def test_the_head_of_ten_million_classes_by_hand() -> None:
    cost = estimate(**LARGE, head=HeadSize.of(10_000_000, 64))
    assert cost.head_weights == cost.head_state == cost.head_gradients == 156_250 * 512 * 4 == 320_000_000
    assert cost.logits == 156_250 * 8192 * 4 == 5_120_000_000
    assert cost.sampled_copies == 0
    assert cost.head_flops == 3 * 2 * 156_250 * 8192 * 512


def test_sampling_shrinks_gradient_products_and_operations_but_neither_weights_nor_momentum() -> None:
    cost = estimate(**LARGE, head=HeadSize.of(10_000_000, 64, sample_rate=0.1))
    assert cost.head_weights == cost.head_state == 320_000_000
    assert cost.head_gradients == 15_625 * 2048 == 32_000_000
    assert cost.sampled_copies == 2 * 32_000_000
    assert cost.logits == 15_625 * 8192 * 4 == 512_000_000
    assert cost.head_flops == 3 * 2 * 15_625 * 8192 * 512


def test_no_fewer_rows_take_part_than_there_are_samples_and_no_more_than_there_are_rows() -> None:
    assert HeadSize(rows=20_000, sample_rate=0.1).taking_part(8192) == 8192
    assert HeadSize(rows=5_000, sample_rate=0.1).taking_part(8192) == 5_000
    assert HeadSize(rows=156_250, sample_rate=0.1).taking_part(8192) == 15_625
    assert HeadSize(rows=20_000).taking_part(8192) == 20_000


def test_products_computed_again_cost_a_quarter_more_operations_and_no_memory() -> None:
    head = HeadSize.of(10_000_000, 64)
    kept, again = (estimate(**LARGE, head=head, keep=keep) for keep in (True, False))
    assert again.logits == 0
    assert again.head_flops == pytest.approx(kept.head_flops * 4 / 3)
    assert estimate(**LARGE, head=head, keep=5_120_000_001).logits == 5_120_000_000
    assert estimate(**LARGE, head=head, keep=5_120_000_000).logits == 0


def test_the_backbone_by_hand() -> None:
    cost = estimate(**LARGE, head=HeadSize(0), state_tensors=2, half=True, activation=50e6)
    assert cost.backbone == 4 * 4 * 65_156_160
    assert cost.backbone_copies == 2 * 65_156_160
    assert cost.activations == 128 * 50_000_000
    assert cost.backbone_flops == pytest.approx(3 * 2 * 12.09e9 * 128)
    frozen = estimate(**LARGE, head=HeadSize(0), frozen=True)
    assert frozen.backbone == 4 * 65_156_160 and frozen.backbone_flops == pytest.approx(2 * 12.09e9 * 128)


def test_what_a_process_sends_by_hand() -> None:
    wire = estimate(**LARGE, head=HeadSize.of(10_000_000, 64)).wire
    assert sum(wire.values()) == pytest.approx(
        63 / 64 * (2 * 4 * 65_156_160 + 2 * 8192 * 512 * 4 + 8192 * 8 + 2 * 8192 * 8 * 4 + 8192 * 3 * 4)
    )
    twice = estimate(**LARGE, head=HeadSize.of(10_000_000, 64), accumulate=2).wire
    for name, sent in wire.items():  # the backbone's gradients go once a step
        assert twice[name] == pytest.approx(sent * (1 if name.startswith("backbone") else 2))
    replicated = estimate(**LARGE, head=HeadSize(1000, sharded=False)).wire
    assert sum(replicated.values()) == pytest.approx(63 / 64 * 2 * 4 * (65_156_160 + 1000 * 512))
    assert estimate(**{**LARGE, "processes": 1}, head=HeadSize.of(1000)).sent == 0


@pytest.mark.parametrize(("optimizer", "tensors"), [(torch.optim.SGD, 1), (torch.optim.AdamW, 2)])
@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_the_estimate_is_what_a_step_really_allocates(optimizer: Any, tensors: int, rate: float) -> None:
    head = create_head("arcface", num_classes=1000, embedding_size=16, sample_rate=rate)
    step = optimizer(head.parameters(), lr=0.1, **({"momentum": 0.9} if tensors == 1 else {}))
    head(torch.randn(8, 16, requires_grad=True), torch.arange(8)).loss.backward()
    weight = head.weight
    assert isinstance(weight, torch.nn.Parameter) and weight.grad is not None
    gradient = weight.grad.coalesce().values() if weight.grad.is_sparse else weight.grad
    with sampled_rows(step):
        step.step()
    state = sum(x.nbytes for x in step.state[weight].values() if isinstance(x, torch.Tensor) and x.ndim)
    cost = estimate(
        parameters=0,
        multiply_adds=0,
        head=HeadSize(1000, 16, sample_rate=rate),
        batch_size=8,
        state_tensors=tensors,
    )
    assert (cost.head_weights, cost.head_gradients, cost.head_state) == (
        weight.nbytes,
        gradient.nbytes,
        state,
    )


@pytest.mark.parametrize("head", ["arcface", "subcenter", "triplet"])
def test_a_trainer_knows_its_cost(tmp_path: Path, head: str) -> None:
    trainer = tiny_trainer(tmp_path, head=head)
    cost = of_run(trainer, 0.001)
    modules = [trainer.backbone, trainer.head]
    backbone, weights = (sum(p.nbytes for p in module.parameters()) for module in modules)
    assert (cost.backbone_weights, cost.head_weights) == (backbone, weights)
    assert cost.backbone == 3 * backbone and cost.head == 3 * weights
    assert cost.wire == {}
    line = cost.line()
    assert "a process" in line and "activations" in line and "sent" not in line and "\n" not in line


def test_sizes_read_well() -> None:
    assert [size(n) for n in (0, 999, 1000, 547e6, 41_481_249_280, 999.9e9)] == [
        "0 bytes",
        "999 bytes",
        "1 kB",
        "547 MB",
        "41.5 GB",
        "1000 GB",
    ]


def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(PLAN), *arguments], capture_output=True, text=True, timeout=60)


def test_the_plan_shows_its_arithmetic() -> None:
    arguments = "--gpus 64 --identities 10e6 --backbone iresnet100 --batch 128 --sample-rate 0.1"
    run = plan(*arguments.split())
    assert run.returncode == 0, run.stderr
    table = {" ".join(line.split()) for line in run.stdout.splitlines()}
    assert "class rows a GPU, R ⌈10,000,000 / 64⌉ 156,250" in table
    assert "class weights R × 2,048 B 320 MB" in table
    assert "their gradient K × 2,048 B 32 MB" in table
    assert "products kept K × 8,192 × 4 B 512 MB" in table
    assert "backbone's gradients, all-reduce 2 × 63/64 × 4 B × 65,156,160 513 MB" in table
    # 6 × 128 × 12.09 G = 9.28 T operations at 59.3 T a second
    assert "backbone, bf16 9.28 TFLOP / (0.19 × 312 TFLOP/s) 156.6 ms" in table
    # 8 bytes (weight, momentum) × (5,120,000,000 + 65,156,160)
    assert "on disk 2 × 4 B × (10,000,000 × 512 + 65,156,160) 41.5 GB" in table


def test_the_plan_of_one_process_and_a_backbone_that_was_never_measured() -> None:
    run = plan("--gpus", "1", "--identities", "1000", "--backbone", "mbf", "--no-keep")
    assert run.returncode == 0, run.stderr
    assert "all-gather" not in run.stdout and "computed again" in run.stdout


def test_a_wrong_word_to_the_plan_is_one_line() -> None:
    run = plan("--backbone", "iresnet99")
    assert run.returncode == 2 and "iresnet99" in run.stderr and "Traceback" not in run.stderr
    assert "above 0" in plan("--sample-rate", "2").stderr
