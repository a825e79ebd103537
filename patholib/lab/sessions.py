"""Work that is longer than the session it runs in: what one leaves, and the next takes up.

Kaggle and Colab end a session after some hours. What it leaves is one zip of a run folder; attached to the next one,
as that zip or as the folder itself, an unfinished run goes on at the step where it stood.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import re
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from patholib import __version__
from patholib.base import files, places
from patholib.base.errors import PathoError
from patholib.data import archives
from patholib.data.readers.folders import folders_below
from patholib.train import origin

PREFIX = "patholib-"  # begins the name of a zip, by which it is found again
# The modules of packages that are not called as their package is.
MODULES = {"opencv-python-headless": "cv2", "pillow": "PIL", "scikit-learn": "sklearn", "markdown-it-py": "markdown_it"}
STEP = re.compile(r"checkpoints/last-(\d{9})-[0-9a-f]{16}\.pt")
DENSE = {".pt", ".safetensors", ".onnx", ".png", ".jpg"}  # what does not shrink
TOP = 2  # levels of folders that are searched of a Drive
SESSION_HOURS = 12.0  # after which Kaggle ends a session, and keeps nothing of one that was not done
SPARE_HOURS = 1.0  # of them, for what comes after the training: judging, heatmaps, report
STARTED = time.monotonic()  # the first cell imports this, so it is about when the session began
FACTS = 2**24  # bytes that a run.json in a zip may have


# --- what a session begins with ---


def ready() -> None:
    """Refuses a Python that lacks what patholib needs; on Kaggle and Colab says what is kept where, and for how long.

    The first cell of every notebook calls it: a wheel that was installed by itself has brought nothing with it.
    Errors: missing_module, naming all that are missing.
    """
    missing, old = lacking()
    if missing:
        raise PathoError(
            "missing_module",
            ", ".join(missing),
            "is needed and not installed",
            f"Run: pip install --no-deps {' '.join(missing)}",
        )
    if old:
        print(f"Older than patholib was tested with: {'; '.join(old)}")
    host = places.host()
    if host:
        hours = hours_left()
        print(
            f"{host}: patholib {__version__}. Runs are kept in {files.outputs()}, what can be made again in "
            f"{files.remade()}."
            + (f" A training stops in {hours:.1f} hours, saved, before the session ends" if hours is not None else "")
        )


def hours_left() -> float | None:
    """How long a training may still take, so that time is left for what follows it; None where no session ends."""
    if places.host() != "Kaggle":
        return None
    return max(SESSION_HOURS - SPARE_HOURS - (time.monotonic() - STARTED) / 3600, 0.0)


def lacking() -> tuple[list[str], list[str]]:
    """The packages that patholib needs: those that are not there, and those that are older than it asks for."""
    try:
        needed = importlib.metadata.requires("patholib") or []
    except importlib.metadata.PackageNotFoundError:  # a checkout that is on the path, and not installed
        return [], []
    missing, old = [], []
    for line in needed:
        match = re.match(r"([\w.-]+)(?:.*?>=([\d.]+))?", line.partition(";")[0])
        if match is None or "extra ==" in line:
            continue
        name, least = match.groups()
        if importlib.util.find_spec(MODULES.get(name, name.replace("-", "_"))) is None:
            missing.append(name)
        elif least and (version := origin.version(name)) and _numbers(version) < _numbers(least):
            old.append(f"{name} {version} (it asks for {least})")
    return missing, old


def _numbers(version: str) -> list[int]:
    match = re.match(r"[\d.]*\d", version)
    assert match is not None, version  # a version begins with a number
    return [int(number) for number in match[0].split(".")]


# --- what an earlier session left ---


@dataclass(frozen=True)
class Attached:
    """A run folder, or the zip of one, that lies where data sets are attached; it is only read."""

    place: Path
    name: str  # of the run folder
    facts: dict  # of its run.json
    step: int  # where its newest checkpoint stands; -1 without one

    @property
    def finished(self) -> bool:
        return self.facts.get("status") == "finished"


def attached(apart_from: Path | None = None) -> list[Attached]:
    """The runs that lie below the places where data sets are attached, the newest and furthest first.

    apart_from: a folder whose runs are not meant. One that is broken, or a zip of something else, is passed over.
    """
    found = {}
    for mount in places.mounts():
        for folder in _below(mount):
            if apart_from is not None and folder.resolve().is_relative_to(apart_from):
                continue
            for place in (folder, *sorted(folder.glob(f"{PREFIX}*.zip"))):
                if place not in found and (run := _looked_at(place)) is not None:
                    found[place] = run
    return sorted(found.values(), key=lambda run: (str(run.facts.get("created")), run.step), reverse=True)


def take_up(output: Path, fits: Callable[[dict], bool], finished: bool = False) -> Path | None:
    """Copies the first attached run whose run.json `fits` into `output`, and says so; None where there is none.

    finished: also one that was finished, if it has its checkpoints still; an unfinished one comes first.
    """
    found = [run for run in attached(output) if fits(run.facts) and not (output / run.name).exists()]
    run = next(
        (run for run in found if not run.finished), next((run for run in found if finished and run.step >= 0), None)
    )
    if run is None:
        return None
    print(f"{run.name} is attached as {run.place}: it is copied, and taken up where it stood")
    return _fetch(run.place, output / run.name)


def take_up_named(folder: Path) -> None:
    """Copies the attached folder of this name, or the zip that holds one, to `folder`, and says so, if there is one.

    For folders whose name says by itself what they hold, as those of cross-validations do.
    """
    for mount in places.mounts():
        for place in (place for found in _below(mount) for place in (found, *sorted(found.glob(f"{PREFIX}*.zip")))):
            if folder.name in _names(place) and place.resolve() != folder.resolve():
                print(f"{folder.name} is attached in {place}: it is copied, and taken up where it stood")
                _fetch(place, folder)
                return


def _names(place: Path) -> set[str]:
    """The folders that taking up `place` could mean: its own name, or those at the top of a zip."""
    if place.is_dir():
        return {place.name}
    with contextlib.suppress(OSError, *archives.BROKEN), zipfile.ZipFile(place) as archive:
        return {name.partition("/")[0] for name in archive.namelist()}
    return set()


def _below(mount: Path) -> Iterator[Path]:
    """The folders to look into, nearest first; of a Drive, where listing one takes long, those at the top."""
    with contextlib.suppress(PathoError):  # what cannot be listed holds nothing that could be taken up
        for folder in folders_below(mount, skip=("drive",)):  # MyDrive is a mount of its own
            if mount.name == "MyDrive" and len(folder.relative_to(mount).parts) > TOP:
                return
            yield folder


def _looked_at(place: Path) -> Attached | None:
    """What lies there, if it is a run: a folder with run.json, or a zip with such a folder in it."""
    try:
        if place.is_dir():
            name, content = place.name, files.read_bytes(place / "run.json", FACTS)
            names = [f"checkpoints/{path.name}" for path in (place / "checkpoints").glob("last-*.pt")]
        else:
            with zipfile.ZipFile(place) as archive:
                names = archive.namelist()
                name, file = next(PurePosixPath(n).parts for n in names if re.fullmatch(r"[^/\\]+/run\.json", n))
                with archive.open(f"{name}/{file}") as stream:
                    content = stream.read(FACTS)
        facts = json.loads(content)
        dict(facts["recipe"])
    except (PathoError, OSError, ValueError, TypeError, KeyError, StopIteration, *archives.BROKEN):
        return None  # no run, or one that nobody could go on with
    return Attached(place, name, facts, max((int(step[1]) for n in names if (step := STEP.search(n))), default=-1))


def _fetch(place: Path, folder: Path) -> Path:
    """Copies what is attached, or unpacks it and takes the folder of this name, to `folder`: whole or not at all."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a copy that was interrupted
    try:
        if place.is_dir():
            _copy(place, part)
        else:
            archives.extract(place, part)
        (part if place.is_dir() else part / folder.name).rename(folder)
    except OSError as error:
        raise files.unwritable(folder, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _copy(source: Path, target: Path) -> None:
    """Copies plain files and folders as new ones of one's own: what is attached may be read-only."""
    target.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.is_symlink() or path.name.endswith(".lock"):
            continue
        if path.is_dir():
            _copy(path, target / path.name)
        elif path.is_file():
            shutil.copyfile(path, target / path.name)


# --- what is left for the next one ---


def leave(run_dir: Path) -> str:
    """Says where one zip of a run lies, to take home or to go on with; made on Kaggle and Colab, elsewhere files stay.

    It is written into the working folder: beside the folder of outputs, or where the run lies if that is another one.
    """
    run_dir = Path(run_dir).resolve()
    if not places.host():
        return f"{run_dir.name} stays in {run_dir.parent.name}; a zip is made where sessions end, on Kaggle and Colab"
    usual = files.outputs().resolve()
    folder = usual.parent if run_dir.parent == usual else run_dir.parent
    folders = [run_dir, *_cross_validations(run_dir)]
    unfinished = not all((other / "cross_validation.json").exists() for other in folders[1:])
    path = pack(folders, folder / f"{PREFIX}{run_dir.name}.zip", checkpoints=unfinished)
    return f"To take home: {path} ({path.stat().st_size / 1e6:,.1f} MB)"


def _cross_validations(run_dir: Path) -> list[Path]:
    """The folders of cross-validations that were worked on after the run was begun, in the same session that is."""
    begun = (run_dir / "split.csv").stat().st_mtime
    return sorted(
        lock.parent for lock in run_dir.parent.glob("*/cross_validation.lock") if lock.stat().st_mtime > begun
    )


def pack(folders: list[Path], path: Path, checkpoints: bool = False) -> Path:
    """Writes folders of runs as a zip that is there whole or not at all, and holds no path of the machine.

    Left out: locks, what was not finished, and run.jsonl, whose tracebacks name files. Of a finished run also the
    checkpoints, unless they are asked for; of another the newest ones stay, so that it can be gone on with.
    Errors: bad_json, no_space, output_unwritable.
    """
    with files.written(path) as stream, zipfile.ZipFile(stream, "w", strict_timestamps=False) as archive:
        for folder in folders:
            for file in sorted(file for file in folder.rglob("*") if file.is_file() and _taken(file, checkpoints)):
                kind = zipfile.ZIP_STORED if file.suffix in DENSE else zipfile.ZIP_DEFLATED
                archive.write(file, file.relative_to(folder.parent).as_posix(), kind)
    return path


def _taken(file: Path, checkpoints: bool) -> bool:
    """Whether a file of a run goes into its zip; checkpoints: those of a finished run too."""
    if file.parent.name == "checkpoints":
        kind = file.name.partition("-")[0]
        finished = files.read_json(file.parent.parent / "run.json").get("status") == "finished"
        return (checkpoints or not finished) and file.suffix == ".pt" and file == max(file.parent.glob(f"{kind}-*.pt"))
    return not (file.name.startswith(".") or file.suffix == ".lock" or file.name == "run.jsonl")
