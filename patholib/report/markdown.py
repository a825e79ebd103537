"""Markdown from templates, with every value shown literally, and the HTML page of the same text."""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote, unquote

from markdown_it import MarkdownIt
from markupsafe import Markup

from patholib.base import files, pages
from patholib.base.errors import shown
from patholib.judge.metric_table import words

FEW = " \\*"  # ends the first cell of a row whose numbers are too few to judge; the page greys the row


def cell(value) -> Markup:
    """Anything as Markdown within a line, on one line: no HTML, no link, no formula, no new table cell."""
    if isinstance(value, Markup):
        return value
    text = shown(value).replace("&", "&amp;").replace("<", "&lt;").replace("://", ":&#47;/").replace("$", "&#36;")
    return Markup(re.sub(r"[`*_\[\]|~]", r"\\\g<0>", text.replace("\\", "&#92;")))


def text(value) -> Markup:
    """As `cell`, and also where a line begins: no list, heading or quote."""
    if isinstance(value, Markup):
        return value
    return Markup(re.sub(r"^([-+=#>]|\d+(?=[.)](\s|$)))", lambda m: f"&#{ord(m[0][0])};{m[0][1:]}", cell(value)))


def marked(value) -> Markup:
    """One of our own sentences, in which `fields` are marked, as Markdown: the marks stay, the rest is literal."""
    parts = shown(value).split("`")
    return Markup("".join(f"`{part}`" if i % 2 else text(part) for i, part in enumerate(parts)))


def count(number) -> str:
    """A whole number with its thousands apart; anything else as it is."""
    return f"{number:,}" if isinstance(number, int) and not isinstance(number, bool) else str(number)


def table(head: Sequence, rows: Iterable[Sequence]) -> Markup:
    """A Markdown table; every cell is shown literally unless it is Markup."""
    lines = [f"| {' | '.join(map(cell, head))} |", "|" + " --- |" * len(head)]
    return Markup("\n".join([*lines, *(f"| {' | '.join(map(cell, row))} |" for row in rows)]) + "\n")


def facts(values: Mapping, head: Sequence[str] = ("", "")) -> Markup:
    """A table of two columns: each key in words, and its value in words, cut if it is long."""
    return table(
        head,
        [
            (str(key).replace("_", " "), value if isinstance(value, Markup) else short(spoken(value)))
            for key, value in values.items()
        ],
    )


def why(numbers: Iterable[tuple[str, Mapping | None]]) -> Markup:
    """A list of the reasons why numbers are undefined, have no interval or leave classes out: each reason once."""
    reasons: dict[tuple[str, str], dict] = {}
    for name, number in numbers:
        for key, what in (("undefined", "Undefined"), ("no_interval", "No interval"), ("note", "Note")):
            if number and number.get(key):
                reason = re.sub(r"^undefined in \d+ of", "undefined in some of", str(number[key]))  # else a line each
                reasons.setdefault((what, reason), {})[name] = True
    return Markup(
        "".join(
            f"- {what} for {text(', '.join(names))}: {text(reason)}.\n" for (what, reason), names in reasons.items()
        )
    )


def spoken(value) -> str:
    """A JSON value in words: `files 1,995, by code (corrupt 2)`."""
    if isinstance(value, Mapping):
        return (
            ", ".join(
                f"{str(k).replace('_', ' ')} ({spoken(v)})"
                if isinstance(v, (Mapping, list))
                else f"{str(k).replace('_', ' ')} {spoken(v)}"
                for k, v in value.items()
            )
            or "none"
        )
    if isinstance(value, (list, tuple)):
        return ", ".join(map(spoken, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:,}" if isinstance(value, int) else str(value)


def short(value, width: int = 300) -> str:
    """The beginning of a long text."""
    whole = str(value)
    return whole if len(whole) <= width else whole[:width] + "…"


def picture(folder: Path, path: Path, title: str = "") -> Markup:
    """The Markdown of a picture below `folder`; title: what is read where the picture cannot be seen."""
    return Markup(f"![{text(title or path.stem.replace('_', ' '))}]({quote(path.relative_to(folder).as_posix())})")


# ------------------------------------------------------------------------------------------------- templates and pages


ENVIRONMENT = pages.ENVIRONMENT.overlay(finalize=text)
ENVIRONMENT.filters = ENVIRONMENT.filters | {"words": words, "count": count}  # not those of the HTML templates
ENVIRONMENT.globals = ENVIRONMENT.globals | {"table": table, "facts": facts}


def render(template: str, **values) -> str:
    """A template of `patholib/templates` as Markdown; every value is shown literally unless it is Markup."""
    made = ENVIRONMENT.get_template(template).render(values)
    return re.sub(r"\n{3,}", "\n\n", made).strip() + "\n"


def write(folder: Path, stem: str, title: str, text: str) -> Path:
    """Writes Markdown as <stem>.md and as the page <stem>.html into a folder; returns the page."""
    files.write_text(folder / f"{stem}.md", text)
    return files.write_text(folder / f"{stem}.html", page(title, text, folder))


def page(title: str, markdown: str, folder: Path) -> str:
    """Markdown of `render` as one HTML page with its pictures inside.

    title: any text. folder: where the pictures lie that the Markdown names. Errors: missing_file.
    """
    body = _converter().render(markdown, {"folder": Path(folder)})
    body = re.sub(r"(\d) \((\S+) to (\S+)\)", "\\1\u00a0(\\2\u00a0to\u00a0\\3)", body)  # an interval is one word
    body = re.sub(r"(\d) %", "\\1\u00a0%", body)
    return pages.frame(title, body)


@functools.cache
def _converter() -> MarkdownIt:
    """CommonMark with tables; HTML comes from our templates alone, for `text` leaves none in a value."""
    made = MarkdownIt("commonmark", {"html": True}).enable("table")
    made.add_render_rule("table_open", lambda *_: '<div class="scroll"><table>\n')
    made.add_render_rule("table_close", lambda *_: "</table></div>\n")
    made.add_render_rule("tr_open", _row)
    made.add_render_rule("heading_open", _heading)
    made.add_render_rule("image", _embedded)
    made.add_render_rule("link_open", _linked)
    return made


def _heading(_renderer, tokens, place, _options, _env) -> str:
    """A heading that links can point to, by the name GitHub gives it."""
    name = re.sub(r"[^a-z0-9]+", "-", tokens[place + 1].content.lower()).strip("-")
    return f'<{tokens[place].tag} id="{name}">'


def _row(_renderer, tokens, place, _options, _env) -> str:
    first = next((token for token in tokens[place + 1 : place + 3] if token.type == "inline"), None)
    return '<tr class="few">\n' if first is not None and first.content.endswith(FEW) else "<tr>\n"


def _linked(_renderer, tokens, place, _options, _env) -> str:
    """A link to another text of the run folder leads to its page."""
    address = re.sub(r"^([a-z_]+)[.]md$", r"\1.html", str(tokens[place].attrs["href"]))
    return f'<a href="{html.escape(address)}">'


def _embedded(renderer, tokens, place, options, env) -> str:
    """An image with its file inside, so that the page fetches nothing."""
    token = tokens[place]
    path = env["folder"] / unquote(str(token.attrs["src"]))
    kind = pages.KINDS[path.suffix.lower()]
    alt = html.escape(renderer.renderInlineAsText(token.children, options, env))
    drawn = ' class="chart"' if path.suffix == ".svg" else ""
    return f'<img{drawn} src="{pages.data_url(files.read_bytes(path), kind)}" alt="{alt}">'
