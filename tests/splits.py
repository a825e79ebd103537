"""How often each group of the smallest class is validated and tested, over many seeds.

python tests/splits.py                        with the group sizes of BreakHis at 40X
python tests/splits.py my_images.csv          with your own images, which are not opened
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from patholib.data import readers, splitting
from patholib.data.manifest import Manifest
from patholib.data.readers import breakhis

BENIGN = (12, 13, 15, 16, 16, 16, 17, 22, 26, 33, 37, 38, 65, 74, 99, 126)  # images of each case of BreakHis at 40X
MALIGNANT = (
    *(1, 10, 10, 11, 11, 12, 13, 14, 14, 14, 15, 15, 17, 18, 19, 20, 20, 20, 20, 21, 21, 22, 22, 23, 23, 23, 23),
    *(23, 24, 25, 25, 26, 26, 26, 26, 26, 27, 29, 29, 30, 30, 31, 31, 32, 32, 35, 36, 37, 38, 39, 43, 46, 64, 82),
)


def like_breakhis() -> Manifest:
    """Names as of BreakHis at 40X: as many cases of each class, with as many images each."""
    return breakhis.from_names(
        f"SOB_{code}-14-{first + case}-40-{image:03d}.png"
        for code, first, sizes in (("B_A", 1000, BENIGN), ("M_DC", 5000, MALIGNANT))
        for case, size in enumerate(sizes)
        for image in range(size)
    )


def places(source: Manifest, label: str, seeds: int) -> pd.DataFrame:
    """The part of every group of a class (rows), for each seed (columns)."""
    rows = source.table["label"] == label
    group = source.table.loc[rows, source.group_by]
    drawn = {seed: splitting.split(source, seed=seed).loc[rows, "split"] for seed in range(seeds)}
    return pd.DataFrame(drawn).groupby(group).first()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", help="a folder or a CSV")
    parser.add_argument("--seeds", type=int, default=200)
    given = parser.parse_args()
    source = readers.load("breakhis", given.data) if given.data else like_breakhis()
    label = source.table.groupby("label")[source.group_by].nunique().idxmin()
    found = places(source, label, given.seeds)
    sizes = source.table.loc[source.table["label"] == label, source.group_by].value_counts().reindex(found.index)
    rows = {"images": sizes} | {f"{part} %": (100 * (found == part).mean(axis=1)).round(1) for part in ("val", "test")}
    error = 200 * np.sqrt(0.15 * 0.85 / given.seeds)
    sets = (found == "test").T.drop_duplicates()
    print(f"{label}: {len(found)} groups, {given.seeds} seeds, nominal 15 %, +- {error:.1f} points by chance:")
    print(pd.DataFrame(rows).sort_values("images").to_string())
    print(f"{len(sets)} different test sets")


if __name__ == "__main__":
    main()
