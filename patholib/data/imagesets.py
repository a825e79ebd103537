"""Cached images with their table of labels and groups, as every later step takes them."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from patholib.base.errors import PathoError, nearest, shown
from patholib.data import decoding
from patholib.data.csvfiles import stop_on

THUMBNAIL = 64  # pixels; the side of a picture in the report


@dataclass(frozen=True)
class ImageSet:
    """Images in the cache and what is known of each; a split or a subset is another table over the same pixels."""

    pixels: np.ndarray  # (M, S, S, 3) uint8, the whole cache, memory-mapped and read-only
    table: pd.DataFrame  # one row per image of this set: the manifest's columns, `row` (index into pixels), `split`...
    classes: tuple[str, ...]
    copies: dict[str, str] = dataclasses.field(default_factory=dict)  # left out: the equal picture that stayed

    def __len__(self) -> int:
        return len(self.table)

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64, the place of each image's label in `classes`."""
        place = {name: i for i, name in enumerate(self.classes)}
        unknown = sorted(set(self.table["label"].tolist()) - set(place))
        if unknown:
            raise PathoError(
                "unknown_class", unknown[0], "is a label but not a class of the set", nearest(unknown[0], self.classes)
            )
        return self.table["label"].map(place).to_numpy(np.int64)

    def part(self, split: str) -> ImageSet:
        """The images of one split."""
        if "split" not in self.table:
            raise PathoError("no_split", split, "is asked for of images that are not split", "Call with_split first")
        known = sorted(set(self.table["split"]))
        if split not in known:
            raise PathoError("unknown_split", split, "is not a split of these images", nearest(split, known))
        chosen = self.table[self.table["split"] == split].reset_index(drop=True)
        return dataclasses.replace(self, table=chosen)

    @property
    def pictures(self) -> np.ndarray:
        """The pixels of every image of this set, (N, S, S, 3) uint8, in memory: for a few."""
        return self.pixels[self.table["row"].to_numpy()]

    def examples(self, each: int, by: str) -> ImageSet:
        """`each` images of every class, of as many different groups (column `by`) as there are; in class order."""
        turn = self.table.groupby(["label", by]).cumcount()  # 0 for the first image of every group
        spread = self.table.assign(turn=turn).sort_values(["turn", "path"], kind="stable")
        parts = [spread[spread["label"] == name].head(each) for name in self.classes]
        return dataclasses.replace(self, table=pd.concat(parts, ignore_index=True).drop(columns="turn"))

    def refuse_torn_copies(self, home: Mapping[str, str]) -> None:
        """Refuses a split that has a picture in one part, and its equal, which was left out, in another: split_leakage.

        home: the part of each path, also of those that were left out.
        """
        stop_on(
            [
                ("split_leakage", copy, f"is in {home[copy]}, and {shown(kept)} with the same pixels in {home[kept]}")
                for copy, kept in self.copies.items()
                if {copy, kept} <= home.keys() and home[copy] != home[kept]
            ],
            "Keep one of each pair, in one part: no picture may be in two",
        )

    def with_split(self, table: pd.DataFrame) -> ImageSet:
        """The same images under a split table, matched by path; both must name exactly the same images.

        Raises PathoError: `split_mismatch`; `split_leakage` where a split made elsewhere has a picture in one part and
        its equal, which the check left out as a duplicate, in another.
        """
        paths, ours = table["path"].tolist(), self.table["path"].tolist()
        home = dict(zip(paths, table["split"].tolist(), strict=True))
        self.refuse_torn_copies(home)
        rows = dict(zip(ours, self.table["row"].tolist(), strict=True))
        for missing, reason in (
            (home.keys() - rows.keys(), "is in the split but not among the images"),
            (rows.keys() - home.keys(), "is among the images but not in the split"),
        ):
            if missing:
                raise PathoError(
                    "split_mismatch",
                    min(missing),
                    f"{reason} (so are {len(missing) - 1} more)",
                    "Split the checked manifest again",
                )
        table = table.drop(columns="row", errors="ignore").reset_index(drop=True)
        return dataclasses.replace(self, table=table.assign(row=np.array([rows[path] for path in paths], np.int64)))


def pictures(paths: list[str], facts: list[dict], pixels: np.ndarray, root: Path) -> dict[str, bytes]:
    """A small JPEG of each of these files: as the cache has it, or as far as a refused one decodes, if at all."""
    place = {fact["path"]: i for i, fact in enumerate(facts)}
    found = {}
    for path in paths:
        i = place[path]
        image = Image.fromarray(pixels[i]) if "pixels" in facts[i] else _visible(root, facts[i])
        if image is not None:
            found[path] = decoding.thumbnail(image, THUMBNAIL)
    return found


def _visible(root: Path, fact: dict) -> Image.Image | None:
    """What can be seen of a refused file, also of a damaged one; None where nothing can."""
    path, code = root / fact["path"], fact["problem"]["code"]
    if code not in ("corrupt", "multi_frame", "unsupported_format", "unsupported_mode"):
        return None
    formats = set(decoding.FORMATS)
    if code != "unsupported_mode":
        formats -= {"TIFF"}  # libtiff prints on every damaged tag
    try:
        content = decoding.read_content(path, path.name)
        image = Image.open(io.BytesIO(content), formats=list(formats))
        if image.width * image.height > decoding.MAX_PIXELS:
            return None
        image.draft("RGB", (THUMBNAIL, THUMBNAIL))  # a JPEG is decoded at an eighth of its size
        with contextlib.suppress(Exception):
            image.load()
        image.tile = []  # nothing more to decode: Pillow then gives what it has
        if image.mode in decoding.MODES:
            seen = decoding.on_white(image, [])
        else:  # deep grey: its own darkest to its own brightest
            values = np.asarray(image, dtype=np.float64)
            seen = Image.fromarray(np.uint8((values - values.min()) / np.ptp(values) * 255)).convert("RGB")
        return None if decoding.blank(seen) else seen
    except Exception:  # it was refused already: another error of Pillow's adds nothing
        return None
