"""Progress bars: seen by people, silent in headless runs, also in a notebook's kernel."""

from __future__ import annotations

import contextlib
import os
import queue
import sys

import pytest
from jupyter_client.manager import start_new_kernel

from patholib.base.progress import LINES, bar, watched

BARS = """
from patholib.base.progress import bar, watched
assert watched()
for _ in bar(range(3), desc="three"):
    print(end="")
print("done")
"""


def messages(code: str) -> list[dict]:
    """Everything a real kernel publishes while it runs `code`."""
    manager, client = start_new_kernel(kernel_name="python3", env={**os.environ, "PYDEVD_DISABLE_FILE_VALIDATION": "1"})
    with contextlib.ExitStack() as stack:
        stack.callback(manager.shutdown_kernel, now=True)
        stack.callback(client.stop_channels)
        found = []
        client.execute_interactive(code, timeout=60, output_hook=found.append)
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(client.get_iopub_msg(timeout=0.2))
        return found


@pytest.mark.parametrize(("value", "seen"), [("", True), ("0", True), ("1", False)])
def test_in_a_notebook_the_variable_decides_whether_a_bar_is_seen(monkeypatch, value, seen):
    monkeypatch.setenv("TQDM_DISABLE", value)
    found = messages(BARS)
    kinds = {message["msg_type"] for message in found}
    assert "done\n" in [message["content"].get("text") for message in found]
    assert ("comm_open" in kinds or "display_data" in kinds) is seen


def test_a_bar_is_silent_where_the_caller_says_so(monkeypatch, capsys):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    assert list(bar(range(3), shown=False)) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_somebody_looks_on_at_a_terminal_and_not_at_a_log(monkeypatch):
    for terminal in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        assert watched() is terminal


def test_a_bar_is_seen_and_counts(monkeypatch, capsys):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    with bar(total=4, desc="four") as meter:
        meter.update(4)
    assert "four" in capsys.readouterr().err and meter.n == 4 and meter.mininterval == LINES
