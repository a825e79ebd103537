"""Galleries of heatmaps as files: a sheet and a page to look through, a table, and every picture on its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from patholib.base import files, pages
from patholib.base.errors import shown
from patholib.judge import trust
from patholib.judge.gradcam import Gallery
from patholib.report.figures import heatmaps, style

SIDE = 160  # least pixels of a picture on the page


def write(
    found: Gallery,
    folder: Path,
    name: str = "gallery",
    note: str = "",
    one_scale: bool = False,
    facts: Mapping | None = None,
):
    """Writes name.png, name.html, name.csv and a folder `name` with each picture, heat and overlay; returns the sheet.

    one_scale: red is the highest value of the whole gallery; else of each map. facts: of trust.json; sheet and page
    begin with the verdict, or say that such maps were not checked.
    """
    folder = Path(folder)
    files.write_table(folder / f"{name}.csv", found.table)
    files.write_text(folder / f"{name}.html", page(found, note, one_scale, facts))
    for i, row in enumerate(found.table.itertuples(), 1):
        single = f"{i:02}-{_slug(row.section)}-{_slug(Path(row.path).stem)}.png"
        files.write_bytes(folder / name / single, _encoded(np.hstack(_triple(found, i - 1, one_scale)), ".png"))
    return style.save(heatmaps.heat_sheet(found, one_scale, note=note, facts=facts), folder / f"{name}.png")


def page(found: Gallery, note: str = "", one_scale: bool = False, facts: Mapping | None = None) -> str:
    """The gallery as one HTML file with its pictures inside."""
    sections = [(title, [_picture(found, row, one_scale) for row in rows]) for title, rows in found.sections.items()]
    facts = trust.covering(facts, found.block, found.method)
    most = f"{found.heat.max():.3g}, one scale for all maps" if one_scale else "the maximum of each map"
    return pages.render(
        "gallery.html",
        title="Heatmaps",
        note=note,
        verdict=facts["verdict"] if facts else trust.NOT_CHECKED,
        doubt=not facts or trust.state(facts) != trust.SUPPORTED,
        block=found.block,
        most=most,
        name=found.method.replace("gradcam", "Grad-CAM"),
        bar=_bar(),
        sections=sections,
    )


def _picture(found: Gallery, row: int, one_scale: bool) -> dict:
    image, _, overlay = _triple(found, row, one_scale)
    side, path = max(SIDE, len(image)), found.table["path"].iloc[row]
    both = {
        name: pages.data_url(_encoded(part, ".jpg", side), "jpeg")
        for name, part in (("image", image), ("overlay", overlay))
    }
    return both | {
        "path": path,
        "name": Path(path).name,
        "caption": found.captions[row],
        "blank": not found.heat[row].any(),
    }


def _bar() -> str:
    """The colours of the heat from none to most, as the `src` of an image."""
    ramp = np.tile(np.linspace(0, 1, SIDE), (12, 1))
    return pages.data_url(
        _encoded(heatmaps.overlay(np.zeros((*ramp.shape, 3), np.uint8), ramp, opacity=1), ".png"), "png"
    )


def _triple(found: Gallery, row: int, one_scale: bool) -> tuple[np.ndarray, ...]:
    """Picture, heat and overlay."""
    raw = found.heat[row]
    return heatmaps.three(found.pictures[row], raw, found.heat.max() if one_scale else raw.max(), 0.45, "jet")


def _encoded(picture: np.ndarray, suffix: str, least: int = 0) -> bytes:
    if len(picture) < least:
        picture = cv2.resize(picture, (least, least), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(suffix, np.ascontiguousarray(picture[..., ::-1]))[1].tobytes()


def _slug(text: str) -> str:
    """A file name that every system takes, of letters, digits and hyphens."""
    return re.sub(r"[^\w.]+", "-", shown(text)).strip("-.")[:80] or "image"
