"""Verification metrics against naive recomputations and scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold

from facerec.errors import ConfigError
from facerec.evaluation.metrics import METRICS, JudgedPairs, Metric
from facerec.evaluation.metrics.auc import auc
from facerec.evaluation.metrics.base import create_metrics
from facerec.evaluation.metrics.eer import eer
from facerec.evaluation.metrics.tar_at_far import tar_at_far
from facerec.evaluation.statistics.bootstrap import bootstrap, interval
from facerec.evaluation.statistics.folds import GRID_J, cross_validate, fold_of
from facerec.evaluation.statistics.separation import Separation
from facerec.evaluation.verify import verify


def naive_cross_validate(distance, issame, candidates_of, folds):
    """The published scripts' loop: every candidate on every training part, then on the fold."""
    accuracies, thresholds = [], []
    for train, test in KFold(folds, shuffle=False).split(distance):
        candidates = candidates_of(distance[train])
        scores = [float(((distance[train] < t) == issame[train]).sum()) / len(train) for t in candidates]
        best = int(np.argmax(scores))
        accuracies.append(float(((distance[test] < candidates[best]) == issame[test]).sum()) / len(test))
        thresholds.append(candidates[best])
    return np.array(accuracies), np.array(thresholds)


def grid(distance):
    return np.arange(0, 4, 0.01)


def midpoints(distance):
    ordered = np.sort(distance.astype(np.float64))
    return np.array([ordered[0], *((ordered[1:] + ordered[:-1]) / 2), np.nextafter(ordered[-1], np.inf)])


def resampled_accuracy(*given, **settings):
    return bootstrap(*given, metrics=create_metrics(["accuracy"]), **settings)["accuracy"]


def random_pairs(count, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    issame = rng.random(count) < 0.5
    distance = np.clip(rng.normal(np.where(issame, 1.0, 1.8), 0.4), 0, 4).astype(dtype)
    return distance, issame


coarse_pairs = st.lists(
    # multiples of a half hundredth: many ties, and many values exactly on a candidate
    st.tuples(st.integers(0, 800).map(lambda n: n * 0.005), st.booleans()),
    min_size=10,
    max_size=60,
).map(lambda pairs: (np.array([d for d, _ in pairs]), np.array([s for _, s in pairs])))


@settings(deadline=None, max_examples=60)
@given(coarse_pairs)
def test_grid_search_equals_the_published_loop_on_ties(pairs):
    validated = cross_validate(*pairs, 5)
    accuracy, threshold = naive_cross_validate(*pairs, grid, 5)
    np.testing.assert_array_equal(validated.accuracy_F, accuracy)
    np.testing.assert_array_equal(validated.threshold_F, threshold)


@settings(deadline=None, max_examples=60)
@given(coarse_pairs)
def test_exact_search_equals_the_loop_over_midpoints(pairs):
    validated = cross_validate(*pairs, 5, "exact")
    accuracy, threshold = naive_cross_validate(*pairs, midpoints, 5)
    np.testing.assert_array_equal(validated.accuracy_F, accuracy)
    np.testing.assert_array_equal(validated.threshold_F, threshold)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exact_search_equals_the_loop_on_continuous_distances(dtype):
    distance, issame = random_pairs(500, dtype=dtype)
    validated = cross_validate(distance, issame, 10, "exact")
    accuracy, threshold = naive_cross_validate(distance, issame, midpoints, 10)
    np.testing.assert_array_equal(validated.accuracy_F, accuracy)
    np.testing.assert_array_equal(validated.threshold_F, threshold)


def test_exact_search_separates_adjacent_floats():
    low = np.float64(1.7)
    high = np.nextafter(low, 2)
    validated = cross_validate(np.array([low, high] * 10), np.array([True, False] * 10), 10, "exact")
    assert validated.accuracy == 1.0


def test_a_perfectly_separable_set_is_perfect_under_the_exact_search():
    issame = np.arange(400) % 2 == 0
    distance = np.where(issame, 0.5, 2.0) + np.linspace(0, 0.1, 400)
    validated = cross_validate(distance, issame, 10, "exact")
    assert validated.accuracy == 1.0
    np.testing.assert_allclose(validated.threshold_F, 1.3, atol=0.01)
    drawn = resampled_accuracy(distance, issame, 10, "exact", resamples=300, seed=0)
    assert drawn.min() == 1.0


def test_the_first_of_equally_good_candidates_is_taken():
    distance = np.array([0.105, 3.005] * 10)
    issame = np.array([True, False] * 10)
    validated = cross_validate(distance, issame, 10)
    assert validated.threshold_F.tolist() == [GRID_J[11]] * 10
    assert validated.accuracy == 1.0


def test_a_distance_equal_to_the_threshold_is_not_same():
    distance = np.full(10, GRID_J[100])
    validated = cross_validate(distance, np.ones(10, bool), 10)
    assert validated.threshold_F.tolist() == [GRID_J[101]] * 10


@pytest.mark.parametrize("count", [10, 13, 29, 6000])
def test_folds_have_the_sizes_of_scikit_learn(count):
    fold_N = fold_of(count, 10)
    for fold, (_, test) in enumerate(KFold(10, shuffle=False).split(np.zeros(count))):
        assert np.flatnonzero(fold_N == fold).tolist() == test.tolist()


@pytest.mark.parametrize(("pairs", "folds"), [(9, 10), (0, 10), (10, 1)])
def test_fewer_pairs_than_folds_is_an_error_that_says_so(pairs, folds):
    with pytest.raises(ConfigError, match=rf"eval.folds={folds}: must be between 2 and .* {pairs}"):
        fold_of(pairs, folds)


@settings(deadline=None, max_examples=60)
@given(coarse_pairs)
def test_auc_equals_scikit_learn(pairs):
    distance, issame = pairs
    separation = Separation.of(distance, issame)
    if issame.all() or not issame.any():
        assert auc(separation) is None
        assert eer(separation) is None
        assert tar_at_far(separation, ["0.1"]) == {"0.1": None}
    else:
        assert auc(separation) == pytest.approx(roc_auc_score(issame, -distance), abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(coarse_pairs, st.sampled_from([0.5, 0.3, 0.1, 0.05, 0.02, 1.0]))
def test_tar_at_far_is_the_tar_at_the_largest_allowed_threshold(pairs, far):
    distance, issame = pairs
    genuine, impostor = distance[issame], distance[~issame]
    tar = tar_at_far(Separation(genuine, impostor), [str(far)])[str(far)]
    if not len(genuine) or not len(impostor) or len(impostor) * far < 1 - 1e-12:
        assert tar is None
        return
    thresholds = [*np.unique(distance), np.inf]
    allowed = [t for t in thresholds if (impostor < t).sum() / len(impostor) <= far]
    assert tar == (genuine < max(allowed)).sum() / len(genuine)


def test_far_targets_need_enough_impostor_pairs():
    tars = tar_at_far(Separation(np.linspace(0, 1, 100), np.linspace(0.5, 2, 1000)))
    assert [target for target, tar in tars.items() if tar is None] == ["1e-4", "1e-5", "1e-6"]
    assert list(tars) == ["1e-1", "1e-2", "1e-3", "1e-4", "1e-5", "1e-6"]


def test_eer_of_a_known_case():
    # At threshold between 2 and 3: one of four impostors accepted, one of four genuine rejected.
    assert eer(Separation(np.array([0.0, 1, 2, 5]), np.array([2.5, 3, 4, 6]))) == pytest.approx(0.25)
    assert eer(Separation(np.array([0.0, 1]), np.array([2.0, 3]))) == 0
    assert eer(Separation(np.array([2.0, 3]), np.array([0.0, 1]))) == 1
    assert eer(Separation(np.array([1.0, 1]), np.array([1.0, 1]))) == 0.5


@settings(deadline=None, max_examples=60)
@given(coarse_pairs)
def test_eer_lies_on_the_interpolated_roc(pairs):
    separation = Separation.of(*pairs)
    if not separation.both_kinds:
        return
    far, tar = separation.roc()
    assert (far[0], tar[0], far[-1], tar[-1]) == (0, 0, 1, 1)
    dense = np.linspace(0, len(far) - 1, 200 * len(far))
    steps = np.arange(len(far))
    gap = np.abs(np.interp(dense, steps, far) - (1 - np.interp(dense, steps, tar)))
    assert eer(separation) == pytest.approx(np.interp(dense, steps, far)[gap.argmin()], abs=0.01)


def test_bootstrap_is_seeded_and_as_wide_as_binomial_theory_says():
    distance, issame = random_pairs(2000)
    accuracy = cross_validate(distance, issame, 10).accuracy
    drawn = resampled_accuracy(distance, issame, resamples=800, seed=1)
    assert drawn.shape == (800,)
    np.testing.assert_array_equal(drawn, resampled_accuracy(distance, issame, resamples=800, seed=1))
    assert not np.array_equal(drawn, resampled_accuracy(distance, issame, resamples=800, seed=2))
    binomial = np.sqrt(accuracy * (1 - accuracy) / 2000)  # the threshold search adds some
    assert 0.9 * binomial < drawn.std() < 1.5 * binomial
    low, high = interval(drawn)
    assert low < accuracy < high


@settings(deadline=None, max_examples=60)
@given(coarse_pairs)
def test_the_curve_for_drawing_is_the_roc_where_it_has_points_for_each_pair(pairs):
    separation = Separation.of(*pairs)
    if not separation.both_kinds:
        return
    far, tar = separation.roc()
    exact = set(zip(far.tolist(), tar.tolist(), strict=True))
    curve = separation.curve(points=2000)
    drawn = list(zip(curve.far_V.tolist(), curve.tar_V.tolist(), strict=True))
    assert set(drawn) <= exact and drawn[-1] == (1, 1)
    assert (np.diff(curve.distance_V) > 0).all()
    for rate in far:  # the highest TAR within each FAR is kept
        assert max(t for f, t in exact if f <= rate) == max([t for f, t in drawn if f <= rate], default=0)


def test_the_curve_of_many_pairs_is_thin_and_close_on_both_logarithmic_axes():
    distance, issame = random_pairs(200_000)
    separation = Separation.of(distance, issame)
    curve = separation.curve()
    assert len(curve.far_V) < 450
    for target, tar in tar_at_far(separation, ["1e-1", "1e-2", "1e-3", "1e-4"]).items():
        at = np.searchsorted(curve.far_V, float(target), side="right") - 1
        assert curve.far_V[at] > 0.9 * float(target)
        assert curve.tar_V[at] == pytest.approx(tar, rel=0.02)


def test_the_histogram_counts_every_finite_pair():
    distance, issame = random_pairs(500)
    edges, genuine, impostor = Separation.of(distance, issame).histogram(10)
    assert (genuine.sum(), impostor.sum()) == (issame.sum(), (~issame).sum())
    assert (edges[0], edges[-1]) == (distance.min(), distance.max())
    np.testing.assert_array_equal(genuine, np.histogram(distance[issame], edges)[0])
    only = Separation(np.array([0.5, np.inf]), np.array([])).histogram(4)
    assert only.genuine.sum() == 1 and only.impostor.sum() == 0


class Gap(Metric):
    """A metric of a user's own."""

    label = "Gap of the means"

    def value(self, pairs):
        return float(pairs.distance_N[~pairs.issame_N].mean() - pairs.distance_N[pairs.issame_N].mean())


def test_a_metric_from_outside_stands_in_the_results_and_among_the_numbers(monkeypatch):
    METRICS.names()
    monkeypatch.setitem(METRICS._builders, "gap", Gap)
    rng = np.random.default_rng(0)
    result = verify(rng.normal(size=(80, 4)), np.arange(40) % 2 == 0, metrics=["gap", "eer"], bootstrap=5)
    assert [number.label for number in result.numbers()] == [
        "Accuracy",
        "Exact accuracy",
        "Gap of the means",
        "EER",
    ]
    entry = result.to_dict()
    assert entry["gap"] == result.gap and entry["gap_interval"] is None
    assert len(entry["eer_interval"]) == 2 and "auc" not in entry


@pytest.mark.parametrize("name", METRICS.names())
def test_a_metric_has_a_label_and_a_value_where_pairs_are_few_or_of_one_kind(name):
    metric = METRICS.create(name)
    assert metric.label
    for issame in (np.ones(4, bool), np.zeros(4, bool), np.arange(4) % 2 == 0):
        pairs = JudgedPairs(np.linspace(0.1, 2, 4), issame, cross_validate(np.linspace(0.1, 2, 4), issame, 2))
        value = metric.value(pairs)
        for one in value.values() if isinstance(value, dict) else [value]:
            assert one is None or np.isfinite(one)


def test_a_metric_that_is_not_registered_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"eval\.metrics=acuracy: .*did you mean accuracy"):
        verify(np.eye(4), [True, False], folds=2, metrics=["acuracy"])
