"""From files to batches: the one decoder, the one pass that checks and caches, and the reader of that cache.

A file is decoded once, by Pillow: it is slower than other decoders but raises an error where they crash the process
on a damaged PNG. Training and serving use the same `read` and `to_square`, so they see the same pixels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import hashlib
import io
import json
import os
import re
import shutil
import stat
import threading
import time
import warnings
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from patholib import datareport, files, locks
from patholib.errors import PathoError, nearest, shown
from patholib.manifest import stop_on
from patholib.progress import bar

MAX_PIXELS = 24_000_000  # decoding takes up to 8 bytes a pixel, and a legal PNG of 145 kB may hold 50 megapixels
MAX_TAGS = 1000  # of a TIFF
THREADS_PER_CORE = 8  # more than one, because threads that wait for a slow disk or network cost nothing
MIN_SIDE = 32  # pixels; below it there is nothing to learn from
GLIMPSE = 64  # pixels; the side of a picture in the report
WRITE_DOWN = 5.0  # seconds of a check that a kill may cost
PATIENCE = 120.0  # seconds for one file or batch, after which its thread counts as hung
PIXEL_VERSION = 1  # raise it when `read` or `to_square` changes a pixel: every cache is then built anew

# The formats that are read, by their first bytes, with the endings they may carry.
FORMATS = {
    "PNG": (rb"\x89PNG\r\n\x1a\n", {".png", ".apng"}),
    "JPEG": (rb"\xff\xd8", {".jpg", ".jpeg", ".jpe", ".jfif"}),
    "BMP": (rb"BM", {".bmp", ".dib"}),
    "TIFF": (rb"II\*\0|MM\0\*|II\+\0|MM\0\+", {".tif", ".tiff"}),
    "WEBP": (rb"RIFF....WEBP", {".webp"}),
    "GIF": (rb"GIF8[79]a", {".gif"}),  # opened only to tell an animation from a still
}

AGAIN = "Download or copy the file again"
EXPORT = "Export the picture as PNG first"
# What a file that ends in .png or .jpg turns out to be, in the order in which it is looked for.
STRANGERS = (
    (rb"version https://git-lfs", "a git-LFS pointer, not the file itself", "Run `git lfs pull` in the data folder"),
    (rb"\s*<(!doctype\s+html|html|head|body)", "a web page, probably an error or log-in page", AGAIN),
    (rb"\s*(<\?xml.*?)?(<!--.*?-->\s*)?(<!DOCTYPE svg.*?)?<svg", "an SVG drawing", EXPORT),
    (rb"\s*<\?xml", "an XML text, probably a server's error message", AGAIN),
    (rb".{128}DICM", "a DICOM file", "Export it to PNG first, with the window a reader would use"),
    (rb"%PDF", "a PDF document", EXPORT),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript document", EXPORT),
    (rb"PK\x03\x04", "a ZIP archive", "Unpack it first"),
    (rb"\x1f\x8b|7z\xbc\xaf|Rar!|BZh|\xfd7zXZ", "a compressed archive", "Unpack it first"),
    (rb"\x80[\x02-\x05]", "a Python pickle, which is never opened", EXPORT),
    (rb"\x93NUMPY|\x89HDF", "an array file (NumPy or HDF5)", EXPORT),
    (rb"\0+$", "nothing but zero bytes, as a broken download leaves", AGAIN),
    (rb"[\t\n\r\x20-\x7e]+$", "a text", AGAIN),
)
# Pictures, but of formats that hold too few colours or that Pillow reads only with extra libraries.
FOREIGN = (
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"....ftyp(heic|heix|mif1|msf1|avif)", "HEIF or AVIF"),
    (rb"8BPS", "Photoshop"),
    (rb"\0\0[\x01\x02]\0", "icon"),
)

MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}
CONVERTED = {  # modes whose conversion to RGB is worth a word
    "1": ("greyscale", "is black and white; all three colour channels become equal"),
    "L": ("greyscale", "has no colour; all three colour channels become equal"),
    "LA": ("greyscale", "has no colour; all three colour channels become equal"),
    "P": ("palette", "holds a palette of at most 256 colours"),
    "PA": ("palette", "holds a palette of at most 256 colours"),
    "CMYK": ("cmyk", "is made for print (CMYK); its colours become approximate"),
}
TURNS = {  # EXIF orientation: what brings the picture upright (EXIF 2.3, tag 0x0112)
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Problems of the moment, not of the bytes: the next check looks again instead of remembering them.
PASSING = {"unreadable", "io_error", "changed_file", "missing_file"}


class Note(NamedTuple):
    """Something odd about an image that was accepted all the same."""

    code: str
    reason: str


# ---------------------------------------------------------------------------------------------------- one image


def read(source, name: str | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture in a path, in bytes or in an open binary file, as upright RGB with `.warnings`, a list of `Note`.

    Transparency is laid on white. Raises PathoError: empty, not_an_image, unsupported_format, corrupt,
    unsupported_mode (more than 8 bits of grey, float, LAB), multi_frame, too_small (a side below 32), too_many_pixels
    and too_many_bytes (before any pixel is decoded), unreadable, missing_file, broken_link, io_error.
    `name` is how errors call the image; by default its path.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        content, name = bytes(source), name or "image"
    elif hasattr(source, "read"):
        content, name = source.read(_most_bytes(max_pixels) + 1), name or "image"
    else:
        name = name or str(source)
        content = read_content(source, name, max_pixels)
    image, seen = _decode(content, name, max_pixels)
    image.warnings = [Note(*note) for note in seen["warnings"]]
    return image


def to_square(image: Image.Image, size: int, fit: str = "crop") -> np.ndarray:
    """The picture as a square, (size, size, 3) uint8.

    fit "crop": the central square, aspect kept; "pad": the whole picture between black bars, aspect kept;
    "squeeze": the whole picture, stretched. Shrinking averages over all source pixels (no aliasing).
    """
    width, height = image.size
    box, target = (0, 0, width, height), (size, size)
    if fit == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2  # whole pixels: half a pixel would blur
        box = (left, top, left + side, top + side)
    elif fit == "pad":
        target = tuple(max(1, round(side * size / max(width, height))) for side in (width, height))
    elif fit != "squeeze":
        raise PathoError("bad_parameter", f"fit={fit!r}", "is no way to make a square",
                         nearest(fit, ("crop", "pad", "squeeze")))
    # Hamming is as quick as bilinear and nearly as sharp as bicubic when shrinking; bicubic is better at enlarging.
    shrinks = target[0] < box[2] - box[0]
    kernel = Image.Resampling.HAMMING if shrinks else Image.Resampling.BICUBIC
    small = np.asarray(image.resize(target, kernel, box=box))
    if fit != "pad":
        return small
    square = np.zeros((size, size, 3), np.uint8)
    left, top = (size - target[0]) // 2, (size - target[1]) // 2
    square[top:top + target[1], left:left + target[0]] = small
    return square


def perceptual_hash(square: np.ndarray) -> str:
    """64 bits as 16 hexadecimal digits, few of which change when a picture is re-encoded, rescaled or brightened.

    One bit for each of the 8 x 8 lowest frequencies of the 32 x 32 grey picture: is it above their median?
    """
    grey = Image.fromarray(square).convert("L").resize((32, 32), Image.Resampling.HAMMING)
    low = _cosines() @ np.asarray(grey, dtype=np.float64) @ _cosines().T  # (8, 8)
    low = low.round(6)  # a flat picture gives exact zeros, not the noise of the arithmetic
    bits = low.ravel() > np.median(low)
    return np.packbits(bits).tobytes().hex()


@functools.cache
def _cosines() -> np.ndarray:
    """The 8 lowest rows of the discrete cosine transform of 32 points, (8, 32)."""
    return np.cos(np.pi / 32 * np.arange(8)[:, None] * (np.arange(32) + 0.5))


def _stat(path: Path | str, name: str) -> os.stat_result:
    """The facts of a regular file; nothing is opened, because opening a pipe would wait for ever."""
    try:
        facts = os.stat(path)  # noqa: PTH116 - text, where there are many
    except OSError as error:
        if error.errno == errno.ELOOP or Path(path).is_symlink():
            raise PathoError("broken_link", name, "is a link that leads nowhere",
                             "Restore its target or remove the link") from error
        raise _unread(name, error) from error
    if not stat.S_ISREG(facts.st_mode):
        what = "a folder" if stat.S_ISDIR(facts.st_mode) else "a pipe, a socket or a device"
        raise PathoError("unreadable", name, f"is {what}, not a file", "Remove it from the data folder")
    return facts


def read_content(path: Path | str, name: str, max_pixels: int = MAX_PIXELS) -> bytes:
    """The bytes of an image file, once for all that is to be made of them; `read` takes them. Errors: as `read`."""
    return _content(Path(path), _stat(path, name), name, _most_bytes(max_pixels))


def _most_bytes(max_pixels: int) -> int:
    """No honest file of that many pixels is larger."""
    return 8 * max_pixels + 2**20


def _content(path: Path, facts: os.stat_result, name: str, limit: int) -> bytes:
    """The bytes of a file that is still as `facts` says."""
    if facts.st_size > limit:
        raise _too_many_bytes(name, facts.st_size, limit)
    try:
        with path.open("rb") as stream:
            content = stream.read()
            now = os.fstat(stream.fileno())
    except OSError as error:
        raise _unread(name, error) from error
    if (len(content), now.st_mtime_ns) != (facts.st_size, facts.st_mtime_ns):
        raise PathoError("changed_file", name, "changed while it was being read",
                         "Wait until copying has ended and check again")
    return content


def _unread(name: str, error: OSError) -> PathoError:
    if error.errno == errno.ENOENT:
        return PathoError("missing_file", name, "is listed but not on disk",
                          "Restore the file, or list it in the exclusions")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EISDIR):
        return PathoError("unreadable", name, f"cannot be opened ({error.strerror})", "Correct its permissions")
    return PathoError("io_error", name, f"cannot be read ({error.strerror or error})",
                      "Check that the disk or network drive is still there")


def _too_many_bytes(name: str, count: int, limit: int) -> PathoError:
    return PathoError("too_many_bytes", name, f"has {count:,} bytes, more than the {limit:,} that are read",
                      "Export a smaller picture, or cut the slide into tiles")


def _decode(content: bytes, name: str, max_pixels: int) -> tuple[Image.Image, dict]:
    """The upright RGB picture, and what was seen: kind, mode, width, height (as stored), warnings [(code, reason)]."""
    if len(content) > _most_bytes(max_pixels):
        raise _too_many_bytes(name, len(content), _most_bytes(max_pixels))
    kind = _kind(content, name)
    image = _header(content, kind, name)
    width, height = image.size
    if width * height > max_pixels:
        raise _too_many_pixels(name, f"{width} x {height}", max_pixels)
    if min(width, height) < MIN_SIDE:
        raise PathoError("too_small", name, f"is {width} x {height} pixels, below {MIN_SIDE} on a side",
                         "Remove it, or export it at its full size")
    mode = image.mode
    if mode not in MODES:
        raise PathoError("unsupported_mode", name, f"stores its pixels as {mode!r} (more than 8 bits, or no RGB)",
                         "Export it as 8-bit RGB, choosing the range of values yourself")
    notes = _load(image, content, kind, name)

    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in FORMATS[kind][1] and any(suffix in endings for _, endings in FORMATS.values()):
        notes.append(("extension_mismatch", f"is a {kind} file although its name ends in {suffix}"))
    if mode in CONVERTED:
        notes.append(CONVERTED[mode])
    depths = {"PNG": lambda: (content[24],), "TIFF": lambda: image.tag_v2.get(258, (8,))}  # IHDR; BitsPerSample
    if max(depths.get(kind, lambda: (8,))()) > 8:
        notes.append(("depth_reduced", "has 16 bits per channel, of which 8 are kept"))
    if max(width, height) > 4 * min(width, height):
        notes.append(("extreme_aspect", f"is {width} x {height}: a square shows little of it"))
    image = _on_white(_upright(image, notes), notes)
    if _blank(image):
        notes.append(("blank", "shows one single colour"))
    return image, {"kind": kind, "mode": mode, "width": width, "height": height, "warnings": notes}


def _kind(content: bytes, name: str) -> str:
    """The format by the first bytes, whatever the name says."""
    if not content:
        raise PathoError("empty", name, "has no bytes", AGAIN)
    start = content[:2048]
    for kind, (magic, _) in FORMATS.items():
        if re.match(magic, start, re.DOTALL):
            return kind
    for magic, what, remedy in STRANGERS:
        if re.match(magic, start, re.DOTALL | re.IGNORECASE):
            raise PathoError("not_an_image", name, f"is {what}", remedy)
    for magic, what in FOREIGN:
        if re.match(magic, start, re.DOTALL):
            raise PathoError("unsupported_format", name, f"is a picture in {what} format", EXPORT)
    raise PathoError("not_an_image", name, f"starts with the bytes {start[:8].hex(' ')}, as no known picture does",
                     "Remove it, or export it as PNG")


def _header(content: bytes, kind: str, name: str) -> Image.Image:
    """The picture with its header read and no pixel decoded."""
    try:
        if kind == "TIFF":
            _refuse_many_tags(content)
        image = Image.open(io.BytesIO(content), formats=[kind])
        several = getattr(image, "is_animated", False)  # counting the pages of a TIFF takes the square of their number
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels(name, re.sub(r"\D*(\d+ pixels).*", r"\1", str(error)), MAX_PIXELS) from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers let any exception through on a damaged header
        unknown = isinstance(error, UnidentifiedImageError)  # its text holds a memory address
        raise PathoError("not_an_image", name, f"starts like a {kind} file, but its header cannot be read "
                         f"({'no known variant' if unknown else error})", AGAIN) from error
    if several and "mp" not in image.info:  # a JPEG with further pictures is what phones write: its first counts
        raise PathoError("multi_frame", name, "holds several pictures", "Export each picture to a file of its own")
    if kind == "GIF":
        raise PathoError("unsupported_format", name, "is a GIF, which keeps 256 colours at most", EXPORT)
    return image


def _refuse_many_tags(content: bytes) -> None:
    """Pillow reads every tag that a TIFF announces, which may be millions; scanners write some dozens."""
    order, wide = "little" if content[:2] == b"II" else "big", b"+" in content[2:4]  # BigTIFF has wider numbers
    at = int.from_bytes(content[8:16] if wide else content[4:8], order)
    count = int.from_bytes(content[at:at + (8 if wide else 2)], order)
    if count > MAX_TAGS:
        raise ValueError(f"{count:,} tags")


def _too_many_pixels(name: str, found: str, limit: int) -> PathoError:
    return PathoError("too_many_pixels", name, f"announces {found}, more than {limit / 1e6:g} megapixels",
                      "Cut it into tiles or export it smaller")


def _load(image: Image.Image, content: bytes, kind: str, name: str) -> list[tuple[str, str]]:
    """Decodes every pixel, or raises `corrupt`; returns notes on what stands around the pixels.

    Pillow accepts a JPEG that has lost its end, and a PNG whose damage lies behind the last pixel: so the file's own
    structure is followed to its end mark first.
    """
    try:
        end = {"PNG": _png_end, "JPEG": _jpeg_end, "WEBP": _webp_end}.get(kind, len)(content)
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # OSError, SyntaxError, ValueError, TypeError, struct.error, KeyError ...
        raise PathoError("corrupt", name, f"is a damaged {kind} file ({error})", AGAIN) from error
    if "mp" in image.info:
        return [("multi_frame", "holds several pictures; the first is taken")]
    if end < len(content):
        return [("trailing_data", f"has {len(content) - end:,} bytes behind the picture's end")]
    return []


def _png_end(content: bytes) -> int:
    """The offset behind the last chunk; every chunk's check sum is verified (PNG specification, section 5)."""
    at, view = 8, memoryview(content)
    while at + 12 <= len(content):
        end = at + 12 + int.from_bytes(view[at:at + 4], "big")
        if end > len(content):
            break
        name = content[at + 4:at + 8]
        if zlib.crc32(view[at + 4:end - 4]) != int.from_bytes(view[end - 4:end], "big"):
            raise ValueError(f"wrong check sum in chunk {name.decode('latin-1')!r}")
        if name == b"IEND":
            return end
        at = end
    raise ValueError("it ends too early")


# Neither a stuffed zero nor a restart mark. It begins with a plain byte, which is searched ten times as fast as \xff+.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)


def _jpeg_end(content: bytes) -> int:
    """The offset behind the end marker of the first picture; thumbnails lie inside segments that are skipped."""
    at = 2
    while found := _JPEG_MARKER.search(content, at):
        at = found.end()
        marker = content[at - 1]
        if marker == 0xD9:
            return at
        if marker not in (0x01, 0xD8):  # these two have no length
            at += int.from_bytes(content[at:at + 2], "big")
    raise ValueError("it ends too early")


def _webp_end(content: bytes) -> int:
    end = 8 + int.from_bytes(content[4:8], "little")
    if end > len(content):
        raise ValueError("it ends too early")
    return end + end % 2


def _upright(image: Image.Image, notes: list) -> Image.Image:
    """Turned as the camera's orientation tag says, in training and serving alike."""
    try:
        turn = TURNS.get(image.getexif().get(0x0112))
    except Exception:  # Pillow's EXIF parser lets any exception through; the pixels are sound all the same
        notes.append(("exif_unreadable", "has camera data that cannot be read; it is shown as stored"))
        return image
    if turn is None:
        return image
    notes.append(("exif_orientation", "was turned upright as its camera data say"))
    return image.transpose(turn)


def _on_white(image: Image.Image, notes: list) -> Image.Image:
    """RGB, with transparency laid on white, the colour of an empty slide."""
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    image = image.convert("RGBA")
    if image.getextrema()[3][0] < 255:
        notes.append(("alpha", "is partly transparent; it was laid on white"))
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    return image.convert("RGB")


def _blank(image: Image.Image) -> bool:
    """Is every pixel the same, but for the 2 grey levels that JPEG may add?"""
    def flat(picture):
        return all(high - low <= 2 for low, high in picture.getextrema())

    return flat(image.resize((16, 16), Image.Resampling.NEAREST)) and flat(image)  # the sample spares the full pass


# ------------------------------------------------------------------------------------------------- a set of images


@dataclass(frozen=True)
class ImageSet:
    """Images in the cache and what is known of each; a split or a subset is another table over the same pixels."""

    pixels: np.ndarray  # (M, S, S, 3) uint8, the whole cache, memory-mapped and read-only
    table: pd.DataFrame  # one row per image of this set: the manifest's columns, `row` (index into pixels), `split`...
    classes: tuple[str, ...]
    copies: dict[str, str] = dataclasses.field(default_factory=dict)  # left out: the equal picture that stayed

    def __len__(self) -> int:
        return len(self.table)

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64, the place of each image's label in `classes`."""
        place = {name: i for i, name in enumerate(self.classes)}
        unknown = sorted(set(self.table["label"].tolist()) - set(place))
        if unknown:
            raise PathoError("unknown_class", unknown[0], "is a label but no class of the set",
                             nearest(unknown[0], self.classes))
        return self.table["label"].map(place).to_numpy(np.int64)

    def part(self, split: str) -> ImageSet:
        """The images of one split."""
        if "split" not in self.table:
            raise PathoError("no_split", split, "is asked for, but these images are not split yet",
                             "Call with_split(table) with the table of manifest.split first")
        known = sorted(set(self.table["split"]))
        if split not in known:
            raise PathoError("unknown_split", split, "is no split of these images", nearest(split, known))
        chosen = self.table[self.table["split"] == split].reset_index(drop=True)
        return dataclasses.replace(self, table=chosen)

    @property
    def pictures(self) -> np.ndarray:
        """The pixels of every image of this set, (N, S, S, 3) uint8, in memory: for a few."""
        return self.pixels[self.table["row"].to_numpy()]

    def examples(self, each: int, by: str) -> ImageSet:
        """`each` images of every class, of as many different groups (column `by`) as there are; in class order."""
        turn = self.table.groupby(["label", by]).cumcount()  # 0 for the first image of every group
        spread = self.table.assign(turn=turn).sort_values(["turn", "path"], kind="stable")
        parts = [spread[spread["label"] == name].head(each) for name in self.classes]
        return dataclasses.replace(self, table=pd.concat(parts, ignore_index=True).drop(columns="turn"))

    def with_split(self, table: pd.DataFrame) -> ImageSet:
        """The same images under a split table, matched by path; both must name exactly the same images.

        Raises PathoError: `split_mismatch`; `split_leakage` where a split made elsewhere has a picture in one part and
        its equal, which the check left out as a duplicate, in another.
        """
        paths, ours = table["path"].tolist(), self.table["path"].tolist()
        home = dict(zip(paths, table["split"].tolist(), strict=True))
        stop_on([("split_leakage", copy, f"is in {home[copy]}, and {shown(kept)} with the same pixels in {home[kept]}")
                 for copy, kept in self.copies.items() if {copy, kept} <= home.keys() and home[copy] != home[kept]],
                "Split again: no picture may be in two splits")
        rows = dict(zip(ours, self.table["row"].tolist(), strict=True))
        for missing, reason in ((home.keys() - rows.keys(), "is in the split but not among the images"),
                                (rows.keys() - home.keys(), "is among the images but not in the split")):
            if missing:
                raise PathoError("split_mismatch", min(missing), f"{reason} (so are {len(missing) - 1} more)",
                                 "Split the checked manifest again")
        table = table.drop(columns="row", errors="ignore").reset_index(drop=True)
        return dataclasses.replace(self, table=table.assign(row=np.array([rows[path] for path in paths], np.int64)))


@dataclass(frozen=True)
class Checked:
    """What one pass over the files found and made."""

    manifest: Any  # the manifest with its sound rows only
    images: ImageSet  # the same rows in the cache, not split yet
    report: dict  # JSON: every problem, warning, duplicate and conflict, counts, cache, seconds
    facts: pd.DataFrame  # one row per file: path, bytes, sha256, phash, width, height, mode, kind ("" where refused)
    pictures: dict[str, bytes] = dataclasses.field(default_factory=dict, repr=False)  # small JPEGs for the report

    def write_report(self, folder: Path) -> Path:
        """Writes data_report.json, excluded.csv and data_report.html into `folder`; returns the last."""
        return datareport.write(folder, self.report, self.pictures)


def check(manifest, size: int, fit: str = "crop", cache_dir: Path | None = None, on_bad: str = "error",
          workers: int | None = None, progress: bool = True, report_dir: Path | None = None) -> Checked:
    """Decodes every file of the manifest once: verified, hashed, resized into a memory-mapped cache for training.

    All problems are collected first, and written into `report_dir` whatever they are: data_report.json, excluded.csv
    and data_report.html, which shows them (see `datareport`). None: the folder data-check/<source> in PATHOLIB_OUTPUTS
    or in outputs/ of the project.
    on_bad "error": any problem raises `bad_images`, with the report as `.report`. "skip": bad files leave the set and
    are listed in `report["excluded"]`; `too_many_bad` is raised if a class would lose more than 1 % of its files (one
    file is always allowed, unless it is the class's last).
    Equal pictures under one label: the first path stays, the others are listed as `duplicate` whatever on_bad says.
    Equal pictures under different labels are a `label_conflict`: a problem, and none of them stays; these do not
    count towards the 1 %, because they are a property of the data set and no sign of damage.
    `blank` pictures are a warning, and a problem where they are more than 1 % of a class.
    Where the manifest has a column sha256, a file of another digest is a `changed_file`.

    The cache depends on the paths, sizes and times of the files, on `size` and on `fit`; where one exists nothing is
    decoded. The data folder is only read. Raises also: no_images, no_space, output_unwritable, loader_timeout,
    out_of_memory.
    """
    start = time.perf_counter()
    if on_bad not in ("error", "skip"):
        raise PathoError("bad_parameter", f"on_bad={on_bad!r}", "is neither 'error' nor 'skip'",
                         nearest(on_bad, ("error", "skip")))
    if len(manifest.table) == 0:
        raise PathoError("no_images", str(manifest.root), "has no image in its manifest", "Choose another data folder")
    to_square(Image.new("RGB", (1, 1)), size, fit)  # a wrong fit stops here, not at the first file
    say = print if progress else (lambda text: None)
    workers = threads(workers, say)

    root, paths = Path(manifest.root), manifest.table["path"].tolist()
    facts = [_first_facts(root, path) for path in paths]
    cache = cache_file(facts, size, fit, cache_dir)
    known = _known_facts(cache, facts, size)
    with warnings.catch_warnings():  # Pillow's asides on damaged files, each of which gets its own line in the report
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        facts = known or _build(cache, root, facts, size, fit, workers, progress, say)
    pixels = np.load(cache, mmap_mode="r").view(np.ndarray)  # (M, S, S, 3); still mapped, and read-only

    report, keep = _judge(manifest, facts)
    seconds = time.perf_counter() - start
    report = {"source": manifest.source, "folder": root.resolve().name, "demo": manifest.demo, "on_bad": on_bad,
              "size": size, "fit": fit} | report
    report["cache"] = {"file": cache.name, "bytes": cache.stat().st_size, "reused": known is not None}
    report["seconds"] = round(seconds, 3)
    folder = Path(report_dir or files.outputs() / "data-check" / f"{manifest.source}{'-demo' * manifest.demo}")
    see = f"see {_short(folder / 'data_report.html')}"
    stop = _stop(report, on_bad, see)
    report["stopped"] = stop and stop.code
    pictures = _pictures(datareport.worth_a_picture(report), facts, pixels, root)
    datareport.write(folder, report, pictures)
    say(_closing_line(report, seconds, see))
    if stop is not None:
        stop.report = report
        raise stop

    table = manifest.table[keep].assign(row=np.flatnonzero(keep)).reset_index(drop=True)
    sound = dataclasses.replace(manifest, table=table.drop(columns="row"))
    columns = ("path", "bytes", "sha256", "phash", "width", "height", "mode", "kind")
    known_of = pd.DataFrame({c: [fact.get(c, "") for fact in facts] for c in columns})
    copies = {path: entry["kept"] for entry in report["duplicates"] for path in entry["dropped"]}
    return Checked(sound, ImageSet(pixels, table, tuple(manifest.classes), copies), report, known_of, pictures)


def cores() -> int:
    """The processor cores this process may use, of which decoding takes all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(workers: int | None, say: Callable | None = None) -> int:
    """How many threads to start: `workers`, None for one a core, and at most THREADS_PER_CORE, which `say` is told.

    Errors: bad_parameter.
    """
    if workers is None:
        return cores()
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise PathoError("bad_parameter", "workers", f"are {workers!r}", "Use a whole number of threads from 1 on")
    most = THREADS_PER_CORE * cores()
    if workers > most and say:
        say(f"workers are {most} instead of {workers}: {THREADS_PER_CORE} for each core, beyond which none is quicker")
    return min(workers, most)


def cache_file(facts: list[dict], size: int, fit: str, cache_dir: Path | None = None) -> Path:
    """Where these files' pixels are cached: `cache_dir`, else the folder PATHOLIB_CACHE, else `files.remade`."""
    folder = Path(cache_dir or os.environ.get("PATHOLIB_CACHE") or files.remade() / "cache")
    listed = [[fact["path"], fact["bytes"], fact["mtime_ns"]] for fact in facts]
    key = files.digest({"pixels": PIXEL_VERSION, "size": size, "fit": fit, "files": listed})
    return folder / f"{key[:24]}.npy"


def _first_facts(root: Path, name: str) -> dict:
    """Path, size in bytes and time of change, or the problem that hides them; nothing is opened."""
    path = files.joined(root, name)
    try:
        found, link = _stat(path, name), os.path.islink(path)  # noqa: PTH114 - as above
        if link and not Path(name).is_absolute() and not Path(path).resolve().is_relative_to(root.resolve()):
            raise PathoError("link_outside_root", name, "is a link that leaves the data folder",
                             "Copy its target here, or list the target by its absolute path in a CSV of your own")
    except PathoError as error:
        return {"path": name, "bytes": 0, "mtime_ns": 0, "warnings": [], "problem": _problem(error)}
    return {"path": name, "bytes": found.st_size, "mtime_ns": found.st_mtime_ns, "warnings": []}


def _problem(error: PathoError) -> dict:
    return {"code": error.code, "reason": error.reason, "remedy": error.remedy}


def _examine(path: Path, fact: dict, size: int, fit: str) -> tuple[dict, np.ndarray | None]:
    """All facts of one file, and its square unless it is refused."""
    if "problem" in fact:
        return fact, None
    name = fact["path"]
    try:
        found = _stat(path, name)
        content = _content(path, found, name, _most_bytes(MAX_PIXELS))
        if (found.st_size, found.st_mtime_ns) != (fact["bytes"], fact["mtime_ns"]):
            raise PathoError("changed_file", name, "changed during the check", "Check again")
        fact = fact | {"sha256": hashlib.sha256(content).hexdigest()}
        image, seen = _decode(content, name, MAX_PIXELS)
    except PathoError as error:
        return fact | {"problem": _problem(error)}, None
    square = to_square(image, size, fit)
    same = hashlib.blake2b(square.tobytes(), digest_size=16).hexdigest()  # equal pixels, whatever the encoding
    return fact | seen | {"phash": perceptual_hash(square), "pixels": same}, square


def _build(cache: Path, root: Path, facts: list[dict], size: int, fit: str, workers: int, progress: bool,
           say: Callable) -> list[dict]:
    """Writes the cache and, beside it, the facts of every file; a refused file's pixels stay zero and unused."""
    shape = (len(facts), size, size, 3)
    need = int(np.prod(shape))
    with _writable(cache):
        cache.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(cache.parent)
        free = shutil.disk_usage(cache.parent).free
    say(f"Cache: {shape[0]:,} images of {size} x {size} pixels take {need / 1e9:.2f} GB in {_short(cache.parent)} "
        f"({free / 1e9:.1f} GB free)")
    if need + 2**20 > free:
        raise PathoError("no_space", str(cache.parent), f"has {free / 1e9:.2f} GB free, but the cache takes "
                         f"{need / 1e9:.2f}", "Free some space, or name another folder in PATHOLIB_CACHE")
    held = cache.with_name(f".{cache.stem}.lock")
    lock = locks.take(held)
    alone = "" if lock else f".{os.getpid()}"  # two processes that build the same cache do not share a file
    part = cache.with_name(f".{cache.stem}{alone}.part")
    try:
        facts = _fill(part, root, facts, shape, fit, workers, progress, say)
        with _writable(cache):
            files.into_place(part, cache)
        files.write_text(cache.with_suffix(".json"), json.dumps({"files": facts}))  # unindented: quicker
        _journal(part).unlink(missing_ok=True)
    except PathoError as error:
        if error.code in ("no_space", "output_unwritable"):  # the space is given back; other builds can be gone on with
            part.unlink(missing_ok=True)
            _journal(part).unlink(missing_ok=True)
        raise
    finally:
        if lock:
            lock.close()
            with contextlib.suppress(OSError):  # Windows: another process has just opened it to see whether it is held
                held.unlink(missing_ok=True)
    return facts


def _short(path: Path) -> str:
    """A path in the project relative to it, any other in full."""
    root = files.project_root()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _fill(part: Path, root: Path, facts: list[dict], shape: tuple, fit: str, workers: int, progress: bool,
          say: Callable) -> list[dict]:
    """Decodes every file into the array at `part`, on disk when it returns; the facts of all, in order.

    What is done is written down every few seconds, and a build that was killed goes on from there.
    """
    done = _done_before(part, shape)
    if done:
        say(f"Going on with a check that was interrupted: {len(done):,} of {len(facts):,} images are done")
    with _writable(part):
        pixels = np.lib.format.open_memmap(part, "r+" if done else "w+", np.uint8, shape)
        if hasattr(os, "posix_fallocate"):  # a full disk is then an error here, not a bus error in the mapping
            with part.open("r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, part.stat().st_size)

    def work(i: int) -> dict:
        fact, square = _examine(root / facts[i]["path"], facts[i], shape[1], fit)
        if square is not None:
            pixels[i] = square
        return fact

    named = [fact["path"] for fact in facts].__getitem__
    todo = [i for i in range(len(facts)) if i not in done]
    meter = bar(shown=progress, total=len(facts), initial=len(done), desc="Checking images", unit="img",
                leave=False)
    with _writable(part):
        journal = _journal(part).open("a" if done else "w", encoding="utf-8")
    fresh: dict[int, dict] = {}

    def write_down() -> float:
        with _writable(part):
            pixels.flush()  # first, or a power cut would leave a line about pixels that are not there
            journal.writelines(json.dumps([i, fact]) + "\n" for i, fact in fresh.items())
            journal.flush()
        done.update(fresh)
        fresh.clear()
        return time.monotonic()

    with meter, journal, contextlib.closing(in_order(work, todo, workers, 16 * workers, named)) as found:
        since = time.monotonic()
        try:
            for i, fact in zip(todo, found, strict=True):
                fresh[i] = fact
                meter.update()
                if time.monotonic() - since > WRITE_DOWN:
                    since = write_down()
        finally:
            write_down()
    return [done[i] for i in range(len(facts))]


def _journal(part: Path) -> Path:
    return part.with_suffix(".jsonl")


def _done_before(part: Path, shape: tuple) -> dict[int, dict]:
    """The facts of the files that an interrupted build has written down, by index; problems of the moment are none."""
    done: dict[int, dict] = {}
    try:
        if np.load(part, mmap_mode="r").shape != shape:
            return done
        for line in _journal(part).read_text(encoding="utf-8").splitlines():
            i, fact = json.loads(line)
            if fact.get("problem", {}).get("code") not in PASSING:
                done[i] = fact
    except (OSError, ValueError):  # none, or cut off in its last line: what stands before counts
        return done
    return done


def _known_facts(cache: Path, now: list[dict], size: int) -> list[dict] | None:
    """The facts written beside a complete cache; None where there is none, or where a problem may have passed."""
    beside = cache.with_suffix(".json")
    if not (cache.is_file() and beside.is_file()):
        return None
    try:
        known = files.read_json(beside)["files"]
        fits = np.load(cache, mmap_mode="r").shape == (len(now), size, size, 3) and len(known) == len(now)
    except (PathoError, KeyError, ValueError, OSError):  # cut off by a crash or by hand: it is built anew
        return None
    known = [fact if "problem" in fact else old for fact, old in zip(now, known, strict=False)]
    passing = any(fact["mtime_ns"] and fact.get("problem", {}).get("code") in PASSING for fact in known)
    return known if fits and not passing else None


@contextlib.contextmanager
def _writable(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PathoError(files.unwritable(cache, error).code, str(cache.parent),
                         f"cannot hold the cache ({error.strerror or error})",
                         "Free some space, or name another folder in PATHOLIB_CACHE") from error


def _remove_leftovers(folder: Path) -> None:
    """Deletes what a killed build left behind; a day is longer than any build that is still running."""
    for part in (*folder.glob(".*.part"), *folder.glob(".*.jsonl"), *folder.glob(".*.lock")):
        if time.time() - part.stat().st_mtime > 86_400:
            part.unlink(missing_ok=True)


def _pictures(paths: list[str], facts: list[dict], pixels: np.ndarray, root: Path) -> dict[str, bytes]:
    """A small JPEG of each of these files: as the cache has it, or as far as a refused one decodes, if at all."""
    place = {fact["path"]: i for i, fact in enumerate(facts)}
    found = {}
    for path in paths:
        i = place[path]
        image = Image.fromarray(pixels[i]) if "pixels" in facts[i] else _glimpse(root, facts[i])
        if image is not None:
            found[path] = thumbnail(image, GLIMPSE)
    return found


def thumbnail(image: Image.Image, side: int) -> bytes:
    """A small JPEG for a page, at most `side` pixels wide and high."""
    small, stream = image.copy(), io.BytesIO()
    small.thumbnail((side, side))
    small.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def _glimpse(root: Path, fact: dict) -> Image.Image | None:
    """What can be seen of a refused file, also of a damaged one; None where nothing can."""
    path, code = root / fact["path"], fact["problem"]["code"]
    if code not in ("corrupt", "multi_frame", "unsupported_format", "unsupported_mode"):
        return None
    readers = set(FORMATS) - {"TIFF"} if code != "unsupported_mode" else FORMATS  # libtiff prints on every damaged tag
    try:
        content = read_content(path, path.name)
        image = Image.open(io.BytesIO(content), formats=list(readers))
        if image.width * image.height > MAX_PIXELS:
            return None
        image.draft("RGB", (GLIMPSE, GLIMPSE))  # a JPEG is decoded at an eighth of its size
        with contextlib.suppress(Exception):
            image.load()
        image.tile = []  # nothing more to decode: Pillow then gives what it has
        if image.mode in MODES:
            seen = _on_white(image, [])
        else:  # deep grey: its own darkest to its own brightest
            values = np.asarray(image, dtype=np.float64)
            seen = Image.fromarray(np.uint8((values - values.min()) / np.ptp(values) * 255)).convert("RGB")
        return None if _blank(seen) else seen
    except Exception:  # it was refused already, and whatever Pillow has against it is no news
        return None


def _judge(manifest, facts: list[dict]) -> tuple[dict, np.ndarray]:
    """The report on all files, and which of them stay, (M,) bool."""
    table = manifest.table
    labels = table["label"].to_numpy()
    problems = {i: fact["problem"] for i, fact in enumerate(facts) if "problem" in fact}
    problems |= _too_blank(facts, labels) | _not_as_listed(table, facts)
    damaged = Counter(labels[i] for i in problems)

    alike: dict[str, list[int]] = {}
    for i, fact in enumerate(facts):
        if i not in problems:
            alike.setdefault(fact["pixels"], []).append(i)
    duplicates, conflicts, shared, dropped = [], [], [], {}
    for same in (group for group in alike.values() if len(group) > 1):
        paths = [facts[i]["path"] for i in same]
        if len(set(labels[same])) > 1:
            conflicts.append({"paths": paths, "labels": list(labels[same])})
            for i in same:
                others = ", ".join(f"{shown(facts[j]['path'])} ({labels[j]})" for j in same if j != i)
                problems[i] = {"code": "label_conflict", "reason": f"is labelled {labels[i]}, but equals {others}",
                               "remedy": "Correct the label, or let on_bad='skip' exclude them all"}
            continue
        values = {column: sorted(set(table[column].to_numpy()[same]))
                  for column in dict.fromkeys((*manifest.levels, manifest.group_by, *manifest.subgroups))}
        differ = {column: found for column, found in values.items() if len(found) > 1}
        duplicates.append({"kept": paths[0], "dropped": paths[1:], "differ": differ})
        dropped |= {i: f"has the same pixels as {shown(paths[0])}" for i in same[1:]}
        shared += [{"paths": paths, "column": column, "values": found} for column, found in differ.items()
                   if column not in manifest.subgroups]

    def listed(i: int, code: str, reason: str) -> dict:
        return {"path": facts[i]["path"], "sha256": facts[i].get("sha256", ""), "code": code, "reason": reason}

    excluded = [listed(i, p["code"], p["reason"]) for i, p in problems.items()]
    excluded += [listed(i, "duplicate", reason) for i, reason in dropped.items()]
    sound = [fact for i, fact in enumerate(facts) if i not in problems]
    warnings = [{"path": f["path"], "code": code, "reason": reason} for f in sound for code, reason in f["warnings"]]
    keep = np.array([i not in problems and i not in dropped for i in range(len(facts))])
    return {
        "counts": {"files": len(facts), "kept": int(keep.sum()), "problems": len(problems), "duplicates": len(dropped),
                   "by_code": dict(Counter(entry["code"] for entry in excluded).most_common()),
                   "warnings": dict(Counter(entry["code"] for entry in warnings).most_common())},
        "per_class": {name: {"files": int((labels == name).sum()), "kept": int((labels[keep] == name).sum()),
                             "damaged": damaged[name]} for name in manifest.classes},
        "problems": [listed(i, p["code"], p["reason"]) | {"remedy": p["remedy"]} for i, p in sorted(problems.items())],
        "excluded": sorted(excluded, key=lambda entry: entry["path"]),
        "warnings": warnings,
        "duplicates": duplicates,
        "label_conflicts": conflicts,
        "groups_sharing_pixels": shared,  # a leak if the groups stand in different splits
        "sizes": dict(Counter(f"{fact['width']}x{fact['height']}" for fact in sound).most_common()),
        "modes": dict(Counter(fact["mode"] for fact in sound).most_common()),
        "kinds": dict(Counter(fact["kind"] for fact in sound).most_common()),
        "found": manifest.found,  # what the reader counted, also of the files that are in no row
    }, keep


def _allowed(count: int) -> int:
    """How many of a class's `count` files may be bad: 1 %, but at least one and never all."""
    return max(0, min(max(1, count // 100), count - 1))


def _too_blank(facts: list[dict], labels: np.ndarray) -> dict[int, dict]:
    """Blank pictures as problems, by index, in every class that has more of them than is allowed."""
    blank = [i for i, fact in enumerate(facts) if "blank" in (code for code, _ in fact["warnings"])]
    sizes, found = Counter(labels), Counter(labels[i] for i in blank)
    return {i: {"code": "blank", "reason": f"shows one single colour, as {found[labels[i]]} of {sizes[labels[i]]} "
                                           f"pictures of class {labels[i]} do",
                "remedy": "Look at them; remove them if they are failed exports"}
            for i in blank if found[labels[i]] > _allowed(sizes[labels[i]])}


def _not_as_listed(table: pd.DataFrame, facts: list[dict]) -> dict[int, dict]:
    """Files whose digest is not the one in the manifest's column sha256, by index, where it has one."""
    listed = table["sha256"] if "sha256" in table else ()
    return {i: {"code": "changed_file", "reason": "is not the file whose SHA-256 the table lists",
                "remedy": "Restore the file, or correct the column sha256 if the change was meant"}
            for i, digest in enumerate(listed) if digest and facts[i].get("sha256", digest.lower()) != digest.lower()}


def _closing_line(report: dict, seconds: float, see: str) -> str:
    counts, cache = report["counts"], report["cache"]
    done = "Re-used" if cache["reused"] else "Wrote"
    text = f"{counts['kept']:,} of {counts['files']:,} images are sound and distinct"
    out = ", ".join(f"{number:,} {code}" for code, number in counts["by_code"].items())
    odd = sum(counts["warnings"].values())
    text += f"; left out: {out}" if out else ""
    text += f"; {odd:,} warnings" if odd else ""
    if report["groups_sharing_pixels"]:
        text += f"; {len(report['groups_sharing_pixels'])} pictures belong to two groups, see groups_sharing_pixels"
    text += f"; {see}" if out or odd else ""
    rate = "" if cache["reused"] else f", {counts['files'] / seconds:,.0f} images/s"
    return f"{text}. {done} {cache['file']} ({cache['bytes'] / 1e9:.2f} GB) in {seconds:.1f} s{rate}."


def _stop(report: dict, on_bad: str, see: str) -> PathoError | None:
    """The one error for all bad files, if they are to stop the check."""
    problems = report["problems"]
    if problems and on_bad == "error":
        counts = ", ".join(f"{n:,} {code}" for code, n in Counter(p["code"] for p in problems).most_common())
        first = "; ".join(f"{shown(p['path'])} {p['reason']}" for p in problems[:5])
        more = f"; and {len(problems) - 5:,} more" if len(problems) > 5 else ""
        return PathoError("bad_images", f"{len(problems):,} of {report['counts']['files']:,} files",
                          f"{counts} ({first}{more})", f"Correct them, or set on_bad='skip'; {see}")
    lost = [(name, n) for name, n in report["per_class"].items() if n["damaged"] > _allowed(n["files"])]
    if not lost:
        return None
    name, n = lost[0]
    return PathoError("too_many_bad", f"class {name}", f"would lose {n['damaged']:,} of {n['files']:,} files, more "
                      "than 1 %", f"Repair the data: so many bad files are no accident; {see}")


# ------------------------------------------------------------------------------------------------------- batches


@dataclass(frozen=True)
class Batch:
    """Images in training order with what belongs to each; of several processes, one's share of them."""

    images: Any  # (B, S, S, 3) uint8, or what `transform` returned for them
    labels: Any  # (B,) int64 tensor
    rows: np.ndarray  # (B,) index into the ImageSet
    positions: np.ndarray  # (B,) place in `order`: tells two draws of the same image apart
    every_label: Any = None  # those of all processes' images, where it is a share

    @property
    def whole(self) -> Any:
        """The labels of the whole batch, of which these images may be a share."""
        return self.labels if self.every_label is None else self.every_label


def batches(images: ImageSet, order: np.ndarray, size: int, transform: Callable | None = None, workers: int = 1,
            drop_last: bool = False, start: int = 0, share: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
    """Batches of `size` images in the given order, prepared ahead of use by `workers` threads.

    order: (N,) indices into `images`, repeats allowed. transform(images (B, S, S, 3) uint8, rows, positions).
    start: the position to begin at, a multiple of `size`: what a resumed epoch has already seen is not prepared again.
    share: (r, n) gives the r-th of n nearly equal shares of each batch, where images keep their positions; it may be
    empty.
    The batches are the same for any number of workers. An error in a thread is raised here; leaving the loop early
    ends the threads. At most `workers` + 1 batches wait in memory.
    """
    import torch  # only here: a server that decodes images needs no torch

    order = np.asarray(order, dtype=np.int64)
    if order.size and not (0 <= order.min() and order.max() < len(images)):
        raise PathoError("bad_order", "order", f"names image {order.max()} of {len(images)}", "Draw it for this set")
    labels, rows = torch.tensor(images.labels), images.table["row"].to_numpy()
    stop = len(order) - len(order) % size if drop_last else len(order)

    def prepare(first: int) -> Batch:
        every = np.arange(first, min(first + size, stop))
        positions = np.array_split(every, share[1])[share[0]]  # (B,)
        chosen = order[positions]
        gathered = images.pixels[rows[chosen]]  # (B, S, S, 3) uint8, a copy
        made = gathered if transform is None else transform(gathered, chosen, positions)
        return Batch(made, labels[torch.from_numpy(chosen)], chosen, positions, labels[torch.from_numpy(order[every])])

    def named(first: int) -> str:
        paths = images.table["path"].iloc[order[first:min(first + size, stop)]].tolist()
        return f"batch of {', '.join(paths[:3])}{' ...' if len(paths) > 3 else ''}"

    return in_order(prepare, range(start, stop, size), max(1, workers), max(1, workers) + 1, named)


def in_order(work: Callable, items: Iterable, workers: int, ahead: int, named: Callable = str) -> Iterator:
    """Yields work(item) for each item, in order, from threads that are at most `ahead` results early.

    Decoders, hashes, warps and tensor operations release the interpreter lock, so threads suffice. They end with the
    generator: exhausted, closed, dropped, or left by an error. named(item): what an error calls the item.
    Raises PathoError: `out_of_memory`; `loader_timeout` where a result takes longer than PATIENCE, and then the
    threads are left behind, because nothing ends a thread that waits for a dead drive.
    """
    todo, waiting, patience = SimpleQueue(), deque(), PATIENCE

    def serve() -> None:
        while (task := todo.get()) is not None:
            item, future = task
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work(item))
                except BaseException as error:  # whatever it is, it is raised where the result is awaited
                    future.set_exception(error)
            del task, item, future  # a result that was taken is not kept alive while this thread waits

    def take():
        nonlocal patience
        if not wait([waiting[0][1]], patience).done:
            stuck, patience = [named(item) for item, future in waiting if future.running()], 0
            raise PathoError("loader_timeout", "; ".join(stuck), f"gave no result for {PATIENCE:g} seconds",
                             "Check the disk or network drive that holds the images and their cache, or copy both to "
                             "a local one; then run the same again")
        item, future = waiting.popleft()
        try:
            return future.result()
        except Exception as error:
            if not (isinstance(error, MemoryError) or "allocate" in str(error)):  # as torch and OpenCV put it
                raise
            raise PathoError("out_of_memory", named(item), "did not fit into the memory that is left",
                             "Use fewer workers or a smaller batch_size, or close other programs") from error

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(workers)]  # daemons: a hung one ends with us
    for thread in threads:
        thread.start()
    try:
        for item in items:
            waiting.append((item, Future()))
            todo.put(waiting[-1])
            if len(waiting) > ahead:
                yield take()
        while waiting:
            yield take()
    finally:
        for _, future in waiting:
            future.cancel()
        for _ in threads:
            todo.put(None)
        for thread in threads:
            thread.join(patience)
