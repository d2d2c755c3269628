"""All uses of private names of PyTorch, with fallbacks for releases without them.

The names are looked up on use. A fallback never changes results; each function documents its cost.
``tests/test_torch_private.py`` fails if torch has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])

#: The attribute of a convolution's autograd node that holds the weight it saved.
SAVED_WEIGHT = "_raw_saved_weight"
#: The counter of a tensor's in-place changes.
VERSION = "_version"
#: The function of ``torch._C`` that tells whether transforms of torch.func are active.
TRANSFORMS = "_are_functorch_transforms_active"
#: The innermost level of forward-mode differentiation; negative outside.
LEVEL = "_current_level"
#: The attribute by which ``torch.compile`` recognises a function whose result is constant.
CONSTANT = "_dynamo_marked_constant"


def constant(function: F) -> F:
    """Treat the result of a function as a constant in compiled graphs. Use as a decorator.

    Equivalent to ``torch.compiler.assume_constant_result``, which would import the compiler and double the import time
    of torch. Fallback: that function, to be used here once torch changes the attribute.
    """
    if not CONSTANT:
        return torch.compiler.assume_constant_result(function)
    setattr(function, CONSTANT, True)
    return function


def has_dispatch_modes() -> bool:
    """Whether a dispatch mode, such as FakeTensorMode, is active.

    Fallback: yes, so that every op goes through the dispatcher, which is always correct, but slower.
    """
    count = getattr(torch._C, "_len_torch_dispatch_stack", None)
    return True if count is None else count() > 0


def has_saved_tensor_hooks() -> bool:
    """Whether hooks on saved tensors are active, such as those of gradient checkpointing.

    Fallback: yes, so that Python autograd functions save their tensors through the public API, which is slower.
    """
    top = getattr(getattr(torch._C, "_autograd", None), "_top_saved_tensors_default_hooks", None)
    return True if top is None else top(True) is not None


@constant
def in_functional_transform() -> bool | None:
    """Whether a transform of torch.func is active, such as vmap or grad.

    Fallback: None, unknown.
    """
    active = getattr(torch._C, TRANSFORMS, None)
    return None if active is None else active()


@constant
def in_transform() -> bool:
    """Whether a transform of torch.func or a level of forward-mode differentiation is active.

    Fallback: yes, so that plain PyTorch runs, which is always correct, but slower.
    """
    active = getattr(torch._C, TRANSFORMS, None)
    level = getattr(torch.autograd.forward_ad, LEVEL, None)
    return active is None or level is None or level >= 0 or active()


def in_backward_pass() -> bool:
    """Whether this thread is inside a backward pass.

    Fallback: yes, so that gradient checkpointing works, but misuse is not reported.
    """
    task = getattr(torch._C, "_current_graph_task_id", None)
    return True if task is None else task() != -1


def can_replace_saved_weight() -> bool:
    """Whether :func:`replace_saved_weight` and :func:`version` work with the installed torch.

    Fallback: no, so that a Python autograd function runs, which is slower.
    """
    functions = getattr(torch._C, "_functions", None)
    return hasattr(getattr(functions, "ConvolutionBackward0", None), SAVED_WEIGHT) and hasattr(Tensor, VERSION)


def replace_saved_weight(node: Any, make: Callable[[None], Tensor]) -> None:
    """Replace the weight saved by the node of torch's own convolution by ``make(None)`` of the backward pass."""
    getattr(node, SAVED_WEIGHT).register_hooks(_forget, make)


def _forget(_: Tensor) -> None:
    return None


def version(tensor: Tensor) -> int:
    """Return the number of in-place changes of a tensor. Requires :func:`can_replace_saved_weight`."""
    return getattr(tensor, VERSION)
