"""Teams of processes for tests: forked from one that has imported torch, connected through the loopback interface.

Run as a script it is what a notebook's `processes` starts, with the small network of `tiny`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import random
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also without an installation

import pytest
import tiny
import torch
import torch._dynamo  # which an optimiser imports: once here, not in each process

from patholib import cli
from patholib.base.errors import PathoError
from patholib.base.team import Team, joined
from patholib.model import building
from patholib.train import launching, training

PATIENCE = 180.0  # seconds after which a team counts as hung
ALONE = {"OMP_NUM_THREADS": "1"}  # two threads add in another order, and a process that has threads must not fork


class Told(Exception):
    """What a process of a team ended with instead of a result: its code."""


def server():
    """The process that all teams are forked from."""
    folder = str(Path(__file__).parent)
    before = {key: os.environ.get(key) for key in ("OMP_NUM_THREADS", "PYTHONPATH")}
    os.environ |= ALONE | {"PYTHONPATH": os.pathsep.join([folder, str(Path(folder).parent)])}
    try:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["several"])
        multiprocessing.forkserver.ensure_running()
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
    return context


def free_port() -> int:
    """A port below those that the system hands out: no connection of another test gets it before the team does."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")


def team(count: int, folder: Path, work, *given, lost: tuple[int, ...] = ()) -> list:
    """work(team, *given) in `count` processes: what each returned, by rank; of one that failed the name of its error.

    folder: a new one, for the results. lost: ranks that are expected to die without a result.
    """
    folder.mkdir(parents=True)
    context, port = server(), free_port()
    members = [context.Process(target=member, args=(rank, count, port, folder, work, given)) for rank in range(count)]
    for process in members:
        process.start()
    end = time.monotonic() + PATIENCE
    try:
        for process in members:
            process.join(max(0.0, end - time.monotonic()))
        hung = [rank for rank, process in enumerate(members) if process.is_alive()]
        ended = [str(torch.load(path, weights_only=True))[:300] for path in folder.iterdir()] if hung else []
        assert not hung, f"ranks {hung} hang; what the others ended with: {ended}"
    finally:
        for process in members:
            process.kill()
    return [None if rank in lost else torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


def member(rank: int, count: int, port: int, folder: Path, work, given) -> None:
    """One process of a team; what it does is kept in a file."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TQDM_DISABLE": "1",
        **ALONE,
        **launching._loopback(),
    }
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(PATIENCE - 10, file=sys.__stderr__)  # where one that hangs stands
    try:
        with tiny.network(), joined(False) as own:
            found = work(own, *given)
    except (PathoError, SystemExit, KeyboardInterrupt) as error:
        found = {"error": f"{getattr(error, 'code', type(error).__name__)}", "said": str(error)}
    torch.save(found, folder / f"{rank}.pt")


# --- what teams do ---


def train(own, folder: Path, recipe=tiny.TINY, images=(32, 16), prepare=None, dtype=torch.float32, **options) -> dict:
    """Trains as one of a team; prepare(patch, team): what is to be different here."""
    run = replace(tiny.open_run(folder, recipe), writes=own.first)
    model = building.build(recipe).to(dtype)
    with pytest.MonkeyPatch.context() as patch:
        if prepare is not None:
            prepare(patch, own)
        history = training.fit(model, tiny.image_set(*images), run, device="cpu", team=own, **options)
    return {"model": dict(model.state_dict()), "history": history.drop(columns=tiny.TIMES).to_dict("list")}


def alone(folder: Path, *given, **options) -> dict:
    """The same training in this process alone."""
    with tiny.network():
        return train(Team(), folder, *given, **options)


def furthest(one: dict, other: dict) -> float:
    """The largest difference between two models' weights and statistics."""
    one, other = one["model"], other["model"]
    assert one.keys() == other.keys()
    return max(float((one[key].double() - other[key].double()).abs().max()) for key in one)


def same(one: dict, other: dict) -> bool:
    """Whether two trainings have given the same bits, in weights and history."""
    return furthest(one, other) == 0 and one["history"] == other["history"]


@contextlib.contextmanager
def small_networks():
    """Lets the recipe of demo images, too, train the small network: its ResNet50 would take minutes."""
    with tiny.in_place_of("resnet50"), tiny.network():
        yield


if __name__ == "__main__":  # what `jobs.PROGRAM` is in tests
    with small_networks():
        sys.exit(cli.main(sys.argv[1:]) if sys.argv[1] == "train" else training.main())
