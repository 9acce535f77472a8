"""Operating points, calibration, rejection by quality, groups and the matrix of models and sets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import beta, binom

from facerec.errors import ConfigError, DamagedDataError
from facerec.evaluation.details import Side, detailed, read_side
from facerec.evaluation.settings import EvalSettings
from facerec.evaluation.statistics.operating import (
    cross_fitted,
    error_versus_reject,
    fit_isotonic,
    fit_logistic,
    group_rates,
    largest_gap,
    operating_points,
    reliability,
)
from facerec.evaluation.statistics.separation import Separation
from facerec.evaluation.verify import VerificationResult, verify
from facerec.packs.verification import VerificationSet
from facerec.reporting.evaluated import Evaluated
from facerec.reporting.report import report_html
from facerec.reporting.tables import matrix

PAIRS = 2000
SAME_N = np.arange(PAIRS) % 2 == 0


def made(noise: float = 1.0, seed: int = 0, **settings: int) -> VerificationResult:
    """Pairs of embeddings of which every fifth is noisier, and shorter."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(PAIRS, 2, 16))
    centre[SAME_N, 1] = centre[SAME_N, 0]
    poor = np.where(np.arange(2 * PAIRS) % 5 == 0, 3.0, 1.0).reshape(PAIRS, 2, 1)
    noisy = centre + noise * poor * rng.normal(size=centre.shape)
    unit = noisy / np.linalg.norm(noisy, axis=-1, keepdims=True)
    return verify((unit * (20 / poor)).reshape(-1, 16), SAME_N, **settings)


@pytest.fixture(scope="module")
def result() -> VerificationResult:
    return made(0.6, bootstrap=30)


def test_operating_points_are_thresholds_with_the_rates_counted_there(result: VerificationResult) -> None:
    points = operating_points(Separation.of(result.distance_N, SAME_N), result.tar_at_far_interval)
    assert list(points) == ["1e-1", "1e-2", "1e-3"], "1,000 impostor pairs support no lower FMR"
    for target, point in points.items():
        taken_N = result.distance_N < point.threshold
        assert point.fmr == taken_N[~SAME_N].mean() <= float(target)
        assert point.fnmr == pytest.approx(1 - taken_N[SAME_N].mean())
        assert point.fnmr == pytest.approx(1 - result.tar_at_far[target])
        assert (result.distance_N <= point.threshold)[~SAME_N].mean() > float(target), "the largest such one"
        assert point.fnmr_interval == tuple(1 - end for end in reversed(result.tar_at_far_interval[target]))


def test_the_interval_of_a_threshold_covers_that_of_the_population() -> None:
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(400):
        impostor = rng.uniform(0, 4, 500)
        point = operating_points(Separation(np.array([0.1]), impostor), {})["1e-1"]
        low, high = point.threshold_interval
        inside += low <= 0.4 <= high
    assert 0.93 < inside / 400 < 0.99
    few = operating_points(Separation(np.array([0.1]), rng.uniform(0, 4, 1000)), {})["1e-3"]
    assert binom.ppf(0.025, 1000, 1e-3) == 0 and few.threshold_interval[0] == 0


@pytest.mark.parametrize("method", ["logistic", "isotonic"])
def test_probabilities_are_those_observed_and_never_of_the_pair_itself(method: str) -> None:
    rng = np.random.default_rng(0)
    same_N = rng.random(20_000) < 0.2
    cosine_N = rng.normal(np.where(same_N, 0.4, 0.1), 0.1)
    truth_N = 1 / (1 + np.exp(-((cosine_N - 0.25) * 0.3 / 0.01)))  # Bayes at even odds
    fold_N = np.arange(20_000) % 10
    probability_N = cross_fitted(cosine_N, same_N, fold_N, method)
    assert probability_N is not None and np.abs(probability_N - truth_N).mean() < 0.02
    found = reliability(probability_N, same_N)
    assert found.ece < 0.02 and found.observed_B == pytest.approx(found.predicted_B, abs=0.06)
    fit = {"logistic": fit_logistic, "isotonic": fit_isotonic}[method]
    rest = fold_N != 3
    assert probability_N[~rest] == pytest.approx(fit(cosine_N[rest], same_N[rest])[0](cosine_N[~rest]))
    weight_N = np.where(same_N, 0.5 / same_N.sum(), 0.5 / (~same_N).sum())
    assert found.brier == pytest.approx(np.average((probability_N - same_N) ** 2, weights=weight_N))


def test_wrong_probabilities_are_seen() -> None:
    same_N = np.arange(1000) % 2 == 0
    half = reliability(np.full(1000, 0.5), same_N)
    assert (half.ece, half.brier, half.log_loss) == pytest.approx((0, 0.25, 1))
    sure = reliability(np.full(1000, 0.9), same_N)
    assert sure.ece == pytest.approx(0.4)
    assert cross_fitted(np.linspace(0, 1, 10), np.arange(10) < 5, np.arange(10) // 5, "logistic") is None


def test_rejection_leaves_the_errors_of_the_better_pairs() -> None:
    rng = np.random.default_rng(1)
    distance_N, quality_N2 = rng.uniform(0, 2, 200), rng.uniform(0, 1, (200, 2))
    same_N = rng.random(200) < 0.5
    curve = error_versus_reject(distance_N, same_N, quality_N2, 1.0)
    genuine = np.flatnonzero(same_N)
    by_quality = genuine[np.argsort(quality_N2.min(1)[genuine])]
    for rejected, fnmr in zip(curve.rejected_C, curve.fnmr_C, strict=True):
        kept = by_quality[int(rejected * len(by_quality)) :]
        assert fnmr == pytest.approx((distance_N[kept] >= 1.0).mean())
    flat = error_versus_reject(distance_N, same_N, np.ones((200, 2)), 1.0)
    assert flat.fnmr_C == pytest.approx(np.full(20, flat.fnmr_C[0])) and flat.auc == pytest.approx(
        flat.fnmr_C[0]
    )
    perfect = error_versus_reject(distance_N, same_N, -np.repeat(distance_N[:, None], 2, 1), 1.0)
    assert perfect.auc == pytest.approx(perfect.best) and perfect.best < curve.auc


def test_groups_are_counted_at_one_threshold_and_their_largest_gap_named() -> None:
    rng = np.random.default_rng(2)
    distance_N, same_N = rng.uniform(0, 2, 600), rng.random(600) < 0.5
    group_N2 = rng.choice(["f", "m", ""], (600, 2))
    rates = group_rates(distance_N, same_N, group_N2, 1.2)
    assert [one.group for one in rates] == ["f", "m"]
    for one in rates:
        of = [i for i in range(600) if group_N2[i, 0] == group_N2[i, 1] == one.group]
        missed = [distance_N[i] >= 1.2 for i in of if same_N[i]]
        taken = [distance_N[i] < 1.2 for i in of if not same_N[i]]
        assert (one.genuine, one.impostor) == (len(missed), len(taken))
        assert (one.fnmr, one.fmr) == (pytest.approx(np.mean(missed)), pytest.approx(np.mean(taken)))
        k, n = sum(missed), len(missed)
        exact = beta.ppf(0.025, k, n - k + 1), beta.ppf(0.975, k + 1, n - k)
        assert one.fnmr_interval == pytest.approx(exact)
    worst, best, gap = largest_gap(rates, "fnmr")
    by_name = {one.group: one.fnmr for one in rates}
    assert gap == by_name[worst] - by_name[best] > 0
    assert largest_gap(rates[:1], "fnmr") is None


def test_the_details_stand_in_results_and_report(result: VerificationResult) -> None:
    side = Side({"sex": np.repeat(np.array(["f", "m"]), PAIRS // 2).repeat(2).reshape(-1, 2)})
    full = detailed(result, side, EvalSettings(calibration="isotonic"))
    entry = json.loads(json.dumps(full.to_dict()))
    assert set(entry["operating_points"]["1e-2"]) == {
        *("threshold", "threshold_interval", "fmr", "fnmr", "fnmr_interval")
    }
    assert entry["calibration"]["method"] == "isotonic" and entry["calibration"]["ece"] < 0.1
    erc = entry["error_versus_reject"]
    assert erc["fmr"] == "1e-3" and erc["auc_best"] < erc["auc"] < erc["fnmr"][0], "short embeddings are poor"
    groups = entry["groups"]["sex"]
    assert groups["threshold"] == entry["operating_points"]["1e-3"]["threshold"]
    assert groups["groups"]["f"]["genuine"] == 500 and groups["largest_gap"]["fnmr"]["gap"] >= 0
    page = report_html(
        [Evaluated("a", {"lfw": full}, {}, [("Backbone", "x"), ("Preprocessing", "y")])], {}, figures=False
    )
    for said in ("Operating points: lfw", "ISO/IEC 19795-1", "Groups by sex: lfw", "Calibration, isotonic"):
        assert said in page
    for kind in ("erc", "reliability"):
        assert f'data-chart="{kind}"' in page
    plain = detailed(result, Side({}), EvalSettings(quality=None))
    assert set(plain.details) == {"operating_points"}


def a_set(pairs: int = 4, identities: bool = True) -> VerificationSet:
    names = np.array([f"p{i}" for i in range(2 * pairs)]) if identities else None
    return VerificationSet("lfw", [b""], np.zeros(2 * pairs, np.int64), np.zeros(pairs, bool), None, names)


def test_groups_and_quality_are_read_by_identity_or_pair(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    people, poses, quality = (tmp_path / name for name in ("people.csv", "poses.csv", "quality.csv"))
    people.write_text("identity,sex,age\n" + "".join(f"p{i},{'fm'[i % 2]},{i}\n" for i in range(7)))
    side = read_side(a_set(), EvalSettings(groups=str(people)), say=True)
    assert side.groups["sex"].tolist() == [["f", "m"]] * 3 + [["f", ""]]
    assert "lfw: " in caplog.text and "lacks 1 identity whose" in caplog.text
    poses.write_text("pair,pose\n1,side\n0,front\n2,side\n3,front\n")
    side = read_side(a_set(identities=False), EvalSettings(groups=str(poses)))
    assert side.groups["pose"][:, 0].tolist() == ["front", "side", "side", "front"]
    quality.write_text("pair,first,second\n0,1,2\n1,3,4\n2,5,6\n3,7,8\n")
    side = read_side(a_set(), EvalSettings(quality=str(quality)))
    assert side.quality_N2.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("groups", "name,sex\np0,f\n", "line 1: must be identity,sex,… or pair,pose,…, not name,sex"),
        ("groups", "identity\np0\n", "line 1: must be identity,sex"),
        ("groups", "identity,sex\np0\n", "row 2: has 1 field, the first line 2"),
        ("groups", "identity,sex\np0,f\np0,m\n", "row 3: p0 stood before, with other values"),
        (
            "groups",
            "identity,sex\nann,f\n",
            "none of the identities of lfw, such as p0, but others, such as ann",
        ),
        ("groups", "identity,sex,sex\np0,f,m\n", "line 1: must name each column, once"),
        ("groups", "identity,sex\np0,\x1b[31m\n", "row 2: holds control characters"),
        ("groups", "identity,sex\n", "must have a line of column names and rows"),
        ("groups", "pair,pose\n0,a\n1,b\n", "must have a row for each of the 4 pairs of lfw, .* it has 2"),
        ("groups", "pair,pose\n0,a\n1,b\n1,b\n3,a\n", "must have a row for each of the 4 pairs"),
        ("quality", "pair,quality\n0,1\n", "line 1: must be pair,first,second, not pair,quality"),
        ("quality", "pair,first,second\n" + "".join(f"{i},x,1\n" for i in range(4)), "must be a number"),
        ("quality", "pair,first,second\n" + "".join(f"{i},nan,1\n" for i in range(4)), "finite number"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(tmp_path: Path, key: str, text: str, said: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(DamagedDataError, match=rf"x\.csv.*{said}"):
        read_side(a_set(), EvalSettings(**{key: str(path)}))


def test_groups_by_identity_need_a_set_that_knows_them(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("identity,sex\np0,f\n")
    with pytest.raises(ConfigError, match=r"eval.groups=.*lfw does not know its identities"):
        read_side(a_set(identities=False), EvalSettings(groups=str(tmp_path / "x.csv")))


def test_models_and_sets_make_a_matrix_in_per_cent(result: VerificationResult) -> None:
    other = made(0.9, seed=4)
    rows = [Evaluated("a", {"lfw": result, "cfp_fp": other}, {}, []), Evaluated("b", {"lfw": other}, {}, [])]
    table = matrix(rows)
    a, b = f"{100 * result.accuracy:.2f}", f"{100 * other.accuracy:.2f}"
    assert table.header == ["Model", "lfw", "cfp_fp", "Mean"]
    assert table.rows == [["a", a, b, f"{50 * (result.accuracy + other.accuracy):.2f}"], ["b", b, "–", "–"]]
    assert "Models and sets" in report_html(rows, {}, figures=False)
    assert matrix(rows[:1]) is None


def test_what_all_tables_say_is_said_once(result: VerificationResult) -> None:
    full = detailed(result, Side({}), EvalSettings())
    page = report_html(
        [Evaluated(name, {"lfw": full, "cfp_fp": full}, {}, []) for name in "ab"], {}, figures=False
    )
    assert page.count("Operating points: ") == 4 and page.count("ISO/IEC 19795-1") == 1


def test_files_of_groups_and_quality_must_be_there(tmp_path: Path) -> None:
    for key in ("groups", "quality"):
        with pytest.raises(ConfigError, match=rf"eval\.{key}=.*x\.csv: no such file"):
            EvalSettings(**{key: str(tmp_path / "x.csv")})


def test_what_cannot_be_said_of_groups_and_quality_is_said_not_to_be(
    result: VerificationResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("q.csv").touch()
    side = Side({"sex": np.full((PAIRS, 2), "f"), "light": SAME_N.repeat(2).reshape(-1, 2).astype(str)})
    full = detailed(result, side, EvalSettings())
    by_sex, by_light = full.tables[-2:]
    assert by_sex.finding == by_light.finding == "No gap: pairs of fewer than two groups."
    alike = Side({"half": (np.arange(PAIRS) // 2 % 2).astype(str).repeat(2).reshape(-1, 2)})
    twice = verify(np.eye(2)[np.tile([0, 0, 0, 1], 1000)], SAME_N)
    assert detailed(twice, alike, EvalSettings()).tables[-1].finding == (
        "The same FNMR in all groups; the same FMR in all groups."
    )
    scored = detailed(result, Side({}, np.ones((PAIRS, 2))), EvalSettings(quality="q.csv"))
    table = scored.tables[-1]
    assert table.title == "Error versus reject by q.csv" and table.header[1] == "Rejected 10%"
    assert len(set(table.rows[0][:5])) == 1, "a constant quality knows nothing"
    genuine = verify(np.eye(4).repeat(8, axis=0), np.ones(16, bool))
    notes = detailed(genuine, scored_side(16), EvalSettings(quality="q.csv", calibration="logistic")).notes
    assert "not calibrated: all pairs are of one kind" in notes
    assert any(note.startswith("no rates by group or quality") for note in notes)
    perfect = detailed(twice, scored_side(PAIRS), EvalSettings(quality="q.csv"))
    assert "no error to reject by quality: the FNMR at FMR 1e-3 is 0" in perfect.notes


def scored_side(pairs: int) -> Side:
    return Side({}, np.ones((pairs, 2)))
