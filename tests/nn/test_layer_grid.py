"""Every class of layer, under every rule, in each of the ways that torch.nn's own layer can be used.

Oracles: torch.nn's layer of the same weights for outputs and parameter gradients; torch.nn.functional's gradient with
B in place of W for the error sent down.
"""

from __future__ import annotations

import copy
import inspect
import io
import pydoc
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import fusion, parametrizations, parametrize, prune, skip_init

import bionas_fast as bf
from bionas_fast import InputError
from helpers.learned import weights_of
from helpers.tolerances import assert_close

RULES = ("bp", "fa", "usf", "brsf", "frsf", "kp")


@dataclass
class Kind:
    """A class of layer, its arguments, and the shape of an input."""

    name: str
    sizes: tuple[Any, ...]
    shape: tuple[int, ...]
    arguments: dict[str, Any] = field(default_factory=dict)
    lazy: bool = False

    @property
    def theirs(self) -> Callable[..., nn.Module]:
        return getattr(nn, self.name)

    @property
    def ours(self) -> Callable[..., nn.Module]:
        return getattr(bf.nn, self.name)

    @property
    def lazily(self) -> tuple[Callable[..., nn.Module], Callable[..., nn.Module]]:
        return getattr(nn, f"Lazy{self.name}"), getattr(bf.nn, f"Lazy{self.name}")

    def input(self, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)

    def through(self, layer: Any, x: Tensor, b: Tensor) -> Tensor:
        """The layer's map with weight B and no bias, by torch.nn.functional."""
        if isinstance(layer, nn.Linear):
            return F.linear(x, b)
        dims = b.dim() - 2
        if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            extra = (layer.output_padding, layer.groups, layer.dilation)
            return getattr(F, f"conv_transpose{dims}d")(x, b, None, layer.stride, layer.padding, *extra)
        plain = self.theirs(*self.sizes, **{**self.arguments, "bias": False}, dtype=b.dtype)
        return torch.func.functional_call(plain, {"weight": b}, (x,))


KINDS = {
    "linear": Kind("Linear", (6, 5), (4, 6)),
    "linear-unbatched": Kind("Linear", (6, 5), (6,)),
    "linear-sequence": Kind("Linear", (6, 5), (2, 3, 6), {"bias": False}),
    "conv1d": Kind("Conv1d", (4, 6, 3), (2, 4, 9), {"stride": 2, "padding": 1, "groups": 2}),
    "conv1d-unbatched": Kind("Conv1d", (4, 6, 3), (4, 9), {"padding": 2, "padding_mode": "circular"}),
    "conv2d": Kind("Conv2d", (4, 5, 3), (2, 4, 7, 6), {"padding": 1, "bias": False}),
    "conv2d-pointwise": Kind("Conv2d", (4, 5, 1), (2, 4, 5, 5)),
    "conv2d-reflect": Kind("Conv2d", (4, 6, (3, 2)), (2, 4, 7, 6), {"padding": (1, 2), "padding_mode": "reflect"}),
    "conv2d-replicate": Kind("Conv2d", (4, 4, 3), (2, 4, 7, 6), {"padding": "same", "padding_mode": "replicate"}),
    "conv3d": Kind("Conv3d", (4, 5, 2), (2, 4, 4, 5, 3), {"dilation": (1, 2, 1), "padding": (1, 0, 1)}),
    "transpose1d": Kind("ConvTranspose1d", (4, 6, 3), (2, 4, 5), {"stride": 2, "output_padding": 1, "groups": 2}),
    "transpose1d-unbatched": Kind("ConvTranspose1d", (4, 5, 4), (4, 5), {"padding": 2, "bias": False}),
    "transpose2d": Kind("ConvTranspose2d", (4, 5, 3), (2, 4, 5, 4), {"stride": (2, 3), "padding": 1}),
    "transpose2d-pointwise": Kind("ConvTranspose2d", (4, 5, 1), (2, 4, 5, 4)),
    "transpose2d-dilated": Kind(
        "ConvTranspose2d", (4, 6, (3, 2)), (2, 4, 4, 5), {"dilation": (2, 3), "output_padding": (1, 2), "groups": 2}
    ),
    "transpose3d": Kind(
        "ConvTranspose3d", (4, 4, 2), (2, 4, 3, 2, 4), {"stride": 2, "padding": (0, 1, 0), "groups": 4}
    ),
}
one_of_each = pytest.mark.parametrize(
    "kind",
    [KINDS[name] for name in ("linear", "conv1d", "conv2d", "conv3d", "transpose1d", "transpose2d", "transpose3d")],
    ids=lambda kind: kind.name,
)  # fmt: skip
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
every_rule = pytest.mark.parametrize("rule", RULES)
stored_or_drawn = pytest.mark.parametrize("rule", ["fa", "brsf", "frsf"])


def make(kind: Kind, rule: str, dtype: torch.dtype = torch.float64, **arguments: Any) -> tuple[nn.Module, nn.Module]:
    """Our layer and torch.nn's, of the same weights."""
    torch.manual_seed(0)
    ours = kind.ours(*kind.sizes, **kind.arguments, **arguments, rule=rule, dtype=dtype)
    theirs = kind.theirs(*kind.sizes, **kind.arguments, dtype=dtype)
    theirs.load_state_dict({name: p.detach() for name, p in weights_of(ours).items()})
    return ours, theirs


def run(layer: nn.Module, x: Tensor, **arguments: Any) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Output, its gradient, the error sent down and the gradients of the parameters."""
    layer.zero_grad()
    x = x.detach().clone().requires_grad_()
    y = layer(x, **arguments)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(y.dtype)
    y.backward(grad)
    learned = {name: p.grad.clone() for name, p in weights_of(layer).items() if p.grad is not None}
    return y.detach(), grad, x.grad, learned


def check(kind: Kind, ours: Any, theirs: Any, x: Tensor | None = None) -> None:
    """Same outputs and parameter gradients, and an error that passes through B."""
    x = kind.input(next(ours.parameters()).dtype) if x is None else x
    b = ours.feedback_weight()
    y, grad, down, learned = run(ours, x)
    expected, _, through_w, wanted = run(theirs, x)
    assert_close(y, expected)
    assert learned.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert_close(learned[name], gradient)
    if ours.rule == "kp" and "weight" in weights_of(ours):
        assert (ours.feedback.grad is None) == ("weight" not in wanted)
        if "weight" in wanted:
            assert_close(ours.feedback.grad, wanted["weight"])
    if ours.rule == "bp":
        assert_close(down, through_w)
        return
    assert not torch.allclose(down, through_w)
    at = x.detach().clone().requires_grad_()
    assert_close(down, torch.autograd.grad(kind.through(theirs, at, b), at, grad)[0])


@every_rule
@every_kind
def test_gradients(kind, rule):
    check(kind, *make(kind, rule))


@every_rule
@one_of_each
def test_second_pass_and_frozen_parameters(kind, rule):
    ours, theirs = make(kind, rule)
    for frozen in ("weight", "bias", None):
        for layer in ours, theirs:
            for name, parameter in layer.named_parameters():
                parameter.requires_grad_(name != frozen)
        check(kind, ours, theirs)


# Ways to make a layer


@one_of_each
def test_signatures_show_torchs_parameters_and_the_rule(kind):
    for theirs, ours in ((kind.theirs, kind.ours), kind.lazily):
        expected, actual = inspect.signature(theirs).parameters, inspect.signature(ours).parameters
        assert list(actual)[: len(expected)] == list(expected)
        assert [actual[name].default for name in expected] == [p.default for p in expected.values()]
        assert list(actual)[len(expected) :] == ["rule", "feedback_init", "num_classes", "seed", "generator"]
        assert "rule: 'str" in pydoc.plain(pydoc.render_doc(ours)) and "Args:" in inspect.getdoc(ours)


@every_rule
@one_of_each
def test_skip_init(kind, rule):
    _, theirs = make(kind, rule)
    skipped = skip_init(kind.ours, *kind.sizes, **kind.arguments, rule=rule, dtype=torch.float64, seed=3)
    skipped.load_state_dict(theirs.state_dict(), strict=True)
    assert not any(tensor.is_meta for tensor in (*skipped.parameters(), *skipped.buffers()))
    check(kind, skipped, theirs)
    drawn = kind.ours(*kind.sizes, **kind.arguments, rule=rule, dtype=torch.float64, seed=3)
    for name, buffer in drawn.named_buffers():
        assert torch.equal(buffer, skipped.get_buffer(name)) or rule == "brsf"


@every_rule
@one_of_each
def test_meta_device_and_reset(kind, rule):
    _, theirs = make(kind, rule)
    ours = kind.ours(*kind.sizes, **kind.arguments, rule=rule, device="meta", dtype=torch.float64).to_empty(
        device="cpu"
    )
    for layer in ours, theirs:
        torch.manual_seed(4)
        layer.reset_parameters()
    for name, parameter in theirs.named_parameters():
        assert torch.equal(parameter, ours.get_parameter(name))
    check(kind, ours, theirs)
    with torch.device("meta"):
        empty = kind.ours(*kind.sizes, **kind.arguments, rule=rule, dtype=torch.float64)
    empty.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    check(kind, empty, theirs)


@every_rule
@one_of_each
def test_lazy_layers(kind, rule):
    theirs_class, ours_class = kind.lazily
    torch.manual_seed(0)
    theirs = theirs_class(*kind.sizes[1:], **kind.arguments, dtype=torch.float64)
    torch.manual_seed(0)
    ours = ours_class(*kind.sizes[1:], **kind.arguments, dtype=torch.float64, rule=rule)
    plain = theirs_class(*kind.sizes[1:], **kind.arguments, dtype=torch.float64)
    converted = bf.convert(plain, rule, seed=1)
    loaded = ours_class(*kind.sizes[1:], **kind.arguments, dtype=torch.float64, rule=rule)
    copied = copy.deepcopy(ours)
    assert f"rule={rule!r}" in repr(ours)
    for layer in theirs, ours, copied, converted:
        torch.manual_seed(1)
        layer(kind.input())
    for layer in ours, copied, converted:
        assert type(layer) is kind.ours
        for name, parameter in theirs.named_parameters():
            assert torch.equal(layer.get_parameter(name), parameter)
        check(kind, layer, theirs)
    saved = ours.state_dict()
    b = ours.feedback_weight()
    loaded.load_state_dict(saved, strict=True)
    assert torch.equal(loaded.feedback_weight(), b)
    check(kind, loaded, theirs)
    from_torch = ours_class(*kind.sizes[1:], **kind.arguments, dtype=torch.float64, rule=rule)
    from_torch.load_state_dict(theirs.state_dict(), strict=True)
    check(kind, from_torch, theirs)


def test_lazy_layers_under_direct_feedback():
    model = nn.Sequential(bf.nn.LazyConv2d(4, 3, rule="dfa"), nn.Flatten(), bf.nn.LazyLinear(3, rule="dfa"))
    bf.nn.connect_direct_feedback(model, num_classes=3)
    model(torch.randn(2, 2, 4, 4))
    x = torch.randn(2, 2, 4, 4, requires_grad=True)
    model(x).sum().backward()
    assert model[0].feedback.shape == (3, 2, 3, 3) and model[2].feedback.shape == (3, 16)
    spread = F.conv_transpose2d(torch.ones(2, 3, 2, 2), model[0].feedback)
    assert_close(x.grad, spread)


@every_rule
@one_of_each
def test_no_channels(kind, rule):
    _, outputs, *rest = kind.sizes
    sizes = (0, outputs, *rest)
    shape = (*kind.shape[:-1], 0) if kind.name == "Linear" else (kind.shape[0], 0, *kind.shape[2:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of zero-element tensors, by torch
        ours = kind.ours(*sizes, rule=rule)
        theirs = kind.theirs(*sizes)
    assert [p.shape for p in weights_of(ours).values()] == [p.shape for p in theirs.parameters()]
    try:
        expected = theirs(torch.ones(shape)).shape
    except RuntimeError:
        with pytest.raises(RuntimeError):
            ours(torch.ones(shape))
    else:
        assert ours(torch.ones(shape)).shape == expected


# Errors


@every_rule
@one_of_each
def test_errors_are_of_torchs_types(kind, rule):
    ours, theirs = make(kind, rule)
    wide = list(kind.shape)
    wide[-1 if kind.name == "Linear" else 1] += 1
    shapes = [tuple(wide), (3,), (2, 2)]
    if kind.name != "Linear":
        shapes += [(2,) * (len(kind.shape) + 1), (len(kind.shape) - 1) * (1,)]
    for shape in shapes:
        x = torch.ones(shape, dtype=torch.float64)
        for layer in theirs, ours:
            with pytest.raises(RuntimeError):
                layer(x)
        if ours.rule != "bp" or kind.name == "Linear":
            with pytest.raises(InputError, match="expected"):
                ours(x)
    for dtype in torch.float32, torch.int64:
        for layer in theirs, ours:
            with pytest.raises(RuntimeError):
                layer(kind.input().to(dtype))


@pytest.mark.parametrize(
    ("name", "sizes", "arguments"),
    [
        ("Conv2d", (3, 4, 3), {"groups": 2}),
        ("Conv2d", (3, 4, 3), {"groups": 0}),
        ("Conv2d", (3, 4, 3), {"padding_mode": "mirror"}),
        ("Conv2d", (3, 4, 3), {"padding": "some"}),
        ("Conv2d", (3, 4, 3), {"padding": "same", "stride": 2}),
        ("ConvTranspose2d", (3, 4, 3), {"padding_mode": "reflect"}),
        ("Linear", (-1, 4), {}),
        ("Linear", (3, 4), {"biass": True}),
        ("Conv2d", (3, 4), {}),
    ],
    ids=str,
)
def test_constructors_refuse_as_torchs(name, sizes, arguments):
    with pytest.raises((ValueError, RuntimeError, TypeError)) as expected:
        getattr(nn, name)(*sizes, **arguments)
    with pytest.raises(expected.type):
        getattr(bf.nn, name)(*sizes, **arguments, rule="usf")


@pytest.mark.parametrize("name", ["ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"])
def test_output_size(name):
    dims = int(name[-2])
    sizes, shape = (4, 5, 3), (2, 4, *(3, 4, 2)[:dims])
    torch.manual_seed(0)
    ours = getattr(bf.nn, name)(*sizes, stride=2, padding=1, rule="usf", dtype=torch.float64)
    theirs = getattr(nn, name)(*sizes, stride=2, padding=1, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(shape, dtype=torch.float64)
    through = copy.deepcopy(theirs)
    through.weight.data = ours.feedback_weight()
    for size in [[n * 2 - 1 for n in shape[2:]], [n * 2 for n in shape[2:]], [2, 5, *(n * 2 for n in shape[2:])]]:
        y, _, down, learned = run(ours, x, output_size=size)
        expected, _, _, wanted = run(theirs, x, output_size=size)
        assert_close(y, expected)
        assert_close(down, run(through, x, output_size=size)[2])
        assert_close(learned["weight"], wanted["weight"])
    for layer in ours, theirs:
        with pytest.raises(ValueError, match="output"):
            layer(x, output_size=[50] * dims)


# Copies, files, devices, dtypes


@every_rule
@one_of_each
def test_copies_and_files(kind, rule):
    ours, theirs = make(kind, rule)
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    for again in copy.deepcopy(ours), copy.copy(ours), torch.load(file, weights_only=False), ours.share_memory():
        check(kind, again, theirs)
        assert list(weights_of(again)) == list(dict(theirs.named_parameters()))
    state = kind.ours(*kind.sizes, **kind.arguments, rule=rule, dtype=torch.float64)
    state.load_state_dict(ours.state_dict(), strict=True)
    assert torch.equal(state.feedback_weight(), ours.feedback_weight())
    assert repr(ours) == repr(theirs)[:-1] + f", rule={rule!r})"
    assert ours.to("meta").weight.is_meta


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@every_rule
@one_of_each
def test_other_dtypes(kind, rule, dtype):
    moved, theirs = make(kind, rule, torch.float32)
    replaced = copy.deepcopy(moved)
    moved.to(dtype), theirs.to(dtype)
    for name, parameter in list(replaced.named_parameters()):
        setattr(replaced, name, nn.Parameter(parameter.detach().to(dtype)))
    check(kind, moved, theirs)
    assert moved.feedback is None or moved.feedback.dtype == dtype
    check(kind, replaced, theirs)


# What torch.nn.utils does to a layer


PARAMETRIZATIONS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
@every_rule
@one_of_each
def test_parametrised(kind, rule, name):
    ours, theirs = make(kind, rule)
    state = {name: value.clone() for name, value in theirs.state_dict().items()}
    for layer in ours, theirs:
        torch.manual_seed(2)
        PARAMETRIZATIONS[name](layer)
    converted = bf.convert(theirs, rule, seed=9)
    for layer in ours, converted:
        layer.load_state_dict(theirs.state_dict(), strict=True)
        for _ in range(2):  # spectral_norm takes one step of its power iteration in each pass
            check(kind, layer, theirs)
        if rule in ("usf", "brsf", "frsf"):
            assert torch.equal(layer.feedback_weight().sign(), theirs.eval().weight.sign())
            theirs.train()
    parametrize.remove_parametrizations(converted, "weight")
    parametrize.remove_parametrizations(theirs, "weight")
    assert type(converted) is kind.ours and state.keys() == theirs.state_dict().keys()
    check(kind, converted, theirs)


@every_rule
@one_of_each
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_hooks_that_compute_the_weight(kind, rule):
    def norm(layer):
        nn.utils.weight_norm(layer)

    def spectral(layer):
        torch.manual_seed(2)
        nn.utils.spectral_norm(layer)

    def pruned(layer):
        prune.l1_unstructured(layer, "weight", amount=0.5)

    for change in norm, spectral, pruned:
        ours, theirs = make(kind, rule)
        change(ours), change(theirs)
        converted = bf.convert(theirs, rule, seed=9)
        for layer in ours, converted:
            layer.load_state_dict(theirs.state_dict(), strict=True)
            layer(kind.input()), theirs(kind.input())
            # The weight of the last pass; a power iteration has converged or is the same in both.
            layer.eval(), theirs.eval()
            check(kind, layer, theirs)
            layer.train(), theirs.train()
    prune.remove(theirs, "weight"), prune.remove(converted, "weight")
    check(kind, converted, theirs)
    if rule in ("usf", "brsf", "frsf"):
        assert (converted.feedback_weight() == 0).sum() == converted.weight.numel() // 2


@every_rule
@pytest.mark.parametrize("kind", [KINDS["conv2d"], KINDS["transpose2d"]], ids=["conv", "transpose"])
def test_fusion(kind, rule):
    ours, theirs = make(kind, rule)
    norm = nn.BatchNorm2d(5, dtype=torch.float64).eval()
    norm.running_mean.normal_(), norm.running_var.uniform_(1, 2)
    transpose = kind.name.startswith("ConvT")
    fused, plain = (fusion.fuse_conv_bn_eval(layer.eval(), norm, transpose=transpose) for layer in (ours, theirs))
    check(kind, fused, plain)


@every_rule
@one_of_each
def test_hooks_initialisation_and_tied_weights(kind, rule):
    ours, theirs = make(kind, rule)
    seen: dict[str, list[Any]] = {"ours": [], "theirs": []}
    for name, layer in (("ours", ours), ("theirs", theirs)):
        log = seen[name]
        layer.register_forward_pre_hook(lambda module, args, log=log: log.append(args[0].shape))
        layer.register_forward_hook(lambda module, args, y, log=log: log.append(y.shape))
        layer.register_full_backward_pre_hook(lambda module, grad, log=log: log.append(grad[0].shape))
        layer.register_full_backward_hook(lambda module, down, grad, log=log: log.append(down[0].shape))
        torch.manual_seed(6)
        nn.Sequential(layer).apply(lambda m: nn.init.normal_(m.weight) if hasattr(m, "weight") else None)
    check(kind, ours, theirs)
    assert len(seen["ours"]) == 4 and seen["ours"] == seen["theirs"]
    twin = kind.ours(*kind.sizes, **kind.arguments, rule=rule, dtype=torch.float64)
    twin.weight, twin.bias = ours.weight, ours.bias
    learned = [*bf.nn.learned_feedback(nn.ModuleList([ours, twin]))]
    assert len(learned) == 2 * (rule == "kp")
    assert len(list(nn.ModuleList([ours, twin]).parameters())) == len(list(theirs.parameters())) + len(learned)
    check(kind, twin, theirs)


@every_rule
@one_of_each
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning")
def test_torchscript(kind, rule):
    ours, theirs = make(kind, rule)
    for recording in torch.no_grad, torch.enable_grad:
        file = io.BytesIO()
        with recording():
            torch.jit.save(torch.jit.trace(ours, kind.input()), file)
        file.seek(0)
        loaded = torch.jit.load(file)
        assert_close(loaded(kind.input()), theirs(kind.input()))
    if rule != "brsf":  # each run of the recording draws
        assert_close(run(loaded, kind.input())[2], run(ours, kind.input())[2])
    with torch.no_grad():
        graph = torch.jit.trace(ours.eval(), kind.input()).inlined_graph
    assert not any(node.kind().startswith("bionas") for node in graph.nodes())
    with pytest.raises(InputError, match=r"torch\.jit\.script: expected"):
        torch.jit.script(nn.Sequential(ours))


@every_rule
@one_of_each
def test_compiled_and_differentiated_twice(kind, rule):
    torch._dynamo.reset()
    ours, theirs = make(kind, rule)
    x = kind.input().requires_grad_()
    b = ours.feedback_weight()
    (down,) = torch.autograd.grad(ours(x).square().sum(), x, create_graph=True)
    # ∂ of ½‖δ_in‖²: δ_in = 2 Bᵀ y(W), with B a constant
    weight = theirs.weight.detach().requires_grad_()
    y = torch.func.functional_call(theirs, {"weight": weight}, (x,))
    at = x.detach().requires_grad_()
    through = kind.through(theirs, at, b if rule != "bp" else weight)
    (expected,) = torch.autograd.grad(through, at, 2 * y, create_graph=True)
    assert_close(down, expected)
    actual = torch.autograd.grad(down.square().sum(), ours.weight)[0]
    assert_close(actual, torch.autograd.grad(expected.square().sum(), weight)[0])
    compiled = torch.compile(copy.deepcopy(ours), fullgraph=True, backend="aot_eager")
    for a, e in zip(run(compiled, kind.input())[:3], run(ours, kind.input())[:3], strict=True):
        assert_close(a, e)
