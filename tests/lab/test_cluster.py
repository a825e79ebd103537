"""On two machines of a Ray cluster: what a lost worker was doing is done again, and nothing comes out different.

Both machines are this one, each with one CPU. The slow test trains: python3 run.py test -m slow tests/test_cluster.py
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from importlib import util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_sweeps import CHECKPOINTED, TRAINING, write_notebook
from tiny import TINY

from patholib import cli
from patholib.base import cluster, files
from patholib.base.errors import PathoError
from patholib.deploy import export, predictions
from patholib.deploy.inference import Predictor
from patholib.model import building

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[2]
installed = pytest.mark.skipif(
    util.find_spec("ray") is None or sys.platform == "win32", reason="needs the extra cluster, and signals"
)


def test_without_ray_the_remedy_is_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cluster.util, "find_spec", lambda name: None)
    notebook = write_notebook(tmp_path / "light.ipynb", CHECKPOINTED)
    assert cli.main(["sweep", str(notebook), "--set", "seed=0", "--out", str(tmp_path / "o"), "--engine", "ray"]) == 2
    assert 'pip install "patholib[cluster]"' in capsys.readouterr().err


@pytest.fixture(scope="module")
def two_machines():
    """The address of a cluster of two machines with one CPU each, which listens to this machine alone."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            "TQDM_DISABLE": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        machine = {
            "num_cpus": 1,
            "object_store_memory": 80 * 2**20,
            "include_dashboard": False,
            "include_log_monitor": False,
        }
        found = Cluster(initialize_head=True, head_node_args=machine)
        try:
            found.add_node(**machine)
            yield found.address
        finally:
            found.shutdown()


def kill_once(when, find) -> list[int]:
    """Kills what `find` finds with SIGKILL, as soon as `when` is true; the process ids go into the list."""
    killed: list[int] = []

    def watch():
        until = time.monotonic() + 300
        while time.monotonic() < until:
            if when() and (found := find()):
                os.kill(found[0], signal.SIGKILL)
                killed.append(found[0])
                return
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    return killed


def commands() -> dict:
    """Every process of this machine that says how it was started."""
    import psutil

    found = {process: process.info["cmdline"] for process in psutil.process_iter(["cmdline"])}
    return {process: words for process, words in found.items() if words}


def mappers() -> list[int]:
    """The workers of the cluster that compute pictures, by the title that Ray gives them."""
    return [process.pid for process, words in commands().items() if words[0].startswith("ray::MapWorker")]


def runner(folder: Path) -> list[int]:
    """The worker of the cluster that waits for the run in this folder."""
    return [
        process.ppid()
        for process, words in commands().items()
        if "patholib.lab.headless" in words and json.loads(words[-1])["folder"] == str(folder)
    ]


def raylets() -> set[int]:
    """What Ray runs on each machine."""
    return {process.pid for process, words in commands().items() if words[0].endswith("raylet")}


# ------------------------------------------------------------------------------------------------------------- sweep


@installed
def test_a_run_whose_worker_is_killed_goes_on_elsewhere_from_its_checkpoint(two_machines, tmp_path, capsys):
    notebook = write_notebook(tmp_path / "light.ipynb", CHECKPOINTED)
    out = tmp_path / "ray"
    killed = kill_once((out / "seed-1" / "steps.json").exists, lambda: runner(out / "seed-1"))
    given = ["sweep", str(notebook), "--set", "seed=0,1", "-p", "pause", "0.1", "--out", str(out)]
    assert cli.main([*given, "--engine", "ray", "--address", two_machines]) == 0
    assert len(killed) == 1 and "2 of 2 runs are finished" in capsys.readouterr().out
    results = [files.read_json(out / f"seed-{seed}" / "result.json") for seed in range(2)]
    assert [found["value"] for found in results] == [190, 210]
    assert [found["from"] > 0 for found in results] == [False, True]
    assert [len(found["processes"]) for found in results] == [1, 2]  # one run in two parts, no step computed twice


@installed
@pytest.mark.slow
def test_folds_with_a_killed_worker_are_those_of_one_machine(two_machines, tmp_path):
    notebook = write_notebook(tmp_path / "training.ipynb", TRAINING)
    given = ["sweep", str(notebook), "-p", "folds", "3", "--set", "fold=0,1,2", "--cpus-per-run", "1"]
    assert cli.main([*given, "--out", str(tmp_path / "local")]) == 0
    ray = tmp_path / "ray"
    killed = kill_once(lambda: any(ray.glob("fold-1/*/checkpoints/last-*.pt")), lambda: runner(ray / "fold-1"))
    assert cli.main([*given, "--out", str(ray), "--engine", "ray", "--address", two_machines]) == 0
    assert len(killed) == 1
    tested = []
    for fold in range(3):
        (mine,), (other,) = (list((tmp_path / where / f"fold-{fold}").glob("*/run.json")) for where in ("ray", "local"))
        for name in ("predictions_val.csv", "predictions_test.csv"):
            assert (mine.parent / name).read_bytes() == (other.parent / name).read_bytes()
        tested += [line.split(",")[0] for line in (mine.parent / "predictions_test.csv").read_text().splitlines()[1:]]
        known = (mine.parent / "images.csv").read_text().splitlines()[1:]
    assert sorted(tested) == sorted(line.split(",")[0] for line in known)  # every image, once
    for where in ("local", "ray"):
        assert "fold-0 + fold-1 + fold-2" in (tmp_path / where / "compare" / "compare.ipynb").read_text()


# ----------------------------------------------------------------------------------------------------------- predict


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder, recipe = tmp_path_factory.mktemp("model"), replace(TINY, tta_views=2)
    export.save_model(folder, building.build(recipe).state_dict(), recipe, run="a run", demo=True, threshold=0.5)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """60 small pictures and 2 that are none."""
    root, rng = tmp_path_factory.mktemp("pictures") / "scans", np.random.default_rng(0)
    root.mkdir()
    for i in range(60):
        Image.fromarray(rng.integers(0, 256, (48, 48, 3), np.uint8)).save(root / f"{i:02}, odd.png")
    (root / "empty.png").write_bytes(b"")
    (root / os.fsdecode(b"caf\xe9.jpg")).write_text("<html>no picture</html>")
    return root


@installed
def test_a_table_made_on_a_cluster_is_that_of_one_machine_though_a_worker_is_killed(
    two_machines, model, pictures, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(pictures.parent)
    given = ["predict", str(model), "scans"]
    assert cli.main([*given, "--engine", "torch", "--out", str(tmp_path / "local.csv")]) == 1
    journal = tmp_path / "ray.csv.part"
    killed = kill_once(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 1, mappers)
    there = ["--engine", "ray:torch", "--address", two_machines]
    assert cli.main([*given, *there, "--out", str(tmp_path / "ray.csv")]) == 1
    assert len(killed) == 1
    for end in ("", "_bad"):
        assert (tmp_path / f"ray{end}.csv").read_bytes() == (tmp_path / f"local{end}.csv").read_bytes()
    assert "60 pictures answered" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["local.csv", "local_bad.csv", "ray.csv", "ray_bad.csv"]


@installed
@pytest.mark.slow
def test_what_a_cluster_began_is_gone_on_with_on_one_machine(two_machines, model, pictures, tmp_path, monkeypatch):
    predictor, one = Predictor(model, "torch"), pictures / "00, odd.png"
    monkeypatch.setattr(predictions, "_finish", lambda *given: (0, 0))
    on = predictions.Ray(model, two_machines)
    predictions.write(predictor, [one], tmp_path / "p.csv", progress=False, on=on)
    monkeypatch.undo()
    assert len((tmp_path / "p.csv.part").read_text().splitlines()) == 2
    table = predictions.write(predictor, [pictures], tmp_path / "p.csv", progress=False)
    assert (table.before, table.answered, table.bad) == (1, 60, 2)


@installed
@pytest.mark.slow
def test_a_model_that_not_every_machine_sees_is_one_line(two_machines, model, pictures, tmp_path):
    with pytest.raises(PathoError) as stopped:
        predictions.write(
            Predictor(model, "torch"),
            [pictures],
            tmp_path / "p.csv",
            progress=False,
            on=predictions.Ray(tmp_path / "gone", two_machines),
        )
    assert stopped.value.code == "not_shared" and "network drive" in stopped.value.remedy


@installed
@pytest.mark.slow
def test_more_than_a_machine_has_is_refused_and_no_process_is_left(tmp_path):
    """In a process of its own, because one process joins one cluster at a time."""
    notebook, before = write_notebook(tmp_path / "light.ipynb", CHECKPOINTED), raylets()
    given = [str(notebook), "--set", "seed=0", "--engine", "ray", "--gpus-per-run", "5", "--out", str(tmp_path / "o")]
    bare = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-m", "patholib", "sweep", *given], capture_output=True, text=True, env=bare, check=False
    )
    assert done.returncode == 2 and "the only machine has" in done.stderr and "Traceback" not in done.stderr
    assert json.loads((tmp_path / "o" / "sweep.json").read_text())["runs"]["seed-0"]["status"] == "planned"
    assert raylets() == before


@installed
@pytest.mark.slow
def test_the_benchmark_runs_in_miniature():
    bare = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "cluster.py", "--quick"],
        capture_output=True,
        text=True,
        env=bare,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "| 2 Ray workers |" in done.stdout and "| two at once, Ray |" in done.stdout
