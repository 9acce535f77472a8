"""ONNX networks as weights of a known backbone that can be trained: found by structure, compared by outputs.

Batch norms that were folded into the layer before are rebuilt so that they only add a bias. In training they
would divide by the deviation of the batch, which the folded layer has already done, and the network would be
another one; `unfold_batch_norms` gives them the statistics of what they get.

Shape suffixes: B images, C channels, H height, W width, M values of a channel, D embedding size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from facerec import distributed
from facerec.backbones.base import Backbone, create_backbone, in_eval_mode
from facerec.errors import CheckpointError
from facerec.images.preprocessing import Preprocessing
from facerec.models import hub, structure
from facerec.models.networks import patterns
from facerec.models.onnx_network import OnnxNetwork
from facerec.models.recognition import hint, network_settings, recognise, typed
from facerec.registry import build
from facerec.vectors import unit_rows

log = logging.getLogger(__name__)

_LARGEST: Final = 1e-5  # difference between numbers of unit embeddings


def load_onnx(backbone: Backbone, path: Path, where: str) -> tuple[list[str], dict[str, Any]]:
    """Load the numbers of an ONNX network into `backbone`, which stays as it is unless outputs agree.

    Returns:
        The names of batch norms that were folded into the layer before: they only add its bias. And how
        images are to be prepared, as far as that is known, as settings of `Preprocessing`.

    Raises:
        UserError: onnxruntime or onnx is not installed.
        CheckpointError: another network than the backbone, or its outputs differ by more than 1e-5.
    """
    network = OnnxNetwork(path, torch.device("cpu"))
    network.where = where
    height, width = backbone.input_size
    if network.size not in (None, (height, width)):
        own = network.size[0] if network.size[0] == network.size[1] else list(network.size)
        size = typed("data.size", own)
        raise CheckpointError(f"{where}: is for images of {size}, and the backbone for {height}×{width}")
    network.probe((height, width))
    absorbed = load_network(backbone, network, network.layers())
    recorded = hub.recorded(network.metadata, "input", where)
    made_for, _ = settings_for(network, backbone, network.outside, recorded)
    return absorbed, made_for | ({} if network.inside else recorded)


def settings_for(
    network: OnnxNetwork, backbone: Backbone, made_for: dict[str, Any], recorded: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The preprocessing and the metadata of a network rebuilt as `backbone`, without what it prepares itself.

    Args:
        made_for: settings of what is done to images before the network.
        recorded: settings that its metadata has in their place.
    """
    if network.inside is None:
        return {**backbone.preprocessing, **made_for}, network.metadata
    made_for = build(Preprocessing, "input", made_for | recorded).followed_by(network.inside).to_dict()
    return made_for, network.metadata | (hub.as_metadata({"input": made_for}) if recorded else {})


def backbone_of(network: OnnxNetwork, settings: dict[str, Any]) -> tuple[dict[str, Any], Backbone]:
    """Create the backbone that an ONNX network is, with its weights; returns its configuration, too.

    Args:
        settings: of `create_backbone`, with a name; the sizes are those of the network.
    """
    layers = network.layers()
    known = recognise(layers, [settings["name"]], folded=True, size=network.size)
    if known is None:
        fits = hint(layers, network.where, folded=True, size=network.size)
        raise CheckpointError(f"{network.where}: is no {settings['name']}; it {fits}")
    settings = {**network_settings(settings), **known}
    backbone = create_backbone(**settings)
    load_network(backbone, network, layers)
    return {"backbone": settings}, backbone


def load_network(backbone: Backbone, network: OnnxNetwork, layers: dict[str, Tensor]) -> list[str]:
    """Load `layers` into `backbone` in the way by structure whose outputs are those of `network`."""
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    image_BCHW = patterns(2, backbone.input_size, network.takes_pixels)
    with torch.inference_mode():
        expected_BD = network(image_BCHW)
    image_BCHW = network.prepared(image_BCHW)
    ways = structure.matches(layers, backbone, folded=True)
    if not ways:
        fits = hint(layers, network.where, folded=True, size=backbone.input_size)
        raise CheckpointError(f"{network.where}: does not fit the backbone; it {fits}")
    differences = []
    for way in ways:
        backbone.load_state_dict(before | way.weights)
        with torch.inference_mode(), in_eval_mode(backbone):
            got_BD = backbone(image_BCHW.to(next(backbone.parameters()).device)).cpu()
        same_size = got_BD.shape == expected_BD.shape
        off_BD = unit_rows(got_BD) - unit_rows(expected_BD) if same_size else torch.tensor(torch.inf)
        differences.append(float(off_BD.abs().max()))
        if differences[-1] <= _LARGEST:
            norms = f"{len(way.absorbed)} batch norms were folded into the layer before"
            log.info(
                "%s: an ONNX network of the backbone's structure; unit embeddings differ by %.1e at most; %s",
                network.where,
                differences[-1],
                norms if way.absorbed else "whole",
            )
            if (inside := network.inside) is not None:
                log.info(
                    "%s: prepares images inside, (x − %s) / %s%s: that is left out, and is to be done before",
                    network.where,
                    inside.mean,
                    inside.std,
                    ", channels reversed" if inside.channels == "bgr" else "",
                )
            return way.absorbed
    backbone.load_state_dict(before)
    raise CheckpointError(
        f"{network.where}: has the layers of the backbone, but gives other embeddings (unit vectors differ "
        f"by {min(differences):.2g}): it does more to the images or to the embeddings, or is another network"
    )


# Unfold ----------------------------------------------------------------------------------------------------


def unfold_batch_norms(backbone: nn.Module, names: Sequence[str], run: Callable[[], object]) -> None:
    """Set the statistics of the batch norms called `names` to those of the images that `run` embeds.

    Args:
        run: runs the backbone in eval mode over images, under torch.distributed each rank its share of them.
    """
    named = [backbone.get_submodule(name) for name in names]
    norms = [norm for norm in named if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)]
    sums = [torch.zeros(2, norm.num_features, dtype=torch.float64) for norm in norms]
    counts = torch.zeros(len(norms), dtype=torch.float64)

    def note(i: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, given: tuple[Any, ...]) -> None:
            x_CM = given[0].detach().double().transpose(0, 1).flatten(1)
            sums[i] += torch.stack([x_CM.sum(1), (x_CM**2).sum(1)]).cpu()
            counts[i] += x_CM.shape[1]

        return hook

    hooks = [norm.register_forward_pre_hook(note(i)) for i, norm in enumerate(norms)]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    for norm, total, count in zip(norms, sums, counts, strict=True):
        mean_2C = distributed.all_reduce_sum(total) / distributed.all_reduce_sum(count)
        _set_statistics(norm, mean_2C[0], (mean_2C[1] - mean_2C[0] ** 2).clamp(min=0))


@torch.no_grad()
def _set_statistics(norm: nn.BatchNorm1d | nn.BatchNorm2d, mean_C: Tensor, var_C: Tensor) -> None:
    """New running statistics of a batch norm whose outputs stay the same in eval mode."""
    assert norm.running_mean is not None and norm.running_var is not None
    if not norm.affine:  # it has nothing that could take the old statistics' place
        return
    device = norm.weight.device
    mean_C, var_C = mean_C.to(device), var_C.to(device)
    scale_C = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift_C = norm.bias.double() - scale_C * norm.running_mean.double()
    norm.weight.copy_(scale_C * (var_C + norm.eps).sqrt())
    norm.bias.copy_(shift_C + scale_C * mean_C)
    norm.running_mean.copy_(mean_C)
    norm.running_var.copy_(var_C)
