"""Plain readers of lists: one line after another, nothing clever."""

from __future__ import annotations

import csv
import math
import re
from pathlib import PurePosixPath
from typing import Any, Final

import numpy as np

SAME: Final = [True, False, True, True, False]
TEMPLATES: Final = [1, 3, 12, 128, 5000]


class Wrong(Exception):
    """A plain reader refuses what it was given."""


def need(good: Any) -> Any:
    """`good`, or `Wrong` where it is false, None or empty."""
    if not good:
        raise Wrong
    return good


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
    return [line.strip() for line in utf8(data) if line.strip() and line.strip()[0] != "#"]


def plain_people(data: bytes) -> Any:
    text = re.sub("\r\n|\r", "\n", data.decode("utf-8", "surrogateescape"))
    lines = text.removesuffix("\n").split("\n")
    folds = re.fullmatch("# ([0-9]+) folds(: ([0-9]+( [0-9]+)*))?", lines[0])
    sizes = None
    if folds:
        count = integer(folds[1])
        need(2 <= count <= len(SAME))
        sizes = [len(SAME) // count + (fold < len(SAME) % count) for fold in range(count)]
        if folds[3]:
            sizes = [integer(size) for size in folds[3].split(" ")]
            need(len(sizes) == count and min(sizes) > 0 and sum(sizes) == len(SAME))
        del lines[0]
        if not lines:
            return None, sizes
    need(len(lines) == len(SAME))
    names: list[str] = []
    for line, same in zip(lines, SAME, strict=True):
        pair = line.split("\t")
        need(len(pair) == 2 and all(pair) and "\0" not in line and (pair[0] == pair[1]) == same)
        names += pair
    return names, sizes


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
