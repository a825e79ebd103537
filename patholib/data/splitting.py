"""Train, validation and test sets, and cross-validation folds, that keep every patient in one part."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import pandas as pd

from patholib.base.errors import PathoError, nearest
from patholib.base.files import sha256, write_table, write_text
from patholib.data import assigning, csvfiles

if TYPE_CHECKING:
    from patholib.data.manifest import Manifest

SPLITS = ("train", "val", "test")


# --- splitting --------------------------------------------------------------------------------------------------------


def split(
    manifest: Manifest,
    fractions: tuple[float, float, float] = (0.70, 0.15, 0.15),
    seed: int = 0,
    group_by: str | None = None,
) -> pd.DataFrame:
    """The manifest's table with `group` and `split`: no group in two splits, every class in every split.

    fractions: of the images, in the order of SPLITS. Groups are drawn at random until every class is within a tolerance
    of its fractions; where no draw is, the nearest is taken: see `assigning.assign`.
    group_by: an id column, or "image": every image its own group, stratified by label alone, as leaky splits are made
    (a column `group` of the manifest is then kept as `given_group`).
    The same seed gives the same split on every machine and for any order of rows.
    Raises PathoError: `bad_fractions`, `bad_seed`, `unknown_group`, `split_infeasible`.
    """
    group_by = manifest.group_by if group_by is None else group_by
    _check_arguments(manifest, fractions, seed, group_by)
    groups, member, counts = _grouped(manifest, group_by)
    place = assigning.assign(counts, fractions, groups, f"{seed}")
    if place is None:
        _refuse_infeasible(manifest, counts, group_by, "every class must be in train, val and test", 3)
    return _parted(manifest, group_by, np.array(SPLITS, object)[place[member]])


def placed(
    manifest: Manifest,
    home: pd.Series,
    fractions: tuple[float, float, float],
    seed: int = 0,
    group_by: str | None = None,
) -> pd.DataFrame:
    """The manifest's table as of `split`, with every image in the part that is given for it.

    home: "train", "val" or "test" for each path. Where no image is in "val", groups of the training part are drawn for
    it, with the share that `fractions` have. Whether the parts share a group, `leakage.audit_checked` says.
    Raises PathoError: `no_split` (a part is missing, or a class in training), `split_infeasible`, ...
    """
    group_by = manifest.group_by if group_by is None else group_by
    _check_arguments(manifest, fractions, seed, group_by)
    part = manifest.table["path"].map(home).to_numpy(object)
    for needed in ("train", "test"):
        if needed not in part:
            raise PathoError(
                "no_split", "split", f"has no image in {needed}", 'Give train and test, or set split="group"'
            )
    learnt = set(manifest.table.loc[part == "train", "label"])
    csvfiles.stop_on(
        [
            ("no_split", name, "is a class without an image in training")
            for name in manifest.classes
            if name not in learnt
        ],
        'Give every class images in training, or set split="group"',
    )
    if "val" not in part:
        rows = np.flatnonzero(part == "train")
        rest = replace(manifest, table=manifest.table.iloc[rows])
        groups, member, counts = _grouped(rest, group_by)
        share = fractions[1] / (fractions[0] + fractions[1])
        place = assigning.assign(counts, (1 - share, share), groups, f"{seed}/val")
        if place is None:
            _refuse_infeasible(rest, counts, group_by, "every class must be in training and validation", 2)
        part[rows] = np.array(("train", "val"), object)[place[member]]
    return _parted(manifest, group_by, part)


def folds(
    manifest: Manifest, folds: int = 5, repeats: int = 1, seed: int = 0, group_by: str | None = None, val: float = 0.15
) -> list[pd.DataFrame]:
    """Grouped, stratified cross-validation: a table as of `split` for each fold of each repeat, repeat by repeat.

    Within a repeat every image is tested exactly once; no group is in two parts of a table, and every class is in each.
    val: the share of all images that each fold takes from the rest for validation, in whole groups, too.
    The same seed gives the same folds on every machine and for any order of rows.
    Raises PathoError: `bad_parameter`, `bad_seed`, `unknown_group`, `split_infeasible`.
    """
    group_by = manifest.group_by if group_by is None else group_by
    check_folds(folds, repeats)
    if not 0 < val < 1 - 1 / folds:
        raise PathoError(
            "bad_parameter",
            "val",
            f"is {val!r}",
            f"With {folds} folds use a share above 0 and below "
            f"{1 - 1 / folds:.2g}, so that some are left to learn from",
        )
    _check_arguments(manifest, (0.7, 0.15, 0.15), seed, group_by)
    groups, member, counts = _grouped(manifest, group_by)
    share, tables = val / (1 - 1 / folds), []
    for repeat in range(repeats):
        places = _tested_once(counts, groups, folds, share, f"{seed}/{repeat}")
        if places is None:
            _refuse_infeasible(
                manifest,
                counts,
                group_by,
                f"in each of {folds} folds every class must be in train, val and test",
                max(folds, 4 if folds == 2 else 3),
            )
        tables += [_parted(manifest, group_by, np.array(SPLITS, object)[place[member]]) for place in places]
    return tables


def _tested_once(counts: np.ndarray, groups: np.ndarray, folds: int, share: float, key: str) -> list[np.ndarray] | None:
    """For each fold the split (0, 1, 2) of every group, `share` of the others validating; None if none is found."""
    for attempt in range(assigning.ATTEMPTS):
        fold_of = assigning.assign(counts, [1 / folds] * folds, groups, f"{key}/{attempt}")
        if fold_of is None:
            return None
        places = []
        for fold in range(folds):
            rest = np.flatnonzero(fold_of != fold)
            inside = assigning.assign(counts[rest], (1 - share, share), groups[rest], f"{key}/{attempt}/{fold}")
            if inside is None:
                break
            place = np.full(len(groups), SPLITS.index("test"))
            place[rest] = inside
            places.append(place)
        else:
            return places
    return None


def check_folds(folds: int = 2, repeats: int = 1) -> None:
    """Refuses numbers of folds and repeats that no data could have. Errors: bad_parameter."""
    for name, value, least in (("folds", folds, 2), ("repeats", repeats, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise PathoError("bad_parameter", name, f"is {value!r}", f"Use a whole number from {least} on")


def check_fold(fold: int, folds: int, repeats: int = 1) -> None:
    """Refuses a fold that so many folds and repeats do not have; they are counted from 0. Errors: bad_parameter."""
    if folds == 0:
        raise PathoError(
            "bad_parameter",
            "fold",
            f"is {fold!r}, but there are no folds",
            "Say with the parameter folds how many there are",
        )
    if isinstance(fold, bool) or not isinstance(fold, int) or not 0 <= fold < folds * repeats:
        raise PathoError(
            "bad_parameter",
            "fold",
            f"is {fold!r}",
            f"Use a whole number from 0 to "
            f"{folds * repeats - 1}, as folds are counted from 0 and on through the repeats",
        )


def set_apart(manifest: Manifest, share: float, seed: int = 0) -> tuple[Manifest, Manifest]:
    """Two manifests, the second of `share` of the images in whole groups: patients that a study has never met.

    Every class is in both. Raises PathoError: `bad_fractions`, `bad_seed`, `split_infeasible`.
    """
    group_by = manifest.group_by
    _check_arguments(manifest, ((1 - share) / 2, (1 - share) / 2, share), seed, group_by)
    groups, member, counts = _grouped(manifest, group_by)
    place = assigning.assign(counts, (1 - share, share), groups, f"{seed}/apart")
    if place is None:
        _refuse_infeasible(manifest, counts, group_by, "every class must be in both parts", 2)
    first, second = (
        replace(
            manifest,
            table=manifest.table[place[member] == part],
            found={**manifest.found, "images": int((place[member] == part).sum())},
        )
        for part in (0, 1)
    )
    return first, second


def _grouped(manifest: Manifest, group_by: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The groups (G,), the place of every image's group among them (N,), and images by group and class (G, C)."""
    ids = manifest.table["path" if group_by == "image" else group_by]
    groups, member = np.unique(ids.to_numpy(object), return_inverse=True)
    labels = pd.Categorical(manifest.table["label"], categories=list(manifest.classes)).codes
    counts = np.zeros((len(groups), len(manifest.classes)), np.int64)
    np.add.at(counts, (member, labels), 1)
    return groups, member, counts


def _parted(manifest: Manifest, group_by: str, split: np.ndarray) -> pd.DataFrame:
    """The manifest's table with `group` and `split`."""
    table = manifest.table.copy()
    ids = table["path" if group_by == "image" else group_by]
    if group_by != "group" and "group" in table.columns:
        table = table.rename(columns={"group": "given_group"})
    return table.assign(group=ids, split=split)


def _check_arguments(manifest: Manifest, fractions, seed, group_by: str) -> None:
    if len(fractions) != 3 or min(fractions) <= 0 or not abs(sum(fractions) - 1) <= 1e-9:  # NaN: not <=, nor >
        raise PathoError(
            "bad_fractions",
            "fractions",
            f"{fractions} are not three shares above 0 that sum to 1",
            "Use (0.70, 0.15, 0.15)",
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise PathoError("bad_seed", "seed", f"{seed!r} is not a whole number from 0", "Use 0")
    known = (*manifest.levels, "image")
    if group_by not in known:
        raise PathoError("unknown_group", str(group_by), "is not an id column to group by", nearest(group_by, known))


def _refuse_infeasible(manifest: Manifest, counts: np.ndarray, group_by: str, wanted: str, least: int) -> NoReturn:
    groups = dict(zip(manifest.classes, (counts > 0).sum(axis=0).tolist(), strict=True))
    images = dict(zip(manifest.classes, counts.sum(axis=0).tolist(), strict=True))
    rows = "".join(
        f"\n  {name}: {groups[name]} groups, {images[name]} images{'' if groups[name] >= least else ': too few'}"
        for name in manifest.classes
    )
    few = [name for name in manifest.classes if groups[name] < least]
    kept = [name for name in manifest.classes if name not in few]
    why = "" if few else "\nEvery class has as many, but they hold several classes and cannot be shared out"
    finer = manifest.levels[: manifest.levels.index(group_by)] if group_by in manifest.levels else ()
    remedies = ["Add images of other groups"]
    if few and len(kept) > 1:
        remedies.append(f'drop {" and ".join(few)}: only="label={"|".join(kept)}"')
    if few and len(manifest.classes) > 2:
        remedies.append(
            f"give {' and '.join(few)} the label of a class that is alike, or name a column of coarser ones with label"
        )
    if finer:
        remedies.append(f'or group by the finer {finer[-1]!r}: group="{finer[-1]}"')
    raise PathoError(
        "split_infeasible",
        f"split by {group_by}",
        f"{wanted}, which takes at least {least} groups per class:{rows}{why}",
        "; ".join(remedies),
    )


# --- keeping a split --------------------------------------------------------------------------------------------------


def write_split(table: pd.DataFrame, path: Path) -> Path:
    """Writes the split as CSV, and its digest beside it as `<name>.sha256` in the form `sha256sum -c` reads."""
    path = write_table(Path(path), table)
    write_text(path.with_name(path.name + ".sha256"), f"{sha256(path)}  {path.name}\n")
    return path


def read_split(path: Path, leaks: bool = False) -> pd.DataFrame:
    """A split as written, once it has been shown to be unchanged and free of shared groups.

    leaks: groups in two parts are known and accepted.
    Raises PathoError: `missing_file`, `split_changed` (digest), `split_leakage` (a group in two splits), `csv_format`.
    """
    path = Path(path)
    table = csvfiles.read_csv(path, ("path", "label", "group", "split")).reset_index(drop=True)
    _refuse_another_digest(path)
    odd = table[~table["split"].isin(SPLITS)]
    csvfiles.stop_on(
        [
            ("csv_format", name, f"is in split {where!r}; known: {', '.join(SPLITS)}")
            for name, where in zip(odd["path"], odd["split"], strict=True)
        ],
        "Split again",
    )
    twice = table.loc[table["path"].duplicated(), "path"]
    csvfiles.stop_on([("csv_format", name, "is listed twice") for name in twice], "Split again")
    homes = table.groupby("group")["split"].unique()
    csvfiles.stop_on(
        [
            ("split_leakage", f"group {group}", f"is in {' and '.join(sorted(names, key=SPLITS.index))}")
            for group, names in homes[homes.map(len) > 1].items()
            if not leaks
        ],
        "Split again: no group may be in two splits",
    )
    return table


def _refuse_another_digest(path: Path) -> None:
    beside = path.with_name(path.name + ".sha256")
    if not beside.is_file():
        raise PathoError(
            "split_changed",
            path.name,
            f"has no {beside.name} beside it, so a change would go unseen",
            "Restore that file, or split again",
        )
    if beside.read_text(encoding="utf-8").split()[:1] != [sha256(path)]:
        raise PathoError(
            "split_changed",
            path.name,
            f"is not the file whose digest is in {beside.name}",
            "Restore the file, or split again",
        )


def leaked(ids: pd.Series, split: pd.Series, seen_in: str = "train", found_in: str = "test") -> pd.Series:
    """Which images of split `found_in` have an id that is also in `seen_in`, as bool; an unknown id ("") is no id."""
    return (split == found_in) & ids.isin(set(ids[split == seen_in]) - {""})


def leaked_share(table: pd.DataFrame, column: str) -> float:
    """The share of test images whose patient, case or lesion (`column`) also has images in train; 0 in a safe split.

    Where a split by image has put its own ids into the column `group`, those that were given count.
    """
    column = f"given_{column}" if f"given_{column}" in table.columns else column
    return float(leaked(table[column], table["split"])[table["split"] == "test"].mean())


def all_of(classes: Iterable[str]) -> str:
    """What a row of totals is called beside rows of these classes: "all", or more words where a class has that name."""
    name, taken = "all", {label.casefold() for label in classes}
    while name in taken:
        name += " together"
    return name


def split_counts(table: pd.DataFrame) -> pd.DataFrame:
    """Images and groups of every class in every split (columns `train images` ... `test groups`); last, of all."""
    rows = [*sorted(set(table["label"])), all_of(table["label"])]
    both = pd.concat([table, table.assign(label=rows[-1])])
    each = both.drop_duplicates(["label", "split", "group"])
    parts = {
        what: pd.crosstab(cells["label"], cells["split"]).reindex(index=rows, columns=list(SPLITS), fill_value=0)
        for what, cells in (("images", both), ("groups", each))
    }
    return pd.DataFrame({f"{s} {what}": part[s] for what, part in parts.items() for s in SPLITS}).rename_axis("class")
