"""`facerec-figures [FIGURE …]`: images of what the heads are and do, as in their papers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from facerec.cli.base import Program, option
from facerec.errors import ConfigError, UserError, counted, nearest, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = {
    "scatter": "2-D features of scikit-learn's digits under each head, class weights drawn",
    "sphere": "3-D features on the sphere under A-Softmax, m = 1 … 4, and the angles of their pairs",
    "logits": "target logit of every head that has one over the angle to the own class",
    "regions": "decision regions of two classes under six heads",
    "sface": "the two gradient curves of SFace for given k, a, b",
    "scale": "the softmax of [1, .8, .6, .4, .2] at s = 1, 2, 5, 10",
}
FORMATS = ("png", "svg", "pdf")
_LISTED = "\n".join(f"  {name:9} {text}" for name, text in FIGURES.items())
_HELP = f"""Draw what the heads are and do.

As PNG and SVG, all figures unless some are named.

figures:
{_LISTED}

example:
  facerec-figures scatter sface --heads softmax,arcface,sface --a 0.8 --b 1.23 --out figures
"""

program = Program("facerec-figures")
main, run = program.main, program.run


@program.command(
    "",
    option("figures", "which to draw", nargs="*", metavar="FIGURE"),
    option("--out", "folder (default: figures)", type=Path, default=Path("figures"), metavar="DIR"),
    option("--formats", "some of png,svg,pdf", default="png,svg"),
    option("--heads", "scatter: heads, with commas", default="all", metavar="NAMES"),
    option("--steps", "scatter, sphere: training steps per panel", default=250),
    option("--k", "sface: steepness", default=80.0),
    option("--a", "sface: angle of half pull, radians", default=0.87),
    option("--b", "sface: angle of half push, radians", default=1.22),
    help=_HELP,
)
def _draw(options: argparse.Namespace) -> None:
    names = options.figures or list(FIGURES)
    for name in names:
        if name not in FIGURES:
            raise UserError(f"{name}: no such figure; {nearest(name, FIGURES)}")
    formats = options.formats.split(",")
    for kind in formats:
        if kind not in FORMATS:
            raise ConfigError("--formats", kind, f"must be some of {','.join(FORMATS)}")
    require(1 <= options.steps <= 10**6, "--steps", options.steps, "must be 1 to 1,000,000")
    options.heads = _heads(options.heads)

    import torch

    from facerec.reporting import style

    torch.set_num_threads(1)  # on networks this small further threads only cost
    for name in names:
        with style.paper():
            style.save(_figure(name, options), options.out, f"heads_{name}", formats)
    print(f"wrote {counted(len(names), 'figure')} to {options.out}, as {options.formats}")


def _heads(text: str) -> list[str] | None:
    """Return the names of heads in `text`; None for all."""
    from facerec.heads import HEADS

    if text == "all":
        return None
    for name in text.split(","):
        require(name in HEADS.names(), "--heads", name, f"no such head; {nearest(name, HEADS.names())}")
    return text.split(",")


def _figure(name: str, options: argparse.Namespace) -> Figure:
    """Draw a figure; only what it needs is imported."""
    if name in ("scatter", "sphere"):
        from facerec.figures import digits

        if name == "sphere":
            return digits.sphere(steps=options.steps)
        return digits.feature_scatter(options.heads, steps=options.steps)
    from facerec.figures import heads

    if name == "sface":
        return heads.sface_gradients(options.k, options.a, options.b)
    drawn = {"logits": heads.target_curves, "regions": heads.decision_regions, "scale": heads.scaled_softmax}
    return drawn[name]()
