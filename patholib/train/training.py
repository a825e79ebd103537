"""Trains a network on a run's images; `python -m patholib.train.training` is what each of several processes runs.

Reading order: `fit` here, the epochs in `loop`, one step and its gradients in `optimising`. What they work on is in
`state`, the batches in `feeding`, checkpoints in `saving` and `resuming`. Randomness depends only on seed, epoch and
position.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from patholib.base import files
from patholib.base.cpu import threads
from patholib.base.errors import PathoError
from patholib.base.progress import say
from patholib.base.team import ALONE, Team, check_count, check_gpus, joined, myself
from patholib.data.imagesets import ImageSet
from patholib.model.networks import Classifier
from patholib.model.recipes import Recipe
from patholib.train import devices, handover, heads, launching, loop, resuming
from patholib.train.runs import Run
from patholib.train.state import State
from patholib.train.stopping import Stop


def fit(
    model: Classifier,
    images: ImageSet,
    run: Run,
    *,
    device: str = "auto",
    workers: int = 2,
    max_hours: float | None = None,
    processes: int = 1,
    team: Team = ALONE,
) -> pd.DataFrame:
    """Trains `model` on the train part of `images` and leaves the best epoch's weights in it.

    Resumes from the run folder's newest checkpoint, also in the middle of an epoch; a finished training is not
    repeated. Writes `checkpoints/`, `history.csv`, `history.json` and events to `run.jsonl`. Returns the history, one
    row per epoch. With train="head" in the recipe that is done by `heads.fit`, one row per strength.
    max_hours: stop cleanly after that time, saved. processes: number of processes of this machine that share each
    batch, each with a GPU of its own where there are some; they are started here. team: the processes, already started,
    that this one trains with.
    Errors: nonfinite_loss (with the files of the batch), time_is_up, out_of_memory, empty_class, single_class,
    resume_changed, checkpoint_damaged, checkpoint_version, no_space and output_unwritable (after three checkpoints that
    could not be written, and with the state kept in the home folder), process_lost; SystemExit(143) on SIGTERM,
    KeyboardInterrupt on SIGINT.
    """
    if check_processes(processes, device, run.recipe) > 1 and not resuming.has_ended(run):
        handover.train(model, images, run, device, workers, max_hours, processes)  # their result is loaded below
    gpus = range(torch.cuda.device_count())  # named, as fork_rng warns where it has to find several by itself
    with torch.random.fork_rng(gpus), devices.backend(run.recipe.fast):  # the caller's generators and switches stay
        if run.recipe.train == "head":
            return heads.fit(model, images, run, devices.own_device(device, team), max_hours)
        state = State(
            model, images, run, devices.own_device(device, team), threads(workers, say), team, Stop(max_hours)
        )
        resuming.resume(state)
        try:
            with state.stop:
                loop.run(state)
        except torch.OutOfMemoryError as error:  # not the batch, which is then computed in parts
            raise PathoError(
                "out_of_memory",
                "model and optimizer",
                "do not fit into the GPU's memory",
                "Close what else runs on it, or use a smaller network",
            ) from error
    return pd.DataFrame(state.progress.history)


def check_processes(count: int, device: str, recipe: Recipe) -> int:
    """The number of processes, if this machine and recipe have work for so many. Errors: bad_parameter."""
    if check_count(count) == 1:
        return 1
    if recipe.train == "head":
        raise PathoError(
            "bad_parameter",
            "processes",
            f"are {count}, but a head is fitted by one: the images pass through the network once",
            "Use processes=1",
        )
    chosen = devices.choose_device(device)
    if chosen.index is not None:
        raise PathoError(
            "bad_parameter",
            "device",
            f"is {device!r}, one GPU, for {count} processes",
            'Use device="cuda", and each takes a GPU of its own',
        )
    check_gpus(count, chosen.type == "cuda")
    if count > recipe.batch_size:
        raise PathoError(
            "bad_parameter",
            "processes",
            f"are {count}, more than the {recipe.batch_size} images of a batch",
            "Use fewer processes, or a larger batch_size",
        )
    return count


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m patholib.train.training FOLDER`: trains what `handover.train` put in FOLDER; returns the exit code.

    torchrun starts it in as many processes as share each batch. 0: trained; 2: refused; 130, 143: asked to stop, saved.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    if len(given) != 1 or given[0].startswith("-"):
        print(main.__doc__, file=sys.stderr)
        return launching.REFUSED
    path, team = Path(given[0]), myself()
    launching.hold_lifeline()
    try:
        facts = files.read_json(path / "job.json")
        with joined(devices.choose_device(facts["device"]).type == "cuda") as team:
            model, images, run, how = handover.opened(path, facts, team)
            check_processes(team.count, facts["device"], run.recipe)
            fit(model, images, run, **how, team=team)
            run.close()
    except (PathoError, KeyboardInterrupt, SystemExit) as error:
        return launching.leave(team, error, path if path.is_dir() else None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
