"""MultiheadAttention against torch.nn's: its outputs and weights in every form of call, and the error through B."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bionas_fast import InputError, convert, true_gradients
from bionas_fast.nn import FeedbackLayer, MultiheadAttention
from helpers.learned import weights_of
from helpers.tolerances import assert_close

RULES = ("bp", "fa", "usf", "brsf", "frsf", "kp")
every_rule = pytest.mark.parametrize("rule", RULES)
BUILDS = {
    "plain": {},
    "batch-first": {"batch_first": True},
    "no-bias": {"bias": False},
    "bias-kv": {"add_bias_kv": True},
    "zero-attention": {"add_zero_attn": True, "batch_first": True},
    "both": {"add_zero_attn": True, "add_bias_kv": True},
    "other-features": {"kdim": 5, "vdim": 6},
    "other-features-no-bias": {"kdim": 5, "bias": False, "batch_first": True},
}
E, HEADS, N, L, S = 8, 2, 3, 4, 5


def inputs(build: dict, batched: bool = True, itself: bool = False) -> list[Tensor]:
    torch.manual_seed(1)
    sizes = [(L, E), (S, build.get("kdim", E)), (S, build.get("vdim", E))]
    if itself:
        return [torch.randn(N, L, E, dtype=torch.float64)] * 3
    tensors = [torch.randn(N, *size, dtype=torch.float64) for size in sizes]
    if not batched:
        return [t[0] for t in tensors]
    return tensors if build.get("batch_first") else [t.transpose(0, 1) for t in tensors]


def masks(batched: bool = True) -> dict[str, dict]:
    padding = torch.zeros(N, S, dtype=torch.bool)
    padding[:, -1] = padding[0, 2] = True
    padding = padding if batched else padding[0]
    hidden = torch.rand(L, S) > 0.7
    hidden[:, 0] = False
    of_heads = torch.randn((N if batched else 1) * HEADS, L, S, dtype=torch.float64)
    floating = torch.zeros(padding.shape, dtype=torch.float64).masked_fill_(padding, -torch.inf)
    return {
        "none": {},
        "padding": {"key_padding_mask": padding},
        "attn": {"attn_mask": hidden, "need_weights": False},
        "both": {"attn_mask": of_heads, "key_padding_mask": floating, "average_attn_weights": False},
        "no-weights": {"need_weights": False, "key_padding_mask": floating, "attn_mask": hidden.double()},
    }


def run(layer: nn.Module, given: list[Tensor], **arguments) -> tuple:
    layer.zero_grad()
    given = [t.detach().clone().requires_grad_() for t in given]
    output, weights = layer(*given, **arguments)
    torch.manual_seed(2)
    output.backward(torch.randn(output.shape, dtype=output.dtype))
    return output.detach(), weights, [t.grad for t in given], {n: p.grad.clone() for n, p in weights_of(layer).items()}


def made(build: dict, rule: str = "usf") -> tuple[MultiheadAttention, nn.MultiheadAttention]:
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(E, HEADS, **build, dtype=torch.float64)
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    return convert(plain, rule, seed=1), plain


@pytest.mark.parametrize("batched", [True, False], ids=["batch", "single"])
@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_outputs_are_torchs(build, batched):
    ours, plain = made(build)
    given = inputs(build, batched)
    for arguments in masks(batched).values():
        for training in True, False:
            expected, wanted = plain.train(training)(*given, **arguments)
            with torch.set_grad_enabled(training):
                output, weights = ours.train(training)(*given, **arguments)
            assert_close(output, expected)
            assert (weights is None) == (wanted is None)
            if wanted is not None:
                assert_close(weights, wanted)


@pytest.mark.parametrize("itself", [True, False], ids=["self", "cross"])
@pytest.mark.parametrize(
    "build", [BUILDS["plain"], BUILDS["both"], BUILDS["other-features"]], ids=["plain", "both", "kv"]
)
def test_back_propagation_has_torchs_gradients(build, itself):
    if itself and "kdim" in build:
        build = {name: value for name, value in build.items() if name not in ("kdim", "vdim")}
    ours, plain = made(build, "bp")
    given = inputs(build, itself=itself)
    for actual, expected in zip(run(ours, given)[2], run(plain, given)[2], strict=True):
        assert_close(actual, expected)
    actual, expected = run(ours, given)[3], run(plain, given)[3]
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_close(actual[name], gradient)
    with_rule, _ = made(build, "fa")
    with true_gradients(with_rule):
        for actual, expected in zip(run(with_rule, given)[2], run(plain, given)[2], strict=True):
            assert_close(actual, expected)


class _Through(torch.autograd.Function):
    """x Wᵀ, whose error passes through B."""

    @staticmethod
    def forward(ctx, x, w, b):
        ctx.save_for_backward(x, b)
        return x @ w.t()

    @staticmethod
    def backward(ctx, grad):
        x, b = ctx.saved_tensors
        return grad @ b, grad.flatten(0, -2).t() @ x.flatten(0, -2), None


@every_rule
@pytest.mark.parametrize("build", [BUILDS["plain"], BUILDS["other-features"]], ids=["packed", "separate"])
def test_errors_pass_through_the_feedback_of_each_projection(build, rule):
    ours, plain = made(build, rule)
    given = inputs(build)
    b = [layer.feedback_weight() for layer in (ours.q_proj, ours.k_proj, ours.v_proj, ours.out_proj)]
    for _ in range(2):
        output, _, down, learned = run(ours, given)
        weights = [w.detach().clone().requires_grad_() for w, _ in ours.projections()]
        biases = [bias.detach() for _, bias in ours.projections()]
        leaves = [t.detach().clone().requires_grad_() for t in given]
        q, k, v = (
            (_Through.apply(x, w, feedback) + bias).unflatten(-1, (HEADS, -1)).movedim(0, 2)
            for x, w, feedback, bias in zip(leaves, weights, b, biases, strict=False)
        )
        attended = torch.softmax(q @ k.transpose(2, 3) / (E // HEADS) ** 0.5, -1) @ v
        out_weight = plain.out_proj.weight.detach().clone().requires_grad_()
        expected = _Through.apply(attended.movedim(2, 0).flatten(2), out_weight, b[3]) + plain.out_proj.bias
        assert_close(output, expected.detach())
        torch.manual_seed(2)
        expected.backward(torch.randn(expected.shape, dtype=expected.dtype))
        for actual, leaf in zip(down, leaves, strict=True):
            assert_close(actual, leaf.grad)
        assert_close(learned["out_proj.weight"], out_weight.grad)
        names = ["in_proj_weight"] if "kdim" not in build else ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
        actual = torch.cat([learned[name].flatten() for name in names])
        assert_close(actual, torch.cat([w.grad.flatten() for w in weights]))
        if rule == "brsf":
            redrawn = [layer.feedback_weight() for layer in (ours.q_proj, ours.k_proj, ours.v_proj, ours.out_proj)]
            assert not any(torch.equal(new, old) for new, old in zip(redrawn, b, strict=True))
            b = redrawn


@every_rule
def test_checkpoints_copies_and_constructor(rule):
    ours, plain = made({"batch_first": True}, rule)
    assert list(weights_of(ours)) == list(dict(plain.named_parameters()))
    ours.load_state_dict(plain.state_dict(), strict=True)
    built = MultiheadAttention(E, HEADS, batch_first=True, dtype=torch.float64, rule=rule, seed=4)
    built.load_state_dict(ours.state_dict(), strict=True)
    given = inputs({}, itself=True)
    for again in copy.deepcopy(ours), built:
        for actual, expected in zip(run(again, given)[2], run(copy.deepcopy(ours), given)[2], strict=True):
            assert torch.equal(actual, expected)
    torch.manual_seed(3)
    fresh = MultiheadAttention(E, HEADS, rule=rule)
    torch.manual_seed(3)
    plain = nn.MultiheadAttention(E, HEADS)
    assert all(torch.equal(a, b) for a, b in zip(weights_of(fresh).values(), plain.parameters(), strict=True))
    empty = MultiheadAttention(E, HEADS, rule=rule, device="meta", seed=4).to_empty(device="cpu")
    empty.load_state_dict(fresh.state_dict() if rule != "brsf" else nn.MultiheadAttention(E, HEADS).state_dict())
    layers = [layer for layer in empty.modules() if isinstance(layer, FeedbackLayer)]
    assert all(layer.feedback_weight().isfinite().all() for layer in layers)
    assert list(inspect.signature(MultiheadAttention).parameters)[-5:-2] == ["rule", "feedback_init", "num_classes"]


@pytest.mark.parametrize("batch_first", [True, False])
def test_direct_feedback(batch_first):
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(E, HEADS, batch_first=batch_first, dtype=torch.float64)
            self.head = nn.Linear(E, 3, dtype=torch.float64)

        def forward(self, x):
            return self.head(self.attention(x, x, x)[0].mean(1 if batch_first else 0))

    torch.manual_seed(0)
    model = convert(Classifier(), "dfa")
    x = torch.randn((N, L, E) if batch_first else (L, N, E), dtype=torch.float64, requires_grad=True)
    error = torch.randn(N, 3, dtype=torch.float64)
    model(x).backward(error)
    attention = model.attention
    down = sum(error @ layer.feedback for layer in (attention.q_proj, attention.k_proj, attention.v_proj))
    assert_close(x.grad, down.unsqueeze(1 if batch_first else 0).expand_as(x).contiguous())


@every_rule
def test_transformer_layers(rule):
    torch.manual_seed(0)
    plain = nn.TransformerEncoderLayer(E, HEADS, 16, dropout=0.0, batch_first=True, dtype=torch.float64)
    model = convert(plain, rule, seed=0)
    assert sum(isinstance(m, FeedbackLayer) for m in model.modules()) == 6
    x, causal = torch.randn(N, L, E, dtype=torch.float64), nn.Transformer.generate_square_subsequent_mask(L).double()
    for training in True, False:
        assert_close(model.train(training)(x), plain.train(training)(x))
        with torch.no_grad():  # torch's fast path in evaluation
            assert_close(model(x, causal, is_causal=True), plain(x, causal, is_causal=True))
    decoder = nn.TransformerDecoderLayer(E, HEADS, 16, dropout=0.0, batch_first=True, dtype=torch.float64)
    assert_close(convert(decoder, rule)(x, x[:, :2], causal), decoder(x, x[:, :2], causal))


def test_rules_of_parts_and_errors():
    plain = nn.Sequential(nn.MultiheadAttention(E, HEADS, batch_first=True))
    only_output = convert(plain, {"0.out_proj": "usf"})
    assert (only_output[0].rule, only_output[0].out_proj.rule) == ("bp", "usf")
    only_input = convert(plain, {"0": "fa"})
    assert only_input[0].rule == "fa" and isinstance(only_input[0].out_proj, nn.Linear)
    again = convert(only_output, {"0": "frsf", "*": "bp"})
    assert (again[0].v_proj.rule, again[0].out_proj.rule) == ("frsf", "bp")
    x = torch.randn(N, L, E)
    for change in ({"attn_mask": torch.zeros(L, L + 1)}, {"key_padding_mask": torch.zeros(L, N)}, {"is_causal": True}):
        for layer in only_input[0], plain[0]:
            with pytest.raises((RuntimeError, AssertionError)):
                layer(x, x, x, **change)
        with pytest.raises(InputError, match="expected"):
            only_input[0](x, x, x, **change)
    with pytest.raises(InputError, match="expected"):
        only_input[0](x, x[0], x[0])
    redrawn = convert(plain, "fa", copy_weights=False, seed=3)[0]
    assert not torch.equal(redrawn.in_proj_weight, plain[0].in_proj_weight)
    assert torch.equal(redrawn.in_proj_weight, convert(plain, "fa", copy_weights=False, seed=3)[0].in_proj_weight)


def test_dropout_is_torchs():
    ours, plain = made({"batch_first": True, "dropout": 0.5}, "bp")
    given = inputs({}, itself=True)
    for needed in True, False:
        outputs = []
        for layer in ours, plain:
            torch.manual_seed(5)
            outputs.append(layer(*given, need_weights=needed)[0])
        assert_close(*outputs)
    assert not torch.equal(F.dropout(outputs[0], 0.5), outputs[0])
