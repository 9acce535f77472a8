"""Triplet and contrastive: the formulas, their miners, and a clear word where the library is missing."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from facerec.errors import ConfigError
from facerec.heads import create_head
from facerec.heads.pairs import PairHead

SIZE = 6


def batch(identities: int = 4, each: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(identities).repeat_interleave(each)
    centres = torch.randn(identities, SIZE, generator=generator, dtype=torch.float64)
    x = centres[y] + torch.randn(len(y), SIZE, generator=generator, dtype=torch.float64)
    return x.requires_grad_(), y


def test_triplet_is_its_formula() -> None:
    x, y = batch()
    unit = torch.nn.functional.normalize(x)
    losses = []
    for a, p, n in itertools.product(range(len(y)), repeat=3):
        if a != p and y[a] == y[p] and y[a] != y[n]:
            losses.append(((unit[a] - unit[p]) ** 2).sum() - ((unit[a] - unit[n]) ** 2).sum() + 0.2)
    losses = torch.stack(losses).clamp(min=0)
    right = losses[losses > 0].mean()
    got = create_head("triplet", num_classes=4, embedding_size=SIZE, miner="all")(x, y).loss
    torch.testing.assert_close(got, right)
    torch.testing.assert_close(torch.autograd.grad(got, x)[0], torch.autograd.grad(right, x)[0])


def test_contrastive_is_its_formula() -> None:
    x, y = batch()
    unit = torch.nn.functional.normalize(x)
    within, between = [], []
    for i, j in itertools.permutations(range(len(y)), 2):
        distance = (unit[i] - unit[j]).norm()
        if y[i] == y[j]:
            within.append(distance)
        else:
            between.append((1.0 - distance).clamp(min=0))
    between = torch.stack(between)
    right = torch.stack(within).mean() + between[between > 0].mean()
    got = create_head("contrastive", num_classes=4, embedding_size=SIZE)(x, y).loss
    torch.testing.assert_close(got, right)
    torch.testing.assert_close(torch.autograd.grad(got, x)[0], torch.autograd.grad(right, x)[0])


MINERS = [("triplet", m) for m in ("semihard", "hard", "batch_hard", "all")] + [("contrastive", "hard")]


@pytest.mark.parametrize(("name", "miner"), MINERS)
def test_miners_choose_and_the_statistics_speak_of_the_batch(name: str, miner: str) -> None:
    x, y = batch()
    output = create_head(name, num_classes=4, embedding_size=SIZE, miner=miner)(x, y)
    output.loss.backward()
    assert output.loss > 0
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0
    cosine = torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=2).detach()
    same = (y[:, None] == y) & ~torch.eye(len(y), dtype=torch.bool)
    other = y[:, None] != y
    nearest = cosine.masked_fill(torch.eye(len(y), dtype=torch.bool), -2).argmax(1)
    wanted = {
        "target_cosine": cosine[same].mean(),
        "target_angle": cosine[same].arccos().rad2deg().mean(),
        "other_cosine": cosine[other].mean(),
        "hardest_cosine": cosine.masked_fill(~other, -2).amax(1).mean(),
        "accuracy": (y[nearest] == y).double().mean(),
        "embedding_norm": x.detach().norm(dim=1).mean(),
    }
    for key, value in wanted.items():
        assert float(output.statistics[key]) == pytest.approx(float(value), abs=1e-6), key
        assert not output.statistics[key].requires_grad


@pytest.mark.parametrize(("name", "miner"), MINERS)
@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3], [0]])
def test_batches_without_pairs_of_a_kind_give_a_finite_loss(name: str, miner: str, labels: list[int]) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x = torch.randn(len(labels), SIZE, generator=torch.Generator().manual_seed(0)).to(dtype)
        x.requires_grad_()
        head = create_head(name, num_classes=4, embedding_size=SIZE, miner=miner)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = head(x, torch.tensor(labels)).loss
        loss.backward()
        assert loss.isfinite()
        assert x.grad is None or x.grad.isfinite().all()


def test_pair_heads_have_no_weights() -> None:
    assert not list(create_head("triplet", num_classes=4, embedding_size=SIZE).parameters())


def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("pytorch_metric_learning")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(ConfigError, match=r"head=triplet: needs .* pip install 'facerec\[metric\]'"):
        create_head("triplet", num_classes=4, embedding_size=SIZE)


def test_other_heads_do_not_load_the_library() -> None:
    code = "import sys, facerec.heads as h; h.HEADS.names(); print('pytorch_metric_learning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_batches_in_which_chance_brings_few_pairs_together_are_said(caplog: pytest.LogCaptureFixture) -> None:
    head = PairHead(num_classes=10_000, embedding_size=4)
    for identities, said in ((10_000, True), (40, False)):
        caplog.clear()
        head.check_batches(np.full(identities, 50), 128, None)
        assert ("data.shuffle=identity" in caplog.text) == said
