"""The limit on skip connections that ends a search before they take over."""

from __future__ import annotations

from typing import Any

from bionas_fast.errors import InputError
from bionas_fast.space import Genotype
from bionas_fast.supernet.architecture import SKIP


class SkipLimit:
    """Ends a search when the first kind of cell gets more skip connections than allowed (DARTS+, Liang et al. 2019).

    Until an epoch ends within the limit, nothing is exceeded: the first architectures are chance.

    Args:
        limit: the number allowed; None for no limit.

    Attributes:
        final: the last genotype within the limit, once the next was not.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.final: Genotype | None = None
        self._last: Genotype | None = None

    @property
    def exceeded(self) -> bool:
        """Whether the search must end."""
        return self.final is not None

    def update(self, genotype: Genotype) -> None:
        """Take the genotype of a finished epoch into account."""
        if self.limit is None or self.exceeded:
            return
        if _skips(genotype) <= self.limit:
            self._last = genotype
        else:
            self.final = self._last

    def message(self, genotype: Genotype) -> str:
        """Return a remark on the final genotype of a search; empty if there is none to make."""
        if self.exceeded:
            return f"skip_limit={self.limit} ended the search: the next epoch had more skip connections"
        if self.limit is not None and _skips(genotype) > self.limit:
            return f"no epoch was within skip_limit={self.limit}: the genotype has {_skips(genotype)} skip connections"
        return ""

    def state_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"last": self._last and self._last.to_json(), "exceeded": self.exceeded}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state.

        Raises:
            InputError: it is damaged.
        """
        last, exceeded = state["last"], state["exceeded"]
        if not isinstance(last, str | None) or type(exceeded) is not bool or (exceeded and last is None):
            raise InputError("limit: damaged")
        self._last = None if last is None else Genotype.from_json(last)
        self.final = self._last if exceeded else None


def _skips(genotype: Genotype) -> int:
    cell = next(iter(genotype.cells.values()))
    return sum(edge.candidate.operation == SKIP for edge in cell.edges)
