"""The template protocols end to end: YTF's ten-fold accuracy, IJB-B's and IJB-C's 1:1 and 1:N.

A layout's folder is given; a model goes in, results with everything that must be said with them come out.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from facerec.data.pictures import images_below, require_inside
from facerec.data.verification import VerificationSet
from facerec.errors import MissingDataError, require
from facerec.evaluation.embedding import embed_pictures
from facerec.evaluation.identification import IdentificationResult, identify
from facerec.evaluation.model import Model
from facerec.evaluation.overlap import overlap_notes
from facerec.evaluation.pictures import FilePictures
from facerec.evaluation.settings import EvalSettings
from facerec.evaluation.template_lists import read_ijb, read_ijb_subjects, read_ytf_splits
from facerec.evaluation.templates import FaceList, Ints, TemplatePool, TemplateResult, judge_pairs
from facerec.evaluation.verification import VerificationResult, verify

logger = logging.getLogger("facerec.evaluation")

_Subjects = tuple[Ints, Ints]  # rows of templates, and whose they are

PORTION = 8192  # pictures embedded before they are pooled: 32 MB of embeddings of length 512, both views


def pool_pictures(
    model: Model, pictures: FilePictures, pools: Sequence[TemplatePool], settings: EvalSettings, name: str
) -> None:
    """Embed `pictures` portion by portion and add e + e' (e without flip) to each of `pools`."""
    for first in range(0, len(pictures), PORTION):
        portion = pictures[first : first + PORTION]
        embedded = embed_pictures(
            model,
            portion,
            name=f"{name} {first:,} of {len(pictures):,}",
            batch_size=settings.batch_size,
            flip=settings.flip,
            precision=settings.precision,
            where=portion.where,
        )
        for pool in pools:
            pool.add(first, embedded.summed_PD)


def evaluate_ytf(
    model: Model, root: str | Path, settings: EvalSettings | None = None, *, frames: int | None = None
) -> VerificationResult:
    """YouTube Faces: a video's template is the normalised mean of its frames' embeddings; ten-fold accuracy.

    Args:
        model: backbone and preprocessing.
        root: folder with ``splits.txt`` and a folder of aligned frames ``Name/k`` for each video.
        settings: batch size, flip, thresholds and so on; the folds are the list's splits.
        frames: how many frames of a video, evenly spaced; None: all.

    Raises:
        MissingDataError: the list or a video is missing.
        DamagedDataError: the list or a frame is damaged.
        ConfigError: `frames` is out of range.
    """
    settings = settings or EvalSettings()
    require(frames is None or frames >= 1, "eval.frames", frames, "must be 1 or more, or null for all frames")
    pairs = read_ytf_splits(Path(root) / "splits.txt")
    paths: list[Path] = []
    video_R: list[int] = []
    for number, video in enumerate(pairs.video_V):
        chosen = spaced(_frames(Path(root) / video, Path(root)), frames)
        paths += chosen
        video_R += [number] * len(chosen)
    # Every frame is a medium of its own: the sum over them has the direction of their mean.
    rows = np.arange(len(paths))
    pool = TemplatePool(FaceList(rows, np.array(video_R), rows))
    pool_pictures(model, FilePictures(paths), [pool], settings, "ytf")
    unit_VD = pool.unit_TD()
    index_2N = np.stack([pairs.first_N, pairs.second_N], axis=1).reshape(-1).astype(np.int64)
    person_V = np.array([video.split("/")[0] for video in pairs.video_V])
    agree = ((person_V[pairs.first_N] == person_V[pairs.second_N]) == pairs.issame_N).all()
    person_2N = person_V[index_2N] if agree else None
    result = verify(
        unit_VD[index_2N],
        pairs.issame_N,
        folds=pairs.split_N,
        thresholds=settings.thresholds,
        bootstrap=settings.bootstrap,
        seed=settings.seed,
        identity_2N=person_2N,
    )
    used = "all frames" if frames is None else f"{frames} frames a video, evenly spaced"
    said = f"YTF, {result.folds} splits of the list, {used}, {'flip-TTA' if settings.flip else 'no flip'}"
    notes = result.notes + overlap_notes(model, set(person_V.tolist()), "YTF")
    # A video is shown by its first frame.
    shown = FilePictures([paths[row] for row in np.unique(video_R, return_index=True)[1]])
    source = VerificationSet("ytf", shown, index_2N, pairs.issame_N, Path(root) / "splits.txt", person_2N)
    result = replace(
        result, flip=settings.flip, accuracy_noflip=None, protocol=said, notes=notes, source=source
    )
    for line in result.log_lines("ytf", model.step):
        logger.info(line)
    return result


def evaluate_ijb(
    model: Model, root: str | Path, name: str, settings: EvalSettings | None = None
) -> dict[str, TemplateResult | IdentificationResult]:
    """IJB-B or IJB-C: TAR@FAR over all listed pairs (1:1) and, where its lists are there, 1:N.

    Template = normalised sum over media of the mean within a medium, of raw embeddings e + e'. Each number
    comes without and with the detector's score as weight. In 1:N the mixed probes are searched in each of the
    two galleries; those who are in the other one are the non-mated probes.

    Args:
        model: backbone and preprocessing.
        root: folder with ``loose_crop/`` and the lists, in ``meta/`` or beside it.
        name: ``ijbb`` or ``ijbc``.
        settings: batch size, flip, precision.

    Returns:
        ``{"ijbc": …, "ijbc_detector_score": …}`` and ``ijbc_1n_G1``, ``ijbc_1n_G2`` and so on.

    Raises:
        MissingDataError: a list or picture is missing.
        DamagedDataError: a list or picture is damaged.
    """
    settings = settings or EvalSettings()
    require(name in ("ijbb", "ijbc"), "eval.targets", name, "must be ijbb or ijbc")
    height, width = model.input.shape
    require(
        height == width, "input.size", model.input.size, "must be square: IJB is aligned to that template"
    )
    root = Path(root)
    meta = root / "meta" if (root / "meta").is_dir() else root
    lists = read_ijb(meta, name)
    searches = _ijb_searches(meta, name, lists.id_T)
    paths = [root / "loose_crop" / one for one in lists.name_P]
    pictures = FilePictures(paths, lists.landmarks_P52, height, root / "loose_crop")
    plain, weighted = TemplatePool(lists.faces), TemplatePool(lists.faces, lists.score_P)
    pool_pictures(model, pictures, [plain, weighted], settings, name)
    results: dict[str, TemplateResult | IdentificationResult] = {}
    title = name.upper().replace("IJB", "IJB-")
    for suffix, pool, scored in (("", plain, False), ("_detector_score", weighted, True)):
        unit_TD = pool.unit_TD()
        said = (
            f"{'flip-TTA' if settings.flip else 'no flip'}, {'with' if scored else 'without'} detector score"
        )
        results[name + suffix] = judge_pairs(
            unit_TD,
            lists.first_N,
            lists.second_N,
            lists.issame_N,
            pictures=len(paths),
            flip=settings.flip,
            detector_score=scored,
            identity_N=lists.id_T[lists.first_N],
            bootstrap=settings.bootstrap,
            seed=settings.seed,
            protocol=f"{title} 1:1, all listed template pairs, cosine, {said}",
        )
        for key, (probe, gallery) in searches.items():
            results[f"{name}_1n_{key}{suffix}"] = identify(
                unit_TD[probe[0]],
                probe[1],
                unit_TD[gallery[0]],
                gallery[1],
                bootstrap=settings.bootstrap,
                seed=settings.seed,
                protocol=f"{title} 1:N, mixed probes in gallery {key}, cosine, {said}",
            )
    for key, result in results.items():
        for line in result.log_lines(key, model.step):
            logger.info(line)
    return results


def _ijb_searches(meta: Path, name: str, id_T: Ints) -> dict[str, tuple[_Subjects, _Subjects]]:
    """Probes and gallery of each search of the 1:N protocol; none where the probe list is not there."""
    probes = meta / f"{name}_1N_probe_mixed.csv"
    if not probes.is_file():
        return {}
    probe = read_ijb_subjects(probes, id_T)
    keys = ("S1", "S2") if name == "ijbb" else ("G1", "G2")
    return {key: (probe, read_ijb_subjects(meta / f"{name}_1N_gallery_{key}.csv", id_T)) for key in keys}


def spaced(frames: Sequence[Path], count: int | None) -> list[Path]:
    """`count` of the frames, evenly spaced from the first to the last; all where there are not more."""
    if count is None or len(frames) <= count:
        return list(frames)
    return [frames[int(at)] for at in np.linspace(0, len(frames) - 1, count).round()]


def _frames(folder: Path, root: Path) -> list[Path]:
    try:
        require_inside(folder, root)
        return [folder / path for path in images_below(folder)]
    except OSError as error:
        raise MissingDataError(f"{folder}: {error.strerror}") from None
    except MissingDataError:
        raise MissingDataError(f"{folder}: no pictures of this video, but splits.txt names it") from None
