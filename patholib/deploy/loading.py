"""Loads an exported model; nothing in its files can run code."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from reprlib import repr as short

import safetensors.torch
import torch

from patholib.base import files
from patholib.base.errors import PathoError, shown
from patholib.deploy import exportformat, published
from patholib.model import architectures, recipes

MANIFEST_BYTES = 2**24  # of a manifest


def load_model(path: Path, sha256: str | None = None) -> tuple[dict[str, torch.Tensor], dict]:
    """(state, manifest) of an exported model: its folder, or one of its two files.

    The state has torchvision's names: `Classifier.net.load_state_dict(state)`; of several networks `members_of` gives
    that of each; `classifier` does it all. sha256: of the
    weights file as you know it from elsewhere, 64 hexadecimal digits. Errors: missing_file, unreadable,
    too_many_bytes, not_safetensors, weights_damaged, pin_mismatch, bad_parameter, bad_json, manifest_changed,
    model_format, unknown_arch, bad_manifest, wrong_weights, class_mismatch, nonfinite_weights.
    """
    if sha256 is not None and not (isinstance(sha256, str) and re.fullmatch("[0-9a-fA-F]{64}", sha256)):
        raise PathoError(
            "bad_parameter",
            "sha256",
            f"is {short(sha256)}, not 64 hexadecimal digits",
            f"Give the whole SHA-256 of {exportformat.WEIGHTS}, or None",
        )
    weights = _weights_file(Path(path))
    manifest = files.read_json(weights.with_name(exportformat.MANIFEST), most=MANIFEST_BYTES)
    exportformat.check_manifest(manifest, weights.with_name(exportformat.MANIFEST))
    content = files.read_bytes(weights)
    digest = hashlib.sha256(content).hexdigest()
    if digest != manifest["weights"].get("sha256"):
        raise PathoError(
            "weights_damaged",
            str(weights),
            f"is not the file that {exportformat.MANIFEST} describes: it was damaged, cut off or swapped",
            "Copy both files again from the run, or export once more",
        )
    if sha256 is not None and digest != sha256.lower():
        raise PathoError(
            "pin_mismatch",
            str(weights),
            f"has SHA-256 {digest}, not {sha256.lower()}",
            "Get the model again from where that digest comes from; do not use this one",
        )
    state = _parsed(content, manifest, weights)
    stated, true = manifest["weights"], of_weights(content, state)
    if stated != true:
        exportformat.stop_on(
            [f"weights={short(stated)} instead of {short(true)}"], weights.with_name(exportformat.MANIFEST)
        )
    check_weights(state, manifest, weights)
    published.stop_on_nonfinite(state, str(weights), "Export another checkpoint")
    return state, manifest


def classifier(path: Path, sha256: str | None = None):
    """The network of an exported model, in eval mode on the CPU, and its manifest. Errors: as `load_model`.

    A `Classifier`, or the `Ensemble` of several.
    """
    from patholib.model.ensembles import Ensemble

    state, manifest = load_model(path, sha256)
    members = [_network(one, manifest, path) for one in members_of(state, manifest, path)]
    return (Ensemble(members) if "members" in manifest else members[0]).eval(), manifest


def _network(state: Mapping[str, torch.Tensor], manifest: dict, path: Path):
    """The `Classifier` with these weights. Errors: wrong_weights."""
    from patholib.model import building

    model = building.build(replace(recipes.from_json(manifest["recipe"]), weights="none"))
    wanted = model.net.state_dict()
    wrong = [f"{name} is missing" for name in wanted if name not in state]
    wrong += [f"{shown(name)} is unknown" for name in state if name not in wanted]
    wrong += [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if wrong:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise PathoError(
            "wrong_weights",
            str(path),
            f"does not fit {manifest['arch']} with the recipe's head: " + "; ".join(wrong[:8]) + more,
            "Export once more from the run",
        )
    model.net.load_state_dict(state)
    return model


def members_of(state: Mapping[str, torch.Tensor], manifest: dict, path: Path) -> list[Mapping[str, torch.Tensor]]:
    """The weights of each network of an exported model, whose names begin with its number. Errors: wrong_weights."""
    if "members" not in manifest:
        return [state]
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        number, _, own = name.partition(".")
        found.setdefault(number, {})[own] = tensor
    if len(found) != manifest["members"] or any(str(number) not in found for number in range(len(found))):
        reason = f"holds other networks than the {manifest['members']} members"
        raise PathoError("wrong_weights", str(path), reason, "Export the cross-validation it comes from once more")
    return [found[str(number)] for number in range(len(found))]


def of_weights(content: bytes, state: Mapping[str, torch.Tensor]) -> dict:
    """What the manifest says of the weights file."""
    return {
        "file": exportformat.WEIGHTS,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "parameters": sum(tensor.numel() for tensor in state.values() if tensor.is_floating_point()),
    }


def _weights_file(path: Path) -> Path:
    """The weights that a path means; stops at what is not a safetensors file, before anything reads it."""
    remedy = f"Name the folder that holds {exportformat.WEIGHTS} and {exportformat.MANIFEST}"
    if stat.S_ISDIR(files.look_at(path, remedy=remedy).st_mode):
        path = path / exportformat.WEIGHTS
    elif path.name == exportformat.MANIFEST:
        path = path.with_name(exportformat.WEIGHTS)
    files.look_at_file(path, remedy=remedy)
    start = files.read_bytes(path, 9)  # the header's length in eight bytes, then its bracket
    if start[8:] == b"{":
        if path.name != exportformat.WEIGHTS:
            raise PathoError(
                "missing_file",
                str(path),
                f"is not called {exportformat.WEIGHTS}",
                f"Name the folder that holds {exportformat.WEIGHTS} and {exportformat.MANIFEST}, under these names",
            )
        return path
    if start[:2] == b"PK" or start[:1] == b"\x80":
        raise PathoError(
            "not_safetensors",
            str(path),
            "is a pickled checkpoint, which can run code when it is read",
            f"Export the run it comes from (export.save_model) and load {exportformat.WEIGHTS}",
        )
    raise PathoError(
        "not_safetensors",
        str(path),
        "does not begin like a safetensors file" if start else "is empty",
        "Copy it again from the run, or export once more",
    )


def _parsed(content: bytes, manifest: dict, path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, if its header says that they were written with this manifest."""
    try:
        state = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except Exception as error:  # the parser's own, and KeyError for a kind of number that torch does not have
        raise PathoError(
            "weights_damaged",
            str(path),
            f"is not a whole safetensors file ({shown(error)})",
            "Copy both files again from the run, or export once more",
        ) from error
    facts = {key: value for key, value in manifest.items() if key not in ("weights", "manifest_sha256")}
    if header.get("__metadata__", {}).get(exportformat.FACTS) != files.digest(facts):
        raise PathoError(
            "manifest_changed",
            str(path.with_name(exportformat.MANIFEST)),
            f"is not the one that {exportformat.WEIGHTS} was written with",
            "Copy both files again from the run; to change a setting, export once more",
        )
    return state


def check_weights(state: Mapping[str, torch.Tensor], manifest: dict, path: Path) -> None:
    """Stops where the last layer has not one output per class, or the tensors are not such as training makes."""
    for one in members_of(state, manifest, path):
        _check_network(one, manifest, path)


def _check_network(state: Mapping[str, torch.Tensor], manifest: dict, path: Path) -> None:
    network = architectures.of(manifest["arch"])
    layers = {
        int(match[1] or 0): tensor
        for name, tensor in state.items()
        if tensor.ndim == 2 and (match := re.fullmatch(rf"{re.escape(network.head)}(?:\.(\d{{1,3}}))?\.weight", name))
    }
    outputs, width = layers[max(layers)].shape if layers else (0, 0)
    if outputs != len(manifest["classes"]):
        raise PathoError(
            "class_mismatch",
            str(path),
            f"has {outputs} outputs for {len(manifest['classes'])} classes",
            "Export with the recipe the model was trained with",
        )
    wrong = [
        f"{shown(name)} holds {str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in state.items()
        if tensor.dtype not in (torch.float32, torch.int64)
    ]
    expected = manifest["head"]["width"] or network.channels
    if width != expected:
        wrong.append(f"its head is {width} wide instead of {expected}")
    if wrong:
        raise PathoError("wrong_weights", str(path), "; ".join(wrong[:8]), "Export the run it comes from once more")
