"""Random numbers of feedback weights: the same from every implementation, and where a program is traced."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bionas_fast.backends import use_backend
from bionas_fast.kernels.feedback import reference
from bionas_fast.ops.feedback.draws import uniform

STREAM = torch.tensor([5, 3])


@pytest.mark.parametrize("backend", ["reference", "native", "triton"])
def test_backends_draw_the_same_bits(backend):
    with use_backend(backend):
        assert torch.equal(uniform((3, 50), STREAM), reference.uniform((3, 50), STREAM))


def test_each_stream_of_a_transform_has_its_own_numbers():
    streams = torch.stack([STREAM, STREAM + 1])
    found = torch.func.vmap(lambda stream: uniform((4,), stream))(streams)
    assert torch.equal(found, torch.stack([reference.uniform((4,), stream) for stream in streams]))


def test_fake_streams():
    with FakeTensorMode() as mode:
        assert uniform((2, 5), mode.from_tensor(STREAM)).shape == (2, 5)
