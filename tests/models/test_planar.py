"""Genotype networks through the channels-first kernels: the same functions as their modules."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import bionas_fast as bf
from bionas_fast import native
from bionas_fast.models import GenotypeNetwork, planar
from bionas_fast.space import Genotype
from helpers.tolerances import EDGES_FLOAT32, REORDERED_FLOAT32, SAME_BITS

pytestmark = pytest.mark.skipif(not native.load(), reason="the kernels are not compiled here")

#: Every operation that the kernels run and some that they do not, several edges from one state, a node of three.
GENOTYPE = Genotype.from_json(
    """{
    "format_version": 1,
    "normal": {"nodes": [
        ["sep_conv_3x3@usf<-0", "skip_connect@usf<-1"], ["dil_conv_5x5@usf<-0", "max_pool_3x3<-2"],
        ["sep_conv_7x7@usf<-0", "sep_conv_5x5@usf<-0"],
        ["nor_conv_3x3@usf<-1", "dil_conv_3x3@usf<-1", "skip_connect@usf<-3"]
    ]},
    "reduce": {"nodes": [
        ["sep_conv_3x3@usf<-0", "max_pool_3x3<-1"], ["max_pool_3x3<-1", "dil_conv_3x3@usf<-2"],
        ["avg_pool_3x3<-0", "sep_conv_3x3@usf<-1"], ["skip_connect@usf<-0", "sep_conv_5x5@usf<-4"]
    ]}
    }"""
)
#: Several layers whose sums have another order.
PLAIN = {"rtol": REORDERED_FLOAT32, "atol": 10 * REORDERED_FLOAT32}
RULES = ("bp", "usf", "frsf", "brsf", "fa", "dfa", "kp", "nsf")


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """The number of chains of each call of the kernels."""
    made: list[int] = []
    run = planar.planar_edges

    def counted(x, edges, *rest):
        made.append(len(edges))
        return run(x, edges, *rest)

    monkeypatch.setattr(planar, "planar_edges", counted)
    return made


def build(rule: str = "usf", **settings) -> GenotypeNetwork:
    return bf.build_network(GENOTYPE.with_rule(rule), channels=5, cells=3, num_classes=4, **settings)


def images(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, 12, 12, generator=generator).to(dtype), torch.arange(6) % 4


def gradients(net: nn.Module, x: Tensor, y: Tensor, *args) -> list[Tensor]:
    """Gradients of the input and of all parameters."""
    x = x.clone().requires_grad_()
    wanted = [x, *net.parameters()]
    found = torch.autograd.grad(F.cross_entropy(net(x, *args), y), wanted, allow_unused=True)
    return [torch.zeros_like(t) if grad is None else grad for t, grad in zip(wanted, found, strict=True)]


def far(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-12)).item()


@pytest.mark.parametrize("frozen", [False, True], ids=["batch statistics", "frozen statistics"])
@pytest.mark.parametrize("rule", RULES)
def test_equals_the_modules_in_float64(rule, frozen, calls):
    net = build(rule).train()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.train(not frozen)
    exact = copy.deepcopy(net).double()
    x, y = images()
    for _ in range(2):  # brsf redraws
        before = len(calls)
        found = gradients(net, x, y)
        # Under dfa no chain runs, but in preprocessing, which learns by back-propagation.
        assert max(calls[before:]) == (1 if rule == "dfa" else 4)
        middle = len(calls)
        expected = gradients(exact, x.double(), y)
        assert len(calls) == middle
        scale = max(grad.abs().max() for grad in expected[1:])
        for actual, right in zip(found, expected, strict=True):
            assert (actual - right).abs().max() < EDGES_FLOAT32 * (right.abs().max() + scale)
    for name, actual in net.named_buffers():
        right = exact.get_buffer(name)
        assert far(actual.double(), right.double()) < EDGES_FLOAT32, name


@pytest.mark.parametrize(("rule", "drop_path"), [("bp", 0.0), ("usf", 0.4), ("brsf", 0.0), ("dfa", 0.0)])
def test_bfloat16_is_as_near_to_float64_as_the_modules(rule, drop_path, calls, monkeypatch):
    """Under autocast the kernels round less often than the modules, which round every result.

    Over 24 networks their gradients were 6 % (bp) and 7 % (usf) nearer; of single ones, on which side of a ReLU a few
    numbers fall decides. A wrong gradient would be several times as far.
    """
    masks = torch.Tensor.bernoulli_

    def same_masks(tensor: Tensor, p: float) -> Tensor:
        return tensor.copy_(masks(torch.empty(tensor.shape), p))  # each dtype draws others

    monkeypatch.setattr(torch.Tensor, "bernoulli_", same_masks)

    def distance(found: list[Tensor], expected: list[Tensor]) -> Tensor:
        own, right = (torch.cat([grad.double().flatten() for grad in grads]) for grads in (found, expected))
        return (own - right).norm() / right.norm()

    ratios, (x, y) = [], images()
    x, y = torch.cat([x, x.flip(3)]), y.repeat(2)
    for seed in range(4):
        net = build(rule, seed=seed).train()
        exact, modules = copy.deepcopy(net).double(), copy.deepcopy(net)

        def passes(own: nn.Module, own_x: Tensor, seed: int = seed) -> list[Tensor]:
            torch.manual_seed(seed)
            return gradients(own, own_x, y, drop_path)

        expected = passes(exact, x.double())
        with torch.autocast("cpu", torch.bfloat16):
            before = len(calls)
            found = passes(net, x)
            assert max(calls[before:]) == (1 if rule == "dfa" else 4)
            made = len(calls)
            with bf.use_backend("reference"):
                plain = passes(modules, x)
        assert len(calls) == made
        assert [grad.dtype for grad in found] == [grad.dtype for grad in plain]
        ratios.append(distance(found, expected) / distance(plain, expected))
    assert torch.stack(ratios).log().mean().exp() < 1.3


def test_maps_in_bfloat16_are_half_as_large(calls):
    (x, _), stored = images(), []
    for narrow in (False, True):
        seen: dict[int, int] = {}

        def note(tensor: Tensor, seen: dict[int, int] = seen) -> Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        net = build().train()
        for p in net.parameters():
            p.requires_grad_(p.ndim > 1)
        hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow), hooks:
            out = net(x.repeat(16, 1, 1, 1))
        stored.append(sum(seen.values()))
        del out
    assert stored[1] < 0.6 * stored[0]  # the weights do not shrink


def test_drop_path_draws_the_same_masks(calls):
    net, (x, y) = build("frsf").train(), images()
    torch.manual_seed(3)
    found = gradients(net, x, y, 0.4)
    assert calls
    made = len(calls)
    torch.manual_seed(3)
    with bf.use_backend("reference"):
        expected = gradients(net, x, y, 0.4)
    assert len(calls) == made
    plain = gradients(net, x, y)
    for actual, right in zip(found, expected, strict=True):
        assert far(actual, right) < EDGES_FLOAT32
    assert max(map(far, found, plain)) > 0.1


def test_only_norms_learn(calls):
    net, (x, y) = build().train(), images()
    for p in net.parameters():
        p.requires_grad_(p.ndim == 1)
    wanted = [p for p in net.parameters() if p.requires_grad]
    state = copy.deepcopy(net.state_dict())
    found = torch.autograd.grad(F.cross_entropy(net(x), y), wanted)
    assert calls
    reference = build().train()
    reference.load_state_dict(state)
    with bf.use_backend("reference"):
        expected = torch.autograd.grad(
            F.cross_entropy(reference(x), y), [p for p in reference.parameters() if p.ndim == 1]
        )
    for actual, right in zip(found, expected, strict=True):
        assert far(actual, right) < EDGES_FLOAT32


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_runs_the_modules(reentrant, calls):
    (x, y), found = images(), []
    for backend in (None, "reference"):
        net = build("brsf").train()
        with bf.use_backend(backend) if backend else nullcontext():
            out = checkpoint(net, x.clone().requires_grad_(), use_reentrant=reentrant)
            F.cross_entropy(out, y).backward()
        found.append([*(p.grad for p in net.parameters() if p.grad is not None), *net.buffers()])
    assert not calls
    for actual, right in zip(*found, strict=True):
        torch.testing.assert_close(actual, right, **PLAIN)


def test_second_derivatives_equal_the_modules(calls):
    net, (x, y) = build("frsf").train(), images()

    def penalty() -> tuple[Tensor, ...]:
        at = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(net(at), y), at, create_graph=True)
        return torch.autograd.grad(grad.square().sum() * 1e3, [*net.parameters()], allow_unused=True)

    found = penalty()
    assert calls
    with bf.use_backend("reference"):
        expected = penalty()
    scale = max(grad.abs().max() for grad in expected if grad is not None)
    for actual, right in zip(found, expected, strict=True):
        assert (actual is None) == (right is None)
        if actual is not None:
            assert (actual - right).abs().max() < EDGES_FLOAT32 * scale


def hook_on_a_layer(net: GenotypeNetwork, seen: list) -> None:
    net.cells[0].edges[0][0].pointwise.register_forward_hook(lambda *_: seen.append(1))


def hook_on_an_edge(net: GenotypeNetwork, seen: list) -> None:
    net.cells[0].edges[0].register_full_backward_hook(lambda *_: seen.append(1))


def parametrisation(net: GenotypeNetwork, seen: list) -> None:
    class Noted(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            seen.append(1)
            return weight

    parametrize.register_parametrization(net.cells[0].edges[0][1].depthwise, "weight", Noted())
    seen.clear()


def own_class(net: GenotypeNetwork, seen: list) -> None:
    class Own(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(1)
            return super().forward(x)

    net.cells[0].edges[0][1][3] = Own(5)


@pytest.mark.parametrize("change", [hook_on_a_layer, hook_on_an_edge, parametrisation, own_class])
def test_what_looks_at_a_module_is_called(change, calls):
    net, (x, y) = build().train(), images()
    seen: list[int] = []
    change(net, seen)
    gradients(net, x, y)
    assert seen and 3 in calls and 4 not in calls  # the other edges from the state still run together


@pytest.mark.parametrize(
    "context",
    [
        lambda: torch.autocast("cpu", torch.float16),
        lambda: bf.use_backend("reference"),
        lambda: nn.modules.module.register_module_forward_hook(lambda *_: None),
    ],
    ids=["autocast to float16", "reference", "global hook"],
)
def test_falls_back_to_the_modules(context, calls):
    net, (x, y) = build().train(), images()
    handle = context()
    with handle:
        gradients(net, x, y)
    assert not calls
    gradients(net, x, y)
    assert calls


def test_other_layouts_and_one_value_per_channel(calls):
    net, (x, _) = build().train(), images()
    net(x.to(memory_format=torch.channels_last))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        net(x[:1, :, :1, :1])


def test_evaluation_and_graphs_run_the_modules(calls):
    net, (x, _) = build().eval(), images()
    out = net(x)
    torch.testing.assert_close(bf.to_torch(net)(x), out, **SAME_BITS)
    net.train()
    torch.testing.assert_close(torch.export.export(net, (x,)).module()(x).shape, out.shape)
    torch.jit.trace(net, x, check_trace=False)
    assert not calls
    net(x)
    assert calls


def test_a_step_repeats_bit_for_bit():
    (x, y), runs = images(), []
    for _ in range(2):
        net = build("brsf", seed=5).train()
        runs.append([*gradients(net, x, y), *net.buffers()])
    for one, other in zip(*runs, strict=True):
        torch.testing.assert_close(one, other, **SAME_BITS)
