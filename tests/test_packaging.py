"""One list of requirements, one version, a licence, and an import that costs nothing."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml

import patholib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_conda_installs_what_pyproject_says_and_nothing_else():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, nested = environment["dependencies"]
    assert python == "python" + PROJECT["requires-python"]
    assert pip == "pip"
    (line,) = nested["pip"]
    extras = re.fullmatch(r"-e \.\[([\w,]+)\]", line)[1].split(",")
    assert extras == ["notebooks", "serve", "test"] and set(extras) <= set(PROJECT["optional-dependencies"])


def test_run_py_installs_extras_that_exist():
    extras = re.search(r'^EXTRAS = "(.+)"', (ROOT / "run.py").read_text(encoding="utf-8"), re.M)[1].split(",")
    assert set(extras) <= set(PROJECT["optional-dependencies"])


def test_there_is_one_version():
    assert patholib.__version__ == PROJECT["version"]


def test_the_licence_is_the_declared_one():
    assert PROJECT["license"] == {"text": "MIT"}
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License\n\nCopyright (c) 2026 PathoVision")


@pytest.mark.alone
def test_importing_patholib_is_quick_and_loads_nothing_heavy():
    code = ("import sys; before = set(sys.modules); import patholib, patholib.errors, patholib.files\n"
            "print(*sorted({m.partition('.')[0] for m in set(sys.modules) - before}))")
    start = time.perf_counter()
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    bare = time.perf_counter()
    subprocess.run([sys.executable, "-c", ""], cwd=ROOT, check=True)
    assert (bare - start) - (time.perf_counter() - bare) < 1
    assert not {"torch", "torchvision", "matplotlib", "numpy", "pandas", "sklearn", "cv2"} & set(loaded.split())
