"""The command `patholib`: exit codes a script can trust, one line for a refusal, help that names every command."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patholib import __version__, cli
from patholib.base import files

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[2]
CLEAN = "path,label,patient,split\na.png,NV,p1,train\nb.png,NV,p2,test\n"
LEAKY = CLEAN.replace("p2", "p1")


@pytest.fixture
def split(tmp_path):
    def write(text: str) -> str:
        return str(files.write_text(tmp_path / "split.csv", text))

    return write


@pytest.mark.parametrize(("text", "code", "says"), [(CLEAN, 0, "No leak"), (LEAKY, 1, "LEAKS: 100.0%")])
def test_the_exit_code_tells_clean_from_leaky(split, capsys, text, code, says):
    assert cli.main(["audit", split(text)]) == code
    out, err = capsys.readouterr()
    assert out.startswith(says) and err == ""


@pytest.mark.parametrize("text", ["", "path,label\na.png,NV\n", CLEAN.replace("test", "holdout"), None])
def test_what_cannot_be_read_is_one_line_and_exit_code_2(split, tmp_path, capsys, text):
    assert cli.main(["audit", split(text) if text is not None else str(tmp_path / "gone.csv")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("[") and err.count("\n") == 1


def test_every_option_reaches_the_audit(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "one" / "a.png")
    (tmp_path / "two" / "b.png").write_bytes((tmp_path / "one" / "a.png").read_bytes())
    folders = ["audit", "--train", str(tmp_path / "one"), "--test", str(tmp_path / "two")]
    assert cli.main([*folders, "--out", str(tmp_path / "out")]) == 1
    assert (tmp_path / "out" / "audit.html").is_file() and not files.read_json(tmp_path / "out/audit.json")["ok"]

    csv = files.write_text(tmp_path / "other.csv", "name,part,who\none/a.png,train,p1\ntwo/b.png,test,p2\n")
    meta = files.write_text(tmp_path / "meta.csv", "image,lesion_id\na,L1\nb,L1\n")
    given = ["audit", str(csv), "--columns", "path=name", "split=part"]
    assert cli.main(given) == 1  # the pictures
    assert cli.main([*given, "--ids", "who", "--no-pixels"]) == 0
    assert cli.main([*given, "--ids", "who", "--no-pixels", "--metadata", str(meta)]) == 1
    assert cli.main([*given, "--ids", "who", "--root", str(tmp_path / "one")]) == 0  # no file is there


@pytest.mark.parametrize(
    "arguments", [[], ["audit"], ["audit", "a.csv", "--train", "b"], ["adit"], ["audit", "a.csv", "--columns", "path"]]
)
def test_wrong_arguments_are_explained_with_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2 and "usage: patholib" in capsys.readouterr().err


def test_help_names_every_command_and_its_options(capsys):
    for arguments, words in (
        (["--help"], [command.__name__ for command in cli.COMMANDS]),
        (["audit", "--help"], ["--metadata"]),
        (["download", "--help"], ["--accept-licence"]),
        (["--version"], [__version__]),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        out = capsys.readouterr().out
        assert ended.value.code == 0 and all(word in out for word in words)


def test_python_m_patholib_is_the_command_also_where_the_console_knows_no_accents(split):
    csv = Path(split(LEAKY))
    csv = csv.rename(csv.with_name("Müller.csv"))
    done = subprocess.run(
        [sys.executable, "-m", "patholib", "audit", str(csv)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "") and "M\\xfcller.csv: train 1, test 1" in done.stdout


def test_the_installed_command_is_this_one():
    module, _, function = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"][
        "patholib"
    ].partition(":")
    assert getattr(importlib.import_module(module), function) is cli.main


def test_asking_for_help_loads_nothing_heavy():
    code = "import sys, patholib.cli; print({'numpy', 'pandas', 'torch', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
