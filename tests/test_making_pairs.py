"""`facerec-data unpack`, `pairs` and `lfw`: pictures out of packs, and verification sets of one's own."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facerec.cli.data import run
from facerec.data.decode import decode
from facerec.data.making.drawing import draw_pairs
from facerec.data.making.pair_lists import lfw_picture, read_csv, read_names, read_pairs_txt, read_people_txt
from facerec.data.packs import open_pack
from facerec.data.recordio import Record, RecordWriter
from facerec.data.verification import load_verification
from facerec.errors import ConfigError, DamagedDataError, FacerecError, MissingDataError, UserError
from tests.test_making_pack import picture


def fill(folder: Path, people: dict[str, int]) -> Path:
    """A folder of people, each picture another one, named as in LFW."""
    for seed, (name, many) in enumerate(people.items()):
        (folder / name).mkdir(parents=True)
        for i in range(1, many + 1):
            (folder / lfw_picture(name, i)).write_bytes(picture(100 * seed + i))
    return folder


@pytest.fixture
def golden(recordio_files: Path, tmp_path: Path) -> Path:
    """A writable copy of a pack that the original mxnet wrote."""
    for ending in ("rec", "idx"):
        shutil.copy(recordio_files / f"insightface_layout.{ending}", tmp_path / f"golden.{ending}")
    return tmp_path / "golden.rec"


# unpack ----------------------------------------------------------------------------------------------------


def test_unpacked_and_packed_again_is_what_mxnet_wrote(golden: Path, tmp_path: Path) -> None:
    assert run(["unpack", str(golden), str(tmp_path / "files")]) == 0
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == ["0", "1", "2", "3"]
    for path in (tmp_path / "files").rglob("*.jpg"):  # so that names sort as keys do
        path.rename(path.with_name(f"{int(path.stem):03}.jpg"))
    run(["pack", str(tmp_path / "files"), str(tmp_path / "again"), "--keep"])
    again, pack = open_pack(tmp_path / "again"), open_pack(golden)
    assert [bytes(again.encoded(i)) for i in range(12)] == [bytes(pack.encoded(i)) for i in range(12)]
    assert (tmp_path / "again" / "train.idx").read_bytes() == golden.with_suffix(".idx").read_bytes()


def test_unpack_uses_the_names_of_the_lst_in_any_order(golden: Path, tmp_path: Path) -> None:
    lines = [f"{key}\t0\tperson {key % 2}/é{key}.jpg\n" for key in range(12, 0, -1) if key != 5]
    golden.with_suffix(".lst").write_text("".join(lines))
    run(["unpack", str(golden), str(tmp_path / "out")])
    pack = open_pack(golden)
    assert (tmp_path / "out" / "person 1" / "é3.jpg").read_bytes() == bytes(pack.encoded(2))
    assert len(list((tmp_path / "out").rglob("*.jpg"))) == 12, "the one without a name gets a number"


@pytest.mark.parametrize("name", ["../../escaped.jpg", "/escaped.jpg", "a/../../b.jpg", "a\0b.jpg"])
def test_unpack_never_writes_outside_of_its_folder(golden: Path, tmp_path: Path, name: str) -> None:
    golden.with_suffix(".lst").write_text(f"1\t0\t{name}\n")
    with pytest.raises(DamagedDataError, match=r"line 1: .* leads out of its folder"):
        run(["unpack", str(golden), str(tmp_path / "out")])
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.suffix != ".cache") == [
        ".idx",
        ".lst",
        ".rec",
    ]


@pytest.mark.parametrize("name", [f"{'é' * 200}/1.jpg", f"Ann/{'é' * 200}.jpg"])
def test_unpack_refuses_a_name_that_no_file_can_have(golden: Path, tmp_path: Path, name: str) -> None:
    golden.with_suffix(".lst").write_text(f"1\t0\t{name}\n")
    said = rf"\.lst: identity {name[:3]}.*: the name é+… has 40\d bytes, a file's 255 at most; shorten"
    with pytest.raises(UserError, match=said):
        run(["unpack", str(golden), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_unpack_refuses_two_pictures_of_one_name_and_a_folder_in_use(golden: Path, tmp_path: Path) -> None:
    golden.with_suffix(".lst").write_text("1\t0\ta/b.jpg\n2\t0\ta/b.jpg\n")
    with pytest.raises(UserError, match=r"names two pictures a/b\.jpg"):
        run(["unpack", str(golden), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out.*"))
    golden.with_suffix(".lst").unlink()
    mine = tmp_path / "out" / "0" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(UserError, match="is not empty; --force writes into it"):
        run(["unpack", str(golden), str(tmp_path / "out")])
    assert run(["unpack", str(golden), str(tmp_path / "out"), "--force"]) == 0
    assert mine.read_text() == "mine" and len(list((tmp_path / "out").rglob("*.jpg"))) == 12


def test_unpack_of_a_damaged_pack_writes_the_rest_and_ends_with_1(
    golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offset = int(open_pack(golden).offset_N[3])
    with golden.open("r+b") as file:
        file.seek(offset)
        file.write(b"\0")
    assert run(["unpack", str(golden), str(tmp_path / "out")]) == 1
    assert len(list((tmp_path / "out").rglob("*.jpg"))) == 11


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
        drawn = draw_pairs(label_N, folds=folds, seed=seed)
    except UserError as error:
        possible = re.search(r"--folds (\d+) is possible", str(error))
        assert possible is None or int(possible[1]) < folds
        assert possible is not None or len(many) < 2 or max(many) < 2
        return
    label_K2 = label_N[drawn.picture_K2]
    assert (drawn.issame_K == (label_K2[:, 0] == label_K2[:, 1])).all()
    assert (drawn.picture_K2[:, 0] != drawn.picture_K2[:, 1]).all()
    assert len(np.unique(np.sort(drawn.picture_K2, axis=1), axis=0)) == len(drawn.picture_K2)
    people = []
    for issame, labels in zip(np.split(drawn.issame_K, folds), np.split(label_K2, folds), strict=True):
        assert 2 * issame.sum() == len(issame) > 0
        people.append(set(labels.ravel().tolist()))
    assert sum(map(len, people)) == len(set.union(*people)), "no one is in two folds"
    again = draw_pairs(label_N, folds=folds, seed=seed)
    assert (again.picture_K2 == drawn.picture_K2).all()


def test_genuine_pairs_come_from_all_before_anyone_gives_two() -> None:
    label_N = np.repeat(np.arange(40), [100] + [3] * 39)
    drawn = draw_pairs(label_N, count=80, folds=2)
    person_K = label_N[drawn.picture_K2[drawn.issame_K, 0]]
    assert np.bincount(person_K, minlength=40).tolist() == [1] * 40


def test_another_seed_draws_other_pairs() -> None:
    label_N = np.repeat(np.arange(40), 5)
    first, second = (draw_pairs(label_N, seed=seed).picture_K2 for seed in (0, 1))
    assert first.shape != second.shape or (first != second).any()


@pytest.mark.parametrize("count", [0, 30, 10**6, -40])
def test_an_impossible_count_says_what_is_possible(count: int) -> None:
    with pytest.raises(ConfigError, match=r"--count=.*: must be a multiple of 20, 20 to \d+, here"):
        draw_pairs(np.repeat(np.arange(40), 5), count=count)


def test_pairs_of_a_folder_are_faces_of_its_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fill(tmp_path / "in", {f"p{i}": 3 for i in range(6)})
    (folder / "p0" / lfw_picture("p0", 9).split("/")[1]).write_bytes(b"broken")
    for name in ("a", "b"):
        assert run(["pairs", str(folder), str(tmp_path / f"{name}.bin"), "--folds", "3", "--keep"]) == 0
    made = load_verification(tmp_path / "a.bin")
    assert len(made) == 3 * 2 * 6
    originals = {path.read_bytes() for path in folder.rglob("*.jpg")}
    assert set(made.pictures) < originals and b"broken" not in made.pictures
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()
    with pytest.raises(UserError, match="--force replaces it"):
        run(["pairs", str(folder), str(tmp_path / "a.bin")])


def test_pairs_of_a_pack_are_its_own_bytes(golden: Path, tmp_path: Path) -> None:
    assert run(["pairs", str(golden), str(tmp_path / "x.bin"), "--folds", "2"]) == 0
    pack = open_pack(golden)
    own = {bytes(pack.encoded(i)): int(pack.label_N[i]) for i in range(len(pack))}
    made = load_verification(tmp_path / "x.bin")
    label_K2 = np.array([own[bytes(one)] for one in made.pictures])[made.index_2N].reshape(-1, 2)
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
    assert run(["pairs", str(small_lfw), str(out), "--list", str(small_lfw / "pairs.txt"), "--keep"]) == 0
    made = load_verification(out)
    rows = [made.pictures[i] for i in made.index_2N]
    names = ["Ann 1", "Ann 2", "Ann 1", "Bob 1", "Cyd 2", "Cyd 1", "Dan 1", "Cyd 2"]
    files = [(small_lfw / lfw_picture(*_split(name))).read_bytes() for name in names]
    assert rows == files and made.issame_N.tolist() == [True, False, True, False]


def test_pairs_of_a_csv(small_lfw: Path, tmp_path: Path) -> None:
    paths = [lfw_picture("Ann", 1), lfw_picture("Ann", 2), lfw_picture("Bob", 1)]
    text = f'first,second,same\n{paths[0]},{paths[1]},1\n\n"{paths[0]}",{paths[2]}, different\n'
    (tmp_path / "p.csv").write_text(text)
    run(["pairs", str(small_lfw), str(tmp_path / "x.bin"), "--csv", str(tmp_path / "p.csv")])
    made = load_verification(tmp_path / "x.bin")
    assert made.issame_N.tolist() == [True, False] and len(made.pictures) == 3
    assert decode(made.pictures[0]).shape == (112, 112, 3)


@pytest.mark.parametrize("link", ["Dan/Dan_0001.jpg", "Dan"])
def test_a_picture_that_the_list_names_is_no_link_out_of_the_folder(
    small_lfw: Path, tmp_path: Path, link: str
) -> None:
    (small_lfw / link).rename(tmp_path / "elsewhere")
    (small_lfw / link).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MissingDataError, match=rf"Dan_0001\.jpg: a link that leads out of {small_lfw}; put"):
        run(["pairs", str(small_lfw), str(tmp_path / "x.bin"), "--list", str(small_lfw / "pairs.txt")])
    assert not (tmp_path / "x.bin").exists()
    (small_lfw / link).unlink()
    (tmp_path / "elsewhere").rename(small_lfw / "mine")
    (small_lfw / link).symlink_to(small_lfw / "mine")
    run(["pairs", str(small_lfw), str(tmp_path / "x.bin"), "--list", str(small_lfw / "pairs.txt")])


def test_a_picture_that_the_list_names_must_be_there(small_lfw: Path, tmp_path: Path) -> None:
    (small_lfw / lfw_picture("Dan", 1)).unlink()
    (small_lfw / lfw_picture("Bob", 1)).unlink()
    with pytest.raises(
        MissingDataError, match=r"Bob_0001\.jpg: is in the list, but not there and 1 more of 6"
    ):
        run(["pairs", str(small_lfw), str(tmp_path / "x.bin"), "--list", str(small_lfw / "pairs.txt")])
    assert not (tmp_path / "x.bin").exists()


@pytest.mark.parametrize(
    ("reader", "text", "said"),
    [
        (read_pairs_txt, "x\t2\n", r"line 1: must be folds"),
        (read_pairs_txt, "1\t1\nAnn\t1\n", r"line 2: must be name<TAB>i<TAB>j"),
        (read_pairs_txt, "1\t1\nAnn\t1\t2\nAnn\t1\t2\n", r"line 3: must be name<TAB>i<TAB>name<TAB>j"),
        (read_pairs_txt, "1\t1\nAnn\tone\t2\n", r"line 2: the pictures must be numbers"),
        (read_pairs_txt, "1\t2\nAnn\t1\t2\n", r"holds 1 pair, its first line announces 4"),
        (read_pairs_txt, "", r"line 1: must be folds"),
        (read_people_txt, "1\n2\nAnn\t1\n", r"line 4: must be name"),
        (read_people_txt, "1\nAnn\t1\n", r"line 2: must be the number of people"),
        (read_csv, "a,b,1\na,b\n", r"line 2: must be path,path,label"),
        (read_csv, "a,b,1\na,b,maybe\n", r"line 2: must be path,path,label"),
        (read_csv, "first,second,same\n", r"holds no pairs"),
        (read_names, "1\t2\n", r"holds no names"),
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
    for reader in (read_pairs_txt, read_people_txt, read_csv, read_names):
        try:
            reader(path)
        except FacerecError as error:
            assert str(path) in str(error)


# lfw -------------------------------------------------------------------------------------------------------


def test_lfw_trains_on_some_sets_and_judges_by_the_others(small_lfw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(["lfw", str(small_lfw), str(out), "--sets", "1", "--keep"]) == 0
    pack = open_pack(out)
    assert (out / "train.lst").read_text().split() == [
        *("1", "0", "Ann/Ann_0001.jpg", "2", "0", "Ann/Ann_0002.jpg", "3", "1", "Bob/Bob_0001.jpg")
    ]
    assert bytes(pack.encoded(2)) == (small_lfw / "Bob/Bob_0001.jpg").read_bytes()
    assert len(load_verification(out / "lfw.bin")) == 4
    assert len(load_verification(out / "lfw_set2.bin")) == 2
    assert load_verification(out / "lfw_set2.bin").identity_2N is not None
    assert not (out / "lfw_set1.bin").exists() and not (out / ".making").exists()
    with pytest.raises(UserError, match="--force"):
        run(["lfw", str(small_lfw), str(out), "--sets", "1"])


@pytest.mark.parametrize(("sets", "said"), [("1-3", "must be some of 1 to 2"), ("x", "must be like 1-9")])
def test_lfw_without_such_a_set(small_lfw: Path, tmp_path: Path, sets: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        run(["lfw", str(small_lfw), str(tmp_path / "out"), "--sets", sets])


def test_lfw_that_is_not_complete_is_refused(small_lfw: Path, tmp_path: Path) -> None:
    (small_lfw / lfw_picture("Ann", 2)).unlink()
    with pytest.raises(MissingDataError, match=r"Ann: holds 1 picture, people\.txt says 2"):
        run(["lfw", str(small_lfw), str(tmp_path / "out"), "--sets", "all"])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_lfw_is_byte_for_byte_the_pack_that_mxnet_wrote(lfw_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lfw"
    run(["unpack", str(lfw_root), str(folder)])
    published = load_verification(lfw_root / "lfw.bin")
    for k, pair in enumerate(read_pairs_txt(lfw_root / "pairs.txt").pairs):
        for path, row in zip(pair[:2], (2 * k, 2 * k + 1), strict=True):
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(published.pictures[published.index_2N[row]])
    run(["lfw", str(folder), str(tmp_path / "out"), "--lists", str(lfw_root), "--keep"])
    for name in ("train.rec", "train.idx", "train.lst", "property"):
        assert (tmp_path / "out" / name).read_bytes() == (lfw_root / name).read_bytes()
    for name in ("lfw.bin", "lfw_set10.bin"):
        ours, theirs = (load_verification(root / name) for root in (tmp_path / "out", lfw_root))
        assert list(ours.pictures) == list(theirs.pictures)
        assert (ours.index_2N == theirs.index_2N).all() and (ours.issame_N == theirs.issame_N).all()


def _split(name: str) -> tuple[str, int]:
    who, number = name.split()
    return who, int(number)


def test_the_im2rec_layout_is_unpacked_too(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "x.rec") as writer:
        for key, label in enumerate((5, 3, 5)):
            writer.write(key, Record(0, float(label), key, 0, picture(key)))
    run(["unpack", str(tmp_path / "x.rec"), str(tmp_path / "out")])
    found = sorted(
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.jpg")
    )
    assert found == ["3/1.jpg", "5/0.jpg", "5/2.jpg"]


# Lists and sets of other programs ---------------------------------------------------------------------------


@pytest.mark.parametrize(("ending", "kind"), [(".png", "PNG"), (".JPG", "JPEG")])
def test_pairs_txt_finds_pictures_of_another_ending(
    small_lfw: Path, tmp_path: Path, ending: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    for path in small_lfw.rglob("*.jpg"):
        path.with_suffix(ending).write_bytes(picture(1, kind=kind))
        path.unlink()
    with caplog.at_level("INFO"):
        run(["pairs", str(small_lfw), str(tmp_path / "x.bin"), "--list", str(small_lfw / "pairs.txt")])
    assert len(load_verification(tmp_path / "x.bin")) == 4
    assert (
        f"6 of 6 listed images have another ending, such as {small_lfw}/Ann/Ann_0001{ending}" in caplog.text
    )
    (small_lfw / "Ann" / "Ann_0001.bmp").write_bytes(picture(1, kind="BMP"))
    with pytest.raises(
        UserError, match=r"Ann_0001\.jpg: is not there, but Ann_0001\.\w+ and Ann_0001\.\w+ are"
    ):
        run(["pairs", str(small_lfw), str(tmp_path / "y.bin"), "--list", str(small_lfw / "pairs.txt")])


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


@pytest.mark.parametrize("name", ["..", "a/b", "."])
def test_a_list_never_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "pairs.txt").write_text(f"1\t1\nAnn\t1\t2\nAnn\t1\t{name}\t2\n")
    with pytest.raises(DamagedDataError, match=r"line 3: '.*' is no name of a folder"):
        read_pairs_txt(tmp_path / "pairs.txt")


def test_a_set_knows_its_folds(small_lfw: Path, tmp_path: Path) -> None:
    fill(tmp_path / "faces", {"Ann": 2, "Bob": 2, "Cyd": 2, "Dan": 2, "Eve": 2, "Fay": 2})
    run(["pairs", str(tmp_path / "faces"), str(tmp_path / "x.bin"), "--folds", "3"])
    made = load_verification(tmp_path / "x.bin")
    assert made.folds == 3 and made.identity_2N is not None
    run(["pairs", str(small_lfw), str(tmp_path / "y.bin"), "--list", str(small_lfw / "pairs.txt")])
    assert load_verification(tmp_path / "y.bin").folds == 2
    flat = tmp_path / "flat.csv"
    flat.write_text(f"{lfw_picture('Ann', 1)},{lfw_picture('Ann', 2)},1\n" * 2)
    run(["pairs", str(small_lfw), str(tmp_path / "y.bin"), "--csv", str(flat), "--force"])
    assert load_verification(tmp_path / "y.bin").folds is None  # that of the earlier set is gone
