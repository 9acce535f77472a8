"""People who are both in the training set and in the test: their numbers are not worth quoting."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from facerec.evaluation.model import Model

logger = logging.getLogger("facerec.evaluation")


def overlap_notes(model: Model, names: Iterable[str], test: str) -> list[str]:
    """A warning where the model was trained on people of the test, as far as both lists carry names.

    Args:
        model: knows the names it was trained with, where its checkpoint has names.
        names: of the people in the test; mere numbers are no names.
        test: name of the test, for the warning.

    Returns:
        The note for results.json, if there is one; it is logged too.
    """
    common = sorted({_plain(name) for name in names} & {_plain(name) for name in model.identities} - {""})
    if not common:
        return []
    shown = ", ".join(common[:5]) + (", …" if len(common) > 5 else "")
    note = f"{len(common)} people of {test} are in the training set ({shown}): its numbers are too good"
    logger.warning(note)
    return [note]


def _plain(name: str) -> str:
    """The name in one spelling; empty for a number."""
    plain = "_".join(name.casefold().replace("_", " ").split())
    return "" if plain.isdigit() else plain
