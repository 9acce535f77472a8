"""Figures of the heads' formulas, drawn from the heads themselves: curves, regions, gradients, scale.

Shapes: A angles (or pairs of angles) at which a head is asked, D = 2.
"""

from __future__ import annotations

import logging
import math
import textwrap
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from facerec.errors import UserError
from facerec.heads import HEADS, create_head
from facerec.heads.base import ClassHead
from facerec.heads.mechanism.batch import Samples
from facerec.heads.mechanism.class_sums import ClassSums
from facerec.reporting.style import COLOURS, GRAY, figure, frame

log = logging.getLogger(__name__)


class Line(NamedTuple):
    """A line of the target-logit figure: what the legend says, and how `target_logit` is asked."""

    label: str
    head: str
    parameters: Mapping[str, Any] = MappingProxyType({})
    norm: float = 1.0
    hard: float | None = None


# Of −1, 0 and 1, by h and the length of embeddings, in heads that start with a running norm of 20 ± 100.
_QUALITY: Final[dict[int, tuple[dict[str, float], float]]] = {
    -1: ({"h": 1e9}, 1.0),
    0: ({"h": 0.0}, 1.0),
    1: ({"h": 1e9}, 100.0),
}


def _annealed(m: int, weight: float) -> dict[str, Any]:
    """The parameters of an annealed margin at its end, where the plain logit has this weight."""
    return {"m": m, "base": 0.0, "lambda_min": float(weight)}


CURVES: Final[dict[str, list[Line]]] = {
    "no margin": [
        Line("softmax", "softmax"),
        Line("normface", "normface"),
        Line("l2softmax", "l2softmax"),
        Line("center", "center", {"lambda_c": 0.0}),
        Line("adacos", "adacos"),
    ],
    "additive margins": [
        Line("cosface", "cosface"),
        Line("arcface", "arcface"),
        Line("arcface, easy margin", "arcface", {"easy_margin": True}),
        Line("combined (1, 0.3, 0.2)", "combined"),
        Line("combined (1.35, 0, 0)", "combined", {"m1": 1.35, "m2": 0.0, "m3": 0.0}),
    ],
    "multiplicative: sphereface, lsoftmax": [
        *(
            Line(rf"$m={m}$, $\lambda={weight}$", name, _annealed(m, weight))
            for m, weight in ((2, 0), (3, 0), (4, 0), (4, 5))
            for name in ("sphereface", "lsoftmax")
        )
    ],
    "margins by the norm": [
        *(Line(f"adaface, $q={q}$", "adaface", *_QUALITY[q]) for q in (-1, 0, 1)),
        *(Line(rf"magface, $\|x\|={a}$", "magface", {"lambda_g": 0.0}, norm=a) for a in (10, 60, 110)),
    ],
    "random margins": [
        *(
            Line(f"elasticface {kind}, $m{shift}$", "elasticface", {"kind": kind, "m": m + sign * 0.0125})
            for kind, m in (("arc", 0.5), ("cos", 0.35))
            for sign, shift in ((-2, r"-2\sigma"), (2, r"+2\sigma"))
        )
    ],
    "with changed negatives": [
        Line("curricularface", "curricularface"),
        Line("arcneg", "arcneg"),
        Line("subcenter", "subcenter"),
        Line("mvsoftmax am", "mvsoftmax"),
        Line("mvsoftmax arc", "mvsoftmax", {"kind": "arc", "m": 0.5}),
        Line("npcface, no hard negatives", "npcface"),
        Line("npcface, their mean 0.6", "npcface", hard=0.6),
    ],
    "self-paced, binary": [
        Line("circle", "circle"),
        Line("sphereface2, $t=1$", "sphereface2", {"t": 1.0}),
        Line("sphereface2, $t=3$", "sphereface2"),
    ],
    "sigmoid weights": [
        Line("sface", "sface"),
        *(Line(f"sface_quality, $q={(1 + q) / 2:g}$", "sface_quality", *_QUALITY[q]) for q in (1, 0, -1)),
    ],
}


def head_of_two(name: str, **parameters: Any) -> ClassHead:
    """A float64 head of two classes in evaluation mode, unit weights along the axes."""
    head = create_head(name, num_classes=2, embedding_size=2, **parameters).double().eval()
    if not isinstance(head, ClassHead):
        raise UserError(f"head={name}: it compares the images of a batch, not with classes")
    with torch.no_grad():
        axes_22 = torch.eye(2, dtype=torch.float64)
        head.weight.copy_(axes_22 if head.weight.ndim == 2 else axes_22[:, None])
    return head


def target_logit(
    name: str, angle_A: Tensor, norm: float = 1.0, hard: float | None = None, **parameters: Any
) -> Tensor:
    """Return the target logit, divided by its scale, of embeddings at angles to their own class.

    For SFace it is the weighted cosine, for SphereFace2 that of its positive.

    Args:
        name, parameters: of the head.
        angle_A: radians in [0, π].
        norm: length of the embeddings.
        hard: mean cosine of the hard negatives, for heads that look at it; None where there are none.

    Raises:
        UserError: the head has none, or cannot be made without further settings.
    """
    head = head_of_two(name, **parameters)
    embedding_A2 = norm * torch.stack([angle_A.cos(), angle_A.sin()], 1)
    zero_A, one_A = torch.zeros_like(angle_A), torch.ones_like(angle_A)
    samples = Samples(embedding_A2, zero_A.long(), norm * one_A)
    extra = (zero_A, zero_A) if hard is None else (hard * one_A, one_A)
    sums = ClassSums(head.query(samples)[:, 0], zero_A, one_A, angle_A.cos(), zero_A, zero_A, extra)
    try:
        return head.target_logit(sums, samples).detach()
    except NotImplementedError as error:
        raise UserError(f"head={name}: it has no `target_logit`") from error


def further_curves(angle_A: Tensor) -> dict[str, list[Line]]:
    """Return panels of the heads that are in none of `CURVES`, as plugins register them, by their defaults.

    A head without a target logit is named in the log.
    """
    published = {line.head for lines in CURVES.values() for line in lines}
    lines = []
    for name in sorted(set(HEADS.names()) - published):
        try:
            target_logit(name, angle_A)
        except UserError as error:
            log.info("logits: not drawn: %s", error)
        else:
            lines.append(Line(name, name))
    panels = [lines[i : i + len(COLOURS)] for i in range(0, len(lines), len(COLOURS))]
    return {"further heads" + f" ({i})" * (i > 1): panel for i, panel in enumerate(panels, 1)}


def target_curves() -> Figure:
    """Target logit of all heads over θ ∈ [0°, 180°], one panel per family; cos θ in gray."""
    angle_A = torch.linspace(0, math.pi, 721, dtype=torch.float64)
    degrees = angle_A.rad2deg().numpy()
    families = CURVES | further_curves(angle_A)
    rows = -(-len(families) // 4)
    fig = figure(9.6, 3.7 * rows)
    panels = fig.subplots(rows, 4)
    for axes in panels.flat[len(families) :]:
        axes.set_axis_off()
    for axes, (title, lines) in zip(panels.flat, families.items(), strict=False):
        frame(axes, title)
        axes.plot(degrees, angle_A.cos(), color=GRAY, lw=0.9, ls=(0, (4, 3)))
        curves: list[tuple[list[str], np.ndarray]] = []
        for line in lines:
            curve = target_logit(line.head, angle_A, line.norm, line.hard, **line.parameters).numpy()
            same = next((labels for labels, known in curves if np.allclose(known, curve, atol=1e-6)), None)
            if same is None:
                curves.append(([line.label], curve))
            elif line.label not in same:
                same.append(line.label)
        for colour, (labels, curve) in zip(COLOURS, curves, strict=False):
            axes.plot(degrees, curve, color=colour, label=textwrap.fill(", ".join(labels), 32))
        axes.set(xlim=(0, 180), xticks=range(0, 181, 45), xlabel=r"angle to the own class $\theta$, degrees")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), handlelength=1.2, labelspacing=0.35)
    for axes in panels[:, 0]:
        axes.set_ylabel("target logit / $s$")
    return fig


_HAIR: Final = 1e-5  # of the plain logit, so that no point of the grid lies on a border
REGIONS: Final[dict[str, tuple[str, dict[str, Any], float]]] = {
    r"Softmax, $\|W_2\|=1.5\,\|W_1\|$": ("softmax", {}, 1.5),
    r"L-Softmax, $m=2$, $\|W_2\|=1.5\,\|W_1\|$": ("lsoftmax", _annealed(2, _HAIR), 1.5),
    r"A-Softmax, $m=2$": ("sphereface", _annealed(2, _HAIR), 1.0),
    r"CosFace, $m=0.35$": ("cosface", {}, 1.0),
    r"ArcFace, $m=0.5$": ("arcface", {}, 1.0),
    r"SFace, $a=0.87$, $b=1.22$": ("sface", {}, 1.0),
}


def decision_regions() -> Figure:
    """Regions of two classes and the margin between them, over the angles to both, one panel per head.

    A sample of class 1 is on its side where its target logit wins, which is where its loss is below log 2;
    the same for class 2. What is left between is the margin. SFace has no logits to compare: there a sample
    is at rest where both its pull and its push have less than half of their strength.
    """
    points = 361  # a quarter of a degree apart
    grid = torch.linspace(0, math.pi / 2, points, dtype=torch.float64)
    own_A, other_A = (x.flatten() for x in torch.meshgrid(grid, grid, indexing="xy"))
    fig = figure(7.0, 4.9)
    panels = fig.subplots(2, 3, sharex=True, sharey=True)
    for axes, (title, (name, parameters, ratio)) in zip(panels.flat, REGIONS.items(), strict=True):
        first_A = _wins(name, own_A, other_A, 1.0, ratio, **parameters)
        second_A = _wins(name, other_A, own_A, ratio, 1.0, **parameters)
        image = np.ones((points, points, 3))
        for number, mask_A in enumerate((first_A, second_A)):
            mask_AA, colour = mask_A.view(points, points), COLOURS[number]
            image[mask_AA.numpy()] = 0.62 + 0.38 * np.array(to_rgb(colour))
            axes.contour(mask_AA.double(), [0.5], colors=colour, linewidths=1.1, extent=(0, 90, 0, 90))
            y, x = (90 * float(i.double().median()) / (points - 1) for i in mask_AA.nonzero(as_tuple=True))
            axes.text(x, y, f"class {number + 1}", color=colour, ha="center", va="center")
        axes.imshow(image, origin="lower", extent=(0, 90, 0, 90), interpolation="bilinear", rasterized=True)
        axes.plot([0, 90], [0, 90], color=GRAY, lw=0.8, ls=(0, (4, 3)))
        axes.set(title=title, xticks=range(0, 91, 30), yticks=range(0, 91, 30), aspect="equal")
    for axes in panels[1]:
        axes.set_xlabel(r"$\theta_1$, degrees")
    for axes in panels[:, 0]:
        axes.set_ylabel(r"$\theta_2$, degrees")
    return fig


def _wins(name: str, own_A: Tensor, other_A: Tensor, *norms: float, **parameters: Any) -> Tensor:
    """Return where samples at angles to their own and the other class are on their side of the margin.

    `norms` are the lengths of the weights of both classes, 1 by default.
    """
    head: Any = head_of_two(name, **parameters)
    loss_A, pull_A, push_A = _forces(head, own_A, other_A, *norms)
    if name == "sface":
        return (pull_A < head.s / 2) & (push_A < head.s / 2)
    return loss_A < math.log(2)


def _forces(
    head: Any, own_A: Tensor, other_A: Tensor, own_norm: float = 1.0, other_norm: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss at these angles, and its slopes: up to the own class and away from the other one."""
    if head.normalise_weight:
        own_norm = other_norm = 1.0
    target_A = (own_norm * own_A.cos()).requires_grad_()
    samples = Samples(torch.ones(len(own_A), 2), torch.zeros_like(own_A).long(), torch.ones_like(own_A))
    with torch.no_grad():
        term = head.others(target_A, samples)
        product_1A = other_norm * other_A.cos()[None]
        value_A, push_A = term.value(product_1A)[0], torch.as_tensor(term.slope(product_1A))
    norm_A = torch.full_like(own_A, own_norm)
    sums = ClassSums(target_A, value_A, norm_A, own_A.cos(), other_A.cos(), other_A.cos(), ())
    loss_A = head.loss(sums, samples)[0]
    (slope_A,) = torch.autograd.grad(loss_A.sum(), target_A)
    return loss_A.detach(), -slope_A, push_A.expand(1, len(own_A))[0]


def sface_gradients(k: float = 80.0, a: float = 0.87, b: float = 1.22) -> Figure:
    """Length of SFace's gradients over the angle to the own and to another class, in units of s."""
    head: Any = head_of_two("sface", k=k, a=a, b=b)
    angle_A = torch.linspace(0, math.pi, 2001, dtype=torch.float64)
    _, pull_A, push_A = (force_A / head.s for force_A in _forces(head, angle_A, angle_A))

    fig = figure(4.6, 3.2)
    axes = frame(fig.subplots(), x=r"$\theta$, degrees", y=r"length of the gradient / $s$")
    degrees, sine_A = angle_A.rad2deg(), angle_A.sin()
    axes.plot(degrees, sine_A, color=GRAY, lw=0.9, ls=(0, (4, 3)), label=r"$\sin\theta$")
    pull = r"$r_\mathrm{intra}(\theta_y)\,\sin\theta_y$, towards the own class"
    push = r"$r_\mathrm{inter}(\theta_j)\,\sin\theta_j$, away from another"
    axes.plot(degrees, pull_A * sine_A, color=COLOURS[0], label=pull)
    axes.plot(degrees, push_A * sine_A, color=COLOURS[1], label=push)
    for name, angle, colour in (("a", a, COLOURS[0]), ("b", b, COLOURS[1])):
        axes.axvline(math.degrees(angle), color=colour, lw=0.8, ls=(0, (1, 2)))
        white = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
        axes.text(math.degrees(angle), 1.04, f"${name}$", color=colour, ha="center", va="bottom", bbox=white)
    axes.set(xlim=(0, 180), xticks=range(0, 181, 30), ylim=(0, 1.12))
    axes.set_title(f"SFace, $k={k:g}$, $a={a:g}$, $b={b:g}$")
    fig.legend(loc="outside lower center", ncols=3, columnspacing=1.2, handlelength=1.4)
    return fig


def scaled_softmax(scales: tuple[float, ...] = (1, 2, 5, 10)) -> Figure:
    """The softmax of cosines [1, 0.8, 0.6, 0.4, 0.2], a perfect sample, at several scales s."""
    cosine_C = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2], dtype=torch.float64)
    fig = figure(4.6, 2.9)
    axes = frame(fig.subplots(), x=r"class $j$, with $\cos\theta_j$", y=r"softmax of $s\,\cos\theta$")
    axes.grid(visible=False, axis="x")
    width = 0.8 / len(scales)
    for i, (s, colour) in enumerate(zip(scales, COLOURS, strict=False)):
        softmax_C = (s * cosine_C).softmax(0).numpy()
        places = np.arange(len(cosine_C)) - 0.4 + (i + 0.5) * width
        bars = axes.bar(places, softmax_C, 0.9 * width, color=colour, label=f"$s={s:g}$")
        axes.bar_label(bars, [f"{x:.2f}" for x in softmax_C.tolist()], fontsize=6, padding=1.5)
    axes.set_xticks(range(len(cosine_C)), [f"{c:.1f}" for c in cosine_C.tolist()])
    axes.set_ylim(0, 1)
    axes.legend()
    return fig
