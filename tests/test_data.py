"""Data sets and batches. The oracles: scikit-learn, files written here, loops over single images."""

from __future__ import annotations

import gzip
import hashlib
import io
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

from bionas_fast.data import (
    Augment,
    BatchStream,
    Dataset,
    dataset_names,
    evaluation_batches,
    load_dataset,
    normalise,
    register_dataset,
    split,
)
from bionas_fast.data import datasets as datasets_module
from bionas_fast.data.idx import read_idx
from bionas_fast.errors import InputError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
TRAIN, TEST = 12, 5  # images in the tiny files


def numbered(n: int, size: tuple[int, ...] = (1, 2, 2)) -> tuple[torch.Tensor, torch.Tensor]:
    """Images that can be told apart, image i filled with i / n, and its number as the label."""
    index = torch.arange(n)
    return (index / n).view(-1, 1, 1, 1).expand(n, *size).contiguous(), index


# ------------------------------------------------------------------------------------------------ data sets


def test_digits_is_scikit_learns_data_split_in_two():
    from sklearn.datasets import load_digits

    dataset = load_dataset("digits")
    assert (dataset.in_channels, dataset.image_size, dataset.num_classes) == (1, (8, 8), 10)
    assert dataset.images.dtype == torch.float32 and dataset.labels.dtype == torch.int64
    assert len(dataset.labels) == 1438 and len(dataset.test_labels) == 359

    # Together the two parts are the original 1797, each image once and with its label: so they are disjoint.
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
    """What the four files hold: images of 3×4 bytes."""
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
        (GOOD[:-1], "promises 40 bytes.* there are 39"),
        (GOOD + b"\x00", "promises 40 bytes.* there are 41"),
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
    """A folder with the tiny files, served where torchvision looks for MNIST."""
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
    assert [path.name for path in root.iterdir()] == ["MNIST"]  # no staging folder is left
    for file in server.iterdir():
        file.unlink()
    assert torch.equal(load_dataset("mnist", root, download=True).labels, dataset.labels)


@pytest.mark.parametrize("damage", ["missing", "wrong sum"])
def test_failed_download_leaves_nothing(tmp_path, server, damage):
    last = server / "train-labels-idx1-ubyte.gz"  # the last to be fetched
    last.unlink() if damage == "missing" else last.write_bytes(b"something else")
    with pytest.raises(InputError, match="MNIST could not be downloaded into") as error:
        load_dataset("mnist", tmp_path / "new" / "data", download=True)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["server"]


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Writes a CIFAR of one file a part, known to torchvision by its md5 sum; gives what it holds."""

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


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(InputError, match="did you mean 'fashion-mnist'"):
        load_dataset("fashon_mnist")


def test_own_dataset(monkeypatch):
    monkeypatch.setattr(datasets_module, "_registry", dict(datasets_module._registry))

    @register_dataset("own")
    def own(data_dir, *, download, seed):
        return Dataset.from_tensors("own", numbered(seed), numbered(2), num_classes=9)

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
        ({"images": torch.full((3, 1, 8, 8), torch.nan)}, r"in \[0, 1\]"),
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


# -------------------------------------------------------------------------------------------------- split


@pytest.mark.parametrize("fraction", [0.5, 0.8, 0.29])
def test_split_is_disjoint_complete_and_stratified(fraction):
    counts = [37, 5, 60, 11, 87]
    labels = torch.repeat_interleave(torch.arange(5), torch.tensor(counts))
    labels = labels[torch.randperm(200, generator=torch.Generator().manual_seed(9))]
    images = torch.arange(200).view(200, 1, 1, 1)
    (first, first_labels), (second, second_labels) = split(images, labels, fraction, seed=3)

    assert len(first) == round(200 * fraction)
    assert sorted(first.flatten().tolist() + second.flatten().tolist()) == list(range(200))
    assert torch.equal(labels[first.flatten()], first_labels) and torch.equal(labels[second.flatten()], second_labels)
    for label, count in enumerate(counts):
        assert abs(first_labels.tolist().count(label) - fraction * count) <= 1


def test_split_follows_its_seed_alone():
    images, labels = numbered(40)[0], torch.arange(40) % 4
    before = torch.get_rng_state()
    one, again, other = (split(images, labels, 0.5, seed)[0][0] for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("fraction", [0.0, 1.0, 0.01, -1.0, float("nan")])
def test_split_into_nothing(fraction):
    with pytest.raises(InputError, match="empty"):
        split(*numbered(10), fraction, seed=0)


# -------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize(
    ("batch_size", "drop_last", "sizes"),
    [
        (4, True, [4, 4]),
        (4, False, [4, 4, 3]),
        (11, True, [11]),
        (100, True, [11]),
        (100, False, [11]),
        (1, True, [1] * 11),
    ],
)
def test_every_epoch_is_a_permutation(batch_size, drop_last, sizes):
    images, labels = numbered(11)
    stream = BatchStream(images, labels, batch_size, seed=0, drop_last=drop_last)
    assert len(stream) == len(sizes)
    orders = []
    for _ in range(3):
        batches = list(stream.epoch())
        assert [len(y) for _, y in batches] == sizes
        for x, y in batches:
            assert torch.equal(x, images[y])
        order = torch.cat([y for _, y in batches]).tolist()
        assert len(set(order)) == sum(sizes)
        orders.append(order)
    if sizes != [1]:
        assert orders[0] != orders[1] != orders[2]


def test_stream_is_endless_and_epoch_gives_the_rest():
    stream = BatchStream(*numbered(10), 3, seed=0)
    assert [stream.position for _ in zip(range(7), stream, strict=False)] == [1, 2, 3, 1, 2, 3, 1]
    # zip asked for the eighth batch only after range had ended, so two of this epoch are left.
    assert len(list(stream.epoch())) == 2
    assert len(list(stream.epoch())) == 3


def test_stream_normalises_uint8_and_float_alike():
    images = torch.randint(256, (6, 2, 3, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mean, std = (0.2, 0.4), (0.5, 2.0)
    kept = images.clone()
    x, y = next(BatchStream(images, torch.arange(6), 6, seed=0, mean=mean, std=std))
    oracle = torchvision.transforms.Normalize(mean, std)(images.float() / 255)
    torch.testing.assert_close(x, oracle[y])
    torch.testing.assert_close(normalise(images, mean, std), oracle)
    again, _ = next(BatchStream(images.float() / 255, torch.arange(6), 6, seed=0, mean=mean, std=std))
    assert torch.equal(x, again) and torch.equal(images, kept)


ALL = Augment(flip=True, crop_padding=2, cutout=3)


def picture_stream(seed: int = 5) -> BatchStream:
    images = torch.rand(23, 3, 8, 7, generator=torch.Generator().manual_seed(1))
    return BatchStream(images, torch.arange(23), 5, seed=seed, augment=ALL, mean=(0.5,) * 3, std=(0.2,) * 3)


@pytest.mark.parametrize("done", [0, 2, 4, 6], ids=["start", "mid-epoch", "epoch-end", "second-epoch"])
def test_resume_is_bit_identical(done):
    stream = picture_stream()
    for _ in range(done):
        next(stream)
    file = io.BytesIO()
    torch.save(stream.state_dict(), file)
    file.seek(0)
    expected = [next(stream) for _ in range(9)]

    resumed = picture_stream(seed=77)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for x, y in expected:
        again_x, again_y = next(resumed)
        assert torch.equal(x, again_x) and torch.equal(y, again_y)


def test_state_is_a_snapshot():
    stream = picture_stream()
    next(stream)
    state = stream.state_dict()
    expected = next(stream)[0]
    list(stream.epoch())
    stream.load_state_dict(state)
    assert torch.equal(next(stream)[0], expected)


def test_stream_follows_its_seed_alone():
    before = torch.get_rng_state()
    one, again, other = (next(picture_stream(seed))[0] for seed in (5, 5, 6))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generator": None}, "not the state"),
        ({"generator": torch.zeros(3, dtype=torch.uint8)}, "not the state"),
        ({"position": "x"}, "not the state"),
        ({"position": 5}, "saved at batch 5 of 4"),
        ({"position": -1}, "saved at batch -1 of 4"),
        ({"permutation": torch.arange(22)}, "over 22 images, not 23"),
        ({"permutation": torch.zeros(23, dtype=torch.int64)}, "damaged"),
        ({"permutation": torch.empty(0, dtype=torch.int64)}, "saved at batch 1 of 4"),
        ({"batch_size": 6}, "batches of 6, not 5"),
    ],
)
def test_foreign_state_is_refused_and_changes_nothing(change, message):
    stream, twin = picture_stream(), picture_stream()
    next(stream), next(twin)
    with pytest.raises(InputError, match=message):
        stream.load_state_dict(stream.state_dict() | change)
    assert torch.equal(next(stream)[0], next(twin)[0])
    with pytest.raises(InputError, match="not the state"):
        stream.load_state_dict({})


@pytest.mark.parametrize(
    ("images", "labels", "batch_size", "message"),
    [
        (torch.zeros(0, 1, 2, 2), torch.zeros(0, dtype=torch.int64), 1, "no images"),
        (torch.zeros(3, 1, 2, 2), torch.zeros(2, dtype=torch.int64), 1, "3 images need as many labels"),
        (torch.zeros(3, 1, 2, 2), torch.zeros(3, 1, dtype=torch.int64), 1, "3 images need as many labels"),
        (torch.zeros(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64), 0, "batch_size must be 1 or more"),
    ],
)
def test_batches_of_bad_input(images, labels, batch_size, message):
    with pytest.raises(InputError, match=message):
        BatchStream(images, labels, batch_size, seed=0)
    with pytest.raises(InputError, match=message):
        evaluation_batches(images, labels, batch_size)


def test_evaluation_batches_are_in_order():
    images, labels = numbered(7)
    batches = list(evaluation_batches(images, labels, 3, mean=(0.5,), std=(0.25,)))
    assert [len(y) for _, y in batches] == [3, 3, 1]
    assert torch.equal(torch.cat([y for _, y in batches]), labels)
    torch.testing.assert_close(torch.cat([x for x, _ in batches]), (images - 0.5) / 0.25)
    assert torch.equal(torch.cat([x for x, _ in evaluation_batches(images, labels, 3)]), images)


# ---------------------------------------------------------------------------------------------- augmentation

N, HEIGHT, WIDTH = 2000, 4, 5  # so many that each of the 50 crops below is seen


def pictures() -> torch.Tensor:
    """No two pixels alike and none 0, so that an output tells where each of its pixels came from."""
    pixels = N * 2 * HEIGHT * WIDTH
    return (torch.arange(pixels, dtype=torch.float64) + 1).view(N, 2, HEIGHT, WIDTH)


def naive_crop_and_flip(image: torch.Tensor, padding: int, dy: int, dx: int, flip: bool) -> torch.Tensor:
    out = torch.zeros_like(image)
    for y in range(HEIGHT):
        for x in range(WIDTH):
            from_y, from_x = y + dy - padding, x + dx - padding
            if 0 <= from_y < HEIGHT and 0 <= from_x < WIDTH:
                out[:, y, WIDTH - 1 - x if flip else x] = image[:, from_y, from_x]
    return out


@pytest.mark.parametrize(("flip", "padding"), [(True, 0), (False, 2), (True, 2)], ids=["flip", "crop", "both"])
def test_crop_and_flip_against_a_loop(flip, padding):
    images = pictures()
    kept = images.clone()
    out = Augment(flip=flip, crop_padding=padding)(images, torch.Generator().manual_seed(0))
    assert out.shape == images.shape and out.is_contiguous() and torch.equal(images, kept)

    draws = [
        (dy, dx, mirrored)
        for dy in range(2 * padding + 1)
        for dx in range(2 * padding + 1)
        for mirrored in ([False, True] if flip else [False])
    ]
    seen = dict.fromkeys(draws, 0)
    # Which pixel goes where is the same for every image: work it out once, on the pixels' numbers.
    where = torch.arange(1, HEIGHT * WIDTH + 1).view(1, HEIGHT, WIDTH)
    crops = {tuple(naive_crop_and_flip(where, padding, *draw).flatten().tolist()): draw for draw in draws}
    assert len(crops) == len(draws)
    for i, image in enumerate(out):
        first = 2 * HEIGHT * WIDTH * i  # the numbers in channel 0 of image i begin after this one
        sources = [int(value - first) if value else 0 for value in image[0].flatten().tolist()]
        draw = crops[tuple(sources)]
        assert torch.equal(image, naive_crop_and_flip(images[i], padding, *draw))
        seen[draw] += 1
    expected = N / len(draws)
    assert all(abs(count - expected) < 6 * expected**0.5 for count in seen.values())


@pytest.mark.parametrize("side", [1, 2, 3, 4, 20])
def test_cutout_against_a_loop(side):
    images = pictures()
    out = Augment(cutout=side)(images, torch.Generator().manual_seed(0), blank=-7.0)
    seen = set()
    for image, original in zip(out, images, strict=True):
        blank = image != original
        assert (image[blank] == -7).all() and torch.equal(blank[0], blank[1])
        seen.add(tuple(blank[0].flatten().tolist()))

    expected = set()
    for centre_y in range(HEIGHT):
        for centre_x in range(WIDTH):
            mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
            for y in range(centre_y - side // 2, centre_y - side // 2 + side):
                for x in range(centre_x - side // 2, centre_x - side // 2 + side):
                    if 0 <= y < HEIGHT and 0 <= x < WIDTH:
                        mask[y, x] = True
            expected.add(tuple(mask.flatten().tolist()))
    assert seen == expected


def test_cutout_is_zero_after_normalisation():
    images = torch.rand(4, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    stream = BatchStream(
        images, torch.arange(4), 4, seed=0, augment=Augment(cutout=20), mean=(0.3, 0.7), std=(0.2, 0.9)
    )
    assert not next(stream)[0].any()


def test_no_augmentation_changes_nothing():
    images = pictures()
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert torch.equal(Augment()(images, generator), images)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("sizes", [{"crop_padding": -1}, {"cutout": -1}, {"cutout": 1.5}])
def test_augment_is_checked(sizes):
    with pytest.raises(InputError, match="number of pixels"):
        Augment(**sizes)
