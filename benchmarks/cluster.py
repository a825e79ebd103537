"""Times runs and predictions on one machine and on a Ray cluster of two workers that is made of it.

  python benchmarks/cluster.py              about fifteen minutes; writes the section speed cluster of RESULTS.md
  python benchmarks/cluster.py --quick      in miniature, to see that it runs; writes nothing

The tables must be the same, byte for byte. Two workers of one CPU each compete for this machine's caches and memory:
it shows what Ray costs and that the work is shared out, not what many machines gain. Needs the extra cluster.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import harness
import numpy as np
from harness import Mark
from PIL import Image

from patholib.base import cluster
from patholib.base.errors import PathoError
from patholib.deploy import export, predictions
from patholib.deploy.inference import Predictor
from patholib.lab import sweeps
from patholib.model import building, recipes

MARKS = (
    Mark("pictures/s: one Ray worker keeps of one process", 0.8, reason="Handing out and fetching costs more."),
    Mark(
        "pictures/s: two Ray workers beside one",
        1.6,
        reason="Two workers share caches and memory, and the cores also with the process that writes the table.",
    ),
    Mark(
        "runs: two at once by Ray beside one after another",
        1.4,
        reason="Starting kernels is bound by the disk and by the one processor that two runs share.",
    ),
)


@dataclass(frozen=True)
class Scale:
    """How much."""

    few: int = 500  # pictures, to see what comes before the first
    pictures: int = 5000
    side: int = 600  # pixels of a picture
    size: int = 224  # of what the model sees
    runs: int = 4
    epochs: int = 6


QUICK = Scale(few=6, pictures=24, side=64, size=32, runs=2, epochs=1)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args(arguments).quick
    scale = QUICK if quick else Scale()
    os.environ["OMP_NUM_THREADS"] = "1"  # of every worker and run; what is compared is their number
    with tempfile.TemporaryDirectory(prefix="patholib-") as folder:
        pictures, training = predicted(Path(folder), scale), trained(Path(folder), scale)
    text = [
        *rates(scale, pictures),
        "",
        *table(f"runs of breakhis on demo images, {scale.epochs} epochs", scale.runs, training),
    ]
    one, alone, both = (rate for _, rate in pictures.values())
    judged = list(
        zip(
            MARKS,
            (alone / one, both / alone, training["one after another"] / training["two at once, Ray"]),
            strict=True,
        )
    )
    if quick:
        print("\n".join([*text, *harness.verdicts(judged)]))
        return 0
    said = __doc__.partition("\n\n")[2].partition("\n\n")[2].strip()
    return harness.section(
        "cluster",
        "Many runs and pictures: one machine, and Ray on it",
        "python benchmarks/cluster.py",
        "\n".join([said, "", *text]),
        judged,
        ["ray"],
    )


def rates(scale: Scale, found: dict[str, tuple[float, float]]) -> list[str]:
    first = next(rate for _, rate in found.values())
    return harness.markdown(
        [f"{scale.pictures} pictures", "seconds before the first", "pictures/s", "times the first"],
        [[name, f"{start:.1f}", f"{rate:.3g}", f"{rate / first:.2f}"] for name, (start, rate) in found.items()],
    )


def table(what: str, runs: int, seconds: dict[str, float]) -> list[str]:
    first = next(iter(seconds.values()))
    return harness.markdown(
        [what, "seconds", "runs/hour", "times the first"],
        [
            [name, f"{found:.1f}", f"{3600 * runs / found:.3g}", f"{first / found:.2f}"]
            for name, found in seconds.items()
        ],
    )


def timed(call, *given, **options) -> tuple[float, object]:
    start = time.perf_counter()
    found = call(*given, **options)
    return time.perf_counter() - start, found


def predicted(folder: Path, scale: Scale) -> dict[str, tuple[float, float]]:
    """By one process, and by one and two workers: seconds before the first picture, and pictures a second from then on.

    Both follow from the time for a few pictures and that for all of them.
    """
    recipe = replace(recipes.ISIC2019, weights="none", image_size=scale.size)
    export.save_model(folder / "model", building.build(recipe).state_dict(), recipe)
    rng = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for i in range(scale.pictures):
        pixels = rng.integers(0, 256, (scale.side // 8, scale.side // 8, 3), np.uint8)
        Image.fromarray(pixels).resize((scale.side, scale.side)).save(folder / "pictures" / f"{i:04}.jpg")
    predictor = Predictor(folder / "model", "torch", threads=1)

    def write(name: str, workers: int, on=None) -> tuple[float, float]:
        few = sorted((folder / "pictures").iterdir())[: scale.few]
        some, _ = timed(
            predictions.write, predictor, few, folder / f"{name}-few.csv", workers=workers, progress=False, on=on
        )
        whole, _ = timed(
            predictions.write,
            predictor,
            [folder / "pictures"],
            folder / f"{name}.csv",
            workers=workers,
            progress=False,
            on=on,
        )
        rate = (scale.pictures - scale.few) / (whole - some)
        return max(0.0, some - scale.few / rate), rate

    write("warm-up", 1)
    found = {"one process": write("one", 1)}
    with cluster.joined():
        on = predictions.Ray(folder / "model")
        found |= {f"{count} Ray worker{'s' * (count > 1)}": write(f"ray{count}", count, on) for count in (1, 2)}
    if len({path.read_bytes() for path in folder.glob("*.csv") if "few" not in path.name}) != 1:
        raise PathoError("number_changed", "predictions", "differ between one process and Ray", "Find what differs")
    return found


def trained(folder: Path, scale: Scale) -> dict[str, float]:
    """Seconds for the same runs, one after another, two at once, and two at once by Ray."""
    notebook = sweeps.find("breakhis")
    planned = sweeps.plan(
        notebook,
        {"seed": list(range(scale.runs))},
        {"data": "demo", "epochs": scale.epochs, "image_size": 32, "workers": 1},
    )
    ways = {"one after another": sweeps.Here(1, 1), "two at once": sweeps.Here(2, 1), "two at once, Ray": sweeps.Ray()}
    found = {}
    for number, (name, on) in enumerate(ways.items()):
        state = sweeps.taken_up(folder / str(number), notebook, planned)
        jobs = [sweeps.job(notebook, folder / str(number), run, planned[run]) for run in planned]
        found[name], _ = timed(sweeps.run, folder / str(number), state, jobs, on, progress=False)
        failed = [run["reason"] for run in state["runs"].values() if run["status"] != "finished"]
        if failed:
            raise PathoError("run_failed", name, failed[0], "Run the notebook alone")
    return found


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except PathoError as error:
        sys.exit(str(error))
