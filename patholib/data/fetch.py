"""A file from an address, whole or not at all: after a dropped connection or a kill it resumes where it stopped.

The bytes wait in `<name>.part`, and `<name>.part.json` says which version of the file they begin, so that the halves of
two versions are never put together (If-Range, RFC 9110 section 13.1.5). Proxies are those of the environment.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

from patholib import __version__
from patholib.base import files, locks
from patholib.base.errors import PathoError, shown
from patholib.base.progress import Meter, say_at_once

PATIENCE = 8  # tries in a row that may bring nothing new
PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds before the next try: doubled each time, up to the second
LONGEST_WISH = 600.0  # seconds that a server may ask for (Retry-After)
TIMEOUT = 30.0  # seconds of silence after which a connection counts as dead
SLOWEST, WINDOW = 1024, 60.0  # bytes a second that must come in so many seconds
CHUNK = 2**20
PASSING = {408, 425, 429, 500, 502, 503, 504}  # answers that may be others in a while
CHANGED = "the file has changed there"


@dataclass(frozen=True)
class Remote:
    """A file at an address, and what is known of it beforehand."""

    url: str
    name: str
    size: int | None = None  # bytes
    sha256: str = ""  # all 64 digits, or how they begin


def fetch(
    remote: Remote, folder: Path, patience: int = PATIENCE, wait: bool = False, changed: bool = False, room: int = 0
) -> Path:
    """The file in `folder`, fetched unless it is there; its SHA-256 is checked either way.

    Where no SHA-256 is known, that of the first whole file is written to `<name>.sha256` (as `sha256sum -c` reads it),
    and a later one has to be the same. A file that is not what was known is kept as `<name>.bad` and not used.
    patience: tries in a row without a new byte. wait: for another process that fetches it, instead of a refusal.
    changed: takes a file of another size or SHA-256 than was known, except where its makers state the SHA-256.
    room: bytes that must stay free beside it.
    Errors: download_failed (call again to resume), download_refused (the server will not), download_damaged,
    download_changed, download_locked, no_space, output_unwritable.
    """
    target = Path(folder).absolute() / remote.name
    with locks.alone(target, "download_locked", "fetched", wait):
        if target.is_file():
            if refusal := _refusal(target, remote, changed):
                raise PathoError(refusal[0], str(target), refusal[1], "Move it away and call again to fetch it anew")
            say_at_once(f"{remote.name}: is there already")
            return target
        if target.exists():
            raise PathoError("output_unwritable", str(target), "is no file, so none can be put there", "Move it away")
        part = _Part(target, remote.url)
        _receive(remote, part, patience, changed, room)
        if refusal := _refusal(part.path, remote, changed):
            part.forget()
            raise PathoError(
                refusal[0],
                remote.name,
                f"{refusal[1]}; it is kept as {_aside(part.path, target)}",
                "Call again to fetch it anew; if it stays so, ask those who publish it"
                + ("" if remote.sha256 else ", or take it as it is with --changed"),
            )
        part.finish()
    return target


def withdraw(path: Path) -> str:
    """Sets a fetched file aside that proved to be of no use, with what was noted of it; returns its new name."""
    path.with_name(f"{path.name}.sha256").unlink(missing_ok=True)
    return _aside(path, path)


def no_space(folder: Path, wanted: int, free: int) -> PathoError:
    """The refusal of a download that would not fit."""
    return PathoError(
        "no_space",
        str(folder),
        f"has {free / 1e6:,.0f} MB free; {wanted / 1e6:,.0f} are needed",
        "Free some space, or choose another folder",
    )


def _aside(path: Path, target: Path) -> str:
    bad = target.with_name(f"{target.name}.bad")
    with files.writable(bad):
        path.replace(bad)
    return bad.name


class _Part:
    """What has come so far, and which version of the file it is the beginning of."""

    def __init__(self, target: Path, url: str):
        self.target, self.url = target, url
        self.path, self.note = (target.with_name(target.name + end) for end in (".part", ".part.json"))
        self.version = ""  # ETag or date
        self.total: int | None = None  # bytes of the whole file
        with contextlib.suppress(PathoError):  # no note, or a damaged one: it is not known what the part is of
            known = files.read_json(self.note)
            if isinstance(known, dict) and known.get("url") == url and isinstance(known.get("bytes"), int):
                self.version, self.total = str(known.get("version", "")), known["bytes"]

    @property
    def have(self) -> int:
        """Bytes to resume from: none where it is not known which version they are of."""
        length = self.path.stat().st_size if self.version and self.path.is_file() else 0
        return length if length <= (self.total or 0) else 0

    @property
    def whole(self) -> bool:
        """Whether all bytes are there."""
        return self.total is not None and self.path.is_file() and self.path.stat().st_size == self.total

    def begin(self, version: str, total: int) -> None:
        """Starts over with another version."""
        with files.writable(self.path):
            self.path.write_bytes(b"")  # before the note: old bytes must not stand beside a new version
        files.write_json(self.note, {"url": self.url, "version": version, "bytes": total})
        self.version, self.total = version, total

    def forget(self) -> None:
        """Goes back to where nothing is known of the file."""
        self.note.unlink(missing_ok=True)
        self.version, self.total = "", None

    def finish(self) -> None:
        """Gives the file its name, once its bytes are on the disk."""
        with files.writable(self.target):
            with self.path.open("r+b") as stream:
                os.fsync(stream.fileno())
            files.into_place(self.path, self.target)
        files.flush_folder(self.target.parent)
        self.note.unlink(missing_ok=True)


class _Drips(OSError):
    """A connection that is alive and brings next to nothing."""


def _receive(remote: Remote, part: _Part, patience: int, changed: bool, room: int) -> None:
    """Tries until the part is whole."""
    tries, furthest = 0, part.have
    while not part.whole:
        pause, dripped = None, False
        try:
            trouble = _try_once(remote, part, changed, room)
        except urllib.error.HTTPError as error:
            trouble, pause = _answered(error, remote, part), _wish(error.headers)
        except (OSError, http.client.HTTPException) as error:
            trouble, dripped = _trouble(error, remote), isinstance(error, _Drips)
        if part.whole:
            return
        tries = 0 if part.have > furthest and not dripped else tries + 1
        furthest = max(furthest, part.have)
        if tries >= patience:
            kept = f": {part.have:,} of {part.total:,} bytes are there and are kept" if part.have else ""
            raise PathoError(
                "download_failed",
                remote.url,
                f"{trouble}; {tries} tries brought nothing new",
                f"Check the network and call again{kept}",
            )
        pause = min(PAUSE * 2**tries, LONGEST_PAUSE) if pause is None else pause
        say_at_once(f"{remote.name}: {trouble}, at {part.have:,} bytes; trying again in {pause:g} s")
        time.sleep(pause)


def _try_once(remote: Remote, part: _Part, changed: bool, room: int) -> str:
    """One request for what is missing, appended to the part as far as it comes; says why it may not be all."""
    asked = {"User-Agent": f"patholib/{__version__}", "Accept-Encoding": "identity"}  # packed, lengths would not tell
    if have := part.have:
        asked |= {"Range": f"bytes={have}-", "If-Range": part.version}
    if not remote.url.startswith(("http://", "https://")):
        raise PathoError("download_refused", remote.url, "is no address of the web", "Use http:// or https://")
    opener = urllib.request.build_opener(_Redirects)  # with the proxies of the environment
    with opener.open(urllib.request.Request(remote.url, headers=asked), timeout=TIMEOUT) as response:
        version, total = _version(response.headers), _total(response, remote)
        if response.status == 206 and not _continues(response.headers, part):
            part.forget()
            return CHANGED
        if remote.size is not None and total != remote.size and not changed:
            raise PathoError(
                "download_changed",
                remote.url,
                f"is {total:,} bytes long, {remote.size:,} were known",
                "See on the page of the data set whether there is a new edition; --changed takes it",
            )
        skip = have if response.status == 200 and (version, total) == (part.version, part.total) else 0
        if response.status == 200 and not skip:  # all of it, from the beginning; to skip: a server without Range
            part.begin(version, total)
        wanted, free = total - part.have + room, shutil.disk_usage(part.path.parent).free
        if wanted > free:
            raise no_space(part.path.parent, wanted, free)
        _append(response, part, skip, Meter(remote.name, part.have, total))
    return "the connection ended early"


def _append(response: http.client.HTTPResponse, part: _Part, skip: int, meter: Meter) -> None:
    """The body to the end of the part, without its first `skip` bytes."""
    since, came = time.monotonic(), 0
    with files.writable(part.path):
        stream = part.path.open("ab", buffering=0)
    with stream, contextlib.closing(meter):
        while chunk := response.read1(CHUNK):
            came += len(chunk)
            fresh = memoryview(chunk)[min(skip, len(chunk)) :]
            skip -= len(chunk) - len(fresh)
            meter.update(len(fresh))
            with files.writable(part.path):
                while fresh:
                    fresh = fresh[stream.write(fresh) :]
            if (seconds := time.monotonic() - since) > WINDOW:
                if came < SLOWEST * seconds:
                    raise _Drips(f"only {came:,} bytes came in {seconds:.0f} s")
                since, came = time.monotonic(), 0


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


def _range(headers: Message) -> tuple[int, int] | None:
    """(first byte, bytes of the whole file) that Content-Range states."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", (headers.get("Content-Range") or "").strip())
    return (int(match[1]), int(match[2])) if match else None


def _continues(headers: Message, part: _Part) -> bool:
    """Whether a partial answer begins where the part ends, and is of the same version."""
    return (
        _range(headers) == (part.have, part.total)
        and part.have > 0
        and (_version(headers) or part.version) == part.version
    )


def _total(response: http.client.HTTPResponse, remote: Remote) -> int:
    """The bytes of the whole file; refuses an answer from which they cannot be known."""
    packed = (response.headers.get("Content-Encoding") or "identity").lower()
    if packed != "identity" and not remote.name.endswith(("gz", "tgz")):  # of a .gz, some say what its name says
        raise _unusable(remote, f"sends the file packed ({packed}), though asked not to")
    if response.status == 206 and (found := _range(response.headers)):
        return found[1]
    length = response.headers.get("Content-Length") or ""
    if response.status != 200:
        raise _unusable(remote, f"is answered by {response.status}, not by the file")
    if not re.fullmatch(r"\d+", length):
        raise _unusable(remote, "does not say how long the file is, so that nobody would notice a missing piece")
    if int(length) == 0:
        raise _unusable(remote, "is empty there")
    return int(length)


def _unusable(remote: Remote, reason: str) -> PathoError:
    return PathoError(
        "download_refused",
        remote.url,
        reason,
        f"Fetch it in a browser and put it into the folder as {remote.name}, then call again",
    )


def _answered(error: urllib.error.HTTPError, remote: Remote, part: _Part) -> str:
    """Says what the server answered, where another answer may come; refuses the rest."""
    error.close()
    if error.code == 416:  # no such range: the file is shorter now
        part.forget()
        return CHANGED
    if error.code in (301, 302, 303, 307, 308):  # urllib hands these back only where it would not follow
        raise _unusable(remote, "sends from address to address without an end, or away from the web")
    if error.code not in PASSING:
        raise _unusable(remote, f"is not given out: {error.code} {shown(error.reason)}")
    return f"the server answers {error.code} {shown(error.reason)}"


def _wish(headers: Message) -> float | None:
    """Seconds to wait, as the server asks (Retry-After)."""
    text = (headers.get("Retry-After") or "").strip()
    return min(float(text), LONGEST_WISH) if re.fullmatch(r"\d{1,9}", text) else None


def _trouble(error: Exception, remote: Remote) -> str:
    """What broke, in words; a certificate that cannot be trusted is refused."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        raise PathoError(
            "download_refused",
            remote.url,
            f"has a certificate that is not trusted ({cause.verify_message})",
            "Check the clock; behind a company's proxy name its certificates in SSL_CERT_FILE",
        ) from error
    if isinstance(cause, TimeoutError):
        return f"nothing came for {TIMEOUT:g} s"
    return shown(getattr(cause, "strerror", None) or cause) or type(cause).__name__


def _refusal(path: Path, remote: Remote, changed: bool) -> tuple[str, str] | None:
    """Why a whole file is not the one that was known: (code, reason); writes its SHA-256 down where none was known."""
    size = path.stat().st_size
    if remote.size is not None and size != remote.size and not changed:
        return "download_changed", f"is {size:,} bytes long, {remote.size:,} were known"
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    say_at_once(f"{remote.name}: {size:,} bytes, SHA-256 {digest}")
    if remote.sha256:
        wanted = "" if digest.startswith(remote.sha256.lower()) else remote.sha256
        return ("download_damaged", f"has SHA-256 {digest}, which must begin with {wanted}") if wanted else None
    record = path.with_name(f"{remote.name}.sha256")
    known = files.read_bytes(record).decode("ascii", "replace").split()[:1] if record.is_file() else []
    if known and known != [digest] and not changed:
        return "download_changed", f"has SHA-256 {digest}, but the first one fetched had {known[0]} ({record.name})"
    if known != [digest]:
        files.write_text(record, f"{digest}  {remote.name}\n")
    return None
