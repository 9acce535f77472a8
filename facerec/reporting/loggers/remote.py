"""The base of loggers that send rows to a service, which cannot take one back."""

from __future__ import annotations

import importlib
import json
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from facerec.errors import UserError
from facerec.files import write_bytes
from facerec.reporting.loggers.base import Logger, grouped, numbers_of_run
from facerec.training.reporter import Results, Run


class RemoteLogger(Logger):
    """Sends each step once: what a killed run has sent beyond its last checkpoint is not sent again.

    The service's id of the run and the last steps sent are kept in `path`, so that a resumed run goes on in
    the same run of the service.

    Attributes:
        package: that the service's extra installs, and the extra.
    """

    package: ClassVar[str]

    def service(self) -> Any:
        """Import the service's package.

        Raises:
            UserError: it is not installed.
        """
        try:
            return importlib.import_module(self.package)
        except ImportError as error:
            hint = f"needs an extra: pip install 'facerec[{self.package}]'"
            raise UserError(f"logger={self.package}: {hint} ({error})") from error

    def begin(self, run: Run) -> None:
        """Read what an earlier part of the run has sent; a subclass opens its run of the service then."""
        known: dict[str, Any] = {"id": None, "step": -1, "evaluated": -1}
        if self.path.is_file():
            known |= json.loads(self.path.read_text(encoding="utf-8"))
        self.id: str | None = known["id"]
        self._step, self._evaluated = int(known["step"]), int(known["evaluated"])
        self._batch_sent = self._step >= 0
        self.figures.watch(run)

    def logged(self, run: Run, row: Mapping[str, Any]) -> None:
        if row["step"] <= self._step:
            return
        self._step = row["step"]
        self.send(grouped(row), self._step)
        batch_BHWC = None if self._batch_sent else self.figures.first_batch(run)
        self._batch_sent = True
        if batch_BHWC is not None:
            self.send_images("train_first_batch", batch_BHWC, self._step)
        self._keep()

    def evaluated(self, run: Run, results: Results) -> None:
        step = run.position.step
        if step <= self._evaluated:
            return
        self._evaluated = step
        self.send(grouped(numbers_of_run(run, results)), step)
        for name, figures in self.figures.of(results).items() if run.eval_settings.figures else ():
            for kind, figure in figures.items():
                self.send_figure(f"val_{name}/{kind}", figure, step)
        self._keep()

    @abstractmethod
    def send(self, numbers: Mapping[str, float], step: int) -> None:
        """Send numbers of a step."""

    @abstractmethod
    def send_images(self, name: str, image_BHWC: Any, step: int) -> None:
        """Send images, uint8."""

    @abstractmethod
    def send_figure(self, name: str, figure: Any, step: int) -> None:
        """Send a figure of matplotlib."""

    def _keep(self) -> None:
        known = {"id": self.id, "step": self._step, "evaluated": self._evaluated}
        write_bytes(self.path, json.dumps(known).encode(), durable=False)
