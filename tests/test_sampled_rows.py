"""An optimizer's step over sampled rows: theirs is the dense step, the others stay as they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from facerec.heads.mechanism.sampling import take_rows, updating_sampled_rows

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, fused=True),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "plain": lambda p: torch.optim.SGD(p, lr=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.01, fused=True),
}


def steps(
    make: Make, rows: list[list[int]], sparse: bool
) -> tuple[Tensor, torch.optim.Optimizer, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(6, 3, generator=generator))
    other = nn.Parameter(torch.ones(2))
    optimizer = make([other, weight])
    for chosen in rows:
        optimizer.zero_grad()
        picked = take_rows(weight, torch.tensor(chosen)) if sparse else weight[chosen]
        ((picked**3).sum() + (other**2).sum()).backward()
        with updating_sampled_rows(optimizer):
            optimizer.step()
    return weight.detach(), optimizer, weight


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_with_all_rows_sampled_it_is_the_dense_step(name: str) -> None:
    everything = [list(range(6))] * 4
    dense, _, _ = steps(OPTIMIZERS[name], everything, sparse=False)
    sampled, optimizer, weight = steps(OPTIMIZERS[name], everything, sparse=True)
    torch.testing.assert_close(sampled, dense, rtol=1e-6, atol=1e-7)
    assert [p for group in optimizer.param_groups for p in group["params"]][1] is weight
    assert len(optimizer.state) <= 2, "no state is left of the rows that were taken out"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rows_that_are_not_sampled_are_not_touched_and_their_momentum_waits(name: str) -> None:
    before, _, _ = steps(OPTIMIZERS[name], [], sparse=True)
    after, _, _ = steps(OPTIMIZERS[name], [[0, 2]], sparse=True)
    assert torch.equal(after[[1, 3, 4, 5]], before[[1, 3, 4, 5]])
    assert not torch.equal(after[[0, 2]], before[[0, 2]])
    # Row 0 is drawn twice with a step of others between: to it, that is two steps in a row.
    twice, _, _ = steps(OPTIMIZERS[name], [[0], [3], [0]], sparse=True)
    row, _, _ = steps(OPTIMIZERS[name], [[0], [0]], sparse=True)
    if name != "adamw":  # Adam counts the steps for its bias correction over all rows together
        torch.testing.assert_close(twice[0], row[0])


def test_several_batches_that_sample_the_same_row_add_up() -> None:
    weight = nn.Parameter(torch.ones(4, 2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    for chosen in ([0, 1], [1, 3]):
        take_rows(weight, torch.tensor(chosen)).sum().backward()
    with updating_sampled_rows(optimizer):
        optimizer.step()
    assert weight.detach()[:, 0].tolist() == [0.0, -1.0, 1.0, 0.0]


def test_the_state_of_sampled_rows_is_kept_whole_so_that_a_checkpoint_has_it() -> None:
    _, optimizer, weight = steps(OPTIMIZERS["sgd"], [[0, 2]], sparse=True)
    momentum = optimizer.state[weight]["momentum_buffer"]
    assert momentum.shape == weight.shape
    assert momentum[[1, 3, 4, 5]].abs().sum() == 0
    assert momentum[[0, 2]].abs().sum() > 0
