"""The service over real sockets: what it answers, what it refuses, and that nothing brings it down (S01 to S34)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote

import fuzz_server
import live
import numpy as np
import pytest
import samples
import tiny
from live import MARK, MULTIPART, SOUND, answer, ask, connect, form, head, post, until
from PIL import Image

from patholib import cli
from patholib.base.errors import PathoError
from patholib.data import decoding
from patholib.deploy import export
from patholib.deploy.inference import Predictor
from patholib.deploy.server import sandbox, serving, webapp, webhttp, webroutes, webservice
from patholib.deploy.server.guard import Guard, JsonLines, Limits
from patholib.deploy.server.sandbox import Decoder
from patholib.judge import trust
from patholib.model import building
from patholib.report.figures import heatmaps

pytestmark = pytest.mark.heavy

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
posix = pytest.mark.skipif(os.name != "posix", reason="sends signals")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return live.model(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def decoder():
    """One decoding process for all servers that are threads here: each takes a second to start."""
    found = Decoder(37)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(found, "close", lambda: None)
        patch.setattr(webservice, "Decoder", lambda *_: found)
        yield found
    found.close()


@pytest.fixture
def serve(folder, decoder):
    """`serve(...)`: a server in a thread with these settings."""

    def start(**settings):
        return live.threaded(live.predictor(folder), **settings)

    return start


@pytest.fixture(scope="module")
def server(folder, decoder):
    """A server with its defaults, but for the time an upload may take."""
    with live.threaded(live.predictor(folder), limits=Limits(upload_seconds=1)) as found:
        yield found


@pytest.fixture(scope="module")
def process(folder, tmp_path_factory):
    """A server as a process."""
    with live.Process(folder, tmp_path_factory.mktemp("process") / "log") as found:
        yield found


@pytest.fixture
def slow(monkeypatch):
    """`slow(server, seconds)`: every prediction takes so much longer."""

    def make(server, seconds):
        quick = server.predictor.answer

        def answer(*given):
            time.sleep(seconds)
            return quick(*given)

        monkeypatch.setattr(server.predictor, "answer", answer)

    return make


@pytest.fixture(scope="module")
def pool():
    with concurrent.futures.ThreadPoolExecutor(48) as found:
        yield found


def alive(server):
    """It still answers."""
    assert post(server.port).status == 200


# --- answers ---


@pytest.mark.parametrize("query", ["", "?tta=true"])
def test_the_server_says_bit_for_bit_what_the_predictor_says(server, query):
    content = samples.encoded(samples.picture(3, 20, 90), "PNG") if query else samples.JPEG
    content = samples.encoded(samples.picture(3, 40, 33, "L")) if query else content
    looked = server.predictor.look(content)
    said = server.predictor.answer(looked.pixels, bool(query), looked.warnings).to_json()
    found = post(server.port, content, f"/predict{query}").json
    assert found["probabilities"] == said["probs"] and sum(said["probs"].values()) == pytest.approx(1, abs=1e-12)
    same = said.keys() - {"probs", "notice"}
    assert {name: found[name] for name in same} == {name: said[name] for name in same}
    assert found["threshold"] == 0.4 and "research use only" in found["notice"] and found["demo"] is False
    assert found["model"] == {"sha256": server.predictor.sha256, "run": "a run"}


def test_notes_of_the_decoder_become_warnings(server):
    odd = samples.encoded(samples.picture(1, 200, 40, "RGBA"))
    assert any(text.startswith("extreme_aspect: ") for text in post(server.port, odd).json["warnings"])
    assert post(server.port, odd).json["warnings"] == list(server.predictor.look(odd).warnings)


def test_a_batch_answers_each_picture_in_order_and_names_those_it_cannot_use(server):
    pictures = [SOUND, b"no picture", samples.JPEG]
    found = ask(server.port, "POST", "/predict/batch", form(*pictures)).json["answers"]
    assert found[0] == post(server.port).json and found[2] == post(server.port, samples.JPEG).json
    assert found[1]["code"] == "not_an_image"
    full = ask(server.port, "POST", "/predict/batch", form(*[SOUND] * webroutes.BATCH))
    assert full.json["answers"] == [found[0]] * webroutes.BATCH
    assert ask(server.port, "POST", "/predict/batch", form(*[SOUND] * (webroutes.BATCH + 1))).status == 422


def test_a_heatmap_is_the_picture_under_the_colours_of_the_library(server):
    found = ask(server.port, "POST", "/explain", form(SOUND))
    assert (
        found.headers["content-type"] == "image/png" and found.headers["x-class"] == post(server.port).json["decision"]
    )
    shown = np.asarray(Image.open(io.BytesIO(found.body)))
    assert shown.shape == (32, 32, 3)
    heat = post(server.port, path="/predict?explain=true").json["heatmap"]
    assert heat["verdict"] == trust.NOT_CHECKED
    assert unquote(found.headers["x-verdict"]).lower() == trust.NOT_CHECKED.lower()
    assert heat["of"] == found.headers["x-class"] and heat["png"].startswith("data:image/png;base64,")
    rng = np.random.default_rng(0)
    seen, share = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8), rng.random((16, 16))
    ours, theirs = webservice.overlay(seen, share).astype(int), heatmaps.overlay(seen, share).astype(int)
    assert np.abs(ours - theirs).max() <= 3  # matplotlib takes the nearest of 256 colours
    assert (webservice.overlay(seen, np.zeros((16, 16))) == seen).all()


def test_the_model_card_says_what_the_model_is_and_what_the_server_takes(server):
    found = ask(server.port, "GET", "/model").json
    assert found["classes"] == ["benign", "malignant"] and found["limits"] == {"mib": 10, "megapixels": 24, "batch": 16}
    assert found["weights"]["sha256"] == server.predictor.sha256 and found["engine"] == "torch"


def test_the_metrics_count_every_answer_and_add_up(server):
    before = ask(server.port, "GET", "/metrics").body.decode()
    for _ in range(3):
        post(server.port)
    ask(server.port, "GET", "/secret-name")
    after = ask(server.port, "GET", "/metrics").body.decode()

    def value(text, name):
        return next((float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name)), 0)

    for name, more in (
        ('patholib_requests_total{route="/predict",status="200"}', 3),
        ('patholib_request_seconds_count{route="/predict"}', 3),
        ("patholib_computed ", 3),
        ('patholib_requests_total{route="other",status="404"}', 1),
    ):
        assert value(after, name) == value(before, name) + more, name
    assert "secret" not in after and value(after, "patholib_ready") == 1 and value(after, "patholib_units ") == 16
    assert value(after, 'patholib_request_seconds_bucket{le="+Inf",route="/predict"}') == value(
        after, 'patholib_request_seconds_count{route="/predict"}'
    )


def test_a_query_that_is_not_known_is_no_query_that_is_passed_over(server):
    for query in ("?tta=maybe", "?ttt=true", "?explain=2", "?secret-name=1"):
        found = post(server.port, path=f"/predict{query}")
        assert (found.status, found.json["code"]) == (422, "bad_parameter") and b"secret" not in found.body


# --- size and time ---


def test_S01_a_declared_length_above_the_cap(server, catalogue):
    with connect(server.port) as connection:
        connection.sendall(head("POST", "/predict", 11 * 2**20, Content_Type=MULTIPART))
        start = time.monotonic()
        found = answer(connection)
        assert time.monotonic() - start < 1  # before anything was sent
    assert (found.status, found.json["code"]) == (413, "too_large")
    with connect(server.port) as connection:  # a client that sends it all first sees the answer, no broken pipe
        connection.sendall(head("POST", "/predict", 11 * 2**20, Content_Type=MULTIPART, Connection="close"))
        connection.sendall(bytes(11 * 2**20))
        assert answer(connection).status == 413
    alive(server)
    catalogue(
        "S01",
        "a declared length above the cap",
        f"{found.status}, before the body is read. "
        "What is sent all the same is dropped for two seconds, so that its sender sees the answer",
    )


@linux
def test_S02_a_gigabyte_in_chunks(process, catalogue):
    alive(process)
    process.forget_peak()
    before, chunk = process.memory(), b"100000\r\n" + bytes(2**20) + b"\r\n"
    with connect(process.port) as connection:
        connection.sendall(head("POST", "/predict", Content_Type=MULTIPART, Transfer_Encoding="chunked"))
        with pytest.raises(OSError):
            for _ in range(1024):
                connection.sendall(chunk)
            raise BrokenPipeError  # in two seconds it can all have been dropped
    until(lambda: '"status": 413' in process.said)
    assert process.memory("VmHWM") - before < 32
    alive(process)
    catalogue("S02", "a gigabyte in chunks, without a length", "413 after 10 MiB; the memory grows by less than 32 MiB")


@pytest.mark.parametrize("lie", ["-1", "1e9", "ten", "", "5, 6", "99999999999999999999999"])
def test_S03_a_length_that_is_none(server, lie, catalogue):
    with connect(server.port) as connection:
        connection.sendall(head("POST", "/predict", lie, Content_Type=MULTIPART))
        assert answer(connection).status in (400, 413)
    with connect(server.port) as connection:
        connection.sendall(head("POST", "/predict", 5, Content_Length="7", Content_Type=MULTIPART) + b"12345")
        assert answer(connection).status == 400
    catalogue("S03", "a length that is negative, no number, endless or given twice", "400")


def test_S03_S04_a_body_that_does_not_come(server, catalogue):
    start = time.monotonic()
    with connect(server.port) as connection:
        connection.sendall(head("POST", "/predict", 1000, Content_Type=MULTIPART))
        connection.settimeout(0.1)
        found = None
        while found is None:
            try:
                connection.sendall(b"x")
                found = answer(connection)
            except TimeoutError:
                assert time.monotonic() - start < 10
    assert found.status == 408 and 0.9 < time.monotonic() - start < 5
    until(lambda: server.guard.held == 0)
    for name, given in (("S03", "a length greater than what comes"), ("S04", "a byte every tenth of a second")):
        catalogue(name, given, "408 at the deadline")


def test_S05_a_head_that_does_not_end_and_a_silent_socket(serve, monkeypatch, catalogue):
    assert webhttp.HEAD_SECONDS == 5
    monkeypatch.setattr(webhttp, "HEAD_SECONDS", 0.5)
    with serve() as server:
        for first in (b"", b"GET /livez HTTP/1.1\r\n", head("GET", "/livez") + b"GET /li"):
            start = time.monotonic()
            with connect(server.port) as connection:
                connection.sendall(first)
                connection.settimeout(0.1)
                closed = False
                while not closed:
                    assert time.monotonic() - start < 10
                    try:
                        if first:
                            connection.sendall(b"a")
                        closed = connection.recv(65536) == b""
                    except TimeoutError:
                        continue
                    except ConnectionError:
                        closed = True
            assert time.monotonic() - start < 8
        with connect(server.port) as connection:  # an upload that nobody asked for, without an end
            connection.sendall(head("GET", "/livez", Transfer_Encoding="chunked"))
            with pytest.raises(ConnectionError):
                for _ in range(100):
                    connection.sendall(b"1\r\nx\r\n")
                    time.sleep(0.05)
        alive(server)
    catalogue("S05", "a head that drips, a silent socket, a body that nobody asked for", "closed after five seconds")


@pytest.mark.alone
def test_S06_half_open_connections_delay_nobody(server, catalogue):
    def quickest():
        return min(timed(lambda: alive(server)) for _ in range(15))

    before = quickest()
    open_ones = [connect(server.port) for _ in range(40)]
    try:
        for number, connection in enumerate(open_ones):
            connection.sendall(head("POST", "/predict", 100_000, Content_Type=MULTIPART)[: None if number % 2 else 20])
        assert quickest() < 2 * before + 0.01
    finally:
        for connection in open_ones:
            connection.close()
    until(lambda: server.guard.held == 0)
    catalogue("S06", "40 half-open connections", "another request takes at most twice as long")


@pytest.mark.alone
def test_no_answer_on_a_kept_connection_waits_for_an_acknowledgement(server):
    """Systems acknowledge after 40 ms what is not followed by more."""
    with connect(server.port) as connection:

        def ask_again():
            connection.sendall(head("GET", "/livez"))
            assert answer(connection).body == b"ok"

        assert sorted(timed(ask_again) for _ in range(21))[10] < 0.02


def test_an_answer_that_takes_too_long_is_given_up(serve, slow):
    with serve(limits=Limits(answer_seconds=0.2)) as server:
        slow(server, 0.6)
        found = post(server.port)
        assert (found.status, found.json["code"]) == (503, "busy") and found.headers["retry-after"]
        until(lambda: server.guard.used == server.guard.held == 0)


def test_a_client_that_reads_nothing_is_cut_off(serve, monkeypatch):
    monkeypatch.setattr(webhttp, "STUCK_SECONDS", 0.3)
    with serve() as server, connect(server.port) as connection:
        connection.setblocking(False)
        asked = head("GET", "/docs") * 20
        start = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() - start < 20:
                try:
                    connection.send(asked)
                except BlockingIOError:
                    time.sleep(0.01)
        until(lambda: not server.connections)
        alive(server)


def test_more_connections_than_there_may_be_are_closed(serve, monkeypatch):
    monkeypatch.setattr(webhttp, "CONNECTIONS", 3)
    with serve() as server:
        kept = [connect(server.port) for _ in range(3)]
        until(lambda: len(server.connections) == 3)
        with pytest.raises((EOFError, ConnectionError)):
            ask(server.port, "GET", "/livez")
        for connection in kept:
            connection.sendall(head("GET", "/livez"))
            assert answer(connection).status == 200
            connection.close()
        until(lambda: not server.connections)
        alive(server)


def timed(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


# --- pictures ---


@pytest.mark.parametrize("name", samples.REFUSED)
def test_S07_what_is_no_picture(server, name, catalogue):
    given, _, content, code = samples.REFUSED[name]
    found = post(server.port, content)
    assert found.status == 422 and found.json["code"] == code and found.json["remedy"]
    catalogue("S07", given.partition(", named")[0], f"422 `{code}`")


@pytest.mark.parametrize("name", samples.BOMBS)
def test_S07_bombs_are_refused_at_once(server, name, catalogue):
    given, _, content, code = samples.BOMBS[name]
    if len(content) > 2**20 * 10:
        pytest.skip("larger than an upload may be")
    seconds = timed(lambda: post(server.port, content))
    found = post(server.port, content)
    assert found.status == 422 and found.json["code"] == code and seconds < 2
    catalogue("S07", given.partition(", named")[0], f"422 `{code}`")


def test_S08_a_legal_picture_of_too_many_pixels(server, catalogue):
    large = samples.encoded(Image.new("RGB", (7040, 7040), "pink"), compress_level=1)
    found = post(server.port, large)
    assert (found.status, found.json["code"]) == (422, "too_many_pixels") and len(large) < 2**20
    assert post(server.port, samples.encoded(Image.new("RGB", (6000, 4000), "pink"), compress_level=1)).status == 200
    catalogue(
        "S08",
        "a legal PNG of 49.6 megapixels",
        "422 `too_many_pixels`; 24 megapixels are decoded, in a process of their own, one picture at a time",
    )


@pytest.mark.parametrize("kind", ["text/html", None, "application/json", "image/jpeg", "a" * 300])
def test_S09_the_declared_type_of_a_picture_is_not_looked_at(server, kind, catalogue):
    assert ask(server.port, "POST", "/predict", form(SOUND, kind=kind)).json == post(server.port).json
    for whole in (
        "application/json",
        "text/plain",
        "image/png",
        "application/x-www-form-urlencoded",
        "multipart/mixed",
        "",
    ):
        found = ask(server.port, "POST", "/predict", SOUND, Content_Type=whole)
        assert (found.status, found.json["code"]) == (415, "no_form"), whole
    catalogue("S09", "a picture declared as HTML, JSON or nothing", "200: its bytes decide")
    catalogue("S09", "no multipart form", "415 `no_form`")


def test_S10_fields_that_are_missing_twice_or_others(server, catalogue):
    text = f'--{MARK}\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--{MARK}--\r\n'.encode()
    for given, body in (
        ("no field", f"--{MARK}--\r\n".encode()),
        ("no part at all", b""),
        ("a field of another name", form(SOUND, field="image")),
        ("two files", form(SOUND, SOUND)),
        ("a text for a file", text),
        ("1000 files", form(*[b"x"] * 1000)),
        ("1000 fields", text.replace(f"--{MARK}--".encode(), b"") + text * 999),
    ):
        found = ask(server.port, "POST", "/predict", body)
        assert found.status == 422 and found.json["code"] in ("bad_form", "bad_fields"), given
        catalogue("S10", given, f"422 `{found.json['code']}`")


@pytest.mark.parametrize(
    "kind",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "x" * 300,
        "multipart/form-data; boundary=\xff\xfe",
        'multipart/form-data; boundary="',
        "multipart/form-data; boundary=other",
        *[
            f"{MULTIPART}; charset={name}"
            for name in (
                "undefined",
                "idna",
                "base64",
                "rot13",
                "utf-16",
                "zlib",
                "hex",
                "unicode_escape",
                "punycode",
                "\x00",
                "nobody",
            )
        ],
    ],
)
def test_S11_bad_boundaries_and_character_sets(server, kind, catalogue):
    body = form(SOUND)
    with connect(server.port) as connection:
        connection.sendall(
            head("POST", "/predict", len(body)).removesuffix(b"\r\n")
            + b"Content-Type: "
            + kind.encode("latin-1")
            + b"\r\n\r\n"
            + body
        )
        assert answer(connection).status in (200, 400, 415, 422)
    for strange in (
        b"preamble\r\n" * 10_000 + body,
        body.replace(b"form-data", b"\xff"),
        body[:60],
        body[:-4],
        body.replace(b"\r\n\r\n", b"\r\n" + b"X-A: b\r\n" * 1000 + b"\r\n", 1),
    ):
        assert ask(server.port, "POST", "/predict", strange).status in (200, 400, 422)
    catalogue(
        "S11", "boundaries and character sets that are none, floods before and inside a form", "200, 400, 415 or 422"
    )


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "a\u202egnp.exe", "x" * 300, "Jane Doe 1970-01-01.png", "", "CON", "a\\r\\nSet-Cookie: b"],
)
def test_S12_the_name_of_a_file_is_nobodys_business(server, name, catalogue):
    found = ask(server.port, "POST", "/predict", form(SOUND, filename=name))
    if name:
        assert found.json == post(server.port).json and "set-cookie" not in found.headers
    bad = ask(server.port, "POST", "/predict", form(b"x", filename=name))
    assert bad.status == 422 and (not name or name.encode() not in bad.body)
    catalogue("S12", "names of files with paths, line ends, turned text, a patient", "not looked at, not sent back")


@pytest.mark.parametrize("given", ["<script>alert(1)</script>", "Jane-Doe-1970", "x" * 5000, "a b", "%0d%0a", "0" * 31])
def test_S13_an_id_that_could_carry_something_is_replaced(server, given, catalogue):
    found = ask(server.port, "GET", "/livez", X_Request_ID=given)
    assert given not in str(found.headers) and len(found.headers["x-request-id"]) == 32
    for good in ("0123456789abcdef" * 2, "01234567-89ab-cdef-0123-456789abcdef"):
        assert ask(server.port, "GET", "/livez", X_Request_ID=good).headers["x-request-id"] == good
    catalogue("S13", "an X-Request-ID that is no UUID", "replaced by one of the server's")


# --- load ---


@posix
@pytest.mark.alone
def test_S14_S16_overload_costs_no_capacity_and_a_second_signal_means_now(folder, tmp_path, pool, catalogue):
    seconds = 0.05
    with live.Process(folder, tmp_path / "log", "--units", "8", TEST_SECONDS=str(seconds)) as process:
        alive(process)

        def hammer(clients: int, pause: float, lasts: float) -> tuple[float, list]:
            end, start = time.monotonic() + lasts, time.monotonic()

            def client(_):
                found = []
                while time.monotonic() < end:
                    began = time.monotonic()
                    got = post(process.port)
                    found.append((got.status, got.headers.get("retry-after"), time.monotonic() - began))
                    time.sleep(pause if got.status == 503 else 0)
                return found

            everything = [one for many in pool.map(client, range(clients)) for one in many]
            return sum(status == 200 for status, *_ in everything) / (time.monotonic() - start), everything

        capacity, calm = hammer(2, 0, 2)
        goodput, busy = hammer(40, 0.15, 4)

        late = [pool.submit(post, process.port) for _ in range(8)]
        until(lambda: b"patholib_units_in_use 8" in ask(process.port, "GET", "/metrics").body)
        start = time.monotonic()
        process.terminate()
        until(lambda: ask(process.port, "GET", "/readyz").status == 503)
        process.terminate()
        assert process.wait() == 143 and time.monotonic() - start < 2
        concurrent.futures.wait(late)
    refused = [one for one in busy if one[0] == 503]
    assert {status for status, *_ in calm} == {200} and {status for status, *_ in busy} == {200, 503}
    assert len(busy) > 10 * capacity * 4  # offered
    assert goodput >= 0.95 * capacity, (goodput, capacity)
    assert all(1 <= int(after) <= 5 for _, after, _ in refused)
    assert sorted(took for *_, took in refused)[len(refused) * 99 // 100] < 1
    catalogue("S16", "SIGTERM twice", "ends at once, exit code 143")
    catalogue(
        "S14",
        "many times as many requests as can be answered",
        "as many answers as ever, at least 95 %; the rest 503 with Retry-After",
    )


def test_whoever_has_an_answer_is_not_counted_any_more():
    """A caller that asks one thing after another would else be told "busy" now and then."""
    in_use = []

    async def app(_scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"yes"})

    guard = Guard(app, Limits(units=1), lambda _scope: 1)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        in_use.append((message["type"], guard.used))

    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": []}
    asyncio.run(guard(scope, receive, send))
    assert in_use == [("http.response.start", 1), ("http.response.body", 0)] and guard.used == 0


def test_S15_work_whose_client_has_gone_is_not_done(server, slow, catalogue):
    slow(server, 0.3)
    before = server.service.computed
    connections = [connect(server.port) for _ in range(6)]
    for connection in connections:
        body = form(SOUND)
        connection.sendall(head("POST", "/predict", len(body), Content_Type=MULTIPART) + body)
    until(lambda: server.guard.used == 6)
    for connection in connections:
        connection.close()
    until(lambda: server.guard.used == 0)
    time.sleep(0.7)
    assert server.service.computed - before <= 1 and server.guard.held == 0
    catalogue("S15", "six clients that go away while they wait", "one is computed, five are dropped")


@posix
@pytest.mark.alone
def test_S16_what_is_admitted_is_answered_before_the_end(folder, tmp_path, pool, catalogue):
    with live.Process(folder, tmp_path / "log", TEST_SECONDS="0.2") as process:
        found = [pool.submit(post, process.port) for _ in range(6)]
        until(lambda: b"patholib_units_in_use 6" in ask(process.port, "GET", "/metrics").body)
        process.terminate()
        until(lambda: ask(process.port, "GET", "/readyz").status == 503)
        assert ask(process.port, "GET", "/livez").status == 200
        start = time.monotonic()
        assert [one.result().status for one in found] == [200] * 6
        assert process.wait() == 0 and time.monotonic() - start < 10
    catalogue("S16", "SIGTERM with six requests under way", "/readyz says 503, all six are answered, exit code 0")


def test_S17_alive_ready_and_healthy_are_three_things(serve, catalogue):
    with serve() as server:
        assert [ask(server.port, "GET", path).status for path in ("/livez", "/readyz", "/health")] == [200] * 3
        assert ask(server.port, "GET", "/health").json == {"status": "healthy", "model_loaded": True, "device": "cpu"}
        server.service.draining = True
        assert [ask(server.port, "GET", path).status for path in ("/livez", "/readyz", "/health")] == [200, 503, 200]
        assert ask(server.port, "GET", "/health").json["status"] == "not ready"
    catalogue("S17", "/livez, /readyz, /health", "it answers; it takes on work; as published: model loaded, device")


@linux
def test_S18_the_memory_does_not_grow(process, catalogue):
    """A short form; python tests/fuzz_server.py --uploads 0 --mixed 10000 holds 10,000 requests to 1 %."""
    assert fuzz_server.growth(process, 500) < 0.02
    catalogue(
        "S18",
        "500 requests of every kind; 10,000 by a command of its own",
        "the memory grows by less than 2 %; by less than 1 %",
    )


@linux
@pytest.mark.slow
def test_S18_the_memory_does_not_grow_over_10_000_requests(folder, tmp_path):
    with live.Process(folder, tmp_path / "log") as alone:
        assert fuzz_server.growth(alone, 10_000) < 0.01


def test_S19_fuzzed_uploads(server, catalogue):
    """Up to 5,000, for at most 10 seconds; python tests/fuzz_server.py --uploads 100000 does more."""
    counts, slowest, failures = fuzz_server.fuzz(server.port, 5000, seconds=10)
    assert failures == [] and slowest < fuzz_server.SLOW and set(counts) <= {200, 400, 415, 422}
    assert counts[422] > 200 and counts[200] > 50
    alive(server)
    catalogue(
        "S19",
        "thousands of damaged, cut, spliced and made-up uploads",
        "200, 400, 415 or 422, never 5xx, none above two seconds",
    )


def test_the_schema_holds_what_it_says(server, tmp_path):
    """Requests made up from the OpenAPI, good and bad: every answer has a status and a body that the schema names.

    No schema can say what a picture is, so that good data may be refused is not held against it.
    """
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            "from schemathesis.cli import schemathesis; schemathesis()",
            "run",
            f"http://127.0.0.1:{server.port}/openapi.json",
            "--max-examples",
            "8",
            "--seed",
            "0",
            "--phases",
            "examples,coverage,fuzzing",
            "--request-timeout",
            "20",
            "--exclude-checks",
            "positive_data_acceptance",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
    )
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-2000:]


# --- the decoding process ---


@posix
def test_S20_a_decoder_that_crashes_or_hangs_takes_nobody_along(catalogue):
    decode = Decoder(37, seconds=0.7)
    try:
        first = decode(SOUND)
        assert (first.pixels == decoding.to_square(decoding.read(SOUND), 37)).all() and first.size == (70, 46)
        for given, number in (("crashes (SIGSEGV)", 11), ("hangs", 19)):
            spare = decode.processes[1]
            os.kill(decode.processes[0], number)
            start = time.monotonic()
            with pytest.raises(PathoError) as stopped:
                decode(SOUND)
            assert stopped.value.code == "decoder_stopped" and time.monotonic() - start < 3
            assert decode.processes[0] == spare
            decode.seconds = live.SECONDS  # the spare may still be starting
            assert (decode(SOUND).pixels == first.pixels).all()
            decode.seconds = 0.7
            catalogue(
                "S20",
                f"a decoder that {given}",
                f"422 `{stopped.value.code}`; the next picture is decoded by another process",
            )
        assert decode.died == 2
    finally:
        decode.close()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"Jane Doe\xff\xfe", "starts as no known picture does"),
        (samples.PNG[:-40] + b"JANE" + samples.PNG[-36:], "is a damaged PNG file"),
        (b"II*\0\x08\0\0\0\xff\xffJane Doe", "starts like a TIFF file, but its header cannot be read"),
    ],
)
def test_S29_a_refusal_quotes_nothing_of_the_picture(server, content, reason):
    assert post(server.port, content).json["reason"] == reason


@linux
def test_S20_the_decoding_process_is_confined(decoder, catalogue):
    decoder(SOUND)
    found = Path(f"/proc/{decoder.processes[0]}/limits").read_text()
    limits = {line[:25].strip(): line[25:].split()[0] for line in found.splitlines()}
    assert limits["Max file size"] == limits["Max core file size"] == "0" and int(limits["Max address space"]) < 4e9
    assert sandbox.decoded(b"x", 37, "crop", 10**6)[0]["error"]["code"] == "not_an_image"
    catalogue("S20", "what the decoder may do", "write no file, take memory for one picture; it has no token")


def test_S20_memory_that_runs_out_is_the_pictures_fault(monkeypatch):
    def read(*_args, **_options):
        raise MemoryError

    monkeypatch.setattr(decoding, "read", read)
    assert sandbox.decoded(SOUND, 37, "crop", 10**6)[0]["error"]["code"] == "too_much_memory"


@posix
def test_S20_through_the_server(server, decoder):
    died = decoder.died
    os.kill(decoder.processes[0], 11)
    found = post(server.port)
    assert (found.status, found.json["code"]) == (422, "decoder_stopped") and decoder.died == died + 1
    alive(server)


# --- who may ask ---


def test_S21_without_the_token_nothing_is_read(serve, catalogue):
    with serve(token="s3cret-token", docs=False) as server:
        for given in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Bearer s3cret-toke"},
            {"Authorization": "Bearer"},
            {"Authorization": "Basic s3cret-token"},
        ):
            for path in ("/predict", "/predict/batch", "/explain"):
                with connect(server.port) as connection:
                    connection.sendall(head("POST", path, 5_000_000, Content_Type=MULTIPART, **given))
                    found = answer(connection)
                    assert (found.status, found.json["code"]) == (401, "no_token")
                    assert found.headers["www-authenticate"] == "bearer"
            for path in ("/model", "/metrics", "/nowhere"):
                assert ask(server.port, "GET", path, **given).status == 401
        for path in ("/", "/livez", "/readyz", "/health"):
            assert ask(server.port, "GET", path).status == 200
        for scheme in ("Bearer", "bearer", "BEARER", "Bearer "):  # in any case, RFC 9110 section 11.1
            assert post(server.port, Authorization=f"{scheme} s3cret-token").status == 200
        client = serving.Client(f"http://127.0.0.1:{server.port}", "s3cret-token")
        assert client.predict(SOUND) == post(server.port, Authorization="Bearer s3cret-token").json
    catalogue("C33", "Authorization: bearer, BEARER, two blanks", "200: the scheme in any case")
    catalogue("S21", "no token, or a wrong one", "401 before the body is read")


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--host", "0.0.0.0"], "unsafe_address"),
        (["--host", "::"], "unsafe_address"),
        (["--host", "example.org"], "unsafe_address"),
        (["--token", "short"], "bad_parameter"),
        (["--token", "with a blank in it"], "bad_parameter"),
        (["--origin", "*"], "bad_parameter"),
        (["--units", "0"], "bad_parameter"),
        (["--max-mib", "-1"], "bad_parameter"),
        (["--port", "99999"], "port_taken"),
    ],
)
def test_S22_what_is_not_safe_does_not_start(folder, options, code, capsys, monkeypatch, catalogue):
    monkeypatch.delenv(serving.TOKEN, raising=False)
    if code == "port_taken":
        monkeypatch.setattr("patholib.deploy.inference.Predictor", lambda *_, **__: live.predictor(folder))
    assert cli.main(["serve", str(folder), *options]) == 2
    assert capsys.readouterr().err.startswith(f"[{code}] ")
    if code == "unsafe_address":
        catalogue(
            "S22",
            "an address that other machines reach, without a token",
            "refused: `unsafe_address`, exit code 2, unless --insecure is given",
        )


def test_S23_pages_of_other_sites_may_not_ask(server, serve, catalogue):
    asked = {"Origin": "https://evil.example", "Access_Control_Request_Method": "POST"}
    for found in (post(server.port, Origin=asked["Origin"]), ask(server.port, "OPTIONS", "/predict", **asked)):
        assert not any(name.startswith("access-control") for name in found.headers)
    with serve(origins=("https://good.example",), token="s3cret-token") as allowing:
        found = ask(
            allowing.port,
            "OPTIONS",
            "/predict",
            Origin="https://good.example",
            Access_Control_Request_Method="POST",
            Access_Control_Request_Headers="authorization",
        )
        assert found.status == 200 and found.headers["access-control-allow-origin"] == "https://good.example"
        assert "access-control-allow-credentials" not in found.headers
        assert (
            post(allowing.port, Origin="https://good.example").headers["access-control-allow-origin"]
            == "https://good.example"
        )  # of a refusal too, or its reason is hidden
        assert "access-control-allow-origin" not in ask(allowing.port, "OPTIONS", "/predict", **asked).headers
    catalogue("S23", "a page of another site", "may not read an answer, unless its origin is named; never with cookies")


@pytest.mark.parametrize(
    ("given", "request_", "codes"),
    [
        ("HEAD", head("HEAD", "/predict"), {405}),
        ("OPTIONS", head("OPTIONS", "/predict"), {405}),
        ("PUT", head("PUT", "/predict", 0), {405}),
        ("TRACE", head("TRACE", "/"), {405}),
        ("a method of one's own", head("BREW", "/health"), {405}),
        ("GET of /predict", head("GET", "/predict"), {405}),
        ("an unknown path", head("GET", "/admin"), {404}),
        ("a path upwards", head("GET", "/../../etc/passwd"), {404}),
        ("a trailing slash", head("POST", "/predict/", 0), {404}),
        ("an absolute address", head("GET", "http://a/b"), {404}),
        ("a head of 64 kB", head("GET", "/livez", Cookie="x" * 65536), {400, 431}),
        ("a path of 64 kB", head("GET", "/" + "x" * 65536), {400, 431}),
        ("10,000 headers", head("GET", "/livez", **{f"X{i}": "1" for i in range(10_000)}), {400, 431}),
        ("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", {400}),
        ("HTTP/9.9", b"GET /livez HTTP/9.9\r\n\r\n", {200, 400}),
        ("no host", b"GET /livez HTTP/1.1\r\n\r\n", {400}),
        ("a length and chunks", head("POST", "/predict", 5, Transfer_Encoding="chunked") + b"0\r\n\r\n", {400}),
        ("an unknown encoding", head("POST", "/predict", Transfer_Encoding="gzip, chunked") + b"0\r\n\r\n", {400, 501}),
        ("a chunk without a size", head("POST", "/predict", Transfer_Encoding="chunked") + b"zz\r\n\r\n", {400}),
        (
            "a websocket",
            head(
                "GET",
                "/predict",
                Upgrade="websocket",
                Connection="Upgrade",
                Sec_WebSocket_Version="13",
                Sec_WebSocket_Key="x" * 24,
            ),
            {400, 404, 405, 426},
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_S24_odd_http(server, given, request_, codes, catalogue):
    """A head of more than 64 kB is refused as soon as so much is there: whoever still sends may lose the answer."""
    long = len(request_) > 65536
    with connect(server.port) as connection:
        try:
            connection.sendall(request_)
            found = answer(connection, given != "HEAD")
            assert found.status in codes
            seen = str(found.status)
        except (ConnectionError, EOFError):
            assert long
    alive(server)
    catalogue("S24", given, "431 or 400, or closed while the rest is still sent" if long else seen)


def test_S24_old_clients_and_those_in_a_hurry(server, catalogue):
    with connect(server.port) as connection:
        connection.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
        assert answer(connection).body == b"ok"
    body = form(SOUND)
    with connect(server.port) as connection:  # three requests at once, one after another answered
        connection.sendall(
            head("POST", "/predict", len(body), Content_Type=MULTIPART)
            + body
            + head("GET", "/livez")
            + head("GET", "/health")
        )
        found = b""
        while found.count(b"HTTP/1.1 200") < 3:
            found += connection.recv(65536)
    with connect(server.port) as connection:  # as curl does with what is large
        connection.sendall(head("POST", "/predict", len(body), Content_Type=MULTIPART, Expect="100-continue"))
        assert connection.recv(65536).startswith(b"HTTP/1.1 100")
        connection.sendall(body)
        assert answer(connection).status == 200
    catalogue("S24", "HTTP/1.0, pipelining, Expect: 100-continue", "answered")


# --- answers that can be relied on ---


def test_S25_an_answer_depends_on_nothing_but_the_picture(server, pool, catalogue):
    contents = [samples.encoded(samples.picture(seed)) for seed in range(6)]
    for query in ("", "?tta=true"):
        jobs = [(content, f"/predict{query}") for content in contents]
        alone = [post(server.port, *job).body for job in jobs]
        together = list(pool.map(lambda job: until_taken(server.port, *job), jobs))
        batch = ask(server.port, "POST", f"/predict/batch{query}", form(*reversed(contents))).json["answers"]
        assert alone == together and [json.loads(one) for one in alone] == batch[::-1] and len(set(alone)) == 6
    catalogue("S25", "the same picture alone, among others, in a batch", "the same bytes; TTA too, its views are fixed")


def test_S26_a_model_that_gives_no_numbers(serve, capsys, folder, monkeypatch, catalogue):
    with serve() as server:
        server.predictor._logits = lambda views: np.full((len(views), 2), np.nan, np.float32)
        for path in ("/predict", "/predict/batch", "/explain"):
            found = post(server.port, path=path)
            assert (found.status, found.json["code"]) == (500, "model_output") and b"NaN" not in found.body
        assert ask(server.port, "GET", "/readyz").status == 503 and ask(server.port, "GET", "/livez").status == 200
    monkeypatch.setattr("patholib.deploy.inference.Predictor", lambda *_, **__: server.predictor)
    assert cli.main(["serve", str(folder), "--port", "0"]) == serving.BAD_MODEL
    assert capsys.readouterr().err.startswith("[model_output]")
    catalogue(
        "S26",
        "a model whose output is not finite",
        "500 `model_output`, and /readyz says 503; found at the start: exit code 78",
    )


def test_a_model_that_cannot_be_used_ends_the_process_before_it_listens(tmp_path, folder, capsys):
    (tmp_path / "model.pt").write_bytes(b"\x80\x04.")
    for given in ([str(tmp_path / "nowhere")], [str(tmp_path / "model.pt")], [str(folder), "--sha256", "0" * 64]):
        assert cli.main(["serve", *given, "--port", "0"]) == serving.BAD_MODEL == 78
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and err.startswith("[")


SECRET = "Jane-Doe-MRN-4711"


@posix
def test_S27_S28_S29_S34_nothing_that_is_sent_is_kept_or_sent_back(folder, tmp_path, catalogue):
    """On a disk that cannot be written to, without a home, in another locale and with a strict umask."""
    exif = Image.Exif()
    exif[0x010E] = exif[0x9286] = SECRET
    tagged = samples.encoded(samples.picture(), "JPEG", exif=exif)
    log, before = tmp_path / "log", os.umask(0o077)
    with live.Process(
        folder,
        log,
        TEST_READ_ONLY="1",
        LC_ALL="C",
        LANG="tr_TR",
        HOME="/nowhere",
        TMPDIR="/nowhere",
        TZ="Pacific/Kiritimati",
    ) as process:
        port, secret = process.port, SECRET.encode()
        started = process.said
        odd = dict.fromkeys(("X_Patient", "X_Request_ID", "Cookie", "User_Agent", "Referer"), SECRET)
        large = tagged + secret * 100_000  # 1.7 MB: what is larger than 1 MB would go to disk
        found = [
            ask(port, "POST", path, body, **odd)
            for path in (
                "/predict",
                "/explain",
                "/predict/batch",
                "/model",
                f"/{SECRET}",
                f"/predict?{SECRET}={SECRET}",
            )
            for body in (
                form(tagged, filename=SECRET),
                form(large, filename=SECRET),
                form(secret * 99),
                form(secret, field=SECRET, filename=SECRET),
                secret,
                form(samples.PNG[:60] + secret),
                form(samples.PNG[:37] + secret + samples.PNG[37:]),
                form(samples.JPEG[:99] + secret),
                form(b"II*\0\x08\0\0\0\x01\0" + secret * 9),
                form(b"RIFF0000WEBP" + secret * 9),
            )
        ]
        found += [ask(port, method, f"/{SECRET}", **odd) for method in ("GET", "PUT", "HEAD")]
        found += [
            ask(port, "POST", "/predict", form(tagged), Content_Type=f"multipart/form-data; boundary={SECRET}"),
            ask(port, "POST", "/predict", form(tagged), Content_Type=f"{MULTIPART}; charset={SECRET}"),
        ]
        with connect(port) as connection:
            connection.sendall(b"GET " + secret + b" " + secret + b"\r\n\r\n")
            found.append(answer(connection))
        assert {one.status for one in found} >= {200, 400, 404, 405, 422} and max(one.status for one in found) < 500
        assert not any(secret in one.body or SECRET.lower() in str(one.headers) for one in found)
        process.terminate()
        assert process.wait() == 0
        log = process.said
    os.umask(before)
    assert SECRET not in log and "WRITES" not in log.removeprefix(started), log
    lines = [json.loads(line) for line in log.splitlines()[1:] if line.startswith("{")]
    requests = [line for line in lines if line["event"] == "request"]
    assert len(requests) >= len(found) - 1
    assert all(
        set(line) == {"time", "level", "event", "id", "method", "route", "status", "bytes", "seconds"}
        for line in requests
    )
    assert {line["route"] for line in requests} <= {*webapp.ROUTES, "other"}
    for name, given, what in (
        ("S27", "logs under all of this", "JSON lines without names, headers, queries, pixels or camera data"),
        ("S28", "files while uploads are answered", "none, also of uploads above 1 MB"),
        ("S29", "the answer to a bad upload", "quotes nothing of it"),
        (
            "S34",
            "no home, no temporary folder, another locale, a strict umask, a disk that is read-only",
            "starts and serves",
        ),
    ):
        catalogue(name, given, what)


def test_S27_an_error_is_logged_without_its_text(server, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError(SECRET)

    monkeypatch.setattr(server.service, "_answer", broken)
    caplog.set_level("ERROR", "patholib.server")
    found = post(server.port)
    assert (found.status, found.json["code"]) == (500, "internal")
    until(lambda: caplog.records)
    (line,) = [json.loads(JsonLines().format(record)) for record in caplog.records]
    assert line["error"] == "RuntimeError" and line["id"] == found.headers["x-request-id"]
    assert "test_server.py" in str(line["at"]) and SECRET not in str(line) + found.body.decode()


def test_S30_the_documentation_is_off_with_a_token(server, serve, catalogue):
    page = ask(server.port, "GET", "/docs").body.decode()
    schema = ask(server.port, "GET", "/openapi.json").json
    assert "curl -X POST localhost:8000/predict -F file=@sample.png" in page
    assert "http" not in page.replace("http-equiv", "")
    assert set(schema["paths"]) == set(webapp.ROUTES) - {"/", "/docs", "/openapi.json"}
    with serve(token="s3cret-token", docs=False) as closed:
        for path in ("/docs", "/openapi.json"):
            assert ask(closed.port, "GET", path, Authorization="Bearer s3cret-token").status == 404
    catalogue("S30", "/docs and /openapi.json", "off with a token; nothing from other sites")


def test_S31_heatmaps_count_for_several(serve, slow, pool, catalogue):
    with serve(limits=Limits(units=8)) as server:
        slow(server, 0.3)
        found = [pool.submit(post, server.port, SOUND, "/explain") for _ in range(6)]
        statuses = sorted(one.result().status for one in found)
        assert statuses == [200, 200, 503, 503, 503, 503]
        assert webapp.cost({"method": "POST", "path": "/predict", "query_string": b"tta=true&explain=true"}) == 8
    catalogue("S31", "a flood of heatmaps", "each counts as four predictions; 503 beyond the limit")


def test_S32_heatmaps_and_predictions_at_once(server, pool, catalogue):
    contents = [samples.encoded(samples.picture(seed)) for seed in range(4)]
    jobs = [(content, path) for content in contents for path in ("/predict", "/explain")]
    alone = [post(server.port, *job).body for job in jobs]
    for _ in range(3):
        again = [pool.submit(until_taken, server.port, *job) for job in jobs]
        assert [one.result() for one in again] == alone
    assert all(parameter.grad is None for parameter in server.predictor.model.parameters())
    catalogue("S32", "heatmaps and predictions at once", "the same bytes as alone; no gradient is left behind")


def until_taken(port, content, path) -> bytes:
    for _ in range(200):
        found = post(port, content, path)
        if found.status != 503:
            return found.body
        time.sleep(0.05)
    raise AssertionError("never taken")


def test_S33_another_model_means_another_server(server, catalogue):
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert ask(server.port, method, "/model", b"{}").status == 405
    catalogue("S33", "exchanging the model of a running server", "not offered: 405")


# --- how it is called ---


def test_a_notebook_starts_calls_and_stops_a_server(tmp_path, monkeypatch):
    """With the real network, since nothing in that process is made smaller."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    (tmp_path / "a.png").write_bytes(SOUND)
    export.save_model(tmp_path / "model", building.build(tiny.TINY).state_dict(), tiny.TINY, run="a run")
    with serving.running(tmp_path / "model", "--engine", "torch", token="s3cret-token") as client:
        said = client.predict(tmp_path / "a.png", explain=True)
        assert (
            said["probabilities"]
            == Predictor(tmp_path / "model", "torch").answer(Predictor(tmp_path / "model", "torch").read(SOUND)).probs
        )
        assert said["heatmap"]["of"] == said["decision"]
        assert Image.open(io.BytesIO(client.explain(SOUND))).size == (32, 32)
        assert client.get("/health")["model_loaded"] and client.get("/livez") == "ok"
        with pytest.raises(PathoError, match="not_an_image"):
            client.predict(b"no picture")
    with pytest.raises(PathoError, match="no_answer"):
        client.get("/health")


def test_a_server_that_does_not_start_says_why(folder):
    with pytest.raises(PathoError, match=r"not_started.*bad_parameter"), serving.running(folder, "--units", "0"):
        raise AssertionError("it has started")


def test_without_the_extra_the_remedy_is_named(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "patholib.deploy.server.webapp", None)
    monkeypatch.delattr("patholib.deploy.server.webapp")
    assert cli.main(["serve", str(folder)]) == 2
    assert 'pip install "patholib[serve]"' in capsys.readouterr().err


def test_the_page_asks_nothing_of_other_sites(server):
    found = ask(server.port, "GET", "/")
    policy = found.headers["content-security-policy"]
    assert "unsafe" not in policy and "default-src 'none'" in policy and policy.count("sha256-") == 2
    page = found.body.decode()
    assert "http" not in page and "style=" not in page and "onclick" not in page and "innerHTML" not in page
