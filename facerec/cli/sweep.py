"""`facerec-sweep DIR…`: one page and one table of any runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from facerec.cli.base import Program, option

program = Program("facerec-sweep")
main, run = program.main, program.run


@program.command(
    "",
    option("folders", "a run, or a folder with runs in it", metavar="DIR", nargs="+", type=Path),
    option("--out", "the page (default: sweep.html in the first DIR)", type=Path, metavar="FILE"),
    option(
        "--by", "accuracy, accuracy_exact, auc, eer or tar_at_far (default: what suits all)", metavar="NUMBER"
    ),
    option("--heatmap", "two settings (default: the two with most values)", metavar="X,Y"),
)
def compare(options: argparse.Namespace) -> None:
    """Compare runs on one page.

    DIR is a run, or a folder with runs at any depth in it: a sweep, or all of runs/. Runs that differ in
    their seed alone are folded into one row, mean ± deviation with a 95 % interval.

    examples:
      facerec-sweep runs/sweep                      what facerec-train -m has written, again
      facerec-sweep runs/a runs/b runs/2026-11-26   any runs, also of several sweeps
      facerec-sweep runs --out all.html --by auc    judged by the AUC; --heatmap head.m,head.s: the axes
    """
    from facerec.reporting.sweep import write_sweep

    page = options.out or options.folders[0] / "sweep.html"
    axes = options.heatmap.split(",") if options.heatmap else ()
    print(write_sweep(options.folders, page, by=options.by, axes=axes), end="")
