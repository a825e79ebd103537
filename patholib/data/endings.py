"""Where the picture in a file ends, and what it is made of: its own structure, followed to the end mark."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from patholib.data import jpegscans
from patholib.data.jpegscans import Flood

CHUNKS = 50_000  # of a PNG; 24 megapixels in chunks of 4 kB are fewer


@dataclass(frozen=True)
class Outline:
    """The offset behind the picture, and the scans of a JPEG."""

    end: int
    scans: tuple[jpegscans.Scan, ...] = ()


def of(kind: str, content: bytes) -> Outline:
    """The outline of a file of this format. Errors: ValueError where it ends too early; Flood."""
    if kind == "JPEG":
        return Outline(*jpegscans.outline(content))
    return Outline(END.get(kind, len)(content))


def png_end(content: bytes) -> int:
    """The offset behind the last chunk; every chunk's check sum is verified (PNG specification, section 5)."""
    at, view = 8, memoryview(content)
    for _ in range(CHUNKS):
        end = at + 12 + int.from_bytes(view[at : at + 4], "big")
        if at + 12 > len(content) or end > len(content):
            raise ValueError("it ends too early")
        name = content[at + 4 : at + 8]
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise ValueError(f"wrong check sum in chunk {name.decode('latin-1')!r}")
        if name == b"IEND":
            return end
        at = end
    raise Flood(f"more than {CHUNKS:,} chunks")


def webp_end(content: bytes) -> int:
    """The offset behind the RIFF chunk, whose length is even."""
    end = 8 + int.from_bytes(content[4:8], "little")
    if end > len(content):
        raise ValueError("it ends too early")
    return end + end % 2


def webp_with_other_end(content: bytes) -> bytes:
    """The same WebP with other last bytes in its picture data: a sound picture needs them, so it changes."""
    at, parts = 12, []
    while at + 8 <= len(content):
        name, size = content[at : at + 4], int.from_bytes(content[at + 4 : at + 8], "little")
        data = content[at + 8 : at + 8 + size]
        if name in (b"VP8 ", b"VP8L"):
            data = data[: -jpegscans.SPARE] + b"\xaa" * 64
        parts.append(name + len(data).to_bytes(4, "little") + data + bytes(len(data) % 2))
        at += 8 + size + size % 2
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + len(body).to_bytes(4, "little") + body


# By the format; each raises ValueError for a file that ends too early.
END = {"PNG": png_end, "WEBP": webp_end}
