"""The template protocols end to end: YTF's ten-fold accuracy, IJB-B's and IJB-C's TAR@FAR.

A layout's folder is given; a model goes in, results with everything that must be said with them come out.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from facerec.errors import MissingDataError, require
from facerec.evaluation.embedding import embed_pictures
from facerec.evaluation.model import Model
from facerec.evaluation.pictures import FilePictures, picture_files
from facerec.evaluation.settings import EvalSettings
from facerec.evaluation.template_lists import read_ijb, read_ytf_splits
from facerec.evaluation.templates import FaceList, TemplatePool, TemplateResult, judge_pairs
from facerec.evaluation.verification import VerificationResult, verify

logger = logging.getLogger("facerec.evaluation")

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
        chosen = spaced(_frames(Path(root) / video), frames)
        paths += chosen
        video_R += [number] * len(chosen)
    # Every frame is a medium of its own: the sum over them has the direction of their mean.
    rows = np.arange(len(paths))
    pool = TemplatePool(FaceList(rows, np.array(video_R), rows))
    pool_pictures(model, FilePictures(paths), [pool], settings, "ytf")
    unit_VD = pool.unit_TD()
    index_2N = np.stack([pairs.first_N, pairs.second_N], axis=1).reshape(-1)
    result = verify(
        unit_VD[index_2N],
        pairs.issame_N,
        folds=pairs.split_N,
        thresholds=settings.thresholds,
        bootstrap=settings.bootstrap,
        seed=settings.seed,
    )
    used = "all frames" if frames is None else f"{frames} frames a video, evenly spaced"
    said = f"YTF, {result.folds} splits of the list, {used}, {'flip-TTA' if settings.flip else 'no flip'}"
    return replace(result, flip=settings.flip, accuracy_noflip=None, protocol=said)


def evaluate_ijb(
    model: Model, root: str | Path, name: str, settings: EvalSettings | None = None
) -> dict[str, TemplateResult]:
    """IJB-B or IJB-C 1:1: TAR@FAR over all listed pairs, without and with the detector's score as weight.

    Template = normalised sum over media of the mean within a medium, of raw embeddings e + e'.

    Args:
        model: backbone and preprocessing.
        root: folder with ``loose_crop/`` and the three lists, in ``meta/`` or beside it.
        name: ``ijbb`` or ``ijbc``.
        settings: batch size, flip, precision.

    Returns:
        ``{"ijbc": …, "ijbc_detector_score": …}``.

    Raises:
        MissingDataError: a list or picture is missing.
        DamagedDataError: a list or picture is damaged.
    """
    settings = settings or EvalSettings()
    require(name in ("ijbb", "ijbc"), "eval.targets", name, "must be ijbb or ijbc")
    root = Path(root)
    meta = root / "meta" if (root / "meta").is_dir() else root
    lists = read_ijb(meta, name)
    paths = [root / "loose_crop" / one for one in lists.name_P]
    pictures = FilePictures(paths, lists.landmarks_P52, model.input.size)
    plain, weighted = TemplatePool(lists.faces), TemplatePool(lists.faces, lists.score_P)
    pool_pictures(model, pictures, [plain, weighted], settings, name)
    results = {}
    for key, pool, scored in ((name, plain, False), (f"{name}_detector_score", weighted, True)):
        results[key] = judge_pairs(
            pool.unit_TD(),
            lists.first_N,
            lists.second_N,
            lists.issame_N,
            pictures=len(paths),
            flip=settings.flip,
            detector_score=scored,
            protocol=f"{name.upper().replace('IJB', 'IJB-')} 1:1, all listed template pairs, cosine, "
            f"{'flip-TTA' if settings.flip else 'no flip'}, {'with' if scored else 'without'} detector score",
        )
        for line in results[key].log_lines(key, model.step):
            logger.info(line)
    return results


def spaced(frames: Sequence[Path], count: int | None) -> list[Path]:
    """`count` of the frames, evenly spaced from the first to the last; all where there are not more."""
    if count is None or len(frames) <= count:
        return list(frames)
    return [frames[int(at)] for at in np.linspace(0, len(frames) - 1, count).round()]


def _frames(folder: Path) -> list[Path]:
    files = picture_files(folder) if folder.is_dir() else []
    if not files:
        raise MissingDataError(f"{folder}: no pictures of this video, but splits.txt names it")
    return files
