"""Serves a model of the tiny network, for tests: python tests/served.py MODEL OPTIONS; see `patholib serve`.

Environment: TEST_SECONDS, what each prediction takes longer; TEST_READ_ONLY, nothing may be written, as on a read-only
disk: what tries to is refused and named on stderr.
"""

from __future__ import annotations

import errno
import os
import sys
import time

import tiny

from patholib import cli
from patholib.deploy import inference

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND
TOUCHING = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.link",
    "os.symlink",
    "os.truncate",
    "tempfile.mkstemp",
    "tempfile.mkdtemp",
    "shutil.rmtree",
}


def refuse_writing(event: str, arguments: tuple) -> None:
    """An audit hook: the disk is read-only, but for the null device and the kernel's own files."""
    if event == "open":
        path, mode, flags = arguments
        writing = bool(flags & WRITES) if isinstance(flags, int) else any(letter in (mode or "") for letter in "wax+")
        if not writing or isinstance(path, int) or str(path).startswith(("/dev/", "/proc/")):
            return
    elif event not in TOUCHING:
        return
    print(f"WRITES {event} {arguments[0]!r}", file=sys.stderr, flush=True)
    raise OSError(errno.EROFS, "Read-only file system")


def slowly(answer, seconds: float):
    def slow(*given):
        time.sleep(seconds)
        return answer(*given)

    return slow


if __name__ == "__main__":
    if os.environ.get("TEST_READ_ONLY"):
        sys.addaudithook(refuse_writing)
    if seconds := float(os.environ.get("TEST_SECONDS", 0)):
        inference.Predictor.answer = slowly(inference.Predictor.answer, seconds)
    with tiny.network():
        sys.exit(cli.main(["serve", *sys.argv[1:]]))
