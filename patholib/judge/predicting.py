"""Predictions: logits and probabilities of a set of images, as a table that is written and read without loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from patholib.base import files
from patholib.base.errors import PathoError, nearest
from patholib.base.progress import bar
from patholib.base.team import ALONE, Team
from patholib.data import csvfiles
from patholib.model.recipes import Recipe

if TYPE_CHECKING:
    import torch

    from patholib.data.imagesets import ImageSet
    from patholib.model.networks import Classifier


def predict(
    model: torch.nn.Module,
    images: ImageSet,
    recipe: Recipe,
    tta: bool = False,
    device: str | torch.device | None = None,
    batch_size: int = 64,
    precision: str = "fp32",
    progress: bool = True,
    team: Team = ALONE,
) -> pd.DataFrame:
    """The table of predictions of a set: probabilities of the plain view, or with `tta` their mean over several views.

    Softmax in float64. device: None leaves the model where it is. batch_size: views in one pass of the model.
    team: processes that share the images; each gets the whole table. The model is left in the mode it was in.
    Errors: no_images, model_output.
    """
    views = forward(model, images, recipe, tta, device, batch_size, precision, progress, team=team)  # (views, N, C)
    return as_predictions(images, probabilities(views))


def logits(
    model: torch.nn.Module,
    images: ImageSet,
    recipe: Recipe,
    device: str | torch.device | None = None,
    precision: str = "fp32",
    batch_size: int = 64,
    after_batch: Callable[[], None] | None = None,
    team: Team = ALONE,
) -> torch.Tensor:
    """The logits of every image's plain view, (N, C) float32 on the CPU, in the order of the set.

    after_batch: is called after each batch, in every process of the team equally often; an error of it ends the pass.
    """
    return forward(model, images, recipe, False, device, batch_size, precision, False, after_batch, False, team)[0]


def probabilities(logits: torch.Tensor) -> np.ndarray:
    """Probabilities (N, C) from logits of views (views, N, C): softmax of each view, then their mean, in float64."""
    return probabilities_of(logits).mean(axis=0)


def one_by_one(network: Callable[[torch.Tensor], torch.Tensor], views: torch.Tensor) -> torch.Tensor:
    """Logits (N, C) float32 of views (N, 3, H, W), each computed alone: independent of the rest of the batch.

    In a batch a processor may add in another order, and the last bits of a result would depend on the other images.
    network: as `folding.for_prediction` gives it. Notebooks, `inference.Predictor` and all that is built on it use this
    function, so that on one machine their results are the same to the last bit.
    """
    import torch

    views = views.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        return torch.cat([network(view) for view in views.split(1)]).float()


def probabilities_of(logits: torch.Tensor) -> np.ndarray:
    """Softmax over the last axis, in float64, of the same shape."""
    return logits.double().softmax(dim=-1).numpy()


def forward(
    model,
    images,
    recipe,
    tta,
    device=None,
    batch_size=64,
    precision="fp32",
    progress=True,
    after_batch=None,
    final=True,
    team=ALONE,
) -> torch.Tensor:
    """Logits (views, N, C), float32 on the CPU, of all images in every process of the team.

    final: on a CPU in fp32 each image is computed alone, as the exported model does it (`one_by_one`); False: in
    batches, as between epochs. On a GPU always in batches. Errors: no_images, model_output.
    """
    import torch

    from patholib.data.batching import batches
    from patholib.model import folding, networks

    if not len(images):
        raise PathoError("no_images", "images", "the set is empty", "Choose a split that has images")
    device = torch.device(device or next(model.parameters()).device)
    n_views = recipe.tta_views if tta else 1

    modes = [(module, module.training) for module in model.modules()]  # train(True) would wake what was frozen
    model.to(device).eval()
    final = final and device.type == "cpu" and precision == "fp32"
    network = partial(one_by_one, folding.for_prediction(model)) if final else model
    parts, positions = [], []
    meter = bar(shown=progress, total=len(images), unit="image", desc="predicting", leave=False)
    try:
        with meter, torch.inference_mode(), networks.autocast(device, precision):
            at_once = max(1, batch_size // n_views) * team.count
            for batch in batches(images, np.arange(len(images)), at_once, share=(team.rank, team.count)):
                part = torch.empty(n_views, 0, len(images.classes))
                if len(batch.rows):  # a share may be empty
                    part = _logits_of(network, _views(batch, recipe, tta, device))
                    _refuse_not_finite(part, images.table["path"].iloc[batch.rows], precision)
                parts.append(part)
                positions.append(batch.positions)
                meter.update(len(batch.whole))
                if after_batch is not None:
                    after_batch()
    finally:
        for module, mode in modes:
            module.training = mode
    # Outside of inference mode this is an ordinary tensor, on which a temperature can be fitted.
    return _gathered(torch.cat(parts, dim=1), np.concatenate(positions), len(images), device, team)


def _views(batch, recipe: Recipe, tta: bool, device: torch.device) -> torch.Tensor:
    """The views of a batch, (views, B, 3, size, size), on the device."""
    import torch

    from patholib.model import augment, networks

    # Pixels are copied to a GPU as bytes, a twelfth of the size of several float views.
    pixels = batch.images if device.type == "cpu" else torch.from_numpy(batch.images).to(device)
    with networks.autocast(device, "fp32"):  # warps are matrix products, not to be computed in half precision
        return augment.views_to_judge(pixels, recipe, tta, batch.rows)


def _logits_of(network: Callable[[torch.Tensor], torch.Tensor], views: torch.Tensor) -> torch.Tensor:
    """Logits (views, B, C), float32 on the CPU, of views (views, B, 3, size, size), all in one pass."""
    import torch

    stack = views.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    return network(stack).float().cpu().unflatten(0, (len(views), -1))


def _refuse_not_finite(logits: torch.Tensor, paths: pd.Series, precision: str) -> None:
    finite = logits.isfinite().all(dim=2).all(dim=0).numpy()
    if not finite.all():
        raise PathoError(
            "model_output",
            paths[~finite].iloc[0],
            f"the model's output is not finite ({precision})",
            "Load the best checkpoint again, or predict with fp32",
        )


def _gathered(own: torch.Tensor, positions: np.ndarray, number: int, device: torch.device, team: Team) -> torch.Tensor:
    """The logits of all processes, (views, number, C), in the order of the set."""
    import torch

    if team.count == 1:
        return own
    logits, times = own.new_zeros(own.shape[0], number, own.shape[2], device=device), torch.zeros(number, device=device)
    logits[:, positions], times[positions] = own.to(device), 1.0
    team.add_up([logits, times])
    if not (times == 1).all():
        raise PathoError(
            "process_lost",
            "predictions",
            f"{int((times != 1).sum())} images were not seen exactly once",
            "Predict with one process, and report this",
        )
    return logits.cpu()


def as_predictions(images: ImageSet, probs: np.ndarray) -> pd.DataFrame:
    """The table of predictions of a set: its columns without `row`, and `p_` columns with probs (N, C)."""
    named = pd.DataFrame(probs, columns=[f"p_{c}" for c in images.classes], dtype=float)
    return pd.concat([images.table.drop(columns="row").reset_index(drop=True), named], axis=1)


def write_predictions(table: pd.DataFrame, path: Path) -> Path:
    """Writes a table of predictions as CSV, from which the probabilities can be read back to the last bit."""
    return files.write_table(path, table)


def read_predictions(path: Path, classes: Sequence[str]) -> pd.DataFrame:
    """Reads a table of predictions: `p_` columns as numbers that sum to 1, all others as text.

    Errors: missing_file, csv_format, unknown_class, bad_probabilities.
    """
    path, columns = Path(path), [f"p_{c}" for c in classes]
    table = csvfiles.read_csv(path, ("label", "group", *columns)).reset_index(drop=True)
    other = [c for c in table if c.startswith("p_") and c not in columns]
    if other:
        raise PathoError(
            "unknown_class", f"{path}, column {other[0]}", "belongs to no class", nearest(other[0], columns)
        )
    try:
        table[columns] = table[columns].astype(float)  # Python's own parsing: exact, unlike pandas' fast one
    except ValueError as error:
        raise PathoError("csv_format", str(path), str(error), "Restore it or predict again") from error
    wrong = np.flatnonzero(~(np.abs(table[columns].sum(axis=1) - 1) < 1e-6))
    if len(wrong):
        raise PathoError(
            "bad_probabilities",
            f"{path}, line {wrong[0] + 2}",
            f"has probabilities that do not sum to 1 ({len(wrong)} such rows)",
            "Predict again",
        )
    return table


def pooled(
    model: Classifier,
    images: ImageSet,
    view: int = 0,
    device: str | torch.device | None = None,
    batch_size: int = 64,
    after_batch: Callable[[], None] | None = None,
) -> np.ndarray:
    """The mean of each map of the last block over one view of every image, (N, K) float32.

    view: of the views of kind "dihedral", 0 is the plain one (`augment.tta_views`). In eval mode, in batches, whose
    make-up changes the last bits. Other arguments as for `predict` and `logits`. Errors: no_images, model_output.
    """
    from patholib.model import augment, networks

    encoder = networks.Encoder(model, augment.SYMMETRIES[view])
    made = forward(encoder, images, model, False, device, batch_size, after_batch=after_batch, final=False)
    return made[0].numpy()  # of a recipe `forward` has asked the model for the image size alone


def own_apart(table: pd.DataFrame, ours: Iterable[str]) -> pd.DataFrame:
    """The table with `own_` before columns of the data that have a name that is to be written."""
    own = {}
    for name in ours:
        if name in table:
            own[name] = f"own_{name}"
            while own[name] in table:
                own[name] = f"own_{own[name]}"
    return table.rename(columns=own)


def with_probs(table: pd.DataFrame, classes: Sequence[str], probs: np.ndarray) -> pd.DataFrame:
    """A table of predictions with other probabilities (N, C)."""
    return table.assign(**{f"p_{c}": probs[:, k] for k, c in enumerate(classes)})


def true_labels(table: pd.DataFrame, classes: Sequence[str]) -> np.ndarray:
    """(N,) the index of each true class."""
    return pd.Categorical(table["label"], categories=list(classes)).codes.astype(np.int64)


def probs_of(table: pd.DataFrame, classes: Sequence[str]) -> np.ndarray:
    """(N, C) the probabilities of a table of predictions, in the order of the classes."""
    return table[[f"p_{c}" for c in classes]].to_numpy(dtype=float)


def patient_column(table: pd.DataFrame) -> str:
    """The column that identifies patients, also where the split was by image: case, lesion or the given group."""
    return next(name for name in ("case", "lesion", "given_group", "group") if name in table)
