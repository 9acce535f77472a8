"""`facerec-data pairs` and `lfw`: verification sets of one's own."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facerec.errors import ConfigError, DamagedDataError, FacerecError, MissingDataError, UserError
from facerec.images.decode import decode
from facerec.making.folds import draw_pairs
from facerec.making.pair_lists import (
    lfw_image,
    read_csv,
    read_labels,
    read_names,
    read_pairs_txt,
    read_people_txt,
)
from facerec.packs.pack import open_pack
from facerec.packs.verification import load_verification
from tests.making import data, image


def fill(folder: Path, identities: dict[str, int]) -> Path:
    """A folder per identity, each image another one, named as in LFW."""
    for seed, (name, many) in enumerate(identities.items()):
        (folder / name).mkdir(parents=True)
        for i in range(1, many + 1):
            (folder / lfw_image(name, i)).write_bytes(image(100 * seed + i))
    return folder


# Drawn pairs -----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    many=st.lists(st.integers(1, 9), min_size=4, max_size=60),
    folds=st.integers(1, 10),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_drawn_pairs_are_balanced_disjoint_and_never_twice(
    many: list[int], folds: int, seed: int, data: st.DataObject
) -> None:
    label_N = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(many)) * 7, many))
    try:
        image_K2, issame_K = draw_pairs(label_N, folds=folds, seed=seed)
    except UserError as error:
        possible = re.search(r"--folds (\d+) is possible", str(error))
        assert possible is None or int(possible[1]) < folds
        assert possible is not None or len(many) < 2 or max(many) < 2
        return
    label_K2 = label_N[image_K2]
    assert (issame_K == (label_K2[:, 0] == label_K2[:, 1])).all()
    assert (image_K2[:, 0] != image_K2[:, 1]).all()
    assert len(np.unique(np.sort(image_K2, axis=1), axis=0)) == len(image_K2)
    identities_K = []
    for issame, labels in zip(np.split(issame_K, folds), np.split(label_K2, folds), strict=True):
        assert 2 * issame.sum() == len(issame) > 0
        identities_K.append(set(labels.ravel().tolist()))
    assert sum(map(len, identities_K)) == len(set.union(*identities_K)), "no one is in two folds"
    again_K2, _ = draw_pairs(label_N, folds=folds, seed=seed)
    assert (again_K2 == image_K2).all()


def test_genuine_pairs_come_from_all_before_anyone_gives_two() -> None:
    label_N = np.repeat(np.arange(40), [100] + [3] * 39)
    image_K2, issame_K = draw_pairs(label_N, count=80, folds=2)
    identity_K = label_N[image_K2[issame_K, 0]]
    assert np.bincount(identity_K, minlength=40).tolist() == [1] * 40


def test_another_seed_draws_other_pairs() -> None:
    label_N = np.repeat(np.arange(40), 5)
    first, second = (draw_pairs(label_N, seed=seed)[0] for seed in (0, 1))
    assert first.shape != second.shape or (first != second).any()


@pytest.mark.parametrize("count", [0, 30, 10**6, -40])
def test_an_impossible_count_says_what_is_possible(count: int) -> None:
    with pytest.raises(ConfigError, match=r"--count=.*: must be a multiple of 20, 20 to \d+, here"):
        draw_pairs(np.repeat(np.arange(40), 5), count=count)


def test_pairs_of_a_folder_are_faces_of_its_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fill(tmp_path / "in", {f"p{i}": 3 for i in range(6)})
    (folder / "p0" / lfw_image("p0", 9).split("/")[1]).write_bytes(b"broken")
    for name in ("a", "b"):
        assert data("pairs", folder, tmp_path / f"{name}.bin", "--folds", "3", "--keep") == 0
    made = load_verification(tmp_path / "a.bin")
    assert len(made) == 3 * 2 * 6
    originals = {path.read_bytes() for path in folder.rglob("*.jpg")}
    assert set(made.images) < originals and b"broken" not in made.images
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()


def test_pairs_of_a_pack_are_its_own_bytes(golden: Path, tmp_path: Path) -> None:
    path = golden / "insightface_layout.rec"
    assert data("pairs", path, tmp_path / "x.bin", "--folds", "2") == 0
    pack = open_pack(path)
    own = {bytes(pack.encoded(i)): int(pack.label_N[i]) for i in range(len(pack))}
    made = load_verification(tmp_path / "x.bin")
    label_K2 = np.array([own[bytes(one)] for one in made.images])[made.index_2N].reshape(-1, 2)
    assert ((label_K2[:, 0] == label_K2[:, 1]) == made.issame_N).all()


# Lists -----------------------------------------------------------------------------------------------------

PAIRS = "2\t1\nAnn\t1\t2\nAnn\t1\tBob\t1\nCyd\t2\t1\nDan\t1\tCyd\t2\n"
PEOPLE = "2\n2\nAnn\t2\nBob\t1\n2\nCyd\t2\nDan\t1\n"


@pytest.fixture
def small_lfw(tmp_path: Path) -> Path:
    folder = fill(tmp_path / "lfw", {"Ann": 2, "Bob": 1, "Cyd": 2, "Dan": 1})
    (folder / "pairs.txt").write_text(PAIRS)
    (folder / "people.txt").write_text(PEOPLE)
    return folder


def test_listed_pairs_keep_their_order(small_lfw: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.bin"
    assert data("pairs", small_lfw, out, "--list", small_lfw / "pairs.txt", "--keep") == 0
    made = load_verification(out)
    rows = [made.images[i] for i in made.index_2N]
    names = ["Ann 1", "Ann 2", "Ann 1", "Bob 1", "Cyd 2", "Cyd 1", "Dan 1", "Cyd 2"]
    files = [(small_lfw / lfw_image(*_split(name))).read_bytes() for name in names]
    assert rows == files and made.issame_N.tolist() == [True, False, True, False]


def test_pairs_of_a_csv(small_lfw: Path, tmp_path: Path) -> None:
    paths = [lfw_image("Ann", 1), lfw_image("Ann", 2), lfw_image("Bob", 1)]
    text = f'first,second,same\n{paths[0]},{paths[1]},1\n\n"{paths[0]}",{paths[2]}, different\n'
    (tmp_path / "p.csv").write_text(text)
    data("pairs", small_lfw, tmp_path / "x.bin", "--csv", tmp_path / "p.csv")
    made = load_verification(tmp_path / "x.bin")
    assert made.issame_N.tolist() == [True, False] and len(made.images) == 3 and made.folds is None
    assert decode(made.images[0]).shape == (112, 112, 3)


@pytest.mark.parametrize("link", ["Dan/Dan_0001.jpg", "Dan"])
def test_a_image_that_the_list_names_is_no_link_out_of_the_folder(
    small_lfw: Path, tmp_path: Path, link: str
) -> None:
    (small_lfw / link).rename(tmp_path / "elsewhere")
    (small_lfw / link).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MissingDataError, match=rf"Dan_0001\.jpg: a link that leads out of {small_lfw}; put"):
        data("pairs", small_lfw, tmp_path / "x.bin", "--list", small_lfw / "pairs.txt")
    assert not (tmp_path / "x.bin").exists()
    (small_lfw / link).unlink()
    (tmp_path / "elsewhere").rename(small_lfw / "mine")
    (small_lfw / link).symlink_to(small_lfw / "mine")
    data("pairs", small_lfw, tmp_path / "x.bin", "--list", small_lfw / "pairs.txt")


def test_a_image_that_the_list_names_must_be_there(small_lfw: Path, tmp_path: Path) -> None:
    (small_lfw / lfw_image("Dan", 1)).unlink()
    (small_lfw / lfw_image("Bob", 1)).unlink()
    with pytest.raises(
        MissingDataError, match=r"Bob_0001\.jpg: is in the list, but not there and 1 more of 6"
    ):
        data("pairs", small_lfw, tmp_path / "x.bin", "--list", small_lfw / "pairs.txt")
    assert not (tmp_path / "x.bin").exists()


@pytest.mark.parametrize(
    ("reader", "text", "said"),
    [
        (read_pairs_txt, "x\t2\n", r"line 1: must be folds"),
        (read_pairs_txt, "1\t1\nAnn\t1\n", r"line 2: must be name<TAB>i<TAB>j"),
        (read_pairs_txt, "1\t1\nAnn\t1\t2\nAnn\t1\t2\n", r"line 3: must be name<TAB>i<TAB>name<TAB>j"),
        (read_pairs_txt, "1\t1\nAnn\tone\t2\n", r"line 2: the images must be numbers"),
        (read_pairs_txt, "1\t2\nAnn\t1\t2\n", r"holds 1 pair, its first line announces 4"),
        (read_pairs_txt, "", r"line 1: must be folds"),
        (read_people_txt, "1\n2\nAnn\t1\n", r"line 4: must be name"),
        (read_people_txt, "1\nAnn\t1\n", r"line 2: must be the number of people"),
        (read_csv, "a,b,1\na,b\n", r"line 2: must be path,path,label"),
        (read_csv, "a,b,1\na,b,maybe\n", r"line 2: must be path,path,label"),
        (read_csv, "first,second,same\n", r"holds no pairs"),
        (read_pairs_txt, "1\t1\nA\t1\t2\nA\t1\t..\t2\n", r"line 3: '\.\.' is no name of a folder"),
        (read_pairs_txt, "1\t1\nA\t1\t2\nA\t1\ta/b\t2\n", r"line 3: 'a/b' is no name of a folder"),
        (read_pairs_txt, "1\t1\nA\t1\t2\nA\t1\t.\t2\n", r"line 3: '\.' is no name of a folder"),
        (read_names, "1\t2\n", r"holds no names"),
        (read_labels, "a.jpg,Ann,1\n", r"line 1: must be path,label"),
        (read_labels, "a.jpg,Ann\n../b.jpg,Bob\n", r"line 2: '\.\./b.jpg' must be a path below the folder"),
        (read_labels, "a.jpg,Ann\na.jpg,Bob\n", r"line 2: lists 'a.jpg', as line 1 does"),
        (read_labels, "a.jpg,A/B\n", r"line 1: 'A/B' is no name of a folder"),
        (read_labels, "file,who\n", r"labels no images"),
    ],
)
def test_a_list_out_of_order_is_named_with_its_line(tmp_path: Path, reader, text: str, said: str) -> None:
    path = tmp_path / "list"
    path.write_text(text)
    with pytest.raises(DamagedDataError, match=f"{re.escape(str(path))}.*{said}"):
        reader(path)
    with pytest.raises(MissingDataError, match="/no/list: No such file"):
        reader(Path("/no/list"))


@settings(max_examples=60, deadline=None)
@given(text=st.one_of(st.text(max_size=60), st.binary(max_size=60)))
def test_no_list_crashes_its_reader(tmp_path_factory: pytest.TempPathFactory, text: str | bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any list"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    for reader in (read_pairs_txt, read_people_txt, read_csv, read_names, read_labels):
        try:
            reader(path)
        except FacerecError as error:
            assert str(path) in str(error)


def csv_of(folder: Path, groups: int, *, genuine_first: bool = True) -> Path:
    """A list of 4 genuine and 4 impostor pairs in each of `groups` circles of two identities."""
    names = [(f"a{i}", f"b{i}") for i in range(groups)]
    fill(folder, {name: 4 for pair in names for name in pair})
    two = [(1, 2), (3, 4)]
    genuine = [(name, i, name, j) for pair in names for name in pair for i, j in two]
    impostor = [(a, i, b, i) for a, b in names for i in range(1, 5)]
    rows = [f"{lfw_image(a, i)},{lfw_image(b, j)},{int(a == b)}\n" for a, i, b, j in genuine + impostor]
    (folder / "list.csv").write_text("".join(rows))
    return folder / "list.csv"


def test_a_csv_is_dealt_into_folds_of_both_kinds_that_share_no_identity(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = csv_of(tmp_path / "in", 6)
    out = tmp_path / "x.bin"
    data("pairs", tmp_path / "in", out, "--csv", listed, "--folds", "4", "--keep")
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == "4 folds, each of 4 to 8 genuine and 4 to 8 impostor pairs; no identity is in two"
    made = load_verification(out)
    sizes = np.bincount(made.fold_N).tolist()
    header = out.with_name("x.people.tsv").read_text().splitlines()[0]
    assert header == f"# 4 folds: {' '.join(map(str, sizes))}" and sorted(sizes) == [8, 8, 16, 16]
    seen: set[str] = set()
    for fold in range(4):
        rows = np.repeat(made.fold_N == fold, 2)
        identities = set(made.identity_2N[rows].tolist())
        assert not identities & seen and len(set(made.issame_N[made.fold_N == fold])) == 2
        seen |= identities
    listed_pairs = {(pair.first, pair.second, pair.same) for pair in read_csv(listed)}
    bytes_of = {path.read_bytes(): path for path in (tmp_path / "in").rglob("*.jpg")}
    written = [bytes_of[made.images[i]].relative_to(tmp_path / "in").as_posix() for i in made.index_2N]
    triples = zip(written[::2], written[1::2], made.issame_N.tolist(), strict=True)
    assert set(triples) == listed_pairs and len(made) == len(listed_pairs), "the same pairs in another order"
    before = out.read_bytes()
    data("pairs", tmp_path / "in", out, "--csv", listed, "--folds", "4", "--keep", "--force")
    assert out.read_bytes() == before


def test_identities_that_pairs_link_are_dealt_with_a_word_on_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    listed = csv_of(tmp_path / "in", 6)
    command = ["pairs", str(tmp_path / "in"), str(tmp_path / "x.bin"), "--csv", str(listed), "--keep"]
    data(*command)
    assert "identities are in several folds: impostor pairs link 17 % of the pairs" in caplog.text
    assert "--folds 6 keeps them apart" in caplog.text
    made = load_verification(tmp_path / "x.bin")
    genuine_F = np.bincount(made.fold_N, made.issame_N)
    assert made.folds == 10 and genuine_F.min() == 2 and genuine_F.max() == 3
    assert "12 identities are in several" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"--folds=25: must be from 2 to the number of pairs .* here 24"):
        data(*command, "--force", "--folds", "25")


def test_a_published_list_keeps_its_order_and_its_balance_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = csv_of(tmp_path / "in", 6)
    out = tmp_path / "x.bin"
    data("pairs", tmp_path / "in", out, "--csv", listed, "--keep-order", "--folds", "4")
    assert load_verification(out).issame_N.tolist() == [True] * 24 + [False] * 24
    assert "4 of them hold one kind only, so that accuracy will say little" in capsys.readouterr().out
    with pytest.raises(UserError, match="--keep-order: needs a list"):
        data("pairs", tmp_path / "in", tmp_path / "y.bin", "--keep-order")


# lfw -------------------------------------------------------------------------------------------------------


def test_lfw_trains_on_some_sets_and_judges_by_the_others(small_lfw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert data("lfw", small_lfw, out, "--sets", "1", "--keep") == 0
    pack = open_pack(out)
    assert (out / "train.lst").read_text().split() == [
        *("1", "0", "Ann/Ann_0001.jpg", "2", "0", "Ann/Ann_0002.jpg", "3", "1", "Bob/Bob_0001.jpg")
    ]
    assert bytes(pack.encoded(2)) == (small_lfw / "Bob/Bob_0001.jpg").read_bytes()
    assert len(load_verification(out / "lfw.bin")) == 4
    assert len(load_verification(out / "lfw_set2.bin")) == 2
    assert load_verification(out / "lfw_set2.bin").identity_2N is not None
    assert not (out / "lfw_set1.bin").exists() and not (out / ".making").exists()


@pytest.mark.parametrize(("sets", "said"), [("1-3", "must be some of 1 to 2"), ("x", "must be like 1-9")])
def test_lfw_without_such_a_set(small_lfw: Path, tmp_path: Path, sets: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        data("lfw", small_lfw, tmp_path / "out", "--sets", sets)


def test_lfw_that_is_not_complete_is_refused(small_lfw: Path, tmp_path: Path) -> None:
    (small_lfw / lfw_image("Ann", 2)).unlink()
    with pytest.raises(MissingDataError, match=r"Ann: holds 1 image, people\.txt says 2"):
        data("lfw", small_lfw, tmp_path / "out", "--sets", "all")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_lfw_is_byte_for_byte_the_pack_that_mxnet_wrote(lfw_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lfw"
    data("unpack", lfw_root, folder)
    published = load_verification(lfw_root / "lfw.bin")
    for k, pair in enumerate(read_pairs_txt(lfw_root / "pairs.txt").pairs):
        for path, row in zip(pair[:2], (2 * k, 2 * k + 1), strict=True):
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(published.images[published.index_2N[row]])
    data("lfw", folder, tmp_path / "out", "--lists", lfw_root, "--keep")
    for name in ("train.rec", "train.idx", "train.lst", "property"):
        assert (tmp_path / "out" / name).read_bytes() == (lfw_root / name).read_bytes()
    for name in ("lfw.bin", "lfw_set10.bin"):
        ours, theirs = (load_verification(root / name) for root in (tmp_path / "out", lfw_root))
        assert list(ours.images) == list(theirs.images)
        assert (ours.index_2N == theirs.index_2N).all() and (ours.issame_N == theirs.issame_N).all()


def _split(name: str) -> tuple[str, int]:
    who, number = name.split()
    return who, int(number)


# Lists and sets of other programs ---------------------------------------------------------------------------


@pytest.mark.parametrize(("ending", "kind"), [(".png", "PNG"), (".JPG", "JPEG")])
def test_pairs_txt_finds_images_of_another_ending(
    small_lfw: Path, tmp_path: Path, ending: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    for path in small_lfw.rglob("*.jpg"):
        path.with_suffix(ending).write_bytes(image(1, kind=kind))
        path.unlink()
    with caplog.at_level("INFO"):
        data("pairs", small_lfw, tmp_path / "x.bin", "--list", small_lfw / "pairs.txt")
    assert len(load_verification(tmp_path / "x.bin")) == 4
    assert (
        f"6 of 6 listed images have another ending, such as {small_lfw}/Ann/Ann_0001{ending}" in caplog.text
    )
    (small_lfw / "Ann" / "Ann_0001.bmp").write_bytes(image(1, kind="BMP"))
    with pytest.raises(
        UserError, match=r"Ann_0001\.jpg: is not there, but Ann_0001\.\w+ and Ann_0001\.\w+ are"
    ):
        data("pairs", small_lfw, tmp_path / "y.bin", "--list", small_lfw / "pairs.txt")


def test_impostor_pairs_of_one_identity_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "pairs.txt").write_text("1\t1\nAnn\t1\t2\nAnn\t1\tAnn\t2\n")
    assert [pair.same for pair in read_pairs_txt(tmp_path / "pairs.txt").pairs] == [True, False]
    assert r"pairs.txt: 1 impostor pairs are of one identity, such as line 3 (Ann/Ann_0001.jpg" in caplog.text
    caplog.clear()
    (tmp_path / "flat.csv").write_text("f/1.jpg,f/2.jpg,1\nf/1.jpg,f/3.jpg,0\n")
    read_csv(tmp_path / "flat.csv")
    assert not caplog.text
    (tmp_path / "p.csv").write_text("a/1.jpg,a/2.jpg,1\na/1.jpg,a/3.jpg,0\na/1.jpg,b/1.jpg,0\n")
    read_csv(tmp_path / "p.csv")
    assert "p.csv: 1 impostor pairs are of one folder, such as line 2 (a/1.jpg, a/3.jpg)" in caplog.text


def test_a_set_knows_its_folds(small_lfw: Path, tmp_path: Path) -> None:
    fill(tmp_path / "faces", {"Ann": 2, "Bob": 2, "Cyd": 2, "Dan": 2, "Eve": 2, "Fay": 2})
    data("pairs", tmp_path / "faces", tmp_path / "x.bin", "--folds", "3")
    made = load_verification(tmp_path / "x.bin")
    assert made.folds == 3 and made.identity_2N is not None
    data("pairs", small_lfw, tmp_path / "y.bin", "--list", small_lfw / "pairs.txt")
    assert load_verification(tmp_path / "y.bin").folds == 2
    flat = tmp_path / "flat.csv"
    flat.write_text(f"{lfw_image('Ann', 1)},{lfw_image('Ann', 2)},1\n" * 2)
    data("pairs", small_lfw, tmp_path / "y.bin", "--csv", flat, "--force")
    assert load_verification(tmp_path / "y.bin").folds is None  # that of the earlier set is gone
