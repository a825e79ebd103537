"""A checkpoint is whole or refused, and there is always the one before."""

import errno
import hashlib
import io
import os
import pickle
import shutil
import stat
from collections import Counter
from functools import partial
from pathlib import Path, PurePosixPath

import hostile
import numpy as np
import pytest
import safetensors.torch
import torch

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.train import checkpoints

pytestmark = pytest.mark.heavy


def state(step):
    return {"weights": torch.arange(1000.0) + step, "step": step, "history": [{"auc": 0.5}], "name": "x", "none": None}


def test_what_is_saved_is_loaded(tmp_path):
    checkpoints.save(tmp_path, "last", 7, state(7))
    loaded = checkpoints.load(tmp_path, "last")
    assert torch.equal(loaded.pop("weights"), state(7)["weights"])
    assert loaded == {k: v for k, v in state(7).items() if k != "weights"}


def test_two_are_kept_and_kinds_do_not_mix(tmp_path):
    checkpoints.save(tmp_path, "best", 1, state(1))
    for step in range(5):
        checkpoints.save(tmp_path, "last", step, state(step))
    assert [checkpoints.read(p)["step"] for p in checkpoints.list_of(tmp_path, "last")] == [4, 3]
    assert checkpoints.load(tmp_path, "best")["step"] == 1
    assert checkpoints.load(tmp_path, "last", step=3)["step"] == 3


def test_nothing_saved_is_none(tmp_path):
    assert checkpoints.load(tmp_path / "nowhere", "last") is None


def damaged(content: bytes) -> dict[str, bytes]:
    """Ways of damaging bytes, in every region of a torch file: name of the damage, what it leaves."""
    rng = np.random.default_rng(0)
    size, found = len(content), {}

    def places(count):
        return np.linspace(0, size - 1, count).astype(int).tolist()

    for place in places(110):
        bit = 1 << int(rng.integers(8))
        found[f"a flipped bit at {place}"] = content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]
    for place in places(50):
        found[f"cut off at {place}"] = content[:place]
    for place in places(40):
        length = int(rng.integers(1, 512))
        found[f"{length} zeros at {place}"] = content[:place] + bytes(length) + content[place + length :]
    for length in (1, 2, 22, 64, 512, 4096, 65_557):
        found[f"{length} zeros appended"] = content + bytes(length)
        found[f"{length} random bytes appended"] = content + rng.bytes(length)
        found[f"{length} zeros before"] = bytes(length) + content
    found |= {
        "twice": content + content,
        "backwards": content[::-1],
        "all zeros": bytes(size),
        "all ones": b"\xff" * size,
        "random": rng.bytes(size),
        "other line ends": content.replace(b"\n", b"\r\n"),
        "halves swapped": content[size // 2 :] + content[: size // 2],
        "an error page": b"<html>404</html>",
        "read as text": content.decode("latin-1").encode("utf-8"),
    }
    return {name: left for name, left in found.items() if left != content}


def others() -> dict[str, bytes]:
    """Whole files of something else: a right digest in the name says nothing about that."""

    def saved(value, **options):
        stream = io.BytesIO()
        torch.save(value, stream, **options)
        return stream.getvalue()

    short = {key: value for key, value in state(2).items() if key != "history"}
    return {
        "a tensor": saved(torch.zeros(3)),
        "a list": saved([state(2)]),
        "a number": saved(2),
        "none": saved(None),
        "a text": saved("state"),
        "another dict": saved({"model": {}}),
        "an empty dict": saved({}),
        "numbers for keys": saved(dict(enumerate(state(2).values()))),
        "a key too few": saved(short),
        "another dict in the old layout": saved({"a": 1}, _use_new_zipfile_serialization=False),
        "an object": saved(state(2) | {"path": PurePosixPath("a")}),
        "no bytes": b"",
        "JSON": b'{"step": 2}',
        "an empty archive": b"PK\x05\x06" + bytes(18),
        "a pickled dict": pickle.dumps({"step": 2}),
        "safetensors": safetensors.torch.save({"weights": torch.zeros(3)}),
    }


def ways(newest: Path, older: Path) -> dict:
    """250 ways of having something wrong where the newest checkpoint was: name, what does it."""

    def instead(make, *args):
        def do():
            newest.unlink()
            make(*args)

        return do

    def full_folder():
        newest.mkdir()
        (newest / "data.pkl").write_bytes(b"x")

    def renamed(digest):
        return lambda: newest.rename(newest.with_name(f"last-000000002-{digest}.pt"))

    found = {way: partial(newest.write_bytes, left) for way, left in damaged(newest.read_bytes()).items()}
    found |= {
        way: instead(newest.with_name(name_of(content)).write_bytes, content) for way, content in others().items()
    }
    found |= {
        "emptied": partial(newest.write_bytes, b""),
        "no digest": renamed("0" * 16),
        "the older one's bytes": partial(newest.write_bytes, older.read_bytes()),
        "the older one's digest": renamed(checkpoints.NAME.fullmatch(older.name)["digest"]),
        "a folder": instead(newest.mkdir),
        "a full folder": instead(full_folder),
    }
    if os.name == "posix":  # elsewhere a link needs a right, and there are no pipes
        found |= {
            "a pipe": instead(os.mkfifo, newest),
            "a link to the older one": instead(newest.symlink_to, older),
            "a link to nothing": instead(newest.symlink_to, "nothing"),
            "a link to itself": instead(newest.symlink_to, newest),
            "a link to a folder": instead(newest.symlink_to, newest.parent),
            "a link to endless zeros": instead(newest.symlink_to, "/dev/zero"),
        }
    return found


def name_of(content: bytes, step: int = 2) -> str:
    return f"last-{step:09d}-{hashlib.sha256(content).hexdigest()[:16]}.pt"


@pytest.fixture
def folder(tmp_path):
    """The checkpoints of steps 1 and 2, and nothing else."""
    for step in (1, 2):
        checkpoints.save(tmp_path / "checkpoints", "last", step, state(step))
    return tmp_path / "checkpoints"


@pytest.mark.filterwarnings("ignore")
def test_T10_of_250_ways_to_damage_the_newest_none_is_loaded_and_each_falls_back(folder, catalogue):
    newest, older = checkpoints.list_of(folder, "last")
    contents = {path: path.read_bytes() for path in (newest, older)}
    everything, seen = ways(newest, older), Counter()
    for way, damage in everything.items():
        for with_older in (True, False):
            shutil.rmtree(folder)
            folder.mkdir()
            for path, content in contents.items():
                path.write_bytes(content)
            damage()
            if not with_older:
                older.unlink()
            try:
                found = checkpoints.load(folder, "last", holds=state(0))
                assert with_older and found["step"] == 1, way
                assert torch.equal(found["weights"], state(1)["weights"]), way
            except PathoError as error:
                assert not with_older and error.code == "checkpoint_damaged", way
            aside = [path for path in folder.iterdir() if path.name.endswith(".bad")]
            assert len(aside) == 1, way  # kept for inspection, never deleted
            seen["falls back" if with_older else "refused"] += 1
    assert len(everything) >= 250 and seen == {"falls back": len(everything), "refused": len(everything)}
    catalogue(
        "T10",
        "the newest checkpoint is damaged, in 250 ways: bits flipped, cut off, zeroed, appended to, "
        "emptied, exchanged, renamed, a folder, a link",
        "set aside as `.bad`, with a warning; the one before is taken",
    )


@pytest.mark.filterwarnings("ignore")
def test_T10_no_whole_one_left_is_an_error_that_lists_each(folder, catalogue):
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PathoError, match="last-000000001") as stopped:
        checkpoints.load(folder, "last")
    assert stopped.value.code == "checkpoint_damaged" and "last-000000002" in stopped.value.reason
    assert sorted(p.suffix for p in folder.iterdir()) == [".bad", ".bad"]
    catalogue("T10", "every checkpoint is damaged", stopped.value)


@pytest.mark.filterwarnings("ignore")
def test_T10_what_was_set_aside_before_stays_beside_the_next(folder):
    newest = checkpoints.list_of(folder, "last")[0]
    for end in (".bad", ".bad2", ".bad3"):
        newest.write_text(end)
        assert checkpoints.load(folder, "last")["step"] == 1
    assert all(newest.with_name(newest.name + end).read_text() == end for end in (".bad", ".bad2", ".bad3"))


@pytest.mark.filterwarnings("ignore")
def test_T10_a_checkpoint_that_cannot_be_read_or_set_aside_falls_back_too(folder, monkeypatch):
    """As on a failing disk; and in a folder that is only read, where nothing can be renamed."""
    newest, opened = checkpoints.list_of(folder, "last")[0], Path.open

    def failing(path, *args, **options):
        if path == newest:
            raise OSError(errno.EIO, "Input/output error")
        return opened(path, *args, **options)

    def read_only(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "open", failing)
    monkeypatch.setattr(Path, "rename", read_only)
    assert checkpoints.load(folder, "last")["step"] == 1 and newest.exists()


HOSTILE = [*hostile.pickles(Path("marker")), *hostile.torch_files(Path("marker"))]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", HOSTILE)
def test_T23_a_hostile_pickle_with_a_right_name_is_set_aside_and_not_executed(tmp_path, folder, kind, catalogue):
    marker = tmp_path / "executed"
    content = (hostile.pickles(marker) | hostile.torch_files(marker))[kind]
    if kind in hostile.pickles(marker):  # the payload does what it says where it is let
        pickle.loads(content)
        marker.rmdir()
    path = folder / name_of(content, 3)
    path.write_bytes(content)
    with pytest.raises(PathoError) as stopped:
        checkpoints.read(path)
    assert stopped.value.code == "checkpoint_refused"
    assert checkpoints.load(folder, "last")["step"] == 2
    assert path.with_name(path.name + ".bad").exists() and not marker.exists()
    catalogue("T23", f"a checkpoint that runs code when it is unpickled: {kind}", stopped.value)


def test_a_folder_named_like_an_old_checkpoint_does_not_stop_a_save(tmp_path):
    (tmp_path / "last-000000001-0123456789abcdef.pt").mkdir()
    for step in (2, 3, 4):
        checkpoints.save(tmp_path, "last", step, state(step))
    assert [p.name[5:14] for p in checkpoints.list_of(tmp_path, "last")] == ["000000004", "000000003", "000000001"]


def test_what_a_killed_write_left_is_removed_and_nothing_else(tmp_path):
    kept = {checkpoints.save(tmp_path, "last", 1, state(1)).name, "notes.part", "a.pt.bad", ".last.part"}
    for name in ("notes.part", "a.pt.bad", ".last-000000002-0123456789abcdef.pt.ab_3xyz1.part", ".history.csv.k2.part"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".last.part").mkdir()
    files.remove_parts(tmp_path)
    files.remove_parts(tmp_path / "nowhere")
    assert {p.name for p in tmp_path.iterdir()} == kept


@pytest.mark.skipif(os.name != "posix", reason="only POSIX can flush a folder")
def test_a_rename_is_flushed_to_disk_after_the_bytes(tmp_path, monkeypatch):
    flushed, fsync = [], os.fsync

    def recorded(handle):
        flushed.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        if flushed[-1] == "folder":
            assert (tmp_path / "a.json").read_text() == "new"
            raise OSError(errno.EINVAL, "as some network folders answer")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", recorded)
    files.write_text(tmp_path / "a.json", "new")
    assert flushed == ["file", "folder"]


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = files.write_text(tmp_path / "a.json", "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PathoError) as stopped:
        files.write_text(path, "new")
    assert stopped.value.code == "no_space"
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
