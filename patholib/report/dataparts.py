"""What the run folder knows of its images, for report and data card: counts, what was left out, what splits share."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from markupsafe import Markup

from patholib.data.columns import IDS
from patholib.data.leakage import WAYS
from patholib.data.splitting import SPLITS, all_of, leaked
from patholib.report.markdown import count, short, table, text
from patholib.report.records import Record

NAMED = 5  # files that are named of those left out for one reason; excluded.csv names all
VALUES = 12  # a column with more values than this is no subgroup
LISTED = {
    "rows_without_file": "table rows have no file and were left out",
    "files_without_row": "files are in no table row and were left out",
}


def composition(run: Record) -> Markup:
    """Images, and ids of every level, by class and split."""
    split = _split(run)
    tables = [_by_split(run, "images", split.assign(images=split["path"]), "images")]
    tables += [
        _by_split(run, f"{level.replace('_', ' ')}s", split[split[level] != ""], level) for level in _levels(split)
    ]
    return Markup("\n".join(tables))


def sizes(run: Record) -> Markup:
    """Images, and in brackets what the split keeps together, by class and split, in one table."""
    split = _split(run)
    parts = _parts(split)

    def cells(rows: pd.DataFrame) -> list[str]:
        some = [rows[rows["split"] == part] for part in parts]
        return [f"{len(one):,} ({one['group'].nunique():,})" for one in (*some, rows)]

    return table(
        (f"images ({run.units})", *parts, "all"),
        [
            *((name, *cells(split[split["label"] == name])) for name in run.recipe.classes),
            (all_of(run.recipe.classes), *cells(split)),
        ],
    )


def _split(run: Record) -> pd.DataFrame:
    assert run.split is not None  # the templates ask only where there is one
    return run.split


def _parts(split: pd.DataFrame) -> list[str]:
    return [name for name in SPLITS if name in set(split["split"])]


def _levels(split: pd.DataFrame) -> list[str]:
    """The id columns; `group` only where it repeats no other."""
    named = [name for name in split if IDS.fullmatch(name) and name != "group"]
    repeats = any(split[name].equals(split["group"]) for name in (*named, "path"))
    return named if repeats else [*named, "group"]


def _by_split(run: Record, title: str, rows: pd.DataFrame, ids: str) -> Markup:
    """How many different `ids` each class has in each split."""
    parts = _parts(rows)
    classes = [*run.recipe.classes, *sorted(set(rows["label"]) - set(run.recipe.classes))]

    def cells(of: pd.DataFrame) -> list[str]:
        return [count(int(some[ids].nunique())) for some in (*(of[of["split"] == part] for part in parts), of)]

    return table(
        (title, *parts, "all"),
        [*((name, *cells(rows[rows["label"] == name])) for name in classes), (all_of(classes), *cells(rows))],
    )


def distribution(run: Record) -> Markup:
    """How the images spread over the columns that results are reported by, else over those with few values."""
    apart = {row["column"] for row in (run.metrics.get("test") or {}).get("subgroups") or []}
    split = _split(run)
    values = {
        name: split[name].nunique()
        for name in split
        if name not in ("path", "label", "group", "split", "sha256") and not IDS.fullmatch(name)
    }
    chosen = apart & set(values) or {name for name, number in values.items() if number <= VALUES}
    spread = [name for name, number in values.items() if name in chosen and number > 1]
    tables: list[str] = [_spread(split, name) for name in spread]
    other = [
        f"{text(name)} ({number:,} values)" if number > 1 else f"{text(name)} (always {text(split[name].iloc[0])})"
        for name, number in values.items()
        if name not in spread
    ]
    tables += [f"Other columns: {', '.join(other)}.\n"] if other else []
    return Markup("\n".join(tables) or "No other column describes the images.\n")


def _spread(split: pd.DataFrame, name: str) -> Markup:
    shares = pd.crosstab(split[name], split["split"], normalize="columns")
    images, parts = split[name].value_counts(), _parts(split)
    rows = [
        (
            value or "(not stated)",
            count(int(images[value])),
            *(f"{100 * shares.loc[value, part]:.0f} %" for part in parts),
        )
        for value in shares.index
    ]
    return table((name, "images", *(f"share of {part}" for part in parts)), rows)


def left_out(run: Record) -> Markup:
    """Why files were left out, with the first names."""
    if run.excluded is None:
        return Markup("Which files were left out is unknown: `data_report.json` and `excluded.csv` are missing.\n")
    if not run.excluded:
        return Markup("No file was left out.\n")
    by_code: dict[str, list[Mapping]] = {}
    for entry in run.excluded:
        by_code.setdefault(str(entry.get("code", "?")), []).append(entry)
    rows = [
        (
            code,
            count(len(found)),
            short(found[0].get("reason", ""), 120),
            ", ".join(str(entry.get("path", "?")) for entry in found[:NAMED]) + (" …" if len(found) > NAMED else ""),
        )
        for code, found in sorted(by_code.items(), key=lambda pair: (-len(pair[1]), pair[0]))
    ]
    return Markup(
        f"{len(run.excluded):,} files were left out; `excluded.csv` lists them all.\n\n"
        f"{table(('problem', 'files', 'reason', 'examples'), rows)}"
    )


def unlisted(run: Record) -> list[str]:
    """Sentences on table rows without a file and files without a row."""
    found = {name: ((run.data.get("found") or {}).get(name) or {}).get("count", 0) for name in LISTED}
    return [f"{number:,} {LISTED[name]}." for name, number in found.items() if number]


def shared(run: Record) -> tuple[Markup, bool]:
    """A table of the images whose ids or bytes are in another split too, and whether there are any."""
    split = _split(run)
    keys = {level.replace("_", " "): split[level] for level in _levels(split)}
    if run.has("images.csv"):
        known = pd.read_csv(run.folder / "images.csv", dtype=str, keep_default_na=False)
        digests = dict(zip(known["path"], known["sha256"], strict=True))
        keys["identical file"] = split["path"].map(digests).fillna("")
    ways = [way for way in WAYS if set(way) <= set(split["split"])]
    found = {name: [int(leaked(ids, split["split"], *way).sum()) for way in ways] for name, ids in keys.items()}
    rows = [(name, *map(count, numbers)) for name, numbers in found.items()]
    made = table(("shared", *(f"{new} images also in {seen}" for seen, new in ways)), rows)
    return made, any(map(any, found.values()))


def kept_apart(run: Record) -> Markup:
    """Whether a patient (or what the split keeps together) is in two splits, in a sentence."""
    number = run.groups_in_two_splits()
    if number is None:
        return Markup("Whether the splits share a group is unknown: `split.csv` is missing.")
    if run.recipe.group_by == "image":
        return Markup("**The split is by image: one patient may be in training and in test.**")
    if number:
        return Markup(f"**{run.units.capitalize()} in more than one split: {number}. Do not trust the test numbers.**")
    return Markup(f"No {text(run.recipe.group_by)} is in more than one split.")


def cases(run: Record) -> str:
    """What is taken for a patient in BreakHis, with both counts; "" for other data."""
    found = run.data.get("found") or {}
    if not {"slides", "cases"} <= set(found):
        return ""
    return (
        f"{count(found['slides'])} slide ids, {count(found['cases'])} cases. A case is the slide id without its last "
        "letters. That it is one patient is an assumption: BreakHis does not document these letters."
    )
