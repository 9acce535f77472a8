"""A head whose classes are shared out over processes computes what one process with all of them computes."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from facerec import distributed
from facerec.errors import ConfigError
from facerec.heads import create_head
from facerec.heads.base import ClassHead
from facerec.heads.mechanism.sampling import sample_rows, take_rows
from facerec.heads.mechanism.sharding import Shard
from tests.heads_cases import CLASS_HEADS, STATEFUL
from tests.several import run_ranks

CLASSES, SIZE = 11, 6
SETTINGS: dict[str, dict[str, Any]] = {
    "elasticface": {"sigma": 0.0},  # else every process draws margins of its own
    "sphereface": {"normalize_gradient": True},
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "arcface recomputed": ("arcface", {"memory": "recompute"}),
    **{
        f"{n} filtered": (n, {"interclass_filtering": 0.2})
        for n in ("arcface", "softmax", "sface", "npcface")
    },
    **{f"{n} replicated": (n, {"sharded": False}) for n in STATEFUL},
}
REPORTED = ("target_cosine", "hardest_cosine", "other_cosine", "accuracy", "filtered_negatives")
PARTS = {2: [5, 4], 3: [3, 3, 2]}  # samples of each process: the last batch of an epoch is uneven


def batch(parts: list[int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    x = 3 * torch.randn(sum(parts), SIZE, generator=generator, dtype=torch.float64)
    label = torch.randint(CLASSES, (sum(parts),), generator=generator)
    label[-1] = label[0]  # a class that two processes have samples of
    return x.requires_grad_(), label


def make(name: str, **further: Any) -> ClassHead:
    torch.manual_seed(3)
    settings = {"init": 0.5, "block_size": 2, **SETTINGS.get(name, {}), **further}
    head = create_head(name, num_classes=CLASSES, embedding_size=SIZE, **settings)
    assert isinstance(head, ClassHead)
    return head.double()


def step(head: ClassHead, parts: list[int], own: slice, sizes: list[int] | None) -> dict[str, Tensor]:
    """Two steps, the second of which sees the state that the first left; what came of the second."""
    x, label = batch(parts)
    weight = (own.stop - own.start) * len(parts) / sum(parts) if sizes else 1.0
    out = head(x[own], label[own], sizes)
    head.zero_grad()
    x.grad = None
    head.after_step()
    out = head(x[own], label[own], sizes)
    (out.loss * weight).backward()
    assert x.grad is not None
    found = {"loss": out.loss.detach(), "x": x.grad[own] / (len(parts) if sizes else 1)}
    found |= {f"grad {n}": p.grad for n, p in head.named_parameters() if p.grad is not None}
    found |= {f"start {n}": p.detach() for n, p in head.named_parameters()}
    found |= {f"state {n}": b for n, b in head.named_buffers()}
    return found | {f"report {k}": v for k, v in out.statistics.items()}


def every_head(folder: Path, parts: list[int]) -> None:
    rank = distributed.rank()
    begin = sum(parts[:rank])
    own = slice(begin, begin + parts[rank])
    found = {name: step(make(name, sharded=True), parts, own, parts) for name in CLASS_HEADS}
    for variant, (name, further) in VARIANTS.items():
        found[variant] = step(make(name, **{"sharded": True, **further}), parts, own, parts)
    found["sampled"] = step(make("cosface", sharded=True, sample_rate=0.1), parts, own, parts)
    torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module", params=[2, 3])
def sharded_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Results of two or three processes, by process and head."""
    folder = tmp_path_factory.mktemp("processes")
    parts = PARTS[request.param]
    run_ranks(len(parts), folder, every_head, parts)
    return parts, [torch.load(folder / f"{rank}.pt") for rank in range(len(parts))]


@pytest.mark.parametrize("name", [*CLASS_HEADS, *VARIANTS])
def test_gradients_state_and_report_are_those_of_one_process(sharded_run: Any, name: str) -> None:
    parts, found_by = sharded_run
    found = [process[name] for process in found_by]
    plain, further = VARIANTS.get(name, (name, {}))
    alone = step(make(plain, **further), parts, slice(0, sum(parts)), None)
    assert alone.get("report filtered_negatives", 1) > 0
    own = torch.tensor(parts, dtype=torch.float64) / sum(parts)

    def mean(key: str) -> Tensor:
        return sum(
            (f[key] * fraction for f, fraction in zip(found, own, strict=True)), torch.zeros(()).double()
        )

    close = {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(mean("loss"), alone["loss"], **close)
    torch.testing.assert_close(torch.cat([f["x"] for f in found]), alone["x"], **close)
    for key, value in alone.items():
        kind, _, what = key.partition(" ")
        sharded = what in ("weight", "bias") and further.get("sharded", True)
        if kind in ("grad", "start") and sharded:
            torch.testing.assert_close(torch.cat([f[key] for f in found]), value, **close)
        elif kind == "grad":  # of a parameter that every process has: averaged by the trainer
            average = sum(f[key] for f in found) / len(found)
            torch.testing.assert_close(average, value, **close)
        elif kind == "state":
            assert all(torch.equal(f[key], found[0][key]) for f in found)
            torch.testing.assert_close(found[0][key], value, **close)
        elif kind == "report" and what in REPORTED:
            torch.testing.assert_close(mean(key).to(value.dtype), value, rtol=1e-6, atol=1e-7)


def test_sampled_rows_hold_the_samples_own_classes_and_alone_get_a_gradient(sharded_run: Any) -> None:
    parts, found_by = sharded_run
    _, label = batch(parts)
    for rank, process in enumerate(found_by):
        shard = Shard.of(CLASSES, rank, len(parts))
        grad = process["sampled"]["grad weight"]
        assert grad.is_sparse
        own = {int(row) for row in shard.local(label) if row >= 0}
        rows = grad.coalesce().indices()[0].tolist()
        assert own <= set(rows)
        assert process["sampled"]["report accuracy"].isfinite()


def test_each_process_holds_its_part_and_none_is_left_without() -> None:
    shards = [Shard.of(10, rank, 4) for rank in range(4)]
    assert [(s.start, s.stop) for s in shards] == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert shards[1].local(torch.tensor([2, 3, 5, 6])).tolist() == [-1, 0, 2, -1]
    assert [Shard.of(5, rank, 4).rows for rank in range(4)] == [2, 2, 1, 0]


def test_a_sample_of_rows_has_all_own_classes_whatever_the_labels() -> None:
    torch.manual_seed(0)
    row = torch.tensor([7, -1, 99, 7, 50])
    chosen, place = sample_rows(row, 100, 0.2)
    assert len(chosen) == 20
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert chosen[place[[0, 2, 3, 4]]].tolist() == [7, 99, 7, 50]
    assert place[1] == -1
    crowded, _ = sample_rows(torch.arange(60), 100, 0.2)  # more own classes than the rate allows
    assert len(crowded) == 60
    again, _ = sample_rows(row, 100, 0.2)
    assert again.tolist() != chosen.tolist()


def test_the_same_seed_samples_the_same_rows() -> None:
    def draw() -> list[int]:
        torch.manual_seed(5)
        return sample_rows(torch.tensor([1]), 1000, 0.01)[0].tolist()

    assert draw() == draw()


@pytest.mark.parametrize("wanted", [3, 5])  # of 6 others: fewer and more than half
def test_every_set_of_other_rows_is_as_likely(wanted: int) -> None:
    torch.manual_seed(0)
    draws, row = 4000, torch.tensor([2, 2, -1])
    sets = Counter(tuple(sample_rows(row, 7, wanted / 7)[0].tolist()) for _ in range(draws))
    expected = draws / math.comb(6, wanted - 1)
    assert len(sets) == math.comb(6, wanted - 1) and all(2 in chosen for chosen in sets)
    assert sum((count - expected) ** 2 / expected for count in sets.values()) < 3 * len(sets)


def test_with_all_rows_sampled_the_loss_is_the_full_one() -> None:
    weight = torch.randn(6, 3, requires_grad=True)
    taken = take_rows(weight, torch.arange(6))
    (taken**2).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad.to_dense(), 2 * weight.detach())


def test_in_evaluation_all_rows_take_part() -> None:
    x, label = batch([9])
    full, sampled = make("arcface").eval(), make("arcface", sample_rate=0.1).eval()
    assert torch.equal(full(x, label).loss, sampled(x, label).loss)


@pytest.mark.parametrize("rate", [0, -0.1, 1.5])
def test_a_rate_out_of_range_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match=r"head.sample_rate.*above 0 and at most 1"):
        create_head("arcface", num_classes=5, embedding_size=4, sample_rate=rate)
