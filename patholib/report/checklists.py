"""The reporting checklists CLAIM 2024 and TRIPOD+AI, with where a run folder answers each item and what is open.

Tejani et al. 2024 (44 items), Collins et al. 2024 (27 items with their letters); in our own words, which stand in
`templates/checklists.csv`: what each item asks, where a run answers it, and what is left to the authors.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from patholib.data import csvfiles
from patholib.report.records import Record

ITEMS = Path(__file__).parents[1] / "templates" / "checklists.csv"
SOURCES = {"CLAIM 2024": "Tejani et al. 2024", "TRIPOD+AI": "Collins et al. 2024"}
BESIDE = ("model_card.md", "data_card.md")  # are written together with the checklist


class Item(NamedTuple):
    """One item of a checklist: its number, what it asks in our words, and where a run answers it.

    where: Markdown; every file in backticks has to be there, or the item is open. left: what the authors have to add.
    """

    number: str
    asks: str
    where: str
    left: str


@functools.cache
def items(title: str) -> tuple[Item, ...]:
    """The items of one of SOURCES, in order."""
    table = csvfiles.read_csv(ITEMS)
    return tuple(Item(*row) for row in table.loc[table["list"] == title, list(Item._fields)].to_numpy())


def facts(run: Record) -> dict:
    """Both checklists for the template: each item with where the run folder answers it and what the authors write."""
    lists = []
    for title, source in SOURCES.items():
        rows = [row(run, item) for item in items(title)]
        states = Counter(state for _, _, state, _ in rows)
        lists.append(
            {
                "title": title,
                "source": source,
                "rows": rows,
                "states": {name: states[name] for name in ("filled", "in part", "open")},
            }
        )
    return {"lists": lists}


def row(run: Record, item: Item) -> tuple[str, str, str, Markup]:
    """The item with its state (filled, in part, or open) and where it is answered, as Markdown."""
    named = re.findall(r"`([^`]+)`", item.where)
    absent = [name for name in named if name not in BESIDE and not run.has(name)]
    parts = [
        item.where,
        f"missing: {', '.join(f'`{name}`' for name in absent)}" if absent else "",
        f"**to be written by the authors**: {item.left}" if item.left else "",
    ]
    there = len(named) > len(absent)
    state = "open" if not there else "in part" if item.left or absent else "filled"
    return item.number, item.asks, state, Markup("; ".join(filter(None, parts)))
