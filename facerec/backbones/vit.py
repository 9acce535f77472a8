"""vit_t/s/b/l, the vision transformers of InsightFace's arcface_torch for 112×112 faces.

Source: the published code, in the sizes it trains on WebFace42M (1.5, 5.7, 11.4 and 25.3 GFLOPs). 12×12
patches of 9×9 pixels, so that 4 pixels at the right and the bottom are not seen; ReLU6 between the layers of
the MLP; no class token: the embedding is computed from all tokens side by side. CVLface has the same networks
with 14×14 patches of 8×8 pixels, and MLPs and heads of its own.

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
from facerec.errors import require


class Attention(nn.Module):
    """Multi-head self-attention, without biases before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BNE: Tensor) -> Tensor:
        batch, tokens, width = x_BNE.shape
        qkv = self.qkv(x_BNE).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class MLP(nn.Module):
    """Two layers, `ratio` times as wide inside."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, ratio * width)
        self.act = nn.ReLU6()
        self.fc2 = nn.Linear(ratio * width, width)

    def forward(self, x_BNE: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x_BNE)))


class Block(nn.Module):
    """Attention and MLP, each on the normalised tokens and added to them; either is left out for an image
    with probability `drop_path` in training (stochastic depth, 1603.09382)."""

    recomputable = ("forward",)

    def __init__(self, width: int, drop_path: float, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.mlp = MLP(width, mlp_ratio)
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

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, side, side)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return self.proj(image_BCHW).flatten(2).transpose(1, 2)


class VisionTransformer(Backbone):
    """The network behind every name of this layout.

    Args:
        drop_path: chance to leave out a branch of the last block in training, growing from 0 at the first.
        mask_ratio: fraction of the tokens replaced by the learned mask token in training. (The published code
            masks a tenth whenever its own setting is above 0.)
        input_size: pixels, multiples of 16; 112 is published.
        patch: side of a patch in pixels; heads: of the attention; mlp_ratio: of the MLP's width inside to a
            token's.
    """

    stages: ClassVar[tuple[int, int]]  # width of a token, number of blocks
    foreign = ("mask_token",)  # files of networks trained without masks lack it

    def __init__(
        self,
        embedding_size: int = 512,
        drop_path: float = 0.1,
        mask_ratio: float = 0.1,
        input_size: int | list[int] = 112,
        patch: int = 9,
        heads: int = 8,
        mlp_ratio: int = 4,
    ) -> None:
        super().__init__(embedding_size, input_size)
        require_fraction("drop_path", drop_path)
        require_fraction("mask_ratio", mask_ratio)
        width, depth = self.stages
        height, breadth = self.input_size
        require(1 <= patch <= min(self.input_size), "backbone.patch", patch, "must be 1 to the image's side")
        divides = heads >= 1 and width % heads == 0
        require(divides, "backbone.heads", heads, f"must divide the width of a token, {width}")
        require(1 <= mlp_ratio <= 64, "backbone.mlp_ratio", mlp_ratio, "must be 1 to 64")
        tokens = (height // patch) * (breadth // patch)
        self.mask_ratio = mask_ratio
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        # Without masks it takes no part, and several processes cannot average what has no gradient.
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width), requires_grad=mask_ratio > 0)
        self.patch_embed = Patches(width, patch)
        rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(Block(width, rate, heads, mlp_ratio) for rate in rates)
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
        patch: int = 9,
        heads: int = 8,
        mlp_ratio: int = 4,
    ) -> None:
        super().__init__(embedding_size, drop_path, mask_ratio, input_size, patch, heads, mlp_ratio)


register_members(VisionTransformer, {"vit_t": (256, 12), "vit_s": (512, 12), "vit_b": (512, 24)})
