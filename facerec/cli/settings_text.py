"""What each setting means, from the comments of its YAML file and its type: ``--explain``, pages of docs/."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any, Final, NamedTuple

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, OmegaConf

from facerec.cli.mistakes import choices_of, config_folder
from facerec.errors import UserError, nearest, setting_text, synonyms
from facerec.registry import spoken_settings
from facerec.settings import AtResume, marks

_LONG: Final = 160  # characters of a title in a list


class Setting(NamedTuple):
    """A key of a file of settings: its value there, the comment beside it, and what its type says.

    Attributes:
        key: within the group: ``m``, ``augment.blur``.
        default: as the file has it.
        meaning: the comment, else what the docstring of its builder says.
        values: type and range in words; empty where no type is known.
        resume: what a resumed run may do about it; empty: it must stay.
    """

    key: str
    default: str = ""
    meaning: str = ""
    values: str = ""
    resume: str = ""


def explain(config: DictConfig, topic: str | None) -> list[str]:
    """Return the lines of ``--explain [group|key]``.

    Args:
        config: composed, with ``hydra`` in it; its values and choices are shown.
        topic: a group, a key or the end of one (``m``); None: all groups.

    Raises:
        UserError: there is no such group or key.
    """
    now: Any = OmegaConf.to_container(config, resolve=False)
    hydra = now.pop("hydra")
    choices = hydra["runtime"]["choices"]
    chosen = {name: choice for name, choice in choices.items() if name in (*now, "experiment")}
    if "logger" in now:  # of which there are several at once
        chosen["logger"] = list(now["logger"])
    primary = file_settings((config_folder() / f"{hydra['job']['config_name']}.yaml").read_text("utf-8"), {})
    own = {one.key: one for one in primary if one.key.partition(".")[0] in now}
    if topic is None:
        lines = [f"{_chosen(*one):28} {title(*one)}".rstrip() for one in chosen.items()]
        lines += _lines("", own.values(), now)
        return [*lines, "--explain head, --explain trainer.epochs: more about one of them"]
    for name, choice in chosen.items():
        own |= {f"{name}.{one.key}": one for one in settings_of(name, choice)}
    words = [topic, *synonyms(topic)]
    if not _keys(own, topic):
        topic = next((word for word in words if word in chosen), topic)
    if topic in chosen:
        head = f"{_chosen(topic, chosen[topic])}: {title(topic, chosen[topic])}".removesuffix(": ")
        lines = [head, *_lines(topic, settings_of(topic, chosen[topic]), now)]
        names = choices_of(topic)
        if len(names) > 1:
            lines.append(f"choices ({topic}=…):")
            width = max(map(len, names))
            lines += [f"  {name:{width}} {_short(title(topic, name))}" for name in names]
        return lines + ["--explain experiment=NAME: all that is said of one"] * (topic == "experiment")
    found = [key for word in words for key in _keys(own, word)] or _mentions(own, topic)
    if not found:
        hint = nearest(topic, {*chosen, *own})
        raise UserError(f"--explain {topic}: no such group or setting; {hint}")
    return [line for key in dict.fromkeys(found) for line in _in_full(key, own[key], now)]


def _keys(everything: Iterable[str], topic: str) -> list[str]:
    """Return the key `topic`, those that end with it and those of a section of that name."""
    return [key for key in everything if f".{topic}." in f".{key}."]


def _mentions(everything: Mapping[str, Setting], word: str) -> list[str]:
    """Return the keys with this word in their name, or if there are none those whose meaning has it."""
    named = [key for key in everything if word in re.split(r"[._]", key)]
    word = rf"(?<![^\W_]){re.escape(word)}(?![^\W_])"
    return named or [
        key for key, one in everything.items() if re.search(word, one.meaning + one.values, re.I)
    ]


def _short(text: str) -> str:
    """Return the first sentence of a text that is long."""
    return text if len(text) <= _LONG else re.split(r"(?<=\.)\s+(?=[A-Z])", text, maxsplit=1)[0]


def settings_of(group: str, choice: str | Sequence[str] | None) -> list[Setting]:
    """Return the settings of a choice of a group, those that it inherits first."""
    if choice is None or group in ("experiment", "logger"):
        return []
    path = config_folder() / group / f"{choice}.yaml"
    text = path.read_text("utf-8") if path.is_file() else choices_of(group)[str(choice)]
    defaults = yaml.safe_load(text).get("defaults") or []
    inherited = [one for base in defaults if base != "_self_" for one in settings_of(group, base)]
    own = {one.key: one for one in file_settings(text, types_of(group, yaml.safe_load(text)))}
    merged = {one.key: one for one in inherited}
    for key, one in own.items():
        before = merged.get(key, one)
        values = one.values or before.values
        merged[key] = one if one.meaning else one._replace(meaning=before.meaning, values=values)
    return [one for key, one in merged.items() if key != "name" or group == "data"]


def file_settings(text: str, types: Mapping[str, Setting]) -> list[Setting]:
    """Return the settings of a file with the comments behind them, or in lines above them."""
    settings: list[Setting] = []
    path: list[tuple[int, str]] = []
    above: list[str] = []
    for line in text.splitlines():
        if line.startswith("hydra:"):
            break
        comment_line = re.match(r"\s*# ?(.*)", line)
        found = re.match(r"(\s*)(\w+):(?:\s+(.*?))??(?:\s+# (.*))?$", line)
        if comment_line:
            above.append(comment_line[1])
        elif found is None or found[2] == "defaults" or "${hydra" in line:
            above = []
        else:
            indent, key, value, comment = found.groups()
            path = [(depth, name) for depth, name in path if depth < len(indent)]
            path.append((len(indent), key))
            name = ".".join(part for _, part in path)
            known = types.get(name, Setting(name))
            meaning = comment or (" ".join(above) if settings or types == {} else "") or known.meaning
            settings.append(known._replace(default=value or "", meaning=meaning))
            above = []
    parents = {one.key.rpartition(".")[0] for one in settings}
    return [one for one in settings if one.default or one.key not in parents]


def title(group: str, choice: str | Sequence[str] | None) -> str:
    """Return the comment at the top of a choice's file: its first sentences."""
    if not isinstance(choice, str):
        return ""
    text = choices_of(group).get(choice, "")
    lines = [line for line in text.splitlines() if not line.startswith("# @package")]
    return " ".join(line.removeprefix("# ") for line in takewhile(lambda line: line.startswith("#"), lines))


def types_of(group: str, section: Mapping[str, Any]) -> dict[str, Setting]:
    """Return what the builders of a section say of its keys."""
    found: dict[str, Setting] = {}
    for prefix, builder in _builders(group, section):
        meanings, resume = _documented(builder), marks(builder)
        for key, values in spoken_settings(builder).items():
            mark = resume.get(key)
            said = "applied" if mark is AtResume.LENGTH else mark.name.lower() if mark else ""
            found[prefix + key] = Setting(prefix + key, "", meanings.get(key, ""), values, said)
    return found


def _builders(group: str, section: Mapping[str, Any]) -> list[tuple[str, Callable[..., Any]]]:
    from facerec.backbones import BACKBONES
    from facerec.evaluation.protocols.base import PROTOCOLS
    from facerec.heads import HEADS
    from facerec.images.augment import AugmentSettings
    from facerec.loading.settings import DataSettings
    from facerec.training.optimizers import OPTIMIZERS
    from facerec.training.schedules import SCHEDULES
    from facerec.training.settings import StartSettings, TeacherSettings, TrainerSettings

    name = section.get("name")
    registries = {"head": HEADS, "optimizer": OPTIMIZERS, "schedule": SCHEDULES, "backbone": BACKBONES}
    if group == "trainer":
        return [("", TrainerSettings)]
    if group == "teacher":
        return [("teacher.", TeacherSettings)]
    if group == "data":
        return [("", DataSettings), ("augment.", AugmentSettings)]
    if group == "eval":
        return [("", PROTOCOLS.builder(section["protocol"]))]
    if group == "head" and name is None:
        name = "softmax"  # which has the settings of all heads alone
    own = [("", registries[group].builder(name))] if name is not None else []
    return [*own, ("", StartSettings)] if group == "backbone" else own


def _documented(builder: Callable[..., Any]) -> dict[str, str]:
    """Return the entries of ``Args:`` in a docstring by name."""
    text = (inspect.getdoc(builder) or "").partition("Args:\n")[2]
    text = re.split(r"\n\n|\n\S", text)[0]
    entries: dict[str, str] = {}
    for names, meaning in re.findall(r"^    (\w[\w, ]*): (.*(?:\n     .*)*)", text, re.MULTILINE):
        entries |= {name.strip(): " ".join(meaning.split()).rstrip(".") for name in names.split(",")}
    return entries


def _chosen(group: str, choice: object) -> str:
    return f"{group}={setting_text(choice)}"


def _lines(group: str, settings: Iterable[Setting], now: Any) -> list[str]:
    rows = []
    for one in settings:
        key = f"{group}.{one.key}" if group else one.key
        shown = f"{key}={_yaml(OmegaConf.select(OmegaConf.create(now), key, throw_on_missing=False))}"
        rows.append(f"  {shown:34} {one.meaning}{_changed(key, one, now)}")
    return rows


def _in_full(key: str, one: Setting, now: Any) -> list[str]:
    value = OmegaConf.select(OmegaConf.create(now), key)
    lines = [f"{key}={_yaml(value)}", f"  meaning  {one.meaning or 'as its name says'}"]
    lines += [f"  values   {one.values}"] if one.values else []
    lines += [f"  default  {one.default}{' (changed here)' if _changed(key, one, now) else ''}"]
    return [*lines, f"  resume   {one.resume or 'must stay'}"] if one.resume or one.values else lines


def _changed(key: str, one: Setting, now: Any) -> str:
    """Return a clause where the value is another than the one of the file."""
    value = OmegaConf.select(OmegaConf.create(now), key)
    same = not one.default or value == yaml.safe_load(one.default) or _yaml(value) == one.default
    return "" if same or "${" in one.default else f" (default {one.default})"


def _yaml(value: object) -> str:
    plain = OmegaConf.to_container(value, resolve=False) if OmegaConf.is_config(value) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=10**6, allow_unicode=True).splitlines()[0]
