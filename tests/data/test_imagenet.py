"""ImageNet and Tiny ImageNet, from small folders in their layouts. Oracles: torchvision's ImageFolder, Pillow."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

import bionas_fast as bf
from bionas_fast.data import FileDataset, imagenet, open_dataset
from bionas_fast.errors import BionasWarning, InputError

WNIDS = ("n01440764", "n01443537", "n02119789")


def save(path: Path, size: tuple[int, int], mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(sum(map(ord, path.name)))
    Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode).save(path, "JPEG")


@pytest.fixture
def large(tmp_path, monkeypatch) -> Path:
    """Four training and two validation images of each class, of several sizes."""
    monkeypatch.setattr(imagenet, "IMAGENET_CLASSES", 3)
    monkeypatch.setattr(imagenet, "IMAGENET_COUNTS", (12, 6))
    for wnid in WNIDS:
        for index in range(4):
            save(
                tmp_path / "imagenet" / "train" / wnid / f"{wnid}_{index}.JPEG",
                (20 + index, 30),
                "L" if index == 1 else "RGB",
            )
        for index in range(2):
            save(tmp_path / "imagenet" / "val" / wnid / f"ILSVRC2012_val_{wnid}{index}.JPEG", (25, 20))
    return tmp_path


class TestImageNet:
    def test_files_and_labels(self, large):
        data = open_dataset("imagenet", large)
        assert isinstance(data, FileDataset)
        assert (data.num_classes, data.in_channels, data.image_size) == (3, 3, (224, 224))
        for files, split in ((data.train_files, "train"), (data.test_files, "val")):
            expected = ImageFolder(large / "imagenet" / split)
            assert [str(files.path(index)) for index in range(len(files))] == [path for path, _ in expected.samples]
            assert files.labels.tolist() == expected.targets
        pixels = np.asarray(data.train_files.image(1))
        assert pixels.shape == (30, 21, 3) and (pixels[..., 0] == pixels[..., 2]).all()

    def test_it_is_not_read_into_memory(self, large):
        with pytest.raises(InputError, match=r"^dataset 'imagenet': its images differ in size"):
            bf.load_dataset("imagenet", large)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("train/n01440764/n01440764_0.JPEG", r"expected 12 images in .*/train, got 11"),
            ("val/n01440764/ILSVRC2012_val_n014407640.JPEG", r"expected 6 images in .*/val, got 5"),
            ("val/n01440764", r"class 'n01440764' is in only one of"),
            ("train", r"expected train and val in one of"),
        ],
    )
    def test_incomplete(self, large, change, message):
        path = large / "imagenet" / change
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(InputError, match=f"^dataset 'imagenet': {message}"):
            open_dataset("imagenet", large)

    def test_other_classes(self, large, monkeypatch):
        monkeypatch.setattr(imagenet, "IMAGENET_CLASSES", 4)
        with pytest.raises(InputError, match=r"^dataset 'imagenet': expected 4 classes in .*, got 3"):
            open_dataset("imagenet", large)

    def test_validation_images_without_class_folders(self, large):
        save(large / "imagenet" / "val" / "ILSVRC2012_val_00000001.JPEG", (20, 20))
        with pytest.raises(InputError, match=r"^dataset 'imagenet': .* holds 1 images outside the class folders; move"):
            open_dataset("imagenet", large)

    def test_a_training(self, large, tmp_path):
        config = bf.ResNetConfig(
            dataset="imagenet", data_dir=str(large), architecture="resnet18", rule="usf", epochs=1, batch_size=6,
            image_size=32, image_resize=36, color_jitter=(0.4, 0.4, 0.4, 0.2), flip=True, workers=0, schedule="linear",
        )  # fmt: skip
        result = bf.train_resnet(config, out=False)
        assert result.metrics[0]["test_loss"] > 0


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(imagenet, "TINY_CLASSES", 3)
    monkeypatch.setattr(imagenet, "TINY_COUNTS", (12, 6))
    root = tmp_path / "tiny-imagenet-200"
    lines = []
    for number, wnid in enumerate(WNIDS):
        for index in range(4):
            save(root / "train" / wnid / "images" / f"{wnid}_{index}.JPEG", (64, 64), "L" if index == 1 else "RGB")
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
        for index in range(2):
            name = f"val_{index * 3 + number}.JPEG"
            save(root / "val" / "images" / name, (64, 64))
            lines.append(f"{name}\t{wnid}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return tmp_path


class TestTinyImageNet:
    def expect(self, tiny):
        root = tiny / "tiny-imagenet-200"
        data = bf.load_dataset("tiny-imagenet", tiny)
        assert (len(data.images), len(data.test_images), data.num_classes, data.image_size) == (12, 6, 3, (64, 64))
        files = sorted(root.glob("train/*/images/*.JPEG"))
        for image, label, path in zip(data.images, data.labels, files, strict=True):
            assert np.array_equal(image.numpy(), np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1))
            assert WNIDS[label] == path.parts[-3]
        lines = (root / "val" / "val_annotations.txt").read_text().splitlines()
        for image, label, line in zip(data.test_images, data.test_labels, lines, strict=True):
            name, wnid = line.split("\t")[:2]
            picture = Image.open(root / "val" / "images" / name).convert("RGB")
            assert np.array_equal(image.numpy(), np.asarray(picture).transpose(2, 0, 1))
            assert WNIDS[label] == wnid

    def test_images_and_labels(self, tiny):
        self.expect(tiny)

    def test_kept_decoded(self, tiny):
        first = bf.load_dataset("tiny-imagenet", tiny)
        shutil.rmtree(tiny / "tiny-imagenet-200" / "train")
        second = bf.load_dataset("tiny-imagenet", tiny)
        assert first.checksum() == second.checksum()

    def test_a_damaged_file_is_made_again(self, tiny):
        bf.load_dataset("tiny-imagenet", tiny)
        kept = tiny / "tiny-imagenet-200" / "tiny-imagenet.npz"
        kept.write_bytes(kept.read_bytes()[:-1000])
        with pytest.warns(BionasWarning, match="is damaged and is made again"):
            self.expect(tiny)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("train/n01440764/images/n01440764_0.JPEG", r"^dataset 'tiny-imagenet': expected 12 images in .*, got 11"),
            ("val/images/val_0.JPEG", r"/val/images/val_0.JPEG: "),
            ("val/val_annotations.txt", r"^dataset 'tiny-imagenet': expected train and val/images and val/val_ann"),
            ("train/n01440764", r"^dataset 'tiny-imagenet': expected 3 classes in .*, got 2"),
        ],
    )
    def test_incomplete(self, tiny, change, message):
        path = tiny / "tiny-imagenet-200" / change
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(InputError, match=message) as error:
            bf.load_dataset("tiny-imagenet", tiny)
        assert "\n" not in str(error.value)
        assert not list(tiny.rglob("*.npz"))

    def test_another_size(self, tiny):
        save(tiny / "tiny-imagenet-200" / "val" / "images" / "val_3.JPEG", (60, 64))
        with pytest.raises(InputError, match=r"val_3.JPEG: expected 64×64 pixels, got 60×64$"):
            bf.load_dataset("tiny-imagenet", tiny)

    @pytest.mark.parametrize("line", ["val_0.JPEG", "val_0.JPEG\tn99999999\t0", "../x.JPEG\tn01440764\t0", ""])
    def test_annotations(self, tiny, line):
        path = tiny / "tiny-imagenet-200" / "val" / "val_annotations.txt"
        path.write_text("\n".join([line, *path.read_text().splitlines()[1:]]))
        with pytest.raises(InputError, match=r"val_annotations.txt, line 1: expected a file and one of the classes"):
            bf.load_dataset("tiny-imagenet", tiny)


@pytest.mark.parametrize(("name", "site"), [("imagenet", "image-net.org"), ("tiny-imagenet", "cs231n.stanford.edu")])
def test_downloads_are_refused(name, site, tmp_path):
    with pytest.raises(InputError, match=site):
        open_dataset(name, tmp_path, download=True)
