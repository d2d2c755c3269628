"""The names of operations and spaces; those of this package are known without the modules that build them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from bionas_fast.errors import InputError
from bionas_fast.registry import Registry

if TYPE_CHECKING:
    from torch import nn

M = TypeVar("M", bound=Callable[[], object])
#: The builder of an operation; see :class:`Operation`.
Build = Callable[[int, int, "str | None", bool], "nn.Module"]


@dataclass(frozen=True)
class Operation:
    """A kind of operation, such as ``sep_conv_3x3``.

    Attributes:
        name: its name in genotypes and options.
        build: ``build(channels, stride, rule, searching) -> Module`` maps [N, C, H, W] to
            [N, C, ⌈H/stride⌉, ⌈W/stride⌉]. ``rule`` is None for operations without weights. ``searching`` is True
            in a supernet (no affine parameters in batch normalisation, pools followed by one).
        takes_rule: whether one of the learning rules can be chosen for it.
        own_rule: the name of the operation's built-in learning rule, if it has one.
    """

    name: str
    build: Build
    takes_rule: bool = True
    own_rule: str | None = None


_OPERATIONS = (
    "conv_7x1_1x7",
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "hebbian_conv_3x3",
    "predictive_conv_3x3",
    "local_predictive_conv_3x3",
    "sep_conv_3x3",
    "dil_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_5x5",
    "sep_conv_7x7",
    "dil_conv_7x7",
    "nor_conv_1x1",
    "nor_conv_3x3",
)
operations: Registry[Operation] = Registry(
    "operation", lambda operation: operation.build, dict.fromkeys(_OPERATIONS, "bionas_fast.space.operations")
)
spaces: Registry[Callable[[], object]] = Registry(
    "space",
    builtin=dict.fromkeys(("bionas", "darts-bp", "bionas-hl-pc", "nb201"), "bionas_fast.space.candidates"),
)


def register_operation(name: str, *, takes_rule: bool = True, own_rule: str | None = None) -> Callable[[Build], Build]:
    """Register an operation under a name. Use as a decorator of its ``build`` function.

    Args:
        name: its name in genotypes and options.
        takes_rule, own_rule: see :class:`Operation`.

    Raises:
        InputError: the name is not a plain word, or is taken.
    """
    if not name.isidentifier():
        raise InputError(f"an operation's name must be a plain word, such as 'sep_conv_3x3'; got {name!r}")

    def decorator(build: Build) -> Build:
        operations.register(name, Operation(name, build, takes_rule and own_rule is None, own_rule))
        return build

    return decorator


def operation_names() -> tuple[str, ...]:
    """Return the names of all registered operations."""
    return operations.names()


def register_space(name: str) -> Callable[[M], M]:
    """Register a space under a name. Use as a decorator of a function that returns the :class:`Space`.

    Raises:
        InputError: the name is taken.
    """

    def decorator(make: M) -> M:
        spaces.register(name, make)
        return make

    return decorator


def space_names() -> tuple[str, ...]:
    """Return the names of all registered spaces."""
    return spaces.names()
