"""The config group `logger`: each can be chosen alone, settings are checked early, figures are drawn once."""

from __future__ import annotations

import contextlib
import csv
import json
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from facerec.cli.mistakes import config_folder
from facerec.errors import ConfigError, UserError
from facerec.reporting import verification_figures
from facerec.reporting.loggers import LOGGERS, make_loggers
from tests.test_training import At
from tests.tiny_run import made_set, tiny_trainer

USUAL = ["console", "metrics", "tensorboard", "results", "report"]


def config_of(*overrides: str) -> Any:
    """facerec-train's configuration, its interpolations left as they are."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        composed = compose("train", list(overrides))
    return {key: OmegaConf.to_container(composed[key]) for key in ("logger", "trainer") if key in composed}


@pytest.mark.parametrize("name", LOGGERS.names())
def test_each_logger_can_be_chosen_alone_and_follows_a_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in ("wandb", "mlflow"):
        pytest.importorskip(name, reason=f"the extra {name} is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    loggers = make_loggers(config_of(f"logger=[{name}]"), tmp_path)
    assert [type(one) for one in loggers] == [LOGGERS.builder(name)]
    tiny_trainer(tmp_path, trainer_max_steps=2, reporters=loggers).fit()


def test_the_usual_ones_are_chosen_unless_others_are_and_a_profile_is_added(tmp_path: Path) -> None:
    def chosen(*overrides: str) -> list[str]:
        loggers = make_loggers(config_of(*overrides), tmp_path)
        return [name for one in loggers for name in LOGGERS.names() if LOGGERS.builder(name) is type(one)]

    assert chosen() == USUAL
    assert chosen("trainer.profile=true") == [*USUAL, "profile"]
    assert chosen("logger=[profile,console]", "trainer.profile=true") == ["profile", "console"]
    assert chosen("logger=[]") == []


def test_settings_of_loggers_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"logger\.metrics\.every=2: no such setting"):
        make_loggers(config_of("+logger.metrics.every=2"), tmp_path)
    with pytest.raises(ConfigError, match="logger=consol: no such logger; did you mean console"):
        make_loggers(config_of("logger.console.name=consol"), tmp_path)


def test_figures_are_drawn_once_for_all_loggers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn = []

    def counted(name: str, result: object) -> Mapping[str, Any]:
        drawn.append(name)
        return figures_of(name, result)

    figures_of = verification_figures.figures_of
    monkeypatch.setattr(verification_figures, "figures_of", counted)
    trainer = tiny_trainer(tmp_path, trainer_epochs=2, reporters=make_loggers(config_of(), tmp_path))
    trainer.verification_sets = [made_set()]
    trainer.fit()
    assert drawn == ["made", "made"]  # once per evaluation, for TensorBoard and the files
    assert (tmp_path / "made_roc.png").is_file()


# -- resumed and repeated runs


def parts(folder: Path, names: list[str], *settings: str) -> None:
    """A run of 15 steps with an evaluation every five: killed at step 8, resumed, then started once more."""
    folder.mkdir(exist_ok=True)
    for kill in (True, False, False):
        loggers = make_loggers(config_of(f"logger=[{','.join(names)}]", *settings), folder)
        trainer = tiny_trainer(
            folder, trainer_save_every=6, eval_bootstrap=0, eval_figures=False, reporters=loggers
        )
        trainer.verification_sets = [made_set()]
        if (folder / "checkpoints" / "last.pt").is_file():
            trainer.resume(folder / "checkpoints" / "last.pt")
        if kill:
            trainer.reporters.append(At(8, lose_power))
        with contextlib.suppress(ZeroDivisionError):
            trainer.fit()


def lose_power(_: Any) -> None:
    raise ZeroDivisionError


def test_the_table_of_numbers_has_each_step_once(tmp_path: Path) -> None:
    parts(tmp_path, ["metrics", "csv"])
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [row["step"] for row in rows if row["loss"]] == [str(step) for step in range(1, 16)]
    evaluations = [row for row in rows if row["mean/accuracy"]]
    assert [row["step"] for row in evaluations] == ["5", "10", "15"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in lines] == [int(row["step"]) for row in rows]
    assert float(evaluations[-1]["made/auc"]) == lines[-1]["made/auc"]


def test_tensorboard_has_settings_histograms_the_first_batch_and_faces_and_no_step_twice(
    tmp_path: Path,
) -> None:
    parts(
        tmp_path, ["tensorboard"], "logger.tensorboard.histogram_every=5", "logger.tensorboard.projector=12"
    )
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0, "histograms": 0})
    events.Reload()
    tags = events.Tags()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 16))
    for key in ("accuracy", "accuracy_exact", "auc", "tar_at_far_1e-1"):
        for name in ("made", "mean"):
            assert [event.step for event in events.Scalars(f"val_{name}/{key}")] == [5, 10, 15], (name, key)
    assert sorted(tag.partition("/")[0] for tag in tags["scalars"])[0] == "train", "first in the list"
    for name in ("target_cosine", "hardest_cosine"):
        assert [event.step for event in events.Histograms(f"train_cosines/{name}")] == [1, 5, 10, 15]
    assert any(tag.startswith("train_first_batch") for tag in tags["images"])
    (text,) = events.Tensors("config/text_summary")
    assert b"name: arcface" in text.tensor_proto.string_val[0]
    assert "_hparams_/session_start_info" in events.summary_metadata
    projector = (tmp_path / "tensorboard" / "projector_config.pbtxt").read_text()
    assert projector.count("embeddings {") == 1 and "sprite" in projector
    (folder,) = (tmp_path / "tensorboard").glob("00015/*")
    assert len((folder / "tensors.tsv").read_text().splitlines()) == 12
    assert len((folder / "metadata.tsv").read_text().splitlines()) == 12
    with Image.open(folder / "sprite.png") as sprite:
        assert sprite.size == (4 * 48, 4 * 48)


def leveldb_records(log: bytes, start: int) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, whose first block has `start` bytes before it."""
    at, parts = 0, b""
    while at + 7 <= len(log):
        left = 32768 - (at + start) % 32768
        if left < 7:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", log, at + 4)
        parts, at = parts + log[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def test_weights_and_biases_offline_gets_each_step_once_in_one_run(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    from wandb.proto import wandb_internal_pb2

    parts(tmp_path, ["wandb"], "logger.wandb.mode=offline")
    steps, accuracies, ids = [], [], set()
    for path in sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb")):
        ids.add(path.stem)
        for data in leveldb_records(path.read_bytes()[7:], start=7):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            names = {"/".join(one.nested_key) or one.key: one.value_json for one in record.history.item}
            if "train/loss" in names:
                steps.append(int(names["step"]))
            if "val_made/accuracy" in names:
                accuracies.append(int(names["step"]))
    assert (steps, accuracies) == (list(range(1, 16)), [5, 10, 15])
    assert len(ids) == 1, "resumed parts are one run"


def test_mlflow_gets_settings_and_each_step_once_in_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlruns").as_uri()
    parts(tmp_path, ["metrics", "mlflow"], f"logger.mlflow.uri={uri}")
    client = mlflow.MlflowClient(uri)
    (experiment,) = (one for one in client.search_experiments() if one.name == "facerec")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["head.name"] == "arcface"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted(one.step for one in history) == list(range(1, 16))
    evaluations = client.get_metric_history(run.info.run_id, "val_made/accuracy")
    assert sorted(one.step for one in evaluations) == [5, 10, 15]
    names = {one.path for one in client.list_artifacts(run.info.run_id)}
    assert {"metrics.jsonl", "train_first_batch.png"} <= names


def test_a_service_that_is_not_installed_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    (logger,) = make_loggers(config_of("logger=[mlflow]"), tmp_path)
    with pytest.raises(UserError, match=r"logger=mlflow: needs an extra: pip install 'facerec\[mlflow\]'"):
        tiny_trainer(tmp_path, reporters=[logger]).fit()
