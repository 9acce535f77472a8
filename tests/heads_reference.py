"""The loss of heads written straight from its formula: whole logits, one-hot masks, float64, autograd.

A function called like a head is its reference: it takes embeddings, weights, labels, and by their names those
of the head's settings and state that the formula needs. A head that has no function here is held against what
all heads promise alone.

Nothing here shares code with facerec.heads. Shapes: B batch, C classes, D embedding size, K sub-centres.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

REFERENCES: dict[str, Callable[..., Tensor]] = {}


def reference(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    REFERENCES[function.__name__] = function
    return function


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def cosines(x: Tensor, w: Tensor) -> Tensor:
    return unit(x) @ unit(w).t()


def own(y: Tensor, classes: int) -> Tensor:
    return F.one_hot(y, classes).bool()


def with_target(others: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return torch.where(own(y, others.shape[1]), target[:, None], others)


def picked(logits: Tensor, y: Tensor) -> Tensor:
    return (logits * own(y, logits.shape[1])).sum(1)


def arc_target(c: Tensor, m: Any, easy: bool = False) -> Tensor:
    m = torch.as_tensor(m, dtype=c.dtype)
    added = (c.arccos() + m).cos()
    if easy:
        return torch.where(c > 0, added, c)
    return torch.where(c > (math.pi - m).cos(), added, c - m * (math.pi - m).sin())


def psi(c: Tensor, m: int) -> Tensor:
    angle = c.arccos()
    value = torch.full_like(c, torch.nan)
    for k in range(m):
        inside = (angle.detach() >= k * math.pi / m) & (angle.detach() <= (k + 1) * math.pi / m)
        value = torch.where(inside, (-1) ** k * (m * angle).cos() - 2 * k, value)
    return value


@reference
def softmax(x: Tensor, w: Tensor, y: Tensor, bias: Tensor) -> Tensor:
    return F.cross_entropy(x @ w.t() + bias, y)


@reference
def l2softmax(x: Tensor, w: Tensor, y: Tensor, bias: Tensor, alpha: float = 16) -> Tensor:
    return F.cross_entropy(alpha * unit(x) @ w.t() + bias, y)


@reference
def normface(x: Tensor, w: Tensor, y: Tensor, s: float = 64) -> Tensor:
    return F.cross_entropy(s * cosines(x, w), y)


@reference
def cosface(x: Tensor, w: Tensor, y: Tensor, s: float = 64, m: float = 0.35) -> Tensor:
    return F.cross_entropy(s * (cosines(x, w) - m * own(y, len(w)).to(x.dtype)), y)


@reference
def arcface(
    x: Tensor, w: Tensor, y: Tensor, s: float = 64, m: float = 0.5, easy_margin: bool = False
) -> Tensor:
    c = cosines(x, w)
    return F.cross_entropy(s * with_target(c, y, arc_target(picked(c, y), m, easy_margin)), y)


@reference
def combined(
    x: Tensor, w: Tensor, y: Tensor, s: float = 64, m1: float = 1, m2: float = 0.3, m3: float = 0.2
) -> Tensor:
    c = cosines(x, w)
    target = picked(c, y)
    if m1 == 1:
        target = arc_target(target, m2) - m3
    else:
        angle = m1 * target.arccos() + m2
        k = (angle.detach() / math.pi).floor()
        target = (-1.0) ** k * angle.cos() - 2 * k - m3
    return F.cross_entropy(s * with_target(c, y, target), y)


@reference
def sphereface(x: Tensor, w: Tensor, y: Tensor, m: int = 4, weight_of_plain: float = 1000) -> Tensor:
    length, c = x.norm(dim=1), cosines(x, w)
    plain = picked(c, y)
    target = length * (weight_of_plain * plain + psi(plain, m)) / (1 + weight_of_plain)
    return F.cross_entropy(with_target(length[:, None] * c, y, target), y)


@reference
def lsoftmax(x: Tensor, w: Tensor, y: Tensor, m: int = 4, weight_of_plain: float = 1000) -> Tensor:
    length, c = x.norm(dim=1)[:, None] * w.norm(dim=1), cosines(x, w)
    plain = picked(c, y)
    target = picked(length, y) * (weight_of_plain * plain + psi(plain, m)) / (1 + weight_of_plain)
    return F.cross_entropy(with_target(length * c, y, target), y)


@reference
def sface(
    x: Tensor, w: Tensor, y: Tensor, s: float = 64, k: float = 80, a: float = 0.87, b: float = 1.22
) -> Tensor:
    return pull_and_push(x, w, y, s, k, a, b, keep=1.0)


def pull_and_push(
    x: Tensor, w: Tensor, y: Tensor, s: float, k: float, a: float, b: float, keep: Tensor | float
) -> Tensor:
    c = cosines(x, w)
    angle = c.detach().arccos()
    r_intra = keep * 1 / (1 + torch.exp(-k * (picked(angle, y) - a)))
    r_inter = 1 / (1 + torch.exp(k * (angle - b)))
    intra = -(r_intra * s * picked(c, y)).mean()
    inter = (r_inter * s * c * ~own(y, len(w))).sum(1).mean()
    return intra + inter


@reference
def sface_quality(
    x: Tensor,
    w: Tensor,
    y: Tensor,
    mean: float = 20,
    deviation: float = 100,
    h: float = 0.333,
    c: float = 1.3,
    s: float = 64,
    k: float = 80,
    a: float = 0.87,
    b: float = 1.22,
) -> Tensor:
    quality = (1 + (h * (x.detach().norm(dim=1) - mean) / deviation).clip(-1, 1)) / 2
    angle = picked(cosines(x, w).detach(), y).arccos()
    keep = quality + (1 - quality) / (1 + torch.exp(k * (angle - c)))
    return pull_and_push(x, w, y, s, k, a, b, keep)


@reference
def center(
    x: Tensor, w: Tensor, y: Tensor, bias: Tensor, centre_CD: Tensor, lambda_c: float = 0.003
) -> Tensor:
    distance = (x - centre_CD[y]).norm(dim=1) ** 2
    return softmax(x, w, y, bias) + lambda_c / 2 * distance.mean()


@reference
def adaface(
    x: Tensor,
    w: Tensor,
    y: Tensor,
    mean: float = 20,
    deviation: float = 100,
    s: float = 64,
    m: float = 0.4,
    h: float = 0.333,
) -> Tensor:
    length = x.detach().norm(dim=1).clip(0.001, 100)
    q = (h * (length - mean) / (deviation + 1e-3)).clip(-1, 1)
    c = cosines(x, w)
    angle = (picked(c, y).arccos() + -m * q).clip(1e-3, math.pi - 1e-3)
    return F.cross_entropy(s * with_target(c, y, angle.cos() - (m * q + m)), y)


@reference
def magface(
    x: Tensor,
    w: Tensor,
    y: Tensor,
    s: float = 64,
    l_a: float = 10,
    u_a: float = 110,
    l_m: float = 0.45,
    u_m: float = 0.8,
    lambda_g: float = 35,
    easy_margin: bool = False,
) -> Tensor:
    a = x.norm(dim=1).clip(l_a, u_a)
    m = (u_m - l_m) / (u_a - l_a) * (a - l_a) + l_m
    c = cosines(x, w)
    target = picked(c, y)
    added = (target.arccos() + m).cos()
    beyond = target - m * m.sin()
    target = (
        torch.where(target > 0, added, target)
        if easy_margin
        else torch.where(target.arccos() + m < math.pi, added, beyond)
    )
    return F.cross_entropy(s * with_target(c, y, target), y) + lambda_g * (1 / a + a / u_a**2).mean()


@reference
def curricularface(x: Tensor, w: Tensor, y: Tensor, t: float = 0, s: float = 64, m: float = 0.5) -> Tensor:
    c = cosines(x, w)
    target = picked(c, y)
    hard = c > (target.arccos() + m).cos()[:, None]
    return F.cross_entropy(s * with_target(torch.where(hard, c * (t + c), c), y, arc_target(target, m)), y)


@reference
def elasticface(x: Tensor, w: Tensor, y: Tensor, m: float, kind: str = "arc", s: float = 64) -> Tensor:
    c = cosines(x, w)
    target = picked(c, y)
    target = target - m if kind == "cos" else arc_target(target, m)
    return F.cross_entropy(s * with_target(c, y, target), y)


@reference
def subcenter(x: Tensor, w: Tensor, y: Tensor, s: float = 64, m: float = 0.5) -> Tensor:
    c = torch.einsum("bd,ckd->bck", unit(x), unit(w)).amax(2)
    return F.cross_entropy(s * with_target(c, y, arc_target(picked(c, y), m)), y)


@reference
def mvsoftmax(
    x: Tensor,
    w: Tensor,
    y: Tensor,
    s: float = 32,
    kind: str = "am",
    m: float = 0.35,
    t: float = 0.2,
    adaptive: bool = True,
    easy_margin: bool = False,
) -> Tensor:
    c = cosines(x, w)
    plain = picked(c, y)
    threshold = plain - m if kind == "am" else (plain.arccos() + m).cos()
    raised = c + t * (c + 1) if adaptive else c + t
    others = torch.where(c > threshold[:, None], raised, c)
    if kind == "am":
        target = torch.where(plain > m, plain - m, plain) if easy_margin else plain - m
    else:
        target = arc_target(plain, m, easy_margin)
    return F.cross_entropy(s * with_target(others, y, target), y)


@reference
def circle(x: Tensor, w: Tensor, y: Tensor, s: float = 256, m: float = 0.25) -> Tensor:
    c = cosines(x, w)
    negative = s * (c.detach() + m).clip(min=0) * (c - m)
    positive = s * (1 + m - c.detach()).clip(min=0) * (c - (1 - m))
    pairs = torch.where(own(y, len(w)), -math.inf, negative - picked(positive, y)[:, None])
    zero = torch.zeros(len(x), 1, dtype=x.dtype)  # log(1 + Σ e^(…)), equation 6 with one positive
    return torch.cat([zero, pairs], 1).logsumexp(1).mean()


@reference
def sphereface2(
    x: Tensor,
    w: Tensor,
    y: Tensor,
    offset: Tensor,
    r: float = 40,
    m: float = 0.4,
    t: float = 3,
    lambda_p: float = 0.7,
    loss_weight: float = 1,
) -> Tensor:
    g = 2 * ((cosines(x, w) + 1) / 2) ** t - 1
    label = own(y, len(w)).to(x.dtype)
    logit = r * (g - m * (2 * label - 1)) + offset
    weight = lambda_p * label + (1 - lambda_p) * (1 - label)
    binary = F.binary_cross_entropy_with_logits(logit, label, weight, reduction="none")
    return loss_weight * binary.sum(1).mean() / r


@reference
def adacos(x: Tensor, w: Tensor, y: Tensor, s: float) -> Tensor:
    return normface(x, w, y, s)


@reference
def arcneg(
    x: Tensor, w: Tensor, y: Tensor, s: float = 64, m: float = 0.5, alpha: float = 1.2, sigma: float = 2
) -> Tensor:
    c = cosines(x, w)
    target = arc_target(picked(c, y), m)
    t = (alpha * torch.exp(-((c - target[:, None]) ** 2) / sigma)).detach()
    return F.cross_entropy(s * with_target(t * c + t - 1, y, target), y)


@reference
def npcface(
    x: Tensor,
    w: Tensor,
    y: Tensor,
    s: float = 64,
    m0: float = 0.4,
    m1: float = 0.2,
    t: float = 1.1,
    a: float = 0.2,
    m_hard: float = 0.5,
    easy_margin: bool = True,
) -> Tensor:
    c = cosines(x, w)
    plain = picked(c, y)
    hard = (c > (plain.arccos() + m_hard).cos()[:, None]) & ~own(y, len(w))
    rows = zip(c, hard, strict=True)
    mean = torch.stack([row[mask].mean() if mask.any() else row.sum() * 0 for row, mask in rows])
    target = arc_target(plain, m0 + m1 * mean.detach(), easy_margin)
    return F.cross_entropy(s * with_target(torch.where(hard, t * c + a, c), y, target), y)
