"""Figures of a verification result: which are drawn, what they show, and that nothing global is touched."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from facerec.errors import StorageError
from facerec.evaluation.statistics.separation import Separation
from facerec.evaluation.verify import verify
from facerec.packs.verification import VerificationSet
from facerec.reporting.verification_figures import (
    det_figure,
    distance_figure,
    figures_of,
    pair_figure,
    roc_figure,
    save_figures,
)


@pytest.fixture(scope="module")
def result():
    rng = np.random.default_rng(0)
    issame = np.arange(300) % 2 == 0
    centre = rng.normal(size=(300, 2, 16))
    centre[issame, 1] = centre[issame, 0]
    embedding = (centre + 0.8 * rng.normal(size=centre.shape)).reshape(600, 16)
    images = [np.full((112, 112, 3), value, np.uint8) for value in range(0, 250, 10)]
    made = VerificationSet("made", images, rng.integers(0, 25, 600), issame)
    return replace(verify(embedding, issame), source=made)


def test_every_figure_is_written_as_an_image(result, tmp_path):
    paths = save_figures(tmp_path / "run", "lfw", figures_of("lfw", {"model": result}))
    assert [path.name for path in paths] == [
        f"lfw_{kind}.png" for kind in ("roc", "det", "distances", "pairs")
    ]
    for path in paths:
        with Image.open(path) as drawn:
            assert drawn.format == "PNG" and drawn.width > 800
            assert len(drawn.convert("L").getcolors()) > 20
    assert sorted(path.parent.iterdir()) == sorted(paths)


def test_figures_are_made_without_pyplot(result):
    figures = figures_of("lfw", {"model": result})
    assert all(isinstance(figure, Figure) for figure in figures.values())
    pyplot = sys.modules.get("matplotlib.pyplot")  # another library may have imported it
    assert pyplot is None or not pyplot.get_fignums()


def test_the_roc_shows_the_rates_of_the_result(result):
    axes = roc_figure("lfw", {"model": result}).axes[0]
    assert axes.get_xscale() == "log"
    assert axes.get_xlim()[0] == pytest.approx(1 / 150)
    assert f"{result.accuracy:.5f}" in axes.get_title() and "300 pairs" in axes.get_title()
    far, tar = axes.lines[0].get_data()
    roc = Separation.of(result.distance_N, result.issame_N).roc()
    assert np.interp(0.5, far, tar) == pytest.approx(np.interp(0.5, *roc), abs=0.02)
    said = {text.get_text() for text in axes.texts}
    assert said == {f"{result.tar_at_far[target]:.4f}" for target in ("1e-1", "1e-2")}


def test_the_det_is_logarithmic_on_both_axes(result):
    axes = det_figure("lfw", {"model": result}).axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_the_distances_show_the_mean_threshold(result):
    axes = distance_figure("lfw", result).axes[0]
    assert axes.lines[0].get_xdata()[0] == result.best_threshold


def test_the_mosaics_show_the_hardest_pairs_whether_or_not_they_are_wrong(result):
    figure = pair_figure("lfw", result)
    shown = [drawn.get_array() for axes in figure.axes for drawn in axes.images]
    captions = [axes.get_title() for axes in figure.axes]
    first = int(np.argmax(np.where(result.issame_N, result.distance_N, -1)))
    assert captions[0] == f"pair {first}: {result.distance_N[first]:.3f}, wrong"
    nearest = int(np.argmin(np.where(result.issame_N, 9, result.distance_N)))
    assert captions[6].startswith(f"pair {nearest}: ")
    grays = [10 * int(index) for index in result.source.index_2N[2 * first : 2 * first + 2]]
    image = np.asarray(shown[0])
    assert [image[0, 0, 0], image[0, -1, 0]] == grays
    assert len(shown) == len(captions) == 12


def test_the_hardest_pairs_carry_the_names_that_are_known(result):
    names = np.array([f"p{row % 5}" * (1 + 20 * (row == 1)) for row in range(2 * len(result.issame_N))])
    figure = pair_figure("lfw", replace(result, source=replace(result.source, identity_2N=names)))
    for axes in figure.axes:
        pair = int(axes.get_title().split(":")[0].split()[1])
        one, other = names[2 * pair], names[2 * pair + 1]
        said = one if one == other else f"{one} / {other}"
        assert axes.texts[0].get_text() == (said if len(said) <= 36 else said[:35] + "…")
    assert not pair_figure("lfw", result).axes[0].texts, "and none where there are none"


def test_several_models_share_one_roc_and_have_files_of_their_own(result, tmp_path):
    rows = np.random.default_rng(1).normal(size=(600, 16))
    worse = replace(verify(rows, result.issame_N), source=result.source)
    axes = roc_figure("lfw", {"good": result, "bad": worse}).axes[0]
    labels = [line.get_label() for line in axes.lines]
    assert labels[0].startswith("good, AUC") and labels[1].startswith("bad, AUC")
    assert axes.lines[0].get_color() != axes.lines[1].get_color()
    paths = save_figures(tmp_path, "lfw", figures_of("lfw", {"a/good <b>": result, "bad": worse}))
    assert [path.name for path in paths] == [
        "lfw_roc.png",
        "lfw_det.png",
        "lfw_a_good_b__distances.png",
        "lfw_a_good_b__pairs.png",
        "lfw_bad_distances.png",
        "lfw_bad_pairs.png",
    ]


def test_what_cannot_be_drawn_is_left_out(result):
    genuine = verify(np.ones((40, 4)), np.ones(20, bool))
    assert list(figures_of("lfw", {"model": genuine})) == ["distances"]
    issame = np.arange(20) % 2 == 0
    embedding = np.ones((40, 2))
    embedding[1::2][~issame] = -1
    assert list(figures_of("lfw", {"model": verify(embedding, issame)})) == ["roc", "distances"]
    assert "pairs" not in figures_of("lfw", {"model": replace(result, source=None)})


def test_an_image_that_cannot_be_written_is_an_error(result, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="could not be written"):
        save_figures(tmp_path / "file", "lfw", figures_of("lfw", {"model": result}))
