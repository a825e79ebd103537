"""From image files to training batches, against what people would use instead; writes three sections of RESULTS.md.

  python3 run.py bench input            input pipeline, augmentation, scale: about five minutes on two cores
  python3 run.py bench input --quick    the same in miniature; judges and writes nothing

Every loader stands here in its usual documented form, for batches of 32 at 224 pixels with two workers.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import cv2
import literal
import numpy as np
import torch
from harness import ROOT, Mark, bars, best, compare, markdown, rate_table, ratio, section, spread, with_rivals
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets as vision
from torchvision.transforms import v2

from patholib.data import batching, checking, splitting
from patholib.data.readers import table
from patholib.model import augment, recipes

SIDE, BATCH, WORKERS = 224, 32, 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet
OURS, PUBLISHED = "patholib", "published loader"
COMMAND = "python3 run.py bench input"

# How many pictures, how large, with how much noise, in what files: as slow to decode as those of the data sets.
SETS = {
    "BreakHis, PNG 700 x 460": (400, (700, 460), 2.0, ".png", {"compress_level": 6}),
    "ISIC, JPEG 1024 x 1024": (200, (1024, 1024), 4.0, ".jpg", {"quality": 90}),
}
WHY_SLOWER = {  # profiled on one core
    "BreakHis, PNG 700 x 460": "Of 9.5 ms a file, 7.3 are decoding, 1.1 shrinking to 256 pixels, 0.6 two digests of "
    "the pixels and 0.3 SHA-256 and the file's own check sums; then the cache goes to disk.",
    "ISIC, JPEG 1024 x 1024": "Of 7 ms a file, 2.8 are decoding and 3.2 shrinking, which averages over all of the "
    "megapixel. Decoding at half the size would spare both, for other pixels (52 dB).",
}
PIPELINE = {
    kind: (
        Mark(f"{kind}: patholib against the published loader", 15),
        Mark(f"{kind}: patholib against the best rival", 3),
        Mark(f"{kind}: check and cache against decoding alone, in time", 1.15, most=True, reason=WHY_SLOWER[kind]),
        Mark(f"{kind}: reading 32 random images from the cache against decoding them", 100),
    )
    for kind in SETS
}
AUGMENTATION = (
    Mark("augmentation on one core against albumentations", 3),
    Mark("picture quality (PSNR to an ideal warp) above that of the published chain", 8, "dB"),
)
SCALE = (
    Mark("time per image of check and cache, 100,000 images against 1,000", 1.3, most=True),
    Mark("time per image of training batches, 100,000 images against 1,000", 1.3, most=True),
    Mark("time to the first batch of 100,000 images once the cache exists", 5, "s", most=True),
    Mark("time of `import patholib`", 1, "s", most=True),
    Mark("time of `python -m patholib --help`", 1, "s", most=True),
)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="in miniature, writes nothing")
    parser.add_argument("--first-batch", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)  # for `measured`
    options = parser.parse_args(arguments)
    if options.first_batch:
        return first_batch(options.first_batch)
    with_rivals()
    codes = []
    with tempfile.TemporaryDirectory(prefix="patholib-") as folder:
        os.environ["PATHOLIB_OUTPUTS"] = str(Path(folder, "outputs"))
        for name, (title, rivals, measure) in SECTIONS.items():
            text, judged = measure(Path(folder, name), options.quick)
            if options.quick:
                print(text)
            else:
                codes.append(section(name, title, COMMAND, text, judged, rivals))
    return max(codes, default=0)


# --- images ---


def texture(rng: np.random.Generator, width: int, height: int, noise: float) -> np.ndarray:
    """Coloured clouds at all scales with sensor noise, (height, width, 3) uint8, about as compressible as tissue."""
    field = np.zeros((height, width, 3), np.float32)
    for cells in (4, 10, 25, 60, 150):
        coarse = rng.standard_normal((max(2, cells * height // width), cells, 3)).astype(np.float32)
        field += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) * (28 / cells**0.35)
    field += noise * rng.standard_normal(field.shape, np.float32) + np.float32([190, 140, 175])
    return field.clip(0, 255).astype(np.uint8)


def write_images(folder: Path, count: int, size: tuple[int, int], noise: float, suffix: str, **options) -> None:
    """`count` textures in two folders of classes, and a labels.csv that lists them, ten to a patient."""

    def write(i: int) -> None:
        picture = Image.fromarray(texture(np.random.default_rng(i), *size, noise))
        picture.save(folder / f"{'ab'[i % 2]}" / f"{i:06}{suffix}", **options)

    for name in "ab":
        (folder / name).mkdir(parents=True)
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(write, range(count)))
    lines = [f"{'ab'[i % 2]}/{i:06}{suffix},{'ab'[i % 2]},{i // 20}-{i % 2}" for i in range(count)]
    (folder / "labels.csv").write_text("\n".join(["path,label,group", *lines]) + "\n", encoding="utf-8")


def check(folder: Path, size: int = recipes.BREAKHIS.cache_size, cache: str = "cache") -> checking.Checked:
    with contextlib.redirect_stdout(io.StringIO()):
        return checking.check(
            table.read(folder / "labels.csv"),
            size,
            cache_dir=folder / cache,
            workers=WORKERS,
            progress=False,
            report_dir=folder / "report",
        )


# --- the input pipeline ---


def listed(folder: Path, dataset: type[Dataset], transform: Callable) -> Dataset:
    """A data set of the pictures with their labels, 0 or 1."""
    paths = sorted(folder.glob("[ab]/*"))
    return dataset(paths, [path.parent.name == "b" for path in paths], transform)


def published(folder: Path, kind: str):
    breakhis = kind.startswith("BreakHis")
    transform = literal.BREAKHIS if breakhis else literal.ISIC
    return literal.loader(listed(folder, literal.Images, transform), BATCH, balanced=breakhis, workers=WORKERS)


def torchvision_reference(folder: Path, _: str):
    """torchvision's references/classification: preset of 224 pixels, v2 transforms on PIL pictures."""
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(SIDE, antialias=True),
            v2.RandomHorizontalFlip(0.5),
            v2.PILToTensor(),
            v2.ToDtype(torch.float, scale=True),
            v2.Normalize(MEAN, STD),
            v2.ToPureTensor(),
        ]
    )
    return DataLoader(
        vision.ImageFolder(folder, transform, is_valid_file=is_picture, allow_empty=True),
        batch_size=BATCH,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
        drop_last=True,
    )


def is_picture(path: str) -> bool:
    return path.endswith((".png", ".jpg")) and Path(path).parent.name in ("a", "b")


class OpenCVImages(literal.Images):
    """As in the classification example of albumentations: read with OpenCV, colours turned to RGB."""

    def __getitem__(self, i: int):
        image = cv2.cvtColor(cv2.imread(self.paths[i]), cv2.COLOR_BGR2RGB)
        return self.transform(image=image)["image"], self.labels[i]


def albumentations_example(folder: Path, _: str):
    import albumentations as A

    transform = A.Compose(
        [
            A.SmallestMaxSize(max_size=256),
            A.Affine(translate_percent=0.05, scale=(0.95, 1.05), rotate=(-15, 15), p=0.5),
            A.RandomCrop(height=SIDE, width=SIDE),
            A.RGBShift(15, 15, 15, p=0.5),
            A.RandomBrightnessContrast(p=0.5),
            A.Normalize(MEAN, STD),
            A.ToTensorV2(),
        ]
    )
    return DataLoader(
        listed(folder, OpenCVImages, transform),
        batch_size=BATCH,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
        drop_last=True,
    )


def timm_loader(folder: Path, _: str):
    from timm.data import create_dataset, create_loader

    dataset = create_dataset("", root=folder, class_map={"a": 0, "b": 1})
    return create_loader(
        dataset,
        input_size=(3, SIDE, SIDE),
        batch_size=BATCH,
        is_training=True,
        num_workers=WORKERS,
        device=torch.device("cpu"),
        pin_memory=torch.cuda.is_available(),
    )


def fastai_loaders(folder: Path, _: str):
    from fastai.vision.all import ImageDataLoaders, Normalize, Resize, aug_transforms, imagenet_stats

    loaders = ImageDataLoaders.from_path_func(
        folder,
        sorted(folder.glob("[ab]/*")),
        lambda path: path.parent.name,
        valid_pct=BATCH / 1000,
        bs=BATCH,
        num_workers=WORKERS,
        item_tfms=Resize(460),
        device=torch.device("cpu"),
        batch_tfms=[*aug_transforms(size=SIDE), Normalize.from_stats(*imagenet_stats)],
    )
    return loaders.train


def patholib_batches(folder: Path, kind: str):
    """The cache of the data check and the recipe's augmentation, and then what the model does first: normalise."""
    found = check(folder)
    part = found.images.with_split(splitting.split(found.manifest))
    recipe = recipes.BREAKHIS if kind.startswith("BreakHis") else recipes.ISIC2019

    def views(pixels, rows, positions):
        return normalised(augment.training_views(pixels, SIDE, recipe.augmentation, 0, 0, positions, rows))

    class Epochs:
        """Ten epochs in one go: one alone would be over in a tenth of a second."""

        def __iter__(self):
            order = np.concatenate([np.random.default_rng(e).permutation(len(part)) for e in range(10)])
            return ((b.images, b.labels) for b in batching.batches(part, order, BATCH, views, WORKERS, drop_last=True))

    return Epochs()


def normalised(views: torch.Tensor) -> torch.Tensor:
    """What the other loaders end with, in place; patholib leaves it to the model, on its device."""
    mean, std = (torch.tensor(values).repeat(SIDE) for values in (MEAN, STD))  # a whole row of pixels, as stored
    views.permute(0, 2, 3, 1).flatten(2).sub_(mean).div_(std)
    return views


LOADERS = {
    PUBLISHED: published,
    "torchvision v2": torchvision_reference,
    "albumentations": albumentations_example,
    "timm": timm_loader,
    "fastai": fastai_loaders,
    OURS: patholib_batches,
}


def epoch(loader) -> Callable[[], int]:
    """A case for `compare`: one pass through a loader; the number of images in its batches of (images, labels)."""

    def run() -> int:
        count = 0
        for pictures, _ in loader:
            if tuple(pictures.shape[1:]) != (3, SIDE, SIDE):
                raise ValueError(f"a batch of {tuple(pictures.shape)}")
            count += len(pictures)
        return count

    return run


def pipeline(folder: Path, quick: bool, loaders: dict = LOADERS) -> tuple[str, list]:
    rounds = 1 if quick else 3
    text, judged, tables = [], [], {}
    for kind, (count, size, noise, suffix, options) in SETS.items():
        here = folder / suffix[1:]
        count = 2 * BATCH if quick else count
        write_images(here, count, size, noise, suffix, **options)
        found = compare({name: epoch(make(here, kind)) for name, make in loaders.items()}, rounds, warmup=1)
        rivals = [name for name in loaders if name not in (PUBLISHED, OURS)]
        build, read = building(here, rounds), reading(here, rounds)
        reached = (
            ratio(found, OURS, PUBLISHED)[0],
            ratio(found, OURS, best(found, rivals))[0],
            ratio(build, "decoding alone", "check and cache")[0],
            ratio(read, "cache", "decoding")[0],
        )
        judged += zip(PIPELINE[kind], reached, strict=True)
        tables[kind] = found
        bytes_each = sum(path.stat().st_size for path in here.glob("[ab]/*")) / count
        text += [
            f"### {kind}",
            "",
            f"{count} generated pictures of {bytes_each / 1e3:.0f} kB on average, two workers, "
            "batches of 32, from files to normalised tensors; for patholib the cache exists, as after the data "
            "check. Medians of the rounds.",
            "",
            *rate_table(found),
            "",
            *rate_table(build, "files/s"),
            "",
            *rate_table(read),
            "",
        ]
    if not quick:
        picture = bars(ROOT / "benchmarks" / "input.png", tables, "Input pipeline, times the published loader")
        text += [f"![Input pipeline, times the published loader]({picture.name})"]
    return "\n".join(text), judged


def building(folder: Path, rounds: int):
    """Decoding every file with Pillow, against the whole check, which also verifies, hashes, shrinks and caches."""
    paths, turn = sorted(folder.glob("[ab]/*")), iter(range(1000))

    def decode(path: Path) -> None:
        with Image.open(path) as image:
            image.load()

    def bare() -> int:
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(decode, paths))
        return len(paths)

    def whole() -> int:
        check(folder, cache=f"build-{next(turn)}")
        return len(paths)

    return compare({"decoding alone": bare, "check and cache": whole}, rounds, warmup=0)


def reading(folder: Path, rounds: int):
    """32 random images on one core: decoded from their files, or copied out of the cache."""
    paths, pixels = sorted(folder.glob("[ab]/*")), check(folder).images.pixels
    rng = np.random.default_rng(0)

    def decode() -> int:
        for i in rng.integers(0, len(paths), BATCH):
            np.asarray(Image.open(paths[i]).convert("RGB"))
        return BATCH

    def copy() -> int:
        for _ in range(20):
            pixels[rng.integers(0, len(paths), BATCH)]
        return 20 * BATCH

    return compare({"decoding": decode, "cache": copy}, rounds)


# --- augmentation ---


def augmenting(_: Path, quick: bool, names: tuple[str, ...] = ("albumentations",)) -> tuple[str, list]:
    rng = np.random.default_rng(0)
    side = recipes.BREAKHIS.cache_size
    cached = np.stack([texture(rng, side, side, 2.0) for _ in range(BATCH)])  # (B, 256, 256, 3)
    small = [np.ascontiguousarray(image[16:-16, 16:-16]) for image in cached]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        found = compare(augmentations(cached, small, names), 1 if quick else 7)
    finally:
        torch.set_num_threads(threads)
    quality = {
        name: psnr(cached, recipe)
        for name, recipe in (("published chain", recipes.as_published("breakhis")), ("one warp", recipes.BREAKHIS))
    }
    gain = quality["one warp"][0] - quality["published chain"][0]
    rows = [[name, *(f"{value:.1f}" for value in values)] for name, values in quality.items()]
    text = [
        "The augmentation of the BreakHis recipe (affine, rotation, flips, perspective, brightness, contrast, "
        "saturation, hue), from decoded pictures to normalised tensors of 224 pixels, on one core.",
        "",
        *rate_table(found),
        "",
        "What the interpolation loses: PSNR in dB of the augmented picture (geometry only, away from the border) "
        "to the same geometry applied once to a four times finer picture.",
        "",
        *markdown(["", "median PSNR, dB", "least", "greatest"], rows),
    ]
    judged = [(AUGMENTATION[1], gain)]
    if "albumentations" in found.index:
        judged.insert(0, (AUGMENTATION[0], ratio(found, OURS, "albumentations")[0]))
    return "\n".join(text), judged


def augmentations(cached: np.ndarray, small: list[np.ndarray], names: tuple[str, ...]) -> dict[str, Callable[[], int]]:
    """Cases for `compare`, each over a batch."""
    tensors = v2.Compose(
        [
            v2.RandomAffine(15, (0.1, 0.1), (0.85, 1.15), 5),
            v2.RandomRotation(20),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.RandomPerspective(0.2, p=0.3),
            v2.ColorJitter(0.2, 0.2, 0.15, 0.05),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    pictures = [Image.fromarray(image) for image in small]
    planes = [torch.from_numpy(image).permute(2, 0, 1) for image in small]
    rows = np.arange(len(cached))

    def ours() -> int:
        normalised(augment.training_views(cached, SIDE, recipes.BREAKHIS.augmentation, 0, 0, rows, rows))
        return len(cached)

    cases = {
        "torchvision on PIL, as published": lambda: len([literal.BREAKHIS(picture) for picture in pictures]),
        "torchvision v2 on tensors": lambda: len([tensors(plane) for plane in planes]),
    }
    if "albumentations" in names:
        import albumentations as A

        composed = A.Compose(
            [
                A.Affine(rotate=(-15, 15), translate_percent=(-0.1, 0.1), scale=(0.85, 1.15), shear=(-5, 5), p=1),
                A.Rotate(20, p=1),
                A.HorizontalFlip(),
                A.VerticalFlip(),
                A.Perspective((0.05, 0.1), p=0.3),
                A.ColorJitter((0.8, 1.2), (0.8, 1.2), (0.85, 1.15), (-0.05, 0.05), p=1),
                A.Normalize(MEAN, STD),
                A.ToTensorV2(),
            ]
        )
        cases["albumentations"] = lambda: len([composed(image=image) for image in small])
    return cases | {OURS: ours}


def psnr(cached: np.ndarray, recipe: recipes.Recipe, fine: int = 4) -> tuple[float, float, float]:
    """Median, least and greatest PSNR in dB of geometrically augmented views to an ideal warp of the same pictures.

    The ideal takes each view pixel, by bicubic interpolation, from the picture enlarged `fine` times with a Lanczos
    filter. Only pixels count that no step has brought from within 8 pixels of the picture's border, or from outside.
    """
    geometry_only = replace(recipe.augmentation, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, noise=0.0)
    margin = (cached.shape[1] - recipe.cache_size) // 2
    pictures = np.ascontiguousarray(cached[:, margin : margin + recipe.cache_size, margin : margin + recipe.cache_size])
    side, rows = recipe.cache_size, np.arange(len(cached))
    views = augment.training_views(pictures, SIDE, geometry_only, 0, 0, rows, rows)
    forward = np.eye(3)[None]
    for _, step in augment.geometry(augment.uniform(0, 0, rows, rows), geometry_only, SIDE):
        forward = step @ forward
    taken = np.broadcast_to(augment.sampling(forward, side, SIDE), (len(cached), 3, 3))
    half = (fine - 1) / 2  # pixels are told by their centres
    finer = np.array([[fine, 0, half], [0, fine, half], [0, 0, 1]])
    inside = np.zeros((side, side, 3), np.uint8)
    inside[8:-8, 8:-8] = 255
    kept = augment.training_views(np.broadcast_to(inside, pictures.shape), SIDE, geometry_only, 0, 0, rows, rows)
    found = []
    for picture, view, mask, matrix in zip(pictures, views, kept[:, 0].numpy(), taken, strict=True):
        large = cv2.resize(picture.astype(np.float32), None, fx=fine, fy=fine, interpolation=cv2.INTER_LANCZOS4)
        ideal = cv2.warpPerspective(large, finer @ matrix, (SIDE, SIDE), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)
        counts = cv2.warpPerspective(inside, matrix, (SIDE, SIDE), flags=cv2.WARP_INVERSE_MAP)[..., 0]
        counts = cv2.erode(np.minimum(counts, mask * 255), np.ones((5, 5))) == 255
        error = view.permute(1, 2, 0).numpy()[counts] * 255 - ideal.clip(0, 255)[counts]
        found.append(10 * np.log10(255**2 / np.mean(error**2)))
    return spread(found)


# --- scale ---


def scale(folder: Path, quick: bool) -> tuple[str, list]:
    sizes = (50, 100, 200) if quick else (1_000, 10_000, 100_000)
    rows, found = [], {}
    for count in sizes:
        here = folder / str(count)
        write_small(here, count)
        first = measured(here)
        again = [measured(here) for _ in range(1 if quick else 3)]
        middle = {what: spread([facts[what] for facts in again])[0] for what in first}
        found[count] = middle | {"build": first["check"]}
        rows.append(
            [
                f"{count:,}",
                f"{first['check'] / count * 1e6:,.0f}",
                f"{middle['per_image'] * 1e6:,.0f}",
                f"{middle['read']:.2f} + {middle['check']:.2f} + {middle['split']:.2f} + {middle['batch']:.2f}",
                f"{middle['first_batch']:.2f}",
                *(f"{middle[what]:,.0f}" for what in ("imported", "own", "peak")),
            ]
        )
    few, many = found[sizes[0]], found[sizes[-1]]
    kilobytes = (many["own"] - few["own"]) / (sizes[-1] - sizes[0]) * 1e3
    startup = {
        name: starting(command)
        for name, command in (("import", ["-c", "import patholib"]), ("help", ["-m", "patholib", "--help"]))
    }
    text = [
        "Real files, JPEGs of 64 x 64 pixels listed in a CSV, each number of them in three processes of its own "
        "(medians). The first batch is one of training views and comes after reading the CSV, the check (which "
        "looks at the size and time of every file and re-uses the cache), the split and the draw. Its own memory "
        f"grows by {kilobytes:.1f} kB per image; the most it held counts in those pages of the mapped cache that "
        "the system keeps at hand and takes back when it needs them.",
        "",
        *markdown(
            [
                "images",
                "check and cache, µs per image",
                "training batches, µs per image",
                "CSV + check + split + batch, s",
                "to the first batch, s",
                "own memory after imports, MB",
                "after the epoch",
                "at most, with the mapped cache",
            ],
            rows,
        ),
        "",
        f"`import patholib` takes {startup['import']:.2f} s, `python -m patholib --help` {startup['help']:.2f} s "
        "(medians of five).",
    ]
    reached = (
        many["build"] / sizes[-1] / (few["build"] / sizes[0]),
        many["per_image"] / few["per_image"],
        many["first_batch"],
        startup["import"],
        startup["help"],
    )
    return "\n".join(text), list(zip(SCALE, reached, strict=True))


def write_small(folder: Path, count: int) -> None:
    """Different JPEGs of 64 x 64 pixels, a thousand to a folder."""
    rng = np.random.default_rng(0)
    lines = ["path,label,group"]
    for i in range(count):
        if i % 1000 == 0:
            (folder / f"{i // 1000:03}").mkdir(parents=True)
        name = f"{i // 1000:03}/{i:06}.jpg"
        coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
        (folder / name).write_bytes(cv2.imencode(".jpg", cv2.resize(coarse, (64, 64)))[1].tobytes())
        lines.append(f"{name},{'ab'[i % 2]},{i // 20}-{i % 2}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def measured(folder: Path) -> dict:
    """`first_batch` in a fresh process."""
    done = subprocess.run(
        [sys.executable, __file__, "--first-batch", str(folder)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"},
    )
    return json.loads(done.stdout.splitlines()[-1])


def first_batch(folder: Path) -> int:
    """Prints, as JSON, the seconds from a CSV to the first batch, those per image of an epoch, and the peak memory."""
    size, (_, imported) = 64, memory()
    start = time.perf_counter()
    source = table.read(folder / "labels.csv")
    read = time.perf_counter()
    found = checking.check(source, size, cache_dir=folder / "cache", workers=WORKERS, report_dir=folder / "report")
    checked = time.perf_counter()
    train = found.images.with_split(splitting.split(found.manifest)).part("train")
    order = np.random.default_rng(0).permutation(len(train))
    split = time.perf_counter()

    def views(pixels, rows, positions):
        return augment.training_views(pixels, 56, recipes.BREAKHIS.augmentation, 0, 0, positions, rows)

    next(batching.batches(train, order, BATCH, views, WORKERS))
    end = time.perf_counter()
    order = np.resize(order, 8_000)
    begin = time.perf_counter()
    for _ in batching.batches(train, order, BATCH, views, WORKERS):
        pass
    per_image, (peak, own) = (time.perf_counter() - begin) / len(order), memory()
    print(
        json.dumps(
            {
                "read": read - start,
                "check": checked - read,
                "split": split - checked,
                "batch": end - split,
                "first_batch": end - start,
                "per_image": per_image,
                "imported": imported,
                "peak": peak,
                "own": own,
            }
        )
    )
    return 0


def memory() -> tuple[float, float]:
    """The most memory this process has held, and what it now holds beyond mapped files, in MB; NaN where untold."""
    status = Path("/proc/self/status")
    if not status.exists():  # getrusage is no substitute: it counts what the parent held when it forked
        return float("nan"), float("nan")
    facts = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return tuple(int(facts[name].split()[0]) / 1e3 for name in ("VmHWM", "RssAnon"))


def starting(command: list[str]) -> float:
    """The median of five starts, in seconds."""

    def once() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, capture_output=True, cwd=ROOT)
        return time.perf_counter() - start

    return spread([once() for _ in range(5)])[0]


SECTIONS = {
    "input": ("Input pipeline", ("torchvision", "pillow", "albumentations", "timm", "fastai"), pipeline),
    "augmentation": ("Augmentation", ("torchvision", "albumentations", "opencv-python-headless"), augmenting),
    "scale": ("Scale", ("pandas", "pillow"), scale),
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
