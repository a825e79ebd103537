"""A real server to talk to over real sockets: in a thread, where a test can reach into it, or as a process."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import tiny
from samples import encoded, picture

from patholib.deploy import export
from patholib.deploy.inference import Predictor
from patholib.deploy.server import serving, webapp, webhttp, webservice
from patholib.model import building

HERE = Path(__file__).parent
MARK = "b0undary"
MULTIPART = f"multipart/form-data; boundary={MARK}"
SOUND = encoded(picture(), "PNG")
SECONDS = 240.0  # that a test waits for anything; far more than it takes


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict:
        return json.loads(self.body)


def model(folder: Path, **facts) -> Path:
    """An export of the tiny network."""
    with tiny.network():
        export.save_model(
            folder,
            building.build(tiny.TINY).state_dict(),
            tiny.TINY,
            run="a run",
            **{"threshold": 0.4, "temperature": 1.3} | facts,
        )
    return folder


def predictor(folder: Path) -> Predictor:
    with tiny.network():
        return Predictor(folder, "torch")


def form(*pictures: bytes, field: str = "file", filename: str = "a.png", kind: str | None = "image/png") -> bytes:
    """The body of a multipart form."""
    kind = f"\r\nContent-Type: {kind}" if kind else ""
    head = f'--{MARK}\r\nContent-Disposition: form-data; name="{field}"; filename="{filename}"{kind}\r\n\r\n'
    return b"".join(head.encode() + content + b"\r\n" for content in pictures) + f"--{MARK}--\r\n".encode()


def head(method: str, path: str, length: int | None = None, **headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"Content-Length: {length}"] * (length is not None)
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def connect(port: int, timeout: float = SECONDS) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout)


def answer(connection: socket.socket, has_body: bool = True) -> Answer:
    """The next answer on a connection; raises EOFError where it was closed instead. To HEAD there is no body."""
    found = b""
    while b"\r\n\r\n" not in found:
        more = connection.recv(65536)
        if not more:
            raise EOFError(found)
        found += more
    start, _, body = found.partition(b"\r\n\r\n")
    first, *lines = start.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    length = int(headers.get("content-length", 0))
    while has_body and ("content-length" not in headers or len(body) < length) and (more := connection.recv(65536)):
        body += more
    return Answer(int(first.split()[1]), headers, body[:length] if "content-length" in headers else body)


def ask(port: int, method: str, path: str, body: bytes | None = None, timeout: float = SECONDS, **headers) -> Answer:
    """One request on a connection of its own."""
    if body is not None:
        headers = {"Content_Type": MULTIPART} | headers
    with connect(port, timeout) as connection:
        connection.sendall(head(method, path, None if body is None else len(body), **headers) + (body or b""))
        return answer(connection, method != "HEAD")


def post(port: int, content: bytes = SOUND, path: str = "/predict", **headers) -> Answer:
    return ask(port, "POST", path, form(content), **headers)


def until(condition, seconds: float = SECONDS) -> None:
    """Waits until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.01)


@contextlib.contextmanager
def threaded(predictor: Predictor, **settings):
    """A server in a thread: .port, .app, .service, .guard, .predictor."""
    app = webapp.Guarded(predictor, webservice.Settings(**settings))
    server = webhttp.Server(app)
    with serving.listening("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        until(lambda: server.started or not thread.is_alive())
        assert server.started
        try:
            yield SimpleNamespace(
                port=listener.getsockname()[1],
                app=app,
                service=app.service,
                guard=app.guard,
                predictor=predictor,
                connections=server.server_state.connections,
            )
        finally:
            server.should_exit = True
            thread.join(SECONDS)
            assert not thread.is_alive()


class Process:
    """A server as a process: .port, .pid, .said (what it wrote to stdout and stderr so far)."""

    def __init__(self, folder: Path, log: Path, *options: str, **environment: str):
        self.log = log
        self._out = log.open("wb")
        self._process = subprocess.Popen(
            [sys.executable, HERE / "served.py", folder, "--port", "0", *options],
            cwd=HERE.parent,
            stdout=self._out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={
                "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}",
                "PATH": os.environ["PATH"],
                "OMP_NUM_THREADS": "1",
                "PYTHONDONTWRITEBYTECODE": "1",
                **environment,
            },
        )
        self.pid = self._process.pid

    def __enter__(self) -> Process:
        until(lambda: "startup complete" in self.said or self._process.poll() is not None)
        assert self._process.poll() is None, self.said
        self.port = int(re.search(r"at http://\S+:(\d+)", self.said)[1])
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        self._out.close()

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        return self._process.wait(SECONDS)

    def forget_peak(self) -> None:
        """Lets VmHWM begin anew."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def memory(self, what: str = "VmRSS") -> float:
        """MiB of the server itself; what: VmRSS now, VmHWM at most so far."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(rf"{what}:\s+(\d+) kB", text)[1]) / 1024
