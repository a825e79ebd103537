"""The trained model as files for others: weights that cannot run code, and a manifest that says what they are.

`save_model` writes `model.safetensors` and `model.json`; each holds a digest of the other, so that a flipped bit, a
swapped file or reordered classes are found (`load_model`). Digests find damage, not malice: who must rule that out
gets the SHA-256 of the weights by another way and gives it as `sha256`, which then vouches for both files.
`published` writes the checkpoint layout of the published description.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from reprlib import repr as short

import safetensors.torch
import torch

from patholib import __version__, checkpoints, files, recipes
from patholib.errors import PathoError, nearest, shown
from patholib.recipes import Recipe

FORMAT = 2  # since then the weights hold a digest of the manifest
NOTICE = "For research use only. Not a medical device: not for diagnosis or for decisions about any patient."
DEMO_NOTICE = "Trained on generated demo images: it knows nothing about tissue or skin."
WEIGHTS, MANIFEST, PUBLISHED = "model.safetensors", "model.json", "published.pt"
ONNX, ONNX_FACTS, ONNX_INPUT = "model.onnx", "model.onnx.json", "images"
ALIKE = 1e-4  # how far a probability of ONNX Runtime may be from PyTorch's
NORMALIZATION = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}  # ImageNet, of RGB in [0, 1]
FACTS = "manifest_facts_sha256"  # in the weights' header
WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", list: "a list",
         dict: "an object", type(None): "null"}
FIELDS = {  # of the manifest, and what each may be
    "arch": (str,), "classes": (list,), "positive": (str, type(None)), "image_size": (int,), "fit": (str,),
    "normalization": (dict,), "head": (dict,), "threshold": (int, float, type(None)),
    "temperature": (int, float, type(None)), "recipe": (dict,), "run": (str,), "epoch": (int, type(None)),
    "data_sha256": (str,), "demo": (bool,), "notice": (str,), "patholib": (str,), "weights": (dict,),
}


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
    facts = {
        "format": FORMAT,
        **_of_recipe(recipe),
        "threshold": threshold,
        "temperature": temperature,
        "recipe": recipe.to_json(),
        "run": shown(run),
        "epoch": epoch,
        "data_sha256": data_sha256,
        "demo": demo,
        "notice": f"{DEMO_NOTICE} {NOTICE}" if demo else NOTICE,
        "patholib": __version__,
    }
    # One key alone: safetensors writes several in a random order, and the same model would have many digests.
    weights = safetensors.torch.save(state, metadata={FACTS: files.digest(facts)})
    manifest = {**facts, "weights": _of_weights(weights, state)}
    manifest = {**manifest, "manifest_sha256": files.digest(manifest)}
    _check_manifest(manifest, folder / MANIFEST)
    _check_weights(state, manifest, folder / WEIGHTS)
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
    kept = checkpoints.load(run_dir / "checkpoints", "best", best, holds=("model", "optimizer", "row"))
    if kept is None:
        raise PathoError("missing_file", str(run_dir / "checkpoints"), f"holds no weights of the best epoch ({best})",
                         "Restore the folder from a copy, or train again")
    row = kept["row"]
    save_model(run_dir, kept["model"], recipe, run=facts["name"], data_sha256=facts["data"]["images_sha256"],
               demo=facts["demo"], epoch=best)
    published(run_dir / PUBLISHED, kept["model"], best, row["val_auc"], recipe.classes, recipe.image_size,
              optimizer_state=kept["optimizer"], frozen_blocks=row["frozen"], recipe=recipe,
              validation={name: value for name, value in row.items() if name.startswith("val_")})
    return [run_dir / WEIGHTS, run_dir / MANIFEST, run_dir / PUBLISHED]


def load_model(path: Path, sha256: str | None = None) -> tuple[dict[str, torch.Tensor], dict]:
    """(state, manifest) of an exported model: its folder, or one of its two files.

    The state has torchvision's names: `Classifier.net.load_state_dict(state)`; `classifier` does it all. sha256: of the
    weights file as you know it from elsewhere, 64 hexadecimal digits. Errors: missing_file, unreadable,
    not_safetensors, weights_damaged, pin_mismatch, bad_parameter, bad_json, manifest_changed, model_format,
    unknown_arch, bad_manifest, wrong_weights, class_mismatch, nonfinite_weights.
    """
    if sha256 is not None and not (isinstance(sha256, str) and re.fullmatch("[0-9a-fA-F]{64}", sha256)):
        raise PathoError("bad_parameter", "sha256", f"is {short(sha256)}, not 64 hexadecimal digits",
                         f"Give the whole SHA-256 of {WEIGHTS}, or None")
    weights = _weights_file(Path(path))
    manifest = files.read_json(weights.with_name(MANIFEST))
    _check_manifest(manifest, weights.with_name(MANIFEST))
    content = files.read_bytes(weights)
    found = hashlib.sha256(content).hexdigest()
    if found != manifest["weights"].get("sha256"):
        raise PathoError("weights_damaged", str(weights), f"is not the file that {MANIFEST} describes: it was damaged, "
                         "cut off or swapped", "Copy both files again from the run, or export once more")
    if sha256 is not None and found != sha256.lower():
        raise PathoError("pin_mismatch", str(weights), f"has SHA-256 {found}, not {sha256.lower()}",
                         "Get the model again from where that digest comes from; do not use this one")
    state = _parsed(content, manifest, weights)
    said, true = manifest["weights"], _of_weights(content, state)
    _stop_on([f"weights={short(said)} instead of {short(true)}"] * (said != true), weights.with_name(MANIFEST))
    _check_weights(state, manifest, weights)
    _stop_on_nonfinite(state, str(weights), "Export another checkpoint")
    return state, manifest


def classifier(path: Path, sha256: str | None = None):
    """The `Classifier` of an exported model, in eval mode on the CPU, and its manifest. Errors: as `load_model`."""
    from patholib import models

    state, manifest = load_model(path, sha256)
    model = models.build(replace(recipes.from_json(manifest["recipe"]), weights="none"))
    wanted = model.net.state_dict()
    wrong = [f"{name} is missing" for name in wanted if name not in state]
    wrong += [f"{shown(name)} is unknown" for name in state if name not in wanted]
    wrong += [f"{name} is {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
              for name, tensor in wanted.items() if name in state and state[name].shape != tensor.shape]
    if wrong:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise PathoError("wrong_weights", str(path), f"does not fit {manifest['arch']} with the recipe's head: "
                         + "; ".join(wrong[:8]) + more, "Export once more from the run")
    model.net.load_state_dict(state)
    return model.eval(), manifest


def to_onnx(folder: Path, views: torch.Tensor | None = None) -> Path:
    """Writes `model.onnx` beside an exported model: images (N, 3, size, size) in [0, 1] to logits (N, C).

    BatchNorm is folded away. The file is only kept if ONNX Runtime gives PyTorch's probabilities to 1e-4, on noise and
    on `views` (N, 3, size, size), say of some test images; the difference stands in `model.onnx.json`.
    Needs the extra `onnx`. Errors: as `load_model`; not_installed, onnx_differs.
    """
    from patholib import models

    try:
        import onnxruntime
        import onnxscript  # noqa: F401, torch.onnx.export is made with it
    except ImportError as error:
        raise PathoError("not_installed", error.name or "onnx", "is needed to write model.onnx",
                         'pip install "patholib[onnx]"') from error
    folder = Path(folder)
    model, manifest = classifier(folder)
    size = manifest["image_size"]
    seen = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    seen = seen if views is None else torch.cat([seen, views.float().contiguous()])
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # progress that is of no use here
        warnings.simplefilter("ignore")
        program = torch.onnx.export(models.folded(model), (seen[:2],), dynamo=True, input_names=[ONNX_INPUT],
                                    output_names=["logits"], dynamic_shapes=({0: torch.export.Dim("batch")},),
                                    verbose=False)
    content = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    theirs = torch.from_numpy(session.run(None, {ONNX_INPUT: seen.numpy()})[0])
    with torch.inference_mode():
        ours = model(seen)
    difference = float((theirs.double().softmax(1) - ours.double().softmax(1)).abs().max())
    if not difference <= ALIKE:
        raise PathoError("onnx_differs", str(folder / ONNX), f"would give probabilities that differ by "
                         f"{difference:.2g}, more than {ALIKE:g}",
                         "Predict with PyTorch, or try another version of onnxruntime")
    files.write_bytes(folder / ONNX, content)
    files.write_json(folder / ONNX_FACTS, {
        "file": ONNX, "sha256": hashlib.sha256(content).hexdigest(), "weights_sha256": manifest["weights"]["sha256"],
        "max_difference": difference, "compared": len(seen), "notice": manifest["notice"]})
    return folder / ONNX


def onnx_file(path: Path, manifest: dict) -> bytes | None:
    """The bytes of an exported model's `model.onnx`, None where there is none. Errors: onnx_damaged, missing_file."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    if not (folder / ONNX).exists():
        return None
    facts, content = files.read_json(folder / ONNX_FACTS), files.read_bytes(folder / ONNX)
    said = [facts.get(key) for key in ("sha256", "weights_sha256")] if isinstance(facts, dict) else []
    if said != [hashlib.sha256(content).hexdigest(), manifest["weights"]["sha256"]]:
        raise PathoError("onnx_damaged", str(folder / ONNX), f"is not the file that {ONNX_FACTS} describes, or belongs "
                         "to other weights", "Delete both and write them again with export.to_onnx")
    return content


def _of_recipe(recipe: Recipe) -> dict:
    """What the manifest repeats of its recipe, for readers without patholib."""
    return {"arch": recipe.arch, "classes": list(recipe.classes), "positive": recipe.positive,
            "image_size": recipe.image_size, "fit": recipe.fit, "normalization": NORMALIZATION,
            "head": {"width": recipe.head_width, "order": recipe.head_order, "dropout": list(recipe.head_dropout)}}


def _of_weights(content: bytes, state: Mapping[str, torch.Tensor]) -> dict:
    """What the manifest says of the weights file."""
    return {"file": WEIGHTS, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content),
            "parameters": sum(tensor.numel() for tensor in state.values() if tensor.is_floating_point())}


def _stop_on_nonfinite(state: Mapping[str, torch.Tensor], subject: str, remedy: str) -> None:
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise PathoError("nonfinite_weights", subject,
                         f"has NaN or infinite weights in {len(broken)} tensors, first {shown(broken[0])}", remedy)


def _weights_file(path: Path) -> Path:
    """The weights that a path means; stops at what is no safetensors file, before anything reads it."""
    try:
        path = path / WEIGHTS if path.is_dir() else path.with_name(WEIGHTS) if path.name == MANIFEST else path
        absent = path.is_dir() or not path.exists()
    except OSError as error:  # until Python 3.13, where a folder on the way may not be entered
        raise PathoError("unreadable", str(path), f"cannot be reached ({error.strerror})",
                         "Correct the permissions of the folders above it") from error
    if absent:
        raise PathoError("missing_file", str(path), "does not exist or is a folder",
                         f"Name the folder that holds {WEIGHTS} and {MANIFEST}")
    start = files.read_bytes(path, 9)  # the header's length in eight bytes, then its bracket
    if start[8:] == b"{":
        if path.name != WEIGHTS:
            raise PathoError("missing_file", str(path), f"is not called {WEIGHTS}",
                             f"Name the folder that holds {WEIGHTS} and {MANIFEST}, under these names")
        return path
    if start[:2] == b"PK" or start[:1] == b"\x80":
        raise PathoError("not_safetensors", str(path), "is a pickled checkpoint, which can run code when it is read",
                         f"Export the run it comes from (export.save_model) and load {WEIGHTS}")
    raise PathoError("not_safetensors", str(path), "does not begin like a safetensors file" if start else "is empty",
                     "Copy it again from the run, or export once more")


def _parsed(content: bytes, manifest: dict, path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, if its header says that they were written with this manifest."""
    try:
        state = safetensors.torch.load(content)
        header = json.loads(content[8:8 + int.from_bytes(content[:8], "little")])
    except Exception as error:  # the parser's own, and KeyError for a kind of number that torch does not have
        raise PathoError("weights_damaged", str(path), f"is no whole safetensors file ({shown(error)})",
                         "Copy both files again from the run, or export once more") from error
    facts = {key: value for key, value in manifest.items() if key not in ("weights", "manifest_sha256")}
    if header.get("__metadata__", {}).get(FACTS) != files.digest(facts):
        raise PathoError("manifest_changed", str(path.with_name(MANIFEST)),
                         f"is not the one that {WEIGHTS} was written with",
                         "Copy both files again from the run; to change a setting, export once more")
    return state


def _check_manifest(manifest, path: Path) -> None:
    """Stops at a manifest that was changed, that belongs to another format, or that asks for the impossible."""
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if type(found) is not int or found != FORMAT:  # by type too: True == 1
        raise PathoError("model_format", str(path), f"has format {short(found)}, this version reads {FORMAT}",
                         "Use the version of patholib that wrote it, or export once more")
    rest = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    if manifest.get("manifest_sha256") != files.digest(rest):
        raise PathoError("manifest_changed", str(path), "was changed after it was written",
                         "Restore the file from the run; to change a setting, export once more")
    _stop_on(_wrong_fields(manifest), path)
    if manifest["arch"] not in recipes.ARCHITECTURES:
        raise PathoError("unknown_arch", str(path), f"names the architecture {short(manifest['arch'])}",
                         nearest(manifest["arch"], recipes.ARCHITECTURES))
    _stop_on(_wrong_texts(manifest), path)
    _stop_on(_wrong_values(manifest), path)


def _stop_on(problems: list[str], path: Path) -> None:
    if problems:
        raise PathoError("bad_manifest", str(path), "; ".join(problems), "Export once more with a valid recipe")


def _wrong_fields(manifest: dict) -> list[str]:
    """Every field that is missing or of another type."""
    found = [f"{name} is missing" for name in FIELDS if name not in manifest]
    for name in FIELDS.keys() & manifest.keys():
        kinds, value = FIELDS[name], manifest[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            found.append(f"{name}={short(value)} is not {' or '.join(WORDS[kind] for kind in kinds)}")
    return sorted(found)


def _wrong_texts(manifest: dict) -> list[str]:
    """Class names that are none, and texts that could command a terminal."""
    names = manifest["classes"]
    found = [f"class name {short(name)} is no text" for name in names if not isinstance(name, str) or not name]
    texts = [value for value in (*manifest.values(), *names) if isinstance(value, str)]
    return found + [f"{short(text)} has control characters" for text in texts if not text.isprintable()]


def _wrong_values(manifest: dict) -> list[str]:
    """Values out of their range, or other than the recipe's."""
    try:
        recipe = recipes.from_json(manifest["recipe"])
    except PathoError as error:
        return [f"its {error.subject} {shown(error.reason)}"]
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # nothing to compare with
        return [f"its recipe cannot be read ({shown(error)})"]
    found = [f"{name}={short(manifest[name])} instead of its recipe's {short(value)}"
             for name, value in _of_recipe(recipe).items() if files.digest(manifest[name]) != files.digest(value)]
    threshold, temperature, epoch = manifest["threshold"], manifest["temperature"], manifest["epoch"]
    if threshold is not None and not 0 <= threshold <= 1:
        found.append(f"threshold={short(threshold)} is outside 0 to 1")
    if temperature is not None and not 0 < temperature < math.inf:
        found.append(f"temperature={short(temperature)} is not above 0")
    if epoch is not None and epoch < 1:
        found.append(f"epoch={short(epoch)} is below 1")
    return found


def _check_weights(state: Mapping[str, torch.Tensor], manifest: dict, path: Path) -> None:
    """Stops where the last layer has not one output per class, or the tensors are not such as training makes."""
    head = "classifier" if manifest["arch"].startswith("efficientnet") else "fc"
    layers = {int(match[1]): tensor for name, tensor in state.items()
              if tensor.ndim == 2 and (match := re.fullmatch(rf"{head}\.(\d{{1,3}})\.weight", name))}
    outputs, width = layers[max(layers)].shape if layers else (0, 0)
    if outputs != len(manifest["classes"]):
        raise PathoError("class_mismatch", str(path), f"has {outputs} outputs for {len(manifest['classes'])} classes",
                         "Export with the recipe the model was trained with")
    wrong = [f"{shown(name)} holds {str(tensor.dtype).removeprefix('torch.')}" for name, tensor in state.items()
             if tensor.dtype not in (torch.float32, torch.int64)]
    if width != manifest["head"]["width"]:
        wrong.append(f"its head is {width} wide instead of {manifest['head']['width']}")
    if wrong:
        raise PathoError("wrong_weights", str(path), "; ".join(wrong[:8]), "Export the run it comes from once more")
