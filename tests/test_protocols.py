"""Every protocol through its config group: facerec-eval eval=… from the YAML file to results.json."""

import json
import logging
from pathlib import Path

import hydra
import numpy as np
import pytest
import simplejpeg
import torch
from omegaconf import OmegaConf

from facerec import create_backbone
from facerec.errors import ConfigError, MissingDataError
from facerec.evaluation.protocols.base import PROTOCOLS
from facerec.evaluation.protocols.verification import load_targets, target_path
from facerec.evaluation.settings import EvalSettings
from facerec.images.preprocessing import Preprocessing
from facerec.models import checkpoint
from facerec.reporting.evaluation import evaluate_checkpoint

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    torch.manual_seed(0)
    settings = {"name": "mobilefacenet", "embedding_size": 16, "input_size": 32}
    state = {
        "config": {"backbone": settings},
        "backbone": create_backbone(**settings).state_dict(),
        "input": Preprocessing(size=32).to_dict(),
        "classes": ["anna", "zoe"],
        "step": 7,
    }
    path = tmp_path_factory.mktemp("run") / "best.pt"
    checkpoint.save(path, state)
    return str(path)


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Identities with images, as galleries, probes, videos and distractors."""
    root = tmp_path_factory.mktemp("faces")
    rng = np.random.default_rng(0)
    folders = [f"gallery/{name}" for name in ("anna", "bert")]
    folders += [f"probes/{name}" for name in ("anna", "bert", "carl")] + ["others/x", "others/y"]
    folders += [f"videos/{name}/{k}" for name in ("anna", "bert") for k in (0, 1)]
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for number in range(2):
            image = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
            encoded = simplejpeg.encode_jpeg(np.ascontiguousarray(image))
            (root / folder / f"{number}.jpg").write_bytes(encoded)
    pairs = [
        ("anna/0", "anna/1", 1),
        ("bert/0", "bert/1", 1),
        ("anna/0", "bert/0", 0),
        ("anna/1", "bert/1", 0),
    ]
    lines = [f"{split}, {a}, {b}, {same}" for split in (1, 2) for a, b, same in pairs]
    (root / "videos" / "splits.txt").write_text("\n".join(["split, first, second, same", *lines]))
    (root / "noisy.txt").write_text("carl/1.jpg\n")
    return root


def evaluate(ckpt, folder, *overrides):
    """facerec-eval without the process: the composed configuration, then the evaluation."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        usual = ["device=cpu", f"output_dir={folder}", "eval.bootstrap=20"]
        config = hydra.compose("eval", [*usual, *overrides])
    config.ckpt = ckpt
    plain = OmegaConf.to_container(config, resolve=True)
    score = evaluate_checkpoint(plain, folder)
    return score, json.loads((folder / "results.json").read_text())


def test_ytf(ckpt, faces, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    overrides = ["eval=ytf", f"eval.root={faces}/videos", "eval.frames=1"]
    score, written = evaluate(ckpt, tmp_path, *overrides)
    entry = written["targets"]["ytf"]
    assert score == entry["accuracy"]
    assert (entry["pairs"], entry["folds"]) == (8, 2)
    assert "1 frames a video" in entry["protocol"]
    assert any("the training set holds 1 identity of YTF (anna)" in note for note in entry["notes"])
    assert written["step"] == 7 and written["preprocessing"]["size"] == 32
    assert (tmp_path / "ytf_roc.png").is_file() and (tmp_path / "ytf_distances.png").is_file()
    assert f"ytf: {entry['protocol']}" in caplog.text
    assert "95 % interval over identities" in caplog.text and entry["identities"] == 2
    assert "data:image/jpeg;base64," in (tmp_path / "report.html").read_text()


def test_identification(ckpt, faces, tmp_path):
    folders = [f"eval.{key}={faces}/{key}" for key in ("gallery", "probes")]
    others = [f"eval.distractors={faces}/others", f"eval.leave_out={faces}/noisy.txt"]
    score, written = evaluate(ckpt, tmp_path, "eval=identification", *folders, *others)
    entry = written["targets"]["identification"]
    assert score == entry["rank"]["1"]
    assert (entry["probes"], entry["mated_probes"], entry["distractors"]) == (5, 4, 4)
    assert "1 listed image left out" in entry["notes"]


def test_megaface(ckpt, faces, tmp_path):
    folders = [f"eval.probes={faces}/probes", f"eval.distractors={faces}"]
    score, written = evaluate(ckpt, tmp_path, "eval=megaface", *folders)
    entry = written["targets"]["megaface"]
    assert score == entry["rank1"]["10"]
    assert entry["rank1"]["100"] is None and entry["mate_pairs"] == 6


def test_ijb_is_reached(ckpt, faces, tmp_path):
    with pytest.raises(MissingDataError, match=r"ijbb_face_tid_mid\.txt: No such file"):
        evaluate(ckpt, tmp_path, "eval=ijb", f"eval.root={faces}", "eval.targets=[ijbb]")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["eval=ytf"], r"eval\.root=null: must be the folder of splits\.txt"),
        (["eval=ytf", "eval.root=x", "eval.frames=0"], r"eval\.frames=0: must be 1 or more"),
        (
            ["eval=ijb", "eval.root=x", "eval.targets=[lfw]"],
            r"eval\.targets=\[lfw\]: must be \[ijbb\] or \[ijbc\]",
        ),
        (["eval=identification", "eval.gallery=x"], r"eval\.probes=null: must be a folder"),
        (["eval=megaface", "eval.probes=x"], r"eval\.distractors=null: must be the folder"),
        (
            ["eval=megaface", "eval.protocol=megafase"],
            r"megafase: no such .* did you mean megaface",
        ),
        (["eval=ytf", "eval.root=x", "eval.batch_size=0"], r"eval\.batch_size=0"),
    ],
)
def test_settings_that_are_missing_or_wrong_are_named(ckpt, tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(ckpt, tmp_path, *overrides)


@pytest.mark.parametrize("name", PROTOCOLS.names())
def test_the_file_of_a_protocol_has_only_settings_of_it(name):
    written = OmegaConf.load(CONFIGS / "eval" / f"{name}.yaml")
    assert written.protocol == name
    assert set(written) <= set(PROTOCOLS.builder(name).__dataclass_fields__)


def test_training_takes_the_verification_protocol_only():
    with pytest.raises(ConfigError, match=r"eval\.protocol=ytf: must be verification here"):
        EvalSettings(protocol="ytf")


def test_a_missing_target_says_which_are_there(tmp_path):
    with pytest.raises(MissingDataError, match=r"no verification set lfw at .*no \.bin files"):
        target_path(tmp_path, "lfw")
    (tmp_path / "agedb_30.bin").touch()
    (tmp_path / "calfw.bin").touch()
    with pytest.raises(MissingDataError, match=r"has agedb_30, calfw; name one of those in eval\.targets"):
        load_targets(EvalSettings(targets=["lfw"], root=str(tmp_path)))
    with pytest.raises(MissingDataError, match=r"there is no folder .*nowhere; set eval\.root"):
        target_path(tmp_path / "nowhere", "lfw")
    assert target_path(tmp_path, "calfw") == tmp_path / "calfw.bin"
