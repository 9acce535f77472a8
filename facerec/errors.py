"""The errors a user may see, each one line that names the value, the place and the mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FacerecError(Exception):
    """A failure of the run itself (exit status 1): damaged data, a diverged loss, a full disk."""

    exit_status = 1


class DamagedDataError(FacerecError):
    """A file that exists but does not hold what its format says; the message names file, key and offset."""


class ChangedDataError(FacerecError):
    """A file that was changed while it was in use: whatever is read from it now is something else."""


class NonFiniteError(FacerecError):
    """A loss, gradient or parameter became NaN or infinite."""


class StorageError(FacerecError):
    """Something could not be written; whatever was there before is still there."""


class LostContactError(FacerecError):
    """Another process of the run has ended; what it says is the reason."""


class UserError(FacerecError):
    """A mistake of the user's (exit status 2), found before any work is lost."""

    exit_status = 2


class MissingDataError(UserError):
    """A data set, index or list that should be there is not."""


class CheckpointError(UserError):
    """A checkpoint that is unreadable, unsafe, or made for something else."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint whose bytes are not those that were written; another one may serve."""


class ConfigError(UserError):
    """A setting that is unknown, of the wrong type or out of range.

    Args:
        key: dotted name of the setting, e.g. ``head.m``.
        value: what was given.
        mend: what would be right, e.g. ``"must be 0 or more"``.
    """

    def __init__(self, key: str, value: object, mend: str) -> None:
        shown = f"{value:g}" if isinstance(value, float) else value
        super().__init__(f"{key}={shown}: {mend}")
        self.key = key
        self.value = value
        self.mend = mend

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, object, str]]:
        return type(self), (self.key, self.value, self.mend)


def require(condition: bool, key: str, value: object, mend: str) -> None:
    """Raise `ConfigError` unless `condition` holds: ``require(m >= 0, "head.m", m, "must be 0 or more")``."""
    if not condition:
        raise ConfigError(key, value, mend)


def counted(number: int, one: str) -> str:
    """How many there are of what `one` names: ``1 identity``, ``2,000 identities``."""
    many = f"{one[:-1]}ies" if one.endswith("y") else f"{one}s"
    return f"{number:,} {one if number == 1 else many}"


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a mistyped name: ``did you mean arcface? known: …`` over the sorted known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}known: {', '.join(names)}"
