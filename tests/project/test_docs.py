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
from patholib.data.readers import table
from patholib.model import recipes

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["README.md", "docs/recipes.md", "docs/parameters.md"])
def test_the_tables_on_a_page_are_those_of_the_code_and_of_what_was_measured(make, name):
    if name == "docs/parameters.md":
        pytest.importorskip("patholib.options")
    page = (ROOT / name).read_text(encoding="utf-8")
    assert make.with_tables(name, page) == page, "python docs/make.py tables writes them anew"


def test_a_changed_recipe_changes_the_table(make, monkeypatch):
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    monkeypatch.setitem(recipes.RECIPES, "breakhis", replace(recipes.BREAKHIS, fit="pad"))
    assert "`crop` (isic2019)" in make.with_tables("docs/recipes.md", page)


def test_the_table_of_rivals_is_read_from_the_results(make, tmp_path):
    text = ("<!-- quality {0}: begin -->\n"
            "| value | trainings | AUC | balanced accuracy, shares divided out | ECE |\n| - | - | - | - | - |\n"
            "| ours | 3 | 0.9 ({0}) | 0.5 | 0.1 |\n{1}\n| ours minus | AUC |\n| - | - |\n| timm | +0.2 |\n"
            "<!-- quality {0}: end -->\n")
    results = tmp_path / "RESULTS.md"
    results.write_text(text.format("isic2019", "| timm | 3 | 0.7 | 0.2 | 0.3 |\n") + text.format("idc", ""))
    assert make.rivals(results).splitlines() == [
        "|  | ISIC 2019: AUC | ISIC 2019: balanced accuracy, prior-corrected | IDC: AUC |",
        "| --- | --- | --- | --- |",
        "| ours | 0.9 (isic2019) | 0.5 | 0.9 (idc) |", "| timm | 0.7 | 0.2 |  |"]
    results.write_text("nothing")
    with pytest.raises(PathoError, match="has no section quality isic2019"):
        make.rivals(results)


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    done = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "-d", tmp_path], cwd=ROOT, text=True,
                          capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "index.html").exists() and (tmp_path / "benchmarks" / "RESULTS.html").exists()


@pytest.mark.parametrize(("letter", "last"), [("D", 42), ("P", 28), ("T", 24), ("M", 16)])
def test_every_entry_of_the_catalogue_has_its_answer(letter, last):
    rows = re.findall(r"^\| ([A-Z]\d\d) \|", (ROOT / "docs" / "robustness.md").read_text(encoding="utf-8"), re.M)
    assert [row for row in rows if row[0] == letter] == sorted(row for row in rows if row[0] == letter)
    assert {row for row in rows if row[0] == letter} == {f"{letter}{number:02}" for number in range(1, last + 1)}


RECORDED = """
def test_cut(catalogue):
    catalogue("D01", "cut off", "refused")


def test_empty(catalogue):
    catalogue("D01", "empty", "refused")


def test_neither():
    pass
"""
HEAD = "# Faults\n\n| id | input or fault | answer |\n|---|---|---|\n"
BEFORE = HEAD + "| D01 | cut off | accepted |\n| D01 | empty | refused |\n| T01 | a kill | resumed |\n"


@pytest.mark.parametrize(("arguments", "code", "said"), [
    (["tests"], 0, ""),
    (["tests", "-k", "cut or neither"], 4, "test_one.py::test_empty is left out"),
    (["tests", "--deselect", "tests/test_one.py::test_cut"], 4, "test_one.py::test_cut is left out"),
    (["tests/test_one.py"], 4, "test_two.py is not among the tests"),
    (["tests", "-n", "1"], 4, "-n gives"),
    (["tests/test_plain.py"], 0, ""),
    (["tests", "--maxfail", "1"], 1, "stays as it is: tests/test_two.py::test_it did not pass"),
])
def test_a_part_of_the_tests_or_a_failing_one_never_drops_rows_of_the_catalogue(tmp_path, arguments, code, said):
    failing = "--maxfail" in arguments
    copied = (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8")
    for name, text in {"tests/conftest.py": copied, "docs/robustness.md": BEFORE, "tests/test_one.py": RECORDED,
                       "tests/test_plain.py": "def test_nothing():\n    assert True\n",
                       "tests/test_two.py": "def test_it(catalogue):\n    catalogue('D02', 'odd', 'accepted')\n"
                                            f"    assert {not failing}\n"}.items():
        files.write_text(tmp_path / name, text)
    environment = {"PATHOLIB_RECORD": "1", "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run([sys.executable, "-m", "pytest", "-p", "xdist", *arguments], cwd=tmp_path, text=True,
                          capture_output=True, env=os.environ | environment)
    assert done.returncode == code and said in done.stdout + done.stderr
    after = HEAD + "| D01 | cut off | refused |\n| D01 | empty | refused |\n| D02 | odd | accepted |\n" \
        "| T01 | a kill | resumed |\n"
    whole = arguments == ["tests"]
    assert (tmp_path / "docs" / "robustness.md").read_text(encoding="utf-8") == (after if whole else BEFORE)


SETS = {  # heading: files, and a table with its rows, as the makers of the data set have them
    "HAM10000": (
        [f"HAM10000/HAM10000_images_part_{1 + i % 2}/ISIC_{i:07}.jpg" for i in range(4)],
        "HAM10000/HAM10000_metadata.csv",
        ["lesion_id,image_id,dx,dx_type,age,sex,localization",
         *(f"HAM_{i // 2:07},ISIC_{i:07},{('mel', 'nv')[i // 2]},histo,50.0,male,back" for i in range(4))]),
    "PAD-UFES-20": (
        [f"PAD-UFES-20/imgs_part_1/PAT_{i // 2}_{i}_7.png" for i in range(4)],
        "PAD-UFES-20/metadata.csv",
        ["patient_id,lesion_id,smoke,age,region,diagnostic,img_id,biopsed",
         *(f"PAT_{i // 2},{i},,50,ARM,{('MEL', 'NEV')[i % 2]},PAT_{i // 2}_{i}_7.png,True" for i in range(4))]),
    "One folder per class": (
        [f"my_images/{('normal', 'tumour')[i % 2]}/patient{i // 2}_{i}.png" for i in range(4)], "", []),
}


@pytest.mark.parametrize("heading", SETS)
def test_the_script_for_a_data_set_writes_a_table_that_is_read(tmp_path, monkeypatch, heading):
    section = (ROOT / "docs" / "own-images.md").read_text(encoding="utf-8").partition(f"## {heading}\n")[2]
    pictures, csv, rows = SETS[heading]
    for name in pictures:
        files.write_bytes(tmp_path / name, b"")
    if csv:
        files.write_text(tmp_path / csv, "\n".join(rows) + "\n")
    monkeypatch.chdir(tmp_path)
    exec(section.partition("```python\n")[2].partition("```")[0], {})
    read = table.read(tmp_path / pictures[0].split("/")[0] / "images.csv")
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
