"""The supernet: a network that contains every candidate of a search space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bionas_fast.choices import Engine, Initialisation
from bionas_fast.errors import unknown
from bionas_fast.nn import connect_direct_feedback, name_layers
from bionas_fast.runtime.isolation import seeded
from bionas_fast.space import Space, get_space
from bionas_fast.space.cells import NetworkShape
from bionas_fast.space.genotype import fixed_rules
from bionas_fast.supernet.architecture import Architecture, Mixing, Mixture
from bionas_fast.supernet.base import Supernet
from bionas_fast.supernet.modular import ModularSupernet
from bionas_fast.supernet.stacked import StackedSupernet

ENGINES: dict[str, type[Supernet]] = {"stacked": StackedSupernet, "modular": ModularSupernet}


@dataclass(frozen=True)
class SupernetOptions:
    """Options of a supernet that few searches change.

    Attributes:
        fixed: the rules of ``stem``, ``preprocess`` and ``head``; by default ``bp``.
        skip_rules: whether skip connections learn by their rule. The code published with the paper trains strided ones
            by back-propagation and gives the others no rule; False reproduces that.
        initialisation: ``xavier``, in every convolution (the paper), or ``published``, only in those with a rule other
            than ``bp`` (the code published with the paper); other weights have PyTorch's law.
        mixture: factorised alphas, edge normalisation, partial channels; none of them by default.
    """

    fixed: Mapping[str, str] = field(default_factory=dict)
    skip_rules: bool = True
    initialisation: Initialisation = "xavier"
    mixture: Mixture = field(default_factory=Mixture)


def build_supernet(
    space: str | Space = "bionas",
    *,
    channels: int = 16,
    cells: int = 8,
    num_classes: int = 10,
    in_channels: int = 3,
    engine: Engine = "stacked",
    seed: int = 0,
    options: SupernetOptions | None = None,
) -> Supernet:
    """Build the supernet of a search space.

    Args:
        space: a :class:`bionas_fast.space.Space`, or the name of one.
        channels: C of the first cell; reductions double it.
        cells: L, with reductions at ⌊L/3⌋ and ⌊2L/3⌋; for ``nb201``, the number of cells in each of three stages,
            between which residual blocks halve the size.
        engine: ``"stacked"``, all candidates batched, or ``"modular"``, one module per candidate: the same function.
        seed: the seed of all weights, alphas and random feedback; both engines draw the same. PyTorch's generator
            is not used.
        options: the rules of the fixed layers, and how candidates are mixed.

    Returns:
        A network that maps images [N, in_channels, H, W] to logits [N, num_classes].

    Raises:
        InputError: an unknown space, engine, layer or rule; a number below 1.
    """
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    options = options or SupernetOptions()
    space = get_space(space)
    shape = NetworkShape(
        channels,
        cells,
        num_classes,
        in_channels,
        fixed_rules(options.fixed),
        affine=False,
        initialisation=options.initialisation,
    )
    with seeded(seed):
        net = ENGINES[engine](space, shape, options.mixture, options.skip_rules)
    connect_direct_feedback(net, num_classes)
    name_layers(net)
    return net
