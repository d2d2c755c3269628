"""Hostile and damaged files: every reader ends in data or an InputError, and allocates what its limits allow."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image, features

import bionas_fast as bf
from bionas_fast.data import memory
from bionas_fast.data.files import read_idx
from bionas_fast.errors import InputError

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (16, 16, 3)).astype(np.uint8)
IDX = struct.pack(">BBBB3I", 0, 0, 8, 3, 5, 4, 4) + RANDOM.integers(0, 256, 80).astype(np.uint8).tobytes()


@contextmanager
def at_most(megabytes: float) -> Iterator[None]:
    """Assert that Python and numpy never allocate more than this."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < megabytes * 1e6
    finally:
        tracemalloc.stop()


def available(monkeypatch, megabytes: float) -> None:
    monkeypatch.setattr(memory, "available", lambda: int(megabytes * 1e6))


def npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def image(form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(
        stream, form, **(options | ({"exif": exif} if form in ("PNG", "JPEG", "TIFF") else {}))
    )
    return stream.getvalue()


def read_folder(root: Path, content: bytes) -> None:
    for path in (root / name / f"{i}.png" for name in "ab" for i in range(3)):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    bf.load_dataset(f"folder:{root}")


def read_npz(root: Path, content: bytes) -> None:
    (root / "a.npz").write_bytes(content)
    bf.load_dataset(f"npz:{root}/a.npz")


def read_gz(root: Path, content: bytes) -> None:
    (root / "a.gz").write_bytes(content)
    read_idx(root / "a.gz", 3)


def read_plain(root: Path, content: bytes) -> None:
    (root / "a").write_bytes(content)
    read_idx(root / "a", 3)


def read_cifar(root: Path, content: bytes) -> None:
    folder = root / torchvision.datasets.CIFAR10.base_folder
    folder.mkdir(exist_ok=True)
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        (folder / name).write_bytes(content)
    bf.load_dataset("cifar10", root)


X, Y = RANDOM.random((10, 4, 4)), np.arange(10) % 2
FORMS = ["PNG", "JPEG", "TIFF", "GIF", "BMP", "PPM"]
FORMS += [form for form, name in (("WEBP", "webp"), ("AVIF", "avif"), ("JPEG2000", "jpg_2000")) if features.check(name)]
READERS: dict[str, tuple[Callable[[Path, bytes], None], bytes]] = {
    "npz": (read_npz, npz(x=X, y=Y)),
    "npz-fortran": (read_npz, npz(x=np.asfortranarray(X), y=Y)),
    "idx": (read_plain, IDX),
    "idx-gz": (read_gz, gzip.compress(IDX)),
    "cifar": (read_cifar, pickle.dumps({"data": PIXELS, "labels": [1]})),
    **{form: (read_folder, image(form)) for form in FORMS},
}


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_end_in_data_or_an_input_error(tmp_path, name):
    read, content = READERS[name]
    random = np.random.default_rng(1)
    cases = [content[: int(cut * len(content))] for cut in np.linspace(0, 1, 12, endpoint=False)]
    for changes in (1, 1, 3, 20):
        for _ in range(10):
            damaged = bytearray(content)
            # Headers are at the beginning, and at the end of a zip file.
            for at in random.integers(0, len(content), changes) // random.integers(1, 8):
                damaged[at if random.random() < 0.7 else -1 - at] = random.integers(256)
            cases.append(bytes(damaged))
    if name != "cifar":  # its files are known by their checksums
        read(tmp_path, content)
    messages = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of corrupt metadata
        for case in cases:
            try:
                read(tmp_path, case)
            except InputError as error:
                messages.append(str(error))
    assert len(messages) >= 10 and all(map(str.isprintable, messages))


def test_names_with_control_characters(tmp_path):
    names = ["a\x1b[31m", "b\nc", "\r\x07", "\x9b", "‮", "x\ud7ff"]
    with zipfile.ZipFile(tmp_path / "a\x1b\n.npz", "w") as file:
        for name in names:
            file.writestr(f"{name}.npy", "no array")
    with pytest.raises(InputError, match=r"a\\x1b\\n\.npz: needs .*; it holds a\\x1b\[31m, b\\nc, \\r\\x07") as error:
        bf.load_dataset(f"npz:{tmp_path}/a\x1b\n.npz")
    assert str(error.value).isprintable()


def test_many_names_are_cut(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        for i in range(100):
            file.writestr(f"{i}.npy", "")
    with pytest.raises(InputError, match=r"it holds 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …$"):
        bf.load_dataset(f"npz:{tmp_path}/a.npz")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((5, 4, 4), r"expected 96 bytes, \(5, 4, 4\) after a header of 16, got more than 96$"),
        ((2**32 - 1,) * 3, "truncated or damaged"),
        ((1000, 2000, 2000), r"\(1000, 2000, 2000\) bytes need 4.0 GB of memory, but 1.0 GB are available"),
    ],
    ids=["small", "absurd", "honest"],
)
def test_gzip_bomb(tmp_path, monkeypatch, shape, message):
    """4 GB of zeros in 4 MB, as gzip members."""
    available(monkeypatch, 1000)
    zeros = gzip.compress(bytes(2**26), 1)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(struct.pack(">BBBB3I", 0, 0, 8, 3, *shape)) + 64 * zeros)
    with at_most(20), pytest.raises(InputError, match=message) as error:
        read_idx(path, 3)
    assert str(path) in str(error.value)


def header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def test_npz_bomb(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("x.npy", "w") as stream:
        stream.write(header((64, 1024, 1024)))
        for _ in range(64):
            stream.write(bytes(2**20))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("y.npy", header((64,), "<i8") + np.arange(64).astype("<i8").tobytes())
    available(monkeypatch, 50)
    with at_most(20), pytest.raises(InputError, match=r"a\.npz: the arrays x, y need 134.* of memory, but 50.0 MB are"):
        bf.load_dataset(f"npz:{path}")


@pytest.mark.parametrize("shape", [(10**6, 10**3, 10**3), (10**30, 1, 1), (10, 4, 5), (10, 4, 3), (-10, -4, 4)])
@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_npz_header_that_lies(tmp_path, shape, kind):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", kind) as file:
        file.writestr("x.npy", header(shape) + bytes(160))
        file.writestr("y.npy", header((10,)) + bytes(10))
    with (
        at_most(20),
        pytest.raises(InputError, match=r"a\.npz: x is (truncated or damaged: it announces|not an array)"),
    ):
        bf.load_dataset(f"npz:{tmp_path}/a.npz")


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop"])
def test_what_is_not_a_file(tmp_path, kind):
    """Opening a pipe would wait for ever."""
    makes = {"pipe": os.mkfifo, "folder": os.mkdir, "loop": lambda path: os.symlink(path, path)}
    for name in ("a.npz", "train-images-idx3-ubyte"):
        makes[kind](tmp_path / name)
    with pytest.raises(InputError, match=r"a\.npz"):
        bf.load_dataset(f"npz:{tmp_path}/a.npz")
    with pytest.raises(InputError, match="train-images-idx3-ubyte"):
        bf.load_dataset("mnist", tmp_path)
    with pytest.raises(InputError, match="train-images-idx3-ubyte"):
        read_idx(tmp_path / "train-images-idx3-ubyte", 3)


def test_available_memory(monkeypatch):
    resource = pytest.importorskip("resource")
    free = memory.available()
    assert 0 < free < 2**50
    status = Path("/proc/self/status").read_text()
    used = 1024 * int(status.partition("VmSize:")[2].split()[0])
    monkeypatch.setattr(resource, "getrlimit", lambda _: (used + 50_000_000, -1))
    assert memory.available() == pytest.approx(50_000_000, abs=20_000_000)


def test_failed_allocations_are_reported(monkeypatch):
    for failure in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        with pytest.raises(InputError, match="dataset 'd' does not fit into memory"), memory.allocating("dataset 'd'"):
            raise failure
    with pytest.raises(RuntimeError, match="another"), memory.allocating("dataset 'd'"):
        raise RuntimeError("another")
