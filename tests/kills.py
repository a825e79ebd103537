"""Kills trainings with SIGKILL at random moments and looks whether anything is lost.

  python tests/kills.py --kills 1000 [--seed 0] [--json FILE] [--gently]

--gently sends SIGTERM instead, after which a process may finish its step and save, and has to be gone in 5 seconds.

A process that has imported torch forks children. Each trains in a run folder and is killed; the next one goes on in
the same folder with another number of workers, until the run is finished. Its weights and its history must then be
those of a run that nobody killed, to the last bit. After every kill all checkpoints are read, and their SHA-256 is
compared with the one in their names. One kill in three waits for a checkpoint's unfinished file, so as to hit a write,
and one for a step, which is over soon.

The exit code is 1 where a run was lost (it could not go on, or stood further back than its last checkpoint), where a
checkpoint was damaged, where any bit of a result was different, or where the unfinished file of a killed write
outlived the next start.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # a process that has threads must not fork

import argparse
import gc
import hashlib
import json
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also without an installation

import numpy as np
import tiny
import torch
import torch._dynamo  # which an optimiser imports: once here, not in each process
from tqdm import tqdm

from patholib.model.recipes import Recipe, Stage
from patholib.train import loop, optimising, resuming, runs, saving, training

BASE = replace(tiny.TINY, epochs=3)
RECIPES = {
    "plain": BASE,
    "stages": replace(
        BASE,
        epochs=4,
        stages=(Stage(0, 5, 1.0), Stage(0.5, 0, 0.5)),
        schedule="plateau",
        plateau_patience=0,
        balance="sampler",
        optimizer="adamw",
        batchnorm="adapt",
        clip_norm=0.5,
    ),
    "dropout": replace(BASE, head_dropout=(0.5, 0.3)),
    "early stop": replace(BASE, epochs=7, patience=1, t_0=1),  # where a cycle ends, after epoch 1, 3 or 7
    "bf16": replace(BASE, precision="bf16"),
    "fp16": replace(BASE, precision="fp16"),  # its scaler passes over two steps here
}
INTERVALS = (0.0, 0.0, 0.05, 300.0)  # seconds between checkpoints: after every step, now and then, at ends of epochs
AIMS = ("writing", "training", "")  # what a kill waits for, if for anything; they take turns by chance
WRITE = 0.002  # seconds that a disk then takes at least, so that the kill hits the write also on a quick one
LIFE = 60.0  # seconds after which a process that nobody killed counts as hung
CHECKPOINT = re.compile(r"(?P<kind>last|best)-(?P<step>\d{9})-(?P<digest>[0-9a-f]{16})\.pt")


class Lost(Exception):
    """A run that did not go on as it must, and why."""


@dataclass
class Counts:
    """What happened; everything from `lost` on must stay 0."""

    kills: int = 0
    inside_write: int = 0  # kills that left the unfinished file of a checkpoint
    phases: dict[str, int] = field(default_factory=dict)  # kills by what the process was doing
    runs: int = 0
    seconds: float = 0.0
    leaving: list[float] = field(default_factory=list)  # seconds from SIGTERM to the end, of each
    lost: int = 0
    corrupt: int = 0  # checkpoints whose bytes are not those that their name states
    different: int = 0  # runs with other weights or another history
    slow: int = 0  # processes that were still there 5 seconds after SIGTERM
    leftovers: int = 0  # unfinished files that were still there when the next process was training

    @property
    def good(self) -> bool:
        return not (self.lost or self.corrupt or self.different or self.leftovers or self.slow)

    def __str__(self) -> str:
        phases = ", ".join(f"{n} {phase}" for phase, n in sorted(self.phases.items()))
        return (
            f"{self.kills} kills ({self.inside_write} left an unfinished checkpoint; {phases}) in {self.runs} runs "
            f"and {self.seconds:.0f} s: {self.lost} runs lost, {self.corrupt} checkpoints damaged, "
            f"{self.different} results different, {self.leftovers} unfinished files left behind"
            + (
                f"; gone {np.median(self.leaving):.3f} s after SIGTERM at the median, {max(self.leaving):.3f} s at most"
                if self.leaving
                else ""
            )
        )


@dataclass
class Life:
    """What a process told before its end."""

    killed: bool
    seconds: float
    phase: str = "starting"
    leaving: float = 0.0  # seconds it took to go
    steps: int = 0  # done since the run began; 0: it did not get to one
    result: str = ""

    def hear(self, words: list[str]) -> None:
        """Takes up all it said: "training", "step 7", "result <digest>", 'error "<traceback>"'."""
        for line in words:
            word, _, rest = line.partition(" ")
            if word == "error":
                raise Lost(json.loads(rest))
            if word == "step":
                self.steps = int(rest)
            elif word == "result":
                self.result = rest
            else:
                self.phase = word


# --- in the child ---


def live(recipe: Recipe, interval: float, folder: Path, workers: int, slow: bool, pipe: int) -> None:
    """Trains in `folder`, says on the pipe how far it is, and ends the process without what its parent does at exit."""

    def say(text: str) -> None:
        os.write(pipe, f"{text}\n".encode())

    code = 0
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        saving.SAVE_SECONDS = interval
        if slow:
            sync = os.fsync
            os.fsync = lambda handle: (time.sleep(WRITE), sync(handle))
        announced = {
            (resuming, "resume"): "loading",
            (optimising, "step"): "training",
            (loop, "validate"): "validating",
            (saving.Saving, "write"): "writing",
            (loop, "facts"): "finishing",
        }
        for (owner, name), phase in announced.items():
            setattr(owner, name, telling(getattr(owner, name), phase, say))
        run = tiny.open_run(folder, recipe)
        run.lock = runs._lock(folder)
        if run.lock is None:
            raise Lost("the folder is still locked by the process that was killed")
        with tiny.network():
            model = tiny.build(recipe)
        training.fit(model, tiny.image_set(train=24, val=8, cue=15), run, device="cpu", workers=workers)
        say(f"result {digest(model, folder)}")
    except SystemExit as left:  # as asked
        code = left.code
    except BaseException:
        say(f"error {json.dumps(traceback.format_exc())}")
    finally:
        os._exit(code)


def telling(function, phase: str, say):
    """The function, preceded by its phase and, if it is a step, followed by the number of steps done."""

    def told(state, *args, **options):
        say(phase)
        result = function(state, *args, **options)
        if phase == "training":
            say(f"step {state.steps_done}")
        return result

    return told


def digest(model: torch.nn.Module, folder: Path) -> str:
    """SHA-256 of all bits of the weights and of the history on disk but its times."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    history = json.loads((folder / "history.json").read_text(encoding="utf-8"))
    found.update(json.dumps([{k: v for k, v in row.items() if k not in tiny.TIMES} for row in history]).encode())
    return found.hexdigest()


# --- in the parent ---


def spawn(
    recipe: Recipe,
    interval: float,
    folder: Path,
    workers: int,
    moment: float = LIFE,
    aim: str = "",
    after: float = 0.0,
    number: int = signal.SIGKILL,
) -> Life:
    """One process, sent a signal at `moment` in seconds, or `after` the next write or step begins, if aimed at one."""
    before = unfinished(folder)
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        live(recipe, interval, folder, workers, aim == "writing", writing)
    os.close(writing)
    status, killed, words = None, False, b""
    try:
        while (status := ended(pid)) is None and time.monotonic() < started + LIFE:
            said = waiting(reading)
            words += said
            if time.monotonic() >= started + moment:
                there = {"writing": unfinished(folder) - before, "training": said.endswith(b"training\n"), "": True}
                if there[aim]:
                    time.sleep(after)
                    break
            time.sleep(1e-4)
    finally:
        asked = time.monotonic()
        if status is None:
            os.kill(pid, number)
            _, status = os.waitpid(pid, 0)
            killed = os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 143  # it may have ended in this very moment
    while said := waiting(reading):
        words += said
    os.close(reading)
    life = Life(killed, time.monotonic() - started, leaving=time.monotonic() - asked)
    life.hear(words.decode().split("\n")[:-1])  # the last line may have been cut off
    if killed and life.seconds > LIFE:
        raise Lost(f"its process hung while {life.phase}")
    if not killed and not life.result:
        raise Lost(f"its process ended by itself while {life.phase}, with status {status}")
    return life


def waiting(pipe: int) -> bytes:
    """What can be read from it at once; nothing where that is nothing, or all writers are gone."""
    try:
        return os.read(pipe, 2**16)
    except BlockingIOError:
        return b""


def ended(pid: int) -> int | None:
    """The status of a child that has ended, else None."""
    done, status = os.waitpid(pid, os.WNOHANG)
    return status if done else None


def unfinished(folder: Path) -> set[str]:
    """The files of checkpoints whose writing has begun and not ended."""
    try:
        return {name for name in os.listdir(folder / "checkpoints") if name.endswith(".part")}  # noqa: PTH208 - quicker
    except FileNotFoundError:
        return set()


def look_at(folder: Path) -> tuple[int, set[str]]:
    """The newest step that a whole checkpoint holds, and the checkpoints that are damaged or were set aside as such."""
    newest, damaged = 0, set()
    for path in (folder / "checkpoints").glob("[lb]*"):
        stated = CHECKPOINT.fullmatch(path.name)
        if stated is None or not hashlib.sha256(path.read_bytes()).hexdigest().startswith(stated["digest"]):
            damaged.add(path.name.partition(".")[0])
        elif stated["kind"] == "last":
            newest = max(newest, int(stated["step"]))
    return newest, damaged


def break_run(
    recipe: Recipe, interval: float, folder: Path, wanted: int, counts: Counts, rng, bar: tqdm, number: int
) -> None:
    """Makes a run twice, once in peace, once killed again and again until it is finished or the kills suffice."""
    peaceful = spawn(recipe, interval, folder / "peaceful", workers=2)
    # The time at which a process is killed at the latest: with a checkpoint after every step a short life gets on too.
    latest = peaceful.seconds * (1 if interval else 0.7)
    broken, newest, workers, left, damaged = folder / "broken", 0, 0, set(), set()
    while True:
        workers = workers % 4 + 1
        before = unfinished(broken)
        options = {}
        if counts.kills < wanted:
            aim = str(rng.choice(AIMS))
            options = {
                "moment": rng.uniform(0, latest),
                "aim": aim,
                "after": rng.uniform(0, WRITE) if aim else 0.0,
                "number": number,
            }
        life = spawn(recipe, interval, broken, workers, **options)
        if life.steps:
            left |= before & unfinished(broken)
        if not life.killed:
            counts.leftovers += len(left)
            counts.different += life.result != peaceful.result
            return
        counts.kills += 1
        if number == signal.SIGTERM:
            counts.leaving.append(round(life.leaving, 4))
            counts.slow += life.leaving > 5
        counts.inside_write += bool(unfinished(broken) - before)
        counts.phases[life.phase] = counts.phases.get(life.phase, 0) + 1
        bar.update()
        reached, found = look_at(broken)
        counts.corrupt += len(found - damaged)
        damaged |= found
        if reached < newest:
            raise Lost(f"its newest checkpoint was of step {newest}, and is of step {reached}")
        if interval == 0 and reached < life.steps - 1:
            raise Lost(f"{life.steps} steps were done, and its newest checkpoint is of step {reached}")
        newest = reached


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write the counts")
    parser.add_argument("--gently", action="store_true", help="send SIGTERM instead of SIGKILL")
    chosen = parser.parse_args(arguments)
    number = signal.SIGTERM if chosen.gently else signal.SIGKILL
    if not hasattr(os, "fork"):
        sys.exit("Windows cannot fork a process, which this test is made of; run it on Linux, macOS or in WSL.")
    torch.set_num_threads(1)
    gc.freeze()  # what was imported is no garbage; a child that looked through it would spend most of its life so
    tqdm.monitor_interval = 0  # no thread beside this one
    tqdm.set_lock(threading.RLock())  # its own lock is shared with the children, and whoever is killed keeps it
    rng, counts, started = np.random.default_rng(chosen.seed), Counts(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="patholib-") as folder, tqdm(total=chosen.kills, unit="kill") as bar:
        while counts.kills < chosen.kills:
            name = list(RECIPES)[counts.runs % len(RECIPES)]
            recipe, interval = replace(RECIPES[name], seed=counts.runs), float(rng.choice(INTERVALS))
            damaged, different = counts.corrupt, counts.different
            counts.runs += 1
            try:
                break_run(recipe, interval, Path(folder), chosen.kills, counts, rng, bar, number)
            except Lost as reason:
                counts.lost += 1
                tqdm.write(f"run {counts.runs} ({name}, checkpoints every {interval:g} s) is lost: {reason}")
            if (damaged, different) != (counts.corrupt, counts.different):
                tqdm.write(f"run {counts.runs} ({name}, checkpoints every {interval:g} s) is damaged or different")
            for path in Path(folder).iterdir():
                shutil.rmtree(path)
    gc.unfreeze()
    counts.seconds = round(time.monotonic() - started, 1)
    if chosen.json:
        chosen.json.write_text(json.dumps(asdict(counts), indent=1) + "\n", encoding="utf-8")
    print(counts)
    return 0 if counts.good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
