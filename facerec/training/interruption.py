"""End a run on Ctrl-C or SIGTERM after the step under way, so that it can save and go on later."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)


class Interruption:
    """Context manager that notes a signal in `signal` (None until then).

    A second signal of the same kind does what it always does. Signals can only be caught in the main thread;
    elsewhere (a notebook's worker, a test) nothing is changed.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        log.warning("%s: saving after this step, then stopping (again: at once)", self.signal.name)
        signal.signal(number, self._before[self.signal])
