"""Several processes that train as one: what they add up, what the first tells the others, and how they are started.

One process is a team of one: it is given back what it brings, and nothing is exchanged. Only the first process writes
and speaks. accelerate knows who is who, whatever has started the processes, and which library connects them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patholib.base import files
from patholib.base.errors import PathoError

if TYPE_CHECKING:
    import torch


HANGS = timedelta(minutes=10)  # how long a step waits for a process that says nothing; one that died is noticed at once
PATIENCE = timedelta(days=7)  # how long others wait while the first checks images or writes
AGAIN = "Run the same cell or command again: it goes on from the last checkpoint"
REFUSED, STOPPED = 2, 130  # exit codes, as of the command `patholib`


@dataclass
class Team:
    """The processes that train together, as one of them sees it."""

    rank: int = 0  # its place among all
    count: int = 1
    local: int = 0  # its place among those of this machine
    messages: Any = None  # the group that text and bytes go through; gradients take the default one
    passed: int = 0  # gathers of the pass over a batch that have been done
    skipped: int = 0  # so many gathers of this pass were done in one before it that broke off

    def __deepcopy__(self, _) -> Team:
        return self  # a copy of a network still belongs to these processes

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def largest_share(self, number: int) -> int:
        """The most that one process gets of so many things."""
        return -(-number // self.count)

    def begin_pass(self, skipped: int = 0) -> None:
        """From here on gathers are counted; the first `skipped` are not done, and give this process's own part."""
        self.passed, self.skipped = 0, skipped

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """What every process has brought, (processes, ...), in their order and so the same bits everywhere."""
        if self.count == 1 or self.passed < self.skipped:
            found = tensor[None]
        else:
            from accelerate.utils import gather

            with connected(self.rank):
                found = gather(tensor[None])
        self.passed += 1
        return found

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replaces each tensor by its sum over the processes, in one exchange for all of them."""
        if self.count == 1:
            return
        import torch
        from accelerate.utils import reduce

        with connected(self.rank):
            flat = reduce(torch.cat([tensor.detach().flatten() for tensor in tensors]), "sum")
        with torch.no_grad():
            for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(total.view(tensor.shape))

    def shared(self, work: Callable[[], Any], pack: Callable[[Any], bytes] | None = None,
               unpack: Callable[[bytes], Any] = json.loads) -> Any:
        """What `work` gives in the first process, in all of them; what it refuses is refused everywhere.

        pack, unpack: to bytes and back; by default JSON, which keeps every bit of a float.
        """
        if self.count == 1:
            return work()
        if not self.first:
            message = self._sent()
            if message[:1] == b"!":
                raise PathoError(*json.loads(message[1:]))
            return unpack(message[1:])
        try:
            found = work()
        except PathoError as error:
            self._sent(b"!" + json.dumps(error.args).encode())
            raise
        self._sent(b"." + (pack(found) if pack else json.dumps(found).encode()))
        return found

    def in_turn(self, work: Callable[[], Any]) -> Any:
        """`work` in every process: the first, then the first of each other machine, then the rest.

        So what the first has written is there for the others to read. Who fails leaves, and the others are told.
        """
        turn, found = (0 if self.first else 1 if self.local == 0 else 2), None
        for number in range(3 if self.count > 1 else 1):
            if number == turn:
                found = work()
            self.wait()
        return found

    def wait(self) -> None:
        """Goes on when all processes have come here."""
        if self.count > 1:
            import torch

            with connected(self.rank):
                torch.distributed.barrier(group=self.messages)

    def _sent(self, message: bytes = b"") -> bytes:
        """The first process's message, in every process."""
        import numpy as np
        import torch
        from torch.distributed import broadcast

        with connected(self.rank):
            length = torch.tensor([len(message)])
            broadcast(length, 0, group=self.messages)
            content = torch.empty(int(length), dtype=torch.uint8)
            if self.first:
                content = torch.from_numpy(np.frombuffer(message, np.uint8).copy())
            broadcast(content, 0, group=self.messages)
        return content.numpy().tobytes()


ALONE = Team()


@contextlib.contextmanager
def connected(rank: int) -> Iterator[None]:
    """Turns a broken connection into a refusal: the others have died, or hang."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise PathoError("process_lost", f"process {rank}", "lost the connection to the others "
                         f"({str(error).strip().splitlines()[-1][:120]})", AGAIN) from error


def started_together() -> bool:
    """Whether something like torchrun has started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def myself() -> Team:
    """Who this process will be, before it is connected to the others."""
    return Team(int(os.environ.get("RANK", "0")))


@contextlib.contextmanager
def joined(on_gpu: bool) -> Iterator[Team]:
    """The team of this process, for as long as the context lasts; ALONE where nothing has started several.

    All but the first fall silent. on_gpu: each process gets a GPU of its machine, and NCCL connects them; otherwise
    Gloo does. Errors: bad_parameter where a machine has fewer GPUs than processes; process_lost.
    """
    if not started_together():
        yield ALONE
        return
    import torch
    from accelerate import PartialState

    local = int(os.environ["LOCAL_RANK"])
    check_gpus(int(os.environ.get("LOCAL_WORLD_SIZE", local + 1)), on_gpu)
    with connected(int(os.environ["RANK"])):
        state = PartialState(timeout=HANGS) if on_gpu else PartialState(cpu=True, backend="gloo", timeout=HANGS)
        messages = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
    team = Team(state.process_index, state.num_processes, local, messages)
    with contextlib.ExitStack() as stack:
        if not team.first:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))  # noqa: PTH123
            os.environ["TQDM_DISABLE"] = "1"
        yield team
        team.wait()  # whoever leaves early takes the connection along; after an error nobody waits
        state.destroy_process_group()


def check(count: int) -> int:
    """The number of processes, if it is one. Errors: bad_parameter."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise PathoError("bad_parameter", "processes", f"are {count!r}", "Use 1, or as many as there are GPUs")
    return count


def check_gpus(count: int, on_gpu: bool) -> None:
    """Refuses more processes than GPUs, of which each needs one. Errors: bad_parameter."""
    import torch

    if on_gpu and count > torch.cuda.device_count():
        there = torch.cuda.device_count()
        raise PathoError("bad_parameter", "processes", f"are {count}, but this machine has {there} "
                         f"GPU{'s' * (there != 1)}, and each needs one of its own",
                         f'Use processes={there}, or device="cpu"')


# ------------------------------------------------------------------------------------------------------- starting them

LAUNCHER = (sys.executable, "-m", "torch.distributed.run")
LIFELINE = "PATHOLIB_LIFELINE"  # "1": standard input ends when whoever has started the processes is gone


def launch(count: int, program: Sequence[str], show: Callable[[str], None], threads: int,
           keep: Iterable[int] = ()) -> str:
    """Runs `python program` in `count` processes of this machine by torchrun, and hands each line they print to `show`.

    SIGTERM and SIGINT are passed on, and the processes then save and leave; a second signal ends them at once. They do
    so too where this process dies. threads: of each process, unless OMP_NUM_THREADS says so. keep: open files that
    stay open as long as the processes live. Returns "", or the end of what they said on standard error where they
    failed. Raises SystemExit(143) after a SIGTERM and KeyboardInterrupt after a SIGINT.
    """
    command = [*LAUNCHER, "--nnodes", "1", "--nproc_per_node", str(count), "--local_addr", "127.0.0.1",
               "--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0", *program]  # 0: a free port
    # No bars: each state of one would be a line. Its own session: Ctrl-C comes from here, once.
    # They import the same patholib, also where the notebook has put it on its path by hand.
    home = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1", LIFELINE: "1", "PYTHONPATH": home,
                        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))} | _loopback()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                                   text=True, encoding="utf-8", errors="replace", start_new_session=True,
                                   pass_fds=tuple(keep) if os.name == "posix" else ())
        with process, _passed_on(process) as asked:
            for line in process.stdout:
                show(line.rstrip("\n"))
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace")[-4000:]
    if signal.SIGTERM in asked:
        raise SystemExit(143)
    if asked:
        raise KeyboardInterrupt("training is saved. Run the same cell or command again to go on")
    return (said or "no reason was given") if process.returncode else ""


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
        process.stdin.close()
        for number, handler in before.items():
            signal.signal(number, handler)


class _Unheard:
    """Standard output whose reader may have died: what nobody hears is no error."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes the text where somebody reads it."""
        with contextlib.suppress(BrokenPipeError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hands on what was written."""
        with contextlib.suppress(BrokenPipeError):
            self._stream.flush()

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


def hold_lifeline() -> None:
    """Asks this process to save and leave, once whoever has started it is gone."""
    def watch() -> None:
        while os.read(0, 1024):
            continue
        os.kill(os.getpid(), signal.SIGTERM)

    if os.environ.get(LIFELINE) == "1":
        sys.stdout = _Unheard(sys.stdout)
        threading.Thread(target=watch, daemon=True).start()


def leave(team: Team, error: BaseException, folder: Path | None) -> int:
    """Says why this process leaves, in `folder` for whoever has started it; returns the exit code.

    Where all were asked to stop, the first alone says so: torchrun would end it before it has done so, if another
    process gave an exit code of failure earlier.
    """
    agreed = isinstance(error, (SystemExit, KeyboardInterrupt)) or getattr(error, "code", "") == "time_is_up"
    if agreed and not team.first:
        return 0
    if isinstance(error, PathoError):
        if folder is not None:
            files.write_json(folder / f"refused-{team.rank}.json", list(error.args))
    if not isinstance(error, SystemExit) and (team.first or error.code != "process_lost"):
        print(error, file=sys.stderr, flush=True)
    if not team.first:
        threading.Event().wait(1)  # the first may have the same to say
    return error.code if isinstance(error, SystemExit) else STOPPED if isinstance(error, KeyboardInterrupt) else REFUSED


def refusal(folder: Path, said: str) -> PathoError:
    """Why processes that `launch` has started in vain gave up, as far as they could say so in `folder`."""
    told = [PathoError(*files.read_json(path)) for path in sorted(folder.glob("refused-*.json"))]
    told.sort(key=lambda error: error.code == "process_lost")  # who lost another one knows less than that one
    if told and told[0].code != "process_lost":
        return told[0]
    last = [line.strip() for line in said.splitlines() if line.strip()]
    signs = [line for line in last if "exitcode" in line or "Error" in line] or last
    return PathoError("process_lost", "training", f"one of its processes ended without a word ({signs[-1][:200]})",
                      AGAIN)
