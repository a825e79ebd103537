"""Reads other people's splits for the audit: CSV tables, and folders with a sub-folder for each part."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas as pd

from patholib.base.errors import PathoError, nearest
from patholib.data.csvfiles import read_csv, stop_on
from patholib.data.readers import breakhis, isic2019
from patholib.data.readers.folders import IMAGES, is_demo, subfolders, walk
from patholib.data.readers.table import ALIASES
from patholib.data.splitting import SPLITS

SYNONYMS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
NAMES = {
    "path": ("path", *ALIASES["path"], "filename", "image_id", "isic_id"),
    "label": ("label", "class", "target"),
    "split": ("split", "set", "subset", "given_split"),
}
IDS = re.compile(r"(given_)?(slide|specimen|case|lesion|patient|subject|group)([ _]?(id|no|number))?", re.IGNORECASE)
ISIC = r"ISIC_\d{7}(_downsampled)?"


@dataclass(frozen=True)
class Listed:
    """The images of a split before any of them is opened."""

    name: str
    table: pd.DataFrame  # path, label ("" where not given), split (one of SPLITS), then whatever the source has
    places: list[Path | None]  # where each file is; None: not there
    demo: bool


def read(split, root: Path | None, columns: Mapping[str, str]) -> Listed:
    """The images of a split: {part: folder}, a table, a CSV, or a folder with a subfolder for each part."""
    if isinstance(split, Mapping):
        return _from_folders([(_split_of(name), Path(folder)) for name, folder in split.items()], "folders")
    if isinstance(split, pd.DataFrame):
        return _from_table(split, "table", Path(root or "."), columns)
    split = Path(split)
    if not split.is_dir():
        return _from_table(read_csv(split), split.name, Path(root or split.parent), columns)
    return _from_folders(
        [(SYNONYMS[below.name.lower()], below) for below in subfolders(split) if below.name.lower() in SYNONYMS],
        split.name,
    )


def _split_of(name: str) -> str:
    if name.lower() not in SYNONYMS:
        raise PathoError("unknown_split", name, "is not a split", nearest(name, SYNONYMS))
    return SYNONYMS[name.lower()]


def _from_folders(parts: list[tuple[str, Path]], name: str) -> Listed:
    """The images below folders, each of a split; the first folder within is the class."""
    places: list[Path | None] = []
    rows = []
    for part, folder in sorted(parts, key=lambda both: SPLITS.index(both[0])):
        if not folder.is_dir():
            raise PathoError("missing_file", str(folder), "is not a folder", "Name the folder of the images")
        for image in walk(folder)[0]:
            label, below, _ = image.partition("/")
            rows.append((f"{part}/{image}", label if below else "", part))
            places.append(folder / image)
    listed = pd.DataFrame(rows, columns=["path", "label", "split"], dtype=str)
    _refuse_one_split(listed, name)
    return Listed(name, listed, places, any(is_demo(folder) for _, folder in parts))


def _from_table(source: pd.DataFrame, name: str, root: Path, columns: Mapping[str, str]) -> Listed:
    """The images of a table whose columns may have other names, as `columns` says ({ours: theirs})."""
    stop_on(
        [("bad_parameter", f"columns {ours}", nearest(ours, NAMES)) for ours in columns if ours not in NAMES],
        f"The columns that can be named are {', '.join(NAMES)}",
    )
    known = list(source.columns)
    theirs = {ours: columns.get(ours) or next((n for n in names if n in known), ours) for ours, names in NAMES.items()}
    stop_on(
        [
            ("csv_format", f"{name} column {column}", f"is missing; {nearest(column, known)}")
            for ours, column in theirs.items()
            if column not in known and (column != "label")
        ],
        "Say what it is called with columns (--columns path=... label=... split=...)",
    )
    listed = source.map(lambda cell: "" if pd.isna(cell) else str(cell))
    listed = pd.DataFrame({ours: listed[column] if column in known else "" for ours, column in theirs.items()}).join(
        listed.drop(columns=[column for column in known if column in (*theirs, *theirs.values())])
    )
    parts = listed["split"].str.strip().str.lower()
    stop_on(
        [
            ("csv_format", f"{name} line {line}", f"is in split {listed['split'][line]!r}")
            for line in listed.index[~parts.isin(SYNONYMS.keys())]
        ],
        f"Known are {', '.join(SYNONYMS)}",
    )
    stop_on(
        [("csv_format", f"{name} line {line}", "has no path") for line in listed.index[listed["path"] == ""]],
        "Write the path or the name of the image",
    )
    listed = listed.assign(split=parts.map(SYNONYMS), path=listed["path"].str.replace("\\", "/")).reset_index(drop=True)
    _refuse_one_split(listed, name)
    return Listed(name, listed, _places(root, listed["path"]), is_demo(root))


def _refuse_one_split(listed: pd.DataFrame, name: str) -> None:
    if listed["split"].nunique() < 2:
        raise PathoError(
            "no_split",
            name,
            "does not hold images of two of the splits train, val and test",
            "Name a CSV with a column split, or the folders (--train FOLDER --test FOLDER)",
        )


def _places(root: Path, paths: Iterable[str]) -> list[Path | None]:
    """Where the file of every row is, None where it is not there; a name without an ending may have any."""

    @functools.cache
    def names(folder: Path) -> set[str]:
        return {place.name for place in folder.iterdir()} if folder.is_dir() else set()

    def place(path: Path) -> Path | None:
        if os.path.lexists(path):
            return path
        return next(
            (
                path.with_name(name)
                for name in (path.name + ending for ending in sorted(IMAGES))
                if name in names(path.parent)
            ),
            None,
        )

    return [place(root / path) for path in paths]


def ids(listed: pd.DataFrame, asked: Iterable[str], metadata: Path | None) -> tuple[dict[str, pd.Series], list[str]]:
    """What must not be shared, {level: the id of every image, "" where unknown}, and what is not known of it.

    Columns named like a level of grouping, those asked for, those of the metadata, and what names say: slide and case
    in those of BreakHis, in those of ISIC the picture that an image is a smaller copy of.
    """
    asked, unchecked, stems = list(asked), [], listed["path"].map(_stem)
    if metadata is not None:
        facts = _facts(Path(metadata), stems)
        listed = listed.join(facts[[name for name in facts.columns if name not in listed.columns]])
    stop_on(
        [
            ("csv_format", f"column {name}", f"is missing; {nearest(name, listed.columns)}")
            for name in asked
            if name not in listed.columns
        ],
        "Name a column of ids",
    )
    found = {name: listed[name].str.strip() for name in listed.columns if name in asked or IDS.fullmatch(name)}
    names = stems.map(breakhis.parse)
    if names.notna().any():
        found = {
            level: names.map(lambda facts, level=level: getattr(facts, level, "")) for level in ("slide", "case")
        } | found
    isic = stems.str.fullmatch(ISIC)
    if stems[isic].str.endswith(isic2019.COPY).any():
        found["picture"] = stems.str.removesuffix(isic2019.COPY).where(isic, "")
    if isic.any() and not any("lesion" in name.lower() for name in found):
        unchecked.append(f"lesions: names of ISIC do not tell them; give {isic2019.METADATA} as metadata (--metadata)")
    levels: dict[str, pd.Series] = {}
    for name in sorted(found, key=lambda name: "group" in name.lower()):  # our own `group` repeats a level, or the path
        if not any(found[name].equals(known) for known in (listed["path"], *levels.values())):
            levels[name] = found[name]
    if not levels:
        unchecked.append("patients: no column of ids was found; name it with ids (--ids)")
    unchecked += [
        f"{name}: unknown for {(known == '').sum():,} of {len(known):,} images"
        for name, known in levels.items()
        if (known == "").any()
    ]
    return levels, unchecked


def _stem(path: str) -> str:
    """The name of an image without folders and ending."""
    image = PurePosixPath(path)
    return image.stem if image.suffix.lower() in IMAGES else image.name


def _facts(metadata: Path, stems: pd.Series) -> pd.DataFrame:
    """The rows of a metadata CSV for images called `stems`; "" for those it does not list."""
    facts = read_csv(metadata)
    key = next((name for name in NAMES["path"] if name in facts.columns), None)
    if key is None:
        raise PathoError(
            "csv_format",
            metadata.name,
            f"has no column of image names ({', '.join(NAMES['path'])})",
            "Rename the column",
        )
    facts = facts.set_index(facts.pop(key).map(_stem))
    stop_on(
        [("csv_format", metadata.name, f"lists {name!r} twice") for name in facts.index[facts.index.duplicated()]],
        "Remove one of the lines",
    )
    return facts.reindex(stems).fillna("").set_index(stems.index)
