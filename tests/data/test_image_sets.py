"""KMNIST, SVHN, STL-10 and ImageNet16-120 from small files made here."""

from __future__ import annotations

import gzip
import hashlib
import pickle

import numpy as np
import pytest
import torch
import torchvision

from bionas_fast import InputError
from bionas_fast.data import imagenet16, load_dataset
from bionas_fast.errors import BionasWarning

RNG = np.random.default_rng(0)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("compressed", [False, True])
def test_kmnist(tmp_path, compressed):
    images, labels = RNG.integers(0, 256, (12, 28, 28), np.uint8), np.arange(12, dtype=np.uint8) % 10
    for part, count in (("train", 12), ("t10k", 5)):
        for name, array, magic in (("images-idx3", images[:count], 3), ("labels-idx1", labels[:count], 1)):
            shape = b"".join(size.to_bytes(4, "big") for size in array.shape)
            content = bytes((0, 0, 8, magic)) + shape + array.tobytes()
            path = tmp_path / f"{part}-{name}-ubyte{'.gz' if compressed else ''}"
            path.write_bytes(gzip.compress(content) if compressed else content)
    dataset = load_dataset("kmnist", tmp_path)
    np.testing.assert_array_equal(dataset.images[:, 0].numpy(), images)
    assert dataset.test_labels.tolist() == labels[:5].tolist()
    assert dataset.num_classes == 10


@pytest.fixture
def svhn(tmp_path, monkeypatch):
    from scipy.io import savemat

    pixels = RNG.integers(0, 256, (32, 32, 3, 11), np.uint8)
    labels = np.array([[1], [2], [10], [9], [3], [4], [5], [6], [7], [8], [10]])
    known = {}
    for split, count in (("train", 11), ("test", 4)):
        path = tmp_path / f"{split}_32x32.mat"
        savemat(path, {"X": pixels[..., :count], "y": labels[:count]})
        known[split] = [f"http://127.0.0.1:9/{path.name}", path.name, md5(path)]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", known)
    return pixels, labels


def test_svhn(tmp_path, svhn):
    """Its label 10 is the digit 0."""
    pixels, labels = svhn
    dataset = load_dataset("svhn", tmp_path)
    np.testing.assert_array_equal(dataset.images.numpy(), pixels.transpose(3, 2, 0, 1))
    assert dataset.labels.tolist() == [label % 10 for label in labels[:, 0]]
    assert len(dataset.test_images) == 4
    (tmp_path / "test_32x32.mat").write_bytes(b"half")
    with pytest.raises(InputError, match="incomplete or damaged"):
        load_dataset("svhn", tmp_path)


def test_stl10(tmp_path, monkeypatch):
    """Stored by columns; labels from 1."""
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    pixels, labels = RNG.integers(0, 256, (10, 3, 96, 96), np.uint8), np.arange(1, 11, dtype=np.uint8)
    source = torchvision.datasets.STL10
    for part, attribute in (("train", "train_list"), ("test", "test_list")):
        files = []
        for suffix, content in (("X", pixels.transpose(0, 1, 3, 2).tobytes()), ("y", labels.tobytes())):
            path = folder / f"{part}_{suffix}.bin"
            path.write_bytes(content)
            files.append([path.name, md5(path)])
        monkeypatch.setattr(source, attribute, files)
    dataset = load_dataset("stl10", tmp_path)
    np.testing.assert_array_equal(dataset.images.numpy(), pixels)
    assert dataset.labels.tolist() == list(range(10))


@pytest.mark.parametrize("name", ["kmnist", "svhn", "stl10", "imagenet16-120"])
def test_missing_files_name_the_folders_and_a_source(tmp_path, name):
    with pytest.raises(InputError) as error:
        load_dataset(name, tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "image-net.org" in str(error.value) if name == "imagenet16-120" else "--download" in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Ten training files of nine images and a test file; of labels up to 1000, those up to 120 count."""
    monkeypatch.setattr(imagenet16, "COUNTS", (50, 5))
    labels = [1, 120, 121, 1000, 7, 121, 64, 900, 2]

    def batch(seed):
        data = np.random.default_rng(seed).integers(0, 256, (9, 768), np.uint8)
        return {"data": data, "labels": labels, "mean": np.zeros(768)}

    for number, name in enumerate((*imagenet16.TRAIN_FILES, "val_data")):
        (tmp_path / name).write_bytes(pickle.dumps(batch(number), protocol=2 + number % 4))
    return tmp_path, batch, labels


def test_imagenet16_120(small):
    folder, batch, labels = small
    dataset = load_dataset("imagenet16-120", folder)
    chosen = [i for i, label in enumerate(labels) if label <= 120]
    expected = np.stack([batch(n)["data"][i].reshape(3, 16, 16) for n in range(10) for i in chosen])
    np.testing.assert_array_equal(dataset.images.numpy(), expected)
    assert dataset.labels.tolist() == [labels[i] - 1 for i in chosen] * 10
    assert dataset.test_labels.tolist() == [labels[i] - 1 for i in chosen]
    assert dataset.num_classes == 120
    assert dataset.mean == pytest.approx((0.48110, 0.45749, 0.40788), abs=1e-5)
    assert dataset.std == pytest.approx((0.24792, 0.24024, 0.25525), abs=1e-5)
    # The selection alone suffices from then on, and also in the folder above.
    for file in folder.iterdir():
        if file.name != "imagenet16-120.npz":
            file.unlink()
    again = load_dataset("imagenet16-120", folder)
    assert torch.equal(again.images, dataset.images)
    assert torch.equal(again.labels, dataset.labels)


def test_a_selection_cut_short_is_made_again(small):
    folder, *_ = small
    dataset = load_dataset("imagenet16-120", folder)
    kept = folder / "imagenet16-120.npz"
    content = kept.read_bytes()
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 255
    for wrong in (content[: len(content) // 2], bytes(damaged), b""):
        kept.write_bytes(wrong)
        with pytest.warns(BionasWarning, match="is damaged and is made again"):
            again = load_dataset("imagenet16-120", folder)
        assert torch.equal(again.images, dataset.images)
        assert kept.read_bytes()[:2] == b"PK"
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []


class Trap:
    def __reduce__(self):
        return pytest.fail, ("a pickle was executed",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Trap(), "holds _pytest.outcomes._Fail, which is not read"),
        ({"data": np.zeros((9, 768), np.float32), "labels": [1] * 9}, r"'data' to be uint8 \[N, 768\]"),
        ({"data": np.zeros((9, 767), np.uint8), "labels": [1] * 9}, r"'data' to be uint8 \[N, 768\]"),
        ({"data": np.zeros((9, 768), np.uint8), "labels": [1] * 8}, "'labels' to be 9 integers"),
        ({"data": np.zeros((9, 768), np.uint8), "labels": [1, [2]]}, "'labels' to be 9 integers"),
        ({"data": np.array([Trap()], object), "labels": [1]}, "which is not read|not of numbers"),
        ([1, 2], "'data' to be uint8"),
        ({"labels": [1]}, "'data' to be uint8"),
    ],
    ids=["trap", "float", "767", "fewer labels", "ragged", "objects", "list", "no data"],
)
def test_files_of_other_content(small, content, message):
    folder, *_ = small
    path = folder / "train_data_batch_4"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=message) as error:
        load_dataset("imagenet16-120", folder)
    assert str(path) in str(error.value)
    assert not (folder / "imagenet16-120.npz").exists()


def test_damaged_files_at_any_point(small):
    folder, *_ = small
    path = folder / "val_data"
    content = path.read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(60):
        damaged = bytearray(content)
        if rng.random() < 0.5:
            damaged = damaged[: rng.integers(len(content))]
        else:
            for place in rng.integers(0, len(content), 3):
                damaged[place] = rng.integers(256)
        path.write_bytes(bytes(damaged))
        message = str(folder)
        try:  # a pixel may have changed; anything else is named
            load_dataset("imagenet16-120", folder)
            (folder / "imagenet16-120.npz").unlink()
        except InputError as error:
            message = str(error)
        assert str(folder) in message
        assert "\n" not in message


def test_another_number_of_images(small, monkeypatch):
    folder, *_ = small
    monkeypatch.setattr(imagenet16, "COUNTS", (151_700, 6_000))
    with pytest.raises(InputError, match=r"expected \[151700, 3, 16, 16\] train images .* got \[50, 3, 16, 16\]"):
        load_dataset("imagenet16-120", folder)
    assert not (folder / "imagenet16-120.npz").exists()


def test_a_folder_that_cannot_be_written_is_read_all_the_same(small, monkeypatch):
    folder, *_ = small
    monkeypatch.setattr("tempfile.NamedTemporaryFile", lambda **_: (_ for _ in ()).throw(OSError(30, "Read-only")))
    with pytest.warns(BionasWarning, match="could not be written"):
        assert len(load_dataset("imagenet16-120", folder).labels) == 50
