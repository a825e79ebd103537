"""A cache that a power cut, a bad disk or a copied file has made wrong is noticed, and built anew."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from samples import encoded, own_set, picture, sound

from patholib.data import checking
from patholib.deploy import journals


def check(source, folder):
    return checking.check(source, 48, cache_dir=folder, report_dir=folder / "report", progress=False, workers=2)


@pytest.fixture
def source(tmp_path):
    return own_set(tmp_path / "set", sound())


FAULTS = {
    "C50": ("an empty cache file, as a power cut leaves it", "*.npy", lambda content: b""),
    "C50-facts": ("empty facts of a cache", "*.json", lambda content: b""),
    "C50-other": ("facts of a cache that are something else", "*.json", lambda content: b'{"files": [1]}'),
    "C51": ("one flipped bit in a cache", "*.npy", lambda c: c[:9000] + bytes([c[9000] ^ 1]) + c[9001:]),
    "C51-zeros": ("a zeroed part of a cache of the right size", "*.npy", lambda c: c[:9000] + bytes(5000) + c[14000:]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_c50_c51_a_damaged_cache_is_built_anew(source, tmp_path, catalogue, name):
    what, pattern, change = FAULTS[name]
    whole = np.array(check(source, tmp_path / "cache").images.pictures)
    (path,) = (tmp_path / "cache").glob(pattern)
    path.write_bytes(change(path.read_bytes()))
    again = check(source, tmp_path / "cache")
    assert not again.report["cache"]["reused"]
    assert np.array_equal(again.images.pictures, whole)
    assert check(source, tmp_path / "cache").report["cache"]["reused"]
    catalogue(name[:3], what, "noticed when it is loaded, and built anew")


def test_c51_a_large_cache_is_compared_where_it_was_written_to_and_not_at_every_start(source, tmp_path, monkeypatch):
    whole = np.array(check(source, tmp_path / "cache").images.pictures)
    (path,) = (tmp_path / "cache").glob("*.npy")
    monkeypatch.setattr(checking.caching, "ALWAYS", 0)
    with monkeypatch.context() as patch:
        patch.setattr(checking.caching, "_damaged", lambda *_: pytest.fail("compared without need"))
        assert check(source, tmp_path / "cache").report["cache"]["reused"]
    before = path.stat()
    with path.open("r+b") as stream:
        stream.seek(9000)
        stream.write(bytes(5000))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as if nobody had been there
    again = check(source, tmp_path / "cache")
    assert not again.report["cache"]["reused"] and np.array_equal(again.images.pictures, whole)


@pytest.mark.parametrize("content", [b"", bytes(4000)])
def test_c50_an_empty_part_of_an_unfinished_cache_is_begun_anew(source, tmp_path, catalogue, content):
    whole = check(source, tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("*.npy")
    part = path.with_name(f".{path.stem}.part")
    shutil.copy(path, part)
    part.with_suffix(".jsonl").write_text('[0, {"path": "a00.png", "pixels": "0", "warnings": []}]\n')
    part.write_bytes(content or b"")
    path.unlink()
    assert np.array_equal(check(source, tmp_path / "cache").images.pictures, whole.images.pictures)
    catalogue("C50", "an empty part of an unfinished cache", "begun anew")


def test_c51_a_resumed_check_trusts_no_damaged_pixels(source, tmp_path):
    whole = check(source, tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("*.npy")
    facts = checking.files.read_json(path.with_suffix(".json"))["files"]
    part = path.with_name(f".{path.stem}.part")
    content = path.read_bytes()
    part.write_bytes(content[:2000] + bytes(2000) + content[4000:])
    lines = (checking.caching.json.dumps([i, fact]) + "\n" for i, fact in enumerate(facts))
    part.with_suffix(".jsonl").write_text("".join(lines))
    path.unlink()
    assert np.array_equal(check(source, tmp_path / "cache").images.pictures, whole.images.pictures)


def test_c60_a_file_replaced_by_one_of_the_same_size_and_time_is_read_again(source, tmp_path, catalogue):
    before = np.array(check(source, tmp_path / "cache").images.pictures)
    path = source.root / "a00.png"
    known, facts, size = path.stat(), journals.facts_of(str(path)), path.stat().st_size
    other = next(
        content + bytes(size - len(content))
        for content in (encoded(picture(i, 60, 40)) for i in range(50, 99))
        if len(content) <= size
    )
    path.with_suffix(".new").write_bytes(other)
    os.utime(path.with_suffix(".new"), ns=(known.st_atime_ns, known.st_mtime_ns))
    path.with_suffix(".new").rename(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (size, known.st_mtime_ns)
    assert journals.facts_of(str(path)) != facts
    again = check(source, tmp_path / "cache")
    assert not np.array_equal(again.images.pictures[0], before[0])
    catalogue("C60", "image replaced by one of the same size and time (rsync -t)", "read again, in check and predict")
