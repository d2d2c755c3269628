"""The Triton kernels of the stacked supernet against their specifications, on the CPU under Triton's interpreter."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import bionas_fast as bf
from bionas_fast.kernels import launching
from bionas_fast.kernels.factorized_reduce import reference as reductions_reference
from bionas_fast.kernels.mixed_sum import reference as mixed_sum_reference
from bionas_fast.kernels.partial_sums import reference as partial_sums_reference
from bionas_fast.kernels.pooling import reference as pooling_reference
from bionas_fast.kernels.records import (
    Affine,
    Moments,
    Prologue,
    ReductionWeights,
    Running,
    SeparablePlan,
    Stage,
    StageWeights,
    Sums,
    Terms,
)
from bionas_fast.kernels.separable_stage import reference as stage_reference
from bionas_fast.ops.mixed_edges import autograd
from bionas_fast.ops.mixed_edges.backends.reference import Reference
from bionas_fast.ops.mixed_edges.plan import Plan, Weights
from bionas_fast.supernet.mixed_op import MixedOp
from bionas_fast.supernet.stacked_edges import StackedEdges
from helpers.interpreter import (
    INTERPRETED,
    assert_near,
    by_name,
    every_narrow_dtype,
    listed,
    record_launches,
    run_compiled,
    some_of,
    strided,
)
from helpers.supernets import with_nodes
from helpers.tolerances import CANCELLING, NARROW_EDGES

if INTERPRETED:
    from bionas_fast.kernels.factorized_reduce import triton as reductions
    from bionas_fast.kernels.mixed_sum import triton as mixed_sum
    from bionas_fast.kernels.normalisation import triton as normalisation
    from bionas_fast.kernels.partial_sums import triton as partial_sums
    from bionas_fast.kernels.pooling import triton as pooling
    from bionas_fast.kernels.separable_stage import triton as stage
    from bionas_fast.ops.mixed_edges.backends import traced  # noqa: F401  (defines operators)
    from bionas_fast.ops.mixed_edges.backends.triton import Triton


@pytest.mark.slow
def test_compiled_on_a_card(cuda):
    run_compiled(__file__)


def mapped(function: Any, value: Any) -> Any:
    """Arguments with every floating-point tensor in them, also in lists, passed through ``function``."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return function(value)
    if not isinstance(value, (list, tuple)):
        return value
    each = (mapped(function, one) for one in value)
    return type(value)(*each) if hasattr(value, "_fields") else type(value)(each)


def low(arguments: tuple, dtype: torch.dtype) -> tuple:
    return mapped(lambda tensor: tensor.to(dtype), arguments)


def wide(arguments: tuple) -> tuple:
    return mapped(Tensor.double, arguments)


def flat(results: Any) -> list[Tensor]:
    """Tensors out of tuples of tuples."""
    return [results] if isinstance(results, Tensor) else [tensor for one in results for tensor in flat(one)]


def sum_gradients(tensor: Tensor) -> Tensor:
    """A gradient as ``.sum()`` sends it, of stride 0."""
    return torch.tensor(0.7, dtype=tensor.dtype).expand(tensor.shape)


SHAPES = {
    "one": (1, 1, 1, 1),
    "odd": (2, 7, 5, 5),
    "even": (2, 6, 4, 16),
    "line": (2, 1, 9, 3),
    "many-rows": (3, 6, 9, 3),
    "many-channels": (1, 2, 3, 35),
    "no-images": (0, 4, 3, 2),
}
every_stride = pytest.mark.parametrize("stride", [1, 2], ids=["stride-1", "stride-2"])


# Separable stages


@dataclass
class Case:
    """A stage of K branches, and what comes down to it: gradients, of which branches share some.

    The interpreter takes as long for a program of one position as for a full one: the fewer branches, the better.
    """

    shape: tuple[int, ...] = (2, 7, 5, 5)
    kernels: tuple[int, ...] = (3, 5)
    dilations: tuple[int, ...] = (2, 1)
    stride: int = 1
    own: bool = False
    affine: bool = False
    outputs: int | None = None
    index: tuple[int, ...] = (1, 1)

    @property
    def stage(self) -> Stage:
        return Stage(self.kernels, self.dilations, self.stride)

    def forward(self) -> tuple:
        """Arguments of ``forward``, float32."""
        torch.manual_seed(0)
        count, channels = len(self.kernels), self.shape[-1]
        x = torch.randn(count, *self.shape) if self.own else torch.randn(self.shape)
        depthwise = torch.randn(sum(channels * k * k for k in self.kernels))
        weights = StageWeights(depthwise, torch.randn(count, self.outputs or channels, channels))
        affine = Affine(torch.randn(count, channels), torch.randn(count, channels)) if self.affine else None
        return (x, weights, self.stage, affine)

    def backward(self) -> tuple:
        """Arguments of ``backward``, float32."""
        x, weights, stage, affine = self.forward()
        z = stage_reference.forward(x, weights, stage, affine)[0]
        grads = [*torch.randn(1, *z.shape[1:]), *torch.randn(2, *z.shape[1:])]
        rows = torch.randn(3, z.shape[0], z.shape[-1]).unbind()
        prologue = Prologue([grads[i] for i in self.index], z, *rows)
        feedback = StageWeights(*(torch.randn_like(own) for own in weights))
        return (prologue, x, weights, feedback, stage, affine, True)


#: Every kernel size with every dilation, two of which share a gradient.
EVERY_KIND: Any = {"kernels": (3, 5, 3, 5), "dilations": (1, 1, 2, 2), "index": (2, 0, 2, 1)}
TWO_3X3: Any = {"kernels": (3, 3), "dilations": (1, 2), "index": (1, 1)}
ONE_3X3: Any = {"kernels": (3,), "dilations": (1,), "index": (0,)}
ONE_5X5: Any = {"kernels": (5,), "dilations": (2,), "index": (1,)}
ONE = {"one": ONE_5X5} | dict.fromkeys(("even", "line", "many-rows", "many-channels", "no-images"), ONE_3X3)
STAGES = {
    "every-kind-own": Case(**EVERY_KIND, own=True),
    "every-kind-stride-2": Case(**EVERY_KIND, stride=2, affine=True),
    "shared-affine": Case(**TWO_3X3, affine=True),
    "own-stride-2": Case(**TWO_3X3, own=True, affine=True, stride=2),
    "more-outputs": Case((1, 3, 4, 5), outputs=18),
    "fewer-outputs": Case((1, 3, 4, 33), **ONE_3X3, outputs=2),
    "many-outputs": Case((1, 2, 3, 3), **ONE_3X3, outputs=35),
    "several-blocks-of-outputs": Case((1, 2, 2, 3), (3,), (2,), outputs=70, index=(0,)),
} | {
    f"{name}-stride-{stride}": Case(SHAPES[name], **kind, stride=stride, affine=stride == 2)
    for name, kind in ONE.items()
    for stride in (1, 2)
}
LIKE = {
    "shared": Case((1, 5, 5, 5), **TWO_3X3, stride=2),
    "own": Case((2, 3, 5, 5), **TWO_3X3, own=True, affine=True),
}


def assert_stage(direction: str, arguments: tuple, dtype: torch.dtype = torch.float32) -> None:
    ours = flat(getattr(stage, direction)(*arguments))
    other = torch.float64
    expected = {"forward": (dtype, other, other), "backward": (dtype, other, other, dtype, dtype)}
    assert tuple(result.dtype for result in ours) == expected[direction]
    assert_near(ours, flat(getattr(stage_reference, direction)(*wide(arguments))), dtype)


@by_name("case", STAGES)
def interpreted_stage_forward(case: Case):
    assert_stage("forward", case.forward())


@every_narrow_dtype
@by_name("case", LIKE | {name: STAGES[name] for name in ("many-channels-stride-2", "many-outputs")})
def interpreted_stage_forward_narrow(case: Case, dtype: torch.dtype):
    assert_stage("forward", low(case.forward(), dtype), dtype)


@by_name("case", STAGES)
def interpreted_stage_backward(case: Case):
    assert_stage("backward", case.backward())


@by_name("case", LIKE | {"many-outputs": STAGES["many-outputs"]})
def interpreted_stage_backward_float16(case: Case):
    assert_stage("backward", low(case.backward(), torch.float16), torch.float16)


@by_name("case", LIKE | {"fewer-outputs": STAGES["fewer-outputs"]})
def interpreted_stage_error_without_weight_gradients(case: Case, monkeypatch):
    monkeypatch.delattr(stage, "weight_gradient_kernel")
    *arguments, _ = case.backward()
    *ours, depthwise_grad, pointwise_grad = stage.backward(*arguments, False)
    assert depthwise_grad.shape == pointwise_grad.shape == (0,)
    assert_near(ours, stage_reference.backward(*wide(tuple(arguments)), True)[:3], torch.float32)


def interpreted_stage_strided():
    assert_stage("forward", mapped(strided, LIKE["own"].forward()))
    assert_stage("backward", mapped(strided, LIKE["own"].backward()))


def interpreted_stage_gradient_of_a_sum():
    prologue, *others = LIKE["own"].backward()
    grads = [sum_gradients(grad) for grad in prologue.grads]
    assert_stage("backward", (prologue._replace(grads=grads), *others))


def interpreted_stage_wide_affine_maps_beside_float16():
    """Batch normalisation has float32 statistics also where activations are narrower."""
    prologue, x, weights, feedback, geometry, affine, wanted = LIKE["own"].backward()
    (grads, z), x, weights, feedback = low(([prologue.grads, prologue.z], x, weights, feedback), torch.float16)
    narrow = prologue._replace(grads=grads, z=z)
    assert_stage("backward", (narrow, x, weights, feedback, geometry, affine, wanted), torch.float16)


@by_name("case", LIKE)
def interpreted_stage_wide_weights_beside_float16(case: Case):
    """As under autocast: maps, errors and factors of products are narrow; statistics and weight gradients are not."""
    prologue, x, weights, feedback, geometry, affine, wanted = case.backward()
    grads, z, x = low((prologue.grads, prologue.z, x), torch.float16)
    given = (prologue._replace(grads=grads, z=z), x, weights, feedback, geometry, affine, wanted)
    ours = [*flat(stage.forward(x, weights, geometry, affine)), *flat(stage.backward(*given))]
    both = torch.float16, torch.float64, torch.float64
    assert tuple(result.dtype for result in ours) == (*both, *both, torch.float32, torch.float32)
    expected = flat(stage_reference.forward(*wide((x, weights, geometry, affine))))
    assert_near(ours, [*expected, *flat(stage_reference.backward(*wide(given)))], torch.float16)


def interpreted_stage_sums_are_those_before_rounding():
    """A map near 2048, of which float16 tells apart every second whole number."""
    x = 1 + torch.arange(9 * 9 * 3).view(1, 9, 9, 3) % 5 / 8
    depthwise = torch.zeros(3, 3, 3)
    depthwise[:, 1, 1] = 1
    weights = StageWeights(depthwise.flatten(), 1928 * torch.eye(3)[None])
    z, sums = stage.forward(x.half(), weights, Stage((3,), (1,)))
    exact = 1928 * x.double()
    assert torch.equal(z[0], exact.half())
    assert not torch.equal(z[0].double(), exact)
    assert torch.equal(sums.total[0], exact.sum(dim=(0, 1, 2)))


FEW = {
    "images-of-a-program": Case((5, 8, 8, 2), **ONE_3X3, own=True, affine=True),
    "blocks-between-images": Case((17, 3, 9, 2), (3,), (2,), index=(0,)),
    "stride-2": Case((9, 7, 8, 2), **ONE_3X3, stride=2),
}


@by_name("case", FEW)
def interpreted_stage_few_programs(case: Case, monkeypatch):
    """Each program computes its groups of positions in several images."""
    before = stage.allocate(*case.forward()[:3], 1)[1].shape[2]
    monkeypatch.setattr(stage, "PROGRAMS", 1)
    monkeypatch.setattr(stage, "WEIGHT_PROGRAMS", 1)
    assert stage.allocate(*case.forward()[:3], 1)[1].shape[2] < before
    assert_stage("forward", case.forward())
    assert_stage("backward", case.backward())


@by_name("case", LIKE)
def interpreted_stage_not_a_number_stays(case: Case):
    x, *others = case.forward()
    x.view(-1)[3] = torch.nan
    ours, wanted = stage.forward(x, *others)[0], stage_reference.forward(x, *others)[0]
    assert 0 < wanted.isnan().sum() < wanted.numel()
    torch.testing.assert_close(ours, wanted, **CANCELLING, equal_nan=True)


BEYOND = {
    "stride-3": Case(stride=3),
    "7x7": Case(kernels=(3, 7), dilations=(1, 1), index=(0, 1)),
    "dilation-3": Case(kernels=(3,), dilations=(3,), index=(0,)),
}


@by_name("case", BEYOND)
def interpreted_stage_beyond_what_kernels_do(case: Case):
    assert_stage("forward", case.forward())
    assert_stage("backward", case.backward())


def interpreted_stage_float64_as_the_reference():
    assert_stage("forward", wide(Case().forward()), torch.float64)
    assert_stage("backward", wide(Case().backward()), torch.float64)


def interpreted_stage_every_configuration_is_launched(monkeypatch):
    """Exactly the configurations are launched that are compiled ahead of time for real cards."""
    launched = record_launches(stage, monkeypatch)
    kinds = product((3, 20, 35), (1, 2), (False, True), stage.DTYPES, ("ieee", "tf32"))
    for channels, stride, affine, dtype, precision in kinds:
        case = Case((1, 2, 3, channels), (3,), (1,), stride, affine=affine, index=(0,))
        with bf.precision(precision):
            stage.forward(*low(case.forward(), dtype))
            stage.backward(*low(case.backward(), dtype))
    monkeypatch.undo()
    assert launched == listed(stage)


# Mixed sum


COUNT = 5
TERMS = Terms((0, 4, 2, 0, 1, 4), (0, 0, 1, 3, 3, 3), COUNT)  # two edges without a term; maps that two edges read


def mixed_forward(shape: tuple[int, ...], add: str) -> tuple:
    torch.manual_seed(0)
    maps, terms = [torch.randn(2, *shape), torch.randn(3, *shape)], len(TERMS.index)
    into = [torch.randn(shape) if add == "into" or (add == "some" and e % 2) else None for e in range(COUNT)]
    return (maps, TERMS, torch.randn(terms, shape[-1]), torch.randn(COUNT, shape[-1]), into)


def mixed_backward(shape: tuple[int, ...]) -> tuple:
    maps, *_, grads = mixed_forward(shape, "into")
    return (grads, maps, TERMS)


def assert_mixed(direction: str, arguments: tuple, dtype: torch.dtype = torch.float32) -> None:
    ours = getattr(mixed_sum, direction)(*arguments)
    assert {result.dtype for result in ours} == {dtype if direction == "forward" else torch.float64}
    assert_near(ours, getattr(mixed_sum_reference, direction)(*wide(arguments)), dtype)


@pytest.mark.parametrize("add", ["into", "some", "alone"])
@by_name("shape", SHAPES)
def interpreted_mixed_sum(shape: tuple[int, ...], add: str):
    assert_mixed("forward", mixed_forward(shape, add))


@by_name("shape", SHAPES)
def interpreted_mixed_sum_backward(shape: tuple[int, ...]):
    assert_mixed("backward", mixed_backward(shape))


@every_narrow_dtype
@by_name("shape", some_of(SHAPES, "even", "many-channels"))
def interpreted_mixed_sum_narrow(shape: tuple[int, ...], dtype: torch.dtype):
    assert_mixed("forward", low(mixed_forward(shape, "some"), dtype), dtype)
    assert_mixed("backward", low(mixed_backward(shape), dtype), dtype)


def interpreted_mixed_sum_of_terms_in_any_order():
    maps, terms, *others = mixed_forward(SHAPES["odd"], "into")
    assert_mixed("forward", (maps, Terms(terms.index, (3, 1, 0, 3, 0, 1), COUNT), *others))


def interpreted_mixed_sum_strided():
    assert_mixed("forward", mapped(strided, mixed_forward(SHAPES["odd"], "into")))
    assert_mixed("backward", mapped(strided, mixed_backward(SHAPES["odd"])))


def interpreted_mixed_sum_gradient_of_a_sum():
    grads, *others = mixed_backward(SHAPES["many-rows"])
    assert_mixed("backward", ([sum_gradients(grad) for grad in grads], *others))


def interpreted_mixed_sum_float64_as_the_reference():
    assert_mixed("forward", wide(mixed_forward(SHAPES["odd"], "into")), torch.float64)
    assert_mixed("backward", wide(mixed_backward(SHAPES["odd"])), torch.float64)


def interpreted_mixed_sum_every_configuration_is_launched(monkeypatch):
    launched = record_launches(mixed_sum, monkeypatch)
    for shape, dtype in product(SHAPES.values(), mixed_sum.DTYPES):
        mixed_sum.forward(*low(mixed_forward(shape, "into"), dtype))
        mixed_sum.backward(*low(mixed_backward(shape), dtype))
    monkeypatch.undo()
    assert launched == listed(mixed_sum)


# Pools


#: Smaller ones, because a program of the backward pass takes 81 steps.
POOLED = SHAPES | {"odd": (1, 7, 5, 5), "many-rows": (2, 5, 9, 3), "many-channels": (1, 2, 3, 17)}


def pools_tensors(shape: tuple[int, ...], stride: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """A gradient of both pools, and x with many equal values."""
    torch.manual_seed(0)
    x = torch.randn(shape).round(decimals=1).to(dtype)
    x[torch.rand(shape) < 0.3] = 0
    return torch.randn_like(pooling_reference.forward(x, stride)[0]), x


def assert_pools(grad: Tensor, x: Tensor, stride: int) -> None:
    z, sums = pooling.forward(x, stride)
    ours = (z, *sums, pooling.backward([*grad], x, stride))
    assert [result.dtype for result in ours] == [x.dtype, torch.float64, torch.float64, x.dtype]
    wanted, wanted_sums = pooling_reference.forward(x.double(), stride)
    down = pooling_reference.backward([*grad.double()], x.double(), stride)
    assert_near(ours, (wanted, *wanted_sums, down), x.dtype)
    assert torch.equal(z[0].double(), wanted[0])


@every_stride
@by_name("shape", POOLED)
def interpreted_pools(shape: tuple[int, ...], stride: int):
    assert_pools(*pools_tensors(shape, stride), stride)


@every_narrow_dtype
@every_stride
@by_name("shape", some_of(POOLED, "even"))
def interpreted_pools_narrow(shape: tuple[int, ...], stride: int, dtype: torch.dtype):
    assert_pools(*pools_tensors(shape, stride, dtype), stride)


def interpreted_pools_strided():
    assert_pools(*map(strided, pools_tensors(SHAPES["even"], 1)), 1)


def interpreted_pools_gradient_of_a_sum():
    grad, x = pools_tensors(SHAPES["even"], 2)
    assert_pools(sum_gradients(grad), x, 2)


@every_stride
def interpreted_pools_of_what_is_equal_or_not_finite(stride: int):
    """Whole windows of it too, for which the first place inside counts, or the last that is not a number."""
    grad, x = pools_tensors((4, 5, 3, 2), stride)
    for image, value in zip(x, (torch.nan, torch.inf, -torch.inf, -2), strict=True):
        image[torch.rand(image.shape) < 0.3] = value
        image[:4] = value
    ours, wanted = pooling.forward(x, stride)[0], pooling_reference.forward(x, stride)[0]
    torch.testing.assert_close(ours, wanted, equal_nan=True)
    torch.testing.assert_close(pooling.backward([*grad], x, stride), pooling_reference.backward([*grad], x, stride))


def interpreted_pools_float64_and_stride_3_as_the_reference():
    assert_pools(*pools_tensors(SHAPES["odd"], 1, torch.float64), 1)
    assert_pools(*pools_tensors(SHAPES["odd"], 3), 3)


def interpreted_pools_every_configuration_is_launched(monkeypatch):
    launched = record_launches(pooling, monkeypatch)
    for shape, stride, dtype in product(SHAPES.values(), (1, 2), pooling.DTYPES):
        grad, x = pools_tensors(shape, stride)
        pooling.forward(x.to(dtype), stride)
        pooling.backward([*grad.to(dtype)], x.to(dtype), stride)
    monkeypatch.undo()
    assert launched == listed(pooling)


# All together


def interpreted_the_stacked_supernet():
    """A search step through the op that calls these kernels errs no more than through the references."""
    operations = ("none", "skip_connect", "max_pool_3x3", "avg_pool_3x3", "sep_conv_3x3", "dil_conv_3x3")
    space = with_nodes(bf.space.get_space("bionas").restricted(("brsf",), operations), 2)
    net = bf.build_supernet(space=space, channels=2, cells=1, in_channels=1, seed=3)
    x, streams = torch.randn(2, 1, 8, 8), []

    def step(backend: str, dtype: torch.dtype) -> list[Tensor]:
        module = copy.deepcopy(net).to(dtype)
        with bf.use_backend(backend):
            logits = module(x.to(dtype))
            logits.logsumexp(1).sum().backward()
        streams.append([buffer for buffer in module.buffers() if buffer.dtype == torch.int64])
        return [logits.detach(), *(p.grad for p in module.parameters() if p.grad is not None)]

    exact = step("reference", torch.float64)
    for ours, plain, wanted in zip(step("triton", torch.float32), step("reference", torch.float32), exact, strict=True):
        assert (ours - wanted).norm() <= 4 * (plain - wanted).norm() + 1e-5 * wanted.norm()
    assert all(torch.equal(ours, plain) for own in streams[1:] for ours, plain in zip(own, streams[0], strict=True))


def interpreted_the_stacked_supernet_compiled_as_one_graph():
    """Outputs, gradients and running statistics of a step, with candidates of every kind but pools."""
    space = bf.space.get_space("bionas").restricted(("brsf",), ("skip_connect", "sep_conv_3x3"))
    net = bf.build_supernet(space=with_nodes(space, 2), channels=2, cells=1, in_channels=1, seed=1)
    assert {edges.plan.stride for cell in net.cells for edges in cell.states} == {1, 2}
    exact, x, results = copy.deepcopy(net).double(), torch.randn(2, 1, 4, 2), []
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for run, plain, given, backend in ((compiled, net, x, "triton"), (exact, exact, x.double(), "reference")):
        with bf.use_backend(backend):
            out = run(given)
            found = torch.autograd.grad(out.square().sum(), [*plain.parameters()], allow_unused=True)
        results.append([out, *(grad for grad in found if grad is not None), *plain.buffers()])
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), wanted.double(), **CANCELLING)


@pytest.mark.parametrize("stride", [1, 2])
def interpreted_edges_with_narrow_maps(stride: int, monkeypatch):
    """Candidates of every kind; float16 in place of bfloat16, in which the interpreter cannot multiply."""
    monkeypatch.setattr(autograd, "stored_dtype", lambda weights: torch.float16)
    candidates = bf.space.get_space("bionas").restricted(("bp",), ("skip_connect", "max_pool_3x3", "sep_conv_3x3"))
    torch.manual_seed(0)
    edges = StackedEdges([MixedOp(candidates.candidates, 4, stride, 1)], stride)
    x, results = torch.randn(4, 6, 6, 4), []
    mixing = torch.full((1, len(candidates.candidates)), 0.5, requires_grad=True)
    for backend in ("triton", "reference"):
        with bf.use_backend(backend):
            (out,) = edges(x, edges.prepare(mixing), [None])
        found = torch.autograd.grad(out.float().square().sum(), [mixing, edges.bank.weight])
        assert all(grad.dtype == torch.float32 for grad in found)
        assert out.dtype == (torch.float16 if backend == "triton" else torch.float32)
        results.append([out.detach().float(), *found])
    for ours, wanted in zip(*results, strict=True):
        assert (ours - wanted).norm() < 10 * NARROW_EDGES * wanted.norm()  # rounded twice as often


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def interpreted_operators_for_tracers_pass_opcheck(dtype: torch.dtype):
    """In training and in evaluation; a plan with every kind of candidate of stride 2."""
    ops, checks = torch.ops.bionas_fast, ("test_schema", "test_faketensor")
    plan = Plan(SeparablePlan(Stage((3, 3), (1, 2), 2), (0, 1), 2, 1), 1, True, False, Terms((0, 1, 2), (0, 0, 1), 2))
    assert Plan.read(plan.numbers).numbers == plan.numbers
    torch.manual_seed(0)
    state, before = torch.randn(2, 2, 1, 2).to(dtype), torch.randn(2, 1, 1, 2).to(dtype)
    factors, into = torch.randn(5), [before, None]
    weights = [own.clone() for own in Weights.split(torch.randn(70), plan, 2).tensors()]
    given = [torch.randn(6, 2).double(), 0.5 + torch.rand(6, 2).double()]
    forward = (state, weights, factors, given, into, plan.numbers)
    torch.library.opcheck(ops.mixed_edges.default, (*forward[:3], [], *forward[4:]), test_utils=checks)
    _, between, *maps = ops.mixed_edges(*forward)
    saved = ([*torch.randn(2, 2, 1, 1, 2).to(dtype)], state, [*given, *between.unbind(), *maps], True, weights)
    last = factors, plan.numbers
    backward = ops.mixed_edges_backward.default
    torch.library.opcheck(backward, (*saved, weights, None, True, True, *last), test_utils=checks)
    torch.library.opcheck(backward, (*saved, [], None, False, False, *last), test_utils=checks[1:])


# Factorized reductions


REDUCED = {"one": (1, 1, 1, 1), "odd": (2, 7, 5, 5), "many-rows": (3, 13, 12, 3), "many-channels": (1, 2, 3, 35)}


def reductions_backward(shape: tuple[int, ...]) -> tuple:
    """Arguments of ``backward`` of three reductions, two of which share a gradient."""
    torch.manual_seed(0)
    channels, size = shape[-1], (shape[0], -(-shape[1] // 2), -(-shape[2] // 2), shape[-1])
    halves = (3, channels - channels // 2, channels), (3, channels // 2, channels)
    weights, feedback = (ReductionWeights(*(torch.randn(half) for half in halves)) for _ in range(2))
    grads = [*torch.randn(2, *size)]
    rows = torch.randn(3, 3, channels).unbind()
    prologue = Prologue([grads[i] for i in (1, 0, 1)], torch.randn(3, *size), *rows)
    return (prologue, torch.randn(shape), weights, feedback)


def assert_reductions(arguments: tuple) -> None:
    _, x, weights, _ = arguments
    wide_x, wide_weights = wide((x, weights))
    assert_near(flat(reductions.forward(x, weights)), flat(reductions_reference.forward(wide_x, wide_weights)), x.dtype)
    wanted = flat(reductions_reference.backward(*wide(arguments), True))
    ours = flat(reductions.backward(*arguments, True))
    assert [own.shape for own in ours] == [own.shape for own in wanted]
    assert_near(ours, wanted, x.dtype)


@by_name("shape", REDUCED)
def interpreted_reductions(shape: tuple[int, ...]):
    assert_reductions(reductions_backward(shape))


def interpreted_reductions_wide_weights_beside_float16():
    prologue, x, weights, feedback = reductions_backward(REDUCED["many-rows"])
    grads, z, x = low((prologue.grads, prologue.z, x), torch.float16)
    assert_reductions((prologue._replace(grads=grads, z=z), x, weights, feedback))


def interpreted_reductions_strided_and_of_few_programs(monkeypatch):
    """Each program adds up weight gradients over several blocks of rows."""
    monkeypatch.setattr(reductions, "WEIGHT_PROGRAMS", 1)
    assert_reductions(mapped(strided, reductions_backward(REDUCED["many-rows"])))


def interpreted_reductions_error_without_weight_gradients(monkeypatch):
    monkeypatch.delattr(reductions, "reduction_weight_kernel")
    arguments = reductions_backward(REDUCED["odd"])
    error, of_weights = reductions.backward(*arguments, False)
    assert [own.shape for own in of_weights] == [(0,), (0,)]
    assert_near([error], [reductions_reference.backward(*wide(arguments), False)[0]], torch.float32)


def interpreted_reductions_of_what_is_not_finite():
    _, x, weights, _ = reductions_backward(REDUCED["odd"])
    x[0, 0, 0, 1], x[1, 1, 1, 0], x[0, 3, 1, 2] = torch.nan, torch.inf, -torch.inf
    ours, wanted = reductions.forward(x, weights)[0], reductions_reference.forward(x, weights)[0]
    assert 0 < wanted.isnan().sum() < wanted.numel()
    torch.testing.assert_close(ours, wanted, **CANCELLING, equal_nan=True)


def interpreted_reductions_without_images_as_the_reference():
    assert_reductions(reductions_backward((0, 4, 3, 2)))
    assert_reductions(wide(reductions_backward((1, 3, 2, 2))))


def interpreted_reductions_every_configuration_is_launched(monkeypatch):
    launched = record_launches(reductions, monkeypatch)
    for channels, dtype, precision in product((3, 20, 35), reductions.DTYPES, ("ieee", "tf32")):
        arguments = low(reductions_backward((1, 2, 3, channels)), dtype)
        with bf.precision(precision):
            reductions.forward(*arguments[1:3])
            reductions.backward(*arguments, True)
    monkeypatch.undo()
    assert launched == listed(reductions)


# Sums of partial sums


def interpreted_partial_sums():
    torch.manual_seed(0)
    several = [torch.randn(5, 300), torch.randn(1, 7), torch.randn(3, 256)]
    for partial in (several, several[:1], [strided(own) for own in several], [torch.randn(0, 3), torch.randn(2, 0)]):
        wanted = partial_sums_reference.add_up([own.double() for own in partial], torch.float64)
        for dtype in (torch.float32, torch.float16):
            ours = partial_sums.add_up(partial, dtype)
            assert ours.dtype == dtype
            assert_near([ours], [wanted], dtype)


def interpreted_partial_sums_every_configuration_is_launched(monkeypatch):
    launched = record_launches(partial_sums, monkeypatch)
    for dtype in partial_sums.DTYPES:
        partial_sums.add_up([torch.ones(2, 3)], dtype)
    monkeypatch.undo()
    assert launched == listed(partial_sums)


# Limits


@pytest.mark.parametrize("limit", ["ROW_LIMIT", "BLOCK_LIMIT"])
def interpreted_beyond_a_limit_the_reference_runs(limit: str, monkeypatch):
    monkeypatch.setattr(launching, limit, 2)
    for module in (stage, mixed_sum, pooling, reductions):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.delattr(module, name)
    assert_stage("forward", Case().forward())
    assert_stage("backward", Case().backward())
    assert_mixed("forward", mixed_forward(SHAPES["odd"], "into"))
    assert_mixed("backward", mixed_backward(SHAPES["odd"]))
    assert_pools(*pools_tensors(SHAPES["odd"], 1), 1)
    assert_reductions(reductions_backward(REDUCED["odd"]))


# Batch normalisation: the composed ops of the backend, whose small arithmetic is one launch each way


@dataclass(frozen=True)
class Normalisation:
    """Sums of four maps, of which the last is an identity, beside terms of several edges; float32.

    Attributes:
        shape: N, H, W, C.
        index: the map of each term; the third has none.
        training: whether the moments are those of the batch.
    """

    shape: tuple[int, ...] = (3, 6, 4, 16)
    index: tuple[int, ...] = (0, 3, 1, 0, 3)
    training: bool = True

    def results(self, backend: Any, dtype: torch.dtype) -> list[Tensor]:
        """Both passes, and the running statistics, which have fewer channels than the maps where they are padded."""
        torch.manual_seed(0)
        maps = [2 * torch.randn(3, *self.shape) + 1, torch.randn(1, *self.shape)]
        terms, factors = Terms(self.index, (0, 0, 1, 2, 2), 3), torch.randn(len(self.index))
        into, grads = torch.randn(2, 3, *self.shape).unbind()
        given = Moments(torch.randn(3, self.shape[-1]), 0.5 + torch.rand(3, self.shape[-1]))
        narrow = max(1, self.shape[-1] - 1)
        running = Running(torch.randn(3, narrow).to(dtype), torch.rand(3, narrow).to(dtype), 0.1)
        maps = [one.to(dtype) for one in maps]
        sums = Sums(*mixed_sum_reference.backward([*maps[0]], maps[:1], Terms((0, 1, 2), (0, 1, 2), 3)))
        if isinstance(backend, Triton):
            sums = backend.joined_sums(maps[:1], [sums])
            assert sums.partial
        moments = None if self.training else Moments(*(one.double() for one in given))
        moved = running if self.training else None
        before, after = [*into.to(dtype)], [*grads.to(dtype)]
        out, found = backend.normalised_forward(maps, terms, factors.to(dtype), sums, moments, before, moved)
        back = backend.normalised_backward(after, maps, terms, factors.to(dtype), found, self.training)
        affine, same = backend.affine_forward(sums, moments, maps[0], moved)
        down = backend.affine_backward(sums, found, maps[0], self.training)
        return [*out, *found, *back, *affine, *same, *down, running.mean, running.var]


NORMALISATIONS = {
    "padded": Normalisation(),
    "odd": Normalisation((2, 7, 5, 5)),
    "one-position-apart": Normalisation((2, 1, 1, 1)),
    "wide": Normalisation((1, 3, 3, 70)),
    "evaluation": Normalisation(training=False),
}


@by_name("case", NORMALISATIONS)
def interpreted_normalisation(case: Normalisation):
    ours = case.results(Triton(), torch.float32)
    plain, wanted = (case.results(Reference(), dtype) for dtype in (torch.float32, torch.float64))
    for own, single, exact in zip(ours, plain, wanted, strict=True):
        assert own.shape == exact.shape
        error, allowed = (own - exact).norm(), (single - exact).norm()
        assert error <= 4 * allowed + 1e-5 * exact.norm() + 1e-6, (error, allowed)


def interpreted_normalisation_of_many_blocks(monkeypatch):
    """A small map has several rounds of partial sums if each is of four of them."""
    for options in ("moment_options", "gradient_options"):
        own = getattr(normalisation, options)
        monkeypatch.setattr(normalisation, options, lambda *given, own=own: {**own(*given), "BLOCK_B": 4})
    interpreted_normalisation(Normalisation((5, 11, 12, 16), index=(1, 3, 3, 0, 2)))


def interpreted_normalisation_every_configuration_is_launched(monkeypatch):
    launched = record_launches(normalisation, monkeypatch)
    terms = Terms((0, 1), (0, 1), 2)
    for channels, training, factors in product((16, 32, 64, 70), (True, False), (None, torch.ones(2))):
        sums, moments = torch.ones(2, 2, 3, channels), Moments(*torch.ones(2, 2, channels).double())
        for moved in (None, Running(torch.ones(2, channels), torch.ones(2, channels), 0.1) if training else None):
            given = [sums] if training else None
            normalisation.forward(given, None if training else moments, terms, factors, 7, moved)
        normalisation.backward(sums.flatten(0, 1), moments, terms, factors, 7, training)
    monkeypatch.undo()
    assert launched == listed(normalisation)
