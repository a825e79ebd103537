"""Every parameter stands once: what is wrong is told at once, and all that shows parameters agrees with Options."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from patholib import cli, options
from patholib.base import files
from patholib.base.errors import PathoError
from patholib.lab import notebook
from patholib.model import recipes
from patholib.options import Options

ROOT = Path(__file__).parents[2]
NOTEBOOKS = {
    name: ROOT / "notebooks" / where
    for name, where in (
        ("breakhis", "breakhis/train.ipynb"),
        ("isic2019", "isic2019/train.ipynb"),
        ("quickstart", "quickstart.ipynb"),
    )
}


def refused(call, *args, **given) -> PathoError:
    with pytest.raises(PathoError) as error:
        call(*args, **given)
    return error.value


def code_cells(path: Path) -> list[str]:
    return ["".join(cell["source"]) for cell in files.read_json(path)["cells"] if cell["cell_type"] == "code"]


def test_everything_wrong_is_told_in_one_error():
    error = refused(Options, epoch=3, lr="fast", folds=1, on_bad="skpi", target_sensitivity=95)
    assert error.code == "unknown_parameter"
    assert error.subject == "epoch, on_bad, lr, target_sensitivity, folds"
    for part in ("did you mean 'epochs'?", "did you mean 'skip'?", "lr='fast' is not a finite number"):
        assert part in error.reason
    assert refused(Options, recipe="breakhist").code == "bad_parameter"


def test_numbers_are_read_from_text_and_nothing_is_guessed():
    assert (Options(epochs="3", lr="1e-3").epochs, Options(lr="1e-3").lr) == (3, 1e-3)
    assert refused(Options, probe="true").code == refused(Options, data=12).code == "bad_parameter"
    words = Options.read("isic2019", words={"probe": "true", "epochs": "None", "data": "my.csv"})
    assert (words.probe, words.epochs, words.data, words.recipe) == (True, None, "my.csv", "isic2019")


def test_what_a_run_notes_is_what_changes_the_study_and_no_folder():
    given = Options(data="/home/me/scans.csv", weights="none", epochs=3, device="cpu", output="/tmp/x", resume="never")
    assert given.of_study == {"recipe": "breakhis", "data": "scans.csv", "weights": "none", "epochs": 3}
    assert Options(recipe="isic2019", precision="fp32").of_study == {"recipe": "isic2019", "precision": "fp32"}


def test_options_do_not_change_and_a_changed_copy_is_checked():
    given = Options(epochs=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        given.epochs = 4
    assert dataclasses.replace(given, seed=1) == Options(epochs=3, seed=1) != given
    assert refused(dataclasses.replace, given, seed=-1).code == "bad_parameter"
    assert given.changed == {"epochs": 3} and "epochs *" in repr(given) and "<td" in given._repr_html_()


def test_what_overrides_a_recipe_are_its_fields():
    assert set(options.OF_RECIPE) <= {f.name for f in dataclasses.fields(recipes.Recipe)}
    assert Options(epochs=3).of_recipe.items() >= {"epochs": 3, "seed": 0, "lr": None, "fractions": None}.items()
    assert Options(val=0.1, test=0.3).of_recipe["fractions"] == pytest.approx((0.6, 0.1, 0.3))
    assert Options(test=0.3).of_recipe["fractions"] == pytest.approx((0.55, 0.15, 0.3))  # the other as in the recipe


def test_a_file_of_parameters_is_read_and_checked(tmp_path):
    path = files.write_json(tmp_path / "RUN.json", {"recipe": "isic2019", "epochs": 3})
    assert Options.read(path=path) == Options(recipe="isic2019", epochs=3)
    assert Options.read("quickstart", path, {"seed": "4"}) == Options(
        **options.PRESETS["quickstart"] | {"recipe": "isic2019", "epochs": 3, "seed": 4}
    )
    assert refused(Options.read, "breakhist").code == "unknown_recipe"
    for wrong in ([], {"epoch": 3}, {"epochs": "three"}):
        files.write_json(path, wrong)
        assert refused(Options.read, "breakhis", path).code in ("bad_parameter", "unknown_parameter")


# --- all that shows parameters ---


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_parameters_cell_of_a_notebook_is_written_from_options(name):
    cells = code_cells(NOTEBOOKS[name])
    (cell,) = [source for source in cells if source.startswith("data: str")]
    settings = notebook.check_parameters([cell], {})
    as_declared = options.cell(list(settings.values), settings.values)
    assert cell == as_declared, "python docs/make.py parameters writes it anew"
    (second,) = [source for source in cells if "from_notebook" in source]
    preset = re.search(r'from_notebook\(In, globals\(\)(?:, "(\w+)")?\)', second)[1] or "breakhis"
    assert preset == name
    found = Options.from_notebook(cells, {}, preset)
    assert found == Options(**options.PRESETS[name]) and found.changed == {}
    if name != "quickstart":
        assert {f.name for f in dataclasses.fields(Options)} - set(settings.values) == {"recipe", "small"}


def test_what_papermill_injects_wins_over_the_cell():
    history = [options.cell(["data", "seed"], {"seed": 20}), "# Parameters\nseed = 3\n"]
    namespace: dict = {}
    for source in history:
        exec(source, namespace)
    found = Options.from_notebook(history, namespace, "quickstart")
    assert (found.seed, found.small, found.changed) == (3, True, {"seed": 3})
    assert refused(Options.from_notebook, [history[0], "# Parameters\nepoch = 3\n"], {}).code == "unknown_parameter"


def test_C26_the_help_of_the_command_lists_every_parameter(capsys, catalogue):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    out = capsys.readouterr().out
    for p in options.parameters():
        assert f"{p.name} ({p.kind}, default {p.default!r})" in out and p.help in out
    catalogue("C26", "patholib train --help", "the parameters with their meaning")


def test_json_gives_back_the_same_options():
    given = Options(epochs=3, output="runs")
    assert Options(**json.loads(json.dumps(given.to_json()))) == given
