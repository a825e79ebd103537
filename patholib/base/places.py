"""Where a notebook runs (your own machine, Kaggle or Colab), and the folders and times that follow from it."""

from __future__ import annotations

import os
from pathlib import Path

OUTCOME = "outcome.json"  # in the folder that a sweep makes for a notebook, with the run folder below it
# Where Kaggle and Colab put data sets; Kaggle's own are one folder (slug) or three (datasets/owner/slug) further down.
MOUNTS = ("/kaggle/input", "/content", "/content/drive/MyDrive")


def mounts() -> tuple[Path, ...]:
    """Where data sets, weights and earlier outputs are attached: PATHOLIB_MOUNTS, written as PATH is, else MOUNTS."""
    given = os.environ.get("PATHOLIB_MOUNTS")
    return tuple(map(Path, filter(None, given.split(os.pathsep)) if given is not None else MOUNTS))


def attached(name: str) -> list[Path]:
    """The files of this name, or that fit this pattern, at most four folders below where things are attached.

    In a Drive, where every folder is asked for over the network, at most two below.
    """
    return [
        path
        for mount in mounts()
        for deep in range(3 if mount.name == "MyDrive" else 5)
        for path in sorted(mount.glob("*/" * deep + name))
    ]


def host() -> str:
    """ "Kaggle" or "Colab", whose sessions end and lose what was not saved as output; else ""."""
    if os.environ.get("KAGGLE_KERNEL_RUN_TYPE"):  # asked first: Kaggle's image is built on Colab's
        return "Kaggle"
    return "Colab" if os.environ.get("COLAB_RELEASE_TAG") or os.environ.get("COLAB_GPU") else ""


def outputs(root: Path) -> Path:
    """The folder for run folders where nobody names one: outputs/ of `root`; on Colab in Drive, if it is mounted."""
    drive = next((mount for mount in mounts() if mount.name == "MyDrive" and mount.is_dir()), None)
    return drive / "PathoVision" / "outputs" if host() == "Colab" and drive else root / "outputs"


def remade(root: Path) -> Path:
    """The folder for files that can be made again, such as the pixel cache: data/ of `root`.

    On Kaggle it is the folder temp beside the inputs, because all that lies in the working folder is kept and counted.
    """
    return next(iter(mounts()), root).parent / "temp" if host() == "Kaggle" else root / "data"
