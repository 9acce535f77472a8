"""Verification packs: every published kind is read, nothing in them is ever run, damage is named."""

from __future__ import annotations

import os
import pickle
import pickletools
import re
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from facerec.errors import DamagedDataError, MissingDataError, StorageError
from facerec.images.decode import decode
from facerec.packs.verification import load_verification, verification_set, write_verification
from facerec.pickles.stand_ins import Forbidden
from tests.making import little
from tests.pickled_packs import IMAGES, ISSAME, VARIANTS


@pytest.fixture
def pack(tmp_path: Path):
    def write(data: bytes) -> Path:
        path = tmp_path / "toy.bin"
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize("kind", VARIANTS)
def test_every_kind_of_pack_is_read(pack, kind: str) -> None:
    loaded = load_verification(pack(VARIANTS[kind]))
    assert loaded.name == "toy"
    assert loaded.issame_N.tolist() == ISSAME
    assert loaded.issame_N.dtype == np.bool_
    assert [loaded.images[i] for i in loaded.index_2N] == IMAGES


def test_equal_images_are_kept_once_in_the_order_of_first_occurrence(pack) -> None:
    loaded = load_verification(pack(VARIANTS["protocol 4"]))
    assert loaded.index_2N.tolist() == [0, 1, 2, 1, 0, 3]
    assert list(loaded.images) == [IMAGES[i] for i in (0, 1, 2, 5)]
    assert len(loaded) == 3
    assert "3 pairs (2 genuine, 1 impostor) of 4 distinct images" in loaded.describe()
    assert loaded.where(3) == f"the second image of pair 2 in {loaded.path}"


def test_a_written_pack_reads_back_and_is_a_plain_pickle(tmp_path: Path) -> None:
    path = tmp_path / "new" / "mine.bin"
    write_verification(path, IMAGES, np.array(ISSAME))
    assert pickle.loads(path.read_bytes()) == (IMAGES, ISSAME)
    assert "GLOBAL" not in {operation.name for operation, _, _ in pickletools.genops(path.read_bytes())}
    assert load_verification(path).index_2N.tolist() == [0, 1, 2, 1, 0, 3]
    assert path.stat().st_mode & 0o777 == 0o644
    assert path.stat().st_size < sum(map(len, IMAGES))  # equal images once
    assert [entry.name for entry in path.parent.iterdir()] == ["mine.bin"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.bin"
    identities = [
        name for pair, same in enumerate(ISSAME) for name in (f"{pair}", f"{pair}" if same else "x")
    ]
    write_verification(path, IMAGES, ISSAME, identities)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"mine\.bin could not be written: No space left"):
        write_verification(path, IMAGES[:2], ISSAME[:1])
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["mine.bin", "mine.people.tsv"]
    assert load_verification(path).identity_2N.tolist() == identities


def test_names_of_identities_come_back_whatever_bytes_and_spaces_they_have(tmp_path: Path) -> None:
    names = [
        os.fsdecode(name) for name in (b"\xff\xfe", "Zoë".encode(), b"a  b", b"a b", "a\u3000b".encode())
    ]
    identities = [name for name in names for _ in range(2)]
    write_verification(tmp_path / "a.bin", [IMAGES[0]] * len(identities), [True] * len(names), identities)
    assert load_verification(tmp_path / "a.bin").identity_2N.tolist() == identities


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_would_run_a_program_is_refused_by_name(pack, tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "ran"
    path = pack(pickle.dumps(([Evil(marker)], [True]), protocol))
    with pytest.raises(Forbidden, match=r"toy\.bin: the pickle asks for posix\.system"):
        load_verification(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"(cos\nsystem\nS'echo'\no.", "os.system"),
        (b"cbuiltins\ngetattr\n.", "builtins.getattr"),
        (b"cnumpy.testing._private.utils\nrunstring\n.", "numpy.testing._private.utils.runstring"),
        (b"\x80\x04\x8c\x0bnumpy._core\x8c\x0edefchararray.x\x93.", "numpy._core.defchararray.x"),
        (b"\x80\x02cnumpy\nload\n.", "numpy.load"),
        (b"\x80\x02c_codecs\ndecode\n.", "_codecs.decode"),
        (pickle.dumps(Path("x"), 4), "pathlib"),
    ],
)
def test_every_other_global_is_refused_by_name(pack, data: bytes, named: str) -> None:
    with pytest.raises(Forbidden, match=re.escape(named)):
        load_verification(pack(data))


@pytest.mark.parametrize(
    "data", [b"(S'echo'\nios\nsystem\n.", b"Psomewhere\n.", b"]2\x86.", b"\x80\x04\x8f.", b"N\x82\x01."]
)
def test_operations_that_no_pack_needs_are_refused(pack, data: bytes) -> None:
    """Instances, objects kept elsewhere, duplicates, sets and registered extensions."""
    with pytest.raises(DamagedDataError, match=r"toy\.bin is no pickle.*no operation that data need"):
        load_verification(pack(data))


@pytest.mark.parametrize(
    "data", [b"c_codecs\nencode\n(Vabc\nVzip\ntR.", b"c_codecs\nencode\n(Vabc\nVrot13\ntR."]
)
def test_encode_knows_latin1_only(pack, data: bytes) -> None:
    with pytest.raises(Forbidden, match="only latin1"):
        load_verification(pack(data))


def test_functions_cannot_be_changed_by_a_pickle(pack) -> None:
    for name in (
        b"_codecs\nencode",
        b"numpy\ndtype",
        b"numpy.core.multiarray\n_reconstruct",
        b"numpy\nndarray",
    ):
        for state in (b"}S'x'\nI1\ns", b"N}S'__doc__'\nI1\ns\x86"):
            with pytest.raises(DamagedDataError, match="asks for a dict"):
                load_verification(pack(b"c" + name + b"\n" + state + b"b."))
        with pytest.raises(DamagedDataError, match="it sets attributes of what has none"):
            load_verification(pack(b"c" + name + b"\n(NK\x01tb."))
    assert load_verification(pack(VARIANTS["images as arrays"])).issame_N.tolist() == ISSAME


def test_arrays_of_anything_but_numbers_are_refused(pack) -> None:
    for array in (np.array(["abc"]), np.zeros(2, [("a", "i4")]), np.zeros(1, "M8[s]"), np.zeros(2, complex)):
        with pytest.raises(DamagedDataError, match=r"it holds an array of|the pickle asks for a dict"):
            load_verification(pack(pickle.dumps((IMAGES, array), 2)))


BOMBS = {
    "a length beyond the file": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"abc.",
    "a length beyond any memory": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.",
    "a long string beyond the file": b"\x80\x02T" + struct.pack("<i", 2**31 - 1) + b"abc.",
    "a memo number of billions": b"\x80\x02]r" + struct.pack("<I", 2**32 - 1) + b".",
    "one text encoded again and again": b"\x80\x02c_codecs\nencode\nq\x00X"
    + struct.pack("<I", 10**6)
    + b"a" * 10**6
    + b"q\x01\x85q\x020](" + b"h\x00h\x02R" * 3000 + b"e.",
    "a negative memo number": b"\x80\x02]p-5\n.",
}  # fmt: skip


def doubled(times: int, seed: bytes = b"]", close: bytes = b"\x86") -> bytes:
    """A tuple (or another pair) that holds the one before twice, `times` deep: 2^times elements in all."""
    return seed + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + close for i in range(times))


ENDLESS = {
    "a key of tuples": b"\x80\x02}" + doubled(60) + b"K\x01s.",
    "a set of tuples": b"\x80\x04\x8f(" + doubled(60) + b"\x90.",
    "a frozenset of tuples": b"\x80\x04(" + doubled(60) + b"\x91.",
    "an answer of tuples": b"\x80\x02](U\x01aU\x01ae](" + doubled(60) + b"e\x86.",
    "an image of tuples": b"\x80\x02](U\x01a" + doubled(60) + b"e]\x88a\x86.",
    "an encoding of tuples": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00a" + doubled(60) + b"\x86R.",
    "a type of tuples": b"\x80\x02cnumpy\ndtype\n" + doubled(60) + b"\x85R.",
    "a shape of tuples": b"\x80\x02cnumpy.core.numeric\n_frombuffer\n(U\x01acnumpy\ndtype\nU\x02u1\x85R"
    + doubled(60) + b"U\x01CtR.",
    "a list that holds itself": b"\x80\x02]q\x00h\x00a]\x88a\x86.",
    "an id of tuples": b"\x80\x02" + doubled(60) + b"Q.",
}  # fmt: skip


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_small_file_cannot_take_for_ever(pack, kind: str) -> None:
    with pytest.raises(DamagedDataError, match=r"toy\.bin") as caught:
        load_verification(pack(ENDLESS[kind]))
    assert len(str(caught.value)) < 300


def test_equal_long_images_are_compared_once_however_often_they_are_held(pack) -> None:
    long = b"T" + struct.pack("<i", 2**20) + bytes(2**20)
    data = b"\x80\x02](" + long + b"q\x00" + long + b"q\x01" + b"h\x00h\x01" * 49_999 + b"e]("
    loaded = load_verification(pack(data + b"\x88" * 50_000 + b"e\x86."))
    assert (len(loaded), len(loaded.images)) == (50_000, 1)


@pytest.mark.parametrize("kind", BOMBS)
def test_a_small_file_cannot_ask_for_much_memory(pack, kind: str) -> None:
    said = r"toy\.bin is no (pickle, or not a whole one|verification pack)"
    with little(100_000_000), pytest.raises(DamagedDataError, match=said):
        load_verification(pack(BOMBS[kind]))


def test_what_is_no_pickle_is_said_to_be_none(pack) -> None:
    for data in (b"", b"<html>not found</html>", b"\x00" * 100, b"hello", b"PK\x03\x04" + bytes(60)):
        with pytest.raises(DamagedDataError, match=r"toy\.bin is no pickle, or not a whole one"):
            load_verification(pack(data))


@pytest.mark.parametrize("kind", ["python 2", "protocol 4", "issame array", "array of objects"])
def test_a_cut_file_is_damaged_wherever_it_is_cut(pack, kind: str) -> None:
    whole = VARIANTS[kind]
    for length in {0, 1, 2, 10, *range(100, len(whole) - 1, 997), len(whole) - 40, len(whole) - 1}:
        with pytest.raises(DamagedDataError, match=r"toy\.bin"):
            load_verification(pack(whole[:length]))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ((IMAGES[:5], ISSAME), "holds 5 images, an odd number"),
        ((IMAGES[:4], ISSAME), "holds 4 images, so 2 pairs, but 3 answers"),
        (([], []), "holds no pairs"),
        (IMAGES, "a pair"),
        ({"bins": IMAGES}, "the pickle asks for a dict"),
        ((1, ISSAME), "its images are of type int, not a list"),
        ((IMAGES, 3), "issame is of type int, not a list"),
        (([*IMAGES[:5], "text"], ISSAME), "image 5 is of type str"),
        (([*IMAGES[:5], np.zeros((2, 2))], ISSAME), r"image 5 is an array of float64 and shape \(2, 2\)"),
        ((IMAGES, [True, False, 2]), r"the answer \(issame\) of pair 2 is 2"),
        ((IMAGES, [True, None, False]), r"pair 1 is None"),
        ((IMAGES, np.zeros((3, 2), bool)), r"issame is an array of bool and shape \(3, 2\)"),
    ],
)
def test_a_pickle_of_something_else_is_told_apart(pack, content: object, said: str) -> None:
    with pytest.raises(DamagedDataError, match=said):
        load_verification(pack(pickle.dumps(content, 4)))


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"no verification set .*lfw\.bin; eval\.root"):
        load_verification(tmp_path / "lfw.bin")


def test_a_folder_is_no_pack(tmp_path: Path) -> None:
    with pytest.raises(DamagedDataError, match="cannot be read: Is a directory"):
        load_verification(tmp_path)


def test_a_image_that_does_not_decode_is_met_when_it_is_decoded(pack) -> None:
    loaded = load_verification(pack(pickle.dumps(([*IMAGES[:5], IMAGES[5][:200]], ISSAME), 4)))
    assert decode(loaded.images[0]).shape == (112, 112, 3)
    with pytest.raises(DamagedDataError):
        decode(loaded.images[3])


def test_numbers_that_do_not_fit_are_refused_before_writing(tmp_path: Path) -> None:
    with pytest.raises(DamagedDataError, match="odd number"):
        write_verification(tmp_path / "x.bin", IMAGES[:3], ISSAME)
    with pytest.raises(DamagedDataError, match="mine holds 6 images, so 3 pairs, but 2 answers"):
        verification_set("mine", IMAGES, [True, False])
    assert list(tmp_path.iterdir()) == []


def test_lfw_is_read_within_two_seconds_and_half_a_gigabyte(lfw_root: Path) -> None:
    started = time.perf_counter()
    loaded = load_verification(lfw_root / "lfw.bin")
    assert time.perf_counter() - started < 2
    assert (len(loaded), len(loaded.images), int(loaded.issame_N.sum())) == (6000, 7701, 3000)
    with little(250_000_000):
        load_verification(lfw_root / "lfw.bin")


def test_a_pack_of_python_2_is_part_of_the_one_of_python_3(lfw_root: Path) -> None:
    whole = load_verification(lfw_root / "lfw.bin")
    part = load_verification(lfw_root / "lfw_set10.bin")
    assert [part.images[i] for i in part.index_2N] == [whole.images[i] for i in whole.index_2N[-1200:]]
    assert np.array_equal(part.issame_N, whole.issame_N[-600:])
