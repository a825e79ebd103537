"""Guarded numbers cannot drift unseen in tests, and never stop the run of a user."""

from __future__ import annotations

import numpy as np
import pytest
from test_notebook import CELL, CHECK, call, check, code_cell, project, write_notebook  # noqa: F401

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.lab import reference

pytestmark = pytest.mark.heavy


@pytest.fixture(autouse=True)
def strict(monkeypatch):
    """As in the tests of the notebooks."""
    monkeypatch.setenv(reference.STRICT, "1")
    monkeypatch.delenv(reference.RECORD, raising=False)


def record(monkeypatch, settings, **numbers):
    with monkeypatch.context() as patch:
        patch.setenv(reference.RECORD, "1")
        guard = reference.Guard("breakhis", settings)
        for name, value in numbers.items():
            guard(name, value)


def test_a_recorded_number_holds_within_its_tolerance(project, monkeypatch, capsys):  # noqa: F811
    settings, _ = check()
    record(monkeypatch, settings, auc=np.float64(0.93), images=np.int64(203))
    guard = reference.Guard("breakhis", settings)
    guard("auc", 0.931, tol=0.01)
    guard("images", 203)
    assert "auc 0.931 (reference 0.93, tolerance 0.01)" in capsys.readouterr().out
    for wrong in (0.919, 0.941, float("nan"), float("inf"), None):
        with pytest.raises(PathoError, match="number_changed"):
            guard("auc", wrong, tol=0.01)
    with pytest.raises(PathoError, match="number_changed"):
        guard("images", 204)
    with pytest.raises(PathoError, match="no_reference"):
        guard("sensitivity", 0.9)


def test_recording_keeps_other_notebooks_and_drops_numbers_that_are_gone(project, monkeypatch):  # noqa: F811
    settings, _ = check()
    (project / "notebooks" / "reference.json").write_text('{"isic2019": {"settings": {}, "numbers": {"auc": 0.8}}}')
    record(monkeypatch, settings, auc=0.9, old=1)
    record(monkeypatch, settings, auc=0.91)
    reference = files.read_json(project / "notebooks" / "reference.json")
    assert list(reference) == ["breakhis", "isic2019"]
    assert reference["breakhis"]["numbers"] == {"auc": 0.91}
    assert reference["breakhis"]["settings"] == settings.values


def test_nan_is_not_recorded(project, monkeypatch):  # noqa: F811
    with pytest.raises(PathoError, match="number_changed"):
        record(monkeypatch, check()[0], auc=float("nan"))


def test_real_data_and_changed_settings_are_neither_compared_nor_recorded(project, monkeypatch, capsys):  # noqa: F811
    default, changed = check()[0], check("# Parameters\nepochs = 1\n")[0]
    edited = check(cell=CELL.replace("= None ", "= 1 "))[0]  # as a person does it in JupyterLab
    record(monkeypatch, default, auc=0.93)
    before = (project / "notebooks" / "reference.json").read_text()
    for guard in (
        reference.Guard("breakhis", changed),
        reference.Guard("breakhis", default, active=False),
        reference.Guard("breakhis", edited),
    ):
        guard("auc", 0.1)
        guard("auc", float("nan"))
    record(monkeypatch, changed, auc=0.5)
    assert capsys.readouterr().out.count("not compared") == 7
    assert (project / "notebooks" / "reference.json").read_text() == before


def test_without_a_reference_file_nothing_is_compared(project, capsys):  # noqa: F811
    reference.Guard("breakhis", check()[0])("auc", 0.1)
    assert "not compared" in capsys.readouterr().out


def test_C20_in_a_run_of_a_user_a_difference_is_printed_and_nothing_stops(
    project,  # noqa: F811
    monkeypatch,
    capsys,
    catalogue,
):
    settings, _ = check()
    record(monkeypatch, settings, auc=0.93)
    monkeypatch.delenv(reference.STRICT)
    guard = reference.Guard("breakhis", settings)
    for value in (0.5, float("nan")):
        guard("auc", value, tol=0.01)
    guard("sensitivity", 0.9)
    assert capsys.readouterr().out.count(": differs") == 3
    catalogue(
        "C20",
        "a run of a user's own, with other numbers than the reference",
        "the difference is printed, and nothing stops",
    )


def test_nbval_fails_where_a_guarded_number_leaves_its_tolerance(project, monkeypatch):  # noqa: F811
    record(monkeypatch, check()[0], auc=0.93)
    guard = (
        "from patholib.lab import reference\nguard = reference.Guard('breakhis', settings)\nguard('auc', {}, tol=0.01)"
    )
    write_notebook(
        project / "notebooks" / "breakhis.ipynb",
        code_cell(CELL, 1, ["parameters"]),
        code_cell(CHECK, 2),
        code_cell(guard.format(0.935), 3),
        code_cell(guard.format(0.95), 4),
    )
    result = call(project, "pytest", "--nbval-lax", "--nbval-current-env", "notebooks", "-p", "no:cacheprovider")
    assert "1 failed, 3 passed" in result.stdout, result.stdout
    assert "breakhis.ipynb::Cell 3" in result.stdout and "is 0.95, but the reference is 0.93" in result.stdout
