"""Downloaded archives into folders: the whole list is checked first, and the folder appears complete or not at all.

Nothing that an archive says is believed: names, kinds and sizes are checked here, and every member is written as a new
file, with the rights and the owner that any other file of yours has. zip, and tar plain or with gzip or bzip2.
"""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import hashlib
import itertools
import os
import re
import shutil
import stat
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from patholib.base import files, locks
from patholib.base.errors import PathoError, shown
from patholib.base.progress import bar, watched

MARKER = ".archive.json"  # the last file of a finished folder: name, bytes and sha256 of its archive, and what came out
RATIO, FLOOR = 100, 2**30  # files may take this many times the archive's bytes; from a small one 1 GiB
DIRECTORY = 2**28  # bytes that a zip may spend on its list, headers included
HEADER = 2**16  # bytes that a tar may spend on the headers of one member
PADDING = 2**24  # bytes of zeros that may follow the end of a tar
CHUNK = 2**20
BLOCK = 4096  # a file takes a multiple of it on most disks
LONGEST, LONGEST_PART = 1024, 255  # bytes of a name; no system allows more in one part of it

ODD = re.compile(r'[<>:"|?*\x00-\x1f\x7f]')  # what Windows does not allow in a name, and what commands a terminal
DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # on Windows
BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error, EOFError, ArithmeticError, LookupError,
          RuntimeError, ValueError)  # what the readers raise for bytes that are no archive


@dataclass(frozen=True)
class Entry:
    """One member: its name in the archive, its size in bytes, and what opens it for reading (None: it is a folder)."""

    name: str
    size: int
    open: Callable[[], BinaryIO] | None


def extract(archive: Path, folder: Path, max_bytes: int | None = None, max_files: int = 200_000) -> Path:
    """Unpacks an archive into the new `folder` and returns it; a folder that was finished before stays as it is.

    Finished is what holds MARKER, the last file to be written. Until then all lies in `.<folder>.part` beside it, which
    goes away with any error, and after a kill with the next call. max_bytes: of all files together, by default 100
    times the archive's size, or 1 GiB if that is more. max_files: of files and folders.
    Errors: unsafe_archive (with the member and the reason), bad_archive, no_space, missing_file, unreadable,
    folder_exists, folder_locked, output_unwritable.
    """
    archive, folder = Path(archive), Path(folder).absolute()
    if _finished(archive, folder):
        return folder
    if not archive.is_file():
        raise PathoError("missing_file", str(archive), "does not exist or is no file",
                         "Download it, or correct the path")
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise PathoError("folder_exists", str(folder), "holds something already", "Name a new folder")
    with _readable(archive.name):
        stream = archive.open("rb")
    with stream:
        size = os.fstat(stream.fileno()).st_size
        allowed = max(RATIO * size, FLOOR) if max_bytes is None else max_bytes
        guard, members = _opened(stream, archive.name)
        entries = _checked(members(guard), archive.name, allowed, max_files)
        total, count = sum(entry.size for entry in entries), sum(entry.open is not None for entry in entries)
        free = shutil.disk_usage(next(place for place in folder.parents if place.exists())).free
        print(f"{archive.name}: {count:,} files, {total / 1e6:,.1f} MB unpacked; {allowed / 1e6:,.0f} MB are allowed, "
              f"{free / 1e6:,.0f} MB free", flush=True)
        if total + BLOCK * len(entries) > free:
            raise PathoError("no_space", str(folder.parent), f"has {free / 1e6:,.0f} MB free, but {archive.name} "
                             f"unpacks to {total / 1e6:,.1f}", "Free some space, or choose another folder")
        guard.left = sys.maxsize  # from here on the sizes in the list are the limit
        with _alone(folder) as part:
            _write(entries, part, total, archive.name)
            with _readable(archive.name):
                stream.seek(0)
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            files.write_json(part / MARKER, {"archive": archive.name, "bytes": size, "sha256": sha256, "files": count,
                                             "unpacked_bytes": total})
            if hasattr(os, "sync"):
                os.sync()  # the files, before they get the name that says they are whole: once, not one by one
            with files.writable(folder):
                if folder.exists():
                    folder.rmdir()
                files.into_place(part, folder)
            files.flush_folder(folder.parent)
    print(f"{archive.name}: unpacked into {folder.name}", flush=True)
    return folder


def _finished(archive: Path, folder: Path) -> bool:
    """Whether the folder was finished before; refuses one that came out of an archive of another size."""
    if not (folder / MARKER).is_file():
        return False
    facts = files.read_json(folder / MARKER)
    if not isinstance(facts, dict) or (archive.is_file() and archive.stat().st_size != facts.get("bytes")):
        raise PathoError("folder_exists", str(folder), "holds the files of another archive", "Name a new folder")
    return True


@contextlib.contextmanager
def _readable(name: str) -> Iterator[None]:
    """Says of an archive that its reader stumbles over that it is bad.

    A failing disk has another number than no number (gzip's own error) or EINVAL (a place that no file can have).
    """
    try:
        yield
    except (*BROKEN, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise PathoError("unreadable", name, f"cannot be read ({error.strerror})",
                             "Correct its permissions, or check that the drive is still there") from error
        raise _bad(name, f"is cut off or damaged ({shown(error) or type(error).__name__})") from error


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, to be filled by this process alone; what is left of it at the end is removed."""
    beside = folder.with_name(f".{folder.name}.part")
    with files.writable(folder):
        beside.mkdir(parents=True, exist_ok=True)
        lock = locks.take(beside / "lock")
    if lock is None:
        raise PathoError("folder_locked", str(folder), f"is being unpacked by {locks.holder(beside / 'lock')}",
                         "Wait until it ends, or end it")
    part = beside / "files"
    try:
        with files.writable(folder):
            if part.exists():  # of a process that was killed
                shutil.rmtree(part)
            part.mkdir()
        yield part
    finally:
        lock.close()
        shutil.rmtree(beside, ignore_errors=True)


def _write(entries: list[Entry], folder: Path, total: int, name: str) -> None:
    """Writes every entry as a new file or folder."""
    with bar(total=total, unit="B", unit_scale=True, desc=f"Unpacking {name}", leave=False, shown=watched()) as meter:
        for entry in entries:
            path = folder / PurePosixPath(entry.name)
            with files.writable(path):
                (path if entry.open is None else path.parent).mkdir(parents=True, exist_ok=True)
                if entry.open is not None:
                    with path.open("xb") as target:  # a new file: never over another one, nor through a link
                        for chunk in _chunks(entry, name):
                            target.write(chunk)
                            meter.update(len(chunk))


def _chunks(entry: Entry, name: str) -> Iterator[bytes]:
    """The content of a member; it is as long as the list says, or refused."""
    left = entry.size
    with _readable(name), entry.open() as source:
        while chunk := source.read(min(CHUNK, left + 1)):
            left -= len(chunk)
            if left < 0:
                break
            yield chunk
    if left:
        raise _unsafe(name, entry.name, "has another size than the archive's list says")


def _bad(name: str, reason: str, remedy: str = "Download it again, and compare its size there and here") -> PathoError:
    return PathoError("bad_archive", name, reason, remedy)


def _unsafe(name: str, member: str, reason: str,
            remedy: str = "Get it from another source, or unpack it by hand and look at it") -> PathoError:
    return PathoError("unsafe_archive", f"{name}: {member}", reason, remedy)


class _Guard:
    """An archive to be read, at most `left` bytes: how much a reader wants at once, the archive itself decides."""

    def __init__(self, stream: BinaryIO, name: str):
        self.stream, self.archive, self.left = stream, name, HEADER
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def read(self, count: int = -1) -> bytes:
        content = self.stream.read(self.left + 1 if count < 0 else min(count, self.left + 1))
        self.left -= len(content)
        if self.left < 0:
            raise _unsafe(self.archive, "its list", "is longer than that of any honest archive")
        return content


def _opened(stream: BinaryIO, name: str) -> tuple[_Guard, Callable[[_Guard], Iterator[Entry]]]:
    """The archive unzipped, and what finds its members; told by the first bytes, not by the name."""
    with _readable(name):
        start = stream.read(512)
        stream.seek(0)
    if start[:2] == b"PK":
        return _Guard(stream, name), _zip_members
    if start[:2] == b"\x1f\x8b":
        return _Guard(gzip.GzipFile(fileobj=stream), name), _tar_members
    if start[:3] == b"BZh":
        return _Guard(bz2.BZ2File(stream), name), _tar_members
    if start[257:262] != b"ustar":
        raise _bad(name, "is neither a zip nor a tar archive" if start else "is empty")
    return _Guard(stream, name), _tar_members


def _checked(members: Iterator[Entry], name: str, allowed: int, max_files: int) -> list[Entry]:
    """Every member, checked by itself and against all others; nothing has been written by then."""
    entries, known, total = [], {}, 0
    with _readable(name):
        for entry in bar(members, unit=" files", desc=f"Reading {name}", leave=False, shown=watched()):
            total += entry.size
            if total > allowed:
                raise _unsafe(name, entry.name, f"makes it more than the {allowed:,} bytes that are allowed",
                              "If you trust it, allow more with max_bytes")
            _check_name(entry, known, name)
            if len(known) > max_files:
                raise _unsafe(name, entry.name, f"is more than the {max_files:,} files and folders that are allowed",
                              "If you trust it, allow more with max_files")
            entries.append(entry)
    if not any(entry.open for entry in entries):
        raise _bad(name, "holds no files")
    return entries


def _check_name(entry: Entry, known: dict[str, tuple[str, bool]], archive: str) -> None:
    """Stops at a name that leads elsewhere, or that is not one name of its own on every system.

    known: of all members before, and of the folders they lie in: name as the least able system sees it: (name, is it a
    folder).
    """
    if reason := _unfit(entry.name):
        raise _unsafe(archive, entry.name, reason)
    parts = PurePosixPath(entry.name).parts
    if not parts and entry.open is not None:
        raise _unsafe(archive, entry.name, "is a file that has no name")
    for depth in range(1, len(parts) + 1):
        place, is_folder = "/".join(parts[:depth]), depth < len(parts) or entry.open is None
        key = files.as_least_able(place)
        first, was_folder = known.get(key, (place, is_folder))
        if first != place:
            raise _unsafe(archive, place, f"is the same as {shown(first)} where case or accents do not count")
        if was_folder != is_folder or (key in known and not is_folder):
            raise _unsafe(archive, place, "is there twice")
        known[key] = place, is_folder


def _unfit(name: str) -> str:
    """Why a name cannot be that of a new file on every system; empty for a good one."""
    path = PurePosixPath(name)
    if path.is_absolute() or re.match("[A-Za-z]:", name):
        return "has an absolute path"
    if ".." in path.parts:
        return "leads out of the folder"
    if "\\" in name:
        return "has a backslash, which Windows takes for a folder"
    if any("\ud800" <= c <= "\udfff" for c in name):
        return "has a name that is not UTF-8"
    if ODD.search(name):
        return "has a character in its name that not every system allows"
    if path.parts[:1] == (MARKER,):
        return "has the name that marks a finished folder"
    for part in path.parts:
        if DEVICE.fullmatch(part):
            return "has the name of a device on Windows"
        if part[-1] in ". ":
            return "has a name that ends in a dot or a space, which Windows drops"
    if len(name.encode()) > LONGEST or any(len(part.encode()) > LONGEST_PART for part in path.parts):
        return "has a name that is too long"
    return ""


def _zip_members(guard: _Guard) -> Iterator[Entry]:
    """The members of a zip by its list at the end, where the header of each says the same, and none shares bytes."""
    name, guard.left = guard.archive, DIRECTORY
    archive = zipfile.ZipFile(guard)
    if len(archive.infolist()) != _count(guard, len(archive.comment)):
        raise zipfile.BadZipFile("its list is not as long as its end says")
    spans = [(archive.start_dir, archive.start_dir, "its list")]
    for info in archive.infolist():
        member, kind = info.orig_filename, stat.S_IFMT(info.external_attr >> 16)
        is_folder = member.endswith("/")
        if stat.S_ISLNK(kind):
            raise _unsafe(name, member, "is a link")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _unsafe(name, member, "is a device, a pipe or a socket")
        if info.flag_bits & 0x2041:  # encrypted, strongly encrypted, or with an encrypted list
            raise _bad(name, f"is encrypted ({shown(member)})", "Unpack it by hand with its password")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _bad(name, f"is packed in a way that is not read here ({shown(member)}, {info.compress_type})",
                       "Unpack it by hand")
        stored = info.compress_type == zipfile.ZIP_STORED
        if (stored and info.compress_size != info.file_size) or (is_folder and info.file_size):
            raise _unsafe(name, member, "has a size that cannot be")
        spans.append((info.header_offset, _end(guard, info), member))
        yield Entry(member, info.file_size, None if is_folder else lambda info=info: archive.open(info))
    for (_, end, member), (start, _, _) in itertools.pairwise(sorted(spans)):
        if end > start:
            raise _unsafe(name, member, "shares bytes with another member")


def _count(guard: _Guard, comment: int) -> int:
    """How many members the record at the end of a zip says there are: a list that was cut would pass for whole."""
    guard.seek(-22 - comment, os.SEEK_END)
    record = guard.read(22)
    if record[:4] != b"PK\x05\x06":
        raise zipfile.BadZipFile("bytes follow its end")
    count = int.from_bytes(record[10:12], "little")
    if count == 0xFFFF:  # as many, or more, and then in a larger record before this one
        guard.seek(-98 - comment, os.SEEK_END)
        record = guard.read(56)
        count = int.from_bytes(record[32:40], "little") if record[:4] == b"PK\x06\x06" else count
    return count


def _end(guard: _Guard, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes end; stops where the header before them does not say what the list says."""
    guard.seek(info.header_offset)
    head = guard.read(30)
    signature, flags, method, crc, packed, size, name, extra = struct.unpack("<4s2xHH4xIIIHH", head)
    if signature != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"no header of {info.orig_filename}")
    coding = "utf-8" if flags & 0x800 else "cp437"
    same = guard.read(name).decode(coding) == info.orig_filename and method == info.compress_type
    extra = guard.read(extra)
    if 0xFFFFFFFF in (packed, size):  # beyond 4 GiB the sizes are in the field with the number 1
        while extra[:2] not in (b"\x01\x00", b""):
            extra = extra[4 + int.from_bytes(extra[2:4], "little"):]
        size, packed = struct.unpack("<4xQQ", extra[:20])
    later = flags & 8 and not (crc or packed or size)  # they follow the bytes
    same &= later or (crc, packed, size) == (info.CRC, info.compress_size, info.file_size)
    if not same or (flags ^ info.flag_bits) & 0x2041:
        raise _unsafe(guard.archive, info.orig_filename, "is another file by its own header than by the archive's list")
    return guard.tell() + info.compress_size


def _tar_members(guard: _Guard) -> Iterator[Entry]:
    """The members of a tar in their order; at its end it is held against its own end marker and checksum."""
    name, last = guard.archive, "its beginning"
    archive = tarfile.open(fileobj=guard, mode="r:")
    while (member := archive.next()) is not None:
        last = member.name
        if member.islnk() or member.issym():
            raise _unsafe(name, last, f"is a link to {shown(member.linkname)}")
        if member.ischr() or member.isblk() or member.isfifo():
            raise _unsafe(name, last, "is a device or a pipe")
        if member.isdir():
            yield Entry(last, 0, None)
        elif member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse() and member.size >= 0:
            yield Entry(last, member.size, lambda member=member: archive.extractfile(member))
        else:
            raise _unsafe(name, last, "is neither a plain file nor a folder")
        guard.left = HEADER
    guard.left = PADDING
    guard.seek(archive.offset)
    rest = guard.read()  # to the very end, where gzip and bzip2 have their checksums
    if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0"):
        raise _bad(name, f"is cut off or damaged after {shown(last)}")
