"""The service and odd requests: each has its own reason, nothing is logged, and no caller keeps the others waiting."""

from __future__ import annotations

import asyncio
import base64
import gzip
import socket
import threading
import time

import live
import numpy as np
import pytest
import samples
from live import MARK, MULTIPART, SOUND, answer, ask, form, head, post
from starlette import formparsers
from starlette.requests import Request

from patholib import cli
from patholib.base.errors import PathoError
from patholib.deploy.server import webapp, webroutes

pytestmark = pytest.mark.heavy

GZIP = gzip.compress(form(SOUND))
PACKED = {"Content_Encoding": "gzip"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return live.model(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def server(folder):
    with live.threaded(live.predictor(folder)) as found:
        yield found


def field(name: str, value: bytes, more: str = "") -> bytes:
    return f'--{MARK}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"


END = f"--{MARK}--\r\n".encode()
BASE64 = base64.b64encode(SOUND)
ODD = {  # what is sent: (body, path, headers, status, code, a word of the reason)
    "a picture in base64": (form(BASE64), "/predict", {}, 422, "not_an_image", "base64"),
    "a data URL": (form(b"data:image/png;base64," + BASE64), "/predict", {}, 422, "not_an_image", "data URL"),
    "multipart without a boundary": (
        form(SOUND),
        "/predict",
        {"Content_Type": "multipart/form-data"},
        422,
        "bad_form",
        "boundary",
    ),
    "a gzip body": (GZIP, "/predict", PACKED, 415, "packed", "compressed"),
    "17 files in a batch": (form(*[SOUND] * 17), "/predict/batch", {}, 422, "bad_form", "more than 16 files"),
    "two files": (form(SOUND, SOUND), "/predict", {}, 422, "bad_form", "more than 1 file"),
    "a text field": (field("file", b"sample.png") + END, "/predict", {}, 422, "bad_form", "text and no file"),
    "a form that is cut off": (form(SOUND, SOUND)[:-200], "/predict/batch", {}, 422, "bad_form", "cut off"),
    "another field": (form(SOUND, field="image"), "/predict", {}, 422, "bad_fields", "not called file"),
    "a raw picture": (SOUND, "/predict", {"Content_Type": "image/png"}, 415, "no_form", "no multipart form"),
}


@pytest.mark.parametrize("what", ODD)
def test_c34_every_odd_upload_has_its_own_reason(server, catalogue, what):
    body, path, headers, status, code, word = ODD[what]
    found = ask(server.port, "POST", path, body, **headers)
    assert (found.status, found.json["code"]) == (status, code) and word in found.json["reason"]
    assert len({row[5] for row in ODD.values()}) == len(ODD)
    catalogue("C34", f"upload: {what}", f"{status} `{code}`")


CUT = form(SOUND, SOUND)
FORMS = {  # by how many pictures are taken from it; None: it is refused
    "sound": (CUT, 2),
    "without its last line end": (CUT[:-2], 2),
    "with bytes behind its end": (CUT + b"more", 2),
    "cut off in the second picture": (CUT[:-200], None),
    "cut off before the end mark": (CUT[:-4], None),
    "cut off in a head": (CUT[:60], None),
    "with a field before": (field("x", b"1") + CUT, None),
    "with another name": (form(SOUND, SOUND, field="image"), None),
    "with another name before": (form(SOUND, field="image").removesuffix(END) + CUT, None),
    "of 17 pictures": (form(*[SOUND] * 17), None),
}


@pytest.mark.parametrize("what", FORMS)
def test_c34_every_file_of_a_form_is_taken_or_the_form_refused_and_all_are_closed(monkeypatch, what):
    made, (body, count) = [], FORMS[what]
    spooled = formparsers.SpooledTemporaryFile
    monkeypatch.setattr(formparsers, "SpooledTemporaryFile", lambda **how: made.append(spooled(**how)) or made[-1])

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", MULTIPART.encode())]}
    asked = webroutes.uploads(Request(scope, receive), most=16, body=10**7)
    if count is None:
        with pytest.raises(webroutes.Refusal):
            asyncio.run(asked)
    else:
        assert asyncio.run(asked) == [SOUND] * count
    assert all(file.closed for file in made)


def test_c35_nothing_of_an_upload_is_in_any_log(folder, tmp_path, catalogue):
    secret = b"SECRET-4711"
    with live.Process(folder, tmp_path / "log", TEST_LOG="1") as process:
        for body, headers in (
            (GZIP, {}),
            (GZIP, PACKED),
            (secret * 50, {}),
            (field("x", secret) + END, {}),
            (form(secret, filename=secret.decode()), {}),
            (form(SOUND)[:-20] + secret, {}),
            (f"--{MARK}\r\n{secret.decode()}: {secret.decode()}\r\n\r\n".encode() + END, {}),
            (form(SOUND), {"Connection": "Upgrade", "Upgrade": "h2c", "HTTP2_Settings": secret.decode()}),
            (form(SOUND), {"Connection": "Upgrade", "Upgrade": "websocket"}),
        ):
            assert ask(process.port, "POST", "/predict", body, **headers).status < 500
        said = process.said
    assert "SECRET" not in said and "4711" not in said and "pip install" not in said
    assert "boundary character" not in said and "Did not find" not in said
    catalogue("C35", "gzip body, torn form, upgrade to h2c or websocket", "nothing of it in the log, and no advice")


@pytest.mark.parametrize("query", ["?%74ta=true&%65xplain=true", "?tta=true&explain=true", "?tt%61=1&explain=0"])
def test_c54_admission_reads_a_query_as_the_routes_do(catalogue, query):
    scope = {"method": "POST", "path": "/predict", "query_string": query[1:].encode()}
    assert webapp.cost(scope) == 8
    assert webapp.cost(scope | {"query_string": b"x=tta&y=explain"}) == 1
    if "%65" in query:
        catalogue("C54", "query with names in percent codes", "costs what it asks for")


HOSTS = {  # Host: status
    **dict.fromkeys(("evil.com", "evil.com:80", "127.0.0.1.evil.com", "10.0.0.1", "localhost."), 403),
    **dict.fromkeys(("localhost", "localhost:8000", "LOCALHOST", "127.0.0.1:1", "[::1]:8000"), 200),
}


@pytest.mark.parametrize(("host", "status"), HOSTS.items())
def test_c55_on_loopback_only_names_of_this_machine_are_hosts(server, catalogue, host, status):
    body = form(SOUND)
    with live.connect(server.port) as connection:
        request = head("POST", "/predict", len(body), Content_Type=MULTIPART).replace(b"localhost", host.encode(), 1)
        connection.sendall(request + body)
        found = answer(connection)
    assert found.status == status and (status == 200 or found.json["code"] == "foreign_host")
    if host == "evil.com":
        catalogue("C55", "Host of another site, on a port of this machine", "403 `foreign_host`")


def test_c55_a_page_of_another_site_is_refused(server, folder, catalogue):
    for origin in ("https://evil.com", "http://localhost:1", "null", "file://"):
        found = post(server.port, Origin=origin)
        assert (found.status, found.json["code"]) == (403, "foreign_origin")
    assert post(server.port, Origin="http://localhost").status == 200  # its own page: the Host of `live.head`
    with live.threaded(live.predictor(folder), origins=("https://good.example",)) as other:
        assert post(other.port, Origin="https://good.example").status == 200
        assert post(other.port, Origin="https://evil.com").status == 403
    catalogue("C55", "POST from a page of another site", "403 `foreign_origin`")


def test_c40_a_prefix_that_a_proxy_leaves_in_the_path_is_taken_off(folder, catalogue):
    with live.threaded(live.predictor(folder), root_path="/models/breast") as server:
        for path in ("/models/breast/health", "/health"):  # whether the proxy strips it or not
            assert ask(server.port, "GET", path).status == 200
        assert post(server.port, path="/models/breast/predict?tta=true").json["tta"] is True
        assert ask(server.port, "GET", "/models/breast").headers["location"] == "/models/breast/"
        assert b"<html" in ask(server.port, "GET", "/models/breast/").body
        assert ask(server.port, "GET", "/models/breastplate/health").status == 404
    catalogue("C40", "serve --root-path, behind a proxy that leaves the prefix in the path", "answered")


@pytest.mark.parametrize("path", ["models", "/a b", "/a/../b?", "http://x"])
def test_c40_a_prefix_that_is_no_path_is_refused(folder, path, capsys):
    assert cli.main(["serve", str(folder), "--root-path", path]) == cli.UNREADABLE
    assert "--root-path" in capsys.readouterr().err


def test_c36_json_with_a_byte_order_mark_is_read_and_utf_16_is_named(tmp_path, catalogue):
    from patholib.base import files

    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"epochs": 3}')
    assert files.read_json(tmp_path / "a.json") == {"epochs": 3}
    (tmp_path / "b.json").write_bytes('{"epochs": 3}'.encode("utf-16"))
    with pytest.raises(PathoError, match="UTF-16") as caught:
        files.read_json(tmp_path / "b.json")
    assert caught.value.code == "bad_json" and "Restore" not in caught.value.remedy
    catalogue("C36", "JSON with a byte order mark", "accepted")
    catalogue("C36", "JSON in UTF-16", caught.value)


def from_address(port: int, body: bytes, address: str) -> live.Answer:
    with socket.create_connection(("127.0.0.1", port), 60, (address, 0)) as connection:
        connection.sendall(head("POST", "/predict", len(body), Content_Type=MULTIPART) + body)
        return answer(connection)


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["a progressive JPEG with its last scan 1,000 times", "a slow but legal picture"])
def test_c53_eight_clients_with_costly_pictures_do_not_keep_an_honest_one_waiting(server, catalogue, kind):
    legal = samples.encoded(samples.picture(2, 5800, 4000), "JPEG", progressive=True, quality=95)
    body = form(samples.many_scans(1000, 4800) if "1,000" in kind else legal)
    stop, statuses = threading.Event(), []

    def attack():
        while not stop.is_set():
            statuses.append(from_address(server.port, body, "127.0.0.2").status)

    threads = [threading.Thread(target=attack) for _ in range(8)]
    for thread in threads:
        thread.start()
    took = []
    try:
        time.sleep(3)
        for _ in range(30):
            began = time.monotonic()
            assert from_address(server.port, form(SOUND), "127.0.0.3").status == 200
            took.append(time.monotonic() - began)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    print(kind, {s: statuses.count(s) for s in set(statuses)}, "p95", np.quantile(took, 0.95))
    assert np.quantile(took, 0.95) < 2
    assert set(statuses) <= {422, 200, 503}
    catalogue("C53", f"eight clients that send {kind}", "another caller is answered within 2 seconds (95 %)")


def test_c53_the_time_of_decoding_is_charged_to_the_caller(server):
    decoders = server.service.decoders
    assert len(decoders.all) == 2
    before = decoders.taken("127.0.0.1")
    post(server.port, samples.encoded(samples.picture(2, 3000, 2000)))
    assert decoders.taken("127.0.0.1") > before
