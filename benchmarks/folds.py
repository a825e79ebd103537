"""What a cross-validation gives besides its number: its folds as one model, and the labels that it doubts.

  python benchmarks/folds.py ensemble --data FOLDER [--epochs 0] [--size 96]
  python benchmarks/folds.py doubts --data FOLDER [--draws 3]

FOLDER (or PATHOLIB_REAL_DATA) holds isic2019/ and idc/labels.csv. Both commands write a section of RESULTS.md, or of
the file --results, and resume in --work. One thread.

`ensemble`: a fifth of the lesions of ISIC 2019 is held out before anything is trained; on the others five folds are
trained, EfficientNet-Lite0 from ImageNet weights: for --epochs, or with 0 a head on the frozen network. The folds as
one model and each of them alone then predict the held-out images, with the same pooled calibration and threshold.

`doubts`: 5 % of the labels of a data set, drawn at random, are turned to another class; five folds with a head on the
frozen network are fitted to what is left as it is; how many of the turned labels are in the first tenth of the ranking?
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import harness
import numpy as np
import pandas as pd
import torch
from harness import Mark, markdown

from patholib.data import checking, readers, splitting
from patholib.deploy import export, loading
from patholib.deploy.inference import Predictor
from patholib.judge import calibration, decisions, doubts, intervals, metrics, predicting
from patholib.judge.calibration import Calibration
from patholib.judge.validation import CrossValidated
from patholib.model import profiles
from patholib.model.recipes import Recipe
from patholib.study import Study

FOLDS, HELD, TURNED = 5, 0.2, 0.05
NUMBERS = {"auc": "AUC", "balanced_accuracy": "balanced accuracy", "log_loss": "log loss", "brier": "Brier score"}
SETS = {"idc": ("breakhis", "idc/labels.csv", "idc"), "isic2019": ("isic2019", "isic2019", None)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("ensemble", "doubts"))
    parser.add_argument("--data", type=Path, default=os.environ.get("PATHOLIB_REAL_DATA"))
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "patholib-folds")
    parser.add_argument("--results", type=Path, default=harness.RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    return {"ensemble": ensemble, "doubts": doubted}[options.what](options)


def ready(name: str, options: argparse.Namespace, epochs: int = 0) -> tuple[checking.Checked, Recipe]:
    """The images of a data set, checked, and the recipe for them; one view, as every view costs as much again."""
    kind, place, positive = SETS[name]
    source = readers.load(kind, options.data / place, missing="skip", **({"positive": positive} if positive else {}))
    how = {"epochs": epochs} if epochs else {"train": "head"}
    recipe = profiles.recipe_for(kind, source, arch="efficientnet_lite0", image_size=options.size, **how)
    recipe = replace(recipe, tta_views=1)
    report = options.work / "check" / name
    checked = checking.check(
        source, recipe.cache_size, recipe.fit, on_bad="skip", workers=1, progress=False, report_dir=report
    )
    return checked, recipe


def with_table(checked: checking.Checked, table: pd.DataFrame) -> checking.Checked:
    """The checked images that are in this table, with its labels."""
    labels, known = dict(zip(table["path"], table["label"], strict=True)), checked.images.table
    known = known[known["path"].isin(labels)].reset_index(drop=True)
    return replace(
        checked,
        manifest=replace(checked.manifest, table=table),
        images=replace(checked.images, table=known.assign(label=known["path"].map(labels))),
        facts=checked.facts[checked.facts["path"].isin(labels)].reset_index(drop=True),
    )


def crossed(checked: checking.Checked, recipe: Recipe, output: Path) -> CrossValidated:
    given = {"device": "cpu", "workers": 1, "quiet": True, "remember": False}
    return Study(checked, recipe=recipe, folds=FOLDS, output=str(output), **given).cross_validate()


# --- the folds as one model ---


def ensemble(options: argparse.Namespace) -> int:
    checked, recipe = ready("isic2019", options, options.epochs)
    source, classes = checked.manifest, recipe.classes
    split = splitting.split(source, (1 - HELD - 0.1, 0.1, HELD), 0, source.group_by)
    held = split["path"][split["split"] == "test"]
    found = crossed(with_table(checked, source.table[~source.table["path"].isin(held)]), recipe, options.work)
    images = with_table(checked, source.table[source.table["path"].isin(held)]).images
    images = replace(images, table=images.table.assign(group=images.table[source.group_by]))
    network, manifest = loading.classifier(found.folder)
    raw = [predicting.predict(member, images, recipe, progress=False) for member in network.members]
    each = np.stack([predicting.probs_of(table, classes) for table in raw])  # (members, N, C)
    how, rule = Calibration.of(manifest["decision"], classes), decisions.deciding(manifest["decision"], classes)

    def table(probs: np.ndarray) -> pd.DataFrame:
        return predicting.with_probs(raw[0], classes, probs)

    ways = {
        "the mean, then calibrated (what the model does)": calibration.apply(each.mean(axis=0), how),
        "each calibrated, then the mean": np.mean([calibration.apply(one, how) for one in each], axis=0),
        "the mean, not calibrated": each.mean(axis=0),
    }
    ours = table(next(iter(ways.values())))
    members = [table(calibration.apply(one, how)) for one in each]
    several = pd.concat([one.assign(path=one["path"] + f" {k}") for k, one in enumerate(members)])
    copies = pd.concat([ours.assign(path=ours["path"] + f" {k}") for k in range(len(members))])
    gain = metrics.paired(copies, several, classes, recipe.positive, rule)  # a lesion is drawn with all its rows
    alone = [metrics.summary(one, classes, recipe.positive, rule)["metrics"] for one in members]
    whole = metrics.summary(ours, classes, recipe.positive, rule)["metrics"]
    oof = found.facts["pooled"]["metrics"]
    rows = [["folds as one model", *(metrics.readable(whole[name]) for name in NUMBERS)]]
    values = {name: [one[name]["value"] for one in alone] for name in NUMBERS}
    rows += [["a member, mean", *(f"{np.mean(v):.3f} ({min(v):.3f} to {max(v):.3f})" for v in values.values())]]
    rows += [["out of fold, on the other lesions", *(metrics.readable(oof[name]) for name in NUMBERS)]]
    rows += [["folds as one minus a member", *(metrics.readable(gain[name], sign="+") for name in NUMBERS)]]
    text = [
        f"- Images: {len(checked.images)} lesions, an image each; {len(held)} held out. The recipe isic2019 with "
        + (f"{options.epochs} epochs" if options.epochs else "a head on the frozen network")
        + f", EfficientNet-Lite0 from ImageNet weights, {options.size} pixels, one view",
        "- Intervals draw lesions; in the difference each lesion is drawn with the answers of all members. In brackets "
        "behind the mean of the members: the lowest and the highest",
        "",
        *markdown(["on the held-out lesions", *NUMBERS.values()], rows),
        "",
        *markdown(["how the probabilities are made", "log loss", "Brier score", "ECE"], ways_of(ways, table, recipe)),
        "",
        *markdown(["", "ms per image", "MB"], cost(found, options, images.pictures[:8])),
    ]
    command = f"python benchmarks/folds.py ensemble --data DATA --epochs {options.epochs} --size {options.size}"
    name = "ensemble" + (" trained" if options.epochs else "")
    title = f"Folds as one model: {f'{options.epochs} epochs' if options.epochs else 'a fitted head'}"
    mark = Mark("log loss of the folds as one minus that of a member", 0.0, "", most=True)
    judged = [(mark, gain["log_loss"]["value"])]
    return harness.section(
        name, title, command, "\n".join(text), judged, ["scikit-learn"], options.results, family="folds"
    )


def ways_of(ways: dict[str, np.ndarray], table: Callable, recipe: Recipe) -> list[list[str]]:
    rows = []
    for name, probs in ways.items():
        found = metrics.summary(table(probs), recipe.classes, recipe.positive)["metrics"]
        rows.append([name, *(f"{found[number]['value']:.3f}" for number in ("log_loss", "brier", "ece"))])
    return rows


def cost(found: CrossValidated, options: argparse.Namespace, pictures: np.ndarray) -> list[list[str]]:
    """Time and size of all folds as one model, and of the first fold alone."""
    one = found.folder / found.facts["runs"][0]["run"]
    export.write(one)
    models = {"folds as one model": found.folder, "one fold": one}
    predictors = {name: Predictor(folder, "torch", threads=1) for name, folder in models.items()}
    cases = {name: lambda p=predictor: len(p.answers(pictures)) for name, predictor in predictors.items()}
    rates = harness.compare(cases)["median"]
    return [
        [name, f"{1000 / rates[name]:.0f}", f"{predictors[name].manifest['weights']['bytes'] / 1e6:.1f}"]
        for name in models
    ]


# --- labels that are doubted ---


def doubted(options: argparse.Namespace) -> int:
    rows, judged = [], []
    for name in SETS:
        checked, recipe = ready(name, options)
        table, found = checked.manifest.table, []
        for draw in range(options.draws):
            turned, changed = turn(table, checked.manifest.classes, draw)
            result = crossed(with_table(checked, changed), recipe, options.work)
            found.append(
                orders(result.predictions, recipe.classes).assign(turned=lambda t, w=turned: t["path"].isin(w))
            )
        every, ways = pd.concat(found), found[0].columns.difference(["path", "patient", "turned"], sort=False)
        those = every[every["turned"]]
        shares = {way: share(those[way] <= doubts.FIRST, those["patient"]) for way in ways}
        rows.append([name, len(table), len(those), *(metrics.readable(one.to_json()) for one in shares.values())])
        judged.append((Mark(f"{name}: turned labels in the first tenth", 0.5, ""), next(iter(shares.values())).value))
    text = [
        f"- {TURNED:.0%} of the labels turned, to each other class alike, {options.draws} draws; folds of whole "
        f"lesions or patients; a head on the frozen EfficientNet-Lite0, {options.size} pixels, one view",
        "- The share of the turned labels in the first tenth of all images, intervals over patients (a label turned in "
        "two draws counts twice). Chance would be 0.1. The first column of shares is the page of the report",
        "- p: the calibrated probability out of fold of the label; margin: minus that of the likeliest other class; "
        "over its mean: p divided by the mean p of the images with that label, the class threshold of confident "
        "learning; confident learning: first the images with another class above its threshold, each part by p "
        "(Northcutt, Jiang & Chuang 2021)",
        "",
        *markdown(["", "images", "turned", "p", "margin", "p over its mean", "confident learning"], rows),
    ]
    command = f"python benchmarks/folds.py doubts --data DATA --size {options.size} --draws {options.draws}"
    title = "Labels that are doubted: are turned ones found?"
    return harness.section(
        "doubts", title, command, "\n".join(text), judged, ["scikit-learn"], options.results, family="folds"
    )


def turn(table: pd.DataFrame, classes: tuple[str, ...], draw: int) -> tuple[set[str], pd.DataFrame]:
    """The paths whose labels are turned, and the table with the turned labels."""
    rng, labels = np.random.default_rng(draw), table["label"].to_numpy(dtype=object).copy()
    rows = rng.choice(len(table), round(TURNED * len(table)), replace=False)
    for row in rows:
        labels[row] = rng.choice([name for name in classes if name != labels[row]])
    return set(table["path"].iloc[rows]), table.assign(label=labels)


def orders(predictions: pd.DataFrame, classes: tuple[str, ...]) -> pd.DataFrame:
    """path, patient, and by each way of ranking the place of the image, above 0 for the first and 1 for the last."""
    table = doubts.ranked(predictions, classes)
    probs = predicting.probs_of(predictions.set_index("path").loc[table["path"]], classes)
    own, p = predicting.true_labels(table, classes), table["p_label"].to_numpy()
    limit = np.array([p[own == k].mean() for k in range(len(classes))])
    confident = np.where(probs >= limit, probs, -1)
    off = (confident.max(axis=1) >= 0) & (confident.argmax(axis=1) != own)
    scores = {"p": p, "margin": p - table["p_suggested"], "over": p / limit[own], "confident": p - off}
    places = {way: pd.Series(score).rank(method="first") / len(table) for way, score in scores.items()}
    return table[["path", "patient"]].assign(**places)


def share(found: pd.Series, patients: pd.Series) -> intervals.Estimate:
    return intervals.mean_of(found.to_numpy(dtype=float), pd.factorize(patients)[0], "share")


if __name__ == "__main__":
    raise SystemExit(main())
