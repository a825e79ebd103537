"""Walking data folders: what is an image, what is litter, what was generated, and where a data set begins."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.data.decoding import IMAGES

DEPTH = 5  # levels of folders searched: a data set doubled by its archive, below datasets/owner/slug
DEMO = "DEMO.json"  # marks a folder of generated images
LITTER = {"thumbs.db", "desktop.ini", "__macosx"}  # and all that is hidden; never an image, never a class


def not_there(
    what: str, holds: Callable[[Path], bool], path: Path, subject: str = "root", places: Iterable[Path] = ()
) -> PathoError:
    """The error for a path that does not hold the data set `what`; it names the right path if that is near.

    holds: whether the data set begins in a folder.
    """
    if not path.exists():
        reason = "does not exist"
    elif not path.is_dir():
        reason = f"is a file, not the folder of {what}"
    else:
        reason = f"does not hold {what}" if any(path.iterdir()) else "is empty"
    above = [folder for folder in path.absolute().parents[:DEPTH] if os.access(folder, os.R_OK | os.X_OK)]
    right = next((folder for folder in (*folders_below(path), *above) if holds(folder)), None)
    tables = sorted(path.glob("*.csv")) if path.is_dir() else []
    if right is not None:
        remedy = f"It was found at {right}: use that path"
    elif tables:
        remedy = f"To read a table of your own, name the file: {tables[0]}"
    else:
        remedy = "Give the folder the data set was unpacked to, fetch it (`patholib download`), or use data='demo'"
    tried = ", ".join(str(place) for place in places) or path.absolute()
    return PathoError("data_root", f"{subject}={path}", f"{reason}; tried {tried}, and {DEPTH} levels below", remedy)


def demo_folder(folder: Path) -> Path | None:
    """The folder, at or above `folder`, that is marked as generated images; None for other images."""
    near = (Path(folder).absolute(), *Path(folder).absolute().parents[:DEPTH])
    return next((place for place in near if (place / DEMO).is_file()), None)


def is_demo(folder: Path) -> bool:
    """Whether the images in `folder` are generated ones."""
    return demo_folder(folder) is not None


def litter(name: str) -> bool:
    """Whether a file or folder is one that systems and editors leave behind."""
    return name.startswith(".") or name.lower() in LITTER


def folders_below(
    root: Path, skip: tuple[str, ...] = (), closed: dict[str, PathoError] | None = None
) -> Iterator[Path]:
    """`root` and the folders below it to DEPTH levels, nearest first and by name; links are not followed.

    closed: as for `walk`.
    """
    level = [Path(root)] if Path(root).is_dir() else []
    for _ in range(DEPTH + 1):
        yield from level
        level = [below for folder in level for below in subfolders(folder, closed) if below.name not in skip]


def subfolders(folder: Path, closed: dict[str, PathoError] | None = None) -> list[Path]:
    """The folders in `folder`, by name, without links and litter; closed: as for `walk`."""
    inside = list(_listed(folder, str(folder), closed))
    return sorted(Path(one.path) for one in inside if one.is_dir(follow_symlinks=False) and not litter(one.name))


def entries(folder: Path) -> Iterator[os.DirEntry]:
    """What lies in a folder, in no order, one at a time: there may be a million."""
    try:
        with os.scandir(folder) as found:
            yield from found
    except OSError as error:
        raise files.unread(str(folder), error) from error


def _listed(folder: Path, name: str, closed: dict[str, PathoError] | None) -> Iterator[os.DirEntry]:
    """The same; what cannot be listed is put into `closed` under its name, and is an error where that is None."""
    try:
        yield from entries(folder)
    except PathoError as error:
        if closed is None:
            raise
        closed[name] = error


def walk(root: Path, closed: dict[str, PathoError] | None = None) -> tuple[list[str], dict]:
    """The image files below `root` (posix paths relative to it, sorted), and lists of what was left out.

    Left out and listed: `ignored` (litter and hidden entries), `unknown_extension`, `links_not_followed` (folders).
    closed: is given the folders that cannot be listed, with the reason, and the others are walked; None: they are an
    error.
    """
    images: list[str] = []
    left: dict[str, list] = {"ignored": [], "unknown_extension": [], "links_not_followed": []}
    waiting = [(Path(root), "")]
    while waiting:
        folder, prefix = waiting.pop()
        for entry in _listed(folder, prefix.rstrip("/") or ".", closed):
            path = prefix + entry.name
            if litter(entry.name):
                left["ignored"].append(path)
            elif entry.is_dir(follow_symlinks=False):
                waiting.append((Path(entry.path), path + "/"))
            elif entry.is_symlink() and _leads_to_folder(entry):
                left["links_not_followed"].append(path)
            elif entry.name.lower().endswith(IMAGES):
                images.append(path)
            else:
                left["unknown_extension"].append(path)
    for paths in (images, *left.values()):
        paths.sort()
    return images, left


def _leads_to_folder(link: os.DirEntry) -> bool:
    """Whether a link leads to a folder; False for one to itself, or into a folder that is closed."""
    try:
        return link.is_dir()
    except OSError:
        return False
