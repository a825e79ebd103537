"""The locked decision: calibration and threshold chosen on the validation images, before the test images are seen."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.judge import calibration, groupwise, metric_table, novelty, patients, predicting, rules, sets, thresholds
from patholib.judge.calibration import Calibration
from patholib.model import recipes
from patholib.model.recipes import Recipe

if TYPE_CHECKING:
    import torch

    from patholib.data.imagesets import ImageSet

ALONE = "image_alone"  # the part of the decision for a patient of whom nothing is known
NOVELTY = "novelty"  # the part of the decision that says which images are none of the classes
DECISION, FORMAT = "decision.json", 2  # 2: prior correction, biases, averaged views
READABLE = (1, FORMAT)
TARGET = 0.95  # sensitivity for which the threshold is chosen by default
RIVALS = ("baseline", "probe")  # judged beside the network by the same rules: colour statistics and a linear probe
PLAIN_LOCK = (
    "averaged views are judged by the calibration and the threshold of single views: this older run has no others"
)
WIDTH = 100  # letters of a line in a terminal
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
        """The same in lines for a terminal."""
        shown = self.table
        width = max(map(len, shown.table.index)) + 2
        lines = [
            textwrap.fill(value, WIDTH, initial_indent=name.ljust(width), subsequent_indent=width * " ")
            for name, value in shown.table["locked"].items()
        ]
        return "\n".join([*lines, *(textwrap.fill(note, WIDTH) for note in shown.below)])

    def _repr_html_(self) -> str:
        return self.table._repr_html_()

    @property
    def threshold(self) -> float | None:
        """The smallest probability with which an image is predicted positive, or raises the alert; None without one."""
        return self.decision["threshold"]

    @property
    def table(self) -> Shown:
        """The decision in words, one row for each part of it, and its notes below."""
        found = self.decision
        rows = {**calibration.readable(found), "rule": found["rule"]}
        if found.get("shares"):
            rows["predicted"] = rules.RULES["even"]
        rows |= thresholds.in_words(found, alert=len(self.recipe.classes) > 2) | sets.in_words(found)
        rows |= {"none of these": found[NOVELTY]["words"]} if NOVELTY in found else {}
        averaged = found.get("averaged")
        if averaged:
            rows |= {f"{name}, averaged views": value for name, value in calibration.readable(averaged).items()}
        return Shown(pd.DataFrame({"locked": rows}), below=tuple(f"Note: {note}." for note in found["notes"]))

    @property
    def labels(self) -> np.ndarray:
        """(N,) the index of each true class."""
        return predicting.true_labels(self.val, self.recipe.classes)

    @property
    def probs(self) -> np.ndarray:
        """(N, C) probabilities of the validation images, calibrated."""
        return predicting.probs_of(with_calibration(self.val, self.recipe.classes, self.decision), self.recipe.classes)

    @property
    def calibration(self) -> dict:
        """`calibration_of` the validation images, "before" and "after"."""
        return calibration_of(self.val, self.recipe.classes, self.recipe.positive, self.decision)


def lock(
    model: torch.nn.Module,
    images: ImageSet,
    run_dir: Path,
    target_sensitivity: float = TARGET,
    cost_ratio: float | None = None,
    patient: Sequence[str] = (),
) -> Locked:
    """Fits the calibration and chooses the threshold on the validation images alone, and writes decision.json.

    The recipe is that of run.json. target_sensitivity, cost_ratio: see `choose`. What the training did to the prior is
    divided out first (`losses.prior_correction`); with `decide="even"` the shares of the training images are locked
    too. A recipe of several views gets a second decision, "averaged", from the mean over the views of the same images:
    averaging makes probabilities less extreme, so that the calibration and the threshold of one view do not fit it.
    patient: columns with data of the patient that join the probabilities (`patients`); the decision of the image alone
    is then locked too, "image_alone", for a patient of whom nothing is known.
    Once test images were judged, nothing of it can be changed: the same decision again changes no file, another one is
    refused. Errors: test_seen; those of `predict` and `choose`.
    """
    run_dir, recipe, part = Path(run_dir), recipe_of(run_dir), images.part("val")
    patients.check(images.table[images.table["split"] != "test"], patient)
    views = predicting.probabilities_of(predicting.forward(model, part, recipe, recipe.tta_views > 1))  # (views, N, C)
    val = predicting.as_predictions(part, views[0])
    counts = np.bincount(images.part("train").labels, minlength=len(recipe.classes))
    of = partial(_with_sets, recipe=recipe, counts=counts, target_sensitivity=target_sensitivity, cost_ratio=cost_ratio)
    chosen = of(val, patient)
    before = _as_before(run_dir, val, chosen, recipe)
    if before is not None:
        return before
    _refuse_after_test(run_dir)
    written = {"val": predicting.write_predictions(val, run_dir / "predictions_val.csv")}
    if len(views) > 1:  # an older run without them is judged by the lock of single views
        mean = predicting.as_predictions(part, views.mean(axis=0))
        written["val_tta"] = predicting.write_predictions(mean, run_dir / "predictions_val_tta.csv")
        chosen["averaged"] = of(mean, patient)
    decision = {
        "format": FORMAT,
        **chosen,
        NOVELTY: novelty.learn(images, groupwise.units(recipe.group_by)).to_json(),
        **{f"predictions_{name}_sha256": files.sha256(path) for name, path in written.items()},
        "locked": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    }
    files.write_json(run_dir / DECISION, decision)
    return Locked(decision, val, recipe)


def _with_sets(
    table: pd.DataFrame,
    patient: Sequence[str],
    recipe: Recipe,
    counts: np.ndarray,
    target_sensitivity: float,
    cost_ratio: float | None,
) -> dict:
    """`choose` with prediction sets, and the same of the image alone beside it; counts (C,): train images by class."""
    from patholib.model import losses

    even = losses.shares(recipe, counts) is not None
    found = choose(
        table,
        recipe.classes,
        recipe.positive,
        target_sensitivity,
        cost_ratio,
        recipe.seed,
        dict(zip(recipe.classes, (counts / counts.sum()).tolist(), strict=True)) if even else None,
        losses.prior_correction(recipe, counts).tolist(),
        patient,
    )
    unseen = _unseen(table, recipe.classes, found, recipe.seed)
    found["sets"] = sets.chosen(unseen, recipe.classes, groupwise.units(recipe.group_by))
    if patient:
        found[ALONE] = _with_sets(table, (), recipe, counts, target_sensitivity, cost_ratio)
    return found


def _refuse_after_test(run_dir: Path) -> None:
    """Stops where the test images were judged: the decision can no longer change. Errors: test_seen."""
    if (run_dir / "predictions_test.csv").exists():
        raise PathoError(
            "test_seen",
            run_dir.name,
            "has judged its test images, and this decision is another one than "
            "it had then (or it had none): what is chosen now would be chosen knowing the result",
            'Start a new run (resume="never"), or use the decision as it is',
        )


def choose(
    val: pd.DataFrame,
    classes: Sequence[str],
    positive: str | None = None,
    target_sensitivity: float = TARGET,
    cost_ratio: float | None = None,
    seed: int = 0,
    shares: rules.Shares | None = None,
    correction: Sequence[float] = (),
    patient: Sequence[str] = (),
) -> dict:
    """Calibration and threshold from predictions of validation images, with the rule in words and notes.

    shares: of all images, by class; of more than two classes the largest probability over its share decides then, else
    the largest probability. correction: see `Calibration`. The rest: see `fitted` and `thresholds.decided`, whose
    threshold decides between two classes and is an alert for `positive` of more. Errors: bad_parameter.
    """
    thresholds.check_target(target_sensitivity, cost_ratio)
    calibrating, notes = fitted(val, classes, correction)
    target = {"sensitivity": float(target_sensitivity)} if cost_ratio is None else {"cost_ratio": float(cost_ratio)}
    found = {
        **calibrating.to_json(classes),
        "positive": positive,
        "threshold": None,
        "rule": rules.RULES["even" if shares else "likeliest"],
        **({"shares": dict(shares)} if shares else {}),
        "target": target if positive is not None else {},
        "validation": {},
        "notes": notes,
    }
    if patient:
        found["patient"] = patients.fit(with_calibration(val, classes, found), classes, patient)
    if positive is None:
        return found
    calibrated_val = _unseen(val, classes, found, seed)
    chosen = thresholds.decided(
        calibrated_val, classes, positive, target_sensitivity, cost_ratio, seed, even=bool(shares)
    )
    return found | chosen | {"notes": notes + chosen["notes"]}


def _unseen(val: pd.DataFrame, classes: Sequence[str], decision: Mapping, seed: int) -> pd.DataFrame:
    """Validation predictions as those of new images would be: the biases of patients are cross-fitted."""
    columns = list(decision.get("patient") or ())
    table = with_calibration(val, classes, {**decision, "patient": None})
    return patients.cross_fitted(table, classes, columns, seed) if columns else table


def fitted(
    val: pd.DataFrame, classes: Sequence[str], correction: Sequence[float] = ()
) -> tuple[Calibration, list[str]]:
    """The calibration that fits the validation images after the prior correction, and notes.

    Where none can be fitted the prior is corrected alone, and the note says why.
    """
    correction = () if np.allclose(correction, 1) else tuple(map(float, correction))  # also where there is none
    try:
        labels, probs = predicting.true_labels(val, classes), predicting.probs_of(val, classes)
        return calibration.fit(labels, probs, val["group"], correction), []
    except PathoError as error:
        if error.code != "single_class":
            raise
        return Calibration(correction=correction), [f"the temperature stays 1: it {error.reason}"]


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
    path = run_dir / DECISION
    if not path.exists():
        raise PathoError(
            "not_locked",
            run_dir.name,
            "has no decision.json: temperature and threshold are to be chosen "
            "on the validation images before a test image is seen",
            "Call decisions.lock first",
        )
    decision = files.read_json(path)
    if not isinstance(decision, dict) or decision.get("format") not in READABLE:
        raise PathoError(
            "bad_decision",
            str(path),
            f"is no decision of a format that this version reads ({', '.join(map(str, READABLE))})",
            "Restore it from a copy, or use the version of patholib that wrote it",
        )
    for name in ("val", "val_tta") if "averaged" in decision else ("val",):
        predictions = run_dir / f"predictions_{name}.csv"
        if not predictions.exists() or files.sha256(predictions) != decision.get(f"predictions_{name}_sha256"):
            raise PathoError(
                "val_changed",
                str(predictions),
                "is not the file that the decision was made on",
                "Restore it from a copy, or start a new run",
            )
    return decision


def calibrated(run_dir: Path, name: str) -> pd.DataFrame:
    """predictions_<name>.csv ("val", "test", "test_tta", "baseline", "probe") with calibrated probabilities.

    The calibration is that of decision.json, none where a run has no decision. Predictions of RIVALS are stored
    calibrated. Errors: as `read_predictions`.
    """
    run_dir = Path(run_dir)
    classes = recipe_of(run_dir).classes
    table = predicting.read_predictions(run_dir / f"predictions_{name}.csv", classes)
    if name in RIVALS or not (run_dir / DECISION).exists():
        return table
    return with_calibration(table, classes, for_views(locked(run_dir), name.endswith("_tta")))


def for_views(decision: Mapping, averaged: bool) -> Mapping:
    """The decision for one view of each image, or that for averaged views; the same where a run has only one."""
    return decision.get("averaged", decision) if averaged else decision


def with_calibration(table: pd.DataFrame, classes: Sequence[str], decision: Mapping | None) -> pd.DataFrame:
    """A table of predictions with probabilities calibrated as the decision says, and joined by data of the patient.

    See `calibration.apply` and `patients.apply`. Errors: missing_column.
    """
    probs = calibration.apply(predicting.probs_of(table, classes), Calibration.of(decision, classes))
    if decision and decision.get("patient"):
        probs = patients.apply(probs, table, classes, decision["patient"])
    return predicting.with_probs(table, classes, probs)


def calibration_of(raw: pd.DataFrame, classes: Sequence[str], positive: str | None, decision: Mapping) -> dict:
    """The calibration {"before", "after"} that of the decision: `metric_table.CALIBRATION` and the bins of the diagram.

    The diagram is of the probability of `positive` where there are two classes, else of the largest probability.
    """
    of = list(classes).index(positive) if positive is not None and len(classes) == 2 else None
    against_rest = list(classes).index(positive) if positive is not None else None
    labels, found = predicting.true_labels(raw, classes), {}
    for when, how in (("before", {}), ("after", decision)):
        probs = predicting.probs_of(with_calibration(raw, classes, how), classes)
        values = {one.name: one.formula(labels, probs, of, against_rest) for one in metric_table.CALIBRATION}
        found[when] = {
            **Calibration.of(how, classes).to_json(classes),
            **{name: float(value) if np.isfinite(value) else None for name, value in values.items()},
            "bins": calibration.reliability(labels, probs, of=of).to_dict("records"),
            "counts": np.histogram(calibration.confident(labels, probs, of)[0], calibration.BINS, (0, 1))[0].tolist(),
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
        and list(decision.get("patient", ())) == list(chosen.get("patient", ()))
        and list(kept["path"]) == list(val["path"])
        and np.abs(predicting.probs_of(kept, recipe.classes) - predicting.probs_of(val, recipe.classes)).max() < ALIKE
    )
    return Locked(decision, kept, recipe) if same else None


def deciding_patients(decision: Mapping | None, classes: Sequence[str]) -> float | rules.Shares:
    """What decides the mean probability of a patient's images, see `deciding`.

    What decides an image where no threshold of patients was locked: in an older run, or if no threshold decides.
    """
    return deciding((decision or {}).get("patients") or decision, classes)


def deciding(decision: Mapping | None, classes: Sequence[str]) -> float | rules.Shares:
    """The shares of decision.json, or its threshold between two classes, as `rules.predicted` takes them.

    0.5, which is not used where the largest probability decides, if there is neither: an alert decides no class.
    """
    shares, threshold = ((decision or {}).get(name) for name in ("shares", "threshold"))
    return shares or (threshold if len(classes) == 2 and threshold is not None else 0.5)
