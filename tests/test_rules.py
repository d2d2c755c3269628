"""Learning rules. The oracles: Random123's published vectors, Philox in whole numbers, formulas, autograd."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bionas_fast import InputError, convert, rules
from bionas_fast.kernels.feedback import reference
from bionas_fast.nn import Conv1d, Conv2d, Conv3d, Linear
from helpers.registries import restored
from helpers.tolerances import assert_close

LOW = 0xFFFFFFFF

KNOWN_ANSWERS = {  # Random123, tests/kat_vectors: philox4x32 10 → counter, key, result
    "zeros": ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    "ones": ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    "pi": ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
}


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def philox(key: list[int], counter: list[int]) -> list[int]:
    """Philox4x32-10 in Python's unbounded integers."""
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for i in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        r0, r1 = (k0 + i * 0x9E3779B9) % 2**32, (k1 + i * 0xBB67AE85) % 2**32
        c0, c1, c2, c3 = (b // 2**32) ^ c1 ^ r0, b % 2**32, (a // 2**32) ^ c3 ^ r1, a % 2**32
    return [c0, c1, c2, c3]


def drawn(shape: tuple[int, ...], seed: int, draw: int) -> Tensor:
    """The numbers in [0, 1) of one draw, element by element."""
    key = [seed % 2**32, seed // 2**32]
    numbers = [(philox(key, [i, draw, 0, 0])[0] >> 8) / 2**24 for i in range(math.prod(shape))]
    return torch.tensor(numbers, dtype=torch.float32).reshape(shape)


@pytest.fixture
def registry():
    """Forgets the rules that a test registers."""
    with restored():
        yield


# Random numbers


@pytest.mark.parametrize("name", KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(name):
    counter, key, answer = map(words, KNOWN_ANSWERS[name])
    assert philox(key, counter) == answer
    assert [int(word) for word in reference.philox(key, counter)] == answer


def test_philox_equals_whole_number_arithmetic():
    rng = random.Random(0)
    keys = [[rng.getrandbits(32) for _ in range(2)] for _ in range(200)]
    counters = [[rng.getrandbits(32) for _ in range(4)] for _ in range(200)]
    result = reference.philox(torch.tensor(keys).unbind(1), torch.tensor(counters).unbind(1))
    assert torch.stack(result, 1).tolist() == [philox(k, c) for k, c in zip(keys, counters, strict=True)]


@pytest.mark.parametrize("draw", [0, 1, 2**32 - 1], ids=["draw0", "draw1", "last-draw"])
@pytest.mark.parametrize("seed", [0, 12345, 2**32, 2**63, 2**64 - 1], ids=["0", "12345", "2^32", "2^63", "2^64-1"])
def test_uniform_is_word_0_of_philox_at_element_and_draw(seed, draw):
    signed = seed - 2**64 if seed >= 2**63 else seed
    numbers = reference.uniform((3, 5, 2), torch.tensor([signed, draw]))
    assert torch.equal(numbers, drawn((3, 5, 2), seed, draw))


@pytest.mark.parametrize("seed", [7, 2**63 + 7], ids=["7", "2^63+7"])
def test_layers_draw_from_their_seed(seed):
    a = 1 / math.sqrt(4 * 9)
    numbers = drawn((3, 4, 3, 3), seed, 0)
    signed, magnitude = (Conv2d(4, 3, 3, rule=rule, seed=seed) for rule in ("fa", "frsf"))
    assert_close(signed.feedback, (2 * numbers - 1) * a)
    assert_close(magnitude.feedback, numbers * a)


# Magnitude laws

FANS = {  # constructor, fan_in, fan_out; fan_out is not divided by groups
    "linear": (lambda **k: Linear(80, 120, **k), 80, 120),
    "conv1d": (lambda **k: Conv1d(20, 30, 5, **k), 100, 150),
    "conv2d": (lambda **k: Conv2d(16, 24, (3, 5), **k), 240, 360),
    "grouped": (lambda **k: Conv2d(32, 64, 3, groups=4, **k), 72, 576),
    "depthwise": (lambda **k: Conv2d(200, 200, 5, groups=200, **k), 25, 5000),
    "conv3d": (lambda **k: Conv3d(8, 12, 3, **k), 216, 324),
}
LAWS = {
    "default": lambda i, o: (1 / math.sqrt(i), 1 / math.sqrt(3 * i)),
    "xavier": lambda i, o: (math.sqrt(6 / (i + o)), math.sqrt(2 / (i + o))),
}
both_laws = pytest.mark.parametrize("init", LAWS)
every_layer = pytest.mark.parametrize(("make", "fan_in", "fan_out"), FANS.values(), ids=FANS)


def distance_to_uniform(sample: Tensor) -> float:
    """Kolmogorov-Smirnov statistic against U(0, 1), times √n: above 1.95 once in a thousand samples."""
    x = sample.double().flatten().sort().values
    steps = torch.arange(len(x) + 1, dtype=torch.float64) / len(x)
    return max((steps[1:] - x).max().item(), (x - steps[:-1]).max().item()) * math.sqrt(len(x))


def correlation(x: Tensor, y: Tensor) -> float:
    """Pearson's, in standard deviations of independent samples."""
    return torch.corrcoef(torch.stack([x.detach().flatten(), y.detach().flatten()]))[0, 1].item() * x.numel() ** 0.5


@both_laws
@every_layer
def test_law_follows_from_the_fans(make, fan_in, fan_out, init):
    torch.manual_seed(0)
    a, c = LAWS[init](fan_in, fan_out)
    layer = make(rule="usf", feedback_init=init)
    assert (layer.law.bound, layer.law.scale) == pytest.approx((a, c), rel=1e-12)
    assert_close(layer.feedback_weight(), c * layer.weight.detach().sign())
    # W itself starts from this law: all of the interval, and c is its standard deviation.
    assert 0.99 * a < layer.weight.abs().max() <= a
    assert layer.weight.std().item() == pytest.approx(c, rel=0.05)


@pytest.mark.parametrize("rule", ["fa", "brsf", "frsf"])
@both_laws
@every_layer
def test_random_magnitudes_are_uniform(make, fan_in, fan_out, init, rule):
    torch.manual_seed(0)
    a, _ = LAWS[init](fan_in, fan_out)
    layer = make(rule=rule, feedback_init=init, seed=3)
    magnitude = layer.feedback_weight().abs()
    assert magnitude.mean().item() == pytest.approx(a / 2, rel=0.03)
    assert distance_to_uniform(magnitude / a) < 1.95
    assert abs(correlation(magnitude, layer.weight.abs())) < 3.5


def test_fa_is_signed_and_independent_of_the_weight_and_of_other_layers():
    torch.manual_seed(0)
    first, second = Linear(100, 100, rule="fa"), Linear(100, 100, rule="fa")
    b = first.feedback_weight()
    assert distance_to_uniform((b / 0.1 + 1) / 2) < 1.95
    assert abs(correlation(b, first.weight)) < 3.5
    assert abs(correlation(b, second.feedback_weight())) < 3.5


# Signs and redraws


@pytest.mark.parametrize("rule", ["usf", "brsf", "frsf"])
def test_sign_concordant_feedback_has_the_signs_of_the_weight(rule):
    torch.manual_seed(0)
    layer = Conv2d(3, 4, 3, rule=rule, seed=0)
    with torch.no_grad():
        layer.weight[0, 0] = 0.0
        layer.weight[1, 0] = -0.0
    assert torch.equal(layer.feedback_weight().sign(), layer.weight.sign())
    assert (layer.feedback_weight() == 0).sum() == 18


def step(layer: nn.Module, x: Tensor) -> Tensor:
    """One SGD step; the error that reached the input."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    layer(x).square().sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.01).step()
    return x.grad


def test_frsf_keeps_its_magnitude_and_follows_the_sign():
    torch.manual_seed(0)
    layer, x = Linear(6, 5, rule="frsf"), torch.randn(4, 6)
    magnitude = layer.feedback_weight().abs()
    for _ in range(3):
        step(layer, x)
        assert torch.equal(layer.feedback_weight(), magnitude * layer.weight.sign())
    before = layer.feedback_weight()
    with torch.no_grad():
        layer.weight.neg_()
    assert torch.equal(layer.feedback_weight(), -before)


def test_brsf_is_new_at_every_training_step():
    torch.manual_seed(0)
    layer, x = Conv2d(3, 4, 3, rule="brsf", feedback_init="xavier", seed=11).double(), torch.randn(2, 3, 6, 6).double()
    a = math.sqrt(6 / (27 + 36))
    for draw in range(3):
        b = (drawn((4, 3, 3, 3), 11, draw) * a).double() * layer.weight.detach().sign()
        assert_close(layer.feedback_weight(), b, torch.float32)
        error = 2 * layer(x).detach()
        assert_close(step(layer, x), F.conv_transpose2d(error, b), torch.float32)


@pytest.mark.parametrize("quiet", ["eval", "no_grad", "forward-only", "metrics"])
def test_brsf_draws_nothing_new_without_a_training_step(quiet):
    torch.manual_seed(0)
    layer, x = Linear(6, 5, rule="brsf", seed=2), torch.randn(4, 6)
    before = layer.feedback_weight()
    if quiet == "eval":
        layer.eval()
        step(layer, x)
        layer.weight.data.abs_()
        before = before.abs()
    elif quiet == "no_grad":
        with torch.no_grad():
            layer(x)
    elif quiet == "forward-only":
        layer(x)
    else:
        layer.feedback_angle(), layer.feedback_norm_ratio()
    assert torch.equal(layer.feedback_weight(), before)
    layer.train()
    step(layer, x)
    assert not torch.equal(layer.feedback_weight().abs(), before.abs())


# Rules of a user's own


def test_a_rule_of_ones_own_works_in_layers_and_convert(registry):
    @rules.register
    class Ternary(rules.Rule):
        """Sign of the larger half of the weights, zero elsewhere."""

        name = "ternary"

        def feedback(self, weight, state):
            return state.law.scale * weight.sign() * (weight.abs() > weight.abs().median())

    assert "ternary" in rules.names()
    assert repr(rules.get("ternary")) == "<rule ternary: Sign of the larger half of the weights, zero elsewhere.>"
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)).double()
    x = torch.rand(1, 3, 4, 4).double()
    for layer in convert(model, "ternary")[0], Conv2d(3, 4, 3, rule=Ternary()).double():
        w, error = layer.weight.detach().clone(), 2 * layer(x).detach()
        b = w.sign() * (w.abs() > w.abs().median()) / math.sqrt(3 * 27)
        assert_close(step(layer, x), F.conv_transpose2d(error, b))


def test_a_rule_of_ones_own_can_redraw(registry):
    @rules.register
    class Noise(rules.Rule):
        name = "noise"
        redraws = True

        def feedback(self, weight, state):
            return state.uniform()

    layer, x = Linear(3, 2, rule="noise", seed=5), torch.ones(1, 3)
    for draw in range(3):
        assert torch.equal(layer.feedback_weight(), drawn((2, 3), 5, draw))
        step(layer, x)
    layer.eval()
    step(layer, x)
    assert torch.equal(layer.feedback_weight(), drawn((2, 3), 5, 3))


def test_feedback_of_the_wrong_shape_is_named(registry):
    @rules.register
    class Transposed(rules.Rule):
        name = "transposed"

        def feedback(self, weight, state):
            return weight.t()

    with pytest.raises(
        InputError, match=r"'transposed' returned feedback of shape \[3, 2\] .* weight of shape \[2, 3\]"
    ):
        Linear(3, 2, rule="transposed")(torch.ones(1, 3))


def test_a_rule_without_feedback_says_so(registry):
    rules.register(type("Empty", (rules.Rule,), {"name": "empty"}))
    with pytest.raises(NotImplementedError, match="'empty' defines neither a mode nor feedback"):
        Linear(3, 2, rule="empty")(torch.ones(1, 3))


@pytest.mark.parametrize("name", ["", "Upper", "two words", "dash-ed", "1st"])
def test_names_must_be_plain_words(registry, name):
    with pytest.raises(InputError, match="lower-case word"):
        rules.register(type("Bad", (rules.Rule,), {"name": name}))
    assert name not in rules.names()


def test_names_and_modes_are_checked(registry):
    with pytest.raises(InputError, match="'usf' is already registered by UniformSign"):
        rules.register(type("Mine", (rules.Rule,), {"name": "usf"}))
    with pytest.raises(InputError, match="unknown mode 'stord'; did you mean 'stored'"):
        rules.register(type("Mine", (rules.Rule,), {"name": "mine", "mode": "stord"}))
    with pytest.raises(InputError, match="unknown rule 'brfs'; did you mean 'brsf'"):
        rules.get("brfs")
    with pytest.raises(InputError, match="unknown feedback_init 'xaver'; did you mean 'xavier'"):
        Linear(3, 2, rule="fa", feedback_init="xaver")


def test_a_rule_that_is_not_registered_is_refused_at_once():
    class Lost(rules.Rule):
        name = "lost"

    class Impostor(rules.Rule):
        name = "usf"

    for rule in (Lost(), Impostor()):
        with pytest.raises(InputError, match="not registered"):
            Linear(3, 2, rule=rule)


def test_what_a_rule_stores_is_checked():
    class Odd(rules.Rule):
        name = "odd"
        stores = "singed"

    with pytest.raises(InputError, match=r"'singed'.*'signed'"):
        rules.register(Odd)
