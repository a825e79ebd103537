"""Pictures decoded in a process of their own: a decoder that crashes, hangs or eats memory does not stop the server.

    decode = Decoder(256)
    picture = decode(content)

The process gets bytes and returns a square of pixels, by `decoding.read` and `decoding.to_square` as everywhere.
It may not write files, its memory is limited, and a spare one takes over at once when it dies. Its messages quote no
byte of a picture, which may be private.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import struct
import subprocess
import sys
import threading
from typing import IO, NamedTuple

import numpy as np

from patholib.base.errors import PathoError
from patholib.data import decoding
from patholib.data.decoding import Note
from patholib.deploy.server.guard import killed_after

SECONDS = 10.0  # for one picture; a legal one of 24 megapixels takes one or two
START = 60.0  # seconds for a process to start, which is not counted against a picture
ROOM = 384 * 2**20  # bytes of memory beyond what the process has at its start and the pixels need
BYTES_PER_PIXEL = 24  # address space, not memory: decoded, converted and resized
LENGTH, READY = struct.Struct("!Q"), b"ready"


class Picture(NamedTuple):
    """An upload as a model sees it, and notes on what is odd about it."""

    pixels: np.ndarray  # (size, size, 3) uint8
    size: tuple[int, int]  # of the picture as it came, upright: width, height
    notes: list[Note]


class Decoder:
    """Bytes to the square of pixels that a model takes.

    size, fit: of the square, as in `decoding.to_square`; max_pixels: as in `decoding.read`; seconds: for one picture.
    """

    def __init__(self, size: int, fit: str = "crop", max_pixels: int = decoding.MAX_PIXELS, seconds: float = SECONDS):
        self._settings = {"size": size, "fit": fit, "max_pixels": max_pixels}
        self.seconds, self.died = seconds, 0
        self._lock = threading.Lock()
        self._process, self._spare, self._ready = self._start(), self._start(), False

    def __call__(self, content: bytes) -> Picture:
        """The decoded picture. Errors: as `decoding.read`; too_much_memory, decoder_stopped."""
        with self._lock:
            try:
                head, payload = self._exchange(content)
            except OSError:  # it died: before it had read all, or before it had answered
                self._replace()
                raise PathoError(
                    "decoder_stopped",
                    "image",
                    "made its decoder crash, hang or run out of memory",
                    "Open it in an image viewer and save it anew as PNG",
                ) from None
        if "error" in head:
            raise PathoError(**head["error"])
        pixels = np.frombuffer(payload, np.uint8).reshape(head["shape"])
        return Picture(pixels, tuple(head["size"]), [Note(*note) for note in head["notes"]])

    def close(self) -> None:
        """Ends both processes."""
        with self._lock:
            for process in (self._process, self._spare):
                _end(process)

    @property
    def processes(self) -> tuple[int, int]:
        """The process ids of the one at work and of its spare."""
        return self._process.pid, self._spare.pid

    def _exchange(self, content: bytes) -> tuple[dict, bytes]:
        questions, answers = _pipes(self._process)
        if not self._ready:
            with killed_after(START, self._process):
                self._ready = _receive(answers) == READY
        with killed_after(self.seconds, self._process):
            _send(questions, content)
            head = json.loads(_receive(answers))
            return head, _receive(answers) if "shape" in head else b""

    def _replace(self) -> None:
        self.died += 1
        _end(self._process)
        self._process, self._spare, self._ready = self._spare, self._start(), False

    def _start(self) -> subprocess.Popen:
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # each reserves address space
        hidden = {name: value for name, value in os.environ.items() if not name.startswith("PATHOLIB_")}
        return subprocess.Popen(
            [sys.executable, "-m", "patholib.deploy.server.sandbox", json.dumps(self._settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=hidden | one_thread,
            start_new_session=True,  # Ctrl-C is for the server alone
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )  # as Windows says it


def _end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    for stream in _pipes(process):
        with contextlib.suppress(OSError):  # what was still to be written to a dead process
            stream.close()


def _pipes(process: subprocess.Popen) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin is not None and process.stdout is not None  # as `_start` has asked for
    return process.stdin, process.stdout


def _send(stream: IO[bytes], content: bytes) -> None:
    stream.write(LENGTH.pack(len(content)))
    stream.write(content)
    stream.flush()


def _receive(stream: IO[bytes]) -> bytes:
    """One message; raises ConnectionResetError where the other side has ended."""
    length = stream.read(LENGTH.size)
    if len(length) == LENGTH.size:
        (size,) = LENGTH.unpack(length)
        content = stream.read(size)
        if len(content) == size:
            return content
    raise ConnectionResetError("the other side has ended")


# ------------------------------------------------------------------------------------------------ inside the process


def main(settings: dict) -> None:
    """Decodes what comes on stdin until there is no more."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a library that prints must not be taken for an answer
    _confine(settings["max_pixels"])
    _send(answers, READY)
    while True:
        try:
            content = _receive(sys.stdin.buffer)
        except ConnectionResetError:
            return
        head, payload = decoded(content, **settings)
        _send(answers, json.dumps(head).encode())
        if "shape" in head:
            _send(answers, payload)


def decoded(content: bytes, size: int, fit: str, max_pixels: int) -> tuple[dict, bytes]:
    """What is answered to one picture: {"shape", "size", "notes"} and the pixels, or {"error"}."""
    try:
        image = decoding.read(content, max_pixels=max_pixels)
        pixels = decoding.to_square(image, size, fit)
        notes = image.warnings  # type: ignore[attr-defined]  # of `decoding.read`
    except PathoError as error:
        return {
            "error": {"code": error.code, "subject": "image", "reason": discreet(error.reason), "remedy": error.remedy}
        }, b""
    except MemoryError:
        return {
            "error": {
                "code": "too_much_memory",
                "subject": "image",
                "reason": "needs more memory to decode than it may have",
                "remedy": "Cut it into tiles or export it smaller",
            }
        }, b""
    return {"shape": pixels.shape, "size": image.size, "notes": notes}, np.ascontiguousarray(pixels).tobytes()


def discreet(reason: str) -> str:
    """The reason without what it quotes: bytes of the file, and messages of libraries, which may quote them too."""
    reason = re.sub(r"starts with the bytes .*", "starts as no known picture does", reason)
    return re.sub(r" \(.*", "", reason, flags=re.DOTALL)


def _confine(max_pixels: int) -> None:
    """No files, no core dump, and memory for one picture; Windows has no such limits."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if sys.platform == "linux":  # elsewhere nothing says what the process has now
        with open("/proc/self/statm") as stream:  # noqa: PTH123 - a file of the kernel, read once
            now = int(stream.read().split()[0]) * resource.getpagesize()
        limit = now + ROOM + BYTES_PER_PIXEL * max_pixels
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
