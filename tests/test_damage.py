"""Damage of every kind to whole packs and `.bin` files: an error or the truth, in little memory and no time.

Packs are generated, then bytes are changed, the end is cut off, and the files beside them become rubbish.
"""

from __future__ import annotations

import pickle
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from facerec.cli.base import reported
from facerec.errors import FacerecError
from facerec.packs.pack import open_pack
from facerec.packs.recordio import Record, RecordReader, RecordWriter
from facerec.packs.verification import load_verification, write_verification
from tests.making import data, little

MAGIC = 0xCED7230A.to_bytes(4, "little")
quick = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

# Bytes that mean something where they land: the magic number, lengths that are much too large, flags, NaN.
nasty = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.sampled_from(
        [MAGIC, b"\xff\xff\xff\x1f", b"\xff" * 4, b"\x00" * 8, b"\x00\x00\xc0\x7f", b"\x00\x00\x00\x60"]
    ),
)
damages = st.lists(st.tuples(st.floats(0, 0.9999), nasty), max_size=5)
cuts = st.one_of(st.none(), st.floats(0, 1))


@st.composite
def packs(draw: st.DrawFn) -> list[tuple[int, bytes]]:
    """Label and image of each record; images are any bytes, some with magic numbers inside."""
    many = draw(st.integers(1, 24))
    source = random.Random(draw(st.integers(0, 2**32)))
    records = []
    for i in range(many):
        body = source.randbytes(source.randrange(1, 200))
        if source.random() < 0.3:
            body = body[: len(body) // 4 * 4] + MAGIC + body
        records.append((i * 7 // many, i.to_bytes(4, "little") + body))
    return records


def write(folder: Path, records: list[tuple[int, bytes]], insightface: bool) -> Path:
    with RecordWriter(folder / "train.rec") as writer:
        end = len(records) + 1
        labels = [label for label, _ in records]
        classes = sorted(set(labels))
        if insightface:
            writer.write(0, Record(2, (float(end), float(end + len(classes))), 0, 0, b""))
        for key, (label, payload) in enumerate(records, 1):
            writer.write(key, Record(0, float(label), key, 0, payload))
        for i, label in enumerate(classes if insightface else ()):
            first = 1 + labels.index(label)
            ends = (float(first), float(first + labels.count(label)))
            writer.write(end + i, Record(2, ends, end + i, 0, b""))
    return folder / "train.rec"


@contextmanager
def cheaply() -> Iterator[None]:
    """Assert that the body takes less than 4 MB and 10 s, whatever a small file claims."""
    begun = time.monotonic()
    with little(4_000_000):
        yield
    assert time.monotonic() - begun < 10


@pytest.fixture(autouse=True, scope="module")
def _warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Modules that are imported late do not count."""
    folder = tmp_path_factory.mktemp("warm")
    path = write(folder, [(0, b"abc"), (1, b"defg")], insightface=True)
    path.with_suffix(".idx").unlink()
    open_pack(path)


@quick
@given(records=packs(), insightface=st.booleans(), damage=damages, cut=cuts, indexed=st.booleans())
def test_a_damaged_pack_gives_true_images_or_errors(
    tmp_path_factory: pytest.TempPathFactory,
    records: list[tuple[int, bytes]],
    insightface: bool,
    damage: list[tuple[float, bytes]],
    cut: float | None,
    indexed: bool,
) -> None:
    path = write(tmp_path_factory.mktemp("pack"), records, insightface)
    whole, index = path.read_bytes(), path.with_suffix(".idx").read_bytes()
    with RecordReader(path) as reader:
        offset = {key: reader.offset(key) for key in range(1, len(records) + 1)}
        begins = sorted([*reader.offsets.tolist(), len(whole)])
    content = bytearray(whole)
    for at, wrong in damage:
        start = int(at * len(whole))
        content[start : start + len(wrong)] = wrong
    content = content[: len(whole) if cut is None else int(cut * len(whole))]
    end = dict(pairwise(begins))
    untouched = {
        key for key, begin in offset.items() if content[begin : end[begin]] == whole[begin : end[begin]]
    }
    path.write_bytes(content)
    if not indexed:
        path.with_suffix(".idx").unlink()
    for policy in ("raise", "skip"):
        with cheaply():
            with RecordReader(path) as reader, suppress(FacerecError):
                list(reader.records())
            try:
                pack = open_pack(path, damaged=policy)  # type: ignore[arg-type]
            except FacerecError:
                continue
            found = {}
            for i in range(len(pack)):
                key = pack.key(i)
                try:
                    found[key] = (int(pack.classes[pack.label_N[i]]), bytes(pack.encoded(i)))
                except FacerecError as error:
                    assert str(path) in str(error)
                    assert not indexed or key not in untouched
        indexed = indexed and path.with_suffix(".idx").read_bytes() == index  # else it was stale, and rebuilt
        shift = 0 if indexed or insightface else 1  # a rebuilt index counts from 0
        head = content[: begins[1]] == whole[: begins[1]]
        for key, image in found.items():
            if indexed and key in untouched:
                assert image == records[key - 1]
        if not indexed and head and untouched == set(offset):
            assert all(image == records[key - 1 + shift] for key, image in found.items())


@quick
@given(
    records=packs(),
    rows=st.lists(st.tuples(st.integers(0, 30), st.integers(-8, 6000)), max_size=30),
    raw=st.binary(max_size=80),
    seed=st.integers(0, 9),
)
def test_a_garbage_index_leads_to_no_image_that_is_not_there(
    tmp_path_factory: pytest.TempPathFactory,
    records: list[tuple[int, bytes]],
    rows: list[tuple[int, int]],
    raw: bytes,
    seed: int,
) -> None:
    path = write(tmp_path_factory.mktemp("pack"), records, insightface=False)
    real = [line.split("\t")[1].strip() for line in path.with_suffix(".idx").read_text().splitlines()]
    random.Random(seed).shuffle(real)
    lines = [f"{key}\t{offset}\n" for key, offset in rows] + [
        f"{40 + i}\t{offset}\n" for i, offset in enumerate(real)
    ]
    if seed:
        path.with_suffix(".idx").write_text("".join(lines[:: seed % 3 + 1]))
    else:
        path.with_suffix(".idx").write_bytes(raw)
    true = set(records)
    with cheaply():
        try:
            pack = open_pack(path, damaged="skip")
        except FacerecError:
            return
        for i in range(len(pack)):
            try:
                image = (int(pack.classes[pack.label_N[i]]), bytes(pack.encoded(i)))
            except FacerecError:
                continue
            assert image in true, "whatever the index says, label and image are of one record of the file"


@quick
@given(
    listing=st.one_of(st.binary(max_size=120), st.text(max_size=80)), given_property=st.binary(max_size=40)
)
def test_rubbish_beside_a_pack_is_an_error_or_ignored(
    tmp_path_factory: pytest.TempPathFactory, listing: str | bytes, given_property: bytes
) -> None:
    path = write(tmp_path_factory.mktemp("pack"), [(0, b"abcd"), (1, b"efgh")], insightface=True)
    text = listing if isinstance(listing, bytes) else listing.encode("utf-8", "surrogatepass")
    path.with_suffix(".lst").write_bytes(text)
    path.with_name("property").write_bytes(given_property)
    with cheaply():
        pack = open_pack(path)
        assert [bytes(pack.encoded(i)) for i in range(2)] == [b"abcd", b"efgh"]
        try:
            assert all(".." not in pack.name(i).split("/") for i in range(2))
        except FacerecError as error:
            assert f"{path.with_suffix('.lst')}, line " in str(error)


@quick
@given(records=packs(), damage=damages, cut=cuts, protocol=st.sampled_from([0, 2, 4, 5]))
def test_a_damaged_bin_gives_a_consistent_set_or_an_error(
    tmp_path_factory: pytest.TempPathFactory,
    records: list[tuple[int, bytes]],
    damage: list[tuple[float, bytes]],
    cut: float | None,
    protocol: int,
) -> None:
    path = tmp_path_factory.mktemp("bin") / "x.bin"
    images = [payload for _, payload in records for _ in range(2)]
    answers = [bool(label % 2) for label, _ in records]
    content = bytearray(pickle.dumps((images, answers), protocol))
    whole = bytes(content)
    for at, wrong in damage:
        start = int(at * len(whole))
        content[start : start + len(wrong)] = wrong
    path.write_bytes(content[: len(whole) if cut is None else int(cut * len(whole))])
    with cheaply():
        try:
            found = load_verification(path)
        except FacerecError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            assert path.read_bytes() != whole
            return
    assert len(found.index_2N) == 2 * len(found) > 0
    assert set(np.unique(found.index_2N)) == set(range(len(found.images)))
    if path.read_bytes() == whole:
        assert [found.images[i] for i in found.index_2N] == images
        assert found.issame_N.tolist() == answers


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=damages.filter(len), cut=cuts)
def test_commands_end_with_0_1_or_2_whatever_they_are_given(
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    damage: list[tuple[float, bytes]],
    cut: float | None,
) -> None:
    folder = tmp_path_factory.mktemp("commands")
    records = [(i // 2, bytes([i]) * 50) for i in range(8)]
    paths = [write(folder, records, insightface=True), folder / "x.bin"]
    write_verification(paths[1], [payload for _, payload in records], [True] * 4)
    for path in paths:
        content = bytearray(path.read_bytes())
        whole = len(content)
        for at, wrong in damage:
            start = int(at * whole)
            content[start : start + len(wrong)] = wrong
        path.write_bytes(content[: whole if cut is None else int(cut * whole)])
    out = folder / "out"
    for arguments in (
        ["info", str(paths[0])],
        ["info", str(paths[1])],
        ["verify", str(paths[1])],
        ["unpack", str(paths[0]), str(out / "files")],
        ["filter", str(paths[0]), str(out / "filtered"), "--min-images", "2"],
        ["repair", str(paths[0]), str(out / "repaired")],
        ["split", str(paths[0]), f"{out / 'half'}=0.5"],
    ):
        capsys.readouterr()
        assert reported("facerec-data", lambda: data(*arguments)) in (0, 1, 2)  # noqa: B023
        assert "Traceback" not in capsys.readouterr().err
    for made in out.rglob("train.rec"):
        assert len(open_pack(made)) > 0
    assert not list(folder.rglob(".making")) and not list(folder.rglob("*.tmp"))
