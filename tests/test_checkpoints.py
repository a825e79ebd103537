"""A checkpoint is whole or refused, and there is always the one before."""

import os
import pickle

import numpy as np
import pytest
import torch

from patholib import checkpoints, files
from patholib.errors import PathoError


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


@pytest.mark.parametrize("seed", range(60))
def test_any_damage_to_the_newest_falls_back_to_the_one_before(tmp_path, seed):
    rng = np.random.default_rng(seed)
    checkpoints.save(tmp_path, "last", 1, state(1))
    newest = checkpoints.save(tmp_path, "last", 2, state(2))
    content = bytearray(newest.read_bytes())
    place = int(rng.integers(len(content)))
    if seed % 4 == 0:
        content[place] ^= 1 << int(rng.integers(8))
    elif seed % 4 == 1:
        content = content[:place]
    elif seed % 4 == 2:
        content[place:place + 64] = bytes(len(content[place:place + 64])) or b""
        content[-1] ^= 255
    else:
        content += b"\0" * 16
    newest.write_bytes(bytes(content))
    with pytest.warns(UserWarning, match="set aside"):
        assert checkpoints.load(tmp_path, "last")["step"] == 1
    assert newest.with_name(newest.name + ".bad").exists()  # kept for inspection, never deleted


def test_no_whole_one_left_is_an_error_that_lists_each(tmp_path):
    for step in (1, 2):
        checkpoints.save(tmp_path, "last", step, state(step)).write_bytes(b"")
    with pytest.raises(PathoError, match="last-000000001") as stopped, pytest.warns(UserWarning):
        checkpoints.load(tmp_path, "last")
    assert stopped.value.code == "checkpoint_damaged" and "last-000000002" in stopped.value.reason


def test_a_hostile_pickle_with_a_right_name_is_not_executed(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    content = pickle.dumps(Hostile())
    import hashlib

    digest = hashlib.sha256(content).hexdigest()[:16]
    path = tmp_path / f"last-000000001-{digest}.pt"
    path.write_bytes(content)
    with pytest.raises(PathoError, match="plain values"):
        checkpoints.read(path)
    assert not (tmp_path / "executed").exists()


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = files.write_text(tmp_path / "a.json", "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PathoError) as stopped:
        files.write_text(path, "new")
    assert stopped.value.code == "no_space"
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
