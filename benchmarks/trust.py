"""Asks of heatmaps whether they can be believed, where it is known what counts, and writes it into RESULTS.md.

  python benchmarks/trust.py demo                   demo images: the cell nest that was drawn into each of them
  python benchmarks/trust.py isic --data FOLDER     real lesions: FOLDER/isic2019 to train on (ISIC 2019 layout) and
                                                    FOLDER/isic_masks, other images with NAME_segmentation.png

Trains a network from random weights on small pictures and examines its maps by three methods, beside those of the same
network untrained. Options: --epochs, --image-size, --seed, --count (images examined), --results FILE. A training that
was cut off is taken up again. Of real images nothing is kept but numbers. The exit code is 1 where a mark was missed.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import harness
import numpy as np
import pandas as pd
from harness import Mark, markdown

from patholib.base.errors import PathoError
from patholib.data import checking, decoding, imagesets, readers, splitting
from patholib.data.readers import isic2019
from patholib.judge import metrics, predicting, trust
from patholib.model import building, profiles
from patholib.train import runs, training

TITLES = {
    "demo": "Heatmaps on demo images: is the planted cue found?",
    "isic": "Heatmaps on real lesions: do they lie on them?",
}
KINDS = {"demo": "breakhis", "isic": "isic2019"}
# Method, and whether its maps are averaged over eight views. Occlusion takes 50 passes a map.
METHODS = (("gradcam", False), ("gradcam", True), ("gradcam++", False), ("hirescam", False))


@dataclass(frozen=True)
class Known:
    """Images that were not trained on, with the places that count."""

    images: imagesets.ImageSet
    masks: dict[str, np.ndarray]
    what: str


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=TITLES)
    parser.add_argument("--data", type=Path, help="isic: the folder that holds isic2019 and isic_masks")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int)
    parser.add_argument("--results", type=Path, default=harness.RESULTS)
    options = parser.parse_args(arguments)
    if options.name == "isic" and options.data is None:
        parser.error("isic needs --data")
    return measure(options)


def measure(options: argparse.Namespace) -> int:
    """Trains, examines, writes the section; the exit code."""
    start = time.monotonic()
    checked, run = prepared(options)
    tiles, recipe = checked.images.with_split(splitting.read_split(run.dir / "split.csv")), run.recipe
    model = building.build(recipe)
    history = training.fit(model, tiles, run, workers=2)
    known = (
        planted(checked, tiles, run)
        if options.name == "demo"
        else annotated(options.data / "isic_masks", options.data / "isic2019", recipe)
    )
    count = options.count or trust.MOST
    predictions = predicting.predict(model, known.images, recipe, progress=False)  # both are asked for the same classes
    score = metrics.summary(predictions, recipe.classes, recipe.positive)["metrics"]["auc"]
    found = {}
    for title, network in (("trained", model), ("untrained", building.build(recipe).eval())):
        for method, average in METHODS:
            begun = time.process_time()  # of the processor: a busy machine does not add to it
            report = trust.examine(
                network,
                known.images,
                predictions,
                masks=known.masks,
                positive=recipe.positive,
                count=count,
                method=method,
                average=average,
                seed=recipe.seed,
            )
            found[title, report.facts["method"]] = report, time.process_time() - begun
            print(f"{title}: {report}", flush=True)
    text = [
        *facts(recipe, run, history, known, score, time.monotonic() - start),
        "",
        *tables(found),
        "",
        *reasons(found),
    ]
    code = write(options, text, marks(found))
    run.finish()
    return code


def prepared(options: argparse.Namespace):
    """The checked images to train on and the run folder, new or cut off."""
    kind, demo = KINDS[options.name], options.name == "demo"
    source = readers.load(kind, "demo" if demo else options.data / "isic2019", missing="error" if demo else "skip")
    size = options.image_size or 64
    epochs = options.epochs or (None if demo else 20)
    recipe = profiles.recipe_for(kind, source, weights="none", image_size=size, epochs=epochs, seed=options.seed)
    checked = checking.check(source, recipe.cache_size, recipe.fit, on_bad="skip", progress=False)
    split = splitting.split(checked.manifest, recipe.fractions, recipe.seed, recipe.group_by)
    return checked, runs.start(recipe, checked, split)


def planted(checked: checking.Checked, tiles: imagesets.ImageSet, run: runs.Run) -> Known:
    """The test images of the demo set, and the nests that were drawn into them."""
    test = tiles.part("test")
    masks = trust.planted(checked.manifest, test, run.recipe.fit)
    return Known(test, masks, "test images of the demo set, with the nest that shows the cue")


def annotated(masks: Path, data: Path, recipe) -> Known:
    """Real images with an expert's outline of the lesion; none of them is in the training set, the folder `data`."""
    outlines = {path.name.removesuffix("_segmentation.png"): path for path in sorted(masks.glob("*_segmentation.png"))}
    truth = pd.read_csv(data / isic2019.TRUTH, index_col="image")
    names = [name for name in outlines if name in truth.index]
    trained_on = {path.stem for path in data.rglob("*.jpg")}
    if not names or trained_on & set(names):
        raise PathoError(
            "bad_masks",
            masks.name,
            f"holds {len(names)} labelled images, {len(trained_on & set(names))} of them in the training set",
            "Give other images",
        )
    pixels = np.stack(
        [decoding.to_square(decoding.read(masks / f"{name}.jpg"), recipe.cache_size, recipe.fit) for name in names]
    )
    table = pd.DataFrame(
        {
            "path": names,
            "label": truth.loc[names, list(recipe.classes)].idxmax(axis=1).to_numpy(),
            "group": names,
            "row": np.arange(len(names)),
        }
    )
    masks = trust.squares({name: outlines[name] for name in names}, recipe.cache_size, recipe.fit)
    return Known(
        imagesets.ImageSet(pixels, table, recipe.classes),
        masks,
        "real dermoscopy images with an expert's outline of the lesion, none of them trained on",
    )


# --- the section ---


def facts(recipe, run: runs.Run, history: pd.DataFrame, known: Known, score: dict, seconds: float) -> list[str]:
    return [
        f"- Model: {recipe.arch}, weights {recipe.weights}, {recipe.image_size} pixels, {len(history)} epochs, "
        f"seed {recipe.seed}; on the images below AUC {metrics.readable(score)}",
        f"- Images: {len(known.images)} {known.what}",
        f"- Time: {seconds / 60:.0f} min, {history['seconds'].sum() / 60:.0f} min of it training",
        *["- Demo images: not a result, but here it is known what counts"] * run.demo,
    ]


def tables(found: dict) -> list[str]:
    """A line for every network and method, with every check: the maps against their null, and the difference."""
    first = next(iter(found.values()))[0].facts
    of = f" predicted as {first['of']}" if first["of"] else ""
    rows = [
        [
            name,
            method,
            *(f"{check['found']}, {check['state']}" for check in report.facts["checks"].values()),
            f"{report.facts['blank']} of {report.facts['images']}",
            f"{seconds:.0f} s",
            report.state,
        ]
        for (name, method), (report, seconds) in found.items()
    ]
    return [
        f"At most {first['images']} images{of} of {first['groups']} groups. Each check: the maps against their null, "
        "the difference with its interval over groups, and the result.",
        "",
        *markdown(["network", "method", *first["checks"], "blank", "processor time", "verdict"], rows),
    ]


def reasons(found: dict) -> list[str]:
    """Grad-CAM's verdicts in words."""
    lines = []
    for name in ("trained", "untrained"):
        report = found[name, "gradcam"][0]
        lines += [f"Grad-CAM of the {name} network: {report.verdict}", ""]
        lines += [*(f"- {line}" for line in report.reasons), ""] if report.reasons else []
    return lines[:-1]


def marks(found: dict) -> list[tuple[Mark, float]]:
    """The trained network's Grad-CAM has to lie on what counts; the untrained one's must not be supported."""
    located = found["trained", "gradcam"][0].facts["checks"]["located"]["number"]
    unsupported = float(not found["untrained", "gradcam"][0].trusted)
    return [
        (Mark("trained, Grad-CAM: heat on the mask over maps of other groups, low end", 0.0, ""), lower(located)),
        (Mark("untrained, Grad-CAM: not supported", 1.0, ""), unsupported),
    ]


def lower(number: dict) -> float:
    return float("-inf") if number["low"] is None else number["low"]


def write(options: argparse.Namespace, text: list[str], judged: list[tuple[Mark, float]]) -> int:
    """Puts the section into the results."""
    given = [
        part
        for name in ("epochs", "image_size", "count")
        if (value := getattr(options, name)) is not None
        for part in ("--" + name.replace("_", "-"), str(value))
    ]
    given += ["--seed", str(options.seed)] * bool(options.seed)
    command = shlex.join(["benchmarks/trust.py", options.name, *["--data", "DATA"] * (options.name == "isic"), *given])
    return harness.section(
        options.name,
        TITLES[options.name],
        f"python {command}",
        "\n".join(text),
        judged,
        results=options.results,
        family="trust",
    )


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except PathoError as error:
        sys.exit(f"PathoError {error}")
