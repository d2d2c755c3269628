"""Splits, links and files that are left out of a folder. Oracles: the folders as written, torchvision's ImageFolder."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bionas_fast as bf
from bionas_fast.data.user_data import HELD_OUT
from bionas_fast.errors import InputError

COUNTER = iter(range(10**6))


def picture(path: Path) -> Path:
    """Write an image of 2×2 pixels with a colour of its own."""
    number = next(COUNTER)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((2, 2, 3), (number % 251, number // 251, 7), dtype=np.uint8)).save(path, "PNG")
    return path


def fill(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        for i in range(count):
            picture(root / name / f"{i:02}.png")
    return root


def distinct(images) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


@pytest.fixture
def load(tmp_path, caplog):
    """Load the dataset in the folder; return it and the line that was logged about it."""

    def load():
        caplog.clear()
        with caplog.at_level(logging.INFO, "bionas_fast.data"):
            data = bf.load_dataset(f"folder:{tmp_path}")
        (record,) = caplog.records
        assert "\n" not in record.message
        train, test = distinct(data.images), distinct(data.test_images)
        assert len(train) == len(data.images) and len(test) == len(data.test_images) and not train & test
        assert (record.levelno == logging.WARNING) == ("; not used: " in record.message)
        return data, record.message

    return load


TRAIN = ("train", "Train", "TRAIN", "training", "Training")
TEST = ("test", "Test", "testing", "val", "Valid", "validation", "dev", "Eval")


@pytest.mark.parametrize("train", TRAIN)
@pytest.mark.parametrize("test", TEST)
def test_names_of_splits(tmp_path, load, train, test):
    fill(tmp_path / train, {"a": 3, "b": 2})
    fill(tmp_path / test, {"a": 1, "b": 2})
    data, line = load()
    assert data.labels.tolist() == [0, 0, 0, 1, 1] and data.test_labels.tolist() == [0, 1, 1]
    assert "5 training and 3 test images, 2 classes (a, b), 3×2×2" in line
    assert f"from {train}/ and {test}/" in line


@pytest.mark.parametrize("names", [("seg_train", "seg_test"), ("train2017", "val2017"), ("my-train", "my-valid-2")])
def test_names_of_splits_with_other_words(tmp_path, load, names):
    for name in names:
        fill(tmp_path / name, {"a": 2, "b": 2})
    data, line = load()
    assert len(data.labels) == len(data.test_labels) == 4 and f"from {names[0]}/ and {names[1]}/" in line


def test_test_images_come_before_validation_images(tmp_path, load):
    for name in ("train", "val", "test", "notes"):
        fill(tmp_path / name, {"a": 1, "b": 1})
    _, line = load()
    assert "from train/ and test/; not used: folder notes/ (1), folder val/ (1)" in line


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train",), r"no folder .*/test; train and test are both required"),
        (("Training", "other"), r"no folder .*/test; train and test are both required"),
        (("test",), r"no folder .*/train; train and test are both required"),
        (("val", "test"), r"no folder .*/train; "),
        (("train", "Train", "test"), "are both training folders; keep one"),
        (("train", "test", "Testing"), "are both test folders; keep one"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_incomplete_splits(tmp_path, names, message):
    for name in names:
        fill(tmp_path / name, {"a": 5, "b": 5})
    with pytest.raises(InputError, match=message):
        bf.load_dataset(f"folder:{tmp_path}")


@pytest.mark.parametrize("names", [("Train", "Test"), ("train", "val")])
def test_splits_without_classes_are_not_classes(tmp_path, names):
    fill(tmp_path, dict.fromkeys(names, 5))
    with pytest.raises(InputError, match=r"no images in .*/[tT]rain: expected one folder per class"):
        bf.load_dataset(f"folder:{tmp_path}")


def test_splits_below_the_classes_are_refused(tmp_path):
    for name in ("a", "b"):
        fill(tmp_path / name, {"train": 5, "Test": 5})
    with pytest.raises(InputError, match=r"/a holds a split; expected PATH/train/<class>/"):
        bf.load_dataset(f"folder:{tmp_path}")


@pytest.mark.parametrize("name", ["train", "dev", "toy train"])
def test_a_class_may_be_called_like_a_split(tmp_path, load, name):
    """Its folder holds images, not classes."""
    fill(tmp_path, {"bus": 5, "car": 5, name: 5})
    data, line = load()
    names = ", ".join(sorted(["bus", "car", name]))
    assert data.num_classes == 3 and f"3 classes ({names})" in line


@pytest.mark.parametrize("target", [".", "..", "../..", "../../train", "sub"])
def test_links_to_folders_already_read(tmp_path, load, target):
    """Twelve images stay twelve."""
    for part in ("train", "test"):
        fill(tmp_path / part, {"a": 2, "b": 2})
    fill(tmp_path / "train" / "a", {"sub": 4})
    (tmp_path / "train" / "a" / "aaa").symlink_to(target)
    data, line = load()
    assert len(data.labels) == 8 and len(data.test_labels) == 4
    assert line.endswith("not used: links to folders already read (1)")


def test_link_to_the_class_itself_without_a_split(tmp_path, load):
    fill(tmp_path, {"a": 6, "b": 6})
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    (tmp_path / "everything").symlink_to(tmp_path)  # not a class
    data, line = load()
    assert len(data.labels) + len(data.test_labels) == 12 and data.num_classes == 2
    assert "links to folders already read (2)" in line


def test_links_to_images_of_the_same_class(tmp_path, load):
    fill(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "a" / "link.png").symlink_to("00.png")
    os.link(tmp_path / "a" / "01.png", tmp_path / "a" / "copy.png")
    data, line = load()
    assert len(data.labels) + len(data.test_labels) == 10 and "links to images already read (2)" in line


def test_linked_folders_outside_are_read(tmp_path, load):
    fill(tmp_path / ".store", {"a": 5, "b": 5})
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(tmp_path / ".store" / name)
    data, _ = load()
    assert len(data.labels) == 8 and len(data.test_labels) == 2


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_one_image_in_both_splits(tmp_path, link):
    for part in ("train", "test"):
        fill(tmp_path / part, {"a": 2, "b": 2})
    link(tmp_path / "train" / "a" / "00.png", tmp_path / "test" / "a" / "new.png")
    with pytest.raises(InputError, match=r"/train/a/00.png and .*/test/a/new.png are the same file, in training and"):
        bf.load_dataset(f"folder:{tmp_path}")


@pytest.mark.parametrize("whole", [True, False], ids=["folder", "file"])
def test_one_image_in_two_classes(tmp_path, whole):
    fill(tmp_path, {"a": 5, "b": 5})
    if whole:
        (tmp_path / "c").symlink_to("a")
    else:
        os.link(tmp_path / "a" / "03.png", tmp_path / "b" / "new.png")
    with pytest.raises(InputError, match=r"/a/0\d.png and .* are the same file, in two classes"):
        bf.load_dataset(f"folder:{tmp_path}")


def test_test_folder_that_is_a_link_to_the_training_folder(tmp_path):
    fill(tmp_path / "train", {"a": 2, "b": 2})
    (tmp_path / "test").symlink_to("train")
    with pytest.raises(InputError, match=r"no images in .*/test|are the same file, in training and test"):
        bf.load_dataset(f"folder:{tmp_path}")


def test_every_file_left_out_is_counted(tmp_path, load):
    fill(tmp_path / "train", {"a": 2, "b": 2, "c": 1})
    fill(tmp_path / "test", {"a": 1, "b": 1})
    a = tmp_path / "train" / "a"
    for name in ("x.txt", "y.TXT", "Thumbs.db", "README", ".DS_Store", "._00.png", "movie.mp4"):
        (a / name).write_text("no image")
    (a / ".cache").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    (a / "gone.png").symlink_to("nowhere")
    (a / "round.png").symlink_to("round.png")
    os.mkfifo(a / "pipe.png")
    picture(tmp_path / "cover.png")
    picture(tmp_path / "train" / "cover.png")
    data, line = load()
    assert data.labels.tolist() == [0, 0, 1, 1, 2] and data.test_labels.tolist() == [0, 1]
    assert line.partition("not used: ")[2] == (
        ".db (1), .mp4 (1), .txt (2), broken links (2), files without an extension (1), hidden files (4), "
        "images outside the class folders (2), pipes and devices (1), no test images of c (1)"
    )


def test_extensions_in_any_case_and_gif(tmp_path, load):
    fill(tmp_path, {"a": 5, "b": 5})
    for name in ("x.PNG", "y.Gif", "z.JPEG"):
        picture(tmp_path / "a" / name)
    data, line = load()
    assert len(data.labels) + len(data.test_labels) == 13 and "not used" not in line


def test_name_of_a_class_in_another_case(tmp_path):
    fill(tmp_path / "train", {"Cat": 1, "b": 1})
    fill(tmp_path / "test", {"cat": 1})
    with pytest.raises(InputError, match=r"class 'cat' is in .*/test, but not in .*/train, which has 'Cat'"):
        bf.load_dataset(f"folder:{tmp_path}")


@pytest.mark.parametrize("part", ["train", "test"])
def test_empty_class(tmp_path, part):
    for name in ("train", "test"):
        fill(tmp_path / name, {"a": 1, "b": 1})
    (tmp_path / part / "b" / "00.png").rename(tmp_path / part / "b" / "00.dat")
    with pytest.raises(InputError, match=rf"no images in .*/{part}/b; images end in"):
        bf.load_dataset(f"folder:{tmp_path}")


def test_an_unreadable_folder_is_not_skipped(tmp_path, monkeypatch):
    fill(tmp_path, {"a": 5, "b": 5})
    fill(tmp_path / "a", {"locked": 1})
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"/a/locked: cannot be read as a folder: .*Permission denied"):
        bf.load_dataset(f"folder:{tmp_path}")


def test_names_with_control_characters(tmp_path):
    """They neither break the line nor steer the terminal."""
    fill(tmp_path, {"a": 5, "b": 5})
    for name in ("x\n\x1b[31m.png", "y\udcff\u202e.png"):
        path = tmp_path / "a" / name
        path.write_bytes(b"no image")
        with pytest.raises(InputError) as error:
            bf.load_dataset(f"folder:{tmp_path}")
        assert str(error.value).isprintable() and repr(name)[1:-1] in str(error.value)
        path.unlink()


def test_line_on_the_command_line(tmp_path, capsys, monkeypatch):
    """Printed on stderr before the search begins, once, although search and training load the data."""
    from bionas_fast.cli.app import main

    logger = logging.getLogger("bionas_fast")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logger.level)
    fill(tmp_path / "photos", {"a": 10, "b": 10})
    (tmp_path / "photos" / "a" / "notes.txt").write_text("no image")
    small = ["--ops", "dil_conv_3x3,skip_connect", "--rules", "usf", "--channels", "1", "--cells", "2", "--epochs", "1"]
    with pytest.raises(SystemExit) as stop:
        main(["search", "--dataset", f"folder:{tmp_path}/photos", *small, "--out", f"{tmp_path}/out"])
    assert stop.value.code == 0
    lines = capsys.readouterr().err.splitlines()
    first, *rest = (i for i, line in enumerate(lines) if line.startswith("dataset "))
    assert lines[first].endswith("2 classes (a, b), 3×2×2, " + HELD_OUT + "; not used: .txt (1)") and not rest
    assert first < next(i for i, line in enumerate(lines) if "epoch" in line)
