"""Bits per channel of an image file, from its header.

Pillow opens several formats as 8-bit images although the file holds more, and drops the low bits silently. The headers
are those of the PNG, JPEG (ITU-T T.81), JPEG 2000 (T.800), TIFF 6, Netpbm and AVIF specifications.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import IO, NamedTuple


class Samples(NamedTuple):
    """Format of the values of an image file: the largest number of bits of a channel, and their kind."""

    bits: int
    kind: str = "unsigned"

    def __str__(self) -> str:
        return f"{self.bits}-bit {self.kind}"


def read_samples(file: IO[bytes]) -> Samples | None:
    """Read the sample format from the header of a PNG, JPEG, JPEG 2000, TIFF, Netpbm, AVIF, WebP, GIF or BMP file.

    Returns:
        The format; None if the header is of another format or damaged.
    """
    file.seek(0)
    head = file.read(32)
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return Samples(head[24]) if head[12:16] == b"IHDR" and len(head) > 24 else None
    if head[:2] == b"\xff\xd8":
        return _jpeg(file)
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff(file)
    if head[:4] == b"\xff\x4f\xff\x51":
        return _codestream(file, 0)
    if head[4:8] == b"jP  ":
        return _jp2(file)
    if head[4:8] == b"ftyp":
        return _avif(file)
    if head[:6] in (b"GIF87a", b"GIF89a") or head[:2] == b"BM" or head[:4] + head[8:12] == b"RIFFWEBP":
        return Samples(8)
    return _netpbm(file, head)


def _netpbm(file: IO[bytes], head: bytes) -> Samples | None:
    magic = head[:2]
    if magic in (b"P1", b"P4"):
        return Samples(1)
    if magic in (b"Pf", b"PF"):
        return Samples(32, "floating-point")
    if magic not in (b"P2", b"P3", b"P5", b"P6"):
        return None
    file.seek(0)
    words = re.sub(rb"#[^\r\n]*", b" ", file.read(2**16)).split(maxsplit=4)
    maximum = words[3] if len(words) > 3 else b""
    return Samples(int(maximum).bit_length()) if maximum.isdigit() and len(maximum) < 10 else None


def _jpeg(file: IO[bytes]) -> Samples | None:
    file.seek(2)
    while byte := file.read(1):
        if byte != b"\xff":
            continue
        while (marker := file.read(1)) == b"\xff":
            pass
        code = marker[0] if marker else 0xDA
        if code in (0xDA, 0xD9):  # the scan or the end, without a frame
            return None
        if code in (0x00, 0x01) or 0xD0 <= code <= 0xD8:  # markers without a segment
            continue
        length = file.read(2)
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):  # start of frame
            precision = file.read(1)
            return Samples(precision[0]) if precision else None
        file.seek(max(0, int.from_bytes(length, "big") - 2), os.SEEK_CUR)
    return None


def _tiff(file: IO[bytes]) -> Samples:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    file.seek(0)
    header = file.read(8)
    if header[2] == 43 or header[3] == 43:  # BigTIFF
        header += file.read(8)
    directory = ImageFileDirectory_v2(header)
    file.seek(directory.next)
    directory.load(file)
    bits, formats = (directory.get(tag, (1,)) for tag in (258, 339))
    kinds = {1: "unsigned", 2: "signed", 3: "floating-point", 4: "undefined"}
    kind = next((form for form in _sequence(formats) if form != 1), 1)
    return Samples(max(map(int, _sequence(bits))), kinds.get(kind, "undefined"))


def _sequence(value: object) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (int(str(value)),)


def _boxes(file: IO[bytes], start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (type, start, end) of the contents of each box of the ISO base media format between two positions."""
    while start + 8 <= end:
        file.seek(start)
        header = file.read(16)
        size, body = int.from_bytes(header[:4], "big"), start + 8
        if size == 1:
            size, body = int.from_bytes(header[8:16], "big"), start + 16
        stop = end if size == 0 else min(end, start + size)
        if stop < body:
            return
        yield header[4:8], body, stop
        start = stop


def _length(file: IO[bytes]) -> int:
    return file.seek(0, os.SEEK_END)


def _codestream(file: IO[bytes], start: int) -> Samples | None:
    file.seek(start)
    header = file.read(42)
    if len(header) < 42 or header[:4] != b"\xff\x4f\xff\x51":
        return None
    components = file.read(3 * int.from_bytes(header[40:42], "big"))[::3]
    return _components(components)


def _components(depths: bytes) -> Samples | None:
    """Combine the depths of JPEG 2000 components: one byte each, bits - 1, with the high bit for signed values."""
    if not depths:
        return None
    bits = [(depth & 0x7F) + 1 for depth in depths]
    if any(depth & 0x80 for depth in depths):
        return Samples(max(bits), "signed")
    # Pillow shifts shallower values to 8 bits, so that white would not be 255.
    return Samples(max(bits)) if min(bits) >= 8 else Samples(min(bits), "unscaled")


def _jp2(file: IO[bytes]) -> Samples | None:
    found: list[Samples | None] = []
    for kind, start, end in _boxes(file, 0, _length(file)):
        if kind == b"jp2c":
            found.append(_codestream(file, start))
            break
        if kind == b"jp2h":
            for inner, first, _ in _boxes(file, start, end):
                if inner == b"pclr":  # a palette: its entries are the channels
                    file.seek(first + 2)
                    found.append(_components(file.read(file.read(1)[0])))
    known = [samples for samples in found if samples]
    return max(known) if known and len(known) == len(found) else None


def _avif(file: IO[bytes]) -> Samples | None:
    bits = []
    for kind, start, end in _boxes(file, 0, _length(file)):
        if kind != b"meta":
            continue
        for inner, first, last in _boxes(file, start + 4, end):
            if inner != b"iprp":
                continue
            for container, begin, stop in _boxes(file, first, last):
                if container == b"ipco":
                    bits += [_av1(file, at) for name, at, _ in _boxes(file, begin, stop) if name == b"av1C"]
    return Samples(max(bits)) if bits else None


def _av1(file: IO[bytes], start: int) -> int:
    """Read the bits per channel from an AV1 codec configuration: flags high_bitdepth and twelve_bit."""
    file.seek(start)
    flags = (file.read(3) + b"\xff" * 3)[2]
    if not flags & 0x40:
        return 8
    return 12 if flags & 0x20 else 10
