"""The run folder: what data, recipe, code, versions and seed made it, and whether the images were demo images."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import pandas as pd

from patholib import __version__, files, manifest, recipes
from patholib.errors import PathoError
from patholib.images import Checked
from patholib.recipes import Recipe

LIBRARIES = ("torch", "torchvision", "numpy", "pandas", "pillow", "opencv-python-headless", "scikit-learn",
             "matplotlib", "seaborn", "safetensors")
RESUMABLE = ("epochs", "patience", "precision", "fast")  # a change of these does not make another run


@dataclass(repr=False)
class Run:
    """An open run folder; it is locked until `close`, or until its process ends in whatever way."""

    dir: Path
    recipe: Recipe
    demo: bool
    fingerprint: str  # digest of the recipe, the data and the split
    lock: object = None

    @property
    def note(self) -> str:
        """What every figure says on its face: nothing for real data, a warning for demo images or a leaky split."""
        notes = [manifest.DEMO_NOTE] * self.demo + ["Split by image: patients leak"] * (self.recipe.group_by == "image")
        return " - ".join(notes)

    def __repr__(self) -> str:
        return f"run {self.dir.name}{' - ' * bool(self.note)}{self.note}"

    def update(self, **facts) -> None:
        """Adds facts to run.json."""
        path = self.dir / "run.json"
        files.write_json(path, files.read_json(path) | facts)

    def finish(self) -> None:
        """Marks the run as complete, the last thing that is written, and gives the folder free."""
        self.update(status="finished", finished=datetime.now(UTC).isoformat(timespec="seconds"))
        self.close()

    def close(self) -> None:
        """Gives the folder free for another process."""
        if self.lock is not None:
            self.lock.close()
            self.lock = None


def start(recipe: Recipe, checked: Checked, split, output: Path | None = None, resume: str = "auto",
          name: str | None = None) -> Run:
    """Opens the folder of a run: the newest unfinished one of the same recipe, data and split, or a new one.

    output: the folder that holds run folders; None: PATHOLIB_OUTPUTS, or outputs/ of the project.
    resume: "auto" goes on with such an unfinished run, "must" refuses to start a new one, "never" always does.
    Errors: output_unwritable, output_in_data, run_locked, nothing_to_resume.
    """
    if resume not in ("auto", "must", "never"):
        raise PathoError("bad_parameter", "resume", f"is {resume!r}", "Use auto, must or never")
    output = Path(output or os.environ.get("PATHOLIB_OUTPUTS") or files.project_root() / "outputs").resolve()
    root = Path(checked.manifest.root).resolve()
    if output == root or root in output.parents:
        raise PathoError("output_in_data", str(output), "lies inside the data folder",
                         "Choose an output folder outside")
    mark = fingerprint(recipe, checked, split)
    if resume != "never":
        unfinished = _unfinished(output, mark)
        for folder in unfinished:
            lock = _lock(folder)
            if lock is not None:
                run = Run(folder, recipe, checked.manifest.demo, mark, lock)
                run.update(recipe=recipes.without_folders(recipe).to_json())
                return run
        if resume == "must" and unfinished:
            raise PathoError("run_locked", unfinished[0].name, "is in use by another process",
                             "Wait until it ends, or end it")
        if resume == "must":
            raise PathoError("nothing_to_resume", str(output), "holds no unfinished run of this recipe, data and split",
                             'Pass resume="auto" to start one')
    return _new(recipe, checked, split, output, mark, name)


def fingerprint(recipe: Recipe, checked: Checked, split) -> str:
    """A digest that changes with anything that decides what is learnt: recipe, image bytes, split."""
    decisive = {k: v for k, v in recipe.to_json().items() if k not in RESUMABLE}
    return files.digest([decisive, images_sha256(checked), split[["path", "split"]].to_numpy().tolist()])


def images_sha256(checked: Checked) -> str:
    """One digest of the bytes of every image that was checked."""
    return files.digest(checked.facts[["path", "sha256"]].to_numpy().tolist())


def open_run(folder: Path) -> Run:
    """A run folder for reading: explorer, comparison, export."""
    facts = files.read_json(Path(folder) / "run.json")
    return Run(Path(folder), recipes.from_json(facts["recipe"]), facts["demo"], facts["fingerprint"])


def _new(recipe, checked, split, output, mark, name) -> Run:
    now = datetime.now(UTC)
    stem = name or f"{recipe.name}{'-demo' * checked.manifest.demo}-{now:%Y%m%d-%H%M%S}"
    folder = output / stem
    number = 2
    while True:  # mkdir decides who has the name, also between two processes
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            folder = output / f"{stem}-{number}"
            number += 1
        except OSError as error:
            raise _unwritable(folder, error) from error
    lock = _lock(folder)
    checked.write_report(folder)
    manifest.write_split(split, folder / "split.csv")
    counts = pd.crosstab(split["split"], split["label"])
    files.write_json(folder / "run.json", {
        "name": folder.name, "created": now.isoformat(timespec="seconds"), "status": "started",
        "demo": checked.manifest.demo, "fingerprint": mark, "seed": recipe.seed, "published": recipe.published,
        "recipe": recipes.without_folders(recipe).to_json(),
        "data": {
            "source": checked.manifest.source, "root_name": root_name(checked.manifest.root),
            "images": len(split), "groups": int(split["group"].nunique()), "group_by": recipe.group_by,
            "classes": list(recipe.classes), "images_sha256": images_sha256(checked),
            "found": checked.manifest.found,
        },
        "split": {"path": "split.csv", "sha256": files.sha256(folder / "split.csv"),
                  "counts": {part: {k: int(v) for k, v in row.items()} for part, row in counts.iterrows()}},
        "versions": {"python": platform.python_version()} | {n: _version(n) for n in LIBRARIES},
        "code": {"version": __version__, "commit": _commit()},
        "machine": machine(),
    })
    return Run(folder, recipe, checked.manifest.demo, mark, lock)


def root_name(root: Path) -> str:
    """The last part of the data folder: enough to recognise it, and no path of anybody's machine."""
    return Path(root).resolve().name


def machine() -> dict:
    """What a timing depends on: system, processor, cores, threads, GPU."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"system": f"{platform.system()} {platform.release()}", "processor": _processor(), "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(), "gpu": gpu}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The git commit of the library's own checkout, with a + where files differ from it; None outside of one."""
    here = Path(__file__).resolve().parent
    try:
        shown = [subprocess.run(["git", "-C", here, *command], capture_output=True, text=True, timeout=10, check=True)
                 for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no", "."])]
    except (OSError, subprocess.SubprocessError):
        return None
    return shown[0].stdout.strip() + ("+" if shown[1].stdout.strip() else "")


def _unwritable(folder: Path, error: OSError) -> PathoError:
    return PathoError("output_unwritable", str(folder), f"cannot be written ({error.strerror})",
                      "Choose another output folder")


def _unfinished(output: Path, mark: str) -> list[Path]:
    """Run folders of that fingerprint that were not finished, the newest first."""
    found = []
    for path in output.glob("*/run.json"):
        facts = files.read_json(path)
        if facts.get("fingerprint") == mark and facts.get("status") != "finished":
            found.append((facts["created"], path.parent))
    return [folder for _, folder in sorted(found, reverse=True)]


def _lock(folder: Path):
    """A lock that vanishes with its process; None where another process holds it. Errors: output_unwritable."""
    try:
        handle = (folder / "run.lock").open("a+")
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        return None
    return handle


def recipe_for(name: str, source: manifest.Manifest, published: bool = False, weights: str | None = None,
               small: bool = False, **overrides) -> Recipe:
    """The recipe `name` for these data: their classes and grouping, then the overrides.

    published: the literal form. weights: "imagenet", "none" (which also unfreezes, see `recipes.from_scratch`) or a
    file; None: what the recipe says. Demo images without other weights get the recipe cut down (`recipes.for_demo`),
    and so do others with `small`, for a first look. overrides: fields of the recipe; None leaves a field.
    """
    recipe = recipes.as_published(name) if published else recipes.get(name)
    recipe = replace(recipe, classes=source.classes, positive=source.positive,
                     group_by="image" if published else source.group_by)
    if small or (source.demo and weights in (None, "none")):
        recipe = recipes.for_demo(recipe)
    elif weights == "none":
        recipe = recipes.from_scratch(recipe)
    else:
        recipe = replace(recipe, weights=weights or recipe.weights)
    return replace(recipe, **{field: value for field, value in overrides.items() if value is not None})


def differences(a: Recipe, b: Recipe, names: tuple[str, str] = ("the recipe", "here")) -> pd.DataFrame:
    """The fields in which two recipes differ, one row each; names: what to call the two."""
    rows = recipes.diff(a, b)
    return pd.DataFrame([(field, _readable(x), _readable(y)) for field, (x, y) in rows.items()],
                        columns=["field", *names])


def _readable(value) -> str:
    if isinstance(value, tuple) and value and isinstance(value[0], recipes.Stage):
        return "; ".join(f"from {s.start:g}: {s.frozen} frozen, x{s.lr_scale:g}" for s in value)
    return str(value)
