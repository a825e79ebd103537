"""Downloaded archives into folders, by zipfile and tarfile; the folder appears whole or not at all.

Both modules believe what an archive says of itself. Here names, kinds and sizes are checked before a member is
written, and every member becomes a new plain file. Formats: zip and tar.gz.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gzip
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, NamedTuple

from patholib.base import files, locks
from patholib.base.errors import PathoError, shown
from patholib.base.progress import bar, watched

MARKER = ".archive.json"  # the last file of a finished folder: its archive's name and bytes, and what came out
RATIO, FLOOR = 100, 2**30  # files may take this many times the archive's bytes; from a small one 1 GiB
MOST = 200_000  # files and folders
PIECE = 2**16  # bytes that are read at once
LONGEST, LONGEST_PART = 1024, 255  # bytes of a name; no system allows more in one part of it
UNFIT = re.compile(
    r'[<>:"|?*/\\\x00-\x1f\x7f\ud800-\udfff]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\..*)?$', re.IGNORECASE
)  # what Windows does not allow in a name, and what commands a terminal
BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    ArithmeticError,
    LookupError,
    RuntimeError,
    ValueError,
)  # what zipfile and tarfile raise for bytes that are no archive
AGAIN = "Download it again, and compare its size there and here"


def extract(archive: Path, folder: Path) -> Path:
    """Unpacks an archive into the new `folder` and returns it; a folder that was finished before stays as it is.

    All files together may take 100 times the archive's size, or 1 GiB if that is more. Until the last file is written,
    all lies in `.<folder>.part` beside it; an error removes that, and after a kill the next call does.
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
    allowed = max(RATIO * size, FLOOR)
    with locks.alone(folder, "folder_locked", "unpacked"), _readable(archive.name), archive.open("rb") as stream:
        print(f"{archive.name}: unpacking {size / 1e6:,.1f} MB; {allowed / 1e6:,.0f} MB are allowed", flush=True)
        try:
            shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
            with files.writable(folder):
                part.mkdir()
            output = _Output(part, archive.name, allowed)
            title = f"Unpacking {archive.name}"
            for member in bar(_members(stream), watched(), unit=" files", desc=title, leave=False):
                output.add(member)
            if not output.files:
                raise PathoError("bad_archive", archive.name, "holds no files", AGAIN)
            facts = {"archive": archive.name, "bytes": size, "files": output.files, "unpacked_bytes": output.bytes}
            files.write_json(part / MARKER, facts)
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
    """Turns what zipfile and tarfile raise into a refusal; no errno (gzip) and EINVAL are damage, not the disk."""
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


class _Member(NamedTuple):
    """A file or folder of an archive, before it is read."""

    name: str
    size: int
    is_folder: bool
    is_plain: bool  # False: a link, a device, a file with holes
    open: Callable[[], IO[bytes] | None]


def _members(stream: BinaryIO) -> Iterator[_Member]:
    """The members of a zip, by the list at its end, or of a tar.gz, which is read to its very end."""
    start = stream.read(2)
    stream.seek(0)
    if start == b"PK":
        with zipfile.ZipFile(stream) as archive:
            for info in archive.infolist():
                name, kind = info.orig_filename, stat.S_IFMT(info.external_attr >> 16)
                plain = kind in (0, stat.S_IFREG, stat.S_IFDIR) and not (info.is_dir() and info.file_size)
                yield _Member(name, info.file_size, name.endswith("/"), plain, functools.partial(archive.open, info))
        return
    with gzip.GzipFile(fileobj=stream) as unzipped:
        with tarfile.open(fileobj=unzipped, mode="r:") as tar:
            for found in iter(tar.next, None):
                regular = found.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not found.issparse() and found.size >= 0
                size = 0 if found.isdir() else found.size
                yield _Member(
                    found.name, size, found.isdir(), found.isdir() or regular, functools.partial(tar.extractfile, found)
                )
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
        while unzipped.read(PIECE):  # its checksum stands at the end
            continue


class _Output:
    """The folder being filled, and the one budget of bytes and names."""

    def __init__(self, folder: Path, archive: str, allowed: int):
        self.folder, self.archive, self.allowed = folder, archive, allowed
        self.files = self.bytes = 0
        self.free = shutil.disk_usage(folder.parent).free
        self.names: dict[str, tuple[str, bool]] = {}  # without case and accents: (name, is it a folder)

    def add(self, member: _Member) -> None:
        """Checks a member and writes it as a new file or folder."""
        self.bytes, self.files = self.bytes + member.size, self.files + (not member.is_folder)
        path = self.folder / PurePosixPath(member.name)
        if reason := self._refused(member):
            raise PathoError(
                "unsafe_archive",
                f"{self.archive}: {member.name}",
                reason,
                "Get it from another source, or unpack it by hand and look at it",
            )
        if self.bytes > self.free:
            raise PathoError(
                "no_space",
                str(self.folder.parent),
                f"has no room for all that {self.archive} unpacks to",
                "Free some space, or choose another folder",
            )
        with files.writable(path):
            (path if member.is_folder else path.parent).mkdir(parents=True, exist_ok=True)
        if not member.is_folder and (source := member.open()) is not None:
            _copied(source, path)

    def _refused(self, member: _Member) -> str:
        """Why a member must not be unpacked; empty for a good one."""
        if not member.is_plain:
            return "is a link, a device or something else than a plain file"
        if self.bytes > self.allowed:
            return f"makes it more than the {self.allowed:,} bytes that are allowed"
        if len(self.names) > MOST:
            return f"is more than the {MOST:,} files and folders that are allowed"
        parts = PurePosixPath(member.name).parts
        if any(UNFIT.search(part) or len(part.encode()) > LONGEST_PART for part in parts) or len(member.name) > LONGEST:
            return "has a name that leads out of the folder, or that not every system allows"
        if parts[:1] == (MARKER,) or not (parts or member.is_folder):
            return "has the name that marks a finished folder, or none"
        for depth in range(1, len(parts) + 1):
            place, inner = "/".join(parts[:depth]), depth < len(parts) or member.is_folder
            key = files.as_least_able(place)
            first, was_folder = self.names.get(key, (place, inner))
            if first != place or was_folder != inner or (key in self.names and not inner):
                return f"is the same as {shown(first)}, at least where case or accents do not count"
            self.names[key] = place, inner
        return ""


def _copied(source: IO[bytes], path: Path) -> None:
    """Writes the new file `path`: never over another one, nor through a link."""
    with files.writable(path):
        target = path.open("xb")
    with target, source:
        while piece := source.read(PIECE):
            with files.writable(path):
                target.write(piece)
