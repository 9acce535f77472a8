"""Bootstrap over identities and pairs: equal to copying pairs naively; sets that name identities."""

import os

import numpy as np
import pytest
import simplejpeg

from facerec.cli.data import run as data_command
from facerec.errors import DamagedDataError, UserError
from facerec.evaluation.metrics.auc import auc
from facerec.evaluation.metrics.base import create_metrics
from facerec.evaluation.metrics.eer import eer
from facerec.evaluation.metrics.tar_at_far import tar_at_far
from facerec.evaluation.settings import USUAL_METRICS
from facerec.evaluation.statistics.bootstrap import (
    bootstrap,
    identity_draw,
    interval,
    numbered_identities,
    rate_intervals,
)
from facerec.evaluation.statistics.folds import cross_validate, fold_of
from facerec.evaluation.statistics.separation import Separation
from facerec.evaluation.verify import verify
from facerec.making.pair_lists import Pair
from facerec.making.verification_sets import _identities
from facerec.packs.verification import identities_path, load_verification, write_verification


def pairs_of_identities(identities=12, pairs=200, seed=0):
    """Distances of pairs of known identities, which differ in how hard they are. Some distances are tied."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, identities, pairs)
    second = np.where(rng.random(pairs) < 0.5, first, rng.integers(0, identities, pairs))
    same = first == second
    hardness = rng.normal(0, 0.35, identities)
    distance = np.where(same, 0.9, 1.6) + hardness[first] + hardness[second] + rng.normal(0, 0.15, pairs)
    return np.clip(distance, 0, 3.99).round(2), same, np.stack([first, second], 1)


@pytest.mark.parametrize("thresholds", ["grid", "exact"])
def test_resampling_identities_equals_copying_their_pairs(thresholds):
    distance, same, identity_N2 = pairs_of_identities(pairs=240)
    fold_N = fold_of(len(same), 5)
    metrics = create_metrics(USUAL_METRICS)
    how = {"resamples": 40, "seed": 3, "identity_N2": identity_N2, "metrics": metrics}
    ours = bootstrap(distance, same, 5, thresholds, **how)
    rng = np.random.default_rng(3)
    identities = identity_N2.max() + 1
    for resample in range(40):
        times = rng.multinomial(identities, np.full(identities, 1 / identities))
        drawn = np.repeat(np.arange(identities), times)  # the identities of this resample, copies included
        copies = []
        for pair, (one, other) in enumerate(identity_N2):
            if one == other:  # a genuine pair: once for each copy of its identity
                copies += [pair] * int((drawn == one).sum())
            else:  # an impostor pair: each copy of the one with each copy of the other
                copies += [pair for a in drawn if a == one for b in drawn if b == other]
        copies = np.array(copies)
        expected = cross_validate(distance[copies], same[copies], fold_N[copies], thresholds)
        separation = Separation.of(distance[copies], same[copies])
        assert ours["accuracy"][resample] == pytest.approx(expected.accuracy, abs=1e-12)
        assert ours["auc"][resample] == pytest.approx(auc(separation), abs=1e-12)
        assert ours["eer"][resample] == pytest.approx(eer(separation), abs=1e-12)
        assert {"1e-1", "1e-2"} <= ours["tar_at_far"].keys()
        for target in ("1e-1", "1e-2"):
            allowed = separation.threshold_at_far(float(target))
            tar = np.mean(separation.genuine_G < allowed)
            assert ours["tar_at_far"][target][resample] == pytest.approx(tar, abs=1e-12)


@pytest.mark.parametrize(("large", "thresholds"), [(0, "grid"), (2, "grid"), (20, "exact")])
def test_resampling_pairs_equals_drawing_them_one_by_one_in_distribution(large, thresholds, monkeypatch):
    """Whether all groups of pairs are drawn by their counts, or some, or none."""
    monkeypatch.setattr("facerec.evaluation.statistics.bootstrap._LARGE", large)
    rng = np.random.default_rng(0)
    same = np.arange(900) % 90 < 45
    distance = np.where(same, 0.9, 1.5) + rng.normal(0, 0.25, 900)
    distance[::3] = distance[::3].round(1)
    fold_N = fold_of(900, 10)
    naive = {"accuracy": [], "auc": [], "eer": [], "1e-1": [], "1e-2": []}
    for _ in range(500):
        drawn = np.concatenate([rng.choice(np.flatnonzero(fold_N == fold), 90) for fold in range(10)])
        separation = Separation.of(distance[drawn], same[drawn])
        naive["accuracy"].append(cross_validate(distance[drawn], same[drawn], 10, thresholds).accuracy)
        naive["auc"].append(auc(separation))
        naive["eer"].append(eer(separation))
        for target, tar in tar_at_far(separation, ("1e-1", "1e-2")).items():
            naive[target].append(tar)
    how = {"metrics": create_metrics(USUAL_METRICS), "resamples": 4000, "seed": 0}
    ours = bootstrap(distance, same, 10, thresholds, **how)
    ours |= ours.pop("tar_at_far")
    for name, value in naive.items():
        deviation = np.std(value)
        assert np.mean(ours[name]) == pytest.approx(np.mean(value), abs=4 * deviation / np.sqrt(500)), name
        assert interval(ours[name]) == pytest.approx(interval(np.array(value)), abs=0.4 * deviation), name


def test_the_weight_of_a_pair_is_the_product_of_its_two_identities_or_its_one_identitys_number():
    identity_N2 = np.array([[0, 0], [0, 1], [1, 2], [2, 2]])
    weight_RN = identity_draw(identity_N2, np.random.default_rng(1))(500)
    times_RI = np.random.default_rng(1).multinomial(3, np.full(3, 1 / 3), size=500)
    expected = [
        times_RI[:, 0],
        times_RI[:, 0] * times_RI[:, 1],
        times_RI[:, 1] * times_RI[:, 2],
        times_RI[:, 2],
    ]
    np.testing.assert_array_equal(weight_RN, np.stack(expected, 1))


def test_an_interval_over_identities_is_wider_where_identities_differ():
    distance, same, identity_N2 = pairs_of_identities(identities=15, pairs=3000)
    widths = []
    for identities in (None, identity_N2):
        how = {"resamples": 300, "seed": 0, "identity_N2": identities}
        drawn = bootstrap(distance, same, metrics=create_metrics(["accuracy"]), **how)
        low, high = interval(drawn["accuracy"])
        widths.append(high - low)
    assert widths[1] > 2 * widths[0]


def test_a_fold_that_no_identity_was_drawn_of_does_not_count():
    identity_N2 = np.repeat(np.arange(4), 5)[:, None].repeat(2, 1)
    distance = np.full(20, 0.105)
    how = {"resamples": 200, "seed": 0, "identity_N2": identity_N2}
    drawn = bootstrap(distance, np.ones(20, bool), 4, metrics=create_metrics(["accuracy", "auc"]), **how)
    accuracy = drawn["accuracy"]
    alone = np.isnan(accuracy)  # one identity was drawn four times: no other fold to choose a threshold by
    assert 0 < alone.sum() < 20 and (accuracy[~alone] == 1).all()
    assert interval(accuracy) == (1, 1)
    assert interval(drawn["auc"]) is None  # no impostor pairs


def test_rates_are_resampled_by_identity():
    cluster = np.repeat(np.arange(30), 10)
    hit = {"rank": cluster % 3 > 0}  # each identity is always or never found
    low, high = rate_intervals(hit, cluster, resamples=2000, seed=0)["rank"]
    sd = np.sqrt(2 / 9 / 30)
    assert low == pytest.approx(2 / 3 - 1.96 * sd, abs=0.03)
    assert high == pytest.approx(2 / 3 + 1.96 * sd, abs=0.03)
    assert rate_intervals(hit, cluster, resamples=0, seed=0) == {"rank": None}


def test_results_say_what_was_resampled():
    rng = np.random.default_rng(0)
    same = np.arange(60) % 2 == 0
    embedding = rng.normal(size=(60, 2, 8))
    embedding[same, 1] = embedding[same, 0] + 0.7 * rng.normal(size=(30, 8))
    names = [["anna", "anna"] if one else ["bert", f"p{i}"] for i, one in enumerate(same)]
    over_pairs = verify(embedding.reshape(120, 8), same, bootstrap=100)
    over_identities = verify(embedding.reshape(120, 8), same, bootstrap=100, identity_2N=np.ravel(names))
    assert (over_pairs.interval_over, over_pairs.identities) == ("pairs", None)
    assert (over_identities.interval_over, over_identities.identities) == ("identities", 32)
    assert verify(embedding.reshape(120, 8), same).interval_over is None
    for result in (over_pairs, over_identities):
        entry = result.to_dict()
        for key, value in (("auc_interval", entry["auc"]), ("eer_interval", entry["eer"])):
            low, high = entry[key]
            assert low <= value <= high
        assert entry["tar_at_far_interval"]["1e-3"] is None
        assert len(entry["tar_at_far_interval"]["1e-1"]) == 2


def test_identities_that_contradict_the_answers_are_an_error():
    with pytest.raises(
        UserError, match="pair 1 is of one identity by its answer, but its identities are b and c"
    ):
        numbered_identities(["a", "a", "b", "c"], np.array([True, True]))
    with pytest.raises(UserError, match="3 identities do not fit 2 pairs"):
        numbered_identities(["a", "a", "b"], np.array([True, True]))


def test_identities_are_kept_beside_a_pack(tmp_path):
    images = [bytes([i]) for i in range(4)]
    file = tmp_path / "made.bin"
    write_verification(file, images, [True, False], ["anna", "anna", "anna\tb", "<bert>"])
    assert identities_path(file) == tmp_path / "made.people.tsv"
    loaded = load_verification(file)
    assert loaded.identity_2N.tolist() == ["anna", "anna", "anna b", "<bert>"]
    assert "3 identities" in loaded.describe()
    write_verification(file, images, [True, False])  # another pack of that name
    assert load_verification(file).identity_2N is None and not identities_path(file).exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\ta\n", r"made\.people\.tsv has 1 line for 2 pairs"),
        ("a\ta\nb\n", "line 2: two names with a tab between"),
        ("a\ta\nb\tb\n", "line 2: names b and b, but the pack says two identities"),
        ("a\tb\nb\tc\n", "line 1: names a and b, but the pack says one identity"),
    ],
)
def test_a_file_of_identities_that_does_not_fit_is_an_error(tmp_path, text, message):
    file = tmp_path / "made.bin"
    write_verification(file, [b"0", b"1", b"2", b"3"], [True, False])
    identities_path(file).write_text(text)
    with pytest.raises(DamagedDataError, match=message):
        load_verification(file)


def test_drawn_pairs_keep_their_identities(tmp_path):
    rng = np.random.default_rng(0)
    for identity in range(20):
        (tmp_path / "in" / f"identity {identity}").mkdir(parents=True)
        for number in range(2):
            face = np.ascontiguousarray(
                rng.integers(0, 255, (14, 14, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            )
            (tmp_path / "in" / f"identity {identity}" / f"{number}.jpg").write_bytes(
                simplejpeg.encode_jpeg(face)
            )
    assert data_command(["pairs", str(tmp_path / "in"), str(tmp_path / "made.bin")]) == 0
    loaded = load_verification(tmp_path / "made.bin")
    assert set(loaded.identity_2N) == {f"identity {identity}" for identity in range(20)}
    result = verify(
        rng.normal(size=(2 * len(loaded), 4)), loaded.issame_N, bootstrap=5, identity_2N=loaded.identity_2N
    )
    assert result.identities == 20


def test_listed_pairs_have_identities_where_folders_agree_with_the_answers():
    agreed = [Pair("a/1.jpg", "a/2.jpg", True), Pair("a/1.jpg", "b/1.jpg", False)]
    folder = os.path.dirname
    assert _identities(agreed, folder) == ["a", "a", "a", "b"]
    assert _identities([*agreed, Pair("x/1.jpg", "x/2.jpg", False)], folder) is None
