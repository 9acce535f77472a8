"""New packs out of old ones: repaired, filtered, merged, split. Bytes of pictures are never changed.

Labels of the new pack are 0, 1, … in the order of the old ones; names are those of the `.lst`, where there is
one.
"""

from __future__ import annotations

import logging
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from facerec.data.audit import audit
from facerec.data.decode import read_header
from facerec.data.making.builder import Built, PackBuilder
from facerec.data.making.listing import Listing, Names, ending
from facerec.data.packs import Pack, read_property
from facerec.data.recordio import RecordReader
from facerec.errors import DamagedDataError, UserError, counted

_log = logging.getLogger(__name__)


class Repaired(NamedTuple):
    """The new pack, how many records were damaged, and how many the index does not list."""

    built: Built
    damaged: int
    unlisted: int


def repair(
    path: Path, out: Path, *, index: Path | None = None, force: bool = False, workers: int = 1
) -> Repaired:
    """Copy every sound picture of a `.rec` into a new pack; ``report.csv`` names what was left behind.

    Everything is read and decoded (see `facerec.data.audit`); without an index that can be read the file is
    walked, and what follows damage is found again.

    Raises:
        MissingDataError: there is no such file, or no sound picture in it.
        UserError: `out` holds a pack and no `force`.
        StorageError: `out` cannot be written.
    """
    key_of, offset_of, label_of = array("q"), array("q"), array("q")
    with PackBuilder(out, _size(path), force=force) as builder:
        work = audit(path, index, workers=workers)
        damaged = unlisted = 0
        with tqdm(total=work.total, desc=f"checking {path.name}", unit_scale=True, disable=None) as bar:
            for piece in work.progress:
                for finding in piece.findings:
                    builder.note(finding.place, "dropped", finding.reason)
                for key, offset, label in piece.sound:
                    key_of.append(key)
                    offset_of.append(offset)
                    label_of.append(label)
                damaged += sum(finding.records for finding in piece.findings)
                unlisted += piece.unlisted
                bar.update(piece.done - bar.n)
        if unlisted:
            builder.note(path.name, "dropped", f"{counted(unlisted, 'record')} that the index does not list")
        listing = Listing(path.with_suffix(".lst")) if path.with_suffix(".lst").is_file() else None
        with RecordReader(path) as reader:
            label_N = np.frombuffer(label_of, np.int64)
            order_N = _by_label(label_N)
            for row, following in _with_next(order_N, f"writing {out.name}"):
                payload = reader.record_at(offset_of[row]).payload
                name = None if listing is None else listing.name(key_of[row])
                builder.add(name or f"{label_of[row]}/{key_of[row]}{ending(payload)}", payload)
                if following is None or label_of[following] != label_of[row]:
                    builder.end_identity("")
        return Repaired(builder.finish(), damaged, unlisted)


def filter_pack(
    pack: Pack,
    out: Path,
    *,
    min_images: int = 1,
    drop: Sequence[str] = (),
    overlap: Sequence[str] = (),
    force: bool = False,
) -> Built:
    """Copy a pack without some identities; ``report.csv`` names them.

    Args:
        pack: the old pack.
        out: the folder of the new one.
        min_images: identities with fewer pictures are left out.
        drop: identities to leave out, each by its label or its name.
        overlap: names of the people of a test set; identities of the same names are left out, whatever the
            case, the accents and the signs between words.
        force: replace a pack that is there.

    Raises:
        UserError: names are given, but the pack has none; an entry of `drop` is no identity of it; a pack is
            in `out` and no `force`.
        MissingDataError: nothing is left; the message says how many identities each option left out.
    """
    names = Names(pack)
    if overlap and not names.known:
        raise UserError(
            f"{pack.root.with_suffix('.lst')}: there is none, so the names of the identities are not known"
        )
    _, first_C, many_C = np.unique(pack.label_N, return_index=True, return_counts=True)
    tested = {plain_name(name) for name in overlap}
    wanted = dict.fromkeys(drop)
    known: set[str] = set()
    keep_C = many_C >= min_images
    left_out: Counter[str] = Counter()
    with PackBuilder(out, _size(pack.root), force=force) as builder:
        for c, first in enumerate(first_C.tolist()):
            label = str(int(pack.classes[c]))
            name = names.identity(first)
            reason, option = "", "--min-images"
            if not keep_C[c]:
                reason = f"{counted(int(many_C[c]), 'picture')}, fewer than {min_images}"
            if wanted and not wanted.keys().isdisjoint((label, name)):
                known |= {label, name}
                reason, option = "in the list of identities to drop", "--drop"
            elif tested and plain_name(name.rpartition("/")[2]) in tested:
                reason, option = "its name is in the test set", "--overlap"
            if reason:
                keep_C[c] = False
                left_out[option] += 1
                builder.note(name, "identity dropped", reason)
        unknown = [entry for entry in wanted if entry not in known]
        if unknown:
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise UserError(f"{unknown[0]!r}{more}: no label or name of {pack.root}")
        _copy(pack, np.flatnonzero(keep_C[pack.label_N]), builder, names.picture)
        each = " and ".join(f"{option} {counted(many, 'identity')}" for option, many in left_out.items())
        return builder.finish(each and f"left out by {each}")


def merge(packs: Sequence[Pack], out: Path, *, force: bool = False) -> Built:
    """One pack of several, each identity of each pack an identity of its own.

    Names are kept; where two packs have one name for an identity, the later one is prefixed by its pack's. A
    warning says how many names, and images to the byte, a pack shares with those before it.

    Raises:
        UserError: `out` holds a pack and no `force`.
    """
    taken: set[str] = set()
    known: set[str] = set()
    copied = np.empty(0, np.int64)
    with PackBuilder(out, _size(packs[0].root), force=force) as builder:
        for number, pack in enumerate(packs):
            names = Names(pack)
            _, first_C = np.unique(pack.label_N, return_index=True)
            own = {}
            for first in first_C.tolist():
                name = names.identity(first)
                new = name if names.known else f"{pack.name}_{name}"
                if new in taken:
                    new = f"{pack.name}_{name}"
                if new in taken:
                    new = f"{number}_{pack.name}_{name}"
                own[name] = new
            taken |= set(own.values())

            def picture(i: int, names: Names = names, own: dict[str, str] = own) -> str:
                return f"{own[names.identity(i)]}/{names.picture(i).rpartition('/')[2]}"

            hashes = _copy(pack, np.arange(len(pack)), builder, picture)
            named = {plain_name(name.rpartition("/")[2]) for name in own if names.known}
            named = {name for name in named if not name.isdigit()}  # mere numbers are no names
            twice, images = sorted(named & known), int(np.isin(hashes, copied).sum())
            found = [f"{counted(len(twice), 'identity')} (such as {twice[0]})"] if twice else []
            found += [counted(images, "image")] if images else []
            if found:
                _log.warning(
                    "%s: %s are in an earlier pack, too, so one identity has two labels now; "
                    "`facerec-data filter` one of the packs before",
                    *(pack.root, " and ".join(found)),
                )
            known |= named
            copied = np.concatenate([copied, hashes])
        return builder.finish()


def split(pack: Pack, parts: dict[Path, float], *, seed: int = 0, force: bool = False) -> dict[Path, Built]:
    """Packs of disjoint identities.

    Args:
        pack: the old pack.
        parts: the fraction of the identities for each folder; what they do not add up to 1 is left out.
        seed: draws who comes where.
        force: replace packs that are there.

    Raises:
        UserError: the fractions are not above 0 and at most 1 together, or one is of less than one identity.
    """
    if not parts or min(parts.values()) <= 0 or sum(parts.values()) > 1 + 1e-9:
        given = ", ".join(f"{one:g}" for one in parts.values())
        raise UserError(f"fractions {given}: must be above 0, and at most 1 together")
    border = np.rint(np.cumsum([0.0, *parts.values()]) * pack.num_classes).astype(int)
    if (np.diff(border) < 1).any():
        raise UserError(
            f"{pack.root}: {counted(pack.num_classes, 'identity')} will not do; give larger fractions"
        )
    many_C = np.bincount(pack.label_N, minlength=pack.num_classes)
    shuffled_C = np.random.default_rng(seed).permutation(pack.num_classes)
    names = Names(pack)
    with ExitStack() as stack:
        builders = [stack.enter_context(PackBuilder(out, _size(pack.root), force=force)) for out in parts]
        for k, builder in enumerate(builders):
            mine_C = np.zeros(pack.num_classes, bool)
            mine_C[shuffled_C[border[k] : border[k + 1]]] = True
            _copy(pack, np.flatnonzero(mine_C[pack.label_N]), builder, names.picture)
            if mine_C.sum() < 2 or not (many_C[mine_C] > 1).any():
                _log.warning(
                    "%s: no pairs can be drawn from its %s, which takes two, one of them with two "
                    "images or more; give a larger fraction, or another --seed",
                    *(builder.out, counted(int(mine_C.sum()), "identity")),
                )
        return {out: builder.finish() for out, builder in zip(parts, builders, strict=True)}


def plain_name(name: str) -> str:
    """A name without case, accents and signs, for comparing: ``José_Aznar`` and ``jose aznar`` are one."""
    letters = unicodedata.normalize("NFKD", name)
    return "".join(sign for sign in letters if sign.isalnum()).casefold()


def _copy(pack: Pack, position_K: np.ndarray, builder: PackBuilder, name: Callable[[int], str]) -> np.ndarray:
    """Copy the pictures at some positions, identity by identity, and hash them; damaged records are noted."""
    hashes = array("q")
    order_K = position_K[_by_label(pack.label_N[position_K])]
    for i, following in _with_next(order_K, f"copying {pack.name}"):
        try:
            payload = pack.encoded(i)
            builder.add(name(i), payload)
            hashes.append(hash(bytes(payload)))
        except DamagedDataError as problem:
            builder.note(pack.where(i), "dropped", str(problem))
        if following is None or pack.label_N[following] != pack.label_N[i]:
            builder.end_identity("")
    return np.frombuffer(hashes, np.int64)


def _with_next(number_N: np.ndarray, title: str) -> Iterator[tuple[int, int | None]]:
    """Each number with the one after it, None after the last, behind a progress bar; no list is made."""
    for row in tqdm(range(len(number_N)), desc=title, unit=" pictures", disable=None, delay=0.5):
        yield number_N.item(row), number_N.item(row + 1) if row + 1 < len(number_N) else None


def _by_label(label_N: np.ndarray) -> np.ndarray:
    """Rows in the order of labels, otherwise as they are."""
    if (label_N[1:] >= label_N[:-1]).all():
        return np.arange(len(label_N))
    return np.argsort(label_N, kind="stable")


def _size(rec: Path) -> tuple[int, int]:
    """(height, width) that `property` says, else those of the first picture that has any, else of LFW's."""
    given = read_property(rec.with_name("property"))
    if given is not None:
        return given.height, given.width
    try:
        with RecordReader(rec) as reader:
            for record in reader.records():
                if len(record.payload):
                    header = read_header(record.payload)
                    return header.height, header.width
    except DamagedDataError:  # what is wrong with it will be said in its place
        pass
    return 112, 112
