"""From a model and images to predictions, from validation images to a locked decision, from that to the test numbers.

A table of predictions has the columns of the images' table but `row`, in its order, and one `p_<class>` per class. The
files hold the model's own probabilities; `calibrated` reads them with the temperature that `lock` fitted. Rivals are
judged beside the model: one that sees only colour, and where it is asked for a linear probe.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from patholib import calibration, files, metrics, recipes, records
from patholib.errors import PathoError, nearest
from patholib.processes import ALONE, Team
from patholib.progress import bar
from patholib.recipes import Recipe

if TYPE_CHECKING:  # torch is imported where a model is run: to read predictions back none is needed
    import torch

    from patholib.images import ImageSet
    from patholib.models import Classifier

DECISION, FORMAT = "decision.json", 1
TARGET = 0.95  # sensitivity that the threshold is chosen for, unless another is asked for
RIVALS = ("baseline", "probe")  # judged beside the model, by the same rules: colour statistics, and a linear probe
ALIKE = 1e-3  # how far a model's probabilities may lie apart on two machines


def predict(model: torch.nn.Module, images: ImageSet, recipe: Recipe, tta: bool = False,
            device: str | torch.device | None = None, batch_size: int = 64, precision: str = "fp32",
            progress: bool = True, team: Team = ALONE) -> pd.DataFrame:
    """The probabilities of every image, in the order of the set; of its plain view, or with `tta` the mean of several.

    Softmax in float64. device: None leaves the model where it is. batch_size: views the model sees at once.
    team: processes that share the images, and all get the whole table. The model's modes are put back.
    Errors: model_output.
    """
    found = _forward(model, images, recipe, tta, device, batch_size, precision, progress, team=team)  # (views, N, C)
    return as_predictions(images, probabilities(found))


def logits(model: torch.nn.Module, images: ImageSet, recipe: Recipe, device: str | torch.device | None = None,
           precision: str = "fp32", batch_size: int = 64, after_batch: Callable[[], None] | None = None,
           team: Team = ALONE) -> torch.Tensor:
    """The logits of every image's plain view, (N, C) float32 on the CPU, in the order of the set.

    after_batch: called after each batch, in every process of the team as often; what it raises ends the pass.
    """
    return _forward(model, images, recipe, False, device, batch_size, precision, False, after_batch, False, team)[0]


def probabilities(logits: torch.Tensor) -> np.ndarray:
    """Logits of views (views, N, C) to probabilities (N, C): softmax of each view, then their mean, in float64."""
    return _probabilities(logits).mean(axis=0)


def one_by_one(network: torch.nn.Module, views: torch.Tensor) -> torch.Tensor:
    """Logits (N, C) float32 of views (N, 3, H, W), each computed alone: no answer depends on its neighbours.

    In a batch a processor may add in another order, and the last bits of an answer would change with its company.
    network: as `models.for_prediction` gives it. The notebook, `inference.Predictor` and all that is built on it
    compute here, so that on one machine their answers are the same to the last bit.
    """
    import torch

    views = views.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        return torch.cat([network(view) for view in views.split(1)]).float()


def _probabilities(logits: torch.Tensor) -> np.ndarray:
    """Softmax over the last axis, in float64."""
    return logits.double().softmax(dim=-1).numpy()


def _forward(model, images, recipe, tta, device=None, batch_size=64, precision="fp32", progress=True,
             after_batch=None, final=True, team=ALONE) -> torch.Tensor:
    """Logits (views, N, C), float32 on the CPU, of all images in every process of the team.

    final: as the exported model will compute them there, `one_by_one`; on a GPU, between epochs and not in fp32 in
    batches.
    """
    import torch

    from patholib import augment, models
    from patholib.images import batches

    if not len(images):
        raise PathoError("no_images", "images", "the set is empty", "Choose a split that has images")
    device = torch.device(device or next(model.parameters()).device)
    number = recipe.tta_views if tta else 1

    modes = [(module, module.training) for module in model.modules()]  # train(True) would wake what was frozen
    model.to(device).eval()
    final = final and device.type == "cpu" and precision == "fp32"
    network = models.for_prediction(model) if final else model
    parts, positions = [], []
    meter = bar(shown=progress, total=len(images), unit="image", desc="predicting", leave=False)
    try:
        with meter, torch.inference_mode(), models.autocast(device, precision):
            at_once = max(1, batch_size // number) * team.count
            for batch in batches(images, np.arange(len(images)), at_once, share=(team.rank, team.count)):
                found = torch.empty(number, 0, len(images.classes))
                if len(batch.rows):  # a share may be empty
                    # Pixels cross the bus to a GPU as they are, a twelfth of what float views in several turns take.
                    pixels = batch.images if device.type == "cpu" else torch.from_numpy(batch.images).to(device)
                    with models.autocast(device, "fp32"):  # drawn views are matrix products, not to be halved
                        views = augment.views_to_judge(pixels, recipe, tta, batch.rows)  # (views, B, 3, size, size)
                    stack = views.flatten(0, 1)  # all of them in one pass
                    stack = stack.contiguous(memory_format=torch.channels_last)
                    found = one_by_one(network, stack) if final else network(stack).float().cpu()
                    found = found.unflatten(0, (number, -1))  # (views, B, C)
                finite = found.isfinite().all(dim=2).all(dim=0).numpy()
                if not finite.all():
                    name = images.table["path"].iloc[batch.rows[~finite][0]]
                    raise PathoError("model_output", name, f"the model's output is not finite ({precision})",
                                     "Load the best checkpoint again, or predict with fp32")
                parts.append(found)
                positions.append(batch.positions)
                meter.update(len(batch.whole))
                if after_batch is not None:
                    after_batch()
    finally:
        for module, mode in modes:
            module.training = mode
    # Out here it is an ordinary tensor, which a temperature can be fitted on.
    return _put_together(torch.cat(parts, dim=1), np.concatenate(positions), len(images), device, team)


def _put_together(own: torch.Tensor, positions: np.ndarray, number: int, device: torch.device, team: Team
                  ) -> torch.Tensor:
    """What all processes have found of their images, (views, number, C), in the order of the set."""
    import torch

    if team.count == 1:
        return own
    found, times = own.new_zeros(own.shape[0], number, own.shape[2], device=device), torch.zeros(number, device=device)
    found[:, positions], times[positions] = own.to(device), 1.0
    team.add_up([found, times])
    if not (times == 1).all():
        raise PathoError("process_lost", "predictions", f"{int((times != 1).sum())} images were not seen exactly once",
                         "Predict with one process, and report this")
    return found.cpu()


def as_predictions(images: ImageSet, probs: np.ndarray) -> pd.DataFrame:
    """The table of predictions of a set whose probabilities are probs (N, C)."""
    named = pd.DataFrame(probs, columns=[f"p_{c}" for c in images.classes], dtype=float)
    return pd.concat([images.table.drop(columns="row").reset_index(drop=True), named], axis=1)


def write_predictions(table: pd.DataFrame, path: Path) -> Path:
    """Writes a table of predictions as CSV; the probabilities read back to the last bit."""
    return files.write_table(path, table)


def read_predictions(path: Path, classes: Sequence[str]) -> pd.DataFrame:
    """Reads what `write_predictions` wrote: `p_` columns as numbers that sum to 1, all others as the text they are.

    Errors: missing_file, csv_format, unknown_class, bad_probabilities.
    """
    path, columns = Path(path), [f"p_{c}" for c in classes]
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise PathoError("missing_file", str(path), "does not exist", "Predict first, or name another run") from None
    except UnicodeDecodeError as error:
        raise PathoError("csv_format", str(path), f"is not UTF-8 ({error})", "Restore it or predict again") from error
    try:  # index_col=False: else a row with one value too many shifts all columns
        table = pd.read_csv(io.StringIO(text, newline=""), dtype=str, keep_default_na=False, index_col=False,
                            lineterminator="\n")
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise PathoError("csv_format", str(path), str(error).strip(), "Restore it or predict again") from error
    for column in ("label", "group", *columns):
        if column not in table:
            raise PathoError("csv_format", f"{path}, column {column}", "is missing", nearest(column, table.columns))
    other = [c for c in table if c.startswith("p_") and c not in columns]
    if other:
        raise PathoError("unknown_class", f"{path}, column {other[0]}", "belongs to no class",
                         nearest(other[0], columns))
    try:
        table[columns] = table[columns].astype(float)  # Python's own parsing: exact, unlike pandas' fast one
    except ValueError as error:
        raise PathoError("csv_format", str(path), str(error), "Restore it or predict again") from error
    wrong = np.flatnonzero(~(np.abs(table[columns].sum(axis=1) - 1) < 1e-6))
    if len(wrong):
        raise PathoError("bad_probabilities", f"{path}, line {wrong[0] + 2}",
                         f"has probabilities that do not sum to 1 ({len(wrong)} such rows)", "Predict again")
    return table


def constant_baseline(images: ImageSet) -> pd.DataFrame:
    """What never looking gives: every val and test image is called the commonest class of the train rows.

    Its accuracy is the share of that class, its balanced accuracy 1 / C, its AUC 0.5. Errors: no_split.
    """
    if "split" not in images.table:
        raise PathoError("no_split", "images", "are not split yet", "Call with_split with the table of the split")
    train = images.table["split"] == "train"
    commonest = np.bincount(images.labels[train], minlength=len(images.classes)).argmax()
    others = images.table[~train]
    return as_predictions(replace(images, table=others), np.eye(len(images.classes))[[commonest] * len(others)])


PERCENTILES = (0.05, 0.25, 0.50, 0.75, 0.95)


def colour_baseline(images: ImageSet) -> pd.DataFrame:
    """What colour alone tells: predictions of a logistic regression on `colours`, for the val and the test rows.

    Fitted on the train rows of a set with `split`, each class weighing the same. A network that does not beat it has
    learnt no shapes. A class without train rows gets probability 0.
    """
    _refuse_unsplit(images)
    features = np.stack([colours(images.pixels[row]) for row in images.table["row"]])  # (N, F)
    return _linear(features, images)


def probe(model: Classifier, images: ImageSet, splits: Sequence[pd.DataFrame] | None = None,
          device: str | torch.device | None = None) -> pd.DataFrame:
    """What a network that learns nothing here tells: as `colour_baseline`, on the averages of its last maps.

    Asked before the training, it is what the training has to add to: features of other images, or random ones.

    splits: tables of `manifest.folds`, of one repeat; each image is then judged once, by a regression fitted on other
    groups, and the table holds all images, fold by fold. That is only fair to a network that was not trained on any of
    them, as a pretrained one. None: the split of the set, whose train rows the network may know.
    device: where to compute; None leaves the model where it is.
    """
    sets = [images] if splits is None else [images.with_split(table) for table in splits]
    for one in sets:
        _refuse_unsplit(one)
    features = pooled(model if device is None else model.to(device), images)  # (N, K)
    place = {path: i for i, path in enumerate(images.table["path"])}
    found = [_linear(features[[place[path] for path in one.table["path"]]], one) for one in sets]
    return found[0] if splits is None else pd.concat([part[part["split"] == "test"] for part in found],
                                                     ignore_index=True)


def pooled(model: Classifier, images: ImageSet, batch_size: int = 64) -> np.ndarray:
    """The average of each of the last maps over every image's plain view, (N, K) float32; the model stays as it is."""
    import torch

    from patholib import augment, models
    from patholib.images import batches

    still, parts = models.evaluating(model), []
    device = next(model.parameters()).device
    with torch.inference_mode():
        for batch in batches(images, np.arange(len(images)), batch_size):
            views = augment.plain_views(batch.images, model.image_size).to(device, memory_format=torch.channels_last)
            parts.append(still.features(views).mean(dim=(2, 3)).float().cpu())
    return torch.cat(parts).numpy()


def _refuse_unsplit(images: ImageSet) -> None:
    if "split" not in images.table:
        raise PathoError("no_split", "images", "are not split yet", "Call with_split with the table of the split")


def _linear(features: np.ndarray, images: ImageSet) -> pd.DataFrame:
    """Predictions for the val and test rows, by a logistic regression fitted on the train rows of features (N, F)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    learn = (images.table["split"] == "train").to_numpy()
    judge = images.table["split"].isin(["val", "test"]).to_numpy()
    known = np.unique(images.labels[learn])
    if len(known) < 2 or not judge.any():
        raise PathoError("single_class", "training split", "needs two classes, and some images elsewhere",
                         "Split again")
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000))
    model.fit(features[learn], images.labels[learn])
    probs = np.zeros((judge.sum(), len(images.classes)))
    probs[:, known] = model.predict_proba(features[judge])
    return as_predictions(replace(images, table=images.table[judge]), probs)


def colours(pixels: np.ndarray) -> np.ndarray:
    """57 numbers of one image (S, S, 3) uint8 that know colour, but of place only the centre.

    Of red, green, blue, hue, saturation and value: mean, deviation, skewness, five percentiles, and centre minus
    border; then the three correlations of the RGB channels. Hue is turned by half a circle, as both skin and stained
    tissue lie around its seam at red.
    """
    import cv2

    hsv = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2HSV)  # hue 0 to 179
    hsv[..., 0] = (hsv[..., 0].astype(np.uint16) + 90) % 180
    channels = np.concatenate([pixels, hsv], axis=2)  # (S, S, 6)
    shares = np.stack([np.bincount(channels[..., k].ravel(), minlength=256) for k in range(6)]) / pixels[..., 0].size
    grey = np.arange(256)
    mean = shares @ grey  # (6,)
    away = grey - mean[:, None]  # (6, 256)
    deviation = np.sqrt((shares * away**2).sum(axis=1))
    skewness = (shares * away**3).sum(axis=1) / np.maximum(deviation, 1) ** 3  # below 1 grey level there is no shape
    percentiles = np.array([np.searchsorted(np.cumsum(share), np.array(PERCENTILES) - 1e-9) for share in shares])
    quarter = len(pixels) // 4
    centre = channels[quarter:len(pixels) - quarter, quarter:len(pixels) - quarter]
    inside = centre.mean(axis=(0, 1))
    border = (mean * pixels[..., 0].size - inside * centre[..., 0].size) / (pixels[..., 0].size - centre[..., 0].size)
    rgb = pixels.reshape(-1, 3).astype(np.float32)
    rgb -= mean[:3].astype(np.float32)
    covariance = (rgb.T @ rgb / len(rgb)).astype(float)  # (3, 3)
    scale = np.maximum(deviation[:3], 1)
    correlations = (covariance / np.outer(scale, scale))[np.triu_indices(3, 1)]
    return np.concatenate([mean, deviation, skewness, percentiles.ravel(), inside - border, correlations])


# ------------------------------------------------------------------------------------------------------- the decision


@dataclass(frozen=True)
class Shown:
    """A table for a notebook: no text is cut off, and the rows that `grey` marks are in grey."""

    table: pd.DataFrame
    grey: tuple[bool, ...] = ()

    def __repr__(self) -> str:
        with pd.option_context("display.max_colwidth", None, "display.width", None):
            return repr(self.table)

    def _repr_html_(self) -> str:
        with pd.option_context("display.max_colwidth", None):
            before, tag, body = self.table.to_html().partition("<tbody>")
        start, *rows = body.split("<tr>")
        grey = self.grey or (False,) * len(rows)
        rows = [f'<tr style="color: #76828f">{row}' if faint else f"<tr>{row}"
                for row, faint in zip(rows, grey, strict=True)]
        return before + tag + start + "".join(rows)


@dataclass(frozen=True)
class Locked:
    """What `lock` chose on the validation images, for a notebook to show."""

    decision: dict  # of decision.json
    val: pd.DataFrame  # predictions of the validation images, not calibrated
    recipe: Recipe

    @property
    def threshold(self) -> float | None:
        """From which probability on an image is called, or flagged as, positive."""
        return self.decision["threshold"]

    @property
    def table(self) -> Shown:
        """The decision in words, one line for each part of it."""
        found = self.decision
        rows = {"temperature": f"{found['temperature']:.3f}", "rule": found["rule"]}
        if found.get("shares"):
            rows["called"] = metrics.RULES["even"]
        if found["threshold"] is not None:
            rows["threshold"] = f"p_{found['positive']} >= {found['threshold']:.4g}"
            rows |= {f"validation {name}": metrics.readable(number) for name, number in found["validation"].items()}
        rows |= {"note": "; ".join(found["notes"])} if found["notes"] else {}
        return Shown(pd.DataFrame({"locked": rows}))

    @property
    def labels(self) -> np.ndarray:
        """(N,) the place of each true label in the classes."""
        return _labels(self.val, self.recipe.classes)

    @property
    def probs(self) -> np.ndarray:
        """(N, C) probabilities of the validation images, calibrated."""
        return calibration.apply(_probs(self.val, self.recipe.classes), self.decision["temperature"])

    @property
    def calibration(self) -> dict:
        """`calibration_of` the validation images, "before" and "after"."""
        return calibration_of(self.val, self.recipe.classes, self.recipe.positive, self.decision["temperature"])


def lock(model: torch.nn.Module, images: ImageSet, run_dir: Path, recipe: Recipe, target_sensitivity: float = TARGET,
         cost_ratio: float | None = None) -> Locked:
    """Fits the temperature and chooses the threshold on the validation images alone, and writes decision.json.

    target_sensitivity, cost_ratio: see `choose`. With `decide="even"` the shares of the training images are locked too
    (`losses.shares`). Once test images were judged, nothing of it can be changed: the same decision again changes no
    file, another one is refused. Errors: test_seen; those of `predict` and `choose`.
    """
    from patholib import losses

    run_dir = Path(run_dir)
    val = predict(model, images.part("val"), recipe)
    shares = losses.shares(recipe, np.bincount(images.part("train").labels, minlength=len(recipe.classes)))
    chosen = choose(val, recipe.classes, recipe.positive, target_sensitivity, cost_ratio, recipe.seed, shares)
    before = _as_before(run_dir, val, chosen, recipe)
    if before is not None:
        return before
    if (run_dir / "predictions_test.csv").exists():
        raise PathoError("test_seen", run_dir.name, "has judged its test images, and this decision is another one than "
                         "it had then (or it had none): what is chosen now would be chosen knowing the result",
                         'Start a new run (resume="never"), or use the decision as it is')
    path = write_predictions(val, run_dir / "predictions_val.csv")
    decision = {"format": FORMAT, **chosen, "predictions_val_sha256": files.sha256(path),
                "locked": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")}
    files.write_json(run_dir / DECISION, decision)
    return Locked(decision, val, recipe)


def choose(val: pd.DataFrame, classes: Sequence[str], positive: str | None = None,
           target_sensitivity: float = TARGET, cost_ratio: float | None = None, seed: int = 0,
           shares: metrics.Shares | None = None) -> dict:
    """Temperature and threshold from predictions of validation images, with the rule and what is to be said of it.

    The threshold is the largest under which the validation sensitivity for `positive` reaches the target; with a
    `cost_ratio` instead the one of the lowest cost, if a missed positive costs as much as that many false alarms. Two
    classes are decided by it; of more it is an alert for `positive`, and the largest probability decides, or that over
    its share where `shares` are given. Without a positive class there is no threshold. A temperature that cannot be
    fitted is 1, and `notes` say why. Errors: bad_parameter.
    """
    check_target(target_sensitivity, cost_ratio)
    by_cost = cost_ratio is not None
    labels, probs, notes, temperature = _labels(val, classes), _probs(val, classes), [], 1.0
    try:
        temperature = calibration.fit(labels, probs)
    except PathoError as error:
        if error.code not in ("too_few", "single_class", "always_right"):
            raise
        notes.append(f"the temperature stays 1: it {error.reason}")
    target = {"cost_ratio": float(cost_ratio)} if by_cost else {"sensitivity": float(target_sensitivity)}
    found = {"temperature": temperature, "positive": positive, "threshold": None,
             "rule": metrics.RULES["even" if shares else "likeliest"], **({"shares": dict(shares)} if shares else {}),
             "target": target, "validation": {}, "notes": notes}
    if positive is None:
        return found | {"target": {}}
    probs = calibration.apply(probs, temperature)
    true, scores = labels == list(classes).index(positive), probs[:, list(classes).index(positive)]
    if not true.any():
        notes.append(f"no validation image is {positive}: the threshold stays 0.5")
        return found | {"threshold": 0.5, "rule": "0.5, chosen by nobody"}
    if by_cost:
        threshold = metrics.cheapest_threshold(true, scores, cost_ratio)
        rule = f"lowest cost on validation, a missed {positive} counting {cost_ratio:g} false alarms"
    else:
        threshold = metrics.threshold_for(true, scores, target_sensitivity)
        rule = f"sensitivity >= {target_sensitivity:g} on validation"
        groups, needed = val.loc[true, "group"].nunique(), int(np.ceil(1 / (1 - target_sensitivity) - 1e-9))
        if groups < needed:
            notes.append(f"only {groups} groups ({true.sum()} images) of {positive} in validation: fewer than {needed} "
                         f"cannot show a sensitivity of {target_sensitivity:g}")
    table = with_probs(val, classes, probs)
    numbers = metrics.alert(table, classes, positive, threshold, seed=seed)
    return found | {"threshold": threshold, "rule": rule,
                    "validation": {name: numbers[name] for name in metrics.ALERT}}


def check_target(target_sensitivity: float, cost_ratio: float | None = None) -> None:
    """Refuses what no threshold can be chosen for, before anything is trained. Errors: bad_parameter."""
    if not 0 < target_sensitivity < 1:
        raise PathoError("bad_parameter", "target_sensitivity", f"is {target_sensitivity}, not between 0 and 1",
                         "Ask for a share that a test can show, such as 0.95")
    if cost_ratio is not None and not 0 < cost_ratio < np.inf:
        raise PathoError("bad_parameter", "cost_ratio", f"is {cost_ratio}, no number above 0",
                         "Say how many false alarms one missed positive is worth")


def locked(run_dir: Path) -> dict:
    """decision.json of a run, whose validation predictions are still those it was chosen on.

    Errors: not_locked, val_changed, bad_decision, bad_json.
    """
    run_dir = Path(run_dir)
    path, predictions = run_dir / DECISION, run_dir / "predictions_val.csv"
    if not path.exists():
        raise PathoError("not_locked", run_dir.name, "has no decision.json: temperature and threshold are to be chosen "
                         "on the validation images before a test image is looked at", "Call evaluation.lock first")
    decision = files.read_json(path)
    if not isinstance(decision, dict) or decision.get("format") != FORMAT:
        raise PathoError("bad_decision", str(path), f"is no decision of format {FORMAT}", "Restore it from a copy")
    if not predictions.exists() or files.sha256(predictions) != decision.get("predictions_val_sha256"):
        raise PathoError("val_changed", str(predictions), "is not the file that the decision was made on",
                         "Restore it from a copy, or start a new run")
    return decision


def calibrated(run_dir: Path, name: str) -> pd.DataFrame:
    """predictions_<name>.csv ("val", "test", "test_tta", "baseline", "probe") with calibrated probabilities.

    The temperature is that of decision.json, 1 where a run has none. Of RIVALS, models of their own, each is stored
    with its own temperature applied. Errors: as `read_predictions`.
    """
    run_dir = Path(run_dir)
    classes = recipes.from_json(files.read_json(run_dir / "run.json")["recipe"]).classes
    table = read_predictions(run_dir / f"predictions_{name}.csv", classes)
    if name in RIVALS or not (run_dir / DECISION).exists():
        return table
    return tempered(table, classes, locked(run_dir)["temperature"])


def tempered(table: pd.DataFrame, classes: Sequence[str], temperature: float) -> pd.DataFrame:
    """A table of predictions with `calibration.apply` on its probabilities."""
    return with_probs(table, classes, calibration.apply(_probs(table, classes), temperature))


def with_probs(table: pd.DataFrame, classes: Sequence[str], probs: np.ndarray) -> pd.DataFrame:
    """A table of predictions with other probabilities (N, C)."""
    return table.assign(**{f"p_{c}": probs[:, k] for k, c in enumerate(classes)})


def calibration_of(raw: pd.DataFrame, classes: Sequence[str], positive: str | None, temperature: float) -> dict:
    """{"before", "after"} the temperature: errors of calibration, log loss, Brier score and the bins of the diagram.

    Of the probability of `positive` where there are two classes, else of the likeliest class. `ece_chance` is what
    perfectly calibrated probabilities would have by chance.
    """
    of = list(classes).index(positive) if positive is not None and len(classes) == 2 else None
    labels, found = _labels(raw, classes), {}
    for when, t in (("before", 1.0), ("after", temperature)):
        probs = calibration.apply(_probs(raw, classes), t)
        numbers = metrics.summary(with_probs(raw, classes, probs), classes, positive, resamples=0)["metrics"]
        found[when] = {
            "temperature": t,
            "ece_mass": calibration.ece(labels, probs, by="mass", of=of),
            "ece_width": calibration.ece(labels, probs, by="width", of=of),
            "ece_chance": calibration.ece_by_chance(probs, of=of),
            **{name: numbers[name]["value"] for name in ("brier", "log_loss")},
            "bins": calibration.reliability(labels, probs, of=of).to_dict("records"),
            "counts": np.bincount(calibration.binned(calibration.confident(labels, probs, of)[0], calibration.BINS,
                                                     "width"), minlength=calibration.BINS).tolist(),
        }
    return found


def _as_before(run_dir: Path, val: pd.DataFrame, chosen: dict, recipe: Recipe) -> Locked | None:
    """The decision that stands in the folder, if it was asked for in the same way of the same model."""
    try:
        decision, kept = locked(run_dir), read_predictions(run_dir / "predictions_val.csv", recipe.classes)
    except PathoError:
        return None
    same = all(decision.get(key) == chosen.get(key) for key in ("positive", "target", "shares")) and \
        list(kept["path"]) == list(val["path"]) and \
        np.abs(_probs(kept, recipe.classes) - _probs(val, recipe.classes)).max() < ALIKE
    return Locked(decision, kept, recipe) if same else None


def _labels(table: pd.DataFrame, classes: Sequence[str]) -> np.ndarray:
    """(N,) the place of each true label in the classes."""
    return pd.Categorical(table["label"], categories=list(classes)).codes.astype(np.int64)


def _probs(table: pd.DataFrame, classes: Sequence[str]) -> np.ndarray:
    """(N, C) the probabilities of a table of predictions."""
    return table[[f"p_{c}" for c in classes]].to_numpy(dtype=float)


# -------------------------------------------------------------------------------------------------------- the judging


@dataclass(frozen=True)
class Judged:
    """What `judge` wrote into the run folder, for a notebook to show."""

    metrics: dict  # of metrics.json
    test: pd.DataFrame  # predictions of the plain test views, calibrated
    recipe: Recipe

    @property
    def threshold(self) -> float | metrics.Shares:
        """How images are called: see `deciding`."""
        return deciding(self.metrics["decision"], self.recipe.classes)

    @property
    def summary(self) -> dict:
        """`metrics.summary` of the plain test views."""
        return self.metrics["test"]

    @property
    def auc(self) -> float:
        """AUC on the plain test views; macro one-vs-rest for more than two classes."""
        return self.summary["metrics"]["auc"]["value"]

    @property
    def table(self) -> pd.DataFrame:
        """The headline numbers side by side, each with its 95 % interval over groups."""
        shown = {"validation": "val", "test": "test", "test, TTA": "test_tta", "colour baseline": "baseline",
                 "linear probe": "probe"}
        columns = {title: self.metrics[key]["metrics"] for title, key in shown.items() if key in self.metrics}
        return pd.DataFrame({title: {name: metrics.readable(number) for name, number in numbers.items()}
                             for title, numbers in columns.items()})

    @property
    def report(self) -> pd.DataFrame:
        """Precision, sensitivity, F1 and support of every class on the test images."""
        return metrics.classification_report(self.test, self.recipe.classes, self.recipe.positive, self.threshold)

    @property
    def subgroups(self) -> pd.DataFrame:
        """The headline numbers in every subgroup of the test images, as text with their 95 % intervals.

        `note` says which rows have too few groups, and why a number is undefined.
        """
        rows = self.summary["subgroups"]
        table = pd.DataFrame(rows)
        ends = [name for name in table if name.endswith(("_low", "_high"))]
        names = dict.fromkeys(name.rsplit("_", 1)[0] for name in ends)
        text = {name: [metrics.readable(metrics.of_subgroup(row, name), digits=2) for row in rows] for name in names}
        return table.assign(**text).drop(columns=["few", *ends], errors="ignore")

    @property
    def shown_subgroups(self) -> Shown:
        """`subgroups` with the rows in grey that have too few groups to be judged by."""
        return Shown(self.subgroups, tuple(row["few"] for row in self.summary["subgroups"]))

    @property
    def alert(self) -> pd.DataFrame:
        """How `positive` is found at the locked threshold, with 95 % intervals; empty without a positive class."""
        found = self.summary.get("alert", {})
        return pd.DataFrame({f"p_{found['positive']} >= {found['threshold']:.4g}": {
            name: metrics.readable(found[name]) for name in metrics.ALERT}}) if found else pd.DataFrame()

    @property
    def calibration(self) -> pd.DataFrame:
        """Errors of calibration, Brier score and log loss before and after the temperature, for each set."""
        rows = {(name, when): {key: value for key, value in numbers.items() if key not in ("bins", "counts")}
                for name, both in self.metrics["calibration"].items() for when, numbers in both.items()}
        return pd.DataFrame(rows).T

    @property
    def gains(self) -> pd.DataFrame:
        """What averaged views change, and what the network has over its rivals: differences with 95 % intervals."""
        return pd.DataFrame({what: {name: metrics.readable(number, sign="+") for name, number in gain.items()}
                             for what, gain in records.gains(self.metrics).items()})

    @property
    def patients(self) -> pd.DataFrame:
        """One row per patient (case, lesion or group) of the test images."""
        return metrics.by_patient(self.test, self.recipe.classes, self.recipe.positive, patient_column(self.test),
                                  self.threshold)

    @property
    def labels(self) -> np.ndarray:
        """(N,) the place of each true label in the classes."""
        return _labels(self.test, self.recipe.classes)

    @property
    def probs(self) -> np.ndarray:
        """(N, C) probabilities of the test images, calibrated."""
        return _probs(self.test, self.recipe.classes)


LEVELS = ("slide", "case", "lesion")  # what images may be gathered by, where a data set knows it


def patient_column(table: pd.DataFrame) -> str:
    """The column that tells patients apart, also where the split was by image: case, lesion or the given group."""
    return next(name for name in ("case", "lesion", "given_group", "group") if name in table)


def judge(model: torch.nn.Module, images: ImageSet, run_dir: Path, recipe: Recipe, baseline: pd.DataFrame | None = None,
          subgroups: Sequence[str] = (), probed: pd.DataFrame | None = None) -> Judged:
    """Applies the model and the locked decision to the test images; writes predictions_*.csv and metrics.json.

    Test images are predicted plainly and, if the recipe has more than one view, with test-time augmentation. All
    numbers are of calibrated probabilities, at the locked threshold, with intervals over groups drawn with one seed.
    baseline, probed: predictions of `colour_baseline` and of `probe`, each of which gets temperature and threshold from
    its own validation rows; `gain_over` is the model minus them, in the same draws of groups. subgroups: columns to
    report apart, of the test images, as are the patients.
    Errors: those of `locked`.
    """
    run_dir, test, classes, positive = Path(run_dir), images.part("test"), recipe.classes, recipe.positive
    decision = locked(run_dir)  # before a test image is touched
    raw = {"val": read_predictions(run_dir / "predictions_val.csv", classes)}
    views = _probabilities(_forward(model, test, recipe, recipe.tta_views > 1))  # (views, N, C), the plain view first
    raw["test"] = as_predictions(test, views[0])
    if recipe.tta_views > 1:
        raw["test_tta"] = as_predictions(test, views.mean(axis=0))
    tables = {name: tempered(table, classes, decision["temperature"]) for name, table in raw.items()}
    thresholds = dict.fromkeys(tables, deciding(decision, classes))
    for name, rival in zip(RIVALS, (baseline, probed), strict=True):
        if rival is not None:
            tables[name], thresholds[name] = _of_its_own(rival, recipe, decision)
    for name, table in (tables | raw).items():
        if name != "val":
            write_predictions(table, run_dir / f"predictions_{name}.csv")
    found = {name: metrics.summary(table, classes, positive, thresholds[name], seed=recipe.seed)
             for name, table in tables.items()}
    found["test"] |= _details(tables["test"], recipe, decision, subgroups)
    found["calibration"] = {name: calibration_of(table, classes, positive, decision["temperature"])
                            for name, table in raw.items()}
    if "test_tta" in tables:
        found["tta_gain"] = metrics.paired(tables["test_tta"], tables["test"], classes, positive, thresholds["test"],
                                           seed=recipe.seed)
    found["gain_over"] = {name: metrics.paired(tables["test"], tables[name], classes, positive,
                                               (thresholds["test"], thresholds[name]), seed=recipe.seed)
                          for name in RIVALS if name in tables}
    # Without the time, so that the same training gives the same bytes.
    found["decision"] = {key: value for key, value in decision.items() if key != "locked"}
    files.write_json(run_dir / "metrics.json", found)
    return Judged(found, tables["test"], recipe)


def deciding(decision: Mapping | None, classes: Sequence[str]) -> float | metrics.Shares:
    """What `metrics.called` takes, from decision.json: the shares it locked, or the threshold between two classes.

    0.5, which is not used where the largest probability decides, if there is neither: an alert decides nothing.
    """
    shares, threshold = ((decision or {}).get(name) for name in ("shares", "threshold"))
    return shares or (threshold if len(classes) == 2 and threshold is not None else 0.5)


def _of_its_own(rival: pd.DataFrame, recipe: Recipe, decision: dict) -> tuple[pd.DataFrame, float]:
    """The test rows of a rival, calibrated, and its threshold, by the same rule from its own validation rows.

    Rivals have learnt with every class weighing the same: of more than two classes the largest probability decides.
    """
    parts = {name: rival[rival["split"] == name].reset_index(drop=True) for name in ("val", "test")}
    target = decision["target"]
    own = choose(parts["val"], recipe.classes, recipe.positive, target.get("sensitivity", TARGET),
                 target.get("cost_ratio"), recipe.seed)
    return tempered(parts["test"], recipe.classes, own["temperature"]), deciding(own, recipe.classes)


def _details(test: pd.DataFrame, recipe: Recipe, decision: dict, subgroups: Sequence[str]) -> dict:
    """What metrics.json has of the test images alone: subgroups, patients, alert, abstention, decision curve."""
    classes, positive, threshold = recipe.classes, recipe.positive, deciding(decision, recipe.classes)
    apart = metrics.by_subgroup(test, classes, positive, subgroups, threshold, seed=recipe.seed)
    found = {
        "subgroups": apart.astype(object).where(apart.notna(), None).to_dict("records"),
        "patients": metrics.patient_summary(test, classes, positive, patient_column(test), threshold,
                                            seed=recipe.seed),
        "levels": {level: metrics.patient_summary(test, classes, positive, level, threshold, seed=recipe.seed)
                   for level in LEVELS if level in test and level != patient_column(test)},
        "abstention": metrics.abstention(test, classes, positive, threshold),
    }
    if decision["threshold"] is not None:
        found["alert"] = metrics.alert(test, classes, positive, decision["threshold"], seed=recipe.seed)
        found["decision_curve"] = metrics.decision_curve(test, positive)
    return found
