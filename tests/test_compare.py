"""Comparing models: the test of McNemar and its correction, paired intervals, names, files and paths."""

import json
import logging
from dataclasses import replace
from itertools import product
from math import comb

import numpy as np
import pytest
import simplejpeg
import torch
from scipy.stats import chi2

from facerec.backbones import create_backbone
from facerec.errors import CheckpointError, ConfigError, UserError
from facerec.evaluation.protocols.identification import identify
from facerec.evaluation.statistics.comparison import compare, holm, mcnemar
from facerec.evaluation.verify import verify
from facerec.models import checkpoint
from facerec.packs.verification import write_verification
from facerec.reporting.evaluated import distinct_names
from tests.test_cli_train import command
from tests.test_protocols import evaluate


def made_result(noise, pairs=400, seed=0, **settings):
    rng = np.random.default_rng(0)
    issame = np.arange(pairs) % 2 == 0
    centre = rng.normal(size=(pairs, 2, 16))
    centre[issame, 1] = centre[issame, 0]
    noisy = centre + noise * np.random.default_rng(seed).normal(size=centre.shape)
    return verify(noisy.reshape(-1, 16), issame, **settings)


@pytest.mark.parametrize(("first", "second"), [(0, 1), (3, 3), (1, 7), (0, 10), (12, 30)])
def test_mcnemar_is_the_share_of_all_splits_as_unlikely_as_this_one(first, second):
    discordant = first + second
    counts = np.zeros(discordant + 1)
    if discordant <= 12:  # every way the discordant decisions could have gone
        for ways in product((0, 1), repeat=discordant):
            counts[sum(ways)] += 1
    else:
        counts[:] = [comb(discordant, k) for k in range(discordant + 1)]
    expected = counts[counts <= counts[first] * (1 + 1e-9)].sum() / 2.0**discordant
    assert mcnemar(first, second) == pytest.approx(expected)
    assert mcnemar(first, second) == pytest.approx(mcnemar(second, first))


def test_mcnemar_nears_the_chi_squared_test_for_many_and_is_1_for_none():
    assert mcnemar(0, 0) == 1
    assert mcnemar(550, 450) == pytest.approx(chi2.sf((abs(550 - 450) - 1) ** 2 / 1000, 1), rel=0.02)


def test_holm_is_stepwise_and_never_out_of_order():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03] and holm([]) == []


def test_decisions_are_counted_pair_by_pair():
    one, other = made_result(1.0), made_result(1.3, seed=1)
    (found,) = compare({"a": one, "b": other}, bootstrap=400)
    threshold = [np.repeat(result.fold_threshold, 40) for result in (one, other)]
    right = [
        (result.distance_N < t) == result.issame_N for result, t in zip((one, other), threshold, strict=True)
    ]
    assert (
        found.first_only == (right[0] & ~right[1]).sum() and found.second_only == (right[1] & ~right[0]).sum()
    )
    assert found.difference == pytest.approx(one.accuracy - other.accuracy)
    assert found.p == found.p_holm == mcnemar(found.first_only, found.second_only)
    low, high = found.difference_interval
    sd = np.std(right[0].astype(int) - right[1].astype(int)) / 20
    assert low == pytest.approx(found.difference - 1.96 * sd, abs=0.01)
    assert high == pytest.approx(found.difference + 1.96 * sd, abs=0.01)


def test_the_difference_is_resampled_over_identities_where_they_are_known():
    issame = np.arange(300) % 2 == 0
    who = np.repeat(np.arange(10), 30)
    identities = np.stack([who, np.where(issame, who, 10 + np.arange(300))], 1).reshape(-1)
    one, other = (made_result(noise, 300, seed, identity_2N=None) for noise, seed in ((1.0, 0), (1.0, 1)))
    # The first fails on all genuine pairs of half of the identities, the second nowhere.
    wrong = np.flatnonzero(issame & (who < 5))
    numbered = np.unique(identities, return_inverse=True)[1].reshape(-1, 2)
    one = replace(one, right_X=~np.isin(np.arange(300), wrong))
    other = replace(other, right_X=np.ones(300, bool))
    over_pairs = compare({"a": one, "b": other}, bootstrap=300)[0].difference_interval
    of_identities = {name: replace(r, identity_N2=numbered) for name, r in (("a", one), ("b", other))}
    over_identities = compare(of_identities, bootstrap=300)[0].difference_interval
    assert over_identities[1] - over_identities[0] > 2 * (over_pairs[1] - over_pairs[0])


def test_three_models_are_compared_two_by_two_with_correction():
    results = {
        name: made_result(noise, seed=seed)
        for seed, (name, noise) in enumerate([("a", 0.9), ("b", 1.2), ("c", 1.5)])
    }
    found = compare(results)
    assert [(one.first, one.second) for one in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [one.p_holm for one in found] == pytest.approx(holm([one.p for one in found]))
    assert all(one.difference_interval is None for one in found)


def test_identification_is_compared_by_hits_at_rank_1_and_other_sets_are_refused():
    rng = np.random.default_rng(0)
    gallery, probe = np.eye(8), np.eye(8)[np.arange(40) % 8]
    good, bad = (
        identify(probe + noise * rng.normal(size=probe.shape), np.arange(40) % 8, gallery, np.arange(8))
        for noise in (0.1, 1.0)
    )
    (found,) = compare({"good": good, "bad": bad})
    assert found.difference == pytest.approx(good.rank["1"] - bad.rank["1"])
    assert found.decided == "mated probes found at rank 1"
    with pytest.raises(UserError, match="a was judged on 400 decisions, b on 300"):
        compare({"a": made_result(1.0), "b": made_result(1.0, 300)})


def test_names_tell_models_apart(tmp_path):
    runs = [str(tmp_path / run / "checkpoints" / "best.pt") for run in ("a", "b=0.1 x", "c")]
    assert distinct_names(runs) == ["a", "b=0.1 x", "c"]
    assert distinct_names(["x/best.pt", "x/last.pt"]) == ["best.pt", "last.pt"]
    assert distinct_names([runs[0], str(tmp_path / "a/checkpoints/last.pt"), runs[1]]) == [
        "a/best.pt",
        "a/last.pt",
        "b=0.1 x/best.pt",
    ]
    nested = distinct_names(["x/best.pt", "x/x/best.pt"])
    assert len(set(nested)) == 2 and all(nested)
    assert distinct_names(["some/best.pt"]) == ["best.pt"]
    apart = ["/nowhere/weights/net.onnx", "/elsewhere/runs/a/checkpoints/best.pt"]
    assert distinct_names(apart) == ["net.onnx", "a/best.pt"]
    assert distinct_names(["/nowhere/a/net.onnx", "/elsewhere/b/net.onnx"]) == ["nowhere/a", "elsewhere/b"]
    assert distinct_names([runs[0]]) == ["a/best.pt"]
    with pytest.raises(ConfigError, match=r"ckpt=x/\.\./x/best\.pt: is given twice"):
        distinct_names(["x/best.pt", "x/../x/best.pt"])


# From the command line -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two checkpoints of the same file name in folders that need quoting, and a set of identities."""
    root = tmp_path_factory.mktemp("runs")
    settings = {"name": "mobilefacenet", "embedding_size": 16, "input_size": 32}
    paths = []
    for seed, run in enumerate(("m=0.3, s=32", "it's")):
        torch.manual_seed(seed)
        state = {"backbone": create_backbone(**settings).state_dict(), "step": seed, "epoch": 1}
        about = {"mean": 127.5, "std": 127.5, "channels": "rgb", "size": 32}
        config = {"backbone": settings, "eval": {"targets": ["made"], "root": str(root)}}
        path = root / run / "checkpoints" / "best.pt"
        path.parent.mkdir(parents=True)
        checkpoint.save(path, state | {"input": about, "config": config})
        paths.append(path)
    rng = np.random.default_rng(0)
    faces = rng.integers(0, 255, (12, 8, 8, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    encoded = [simplejpeg.encode_jpeg(np.ascontiguousarray(face), quality=90) for face in faces]
    issame = [i % 2 == 0 for i in range(20)]
    drawn = [(i % 12, i % 12 if same else (i + 3) % 12) for i, same in enumerate(issame)]
    images = [encoded[i] for pair in drawn for i in pair]
    write_verification(root / "made.bin", images, issame, [f"p{i}" for pair in drawn for i in pair])
    return paths


def test_several_checkpoints_give_one_table_one_report_and_one_results_file(runs, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    _, written = evaluate([str(path) for path in runs], tmp_path / "both")
    assert [model["name"] for model in written["models"]] == ["m=0.3, s=32", "it's"]
    _, alone = evaluate(str(runs[1]), tmp_path / "one")
    assert {key: written["models"][1][key] for key in alone} == alone  # the layout of one model, in the list
    assert set(alone) == {"targets", "ckpt", "step", "preprocessing"}
    (found,) = written["comparisons"]["made"]
    assert (found["first"], found["second"]) == ("m=0.3, s=32", "it's")
    assert 0 <= found["p"] <= 1
    table = [line for line in caplog.messages if line.startswith(("target  model", "made    "))]
    assert len(table) == 3 and "m=0.3, s=32" in table[1] and "it's" in table[2]
    assert any("McNemar p" in line for line in caplog.messages)
    report = (tmp_path / "both" / "report.html").read_text()
    assert "2 models compared" in report and "Do the models differ?" in report
    assert "interval over identities" in caplog.text
    for name in ("report.html", "made_roc.png", "made_m=0.3_s=32_distances.png"):
        assert (tmp_path / "both" / name).is_file()
    assert f"wrote      {tmp_path / 'both' / 'report.html'}, and beside it results.json, " in caplog.text


def test_other_protocols_are_compared_too(runs, tmp_path):
    rng = np.random.default_rng(1)
    for part, identities in (("gallery", "ab"), ("probes", "abc")):
        for identity in identities:
            (tmp_path / part / identity).mkdir(parents=True)
            face = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
            encoded = simplejpeg.encode_jpeg(np.ascontiguousarray(face))
            (tmp_path / part / identity / "1.jpg").write_bytes(encoded)
    folders = [f"eval.{part}={tmp_path / part}" for part in ("gallery", "probes")]
    _, written = evaluate([str(path) for path in runs], tmp_path / "out", "eval=identification", *folders)
    (found,) = written["comparisons"]["identification"]
    assert found["decided"] == "mated probes found at rank 1" and found["decisions"] == 2
    report = (tmp_path / "out" / "report.html").read_text()
    assert 'data-chart="cmc"' in report and "Do the models differ?" in report


def test_a_missing_checkpoint_is_said_before_any_is_judged(runs, tmp_path):
    with pytest.raises(CheckpointError, match=r"ckpt=nowhere\.pt: there is no such file"):
        evaluate([str(runs[0]), "nowhere.pt"], tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command_takes_a_list_with_equals_signs_and_quotes(runs, tmp_path):
    renamed = tmp_path / "m=0.5" / "best model.pt"
    renamed.parent.mkdir()
    renamed.write_bytes(runs[0].read_bytes())
    settings = [f"ckpt=[{renamed},{runs[1]}]", "device=cpu", "eval.bootstrap=0", "eval.figures=false"]
    done = command("facerec-eval", *settings, f"output_dir={tmp_path / 'out'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    *_, lead, wrote, then = done.stdout.splitlines()
    assert lead.startswith("made: best are ") and lead.endswith(" alike, exact accuracy 1.00000.")
    assert wrote == f"wrote      {tmp_path / 'out' / 'report.html'}, and beside it results.json"
    assert then.startswith("next       facerec-export ") and str(tmp_path) in then
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [model["ckpt"] for model in written["models"]] == [str(renamed), str(runs[1])]
    assert written["comparisons"]["made"][0]["difference_interval"] is None
