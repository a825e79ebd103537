"""Many runs of one notebook over a grid of parameters, each in its own folder; the same call resumes them.

    runs = plan(find("breakhis"), {"seed": ["0", "1"], "lr": ["1e-3", "3e-4"]}, {"epochs": "20"})
    print(sweep(find("breakhis"), runs, "outputs/seeds"))

Every value is checked against the notebook's parameters before anything starts. One machine runs them one after
another; with `on=Ray(...)` they are spread over a cluster. `sweep.json` records what is done, and at the end the
finished runs are compared by the project's own notebook.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from patholib.base import cluster, cpu, files, locks
from patholib.base.errors import PathoError, nearest
from patholib.base.progress import bar, say
from patholib.lab import headless, notebook
from patholib.lab.headless import Job
from patholib.train import runs

FORMAT = 1
STATE, LOCK, COMPARED = "sweep.json", "sweep.lock", "compare"
GLANCE = 0.1  # seconds between two looks at the processes of this machine


@dataclass(frozen=True)
class Ray:
    """Runs as tasks of the Ray cluster at `address`, or of a temporary one on this machine."""

    cpus: float = 1  # that each run reserves, and computes with
    gpus: float = 0
    address: str | None = None


@dataclass(frozen=True)
class Here:
    """Runs as processes of this machine, `at_once` at the same time."""

    at_once: int = 1
    cpus: float | None = None  # None: the cores, shared out


@dataclass(frozen=True)
class Swept:
    """The result of a sweep."""

    folder: Path
    finished: tuple[str, ...]
    failed: dict[str, str]  # name: reason in one line
    before: int  # of the finished ones, those that an earlier call had finished
    compared: Path | None  # the executed notebook, where runs could be compared
    remark: str = ""

    def __str__(self) -> str:
        lines = [
            f"{len(self.finished)} of {len(self.finished) + len(self.failed)} runs are finished in {self.folder}"
            + (f", {self.before} of them before" if self.before else "")
        ]
        lines += [f"Failed: {name}: {reason}" for name, reason in self.failed.items()]
        lines += ["The same call tries those again, from where they stopped"] if self.failed else []
        lines += [self.remark] if self.remark else []
        lines += [f"Compared: {self.compared}"] if self.compared else []
        return "\n".join(lines)


def find(name: str) -> Path:
    """The notebook at a path, or of a short name: breakhis, isic2019, compare. Errors: unknown_notebook."""
    places = [files.project_root() / "notebooks", Path(__file__).resolve().parents[2] / "notebooks"]
    short = (folder / tail for folder in places for tail in (f"{name}/train.ipynb", f"{name}.ipynb"))
    for path in (Path(name), *short):
        if path.suffix == ".ipynb" and path.is_file():
            return path.resolve()
    known = {
        path.parent.name if path.stem == "train" else path.stem: path
        for path in places[0].rglob("*.ipynb")
        if ".ipynb_checkpoints" not in path.parts
    }
    raise PathoError(
        "unknown_notebook", name, "is no notebook", nearest(name, known) if known else "Name the path of an .ipynb file"
    )


# ---------------------------------------------------------------------------------------------------------- planning


def plan(
    path: Path,
    grid: Mapping[str, Sequence],
    common: Mapping[str, object] | None = None,
    listed: Sequence[Mapping] = ({},),
    here: bool = True,
) -> dict[str, dict]:
    """The parameters of each run by its name: every combination of the grid with every listed run, all checked.

    common: parameters of all runs. Values may be text, as on a command line. The names say what sets the runs apart.
    here: see `notebook.check_given`. Errors: unknown_parameter, bad_parameter (also one that is set twice).
    """
    declared, common = notebook.declared(path), common or {}
    twice = [name for name in grid if name in common or any(name in run for run in listed)]
    twice += [name for name in common if any(name in run for run in listed)]
    if twice:
        raise PathoError("bad_parameter", ", ".join(twice), "is set in two ways", "Set it once")
    found: dict[str, dict] = {}
    for run in listed:
        for values in itertools.product(*grid.values()):
            own = dict(run) | dict(zip(grid, values, strict=True))
            checked = notebook.check_given(declared, dict(common) | own, here)
            if "output" in checked:
                reason = "cannot be set: each run of a sweep has a folder of its own"
                raise PathoError("bad_parameter", "output", reason, "Leave it away; --out is for all")
            name = _name({key: checked[key] for key in own})
            if name in found:
                raise PathoError("bad_parameter", name.replace("_", ", "), "stands for two runs", "Name each run once")
            found[name] = checked
    return found


def _name(own: dict) -> str:
    """A folder's name that any system takes: `seed-0_lr-0.001`; long or odd values end in a digest."""
    text = "_".join(f"{key}-{value}" for key, value in own.items()) or "run-0"
    plain = re.sub(r"[^\w.+-]+", "-", text, flags=re.ASCII)[:80].rstrip(".")
    return plain if plain == text else f"{plain}-{files.digest(own)[:8]}"


def read_list(path: Path) -> list[dict]:
    """Runs from a JSON file: a list of objects {parameter: value}. Errors: missing_file, bad_json, bad_runs."""
    found = files.read_json(path)
    if not (isinstance(found, list) and found and all(isinstance(run, dict) for run in found)):
        raise PathoError("bad_runs", str(path), "is no list of runs", 'Write [{"seed": 0, "lr": 0.001}, {"seed": 1}]')
    return found


# ----------------------------------------------------------------------------------------------------------- running


def sweep(
    path: Path, planned: Mapping[str, dict], out: Path, on: Here | Ray | None = None, progress: bool = True
) -> Swept:
    """Runs what is planned and not finished yet, each in `out/<name>`, and compares all that is finished.

    A run that fails does not stop the others. Called again, finished runs are kept and the rest resume from their last
    checkpoint. Errors: other_sweep, run_locked, output_unwritable; no_engine, bad_parameter of the cluster.
    """
    out = runs.output_folder(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = locks.take(out / LOCK)
    except OSError as error:
        raise files.unwritable(out, error) from error
    if lock is None:
        raise PathoError("run_locked", str(out), f"is in use by {locks.holder(out / LOCK)}", "Wait until it ends")
    try:
        state = taken_up(out, path, planned)
        before = [name for name in planned if state["runs"][name]["status"] == "finished"]
        todo = [name for name in planned if name not in before]
        run(out, state, [job(path, out, name, planned[name]) for name in todo], on or Here(), progress, len(before))
        entries = {name: state["runs"][name] for name in planned}
        compared, remark = _compare(out, state)
    finally:
        lock.close()
    return Swept(
        out,
        tuple(name for name, run in entries.items() if run["status"] == "finished"),
        {name: run["reason"] for name, run in entries.items() if run["status"] == "failed"},
        len(before),
        compared,
        remark,
    )


def taken_up(out: Path, path: Path, planned: Mapping[str, dict]) -> dict:
    """What `sweep.json` says, with the planned runs in it and what finished unseen. Errors: other_sweep."""
    code = files.digest(
        ["".join(cell["source"]) for cell in files.read_json(path)["cells"] if cell["cell_type"] == "code"]
    )
    state: dict[str, Any] = {"format": FORMAT, "notebook": path.name, "code_sha256": code, "runs": {}}
    if (out / STATE).exists():
        known = files.read_json(out / STATE)
        if (known.get("format"), known.get("code_sha256")) != (FORMAT, code):
            raise PathoError(
                "other_sweep", str(out), f"holds runs of {known.get('notebook')} with other code", "Name another folder"
            )
        state["runs"] = known["runs"]
    for name, parameters in planned.items():
        entry = state["runs"].setdefault(name, {"parameters": parameters} | headless.failed("") | {"status": "planned"})
        if entry["parameters"] != parameters:
            raise PathoError(
                "other_sweep",
                str(out / name),
                f"was run with {entry['parameters']} instead of {parameters}",
                "Name another folder",
            )
        outcome = out / name / headless.OUTCOME
        if entry["status"] != "finished" and outcome.exists():  # who waited for it was gone
            entry |= files.read_json(outcome)
    files.write_json(out / STATE, state)
    return state


def job(path: Path, out: Path, name: str, parameters: dict) -> Job:
    """What is to be run for this name, in a folder that is made here."""
    folder = out / name
    folder.mkdir(exist_ok=True)
    resumes = "resume" not in parameters and any(p.name == "resume" for p in notebook.declared(path))
    if resumes and runs.finished(folder):
        parameters = parameters | {"resume": "must"}  # trained to the end, and ended before its notebook did
    return Job(str(path), str(folder), parameters)


def run(out: Path, state: dict, jobs: list[Job], on: Here | Ray, progress: bool = True, before: int = 0) -> None:
    """Runs the jobs and saves the state after each; before: how many were finished already, for the bar."""
    total = before + len(jobs)
    shown = bar(total=total, initial=before, unit="run", desc="sweep", shown=progress and bool(jobs))
    outcomes = _on_ray(jobs, on) if isinstance(on, Ray) else _here(jobs, on)
    with shown:
        for number, (job, outcome) in enumerate(outcomes, before + 1):
            name = Path(job.folder).name
            state["runs"][name] |= outcome
            files.write_json(out / STATE, state)
            said = (
                f"finished in {_readable(outcome['seconds'])}"
                if outcome["status"] == "finished"
                else f"FAILED: {outcome['reason']}"
            )
            say(f"{number} of {total}  {name}: {said}")
            shown.update()


def _readable(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _here(jobs: list[Job], on: Here) -> Iterator[tuple[Job, dict]]:
    """Each job with its outcome, as they end."""
    cpus = on.cpus if on.cpus is not None or on.at_once == 1 else max(1, cpu.cores() // on.at_once)
    waiting = [replace(job, cpus=cpus) for job in reversed(jobs)]
    running: dict[str, tuple[Job, headless.Process]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < on.at_once:
                job = waiting.pop()
                running[job.folder] = job, headless.start(job)
            for folder, (job, process) in list(running.items()):
                if process.ended():
                    del running[folder]
                    yield job, process.wait()
            time.sleep(GLANCE)
    finally:
        for _, process in running.values():
            process.stop()


def _on_ray(jobs: list[Job], on: Ray) -> Iterator[tuple[Job, dict]]:
    """The same, on the machines of a cluster; a job whose machine is lost is started again on another."""
    if not jobs:
        return
    with cluster.joined(on.address) as ray:
        jobs = [replace(job, cpus=on.cpus) for job in jobs]
        for number, outcome in cluster.each(ray, _task, jobs, on.cpus, on.gpus):
            yield jobs[number], outcome if isinstance(outcome, dict) else headless.failed(str(outcome))


def _task(job: Job) -> dict:
    return headless.start(job).wait()


def _compare(out: Path, state: dict) -> tuple[Path | None, str]:
    """The executed notebook that compares the finished runs, or why there is none."""
    named = [
        f"{name}/{run['run']}" for name, run in state["runs"].items() if run["status"] == "finished" and run["run"]
    ]
    if not named:
        return None, ""
    try:
        path = find(COMPARED)
    except PathoError:
        return None, "notebooks/compare.ipynb, which compares runs, is not at hand"
    job = Job(str(path), str(out / COMPARED), {"runs": ",".join(named)}, outputs=str(out))
    before, mark = job.executed.parent / "compared.json", {"runs": [*named], "code": files.sha256(path)}
    if job.executed.exists() and before.exists() and files.read_json(before) == mark:
        return job.executed, ""  # nothing has been added
    Path(job.folder).mkdir(exist_ok=True)
    outcome = headless.start(job).wait()
    if outcome["status"] == "failed":
        return None, f"The runs could not be compared: {outcome['reason']}"
    files.write_json(before, mark)
    return job.executed, ""
