"""How many processor cores there are, and work spread over threads in a fixed order."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any

from patholib.base.errors import PathoError

THREADS_PER_CORE = 8  # more than one, because threads that wait for a slow disk or network cost nothing
PATIENCE = 120.0  # seconds for one file or batch, after which its thread counts as hung


def cores() -> int:
    """The processor cores this process may use, of which decoding takes all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(workers: int | None, say: Callable | None = None) -> int:
    """How many threads to start: `workers`, None for one a core, and at most THREADS_PER_CORE, which `say` is told.

    Errors: bad_parameter.
    """
    if workers is None:
        return cores()
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise PathoError("bad_parameter", "workers", f"are {workers!r}", "Use a whole number of threads from 1 on")
    most = THREADS_PER_CORE * cores()
    if workers > most and say:
        say(f"workers are {most} instead of {workers}: {THREADS_PER_CORE} for each core, beyond which none is quicker")
    return min(workers, most)


def in_order(work: Callable, items: Iterable, workers: int, ahead: int, named: Callable = str) -> Generator:
    """Yields work(item) for each item, in order, from threads that are at most `ahead` results early.

    Decoders, hashes, warps and tensor operations release the interpreter lock, so threads suffice. They end with the
    generator: exhausted, closed, dropped, or left by an error. named(item): what an error calls the item.
    Raises PathoError: `out_of_memory`; `loader_timeout` where a result takes longer than PATIENCE, and then the
    threads are left behind, because nothing ends a thread that waits for a dead drive.
    """
    todo: SimpleQueue[tuple[Any, Future] | None] = SimpleQueue()
    waiting: deque[tuple[Any, Future]] = deque()
    patience = PATIENCE
    threads = [threading.Thread(target=_serve, args=(work, todo), daemon=True) for _ in range(workers)]
    for thread in threads:  # daemons: a hung one ends with us
        thread.start()
    try:
        for item in items:
            waiting.append((item, Future()))
            todo.put(waiting[-1])
            if len(waiting) > ahead:
                yield _first(waiting, named)
        while waiting:
            yield _first(waiting, named)
    except PathoError as error:
        patience = 0 if error.code == "loader_timeout" else patience
        raise
    finally:
        for _, future in waiting:
            future.cancel()
        for _ in threads:
            todo.put(None)
        for thread in threads:
            thread.join(patience)


def _serve(work: Callable, todo: SimpleQueue) -> None:
    """What each thread does until it gets None."""
    while (task := todo.get()) is not None:
        item, future = task
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work(item))
            except BaseException as error:  # whatever it is, it is raised where the result is awaited
                future.set_exception(error)
        del task, item, future  # a result that was taken is not kept alive while this thread waits


def _first(waiting: deque[tuple[Any, Future]], named: Callable) -> Any:
    """The result that is due. Errors: loader_timeout, out_of_memory."""
    if not wait([waiting[0][1]], PATIENCE).done:
        raise PathoError(
            "loader_timeout",
            "; ".join(named(item) for item, future in waiting if future.running()),
            f"gave no result for {PATIENCE:g} seconds",
            "Check the disk or network drive that holds the images and their cache, or copy both to a local one; then "
            "run the same again",
        )
    item, future = waiting.popleft()
    try:
        return future.result()
    except Exception as error:
        if not (isinstance(error, MemoryError) or "allocate" in str(error)):  # as torch and OpenCV put it
            raise
        raise PathoError(
            "out_of_memory",
            named(item),
            "did not fit into the memory that is left",
            "Use fewer workers or a smaller batch_size, or close other programs",
        ) from error
