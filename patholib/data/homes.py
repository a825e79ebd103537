"""A split that is given, not drawn: by a column of the table, by another table, or by what is held out."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from patholib.data import columns, csvfiles, readers
from patholib.data.manifest import Manifest
from patholib.data.readers.sources import TABLE


def find(source: Manifest, how: str = "given", hold_out: str | None = None) -> tuple[pd.Series | None, str]:
    """The part of each image of a split that is given, by path, and where it is from; None where it is to be drawn.

    how: "given" (the column of the table, if it has one), "group" (drawn), or the path of a table. hold_out: the images
    to test on, "scanner=B". Errors: csv_format, split_mismatch, unknown_value, missing_file.
    """
    table = source.table
    own = source.source == TABLE and "given_split" in table
    if hold_out is not None:
        held = columns.where(table, source.source, hold_out)
        parts, said = pd.Series(["test" if out else "train" for out in held], table["path"]), f"held out: {hold_out}"
    elif how not in ("given", "group"):
        near = readers.places_of(how)
        path = next((place for place in near if place.is_file()), near[0])
        parts, said = _listed_in(path, source), f"as the table {path.name} says"
    elif own and how == "given":
        remedy = '; to ignore that column, set split="group"'
        words = table.set_index("path")["given_split"]
        parts, said = columns.split_words("image", words, remedy), "as its column says"
    else:
        parts, said = None, ""
    if own and said != "as its column says":
        print("The column of the table that splits the images is not used.")
    return parts, said


def _listed_in(path: Path, manifest: Manifest) -> pd.Series:
    """The part of every image, by path, as another table says: matched by path, else by the name of the file."""
    table = csvfiles.read_csv(path)
    names, given = columns.meant(table, columns.PATH), columns.split_column(table, path.name)
    if not names or given is None:
        what = "path" if not names else "split"
        raise columns.missing(table, path.name, what, "Give a table with the columns path and split")
    parts = columns.split_words(f"{path.name} line", table[given], "")
    paths = table[names[0]].str.strip().str.replace("\\", "/")
    by_path = dict(zip(paths, parts, strict=True))
    by_name = pd.DataFrame({"stem": paths.map(columns.stem), "part": parts})
    unsure = set(by_name.drop_duplicates().loc[lambda t: t["stem"].duplicated(), "stem"])
    by_stem = dict(zip(by_name["stem"], by_name["part"], strict=True))
    home = {
        image: by_path.get(image) or (None if (stem := columns.stem(image)) in unsure else by_stem.get(stem))
        for image in manifest.table["path"]
    }
    without = [image for image, part in home.items() if part is None]
    csvfiles.stop_on(
        [
            ("split_mismatch", image, f"is not in {path.name}, or under a name that stands in several parts")
            for image in without
        ],
        'Give a table with a row for every image, or take these images out with only="column=value"',
    )
    return pd.Series(home)
