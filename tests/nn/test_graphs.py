"""Graphs of models for other programs: torch.fx, feature extraction, torch.export, ONNX."""

from __future__ import annotations

import onnxruntime
import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim, export
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import bionas_fast as bf
from bionas_fast import InputError, rules
from bionas_fast.nn import FeedbackLayer
from helpers.genotypes import GENOTYPE
from helpers.learned import MECHANISMS
from helpers.tolerances import REORDERED_FLOAT32, SAME_BITS

NB201 = bf.Genotype.from_nb201(
    "|nor_conv_3x3@usf~0|+|none~0|skip_connect@brsf~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1@fa~2|"
)
MIXED = {"[0-4]": "brsf", "7": "fa", "8": "usf", "10": "dfa", "*": "frsf"}
each_rule = pytest.mark.parametrize("rule", MECHANISMS)


def layers() -> nn.Sequential:
    """Layers that take different paths: few channels, groups, 1×1, padding by a function, several positions."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        nn.ReLU(),
        nn.Conv2d(4, 8, 1),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding="same", groups=8),
        nn.ConvTranspose2d(8, 4, 2, stride=2),
        nn.Flatten(2),
        nn.Conv1d(4, 2, 5, stride=5),
        nn.Linear(51, 6),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


def network(genotype: bf.Genotype = GENOTYPE) -> nn.Module:
    net = bf.build_network(genotype, channels=4, cells=3, num_classes=5, auxiliary=True)
    net.drop_path = 0.2
    net(torch.randn(4, 3, 8, 8))  # gives the statistics values
    return net


def images(count: int = 3, size: tuple[int, int] = (8, 8)) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(count))


def leaves(graph: fx.Graph) -> set[str]:
    return {node.target for node in graph.nodes if node.op == "call_module"}


def rule_layers(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, FeedbackLayer)}


@each_rule
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_symbolic_trace_of_a_converted_model(rule, training):
    theirs = layers()
    model = bf.convert(theirs, rule, num_classes=5).train(training)
    traced = fx.symbolic_trace(model)
    assert [(n.op, n.target) for n in traced.graph.nodes] == [
        (n.op, n.target) for n in fx.symbolic_trace(theirs).graph.nodes
    ]
    direct = rules.get(rule).mode == "direct"  # its error comes from the logits of the model
    with torch.set_grad_enabled(not (training and direct)):
        torch.testing.assert_close(traced(images()), model(images()), **SAME_BITS)
    gradients = []
    for one in (model, traced):
        if one is traced:
            bf.nn.connect_direct_feedback(traced)  # a trace has no hooks
        model.zero_grad()
        for module in model.modules():
            if getattr(module, "feedback_stream", None) is not None:
                module.feedback_stream[1] = 0
        logits = one.train()(images())
        nn.functional.cross_entropy(logits, torch.arange(len(logits))).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other, **SAME_BITS)


@pytest.mark.parametrize("genotype", [GENOTYPE, GENOTYPE.with_rule("dfa"), NB201], ids=["mixed", "dfa", "nb201"])
def test_symbolic_trace_of_a_genotype_network(genotype):
    net = network(genotype).eval()
    traced = fx.symbolic_trace(net)
    assert leaves(traced.graph) >= {name for name in rule_layers(net) if not name.startswith("auxiliary")}
    for size in ((8, 8), (9, 7)):  # one graph for all sizes
        torch.testing.assert_close(traced(images(2, size)), net(images(2, size)), **SAME_BITS)
    traced = fx.symbolic_trace(net.train())
    assert leaves(traced.graph) >= rule_layers(net)
    with torch.no_grad():
        assert len(traced(images())) == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: bf.nn.HebbianConv2d(3, 4, 3),
        lambda: bf.nn.PredictiveConv2d(3, 4, 3),
        lambda: nn.Sequential(nn.Flatten(), bf.nn.HebbianLinear(192, 4)),
        lambda: nn.Sequential(bf.nn.HebbianConv2d(3, 4, 3), bf.nn.Triangle(0.7)),
    ],
    ids=["hebbian", "predictive", "linear", "triangle"],
)
def test_symbolic_trace_of_plastic_layers(make):
    model = nn.Sequential(make()).eval()
    assert torch.equal(fx.symbolic_trace(model)(images()), model(images()))


def test_symbolic_trace_of_attention():
    class Attended(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0]

    theirs = Attended().eval()
    model = bf.convert(theirs, "frsf")
    traced = fx.symbolic_trace(model)
    assert leaves(traced.graph) == leaves(fx.symbolic_trace(theirs).graph) == {"attention"}
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(traced(x), model(x), **SAME_BITS)
    program = export(model, (x,))
    assert not any("bionas_fast" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), theirs(x))


@pytest.mark.parametrize("rule", ["brsf", "dfa"])
def test_feature_extraction(rule):
    torch.manual_seed(0)
    theirs = resnet18(num_classes=4).eval()
    model = bf.convert(theirs, rule, num_classes=4)
    nodes = ["conv1", "layer1.0.conv1", "layer2.0.downsample.0", "avgpool", "fc"]
    assert get_graph_node_names(model) == get_graph_node_names(theirs)
    expected = create_feature_extractor(theirs, nodes)(images(1, (32, 32)))
    found = create_feature_extractor(model, nodes)(images(1, (32, 32)))
    for name in nodes:
        torch.testing.assert_close(found[name], expected[name], **SAME_BITS)


def test_feature_extraction_from_a_genotype_network():
    net = network().eval()
    extractor = create_feature_extractor(net, ["stem.1", "cells.1.cat", "classifier"])
    found = extractor(images())
    assert torch.equal(found["stem.1"], net.stem(images()))
    assert torch.equal(found["classifier"], net(images()))
    assert found["cells.1.cat"].shape[1] == net.cells[1].out_channels


def test_part_of_a_model_with_direct_feedback():
    """In evaluation a part runs without the logits, by the error of back-propagation; in training it is refused."""
    model = bf.convert(nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Linear(4, 3)), "dfa")
    part = model[:2].eval()
    x = images().requires_grad_()
    part(x).sum().backward()
    torch.testing.assert_close(x.grad.flatten(1), model[1].weight.sum(0).expand(3, -1))
    with pytest.raises(InputError, match="outside the forward pass"):
        part.train()(x)
    # The whole model in evaluation still uses B.
    x.grad = None
    model.eval()(x).sum().backward()
    assert not torch.allclose(x.grad.flatten(1), (model[2].weight @ model[1].weight).sum(0).expand(3, -1))


def dynamic(model: nn.Module, strict: bool = False) -> torch.export.ExportedProgram:
    return export(model, (images(),), dynamic_shapes=({0: Dim("batch", min=1, max=64)},), strict=strict)


def expect_same(program: torch.export.ExportedProgram, model: nn.Module) -> None:
    own = {str(n.target) for n in program.graph.nodes if n.op == "call_function" and "bionas_fast" in str(n.target)}
    assert own == set()
    for count in (1, 3, 5):
        torch.testing.assert_close(program.module()(images(count)), model(images(count)))


@each_rule
def test_export_of_a_converted_model(rule):
    model = bf.convert(layers(), rule, num_classes=5).eval()
    expect_same(dynamic(model), model)


@pytest.mark.parametrize(
    ("genotype", "strict"),
    [(GENOTYPE.with_rule("dfa"), False), (NB201, False), (GENOTYPE, True)],
    ids=["dfa", "nb201", "strict"],
)
def test_export_of_a_genotype_network(genotype, strict):
    model = network(genotype).eval()
    expect_same(dynamic(model, strict), model)


def test_strict_export_of_a_converted_model():
    model = bf.convert(layers(), MIXED, num_classes=5).eval()
    expect_same(dynamic(model, strict=True), model)


ONNX = {
    "converted": lambda: bf.convert(layers(), MIXED, num_classes=5),
    "genotype": network,
    "to_torch": lambda: bf.to_torch(network(NB201).eval()),
    "hebbian": lambda: nn.Sequential(bf.nn.HebbianConv2d(3, 4, 3, padding=1), bf.nn.Triangle(0.7), nn.Flatten(1)),
}


@pytest.mark.parametrize("case", ONNX)
def test_onnx(case, tmp_path):
    model = ONNX[case]().eval()
    path = tmp_path / "model.onnx"
    shapes = ({0: Dim("batch", min=1, max=64)},)
    torch.onnx.export(model, (images(),), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 5):
        (output,) = session.run(None, {session.get_inputs()[0].name: images(count).numpy()})
        expected = model(images(count)).detach()
        error = (torch.from_numpy(output) - expected).abs().max() / expected.abs().max()
        assert error < REORDERED_FLOAT32
