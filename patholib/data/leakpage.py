"""The page of a leak audit: what the splits share, with the nearly equal pictures side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from patholib.base import pages
from patholib.base.errors import PathoError
from patholib.data import decoding, signatures

PAIRS_SHOWN, THUMBNAILS, SIDE = 200, 30, 144  # on the page: rows, pairs of pictures, pixels


def page(audit, near: str) -> str:
    """The audit as one HTML page. audit: an `audits.Audit`; near: its kind of pair that a person has to judge."""
    parts = [
        {
            "title": title,
            "pictures": _pictures(pairs[pairs["kind"] == near], audit.places),
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


def short(audit) -> str:
    """The audit as HTML for a notebook: verdict, one row per level, notes."""
    return pages.render("audit_short.html", audit=audit, table=table(audit.levels()), notes=audit.notes())


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
