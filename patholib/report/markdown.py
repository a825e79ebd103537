"""Markdown of values that may hold anything, and the HTML page that is made of it: one file, no script, all inside."""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote, unquote

from patholib.base import pages
from patholib.base.errors import PathoError, shown

WORDS = {"auc": "AUC", "f1": "F1", "macro_f1": "macro F1", "brier": "Brier score", "ece": "calibration error",
         "ece_mass": "calibration error, bins of equal mass", "ece_width": "calibration error, bins of equal width",
         "ece_chance": "the same by chance", "ppv": "positive predictive value", "npv": "negative predictive value"}


def text(value) -> str:
    """Anything as Markdown that shows it literally, on one line: no HTML, no link, no formula, no new table cell."""
    text = shown(value).replace("&", "&amp;").replace("<", "&lt;").replace("://", ":&#47;/").replace("$", "&#36;")
    text = re.sub(r"[`*_\[\]|~]", r"\\\g<0>", text.replace("\\", "&#92;"))  # nbconvert takes \\( for a formula
    return re.sub(r"^([-+=#>]|\d+(?=[.)](\s|$)))", lambda m: f"&#{ord(m[0][0])};{m[0][1:]}", text)  # a list, a quote


def words(name: str) -> str:
    """The name of a number as a person says it."""
    return WORDS.get(name, name.replace("_", " "))


def count(number) -> str:
    """A whole number with its thousands apart; anything else as text."""
    return f"{number:,}" if isinstance(number, int) else text(number)


def why(numbers: Iterable[tuple[str, Mapping | None]]) -> list[str]:
    """One line for each reason why numbers are undefined, have no interval or leave classes out, with their names."""
    reasons: dict[str, dict] = {}
    for name, found in numbers:
        for key, what in (("undefined", "Undefined"), ("no_interval", "No interval"), ("note", "Note")):
            if found and found.get(key):
                reasons.setdefault(f"{what}, {text(found[key])}", {})[name] = True
    return [f"- {reason}: {', '.join(names)}." for reason, names in reasons.items()] + [""] * bool(reasons)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table of cells that are Markdown already."""
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    return [*lines, *(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows), ""]


def pairs(values: Mapping) -> list[str]:
    """A two-column table of a flat or nested mapping; long values are cut."""
    rows = [(text(str(key).replace("_", " ")), text(short(spoken(value)))) for key, value in values.items()]
    return table(("field", "value"), rows)


def spoken(value) -> str:
    """A JSON value in words: `files 1,995, by code (corrupt 2)`."""
    if isinstance(value, Mapping):
        return ", ".join(f"{str(k).replace('_', ' ')} ({spoken(v)})" if isinstance(v, (Mapping, list)) else
                         f"{str(k).replace('_', ' ')} {spoken(v)}" for k, v in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(spoken, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:,}" if isinstance(value, int) else str(value)


def short(value, width: int = 300) -> str:
    """The beginning of a long text."""
    whole = str(value)
    return whole if len(whole) <= width else whole[:width] + "…"


def picture(folder: Path, path: Path) -> str:
    """The Markdown of a picture below `folder`."""
    return f"![{text(path.stem.replace('_', ' '))}]({quote(path.relative_to(folder).as_posix())})"


def joined(lines: Iterable[str]) -> str:
    """Lines as one text, no two empty ones in a row."""
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def page(title: str, markdown: str, folder: Path) -> str:
    """Markdown as one HTML file: nbconvert turns it into HTML, the page around it is ours.

    title: any text. folder: where the pictures lie that the Markdown names. Errors: extra_missing, missing_file.
    """
    try:
        import nbconvert
        import nbformat
    except ImportError as error:
        raise PathoError("extra_missing", "the page", f"needs nbconvert ({error})",
                         'Install it: pip install "patholib[notebooks]"') from error
    parts = re.split(r"(?m)^(?=## )", markdown)
    cells = [nbformat.v4.new_markdown_cell(part, id=f"part-{i}") for i, part in enumerate(parts)]  # ids are random else
    body, _ = _exporter(nbconvert.HTMLExporter).from_notebook_node(nbformat.v4.new_notebook(cells=cells))
    body = re.sub(r"<(script|style)\b.*?</\1>", "", body, flags=re.S)  # the page has its own look and needs no script
    body = re.sub(r'<a class="anchor-link".*?</a>', "", body)
    body = re.sub(r'(<img\b[^>]*?src=")([^"]*)', lambda m: m[1] + _embedded(folder, m[2]), body)
    body = re.sub(r"(\d) \((\S+) to (\S+)\)", "\\1\u00a0(\\2\u00a0to\u00a0\\3)", body)  # an interval is one word
    body = re.sub(r"<tr>(?=\s*<td>[^<]* (?:\*|&#42;)</td>)", '<tr class="few">', body)  # subgroups too small to judge
    body = body.replace("<table>", '<div class="scroll"><table>').replace("</table>", "</table></div>")
    return pages.frame(title, body)


@functools.cache
def _exporter(kind: type):
    """One for all pages: to read its templates takes longer than to write a page."""
    return kind(template_name="basic")


def _embedded(folder: Path, source: str) -> str:
    content = (folder / unquote(html.unescape(source))).read_bytes()
    return pages.data_url(content, "png")
