"""The verification protocol: equal to what the widespread scripts compute, honest where a set is unusual."""

import io
import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.model_selection import KFold
from sklearn.preprocessing import normalize

from facerec.errors import ConfigError, NonFiniteError, StorageError, UserError
from facerec.evaluation.protocols.verification import (
    Verification,
    evaluate_set,
    evaluate_targets,
    load_targets,
)
from facerec.evaluation.results import log_notes, results_document, write_results
from facerec.evaluation.settings import EvalSettings
from facerec.evaluation.statistics.folds import cross_validate
from facerec.evaluation.verify import verify
from facerec.images.preprocessing import Preprocessing
from facerec.models.model import Model
from facerec.packs.verification import VerificationSet, write_verification
from tests.small_networks import Pixels


def made_embeddings(pairs, size=16, noise=1.0, seed=0, dtype=np.float32):
    """Pairs of raw embeddings of any norm, half of them genuine (a common direction), and their mirrors'."""
    rng = np.random.default_rng(seed)
    issame = np.arange(pairs) % 2 == 0
    centre = rng.normal(size=(pairs, 2, size))
    centre[issame, 1] = centre[issame, 0]
    plain, mirrored = (
        (rng.uniform(1, 30, (pairs, 2, 1)) * (centre + noise * rng.normal(size=centre.shape)))
        .reshape(2 * pairs, size)
        .astype(dtype)
        for _ in range(2)
    )
    return plain, mirrored, issame


def published(plain, mirrored, issame, folds=10):
    """Fold accuracies and thresholds the way the published scripts get them, trying 400 thresholds."""
    embedding = normalize(plain if mirrored is None else plain + mirrored)
    distance = np.sum(np.square(embedding[0::2] - embedding[1::2]), 1)
    accuracies, chosen = [], []
    for train, test in KFold(folds, shuffle=False).split(distance):
        accuracy = []
        for threshold in np.arange(0, 4, 0.01):
            same = np.less(distance[train], threshold)
            right = np.logical_and(same, issame[train]).sum() + np.logical_and(~same, ~issame[train]).sum()
            accuracy.append(float(right) / len(train))
        threshold = np.arange(0, 4, 0.01)[np.argmax(accuracy)]
        accuracies.append(np.mean(np.less(distance[test], threshold) == issame[test]))
        chosen.append(threshold)
    return accuracies, chosen


@pytest.fixture(scope="module")
def golden(shared_data):
    arrays = np.load(shared_data / "verification_golden.npz", allow_pickle=False)
    said = json.loads((shared_data / "verification_golden.json").read_text())
    return arrays["embedding"], arrays["embedding_flipped"], arrays["issame"], said


def test_agrees_with_another_projects_script_to_the_last_digit(golden):
    plain, mirrored, issame, said = golden
    result = verify(plain, issame, flipped_2ND=mirrored)
    for name in ("accuracy", "accuracy_std", "best_threshold", "fold_accuracy", "fold_threshold", "xnorm"):
        assert getattr(result, name) == said[name], name


def test_agrees_with_the_golden_numbers_in_double_precision_and_from_summed_embeddings(golden):
    plain, mirrored, issame, said = golden
    double = verify(plain.astype(np.float64), issame, flipped_2ND=mirrored.astype(np.float64))
    summed = verify(torch.from_numpy(plain) + torch.from_numpy(mirrored), torch.from_numpy(issame))
    for result in (double, summed):
        for name in ("accuracy", "accuracy_std", "best_threshold", "fold_accuracy", "fold_threshold"):
            assert getattr(result, name) == said[name], name
    assert double.xnorm == pytest.approx(said["xnorm"], rel=1e-7)


@pytest.mark.parametrize("pairs", [10, 17, 600])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_agrees_with_the_published_way_recomputed(pairs, dtype):
    plain, mirrored, issame = made_embeddings(pairs, seed=pairs, dtype=dtype)
    for flipped in (mirrored, None):
        result = verify(plain, issame, flipped_2ND=flipped)
        accuracies, chosen = published(plain, flipped, issame)
        assert result.fold_accuracy == accuracies
        assert result.fold_threshold == chosen
        assert result.accuracy == np.mean(accuracies)
        assert result.accuracy_std == np.std(accuracies)
        assert result.best_threshold == np.mean(chosen)
        norms = np.linalg.norm(plain if flipped is None else np.concatenate([plain, flipped]), axis=1)
        assert result.xnorm == pytest.approx(norms.mean(), rel=1e-6)
        assert result.accuracy_noflip == np.mean(published(plain, None, issame)[0])
        assert result.flip is (flipped is not None)


def test_distances_are_those_of_unit_vectors_bit_for_bit():
    plain, mirrored, issame = made_embeddings(1000, size=512)
    unit = normalize(plain + mirrored)
    expected = np.sum(np.square(unit[0::2] - unit[1::2]), 1)
    np.testing.assert_array_equal(verify(plain, issame, flipped_2ND=mirrored).distance_N, expected)


def test_torch_numpy_lists_and_half_precision_are_accepted():
    plain, _, issame = made_embeddings(40, noise=0.3)
    expected = verify(plain, issame).to_dict()
    assert verify(torch.from_numpy(plain).requires_grad_(), issame.tolist()).to_dict() == expected
    assert verify(plain.tolist(), issame.astype(int)).accuracy == expected["accuracy"]
    for dtype in (torch.bfloat16, torch.float16):
        assert verify(torch.from_numpy(plain).to(dtype), issame).accuracy == pytest.approx(1, abs=0.1)


def test_results_have_the_published_fields_as_plain_json():
    plain, mirrored, issame = made_embeddings(100)
    entry = json.loads(json.dumps(verify(plain, issame, flipped_2ND=mirrored, bootstrap=50).to_dict()))
    assert {"accuracy", "accuracy_std", "best_threshold", "xnorm", "auc", "eer", "tar_at_far"} <= entry.keys()
    assert (entry["pairs"], entry["folds"], entry["genuine_pairs"]) == (100, 10, 50)
    assert entry["tar_at_far"]["1e-3"] is None
    assert any("1e-3" in note and "50 impostor pairs" in note for note in entry["notes"])
    assert "10 folds" in entry["protocol"] and "flip" in entry["protocol"]
    low, high = entry["accuracy_interval"]
    assert low <= entry["accuracy"] <= high


def test_the_exact_search_is_no_worse_on_what_it_searches():
    plain, _, issame = made_embeddings(400, noise=1.4)
    grid, exact = (verify(plain, issame, thresholds=kind) for kind in ("grid", "exact"))
    assert exact.accuracy == pytest.approx(grid.accuracy, abs=0.02)
    assert grid.thresholds == "grid" and exact.thresholds == "exact"
    # Scaled distances defeat the grid, not the exact search: all embeddings nearly equal.
    close = 1000 + plain * 1e-3
    assert verify(close, issame, thresholds="exact").accuracy > verify(close, issame).accuracy + 0.1


def test_pairs_on_the_wrong_side_are_listed_nearest_first():
    plain, mirrored, issame = made_embeddings(200, noise=1.4)
    result = verify(plain, issame, flipped_2ND=mirrored)
    threshold_N = np.repeat(result.fold_threshold, 20)
    beyond_N = result.distance_N - threshold_N
    for wrong, expected in (
        (result.wrong_genuine, np.flatnonzero(issame & (beyond_N >= 0))),
        (result.wrong_impostor, np.flatnonzero(~issame & (beyond_N < 0))),
    ):
        assert len(expected) > 3
        assert sorted(wrong.tolist()) == expected.tolist()
        assert (np.diff(np.abs(beyond_N[wrong])) >= 0).all()
    errors = len(result.wrong_genuine) + len(result.wrong_impostor)
    assert result.accuracy == pytest.approx(1 - errors / 200)
    entry = result.to_dict()["wrong_genuine"]
    assert entry["nearest"][0] == result.wrong_genuine[0]
    assert entry["worst"][0] == result.wrong_genuine[-1]


def test_zero_embeddings_give_numbers_and_are_said(caplog):
    plain, _, issame = made_embeddings(40)
    plain[[0, 1, 7]] = 0
    result = verify(plain, issame)
    assert np.isfinite(result.distance_N).all()
    assert result.distance_N[0] == 0
    assert result.distance_N[3] == pytest.approx(1)
    assert "3 embeddings are all zeros" in result.notes[0]
    assert "3 embeddings are all zeros" in caplog.text


def test_embeddings_that_tell_nobody_apart_are_said(caplog):
    _, _, issame = made_embeddings(20)
    result = verify(np.ones((40, 16), np.float32), issame)
    assert result.notes[0].startswith("all pairs are equally far apart") and result.tar_at_far["1e-1"] == 0
    assert "all pairs are equally far apart" in caplog.text


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_embeddings_that_are_not_finite_are_named(value):
    plain, mirrored, issame = made_embeddings(400)
    plain[613, 5] = value
    with pytest.raises(NonFiniteError, match=r"embedding in row 613 \(pair 306, second image\)"):
        verify(plain, issame)
    with pytest.raises(NonFiniteError, match="embedding of the mirrored image in row 613"):
        verify(mirrored, issame, flipped_2ND=plain)
    long = np.full_like(plain, 3e38 / plain.shape[1] ** 0.5)  # its norm is finite, that of the sum is not
    with pytest.raises(NonFiniteError, match="sum of the embeddings of both views in row 0 "):
        verify(long, issame, flipped_2ND=long)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_norms_that_leave_single_precision_still_count(scale):
    plain, _, issame = made_embeddings(40)
    result = verify(plain * np.float32(scale), issame)
    np.testing.assert_allclose(result.distance_N, verify(plain, issame).distance_N, rtol=1e-5)
    assert result.xnorm == pytest.approx(verify(plain, issame).xnorm * scale, rel=1e-5)


def test_only_genuine_pairs_have_an_accuracy_but_no_auc():
    plain, _, _ = made_embeddings(20)
    result = verify(plain, np.ones(20, bool))
    assert result.accuracy <= 1
    assert result.auc is None and result.eer is None
    assert any("only one kind" in note for note in result.notes)


@pytest.mark.parametrize("wrong", [-1, 2, np.nan, "0", "1", None])
def test_answers_that_could_mean_either_are_refused_and_the_first_is_named(wrong):
    plain, _, issame = made_embeddings(20)
    given = [*issame.tolist()[:-1], wrong]
    for form in (given, np.array(given)):  # NumPy turns all into text where one is
        with pytest.raises(
            UserError, match=r"answer \(issame\) of pair \d+ is .*give true or 1 .* false or 0"
        ):
            verify(plain, form)


def test_answers_are_booleans_or_ones_and_zeros_in_a_row_or_a_column():
    plain, _, issame = made_embeddings(20)
    wanted = verify(plain, issame).to_dict()
    forms = (
        issame.astype(int),
        issame.astype(np.float32)[:, None],
        torch.tensor(issame),
        issame.astype(object),
    )
    assert all(verify(plain, form).to_dict() == wanted for form in (issame.tolist(), *forms))


def test_shapes_that_do_not_fit_are_refused():
    plain, mirrored, issame = made_embeddings(20)
    with pytest.raises(UserError, match=r"\(40, 16\) do not fit 19 pairs.*\(38, D\)"):
        verify(plain, issame[:-1])
    with pytest.raises(UserError, match="mirrored"):
        verify(plain, issame, flipped_2ND=mirrored[:, :-1])
    with pytest.raises(ConfigError, match=r"eval\.thresholds=fine: must be grid or exact"):
        verify(plain, issame, thresholds="fine")
    with pytest.raises(UserError, match=r"embeddings are of type complex\d+; they must be real numbers"):
        verify(plain * 1j, issame)


def made_set(name="made", pairs=40, images=25, seed=0):
    """A verification set of decoded images, each in several pairs."""
    rng = np.random.default_rng(seed)
    pixels = [rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(images)]
    return VerificationSet(name, pixels, rng.integers(0, images, 2 * pairs), rng.random(pairs) < 0.5)


@pytest.fixture
def model():
    return Model(Pixels(), Preprocessing(size=8), step=60000)


def test_evaluating_a_set_equals_verifying_embeddings_made_by_hand(model):
    made = made_set()
    images = (np.stack(made.images).astype(np.float32) - 127.5) / 127.5
    embed = lambda array: array.transpose(0, 3, 1, 2)[:, :, ::2, 1::2].reshape(len(array), -1)  # noqa: E731
    plain, mirrored = embed(images)[made.index_2N], embed(images[:, :, ::-1])[made.index_2N]
    expected = verify(plain, made.issame_N, flipped_2ND=mirrored)
    noflip = verify(plain, made.issame_N)
    for by_hand, flip in ((expected, True), (noflip, False)):
        result = evaluate_set(model, made, EvalSettings(bootstrap=0, flip=flip)).to_dict()
        entry = by_hand.to_dict()
        for key in (
            "xnorm",
            "best_threshold_exact",
        ):  # the model may normalise images with another rounding
            assert result.pop(key) == pytest.approx(entry.pop(key), rel=1e-6)
        assert {key: result[key] for key in entry} == entry  # the details of a set stand beside them
    assert noflip.accuracy == expected.accuracy_noflip


def test_the_log_has_the_lines_people_grep(model, caplog):
    caplog.set_level(logging.INFO, "facerec.evaluation")
    sets = [made_set("lfw"), made_set("cfp_fp", seed=1)]
    highest = {"cfp_fp": 0.98765}
    results = evaluate_targets(model, sets, EvalSettings(bootstrap=0), highest=highest)
    lfw = results["lfw"]
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert lines[:3] == [
        f"[lfw][60000]XNorm: {lfw.xnorm:.5f}",
        f"[lfw][60000]Accuracy-Flip: {lfw.accuracy:.5f}+-{lfw.accuracy_std:.5f}",
        f"[lfw][60000]Best-Threshold: {lfw.best_threshold:.5f}",
    ]
    assert lines[3].startswith("[lfw][60000]Others: exact accuracy ") and "judged by" in lines[3]
    assert lines[4].startswith("[cfp_fp][60000]XNorm: ")
    assert lines[8:] == [f"highest_acc: [{lfw.accuracy:.5f}, 0.98765]"]
    assert highest == {"lfw": lfw.accuracy, "cfp_fp": 0.98765}
    evaluate_targets(model, sets, EvalSettings(bootstrap=0), step=7)
    assert "[lfw][7]XNorm" in caplog.text


def test_results_are_written_whole_or_not_at_all(model, tmp_path):
    results = evaluate_targets(model, [made_set("lfw")], EvalSettings(bootstrap=0))
    path = write_results(tmp_path / "run" / "results.json", results_document(results, model, ckpt="best.pt"))
    written = json.loads(path.read_text())
    assert written["targets"]["lfw"]["accuracy"] == results["lfw"].accuracy
    assert (written["ckpt"], written["step"]) == ("best.pt", 60000)
    assert written["preprocessing"] == {"mean": 127.5, "std": 127.5, "channels": "rgb", "size": 8}
    with pytest.raises(ValueError, match="JSON"):
        write_results(path, {"targets": float("nan")})
    assert json.loads(path.read_text()) == written
    assert [other.name for other in path.parent.iterdir()] == ["results.json"]
    with pytest.raises(StorageError, match=r"results.json.*could not be written"):
        write_results(path / "below_a_file" / "results.json", written)


def write_pairs(path, same, folds=None):
    """Pairs of random images of 8×8 pixels."""
    images = []
    for i in range(2 * len(same)):
        file = io.BytesIO()
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)).save(file, "PNG")
        images.append(file.getvalue())
    write_verification(path, images, same, folds=folds)
    return str(path)


def test_a_target_may_be_named_by_its_file(tmp_path):
    path = write_pairs(tmp_path / "lfw.bin", [True, False] * 10)
    for name in ("lfw", "lfw.bin", path):
        (found,) = load_targets(EvalSettings(targets=[name], root=str(tmp_path)))
        assert found.name == "lfw"
    (found,) = load_targets(EvalSettings(targets=[path], root="elsewhere"))
    assert found.path == tmp_path / "lfw.bin"
    said = r"eval\.targets=.*/lfw\.bin and .*b/lfw\.bin would share the name lfw"
    write_pairs(tmp_path / "b" / "lfw.bin", [True, False])
    with pytest.raises(ConfigError, match=said):
        load_targets(EvalSettings(targets=[path, "b/lfw"], root=str(tmp_path)))


def test_a_set_is_judged_in_the_folds_it_was_made_in(model, tmp_path, caplog):
    write_pairs(tmp_path / "a.bin", [True, False] * 10, folds=2)
    settings = EvalSettings(targets=["a"], root=str(tmp_path), bootstrap=0)
    assert evaluate_targets(model, load_targets(settings), settings)["a"].folds == 2
    assert "folds" not in caplog.text
    settings = replace(settings, folds=5)
    assert evaluate_targets(model, load_targets(settings), settings)["a"].folds == 5
    assert "a was made in 2 folds; eval.folds=5 cuts across them" in caplog.text
    write_pairs(tmp_path / "b.bin", [True, False] * 10, folds=[12, 8])
    settings = EvalSettings(targets=["b"], root=str(tmp_path), bootstrap=0)
    result = evaluate_targets(model, load_targets(settings), settings)["b"]
    fold_N = np.repeat([0, 1], [12, 8])
    expected = cross_validate(result.distance_N, result.issame_N, fold_N)
    assert result.fold_accuracy == expected.accuracy_F.tolist()


def test_folds_of_one_kind_are_said_once_before_anything_is_embedded(model, tmp_path, caplog, monkeypatch):
    write_pairs(tmp_path / "a.bin", [True] * 95 + [False] * 5)
    caplog.set_level("INFO")
    judge = Verification(targets=["a"], root=str(tmp_path), bootstrap=0).begin(model)
    assert "a: 9 of 10 folds hold one kind of pairs only" in caplog.text
    for _ in ("one model", "another"):
        log_notes(judge(model))
    monkeypatch.setattr("facerec.distributed.rank", lambda: 1)
    load_targets(EvalSettings(targets=["a"], root=str(tmp_path)))
    assert caplog.text.count("9 of 10 folds") == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [("every_steps", -1), ("batch_size", 0), ("folds", 1), ("bootstrap", -1), ("targets", ["lfw", "lfw"])],
)
def test_settings_out_of_range_are_refused_by_name(key, value):
    with pytest.raises(ConfigError, match=f"eval.{key}="):
        EvalSettings(**{key: value})
