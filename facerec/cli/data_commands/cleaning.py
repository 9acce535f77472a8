"""Clean a pack by the embeddings of its images."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from facerec.cli.options import DATA, FORCE, OPTIONAL_MODEL, OUT, SEED, opened_model, option
from facerec.errors import UserError, counted, require

if TYPE_CHECKING:
    from facerec.cleaning.decisions import Decision
    from facerec.cleaning.findings import Found, Test
    from facerec.images.images import LabelledImages
    from facerec.making.builder import Built, PackBuilder
    from facerec.models.model import Model

_DROPPED = ("damaged", "duplicate", "outlier")
_LOOKING = (
    option("--against", "test sets (.bin, pack, folder)", type=Path, nargs="+", default=[], metavar="TEST"),
    option(
        "--drop",
        "what is left out: damaged, duplicate, outlier (these by default), leak; or none",
        nargs="+",
        choices=(*_DROPPED, "leak", "none"),
        default=list(_DROPPED),
        metavar="KIND",
    ),
    option("--split", "make identities of the further people of mixed ones", action="store_true"),
    option("--merge", "make one identity of those that are one person", action="store_true"),
    option("--dry-run", "write decisions.csv and report.html, and no pack", action="store_true"),
    option(
        "--outlier",
        "images below it are outliers (default: from the data; with --centres head 0.2588, or 75°)",
        type=float,
        metavar="COSINE",
    ),
    option(
        "--false-drop",
        "the part of right images that the threshold from the data may drop",
        default=0.01,
        metavar="PART",
    ),
    option("--merge-at", "of two centres (default: from the data)", type=float, metavar="COSINE"),
    option("--leak-at", "of centre and test image (default: from the data)", type=float, metavar="COSINE"),
    option("--duplicate-at", "of two copies", default=0.95, metavar="COSINE"),
    option("--min-images", "identities with fewer are too few to judge", default=3, metavar="N"),
    option(
        "--centres",
        "robust centres of the images, or the class weights of a checkpoint that was trained on PACK, "
        "of sub-centres the dominant one",
        choices=("images", "head"),
        default="images",
    ),
    option("--cache", "keep embeddings there, so that a second run is quick", type=Path, metavar="DIR"),
    SEED,
)


@DATA.command(
    "clean",
    option("pack", "folder with train.rec, a .rec, or a folder with one folder per identity", type=Path),
    OUT,
    option("--decisions", "apply this list, and look for nothing (no --ckpt)", type=Path, metavar="CSV"),
    *_LOOKING,
    FORCE,
    *OPTIONAL_MODEL,
)
def clean(options: Namespace) -> None:
    """Make a pack without wrong images, copies and leaks, by embeddings.

    Finds images far from the centre of their identity, identities of several people, identities that are one
    person, copies, and with --against identities and images of test sets. The folder OUT gets a new pack with
    what --drop, --split and --merge ask for applied, decisions.csv with every proposal and its number,
    report.html with the images to judge them by, and report.csv, which names what was left out. PACK is never
    changed. Edit the column action of decisions.csv, and apply it with --decisions.

    example:
      facerec-data clean data/mine proposals --ckpt best.pt --dry-run
      facerec-data clean data/mine clean --ckpt best.pt --merge --against lfw.bin --drop outlier leak
      facerec-data clean data/mine clean --decisions proposals/decisions.csv
    """
    from facerec.cleaning.decisions import NAME, new_labels, read_decisions, write_decisions
    from facerec.files import write_bytes
    from facerec.loading.opening import open_identities
    from facerec.making.rewriting import relabel

    faces = open_identities(options.pack)
    _check(options, faces)
    found = model = None
    if options.decisions:
        decisions = read_decisions(options.decisions, faces)
    else:
        model = opened_model(options)
        found, decisions = _search(options, faces, model)
    files = {NAME: options.decisions.read_bytes() if options.decisions else write_decisions(decisions)}
    if found is not None and model is not None:
        files["report.html"] = _page(options, faces, model, found, decisions)

    def beside(builder: PackBuilder) -> None:
        for name, content in files.items():
            builder.beside(name).write_bytes(content)

    built = None
    if options.dry_run:
        for name, content in files.items():
            write_bytes(options.out / name, content)
    else:
        labels = new_labels(faces, decisions)
        built = relabel(faces, options.out, *labels, force=options.force, beside=beside)
    _say(options, faces, decisions, found, built)


def _check(options: Namespace, faces: LabelledImages) -> None:
    from facerec.cleaning.decisions import NAME
    from facerec.files import refuse_overwriting
    from facerec.loading.folders import FolderImages

    if (options.ckpt is None) == (options.decisions is None):
        raise UserError(
            "clean: give --ckpt MODEL to look for what does not belong, or --decisions CSV to apply a list"
        )
    for name in ("outlier", "merge_at", "leak_at", "duplicate_at"):
        value = getattr(options, name)
        within = value is None or 0 < value <= 1 or (name == "outlier" and -1 <= value <= 1)
        lowest = "-1" if name == "outlier" else "above 0"
        require(within, f"--{name.replace('_', '-')}", value, f"must be a cosine, {lowest} to 1")
    require(0 <= options.false_drop < 1, "--false-drop", options.false_drop, "must be 0 or more, and below 1")
    require(
        options.min_images >= 3,
        "--min-images",
        options.min_images,
        "must be 3 or more: of two, none can be told wrong",
    )
    require(options.seed >= 0, "--seed", options.seed, "must be 0 or more")
    for name, settings in _LOOKING if options.decisions else ():
        usual = settings.get("default", False if "action" in settings else None)
        if getattr(options, name.lstrip("-").replace("-", "_")) != usual:
            raise UserError(f"--decisions applies a list as it is; leave out {name}, or edit the list")
    if not options.against and ("leak" in options.drop or options.leak_at is not None):
        raise UserError("--drop leak and --leak-at need --against TEST, the test sets to look into")
    if "none" in options.drop and len(options.drop) > 1:
        raise UserError("--drop none: stands alone; leave out the others, or none")
    source = faces.root if isinstance(faces, FolderImages) else faces.root.parent
    out, inside = options.out.resolve(), isinstance(faces, FolderImages)
    if out == source.resolve() or (inside and out.is_relative_to(source.resolve())):
        raise UserError(f"{options.out}: is in the source, which is never changed; choose another folder")
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"{options.out}: is a file; give a folder")
    written = [NAME, "report.html"] if options.decisions is None else []
    for name in (*written, *(() if options.dry_run else ("train.rec",))):
        refuse_overwriting(options.out / name, options.force)


def _search(options: Namespace, faces: LabelledImages, model: Model) -> tuple[Found, list[Decision]]:
    import logging

    from facerec.cleaning.copies import Looks
    from facerec.cleaning.findings import Search, Test, Thresholds, applied
    from facerec.cleaning.judging import PUBLISHED, dominant_centres, read_weights
    from facerec.evaluation.embedding_cache import EmbeddingCache
    from facerec.evaluation.embedding_files import embed_rows
    from facerec.loading.opening import open_images

    log = logging.getLogger(__name__)
    unit_CKD = read_weights(options.ckpt, faces) if options.centres == "head" else None
    tests = [(path, open_images(path, damaged="skip")) for path in options.against]
    if options.cache is not None:
        model.cache = EmbeddingCache(options.cache, model, logging.DEBUG)
    log.info("%s", faces.describe())
    log.info("input %s%s", model.input, ", flipped too" if options.flip else "")
    how = {"flip": options.flip, "batch_size": options.batch_size, "precision": options.precision}
    place = next(one for one in options.out.absolute().parents if one.is_dir()) / "embeddings"
    looks = Looks()
    embedded = embed_rows(model, faces, place, seen=looks, **how)
    held: list[Test] = []
    for path, images in tests:
        seen = Looks()
        held.append(Test(path.name, images, embed_rows(model, images, place, seen=seen, **how), seen))
        if held[-1].embedded.damaged:
            log.warning("%s: %s do not decode", path, counted(len(held[-1].embedded.damaged), "image"))
    centre_CD = None if unit_CKD is None else dominant_centres(unit_CKD, faces, embedded)
    outlier = PUBLISHED if options.outlier is None and centre_CD is not None else options.outlier
    thresholds = Thresholds(
        outlier,
        options.merge_at,
        options.leak_at,
        options.duplicate_at,
        options.false_drop,
        options.min_images,
    )
    mixed = options.split or centre_CD is None  # the sub-center recipe drops all beyond its angle
    found = Search(faces, embedded, looks, thresholds, centre_CD, mixed, options.seed).run(held)
    kinds = dict.fromkeys(options.drop, True) | {"split": options.split, "merge": options.merge}
    return found, list(applied(found.decisions, {**kinds, "mixed": options.split}))


def _page(
    options: Namespace, faces: LabelledImages, model: Model, found: Found, decisions: list[Decision]
) -> bytes:
    from facerec.reporting.cleaning import cleaning_html

    facts = [
        ("Pack", str(options.pack)),
        ("Model", str(options.ckpt)),
        ("Preprocessing", f"{model.input}{', flipped too' if options.flip else ''}"),
        ("Centres", "of the checkpoint's head" if options.centres == "head" else "of the images, robust"),
        *(
            (f"Threshold of {kind}", f"{limit.least:.4f}: {limit.said}")
            for kind, limit in found.limits.items()
        ),
        ("Threshold of duplicate", f"{options.duplicate_at:.4f}, and thumbnails that correlate to 0.99"),
        ("Seed", str(options.seed)),
    ]
    return cleaning_html(faces, found, decisions, facts, not options.dry_run).encode()


def _say(
    options: Namespace,
    faces: LabelledImages,
    decisions: list[Decision],
    found: Found | None,
    built: Built | None,
) -> None:
    from facerec.cleaning.decisions import KEEP, KINDS

    for kind in KINDS:
        of_kind = [one for one in decisions if one.kind == kind]
        if not of_kind:
            continue
        actions = Counter(one.action for one in of_kind)
        done = ", ".join(f"{many:,} {action}" for action, many in sorted(actions.items()) if action != KEEP)
        line = f"{kind:<10}{len(of_kind):>9,} found; {'' if built else 'to be '}applied: {done or 'none'}"
        if found is not None and kind in found.limits:
            line += f"; threshold {found.limits[kind].least:.3f}, {found.limits[kind].said}"
        print(line)
    for note in found.notes if found is not None else ():
        print(note)
    if found is not None and "outlier" in found.limits and found.limits["outlier"].estimate:
        print(found.limits["outlier"].estimate)
    if built is None:
        print(f"{options.out}: decisions.csv and report.html; no pack was written (--dry-run)")
        return
    left_out = counted(len(faces) - built.images, "image")
    print(f"{built}; {left_out} left out, which {options.out / 'report.csv'} names")
