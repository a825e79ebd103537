"""One process at a time in a folder, by filelock; whoever comes second is told who is there."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import filelock

from patholib.base import files
from patholib.base.errors import PathoError

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # errors of a drive that has no locks


class Lock:
    """A lock held by this process, until `close` or until the process ends in any way."""

    def __init__(self, held: filelock.BaseFileLock, note: Path):
        self._held, self._note = held, note

    def close(self) -> None:
        """Gives the lock free."""
        with contextlib.suppress(OSError):  # Windows: somebody is reading it
            self._note.unlink()
        self._held.release()


def take(path: Path) -> Lock | None:
    """The lock whose file is `path`, or None where another process holds it (`holder` says which).

    The operating system frees it when the process dies. Some network drives have no locks: there a marker file stands
    for the lock, which filelock removes where its process has died on this machine, and a person where it died on
    another. Raises OSError where the file cannot be written.
    """
    held = _acquired(path)
    if held is None:
        return None
    note = _beside(path, "holder")
    try:
        note.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    except OSError:
        held.release()
        raise
    return Lock(held, note)


def holder(path: Path) -> str:
    """Who holds it, for a message: "process 4711 on host"."""
    try:
        text = _beside(path, "holder").read_text(encoding="utf-8").strip()
    except OSError:  # it is being taken or given free just now
        return "another process"
    here = text.endswith(f" on {socket.gethostname()}")
    return text if here else f"{text} (if that has ended, delete {path.stem}.*lock)"


@contextlib.contextmanager
def alone(target: Path, code: str, doing: str, wait: bool = False) -> Iterator[None]:
    """No other process makes `target` meanwhile; its folder is made.

    code: of the error where another one does; doing: what it does then, "fetched" or "written". wait: waits for it
    instead. Errors: also output_unwritable, no_space.
    """
    path = target.with_name(f".{target.name}.lock")
    with files.writable(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = take(path)
    if lock is None and not wait:
        raise PathoError(code, str(target), f"is being {doing} by {holder(path)}", "Wait until it ends, or end it")
    if lock is None:
        print(f"{target.name}: is being {doing} by {holder(path)}; waiting for it", flush=True)
    while lock is None:
        time.sleep(0.2)
        lock = take(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # before it is free, so that nobody else holds it; Windows keeps the file
            path.unlink()
        lock.close()


def _acquired(path: Path) -> filelock.BaseFileLock | None:
    lock: filelock.BaseFileLock = filelock.FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        return None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        lock = filelock.SoftFileLock(_beside(path, "soft"), timeout=0, thread_local=False)
        try:
            lock.acquire()
        except filelock.Timeout:
            return None
    return lock


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f"{path.stem}.{kind}{path.suffix}")  # run.holder.lock
