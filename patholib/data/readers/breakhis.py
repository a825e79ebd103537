"""BreakHis: breast histology, benign or malignant, whose file names hold class, patient and magnification.

Spanhol et al. 2016, "A Dataset for Breast Cancer Histopathological Image Classification", section II.

That the letters behind a number (14-22549AB) tell slides of one patient apart is an assumption: the authors document
the slide id, not its letters. Of the 81 slide ids at 40X 70 numbers remain; the paper counts 82 patients.
Grouping by `case`, the number, is the cautious choice: if the assumption is wrong, patients are kept together without
need; if it is right, grouping by `slide` would let a patient into two parts.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pandas as pd

from patholib.base.errors import nearest
from patholib.data.csvfiles import stop_on
from patholib.data.manifest import Manifest, first, in_several, refuse_unwritable
from patholib.data.readers import folders
from patholib.data.readers.folders import DEPTH, IMAGES, demo_folder, folders_below, not_there, subfolders, walk
from patholib.data.readers.reader import Reader

_WHAT = "BreakHis (folders benign and malignant)"
CLASSES = ("benign", "malignant")
SUBTYPES = {  # code in the name: (class, subtype as its folder is called)
    "A": ("benign", "adenosis"),
    "F": ("benign", "fibroadenoma"),
    "PT": ("benign", "phyllodes_tumor"),
    "TA": ("benign", "tubular_adenoma"),
    "DC": ("malignant", "ductal_carcinoma"),
    "LC": ("malignant", "lobular_carcinoma"),
    "MC": ("malignant", "mucinous_carcinoma"),
    "PC": ("malignant", "papillary_carcinoma"),
}
MAGNIFICATIONS = ("40", "100", "200", "400")
GIVEN = ("train", "val", "valid", "validation", "test")  # folders some mirrors put above the classes
PATTERN = "SOB_<B|M>_<A|F|PT|TA|DC|LC|MC|PC>-<year>-<slide>-<40|100|200|400>-<number>.png"
_NAME = re.compile(r"SOB_([BM])_(A|F|PT|TA|DC|LC|MC|PC)-(\d\d)-(\d+)([A-Z]*)-(40|100|200|400)-(\d+)", re.ASCII)
_SLIDE_FOLDER = re.compile(r"SOB_[BM]_(?:A|F|PT|TA|DC|LC|MC|PC)_(\d\d-\d+[A-Z]*)", re.ASCII)
_MAGNIFICATION_FOLDER = re.compile(r"(\d+)X", re.ASCII | re.IGNORECASE)


class Facts(NamedTuple):
    """What the name of an image says."""

    label: str  # "benign" or "malignant"
    subtype: str
    slide: str  # "14-22549AB"
    case: str  # "14-22549": the slide without its letters, taken for a patient; see the module
    magnification: str  # "40", "100", "200" or "400"
    sequence: str  # running number within slide and magnification


def parse(name: str) -> Facts | None:
    """The facts in a file name, with or without its ending; None if it does not follow PATTERN."""
    stem = name[: -len(PurePosixPath(name).suffix)] if PurePosixPath(name).suffix.lower() in IMAGES else name
    match = _NAME.fullmatch(stem)
    if match is None:
        return None
    letter, code, year, number, slide_letters, magnification, sequence = match.groups()
    label, subtype = SUBTYPES[code]
    if label[0].upper() != letter:
        return None
    case = f"{year}-{number}"
    repeated = map(sys.intern, (case + slide_letters, case, magnification, sequence))  # one text for all rows
    return Facts(label, subtype, *repeated)


def holds(folder: Path) -> bool:
    """Whether the class folders, or train and test folders with the class folders, or images lie in `folder`."""
    return _has_classes(folder) or any(parse(entry.name) for entry in folders.entries(folder))


def _has_classes(folder: Path) -> bool:
    below = subfolders(folder)
    given = [deeper for one in below if one.name.lower() in GIVEN for deeper in subfolders(one)]
    return any(one.name.lower() in CLASSES for one in below + given)


def locate(path: Path) -> list[Path]:
    """The folders nearest below `path` in which a BreakHis tree begins: one, several side by side, or none.

    Images that lie in no class folders, here or above, all belong together: it is then `path` itself.
    """
    hits: list[Path] = []
    for folder in folders_below(path):
        if hits and len(folder.parts) > len(hits[0].parts):
            break
        if _has_classes(folder):
            hits.append(folder)
    if hits or any(map(_has_classes, path.absolute().parents[:DEPTH])):
        return hits
    return [path] if any(map(holds, folders_below(path))) else []


def read(root: Path, missing: str = "error") -> Manifest:
    """The manifest of BreakHis: the official tree from any level above the classes, train|test folders, or images.

    Paths are relative to the folder in which the classes begin (for demo images: to the one that is marked so).
    Folders train and test are kept as column `given_split` and counted, but never used: they share patients.
    missing: as for every reader; no table lists the images of BreakHis, so none can be missing.
    Raises PathoError: `data_root`, `name_pattern`, `label_mismatch`, `unknown_class`, `empty_class`, `single_class`.
    """
    hits = locate(Path(root))
    if not hits:
        raise not_there(_WHAT, holds, Path(root))
    stop_on(
        [("data_root", str(hit), "is one of several trees side by side") for hit in hits if len(hits) > 1],
        "Name one of them",
    )
    images, left = walk(hits[0])
    if _has_classes(hits[0]):
        _check_classes(hits[0], images)
    left_out = {name: first(names) for name, names in left.items() if names}
    marked = demo_folder(hits[0])
    base = marked or hits[0].absolute()
    prefix = hits[0].absolute().relative_to(base).as_posix()
    paths = images if prefix == "." else [f"{prefix}/{image}" for image in images]
    return from_names(paths, base, left_out, demo=marked is not None)


def from_names(names: Iterable[str], root: Path = Path(), left_out: dict | None = None, demo: bool = False) -> Manifest:
    """The manifest of images known by name alone, paths or bare names: enough to split and to audit.

    Raises PathoError: `name_pattern`, `label_mismatch` (a folder of the path contradicts the name), all at once.
    """
    problems, rows = [], []
    for path in names:
        *above, name = path.split("/")
        facts = parse(name)
        if facts is None:
            problems.append(("name_pattern", path, f"does not follow {PATTERN}"))
            continue
        problems += [("label_mismatch", path, reason) for reason in _contradictions(above, facts)]
        given = next((folder.lower() for folder in above if folder.lower() in GIVEN), "")
        rows.append((path, *facts, given))
    stop_on(problems, "Rename or move these files, or take them out of the folder")
    missing = [name for name in CLASSES if name not in {facts[1] for facts in rows}] if left_out is not None else []
    stop_on([("single_class", name, "has no image, and both classes are needed") for name in missing[:1]], "Add them")
    refuse_unwritable("path", [path for path, *_ in rows])
    table = pd.DataFrame(rows, columns=["path", *Facts._fields, "given_split"], dtype=str)
    counted = {"images": len(table), **_counts(table), **(left_out or {})}
    if not (table["given_split"] != "").any():
        table = table.drop(columns="given_split")
    return Manifest(
        table=table,
        root=Path(root),
        classes=CLASSES,
        positive="malignant",
        group_by="case",
        levels=("slide", "case"),
        subgroups=("magnification", "subtype"),
        source="breakhis",
        demo=demo,
        found=counted,
    )


def _contradictions(above: list[str], facts: Facts) -> list[str]:
    """What the folders of a path say otherwise than the name."""
    subtypes = [subtype for _, subtype in SUBTYPES.values()]
    reasons = []
    for folder in above:
        low = folder.lower()
        slide, magnification = _SLIDE_FOLDER.fullmatch(folder), _MAGNIFICATION_FOLDER.fullmatch(folder)
        for known, said in ((low in CLASSES, facts.label), (low in subtypes, facts.subtype)):
            if known and low != said:
                reasons.append(f"lies in {folder}, its name says {said}")
        if slide and slide[1] != facts.slide:
            reasons.append(f"lies in {folder}, its name says slide {facts.slide}")
        if magnification and magnification[1] != facts.magnification:
            reasons.append(f"lies in {folder}, its name says {facts.magnification}X")
    return reasons


def _check_classes(root: Path, images: list[str]) -> None:
    """Images must lie in the folders of both classes, and in no folder beside them."""
    seen = {_class_folder(path) for path in images}
    problems = [
        ("unknown_class", name or str(root), f"holds images but is not a class; {nearest(name, CLASSES)}")
        for name in sorted(seen - set(CLASSES))
    ]
    for name in CLASSES:
        if name not in seen:
            below = (folder.relative_to(root).as_posix().lower() for folder in folders_below(root))
            there = any(name in path.split("/") for path in below)
            problems.append(
                ("empty_class", name, "holds no image")
                if there
                else ("single_class", name, f"has no folder in {root}, and both classes are needed")
            )
    stop_on(problems, "Restore the folders benign and malignant as they were unpacked")


def _class_folder(path: str) -> str:
    """The folder that should be a class: the first, or the first below train or test; "" if there is none."""
    above = path.lower().split("/")[:-1]
    return next((folder for folder in above[:2] if folder not in GIVEN), "")


def _counts(table: pd.DataFrame) -> dict:
    """What is worth knowing of the whole set."""
    counted = {
        "slides": table["slide"].nunique(),
        "cases": table["case"].nunique(),
        "magnifications": {
            m: int((table["magnification"] == m).sum()) for m in MAGNIFICATIONS if (table["magnification"] == m).any()
        },
        "cases_in_two_classes": first(in_several(table, "case", "label")),
        "slides_in_two_subtypes": first(in_several(table, "slide", "subtype")),
        "names_twice": first(table.loc[table["path"].str.rsplit("/", n=1).str[-1].duplicated(), "path"]),
    }
    if (table["given_split"] != "").any():
        counts = table["given_split"].value_counts().sort_index()
        counted["given_split"] = {
            **{name: int(n) for name, n in counts.items()},
            "cases_in_two": len(in_several(table, "case", "given_split")),
        }
    return counted


# Folders benign and malignant alone may be anything's, so that a search takes only what is called BreakHis.
READER = Reader(
    name="breakhis", what=_WHAT, holds=holds, read=read, reads_below=True, folder_name="breakhis|^histology_slides$"
)
