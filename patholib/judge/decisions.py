"""The locked decision: temperature and threshold chosen on the validation images, before the test images are seen."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.judge import calibration, metric_table, metrics, predicting, ranking, rules
from patholib.model import recipes
from patholib.model.recipes import Recipe

if TYPE_CHECKING:
    import torch

    from patholib.data.imagesets import ImageSet

DECISION, FORMAT = "decision.json", 1
TARGET = 0.95  # sensitivity for which the threshold is chosen by default
RIVALS = ("baseline", "probe")  # judged beside the network by the same rules: colour statistics and a linear probe
ALIKE = 1e-3  # how much the probabilities of one model may differ between two machines


@dataclass(frozen=True)
class Shown:
    """A table for a notebook: no text is cut off, the rows marked by `grey` are grey, and lines may follow below."""

    table: pd.DataFrame
    grey: tuple[bool, ...] = ()
    below: tuple[str, ...] = ()

    def __repr__(self) -> str:
        with pd.option_context("display.max_colwidth", None, "display.width", None):
            return "\n".join([repr(self.table), *self.below])

    def _repr_html_(self) -> str:
        with pd.option_context("display.max_colwidth", None):
            before, tag, body = self.table.to_html().partition("<tbody>")
        start, *rows = body.split("<tr>")
        grey = self.grey or (False,) * len(rows)
        rows = [
            f'<tr style="color: #76828f">{row}' if faint else f"<tr>{row}"
            for row, faint in zip(rows, grey, strict=True)
        ]
        return before + tag + start + "".join(rows) + "".join(f"<p>{html.escape(line)}</p>" for line in self.below)


@dataclass(frozen=True, repr=False)
class Locked:
    """The decision of `lock` and the validation predictions it was made on."""

    decision: dict  # of decision.json
    val: pd.DataFrame  # predictions of the validation images, not calibrated
    recipe: Recipe

    def __repr__(self) -> str:
        return repr(self.table)

    def _repr_html_(self) -> str:
        return self.table._repr_html_()

    @property
    def threshold(self) -> float | None:
        """The smallest probability with which an image is predicted positive, or raises the alert; None without one."""
        return self.decision["threshold"]

    @property
    def table(self) -> Shown:
        """The decision in words, one row for each part of it."""
        found = self.decision
        rows = {"temperature": f"{found['temperature']:.3f}", "rule": found["rule"]}
        if found.get("shares"):
            rows["predicted"] = rules.RULES["even"]
        if found["threshold"] is not None:
            rows["threshold"] = f"p_{found['positive']} >= {found['threshold']:.4g}"
            rows |= {
                f"validation {metric_table.words(name)}": metrics.readable(number)
                for name, number in found["validation"].items()
            }
        if found["notes"]:
            rows["note"] = "; ".join(found["notes"])
        return Shown(pd.DataFrame({"locked": rows}))

    @property
    def labels(self) -> np.ndarray:
        """(N,) the index of each true class."""
        return predicting.true_labels(self.val, self.recipe.classes)

    @property
    def probs(self) -> np.ndarray:
        """(N, C) probabilities of the validation images, calibrated."""
        return calibration.apply(predicting.probs_of(self.val, self.recipe.classes), self.decision["temperature"])

    @property
    def calibration(self) -> dict:
        """`calibration_of` the validation images, "before" and "after"."""
        return calibration_of(self.val, self.recipe.classes, self.recipe.positive, self.decision["temperature"])


def lock(
    model: torch.nn.Module,
    images: ImageSet,
    run_dir: Path,
    target_sensitivity: float = TARGET,
    cost_ratio: float | None = None,
) -> Locked:
    """Fits the temperature and chooses the threshold on the validation images alone, and writes decision.json.

    The recipe is that of run.json. target_sensitivity, cost_ratio: see `choose`. With `decide="even"` the shares of the
    training images are locked too (`losses.shares`). Once test images were judged, nothing of it can be changed: the
    same decision again changes no file, another one is refused. Errors: test_seen; those of `predict` and `choose`.
    """
    from patholib.model import losses

    run_dir, recipe = Path(run_dir), recipe_of(run_dir)
    val = predicting.predict(model, images.part("val"), recipe)
    shares = losses.shares(recipe, np.bincount(images.part("train").labels, minlength=len(recipe.classes)))
    chosen = choose(val, recipe.classes, recipe.positive, target_sensitivity, cost_ratio, recipe.seed, shares)
    before = _as_before(run_dir, val, chosen, recipe)
    if before is not None:
        return before
    if (run_dir / "predictions_test.csv").exists():
        raise PathoError(
            "test_seen",
            run_dir.name,
            "has judged its test images, and this decision is another one than "
            "it had then (or it had none): what is chosen now would be chosen knowing the result",
            'Start a new run (resume="never"), or use the decision as it is',
        )
    path = predicting.write_predictions(val, run_dir / "predictions_val.csv")
    decision = {
        "format": FORMAT,
        **chosen,
        "predictions_val_sha256": files.sha256(path),
        "locked": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    }
    files.write_json(run_dir / DECISION, decision)
    return Locked(decision, val, recipe)


def choose(
    val: pd.DataFrame,
    classes: Sequence[str],
    positive: str | None = None,
    target_sensitivity: float = TARGET,
    cost_ratio: float | None = None,
    seed: int = 0,
    shares: rules.Shares | None = None,
) -> dict:
    """Temperature and threshold from predictions of validation images, with the rule in words and notes.

    The threshold is the largest with which the validation sensitivity for `positive` reaches the target; with a
    `cost_ratio` instead that of the lowest cost, where a missed positive costs as much as that many false alarms. It
    decides between two classes. Of more classes it is an alert for `positive`, and the largest probability decides, or
    the largest over its share where `shares` are given. Without a positive class there is no threshold. A temperature
    that cannot be fitted is 1, and `notes` say why. Errors: bad_parameter.
    """
    check_target(target_sensitivity, cost_ratio)
    labels, probs = predicting.true_labels(val, classes), predicting.probs_of(val, classes)
    temperature, notes = _temperature(labels, probs)
    target = {"sensitivity": float(target_sensitivity)} if cost_ratio is None else {"cost_ratio": float(cost_ratio)}
    found = {
        "temperature": temperature,
        "positive": positive,
        "threshold": None,
        "rule": rules.RULES["even" if shares else "likeliest"],
        **({"shares": dict(shares)} if shares else {}),
        "target": target,
        "validation": {},
        "notes": notes,
    }
    if positive is None:
        return found | {"target": {}}
    probs = calibration.apply(probs, temperature)
    true, scores = labels == list(classes).index(positive), probs[:, list(classes).index(positive)]
    if not true.any():
        notes.append(f"no validation image is {positive}: the threshold stays 0.5")
        return found | {"threshold": 0.5, "rule": "0.5, the default"}
    if cost_ratio is not None:
        threshold = ranking.cheapest_threshold(true, scores, cost_ratio)
        rule = f"lowest cost on validation, a missed {positive} counting {cost_ratio:g} false alarms"
    else:
        threshold = ranking.threshold_for(true, scores, target_sensitivity)
        rule = f"sensitivity >= {target_sensitivity:g} on validation"
        groups, needed = val.loc[true, "group"].nunique(), int(np.ceil(1 / (1 - target_sensitivity) - 1e-9))
        if groups < needed:
            notes.append(
                f"only {groups} groups ({true.sum()} images) of {positive} in validation: fewer than {needed} "
                f"cannot show a sensitivity of {target_sensitivity:g}"
            )
    numbers = metrics.alert(predicting.with_probs(val, classes, probs), classes, positive, threshold, seed=seed)
    return found | {"threshold": threshold, "rule": rule, "validation": {name: numbers[name] for name in metrics.ALERT}}


def _temperature(labels: np.ndarray, probs: np.ndarray) -> tuple[float, list[str]]:
    """The temperature that fits, or 1 with a note that says why none does."""
    try:
        return calibration.fit(labels, probs), []
    except PathoError as error:
        if error.code not in ("too_few", "single_class", "always_right"):
            raise
        return 1.0, [f"the temperature stays 1: it {error.reason}"]


def check_target(target_sensitivity: float, cost_ratio: float | None = None) -> None:
    """Refuses a target for which no threshold can be chosen. Errors: bad_parameter."""
    if not 0 < target_sensitivity < 1:
        raise PathoError(
            "bad_parameter",
            "target_sensitivity",
            f"is {target_sensitivity}, not between 0 and 1",
            "Give a share below 1, such as 0.95",
        )
    if cost_ratio is not None and not 0 < cost_ratio < np.inf:
        raise PathoError(
            "bad_parameter",
            "cost_ratio",
            f"is {cost_ratio}, no number above 0",
            "Say how many false alarms one missed positive is worth",
        )


def recipe_of(run_dir: Path) -> Recipe:
    """The recipe in run.json. Errors: missing_file, bad_json, bad_recipe."""
    return recipes.from_json(files.read_json(Path(run_dir) / "run.json")["recipe"])


def read_locked(run_dir: Path) -> Locked:
    """What `lock` wrote into a run folder. Errors: those of `locked`."""
    decision, recipe = locked(run_dir), recipe_of(run_dir)
    return Locked(decision, predicting.read_predictions(Path(run_dir) / "predictions_val.csv", recipe.classes), recipe)


def locked(run_dir: Path) -> dict:
    """The content of decision.json of a run whose validation predictions are unchanged since it was locked.

    Errors: not_locked, val_changed, bad_decision, bad_json.
    """
    run_dir = Path(run_dir)
    path, predictions = run_dir / DECISION, run_dir / "predictions_val.csv"
    if not path.exists():
        raise PathoError(
            "not_locked",
            run_dir.name,
            "has no decision.json: temperature and threshold are to be chosen "
            "on the validation images before a test image is seen",
            "Call decisions.lock first",
        )
    decision = files.read_json(path)
    if not isinstance(decision, dict) or decision.get("format") != FORMAT:
        raise PathoError("bad_decision", str(path), f"is no decision of format {FORMAT}", "Restore it from a copy")
    if not predictions.exists() or files.sha256(predictions) != decision.get("predictions_val_sha256"):
        raise PathoError(
            "val_changed",
            str(predictions),
            "is not the file that the decision was made on",
            "Restore it from a copy, or start a new run",
        )
    return decision


def calibrated(run_dir: Path, name: str) -> pd.DataFrame:
    """predictions_<name>.csv ("val", "test", "test_tta", "baseline", "probe") with calibrated probabilities.

    The temperature is that of decision.json, 1 where a run has none. Predictions of RIVALS are stored with their own
    temperature applied already. Errors: as `read_predictions`.
    """
    run_dir = Path(run_dir)
    classes = recipe_of(run_dir).classes
    table = predicting.read_predictions(run_dir / f"predictions_{name}.csv", classes)
    if name in RIVALS or not (run_dir / DECISION).exists():
        return table
    return tempered(table, classes, locked(run_dir)["temperature"])


def tempered(table: pd.DataFrame, classes: Sequence[str], temperature: float) -> pd.DataFrame:
    """A table of predictions with its probabilities divided by a temperature, see `calibration.apply`."""
    return predicting.with_probs(table, classes, calibration.apply(predicting.probs_of(table, classes), temperature))


def calibration_of(raw: pd.DataFrame, classes: Sequence[str], positive: str | None, temperature: float) -> dict:
    """The calibration {"before", "after"} the temperature: errors, log loss, Brier score and the bins of the diagram.

    Of the probability of `positive` where there are two classes, else of the largest probability. `ece_chance` is the
    error that perfectly calibrated probabilities have by chance. Names: `metric_table.CALIBRATION`.
    """
    of = list(classes).index(positive) if positive is not None and len(classes) == 2 else None
    labels, found = predicting.true_labels(raw, classes), {}
    for when, t in (("before", 1.0), ("after", temperature)):
        probs = calibration.apply(predicting.probs_of(raw, classes), t)
        numbers = metrics.summary(predicting.with_probs(raw, classes, probs), classes, positive, resamples=0)["metrics"]
        found[when] = {
            "temperature": t,
            "ece_mass": calibration.ece(labels, probs, by="mass", of=of),
            "ece_width": calibration.ece(labels, probs, by="width", of=of),
            "ece_chance": calibration.ece_by_chance(probs, of=of),
            **{metric.name: numbers[metric.name]["value"] for metric in metric_table.of_kind("image")},
            "bins": calibration.reliability(labels, probs, of=of).to_dict("records"),
            "counts": np.bincount(
                calibration.binned(calibration.confident(labels, probs, of)[0], calibration.BINS, "width"),
                minlength=calibration.BINS,
            ).tolist(),
        }
    return found


def _as_before(run_dir: Path, val: pd.DataFrame, chosen: dict, recipe: Recipe) -> Locked | None:
    """The decision in the folder, if the same model and the same parameters led to it; else None."""
    try:
        decision, kept = locked(run_dir), predicting.read_predictions(run_dir / "predictions_val.csv", recipe.classes)
    except PathoError:
        return None
    same = (
        all(decision.get(key) == chosen.get(key) for key in ("positive", "target", "shares"))
        and list(kept["path"]) == list(val["path"])
        and np.abs(predicting.probs_of(kept, recipe.classes) - predicting.probs_of(val, recipe.classes)).max() < ALIKE
    )
    return Locked(decision, kept, recipe) if same else None


def deciding(decision: Mapping | None, classes: Sequence[str]) -> float | rules.Shares:
    """The shares of decision.json, or its threshold between two classes, as `rules.predicted` takes them.

    0.5, which is not used where the largest probability decides, if there is neither: an alert decides no class.
    """
    shares, threshold = ((decision or {}).get(name) for name in ("shares", "threshold"))
    return shares or (threshold if len(classes) == 2 and threshold is not None else 0.5)
