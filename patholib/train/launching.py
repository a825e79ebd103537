"""Several processes of one machine that train together, started by torchrun, and how they end.

torchrun sees a process that dies and ends the others. It does not see that whoever has started it is gone, so each
process holds a lifeline: its standard input ends with its starter, and then it saves and stops.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.base.team import AGAIN, Team

REFUSED, STOPPED = 2, 130  # exit codes, as of the command `patholib`
LAUNCHER = (sys.executable, "-m", "torch.distributed.run")
LIFELINE = "PATHOLIB_LIFELINE"  # "1": standard input ends when whoever has started the processes is gone


def launch(count: int, program: Sequence[str], show: Callable[[str], None], threads: int) -> str:
    """Runs `python program` in `count` processes of this machine by torchrun, and hands each line they print to `show`.

    SIGTERM and SIGINT are passed on, and the processes then save and stop; a second signal ends them at once. They also
    save and stop when this process dies. threads: of each process, unless OMP_NUM_THREADS is set. Returns "", or the
    end of their standard error where they failed. Raises SystemExit(143) after a SIGTERM and KeyboardInterrupt after a
    SIGINT.
    """
    options = {
        "--nnodes": "1",
        "--nproc_per_node": str(count),
        "--local_addr": "127.0.0.1",
        "--rdzv_backend": "c10d",
        "--rdzv_endpoint": "127.0.0.1:0",  # 0: a free port
    }
    command = [*LAUNCHER, *itertools.chain(*options.items()), *program]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            env=_environment(threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C comes from here, once
        )
        with process, _passed_on(process) as asked:
            assert process.stdout is not None  # a pipe
            for line in process.stdout:
                show(line.rstrip("\n"))
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace")[-4000:]
    if signal.SIGTERM in asked:
        raise SystemExit(143)
    if asked:
        raise KeyboardInterrupt("training is saved. Run the same cell or command again to go on")
    return (said or "no reason was given") if process.returncode else ""


def _environment(threads: int) -> dict[str, str]:
    """The variables of the processes, which import the same patholib, also where a notebook has put it on its path."""
    home = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")]))
    return (
        os.environ
        | {
            "TQDM_DISABLE": "1",  # no bars: each state of one would be a line
            "PYTHONUNBUFFERED": "1",
            LIFELINE: "1",
            "PYTHONPATH": home,
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        }
        | _loopback()
    )


def _loopback() -> dict[str, str]:
    """Has Gloo and NCCL connect the processes of one machine inside it, whatever its name resolves to."""
    names = [name for _, name in socket.if_nameindex()] if hasattr(socket, "if_nameindex") else []
    inside = next((name for name in ("lo", "lo0") if name in names), None)
    return {key: os.environ.get(key, inside) for key in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")} if inside else {}


@contextlib.contextmanager
def _passed_on(process: subprocess.Popen) -> Iterator[list[int]]:
    """Passes signals on to the process; yields the list of those that came."""
    asked: list[int] = []

    def note(number, _frame) -> None:
        if asked:  # asked twice: its lifeline ends with it, and so do those it has started
            process.kill()
            raise KeyboardInterrupt
        asked.append(number)
        process.send_signal(number)

    here = threading.current_thread() is threading.main_thread()  # only there may handlers be set
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)} if here else {}
    try:
        yield asked
    finally:
        assert process.stdin is not None  # a pipe
        process.stdin.close()
        for number, handler in before.items():
            signal.signal(number, handler)


class _Unheard(io.TextIOWrapper):
    """Standard output whose reader may have died: what nobody hears is no error."""

    def write(self, text: str) -> int:
        """Writes the text where somebody reads it."""
        with contextlib.suppress(BrokenPipeError):
            super().write(text)
        return len(text)


def hold_lifeline() -> None:
    """Makes this process save and stop when its starter is gone."""

    def watch() -> None:
        while os.read(0, 1024):
            continue
        os.kill(os.getpid(), signal.SIGTERM)

    if os.environ.get(LIFELINE) == "1":
        plain = cast(io.TextIOWrapper, sys.stdout)  # as Python opens it
        sys.stdout = _Unheard(plain.detach(), encoding="utf-8", errors="replace", write_through=True)
        threading.Thread(target=watch, daemon=True).start()


def leave(team: Team, error: PathoError | KeyboardInterrupt | SystemExit, folder: Path | None) -> int:
    """Says why this process leaves, in `folder` for whoever has started it; returns the exit code.

    Where all were asked to stop, the first alone says so: torchrun would end it before it has done so, if another
    process gave an exit code of failure earlier.
    """
    code = error.code if isinstance(error, PathoError) else ""
    agreed = isinstance(error, (SystemExit, KeyboardInterrupt)) or code == "time_is_up"
    if agreed and not team.first:
        return 0
    if isinstance(error, PathoError):
        if folder is not None:
            files.write_json(folder / f"refused-{team.rank}.json", list(error.args))
    if not isinstance(error, SystemExit) and (team.first or code != "process_lost"):
        print(error, file=sys.stderr, flush=True)
    if not team.first:
        threading.Event().wait(1)  # the first may have the same to say
    if isinstance(error, SystemExit):
        assert isinstance(error.code, int)  # the exit code of a signal
        return error.code
    return STOPPED if isinstance(error, KeyboardInterrupt) else REFUSED


def refusal(folder: Path, said: str) -> PathoError:
    """Why the processes of `launch` failed, as far as they could write it to `folder`."""
    told = [PathoError(*files.read_json(path)) for path in sorted(folder.glob("refused-*.json"))]
    told.sort(key=lambda error: error.code == "process_lost")  # who lost another one knows less than that one
    if told and told[0].code != "process_lost":
        return told[0]
    last = [line.strip() for line in said.splitlines() if line.strip()]
    signs = [line for line in last if "exitcode" in line or "Error" in line] or last
    return PathoError(
        "process_lost", "training", f"one of its processes ended without a word ({signs[-1][:200]})", AGAIN
    )
