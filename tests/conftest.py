"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

# The networks here are small, and threads that wait for a busy core cost more than they bring. Tests of threads set
# their own number; processes started by a test inherit this one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Every variant of the kernels that the machine can run is tested.
os.environ.setdefault("BIONAS_FAST_INSTRUCTION_SETS", "all")

import pytest
import torch

from bionas_fast import native
from bionas_fast.runtime import device as devices
from helpers import cards, forking, reports
from helpers.oracles.data import FOLDER
from helpers.programs import Programs

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # pytest may have imported torch before
reports.leave_out()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        default="cpu",
        choices=("cpu", "cuda"),
        help="cuda: also run the tests that need a CUDA device; all others stay on the CPU",
    )
    parser.addoption(
        "--every-card",
        action="store_true",
        help="compile each kind of Triton kernel for every card we name, not for one of them in turn",
    )


def pytest_configure(config: pytest.Config) -> None:
    # The process of -n that only distributes the tests leaves the environment to those that run them.
    if hasattr(config, "workerinput") or not getattr(config.option, "numprocesses", None):
        cards.begin(config.getoption("--device"))


def pytest_report_header() -> str:
    topics = sorted(path.stem for path in FOLDER.glob("*.json"))
    return f"recordings of published code: {', '.join(topics) if topics else 'none; tests that need them are skipped'}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """``torch.empty`` gives NaN, so that reading what nobody wrote shows."""
    fill = torch.utils.deterministic.fill_uninitialized_memory
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert fill
    assert torch.empty(4).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch):
    """The device ``auto`` is the CPU, also in a process that sees a CUDA device for the tests that ask for it."""
    monkeypatch.setattr(devices, "automatic", lambda: "cpu")
    if not cards.COMPILED:
        yield
        return
    with torch.device("cuda"):
        yield


@pytest.fixture
def cuda(request) -> torch.device:
    """A CUDA device, for tests that need one."""
    if request.config.getoption("--device") != "cuda":
        pytest.skip("needs a CUDA device")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def drawn():
    """The runs of the test write their reports."""
    with reports.drawn():
        yield


@pytest.fixture(scope="session")
def forked():
    """Commands and programs from the outside, without the time to import torch."""
    with forking.Runner() as runner:
        yield runner


@pytest.fixture(scope="session")
def programs(tmp_path_factory) -> Programs:
    """Kernels as programs of the host, without PyTorch; the processes of -n share them."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return Programs(Path(os.environ.get("BIONAS_FAST_TEST_PROGRAMS", shared / "programs")))


@pytest.fixture(params=["avx512_bf16", "avx512", "avx2", "baseline"])
def isa(request):
    """Every instruction set of the machine; the compiled kernels run its variant."""
    if request.param not in native.isas():
        pytest.skip(f"this machine has no {request.param}")
    with native.use_isa(request.param):
        yield request.param
