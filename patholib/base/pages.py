"""The frame of the HTML pages: one file each, with its pictures inside, no script, nothing fetched."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable

from patholib.base.errors import shown


def frame(title: str, body: str) -> str:
    """A whole page around `body`, which is HTML; the title is any text."""
    parts = {"title": text(title), "body": body}
    return re.sub(r"\{(title|body)\}", lambda found: parts[found[1]], PAGE)


def data_url(content: bytes, kind: str) -> str:
    """A picture as the `src` of an image; kind: "png" or "jpeg"."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def text(value) -> str:
    """Any value as HTML, on one line."""
    return html.escape(shown(value))


def table(head: Iterable[str], rows: Iterable[Iterable[str]], narrow: bool = False) -> str:
    """A table of cells that are HTML already, which scrolls where the screen is narrower; no head: none is shown."""
    def row(tag: str, cells: Iterable[str]) -> str:
        return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in cells)}</tr>\n"

    top = row("th", head) if head else ""
    kind = ' class="narrow"' if narrow else ""
    return f'<div class="scroll"><table{kind}>{top}{"".join(row("td", cells) for cells in rows)}</table></div>'


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root { color-scheme: light; }
body { margin: 0; background: #f4f6f8; color: #2b3440; font: 16px/1.55 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem clamp(1rem, 4vw, 3rem) 4rem; background: #fff; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 1.2rem 0 .6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .7rem; padding-top: .8rem; border-top: 1px solid #dfe4e8; }
h3 { font-size: 1.02rem; margin: 1.8rem 0 .5rem; }
p, li { overflow-wrap: anywhere; }
li { margin: .45rem 0; }
blockquote { margin: 1rem 0; padding: .7rem 1rem; border-left: .35rem solid #d55e00; background: #fdf1e8; }
blockquote p { margin: 0; }
code { font: .88em ui-monospace, "DejaVu Sans Mono", monospace; background: #eef1f4; padding: .1em .3em;
       border-radius: .2em; }
.scroll { overflow-x: auto; margin: .8rem 0 1.2rem; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .9rem .35rem 0; border-bottom: 1px solid #e8ebee; text-align: left; vertical-align: top;
         min-width: 4.5rem; }
th { font-weight: 600; border-bottom: 2px solid #cfd6dc; }
td:first-child { font-weight: 500; }
.few td { color: #6b7682; font-weight: 400; }
img { max-width: 100%; height: auto; display: block; margin: .6rem 0 1.4rem; }
.narrow th, .narrow td { min-width: 0; padding-right: .7rem; }
ul.pictures { list-style: none; padding: 0; }
.pictures li { display: flex; gap: .9rem; margin: 0; padding: .5rem 0; border-bottom: 1px solid #e8ebee;
               font-size: .88rem; }
.pictures span { flex: 0 0 64px; color: #76828f; font-size: .75rem; }
.pictures div { min-width: 0; }
.pictures strong { display: block; font-weight: 600; }
.pictures img { margin: 0; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1rem; }
.pairs figure { margin: 0; }
.pairs img { display: inline-block; margin: 0 .2rem 0 0; max-width: calc(50% - .2rem); vertical-align: top; }
figcaption { font-size: .8rem; overflow-wrap: anywhere; }
@media (max-width: 30rem) { th, td { min-width: 0; padding-right: .6rem; } td code { overflow-wrap: anywhere; } }
@media print { body { background: #fff; } main { max-width: none; padding: 0; } .scroll { overflow: visible; } }
</style>
</head>
<body><main>
{body}
</main></body>
</html>
"""
