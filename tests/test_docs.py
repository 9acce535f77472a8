"""Every command of README and docs is one that the programs take: composed or parsed, not run."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

from facerec.cli import data, embed, figures, model, sweep
from facerec.cli.mistakes import config_folder
from facerec.cli.overrides import hydra_arguments

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "data" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PARSED = {one.program.name: one.program for one in (data, embed, figures, model, sweep)}
CONFIGS = {"facerec-train": "train", "facerec-eval": "eval", "facerec-export": "export"}


def commands(page: Path) -> Iterator[str]:
    """Lines of a page's code blocks that run something, continued lines joined, comments cut."""
    for block in re.findall(r"^```\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            text = re.sub(r"(^|\s)#.*", "", line).strip().removeprefix("$ ")
            if re.match(r"(facerec-\w+|torchrun|sbatch|pip|\./scripts/|scripts/)", text):
                yield text


def cases() -> list[tuple[str, str]]:
    return [(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in commands(page)]


@pytest.mark.parametrize(("page", "line"), cases())
def test_a_documented_command_is_understood(page: str, line: str) -> None:
    words = shlex.split(line)
    if words[0] == "torchrun":
        words = words[words.index("--no-python") + 1 :]
    elif words[0] == "sbatch":
        words = ["facerec-train", *words[words.index("scripts/train.sbatch") + 1 :]]
    program, arguments = words[0], words[1:]
    if program in CONFIGS:
        composes(CONFIGS[program], arguments)
    elif program in PARSED:
        PARSED[program].parser().parse_args(arguments)
    elif program == "pip":
        extras = re.findall(r"facerec\[([\w,]+)\]", line)
        known = importlib.metadata.metadata("facerec").get_all("Provides-Extra") or []
        assert extras and set(",".join(extras).split(",")) <= set(known)
    else:
        assert (ROOT / program).is_file(), program


def composes(config_name: str, arguments: list[str]) -> None:
    """Compose what a command would; a sweep once for its first values."""
    if "--help" in arguments:
        return
    if "--from" in arguments:  # a run that is not here
        at = arguments.index("--from")
        arguments = [*arguments[:at], *arguments[at + 2 :]]
    overrides = [one for one in hydra_arguments(arguments) if not one.startswith("-")]
    if "-m" in arguments:
        overrides = [re.sub(r"=(?:tag\(\w+,)?interval\(([^,]+),.*", r"=\1", one) for one in overrides]
        overrides = [re.sub(r"^([\w.]+=)([^\[,']+),.*", r"\1\2", one) for one in overrides]
        overrides = [one for one in overrides if not one.startswith("hydra")]
    if config_name != "train" and not any(one.startswith("ckpt=") for one in overrides):
        overrides.append("ckpt=x")
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
        hydra.compose(config_name, overrides)


def test_no_page_is_longer_than_a_reader_takes_in() -> None:
    lines = {page.relative_to(ROOT).as_posix(): len(page.read_text().splitlines()) for page in PAGES}
    assert lines["README.md"] <= 150
    assert max(lines.values()) <= 200, lines


def test_links_of_the_pages_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_settings_complete_in_a_shell() -> None:
    program = "from facerec.cli.train import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "-sc", "query=bash"],
        env=os.environ | {"COMP_LINE": "facerec-train head=arcf", "COMP_POINT": "23"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == ["head=arcface"], done.stderr
