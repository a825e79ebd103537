"""The journal of a table of predictions: one line of JSON for each picture, whatever state a kill leaves it in."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from patholib.base import files
from patholib.base.errors import PathoError, shown
from patholib.data import caching

FORMAT = 1
SAFE = 5.0  # seconds of work that a power cut may cost; a kill costs one picture


@dataclass(frozen=True)
class Done:
    """Where in the journal a picture stands, and the file as it then was."""

    place: int  # bytes
    facts: list[int]
    passing: bool  # a problem of the moment


def facts_of(path: str) -> list[int]:
    """Size and time of change of a file, by which it is known again; of one that is not there [0, 0]."""
    try:
        found = os.stat(path)  # noqa: PTH116 - text, where there are many
    except OSError:
        return [0, 0]
    return [found.st_size, found.st_mtime_ns]


def taken_up(journal: Path, settings: dict) -> dict[str, Done]:
    """The pictures that a journal has, which is cut behind its last whole line, or begun. Errors: other_model."""
    done, end = {}, 0
    try:
        with journal.open("ab+") as stream:
            stream.seek(0)
            for line in stream:
                entry = _entry(line)
                if entry is None:
                    break
                if end == 0:
                    _refuse_others(journal, entry, settings)
                else:
                    path, facts, _, problem = entry
                    done[path] = Done(end, facts, problem is not None and problem[0] in caching.TEMPORARY)
                end += len(line)
            stream.truncate(end)
            if end == 0:
                stream.write(as_line(settings))
    except OSError as error:
        raise files.unwritable(journal, error) from error
    return {path: entry for path, entry in done.items() if not entry.passing}


def _entry(line: bytes):
    """A line of the journal, None where it is torn."""
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None


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
def appending(journal: Path) -> Iterator[Callable[[list], int]]:
    """Gives a function that adds an entry and returns its place; flushed to the system at once, to disk by and by."""
    try:
        with journal.open("ab") as stream:
            since = time.monotonic()

            def add(entry: list) -> int:
                nonlocal since
                place = stream.tell()
                stream.write(as_line(entry))
                stream.flush()
                if time.monotonic() - since > SAFE:
                    os.fsync(stream.fileno())
                    since = time.monotonic()
                return place

            yield add
    except OSError as error:
        raise files.unwritable(journal, error) from error
