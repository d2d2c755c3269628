"""The device of a process, and the backend of collective operations between devices."""

from __future__ import annotations

import pytest
import torch

import bionas_fast as bf
from bionas_fast.errors import InputError
from bionas_fast.runtime import device as devices
from bionas_fast.runtime.device import describe_device, resolve_device
from bionas_fast.runtime.distributed import cuda_backend


@pytest.fixture
def machine(monkeypatch):
    """Let the process have this local rank and see this number of CUDA devices."""

    def change(local_rank: int | None, count: int) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(devices, "automatic", lambda: "cuda" if count else "cpu")
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        if local_rank is not None:
            monkeypatch.setenv("LOCAL_RANK", str(local_rank))

    return change


@pytest.mark.parametrize("name", ["auto", "cuda"])
@pytest.mark.parametrize(
    ("local_rank", "count", "index"),
    [(None, 4, None), (0, 4, 0), (3, 4, 3), (3, 1, 0)],  # the last: each process sees its own device only
)
def test_every_process_has_its_device(machine, name, local_rank, count, index):
    machine(local_rank, count)
    assert resolve_device(name) == torch.device("cuda" if index is None else f"cuda:{index}")


def test_more_processes_than_devices(machine):
    machine(2, 2)
    with pytest.raises(InputError, match="device: 'cuda:2' is not available here; CUDA devices found: 2"):
        resolve_device("auto")


def test_auto_without_a_device_is_the_cpu(machine):
    machine(1, 0)
    assert resolve_device("auto") == torch.device("cpu")


def test_nccl_needs_a_device_for_each_process():
    assert cuda_backend(["a 0", "a 1", "b 0", "b 1"]) == "nccl"
    assert cuda_backend(["a 0", "a 0"]) == "gloo"  # one GPU for both
    assert cuda_backend(["a 0", None]) == "gloo"
    assert cuda_backend([None, None]) == "gloo"


@pytest.mark.parametrize(("op", "factor"), [("mixed_edges", "10 to 15 times"), ("feedback_conv", "up to 2 times")])
def test_a_run_without_kernels_says_how_much_slower_it_is(op, factor):
    from bionas_fast.ops import feedback  # noqa: F401, declares its backends
    from bionas_fast.ops.mixed_edges import autograd  # noqa: F401

    with bf.use_backend("reference"):
        assert describe_device(torch.device("cpu"), op).endswith(
            f"plain PyTorch as chosen, {factor} slower than the kernels"
        )
