"""Where the picture in a file ends: its own structure, followed to the end mark."""

from __future__ import annotations

import re
import zlib


def png_end(content: bytes) -> int:
    """The offset behind the last chunk; every chunk's check sum is verified (PNG specification, section 5)."""
    at, view = 8, memoryview(content)
    while at + 12 <= len(content):
        end = at + 12 + int.from_bytes(view[at : at + 4], "big")
        if end > len(content):
            break
        name = content[at + 4 : at + 8]
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise ValueError(f"wrong check sum in chunk {name.decode('latin-1')!r}")
        if name == b"IEND":
            return end
        at = end
    raise ValueError("it ends too early")


# Neither a stuffed zero nor a restart mark. It begins with a plain byte, which is searched ten times as fast as \xff+.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)


def jpeg_end(content: bytes) -> int:
    """The offset behind the end marker of the first picture; thumbnails lie inside segments that are skipped."""
    at = 2
    while found := _JPEG_MARKER.search(content, at):
        at = found.end()
        marker = content[at - 1]
        if marker == 0xD9:
            return at
        if marker not in (0x01, 0xD8):  # these two have no length
            at += int.from_bytes(content[at : at + 2], "big")
    raise ValueError("it ends too early")


def webp_end(content: bytes) -> int:
    """The offset behind the RIFF chunk, whose length is even."""
    end = 8 + int.from_bytes(content[4:8], "little")
    if end > len(content):
        raise ValueError("it ends too early")
    return end + end % 2


# By the format; each raises ValueError for a file that ends too early.
END = {"PNG": png_end, "JPEG": jpeg_end, "WEBP": webp_end}
