"""Pretrained weights: where they are looked for, their check, and how they are loaded."""

from __future__ import annotations

import hashlib
import io
import os
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.base.places import attached
from patholib.data import fetch
from patholib.model import architectures, downloading, encoders

if TYPE_CHECKING:
    from patholib.model.networks import Classifier

TRIES = 2  # tries in a row without a byte: a training that has no network says so in seconds


def given_file(weights: str) -> Path:
    """The file of a recipe's weights="<path>". Errors: weights_missing; as `files.given`."""
    # A notebook may run in its own folder or in its caller's: a relative path counts from either or from the project.
    path = files.given(weights)
    tried = list(dict.fromkeys((path.absolute(), files.project_root() / path)))
    for path in tried:
        if path.is_file():
            return path
    raise PathoError(
        "weights_missing",
        weights,
        f"is not a file (tried {', '.join(map(str, tried))})",
        'Correct the path, or set weights="none" to train from scratch',
    )


def places(arch: str) -> list[Path]:
    """Where the file of ImageNet weights may lie on this machine, in the order in which it is looked for."""
    name, packaged = architectures.NETWORKS[arch].weights_file, architectures.NETWORKS[arch].packaged
    own = dict.fromkeys(folder / "weights" / name for folder in (files.project_root() / "data", files.remade()))
    found = [*attached(name), *own, *(_installed(packaged) if packaged else [_hub() / name])]
    if given := os.environ.get("PATHOLIB_WEIGHTS"):
        chosen = files.given(given)
        found.insert(0, chosen if chosen.is_file() else chosen / name)
    return found


def at_hand(arch: str) -> bool:
    """Whether its ImageNet weights lie on this machine."""
    return any(path.is_file() for path in places(arch))


def find_or_fetch(arch: str) -> tuple[Path, str]:
    """The file of ImageNet weights on this machine, and how its SHA-256 must begin. Errors: weights_missing."""
    remote, hub = downloading.imagenet_file(arch), _hub()
    packaged, own = architectures.NETWORKS[arch].packaged, files.remade() / "weights"
    looked = places(arch)
    for path in looked:
        if path.is_file():
            return path, remote.sha256
    tried, scratch = f"is not at {', '.join(map(str, looked))}", 'or set weights="none" to train from scratch'
    if packaged:
        raise PathoError(
            "weights_missing", remote.name, f"{tried}, nor in an installed package", f"{downloading.INSTALL}, {scratch}"
        )
    print(f"downloading {remote.url} to {hub}", flush=True)
    try:
        return fetch.fetch(remote, hub, patience=TRIES, wait=True), remote.sha256
    except PathoError as error:  # no network, no space; a digest that does not match
        raise PathoError(
            "weights_missing",
            remote.name,
            f"{tried}, and the download failed ({error.reason})",
            f"Put it into {own}, fetched elsewhere by `patholib download weights-{arch}`, {_instead()}{scratch}",
        ) from error


def _instead() -> str:
    """Which other networks have their weights here, as a part of a remedy; "" where none has."""
    ready = [name for name, one in architectures.NETWORKS.items() if one.packaged and at_hand(name)]
    return f'choose arch="{ready[0]}", whose weights are installed, ' if ready else ""


def _hub() -> Path:
    """Where torchvision, and whatever else uses it, looks too."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def _installed(packaged: str) -> list[Path]:
    """Where "package/.../file" lies, found in the package's metadata; [] where it is not installed."""
    try:  # nothing of the package is imported
        return [Path(str(metadata.distribution(packaged.partition("/")[0]).locate_file(packaged)))]
    except metadata.PackageNotFoundError:
        return []


def expected_digest(path: Path, arch: str) -> str:
    """How the SHA-256 of a given file must begin: as `<path>.sha256` says (sha256sum's), or a name of torchvision's."""
    beside = path.with_name(f"{path.name}.sha256")
    if beside.is_file():
        return beside.read_text(encoding="utf-8", errors="replace").partition(" ")[0].strip().lower()
    if arch not in architectures.NETWORKS:  # of timm: its files all have the same name
        return ""
    official = downloading.imagenet_file(arch)
    return official.sha256 if path.name == official.name else ""


def load_backbone(model: Classifier, kind: str, path: Path, digest: str = "") -> None:
    """Copies the backbone of a state dict into the model; all differences are told at once."""
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if not sha256.startswith(digest):
        raise PathoError(
            "weights_damaged",
            path.name,
            f"has SHA-256 {sha256[:12]}..., which must begin with {digest}",
            f'Delete {path} to have it fetched again; other weights are given as weights="<path>"'
            if kind == "imagenet"
            else "Copy it again from where you have it",
        )
    wanted = {k: v for k, v in model.net.state_dict().items() if not k.startswith(model.added)}
    given = _state_dict(content, path.name)
    if isinstance(model.net, encoders.Net):
        given = model.net.named(given)
    elif names := model.architecture.names:
        given = architectures.imported(names)(given, wanted)
    given = {k: v for k, v in given.items() if not k.startswith(model.added)}
    differences = [f"{k} is missing" for k in wanted.keys() - given.keys() if not k.endswith("num_batches_tracked")]
    differences += [f"{k} is unknown" for k in given.keys() - wanted.keys()]
    for k in sorted(wanted.keys() & given.keys()):
        if wanted[k].shape != given[k].shape:
            differences.append(f"{k} is {tuple(given[k].shape)} instead of {tuple(wanted[k].shape)}")
        elif not torch.isfinite(given[k]).all():
            differences.append(f"{k} holds values that are not finite")
    if differences:
        more = f"; and {len(differences) - 8} more" if len(differences) > 8 else ""
        raise PathoError(
            "weights_mismatch",
            path.name,
            f"does not fit {model.arch}: " + "; ".join(sorted(differences)[:8]) + more,
            "Give the state dict of this network, by torchvision's or timm's names",
        )
    model.net.load_state_dict(model.net.state_dict() | given)
    model.weights_source = {"kind": kind, "file": path.name, "sha256": sha256}


def _state_dict(content: bytes, name: str) -> dict[str, torch.Tensor]:
    try:
        if name.endswith(".safetensors"):
            import safetensors.torch

            state = safetensors.torch.load(content)
        else:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # every reader has its own errors for damaged bytes
        raise PathoError(
            "weights_unreadable",
            name,
            f"is not a state dict ({type(error).__name__})",
            "Give a file of tensors, saved by torch.save(net.state_dict(), ...) or safetensors",
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise PathoError(
            "weights_unreadable", name, "holds something other than named tensors", "Save net.state_dict() alone"
        )
    return state
