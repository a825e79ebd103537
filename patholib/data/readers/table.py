"""Your own images: a CSV with the columns path, label and group (the patient), one row per image."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path, PureWindowsPath

import numpy as np
import pandas as pd

from patholib.base.errors import PathoError, nearest
from patholib.base.files import joined
from patholib.data.csvfiles import read_csv, stop_on
from patholib.data.manifest import Manifest, first, in_several
from patholib.data.readers.folders import demo_folder
from patholib.data.readers.sources import TABLE

ALIASES = {"path": ("file", "image"), "group": ("patient", "case", "lesion")}  # the coarsest id first
SUBGROUP_VALUES = (2, 12)  # a further column with so many different values is reported apart


def read(path: Path, positive: str | None = None, missing: str = "error") -> Manifest:
    """The manifest of a CSV `path,label,group[,...]`; classes in alphabetical order, further columns kept as text.

    Image paths count from the folder of the CSV and do not leave it, unless they are absolute; \\ is read as /.
    Also accepted, and said in `found`: file or image for path; patient, case or lesion for group. A column `split`
    is kept as `given_split` but never used. A row without a group is a group of its own. A column `sha256` is held
    against the files by `checking.check`.
    positive: the class whose sensitivity is reported. No class is singled out unless it is named: what counts as
    a finding cannot be read off a label. missing: "error", or "skip" to leave out rows without a file.
    Raises PathoError: `missing_file`, `csv_format`, `bad_label`, `path_outside_root`, `rows_without_files`,
    `single_class`, `unknown_class`, `name_collision`.
    """
    if missing not in ("error", "skip"):
        raise PathoError("bad_parameter", f"missing={missing!r}", "is not known", "Use 'error' or 'skip'")
    path = Path(path)
    root, table = path.absolute().parent, read_csv(path)
    renamed = _standard_names(path.name, table)
    table = table.rename(columns=renamed)
    table["path"] = _paths(path.name, table, root)
    empty = table.index[table["label"].str.strip() == ""]
    stop_on([("bad_label", f"{path.name} line {line}", "has no label") for line in empty], "Write a class in every row")
    table, without = _present(path.name, table, root, missing)
    no_group = table["group"] == ""
    table["group"] = table["group"].mask(no_group, table["path"])
    classes = _classes(path.name, table["label"], positive)
    order = ["path", "label", "group"]
    further = [name for name in table.columns if name not in order]
    counted = {"columns": renamed, "rows_without_file": first(without), "rows_without_group": int(no_group.sum())}
    low, high = SUBGROUP_VALUES
    subgroups = tuple(n for n in further if n != "given_split" and low <= table[n].nunique() <= high)
    return Manifest(
        table=table[order + further],
        root=root,
        classes=classes,
        positive=positive,
        group_by="group",
        levels=("group",),
        subgroups=subgroups,
        source=TABLE,
        demo=demo_folder(root) is not None,
        found=_counts(table) | counted,
    )


def _present(name: str, table: pd.DataFrame, root: Path, missing: str) -> tuple[pd.DataFrame, list[str]]:
    """The rows whose file is there, and the paths of the others; those are an error unless missing is "skip"."""
    there = np.array([os.path.lexists(joined(root, path)) for path in table["path"].tolist()], bool)
    without = table.loc[~there, "path"].tolist()  # whether what is there is an image, the image check will say
    if without and (missing == "error" or not there.any()):
        raise PathoError(
            "rows_without_files",
            name,
            f"{len(without)} of {len(table)} rows have no file ({', '.join(first(without)['first'])})",
            f'Paths count from {root}; correct them, or pass missing="skip" to leave these rows out',
        )
    return table[there], without


def _classes(name: str, labels: pd.Series, positive: str | None) -> tuple[str, ...]:
    """The classes in alphabetical order. Errors: single_class, unknown_class."""
    classes = tuple(sorted(set(labels)))
    if len(classes) < 2:
        raise PathoError(
            "single_class",
            name,
            f"holds {len(classes)} class, and a classifier needs two",
            "Add images of another class",
        )
    if positive is not None and positive not in classes:
        raise PathoError("unknown_class", f"positive={positive!r}", "is not a label", nearest(positive, classes))
    return classes


def _counts(table: pd.DataFrame) -> dict:
    """What is worth knowing about images and groups, and about a split that the table brings along."""
    counted: dict = {"images": len(table), "groups": table["group"].nunique()}
    counted["groups_in_two_classes"] = first(in_several(table, "group", "label"))
    if "given_split" in table:
        images = table["given_split"].value_counts().sort_index()
        counted["given_split"] = {
            **{name: int(n) for name, n in images.items()},
            "groups_in_two": len(in_several(table, "group", "given_split")),
        }
    return counted


def _standard_names(name: str, table: pd.DataFrame) -> dict[str, str]:
    """{column: its standard name}; refuses a table without path, label or group, or with a name kept for results."""
    names = list(table.columns)
    renamed, problems = {}, []
    for column in ("path", "label", "group"):
        other = next((alias for alias in (column, *ALIASES.get(column, ())) if alias in names), None)
        if other is None:
            also = f" (or {', '.join(ALIASES[column])})" if column in ALIASES else ""
            problems.append(("csv_format", f"{name} column {column}{also}", f"is missing; {nearest(column, names)}"))
        elif other != column:
            renamed[other] = column
    if "split" in names:
        renamed["split"] = "given_split"
    labels = set(table["label"]) if "label" in names else set()
    kept = {"row", "given_split", "given_group", *(f"p_{label}" for label in labels)} & set(names)
    problems += [("csv_format", f"{name} column {column}", "is a name kept for results") for column in sorted(kept)]
    group = (
        ". group is the patient or lesion an image is of: images of one group are never shared between splits; if "
        "every image is of another patient, number the rows in that column"
    )
    has_group = "group" in {*names, *renamed.values()}
    stop_on(problems, "Rename or add the columns" + ("" if has_group else group))
    return renamed


def _paths(name: str, table: pd.DataFrame, root: Path) -> list[str]:
    """Posix paths, relative to `root` where they lie in it."""
    paths, problems = [], []
    for line, text in zip(table.index.tolist(), table["path"].tolist(), strict=True):
        where = f"{name} line {line}"
        path = posixpath.normpath(text.replace("\\", "/")) if text.strip() else ""
        rooted = path.startswith("/") or ":" in path  # no other is absolute or on a drive, and asking pathlib is slow
        if rooted and Path(path).is_absolute():
            path = Path(path).relative_to(root).as_posix() if Path(path).is_relative_to(root) else path
        elif not path:
            problems.append(("csv_format", where, "has no path"))
        elif path.split("/")[0] == "..":
            problems.append(("path_outside_root", where, f"{text!r} leaves the folder of the CSV"))
        elif path.startswith("/"):
            problems.append(("path_outside_root", where, f"{text!r} begins at the root of another system"))
        elif rooted and PureWindowsPath(path).drive:
            problems.append(("path_outside_root", where, f"{text!r} is on a drive of another system"))
        paths.append(path)
    stop_on(problems, "Write paths that count from the folder of the CSV, or absolute ones")
    return paths
