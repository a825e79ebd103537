"""Starting and calling the web service: `patholib serve MODEL`, or from a notebook

    with serving.running(run_dir) as server:
        server.predict("sample.png")

The service itself is in `webapp`; this module is light, so that --help or calling a server loads nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from patholib.base.errors import PathoError
from patholib.deploy.server.guard import JsonLines, Limits, is_loopback, killed_after

TOKEN = "PATHOLIB_TOKEN"  # the environment variable
BAD_MODEL = 78  # exit code: EX_CONFIG of sysexits.h, which service managers know as "do not start again"
READY = re.compile(r"Serving .* at (http://\S+)")
SECONDS = 300.0  # a server may take to start, on a machine that is busy


def run(given: argparse.Namespace) -> int:
    """Loads the model, listens and serves until SIGTERM; the exit code.

    Errors, before anything listens: bad_parameter, unsafe_address, port_taken, not_installed. What is wrong with the
    model is one line on stderr and exit code 78.
    """
    token = given.token if given.token is not None else os.environ.get(TOKEN)
    _check(given, token)
    try:
        from patholib.deploy.inference import Predictor
        from patholib.deploy.server import webapp, webhttp, webservice
    except ImportError as error:
        raise PathoError(
            "not_installed", error.name or "fastapi", "is needed to serve a model", 'pip install "patholib[serve]"'
        ) from error
    try:
        predictor = Predictor(Path(given.model), given.engine, threads=given.threads, sha256=given.sha256)
        predictor.answer(webservice.noise(predictor))
    except PathoError as error:
        print(error, file=sys.stderr)
        return BAD_MODEL
    body = int(given.max_mib * 2**20)
    limits = Limits(body=body, bodies=9 * body, units=given.units, upload_seconds=given.upload_seconds)
    settings = webservice.Settings(
        token=token,
        origins=tuple(origin.lower() for origin in given.origin),
        local=is_loopback(given.host),
        root_path=given.root_path.rstrip("/"),
        drain=given.drain,
        limits=limits,
        docs=token is None,
        max_pixels=int(given.max_megapixels * 1e6),
        decode_seconds=given.decode_seconds,
    )
    with listening(given.host, given.port) as listener:
        host, port = listener.getsockname()[:2]
        _log_as_json()
        name = predictor.manifest["run"] or Path(given.model).name
        print(f"Serving {name} at http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
        webhttp.Server(webapp.Guarded(predictor, settings)).run(sockets=[listener])
    return 0


def _check(given: argparse.Namespace, token: str | None) -> None:
    if token is not None and not re.fullmatch(r"[!-~]{8,}", token):
        raise PathoError(
            "bad_parameter",
            "token",
            "is shorter than 8 characters, or has others than printable ASCII",
            "Take a long random one: python -c 'import secrets; print(secrets.token_urlsafe())'",
        )
    if token is None and not given.insecure and not is_loopback(given.host):
        raise PathoError(
            "unsafe_address",
            given.host,
            "can be reached by other machines, and there is no token",
            f"Set {TOKEN}, or give --insecure if who may reach it may use it",
        )
    for name in ("max_mib", "max_megapixels", "units", "upload_seconds", "decode_seconds"):
        if not getattr(given, name) > 0:
            raise PathoError(
                "bad_parameter", f"--{name.replace('_', '-')}", f"is {getattr(given, name)}", "Give a number above 0"
            )
    if not re.fullmatch(r"(/[\w.~-]+)*/?", given.root_path):
        raise PathoError(
            "bad_parameter", "--root-path", f"is {given.root_path!r}, no path", "Give it as /models/breast"
        )
    for origin in given.origin:
        if not re.fullmatch(r"https?://[\w.:\[\]-]+", origin):
            raise PathoError(
                "bad_parameter",
                "--origin",
                f"is {origin!r}, no site",
                "Give it as https://example.org; all sites at once are not offered",
            )


def listening(host: str, port: int) -> socket.socket:
    """A TCP socket that listens; port 0 takes a free one. Errors: port_taken."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.create_server((host, port), family=family, backlog=256)
        # By name a TCP socket: only of such asyncio lets small packets go at once. Else the second half of every
        # answer on a kept connection waits 40 ms for the first half to be acknowledged.
        return socket.socket(bound.family, bound.type, socket.IPPROTO_TCP, bound.detach())
    except (OSError, OverflowError) as error:
        raise PathoError(
            "port_taken",
            f"{host}:{port}",
            f"cannot be listened on ({error})",
            "Choose another with --port; 0 takes a free one",
        ) from error


def _log_as_json() -> None:
    """Everything that is logged goes to stderr, one JSON object a line."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    logging.captureWarnings(True)


# --- calling one ---


@dataclass(frozen=True)
class Client:
    """A server that runs somewhere."""

    url: str
    token: str | None = None

    def predict(self, picture: Path | bytes, tta: bool = False, explain: bool = False) -> dict:
        """The answer to a file or its bytes. Errors: the code that the server gives."""
        query = "&".join(f"{name}=true" for name, wanted in (("tta", tta), ("explain", explain)) if wanted)
        return json.loads(self._ask(f"/predict?{query}", picture))

    def explain(self, picture: Path | bytes) -> bytes:
        """The picture under its heatmap, as PNG."""
        return self._ask("/explain", picture)

    def get(self, path: str) -> dict | str:
        """What is at a path such as "/health", "/model" or "/metrics"."""
        content = self._ask(path).decode()
        return json.loads(content) if content.startswith("{") else content

    def _ask(self, path: str, picture: Path | bytes | None = None) -> bytes:
        headers, body = {"Authorization": f"Bearer {self.token}"} if self.token else {}, None
        if picture is not None:
            content = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
            mark = secrets.token_hex(16)
            headers["Content-Type"] = f"multipart/form-data; boundary={mark}"
            body = (
                f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="image"\r\n\r\n'.encode()
                + content
                + f"\r\n--{mark}--\r\n".encode()
            )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy is of no use on this machine
        try:
            with opener.open(urllib.request.Request(self.url + path, body, headers), timeout=SECONDS) as reply:
                return reply.read()
        except urllib.error.HTTPError as error:
            with error:
                raise PathoError(subject=path.partition("?")[0], **json.load(error)) from None
        except OSError as error:
            raise PathoError("no_answer", self.url, f"does not answer ({error})", "Start the server again") from error


@contextlib.contextmanager
def running(model: Path, *options: str, token: str | None = None) -> Iterator[Client]:
    """A server of the model as a process of its own on a free port of this machine, until the block is left.

    options: as of `patholib serve`. Errors: not_started, with what the server said.
    """
    command = [sys.executable, "-m", "patholib", "serve", str(model), "--port", "0", *options]
    environment = {name: value for name, value in os.environ.items() if name != TOKEN}
    environment |= {"PYTHONIOENCODING": "utf-8", **({TOKEN: token} if token else {})}  # names in any letters
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, encoding="utf-8"
        )
        assert process.stdout is not None  # a pipe
        try:
            with killed_after(SECONDS, process):
                found = READY.match(process.stdout.readline())
            if not found:
                process.wait()
                said.seek(0)
                last = (said.read().strip().splitlines() or ["nothing"])[-1]
                raise PathoError("not_started", str(model), f"cannot be served: {last}", "Correct that and try again")
            yield Client(found[1], token)
        finally:
            process.terminate()
            with killed_after(SECONDS, process):
                process.wait()
            process.stdout.close()
