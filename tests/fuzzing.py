"""Readers of lists against plain ones: mutated files are read by both, which must agree to the last value.

`check` compares one input; the tests run the corpus and some mutations of it. For longer:

    python -m tests.fuzzing KIND SECONDS [SEED]

prints the executions, and keeps in ``tests/fixtures/fuzz/KIND.txt`` whatever the two disagree about, and the
shortest input of each outcome.
"""

from __future__ import annotations

import ast
import csv
import logging
import math
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np

from facerec.errors import FacerecError
from facerec.evaluation.protocols import ijb, ytf
from facerec.evaluation.protocols.identification import read_leave_out
from facerec.loading.opening import open_images
from facerec.making import pair_lists
from facerec.packs import verification
from facerec.packs.index import read_index
from facerec.packs.listing import Listing
from facerec.packs.pack import read_property

CORPUS: Final = Path(__file__).parent / "fixtures" / "fuzz"
SAME: Final = [True, False, True, True, False]


class Wrong(Exception):
    """A plain reader refuses what it was given."""


def need(good: Any) -> Any:
    """`good`, or `Wrong` where it is false, None or empty."""
    if not good:
        raise Wrong
    return good


# Plain readers: one line after another, nothing clever ------------------------------------------------------


def integer(text: str, digits: int = 9) -> int:
    need(re.fullmatch("[0-9]+", text) and len(text) <= digits)
    return int(text)


def utf8(data: bytes) -> list[str]:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise Wrong from None
    return re.split("\r\n|\r|\n", text.removeprefix("\ufeff"))


def table(data: bytes, highest: list[int]) -> list[list[int]]:
    rows = []
    for line in data.split(b"\n"):
        if not line.strip():
            continue
        fields: list[int] = []
        between = b"\t"
        for part in re.findall(rb"[0-9]+|[^0-9]+", line.rstrip(b" \r").lstrip(b" ")):
            if part[:1].isdigit():
                fields.append(int(part.lstrip(b"0")[:30] or b"0"))
                between = b""
            else:
                need(not between and part.strip(b" ") in (b"\t", b""))
                between = part
        need(not between and len(fields) == len(highest))
        need(all(field <= most for field, most in zip(fields, highest, strict=True)))
        rows.append(fields)
    return rows


def plain_idx(data: bytes) -> Any:
    rows = table(data, [2**63 - 1] * 2)
    need(len({key for key, _ in rows}) == len(rows))
    return rows


def plain_pairs(data: bytes) -> Any:
    return need(table(data, [2**31 - 1, 2**31 - 1, 1]))


def list_fields(data: bytes) -> list[list[str]]:
    rows = [
        [field.strip() for field in line.split("\t")] if "\t" in line else line.split() for line in utf8(data)
    ]
    return [row for row in rows if any(row)]


def folder(name: str) -> str:
    need(name not in ("", ".", "..") and "/" not in name and "\0" not in name)
    return name


def plain_pairs_txt(data: bytes) -> Any:
    head, *rows = need(list_fields(data))
    folds, each = [1, integer(head[0])] if len(head) == 1 else map(integer, head[:2])
    need(len(head) <= 2 and folds and each and len(rows) == 2 * folds * each)
    pairs = []
    for k, row in enumerate(rows):
        same = k // each % 2 == 0
        need(len(row) == (3 if same else 4))
        names = [folder(row[0]), folder(row[0] if same else row[2])]
        numbers = [integer(row[1]), integer(row[-1])]
        paths = [f"{name}/{name}_{number:04d}.jpg" for name, number in zip(names, numbers, strict=True)]
        pairs.append((*paths, same))
    return pairs, folds


def plain_people_txt(data: bytes) -> Any:
    rows = iter(list_fields(data))

    def number() -> int:
        row = next(rows, [])
        need(len(row) == 1)
        return integer(row[0])

    sets: list[dict[str, int]] = []
    seen: set[str] = set()
    for _ in range(number()):
        sets.append({})
        for _ in range(number()):
            row = next(rows, [])
            need(len(row) == 2 and row[0] not in seen)
            sets[-1][folder(row[0])] = integer(row[1])
            seen.add(row[0])
    return sets


def plain_csv(data: bytes) -> Any:
    pairs = []
    for number, line in enumerate(utf8(data)):
        try:
            fields = [field.strip() for field in next(csv.reader([line]), [])]
        except csv.Error:
            raise Wrong from None
        if not any(fields) or (
            number == 0 and len(fields) == 3 and not re.search("[./]", fields[0] + fields[1])
        ):
            continue
        need(len(fields) == 3 and all(fields))
        label = fields[2].lower()
        need(label in ("1", "true", "same", "yes", "1.0", "0", "false", "different", "no", "0.0", "-1"))
        pairs.append((fields[0], fields[1], label in ("1", "true", "same", "yes", "1.0")))
    return need(pairs)


def plain_names(data: bytes) -> Any:
    fields = {field.strip() for line in utf8(data) for field in line.split("\t")}
    return need({field for field in fields if field and not field.isdecimal()})


def plain_leave_out(data: bytes) -> Any:
    return [line.strip() for line in utf8(data) if line.strip() and line[0] != "#"]


def plain_people(data: bytes) -> Any:
    text = re.sub("\r\n|\r", "\n", data.decode("utf-8", "surrogateescape"))
    lines = text.removesuffix("\n").split("\n")
    folds = re.fullmatch("# ([0-9]+) folds", lines[0])
    if folds:
        need(2 <= integer(folds[1]) <= len(SAME))
        del lines[0]
        if not lines:
            return None, int(folds[1])
    need(len(lines) == len(SAME))
    names: list[str] = []
    for line, same in zip(lines, SAME, strict=True):
        pair = line.split("\t")
        need(len(pair) == 2 and all(pair) and "\0" not in line and (pair[0] == pair[1]) == same)
        names += pair
    return names, int(folds[1]) if folds else None


def plain_lst(data: bytes) -> Any:
    names = {}
    for line in data.decode("utf-8", "surrogateescape").split("\n"):
        if not line.encode("utf-8", "surrogateescape").strip():
            continue
        fields = line.rstrip("\r\n").split("\t")
        need(len(fields) >= 3)
        key = integer(fields[0], 18)
        try:
            need(math.isfinite(float(fields[1])))
        except ValueError:
            raise Wrong from None
        inside(fields[-1])
        names[key] = fields[-1]
    return names


def plain_property(data: bytes) -> Any:
    need(data[:200].isascii() and data.isascii())
    fields = re.sub("\r\n|\r", "\n", data.decode())[:200].split(",")
    numbers = [integer(field.strip()) for field in fields]
    return need(len(numbers) == 3 and all(numbers)) and tuple(numbers)


def plain_paths(data: bytes) -> Any:
    text = re.sub("\r\n|\r", "\n", data.decode("utf-8", "surrogateescape").removeprefix("\ufeff"))
    need("\0" not in "".join(text.split("\n")[:100]))
    rows = []
    for line in text.split("\n"):
        name, _, label = (part.strip() for part in line.partition("\t"))
        if name:
            rows.append((name, label or PurePosixPath(name).parent.name))
    return need(rows)


def escaped(data: bytes) -> list[tuple[int, str]]:
    """Lines that are not blank, of the published lists."""
    text = data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    return [(n, line.strip()) for n, line in enumerate(re.split("\r\n|\r|\n", text)) if line.strip()]


def inside(name: str) -> None:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    need(parts and ".." not in parts and name[0] != "/" and "\0" not in name)


def plain_ytf(data: bytes) -> Any:
    videos: dict[str, int] = {}
    rows = []
    for number, line in escaped(data):
        fields = [field.strip() for field in line.split(",")]
        if number == 0 and not re.fullmatch("[0-9]{1,9}", fields[0]):
            continue
        need(len(fields) == 4 and all(fields) and fields[3] in ("0", "1"))
        for video in fields[1:3]:
            inside(video)
        pair = [videos.setdefault(video, len(videos)) for video in fields[1:3]]
        rows.append([integer(fields[0]), *pair, int(fields[3])])
    return need(rows), list(videos)


def plain_faces(data: bytes) -> Any:
    rows = []
    for _, line in escaped(data):
        fields = line.split()
        need(len(fields) == 3)
        sign = -1 if fields[2][0] == "-" else 1
        rows.append((fields[0], integer(fields[1]), sign * integer(fields[2].removeprefix("-"))))
    return need(rows)


def plain_scores(data: bytes) -> Any:
    rows: dict[str, list[float]] = {}
    for _, line in escaped(data):
        name, *rest = line.split()
        inside(name)
        need(len(rest) == 11 and name not in rows and not any("_" in field for field in rest))
        try:
            rows[name] = [float(field) for field in rest]
        except ValueError:
            raise Wrong from None
        need(all(math.isfinite(value) and abs(value) < 1e9 for value in rows[name]))
    return {name: np.array(row, np.float32).tolist() for name, row in rows.items()}


def plain_subjects(data: bytes) -> Any:
    subjects: dict[int, int] = {}
    for number, line in escaped(data):
        fields = [field.strip().strip('"') for field in line.split(",")]
        if number == 0 and not re.fullmatch("[0-9]{1,9}", fields[0]):
            continue
        need(len(fields) >= 2)
        template, subject = integer(fields[0]), integer(fields[1])
        need(subjects.setdefault(template, subject) == subject and template in TEMPLATES)
    return need(subjects)


# The readers, in the same words -----------------------------------------------------------------------------

TEMPLATES: Final = [1, 3, 12, 128, 5000]


def read_idx(path: Path) -> Any:
    index = read_index(path)
    rows = [list(row) for row in zip(index.keys.tolist(), index.offset_N.tolist(), strict=True)]
    assert [index.row(key) for key, _ in rows] == list(range(len(rows)))
    return rows


def read_template_pairs(path: Path) -> Any:
    first_N, second_N, same_N = ijb.read_template_pairs(path)
    return np.column_stack([first_N, second_N, same_N.astype(np.int64)]).tolist()


def read_pairs_txt(path: Path) -> Any:
    pairs, folds = pair_lists.read_pairs_txt(path)
    return [tuple(pair) for pair in pairs], folds


def read_people(path: Path) -> Any:
    names, folds = verification.read_people(path, np.array(SAME))
    return None if names is None else names.tolist(), folds


def read_lst(path: Path) -> Any:
    listing = Listing(path)
    return {key: listing.name(key) for key in listing._key_N.tolist()}


def read_property_line(path: Path) -> Any:
    return need(read_property(path))


def read_paths(path: Path) -> Any:
    images = open_images(path)
    return [(images.name(row), images.label(row)) for row in range(len(images))]


def read_ytf(path: Path) -> Any:
    pairs = ytf.read_splits(path)
    rows = np.column_stack([pairs.split_N, pairs.first_N, pairs.second_N, pairs.issame_N.astype(np.int64)])
    return rows.tolist(), pairs.video_V


def read_faces(path: Path) -> Any:
    names, template_R, medium_R = ijb._read_faces(path)
    return list(zip(names, template_R.tolist(), medium_R.tolist(), strict=True))


def read_scores(path: Path) -> Any:
    number_of, landmarks_P52, score_P = ijb._read_scores(path)
    return {
        name: [*landmarks_P52[row].reshape(-1).tolist(), float(score_P[row])]
        for name, row in number_of.items()
    }


def read_subjects(path: Path) -> Any:
    row_T, subject_T = ijb.read_subjects(path, np.array(TEMPLATES))
    return dict(zip(np.array(TEMPLATES)[row_T].tolist(), subject_T.tolist(), strict=True))


KINDS: Final[dict[str, tuple[Callable[[Path], Any], Callable[[bytes], Any], list[bytes]]]] = {
    "idx": (
        read_idx,
        plain_idx,
        [b"0\t0\n1\t40\n2\t88\n3\t120\n", b"1\t\n114", b"7\t8\r\n 3 \t 9\n\n5 6", b"1\t\t2\n", b"\t1\t2"],
    ),
    "template_pairs": (read_template_pairs, plain_pairs, [b"1 3 1\n12 128 0\n5000 1 1\n", b"1\t2\t0"]),
    "pairs_txt": (
        read_pairs_txt,
        plain_pairs_txt,
        [b"2\t1\nAnn\t1\t2\nAnn\t1\tBob\t3\nCleo\t1\t4\nCleo\t2\tDan\t1\n", b"1\nAnn 1 2\nAnn 1 Bob 2"],
    ),
    "people_txt": (pair_lists.read_people_txt, plain_people_txt, [b"2\n2\nAnn\t1\nBob\t3\n1\nCleo\t2\n"]),
    "csv": (
        lambda path: [tuple(pair) for pair in pair_lists.read_csv(path)],
        plain_csv,
        [b'first,second,same\na/1.jpg,a/2.jpg,1\n"b/1,x.jpg",c/2.jpg,no\n'],
    ),
    "names": (pair_lists.read_names, plain_names, [b"Ann\t1\t2\nBob\n"]),
    "leave_out": (read_leave_out, plain_leave_out, [b"# noisy\na/1.jpg\n b/2.jpg \n", b"\xef"]),
    "people": (
        read_people,
        plain_people,
        [
            b"Ann\tAnn\nAnn\tBob\nBob\tBob\nC\tC\nC\tD\n",
            b"# 2 folds\nA\tA\nA\tB\nB\tB\nC\tC\nC\tD",
            b"# 5 folds",
        ],
    ),
    "lst": (read_lst, plain_lst, [b"1\t0\tann/1.jpg\n2\t0.0\tann/2.jpg\n9\t1\t2\tbob/x y.jpg\r\n"]),
    "property": (read_property_line, plain_property, [b"85742,112,112\n"]),
    "paths": (read_paths, plain_paths, [b"a/1.jpg\nb/2.jpg\tBob\n/c.png\n"]),
    "ytf": (
        read_ytf,
        plain_ytf,
        [
            b"split number, first name, second name, is same\n1, Ann/1, Ann/2, 1\n2, Ann/1, Bob/0, 0\n",
            b"1,a/\0,../x,0",
        ],
    ),
    "faces": (read_faces, plain_faces, [b"1.jpg 1 69544\n2.jpg 1 -1\n3.jpg 12 7\n"]),
    "scores": (
        read_scores,
        plain_scores,
        [
            b"1.jpg 1.5 2 3 4 5 6 7 8 9 10 0.99\n2.jpg 1 2 3 4 5 6 7 8 9 1e1 .5\n",
            b"1 1_0 2 3 4 5 6 7 8 9 1 1",
        ],
    ),
    "subjects": (
        read_subjects,
        plain_subjects,
        [b"TEMPLATE_ID,SUBJECT_ID,FILENAME\n1,10,a.jpg\n1,10,b\n12,3,\n"],
    ),
}


# Mutation ---------------------------------------------------------------------------------------------------

TOKENS: Final = [
    *(sign.encode() for sign in "\t\n,/.-+_#\"'²٣é\u2028\x85\x0b\x1c\r\0\ufeff"),
    *(b"\t", b" ", b"  ", b"\n", b"\n\n", b"\r\n", b"\x80\xff", b"0", b"1", b"007", b"-1", b"1.0", b"1e400"),
    *(b"nan", b"inf", b"1_0", b"0x1", b"2147483647", b"2147483648", b"9223372036854775807", b"Ann", b"true"),
    *(
        b"9223372036854775808",
        b"99999999999999999999999",
        b"0" * 30,
        b"9" * 5000,
        b"\t\t",
        b"../x",
        b"a" * 70,
    ),
]


def mutated(rng: random.Random, corpus: list[bytes]) -> bytes:
    """A corpus entry after one to five changes of bytes, tokens, fields and lines."""
    data = rng.choice(corpus)
    for _ in range(rng.randint(1, 5)):
        at, end = sorted(rng.randint(0, len(data)) for _ in range(2))
        end = min(end, at + rng.choice([1, 1, 2, 8, 1000]))
        kind = rng.randrange(9)
        if kind == 0:
            data = data[:at] + data[end:]
        elif kind == 1:
            data = data[:at] + rng.choice(TOKENS) + data[at:]
        elif kind == 2:
            data = data[:at] + rng.choice(TOKENS) + data[end:]
        elif kind == 3:
            data = data[:at] + rng.randbytes(1) + data[at + 1 :]
        elif kind == 4:
            data = data[:at] + data[at:end] * rng.choice([2, 3, 40]) + data[end:]
        elif kind == 5:
            other = rng.choice(corpus)
            data = data[:at] + other[rng.randint(0, len(other)) :]
        else:  # whole lines or fields
            sign = rng.choice([b"\n", b"\t", b" ", b","])
            parts = data.split(sign)
            one, other_one = rng.randrange(len(parts)), rng.randrange(len(parts))
            if kind == 6:
                parts[one], parts[other_one] = parts[other_one], parts[one]
            elif kind == 7:
                parts.insert(one, parts[other_one])
            else:
                parts[one] = rng.choice(TOKENS)
            data = sign.join(parts)
    return data[:20_000]


def check(kind: str, data: bytes, path: Path) -> str:
    """Read `data` both ways by way of the file `path`, and say what came of it; both must agree."""
    reader, plain, _ = KINDS[kind]
    path.write_bytes(data)
    try:
        expected, outcome = plain(data), "read"
    except Wrong:
        expected, outcome = None, "refused"
    try:
        found = reader(path)
    except FacerecError as error:
        said = str(error)
        assert path.name in said and "\n" not in said, (
            f"a message without place, or of several lines: {said!r}"
        )
        assert expected is None, f"refused though right: {said}"
        return re.sub("[0-9]+|['\"].*", "", said)
    except Wrong:
        assert expected is None, "refused though right"
        return outcome
    assert outcome == "read", f"read though wrong, as {found!r:.300}"
    assert found == expected, f"read as {found!r:.300}, but it says {expected!r:.300}"
    return outcome


def corpus(kind: str) -> list[bytes]:
    """The first inputs of a kind, and all kept ones."""
    kept = (CORPUS / f"{kind}.txt").read_text().splitlines() if (CORPUS / f"{kind}.txt").is_file() else []
    return KINDS[kind][2] + [ast.literal_eval(line) for line in kept]


def inputs(kind: str, seed: int) -> Iterator[bytes]:
    """The corpus, then mutations of it without end."""
    rng = random.Random(seed)
    known = corpus(kind)
    yield from known
    while True:
        yield mutated(rng, known)


def keep(kind: str, data: bytes) -> None:
    """Add an input to the corpus, a line of Python."""
    CORPUS.mkdir(parents=True, exist_ok=True)
    with (CORPUS / f"{kind}.txt").open("a", encoding="ascii") as file:
        file.write(f"{data!r}\n")


def main(kind: str, seconds: float, seed: int = 0) -> int:
    """Fuzz for a time; inputs with an outcome that no earlier one had are mutated further."""
    logging.disable()
    rng = random.Random(seed)
    known = corpus(kind)
    outcomes: dict[str, bytes] = {}
    end, executions, bad = time.monotonic() + seconds, 0, 0
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch:
        path = Path(scratch) / "list"
        while time.monotonic() < end and bad < 5:
            data = known[executions] if executions < len(known) else mutated(rng, known)
            executions += 1
            try:
                outcome = check(kind, data, path)
            except Exception as error:  # whatever a reader raises besides its own errors is a finding
                bad += 1
                keep(kind, data)
                print(f"{kind}: {type(error).__name__}: {error!s:.400}\n  {data[:200]!r}", flush=True)
                continue
            new = outcome not in outcomes or (outcome == "read" and rng.random() < 0.001)
            if new and len(data) < 2000 and len(known) < 500:
                known.append(data)
            if len(data) < len(outcomes.get(outcome, data + b" ")):
                outcomes[outcome] = data
    for data in sorted(outcomes.values(), key=len)[:16]:
        if data not in corpus(kind):
            keep(kind, data)
    print(f"{kind}: {executions:,} executions, {len(outcomes)} outcomes, {bad} findings", flush=True)
    return bad


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2]), *map(int, sys.argv[3:])) > 0)
