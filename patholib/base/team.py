"""The processes that train as one: what they add up, and what the first tells the others.

One process is a team of one: it gets back what it brings, and nothing is exchanged. Only the first process writes and
prints. accelerate knows who is who, whatever has started the processes, and which library connects them.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from patholib.base.errors import PathoError

if TYPE_CHECKING:
    import torch


HANGS = timedelta(minutes=10)  # how long a step waits for a process that says nothing; one that died is noticed at once
PATIENCE = timedelta(days=7)  # how long others wait while the first checks images or writes
AGAIN = "Run the same cell or command again: it resumes from the last checkpoint"


@dataclass
class Team:
    """The processes that train together, as seen by one of them."""

    rank: int = 0  # its place among all
    count: int = 1
    local: int = 0  # its place among those of this machine
    messages: Any = None  # the group that text and bytes go through; gradients take the default one

    def __deepcopy__(self, _) -> Team:
        return self  # a copy of a network still belongs to these processes

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def largest_share(self, number: int) -> int:
        """The most that one process gets of so many things."""
        return -(-number // self.count)

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensors of all processes, (processes, ...), in their order and so the same bits everywhere."""
        if self.count == 1:
            return tensor[None]
        from accelerate.utils import gather

        with connected(self.rank):
            return gather(tensor[None])

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

    def shared(
        self,
        work: Callable[[], Any],
        pack: Callable[[Any], bytes] | None = None,
        unpack: Callable[[bytes], Any] = json.loads,
    ) -> Any:
        """The result of `work` in the first process, in all of them; its refusal is raised everywhere.

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

        So the others can read what the first has written. A process that fails leaves, and the others notice.
        """
        turn, found = (0 if self.first else 1 if self.local == 0 else 2), None
        for number in range(3 if self.count > 1 else 1):
            if number == turn:
                found = work()
            self.wait()
        return found

    def wait(self) -> None:
        """Returns when all processes have reached this call."""
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
    """Turns a broken connection into process_lost: another process has died or hangs."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise PathoError(
            "process_lost",
            f"process {rank}",
            f"lost the connection to the others ({str(error).strip().splitlines()[-1][:120]})",
            AGAIN,
        ) from error


def started_together() -> bool:
    """Whether something like torchrun has started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def myself() -> Team:
    """This process's place, before it is connected to the others."""
    return Team(int(os.environ.get("RANK", "0")))


@contextlib.contextmanager
def joined(on_gpu: bool) -> Iterator[Team]:
    """The team of this process, for as long as the context lasts; ALONE where nothing has started several.

    All but the first print nothing. on_gpu: each process gets a GPU of its machine, and NCCL connects them; otherwise
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


def check_count(count: int) -> int:
    """The number of processes, if it is one. Errors: bad_parameter."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise PathoError("bad_parameter", "processes", f"are {count!r}", "Use 1, or as many as there are GPUs")
    return count


def check_gpus(count: int, on_gpu: bool) -> None:
    """Refuses more processes than GPUs, of which each needs one. Errors: bad_parameter."""
    import torch

    if on_gpu and count > torch.cuda.device_count():
        there = torch.cuda.device_count()
        raise PathoError(
            "bad_parameter",
            "processes",
            f"are {count}, but this machine has {there} GPU{'s' if there != 1 else ''}, and each needs one of its own",
            f'Use processes={there}, or device="cpu"',
        )
