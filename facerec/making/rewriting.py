"""New packs out of old ones: repaired, filtered, merged, split; or files. Bytes of images are never changed.

Labels of the new pack are 0, 1, … in the order of the old ones, names those of the `.lst`, where there is
one. All raise what `PackBuilder` raises: UserError where `out` holds a pack and no `force` is given,
StorageError where it cannot be written, MissingDataError where nothing is left to pack.
"""

from __future__ import annotations

import errno
import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain, pairwise
from pathlib import Path

import numpy as np

from facerec.errors import DamagedDataError, UserError, counted
from facerec.files import publish, staging, storing
from facerec.images.images import LabelledImages
from facerec.making.audit import audit
from facerec.making.builder import Built, PackBuilder
from facerec.packs.pack import Listing, Pack, image_name
from facerec.packs.recordio import RecordReader
from facerec.packs.text import plain_name
from facerec.progress import Bar

_log = logging.getLogger(__name__)


def repair(
    path: Path, out: Path, *, index: Path | None = None, force: bool = False, workers: int = 1
) -> tuple[Built, int, int]:
    """Copy every sound image of a `.rec` into a new pack; ``report.csv`` names what was left behind.

    Everything is read and decoded (see `facerec.making.audit`); without an index that can be read the file is
    walked, and what follows damage is found again.

    Returns:
        The new pack, the number of damaged records, and of those that the index does not list.
    """
    sound = array("q")
    damaged = unlisted = 0
    lst = path.with_suffix(".lst")
    with PackBuilder(out, force=force) as builder:
        for piece in audit(path, index, workers=workers):
            for finding in piece.findings:
                builder.note(finding.where, "dropped", finding.reason)
            sound.extend(chain.from_iterable(piece.sound))
            damaged += piece.damaged
            unlisted += piece.unlisted
        if unlisted:
            builder.note(path.name, "dropped", f"{counted(unlisted, 'record')} that the index does not list")
        key_N, offset_N, label_N = np.frombuffer(sound, np.int64).reshape(-1, 3).T
        listing = Listing(lst) if lst.is_file() else None
        with RecordReader(path) as reader:
            for rows in _identities(label_N, f"writing {out.name}"):
                for row in rows.tolist():
                    key = key_N.item(row)
                    payload = reader.record_at(offset_N.item(row)).payload
                    builder.add(image_name(listing, key, label_N[row], payload), payload)
                builder.end_identity()
        return builder.finish(), damaged, unlisted


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
        min_images: identities with fewer images are left out.
        drop: labels or names of identities to leave out.
        overlap: names of the identities of a test set, which are left out, whatever the case, the accents and
            the signs between words.

    Raises:
        UserError: names are given, but the pack has none; an entry of `drop` is no identity of it.
        MissingDataError: nothing is left; the message says how many identities each option left out.
    """
    if overlap and pack.listing is None:
        raise UserError(
            f"{pack.root.with_suffix('.lst')}: there is none, so the names of the identities are not known"
        )
    _, first_C, many_C = np.unique(pack.label_N, return_index=True, return_counts=True)
    tested = {plain_name(name) for name in overlap} - {""}
    listed = set(drop)
    unknown = set(drop)
    keep_C = many_C >= min_images
    left_out: Counter[str] = Counter()
    with PackBuilder(out, force=force) as builder:
        for c, first in enumerate(first_C.tolist()):
            label = str(int(pack.classes[c]))
            name = pack.label(first)
            reason, option = "", "--min-images"
            if not keep_C[c]:
                reason = f"{counted(int(many_C[c]), 'image')}, fewer than {min_images}"
            if not listed.isdisjoint((label, name)):
                unknown -= {label, name}
                reason, option = "in the list of identities to drop", "--drop"
            elif plain_name(name.rpartition("/")[2]) in tested:
                reason, option = "its name is in the test set", "--overlap"
            if reason:
                keep_C[c] = False
                left_out[option] += 1
                builder.note(name, "identity dropped", reason)
        if unknown:
            first_unknown = next(entry for entry in drop if entry in unknown)
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise UserError(f"{first_unknown!r}{more}: no label or name of {pack.root}")
        _copy(pack, builder, np.where(keep_C[pack.label_N], pack.label_N, -1))
        by_option = " and ".join(f"{one} {counted(many, 'identity')}" for one, many in left_out.items())
        return builder.finish(by_option and f"left out by {by_option}")


def merge(packs: Sequence[Pack], out: Path, *, force: bool = False) -> Built:
    """Make one pack of several, each identity of each pack an identity of its own.

    Names are kept; where two packs have one name for an identity, the later one is prefixed by its pack's. A
    warning says how many names, and images to the byte, are in a pack and in those before it.
    """
    taken: set[str] = set()
    known: set[str] = set()
    copied = np.empty(0, np.int64)
    with PackBuilder(out, force=force) as builder:
        for number, pack in enumerate(packs):
            _, first_C = np.unique(pack.label_N, return_index=True)
            own = {}
            for first in first_C.tolist():
                name = pack.label(first)
                new = name if pack.listing is not None else f"{pack.title}_{name}"
                if new in taken:
                    new = f"{pack.title}_{name}"
                if new in taken:
                    new = f"{number}_{pack.title}_{name}"
                own[name] = new
            taken |= set(own.values())
            hashes = _copy(
                pack,
                builder,
                named=lambda i, pack=pack, own=own: _moved(own[pack.label(i)], pack.name(i)),  # type: ignore[misc]
            )
            named = {plain_name(name.rpartition("/")[2]) for name in own if pack.listing is not None} - {""}
            _warn_of_copies(pack, sorted(named & known), int(np.isin(hashes, copied).sum()))
            known |= named
            copied = np.concatenate([copied, hashes])
        return builder.finish()


def _warn_of_copies(pack: Pack, names: list[str], images: int) -> None:
    found = [f"{counted(len(names), 'identity')} (such as {names[0]})"] if names else []
    found += [counted(images, "image")] if images else []
    if found:
        _log.warning(
            "%s: %s are in an earlier pack, too, so one identity has two labels now; "
            "`facerec-data filter` one of the packs before",
            *(pack.root, " and ".join(found)),
        )


def split(pack: Pack, parts: dict[Path, float], *, seed: int = 0, force: bool = False) -> list[Built]:
    """Make packs of disjoint identities.

    Args:
        parts: the fraction of the identities for each folder; the rest up to 1 is left out.

    Raises:
        UserError: the fractions are not above 0 and at most 1 in sum, or one is of less than one identity.
    """
    if not parts or not all(one > 0 for one in parts.values()) or sum(parts.values()) > 1 + 1e-9:
        given = ", ".join(f"{one:g}" for one in parts.values())
        raise UserError(f"fractions {given}: must be above 0, and at most 1 in sum")
    border = np.rint(np.cumsum([0.0, *parts.values()]) * pack.num_classes).astype(int)
    if (np.diff(border) < 1).any():
        raise UserError(
            f"{pack.root}: {counted(pack.num_classes, 'identity')} will not do; give larger fractions"
        )
    many_C = np.bincount(pack.label_N, minlength=pack.num_classes)
    shuffled_C = np.random.default_rng(seed).permutation(pack.num_classes)
    with ExitStack() as stack:
        builders = [stack.enter_context(PackBuilder(out, force=force)) for out in parts]
        for k, builder in enumerate(builders):
            part_C = np.zeros(pack.num_classes, bool)
            part_C[shuffled_C[border[k] : border[k + 1]]] = True
            _copy(pack, builder, np.where(part_C[pack.label_N], pack.label_N, -1))
            if part_C.sum() < 2 or not (many_C[part_C] > 1).any():
                _log.warning(
                    "%s: no pairs can be drawn from its %s, which takes two, one of them with two "
                    "images or more; give a larger fraction, or another --seed",
                    *(builder.out, counted(int(part_C.sum()), "identity")),
                )
        return [builder.finish() for builder in builders]


def relabel(
    faces: LabelledImages,
    out: Path,
    label_N: np.ndarray,
    names: Mapping[int, str],
    left_out: Iterable[tuple[str, str, str]],
    *,
    force: bool = False,
    beside: Callable[[PackBuilder], None] | None = None,
) -> Built:
    """Copy images under other labels; ``report.csv`` names those that are left out.

    Args:
        label_N: the identity of each image, 0, 1, …; −1 leaves it out. What was one identity may be several.
        names: of the identities that get images of others, or are new; the files of those images take
            the name of their former identity before their own.
        left_out: names of images, or of identities, that are left out, ``dropped`` or ``identity dropped``,
            and why.
        beside: writes files that shall appear along with the pack.
    """
    taken: set[str] = set()
    former: int | None = None  # the label of the names in `taken`

    def named(i: int) -> str:
        nonlocal former
        name, label = faces.name(i), int(label_N[i])
        if label not in names:
            return name
        if label != former:
            taken.clear()
            former = label
        own = faces.label(i)
        file = name.rpartition("/")[2]
        name = name if own == names[label] else _moved(names[label], f"{own.replace('/', '_')}_{file}")
        while name in taken:
            name = _moved(names[label], f"_{name.rpartition('/')[2]}")
        taken.add(name)
        return name

    with PackBuilder(out, force=force) as builder:
        for note in left_out:
            builder.note(*note)
        _copy(faces, builder, label_N, named)
        if beside is not None:
            beside(builder)
        return builder.finish()


def _moved(identity: str, name: str) -> str:
    """The path of an image of another identity."""
    return f"{identity}/{name.rpartition('/')[2]}"


def _copy(
    faces: LabelledImages,
    builder: PackBuilder,
    label_N: np.ndarray | None = None,
    named: Callable[[int], str] | None = None,
) -> np.ndarray:
    """Copy the images whose new label is not −1, and hash them; damaged records are noted."""
    hashes = array("q")
    label_N = np.asarray(faces.label_N if label_N is None else label_N)
    position_K = np.flatnonzero(label_N >= 0)
    for rows in _identities(label_N[position_K], f"copying {faces.title}"):
        for i in position_K[rows].tolist():
            try:
                payload = faces.encoded(i)
                name = (named or faces.name)(i)
                if any(sign in name for sign in "\t\n\r"):
                    raise DamagedDataError("its name holds a tab or a line break, which a .lst cannot")
                builder.add(name, memoryview(payload))
                hashes.append(hash(bytes(payload)))
            except DamagedDataError as problem:
                builder.note(faces.where(i), "dropped", str(problem))
        builder.end_identity()
    return np.frombuffer(hashes, np.int64)


def _identities(label_N: np.ndarray, title: str) -> Iterator[np.ndarray]:
    """Yield the rows of each identity, in the order of labels, behind a progress bar."""
    order_N = np.argsort(label_N, kind="stable")
    borders = np.flatnonzero(np.diff(label_N[order_N], prepend=-1, append=-1))
    with Bar(total=len(label_N), desc=title, unit=" images", delay=0.5) as bar:
        for begin, end in pairwise(borders.tolist()):
            yield order_N[begin:end]
            bar.update(end - begin)


def unpack(pack: Pack, out: Path, *, force: bool = False) -> list[str]:
    """Write ``out/identity/image`` for every image; names are those of the `.lst`, else numbers.

    They are written into a hidden folder beside `out`, which takes its place at the end. With `force` the
    files of a folder that is there are replaced one by one, and its other files stay.

    Returns:
        The reasons why records could not be read.

    Raises:
        UserError: `out` holds something and no `force`; two images have one name; a name is too long.
        DamagedDataError: the `.lst` is malformed.
        StorageError: a file cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder")
    in_use = out.is_dir() and any(out.iterdir())
    if in_use and not force:
        raise UserError(f"{out}: is not empty; --force writes into it, replacing files of the same names")
    lst = pack.root.with_suffix(".lst")
    damaged: list[str] = []
    with storing(out), staging(out.absolute()) as stage:
        for i in Bar(range(len(pack)), desc=f"unpacking {pack.title}", unit=" images"):
            try:
                content = pack.encoded(i)
            except DamagedDataError as problem:
                damaged.append(str(problem))
                continue
            target = stage / pack.name(i)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as file:
                    file.write(content)
            except OSError as problem:
                wrong = {
                    errno.EEXIST: "names two images",
                    errno.ENAMETOOLONG: "has a name too long for a file,",
                }
                if problem.errno not in wrong:
                    raise
                raise UserError(
                    f"{lst}: {wrong[problem.errno]} {target.relative_to(stage)!s:.120}; "
                    "correct it, or move it away to have them numbered"
                ) from None
        files = [str(path.relative_to(stage)) for path in stage.rglob("*") if path.is_file()]
        publish(stage, out, sorted(files) if in_use else None)
    return damaged
