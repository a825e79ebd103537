"""What the workflows run exists, and a pull request gets nothing but the right to read."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.fixture(scope="module")
def run():
    spec = importlib.util.spec_from_file_location("run", ROOT / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_command_step_and_file_that_a_workflow_names_exists(run, tmp_path, path):
    text = path.read_text(encoding="utf-8")
    known = re.findall(r"^  python3 run\.py (\w+)", run.__doc__, re.M)
    assert set(re.findall(r"python3? run\.py (\w+)", text)) <= set(known)
    named = re.findall(r"only:? \"?(\w[\w,]*)", text)
    assert {step for names in named for step in names.split(",") if step} <= run.steps("python", tmp_path).keys() | {
        "killed"
    }
    assert [name for name in re.findall(r"\b\w+/[\w/]+\.py\b", text) if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_pull_request_may_only_read_and_gets_no_secret(path):
    text = path.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert "pull_request_target" not in text
    if "pull_request" in workflow[True]:  # what YAML makes of `on`
        assert workflow["permissions"] == {"contents": "read"} and "secrets." not in text
        assert not any("permissions" in job for job in workflow["jobs"].values())
