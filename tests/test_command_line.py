"""Arguments that a command takes, and what a configuration may not do: paths, sweeps, foreign code."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from facerec.cli.data import run as data
from facerec.cli.embed import run as embed
from facerec.cli.overrides import hydra_arguments
from facerec.errors import UserError
from tests.folder_run import NETWORK
from tests.test_cli_train import command, done, failed

HOSTILE = [
    "epoch=9-step=100.ckpt",
    "my faces (1)",
    "faces #2, 50%",
    "it's",
    'a "b"; c & d!',
    "größe",
    "[a]",
    "{b}",
    "a\\b",
    "trailing ",
    "a^b`c<d>|e",
    "2024",
    "1e3",
    "--strange",
]
SMALL = [
    *NETWORK,
    "trainer.batch_size=4",
    "optimizer.lr=0.01",
    "data.workers=1",
    "eval.targets=[]",
    "trainer.max_steps=1",
]


def read(*arguments: str) -> list[tuple[str, object]]:
    """The settings as Hydra reads them."""
    parse = OverridesParser.create().parse_override
    settings = [parse(one) for one in hydra_arguments(arguments) if not one.startswith("-")]
    return [(one.get_key_element(), one.value()) for one in settings]


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """Two identities with four images each, in a folder that no shell and no grammar likes."""
    folder = tmp_path / "my faces=(1), 50% #2 it's ~größe"
    for identity in ("anna", "berta"):
        (folder / identity).mkdir(parents=True)
        for number in range(4):
            pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / identity / f"{number}.png")
    return folder


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("exists", [True, False])
def test_a_path_is_taken_as_it_is_typed(tmp_path: Path, name: str, exists: bool) -> None:
    path = tmp_path / name
    if exists:
        path.mkdir()
    expected = str(path) if exists else str(path).strip()  # Hydra trims what it can read
    assert read(f"data.root={path}") == [("data.root", expected)]
    assert read(f"++output_dir={path}") == [("++output_dir", expected)]
    if exists and expected == expected.strip():
        assert read(f"ckpt=[{path},{tmp_path}]") == [("ckpt", [expected, str(tmp_path)])]


def test_a_number_is_a_path_only_where_a_path_is_asked_for(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "2024").mkdir()
    monkeypatch.chdir(tmp_path)
    assert read("data.root=2024", "seed=2024") == [("data.root", "2024"), ("seed", 2024)]


def test_what_hydra_reads_by_itself_stays() -> None:
    for setting in (
        "head.m=0.4",
        "eval.targets=[lfw,cfp_fp]",
        "data.root='a b'",
        "eval.root=null",
        "~head.s",
    ):
        assert hydra_arguments([setting]) == [setting]
    assert hydra_arguments(["data.root=${oc.env:HOME}/x"]) == ["data.root=${oc.env:HOME}/x"]


def test_in_a_sweep_commas_part_values_unless_they_belong_to_a_file(tmp_path: Path) -> None:
    for name in ("a,b", "c=1", "d"):
        (tmp_path / name).mkdir()
    a, c, d = (tmp_path / name for name in ("a,b", "c=1", "d"))
    parse = OverridesParser.create().parse_override
    for setting, expected in (
        (f"data.root={c},{d}", [str(c), str(d)]),
        (f"data.root={a},{d}", [str(a), str(d)]),
        ("trainer.resume=x=1.pt,y.pt", ["x=1.pt", "y.pt"]),
    ):
        sweep = parse(hydra_arguments(["-m", setting])[0])
        assert [str(getattr(one, "text", one)) for one in sweep.sweep_iterator()] == expected
    assert parse(hydra_arguments(["-m", f"data.root={a}"])[0]).value() == str(a)


def test_options_stand_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x=y").mkdir()
    assert hydra_arguments(["a=1", "-m", "b=2,3", "--config-dir", "x=y", "c=4"]) == [
        *("a=1", "b=2,3", "c=4", "-m", "--config-dir", "x=y")
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--multi-run"], "--multi-run: no such option"),
        (["-m", "--cfg", "job"], "--multirun and --cfg: each is a command of its own; leave one out"),
        (["--cfg", "job", "--info"], "--cfg and --info: each is a command of its own; leave one out"),
        (["--package", "head"], "--package head: is the part that --cfg job shows; give both"),
        (["--resolve"], "--resolve: needs --cfg job or --cfg all"),
        (["--config-dir", "nowhere"], "--config-dir nowhere: no such folder"),
        (["--explain", "-m"], "-m: not beside --explain, which takes settings alone"),
        (["--cfg"], "argument --cfg/-c: expected one argument"),
        (["--experimental-rerun", "x.pickle"], "--experimental-rerun: unpickles a file"),
    ],
)
def test_a_wrong_option_is_one_line(tmp_path: Path, options: list[str], message: str) -> None:
    assert message in failed(command("facerec-train", *options, cwd=tmp_path))


def test_a_run_takes_such_paths_for_its_data_and_for_itself(faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "run (1)=a, b #3 %d"
    done("facerec-train", *SMALL, "data=folder", f"data.root={faces}", f"output_dir={out}", cwd=tmp_path)
    assert (out / "metrics.jsonl").is_file() and (out / ".hydra" / "config.yaml").is_file()
    ckpt = out / "checkpoints" / "last.pt"
    exported = tmp_path / "für e=1, (2).safetensors"
    run = command("facerec-export", f"ckpt={ckpt}", "format=safetensors", f"out={exported}", cwd=tmp_path)
    assert run.returncode == 0 and exported.is_file(), run.stderr


def test_a_tilde_is_the_home_folder(faces: Path, tmp_path: Path) -> None:
    settings = [*SMALL, "data=folder", f"data.root=~/{faces.name}", "output_dir=~/run"]
    done("facerec-train", *settings, cwd=Path("/"), HOME=str(tmp_path))
    assert (tmp_path / "run" / "metrics.jsonl").is_file()


def test_a_tilde_behind_an_option_is_too(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=f"{tmp_path}/nowhere: "):
        data(["info", "~/nowhere"])
    Image.new("RGB", (32, 32)).save(tmp_path / "1.png")
    with pytest.raises(UserError, match=f"ckpt={tmp_path}/a.pt"):
        embed([str(tmp_path), str(tmp_path / "x.npy"), "--ckpt=~/a.pt"])


def test_heads_are_swept_with_a_setting_that_they_have_and_the_default_has_not(
    faces: Path, tmp_path: Path
) -> None:
    settings = [*SMALL, "data=folder", f"data.root={faces}", "output_dir=sweep"]
    done("facerec-train", "head=curricularface,adaface", "-m", "head.ema=0.05", *settings, cwd=tmp_path)
    for number in "01":
        assert "ema: 0.05" in (tmp_path / "sweep" / number / ".hydra" / "config.yaml").read_text()
        assert (tmp_path / "sweep" / number / "metrics.jsonl").is_file()


def test_a_head_without_the_setting_is_named_before_any_run_begins(faces: Path, tmp_path: Path) -> None:
    settings = [*SMALL, "data=folder", f"data.root={faces}", "output_dir=sweep"]
    run = command(
        "facerec-train", "-m", "head=curricularface,cosface", "head.ema=0.05", *settings, cwd=tmp_path
    )
    line = failed(run)
    assert "head.ema: no such setting (from the command line, with head=cosface)" in line
    assert not (tmp_path / "sweep" / "0").exists()


CALL = "{_target_: os.system, _args_: ['touch marked']}"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("callback", f"hydra: {{callbacks: {{evil: {CALL}}}}}"),
        ("attribute", "hydra: {callbacks: {evil: {_target_: facerec.cli.compose.os.getcwd}}}"),
        ("interpolated", "hydra: {callbacks: {evil: {_target_: '${oc.decode:os.system}'}}}"),
        ("made", "hydra: {callbacks: {evil: '${oc.create:\"{_target_: os.system}\"}'}}"),
        ("inside", f"hydra: {{callbacks: {{sweep_table: {{more: {CALL}}}}}}}"),
        ("sweeper", f"hydra: {{sweeper: {{params: {{x: {CALL}}}}}}}"),
        ("launcher", "hydra: {launcher: {_target_: os.system}}"),
        ("factory", "hydra: {job_logging: {formatters: {evil: {(): os.system, command: touch marked}}}}"),
        (
            "handler",
            "hydra: {job_logging: {handlers: {evil: {class: subprocess.Popen, args: [touch, marked]}}}}",
        ),
        ("external", "hydra: {hydra_logging: {handlers: {console: {stream: 'ext://os.system'}}}}"),
        ("head", f"head: {{init: {CALL}}}"),
    ],
)
def test_no_code_of_others_is_run_from_a_configuration(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "evil.yaml").write_text(f"# @package _global_\n{text}\n")
    for more in ([], ["-m"]):
        run = command("facerec-train", "--config-dir=conf", "experiment=evil", *more, cwd=tmp_path)
        line = failed(run)
        assert "a configuration may name no code to be run but" in line, line
        assert not (tmp_path / "marked").exists()


def test_a_sweeper_may_name_its_sampler_and_no_other_code(tmp_path: Path) -> None:
    (tmp_path / "conf/hydra/sweeper").mkdir(parents=True)
    file = tmp_path / "conf/hydra/sweeper/other.yaml"
    text = "_target_: hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper\nsampler: {_target_: "
    settings = ["--config-dir=conf", "hydra/sweeper=other", "--cfg", "hydra", "-p", "hydra.sweeper"]
    for named in ("optuna.samplers.TPESampler", "optuna.samplers.os.system", "os.system"):
        file.write_text(f"{text}{named}}}\n")
        run = command("facerec-train", *settings, cwd=tmp_path)
        if named.endswith("TPESampler"):
            assert run.returncode == 0 and named in run.stdout, run.stderr
        else:
            assert f"sampler._target_={named}: a configuration may name no code" in failed(run)


def test_help_lists_choices_and_not_what_they_begin_with(tmp_path: Path) -> None:
    lines = command("facerec-train", "--help", cwd=tmp_path).stdout.splitlines()
    line = next(line for line in lines if line.strip().startswith("head: "))
    assert "arcface" in line and "base" not in line


@pytest.mark.parametrize(
    "name", ["WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"]
)
def test_a_variable_that_is_no_number_is_one_line(tmp_path: Path, name: str) -> None:
    told = {"RANK": "0", "WORLD_SIZE": "2", name: "two"}
    line = failed(command("facerec-train", cwd=tmp_path, **told))
    assert line == f"facerec-train: {name}=two: must be an integer; torchrun sets it, else unset it"


def test_a_key_that_others_refer_to_is_no_mistake(tmp_path: Path) -> None:
    settings = ["+base_lr=0.2", "optimizer.lr=${base_lr}", "data=rec", "data.root=/nowhere"]
    assert "/nowhere" in failed(command("facerec-train", *settings, cwd=tmp_path))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("facerec-eval", [], "ckpt: must be given on the command line"),
        ("facerec-export", ["ckpt=/nowhere.pt"], "ckpt=/nowhere.pt: no such file"),
        ("facerec-train", ["seed=${nope}"], "seed: Interpolation key 'nope' not found"),
    ],
)
def test_what_ends_a_command_before_it_has_a_log_is_said_once(
    tmp_path: Path, name: str, settings: list[str], message: str
) -> None:
    assert failed(command(name, *settings, cwd=tmp_path)) == f"{name}: {message}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed: ${x:{a: 1}}", r"evil\.yaml.*line 1"),
        (b"seed: 1\nseed: 2", r"duplicate key.*evil\.yaml"),
        (b"seed: \xff", "can't decode byte 0xff"),
        (b"defaults: 3", "defaults must be a list"),
        (b"defaults: [evil]", "recursion"),
        (b"a: " + b"[" * 600, "recursion"),
        (
            b"a: &a [x,x,x,x,x,x,x,x,x]\n"
            + b"".join(b"%c: &%c [%s]\n" % (n, n, b",".join([b"*%c" % (n - 1)] * 9)) for n in b"bcdefghi"),
            r"evil\.yaml: stands for 4\.9e\+08 entries",
        ),
        (b"seed: !!python/name:os.system x", r"evil\.yaml"),
    ],
)
def test_a_configuration_file_that_is_none_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/evil.yaml").write_bytes(content)
    line = failed(command("facerec-train", "--config-dir=conf", "experiment=evil", cwd=tmp_path))
    assert re.search(f"the configuration cannot be read: .*{message}", line), line
    assert [path.name for path in tmp_path.iterdir()] == ["conf"]
