"""A file from an address, whole or not at all: after a dropped connection or a kill it resumes where it stopped.

The bytes wait in `<name>.part`, and `<name>.part.json` says which version of the file they begin, so that the halves of
two versions are never put together (If-Range, RFC 9110 section 13.1.5). Proxies are those of the environment.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

from patholib import __version__
from patholib.base import files, locks
from patholib.base.errors import PathoError, shown
from patholib.base.progress import bar, say_at_once

TRIES = 8  # in a row that may bring nothing new
PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds before the next try: doubled each time, up to the second
TIMEOUT = 30.0  # seconds of silence after which a connection counts as dead
CHUNK = 2**20
PASSING = {408, 416, 425, 429, 500, 502, 503, 504}  # answers that may be others in a while


@dataclass(frozen=True)
class Remote:
    """A file at an address, and what is known of it beforehand."""

    url: str
    name: str
    size: int | None = None  # bytes
    sha256: str = ""  # all 64 digits, or how they begin


def fetch(remote: Remote, folder: Path, patience: int = TRIES, wait: bool = False, room: int = 0) -> Path:
    """The file in `folder`, fetched unless it is there; a known SHA-256 is checked either way.

    patience: tries in a row without a new byte. wait: for another process that fetches it, instead of a refusal.
    room: bytes that must stay free beside it.
    Errors: download_failed (call again to resume), download_refused (the server will not), download_damaged,
    download_changed, download_locked, no_space, output_unwritable.
    """
    target = Path(folder).absolute() / remote.name
    with locks.alone(target, "download_locked", "fetched", wait):
        if target.is_file():
            say_at_once(f"{remote.name}: is there already")
            _check_digest(target, remote, "Move it away and call again to fetch it anew")
            return target
        if target.exists():
            raise PathoError("output_unwritable", str(target), "is no file, so none can be put there", "Move it away")
        part = _Part(target, remote.url)
        _receive(remote, part, patience, room)
        try:
            _check_digest(part.path, remote, "Call again to fetch it anew; if it stays so, ask those who publish it")
        except PathoError:
            part.forget()
            raise
        part.finish()
    return target


def no_space(folder: Path, wanted: int, free: int) -> PathoError:
    """The refusal of a download that would not fit."""
    return PathoError(
        "no_space",
        str(folder),
        f"has {free / 1e6:,.0f} MB free; {wanted / 1e6:,.0f} are needed",
        "Free some space, or choose another folder",
    )


def _check_digest(path: Path, remote: Remote, remedy: str) -> None:
    """Says the SHA-256 of a whole file. Errors: download_damaged where it is not the known one."""
    digest = files.sha256(path)
    say_at_once(f"{remote.name}: {path.stat().st_size:,} bytes, SHA-256 {digest}")
    if not digest.startswith(remote.sha256.lower()):
        reason = f"has SHA-256 {digest}, which must begin with {remote.sha256}"
        raise PathoError("download_damaged", str(path), reason, remedy)


class _Part:
    """What has come so far, and which version of the file it is the beginning of."""

    def __init__(self, target: Path, url: str):
        self.target, self.url = target, url
        self.path, self.note = (target.with_name(target.name + end) for end in (".part", ".part.json"))
        self.version, self.total = "", 0  # ETag or date; bytes of the whole file
        with contextlib.suppress(PathoError):  # no note, or a damaged one: it is not known what the part is of
            known = files.read_json(self.note)
            if isinstance(known, dict) and known.get("url") == url and isinstance(known.get("bytes"), int):
                self.version, self.total = str(known.get("version", "")), known["bytes"]

    @property
    def length(self) -> int:
        """Bytes that are there."""
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def have(self) -> int:
        """Bytes to resume from: none where it is not known which version they are of."""
        return self.length if self.version and self.length <= self.total else 0

    @property
    def whole(self) -> bool:
        """Whether all bytes are there."""
        return self.total > 0 and self.length == self.total

    def begin(self, version: str, total: int) -> None:
        """Starts over with another version."""
        with files.writable(self.path):
            self.path.write_bytes(b"")  # before the note: old bytes must not stand beside a new version
        files.write_json(self.note, {"url": self.url, "version": version, "bytes": total})
        self.version, self.total = version, total

    def forget(self) -> None:
        """Goes back to where nothing is known of the file."""
        self.note.unlink(missing_ok=True)
        self.version, self.total = "", 0

    def finish(self) -> None:
        """Gives the file its name, once its bytes are on the disk."""
        with files.writable(self.target):
            with self.path.open("r+b") as stream:
                os.fsync(stream.fileno())
            files.into_place(self.path, self.target)
        files.flush_folder(self.target.parent)
        self.note.unlink(missing_ok=True)


def _receive(remote: Remote, part: _Part, patience: int, room: int) -> None:
    """Tries until the part is whole."""
    tries, furthest = 0, part.have
    while not part.whole:
        try:
            trouble = _try_once(remote, part, room)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code not in PASSING:
                raise _unusable(remote, f"is not given out: {error.code} {shown(error.reason)}") from error
            if error.code == 416:  # no such range: the file is shorter now
                part.forget()
            trouble = f"the server answers {error.code} {shown(error.reason)}"
        except (OSError, http.client.HTTPException) as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            silent = isinstance(cause, TimeoutError)
            trouble = f"nothing came for {TIMEOUT:g} s" if silent else shown(cause) or type(cause).__name__
        if part.whole:
            return
        tries = 0 if part.have > furthest else tries + 1
        furthest = max(furthest, part.have)
        if tries >= patience:
            kept = f": {part.have:,} of {part.total:,} bytes are there and are kept" if part.have else ""
            raise PathoError(
                "download_failed",
                remote.url,
                f"{trouble}; {tries} tries brought nothing new",
                f"Check the network and call again{kept}",
            )
        pause = min(PAUSE * 2**tries, LONGEST_PAUSE)
        say_at_once(f"{remote.name}: {trouble}, at {part.have:,} bytes; trying again in {pause:g} s")
        time.sleep(pause)


def _try_once(remote: Remote, part: _Part, room: int) -> str:
    """One request for what is missing, appended to the part as far as it comes; says why it may not be all."""
    asked = {"User-Agent": f"patholib/{__version__}", "Accept-Encoding": "identity"}  # packed, lengths would not tell
    if part.have:
        asked |= {"Range": f"bytes={part.have}-", "If-Range": part.version}
    if not remote.url.startswith(("http://", "https://")):
        raise PathoError("download_refused", remote.url, "is no address of the web", "Use http:// or https://")
    opener = urllib.request.build_opener(_Redirects)  # with the proxies of the environment
    with opener.open(urllib.request.Request(remote.url, headers=asked), timeout=TIMEOUT) as response:
        if response.status == 206 and not _continues(response.headers, part):
            part.forget()
            return "the file has changed there"
        if response.status != 206:  # all of it, from the beginning
            total = _total(response, remote)
            if remote.size not in (None, total):
                raise PathoError(
                    "download_changed",
                    remote.url,
                    f"is {total:,} bytes long, {remote.size:,} were known",
                    "See on the page of the data set whether there is a new edition, and fetch it by hand",
                )
            part.begin(_version(response.headers), total)
        wanted, free = part.total - part.have + room, shutil.disk_usage(part.path.parent).free
        if wanted > free:
            raise no_space(part.path.parent, wanted, free)
        with files.writable(part.path):
            stream = part.path.open("ab", buffering=0)
        meter = bar(total=part.total, initial=part.have, unit="B", unit_scale=True, desc=remote.name, leave=False)
        with stream, meter:
            while chunk := memoryview(response.read1(CHUNK)):
                meter.update(len(chunk))
                with files.writable(part.path):
                    while chunk:
                        chunk = chunk[stream.write(chunk) :]
    return "the connection ended early"


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to other addresses of the web, never from https to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if not newurl.startswith("https://" if req.full_url.startswith("https://") else ("http://", "https://")):
            raise PathoError(
                "download_refused",
                req.full_url,
                f"sends to {newurl}, which is less safe",
                "Look at that address by hand",
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _version(headers: Message) -> str:
    """What tells this version of the file from another: a strong ETag, else its date, else nothing."""
    tag = (headers.get("ETag") or "").strip()
    return tag if tag and not tag.startswith("W/") else (headers.get("Last-Modified") or "").strip()


def _continues(headers: Message, part: _Part) -> bool:
    """Whether a partial answer begins where the part ends, and is of the same version."""
    stated = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", (headers.get("Content-Range") or "").strip())
    same = stated is not None and (int(stated[1]), int(stated[2])) == (part.have, part.total)
    return same and part.have > 0 and (_version(headers) or part.version) == part.version


def _total(response: http.client.HTTPResponse, remote: Remote) -> int:
    """The bytes of the whole file; refuses an answer from which they cannot be known."""
    length = response.headers.get("Content-Length") or ""
    packed = (response.headers.get("Content-Encoding") or "identity").lower()
    if packed != "identity" and not remote.name.endswith(("gz", "tgz")):  # of a .gz, some say what its name says
        raise _unusable(remote, f"sends the file packed ({packed}), though asked not to")
    if response.status != 200:
        raise _unusable(remote, f"is answered by {response.status}, not by the file")
    if not re.fullmatch(r"[1-9]\d*", length):
        raise _unusable(remote, "does not say how long the file is, or is empty")
    return int(length)


def _unusable(remote: Remote, reason: str) -> PathoError:
    return PathoError(
        "download_refused",
        remote.url,
        reason,
        f"Fetch it in a browser and put it into the folder as {remote.name}, then call again",
    )
