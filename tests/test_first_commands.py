"""Wrong commands, as people type them who know another program: each one line, with what to type."""

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
from tests.test_refusals import RUN

# What is typed (RUN: the settings of a small run), and what the one line must say.
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
data                                      | SUBCOMMAND
data inof                                 | inof: no such subcommand; did you mean info?
data info                                 | info: the following arguments are required: path; see `facerec-
data info /nowhere                        | /nowhere: no such file or folder
data verify /nowhere                      | /nowhere: no such file or folder
data verify face.pt --index /no.idx       | /no.idx: there is no such index
data verify . --workers 0                 | --workers=0: must be 1 or more
figures arcface                           | arcface: no such figure
train head.m=-1                           | head.m=-1: an angular margin must be from 0 to π/2 (radians)
train head.m=wide                         | head.m=wide: must be a number
train head=arcfase                        | head=arcfase: no such head; did you mean arcface?
train trainer.precision=fp8               | trainer.precision=fp8: must be one of auto, fp32, bf16, fp16
train trainer.epoch=3                     | (from the command line); did you mean trainer.epochs?
train +trainer.foo=3                      | trainer.foo=3: no such setting
train trainer.batch_size=0                | trainer.batch_size=0: must be 1 or more
train trainer.device=tpu                  | trainer.device=tpu: must be auto, cpu, cuda, cuda:N or mps
train optimizer.lr=0                      | optimizer.lr=0: must be greater than 0
train backbone=ir_5                       | backbone=ir_5: no such backbone; did you mean ir_50?
train seed=-1                             | seed=-1: must be an integer, 0 or more
train nonsense                            | nonsense: is not of the form key=value
train trainer.resume=nowhere.pt           | trainer.resume=nowhere.pt: no such file
train head=softmax head.mm=1              | with head=softmax); did you mean head.memory? known: head.block_
train head=arcface,cosface                | head=arcface,cosface: is several values; -m runs one after
train trainer.lr=1                        | (from the command line); did you mean optimizer.lr?
train trainr.epochs=3                     | setting (from the command line); did you mean trainer?
train ~head.x                             | head.x: no such setting (from the command line, with head=arcface)
train +head.m=1                           | +head.m: there is a head.m already; head.m=… without + sets it
train hydra.verbose=3                     | hydra.verbose=3: must be true, false, or names of loggers
train hydra.launcher=3                    | hydra.launcher=3: must be a section of settings
train output_dir=null                     | output_dir=None: must be the path of a folder
train output_dir=[a]                      | output_dir=['a']: must be the path of a folder
train output_dir=                         | output_dir=: must be the path of a folder
train +hydra.job.env_set.LD_PRELOAD=x.so  | LD_PRELOAD: a configuration may set no variables
train hydra.job.env_copy=[FACEREC_NONE]   | FACEREC_NONE is not set in the environment
train runs/best.pt                        | of what is this the path? ckpt=runs/best.pt is a model
train trainer.resume=false                | trainer.resume=false: must be auto or text or null
train +wandb=true                         | wandb=True: no such setting; did you mean logger?
train experiment=orl_demo head=softmax    | softmax.yaml or configs/experiment/orl_demo.yaml; '~head.s' leaves
eval ckpt=none.pt                         | ckpt=none.pt: no such file
eval ckpt=face.pt                         | not a checkpoint, or a damaged one (it is empty)
eval ckpt=test.bin                        | ckpt=test.bin: not a checkpoint, or a damaged one
export ckpt=face.pt out=face.pt force=true | out=face.pt: is the model itself; name another file
eval ckpt=face.pt head=arcface            | head: no such setting of this command; --help lists all
eval ckpt=face.pt eval=null               | eval=null: must be the name of a choice; known: identification
eval ckpt=face.pt ~device device=3        | device: no such setting
eval ckpt=face.pt device=3                | device=3: must be auto, cpu
eval ckpt=face.pt eval.cache=[x]          | eval.cache=[x]: must be text or null
eval ckpt=face.pt +backbone.dropout=0     | backbone.dropout=0: needs backbone=NAME
eval ckpt=face.pt +foo=3                  | foo=3: no such setting; known: allow_code, backbone, ckpt
export ckpt=face.pt output_dir=there      | there: has no effect here; out=FILE says where
export ckpt=face.pt format=onx            | format=onx: must be one of onnx, safetensors
export ckpt=face.pt -m                    | -m: an export writes one file; call it once for each
export ckpt=face.pt out=[a]               | out=[a]: must be text or null
export ckpt=face.pt ckpt=null             | ckpt=null: must be text
export ckpt=face.pt force=1               | force=1: must be true or false
export ckpt=face.pt input=3               | input=3: must be a mapping
train RUN head=base                       | head.name=null: must name one; known: adacos, adaface
train backbone=base                       | backbone.name=null: must name one; known: adaface_ir_101
train RUN backbone.pretrained=            | backbone.pretrained=: must be a path, or null for none
train RUN head=null                       | head=null: must be the name of a choice; known: adacos, adaface
train RUN head=3                          | head=3: must be the name of a choice; known: adacos, adaface
train RUN ~schedule                       | schedule=null: must be a section of settings
train RUN ~seed                           | seed=null: must be an integer
train RUN eval.metrics=[auc,foo]          | eval.metrics=foo: no such metric; known: accuracy, auc
train RUN seed=1e30                       | must be an integer
train RUN head.name=[arcface]             | head=[arcface]: no such head
train RUN +head.num_classes=3             | head.num_classes=3: no such setting
train RUN input.std=1e-44                 | input.std=1e-44: must be from 0.01 to 100000
train RUN input.std=-1                    | input.std=-1: must be from 0.01
train RUN input.std=[1,1,0]               | must be from 0.01
train RUN input.std=nan                   | input.std=nan: must be
train RUN input.mean=inf                  | input.mean=inf: must be
train RUN input.mean=1e5                  | input.mean=100000: must be from -10000 to 10000
train RUN input.size=64                   | input.size=64: must be data.size=32 in training
train RUN data.size=33                    | backbone.input_size=33: must be a multiple of 16 up to 4096
train RUN data.size=33 backbone.input_size=32 | must equal backbone.input_size=32; data.size=32 alone
train RUN trainer.epochs=inf              | trainer.epochs=inf: must be a finite number
train RUN trainer.epochs=1e300            | trainer.epochs=1e+300: must be a finite number, from -1e12 to 1e12
train RUN trainer.keep_last=1e10          | trainer.keep_last=10000000000: must be 1 to 1,000
train RUN eval.bootstrap=1e10             | eval.bootstrap=10000000000: must be 0 (none) to 1,000,000
train RUN head.init=inf                   | head.init=inf: must be a finite number
train RUN 'backbone.lr_scales={body: inf}' | backbone.lr_scales.body=inf: must be a finite number
train RUN optimizer.lr=nan                | optimizer.lr=nan: must be a finite number
train RUN trainer.max_steps=1e300         | trainer.max_steps=1e+300: must be an integer
train RUN trainer.threads=100000          | trainer.threads=100000: must be 1 or more, and at most 1,024
train RUN backbone.embedding_size=1e15    | backbone.embedding_size=1000000000000000: must be 1 or more
train RUN schedule={} schedule.name=null  | schedule.name=null: must name one; known: constant
train RUN trainer.batch_size=1            | trainer.batch_size=1: batch norm needs two images or more
train RUN trainer.batch_size=23 data.drop_last=false | data.drop_last=false: leaves a batch of one image
train RUN head=triplet data.shuffle=full data.images=4 | identity, and no identity of the data has two
train RUN head=triplet data.shuffle=full trainer.batch_size=1 | identity, and no batch of one holds two
train RUN head=contrastive data.shuffle=identity data.images_per_identity=4 | no room for a second identity
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
    (folder / "face.pt").touch()
    return folder


def test_there_are_sixty_of_them() -> None:
    assert len(CASES) >= 60 and len({typed for typed, _ in CASES}) == len(CASES)


@pytest.mark.parametrize(("typed", "said"), CASES)
def test_a_wrong_first_command_is_one_line_with_what_to_type(
    desk: Path, typed: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(desk.rglob("*"))
    program, *arguments = (word for one in shlex.split(typed) for word in ([one] if one != "RUN" else RUN))
    if program in PARSED:
        monkeypatch.chdir(desk)
        status = reported(f"facerec-{program}", lambda: PARSED[program](arguments))
        stdout, stderr = capsys.readouterr()
    else:
        status, stdout, stderr = command(f"facerec-{program}", *arguments, cwd=desk)
    assert not stdout, "a refusal stands alone"
    (line,) = stderr.splitlines()
    assert status == 2 and said in line, line
    assert line.startswith(f"facerec-{program}: ") and "Error executing job" not in line
    assert len(line) < 460, "more than anyone reads"
    assert sorted(desk.rglob("*")) == before, "it leaves something behind"


def test_both_spellings_of_an_option_are_taken(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = embed.program.parser()
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
    for one in (embed, data, figures, model):
        with pytest.raises(SystemExit):
            one.run(["--version"])
        assert capsys.readouterr().out.startswith(f"{one.program.name} 0.")


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
