"""Audit of a split: which test images share a patient, a file or a picture with the training images."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from patholib.base import cpu, files
from patholib.base.errors import PathoError, shown
from patholib.base.progress import bar
from patholib.data import audits, caching, checking, decoding, foreign, signatures
from patholib.data.audits import KINDS, NEAR, PAIR, WAYS, Audit
from patholib.data.columns import level_of
from patholib.data.foreign import Listed
from patholib.data.imagesets import ImageSet
from patholib.data.manifest import first, in_several
from patholib.data.splitting import SPLITS, leaked

WRONG = {"missing_file": "are not at hand", "flat": "are too plain for near-duplicates to be recognised"}


@dataclass(frozen=True)
class _Seen:
    """What was seen of every image; "" or zeros where there is no sound file."""

    sha256: pd.Series
    pixels: pd.Series  # digest of the decoded picture
    signatures: np.ndarray  # (N, 16, 16)
    unchecked: list[str]


def _look(listed: Listed, progress: bool) -> _Seen:
    """Opens every file that is there."""
    paths = listed.table["path"]
    known = np.zeros((len(paths), *signatures.SHAPE), np.float32)

    def work(i: int) -> tuple[str, str, str]:
        """sha256, digest of the pixels, and the code of what is wrong."""
        place = listed.places[i]
        if place is None:
            return "", "", "missing_file"
        try:
            content = decoding.read_content(place, paths[i])
        except PathoError as error:  # what is too large still has bytes; a pipe would never end
            passing = error.code in caching.TEMPORARY | {"broken_link"}
            return "" if passing else files.sha256(place), "", error.code
        sha256 = hashlib.sha256(content).hexdigest()
        try:
            image = decoding.read(content, paths[i])
        except PathoError as error:
            return sha256, "", error.code
        known[i] = signatures.of(image)
        pixels = hashlib.blake2b(repr(image.size).encode() + image.tobytes(), digest_size=16).hexdigest()
        return sha256, pixels, "" if known[i].any() else "flat"

    rows, workers = range(len(paths)), cpu.cores()
    with contextlib.closing(cpu.in_order(work, rows, workers, ahead=16 * workers)) as results:
        sha256, pixels, codes = zip(
            *bar(results, progress, total=len(rows), desc="Reading images", unit="img", leave=False), strict=True
        )
    unchecked = [
        f"pictures: {n:,} of {len(rows):,} {WRONG.get(code, 'cannot be read')} ({code}), as "
        + shown(paths[codes.index(code)])
        for code, n in Counter(filter(None, codes)).most_common()
    ]
    return _Seen(pd.Series(sha256), pd.Series(pixels), known, unchecked)


def _links(listed: pd.DataFrame, seen: _Seen | None, near: tuple, ways: list) -> pd.DataFrame:
    """Which image of an earlier split each image shows again, the surest of each: columns of `_linked` and seen in."""
    splits = listed["split"].to_numpy()
    parts = [_linked(NEAR, *near), _linked(NEAR, near[1], near[0], near[2])]
    for way in ways:
        for kind, keys in zip(KINDS, (seen.sha256, seen.pixels) if seen else (), strict=False):
            mine = keys[leaked(keys, listed["split"], *way)]
            parts.append(_linked(kind, mine.index, mine.map(_firsts(keys[splits == way[0]])), 1.0))
    links = pd.concat(parts)
    seen_in, found_in = splits[links["other"]], splits[links["image"]]
    forward = [way in ways for way in zip(seen_in, found_in, strict=True)]
    links = links.assign(**{"seen in": seen_in})[np.array(forward, bool)]
    return _surest_first(links).drop_duplicates(["image", "seen in"])


def _conflicts(listed: pd.DataFrame, seen: _Seen | None, near: tuple) -> pd.DataFrame:
    """Equal and nearly equal images with two labels, as `_linked`."""
    label = listed["label"].to_numpy()
    parts = [_linked(NEAR, *near)]
    for kind, keys in zip(KINDS, (seen.sha256, seen.pixels) if seen else (), strict=False):
        keys = keys[(keys != "") & (label != "")]
        parts.append(_linked(kind, keys.map(_firsts(keys)), keys.index, 1.0))
    links = _surest_first(pd.concat(parts)).drop_duplicates(["image", "other"])
    a, b = label[links["image"]], label[links["other"]]
    return links[(a != b) & (a != "") & (b != "")]


def _linked(kind: str, image, other, similarity) -> pd.DataFrame:
    """Pairs of row numbers that show one picture."""
    image, other = np.asarray(image, np.int64), np.asarray(other, np.int64)
    links = {"kind": kind, "similarity": similarity, "image": image, "other": other}
    return pd.DataFrame(links, index=range(len(image))).astype({"similarity": float})


def _firsts(keys: pd.Series) -> pd.Series:
    """The first row with each key, by key."""
    once = keys.drop_duplicates()
    return pd.Series(once.index, once)


def _surest_first(links: pd.DataFrame) -> pd.DataFrame:
    return links.iloc[
        np.lexsort((links["other"], links["image"], -links["similarity"], links["kind"].map(KINDS.index).astype(int)))
    ]


def _spelled(listed: pd.DataFrame, links: pd.DataFrame) -> pd.DataFrame:
    """Links with the columns PAIR instead of row numbers."""
    both = [listed.loc[links[name], ["path", "label", "split"]].reset_index(drop=True) for name in ("image", "other")]
    return pd.concat([links[["kind", "similarity"]].reset_index(drop=True), *both], axis=1).set_axis(PAIR, axis=1)


def audit(
    split,
    root: Path | None = None,
    columns: Mapping[str, str] | None = None,
    ids: Iterable[str] = (),
    metadata: Path | None = None,
    where: str | None = None,
    pixels: bool = True,
    progress: bool = True,
) -> Audit:
    """What the splits share: ids at every level, files, pixels and nearly equal pictures.

    split: a CSV or DataFrame with a row per image; a folder that holds train, test and perhaps val, with a folder for
    every class in each; or such folders by name, {"train": ..., "test": ...}.
    root: the folder paths count from; by default that of the CSV (of a DataFrame: the current one).
    columns: what a foreign table calls ours, {"path": "file_name", "split": "fold"}; ids: its further id columns.
    metadata: a CSV of further columns for the images by their name, such as the official one of ISIC with the lesions.
    where: the rows of the table that count, where it lists several splits: "fold=1".
    pixels: False compares ids alone, as is done with images whose files are not at hand.
    Raises PathoError: `no_split`, `unknown_split`, `csv_format`, `listed_twice`, `missing_file`, `nothing_to_check`.
    """
    ids = list(ids)
    named = () if isinstance(split, pd.DataFrame) else split.values() if isinstance(split, Mapping) else (split,)
    with _asked(*named, root, metadata):
        listed = foreign.read(split, root, columns or {}, ids, where)
        keys, unchecked = foreign.ids(listed.table, ids, metadata)
        return _audited(listed, keys, [*listed.closed, *unchecked], pixels, progress)


@contextlib.contextmanager
def _asked(*places) -> Iterator[None]:
    """Refuses what is no file and no folder, and takes names that are not UTF-8. Errors: as `files.look_at_file`."""
    for place in filter(None, places):
        files.look_at_file(place, folders=True)
    with pd.option_context("mode.string_storage", "python"):  # pyarrow's holds nothing but UTF-8
        try:
            yield
        except OSError as error:
            raise files.unread(str(error.filename), error) from error


def _audited(listed: Listed, keys: dict[str, pd.Series], unchecked: list[str], pixels: bool, progress: bool) -> Audit:
    """The audit of images that are listed, with their ids."""
    rows = listed.table
    seen: _Seen | None = None
    near: tuple = signatures.NONE
    if pixels and any(listed.places):
        seen = _look(listed, progress)
        near = signatures.similar(seen.signatures, wanted=_telling(rows, seen))
        unchecked += seen.unchecked
    elif not keys:
        raise PathoError(
            "nothing_to_check",
            listed.name,
            "has no column of ids, and no image file of it is at hand",
            "Name the column that holds the patient (--ids), or the folder of the images (--root)",
        )
    else:
        unchecked.append(
            "pictures: "
            + (f"none of the {len(rows):,} files is at hand; name their folder (--root)" if pixels else "not asked for")
        )
    return _found(listed, keys, unchecked, seen, near)


def audit_checked(checked: checking.Checked, split: pd.DataFrame, progress: bool = True) -> Audit:
    """The same of images that were checked, under a table with their `path`, `label` and `split`; no file is opened.

    Pictures are compared as the cache holds them, so a copy that was stretched or cut is seen by `audit` alone. That
    none has the very pixels of another the check has seen to; of those it left out as such copies,
    `ImageSet.with_split` refuses one that stands in another split.
    """
    listed, keys, unchecked = _listed_checked(checked, split)
    rows = listed.table
    known = np.zeros((len(rows), *signatures.SHAPE), np.float32)
    held = replace(checked.images, table=checked.images.table[checked.images.table["path"].isin(rows["path"])])
    place = pd.Index(rows["path"]).get_indexer(held.table["path"])
    known[place] = cached_signatures(held, progress)
    flat = int((~known[place].any(axis=(1, 2))).sum())
    unchecked += [f"pictures: {flat:,} of {len(rows):,} {WRONG['flat']} (flat)"] if flat else []
    parts = pd.factorize(rows["split"])[0]
    near = signatures.similar(known, wanted=lambda i, j: parts[i] != parts[j])
    seen = _Seen(pd.Series("", rows.index), pd.Series("", rows.index), known, [])
    return _found(listed, keys, unchecked, seen, near)


def cached_signatures(images: ImageSet, progress: bool = False) -> np.ndarray:
    """The signature of every image of a set as the cache holds it, (N, 16, 16)."""
    rows, workers = images.table["row"].tolist(), cpu.cores()
    found = np.zeros((len(rows), *signatures.SHAPE), np.float32)

    def work(i: int) -> None:
        found[i] = signatures.of(Image.fromarray(images.pixels[rows[i]]))

    with contextlib.closing(cpu.in_order(work, range(len(rows)), workers, ahead=16 * workers)) as done:
        for _ in bar(done, progress, total=len(rows), desc="Comparing images", unit="img", leave=False):
            continue
    return found


def _listed_checked(checked: checking.Checked, split: pd.DataFrame) -> tuple[Listed, dict[str, pd.Series], list[str]]:
    """The rows of the split with what the manifest knows of them, whose columns count first, and their ids."""
    source = checked.manifest
    rows = split[["path", "split"]].join(source.table.set_index("path"), on="path")
    rows = rows.join(split[[name for name in split.columns if level_of(name) and name not in rows]])
    rows = rows.fillna("").astype(str).reset_index(drop=True)
    keys, unchecked = foreign.ids(rows, source.levels, None)
    places = [Path(source.root) / path for path in rows["path"]]
    return Listed("split", rows, places, source.demo), keys, unchecked


def _found(listed: Listed, keys: dict, unchecked: list[str], seen: _Seen | None, near: tuple) -> Audit:
    """The audit of rows whose ids and pictures were compared."""
    rows, splits = listed.table, listed.table["split"]
    if (rows["label"] == "").all():
        unchecked.append("labels: none are given")
    ways = [way for way in WAYS if set(way) <= set(splits)]
    links = _links(rows, seen, near, ways)
    labelled = pd.DataFrame({"label": rows["label"], **keys})[rows["label"] != ""]
    return Audit(
        name=listed.name,
        table=pd.concat([_shares(rows, keys, links if seen else None, way) for way in ways]),
        pairs=_spelled(rows, links),
        conflicts=_spelled(rows, _conflicts(rows, seen, near)),
        counts={part: int((splits == part).sum()) for part in SPLITS if part in set(splits)},
        in_two_classes={level: first(filter(None, in_several(labelled, level, "label"))) for level in keys},
        unchecked=tuple(unchecked),
        demo=listed.demo,
        remarks=listed.remarks,
        places={path: place for path, place in zip(rows["path"], listed.places, strict=True) if place is not None},
    )


def _telling(listed: pd.DataFrame, seen: _Seen) -> Callable:
    """Which pairs are worth a comparison: of two splits or labels, and not of the very same pixels."""
    split, label, pixels = (pd.factorize(column)[0] for column in (listed["split"], listed["label"], seen.pixels))
    return lambda i, j: (pixels[i] != pixels[j]) & ((split[i] != split[j]) | (label[i] != label[j]))


def _shares(listed: pd.DataFrame, keys: dict, links: pd.DataFrame | None, way: tuple[str, str]) -> pd.DataFrame:
    """The rows of the audit's table for one way: how many images of split way[1] are not new after way[0]."""
    among = listed["split"] == way[1]
    masks, examples = {}, {}
    for level, known in {"path": listed["path"], **keys}.items():
        masks[level] = leaked(known, listed["split"], *way)
        examples[level] = sorted(set(known[masks[level]]))
    if not masks["path"].any():  # the usual: nothing to report
        del masks["path"]
    if links is not None:
        here = links[(links["seen in"] == way[0]) & among[links["image"]].to_numpy()]
        for kind in KINDS:
            of_kind = here[here["kind"] == kind]
            masks[kind] = pd.Series(listed.index.isin(of_kind["image"]))
            examples[kind] = [" = ".join(listed.loc[pair, "path"]) for pair in of_kind[["image", "other"]].to_numpy()]
    masks["any"] = pd.concat(masks, axis=1).any(axis=1)
    found = []
    for level, mask in masks.items():
        some = examples.get(level, [])
        classes = mask[among].groupby(listed.loc[among, "label"]).mean()
        found.append(
            {
                "level": level,
                "seen in": way[0],
                "found in": way[1],
                "images": int(mask.sum()),
                "of": int(among.sum()),
                "share": float(mask[among].mean()),
                **{f"{name} share": classes.get(name, np.nan) for name in sorted(set(listed["label"]) - {""})},
                "examples": "; ".join(map(shown, some[:3])) + (f" and {len(some) - 3:,} more" if len(some) > 3 else ""),
            }
        )
    return pd.DataFrame(found)


def refuse(found: Audit, otherwise: str = "") -> None:
    """Stops with `split_leakage` on a split that leaks, naming what is shared and the first of it.

    otherwise: what else than to split again can be done, a sentence for the remedy.
    """
    if not found.ok:
        raise PathoError(
            "split_leakage",
            found.name,
            "; ".join(
                f"{row['images']:,} of {row['of']:,} {row['found in']} images {audits.says(row)} ({row['examples']})"
                for row in found.leaks()
            ),
            "Split again by patient, case or lesion, and keep one of each pair of equal pictures"
            + (f". {otherwise}" if otherwise else ""),
        )


def recorded(found: Audit) -> dict[str, list[dict]]:
    """What a run keeps of a leaking split as JSON values, {level: [a row for every way]}; empty where nothing leaks."""
    leaks: dict[str, list[dict]] = {}
    for row in found.leaks():
        leaks.setdefault(row["level"], []).append(
            {
                "seen_in": row["seen in"],
                "found_in": row["found in"],
                "images": row["images"],
                "of": row["of"],
                "share": row["share"],
                "says": f"{row['images']:,} of {row['of']:,} {row['found in']} images {audits.says(row)}",
            }
        )
    return leaks


def worst(leaks: Mapping[str, list[dict]]) -> str:
    """The gravest of what `recorded` kept in words, "12 of 60 test images have their case in train"; "" if nothing."""
    rows = [row for of_level in leaks.values() for row in of_level]
    gravest = max(rows, key=lambda row: (-WAYS.index((row["seen_in"], row["found_in"])), row["share"]), default=None)
    return gravest["says"] if gravest else ""
