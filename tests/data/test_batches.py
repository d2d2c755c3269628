"""Splits, batch streams and augmentation. Oracles: loops over single images, torchvision."""

from __future__ import annotations

import io
import itertools

import pytest
import torch
import torchvision.transforms.v2

from bionas_fast import native
from bionas_fast.data import Augment, BatchStream, evaluation_batches, memory, normalise, split
from bionas_fast.errors import InputError


def numbered(n: int, size: tuple[int, ...] = (1, 2, 2)) -> tuple[torch.Tensor, torch.Tensor]:
    """Distinguishable images: image i is filled with i / n and has the label i."""
    index = torch.arange(n)
    return (index / n).view(-1, 1, 1, 1).expand(n, *size).contiguous(), index


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


@pytest.mark.parametrize(
    ("batch_size", "sizes"),
    [
        (4, [4, 4]),
        (11, [11]),
        (100, [11]),
        (1, [1] * 11),
    ],
)
def test_every_epoch_is_a_permutation(batch_size, sizes):
    images, labels = numbered(11)
    stream = BatchStream(images, labels, batch_size, seed=0)
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
    # zip stops at the end of range without requesting an eighth batch, so two of this epoch remain.
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


N, HEIGHT, WIDTH = 2000, 4, 5  # enough for each of the 50 crops below to occur


def pictures() -> torch.Tensor:
    """Images of distinct non-zero pixels, so the source of every output pixel is known."""
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
    # The mapping of pixels is the same for every image: compute it once, on pixel indices.
    where = torch.arange(1, HEIGHT * WIDTH + 1).view(1, HEIGHT, WIDTH)
    crops = {tuple(naive_crop_and_flip(where, padding, *draw).flatten().tolist()): draw for draw in draws}
    assert len(crops) == len(draws)
    for i, image in enumerate(out):
        first = 2 * HEIGHT * WIDTH * i  # offset of the values in channel 0 of image i
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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_images_that_are_not_finite_are_named(value):
    images, labels = numbered(10)
    images[[4, 6], 0, 1, 1] = value
    message = "images: 2 of 10 images, the first at index 4, hold NaN or infinity"
    with pytest.raises(InputError, match=message):
        BatchStream(images, labels, 3, seed=0)
    with pytest.raises(InputError, match=message):
        next(evaluation_batches(images, labels, 3))
    stream = BatchStream(*numbered(10), 3, seed=0)
    with pytest.raises(InputError, match=message):
        stream.show(images)


def test_split_names_its_setting():
    with pytest.raises(InputError, match=r"portion = 0.01 of 10 images leaves one part"):
        split(*numbered(10), 0.01, seed=0, setting="portion")


def test_batches_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 10**9)
    images = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(64, 3, 2000, 2000)
    with pytest.raises(InputError, match=r"batches of 64 images of 3×2000×2000 need 6.1 GB of memory, but 1.0 GB are"):
        BatchStream(images, torch.arange(64), 64, seed=0)


class TestCompiledPass:
    """Byte images on the CPU are cropped, mirrored, cut out and normalised by one kernel."""

    @pytest.mark.skipif(not native.load(), reason=native.status().reason)
    @pytest.mark.parametrize("shape", [(3, 32, 32), (1, 5, 9), (2, 1, 1)], ids=str)
    @pytest.mark.parametrize("flip", [False, True])
    @pytest.mark.parametrize("padding", [0, 2, 7])
    @pytest.mark.parametrize("cutout", [0, 3, 16])
    def test_bit_identical_to_the_passes_that_it_replaces(self, shape, flip, padding, cutout, monkeypatch):
        generator = torch.Generator().manual_seed(0)
        images, labels = torch.randint(256, (40, *shape), dtype=torch.uint8, generator=generator), torch.arange(40)
        augment = Augment(flip=flip, crop_padding=padding, cutout=cutout)
        how = {"seed": 1, "augment": augment, "mean": [0.1, 0.2, 0.3][: shape[0]], "std": [0.5, 0.25, 0.3][: shape[0]]}
        compiled = BatchStream(images, labels, 16, **how)
        with monkeypatch.context() as patch:
            patch.setattr(native, "load", lambda: False)
            plain = BatchStream(images, labels, 16, **how)
        for _ in range(5):
            (x, y), (a, b) = next(compiled), next(plain)
            assert torch.equal(x, a) and torch.equal(y, b)
        for isa in native.isas():
            with native.use_isa(isa):
                x, a = next(compiled)[0], next(plain)[0]
            assert torch.equal(x, a)
        assert torch.equal(compiled.state_dict()["generator"], plain.state_dict()["generator"])

    def test_every_image_is_a_crop_by_torchvision(self):
        functional = torchvision.transforms.v2.functional
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (24, 3, 8, 8), dtype=torch.uint8, generator=generator)
        mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
        augment = Augment(flip=True, crop_padding=2, cutout=4)
        x, y = next(BatchStream(images, torch.arange(24), 24, seed=0, augment=augment, mean=mean, std=std))
        seen = set()
        for image, label in zip(x, y, strict=True):
            padded = functional.pad(images[label], [2])
            square = (image == 0).all(0)
            matches = []
            for top, left, mirrored in itertools.product(range(5), range(5), (False, True)):
                crop = functional.crop(padded, top, left, 8, 8)
                crop = functional.hflip(crop) if mirrored else crop
                expected = functional.normalize(functional.to_dtype(crop, torch.float32, scale=True), mean, std)
                if torch.allclose(image[:, ~square], expected[:, ~square], atol=1e-6):
                    matches.append((top, left, mirrored))
            (match,) = matches
            seen.add(match)
            rows, columns = square.any(1).nonzero(), square.any(0).nonzero()
            assert square.sum() == len(rows) * len(columns) and min(len(rows), len(columns)) >= 2
            assert max(len(rows), len(columns)) <= 4
        assert len(seen) > 12
