"""Where direct feedback finds the logits, and what it does with dense ones, against formulas."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bionas_fast import InputError
from bionas_fast.nn import Conv2d, Linear, connect_direct_feedback, convert
from helpers.tolerances import assert_close


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor | None = None


class Wrapped(nn.Module):
    """Two layers whose logits are put into a structure."""

    def __init__(self, wrap) -> None:
        super().__init__()
        self.body, self.head = Linear(4, 6, rule="dfa"), Linear(6, 3, rule="dfa")
        self.wrap = wrap

    def forward(self, x: Tensor) -> object:
        return self.wrap(self.head(self.body(x).tanh()))


OUTPUTS = {
    "dict": (lambda y: {"rest": "rest", "logits": y}, None, lambda out: out["logits"]),
    "ordered-dict": (lambda y: OrderedDict(out=y, aux=y * 2), "out", lambda out: out["out"]),
    "dataclass": (lambda y: Output(y), None, lambda out: out.logits),
    "attribute": (lambda y: SimpleNamespace(scores=y), "scores", lambda out: out.scores),
    "index": (lambda y: ("rest", y), 1, lambda out: out[1]),
    "function": (lambda y: [{"a": (y, 1)}], lambda out: out[0]["a"][0], lambda out: out[0]["a"][0]),
    "module": (lambda y: {"anything": y}, "head", lambda out: out["anything"]),
}


@pytest.mark.parametrize(("wrap", "logits", "find"), OUTPUTS.values(), ids=OUTPUTS)
def test_the_logits_are_found_and_the_rest_is_unchanged(wrap, logits, find):
    torch.manual_seed(0)
    model = connect_direct_feedback(Wrapped(wrap), 3, logits=logits)
    x = torch.randn(5, 4, requires_grad=True)
    output = model(x)
    assert type(output) is type(wrap(x))
    e = torch.randn(5, 3)
    assert torch.equal(find(output), model.head(model.body(x.detach()).tanh().detach()))
    assert_close(torch.autograd.grad(find(output), x, e)[0], e @ model.body.feedback)


@pytest.mark.parametrize(
    ("wrap", "logits", "message"),
    [
        (
            lambda y: {"scores": y},
            None,
            r"logits: expected .* entry 'logits', got dict with scores; name them: .*logits=",
        ),
        (lambda y: {"scores": y}, "score", r"logits: unknown entry 'score'; did you mean 'scores'"),
        (lambda y: Output(y), "logit", r"logits: unknown entry 'logit'; did you mean 'logits'"),
        (lambda y: (y,), 3, r"logits: expected .*, got tuple"),
        (lambda y: None, None, r"logits: expected .*, got NoneType"),
        (lambda y: y, lambda out: "text", r"logits: expected .*, got Tensor"),
        (lambda y: y, lambda out: out * 2, r"logits: expected a function that returns a tensor of the output"),
        (
            lambda y: SimpleNamespace(logits=y, loss=y.sum()),
            None,
            r"logits: the model computes its loss itself.*module",
        ),
        (lambda y: y[:, :2], None, r"num_classes: .* 3 classes, .* \[5, 2\]; call .*num_classes=2\)"),
        (lambda y: y[:1], None, r"to run on the 1 samples of the logits \[1, 3\]"),
    ],
)
def test_bad_outputs(wrap, logits, message):
    model = connect_direct_feedback(Wrapped(wrap), 3, logits=logits)
    x = torch.randn(5, 4, requires_grad=True)
    with pytest.raises(InputError, match=message):
        model(x)


def test_a_module_whose_output_is_no_logits():
    model = connect_direct_feedback(Wrapped(lambda y: y), 3, logits="body")
    with pytest.raises(InputError, match=r"num_classes: direct feedback was made for 3 classes.* \[5, 6\]"):
        model(torch.randn(5, 4, requires_grad=True))


class Segmentation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Conv2d(2, 4, 3, padding=1, rule="dfa"), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": F.interpolate(self.head(self.body(x).tanh()), scale_factor=2)}


def test_dense_logits_of_images_send_the_sum_over_positions():
    torch.manual_seed(0)
    model = connect_direct_feedback(Segmentation().double(), 3, logits="out")
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    e = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    spread = e.sum((2, 3))[:, :, None, None].expand(-1, -1, 4, 4)
    expected = F.conv_transpose2d(spread, model.body.feedback, padding=1)
    assert_close(torch.autograd.grad(model(x)["out"], x, e)[0], expected)


@pytest.mark.parametrize("class_dim", [None, -1, 2])
def test_dense_logits_of_sequences(class_dim):
    torch.manual_seed(0)
    model = nn.Sequential(Linear(4, 6, rule="dfa"), nn.Tanh(), nn.Linear(6, 3)).double()
    connect_direct_feedback(model, 3, class_dim=class_dim)
    x, e = (torch.randn(2, 5, d, dtype=torch.float64) for d in (4, 3))
    x.requires_grad_()
    expected = (e.sum(1) @ model[0].feedback)[:, None].expand(-1, 5, -1)
    assert_close(torch.autograd.grad(model(x), x, e)[0], expected)


def test_rows_of_positions_receive_the_error_of_each():
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = Linear(4, 6, rule="dfa"), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x.flatten(0, 1))).unflatten(0, x.shape[:2])

    torch.manual_seed(0)
    model = connect_direct_feedback(Flat().double(), 3)
    x, e = (torch.randn(2, 5, d, dtype=torch.float64) for d in (4, 3))
    x.requires_grad_()
    assert_close(torch.autograd.grad(model(x), x, e)[0], e @ model.body.feedback)


def test_classes_and_positions_of_one_size_are_told_apart_by_name():
    model = nn.Sequential(Linear(4, 6, rule="dfa"), nn.Linear(6, 3)).double()
    x, e = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True), torch.randn(2, 3, 3, dtype=torch.float64)
    with pytest.raises(InputError, match=r"class_dim: .* 3 classes in logits \[2, 3, 3\]"):
        connect_direct_feedback(model, 3)(x)
    for dim in (1, 2):
        connect_direct_feedback(model, 3, class_dim=dim)
        expected = (e.sum(3 - dim) @ model[0].feedback)[:, None].expand(-1, 3, -1)
        assert_close(torch.autograd.grad(model(x), x, e)[0], expected)


def test_a_transformer_that_computes_its_loss_itself():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=3,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = convert(transformers.BertForSequenceClassification(config), {"bert.*": "dfa"}, num_classes=3)
    ids, labels = torch.randint(20, (4, 5)), torch.randint(3, (4,))

    def gradients(loss: Tensor) -> list[Tensor | None]:
        return list(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))

    expected = gradients(F.cross_entropy(model(ids).logits, labels))
    with pytest.raises(InputError, match=r"logits: the model computes its loss itself.*logits='classifier'"):
        model(ids, labels=labels)
    connect_direct_feedback(model, 3, logits="classifier")
    for e, a in zip(expected, gradients(model(ids, labels=labels).loss), strict=True):
        assert (a is None) == (e is None)
        if a is not None:
            assert_close(a, e)
