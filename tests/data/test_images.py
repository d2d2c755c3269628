"""Image files. Oracles: bytes written by the tests, numpy's transpositions, tables of the file formats."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from bionas_fast.data import images
from bionas_fast.data.images import read_images
from bionas_fast.errors import InputError

RANDOM = np.random.default_rng(0)
COLOUR_TYPES = {"grey": (0, 1), "rgb": (2, 3), "palette": (3, 1), "grey-alpha": (4, 2), "rgba": (6, 4)}


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(pixels: np.ndarray, kind: str, before: bytes = b"", after: bytes = b"") -> bytes:
    """Encode uint8 or uint16 [H, W, C] as a PNG, with further chunks before and after the pixels."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(pixels.dtype.newbyteorder(">")).tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, COLOUR_TYPES[kind][0], 0, 0, 0)
    data = chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(rows)) + after + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def tiff(pixels: np.ndarray, form: int, order: str = "<") -> bytes:
    """Encode [H, W, C] as an uncompressed TIFF; form 1 is unsigned, 2 signed, 3 floating point."""
    height, width, channels = pixels.shape
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    wide = 8 + len(data)  # values that do not fit into an entry
    bits = struct.pack(order + "H" * channels, *[8 * pixels.itemsize] * channels)
    forms = struct.pack(order + "H" * channels, *[form] * channels)
    entries = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, channels, bits), (259, 3, 1, 1)]
    entries += [(262, 3, 1, 2 if channels == 3 else 1), (273, 4, 1, 8), (277, 3, 1, channels), (278, 3, 1, height)]
    entries += [(279, 4, 1, len(data)), (339, 3, channels, forms)]
    body, extra = b"", b""
    for tag, kind, count, value in entries:
        if not isinstance(value, bytes):
            value = struct.pack(order + ("H" if kind == 3 else "I"), value)
        if len(value) > 4:
            extra += value
            value = struct.pack(order + "I", wide + len(extra) - len(value))
        body += struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0")
    magic = {"<": b"II*\0", ">": b"MM\0*"}[order]
    start = struct.pack(order + "I", wide + len(extra))
    return magic + start + data + extra + struct.pack(order + "H", len(entries)) + body + b"\0" * 4


def encoded(pixels: np.ndarray, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form, **options)
    return stream.getvalue()


def patched(content: bytes, mark: bytes, offset: int, values: bytes) -> bytes:
    at = content.index(mark) + offset
    return content[:at] + values + content[at + len(values) :]


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


GREY16, RGB16 = (RANDOM.integers(0, 2**16, (4, 5, channels)).astype(np.uint16) for channels in (1, 3))
RGB8 = RANDOM.integers(0, 256, (4, 5, 3)).astype(np.uint8)
JPEG_12 = b"\xff\xd8\xff\xe0\x00\x04\xff\xc0\xff\xff\xc1\x00\x0b\x0c\x00\x08\x00\x08\x01\x01\x11\x00"


def deep_files() -> dict[str, bytes]:
    files = {
        f"png-{kind}": png(RANDOM.integers(0, 2**16, (4, 5, channels)).astype(np.uint16), kind)
        for kind, (_, channels) in COLOUR_TYPES.items()
        if kind != "palette"
    }
    files["png-dark"] = png(RGB16 % 200, "rgb")  # loads as black
    for order in "<>":
        files[f"tiff-16-{order}"] = tiff(RGB16, 1, order)
        files[f"tiff-float-{order}"] = tiff(RGB16.astype(np.float32), 3, order)
        files[f"tiff-grey-{order}"] = tiff(GREY16, 1, order)
    files["tiff-double"] = tiff(GREY16.astype(np.float64), 3)
    files["tiff-32"] = tiff(GREY16.astype(np.uint32), 1)
    files["tiff-half"] = tiff(GREY16.astype(np.float16), 3)
    files["ppm"] = b"P6 # a comment\n5\n# another\n4 1023\n" + (RGB16 % 1024).astype(">u2").tobytes()
    files["ppm-plain"] = b"P3 1 1 65535 256 65535 0\n"
    files["pgm"] = b"P5 5 4 65535\n" + GREY16.astype(">u2").tobytes()
    files["pfm"] = b"Pf 5 4 -1.0\n" + GREY16.astype("<f4").tobytes()
    files["jpeg-12"] = JPEG_12
    if features.check("jpg_2000"):
        for form, options in (("jp2", {}), ("j2k", {"no_jp2": True})):
            content = encoded(RGB8, "JPEG2000", **options)
            files[form] = patched(content, b"\xff\x4f\xff\x51", 42, b"\x0f\x01\x01\x0f\x01\x01\x0b")
            files[f"{form}-one-channel"] = patched(content, b"\xff\x4f\xff\x51", 48, b"\x0f")
            files[f"{form}-grey"] = encoded(GREY16[:, :, 0], "JPEG2000", **options)
    if features.check("avif"):
        content = encoded(RGB8, "AVIF")
        for bits, flags in ((10, 0x40), (12, 0x60)):
            flag = content[content.index(b"av1C") + 6] | flags
            files[f"avif-{bits}"] = patched(content, b"av1C", 6, bytes([flag]))
    return files


DEEP = deep_files()


@pytest.mark.parametrize("name", DEEP)
def test_more_than_8_bits_are_refused(tmp_path, name):
    # The extension says nothing about the content.
    for suffix in (".png", ".tif"):
        path = write(tmp_path, f"deep{suffix}", DEEP[name])
        with pytest.raises(InputError, match=r"deep\.\w+: more than 8 bits per channel \(\d+-bit") as error:
            read_images([path], None, "d")
        assert str(path) in str(error.value)


def test_signed_samples_are_refused(tmp_path):
    path = write(tmp_path, "a.tif", tiff(GREY16.astype(np.int8), 2))
    with pytest.raises(InputError, match="8-bit signed values; expected unsigned 8-bit"):
        read_images([path], None, "d")


@pytest.mark.parametrize("kind", ["grey", "rgb", "grey-alpha", "rgba"])
def test_8_bit_png_is_read_as_written(tmp_path, kind):
    channels = COLOUR_TYPES[kind][1]
    pixels = RANDOM.integers(0, 256, (4, 5, channels)).astype(np.uint8)
    read, dropped = read_images([write(tmp_path, "a.png", png(pixels, kind))], None, "d")
    colours = {1: 1, 2: 1, 3: 3, 4: 3}[channels]
    np.testing.assert_array_equal(read[0].numpy(), pixels[:, :, :colours].transpose(2, 0, 1))
    assert dropped == ({"transparency of images": 1} if channels in (2, 4) else {})


def test_other_8_bit_files_are_read_as_written(tmp_path):
    palette = RANDOM.integers(0, 256, (256, 3)).astype(np.uint8)
    index = RGB8[:, :, :1]
    before = chunk(b"PLTE", palette.tobytes())
    clear = chunk(b"tRNS", b"\x00" * 256)
    files = {
        "tiff<": (tiff(RGB8, 1), RGB8, False),
        "tiff>": (tiff(RGB8, 1, ">"), RGB8, False),
        "ppm": (b"P6 5 4 255\n" + RGB8.tobytes(), RGB8, False),
        "bmp": (encoded(RGB8, "BMP"), RGB8, False),
        "palette": (png(index, "palette", before), palette[index[:, :, 0]], False),
        "transparent-palette": (png(index, "palette", before + clear), palette[index[:, :, 0]], True),
        "transparent-colour": (png(RGB8, "rgb", chunk(b"tRNS", RGB8[0, 0].astype(">u2").tobytes())), RGB8, True),
        "opaque": (encoded(np.dstack([RGB8, np.full((4, 5), 255, np.uint8)]), "PNG"), RGB8, False),
    }
    for name, (content, pixels, transparent) in files.items():
        read, dropped = read_images([write(tmp_path, "a.png", content)], None, "d")
        np.testing.assert_array_equal(read[0].numpy(), pixels.transpose(2, 0, 1), err_msg=name)
        assert bool(dropped) == transparent, name


@pytest.mark.parametrize(("maximum", "white"), [(1, 255), (15, 255), (100, 255)])
def test_shallow_images_are_scaled_to_8_bits(tmp_path, maximum, white):
    read, _ = read_images([write(tmp_path, "a.pgm", b"P5 2 1 %d\n\x00" % maximum + bytes([maximum]))], None, "d")
    assert read.flatten().tolist() == [0, white]


#: The upright image of a stored one, from the EXIF standard's positions of row 0 and column 0.
UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}
BLOCKS = np.kron(np.array([[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [0, 0, 0]], [[90] * 3] * 2]), np.ones((16, 16, 1)))
BLOCKS = BLOCKS.astype(np.uint8)  # 48×32, another colour in every corner


def turned(form: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    if form.startswith("PNG"):
        meta = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
        return png(BLOCKS, "rgb", **{"after" if form == "PNG-late" else "before": meta})
    options = {
        "JPEG": {"quality": 100, "subsampling": 0},
        "WEBP": {"lossless": True},
        "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    }
    return encoded(BLOCKS, form, exif=exif, **options.get(form, {}))


FORMS = ["JPEG", "PNG", "PNG-late", "TIFF", *(form for form in ("WEBP", "AVIF") if features.check(form.lower()))]


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("form", FORMS)
def test_exif_orientation_is_honoured(tmp_path, form, orientation):
    path = write(tmp_path, "a.png", turned(form, orientation))
    read, _ = read_images([path], None, "d")
    tolerance = 12 if form in ("JPEG", "AVIF") else 0  # the lossy formats
    np.testing.assert_allclose(
        read[0].permute(1, 2, 0).int(), UPRIGHT[orientation](BLOCKS.astype(int)), rtol=0, atol=tolerance
    )
    small, _ = read_images([path], 32, "d")
    np.testing.assert_array_equal(small.shape, (1, 3, 32, 32))


def test_sizes_are_compared_upright(tmp_path):
    wide = write(tmp_path, "wide.png", turned("PNG", 6))
    tall = write(tmp_path, "tall.png", turned("PNG", 1))
    with pytest.raises(InputError, match=r"wide.png has 48×32 pixels, but .*tall.png has 32×48"):
        read_images([wide, tall], None, "d")
    assert read_images([tall, tall], None, "d").images.shape == (2, 3, 48, 32)


@pytest.mark.parametrize("form", ["GIF", "PNG", "TIFF", *(f for f in ("WEBP", "AVIF") if features.check(f.lower()))])
def test_several_frames_are_refused(tmp_path, form):
    frames = [Image.fromarray(RANDOM.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(3)]
    frames[0].save(tmp_path / "a.png", form, save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match=r"a\.png: 3 frames or pages; expected one image per file"):
        read_images([tmp_path / "a.png"], None, "d")
    frames[0].save(tmp_path / "b.png", form, save_all=True)
    assert read_images([tmp_path / "b.png"], None, "d").images.shape == (1, 3, 32, 32)


def test_previews_of_a_photograph_are_dropped_and_counted(tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    read, dropped = read_images([tmp_path / "a.jpg"], None, "d")
    assert read[0, 0].min() > 250 and read[0, 2].max() < 5
    assert dropped == {"embedded previews of images": 1}


def test_readers_beyond_image_formats_are_never_tried(tmp_path):
    """PostScript, which Pillow hands to an interpreter, under the name of a PNG."""
    path = write(tmp_path, "a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    with pytest.raises(InputError, match="cannot be read as an image"):
        read_images([path], None, "d")


@pytest.mark.filterwarnings("ignore:Image size")
def test_images_that_do_not_fit_are_refused_by_their_headers(tmp_path, monkeypatch):
    path = write(tmp_path, "a.png", png(np.zeros((1, 1, 3), np.uint8), "rgb"))
    size = struct.pack(">IIBBBBB", 13000, 13000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    monkeypatch.setattr(images.memory, "available", lambda: 8 * 10**9)
    with pytest.raises(
        InputError, match=r"'d': 60 images of 3×13000×13000 need 63.\d GB of memory, but 8.0 GB"
    ) as error:
        read_images([path] * 60, None, "d")
    assert "d,size=… reduces them" in str(error.value)
    # Scaled down, only one large image is in memory at a time; this one holds no pixels.
    with pytest.raises(InputError, match=r"a\.png: cannot be read as an image"):
        read_images([path] * 60, 8, "d")
