"""Small images and data sets, sound, odd and bad, made on the spot: no test needs a binary file in the repository."""

from __future__ import annotations

import functools
import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageEnhance

from patholib.base import files
from patholib.data import decoding, jpegscans
from patholib.data.manifest import Manifest
from patholib.data.readers import isic2019, table

# ---------------------------------------------------------------------------------------------------------- images


def picture(seed=0, width=70, height=46, mode="RGB"):
    """A smooth random picture."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@functools.cache
def textured(seed: int, side: int = 192) -> Image.Image:
    """A cloudy texture, cells, or one spot in the middle of a field, by turns."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side - 0.5
    pitch = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side))) + 1 / side

    def cloud(roughness: float) -> np.ndarray:
        field = np.fft.ifft2(np.fft.fft2(rng.standard_normal((side, side))) / pitch**roughness).real
        return (field - field.mean()) / field.std()

    if seed % 3 == 0:
        grey = 140 + 30 * cloud(rng.uniform(0.8, 1.6))
    elif seed % 3 == 1:
        grey = 200 + 8 * cloud(1)
        for _ in range(int(rng.integers(40, 120))):
            down, across = rng.uniform(-0.5, 0.5, 2)
            size = rng.uniform(0.01, 0.03)
            grey -= rng.uniform(40, 90) * np.exp(-((x - across) ** 2 + (y - down) ** 2) / size**2)
    else:
        radius, stretch = rng.uniform(0.08, 0.3), rng.uniform(0.7, 1.4)
        away = np.hypot(x * stretch, y / stretch) + 0.09 * radius * cloud(1.5)
        grey = 190 + 6 * cloud(1.2) - rng.uniform(50, 110) / (1 + np.exp((away - radius) / 0.015))
    return Image.fromarray(np.stack([grey, 0.8 * grey, 0.85 * grey], -1).clip(0, 255).astype(np.uint8))


def copied(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Scaled by 0.5 to 2 each way, turned, brightened by up to 15 %, saved as JPEG of quality 30 to 95."""
    scale = np.exp(rng.uniform(np.log(0.5), np.log(2), 2))
    size = tuple(max(decoding.MIN_SIDE, round(side * by)) for side, by in zip(image.size, scale, strict=True))
    image = image.resize(size, Image.Resampling(int(rng.choice([1, 2, 3, 4, 5]))))  # all but the nearest pixel
    turn = (None, *Image.Transpose)[rng.integers(8)]
    image = image if turn is None else image.transpose(turn)
    image = ImageEnhance.Contrast(ImageEnhance.Brightness(image).enhance(rng.uniform(0.85, 1.15))).enhance(
        rng.uniform(0.9, 1.1)
    )
    return decoding.read(encoded(image, "JPEG", quality=int(rng.integers(30, 96))))


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width, height, depth=8, colour=2, rows=b"", extra=b""):
    """A PNG with any header, whatever stands behind it."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(further=0, directories=1):
    """A TIFF of 40 x 40 grey pixels, with so many more tags in each directory, which stands there so many times."""
    fields = {256: 40, 257: 40, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 40, 279: 1600}
    fields |= {40_000 + i: 1 for i in range(further)}
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    starts = [8 + i * (len(tags) + 6) for i in range(directories)] + [0]  # the last one refers to none
    return (
        b"II*\0\x08\0\0\0"
        + b"".join(struct.pack("<H", len(fields)) + tags + struct.pack("<I", after) for after in starts[1:])
        + bytes(1600)
    )


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


PNG, JPEG = encoded(picture()), encoded(picture(width=200, height=150), "JPEG", quality=95)
SEVERAL = {"save_all": True, "append_images": [picture(1)]}
DEEP = Image.fromarray(np.full((40, 40), 999, np.uint16))
BOMB = zlib.compress(bytes(30_000_000))

# What is refused: id: (input, file name, content, code).
REFUSED = {
    "D01-empty": ("file of zero bytes", "a.png", b"", "empty"),
    "D02-byte": ("one byte, named .png", "a.png", b"x", "not_an_image"),
    "D02-zeros": ("zero bytes only, named .png", "a.png", bytes(500), "not_an_image"),
    "D02-noise": ("random bytes, named .png", "a.png", bytes(range(128, 256)), "not_an_image"),
    "D02-text": ("text, named .jpg", "a.jpg", b"image not available", "not_an_image"),
    "D02-html": (
        "web page (404), named .jpg",
        "a.jpg",
        b"\n<!DOCTYPE html><html><title>404</title></html>",
        "not_an_image",
    ),
    "D02-xml": (
        "XML of a server's error, named .jpg",
        "a.jpg",
        b'<?xml version="1.0"?><Error><Code>No</Code></Error>',
        "not_an_image",
    ),
    "D02-lfs": (
        "git-LFS pointer, named .png",
        "a.png",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
        "not_an_image",
    ),
    "D02-svg": (
        "SVG drawing, named .png",
        "a.png",
        b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
        "not_an_image",
    ),
    "D02-pdf": ("PDF, named .png", "a.png", b"%PDF-1.7\n", "not_an_image"),
    "D02-eps": ("EPS, named .png", "a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n", "not_an_image"),
    "D02-zip": ("ZIP archive, named .png", "a.png", b"PK\x03\x04" + bytes(30), "not_an_image"),
    "D02-pickle": ("Python pickle, named .png", "a.png", b"\x80\x04\x95" + bytes(30), "not_an_image"),
    "D02-dicom": ("DICOM, named .png", "a.png", bytes(128) + b"DICM" + bytes(50), "not_an_image"),
    "D02-jpeg2000": ("JPEG 2000, named .jpg", "a.jpg", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99), "unsupported_format"),
    "D02-heic": ("HEIC of a phone, named .jpg", "a.jpg", b"\0\0\0\x18ftypheic" + bytes(99), "unsupported_format"),
    "D02-gif": ("GIF of one picture, named .png", "a.png", encoded(picture(), "GIF"), "unsupported_format"),
    "D03-20-bytes": ("PNG cut off after 20 bytes", "a.png", PNG[:20], "not_an_image"),
    "D03-half": ("PNG cut off in the middle", "a.png", PNG[: len(PNG) // 2], "corrupt"),
    "D03-99-percent": ("PNG cut off at 99 %", "a.png", PNG[: len(PNG) * 99 // 100], "corrupt"),
    "D03-end": ("PNG without its end chunk", "a.png", PNG[:-12], "corrupt"),
    "D03-webp": ("WebP cut off", "a.webp", encoded(picture(), "WEBP")[:-40], "not_an_image"),
    "D03-bmp": ("BMP cut off", "a.bmp", encoded(picture(), "BMP")[:-400], "corrupt"),
    "D03-tiff": ("TIFF cut off", "a.tif", tiff()[:-400], "corrupt"),
    "D04-half": ("JPEG cut off in the middle", "a.jpg", JPEG[: len(JPEG) // 2], "corrupt"),
    "D04-99-percent": ("JPEG cut off at 99 %", "a.jpg", JPEG[: len(JPEG) * 99 // 100], "corrupt"),
    "D04-end": ("JPEG without its end marker", "a.jpg", JPEG[:-2], "corrupt"),
    "D04-zeros": ("JPEG that ends in zero bytes", "a.jpg", JPEG[:-500] + bytes(500), "corrupt"),
    "D05-pixels": ("PNG with one flipped bit in the pixels", "a.png", flipped(PNG, PNG.index(b"IDAT") + 99), "corrupt"),
    "D05-header": ("PNG with a wrong check sum of its header", "a.png", flipped(PNG, 30), "not_an_image"),
    "D11-grey": ("16-bit grey PNG", "a.png", encoded(DEEP), "unsupported_mode"),
    "D11-float": (
        "float TIFF",
        "a.tif",
        encoded(Image.fromarray(np.ones((40, 40), np.float32)), "TIFF"),
        "unsupported_mode",
    ),
    "D11-lab": ("LAB TIFF", "a.tif", encoded(Image.new("LAB", (40, 40)), "TIFF"), "unsupported_mode"),
    "D14-gif": ("animated GIF", "a.gif", encoded(picture(), "GIF", **SEVERAL), "multi_frame"),
    "D14-webp": ("animated WebP", "a.webp", encoded(picture(), "WEBP", **SEVERAL), "multi_frame"),
    "D14-apng": ("animated PNG", "a.png", encoded(picture(), **SEVERAL), "multi_frame"),
    "D14-tiff": ("TIFF of two pages", "a.tif", encoded(picture(), "TIFF", **SEVERAL), "multi_frame"),
    "D15-pixel": ("picture of 1 x 1", "a.png", encoded(Image.new("RGB", (1, 1))), "too_small"),
    "D15-line": ("picture of 1 x 5000", "a.png", encoded(Image.new("RGB", (1, 5000))), "too_small"),
    "D15-nothing": ("PNG that announces 0 x 0", "a.png", png(0, 0), "not_an_image"),
}

# Small files that announce a lot: refused from the header.
BOMBS = {
    "D16-50k": ("PNG of 50,000 x 50,000", "a.png", png(50_000, 50_000, rows=bytes(7_000_000)), "too_many_pixels"),
    "D16-12k": ("PNG of 12,000 x 12,000", "a.png", png(12_000, 12_000, rows=bytes(5_000_000)), "too_many_pixels"),
    "D16-cap": ("PNG just above 24 megapixels", "a.png", png(6000, 4001), "too_many_pixels"),
    "D16-jpeg": (
        "JPEG that announces 65,500 x 65,500",
        "a.jpg",
        JPEG[: JPEG.index(b"\xff\xc0") + 5] + b"\xff\xdc\xff\xdc" + JPEG[JPEG.index(b"\xff\xc0") + 9 :],
        "too_many_pixels",
    ),
    "D17-ztxt": (
        "PNG with 30 MB of compressed text",
        "a.png",
        png(40, 40, extra=chunk(b"zTXt", b"a\0\0" + BOMB)),
        "not_an_image",
    ),
    "D17-iccp": (
        "PNG with a colour profile of 30 MB",
        "a.png",
        png(40, 40, extra=chunk(b"iCCP", b"a\0\0" + BOMB)),
        "not_an_image",
    ),
    "D17-tags": ("TIFF of 20,000 tags", "a.tif", tiff(further=20_000), "not_an_image"),
    "D17-pages": ("TIFF of 20,000 pages", "a.tif", tiff(directories=20_000), "multi_frame"),
}

# What is accepted: id: (input, file name, content, notes).
RED = Image.new("RGB", (40, 40), (200, 30, 60))
RED.paste((10, 20, 30), (5, 5, 30, 30))
ACCEPTED = {
    "D06-png": ("PNG with bytes behind its end", "a.png", PNG + b"behind", ["trailing_data"]),
    "D06-zip": ("PNG that is a ZIP archive, too", "a.png", PNG + b"PK\x03\x04" + bytes(30), ["trailing_data"]),
    "D06-jpeg": ("JPEG with bytes behind its end", "a.jpg", JPEG + bytes(10), ["trailing_data"]),
    "D07-png": ("PNG named .jpg", "a.jpg", PNG, ["extension_mismatch"]),
    "D07-jpeg": ("JPEG named .png", "a.png", JPEG, ["extension_mismatch"]),
    "D08-PNG": ("PNG named .PNG", "a.PNG", PNG, []),
    "D08-JPG": ("JPEG named .JPG", "a.JPG", JPEG, []),
    "D08-jpeg": ("JPEG named .jpeg", "a.jpeg", JPEG, []),
    "D08-JPEG": ("JPEG named .JPEG", "a.JPEG", JPEG, []),
    "D08-double": ("JPEG named .png.jpg", "a.png.jpg", JPEG, []),
    "D09-1": ("black-and-white PNG", "a.png", encoded(RED.convert("1")), ["greyscale"]),
    "D09-L": ("grey PNG", "a.png", encoded(RED.convert("L")), ["greyscale"]),
    "D09-LA": ("grey PNG with an opaque alpha channel", "a.png", encoded(RED.convert("LA")), ["greyscale"]),
    "D09-P": ("PNG with a palette", "a.png", encoded(RED.convert("P")), ["palette"]),
    "D09-RGBA": ("PNG with an opaque alpha channel", "a.png", encoded(RED.convert("RGBA")), []),
    "D09-YCbCr": ("YCbCr TIFF", "a.tif", encoded(RED.convert("YCbCr"), "TIFF"), []),
    "D10-cmyk": ("CMYK JPEG", "a.jpg", encoded(RED.convert("CMYK"), "JPEG"), ["cmyk"]),
    "D12-48-bit": (
        "48-bit colour PNG",
        "a.png",
        png(40, 40, 16, 2, rows=(b"\0" + bytes(range(240))) * 40),
        ["depth_reduced"],
    ),
    "D14-mpo": (
        "JPEG with a second picture, as phones write",
        "a.jpg",
        encoded(picture(3), "MPO", **SEVERAL),
        ["multi_frame"],
    ),
    "D18-black": ("one black picture", "a.png", encoded(Image.new("RGB", (40, 40))), ["blank"]),
    "D18-white": ("one white picture", "a.png", encoded(Image.new("RGB", (40, 40), "white")), ["blank"]),
    "D18-clear": (
        "one fully transparent picture",
        "a.png",
        encoded(Image.new("RGBA", (40, 40), (9, 9, 9, 0))),
        ["alpha", "blank"],
    ),
}

# ------------------------------------------------------------------------------------------------------- data sets


def put(folder, *paths):
    """Empty files: the readers look at names, the image check at pixels."""
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"")
    return folder


BENIGN = "benign/SOB/adenosis/SOB_B_A_14-22549AB/40X/SOB_B_A-14-22549AB-40-001.png"
MALIGNANT = "malignant/SOB/ductal_carcinoma/SOB_M_DC_14-2523/100X/SOB_M_DC-14-2523-100-010.png"
BREAST = "BreaKHis_v1/histology_slides/breast"


def breakhis_tree(folder):
    """The official tree of BreakHis, as it is unpacked, with one file of each class."""
    return put(folder, f"{BREAST}/{BENIGN}", f"{BREAST}/{MALIGNANT}")


ISIC_HEAD = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK\n"
ISIC_ROWS = [  # image, label, age, site, lesion, sex
    ("ISIC_1", "NV", "55.0", "head/neck", "L1", "male"),
    ("ISIC_2_downsampled", "NV", "", "", "", ""),
    ("ISIC_2", "NV", "25", "palms/soles", "L2", "female"),
    ("ISIC_3", "MEL", "85", "", "L3", "male"),
    ("ISIC_4", "MEL", "0", "", "", "female"),
    ("ISIC_5_downsampled", "MEL", "5", "", "", "female"),
]


def one_hot(image, label):
    return f"{image}," + ",".join("1.0" if c == label else "0.0" for c in (*isic2019.CLASSES, "UNK")) + "\n"


def isic(folder, rows=ISIC_ROWS, truth=None, files=None, ending=".jpg"):
    """The two tables of ISIC 2019 and empty files. truth: the text of GroundTruth; files: the names there are."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / isic2019.TRUTH).write_text(truth or ISIC_HEAD + "".join(one_hot(row[0], row[1]) for row in rows))
    (folder / isic2019.METADATA).write_text(
        "image,age_approx,anatom_site_general,lesion_id,sex\n"
        + "".join(f"{i},{a},{s},{le},{x}\n" for i, _, a, s, le, x in rows)
    )
    put(folder, *(f"{isic2019.INPUT}/{name}{ending}" for name in (files or [row[0] for row in rows])))
    return folder


# The layout of every reader's data set, by the reader's name: what makes one in a folder and returns where it begins.
LAYOUTS = {"breakhis": lambda folder: breakhis_tree(folder) / BREAST, "isic2019": isic}


def own(folder, text, names=("a.png", "b.png", "c/d.png"), encoding="utf-8"):
    """A CSV of one's own and empty files."""
    put(folder, *names)
    (folder / "my.csv").write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return folder / "my.csv"


def own_set(folder, contents, **columns) -> Manifest:
    """The manifest of a CSV over files {path: bytes}: class by the first letter of the name, a group for each."""
    for path, content in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    rows = {
        "path": list(contents),
        "label": [f"class {path.rpartition('/')[2][0]}" for path in contents],
        "group": [f"group of {i}" for i in range(len(contents))],
    } | columns
    files.write_table(folder / "my.csv", table.pd.DataFrame(rows))
    return table.read(folder / "my.csv")


def sound(count=8, first=0):
    """Pictures a00.png, b01.png, a02.png ..., all different, by path."""
    return {f"{'ab'[i % 2]}{i:02}.png": encoded(picture(i)) for i in range(first, first + count)}


# ------------------------------------------------------------------------------------------------- damaged pictures


def scan_of(jpeg: bytes) -> tuple[int, int]:
    """Where the picture data of a JPEG begins and ends."""
    scans = jpegscans.outline(jpeg)[1]
    return scans[0].intervals[0][0], scans[-1].intervals[-1][1]


# What happens to files, by name: (picture data, end marker and all) -> the same with a part lost; the end marker stays.
LOST = {
    "half of its picture data": lambda c, a, e: c[: (a + e) // 2] + c[e:],
    "its last tenth": lambda c, a, e: c[: e - (e - a) // 10] + c[e:],
    "a part in the middle": lambda c, a, e: c[: a + (e - a) // 3] + c[a + (e - a) // 2 :],
    "512 bytes, which are zeros": lambda c, a, e: c[: (a + e) // 2] + bytes(512) + c[(a + e) // 2 + 512 :],
}


def many_scans(times: int, side: int = 64) -> bytes:
    """A progressive JPEG whose last scan stands there so often."""
    whole = encoded(picture(1, side, side), "JPEG", progressive=True, quality=90 if side < 1000 else 1)
    last = whole.rfind(b"\xff\xda")
    return whole[:last] + whole[last:-2] * times + whole[-2:]


def many_chunks(times: int) -> bytes:
    """A PNG with so many empty chunks before its pixels."""
    return png(40, 40, rows=(b"\0" + bytes(range(120))) * 40, extra=chunk(b"tEXt", b"") * times)
