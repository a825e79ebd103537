"""The tables and pictures of the documentation are those of the code, the measurements and a run; the site builds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.data import readers
from patholib.model import recipes

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[2]


def test_the_tables_on_every_page_are_those_of_the_code_and_of_what_was_measured(make):
    stale = []
    for name in make.TABLES:
        page = (ROOT / name).read_text(encoding="utf-8")
        if make.with_tables(name, page) != page:
            stale.append(name)
    assert stale == [], "python docs/make.py tables writes them anew"


def test_a_changed_recipe_changes_the_table(make, monkeypatch):
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    monkeypatch.setitem(recipes.RECIPES, "breakhis", replace(recipes.BREAKHIS, fit="pad"))
    assert "`crop` (isic2019)" in make.with_tables("docs/recipes.md", page)


def test_the_table_of_rivals_is_read_from_the_results(make, tmp_path):
    text = (
        "<!-- quality {0}: begin -->\n"
        "| value | trainings | AUC | balanced accuracy, shares divided out | ECE |\n| - | - | - | - | - |\n"
        "| ours | 3 | 0.9 ({0}) | 0.5 | 0.1 |\n{1}\n| ours minus | AUC |\n| - | - |\n| timm | +0.2 |\n"
        "<!-- quality {0}: end -->\n"
    )
    results = tmp_path / "RESULTS.md"
    results.write_text(text.format("isic2019", "| timm | 3 | 0.7 | 0.2 | 0.3 |\n") + text.format("idc", ""))
    assert make.rivals(results).splitlines() == [
        "|  | ISIC 2019: AUC | ISIC 2019: balanced accuracy, prior-corrected | IDC: AUC |",
        "| --- | --- | --- | --- |",
        "| ours | 0.9 (isic2019) | 0.5 | 0.9 (idc) |",
        "| timm | 0.7 | 0.2 |  |",
    ]
    results.write_text("nothing")
    with pytest.raises(PathoError, match="no_results"):
        make.rivals(results)


@pytest.mark.slow  # a step of its own of `run.py test` builds the same
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", tmp_path],
        cwd=ROOT,
        text=True,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "index.html").exists() and (tmp_path / "benchmarks" / "RESULTS.html").exists()


@pytest.mark.parametrize(("letter", "last"), [("D", 42), ("P", 28), ("T", 24), ("M", 16)])
def test_every_entry_of_the_catalogue_has_its_answer(letter, last):
    rows = re.findall(r"^\| ([A-Z]\d\d) \|", (ROOT / "docs" / "robustness.md").read_text(encoding="utf-8"), re.M)
    assert [row for row in rows if row[0] == letter] == sorted(row for row in rows if row[0] == letter)
    assert {row for row in rows if row[0] == letter} == {f"{letter}{number:02}" for number in range(1, last + 1)}


RECORDED = """
def test_cut(catalogue):
    catalogue("Z01", "cut off", "refused")


def test_empty(catalogue):
    catalogue("Z01", "empty", "refused")
"""
OTHER = """
def test_it(catalogue):
    catalogue("Z02", "odd", "accepted")
    assert {passes}
"""
HEAD = "# Faults\n\n| id | input or fault | answer |\n|---|---|---|\n"
BEFORE = (
    "| Z01 | cut off | accepted |",
    "| Z01 | gone | accepted |",
    "| Z02 | old | accepted |",
    "| Z03 | a kill | resumed |",
)
CUT, EMPTY, ODD = "| Z01 | cut off | refused |", "| Z01 | empty | refused |", "| Z02 | odd | accepted |"


@pytest.mark.parametrize(
    ("arguments", "passes", "after"),
    [
        (["tests"], True, (CUT, EMPTY, ODD, BEFORE[3])),
        (["tests/test_one.py"], True, (CUT, EMPTY, *BEFORE[2:])),
        (["tests/test_one.py::test_empty"], True, (BEFORE[0], EMPTY, *BEFORE[1:])),
        (["tests", "-k", "empty or it"], True, (BEFORE[0], EMPTY, BEFORE[1], ODD, BEFORE[3])),
        (["tests"], False, (CUT, EMPTY, *BEFORE[2:])),
        (["tests", "-n", "2"], True, (CUT, EMPTY, BEFORE[1], ODD, *BEFORE[2:])),
    ],
    ids=["all", "a file", "a test", "some by name", "one fails", "several processes"],
)
def test_any_tests_record_their_rows_and_drop_only_what_they_would_have_given(tmp_path, arguments, passes, after):
    copied = (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8")
    page = tmp_path / "docs" / "robustness.md"
    for path, text in {
        "tests/conftest.py": copied,
        "tests/test_one.py": RECORDED,
        "tests/test_two.py": OTHER.format(passes=passes),
        page: HEAD + "\n".join(BEFORE),
    }.items():
        files.write_text(tmp_path / path, text)
    environment = {
        "PATHOLIB_RECORD": "1",
        "PYTHONPATH": str(ROOT),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_ADDOPTS": "",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "xdist", *arguments],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        env=os.environ | environment,
    )
    assert done.returncode == (0 if passes else 1), done.stdout + done.stderr
    assert page.read_text(encoding="utf-8") == HEAD + "\n".join(after) + "\n"


def test_the_script_for_class_folders_writes_a_table_that_is_read(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "own-images.md").read_text(encoding="utf-8").partition("## One folder per class\n")[2]
    for i in range(4):
        files.write_bytes(tmp_path / f"my_images/{('normal', 'tumour')[i % 2]}/patient{i // 2}_{i}.png", b"")
    monkeypatch.chdir(tmp_path)
    exec(text.partition("```python\n")[2].partition("```")[0], {})
    read = readers.read(tmp_path / "my_images.csv")
    assert len(read.table) == 4 and read.table["group"].nunique() == 2 and len(read.classes) == 2


def test_the_pictures_are_small():
    pictures = list((ROOT / "docs" / "images").glob("*"))
    assert pictures and all(p.stat().st_size <= 300_000 for p in pictures)


def test_a_run_on_real_images_gives_no_pictures(make, tmp_path):
    files.write_json(tmp_path / "run.json", {"demo": False})
    with pytest.raises(PathoError, match="real_images"):
        make.main([str(tmp_path)])
    with pytest.raises(PathoError, match="real_images"):
        make.main(["example", str(tmp_path)])


EXAMPLE = ROOT / "docs" / "example"


def test_the_example_is_of_demo_images_and_small():
    pages = sorted(EXAMPLE.glob("*.md"))
    assert {page.stem for page in pages} == {"README", "report", "model_card", "data_card", "checklist"}
    assert all("DEMO IMAGES: NOT A RESULT" in page.read_text(encoding="utf-8")[:200] for page in pages)
    assert sum(path.stat().st_size for path in EXAMPLE.rglob("*") if path.is_file()) < 1_500_000


@pytest.mark.parametrize("page", sorted(EXAMPLE.glob("*.md")), ids=lambda page: page.stem)
def test_what_a_page_of_the_example_names_is_there(page):
    targets = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / unquote(target)).is_file()] == []


def test_the_example_is_written_from_the_run_folder_with_small_pictures(make, tmp_path):
    run = tmp_path / "run"
    for stem in ("report", "model_card", "data_card", "checklist"):
        files.write_text(run / f"{stem}.md", "![a](figures/a%20b.png) [data_report.html](data_report.html)\n")
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    (run / "figures").mkdir()
    Image.fromarray(noise).save(run / "figures" / "a b.png")
    files.write_text(tmp_path / "example" / "gone.md", "of an earlier run")
    make.example(run, tmp_path / "example")
    assert (tmp_path / "example" / "figures" / "a b.png").stat().st_size <= make.PAGE_LIMIT
    assert not (tmp_path / "example" / "gone.md").exists()
    assert "](data_report.html)" not in (tmp_path / "example" / "report.md").read_text(encoding="utf-8")
