"""Identification end to end: any folders as gallery and probes, and MegaFace's challenge 1."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from facerec.errors import MissingDataError
from facerec.evaluation.embedding import embed_images
from facerec.evaluation.overlap import overlap_notes
from facerec.evaluation.protocols.files import FileImages
from facerec.evaluation.protocols.identification import (
    MEGAFACE_CUTS,
    IdentificationResult,
    MegafaceResult,
    identify,
    megaface,
)
from facerec.evaluation.protocols.template_sets import PORTION
from facerec.evaluation.settings import EvalSettings
from facerec.loading.named import images_below
from facerec.models.model import Model
from facerec.packs.index_text import text_lines

logger = logging.getLogger("facerec.evaluation")


def evaluate_folders(
    model: Model,
    gallery: str | Path,
    probes: str | Path,
    settings: EvalSettings | None = None,
    *,
    distractors: str | Path | None = None,
    leave_out: Iterable[str] = (),
    name: str = "identification",
) -> IdentificationResult:
    """Closed- and open-set identification over folders of aligned faces.

    Args:
        model: backbone and preprocessing.
        gallery, probes: folders with a folder for each identity; a person has the same folder name in both.
        settings: batch size, flip, precision.
        distractors: a folder of more gallery images, at any depth, of people who are no probes.
        leave_out: paths, relative to any of the folders, of images to leave out.
        name: for the log.

    Raises:
        MissingDataError: a folder is missing or has no images.
        UserError: no probe's identity is in the gallery.
    """
    settings = settings or EvalSettings()
    skip = LeaveOut(leave_out)
    gallery_paths, gallery_names = _labelled(Path(gallery), skip)
    probe_paths, probe_names = _labelled(Path(probes), skip)
    others = _images_below(Path(distractors), skip) if distractors is not None else []
    skip.report()
    result = identify(
        _embedded(model, probe_paths, settings, "probes"),
        probe_names,
        _embedded(model, gallery_paths, settings, "gallery"),
        gallery_names,
        distractors=_streamed(model, others, settings, "distractors"),
        bootstrap=settings.bootstrap,
        seed=settings.seed,
        protocol=f"identification over folders, cosine, {_flip(settings)}",
    )
    notes = result.notes + skip.notes() + overlap_notes(model, {*gallery_names, *probe_names}, name)
    result = replace(result, notes=notes)
    for line in result.log_lines(name, model.step):
        logger.info(line)
    return result


def evaluate_megaface(
    model: Model,
    probes: str | Path,
    distractors: str | Path,
    settings: EvalSettings | None = None,
    *,
    leave_out: Iterable[str] = (),
    cuts: Sequence[int] = MEGAFACE_CUTS,
) -> MegafaceResult:
    """MegaFace challenge 1 over folders of aligned faces.

    Args:
        model: backbone and preprocessing.
        probes: the FaceScrub probe set, a folder for each person.
        distractors: the MegaFace distractors, at any depth. They are added in an order that `settings.seed`
            draws, since their folders keep images of one owner together.
        settings: batch size, flip, precision, seed.
        leave_out: paths, relative to either folder, of noisy images to leave out.
        cuts: numbers of distractors at which rank-1 is wanted.

    Raises:
        MissingDataError: a folder is missing or has no images.
        UserError: no person has two images.
    """
    settings = settings or EvalSettings()
    skip = LeaveOut(leave_out)
    probe_paths, names = _labelled(Path(probes), skip)
    paths = _images_below(Path(distractors), skip)
    skip.report()
    order = np.random.default_rng(settings.seed).permutation(len(paths))
    shuffled = [paths[at] for at in order]
    result = megaface(
        _embedded(model, probe_paths, settings, "probes"),
        names,
        _streamed(model, shuffled, settings, "distractors"),
        len(paths),
        cuts=cuts,
        bootstrap=settings.bootstrap,
        seed=settings.seed,
        protocol=f"MegaFace challenge 1, cosine, {_flip(settings)}, distractor order of seed {settings.seed}",
    )
    result = replace(
        result, notes=result.notes + skip.notes() + overlap_notes(model, set(names), "FaceScrub")
    )
    for line in result.log_lines("megaface", model.step):
        logger.info(line)
    return result


class LeaveOut:
    """Images to leave out, by their paths relative to a folder; which of them were met."""

    def __init__(self, paths: Iterable[str]) -> None:
        self.listed = {Path(path.strip()).as_posix() for path in paths if path.strip()}
        self.met: set[str] = set()

    def __contains__(self, relative: str) -> bool:
        if relative not in self.listed:
            return False
        self.met.add(relative)
        return True

    def report(self) -> None:
        """Warn where the list names images that are nowhere."""
        missing = sorted(self.listed - self.met)
        if missing:
            logger.warning(
                "%d of %d images to leave out are not there, e.g. %s",
                len(missing),
                len(self.listed),
                missing[0],
            )

    def notes(self) -> list[str]:
        """What is to be said with the numbers."""
        return [f"{len(self.met)} listed images were left out"] if self.met else []


def read_leave_out(path: str | Path) -> list[str]:
    """A list of images to leave out, a relative path a line; lines that begin with # are comments.

    Raises:
        MissingDataError: there is no such file.
        DamagedDataError: it is not in UTF-8.
    """
    return [line.strip() for line in text_lines(Path(path)) if line.strip() and not line.startswith("#")]


def _labelled(root: Path, skip: LeaveOut) -> tuple[list[str], list[str]]:
    """Images in folders of identities and the names of those folders; loose images do not count."""
    paths = [path for path in _images_below(root, skip) if len(_relative(path, root).parts) > 1]
    if not paths:
        raise MissingDataError(f"{root}: no images in folders of identities")
    return paths, [_relative(path, root).parts[0] for path in paths]


def _images_below(root: Path, skip: LeaveOut) -> list[str]:
    """All images below `root`, sorted by path; plain words, of which a million take 100 MB."""
    return [str(root / path) for path in images_below(root) if path not in skip]


def _relative(path: str, root: Path) -> Path:
    return Path(path).relative_to(root)


def _embedded(model: Model, paths: list[str], settings: EvalSettings, name: str) -> npt.NDArray[np.float32]:
    return np.concatenate(list(_streamed(model, paths, settings, name)))


def _streamed(
    model: Model, paths: list[str], settings: EvalSettings, name: str
) -> Iterator[npt.NDArray[np.float32]]:
    """e + e' of the images, portion by portion: a million of them never are in memory together."""
    for first in range(0, len(paths), PORTION):
        images = FileImages(paths[first : first + PORTION])
        yield embed_images(
            model,
            images,
            name=f"{name} {first:,} of {len(paths):,}",
            batch_size=settings.batch_size,
            flip=settings.flip,
            precision=settings.precision,
            where=images.where,
        ).summed_PD


def _flip(settings: EvalSettings) -> str:
    return "flip-TTA" if settings.flip else "no flip"
