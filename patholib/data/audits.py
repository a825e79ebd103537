"""What an audit of a split found, as table, text, page and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from patholib.base import files, pages
from patholib.base.errors import PathoError, shown
from patholib.data import decoding, signatures
from patholib.data.manifest import DEMO_NOTE

WAYS = (("train", "test"), ("train", "val"), ("val", "test"))  # what the first has, is not new in the second
KINDS = ("same file", "same pixels", "near-duplicate")  # how two images can be one picture, the surest first
NEAR = KINDS[2]
SAYS = {
    "path": "are listed in {} too",
    "same file": "are byte for byte a file of {}",
    "same pixels": "equal an image of {}",
    "near-duplicate": "nearly equal an image of {}",
}
PAIRS_SHOWN, THUMBNAILS, SIDE = 200, 30, 144  # on the page: rows, pairs of pictures, pixels
PAIR = ["kind", "similarity", "path", "label", "split", "other path", "other label", "other split"]


@dataclass(frozen=True, eq=False, repr=False)
class Audit:
    """What the splits share, and what could not be looked at."""

    name: str  # of the CSV or folder
    table: pd.DataFrame  # a row per level and way: level, seen in, found in, images, of, share, <class> share, examples
    pairs: pd.DataFrame  # PAIR: every image that is new in name only, beside the one of the other split that it shows
    conflicts: pd.DataFrame  # PAIR: equal or nearly equal pictures under two labels, in whatever splits
    counts: dict[str, int]  # images of each split
    in_two_classes: dict[str, dict]  # level: how many of its ids have images of two classes, and the first of them
    unchecked: tuple[str, ...]
    remarks: tuple[str, ...]  # what was taken for one id or label, or for unknown
    demo: bool
    places: dict[str, Path]  # the files at hand, by path

    @property
    def ok(self) -> bool:
        """Whether nothing that was looked at leaks; `unchecked` says what was not."""
        return not self.table["images"].any()

    @property
    def verdict(self) -> str:
        """The outcome in one line."""
        counted = f"{shown(self.name)}: " + ", ".join(f"{name} {n:,}" for name, n in self.counts.items())
        if self.ok:
            return f"No leak found{' in what could be checked' if self.unchecked else ''} ({counted})"
        worst = max(self.leaks(), key=lambda row: (-WAYS.index((row["seen in"], row["found in"])), row["share"]))
        return f"LEAKS: {worst['share']:.1%} of the {worst['found in']} images {says(worst)} ({counted})"

    @property
    def summary(self) -> dict:
        """All of it as JSON values."""
        rows = [
            {
                "level": row["level"],
                "seen_in": row["seen in"],
                "found_in": row["found in"],
                "images": row["images"],
                "of": row["of"],
                "share": row["share"],
                "per_class": {c: row[f"{c} share"] for c in self._classes if not pd.isna(row[f"{c} share"])},
                "examples": row["examples"],
            }
            for row in self.table.to_dict("records")
        ]
        pairs, conflicts = (
            [{c.replace(" ", "_"): cell for c, cell in row.items()} for row in frame.to_dict("records")]
            for frame in (self.pairs, self.conflicts)
        )
        return {
            "split": shown(self.name),
            "demo": self.demo,
            "ok": self.ok,
            "images": self.counts,
            "leaks": rows,
            "pairs": pairs,
            "label_conflicts": conflicts,
            "ids_in_two_classes": self.in_two_classes,
            "taken_for": list(self.remarks),
            "not_checked": list(self.unchecked),
        }

    def leaks(self) -> list[dict]:
        """The rows of the table that say what leaks."""
        return self.table[(self.table["images"] > 0) & (self.table["level"] != "any")].to_dict("records")

    def write(self, folder: Path) -> Path:
        """Writes audit.json and audit.html, which holds its pictures, into the folder; returns the path of the page."""
        files.write_json(Path(folder) / "audit.json", self.summary)
        return files.write_text(Path(folder) / "audit.html", page(self))

    def __repr__(self) -> str:
        return "\n".join(
            ([DEMO_NOTE] if self.demo else []) + [self.verdict, self.levels().to_string(index=False), *self.notes()]
        )

    def _repr_html_(self) -> str:
        return pages.render("audit_short.html", audit=self, table=table(self.levels()), notes=self.notes())

    @property
    def _classes(self) -> list[str]:
        return [c.removesuffix(" share") for c in self.table.columns if c.endswith(" share")]

    def levels(self) -> pd.DataFrame:
        """How many images are not new as text, one column for each way, and the class that leaks most the first way."""
        rows: dict[str, dict] = {}
        most: dict[str, str] = {}
        for row in self.table.to_dict("records"):
            shares = {c: row[f"{c} share"] for c in self._classes if row[f"{c} share"] > 0}
            worst = max(shares, key=shares.__getitem__, default="")
            most.setdefault(row["level"], shown(f"{worst} ({shares[worst]:.1%})") if shares else "")
            cells = rows.setdefault(row["level"], {"level": shown(row["level"])})
            cells[f"{row['found in']} seen in {row['seen in']}"] = (
                f"{row['images']:,} ({row['share']:.1%})" if row["images"] else "0"
            )
        table = pd.DataFrame(list(rows.values())).fillna("0")
        return table.assign(**{"most of class": list(most.values())}) if any(most.values()) else table

    def notes(self) -> list[str]:
        """Sentences on what else was found, and on what could not be checked."""
        lines = [
            f"{found['count']:,} {level} ids have images of two classes ({', '.join(found['first'])})"
            for level, found in self.in_two_classes.items()
            if found["count"]
        ]
        if len(self.conflicts):
            row = self.conflicts.iloc[0]
            lines.append(
                f"{len(self.conflicts):,} pairs of equal or nearly equal pictures have two labels, as "
                + shown(f"{row['path']} ({row['label']}) and {row['other path']} ({row['other label']})")
            )
        return lines + [shown(text) for text in self.remarks] + [f"Not checked: {text}" for text in self.unchecked]


def says(row: Mapping) -> str:
    """What the images of one row of the table share, as the end of a sentence."""
    return SAYS.get(row["level"], f"have their {shown(row['level'])} in {{}}").format(row["seen in"])


# --- the page ---------------------------------------------------------------------------------------------------------


def page(audit: Audit) -> str:
    """The audit as one HTML page."""
    parts = [
        {
            "title": title,
            "pictures": _pictures(pairs[pairs["kind"] == NEAR], audit.places),
            "table": table(pairs.head(PAIRS_SHOWN)),
            "more": max(len(pairs) - PAIRS_SHOWN, 0),
        }
        for title, pairs in (("Pictures in two splits", audit.pairs), ("Pictures with two labels", audit.conflicts))
        if len(pairs)
    ]
    return pages.render(
        "audit.html",
        title=f"Leak audit: {audit.name}",
        audit=audit,
        table=table(audit.table),
        parts=parts,
        notes=audit.notes(),
        same=f"{signatures.SAME:g}",
    )


def table(frame: pd.DataFrame) -> Markup:
    """A table in which every cell is escaped text and every share a percentage."""

    def cell(value, name: str) -> str:
        if isinstance(value, float):
            return f"{value:.3f}" if name == "similarity" else "" if pd.isna(value) else f"{value:.1%}"
        return f"{value:,}" if isinstance(value, int) else value

    rows = [[cell(value, name) for name, value in row.items()] for row in frame.to_dict("records")]
    return pages.table(frame.columns, rows)


def _pictures(pairs: pd.DataFrame, places: Mapping[str, Path]) -> list[dict]:
    """The first pairs whose files are both at hand: pictures and captions."""
    found = []
    for row in pairs.head(THUMBNAILS).to_dict("records"):
        both = [_thumbnail(places.get(row[name])) for name in ("path", "other path")]
        if all(both):
            found.append(
                {
                    "images": both,
                    "lines": (
                        f"similarity {row['similarity']:.3f}",
                        f"{row['split']}: {row['path']} {row['label']}",
                        f"{row['other split']}: {row['other path']} {row['other label']}",
                    ),
                }
            )
    return found


def _thumbnail(place: Path | None) -> str:
    """A small JPEG as the `src` of an image; "" for a file that is not there any more."""
    try:
        return "" if place is None else pages.data_url(decoding.thumbnail(decoding.read(place), SIDE), "jpeg")
    except PathoError:
        return ""
