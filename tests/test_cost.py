"""Cost of a run: the estimate against hand calculations, real tensors, and scripts/plan."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from facerec.errors import size_text
from facerec.heads import create_head
from facerec.heads.mechanism.sampling import updating_sampled_rows
from facerec.training.cost import Cost, estimate, of_run
from tests.tiny_run import tiny_trainer

PLAN = Path(__file__).parents[1] / "scripts" / "plan.py"

# 64 processes, 10 million classes, batch 128: G = 8,192, R = 156,250.
LARGE: dict[str, Any] = {
    "parameters": 65_156_160,
    "multiply_adds": 12.09e9,
    "batch_size": 128,
    "world_size": 64,
    "rows": 156_250,
    "embedding_size": 512,
}
PAIRS = {"rows": 0, "sharded": False}  # a head without class weights


def amounts(cost: Cost, part: str) -> dict[str, float]:
    """Bytes of a part of the memory by name."""
    return {name: cost.value(formula) for name, formula in cost.memory[part].items()}


def flops(cost: Cost, part: str) -> float:
    return cost.value(cost.flops[part])


def test_the_head_of_ten_million_classes_by_hand() -> None:
    cost = estimate(**LARGE)
    shard = 156_250 * 512 * 4
    assert amounts(cost, "head") == {"weights": shard, "state": shard, "gradient": shard}
    assert shard == 320_000_000
    assert amounts(cost, "logits")["kept"] == 156_250 * 8192 * 4 == 5_120_000_000
    assert flops(cost, "head") == 3 * 2 * 156_250 * 8192 * 512


def test_sampling_shrinks_gradient_logits_and_operations_but_neither_weights_nor_momentum() -> None:
    cost = estimate(**LARGE, sample_rate=0.1)
    head = amounts(cost, "head")
    assert head["weights"] == head["state"] == 320_000_000
    assert head["gradient"] == 15_625 * 2048 == 32_000_000
    assert head["copies of sampled rows"] == 2 * 32_000_000
    assert amounts(cost, "logits")["kept"] == 15_625 * 8192 * 4 == 512_000_000
    assert flops(cost, "head") == 3 * 2 * 15_625 * 8192 * 512


@pytest.mark.parametrize(
    ("rows", "rate", "taking_part"),
    [(20_000, 0.1, 8192), (5_000, 0.1, 5_000), (156_250, 0.1, 15_625), (20_000, 1.0, 20_000)],
)
def test_no_fewer_rows_take_part_than_there_are_samples_and_no_more_than_there_are_rows(
    rows: int, rate: float, taking_part: int
) -> None:
    assert estimate(**{**LARGE, "rows": rows}, sample_rate=rate).symbols["K"] == taking_part


def test_logits_computed_again_cost_a_third_more_operations_and_no_memory() -> None:
    kept, again = (estimate(**LARGE, keep=keep) for keep in (True, False))
    assert "kept" not in again.memory["logits"]
    assert flops(again, "head") == pytest.approx(flops(kept, "head") * 4 / 3)
    assert amounts(estimate(**LARGE, keep=5_120_000_001), "logits")["kept"] == 5_120_000_000
    assert "kept" not in estimate(**LARGE, keep=5_120_000_000).memory["logits"]


def test_a_sharded_backbone_by_hand() -> None:
    cost, weights = estimate(**LARGE | PAIRS, state_tensors=2, fsdp=True, ema=True), 65_156_160 * 4
    held = sum(amounts(cost, "backbone").values())
    assert held == pytest.approx(
        5 / 64 * weights + weights
    )  # weights, gradient, two moments, average; gathered
    assert sum(map(cost.value, cost.sent.values())) == pytest.approx(3 * 63 / 64 * weights)


def test_the_backbone_by_hand() -> None:
    cost = estimate(**LARGE | PAIRS, state_tensors=2, half=True, activation=50e6)
    assert sum(amounts(cost, "backbone").values()) == (4 * 4 + 2) * 65_156_160
    assert cost.total(cost.memory["activations"]) == 128 * 50_000_000
    assert flops(cost, "backbone") == pytest.approx(3 * 2 * 12.09e9 * 128)
    frozen = estimate(**LARGE | PAIRS, frozen=True)
    assert cost.total(frozen.memory["backbone"]) == 4 * 65_156_160
    assert flops(frozen, "backbone") == pytest.approx(2 * 12.09e9 * 128)


def test_what_a_process_sends_by_hand() -> None:
    cost = estimate(**LARGE)
    assert cost.total(cost.sent) == pytest.approx(
        63 / 64 * (2 * 4 * 65_156_160 + 2 * 8192 * 512 * 4 + 8192 * 8 + 2 * 8192 * 8 * 4 + 8192 * 3 * 4)
    )
    twice = estimate(**LARGE, accumulate=2)
    for name, formula in cost.sent.items():  # the backbone's gradients go once per step
        times = 1 if name.startswith("backbone") else 2
        assert twice.value(twice.sent[name]) == pytest.approx(cost.value(formula) * times)
    replicated = estimate(**LARGE | {"rows": 1000}, sharded=False)
    assert replicated.total(replicated.sent) == pytest.approx(63 / 64 * 2 * 4 * (65_156_160 + 1000 * 512))
    assert estimate(**LARGE | {"world_size": 1}).sent == {}


@pytest.mark.parametrize(("optimizer", "tensors"), [(torch.optim.SGD, 1), (torch.optim.AdamW, 2)])
@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_the_estimate_is_what_a_step_really_allocates(optimizer: Any, tensors: int, rate: float) -> None:
    head = create_head("arcface", num_classes=1000, embedding_size=16, sample_rate=rate)
    step = optimizer(head.parameters(), lr=0.1, **({"momentum": 0.9} if tensors == 1 else {}))
    head(torch.randn(8, 16, requires_grad=True), torch.arange(8)).loss.backward()
    weight = head.weight
    assert isinstance(weight, torch.nn.Parameter) and weight.grad is not None
    gradient = weight.grad.coalesce().values() if weight.grad.is_sparse else weight.grad
    with updating_sampled_rows(step):
        step.step()
    state = sum(x.nbytes for x in step.state[weight].values() if isinstance(x, torch.Tensor) and x.ndim)
    sizes = {"rows": 1000, "embedding_size": 16, "batch_size": 8, "world_size": 1}
    expected = amounts(estimate(**LARGE | sizes, sample_rate=rate, state_tensors=tensors), "head")
    assert (expected["weights"], expected["gradient"], expected["state"]) == (
        weight.nbytes,
        gradient.nbytes,
        state,
    )


@pytest.mark.parametrize("threshold", [None, 0.3])
def test_the_blocks_at_work_are_those_that_a_step_allocates(threshold: float | None) -> None:
    classes, batch, block = 16384, 64, 4096
    settings = {"block_size": block, "memory": "recompute", "interclass_filtering": threshold}
    head = create_head("arcface", num_classes=classes, embedding_size=16, **settings)
    x, label = torch.randn(batch, 16, requires_grad=True), torch.randint(classes, (batch,))
    head(x, label).loss.backward()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as seen:
        head(x, label)
    events = [one for one in seen.profiler.kineto_results.events() if one.name() == "[memory]"]
    allocated = np.cumsum([one.nbytes() for one in sorted(events, key=lambda one: one.start_ns())])
    sizes = {"rows": classes, "embedding_size": 16, "batch_size": batch, "world_size": 1}
    filtered = threshold is not None
    cost = estimate(**LARGE | sizes, keep=False, filtered=filtered, block=block * batch * 4)
    assert allocated.max() == pytest.approx(amounts(cost, "logits")["blocks at work"], rel=0.04)


@pytest.mark.parametrize("head", ["arcface", "subcenter", "triplet"])
def test_a_trainer_knows_its_cost(tmp_path: Path, head: str) -> None:
    trainer = tiny_trainer(tmp_path, head=head)
    cost = of_run(trainer)
    for part, module in trainer.modules.items():
        weights = sum(p.nbytes for p in module.parameters())
        assert amounts(cost, part) == dict.fromkeys(("weights", "state", "gradient"), weights)
    assert cost.sent == {}
    line = cost.line()
    assert "per process" in line and "activations" in line and "sent" not in line and "\n" not in line


def test_sizes_read_well() -> None:
    sizes = {0: "0 bytes", 999: "999 bytes", 1000: "1 kB", 547e6: "547 MB", 41_481_249_280: "41.5 GB"}
    assert {n: size_text(n) for n in (*sizes, 999.9e9)} == sizes | {999.9e9: "1 TB"}


def plan(*arguments: str) -> None:
    """Run scripts/plan in this process, which has torch already."""
    runpy.run_path(str(PLAN))["main"](list(arguments))


def test_the_plan_shows_its_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "--gpus 64 --identities 10e6 --backbone iresnet100 --batch 128 --sample-rate 0.1"
    plan(*arguments.split())
    table = {" ".join(line.split()) for line in capsys.readouterr().out.splitlines()}
    for row in (
        "class rows per GPU, R ⌈10,000,000 / 64⌉ 156,250",
        "head: weights R × D × 4 320 MB",
        "head: gradient 1 × K × D × 4 32 MB",
        "logits: kept K × S × 4 512 MB",
        "backbone's gradients, all-reduce 2 × r × W × 4 513 MB",
        # 6 × 128 × 12.09 G = 9.28 T operations at 59.3 T per second
        "backbone, bf16 6 × M × B × A / (0.19 × 312 TFLOP/s) 156.6 ms",
        # 8 bytes (weight, momentum) × (5,120,000,000 + 65,156,160)
        "on disk 2 × 4 × (10,000,000 × D + W) 41.5 GB",
    ):
        assert row in table


def test_the_plan_of_one_process(capsys: pytest.CaptureFixture[str]) -> None:
    plan("--gpus", "1", "--identities", "10e6", "--backbone", "mbf", "--memory", "16")
    said = capsys.readouterr().out
    assert "all-gather" not in said and "logits: kept" not in said


def test_a_wrong_word_to_the_plan_is_one_line() -> None:
    with pytest.raises(SystemExit, match="plan: backbone=iresnet99: no such backbone"):
        plan("--backbone", "iresnet99")
