#!/usr/bin/env python3
"""PathoVision from the command line; needs Python 3.11 or newer and nothing else.

  python3 run.py train [NOTEBOOK] [ARGUMENTS]   run a notebook headless with papermill: breakhis (the default),
                                                isic2019, quickstart or a path; e.g. -p epochs 35 -p data data/mine;
                                                --help lists its parameters
  python3 run.py test [ARGUMENTS]               every check; with arguments only pytest, which gets them;
                                                --only ruff,notebooks: only these steps (--only lists them)
                                                --fast: lint, types and the tests of the first minute or two
  python3 run.py patholib [ARGUMENTS]           the command patholib in this environment: train, audit, predict, ...
  python3 run.py lowest                         the same code with the oldest packages that pyproject.toml admits
  python3 run.py docs                           build the documentation as a site in site/; warnings are errors
  python3 run.py lab [ARGUMENTS]                open the notebooks in JupyterLab
  python3 run.py notebooks [NAMES]              execute the committed notebooks in place, on demo images
  python3 run.py bench [NAMES] [--quick]        time the library beside its rivals, one benchmark after another, and
                                                write benchmarks/RESULTS.md; --quick: tiny, writes nothing
  python3 run.py wheel                          build dist/: the library, the notebooks, and what to attach where,
                                                for Kaggle and other places without a network
  python3 run.py setup [--cpu | --gpu]          only make the environment; the flags choose PyTorch's build

The first call installs everything into .venv beside this file; a changed pyproject.toml installs again. With an NVIDIA
driver these are 6 GB, without one about 1 GB: PyTorch's CPU build is then asked for, from PyTorch's own index.
PATHOLIB_PYTHON names an interpreter that has everything already (conda, for instance); then no .venv is made.
PATHOLIB_KEEP names a folder that gets the executed notebooks and pages of the runs that are tested.
Relative paths among the parameters of a notebook count from the folder of this file.
"""

import atexit
import concurrent.futures
import contextlib
import difflib
import functools
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
NOTEBOOKS = ROOT / "notebooks"
VENV, LOWEST = ROOT / ".venv", ROOT / ".venv-lowest"
EXTRAS = "notebooks,onnx,serve,cluster,browser,test,docs,dev,weights,encoders"
LOWEST_EXTRAS = "notebooks,onnx,serve,test,weights,encoders"  # what a user runs, and what tests it
NAMED_ONLY = ("gpu", "quality")  # benchmarks that need a GPU, or real images and hours

# What papermill and the kernel log around the notebook's own output, progress bars, and objects that have no text.
NOISE = re.compile(
    r"\s*$|(Executing|Ending) Cell|(Input|Output) Notebook:|Working directory:|Executing notebook with "
    r"|Passed unknown parameter|\[IPKernelApp\]|\s*\d+%\||<[\w. ]+[^<>]*>$"
)
COUNTS = re.compile(r"(\d+) (passed|failed|error|skipped|xfailed|xpassed|deselected)")


def main(arguments):
    if sys.version_info < (3, 11):  # noqa: UP036 - said here, before anything an older Python lacks is called
        newer = next(filter(shutil.which, ("python3.13", "python3.12", "python3.11")), "python3.12")
        print(
            f"PathoVision needs Python 3.11 or newer; this is {sys.version.split()[0]} ({sys.executable}). "
            f"Try: {newer} run.py {' '.join(arguments)}",
            file=sys.stderr,
        )
        return 1
    open_streams()
    os.environ["PIP_USER"] = "0"  # pip refuses to install into an environment and beside it at once
    os.environ.pop("PYTHONOPTIMIZE", None)  # it takes the checks out of notebooks and tests, and the help
    for stream in (sys.stdout, sys.stderr):  # a redirected stream has the system's encoding, which may lack letters
        stream.reconfigure(errors="backslashreplace")
    os.environ.setdefault("PYTHONUTF8", "1")  # what is started speaks UTF-8 on every system, as `follow` expects
    commands = {
        "train": train,
        "test": test,
        "lowest": lowest,
        "lab": lab,
        "notebooks": notebooks,
        "bench": bench,
        "docs": docs,
        "patholib": patholib,
        "wheel": wheel,
        "setup": setup,
    }
    if not arguments or arguments[0] not in commands:
        print(__doc__ or "Without -OO, this shows what can be asked for")
        return 0 if arguments and arguments[0] in ("-h", "--help", "help") else 2
    try:
        return commands[arguments[0]](arguments[1:])
    except KeyboardInterrupt:
        return 130


def open_streams():
    """Lets nothing stand for a standard stream that was closed: else the next file that is opened would."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode, closefd=False))


# --- the environment ---


def environment():
    """The interpreter that has everything installed; installs it first where the stamp is not that of today."""
    python = os.environ.get("PATHOLIB_PYTHON")
    if python:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return with_kernel(python or installed(VENV, sys.executable, EXTRAS))


def with_kernel(python):
    """The interpreter, which from now on is that of the kernel python3, whatever else has this name on this machine."""
    folder = Path(tempfile.mkdtemp(prefix="patholib-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    command = [shutil.which(python) or python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernels" / "python3").mkdir(parents=True)
    spec = json.dumps({"argv": command, "display_name": "Python 3", "language": "python"})
    (folder / "kernels" / "python3" / "kernel.json").write_text(spec, encoding="utf-8")
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("JUPYTER_PATH")]))
    return python


def lowest_environment():
    """An interpreter that has the oldest packages that pyproject.toml admits, and nothing of anybody's choice."""
    least = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))[1]
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    base = sys.executable if here == least else shutil.which(f"python{least}")
    if base is None:
        sys.exit(f"The oldest packages are tried with the oldest Python, {least}, which is not here")
    return with_kernel(installed(LOWEST, base, LOWEST_EXTRAS, oldest=True))


def installed(venv, base, extras, oldest=False, build=None):
    """The interpreter of an environment of ours, made where it is not there; one process at a time makes it.

    base: the interpreter to make it from. oldest: of every requirement the oldest version, which only uv can find.
    build: "cpu" or "gpu" installs that build of PyTorch, also in place of another; None keeps what is there.
    """
    python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    # The folder counts too: a copied .venv would run the code of the place it was copied from.
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + str(ROOT).encode()).hexdigest()
    if build or state(venv, python) != wanted:
        with alone(venv):
            if build or state(venv, python) != wanted:  # else another process has just installed it
                install(venv, python, base, f"{ROOT}[{extras}]", oldest, build)
                (venv / "patholib.stamp").write_text(wanted)
    return str(python)


def state(venv, python):
    """What the stamp of an environment says, "installing" where it is interrupted or not whole."""
    stamp = venv / "patholib.stamp"
    if venv.exists() and not stamp.exists() and any(venv.iterdir()):
        sys.exit(
            f"{venv} was not made by run.py, which leaves it alone. Move it away, or set PATHOLIB_PYTHON to an "
            "interpreter that has the packages of pyproject.toml."
        )
    whole = python.exists() and (venv / "pyvenv.cfg").exists()
    return stamp.read_text() if whole and stamp.exists() else "installing"


def has_nvidia():
    """Whether this machine has an NVIDIA driver; where it is Linux, the ordinary PyTorch is built for one."""
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").exists()


def install(venv, python, base, what, oldest, build=None):
    """Makes the environment, or brings an old one up to date."""
    if os.pathsep in str(venv):
        sys.exit(f"No environment can be made in {venv}, whose path holds {os.pathsep!r}: rename that folder")
    print(f"Installing into {venv}; the first time it fetches up to 6 GB.", flush=True)
    stamp, anew = venv / "patholib.stamp", state(venv, python) == "installing"
    venv.mkdir(exist_ok=True)
    stamp.write_text("installing")  # an interrupted installation starts over
    if anew:
        clear(venv, but=stamp)
        if call([base, "-m", "venv", venv]):
            sys.exit("This Python cannot make a virtual environment; on Debian: apt install python3-venv")
    # Without its pyvenv.cfg the link in bin is the system's interpreter, which is not ours to install into.
    if call([python, "-c", "import sys; sys.exit(sys.prefix == sys.base_prefix)"]):
        sys.exit(f"{python} is not the interpreter of a virtual environment; delete {venv} and call again")
    pip = [python, "-m", "pip", "--require-virtualenv", "install", "--quiet", "--disable-pip-version-check"]
    # Compiled once here, as pip does by itself: else, where nothing may be written later, every process compiles anew.
    uv = [python, "-m", "uv", "pip", "install", "--compile-bytecode", "--python", python]
    uv += ["--resolution", "lowest-direct"] if oldest else []
    uv += ["--reinstall-package", "torch", "--reinstall-package", "torchvision"] if build else []
    with_uv, done = not call([*pip, "uv"]), False
    if with_uv and not oldest and build != "gpu" and (build or (sys.platform == "linux" and not has_nvidia())):
        done = not call([*uv, "--torch-backend", "cpu", "-e", what], stderr=subprocess.DEVNULL)
        if not done:
            print("PyTorch's CPU build cannot be had here; taking the ordinary one, which is larger.", flush=True)
    with_uv = done or (with_uv and not call([*uv, "-e", what]))
    if not with_uv and (oldest or call([*pip, "-e", what])):  # uv is quicker, but knows nothing of pip's configuration
        sys.exit(
            "The installation failed: see above. Without a network, set PATHOLIB_PYTHON to an interpreter that "
            "has the packages of pyproject.toml."
        )


@contextlib.contextmanager
def alone(venv):
    """Waits until no other process installs into the environment; the lock of one that was killed is gone with it."""
    path = venv.with_name(f"{venv.name}.install.lock")  # beside the folder, which may be emptied
    lock = sqlite3.connect(path, timeout=0, isolation_level=None)  # a lock of every Python, with nothing installed
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError:
        print(f"Another process is installing into {venv}; waiting for it", flush=True)
        lock.execute(f"PRAGMA busy_timeout = {10**9}")
        lock.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        lock.close()


def clear(folder, but):
    """Empties a folder of ours; the stamp stays, so that an interruption in between is known as one."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path != but:
            path.unlink()


def call(command, **options):
    """Runs a command on the terminal; its exit code."""
    return subprocess.run([str(c) for c in command], **options).returncode


RUNNING = []  # what `follow` has started


def stop(*_):
    """Passes SIGTERM on: what was started saves what it has, and this process ends when it has ended."""
    for process in RUNNING:
        process.terminate()
    if not RUNNING:
        sys.exit(128 + signal.SIGTERM)


def follow(command, shown, **options):
    """Runs a command, hands each line of its output to `shown`, and gives its exit code."""
    process = subprocess.Popen(
        [str(c) for c in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        **options,
    )
    RUNNING.append(process)
    try:
        for line in process.stdout:
            shown(line.rstrip("\n"))
        code = process.wait()
    except KeyboardInterrupt:  # the terminal has told the child as well; its kernel needs a moment
        process.wait()
        raise
    finally:
        RUNNING.remove(process)
        process.stdout.close()
    return 128 - code if code < 0 else code


# --- train ---


class Transcript:
    """Prints what a notebook prints, and of an error only what a person can use."""

    def __init__(self, quiet=False):
        self.quiet, self.tail = quiet, []

    def __call__(self, line):
        if self.tail or line == "Traceback (most recent call last):":
            self.tail.append(line)
        elif not self.quiet and not NOISE.match(line):
            print(line, flush=True)

    def error(self):
        """One line for a refusal of the library, the notebook's traceback for anything else."""
        text = "\n".join(self.tail)
        where, _, what = text.partition("Exception encountered at ")[2].partition("\n")
        if re.match(r"\w+Error \[\w+\] ", what):
            return what.strip()
        if not what and "Kernel died" in text:
            return "The kernel was killed, perhaps for want of memory. What was saved is kept: the same call resumes"
        return f"Stopped at {where}\n{what.strip()}" if what else text


# What `run.py train --help` shows: the parameters of the notebook, with defaults and meanings.
PARAMETERS = """
import sys
from patholib.lab import notebook
print("usage: python3 run.py train [NOTEBOOK] [-p NAME VALUE] ...", "", sep="\\n")
print(notebook.Settings(notebook.declared(sys.argv[1])))
"""


def train(arguments):
    """Runs one notebook; papermill's exit code."""
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "breakhis"
    notebook = find(name)
    python = environment()
    if {"-h", "--help"} & set(arguments):
        return call([python, "-c", PARAMETERS, notebook])
    outputs = Path(os.environ.get("PATHOLIB_OUTPUTS") or ROOT / "outputs")
    outputs.mkdir(parents=True, exist_ok=True)
    executed = outputs / f"{time.strftime('%Y%m%d-%H%M%S')}-{label(notebook)}.ipynb"
    before = remembered(outputs)
    transcript = Transcript()
    code = follow(
        papermill(python, notebook, executed, "--cwd", ROOT, *arguments),
        transcript,
        env={**os.environ, "TQDM_DISABLE": "1"},
    )
    if code or transcript.tail:
        print(transcript.error(), file=sys.stderr)
    if executed.exists():
        print(f"Notebook: {shown_path(executed)}")
    latest = remembered(outputs)
    if latest and latest != before:
        run_dir = run_folder(outputs)
        report = run_dir / "report.html"
        print(f"Report: {shown_path(report)}" if report.exists() else f"Run folder: {shown_path(run_dir)}")
    return code


def papermill(python, notebook, executed, *arguments):
    return [
        python,
        "-m",
        "papermill",
        *(str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, executed)),  # else it fills braces
        "-k",
        "python3",
        "--log-output",
        "--no-progress-bar",
        *arguments,
    ]


def find(name):
    """The notebook of a short name or a path."""
    for path in (NOTEBOOKS / name / "train.ipynb", NOTEBOOKS / f"{name}.ipynb", Path(name)):
        if path.suffix == ".ipynb" and path.is_file():
            return path.resolve()
    known = sorted(short for path in committed() for short in [label(path).removesuffix("-train")])
    close = difflib.get_close_matches(name, known, n=1)
    sys.exit(f"{name} is no notebook; " + (f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"))


def committed():
    """The notebooks of the project."""
    return sorted(p for p in NOTEBOOKS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def label(notebook):
    """breakhis-train for notebooks/breakhis/train.ipynb."""
    inside = notebook.is_relative_to(NOTEBOOKS)
    return "-".join(notebook.relative_to(NOTEBOOKS).with_suffix("").parts) if inside else notebook.stem


def remembered(outputs):
    """When the library last noted a run folder; None: never."""
    latest = outputs / "latest.json"
    return latest.stat().st_mtime_ns if latest.exists() else None


def run_folder(outputs):
    """The run folder that the library noted last."""
    return Path(json.loads((outputs / "latest.json").read_text(encoding="utf-8"))["run_dir"])


def shown_path(path):
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


# --- test ---


def test(arguments):
    """Every check, in the order of what fails soonest; 1 if any failed or a step tested nothing."""
    python = environment()
    with tempfile.TemporaryDirectory(prefix="patholib-") as folder:
        known = steps(python, Path(folder))
        if arguments[:1] == ["--only"]:
            return judged(chosen(known, arguments[1:]))
        if arguments == ["--fast"]:
            quick = [python, "-m", "pytest", *ONE_MORE, "-m", FAST, "tests"]
            known = chosen(known, ["ruff", "format", "types"]) | {"tests": ("tests", pytest_step, quick, ONE_THREAD)}
        elif arguments:
            known = {"tests": ("tests", pytest_step, [python, "-m", "pytest", *arguments], {})}
        return judged(known)


def chosen(known, names):
    """The steps of these names, separated by spaces or commas, in their own order."""
    names = {name for text in names for name in text.split(",") if name}
    if not names or names - known.keys():
        what = ", ".join(sorted(names - known.keys()))
        sys.exit((f"{what}: no such step; " if what else "") + f"the steps are {', '.join(known)}")
    needed = names | {"breakhis"} if "killed" in names else names  # which is compared with the run that was not
    return {name: step for name, step in known.items() if name in needed}


# Steps that use one thread and measure nothing: one row of them beside the other, after all else.
LANES = (("types", "breakhis", "killed"), ("isic2019", "refusal", "lowest"))


def judged(chosen):
    """Runs the steps, those of LANES two at a time, and prints what came of each; 1 if any failed."""
    lanes = [[chosen[name] for name in lane if name in chosen] for lane in LANES]
    results = [step(*s) for name, s in chosen.items() if not any(name in lane for lane in LANES)]
    with concurrent.futures.ThreadPoolExecutor(len(LANES)) as pool:
        for found in pool.map(lambda lane: [step(*s) for s in lane], lanes):
            results += found
    print(f"\n{'step':<44}{'seconds':>8}  result")
    for name, seconds, counts in results:
        print(f"{name:<44}{seconds:>8.1f}  " + ", ".join(f"{n} {what}" for what, n in counts.items()))
    total = {what: sum(counts.get(what, 0) for _, _, counts in results) for what in ("passed", "failed", "skipped")}
    print(", ".join(f"{n} {what}" for what, n in total.items()))
    return 1 if total["failed"] else 0


# Files beside each other, one thread each: small pictures keep no two threads busy. Notebooks compute all the time;
# tests wait a third of theirs, for servers and other processes, so one more of them than there are cores is at work.
CORES = os.cpu_count() or 1
BESIDE, ONE_MORE = (["-n", str(min(count, 4)), "--dist", "loadfile"] for count in (CORES, CORES + 1))
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
FAST = "not slow and not alone and not heavy"
NO_ADVICE = {"NO_MKDOCS_2_WARNING": "1"}  # mkdocs-material prints a page about a later version
SMALL = ("-p", "epochs", "3", "-p", "image_size", "32", "-p", "batch_size", "16")


def steps(python, folder):
    """What is tested, by name: title, how it is judged, the command, and its environment beyond the common one."""
    outside = {"PATHOLIB_OUTPUTS": str(folder / "outputs")}  # trial runs are no runs of the user's
    nbval = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout", "600"]

    def trial(name, place, *parameters):
        return trial_run(python, name, folder / place, *parameters)

    found = {
        "ruff": ("ruff check", code_step, [python, "-m", "ruff", "check", ROOT], {}),
        "format": ("ruff format", code_step, [python, "-m", "ruff", "format", "--check", ROOT], {}),
        "types": ("mypy", code_step, [python, "-m", "mypy", "patholib"], {}),
        "docs": ("documentation", code_step, site(python, folder / "site"), NO_ADVICE),
        "tests": (
            "tests",
            pytest_step,
            [python, "-m", "pytest", *ONE_MORE, "-m", "not slow and not alone", "tests"],
            ONE_THREAD,
        ),
        "alone": (
            "tests that time something",
            pytest_step,
            [python, "-m", "pytest", "-m", "alone and not slow", "tests"],
            {},
        ),
        "notebooks": (
            "notebooks as committed (nbval)",
            pytest_step,
            [python, "-m", "pytest", *BESIDE, *nbval, "notebooks"],
            outside | ONE_THREAD,
        ),
        "isic2019": (
            "papermill isic2019 -p epochs 1, elsewhere",
            run_step,
            *trial("isic2019", "isic2019", "-p", "epochs", "1"),
        ),
        "breakhis": ("papermill breakhis -p epochs 3, elsewhere", run_step, *trial("breakhis", "breakhis", *SMALL)),
        "killed": (
            "the same, killed and started again",
            functools.partial(killed_step, folder / "breakhis" / "outputs"),
            *trial("breakhis", "killed", *SMALL),
        ),
        "refusal": (
            "papermill -p epoch 1 is refused",
            refusal_step,
            papermill(python, NOTEBOOKS / "breakhis" / "train.ipynb", folder / "out.ipynb", "-p", "epoch", "1"),
            outside | ONE_THREAD,
        ),
        "lowest": (
            "two sessions on Kaggle, oldest packages",
            lowest_step,
            [python, ROOT / "tests" / "kaggle.py", folder / "lowest"],
            ONE_THREAD,
        ),
    }
    if os.name != "posix":  # Windows has no SIGKILL
        del found["killed"]
    return found


def site(python, folder):
    """The command that builds the documentation as a site."""
    return [python, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", folder]


def trial_run(python, name, place, *parameters):
    """The command of a headless run in the folder `place`, and its environment."""
    return (
        papermill(python, NOTEBOOKS / name / "train.ipynb", place / "out.ipynb", *parameters),
        {"PATHOLIB_OUTPUTS": str(place / "outputs"), **ONE_THREAD},
    )


# Every module is imported, with whatever it imports; and what that is.
IMPORTS = """
import importlib, pkgutil, re
from importlib import metadata
import patholib
names = [m.name for m in pkgutil.walk_packages(patholib.__path__, "patholib.") if not m.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
needed = [re.match(r"[\\w-]+", line)[0] for line in metadata.requires("patholib") if "extra ==" not in line]
print(f"{len(names)} modules, with", ", ".join(f"{name} {metadata.version(name)}" for name in sorted(needed)))
"""


def lowest(arguments):
    """Imports, unit tests and a headless run, with the oldest packages; 1 if any failed."""
    python = lowest_environment()
    with tempfile.TemporaryDirectory(prefix="patholib-") as folder:
        known = {
            "imports": ("every module is imported", code_step, [python, "-c", IMPORTS], {}),
            "breakhis": (
                "papermill breakhis -p epochs 3, elsewhere",
                run_step,
                *trial_run(python, "breakhis", Path(folder, "breakhis"), *SMALL),
            ),
            "tests": (
                "tests",
                pytest_step,
                [python, "-m", "pytest", *ONE_MORE, "-W", "default", "-m", "not slow and not alone", "tests"],
                ONE_THREAD,
            ),
        }
        return judged(chosen(known, arguments[1:]) if arguments[:1] == ["--only"] else known)


def lowest_step(command, env):
    """Kaggle, played with the oldest packages; their environment is made where it is not there."""
    try:
        python = lowest_environment()
    except SystemExit as error:
        print(error)
        return {"failed": 1}
    return code_step([*command, python], env)


def step(name, judge, command, extra):
    """Runs one step: its name, seconds and counts such as {"passed": 12}."""
    print(f"\n--- {name}", flush=True)
    quiet = {
        "MPLBACKEND": "Agg",
        "OMP_WAIT_POLICY": "passive",
        "TQDM_DISABLE": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    start = time.monotonic()
    counts = judge(command, {**os.environ, **quiet, "PATHOLIB_DATA": "demo", **extra})
    return name, time.monotonic() - start, counts


def code_step(command, env):
    return {"passed": 1} if call(command, cwd=ROOT, env=env) == 0 else {"failed": 1}


def pytest_step(command, env):
    """The counts of pytest's last line; a run that tested nothing has failed, whatever it says."""
    last = []

    def shown(line):
        print(line, flush=True)
        if re.search(r" in [\d.]+s", line):
            last[:] = [line]

    code = follow(command, shown, cwd=ROOT, env=env)
    counts = {}
    for n, what in COUNTS.findall("".join(last)):
        what = "failed" if what == "error" else what
        counts[what] = counts.get(what, 0) + int(n)
    if not counts.get("failed") and (code or not counts.get("passed")):
        print(f"exit code {code}, and not one test passed" if not code else f"pytest ended with exit code {code}")
        counts["failed"] = 1
    return counts


def run_step(command, env):
    """A headless run from a foreign working folder, which must leave a finished run folder with its report."""
    outputs = Path(env["PATHOLIB_OUTPUTS"])
    outputs.parent.mkdir(parents=True)
    transcript = Transcript(quiet=True)
    code = follow(command, transcript, cwd=outputs.parent, env=env)
    run_dir = run_folder(outputs) if (outputs / "latest.json").exists() else outputs
    keep(outputs.parent.name, [*outputs.parent.glob("*.ipynb"), *run_dir.glob("*.html"), *run_dir.glob("*.jsonl")])
    if code:
        print(transcript.error())
        return {"failed": 1}
    missing = [name for name in ("metrics.json", "report.html") if not (run_dir / name).exists()]
    print(f"the run folder lacks {', '.join(missing)}" if missing else "the run folder is complete")
    return {"failed": 1} if missing else {"passed": 1}


def keep(name, paths):
    """Copies what is worth a look into a folder of that name in PATHOLIB_KEEP, where one is set."""
    if os.environ.get("PATHOLIB_KEEP"):
        folder = Path(os.environ["PATHOLIB_KEEP"]).absolute() / name
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            shutil.copyfile(path, folder / path.name)


def killed_step(peaceful, command, env):
    """The run whose outputs are `peaceful`, killed after its first checkpoint and started again, must end as it did."""
    try:
        expected = (run_folder(peaceful) / "metrics.json").read_bytes()
        epoch = json.loads((run_folder(peaceful) / "history.json").read_text(encoding="utf-8"))[1]["seconds"]
    except OSError:
        print("there is no finished run to compare with")
        return {"failed": 1}
    outputs = Path(env["PATHOLIB_OUTPUTS"])
    outputs.parent.mkdir(parents=True)
    process = subprocess.Popen(
        [str(c) for c in command],
        cwd=outputs.parent,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    kernel = None
    try:
        while process.poll() is None and not any(outputs.glob("*/checkpoints/last-*.pt")):
            time.sleep(0.05)
        time.sleep(random.uniform(0, epoch))
        if process.poll() is None:
            held = (run_folder(outputs) / "run.holder.lock").read_text(encoding="utf-8")
            kernel = int(re.match(r"process (\d+)", held)[1])
    finally:
        process.kill()  # first: what it sees it cannot answer any more
        if kernel:
            os.kill(kernel, signal.SIGKILL)
        process.wait()
    if not kernel:
        print("it ended before it was killed")
        return {"failed": 1}
    lines = []
    code = follow(command, lines.append, cwd=outputs.parent, env=env)
    resumed = [line for line in lines if line.startswith("resumed")]
    print(*(resumed or lines[-20:]), sep="\n")
    same = not code and (run_folder(outputs) / "metrics.json").read_bytes() == expected
    print(f"metrics.json is {'the same, byte for byte' if same else 'not the same'}")
    return {"passed": 1} if resumed and same else {"failed": 1}


def refusal_step(command, env):
    """papermill itself only warns about a misspelt parameter; the notebook has to stop, and to name the right one."""
    transcript = Transcript(quiet=True)
    code = follow(command, transcript, cwd=ROOT, env=env)
    print(transcript.error() or "not refused")
    refused = code != 0 and "[unknown_parameter]" in transcript.error()
    return {"passed": 1} if refused else {"failed": 1}


# --- the rest ---


def patholib(arguments):
    """The command of the library, from wherever this was called."""
    return call([environment(), "-m", "patholib", *arguments])


def docs(_):
    """The documentation as a site."""
    return call(site(environment(), ROOT / "site"), cwd=ROOT, env={**os.environ, **NO_ADVICE})


def lab(arguments):
    return call([environment(), "-m", "jupyter", "lab", *arguments], cwd=NOTEBOOKS)


# Which weights a recipe begins with; the library knows them, and this file imports nothing that is to be installed.
WEIGHTS = """
import json
from patholib.model import architectures, recipes
chosen = (recipes.BREAKHIS, recipes.ISIC2019)
print(json.dumps([[recipe.name, architectures.NETWORKS[recipe.arch].weights] for recipe in chosen]))
"""

BUNDLE = """# PathoVision without a network

Everything that a notebook needs where packages and weights cannot be downloaded: Kaggle with its internet switched off,
or a computer in a hospital. Made by `python3 run.py wheel`.

| file | SHA-256 |
|---|---|
{listed}

## On Kaggle

1. Make a data set of this folder: on the website (New Dataset, drop the folder), or with the owner's name written into
   `dataset-metadata.json` and `kaggle datasets create -p dist --dir-mode zip`.
2. Import one of `notebooks/` into Kaggle. Attach (Add Input) this data set, and the one with the images.
3. Run it. Kaggle has all libraries that are needed; the first cell of the notebook finds `{wheel}` below
   `/kaggle/input`, installs it alone (`pip install --no-index --no-deps`) and changes none of the others.

## Pretrained weights

A recipe begins with torchvision's ImageNet weights. Fetch the file where there is a network, and put it into `weights/`
of this folder before the data set is made:

| recipe | file | its SHA-256 begins with | from |
|---|---|---|---|
{weights}

On Kaggle and Colab they are found by their names, wherever the data set lies. On a computer of your own, their place is
`data/weights/` of the project, or the folder or file that `PATHOLIB_WEIGHTS` names. A file whose SHA-256 begins
otherwise is refused. Without any, `weights` set to `none` trains from scratch.

## On any other computer

With Python 3.11 or newer and the packages that `{wheel}` names (`pip download` fetches them elsewhere):

```
python -m pip install --no-index --no-deps {wheel}
```
"""


def wheel(_):
    """Builds the library as a wheel and lays beside it what a data set for a place without a network needs."""
    python, dist = environment(), ROOT / "dist"
    found = subprocess.run([python, "-c", WEIGHTS], cwd=ROOT, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="patholib-") as folder:
        # With hatchling at hand nothing is fetched; otherwise pip fetches it, and nothing else.
        isolated = call([python, "-c", "import hatchling"], stderr=subprocess.DEVNULL)
        command = [
            python,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "-w",
            folder,
            *(["--no-build-isolation"] if not isolated else []),
            ROOT,
        ]
        date = os.environ.get("SOURCE_DATE_EPOCH", "1577836800")  # 2020: when it was built is no part of what it is
        if found.returncode or call(command, env={**os.environ, "SOURCE_DATE_EPOCH": date}):
            return 1
        (built,) = Path(folder).glob("*.whl")
        for old in (*dist.glob("patholib-*.whl"), *dist.glob("notebooks")):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        (dist / "weights").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(built, dist / built.name)
    for path in committed():
        target = dist / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    bundled = [dist / built.name, *sorted((dist / "notebooks").rglob("*.ipynb"))]
    listed = [
        f"| `{path.relative_to(dist).as_posix()}` | `{hashlib.sha256(path.read_bytes()).hexdigest()}` |"
        for path in bundled
    ]
    files = [(recipe, url, url.rpartition("/")[2]) for recipe, url in json.loads(found.stdout)]
    weights = [
        f"| {recipe} | `{name}` | `{name.rpartition('-')[2].partition('.')[0]}` | <{url}> |"
        for recipe, url, name in files
    ]
    facts = {
        "title": "PathoVision without a network",
        "id": "OWNER/pathovision-offline",
        "licenses": [{"name": "other"}],
    }  # MIT, for which there is no word there; it stands in the wheel
    for name, text in (
        ("README.md", BUNDLE.format(listed="\n".join(listed), weights="\n".join(weights), wheel=built.name)),
        ("dataset-metadata.json", json.dumps(facts, indent=1) + "\n"),
    ):
        (dist / name).write_text(text, encoding="utf-8", newline="\n")
    print(f"{shown_path(dist)}: {built.name} and {len(bundled) - 1} notebooks; README.md says what to attach where")
    return 0


def setup(arguments):
    """Makes the environment; --cpu or --gpu replaces the build of PyTorch that is in it."""
    builds = {(): None, ("--cpu",): "cpu", ("--gpu",): "gpu"}
    if tuple(arguments) not in builds:
        print("python3 run.py setup takes --cpu, --gpu or nothing", file=sys.stderr)
        return 2
    build = builds[tuple(arguments)]
    if build and os.environ.get("PATHOLIB_PYTHON"):
        print("PATHOLIB_PYTHON names an interpreter that run.py does not install into", file=sys.stderr)
        return 2
    python = installed(VENV, sys.executable, EXTRAS, build=build) if build else environment()
    print(f"The environment is ready: {python}")
    return 0


def bench(arguments):
    """Runs the benchmarks of these names, by default all that need no data and no GPU; 1 where any failed or missed."""
    known = {
        path.stem.removeprefix("speed_"): path
        for path in sorted((ROOT / "benchmarks").glob("*.py"))
        if path.stem.startswith("speed_") or path.stem in NAMED_ONLY
    }
    names = [a for a in arguments if not a.startswith("-")] or [name for name in known if name not in NAMED_ONLY]
    for name in names:
        if name not in known:
            sys.exit(f"{name} is no benchmark; there are {', '.join(known)}")
    python, env, codes = environment(), {**os.environ, "OMP_WAIT_POLICY": "passive", "TQDM_DISABLE": "1"}, {}
    for name in names:
        print(f"\n--- {name}", flush=True)
        codes[name] = call([python, known[name], *(a for a in arguments if a.startswith("-"))], cwd=ROOT, env=env)
    print()
    for name, code in codes.items():
        print(f"{name:<20}{'failed, or missed a mark' if code else 'done'}")
    return int(any(codes.values()))


def notebooks(arguments):
    """Executes the committed notebooks in place, records their reference numbers, and strips what only makes diffs."""
    python = environment()
    failed, done = [], []
    with tempfile.TemporaryDirectory(prefix="patholib-") as folder:
        env = {
            **os.environ,
            "PATHOLIB_DATA": "demo",
            "PATHOLIB_RECORD": "1",
            "TQDM_DISABLE": "1",
            "OMP_WAIT_POLICY": "passive",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            "OMP_NUM_THREADS": "1",
        }  # as under nbval: another number of threads ends with other last digits
        for path in [find(name) for name in arguments] or committed():
            start = time.monotonic()
            transcript = Transcript(quiet=True)
            code = follow(
                [
                    python,
                    "-m",
                    "nbconvert",
                    "--to",
                    "notebook",
                    "--execute",
                    "--inplace",
                    path,
                    "--ExecutePreprocessor.kernel_name=python3",
                    "--ExecutePreprocessor.record_timing=False",
                    "--ExecutePreprocessor.store_widget_state=False",
                    "--ExecutePreprocessor.timeout=1200",
                ],
                transcript,
                env={**env, "PATHOLIB_OUTPUTS": str(Path(folder, label(path)))},
            )
            if code:
                failed.append(path)
                print("\n".join(transcript.tail), file=sys.stderr)
            else:
                path.write_text(cleaned(path.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
                done.append(path)
            print(f"{path.relative_to(ROOT)}: {'failed' if code else 'executed'} in {time.monotonic() - start:.0f} s")
    return 1 if failed or call([python, ROOT / "docs" / "make.py", "notebook", *done]) else 0


def cleaned(text):
    """A notebook without what changes from run to run or from machine to machine: timings, widget states, versions."""
    notebook = json.loads(text)
    notebook["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {  # all that nbconvert, GitHub and editors ask for, but for the version
            "name": "python",
            "file_extension": ".py",
            "mimetype": "text/x-python",
            "nbconvert_exporter": "python",
            "pygments_lexer": "ipython3",
        },
    }
    for cell in notebook["cells"]:
        cell["metadata"] = {k: v for k, v in cell["metadata"].items() if k == "tags"}
        merged = []
        for output in cell.get("outputs", []):
            before = merged[-1] if merged else {}
            if output["output_type"] == "stream" == before.get("output_type") and output["name"] == before["name"]:
                before["text"] = [*before["text"], *output["text"]]  # where a stream is cut is chance
            else:
                merged.append(output)
            if "metadata" in output:
                output["metadata"] = {}
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)  # a view of what is gone
        if "outputs" in cell:
            for output in merged:
                if output["output_type"] == "stream":
                    output["text"] = "".join(output["text"]).splitlines(keepends=True)
            cell["outputs"] = merged
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    sys.exit(main(sys.argv[1:]))
