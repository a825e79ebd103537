"""What the columns of a table of images mean: the one table of names, and the one way to compare ids and labels.

Training, audit and external evaluation ask here, so that they cannot disagree.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from patholib.base.errors import PathoError, nearest, shown
from patholib.data.csvfiles import stop_on
from patholib.data.decoding import IMAGES

# Names of columns; blanks, hyphens and capitals do not count. Of several the first in the list is meant.
PATH = (
    *("path", "file", "filepath", "file_path", "image_path", "img_path", "filename", "file_name", "image_name"),
    *("image_file", "image_filename", "image", "image_id", "img_id", "isic_id", "img_name", "img", "images", "md5hash"),
)
LABEL = (
    *("label", "benign_malignant", "dx", "diagnosis", "diagnostic", "class", "class_name", "category", "target"),
    "labels",
)
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
LEVELS = {  # what has an id of its own, the coarsest first: nothing of one patient may be in two parts of a split
    "patient": "patient|subject|participant",
    "case": "case",
    "lesion": "lesion",
    "specimen": "specimen|block",
    "slide": "slide|wsi",
    "group": "group",  # one's own word; whether it is coarser than the others is looked up in the rows
}
IDS = re.compile(rf"(given_)?({'|'.join(LEVELS.values())})([ _-]?(id|no|number|name))?", re.IGNORECASE)
ISIC_CLASSES = (
    "MEL",
    "NV",
    "BCC",
    "AK",
    "AKIEC",
    "BKL",
    "DF",
    "VASC",
    "SCC",
    "SCCKA",
    "BEN_OTH",
    "INF",
    "MAL_OTH",
    "UNK",
)
PLACEHOLDERS = frozenset("- -- . ? n/a #n/a <na> n.a. na nan nil none null unknown unk missing undefined".split()) | {
    *("not available", "not known", "not recorded", "not stated")
}
LIKENESS = 0.75  # from which a column is named as the one that may be meant


# --- texts that mean one thing ----------------------------------------------------------------------------------------


def normal(text: str) -> str:
    """An id or label in the form in which it is compared: stripped, case-folded, NFC, without .0 and leading zeros."""
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text.strip()).casefold()).strip()
    return re.sub(r"^0+(?=.)", "", re.sub(r"^(\d+)\.0+$", r"\1", text))


def is_placeholder(text: str) -> bool:
    """Whether a cell says in words that nothing is known."""
    return normal(text) in PLACEHOLDERS


def spellings(values: pd.Series) -> list[list[tuple[str, object]]]:
    """Values written in several ways: of each the spellings, with the first index of each; "" is no value."""
    first: dict[str, dict[str, object]] = {}
    for line, text in values.drop_duplicates().items():
        if text:
            first.setdefault(normal(text), {}).setdefault(text, line)
    return [list(ways.items()) for ways in first.values() if len(ways) > 1]


def one_spelling(values: pd.Series, placeholders: bool = True) -> tuple[pd.Series, list[str]]:
    """The values with one spelling for each that means the same; and, in sentences, what was taken for one.

    placeholders: what says in words that nothing is known becomes "".
    """
    odd = sorted({text for text in values if placeholders and text and is_placeholder(text)})
    said = [f"{text!r} ({int((values == text).sum()):,} rows) is taken for unknown" for text in odd]
    values = values.mask(values.isin(odd), "")
    firsts: dict[str, str] = {}
    for ways in spellings(values):
        firsts |= dict.fromkeys((text for text, _ in ways), ways[0][0].strip())
        said.append(" and ".join(f"{shown(repr(text))} (line {line})" for text, line in ways) + " are taken for one")
    return values.map(lambda text: firsts.get(text, text.strip())), said


def refuse_spellings(name: str, column: str, values: pd.Series, placeholders: bool) -> None:
    """Refuses one id or label in two spellings, and ids that say they are unknown. Errors: two_spellings, bad_id."""
    stop_on(
        [
            ("two_spellings", f"{name} column {column}", " and ".join(f"{text!r} (line {at})" for text, at in ways))
            for ways in spellings(values)
        ],
        "Write each in one way: capitals, blanks at the ends, leading zeros and a trailing .0 do not tell two apart",
    )
    if placeholders:
        rows = values[values.map(is_placeholder)]
        stop_on(
            [
                ("bad_id", f"{name} column {column}", f"is {text!r} in {len(of)} rows (first line {of.index[0]})")
                for text, of in rows.groupby(rows)
            ],
            "Leave the cell empty where it is not known: each of these images is then a group of its own",
        )


# --- columns ----------------------------------------------------------------------------------------------------------


def plain(column: str) -> str:
    """The name of a column as it is compared."""
    return re.sub(r"[\s-]+", "_", column.strip()).casefold()


def level_of(column: str) -> str | None:
    """What a column holds the ids of, by its name; None for other columns."""
    match = IDS.fullmatch(column.strip())
    if match is None:
        return None
    return next(level for level, names in LEVELS.items() if re.fullmatch(names, match[2], re.IGNORECASE))


def meant(table: pd.DataFrame, names: Iterable[str]) -> list[str]:
    """The columns that bear one of these names, in the order of the names."""
    by_name: dict[str, str] = {}
    for column in table.columns:
        if column not in by_name.values() and (plain(column) not in by_name or column == plain(column)):
            by_name[plain(column)] = column
    return [by_name[name] for name in names if name in by_name]


def named(table: pd.DataFrame, name: str, column: str, parameter: str) -> str:
    """A column that was asked for, or the error that it is missing. Errors: csv_format."""
    if column in table.columns:
        return column
    found = meant(table, [plain(column)])
    if not found:
        raise missing(table, name, column, f"Name a column of the table with {parameter}")
    return found[0]


def missing(table: pd.DataFrame, name: str, what: str, remedy: str, also: Iterable[str] = ()) -> PathoError:
    """The error for a column that is not there; only a name that is much alike is offered."""
    close = difflib.get_close_matches(plain(what), map(plain, table.columns), n=1, cutoff=LIKENESS)
    near = next((c for c in table.columns if [plain(c)] == close), None)
    there = f"did you mean {near!r}?" if near else f"the columns are {', '.join(map(str, table.columns))}"
    other = f" (or {', '.join(also)})" if also else ""
    return PathoError("csv_format", f"{name} column {what}{other}", f"is missing; {there}", remedy)


def split_column(table: pd.DataFrame, name: str) -> str | None:
    """The column that says which image is for training and which for the test.

    It is called split, or it is the only one that holds nothing but such words, training and test among them.
    Errors: csv_format, where several do.
    """
    exact = meant(table, ("split", "given_split"))
    if exact:
        return exact[0]
    found = []
    for column in table.columns:
        words = {SPLIT_WORDS.get(str(text).strip().casefold()) for text in table[column].unique() if text != ""}
        if None not in words and {"train", "test"} <= words:
            found.append(column)
    if len(found) > 1:
        raise PathoError(
            "csv_format",
            f"{name} columns {', '.join(found)}",
            "each divide the images into training and test",
            f'Name the one that counts: columns="split={found[0]}"',
        )
    return found[0] if found else None


def split_words(name: str, given: pd.Series, remedy: str) -> pd.Series:
    """train, val and test for the words of a column. Errors: csv_format, naming the lines."""
    parts = given.str.strip().str.casefold()
    stop_on(
        [
            ("csv_format", f"{name} {line}", f"is in split {given[line]!r}")
            for line in given.index[~parts.isin(SPLIT_WORDS.keys())]
        ],
        f"Known are {', '.join(SPLIT_WORDS)}{remedy}",
    )
    return parts.map(SPLIT_WORDS)


def label_column(table: pd.DataFrame, name: str, but: Iterable[str]) -> str | None:
    """The column of the classes by its name, None where no column is called so.

    Errors: csv_format where two are and do not say the same: which of them is meant cannot be known.
    """
    found = [column for column in meant(table, LABEL) if column not in but]
    if not found or plain(found[0]) in LABEL[:2]:
        return found[0] if found else None
    differ = [c for c in found[1:] if len(table[[found[0], c]].drop_duplicates()) != table[found[0]].nunique()]
    if differ:
        listed = ", ".join(f"{c} ({table[c].nunique()} values)" for c in found)
        raise PathoError(
            "csv_format", f"{name} columns {listed}", "may each be the class", f'Say which: label="{found[0]}"'
        )
    return found[0]


def one_hot(table: pd.DataFrame, name: str, but: Iterable[str]) -> tuple[pd.Series, list[str]] | None:
    """The class of every row of a table with a column of 0 and 1 for each class, and these columns; None: no such.

    The classes of ISIC are known by name; other columns count if every row of all columns of 0 and 1 has exactly one 1.
    Errors: bad_label, for rows of ISIC that are of none or several classes.
    """
    known = [column for column in table.columns if column in ISIC_CLASSES]
    columns = known
    if len(known) < 3:
        others = [c for c in table.columns if c not in but and not plain(c).endswith("weight")]
        columns = [c for c in others if table[c].isin(["0", "1", "0.0", "1.0"]).all()]
    if len(columns) < 2:
        return None
    cells = table[columns].to_numpy(object)
    ones = np.isin(cells, ["1", "1.0"])
    wrong = (ones.sum(axis=1) != 1) | ~(ones | np.isin(cells, ["0", "0.0"])).all(axis=1)
    if len(known) < 3 and wrong.any():
        return None

    def told(values: np.ndarray) -> str:
        odd = [f"{c}={v!r}" for c, v in zip(columns, values, strict=True) if v not in ("0", "0.0", "1", "1.0")]
        of = [c for c, v in zip(columns, values, strict=True) if v in ("1", "1.0")]
        return f"holds {', '.join(odd)}" if odd else f"is 1 for {' and '.join(of) or 'no class'}"

    stop_on(
        [
            ("bad_label", f"{name} line {line}", told(values))
            for line, values in zip(table.index[wrong], cells[wrong], strict=True)
        ],
        "Exactly one class of a row is 1, all others 0",
    )
    return pd.Series(np.array(columns, object)[ones.argmax(axis=1)], table.index), columns


# --- which rows -------------------------------------------------------------------------------------------------------


def conditions(text: str) -> dict[str, list[str]]:
    """{column: values} of "column=value" or "column=value|value, other=value". Errors: bad_parameter."""
    found = {}
    for part in re.split(r",(?=[^,=]+=)", text):
        column, equals, values = part.partition("=")
        if not equals or not column.strip():
            raise PathoError("bad_parameter", text, "is not column=value", 'Write "fold=1", or "fold=1, dx=mel|nv"')
        found[column.strip()] = [value.strip() for value in values.split("|")]
    return found


def where(table: pd.DataFrame, name: str, wanted: str | Mapping[str, list[str]]) -> pd.Series:
    """Which rows fulfil all conditions, as bool. Errors: csv_format, unknown_value, bad_parameter."""
    keep = pd.Series(True, table.index)
    for column, values in (conditions(wanted) if isinstance(wanted, str) else wanted).items():
        column = named(table, name, column, "column=value")
        known = sorted(set(table[column]))
        for value in values:
            if value not in known:
                near = difflib.get_close_matches(value, known, n=1, cutoff=LIKENESS)
                raise PathoError(
                    "unknown_value",
                    f"{column}={value!r}",
                    f"is in no row of {name}",
                    f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(map(shown, known[:12]))}",
                )
        keep &= table[column].isin(values)
    return keep


def repeats_by(table: pd.DataFrame, path: str, but: Iterable[str]) -> str | None:
    """The column that tells the repeats of a table apart, where every image is listed once for each of its values."""
    times = table[path].value_counts()
    most = int(times.max()) if len(times) else 1
    if most < 2 or (times == most).mean() < 0.9:
        return None
    for column in table.columns:
        if column != path and column not in but and level_of(column) is None and table[column].nunique() == most:
            if not table.duplicated([path, column]).any():
                return column
    return None


def within(table: pd.DataFrame, fine: str, coarse: str) -> tuple[str, list[str]]:
    """How the ids of one column lie in those of another: "nested", "numbered" anew in each, or "torn".

    Of slides 1, 2, ... of every patient most lie in several patients; of ids that are wrong in a few rows, few do.
    """
    known = table.loc[(table[fine] != "") & (table[coarse] != ""), [fine, coarse]]
    homes = known.drop_duplicates()[fine].value_counts()
    torn = sorted(homes.index[homes > 1])
    if not torn:
        return "nested", []
    often = known[fine].value_counts()
    return ("numbered" if len(torn) > (often > 1).sum() / 2 else "torn"), torn


def parsed(text: str) -> dict[str, str]:
    """What "path=file_name, split=fold" says: {our name: theirs}. Errors: bad_parameter."""
    pairs = dict(part.strip().partition("=")[::2] for part in text.split(",") if part.strip())
    return check_mapping(pairs)


def check_mapping(columns: Mapping[str, str]) -> dict[str, str]:
    """Refuses names that no table is asked for. Errors: bad_parameter."""
    ours = ("path", "label", "split")
    stop_on(
        [
            ("bad_parameter", f"columns {name}", nearest(name, ours) if theirs else "names no column")
            for name, theirs in columns.items()
            if name not in ours or not theirs
        ],
        'Write columns="path=file_name, split=fold" (audit: --columns path=file_name split=fold)',
    )
    return dict(columns)


def stem(path: str) -> str:
    """The name of an image without folders and ending, in the form in which names are compared."""
    name = PurePosixPath(path.replace("\\", "/").strip()).name
    ending = PurePosixPath(name).suffix.lower()
    return unicodedata.normalize("NFC", name[: -len(ending)] if ending in IMAGES else name).casefold()
