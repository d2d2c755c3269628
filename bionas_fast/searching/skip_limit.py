"""The limit on skip connections, which ends a search before they dominate."""

from __future__ import annotations

from typing import Any

from bionas_fast.errors import InputError
from bionas_fast.space import Genotype
from bionas_fast.space.candidates import SKIP


class SkipLimit:
    """Ends a search when the first kind of cell gets more skip connections than allowed (DARTS+, Liang et al. 2019).

    The limit applies only after a first epoch within it, because the first architectures are random.

    Args:
        limit: the largest allowed number; None for no limit.

    Attributes:
        final: the last genotype within the limit, once it has been exceeded.
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
        """Update the limit with the genotype of a finished epoch."""
        if self.limit is None or self.exceeded:
            return
        if _skips(genotype) <= self.limit:
            self._last = genotype
        else:
            self.final = self._last

    def message(self, genotype: Genotype) -> str:
        """Return a remark on the final genotype of a search, or an empty string."""
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
            InputError: the state is damaged.
        """
        last, exceeded = state["last"], state["exceeded"]
        if not isinstance(last, str | None) or type(exceeded) is not bool or (exceeded and last is None):
            raise InputError("limit: damaged")
        self._last = None if last is None else Genotype.from_json(last)
        self.final = self._last if exceeded else None


def _skips(genotype: Genotype) -> int:
    cell = next(iter(genotype.cells.values()))
    return sum(edge.candidate.operation == SKIP for edge in cell.edges)
