"""vit_t/s/b/l, the vision transformers of InsightFace's arcface_torch for 112×112 faces.

Source: the published code, in the sizes it trains on WebFace42M (1.5, 5.7, 11.4 and 25.3 GFLOPs). 12×12
patches of 9×9 pixels, so that 4 pixels at the right and the bottom are not seen; ReLU6 between the layers of
the MLP; no class token: the embedding is computed from all tokens side by side.

Shapes: B images, N tokens (144), E width of a token, D length of the embedding.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facerec.backbones.base import (
    BACKBONES,
    Backbone,
    in_full_precision,
    initialise,
    register_members,
    require_fraction,
)

PATCH = 9
HEADS = 8


class Attention(nn.Module):
    """Multi-head self-attention, without biases before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BNE: Tensor) -> Tensor:
        batch, tokens, width = x_BNE.shape
        q, k, v = self.qkv(x_BNE).view(batch, tokens, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class MLP(nn.Module):
    """Two layers, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.act = nn.ReLU6()
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x_BNE: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x_BNE)))


class Block(nn.Module):
    """Attention and MLP, each on the normalised tokens and added to them; either is left out for an image
    with probability `drop_path` in training (stochastic depth, 1603.09382)."""

    recomputable = ("forward",)

    def __init__(self, width: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.attn = Attention(width)
        self.mlp = MLP(width)
        self.drop_path = drop_path

    def forward(self, x_BNE: Tensor) -> Tensor:
        x_BNE = x_BNE + self._kept(self.attn(self.norm1(x_BNE)))
        return x_BNE + self._kept(self.mlp(self.norm2(x_BNE)))

    def _kept(self, branch_BNE: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return branch_BNE
        keep = 1 - self.drop_path
        return branch_BNE * (branch_BNE.new_empty(len(branch_BNE), 1, 1).bernoulli_(keep) / keep)


class Patches(nn.Module):
    """The image cut into patches, each as one token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return self.proj(image_BCHW).flatten(2).transpose(1, 2)


class VisionTransformer(Backbone):
    """The network behind every name of this layout.

    Args:
        drop_path: chance to leave out a branch of the last block in training, growing from 0 at the first.
        mask_ratio: fraction of the tokens replaced by the learned mask token in training. (The published code
            masks a tenth whenever its own setting is above 0.)
        input_size: pixels, multiples of 16; 112 is published.
    """

    stages: ClassVar[tuple[int, int]]  # width of a token, number of blocks

    def __init__(
        self,
        embedding_size: int = 512,
        drop_path: float = 0.1,
        mask_ratio: float = 0.1,
        input_size: int | list[int] = 112,
    ) -> None:
        super().__init__(embedding_size, input_size)
        require_fraction("drop_path", drop_path)
        require_fraction("mask_ratio", mask_ratio)
        width, depth = self.stages
        height, breadth = self.input_size
        tokens = (height // PATCH) * (breadth // PATCH)
        self.mask_ratio = mask_ratio
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        # Without masks it takes no part, and several processes cannot average what has no gradient.
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width), requires_grad=mask_ratio > 0)
        self.patch_embed = Patches(width)
        rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(Block(width, rate) for rate in rates)
        self.norm = nn.LayerNorm(width)
        self.feature = nn.Sequential(
            nn.Linear(width * tokens, width, bias=False),
            nn.BatchNorm1d(width, eps=2e-5),
            nn.Linear(width, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size, eps=2e-5),
        )
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)
        initialise(self, nn.init.trunc_normal_, nn.Linear, std=0.02)

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "mask_token"}

    def _embed(self, image_BCHW: Tensor) -> Tensor:
        x_BNE = self.patch_embed(image_BCHW) + self.pos_embed
        masked = self.training and self.mask_ratio > 0
        if masked:
            batch, tokens, width = x_BNE.shape
            kept = int(tokens * (1 - self.mask_ratio))
            # The masked tokens take no part in the blocks and come back as the mask token after them.
            order_BN = torch.rand(batch, tokens, device=x_BNE.device).argsort(dim=1)
            kept_BNE = order_BN[:, :kept, None].expand(-1, -1, width)
            x_BNE = x_BNE.gather(1, kept_BNE)
        for block in self.blocks:
            x_BNE = block(x_BNE)
        x_BNE = in_full_precision(x_BNE, self.norm)
        if masked:
            whole_BNE = self.mask_token.to(x_BNE.dtype).expand(batch, tokens, width)
            x_BNE = whole_BNE.scatter(1, kept_BNE, x_BNE)
        return in_full_precision(x_BNE.flatten(1), self.feature)


@BACKBONES.register("vit_l")
class LargeVisionTransformer(VisionTransformer):
    """The largest, with its own published recipe."""

    stages = (768, 24)

    def __init__(
        self,
        embedding_size: int = 512,
        drop_path: float = 0.05,
        mask_ratio: float = 0.1,
        input_size: int | list[int] = 112,
    ) -> None:
        super().__init__(embedding_size, drop_path, mask_ratio, input_size)


register_members(VisionTransformer, {"vit_t": (256, 12), "vit_s": (512, 12), "vit_b": (512, 24)})
