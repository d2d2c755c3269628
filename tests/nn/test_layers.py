"""The layers against torch.nn's: with W for the forward pass and ∂W, with B in W's place for the error sent down."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from bionas_fast import InputError, true_gradients
from bionas_fast.nn import Conv1d, Conv2d, Conv3d, Linear
from helpers.ddp_worker import make_model, run, train
from helpers.learned import weights_of
from helpers.tolerances import assert_close

OURS = {nn.Conv1d: Conv1d, nn.Conv2d: Conv2d, nn.Conv3d: Conv3d, nn.Linear: Linear}
RULES = ("bp", "fa", "usf", "brsf", "frsf", "kp")
LAYERS = {  # torch.nn's layer, its arguments, the shape of an input
    "conv1d-same-even": (nn.Conv1d, (3, 4, 4), {"padding": "same"}, (2, 3, 9)),
    "conv1d-reflect": (nn.Conv1d, (3, 4, 5), {"padding": 2, "stride": 2, "padding_mode": "reflect"}, (2, 3, 9)),
    "conv2d": (nn.Conv2d, (3, 4, 3), {"padding": (1, 0), "stride": 2}, (2, 3, 8, 7)),
    "conv2d-no-bias": (nn.Conv2d, (3, 4, 3), {"bias": False}, (2, 3, 8, 7)),
    "conv2d-valid": (nn.Conv2d, (3, 4, 3), {"padding": "valid", "dilation": 2}, (2, 3, 8, 7)),
    "conv2d-same": (nn.Conv2d, (3, 4, 3), {"padding": "same"}, (2, 3, 8, 7)),
    "conv2d-same-even": (nn.Conv2d, (3, 4, (2, 4)), {"padding": "same", "dilation": (3, 1)}, (2, 3, 8, 7)),
    "conv2d-same-circular-groups": (
        nn.Conv2d,
        (4, 4, (4, 3)),
        {"padding": "same", "padding_mode": "circular", "groups": 2},
        (2, 4, 8, 7),
    ),
    "conv2d-reflect": (nn.Conv2d, (3, 4, 3), {"padding": (2, 1), "padding_mode": "reflect"}, (2, 3, 8, 7)),
    "conv2d-replicate": (nn.Conv2d, (3, 4, 3), {"padding": 1, "stride": 2, "padding_mode": "replicate"}, (2, 3, 8, 7)),
    "conv2d-unbatched": (nn.Conv2d, (3, 4, 3), {"padding": 1}, (3, 8, 7)),
    "conv3d-circular": (
        nn.Conv3d,
        (2, 3, (1, 3, 2)),
        {"padding": (0, 1, 1), "padding_mode": "circular"},
        (2, 2, 3, 5, 4),
    ),
    "linear": (nn.Linear, (6, 5), {}, (4, 6)),
    "linear-one-output": (nn.Linear, (6, 1), {}, (4, 6)),
    "linear-vector": (nn.Linear, (6, 5), {}, (6,)),
    "linear-rank4": (nn.Linear, (6, 5), {"bias": False}, (2, 3, 4, 6)),
}
every_layer = pytest.mark.parametrize(("plain", "sizes", "arguments", "shape"), LAYERS.values(), ids=LAYERS)
every_rule = pytest.mark.parametrize("rule", RULES)
every_init = pytest.mark.parametrize("init", ["default", "xavier"])


def backward(layer: nn.Module, x: Tensor, grad: Tensor | None = None) -> list[Tensor]:
    """δ_in and the gradients of the parameters, for a fixed random δ_out."""
    x = x.detach().requires_grad_()
    y = layer(x)
    if grad is None:
        grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y.dtype)
    return list(torch.autograd.grad(y, (x, *weights_of(layer).values()), grad))


def same(actual, wanted, dtype: torch.dtype | None = None) -> None:
    for a, w in zip(actual, wanted, strict=True):
        assert_close(a, w, dtype)


def network(rule: str, **arguments) -> nn.Sequential:
    return nn.Sequential(
        Conv2d(3, 4, 3, rule=rule, padding="same", **arguments),
        nn.ReLU(),
        Conv2d(4, 4, 2, rule=rule, stride=2, groups=2, **arguments),
        nn.Flatten(),
        Linear(36, 5, rule=rule, **arguments),
    )


# Gradients


@every_init
@every_rule
@every_layer
def test_a_layer_is_torchs_but_for_the_error_sent_down(plain, sizes, arguments, shape, rule, init):
    torch.manual_seed(0)
    layer = OURS[plain](*sizes, **arguments, rule=rule, feedback_init=init, dtype=torch.float64)
    twin, through = (plain(*sizes, **arguments, dtype=torch.float64) for _ in range(2))
    x = torch.randn(shape, dtype=torch.float64)
    for _ in range(2):  # the second time brsf has another B
        twin.load_state_dict({name: p.detach() for name, p in weights_of(layer).items()})
        through.load_state_dict({**twin.state_dict(), "weight": layer.feedback_weight()})
        assert_close(layer(x), twin(x))
        actual = backward(layer, x)
        same(actual, (backward(through, x)[0], *backward(twin, x)[1:]))


@every_init
@every_rule
def test_weights_learn(rule, init):
    torch.manual_seed(0)
    model, x = network(rule, feedback_init=init), torch.randn(2, 3, 6, 6)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).square().sum().backward()
    optimizer.step()
    for p, old in zip(model.parameters(), before, strict=True):
        assert p.grad.any()
        assert_close(p.detach(), old - 0.1 * p.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@every_rule
def test_autocast(rule, dtype):
    torch.manual_seed(0)
    model, x = network(rule), torch.randn(2, 3, 6, 6)
    wanted = backward(copy.deepcopy(model), x)
    with torch.autocast("cpu", dtype):
        assert model(x).dtype == dtype
        actual = backward(model, x)
    assert {a.dtype for a in actual} == {torch.float32}
    same(actual, wanted, dtype)


@every_rule
def test_channels_last(rule):
    torch.manual_seed(0)
    model, x = network(rule, seed=1), torch.randn(2, 3, 6, 6)
    wanted = backward(copy.deepcopy(model), x)
    model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    assert model[0](x).is_contiguous(memory_format=torch.channels_last)
    same(backward(model, x), wanted)


@pytest.mark.parametrize("rule", ["fa", "usf", "brsf", "frsf"])
def test_true_gradients_are_autograds_inside_the_block_only(rule):
    torch.manual_seed(0)
    model, plain, x = network(rule, seed=1), network("bp"), torch.randn(2, 3, 6, 6)
    plain.load_state_dict({name: p.detach() for name, p in weights_of(model).items()})
    state, truth = copy.deepcopy(model.state_dict()), backward(plain, x)
    with true_gradients(model):
        begun_inside = model(x.requires_grad_())
        same(backward(model, x), truth)
    same(model.state_dict().values(), state.values())  # nothing was drawn
    assert not torch.allclose(backward(model, x)[0], truth[0])
    same(torch.autograd.grad(begun_inside.sum(), x), backward(plain, x, torch.ones(2, 5))[:1])
    with pytest.raises(ZeroDivisionError), true_gradients(model):
        raise ZeroDivisionError
    assert not torch.allclose(backward(model, x)[0], truth[0])


# Compilers and wrappers


@pytest.mark.parametrize(("rule", "backend"), [*((rule, "aot_eager") for rule in RULES), ("brsf", "inductor")], ids=str)
def test_compiled_without_a_graph_break(rule, backend):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = network(rule), torch.randn(2, 3, 6, 6)
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for steps in range(1, 4):
        same(backward(compiled, x), backward(eager, x))
        for (name, ours), its in zip(model.named_buffers(), eager.buffers(), strict=True):
            assert torch.equal(ours, its)
            assert not name.endswith("stream") or ours[1] == steps


def test_distributed_data_parallel_equals_one_process(tmp_path):
    torch.multiprocessing.spawn(run, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    model = make_model(seed=0)
    gradients = train(model, slice(None))
    for rank in ranks:
        for ours, its in zip(gradients, rank["gradients"], strict=True):
            same(its, ours)
        assert rank["state"].keys() == model.state_dict().keys()
        same(rank["state"].values(), model.state_dict().values())
    assert torch.equal(ranks[0]["state"]["2.feedback_stream"], ranks[1]["state"]["2.feedback_stream"])
    assert model[2].feedback_stream[1] == 3


@every_rule
def test_data_parallel_without_devices_passes_through(rule):
    torch.manual_seed(0)
    model, x = network(rule), torch.randn(2, 3, 6, 6)
    same(backward(nn.DataParallel(copy.deepcopy(model)), x), backward(model, x))


@every_rule
def test_copies_share_numbers_but_no_memory(rule):
    torch.manual_seed(0)
    layer, x = Conv2d(3, 4, 3, rule=rule), torch.randn(2, 3, 6, 6)
    twin, b = copy.deepcopy(layer), layer.feedback_weight()
    assert torch.equal(twin.feedback_weight(), b)
    backward(layer, x)
    assert torch.equal(twin.feedback_weight(), b)
    assert torch.equal(layer.feedback_weight(), b) == (rule != "brsf")
    backward(twin, x)
    assert torch.equal(twin.feedback_weight(), layer.feedback_weight())


@every_rule
def test_fake_tensors(rule):
    # Without a GPU autograd does not start on fake tensors of one, under plain layers neither.
    devices = ["cuda", "cuda" if torch.cuda.is_available() else "cpu"]
    with FakeTensorMode():
        for device in devices:
            model = network(rule, device=device, dtype=torch.float16)
            x = torch.empty(2, 3, 6, 6, device=device, dtype=torch.float16)
            y = model(x)
            assert (y.shape, y.dtype, y.device.type) == ((2, 5), torch.float16, device)
        gradients = backward(model, x, torch.empty_like(y))
        for gradient, source in zip(gradients, (x, *weights_of(model).values()), strict=True):
            assert (gradient.shape, gradient.dtype, gradient.device) == (source.shape, source.dtype, source.device)


@every_rule
def test_moves_to_other_dtypes_and_the_meta_device(rule):
    torch.manual_seed(0)
    layer = Conv2d(3, 4, 3, rule=rule, seed=1)
    b = layer.feedback_weight()
    assert_close(layer.double().feedback_weight(), b.double(), torch.float32)
    assert all(buffer.dtype in (torch.float64, torch.int64) for buffer in layer.buffers())
    layer.to("meta")
    assert {t.device.type for t in (*layer.parameters(), *layer.buffers(), layer.feedback_weight())} == {"meta"}


@every_rule
def test_meta_tensors(rule):
    model = network(rule, device="meta")
    x = torch.ones(2, 3, 6, 6, device="meta")
    gradients = backward(model, x, model(x))
    assert [g.shape for g in gradients] == [x.shape, *(p.shape for p in weights_of(model).values())]


# Checkpoints


@every_rule
def test_a_resumed_run_continues_exactly(rule):
    torch.manual_seed(0)
    model, x, file = network(rule), torch.randn(2, 3, 6, 6), io.BytesIO()
    backward(model, x), backward(model, x)
    torch.save(model.state_dict(), file)
    file.seek(0)
    torch.manual_seed(1)
    resumed = network(rule)
    resumed.load_state_dict(torch.load(file, weights_only=True), strict=True)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(backward(resumed, x), backward(model, x), strict=True))


def test_state_holds_only_what_the_rule_needs():
    kept = {rule: set(Linear(3, 2, rule=rule, num_classes=4).state_dict()) for rule in (*RULES, "dfa")}
    extra = {rule: names - {"weight", "bias"} for rule, names in kept.items()}
    stored = {"feedback"}
    assert extra.pop("brsf") == {"feedback_stream"}
    assert extra == {"bp": set(), "fa": stored, "usf": set(), "frsf": stored, "kp": stored, "dfa": stored}
    network("usf").load_state_dict(network("bp").state_dict(), strict=True)


# Initial values and seeds


@pytest.mark.parametrize("rule", [*RULES, "dfa"])
@every_layer
def test_initial_weights_are_torchs_bit_for_bit(plain, sizes, arguments, shape, rule):
    torch.manual_seed(3)
    twins = [plain(*sizes, **arguments) for _ in range(2)]
    torch.manual_seed(3)
    for twin, layer in zip(twins, [OURS[plain](*sizes, **arguments, rule=rule) for _ in range(2)], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(weights_of(layer).values(), twin.parameters(), strict=True))


@pytest.mark.parametrize("rule", ["fa", "brsf", "frsf"])
def test_seeds_decide_the_feedback(rule):
    def feedback(seed=None, **arguments):
        layer = Linear(6, 5, rule=rule, seed=seed, **arguments)
        return layer.feedback_weight() * layer.weight.detach().sign() if rule != "fa" else layer.feedback_weight()

    assert torch.equal(feedback(4), feedback(4))
    for other in (5, 4 + 2**32, 4 + 2**63, 2**64 - 1):
        assert not torch.equal(feedback(4), feedback(other))
    torch.manual_seed(0)
    first, second = feedback(), feedback()
    torch.manual_seed(0)
    assert torch.equal(first, feedback()) and not torch.equal(first, second)
    one, two = (feedback(generator=torch.Generator().manual_seed(9)) for _ in range(2))
    assert torch.equal(one, two)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_have_a_range(seed):
    with pytest.raises(InputError, match=r"seed: expected 0 <= seed < 2\*\*64"):
        Conv2d(3, 4, 3, rule="fa", seed=seed)


def test_layers_made_on_a_gpu_have_feedback_of_their_own(cuda):
    torch.manual_seed(0)
    one, two = (Linear(3, 3, rule="fa", device=cuda) for _ in range(2))
    assert not torch.equal(one.feedback, two.feedback)


def test_reset_draws_everything_anew():
    torch.manual_seed(0)
    layer = Linear(6, 5, rule="frsf", feedback_init="xavier")
    before = copy.deepcopy(layer)
    layer.reset_parameters()
    assert not torch.equal(layer.weight, before.weight)
    assert not torch.equal(layer.feedback, before.feedback)
    assert layer.weight.abs().max() <= math.sqrt(6 / 11) and not layer.bias.any()


# Metrics


def degrees(b: Tensor, w: Tensor) -> float:
    return math.degrees(math.acos((b * w).sum() / (b.square().sum() * w.square().sum()).sqrt()))


def test_angle_and_norm_ratio():
    torch.manual_seed(0)
    layers = {rule: Linear(200, 300, rule=rule, dtype=torch.float64) for rule in RULES}
    w = {rule: layer.weight.detach() for rule, layer in layers.items()}
    angle = {rule: layer.feedback_angle() for rule, layer in layers.items()}
    ratio = {rule: layer.feedback_norm_ratio() for rule, layer in layers.items()}
    assert angle["bp"] == pytest.approx(0, abs=1e-5) and ratio["bp"] == 1
    assert angle["fa"] == pytest.approx(90, abs=1) and ratio["fa"] == pytest.approx(1, abs=0.02)
    assert angle["usf"] == pytest.approx(degrees(w["usf"].sign(), w["usf"]), abs=1e-8)
    assert ratio["usf"] == pytest.approx(10 / w["usf"].norm().item())  # c √n = √(300 · 200) / √(3 · 200)
    frsf = layers["frsf"].feedback * w["frsf"].sign()
    assert angle["frsf"] == pytest.approx(degrees(frsf, w["frsf"]), abs=1e-8)
    assert ratio["frsf"] == pytest.approx(frsf.norm().item() / w["frsf"].norm().item())
    # Independent uniform magnitudes of equal sign: cos = E|B| E|W| / (σ_B σ_W) = (1/2)² / (1/3)
    assert angle["brsf"] == pytest.approx(math.degrees(math.acos(3 / 4)), abs=1)


def test_feedback_can_be_replaced():
    torch.manual_seed(0)
    layer, b = Linear(3, 2, rule="fa"), torch.linspace(-1, 2, 6).reshape(2, 3)
    layer.set_feedback(b)
    assert torch.equal(layer.feedback_weight(), b)
    frozen = Linear(3, 2, rule="frsf")
    frozen.set_feedback(b)
    assert torch.equal(frozen.feedback, b.abs())
    assert torch.equal(frozen.feedback_weight(), b.abs() * frozen.weight.sign())
    with pytest.raises(InputError, match=r"expected shape \[2, 3\], got \[3, 2\]"):
        layer.set_feedback(b.t())
    with pytest.raises(InputError, match="'usf' stores no feedback to replace"):
        Linear(3, 2, rule="usf").set_feedback(b)


def test_a_layer_shows_its_rule():
    assert repr(Linear(3, 2, rule="usf")) == "Linear(in_features=3, out_features=2, bias=True, rule='usf')"
    with pytest.raises(InputError, match=r"expected 4 dimensions .* or 3 without the batch, got shape \[3, 8\]"):
        Conv2d(3, 4, 3)(torch.ones(3, 8))
    assert torch.equal(F.relu(Linear(3, 2)(torch.zeros(0, 3))), torch.zeros(0, 2))
