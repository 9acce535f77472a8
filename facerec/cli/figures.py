"""`facerec-figures [FIGURE …]`: images of what the heads are and do, as in their papers."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from facerec.cli.base import Parser
from facerec.errors import ConfigError, UserError, nearest

FIGURES = {
    "scatter": "2-D features of scikit-learn's digits under each head, class weights drawn",
    "sphere": "3-D features on the sphere under A-Softmax, m = 1 … 4, and the angles of their pairs",
    "logits": "target logit of every head that has one over the angle to the own class",
    "regions": "decision regions of two classes under six heads",
    "sface": "the two gradient curves of SFace for given k, a, b",
    "scale": "the softmax of [1, .8, .6, .4, .2] at s = 1, 2, 5, 10",
}
FORMATS = ("png", "svg", "pdf")


def main() -> None:
    """Entry point of the console script."""
    parser().main()


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return the exit status."""
    return parser().run(arguments)


def _draw(options: argparse.Namespace) -> None:
    names = options.figures or list(FIGURES)
    for name in names:
        if name not in FIGURES:
            raise UserError(f"{name}: no such figure; {nearest(name, FIGURES)}")
    formats = options.formats.split(",")
    for kind in formats:
        if kind not in FORMATS:
            raise ConfigError("--formats", kind, f"must be some of {','.join(FORMATS)}")

    import torch

    from facerec.reporting import style

    torch.set_num_threads(1)  # on networks this small further threads only cost
    for name in names:
        with style.paper():
            for path in style.save(_maker(name, options)(), options.out, f"heads_{name}", formats):
                print(f"wrote {path}", flush=True)


def _maker(name: str, options: argparse.Namespace) -> Callable:
    """Return the function that draws a figure; only what it needs is imported."""
    if name in ("scatter", "sphere"):
        from facerec.figures import digits as digit_figures

        if name == "sphere":
            return lambda: digit_figures.sphere(steps=options.steps)
        heads = options.heads.split(",") if options.heads else None
        return lambda: digit_figures.feature_scatter(heads, steps=options.steps)
    from facerec.figures import heads as head_figures

    return {
        "logits": head_figures.target_curves,
        "regions": head_figures.decision_regions,
        "sface": lambda: head_figures.sface_gradients(options.k, options.a, options.b),
        "scale": head_figures.scaled_softmax,
    }[name]


def parser() -> Parser:
    """Return the parser of the command."""
    listed = "\n".join(f"  {name:9} {text}" for name, text in FIGURES.items())
    parser = Parser(
        prog="facerec-figures",
        description=f"Draw what the heads are and do.\n\nfigures (all, unless some are named):\n{listed}",
        epilog="example:\n  facerec-figures scatter sface --heads softmax,arcface,sface --a 0.8 --b 1.23 "
        "--out figures",
    )
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help="which to draw")
    parser.add_argument("--out", type=Path, default=Path("figures"), metavar="DIR", help="folder; figures")
    parser.add_argument("--formats", default="png,svg", help="some of png,svg,pdf; png,svg")
    parser.add_argument("--heads", metavar="NAMES", help="scatter: heads, with commas; all")
    parser.add_argument(
        "--steps", type=int, default=250, help="scatter, sphere: training steps per panel; 250"
    )
    parser.add_argument("--k", type=float, default=80.0, help="sface: steepness; 80")
    parser.add_argument("--a", type=float, default=0.87, help="sface: angle of half pull, radians; 0.87")
    parser.add_argument("--b", type=float, default=1.22, help="sface: angle of half push, radians; 1.22")
    parser.set_defaults(run=_draw)
    return parser
