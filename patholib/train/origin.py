"""What a run was made by: machine, library versions, code version."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from patholib import __version__

LIBRARIES = (
    "torch",
    "torchvision",
    "numpy",
    "pandas",
    "pillow",
    "opencv-python-headless",
    "scikit-learn",
    "matplotlib",
    "seaborn",
    "safetensors",
)


def root_name(root: Path) -> str:
    """The last part of the data folder's path, which says nothing about the machine."""
    return Path(root).resolve().name


def machine() -> dict:
    """What a timing depends on: system, processor, cores, threads, GPU."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": gpu,
    }


def versions() -> dict[str, str | None]:
    """The versions of Python and of each of LIBRARIES; None for one that is not installed."""
    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}


def version(name: str) -> str | None:
    """The version of an installed package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def code() -> dict:
    """The version of patholib and its git commit."""
    return {"version": __version__, "commit": _commit()}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The git commit of patholib's checkout, with a + where files differ from it; None outside of a checkout."""
    here = Path(__file__).resolve().parents[1]  # all of patholib
    try:
        shown = [
            subprocess.run(["git", "-C", here, *command], capture_output=True, timeout=10, check=True).stdout
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no", "."])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return shown[0].decode("ascii").strip() + ("+" if shown[1].strip() else "")
