"""Where the images are, and which reader turns them into a manifest."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, replace
from pathlib import Path

from patholib.base import files, places
from patholib.base.errors import PathoError, nearest
from patholib.data import demo
from patholib.data.manifest import Manifest
from patholib.data.readers import breakhis, classfolders, isic2019, sources, table
from patholib.data.readers.folders import folders_below, is_demo, not_there
from patholib.data.readers.reader import Reader

# Tried in this order where a folder is named: first those whose files cannot be mistaken.
READERS = {reader.name: reader for reader in (isic2019.READER, breakhis.READER)}
KINDS = tuple(READERS)
MOST = 500  # folders of a Drive that are looked at: each is asked for over the network, and there may be thousands


@dataclass(frozen=True)
class Location:
    """The outcome of `find`: where the data are, or that there are none and demo images are to be made."""

    path: Path | None  # None exactly if `demo`
    demo: bool
    tried: tuple[str, ...]  # every place looked at, in order


def find(kind: str, data: str | Path = "auto", mounts: tuple[str | Path, ...] | None = None) -> Location:
    """Looks for the images of a data set: at `data`, else where PATHOLIB_DATA says, else in the usual places.

    data: a path (from the current folder, then from the project's): of a table, or of a folder where another known data
    set may begin as well;
    "demo" (make demo images); or "auto", over which the variable PATHOLIB_DATA rules, with the same values.
    Usual places: data/<kind> and data/ of the project, the same in `files.remade`, then `mounts` (None:
    `places.mounts`); of a Drive the nearest MOST folders. Demo images lying there are passed over.
    Raises PathoError: `unknown_source`; `data_root` if a path was given that does not hold the data; as `files.given`.
    """
    if kind not in READERS:
        raise PathoError("unknown_source", kind, "is not a data set to look for", nearest(kind, READERS))
    subject = "data" if str(data) != "auto" else "PATHOLIB_DATA"
    data = str(data) if str(data) != "auto" else os.environ.get("PATHOLIB_DATA") or "auto"
    if data == "demo":
        return Location(None, True, ())
    if data != "auto":
        return _at(READERS[kind], data, subject)
    return _search(READERS[kind], places.mounts() if mounts is None else mounts)


def places_of(path: Path | str) -> list[Path]:
    """Where a path that was given may be: from the current folder, then from the project's.

    Errors: as `files.given`.
    """
    path = files.given(path)
    return [path] if path.is_absolute() else list(dict.fromkeys((Path.cwd() / path, files.project_root() / path)))


def _at(reader: Reader, path: str, subject: str) -> Location:
    """The data set at a path that was given: of this reader, or else of any."""
    near = places_of(path)
    for place in near:
        if place.is_file() or reader.reads(place) or _holder(place) is not None:
            return Location(place, False, tuple(map(str, near)))
    there = next((place for place in near if place.exists()), near[0])
    if classfolders.holds(there):
        return Location(there, False, tuple(map(str, near)))
    raise not_there(reader.what, reader.holds, there, subject, near)


def _search(reader: Reader, mounts: tuple[str | Path, ...]) -> Location:
    """The first folder of the usual places that the reader takes and that holds no demo images."""
    kept, remade, tried = files.project_root() / "data", files.remade(), []
    usual = (kept / reader.name, kept, remade / reader.name, remade, *map(Path, mounts))
    for place in dict.fromkeys(usual):
        tried.append(str(place))
        on_drive, looked = place.name == "MyDrive", 0
        below = folders_below(place, skip=("drive", "outputs") if on_drive else ("drive",))  # MyDrive is its own mount
        for folder in itertools.islice(below, MOST if on_drive else None):
            looked += 1
            if reader.is_named_so(folder) and reader.reads(folder, MOST if on_drive else None) and not is_demo(folder):
                return Location(folder, False, tuple(tried))
        if on_drive and looked == MOST:
            tried[-1] += f" (its {MOST} nearest folders alone: name any other with the parameter data)"
    return Location(None, True, tuple(tried))


def _holder(folder: Path) -> Reader | None:
    """The first reader whose data set begins in this folder, None where there is none."""
    return next((reader for reader in READERS.values() if folder.is_dir() and reader.holds(folder)), None)


def load(
    kind: str,
    data: str | Path = "auto",
    missing: str = "error",
    positive: str | None = None,
    *,
    label: str | None = None,
    only: str | None = None,
    group: str | None = None,
    columns: str | None = None,
    **demo_settings,
) -> Manifest:
    """The manifest of a data set, wherever it lies; of demo images, with a line that says so, where there is none.

    data: see `find`; or your own table. positive: the class that must not be missed; None: as the reader says.
    label: the column of the classes. only: the rows that count, "magnification=40". group: the column of ids that must
    not be shared between splits, or "image". columns: what a table calls ours, "path=file_name".
    Demo images are written to demo/<kind> in `files.remade` once; demo_settings: settings of `demo.write` other than
    its own, for which they get a folder of theirs. Raises PathoError: also `unknown_class`.
    """
    chosen = {"label": label, "only": only, "group": group, "columns": columns}
    source = _load(kind, data, missing, demo_settings, chosen)
    if source.group_by == "image":
        print(
            "WARNING: no patient is known, and every image counts as a group of its own. Images of one patient may be "
            "in training and in the test, and the test numbers may be too high. The report says so."
        )
    if positive is None:
        return source
    if positive not in source.classes:
        raise PathoError(
            "unknown_class",
            f"positive={positive!r}",
            "is not a class of these images",
            nearest(positive, source.classes),
        )
    return replace(source, positive=positive)


def _load(kind: str, data: str | Path, missing: str, demo_settings: dict, chosen: dict) -> Manifest:
    location = find(kind, data)
    if location.path is not None:
        return _read_path(location.path, missing, chosen, READERS[kind])
    if location.tried:
        if kind not in demo.DEFAULTS:
            raise _absent(kind, location)
        print(
            f"No {kind} images were found in {', '.join(location.tried)}: demo images are used instead"
            + (f" (`patholib download {kind}` fetches the real ones)" if kind in sources.downloadable() else "")
        )
    folder = f"{kind}-{files.digest(demo_settings)[:8]}" if demo_settings else kind
    return read(demo.write(files.remade() / "demo" / folder, kind, **demo_settings), missing, **chosen)


def _absent(kind: str, location: Location) -> PathoError:
    remedy = "Give its path, or set PATHOLIB_DATA to it"
    if kind in sources.downloadable():
        remedy = f"Give its path, set PATHOLIB_DATA to it, or fetch it: `patholib download {kind}`"
    return PathoError("data_root", kind, f"was not found; tried {', '.join(location.tried) or 'nothing'}", remedy)


def read(where: str | Path, missing: str = "error", **chosen) -> Manifest:
    """The manifest of what lies at `where`, by the first reader that takes it; a name ("breakhis") is looked for first.

    missing: for tables that list images ("error", or "skip" to go on without the files that are not there). chosen:
    label, only, group and columns of `load`. Raises PathoError: `data_root`, as `files.given`, and what the readers
    raise.
    """
    if where in READERS:
        location = find(where)
        if location.path is None:
            raise _absent(where, location)
        return _read_path(location.path, missing, chosen, READERS[where])
    return _read_path(files.given(where), missing, chosen)


def _read_path(path: Path, missing: str, chosen: dict, first: Reader | None = None) -> Manifest:
    """The manifest of a table or folder; of a folder by `first` if it takes it, else by the first of all readers."""
    part = {name: chosen.get(name) for name in ("label", "only", "group")}
    if path.is_file() and any(path.name == reader.index for reader in READERS.values()):
        path = path.parent
    if path.is_file():
        return table.read(path, missing=missing, names=chosen.get("columns"), **part)
    reader = first if first is not None and first.reads(path) else _holder(path)
    reader = reader or next((reader for reader in READERS.values() if reader.reads(path)), None)
    if reader is not None:
        return reader.read(path, missing=missing).chosen(**part)
    known = ", ".join(reader.what for reader in READERS.values())
    error = not_there(
        f"a data set that is known ({known}) or a table",
        lambda place: any(reader.holds(place) for reader in READERS.values()),
        path,
        "path",
    )
    listed = path.is_dir() and any(path.glob("*.csv"))
    if not classfolders.holds(path) or (listed and part["group"] != "image"):
        raise error
    return classfolders.read(path, part.pop("group")).chosen(**part)
