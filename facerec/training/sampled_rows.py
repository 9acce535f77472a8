"""A step of any optimizer over only those rows of the class weights that a step has sampled.

With ``head.sample_rate`` the gradient of the class weights has the sampled rows alone. The other rows are not
touched, neither by the gradient nor by weight decay nor by momentum, as in Partial FC: their momentum waits
until they are drawn again.

Shapes: R rows, K of them sampled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def sampled_rows(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within ``with sampled_rows(optimizer):`` a step sees each parameter with a sparse gradient as its rows.

    Weights and the optimizer's state (momentum, Adam's moments) of these rows are taken out, and put back
    after the step. Works for every optimizer that keeps its state per element.
    """
    taken: list[tuple[dict[str, object], int, nn.Parameter, nn.Parameter, Tensor]] = []
    for group in optimizer.param_groups:
        for place, parameter in enumerate(group["params"]):
            if parameter.grad is None or not parameter.grad.is_sparse:
                continue
            gradient = parameter.grad.coalesce()  # adds up what several batches say of the same row
            row_K = gradient.indices()[0]
            rows = nn.Parameter(parameter.detach()[row_K])
            rows.grad = gradient.values()
            state = optimizer.state.get(parameter, {})
            if state:
                optimizer.state[rows] = {k: _rows_of(v, parameter, row_K) for k, v in state.items()}
            group["params"][place] = rows
            taken.append((group, place, parameter, rows, row_K))
    try:
        yield
    finally:
        with torch.no_grad():
            for group, place, parameter, rows, row_K in taken:
                group["params"][place] = parameter  # type: ignore[index]
                parameter[row_K] = rows
                for name, value in optimizer.state.pop(rows, {}).items():
                    _put_back(optimizer, parameter, name, value, row_K)


def _rows_of(value: object, parameter: Tensor, row_K: Tensor) -> object:
    per_element = isinstance(value, Tensor) and value.shape == parameter.shape
    return value[row_K] if per_element else value  # type: ignore[index]


def _put_back(
    optimizer: torch.optim.Optimizer, parameter: nn.Parameter, name: str, value: object, row_K: Tensor
) -> None:
    """Put the state of the sampled rows back; the others' starts at zero."""
    state = optimizer.state[parameter]
    if not (isinstance(value, Tensor) and value.shape == (len(row_K), *parameter.shape[1:])):
        state[name] = value
        return
    if not isinstance(state.get(name), Tensor):
        state[name] = torch.zeros_like(parameter)
    state[name][row_K] = value
