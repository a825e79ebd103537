"""Work spread over the machines of a Ray cluster; the only module that knows Ray.

    with joined("auto") as ray:  # or None: a cluster of this machine alone, which is gone afterwards
        for number, found in each(ray, function, items, cpus=4): ...
        for line in mapped(ray, make, arguments, items): ...

Nothing is sent to anybody: no usage statistics, no dashboard. A cluster of this machine listens to this machine alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib import util

from patholib.base.errors import PathoError
from patholib.base.progress import say

RETRIES = 20  # how often a run is resumed after a lost worker or machine
LONGEST = 40  # characters of a temporary folder; the path of a socket in it may have 107, and Ray needs 62
BLOCK = (8, 256)  # items that are handed out together: a lost worker costs no more


@contextlib.contextmanager
def joined(address: str | None = None) -> Iterator:
    """Ray, connected to the cluster at `address` ("auto": the one of this machine), or to one that is made for it.

    RAY_ADDRESS replaces a missing address. A cluster started here is stopped at the end; any other stays.
    Errors: no_engine, no_cluster.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # no GPU is seen by a task that asked for none
    ray = _ray(own=not address)
    if ray.is_initialized():  # whoever connected this process also disconnects it
        yield ray
        return
    common = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR", "namespace": "patholib"}
    folder = None if address else _short_folder()
    try:
        try:
            ray.init(address or "local", **common, **({} if address else {"_temp_dir": folder}))
        except Exception as error:  # Ray raises a bare one where this machine is too busy to start it in half a minute
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            remedy = (
                "Start it with ray start --head, and name what that prints"
                if address
                else "Call again when the "
                "machine is less busy, or start it with ray start --head and join it with --address auto"
            )
            raise PathoError("no_cluster", address or "ray", f"cannot be reached ({reason})", remedy) from error
        yield ray
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _ray(own: bool):
    missing = [name for name in ("ray", "pyarrow") if util.find_spec(name) is None]
    if missing:
        raise PathoError(
            "no_engine",
            "engine",
            f"is ray, but {missing[0]} is not installed",
            'pip install "patholib[cluster]", or leave --engine away: one machine needs no Ray',
        )
    if own:  # read once, at the import: whether other machines may join, which is to say listen to more than this one
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    import ray

    return ray


def _short_folder() -> str:
    """A new folder whose path leaves room for the names of sockets in it."""
    place = tempfile.gettempdir()
    if os.name == "posix" and len(place) > LONGEST:
        place = "/tmp"
    return tempfile.mkdtemp(prefix="ray-", dir=place)


# ------------------------------------------------------------------------------------------------------------- tasks


def each(ray, function: Callable, items: Sequence, cpus: float = 1, gpus: float = 0) -> Iterator[tuple[int, object]]:
    """Pairs of an item's number and function(item), or a PathoError where that failed, in the order they end.

    A call whose worker or machine is lost is made again, up to RETRIES times. Errors: bad_parameter.
    """
    _refuse_unmet(ray, cpus, gpus)
    task = ray.remote(function).options(
        num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES, retry_exceptions=False, scheduling_strategy="SPREAD"
    )
    waiting = {task.remote(item): number for number, item in enumerate(items)}
    while waiting:
        (done,), _ = ray.wait(list(waiting), num_returns=1)
        yield waiting.pop(done), _result(ray, done)


def _refuse_unmet(ray, cpus: float, gpus: float) -> None:
    """A cluster that can grow may yet get such a machine; this one alone cannot."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(found.get("CPU", 0) >= cpus and found.get("GPU", 0) >= gpus for found in machines):
        return
    what = f"{cpus:g} CPUs and {gpus:g} GPUs"
    if len(machines) == 1:
        raise PathoError(
            "bad_parameter",
            "cpus and gpus per run",
            f"are {what}, but the only machine has {machines[0].get('CPU', 0):g} and {machines[0].get('GPU', 0):g}",
            "Ask for less",
        )
    say(f"No machine of the cluster has {what} at present; the runs wait for one")


def _result(ray, done):
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        return error.cause if isinstance(error.cause, PathoError) else _failure(error.cause or error)
    except ray.exceptions.RayError as error:
        return _failure(error)


def _failure(error: BaseException) -> PathoError:
    reason = (str(error).strip().splitlines() or [""])[0]
    return PathoError(
        "cluster_failed",
        type(error).__name__,
        reason or "ended the work",
        "Look at the logs of the cluster, and call again: what is done is kept",
    )


# ------------------------------------------------------------------------------------------------------------ actors


class _Worker:
    """`make(*arguments)`, called once for a worker, which then answers bytes with bytes."""

    def __init__(self, make: Callable, arguments: tuple):
        self._refusal: PathoError | None = None
        try:
            self._function: Callable = make(*arguments)
        except PathoError as error:  # told as an answer: raised here, it would be tried again and again
            self._refusal = error

    def __call__(self, block):
        import pyarrow

        found, refusal = [], self._refusal
        try:
            found = [] if refusal else [self._function(item) for item in block.column("item").to_pylist()]
        except PathoError as error:
            refusal = error
        said = list(refusal.args) if refusal else []
        return pyarrow.table(
            {
                "item": pyarrow.array([found], pyarrow.list_(pyarrow.large_binary())),
                "refusal": pyarrow.array([said], pyarrow.list_(pyarrow.string())),
            }
        )


def mapped(
    ray, make: Callable, arguments: tuple, items: Sequence[bytes], workers: int | None = None
) -> Iterator[bytes]:
    """`make(*arguments)(item)` of every item, bytes from bytes, in whatever order they are ready.

    workers: each of one CPU, None for all that the cluster has. `make` is called once for each. The block of a lost
    worker is computed again. Errors: those of make and its function; cluster_failed.
    """
    import pyarrow
    import ray.data

    workers = min(workers or max(1, int(ray.cluster_resources().get("CPU", 1))), len(items)) or 1
    size = min(max(len(items) // (workers * 20), BLOCK[0]), BLOCK[1])
    blocks = [
        pyarrow.table({"item": pyarrow.array(items[i : i + size], pyarrow.large_binary())})
        for i in range(0, len(items), size)
    ]
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    found = ray.data.from_arrow(blocks).map_batches(
        _Worker,
        fn_constructor_args=(make, arguments),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
    )
    try:
        for answer in found.iter_batches(batch_size=None, batch_format="pyarrow"):
            for lines, refusal in zip(
                answer.column("item").to_pylist(), answer.column("refusal").to_pylist(), strict=True
            ):
                if refusal:
                    raise PathoError(*refusal)
                yield from lines
    except ray.exceptions.RayError as error:
        raise _failure(error) from error
