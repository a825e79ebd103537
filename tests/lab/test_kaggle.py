"""The notebooks on Kaggle and Colab: where patholib comes from, what one address decides, and how a run goes home."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import kaggle
from patholib.base import files, places
from patholib.data.readers.sources import SOURCES
from patholib.model import recipes

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[2]
ADDRESS = "https://github.com/somebody/pathovision"
URLS = f'[project.urls]\nRepository = "{ADDRESS}"\nKaggle = "https://www.kaggle.com/somebody"\n\n[project.scripts]'
linux = pytest.mark.skipif(sys.platform != "linux", reason="Kaggle and Colab are Linux, and the links need it")


@pytest.fixture
def copy(tmp_path):
    """A copy of what is generated and of what it is generated from."""
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("notebooks", "kaggle"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    return tmp_path


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def with_address(copy: Path) -> None:
    page = (copy / "pyproject.toml").read_text(encoding="utf-8")
    assert page.count("[project.scripts]") == 1
    files.write_text(copy / "pyproject.toml", page.replace("[project.scripts]", URLS))


def first_cells(root: Path) -> list[str]:
    """The source of the first code cell of every notebook, which has the same id in each."""
    found = []
    for path in sorted((root / "notebooks").rglob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        first = next(cell for cell in cells if cell["cell_type"] == "code")
        assert first["id"] == "find-patholib" and not first["metadata"].get("tags"), path.name
        assert first["outputs"] == [], path.name
        found.append("".join(first["source"]))
    return found


# --- what is generated ---


def test_what_depends_on_the_address_is_as_it_is_generated(make, copy):
    before = contents(copy)
    make.everywhere(copy)
    assert contents(copy) == before, "python docs/make.py places writes it anew"


def test_the_first_cell_is_the_same_in_every_notebook_and_short(make):
    cells = first_cells(ROOT)
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {})
    assert len(cells) >= 6 and set(cells) == {make.first_cell(urls.get("Repository"))}
    assert len(cells[0].splitlines()) <= 12 and all(mount in cells[0] for mount in places.MOUNTS[:2])


def test_the_address_stands_in_pyproject_alone_and_everything_follows_from_it(make, copy):
    before = contents(copy)
    with_address(copy)
    make.everywhere(copy)
    assert {f"git+{ADDRESS}" in cell for cell in first_cells(copy)} == {True}
    page = (copy / "README.md").read_text(encoding="utf-8")
    name = "somebody/pathovision/blob/main/notebooks/isic2019/train.ipynb"
    assert f"(https://colab.research.google.com/github/{name})" in page
    assert f"(https://kaggle.com/kernels/welcome?src=https://github.com/{name})" in page
    assert f"git+{ADDRESS}" in page
    for path in (copy / "kaggle").glob("*/kernel-metadata.json"):
        assert files.read_json(path)["id"].startswith("somebody/pathovision-")
    files.write_text(copy / "pyproject.toml", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    make.everywhere(copy)
    assert contents(copy) == before


def test_an_address_that_is_not_githubs_gives_no_badges_and_can_be_installed_from(make):
    assert "colab" not in make.badges("https://example.org/pathovision.git")
    assert "git+https://example.org/pathovision.git" in make.badges("https://example.org/pathovision.git")
    assert make.badges(None) == ""


# --- what Kaggle is told of a notebook ---


METADATA = sorted((ROOT / "kaggle").glob("*/kernel-metadata.json"))


def test_every_notebook_has_its_metadata():
    told = {(path.parent / files.read_json(path)["code_file"]).resolve() for path in METADATA}
    assert told == {
        path.resolve() for path in (ROOT / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts
    }
    assert len(told) == len(METADATA) >= 6


@pytest.mark.parametrize("path", METADATA, ids=lambda path: path.parent.name)
def test_the_metadata_are_what_kaggle_takes(path):
    facts = files.read_json(path)
    notebook = json.loads((path.parent / facts["code_file"]).read_text(encoding="utf-8"))
    owner, slug = facts["id"].split("/")
    assert owner and len(slug) >= 5 and slug == facts["title"].lower().replace(" ", "-") and len(facts["title"]) <= 50
    assert facts["language"] == notebook["metadata"]["language_info"]["name"] == "python"
    assert facts["kernel_type"] == "notebook" and facts["is_private"] is True
    trains = path.parent.name in SOURCES
    assert facts["enable_gpu"] is trains and facts["enable_internet"] is True
    assert facts.get("machine_shape") == ("NvidiaTeslaT4" if trains else None)
    assert facts["dataset_sources"] == ([SOURCES[path.parent.name].kaggle] if trains else [])


def test_the_data_sets_of_every_recipe_have_a_copy_on_kaggle():
    assert all(re.fullmatch(r"[\w-]+/[\w-]+", SOURCES[name].kaggle) for name in recipes.RECIPES)


# --- the first cell ---


@pytest.fixture
def commands(monkeypatch):
    """What the cell would run; patholib looks as if it were not installed."""
    called, known = [], importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "patholib" else known(name, *a))
    monkeypatch.setattr(subprocess, "run", lambda command, **options: called.append((command[4:], options)))
    return called


def execute(cell: str) -> None:
    exec(compile(cell, "cell", "exec"), {})


def test_where_patholib_is_there_the_first_cell_does_nothing(monkeypatch, capsys):
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("something was run"))
    execute(first_cells(ROOT)[0])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("place", ["x.y", "slug/x.y", "datasets/owner/slug/x.y", "datasets/owner/slug/deeper/x.y"])
def test_a_wheel_is_found_wherever_a_data_set_can_sit(make, commands, monkeypatch, tmp_path, place):
    wheel = (tmp_path / "input" / place).parent / "patholib-0.2.0-py3-none-any.whl"
    files.write_bytes(wheel, b"")
    monkeypatch.setenv("PATHOLIB_MOUNTS", os.pathsep.join([str(tmp_path / "none"), str(tmp_path / "input")]))
    for address in (None, ADDRESS):  # what is attached comes before what has to be fetched
        execute(make.first_cell(address))
    assert (
        commands
        == [(["--quiet", "--no-deps", "--no-index", f"--find-links={wheel.parent}", "patholib"], {"check": True})] * 2
    )


def test_without_a_wheel_it_is_fetched_from_the_repository_on_kaggle_and_colab_only(
    make, commands, monkeypatch, tmp_path
):
    monkeypatch.setenv("PATHOLIB_MOUNTS", str(tmp_path))
    execute(make.first_cell(ADDRESS))
    assert commands.pop() == (["--quiet", "--no-deps", f"git+{ADDRESS}"], {"check": True})
    for mounts, address in ((tmp_path, None), (tmp_path / "none", ADDRESS), (tmp_path / "none", None)):
        monkeypatch.setenv("PATHOLIB_MOUNTS", str(mounts))
        with pytest.raises(ModuleNotFoundError, match="patholib"):
            execute(make.first_cell(address))
    assert commands == []


# --- with a Python that has patholib from a wheel alone ---


@pytest.fixture
def there(tmp_path):
    found = kaggle.session(tmp_path)
    kaggle.wheel(found.input / "datasets" / "somebody" / "patholib")
    return found


@linux
def test_the_newest_wheel_is_installed_and_no_other_package_touched(there):
    cell = there.working / "cell.py"
    cell.write_text(first_cells(ROOT)[0] + "\nimport patholib\nprint(patholib.__file__, patholib.__version__)\n")
    old = there.input / "old" / "patholib-0.0.9-py3-none-any.whl"
    old.parent.mkdir()
    with zipfile.ZipFile(old, "w") as archive:
        archive.writestr("patholib/__init__.py", "")
        archive.writestr("patholib-0.0.9.dist-info/METADATA", "Metadata-Version: 2.1\nName: patholib\nVersion: 0.0.9\n")
        archive.writestr(
            "patholib-0.0.9.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("patholib-0.0.9.dist-info/RECORD", "")
    assert there.call("-c", "import patholib").returncode == 1
    (site,) = (there.folder / "python" / "lib").glob("python*/site-packages")
    before = {path.name for path in site.iterdir()}
    done = there.call(cell)
    assert done.returncode == 0, done.stderr
    assert f"{site}/patholib/__init__.py 0.2.0" in done.stdout and "Kaggle: patholib 0.2.0" in done.stdout
    assert {path.name for path in site.iterdir()} - before == {"patholib", "patholib-0.2.0.dist-info"}
    assert all((site / name).is_symlink() for name in ("torch", "numpy"))


@linux
def test_time_that_is_up_ends_papermill_with_success_and_its_zip(there, tmp_path):
    """A notebook of five cells, as Kaggle runs it; training itself is stopped in `kaggle.run`."""
    error = 'notebook.PathoError("time_is_up", "max_hours", "is over", "Run again")'
    sources = [
        first_cells(ROOT)[0],
        "epochs: int = 3  # passes",
        "from patholib.lab import notebook\nsettings = notebook.check_parameters(In, globals())",
        "run_dir = notebook.files.outputs() / 'a-run'\nnotebook.files.write_json(run_dir / 'run.json', {})\n"
        "notebook.files.write_text(run_dir / 'split.csv', '')\nnotebook.remember_run(run_dir);",
        f"raise {error}",
        "open('reached', 'w').close()",
    ]
    cells = [
        {
            "cell_type": "code",
            "id": f"cell-{i}",
            "metadata": {"tags": ["parameters"] * (i == 1)},
            "outputs": [],
            "execution_count": None,
            "source": source,
        }
        for i, source in enumerate(sources)
    ]
    kernel = {"kernelspec": {"display_name": "Python 3", "name": "python3", "language": "python"}}
    page = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    (there.working / "short.ipynb").write_text(json.dumps(page))
    done = there.call("-m", "papermill", "short.ipynb", "out.ipynb", "-k", "python3", "-p", "epochs", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    assert [path.name for path in there.zips()] == ["patholib-a-run.zip"] and not (there.working / "reached").exists()
    said = (there.working / "out.ipynb").read_text()
    assert "a-run" in said and "patholib-a-run.zip" in said


@linux
@pytest.mark.slow
@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
def test_two_sessions_of_the_isic_notebook_end_with_one_zip(tmp_path, zipped):
    made = kaggle.run(sys.executable, tmp_path, zipped)
    with zipfile.ZipFile(made) as archive:
        names = {name.partition("/")[2] for name in archive.namelist()}
        facts = json.loads(archive.read(f"{made.stem.removeprefix('patholib-')}/run.json"))
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert {
        "report.html",
        "model_card.html",
        "data_card.html",
        "checklist.html",
        "metrics.json",
        "decision.json",
        "predictions_test.csv",
        "model.safetensors",
        "figures/confusion.png",
        "heatmaps/gallery.png",
    } <= names
    assert facts["status"] == "finished" and facts["demo"] is False and facts["data"]["root_name"] == "isic-2019"
    assert not any("checkpoints" in name or name == "run.jsonl" for name in names)
    for place in (tmp_path, ROOT, Path.home()):
        assert str(place).encode() not in content
    second = tmp_path / "second" / "kaggle" / "working"
    events = [json.loads(line)["event"] for line in next(second.glob("outputs/*/run.jsonl")).read_text().splitlines()]
    assert "resumed" in events and ("stopped" in events) is not zipped  # the log of the first is in no zip
    assert {path.name for path in second.iterdir()} == {"outputs", "notebook.ipynb", "__notebook__.ipynb", made.name}
