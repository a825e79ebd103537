"""Downloaded archives into folders, by zipfile and tarfile; the folder appears whole or not at all.

Both modules believe what an archive says of itself. Here names, kinds and sizes are checked before a member is
written, and every member becomes a new plain file. zip, and tar plain or with gzip or bzip2.
"""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from patholib.base import files, locks
from patholib.base.errors import PathoError, shown
from patholib.base.progress import bar, watched

MARKER = ".archive.json"  # the last file of a finished folder: its archive's name and bytes, and what came out
RATIO, FLOOR = 100, 2**30  # files may take this many times the archive's bytes; from a small one 1 GiB
PIECE = 2**16  # bytes that are read at once, so also of the header of one member of a tar
PADDING = 2**24  # bytes of zeros that may follow the end of a tar
LONGEST, LONGEST_PART = 1024, 255  # bytes of a name; no system allows more in one part of it
UNFIT = re.compile(
    r'[<>:"|?*/\\\x00-\x1f\x7f\ud800-\udfff]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\..*)?$', re.IGNORECASE
)  # what Windows does not allow in a name, and what commands a terminal
BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ArithmeticError,
    LookupError,
    RuntimeError,
    ValueError,
)  # what zipfile and tarfile raise for bytes that are no archive
AGAIN = "Download it again, and compare its size there and here"
Stream = gzip.GzipFile | bz2.BZ2File | BinaryIO


def extract(archive: Path, folder: Path, max_bytes: int | None = None, max_files: int = 200_000) -> Path:
    """Unpacks an archive into the new `folder` and returns it; a folder that was finished before stays as it is.

    max_bytes: of all files together, by default 100 times the archive's size, or 1 GiB if that is more. max_files: of
    files and folders. Until the last file is written, all lies in `.<folder>.part` beside it; an error removes that,
    and after a kill the next call does.
    Errors: unsafe_archive (with the member and the reason), bad_archive, no_space, missing_file, unreadable,
    folder_exists, folder_locked, output_unwritable.
    """
    archive, folder = Path(archive), Path(folder).absolute()
    if (folder / MARKER).is_file():
        facts = files.read_json(folder / MARKER)
        if not isinstance(facts, dict) or (archive.is_file() and archive.stat().st_size != facts.get("bytes")):
            raise PathoError("folder_exists", str(folder), "holds the files of another archive", "Name a new folder")
        return folder
    if not archive.is_file():
        raise PathoError(
            "missing_file", str(archive), "does not exist or is no file", "Download it, or correct the path"
        )
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise PathoError("folder_exists", str(folder), "holds something already", "Name a new folder")
    part, size = folder.with_name(f".{folder.name}.part"), archive.stat().st_size
    allowed = max(RATIO * size, FLOOR) if max_bytes is None else max_bytes
    with locks.alone(folder, "folder_locked", "unpacked"), _readable(archive.name), archive.open("rb") as stream:
        print(f"{archive.name}: unpacking {size / 1e6:,.1f} MB; {allowed / 1e6:,.0f} MB are allowed", flush=True)
        try:
            shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
            with files.writable(folder):
                part.mkdir()
            output = _Output(part, archive.name, allowed, max_files)
            _unpack(stream, output)
            files.write_json(
                part / MARKER,
                {"archive": archive.name, "bytes": size, "files": output.files, "unpacked_bytes": output.bytes},
            )
            _appear(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    print(
        f"{archive.name}: {output.files:,} files, {output.bytes / 1e6:,.1f} MB unpacked into {folder.name}", flush=True
    )
    return folder


def _appear(part: Path, folder: Path) -> None:
    """Gives the finished folder its name, once all of its files are on the disk."""
    if hasattr(os, "sync"):
        os.sync()  # once, not file by file
    with files.writable(folder):
        if folder.exists():
            folder.rmdir()
        files.into_place(part, folder)
    files.flush_folder(folder.parent)


@contextlib.contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turns what zipfile and tarfile raise into a refusal.

    A failing disk has another error number than none (gzip's own error) or EINVAL (a place that no file can have).
    """
    try:
        yield
    except (*BROKEN, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise PathoError(
                "unreadable",
                name,
                f"cannot be read ({error.strerror})",
                "Correct its permissions, or check that the drive is still there",
            ) from error
        raise PathoError(
            "bad_archive", name, f"is cut off or damaged ({shown(error) or type(error).__name__})", AGAIN
        ) from error


def _unsafe(
    archive: str,
    member: str,
    reason: str,
    remedy: str = "Get it from another source, or unpack it by hand and look at it",
) -> PathoError:
    return PathoError("unsafe_archive", f"{archive}: {member}", reason, remedy)


class _Output:
    """The folder being filled, and the one budget of bytes and names."""

    def __init__(self, folder: Path, archive: str, allowed: int, max_files: int):
        self.folder, self.archive, self.allowed, self.max_files = folder, archive, allowed, max_files
        self.files = self.bytes = 0
        self.free = shutil.disk_usage(folder.parent).free
        self.names: dict[str, tuple[str, bool]] = {}  # without case and accents: (name, is it a folder)

    def bar(self, members: Iterable) -> Iterable:
        """The members, with a progress bar where somebody watches."""
        return bar(members, unit=" files", desc=f"Unpacking {self.archive}", leave=False, shown=watched())

    def add(self, name: str, size: int, source: IO[bytes] | None) -> None:
        """Checks a member and writes it as a new file of `size` bytes, or as a folder where there is no `source`."""
        self.bytes, self.files = self.bytes + size, self.files + (source is not None)
        path = self.folder / PurePosixPath(name)
        if self.bytes > self.allowed:
            raise _unsafe(
                self.archive,
                name,
                f"makes it more than the {self.allowed:,} bytes that are allowed",
                "If you trust it, allow more with max_bytes",
            )
        if self.bytes > self.free:
            raise PathoError(
                "no_space",
                str(self.folder.parent),
                f"has no room for all that {self.archive} unpacks to",
                "Free some space, or choose another folder",
            )
        if reason := self._odd(name, source is None):
            raise _unsafe(self.archive, name, reason)
        with files.writable(path):
            (path if source is None else path.parent).mkdir(parents=True, exist_ok=True)
        if source is not None and _copied(source, path, size) != size:
            raise _unsafe(self.archive, name, "has another size than the archive's list says")

    def _odd(self, name: str, is_folder: bool) -> str:
        """Why a name cannot be that of a new file on every system; empty for a good one."""
        parts = PurePosixPath(name).parts
        if any(UNFIT.search(part) or len(part.encode()) > LONGEST_PART for part in parts) or len(name) > LONGEST:
            return "has a name that leads out of the folder, or that not every system allows"
        if parts[:1] == (MARKER,) or not (parts or is_folder):
            return "has the name that marks a finished folder, or none"
        for depth in range(1, len(parts) + 1):
            place, inner = "/".join(parts[:depth]), depth < len(parts) or is_folder
            key = files.as_least_able(place)
            first, was_folder = self.names.get(key, (place, inner))
            if first != place or was_folder != inner or (key in self.names and not inner):
                return f"is the same as {shown(first)}, at least where case or accents do not count"
            self.names[key] = place, inner
        if len(self.names) > self.max_files:
            raise _unsafe(
                self.archive,
                name,
                f"is more than the {self.max_files:,} files and folders that are allowed",
                "If you trust it, allow more with max_files",
            )
        return ""


def _copied(source: IO[bytes], path: Path, size: int) -> int:
    """Bytes written to the new file `path`: never over another one, nor through a link, nor far past `size`."""
    written = 0
    with files.writable(path):
        target = path.open("xb")
    with target, source:
        while written <= size and (piece := source.read(PIECE)):
            with files.writable(path):
                written += target.write(piece)
    return written


class _Sips:
    """A stream read in small pieces alone: how long its headers are, an archive itself decides."""

    def __init__(self, stream: Stream, archive: str):
        self.stream, self.archive, self.last = stream, archive, b""
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, count: int = PIECE) -> bytes:
        if count > PIECE:
            raise _unsafe(self.archive, "a header", "is longer than that of any honest archive")
        self.last = self.stream.read(count)
        return self.last


def _unpack(stream: BinaryIO, output: _Output) -> None:
    """Adds all members to the output; the format is told by the first bytes."""
    start = stream.read(3)
    stream.seek(0)
    if start[:2] == b"PK":
        _unpack_zip(stream, output)
    else:
        opened: Stream = stream
        if start[:2] == b"\x1f\x8b":
            opened = gzip.GzipFile(fileobj=stream)
        elif start[:2] == b"BZ":
            opened = bz2.BZ2File(stream)
        _unpack_tar(_Sips(opened, output.archive), output)
    if not output.files:
        raise PathoError("bad_archive", output.archive, "holds no files", AGAIN)


def _unpack_tar(stream: _Sips, output: _Output) -> None:
    """A tar is read once and to its very end, where gzip and bzip2 have their checksums."""
    # type of the stream: to read a tar takes no more than read, seek and tell
    with tarfile.open(fileobj=stream, mode="r:") as archive:  # type: ignore[call-overload]
        for member in output.bar(iter(archive.next, None)):
            if member.isdir():
                output.add(member.name, 0, None)
            elif member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse() and member.size >= 0:
                output.add(member.name, member.size, archive.extractfile(member))
            else:
                raise _unsafe(output.archive, member.name, "is a link, a device or something else than a plain file")
            archive.members.clear()  # it would keep them all
    zeros, more = stream.last, 0  # the block that was taken for the end
    while len(zeros) >= tarfile.BLOCKSIZE * (more == 0) and not zeros.strip(b"\0") and more <= PADDING:
        zeros = stream.read()
        if not zeros:
            return
        more += len(zeros)
    raise tarfile.ReadError("its end is missing, or something stands behind it")


def _unpack_zip(stream: BinaryIO, output: _Output) -> None:
    """A zip is read by the list at its end, which each member must agree with."""
    archive = zipfile.ZipFile(stream)
    members = sorted(archive.infolist(), key=lambda info: info.header_offset)
    stream.seek(-22 - len(archive.comment), os.SEEK_END)
    end = stream.read(22)
    if end[:4] != b"PK\5\6" or int.from_bytes(end[10:12], "little") not in (len(members), 0xFFFF):
        raise zipfile.BadZipFile("its list is not as long as its end says, or bytes follow its end")
    limits = [info.header_offset for info in members[1:]] + [archive.start_dir]
    for info, limit in output.bar(zip(members, limits, strict=False)):
        name, is_folder = info.orig_filename, info.orig_filename.endswith("/")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _unsafe(output.archive, name, "is a link, a device or something else than a plain file")
        if not _same_twice(stream, info, limit) or (is_folder and info.file_size):
            raise _unsafe(output.archive, name, "is not, or not alone, where and what the archive's list says")
        if info.flag_bits & 0x41 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise PathoError(
                "bad_archive",
                output.archive,
                f"is encrypted or packed in an unusual way ({shown(name)})",
                "Unpack it by hand",
            )
        output.add(name, info.file_size, None if is_folder else archive.open(info))


def _same_twice(stream: BinaryIO, info: zipfile.ZipInfo, limit: int) -> bool:
    """Whether the header before a member says what the list says, and its bytes end at `limit` or before."""
    stream.seek(info.header_offset)
    flags, method, crc, packed, size, length, extra = struct.unpack("<6xHH4xIIIHH", stream.read(30))
    name = stream.read(length).decode("utf-8" if flags & 0x800 else "cp437")
    elsewhere = 0xFFFFFFFF in (packed, size) or (flags & 8 and not (crc or packed or size))
    same = elsewhere or (crc, packed, size) == (info.CRC, info.compress_size, info.file_size)
    return (
        same
        and (name, method) == (info.orig_filename, info.compress_type)
        and not (flags ^ info.flag_bits) & 0x2041
        and stream.tell() + extra + info.compress_size <= limit
    )
