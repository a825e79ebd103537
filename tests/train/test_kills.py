"""Real SIGKILLs, at random moments and inside the writes of checkpoints, lose nothing: `tests/kills.py` in small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot fork a process"),
    pytest.mark.alone,
]  # at which step a kill comes is a matter of time


def kill(tmp_path, number, seed, *options):
    """The counts of that many kills."""
    command = [
        sys.executable,
        (Path(__file__).parents[1] / "kills.py"),
        "--kills",
        str(number),
        "--seed",
        str(seed),
        "--json",
        tmp_path / "counts.json",
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TQDM_DISABLE": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((tmp_path / "counts.json").read_text(encoding="utf-8"))


def hold_truths(counts, number):
    assert counts["kills"] >= number and counts["runs"] > 1
    assert {"training", "writing"} < set(counts["phases"])
    assert counts["inside_write"] > 0
    assert [counts[name] for name in ("lost", "corrupt", "different", "leftovers")] == [0, 0, 0, 0]


def test_T06_T07_no_moment_of_a_sigkill_loses_anything(tmp_path, catalogue):
    hold_truths(kill(tmp_path, 40, seed=0), 40)
    catalogue("T06", "SIGKILL at any moment, again and again", "resumes from the last checkpoint, the same bits")
    catalogue(
        "T07",
        "SIGKILL inside the write of a checkpoint",
        "every checkpoint is whole; the unfinished file is removed at the next start",
    )


def test_T05_whoever_is_asked_to_stop_saves_and_is_gone_in_five_seconds(tmp_path, catalogue):
    counts = kill(tmp_path, 12, 3, "--gently")
    assert [counts[name] for name in ("slow", "lost", "corrupt", "different", "leftovers")] == [0, 0, 0, 0, 0]
    assert len(counts["leaving"]) == counts["kills"] >= 12
    catalogue("T05", "SIGTERM at any moment, again and again", "gone within 5 seconds, the same bits in the end")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_T06_hundreds_of_kills_lose_nothing(tmp_path, seed):
    hold_truths(kill(tmp_path, 200, seed), 200)
