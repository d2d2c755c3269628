"""The library for CUDA: what nvcc makes of it, how it comes to be, and what runs where it cannot."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from bionas_fast import InputError, backends, native
from bionas_fast.functional import hebbian_update
from bionas_fast.native import build
from bionas_fast.ops.hebbian import NORMALISATIONS, RULES
from helpers.tolerances import assert_close

KERNELS = Path(__file__).parents[2] / "csrc" / "cuda"
#: Of A100 and H100.
ARCHITECTURES = ["80", "90"]
#: As ptxas says it of every kernel.
USAGE = re.compile(
    r"Function properties for (\w+)\n\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
    r".*Used (\d+) registers(.*)"
)


@pytest.fixture(scope="module")
def nvcc() -> str:
    try:
        return build._nvcc()
    except build.BuildError as error:
        pytest.skip(str(error))


def spilled(nvcc: str, source: Path, architecture: str, folder: Path) -> dict[str, int]:
    """Of every kernel the bytes of local memory: its stack frame, and what was spilled to it."""
    target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    command = [nvcc, *build._COMPILE_CUDA, target, "-Xptxas=-v", "-cubin", source, "-o", folder / "cubin"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    usage = USAGE.findall(done.stderr)
    assert len(usage) == done.stderr.count("Compiling entry function")
    assert all("lmem" not in rest for *_, rest in usage)
    return {name: sum(map(int, numbers)) for name, *numbers, _, _ in usage}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_kernel_uses_local_memory(nvcc, tmp_path, architecture):
    sources = sorted(KERNELS.glob("*.cu"))
    used = {}
    for source in sources:
        used |= spilled(nvcc, source, architecture, tmp_path)
    for kernel, variants in {"activity": 5, "total": 1, "largest": 1, "move": 1}.items():
        assert sum(f"{kernel}_kernel" in name for name in used) == variants
    assert {name: size for name, size in used.items() if size} == {}


def test_local_memory_would_be_seen(nvcc, tmp_path):
    source = tmp_path / "spilling.cu"
    body = "int kept[64] = {}; for (int i = 0; i < n; i++) kept[at[i]] += i; *at = kept[n];"
    source.write_text(f'extern "C" __global__ void spilling(int* at, int n) {{ {body} }}')
    assert spilled(nvcc, source, "80", tmp_path)["spilling"] >= 64 * 4


#: Loads the library as a machine with GPUs of two kinds would, and prints what became of it.
FIRST_USE = """
import json, os, sys
import torch
from bionas_fast import backends, native
import bionas_fast.functional
native.load()  # out of the user's own cache
os.environ["XDG_CACHE_HOME"], ahead_of_time, devices = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
torch.cuda.is_available = lambda: bool(devices)
torch.cuda.device_count = lambda: len(devices)
torch.cuda.get_device_capability = lambda index: tuple(devices[index])
if ahead_of_time:
    native.library._CUDA_AHEAD_OF_TIME = native.library.Path(ahead_of_time)
status = native.cuda_status()
operators = ["bionas_fast_native::hebbian_activity", "bionas_fast_native::hebbian_move"]
registered = [torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA") for name in operators]
u = torch.ones(2, 4, 5)
print(json.dumps({
    "available": status.available, "path": str(status.path), "reason": status.reason, "registered": registered,
    "reasons": dict(backends.explain("hebbian_update", "cuda").reasons),
    "on the CPU": torch.ops.bionas_fast_native.hebbian_activity(u, None, None, "soft", "activity", 1.0, 1)[1].tolist(),
}))
"""


def first_use(cache: Path, devices: list[tuple[int, int]], ahead_of_time: str = "") -> tuple[dict, str]:
    command = [sys.executable, "-c", FIRST_USE, cache, ahead_of_time, json.dumps(devices)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch was built without CUDA")
def test_the_library_is_compiled_once_and_loads_without_a_gpu(nvcc, tmp_path):
    if not native.load():
        pytest.skip(native.status().reason)
    devices = [(9, 0), (8, 0), (9, 0)]
    status, messages = first_use(tmp_path, devices)
    assert messages.count("compiling CUDA kernels, once") == 1
    (library,) = (tmp_path / "bionas-fast").glob("_C_cuda-*.so")
    assert status["path"] == str(library)
    assert status["registered"] == [True, True]
    assert status["on the CPU"] == [2.5] * 4
    if not torch.cuda.is_available():
        # CUDA's own words, which depend on the driver.
        assert not status["available"] and status["reasons"]["native"] == status["reason"] != ""
    again, messages = first_use(tmp_path, devices)
    assert again == status and messages == ""
    # With no device there is nothing to compile for, but a library that came with the package is loaded.
    packaged = str(shutil.copy(library, tmp_path / "_C_cuda.abi3.so"))
    assert first_use(tmp_path, [], packaged)[0] == {**status, "path": packaged}


def test_no_device_is_the_reason(monkeypatch, tmp_path):
    if not native.load():
        pytest.skip(native.status().reason)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(native.library, "_CUDA_AHEAD_OF_TIME", tmp_path / "none")
    assert native.library._load_cuda.__wrapped__() == (None, "there is no CUDA device")


def test_no_nvcc_is_the_reason(monkeypatch):
    monkeypatch.setattr(build, "_CUDA_HOME", "/nowhere")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(build.BuildError, match=r"no nvcc; set \$CUDA_HOME"):
        build.compile_cuda_library(Path("unused"), ["80"])


@pytest.mark.parametrize("architectures", [[], ["80", "hopper"]], ids=str)
def test_architectures_that_are_none(architectures):
    with pytest.raises(build.BuildError, match="architectures: expected some such as 80 or 90, got"):
        build.compile_cuda_library(Path("unused"), architectures)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("rule", RULES)
def test_fake_tensors_of_a_gpu(rule, backend):
    gpu = {"device": "cuda"}
    with FakeTensorMode():
        weight, x, rate = torch.empty(6, 2, 3, 3, **gpu), torch.empty(5, 4, 9, 7, **gpu), torch.empty(6, **gpu)
        u = F.conv2d(x, weight, None, 2, 1, 1, 2)
        settings = (rule, 1.0, "max", [2, 2], [1, 1], [1, 1], 2, backend)
        delta = torch.ops.bionas_fast.hebbian_update(weight, x, u, None, rate, *settings)
        assert (delta.shape, delta.dtype, delta.device) == (weight.shape, weight.dtype, weight.device)
        chosen = hebbian_update(weight, x, u, rule=rule, rate=rate, stride=2, padding=1, groups=2)
        assert (chosen.shape, chosen.dtype, chosen.device) == (weight.shape, weight.dtype, weight.device)


def test_fake_tensors_of_a_gpu_in_the_kernels():
    if not native.load():
        pytest.skip(native.status().reason)
    kernels = torch.ops.bionas_fast_native
    with FakeTensorMode():
        u = torch.empty(2, 6, 50, device="cuda")
        y, total = kernels.hebbian_activity(u, None, None, "soft", "activity", 1.0, 2)
        assert (y.shape, y.dtype, y.device) == (u.shape, u.dtype, u.device)
        assert (total.shape, total.dtype, total.device) == ((6,), torch.float64, u.device)
        weight = torch.empty(6, 9, device="cuda")
        assert kernels.hebbian_move(weight, torch.empty_like(weight), total, weight[:, 0], 50.0, "none", 2) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_an_explicit_choice_without_a_gpu_says_why():
    with pytest.raises(InputError, match="hebbian_update cannot run on backend 'native': "):
        backends.choose("hebbian_update", "cuda", "native")


@pytest.fixture
def gpu(cuda):
    if not native.cuda_status().available:
        pytest.skip(native.cuda_status().reason)
    return cuda


@pytest.mark.parametrize("own", [False, True], ids=["", "own activity"])
@pytest.mark.parametrize("size", [3, 9])  # fewer positions than a vector holds, and more
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("rule", RULES)
def test_updates_on_a_gpu_are_those_of_the_reference(gpu, rule, normalisation, size, own):
    torch.manual_seed(0)
    x, weight = torch.randn(3, 4, size, size), torch.randn(42, 2, 3, 3)
    u = F.conv2d(x, weight, None, 1, 1, 1, 2)
    y = torch.randn_like(u) if own else None
    settings = {"rule": rule, "normalisation": normalisation, "padding": 1, "groups": 2, "temperature": 0.5}
    expected = weight.double()
    doubles = [None if t is None else t.double() for t in (x, u, y)]
    expected_delta = hebbian_update(expected, *doubles, **settings, rate=0.1, backend="reference")
    results = []
    for _ in range(2):
        moved = weight.to(gpu)
        there = [None if t is None else t.to(gpu) for t in (x, u, y)]
        results.append((hebbian_update(moved, *there, **settings, rate=0.1, backend="native"), moved))
        assert_close(results[-1][0].cpu().double(), expected_delta, torch.float32)
        assert_close(moved.cpu().double(), expected, torch.float32)


def test_results_on_a_gpu_repeat_bit_for_bit(gpu):
    generator = torch.Generator().manual_seed(0)
    u, (weight, outer) = torch.randn(50, 70, 1300, generator=generator), torch.randn(2, 70, 2000, generator=generator)
    u, kernels, results = u.to(gpu), torch.ops.bionas_fast_native, []
    for _ in range(3):
        y, total = kernels.hebbian_activity(u, None, None, "competing", "output", 1.0, 1)
        moved, delta = weight.to(gpu), outer.to(gpu)
        kernels.hebbian_move(moved, delta, total, torch.ones(70, device=gpu), 65000.0, "max", 1)
        results.append((y, total, delta, moved))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
