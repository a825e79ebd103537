"""The journal of a table of predictions: one line of JSON for each picture, whatever state a kill leaves it in."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from patholib.base import files
from patholib.base.errors import PathoError, shown
from patholib.data import caching

FORMAT = 2  # 2: with the prediction set
SAFE = 5.0  # seconds of work that a power cut may cost; a kill costs one picture


def facts_of(path: str) -> list[int]:
    """By what a file is known again, see `files.stamp`; of one that is not there []."""
    try:
        return files.stamp(os.stat(path))  # noqa: PTH116 - text, where there are many
    except (OSError, ValueError):
        return []


def taken_up(journal: Path, settings: dict) -> dict[str, list]:
    """The entries of a journal by path, which is cut behind its last whole line, or begun. Errors: other_model."""
    done: dict[str, list] = {}
    with files.writable(journal), journal.open("ab+") as stream:
        stream.seek(0)
        end, first = 0, None
        for line in stream:
            try:
                entry = json.loads(line)
            except ValueError:  # torn
                break
            if not line.endswith(b"\n"):
                break
            if first is None:
                first = entry
                _refuse_others(journal, entry, settings)
            else:
                done[entry[0]] = entry
            end += len(line)
        stream.truncate(end)
        if first is None:
            stream.write(as_line(settings))
    return {path: entry for path, entry in done.items() if not (entry[3] and entry[3][0] in caching.TEMPORARY)}


def as_line(value) -> bytes:
    return json.dumps(value).encode() + b"\n"  # ASCII: names that are no text survive


def _refuse_others(journal: Path, found, settings: dict) -> None:
    """One table holds the answers of one model, computed in one way."""
    known = found if isinstance(found, dict) else {}
    differ = [
        f"{name} {shown(known.get(name))} instead of {value}"
        for name, value in settings.items()
        if known.get(name) != value
    ]
    if differ:
        raise PathoError(
            "other_model",
            str(journal),
            f"was begun with {', '.join(differ)}",
            "Go on as it was begun, name another file, or delete it to begin anew",
        )


@contextlib.contextmanager
def appending(journal: Path) -> Iterator[Callable[[list], None]]:
    """Gives a function that adds an entry; flushed to the system at once, to disk by and by."""
    with files.writable(journal), journal.open("ab") as stream:
        since = time.monotonic()

        def add(entry: list) -> None:
            nonlocal since
            stream.write(as_line(entry))
            stream.flush()
            if time.monotonic() - since > SAFE:
                os.fsync(stream.fileno())
                since = time.monotonic()

        yield add
