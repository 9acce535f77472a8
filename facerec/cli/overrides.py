"""Rewrite a command line for Hydra's grammar: options behind the settings, paths in quotes."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Quote, QuotedString, Sweep
from hydra.errors import HydraException

from facerec.cli.mistakes import config_folder, options_as_settings, refuse_bare_words, require_filled_in
from facerec.errors import UserError

# Settings that name a file or folder. Their values are taken as they are typed, commas and digits included.
PATHS = (
    *("ckpt", "out", "output_dir", "calibration", "data.root", "backbone.pretrained", "trainer.resume"),
    *("eval.root", "eval.gallery", "eval.probes", "eval.distractors", "eval.leave_out", "eval.cache"),
    *("eval.groups", "eval.quality", "teacher.ckpt", "teacher.embeddings"),
)


def hydra_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the settings, quoted where Hydra could not read them, and then the options (``-m``, …).

    Raises:
        UserError: an option that lacks its value, excludes another, or would run code from a file; a word
            that is no setting.
    """
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    known = {name: action.nargs != 0 for name, action in parser._option_string_actions.items()}
    known |= {"--info": False, "-i": False}  # whose value is optional
    arguments = options_as_settings(arguments, known)
    options, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        raise UserError(f"{unknown[0]}: no such option; see --help and --hydra-help")
    if options.experimental_rerun is not None:
        raise UserError(
            "--experimental-rerun: unpickles a file, which can run anything; start the run by its settings"
        )
    _require_one_command(options)
    if options.config_name is not None and not (config_folder() / f"{options.config_name}.yaml").is_file():
        refuse_bare_words([f"config={options.config_name}"])
    settings = list(options.overrides)
    searched = next((one for one in settings if one.startswith(("hydra/sweeper", "hydra.sweeper."))), None)
    if searched is not None and not (options.multirun or options.cfg or options.info):
        raise UserError(f"{searched}: is of no use to one run; -m makes a search or sweep of it")
    refuse_bare_words(settings)
    require_filled_in(settings)
    rest = [argument for argument in arguments if argument not in settings]
    settings = [one for setting in settings for one in mixture(setting)]
    return [_readable(setting, sweeps=options.multirun) for setting in settings] + rest


def _require_one_command(options: Namespace) -> None:
    """Raise `UserError` for options of Hydra's that exclude or need each other."""
    given = [
        name for name in ("run", "multirun", "cfg", "info", "shell_completion") if getattr(options, name)
    ]
    if len(given) > 1:
        one, other = (f"--{name.replace('_', '-')}" for name in given[:2])
        raise UserError(f"{one} and {other}: each is a command of its own; leave one out")
    if options.package is not None and not options.cfg:
        raise UserError(f"--package {options.package}: is the part that --cfg job shows; give both")
    if options.resolve and options.cfg not in ("job", "all") and not options.help:
        raise UserError("--resolve: needs --cfg job or --cfg all")
    if options.config_dir is not None and not Path(options.config_dir).is_dir():
        raise UserError(f"--config-dir {options.config_dir}: no such folder")


def plugins_of(arguments: Sequence[str]) -> list[str]:
    """Return the modules that a command line names: ``plugins=[a,b]`` or ``plugins=a``."""
    names: list[str] = []
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if equals and key.lstrip("+") == "plugins":
            parsed = _parsed(argument)
            value: Any = parsed.value() if parsed is not None else argument
            names += value if isinstance(value, list) else [value]
    return names


def mixture(setting: str) -> list[str]:
    """Return ``data=[a,b]`` as ``data=mix data.sources=[a,b]``: Hydra would lay one over the other."""
    key, _, value = setting.partition("=")
    return ["data=mix", f"data.sources={value}"] if key == "data" and value.startswith("[") else [setting]


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; see --help and --hydra-help")


def _readable(setting: str, *, sweeps: bool) -> str:
    """Quote the value of a setting that Hydra's grammar could not read."""
    key, equals, value = setting.partition("=")
    if not equals:
        return setting
    path = key.lstrip("+") in PATHS
    parsed = _parsed(setting)
    if parsed is not None and not _taken_apart(parsed._value, value, path=path, sweeps=sweeps):
        return setting
    if value.startswith("[") and value.endswith("]") and not _exists(value):
        value = "[" + ",".join(map(_element, _existing(value[1:-1]) or value[1:-1].split(","))) + "]"
    elif sweeps and "," in value and not _exists(value):
        value = ",".join(map(_element, _existing(value) or value.split(",")))
    else:
        value = _quoted(value)
    return f"{key}={value}" if _parsed(f"{key}={value}") is not None else setting


def _taken_apart(parsed: Any, value: str, *, path: bool, sweeps: bool) -> bool:
    """Return True if Hydra reads something else than the path that `value` is."""
    if isinstance(parsed, ChoiceSweep) and parsed.simple_form and path:
        return not sweeps or any("," in file for file in _existing(value))
    if isinstance(parsed, Sweep | list):
        return _exists(value)
    if isinstance(parsed, str):
        return parsed != value and _exists(value)
    return path and isinstance(parsed, int | float) and not isinstance(parsed, bool)


def _parsed(setting: str) -> Override | None:
    """Return what Hydra reads; None where it cannot."""
    try:
        return OverridesParser.create().parse_override(setting)
    except HydraException:
        return None


def _element(text: str) -> str:
    """Quote one of several values, if Hydra could not read it."""
    parsed = _parsed(f"key={text}")
    return text if parsed is not None and not isinstance(parsed._value, Sweep) else _quoted(text.strip())


def _quoted(text: str) -> str:
    return str(QuotedString(text, Quote.single).with_quotes())


def _exists(text: str) -> bool:
    """Return True for the path of something that is there; a list of settings may be too long for a path."""
    try:
        return Path(text).expanduser().exists()
    except (OSError, RuntimeError):  # longer than a name can be; the home folder of somebody unknown
        return False


def _existing(text: str) -> list[str]:
    """Split at commas into existing files, which may have commas in their names; empty unless all exist."""
    if _exists(text):
        return [text]
    for at, sign in enumerate(text):
        if sign == "," and _exists(text[:at].strip()):
            rest = _existing(text[at + 1 :].strip())
            if rest:
                return [text[:at].strip(), *rest]
    return []
