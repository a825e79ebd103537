"""The images of a run, read again from where they lie: a run folder does not say where that is.

They are held against the SHA-256 of the bytes that the run was made of, so that no other picture is taken for one.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.data import checking, csvfiles, readers, splitting
from patholib.data.checking import Checked
from patholib.data.imagesets import ImageSet
from patholib.data.manifest import Manifest
from patholib.model import recipes


def source_of(run_dir: Path, data: str | Path = "auto") -> Manifest:
    """The manifest of the images a run was made of.

    data: as for `readers.load`. Errors: data_root where "auto" cannot find them, and what the readers raise.
    """
    files.given(data)
    facts = files.read_json(Path(run_dir) / "run.json")
    kind, auto = facts["data"]["source"], str(data) == "auto"
    remedy = 'Give the images as data, or data="none" to look at files of your own only'
    if auto and facts["demo"] and not os.environ.get("PATHOLIB_DATA"):
        data = "demo"
    elif auto and kind not in readers.KINDS:
        raise PathoError(
            "data_root", facts["name"], "was made from a table of one's own, and does not say where it is", remedy
        )
    elif auto and not facts["demo"] and (found := readers.find(kind)).demo:
        raise PathoError("data_root", kind, f"is not in {', '.join(found.tried) or 'the place given'}", remedy)
    kind = kind if kind in readers.KINDS else facts["recipe"]["name"]
    given = facts.get("options") or {}  # of a run by Options; what it has not noted, the reader finds as it did
    of_images = {name: given.get(name) for name in ("label", "only", "group", "columns")}
    return readers.load(kind, data, missing="skip", **of_images)


def checked_again(run_dir: Path, data: str | Path = "auto") -> Checked:
    """These images checked and cached as in the run; files that cannot be used any more are left out.

    Errors: changed_file, and those of `source_of` and `checking.check`.
    """
    run_dir = Path(run_dir)
    recipe = recipes.from_json(files.read_json(run_dir / "run.json")["recipe"])
    found = checking.check(source_of(run_dir, data), recipe.cache_size, recipe.fit, on_bad="skip", progress=False)
    made_of = csvfiles.read_csv(run_dir / "images.csv", ("path", "sha256"))
    before, now = (dict(zip(t["path"], t["sha256"], strict=True)) for t in (made_of, found.facts))
    changed = sorted(path for path in before.keys() & now.keys() if before[path] != now[path])
    if changed:
        raise PathoError(
            "changed_file",
            changed[0],
            f"is not the file the run was made of ({len(changed)} such files)",
            "Give the folder with the images of this run as data",
        )
    return found


def images_of(run_dir: Path, data: str | Path = "auto", split: str | None = None) -> ImageSet:
    """The images of a run under its split, or those of one part of it; those that are gone are left out.

    Errors: other_images where none is there, and those of `checked_again`.
    """
    found = checked_again(run_dir, data)
    leaks = bool(files.read_json(Path(run_dir) / "run.json").get("leaks"))
    parts = splitting.read_split(Path(run_dir) / "split.csv", leaks=leaks)
    wanted = parts if split is None else parts[parts["split"] == split]
    here = wanted[wanted["path"].isin(found.images.table["path"])]
    if here.empty:
        raise PathoError(
            "other_images",
            found.manifest.root.name,
            f"holds none of the run's {len(wanted)} {split or ''} images".replace("  ", " "),
            "Give the folder or table of this run's images as data",
        )
    known = found.images.table[found.images.table["path"].isin(here["path"])].reset_index(drop=True)
    return replace(found.images, table=known).with_split(here)
