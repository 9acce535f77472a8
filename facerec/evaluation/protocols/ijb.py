"""IJB-B and IJB-C: 1:1 over all listed pairs of templates, 1:N over the mixed probes and two galleries.

Each number comes without and with the detector's score as weight of an image.

Shape suffixes: R rows of the face list, P images, T templates, N pairs, D embedding size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from facerec.errors import DamagedDataError, counted, require
from facerec.evaluation.embedding import embed_portions
from facerec.evaluation.metrics import JudgedPairs
from facerec.evaluation.metrics.base import create_metrics, measure
from facerec.evaluation.protocols.base import PROTOCOLS, Protocol
from facerec.evaluation.protocols.identification import identify
from facerec.evaluation.results import (
    PairResult,
    Result,
    alike_notes,
    flip_fact,
    histogram_series,
    interval_facts,
    rate_series,
    unsupported,
    warn,
)
from facerec.evaluation.statistics.bootstrap import Interval, rate_intervals
from facerec.evaluation.statistics.separation import Bools, Floats, Ints
from facerec.evaluation.statistics.templates import FaceList, TemplatePool, pair_cosines
from facerec.images.align import align, middle
from facerec.images.decode import Pixels, decode_full_size
from facerec.images.images import PixelImages
from facerec.loading.folders import FileImages
from facerec.models.model import Model
from facerec.packs.text import is_number, no_list, numbered_lines, read_table, stays_inside, wrong_line

_LARGEST = 1e9  # of landmarks in pixels and scores: float32 holds it, and nothing sensible is larger
_Subjects = tuple[Ints, Ints]  # rows of templates, and their subjects


@PROTOCOLS.register("ijb")
@dataclass(frozen=True)
class Ijb(Protocol):
    """IJB-B and IJB-C.

    Args:
        root: folder of ``loose_crop/`` and the lists, in ``meta/`` or beside it.
        targets: ``[ijbb]`` or ``[ijbc]``.
    """

    protocol: Literal["ijb"] = "ijb"
    targets: list[str] = field(default_factory=lambda: ["ijbc"])
    metrics: list[str] = field(default_factory=lambda: ["tar_at_far", "auc", "eer"])

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.root is not None, "eval.root", None, "must be the folder of loose_crop and the lists")
        known = len(self.targets) == 1 and self.targets[0] in ("ijbb", "ijbc")
        require(known, "eval.targets", self.targets, "must be [ijbb] or [ijbc]")

    def results(self, model: Model) -> Mapping[str, Result]:
        """TAR@FAR over all listed pairs (1:1) and, where its lists are there, 1:N.

        In 1:N the mixed probes are searched in each of the two galleries; those who are in the other one are
        the non-mated probes.

        Returns:
            ``{"ijbc": …, "ijbc_detector_score": …}`` and ``ijbc_1n_G1``, ``ijbc_1n_G2`` and so on.

        Raises:
            MissingDataError: a list or image is missing.
            DamagedDataError: a list or image is damaged.
        """
        root, name = Path(self.root or "."), self.targets[0]
        meta = root / "meta" if (root / "meta").is_dir() else root
        lists = read_lists(meta, name)
        searches = _searches(meta, name, lists.id_T)
        images = AlignedCrops(root / "loose_crop", lists, model.input.shape, meta)
        pools = TemplatePool(lists.faces), TemplatePool(lists.faces, lists.score_P)
        for summed_BD in embed_portions(model, images, self, name):
            for pool in pools:
                pool.add(summed_BD)
        results: dict[str, Result] = {}
        title = name.upper().replace("IJB", "IJB-")
        for pool, scored in zip(pools, (False, True), strict=True):
            unit_TD = pool.unit_TD()
            suffix = "_detector_score" if scored else ""
            said = f"cosine, {self.views}, {'with' if scored else 'without'} detector score"
            results[name + suffix] = judge_pairs(
                unit_TD,
                lists.first_N,
                lists.second_N,
                lists.issame_N,
                images=len(images),
                flip=self.flip,
                detector_score=scored,
                metrics=self.metrics,
                identity_N=lists.id_T[lists.first_N],
                bootstrap=self.resamples,
                seed=self.seed,
                protocol=f"{title} 1:1, all listed template pairs, {said}",
            )
            for key, (probe, gallery) in searches.items():
                results[f"{name}_1n_{key}{suffix}"] = identify(
                    unit_TD[probe[0]],
                    probe[1],
                    unit_TD[gallery[0]],
                    gallery[1],
                    bootstrap=self.resamples,
                    seed=self.seed,
                    protocol=f"{title} 1:N, mixed probes in gallery {key}, {said}",
                )
        return results


class AlignedCrops(PixelImages, FileImages):
    """The images of the lists, aligned by their landmarks and cut to `shape`."""

    def __init__(self, root: Path, lists: IjbLists, shape: tuple[int, ...], source: Path) -> None:
        super().__init__(root, lists.name_P, source=source, contained=True)
        self._landmarks_P52, self._shape = lists.landmarks_P52, shape

    def pixels(self, i: int) -> Pixels:
        try:
            crop_HWC = decode_full_size(FileImages.encoded(self, i))
            return middle(align(crop_HWC, self._landmarks_P52[i], max(self._shape)), self._shape)
        except DamagedDataError as error:
            raise DamagedDataError(f"{self.where(i)}: {error}") from error


# Judging ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TemplateResult(PairResult):
    """Verification of listed template pairs.

    Runs are compared by TAR at FAR 1e-4, or at the lowest FAR above it that is supported. The 95 % intervals
    of TAR resample the identities of the genuine pairs, the threshold held fixed.
    """

    templates: int
    images: int
    flip: bool
    detector_score: bool

    kind = "templates"

    @property
    def conditions(self) -> str:
        return f"{super().conditions}, {'flip-TTA' if self.flip else 'no flip'}"

    def lines(self) -> list[str]:
        """A line per FAR target that the pairs support, five digits."""
        return [f"TAR@FAR={far}: {tar:.5f}" for far, tar in self.tar_at_far.items() if tar is not None]

    def facts(self) -> list[tuple[str, str]]:
        """Protocol, pairs, templates and how they were pooled."""
        resampled = "identities of the genuine pairs resampled, thresholds held fixed"
        return [
            *self._pair_facts(),
            ("Templates", f"{self.templates:,} of {counted(self.images, 'image')}"),
            flip_fact(self.flip),
            ("Detector score", "as weight of each image" if self.detector_score else "not used"),
            *interval_facts(self.tar_at_far_interval, resampled),
        ]


def judge_pairs(
    unit_TD: Floats,
    first_N: Ints,
    second_N: Ints,
    issame_N: Bools,
    *,
    images: int,
    flip: bool,
    detector_score: bool,
    protocol: str,
    metrics: Iterable[str] = ("tar_at_far", "auc", "eer"),
    identity_N: Ints | None = None,
    bootstrap: int = 0,
    seed: int = 0,
) -> TemplateResult:
    """Metrics of listed pairs of templates, compared by cosine.

    Args:
        unit_TD: unit templates.
        first_N, second_N: rows of `unit_TD`.
        issame_N: True for genuine pairs.
        images, flip, detector_score, protocol: what is to be said with the numbers.
        metrics: registered ones; TAR@FAR, by which models are compared, is always among them.
        identity_N: identity of the first template of each pair, for the intervals of TAR; None: there are
            none.
        bootstrap: number of resamples for them; 0 for none.
        seed: of the bootstrap.
    """
    chosen = create_metrics(dict.fromkeys(("tar_at_far", *metrics)))
    distance_N = pair_cosines(unit_TD, first_N, second_N)
    np.negative(distance_N, out=distance_N)
    same_N = np.asarray(issame_N, bool)
    pairs = JudgedPairs(distance_N, same_N)
    separation = pairs.separation
    values = measure(chosen, pairs)
    tars = values["tar_at_far"]
    genuine_G = distance_N[same_N]
    accepted = {
        far: genuine_G < separation.threshold_at_far(float(far))
        for far, tar in tars.items()
        if tar is not None
    }
    intervals: dict[str, Interval] = dict.fromkeys(tars)
    if identity_N is not None:
        intervals |= rate_intervals(accepted, identity_N[same_N], resamples=bootstrap, seed=seed)
    scored = next((far for far in reversed(accepted) if float(far) >= 1e-4), None)
    impostors = len(separation.impostor_I)
    notes = alike_notes(separation) + unsupported(tars, "TAR at FAR", impostors, "impostor pairs")
    zero = int((~unit_TD.any(axis=1)).sum())
    if zero:
        notes += warn(
            f"{counted(zero, 'template')} of zeros alone: the backbone says nothing about the images"
        )
    return TemplateResult(
        values=values | {"tar_at_far_interval": intervals},
        metrics=chosen,
        pairs=len(same_N),
        genuine_pairs=len(genuine_G),
        templates=len(unit_TD),
        images=images,
        flip=flip,
        detector_score=detector_score,
        protocol=protocol,
        notes=notes,
        score_key=f"tar_at_far_{scored}",
        decided=f"genuine pairs accepted at FAR {scored}",
        right_X=accepted.get(scored or ""),
        curves=[
            *rate_series(separation, "cosine", values.get("eer")),
            *histogram_series(separation, "cosine"),
        ],
    )


# Lists --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class IjbLists:
    """File names, landmarks and detector scores of the images, their templates, the listed template pairs."""

    name_P: list[str]
    landmarks_P52: npt.NDArray[np.float32]
    score_P: npt.NDArray[np.float32]
    faces: FaceList
    id_T: Ints
    first_N: Ints
    second_N: Ints
    issame_N: npt.NDArray[np.bool_]


def read_lists(folder: Path, name: str) -> IjbLists:
    """Read the three lists of `name` (``ijbb`` or ``ijbc``) in `folder`.

    Raises:
        MissingDataError: a list is missing.
        DamagedDataError: naming the line that is wrong, or the image or template that one list has and the
            other has not.
    """
    name_R, template_R, medium_R = _read_faces(folder / f"{name}_face_tid_mid.txt")
    scores = folder / f"{name}_name_5pts_score.txt"
    number_of, landmarks_P52, score_P = _read_scores(scores)
    try:
        image_R = np.array([number_of[one] for one in name_R])
    except KeyError as error:
        raise DamagedDataError(f"{scores}: lacks the image {error}, which the face list names") from None
    template, template_R = np.unique(template_R, return_inverse=True)
    pairs = folder / f"{name}_template_pair_label.txt"
    first_N, second_N, issame_N = read_template_pairs(pairs)
    faces = FaceList(image_R, template_R.astype(np.int32), medium_R)
    first_N, second_N = (_rows_of(ids, template, pairs) for ids in (first_N, second_N))
    return IjbLists(list(number_of), landmarks_P52, score_P, faces, template, first_N, second_N, issame_N)


def read_subjects(path: Path, id_T: Ints) -> tuple[Ints, Ints]:
    """Read a gallery or probe list of 1:N: ``template id,subject id,…`` per image, a header if any before.

    Returns:
        Per template its row in `id_T` (the published ids, ascending) and its subject.

    Raises:
        MissingDataError: there is no such file.
        DamagedDataError: naming the line that is wrong, or the template that is unknown.
    """
    subject_of: dict[int, int] = {}
    for number, line in numbered_lines(path, "surrogateescape"):
        fields = [field.strip().strip('"') for field in line.split(",")]
        if number == 1 and not is_number(fields[0]):
            continue  # the header
        if len(fields) < 2 or not (is_number(fields[0]) and is_number(fields[1])):
            raise wrong_line(path, number, line, "template id, subject id, …")
        subject = subject_of.setdefault(int(fields[0]), int(fields[1]))
        if subject != int(fields[1]):
            raise wrong_line(
                path, number, line, f"of the subject {subject} that template {fields[0]} had before"
            )
    if not subject_of:
        raise DamagedDataError(f"{path} holds no templates")
    return _rows_of(np.array(list(subject_of)), id_T, path), np.array(list(subject_of.values()))


def read_template_pairs(path: Path) -> tuple[Ints, Ints, npt.NDArray[np.bool_]]:
    """Read ``template 1, template 2, label`` lines (15.7 million in IJB-C): ids, int32, and the labels.

    Raises:
        MissingDataError: there is no such file.
        DamagedDataError: naming the line that is wrong.
    """
    expected = "template 1, template 2, label (0 or 1)"
    try:
        pair_N3 = read_table(path, (2**31 - 1, 2**31 - 1, 1), expected, np.int32)
    except OSError as error:
        raise no_list(path, error) from None
    if not len(pair_N3):
        raise DamagedDataError(f"{path} holds no pairs")
    return pair_N3[:, 0].copy(), pair_N3[:, 1].copy(), pair_N3[:, 2] == 1


def _read_faces(path: Path) -> tuple[list[str], Ints, Ints]:
    names, numbers = [], []
    for number, line in numbered_lines(path, "surrogateescape"):
        fields = line.split()
        if len(fields) != 3 or not (is_number(fields[1]) and is_number(fields[2].removeprefix("-"))):
            raise wrong_line(path, number, line, "image name, template id, media id")
        names.append(fields[0])
        numbers.append((int(fields[1]), int(fields[2])))
    if not names:
        raise DamagedDataError(f"{path} holds no faces")
    template_R, medium_R = np.array(numbers, np.int64).T
    return names, template_R, medium_R


def _read_scores(path: Path) -> tuple[dict[str, int], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Number of each image by name, its landmarks and its score."""
    number_of: dict[str, int] = {}
    values = []
    for number, line in numbered_lines(path, "surrogateescape"):
        name, *rest = line.split()
        try:
            row = [] if "_" in "".join(rest) else [float(field) for field in rest]
        except ValueError:
            row = []
        if len(row) != 11 or not all(abs(value) < _LARGEST for value in row):
            raise wrong_line(path, number, line, "name, five landmarks x y, score")
        if not stays_inside(name):
            raise wrong_line(path, number, line, "the name of an image in loose_crop")
        if name in number_of:
            raise wrong_line(path, number, line, "an image that was not named before")
        number_of[name] = len(number_of)
        values.append(row)
    table = np.array(values, np.float32).reshape(-1, 11)
    return number_of, table[:, :10].reshape(-1, 5, 2), table[:, 10]


def _rows_of(id_N: Ints, template: Ints, path: Path) -> npt.NDArray[np.int32]:
    """Return the row of each id among the templates."""
    row_N = np.searchsorted(template, id_N).astype(np.int32)
    wrong = template[np.minimum(row_N, len(template) - 1)] != id_N
    if wrong.any():
        missing = int(id_N[int(np.argmax(wrong))])
        raise DamagedDataError(f"{path}: names template {missing}, of which the face list has no image")
    return row_N


def _searches(meta: Path, name: str, id_T: Ints) -> dict[str, tuple[_Subjects, _Subjects]]:
    """Probes and gallery of each search of the 1:N protocol; none where the probe list is not there."""
    probes = meta / f"{name}_1N_probe_mixed.csv"
    if not probes.is_file():
        return {}
    probe = read_subjects(probes, id_T)
    keys = ("S1", "S2") if name == "ijbb" else ("G1", "G2")
    return {key: (probe, read_subjects(meta / f"{name}_1N_gallery_{key}.csv", id_T)) for key in keys}
