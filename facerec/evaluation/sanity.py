"""A check of the preprocessing a model is given, by the model: the right one separates identities best.

A network whose file does not say how images are to be prepared still gives embeddings when they are
prepared wrongly, only worse ones. So a few hundred pairs are read in the other common ways, too.

Shape suffixes: N pairs, P images, D embedding size, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from facerec.errors import NonFiniteError, counted
from facerec.evaluation.embedding import HeldImages, embed_images
from facerec.evaluation.metrics.auc import auc
from facerec.evaluation.results import logger
from facerec.evaluation.settings import EvalSettings
from facerec.evaluation.statistics.separation import Bools, Floats, Ints, Separation
from facerec.images.preprocessing import Numbers, Preprocessing
from facerec.models.model import Model
from facerec.packs.verification import VerificationSet
from facerec.vectors import unit_rows

PAIRS: Final = 300  # read of each preprocessing, half of them genuine
_RESAMPLES: Final = 400
# A gain must be this many standard errors, for half a dozen are compared. A network trained on RGB reads RGB
# 4.2 of them better than BGR, and 4.8 to 8.6 better than other normalisations (`lfw_small`, LFW's fold 10).
_CLEAR: Final = 3.0
_CHANCE: Final = 0.6  # AUC of 300 pairs by chance: 0.5 ± 0.033
_WORTH: Final = 0.03  # and this part of d′: (x − 127.5)/128 for (x − 127.5)/127.5 is not worth a word

# The common normalisations, of pixels 0 … 255: what to type, mean, std. Those of ImageNet are in RGB order.
COMMON: Final[tuple[tuple[Numbers, Numbers], ...]] = (
    (127.5, 127.5),
    (127.5, 128.0),
    (0.0, 255.0),
    ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
    (0.0, 1.0),
    (127.5, 12.8),  # SFace's published code
)


@dataclass(frozen=True)
class Reading:
    """Separation of the pairs under one preprocessing.

    `dprime` is the mean cosine of genuine pairs less that of impostor pairs, over the root of their mean
    variance (d′ of signal detection: Green & Swets 1966): it still tells good models apart where the area
    under the ROC is 1 for all of them. `dprime_R` is that of resamples, the same ones for every reading.
    """

    input: Preprocessing
    dprime: float
    auc: float
    dprime_R: Floats

    @property
    def numbers(self) -> str:
        """``d′ 1.234, AUC 0.9876``."""
        return f"d′ {self.dprime:.3f}, AUC {self.auc:.4f}"

    def clearly_above(self, other: Reading) -> bool:
        """Return True if it separates better than `other` by far more than chance."""
        gain = self.dprime - other.dprime
        error = float(np.std(self.dprime_R - other.dprime_R))
        return gain > max(_CLEAR * error, _WORTH * abs(other.dprime)) and self.auc >= other.auc


def check_preprocessing(
    model: Model, verification_set: VerificationSet, settings: EvalSettings
) -> Preprocessing | None:
    """Compare the model's preprocessing with the common ones, and warn where another reads clearly better.

    RGB is compared with BGR under the normalisation given, and the common normalisations under the order of
    channels given; then, where one of these is better, the same from there.

    Returns:
        The preprocessing that reads clearly better, if there is one; the warning says what to type for it.
    """
    row_M, same_M = _chosen(verification_set)
    if not 0 < same_M.sum() < len(same_M):
        logger.info("preprocessing not checked: %s has pairs of one kind only", verification_set.name)
        return None
    used_P, pair_2M = np.unique(row_M, return_inverse=True)

    def read(prepared: Preprocessing) -> Reading:
        try:
            embedded = embed_images(
                Model(model.backbone, prepared),
                HeldImages(verification_set.images, verification_set.where),
                positions=used_P,
                name=f"checking {prepared.channels} (x − {prepared.mean}) / {prepared.std}",
                batch_size=settings.batch_size,
                flip=False,
                precision=settings.precision,
            )
        except NonFiniteError:
            if prepared == model.input:
                raise
            return Reading(prepared, -np.inf, 0.0, np.zeros(_RESAMPLES))  # too large for it: not this one
        return _reading(prepared, embedded.plain_PD[pair_2M.reshape(-1)], same_M)

    readings = {str(model.input): read(model.input)}

    def best_near(prepared: Preprocessing) -> Reading:
        """The best of those that differ from it in the order of channels or in the normalisation."""
        near = {str(other): other for other in (_turned(prepared), *_normalised(prepared))}
        for key, other in near.items():
            if key not in readings:
                readings[key] = read(other)
        return max((readings[key] for key in near), key=lambda one: one.dprime)

    given = readings[str(model.input)]
    best = best_near(model.input)
    if best.clearly_above(given):  # both may be wrong at once
        further = best_near(best.input)
        best = further if further.clearly_above(best) else best
    count = f"{counted(len(same_M), 'pair')} of {verification_set.name}"
    if max(given.auc, best.auc) < _CHANCE:
        logger.warning(
            f"the weights look wrong: on {count} no common preprocessing separates identities better than "
            f"chance (AUC {max(given.auc, best.auc):.3f} at best); they may be of another network of "
            "equal shapes"
        )
    if not best.clearly_above(given):
        logger.info(
            f"preprocessing checked on {count}: no other common one reads clearly better "
            f"(d′ {given.dprime:.3f}; next {best.dprime:.3f}, {best.input})"
        )
        return None
    logger.warning(
        f"the preprocessing looks wrong: on {count}, {best.input} separates identities clearly better "
        f"({best.numbers}) than {model.input} ({given.numbers}); if that is how the model was trained, say "
        f"{_overrides(model.input, best.input)}"
    )
    return best.input


def _chosen(verification_set: VerificationSet) -> tuple[Ints, Bools]:
    """Images, two rows per pair, and answers of pairs taken evenly, as many genuine as impostor at most."""
    issame_N = np.asarray(verification_set.issame_N)
    index_N2 = np.asarray(verification_set.index_2N).reshape(-1, 2)
    kinds = []
    for kind in (True, False):
        all_of_it = np.flatnonzero(issame_N == kind)
        count = min(PAIRS // 2, len(all_of_it))
        kinds.append(all_of_it[np.linspace(0, len(all_of_it) - 1, count).astype(int)])
    chosen = np.concatenate(kinds)
    return index_N2[chosen].reshape(-1), issame_N[chosen]


def _reading(prepared: Preprocessing, embedding_2ND: Floats, same_N: Bools) -> Reading:
    unit = unit_rows(embedding_2ND.astype(np.float64))
    cosine_N = (unit[0::2] * unit[1::2]).sum(1)
    genuine_G, impostor_I = cosine_N[same_N], cosine_N[~same_N]
    random = np.random.default_rng(0)  # the same resamples for every preprocessing: differences are of pairs
    resamples = (
        kind[random.integers(0, len(kind), (_RESAMPLES, len(kind)))] for kind in (genuine_G, impostor_I)
    )
    area = auc(Separation(-genuine_G, -impostor_I)) or 0.0
    dprime = float(_dprime(genuine_G[None], impostor_I[None])[0])
    return Reading(prepared, dprime, area, _dprime(*resamples))


def _dprime(genuine_RG: Floats, impostor_RI: Floats) -> Floats:
    deviation_R = np.sqrt((genuine_RG.var(1) + impostor_RI.var(1)) / 2)
    return (genuine_RG.mean(1) - impostor_RI.mean(1)) / np.maximum(deviation_R, 1e-6)


def _turned(prepared: Preprocessing) -> Preprocessing:
    """The same with the channels in the other order: each colour keeps its numbers."""
    mean, std = (value[::-1] if isinstance(value, list) else value for value in (prepared.mean, prepared.std))
    return replace(prepared, channels="bgr" if prepared.channels == "rgb" else "rgb", mean=mean, std=std)


def _normalised(prepared: Preprocessing) -> Iterator[Preprocessing]:
    """The common normalisations in the same order of channels, without the one that is given."""
    for mean, std in COMMON:
        rgb = replace(prepared, channels="rgb", mean=mean, std=std)
        other = rgb if prepared.channels == "rgb" else _turned(rgb)
        if other != prepared:
            yield other


def _overrides(given: Preprocessing, better: Preprocessing) -> str:
    """Return the overrides to type: ``input.channels=bgr input.mean=0 input.std=255``."""
    words = []
    for key in ("channels", "mean", "std"):
        value = getattr(better, key)
        if value == getattr(given, key):
            continue
        if isinstance(value, list):
            words.append(f"'input.{key}=[{','.join(f'{one:g}' for one in value)}]'")
        else:
            words.append(f"input.{key}={value}" if isinstance(value, str) else f"input.{key}={value:g}")
    return " ".join(words)
