"""The mixed sum of normalised maps: its specification against PyTorch's autograd, and the compiled one against it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from bionas_fast import native
from bionas_fast.kernels.records import Moments, Sums, Terms
from bionas_fast.ops.mixed_edges.backends import Backend, find
from helpers.native import needs_native
from helpers.tolerances import CANCELLING

specification = find("reference")
COUNT = 3  # edges


def arguments(index: list[int], positions: int, channels: int, raw: bool, seed: int) -> dict:
    """Five maps in two stacks, the last of them ``raw`` or not, in the sums of three edges; all float64."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    # So that even two positions differ: what hardly varies cannot be normalised precisely.
    apart = torch.where(torch.arange(positions) % 2 == 0, 3.0, -3.0).double()[:, None]
    stacks = [2 * randn(3, 1, 1, positions, channels) + 1 + apart, randn(2, 1, 1, positions, channels) - apart]
    normalised = torch.cat(stacks)[: 5 - raw]
    return {
        "stacks": stacks,
        "terms": Terms(
            tuple(index), tuple(sorted(torch.randint(COUNT, (len(index),), generator=generator).tolist())), COUNT
        ),
        "factors": randn(len(index)),
        "sums": Sums(normalised.sum((1, 2, 3)), normalised.square().sum((1, 2, 3))),
        "given": Moments(randn(5 - raw, channels), 0.5 + randn(5 - raw, channels).square()),
        "into": [randn(1, 1, positions, channels) for _ in range(COUNT)],
        "grads": [randn(1, 1, positions, channels) for _ in range(COUNT)],
    }


def results(a: dict, training: bool, into: tuple[bool, ...], backend: Backend, cast=lambda t: t):
    """All results of both passes."""
    stacks, grads = ([cast(t) for t in a[key]] for key in ("stacks", "grads"))
    before = [cast(t) if given else None for t, given in zip(a["into"], into, strict=True)]
    given = None if training else a["given"]
    out, moments = backend.normalised_forward(stacks, a["terms"], a["factors"], a["sums"], given, before)
    back = backend.normalised_backward(grads, stacks, a["terms"], a["factors"], moments, training)
    return (*out, *moments, *back)


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_specification_is_autograd(training, raw):
    a = arguments([4, 0, 2, 4, 1, 3, 0], 11, 5, raw, 0)
    maps, factors = torch.cat(a["stacks"]).requires_grad_(), a["factors"].clone().requires_grad_()
    normalised = maps[: 5 - raw]
    if training:
        channels_first = normalised.permute(0, 4, 1, 2, 3).flatten(2).unbind()  # K × [C, P]
        each = [F.batch_norm(z.T, None, None, training=True) for z in channels_first]
    else:
        mean, var = a["given"]
        each = [(z.view(11, 5) - m) / (v + 1e-5).sqrt() for z, m, v in zip(normalised, mean, var, strict=True)]
    each += [z.view(11, 5) for z in maps[5 - raw :]]
    sums = [before.view(11, 5) for before in a["into"]]
    for t, (k, e) in enumerate(zip(a["terms"].index, a["terms"].edges, strict=True)):
        sums[e] = sums[e] + factors[t] * each[k]
    total = sum((own * grad.view(11, 5)).sum() for own, grad in zip(sums, a["grads"], strict=True))
    grad_maps, grad_factors = torch.autograd.grad(total, (maps, factors))
    *out, _, _, ours, from_edges, b, d = results(a, training, (True,) * COUNT, specification)
    for actual, expected in zip(out, sums, strict=True):
        torch.testing.assert_close(actual.view(11, 5), expected)
    torch.testing.assert_close(ours, grad_factors)
    for k in range(5):
        terms = [t for t, own in enumerate(a["terms"].index) if own == k]
        down = sum(from_edges[t] * a["grads"][a["terms"].edges[t]] for t in terms)
        if k < len(b):
            down = down + b[k] * maps[k] + d[k]
        torch.testing.assert_close(down, grad_maps[k])


@needs_native
@settings(max_examples=40, deadline=None)
@given(
    index=st.lists(st.integers(0, 4), min_size=1, max_size=9),
    positions=st.integers(2, 300),
    blocks=st.integers(1, 3),
    raw=st.booleans(),
    training=st.booleans(),
    into=st.tuples(*[st.booleans()] * COUNT),
    isa=st.sampled_from(native.isas() or ("none",)),
    seed=st.integers(0, 2**31),
)
def test_kernels_on_random_shapes(index, positions, blocks, raw, training, into, isa, seed):
    a = arguments(index, positions, 16 * blocks, raw, seed)
    expected = results(a, training, into, specification)
    with native.use_isa(isa):
        actual = results(a, training, into, find("native"), torch.Tensor.float)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, **CANCELLING)


@needs_native
def test_operators_pass_opcheck():
    a, ops, checks = (
        arguments([0, 4, 2], 6, 16, True, 0),
        torch.ops.bionas_fast_native,
        ("test_schema", "test_faketensor"),
    )
    stacks, into, grads = ([t.float() for t in a[key]] for key in ("stacks", "into", "grads"))
    where = (stacks, a["terms"].encode())
    for moments in ((), a["given"]):
        for before in (into, [None, *into[1:]]):
            forward = (*where, a["factors"], a["sums"], moments, before)
            torch.library.opcheck(ops.normalised_sum.default, forward, test_utils=checks)
    backward = (grads, *where, a["factors"], a["given"], True)
    torch.library.opcheck(ops.normalised_sum_backward.default, backward, test_utils=checks)


@needs_native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"terms": Terms((5, 0, 0), (0, 0, 1), COUNT)}, "index: expected 0 to 4, got 5"),
        ({"terms": Terms((0, 4, 2), (0, 0, 3), COUNT)}, "edges: expected 0 to 2, got 3"),
        ({"terms": Terms((0, 4, 2), (0, 0), COUNT)}, "terms: expected a map and an edge of each"),
        ({"factors": torch.ones(2, dtype=torch.float64)}, "factors: expected one for each term"),
        ({"into": []}, "into: expected one for each sum"),
        ({"sums": [torch.ones(4, 16, dtype=torch.float64)]}, "sums: expected total and squares"),
        ({"moments": [torch.ones(4, 16, dtype=torch.float64)]}, "moments: expected mean and variance"),
    ],
)
def test_impossible_arguments_are_refused(change, message):
    a = arguments([0, 4, 2], 6, 16, True, 0) | {"moments": ()} | change
    stacks, into = ([None if t is None else t.float() for t in a[key]] for key in ("stacks", "into"))
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bionas_fast_native.normalised_sum(
            stacks, a["terms"].encode(), a["factors"], a["sums"], a["moments"], into
        )
