"""Plain copies of models: the layers, weights and outputs of torch.nn."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import fx, nn
from torch.ao.quantization import get_default_qconfig_mapping, quantize_dynamic
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torch.nn.utils import parametrizations, parametrize, prune
from torchvision.models.feature_extraction import create_feature_extractor

import bionas_fast as bf
from bionas_fast import InputError
from helpers.genotypes import GENOTYPE, random_genotype
from helpers.learned import MECHANISMS
from helpers.tolerances import SAME_BITS

NB201 = bf.Genotype.from_nb201(
    "|nor_conv_3x3@usf~0|+|none~0|skip_connect@brsf~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1@fa~2|"
)
IMAGES = torch.randn(3, 3, 9, 8, generator=torch.Generator().manual_seed(0))


def original() -> nn.Sequential:
    """Layers of several kinds, two of which share their weight, and one that occurs twice."""
    torch.manual_seed(0)
    twice = nn.Linear(6, 6)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 8, 3, stride=2, groups=4, bias=False),
        nn.Conv2d(8, 4, 1),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Unflatten(1, (4, 9)),
        nn.Conv1d(4, 4, 3, dilation=2),
        nn.ConvTranspose1d(4, 2, 2, stride=2),
        nn.Flatten(),
        nn.Linear(20, 6),
        twice,
        nn.Tanh(),
        twice,
        nn.Linear(6, 6),
        nn.Dropout(0.5),
    )
    model[15].weight = twice.weight
    return model


def modules_of_this_package(model: nn.Module) -> list[str]:
    return [
        name for name, m in model.named_modules() for c in type(m).__mro__ if c.__module__.startswith("bionas_fast")
    ]


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("rule", MECHANISMS)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_converted_model(rule, training):
    theirs = original().train(training)
    ours = bf.convert(theirs, rule, num_classes=6)
    before = copy.deepcopy(ours.state_dict())
    plain = bf.to_torch(ours)
    assert modules_of_this_package(plain) == []
    assert [type(m) for m in plain.modules()] == [type(m) for m in theirs.modules()]
    assert hooks(plain) == 0
    assert plain.training == training
    assert plain[12] is plain[14]
    assert plain[15].weight is plain[12].weight
    # The attributes of the layers, too: a layer differs in nothing from torch.nn's.
    for own, other in zip(plain.modules(), theirs.modules(), strict=True):
        assert set(vars(own)) == set(vars(other))
    expected = {name for name, _ in theirs.named_parameters(remove_duplicate=False)}
    assert {name for name, _ in plain.named_parameters(remove_duplicate=False)} == expected
    original().load_state_dict(plain.state_dict(), strict=True)
    outputs = []
    for model in (theirs, plain, ours):
        torch.manual_seed(1)  # of the dropout
        outputs.append(model(IMAGES))
    torch.testing.assert_close(outputs[1], outputs[0], **SAME_BITS)
    torch.testing.assert_close(outputs[2], outputs[0], **SAME_BITS)
    # The model is unchanged but for its statistics, and shares nothing with its copy.
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.zero_()
    for name, value in ours.state_dict().items():
        assert training or torch.equal(value, before[name]), name
    # What learns, learns by back-propagation.
    restored = copy.deepcopy(theirs)
    plain.load_state_dict(restored.state_dict())
    for model in (plain, restored):
        torch.manual_seed(2)
        model(IMAGES).square().sum().backward()
    for own, other in zip(plain.parameters(), restored.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, **SAME_BITS)


@pytest.mark.parametrize(
    "make", [lambda: bf.nn.Linear(3, 2, rule="fa"), lambda: nn.Linear(3, 2)], ids=["ours", "torch"]
)
def test_a_layer_alone(make):
    layer = make()
    plain = bf.to_torch(layer)
    assert type(plain) is nn.Linear
    assert torch.equal(plain(torch.ones(1, 3)), layer(torch.ones(1, 3)))


def test_hooks_of_users_remain_and_those_of_direct_feedback_go():
    model = bf.convert(nn.Sequential(nn.Flatten(), nn.Linear(216, 4), nn.Linear(4, 3)), "dfa")
    seen = []
    model.register_forward_hook(lambda module, args, output: seen.append("model"))
    model[1].register_forward_pre_hook(lambda module, args: seen.append("layer"))
    plain = bf.to_torch(model)
    assert hooks(plain) == 2
    plain(IMAGES).sum().backward()
    assert seen == ["layer", "model"]
    assert plain[1].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("how", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrised_layers(how):
    layer = bf.nn.Linear(5, 4, rule="frsf")
    getattr(parametrizations, how)(layer)
    plain = bf.to_torch(nn.Sequential(layer.eval()))
    assert modules_of_this_package(plain) == []
    assert parametrize.is_parametrized(plain[0], "weight")
    x = torch.randn(3, 5)
    torch.testing.assert_close(plain(x), layer(x), **SAME_BITS)
    parametrize.remove_parametrizations(plain[0], "weight")
    assert type(plain[0]) is nn.Linear


@pytest.mark.parametrize("rule", ["fa", "brsf", "dfa"])
def test_attention(rule):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    theirs = nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 3)).eval()
    ours = bf.convert(theirs, rule, num_classes=3)
    plain = bf.to_torch(ours)
    assert modules_of_this_package(plain) == []
    assert [type(module) for module in plain.modules()] == [type(module) for module in theirs.modules()]
    assert set(plain.state_dict()) == set(theirs.state_dict())
    for own, other in zip(plain.modules(), theirs.modules(), strict=True):
        assert set(vars(own)) == set(vars(other))
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(plain(x), theirs(x), **SAME_BITS)
    torch.testing.assert_close(plain(x), ours(x))


def test_a_layer_of_another_library():
    from transformers.pytorch_utils import Conv1D

    theirs = nn.Sequential(Conv1D(4, 6), nn.Tanh())
    plain = bf.to_torch(bf.convert(theirs, "usf"))
    assert type(plain[0]) is Conv1D
    x = torch.randn(3, 6)
    torch.testing.assert_close(plain(x), theirs(x), **SAME_BITS)
    with bf.true_gradients(plain):  # nothing of it is left
        assert set(vars(plain[0])) == set(vars(theirs[0]))


def test_a_model_inside_true_gradients():
    model = bf.convert(nn.Sequential(nn.Linear(4, 3)), "usf")
    with bf.true_gradients(model):
        plain = bf.to_torch(model)
    assert set(vars(plain[0])) == set(vars(nn.Linear(4, 3)))


def test_pruned_layers():
    layer = bf.nn.Linear(5, 4, rule="usf")
    prune.random_unstructured(layer, "weight", 0.5)
    with torch.no_grad():
        expected = layer(torch.eye(5))  # computes the weight, without a graph that a copy would lack
    plain = bf.to_torch(layer)
    assert type(plain) is nn.Linear
    assert torch.equal(plain(torch.eye(5)), expected)
    assert (plain.weight == 0).sum() == 10


@pytest.mark.parametrize(
    ("genotype", "size"),
    [(GENOTYPE, (9, 7)), (random_genotype(1), (8, 8)), (NB201, (9, 7))],
    ids=["small", "paper", "nb201"],
)
def test_a_genotype_network(genotype, size):
    network = bf.build_network(genotype, channels=3, cells=3, auxiliary=True)
    network(torch.randn(4, 3, *size))  # gives the statistics values
    plain = bf.to_torch(network.eval())
    assert modules_of_this_package(plain) == []
    assert hooks(plain) == 0
    x = torch.randn(2, 3, *size)
    torch.testing.assert_close(plain(x), network(x), **SAME_BITS)
    names = {name for name in network.state_dict() if not name.startswith("auxiliary.")}
    rest = names - set(plain.state_dict())
    assert set(plain.state_dict()) <= names
    assert all("feedback" in name for name in rest)
    # Nothing of the mode was traced but the absence of the auxiliary head and of drop-path.
    quiet = bf.build_network(genotype, channels=3, cells=3)
    quiet.load_state_dict({name: network.state_dict()[name] for name in names})
    with bf.use_backend("reference"):  # in training, kernels for whole cells round differently
        expected = quiet.train()(x)
    torch.testing.assert_close(plain.train()(x), expected, **SAME_BITS)
    scripted = torch.jit.script(plain.eval())
    torch.testing.assert_close(scripted(x), plain(x), **SAME_BITS)
    assert torch.equal(fx.symbolic_trace(plain)(x), plain(x))


def test_a_genotype_network_inside_another_model():
    network = bf.build_network(GENOTYPE, channels=2, cells=3)
    model = nn.ModuleDict({"a": nn.Sequential(nn.Identity(), network), "b": network}).eval()
    plain = bf.to_torch(model)
    assert plain["a"][1] is plain["b"]
    assert modules_of_this_package(plain) == []
    assert torch.equal(plain["a"](IMAGES), network(IMAGES))
    assert modules_of_this_package(model) != []
    assert not any(module.training for module in plain.modules())


@pytest.mark.parametrize(
    "arguments",
    [{}, {"bias": True}, {"mode": "mixed"}, {"padding": 1, "padding_mode": "circular", "groups": 3}],
    ids=str,
)
def test_hebbian_layers_become_layers_of_their_weights(arguments):
    torch.manual_seed(0)
    layer = bf.nn.HebbianConv2d(3, 6, 3, **arguments)
    layer(IMAGES)  # learns
    plain = bf.to_torch(layer.eval())
    assert type(plain) is nn.Conv2d
    assert set(plain.state_dict()) == ({"weight", "bias"} if arguments.get("bias") else {"weight"})
    # A bias is added after or within the sum.
    torch.testing.assert_close(plain(IMAGES), layer(IMAGES), **({} if arguments.get("bias") else SAME_BITS))
    linear = bf.nn.HebbianLinear(4, 3)
    assert torch.equal(bf.to_torch(linear.eval())(torch.eye(4)), linear(torch.eye(4)))


def test_a_softhebb_network():
    network = bf.build_softhebb("mnist", in_channels=1, image_size=(16, 16)).eval()
    x = torch.randn(2, 1, 16, 16)
    plain = bf.to_torch(network)
    assert modules_of_this_package(plain) == []
    torch.testing.assert_close(plain(x), network(x), **SAME_BITS)


class Doubled(bf.nn.Linear):
    """A user's subclass, whose forward torch.nn does not have."""

    def forward(self, input):
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.Identity(), bf.nn.PredictiveConv2d(3, 3, 3)), r"to_torch: 1 \(PredictiveConv2d\)"),
        (lambda: Doubled(3, 2), r"to_torch: the model \(Doubled\): .*forward of its base class"),
        (lambda: bf.nn.LazyLinear(3, rule="fa"), r"to_torch: the model \(LazyLinear\): .*known shape"),
        (lambda: bf.build_supernet(channels=1, cells=1), r"to_torch: the model \(StackedSupernet\)"),
    ],
    ids=["predictive", "subclass", "lazy", "supernet"],
)
def test_what_torch_has_not_is_named(make, message):
    with pytest.raises(InputError, match=message):
        bf.to_torch(make())


@pytest.fixture
def nondeterministic():
    torch.use_deterministic_algorithms(False)  # quantised ops have no such implementation
    yield
    torch.use_deterministic_algorithms(True)


NETWORKS = {
    "genotype": lambda: bf.build_network(GENOTYPE, channels=2, cells=3, auxiliary=True),
    "resnet20": lambda: bf.build_resnet("resnet20", rule="dfa"),
    "resnet18": lambda: bf.build_resnet("resnet18", rule="usf"),
    "softhebb": lambda: bf.build_softhebb("mnist", image_size=(9, 8)),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_symbolic_trace_and_feature_extraction(kind):
    """Every layer of a plain copy is a node of its graph, by name; the features are those of hooks on the network."""
    network = NETWORKS[kind]().eval()
    plain = bf.to_torch(network)
    torch.testing.assert_close(fx.symbolic_trace(plain)(IMAGES), network(IMAGES))
    layers = [
        name
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and not name.startswith("auxiliary")
    ]
    assert len(layers) > 2
    seen = {}
    for name in layers:
        network.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: seen.setdefault(name, out))
    network(IMAGES)
    found = create_feature_extractor(plain, layers)(IMAGES)
    for name in layers:
        torch.testing.assert_close(found[name], seen[name])


@pytest.mark.parametrize("make", [lambda: bf.convert(original(), "brsf"), NETWORKS["genotype"], NETWORKS["resnet20"]])
def test_quantisation(make, nondeterministic):
    model = make().eval()
    plain = bf.to_torch(model)
    expected = model(IMAGES)
    dynamic = quantize_dynamic(plain, {nn.Linear})
    assert (dynamic(IMAGES) - expected).abs().max() < 0.1 * expected.abs().max()
    prepared = prepare_fx(plain, get_default_qconfig_mapping("x86"), (IMAGES,))
    prepared(IMAGES)
    quantised = convert_fx(prepared)
    assert (quantised(IMAGES) - expected).norm() < 0.5 * expected.norm()
