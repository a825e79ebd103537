"""Parameters are checked in seconds, errors are logged, the newest run is remembered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.lab import notebook

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[2]
CELL = """\
# What this run does
data: str = "auto"  # where the images are
epochs: int = None  # passes over the training images (None: as the recipe says)
lr: float = 1e-3  # learning rate, "#" and µ in the comment
mixed: bool = False  # half precision
on_bad: str = "error"  # one of: error, skip
"""


def check(*later: str, cell: str = CELL):
    """What the notebook's check makes of the parameters cell and of what papermill injects after it."""
    history, namespace = ["", cell, *later], {}
    for source in history:
        exec(source, namespace)
    return notebook.check_parameters(history, namespace), namespace


def refused(*later: str, cell: str = CELL) -> PathoError:
    with pytest.raises(PathoError) as error:
        check(*later, cell=cell)
    return error.value


def test_without_changes_every_default_is_an_attribute():
    settings, _ = check()
    assert (settings.data, settings.epochs, settings.lr, settings.mixed) == ("auto", None, 1e-3, False)
    assert settings.changed == {}
    assert list(settings.values) == ["data", "epochs", "lr", "mixed", "on_bad"]


def test_what_papermill_injects_is_changed():
    settings, _ = check("# Parameters\nepochs = 35\nmixed = True\n", "import os")
    assert settings.epochs == 35
    assert settings.changed == {"epochs": 35, "mixed": True}


@pytest.mark.parametrize("target", [0, 1, 95])
def test_a_sensitivity_that_no_threshold_can_be_chosen_for_is_refused_before_anything_is_trained(target):
    cell = "target_sensitivity: float = 0.95  # of the positive class"
    error = refused(f"# Parameters\ntarget_sensitivity = {target}\n", cell=cell)
    assert (error.code, error.subject) == ("bad_parameter", "target_sensitivity") and "between 0 and 1" in error.reason


@pytest.mark.parametrize(
    ("given", "fits"),
    [
        ("folds = 0", True),
        ("folds = 5\nrepeats = 3", True),
        ("folds = 1", False),
        ("folds = -2", False),
        ("repeats = 0", False),
        ("folds = 3\nfold = 2", True),
        ("folds = 3\nrepeats = 2\nfold = 5", True),
        ("folds = 3\nfold = 3", False),
        ("folds = 3\nfold = -1", False),
        ("fold = 0", False),
    ],
)
def test_numbers_of_folds_that_cannot_be_are_refused_before_an_image_is_read(given, fits):
    cell = "folds: int = 0  # splits\nrepeats: int = 1  # rounds\nfold: int = None  # one\n"
    if fits:
        check(f"# Parameters\n{given}\n", cell=cell)
    else:
        assert refused(f"# Parameters\n{given}\n", cell=cell).code == "bad_parameter"


def test_all_problems_are_told_at_once():
    error = refused('# Parameters\nepoch = 3\nepochs = 2.5\nmixed = "true"\non_bad = "skpi"\nlr = None\n')
    assert error.subject == "epoch, epochs, lr, mixed, on_bad"
    for part in (
        "epochs=2.5 is not a whole number",
        "mixed='true' is not True or False",
        "on_bad='skpi' is not one of error, skip (did you mean 'skip'?)",
        "lr=None is not a finite number",
    ):
        assert part in error.reason


@pytest.mark.parametrize(
    "assignment",
    ["epochs = 1e400", "lr = 'inf'", "lr = True", "mixed = 'True'", "mixed = None", "data = None", "on_bad = 'ERROR'"],
)
def test_a_wrong_type_is_refused(assignment):
    assert refused(f"# Parameters\n{assignment}\n").code == "bad_parameter"


@pytest.mark.parametrize(
    ("assignment", "value"),
    [("epochs = '10'", 10), ("epochs = 10.0", 10), ("lr = '1e-3'", 1e-3), ("epochs = None", None)],
)
def test_numbers_are_converted_where_nothing_is_lost(assignment, value):
    settings, namespace = check(f"# Parameters\n{assignment}\n")
    name = assignment.split()[0]
    assert settings.values[name] == namespace[name] == value
    assert type(namespace[name]) is type(value)
    if "'" in assignment:
        assert f"read from the text {assignment.split()[-1]}" in repr(settings)


def test_a_whole_number_becomes_the_float_that_was_declared():
    settings, _ = check("# Parameters\nscale = 1\n", cell="scale: float = 0.5  # a factor")
    assert type(settings.scale) is float and settings.scale == 1


def test_a_parameters_cell_run_again_counts():
    settings, _ = check("# Parameters\nepochs = 35\n", CELL.replace("= None ", "= 7 "))
    assert settings.epochs == 7 and settings.changed == {}


def test_cells_that_failed_or_declare_nothing_do_not_disturb():
    history = ["", "broken (", CELL, "x = 3", "# Parameters\nepochs = 2", "also broken ="]
    assert notebook.check_parameters(history, {"epochs": 2}).changed == {"epochs": 2}


def test_papermills_own_paths_are_no_unknown_parameters():
    assert check("# Parameters\nPAPERMILL_INPUT_PATH = 'a.ipynb'\n")[0].changed == {}


@pytest.mark.parametrize(
    "line",
    ["size: list = [3]", "epochs: int = 'ten'", "seed: int = 2 * 3 * len('a')", "changed: int = 1", "mixed: bool = 1"],
)
def test_a_declaration_that_cannot_be_checked_is_refused(line):
    assert refused(cell=line).code == "parameters_cell"


def test_a_notebook_without_parameters_says_so():
    assert refused(cell="x = 3").code == "no_parameters"


def test_the_table_shows_what_changed_and_what_it_means():
    settings, _ = check("# Parameters\nepochs = 35\n")
    assert "epochs *   35       None     passes over the training images" in repr(settings)
    assert (
        "<td style='text-align:left'>learning rate, &quot;#&quot; and µ in the comment</td>" in settings._repr_html_()
    )


# --- a project ---


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project folder, from whose notebooks/breakhis a notebook works."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "patholib"\n')
    (tmp_path / "notebooks" / "breakhis").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "notebooks" / "breakhis")
    monkeypatch.delenv("PATHOLIB_OUTPUTS", raising=False)
    return tmp_path


def test_the_newest_run_is_remembered_in_the_projects_outputs(project, monkeypatch, tmp_path):
    run_dir = project / "outputs" / "breakhis-1"
    assert notebook.remember_run(run_dir) == project / "outputs" / "latest.json"
    assert files.read_json(project / "outputs" / "latest.json") == {"run_dir": str(run_dir)}
    monkeypatch.setenv("PATHOLIB_OUTPUTS", str(tmp_path / "elsewhere"))
    assert notebook.remember_run(run_dir) == tmp_path / "elsewhere" / "latest.json"


def test_the_project_is_found_from_any_folder_in_it_and_only_there(project, monkeypatch, tmp_path_factory):
    assert files.project_root() == project
    other = tmp_path_factory.mktemp("other")
    (other / "pyproject.toml").write_text('[project]\nname = "other"\n')
    monkeypatch.chdir(other)
    assert files.project_root() == other


# --- with papermill and nbval themselves ---


def code_cell(source: str, number: int, tags=(), text: str = "") -> dict:
    outputs = [{"output_type": "stream", "name": "stdout", "text": text}] if text else []
    return {
        "cell_type": "code",
        "id": f"cell-{number}",
        "metadata": {"tags": list(tags)},
        "outputs": outputs,
        "execution_count": number,
        "source": source,
    }


def write_notebook(path: Path, *cells: dict) -> Path:
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    path.write_text(json.dumps({"cells": list(cells), "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    return path


def call(folder: Path, *command: str):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )


CHECK = "from patholib.lab import notebook\nsettings = notebook.check_parameters(In, globals())\nsettings"


def test_papermill_stops_at_a_misspelt_parameter_and_passes_the_right_one(project):
    folder = project / "notebooks" / "breakhis"
    write_notebook(
        folder / "train.ipynb",
        code_cell(CELL, 1, ["parameters"]),
        code_cell(CHECK, 2),
        code_cell("print('epochs are', settings.epochs + 1)", 3),
    )
    run = ("papermill", "train.ipynb", "out.ipynb", "-k", "python3", "--log-output")
    wrong = call(folder, *run, "-p", "epoch", "35", "-p", "mixed", "true")
    assert wrong.returncode == 1
    line = [line for line in wrong.stderr.splitlines() if line.startswith("ParameterError")]
    assert len(line) == 1 and "did you mean 'epochs'?" in line[0] and "mixed='true' is not True or False" in line[0]
    logged = json.loads((project / "outputs" / "run.jsonl").read_text())
    assert logged["code"] == "unknown_parameter" and "Traceback" in logged["traceback"]
    right = call(folder, *run, "-p", "epochs", "35", "-p", "lr", "1e-4", "-p", "mixed", "True")
    assert right.returncode == 0, right.stderr
    assert "epochs are 36" in right.stderr


def test_an_error_of_a_cell_is_logged_with_its_traceback_in_the_folder_of_the_run(project):
    cells = [
        "run_dir = notebook.files.project_root() / 'outputs' / 'mine'",
        "run_dir.mkdir(parents=True)",
        "notebook.remember_run(run_dir)",
        "raise notebook.PathoError('no_luck', 'dice', 'fell', 'Try again')",
    ]
    write_notebook(
        project / "notebooks" / "own.ipynb",
        code_cell(CELL, 1, ["parameters"]),
        code_cell(CHECK, 2),
        code_cell("\n".join(cells), 3),
    )
    failed = call(project / "notebooks", "papermill", "own.ipynb", "out.ipynb", "-k", "python3")
    assert failed.returncode == 1 and "PathoError [no_luck] dice: fell. Try again" in failed.stderr
    events = [json.loads(line) for line in (project / "outputs" / "mine" / "run.jsonl").read_text().splitlines()]
    assert [event["code"] for event in events] == ["no_luck"] and "raise notebook" in events[0]["traceback"]
