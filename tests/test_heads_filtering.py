"""Inter-class filtering: a class above the threshold is as if it were not there, in every head."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from facerec.errors import ConfigError
from facerec.heads import create_head
from facerec.heads.base import ClassHead
from facerec.heads.mechanism.sampling import sample_rows
from tests.heads_cases import CLASS_HEADS
from tests.heads_reference import REFERENCES
from tests.test_heads_exact import BATCH, CLASSES, make

THRESHOLD = 0.3
KEPT_PER_CLASS = ("bias", "centre_CD")  # what a formula takes beside the weights of the classes


def kept_classes(head: ClassHead, x: Tensor, y: Tensor) -> Tensor:
    """For each sample True for its own class and those whose cosine is not above the threshold (B, C)."""
    weight = head.weight.detach().view(len(head.weight), -1, x.shape[1])
    cosine = torch.nn.functional.cosine_similarity(x.detach()[:, None, None], weight[None], dim=3).amax(2)
    return (cosine <= THRESHOLD) | torch.nn.functional.one_hot(y, len(weight)).bool()


def without_the_filtered(name: str, head: ClassHead, x: Tensor, y: Tensor) -> Tensor:
    """The reference's loss of each sample alone, over the classes that are kept for it; their mean."""
    losses = []
    for i, kept in enumerate(kept_classes(head, x, y)):
        given: dict[str, Any] = {}
        for parameter in list(inspect.signature(REFERENCES[name]).parameters)[3:]:
            value = getattr(head if hasattr(head, parameter) else head.norm, parameter)
            value = value() if callable(value) and not isinstance(value, Tensor) else value
            given[parameter] = value[kept] if parameter in KEPT_PER_CLASS else value
        own = kept[: int(y[i])].sum()[None]
        losses.append(REFERENCES[name](x[i : i + 1], head.weight[kept], own, **given))
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("memory", "block_size"), [("keep", 4), ("recompute", 2)])
@pytest.mark.parametrize("name", REFERENCES)
def test_loss_and_gradients_are_those_of_the_formula_over_the_classes_that_are_left(
    name: str, memory: str, block_size: int
) -> None:
    head, x, y = make(name, interclass_filtering=THRESHOLD, memory=memory, block_size=block_size)
    assert isinstance(head, ClassHead)
    output = head(x, y)
    right = without_the_filtered(name, head, x, y)
    assert abs(output.loss - right) < 1e-10 * max(1, abs(right))
    variables = [x, *head.parameters()]
    gradients = (torch.autograd.grad(loss, variables) for loss in (output.loss, right))
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)

    filtered = (~kept_classes(head, x, y)).sum() / BATCH
    assert 0 < filtered < CLASSES - 1
    assert float(output.statistics["filtered_negatives"]) == pytest.approx(float(filtered))


@pytest.mark.parametrize("name", CLASS_HEADS)
def test_a_threshold_that_no_cosine_passes_changes_nothing_and_one_that_all_pass_leaves_finite_numbers(
    name: str,
) -> None:
    plain, x, y = make(name)
    high, _, _ = make(name, interclass_filtering=1.0)
    assert torch.equal(plain(x, y).loss, high(x, y).loss)

    alike, _, _ = make(name, interclass_filtering=0.5)
    with torch.no_grad():
        alike.weight.copy_(torch.ones_like(alike.weight))
    output = alike(torch.ones_like(x).requires_grad_(), y)
    output.loss.backward()
    assert output.statistics["filtered_negatives"] == CLASSES - 1
    assert output.loss.isfinite() and all(p.grad.isfinite().all() for p in alike.parameters())


def test_the_statistics_of_the_cosines_are_those_of_all_classes() -> None:
    plain, x, y = make("arcface")
    filtering, _, _ = make("arcface", interclass_filtering=THRESHOLD)
    before, after = plain(x, y).statistics, filtering(x, y).statistics
    assert "filtered_negatives" not in before
    assert {name: value for name, value in after.items() if name != "filtered_negatives"} == before


def test_of_sampled_rows_those_above_the_threshold_are_left_out() -> None:
    head, x, y = make("cosface", interclass_filtering=THRESHOLD, sample_rate=0.6)
    head.train()
    torch.manual_seed(3)
    chosen, row = sample_rows(y[:3], CLASSES, 0.6)
    torch.manual_seed(3)
    output = head(x[:3], y[:3])
    few, _, _ = make("cosface")
    few.weight = torch.nn.Parameter(head.weight.detach()[chosen])
    assert isinstance(few, ClassHead)
    torch.testing.assert_close(output.loss, without_the_filtered("cosface", few, x[:3], row))
    assert output.statistics["filtered_negatives"] > 0


@pytest.mark.parametrize("value", [0, -0.2, 1.1])
def test_a_threshold_that_is_no_cosine_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"head.interclass_filtering.*cosine above 0 and at most 1"):
        create_head("arcface", num_classes=5, embedding_size=4, interclass_filtering=value)


@pytest.mark.parametrize("name", ["triplet", "contrastive"])
def test_a_head_without_class_weights_has_no_such_setting(name: str) -> None:
    with pytest.raises(ConfigError, match=r"head.interclass_filtering=0.4: no such setting"):
        create_head(name, num_classes=5, embedding_size=4, interclass_filtering=0.4)
