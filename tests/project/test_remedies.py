"""A remedy can be followed: every parameter, option and command that an error names exists."""

from __future__ import annotations

import argparse
import ast
import re
from pathlib import Path

from patholib import cli
from patholib.data.readers import sources
from patholib.options import Options

ROOT = Path(__file__).parents[2]
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "patholib").rglob("*.py"))}
# Programs of others, with the options of theirs that are named.
OTHERS = {
    "pip": {"--no-deps"},
    "git": set(),
    "curl": {"-F"},
    "python": {"-c"},
    "python3": {"-c"},
    "apt": set(),
    "ray": {"--head"},
    "hf": set(),
}


def remedies() -> list[tuple[str, str]]:
    """(place, text) of every remedy: the last argument of an error, of `stop_on` or of `Refusal`, or a name for one."""
    found = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            name = getattr(getattr(node, "func", None), "id", getattr(getattr(node, "func", None), "attr", ""))
            if isinstance(node, ast.Call) and name in ("PathoError", "Refusal", "_stop_on", "stop_on", "refuse"):
                values = [*node.args[-1:], *(k.value for k in node.keywords if k.arg == "remedy")]
                values = node.args[3:4] if name in ("PathoError", "Refusal") and len(node.args) > 3 else values
            elif isinstance(node, ast.Assign) and any("remedy" in ast.unparse(target) for target in node.targets):
                values = [node.value]
            elif isinstance(node, ast.Call) and any(k.arg == "remedy" for k in node.keywords):
                values = [k.value for k in node.keywords if k.arg == "remedy"]
            else:
                continue
            for value in values:
                parts = [p.value for p in ast.walk(value) if isinstance(p, ast.Constant) and isinstance(p.value, str)]
                found.append((f"{path.relative_to(ROOT)}:{node.lineno}", " ".join(parts)))
    return found


def parameters() -> set[str]:
    """The names of all parameters of functions and fields of classes of the library, and of a study."""
    found = set(Options().to_json())
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found |= {a.arg for a in (*node.args.args, *node.args.kwonlyargs, *node.args.posonlyargs)}
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(node.target.id)
    return found


def options() -> dict[str, set[str]]:
    """The options of every command."""
    found = {}
    for command in cli.COMMANDS:
        parser = argparse.ArgumentParser()
        command(parser)
        found[command.__name__] = {text for action in parser._actions for text in action.option_strings}
    return found


def wrong(text: str, known: dict[str, set[str]], names: set[str]) -> list[str]:
    """What a remedy names and does not exist."""
    every = set().union(*known.values(), *OTHERS.values())
    found = [option for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", text) if option not in every]
    found += [name for name in re.findall(r"(?<![\w./-])([a-z_]\w*)=(?![=.\w]*\.\.\.)", text) if name not in names]
    for code in re.findall(r"`([^`]+)`", text):
        program, _, rest = code.partition(" ")
        if program == "patholib":
            if rest.split()[0] not in known:
                found.append(code)
        elif program not in OTHERS and program not in names:
            found.append(code)
    for command in re.findall(r"(?<!of )\bpatholib ([a-z]+)\b", text):
        if command not in {*known, "serve"}:
            found.append(f"patholib {command}")
    return found


def test_every_parameter_option_and_command_that_a_remedy_names_exists():
    known, names = options(), parameters()
    bad = {f"{place}: {text}": found for place, text in remedies() if (found := wrong(text, known, names))}
    assert not bad, bad


def test_remedies_are_found_and_wrong_ones_noticed():
    known, names = options(), parameters()
    assert len(remedies()) > 300
    assert any("--out" in said or "--ids" in said for _, said in remedies())
    assert wrong("Give --idz, or spilt=0.2, or call `patholib triain`", known, names) == [
        "--idz",
        "spilt",
        "patholib triain",
        "patholib triain",
    ]
    assert not wrong('Pass resume="auto", --ids, or `patholib download`', known, names)


def test_every_source_that_a_remedy_can_download_is_known():
    assert set(sources.downloadable()) <= {"breakhis", "isic2019"}
