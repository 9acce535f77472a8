"""`facerec-data cfp` and the like: the sets people quote, from the trees that their authors publish."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facerec.cli.data_commands.published import SETS
from facerec.errors import DamagedDataError, MissingDataError
from facerec.making.pair_lists import lfw_image
from facerec.making.published_sets import LAYOUTS
from facerec.packs.verification import load_verification
from tests import published_trees as trees
from tests.making import data, image

# Of each .bin, where an image of it lies in the tiny tree: those of the left and of the right of a pair.
BINS: dict[str, dict[str, tuple[trees.Path_of, trees.Path_of]]] = {
    "agedb": {"agedb_30": (trees.agedb_path,) * 2},
    "calfw": {"calfw": (trees.flat_path(4),) * 2},
    "cplfw": {"cplfw": (trees.flat_path(1),) * 2},
    "cfp": {
        "cfp_fp": (trees.cfp_path("frontal"), trees.cfp_path("profile")),
        "cfp_ff": (trees.cfp_path("frontal"),) * 2,
    },
    "xqlfw": {"xqlfw": (lambda name, i: f"xqlfw_aligned_112/{lfw_image(name, i)}",) * 2},
    "rfw": {
        f"rfw_{group.lower()}": (lambda name, i, group=group: f"data/{group}/{lfw_image(name, i)}",) * 2
        for group in ("African", "Asian", "Caucasian", "Indian")
    },
}


@pytest.fixture(params=sorted(trees.TREES))
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The tiny tree of each set; its folder has the set's name."""
    root = tmp_path / request.param
    root.mkdir()
    trees.TREES[request.param](root)
    return root


def test_every_set_has_a_layout_a_command_and_a_tiny_tree() -> None:
    assert set(SETS) == set(LAYOUTS) == set(trees.TREES) == {*BINS, "tinyface"}


@pytest.mark.parametrize("name", BINS)
def test_pairs_have_the_published_order_folds_and_identities(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    root.mkdir()
    trees.TREES[name](root)
    assert data(name, root, out, "--keep") == 0
    said = capsys.readouterr().out
    for stem, (left, right) in BINS[name].items():
        made = load_verification(out / f"{stem}.bin")
        expected = [one for fold in trees.FOLDS for a, i, b, j in fold for one in (left(a, i), right(b, j))]
        assert [made.images[i] for i in made.index_2N] == [(root / path).read_bytes() for path in expected]
        assert made.issame_N.tolist() == [True, True, False, False] * 10
        assert made.fold_N is not None and made.fold_N.tolist() == np.repeat(np.arange(10), 4).tolist()
        assert made.identity_2N is not None and len(set(made.identity_2N.tolist())) == 3
        assert f"{stem}: 40 pairs (20 genuine, 20 impostor)" in said
    assert len(list(out.glob("*.bin"))) == len(BINS[name])


def test_tinyface_becomes_gallery_probes_and_distractors(tmp_path: Path) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    root.mkdir()
    trees.tinyface(root)
    data("tinyface", root, out, "--keep")
    made = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.jpg")}
    expected = {f"gallery/{k}/{k}_{i}.jpg": f"Gallery_Match/{k}_{i}.jpg" for k in (7, 8, 9) for i in (1, 2)}
    expected |= {f"probes/{k}/{k}_3.jpg": f"Probe/{k}_3.jpg" for k in (7, 8, 9)}
    expected |= {f"distractors/d{i}.jpg": f"Gallery_Distractor/d{i}.jpg" for i in range(3)}
    assert made == {new: (root / old).read_bytes() for new, old in expected.items()}


def test_all_missing_parts_are_named_at_once(tree: Path, tmp_path: Path) -> None:
    name = tree.name
    parts = sorted(path.name for path in tree.iterdir())
    shutil.rmtree(tree)
    tree.mkdir()
    with pytest.raises(MissingDataError, match=f"not the published tree of {name}, it lacks ") as refused:
        data(name, tree, tmp_path / "out")
    said = str(refused.value).split("it lacks ")[1].split("; ")[0].split(", ")
    assert sorted(part.split("/")[0] for part in said) == parts
    assert not (tmp_path / "out").exists()


def test_a_missing_list_within_a_folder_that_is_there_is_named_alone(tmp_path: Path) -> None:
    trees.cfp(tmp_path)
    (tmp_path / "Protocol/Split/FP/03/diff.txt").unlink()
    shutil.rmtree(tmp_path / "Protocol/Split/FF/07")
    with pytest.raises(
        MissingDataError, match=r"lacks Protocol/Split/FF/07, Protocol/Split/FP/03/diff\.txt;"
    ):
        data("cfp", tmp_path, tmp_path / "out")


def test_images_may_lie_elsewhere(tmp_path: Path) -> None:
    trees.calfw(tmp_path / "set")
    (tmp_path / "set/aligned images").rename(tmp_path / "mine")
    with pytest.raises(MissingDataError, match="lacks aligned images;"):
        data("calfw", tmp_path / "set", tmp_path / "out")
    data("calfw", tmp_path / "set", tmp_path / "out", "--images", tmp_path / "mine")
    assert len(load_verification(tmp_path / "out/calfw.bin")) == 40
    (tmp_path / "mine/Cid_0001.jpg").unlink()
    (tmp_path / "mine/Cid_0002.jpg").unlink()
    with pytest.raises(MissingDataError, match=r"Cid_0002\.jpg: is in the list, but not there and 1 more"):
        data("calfw", tmp_path / "set", tmp_path / "new", "--images", tmp_path / "mine")


def test_unaligned_images_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trees.cplfw(tmp_path)
    for path in (tmp_path / "aligned images").iterdir():
        path.write_bytes(image(1, (250, 160)))
    data("cplfw", tmp_path, tmp_path / "out")
    assert "250×160 pixels are hardly aligned faces, which models expect; --align finds" in caplog.text


@pytest.mark.parametrize(
    ("name", "path", "old", "new", "said"),
    [
        ("cfp", "Protocol/Split/FP/02/same.txt", ",", ";", r"02/same\.txt, line 1: .* is not two numbers"),
        ("cfp", "Protocol/Split/FF/02/same.txt", "1,2\n", "", r"10 folds of 3 to 4 pairs, not 10 of one"),
        ("cfp", "Protocol/Pair_list_P.txt", "Data", "Date", r"P\.txt, line 1: .* below Data/Images"),
        ("calfw", "pairs_CALFW.txt", "Cid_0002.jpg 1\n", "", r"line 4: .* not the second image of the pair"),
        ("cplfw", "pairs_CPLFW.txt", "Ann_Bee_1.jpg 0\n", "Ann_Bee_1.jpg\n", r"is not image and answer"),
        ("xqlfw", "xqlfw_pairs.txt", "Cid\t2\t1\n", "", r"line 3: must be name<TAB>i<TAB>j"),
        ("rfw", "txts/Asian/Asian_pairs.txt", "Cid\t2\t1\n", "", r"txt: holds 39 pairs, not 10 equal"),
        ("agedb", "04_FINAL_protocol_30_years.mat", None, b"MATLAB", r"not the published MATLAB file"),
        ("tinyface", "probe_img_ID_pairs.mat", None, b"", r"not the published MATLAB file"),
    ],
)
def test_a_list_out_of_order_is_refused_in_a_line(
    name: str, path: str, old: str | None, new: str | bytes, said: str, tmp_path: Path
) -> None:
    trees.TREES[name](tmp_path)
    file = tmp_path / path
    if old is None:
        file.write_bytes(new)
    else:
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))
    with pytest.raises(DamagedDataError, match=said) as refused:
        data(name, tmp_path, tmp_path / "out")
    assert "\n" not in str(refused.value) and str(tmp_path) in str(refused.value)


def test_a_matlab_file_of_another_set_is_refused(tmp_path: Path) -> None:
    trees.tinyface(tmp_path)
    trees.agedb(tmp_path)
    (tmp_path / "04_FINAL_protocol_30_years.mat").write_bytes(
        (tmp_path / "probe_img_ID_pairs.mat").read_bytes()
    )
    with pytest.raises(DamagedDataError, match=r"is not the published MATLAB file \(KeyError 'splits'\)"):
        data("agedb", tmp_path, tmp_path / "out")


def test_cfp_as_published_gives_the_usual_7000_pairs(shared_data: Path, tmp_path: Path) -> None:
    root = shared_data / "cfp"
    if not root.is_dir():
        pytest.skip("no CFP in the shared data")
    assert data("cfp", root, tmp_path, "--keep") == 0
    for stem, view in (("cfp_fp", "profile"), ("cfp_ff", "frontal")):
        made = load_verification(tmp_path / f"{stem}.bin")
        assert made.issame_N.tolist() == ([True] * 350 + [False] * 350) * 10 and made.folds == 10
        fold = root / f"Protocol/Split/{stem[4:].upper()}/04"
        numbers = [
            line.split(",")
            for name in ("same", "diff")
            for line in (fold / f"{name}.txt").read_text().split()
        ]
        for pair, (first, second) in enumerate(numbers, 3 * 700):
            paths = [
                root
                / f"Data/Images/{(int(one) - 1) // many + 1:03}/{kind}/{(int(one) - 1) % many + 1:02}.jpg"
                for one, many, kind in ((first, 10, "frontal"), (second, {"profile": 4}.get(view, 10), view))
            ]
            rows = made.index_2N[2 * pair : 2 * pair + 2]
            assert [made.images[row] for row in rows] == [path.read_bytes() for path in paths]
    assert made.identity_2N is not None and len(set(made.identity_2N.tolist())) == 500


def test_info_shows_the_faces_of_a_set_by_identity_or_else_by_pair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trees.cplfw(tmp_path)
    data("cplfw", tmp_path, tmp_path, "--keep")
    capsys.readouterr()
    named, unnamed = tmp_path / "named.png", tmp_path / "unnamed.png"
    data("info", tmp_path / "cplfw.bin", "--faces", named)
    assert "faces       3 identities, up to 2 images each, on" in capsys.readouterr().out
    assert Image.open(named).size == (2 * 114 + 2, 3 * 130 + 2)
    (tmp_path / "cplfw.people.tsv").unlink()
    data("info", tmp_path / "cplfw.bin", "--faces", unnamed)
    assert "faces       the first 25 of 40 pairs, on" in capsys.readouterr().out
    assert Image.open(unnamed).size == (2 * 114 + 2, 25 * 130 + 2)


def test_info_of_a_list_shows_its_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trees.cplfw(tmp_path)
    lines = [f"aligned images/{name}_{i}.jpg\t{name}\n" for name in trees.NAMES for i in (1, 2)]
    (tmp_path / "list.txt").write_text("".join(lines))
    data("info", tmp_path / "list.txt", "--faces", tmp_path / "faces.png")
    said = capsys.readouterr().out
    assert "images      6 images of 3 identities from" in said and "6 of 6 sampled: JPEG 112×112 RGB" in said
    assert "faces       3 identities, up to 2 images each, on" in said
