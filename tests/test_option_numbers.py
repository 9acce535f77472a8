"""Options that take a value, of all commands with a parser: a number that is none, or of no use, is one line.

Options and commands come from the parsers themselves; a new option is tried without a word here.
"""

from __future__ import annotations

import argparse
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from facerec.backbones import create_backbone
from facerec.cli import data, embed, figures, model
from facerec.cli.base import reported
from facerec.errors import ConfigError, UserError
from facerec.images.preprocessing import Preprocessing
from facerec.making.folds import deal, draw_pairs
from facerec.models.export import export
from facerec.models.model import Model
from tests.folder_run import make_faces

NUMBERS = ["nan", "inf", "1e300", "-1", "0", str(10**12), str(10**30)]
MODEL = ["--ckpt", "face", "--device", "cpu"]
# What each command works on; commands that are not named get a folder and OUT.
GIVEN = {
    "data clean": ["pack", "OUT", *MODEL],
    "data filter": ["pack", "OUT"],
    "data index": ["pack", "--output", "OUT"],
    "data info": ["pack"],
    "data merge": ["pack", "pack", "OUT"],
    "data orl": ["OUT"],
    "data overlap": ["pack", "pack", "OUT", *MODEL],
    "data pairs": ["faces", "OUT.bin", "--folds=2"],
    "data repair": ["pack", "OUT"],
    "data split": ["pack", "OUT/a=0.5"],
    "data unpack": ["pack", "OUT"],
    "data verify": ["pack"],
    "embed": ["faces", "OUT.npy", *MODEL],
    "figures": ["sface", "--out", "OUT", "--formats", "png"],
    "model info": ["face", "--device", "cpu"],
}
PROGRAMS = {"data": data, "embed": embed, "figures": figures, "model": model}


def options() -> Iterator[tuple[str, str]]:
    """Each command with each of its options that takes a value other than a path or a listed one."""
    for program, module in PROGRAMS.items():
        parser = module.program.parser()
        nested = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
        parsers = nested[0].choices if nested else {"": parser}
        for name, one in parsers.items():
            for action in one._actions:
                takes = action.option_strings and action.nargs is None and action.choices is None
                if takes and action.type is not Path:
                    yield f"{program} {name}".strip(), action.option_strings[-1]


OPTIONS = list(options())


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a folder of faces, a pack and a model."""
    folder = tmp_path_factory.mktemp("desk")
    make_faces(folder / "faces", ("anna", "berta", "clara", "dora"), images=3)
    assert data.run(["pack", str(folder / "faces"), str(folder / "pack"), "--keep", "--size=32"]) == 0
    settings: dict[str, Any] = {"name": "mobilefacenet", "embedding_size": 8, "input_size": 32}
    network = create_backbone(**settings).eval()
    export(Model(network, Preprocessing(size=32), config={"backbone": settings}), folder / "face", "hub")
    return folder


@pytest.fixture(autouse=True)
def ends() -> Iterator[None]:
    """Work without an end fails, in place of the whole suite."""

    def end(*_: object) -> None:
        pytest.fail("does not come to an end")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def ran(run: Callable[[Sequence[str]], int], arguments: list[str], capsys: Any) -> tuple[int, list[str]]:
    """Exit status of a command and its lines on standard error, without those of a progress bar."""
    for path in Path().glob("OUT*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    status = reported("facerec", lambda: run(arguments))
    return status, [line for line in capsys.readouterr().err.splitlines() if line.startswith("facerec: ")]


def test_the_parsers_have_such_options() -> None:
    named = {option for _, option in OPTIONS}
    assert len(OPTIONS) > 70 and {"--workers", "--min-images", "--size", "--folds", "--min-face"} <= named


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_a_number_that_is_none_or_of_no_use_is_one_line(
    desk: Path, command: str, option: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk)
    program, *name = command.split()
    for number in NUMBERS:
        given = [*name, *GIVEN.get(command, ["faces", "OUT"]), f"{option}={number}"]
        status, lines = ran(PROGRAMS[program].run, given, capsys)
        assert (status, len(lines)) in ((0, 0), (2, 1)), (given, lines)
        if number == "nan":
            assert status == 2 and "nan" in lines[0], (given, lines)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_fraction_of_identities_is_above_0_and_at_most_1(
    desk: Path, number: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk)
    status, (line,) = ran(data.run, ["split", "pack", f"OUT/a={number}"], capsys)
    assert status == 2 and "must be above 0, and at most 1 in sum" in line


@pytest.mark.parametrize("sets", ["1-1000000000000", "0", "9-1", "-1", "1,", "nan"])
def test_sets_are_some_that_there_can_be(desk: Path, sets: str) -> None:
    with pytest.raises(ConfigError, match=r"--sets=.*: must be like 1-9 or 1,2,5, from 1 to 1,000, or all"):
        data.run(["lfw", str(desk / "faces"), str(desk / "OUT"), f"--sets={sets}"])


def test_as_many_folds_as_one_likes_are_refused_at_once_and_any_seed_deals() -> None:
    import numpy as np

    label_N = np.repeat(np.arange(6), 2)
    with pytest.raises(UserError, match=r"of 1000000000000 folds needs two identities, .* --folds 3 is"):
        draw_pairs(label_N, folds=10**12)
    same_N = np.arange(12) % 2 == 0
    fold_N = deal(same_N, None, folds=2, seed=10**30)
    assert fold_N is not None and np.bincount(fold_N, same_N).tolist() == [3, 3]
    with pytest.raises(ConfigError, match="--seed=-1: must be 0 or more"):
        deal(same_N, None, folds=2, seed=-1)


def test_a_number_of_pairs_to_draw_does_not_go_with_a_list(desk: Path) -> None:
    with pytest.raises(UserError, match=r"^--count: all pairs of .*p\.csv are taken; leave it out$"):
        data.run(["pairs", str(desk), str(desk / "OUT.bin"), f"--csv={desk / 'p.csv'}", "--count=7"])
