"""One list of requirements, one version, a whole wheel, and an import that costs nothing."""

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

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pythons() -> list[str]:
    """The versions of Python that the project names, the oldest first."""
    return [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", line)]


def test_conda_installs_what_pyproject_says():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, _, nested = environment["dependencies"]
    (asked,) = nested["pip"]
    assert set(re.fullmatch(r"-e \.\[(.+)\]", asked)[1].split(",")) <= set(PROJECT["optional-dependencies"])
    assert python.startswith(f"python{PROJECT['requires-python']}")


def test_the_oldest_python_that_is_named_is_the_one_that_is_needed():
    assert PROJECT["requires-python"] == f">={pythons()[0]}"


def test_there_is_one_version():
    assert patholib.__version__ == PROJECT["version"]


@pytest.mark.alone
def test_importing_patholib_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys; before = set(sys.modules); import patholib, patholib.base.errors, patholib.base.files\n"
        "print(*sorted({m.partition('.')[0] for m in set(sys.modules) - before}))"
    )
    start = time.perf_counter()
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    bare = time.perf_counter()
    subprocess.run([sys.executable, "-c", ""], cwd=ROOT, check=True)
    assert (bare - start) - (time.perf_counter() - bare) < 1
    assert not {"torch", "torchvision", "matplotlib", "numpy", "pandas", "sklearn", "cv2"} & set(loaded.split())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The folder that `run.py wheel` makes of a copy of what git has."""
    place = tmp_path_factory.mktemp("checkout")
    for name in ("run.py", "pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copyfile(ROOT / name, place / name)
    for name in ("patholib", "notebooks"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    (place / "patholib" / "__pycache__").mkdir()
    (place / "patholib" / "__pycache__" / "cli.cpython-311.pyc").write_bytes(b"of another machine")
    env = {**os.environ, "PATHOLIB_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    env.pop("SOURCE_DATE_EPOCH", None)
    subprocess.run([sys.executable, place / "run.py", "wheel"], env=env, check=True, capture_output=True)
    return place / "dist"


def test_the_same_files_give_the_same_bytes_whenever_they_were_checked_out(bundle, tmp_path):
    for path in bundle.parent.rglob("*.py"):
        os.utime(path, (1e9, 1e9))
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=bundle.parent,
        check=True,
        capture_output=True,
        env={**os.environ, "SOURCE_DATE_EPOCH": "1577836800"},
    )
    (first,), (second,) = bundle.glob("*.whl"), tmp_path.glob("*.whl")
    assert first.read_bytes() == second.read_bytes()


def test_the_wheel_holds_every_file_of_the_library_and_nothing_else(bundle):
    (wheel,) = bundle.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "patholib").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_installs_without_a_network_and_is_imported_from_there(bundle, tmp_path):
    (wheel,) = bundle.glob("*.whl")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
            "--no-compile",
            "--target",
            tmp_path / "there",
            wheel,
        ],
        check=True,
    )
    code = "import patholib.cli, patholib.model.recipes; print(patholib.__file__, patholib.__version__)"
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        check=True,
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "there")},
    ).stdout.split()
    assert said == [str(tmp_path / "there" / "patholib" / "__init__.py"), PROJECT["version"]]


def test_the_bundle_names_its_files_the_weights_and_their_digests(bundle):
    text = (bundle / "README.md").read_text(encoding="utf-8")
    found = {
        path.relative_to(bundle).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in bundle.rglob("*")
        if path.is_file()
    }
    assert {path.name for path in (ROOT / "notebooks").rglob("*.ipynb")} <= {Path(name).name for name in found}
    for name, digest in found.items():
        assert name in ("README.md", "dataset-metadata.json") or (name in text and digest in text), name
    for recipe in (recipes.BREAKHIS, recipes.ISIC2019):
        file = architectures.NETWORKS[recipe.arch].weights_file
        assert f"| {recipe.name} | `{file}` | `{re.search('-([0-9a-f]{8})', file)[1]}` |" in text
    assert json.loads((bundle / "dataset-metadata.json").read_text(encoding="utf-8"))["id"].startswith("OWNER/")
