"""Downloads by name: a public data set, or the ImageNet weights of a network."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from patholib.base import files
from patholib.base.errors import PathoError, nearest
from patholib.data import downloads, fetch
from patholib.data.readers import sources
from patholib.model import architectures, recipes

OF_RECIPES = tuple(sorted({recipe.arch for recipe in (recipes.BREAKHIS, recipes.ISIC2019)}))
INSTALL = 'Install it: pip install "patholib[weights]"'
WEIGHTS = {"weights": OF_RECIPES} | {f"weights-{arch}": (arch,) for arch in architectures.NETWORKS}


def fetch_by_name(
    what: str, agree: Callable[[str], bool], folder: str | Path | None = None, remove: bool = False
) -> list[Path]:
    """Fetches "breakhis", "isic2019", "weights" or "weights-<network>": see `downloads.dataset` and `fetch_weights`."""
    if what in sources.downloadable():
        return [downloads.dataset(what, agree, folder, remove)]
    if what not in WEIGHTS:
        known = (*sources.downloadable(), *WEIGHTS)
        raise PathoError("unknown_source", what, "cannot be fetched", nearest(what, known))
    return [fetch_weights(arch, folder) for arch in WEIGHTS[what]]


def imagenet_file(arch: str) -> fetch.Remote:
    """The file of ImageNet weights, whose name says how its SHA-256 begins. Errors: unknown_arch."""
    if arch not in architectures.NETWORKS:
        raise PathoError(
            "unknown_arch", arch, "is not a network of this library", nearest(arch, architectures.NETWORKS)
        )
    entry = architectures.NETWORKS[arch]
    digits = re.search(r"-([0-9a-f]{8,})\.", entry.weights_file)
    assert digits is not None, "such files are named so"
    return fetch.Remote(entry.weights, entry.weights_file, sha256=entry.sha256 or digits[1])


def fetch_weights(arch: str, folder: str | Path | None = None) -> Path:
    """Fetches the file of ImageNet weights, by default into `files.remade`/weights, where it is found again.

    Errors: unknown_arch, unknown_source, those of `fetch.fetch`.
    """
    remote = imagenet_file(arch)
    if architectures.NETWORKS[arch].packaged:
        raise PathoError("unknown_source", remote.name, "comes in a Python package", INSTALL)
    folder = files.given(folder or files.remade() / "weights").absolute()
    terms = architectures.NETWORKS[arch].terms
    print(f"ImageNet weights of {arch}, under terms of their own: {terms}", flush=True)
    path = fetch.fetch(remote, folder)
    print(f"{path}\nOn another machine: into data/weights of the project, or name its folder in PATHOLIB_WEIGHTS")
    return path
