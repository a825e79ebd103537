"""Files that are whole or absent: written beside their place, flushed to disk, then renamed over it."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import re
import stat
import tempfile
import time
import traceback
import unicodedata
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from patholib.base import places
from patholib.base.errors import PathoError

IN_USE = (5, 32, 33)  # what Windows answers where another program has the file open; elsewhere that keeps nobody
TOO_LONG = (3, 206)  # ... and where a path is longer than it takes
LONGEST_PATH = 259  # characters that every Windows takes
JSON_BYTES = 2**26  # that are read of a file of facts
NOT_THERE = "does not exist"
FORBIDDEN, ABSENT = (errno.EACCES, errno.EPERM, errno.EROFS), (errno.ENOENT, errno.ENOTDIR)


def project_root() -> Path:
    """The nearest folder, from the working one upwards, whose pyproject.toml names patholib; else the working one.

    Jupyter and nbval run a notebook in its own folder, papermill in the caller's: both find the same data and outputs.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        try:
            if 'name = "patholib"' in (folder / "pyproject.toml").read_text(encoding="utf-8"):
                return folder
        except (OSError, UnicodeDecodeError):
            continue  # no such file here, or none of ours
    return here


def joined(folder: Path, name: str) -> str:
    """The path of a file in a folder, as text: `folder / name` takes ten times as long, a second for 100,000 files."""
    return os.path.join(folder, name)  # noqa: PTH118


def outputs() -> Path:
    """The folder that holds run folders: PATHOLIB_OUTPUTS, or outputs/ of the project; on Colab it may be in Drive."""
    return Path(os.environ.get("PATHOLIB_OUTPUTS") or places.outputs(project_root()))


def remade() -> Path:
    """The folder for what can be made again, cache and demo images: data/ of the project; not so on Kaggle."""
    return places.remade(project_root())


def as_least_able(path: str) -> str:
    """A path as the least able system sees it: two that agree in this are one file on Windows or macOS.

    Unicode writes an accent in two ways, and capitals do not count (canonical caseless matching, Unicode 3.13, D145).
    """
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", path).casefold())


def write_bytes(path: Path, content: bytes) -> Path:
    """Writes `content` so that `path` holds either the old or the new bytes, whenever the power goes."""
    with written(path) as stream:
        stream.write(content)
    return Path(path)


@contextlib.contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """The same for who writes into a stream: the file has its name once the block has ended without an error."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:60]}.", suffix=".part")
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(part).chmod(0o666 & ~umask)  # mkstemp makes it private; the file is to be as any other
        into_place(Path(part), path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # a scanner of viruses may have it open on Windows
            Path(part).unlink(missing_ok=True)
    flush_folder(path.parent)


def remove_parts(folder: Path) -> None:
    """Deletes what killed writes left in a folder and below it; only for who alone writes there."""
    for part in Path(folder).rglob(".*.part"):
        with contextlib.suppress(OSError):  # what cannot go now goes next time
            part.unlink()


def into_place(part: Path, path: Path) -> None:
    """Renames a file or folder to its place, over a file that is there.

    Windows refuses while anybody has either open: scanners of viruses mostly for a moment, which is waited for.
    """
    for seconds in (0.05, 0.1, 0.2, 0.4, 0.8):
        try:
            part.replace(path)
            return
        except PermissionError as error:
            if getattr(error, "winerror", None) not in IN_USE:
                raise
            time.sleep(seconds)
    part.replace(path)


def flush_folder(folder: Path) -> None:
    """Has the names in a folder written to disk, without which a power cut may undo a rename."""
    if os.name != "posix":  # Windows has no such call; NTFS keeps a journal of its names
        return
    with contextlib.suppress(OSError):  # some network folders refuse; the file is whole with the old name or the new
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def unwritable(path: Path, error: OSError) -> PathoError:
    """The refusal for a file that could not be written: `no_space`, or `output_unwritable`."""
    code = "no_space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "output_unwritable"
    reason, remedy = error.strerror or error, "Choose another output folder"
    if code == "no_space":
        remedy = f"Free some space in {path.parent}, or choose another output folder"
    if error.errno in FORBIDDEN:
        remedy = f"Correct the permissions of {path.parent}, or choose another output folder"
    if error.errno == errno.ENAMETOOLONG:
        remedy = "Choose a shorter name"
    known = getattr(error, "winerror", None)  # only Windows has such numbers
    if known in IN_USE:
        remedy = "Close the program that has it open, such as a spreadsheet or another notebook; or correct its rights"
    if known in TOO_LONG and len(str(path.absolute())) + len(".12345678.part") > LONGEST_PATH:
        reason = f"its path is {len(str(path.absolute()))} characters long, about as many as Windows takes"
        remedy = "Choose an output folder with a shorter path, or switch on long paths in Windows"
    return PathoError(code, str(path), f"cannot be written ({reason})", remedy)


@contextlib.contextmanager
def writable(path: Path) -> Iterator[None]:
    """Turns an error of the system in writing `path` into its refusal: see `unwritable`."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def write_text(path: Path, text: str) -> Path:
    """Writes UTF-8 with \\n line ends on every system; bytes of a file's name that are no text become \\udc.. codes."""
    return write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value) -> Path:
    """Writes indented JSON with its keys in the given order; NaN is refused, because JSON has none."""
    return write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def append_json(path: Path, value: dict) -> None:
    """Adds a line with the time (UTC) and the values to a log; a log that cannot be written stops nobody."""
    line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="seconds")} | value, ensure_ascii=False)
    with contextlib.suppress(OSError):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")


def append_error(path: Path, error: BaseException) -> None:
    """Adds an error with its traceback to a log."""
    told = {"code": getattr(error, "code", type(error).__name__), "error": str(error)}
    append_json(path, {"event": "error", **told, "traceback": "".join(traceback.format_exception(error))})


def stamp(facts: os.stat_result) -> list[int]:
    """By what a file is known again: size, time of change, time at which the system noticed it, and inode.

    The last two differ also where a copy was given the size and the time of the file that it replaced (rsync -t).
    """
    return [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]


def look_at(path: Path | str, name: str = "", remedy: str = "Correct the path") -> os.stat_result:
    """What the file system says of a path that a person gave; nothing is opened: a pipe would wait for ever.

    name: what errors call it. Errors: missing_file, broken_link, unreadable, io_error; none of the system's own.
    """
    name, link = name or str(path), False
    name = name if len(name) <= 300 else f"{name[:80]}... ({len(name):,} characters)"
    try:
        with contextlib.suppress(OSError):
            link = os.path.islink(path)  # noqa: PTH114 - text, where there are many
        return os.stat(path)  # noqa: PTH116
    except ValueError as error:  # NUL, or letters that no name has here
        raise PathoError("missing_file", name, "has characters that no path has", remedy) from error
    except OSError as error:
        if error.errno == errno.ELOOP or (link and error.errno in ABSENT):
            code, reason, remedy = (
                "broken_link",
                "is a link that leads nowhere",
                "Restore its target or remove the link",
            )
        elif re.match(r"[a-z][a-z0-9+.-]+://?", str(path)):
            code, reason, remedy = (
                "missing_file",
                "is an address, not a file",
                "Download it, and give the file or folder",
            )
        elif error.errno in ABSENT:
            code, reason = "missing_file", NOT_THERE
        elif error.errno == errno.ENAMETOOLONG:
            code, reason = "missing_file", "is longer than a path can be"
        else:
            raise unread(name, error) from error
        raise PathoError(code, name, reason, remedy) from error


def unread(name: str, error: OSError) -> PathoError:
    """The refusal for something that is there and could not be read: `unreadable`, or `io_error`."""
    if error.errno in FORBIDDEN:
        return PathoError("unreadable", name, f"cannot be opened ({error.strerror})", "Correct its permissions")
    reason = f"cannot be read ({error.strerror or error})"
    return PathoError("io_error", name, reason, "Check that the disk or network drive is still there")


def look_at_file(path: Path | str, name: str = "", remedy: str = "Correct the path", folders: bool = False):
    """As `look_at`, and refuses pipes, sockets and devices, and folders unless they are asked for."""
    facts = look_at(path, name, remedy)
    if not (stat.S_ISREG(facts.st_mode) or (folders and stat.S_ISDIR(facts.st_mode))):
        what = "a folder" if stat.S_ISDIR(facts.st_mode) else "a pipe, a socket or a device"
        raise PathoError("unreadable", name or str(path), f"is {what}, not a file", "Name a file, or remove this one")
    return facts


def given(path: Path | str) -> Path:
    """A path that a person gave, ~ being the home folder; nothing need be there. Errors: as `look_at_file`."""
    text = os.path.expanduser(path)  # noqa: PTH111 - pathlib's raises where there is no such user
    try:
        look_at_file(text, folders=True)
    except PathoError as error:
        if error.reason != NOT_THERE or not text:
            raise
    return Path(text)


def is_there(path: Path | str) -> bool:
    """Whether a path that a person gave leads to anything that can be looked at."""
    with contextlib.suppress(PathoError):
        return bool(look_at(path))
    return False


def read_bytes(path: Path, first: int = -1, most: float = float("inf")) -> bytes:
    """The bytes of a regular file, all or the `first`; most: how many it may have.

    Errors: missing_file; unreadable (a folder, a pipe, no permission, a failing disk); too_many_bytes.
    """
    path = Path(path)
    size = look_at_file(path, remedy="Run the step that writes it, or name another run folder").st_size
    if size > most:
        raise PathoError(
            "too_many_bytes", str(path), f"has {size:,} bytes, more than the {most:,} of any such file", "Restore it"
        )
    try:
        with path.open("rb") as stream:
            return stream.read(first)
    except OSError as error:
        raise unread(str(path), error) from error


def read_json(path: Path, most: float = JSON_BYTES):
    """Reads JSON, or says which file is not JSON and where it breaks. Errors: as `read_bytes`, bad_json."""
    content = read_bytes(path, most=most)
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise PathoError("bad_json", str(path), "is UTF-16", "Save it as UTF-8")
    try:
        return json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a number of 5,000 digits; nested too deep
        raise PathoError("bad_json", str(path), f"is not valid JSON ({error})", "Restore it or run again") from error


class _Lines(io.StringIO):
    """Takes rows that end in \\r\\n, for which csv quotes both, and ends them in \\n."""

    def write(self, row: str) -> int:
        return super().write(row.removesuffix("\r\n") + "\n")


def write_table(path: Path, table) -> Path:
    """Writes a DataFrame as CSV without its index; numbers and texts read back exactly."""
    lines = _Lines()
    table.to_csv(lines, index=False, lineterminator="\r\n")
    return write_text(path, lines.getvalue())


def write_rows(path: Path, rows: Iterable[Iterable]) -> Path:
    """The same for rows of values, the header among them."""
    lines = _Lines()
    csv.writer(lines, lineterminator="\r\n").writerows(rows)
    return write_text(path, lines.getvalue())


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest(value) -> str:
    """The hexadecimal SHA-256 of any JSON value, the same on every system."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
