"""Checkpoints that are whole or refused: a file's name holds its SHA-256, and the one before is kept."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import re
import warnings
from collections.abc import Collection
from pathlib import Path

import torch

from patholib.base import files
from patholib.base.errors import PathoError

KEPT = 2  # per kind: the newest and the one to fall back to
NAME = re.compile(r"(?P<kind>[a-z]+)-(?P<step>\d{9})-(?P<digest>[0-9a-f]{16})\.pt")


def save(folder: Path, kind: str, step: int, state: dict, prune: bool = True) -> Path:
    """Writes `<kind>-<step>-<digest>.pt` atomically, then removes all of that kind but the newest two (`prune_old`).

    state: tensors, dicts, lists, and plain int, float, str, bool, None; anything else would not load with
    weights_only=True and is refused here, while the run still lives. prune: False keeps the older ones for now.
    Errors: no_space, output_unwritable.
    """
    content = packed(state)
    name = f"{kind}-{step:09d}-{hashlib.sha256(content).hexdigest()[:16]}.pt"
    path = files.write_bytes(Path(folder) / name, content)
    if prune:
        prune_old(folder, kind)
    return path


def packed(state: dict) -> bytes:
    """A state as the bytes of a checkpoint."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def unpacked(content: bytes) -> dict:
    """The state in these bytes, on the CPU; nothing in it is executed."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def prune_old(folder: Path, kind: str) -> None:
    """Removes all checkpoints of a kind but the newest two."""
    for old in list_of(folder, kind)[KEPT:]:
        with contextlib.suppress(OSError):  # a folder of that name, or open elsewhere on Windows: training goes on
            old.unlink()


def delete(folder: Path) -> int:
    """Removes all checkpoints, also what was set aside as damaged; returns how many bytes they took."""
    freed = 0
    for path in Path(folder).glob("*.pt*"):
        with contextlib.suppress(OSError):  # open elsewhere on Windows
            size = path.lstat().st_size
            path.unlink()
            freed += size
    with contextlib.suppress(OSError):  # there is something else in it
        Path(folder).rmdir()
    return freed


def list_of(folder: Path, kind: str) -> list[Path]:
    """The checkpoints of a kind, the newest first; names order them by step, not by the clock."""
    found = [p for p in Path(folder).glob(f"{kind}-*.pt") if NAME.fullmatch(p.name)]
    return sorted(found, key=lambda p: (_step(p), p.lstat().st_mtime_ns), reverse=True)


def _step(path: Path) -> int:
    """The step in the name of a checkpoint."""
    match = NAME.fullmatch(path.name)
    assert match is not None, path  # as `list_of` has found it
    return int(match["step"])


def load(folder: Path, kind: str, step: int | None = None, holds: Collection[str] = ()) -> dict | None:
    """The newest whole checkpoint of a kind (or the one of `step`) on the CPU; None where there never was one.

    holds: the keys it must have. What is damaged, or no such checkpoint, is renamed to `.bad`, with a warning, and
    the one before it is taken. Errors: checkpoint_damaged where files exist but none is whole.
    """
    found = [p for p in list_of(folder, kind) if step is None or _step(p) == step]
    reasons = []
    for path in found:
        try:
            return read(path, holds)
        except PathoError as error:
            reasons.append(f"{path.name}: {error.reason}")
            warnings.warn(f"{path.name} is set aside: {error.reason}", stacklevel=2)
            _set_aside(path)
    if reasons:
        raise PathoError(
            "checkpoint_damaged",
            str(folder),
            "no whole checkpoint is left (" + "; ".join(reasons) + ")",
            "Start the run again in a new folder, or restore the folder from a copy",
        )
    return None


def _set_aside(path: Path) -> None:
    """Renames to the first free of `.bad`, `.bad2`, ...: what is there may be worth a rescue by hand."""
    names = (path.with_name(f"{path.name}.bad{number if number > 1 else ''}") for number in itertools.count(1))
    with contextlib.suppress(OSError):  # in a folder that is only read it stays, and is refused again next time
        path.rename(next(name for name in names if not (name.exists() or name.is_symlink())))


def read(path: Path, holds: Collection[str] = ()) -> dict:
    """One checkpoint file, refused unless its bytes have the digest its name states; nothing in it is executed.

    Errors: checkpoint_damaged; checkpoint_refused (whole, but no plain state with the keys `holds`); missing_file,
    unreadable.
    """
    path = Path(path)
    content = files.read_bytes(path)
    match = NAME.fullmatch(path.name)
    if match is None or not hashlib.sha256(content).hexdigest().startswith(match["digest"]):
        raise PathoError(
            "checkpoint_damaged",
            str(path),
            "its bytes do not match the digest in its name",
            "Use the checkpoint before it",
        )
    remedy = "Only load checkpoints that this library wrote"
    try:
        state = unpacked(content)
    except Exception as error:  # torch raises many kinds for a file that is whole but not a plain state
        raise PathoError(
            "checkpoint_refused", str(path), f"holds more than plain values ({type(error).__name__})", remedy
        ) from error
    if not isinstance(state, dict):
        raise PathoError("checkpoint_refused", str(path), f"holds a {type(state).__name__}, not a state", remedy)
    if lacking := [key for key in holds if key not in state]:
        raise PathoError("checkpoint_refused", str(path), f"lacks {', '.join(lacking)}", remedy)
    return state
