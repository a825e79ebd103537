"""The trained model as files for others: weights that cannot run code, and a manifest that says what they are.

`save_model` writes `model.safetensors` and `model.json`; each names or holds the digest that finds a flipped bit, a
swapped file or reordered classes (`load_model`). A digest finds damage, not malice: who must rule that out compares
`weights.sha256` with one got by another way. `published` writes the checkpoint layout of the published description.
"""

from __future__ import annotations

import hashlib
import io
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch

from patholib import __version__, checkpoints, files, recipes
from patholib.errors import PathoError, nearest
from patholib.recipes import Recipe

FORMAT = 1
NOTICE = "For research use only. Not a medical device: not for diagnosis or for decisions about any patient."
DEMO_NOTICE = "Trained on generated demo images: it knows nothing about tissue or skin."
WEIGHTS, MANIFEST, PUBLISHED = "model.safetensors", "model.json", "published.pt"
NORMALIZATION = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}  # ImageNet, of RGB in [0, 1]


def plain_state(model_state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict under torchvision's own names, on the CPU; finite throughout.

    `Classifier` puts "net." before each name. Errors: nonfinite_weights.
    """
    state = {name.removeprefix("net."): tensor.detach().cpu().contiguous().clone()
             for name, tensor in model_state.items()}
    _stop_on_nonfinite(state, "the model", "Export an earlier checkpoint, and lower the recipe's lr before training on")
    return state


def published(path: Path, model_state: Mapping[str, torch.Tensor], epoch: int, best_auc: float | None,
              class_names: Sequence[str], image_size: int, normalization: Mapping = NORMALIZATION, *,
              optimizer_state: Mapping | None = None, validation: Mapping | None = None,
              frozen_blocks: int | None = None, recipe: Recipe | None = None) -> Path:
    """Writes one `.pt` in the published layout: model_state, epoch, best_auc, class_names, image_size, normalization.

    With it optimizer_state, validation (numbers), frozen_blocks and recipe (JSON values). It holds tensors and plain
    values only, so that `torch.load(path, weights_only=True)` reads it. Errors: nonfinite_weights, not_plain.
    """
    content = {
        "model_state": plain_state(model_state),
        "epoch": epoch,
        "best_auc": best_auc,
        "class_names": dict(enumerate(class_names)),
        "image_size": image_size,
        "normalization": {key: list(values) for key, values in normalization.items()},
        "optimizer_state": optimizer_state,
        "validation": dict(validation) if validation is not None else None,
        "frozen_blocks": frozen_blocks,
        "recipe": recipes.without_folders(recipe).to_json() if recipe is not None else None,
    }
    stream = io.BytesIO()
    torch.save(content, stream)
    try:
        torch.load(io.BytesIO(stream.getvalue()), weights_only=True)
    except pickle.UnpicklingError as error:
        raise PathoError("not_plain", Path(path).name, f"would hold more than tensors and plain values ({error})",
                         "Turn NumPy numbers and paths into float, int or str first") from error
    return files.write_bytes(path, stream.getvalue())


def save_model(folder: Path, model_state: Mapping[str, torch.Tensor], recipe: Recipe, *, run: str = "",
               data_sha256: str = "", demo: bool = False, epoch: int | None = None, threshold: float | None = None,
               temperature: float | None = None) -> Path:
    """Writes `model.safetensors` and `model.json` into `folder`; returns the manifest's path.

    run: the run's name; data_sha256: of its manifest of images; epoch from 1. threshold and temperature: chosen on the
    validation images, None where they were not. Errors: nonfinite_weights, class_mismatch, bad_manifest.
    """
    folder, state, recipe = Path(folder), plain_state(model_state), recipes.without_folders(recipe)
    weights = safetensors.torch.save(state, metadata={"format": "pt"})
    manifest = {
        "format": FORMAT,
        "arch": recipe.arch,
        "classes": list(recipe.classes),
        "positive": recipe.positive,
        "image_size": recipe.image_size,
        "fit": recipe.fit,
        "normalization": NORMALIZATION,
        "head": {"width": recipe.head_width, "order": recipe.head_order, "dropout": list(recipe.head_dropout)},
        "threshold": threshold,
        "temperature": temperature,
        "recipe": recipe.to_json(),
        "run": run,
        "epoch": epoch,
        "data_sha256": data_sha256,
        "demo": demo,
        "notice": f"{DEMO_NOTICE} {NOTICE}" if demo else NOTICE,
        "patholib": __version__,
        "weights": {"file": WEIGHTS, "sha256": hashlib.sha256(weights).hexdigest(), "bytes": len(weights),
                    "parameters": sum(t.numel() for t in state.values() if t.is_floating_point())},
    }
    manifest = {**manifest, "manifest_sha256": files.digest(manifest)}
    _check_manifest(manifest, folder / MANIFEST)
    _check_classes(state, manifest, folder / WEIGHTS)
    files.write_bytes(folder / WEIGHTS, weights)  # first: a manifest without its weights would promise a model
    return files.write_json(folder / MANIFEST, manifest)


def write(run_dir: Path) -> list[Path]:
    """Exports the best epoch of a finished training: model.safetensors, model.json and published.pt; returns them.

    Everything is read from the run folder. Errors: missing_file, checkpoint_damaged, nothing_trained.
    """
    run_dir = Path(run_dir)
    facts = files.read_json(run_dir / "run.json")
    if "training" not in facts:
        raise PathoError("nothing_trained", str(run_dir), "has no finished training", "Train first")
    recipe, best = recipes.from_json(facts["recipe"]), facts["training"]["best_epoch"]
    kept = checkpoints.load(run_dir / "checkpoints", "best", best)
    row = kept["row"]
    save_model(run_dir, kept["model"], recipe, run=facts["name"], data_sha256=facts["data"]["images_sha256"],
               demo=facts["demo"], epoch=best)
    published(run_dir / PUBLISHED, kept["model"], best, row["val_auc"], recipe.classes, recipe.image_size,
              optimizer_state=kept["optimizer"], frozen_blocks=row["frozen"], recipe=recipe,
              validation={name: value for name, value in row.items() if name.startswith("val_")})
    return [run_dir / WEIGHTS, run_dir / MANIFEST, run_dir / PUBLISHED]


def load_model(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """(state, manifest) of an exported model: its folder, or one of its two files.

    The state has torchvision's names: `Classifier.net.load_state_dict(state)`; `classifier` does it all. Errors:
    missing_file, not_safetensors, weights_damaged, bad_json, manifest_changed, model_format, unknown_arch,
    bad_manifest, class_mismatch, nonfinite_weights.
    """
    path = Path(path)
    given = path / WEIGHTS if path.is_dir() else path
    if given.name != MANIFEST:
        _check_magic(given)
    manifest = files.read_json(given.with_name(MANIFEST))
    _check_manifest(manifest, given.with_name(MANIFEST))
    weights = given.with_name(WEIGHTS)
    _check_magic(weights)
    content = weights.read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest["weights"]["sha256"]:
        raise PathoError("weights_damaged", str(weights), f"is not the file that {MANIFEST} describes: it was damaged, "
                         "cut off or swapped", "Copy both files again from the run, or export once more")
    state = safetensors.torch.load(content)
    _check_classes(state, manifest, weights)
    _stop_on_nonfinite(state, str(weights), "Export another checkpoint")
    return state, manifest


def classifier(path: Path):
    """The `Classifier` of an exported model, in eval mode on the CPU, and its manifest. Errors: as `load_model`."""
    from patholib import models

    state, manifest = load_model(path)
    model = models.build(replace(recipes.from_json(manifest["recipe"]), weights="none"))
    try:
        model.net.load_state_dict(state)
    except RuntimeError as error:  # names and shapes, all of them
        reason = f"does not fit {manifest['arch']} with the recipe's head ({error})"
        raise PathoError("wrong_weights", str(path), reason, "Export once more from the run") from error
    return model.eval(), manifest


def _stop_on_nonfinite(state: Mapping[str, torch.Tensor], subject: str, remedy: str) -> None:
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise PathoError("nonfinite_weights", subject,
                         f"has NaN or infinite weights in {len(broken)} tensors, first {broken[0]}", remedy)


def _check_magic(path: Path) -> None:
    """Stops at what is no safetensors file, before anything reads it."""
    if not path.is_file():
        raise PathoError("missing_file", str(path), "does not exist or is a folder",
                         f"Name the folder that holds {WEIGHTS} and {MANIFEST}")
    with path.open("rb") as stream:
        start = stream.read(9)
    if start[:2] == b"PK" or start[:1] == b"\x80":
        raise PathoError("not_safetensors", str(path), "is a pickled checkpoint, which can run code when it is read",
                         f"Export the run it comes from (export.save_model) and load {WEIGHTS}")
    if len(start) < 9 or start[8:] != b"{":
        raise PathoError("not_safetensors", str(path), "does not begin like a safetensors file",
                         "Copy it again from the run, or export once more")


def _check_manifest(manifest, path: Path) -> None:
    """Stops at a manifest that was changed, that belongs to another format, or that asks for the impossible."""
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise PathoError("model_format", str(path), f"has format {found!r}, this version reads {FORMAT}",
                         "Use the version of patholib that wrote it, or export once more")
    rest = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    if manifest.get("manifest_sha256") != files.digest(rest):
        raise PathoError("manifest_changed", str(path), "was changed after it was written",
                         "Restore the file from the run; to change a setting, export once more")
    if manifest["arch"] not in recipes.ARCHITECTURES:
        raise PathoError("unknown_arch", str(path), f"names the architecture {manifest['arch']!r}",
                         nearest(manifest["arch"], recipes.ARCHITECTURES))
    recipe = recipes.from_json(manifest["recipe"])
    norm, problems = manifest["normalization"], []
    for key in ("arch", "image_size", "fit", "positive"):
        if manifest[key] != getattr(recipe, key):
            problems.append(f"{key}={manifest[key]!r} is not its recipe's {getattr(recipe, key)!r}")
    if manifest["classes"] != list(recipe.classes):
        problems.append("classes are not its recipe's")
    problems += [f"class name {c!r} has control characters" for c in manifest["classes"] if not str(c).isprintable()]
    if norm != NORMALIZATION:
        problems.append(f"normalization={norm} is not the one that models.Classifier applies")
    for key, low, high in (("threshold", 0, 1), ("temperature", 0, math.inf)):
        value = manifest[key]
        if value is not None and not low <= value <= high:
            problems.append(f"{key}={value} is outside {low} to {high}")
    if problems:
        raise PathoError("bad_manifest", str(path), "; ".join(problems), "Export once more with a valid recipe")


def _check_classes(state: Mapping[str, torch.Tensor], manifest: dict, path: Path) -> None:
    """Stops where the last layer has not one output per class."""
    head = "classifier." if manifest["arch"].startswith("efficientnet") else "fc."
    layers = [name for name, t in state.items() if name.startswith(head) and t.ndim == 2]
    last = max(layers, key=lambda name: int(name.split(".")[1]), default=None)
    outputs = len(state[last]) if last else 0
    if outputs != len(manifest["classes"]):
        raise PathoError("class_mismatch", str(path), f"has {outputs} outputs for {len(manifest['classes'])} classes",
                         "Export with the recipe the model was trained with")
