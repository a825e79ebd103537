#!/usr/bin/env python3
"""PathoVision from the command line; needs Python 3.11 or newer and nothing else.

  python3 run.py train [NOTEBOOK] [ARGUMENTS]   run a notebook headless with papermill: breakhis (the default),
                                                isic2019, quickstart or a path; e.g. -p epochs 35 -p data data/mine
  python3 run.py test [ARGUMENTS]               every check; with arguments only pytest, which gets them
  python3 run.py lab [ARGUMENTS]                open the notebooks in JupyterLab
  python3 run.py notebooks [NAMES]              execute the committed notebooks in place, on demo images
  python3 run.py bench [NAMES] [--quick]        time the library beside its rivals, one benchmark after another, and
                                                write benchmarks/RESULTS.md; --quick: tiny, writes nothing
  python3 run.py setup                          only make the environment

The first call installs everything into .venv beside this file (6 GB); a changed pyproject.toml installs again.
PATHOLIB_PYTHON names an interpreter that has everything already (conda, for instance); then no .venv is made.
Relative paths among the parameters of a notebook count from the folder of this file.
"""

import difflib
import functools
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
NOTEBOOKS = ROOT / "notebooks"
VENV = ROOT / ".venv"
EXTRAS = "notebooks,onnx,serve,cluster,browser,test,dev"

# What papermill and the kernel log around the notebook's own output, progress bars, and objects that have no text.
NOISE = re.compile(r"\s*$|(Executing|Ending) Cell|(Input|Output) Notebook:|Working directory:|Executing notebook with "
                   r"|Passed unknown parameter|\[IPKernelApp\]|\s*\d+%\||<[\w. ]+[^<>]*>$")
COUNTS = re.compile(r"(\d+) (passed|failed|error|skipped|xfailed|xpassed|deselected)")


def main(arguments):
    if sys.version_info < (3, 11):  # noqa: UP036 - said here, before anything an older Python lacks is called
        newer = next(filter(shutil.which, ("python3.13", "python3.12", "python3.11")), "python3.12")
        print(f"PathoVision needs Python 3.11 or newer; this is {sys.version.split()[0]} ({sys.executable}). "
              f"Try: {newer} run.py {' '.join(arguments)}", file=sys.stderr)
        return 1
    commands = {"train": train, "test": test, "lab": lab, "notebooks": notebooks, "bench": bench, "setup": setup}
    if not arguments or arguments[0] not in commands:
        print(__doc__)
        return 0 if arguments and arguments[0] in ("-h", "--help", "help") else 2
    try:
        return commands[arguments[0]](arguments[1:])
    except KeyboardInterrupt:
        return 130


# --- the environment ---

def environment():
    """The interpreter that has everything installed; installs it first where the stamp is not that of today."""
    if os.environ.get("PATHOLIB_PYTHON"):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return os.environ["PATHOLIB_PYTHON"]
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = VENV / "patholib.stamp"
    # The folder counts too: a copied .venv would run the code of the place it was copied from.
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + str(ROOT).encode()).hexdigest()
    if VENV.exists() and not stamp.exists() and any(VENV.iterdir()):
        sys.exit(f"{VENV} was not made by run.py, which leaves it alone. Move it away, or set PATHOLIB_PYTHON to an "
                 "interpreter that has the packages of pyproject.toml.")
    found = stamp.read_text() if stamp.exists() else "installing"
    whole = python.exists() and (VENV / "pyvenv.cfg").exists()
    if found == wanted and whole:
        return str(python)
    print(f"Installing into {VENV}; the first time it fetches several GB.", flush=True)
    VENV.mkdir(exist_ok=True)
    stamp.write_text("installing")  # an interrupted installation starts over
    if found == "installing" or not whole:
        clear(VENV, but=stamp)
        if call([sys.executable, "-m", "venv", VENV]):
            sys.exit("This Python cannot make a virtual environment; on Debian: apt install python3-venv")
    # Without its pyvenv.cfg the link in bin is the system's interpreter, which is not ours to install into.
    if call([python, "-c", "import sys; sys.exit(sys.prefix == sys.base_prefix)"]):
        sys.exit(f"{python} is not the interpreter of a virtual environment; delete {VENV} and call again")
    what = ["-e", f"{ROOT}[{EXTRAS}]"]
    pip = [python, "-m", "pip", "--require-virtualenv", "install", "--quiet", "--disable-pip-version-check"]
    with_uv = not call([*pip, "uv"]) and not call([python, "-m", "uv", "pip", "install", "--python", python, *what])
    if not with_uv and call([*pip, *what]):  # uv is five times quicker, but knows nothing of pip's configuration
        sys.exit("The installation failed: see above. Without a network, set PATHOLIB_PYTHON to an interpreter that "
                 "has the packages of pyproject.toml.")
    stamp.write_text(wanted)
    return str(python)


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


def follow(command, shown, **options):
    """Runs a command, hands each line of its output to `shown`, and gives its exit code."""
    process = subprocess.Popen([str(c) for c in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace", **options)
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        for line in process.stdout:
            shown(line.rstrip("\n"))
        code = process.wait()
    except KeyboardInterrupt:  # the terminal has told the child as well; its kernel needs a moment
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
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
        if what.startswith("PathoError"):
            return what.strip()
        return f"Stopped at {where}\n{what.strip()}" if what else text


def train(arguments):
    """Runs one notebook; papermill's exit code."""
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "breakhis"
    notebook = find(name)
    python = environment()
    outputs = Path(os.environ.get("PATHOLIB_OUTPUTS") or ROOT / "outputs")
    outputs.mkdir(parents=True, exist_ok=True)
    executed = outputs / f"{time.strftime('%Y%m%d-%H%M%S')}-{label(notebook)}.ipynb"
    before = remembered(outputs)
    transcript = Transcript()
    code = follow(papermill(python, notebook, executed, "--cwd", ROOT, *arguments), transcript,
                  env={**os.environ, "TQDM_DISABLE": "1"})
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
    return [python, "-m", "papermill", notebook, executed, "-k", "python3", "--log-output", "--no-progress-bar",
            *arguments]


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
        results = [step(*s) for s in (steps(python, Path(folder)) if not arguments else
                                      [("tests", pytest_step, [python, "-m", "pytest", *arguments], {})])]
    print(f"\n{'step':<44}{'seconds':>8}  result")
    for name, seconds, counts in results:
        print(f"{name:<44}{seconds:>8.1f}  " + ", ".join(f"{n} {what}" for what, n in counts.items()))
    total = {what: sum(counts.get(what, 0) for _, _, counts in results) for what in ("passed", "failed", "skipped")}
    print(", ".join(f"{n} {what}" for what, n in total.items()))
    return 1 if total["failed"] else 0


def steps(python, folder):
    """What is tested: name, how it is judged, the command, and its environment beyond the common one."""
    outside = {"PATHOLIB_OUTPUTS": str(folder / "outputs")}  # trial runs are no runs of the user's
    nbval = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout", "600"]
    # Files beside each other, one thread each: small pictures keep no two threads busy.
    beside = ["-n", str(min(os.cpu_count() or 1, 4)), "--dist", "loadfile"]
    one = {"OMP_NUM_THREADS": "1"}
    small = ("-p", "epochs", "3", "-p", "image_size", "32", "-p", "batch_size", "16")

    def trial(name, place, *parameters):
        return (papermill(python, NOTEBOOKS / name / "train.ipynb", folder / place / "out.ipynb", *parameters),
                {"PATHOLIB_OUTPUTS": str(folder / place / "outputs")})

    return [
        ("ruff", code_step, [python, "-m", "ruff", "check", ROOT], {}),
        ("tests", pytest_step, [python, "-m", "pytest", *beside, "-m", "not slow and not alone", "tests"], one),
        ("tests that time something", pytest_step, [python, "-m", "pytest", "-m", "alone and not slow", "tests"], {}),
        ("notebooks as committed (nbval)", pytest_step, [python, "-m", "pytest", *beside, *nbval, "notebooks"],
         outside | one),
        ("papermill isic2019 -p epochs 1, elsewhere", run_step, *trial("isic2019", "isic2019", "-p", "epochs", "1")),
        ("papermill breakhis -p epochs 3, elsewhere", run_step, *trial("breakhis", "breakhis", *small)),
        *[("the same, killed and started again", functools.partial(killed_step, folder / "breakhis" / "outputs"),
           *trial("breakhis", "killed", *small))] * (os.name == "posix"),  # Windows has no SIGKILL
        ("papermill -p epoch 1 is refused", refusal_step,
         papermill(python, NOTEBOOKS / "breakhis" / "train.ipynb", folder / "out.ipynb", "-p", "epoch", "1"), outside),
    ]


def step(name, judge, command, extra):
    """Runs one step: its name, seconds and counts such as {"passed": 12}."""
    print(f"\n--- {name}", flush=True)
    quiet = {"MPLBACKEND": "Agg", "OMP_WAIT_POLICY": "passive", "TQDM_DISABLE": "1",
             "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
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
    if code:
        print(transcript.error())
        return {"failed": 1}
    run_dir = run_folder(outputs) if (outputs / "latest.json").exists() else outputs
    missing = [name for name in ("metrics.json", "report.html") if not (run_dir / name).exists()]
    print(f"the run folder lacks {', '.join(missing)}" if missing else "the run folder is complete")
    return {"failed": 1} if missing else {"passed": 1}


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
    process = subprocess.Popen([str(c) for c in command], cwd=outputs.parent, env=env, stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kernel = None
    try:
        while process.poll() is None and not any(outputs.glob("*/checkpoints/last-*.pt")):
            time.sleep(0.05)
        time.sleep(random.uniform(0, epoch))
        if process.poll() is None:
            kernel = int(re.match(r"process (\d+)", (run_folder(outputs) / "run.lock").read_text(encoding="utf-8"))[1])
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
    refused = code != 0 and transcript.error().startswith("PathoError [unknown_parameter]")
    return {"passed": 1} if refused else {"failed": 1}


# --- the rest ---

def lab(arguments):
    return call([environment(), "-m", "jupyter", "lab", *arguments], cwd=NOTEBOOKS)


def setup(_):
    print(f"The environment is ready: {environment()}")
    return 0


def bench(arguments):
    """Runs the benchmarks of these names, by default all that need no data and no GPU; 1 where any failed or missed."""
    known = {path.stem.removeprefix("speed_"): path for path in sorted((ROOT / "benchmarks").glob("*.py"))
             if path.stem.startswith("speed_") or path.stem == "gpu"}
    names = [a for a in arguments if not a.startswith("-")] or [name for name in known if name != "gpu"]
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
        env = {**os.environ, "PATHOLIB_DATA": "demo", "PATHOLIB_RECORD": "1", "TQDM_DISABLE": "1",
               "OMP_WAIT_POLICY": "passive", "PYDEVD_DISABLE_FILE_VALIDATION": "1",
               "OMP_NUM_THREADS": "1"}  # as under nbval: another number of threads ends with other last digits
        for path in [find(name) for name in arguments] or committed():
            start = time.monotonic()
            transcript = Transcript(quiet=True)
            code = follow([python, "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace", path,
                           "--ExecutePreprocessor.kernel_name=python3", "--ExecutePreprocessor.record_timing=False",
                           "--ExecutePreprocessor.store_widget_state=False", "--ExecutePreprocessor.timeout=1200"],
                          transcript, env={**env, "PATHOLIB_OUTPUTS": str(Path(folder, label(path)))})
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
        "language_info": {"name": "python"},
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
    sys.exit(main(sys.argv[1:]))
