"""Edges of discrete cells as calls of :mod:`bionas_fast.ops.planar_edges`, where that computes what they would.

The op replaces a module only if the difference is no more than time and rounding: the layers are of the classes that
cells are built of, no hook looks at them, and the tensors are on the CPU, in float32 or, under autocast to it, in
bfloat16. Otherwise the module runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import chain
from typing import NamedTuple, TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from bionas_fast import backends, rules, torch_private
from bionas_fast.nn import Conv2d, repeats
from bionas_fast.ops.planar_edges import PlanarStage, images_contiguous, planar_edges, planar_identity, planar_pool
from bionas_fast.space.candidates import is_output_check
from bionas_fast.space.operations import ReLUConvBN, SeparableStage, Skip

_KERNELS = (3, 5, 7)
M = TypeVar("M", bound=nn.Module)


class Layers(NamedTuple):
    """The layers of a stage; ``depthwise`` is None in preprocessing."""

    depthwise: Conv2d | None
    pointwise: Conv2d
    norm: nn.BatchNorm2d

    def stage(self) -> PlanarStage:
        """Describe the stage for the pass that is about to begin."""
        own, norm = self.depthwise, self.norm
        layers = [self.pointwise] if own is None else [own, self.pointwise]
        feedback = tuple(layer.pass_feedback(layer.weight) for layer in layers)
        weights = tuple(layer.coupled(layer.weight) for layer in layers)
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
        and x.device.type == "cpu"
        and x.dtype == _maps()
        and x.dim() == 4
        and x.numel() > x.shape[1]  # otherwise batch normalisation has no variance
        and images_contiguous(x)
        and not backends.traced()
        and not torch_private.in_transform()
        and not torch_private.has_global_module_hooks()
        and repeats.current() is None
        and backends.choose("planar_edges", "cpu") == "native"
    )


def _maps() -> torch.dtype | None:
    """Return the dtype of maps on the CPU: float32, or that of autocast; None if the kernels do not have it."""
    if not torch.is_autocast_enabled("cpu"):
        return torch.float32
    dtype = torch.get_autocast_dtype("cpu")
    return dtype if dtype == torch.bfloat16 else None


def stages_of(module: nn.Module) -> list[Layers]:
    """Return the layers of a chain of stages that the op supports; none of another module."""
    if _is(module, nn.Sequential):
        stages = [stage for part in module if type(part) is SeparableStage for stage in stages_of(part)]
        return stages if len(module) == len(stages) == 2 else []
    if _is(module, SeparableStage):
        relu, depthwise, pointwise, norm = module
        return _stage(relu, depthwise, pointwise, norm) if _is(depthwise, Conv2d) and _is_depthwise(depthwise) else []
    if _is(module, ReLUConvBN):
        relu, pointwise, norm = module
        return _stage(relu, None, pointwise, norm)
    return []


def _stage(relu: nn.Module, depthwise: Conv2d | None, pointwise: nn.Module, norm: nn.Module) -> list[Layers]:
    if not (_is(relu, nn.ReLU) and _is(pointwise, Conv2d) and _is(norm, nn.BatchNorm2d)):
        return []
    fits = _is_pointwise(pointwise) and _is_averaging(norm)
    return [Layers(depthwise, pointwise, norm)] if fits else []


def _is(module: nn.Module, kind: type[M]) -> TypeGuard[M]:
    """Whether a module does what this very class does: no hooks, nothing replaced in the instance."""
    own = module.__dict__  # attributes of a module are looked up more slowly
    hooks = own["_forward_hooks"]
    return type(module) is kind and not (
        own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
        or torch_private.COMPILED in own
        or (hooks and not all(map(is_output_check, hooks.values())))
    )


def _is_convolution(layer: Conv2d) -> bool:
    return (
        layer.bias is None
        and layer.stride == (1, 1)
        and layer.padding_mode == "zeros"
        and layer.weight.dtype == torch.float32
        and rules.get(layer.rule).mode != "direct"
    )


def _is_depthwise(layer: Conv2d) -> bool:
    size, spread = layer.kernel_size[0], layer.dilation[0]
    return (
        _is_convolution(layer)
        and size in _KERNELS
        and layer.kernel_size == (size, size)
        and layer.dilation == (spread, spread)
        and layer.padding == (spread * (size // 2),) * 2
        and layer.groups == layer.in_channels == layer.out_channels
    )


def _is_pointwise(layer: Conv2d) -> bool:
    return _is_convolution(layer) and layer.kernel_size == (1, 1) and layer.padding == (0, 0) and layer.groups == 1


def _is_averaging(norm: nn.BatchNorm2d) -> bool:
    """Whether a normalisation has affine parameters and moving averages, in float32."""
    return (
        norm.affine
        and norm.track_running_stats
        and norm.running_mean is not None
        and norm.momentum is not None
        and norm.weight.dtype == torch.float32
    )


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


def run_others(modules: Mapping[int, nn.Module], x: Tensor) -> dict[int, Tensor]:
    """Run modules that are no chains on a state of which :func:`runs_planar` holds; equal pools run once."""
    pools: dict[int, Tensor] = {}
    out = {}
    for index, module in modules.items():
        if _is(module, nn.MaxPool2d) and (stride := _cell_stride(module)):
            if stride not in pools:
                pools[stride] = planar_pool(x, stride)
            out[index] = pools[stride]
        elif _is(module, Skip) and rules.get(module.rule).mode != "direct":
            out[index] = planar_identity(x, module.weight, module.pass_feedback(module.weight))
        elif _is(module, nn.Sequential) and all(type(part) is SeparableStage for part in module):
            out[index] = reduce(lambda seen, part: run_chain(part, seen), module, x)  # a strided one, and another
        else:
            out[index] = module(x)
    return out


def _cell_stride(pool: nn.MaxPool2d) -> int:
    """Return the stride of a pool as cells have it, 1 or 2; 0 of another."""
    geometry = (pool.kernel_size, pool.padding, pool.dilation, pool.ceil_mode, pool.return_indices)
    return pool.stride if geometry == (3, 1, 1, False, False) and pool.stride in (1, 2) else 0
