"""Damaged, cut, spliced and made-up uploads by the thousand against a real server: no 5xx, none above two seconds.

python tests/fuzz_server.py --uploads 100000     about five minutes; ends with 1 where any was answered badly
python tests/fuzz_server.py --uploads 0 --mixed 10000      the memory of the server over requests of every kind
"""

from __future__ import annotations

import argparse
import collections
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

import live
import numpy as np
from live import MULTIPART, answer, connect, form, head
from samples import encoded, picture

SEEDS = [encoded(picture(0, 64, 48), kind) for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")]
SEEDS += [
    encoded(picture(1, 40, 40, mode), kind)
    for mode, kind in (
        ("L", "PNG"),
        ("P", "PNG"),
        ("RGBA", "PNG"),
        ("RGBA", "WEBP"),
        ("CMYK", "JPEG"),
        ("1", "TIFF"),
        ("L", "BMP"),
    )
]
SEEDS += [encoded(picture(2, 50, 50), "TIFF", compression=kind) for kind in ("tiff_lzw", "jpeg", "tiff_deflate")]
SEEDS += [encoded(picture(3, 50, 50), "JPEG", progressive=True), encoded(picture(4), "PNG", interlace=1)]
PATHS = ("/predict", "/predict?tta=true", "/explain", "/predict?explain=true")
SLOW = 2.0  # seconds


def damaged(rng: np.random.Generator) -> bytes:
    """One picture with something done to it."""
    content = bytearray(SEEDS[rng.integers(len(SEEDS))])
    way, at = rng.integers(9), int(rng.integers(len(content)))
    if way < 3:
        for place in rng.integers(0, len(content) if way else min(200, len(content)), 1 + int(rng.integers(8))):
            content[place] = int(rng.integers(256))
    elif way == 3:
        content = content[:at]
    elif way == 4:
        content[at:at] = rng.bytes(int(rng.integers(1, 300)))
    elif way == 5:
        other = SEEDS[rng.integers(len(SEEDS))]
        content = content[:at] + other[int(rng.integers(len(other))) :]
    elif way == 6:
        del content[at : at + int(rng.integers(1, 300))]
    elif way == 7:
        content[at : at + 4] = (2**32 - 1 - int(rng.integers(3))).to_bytes(4, ("big", "little")[rng.integers(2)])
    else:
        content = content[: int(rng.integers(4, 40))] + rng.bytes(int(rng.integers(400)))
    return bytes(content)


def upload(rng: np.random.Generator) -> bytes:
    """A form with a damaged picture; now and then the form itself is damaged."""
    body = form(damaged(rng))
    if rng.integers(10) == 0:
        at = int(rng.integers(min(len(body), 200)))
        body = body[:at] + rng.bytes(int(rng.integers(3))) + body[at + int(rng.integers(4)) :]
    return body


def fuzz(port: int, uploads: int, seconds: float = float("inf"), clients: int = 3, seed: int = 0):
    """Sends so many uploads, or as many as that time allows: how often each status was answered, and the slowest.

    The clients ask for less together than the server admits (at most 5 of 16 units each), so none may be told: busy.
    """
    counts, slowest, failures, end = collections.Counter(), [0.0], [], time.monotonic() + seconds

    def client(number: int) -> None:
        rng, connection = np.random.default_rng([seed, number]), connect(port)
        for _ in range(number, uploads, clients):
            body, path = upload(rng), PATHS[0 if rng.integers(20) else rng.integers(len(PATHS))]
            start = time.monotonic()
            found, connection = exchange(port, connection, head("POST", path, len(body), Content_Type=MULTIPART) + body)
            took = time.monotonic() - start
            counts[found.status] += 1
            slowest[0] = max(slowest[0], took)
            if found.status >= 500 or took > SLOW:
                failures.append((found.status, round(took, 2), found.body, body))
            if time.monotonic() > end:
                break
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts, slowest[0], failures


def exchange(port: int, connection: socket.socket, request: bytes):
    """One request on a connection that may have been closed meanwhile; its answer and the connection that is open."""
    for _ in range(3):
        try:
            connection.sendall(request)
            return answer(connection), connection
        except (EOFError, ConnectionError):
            connection.close()
            connection = connect(port)
    raise AssertionError("the server closes every connection")


def mixed(port: int, number: int) -> None:
    """So many requests of every kind, one after another."""
    rng, connection = np.random.default_rng(0), connect(port)
    requests = [
        head("GET", path) for path in ("/livez", "/health", "/model", "/metrics", "/", "/openapi.json", "/nowhere")
    ]
    sound = [form(content) for content in SEEDS]
    for i in range(number):
        body, path = (upload(rng), "/predict") if i % 3 else (sound[i % len(sound)], PATHS[i // 3 % len(PATHS)])
        request = (
            requests[i // 5 % len(requests)]
            if i % 5 == 0
            else head("POST", path, len(body), Content_Type=MULTIPART) + body
        )
        _, connection = exchange(port, connection, request)
    connection.close()


def growth(process: live.Process, number: int) -> float:
    """By how much of itself the server has grown over so many mixed requests, after a fifth as many more."""
    mixed(process.port, max(300, number // 5))
    before = process.memory()
    mixed(process.port, number)
    return process.memory() / before - 1


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uploads", type=int, default=5000)
    parser.add_argument("--mixed", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="patholib-") as folder:
        model = live.model(Path(folder, "model"))
        with live.Process(model, Path(folder, "log")) as process:
            start = time.monotonic()
            counts, slowest, failures = fuzz(process.port, given.uploads, seed=given.seed)
            rate = sum(counts.values()) / (time.monotonic() - start)
            print(
                f"{sum(counts.values()):,} uploads, {rate:.0f} a second, the slowest {slowest:.2f} s: "
                + ", ".join(f"{number:,} x {status}" for status, number in sorted(counts.items()))
            )
            for status, took, said, body in failures[:5]:
                print(f"{status} after {took} s: {said!r} to {body!r:.300}")
            grown = growth(process, given.mixed) if given.mixed else 0.0
            if given.mixed:
                print(f"{given.mixed:,} mixed requests: the memory grew by {grown:.2%} to {process.memory():.0f} MiB")
    return 1 if failures or grown > 0.01 else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
