"""Progress: a bar with an estimate where somebody watches, plain lines in logs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable

from tqdm.auto import tqdm

SECONDS = 0.5  # between two states of a bar; in a notebook each is several messages to the browser
LINES = 30.0  # seconds between two lines of progress where nobody sees a bar

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
    return tqdm(items, disable=silent, mininterval=SECONDS, **looks)


def say_at_once(text: str) -> None:
    """As `say`, also into a log that is read while it is written."""
    say(text)
    sys.stdout.flush()


class Meter:
    """Bytes being transferred: a bar where somebody watches, else a line now and then."""

    def __init__(self, name: str, here: int, total: int):
        self.bar = bar(total=total, initial=here, unit="B", unit_scale=True, desc=name, leave=False, shown=watched())
        self.name, self.here, self.total, self.came = name, here, total, 0
        self.since = self.line = time.monotonic()
        self.close = self.bar.close

    def update(self, count: int) -> None:
        """So many more bytes."""
        self.here, self.came, now = self.here + count, self.came + count, time.monotonic()
        self.bar.update(count)
        if self.bar.disable and now - self.line >= LINES:
            self.line, rate = now, self.came / max(now - self.since, 1e-9)
            left = (self.total - self.here) / max(rate, 1) / 60
            say_at_once(
                f"{self.name}: {self.here / 1e6:,.0f} of {self.total / 1e6:,.0f} MB "
                f"({self.here / self.total:.0%}), {rate / 1e6:.1f} MB/s, about {left:,.0f} min left"
            )
