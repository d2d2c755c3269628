"""Derivatives of gradients: B is a constant in them, of whatever it was made."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from helpers.constant_feedback import through
from helpers.feedback_cases import (
    every_case,
    every_mode,
    feedback_of,
    saved_tensors_as_they_are,
)
from helpers.tolerances import assert_close

ENGINES = {
    "eager": nullcontext,
    "saved-tensor-hooks": saved_tensors_as_they_are,
    "registered": lambda: FlopCounterMode(display=False),
}


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def derivatives(run: Callable[..., Tensor], leaves: list[Tensor], grad: Tensor, orders: int) -> list[Tensor]:
    """Every derivative up to an order, of a random sum of those before, for the leaves and the error at the top."""
    generator = torch.Generator().manual_seed(7)
    leaves = [t.detach().requires_grad_() for t in leaves]
    grad = grad.detach().requires_grad_()
    out, error, found = run(*leaves), grad, []
    for _ in range(orders):
        made = torch.autograd.grad(
            out, (*leaves, grad), error, create_graph=True, allow_unused=True, materialize_grads=True
        )
        found += made
        parts = [(g * torch.randn(g.shape, generator=generator, dtype=g.dtype)).tanh().sum() for g in made]
        out, error = torch.stack(parts).sum(), None
    return found


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
@every_mode
@every_case
def test_b_is_a_constant_in_derivatives_of_every_order(case, mode, engine):
    x, w, bias, grad = (t.detach() for t in case.tensors())
    feedback, b = feedback_of(mode, w)

    def ours(*leaves: Tensor) -> Tensor:
        return case.ours(*leaves, feedback)

    def oracle(*leaves: Tensor) -> Tensor:
        return case.plain(*leaves) if mode == "weight" else through(case.plain, *leaves, b)

    with engine():
        actual = derivatives(ours, [x, w, bias], grad, orders=3)
    wanted = derivatives(oracle, [x, w, bias], grad, orders=3)
    for a, e in zip(actual, wanted, strict=True):
        assert_close(a, e, torch.float32 if mode == "drawn_sign" else torch.float64)
