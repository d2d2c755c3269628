"""The edges of discrete cells as calls of :mod:`bionas_fast.ops.planar_edges`, where that computes what they would.

A module is replaced by the op only if nobody could tell, except by the time: its layers are of the classes that the
cells are built of, no hook looks at them, and the tensors are float32 on the CPU. Otherwise the modules run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bionas_fast import backends, rules, torch_private
from bionas_fast.nn import Conv2d, repeats
from bionas_fast.ops.planar_edges import PlanarStage, images_contiguous, planar_edges, planar_identity, planar_pool
from bionas_fast.space.candidates import is_output_check
from bionas_fast.space.operations import ReLUConvBN, SeparableStage, Skip

_KERNELS = (3, 5, 7)


class Layers(NamedTuple):
    """The layers of a stage; ``depthwise`` is None in preprocessing."""

    depthwise: Conv2d | None
    pointwise: Conv2d
    norm: nn.BatchNorm2d

    def stage(self) -> PlanarStage:
        """Describe the stage for the pass that is about to begin."""
        own, norm = self.depthwise, self.norm
        layers = [self.pointwise] if own is None else [own, self.pointwise]
        weights = tuple(layer.weight for layer in layers)
        feedback = tuple(layer.pass_feedback(weight) for layer, weight in zip(layers, weights, strict=True))
        kernel, dilation = (0, 1) if own is None else (own.kernel_size[0], own.dilation[0])
        assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
        assert norm.momentum is not None
        running = norm.running_mean, norm.running_var, norm.num_batches_tracked
        affine = norm.weight, norm.bias
        return PlanarStage(kernel, dilation, weights, feedback, affine, running, norm.eps, norm.momentum)


def runs_planar(x: Tensor) -> bool:
    """Whether the compiled kernels can compute what modules would of this state."""
    return (
        type(x) is Tensor
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.dim() == 4
        and x.numel() > x.shape[1]  # otherwise batch normalisation has no variance
        and images_contiguous(x)
        and not torch.is_autocast_enabled("cpu")
        and not backends.traced()
        and not torch_private.in_transform()
        and not torch_private.has_global_module_hooks()
        and repeats.current() is None
        and backends.choose("planar_edges", "cpu") == "native"
    )


def stages_of(module: nn.Module) -> list[Layers]:
    """Return the layers of a chain of stages that the op supports; none of another module."""
    kind = type(module)
    if kind is nn.Sequential and len(module) == 2 and _is_plain(module):
        first, second = module
        if type(first) is SeparableStage and type(second) is SeparableStage:
            both = [*stages_of(first), *stages_of(second)]
            return both if len(both) == 2 else []
        return []
    if kind is SeparableStage:
        relu, depthwise, pointwise, norm = module
        if not (_is_convolution(depthwise) and _is_depthwise(depthwise)):
            return []
    elif kind is ReLUConvBN:
        relu, pointwise, norm = module
        depthwise = None
    else:
        return []
    fits = (
        _is_plain(module)
        and type(relu) is nn.ReLU
        and _is_plain(relu)
        and _is_convolution(pointwise)
        and _is_pointwise(pointwise)
        and type(norm) is nn.BatchNorm2d
        and _is_plain(norm)
        and norm.affine
        and norm.track_running_stats
        and norm.running_mean is not None
        and norm.momentum is not None
        and norm.weight.dtype == torch.float32
    )
    return [Layers(depthwise, pointwise, norm)] if fits else []


def _is_plain(module: nn.Module) -> bool:
    """Whether a module does what its class does: no hooks, nothing replaced in the instance."""
    own = module.__dict__  # attributes of a module are looked up more slowly
    hooks = own["_forward_hooks"]
    return not (
        own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
        or torch_private.COMPILED in own
        or (hooks and not all(map(is_output_check, hooks.values())))
    )


def _is_convolution(layer: nn.Module) -> bool:
    return (
        type(layer) is Conv2d
        and _is_plain(layer)
        and layer.bias is None
        and layer.stride == (1, 1)
        and layer.padding_mode == "zeros"
        and layer.weight.dtype == torch.float32
        and rules.get(layer.rule).mode != "direct"
    )


def _is_depthwise(layer: nn.Module) -> bool:
    assert isinstance(layer, Conv2d)
    size, spread = layer.kernel_size[0], layer.dilation[0]
    return (
        size in _KERNELS
        and layer.kernel_size == (size, size)
        and layer.dilation == (spread, spread)
        and layer.padding == (spread * (size // 2),) * 2
        and layer.groups == layer.in_channels == layer.out_channels
    )


def _is_pointwise(layer: nn.Module) -> bool:
    assert isinstance(layer, Conv2d)
    return layer.kernel_size == (1, 1) and layer.padding == (0, 0) and layer.groups == 1


def chains(edges: Mapping[int, nn.Module]) -> dict[int, list[Layers]]:
    """Return the stages of the edges that :func:`run_chains` can run on a state; none if their modes differ."""
    found = {index: stages for index, edge in edges.items() if (stages := stages_of(edge))}
    modes = {stage.norm.training for stage in chain(*found.values())}
    return found if len(modes) == 1 else {}


def run_chains(
    x: Tensor, chains: Sequence[Sequence[Layers]], into: Sequence[Tensor | None], keep: Tensor | None = None
) -> list[Tensor]:
    """Run chains of stages that read the same state.

    Args:
        x: a state, [N, C, H, W], of which :func:`runs_planar` holds.
        into: for each chain a tensor that its output is added to, or None.
        keep: factors of the outputs, [chains, N].
    """
    stages = [[layers.stage() for layers in stages] for stages in chains]
    return planar_edges(x, stages, into, keep, chains[0][0].norm.training)


def run_chain(module: nn.Module, x: Tensor) -> Tensor:
    """Run a module, by the kernels if it is a chain of stages that they support."""
    if runs_planar(x) and (found := chains({0: module})):
        return run_chains(x, [found[0]], [None])[0]
    return module(x)


def run_other(module: nn.Module, x: Tensor) -> Tensor:
    """Run a module that is no chain on a state of which :func:`runs_planar` holds, by a kernel if there is one."""
    kind = type(module)
    if kind is nn.Sequential and _is_plain(module) and all(type(part) is SeparableStage for part in module):
        for part in module:  # a strided one, followed by others
            x = run_chain(part, x)
        return x
    if kind is nn.MaxPool2d and _is_plain(module) and _is_cell_pool(module):
        return planar_pool(x, int(module.stride))
    if kind is Skip and _is_plain(module) and rules.get(module.rule).mode != "direct":
        return planar_identity(x, module.weight, module.pass_feedback(module.weight))
    return module(x)


def _is_cell_pool(pool: nn.MaxPool2d) -> bool:
    geometry = (pool.kernel_size, pool.padding, pool.dilation, pool.ceil_mode, pool.return_indices)
    return geometry == (3, 1, 1, False, False) and pool.stride in (1, 2)
