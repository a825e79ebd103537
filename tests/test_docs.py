"""What the README shows is what the code says, and its pictures are small."""

from __future__ import annotations

import ast
import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import pytest

from patholib import files, recipes
from patholib.errors import PathoError

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def make():
    spec = importlib.util.spec_from_file_location("make", ROOT / "docs" / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_recipes_is_that_of_the_recipes(make):
    assert make.with_table(README) == README, "python docs/make.py writes it anew"


def test_a_changed_recipe_changes_the_table(make, monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "breakhis", replace(recipes.BREAKHIS, fit="pad"))
    assert "`crop` (isic2019)" in make.with_table(README)
    assert make.with_table(README) != README


def test_every_test_that_the_readme_names_exists():
    named = set(re.findall(r"`(test_\w+)`", README))
    tests = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").glob("test_*.py"))
    assert named and named <= set(re.findall(r"^def (test_\w+)", tests, re.M))


def test_every_module_stands_in_the_readme():
    modules = {p.stem for p in (ROOT / "patholib").rglob("*.py")} - {"__init__"}
    built = README.partition("## How it is built")[2]
    assert set(re.findall(r"`(\w+)`", built.partition("A module imports")[0])) >= modules


def test_the_order_of_imports_in_the_readme_is_the_one_that_is_tested():
    lines = README.partition("## How it is built")[2].partition("```\n")[2].partition("```")[0].splitlines()
    there = {p.stem for p in (ROOT / "patholib").iterdir() if p.suffix == ".py" or p.name == "datasets"}
    levels = [level & there for level in architecture_levels()]
    assert [set(line.split()) for line in lines] == [level for level in levels if level]


def architecture_levels() -> tuple[set[str], ...]:
    text = (ROOT / "tests" / "test_architecture.py").read_text(encoding="utf-8")
    return ast.literal_eval(re.search(r"^LEVELS = (\(.*?^\))", text, re.M | re.S)[1])


@pytest.mark.parametrize(("letter", "last"), [("D", 42), ("P", 28), ("T", 24), ("M", 16)])
def test_every_entry_of_the_catalogue_has_its_answer(letter, last):
    rows = re.findall(r"^\| ([A-Z]\d\d) \|", (ROOT / "docs" / "robustness.md").read_text(encoding="utf-8"), re.M)
    assert [row for row in rows if row[0] == letter] == sorted(row for row in rows if row[0] == letter)
    assert {row for row in rows if row[0] == letter} == {f"{letter}{number:02}" for number in range(1, last + 1)}


def test_the_pictures_are_small():
    pictures = list((ROOT / "docs" / "images").glob("*"))
    assert pictures and all(p.stat().st_size <= 300_000 for p in pictures)


def test_a_run_on_real_images_gives_no_pictures(make, tmp_path):
    files.write_json(tmp_path / "run.json", {"demo": False})
    with pytest.raises(PathoError, match="real_images"):
        make.main([str(tmp_path)])
