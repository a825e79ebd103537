"""The one decoder: a file's bytes become an RGB array, or an error that says why not."""

from __future__ import annotations

import io
import os
import re
import stat
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from patholib.base import files
from patholib.base.errors import PathoError, nearest
from patholib.data import endings, jpegscans

MAX_PIXELS = 24_000_000  # decoding takes up to 8 bytes a pixel, and a legal PNG of 145 kB may hold 50 megapixels
MAX_TAGS = 1000  # of a TIFF
MIN_SIDE = 32  # pixels; below it there is nothing to learn from
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
IMAGES = tuple(sorted(set().union(*(endings for kind, (_, endings) in FORMATS.items() if kind != "GIF"))))

AGAIN = "Download or copy the file again"
EXPORT = "Export the picture as PNG first"
# What a file that ends in .png or .jpg turns out to be, in the order in which it is looked for.
NOT_PICTURES = (
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
    (rb"data:image/", "a data URL, not the picture itself", "Decode what stands behind its comma (base64)"),
    (rb"(iVBORw0KGgo|/9j/|UklGR|Qk[01]|SUkqA|TU0AK)[A-Za-z0-9+/=\s]*$", "a picture in base64", "Decode it first"),
    (rb"\0+$", "nothing but zero bytes, as a broken download leaves", AGAIN),
    (rb"[\t\n\r\x20-\x7e]+$", "a text", AGAIN),
)
# Pictures, but of formats that hold too few colours or that Pillow reads only with extra libraries.
OTHER_FORMATS = (
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
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Note(NamedTuple):
    """Something odd about an image that was accepted all the same."""

    code: str
    reason: str


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
        content, name = source.read(most_bytes(max_pixels) + 1), name or "image"
    else:
        name = name or str(source)
        content = read_content(source, name, max_pixels)
    image, seen = decode(content, name, max_pixels)
    image.warnings = [Note(*note) for note in seen["warnings"]]  # type: ignore[attr-defined]  # an attribute of ours
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
        wide, high = (max(1, round(side * size / max(width, height))) for side in (width, height))
        target = (wide, high)
    elif fit != "squeeze":
        raise PathoError(
            "bad_parameter", f"fit={fit!r}", "is not a way to make a square", nearest(fit, ("crop", "pad", "squeeze"))
        )
    # Hamming is as quick as bilinear and nearly as sharp as bicubic when shrinking; bicubic is better at enlarging.
    shrinks = target[0] < box[2] - box[0]
    kernel = Image.Resampling.HAMMING if shrinks else Image.Resampling.BICUBIC
    small = np.asarray(image.resize(target, kernel, box=box))
    if fit != "pad":
        return small
    square = np.zeros((size, size, 3), np.uint8)
    left, top = (size - target[0]) // 2, (size - target[1]) // 2
    square[top : top + target[1], left : left + target[0]] = small
    return square


def read_content(path: Path | str, name: str, max_pixels: int = MAX_PIXELS) -> bytes:
    """The bytes of an image file, once for all that is to be made of them; `read` takes them. Errors: as `read`."""
    return content(Path(path), files.look_at_file(path, name), name, most_bytes(max_pixels))


def most_bytes(max_pixels: int) -> int:
    """The most bytes that a file of so many pixels can need."""
    return 8 * max_pixels + 2**20


def content(path: Path, facts: os.stat_result, name: str, limit: int) -> bytes:
    """The bytes of a file that is still as `facts` says."""
    if facts.st_size > limit:
        raise _too_many_bytes(name, facts.st_size, limit)
    try:
        with path.open("rb") as stream:
            whole = stream.read()
            now = os.fstat(stream.fileno())
    except OSError as error:
        raise files.unread(name, error) from error
    if (len(whole), now.st_mtime_ns) != (facts.st_size, facts.st_mtime_ns):
        raise PathoError(
            "changed_file", name, "changed while it was being read", "Wait until copying has ended and check again"
        )
    return whole


def _too_many_bytes(name: str, count: int, limit: int) -> PathoError:
    return PathoError(
        "too_many_bytes",
        name,
        f"has {count:,} bytes, more than the {limit:,} that are read",
        "Export a smaller picture, or cut the slide into tiles",
    )


def decode(content: bytes, name: str, max_pixels: int) -> tuple[Image.Image, dict]:
    """The upright RGB picture, and what was seen: kind, mode, width, height (as stored), warnings [(code, reason)]."""
    if len(content) > most_bytes(max_pixels):
        raise _too_many_bytes(name, len(content), most_bytes(max_pixels))
    kind = _kind(content, name)
    outline = _outline(content, kind, name)
    image = _header(content, kind, name)
    width, height = image.size
    if width * height > max_pixels:
        raise _too_many_pixels(name, f"{width} x {height}", max_pixels)
    if min(width, height) < MIN_SIDE:
        raise PathoError(
            "too_small",
            name,
            f"is {width} x {height} pixels, below {MIN_SIDE} on a side",
            "Remove it, or export it at its full size",
        )
    mode = image.mode
    if mode not in MODES:
        raise PathoError(
            "unsupported_mode",
            name,
            f"stores its pixels as {mode!r} (more than 8 bits, or no RGB)",
            "Export it as 8-bit RGB, choosing the range of values yourself",
        )
    notes = _load(image, content, outline, kind, name)

    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in FORMATS[kind][1] and any(suffix in endings for _, endings in FORMATS.values()):
        notes.append(("extension_mismatch", f"is a {kind} file although its name ends in {suffix}"))
    if mode in CONVERTED:
        notes.append(CONVERTED[mode])
    if _depth(image, content, kind) > 8:
        notes.append(("depth_reduced", "has 16 bits per channel, of which 8 are kept"))
    if max(width, height) > 4 * min(width, height):
        notes.append(("extreme_aspect", f"is {width} x {height}: a square shows little of it"))
    image = on_white(_upright(image, notes), notes)
    if blank(image):
        notes.append(("blank", "shows one single colour"))
    return image, {"kind": kind, "mode": mode, "width": width, "height": height, "warnings": notes}


def _depth(image: Image.Image, content: bytes, kind: str) -> int:
    """The most bits that a channel has in the file."""
    if kind == "PNG":
        return content[24]  # of IHDR
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return max(image.tag_v2.get(258, (8,)))  # BitsPerSample
    return 8


def is_like_a_picture(path: Path) -> bool:
    """Whether a file begins as a picture does, of a format that is read or not; False where it cannot be opened."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            return False
        with path.open("rb") as stream:
            start = stream.read(64)
    except OSError:
        return False
    magics = [magic for magic, _ in FORMATS.values() if magic != rb"BM"] + [magic for magic, _ in OTHER_FORMATS[:3]]
    return any(re.match(magic, start, re.DOTALL) for magic in (*magics, rb"BM....\0\0\0\0"))


def _kind(content: bytes, name: str) -> str:
    """The format by the first bytes, whatever the name says."""
    if not content:
        raise PathoError("empty", name, "has no bytes", AGAIN)
    start = content[:2048]
    for kind, (magic, _) in FORMATS.items():
        if re.match(magic, start, re.DOTALL):
            return kind
    for magic, what, remedy in NOT_PICTURES:
        if re.match(magic, start, re.DOTALL | re.IGNORECASE):
            raise PathoError("not_an_image", name, f"is {what}", remedy)
    for magic, what in OTHER_FORMATS:
        if re.match(magic, start, re.DOTALL):
            raise PathoError("unsupported_format", name, f"is a picture in {what} format", EXPORT)
    raise PathoError(
        "not_an_image",
        name,
        f"starts with the bytes {start[:8].hex(' ')}, as no known picture does",
        "Remove it, or export it as PNG",
    )


def _outline(content: bytes, kind: str, name: str) -> endings.Outline | ValueError:
    """Where the picture ends, or why that is not known; before Pillow, which reads every part that is announced."""
    try:
        return endings.of(kind, content)
    except endings.Flood as error:
        raise PathoError("unsupported_format", name, f"is a {kind} file of {error}", EXPORT) from error
    except ValueError as error:
        return error


def _header(content: bytes, kind: str, name: str) -> Image.Image:
    """The picture with its header read and no pixel decoded."""
    if kind == "GIF":  # refused in any case, and what follows may be millions of parts
        content = content[: 2**20]
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
        raise PathoError(
            "not_an_image",
            name,
            f"starts like a {kind} file, but its header cannot be read ({'no known variant' if unknown else error})",
            AGAIN,
        ) from error
    if several and "mp" not in image.info:  # a JPEG with further pictures is what phones write: its first counts
        raise PathoError("multi_frame", name, "holds several pictures", "Export each picture to a file of its own")
    if kind == "GIF":
        raise PathoError("unsupported_format", name, "is a GIF, which keeps 256 colours at most", EXPORT)
    return image


def _refuse_many_tags(content: bytes) -> None:
    """Pillow reads every tag that a TIFF announces, which may be millions; scanners write some dozens."""
    order: Literal["little", "big"] = "little" if content[:2] == b"II" else "big"
    wide = b"+" in content[2:4]  # BigTIFF has wider numbers
    at = int.from_bytes(content[8:16] if wide else content[4:8], order)
    count = int.from_bytes(content[at : at + (8 if wide else 2)], order)
    if count > MAX_TAGS:
        raise ValueError(f"{count:,} tags")


def _too_many_pixels(name: str, found: str, limit: int) -> PathoError:
    return PathoError(
        "too_many_pixels",
        name,
        f"announces {found}, more than {limit / 1e6:g} megapixels",
        "Cut it into tiles or export it smaller",
    )


def _load(
    image: Image.Image, content: bytes, outline: endings.Outline | ValueError, kind: str, name: str
) -> list[tuple[str, str]]:
    """Decodes every pixel, or raises `corrupt`; returns notes on what stands around the pixels.

    Pillow accepts a JPEG that has lost a part of its picture, and a PNG whose damage lies behind the last pixel: so the
    file's own structure is followed to its end mark.
    """
    too_much = lacking = False
    try:
        if isinstance(outline, ValueError):
            raise outline
        if kind == "JPEG":
            too_much, lacking = jpegscans.load(image, content, outline.end, outline.scans)
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # OSError, SyntaxError, ValueError, TypeError, struct.error, KeyError ...
        raise PathoError("corrupt", name, f"is a damaged {kind} file ({error})", AGAIN) from error
    if kind == "WEBP":
        too_much = _ends_too_late(image, content)
    notes = [("picture_data_left", "has more picture data than it needs: a part may be damaged")] if too_much else []
    if lacking:
        notes.append(("details_missing", "lacks scans that add details: it may have been cut off"))
    if "mp" in image.info:
        return [*notes, ("multi_frame", "holds several pictures; the first is taken")]
    if outline.end < len(content):
        notes.append(("trailing_data", f"has {len(content) - outline.end:,} bytes behind the picture's end"))
    return notes


def _ends_too_late(image: Image.Image, content: bytes) -> bool:
    """Whether a WebP looks the same with other last bytes: libwebp refuses too few, and ignores too many."""
    try:
        other = Image.open(io.BytesIO(endings.webp_with_other_end(content)), formats=["WEBP"])
        return image.tobytes() == other.tobytes()
    except MemoryError:
        raise
    except Exception:  # as `_header` and `_load`: it cannot do without them
        return False


def _upright(image: Image.Image, notes: list) -> Image.Image:
    """Turned as the camera's orientation tag says, in training and serving alike."""
    try:
        turn = TURNS.get(image.getexif().get(0x0112, 0))
    except Exception:  # Pillow's EXIF parser lets any exception through; the pixels are sound all the same
        notes.append(("exif_unreadable", "has camera data that cannot be read; it is shown as stored"))
        return image
    if turn is None:
        return image
    notes.append(("exif_orientation", "was turned upright as its camera data say"))
    return image.transpose(turn)


def on_white(image: Image.Image, notes: list) -> Image.Image:
    """RGB, with transparency laid on white, the colour of an empty slide."""
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    image = image.convert("RGBA")
    if np.asarray(image.getchannel("A")).min() < 255:
        notes.append(("alpha", "is partly transparent; it was laid on white"))
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    return image.convert("RGB")


def blank(image: Image.Image) -> bool:
    """Is every pixel the same, but for the 2 grey levels that JPEG may add?"""

    def flat(picture):
        return all(high - low <= 2 for low, high in picture.getextrema())

    return flat(image.resize((16, 16), Image.Resampling.NEAREST)) and flat(image)  # the sample spares the full pass


def thumbnail(image: Image.Image, side: int) -> bytes:
    """A small JPEG for a page, at most `side` pixels wide and high."""
    small, stream = image.copy(), io.BytesIO()
    small.thumbnail((side, side))
    small.save(stream, "JPEG", quality=85)
    return stream.getvalue()
