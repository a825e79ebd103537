"""Where the files are that a table names: as written, or by their names below the folder."""

from __future__ import annotations

import contextlib
import itertools
import os
import posixpath
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from patholib.base.files import joined
from patholib.data import columns
from patholib.data.decoding import IMAGES
from patholib.data.readers.folders import folders_below, litter

MOST = 5000  # folders that are searched, the nearest first


class Located(NamedTuple):
    """The files of the rows of a table."""

    paths: list[str]  # posix, below the root or absolute; as written where no file is there
    there: list[bool]
    found_as: dict[str, str]  # what was written: what was found
    several: dict[str, list[str]]  # what was written: files that may be meant


def locate(root: Path, written: Iterable[str]) -> Located:
    """The file of every row: as it is written, else the one below `root` that has its name with any ending.

    Capitals and blanks at the ends do not count. A folder that is written and does exist is believed, one that does not
    exist is not; a file that another row names exactly is not taken for a second one.
    """
    paths = list(written)
    there = [_is_there(root, path) for path in paths]
    found_as: dict[str, str] = {}
    several: dict[str, list[str]] = {}
    if not all(there):
        named = {path for path, exact in zip(paths, there, strict=True) if exact}
        known = names_below(root)
        for i, path in enumerate(paths):
            if there[i]:
                continue
            files = [file for file in known.get(columns.stem(path), []) if file not in named]
            files = _nearest(root, path.replace("\\", "/").strip(), files)
            if len(files) == 1:
                paths[i], there[i], found_as[path] = files[0], True, files[0]
            elif files:
                several[path] = files
    return Located(paths, there, found_as, several)


def names_below(root: Path) -> dict[str, list[str]]:
    """The image files below a folder by `columns.stem`, posix and relative to it, sorted."""
    known: dict[str, list[str]] = {}
    for folder in itertools.islice(folders_below(root, closed={}), MOST):
        above = folder.relative_to(root).as_posix()
        with contextlib.suppress(OSError):  # a folder that cannot be listed: its files are told to be missing
            for name in sorted(os.listdir(folder)):  # noqa: PTH208 - names are enough
                if name.lower().endswith(IMAGES) and not litter(name):
                    known.setdefault(columns.stem(name), []).append(posixpath.normpath(posixpath.join(above, name)))
    return known


def _is_there(root: Path, path: str) -> bool:
    """Whether anything but a folder has this name; what it is, the check of the images says."""
    place = joined(root, path)
    return os.path.lexists(place) and (path.lower().endswith(IMAGES) or not os.path.isdir(place))  # noqa: PTH112


def _nearest(root: Path, path: str, files: list[str]) -> list[str]:
    """Of files with the right name those that fit best: in the written folder, with the written ending."""
    above = posixpath.dirname(path)
    if above and os.path.isdir(joined(root, above)):  # noqa: PTH112 - pathlib's raises where the name is too long
        return [file for file in files if posixpath.dirname(file) == posixpath.normpath(above)]
    for fits in (
        lambda file: file.casefold().endswith("/" + path.casefold()),
        lambda file: PurePosixPath(file).suffix.lower() == PurePosixPath(path).suffix.lower(),
    ):
        if len(files) > 1 and any(map(fits, files)):
            files = list(filter(fits, files))
    return files
