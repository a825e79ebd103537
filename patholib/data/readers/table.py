"""Your own images: a table with a row for every image, which says its file, its class and the patient it is of."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath

import numpy as np
import pandas as pd

from patholib.base.errors import PathoError
from patholib.data import columns
from patholib.data.csvfiles import read_csv, stop_on
from patholib.data.manifest import Manifest, first, in_several
from patholib.data.readers import breakhis, resolving
from patholib.data.readers.folders import demo_folder
from patholib.data.readers.sources import TABLE

SUBGROUP_VALUES = (2, 12)  # a further column with so many different values is reported apart
PARTS = ("GroundTruth", "Metadata", "LesionGroupings")  # tables of one data set that lie beside each other
GROUPS = (
    'Name the column of the patient with group, as group="patient". If every image is of another patient, or you do '
    'not know and accept that, set group="image": the report then says that patients may be in two splits'
)


def read(
    path: Path,
    missing: str = "error",
    *,
    label: str | None = None,
    only: str | None = None,
    group: str | None = None,
    names: str | None = None,
) -> Manifest:
    """The manifest of a table; classes in alphabetical order, further columns kept as text.

    What its columns mean, `columns` says. Image paths count from the folder of the table and do not leave it, unless
    they are absolute; a file that is not there is looked for by its name below. A column that splits the images is kept
    as `given_split`; a column `sha256` is held against the files by `checking.check`.
    No class is singled out as the positive one. missing: "error", or "skip" to leave out rows without a file. label:
    the column of the classes. only: the rows that count, "fold=1". group: the column that must not be shared between
    splits, or "image". names: "path=file_name, split=fold".
    Raises PathoError: `missing_file`, `csv_format`, `bad_label`, `bad_id`, `two_spellings`, `listed_twice`,
    `label_conflict`, `path_outside_root`, `rows_without_files`, `no_groups`, `single_class`, ...
    """
    if missing not in ("error", "skip"):
        raise PathoError("bad_parameter", f"missing={missing!r}", "is not known", "Use 'error' or 'skip'")
    path = Path(path)
    name, source = _with_companions(path)
    wanted = columns.conditions(only) if only else {}
    now = {column: values for column, values in wanted.items() if columns.meant(source, [columns.plain(column)])}
    source = source[columns.where(source, name, now)]
    asked = columns.parsed(names or "") | ({"label": label} if label else {})
    table, found = standard(source, name, asked)
    table = table[columns.where(table, name, {column: wanted[column] for column in wanted.keys() - now.keys()})]
    _refuse_reserved(name, table)
    table["label"] = _labels(name, found.get("label", "label"), table["label"])
    root, table, said = _placed(name, table, path.absolute().parent, missing)
    table, levels, of_groups = _grouped(name, table, group)
    group_by = "image" if group == "image" else "group"
    _refuse_twice(name, table, group_by)
    classes = tuple(sorted(set(table["label"])))
    if len(classes) < 2:
        reason = f"holds {len(classes)} class, and a classifier needs two"
        raise PathoError("single_class", name, reason, "Add images of another class")
    said |= {"only": only} if only else {}
    found |= {} if group == "image" else {"group": of_groups["grouped_by"]}
    said |= of_groups | {"columns": {theirs: ours for ours, theirs in found.items() if ours != theirs}}
    further = [column for column in table.columns if column not in ("path", "label", *levels)]
    low, high = SUBGROUP_VALUES
    plain = [column for column in further if column not in ("given_split", "sha256")]
    return Manifest(
        table=table[["path", "label", *reversed(levels), *further]],
        root=root,
        classes=classes,
        positive=None,
        group_by=group_by,
        levels=levels,
        subgroups=tuple(column for column in plain if low <= table[column].nunique() <= high),
        source=TABLE,
        demo=demo_folder(root) is not None,
        found=_counts(table, group_by) | said,
    )


def standard(source: pd.DataFrame, name: str, asked: Mapping[str, str] | None = None, split: bool = False):
    """The table with the columns path, label ("" where none is needed or there) and given_split; {ours: theirs}.

    split: the table is one of a split, which has to say train or test, and need not say classes.
    Errors: csv_format, bad_label, listed_twice.
    """
    asked, found = dict(asked or {}), {}
    for ours, theirs in asked.items():
        found[ours] = columns.named(source, name, theirs, f'columns="{ours}=..."')
    if "path" not in found:
        there = columns.meant(source, columns.PATH)
        if not there:
            raise columns.missing(
                source,
                name,
                "path",
                'Say which it is: columns="path=..." (evaluate, audit: --columns path=...)',
                ("file, image",),
            )
        found["path"] = there[0]
    if "split" not in found and (given := columns.split_column(source, name)):
        found["split"] = given
    if split and "split" not in found:
        raise columns.missing(source, name, "split", "Say what it is called with columns (--columns split=...)")
    _refuse_repeats(source, name, found)
    table = source.drop(columns=[found["path"], *([found["split"]] if "split" in found else [])])
    table.insert(0, "path", source[found["path"]])
    if "split" in found:
        table["given_split"] = source[found["split"]]
    return _with_labels(table, name, found, split), found


def _refuse_repeats(source: pd.DataFrame, name: str, found: Mapping[str, str]) -> None:
    repeats = columns.repeats_by(source, found["path"], found.values())
    if repeats:
        value = source[repeats].iloc[0]
        raise PathoError(
            "listed_twice",
            f"{name} column {repeats}",
            f"lists every image {source[repeats].nunique()} times, once for each of its values",
            f'Choose one: only="{repeats}={value}" (audit: --where {repeats}={value})',
        )


def _with_labels(table: pd.DataFrame, name: str, found: dict[str, str], optional: bool) -> pd.DataFrame:
    """The table with its column `label`, from a column, from columns of 0 and 1, or from the names of BreakHis."""
    taken = {"path", "given_split", *(column for column in table if columns.level_of(column))}
    column = found.get("label") or columns.label_column(table, name, taken)
    hot = None if column else columns.one_hot(table, name, taken)
    facts = table["path"].map(lambda path: breakhis.parse(path.replace("\\", "/").rpartition("/")[2].strip()))
    said = pd.DataFrame(facts.tolist(), table.index) if len(table) and facts.notna().all() else None
    if said is not None:  # names of BreakHis also say slide and case, which a column of ids overrules
        of_names = [c for c in said if c not in ("label", "sequence") and c not in table]
        known = any(map(columns.level_of, table.columns))
        table = table.join(said[[c for c in of_names if not (known and columns.level_of(c))]])
    if column is not None:
        found["label"] = column
        return table.rename(columns={"label": "given_label", column: "label"})
    if hot is not None:
        return table.drop(columns=hot[1]).assign(label=hot[0])
    if said is not None or optional:
        return table.assign(label="" if said is None else said["label"])
    remedy = 'Say which column holds the class: label="..." (evaluate: --columns label=...)'
    raise columns.missing(table, name, "label", remedy, ("dx", "diagnosis"))


def _with_companions(path: Path) -> tuple[str, pd.DataFrame]:
    """The table and its name, joined with the other tables of its data set that lie beside it, or one folder above."""
    table, name = read_csv(path), path.name
    part = next((part for part in PARTS if part in name), None)
    beside = [path.name.replace(part, other) for other in PARTS if other != part] if part else []
    for place in [folder / other for other in beside for folder in (path.parent, path.absolute().parent.parent)]:
        if not place.is_file():
            continue
        more = read_csv(place)
        if not columns.meant(table, columns.PATH):  # MILK10k labels lesions, and lists their images in its Metadata
            table, more, name = more, table, place.name
        table = _joined(table, more)
    return name, table


def _joined(table: pd.DataFrame, more: pd.DataFrame) -> pd.DataFrame:
    """The table with further columns of another one, by the image or else by the lesion."""
    for names in (columns.PATH, ("lesion_id", "lesion")):
        ours, theirs = columns.meant(table, names), columns.meant(more, names)
        if ours and theirs:
            keys = more[theirs[0]].map(columns.stem)
            new = more[~keys.duplicated()].set_index(keys[~keys.duplicated()])
            new = new[[c for c in new if c not in table and c != theirs[0]]]
            found = new.reindex(table[ours[0]].map(columns.stem)).fillna("")
            return table.join(found.set_axis(table.index))
    return table


# --- files ------------------------------------------------------------------------------------------------------------


def _placed(name: str, table: pd.DataFrame, root: Path, missing: str) -> tuple[Path, pd.DataFrame, dict]:
    """The folder that paths count from, the rows whose file is there, and what is to be said of the files."""
    written = _paths(name, table, root)
    found = resolving.locate(root, written)
    if (
        not any(found.there)
        and not resolving.names_below(root)
        and all((above := resolving.locate(root.parent, written)).there)
    ):
        root, found = root.parent, above  # the table lies in a folder of its own beside the images
    stop_on(
        [("name_collision", path, f"may be {' or '.join(files)}") for path, files in found.several.items()],
        "Write the folder and the ending of the file, or move the other one away",
    )
    there = np.array(found.there, bool)
    without = [path for path, here in zip(written, found.there, strict=True) if not here]
    if without and (missing == "error" or not there.any()):
        raise _no_files(name, root, without, len(table))
    said = {"rows_without_file": first(without)}
    if found.found_as:
        said["found_as"] = first(f"{text} as {file}" for text, file in found.found_as.items())
    return root, table.assign(path=found.paths)[there], said


def _no_files(name: str, root: Path, without: list[str], rows: int) -> PathoError:
    """The error for rows without a file; it says where files of these names are, if that is near."""
    known = resolving.names_below(root) or resolving.names_below(root.parent)
    base = root if resolving.names_below(root) else root.parent
    near = [f"{base / file}" for path in without[:5] for file in known.get(columns.stem(path), [])[:1]]
    where = f"a file of that name is {near[0]}: correct the paths, or put the table there" if near else "correct them"
    return PathoError(
        "rows_without_files",
        name,
        f"{len(without)} of {rows} rows have no file ({', '.join(first(without)['first'])})",
        f'Paths count from {root}; {where}; or set missing="skip" to leave these rows out',
    )


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


def _refuse_twice(name: str, table: pd.DataFrame, ids: str) -> None:
    """Refuses one file in two rows. Errors: label_conflict where they are of two classes, else listed_twice."""
    problems = []
    for path, rows in table[table["path"].duplicated(keep=False)].groupby("path"):
        lines = " and ".join(map(str, rows.index))
        labels, groups = (list(dict.fromkeys(rows[column])) for column in ("label", ids))
        if len(labels) > 1:
            problems.append(("label_conflict", f"{name} lines {lines}", f"list {path} as {' and as '.join(labels)}"))
        else:
            of = f" as of {' and of '.join(groups)}" if len(groups) > 1 else ""
            problems.append(("listed_twice", f"{name} lines {lines}", f"list {path}{of}"))
    stop_on(problems, "Keep the row that is right")


# --- groups -----------------------------------------------------------------------------------------------------------


def _grouped(name: str, table: pd.DataFrame, asked: str | None) -> tuple[pd.DataFrame, tuple[str, ...], dict]:
    """The table with the column `group`, its levels (the finest first), and what is to be said of the groups."""
    known = [c for c in table if columns.level_of(c) and (table[c].str.strip() != "").any()]
    known.sort(key=lambda c: list(columns.LEVELS).index(columns.level_of(c) or ""))
    if asked == "image":
        table = table.rename(columns={"image": "given_image"})
        return table.assign(image=table["path"]), ("image",), {"grouped_by": "image"}
    chosen = _asked(table, name, known, asked) if asked else None
    if not known and chosen is None:
        raise PathoError(
            "no_groups", name, "has no column that says which patient, case, lesion or slide an image is of", GROUPS
        )
    for column in dict.fromkeys((*([chosen] if chosen else ()), *known)):
        columns.refuse_spellings(name, column, table[column], placeholders=True)
        table[column] = table[column].str.strip()
    chosen = chosen or _coarsest(name, table, known)
    others = [c for c in known if c != chosen]
    finer = [c for c in others if _is_finer(table, c, chosen)]
    for column in finer:
        table[column] = _qualified(name, table, column, chosen, asked is not None)
    own = table[chosen]
    for column in finer:  # a patient who is not written in one row may be in another row of the same slide
        homes = table[(own != "") & (table[column] != "")].drop_duplicates(column).set_index(column)[chosen]
        own = own.where(own != "", table[column].map(homes).fillna(""))
    without = own == ""
    for column in finer:
        own = own.where((own != "") | (table[column] == ""), column + " " + table[column])
    for column in others:
        table[column] = table[column].where(table[column] != "", table["path"])
    own = own.where(own != "", table["path"])
    new = {c: f"{c}_id" for c in others if c in ("case", "lesion", "group") and f"{c}_id" not in table}
    if "group" in others and columns.within(table, "group", chosen)[0] != "nested":
        new["group"] = "other_group"  # by the user's word it is no id
    table = table.drop(columns=chosen).rename(columns=new).assign(group=own)
    order = [
        new.get(c, "group" if c == chosen else c)
        for c in dict.fromkeys((*([] if chosen in known else [chosen]), *known))
    ]
    levels = tuple(reversed([c for c in order if c != "other_group"]))
    return table, levels, {"grouped_by": chosen, "rows_without_group": int(without.sum())}


def _asked(table: pd.DataFrame, name: str, known: list[str], asked: str) -> str:
    """The column that the user groups by: its name, or patient, case, lesion or slide."""
    of_level = [c for c in known if columns.level_of(c) == asked.casefold()]
    return of_level[0] if of_level and asked not in table else columns.named(table, name, asked, 'group="..."')


def _coarsest(name: str, table: pd.DataFrame, known: list[str]) -> str:
    """The column of the coarsest ids; `group`, one's own word, where the others lie within it. Errors: bad_id."""
    chosen = known[0]
    own = next((c for c in known if columns.level_of(c) == "group"), chosen)
    if own == chosen or columns.within(table, own, chosen)[0] == "nested":
        return chosen
    if columns.within(table, chosen, own)[0] == "nested":
        return own
    raise PathoError(
        "bad_id",
        f"{name} columns {own} and {chosen}",
        "each have ids that lie in several of the other, so neither keeps the images of both together",
        f'Correct the rows, or say that {own} is no id of a patient or of a part of one: group="{chosen}"',
    )


def _is_finer(table: pd.DataFrame, column: str, chosen: str) -> bool:
    """Whether a column of ids is of a finer level than the one that is grouped by, by its name or in the rows."""
    order = list(columns.LEVELS)
    levels = [level for c in (chosen, column) if (level := columns.level_of(c)) and level != "group"]
    if len(levels) == 2 and levels[0] != levels[1]:
        return order.index(levels[0]) < order.index(levels[1])
    return columns.within(table, column, chosen)[0] == "nested"


def _qualified(name: str, table: pd.DataFrame, column: str, chosen: str, asked: bool) -> pd.Series:
    """The ids of a finer level; with those of the coarser before them where they are numbered anew in each."""
    how, torn = columns.within(table, column, chosen)
    if how == "torn" and not asked:
        stop_on(
            [
                (
                    "bad_id",
                    f"{name} column {column}",
                    f"{fine!r} is of {chosen} "
                    + " and ".join(
                        f"{of!r} (line {line})"
                        for line, of in table.loc[table[column] == fine, chosen].drop_duplicates().items()
                    ),
                )
                for fine in torn
            ],
            f"Correct these rows, or rename the column {column} if it holds no ids",
        )
    if how != "numbered" or columns.level_of(chosen) is None:
        return table[column]
    return (table[chosen] + "/" + table[column]).where((table[column] != "") & (table[chosen] != ""), table[column])


def _refuse_reserved(name: str, table: pd.DataFrame) -> None:
    """Refuses columns with names that results are written under. Errors: csv_format."""
    ours = {"row", "given_group", "given_image", *(f"p_{label}" for label in set(table["label"]))}
    kept = ours & set(table.columns) | set(table.columns[table.columns.duplicated()])
    stop_on(
        [("csv_format", f"{name} column {column}", "is a name kept for results") for column in sorted(kept)],
        "Rename the columns",
    )


def _labels(name: str, column: str, labels: pd.Series) -> pd.Series:
    """The labels without blanks at the ends. Errors: two_spellings, bad_label."""
    columns.refuse_spellings(name, column, labels, placeholders=False)
    empty = labels.index[labels.str.strip() == ""]
    stop_on([("bad_label", f"{name} line {line}", "has no label") for line in empty], "Write a class in every row")
    return labels.str.strip()


def _counts(table: pd.DataFrame, ids: str) -> dict:
    """What is worth knowing about images and groups, and about a split that the table brings along."""
    counted: dict = {"images": len(table), "groups": table[ids].nunique()}
    counted["groups_in_two_classes"] = first(in_several(table, ids, "label"))
    if "given_split" in table:
        images = table["given_split"].value_counts().sort_index()
        counted["given_split"] = {
            **{name: int(n) for name, n in images.items()},
            "groups_in_two": len(in_several(table, ids, "given_split")),
        }
    return counted
