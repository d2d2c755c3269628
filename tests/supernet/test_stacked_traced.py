"""The stacked supernet under tracers: with fake tensors, and compiled."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import bionas_fast as bf
from bionas_fast.searching.frozen import frozen
from bionas_fast.space import get_space
from helpers.native import needs_native
from helpers.supernets import forget_graphs, with_nodes
from helpers.tolerances import SAME_BITS, TOLERANCES

#: A graph computes what its operators compute apart; that of torch 2.11 rounds the stem's gradient differently.
AS_EAGER = SAME_BITS if tuple(map(int, torch.__version__.split(".")[:2])) > (2, 11) else TOLERANCES[torch.float32]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fake_tensors(device):
    """Shapes, dtypes and devices without memory or a GPU; autograd on a GPU would need its driver."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device(device):
        net = bf.build_supernet(with_nodes("bionas", 2), channels=2, cells=1, in_channels=2)
        out = net(torch.randn(2, 2, 8, 8))
        assert out.shape == (2, 10)
        assert out.device.type == device
        if device == "cpu":
            out.sum().backward()
            for parameter in net.weight_parameters():
                assert parameter.grad.shape == parameter.shape


@pytest.mark.parametrize(
    ("backend", "operations", "amp"),
    [
        # Every operation of the reference is traced into, which takes long.
        ("reference", ("dil_conv_3x3", "max_pool_3x3", "skip_connect"), False),
        pytest.param("native", (), False, marks=needs_native),
        pytest.param("native", ("sep_conv_3x3", "max_pool_3x3", "skip_connect"), True, marks=needs_native),
    ],
)
def test_compiled_as_one_graph(backend, operations, amp):
    """Outputs, gradients, draws and running statistics of a few steps, then of the architecture and in evaluation."""
    torch._dynamo.reset()  # the limit of graphs is that of a function, here that of all cases
    space = with_nodes(get_space("bionas").restricted(("brsf", "kp"), operations), 2)
    net = bf.build_supernet(space=space, channels=3, cells=1, in_channels=2, seed=1)
    assert any(cell.kind == "reduce" for cell in net.cells)
    nets = net, copy.deepcopy(net)
    runs = nets[0], torch.compile(nets[1], fullgraph=True, backend="aot_eager")
    generator = torch.Generator().manual_seed(0)
    with bf.use_backend(backend):
        for wanted in ("weight_parameters", "weight_parameters", "alpha_parameters", None):
            x = torch.randn(2, 2, 6, 6, generator=generator)
            results = []
            for own, run in zip(nets, runs, strict=True):
                own.train(wanted is not None)
                parameters = [*getattr(own, wanted or "weight_parameters")()]
                forget_graphs()
                with frozen(p for p in own.parameters() if all(p is not other for other in parameters)):
                    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                        out = run(x)
                    found = torch.autograd.grad(out.square().sum(), parameters, allow_unused=True)
                results.append([out, *found, *own.buffers()])
            for ours, expected in zip(*results, strict=True):
                torch.testing.assert_close(ours, expected, **AS_EAGER)
