"""A session on Kaggle without Kaggle: its folders, its variable, and a Python that has patholib from a wheel alone.

  python tests/kaggle.py FOLDER [PYTHON]    two sessions in FOLDER: the first is stopped, the second takes it up

`run(python, folder)` does it and returns the zip to take home; `python` is any interpreter with the requirements of
patholib, pip, papermill and ipykernel. What stands for /kaggle/input is read-only as far as that can be: the super-user
writes everywhere, so `written_into` says afterwards whether anything was.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"weights": "none", "image_size": "32", "epochs": "2", "batch_size": "16", "precision": "fp32"}
# Where an interpreter has its packages, and their files that are no modules.
SITES = "import json, sys; print(json.dumps([sys.prefix, *(p for p in sys.path if p.endswith('-packages'))]))"


@dataclass(frozen=True)
class Kaggle:
    """The folders of one session: `input` is what is attached, `working` is what is kept."""

    folder: Path
    python: Path  # an interpreter of its own, without patholib

    @property
    def input(self) -> Path:
        return self.folder / "kaggle" / "input"

    @property
    def working(self) -> Path:
        return self.folder / "kaggle" / "working"

    @property
    def env(self) -> dict[str, str]:
        """The variables of a session, and none that would let it find another patholib or other data."""
        mine = {k: v for k, v in os.environ.items() if not k.startswith("PATHOLIB_") and k != "PYTHONPATH"}
        return {
            **mine,
            "KAGGLE_KERNEL_RUN_TYPE": "Batch",
            "PATHOLIB_MOUNTS": str(self.input),
            "TQDM_DISABLE": "1",
            "MPLBACKEND": "Agg",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            "IPYTHONDIR": str(self.folder / "ipython"),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }

    def call(self, *arguments, **options) -> subprocess.CompletedProcess:
        """What this Python answers, in the working folder."""
        return subprocess.run(
            [str(self.python), *map(str, arguments)],
            cwd=self.working,
            env=self.env,
            text=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=600,
            **options,
        )

    def papermill(self, name: str, **parameters) -> subprocess.CompletedProcess:
        """Runs a notebook as Kaggle does: the file lies in the working folder, no project around it."""
        shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", self.working / "notebook.ipynb")
        given = [word for key, value in parameters.items() for word in ("-p", key, value)]
        return self.call(
            "-m",
            "papermill",
            "notebook.ipynb",
            "__notebook__.ipynb",
            "-k",
            "python3",
            "--log-output",
            "--no-progress-bar",
            *given,
        )

    def zips(self) -> list[Path]:
        return sorted(self.working.glob("*.zip"))


def session(folder: Path, python: Path | str = sys.executable) -> Kaggle:
    """Makes the folders and the interpreter: links to everything that `python` has, but for patholib."""
    found = Kaggle(Path(folder), Path(folder) / "python" / "bin" / "python")
    subprocess.run([str(python), "-m", "venv", "--without-pip", str(folder / "python")], check=True)
    (site,) = (folder / "python" / "lib").glob("python*/site-packages")
    prefix, *places = json.loads(
        subprocess.run(
            [str(python), "-c", SITES],
            check=True,
            capture_output=True,
            text=True,
            cwd=folder,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        ).stdout
    )
    for package in (path for place in places for path in Path(place).iterdir()):
        if "patholib" not in package.name.lower() and not (site / package.name).exists():
            (site / package.name).symlink_to(package)
    (folder / "python" / "share" / "jupyter").mkdir(parents=True, exist_ok=True)
    templates = Path("share", "jupyter", "nbconvert")  # the report is made with them
    (folder / "python" / templates).symlink_to(Path(prefix) / templates)
    for place in (found.input, found.working):
        place.mkdir(parents=True)
    return found


def wheel(folder: Path) -> Path:
    """A wheel of this checkout in a new folder."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (made,) = folder.glob("patholib-*.whl")
    return made


def data(place: Path) -> None:
    """Small pictures in the layout of ISIC 2019, without the mark that would have them known as demo images."""
    sys.path.insert(0, str(ROOT))
    from patholib.data import demo
    from patholib.data.readers.folders import DEMO

    demo.write(place, "isic2019", groups=64, images_per_group=1, size=(64, 64))
    (place / DEMO).unlink()


def attach_output(before: Kaggle, now: Kaggle, zipped: bool = False) -> None:
    """What one session left becomes an input of another, as its zip alone or as all of its files."""
    place = now.input / "notebooks" / "somebody" / "isic-2019"
    place.mkdir(parents=True)
    if zipped:
        for path in before.zips():
            shutil.copy(path, place)
    else:
        shutil.copytree(before.working / "outputs", place / "outputs")


def freeze(now: Kaggle) -> None:
    """Takes away the right to write below the inputs, as far as that means anything to this user."""
    for path in (now.input, *now.input.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder with its size and time, to see whether anything was changed."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }


def run(python: Path | str, folder: Path, zipped: bool = False) -> Path:
    """Two sessions of the ISIC notebook: the first is out of time at once, the second goes on. The zip of the second.

    Raises RuntimeError with the output of papermill where it fails, and AssertionError where an input was changed.
    """
    folder = Path(folder).resolve()
    first, second = session(folder / "first", python), session(folder / "second", python)
    for now in (first, second):
        wheel(now.input / "patholib-wheel")
        data(now.input / "datasets" / "somebody" / "isic-2019")
    shutil.copytree(first.input / "datasets", second.input / "datasets", dirs_exist_ok=True)
    _told(first.papermill("isic2019/train", **SMALL, max_hours="0"))
    attach_output(first, second, zipped)
    freeze(second)
    before = state_of(second.input)
    _told(second.papermill("isic2019/train", **SMALL, resume="must"))
    assert state_of(second.input) == before, "something was written into what is attached"
    (made,) = second.zips()
    return made


def _told(done: subprocess.CompletedProcess) -> None:
    if done.returncode:
        raise RuntimeError(f"papermill ended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")


if __name__ == "__main__":
    found = run(sys.argv[2] if len(sys.argv) > 2 else sys.executable, Path(sys.argv[1]))
    with zipfile.ZipFile(found) as archive:
        print(*archive.namelist(), sep="\n")
    print(f"{found}: {found.stat().st_size / 1e6:.1f} MB")
