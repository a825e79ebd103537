"""Progress: a bar with an estimate where somebody watches, plain lines in logs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from tqdm.auto import tqdm

SECONDS = 0.5  # between two states of a bar; in a notebook each is several messages to the browser
LINES = 30.0  # ... where nobody sees a bar, and each is a line of a log

say = tqdm.write  # a line above the bars that are open


def watched() -> bool:
    """Whether somebody may be watching: at a terminal, or in a notebook that can draw bars."""
    return sys.stderr.isatty() or any(kind.__name__ == "tqdm_notebook" for kind in tqdm.__mro__)


def bar(items: Iterable | None = None, shown: bool = True, **looks) -> tqdm:
    """A bar over `items`, or one that is moved by hand with `update`; looks: as tqdm takes them.

    TQDM_DISABLE=1 silences it in a notebook too, where tqdm itself ignores that variable: in a headless run nobody
    watches, and the thousands of messages of a long training can push out the one that says it has ended.
    """
    silent = not shown or os.environ.get("TQDM_DISABLE", "0") not in ("", "0")
    return tqdm(items, disable=silent, mininterval=SECONDS if watched() else LINES, **looks)


def say_at_once(text: str) -> None:
    """As `say`, also into a log that is read while it is written."""
    say(text)
    sys.stdout.flush()
