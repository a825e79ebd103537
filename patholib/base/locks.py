"""One process at a time in a run folder, also where the disk knows no locks."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import sys
import threading
import time
from pathlib import Path

BEAT = 20.0  # seconds between signs of life where the file system has no locks
DEAD = 90.0  # seconds without one after which the holder counts as gone
HELD = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK}  # what a lock held by another process answers
FAR = 1 << 30  # the byte that Windows locks: far behind the text, which others may then read


class Lock:
    """A folder held for this process: until `close`, or until the process ends in whatever way."""

    def __init__(self, path: Path, handle, stop: threading.Event | None = None):
        self._path, self._handle, self._stop = path, handle, stop

    def fileno(self) -> int:
        """The open file that the system's lock hangs on: whoever keeps it open too keeps the lock."""
        return self._handle.fileno()

    def close(self) -> None:
        """Gives the folder free."""
        self._handle.close()  # first: Windows removes no file that is open
        if self._stop is not None and not self._stop.is_set():
            self._stop.set()
            self._path.unlink(missing_ok=True)


def take(path: Path) -> Lock | None:
    """The lock whose file is `path`, or None where another process holds it (`holder` says which).

    The operating system's lock, which vanishes with its process; on a file system without any (some network drives) a
    file of its own with a sign of life every 20 seconds. Raises OSError where the file cannot be opened.
    """
    handle = Path(path).open("a+", encoding="utf-8")
    try:
        _lock(handle)
    except OSError as error:
        handle.close()
        return None if error.errno in HELD else _take_by_heartbeat(path.with_name(path.name + ".alive"))
    handle.truncate(0)
    handle.write(_me())
    handle.flush()
    return Lock(path, handle)


def holder(path: Path) -> str:
    """Who holds it, for a message: "process 4711 on host"."""
    for place in (path, path.with_name(path.name + ".alive")):
        try:
            if text := place.read_text(encoding="utf-8").partition("\n")[0].strip():
                return text
        except OSError:
            continue  # Windows may refuse to read what is locked
    return "another process"


def _me() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _lock(handle) -> None:
    if sys.platform == "win32":
        import msvcrt

        handle.seek(FAR)
        msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _take_by_heartbeat(path: Path) -> Lock | None:
    """A lock made of a file that only one process can create, and that grows old when its process dies."""
    token = f"{_me()}\n{secrets.token_hex(8)}"
    if path.exists():
        if _age(path) < DEAD:
            return None
        try:
            path.unlink(missing_ok=True)
        except PermissionError:  # Windows: it is still open, so its process lives
            return None
    try:
        handle = path.open("x", encoding="utf-8")
    except FileExistsError:  # another one was quicker
        return None
    handle.write(token)
    handle.flush()
    time.sleep(0.2)  # who saw the same old file may have removed ours: the last one to write has it
    try:
        if path.read_text(encoding="utf-8") != token:
            raise FileNotFoundError
    except FileNotFoundError:
        handle.close()
        return None
    stop = threading.Event()
    threading.Thread(target=_beat, args=(path, stop), daemon=True).start()
    return Lock(path, handle, stop)


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        try:
            os.utime(path)
        except OSError:  # the drive is away for a moment; the next beat tries again
            continue


def _age(path: Path) -> float:
    """Seconds since the last sign of life, by the clock of the drive itself."""
    probe = path.with_name(f"{path.name}.{os.getpid()}")
    probe.write_text("", encoding="utf-8")
    try:
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
