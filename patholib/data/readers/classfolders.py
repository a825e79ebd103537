"""Class folders: a folder for every class, perhaps in folders train, val and test, which say nothing of patients."""

from __future__ import annotations

import itertools
from pathlib import Path

import pandas as pd

from patholib.base.errors import PathoError
from patholib.data.columns import SPLIT_WORDS
from patholib.data.manifest import Manifest, first
from patholib.data.readers.folders import DEPTH, IMAGES, demo_folder, entries, folders_below, subfolders, walk
from patholib.data.readers.sources import TABLE


def holds(folder: Path) -> bool:
    """Whether images of two classes lie below `folder`, each class in a folder of its own."""
    if not Path(folder).is_dir():
        return False
    below = subfolders(_begin(Path(folder)))
    parts = [deeper for one in below if one.name.lower() in SPLIT_WORDS for deeper in subfolders(one)]
    return len({one.name for one in parts or below if _has_images(one)}) > 1


def read(folder: Path, group: str | None) -> Manifest:
    """The manifest of class folders, where the user accepts that every image is its own group: group="image".

    Errors: no_groups without it; bad_label.
    """
    root = _begin(Path(folder)).absolute()
    rows, left = _rows(root)
    loose = [path for path, label, *_ in rows if not label]
    if loose:
        raise PathoError(
            "bad_label", loose[0], f"lies in no class folder ({len(loose)} such files)", "Move or remove them"
        )
    table = pd.DataFrame(rows, columns=["path", "label", "given_split"], dtype=str)
    if group != "image":
        raise _no_groups(root, table, group)
    table["image"] = table["path"]
    counted = {"images": len(table), "groups": len(table), "grouped_by": "image"}
    if (table["given_split"] == "").all():
        table = table.drop(columns="given_split")
    return Manifest(
        table=table,
        root=root,
        classes=tuple(sorted(set(table["label"]))),
        positive=None,
        group_by="image",
        levels=("image",),
        subgroups=(),
        source=TABLE,
        demo=demo_folder(root) is not None,
        found=counted | {name: first(names) for name, names in left.items() if names},
    )


def _begin(folder: Path) -> Path:
    """The folder in which the classes begin: the data set may be doubled by its archive."""
    for _ in range(DEPTH):
        below = subfolders(folder)
        if len(below) != 1 or any(entry.name.lower().endswith(IMAGES) for entry in entries(folder)):
            break
        folder = below[0]
    return folder


def _has_images(folder: Path) -> bool:
    """Whether an image lies in the folder or in one of the nearest below it."""
    near = itertools.islice(folders_below(folder), 100)
    return any(entry.name.lower().endswith(IMAGES) for one in near for entry in entries(one))


def _rows(root: Path) -> tuple[list[tuple[str, str, str]], dict]:
    """Path, class and word of the split ("" for none) of every image; and what was left out."""
    images, left = walk(root)
    rows = []
    for path in images:
        *above, _ = path.split("/")
        part = above.pop(0) if above and above[0].lower() in SPLIT_WORDS else ""
        rows.append((path, above[0] if above else "", part))
    return rows, left


def _no_groups(root: Path, table: pd.DataFrame, group: str | None) -> PathoError:
    return PathoError(
        "no_groups",
        str(root) if group is None else f"group={group!r}",
        f"holds a folder for every class ({', '.join(sorted(set(table['label']))[:6])}), which say nothing of patients",
        "Write a table with path, label and patient (see the page Your own images) and give it as data; or set "
        'group="image" if every image is of another patient, or if you do not know and accept that: '
        "the report then says that patients may be in two splits",
    )
