"""Galleries of heatmaps as files: a sheet and a page to look through, a table, and every picture on its own."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np

from patholib.base import files, pages
from patholib.base.errors import shown
from patholib.judge.gradcam import Gallery
from patholib.report.figures import heatmaps, style

SIDE = 160  # least pixels of a picture on the page


def write(found: Gallery, folder: Path, name: str = "gallery", note: str = "", one_scale: bool = False):
    """Writes name.png, name.html, name.csv and a folder `name` with each picture, heat and overlay; returns the sheet.

    one_scale: red is the highest value of the whole gallery; else of each map.
    """
    folder = Path(folder)
    files.write_table(folder / f"{name}.csv", found.table)
    files.write_text(folder / f"{name}.html", page(found, note, one_scale))
    for i, row in enumerate(found.table.itertuples(), 1):
        single = f"{i:02}-{_slug(row.section)}-{_slug(Path(row.path).stem)}.png"
        files.write_bytes(folder / name / single, _encoded(_triple(found, i - 1, one_scale), ".png"))
    return style.save(heatmaps.heat_sheet(found, one_scale, note=note), folder / f"{name}.png")


def page(found: Gallery, note: str = "", one_scale: bool = False) -> str:
    """The gallery as one HTML file with its pictures inside."""
    parts = [f"<blockquote><p><strong>{pages.text(note)}</strong></p></blockquote>"] * bool(note)
    parts += [f"<h1>Where the evidence lies</h1><p>{pages.text(found.method)} after {pages.text(found.block)}, for the "
              "class each image was called. Left what the network saw, right its heat.</p>", _bar(found, one_scale)]
    for section, rows in found.sections.items():
        parts += [f"<h2>{pages.text(section)}</h2>", '<div class="pairs">',
                  *(_figure(found, row, one_scale) for row in rows), "</div>"]
    return pages.frame("Heatmaps", "\n".join(parts))


def _figure(found: Gallery, row: int, one_scale: bool) -> str:
    picture, _, overlay = np.split(_triple(found, row, one_scale), 3, axis=1)
    side = max(SIDE, len(picture))
    images = "".join(f'<img src="{pages.data_url(_encoded(_enlarged(part, side), ".jpg"), "jpeg")}" alt="" '
                     f'width="{SIDE}">' for part in (picture, overlay))
    blank = "" if found.heat[row].any() else "<br><strong>blank map: nothing argues for this class</strong>"
    path = found.table["path"].iloc[row]
    return (f'<figure>{images}<figcaption title="{pages.text(path)}"><strong>{pages.text(Path(path).name)}</strong><br>'
            f"{pages.text(found.captions[row])}{blank}</figcaption></figure>")


def _bar(found: Gallery, one_scale: bool) -> str:
    """The colours of the heat from none to most."""
    ramp = np.tile(np.linspace(0, 1, SIDE), (12, 1))
    bar = heatmaps.overlay(np.zeros((*ramp.shape, 3), np.uint8), ramp, opacity=1)
    most = f"{found.heat.max():.3g}, one scale for all" if one_scale else "the map's own maximum"
    return f'<p><img src="{pages.data_url(_encoded(bar, ".png"), "png")}" alt="blue to red">0 to {most}</p>'


def _triple(found: Gallery, row: int, one_scale: bool) -> np.ndarray:
    """Picture, heat and overlay side by side, (H, 3 W, 3) uint8."""
    picture, raw = found.pictures[row], found.heat[row]
    peak = found.heat.max() if one_scale else raw.max()
    share = np.clip(raw / peak, 0, 1) if peak > 0 else raw
    alone = heatmaps.overlay(np.full_like(picture, 240), share, opacity=1)
    return np.hstack([picture, alone, heatmaps.overlay(picture, share)])


def _enlarged(picture: np.ndarray, side: int) -> np.ndarray:
    return picture if len(picture) >= side else cv2.resize(picture, (side, side), interpolation=cv2.INTER_CUBIC)


def _encoded(picture: np.ndarray, suffix: str) -> bytes:
    return cv2.imencode(suffix, np.ascontiguousarray(picture[..., ::-1]))[1].tobytes()


def _slug(text: str) -> str:
    """A file name that every system takes, of letters, digits and hyphens."""
    return re.sub(r"[^\w.]+", "-", shown(text)).strip("-.")[:80] or "image"
