"""A system that has not what Windows has not and refuses what Windows refuses, as far as Linux can be made to play it.

    python tests/windows.py FOLDER        the whole pipeline there; prints what was refused, nothing if all is well
    python tests/windows.py FOLDER -m papermill ...    a module there, and in every process that it starts

Played: no fork, no fcntl, no resource, no os.sync and other calls; locks by marker files; processes are spawned; a file
that is open or mapped can be neither renamed nor replaced nor removed, nor can a folder that holds one; names and paths
that Windows does not take; text files that state no encoding, and a stdout that knows Latin letters only. Not played:
drive letters, names without case, rights, and the console.
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import re
import shutil  # noqa: F401 - this and others look at the system when they are imported, so before it changes
import subprocess
import sys
import warnings
from pathlib import Path

PLAYED = "PRETEND_WINDOWS"  # an environment variable: the folder where its rules hold
SETTINGS = {"PYTHONUTF8": "0", "PYTHONIOENCODING": "cp1252", "PYTHONWARNDEFAULTENCODING": "1", "LC_ALL": "C.UTF-8"}
ABSENT = (
    "fork",
    "forkpty",
    "sync",
    "posix_fallocate",
    "sched_getaffinity",
    "mkfifo",
    "mknod",
    "killpg",
    "wait3",
    "wait4",
    "O_NOFOLLOW",
    "O_CLOEXEC",
    "O_DIRECTORY",
)
MODULES = ("fcntl", "resource", "termios", "tty", "pty", "syslog")
DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)
LONGEST = 259  # characters of a whole path, where long paths were not switched on
HOME = r"C:\Users\somebody\Documents\pathovision\outputs"  # for which, too, a path must leave room


def pretend(folder: str) -> None:
    """From here on this process, and what it starts, lives on such a system; its rules for files hold in `folder`."""
    real = os.path.realpath(folder)
    for name in ABSENT:
        if hasattr(os, name):
            delattr(os, name)
    for name in MODULES:
        if name not in sys.modules or name in ("fcntl", "resource"):
            sys.modules[name] = None
    with contextlib.suppress(RuntimeError):  # chosen already
        multiprocessing.set_start_method("spawn")
    warnings.filterwarnings("error", category=EncodingWarning, module=r"patholib|run")
    sys.addaudithook(lambda event, given: _judge(event, given, real))


def _judge(event: str, given: tuple, folder: str) -> None:
    """Stops what Windows would not do; an error of an audit hook is one of the call that was to be made."""
    if event == "open" and isinstance(given[0], (str, Path)):
        _refuse_name(str(given[0]), folder)
    elif event == "os.mkdir":
        _refuse_name(os.fspath(given[0]), folder)
    elif event == "os.rename":
        _refuse_name(os.fspath(given[1]), folder)
        _refuse_open(os.fspath(given[0]), folder)
        _refuse_open(os.fspath(given[1]), folder)
    elif event in ("os.remove", "os.rmdir") and given[1] == -1:  # a place by its whole path
        _refuse_open(os.fspath(given[0]), folder)


def _refuse_name(path: str, folder: str) -> None:
    place = Path(path).absolute()
    if not place.is_relative_to(folder):
        return
    inside = place.relative_to(folder)
    for part in inside.parts:
        if re.search(r'[<>:"|?*\\\x00-\x1f]', part) or DEVICE.fullmatch(part) or part[-1] in ". ":
            _tell(OSError(errno.EINVAL, "Invalid argument"), path)
    if len(HOME) + 1 + len(str(inside)) > LONGEST:
        _tell(FileNotFoundError(errno.ENOENT, "The system cannot find the path specified"), path)


def _refuse_open(path: str, folder: str) -> None:
    path = os.path.realpath(path)
    if not path.startswith(folder + os.sep) or path.endswith("lock"):  # filelock's own way of Windows is not played
        return
    held = [name for name in _open_files() if name == path or name.startswith(path + os.sep)]
    if held:
        error = PermissionError(errno.EACCES, f"The process cannot access the file because it is being used ({held})")
        error.winerror = 32
        _tell(error, path)


def _open_files() -> list[str]:
    """The files that this process has open or mapped."""
    found = []
    for handle in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one of the listing itself
            found.append(str(handle.readlink()))
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return found + [line.split(maxsplit=5)[5] for line in maps if " /" in line]


def _tell(error: OSError, path: str) -> None:
    """Raises the error, and has it on record, as what is refused may be tried again or passed over."""
    error.filename = path
    with Path(os.environ["PRETEND_WINDOWS_LOG"]).open("a", encoding="utf-8") as stream:
        stream.write(f"{type(error).__name__}: {error}\n")
    raise error


# --- a process there ---


def there(folder: Path, *command: str, **options) -> subprocess.CompletedProcess:
    """Runs Python with these arguments in such a system, which every process that it starts is in as well."""
    folder.mkdir(parents=True, exist_ok=True)
    hooks = folder.parent / "hooks"
    hooks.mkdir(exist_ok=True)
    here = Path(__file__).resolve().parent
    (hooks / "sitecustomize.py").write_text(
        f"import sys\nsys.path[:0] = [{str(here)!r}, {str(here.parent)!r}, {str(here / 'project')!r}]\n"
        f"import windows\nwindows.pretend({str(folder)!r})\n",
        encoding="utf-8",
    )
    env = {
        **os.environ,
        **SETTINGS,
        PLAYED: str(folder),
        "PRETEND_WINDOWS_LOG": str(folder.parent / "refused.txt"),
        "PYTHONPATH": os.pathsep.join([str(hooks), str(here.parent), str(here), str(here / "project")]),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run([sys.executable, *command], cwd=folder, env=env, capture_output=True, **options)


def pipeline(folder: Path) -> None:
    """From pictures to a served model, by the calls of a notebook and of a terminal; each writes over what it wrote."""
    import zipfile

    import test_pipeline
    import tiny

    from patholib import cli
    from patholib.base import files
    from patholib.data import archives, checking, readers
    from patholib.deploy import export, inference
    from patholib.deploy.server import sandbox, serving
    from patholib.model import building
    from patholib.report import comparison, report
    from patholib.report.figures import style
    from patholib.train import runs, training

    style.FILE_DPI = 40
    os.environ["PATHOLIB_CACHE"] = str(folder / "cache")
    with tiny.network():
        done = test_pipeline.finish(folder, "table")
        report.write(done.run.dir)  # again, over what is there
        done.tiles.pixels[0].sum()  # its cache is mapped, and stays so while the same is checked again
        table = folder / "data" / "mine.csv"
        table.write_text(table.read_text(encoding="utf-8").replace("/", "\\"), encoding="utf-8")
        checked = checking.check(readers.read(table), done.run.recipe.cache_size, done.run.recipe.fit, progress=False)
        assert checked.report["cache"]["reused"], "a backslash made another path of it"
        for epochs in (1, 3):  # saved, gone on with, and the older checkpoints removed
            training.fit(
                tiny.build(tiny.TINY),
                tiny.image_set(),
                tiny.open_run(folder / "again", tiny.TINY),
                device="cpu",
                workers=2,
                **({"max_hours": None} if epochs > 1 else {}),
            )
        assert runs.newest(folder / "runs", demo=True) == done.run.dir
        comparison.read(done.run.dir.name, folder / "runs")
        assert cli.main(["export", str(done.run.dir), "--out", str(folder / "export")]) == 0
        picture, *more = sorted((folder / "data").rglob("*.png"))[:3]
        given = [
            "predict",
            folder / "export",
            picture,
            *more,
            "--out",
            folder / "answers.csv",
            "--heatmaps",
            folder / "heat",
            "--workers",
            2,
        ]
        assert cli.main([*map(str, given)]) == 0
        seen = inference.Predictor(folder / "export").look(picture)
        decoder = sandbox.Decoder(done.run.recipe.cache_size, done.run.recipe.fit)
        assert (decoder(files.read_bytes(picture)).pixels == seen.pixels).all()
        decoder.close()
        with zipfile.ZipFile(folder / "set.zip", "w") as archive:
            archive.write(picture, "set/picture.png")
        archives.extract(folder / "set.zip", folder / "unpacked")
    export.save_model(folder / "served", building.build(tiny.TINY).state_dict(), tiny.TINY)  # known to another process
    with serving.running(folder / "served") as server:
        assert server.predict(picture)["probabilities"]


PIPELINE = ("-c", "import sys, pathlib, windows; windows.pipeline(pathlib.Path(sys.argv[1]))")

if __name__ == "__main__":
    place = Path(sys.argv[1]).resolve()
    ended = there(place, *(sys.argv[2:] or (*PIPELINE, str(place))))
    refused = place.parent / "refused.txt"
    print(
        ended.stdout.decode("cp1252", "replace"),
        ended.stderr.decode("utf-8", "replace"),
        refused.read_text(encoding="utf-8") if refused.exists() else "",
        sep="\n",
    )
    sys.exit(ended.returncode)
