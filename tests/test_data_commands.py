"""Every sub-command of `facerec-data`: help with an example, no overwriting, nothing half made if killed."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from facerec.cli.data import program
from facerec.errors import UserError
from facerec.making.audit import audit
from facerec.packs.pack import open_pack
from facerec.packs.recordio import Record, RecordWriter
from facerec.packs.verification import load_verification
from tests.making import data, image
from tests.published_trees import TREES

IDENTITIES, EACH = 22, 3
COMMANDS = sorted(program.commands)
# What each writes, with {} for the outputs' folder; those without an entry write nothing.
LINES = {
    **{name: f"sets/{name} {{}}/out --keep --workers 1" for name in TREES},
    "filter": "pack {}/out --min-images 2",
    "index": "pack --output {}/out.idx",
    "info": "pack --faces {}/out.png",
    "lfw": "identities {}/out --lists lists --sets 1 --keep --workers 1",
    "merge": "pack pack {}/out",
    "orl": "{}/out",
    "pack": "identities {}/out --keep --workers 1",
    "pairs": "identities {}/out.bin --keep --workers 1",
    "repair": "pack {}/out",
    "split": "pack {}/out=0.5 {}/other=0.5",
    "unpack": "pack {}/out",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of identities, the same as a pack, and lists as LFW has them."""
    root = tmp_path_factory.mktemp("source")
    (root / "pack").mkdir()
    (root / "lists").mkdir()
    with RecordWriter(root / "pack" / "train.rec") as writer:
        for key in range(IDENTITIES * EACH):
            encoded = image(key)
            writer.write(key, Record(0, float(key // EACH), key, 0, encoded))
            name = f"P{key // EACH:02}"
            (root / "identities" / name).mkdir(parents=True, exist_ok=True)
            (root / "identities" / name / f"{name}_{key % EACH + 1:04}.jpg").write_bytes(encoded)
    half = IDENTITIES // 2
    sets = [[f"P{who:02}" for who in range(begin, begin + half)] for begin in (0, half)]
    lines = [line for names in sets for line in (str(half), *(f"{name}\t{EACH}" for name in names))]
    (root / "lists" / "people.txt").write_text("\n".join(["2", *lines, ""]))
    pairs = [line for a, b, *_ in sets for line in (f"{a}\t1\t2", f"{a}\t1\t{b}\t1")]
    (root / "lists" / "pairs.txt").write_text("\n".join(["2\t1", *pairs, ""]))
    for name, tree in TREES.items():
        (root / "sets" / name).mkdir(parents=True)
        tree(root / "sets" / name)
    data("info", root / "pack")  # its caches are not what is tested
    return root


@pytest.fixture(autouse=True)
def _in_source(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source)


def line(command: str, folder: Path) -> list[str]:
    return [command, *LINES[command].format(folder, folder).split()]


def visible(folder: Path) -> dict[str, bytes]:
    """Files that a user would take for results, with their content."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.suffix != ".cache"
    }


def check_whole(folder: Path) -> None:
    """Assert that every file under its final name is complete."""
    for name, content in visible(folder).items():
        path = folder / name
        if path.suffix == ".rec":
            assert not [found for piece in audit(path) for found in piece.findings]
            assert len(open_pack(path)) > 0
        elif path.suffix == ".bin":
            assert len(load_verification(path)) > 0
        elif path.suffix in (".png", ".jpg"):
            Image.open(io.BytesIO(content)).load()


def killed_at(number: int, arguments: list[str]) -> bool:
    """Run a command in a process that is killed by SIGKILL right before the `number`-th time it gives a file
    another name or removes one; whether it came to that."""
    child = os.fork()
    if not child:
        left = number

        def count(event: str, _: object) -> None:
            nonlocal left
            if event in ("os.rename", "os.remove", "os.rmdir"):
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)

        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            sys.addaudithook(count)
            status = data(*arguments)
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        data(command, "--help")
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert f"example:\n  facerec-data {command}" in said
    assert "--force" in said or command not in LINES
    assert max(map(len, said.splitlines())) <= 100


def test_no_command_needs_torch(tmp_path: Path) -> None:
    program = (
        "import json, sys\nfrom facerec.cli.data import run\n"
        "assert not any(run(line) for line in json.loads(sys.argv[1]))\nassert 'torch' not in sys.modules"
    )
    lines = [line(command, tmp_path / command) for command in LINES] + [["verify", "pack"]]
    for command in LINES:
        (tmp_path / command).mkdir()
    subprocess.run([sys.executable, "-c", program, json.dumps(lines)], check=True, timeout=120)


@pytest.mark.parametrize("command", LINES)
def test_nothing_is_replaced_without_force(command: str, tmp_path: Path) -> None:
    assert data(*line(command, tmp_path)) == 0
    before = visible(tmp_path)
    victim = max(before, key=lambda name: (name.endswith((".rec", ".bin")), name))
    if command == "orl":
        (tmp_path / "out" / "train.lst").write_text("1\t0\tmine.jpg\n")
        (tmp_path / "out" / "orl.bin").unlink()
    (tmp_path / victim).write_bytes(b"mine")
    mine = visible(tmp_path)
    with pytest.raises(UserError, match="--force"):
        data(*line(command, tmp_path))
    assert visible(tmp_path) == mine
    assert data(*line(command, tmp_path), "--force") == 0
    assert {name: visible(tmp_path)[name] for name in before} == before


@pytest.mark.parametrize("command", LINES)
def test_a_killed_command_leaves_nothing_half_made_and_can_be_repeated(command: str, tmp_path: Path) -> None:
    kill_at(command, tmp_path, moments=(1, 4), again=True)


@pytest.mark.slow
@pytest.mark.parametrize("command", LINES)
@pytest.mark.parametrize("again", [False, True], ids=["new", "replacing"])
def test_a_command_can_be_killed_at_any_moment(command: str, again: bool, tmp_path: Path) -> None:
    kill_at(command, tmp_path, moments=range(1, 13), again=again)


def kill_at(command: str, tmp_path: Path, moments: Sequence[int], again: bool) -> None:
    """Kill a command at these moments, one at a time; with `again` one that replaces what is there."""
    (tmp_path / "whole").mkdir()
    assert data(*line(command, tmp_path / "whole")) == 0
    expected = visible(tmp_path / "whole")
    force = ["--force"] if again else []
    for number in moments:
        folder = tmp_path / str(number)
        if again:
            shutil.copytree(tmp_path / "whole", folder)
        else:
            folder.mkdir()
        killed = killed_at(number, [*line(command, folder), *force])
        assert killed or number > 1
        check_whole(folder)
        for path in folder.rglob(".*"):  # as if it was started again later
            os.utime(path, (0, 0))
        if killed:
            assert data(*line(command, folder), "--force") == 0
        after = visible(folder)
        after.pop("out.idx.old", None)  # `index` keeps the old one
        assert after == expected
        assert not list(folder.rglob(".*")), "no stage, lock or temporary file stays"
        shutil.rmtree(folder)
        if not killed:
            break
