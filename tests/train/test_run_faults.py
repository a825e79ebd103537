"""A run whose folder goes, whose writes were killed, or whose kernel was, says what to do and goes on."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import pytest
from tiny import TINY, train

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.deploy import export
from patholib.model import building
from patholib.train import checkpoints, optimising, runs, saving

pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("small_network")]


def at_step(monkeypatch, number, what):
    original, seen = optimising.step, []

    def watched(state, batch):
        original(state, batch)
        seen.append(1)
        if len(seen) == number:
            what(state)

    monkeypatch.setattr(optimising, "step", watched)
    return seen


@pytest.mark.parametrize("how", ["removed", "moved"])
def test_c57_a_run_folder_that_goes_is_noticed_at_the_next_save(tmp_path, monkeypatch, catalogue, how):
    monkeypatch.setattr(saving.Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(saving, "SAVE_SECONDS", 0.0)
    folder = tmp_path / "run"

    def gone(state):
        shutil.rmtree(folder) if how == "removed" else folder.rename(tmp_path / "elsewhere")

    steps = at_step(monkeypatch, 5, gone)
    with pytest.raises(PathoError) as caught:
        train(folder)
    error = caught.value
    assert (error.code, error.subject) == ("output_unwritable", str(folder)) and "removed or moved" in error.reason
    assert len(steps) <= 6 and not folder.exists()
    rescue = tmp_path / "home" / ".patholib" / "rescue" / "run" / "checkpoints"
    assert str(rescue) in error.remedy and checkpoints.load(rescue, "last")["progress"]
    catalogue("C57", f"run folder {how} during training", "noticed at the next save; the state is in the home folder")


def test_c59_what_killed_writes_left_in_any_folder_of_a_run_is_cleaned(tmp_path, catalogue):
    folder = tmp_path / "run"
    left = [folder / name / ".a.png.x1.part" for name in ("heatmaps/gallery", "figures", "checkpoints", ".")]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    files.write_json(folder / "run.json", {})
    runs.Run(folder, TINY, False, "").finish()
    assert not any(path.exists() for path in left)
    assert files.read_json(folder / "run.json")["status"] == "finished"
    catalogue("C59", "unfinished files of killed runs, in any folder of a run that is finished later", "deleted")


@pytest.fixture
def exported(tmp_path):
    folder = tmp_path / "run"
    export.save_model(folder, building.build(TINY).state_dict(), TINY, run="a run")
    files.write_text(folder / "model_card.md", "a card")
    return folder


@pytest.mark.parametrize("killed_at", [1, 2, 3])
def test_c58_an_export_that_was_killed_goes_on(exported, tmp_path, monkeypatch, catalogue, killed_at):
    out, written = tmp_path / "out", []
    original = files.write_bytes

    def write(path, content):
        written.append(path)
        if len(written) == killed_at:
            (path.parent / f".{path.name}.x.part").parent.mkdir(exist_ok=True)
            (path.parent / f".{path.name}.x.part").write_bytes(content[:5])
            raise KeyboardInterrupt
        return original(path, content)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files, "write_bytes", write)
        export.copy(exported, out)
    assert {path.name for path in export.copy(exported, out)} == {"model.json", "model.safetensors", "model_card.md"}
    with pytest.raises(PathoError, match="output_exists"):
        export.copy(exported, out)
    catalogue("C58", "an export that was killed, called again", "goes on")


def test_c58_a_folder_with_anything_else_is_still_refused(exported, tmp_path):
    for name, content in (("notes.txt", b""), ("model.json", b"{}"), ("model.safetensors", b"other")):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(content)
        with pytest.raises(PathoError, match="output_exists"):
            export.copy(exported, tmp_path / name)
        assert (tmp_path / name / name).read_bytes() == content


# ------------------------------------------------------------------------------------------------ run.py and kernels


@pytest.fixture
def run(monkeypatch):
    spec = importlib.util.spec_from_file_location("run", Path(__file__).parents[2] / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("JUPYTER_PATH", "PIP_USER", "PYTHONOPTIMIZE", "PATHOLIB_PYTHON", "PYTHONPATH"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    return module


def test_c63_a_killed_kernel_ends_with_how_to_go_on(run, catalogue):
    transcript = run.Transcript(quiet=True)
    for line in ("Traceback (most recent call last):", "  ...", "nbclient.exceptions.DeadKernelError: Kernel died"):
        transcript(line)
    assert transcript.error().endswith("the same call resumes") and "\n" not in transcript.error()
    catalogue("C63", "run.py train, whose kernel is killed", "the last line says that the same call resumes")


def test_c24_the_users_settings_of_pip_and_python_do_not_reach_what_is_started(run, monkeypatch, catalogue):
    monkeypatch.setenv("PIP_USER", "1")
    monkeypatch.setenv("PYTHONOPTIMIZE", "2")
    run.main(["help"])
    assert os.environ["PIP_USER"] == "0" and "PYTHONOPTIMIZE" not in os.environ
    catalogue("C24", "PIP_USER=1, PYTHONOPTIMIZE=2", "do not reach what run.py starts")


def test_c24_a_project_path_with_braces_or_a_colon(run, monkeypatch, tmp_path, catalogue):
    command = run.papermill("python", tmp_path / "{x}" / "a.ipynb", tmp_path / "{x}" / "b.ipynb")
    assert [text.format() for text in command[3:5]] == [str(tmp_path / "{x}" / n) for n in ("a.ipynb", "b.ipynb")]
    if os.name == "posix":
        with pytest.raises(SystemExit, match="':': rename that folder"):
            run.install(tmp_path / "a:b", "python", "python", "patholib", False)
        assert not (tmp_path / "a:b").exists()
    catalogue("C24", "project in a folder whose path holds {x}", "works")
    catalogue(
        "C24", "project in a folder whose path holds a colon", "one true sentence: no environment can be made there"
    )


FOREIGN = '{"argv": ["/nowhere/python", "-f", "{connection_file}"], "display_name": "x", "language": "python"}'


@pytest.fixture
def foreign_kernel(tmp_path, monkeypatch):
    """Another kernel called python3 that stands before the own one."""
    files.write_text(tmp_path / "foreign" / "kernels" / "python3" / "kernel.json", FOREIGN)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "foreign"))


def test_c23_the_kernel_of_run_py_is_that_of_the_chosen_interpreter(run, foreign_kernel, catalogue):
    from jupyter_client.kernelspec import KernelSpecManager

    assert KernelSpecManager().get_kernel_spec("python3").argv[0] == "/nowhere/python"
    run.with_kernel("/some/python")
    assert KernelSpecManager().get_kernel_spec("python3").argv[0] == "/some/python"
    catalogue("C23", "another kernel called python3 in JUPYTER_PATH", "the kernel is that of the chosen interpreter")


def test_c23_a_job_runs_in_the_kernel_of_its_interpreter(foreign_kernel, tmp_path):
    import nbformat

    from patholib.lab import headless

    (tmp_path / "{x}").mkdir()
    cell = nbformat.v4.new_code_cell("import sys; print(sys.executable)")
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": {"name": "python3", "display_name": "x"}})
    nbformat.write(notebook, tmp_path / "a.ipynb")
    job = headless.Job(str(tmp_path / "a.ipynb"), str(tmp_path / "{x}"))
    outcome = headless.start(job).wait()
    assert outcome["status"] == "finished", (outcome, (tmp_path / "{x}" / "log.txt").read_text())
    assert job.executed.exists()


def test_c63_a_job_whose_kernel_is_killed_says_how_to_go_on(tmp_path):
    import nbformat

    from patholib.lab import headless

    cell = nbformat.v4.new_code_cell("import os, signal; os.kill(os.getpid(), 9)")
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": {"name": "python3", "display_name": "x"}})
    nbformat.write(notebook, tmp_path / "a.ipynb")
    (tmp_path / "out").mkdir()
    assert (
        "the same call resumes"
        in headless.start(headless.Job(str(tmp_path / "a.ipynb"), str(tmp_path / "out"))).wait()["reason"]
    )


@pytest.mark.skipif(os.name != "posix", reason="closes file descriptors")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-", "<&- >&- 2>&-"])
def test_c24_closed_standard_streams(tmp_path, catalogue, closed):
    import subprocess
    import sys

    files.write_text(tmp_path / "split.csv", "path,label,patient,split\na.png,NV,p1,train\nb.png,NV,p2,test\n")
    root = Path(__file__).parents[2]
    for command in (f"-m patholib audit split.csv --out out {closed}", f"{root / 'run.py'} --help {closed}"):
        done = subprocess.run(
            ["sh", "-c", f"{sys.executable} {command}"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(root)},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert done.returncode == 0 and not done.stderr, done.stderr
    assert files.read_json(tmp_path / "out" / "audit.json")["ok"]
    catalogue("C24", "closed standard input and output", "works")
