"""Checkpoints that are whole or refused: the SHA-256 of a file stands in its name, and the one before is kept."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from pathlib import Path

import torch

from patholib import files
from patholib.errors import PathoError

KEPT = 2  # per kind: the newest and the one to fall back to
NAME = re.compile(r"(?P<kind>[a-z]+)-(?P<step>\d{9})-(?P<digest>[0-9a-f]{16})\.pt")


def save(folder: Path, kind: str, step: int, state: dict, prune: bool = True) -> Path:
    """Writes `<kind>-<step>-<digest>.pt` atomically, then removes all of that kind but the newest two (`prune_old`).

    state: tensors, dicts, lists, and plain int, float, str, bool, None; anything else would not load with
    weights_only=True and is refused here, while the run still lives. prune: False keeps the older ones for now.
    Errors: no_space, output_unwritable.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    name = f"{kind}-{step:09d}-{hashlib.sha256(content).hexdigest()[:16]}.pt"
    path = files.write_bytes(Path(folder) / name, content)
    if prune:
        prune_old(folder, kind)
    return path


def prune_old(folder: Path, kind: str) -> None:
    """Removes all checkpoints of a kind but the newest two."""
    for old in list_of(folder, kind)[KEPT:]:
        old.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Deletes what killed writes left behind; only for who holds the run's lock."""
    for part in Path(folder).glob(".*.part"):
        part.unlink(missing_ok=True)


def list_of(folder: Path, kind: str) -> list[Path]:
    """The checkpoints of a kind, the newest first; names order them by step, not by the clock."""
    found = [p for p in Path(folder).glob(f"{kind}-*.pt") if NAME.fullmatch(p.name)]
    return sorted(found, key=lambda p: (NAME.fullmatch(p.name)["step"], p.stat().st_mtime_ns), reverse=True)


def load(folder: Path, kind: str, step: int | None = None) -> dict | None:
    """The newest whole checkpoint of a kind (or the one of `step`) on the CPU; None where there never was one.

    A damaged file is renamed to `.bad`, with a warning, and the one before it is taken.
    Errors: checkpoint_damaged where files exist but none is whole.
    """
    found = [p for p in list_of(folder, kind) if step is None or int(NAME.fullmatch(p.name)["step"]) == step]
    reasons = []
    for path in found:
        try:
            return read(path)
        except PathoError as error:
            reasons.append(f"{path.name}: {error.reason}")
            warnings.warn(f"{path.name} is set aside: {error.reason}", stacklevel=2)
            path.rename(path.with_name(path.name + ".bad"))
    if reasons:
        raise PathoError("checkpoint_damaged", str(folder), "no whole checkpoint is left (" + "; ".join(reasons) + ")",
                         "Start the run again in a new folder, or restore the folder from a copy")
    return None


def read(path: Path) -> dict:
    """One checkpoint file, refused unless its bytes have the digest its name states; nothing in it is executed."""
    content = Path(path).read_bytes()
    match = NAME.fullmatch(Path(path).name)
    if match is None or not hashlib.sha256(content).hexdigest().startswith(match["digest"]):
        raise PathoError("checkpoint_damaged", str(path), "its bytes do not match the digest in its name",
                         "Use the checkpoint before it")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is whole but not a plain state
        raise PathoError("checkpoint_refused", str(path), f"holds more than plain values ({type(error).__name__})",
                         "Only load checkpoints that this library wrote") from error
