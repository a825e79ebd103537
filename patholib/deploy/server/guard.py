"""An ASGI app in front of the web service that checks token, size, deadline and load before an upload is parsed.

A web framework reads a whole upload, and may write it to disk, before any code of the app runs, and its server waits
for ever for a body that does not come. So these four are checked here, with the standard library alone. Nothing that a
client sends (names, headers, queries, bodies) is logged or sent back; a log line is one JSON object.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import json
import logging
import math
import re
import secrets
import subprocess
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]  # as in Starlette
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LINGER = 2.0  # seconds for which the rest of a refused upload is read and dropped, so that its sender sees the answer
OWN_ID = re.compile(rb"[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # request ids accepted from a client
HEADERS = {  # of every answer, unless the app has its own
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"cross-origin-resource-policy": b"same-origin",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}
HEAD = 16 * 2**10  # bytes of path, query and headers
CLIENT_GONE = 499  # nginx's number for it; never sent, only counted
log = logging.getLogger("patholib.server")
OWN_LOGS = ("patholib", "uvicorn")  # which never quote a request


@dataclass(frozen=True)
class Limits:
    """What is accepted. Sizes in bytes, times in seconds, work in units of one plain prediction."""

    body: int = 10 * 2**20  # of one request
    bodies: int = 96 * 2**20  # of all requests that are being read or answered
    units: int = 16  # admitted at once, waiting or computed
    upload_seconds: float = 20.0  # from the head of a request to the end of its body
    answer_seconds: float = 60.0  # from then on


class Refusal(Exception):
    """An error answer: its status, and the three fields of its JSON."""

    def __init__(self, status: int, code: str, reason: str, remedy: str, headers: Mapping[str, str] | None = None):
        super().__init__(code)
        self.status, self.headers = status, dict(headers or {})
        self.body = {"code": code, "reason": reason, "remedy": remedy}


def unforeseen() -> Refusal:
    """The answer to an error of the server's own."""
    remedy = "Tell who runs the server the X-Request-ID of this answer"
    return Refusal(500, "internal", "failed in an unforeseen way", remedy)


class Gone(Exception):
    """The client has closed the connection: nobody is there to answer."""


class Guard:
    """An ASGI app in front of another.

    cost: the units of work that a request asks for, 0 for what is answered at once; only requests with a cost have
    their body read (here, whole) and are counted against the limits. token: None lets everybody in; `public` are the
    paths that need none. routes: the paths that logs and metrics may name. count: is told route, status and seconds of
    every answer. origins: other sites whose pages may ask. local: only names of this machine, and of these sites, are
    taken as Host: else any page could ask under a name of its own that it lets point here (DNS rebinding).
    """

    def __init__(
        self,
        app: App,
        limits: Limits,
        cost: Callable[[Message], int],
        routes: Sequence[str] = (),
        token: str | None = None,
        public: Sequence[str] = (),
        count: Callable[[str, int, float], None] = lambda route, status, seconds: None,
        origins: Sequence[str] = (),
        local: bool = False,
    ):
        self.app, self.limits, self.cost, self.routes, self.public = app, limits, cost, set(routes), set(public)
        self._token = hashlib.sha256(token.encode()).digest() if token is not None else None
        self._count, self._origins, self._local = count, origins, local
        self.used = 0  # units
        self.held = 0  # bytes
        self._pace = 0.05  # seconds that a unit took lately

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        call = _Call(scope, receive, send)
        try:
            await self._pass(call)
        except Refusal as refusal:
            await call.refuse(refusal)
        except Gone:
            call.status = CLIENT_GONE
        except Exception as error:
            log.error("failed", exc_info=error, extra={"fields": {"id": call.id}})
            if call.status is None:
                await call.refuse(unforeseen())
        finally:
            self.held -= call.size
            self._note(call)

    async def _pass(self, call: _Call) -> None:
        if call.head > HEAD:
            raise Refusal(431, "head_too_large", f"has a head of more than {HEAD // 1024} kB", "Send fewer headers")
        if {b"transfer-encoding", b"content-length"} <= call.headers.keys():  # servers differ in which counts
            raise Refusal(400, "bad_request", "declares a length and comes in chunks", "Send one of the two headers")
        self._stop_strangers(call)
        if self._token is not None and call.path not in self.public:
            given = re.sub(rb"(?i)^bearer +", b"", call.headers.get(b"authorization", b""))
            if not hmac.compare_digest(hashlib.sha256(given).digest(), self._token):
                raise Refusal(
                    401,
                    "no_token",
                    "needs the token of this server",
                    "Send the header Authorization: Bearer TOKEN",
                    {"WWW-Authenticate": "Bearer"},
                )
        cost = self.cost(call.scope)
        if not cost:
            await self.app(call.scope, call.receive, call.send)
            return
        self._stop_if_full(cost)  # before the upload, which would be for nothing
        body = await self._read(call)
        call.done = give_back = self._admit(cost)
        try:
            await self._answer(call, body)
        finally:
            give_back()

    def _stop_strangers(self, call: _Call) -> None:
        """Errors: 403 foreign_host, foreign_origin."""
        host, origin = (call.headers.get(name, b"").decode("latin-1").lower() for name in (b"host", b"origin"))
        name = re.sub(r":\d*$", "", host).strip("[]")
        if self._local and host and not (is_loopback(name) or name in {urlsplit(o).hostname for o in self._origins}):
            raise Refusal(
                403,
                "foreign_host",
                "calls this server by a name that is not of this machine",
                "Use localhost, or --origin",
            )
        if origin and origin not in self._origins and (urlsplit(origin).netloc or "null") != host:
            raise Refusal(403, "foreign_origin", "comes from a page of another site", "Name that site with --origin")

    async def _read(self, call: _Call) -> bytes:
        """The whole body; errors: 413 too_large, 408 too_slow, 503 busy."""
        declared = call.headers.get(b"content-length", b"0")
        if not re.fullmatch(rb"\d{1,20}", declared):
            raise Refusal(400, "bad_request", "declares a length that is no number", "Send its length in bytes")
        if int(declared) > self.limits.body:
            raise self._too_large()
        chunks = []
        try:
            async with asyncio.timeout(self.limits.upload_seconds):
                while call.unread:
                    chunks.append(await call.chunk())
                    self.held += len(chunks[-1])
                    if call.size > self.limits.body:
                        raise self._too_large()
                    if self.held > self.limits.bodies:
                        raise self._busy(1)
        except TimeoutError:
            raise Refusal(
                408,
                "too_slow",
                f"was not here within {self.limits.upload_seconds:g} seconds",
                "Send a smaller picture, or over a faster line",
            ) from None
        return b"".join(chunks)

    def _too_large(self) -> Refusal:
        return Refusal(
            413,
            "too_large",
            f"is larger than {self.limits.body / 2**20:g} MiB",
            "Send a smaller picture, or fewer at once",
        )

    def _busy(self, cost: int) -> Refusal:
        wait = max(1, math.ceil((self.used + cost) * self._pace))
        return Refusal(
            503,
            "busy",
            "came while the server had as much to do as it takes on",
            f"Send it again in {wait} s",
            {"Retry-After": str(wait)},
        )

    def _stop_if_full(self, cost: int) -> None:
        if self.used and self.used + cost > self.limits.units:  # alone, everything fits
            raise self._busy(cost)

    def _admit(self, cost: int) -> Callable[[], None]:
        """Reserves `cost` units; returns the function that gives them back, once."""
        self._stop_if_full(cost)
        self.used += cost
        start, before, taken = time.perf_counter(), self.used, [cost]

        def give_back() -> None:
            if taken:
                self.used -= taken.pop()
                self._pace += 0.1 * ((time.perf_counter() - start) / before - self._pace)

        return give_back

    async def _answer(self, call: _Call, body: bytes) -> None:
        """Runs the app on a complete body; stops it when its client goes away or it takes too long."""
        gone = asyncio.ensure_future(call.receive())  # the body is read, so nothing else can come
        parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            return parts.pop() if parts else await asyncio.shield(gone)

        work = asyncio.ensure_future(self.app(call.scope, receive, call.send))
        try:
            done, _ = await asyncio.wait(
                {work, gone}, timeout=self.limits.answer_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if work in done or call.complete:
                await work
            elif gone in done:
                raise Gone
            elif call.status is None:
                raise self._busy(1)
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    def _note(self, call: _Call) -> None:
        route = call.path if call.path in self.routes else "other"
        method = call.scope["method"] if call.scope["method"] in ("GET", "HEAD", "POST") else "other"
        seconds = time.perf_counter() - call.start
        self._count(route, call.status or CLIENT_GONE, seconds)
        log.info(
            "request",
            extra={
                "fields": {
                    "id": call.id,
                    "method": method,
                    "route": route,
                    "status": call.status or CLIENT_GONE,
                    "bytes": call.size,
                    "seconds": round(seconds, 4),
                }
            },
        )


@dataclass
class _Call:
    """One request and the state of its answer."""

    scope: Message
    receive: Receive
    raw_send: Send
    status: int | None = None  # None until the answer begins
    complete: bool = False
    unread: bool = True
    size: int = 0  # bytes of the body that were kept
    done: Callable[[], None] = lambda: None  # called as the last part of the answer leaves
    start: float = field(default_factory=time.perf_counter)

    def __post_init__(self):
        self.headers, self.path = dict(self.scope["headers"]), self.scope["path"]
        self.head = (
            len(self.path)
            + len(self.scope["query_string"])
            + sum(len(name) + len(value) + 4 for name, value in self.scope["headers"])
        )
        given = self.headers.get(b"x-request-id", b"")
        self.id = given.decode() if OWN_ID.fullmatch(given) else secrets.token_hex(16)

    async def chunk(self) -> bytes:
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise Gone
        self.unread = message.get("more_body", False)
        content = message.get("body", b"")
        self.size += len(content)
        return content

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, given = message["status"], dict(message.get("headers", ()))
            missing = [(name, value) for name, value in HEADERS.items() if name not in given]
            headers = [*message.get("headers", ()), *missing, (b"x-request-id", self.id.encode())]
            message = {**message, "headers": headers}
        elif message["type"] == "http.response.body":
            self.complete = not message.get("more_body", False)
            if self.complete:  # not afterwards: who has an answer may ask again at once, and is not to be told "busy"
                self.done()
        await self.raw_send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Sends the refusal, then reads and drops the rest for a moment: else its sender would see a broken pipe."""
        content = json.dumps(refusal.body).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **refusal.headers}
        await self.send(
            {
                "type": "http.response.start",
                "status": refusal.status,
                "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()],
            }
        )
        await self.send({"type": "http.response.body", "body": content, "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while self.unread:
                    message = await self.receive()
                    self.unread = message["type"] == "http.request" and message.get("more_body", False)
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})


def is_loopback(host: str) -> bool:
    """Whether a name or address is that of this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, which may lead anywhere
        return False


class JsonLines(logging.Formatter):
    """One JSON object per record; of an exception its type and places, not its text, which may quote an upload.

    Of a library that parses uploads only the place of its message.
    """

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage() if record.name.startswith(OWN_LOGS) else f"{record.module}:{record.lineno}",
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            frames = traceback.extract_tb(record.exc_info[2])
            line["error"] = type(record.exc_info[1]).__name__
            line["at"] = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames[-8:]]
        return json.dumps(line)


@contextlib.contextmanager
def killed_after(seconds: float, process: subprocess.Popen) -> Iterator[None]:
    """Kills the process where the block takes longer."""
    watch = threading.Timer(seconds, process.kill)
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        watch.cancel()
