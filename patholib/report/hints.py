"""What the history and the results of a run suggest to change: an observation, a likely cause, a recipe field."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from patholib.judge.gains import RIVALS, not_beaten
from patholib.judge.metric_table import words
from patholib.model.recipes import Recipe


def hints(history, metrics: Mapping, recipe: Recipe) -> list[str]:
    """Sentences on what to look at; fields of the recipe are in backticks. A hint is no proof.

    history: DataFrame or list of dicts, one row per epoch; metrics: as in metrics.json.
    """
    table = pd.DataFrame(history)
    found = []
    if len(table):
        table = table.apply(pd.to_numeric, errors="coerce")
        found += _learning(table, recipe)
    return found + _judging(metrics, recipe)


def _learning(table: pd.DataFrame, recipe: Recipe) -> list[str]:
    monitor = f"val_{recipe.monitor}"
    broken = table["epoch"][~np.isfinite(table[["train_loss", "val_loss"]]).all(axis=1)].astype(int)
    if len(broken):
        return [
            f"NaN loss in epoch {broken.iloc[0]}: training diverged. The learning rate ({table['lr'].max():.2g}) "
            f"was too high or half precision overflowed. Lower `lr`, set `clip_norm` (now {recipe.clip_norm}) or "
            "use `precision='fp32'`. Nothing after that epoch counts."
        ]
    if monitor not in table or not table[monitor].notna().any():
        return [
            f"The validation {words(recipe.monitor)} was undefined in every epoch, so there is no best epoch. "
            "One class is missing from the validation images: change `fractions` or `seed`."
        ]
    return [hint for ask in (_overfitting, _overconfidence, _early, _late, _unstable) if (hint := ask(table, recipe))]


def _best(table: pd.DataFrame, recipe: Recipe) -> tuple[int, int, int]:
    """Index and number of the best epoch, and the number of the last."""
    at = int(table[f"val_{recipe.monitor}"].idxmax())
    return at, int(table["epoch"][at]), int(table["epoch"].iloc[-1])


def _overfitting(table: pd.DataFrame, recipe: Recipe) -> str:
    at, best, _ = _best(table, recipe)
    gap = float(table["train_accuracy"][at] - table["val_accuracy"][at])
    if not gap > 0.08:
        return ""
    return (
        f"Overfitting: in epoch {best} the training accuracy ({table['train_accuracy'][at]:.3f}) was {gap:.3f} "
        f"above the validation accuracy ({table['val_accuracy'][at]:.3f}). The training images are augmented, so "
        "the true gap is larger. Raise `head_dropout`, `weight_decay` or `augmentation`, or freeze more blocks "
        "(`stages`)."
    )


def _overconfidence(table: pd.DataFrame, recipe: Recipe) -> str:
    low = int(table["val_loss"].idxmin())
    rise = float(table["val_loss"].iloc[-1] / table["val_loss"][low] - 1)
    if not (rise > 0.15 and table["train_loss"].iloc[-1] < table["train_loss"][low]):
        return ""
    return (
        f"Overconfidence: the validation loss was lowest in epoch {int(table['epoch'][low])} "
        f"({table['val_loss'][low]:.3f}) and then rose by {100 * rise:.0f} % while the training loss fell. The "
        "temperature corrects the probabilities, not the ranking. Try `label_smoothing`, more `weight_decay` or "
        "fewer `epochs`."
    )


def _early(table: pd.DataFrame, recipe: Recipe) -> str:
    _, best, last = _best(table, recipe)
    if not (len(table) >= 8 and best <= table["epoch"].iloc[0] + 0.15 * len(table) and recipe.keep == "best"):
        return ""
    return (
        f"The best epoch was {best} of {last}: nothing was gained afterwards. The learning rate may be too high "
        f"for pretrained weights, or too many blocks learn. Lower `lr` (now {recipe.lr:g}) or freeze more blocks "
        "at first (`stages`)."
    )


def _late(table: pd.DataFrame, recipe: Recipe) -> str:
    scores, n = table[f"val_{recipe.monitor}"], len(table)
    _, best, last = _best(table, recipe)
    tail = max(n // 4, 1)
    before = scores.iloc[:-tail].max() if n > tail else math.nan
    if n >= 4 and best == last:
        more = " or `patience`." if last < recipe.epochs else "."
        return (
            f"The last epoch ({last}) was the best, so training may have ended too soon. Raise `epochs` (now "
            f"{recipe.epochs}){more}"
        )
    if n >= 8 and scores.iloc[-tail:].max() > before + max(recipe.min_delta, 0.005):
        return (
            f"Slow convergence: the validation {words(recipe.monitor)} still rose from {before:.3f} to "
            f"{scores.iloc[-tail:].max():.3f} in the last {tail} epochs. Raise `epochs` (now {recipe.epochs}) or "
            f"`lr` (now {recipe.lr:g})."
        )
    return ""


def _unstable(table: pd.DataFrame, recipe: Recipe) -> str:
    # A restart of the learning rate shakes the loss on purpose, and an unfreezing may: neither is a sign of trouble.
    calm = table["lr"] <= table["lr"].shift() * 1.01
    if "frozen" in table:
        calm &= table["frozen"] == table["frozen"].shift()
    jumps = table["epoch"][calm & (table["train_loss"] > 1.3 * table["train_loss"].shift())].astype(int)
    if not len(jumps):
        return ""
    return (
        f"Unstable loss: the training loss jumped by more than 30 % in epoch {', '.join(map(str, jumps.iloc[:5]))} "
        f"without a restart of the learning rate. Gradients may explode: set `clip_norm` (now {recipe.clip_norm}), "
        f"lower `lr` (now {recipe.lr:g}) or raise `batch_size` (now {recipe.batch_size})."
    )


def _judging(metrics: Mapping, recipe: Recipe) -> list[str]:
    found = []
    if (test := metrics.get("test")) is not None:
        found += [*_sensitivity(test, recipe), _optimistic(metrics, recipe)]
        found += [
            f"{said} Check the labels, use pretrained `weights`, train longer (`epochs`), or test on more groups "
            "(`fractions`)."
            for key in RIVALS
            if (said := not_beaten(metrics, key, recipe.monitor))
        ]
        found += [_views(metrics, recipe), _wide(test, recipe)]
    if recipe.group_by == "image":
        found.append(
            "The split is by image: images of one patient are in training and in test, and every number is "
            "too high by an unknown amount. Set `group_by` to the patient, case or lesion."
        )
    return [hint for hint in found if hint]


def _optimistic(metrics: Mapping, recipe: Recipe) -> str:
    val, test, name = metrics.get("val") or {}, metrics["test"], recipe.monitor
    there, here = _value(val, name), _value(test, name)
    if there is None or here is None or there - here <= 0.05:
        return ""
    return (
        f"The validation {words(name)} ({there:.3f}) is {there - here:.3f} above the test one ({here:.3f}). The "
        "best epoch was chosen on the validation images, so their numbers are optimistic, and few groups "
        f"({val.get('groups', '?')} in validation, {test.get('groups', '?')} in test) differ by chance. Quote the "
        "test number; more groups (`fractions`) would steady both."
    )


def _views(metrics: Mapping, recipe: Recipe) -> str:
    many, one = _value(metrics.get("test_tta"), recipe.monitor), _value(metrics["test"], recipe.monitor)
    if many is None or one is None or many - one >= 0.002:
        return ""
    return (
        f"Averaging {recipe.tta_views} views changed the test {words(recipe.monitor)} by {many - one:+.3f} and "
        f"takes {recipe.tta_views} times as long. Lower `tta_views`, or judge without it."
    )


def _wide(test: Mapping, recipe: Recipe) -> str:
    number = test["metrics"].get(recipe.monitor, {})
    if number.get("low") is None or number["high"] - number["low"] <= 0.2:
        return ""
    return (
        f"The interval of the test {words(recipe.monitor)} is {number['high'] - number['low']:.2f} wide "
        f"({number['low']:.3f} to {number['high']:.3f}) with {test.get('groups', '?')} groups: too wide to compare "
        "models. Only more patients help; `fractions` moves some to the test set."
    )


def _sensitivity(test: Mapping, recipe: Recipe) -> list[str]:
    per_class = test.get("per_class", {})
    values = {
        name: row["sensitivity"]["value"] for name, row in per_class.items() if row["sensitivity"]["value"] is not None
    }
    if len(per_class) == 2 and recipe.positive in per_class:
        missed = values.get(recipe.positive, 1) < 0.9
        return [_of_the_positive(test, recipe, values[recipe.positive])] if missed else []
    weak = sorted((name for name in values if values[name] < 0.5), key=lambda name: values[name])
    if not weak:
        return []
    listed = ", ".join(f"{name} {values[name]:.2f} (of {per_class[name]['support']} images)" for name in weak)
    return [
        f"Low recall: less than half of the images of these classes are found: {listed}. Rare classes need more "
        f"weight (`balance`, now {recipe.balance!r}; `focal_gamma`) or more images. The confusion matrix shows "
        "what they are mistaken for."
    ]


def _of_the_positive(test: Mapping, recipe: Recipe, value: float) -> str:
    support = {name: row["support"] for name, row in test["per_class"].items()}
    n = support[recipe.positive]
    return (
        f"Sensitivity for {recipe.positive} is {value:.3f}: {round((1 - value) * n)} of {n} images were missed at "
        f"threshold {test.get('threshold'):.4g}. `balance` does not change this: it is divided out before the "
        "threshold is chosen. Choose it for the sensitivity you need (target_sensitivity), and accept the specificity "
        "that results."
    )


def _value(summary: Mapping | None, name: str) -> float | None:
    return None if summary is None else summary.get("metrics", {}).get(name, {}).get("value")
