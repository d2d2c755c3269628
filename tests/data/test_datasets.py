"""Datasets by name. Oracles: scikit-learn, and files written by the tests."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from bionas_fast.data import Dataset, dataset_names, load_dataset, register_dataset
from bionas_fast.data import dataset as dataset_module
from bionas_fast.data import registry as datasets_module
from bionas_fast.data.files import read_idx
from bionas_fast.errors import InputError
from helpers.registries import restored

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
TRAIN, TEST = 12, 5  # images in the tiny files


def test_digits_is_scikit_learns_data_split_in_two():
    from sklearn.datasets import load_digits

    dataset = load_dataset("digits")
    assert (dataset.in_channels, dataset.image_size, dataset.num_classes) == (1, (8, 8), 10)
    assert dataset.images.dtype == torch.float32 and dataset.labels.dtype == torch.int64
    assert len(dataset.labels) == 1438 and len(dataset.test_labels) == 359

    # The union of both parts is the original 1797 images with their labels, each once; so they are disjoint.
    bunch = load_digits()
    expected = np.column_stack([bunch.data, bunch.target])
    images = torch.cat([dataset.images, dataset.test_images]).flatten(1).numpy() * 16
    ours = np.column_stack([images, torch.cat([dataset.labels, dataset.test_labels]).numpy()])
    assert len(np.unique(expected, axis=0)) == 1797
    np.testing.assert_array_equal(np.unique(ours, axis=0), np.unique(expected, axis=0))

    share = np.bincount(dataset.test_labels.numpy()) / np.bincount(bunch.target)
    assert share.min() > 0.19 and share.max() < 0.21
    train = dataset.images.numpy().astype(np.float64)
    assert dataset.mean == pytest.approx([train.mean()]) and dataset.std == pytest.approx([train.std()])


def test_digits_does_not_depend_on_the_seed():
    one, two = load_dataset("digits", seed=1), load_dataset("digits", seed=2)
    assert torch.equal(one.test_images, two.test_images)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_debian():
    dataset = load_dataset("fashion-mnist", DEBIAN)
    assert dataset.images.shape == (60000, 1, 28, 28) and dataset.test_images.shape == (10000, 1, 28, 28)
    assert torch.bincount(dataset.labels).tolist() == [6000] * 10
    assert dataset.labels[:5].tolist() == [9, 0, 0, 3, 0] and dataset.test_labels[:5].tolist() == [
        9,
        2,
        1,
        1,
        6,
    ]
    assert dataset.mean == pytest.approx([0.2860], abs=5e-5) and dataset.std == pytest.approx([0.3530], abs=5e-5)


def idx(array: np.ndarray, kind: int = 0x08) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def tiny() -> dict[str, np.ndarray]:
    """Contents of the four files: images of 3×4 bytes."""
    random = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": random.integers(0, 256, (TRAIN, 3, 4)),
        "train-labels-idx1-ubyte": np.arange(TRAIN) % 10,
        "t10k-images-idx3-ubyte": random.integers(0, 256, (TEST, 3, 4)),
        "t10k-labels-idx1-ubyte": np.arange(TEST) % 10,
    }


def write(folder: Path, arrays: dict[str, np.ndarray], compressed: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        content = idx(array)
        (folder / f"{name}{'.gz' * compressed}").write_bytes(gzip.compress(content) if compressed else content)
    return folder


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("fashion-mnist", "."),
        ("fashion-mnist", "raw"),
        ("fashion-mnist", "FashionMNIST/raw"),
        ("fashion-mnist", "fashion-mnist"),
        ("mnist", "."),
        ("mnist", "MNIST/raw"),
    ],
)
def test_idx_files_are_found_and_read(tmp_path, tiny, name, layout, compressed):
    write(tmp_path / layout, tiny, compressed)
    dataset = load_dataset(name, str(tmp_path))
    train = tiny["train-images-idx3-ubyte"]
    np.testing.assert_array_equal(dataset.images[:, 0].numpy(), train)
    np.testing.assert_array_equal(dataset.test_images[:, 0].numpy(), tiny["t10k-images-idx3-ubyte"])
    np.testing.assert_array_equal(dataset.labels.numpy(), tiny["train-labels-idx1-ubyte"])
    np.testing.assert_array_equal(dataset.test_labels.numpy(), tiny["t10k-labels-idx1-ubyte"])
    assert dataset.num_classes == 10
    assert dataset.mean == pytest.approx([train.mean() / 255]) and dataset.std == pytest.approx([train.std() / 255])


GOOD = idx(np.zeros((2, 3, 4)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with nothing"),
        (b"\x00\x00\x08", "not an IDX file"),
        (b"GIF8" + GOOD[4:], "begins with 47494638, not 00000803"),
        (idx(np.zeros((2, 3, 4)), kind=0x0D), "begins with 00000d03"),
        (idx(np.zeros(24)), "begins with 00000801"),
        (GOOD[:10], "truncated"),
        (GOOD[:-1], "expected 40 bytes, .*, got 39$"),
        (GOOD + b"\x00", "expected 40 bytes, .*, got (41|more than 40)$"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, *[2**32 - 1] * 3), "truncated"),
        (idx(np.zeros((0, 3, 4))), "empty"),
    ],
    ids=[
        "empty",
        "3-bytes",
        "magic",
        "floats",
        "labels",
        "in-header",
        "short",
        "long",
        "absurd",
        "no-images",
    ],
)
@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gz"])
def test_damaged_idx_file_is_named(tmp_path, content, message, compressed):
    path = tmp_path / f"train-images-idx3-ubyte{'.gz' * compressed}"
    path.write_bytes(gzip.compress(content) if compressed else content)
    with pytest.raises(InputError, match=message) as error:
        read_idx(path, ndim=3)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-9], lambda b: b[:5], lambda b: b"??" + b[2:], lambda b: b[:15] + b"\xff\xff\xff" + b[18:]],
    ids=["truncated", "in-header", "not-gzip", "damaged"],
)
def test_damaged_gzip_file_is_named(tmp_path, damage):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(gzip.compress(GOOD)))
    with pytest.raises(InputError, match="cannot be read") as error:
        read_idx(path, ndim=3)
    assert str(path) in str(error.value)


def test_images_without_their_labels(tmp_path, tiny):
    tiny["t10k-labels-idx1-ubyte"] = np.zeros(TEST - 1)
    write(tmp_path, tiny)
    with pytest.raises(InputError, match=r"t10k-images-idx3-ubyte has 5 images, but .*t10k-labels.* has 4 labels"):
        load_dataset("mnist", tmp_path)


def test_label_out_of_range(tmp_path, tiny):
    tiny["train-labels-idx1-ubyte"][3] = 10
    write(tmp_path, tiny)
    with pytest.raises(InputError, match="'mnist': labels must be 0 to 9, not 0 to 10"):
        load_dataset("mnist", tmp_path)


@pytest.mark.parametrize("name", ["fashion-mnist", "mnist", "cifar10", "cifar100"])
def test_missing_dataset_says_where_it_looked_and_creates_nothing(tmp_path, name):
    absent = tmp_path / "absent"
    with pytest.raises(InputError, match=f"'{name}'.*download=True") as error:
        load_dataset(name, absent)
    assert str(absent) in str(error.value) and "\n" not in str(error.value)
    assert ("dataset-fashion-mnist" in str(error.value)) == (name == "fashion-mnist")
    assert not list(tmp_path.iterdir())


def test_missing_file_is_named(tmp_path, tiny):
    write(tmp_path, tiny)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match=r"\(lacks t10k-labels-idx1-ubyte\)"):
        load_dataset("mnist", tmp_path)


def test_default_folders_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(datasets_module, "DEBIAN_FASHION_MNIST", str(tmp_path / "debian"))
    with pytest.raises(InputError) as error:
        load_dataset("fashion-mnist")
    for folder in ("debian", ".cache/bionas-fast/FashionMNIST/raw"):
        assert str(tmp_path / folder) in str(error.value)
    assert not list(tmp_path.iterdir())


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, tiny, monkeypatch) -> Iterator[Path]:
    """Serve a folder with the tiny files at the address of MNIST in torchvision."""
    folder = write(tmp_path / "server", tiny, compressed=True)
    sums = [(path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in sorted(folder.iterdir())]
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", sums)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=folder)) as http:
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"http://127.0.0.1:{http.server_port}/"])
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield folder
        http.shutdown()


def test_download_is_asked_for_and_done_once(tmp_path, tiny, server):
    root = tmp_path / "new" / "data"
    with pytest.raises(InputError, match="download=True"):
        load_dataset("mnist", root)
    dataset = load_dataset("mnist", root, download=True)
    np.testing.assert_array_equal(dataset.images[:, 0].numpy(), tiny["train-images-idx3-ubyte"])
    assert [path.name for path in root.iterdir()] == ["MNIST"]  # no staging folder remains
    for file in server.iterdir():
        file.unlink()
    assert torch.equal(load_dataset("mnist", root, download=True).labels, dataset.labels)


@pytest.mark.parametrize("damage", ["missing", "wrong sum"])
def test_failed_download_leaves_nothing(tmp_path, server, damage):
    last = server / "train-labels-idx1-ubyte.gz"  # the last one downloaded
    last.unlink() if damage == "missing" else last.write_bytes(b"something else")
    with pytest.raises(InputError, match="MNIST could not be downloaded into") as error:
        load_dataset("mnist", tmp_path / "new" / "data", download=True)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["server"]


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Write a CIFAR of one file per part, with its md5 sum known to torchvision; return its contents."""

    def make(name: str) -> tuple[type, np.ndarray, list[int]]:
        source = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
        label_key, names_key = {
            "cifar10": ("labels", "label_names"),
            "cifar100": ("fine_labels", "fine_label_names"),
        }[name]
        planes = np.random.default_rng(1).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)  # R, then G, then B
        labels = [0, 1, 2, 3, 4, 9]
        contents = {
            "train": {"data": planes.reshape(6, -1), label_key: labels},
            "test": {"data": planes[:2].reshape(2, -1), label_key: labels[:2]},
            "meta": {names_key: [str(i) for i in range(10)]},
        }
        folder = tmp_path / source.base_folder
        folder.mkdir()
        sums = {}
        for file, content in contents.items():
            (folder / file).write_bytes(pickle.dumps(content))
            sums[file] = hashlib.md5((folder / file).read_bytes()).hexdigest()
        monkeypatch.setattr(source, "train_list", [["train", sums["train"]]])
        monkeypatch.setattr(source, "test_list", [["test", sums["test"]]])
        monkeypatch.setattr(source, "meta", {"filename": "meta", "key": names_key, "md5": sums["meta"]})
        return source, planes, labels

    return make


@pytest.mark.parametrize(("name", "num_classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar(tmp_path, cifar, name, num_classes):
    source, planes, labels = cifar(name)
    for folder in (tmp_path, tmp_path / source.base_folder):
        dataset = load_dataset(name, folder)
        np.testing.assert_array_equal(dataset.images.numpy(), planes)
        assert dataset.labels.tolist() == labels and dataset.num_classes == num_classes
        assert dataset.mean == pytest.approx((planes / 255).mean((0, 2, 3)))
        assert dataset.std == pytest.approx((planes / 255).std((0, 2, 3)))


class Trap:
    def __reduce__(self):
        return pytest.fail, ("an unknown pickle was executed",)


def test_changed_cifar_is_never_unpickled(tmp_path, cifar):
    source, *_ = cifar("cifar10")
    (tmp_path / source.base_folder / "train").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InputError, match="cifar-10-batches-py is incomplete or damaged"):
        load_dataset("cifar10", tmp_path)


def test_unreadable_cifar_is_not_called_damaged(tmp_path, cifar, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", "data_batch_1")

    cifar("cifar10")
    monkeypatch.setattr("torchvision.datasets.utils.calculate_md5", refuse)
    with pytest.raises(InputError, match=r"cifar-10-batches-py cannot be read: .*data_batch_1"):
        load_dataset("cifar10", tmp_path)


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(InputError, match="did you mean 'fashion-mnist'"):
        load_dataset("fashon_mnist")


@restored()
def test_own_dataset():
    @register_dataset("own")
    def own(data_dir, *, download, seed):
        labels = torch.arange(seed)
        images = (labels / seed).view(-1, 1, 1, 1)
        return Dataset.from_tensors("own", (images, labels), (images, labels), num_classes=9)

    assert dataset_names()[-1] == "own"
    dataset = load_dataset("own", seed=4)
    assert len(dataset.labels) == 4 and dataset.mean == pytest.approx([(0 + 1 / 4 + 2 / 4 + 3 / 4) / 4])

    with pytest.raises(InputError, match="already registered"):
        register_dataset("own")(lambda data_dir, **_: None)
    with pytest.raises(InputError, match="lower-case"):
        register_dataset("My data")
    register_dataset("nothing")(lambda data_dir, **_: None)
    with pytest.raises(InputError, match="returned NoneType"):
        load_dataset("nothing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(3, 8, 8)}, r"images must be \[N, C, H, W\]"),
        ({"images": torch.zeros(3, 1, 8, 8, dtype=torch.float64)}, "uint8 or float32"),
        ({"images": torch.full((3, 1, 8, 8), 1.5)}, r"in \[0, 1\]"),
        ({"images": torch.full((3, 1, 8, 8), torch.nan)}, "3 of 3 images, the first at index 0, hold NaN"),
        ({"images": torch.zeros(3, 1, 8, 9)}, "must agree"),
        ({"labels": torch.zeros(2, dtype=torch.int64)}, r"labels must be int64 \[3\]"),
        ({"labels": torch.zeros(0, dtype=torch.int64)}, r"labels must be int64 \[3\]"),
        ({"labels": torch.zeros(3)}, "labels must be int64"),
        ({"test_labels": torch.tensor([0, 1, -1])}, "test_labels must be 0 to 0, not -1 to 1"),
    ],
)
def test_own_dataset_is_checked(change, message):
    parts = {"images": torch.zeros(3, 1, 8, 8), "labels": torch.zeros(3, dtype=torch.int64)}
    parts |= {f"test_{name}": tensor for name, tensor in parts.items()} | change
    with pytest.raises(InputError, match=message):
        Dataset.from_tensors("own", (parts["images"], parts["labels"]), (parts["test_images"], parts["test_labels"]))


@pytest.mark.parametrize(
    "statistics", [{"mean": (torch.nan,)}, {"std": (torch.inf,)}, {"std": (0.0,)}, {"std": (-1.0,)}]
)
def test_statistics_that_would_give_nan(statistics):
    batch = torch.zeros(3, 1, 8, 8), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(InputError, match="must be finite, and std greater than 0"):
        Dataset("own", *batch, *batch, 1, **({"mean": (0.0,), "std": (1.0,)} | statistics))


def test_constant_channel_is_only_shifted():
    """One that varies by no more than the rounding of float32 is constant: test images would be divided by 1e-10."""
    images = torch.full((1000, 1, 3, 3), 0.1)
    images[0, 0, 0, 0] = torch.nextafter(images[1, 0, 0, 0], torch.tensor(1.0))
    batch = images, torch.arange(1000) % 2
    assert Dataset.from_tensors("own", batch, batch).std == (1.0,)


def test_line_about_a_dataset(caplog):
    with caplog.at_level("INFO", "bionas_fast.data"):
        load_dataset("digits")
    assert caplog.messages == ["dataset 'digits': 1438 training and 359 test images, 10 classes, 1×8×8"]


def test_statistics_do_not_depend_on_the_number_of_images_counted_at_a_time(monkeypatch):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (50, 3, 7, 5), dtype=np.uint8))
    batch = images, torch.arange(50) % 2
    monkeypatch.setattr(dataset_module, "HISTOGRAM", 100)
    data = Dataset.from_tensors("own", batch, batch)
    assert data.mean == pytest.approx((images.numpy() / 255).mean((0, 2, 3)), rel=1e-12)
    assert data.std == pytest.approx((images.numpy() / 255).std((0, 2, 3)), rel=1e-12)
