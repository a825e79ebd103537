"""What the history of a run suggests to change: an observation, a likely cause, a recipe field."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from patholib.judge.metric_table import words
from patholib.model.recipes import Recipe


def hints(history, recipe: Recipe) -> list[str]:
    """Sentences on what to look at; fields of the recipe are in backticks. A hint is no proof.

    history: DataFrame or list of dicts, one row per epoch.
    """
    table = pd.DataFrame(history)
    if not len(table) or recipe.train == "head":  # a fit of a moment has no course to read
        return []
    table = table.apply(pd.to_numeric, errors="coerce")
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
            "One class is missing from the validation images: change `val` or `seed`."
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
