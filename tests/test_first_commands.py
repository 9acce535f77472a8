"""Wrong first commands, as people type them who know another program: each one line, with what to type."""

from __future__ import annotations

import io
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image

from facerec.cli import data, embed, figures, model, train
from facerec.cli.base import reported
from facerec.errors import UserError
from facerec.packs.verification import write_verification
from tests.test_cli_train import command, process

# What is typed, and what the one line must say.
MISTAKES = """
train lr=0.1                              | did you mean optimizer.lr?
train learning_rate=0.1                   | did you mean optimizer.lr?
train batch_size=32                       | did you mean trainer.batch_size?
train epochs=5                            | did you mean trainer.epochs?
train --epochs 5                          | did you mean trainer.epochs?
train --epochs=5                          | did you mean trainer.epochs?
train --lr 0.1 --wd 0.0005                | did you mean optimizer.
train loss=arcface                        | did you mean head?
train model=ir_50                         | did you mean backbone?
train dataset=casia                       | did you mean data?
train scheduler=cosine                    | did you mean schedule?
train head.margin=0.3                     | did you mean head.m?
train head.scale=30                       | did you mean head.s?
train margin=0.3                          | did you mean head.m?
train embedding_size=512                  | did you mean backbone.embedding_size?
train image_size=112                      | did you mean data.size?
train num_workers=8                       | did you mean data.workers?
train device=cuda                         | did you mean trainer.device?
train gpus=2                              | did you mean trainer.device?
train fp16=true                           | did you mean trainer.precision?
train resume=runs/x                       | did you mean trainer.resume?
train ckpt=a.pt                           | did you mean backbone.pretrained?
train wandb=true                          | did you mean logger?
train save_dir=x                          | did you mean output_dir?
train num_classes=10                      | did you mean data.identities?
train data.path=x                         | did you mean data.root?
train eval.target=[lfw]                   | did you mean eval.targets?
train backbone=r50                        | did you mean iresnet50?
train backbone=IR50                       | did you mean ir_50?
train backbone=resnet100                  | did you mean iresnet100?
train data=casia-webface                  | did you mean casia?
train data=faces_emore                    | did you mean ms1mv2?
train data=MS1M-ArcFace                   | did you mean ms1mv2?
train data=photos                         | data=folder data.root=photos trains on what is there
train data=./photos                       | data=folder data.root=./photos trains on what is there
train data=test.bin                       | a verification set is a target: 'eval.targets=[test.bin]'
train data.root=photos                    | data=folder data.root=photos trains on them
train data=rec data.root=test.bin         | is a verification set: 'eval.targets=[test.bin]' evaluates on it
train data=folder data.root=test.bin      | is a verification set: 'eval.targets=[test.bin]' evaluates on it
train data=folder data.root=photos/ann    | it holds loose images, move each identity's into a folder
train data=folder                         | data.root: must be given on the command line
train optimizer=adam                      | did you mean adamw?
train optimizer=SGD                       | did you mean sgd?
train schedule=step                       | did you mean multistep?
train head=arc                            | did you mean arcface?
train head=am-softmax                     | did you mean cosface?
train experiment=demo                     | did you mean orl_demo?
train experiment=                         | experiment=: names none; --explain experiment lists them
train --explain nothing                   | no such group or setting; nearest of
train lr 0.1                              | a setting has the form key=value: lr=0.1
train -lr 0.1                             | did you mean optimizer.lr?
train config.yaml                         | settings of a file are an experiment
train --config=my.yaml                    | settings of a file are an experiment
train --config-name my.yaml               | settings of a file are an experiment
train --resume                            | did you mean trainer.resume?
train backbone=resnet-50                  | did you mean resnet50?
train head=triplet-loss                   | did you mean triplet?
train hydra/sweeper=optuna                | hydra/sweeper=optuna: is of no use to one run; -m makes a search
train hydra.sweeper.n_trials=9            | is of no use to one run; -m makes a search
train --from nowhere                      | nowhere: is no run's folder
train eval=lfw                            | a verification set is a target: 'eval.targets=[lfw]'
train arcface                             | did you mean head=arcface?
train orl_demo                            | did you mean experiment=orl_demo?
train photos                              | data=folder data.root=photos trains on it
train test.bin                            | 'eval.targets=[test.bin]' is a verification set
train help                                | did you mean --help?
train multirun head.m=0.3,0.5             | did you mean -m?
train --multi-run head.m=0.3,0.5          | did you mean --multirun?
train head arcface                        | a setting has the form key=value: head=arcface
train head.m 0.5                          | a setting has the form key=value: head.m=0.5
train head = arcface                      | a setting has no spaces: head=arcface
train head.m= 0.5                         | a setting has no spaces: head.m=0.5
train head:arcface                        | a setting has the form key=value: head=arcface
train head.m=0,5                          | a decimal has a point: head.m=0.5
train head.m=0.3,0.5                      | is several values; -m runs one after the other
train head.m=30                           | must be from 0 to π/2 (radians); 30° are 0.5236
train head.m=0.5rad                       | head.m=0.5rad: must be a number
train head.m=null                         | head.m=null: must be a number
train eval.targets=lfw                    | must be a list: 'eval.targets=[lfw]'
train eval.targets=lfw,cfp_fp             | must be a list: 'eval.targets=[lfw,cfp_fp]'
train trainer.precision=16                | must be one of auto, fp32, bf16, fp16
train trainer.device=gpu                  | must be auto, cpu, cuda, cuda:N or mps
train data.mirror=yes                     | data.mirror=yes: must be true or false
train trainer.epochs=five                 | trainer.epochs=five: must be a number
eval                                      | must be given on the command line: ckpt=runs/a/checkpoints/best.pt
eval runs/a/checkpoints/best.pt           | ckpt=runs/a/checkpoints/best.pt is a model
eval ckpt=runs/…/checkpoints/best.pt      | … stands for names that you fill in; the newest here is runs/a/
eval ckpt=a…                              | ckpt=a…: … stands for names that you fill in
eval --ckpt runs/.../best.pt              | the newest here is runs/a/checkpoints/best.pt
eval --ckpt none.pt                       | ckpt=none.pt: no such file
eval --checkpoint=none.pt                 | did you mean ckpt?
eval model=none.pt                        | did you mean ckpt?
eval ckpt=none.pt targets=lfw             | did you mean eval.targets?
eval ckpt=none.pt eval.targets=lfw        | must be a list: 'eval.targets=[lfw]'
export none.onnx                          | ckpt=none.onnx is a model
export --ckpt none.pt                     | ckpt=none.pt: no such file
export ckpt=none.pt onnx                  | did you mean format=onnx?
export ckpt=none.pt format=ONNX           | format=ONNX: must be one of onnx, safetensors
embed photos out.npy                      | the following arguments are required: --ckpt
embed photos out.npy ckpt=none.pt         | ckpt=none.pt: no such file
embed photos out.npy --ckpt runs/…/a.pt   | … stands for names that you fill in
data photos                               | photos: no such subcommand
data check photos                         | check: no such subcommand; did you mean verify?
data inspect test.bin                     | inspect: no such subcommand; did you mean info?
data convert photos out                   | convert: no such subcommand; did you mean pack?
data pack --algin photos out              | unrecognized arguments: --algin; did you mean --align?
data info test.bin --face                 | unrecognized arguments: --face; did you mean --faces?
data pack photos photos                   | lies in photos, and would be taken for an identity
data filter photos out                    | filter: give --min-images, --drop or --overlap
data cfp photos out                       | is not the published tree of cfp, it lacks Data, Protocol
data unpack test.bin out                  | test.bin: is a verification set
embed out.npy photos --ckpt none.pt       | photos: the name must end in .npy or .parquet
embed --ckpt runs/a photos out.npy        | ckpt=runs/a: is a folder; name a file in it
eval runs/a                               | ckpt=runs/a/checkpoints/best.pt is the model of this run
eval ckpt=none.pt calibration=logistic    | did you mean eval.calibration?
eval ckpt=none.pt --quality q.csv         | did you mean eval.quality?
eval ckpt=none.pt --groups g.csv          | did you mean eval.groups?
eval ckpt=none.pt eval=ijbc               | did you mean ijb?
data pack photos                          | pack: the following arguments are required: out
data info photos                          | photos: holds no train.rec
data merge test.bin photos out            | is a verification set; a .rec, or a folder with train.rec
figures arcface                           | arcface: no such figure
"""
CASES = [tuple(part.strip() for part in line.split("|")) for line in MISTAKES.strip().splitlines()]
PARSED = {"embed": embed.run, "data": data.run, "figures": figures.run}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with photographs of two identities, a verification set and a run."""
    folder = tmp_path_factory.mktemp("desk")
    jpeg = io.BytesIO()
    Image.new("RGB", (112, 112)).save(jpeg, "JPEG")
    for name in ("ann", "bob"):
        (folder / "photos" / name).mkdir(parents=True)
        (folder / "photos" / name / "1.jpg").write_bytes(jpeg.getvalue())
    write_verification(folder / "test.bin", [jpeg.getvalue()] * 4, [True, False])
    (folder / "runs/a/checkpoints").mkdir(parents=True)
    (folder / "runs/a/checkpoints/best.pt").touch()
    return folder


def test_there_are_sixty_of_them() -> None:
    assert len(CASES) >= 60 and len({typed for typed, _ in CASES}) == len(CASES)


@pytest.mark.parametrize(("typed", "said"), CASES)
def test_a_wrong_first_command_is_one_line_with_what_to_type(
    desk: Path, typed: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(desk.rglob("*"))
    program, *arguments = shlex.split(typed)
    if program in PARSED:
        monkeypatch.chdir(desk)
        status = reported(f"facerec-{program}", lambda: PARSED[program](arguments))
        stderr = capsys.readouterr().err
    else:
        status, _, stderr = command(f"facerec-{program}", *arguments, cwd=desk)
    (line,) = stderr.splitlines()
    assert status == 2 and said in line, line
    assert line.startswith(f"facerec-{program}: ") and "Error executing job" not in line
    assert len(line) < 440, "more than anyone reads"
    assert sorted(desk.rglob("*")) == before, "it leaves something behind"


def test_both_spellings_of_an_option_are_taken(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = embed.parser()
    for ckpt in (["--ckpt", "a.pt"], ["--ckpt=a.pt"], ["ckpt=a.pt"]):
        for flag in (["--allow-code"], ["--allow_code"], ["allow_code=true"]):
            options = parser.parse_args(["photos", "out.npy", *ckpt, *flag, "batch_size=7"])
            assert options.ckpt == Path("a.pt") and options.allow_code and options.batch_size == 7
    (desk / "ckpt=a.pt").touch()
    monkeypatch.chdir(desk)
    with pytest.raises(UserError, match="--ckpt"):  # a file of that name is the source
        parser.parse_args(["ckpt=a.pt", "out.npy"])
    (desk / "ckpt=a.pt").unlink()


@pytest.mark.parametrize(
    ("program", "typed", "offered"),
    [("data", "pa", "pack pairs"), ("embed", "--no", "--no-flip --normalise"), ("sweep", "--b", "--by ")],
)
def test_options_complete_in_a_shell(desk: Path, program: str, typed: str, offered: str) -> None:
    pytest.importorskip("argcomplete", reason="the extra completion is not installed")
    line = f"facerec-{program} {typed}"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": " "}
    asked |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(desk / "offered"), "_ARGCOMPLETE_COMP_WORDBREAKS": " "}
    assert process(f"facerec-{program}", cwd=desk, **asked).returncode == 0
    assert (desk / "offered").read_text() == offered
    (desk / "offered").unlink()


def test_every_command_says_its_version(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train", "eval", "export"):
        assert command(f"facerec-{name}", "--version", cwd=desk).stdout.startswith(f"facerec-{name} 0.")
    for parser in (embed.parser(), data.parser(), figures.parser(), model.parser()):
        with pytest.raises(SystemExit):
            parser.parse_args(["--version"])
        assert capsys.readouterr().out.startswith(f"{parser.prog} 0.")


def test_facerec_train_alone_says_what_to_type_first(desk: Path) -> None:
    run = command("facerec-train", cwd=desk)
    assert run.returncode == 0 and "facerec-train experiment=orl_demo" in run.stdout
    assert not (desk / "outputs").exists()


def test_a_bug_is_shown_without_a_line_of_hydras(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr("facerec.training.run.open_faces", broken)
    monkeypatch.setattr(sys, "argv", ["facerec-train", "data=synthetic", "eval.targets=[]"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZeroDivisionError, match="a bug of ours"):
        train.main()
    assert "Error executing job" not in capsys.readouterr().err
