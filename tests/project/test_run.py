"""run.py installs into its own environment or not at all, tells an error in one line, and counts what was tested."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from patholib import __version__

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run.py as a module, in an empty project folder, with its commands noted instead of run."""
    spec = importlib.util.spec_from_file_location("run", ROOT / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "pyproject.toml").write_text("a requirement")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(module, "LOWEST", tmp_path / ".venv-lowest")
    monkeypatch.setattr(module, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.delenv("PATHOLIB_PYTHON", raising=False)
    monkeypatch.delenv("PATHOLIB_KEEP", raising=False)
    monkeypatch.setenv("JUPYTER_PATH", "")  # as below
    monkeypatch.setenv("PYTHONUTF8", "1")  # run.py sets it; here it is put back
    module.commands, module.fails = [], lambda line: False

    def call(command, **_):
        line = " ".join(map(str, command))
        module.commands.append(line)
        if "-m venv" in line:
            python = Path(command[-1], "Scripts/python.exe" if os.name == "nt" else "bin/python")
            python.parent.mkdir(exist_ok=True)
            python.touch()
            Path(command[-1], "pyvenv.cfg").touch()
        return int(module.fails(line))

    monkeypatch.setattr(module, "call", call)
    return module


def installed(run) -> bool:
    """Whether `environment` installs; forgets the commands."""
    run.commands.clear()
    run.environment()
    return any(" -e " in line for line in run.commands)


def test_it_installs_once_and_again_when_a_requirement_changes(run):
    assert installed(run)
    assert not installed(run)
    (run.ROOT / "pyproject.toml").write_text("another requirement")
    assert installed(run) and not any("-m venv" in line for line in run.commands)


def test_an_interrupted_installation_starts_over(run):
    run.fails = lambda line: " install " in line
    with pytest.raises(SystemExit, match="failed"):
        run.environment()
    run.fails = lambda line: False
    (run.VENV / "half").mkdir()
    assert installed(run) and any("-m venv" in line for line in run.commands)
    assert not (run.VENV / "half").exists()


@pytest.mark.parametrize("gone", ["pyvenv.cfg", "bin/python"])
@pytest.mark.skipif(os.name == "nt", reason="the folder is called Scripts there")
def test_a_half_deleted_environment_is_made_anew(run, gone):
    run.environment()
    (run.VENV / gone).unlink()
    assert installed(run) and any("-m venv" in line for line in run.commands)


def test_clearing_keeps_the_stamp_whatever_interrupts_it(run, monkeypatch):
    run.environment()
    (run.VENV / "patholib.stamp").write_text("installing")
    monkeypatch.setattr(run.shutil, "rmtree", lambda path: sys.exit("killed"))
    with pytest.raises(SystemExit, match="killed"):
        run.environment()
    assert (run.VENV / "patholib.stamp").read_text() == "installing"


def test_a_foreign_environment_is_left_alone(run):
    (run.VENV / "bin").mkdir(parents=True)
    (run.VENV / "bin" / "python").touch()
    with pytest.raises(SystemExit, match="not made by run"):
        run.environment()
    assert run.commands == []


def test_nothing_is_installed_into_an_interpreter_outside_of_an_environment(run):
    run.fails = lambda line: "sys.base_prefix" in line
    with pytest.raises(SystemExit, match="virtual environment"):
        run.environment()
    assert not any(" install " in line for line in run.commands)


def test_everything_is_compiled_when_it_is_installed(run):
    """pip does so by itself; where nothing may be written later, each process would compile what it imports."""
    assert installed(run)
    assert "-m uv" in run.commands[-1] and "--compile-bytecode" in run.commands[-1]


def test_pip_takes_over_where_uv_fails(run):
    run.fails = lambda line: "-m uv" in line
    assert installed(run)
    assert "-m pip" in run.commands[-1] and "--require-virtualenv" in run.commands[-1] and " -e " in run.commands[-1]


CPU_BUILD = "--torch-backend cpu"


@pytest.mark.parametrize("driver", [False, True])
def test_without_an_nvidia_driver_the_cpu_build_of_pytorch_is_asked_for(run, monkeypatch, driver):
    monkeypatch.setattr(run.sys, "platform", "linux")
    monkeypatch.setattr(run, "has_nvidia", lambda: driver)
    assert installed(run)
    assert (CPU_BUILD in run.commands[-1]) != driver


def test_where_the_cpu_build_cannot_be_reached_the_ordinary_one_is_installed(run, monkeypatch, capsys):
    monkeypatch.setattr(run.sys, "platform", "linux")
    monkeypatch.setattr(run, "has_nvidia", lambda: False)
    run.fails = lambda line: CPU_BUILD in line
    assert installed(run)
    assert "-m uv" in run.commands[-1] and CPU_BUILD not in run.commands[-1]
    assert capsys.readouterr().out.count("CPU build cannot be had here") == 1


def test_setup_replaces_the_build_of_pytorch_when_told_to(run, monkeypatch):
    monkeypatch.setattr(run, "has_nvidia", lambda: True)
    assert run.setup([]) == 0 and not installed(run)
    for flag, cpu in (("--cpu", True), ("--gpu", False)):
        assert run.setup([flag]) == 0
        assert "--reinstall-package torch" in run.commands[-1] and (CPU_BUILD in run.commands[-1]) == cpu
        assert not installed(run)  # the next call keeps what was chosen
    assert run.setup(["--tpu"]) == 2


SOMEWHERE = """
import importlib.util, sys, time
from pathlib import Path

code, root, log = map(Path, sys.argv[1:4])
spec = importlib.util.spec_from_file_location("run", code)
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)
run.ROOT, run.VENV = root, root / ".venv"

def call(command, **_):
    line = " ".join(map(str, command))
    if "-m venv" in line:
        for part in ("bin/python", "Scripts/python.exe", "pyvenv.cfg"):
            Path(command[-1], part).parent.mkdir(exist_ok=True)
            Path(command[-1], part).touch()
    if " -e " in line:
        for word in ("begins", "ends"):
            with log.open("a") as stream:
                stream.write(word + chr(10))
            time.sleep(float(sys.argv[4]))
    return 0

run.call = call
print(run.environment())
"""


def calling(folder, seconds):
    """A process that calls run.py in the folder, where an installation takes so long."""
    return subprocess.Popen(
        [sys.executable, "-c", SOMEWHERE, ROOT / "run.py", folder, folder / "log", str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PATHOLIB_PYTHON": ""},
    )


def until(truth):
    end = time.monotonic() + 60
    while not truth():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_of_two_calls_at_once_one_installs_and_the_other_waits(tmp_path):
    (tmp_path / "pyproject.toml").write_text("a requirement")
    said = [process.communicate(timeout=60)[0] for process in [calling(tmp_path, 0.4) for _ in range(2)]]
    assert (tmp_path / "log").read_text().split() == ["begins", "ends"]
    assert len({text.splitlines()[-1] for text in said}) == 1


def test_a_call_that_was_killed_while_it_installed_keeps_nobody_waiting(tmp_path):
    (tmp_path / "pyproject.toml").write_text("a requirement")
    first = calling(tmp_path, 60)
    until((tmp_path / "log").exists)
    second = calling(tmp_path, 0)
    assert "waiting for it" in second.stdout.readline()
    first.kill()
    first.communicate()
    assert second.communicate(timeout=60)[0] and second.returncode == 0
    assert (tmp_path / "log").read_text().split() == ["begins", "begins", "ends"]


def test_the_lowest_packages_get_an_environment_of_their_own_from_the_oldest_python(run, monkeypatch):
    (run.ROOT / "pyproject.toml").write_text('requires-python = ">=3.9"')
    monkeypatch.setattr(run.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert run.lowest_environment().startswith(str(run.LOWEST))
    assert run.commands[0] == f"/usr/bin/python3.9 -m venv {run.LOWEST}"
    assert "--resolution lowest-direct -e" in run.commands[-1]
    assert not run.VENV.exists()
    run.commands.clear()
    run.lowest_environment()
    assert run.commands == []


def test_where_uv_fails_nothing_else_is_taken_for_the_lowest_packages(run, monkeypatch):
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    (run.ROOT / "pyproject.toml").write_text(f'requires-python = ">={here}"')
    run.fails = lambda line: "-m uv" in line
    with pytest.raises(SystemExit, match="failed"):
        run.lowest_environment()
    assert "-m uv" in run.commands[-1]  # pip would take the newest
    assert run.lowest_step(["python"], {}) == {"failed": 1}
    (run.ROOT / "pyproject.toml").write_text('requires-python = ">=3.9"')
    monkeypatch.setattr(run.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match=r"3\.9"):
        run.lowest_environment()


def test_a_named_interpreter_is_taken_as_it_is(run, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv("PATHOLIB_PYTHON", sys.executable)
    assert run.environment() == sys.executable and run.commands == []


def test_an_old_python_is_told_which_one_is_needed(run, monkeypatch, capsys):
    monkeypatch.setattr(run.sys, "version_info", (3, 10, 4))
    assert run.main(["train"]) == 1
    assert "3.11" in capsys.readouterr().err


def test_an_unknown_command_shows_the_known_ones(run, capsys):
    assert run.main(["trian"]) == 2
    assert "run.py train" in capsys.readouterr().out


def test_C25_C26_the_command_of_the_library_passes_through_and_the_help_of_a_notebook_shows_its_parameters(
    run, capfd, monkeypatch, catalogue
):
    monkeypatch.setattr(run, "environment", lambda: sys.executable)
    monkeypatch.setattr(run, "NOTEBOOKS", ROOT / "notebooks")
    monkeypatch.setattr(run, "call", lambda command: subprocess.run([str(c) for c in command], check=False).returncode)
    assert run.main(["patholib", "--version"]) == 0
    assert run.main(["train", "quickstart", "--help"]) == 0
    out = capfd.readouterr().out
    assert out.startswith(__version__) and "target_sensitivity" in out and "side in pixels of the images" in out
    assert run.main(["patholib", "trian"]) == 2
    catalogue("C25", "run.py patholib --version, where no command patholib is installed", "its answer")
    catalogue("C26", "run.py train quickstart --help", "the parameters with their meaning")


def test_single_steps_are_chosen_by_name_and_an_unknown_one_is_told(run, tmp_path):
    known = run.steps("python", tmp_path)
    assert list(run.chosen(known, ["refusal,ruff"])) == ["ruff", "refusal"]
    assert list(run.chosen(known, ["lowest", "tests"])) == ["tests", "lowest"]
    with pytest.raises(SystemExit, match=r"tets.*ruff, .*tests"):
        run.chosen(known, ["tets"])
    with pytest.raises(SystemExit, match=r"ruff, .*tests"):
        run.chosen(known, [])


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGKILL")
def test_a_run_that_is_killed_is_compared_with_one_that_was_not(run, tmp_path):
    assert list(run.chosen(run.steps("python", tmp_path), ["killed"])) == ["breakhis", "killed"]


def test_only_the_chosen_steps_run(run, monkeypatch, capsys):
    monkeypatch.setenv("PATHOLIB_PYTHON", "python")
    assert run.main(["test", "--only", "ruff"]) == 0
    assert run.commands == [f"python -m ruff check {run.ROOT}"] and "1 passed" in capsys.readouterr().out
    run.fails = lambda line: True
    assert run.main(["test", "--only", "ruff"]) == 1


def test_the_fast_tests_are_lint_types_and_whatever_is_neither_slow_nor_heavy(run, monkeypatch):
    monkeypatch.setenv("PATHOLIB_PYTHON", "python")
    followed = []
    monkeypatch.setattr(
        run, "follow", lambda command, shown, **_: followed.append(command) or shown("3 passed in 1.0s")
    )
    assert run.main(["test", "--fast"]) == 0
    assert [line.split()[2] for line in run.commands] == ["ruff", "ruff", "mypy"]
    ((*_, marks, folder),) = followed
    assert (marks, folder) == ("not slow and not alone and not heavy", "tests")


RUN = """
import json, os, sys
from pathlib import Path

run_dir = Path(os.environ["PATHOLIB_OUTPUTS"], "a-run")
run_dir.mkdir(parents=True)
(run_dir.parent / "latest.json").write_text(json.dumps({"run_dir": str(run_dir)}))
for name in ("metrics.json", "report.html", "data_card.html", "model.safetensors"):
    (run_dir / name).touch()
Path("out.ipynb").touch()
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize("code", [0, 1])
def test_pages_of_a_run_and_its_notebook_are_kept_where_that_is_asked_for(run, tmp_path, monkeypatch, code):
    monkeypatch.setenv("PATHOLIB_KEEP", str(tmp_path / "kept"))
    env = {**os.environ, "PATHOLIB_OUTPUTS": str(tmp_path / "isic2019" / "outputs")}
    assert run.run_step([sys.executable, "-c", RUN, str(code)], env) == {"failed" if code else "passed": 1}
    kept = sorted(path.name for path in (tmp_path / "kept" / "isic2019").iterdir())
    assert kept == ["data_card.html", "out.ipynb", "report.html"]


PAPERMILL = """Input Notebook:  a.ipynb
[IPKernelApp] WARNING | something about the kernel
Executing Cell 1---------------------------------------
epoch 1/2  loss 0.6

  0%|          | 0/2 [00:00<?, ?it/s]
<Figure size 640x480 with 1 Axes>
Ending Cell 1------------------------------------------
Traceback (most recent call last):
  File "papermill/cli.py", line 1, in papermill
papermill.exceptions.PapermillExecutionError:
---------------------------------------------------------------------------
Exception encountered at "In [3]":
"""


def transcript(run, text):
    shown = run.Transcript()
    for line in text.splitlines():
        shown(line)
    return shown


def test_only_the_notebooks_own_lines_are_shown(run, capsys):
    transcript(run, PAPERMILL)
    assert capsys.readouterr().out == "epoch 1/2  loss 0.6\n"


def test_a_refusal_is_one_line_and_any_other_error_is_whole(run):
    line = "PathoError [unknown_parameter] epoch: epoch is no parameter. The parameters are epochs"
    assert transcript(run, PAPERMILL + line + "\n\n").error() == line
    other = "ZeroDivisionError   Traceback (most recent call last)\n----> 1 1 / 0\nZeroDivisionError: division by zero"
    assert transcript(run, PAPERMILL + other).error() == f'Stopped at "In [3]":\n{other}'
    dead = "Traceback (most recent call last):\nnbclient.exceptions.DeadKernelError: Kernel died"
    assert transcript(run, dead).error().endswith("the same call resumes")


@pytest.mark.parametrize(
    ("line", "code", "counts"),
    [
        ("12 passed, 1 skipped in 3.21s", 0, {"passed": 12, "skipped": 1}),
        ("1 failed, 2 passed, 1 error in 3s", 1, {"failed": 2, "passed": 2}),
        ("3 skipped in 0.1s", 0, {"skipped": 3, "failed": 1}),
        ("no tests ran in 0.00s", 5, {"failed": 1}),
        ("", 139, {"failed": 1}),
        ("5 passed in 2.0s", 1, {"passed": 5, "failed": 1}),
    ],
)
def test_a_step_that_tested_nothing_has_failed(run, line, code, counts):
    program = f"import sys; print({line!r}); sys.exit({code})"
    assert run.pytest_step([sys.executable, "-c", program], dict(os.environ)) == counts


NOTEBOOK = """
import json, os, subprocess, sys, time
from pathlib import Path

run_dir = Path(os.environ["PATHOLIB_OUTPUTS"]) / "run"
if not run_dir.exists() and "ends at once" not in sys.argv:
    (run_dir / "checkpoints").mkdir(parents=True)
    (run_dir.parent / "latest.json").write_text(json.dumps({"run_dir": str(run_dir)}))
    lock = (run_dir / "run.lock").open("a")
    hold = f"import fcntl, time; fcntl.flock({lock.fileno()}, fcntl.LOCK_EX); time.sleep(60)"
    kernel = subprocess.Popen([sys.executable, "-c", hold], pass_fds=[lock.fileno()])
    (run_dir / "run.holder.lock").write_text(f"process {kernel.pid} on host")
    (run_dir / "checkpoints" / "last-000000001-0.pt").touch()
    time.sleep(60)
print(sys.argv[1])
run_dir.mkdir(parents=True, exist_ok=True)
(run_dir / "metrics.json").write_text(sys.argv[2])
"""


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGKILL")
@pytest.mark.parametrize(
    ("said", "metrics", "counts"),
    [
        ("resumed after epoch 1", "{}", {"passed": 1}),
        ("epoch 1/3", "{}", {"failed": 1}),
        ("resumed after epoch 1", "{ }", {"failed": 1}),
        ("ends at once", "{}", {"failed": 1}),
    ],
)
def test_a_killed_run_has_to_go_on_and_to_end_with_the_same_bytes(run, tmp_path, said, metrics, counts):
    import fcntl

    peaceful = tmp_path / "peaceful" / "run"
    peaceful.mkdir(parents=True)
    (peaceful / "history.json").write_text(json.dumps([{"seconds": 9}, {"seconds": 0.2}]))
    (peaceful / "metrics.json").write_text("{}")
    (peaceful.parent / "latest.json").write_text(json.dumps({"run_dir": str(peaceful)}))
    outputs = tmp_path / "killed" / "outputs"
    command = [sys.executable, "-c", NOTEBOOK, said, metrics]
    assert run.killed_step(tmp_path / "failed", command, {}) == {"failed": 1}
    assert run.killed_step(peaceful.parent, command, {**os.environ, "PATHOLIB_OUTPUTS": str(outputs)}) == counts
    if said != "ends at once":
        with (outputs / "run" / "run.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while the kernel lives on


def test_notebooks_are_found_by_name_and_path(run, tmp_path):
    for name in ("breakhis/train", "quickstart"):
        path = tmp_path / "notebooks" / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert run.label(run.find("breakhis")) == "breakhis-train"
    assert run.find(str(path)) == run.find("quickstart") == path
    with pytest.raises(SystemExit, match="breakhis"):
        run.find("breakhs")


def test_a_cleaned_notebook_keeps_its_outputs_and_tags_and_nothing_of_the_machine(run):
    def stream(text):
        return {"output_type": "stream", "name": "stdout", "text": text}

    picture = {"output_type": "display_data", "data": {"text/plain": "x"}, "metadata": {"needs_background": "light"}}
    cells = [
        {
            "cell_type": "code",
            "id": "a",
            "source": "1",
            "execution_count": 1,
            "metadata": {"tags": ["parameters"], "execution": {"iopub.status.busy": "2026"}, "papermill": {}},
            "outputs": [stream(["a\n", "b"]), stream("c\n"), picture, stream("d\n")],
        },
        {"cell_type": "markdown", "id": "b", "metadata": {}, "source": "text"},
    ]
    text = json.dumps(
        {
            "cells": cells,
            "metadata": {"widgets": {}, "language_info": {"version": "3.11.7"}},
            "nbformat": 4,
            "nbformat_minor": 5,
        }
    )
    notebook = json.loads(run.cleaned(text))
    assert notebook["metadata"]["kernelspec"]["name"] == "python3" and "widgets" not in notebook["metadata"]
    assert "version" not in notebook["metadata"]["language_info"]
    first = notebook["cells"][0]
    assert first["metadata"] == {"tags": ["parameters"]}
    assert [o.get("text") for o in first["outputs"]] == [["a\n", "bc\n"], None, ["d\n"]]
    assert run.cleaned(run.cleaned(text)) == run.cleaned(text)


def test_the_exit_code_of_a_program_is_passed_on(run):
    assert run.follow([sys.executable, "-c", "import sys; sys.exit(7)"], print) == 7


def test_its_help_needs_no_environment():
    result = subprocess.run([sys.executable, ROOT / "run.py", "--help"], capture_output=True, text=True)
    assert result.returncode == 0 and "run.py test" in result.stdout


def test_the_benchmarks_run_one_after_another_and_a_missed_mark_is_the_exit_code(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "benchmarks").mkdir()
    for name in ("harness", "real", "gpu", "quality", "speed_input", "speed_training"):
        (tmp_path / "benchmarks" / f"{name}.py").touch()
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv("PATHOLIB_PYTHON", "python")
    assert run.main(["bench", "--quick"]) == 0
    folder = tmp_path / "benchmarks"
    assert run.commands == [f"python {folder / name} --quick" for name in ("speed_input.py", "speed_training.py")]
    run.fails = lambda line: "gpu" in line
    assert run.main(["bench", "gpu", "input"]) == 1
    assert "speed_input" in run.commands[-1] and "missed a mark" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="gpu, quality, input, training"):
        run.main(["bench", "real"])


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").rglob("*.ipynb")), ids=lambda path: path.stem)
def test_C41_a_notebook_is_converted_to_a_python_script(path, catalogue):
    from nbconvert import ScriptExporter

    code, resources = ScriptExporter().from_filename(str(path))
    assert resources["output_extension"] == ".py"
    compile(code.replace("get_ipython()", "None"), path.name, "exec")
    catalogue("C41", "nbconvert --to script", "a Python script")
