"""Whether a second data set is really a second one: which of its images, files or patients a run already has."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from patholib.base.errors import PathoError, shown
from patholib.data import columns, foreign, leakage, signatures
from patholib.data.checking import Checked
from patholib.data.imagesets import ImageSet
from patholib.data.manifest import Manifest

COLUMNS = ["path", "kind", "seen_in", "other", "similarity"]
NAMED = 20  # images that the refusal names; its `report` has all


@dataclass(frozen=True)
class Overlap:
    """What a second data set has in common with the images of a run."""

    links: pd.DataFrame  # COLUMNS: an image, how it is known to the run, in which part, and the image there
    compared: tuple[str, ...]
    not_compared: tuple[str, ...]

    @property
    def images(self) -> int:
        """How many of the second set's images are not new."""
        return int(self.links["path"].nunique())

    def to_json(self) -> dict:
        """All of it as JSON values."""
        return {
            "images": self.images,
            "by_kind": {kind: int(n) for kind, n in self.links.groupby("kind")["path"].nunique().items()},
            "links": self.links.to_dict("records"),
            "compared": list(self.compared),
            "not_compared": list(self.not_compared),
        }


def refuse(name: str, found: dict) -> None:
    """Stops on a set that shares images or patients with the run. found: `Overlap.to_json`. Errors: external_leak."""
    if not found["images"]:
        return
    some = [
        f"{link['path']} ({link['kind']} as {link['other']} in {link['seen_in']})" for link in found["links"][:NAMED]
    ]
    more = f" and {len(found['links']) - NAMED:,} more" if len(found["links"]) > NAMED else ""
    error = PathoError(
        "external_leak",
        name,
        f"{found['images']:,} of its images are not new to the run: {'; '.join(map(shown, some))}{more}",
        "Leave them out. Where two hospitals number their patients alike, write the hospital before the number. "
        "With allow_leakage=True (--allow-leakage) it goes on, and every page says what leaks",
    )
    error.report = found
    raise error


def overlap(
    split: pd.DataFrame, sha256: dict[str, str], others: Checked, images: ImageSet | str, progress: bool = False
) -> Overlap:
    """Compares ids, files and pictures of a second set with those of a run: training, validation and test.

    split: of the run, with the columns of its manifest. sha256: of its files, by path. images: of the run, in the cache
    of the same size and under `split`; or why they are not at hand: names of files are then compared instead.
    """
    mine = split.sort_values("split", key=lambda parts: parts.map({"train": 0, "val": 1, "test": 2}), kind="stable")
    ids, not_compared = _ids(mine, others.manifest)
    hashes = dict(zip(others.facts["path"], others.facts["sha256"], strict=True))
    keys = dict(ids)
    keys["file"] = _both(mine["path"].map(sha256), others.manifest.table["path"].map(hashes))
    if isinstance(images, str):
        not_compared.append(f"pictures: {images}; names of files were compared instead")
        keys["name"] = _both(*(table["path"].map(columns.stem) for table in (mine, others.manifest.table)))
    links = [link for kind, (known, asked) in keys.items() for link in _equal(kind, known, asked, mine, others)]
    compared = [*(f"ids: {name}" for name in ids), "bytes of files (SHA-256)"]
    if not isinstance(images, str):
        links += _pictures(images, others.images, progress)
        compared.append("pictures: equal, and nearly equal ones that were turned, scaled or encoded again")
        if len(images) < len(split):
            not_compared.append(f"pictures: {len(split) - len(images):,} images of the run are not at hand any more")
    table = pd.DataFrame(links, columns=COLUMNS).drop_duplicates(["path", "kind"]).sort_values(["path", "kind"])
    return Overlap(table.reset_index(drop=True), tuple(compared), tuple(not_compared))


def _both(known: pd.Series, asked: pd.Series) -> tuple[pd.Series, pd.Series]:
    return known.fillna("").reset_index(drop=True), asked.fillna("").reset_index(drop=True)


def _ids(mine: pd.DataFrame, theirs: Manifest) -> tuple[dict[str, tuple[pd.Series, pd.Series]], list[str]]:
    """The ids that both sets have, {level: (of the run, of the others)}, and what is not known of them."""
    table = theirs.table.drop(columns=[name for name in theirs.subgroups if name not in theirs.levels])
    tables = [mine, table.assign(group=table[theirs.group_by])]
    own = [one.assign(group=one["group"].mask(one["group"] == one["path"], "")) for one in tables]  # "": no group
    both = pd.concat(own, ignore_index=True).fillna("").astype(str)
    levels, unchecked = foreign.ids(both, (), None)
    # After the semicolon stand options of the audit. A group that is known is the lesion, or more than it.
    grouped = "group" in levels and (levels["group"] != "").any()
    reasons = [reason.partition(";")[0] for reason in unchecked if not (grouped and reason.startswith("lesions"))]
    return {name: (ids[: len(mine)], ids[len(mine) :].reset_index(drop=True)) for name, ids in levels.items()}, reasons


def _equal(kind: str, known: pd.Series, asked: pd.Series, mine: pd.DataFrame, others: Checked) -> Iterator[tuple]:
    """A link for each image of the others whose key the run has too."""
    first = known[known != ""].drop_duplicates()
    at = pd.Series(first.index, first)
    paths, parts = mine["path"].to_numpy(), mine["split"].to_numpy()
    there = asked[asked.isin(at.index)]
    for place, row in zip(there.index, at[there], strict=True):
        yield others.manifest.table["path"].iloc[place], f"same {kind}", parts[row], paths[row], 1.0


def _pictures(mine: ImageSet, theirs: ImageSet, progress: bool) -> list[tuple]:
    """Links of equal cached pixels, and of signatures that are similar."""
    paths, parts = mine.table["path"].to_numpy(), mine.table["split"].to_numpy()
    known, asked = ([hashlib.sha256(one.pixels[row]).digest() for row in one.table["row"]] for one in (mine, theirs))
    first = {digest: i for i, digest in reversed(list(enumerate(known)))}
    names = theirs.table["path"].to_numpy()
    found = [
        (names[j], "same pixels", parts[i], paths[i], 1.0)
        for j, digest in enumerate(asked)
        if (i := first.get(digest)) is not None
    ]
    seen = np.concatenate([leakage.cached_signatures(one, progress) for one in (mine, theirs)])
    n = len(mine)
    for i, j, value in zip(*signatures.similar(seen, wanted=lambda i, j: (i < n) & (j >= n)), strict=True):
        if known[i] != asked[j - n]:
            found.append((names[j - n], "near-duplicate", parts[i], paths[i], float(value)))
    return found
