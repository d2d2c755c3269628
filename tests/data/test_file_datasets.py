"""Images that are read from files in batches. Oracles: the pixels as written, torchvision's functions on PIL images."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2 import functional as F

import bionas_fast as bf
from bionas_fast.cli.app import main
from bionas_fast.data import Augment, FileDataset, Reading, Views, file_stream, open_dataset, user_data
from bionas_fast.data.decoded import decoded
from bionas_fast.errors import InputError
from bionas_fast.runtime import distributed
from bionas_fast.training.resnet import ResNetTraining
from helpers.runs import advance, plain

CLASSES, SIDE = 3, 12
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
#: All of an image is cropped: the random crop of a square image is the image.
WHOLE = Views(SIDE, SIDE, (1.0, 1.0))


def write(root: Path, train: int = 4, test: int = 2, sizes: tuple[int, int] = (SIDE, SIDE)) -> Path:
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", test)):
        for number in range(CLASSES):
            folder = root / split / f"class{number}"
            folder.mkdir(parents=True)
            for index in range(count):
                height, width = random.integers(sizes[0], sizes[1] + 1, 2)
                pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("equal"))


@pytest.fixture(scope="module")
def uneven(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("uneven"), 6, 3, (14, 30))


def opened(root: Path, views: Views = WHOLE, workers: int | None = 0, **reading) -> FileDataset:
    data = open_dataset(f"folder:{root}", in_memory=False, reading=Reading(views, workers, **reading))
    assert isinstance(data, FileDataset)
    return data


def expected(image: Image.Image) -> torch.Tensor:
    return (F.pil_to_tensor(image).float() / 255 - MEAN) / STD


def test_an_epoch_is_every_image_once_with_its_label(root):
    stream = opened(root).train.stream(5, seed=0)
    assert len(stream) == 2
    batches = list(stream.epoch())
    assert [len(y) for _, y in batches] == [5, 5]
    written = {label: [] for label in range(CLASSES)}
    for image, label in ImageFolder(root / "train"):
        written[label].append(expected(image))
    found = [(image, int(label)) for x, y in batches for image, label in zip(x, y, strict=True)]
    for image, label in found:
        (match,) = (n for n, other in enumerate(written[label]) if torch.allclose(image, other, atol=1e-6))
        del written[label][match]
    assert sum(map(len, written.values())) == 3 * 4 - 10


def test_the_test_images_are_scaled_and_cropped(uneven):
    data = opened(uneven, Views(10, 13))
    batches = list(data.test.batches(4))
    assert [len(y) for _, y in batches] == [4, 4, 1]
    files = ImageFolder(uneven / "val")
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    assert y.tolist() == [label for _, label in files]
    for image, (picture, _) in zip(x, files, strict=True):
        torch.testing.assert_close(image, expected(F.center_crop(F.resize(picture, [13]), [10, 10])))


def test_training_images_are_random_crops_of_their_area(tmp_path):
    """Red counts the rows of the images and green the columns, so that the pixels of a crop tell its size."""
    row = np.arange(64, dtype=np.uint8) * 4
    image = Image.fromarray(np.stack(np.broadcast_arrays(row[:, None], row[None, :], np.uint8(0)), 2))
    for name in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / name).mkdir(parents=True)
        for index in range(10):
            image.save(tmp_path / name / f"{index}.png")
    x, _ = next(opened(tmp_path, Views(8, 8, (0.2, 0.5))).train.stream(20, seed=0))
    pixels = (x * STD + MEAN) * 255 / 4
    # From the centre of the first of 8 parts to that of the last are 7/8 of a side.
    height = (pixels[:, 0].mean(2)[:, -1] - pixels[:, 0].mean(2)[:, 0]) * 8 / 7
    width = (pixels[:, 1].mean(1)[:, -1] - pixels[:, 1].mean(1)[:, 0]) * 8 / 7
    area, ratio = height * width / 64**2, width / height
    assert 0.18 < area.min() < 0.3 and 0.4 < area.max() < 0.54
    assert 0.7 < ratio.min() < 0.95 and 1.05 < ratio.max() < 1.45


def test_flip_policy_and_colours(root):
    plain_, flipped = (
        next(opened(root).train.stream(12, seed=0, augment=Augment(flip=flip))) for flip in (False, True)
    )
    # The order of the images does not depend on the augmentation.
    assert torch.equal(plain_[1], flipped[1])
    mirrored = [torch.equal(a.flip(2), b) for a, b in zip(plain_[0], flipped[0], strict=True)]
    same = [torch.equal(a, b) for a, b in zip(plain_[0], flipped[0], strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 0 < sum(mirrored) < 12
    grey = Views(SIDE, SIDE, (1.0, 1.0), (0.0, 0.0, 1.0, 0.0))
    x = next(opened(root, grey).train.stream(12, seed=0))[0] * STD + MEAN
    colour = plain_[0] * STD + MEAN
    saturation = (x.amax(1) - x.amin(1)).mean((1, 2)) / (colour.amax(1) - colour.amin(1)).mean((1, 2))
    assert saturation.unique().numel() == 12  # each image has a factor of its own, in [0, 2]
    torch.testing.assert_close(F.rgb_to_grayscale(x).mean(), F.rgb_to_grayscale(colour).mean(), rtol=0.02, atol=0)
    policy = next(opened(root).train.stream(12, seed=0, augment=Augment(policy="trivialaugment")))
    assert torch.equal(policy[1], plain_[1]) and not torch.equal(policy[0], plain_[0])


JITTERED = Views(8, 9, (0.3, 1.0), (0.4, 0.4, 0.4, 0.2))
EVERYTHING = Augment(flip=True, policy="randaugment")


def two_epochs(root: Path, workers: int = 0, seed: int = 0) -> list[torch.Tensor]:
    stream = opened(root, JITTERED, workers).train.stream(5, seed=seed, augment=EVERYTHING)
    return [part for _ in range(2) for batch in stream.epoch() for part in batch]


def test_batches_follow_from_the_seed_alone(uneven, monkeypatch):
    before = torch.get_rng_state()
    whole = two_epochs(uneven)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    for workers in (1, 2):
        assert all(map(torch.equal, two_epochs(uneven, workers), whole))
    monkeypatch.setattr(file_stream, "CHUNK", 2)
    assert all(map(torch.equal, two_epochs(uneven), whole))
    assert not torch.equal(two_epochs(uneven, seed=1)[0], whole[0])
    first, second = whole[: len(whole) // 2], whole[len(whole) // 2 :]
    assert not any(torch.equal(a, b) for a in first[::2] for b in second[::2])


def test_a_stream_resumes_in_the_middle(uneven):
    make = lambda workers: opened(uneven, JITTERED, workers).train.stream(5, seed=0, augment=EVERYTHING)  # noqa: E731
    whole = make(0)
    batches = [next(whole) for _ in range(8)]
    for steps in (0, 2, 3, 5):
        first, second = make(1), make(2 if steps == 2 else 0)
        for _ in range(steps):
            next(first)
        second.load_state_dict(first.state_dict())
        for x, y in batches[steps:]:
            found = next(second)
            assert torch.equal(found[0], x) and torch.equal(found[1], y)
        assert second.position == whole.position
    for key in (None, -1, "x", 2**70):
        with pytest.raises(InputError, match="not the state of a stream of images from files"):
            whole.load_state_dict({**make(0).state_dict(), "key": key})


def test_processes_read_their_shards(uneven, monkeypatch):
    data = opened(uneven, JITTERED)
    whole, tested = next(data.train.stream(6, seed=0)), list(data.test.batches(9))
    shards, shares = [], []
    monkeypatch.setattr(distributed, "active", lambda: True)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shards.append(next(data.train.stream(6, seed=0)))
        shares.append(list(data.test.batches(9)))
        x, y = next(data.train.stream(6, seed=0).whole())
        assert torch.equal(x, whole[0]) and torch.equal(y, whole[1])
    for part in range(2):
        assert torch.equal(torch.stack([shard[part] for shard in shards], 1).flatten(0, 1), whole[part])
        assert torch.equal(torch.cat([share[0][part] for share in shares]), tested[0][part])


def test_parts_are_stratified_and_disjoint(uneven):
    train = opened(uneven).train
    first, second = train.split(0.5, seed=0)
    assert first.labels.bincount().tolist() == second.labels.bincount().tolist() == [3, 3, 3]
    names = [{part.source.path(index) for index in range(len(part))} for part in (first, second)]
    assert len(names[0] | names[1]) == len(train)


class TestInMemory:
    def test_by_size(self, root, uneven, monkeypatch):
        assert isinstance(open_dataset(f"folder:{root}"), bf.data.Dataset)
        monkeypatch.setattr(user_data, "LARGE", (12 + 6) * 3 * SIDE**2 - 1)
        assert isinstance(open_dataset(f"folder:{root}"), FileDataset)
        assert isinstance(open_dataset(f"folder:{root}", in_memory=True), bf.data.Dataset)
        assert isinstance(open_dataset(f"folder:{uneven},size=8"), bf.data.Dataset)
        assert isinstance(bf.load_dataset(f"folder:{root}"), bf.data.Dataset)

    def test_the_line_says_so(self, root):
        assert "12 training and 6 test images, 3 classes" in opened(root).summary()
        assert "read from files as 3×12×12" in opened(root).summary()

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"in_memory": False, "dataset": "digits"}, "in_memory: dataset 'digits' is always read into memory"),
            ({"image_size": 8}, "image_size: only for images that are read from files"),
            ({"color_jitter": (0.1, 0, 0, 0)}, "color_jitter: only for images that are read from files"),
            ({"in_memory": False, "crop_padding": 2}, "crop_padding: expected 0 for images that are read from files"),
            ({"in_memory": False, "cutout": 2}, "cutout: expected 0 for images that are read from files"),
            ({"image_size": 300}, r"image_resize: expected at least image_size \(300\), got 256"),
            ({"crop_scale": (0.9, 0.1)}, "crop_scale: expected the smaller area first"),
            ({"color_jitter": (0, 0, 0, 0.6)}, r"color_jitter\.3: "),
            ({"workers": -1}, "workers: "),
        ],
    )
    def test_settings_that_do_not_fit(self, root, settings, message):
        with pytest.raises(InputError, match=f"^{message}") as error:
            bf.train_resnet(bf.ResNetConfig(**{"dataset": f"folder:{root}", "epochs": 1, **settings}), out=False)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, workers, damage):
    write(tmp_path)
    data = opened(tmp_path, workers=workers)
    path = tmp_path / "train" / "class1" / "2.png"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-80])
    else:
        path.unlink()
    with pytest.raises(InputError, match=f"^{path}: ") as error:
        list(data.train.stream(12, seed=0).epoch())
    assert "\n" not in str(error.value)


class Deadly:
    """Images of which one ends the process that decodes it."""

    def __init__(self, files, index):
        self.files, self.labels, self.deadly = files, files.labels, index

    def image(self, index):
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.files.image(index)

    def fingerprint(self, **options):
        return self.files.fingerprint(**options)


def test_a_worker_that_is_killed(root):
    source = Deadly(opened(root).train_files, 5)
    with pytest.raises(InputError, match=r"^workers: a process that reads images has ended") as error:
        next(file_stream.FileImages(source, WHOLE, 1).stream(12, seed=0))
    assert "\n" not in str(error.value)


class TestDecoded:
    def test_images_are_those_of_the_files_scaled(self, uneven, tmp_path):
        files = opened(uneven).train_files
        kept = decoded(files, 9, tmp_path, workers=2)
        for index, (picture, label) in enumerate(ImageFolder(uneven / "train")):
            assert kept.labels[index] == label
            assert np.array_equal(np.asarray(kept.image(index)), np.asarray(F.resize(picture, [9])))
        chosen = torch.tensor([7, 2])
        assert np.array_equal(np.asarray(kept.take(chosen).image(1)), np.asarray(kept.image(2)))

    def test_a_dataset_reads_them(self, uneven, tmp_path):
        data = opened(uneven, Views(10, 13), 1, decoded_size=13, decoded_dir=tmp_path)
        plain_ = opened(uneven, Views(10, 13))
        for (x, y), (a, b) in zip(data.test.batches(4), plain_.test.batches(4), strict=True):
            assert torch.equal(x, a) and torch.equal(y, b)
        assert len(list(tmp_path.glob("*.bin"))) == 1
        next(data.train.stream(4, seed=0))
        files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.bin")}
        assert len(files) == 2
        next(opened(uneven, Views(10, 13), 0, decoded_size=13, decoded_dir=tmp_path).train.stream(4, seed=0))
        assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.bin")} == files

    def test_a_killed_one_is_never_taken_for_a_whole_one(self, uneven, tmp_path):
        files = opened(uneven).train_files
        pid = os.fork()
        if not pid:
            with torch.random.fork_rng():
                decoded(Deadly(files, 15), 9, tmp_path, workers=0)
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
        assert not list(tmp_path.glob("*.bin"))
        kept = decoded(files, 9, tmp_path, workers=0)
        assert np.array_equal(np.asarray(kept.image(17)), np.asarray(F.resize(files.image(17), [9])))
        assert not list(tmp_path.glob("*.part"))

    def test_changed_files_are_decoded_again(self, tmp_path):
        write(tmp_path / "images")
        first = decoded(opened(tmp_path / "images").train_files, 9, tmp_path, workers=0)
        path = tmp_path / "images/train/class0/0.png"
        Image.new("RGB", (20, 20), (9, 8, 7)).save(path)
        second = decoded(opened(tmp_path / "images").train_files, 9, tmp_path, workers=0)
        assert first.path != second.path
        assert np.array_equal(np.asarray(second.image(0)), np.full((9, 9, 3), (9, 8, 7)))

    def test_damaged(self, root, tmp_path):
        files = opened(root).train_files
        path = decoded(files, 9, tmp_path, workers=0).path
        content = path.read_bytes()
        for damaged in (content[:-1], content[1:], b"", content[:-40] + b"\x01" + content[-39:]):
            path.write_bytes(damaged)
            with pytest.raises(InputError, match=f"^{path}: incomplete or damaged; remove it"):
                decoded(files, 9, tmp_path)

    def test_a_folder_that_cannot_be_written(self, root, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match=r"^decoded_dir: .*file/.* cannot be written"):
            decoded(opened(root).train_files, 9, tmp_path / "file")


SMALL = {"epochs": 2, "batch_size": 6, "in_memory": False, "image_size": 8, "image_resize": 8, "flip": True}


def test_a_training_does_not_depend_on_workers_and_resumes(uneven):
    def make(workers: int) -> ResNetTraining:
        return ResNetTraining(
            bf.ResNetConfig(dataset=f"folder:{uneven}", workers=workers, valid_fraction=0.3, mixup=0.2, **SMALL)
        )

    whole, other = make(0), make(2)
    advance(whole)
    advance(other, 3)
    state = other.state_dict()
    resumed = make(1)
    resumed.load_state_dict(state)
    advance(resumed)
    expected, found = plain(whole.state_dict()), plain(resumed.state_dict())
    differ = [name for name in expected if expected[name] != found[name] and name != "config"]
    assert not differ
    assert whole.metrics[-1].keys() >= {"valid_accuracy", "test_accuracy"}


def command(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


def test_from_the_command_line(uneven, tmp_path, capsys):
    files = ["--set=in_memory=false", "--set=image_size=8", "--set=image_resize=8", "--workers=1"]
    small = ["--epochs=1", "--batch-size=6", "--cells=1", "--channels=1"]
    search, net = tmp_path / "search", tmp_path / "net"
    assert command("search", f"--dataset=folder:{uneven}", "--rules=usf", *files, *small, f"--out={search}") == 0
    # The images are those of the search, read in the same way.
    assert command("train", search, *small, f"--out={net}") == 0
    assert capsys.readouterr().err.count("read from files as 3×8×8") == 2
    assert command("evaluate", net, "--json") == 0
    assert '"images": 9' in capsys.readouterr().out


def test_classes_and_sizes_other_than_those_of_the_network(uneven, tmp_path, capsys):
    settings = {**SMALL, "epochs": 1, "dataset": "folder:photos"}
    for classes in (2, 3):
        shutil.copytree(uneven, tmp_path / str(classes) / "photos")
    for split in ("train", "val"):
        shutil.rmtree(tmp_path / "2" / "photos" / split / "class2")
    bf.train_resnet(bf.ResNetConfig(**settings, data_dir=str(tmp_path / "3")), out=tmp_path / "net")
    message = "num_classes is 2, but the network was trained with 3"
    with pytest.raises(InputError, match=message):
        bf.train_resnet(bf.ResNetConfig(**settings, data_dir=str(tmp_path / "2")), resume=tmp_path / "net")
    assert command("evaluate", tmp_path / "net", "--data-dir", tmp_path / "2") == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    # Images in memory have the size of their files.
    assert command("train", "resnet20", "--epochs=1", f"--dataset=folder:{uneven},size=9", "--out", tmp_path / "9") == 0
    assert command("evaluate", tmp_path / "9", "--dataset", f"folder:{uneven},size=8") == 2
    assert "image_size is [8, 8], but the network was trained with [9, 9]" in capsys.readouterr().err.splitlines()[-1]


def test_an_interpreter_with_a_live_stream_ends(root):
    program = f"""
from bionas_fast.data import Reading, Views, open_dataset
data = open_dataset("folder:{root}", in_memory=False, reading=Reading(Views(8, 8), 2))
stream = data.train.stream(4, seed=0)
next(stream)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
