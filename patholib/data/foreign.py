"""Reads other people's splits for the audit: CSV tables, and folders with a sub-folder for each part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from patholib.base.errors import PathoError, nearest
from patholib.base.files import joined
from patholib.data import columns as meaning
from patholib.data.columns import SPLIT_WORDS, stem
from patholib.data.csvfiles import read_csv, stop_on
from patholib.data.readers import breakhis, isic2019, resolving, table
from patholib.data.readers.folders import is_demo, subfolders, walk
from patholib.data.splitting import SPLITS

ISIC = r"isic_\d{7}(_downsampled)?"


@dataclass(frozen=True)
class Listed:
    """The images of a split before any of them is opened."""

    name: str
    table: pd.DataFrame  # path, label ("" where not given), split (one of SPLITS), then whatever the source has
    places: list[Path | None]  # where each file is; None: not there
    demo: bool
    remarks: tuple[str, ...] = ()  # what was taken for one, and what for unknown
    closed: tuple[str, ...] = ()  # the folders that cannot be listed, and why


def read(
    split, root: Path | None, columns: Mapping[str, str], ids: Iterable[str] = (), where: str | None = None
) -> Listed:
    """The images of a split: {part: folder}, a table, a CSV, or a folder with a subfolder for each part.

    ids: columns of ids besides those that are known by name. where: the rows of a table that count, "fold=1".
    """
    if isinstance(split, Mapping):
        return _from_folders([(_split_of(name), Path(folder)) for name, folder in split.items()], "folders")
    if isinstance(split, pd.DataFrame):
        return _from_table(split, "table", Path(root or "."), columns, ids, where)
    split = Path(split)
    if not split.is_dir():
        return _from_table(read_csv(split), split.name, Path(root or split.parent), columns, ids, where)
    return _from_folders(
        [(SPLIT_WORDS[below.name.lower()], below) for below in subfolders(split) if below.name.lower() in SPLIT_WORDS],
        split.name,
    )


def _split_of(name: str) -> str:
    if name.lower() not in SPLIT_WORDS:
        raise PathoError("unknown_split", name, "is not a split", nearest(name, SPLIT_WORDS))
    return SPLIT_WORDS[name.lower()]


def _from_folders(parts: list[tuple[str, Path]], name: str) -> Listed:
    """The images below folders, each of a split; the first folder within is the class."""
    places: list[Path | None] = []
    rows, closed = [], dict[str, PathoError]()
    for part, folder in sorted(parts, key=lambda both: SPLITS.index(both[0])):
        if not folder.is_dir():
            raise PathoError("missing_file", str(folder), "is not a folder", "Name the folder of the images")
        inside = dict[str, PathoError]()
        images, _ = walk(folder, inside)
        closed |= {f"{part}/{name}": error for name, error in inside.items()}
        for image in images:
            label, below, _ = image.partition("/")
            rows.append((f"{part}/{image}", label if below else "", part))
            places.append(folder / image)
    listed = pd.DataFrame(rows, columns=["path", "label", "split"], dtype=str)
    if closed and listed["split"].nunique() < len(parts):
        raise next(iter(closed.values()))
    _refuse_one_split(listed, name)
    said = tuple(f"images in {path}: it {error.reason}" for path, error in closed.items())
    return Listed(name, listed, places, any(is_demo(folder) for _, folder in parts), closed=said)


def _from_table(
    source: pd.DataFrame, name: str, root: Path, columns: Mapping[str, str], ids: Iterable[str], where: str | None
) -> Listed:
    """The images of a table whose columns may have other names, as `columns` says ({ours: theirs})."""
    source = source.map(lambda cell: "" if pd.isna(cell) else str(cell)).rename(columns=str)
    if where:
        source = source[meaning.where(source, name, where)]
    listed, _ = table.standard(source, name, meaning.check_mapping(columns), split=True)
    listed.insert(2, "split", meaning.split_words(f"{name} line", listed.pop("given_split"), ""))
    listed["path"] = listed["path"].str.strip().str.replace("\\", "/")
    stop_on(
        [("csv_format", f"{name} line {line}", "has no path") for line in listed.index[listed["path"] == ""]],
        "Write the path or the name of the image",
    )
    remarks = []
    for column in ("label", *(c for c in listed if c in ids or meaning.level_of(c))):
        listed[column], said = meaning.one_spelling(listed[column], placeholders=column != "label")
        remarks += [f"{column}: {text}" for text in said]
    listed = listed.reset_index(drop=True)
    _refuse_one_split(listed, name)
    at = resolving.locate(root, listed["path"])
    if at.found_as:
        text, file = next(iter(at.found_as.items()))
        remarks.append(f"files: {len(at.found_as):,} were found by their names, {text} as {file}")
    places = [Path(joined(root, path)) if there else None for path, there in zip(at.paths, at.there, strict=True)]
    return Listed(name, listed, places, is_demo(root), tuple(remarks))


def _refuse_one_split(listed: pd.DataFrame, name: str) -> None:
    if listed["split"].nunique() < 2:
        raise PathoError(
            "no_split",
            name,
            "does not hold images of two of the splits train, val and test",
            "Name a CSV with a column split, or the folders (--train FOLDER --test FOLDER)",
        )


def ids(listed: pd.DataFrame, asked: Iterable[str], metadata: Path | None) -> tuple[dict[str, pd.Series], list[str]]:
    """What must not be shared, {level: the id of every image, "" where unknown}, and what is not known of it.

    Columns named like a level of grouping, those asked for, those of the metadata, and what names say: slide and case
    in those of BreakHis, in those of ISIC the picture that an image is a smaller copy of.
    """
    asked, unchecked, stems = list(asked), [], listed["path"].map(stem)
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
    found = {name: listed[name].str.strip() for name in listed.columns if name in asked or meaning.level_of(name)}
    found = {name: meaning.one_spelling(cells)[0] for name, cells in found.items()}
    found = {name: _within_coarser(name, found) for name in found}
    names = listed["path"].map(lambda path: breakhis.parse(path.rpartition("/")[2].strip()))
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


def _within_coarser(name: str, found: Mapping[str, pd.Series]) -> pd.Series:
    """The ids of a column; with those of the patient before them where they are numbered anew for every patient."""
    order = [level for level in meaning.LEVELS if level != "group"]
    levels = {column: order.index(level) for column in found if (level := meaning.level_of(column)) in order}
    ids = pd.DataFrame(dict(found))
    coarser = [c for c in levels if name in levels and levels[c] < levels[name]]
    for column in sorted(coarser, key=levels.__getitem__):
        if meaning.within(ids, name, column)[0] == "numbered":
            return (ids[column] + "/" + ids[name]).where((ids[column] != "") & (ids[name] != ""), ids[name])
    return found[name]


def _facts(metadata: Path, stems: pd.Series) -> pd.DataFrame:
    """The rows of a metadata CSV for images called `stems`; "" for those it does not list."""
    facts = read_csv(metadata)
    key = next(iter(meaning.meant(facts, meaning.PATH)), None)
    if key is None:
        raise meaning.missing(facts, metadata.name, "path", "Rename the column of the images", ("image", "image_id"))
    names = facts.pop(key)
    facts = facts.set_index(names.map(stem))
    stop_on(
        [("csv_format", metadata.name, f"lists {name!r} twice") for name in names[facts.index.duplicated()]],
        "Remove one of the lines",
    )
    return facts.reindex(stems).fillna("").set_index(stems.index)
