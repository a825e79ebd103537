"""The style of all figures, and the helpers to open and save them."""

from __future__ import annotations

import functools
import io
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from PIL import ImageFont

from patholib.base import files
from patholib.base.errors import PathoError, shown

INK, FAINT, PAPER, WARNING = "#2b3440", "#8a94a0", "#ffffff", "#a83a00"
BLUE, ORANGE, GREEN, PINK = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
COLOURS = (BLUE, ORANGE, GREEN, PINK, "#56b4e9", "#e69f00", "#4d4d4d", "#7a5195")  # Okabe & Ito, yellow left out
MARKERS = "osD^v<>P"
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
SCREEN_DPI, FILE_DPI = 100, 160
FAMILY = "DejaVu Sans"
TALLEST = 40  # inches; what would be taller is squeezed, since memory grows with the area
PANEL = 420  # fewest pixels on a side of a picture that `panels` draws: about twice what a page shows

STYLE = {
    "figure.dpi": SCREEN_DPI,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "font.family": FAMILY,
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called "$x_1$"
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.labelsize": 9.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e8ebee",
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.framealpha": 0.8,
    "legend.edgecolor": "none",
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
}


def applied():
    """A context in which matplotlib has its defaults and our style, whatever the user's matplotlibrc says."""
    return plt.style.context(["default", STYLE])


class Styled(Figure):
    """A figure that keeps the style when a notebook draws it later."""

    def draw(self, renderer) -> None:
        """Draws; some texts of the axes are made only now, with the settings of this moment."""
        with applied():
            super().draw(renderer)


def styled(draw):
    """Draws with the project's style and leaves the caller's settings as they were."""

    @functools.wraps(draw)
    def figure(*args, **kwargs) -> Figure:
        with applied():
            return draw(*args, **kwargs)

    return figure


def open(width: float, height: float, title: str, note: str) -> Figure:
    """An empty closed figure, `height` inches below title and note, which have a strip of their own at the top."""
    letters = int(width * 13)  # of the title's size in one line
    lines = textwrap.wrap(plain(title, 400), letters) if title else []
    notes = textwrap.wrap(plain(note, 400), int(letters * 1.15)) if note else []
    strip = 0.10 + 0.20 * len(lines) + 0.19 * len(notes) if lines or notes else 0
    height = min(height, TALLEST) + strip
    figure = plt.figure(figsize=(width, height), layout="constrained", FigureClass=Styled)
    plt.close(figure)
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)  # as `layout` says
    engine.set(rect=(0, 0, 1, 1 - strip / height), w_pad=0.06, h_pad=0.06)
    top = 1 - 0.05 / height
    above: dict[str, Any] = {"size": 8.5, "color": WARNING, "weight": "bold"}
    headed: dict[str, Any] = {"size": 11, "weight": "bold"}
    for text, step, look in [(t, 0.19, above) for t in notes] + [(t, 0.20, headed) for t in lines]:
        figure.text(0.08 / width, top, text, va="top", ha="left", **look)
        top -= step / height
    return figure


def plain(text, width: int = 60) -> str:
    """`text` on one line with control characters made visible, cut in the middle to `width` characters."""
    text = shown(text)
    return text if len(text) <= width else f"{text[: width - width // 3 - 1]}…{text[-(width // 3) :]}"


def counted(number: int, noun: str) -> str:
    """`1 patient`, `12 patients`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def method_name(method: str) -> str:
    """The name of a heatmap method as papers write it."""
    return method.replace("gradcam", "Grad-CAM").replace("hirescam", "HiResCAM")


def wrapped(text, width: int, lines: int = 2) -> str:
    """`text` in at most `lines` lines of `width` characters."""
    text = plain(text, max(int(width * lines * 0.85), 6))  # lines break before they are full
    return "\n".join(textwrap.wrap(text, max(width, 4), max_lines=lines, placeholder="…"))


def frame(history) -> pd.DataFrame:
    """A history, given as DataFrame or as list of dicts, with numbers for columns (text becomes NaN)."""
    table = pd.DataFrame(history)
    if table.empty or "epoch" not in table:
        raise PathoError("empty_history", "history", "has no epoch to draw", "Train at least one epoch first")
    return table.apply(pd.to_numeric, errors="coerce")


def picture(image) -> np.ndarray:
    """(H, W, 3) uint8 from uint8 (H, W, 3) or float in [0, 1], with the channels first or last."""
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[0] == 3 and image.shape[2] != 3:
        image = image.transpose(1, 2, 0)
    return image if image.dtype == np.uint8 else np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def show(axes, image, caption: str = "", width: int = 24, **look) -> None:
    """One picture without ticks, its caption below in at most two lines."""
    axes.imshow(image, interpolation="nearest", **look)
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    if caption:
        axes.set_xlabel(wrapped(caption, width), fontsize=8, labelpad=3)


def words(axes, text: str) -> None:
    """Words in place of a plot."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color=FAINT)


def by_epoch(axes, epochs) -> None:
    """An x axis of whole epochs, with room for a single one."""
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    low, high = float(np.min(epochs)), float(np.max(epochs))
    margin = 0.03 * (high - low) or 0.5
    axes.set_xlim(low - margin, high + margin)


def rows(axes, names) -> None:
    """A y axis with a name for each row, the first on top."""
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")


def class_ticks(axis, classes, width: int = 22, rotate: bool = False) -> None:
    """Names of classes at the ticks that are there, in two lines each or slanting."""
    names = [wrapped(name, width) for name in classes]
    if rotate:
        axis.set_ticks(axis.get_ticklocs(), names, rotation=40, ha="right", rotation_mode="anchor")
    else:
        axis.set_ticks(axis.get_ticklocs(), names)


def edges(epochs) -> np.ndarray:
    """Epoch n lasts from n - 0.5 to n + 0.5 in a plot of steps."""
    return np.append(np.asarray(epochs, float) - 0.5, float(np.max(epochs)) + 0.5)


def stairs(epochs, values) -> tuple[np.ndarray, np.ndarray]:
    return edges(epochs), np.append(values, np.asarray(values)[-1])


def mark(axes, at: float, text: str, colour: str = INK) -> None:
    """A dashed vertical line with a text above it."""
    axes.axvline(at, color=colour, linewidth=1, linestyle=(0, (3, 2)), zorder=1)
    axes.text(at, 1.01, text, transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=8)


def mark_threshold(axes, threshold: float | None) -> None:
    if threshold is not None:
        mark(axes, threshold, f"threshold {threshold:.3g}")


@functools.cache
def font(size: int):
    """The typeface of the figures, for Pillow."""
    return ImageFont.truetype(matplotlib.font_manager.findfont(FAMILY), size)


def save(figure: Figure, path: Path) -> Figure:
    """Writes the figure as PNG, the same bytes for the same figure, and returns it, so that a cell can end with it."""
    content = io.BytesIO()
    with applied():
        figure.savefig(content, format="png", dpi=FILE_DPI, metadata={"Software": None})
    files.write_bytes(path, content.getvalue())
    return figure
