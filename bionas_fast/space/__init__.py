"""Search spaces: operations, candidates, spaces, and genotypes."""

from bionas_fast.space import operations as _operations  # registers the operations
from bionas_fast.space.agreement import Agreement
from bionas_fast.space.candidates import (
    Candidate,
    Operation,
    Space,
    get_operation,
    get_space,
    operation_names,
    register_operation,
    register_space,
    space_names,
)
from bionas_fast.space.decision import Decision
from bionas_fast.space.derive import derive_genotype
from bionas_fast.space.edges import Cell, Edge
from bionas_fast.space.genotype import Genotype
from bionas_fast.space.published import PublishedGenotype, published, published_names
from bionas_fast.space.sampling import mutated, one_hot, random_genotype
from bionas_fast.space.skeleton import DARTS, NB201, Skeleton
