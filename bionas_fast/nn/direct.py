"""The path of the error from the logits to the layers that learn by direct feedback alignment.

Each such layer creates a token: zeros [N, classes], which depend on the layer's input in the autograd graph. The tokens
of a forward pass are added to the logits: no value changes, and autograd carries the error at the logits to each layer.
The state of a pass belongs to the thread that runs it and ends with it, so several passes may be in flight.

A re-entrant gradient checkpoint runs its segment without a graph and repeats it in the backward pass, when the logits
exist already: there the error at the logits, which has arrived by then, is delivered to the token of the repeat.
"""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bionas_fast import torch_private
from bionas_fast.errors import InputError, unknown
from bionas_fast.nn import repeats
from bionas_fast.nn.error_signal import ErrorSignal, error_signal

OUTSIDE = (
    "a layer with direct feedback ran outside the forward pass of the model it is connected to, or in another thread; "
    "its error comes from that model's logits"
)

#: The name of the logits in the model's output, or a function of the output that returns them.
Logits = str | int | Callable[[Any], Tensor]


class _Running:
    """The passes of connected models that a thread is running, innermost last."""

    def __init__(self) -> None:
        self.passes: tuple[DirectPass, ...] = ()


class _OfThread(threading.local):
    """The running passes of this thread. Compilers trace changes of ``running``, but none of the object itself."""

    def __init__(self) -> None:
        self.running = _Running()  # not a ContextVar, which torch 2.11 does not trace


_thread = _OfThread()


class DirectFeedback:
    """The connection of a model to the layers that receive the error at its logits.

    Args:
        logits: see ``connect_direct_feedback``; None for the default.
        class_dim: the dimension of the classes in dense logits; None to find it by its size.
    """

    def __init__(self, logits: Logits | None = None, class_dim: int | None = None) -> None:
        self.logits = logits
        self.class_dim = class_dim
        self.module = ""  # the path of the module that returns the logits; empty for the model

    def attach(self, model: nn.Module) -> None:
        """Add the hooks to a model."""
        if isinstance(self.logits, str) and self.logits in dict(model.named_modules()):
            self.module = self.logits
            self.logits = None
        model.register_forward_pre_hook(self.start)
        model.get_submodule(self.module).register_forward_hook(self.finish)
        model.register_forward_hook(self.close, always_call=True)

    def start(self, module: nn.Module, args: Any) -> None:
        """Forward pre-hook of the model: start a pass with no tokens."""
        now = repeats.current()
        _thread.running.passes = (*_thread.running.passes, DirectPass(self, now is not None and now.repeated))

    def finish(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook of the module that returns the logits: add the tokens to them."""
        current = active_pass((self,))
        if current is None or not (current.tokens or current.deferred):
            return output
        logits = _find(output, self.logits)
        if not self.module:
            _refuse_loss(output)
        finished = current.finish(logits)
        result = _replaced(output, logits, finished)
        if finished is not logits and result is not finished and not _holds(result, finished):
            raise InputError("logits: expected a function that returns a tensor of the output, got another tensor")
        return result

    def close(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of the model, called after an exception as well: end the pass."""
        passes = _thread.running.passes
        own = [i for i, current in enumerate(passes) if current.owner is self]
        if own:
            _thread.running.passes = passes[: own[-1]]


def connection(model: nn.Module) -> DirectFeedback | None:
    """Return the connection whose hooks ``model`` has, if any."""
    for hook in model._forward_pre_hooks.values():
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, DirectFeedback):
            return owner
    return None


def detach(direct: DirectFeedback, model: nn.Module) -> None:
    """Remove the hooks that :meth:`DirectFeedback.attach` added."""
    for module in (model, *(m for name, m in model.named_modules() if name == direct.module)):
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is direct]:
                del hooks[key]
                module._forward_hooks_always_called.pop(key, None)


class DirectPass:
    """One forward pass of a connected model.

    Attributes:
        tokens: the tokens of the layers that ran, by the signal that replaces their error; None for none.
        repeated: whether gradient checkpointing repeats the whole pass, and thus makes its logits again.
        deferred: whether a layer will get its error in a repeat by gradient checkpointing.
        error: the error at the logits, while a backward pass that computed it is running.
    """

    def __init__(self, owner: DirectFeedback, repeated: bool = False) -> None:
        self.owner = owner
        self.repeated = repeated
        self.tokens: dict[str | None, list[Tensor]] = {}
        self.deferred = False
        self.finished = False
        self.error: Tensor | None = None
        self._logits: Tensor | None = None
        self._layout: _Layout | None = None

    def copy(self) -> DirectPass:
        """Return this pass, or a copy that keeps the error of the backward pass that is running."""
        return self if self.error is None else copy.copy(self)

    def collect(self, token: Tensor, signal: str | None = None) -> None:
        """Collect the token of one layer, and the signal that it receives instead of the error."""
        self._refuse_late()
        self.tokens.setdefault(signal, []).append(token)

    def defer(self) -> None:
        """Keep the error at the logits for a layer whose pass will be repeated."""
        self._refuse_late()
        self.deferred = True

    def _refuse_late(self) -> None:
        if self.finished:
            raise InputError(
                f"logits: expected the module {self.owner.module!r} to run last, got a layer with direct feedback "
                "after it"
            )

    def finish(self, logits: Tensor) -> Tensor:
        """Add the tokens to the logits."""
        self.finished = True
        self._layout = layout = _Layout(logits.shape, self.owner.class_dim)
        values = logits.detach()
        for signal, tokens in self.tokens.items():
            for token in tokens:
                own = layout.spread(token).to(logits.device, logits.dtype)
                if signal is not None:
                    own = ErrorSignal.apply(own.expand_as(values), values, layout.classes(token), signal)
                logits = logits + own
        self.tokens = {}
        if self.deferred and logits.requires_grad:
            self._logits = values
            logits.register_hook(self._arrive)
        return logits

    def _arrive(self, error: Tensor) -> None:
        self.error = error.detach()
        torch_private.after_backward(self._forget)

    def _forget(self) -> None:
        self.error = None

    def deliver(self, output: Tensor, token: Tensor, signal: str | None = None) -> Tensor:
        """Return the output of a repeated layer, whose backward pass sends the error to the layer's token."""
        error = self.error
        if error is not None and self._layout is not None:
            if signal is not None and self._logits is not None:
                error = error_signal(error, self._logits, self._layout.classes(token), signal)
            error = self._layout.gather(error, token).to(token.device, token.dtype)
        return _Delivery.apply(output, token, error)


class _Delivery(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, token: Tensor, error: Tensor | None) -> Tensor:
        ctx.error = error
        # Neither a copy nor a view, which operations in place would not be allowed to change.
        return torch.ops.aten._unsafe_view.default(output, output.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, ctx.error, None


def active_pass(connections: Sequence[DirectFeedback]) -> DirectPass | None:
    """Return the pass that this thread runs of a connected model: the latest connection, the innermost pass."""
    passes = _thread.running.passes
    for direct in reversed(connections):
        for current in reversed(passes):
            if current.owner is direct:
                return current
    return None


class _Layout(NamedTuple):
    """The dimensions of the logits.

    Attributes:
        shape: [N, classes] or dense, [N, classes, *positions] or [N, *positions, classes].
        class_dim: the dimension of the classes in dense logits, if given.
    """

    shape: torch.Size
    class_dim: int | None

    def spread(self, token: Tensor) -> Tensor:
        """Return a view of a token [rows, classes] that can be added to the logits.

        N rows: the same at every position, so that the token's error is the sum over positions. N · positions rows: one
        per position.
        """
        n, dim, positions = self._read(token)
        if len(token) == n:
            return token.view(n, *[1] * (dim - 1), token.shape[1], *[1] * (len(self.shape) - dim - 1))
        return token.view(n, *positions, token.shape[1]).movedim(-1, dim)

    def classes(self, token: Tensor) -> int:
        """Return the dimension of the classes in the logits."""
        return self._read(token)[1]

    def gather(self, error: Tensor, token: Tensor) -> Tensor:
        """Compute the error of a token from that of the logits, the transpose of :meth:`spread`."""
        n, dim, _ = self._read(token)
        last = error.movedim(dim, -1)
        if len(token) == n:
            return last.reshape(n, -1, token.shape[1]).sum(1)
        return last.reshape(token.shape)

    def _read(self, token: Tensor) -> tuple[int, int, list[int]]:
        """Return the batch size, the dimension of the classes and the positions."""
        rows, classes = token.shape
        shape = list(self.shape)
        dims = [d for d in range(1, len(shape)) if shape[d] == classes and self.class_dim in (None, d, d - len(shape))]
        # In logits of images, the classes come first; [N, classes, classes] leaves two choices.
        if not dims or (len(dims) > 1 and len(shape) == 3):
            raise InputError(self._refusal(classes, bool(dims)))
        dim = dims[0]
        positions = [size for d, size in enumerate(shape) if d not in (0, dim)]
        if rows not in (shape[0], shape[0] * torch.Size(positions).numel()):
            raise InputError(
                f"x: expected a layer with direct feedback to run on the {shape[0]} samples of the logits {shape}, or "
                f"one row per position, got {rows} rows"
            )
        return shape[0], dim, positions

    def _refusal(self, classes: int, ambiguous: bool) -> str:
        shape = list(self.shape)
        if ambiguous:
            return f"class_dim: expected the dimension of the {classes} classes in logits {shape}, got two of that size"
        number = shape[1] if len(shape) == 2 else "N"
        return (
            f"num_classes: direct feedback was made for {classes} classes, the model returned logits of shape {shape}; "
            f"call connect_direct_feedback(model, num_classes={number}) to draw it again, or name other logits by "
            "logits="
        )


def _find(output: Any, name: Logits | None) -> Tensor:
    """Return the logits in the output of a model."""
    logits = output
    if callable(name):
        logits = name(output)
    elif name is not None:
        logits = _entry(output, name)
    elif isinstance(output, (tuple, list)) and output:
        logits = output[0]
    elif isinstance(output, Mapping) and "logits" in output:
        logits = output["logits"]
    elif not isinstance(output, Tensor):
        logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    keys = f" with {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
    raise InputError(
        "logits: expected a model that returns logits, a tuple that starts with them or an entry 'logits', got "
        f"{type(output).__name__}{keys}; name them: connect_direct_feedback(model, num_classes, logits=...)"
    )


def _entry(output: Any, name: str | int) -> Any:
    if isinstance(output, Mapping):
        if name not in output:
            raise unknown("entry", name, map(str, output), "logits")
        return output[name]
    if isinstance(name, int):
        return output[name] if isinstance(output, (tuple, list)) and -len(output) <= name < len(output) else None
    if not hasattr(output, name):
        fields = [field.name for field in dataclasses.fields(output)] if dataclasses.is_dataclass(output) else []
        raise unknown("entry", name, getattr(output, "_fields", fields), "logits")
    return getattr(output, name)


def _refuse_loss(output: Any) -> None:
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(loss, Tensor) and loss.requires_grad:
        raise InputError(
            "logits: the model computes its loss itself, from logits that direct feedback has not reached; name the "
            "module that returns the logits, as connect_direct_feedback(model, num_classes, logits='classifier'), or "
            "pass no labels"
        )


def _holds(output: Any, tensor: Tensor) -> bool:
    """Whether an output contains a tensor."""
    if isinstance(output, (tuple, list)):
        return any(_holds(entry, tensor) for entry in output)
    if isinstance(output, Mapping):
        return any(_holds(entry, tensor) for entry in output.values())
    return output is tensor or any(value is tensor for value in getattr(output, "__dict__", {}).values())


def _replaced(output: Any, old: Tensor, new: Tensor) -> Any:
    """Return the output with another tensor in place of one of its entries."""
    if output is old:
        return new
    if isinstance(output, (tuple, list)):
        entries = [_replaced(entry, old, new) for entry in output]
        return type(output)(*entries) if hasattr(output, "_fields") else type(output)(entries)
    if isinstance(output, MutableMapping):
        mapping = copy.copy(output)
        for key, value in output.items():
            mapping[key] = _replaced(value, old, new)
        return mapping
    if hasattr(output, "__dict__") and not isinstance(output, (Tensor, nn.Module, type)):
        result = copy.copy(output)
        for key, value in vars(output).items():
            if value is old:
                object.__setattr__(result, key, new)
        return result
    return output
