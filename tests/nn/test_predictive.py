"""The predictive-coding convolution against recordings, its formula as matrices, and the energy it descends."""

from __future__ import annotations

import copy
import io
import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bionas_fast import InputError, true_gradients
from bionas_fast.nn.predictive import PredictiveConv2d
from helpers.oracles.data import assert_close as assert_close_to_recording
from helpers.oracles.data import cases, load
from helpers.tolerances import assert_close

RECORDED = 1e-5  # suggested by the recordings, relative to the largest entry
GEOMETRIES = {  # arguments of the convolution, the shape of an input, that of the output
    "same": ((2, 3, 3), {"padding": 1}, (2, 2, 5, 4), (2, 3, 5, 4)),
    "valid": ((2, 3, (2, 3)), {}, (2, 2, 5, 6), (2, 3, 4, 4)),
    "1x1": ((3, 2, 1), {}, (2, 3, 3, 4), (2, 2, 3, 4)),
    "stride-even": ((2, 3, 3), {"stride": 2, "padding": 1}, (2, 2, 6, 4), (2, 3, 3, 2)),
    "stride-odd": ((2, 3, 3), {"stride": 2, "padding": 1}, (2, 2, 5, 7), (2, 3, 3, 4)),
    "stride-beyond-kernel": ((2, 3, 1), {"stride": (3, 2)}, (2, 2, 6, 5), (2, 3, 2, 3)),
    "dilation": ((2, 2, 3), {"padding": 2, "dilation": 2}, (2, 2, 5, 6), (2, 2, 5, 6)),
    "dilation-and-stride": ((2, 2, 3), {"padding": 2, "dilation": 2, "stride": 2}, (2, 2, 7, 6), (2, 2, 4, 3)),
    "dilation-3-stride-2": ((1, 2, (3, 2)), {"padding": 3, "dilation": 3, "stride": 2}, (2, 1, 7, 6), (2, 2, 4, 5)),
    "groups": ((4, 2, 3), {"padding": 1, "groups": 2}, (2, 4, 4, 3), (2, 2, 4, 3)),
    "depthwise-stride": ((3, 3, 5), {"padding": 2, "groups": 3, "stride": 2}, (2, 3, 5, 4), (2, 3, 3, 2)),
}
every_geometry = pytest.mark.parametrize(
    ("sizes", "arguments", "shape", "output_shape"), GEOMETRIES.values(), ids=GEOMETRIES
)


def make(sizes, **arguments) -> PredictiveConv2d:
    torch.manual_seed(0)
    return PredictiveConv2d(*sizes, **{"dtype": torch.float64, **arguments})


def batch(shape, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def weight_matrix(layer: PredictiveConv2d, weight: Tensor, shape, output_shape) -> Tensor:
    """The convolution as a matrix, [C_out·H'·W', C_in·H·W], one entry after the other."""
    (_, channels, height, width), (_, outputs, rows, columns) = shape, output_shape
    matrix = torch.zeros(outputs, rows, columns, channels, height, width, dtype=torch.float64)
    _, inner, kernel_height, kernel_width = weight.shape
    for o, i, j, c, a, b in itertools.product(
        *map(range, (outputs, rows, columns, inner, kernel_height, kernel_width))
    ):
        channel = o // (outputs // layer.groups) * inner + c
        y = i * layer.stride[0] - layer.padding[0] + a * layer.dilation[0]
        x = j * layer.stride[1] - layer.padding[1] + b * layer.dilation[1]
        if 0 <= y < height and 0 <= x < width:
            matrix[o, i, j, channel, y, x] = weight[o, c, a, b]
    return matrix.view(outputs * rows * columns, -1)


def settle(layer: PredictiveConv2d, x: Tensor, output_shape, beta: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The states r and the errors e at every step, [N, C_out·H'·W'] and [N, C_in·H·W], by the written formula.

    beta: [C_out]
    """
    up = weight_matrix(layer, layer.weight.detach(), x.shape, output_shape)
    down = up if layer.tied else weight_matrix(layer, layer.feedback.detach(), x.shape, output_shape)
    positions = output_shape[2] * output_shape[3]
    x, beta = x.flatten(1), beta.repeat_interleave(positions)
    r = x @ up.T + (0 if layer.bias is None else layer.bias.detach().repeat_interleave(positions))
    r0 = r = r.clamp_min(0) if layer.activation == "relu" else r
    states, errors = [], []
    for _ in range(layer.steps + 1):
        e = x - r @ down
        e = e.clamp_min(0) if layer.rectify_error else e
        states.append(r)
        errors.append(e)
        if layer.normalize_error:
            e = e / (e.square().mean(1, keepdim=True).sqrt() + 1e-5)
        drive, g = e @ up.T, 1
        if layer.gate is not None:
            both = torch.cat([r, drive], 1).unflatten(1, (-1, positions))
            g = torch.sigmoid(torch.einsum("oc,ncp->nop", layer.gate.weight.detach().flatten(1), both)).flatten(1)
        r = r + g * beta * (drive - layer.decay * (r - r0))
    return states, errors


# Recordings


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", cases("pcn_local"))
def test_recorded_block(case, dtype):
    arrays, info = load("pcn_local", case)
    arrays, a = {name: array.to(dtype) for name, array in arrays.items()}, info["arguments"]

    def block(steps):
        layer = PredictiveConv2d(
            a["in_channels"],
            a["out_channels"],
            a["kernel"],
            a["stride"],
            a["padding"],
            steps=steps,
            step_size="learned",
            tied=False,
            rectify_error=True,
            bypass=True,
            dtype=dtype,
        )
        weights = {"weight": "ff_weight", "feedback": "fb_weight", "bypass.weight": "bypass_weight", "b0": "b0"}
        layer.load_state_dict({ours: arrays[theirs] for ours, theirs in weights.items()})
        return layer, weights

    layer, weights = block(a["cls"])
    x = arrays["x"].clone().requires_grad_()
    output = layer(x)
    output.backward(arrays["grad_output"])
    assert_close_to_recording(output, arrays["output"], RECORDED, "output")
    assert_close_to_recording(x.grad, arrays["grad_x"], RECORDED, "x")
    parameters = dict(layer.named_parameters())
    for ours, theirs in weights.items():
        if f"grad_{theirs}" in arrays:
            assert_close_to_recording(parameters[ours].grad, arrays[f"grad_{theirs}"], RECORDED, ours)
        else:
            assert a["cls"] == 0 and parameters[ours].grad is None
    bypass = F.conv2d(arrays["x"], arrays["bypass_weight"])
    for steps, state in enumerate(arrays["states"]):
        assert_close_to_recording(block(steps)[0](arrays["x"]) - bypass, state, RECORDED, f"state {steps}")


# The formula


@pytest.mark.parametrize(
    "options",
    [
        {"step_size": 0.3},
        {"step_size": 0.3, "decay": 0.4, "bias": True, "activation": "identity"},
        {"step_size": "learned", "tied": False, "rectify_error": True},
        {"step_size": "learned", "gated": True, "normalize_error": True, "decay": 0.2, "bias": True},
    ],
    ids=["plain", "decay", "untied", "gated"],
)
@every_geometry
def test_the_formula_as_matrices(sizes, arguments, shape, output_shape, options):
    layer, x = make(sizes, **arguments, **options), batch(shape)
    if layer.b0 is not None:
        torch.nn.init.uniform_(layer.b0, -1.5, 0.5)  # for some channels the step is 0
    beta = torch.full((sizes[1],), 0.3, dtype=x.dtype) if layer.b0 is None else (layer.b0.detach() + 1).clamp_min(0)
    states, errors = settle(layer, x, output_shape, beta)
    output = layer(x)
    assert output.shape == output_shape
    assert_close(output.flatten(1), states[-1])
    assert len(states) == 4 and not torch.allclose(states[-1], states[0])
    wanted = [
        (e.square().sum() + layer.decay * (r - states[0]).square().sum()) / (2 * len(x))
        for r, e in zip(states, errors, strict=True)
    ]
    assert_close(layer.energy(x), torch.stack(wanted))


def test_the_adaptive_step_is_divided_by_sigma_squared():
    layer, x = make((2, 3, 3), padding=1, stride=2).eval(), batch((2, 2, 5, 4))
    torch.nn.init.uniform_(layer.b0, -1.5, 1)
    assert layer.direction.norm().item() == pytest.approx(1)
    sigma_squared = F.conv2d(layer.direction, layer.weight, stride=2, padding=2).square().sum().detach()
    exact = 2 / layer.stability_bound()
    assert 0.9 * exact < sigma_squared < exact
    beta = (layer.b0.detach() + 1).clamp_min(0) / sigma_squared
    assert_close(layer(x).flatten(1), settle(layer, x, (2, 3, 3, 2), beta)[0][-1])


def test_norms_and_bypass():
    layer, x = make((2, 3, 3), stride=2, padding=1, input_norm=True, output_norm=True, bypass=True), batch((4, 2, 7, 6))
    plain = make((2, 3, 3), stride=2, padding=1)
    plain.load_state_dict(layer.state_dict(), strict=False)
    normal = F.batch_norm(x, None, None, training=True)
    wanted = F.batch_norm(plain(normal), None, None, training=True)
    assert_close(layer(x), wanted + F.conv2d(x, layer.bypass.weight, stride=2))
    with torch.no_grad():
        layer.input_norm.running_mean.fill_(0.5)
    inner = F.batch_norm(x, layer.input_norm.running_mean, layer.input_norm.running_var)
    plain.load_state_dict(layer.state_dict(), strict=False)
    assert_close(layer.energy(x), plain.energy(inner))


def test_images_of_a_batch_do_not_meet():
    layer, x = make((2, 3, 3), normalize_error=True, gated=True).eval(), batch((3, 2, 5, 4))
    assert_close(layer(x), torch.cat([layer(image[None]) for image in x]))
    assert layer(x[:0]).shape == (0, 3, 3, 2)


# Gradients


@pytest.mark.parametrize(
    "options",
    [
        {"step_size": 0.4, "decay": 0.3, "bias": True, "activation": "identity"},
        {"decay": 0.1},
        {"gated": True, "tied": False, "step_size": "learned", "bypass": True},
        {"normalize_error": True, "step_size": 0.5, "input_norm": True, "output_norm": True},
    ],
    ids=["constant", "adaptive", "untied", "normalised"],
)
def test_gradcheck(options):
    layer, x = make((2, 2, 3), stride=2, padding=1, **options).eval(), batch((2, 2, 5, 4))
    names = [name for name, _ in layer.named_parameters()]

    def call(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), x)

    assert torch.autograd.gradcheck(call, (x.requires_grad_(), *layer.parameters()))


@every_geometry
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_local_credit_of_the_weight(sizes, arguments, shape, output_shape, tied):
    layer, x = make(sizes, **arguments, step_size=0.4, decay=0.1, tied=tied, credit="local"), batch(shape)
    output = layer(x)
    (7 * output).square().sum().backward()
    states, errors = settle(layer, x, output_shape, torch.full((sizes[1],), 0.4, dtype=x.dtype))
    assert_close(output.flatten(1), states[-1])
    e, r = (values[-1].unflatten(1, size[1:]) for values, size in ((errors, shape), (states, output_shape)))
    # corr(e, r), tap by tap: which error stands where the tap looks, times the state it feeds.
    padded = F.pad(e, (layer.padding[1],) * 2 + (layer.padding[0],) * 2)
    patches = F.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)
    patches = patches.view(len(x), layer.groups, -1, math.prod(output_shape[2:]))
    states_by_group = r.flatten(2).unflatten(1, (layer.groups, -1))
    correlation = torch.einsum("ngdp,ngop->god", patches, states_by_group).reshape(layer.weight.shape)
    assert_close(layer.weight.grad, -correlation / len(x))
    if not tied:
        assert_close(layer.feedback.grad, layer.weight.grad)
        assert layer.feedback.grad.data_ptr() != layer.weight.grad.data_ptr()


def test_local_credit_is_the_gradient_of_the_energy_at_the_settled_state():
    layer, x = make((2, 3, 3), padding=1, step_size=0.4, credit="local"), batch((2, 2, 5, 4))
    output = layer(x)
    output.sum().backward()
    weight = layer.weight.detach().requires_grad_()
    energy = (x - F.conv_transpose2d(output.detach(), weight, padding=1)).square().sum() / (2 * len(x))
    assert_close(layer.energy(x)[-1], energy.detach())
    assert_close(layer.weight.grad, torch.autograd.grad(energy, weight)[0])


def test_local_credit_descends_the_energy():
    layer, x = make((2, 4, 3), padding=1, credit="local"), batch((4, 2, 6, 6))
    optimizer, energies = torch.optim.SGD([layer.weight], lr=0.005), []
    for _ in range(20):
        optimizer.zero_grad()
        layer(x).sum().backward()
        optimizer.step()
        energies.append(layer.energy(x)[-1].item())
    assert energies[-1] < 0.9 * energies[0]


def test_local_credit_sends_the_loss_through_the_first_and_the_last_step():
    options = {"padding": 1, "gated": True, "bias": True, "decay": 0.1, "activation": "identity"}
    layer, x = make((2, 3, 3), credit="local", **options).eval(), batch((2, 2, 5, 4)).requires_grad_()
    unrolled = make((2, 3, 3), **options).eval()
    names = ["x", *(name for name, _ in layer.named_parameters())]

    def gradients(module, steps):
        module.steps = steps
        output = module(x)
        return dict(zip(names, torch.autograd.grad(output.square().sum(), (x, *module.parameters())), strict=True))

    for name, gradient in gradients(layer, 1).items():  # with one step nothing is left out
        if name != "weight":
            assert_close(gradient, gradients(unrolled, 1)[name])
    for name, gradient in gradients(layer, 3).items():
        assert gradient.any() and not torch.allclose(gradient, gradients(unrolled, 3)[name]), name
    with true_gradients(layer):
        inside = gradients(layer, 3)
    for name, gradient in gradients(unrolled, 3).items():
        assert_close(inside[name], gradient)


def test_two_passes_before_one_backward():
    layer, x = make((2, 3, 3), padding=1), batch((2, 2, 5, 4))
    (layer(x) + layer(-x)).sum().backward()
    assert layer.weight.grad.isfinite().all()


# Energy


def fraction_of_bound(layer: PredictiveConv2d, fraction: float) -> PredictiveConv2d:
    """The same layer and weights with a constant step at this fraction of its bound."""
    own = copy.deepcopy(layer)
    own.step_size = fraction * layer.stability_bound()
    return own


@pytest.mark.parametrize("decay", [0.0, 0.05, 1.0])
@every_geometry
def test_energy_falls_at_every_step_below_the_bound(sizes, arguments, shape, output_shape, decay):
    larger = (*shape[:2], shape[2] + 5, shape[3] + 4)
    for seed in range(4):
        options = {"decay": decay, "steps": 8, "rectify_error": seed == 3, "step_size": 1e-3}
        layer = make(sizes, **arguments, **options)
        torch.nn.init.normal_(layer.weight, std=10 ** (seed - 2))
        x = batch(larger, seed)
        for fraction in (0.01, 0.5, 0.9, 0.99):
            energies = fraction_of_bound(layer, fraction).energy(x)
            assert (energies.diff() <= 1e-12 * energies[0]).all(), (fraction, seed)
            assert energies[-1] < energies[0]


@pytest.mark.parametrize("decay", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("stride", [1, 2])
def test_energy_can_rise_beyond_the_bound(stride, decay):
    layer = make((2, 3, 3), padding=1, stride=stride, decay=decay, steps=8, step_size=1e-3, activation="identity")
    x = batch((2, 2, 24, 24))
    assert (fraction_of_bound(layer, 0.99).energy(x).diff() < 0).all()
    beyond = fraction_of_bound(layer, 1.3).energy(x)
    assert beyond.diff()[-1] > 0


@every_geometry
def test_the_bound_holds_for_every_size_and_is_tight(sizes, arguments, shape, output_shape):
    layer = make(sizes, **arguments, decay=0.5)
    limit = 2 / layer.stability_bound() - 0.5
    for height, width in ((5, 7), (12 * layer.dilation[0], 11 * layer.dilation[1])):
        basis = torch.eye(sizes[0] * height * width, dtype=torch.float64).view(-1, sizes[0], height, width)
        images = F.conv2d(basis, layer.weight.detach(), None, layer.stride, layer.padding, layer.dilation, layer.groups)
        sigma_squared = torch.linalg.matrix_norm(images.flatten(1), 2).item() ** 2
        assert sigma_squared <= limit * (1 + 1e-12)
    assert sigma_squared > 0.8 * limit


def test_the_bound_of_known_kernels():
    box = make((1, 1, 3))
    torch.nn.init.ones_(box.weight)  # at frequency 0 it adds 9 pixels
    assert 0.98 < box.stability_bound() / (2 / 81) <= 1
    matrix = make((3, 2, 1))
    sigma = torch.linalg.matrix_norm(matrix.weight.detach()[:, :, 0, 0], 2).item()
    assert matrix.stability_bound() == pytest.approx(2 / sigma**2)
    torch.nn.init.zeros_(matrix.weight)
    assert matrix.stability_bound() == math.inf
    with pytest.raises(InputError, match="untied"):
        make((1, 1, 3), tied=False).stability_bound()


# Refusals


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_a_constant_step_at_the_bound_is_refused(decay):
    bound = make((2, 3, 3), padding=1, decay=decay).stability_bound()
    make((2, 3, 3), padding=1, decay=decay, step_size=0.999 * bound)
    for step in (bound, 2 * bound):
        with pytest.raises(InputError, match=rf"step_size: .*bound.* = {bound:.6g}"):
            make((2, 3, 3), padding=1, decay=decay, step_size=step)
    make((2, 3, 3), step_size=2 * bound, gated=True)
    make((2, 3, 3), step_size=2 * bound, normalize_error=True)


@pytest.mark.parametrize("credit", ["unrolled", "local"])
def test_weights_that_grew_beyond_the_bound_are_refused_in_training(credit):
    layer, x = make((2, 3, 3), step_size=0.3, credit=credit), batch((1, 2, 5, 4))
    layer(x)
    with torch.no_grad():
        layer.weight *= 4
    bound = layer.stability_bound()
    assert bound < 0.3
    with pytest.raises(InputError, match=rf"step_size: 0\.3 .* = {bound:.6g}"):
        layer(x)
    layer.eval()(x)


def test_the_power_iteration_follows_the_weights():
    layer, x = make((2, 3, 3), step_size=0.3), batch((1, 2, 5, 4))
    torch.nn.init.normal_(layer.weight, std=0.01)
    for _ in range(200):
        layer(x)
    sigma_squared = F.conv2d(layer.direction, layer.weight, padding=2).square().sum().item()
    exact = 2 / layer.stability_bound()
    assert 0.9 * exact < sigma_squared < exact
    torch.nn.init.zeros_(layer.weight)
    layer(x)
    assert layer.direction.norm().item() == pytest.approx(1)


def test_an_untied_constant_step_of_one_is_refused():
    make((2, 3, 3), tied=False, step_size=0.99)
    make((2, 3, 3), tied=False, step_size="learned")
    make((2, 3, 3), tied=False)
    with pytest.raises(InputError, match=r"step_size: .*bound .* 1"):
        make((2, 3, 3), tied=False, step_size=1.0)


@pytest.mark.parametrize(
    ("sizes", "arguments", "message"),
    [
        ((0, 3, 3), {}, "in_channels"),
        ((2, -1, 3), {}, "out_channels"),
        ((2, 3, (3, 3, 3)), {}, "kernel_size"),
        ((2, 3, 3.0), {}, "kernel_size"),
        ((2, 3, 3), {"stride": 0}, "stride"),
        ((2, 3, 3), {"padding": "same"}, "padding"),
        ((2, 3, 3), {"dilation": (1, 0)}, "dilation"),
        ((2, 3, 3), {"groups": 2}, "groups"),
        ((2, 3, 3), {"steps": -1}, "steps"),
        ((2, 3, 3), {"step_size": 0.0}, "step_size"),
        ((2, 3, 3), {"step_size": math.nan}, "step_size"),
        ((2, 3, 3), {"step_size": "lerned"}, "step_size.*learned"),
        ((2, 3, 3), {"decay": -0.1}, "decay"),
        ((2, 3, 3), {"activation": "tanh"}, "activation"),
        ((2, 3, 3), {"credit": "global"}, "credit"),
        ((2, 3, 3), {"bypass": True}, "bypass.*padding"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_arguments(sizes, arguments, message):
    with pytest.raises(InputError, match=message):
        make(sizes, **arguments)


@pytest.mark.parametrize("shape", [(3, 5, 5), (5, 5), (1, 3, 5, 5), (1, 2, 2, 5)], ids=str)
def test_bad_input(shape):
    layer = make((2, 3, 3))
    for call in (layer, layer.energy):
        with pytest.raises(InputError, match=r"input: .*got shape"):
            call(batch(shape))


# State


def test_a_saved_layer_continues_exactly():
    options = {"padding": 1, "gated": True, "tied": False, "bias": True, "input_norm": True, "output_norm": True}
    layer, x, file = make((2, 3, 3), **options), batch((2, 2, 5, 4)), io.BytesIO()
    layer(x), layer(x)
    torch.save(layer.state_dict(), file)
    file.seek(0)
    torch.manual_seed(1)
    resumed = PredictiveConv2d(2, 3, 3, **options, dtype=torch.float64)
    resumed.load_state_dict(torch.load(file, weights_only=True), strict=True)
    for _ in range(2):
        assert torch.equal(layer(x), resumed(x))
    for name, value in layer.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize("credit", ["unrolled", "local"])
def test_evaluation_and_energy_change_nothing(credit):
    layer, x = make((2, 3, 3), padding=1, input_norm=True, output_norm=True, credit=credit), batch((2, 2, 5, 4))
    before = copy.deepcopy(layer.state_dict())
    layer.energy(x)
    assert layer.training
    assert torch.equal(layer.eval()(x), layer(x))
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]), name
    layer.train()(x)
    changed = {name for name, value in layer.state_dict().items() if not torch.equal(value, before[name])}
    assert "direction" in changed and "input_norm.running_mean" in changed


def test_the_weights_are_torchs_and_leave_its_generator_alike():
    layer = make((2, 3, 3), bias=True)
    after = torch.rand(1)
    torch.manual_seed(0)
    twin = torch.nn.Conv2d(2, 3, 3, dtype=torch.float64)
    assert torch.equal(layer.weight, twin.weight) and torch.equal(layer.bias, twin.bias)
    assert torch.equal(after, torch.rand(1))


# Compilers, dtypes and devices


@pytest.mark.parametrize(
    "options", [{"credit": "local"}, {"gated": True}, {"step_size": 0.3}], ids=["local", "gated", "constant"]
)
def test_compiled_without_a_graph_break(options):
    torch._dynamo.reset()
    layer, x = make((2, 3, 3), stride=2, padding=1, **options), batch((2, 2, 5, 4))
    eager = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        for module in (eager, compiled):
            module(x).square().sum().backward()
    for ours, its in zip(layer.parameters(), eager.parameters(), strict=True):
        assert_close(ours.grad, its.grad)


@pytest.mark.parametrize("step_size", [None, 0.3])
@pytest.mark.parametrize("credit", ["unrolled", "local"])
def test_autocast(credit, step_size):
    layer = make((2, 3, 3), padding=1, credit=credit, step_size=step_size, dtype=torch.float32)
    x = batch((2, 2, 5, 4)).float()
    wanted = layer.eval()(x)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
    assert_close(output.float(), wanted, torch.bfloat16)
    output.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32 and layer.weight.grad.any()


def test_meta_tensors():
    layer = PredictiveConv2d(2, 3, 3, step_size=0.3, bypass=True, padding=1, device="meta").eval()
    assert layer(torch.empty(2, 2, 5, 4, device="meta")).shape == (2, 3, 5, 4)
