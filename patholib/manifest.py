"""What is known of every image before its pixels are read, and which images must not stand in two splits.

A manifest is one row per image. `split` shares the groups (patients, lesions) out to train, val and test;
`write_split` and `read_split` keep the result so that a changed file is noticed.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from patholib.errors import PathoError, nearest, shown
from patholib.files import as_least_able, sha256, write_table, write_text

SPLITS = ("train", "val", "test")
DEMO_NOTE = "Demo images: not a result"
UNIT = 1 << 24  # one whole class in the integers `_improve` counts with: no rounding, so every machine agrees
UNWRITABLE = re.compile("[\r\ud800-\udfff]")  # a lone \\r ends a CSV line; surrogates stand for bytes of no text
SWAPS_UP_TO = 1000  # groups; above that single groups are so small that moving them one by one is exact enough


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
    source: str  # "breakhis", "isic2019" or "table"
    demo: bool  # generated images: nothing measured on them is a result
    found: dict  # what the reader counted, JSON values

    def __post_init__(self):
        needed = ("path", "label", *self.levels, *self.subgroups)
        missing = [name for name in needed if name not in self.table.columns]
        if missing or self.group_by not in self.levels:
            raise PathoError("bad_manifest", ", ".join(missing) or self.group_by, "is no id column of the table",
                             f"Columns: {', '.join(self.table.columns)}; ids: {', '.join(self.levels)}")
        for name in self.table.columns:
            texts = self.table[name].tolist()  # a column iterates ten times slower than a list
            if not all(isinstance(value, str) for value in texts):
                raise PathoError("bad_manifest", name, "holds values that are not text",
                                 'Write a missing value as "" and numbers as text')
            refuse_unwritable(name, texts)
        for name in ("path", *self.levels):
            if (self.table[name] == "").any():
                raise PathoError("bad_manifest", name, "is empty in some rows", "Give every image an id of its own")
        unknown = sorted(set(self.table["label"].tolist()) - set(self.classes))
        if unknown:
            raise PathoError("bad_manifest", unknown[0], "is no class", nearest(unknown[0], self.classes))
        _refuse_collisions(self.table["path"].tolist())
        object.__setattr__(self, "table", self.table.sort_values("path", ignore_index=True))

    @property
    def note(self) -> str:
        """What every figure of these images says on its face; empty for real ones."""
        return DEMO_NOTE if self.demo else ""

    def __repr__(self) -> str:
        ids = ", ".join(f"{self.table[level].nunique():,} {level}s" for level in self.levels)
        lines = [f"{self.source}: {len(self.table):,} images, {ids}; never split apart: {self.group_by}"]
        for name in self.classes:
            of_class = self.table[self.table["label"] == name]
            lines.append(f"  {name}: {len(of_class):,} images, {of_class[self.group_by].nunique():,} {self.group_by}s")
        return "\n".join([self.note] * self.demo + lines)

    def only(self, **values: str) -> Manifest:
        """The images whose columns have these values, as in `only(magnification="40")`; the classes stay as they are.

        Raises PathoError: `unknown_column`, `unknown_value`.
        """
        keep = np.ones(len(self.table), bool)
        for name, value in values.items():
            if name not in self.table.columns:
                raise PathoError("unknown_column", name, "is no column of the manifest",
                                 nearest(name, self.table.columns))
            if value not in set(self.table[name]):
                raise PathoError("unknown_value", f"{name}={value!r}", "occurs in no row",
                                 nearest(value, sorted(set(self.table[name]))))
            keep &= (self.table[name] == value).to_numpy()
        return replace(self, table=self.table[keep], found={**self.found, "only": values, "images": int(keep.sum())})


def _refuse_collisions(paths: Iterable[str]) -> None:
    """Windows and macOS see one file in `A.png` and `a.png`, and in the two ways Unicode writes an accent."""
    seen, twins = {}, []
    for path in paths:
        plain = as_least_able(path)
        if plain in seen:
            twins.append(("name_collision", path, f"cannot be told from {shown(seen[plain])} on every system"))
        seen[plain] = path
    stop_on(twins, "Rename or remove one of each pair")


def in_several(table: pd.DataFrame, ids: str, column: str) -> list[str]:
    """The ids that occur with more than one value of `column`, in order: patients in two classes, say."""
    different = table[[ids, column]].drop_duplicates()[ids]
    return sorted(set(different[different.duplicated()]))


# --- problems, all at once --------------------------------------------------------------------------------------------

def first(names: Iterable[str], limit: int = 5) -> dict:
    """How many, and the first few by name: the form in which a reader reports a list."""
    names = list(names)
    return {"count": len(names), "first": [shown(name) for name in names[:limit]]}


def refuse_unwritable(column: str, texts: list[str]) -> None:
    """Refuses names that no CSV could hold, nor pandas where pyarrow is installed. Errors: unwritable_name."""
    stop_on([("unwritable_name", text, f"in column {column} holds a carriage return or bytes that are not UTF-8")
             for text in texts if UNWRITABLE.search(text)], "Rename it: no CSV file could hold it")


def stop_on(problems: list[tuple[str, str, str]], remedy: str, limit: int = 20) -> None:
    """Raises one PathoError for all problems, each (code, subject, reason); its code is that of the first."""
    if not problems:
        return
    code, subject, reason = problems[0]
    if len(problems) == 1:
        raise PathoError(code, subject, reason, remedy)
    counts = ", ".join(f"{n} {name}" for name, n in Counter(problem[0] for problem in problems).items())
    lines = [f"\n  [{name}] {shown(what)}: {why}" for name, what, why in problems[:limit]]
    if len(problems) > limit:
        lines.append(f"\n  and {len(problems) - limit} more\n")
    raise PathoError(code, f"{len(problems)} problems", f"{counts}{''.join(lines)}", remedy)


# --- CSV --------------------------------------------------------------------------------------------------------------

def read_csv(path: Path, needed: Iterable[str] = ()) -> pd.DataFrame:
    """A CSV as text, "" where a cell is empty; the index is each row's line in the file.

    Nothing is guessed: "NA" and "0012" stay as written, and no row may have more or fewer fields than the header.
    Raises PathoError: `missing_file`, `csv_format` (names the column, line or encoding).
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise PathoError("missing_file", path.name, f"does not exist in {path.parent}", "Check the path") from None
    except OSError as error:
        raise PathoError("unreadable", str(path), f"cannot be read ({error.strerror})", "Name a CSV file") from error
    header, rows, lines = _parse_csv(path.name, content)
    bad = [("csv_format", f"{path.name} line {line}", f"has {len(row)} fields, the header has {len(header)}")
           for row, line in zip(rows, lines, strict=True) if len(row) != len(header)]
    stop_on(bad, "Correct these lines; a comma inside a value needs double quotes around the value")
    missing = [("csv_format", f"{path.name} column {name}", f"is missing; {nearest(name, header)}")
               for name in needed if name not in header]
    stop_on(missing, "Rename the column or add it")
    return pd.DataFrame(rows, columns=header, index=pd.Index(lines, name="line"), dtype=str)


def _parse_csv(name: str, content: bytes) -> tuple[list[str], list[list[str]], list[int]]:
    def refuse(where: str, reason: str, remedy: str):
        raise PathoError("csv_format", f"{name}{where}", reason, remedy)

    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        refuse("", "is UTF-16", "Save it as CSV UTF-8")
    if b"\0" in content:
        refuse(f" line {content[:content.index(0)].count(10) + 1}", "holds a NUL byte", "Write the file again")
    try:
        text = content.decode("utf-8-sig")  # spreadsheets put a byte order mark first; it is no part of a column name
    except UnicodeDecodeError as error:
        refuse(f" line {content[:error.start].count(10) + 1}",
               f"is not UTF-8 (byte 0x{content[error.start]:02x}; perhaps cp1252)", "Save it as CSV UTF-8")
    rows, lines = [], []
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if row:  # a blank line is no row
                rows.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        refuse(f" line {reader.line_num}", f"is not CSV ({error})", "Check the double quotes")
    if not rows:
        refuse("", "is empty", "Write a header line and one line per image")
    header = rows[0]
    for separator in (";", "\t", "|"):
        if len(header) == 1 and separator in header[0]:
            refuse(" line 1", f"separates its fields with {separator!r}", "Save it with commas")
    for column, count in Counter(header).items():
        if count > 1 or not column.strip():
            refuse(f" column {column!r}", "is in the header twice" if count > 1 else "has no name",
                   "Give every column a name of its own")
    return header, rows[1:], lines[1:]


# --- splitting --------------------------------------------------------------------------------------------------------

def split(manifest: Manifest, fractions: tuple[float, float, float] = (0.70, 0.15, 0.15), seed: int = 0,
          group_by: str | None = None) -> pd.DataFrame:
    """The manifest's table with `group` and `split`: no group in two splits, every class in every split.

    fractions: of the images, in the order of SPLITS; every class is brought as near to them as whole groups allow.
    group_by: an id column, or "image": every image its own group, stratified by label alone, as leaky splits are made
    (a column `group` of the manifest is then kept as `given_group`).
    The same seed gives the same split on every machine and for any order of rows.
    Raises PathoError: `bad_fractions`, `bad_seed`, `unknown_group`, `split_infeasible`.
    """
    group_by = manifest.group_by if group_by is None else group_by
    _check_arguments(manifest, fractions, seed, group_by)
    groups, member, counts = _grouped(manifest, group_by)
    place = _assign(counts, fractions, _drawn(groups, f"{seed}"))
    if place is None:
        _refuse_infeasible(manifest, counts, group_by, "every class must be in train, val and test", 3)
    return _parted(manifest, group_by, np.array(SPLITS, object)[place[member]])


def folds(manifest: Manifest, folds: int = 5, repeats: int = 1, seed: int = 0, group_by: str | None = None,
          val: float = 0.15) -> list[pd.DataFrame]:
    """Grouped, stratified cross-validation: a table as of `split` for each fold of each repeat, repeat by repeat.

    Within a repeat every image is tested exactly once; no group is in two parts of a table, and every class is in each.
    val: the share of all images that each fold takes from the rest for validation, in whole groups, too.
    The same seed gives the same folds on every machine and for any order of rows.
    Raises PathoError: `bad_parameter`, `bad_seed`, `unknown_group`, `split_infeasible`.
    """
    group_by = manifest.group_by if group_by is None else group_by
    check_folds(folds, repeats)
    if not 0 < val < 1 - 1 / folds:
        raise PathoError("bad_parameter", "val", f"is {val!r}", f"With {folds} folds use a share above 0 and below "
                         f"{1 - 1 / folds:.2g}, so that some are left to learn from")
    _check_arguments(manifest, (0.7, 0.15, 0.15), seed, group_by)
    groups, member, counts = _grouped(manifest, group_by)
    share, tables = val / (1 - 1 / folds), []
    for repeat in range(repeats):
        fold_of = _assign(counts, [1 / folds] * folds, _drawn(groups, f"{seed}/{repeat}"))
        for fold in range(folds):
            place = None if fold_of is None else _held_out(counts, fold_of == fold, share,
                                                           _drawn(groups, f"{seed}/{repeat}/{fold}"))
            if place is None:
                _refuse_infeasible(manifest, counts, group_by, f"in each of {folds} folds every class must be in "
                                   "train, val and test", max(folds, 4 if folds == 2 else 3))
            tables.append(_parted(manifest, group_by, np.array(SPLITS, object)[place[member]]))
    return tables


def check_folds(folds: int = 2, repeats: int = 1) -> None:
    """Refuses numbers of folds and repeats that no data could have. Errors: bad_parameter."""
    for name, value, least in (("folds", folds, 2), ("repeats", repeats, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise PathoError("bad_parameter", name, f"is {value!r}", f"Use a whole number from {least} on")


def check_fold(fold: int, folds: int, repeats: int = 1) -> None:
    """Refuses a fold that so many folds and repeats do not have; they are counted from 0. Errors: bad_parameter."""
    if folds == 0:
        raise PathoError("bad_parameter", "fold", f"is {fold!r}, but there are no folds",
                         "Say with the parameter folds how many there are")
    if isinstance(fold, bool) or not isinstance(fold, int) or not 0 <= fold < folds * repeats:
        raise PathoError("bad_parameter", "fold", f"is {fold!r}", f"Use a whole number from 0 to "
                         f"{folds * repeats - 1}, as folds are counted from 0 and on through the repeats")


def _held_out(counts: np.ndarray, test: np.ndarray, share: float, order: list[int]) -> np.ndarray | None:
    """The split (0, 1, 2) of every group where `test` (G,) bool is tested and `share` of the rest validates."""
    rest = np.flatnonzero(~test)
    if not (counts[rest] > 0).any(axis=0).all():
        return None
    at = {g: i for i, g in enumerate(rest.tolist())}
    inside = _assign(counts[rest], (1 - share, share), [at[g] for g in order if g in at])
    if inside is None:
        return None
    place = np.full(len(counts), SPLITS.index("test"))
    place[rest] = inside
    return place


def set_apart(manifest: Manifest, share: float, seed: int = 0, group_by: str | None = None
              ) -> tuple[Manifest, Manifest]:
    """Two manifests, the second of `share` of the images in whole groups: patients that a study has never met.

    Every class is in both. Raises PathoError: `bad_fractions`, `bad_seed`, `unknown_group`, `split_infeasible`.
    """
    group_by = manifest.group_by if group_by is None else group_by
    _check_arguments(manifest, ((1 - share) / 2, (1 - share) / 2, share), seed, group_by)
    groups, member, counts = _grouped(manifest, group_by)
    place = _assign(counts, (1 - share, share), _drawn(groups, f"{seed}/apart"))
    if place is None:
        _refuse_infeasible(manifest, counts, group_by, "every class must be in both parts", 2)
    return tuple(replace(manifest, table=manifest.table[place[member] == part],
                         found={**manifest.found, "images": int((place[member] == part).sum())}) for part in (0, 1))


def _grouped(manifest: Manifest, group_by: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The groups (G,), the place of every image's group among them (N,), and images by group and class (G, C)."""
    ids = manifest.table["path" if group_by == "image" else group_by]
    groups, member = np.unique(ids.to_numpy(object), return_inverse=True)
    labels = pd.Categorical(manifest.table["label"], categories=list(manifest.classes)).codes
    counts = np.zeros((len(groups), len(manifest.classes)), np.int64)
    np.add.at(counts, (member, labels), 1)
    return groups, member, counts


def _drawn(groups: np.ndarray, key: str) -> list[int]:
    """The groups in an order by chance, a function of the key.

    A hash, not a generator: its order holds for every version of numpy, and new groups do not stir up the old ones.
    """
    return sorted(range(len(groups)), key=lambda g: hashlib.sha256(f"{key}:{groups[g]}".encode()).digest())


def _parted(manifest: Manifest, group_by: str, split: np.ndarray) -> pd.DataFrame:
    """The manifest's table with `group` and `split`."""
    table = manifest.table.copy()
    ids = table["path" if group_by == "image" else group_by]
    if group_by != "group" and "group" in table.columns:
        table = table.rename(columns={"group": "given_group"})
    return table.assign(group=ids, split=split)


def _check_arguments(manifest: Manifest, fractions, seed, group_by: str) -> None:
    if len(fractions) != 3 or min(fractions) <= 0 or not abs(sum(fractions) - 1) <= 1e-9:  # NaN: not <=, nor >
        raise PathoError("bad_fractions", "fractions", f"{fractions} are not three shares above 0 that sum to 1",
                         "Use (0.70, 0.15, 0.15)")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise PathoError("bad_seed", "seed", f"{seed!r} is not a whole number from 0", "Use 0")
    known = (*manifest.levels, "image")
    if group_by not in known:
        raise PathoError("unknown_group", str(group_by), "is no id column to group by", nearest(group_by, known))


def _refuse_infeasible(manifest: Manifest, counts: np.ndarray, group_by: str, wanted: str, least: int) -> None:
    rows = "".join(f"\n  {name}: {int((column > 0).sum())} groups, {column.sum()} images"
                   for name, column in zip(manifest.classes, counts.T, strict=True))
    fewest = (counts > 0).sum(axis=0).min()
    why = "" if fewest < least else "\nEvery class has as many, but they hold several classes and cannot be shared out"
    finer = manifest.levels[: manifest.levels.index(group_by)] if group_by != "image" else ()
    raise PathoError(
        "split_infeasible", f"split by {group_by}",
        f"{wanted}, which takes at least {least} groups per class:{rows}{why}",
        "Add images of other groups, merge the class with another or drop it"
        + (f", or group by the finer {finer[-1]!r}" if finer else ""))


def _assign(counts: np.ndarray, fractions, order: list[int]) -> np.ndarray | None:
    """The part (0, 1, ...) of every group, one per fraction, from its images per class (G, C).

    None if there is no way to have every class in every part.

    Chance first, balance second: the groups are drawn class by class in the seeded order, so that large and small
    ones are as likely to be tested; then the moves and swaps are made that bring the shares to the fractions.
    """
    seats = _seats(counts > 0, order, len(fractions))
    if seats is None:
        return None
    place = np.empty(len(counts), np.int64)
    main = (counts / counts.sum(axis=0)).argmax(axis=1)  # the class of which a group holds the largest share
    order = np.array(order)
    for c in range(counts.shape[1]):
        mine = order[main[order] == c]
        size = counts[mine].sum(axis=1)
        middle = (size.cumsum() - size / 2) / max(size.sum(), 1)
        place[mine] = np.searchsorted(np.cumsum(fractions)[:-1], middle)
    place[list(seats)] = list(seats.values())
    _improve(counts, fractions, place)
    return place


def _seats(has: np.ndarray, order: list[int], parts: int) -> dict[int, int] | None:
    """A group of every class for every part, {group: part}; None if there is none (an exact search).

    Groups of one class only serve nothing else, so one for each part settles their class. The rest is searched by kind
    (groups with the same set of classes are alike), the scarcest need first, and no state is tried twice.
    """
    kinds: dict[tuple[int, ...], list[int]] = {}
    for g in order:
        kinds.setdefault(tuple(np.flatnonzero(has[g]).tolist()), []).append(g)
    seats: dict[int, int] = {}
    scarce = set()
    for c in range(has.shape[1]):
        if has[:, c].sum() < parts:
            return None
        alone = kinds.get((c,), [])
        seats |= dict(zip(alone[:parts], range(parts), strict=True)) if len(alone) >= parts else {}
        scarce |= {c} if len(alone) < parts else set()
    names = sorted((kind for kind in kinds if scarce & set(kind)), key=lambda kind: (-len(kinds[kind]), kind))

    @functools.cache
    def fill(needs: frozenset, left: tuple[int, ...]):
        """The kinds to seat, ((kind, part), ...), so that every (class, part) of `needs` is met."""
        if not needs:
            return ()
        able = Counter()
        for kind, n in zip(names, left, strict=True):
            able.update(dict.fromkeys(kind, n))
        c, s = min(needs, key=lambda need: (able[need[0]], need))
        for k, kind in enumerate(names):
            if left[k] and c in kind:
                more = fill(needs - {(x, s) for x in kind}, (*left[:k], left[k] - 1, *left[k + 1:]))
                if more is not None:
                    return ((k, s), *more)
        return None

    chosen = fill(frozenset((c, s) for c in scarce for s in range(parts)), tuple(len(kinds[kind]) for kind in names))
    if chosen is None:
        return None
    unused = {k: iter(kinds[kind]) for k, kind in enumerate(names)}
    return seats | {next(unused[k]): s for k, s in chosen}


def _improve(counts: np.ndarray, fractions, place: np.ndarray) -> None:
    """Moves and swaps groups, best first, while the squared error of the shares falls; `place` (G,) is changed.

    Error of a part: its share minus the fraction, of the images of every class, of all images and, at half
    the weight, of the groups of every class (two patients say less than five, however many images they have).
    A group that is the last of a class in its part stays. Sums of integers, so that no machine rounds differently.
    """
    has = counts > 0
    whole = np.column_stack([counts, counts.sum(axis=1), has])
    unit = np.repeat([UNIT, UNIT // 2], [len(counts.T) + 1, len(counts.T)])
    size = whole * unit // whole.sum(axis=0)  # (G, 2 C + 1) shares in units
    target = np.rint(np.outer(fractions, size.sum(axis=0))).astype(np.int64)  # (P, 2 C + 1)
    square = (size * size).sum(axis=1)
    rows = np.arange(len(place))
    pairs = len(place) <= SWAPS_UP_TO
    distance = square[:, None] + square - 2 * (size @ size.T) if pairs else None
    while True:
        error = np.stack([size[place == s].sum(axis=0) for s in range(len(fractions))]) - target
        held = np.stack([has[place == s].sum(axis=0) for s in range(len(fractions))])  # groups of a class in each part
        last = has & (held[place] == 1)
        pull = size @ error.T  # (G, P)
        pull -= pull[rows, place][:, None]
        change = np.where(last.any(axis=1)[:, None], 0, square[:, None] + pull)  # half the change of the squared error
        change[rows, place] = 0
        g, s = np.unravel_index(change.argmin(), change.shape)
        if change[g, s] < 0:
            place[g] = s
            continue
        if not pairs:
            return
        across = pull[:, place]  # (G, G): group g goes where group h is
        change = distance + across + across.T
        bare = (last.astype(np.int64) @ ~has.T) > 0  # h lacks a class of which g is the last
        change[bare | bare.T] = 0
        g, h = np.unravel_index(change.argmin(), change.shape)
        if change[g, h] >= 0:
            return
        place[g], place[h] = place[h], place[g]


# --- keeping a split --------------------------------------------------------------------------------------------------

def write_split(table: pd.DataFrame, path: Path) -> Path:
    """Writes the split as CSV, and its digest beside it as `<name>.sha256` in the form `sha256sum -c` reads."""
    path = write_table(Path(path), table)
    write_text(path.with_name(path.name + ".sha256"), f"{sha256(path)}  {path.name}\n")
    return path


def read_split(path: Path, manifest: Manifest | None = None) -> pd.DataFrame:
    """A split as written, once it has been shown to be unchanged, free of shared groups and about these images.

    Raises PathoError: `missing_file`, `split_changed` (digest; or an image or label the manifest does not know),
    `split_leakage` (a group in two splits), `csv_format`.
    """
    path = Path(path)
    table = read_csv(path, ("path", "label", "group", "split")).reset_index(drop=True)
    beside = path.with_name(path.name + ".sha256")
    if not beside.is_file():
        raise PathoError("split_changed", path.name, f"has no {beside.name} beside it, so a change would go unseen",
                         "Restore that file, or split again")
    if beside.read_text(encoding="utf-8").split()[:1] != [sha256(path)]:
        raise PathoError("split_changed", path.name, f"is not the file whose digest is in {beside.name}",
                         "Restore the file, or split again")
    odd = table[~table["split"].isin(SPLITS)]
    stop_on([("csv_format", name, f"is in split {where!r}; known: {', '.join(SPLITS)}")
             for name, where in zip(odd["path"], odd["split"], strict=True)], "Split again")
    twice = table.loc[table["path"].duplicated(), "path"]
    stop_on([("csv_format", name, "is listed twice") for name in twice], "Split again")
    homes = table.groupby("group")["split"].unique()
    stop_on([("split_leakage", f"group {group}", f"is in {' and '.join(sorted(names, key=SPLITS.index))}")
             for group, names in homes[homes.map(len) > 1].items()], "Split again: no group may be in two splits")
    if manifest is not None:
        known = dict(zip(manifest.table["path"], manifest.table["label"], strict=True))
        stop_on([("split_changed", name, f"is labelled {label!r} in the split, "
                  + (f"but {known[name]!r} in the data" if name in known else "but is not among the data"))
                 for name, label in zip(table["path"], table["label"], strict=True) if known.get(name) != label],
                "Split again, or use the data the split was made of")
    return table


def leaked(ids: pd.Series, split: pd.Series, seen_in: str = "train", found_in: str = "test") -> pd.Series:
    """Which images of split `found_in` have an id that is also in `seen_in`, as bool; an unknown id ("") is no id."""
    return (split == found_in) & ids.isin(set(ids[split == seen_in]) - {""})


def leaked_share(table: pd.DataFrame, column: str) -> float:
    """The share of test images whose patient, case or lesion (`column`) also has images in train; 0 in a safe split.

    Where a split by image has put its own ids into the column `group`, those that were given count.
    """
    column = f"given_{column}" if f"given_{column}" in table.columns else column
    return float(leaked(table[column], table["split"])[table["split"] == "test"].mean())


def split_counts(table: pd.DataFrame) -> pd.DataFrame:
    """Images and groups of every class (rows, and `all`) in every split (columns `train images` ... `test groups`)."""
    both = pd.concat([table, table.assign(label="all")])
    each = both.drop_duplicates(["label", "split", "group"])
    rows = [*sorted(set(table["label"])), "all"]
    parts = {what: pd.crosstab(cells["label"], cells["split"]).reindex(index=rows, columns=list(SPLITS), fill_value=0)
             for what, cells in (("images", both), ("groups", each))}
    return pd.DataFrame({f"{s} {what}": part[s] for what, part in parts.items() for s in SPLITS}).rename_axis("class")
