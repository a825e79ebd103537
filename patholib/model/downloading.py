"""Downloads by name: a public data set, or the ImageNet weights of a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from patholib.base import files
from patholib.base.errors import PathoError, nearest
from patholib.data import downloads, fetch
from patholib.data.readers.sources import SOURCES
from patholib.model import fields, recipes

OF_RECIPES = tuple(sorted({recipe.arch for recipe in (recipes.BREAKHIS, recipes.ISIC2019)}))
WEIGHTS = {"weights": OF_RECIPES} | {f"weights-{arch}": (arch,) for arch in fields.ARCHITECTURES}
TERMS_OF_WEIGHTS = "https://github.com/pytorch/vision#pre-trained-model-license"


def fetch_by_name(what: str, agree: Callable[[str], bool], folder: str | Path | None = None, origin: str = "official",
                  remove: bool = False, changed: bool = False) -> list[Path]:
    """Fetches "breakhis", "isic2019", "weights" or "weights-<network>": see `dataset` and `weights`."""
    if what in SOURCES:
        return [downloads.dataset(what, agree, folder, origin, remove, changed)]
    if what not in WEIGHTS:
        raise PathoError("unknown_source", what, "is nothing that can be fetched", nearest(what, (*SOURCES, *WEIGHTS)))
    return [weights(arch, folder) for arch in WEIGHTS[what]]


def weights(arch: str, folder: str | Path | None = None) -> Path:
    """torchvision's file of ImageNet weights, by default in weights in `files.remade`, where it is found again.

    Errors: unknown_arch, those of `fetch.fetch`.
    """
    from patholib.model import weights  # with it comes torch, for which a data set need not wait

    remote = weights.imagenet_file(arch)
    folder = Path(folder or files.remade() / "weights").expanduser().absolute()
    print(f"ImageNet weights of {arch}, by torchvision, under terms of their own: {TERMS_OF_WEIGHTS}", flush=True)
    path = fetch.fetch(remote, folder)
    print(f"{path}\nOn another machine: into data/weights of the project, or name its folder in PATHOLIB_WEIGHTS")
    return path
