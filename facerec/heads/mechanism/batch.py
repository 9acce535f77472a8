"""A batch as heads see it: what is refused, what a step reports, and where embeddings become unit vectors.

Shapes: B batch, D embedding size, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from facerec import distributed
from facerec.errors import DamagedDataError, UserError
from facerec.heads.mechanism.class_sums import ClassSums


class Samples(NamedTuple):
    """Embeddings (B, D), labels (B), and the embeddings' norms (B).

    `sizes` is the number of samples of every rank where the classes are sharded; None: equal numbers.
    """

    embedding_BD: Tensor
    label_B: Tensor
    norm_B: Tensor
    sizes: distributed.Sizes = None

    def all_gather(self) -> Samples:
        """Return the samples of all ranks one after the other, on every rank; gradients flow back."""
        embedding_GD = distributed.Gather.apply(self.embedding_BD, self.sizes)
        label_G = distributed.all_gather(self.label_B, self.sizes)
        return Samples(embedding_GD, label_G, torch.linalg.vector_norm(embedding_GD, dim=1), self.sizes)


def inverse_norm(norm: Tensor) -> Tensor:
    """Return 1/‖x‖, and 0 with no gradient for x shorter than 1e-6, which has no direction to speak of.

    Otherwise an embedding of zeros would get a gradient of 1/ε, which is infinite in fp16.
    """
    return torch.where(norm > 1e-6, 1.0 / norm.clamp_min(1e-6), 0.0)


@torch.no_grad()
def step_statistics(sums: ClassSums, norm_B: Tensor) -> dict[str, Tensor]:
    """Return mean target cosine and angle (degrees), mean and hardest other cosine, top-1 without margin.

    Those are of all classes; of filtered ones their number per sample is added.
    """
    cosine_B = sums.cosine_B.clamp(-1, 1)
    filtered = {} if sums.filtered_B is None else {"filtered_negatives": sums.filtered_B.mean()}
    return filtered | {
        "target_cosine": cosine_B.mean(),
        "target_angle": torch.rad2deg(cosine_B.acos()).mean(),
        "other_cosine": sums.mean_B.mean(),
        "hardest_cosine": sums.hardest_B.mean(),
        "accuracy": (sums.cosine_B > sums.hardest_B).float().mean(),
        "embedding_norm": norm_B.mean(),
    }


def check_batch(embedding_BD: Tensor, label_B: Tensor, num_classes: int, embedding_size: int) -> None:
    """Refuse what is not embeddings (B, D) with a label in [0, C) each.

    On a GPU the range is checked asynchronously, so that the host need not wait.

    Raises:
        UserError: embeddings or labels of another shape or type.
        DamagedDataError: a label outside [0, C).
    """
    if embedding_BD.ndim != 2 or embedding_BD.shape[1] != embedding_size:
        raise UserError(
            f"embeddings of shape {tuple(embedding_BD.shape)} do not fit the head: it takes (B, "
            f"{embedding_size}), by its embedding_size"
        )
    if label_B.shape != embedding_BD.shape[:1]:
        raise UserError(
            f"labels of shape {tuple(label_B.shape)} do not fit {len(embedding_BD)} embeddings: they must be "
            f"of shape ({len(embedding_BD)},), the number of a class each"
        )
    if label_B.is_floating_point() or label_B.is_complex() or label_B.dtype == torch.bool:
        raise UserError(f"labels are {label_B.dtype}; they must be integers, the number of a class each")
    wrong_B = (label_B < 0) | (label_B >= num_classes)
    if label_B.device.type == "cpu":
        if wrong_B.any():
            sample = int(wrong_B.nonzero()[0])
            raise DamagedDataError(
                f"label {int(label_B[sample])} (sample {sample} of the batch) is outside 0…{num_classes - 1};"
                " the labels of a pack must be remapped to its classes"
            )
    elif label_B.device.type == "cuda":
        torch._assert_async(~wrong_B.any(), f"a label is outside 0 to {num_classes - 1}")
