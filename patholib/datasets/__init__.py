"""Where the images are, and which reader turns them into a manifest."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from patholib import files
from patholib.errors import PathoError, nearest
from patholib.manifest import Manifest

# Where Kaggle and Colab put data sets; Kaggle's own are one folder (slug) or three (datasets/owner/slug) further down.
MOUNTS = ("/kaggle/input", "/content", "/content/drive/MyDrive")
KINDS = ("breakhis", "isic2019")
DEPTH = 5  # levels of folders searched: a data set doubled by its archive, below datasets/owner/slug
DEMO = "DEMO.json"  # marks a folder of generated images
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
LITTER = {"thumbs.db", "desktop.ini", "__macosx"}  # and all that is hidden; never an image, never a class


@dataclass(frozen=True)
class Found:
    """The outcome of `find`: where the data are, or that demo images are to be made because there are none."""

    path: Path | None  # None exactly if `demo`
    demo: bool
    tried: tuple[str, ...]  # every place looked at, in order


def find(kind: str, data: str | Path = "auto", mounts: tuple[str | Path, ...] = MOUNTS) -> Found:
    """Looks for the images of a data set: at `data`, else where PATHOLIB_DATA says, else in the usual places.

    data: a path (from the current folder, then from the project's), "demo" (make demo images), or "auto", over which
    the variable PATHOLIB_DATA rules, with the same values.
    Usual places: data/<kind> and data/ of the project, then `mounts`. Demo images lying there are passed over.
    Raises PathoError: `unknown_source`; `data_root` if a path was given that does not hold the data.
    """
    if kind not in KINDS:
        raise PathoError("unknown_source", kind, "is no data set to look for", nearest(kind, KINDS))
    named = "data" if str(data) != "auto" else "PATHOLIB_DATA"
    data = str(data) if str(data) != "auto" else os.environ.get("PATHOLIB_DATA") or "auto"
    if data == "demo":
        return Found(None, True, ())
    if data != "auto":
        path = Path(data).expanduser()
        places = [path] if path.is_absolute() else list(dict.fromkeys((Path.cwd() / path, files.project_root() / path)))
        right = next((place for place in places if _usable(kind, place)), None)
        if right is None:
            raise not_there(kind, next((place for place in places if place.exists()), places[0]), named, places)
        return Found(right, False, tuple(map(str, places)))
    home, tried = files.project_root() / "data", []
    for place in (home / kind, home, *map(Path, mounts)):
        tried.append(str(place))
        for folder in folders(place, skip=("drive",)):  # MyDrive is a mount of its own, with its own depth
            named_so = kind == "isic2019" or "breakhis" in folder.name.lower() or folder.name == "histology_slides"
            if named_so and not is_demo(folder) and _usable(kind, folder):
                return Found(folder, False, tuple(tried))
    return Found(None, True, tuple(tried))


def load(kind: str, data: str | Path = "auto", missing: str = "error") -> Manifest:
    """The manifest of a data set, wherever it lies; of demo images, with a line that says so, where there is none.

    data: see `find`; or a CSV of one's own. Demo images are written to data/demo/<kind> of the project once.
    """
    if str(data).lower().endswith(".csv"):
        return read(data, missing)
    found = find(kind, data)
    if not found.demo:
        return read(found.path, missing)
    from patholib.datasets import demo

    if found.tried:
        print(f"No {kind} images were found in {', '.join(found.tried)}: demo images are used instead")
    return read(demo.write(files.project_root() / "data" / "demo" / kind, kind), missing)


def best_possible(source: Manifest, predictions: pd.DataFrame) -> pd.DataFrame:
    """For demo images: the same rows with the exact posterior of each class, which no classifier can beat on average."""
    from patholib.datasets import demo

    known = demo.truth(demo_folder(source.root)).set_index("path").loc[predictions["path"]]
    return predictions.assign(**{f"p_{c}": known[f"best_p_{c}"].to_numpy() for c in source.classes})


def read(where: str | Path, missing: str = "error") -> Manifest:
    """The manifest of what lies at `where`, by the reader it calls for; a kind ("breakhis") is looked for first.

    missing: for tables that list images ("error", or "skip" to go on without the files that are not there).
    Raises PathoError: `data_root`, and what the readers raise.
    """
    from patholib.datasets import breakhis, isic2019, table

    kind = where if where in KINDS else None
    if kind:
        found = find(kind)
        if found.demo:
            raise PathoError("data_root", kind, f"was not found; tried {', '.join(found.tried) or 'nothing'}",
                             "Give its path, or set PATHOLIB_DATA to it")
        where = found.path
    path = Path(where).expanduser()
    if path.is_file():
        return isic2019.read(path, missing) if path.name == isic2019.TRUTH else table.read(path, missing=missing)
    if kind == "isic2019" or (kind is None and isic2019.locate(path)):
        return isic2019.read(path, missing)
    if kind == "breakhis" or breakhis.locate(path):
        return breakhis.read(path)
    raise not_there(None, path, "path")


def not_there(kind: str | None, path: Path, subject: str = "root", places: Iterable[Path] = ()) -> PathoError:
    """The refusal of a path that does not hold the data (`kind` None: any); names the right one if it is near."""
    what = {"breakhis": "BreakHis (folders benign and malignant)",
            "isic2019": "ISIC 2019 (ISIC_2019_Training_GroundTruth.csv)", None: "BreakHis, ISIC 2019 or a CSV"}[kind]
    if not path.exists():
        reason = "does not exist"
    elif not path.is_dir():
        reason = f"is a file, not the folder of {what}"
    else:
        reason = f"does not hold {what}" if any(path.iterdir()) else "is empty"
    above = [folder for folder in path.absolute().parents[:DEPTH] if os.access(folder, os.R_OK | os.X_OK)]
    right = next((folder for folder in (*folders(path), *above)
                  if any(_holds(k, folder) for k in (KINDS if kind is None else (kind,)))), None)
    tables = sorted(path.glob("*.csv")) if kind is None and path.is_dir() else []
    if right is not None:
        remedy = f"It was found at {right}: use that path"
    elif tables:
        remedy = f"To read a table of your own, name the file: {tables[0]}"
    else:
        remedy = "Give the folder the data set was unpacked to, or use data='demo'"
    tried = ", ".join(str(place) for place in places) or path.absolute()
    return PathoError("data_root", f"{subject}={path}", f"{reason}; tried {tried}, and {DEPTH} levels below", remedy)


def _usable(kind: str, path: Path) -> bool:
    """Whether the reader of this kind takes `path` as its root."""
    from patholib.datasets import breakhis, isic2019

    return bool({"breakhis": breakhis, "isic2019": isic2019}[kind].locate(path))


def _holds(kind: str, folder: Path) -> bool:
    """Whether the data set begins in this very folder."""
    from patholib.datasets import breakhis, isic2019

    return breakhis.holds_classes(folder) if kind == "breakhis" else bool(isic2019.locate(folder))


def demo_folder(folder: Path) -> Path | None:
    """The folder holding the mark of generated images, at or above `folder`; None for other images."""
    near = (Path(folder).absolute(), *Path(folder).absolute().parents[:DEPTH])
    return next((place for place in near if (place / DEMO).is_file()), None)


def is_demo(folder: Path) -> bool:
    """Whether the images in `folder` are generated ones."""
    return demo_folder(folder) is not None


def litter(name: str) -> bool:
    """Whether a file or folder is one that systems and editors leave behind."""
    return name.startswith(".") or name.lower() in LITTER


def folders(root: Path, skip: tuple[str, ...] = ()) -> Iterator[Path]:
    """`root` and the folders below it to DEPTH levels, nearest first and by name; links are not followed."""
    level = [Path(root)] if Path(root).is_dir() else []
    for _ in range(DEPTH + 1):
        yield from level
        level = [below for folder in level for below in subfolders(folder) if below.name not in skip]


def subfolders(folder: Path) -> list[Path]:
    """The folders in `folder`, by name, without links and litter."""
    return [Path(entry.path) for entry in _entries(folder)
            if entry.is_dir(follow_symlinks=False) and not litter(entry.name)]


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise PathoError("io_error", str(folder), f"cannot be listed ({error.strerror or error})",
                         "Check the permissions and the disk") from error


def walk(root: Path) -> tuple[list[str], dict]:
    """The image files below `root` (posix paths relative to it, sorted), and lists of what was left out.

    Left out and listed: `ignored` (litter and hidden entries), `unknown_extension`, `links_not_followed` (folders).
    """
    images, left = [], {"ignored": [], "unknown_extension": [], "links_not_followed": []}
    waiting = [(Path(root), "")]
    while waiting:
        folder, prefix = waiting.pop()
        for entry in _entries(folder):
            path = prefix + entry.name
            if litter(entry.name):
                left["ignored"].append(path)
            elif entry.is_dir(follow_symlinks=False):
                waiting.append((Path(entry.path), path + "/"))
            elif entry.is_symlink() and entry.is_dir():
                left["links_not_followed"].append(path)
            elif Path(entry.name).suffix.lower() in IMAGES:
                images.append(path)
            else:
                left["unknown_extension"].append(path)
    return sorted(images), {name: sorted(paths) for name, paths in left.items()}
