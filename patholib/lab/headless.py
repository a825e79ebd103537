"""A notebook run by papermill in a process of its own, which ends when its starter ends.

    process = headless.start(Job(notebook, folder, {"epochs": 3}))
    outcome = process.wait()  # {"status": "finished", "reason": "", "seconds": 12.3, "run": "breakhis-20260101-120000"}

The process locks the folder: a second one waits for it, so that a run resumed after a lost machine never meets its
predecessor at work. When its starter ends, in any way, it asks the notebook to save and stop, and ends too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from patholib.base import files, locks, places
from patholib.base.errors import CODES, PathoError

OUTCOME, LOG, LOCK = places.OUTCOME, "log.txt", "sweep.lock"
RUNNING = ("run.lock", "training.lock")  # one of them is held while anything trains in a run folder
REFUSALS = {PathoError.__name__, *(kind.__name__ for kind in CODES)}  # their text alone says what is wrong
GRACE = 30.0  # seconds for a training to finish its step and save
PATIENCE = 180.0  # seconds to wait for a predecessor, which has its grace to save and leave


@dataclass(frozen=True)
class Job:
    """A notebook, the folder that gets its executed copy, log and outcome, and what to run it with."""

    notebook: str
    folder: str
    parameters: dict = field(default_factory=dict)
    outputs: str | None = None  # where its run folder goes; None: the same folder
    cpus: float | None = None  # threads of its computations; None: as the libraries choose
    cwd: str = field(default_factory=os.getcwd)

    @property
    def executed(self) -> Path:
        """The notebook with its outputs."""
        return Path(self.folder, Path(self.notebook).name)


class Process:
    """A job at work."""

    def __init__(self, job: Job, process: subprocess.Popen):
        self._job, self._process = job, process

    def ended(self) -> bool:
        """Whether it is over."""
        return self._process.poll() is not None

    def wait(self) -> dict:
        """The outcome, once it is over; a process that was killed has failed."""
        try:
            code = self._process.wait()
        finally:
            self.stop()
        try:
            return files.read_json(Path(self._job.folder, OUTCOME))
        except PathoError:
            return failed(f"was ended from outside (exit code {code})")

    def stop(self) -> None:
        """Asks it to save and stop, and waits for that."""
        assert self._process.stdin is not None  # a pipe
        self._process.stdin.close()
        self._process.wait()


def start(job: Job) -> Process:
    """Starts the job. Errors: not_shared, where its folder is unknown here."""
    folder = Path(job.folder)
    for place in (folder, Path(job.notebook), Path(job.cwd)):
        if not place.exists():
            raise PathoError(
                "not_shared",
                str(place),
                "is not there on this machine",
                "All machines have to see the "
                "same folders under the same names, as on a network drive: notebooks, data and outputs",
            )
    environment = {name: value for name, value in os.environ.items() if name != "PATHOLIB_RECORD"}
    environment |= {
        "PATHOLIB_OUTPUTS": job.outputs or job.folder,
        "TQDM_DISABLE": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    if job.cpus is not None:
        environment["OMP_NUM_THREADS"] = str(max(1, int(job.cpus)))
    (folder / OUTCOME).unlink(missing_ok=True)
    with (folder / LOG).open("ab") as log:
        process = subprocess.Popen(  # in a group of its own: Ctrl-C is for the starter, who then ends it in order
            [sys.executable, "-m", "patholib.lab.headless", json.dumps(dataclasses.asdict(job))],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            cwd=job.cwd,
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
    return Process(job, process)


def failed(reason: str) -> dict:
    """The outcome of a job that did not finish."""
    return {"status": "failed", "reason": reason, "seconds": None, "run": None}


# ------------------------------------------------------------------------------------------------ inside the process


def main(job: Job) -> None:
    """Runs the job and writes its outcome, unless its starter ends first."""
    stopping = threading.Event()
    threading.Thread(target=_end_with_starter, args=(stopping,), daemon=True).start()
    lock = _alone(Path(job.folder))
    outcome = failed(f"its folder is in use by {locks.holder(Path(job.folder, LOCK))}") if lock is None else _run(job)
    if stopping.is_set():  # what failed now, failed because it was told to stop
        time.sleep(2 * GRACE)
    files.write_json(Path(job.folder, OUTCOME), outcome)


def _end_with_starter(stopping: threading.Event) -> None:
    """Waits until the other end of stdin is closed, then ends the kernel and this process."""
    import psutil  # comes with ipykernel

    while os.read(0, 1):
        continue
    stopping.set()
    inside = psutil.Process().children(recursive=True)
    for process in inside:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    for process in psutil.wait_procs(inside, GRACE)[1]:
        with contextlib.suppress(psutil.Error):
            process.kill()
    os._exit(1)


def _alone(folder: Path) -> locks.Lock | None:
    """The folder's lock, once its predecessor and the runs in it are gone; None where they stay."""
    until, mine = time.monotonic() + PATIENCE, None
    while time.monotonic() < until:
        mine = mine or locks.take(folder / LOCK)
        if mine and all(_free(path) for name in RUNNING for path in folder.glob(f"*/{name}")):
            return mine
        time.sleep(0.2)
    return None


def _free(path: Path) -> bool:
    lock = locks.take(path)
    if lock is not None:
        lock.close()
    return lock is not None


def _run(job: Job) -> dict:
    """Executes the notebook, to its end or its first error."""
    import papermill  # a second
    from papermill.exceptions import PapermillExecutionError

    began = time.monotonic()
    latest = Path(os.environ["PATHOLIB_OUTPUTS"], "latest.json")
    latest.unlink(missing_ok=True)  # else an earlier run could be taken for this one's
    try:
        with Path(job.folder, LOG).open("a", encoding="utf-8") as log, _own_kernel():
            papermill.execute_notebook(
                _plain(job.notebook),
                _plain(job.executed),
                job.parameters,
                kernel_name="python3",
                cwd=job.cwd,
                progress_bar=False,
                stdout_file=log,
                stderr_file=log,
            )
    except PapermillExecutionError as error:  # its text is a page
        name = "" if error.ename in REFUSALS else f"{error.ename}: "
        return failed(name + (error.evalue.strip().splitlines() or [""])[0])
    except Exception as error:  # a kernel that died, a notebook that cannot be read: the log has all of it
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        if type(error).__name__ == "DeadKernelError":
            return failed("its kernel was killed, perhaps for want of memory; the same call resumes")
        return failed(f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}")
    run = Path(files.read_json(latest)["run_dir"]).name if latest.exists() else None
    return {"status": "finished", "reason": "", "seconds": round(time.monotonic() - began, 1), "run": run}


@contextlib.contextmanager
def _own_kernel() -> Iterator[None]:
    """Makes the kernel python3 this interpreter's, whatever else has this name on this machine."""
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    before = os.environ.get("JUPYTER_PATH")
    with tempfile.TemporaryDirectory(prefix="patholib-") as folder:
        spec = {"argv": command, "display_name": "Python 3", "language": "python"}
        files.write_json(Path(folder, "kernels", "python3", "kernel.json"), spec)
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [folder, before]))
        yield


def _plain(path) -> str:
    """The path as papermill takes it, which puts parameters where it sees braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


if __name__ == "__main__":
    main(Job(**json.loads(sys.argv[1])))
