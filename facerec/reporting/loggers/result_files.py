"""results.json and the images of the last evaluation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from facerec.evaluation.results import results_document, write_results
from facerec.models.checkpoint import checkpoint_path
from facerec.reporting.loggers import LOGGERS
from facerec.reporting.loggers.base import Logger
from facerec.reporting.run_folder import written_line
from facerec.training.parallel import is_sharded
from facerec.training.reporter import Results, Run

log = logging.getLogger(__name__)


@LOGGERS.register("results")
class ResultFiles(Logger):
    """results.json and the images of the last evaluation."""

    writes = "."
    written: Sequence[Path] = ()

    def evaluated(self, run: Run, results: Results) -> None:
        sharded = bool(run.head.sharded_parameters) or is_sharded(run.embed)
        kept = checkpoint_path(run.checkpoints, run.position.step, sharded=sharded)
        document = results_document(results, run.model(), ckpt=str(kept))
        if run.averaged:
            document["ema"] = {name: result.to_dict() for name, result in run.averaged.items()}
        results_file = self.folder / "results.json"
        record = {"highest": run.position.highest, "select": run.eval_settings.select}
        written = [write_results(results_file, document | record)]
        if run.eval_settings.figures:
            from facerec.reporting.verification_figures import save_figures  # slow to load

            for name, figures in self.figures.of(results).items():
                written += save_figures(self.folder, name, figures)
        self.written = written

    def finished(self, run: Run) -> None:
        if self.written:
            log.info("%s", written_line(self.written))
