"""Everything that this package reads of PyTorch under a private name, with a fallback once the name is gone.

The names are looked up when they are used. Without one of them results stay the same; each function says what is lost.
``tests/test_torch_private.py`` says when torch has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])

#: The attribute of a convolution's autograd node that holds the weight it saved.
SAVED_WEIGHT = "_raw_saved_weight"
#: The counter of a tensor's changes in place.
VERSION = "_version"
#: The mark by which ``torch.compile`` knows a function whose result is a constant.
CONSTANT = "_dynamo_marked_constant"


def has_dispatch_modes() -> bool:
    """Whether a dispatch mode, such as that of fake tensors, is active.

    Fallback: yes, so that every op goes through the dispatcher, which is right in every case and slower.
    """
    count = getattr(torch._C, "_len_torch_dispatch_stack", None)
    return True if count is None else count() > 0


def has_saved_tensor_hooks() -> bool:
    """Whether hooks on saved tensors are active, such as those of gradient checkpointing.

    Fallback: yes, so that nodes of our own save their tensors the public way, which is slower.
    """
    top = getattr(getattr(torch._C, "_autograd", None), "_top_saved_tensors_default_hooks", None)
    return True if top is None else top(True) is not None


def in_backward_pass() -> bool:
    """Whether this thread is inside a backward pass.

    Fallback: yes, so that gradient checkpointing works and a misuse is not reported.
    """
    task = getattr(torch._C, "_current_graph_task_id", None)
    return True if task is None else task() != -1


def can_replace_saved_weight() -> bool:
    """Whether :func:`replace_saved_weight` and :func:`version` work with this torch.

    Fallback: no, so that a node of our own runs, which is slower.
    """
    functions = getattr(torch._C, "_functions", None)
    return hasattr(getattr(functions, "ConvolutionBackward0", None), SAVED_WEIGHT) and hasattr(Tensor, VERSION)


def replace_saved_weight(output: Tensor, make: Callable[[], Tensor]) -> None:
    """Have the node of torch's own convolution take ``make()`` for its weight in the backward pass."""
    getattr(output.grad_fn, SAVED_WEIGHT).register_hooks(_forget, lambda _: make())


def _forget(_: Tensor) -> None:
    return None


def version(tensor: Tensor) -> int:
    """The number of changes in place of a tensor. Only where :func:`can_replace_saved_weight`."""
    return getattr(tensor, VERSION)


def constant(function: F) -> F:
    """Let a compiled graph take the function's result for a constant.

    As ``torch.compiler.assume_constant_result``, which would import the compiler: as much again as all of torch.
    Fallback: that one, to be put in here once torch knows another mark.
    """
    if not CONSTANT:
        return torch.compiler.assume_constant_result(function)
    setattr(function, CONSTANT, True)
    return function
