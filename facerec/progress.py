"""Signs of life: progress bars on a terminal and in notebooks, now and then a line in the log elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from tqdm.auto import tqdm

log = logging.getLogger(__name__)

SILENCE = 30.0  # seconds, at most, between two lines where there is no bar


def shows_bars() -> bool:
    """Return True on a terminal and in a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def say(text: str) -> None:
    """Print a word about work that takes a moment; nothing where nobody watches."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


class Bar(tqdm):
    """A bar of tqdm's; where none is shown, `update` logs how far it is, every `SILENCE` seconds."""

    def __init__(self, *given: Any, **settings: Any) -> None:
        self._done: float = 0
        self._said = time.monotonic()
        self._title, self._unit = settings.get("desc") or "", settings.get("unit", "it").strip()
        super().__init__(*given, **{"disable": not shows_bars()} | settings)

    def update(self, n: float | None = 1) -> bool | None:
        """Count `n` more."""
        if self.disable and self._title:
            self._done += n or 0
            now = time.monotonic()
            if now - self._said >= SILENCE:
                self._said = now
                of = f" of {self.total:,}" if self.total else ""
                log.info("%s: %s%s %s", self._title, f"{self._done:,.0f}", of, self._unit)
        return super().update(n)
