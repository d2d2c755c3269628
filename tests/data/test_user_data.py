"""Datasets from user folders and arrays. Oracles: numpy, torchvision's ImageFolder, the images as written."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

import bionas_fast as bf
from bionas_fast.data import arrays
from bionas_fast.errors import InputError
from helpers.registries import restored

RANDOM = np.random.default_rng(0)


def picture(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)
    return path


def fill(root: Path, counts: dict[str, int], shape: tuple[int, ...] = (3, 5, 3)) -> dict[Path, np.ndarray]:
    """Write n images into the folder of each class; return the contents of each file."""
    pictures = {root / name / f"{i:02}.png": picture(*shape) for name, count in counts.items() for i in range(count)}
    for path, pixels in pictures.items():
        save(path, pixels)
    return pictures


def as_channels_first(pictures) -> np.ndarray:
    return np.stack([p[..., None] if p.ndim == 2 else p for p in pictures]).transpose(0, 3, 1, 2)


@pytest.mark.parametrize(("shape", "channels"), [((3, 5, 3), 3), ((4, 4), 1)], ids=["colour", "grey"])
def test_folder_with_train_and_test(tmp_path, shape, channels):
    train = fill(tmp_path / "train", {"cat": 3, "Ant": 2, "bee": 4}, shape)
    test = fill(tmp_path / "test", {"bee": 1, "cat": 2}, shape)  # a class may be missing from the test images
    # Non-images and hidden files are ignored; subfolders of a class are read.
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / "cat" / "._00.png").write_text("not an image")
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "LICENSE").write_text("not a class")
    deep = save(tmp_path / "train" / "cat" / "more" / "00.PNG", picture(*shape))
    train[deep] = np.array(Image.open(deep))

    data = bf.load_dataset(f"folder:{tmp_path}")
    order = sorted(train, key=lambda path: (path.relative_to(tmp_path / "train").parts[0], path.parent, path.name))
    np.testing.assert_array_equal(data.images.numpy(), as_channels_first([train[path] for path in order]))
    np.testing.assert_array_equal(data.test_images.numpy(), as_channels_first(test.values()))
    assert data.labels.tolist() == [0] * 2 + [1] * 4 + [2] * 4 and data.test_labels.tolist() == [1, 2, 2]
    assert data.num_classes == 3 and data.in_channels == channels

    pixels = as_channels_first(train.values()) / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3))) and data.std == pytest.approx(pixels.std((0, 2, 3)))


def test_folder_agrees_with_torchvision(tmp_path):
    for part in ("train", "test"):
        fill(tmp_path / part, {"b": 2, "a": 3, "C": 1})
    data = bf.load_dataset(f"folder:{tmp_path}")
    for part, images, labels in (("train", data.images, data.labels), ("test", data.test_images, data.test_labels)):
        peer = ImageFolder(tmp_path / part)
        assert labels.tolist() == [label for _, label in peer]
        np.testing.assert_array_equal(images.permute(0, 2, 3, 1).numpy(), np.stack([image for image, _ in peer]))


def test_folder_without_parts_is_split_by_class(tmp_path):
    counts = {"a": 10, "b": 5, "c": 21}
    pictures = fill(tmp_path, counts)
    data, again = (bf.load_dataset(f"folder:{tmp_path}", seed=seed) for seed in (0, 1))
    assert torch.equal(data.test_images, again.test_images)
    assert len(data.labels) == round(0.8 * 36) and len(data.test_labels) == 36 - round(0.8 * 36)
    for label, count in enumerate(counts.values()):
        assert abs(int((data.labels == label).sum()) - 0.8 * count) <= 1

    # Every image once, with its label.
    labels = {pixels.transpose(2, 0, 1).tobytes(): "abc".index(path.parent.name) for path, pixels in pictures.items()}
    images = torch.cat([data.images, data.test_images]).numpy()
    assert [labels.pop(i.tobytes()) for i in images] == [*data.labels.tolist(), *data.test_labels.tolist()]
    assert not labels


def test_relative_paths_start_at_the_data_folder(tmp_path, monkeypatch):
    fill(tmp_path / "photos", {"a": 5, "b": 5})
    np.savez(tmp_path / "photos.npz", x=picture(10, 4, 4), y=np.arange(10) % 2)
    for name in ("folder:photos", "npz:photos.npz"):
        assert len(bf.load_dataset(name, tmp_path).labels) == 8
        monkeypatch.chdir(tmp_path)
        assert len(bf.load_dataset(name).labels) == 8
        monkeypatch.chdir("/")
        with pytest.raises(InputError, match=f"dataset '{name}': no .* /photos"):
            bf.load_dataset(name)


def test_one_colour_image_makes_all_colour(tmp_path):
    grey = fill(tmp_path, {"a": 6, "b": 5}, (3, 3))
    colour = save(tmp_path / "a" / "99.png", picture(3, 3, 3))
    data = bf.load_dataset(f"folder:{tmp_path}")
    images = torch.cat([data.images, data.test_images]).permute(0, 2, 3, 1).numpy()
    expected = [*(np.stack([pixels] * 3, axis=-1) for pixels in grey.values()), np.array(Image.open(colour))]
    assert sorted(i.tobytes() for i in images) == sorted(e.tobytes() for e in expected)


@pytest.mark.parametrize("mode", ["1", "LA", "P", "RGBA", "CMYK"])
def test_other_modes_are_grey_or_colour(tmp_path, mode):
    black_and_white = np.where(picture(4, 4) > 127, 255, 0).astype(np.uint8)
    for i in range(10):
        save(tmp_path / "ab"[i % 2] / f"{i}.tiff", black_and_white, mode)
    data = bf.load_dataset(f"folder:{tmp_path}")
    assert data.in_channels == (1 if mode in ("1", "LA") else 3)
    assert (data.images.numpy() == black_and_white).all()


def test_images_are_given_one_size(tmp_path):
    wide = picture(4, 10, 3)
    save(tmp_path / "train" / "a" / "wide.png", wide)
    save(tmp_path / "train" / "b" / "red.png", np.full((9, 7, 3), (200, 10, 0), dtype=np.uint8))
    save(tmp_path / "test" / "a" / "tall.png", wide.transpose(1, 0, 2))
    data = bf.load_dataset(f"folder:{tmp_path},size=4")
    np.testing.assert_array_equal(data.images[0].permute(1, 2, 0), wide[:, 3:7])
    np.testing.assert_array_equal(data.test_images[0].permute(1, 2, 0), wide.transpose(1, 0, 2)[3:7])
    assert (data.images[1] == torch.tensor([200, 10, 0])[:, None, None]).all()
    assert data.images.shape == (2, 3, 4, 4)

    with pytest.raises(InputError, match=r"wide.png has 10×4 pixels, but .*red.png has 7×9; .*,size=4"):
        bf.load_dataset(f"folder:{tmp_path}")
    for size in ("0", "", "-1", "x", "²", "99999"):
        with pytest.raises(InputError, match="size must be a number of pixels"):
            bf.load_dataset(f"folder:{tmp_path},size={size}")


def test_bad_folders(tmp_path):
    with pytest.raises(InputError, match="expected an argument after the colon"):
        bf.load_dataset("folder:")
    with pytest.raises(InputError, match=r"no folder .*/absent"):
        bf.load_dataset(f"folder:{tmp_path}/absent")
    with pytest.raises(InputError, match="expected one folder per class"):
        bf.load_dataset(f"folder:{tmp_path}")
    (tmp_path / "one").mkdir()
    with pytest.raises(InputError, match=r"no images in .*/one; images end in \.jpg"):
        bf.load_dataset(f"folder:{tmp_path}")
    fill(tmp_path, {"one": 5})
    with pytest.raises(InputError, match="only one class"):
        bf.load_dataset(f"folder:{tmp_path}")
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match=r"no folder .*/test; train and test are both required"):
        bf.load_dataset(f"folder:{tmp_path}")
    fill(tmp_path / "train", {"a": 1, "b": 1})
    fill(tmp_path / "test", {"a": 1, "c": 1})
    with pytest.raises(InputError, match=r"class 'c' is in .*/test, but not in .*/train"):
        bf.load_dataset(f"folder:{tmp_path}")


def test_class_that_is_only_tested(tmp_path):
    fill(tmp_path, {"a": 40, **{f"b{i}": 1 for i in range(5)}})
    with pytest.raises(InputError, match="no training image of class 'b"):
        bf.load_dataset(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b[:10], lambda b: b"", lambda b: b"text" * 30]
)
def test_damaged_image_is_named(tmp_path, damage):
    fill(tmp_path, {"a": 5, "b": 5}, (32, 32, 3))
    victim = tmp_path / "b" / "03.png"
    victim.write_bytes(damage(victim.read_bytes()))
    with pytest.raises(InputError, match=r"/b/03\.png: cannot be read as an image") as error:
        bf.load_dataset(f"folder:{tmp_path}")
    assert "\n" not in str(error.value)


def test_deep_image_is_not_cut_to_8_bits(tmp_path):
    fill(tmp_path, {"a": 5, "b": 5}, (4, 4))
    save(tmp_path / "b" / "02.png", RANDOM.integers(0, 2**16, (4, 4)).astype(np.uint16))
    with pytest.raises(InputError, match=r"/b/02\.png: more than 8 bits"):
        bf.load_dataset(f"folder:{tmp_path}")


# uint8 images in several array layouts, and the same images as [N, C, H, W]
LAYOUTS = {
    "NHW": ((6, 5, 7), lambda x: x[:, None]),
    "NHWC": ((6, 5, 7, 3), lambda x: x.transpose(0, 3, 1, 2)),
    "NHW1": ((6, 5, 7, 1), lambda x: x.transpose(0, 3, 1, 2)),
    "NCHW": ((6, 2, 5, 7), lambda x: x),
    "NHWC-small": ((6, 5, 2, 3), lambda x: x.transpose(0, 3, 1, 2)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["u1", "<f4", ">f8", "f2"])
def test_npz(tmp_path, layout, dtype):
    shape, to_nchw = LAYOUTS[layout]
    train, test = (picture(*shape) if dtype == "u1" else RANDOM.random(shape).astype(dtype) for _ in range(2))
    labels, test_labels = np.array([0, 1, 2, 2, 1, 0], dtype=np.uint8), np.array([[2], [2], [0], [0], [0], [1]])
    np.savez_compressed(
        tmp_path / "own.npz", x_train=train, y_train=labels, x_test=test, y_test=test_labels, other=labels
    )
    data = bf.load_dataset(f"npz:{tmp_path}/own.npz")
    wanted = torch.uint8 if dtype == "u1" else torch.float32
    assert data.images.dtype == data.test_images.dtype == wanted
    np.testing.assert_array_equal(data.images.numpy(), to_nchw(train).astype(data.images.numpy().dtype))
    np.testing.assert_array_equal(data.test_images.numpy(), to_nchw(test).astype(data.images.numpy().dtype))
    assert data.labels.tolist() == labels.tolist() and data.test_labels.tolist() == test_labels.ravel().tolist()
    assert data.num_classes == 3
    pixels = to_nchw(train).astype(np.float64) / (255 if dtype == "u1" else 1)
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)), rel=1e-6)
    assert data.std == pytest.approx(pixels.std((0, 2, 3)), rel=1e-6)


def test_npz_without_parts_is_split_by_class(tmp_path):
    x, y = np.arange(50, dtype=np.uint8).reshape(50, 1, 1).repeat(5, 1).repeat(5, 2), np.arange(50) % 5
    np.savez(tmp_path / "own.npz", x=x, y=y)
    data = bf.load_dataset(f"npz:{tmp_path}/own.npz")
    assert torch.bincount(data.labels).tolist() == [8] * 5 and torch.bincount(data.test_labels).tolist() == [2] * 5
    numbers = torch.cat([data.images, data.test_images])[:, 0, 0, 0]
    assert sorted(numbers.tolist()) == list(range(50))
    assert torch.equal(numbers % 5, torch.cat([data.labels, data.test_labels]))


X, Y = picture(10, 5, 5), np.arange(10) % 2


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, "needs x_train, y_train, x_test, y_test, or x, y; it holds x$"),
        ({"x_train": X, "y_train": Y}, "it holds x_train, y_train$"),
        ({}, "it holds nothing"),
        ({"x": X.astype(np.int64), "y": Y}, r"npz: x must be uint8, or floating point in \[0, 1\], not int64"),
        ({"x": X > 3, "y": Y}, "not bool"),
        ({"x": X.astype(complex), "y": Y}, "not complex128"),
        ({"x": X[0], "y": Y}, r"must be \[N, H, W\].* not \[5, 5\]"),
        ({"x": X[:0], "y": Y}, r"not \[0, 5, 5\]"),
        ({"x": picture(10, 5, 5, 5), "y": Y}, r"\[10, 5, 5, 5\]: either the second axis or the last"),
        ({"x": picture(10, 3, 5, 3), "y": Y}, r"\[10, 3, 5, 3\]: either the second axis or the last"),
        ({"x": X.astype(np.float32), "y": Y}, r"in \[0, 1\], not in \[0, 2\d\d\]"),
        ({"x": X - 1.0, "y": Y}, r"in \[0, 1\], not in \[-1"),
        (
            {"x": np.where(np.arange(10)[:, None, None] == 7, np.nan, X / 255), "y": Y},
            "x: 1 of 10 images, the first at index 7, holds NaN",
        ),
        (
            {"x": np.where(np.arange(10)[:, None, None] == 0, -np.inf, X / 255), "y": Y},
            "x: 1 of 10 images, the first at index 0, holds NaN",
        ),
        ({"x": X, "y": Y[:9]}, "x has 10 images, but y has 9 labels"),
        ({"x": X, "y": Y / 2}, r"y must be integers \[N\], not float64 \[10\]"),
        ({"x": X, "y": np.eye(2, dtype=int)[Y]}, r"y must be integers \[N\], not int64 \[10, 2\]"),
        ({"x": X, "y": np.array(3)}, r"y must be integers \[N\], not int64 \[\]"),
        ({"x": X, "y": Y * 0}, "only one class"),
        ({"x": X[:3], "y": np.array([0, 0, 1])}, "no training image of class 1 of 0 to 1; one image in five"),
        ({"x": X, "y": Y.astype(np.uint64) + np.uint64(2**63)}, "y holds 9223372036854775809, which is not a label"),
        ({"x": X, "y": Y - 1}, "the labels 0 to 1, each at least once, not -1 to 0; add 1 to"),
        ({"x": X, "y": Y + 1}, "the labels 0 to 1, each at least once, not 1 to 2; subtract 1 from"),
        ({"x": X, "y": Y * 2**62}, rf"not 0, {2**62} \(2 classes\); renumber"),
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y + 1}, "test_labels must be 0 to 1, not 1 to 2"),
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y - 1}, "test_labels must be 0 to 1, not -1 to 0"),
        ({"x_train": X, "y_train": Y, "x_test": X[:, :4], "y_test": Y}, "must agree in"),
        ({"x_train": X, "y_train": Y, "x_test": picture(10, 5, 5, 3), "y_test": Y}, "must agree in"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arrays(tmp_path, arrays, message):
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(InputError, match=message):
        bf.load_dataset(f"npz:{tmp_path}/own.npz")


class Trap:
    def __reduce__(self):
        return pytest.fail, ("a pickle was executed",)


def test_an_unreadable_npz_is_not_called_damaged(tmp_path, monkeypatch):
    path = tmp_path / "own.npz"
    np.savez(path, x=X, y=Y)

    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(arrays, "open", refuse, raising=False)
    with pytest.raises(InputError, match=r"cannot be read as a file: .*Permission denied"):
        bf.load_dataset(f"npz:{path}")


def test_npz_is_never_unpickled(tmp_path):
    path = tmp_path / "own.npz"
    np.savez(path, x=np.array([Trap()] * 10, dtype=object), y=Y)
    with pytest.raises(InputError, match="x holds Python objects, which are not unpickled"):
        bf.load_dataset(f"npz:{path}")
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InputError, match=r"not an \.npz file"):
        bf.load_dataset(f"npz:{path}")


@pytest.mark.parametrize("damage", [lambda b: b[:-200], lambda b: b[:100] + b"?" + b[101:], lambda b: b""])
def test_damaged_npz_is_named(tmp_path, damage):
    path = tmp_path / "own.npz"
    np.savez(path, x=X, y=Y)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"own\.npz: ") as error:
        bf.load_dataset(f"npz:{path}")
    assert "\n" not in str(error.value)


def test_files_that_are_not_npz(tmp_path):
    with pytest.raises(InputError, match=r"no file .*/absent\.npz"):
        bf.load_dataset(f"npz:{tmp_path}/absent.npz")
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(InputError, match=r"not an \.npz file"):
        bf.load_dataset(f"npz:{tmp_path}/x.npy")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("x", "text")
        file.writestr("y", "text")
    with pytest.raises(InputError, match=r"x\.zip: x is not an array"):
        bf.load_dataset(f"npz:{tmp_path}/x.zip")


@restored()
def test_scheme_of_ones_own():
    from bionas_fast.data import Dataset, register_dataset

    @register_dataset("grey:")
    def grey(argument, data_dir, *, download, seed):
        images, labels = torch.full((4, 1, 2, 2), float(argument)), torch.arange(4) % 2
        return Dataset.from_tensors("grey", (images, labels), (images, labels))

    assert bf.load_dataset("grey:0.25").mean == (0.25,)
    for name in ("grey", "gray:0.25", "digits:8"):
        with pytest.raises(InputError, match="unknown dataset"):
            bf.load_dataset(name)


def test_searched_and_trained(tmp_path, monkeypatch):
    """Two classes of different brightness; the data are found again by their name in the run folder."""
    monkeypatch.chdir(tmp_path)
    y = np.arange(80) % 2
    np.savez("own.npz", x=(picture(80, 6, 6) // 2 + 128 * y[:, None, None]).astype(np.uint8), y=y)
    small = {"dataset": "npz:own.npz", "channels": 1, "epochs": 1}
    config = bf.SearchConfig(**small, rules=("usf", "bp"), operations=("dil_conv_3x3", "skip_connect"))
    found = bf.search(config)
    assert found.run_dir.parent == Path("runs") and "npz-own.npz" in found.run_dir.name
    trained = bf.train(found.genotype, bf.TrainConfig(**small | {"epochs": 4}, batch_size=8), out="net")
    assert trained.test_accuracy == 100
    network = bf.load("net")
    data = bf.load_dataset(bf.TrainConfig(**small).dataset)
    accuracy = bf.evaluate(network, data.test)["accuracy"]
    assert accuracy == 100


@pytest.mark.parametrize(
    ("values", "found", "advice"),
    [
        ([1, 2, 3], "1 to 3", "subtract 1 from all labels"),
        ([5, 6, 7], "5 to 7", "subtract 5 from all labels"),
        ([0, 2, 5], r"0, 2, 5 \(3 classes\)", r"renumber .*searchsorted\(numpy.unique\(y\), labels\)"),
        ([-1, 1, 2], r"-1, 1, 2 \(3 classes\)", "renumber"),
        (range(0, 60, 2), r"0, 2, 4, 6, 8, 10, 12, 14, 16, 18, … \(30 classes\)", "renumber"),
    ],
    ids=str,
)
def test_labels_from_1_or_with_gaps(tmp_path, values, found, advice):
    """Refused with what to do: renumbered in silence, training and test could differ. The advice works."""
    labels = np.repeat(np.array(values), 10)
    images, path = picture(len(labels), 4, 4), tmp_path / "own.npz"
    np.savez(path, x=images, y=labels)
    expected = rf"y must hold the labels 0 to {len(values) - 1}, each at least once, not {found}; {advice}"
    with pytest.raises(InputError, match=expected):
        bf.load_dataset(f"npz:{path}")
    np.savez(path, x=images, y=np.searchsorted(np.unique(labels), labels))
    assert bf.load_dataset(f"npz:{path}").num_classes == len(values)


def test_labels_with_a_test_set(tmp_path):
    path = tmp_path / "own.npz"
    np.savez(path, x_train=X, y_train=Y + 1, x_test=X, y_test=Y)
    with pytest.raises(
        InputError, match=r"y_train must hold the labels 0 to 1, .*, not 1 to 2; subtract 1 from all labels"
    ):
        bf.load_dataset(f"npz:{path}")


def test_too_few_images_to_split(tmp_path):
    np.savez(tmp_path / "own.npz", x=X[:2], y=Y[:2])
    with pytest.raises(
        InputError, match="2 images are too few to hold out one in five for testing; add images, or sep"
    ):
        bf.load_dataset(f"npz:{tmp_path}/own.npz")
    fill(tmp_path / "photos", {"a": 1, "b": 1})
    with pytest.raises(InputError, match="2 images are too few to hold out one in five"):
        bf.load_dataset(f"folder:{tmp_path}/photos")


def test_too_few_images_to_search(tmp_path):
    np.savez(tmp_path / "own.npz", x_train=X[:2], y_train=Y[:2], x_test=X[:2], y_test=Y[:2])
    config = bf.SearchConfig(dataset=f"npz:{tmp_path}/own.npz", train_fraction=0.8)
    with pytest.raises(InputError, match=r"train_fraction = 0.8 of 2 images leaves one part of the split empty"):
        bf.search(config, out=tmp_path / "run")


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f8"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300, 1.5, -0.5, 255])
@pytest.mark.parametrize("part", ["x_train", "x_test"])
def test_values_out_of_range_are_counted(tmp_path, dtype, value, part):
    arrays = {"x_train": np.full((10, 4, 4), 0.5), "x_test": np.full((10, 4, 4), 0.5)}
    arrays[part][[3, 8], 1, 2] = value
    with np.errstate(over="ignore"):
        arrays = {key: array.astype(dtype) for key, array in arrays.items()}
    np.savez(tmp_path / "own.npz", y_train=Y, y_test=Y, **arrays)
    with pytest.raises(InputError, match=rf"own.npz: {part}.*2 of 10 images, the first at index 3, hold ") as error:
        bf.load_dataset(f"npz:{tmp_path}/own.npz")
    wild = not np.isfinite(value) or value == 1e300
    assert ("hold NaN or infinity" in str(error.value)) == wild
    assert ("divide them by 255" in str(error.value)) == (value in (1.5, 255))


def test_unused_arrays_are_named(tmp_path, caplog):
    np.savez(tmp_path / "own.npz", x=X, y=Y, z=Y, names=Y)
    bf.load_dataset(f"npz:{tmp_path}/own.npz")
    assert caplog.messages == [
        f"dataset 'npz:{tmp_path}/own.npz': 8 training and 2 test images, 2 classes, 1×5×5, "
        "one image in five of each class held out for testing; not used: array z, array names"
    ]
