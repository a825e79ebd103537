"""The files of deploy/ as far as they can be checked without a container engine."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import live
import pytest
import yaml

from patholib import cli
from patholib.deploy.server import serving

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


def instructions(text: str) -> list[tuple[str, str]]:
    """(name, arguments) of a Dockerfile, without comments and with continued lines joined."""
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^\s*#.*\n", "", text, flags=re.M)).splitlines()
    return [tuple(line.strip().split(maxsplit=1)) for line in lines if line.strip()]


STEPS = instructions(DOCKERFILE)


def test_everything_that_is_copied_is_there_and_sent_to_the_engine():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    copied = [source for name, rest in STEPS if name == "COPY" and "--from" not in rest for source in rest.split()[:-1]]
    assert ignored[0] == "*" and "patholib" in copied
    for source in copied:
        assert (ROOT / source).exists() and any(fnmatch(f"!{source}", line) for line in ignored)


def test_what_is_installed_exists():
    commands = [rest for name, rest in STEPS if name == "RUN" and "pip install" in rest]
    extras = [
        extra for command in commands for found in re.findall(r"\.\[([\w,]+)\]", command) for extra in found.split(",")
    ]
    assert extras and set(extras) <= set(EXTRAS)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    known = {line for lines in (project["dependencies"], *EXTRAS.values()) for line in lines}
    packages = [word for command in commands for word in shlex.split(command) if ">=" in word]
    assert packages and set(packages) <= known  # the same bounds as in pyproject.toml


def test_it_is_started_as_nobody_with_arguments_that_the_server_knows():
    names = [name for name, _ in STEPS]
    last = dict(STEPS[len(names) - names[::-1].index("FROM") :])
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", last["USER"])
    assert names.index("ENTRYPOINT") > names.index("USER")
    program, command, *rest = json.loads(last["ENTRYPOINT"]) + json.loads(last["CMD"])
    assert (program, command) == ("patholib", "serve")
    parser = argparse.ArgumentParser()
    cli.serve(parser)
    given = parser.parse_args(rest)
    assert str(given.model) == "/model" and str(given.port) == last["EXPOSE"] and given.token is None
    assert not given.insecure and "8000/readyz" in last["HEALTHCHECK"]
    assert not re.search(r"(token|password|secret|key)\s*[=:]", DOCKERFILE, re.I)


def test_the_health_check_is_one_that_runs(tmp_path):
    (check,) = [rest for name, rest in STEPS if name == "HEALTHCHECK"]
    command = json.loads(re.search(r"CMD (\[.*\])", check)[1])
    with live.threaded(live.predictor(live.model(tmp_path))) as server:
        command = [sys.executable, *(part.replace("8000", str(server.port)) for part in command[1:])]
        assert subprocess.run(command, check=False, timeout=60).returncode == 0
        server.service.draining = True
        assert subprocess.run(command, check=False, timeout=60, stderr=subprocess.DEVNULL).returncode != 0


def test_compose_keeps_the_container_small_and_its_token_out_of_the_file():
    (service,) = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))["services"].values()
    assert (ROOT / "deploy" / service["build"]["context"] / service["build"]["dockerfile"]).resolve() == (
        ROOT / "deploy" / "Dockerfile"
    )
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["ports"] == ["127.0.0.1:8000:8000"] and service["volumes"][0].endswith(":/model:ro")
    assert service["environment"][serving.TOKEN].startswith("${PATHOLIB_TOKEN:?")
    assert "privileged" not in service and "network_mode" not in service


@pytest.mark.slow
def test_the_command_that_installs_it_works_in_an_empty_environment(tmp_path):
    """Minutes, and several GB, since the index of this test knows no PyTorch without CUDA."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", f"{ROOT}[serve]", "onnxruntime>=1.20"], check=True)
    done = subprocess.run(
        [tmp_path / "venv" / "bin" / "patholib", "serve", tmp_path / "nowhere"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == serving.BAD_MODEL and "missing_file" in done.stderr
