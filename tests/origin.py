"""A web server of the test's own that answers as it is told: drops connections, knows no Range, changes its file."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Answer:
    """One answer: by default all that is asked for, of a file with an ETag, by a server that knows Range."""

    content: bytes
    drop: int | None = None  # bytes of the body after which the connection ends
    etag: str | None = '"first"'
    modified: str | None = None
    ranges: bool = True
    heeds_if_range: bool = True
    status: int | None = None
    length: bool = True  # say how long it is
    headers: dict = field(default_factory=dict)
    piece: int = 2**20  # bytes sent at once
    pause: float = 0.0  # seconds between two pieces


@dataclass
class Asked:
    """One request, and which bytes were sent for it."""

    path: str
    headers: dict
    start: int = 0
    sent: int = 0


class Origin:
    """`origin.answers` are given in turn, the last one for ever; `origin.asked` is what was asked for."""

    def __init__(self, answers: list[Answer], server: ThreadingHTTPServer):
        self.answers, self.server, self.asked = answers, server, []
        self.lock = threading.Lock()

    def url(self, name: str = "set.bin") -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{name}"

    def next(self, asked: Asked) -> Answer:
        with self.lock:
            self.asked.append(asked)
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    @property
    def spans(self) -> list[tuple[int, int]]:
        """(first byte, byte after the last one) of every body."""
        return [(one.start, one.start + one.sent) for one in self.asked]


class Handler(BaseHTTPRequestHandler):
    origin: Origin

    def do_GET(self) -> None:
        asked = Asked(self.path, {name.lower(): value for name, value in self.headers.items()})
        answer = self.origin.next(asked)
        with contextlib.suppress(ConnectionError):  # of a client that was killed
            self.answer(asked, answer)

    def answer(self, asked: Asked, answer: Answer) -> None:
        start, status, content = 0, answer.status or 200, answer.content
        wanted = re.fullmatch(r"bytes=(\d+)-", asked.headers.get("range", ""))
        if wanted and answer.ranges and answer.status is None:
            known = [text for text in (answer.etag, answer.modified) if text and not text.startswith("W/")]
            if not answer.heeds_if_range or asked.headers.get("if-range") in known:
                start, status = int(wanted[1]), 206
        body = content[start:]
        self.send_response(status)
        for name, value in (("ETag", answer.etag), ("Last-Modified", answer.modified), *answer.headers.items()):
            if value is not None:
                self.send_header(name, value)
        if answer.length:
            self.send_header("Content-Length", str(len(body)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        asked.start = start
        for first in range(0, len(body), answer.piece):
            piece = body[first : first + answer.piece]
            piece = piece if answer.drop is None else piece[: max(answer.drop - asked.sent, 0)]
            self.wfile.write(piece)
            asked.sent += len(piece)
            if answer.drop is not None and asked.sent >= answer.drop:
                break
            time.sleep(answer.pause)
        self.close_connection = True

    def log_message(self, *_) -> None:
        """Says nothing: what was asked is in `asked`."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    address_family = socket.AF_INET

    def handle_error(self, request, client_address) -> None:
        """Says nothing: connections that break are what is tested."""


@contextlib.contextmanager
def origin(*answers: Answer) -> Iterator[Origin]:
    """A running server on a free port of this machine."""
    handler = type("Told", (Handler,), {})
    with Server(("127.0.0.1", 0), handler) as server:
        handler.origin = Origin(list(answers), server)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield handler.origin
        finally:
            server.shutdown()
            thread.join()
