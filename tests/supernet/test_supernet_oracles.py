"""The supernet against recordings of the code published with the paper."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bionas_fast.searching.config import SearchConfig
from bionas_fast.searching.darts import Darts
from bionas_fast.space import get_space
from bionas_fast.space.cells import CellShape
from bionas_fast.supernet import SupernetOptions, build_supernet
from bionas_fast.supernet.mixed_op import MixedOp
from bionas_fast.supernet.modular import ModularCell
from bionas_fast.supernet.stacked import StackedCell
from helpers.oracles.data import assert_close, cases, load
from helpers.oracles.supernet import candidate_order, entries, gradients, inject, to_ours, to_published
from helpers.tolerances import RECORDED, RECORDED_NETWORK


def _check_gradients(module, arrays, info, primitives, tolerance):
    names = [text.split()[0] for text in info["weights_index"]]
    grads = gradients(module, names, primitives)
    assert_close(torch.stack([grads[name].norm() for name in names]), arrays["grad_norms"], tolerance, "gradient norms")
    # One word, "all…", stands for every tensor.
    index = info["weights_index"] if isinstance(info["grads_index"], str) else info["grads_index"]
    for name, (expected, _) in entries([" ".join(t.split()[:2]) for t in index], arrays["grads_flat"]).items():
        # A gradient that vanishes by symmetry is judged against the others' size.
        scale = max(expected.abs().max().item(), 1e-3 * arrays["grads_flat"].abs().max().item())
        error = (grads[name] - expected).abs().max().item()
        assert error <= tolerance * scale, f"{name}: error {error:.3g} for {scale:.3g}"


SPACE = get_space("bionas")
CANDIDATES = tuple(candidate.without_skip_rule() for candidate in SPACE.candidates)


@pytest.mark.parametrize("case", cases("lrnas_mixedop"))
def test_mixed_op(case):
    arrays, info = load("lrnas_mixedop", case)
    primitives = info["arguments"]["primitives"]
    op = MixedOp(CANDIDATES, info["arguments"]["C"], info["arguments"]["stride"])
    inject(op, arrays, info, primitives)
    x = arrays["x"].clone().requires_grad_()
    weights = to_ours(arrays["op_weights"], primitives).requires_grad_()
    output = op(x, weights)
    output.backward(arrays["grad_output"])
    assert_close(output, arrays["output"], RECORDED, "output")
    assert_close(x.grad, arrays["grad_x"], RECORDED, "grad_x")
    assert_close(to_published(weights.grad, primitives), arrays["grad_op_weights"], RECORDED, "grad_op_weights")
    _check_gradients(op, arrays, info, primitives, RECORDED)
    with torch.no_grad():
        for column, expected in zip(candidate_order(primitives), arrays["op_outputs"], strict=True):
            assert_close(op.candidates[column](x), expected, RECORDED, str(SPACE.candidates[column]))


@pytest.mark.parametrize("case", cases("lrnas_cell"))
def test_cell(case):
    arrays, info = load("lrnas_cell", case)
    arguments = info["arguments"]
    primitives = arguments["primitives"]
    shape = CellShape(
        (arguments["C_prev_prev"], arguments["C_prev"]),
        arguments["C"],
        arguments["reduction"],
        arguments["reduction_prev"],
        rule="bp",
        affine=False,
    )
    cell = ModularCell(replace(SPACE, candidates=CANDIDATES), 1, shape)
    inject(cell, arrays, info, primitives)
    s0, s1 = arrays["s0"].clone().requires_grad_(), arrays["s1"].clone().requires_grad_()
    weights = to_ours(arrays["op_weights"], primitives).requires_grad_()
    output = cell([s0, s1], weights)
    output.backward(arrays["grad_output"])
    assert_close(output, arrays["output"], RECORDED, "output")
    assert_close(s0.grad, arrays["grad_s0"], RECORDED, "grad_s0")
    assert_close(s1.grad, arrays["grad_s1"], RECORDED, "grad_s1")
    assert_close(to_published(weights.grad, primitives), arrays["grad_op_weights"], RECORDED, "grad_op_weights")
    _check_gradients(cell, arrays, info, primitives, RECORDED)


def _batched(net):
    """The same network, feedback of the recorded pass included, with its cells batched."""
    net = copy.deepcopy(net)
    net.cells = nn.ModuleList(_batched_cell(cell) for cell in net.cells)
    return net


def _batched_cell(cell):
    batched = StackedCell(cell.space, cell.partial_channels, cell.shape)
    batched.stack(cell.edges)
    for name, module in cell.named_children():
        if name.startswith("preprocess"):
            setattr(batched, name, module)
    return batched


def _with_gradients(modular, batched):
    """The modular network with the gradients of the batched one."""
    holder = copy.deepcopy(batched)
    with torch.no_grad():
        for p, q in zip(holder.parameters(), batched.parameters(), strict=True):
            p.copy_(torch.zeros_like(q) if q.grad is None else q.grad)
        for cell, theirs in zip(holder.cells, modular.cells, strict=True):
            cell.write(theirs)
        for name in ("stem", "classifier", "architecture"):
            getattr(modular, name).load_state_dict(getattr(holder, name).state_dict())
    for p in modular.parameters():
        p.grad = p.detach().clone()
    return modular


@pytest.mark.parametrize("engine", ["modular", "stacked"])
@pytest.mark.parametrize("case", cases("lrnas_network"))
def test_network(case, engine):
    arrays, info = load("lrnas_network", case)
    arguments = info["arguments"]
    primitives = arguments["primitives"]
    net = build_supernet(
        SPACE,
        channels=arguments["C"],
        cells=arguments["layers"],
        num_classes=arguments["num_classes"],
        options=SupernetOptions(skip_rules=False),
        engine="modular",
    )
    inject(net, arrays, info, primitives)
    with torch.no_grad():
        for kind in ("normal", "reduce"):
            net.alphas[kind].copy_(to_ours(arrays[f"alphas_{kind}"], primitives))
    modular = net
    if engine == "stacked":
        net = _batched(modular)
    stepped = copy.deepcopy(net)

    x = arrays["x"].clone().requires_grad_()
    logits = net(x)
    loss = F.cross_entropy(logits, arrays["target"])
    loss.backward()
    assert_close(logits, arrays["logits"], RECORDED, "logits")
    assert_close(loss, arrays["loss"], RECORDED, "loss")
    assert_close(x.grad, arrays["grad_x"], RECORDED_NETWORK, "grad_x")
    for kind in ("normal", "reduce"):
        grad = to_published(net.alphas[kind].grad, primitives)
        assert_close(grad, arrays[f"grad_alphas_{kind}"], RECORDED_NETWORK, f"grad_alphas_{kind}")
    graded = net if engine == "modular" else _with_gradients(modular, net)
    _check_gradients(graded, arrays, info, primitives, RECORDED_NETWORK)

    strategy = Darts(stepped, SearchConfig(alpha_learning_rate=3e-4), torch.optim.SGD(stepped.weight_parameters()))
    strategy.before_weight_step(arrays["x"], arrays["target"], iter([(arrays["x"], arrays["target"])]))
    for kind in ("normal", "reduce"):
        # The step is what moved, at most about 3e-4; its size is compared, not the alpha's.
        moved = to_published(stepped.alphas[kind].detach(), primitives) - arrays[f"alphas_{kind}"]
        expected = arrays[f"alphas_{kind}_after_adam"] - arrays[f"alphas_{kind}"]
        torch.testing.assert_close(moved, expected, rtol=0, atol=1e-6)

    assert_close(net.stem[1].running_mean, arrays["stem_bn_running_mean"], RECORDED, "running mean")
    assert_close(net.stem[1].running_var, arrays["stem_bn_running_var"], RECORDED, "running variance")
    with torch.no_grad():
        for kind in ("normal", "reduce"):
            net.alphas[kind].copy_(to_ours(arrays[f"alphas_{kind}"], primitives))
        assert_close(net.eval()(x), arrays["logits_eval"], RECORDED, "logits_eval")
