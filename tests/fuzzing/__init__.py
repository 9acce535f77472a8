"""Readers of lists against plain ones: mutated files are read by both, which must agree to the last value.

`check` compares one input; the tests run the corpus and some mutations of it. For longer:

    python -m tests.fuzzing KIND SECONDS [SEED]

prints the executions, and keeps in ``tests/fixtures/fuzz/KIND.txt`` whatever the two disagree about, and the
shortest input of each outcome.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from facerec.errors import FacerecError
from tests.fuzzing.kinds import KINDS
from tests.fuzzing.plain import Wrong

__all__ = ["KINDS", "check", "corpus", "inputs", "keep", "mutated"]

CORPUS: Final = Path(__file__).parents[1] / "fixtures" / "fuzz"

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
