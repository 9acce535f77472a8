"""PReLU gives torch's values and gradients, faster."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facerec.backbones.prelu import PReLU


def through(module: nn.Module, x_BCHW: Tensor, grad_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output, gradient of the input and gradient of the slopes."""
    x_BCHW = x_BCHW.clone().requires_grad_()
    module.zero_grad()
    output_BCHW = module(x_BCHW)
    output_BCHW.backward(grad_BCHW)
    return output_BCHW.detach(), x_BCHW.grad, module.weight.grad.clone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5, 7, 6), (1, 8, 1, 1), (2, 1, 4, 4), (0, 4, 3, 3), (9, 64, 56, 56)])
def test_prelu_is_torchs_prelu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ours, torchs = (kind(shape[1]).to(dtype) for kind in (PReLU, nn.PReLU))
    with torch.no_grad():
        torchs.weight.copy_(torch.randn(shape[1]))
        ours.weight.copy_(torchs.weight)
    x_BCHW = F.dropout(torch.randn(shape), 0.1).to(dtype).contiguous(memory_format=torch.channels_last)
    grad_BCHW = torch.randn(shape).to(dtype)
    output, grad, slope_grad = through(ours, x_BCHW, grad_BCHW)
    expected, expected_grad, _ = through(torchs, x_BCHW, grad_BCHW)
    assert torch.equal(output, expected) and torch.equal(grad, expected_grad)
    negative = torch.where(x_BCHW > 0, 0, grad_BCHW.double() * x_BCHW.double())
    precision = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    sizes = negative.abs().sum((0, 2, 3))
    assert ((slope_grad - negative.sum((0, 2, 3))).abs() <= precision * sizes + 1e-30).all()


def test_prelu_takes_slopes_in_full_precision_under_autocast() -> None:
    torch.manual_seed(0)
    ours, torchs = PReLU(6), nn.PReLU(6)
    x_BCHW = torch.randn(2, 6, 4, 4).bfloat16().contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, grad, slope_grad = through(ours, x_BCHW, torch.ones_like(x_BCHW))
        expected, expected_grad, expected_slope_grad = through(torchs, x_BCHW, torch.ones_like(x_BCHW))
    assert output.dtype == grad.dtype == torch.bfloat16 and slope_grad.dtype == torch.float32
    assert torch.equal(output, expected) and torch.equal(grad, expected_grad)
    torch.testing.assert_close(slope_grad, expected_slope_grad, rtol=0.02, atol=0.02)


def test_prelu_gradients_by_finite_differences() -> None:
    prelu = PReLU(3).double()
    x_BCHW = torch.randn(2, 3, 2, 2, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    weight_C = prelu.weight.detach().requires_grad_()

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(prelu, {"weight": weight}, (x,))

    assert torch.autograd.gradcheck(function, (x_BCHW.requires_grad_(), weight_C))


def test_only_channels_last_training_on_the_cpu_takes_the_faster_way() -> None:
    prelu, x_BCHW = PReLU(4), torch.randn(2, 4, 3, 3)
    last_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
    assert "ChannelsLastPReLU" in type(prelu(last_BCHW).grad_fn).__name__
    assert "ChannelsLastPReLU" not in type(prelu(x_BCHW).grad_fn).__name__
    with torch.no_grad():
        assert prelu(last_BCHW).grad_fn is None
