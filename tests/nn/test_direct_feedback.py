"""Direct feedback alignment against its formula, written out by hand in float64."""

from __future__ import annotations

import copy
from collections import namedtuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bionas_fast import InputError, true_gradients
from bionas_fast.nn import Conv1d, Conv2d, Conv3d, Linear, connect_direct_feedback
from bionas_fast.nn.padding import pad
from bionas_fast.ops.feedback import direct_conv, direct_linear
from helpers.tolerances import assert_close

CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CLASSES = 5

GEOMETRIES = {  # input, kernel, geometry
    "1d": ((2, 3, 9), (3,), {"stride": [2], "padding": [1], "dilation": [1]}),
    "2d": ((2, 3, 7, 6), (3, 3), {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1]}),
    "2d-same": ((2, 3, 7, 6), (3, 3), {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1]}),
    "2d-stride-leaves-rest": ((2, 3, 8, 9), (3, 2), {"stride": [3, 2], "padding": [0, 1], "dilation": [1, 2]}),
    "3d": ((1, 2, 5, 4, 6), (3, 2, 3), {"stride": [1, 2, 1], "padding": [1, 0, 1], "dilation": [1, 1, 1]}),
}


@pytest.mark.parametrize(("shape", "kernel", "geometry"), GEOMETRIES.values(), ids=GEOMETRIES)
def test_conv_spreads_the_error_over_all_positions(shape, kernel, geometry):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    b, e = torch.randn(CLASSES, shape[1], *kernel, dtype=torch.float64), torch.randn(shape[0], CLASSES).double()
    y = CONVS[len(kernel)](x, b, **geometry)  # as if B were the weight of a convolution to the classes
    token = direct_conv(x, b, y.shape[2:], **geometry)
    assert torch.equal(token, torch.zeros_like(e))
    wanted = torch.autograd.grad(y, x, e.reshape(*e.shape, *[1] * len(kernel)).expand_as(y))
    assert_close(torch.autograd.grad(token, x, e)[0], *wanted)
    arguments = (x, b, list(y.shape[2:]), *geometry.values())
    torch.library.opcheck(torch.ops.bionas_fast.direct_conv.default, arguments)


@pytest.mark.parametrize("between", [(), (4,), (4, 2)], ids=["rank2", "rank3", "rank4"])
def test_linear_sends_the_error_to_every_position(between):
    torch.manual_seed(0)
    x = torch.randn(3, *between, 6, dtype=torch.float64, requires_grad=True)
    b, e = torch.randn(CLASSES, 6, dtype=torch.float64), torch.randn(3, CLASSES, dtype=torch.float64)
    token = direct_linear(x, b)
    down = torch.einsum("nk,ki->ni", e, b).reshape(3, *[1] * len(between), 6).expand_as(x)
    assert torch.equal(token, torch.zeros_like(e))
    assert_close(torch.autograd.grad(token, x, e)[0], down)
    torch.library.opcheck(torch.ops.bionas_fast.direct_linear.default, (x, b))


@pytest.mark.parametrize(
    ("init", "a"), [("default", 72**-0.5), ("xavier", (6 / (72 + 90)) ** 0.5)], ids=["default", "xavier"]
)
def test_feedback_has_the_law_of_a_layer_to_the_classes(init, a):
    b = Conv2d(8, 6, 3, groups=2, rule="dfa", num_classes=10, feedback_init=init, seed=0).feedback_weight()
    assert b.shape == (10, 8, 3, 3)
    assert 0.99 * a < b.abs().max() <= a
    assert b.mean().abs() < 0.1 * a and b.std().item() == pytest.approx(a / 3**0.5, rel=0.05)


# Networks


class Network(nn.Module):
    """conv → tanh → conv, stride 2 → tanh → linear → tanh → linear."""

    def __init__(self, rule: str = "dfa", **arguments) -> None:
        super().__init__()
        self.conv1 = Conv2d(2, 4, 3, rule=rule, **arguments)
        self.conv2 = Conv2d(4, 6, 3, stride=2, padding=1, groups=2, rule=rule, **arguments)
        self.hidden = Linear(54, 7, rule=rule, **arguments)
        self.head = Linear(7, CLASSES, rule=rule, **arguments)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x).tanh()).tanh()
        return self.head(self.hidden(x.flatten(1)).tanh())


def network(**arguments) -> Network:
    torch.manual_seed(0)
    return connect_direct_feedback(Network(**arguments), CLASSES).double()


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 2, 8, 8, generator=generator, dtype=torch.float64)
    return x.requires_grad_(), torch.randint(CLASSES, (3,), generator=generator)


def by_hand(model: Network, x: Tensor, target: Tensor, signal=lambda e, onehot: e, scale=None) -> dict[str, Tensor]:
    """The gradients of cross-entropy: e = ∂L/∂logits at the top, B e below every layer, tanh' in between.

    ``signal``, of softmax - onehot and onehot, is what the layers below receive; ``scale``, the weight of each sample,
    is 1/N by default.
    """
    scale = 1 / len(x) if scale is None else scale
    x = x.detach()
    p = {name: value.detach() for name, value in model.state_dict().items()}
    h1 = F.conv2d(x, p["conv1.weight"], p["conv1.bias"]).tanh()
    h2 = F.conv2d(h1, p["conv2.weight"], p["conv2.bias"], stride=2, padding=1, groups=2).tanh()
    h3 = F.linear(h2.flatten(1), p["hidden.weight"], p["hidden.bias"]).tanh()
    logits = F.linear(h3, p["head.weight"], p["head.bias"])
    onehot = F.one_hot(target, CLASSES).to(logits)
    e = (logits.softmax(1) - onehot) * scale
    below = signal(logits.softmax(1) - onehot, onehot) * scale

    def spread(positions: int) -> Tensor:
        return below[:, :, None, None].expand(-1, -1, positions, positions)

    d3 = (below @ p["head.feedback"]) * (1 - h3**2)
    d2 = (below @ p["hidden.feedback"]).reshape(h2.shape) * (1 - h2**2)
    down = F.conv_transpose2d(spread(3), p["conv2.feedback"], stride=2, padding=1, output_padding=1)
    d1 = down * (1 - h1**2)
    return {
        "x": F.conv_transpose2d(spread(6), p["conv1.feedback"]),
        "conv1.weight": torch.nn.grad.conv2d_weight(x, p["conv1.weight"].shape, d1),
        "conv1.bias": d1.sum((0, 2, 3)),
        "conv2.weight": torch.nn.grad.conv2d_weight(h1, p["conv2.weight"].shape, d2, stride=2, padding=1, groups=2),
        "conv2.bias": d2.sum((0, 2, 3)),
        "hidden.weight": d3.t() @ h2.flatten(1),
        "hidden.bias": d3.sum(0),
        "head.weight": e.t() @ h3,
        "head.bias": e.sum(0),
    }


def gradients(model: nn.Module, x: Tensor, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(("x", *names), torch.autograd.grad(loss, (x, *parameters)), strict=True))


def check(actual: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert actual.keys() == wanted.keys()
    for name in wanted:
        assert_close(actual[name], wanted[name])


@pytest.mark.parametrize("init", ["default", "xavier"])
def test_a_network_follows_the_formula(init):
    model, (x, target) = network(feedback_init=init), batch()
    logits = model(x)
    check(gradients(model, x, F.cross_entropy(logits, target)), by_hand(model, x, target))
    plain = Network("bp").double()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.endswith("feedback")})
    assert torch.equal(logits, plain(x))


def test_an_input_without_gradient_changes_nothing_else():
    model, (x, target) = network(), batch()
    wanted = by_hand(model, x, target)
    F.cross_entropy(model(x.detach()), target).backward()
    check({"x": wanted["x"], **{name: p.grad for name, p in model.named_parameters()}}, wanted)


def test_two_passes_may_be_in_flight():
    model, (x, target), (other, its_target) = network(), batch(1), batch(2)
    losses = F.cross_entropy(model(x), target), F.cross_entropy(model(other), its_target)
    check(gradients(model, x, losses[0]), by_hand(model, x, target))
    check(gradients(model, other, losses[1]), by_hand(model, other, its_target))


def test_copies_are_independent():
    model, (x, target) = network(), batch()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in (*twin.parameters(), *twin.buffers()):
            p.mul_(0.5)
    losses = F.cross_entropy(model(x), target), F.cross_entropy(twin(x), target)
    for it, loss in zip((model, twin), losses, strict=True):
        check(gradients(it, x, loss), by_hand(it, x, target))


def test_true_gradients_are_autograds():
    model, (x, target) = network(), batch()
    plain = Network("bp").double()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.endswith("feedback")})
    with true_gradients(model):
        actual = gradients(model, x, F.cross_entropy(model(x), target))
    check(actual, gradients(plain, x, F.cross_entropy(plain(x), target)))
    check(gradients(model, x, F.cross_entropy(model(x), target)), by_hand(model, x, target))


def test_compiled_without_a_graph_break():
    torch._dynamo.reset()
    model, (x, target) = network(), batch()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        check(gradients(model, x, F.cross_entropy(compiled(x), target)), by_hand(model, x, target))


def test_gradient_checkpointing():
    model, (x, target) = network(), batch()
    hidden = model.hidden.forward
    model.hidden.forward = lambda x: checkpoint(hidden, x, use_reentrant=False)
    check(gradients(model, x, F.cross_entropy(model(x), target)), by_hand(model, x, target))


def test_autocast_keeps_gradients_in_float32():
    model, (x, target) = network().float(), batch()
    x = x.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
        loss = F.cross_entropy(logits, target)
    assert logits.dtype == torch.bfloat16
    wanted = by_hand(model, x, target)
    for name, gradient in gradients(model, x, loss).items():
        assert_close(gradient, wanted[name], torch.bfloat16)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: Conv1d(4, 6, 3, rule="dfa", groups=2),
        lambda: Conv2d(4, 4, (2, 3), rule="dfa", groups=4, padding="same"),
        lambda: Conv3d(4, 2, 2, rule="dfa", groups=2, padding_mode="circular", padding=1),
    ],
    ids=["1d-grouped", "2d-depthwise-same", "3d-circular"],
)
def test_grouped_convolutions_learn(layer):
    torch.manual_seed(0)
    layer = layer()
    dims = layer.weight.dim() - 2
    model = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(CLASSES))
    x = torch.randn(2, 4, *[5] * dims, requires_grad=True)
    model(x.detach())
    logits = connect_direct_feedback(model, CLASSES)(x)
    assert layer.feedback.shape == (CLASSES, 4, *layer.kernel_size)
    e = torch.randn_like(logits)
    padded, left = pad(layer, x)
    positions = layer(x.detach()).shape[2:]
    y = CONVS[dims](padded, layer.feedback, padding=left)
    wanted = torch.autograd.grad(y, x, e.reshape(*e.shape, *[1] * dims).expand(*e.shape, *positions))
    assert_close(torch.autograd.grad(logits, x, e)[0], *wanted)


# Signals in place of the error

SIGNALS = {"drtp": lambda e, onehot: -onehot, "sdfa": lambda e, onehot: e.sign()}
every_signal = pytest.mark.parametrize(("rule", "signal"), SIGNALS.items(), ids=SIGNALS)


@every_signal
def test_the_sum_over_samples_sends_the_signal_itself(rule, signal):
    model, (x, target) = network(rule=rule), batch()
    loss = F.cross_entropy(model(x), target, reduction="sum")
    check(gradients(model, x, loss), by_hand(model, x, target, signal, scale=1))
    with true_gradients(model):
        actual = gradients(model, x, F.cross_entropy(model(x), target))
    plain = Network("bp").double()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.endswith("feedback")})
    check(actual, gradients(plain, x, F.cross_entropy(plain(x), target)))


@every_signal
def test_signals_have_the_weight_of_their_sample_in_the_loss(rule, signal):
    """1/N in the mean; a factor of the loss; weights of classes; in a checkpoint, and in a compiled graph."""
    model, (x, target) = network(rule=rule), batch()
    check(gradients(model, x, F.cross_entropy(model(x), target)), by_hand(model, x, target, signal))
    weights = torch.rand(CLASSES, dtype=torch.float64) + 0.5
    loss = 2**16 * F.cross_entropy(model(x), target, weight=weights)
    scale = 2**16 * (weights[target] / weights[target].sum())[:, None]
    check(gradients(model, x, loss), by_hand(model, x, target, signal, scale))
    model.requires_grad_().zero_grad()
    hidden = model.hidden.forward
    model.hidden.forward = lambda x: checkpoint(hidden, x, use_reentrant=True)
    F.cross_entropy(model(x), target).backward()
    wanted = by_hand(model, x, target, signal)
    check({"x": x.grad, **{name: p.grad for name, p in model.named_parameters()}}, wanted)
    del model.hidden.forward
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    check(gradients(model, x, F.cross_entropy(compiled(x), target)), wanted)


@every_signal
def test_signals_of_dense_logits_are_those_of_their_positions(rule, signal):
    torch.manual_seed(0)
    model = nn.Sequential(Conv1d(2, CLASSES, 1, rule=rule, bias=False)).double()
    x, target = torch.randn(2, 2, 6).double().requires_grad_(), torch.randint(CLASSES, (2, 6))
    logits = connect_direct_feedback(model, CLASSES)(x)
    onehot = F.one_hot(target, CLASSES).double()
    found = signal(logits.detach().softmax(1).movedim(1, 2) - onehot, onehot) / 12  # [N, positions, classes]
    down = torch.einsum("npc,ci->ni", found, model[0].feedback[..., 0])
    (actual,) = torch.autograd.grad(F.cross_entropy(logits, target), x)
    assert_close(actual, down[:, :, None].expand_as(x))


@every_signal
def test_a_sample_that_is_certain_or_ignored(rule, signal):
    """p rounds to 1, so that the error at the target is 0, and the signal is not; an ignored sample has none."""
    model = nn.Sequential(Linear(CLASSES, CLASSES, rule=rule, bias=False), nn.Identity())
    connect_direct_feedback(model, CLASSES)
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(CLASSES))
    x = torch.zeros(3, CLASSES)
    x[0, 1] = 30
    logits = model(x.requires_grad_())
    logits.retain_grad()
    F.cross_entropy(logits, torch.tensor([1, -100, 2]), reduction="sum").backward()
    assert logits.grad[0, 1] == 0 and logits.grad[0, 0] > 0
    onehot = F.one_hot(torch.tensor([1, 0, 2]), CLASSES).double()
    wanted = signal(logits.detach().double().softmax(1) - onehot, onehot)
    wanted[1] = 0
    assert_close(x.grad, (wanted @ model[0].feedback.double()).float())


@every_signal
def test_an_error_of_several_targets_is_refused(rule, signal):
    """At once on the CPU; by NaN where a step must not wait for a value, as in a compiled graph."""
    model, (x, target) = network(rule=rule), batch()
    mixed = (F.one_hot(target, CLASSES) + F.one_hot((target + 1) % CLASSES, CLASSES)).double() / 2
    with pytest.raises(InputError, match=r"one target per sample.*no label smoothing, mixup"):
        gradients(model, x, F.cross_entropy(model(x), mixed))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = gradients(model, x, F.cross_entropy(compiled(x), mixed))
    assert found["x"].isnan().all() and found["hidden.weight"].isnan().all()
    assert found["head.weight"].isfinite().all()
    single = connect_direct_feedback(nn.Sequential(Linear(3, 1, rule=rule)), 1)
    with pytest.raises(InputError, match="logits of one class"):
        single(torch.ones(2, 3, requires_grad=True)).sum().backward()


# Outputs and mistakes

Named = namedtuple("Named", "logits auxiliary")


@pytest.mark.parametrize(
    "wrap",
    [lambda y: (y, "rest"), lambda y: [y, "rest"], lambda y: Named(y, "rest")],
    ids=["tuple", "list", "namedtuple"],
)
def test_logits_may_come_first_in_a_tuple(wrap):
    class Wrapped(Network):
        def forward(self, x):
            return wrap(super().forward(x))

    torch.manual_seed(0)
    model, (x, target) = connect_direct_feedback(Wrapped(), CLASSES).double(), batch()
    output = model(x)
    assert type(output) is type(wrap(x)) and output[1] == "rest"
    check(gradients(model, x, F.cross_entropy(output[0], target)), by_hand(model, x, target))


@pytest.mark.parametrize("nest", [lambda x: {"x": x}, lambda x: [x]], ids=["dict", "list"])
def test_inputs_may_be_nested(nest):
    class Nested(Network):
        def forward(self, inputs):
            return super().forward(inputs["x"] if isinstance(inputs, dict) else inputs[0])

    torch.manual_seed(0)
    model, (x, target) = connect_direct_feedback(Nested(), CLASSES).double(), batch()
    check(gradients(model, x, F.cross_entropy(model(nest(x)), target)), by_hand(model, x, target))


def test_an_output_that_holds_no_logits_is_refused():
    model = connect_direct_feedback(nn.Sequential(Linear(3, 2, rule="dfa"), nn.Identity()), 2)
    model[1].forward = lambda y: {"scores": y}
    with pytest.raises(InputError, match=r"logits: expected .*, got dict with scores; name them: .*logits="):
        model(torch.ones(1, 3, requires_grad=True))


def test_an_unconnected_layer_says_how_to_connect_it():
    x = torch.ones(2, 3, requires_grad=True)
    for layer in Linear(3, 2, rule="dfa"), Linear(3, 2, rule="dfa", num_classes=5):
        with pytest.raises(InputError, match=r"call bionas_fast\.nn\.connect_direct_feedback\(model"):
            layer(x)
        assert torch.equal(layer(x.detach()), F.linear(x.detach(), layer.weight, layer.bias))
    with pytest.raises(InputError, match="connect_direct_feedback"):
        Linear(3, 2, rule="dfa").feedback_weight()


def test_the_number_of_classes_must_be_known_and_right():
    with pytest.raises(InputError, match="'dfa' needs num_classes, the number of logits"):
        connect_direct_feedback(Network())
    with pytest.raises(InputError, match="num_classes: expected at least 1, got 0"):
        Linear(3, 2, rule="dfa", num_classes=0)
    model, (x, _) = connect_direct_feedback(Network(num_classes=4)).double(), batch()
    with pytest.raises(
        InputError, match=r"num_classes: .* 4 classes, .* logits of shape \[3, 5\]; call .*num_classes=5\)"
    ):
        model(x)


def test_a_layer_run_outside_its_model_is_refused():
    model, (x, target) = network(), batch()
    with pytest.raises(InputError, match="outside the forward pass of the model it is connected to"):
        model.conv1(x)
    check(gradients(model, x, F.cross_entropy(model(x), target)), by_hand(model, x, target))


def test_there_is_no_angle_to_a_feedback_of_another_shape():
    for metric in (network().head.feedback_angle, network().head.feedback_norm_ratio):
        with pytest.raises(InputError, match="no B of the weight's shape"):
            metric()
    with pytest.raises(InputError, match="needs a batch"):
        network().hidden(torch.ones(54, dtype=torch.float64, requires_grad=True))
