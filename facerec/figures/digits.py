"""Features under the heads: small networks with 2-D and 3-D embeddings of scikit-learn's digits.

All start from the same network, trained with a plain softmax for a while, so that digits lie at the same
angles in every panel. Shapes: N images of C = 10 digits, D = 2 or 3.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.datasets import load_digits
from torch import Tensor, nn

from facerec.errors import UserError
from facerec.heads import HEADS, create_head
from facerec.heads.base import ClassHead, Head
from facerec.reporting.style import COLOURS, GRAY, figure, frame
from facerec.vectors import unit_rows

_CLASSES: Final = 10
_DIGIT_COLOURS: Final = colormaps["tab10"]
# Two dimensions hold ten classes 36° apart: margins and scales made for 512 dimensions would never be met.
_FLAT: Final[dict[str, dict[str, Any]]] = {
    **{name: {"s": 24.0} for name in ("normface", "subcenter", "arcneg", "curricularface")},
    "cosface": {"s": 24.0, "m": 0.2},
    "arcface": {"s": 24.0, "m": 0.3},
    "combined": {"s": 24.0, "m1": 1.0, "m2": 0.2, "m3": 0.1},
    "sphereface": {"base": 10.0, "lambda_min": 0.5},
    "lsoftmax": {"base": 10.0, "lambda_min": 0.5},
    "sface": {"s": 16.0, "k": 40.0, "a": 0.1, "b": 0.6},
    "sface_quality": {"s": 16.0, "k": 40.0, "a": 0.1, "b": 0.6, "c": 0.5, "ema": 0.1},
    "center": {"lambda_c": 0.1},
    "adaface": {"s": 24.0, "m": 0.15, "ema": 0.1},
    "magface": {"s": 24.0, "l_m": 0.1, "u_m": 0.3},
    "elasticface": {"s": 24.0, "m": 0.3, "sigma": 0.05},
    "mvsoftmax": {"s": 24.0, "m": 0.2},
    "circle": {"s": 32.0, "m": 0.25},
    "sphereface2": {"r": 30.0, "m": 0.05, "loss_weight": 10.0},
    "npcface": {"s": 24.0, "m0": 0.2, "m1": 0.1},
}


class Digits(NamedTuple):
    """Images (N, 1, 8, 8) in [0, 1] and labels (N) of 0 … 9; the first `trained` are trained on."""

    image_N: Tensor
    label_N: Tensor
    trained: int


def load() -> Digits:
    """Load the 1,797 digits bundled with scikit-learn, in an order that mixes writers."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    image_N = torch.from_numpy(digits.images[order] / 16).float()[:, None]
    return Digits(image_N, torch.from_numpy(digits.target[order]).long(), 1300)


class Net(nn.Sequential):
    """Two hidden layers from 8×8 pixels to D numbers."""

    def __init__(self, size: int) -> None:
        super().__init__(
            *(nn.Flatten(), nn.Linear(64, 128), nn.BatchNorm1d(128), nn.PReLU()),
            *(nn.Linear(128, 64), nn.BatchNorm1d(64), nn.PReLU(), nn.Linear(64, size)),
        )


def train(net: Net, head: Head, digits: Digits, steps: int, rate: float) -> None:
    """Train network and head together with Adam, the rate falling to zero along half a cosine."""
    parameters = [*net.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    net.train()
    head.train()
    for _ in range(steps):
        index_B = torch.randint(digits.trained, (256,), generator=generator)
        optimizer.zero_grad()
        head(net(digits.image_N[index_B]), digits.label_N[index_B]).loss.backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        schedule.step()
        head.after_step()
    net.eval()
    head.eval()


class Start(NamedTuple):
    """A network trained with a plain softmax: its state, and the mean direction of each digit (C, D)."""

    state: dict[str, Tensor]
    direction_CD: Tensor


def warm_start(digits: Digits, size: int, steps: int) -> Start:
    """Train the network that every panel starts from."""
    torch.manual_seed(0)
    net = Net(size)
    train(net, create_head("softmax", num_classes=_CLASSES, embedding_size=size), digits, steps, 5e-3)
    direction_CD = directions(embed(net, digits), digits.label_N)
    return Start({k: v.clone() for k, v in net.state_dict().items()}, direction_CD)


def directions(embedding_ND: Tensor, label_N: Tensor) -> Tensor:
    """Return the mean direction of each digit's embeddings, unit vectors (C, D)."""
    unit_ND = unit_rows(embedding_ND)
    return unit_rows(torch.stack([unit_ND[label_N == c].mean(0) for c in range(_CLASSES)]))


@torch.no_grad()
def embed(net: Net, digits: Digits) -> Tensor:
    """Return the embeddings of all digits, (N, D)."""
    return net.eval()(digits.image_N)


def trained_on(
    start: Start, digits: Digits, name: str, steps: int, **parameters: Any
) -> tuple[Tensor, Tensor]:
    """Return embeddings (N, D) under one head, and the unit directions of its classes."""
    size = start.direction_CD.shape[1]
    torch.manual_seed(1)
    net = Net(size)
    net.load_state_dict(start.state)
    head = create_head(name, num_classes=_CLASSES, embedding_size=size, **parameters)
    if isinstance(head, ClassHead):
        with torch.no_grad():
            length = 1.0 if head.normalise_weight else 4.0
            if head.weight.ndim == 3:
                jitter = 0.1 * torch.randn_like(head.weight)
                head.weight.copy_(start.direction_CD[:, None] + jitter)
            else:
                head.weight.copy_(length * start.direction_CD)
            if name == "sphereface2":  # starts for classes at right angles; here they are neighbours
                binary: Any = head
                neighbour = torch.tensor(math.cos(math.pi / _CLASSES))
                binary.offset.copy_(-binary.r * binary.stretch(neighbour))
    train(net, head, digits, steps, 3e-3)
    embedding_ND = embed(net, digits)
    if isinstance(head, ClassHead):
        direction = unit_rows(head.weight.detach())
    else:
        direction = directions(embedding_ND, digits.label_N)
    return embedding_ND, direction


def accuracy(embedding_ND: Tensor, direction: Tensor, digits: Digits) -> float:
    """Return the fraction of the held-out images whose nearest direction, by cosine, is their digit's."""
    held_out = slice(digits.trained, None)
    direction_CSD = direction.view(_CLASSES, -1, direction.shape[-1])
    cosine_NC = torch.einsum("nd,csd->ncs", unit_rows(embedding_ND[held_out]), direction_CSD).amax(2)
    return float((cosine_NC.argmax(1) == digits.label_N[held_out]).float().mean())


def feature_scatter(names: list[str] | None = None, steps: int = 250) -> Figure:
    """2-D features of the digits under each head, its class weights as lines from the origin."""
    names = names or drawable()
    digits = load()
    start = warm_start(digits, 2, 2 * steps)
    columns = min(6, len(names))
    rows = -(-len(names) // columns)
    fig = figure(1.62 * columns, 1.85 * rows + 0.25)
    panels = fig.subplots(rows, columns, squeeze=False)
    for axes in panels.flat[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(panels.flat, names, strict=False):
        embedding_ND, direction = trained_on(start, digits, name, steps, **_FLAT.get(name, {}))
        correct = accuracy(embedding_ND, direction, digits)
        _scatter(axes, embedding_ND, direction.flatten(0, -2), digits.label_N)
        axes.set_title(f"{name}\n{100 * correct:.1f} %", fontsize=8.5, linespacing=1.15, pad=2)
    handles = [Line2D([], [], ls="", marker="o", ms=4, color=_DIGIT_COLOURS(c)) for c in range(_CLASSES)]
    labels = [str(c) for c in range(_CLASSES)]
    fig.legend(
        handles, labels, loc="outside lower center", ncols=_CLASSES, handletextpad=0.1, columnspacing=1
    )
    return fig


def drawable() -> list[str]:
    """Return all heads that can be built here: pair losses need their library."""
    names = []
    for name in HEADS.names():
        with contextlib.suppress(UserError):
            create_head(name, num_classes=_CLASSES, embedding_size=2)
            names.append(name)
    return names


def _scatter(axes: Axes, embedding_N2: Tensor, direction_R2: Tensor, label_N: Tensor) -> None:
    """Features as points, class weights as lines to the edge of the panel."""
    reach = float(torch.quantile(embedding_N2.norm(dim=1), 0.995)) * 1.08
    owner_R = torch.arange(_CLASSES).repeat_interleave(len(direction_R2) // _CLASSES)
    for (x, y), c in zip((reach * direction_R2).tolist(), owner_R.tolist(), strict=True):
        axes.plot([0, x], [0, y], color=_DIGIT_COLOURS(c), lw=0.8, zorder=1)
    x_N, y_N = embedding_N2.T.numpy()
    colour_N = _DIGIT_COLOURS(label_N.numpy())
    axes.scatter(x_N, y_N, s=1.6, c=colour_N, lw=0, alpha=0.75, zorder=2, rasterized=True)
    axes.plot(0, 0, "+", color=GRAY, ms=4, mew=0.7, zorder=3)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def sphere(steps: int = 400) -> Figure:
    """A-Softmax with m = 1 … 4: 3-D features on the unit sphere, and below the angles of their pairs.

    Positive pairs are of the same digit, negative ones of two; all among the digits not trained on.
    """
    digits = load()
    start = warm_start(digits, 3, steps)
    fig = figure(7.6, 3.7, layout=None)
    balls = [fig.add_axes((i / 4 - 0.015, 0.37, 0.28, 0.6), projection="3d") for i in range(4)]
    histograms = [fig.add_axes((0.07 + 0.235 * i, 0.12, 0.205, 0.25)) for i in range(4)]
    for m, ball, axes in zip((1, 2, 3, 4), balls, histograms, strict=True):
        embedding_N3, direction_C3 = trained_on(
            start, digits, "sphereface", steps, m=m, base=50.0, gamma=0.12, lambda_min=0.0
        )
        unit_N3 = unit_rows(embedding_N3)
        _draw_ball(ball, unit_N3, direction_C3, digits.label_N)
        correct = accuracy(embedding_N3, direction_C3, digits)
        fig.text((m - 0.5) / 4, 0.955, f"$m={m}$, {100 * correct:.1f} %", ha="center")
        _draw_pairs(axes, unit_N3[digits.trained :], digits.label_N[digits.trained :])
    highest = max(axes.get_ylim()[1] for axes in histograms)
    for axes in histograms:
        axes.set_ylim(0, highest)
        axes.tick_params(labelleft=axes is histograms[0])
    histograms[0].set_ylabel("fraction of pairs")
    histograms[0].legend(handlelength=1.0, borderaxespad=0.2)
    return fig


def _draw_ball(axes: Any, unit_N3: Tensor, direction_C3: Tensor, label_N: Tensor) -> None:
    turn, height = np.mgrid[0 : 2 * np.pi : 25j, 0 : np.pi : 13j]
    circles = (np.cos(turn) * np.sin(height), np.sin(turn) * np.sin(height), np.cos(height))
    axes.plot_wireframe(*circles, color="#c9cdd2", lw=0.35, alpha=0.6)
    for c in range(_CLASSES):
        x, y, z = unit_N3[label_N == c].T.numpy()
        colour = _DIGIT_COLOURS(c)
        axes.scatter(x, y, z, s=1.6, color=colour, lw=0, depthshade=True, rasterized=True)
        axes.plot(*([0, 1.12 * end] for end in direction_C3[c].tolist()), color=colour, lw=0.9)
    axes.set(xlim=(-0.8, 0.8), ylim=(-0.8, 0.8), zlim=(-0.8, 0.8), box_aspect=(1, 1, 1))
    axes.patch.set_visible(False)  # the panels overlap where there is nothing to see
    axes.view_init(elev=22, azim=35)
    axes.set_axis_off()


def _draw_pairs(axes: Axes, unit_N3: Tensor, label_N: Tensor) -> None:
    first_P, second_P = torch.triu_indices(len(unit_N3), len(unit_N3), 1)
    angle_P = (unit_N3[first_P] * unit_N3[second_P]).sum(1).clamp(-1, 1).acos().rad2deg()
    same_P = label_N[first_P] == label_N[second_P]
    edges = np.linspace(0, 180, 61)
    for mask_P, colour, name in ((same_P, COLOURS[0], "positive"), (~same_P, COLOURS[1], "negative")):
        fraction = np.histogram(angle_P[mask_P].numpy(), edges)[0] / int(mask_P.sum())
        axes.stairs(fraction, edges, fill=True, color=colour, alpha=0.3)
        axes.stairs(fraction, edges, color=colour, lw=1.0, label=name)
    frame(axes, x="angle of a pair, degrees")
    axes.set(xlim=(0, 180), xticks=range(0, 181, 60))
