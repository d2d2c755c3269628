"""All uses of private names of PyTorch, with fallbacks for releases without them.

The names are looked up on use. A fallback never changes results; each function documents its cost.
``tests/test_torch_private.py`` fails if torch has changed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType, GeneratorType
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
#: The function that adds a number to several tensors.
EACH = "_foreach_add_"
#: The attribute by which ``torch.compile`` recognises a function whose result is constant.
CONSTANT = "_dynamo_marked_constant"
#: The attribute that ``nn.Module.compile`` gives to a module.
COMPILED = "_compiled_call_impl"


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


def add_to_each(tensors: Sequence[Tensor], number: int) -> None:
    """Add a number to each tensor, in place, in one launch on a GPU.

    Fallback: one launch for each.
    """
    together = getattr(torch, EACH, None)
    if together is not None and tensors:
        together([*tensors], number)
        return
    for tensor in tensors:
        tensor.add_(number)


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


def graph_task() -> int:
    """Return the number of the backward pass that this thread is inside; -1 outside, and without the name."""
    task = getattr(torch._C, "_current_graph_task_id", None)
    return -1 if task is None else task()


def checkpoints() -> Iterator[tuple[Any, bool]]:
    """Find the gradient checkpoints that the caller runs in, innermost first, and whether each repeats its pass.

    An object represents a checkpoint that is the same in its first pass and in all repeats, and dies with its graph:
    the context of an autograd function, whose ``forward`` runs the pass and whose ``backward`` repeats it (torch's
    re-entrant variant, and those of other libraries); or torch's record of a non-re-entrant checkpoint.
    Fallback: a variant whose names have changed is not found; its repeats move state again.
    """
    module = sys.modules.get("torch.utils.checkpoint")
    record = getattr(module, "_CheckpointFrame", ())
    names = getattr(module, "__dict__", None)
    found = False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        # By the names that all libraries use, as reading the variables of a frame keeps them alive.
        if code.co_name in ("forward", "backward") and code.co_varnames[:1] == ("ctx",):
            context = frame.f_locals.get("ctx")
            if isinstance(context, torch.autograd.function.BackwardCFunction):
                found = True
                yield context, code.co_name == "backward"
        elif frame.f_globals is names:
            for value in [*frame.f_locals.values()]:
                if isinstance(value, record):
                    found = True
                    yield value, True
                elif isinstance(value, GeneratorType) and value.gi_frame is not None:
                    for local in [*value.gi_frame.f_locals.values()]:
                        if isinstance(local, record):
                            found = True
                            yield local, False
        frame = frame.f_back
    if not found:
        # A checkpoint that was entered by hooks of a module stands in no frame.
        yield from ((value, False) for value in _hooked_values() if isinstance(value, record))


def _hooked_values() -> list[Any]:
    """Return the variables that the innermost hook on saved tensors closes over."""
    top = getattr(getattr(torch._C, "_autograd", None), "_top_saved_tensors_default_hooks", None)
    hooks = None if top is None else top(True)
    return [cell.cell_contents for cell in getattr(hooks[0], "__closure__", None) or ()] if hooks else []


def after_backward(function: Callable[[], None]) -> None:
    """Call a function at the end of the backward pass that this thread is inside.

    Fallback: it is not called; what it would release lives until the graph ends.
    """
    queue = getattr(getattr(torch.autograd.Variable, "_execution_engine", None), "queue_callback", None)
    if queue is not None:
        queue(function)


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


def has_global_module_hooks() -> bool:
    """Whether hooks that all modules call are registered.

    Fallback: yes, so that every module is called, which is always correct, but slower.
    """
    known = getattr(torch.nn.modules.module, "_has_any_global_hook", None)
    return True if known is None else known()


def abort_collectives(group: Any) -> None:
    """Make the pending collective operations of a process group on GPUs return.

    Fallback: they go on waiting for the lost process until their timeout.
    """
    find = getattr(group, "_get_backend", None)
    abort = getattr(find(torch.device("cuda")), "abort", None) if find is not None else None
    if abort is not None:
        abort()
