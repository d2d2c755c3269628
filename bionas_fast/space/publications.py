"""Published genotypes by name: the paper's, and those of the searches it is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

import yaml

from bionas_fast.errors import unknown
from bionas_fast.space.genotype import Genotype


@dataclass(frozen=True)
class PublishedGenotype:
    """A genotype that somebody published.

    Attributes:
        name: its name on the command line.
        source: the publication.
        parameters: the published size in millions, at C = 36 and 20 cells for ten classes, without the auxiliary head;
            None if there is no such figure.
        text: the genotype in the text form of DARTS.
    """

    name: str
    source: str
    parameters: float | None
    text: str

    @property
    def genotype(self) -> Genotype:
        """The genotype."""
        return Genotype.from_darts(self.text)


def published_names() -> tuple[str, ...]:
    """Return the names of all published genotypes."""
    return tuple(_read())


def published(name: str) -> PublishedGenotype:
    """Look up a published genotype by its name.

    Raises:
        InputError: an unknown name; the message suggests similar ones.
    """
    found = _read().get(name)
    if found is None:
        raise unknown("genotype", name, _read())
    return found


def _read() -> dict[str, PublishedGenotype]:
    entries = yaml.safe_load(resources.files(__package__).joinpath("published.yaml").read_text(encoding="utf-8"))
    return {
        name: PublishedGenotype(name, entry["source"], entry.get("parameters"), entry["genotype"])
        for name, entry in entries.items()
    }
