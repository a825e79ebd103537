"""A sweep refuses at once what cannot work, does each run once, and goes on where it was stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from patholib import cli
from patholib.base import files
from patholib.base.errors import PathoError
from patholib.lab import headless, notebook, sweeps

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[2]
# Counts twenty steps, each kept before the next; a seed of 13 fails. It trains nothing: it shows who did what when.
CHECKPOINTED = (
    "seed: int = 0  # decides\npause: float = 0.0  # seconds of a step\nshift: float = 0.0  # added\n"
    'kind: str = "plain"  # one of: plain, odd\nloud: bool = False  # says so',
    """import json, os, time
from pathlib import Path

folder = Path(os.environ["PATHOLIB_OUTPUTS"])
kept = folder / "steps.json"
steps = json.loads(kept.read_text()) if kept.exists() else []
first = len(steps)
if seed == 13:
    raise ValueError("an unlucky seed")
while len(steps) < 20:
    steps.append([len(steps) + seed, os.getpid()])
    part = kept.with_suffix(".part")
    part.write_text(json.dumps(steps))
    part.replace(kept)
    time.sleep(pause)
result = {"from": first, "steps": [s for s, _ in steps], "value": sum(s for s, _ in steps) + shift,
          "processes": sorted({p for _, p in steps})}
(folder / "result.json").write_text(json.dumps(result))""",
)
TRAINING = (
    "folds: int = 0  # how many\nrepeats: int = 1  # how often\nfold: int = None  # this one alone\n"
    'epochs: int = 2  # passes\nresume: str = "auto"  # one of: auto, must, never',
    "from patholib.lab import notebook\n\nsettings = notebook.check_parameters(In, globals())",
    """from patholib.data import checking, readers
from patholib.judge import decisions, judging
from patholib.model import building, profiles
from patholib.train import runs, training

source = readers.load("breakhis", "demo")
recipe = profiles.recipe_for("breakhis", source, small=True, arch="resnet18", image_size=32, batch_size=16, tta_views=2,
                         epochs=settings.epochs, precision="fp32")
checked = checking.check(source, recipe.cache_size, recipe.fit, progress=False, workers=1)
split = runs.split(recipe, checked, settings.folds, settings.repeats, settings.fold)
run = runs.start(recipe, checked, split, resume=settings.resume)
notebook.remember_run(run.dir)
tiles, model = checked.images.with_split(split), building.build(recipe)
training.fit(model, tiles, run, device="cpu", workers=1)""",
    """decisions.lock(model, tiles, run.dir)
judging.judge(model, tiles, run.dir)
run.finish()""",
)


def write_notebook(path: Path, sources) -> Path:
    """A notebook of these code cells, the first of which holds its parameters."""
    cells = [
        {
            "cell_type": "code",
            "id": f"cell-{i}",
            "metadata": {"tags": ["parameters"]} if i == 0 else {},
            "source": source,
            "outputs": [],
            "execution_count": None,
        }
        for i, source in enumerate(sources)
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return files.write_json(
        path,
        {
            "cells": cells,
            "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
            "nbformat": 4,
            "nbformat_minor": 5,
        },
    )


@pytest.fixture
def light(tmp_path):
    return write_notebook(tmp_path / "light.ipynb", CHECKPOINTED)


def refusal(code, call, *given, **options):
    with pytest.raises(PathoError) as stopped:
        call(*given, **options)
    assert stopped.value.code == code, stopped.value
    return str(stopped.value)


# ---------------------------------------------------------------------------------------------------------- the plan


def test_a_grid_is_every_combination_with_values_of_the_declared_kinds(light):
    found = sweeps.plan(light, {"seed": ["0", "1"], "shift": ["1e-3", "3e-4"]}, {"loud": "true", "kind": "odd"})
    assert list(found) == ["seed-0_shift-0.001", "seed-0_shift-0.0003", "seed-1_shift-0.001", "seed-1_shift-0.0003"]
    assert found["seed-1_shift-0.0003"] == {"seed": 1, "shift": 0.0003, "loud": True, "kind": "odd"}


def test_listed_runs_are_run_in_every_combination_with_the_grid(light, tmp_path):
    listed = sweeps.read_list(files.write_json(tmp_path / "runs.json", [{"seed": 3}, {"shift": 2, "seed": 4}]))
    assert list(sweeps.plan(light, {"kind": ["plain", "odd"]}, {}, listed)) == [
        "seed-3_kind-plain",
        "seed-3_kind-odd",
        "shift-2.0_seed-4_kind-plain",
        "shift-2.0_seed-4_kind-odd",
    ]
    refusal("bad_runs", sweeps.read_list, files.write_json(tmp_path / "bad.json", {"seed": [1]}))


@pytest.mark.parametrize(
    ("grid", "common", "code", "says"),
    [
        ({"sed": ["0"]}, {}, "unknown_parameter", "did you mean 'seed'"),
        ({"seed": ["0", "x"]}, {}, "bad_parameter", "seed='x' is not a whole number"),
        ({"seed": ["0"]}, {"kind": "strange"}, "bad_parameter", "is not one of plain, odd"),
        ({"seed": ["0"]}, {"loud": "maybe"}, "bad_parameter", "is not True or False"),
        ({"seed": ["0"]}, {"seed": "1"}, "bad_parameter", "is set in two ways"),
        ({"seed": ["0", "0"]}, {}, "bad_parameter", "stands for two runs"),
    ],
)
def test_what_the_notebook_would_refuse_is_refused_before_anything_starts(light, grid, common, code, says):
    assert says in refusal(code, sweeps.plan, light, grid, common)


def test_the_training_notebooks_can_be_swept_and_their_folder_is_the_sweeps():
    for name in ("breakhis", "isic2019"):
        path = sweeps.find(name)
        found = sweeps.plan(path, {"fold": ["0", "1", "2"]}, {"folds": "3", "weights": "none", "lr": "1e-3"})
        assert found["fold-2"] == {"fold": 2, "folds": 3, "weights": "none", "lr": 0.001}
        assert "from 0 to 2" in refusal("bad_parameter", sweeps.plan, path, {"fold": ["3"]}, {"folds": "3"})
        assert "there are no folds" in refusal("bad_parameter", sweeps.plan, path, {"fold": ["0"]})
        assert "--out" in refusal("bad_parameter", sweeps.plan, path, {"seed": ["0"]}, {"output": "here"})
    assert "did you mean 'breakhis'" in refusal("unknown_notebook", sweeps.find, "breakhiss")


def test_another_machine_may_have_what_this_one_has_not():
    path, given = sweeps.find("breakhis"), ({"seed": ["0"]}, {"weights": "elsewhere.pth"})
    refusal("bad_parameter", sweeps.plan, path, *given)
    assert sweeps.plan(path, *given, here=False)["seed-0"]["weights"] == "elsewhere.pth"


def test_a_name_is_a_folder_on_any_system_and_no_two_values_share_one():
    assert sweeps._name({"data": "a/b"}) != sweeps._name({"data": "a:b"})
    for own in ({"data": "a/b: c?.csv"}, {"data": "é" * 300}, {"data": "x" * 300}):
        name = sweeps._name(own)
        assert len(name) < 100 and name.isascii() and not set(name) & set('/\\:*?"<>| ')


def test_a_file_that_is_no_notebook_is_refused(tmp_path):
    refusal("bad_notebook", notebook.declared, files.write_json(tmp_path / "a.ipynb", [1]))
    refusal(
        "no_parameters", notebook.declared, write_notebook(tmp_path / "b.ipynb", ["x = 1"]).rename(tmp_path / "c.ipynb")
    )


# ----------------------------------------------------------------------------------------------------------- running


def command(*given):
    environment = os.environ | {"TQDM_DISABLE": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    return subprocess.Popen(
        [sys.executable, "-m", "patholib", "sweep", *map(str, given)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_sweep_that_was_killed_repeats_no_finished_run_and_no_finished_step(light, tmp_path):
    given = (light, "--set", "seed=0,1", "-p", "pause", "0.1", "--out", tmp_path / "o")
    process = command(*given)
    kept = tmp_path / "o" / "seed-1" / "steps.json"
    while process.poll() is None and not kept.exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = (tmp_path / "o" / "seed-0" / "outcome.json").read_bytes()
    again = command(*given)  # at once: the notebook of the first may still be saving
    out, err = again.communicate()
    assert again.returncode == 0, err
    assert "2 of 2 runs are finished" in out and "1 of them before" in out and "2 of 2  seed-1: finished in" in out
    assert (tmp_path / "o" / "seed-0" / "outcome.json").read_bytes() == finished
    found = files.read_json(tmp_path / "o" / "seed-1" / "result.json")
    assert found["value"] == 210 and found["from"] > 0 and len(found["processes"]) == 2 and len(found["steps"]) == 20


def test_runs_beside_each_other_end_as_they_do_alone_and_a_failure_is_listed(light, tmp_path, capsys):
    given = ["sweep", str(light), "--set", "seed=0,13", "--out", str(tmp_path / "o")]
    assert cli.main([*given, "--at-once", "2"]) == 1
    out = capsys.readouterr().out
    assert "1 of 2 runs are finished" in out and "Failed: seed-13: ValueError: an unlucky seed" in out
    assert files.read_json(tmp_path / "o" / "seed-0" / "result.json")["value"] == 190
    assert "cells" in files.read_json(tmp_path / "o" / "seed-0" / "light.ipynb")
    state = files.read_json(tmp_path / "o" / "sweep.json")
    assert {name: run["status"] for name, run in state["runs"].items()} == {"seed-0": "finished", "seed-13": "failed"}


def test_a_folder_holds_the_runs_of_one_notebook_with_one_set_of_parameters(light, tmp_path, monkeypatch):
    out = tmp_path / "o"
    monkeypatch.setattr(headless, "start", lambda job: Done(job))
    planned = sweeps.plan(light, {"seed": ["0"]})
    assert sweeps.sweep(light, planned, out, progress=False).finished == ("seed-0",)
    more = sweeps.sweep(light, sweeps.plan(light, {"seed": ["0", "1"]}), out, progress=False)
    assert more.before == 1 and len(more.finished) == 2
    changed = sweeps.plan(light, {"seed": ["0"]}, {"shift": 1})
    assert "instead of" in refusal("other_sweep", sweeps.sweep, light, changed, out)
    other = write_notebook(tmp_path / "other.ipynb", [*CHECKPOINTED, "1"])
    assert "other code" in refusal("other_sweep", sweeps.sweep, other, planned, out)


class Done:
    """A process that is over before it began."""

    def __init__(self, job):
        self.job = job

    def ended(self):
        return True

    def wait(self):
        return {"status": "finished", "reason": "", "seconds": 1.0, "run": None}


def test_a_kernel_that_dies_is_a_reason_of_one_line(tmp_path):
    path = write_notebook(tmp_path / "dies.ipynb", ["seed: int = 0  # any", "import os\nos._exit(3)"])
    (tmp_path / "o").mkdir()
    outcome = headless.start(headless.Job(str(path), str(tmp_path / "o"))).wait()
    assert outcome["status"] == "failed" and "kernel was killed" in outcome["reason"] and "\n" not in outcome["reason"]


def test_what_is_not_on_this_machine_is_told_as_such(tmp_path):
    with pytest.raises(PathoError) as stopped:
        headless.start(headless.Job(str(tmp_path / "a.ipynb"), str(tmp_path / "gone")))
    assert stopped.value.code == "not_shared" and "network drive" in stopped.value.remedy


@pytest.mark.parametrize(
    "given",
    [
        ["--gpus-per-run", "1"],
        ["--address", "auto"],
        ["--at-once", "0"],
        ["--engine", "ray", "--at-once", "2"],
        ["--set", "seed=1"],
        ["--cpus-per-run", "-1"],
    ],
)
def test_options_that_do_not_go_together_are_refused(light, tmp_path, given, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["sweep", str(light), "--set", "seed=0", "--out", str(tmp_path / "o"), *given])
    assert ended.value.code == 2 and not (tmp_path / "o").exists()
    assert "usage: patholib" in capsys.readouterr().err


def test_the_notebook_gets_its_values_and_not_the_recording_of_the_caller(light, tmp_path, monkeypatch):
    monkeypatch.setenv("PATHOLIB_RECORD", "1")
    seen = {}
    monkeypatch.setattr(headless.subprocess, "Popen", lambda command, **how: seen.update(command=command, **how))
    (tmp_path / "o").mkdir()
    headless.start(headless.Job(str(light), str(tmp_path / "o"), {"seed": 1}, cpus=2.5))
    assert json.loads(seen["command"][-1])["parameters"] == {"seed": 1}
    assert seen["env"]["OMP_NUM_THREADS"] == "2" and "PATHOLIB_RECORD" not in seen["env"]
    assert seen["env"]["PATHOLIB_OUTPUTS"] == str(tmp_path / "o")
