"""Weights & Biases: rows, evaluations, figures and the first batch; extra `wandb`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from facerec.errors import UserError
from facerec.reporting.loggers import LOGGERS
from facerec.reporting.loggers.remote import RemoteLogger
from facerec.training.reporter import Run


@LOGGERS.register("wandb")
@dataclass(kw_only=True, eq=False)
class WandB(RemoteLogger):
    """A run of Weights & Biases; one that is resumed goes on in it.

    Args:
        project: where the run is listed.
        entity: user or team; null: your default.
        mode: ``online``, ``offline`` (``wandb sync`` sends it later), or null: as WANDB_MODE says.
        group: runs of one group are folded; null: none.
        tags: words to find the run by.
    """

    project: str = "facerec"
    entity: str | None = None
    mode: Literal["online", "offline"] | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    writes = "wandb.json"
    package = "wandb"

    def started(self, run: Run) -> None:
        self.begin(run)
        self._wandb = self.service()
        try:
            self._run = self._wandb.init(
                dir=str(self.folder),
                id=self.id,
                resume="allow",
                name=self.folder.name,
                config=dict(run.config),
                project=self.project,
                entity=self.entity,
                mode=self.mode,
                group=self.group,
                tags=self.tags,
            )
        except self._wandb.Error as error:
            hint = "log in with `wandb login`, or set logger.wandb.mode=offline"
            raise UserError(f"logger=wandb: {' '.join(str(error).split())}; {hint}") from error
        self.id = self._run.id
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def finished(self, run: Run) -> None:
        self._run.finish(exit_code=0 if run.progress().fraction >= 1 or run.interrupted else 1)

    def send(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log({"step": step, **numbers})

    def send_images(self, name: str, image_BHWC: Any, step: int) -> None:
        self._run.log({"step": step, name: [self._wandb.Image(image_HWC) for image_HWC in image_BHWC]})

    def send_figure(self, name: str, figure: Any, step: int) -> None:
        self._run.log({"step": step, name: self._wandb.Image(figure)})
