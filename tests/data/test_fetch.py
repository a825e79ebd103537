"""A download is whole or absent, whatever the network does; against a server on this machine that misbehaves (N)."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from origin import Answer, origin

from patholib.base import files, locks, progress
from patholib.base.errors import PathoError
from patholib.data import fetch
from patholib.data.fetch import Remote

ROOT = Path(__file__).parents[2]
CONTENT = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Pauses become hundredths of a second, and no proxy stands between."""
    monkeypatch.setattr(fetch, "PAUSE", 0.01)
    monkeypatch.setattr(fetch, "LONGEST_PAUSE", 0.02)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def get(server, folder, **settings) -> Path:
    known = {name: settings.pop(name) for name in ("size", "sha256") if name in settings}
    return fetch.fetch(Remote(server.url(), "set.bin", **known), folder, **settings)


def refusal(code: str, server, folder, **settings) -> PathoError:
    with pytest.raises(PathoError) as stopped:
        get(server, folder, **settings)
    assert stopped.value.code == code
    return stopped.value


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --------------------------------------------------------------------------------------------------- going on


def test_five_dropped_connections_cost_no_byte_twice(tmp_path, catalogue, capsys):
    drops = [Answer(CONTENT, drop=count) for count in (1, 70_000, 29_999, 100_000, 50_000)]
    with origin(*drops, Answer(CONTENT)) as server:
        path = get(server, tmp_path, sha256=SHA256)
    assert path.read_bytes() == CONTENT and left(tmp_path) == {"set.bin"}
    assert server.spans == [
        (0, 1),
        (1, 70_001),
        (70_001, 100_000),
        (100_000, 200_000),
        (200_000, 250_000),
        (250_000, 300_000),
    ]
    assert {one.headers.get("if-range") for one in server.asked[1:]} == {'"first"'}
    out = capsys.readouterr().out
    print(out)  # for whoever looks on with -s
    assert out.count("the connection ended early, at ") == 5 and f"300,000 bytes, SHA-256 {SHA256}" in out
    catalogue("N01", "a download whose connection drops five times", "whole, and no byte was asked for twice")


@pytest.mark.parametrize("seed", range(12))
def test_dropped_anywhere_it_ends_with_the_same_bytes(tmp_path, seed):
    """Servers with and without Range, in any order."""
    draw = random.Random(seed)
    answers = [Answer(CONTENT, drop=draw.randrange(1, 290_000), ranges=draw.random() < 0.5) for _ in range(6)]
    with origin(*answers, Answer(CONTENT, ranges=draw.random() < 0.5)) as server:
        assert get(server, tmp_path).read_bytes() == CONTENT


def test_a_server_without_range_starts_over(tmp_path, catalogue):
    with origin(Answer(CONTENT, drop=200_000, ranges=False), Answer(CONTENT, ranges=False)) as server:
        assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.spans == [(0, 200_000), (0, 300_000)]
    catalogue("N02", "a server that knows no ranges", "started over after each drop")


def test_without_a_version_nothing_is_glued_together(tmp_path, catalogue):
    with origin(Answer(OTHER, drop=200_000, etag=None), Answer(CONTENT, etag=None)) as server:
        assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.spans == [(0, 200_000), (0, 300_000)] and "range" not in server.asked[1].headers
    catalogue("N02", "a server that does not say which version it gives", "started over after each drop")


@pytest.mark.parametrize("heeds", [True, False])
@pytest.mark.parametrize("length", [300_000, 299_999])
def test_a_file_that_changed_meanwhile_starts_over(tmp_path, catalogue, heeds, length):
    """Also where the server gives its second half to whoever asks for any."""
    fresh = Answer(OTHER[:length], etag='"second"', heeds_if_range=heeds)
    with origin(Answer(CONTENT, drop=200_000), fresh) as server:
        assert get(server, tmp_path).read_bytes() == OTHER[:length]
    assert sum(one.start == 0 for one in server.asked) == 2
    catalogue("N03", "a file that changes between two halves", "started over: halves of two versions are never joined")


def test_a_weak_etag_is_no_version_but_a_date_is(tmp_path):
    date = "Wed, 01 Jan 2025 00:00:00 GMT"
    answers = [Answer(CONTENT, drop=1000, etag='W/"weak"', modified=date), Answer(CONTENT, etag='W/"w"', modified=date)]
    with origin(*answers) as server:
        assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked[1].headers["if-range"] == date and server.spans == [(0, 1000), (1000, 300_000)]


def test_a_file_that_became_shorter_than_what_is_there_starts_over(tmp_path):
    unsatisfiable = Answer(b"", status=416)
    with origin(Answer(CONTENT, drop=200_000), unsatisfiable, Answer(OTHER[:1000], etag='"second"')) as server:
        assert get(server, tmp_path).read_bytes() == OTHER[:1000]


def killed_after(url: str, folder: Path, count: int) -> int:
    """Fetches in a process of its own, killed once `count` bytes are there; returns how many were."""
    code = f"from patholib.data import fetch; fetch.fetch(fetch.Remote({url!r}, 'set.bin'), {str(folder)!r})"
    part = folder / "set.bin.part"
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not (part.is_file() and part.stat().st_size >= count):
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.005)
    child.kill()
    assert child.wait() != 0
    return part.stat().st_size


def test_killed_in_the_middle_the_next_call_goes_on(tmp_path, catalogue):
    with origin(Answer(CONTENT, piece=10_000, pause=0.01), Answer(CONTENT)) as server:
        there = killed_after(server.url(), tmp_path, 100_000)
        assert not (tmp_path / "set.bin").exists()
        assert get(server, tmp_path, sha256=SHA256[:8]).read_bytes() == CONTENT
    assert server.spans[1] == (there, 300_000) and left(tmp_path) == {"set.bin"}
    catalogue("N04", "a download whose process is killed (SIGKILL)", "the next call resumes")


def test_an_interrupt_leaves_what_the_next_call_goes_on_with(tmp_path, monkeypatch):
    came = []

    def interrupted(_meter, count=1):
        came.append(count)
        if sum(came) >= 100_000:
            raise KeyboardInterrupt

    with origin(Answer(CONTENT, piece=10_000, pause=0.001), Answer(CONTENT)) as server:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(progress.tqdm, "update", interrupted)
            get(server, tmp_path)
        there = (tmp_path / "set.bin.part").stat().st_size
        assert there and get(server, tmp_path).read_bytes() == CONTENT
        assert server.spans[1][0] == there


def test_killed_between_the_last_byte_and_the_name_nothing_is_fetched_again(tmp_path, monkeypatch):
    with origin(Answer(CONTENT)) as server:
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(fetch._Part, "finish", lambda part: 1 / 0)
            get(server, tmp_path)
        assert not (tmp_path / "set.bin").exists()
        assert get(server, tmp_path).read_bytes() == CONTENT and len(server.asked) == 1


ELSEWHERE = '{"url": "http://other.example/set.bin", "version": "\\"first\\"", "bytes": 300000}'


@pytest.mark.parametrize("note", ["", "[]", "{", ELSEWHERE])
def test_a_part_of_which_nothing_is_known_is_not_trusted(tmp_path, note):
    (tmp_path / "set.bin.part").write_bytes(OTHER[:1000])
    (tmp_path / "set.bin.part.json").write_text(note, encoding="utf-8")
    with origin(Answer(CONTENT)) as server:
        assert get(server, tmp_path).read_bytes() == CONTENT and server.spans == [(0, 300_000)]


# ------------------------------------------------------------------------------------------------- whole, or not


def test_what_is_there_is_not_fetched(tmp_path, capsys):
    with origin(Answer(CONTENT)) as server:
        path = get(server, tmp_path)
        assert f"SHA-256 {SHA256}" in capsys.readouterr().out
        stamp = path.stat().st_mtime_ns
        assert get(server, tmp_path) == path and len(server.asked) == 1 and path.stat().st_mtime_ns == stamp
        assert "is there already" in capsys.readouterr().out and left(tmp_path) == {"set.bin"}


def test_a_wrong_checksum_is_not_used_and_the_next_call_fetches_anew(tmp_path, catalogue):
    with origin(Answer(OTHER), Answer(CONTENT)) as server:
        error = refusal("download_damaged", server, tmp_path, sha256=SHA256)
        assert not (tmp_path / "set.bin").exists()
        catalogue("N05", "a file whose SHA-256 is not the one its makers state", error)
        assert get(server, tmp_path, sha256=SHA256).read_bytes() == CONTENT
        (tmp_path / "set.bin").write_bytes(OTHER)
        assert "Move it away" in refusal("download_damaged", server, tmp_path, sha256=SHA256).remedy
        assert (tmp_path / "set.bin").read_bytes() == OTHER, "a file of the user's is never moved"


def test_another_size_than_was_known_is_refused_before_a_byte_is_kept(tmp_path, catalogue):
    with origin(Answer(CONTENT)) as server:
        error = refusal("download_changed", server, tmp_path, size=300_001)
        assert not (tmp_path / "set.bin.part").exists()
        catalogue("N05", "a file of another size than was known", error)
        assert get(server, tmp_path, size=300_000).read_bytes() == CONTENT


def test_two_calls_do_not_write_one_file(tmp_path, catalogue):
    lock = locks.take(tmp_path / ".set.bin.lock")
    with origin(Answer(CONTENT)) as server:
        error = refusal("download_locked", server, tmp_path)
        assert f"process {os.getpid()}" in error.reason and not server.asked
        catalogue("N06", "a second call while the first one runs", error)
        threading.Timer(0.3, lock.close).start()
        assert get(server, tmp_path, wait=True).read_bytes() == CONTENT


def test_of_two_that_wait_one_fetches(tmp_path):
    with origin(Answer(CONTENT, piece=30_000, pause=0.02)) as server:
        threads = [threading.Thread(target=get, args=(server, tmp_path), kwargs={"wait": True}) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(server.asked) == 1 and (tmp_path / "set.bin").read_bytes() == CONTENT


# ------------------------------------------------------------------------------------------- servers and networks


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_what_is_not_given_out_is_refused_at_once(tmp_path, catalogue, status):
    with origin(Answer(b"no", status=status)) as server:
        error = refusal("download_refused", server, tmp_path)
    assert len(server.asked) == 1 and str(status) in error.reason and left(tmp_path) == set()
    catalogue("N07", f"a server that answers {status}", f"refused at once: `{error.code}`")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_is_busy_is_asked_again(tmp_path, catalogue, status):
    with origin(Answer(b"busy", status=status), Answer(CONTENT)) as server:
        assert get(server, tmp_path).read_bytes() == CONTENT
    catalogue("N07", f"a server that answers {status}", "asked again after a pause")


def test_pauses_grow_and_it_gives_up_when_nothing_new_comes(tmp_path, monkeypatch, catalogue):
    slept = []
    monkeypatch.setattr(fetch, "PAUSE", 1.0)
    monkeypatch.setattr(fetch, "LONGEST_PAUSE", 6.0)
    monkeypatch.setattr(time, "sleep", lambda seconds: slept.append(seconds) if seconds else None)
    with origin(Answer(CONTENT, drop=1000), Answer(CONTENT, drop=500), Answer(CONTENT, drop=0)) as server:
        error = refusal("download_failed", server, tmp_path, patience=5)
    assert slept == [1, 1, 2, 4, 6, 6], "the pause starts anew where bytes came"
    assert len(server.asked) == 7 and "1,500 of 300,000 bytes are there and are kept" in error.remedy
    catalogue(
        "N08",
        "a connection that brings nothing more",
        f"tried again after growing pauses, then `{error.code}`; what is there is kept",
    )


def test_a_server_that_stops_short_for_ever_is_given_up(tmp_path):
    """Neither Range nor a version: each try ends at the same byte, which is no progress."""
    with origin(Answer(CONTENT, drop=100_000, ranges=False, etag=None)) as server:
        refusal("download_failed", server, tmp_path, patience=4)
    assert len(server.asked) == 4


def test_nobody_there(tmp_path, catalogue):
    with origin(Answer(CONTENT)) as server:
        url = server.url()
    with pytest.raises(PathoError) as stopped:
        fetch.fetch(Remote(url, "set.bin"), tmp_path, patience=2)
    assert stopped.value.code == "download_failed" and "2 tries" in stopped.value.reason
    catalogue("N08", "an address where nobody answers", stopped.value)


def test_a_redirect_is_followed_with_its_range(tmp_path):
    def away(server):
        return Answer(b"", status=302, headers={"Location": server.url("other.bin")})

    with origin(Answer(CONTENT)) as server:
        server.answers[:] = [away(server), Answer(CONTENT, drop=1000), away(server), Answer(CONTENT)]
        assert get(server, tmp_path).read_bytes() == CONTENT
    assert [one.path for one in server.asked] == ["/set.bin", "/other.bin"] * 2
    assert server.asked[3].headers["range"] == "bytes=1000-"


@pytest.mark.parametrize(("where", "times"), [("/set.bin", 5), ("file:///etc/passwd", 1), ("ftp://127.0.0.1/x", 1)])
def test_redirects_in_a_circle_and_away_from_the_web_are_refused(tmp_path, catalogue, where, times):
    with origin(Answer(b"", status=302, headers={"Location": where})) as server:
        error = refusal("download_refused", server, tmp_path)
    assert len(server.asked) == times
    name = "in a circle" if times > 1 else f"to {where.partition(':')[0]}:"
    catalogue("N09", f"a redirect {name}", f"refused: `{error.code}`")


def test_a_redirect_never_falls_back_to_http(catalogue):
    asked = urllib.request.Request("https://example.org/set.bin")
    with pytest.raises(PathoError) as stopped:
        fetch._Redirects().redirect_request(asked, None, 302, "Found", {}, "http://example.org/set.bin")
    assert stopped.value.code == "download_refused"
    catalogue("N09", "a redirect from https to http", stopped.value)
    assert fetch._Redirects().redirect_request(asked, None, 302, "Found", {}, "https://example.org/b").full_url
    asked = urllib.request.Request("http://example.org/set.bin")
    assert fetch._Redirects().redirect_request(asked, None, 301, "Moved", {}, "https://example.org/set.bin").full_url


def test_a_connection_that_falls_silent_is_tried_again(tmp_path, monkeypatch, catalogue):
    monkeypatch.setattr(fetch, "TIMEOUT", 0.15)
    with origin(Answer(CONTENT, piece=1000, pause=1.0), Answer(CONTENT)) as server:
        assert get(server, tmp_path).read_bytes() == CONTENT
        assert server.asked[1].headers["range"] == "bytes=1000-"
    catalogue("N10", "a connection that is silent for half a minute", "cut, and tried again")


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (Answer(CONTENT, length=False), "does not say how long the file is"),
        (Answer(b""), "is empty"),
        (Answer(CONTENT, headers={"Content-Encoding": "gzip"}), "is packed (gzip), though asked not to be"),
        (Answer(CONTENT, status=203), "has the status 203"),
    ],
)
def test_an_answer_that_cannot_be_checked_is_refused(tmp_path, catalogue, answer, what):
    with origin(answer) as server:
        error = refusal("download_refused", server, tmp_path)
        assert server.asked[0].headers["accept-encoding"] == "identity"
    catalogue("N11", f"an answer that {what}", error)


def test_a_gz_file_stays_packed_also_where_the_server_calls_that_an_encoding(tmp_path):
    with origin(Answer(CONTENT, headers={"Content-Encoding": "x-gzip"})) as server:
        assert fetch.fetch(Remote(server.url(), "set.tar.gz"), tmp_path).read_bytes() == CONTENT


def test_the_proxy_of_the_environment_is_used(tmp_path, monkeypatch):
    with origin(Answer(CONTENT)) as server:
        monkeypatch.setenv("http_proxy", server.url(""))
        fetch.fetch(Remote("http://data.invalid/set.bin", "set.bin"), tmp_path)
    assert server.asked[0].path == "http://data.invalid/set.bin"


def test_only_addresses_of_the_web_are_opened(tmp_path):
    with pytest.raises(PathoError) as stopped:
        fetch.fetch(Remote((tmp_path / "x").as_uri(), "x"), tmp_path)
    assert stopped.value.code == "download_refused"


# ------------------------------------------------------------------------------------------------------- the disk


def test_a_disk_that_is_too_small_is_known_before_the_first_byte(tmp_path, monkeypatch, catalogue):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 0, 500_000))
    with origin(Answer(CONTENT)) as server:
        error = refusal("no_space", server, tmp_path, room=200_001)
        assert (tmp_path / "set.bin.part").stat().st_size == 0
        assert get(server, tmp_path, room=200_000).read_bytes() == CONTENT
    catalogue("N13", "a disk that cannot hold the file", error)


def test_a_disk_that_fills_meanwhile_keeps_what_came(tmp_path, monkeypatch, catalogue):
    opened = Path.open

    class Full:
        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.stream.close()

        def write(self, content):
            if self.stream.tell() >= 100_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.stream.write(content[:30_000])

    def full(path, mode="r", *args, **options):
        stream = opened(path, mode, *args, **options)
        return Full(stream) if mode == "ab" else stream

    with origin(Answer(CONTENT)) as server:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", full)
            error = refusal("no_space", server, tmp_path)
        assert len(server.asked) == 1, "a full disk is no trouble of the network"
        there = (tmp_path / "set.bin.part").stat().st_size
        assert 100_000 <= there < 300_000
        assert get(server, tmp_path).read_bytes() == CONTENT and server.spans[1] == (there, 300_000)
    catalogue("N13", "a disk that is full in the middle of a download", error)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with origin(Answer(CONTENT)) as server:
        refusal("output_unwritable", server, tmp_path)
    tmp_path.chmod(0o700)


def test_a_place_that_is_no_folder_is_named(tmp_path):
    files.write_text(tmp_path / "file", "x")
    (tmp_path / "set.bin").mkdir()
    with origin(Answer(CONTENT)) as server:
        refusal("output_unwritable", server, tmp_path / "file" / "in")
        refusal("output_unwritable", server, tmp_path)
        assert not server.asked


# ---------------------------------------------------------------------------------------------------- what is seen


def test_people_see_a_bar(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with origin(Answer(CONTENT, piece=100_000, pause=0.02)) as server:
        get(server, tmp_path)
    assert "set.bin:" in (err := capsys.readouterr().err) and "/300k [" in err
