"""Times training in two processes beside one, with the same threads in all and the same batches.

  python benchmarks/speed_processes.py             writes the section speed processes of RESULTS.md: some minutes
  python benchmarks/speed_processes.py --quick     in miniature; writes nothing

Each training is the command `python -m patholib.train.training`, on demo images. A rate is the images per second that
its history says of the epochs after the first, so that neither the start of a process nor its first step counts.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import harness
from harness import Mark

from patholib.base import files

ONE, BOTH = "one process, two threads", "two processes, a thread each"
SHARE = 0.8  # of the rate of one process, at the recipe's size, where nothing is gained but cores of another machine
REASON = "Two processes exchange every gradient, and each computes half a batch, which suits a processor less."
SMALL, OWN = 64, 224  # pixels: where the exchange counts most beside the computing, and as the recipes have it


@dataclass(frozen=True)
class Scale:
    """How large and how often."""

    sides: tuple[int, ...] = (SMALL, OWN)
    batch: int = 32
    epochs: int = 2
    rounds: int = 3


QUICK = Scale(sides=(32,), rounds=1)
RECIPES = ("breakhis", "isic2019")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    scale = QUICK if parser.parse_args(arguments).quick else Scale()
    found = {
        (recipe, side): measured(recipe, side, scale)
        for recipe in (RECIPES[:1] if scale is QUICK else RECIPES)
        for side in scale.sides
    }
    text, judged = report(found, scale), marks(found)
    if scale is QUICK:
        print("\n".join([*text, *harness.verdicts(judged)]))
        return 0
    return harness.section(
        "processes",
        "Training in two processes",
        "python3 run.py bench processes",
        "\n".join(text),
        judged,
        ["torchvision", "accelerate"],
    )


def measured(recipe: str, side: int, scale: Scale) -> dict[str, list[float]]:
    """The rate of either way in every round, in turn."""
    rates: dict[str, list[float]] = {ONE: [], BOTH: []}
    for _ in range(scale.rounds):
        rates[ONE].append(rate(recipe, side, 1, 2, scale))
        rates[BOTH].append(rate(recipe, side, 2, 1, scale))
    return rates


def rate(recipe: str, side: int, processes: int, threads: int, scale: Scale) -> float:
    """Images per second of a training of its own."""
    with tempfile.TemporaryDirectory(prefix="patholib-") as folder:
        path = files.write_json(
            Path(folder, "RUN.json"),
            {
                "recipe": recipe,
                "data": "demo",
                "image_size": side,
                "batch_size": scale.batch,
                "epochs": scale.epochs,
                "output": folder,
                "device": "cpu",
                "precision": "fp32",
                "workers": 1,
                "processes": processes,
            },
        )
        env = os.environ | {"OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(harness.ROOT), env.get("PYTHONPATH")]))
        subprocess.run(
            [sys.executable, "-m", "patholib.train.training", path],
            env=env,
            cwd=harness.ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        (history,) = [files.read_json(found) for found in Path(folder).glob("*/history.json")]
    assert [row["processes"] for row in history] == [processes] * scale.epochs
    return harness.spread([row["images_per_second"] for row in history[1:]])[0]


def marks(found: dict[tuple[str, int], dict[str, list[float]]]) -> list[tuple[Mark, float]]:
    return [
        (Mark(f"{recipe}, {side} px: {BOTH}, beside {ONE}", SHARE, reason=REASON), harness.spread(ratios(rates))[0])
        for (recipe, side), rates in found.items()
        if side != SMALL
    ]


def ratios(rates: dict[str, list[float]]) -> list[float]:
    return [both / one for one, both in zip(rates[ONE], rates[BOTH], strict=True)]


def report(found: dict[tuple[str, int], dict[str, list[float]]], scale: Scale) -> list[str]:
    rows = []
    for (recipe, side), rates in found.items():
        for name, values in rates.items():
            middle, low, high = harness.spread(values)
            rows.append([recipe, f"{side}", name, f"{middle:,.4g}", f"{low:,.4g} to {high:,.4g}"])
        middle, low, high = harness.spread(ratios(rates))
        rows.append([recipe, f"{side}", "two beside one", f"x {middle:.2f}", f"{low:.2f} to {high:.2f}"])
    return [
        f"Steps on batches of {scale.batch} images, recipes for random weights, on the cores of one machine: what "
        "sharing a batch costs, not what a second machine or GPU brings. The exchange is the same whatever the "
        "size of the images.",
        "",
        *harness.markdown(["recipe", "pixels", "", "images/s", "over the rounds"], rows),
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
