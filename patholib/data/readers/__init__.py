"""Where the images are, and which reader turns them into a manifest."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from patholib.base import files, places
from patholib.base.errors import PathoError, nearest
from patholib.data import demo
from patholib.data.manifest import Manifest
from patholib.data.readers import breakhis, isic2019, table
from patholib.data.readers.folders import folders, is_demo, like_first, not_there

READERS = {"breakhis": breakhis, "isic2019": isic2019}
KINDS = tuple(READERS)
LIKE = {"breakhis": "breakhis", "isic2019": "isic"}  # what the names of their folders hold, in small letters
MOST = 500  # folders of a Drive that are looked at: each is asked for over the network, and there may be thousands


@dataclass(frozen=True)
class Found:
    """The outcome of `find`: where the data are, or that demo images are to be made because there are none."""

    path: Path | None  # None exactly if `demo`
    demo: bool
    tried: tuple[str, ...]  # every place looked at, in order


def find(kind: str, data: str | Path = "auto", mounts: tuple[str | Path, ...] | None = None) -> Found:
    """Looks for the images of a data set: at `data`, else where PATHOLIB_DATA says, else in the usual places.

    data: a path (from the current folder, then from the project's), "demo" (make demo images), or "auto", over which
    the variable PATHOLIB_DATA rules, with the same values.
    Usual places: data/<kind> and data/ of the project, the same in `files.remade`, then `mounts` (None:
    `places.mounts`); of a Drive the nearest MOST folders. Demo images lying there are passed over.
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
        near = [path] if path.is_absolute() else list(dict.fromkeys((Path.cwd() / path, files.project_root() / path)))
        right = next((place for place in near if _usable(kind, place)), None)
        if right is None:
            reader, place = READERS[kind], next((place for place in near if place.exists()), near[0])
            raise not_there(reader.WHAT, reader.holds, place, named, near)
        return Found(right, False, tuple(map(str, near)))
    kept, remade, tried = files.project_root() / "data", files.remade(), []
    usual = (kept / kind, kept, remade / kind, remade, *map(Path, places.mounts() if mounts is None else mounts))
    for place in dict.fromkeys(usual):
        tried.append(str(place))
        drive, looked = place.name == "MyDrive", 0
        for folder in _looked_into(kind, place, drive):
            looked += 1
            named_so = kind == "isic2019" or "breakhis" in folder.name.lower() or folder.name == "histology_slides"
            if named_so and _usable(kind, folder, drive) and not is_demo(folder):
                return Found(folder, False, tuple(tried))
        if drive and looked == MOST:
            tried[-1] += f" (its {MOST} nearest folders alone: name any other with the parameter data)"
    return Found(None, True, tuple(tried))


def _looked_into(kind: str, place: Path, drive: bool) -> Iterator[Path]:
    """The folders of a usual place, nearest first; of a Drive MOST, those that are called like the data set first."""
    if drive:
        return itertools.islice(like_first(place, LIKE[kind], skip=("outputs",)), MOST)  # runs have many folders
    return folders(place, skip=("drive",))  # MyDrive is a mount of its own, with its own depth


def load(kind: str, data: str | Path = "auto", missing: str = "error", positive: str | None = None,
         **drawn) -> Manifest:
    """The manifest of a data set, wherever it lies; of demo images, with a line that says so, where there is none.

    data: see `find`; or a CSV of one's own. positive: the class that must not be missed; None: as the reader says.
    Demo images are written to demo/<kind> in `files.remade` once; drawn: settings of `demo.write` other than its own,
    for which they get a folder of theirs. Raises PathoError: also `unknown_class`.
    """
    source = _load(kind, data, missing, drawn)
    if positive is None:
        return source
    if positive not in source.classes:
        raise PathoError("unknown_class", f"positive={positive!r}", "is no class of these images",
                         nearest(positive, source.classes))
    return replace(source, positive=positive)


def _load(kind: str, data: str | Path, missing: str, drawn: dict) -> Manifest:
    if str(data).lower().endswith(".csv"):
        return read(data, missing)
    found = find(kind, data)
    if not found.demo:
        return read(found.path, missing)
    if found.tried:
        print(f"No {kind} images were found in {', '.join(found.tried)}: demo images are used instead "
              f"(`patholib download {kind}` fetches the real ones)")
    folder = f"{kind}-{files.digest(drawn)[:8]}" if drawn else kind
    return read(demo.write(files.remade() / "demo" / folder, kind, **drawn), missing)


def read(where: str | Path, missing: str = "error") -> Manifest:
    """The manifest of what lies at `where`, by the reader it calls for; a kind ("breakhis") is looked for first.

    missing: for tables that list images ("error", or "skip" to go on without the files that are not there).
    Raises PathoError: `data_root`, and what the readers raise.
    """
    kind = where if where in KINDS else None
    if kind:
        found = find(kind)
        if found.demo:
            raise PathoError("data_root", kind, f"was not found; tried {', '.join(found.tried) or 'nothing'}",
                             f"Give its path, set PATHOLIB_DATA to it, or fetch it: `patholib download {kind}`")
        where = found.path
    path = Path(where).expanduser()
    if path.is_file():
        return isic2019.read(path, missing) if path.name == isic2019.TRUTH else table.read(path, missing=missing)
    if kind == "isic2019" or (kind is None and isic2019.locate(path)):
        return isic2019.read(path, missing)
    if kind == "breakhis" or breakhis.locate(path):
        return breakhis.read(path)
    raise not_there("BreakHis, ISIC 2019 or a CSV", lambda folder: any(r.holds(folder) for r in READERS.values()),
                    path, "path")


def _usable(kind: str, path: Path, drive: bool = False) -> bool:
    """Whether the reader of this kind takes `path` as its root; on a Drive also BreakHis has to begin near it."""
    return bool(breakhis.locate(path, MOST if drive else None) if kind == "breakhis" else isic2019.locate(path))
