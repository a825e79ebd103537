"""From a model and images to a table of predictions, all that judging needs; and a rival that sees only colour.

A table of predictions has the columns of the images' table but `row`, in its order, and one `p_<class>` per class.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from patholib import files, metrics
from patholib.errors import PathoError, nearest
from patholib.recipes import Recipe

if TYPE_CHECKING:  # torch is imported where a model is run: to read predictions back none is needed
    import torch

    from patholib.images import ImageSet


def predict(model: torch.nn.Module, images: ImageSet, recipe: Recipe, tta: bool = False,
            device: str | torch.device | None = None, batch_size: int = 64, precision: str = "fp32",
            progress: bool = True) -> pd.DataFrame:
    """The probabilities of every image, in the order of the set; of its plain view, or with `tta` the mean of several.

    Softmax in float64. device: None leaves the model where it is. batch_size: views the model sees at once.
    The model's modes are put back. Errors: model_output.
    """
    found = _forward(model, images, recipe, tta, device, batch_size, precision, progress)  # (views, N, C)
    return as_predictions(images, probabilities(found))


def logits(model: torch.nn.Module, images: ImageSet, recipe: Recipe, device: str | torch.device | None = None,
           precision: str = "fp32", batch_size: int = 64, after_batch: Callable[[], None] | None = None
           ) -> torch.Tensor:
    """The logits of every image's plain view, (N, C) float32 on the CPU, in the order of the set.

    after_batch: called after each batch; what it raises ends the pass.
    """
    return _forward(model, images, recipe, False, device, batch_size, precision, False, after_batch, False)[0]


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
             after_batch=None, final=True) -> torch.Tensor:
    """Logits (views, N, C), float32 on the CPU.

    final: as the exported model will compute them there, `one_by_one`; on a GPU, and between epochs, in batches.
    """
    import torch

    from patholib import augment, models
    from patholib.images import batches

    if not len(images):
        raise PathoError("no_images", "images", "the set is empty", "Choose a split that has images")
    device = torch.device(device or next(model.parameters()).device)
    number = recipe.tta_views if tta else 1

    def views(pixels, rows):  # (B, S, S, 3) uint8 to (views, B, 3, size, size)
        if tta:
            return augment.tta_views(pixels, recipe.image_size, recipe.tta, recipe.tta_views, recipe.seed, rows,
                                     recipe.augmentation)
        return augment.plain_views(pixels, recipe.image_size)[None]

    modes = [(module, module.training) for module in model.modules()]  # train(True) would wake what was frozen
    model.to(device).eval()
    final = final and device.type == "cpu"
    network = models.for_prediction(model) if final else model
    parts = []
    quiet = {} if progress else {"disable": True}  # an explicit False would override TQDM_DISABLE
    bar = tqdm(total=len(images), unit="image", desc="predicting", leave=False, **quiet)
    try:
        with bar, torch.inference_mode(), models.autocast(device, precision):
            for batch in batches(images, np.arange(len(images)), max(1, batch_size // number)):
                # On a GPU the pixels cross the bus as they are, a twelfth of what float views in several turns take.
                pixels = batch.images if device.type == "cpu" else torch.from_numpy(batch.images).to(device)
                with models.autocast(device, "fp32"):  # drawn views are matrix products, which are not to be halved
                    stack = views(pixels, batch.rows).flatten(0, 1)  # (views * B, 3, size, size), seen in one pass
                stack = stack.contiguous(memory_format=torch.channels_last)
                found = one_by_one(network, stack) if final else network(stack).float().cpu()
                found = found.unflatten(0, (number, -1))  # (views, B, C)
                finite = found.isfinite().all(dim=2).all(dim=0).numpy()
                if not finite.all():
                    name = images.table["path"].iloc[batch.rows[~finite][0]]
                    raise PathoError("model_output", name, f"the model's output is not finite ({precision})",
                                     "Load the best checkpoint again, or predict with fp32")
                parts.append(found)
                bar.update(len(batch.rows))
                if after_batch is not None:
                    after_batch()
    finally:
        for module, mode in modes:
            module.training = mode
    return torch.cat(parts, dim=1)  # out here it is an ordinary tensor, which a temperature can be fitted on


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
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if "split" not in images.table:
        raise PathoError("no_split", "images", "are not split yet", "Call with_split with the table of the split")
    learn = (images.table["split"] == "train").to_numpy()
    judge = images.table["split"].isin(["val", "test"]).to_numpy()
    known = np.unique(images.labels[learn])
    if len(known) < 2 or not judge.any():
        raise PathoError("single_class", "training split", "needs two classes, and some images elsewhere",
                         "Split again")
    features = np.stack([colours(images.pixels[row]) for row in images.table["row"]])  # (N, F)
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


@dataclass(frozen=True)
class Judged:
    """What `judge` wrote into the run folder, for a notebook to show."""

    metrics: dict  # of metrics.json
    test: pd.DataFrame  # predictions of the plain test views
    recipe: Recipe

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
        shown = {"validation": "val", "test": "test", "test, TTA": "test_tta", "colour baseline": "baseline"}
        columns = {title: self.metrics[key]["metrics"] for title, key in shown.items() if key in self.metrics}
        return pd.DataFrame({title: {name: metrics.readable(number) for name, number in numbers.items()}
                             for title, numbers in columns.items()})

    @property
    def report(self) -> pd.DataFrame:
        """Precision, sensitivity, F1 and support of every class on the test images."""
        return metrics.classification_report(self.test, self.recipe.classes, self.recipe.positive)

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
    def patients(self) -> pd.DataFrame:
        """One row per patient (case, lesion or group) of the test images."""
        return metrics.by_patient(self.test, self.recipe.classes, self.recipe.positive, patient_column(self.test))

    @property
    def labels(self) -> np.ndarray:
        """(N,) the place of each true label in the classes."""
        return pd.Categorical(self.test["label"], categories=list(self.recipe.classes)).codes.astype(np.int64)

    @property
    def probs(self) -> np.ndarray:
        """(N, C) probabilities of the test images."""
        return self.test[[f"p_{c}" for c in self.recipe.classes]].to_numpy()


def patient_column(table: pd.DataFrame) -> str:
    """The column that tells patients apart, also where the split was by image: case, lesion or the given group."""
    return next(name for name in ("case", "lesion", "given_group", "group") if name in table)


def judge(model: torch.nn.Module, images: ImageSet, run_dir: Path, recipe: Recipe, baseline: pd.DataFrame | None = None,
          subgroups: Sequence[str] = ()) -> Judged:
    """Applies the model to the validation and test images and writes predictions_*.csv and metrics.json.

    Test images are predicted plainly and, if the recipe has more than one view, with test-time augmentation.
    baseline: predictions of `colour_baseline`. subgroups: columns to report apart, of the test images, as are the
    patients. All numbers have intervals over groups, drawn with the same seed.
    """
    run_dir, val, test = Path(run_dir), images.part("val"), images.part("test")
    tables = {"val": predict(model, val, recipe)}
    views = _probabilities(_forward(model, test, recipe, recipe.tta_views > 1))  # (views, N, C), the plain view first
    tables["test"] = as_predictions(test, views[0])
    if recipe.tta_views > 1:
        tables["test_tta"] = as_predictions(test, views.mean(axis=0))
    if baseline is not None:
        tables["baseline"] = baseline[baseline["split"] == "test"].reset_index(drop=True)
    for name, table in tables.items():
        write_predictions(table, run_dir / f"predictions_{name}.csv")
    classes, positive = recipe.classes, recipe.positive
    found = {name: metrics.summary(table, classes, positive, seed=recipe.seed) for name, table in tables.items()}
    apart = metrics.by_subgroup(tables["test"], classes, positive, subgroups, seed=recipe.seed)
    found["test"]["subgroups"] = apart.astype(object).where(apart.notna(), None).to_dict("records")
    found["test"]["patients"] = metrics.patient_summary(tables["test"], classes, positive,
                                                        patient_column(tables["test"]), seed=recipe.seed)
    files.write_json(run_dir / "metrics.json", found)
    return Judged(found, tables["test"], recipe)
