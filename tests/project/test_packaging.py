"""One list of requirements, one version, a licence, and an import that costs nothing."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import patholib
from patholib.model import architectures, recipes

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pythons() -> list[str]:
    """The versions of Python that the project names, the oldest first."""
    return [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", line)]


def extras(name: str) -> str:
    """What run.py installs, by the name that it gives to it."""
    return re.search(rf'^{name} = "(.+?)"', (ROOT / "run.py").read_text(encoding="utf-8"), re.M)[1]


def test_conda_installs_what_pyproject_says_and_nothing_else():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, nested = environment["dependencies"]
    newest = int(pythons()[-1].split(".")[1])
    assert python == f"python{PROJECT['requires-python']},<3.{newest + 1}"
    assert pip == "pip"
    assert nested == {"pip": [f"-e .[{extras('EXTRAS')}]"]}


def test_run_py_installs_all_extras_and_the_lowest_versions_of_what_a_user_runs():
    assert sorted(extras("EXTRAS").split(",")) == sorted(PROJECT["optional-dependencies"])
    assert set(extras("LOWEST_EXTRAS").split(",")) < set(PROJECT["optional-dependencies"])


def test_the_oldest_python_that_is_named_is_the_one_that_is_needed():
    assert PROJECT["requires-python"] == f">={pythons()[0]}"


def test_there_is_one_version():
    assert patholib.__version__ == PROJECT["version"]


def test_the_licence_is_the_declared_one():
    assert PROJECT["license"] == {"text": "MIT"}
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License\n\nCopyright (c) 2026 PathoVision")


@pytest.mark.alone
def test_importing_patholib_is_quick_and_loads_nothing_heavy():
    code = ("import sys; before = set(sys.modules); import patholib, patholib.base.errors, patholib.base.files\n"
            "print(*sorted({m.partition('.')[0] for m in set(sys.modules) - before}))")
    start = time.perf_counter()
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    bare = time.perf_counter()
    subprocess.run([sys.executable, "-c", ""], cwd=ROOT, check=True)
    assert (bare - start) - (time.perf_counter() - bare) < 1
    assert not {"torch", "torchvision", "matplotlib", "numpy", "pandas", "sklearn", "cv2"} & set(loaded.split())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The folder that `run.py wheel` makes, twice, of a copy of what git has."""
    place = tmp_path_factory.mktemp("checkout")
    for name in ("run.py", "pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copyfile(ROOT / name, place / name)
    for name in ("patholib", "notebooks"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    (place / "patholib" / "__pycache__").mkdir()
    (place / "patholib" / "__pycache__" / "cli.cpython-311.pyc").write_bytes(b"of another machine")
    before = {}
    for date in (1e9, 1.5e9):
        for path in place.rglob("*.py"):
            os.utime(path, (date, date))  # when a file was checked out is no part of what is built
        env = {**os.environ, "PATHOLIB_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
        env.pop("SOURCE_DATE_EPOCH", None)
        subprocess.run([sys.executable, place / "run.py", "wheel"], env=env, check=True, capture_output=True)
        found = {path.relative_to(place / "dist").as_posix(): path.read_bytes()
                 for path in (place / "dist").rglob("*") if path.is_file()}
        assert before in ({}, found), "the same files did not give the same bytes"
        before = found
    return place / "dist"


def test_the_wheel_holds_every_module_and_the_page_of_the_server_and_nothing_else(bundle):
    (wheel,) = bundle.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "patholib").rglob("*")
            if path.suffix == ".py" or path.name == "page.html"}
    info = f"patholib-{PROJECT['version']}.dist-info"
    assert "patholib/page.html" in ours
    assert names == ours | {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt",
                                                          "licenses/LICENSE")}


def test_the_wheel_installs_without_a_network_and_is_imported_from_there(bundle, tmp_path):
    (wheel,) = bundle.glob("*.whl")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile",
                    "--target", tmp_path / "there", wheel], check=True)
    code = "import patholib.cli, patholib.model.recipes; print(patholib.__file__, patholib.__version__)"
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, text=True, capture_output=True,
                          env={**os.environ, "PYTHONPATH": str(tmp_path / "there")}).stdout.split()
    assert said == [str(tmp_path / "there" / "patholib" / "__init__.py"), PROJECT["version"]]


def test_the_bundle_names_its_files_the_weights_and_their_digests(bundle):
    text = (bundle / "README.md").read_text(encoding="utf-8")
    found = sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file())
    notebooks = [path.relative_to(ROOT).as_posix() for path in (ROOT / "notebooks").rglob("*.ipynb")
                 if ".ipynb_checkpoints" not in path.parts]
    (wheel,) = bundle.glob("*.whl")
    assert found == sorted(["README.md", "dataset-metadata.json", wheel.name, *notebooks])
    for name in (wheel.name, *notebooks):
        assert f"| `{name}` | `{hashlib.sha256((bundle / name).read_bytes()).hexdigest()}` |" in text
    for recipe in (recipes.BREAKHIS, recipes.ISIC2019):
        file = architectures.NETWORKS[recipe.arch].weights_file
        assert f"| {recipe.name} | `{file}` | `{re.search('-([0-9a-f]{8})', file)[1]}` |" in text
    assert json.loads((bundle / "dataset-metadata.json").read_text(encoding="utf-8"))["id"].startswith("OWNER/")
    assert "{" not in text
