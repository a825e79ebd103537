"""What an answer promises, on real images: prediction sets, diseases that were never trained on, data of the patient.

  python benchmarks/answers.py sets --data FOLDER       how often the sets hold the true class, and how large they are
  python benchmarks/answers.py unknown --data FOLDER    which score finds classes that were left out of training
  python benchmarks/answers.py patient --data FOLDER    what age, sex and site add to the image

FOLDER (or PATHOLIB_REAL_DATA) holds isic2019/ and idc/labels.csv. Heads on a frozen EfficientNet-Lite0 from ImageNet
weights, as `train="head"` fits them; features are computed once and kept with the image cache. Every image is judged
once, out of fold: five folds by lesion or patient, each with validation images of its own. Writes the sections
"answers" of RESULTS.md. Option: --results FILE.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import pandas as pd
from harness import RESULTS, Mark, markdown, section  # first: it makes patholib importable
from scipy import special

from patholib.data import checking, readers, splitting
from patholib.data.imagesets import ImageSet
from patholib.judge import decisions, intervals, metric_table, metrics, novelty, patients, predicting, rivals, sets
from patholib.model import building, profiles
from patholib.train import heads

DATASETS = {"isic2019": ("isic2019", "isic2019", None, 128), "idc": ("breakhis", "idc/labels.csv", "idc", 96)}
LEFT_OUT = (("DF", "VASC"), ("SCC",), ("AK",), ("BKL",))  # the first one chooses, the others check
SHIPPED = "distance in colour and sharpness (shipped)"
NEAR = (
    "Most known images are of one class that the network is sure of: so its confidence, alone or joined, ranks these "
    "images better. At the limit that is promised no score finds more than a few of them, and the joined ones find "
    "fewer of the classes that choose"
)
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Fold:
    """One fold: its images, and what a head fitted on its train rows says of all of them."""

    images: ImageSet
    logits: np.ndarray  # (N, C)
    shares: dict  # of the train rows, by class

    def part(self, name: str) -> np.ndarray:
        return (self.images.table["split"] == name).to_numpy()

    def predictions(self, name: str) -> pd.DataFrame:
        """Those of a part, as `predicting.predict` gives them."""
        probs = special.softmax(self.logits, axis=1)[self.part(name)]
        return predicting.as_predictions(self.images.part(name), probs)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("sets", "unknown", "patient"))
    parser.add_argument("--data", type=Path, default=os.environ.get("PATHOLIB_REAL_DATA"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    title, text, marks = globals()[f"of_{options.name}"](Path(options.data))
    command = f"python benchmarks/answers.py {options.name} --data DATA"
    return section(options.name, title, command, "\n".join(text), marks, ("scikit-learn",), options.results, "answers")


# --- folds ---


def measured(name: str, data: Path):
    """The images of a data set, their features (N, K), and the recipe."""
    kind, place, positive, size = DATASETS[name]
    source = readers.load(kind, data / place, missing="skip", positive=positive)
    recipe = profiles.recipe_for(kind, source, train="head", arch="efficientnet_lite0", image_size=size)
    with tempfile.TemporaryDirectory(prefix="patholib-") as folder:
        checked = checking.check(source, recipe.cache_size, recipe.fit, on_bad="skip", report_dir=Path(folder))
    features = heads.features(building.build(recipe), checked.images, 0, lambda: None)
    return checked, features.astype(float)


def folds(checked, features: np.ndarray, left_out: tuple[str, ...] = ()) -> list[Fold]:
    """Five folds of the classes that stay; images of those left out are test images of each fold in turn."""
    found, classes = [], tuple(name for name in checked.images.classes if name not in left_out)
    for number, split in enumerate(splitting.folds(checked.manifest)):
        table = checked.images.with_split(split).table
        row = {path: k for k, path in enumerate(checked.images.table["path"])}
        table = table[~table["label"].isin(left_out) | (table["split"] == "test")].reset_index(drop=True)
        own = features[[row[path] for path in table["path"]]]
        labels = _codes(table, classes)
        train, val = ((table["split"] == name).to_numpy() for name in ("train", "val"))
        logits = _fitted(own, labels, train, val, len(classes))
        counts = np.bincount(labels[train], minlength=len(classes))
        shares = dict(zip(classes, (counts / counts.sum()).tolist(), strict=True))
        found.append(Fold(ImageSet(checked.images.pixels, table, classes), logits, shares))
        print(f"fold {number + 1}, without {', '.join(left_out) or 'nothing'}", flush=True)
    return found


def _codes(table: pd.DataFrame, classes: tuple[str, ...]) -> np.ndarray:
    """(N,) the index of each label, -1 of a class that was left out."""
    return table["label"].map({name: k for k, name in enumerate(classes)}).fillna(-1).to_numpy(int)


def _fitted(features, labels, train, val, classes: int) -> np.ndarray:
    """Logits (N, C) of the regression with the lowest log loss on the val rows; the first after which it rises."""
    least, best = np.inf, np.empty(0)
    for _, weights, bias in rivals.regressions(features[train], labels[train], classes):
        logits = features @ weights.T + bias
        loss = -special.log_softmax(logits[val], axis=1)[np.arange(val.sum()), labels[val]].mean()
        if loss > least:
            break
        least, best = loss, logits
    return best


def decided(fold: Fold, positive: str | None) -> tuple[dict, pd.DataFrame]:
    """The decision of a fold from its validation images, and its calibrated test predictions."""
    val, shares = fold.predictions("val"), None if positive else fold.shares
    decision = decisions.choose(val, fold.images.classes, positive, shares=shares)
    val = decisions.with_calibration(val, fold.images.classes, decision)
    decision["sets"] = sets.chosen(val, fold.images.classes)
    return decision, decisions.with_calibration(fold.predictions("test"), fold.images.classes, decision)


# --- sections ---


def of_sets(data: Path):
    """Coverage by class, and sizes."""
    lines, marks = [], []
    for name, (_, _, positive, _) in DATASETS.items():
        tables, inside, chosen = [], [], []
        for fold in folds(*measured(name, data)):
            decision, test = decided(fold, positive)
            classes = fold.images.classes
            chosen.append(decision["sets"])
            tables.append(test)
            probs = predicting.probs_of(test, classes)
            inside.append(sets.members(probs, classes, decision, decisions.deciding(decision, classes)))
        found = sets.judged(pd.concat(tables), classes, np.concatenate(inside))
        rows = []
        for c in classes:
            groups, coverage = [one["groups"][c] for one in chosen], found["coverage"][c]
            always = sum(one["thresholds"][c] == 0 for one in chosen)
            rows.append([c, f"{min(groups)} to {max(groups)}", always, coverage["groups"], metrics.readable(coverage)])
            marks.append((Mark(f"{name}, {c}: upper end of the coverage", sets.COVERAGE, ""), coverage["high"] or 1))
        head = ["class", "validation groups", "folds in which it is always in the set", "test groups", "coverage"]
        lines += [f"### {name}", "", *markdown(head, rows), ""]
        lines += [f"Classes in a set: {metrics.readable(found['size'], 2)} of {len(classes)}; ", "share of sets with "]
        lines[-2:] = [f"{lines[-2]}{lines[-1]}one class: {metrics.readable(found['single'], 2)}.", ""]
    intro = f"The sets promise {sets.COVERAGE:g} of each class, each group counting once. Intervals over groups."
    return "Prediction sets on real images, out of fold", [intro, "", *lines], marks


def of_unknown(data: Path):
    """AUC of each score for images of classes that were left out of training, and what its locked limit finds."""
    checked, features = measured("isic2019", data)
    place = dict(zip(checked.images.table["path"], range(len(features)), strict=True))
    aucs, even, limits, answered = {}, {}, {}, []
    for left_out in LEFT_OUT:
        column, parts = ", ".join(left_out), []
        for fold in folds(checked, features, left_out):
            parts.append(_scored(fold, features[[place[path] for path in fold.images.table["path"]]]))
        table = pd.concat(parts, ignore_index=True)
        scores = table.attrs["scores"]
        aucs[column] = {name: _auc(table, name) for name in scores}
        even[column] = {name: _auc_by_class(table, name) for name in scores}
        limits[column] = {
            name: [_beyond(table[table["unknown"] == one], name) for one in (True, False)] for name in scores
        }
        answered.append([column, *_answered(table)])
    first, *others = aucs
    best = {column: max(found, key=lambda name: found[name].value) for column, found in aucs.items()}
    mean = {name: np.mean([found[name].value for found in aucs.values()]) for name in scores}
    head = ["left out:", *aucs]
    rows = [[name, *(found[name].text() for found in aucs.values()), f"{mean[name]:.3f}"] for name in scores]
    by_class = [[name, *(f"{found[name]:.3f}" for found in even.values())] for name in scores]
    alarms = [max(found[name][1].value for found in limits.values()) for name in scores]
    found_at = [
        [name, *(found[name][0].text() for found in limits.values()), f"{most:.3f}"]
        for name, most in zip(scores, alarms, strict=True)
    ]
    last = ["left out of training", "of these found", "false alarms"]
    last += ["balanced accuracy with the class unknown", "without such an answer"]
    text = [
        "AUC for images of classes that no training saw, against the test images of the others: 1 if every one of them "
        "has a stranger score, 0.5 by chance. Intervals over lesions. Nearest class and neighbours are those in the "
        "features of the network. Joined scores are ranks among the validation "
        f"images, in which each trained class counts the same. {first} choose the score that is shipped, the one with "
        "the highest AUC there; the others check it.",
        "",
        *markdown([*head, "mean"], rows),
        "",
        *_verdict(best, mean, limits),
        "",
        "The same AUC, of each trained class alone, and then the mean over them. The images that are known are mostly "
        "NV, which the network is sure of; a score that finds whatever is not NV has a high AUC above, and not here.",
        "",
        *markdown(head, by_class),
        "",
        "What counts is what a score finds at a limit that can be promised: set, as the shipped one is, for at most "
        f"{100 * (1 - novelty.KEPT):.0f} % of each trained class. Share of the images left out that are beyond it; in "
        "the last column the largest share of the images of trained classes.",
        "",
        *markdown([*head, "false alarms, at most"], found_at),
        "",
        "The shipped score at its limit. Balanced accuracy as the ISIC 2019 challenge counts it: unknown is one more "
        "class.",
        "",
        *markdown(last, answered),
    ]
    marks = [
        (Mark("the shipped score is the best one where it was chosen (1: yes)", 1, ""), float(best[first] == SHIPPED)),
        (
            Mark(
                "classes that did not choose it on which the shipped score is the best one",
                len(others),
                "",
                False,
                NEAR,
            ),
            float(sum(best[column] == SHIPPED for column in others)),
        ),
    ]
    return "Diseases that were never trained on", text, marks


def _verdict(best: dict, mean: dict, limits: dict) -> list[str]:
    """Which score wins where, in sentences."""
    listed = "; ".join(f"{column}: {name}" for column, name in best.items())
    steady = max(mean, key=lambda name: mean[name])
    shares = [
        "; ".join(f"{column} {found[name][0].value:.3f}" for column, found in limits.items())
        for name in (steady, SHIPPED)
    ]
    return [
        f"**{'One score is' if len(set(best.values())) == 1 else 'No score is'} the best one everywhere** ({listed}).",
        "",
        f"The highest mean over the columns has: {steady}. At its limit it finds {shares[0]}; the shipped score finds "
        f"{shares[1]}.",
    ]


def of_patient(data: Path):
    """Paired gain of age band, sex and site over the image alone."""
    columns, tables = ["age_band", "sex", "site"], {"image and patient": [], "image alone": []}
    for fold in folds(*measured("isic2019", data)):
        val, test, classes = fold.predictions("val"), fold.predictions("test"), fold.images.classes
        patients.check(val, columns)
        for name, parts in tables.items():
            known = columns if name == "image and patient" else ()
            decision = decisions.choose(val, classes, shares=fold.shares, patient=known)
            parts.append(decisions.with_calibration(test, classes, decision))
    both, alone = (pd.concat(parts, ignore_index=True) for parts in tables.values())
    found = [metrics.summary(table, classes, threshold=fold.shares)["metrics"] for table in (both, alone)]
    gain = metrics.paired(both, alone, classes, threshold=(fold.shares, fold.shares))
    names = ("auc", "balanced_accuracy", "log_loss", "brier")
    rows = [[metric_table.words(name), *(metrics.readable(one[name]) for one in found)] for name in names]
    rows = [[*row, metrics.readable(gain[name], sign="+")] for row, name in zip(rows, names, strict=True)]
    intro = (
        f"{', '.join(columns)} join the probabilities as `Study.lock(patient=...)` does it: fitted on the validation "
        "images of each fold, judged on its test images. Intervals over lesions; for log loss and Brier score lower is "
        "better. Which lesions are of one patient is not known in ISIC 2019."
    )
    return "Data of the patient", [intro, "", *markdown(["", *tables, "difference"], rows)], []


def _scored(fold: Fold, features: np.ndarray) -> pd.DataFrame:
    """Each test image of a fold: group, label, called, unknown, and every score, high for the unknown, with its limit.

    Scores are ranks of the fold, as folds differ in scale; "beyond NAME" is whether it is beyond the limit.
    """
    train, val, test = map(fold.part, ("train", "val", "test"))
    decision = decisions.choose(fold.predictions("val"), fold.images.classes, shares=fold.shares)
    raw = predicting.as_predictions(fold.images, special.softmax(fold.logits, axis=1))
    probs = predicting.probs_of(decisions.with_calibration(raw, fold.images.classes, decision), fold.images.classes)
    even = probs / list(fold.shares.values())
    even /= even.sum(axis=1, keepdims=True)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    labels = _codes(fold.images.table, fold.images.classes)
    learnt = novelty.learn(fold.images)
    colour = [learnt.distance(fold.images.pixels[row]) for row in fold.images.table["row"]]
    single = {
        "largest probability": -probs.max(axis=1),
        "energy": -special.logsumexp(fold.logits, axis=1),
        "distance to the nearest class (Mahalanobis)": _mahalanobis(features, labels, train),
        "distance to 10 neighbours (cosine)": -np.sort(unit @ unit[train].T, axis=1)[:, -10:].mean(axis=1),
    }
    scores = single | {"largest probability, prior-corrected": -even.max(axis=1), SHIPPED: np.array(colour)}
    ranks = {name: _rank(values, labels, val) for name, values in scores.items()}
    for how, join in (("larger", np.maximum), ("mean", np.add)):
        scores |= {f"{how} of shipped and {name}": join(ranks[SHIPPED], ranks[name]) for name in single}
    table = fold.images.table[test].assign(called=np.take(fold.images.classes, even[test].argmax(axis=1)))
    table = table.assign(unknown=labels[test] < 0)
    for name, values in scores.items():
        limit = novelty.limit_of(values[val], fold.images.table[val])[0]
        table[name], table[f"beyond {name}"] = values[test].argsort().argsort() / test.sum(), values[test] > limit
    table.attrs["scores"] = list(scores)
    return table


def _rank(values: np.ndarray, labels: np.ndarray, val: np.ndarray) -> np.ndarray:
    """(N,) the share of validation images that are less strange, the mean of its value for each trained class."""
    own = [np.sort(values[val & (labels == k)]) for k in range(labels.max() + 1)]
    return np.mean(
        [(np.searchsorted(one, values) + np.searchsorted(one, values, "right")) / 2 / len(one) for one in own], axis=0
    )


def _mahalanobis(features: np.ndarray, labels: np.ndarray, train: np.ndarray) -> np.ndarray:
    """(N,) squared distance to the nearest class mean, one covariance for all, in 64 principal components."""
    from sklearn.covariance import LedoitWolf
    from sklearn.decomposition import PCA

    found = PCA(64, random_state=0).fit(features[train]).transform(features)
    means = np.stack([found[train & (labels == k)].mean(axis=0) for k in range(labels.max() + 1)])
    precision = LedoitWolf(assume_centered=True).fit(found[train] - means[labels[train]]).precision_
    return np.stack([(((found - mean) @ precision) * (found - mean)).sum(axis=1) for mean in means]).min(axis=0)


def _auc(table: pd.DataFrame, score: str) -> intervals.Estimate:
    two = pd.DataFrame(
        {
            "group": table["group"],
            "label": np.where(table["unknown"], UNKNOWN, "known"),
            f"p_{UNKNOWN}": table[score],
            "p_known": 1 - table[score],
        }
    )
    return intervals.Estimate.from_json(metrics.summary(two, ("known", UNKNOWN), UNKNOWN)["metrics"]["auc"])


def _auc_by_class(table: pd.DataFrame, score: str) -> float:
    """The mean over the trained classes of the AUC of the unknown images against the images of the class alone."""
    from sklearn.metrics import roc_auc_score

    known = table["label"][~table["unknown"]].unique()
    parts = [table[table["unknown"] | (table["label"] == name)] for name in known]
    return float(np.mean([roc_auc_score(part["unknown"], part[score]) for part in parts]))


def _beyond(table: pd.DataFrame, score: str) -> intervals.Estimate:
    return intervals.mean_of(table[f"beyond {score}"], table["group"], "share")


def _answered(table: pd.DataFrame) -> list[str]:
    """Of the shipped score: found, false alarms, and balanced accuracy with and without the answer "unknown"."""
    beyond, true = table[f"beyond {SHIPPED}"], np.where(table["unknown"], UNKNOWN, table["label"])
    classes, accuracy = sorted(set(true)), []
    for called in (np.where(beyond, UNKNOWN, table["called"]), table["called"]):
        certain = {f"p_{name}": (called == name).astype(float) for name in classes}
        said = metrics.summary(pd.DataFrame({"label": true, "group": table["group"], **certain}), classes)
        accuracy.append(metrics.readable(said["metrics"]["balanced_accuracy"]))
    return [*(_beyond(table[table["unknown"] == one], SHIPPED).text() for one in (True, False)), *accuracy]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
