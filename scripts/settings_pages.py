"""Write docs/settings.md and docs/settings-choices.md anew, of the comments in configs/ and the types."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from facerec.cli.mistakes import choices_of, config_folder
from facerec.cli.settings_text import Setting, file_settings, settings_of, title, types_of

_NOTE = "<!-- Made by scripts/settings_pages of the comments in configs/ and the types in facerec/. -->"


def pages() -> dict[str, str]:
    """Return the text of each page of docs/ about the settings, by its name."""
    trainer = (config_folder() / "train.yaml").read_text("utf-8")
    top = [one for one in file_settings(trainer, types_of("teacher", {})) if one.key != "defaults"]
    first = [
        "# Settings",
        "What every setting of `facerec-train` means; `facerec-train --explain head.m` says it in a "
        "terminal, with the value that a command would use. *free*: a resumed run may have another value, "
        "and the same is learnt; *applied*: it may, from there on, and the log says so; *measure*: the same, "
        "and accuracies before and after do not compare. Others must stay. "
        "[settings-choices.md](settings-choices.md) has heads, backbones, data sets and experiments.",
        *_section("Top level", "", top),
        *_section("trainer", "trainer", settings_of("trainer", "default")),
        *_section("data", "data", settings_of("data", "base")),
        *_section("eval (eval=verification)", "eval", settings_of("eval", "verification")),
    ]
    second = [
        "# Choices",
        "What each choice of a group is, and the settings that it has beside those of its group.",
    ]
    shared = {group: settings_of(group, "base") for group in ("head", "backbone")}
    for group, settings in shared.items():
        second += _section(f"{group}: settings of all", group, settings)
    for group in ("head", "backbone", "optimizer", "schedule", "eval"):
        known = {"protocol", *(one.key for one in shared.get(group, ()))}
        rows = [[*_choice(group, name), _own(group, name, known)] for name in choices_of(group)]
        second += _table(group, ["choice", "what it is", "its own settings"], rows)
    for group in ("data", "logger", "experiment"):
        second += _table(
            group, ["choice", "what it is"], [_choice(group, name) for name in choices_of(group)]
        )
    return {
        name: "\n".join([lines[0], "", _NOTE, "", *lines[1:]]) + "\n"
        for name, lines in (("settings.md", first), ("settings-choices.md", second))
    }


def _choice(group: str, name: str) -> list[str]:
    return [f"`{group}={name}`", _cell(title(group, name))]


def _own(group: str, choice: str, known: set[str]) -> str:
    """Return the settings that a choice has beside the known ones, each with its default and meaning."""
    own = [one for one in settings_of(group, choice) if one.key not in known]
    return "; ".join(f"`{one.key}={one.default}` {_cell(one.meaning)}".rstrip() for one in own)


def _section(heading: str, group: str, settings: Sequence[Setting]) -> list[str]:
    dot = f"{group}." if group else ""
    rows = [
        [f"`{dot}{one.key}`", f"`{one.default}`", _cell(one.values), _cell(one.meaning), one.resume]
        for one in settings
    ]
    return _table(heading, ["key", "default", "values", "meaning", "resume"], rows)


def _table(heading: str, header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return ["", f"## {heading}", "", lines[0], "|" + "---|" * len(header), *lines[1:]]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("``", "`")


if __name__ == "__main__":
    for name, text in pages().items():
        (Path(__file__).parents[1] / "docs" / name).write_text(text, encoding="utf-8")
