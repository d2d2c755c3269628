"""Modules that a conversion leaves as they are, shares of weights by rule, and checkpoints of and for torch.nn."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import bionas_fast as bf
from bionas_fast import BionasWarning, InputError, convert
from bionas_fast.nn import FeedbackLayer, TransposedLinear, count_weights
from helpers.registries import restored
from helpers.tolerances import assert_close

RULES = ("bp", "fa", "usf", "brsf", "frsf", "dfa", "kp", "nsf")


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(4, 4))
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return self.inner(x) @ self.matrix


class Scaled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


UNCONVERTIBLE = {
    "LSTM": lambda: nn.LSTM(4, 3),
    "GRU": lambda: nn.GRU(4, 3),
    "RNN": lambda: nn.RNN(4, 3),
    "LSTMCell": lambda: nn.LSTMCell(4, 3),
    "Bilinear": lambda: nn.Bilinear(4, 4, 3),
    "Bare": Bare,
    "Scaled, a subclass of Linear": lambda: Scaled(4, 4),
    "ParametrizedGRU": lambda: parametrizations.weight_norm(nn.GRU(4, 3), "weight_hh_l0"),
}
#: Modules with parameters that no rule changes.
NEUTRAL = {
    "batch norm": lambda: nn.BatchNorm2d(4),
    "layer norm": lambda: nn.LayerNorm((4, 4)),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "rms norm": lambda: nn.RMSNorm(4),
    "prelu": lambda: nn.PReLU(4),
    "embedding": lambda: nn.Embedding(4, 4),
    "frozen": lambda: nn.LSTM(4, 3).requires_grad_(False),
    "no parameters": lambda: nn.Dropout(),
}


def message(model: nn.Module, rule="usf") -> str:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", BionasWarning)
        convert(model, rule)
    assert len(seen) <= 1
    return str(seen[0].message) if seen else ""


@pytest.mark.parametrize("name", UNCONVERTIBLE)
def test_a_module_that_keeps_back_propagation_is_named_once(name):
    model = nn.ModuleDict({"first": nn.Linear(4, 4), "other": UNCONVERTIBLE[name]()})
    said = message(model)
    assert said.count(f"other ({name})") == 1 and "other.inner" not in said and "first" not in said
    total = sum(p.numel() for p in model.parameters())
    converted = 20 + (20 if name == "Bare" else 0)
    assert f"usf {converted / total:.1%}" in said and f"bp {1 - converted / total:.1%}" in said
    before = str(model)
    with pytest.raises(InputError, match=rf"strict: expected .* got other \({name}\)"):
        convert(model, "usf", strict=True, inplace=True)
    assert str(model) == before
    assert not message(model, "bp")
    assert not message(model, {"first": "usf", "*": "bp"}) and not message(model, {"first": "usf"})
    assert "other" in message(model, {"*": "usf"})
    assert "other" in message(model, lambda name, module: "fa")


@pytest.mark.parametrize("name", NEUTRAL)
def test_modules_that_no_rule_changes_are_not_named(name):
    model = nn.Sequential(nn.Linear(4, 4), NEUTRAL[name]())
    assert not message(model)
    assert convert(model, "usf", strict=True)[0].rule == "usf"


def test_lazy_subclasses_and_the_model_itself_are_named():
    class LazyScaled(nn.LazyLinear):
        pass

    assert "1 (LazyScaled, a subclass of LazyLinear)" in message(nn.Sequential(nn.Linear(2, 2), LazyScaled(3)))
    assert "the model itself (Bare)" in message(Bare())


def test_patterns_that_match_only_what_cannot_learn_by_a_rule_say_so():
    model = nn.ModuleDict({"head": nn.Linear(4, 4), "rnn": nn.LSTM(4, 3)})
    with pytest.raises(InputError, match=r"got 'rn\*', which matches only rnn \(LSTM\)"):
        convert(model, {"rn*": "usf", "*": "bp"})
    assert convert(model, {"rnn": "bp", "*": "fa"})["head"].rule == "fa"
    with pytest.raises(InputError, match=r"nothing to convert: LSTM .*the model itself \(LSTM\) cannot"):
        convert(model["rnn"])
    transposed = convert(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ConvTranspose2d(2, 1, 3)), {"1": "usf"})
    assert transposed[1].rule == "usf"


def test_shares():
    model = nn.ModuleDict(
        {
            "a": bf.nn.Conv2d(2, 4, 3, rule="usf"),  # 76
            "b": bf.nn.Linear(4, 4, rule="fa"),  # 20
            "tied": bf.nn.Linear(4, 4, rule="fa", bias=False),  # the weight of b
            "c": bf.nn.MultiheadAttention(4, 2, rule="brsf"),  # 60 and 20
            "norm": nn.BatchNorm2d(4),  # 8
            "words": nn.Embedding(5, 4),  # 20
            "plain": nn.Linear(4, 2),  # 10
            "frozen": nn.Linear(4, 3).requires_grad_(False),  # 15
            "normed": parametrizations.weight_norm(bf.nn.Linear(3, 4, rule="frsf")),  # 12, 4 and 4
            "plastic": bf.nn.HebbianLinear(3, 4),  # 12
            "lazy": bf.nn.LazyLinear(3, rule="usf"),
        }
    )
    model["tied"].weight = model["b"].weight
    plastic = sum(p.numel() for p in model["plastic"].parameters())
    expected = {"usf": 76, "fa": 20, "brsf": 80, "elementwise": 8, "embedding": 20, "frozen": 15, "frsf": 20}
    expected |= {"bp": 10 + plastic, "hebbian": 12}
    assert count_weights(model) == expected
    shares = bf.rule_shares(model)
    assert shares == {rule: n / sum(expected.values()) for rule, n in expected.items()}
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert sum(shares.values()) == pytest.approx(1) and bf.rule_shares(nn.ReLU()) == {}


def test_a_weight_tied_to_back_propagation_learns_by_it():
    model = nn.ModuleDict({"words": nn.Embedding(6, 4), "head": bf.nn.Linear(4, 6, rule="usf", bias=False)})
    model["head"].weight = model["words"].weight
    assert bf.rule_shares(model) == {"usf": 1}
    model["bare"] = nn.Linear(4, 6, bias=False)
    model["bare"].weight = model["words"].weight
    assert bf.rule_shares(model) == {"bp": 1}


@pytest.mark.parametrize("rule", RULES)
def test_gpt2(rule):
    torch.manual_seed(0)
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 11, "n_positions": 6, "num_labels": 3}
    config = transformers.GPT2Config(**sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, pad_token_id=0)
    plain = transformers.GPT2ForSequenceClassification(config).double()
    if rule == "dfa":
        linear = TransposedLinear(8, 6, rule="dfa", num_classes=3, dtype=torch.float64)
        model = bf.nn.connect_direct_feedback(nn.Sequential(linear, bf.nn.Linear(6, 3, dtype=torch.float64)))
        x = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
        model(x).sum().backward()
        assert_close(x.grad, torch.ones(2, 3, dtype=torch.float64) @ linear.feedback)
        return
    model = convert(plain, rule, seed=0, strict=True)
    assert {type(m) for m in model.modules() if isinstance(m, FeedbackLayer)} == {TransposedLinear, bf.nn.Linear}
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert_close(model(ids).logits, plain(ids).logits)
    model.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(bf.torch_state_dict(model), strict=True)
    layer, foreign = model.transformer.h[0].mlp.c_fc, plain.transformer.h[0].mlp.c_fc
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    b = layer.feedback_weight()
    (down,) = torch.autograd.grad(layer(x).sum(), x, retain_graph=True)
    assert_close(down, torch.autograd.grad((x @ b).sum(), x)[0])
    layer(x).square().sum().backward()
    foreign(x).square().sum().backward()
    assert_close(layer.weight.grad, foreign.weight.grad)
    assert_close(layer.bias.grad, foreign.bias.grad)
    assert b.shape == layer.weight.shape and (rule == "bp" or not torch.equal(b, layer.weight))


# Checkpoints


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ConvTranspose2d(4, 2, 3),
        nn.Flatten(),
        parametrizations.weight_norm(nn.Linear(72, 6)),
        nn.Linear(6, 3),
    )


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel], ids=["bare", "DataParallel"])
@pytest.mark.parametrize("rule", RULES)
def test_checkpoints_go_both_ways(rule, wrap):
    plain = network()
    converted = convert(network(), rule, seed=3)
    other = {name: value + 1 for name, value in plain.state_dict().items()}
    feedback = {name: b.clone() for name, b in converted.named_buffers() if "feedback" in name}
    plain.load_state_dict(other)
    wrap(converted).load_state_dict(wrap(plain).state_dict(), strict=True)
    for name, value in feedback.items():
        assert torch.equal(converted.get_buffer(name), value)
    x = torch.randn(2, 2, 6, 6)
    assert torch.equal(converted.eval()(x), plain.eval()(x))
    back = network()
    file = io.BytesIO()
    torch.save(bf.torch_state_dict(wrap(converted)), file)
    file.seek(0)
    wrap(back).load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(back.eval()(x), plain(x))


@pytest.mark.parametrize("rule", ["fa", "brsf", "frsf", "dfa"])
def test_a_checkpoint_of_a_converted_model_restores_its_feedback(rule):
    saved, other = convert(network(), rule, seed=3), convert(network(), rule, seed=4)
    F.cross_entropy(saved(torch.randn(2, 2, 6, 6)), torch.tensor([0, 1])).backward()
    other.load_state_dict(saved.state_dict(), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(saved.buffers(), other.buffers(), strict=True))


def test_what_is_missing_or_wrong_is_still_an_error():
    plain, converted = network(), convert(network(), "fa", seed=3)
    state = plain.state_dict()
    weight = state.pop("0.weight")
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "0\.weight"\.'):
        converted.load_state_dict(state)
    assert converted.load_state_dict(state, strict=False).missing_keys == ["0.weight"]
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.weight"):
        converted.load_state_dict({**state, "0.weight": weight[:2]})
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.feedback"):
        converted.load_state_dict({**converted.state_dict(), "0.feedback": weight[:2]})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*0\.feedback"):
        convert(network(), "usf").load_state_dict(converted.state_dict())
    part = convert(network(), {"0": "fa", "*": "bp"}, seed=9)
    before = converted[5].feedback.clone()
    converted.load_state_dict(part.state_dict(), strict=True)
    assert torch.equal(converted[0].feedback, part[0].feedback) and torch.equal(converted[5].feedback, before)


def test_a_layer_with_two_buffers_needs_both_or_none():
    class NoisyFixed(bf.rules.Rule):
        """Stored feedback times a random factor."""

        name, stores, redraws = "noisy_fixed", "signed", True

        def feedback(self, weight, state):
            return state.stored * state.uniform()

    with restored():
        bf.rules.register(NoisyFixed)
        layer = bf.nn.Linear(3, 2, rule="noisy_fixed")
        state = layer.state_dict()
        layer.load_state_dict(nn.Linear(3, 2).state_dict(), strict=True)
        del state["feedback_stream"]
        with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "feedback_stream"'):
            layer.load_state_dict(state)


def test_weights_computed_from_others_cannot_be_redrawn():
    with pytest.raises(InputError, match=r"copy_weights: expected True .*\(4\), got False"):
        convert(network(), "fa", copy_weights=False)
