"""Times the web service beside the source documents' own and LitServe: answers a second, how long one takes, /health.

  python benchmarks/speed_serve.py              about five minutes; writes the section speed serve of RESULTS.md
  python benchmarks/speed_serve.py --quick      in miniature, to see that it runs; writes nothing

Every server is a process of its own on 127.0.0.1, as is the caller; all have the same weights and take turns. The
published one squeezes a picture, which is its own; what it says is not compared, only that it says something. LitServe
comes from the rivals' environment, which the full run makes.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import util
from pathlib import Path

import harness
import numpy as np
import pandas as pd
from harness import Mark
from PIL import Image
from speed_judge import settled

from patholib.base.errors import PathoError
from patholib.deploy import export, inference, onnx_export
from patholib.model import recipes

PUBLISHED, LITSERVE, OURS, ALONE = "as published", "LitServe", "patholib serve", "the model alone"
CALLERS = (1, 8, 32)  # at once
BOUNDARY = "b0undary"
BESIDE = (
    "Of 19 ms of processor time for an answer 12 are the model's. To decode and shrink the picture takes 3.1, to "
    "hold it against the training images 0.8; the rest is HTTP, the guard, the way to the decoding process, and "
    "the callers, who share the two cores"
)
MARKS = (
    (Mark("answers a second to 8 callers, to the published server", 1.5), lambda found: found.rates[8][OURS]),
    (
        Mark("answers a second to 8 callers, of those of the model alone", 0.85, reason=BESIDE),
        lambda found: found.share(8),
    ),
    (
        Mark("p95 of an answer to 32 callers, to the published server", 0.7, most=True),
        lambda found: found.slow(OURS, 32) / found.slow(PUBLISHED, 32),
    ),
    (Mark("p95 of /health beside 8 callers", 25.0, "ms", most=True), lambda found: 1000 * found.health[OURS]),
)


@dataclass(frozen=True)
class Scale:
    """How large and how often."""

    side: int = 224  # of what the network sees
    picture: int = 600  # of a JPEG, as of ISIC
    requests: int = 96  # in one timing
    rounds: int = 5


QUICK = Scale(side=64, picture=100, requests=32, rounds=1)


@dataclass
class Found:
    """What was measured."""

    tables: dict[int, pd.DataFrame]  # by the number of callers
    seconds: dict[tuple[str, int], list[float]]  # of every answer, by server and callers
    health: dict[str, float]  # p95 beside 8 callers, seconds

    @property
    def rates(self) -> dict[int, pd.Series]:
        return {callers: table["ratio"] for callers, table in self.tables.items()}

    def slow(self, server: str, callers: int) -> float:
        return float(np.percentile(self.seconds[server, callers], 95))

    def share(self, callers: int) -> float:
        return harness.ratio(self.tables[callers], OURS, ALONE)[0]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args(arguments).quick
    if not quick:
        harness.with_rivals()
    found = measured(QUICK if quick else Scale())
    text, judged = report(found), [(mark, reached(found)) for mark, reached in MARKS]
    if quick:
        print("\n".join([*text, *harness.verdicts(judged)]))
        return 0
    rivals = [
        "fastapi",
        "uvicorn",
        *(["litserve"] if util.find_spec("litserve") else []),
        *(["onnxruntime"] if util.find_spec("onnxruntime") else []),
    ]
    return harness.section(
        "serve", "Serving: answers over HTTP", "python3 run.py bench serve", "\n".join(text), judged, rivals
    )


# --- the servers ---


@contextlib.contextmanager
def running(name: str, model: Path) -> Iterator[int]:
    """A server as a process; the port on which it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = {
        PUBLISHED: [Path(__file__).with_name("literal_server.py"), model, port],
        LITSERVE: [Path(__file__).with_name("litserver.py"), model, port],
        OURS: ["-m", "patholib", "serve", model, "--port", port, "--units", "64"],
    }[name]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdout=said,
            stderr=said,
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join(filter(None, [str(harness.ROOT), os.environ.get("PYTHONPATH")]))},
        )
        try:
            end = time.monotonic() + 180
            while not answers(port, "/health"):
                if process.poll() is not None or time.monotonic() > end:
                    said.seek(0)
                    raise PathoError("not_started", name, f"does not answer: {said.read()[-2000:]}", "See above")
                time.sleep(0.2)
            yield port
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def answers(port: int, path: str) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", path)
        return connection.getresponse().status == 200
    return False


# --- the callers ---


def form(content: bytes) -> bytes:
    return (
        (
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n'
            "Content-Type: image/jpeg\r\n\r\n"
        ).encode()
        + content
        + f"\r\n--{BOUNDARY}--\r\n".encode()
    )


def called(port: int, body: bytes, callers: int, requests: int, seconds: list[float]) -> int:
    """So many requests by so many callers at once, each on its own connection; all are answered."""

    def call(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        for _ in range(number, requests, callers):
            start = time.perf_counter()
            connection.request("POST", "/predict", body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"})
            reply = connection.getresponse()
            said = reply.read()
            seconds.append(time.perf_counter() - start)
            if reply.status != 200:
                raise AssertionError(f"{reply.status}: {said[:500]}")
            done.append(json.loads(said))
        connection.close()

    done, threads = [], [threading.Thread(target=call, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == requests, f"{len(done)} of {requests} were answered"
    return requests


def health(port: int, body: bytes, requests: int) -> float:
    """The p95 of /health, seconds, while eight callers have pictures looked at."""
    load = threading.Thread(target=called, args=(port, body, 8, requests, []))
    load.start()
    seconds = []
    while load.is_alive():
        start = time.perf_counter()
        assert answers(port, "/health")
        seconds.append(time.perf_counter() - start)
        time.sleep(0.02)
    load.join()
    return float(np.percentile(seconds, 95))


def measured(scale: Scale) -> Found:
    """All servers in turn, with 1, 8 and 32 callers."""
    recipe = replace(recipes.ISIC2019, weights="none", image_size=scale.side)
    model = settled(recipe)
    noise = np.random.default_rng(0).integers(0, 256, (scale.picture // 8, scale.picture // 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).resize((scale.picture, scale.picture), Image.Resampling.BICUBIC).save(stream, "jpeg")
    body = form(stream.getvalue())
    names = [PUBLISHED, *([LITSERVE] if util.find_spec("litserve") else []), OURS]
    with tempfile.TemporaryDirectory(prefix="patholib-") as folder, contextlib.ExitStack() as stack:
        place = Path(folder, "model")
        export.save_model(place, model.state_dict(), recipe, run="benchmark")
        if util.find_spec("onnxruntime") and util.find_spec("onnxscript"):
            onnx_export.to_onnx(place)
        predictor = inference.Predictor(place)
        pixels = predictor.read(stream.getvalue())

        def alone() -> int:
            for _ in range(scale.requests):
                predictor.answer(pixels)
            return scale.requests

        ports = {name: stack.enter_context(running(name, place)) for name in names}
        seconds: dict[tuple[str, int], list[float]] = {}
        tables = {}
        for callers in CALLERS:
            cases: dict[str, Callable[[], int]] = {}
            for name in names:
                kept = seconds[name, callers] = []
                cases[name] = lambda port=ports[name], kept=kept, callers=callers: called(
                    port, body, callers, scale.requests, kept
                )
            tables[callers] = harness.compare(cases | {ALONE: alone}, scale.rounds)
        return Found(tables, seconds, {name: health(ports[name], body, scale.requests) for name in names})


# --- what comes out ---


def report(found: Found) -> list[str]:
    lines = [
        "EfficientNet-B0, a JPEG of 600 x 600 a request, connections that stay open. Published: FastAPI with "
        "everything in `async def`, eager fp32. LitServe: one worker, `inference.Predictor` in it. patholib: "
        "`patholib serve`, the picture decoded in a process of its own. The model alone: `Predictor.answer` on "
        "decoded pixels in a loop, without HTTP."
    ]
    for callers, table in found.tables.items():
        lines += ["", f"### {callers} caller{'s' * (callers > 1)} at once", "", *harness.rate_table(table, "answers/s")]
    rows = [
        [name, str(callers), *(f"{1000 * np.percentile(taken, share):.3g}" for share in (50, 95))]
        for (name, callers), taken in found.seconds.items()
    ]
    lines += ["", "### Milliseconds to an answer", "", *harness.markdown(["", "callers", "p50", "p95"], rows)]
    return [
        *lines,
        "",
        "p95 of /health beside 8 callers: "
        + ", ".join(f"{name} {1000 * taken:.3g} ms" for name, taken in found.health.items())
        + ".",
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
