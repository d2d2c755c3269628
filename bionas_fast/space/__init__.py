"""Search spaces: operations, candidates, spaces, and genotypes."""

from typing import TYPE_CHECKING

from bionas_fast.imports import on_first_use

if TYPE_CHECKING:
    from bionas_fast.space.agreement import Agreement
    from bionas_fast.space.candidates import Candidate, Operation, Space, get_operation, get_space
    from bionas_fast.space.decision import Decision
    from bionas_fast.space.derive import derive_genotype
    from bionas_fast.space.edges import Cell, Edge
    from bionas_fast.space.genotype import Genotype
    from bionas_fast.space.names import operation_names, register_operation, register_space, space_names
    from bionas_fast.space.publications import PublishedGenotype, published, published_names
    from bionas_fast.space.sampling import mutated, one_hot, random_genotype
    from bionas_fast.space.skeleton import DARTS, NB201, Skeleton
else:
    __getattr__, __dir__ = on_first_use(
        __name__,
        {
            "agreement": "Agreement",
            "candidates": "Candidate Operation Space get_operation get_space",
            "decision": "Decision",
            "derive": "derive_genotype",
            "edges": "Cell Edge",
            "genotype": "Genotype",
            "names": "operation_names register_operation register_space space_names",
            "publications": "PublishedGenotype published published_names",
            "sampling": "mutated one_hot random_genotype",
            "skeleton": "DARTS NB201 Skeleton",
        },
    )

__all__ = [
    "DARTS",
    "NB201",
    "Agreement",
    "Candidate",
    "Cell",
    "Decision",
    "Edge",
    "Genotype",
    "Operation",
    "PublishedGenotype",
    "Skeleton",
    "Space",
    "derive_genotype",
    "get_operation",
    "get_space",
    "mutated",
    "one_hot",
    "operation_names",
    "published",
    "published_names",
    "random_genotype",
    "register_operation",
    "register_space",
    "space_names",
]
