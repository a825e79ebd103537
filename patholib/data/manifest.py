"""The manifest: one row per image with its path, label, group ids and other facts, before a file is opened."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from patholib.base.errors import PathoError, nearest, shown
from patholib.base.files import as_least_able
from patholib.data import columns, csvfiles

DEMO_NOTE = "Demo images: not a result"
_UNWRITABLE = re.compile("[\r\ud800-\udfff]")  # a lone \\r ends a CSV line; surrogates stand for bytes of no text
_FORMULA = re.compile(r"[=@]|[+-](?![\d.]*$)")  # a sign alone, or before a number, is none


@dataclass(frozen=True, eq=False, repr=False)
class Manifest:
    """One row per image, sorted by path, with every id that must be kept out of a second split.

    Raises PathoError: `bad_manifest` (columns, classes), `name_collision` (two paths that are one file on some system),
    `unwritable_name`.
    """

    table: pd.DataFrame  # path (posix, relative to root), label, then text columns; a missing text is ""
    root: Path
    classes: tuple[str, ...]  # in the order of the model's outputs
    positive: str | None
    group_by: str  # the column that must not be shared between splits
    levels: tuple[str, ...]  # all id columns, finest first; an id is never ""
    subgroups: tuple[str, ...]  # columns worth reporting apart
    source: str  # the name of the reader; "table" for a CSV
    demo: bool  # generated images: nothing measured on them is a result
    found: dict  # what the reader counted, JSON values

    def __post_init__(self):
        needed = ("path", "label", *self.levels, *self.subgroups)
        missing = [name for name in needed if name not in self.table.columns]
        if missing or self.group_by not in self.levels:
            raise PathoError(
                "bad_manifest",
                ", ".join(missing) or self.group_by,
                "is not an id column of the table",
                f"Columns: {', '.join(self.table.columns)}; ids: {', '.join(self.levels)}",
            )
        for name in self.table.columns:
            texts = self.table[name].tolist()  # a column iterates ten times slower than a list
            if not all(isinstance(value, str) for value in texts):
                raise PathoError(
                    "bad_manifest",
                    name,
                    "holds values that are not text",
                    'Write a missing value as "" and numbers as text',
                )
            refuse_unwritable(name, texts)
        for name in ("path", *self.levels):
            if (self.table[name] == "").any():
                raise PathoError("bad_manifest", name, "is empty in some rows", "Give every image an id of its own")
        csvfiles.stop_on(
            [
                ("bad_classes", name, "is a class that a spreadsheet would take for a formula")
                for name in self.classes
                if _FORMULA.match(name)
            ],
            "Rename it: tables of predictions have it in their header and in every row",
        )
        unknown = sorted(set(self.table["label"].tolist()) - set(self.classes))
        if unknown:
            raise PathoError("bad_manifest", unknown[0], "is not a class", nearest(unknown[0], self.classes))
        _refuse_collisions(self.table["path"].tolist())
        object.__setattr__(self, "table", self.table.sort_values("path", ignore_index=True))

    @property
    def note(self) -> str:
        """What every figure of these images says on its face; empty for real ones."""
        return DEMO_NOTE if self.demo else ""

    def __repr__(self) -> str:
        ids = ", ".join(f"{self.table[level].nunique():,} {level}s" for level in self.levels)
        lines = [f"{self.source}: {len(self.table):,} images, {ids}; never split apart: {self.group_by}"]
        if read_as := self.found.get("columns"):
            lines.append(f"  columns: {', '.join(f'{theirs} = {ours}' for theirs, ours in read_as.items())}")
        for name in self.classes:
            of_class = self.table[self.table["label"] == name]
            lines.append(f"  {name}: {len(of_class):,} images, {of_class[self.group_by].nunique():,} {self.group_by}s")
        return "\n".join([self.note, *lines] if self.demo else lines)

    def chosen(self, label: str | None = None, only: str | None = None, group: str | None = None) -> Manifest:
        """A part of the images, "magnification=40|100", with the classes of another column, grouped by another one.

        Classes without an image are left out. Raises PathoError: `unknown_value`, `csv_format`, `unknown_group`, ...
        """
        table, classes, positive, group_by, levels = self.table, self.classes, self.positive, self.group_by, self.levels
        if only:
            table = table[columns.where(table, self.source, only)]
        if label:
            table = table.assign(label=table[columns.named(table, self.source, label, 'label="..."')])
            without = table.loc[table["label"] == "", "path"]
            csvfiles.stop_on(
                [("bad_label", path, f"has no {label}") for path in without], f'Leave them out with only="{label}=..."'
            )
            classes, positive = tuple(sorted(set(table["label"]))), None
        if group == "image":
            table, group_by, levels = table.assign(image=table["path"]), "image", (*levels, "image")
        elif group:
            if group not in levels:
                raise PathoError(
                    "unknown_group", f"group={group!r}", "is no column of ids", nearest(group, (*levels, "image"))
                )
            group_by = group
        classes = tuple(name for name in classes if (table["label"] == name).any())
        if len(classes) < 2:
            raise PathoError(
                "single_class",
                self.source,
                f"holds {len(classes)} class, and a classifier needs two",
                "Choose other images",
            )
        return replace(
            self,
            table=table,
            classes=classes,
            positive=positive if positive in classes else None,
            group_by=group_by,
            levels=levels,
            subgroups=tuple(name for name in self.subgroups if name != label and len(set(table[name])) > 1),
            found=self.found
            | {"images": len(table)}
            | ({"only": only} if only else {})
            | ({"label": label} if label else {}),
        )


def _refuse_collisions(paths: Iterable[str]) -> None:
    """Windows and macOS see one file in `A.png` and `a.png`, and in the two ways Unicode writes an accent."""
    seen: dict[str, str] = {}
    twins = []
    for path in paths:
        plain = as_least_able(path)
        if plain in seen:
            twins.append(("name_collision", path, f"cannot be told from {shown(seen[plain])} on every system"))
        seen[plain] = path
    csvfiles.stop_on(twins, "Rename or remove one of each pair")


def in_several(table: pd.DataFrame, ids: str, column: str) -> list[str]:
    """The ids that occur with more than one value of `column`, in order: patients in two classes, say."""
    different = table[[ids, column]].drop_duplicates()[ids]
    return sorted(set(different[different.duplicated()]))


def first(names: Iterable[str], limit: int = 5) -> dict:
    """How many, and the first few by name: the form in which a reader reports a list."""
    names = list(names)
    return {"count": len(names), "first": [shown(name) for name in names[:limit]]}


def refuse_unwritable(column: str, texts: list[str]) -> None:
    """Refuses names that no CSV could hold, nor pandas where pyarrow is installed. Errors: unwritable_name."""
    csvfiles.stop_on(
        [
            ("unwritable_name", text, f"in column {column} holds a carriage return or bytes that are not UTF-8")
            for text in texts
            if _UNWRITABLE.search(text)
        ],
        "Rename it: no CSV file could hold it",
    )
