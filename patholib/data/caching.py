"""The cache: every checked image once, as uint8, in one memory-mapped file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from patholib.base import cpu, files, locks
from patholib.base.errors import PathoError
from patholib.base.progress import bar
from patholib.data import decoding

ALWAYS = 2**31  # bytes of pixels that are compared with their digests in a second or two
SAVE_EVERY = 5.0  # seconds of work that are lost at most when a check is killed

# Problems that may be gone at the next check, which therefore looks again.
TEMPORARY = {"unreadable", "io_error", "changed_file", "missing_file"}


def folder(cache_dir: Path | None = None) -> Path:
    """Where caches lie: `cache_dir`, else the folder PATHOLIB_CACHE, else `files.remade`."""
    return Path(cache_dir or os.environ.get("PATHOLIB_CACHE") or files.remade() / "cache")


def cache_file(facts: list[dict], size: int, fit: str, cache_dir: Path | None = None) -> Path:
    """Where these files' pixels are cached."""
    listed = [[fact["path"], *fact["stamp"]] for fact in facts]
    key = files.digest({"pixels": decoding.PIXEL_VERSION, "size": size, "fit": fit, "files": listed})
    return folder(cache_dir) / f"{key[:24]}.npy"


def problem(error: PathoError) -> dict:
    return {"code": error.code, "reason": error.reason, "remedy": error.remedy}


def _examine(path: Path, fact: dict, size: int, fit: str) -> tuple[dict, np.ndarray | None]:
    """All facts of one file, and its square unless it is refused."""
    if "problem" in fact:
        return fact, None
    name = fact["path"]
    try:
        found = files.look_at_file(path, name)
        content = decoding.content(path, found, name, decoding.most_bytes(decoding.MAX_PIXELS))
        if files.stamp(found) != fact["stamp"]:
            raise PathoError("changed_file", name, "changed during the check", "Check again")
        fact = fact | {"sha256": hashlib.sha256(content).hexdigest()}
        image, seen = decoding.decode(content, name, decoding.MAX_PIXELS)
    except PathoError as error:
        return fact | {"problem": problem(error)}, None
    square = decoding.to_square(image, size, fit)
    return fact | seen | {"pixels": _digest(square)}, square


def _digest(square: np.ndarray) -> str:
    """By which equal pixels are known, whatever the encoding, and a cache that has changed."""
    return hashlib.blake2b(square.data, digest_size=16).hexdigest()


def build(
    cache: Path, root: Path, facts: list[dict], size: int, fit: str, workers: int, progress: bool, say: Callable
) -> list[dict]:
    """Writes the cache and, beside it, the facts of every file; a refused file's pixels stay zero and unused."""
    shape = (len(facts), size, size, 3)
    need = int(np.prod(shape))
    with _writable(cache):
        cache.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(cache.parent)
        free = shutil.disk_usage(cache.parent).free
    say(
        f"Cache: {shape[0]:,} images of {size} x {size} pixels take {need / 1e9:.2f} GB in {short(cache.parent)} "
        f"({free / 1e9:.1f} GB free)"
    )
    if need + 2**20 > free:
        raise PathoError(
            "no_space",
            str(cache.parent),
            f"has {free / 1e9:.2f} GB free, but the cache takes {need / 1e9:.2f}",
            "Free some space, or name another folder in PATHOLIB_CACHE",
        )
    held = cache.with_name(f".{cache.stem}.lock")
    lock = locks.take(held)
    alone = "" if lock else f".{os.getpid()}"  # two processes that build the same cache do not share a file
    part = cache.with_name(f".{cache.stem}{alone}.part")
    try:
        facts = _fill(part, root, facts, shape, fit, workers, progress, say)
        with _writable(cache):
            files.into_place(part, cache)
        _note(cache, facts)
        _journal(part).unlink(missing_ok=True)
    except PathoError as error:
        if error.code in ("no_space", "output_unwritable"):  # give the space back; after other errors it can resume
            part.unlink(missing_ok=True)
            _journal(part).unlink(missing_ok=True)
        raise
    finally:
        if lock:
            lock.close()
            with contextlib.suppress(OSError):  # Windows: another process has just opened it to see whether it is held
                held.unlink(missing_ok=True)
    return facts


def short(path: Path) -> str:
    """A path in the project relative to it, any other in full."""
    root = files.project_root()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _fill(
    part: Path, root: Path, facts: list[dict], shape: tuple, fit: str, workers: int, progress: bool, say: Callable
) -> list[dict]:
    """Decodes every file into the array at `part`, saved every few seconds to resume from; all facts, in order."""
    done = _done_before(part, shape, workers)
    if done:
        say(f"Resuming an interrupted check: {len(done):,} of {len(facts):,} images are done")
    pixels = _allocated(part, shape, resume=bool(done))

    def work(i: int) -> dict:
        fact, square = _examine(root / facts[i]["path"], facts[i], shape[1], fit)
        if square is not None:
            pixels[i] = square
        return fact

    names = [fact["path"] for fact in facts]
    todo = [i for i in range(len(facts)) if i not in done]
    meter = bar(shown=progress, total=len(facts), initial=len(done), desc="Checking images", unit="img", leave=False)
    with _writable(part):
        journal = _journal(part).open("a" if done else "w", encoding="utf-8")
    results = cpu.in_order(work, todo, workers, 16 * workers, names.__getitem__)
    with meter, journal, contextlib.closing(results):
        fresh: dict[int, dict] = {}
        saved = time.monotonic()
        try:
            for i, fact in zip(todo, results, strict=True):
                fresh[i] = fact
                meter.update()
                if time.monotonic() - saved > SAVE_EVERY:
                    _save(part, pixels, journal, fresh)
                    done, fresh, saved = done | fresh, {}, time.monotonic()
        finally:
            _save(part, pixels, journal, fresh)
    done |= fresh
    return [done[i] for i in range(len(facts))]


def _allocated(part: Path, shape: tuple, resume: bool) -> np.memmap:
    """The array in the file `part`, whose place on the disk is taken at once."""
    with _writable(part):
        pixels = np.lib.format.open_memmap(part, "r+" if resume else "w+", np.uint8, shape)
        if hasattr(os, "posix_fallocate"):  # a full disk is then an error here, not a bus error in the mapping
            with part.open("r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, part.stat().st_size)
    return pixels


def _save(part: Path, pixels: np.memmap, journal: IO[str], fresh: dict[int, dict]) -> None:
    """Writes pixels and then the facts of the files that are newly done, so that a killed build can resume."""
    with _writable(part):
        pixels.flush()  # first, or a power cut would leave a line about pixels that are not there
        journal.writelines(json.dumps([i, fact]) + "\n" for i, fact in fresh.items())
        journal.flush()


def _journal(part: Path) -> Path:
    return part.with_suffix(".jsonl")


def _done_before(part: Path, shape: tuple, workers: int) -> dict[int, dict]:
    """The facts of the files that an interrupted build has saved, by index; temporary problems do not count."""
    done: dict[int, dict] = {}
    with contextlib.suppress(OSError, ValueError, EOFError):  # none, or cut off in its last line: the rest counts
        pixels = np.load(part, mmap_mode="r")
        if pixels.shape != shape:
            return done
        for line in _journal(part).read_text(encoding="utf-8").splitlines():
            i, fact = json.loads(line)
            if fact.get("problem", {}).get("code") not in TEMPORARY:
                done[i] = fact
    damaged = _damaged(pixels, done, workers) if done else set()
    return {i: fact for i, fact in done.items() if i not in damaged}


def known_facts(cache: Path, now: list[dict], size: int, workers: int, say: Callable) -> list[dict] | None:
    """The facts written beside a complete cache; None where there is none, or where a problem may have passed.

    All pixels are compared with their digests: what a disk has lost is built anew. Of more than ALWAYS bytes they are
    compared where the file was written to or moved since they last were, as its stamp tells.
    """
    beside = cache.with_suffix(".json")
    if not (cache.is_file() and beside.is_file()):
        return None
    try:
        noted = files.read_json(beside, most=2**32)
        known, stamp = noted["files"], files.stamp(cache.stat())
        pixels = np.load(cache, mmap_mode="r")
        known = [fact if "problem" in fact else old for fact, old in zip(now, known, strict=True)]
        if pixels.shape != (len(now), size, size, 3):
            return None
        trusted = pixels.nbytes > ALWAYS and noted.get("stamp") == stamp
        damaged = set() if trusted else _damaged(pixels, dict(enumerate(known)), workers)
        if not damaged and noted.get("stamp") != stamp:
            with contextlib.suppress(PathoError):  # a folder that is read-only
                _note(cache, known)
    except (PathoError, LookupError, TypeError, AttributeError, ValueError, OSError, EOFError):  # cut off, or changed
        return None
    if damaged:
        say(f"The cache is damaged in {len(damaged):,} of {len(known):,} images, and is built anew")
    passing = any(any(fact["stamp"]) and fact.get("problem", {}).get("code") in TEMPORARY for fact in known)
    return None if damaged or passing else known


def _note(cache: Path, facts: list[dict]) -> None:
    """Writes the facts of the files beside the cache, with its own stamp; unindented, which is quicker."""
    files.write_text(cache.with_suffix(".json"), json.dumps({"stamp": files.stamp(cache.stat()), "files": facts}))


def _damaged(pixels: np.ndarray, facts: dict[int, dict], workers: int) -> set[int]:
    """The images whose pixels are not those that their facts are of."""

    def work(some: list[int]) -> set[int]:
        return {i for i in some if "problem" not in facts[i] and _digest(pixels[i]) != facts[i]["pixels"]}

    indices = list(facts)
    blocks = [indices[at : at + 64] for at in range(0, len(indices), 64)]
    return set().union(*cpu.in_order(work, blocks, workers, 2 * workers))


@contextlib.contextmanager
def _writable(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PathoError(
            files.unwritable(cache, error).code,
            str(cache.parent),
            f"cannot hold the cache ({error.strerror or error})",
            "Free some space, or name another folder in PATHOLIB_CACHE",
        ) from error


def _remove_leftovers(folder: Path) -> None:
    """Deletes what a killed build left behind; a day is longer than any build that is still running."""
    for part in (*folder.glob(".*.part"), *folder.glob(".*.jsonl"), *folder.glob(".*.lock")):
        if time.time() - part.stat().st_mtime > 86_400:
            part.unlink(missing_ok=True)
