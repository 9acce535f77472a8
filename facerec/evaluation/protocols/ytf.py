"""YouTube Faces: a video's template is the normalised mean of its frames' embeddings; ten-fold accuracy over
the splits of the list.

Shape suffixes: V videos, R frames, N pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from facerec.errors import DamagedDataError, MissingDataError, require
from facerec.evaluation.embedding import embed_portions
from facerec.evaluation.judgement import one_sided
from facerec.evaluation.overlap import overlap_notes
from facerec.evaluation.protocols.base import PROTOCOLS, Protocol
from facerec.evaluation.results import Result, warn
from facerec.evaluation.statistics.folds import fold_numbers
from facerec.evaluation.statistics.separation import Ints
from facerec.evaluation.statistics.templates import FaceList, TemplatePool
from facerec.evaluation.verify import verify
from facerec.loading.folders import FileImages, images_below, require_inside
from facerec.models.model import Model
from facerec.packs.text import is_number, numbered_lines, stays_inside, wrong_line
from facerec.packs.verification import VerificationSet


@PROTOCOLS.register("ytf")
@dataclass(frozen=True)
class Ytf(Protocol):
    """YouTube Faces.

    Args:
        root: folder of ``splits.txt`` and a folder of aligned frames ``Name/k`` for each video.
        frames: how many frames of a video, evenly spaced; null: all.
    """

    protocol: Literal["ytf"] = "ytf"
    frames: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.root is not None, "eval.root", None, "must be the folder of splits.txt and the videos")
        few = self.frames is not None and self.frames < 1
        require(not few, "eval.frames", self.frames, "must be 1 or more, or null for all frames")

    def results(self, model: Model) -> Mapping[str, Result]:
        """Judge the listed pairs of videos in the list's splits.

        Raises:
            MissingDataError: the list or a video is missing.
            DamagedDataError: the list or a frame is damaged.
        """
        root = Path(self.root or ".")
        pairs = read_splits(root / "splits.txt")
        frames_V = [spaced(_frames(root, video), self.frames) for video in pairs.video_V]
        for note in one_sided(pairs.issame_N, fold_numbers(len(pairs.issame_N), pairs.split_N)[0]):
            warn(note, "ytf")
        images = FileImages(root, [path for frames in frames_V for path in frames])
        # Every frame is a medium of its own: the sum over them has the direction of their mean.
        rows = np.arange(len(images))
        pool = TemplatePool(
            FaceList(rows, np.repeat(np.arange(len(frames_V)), list(map(len, frames_V))), rows)
        )
        for summed_BD in embed_portions(model, images, self, "ytf"):
            pool.add(summed_BD)
        index_2N = np.stack([pairs.first_N, pairs.second_N], axis=1).reshape(-1).astype(np.int64)
        name_V = np.array([video.split("/")[0] for video in pairs.video_V])
        agree = ((name_V[pairs.first_N] == name_V[pairs.second_N]) == pairs.issame_N).all()
        name_2N = name_V[index_2N] if agree else None
        result = verify(
            pool.unit_TD()[index_2N],
            pairs.issame_N,
            folds=pairs.split_N,
            thresholds=self.thresholds,
            metrics=self.metrics,
            bootstrap=self.resamples,
            seed=self.seed,
            identity_2N=name_2N,
            name="ytf",
        )
        used = "all frames" if self.frames is None else f"{self.frames} frames a video, evenly spaced"
        # A video is shown by its first frame.
        first = FileImages(root, [frames[0] for frames in frames_V])
        shown = [first.encoded(i) for i in range(len(first))]
        result = replace(
            result,
            flip=self.flip,
            accuracy_noflip=None,
            protocol=f"YTF, {result.folds} splits of the list, {used}, {self.views}",
            notes=result.notes + overlap_notes(model, set(name_V.tolist()), "YTF"),
            source=VerificationSet("ytf", shown, index_2N, pairs.issame_N, root / "splits.txt", name_2N),
        )
        return {"ytf": result}


@dataclass(frozen=True)
class VideoPairs:
    """`video_V` are folders (``Name/k``), pairs index them, `split_N` is the fold of each pair."""

    video_V: list[str]
    first_N: Ints
    second_N: Ints
    issame_N: npt.NDArray[np.bool_]
    split_N: Ints


def read_splits(path: Path) -> VideoPairs:
    """Read ``splits.txt``: a header line, if any, then ``split, first video, second video, is same``.

    Raises:
        MissingDataError: there is no such file.
        DamagedDataError: naming the line that is wrong.
    """
    known: dict[str, int] = {}
    rows: list[tuple[int, int, int, int]] = []
    for number, line in numbered_lines(path, "surrogateescape"):
        fields = [field.strip() for field in line.split(",")]
        if not rows and number == 1 and not is_number(fields[0]):
            continue  # the header
        right = len(fields) == 4 and is_number(fields[0]) and fields[3] in ("0", "1")
        if not right or not all(map(stays_inside, fields[1:3])):
            raise wrong_line(path, number, line, "split, first video, second video, is same (0 or 1)")
        first, second = (known.setdefault(video, len(known)) for video in fields[1:3])
        rows.append((int(fields[0]), first, second, int(fields[3])))
    if not rows:
        raise DamagedDataError(f"{path} holds no pairs")
    split, first_N, second_N, same = np.array(rows).T
    return VideoPairs(list(known), first_N, second_N, same.astype(bool), split)


def spaced(frames: Sequence[str], count: int | None) -> list[str]:
    """`count` of the frames, evenly spaced from the first to the last; all where there are not more."""
    if count is None or len(frames) <= count:
        return list(frames)
    return [frames[int(at)] for at in np.linspace(0, len(frames) - 1, count).round()]


def _frames(root: Path, video: str) -> list[str]:
    try:
        require_inside(root / video, root)
        return [f"{video}/{path}" for path in images_below(root / video)]
    except OSError as error:
        raise MissingDataError(f"{root / video}: {error.strerror}") from None
    except MissingDataError:
        raise MissingDataError(f"{root / video}: no images of this video, but splits.txt names it") from None
