"""HTML pages from templates: one file each, values escaped, pictures inside, no script, nothing fetched."""

from __future__ import annotations

import base64
from collections.abc import Iterable

import jinja2
from markupsafe import Markup

from patholib.base.errors import shown

KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".svg": "image/svg+xml"}


ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("patholib"),
    autoescape=True,
    finalize=lambda value: value if isinstance(value, Markup) else shown(value),  # any value on one line, escaped
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters["count"] = lambda number: f"{number:,}" if isinstance(number, int) else number
ENVIRONMENT.filters["words"] = lambda name: str(name).replace("_", " ")


def render(template: str, **values) -> str:
    """A template of `patholib/templates` with every value escaped, unless it is Markup. Errors: those of jinja2."""
    return ENVIRONMENT.get_template(template).render(values)


def table(head: Iterable, rows: Iterable[Iterable]) -> Markup:
    """A table that scrolls where the screen is narrower; every cell is escaped unless it is Markup."""
    return ENVIRONMENT.get_template("macros.html").module.table(list(head), rows)  # type: ignore[attr-defined]  # its macro


def frame(title: str, body: str) -> str:
    """A whole page around `body`, which is HTML; the title is any text."""
    return render("page.html", title=title, body=Markup(body))


def data_url(content: bytes, kind: str) -> str:
    """A picture as the `src` of an image; kind: "png" or "jpeg", or a media type such as "image/svg+xml"."""
    media = kind if "/" in kind else f"image/{kind}"
    return f"data:{media};base64,{base64.b64encode(content).decode()}"
