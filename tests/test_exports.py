"""Exports: smaller precisions, preprocessing inside, hub folders with their card, the stored threshold."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from facerec.backbones import create_backbone
from facerec.errors import CheckpointError, ConfigError, FacerecError
from facerec.evaluation.details import choose_threshold
from facerec.evaluation.verify import verify
from facerec.images.preprocessing import Preprocessing
from facerec.models import hub
from facerec.models.export import export
from facerec.models.model import Model
from facerec.models.opening import load_model
from facerec.models.weights import load_pretrained
from facerec.packs.verification import write_verification
from facerec.reporting.exported import export_and_judge

from .foreign_files import pixels, png

SIDE, WIDTH = 32, 16
PLAIN = {"precision": "fp32", "opset": None, "preprocessing": False, "normalise": False}


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    settings = {"name": "mobilefacenet", "embedding_size": WIDTH, "input_size": SIDE}
    backbone = create_backbone(**settings).eval()
    prepared = Preprocessing(mean=120.0, std=[50.0, 60.0, 70.0], channels="bgr", size=SIDE)
    config = {
        "backbone": settings | {"pretrained": "/home/me/secret.pt"},
        "data": {"name": "orl", "root": "/home/me/orl", "identities": 30, "images": 300},
        "head": {"name": "arcface", "s": 32.0, "m": 0.3},
    }
    return Model(backbone, prepared, step=7, epoch=2, config=config)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verification set of 120 pairs: the second image of a genuine pair is the first one with noise."""
    generator = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("pairs") / "noisy.bin"
    first = generator.integers(0, 256, (120, SIDE, SIDE, 3), dtype=np.uint8)
    same = np.arange(120) % 2 == 0
    second = np.where(same[:, None, None, None], first, first[::-1])
    second = np.clip(second + generator.normal(0, 40, second.shape), 0, 255).astype(np.uint8)
    images = [png(image) for pair in zip(first, second, strict=True) for image in pair]
    write_verification(path, images, same)
    return path


def judged(model: Model, out: Path, pairs: Path | None = None, **given: Any) -> Iterator[str]:
    """The lines of an export as a hub folder, judged on these pairs."""
    section = {"protocol": "verification", "targets": [str(pairs)], "bootstrap": 50, "batch_size": 32}
    defaults = {"eval": section if pairs else {}, "far": None, "calibration": None, "card": {}}
    return export_and_judge(model, out, format="hub", options=PLAIN, **defaults | given)


def cosines(one: Model, other: Model, images: np.ndarray) -> np.ndarray:
    return (one.embed(images) * other.embed(images)).sum(1).numpy()


def test_an_int8_network_takes_pixels_and_gives_unit_vectors_if_asked(model: Model, tmp_path: Path) -> None:
    images = pixels(24, size=SIDE)
    options = {"precision": "int8", "preprocessing": True, "normalise": True, "sample_NHWC": images}
    path = export(model, tmp_path / "small.onnx", "onnx", **options)
    small = load_model(path, device="cpu")
    assert cosines(model, small, images).min() > 0.97
    raw = small.embed(images[:5], flip=False, normalise=False)
    assert np.allclose(raw.norm(dim=1), 1, atol=1e-5)

    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].type == "tensor(uint8)"
    (direct,) = session.run(None, {"image": images[:3]})
    assert np.allclose(direct, raw[:3], atol=1e-5)


def test_half_precision_keeps_the_types_of_input_and_output(model: Model, tmp_path: Path) -> None:
    images = pixels(4, size=SIDE)
    whole = sum(value.nbytes for value in model.backbone.state_dict().values())
    for format in ("onnx", "safetensors"):
        half = export(model, tmp_path / f"half.{format}", format, precision="fp16")
        assert half.stat().st_size < 0.75 * whole
        assert cosines(model, load_model(half, device="cpu"), images).min() > 1 - 1e-4


@pytest.mark.parametrize(
    ("format", "given", "message"),
    [
        ("hub", {"precision": "int8"}, "precision=int8: needs format=onnx"),
        ("onnx", {"precision": "int8"}, "precision=int8: needs calibration=IMAGES"),
        ("safetensors", {"normalise": True}, "normalise=true: format=safetensors has none"),
        ("hub", {"opset": 17}, "opset=17: format=hub has none"),
    ],
)
def test_what_a_format_has_not_is_refused(model: Model, tmp_path: Path, format, given, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        export(model, tmp_path / "out", format, **given)
    assert not list(tmp_path.iterdir())


def test_the_original_and_what_was_written_stand_in_one_table(
    model: Model, pairs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "face"
    card = {"license": "mit", "data_license": None, "limits": None}
    lines = list(judged(model, out, pairs, calibration=str(pairs), card=card))
    assert lines[0] == str(out)
    text = "\n".join(lines)
    assert "float32 (N, 3, 32, 32), BGR, (x − 120.0) / [50.0, 60.0, 70.0]" in text
    head, original, written = lines[-3:]
    assert "noisy" in head and "1 − cosine, 200 images" in head
    assert original.split()[1:4] == written.split()[1:4], "accuracy of both"

    opened = load_model(out, device="cpu")
    assert opened.input == model.input and opened.step == 7 and opened.knows_input
    assert cosines(model, opened, pixels(4, size=SIDE)).min() > 1 - 1e-6
    assert opened.threshold is not None and opened.threshold.far == 0.1 and opened.threshold.impostor == 60
    everything = "".join(path.read_text() for path in out.iterdir() if path.suffix in (".json", ".md"))
    assert "/home/me" not in everything, "paths of this machine are nobody's business"
    prepared = json.loads((out / "preprocessor_config.json").read_text())
    assert prepared["image_mean"][0] == pytest.approx(120 / 255) and prepared["size"]["height"] == SIDE
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n") and "orl, 30 identities, 300 images" in card
    assert "head: name=arcface, s=32.0, m=0.3" in card and "| noisy | accuracy |" in card.lower()
    assert "Training data: not stated" in card and "at a FAR" not in card


def test_a_far_that_is_out_of_reach_leaves_no_file(model: Model, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"far=0\.0001: the 60 impostor pairs of noisy support"):
        next(judged(model, tmp_path / "x", pairs, far=1e-4))
    assert not list(tmp_path.iterdir())


def test_a_file_that_was_written_but_not_judged_is_named(
    model: Model,
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def interrupted(path: Path, threshold: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("facerec.reporting.exported.store_threshold", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(judged(model, tmp_path / "x", pairs))
    assert f"{tmp_path / 'x'}: was written, but not judged, so it has no threshold and no card" in caplog.text


def test_a_threshold_needs_targets(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"far=0\.1: needs eval\.targets"):
        next(judged(model, tmp_path / "x", far=0.1))


# Thresholds -----------------------------------------------------------------------------------------------


def scores(genuine: int = 2000, impostor: int = 2000):
    """A result whose cosines are normal: genuine about 0.6, impostor about 0.1, deviation 0.1."""
    generator = np.random.default_rng(0)
    same = np.arange(genuine + impostor) < genuine
    cosine = np.where(same, 0.6, 0.1) + generator.normal(0, 0.1, len(same))
    embedding = np.zeros((2 * len(same), 2))
    embedding[::2, 0] = 1
    embedding[1::2] = np.stack([cosine, np.sqrt(1 - cosine**2)], axis=1)
    return verify(embedding, same), cosine, same


def test_a_threshold_keeps_its_far_and_no_lower_one_does() -> None:
    result, cosine, same = scores()
    threshold = choose_threshold("set", result)
    assert threshold.far == 1e-3 and threshold.set == "set"
    accepted = cosine[~same] > threshold.cosine + 1e-12
    assert accepted.mean() <= 1e-3 < (cosine[~same] > threshold.cosine - 1e-9).mean()
    assert threshold.tar == pytest.approx((cosine[same] > threshold.cosine).mean())


def test_a_probability_is_calibrated() -> None:
    threshold = choose_threshold("set", scores()[0])
    for cosine in (0.2, 0.35, 0.5):  # the log-odds of two normals of deviation 0.1
        right = 1 / (1 + math.exp(-((cosine - 0.1) ** 2 - (cosine - 0.6) ** 2) / 0.02))
        assert threshold.probability(cosine) == pytest.approx(right, abs=0.03)
    rare = threshold.probability(0.35, prior=0.01)
    assert rare == pytest.approx(0.01, abs=0.003) and threshold.probability(-1) >= 0


def test_a_far_that_the_set_does_not_support_is_refused() -> None:
    result = scores(50, 50)[0]
    assert choose_threshold("few", result).far == 0.1
    with pytest.raises(ConfigError, match=r"far=0\.001: the 50 impostor pairs of few support 0\.02 and more"):
        choose_threshold("few", result, 1e-3)


# The hub --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(model: Model, tmp_path: Path) -> Path:
    return export(model, tmp_path / "face", "hub")


def test_a_repository_is_read_from_the_hub(
    folder: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants

    cache = tmp_path / "cache" / "models--me--face"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, cache / "snapshots" / ("0" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    opened = load_model("me/face", device="cpu")
    assert cosines(model, opened, pixels(2, size=SIDE)).min() > 1 - 1e-6
    with pytest.raises(CheckpointError, match="ckpt=me/other: no such file or folder, and"):
        load_model("me/other")


def test_a_folder_is_uploaded_when_asked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")

    class LocalHub:
        """The hub as a folder of this machine."""

        def create_repo(self, name: str, exist_ok: bool) -> str:
            if name != "me/face":
                raise ValueError("not yours\nat all")
            (tmp_path / "hub" / name).mkdir(parents=True, exist_ok=exist_ok)
            return f"file:{name}"

        def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
            shutil.copytree(folder_path, tmp_path / "hub" / repo_id, dirs_exist_ok=True)

    monkeypatch.setattr(huggingface_hub, "HfApi", LocalHub)
    assert hub.upload(folder, "me/face") == "file:me/face"
    assert load_model(tmp_path / "hub" / "me" / "face", device="cpu").step == 7
    with pytest.raises(FacerecError, match=r"upload=you/face: not yours; .* is complete"):
        hub.upload(folder, "you/face")


def test_a_folder_of_cvlface_says_its_colours_and_runs_no_code(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    backbone = create_backbone("mobilefacenet", embedding_size=WIDTH).eval()
    weights = {f"model.net.{name}": value for name, value in backbone.state_dict().items()}
    conf = {"color_space": "BGR", "input_size": [3, 112, 112], "name": "ir50", "output_dim": WIDTH}
    config = {"architectures": ["CVLFaceRecognitionModel"], "conf": conf}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "wrapper.py").write_text("raise SystemExit")
    save_file(weights, tmp_path / "model.safetensors")
    opened = load_model(tmp_path, device="cpu")
    assert opened.input == Preprocessing(channels="bgr") and opened.knows_input

    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pretrained_model").mkdir()
    bare = {name.removeprefix("model."): value for name, value in weights.items()}
    torch.save(bare, tmp_path / "pretrained_model" / "model.pt")
    again = load_model(tmp_path, device="cpu")
    assert cosines(opened, again, pixels(2, size=112)).min() > 1 - 1e-6


def test_a_folder_holds_weights_to_start_from(folder: Path, model: Model) -> None:
    other = create_backbone("mobilefacenet", embedding_size=WIDTH, input_size=SIDE)
    load_pretrained(other, folder)
    assert torch.equal(other.linear.weight, model.backbone.linear.weight)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"backbone": {"name": "nope"}}, r"its backbone nope is none of adaface_ir_101, "),
        ({"input": "x"}, r"its metadata facerec\.input is damaged; export it again"),
        (
            {"threshold": {"cosine": "a"}},
            r"its threshold cannot be used: threshold\.cosine=a: must be a number",
        ),
    ],
)
def test_what_a_configuration_says_wrongly_is_said_with_its_file(
    folder: Path, changed: dict[str, Any], said: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changed))
    with pytest.raises(CheckpointError, match=rf"^ckpt=.*model\.safetensors: {said}"):
        load_model(folder, device="cpu")


def test_the_words_of_another_librarys_configuration_are_not_taken_for_ours(
    folder: Path, model: Model
) -> None:
    (folder / "config.json").write_text('{"model_type": "other", "backbone": "resnet50", "threshold": 0.5}')
    own = {"name": "mobilefacenet", "embedding_size": WIDTH, "input_size": SIDE}
    assert load_model(folder, device="cpu", backbone=own).threshold == model.threshold


@pytest.mark.parametrize("content", ["{", "[]", '{"input": {"mean": "x"}}', "[" * 100_000])
def test_a_damaged_configuration_is_said(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json: is damaged|cannot be used|metadata"):
        load_model(folder, device="cpu")
