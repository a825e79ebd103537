"""The workflow for the public runs every step of run.py, and nothing that run.py does not know."""

from __future__ import annotations

import importlib.util
import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
WORKFLOW = yaml.safe_load(TEXT)
JOBS = WORKFLOW["jobs"]
CLASSIFIERS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["classifiers"]
PYTHONS = [line.rpartition(" ")[2] for line in CLASSIFIERS if re.search(r"Python :: 3\.\d+$", line)]


@pytest.fixture(scope="module")
def run():
    spec = importlib.util.spec_from_file_location("run", ROOT / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands(job: dict) -> list[str]:
    """What a job runs, one command for each place of its matrix."""
    lines = [line for step in job["steps"] for line in step.get("run", "").splitlines()]
    places = job.get("strategy", {}).get("matrix", {}).get("include", [{}])
    return [re.sub(r"\$\{\{ matrix\.(\w+) \}\}", lambda found, place=place: place[found[1]], line)
            for place in places for line in lines]


def chosen(job: dict) -> set[str]:
    """The steps of `run.py test` that a job names."""
    found = (re.search(r"run\.py test --only (\S+)", line) for line in commands(job))
    return {name for match in found if match for name in match[1].split(",")}


def test_the_jobs_are_those_that_were_agreed_on():
    assert list(JOBS) == ["lint", "unit", "notebooks", "browser", "lowest-versions"]
    places = JOBS["unit"]["strategy"]["matrix"]["include"]
    assert {place["os"] for place in places} == {"ubuntu-latest", "windows-latest", "macos-latest"}


def test_every_command_is_one_that_run_py_knows(run):
    known = re.findall(r"^  python3 run\.py (\w+)", run.__doc__, re.M)
    assert all(callable(getattr(run, name)) for name in known)
    for name, job in JOBS.items():
        for line in commands(job):
            found = re.match(r"python run\.py (\w+)( --only (\S+)|( tests/\S+\.py)+)?$", line)
            assert found or line.startswith("python -m pip install"), (name, line)
            assert not found or found[1] in known, (name, line)
            for path in re.findall(r"tests/\S+", line):
                assert (ROOT / path).is_file(), path


@pytest.mark.skipif(os.name != "posix", reason="Windows has one step less")
def test_every_step_is_run_by_a_job_and_no_other_is_named(run, tmp_path):
    named = set().union(*map(chosen, JOBS.values()))
    assert named == set(run.steps("python", tmp_path)) - {"lowest"}
    assert commands(JOBS["lowest-versions"]) == ["python run.py lowest"]  # which is that step and more


def test_the_pythons_are_those_that_the_project_names():
    tried = [place["python"] for place in JOBS["unit"]["strategy"]["matrix"]["include"] if "ubuntu" in place["os"]]
    assert tried == PYTHONS
    used = re.findall(r'python(?:-version)?: "(3\.\d+)"', TEXT)
    assert set(used) == set(PYTHONS)
    (lowest,) = [step["with"]["python-version"] for step in JOBS["lowest-versions"]["steps"]
                 if "setup-python" in step.get("uses", "")]
    assert lowest == PYTHONS[0]


def test_it_may_read_and_nothing_else():
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in JOBS.values())
    assert "secrets." not in TEXT and "pull_request_target" not in TEXT


def test_actions_are_pinned_to_a_major_version_and_no_job_waits_for_ever():
    used = [step["uses"] for job in JOBS.values() for step in job["steps"] if "uses" in step]
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", name) for name in used)
    assert len({name.partition("@")[0] for name in used}) == len(set(used)), "one action in two versions"
    assert all(job["timeout-minutes"] <= 60 for job in JOBS.values())


def test_the_reports_of_headless_runs_are_kept():
    for name in ("notebooks", "lowest-versions"):
        kept = [step.get("env", {}).get("PATHOLIB_KEEP") for step in JOBS[name]["steps"] if "run" in step]
        (upload,) = [step for step in JOBS[name]["steps"] if "upload-artifact" in step.get("uses", "")]
        assert kept == [upload["with"]["path"]] and upload["if"] == "always()"
