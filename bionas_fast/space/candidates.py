"""Candidates, i.e. (operation, rule) pairs, and search spaces, the named sets of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy

from bionas_fast import rules
from bionas_fast.errors import InputError
from bionas_fast.space.names import Operation, operations, register_space, spaces
from bionas_fast.space.skeleton import DARTS, NB201, Skeleton


def get_operation(name: str) -> Operation:
    """Look up an operation by its name.

    Raises:
        InputError: an unknown name; the message suggests similar ones.
    """
    return operations.get(name)


#: The operation of skip connections.
SKIP = "skip_connect"


@dataclass(frozen=True)
class Candidate:
    """An operation together with its learning rule; written ``sep_conv_3x3@usf``, ``max_pool_3x3``.

    Raises:
        InputError: an unknown operation or rule, a missing or a superfluous rule.
    """

    operation: str
    rule: str | None = None

    def __post_init__(self) -> None:
        takes_rule = get_operation(self.operation).takes_rule
        if takes_rule and self.rule is None:
            raise InputError(f"operation {self.operation!r} needs a rule, such as '{self.operation}@usf'")
        if self.rule is not None:
            if not takes_rule:
                builtin = get_operation(self.operation).own_rule
                reason = f"learns by {builtin} and" if builtin else "has no weights and"
                raise InputError(f"operation {self.operation!r} {reason} takes no rule; got {self.rule!r}")
            rules.get(self.rule)

    @classmethod
    def parse(cls, text: str) -> Candidate:
        """Read ``operation@rule``."""
        operation, at, rule = text.partition("@")
        return cls(operation, rule if at else None)

    def with_rule(self, rule: str) -> Candidate:
        """Return the operation under another rule.

        The candidate is unchanged if its operation takes no rule, or if it is a skip connection and the rule draws the
        signs of B (``fa``, direct feedback): published networks under such a rule pass the error through skip
        connections.
        """
        if self.rule is None or (self.operation == SKIP and rules.get(rule).random_sign):
            return self
        return Candidate(self.operation, rule)

    def without_skip_rule(self) -> Candidate:
        """Return the candidate of a network whose skip connections learn by back-propagation."""
        return Candidate(self.operation, "bp") if self.operation == SKIP else self

    def build(self, channels: int, stride: int, *, searching: bool) -> nn.Module:
        """Build the module of this candidate; see :attr:`Operation.build`.

        Raises:
            InputError: the operation returned no module; when the module runs, an output of another shape.
        """
        module = get_operation(self.operation).build(channels, stride, self.rule, searching)
        if not isinstance(module, nn.Module):
            raise InputError(f"operation {self.operation!r} returned {type(module).__name__}, not a module")
        module.register_forward_hook(partial(_check_output, str(self), stride))
        return module

    @property
    def learning(self) -> str | None:
        """The learning rule of its weights: its rule, the operation's built-in one, or None without weights."""
        return self.rule or get_operation(self.operation).own_rule

    def __str__(self) -> str:
        return self.operation if self.rule is None else f"{self.operation}@{self.rule}"


def is_output_check(hook: Any) -> bool:
    """Whether a forward hook is the one by which :meth:`Candidate.build` checks the shape of outputs."""
    return isinstance(hook, partial) and hook.func is _check_output


def _check_output(candidate: str, stride: int, module: nn.Module, inputs: tuple[Tensor], output: Any) -> None:
    """Check the shape of the output, which a sum of candidates would broadcast silently. A forward hook."""
    (x,) = inputs
    if isinstance(x, Proxy):
        return  # a symbolic trace knows no shapes
    height, width = x.shape[-2:]
    expected = (*x.shape[:2], -(-height // stride), -(-width // stride))
    got = output.shape if isinstance(output, Tensor) else None
    if got != expected:
        returned = type(output).__name__ if got is None else list(got)
        raise InputError(
            f"candidate {candidate!r} returned {returned}, not {list(expected)}, "
            f"of an input {list(x.shape)} at stride {stride}"
        )


NONE = "none"


@dataclass(frozen=True)
class Space:
    """A search space of cells.

    Attributes:
        name: its name in options and reports.
        candidates: the candidates of every edge.
        nodes: number of nodes per cell, without the inputs.
        skeleton: the wiring of the cells, and of networks made of them.
    """

    name: str
    candidates: tuple[Candidate, ...]
    nodes: int = 4
    skeleton: Skeleton = DARTS

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of searched cells, each with separate architecture parameters."""
        return self.skeleton.kinds

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """(node, source) of every edge, node by node; its sources are all states before it, the cell's inputs first."""
        return tuple((node, source) for node in range(self.nodes) for source in range(node + self.inputs))

    @property
    def inputs(self) -> int:
        """The number of inputs of a cell."""
        return len(self.skeleton.input_names)

    @property
    def output(self) -> tuple[int, ...]:
        """The states that form the output of a cell."""
        return self.skeleton.output(self.nodes)

    def restricted(self, rule_names: Sequence[str] = (), operation_names: Sequence[str] = ()) -> Space:
        """Return the space restricted to these rules and operations (empty: no restriction).

        Operations without weights remain when only rules are restricted. Of the operations, ``none`` too remains only
        if it is named. A rule that the space does not contain is combined with all operations, and such an operation
        with all rules; but no rule that learns feedback with skip connections, whose weights are fixed.

        Raises:
            InputError: an unknown name, or fewer than two candidates left.
        """
        for name in rule_names:
            rules.get(name)
        space_rules = dict.fromkeys(c.rule for c in self.candidates if c.rule)
        space_operations = dict.fromkeys(c.operation for c in self.candidates)
        possible = _cross(dict.fromkeys(operation_names) or space_operations, dict.fromkeys(rule_names) or space_rules)
        candidates = tuple(
            c
            for c in self.candidates
            if (not operation_names or c.operation in operation_names)
            and (not rule_names or c.rule in (None, *rule_names))
        )
        candidates += tuple(
            c
            for c in possible
            if (c.operation not in space_operations or c.rule not in (None, *space_rules)) and not _unlearned(c)
        )
        if sum(c.operation != NONE for c in candidates) < 2:
            raise InputError(
                f"space {self.name!r} keeps {len(candidates)} candidates under this restriction; nothing to search"
            )
        return replace(self, candidates=candidates)


def _unlearned(candidate: Candidate) -> bool:
    """Whether a candidate is a skip connection under a rule that learns its feedback."""
    if candidate.operation != SKIP or candidate.rule is None:
        return False
    rule = rules.get(candidate.rule)
    return rule.learns or rule.mirrors


def _cross(operations: Iterable[str], rule_names: Iterable[str]) -> tuple[Candidate, ...]:
    """Combine every operation with every rule; an operation without rules occurs once."""
    takes_rule = {o: get_operation(o).takes_rule for o in operations}
    return tuple(Candidate(o, r) for o in takes_rule for r in (rule_names if takes_rule[o] else (None,)))


def get_space(space: str | Space) -> Space:
    """Look up a space by its name.

    Raises:
        InputError: an unknown name (the message suggests similar ones), or the function returned another type.
    """
    if isinstance(space, Space):
        return space
    value = spaces.get(space)()
    if not isinstance(value, Space):
        raise InputError(f"space {space!r}: its function returned {type(value).__name__}, not a Space")
    return value


_WEIGHTLESS = ("none", "max_pool_3x3", "avg_pool_3x3")
_CONVOLUTIONS = ("sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")


@register_space("bionas")
def bionas() -> Space:
    """Build the space of the paper (section 3.2): 22 candidates on each of 14 edges."""
    return Space(
        "bionas",
        tuple(Candidate(o) for o in _WEIGHTLESS)
        + _cross(("skip_connect",), ("usf", "brsf", "frsf"))
        + _cross(_CONVOLUTIONS, ("fa", "usf", "brsf", "frsf")),
    )


@register_space("darts-bp")
def darts_bp() -> Space:
    """Build the space of DARTS (Liu et al. 2019): eight operations, all trained by back-propagation."""
    return Space(
        "darts-bp",
        tuple(Candidate(o) for o in _WEIGHTLESS) + _cross(("skip_connect", *_CONVOLUTIONS), ("bp",)),
    )


@register_space("bionas-hl-pc")
def bionas_hl_pc() -> Space:
    """Build the larger space of the paper: ``bionas``, Hebbian and predictive-coding convolutions; 24 candidates."""
    extra = Candidate("hebbian_conv_3x3"), Candidate("predictive_conv_3x3")
    return Space("bionas-hl-pc", bionas().candidates + extra)


@register_space("nb201")
def nb201() -> Space:
    """Build the space of NAS-Bench-201 (Dong & Yang 2020) with the rules of ``bionas``: 13 candidates on 6 edges."""
    return Space(
        "nb201",
        tuple(Candidate(o) for o in ("none", "avg_pool_3x3"))
        + _cross(("skip_connect",), ("usf", "brsf", "frsf"))
        + _cross(("nor_conv_1x1", "nor_conv_3x3"), ("fa", "usf", "brsf", "frsf")),
        nodes=3,
        skeleton=NB201,
    )
