"""MLflow: settings, rows and evaluations, figures and records; extra `mlflow`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from facerec.errors import UserError
from facerec.reporting.loggers import LOGGERS
from facerec.reporting.loggers.base import hyperparameters
from facerec.reporting.loggers.remote import RemoteLogger
from facerec.training.reporter import Run

_LENGTH = 500  # characters of a parameter that every store takes


@LOGGERS.register("mlflow")
@dataclass(kw_only=True, eq=False)
class MLflow(RemoteLogger):
    """A run of MLflow; one that is resumed goes on in it.

    Args:
        experiment: where the run is listed.
        uri: of the tracking server or store; null: as MLFLOW_TRACKING_URI says, else MLflow's own choice.
    """

    experiment: str = "facerec"
    uri: str | None = None
    writes = "mlflow.json"
    package = "mlflow"

    def started(self, run: Run) -> None:
        self.begin(run)
        mlflow = self.service()
        self._metric = mlflow.entities.Metric
        try:
            self._client = mlflow.MlflowClient(self.uri)
            if self.id is None:
                found = self._client.get_experiment_by_name(self.experiment)
                place = found.experiment_id if found else self._client.create_experiment(self.experiment)
        except mlflow.MlflowException as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"logger=mlflow: {reason}; logger.mlflow.uri names the store") from error
        if self.id is None:
            self.id = self._client.create_run(place, run_name=self.folder.name).info.run_id
            for name, value in hyperparameters(run.config).items():
                self._client.log_param(self.id, name, str(value)[:_LENGTH])
            self._keep()
        self._client.set_terminated(self.id, "RUNNING")

    def finished(self, run: Run) -> None:
        done = run.progress().fraction >= 1
        status = "FINISHED" if done else "KILLED" if run.interrupted else "FAILED"
        for name in ("results.json", "metrics.jsonl", "history.jsonl") if done else ():
            if (self.folder / name).is_file():
                self._client.log_artifact(self.id, str(self.folder / name))
        self._client.set_terminated(self.id, status)

    def send(self, numbers: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        metrics = [self._metric(_name(name), value, now, step) for name, value in numbers.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def send_images(self, name: str, image_BHWC: Any, step: int) -> None:
        import numpy as np
        from PIL import Image

        self._client.log_image(
            self.id, Image.fromarray(np.concatenate(list(image_BHWC), axis=1)), f"{name}.png"
        )

    def send_figure(self, name: str, figure: Any, step: int) -> None:
        self._client.log_figure(self.id, figure, f"{_name(name)}_{step}.png")


def _name(name: str) -> str:
    """A name with the signs that MLflow takes."""
    return "".join(sign if sign.isalnum() or sign in "_-. /" else "_" for sign in name)
