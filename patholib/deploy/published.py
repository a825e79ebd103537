"""The checkpoint layout of the two source documents."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from patholib.base import files
from patholib.base.errors import PathoError, shown
from patholib.model import architectures, recipes
from patholib.model.recipes import Recipe


def plain_state(model_state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict under torchvision's own names, on the CPU; finite throughout.

    `Classifier` puts "net." before each name. Errors: nonfinite_weights.
    """
    state = {
        name.removeprefix("net."): tensor.detach().cpu().contiguous().clone() for name, tensor in model_state.items()
    }
    stop_on_nonfinite(state, "the model", "Export an earlier checkpoint, and lower the recipe's lr before training on")
    return state


def write(
    path: Path,
    model_state: Mapping[str, torch.Tensor],
    recipe: Recipe,
    *,
    epoch: int,
    best_auc: float | None,
    optimizer_state: Mapping | None = None,
    validation: Mapping | None = None,
    frozen_blocks: int | None = None,
) -> Path:
    """Writes one `.pt` in the published layout: model_state, epoch, best_auc, class_names, image_size, normalization.

    With it optimizer_state, validation (numbers), frozen_blocks and recipe (JSON values). It holds tensors and plain
    values only, so that `torch.load(path, weights_only=True)` reads it. Errors: nonfinite_weights, not_plain.
    """
    content = {
        "model_state": plain_state(model_state),
        "epoch": epoch,
        "best_auc": best_auc,
        "class_names": dict(enumerate(recipe.classes)),
        "image_size": recipe.image_size,
        "normalization": architectures.of(recipe.arch).normalization,
        "optimizer_state": optimizer_state,
        "validation": dict(validation) if validation is not None else None,
        "frozen_blocks": frozen_blocks,
        "recipe": recipes.without_folders(recipe).to_json(),
    }
    stream = io.BytesIO()
    torch.save(content, stream)
    try:
        torch.load(io.BytesIO(stream.getvalue()), weights_only=True)
    except pickle.UnpicklingError as error:
        raise PathoError(
            "not_plain",
            Path(path).name,
            f"would hold more than tensors and plain values ({error})",
            "Turn NumPy numbers and paths into float, int or str first",
        ) from error
    return files.write_bytes(path, stream.getvalue())


def read(path: Path) -> dict:
    """What `write` wrote. Errors: missing_file, unreadable, checkpoint_damaged."""
    stream = io.BytesIO(files.read_bytes(path))
    try:
        with zipfile.ZipFile(stream) as archive:
            damaged = archive.testzip()  # torch does not look at its check sums
    except (zipfile.BadZipFile, ValueError, OSError, RuntimeError) as error:
        damaged = str(error)
    if damaged:
        raise PathoError("checkpoint_damaged", str(path), f"is damaged ({shown(damaged)})", "Restore it")
    stream.seek(0)
    return torch.load(stream, weights_only=True)


def stop_on_nonfinite(state: Mapping[str, torch.Tensor], subject: str, remedy: str) -> None:
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor.float()).all()]  # of any type
    if broken:
        raise PathoError(
            "nonfinite_weights",
            subject,
            f"has NaN or infinite weights in {len(broken)} tensors, first {shown(broken[0])}",
            remedy,
        )
