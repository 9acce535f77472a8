"""Hints for words on a command line that are no settings: options, bare words, choices by other names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from facerec import plugins
from facerec.errors import UserError, nearest, synonyms

MODELS = (".pt", ".pth", ".onnx", ".safetensors")
_KEY = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
_GROUPS = ("experiment", "head", "backbone", "data", "optimizer", "schedule", "eval", "logger")
_WORDS = {
    "help": "--help",
    "version": "--version",
    "multirun": "-m",
    "sweep": "-m",
    "explain": "--explain",
    "onnx": "format=onnx",
    "safetensors": "format=safetensors",
}
_YAML = "settings of a file are an experiment: FOLDER/experiment/X.yaml, --config-dir FOLDER experiment=X"


def config_folder() -> Path:
    """Return the folder of configuration files: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def options_as_settings(arguments: Sequence[str], known: Mapping[str, bool]) -> list[str]:
    """Return a command line with its options as settings: ``--ckpt a.pt`` is ``ckpt=a.pt``.

    Args:
        known: the options that stay, each with True where a value follows.

    Raises:
        UserError: an option that is nearly one of those.
    """
    rest, settings = list(arguments), []
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        option = re.fullmatch(r"--?([A-Za-z][\w.-]+)", name)
        if option is None or name in known:
            settings.append(word)
            if known.get(name) and not equals and rest:
                settings.append(rest.pop(0))
            continue
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        if close:
            raise UserError(f"{name}: no such option; did you mean {close[0]}?")
        if not equals:
            value = rest.pop(0) if rest and _is_value(rest[0]) else "true"
        settings.append(f"{option[1].replace('-', '_')}={value}")
    return settings


def refuse_bare_words(settings: Sequence[str]) -> None:
    """Raise `UserError` for the first word that is not of the form key=value, with what it may mean."""
    for at, word in enumerate(settings):
        follower = settings[at + 1] if at + 1 < len(settings) else ""
        if word.endswith("=") and _KEY.fullmatch(word[:-1]) and follower and "=" not in follower:
            raise UserError(f"{word} {follower}: a setting has no spaces: {word}{follower}")
        key, _, value = word.partition("=")
        if key in ("config", "cfg", "config_file", "config_path") and value:
            raise UserError(f"{word}: {_YAML}")
        if key in _GROUPS and word == f"{key}=":
            raise UserError(f"{word}: names none; --explain {key} lists them")
        if "=" not in word and not word.startswith("~"):
            raise UserError(f"{word}: {_meaning(word, follower, settings[at + 2 : at + 3])}")


def require_filled_in(words: Iterable[str]) -> None:
    """Raise `UserError` for a word in which … still stands for the name of a folder."""
    for word in words:
        key, _, path = word.rpartition("=")
        if "…" not in path and "/.../" not in path and not path.endswith("..."):
            continue
        if not Path(path).exists():
            found = newest_model()
            hint = f"; the newest here is {found}" if found else ""
            shown = f"{key}={path}" if key else path
            raise UserError(f"{shown}: … stands for names that you fill in{hint}")


def newest_model() -> Path | None:
    """Return the newest best.pt of the runs below the working directory."""
    found = list(Path("runs").glob("**/checkpoints/best.pt"))
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def no_such_choice(group: str, word: str) -> UserError:
    """Return the error for ``group=word``, with the choice that has this name elsewhere, or the nearest.

    A choice is also known by the words of its file: ``data=faces_emore`` means ms1mv2, whose root it is.
    """
    choices = choices_of(group)
    start = f"{group}={word}: no such {group}; "
    if (group == "data" and Path(word).is_dir()) or word.endswith(".rec"):
        return UserError(f"{start}{_trains_on(word)} trains on what is there")
    of_data = group == "eval" and any(_named_in(word, text) for text in choices_of("data").values())
    if word.endswith(".bin") or of_data:
        return UserError(f"{start}a verification set is a target: 'eval.targets=[{word}]'")
    meant = _choice_meant(word, choices)
    if meant:
        return UserError(f"{start}did you mean {meant}?")
    hint = f"; {plugins.hint()}" if group != "experiment" else ""
    return UserError(f"{start}{nearest(word, choices)}{hint}")


def choices_of(group: str) -> dict[str, str]:
    """Return the text of the file of each choice of a group, by name."""
    folders = [folder / group for folder in (config_folder(), *plugins.config_folders())]
    files = [path for folder in folders for path in sorted(folder.glob("*.yaml"))]
    return {path.stem: path.read_text(encoding="utf-8") for path in files if path.stem != "base"}


def _choice_meant(word: str, choices: Mapping[str, str]) -> str | None:
    plain = _plain(word)
    for name in choices:
        if _plain(name) == plain:
            return name
    starts = [name for name in choices if len(plain) > 2 and _plain(name).startswith(plain)]
    named = [name for name, text in choices.items() if _named_in(word, text)]
    begun = [name for name in choices if len(name) > 3 and plain.startswith(_plain(name))]
    return next(iter([*starts, *named, *begun]), None)


def _trains_on(path: str) -> str:
    rec = path.endswith(".rec") or any(Path(path).glob("*.rec"))
    return f"data={'rec' if rec else 'folder'} data.root={path}"


def _named_in(word: str, text: str) -> bool:
    return _plain(word) in {_plain(one) for one in re.findall(r"\w[\w-]*", text)}


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]", "", name).lower()


def _is_value(word: str) -> bool:
    """True unless a word is the next option or setting."""
    if word.startswith("-"):
        return bool(re.fullmatch(r"-[\d.]\S*", word))
    key, equals, _ = word.partition("=")
    return not (equals and _KEY.fullmatch(key)) or Path(word).exists()


def _meaning(word: str, follower: str, after: Sequence[str]) -> str:
    """Return what a word that is no setting may mean."""
    key, colon, value = word.partition(":")
    if follower == "=" and after:
        return f"a setting has no spaces: {word}={after[0]}"
    if follower.startswith("=") and _KEY.fullmatch(word):
        return f"a setting has no spaces: {word}{follower}"
    if colon and _KEY.fullmatch(key) and value:
        return f"a setting has the form key=value: {key}={value}"
    if word.endswith(MODELS):
        return f"of what is this the path? ckpt={word} is a model"
    if word.endswith((".yaml", ".yml")):
        return _YAML
    if word.endswith(".bin"):
        return f"of what is this the path? 'eval.targets=[{word}]' is a verification set"
    if (Path(word) / "checkpoints").is_dir():
        model = Path(word) / "checkpoints" / "best.pt"
        return f"of what is this the path? ckpt={model} is the model of this run"
    if Path(word).is_dir() or word.endswith(".rec"):
        return f"of what is this the path? facerec-train {_trains_on(word)} trains on it"
    known = "." in word or word in _GROUPS or synonyms(word)
    if known and _KEY.fullmatch(word) and follower and "=" not in follower:
        return f"a setting has the form key=value: {word}={follower}"
    if word in _WORDS:
        return f"is not of the form key=value; did you mean {_WORDS[word]}?"
    choices = {group: choices_of(group) for group in _GROUPS}
    exact = [(group, name) for group in _GROUPS for name in choices[group] if _plain(name) == _plain(word)]
    like = ((group, _choice_meant(word, choices[group])) for group in reversed(_GROUPS))
    group, choice = next((one for one in (*exact, *like) if one[1] is not None), ("", ""))
    if choice:
        return f"is not of the form key=value; did you mean {group}={choice}?"
    return "is not of the form key=value; --help lists all settings"
