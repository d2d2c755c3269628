"""Constant tables: made once per device, and never by a tracer."""

from __future__ import annotations

import copy

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from bionas_fast.kernels.records import Terms
from bionas_fast.kernels.tables import filled, one_hot, table

CPU, META = torch.device("cpu"), torch.device("meta")


def test_equal_numbers_share_a_tensor_per_device_and_dtype():
    terms = Terms((0, 2, 1), (0, 0, 1), 2)
    first = table(terms.index, CPU)
    assert first.tolist() == [0, 2, 1] and first.dtype == torch.int64
    assert table(copy.deepcopy(terms).index, CPU) is first
    assert table(terms.index, META).device == META
    assert table(terms.index, CPU, torch.float32).dtype == torch.float32
    assert table(((1, 2), (3, 4)), CPU).tolist() == [[1, 2], [3, 4]]
    assert filled(1, (2, 3), CPU) is filled(1, torch.Size([2, 3]), CPU)


def test_a_one_hot_matrix_adds_rows_by_number():
    values = torch.randn(4, 3, dtype=torch.float64)
    expected = torch.stack([values[1] + values[3], torch.zeros(3, dtype=torch.float64), values[0] + values[2]])
    torch.testing.assert_close(one_hot((2, 0, 2, 0), 3, CPU) @ values, expected)
    assert one_hot((), 3, CPU).shape == (3, 0)


def test_no_fake_tensor_is_kept():
    with FakeTensorMode():
        made = table((5, 6, 7), CPU), one_hot((1, 0, 1), 2, CPU), filled(2.5, (3,), CPU)
        assert all(isinstance(one, FakeTensor) for one in made)
    after = table((5, 6, 7), CPU), one_hot((1, 0, 1), 2, CPU), filled(2.5, (3,), CPU)
    assert not any(isinstance(one, FakeTensor) for one in after)
    assert after[0].tolist() == [5, 6, 7] and after[2].tolist() == [2.5] * 3


def test_tables_made_in_inference_mode_serve_autograd():
    with torch.inference_mode():
        rows = table((1, 0, 1, 1), CPU)
    x = torch.randn(2, 3, requires_grad=True)
    x[rows].sum().backward()
    assert x.grad.tolist() == [[1.0] * 3, [3.0] * 3]


def test_a_compiled_graph_reads_a_table():
    def run(x):
        return x[table((1, 0), x.device)] + one_hot((0, 1), 2, x.device)

    x = torch.randn(2, 2, dtype=torch.float64)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), run(x))
