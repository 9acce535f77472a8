"""Which number a set is judged by: never one that may mislead."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from facerec.cli.train import log_outcome
from facerec.errors import ConfigError
from facerec.evaluation.judgement import better, by_one_number, check_select
from facerec.evaluation.protocols.verification import require_select
from facerec.evaluation.settings import EvalSettings
from facerec.evaluation.statistics.comparison import _resampled, _weights, compare
from facerec.evaluation.statistics.folds import cross_validate
from facerec.evaluation.verify import VerificationResult, verify
from facerec.packs.verification import VerificationSet
from facerec.reporting.evaluated import Evaluated, by_one_yardstick
from facerec.reporting.evaluation import write_all
from facerec.reporting.loggers.base import Figures
from facerec.reporting.loggers.console import Console
from facerec.reporting.report import report_html
from facerec.reporting.tables import comparison_lines
from facerec.training.state import Position
from tests.tiny_run import TinyFaces, tiny_trainer


def made(
    noise: float, *, seed: int = 0, scale: float = 1.0, sides: bool = False, **settings: Any
) -> VerificationResult:
    """400 pairs, three of eight of them genuine, of a model whose embeddings are `noise` off their identity.

    `scale`: how far from each other all embeddings are, as fresh networks have them near together. `sides`:
    genuine pairs first, as a list sorted by its answers has them.
    """
    rng = np.random.default_rng(0)
    same_N = np.sort(np.arange(400) % 8 < 3)[::-1] if sides else np.arange(400) % 8 < 3
    centre = rng.normal(size=(400, 2, 16))
    centre[same_N, 1] = centre[same_N, 0]
    noisy = centre + noise * np.random.default_rng(100 + seed).normal(size=centre.shape)
    common = np.zeros(16)
    common[0] = 0 if scale == 1 else 5 / scale
    return verify((noisy + common).reshape(-1, 16), same_N, **settings)


def evaluated(results: dict[str, VerificationResult]) -> list[Evaluated]:
    return [Evaluated(name, {"set": result}, {}, []) for name, result in results.items()]


# Folds of one kind -----------------------------------------------------------------------------------------


def test_folds_of_one_kind_are_judged_by_auc_and_say_what_one_answer_alone_would_score() -> None:
    result = made(0.7, sides=True, metrics=["accuracy"], bootstrap=20)
    assert result.score_key == "auc" and result.score == result.auc and result.eer is not None
    assert result.to_dict()["judged_by"] == "auc"
    (note,) = [note for note in result.notes if "hold one kind" in note]
    assert "answering always different would score 0.625" in note
    assert result.lines()[-1].endswith("judged by AUC")
    trusted = {number.key: number.trusted for number in result.numbers()}
    assert trusted == {"accuracy": False, "accuracy_exact": False, "auc": True, "eer": True}
    assert made(0.7).score_key == "accuracy"


def test_a_better_model_is_not_called_worse_by_the_accuracy_of_folds_of_one_kind(tmp_path: Path) -> None:
    results = {"random": made(9.0, sides=True), "trained": made(0.7, sides=True, seed=1)}
    found = compare(results, bootstrap=300)
    assert [one.number for one in found] == ["AUC", "EER"]
    assert found[0].difference == results["random"].auc - results["trained"].auc
    assert all(one.p is not None and one.p < 0.01 and one.first_only is None for one in found)
    low, high = found[0].difference_interval or (0, 0)
    assert low < found[0].difference < high < 0
    page = report_html(evaluated(results), {"set": found}, figures=False)
    assert page.count("trained is better") == 2 and "random is better" not in page
    assert "McNemar" not in page and "best is trained, AUC" in page
    assert 'best" data-label="Accuracy"' not in page and 'best" data-label="AUC"' in page
    lines = comparison_lines({"set": found})
    assert "AUC -0." in lines[0] and "bootstrap p" in lines[0] and "McNemar" not in lines[0]
    written = write_all(tmp_path, evaluated(results), {"set": found}, figures=False)
    entry = json.loads(written[1].read_text())["comparisons"]["set"][0]
    assert entry["number"] == "AUC" and entry["first_only"] is None


def test_equal_models_do_not_differ_and_without_bootstrap_nothing_is_tested() -> None:
    one, twin = made(1.5, sides=True), made(1.5, sides=True)
    assert [found.p for found in compare({"a": one, "b": twin}, bootstrap=50)] == [1.0, 1.0]
    pair = {f"seed {seed}": made(1.5, sides=True, seed=seed) for seed in (1, 2)}
    assert all((found.p_holm or 0) > 0.05 for found in compare(pair, bootstrap=400))
    (auc, eer) = compare({"a": one, "b": twin})
    assert auc.p is None and eer.difference_interval is None
    assert "not tested (eval.bootstrap=0)" in comparison_lines({"set": [auc]})[0]
    assert "not tested" in report_html(evaluated({"a": one, "b": twin}), {"set": [auc, eer]}, figures=False)


@pytest.mark.parametrize("identities", [False, True])
def test_the_paired_bootstrap_draws_the_same_pairs_for_both_models(identities: bool) -> None:
    one, other = made(1.0, sides=True), made(1.1, sides=True, seed=1)
    if identities:
        who = np.arange(800).reshape(-1, 2) % 40
        who[one.issame_N, 1] = who[one.issame_N, 0]
        who[~one.issame_N, 1] = who[~one.issame_N, 0] + 40
        one, other = replace(one, identity_N2=who), replace(other, identity_N2=who)
    (weight_RN,) = _weights(one, 30, seed=7)
    naive = []
    for weight_N in weight_RN:
        rows = np.repeat(np.arange(400), weight_N)
        naive.append([roc_auc_score(r.issame_N[rows], -r.distance_N[rows]) for r in (one, other)])
    auc = one.metrics["auc"].resampled
    drawn = np.stack([auc(_resampled(weight_RN, result)) for result in (one, other)], axis=1)
    assert drawn == pytest.approx(np.array(naive))
    found = compare({"a": one, "b": other}, bootstrap=30, seed=7)[0]
    gain = drawn[:, 0] - drawn[:, 1]
    assert found.difference_interval == pytest.approx(np.quantile(gain, [0.025, 0.975]))
    assert found.p == pytest.approx(min(1, 2 * (1 + min((gain <= 0).sum(), (gain >= 0).sum())) / 31))


# A grid that cannot resolve the distances ------------------------------------------------------------------


def test_distances_that_the_grid_cannot_resolve_are_judged_by_exact_thresholds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    result = made(0.7, scale=0.04, bootstrap=30, name="lfw")
    assert np.quantile(result.distance_N, 0.95) < 0.01
    assert result.accuracy < 0.7 and result.accuracy_exact > 0.85 and result.auc > 0.9
    assert result.score_key == "accuracy_exact" and result.score == result.accuracy_exact
    (note,) = [note for note in result.notes if "published grid has" in note]
    assert f"lfw: {note}" in caplog.text and f"{result.accuracy:.5f}" in note
    exact = cross_validate(result.distance_N, result.issame_N, 10, "exact")
    right_N = (result.distance_N < np.repeat(exact.threshold_F, 40)) == result.issame_N
    assert (result.right_X == right_N).all() and right_N.mean() == pytest.approx(result.accuracy_exact)
    assert len(result.wrong_genuine) + len(result.wrong_impostor) == (~right_N).sum()
    assert result.accuracy_interval is None
    assert result.accuracy_exact_interval[0] < result.accuracy_exact < result.accuracy_exact_interval[1]
    assert result.headline is not None and result.headline.interval == result.accuracy_exact_interval


def test_a_usual_model_and_exact_thresholds_are_judged_by_the_accuracy() -> None:
    usual, exact = made(0.7), made(0.7, scale=0.04, thresholds="exact")
    for result in (usual, exact):
        assert result.score_key == "accuracy"
        assert not [note for note in result.notes if "grid" in note]
    assert [n.key for n in usual.numbers()][:2] == ["accuracy", "accuracy_exact"]
    assert "accuracy_exact" not in [n.key for n in exact.numbers()]


def test_models_are_compared_by_the_number_that_suits_all_of_them() -> None:
    fine, coarse = made(0.7), made(0.7, scale=0.04, seed=1)
    both = by_one_number([fine, coarse])
    assert [one.score_key for one in both] == ["accuracy_exact"] * 2
    judged = by_one_yardstick(evaluated({"fine": fine, "coarse": coarse}))
    assert [one.results["set"].score for one in judged] == [fine.accuracy_exact, coarse.accuracy_exact]
    (found,) = compare({one.name: one.results["set"] for one in judged}, bootstrap=50)
    assert found.number == "Exact accuracy" and found.decisions == 400
    assert found.difference == pytest.approx(fine.accuracy_exact - coarse.accuracy_exact)
    assert found.p > 0.01, "equal models, of which the grid sees one only"
    by_grid = coarse.judged_by("accuracy")
    assert compare({"fine": fine, "coarse": by_grid})[0].p < 1e-10, "what the grid alone would have said"


# What chooses best.pt --------------------------------------------------------------------------------------


def test_select_names_the_number_that_chooses_the_best(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    results = {"a": made(0.7), "b": made(1.1, seed=1)}
    one, other = results.values()
    last = [one.tar_at_far["1e-2"], other.tar_at_far["1e-2"]]  # 250 impostor pairs: no lower FAR
    for select, expected in {
        None: (one.accuracy + other.accuracy) / 2,
        "accuracy_exact": (one.accuracy_exact + other.accuracy_exact) / 2,
        "auc": (one.auc + other.auc) / 2,
        "eer": -(one.eer + other.eer) / 2,
        "tar_at_far": sum(last) / 2,
        "tar_at_far_1e-1": (one.tar_at_far["1e-1"] + other.tar_at_far["1e-1"]) / 2,
    }.items():
        assert better(results, select, float("-inf")) == pytest.approx(expected)
        assert better(results, select, expected + 1e-9) is None
    assert f"best.pt: EER {(one.eer + other.eer) / 2:.5f} (mean of 2 sets) is the best so far" in caplog.text


def test_a_run_ends_with_the_number_that_chose_its_best_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    trainer = tiny_trainer(tmp_path, trainer_max_steps=1)
    trainer.fit()
    coarse = made(0.7, scale=0.04)
    trainer.results = {"lfw": coarse}
    (tmp_path / "checkpoints").mkdir(exist_ok=True)
    (tmp_path / "checkpoints" / "best.pt").touch()
    trainer.position.best_step, trainer.position.best = 0, 0.8
    log_outcome(trainer, tmp_path, resumable=True)
    assert f"lfw: exact accuracy {coarse.accuracy_exact:.5f} ± " in caplog.text
    assert (
        "has best.pt of step 0, before training, the best by exact accuracy (0.80000, lfw), and"
        in caplog.text
    )


def test_the_best_is_compared_in_one_number_and_counts_no_more_once_another_must_judge(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    fine, coarse = made(0.7), made(0.7, scale=0.04, seed=1)
    assert (fine.score_key, coarse.score_key) == ("accuracy", "accuracy_exact")
    at = Position(step=4)
    assert at.improved({"a": fine}, None) and at.best == fine.accuracy
    at.step = 5
    assert at.improved({"a": coarse}, None), "whichever is higher: they are other numbers"
    assert (
        "best.pt: judged by accuracy_exact from here on; the best by accuracy counts no more" in caplog.text
    )
    assert (at.judged_by, at.best, at.best_step) == ("accuracy_exact", coarse.accuracy_exact, 5)
    at.step = 6
    assert at.improved({"a": fine}, None) == (fine.accuracy_exact > coarse.accuracy_exact)
    assert at.judged_by == "accuracy_exact", "no change back, which would let each evaluation win"


@pytest.mark.parametrize("select", ["acuracy", "tar", "rank_1", ""])
def test_a_number_that_there_is_not_is_refused_before_the_data(select: str) -> None:
    with pytest.raises(ConfigError, match=r"eval.select=.*must be null or one of accuracy, accuracy_exact"):
        check_select(EvalSettings(select=select))


def test_a_number_that_the_pairs_do_not_support_is_refused_before_the_first_step() -> None:
    pairs = VerificationSet("mine", [b""], np.zeros(80, np.int64), np.arange(40) % 2 == 0)
    require_select([pairs], EvalSettings(select="tar_at_far_1e-1"))
    with pytest.raises(ConfigError, match=r"eval.select=tar_at_far_1e-3: is no number of mine, whose pairs"):
        require_select([pairs], EvalSettings(select="tar_at_far_1e-3"))


def pairs_of_tiny_faces() -> VerificationSet:
    faces = TinyFaces()
    index_2N = np.random.default_rng(1).integers(0, 30, 80)
    same_N = faces.label_N[index_2N[0::2]] == faces.label_N[index_2N[1::2]]
    return VerificationSet("made", [faces.encoded(i) for i in range(30)], index_2N, same_N)


def test_the_trainer_keeps_the_best_by_the_number_selected(tmp_path: Path) -> None:
    settings = {"eval_every_steps": 1, "eval_select": "eer", "eval_bootstrap": 0}
    trainer = tiny_trainer(tmp_path, trainer_max_steps=4, **settings)
    trainer.verification_sets = [pairs_of_tiny_faces()]
    seen: list[float] = []
    trainer.reporters.append(_Eers(seen))
    trainer.fit()
    assert len(seen) == 4 and trainer.position.best == -min(seen)


def test_the_untrained_network_stands_beside_the_trained_one_and_notes_are_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    settings = {"eval_every_steps": 2, "eval_at_start": True, "eval_bootstrap": 5}
    trainer = tiny_trainer(tmp_path, trainer_max_steps=4, **settings)
    trainer.verification_sets = [pairs_of_tiny_faces()]
    trainer.reporters.append(Console(folder=tmp_path, figures=Figures()))
    trainer.fit()
    lines = caplog.messages
    assert next(line for line in lines if "Accuracy-Flip" in line).startswith("[made][0]")
    header, before, after = lines[-3:]
    assert header.split()[:3] == ["target", "model", "Accuracy"] and "AUC" in header
    assert before.split()[:3] == ["made", "before", "training"] and after.split()[:3] == ["made", "step", "4"]
    assert caplog.text.count("needs more than the") == 1
    assert sum("95 % interval over pairs" in line for line in lines) == 3, "at each evaluation"
    again = tiny_trainer(tmp_path, trainer_max_steps=5, **settings)
    again.verification_sets = trainer.verification_sets
    again.resume(tmp_path / "checkpoints" / "last.pt")
    caplog.clear()
    again.fit()
    assert "[made][0]" not in caplog.text and "[made][5]" in caplog.text


class _Eers:
    path = Path("memory")

    def __init__(self, seen: list[float]) -> None:
        self.seen = seen

    def __getattr__(self, event: str) -> Any:
        if event == "evaluated":
            return lambda run, results: self.seen.append(results["made"].eer)
        return lambda *details: None
