"""`facerec-sweep DIR…`: one page and one table of any runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from facerec.cli.base import Parser

_EPILOG = """\
DIR is a run, or a folder with runs at any depth in it: a sweep, or all of runs/. Runs that differ in their
seed alone are folded into one row, mean ± deviation with a 95 % interval.

examples:
  facerec-sweep runs/sweep                      what facerec-train -m has written, again
  facerec-sweep runs/a runs/b runs/2026-11-26   any runs, also of several sweeps
  facerec-sweep runs --out all.html --by auc    judged by the AUC; --heatmap head.m,head.s chooses the axes
"""


def main() -> None:
    """Entry point of the console script."""
    parser().main()


def parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(prog="facerec-sweep", description="Compare runs on one page.", epilog=_EPILOG)
    parser.set_defaults(run=_run)
    parser.add_argument(
        "folders", metavar="DIR", nargs="+", type=Path, help="a run, or a folder with runs in it"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the page (default: sweep.html in the first DIR)"
    )
    parser.add_argument(
        "--by",
        metavar="NUMBER",
        help="accuracy, accuracy_exact, auc, eer or tar_at_far (default: what suits all)",
    )
    parser.add_argument("--heatmap", metavar="X,Y", help="two settings (default: the two with most values)")
    return parser


def _run(options: argparse.Namespace) -> None:
    from facerec.reporting.sweep import write_sweep

    page = options.out or options.folders[0] / "sweep.html"
    axes: Sequence[str] = options.heatmap.split(",") if options.heatmap else ()
    print(write_sweep(options.folders, page, by=options.by, axes=axes), end="")
