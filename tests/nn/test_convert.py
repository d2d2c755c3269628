"""Models of torch.nn's layers given learning rules, against the models they were made from."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from bionas_fast import BionasWarning, InputError, convert
from bionas_fast import nn as bf_nn
from bionas_fast.nn import Conv2d, FeedbackLayer, Linear
from helpers.tolerances import assert_close

RULES = ("bp", "fa", "usf", "brsf", "frsf", "dfa", "kp", "nsf")


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect"),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, groups=2, bias=False), nn.ReLU(), nn.Flatten()),
        nn.Linear(36, 5),
    )


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, 8, 8, generator=generator), torch.randint(5, (6,), generator=generator)


def rules_of(model: nn.Module) -> dict[str, str]:
    return {name: layer.rule for name, layer in model.named_modules() if isinstance(layer, FeedbackLayer)}


# Converted layers


@pytest.mark.parametrize("rule", RULES)
def test_every_layer_gets_the_rule_and_keeps_its_output(rule):
    model, (x, _) = small(), batch()
    converted = convert(model, rule)
    assert rules_of(converted) == dict.fromkeys(("0", "3.0", "4"), rule)
    assert torch.equal(converted(x), model(x))
    assert all(a is not b for a, b in zip(model.modules(), converted.modules(), strict=True))


def test_every_kind_of_layer_is_converted():
    convolutions = [kind(2, 3, 3) for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)]
    transposed = [kind(2, 3, 3) for kind in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)]
    lazy = [nn.LazyConv1d(3, 3), nn.LazyConvTranspose2d(3, 3), nn.LazyLinear(3)]
    model = nn.ModuleList([*convolutions, *transposed, *lazy, nn.Linear(2, 3), nn.MultiheadAttention(4, 2)])
    for layer, plain in zip(convert(model, "fa"), model, strict=True):
        assert type(layer) is getattr(bf_nn, type(plain).__name__) and layer.rule == "fa"


def test_the_model_itself_may_be_a_layer():
    layer = nn.Linear(3, 2)
    converted = convert(layer, "usf")
    assert type(layer) is nn.Linear and type(converted) is Linear
    assert convert(layer, "usf", inplace=True) is layer and type(layer) is Linear


def test_the_original_is_left_as_it_was():
    model = small()
    before = copy.deepcopy(model)
    converted = convert(model, "brsf", copy_weights=False)
    assert str(model) == str(before)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
    assert not {id(p) for p in model.parameters()} & {id(p) for p in converted.parameters()}


def test_inplace_keeps_parameter_objects_and_an_optimiser_made_before():
    model, (x, target) = small(), batch()
    optimizer, parameters = torch.optim.SGD(model.parameters(), lr=0.1), list(model.parameters())
    assert convert(model, "usf", inplace=True) is model
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    before = model[0].weight.detach().clone()
    F.cross_entropy(model(x), target).backward()
    optimizer.step()
    assert_close(model[0].weight.detach(), before - 0.1 * model[0].weight.grad)
    assert model[0].weight.grad.abs().min() > 0


def test_weights_are_drawn_anew_on_request():
    model = small()
    one, two = (convert(model, "fa", copy_weights=False, feedback_init="xavier", seed=s) for s in (1, 1))
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            ours, bound = one.get_submodule(name), (6 / (layer.weight[0].numel() + layer.weight[:, 0].numel())) ** 0.5
            assert not torch.equal(ours.weight, layer.weight)
            assert 0.8 * bound < ours.weight.abs().max() <= bound
            assert ours.bias is None or not ours.bias.any()
            assert torch.equal(ours.weight, two.get_submodule(name).weight)


def test_weights_are_drawn_anew_on_a_gpu(cuda):
    model = small().to(cuda)
    converted = convert(model, "fa", copy_weights=False, seed=1)
    assert converted[4].weight.is_cuda and not torch.equal(converted[4].weight, model[4].weight)


def test_seeds_decide_the_feedback():
    model = small()
    same, again, other = (convert(model, "fa", seed=s)[4].feedback for s in (3, 3, 4))
    assert torch.equal(same, again) and not torch.equal(same, other)
    torch.manual_seed(8)
    by_generator = convert(model, "fa")[4].feedback
    torch.manual_seed(8)
    assert torch.equal(by_generator, convert(model, "fa")[4].feedback)
    twins = convert(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), "fa")
    assert not torch.equal(twins[0].feedback, twins[1].feedback)


# The choice of rules


def test_the_first_pattern_that_matches_counts():
    assert rules_of(convert(small(), {"3.*": "frsf", "[03]*": "fa", "*": "bp"})) == {
        "0": "fa",
        "3.0": "frsf",
        "4": "bp",
    }
    assert rules_of(convert(small(), {"4": "usf"})) == {"4": "usf"}


def test_a_pattern_that_matches_nothing_names_the_nearest():
    model = torchvision.models.resnet18()
    with pytest.raises(InputError, match=r"unknown layer pattern 'layer1\.0\.con1'; did you mean 'layer1\.0\.conv1'"):
        convert(model, {"layer1.0.con1": "usf", "*": "bp"}, inplace=True)
    assert not rules_of(model)


def test_a_function_chooses_by_name_and_module():
    def choose(name, module):
        return "usf" if isinstance(module, nn.Conv2d) and module.groups == 1 else None

    converted = convert(small(), choose)
    assert rules_of(converted) == {"0": "usf"}
    assert type(converted[4]) is nn.Linear


def test_a_converted_model_can_be_given_other_rules():
    x, target = batch()
    model = convert(convert(small(), "brsf"), {"0": "dfa", "4": "dfa", "*": "frsf"})
    assert rules_of(model) == {"0": "dfa", "3.0": "frsf", "4": "dfa"}
    assert {name for name, _ in model.named_buffers() if "feedback" in name} == {
        "0.feedback",
        "3.0.feedback",
        "4.feedback",
    }
    F.cross_entropy(model(x), target).backward()
    assert all(p.grad.any() for p in model.parameters())


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("brfs", "unknown rule 'brfs'; did you mean 'brsf'"),
        ({"*": "upsf"}, "unknown rule 'upsf'; did you mean 'usf'"),
        (lambda name, module: None, "nothing to convert: Sequential"),
        (lambda name, module: "af", "unknown rule 'af'; did you mean 'fa'"),
    ],
    ids=["name", "mapping", "function-chooses-none", "function"],
)
def test_a_choice_that_makes_no_sense_changes_nothing(rule, message):
    model = small()
    with pytest.raises(InputError, match=message):
        convert(model, rule, inplace=True)
    assert not rules_of(model)


def test_nothing_to_convert():
    with pytest.raises(InputError, match="nothing to convert: ReLU"):
        convert(nn.ReLU())


def test_direct_feedback_infers_the_number_of_classes():
    assert convert(small(), "dfa")[0].feedback.shape == (5, 3, 3, 3)
    assert convert(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), "dfa")[0].feedback.shape == (2, 3)
    headless = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InputError, match="'dfa' needs num_classes: the model has no linear layer"):
        convert(headless, "dfa", inplace=True)
    assert not rules_of(headless)
    assert convert(headless, "dfa", num_classes=4)(torch.ones(1, 3, 4, 4)).shape == (1, 4)


# Supported models


def test_tied_weights_stay_tied():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    for converted in convert(model, "usf"), convert(model, "usf", copy_weights=False):
        assert converted[0].weight is converted[2].weight
    x = torch.randn(3, 4)
    converted = convert(model, "usf")
    converted(x).sum().backward()
    # Σ over both uses, with the error through c · sign(W) in between
    w, (b0, b2) = model[0].weight.detach(), (model[i].bias.detach() for i in (0, 2))
    h = F.relu(F.linear(x, w, b0))
    down = torch.ones(3, 4) @ (w.sign() / 12**0.5) * (h > 0)
    assert_close(converted[0].weight.grad, down.t() @ x + torch.ones(4, 3) @ h)
    assert_close(converted(x), F.linear(h, w, b2))


def test_hooks_and_modes_are_kept():
    seen = []
    model = small().eval()
    model[0].register_forward_hook(lambda module, args, output: seen.append(type(module)))
    model[4].weight.requires_grad_(False)
    converted = convert(model, "usf")
    converted(batch()[0])
    assert seen == [Conv2d]
    assert not converted.training and not converted[4].weight.requires_grad
    assert [name for name, _ in converted.named_parameters()] == [name for name, _ in model.named_parameters()]


def test_subclasses_are_left_alone_with_a_warning():
    class Scaled(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    model = nn.Sequential(nn.Linear(3, 3), Scaled(3, 2))
    with pytest.warns(BionasWarning, match=r"^convert: 1 \(Scaled, a subclass of Linear\) cannot"):
        converted = convert(model, "usf")
    assert type(converted[1]) is Scaled and rules_of(converted) == {"0": "usf"}


def test_double_precision_models_get_double_precision_feedback():
    converted = convert(small().double(), {"0": "fa", "3.0": "brsf", "4": "dfa"})
    assert converted[0].feedback.dtype == converted[4].feedback.dtype == torch.float64
    assert converted[3][0].feedback_stream.dtype == torch.int64
    x, target = batch()
    F.cross_entropy(converted(x.double()), target).backward()
    assert converted[0].weight.grad.dtype == torch.float64


def test_a_checkpoint_of_the_original_loads_strictly():
    model = small()
    converted = convert(model, "usf", copy_weights=False)
    converted.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(converted(batch()[0]), model(batch()[0]))


# A whole network


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    """ResNet-18 without its last stage, which holds three quarters of the weights."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    model.layer4, model.fc = nn.Identity(), nn.Linear(256, 4)
    return model


@pytest.mark.parametrize("rule", RULES)
def test_resnet18_learns_a_batch(resnet, rule):
    torch.manual_seed(1)
    model, x, target = convert(resnet, rule, seed=0), torch.randn(8, 3, 32, 32), torch.arange(8) % 4
    assert len(rules_of(model)) == 16
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), []
    for _ in range(10):
        loss = F.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3]), losses
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_resnet18_under_back_propagation_has_the_originals_gradients(resnet):
    torch.manual_seed(1)
    original, model, x = copy.deepcopy(resnet), convert(resnet, "bp"), torch.randn(2, 3, 32, 32)
    for it in original, model:
        it(x).square().mean().backward()
    for (name, p), q in zip(original.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name


@pytest.mark.parametrize("rule", ["brsf", "dfa"])
def test_a_whole_model_can_be_pickled(rule):
    model, (x, target) = convert(small(), rule, seed=0), batch()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    for it in model, again:
        F.cross_entropy(it(x), target).backward()
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_conversion_under_fake_tensors():
    with FakeTensorMode():
        model = convert(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), "fa", inplace=True)
        assert model(torch.randn(5, 4)).shape == (5, 2)


def test_two_conversions_draw_different_feedback():
    torch.manual_seed(0)
    plain = nn.Linear(4, 3)
    first, second = convert(plain, "fa"), convert(plain, "fa")
    assert not torch.equal(first.feedback, second.feedback)
    torch.manual_seed(0)
    nn.Linear(4, 3)
    assert torch.equal(convert(plain, "fa").feedback, first.feedback)
