"""What the README and the pages of the documentation name exists: files, commands, options, parameters, modules."""

from __future__ import annotations

import argparse
import ast
import functools
import importlib.util
import json
import re
from pathlib import Path

import pytest

from patholib import cli

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").exists())
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("benchmarks/*.md"),
        ROOT / "data" / "README.md",
        ROOT / "outputs" / "README.md",
    ]
)
COMMANDS = {command.__name__: command for command in cli.COMMANDS}
PACKAGE = ROOT / "patholib"

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------ files


def dead_links(text: str, folder: Path) -> list[str]:
    """Targets of links and pictures, and paths in backticks below a folder of the project, that do not exist.

    A folder whose contents git ignores (outputs, data) holds examples, and addresses are not looked at.
    """
    missing = []
    for target, anchor in re.findall(r"\]\(([^)\s#:]*)(?:#([^)\s]+))?\)", text):
        path = folder / target
        if not path.exists():
            missing.append(target)
        elif anchor and path.suffix == ".md" and anchor not in anchors(text_of(path)):
            missing.append(f"{target}#{anchor}")
    inside = "|".join(p.name for p in ROOT.iterdir() if p.is_dir() and p.name not in ("outputs", "data"))
    named = re.findall(rf"`((?:{inside})/[\w./-]*)`", text) + re.findall(r"python3? (\w+/\w+\.py)\b", text)
    return missing + [path for path in named if not (ROOT / path).exists()]


def anchors(text: str) -> set[str]:
    """What the headings of a page are called in an address."""
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@every_page
def test_every_file_that_a_page_names_exists(page):
    assert dead_links(text_of(page), page.parent) == []


@every_page
def test_every_test_file_that_a_page_names_exists(page):
    there = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert set(re.findall(r"`(?:tests/)?(test_\w+\.py)`", text_of(page))) - there == set()


# --------------------------------------------------------------------------------------------------------- commands


def written(text: str) -> list[str]:
    """The commands of a page: lines of its code blocks without a language, joined where they go on, and `code`."""
    blocks = "\n".join(re.findall(r"^```\n(.*?)^```", text, re.M | re.S)).replace("\\\n", " ")
    lines = [line.partition("  #")[0].strip() for line in blocks.splitlines()]
    return lines + re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


@functools.cache
def run_commands() -> set[str]:
    """The commands of run.py, as its help lists them."""
    spec = importlib.util.spec_from_file_location("run", ROOT / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return set(re.findall(r"^  python3 run\.py (\w+)", module.__doc__, re.M))


@functools.cache
def help_of(command: str) -> str:
    parser = argparse.ArgumentParser(prog=command)
    COMMANDS[command](parser)
    return parser.format_help()


def unknown_commands(text: str) -> list[str]:
    """Commands of run.py and of patholib, and options of the latter, that a page names and that do not exist."""
    unknown = []
    for line in written(text):
        if (found := re.search(r"python3? run\.py ([a-z]\w*)", line)) and found[1] not in run_commands():
            unknown.append(f"run.py {found[1]}")
        if found := re.match(r"(?:python3 run\.py )?patholib ([a-z]\w*)(.*)", line):
            if found[1] not in COMMANDS:
                unknown.append(f"patholib {found[1]}")
            else:
                unknown += [
                    f"patholib {found[1]} {option}"
                    for option in re.findall(r"(?<!\S)--[\w-]+", found[2])
                    if not re.search(rf"{option}\b", help_of(found[1]))
                ]
    return unknown


@functools.cache
def known_parameters() -> set[str]:
    """The fields of Options, and whatever a notebook takes besides."""
    names = set()
    for notebook in (ROOT / "notebooks").rglob("*.ipynb"):
        for cell in json.loads(text_of(notebook))["cells"]:
            if "parameters" in cell["metadata"].get("tags", []):
                names |= set(re.findall(r"^(\w+)\s*:", "".join(cell["source"]), re.M))
    if importlib.util.find_spec("patholib.options"):
        from patholib.options import Options

        names |= set(Options.__dataclass_fields__)
    return names


def unknown_parameters(text: str) -> list[str]:
    """Parameters that a page gives with -p and that no notebook and no study takes."""
    lines = [line for line in written(text) if not line.startswith("kaggle ")]
    named = re.findall(r"(?<!\S)-p (\w+)", "\n".join(lines))
    return [name for name in dict.fromkeys(named) if name not in known_parameters() | {"NAME"}]


@every_page
def test_every_command_option_and_parameter_that_a_page_names_exists(page):
    assert unknown_commands(text_of(page)) == []
    assert unknown_parameters(text_of(page)) == []


# ------------------------------------------------------------------------------------------------------------- code


def broken_blocks(text: str) -> list[str]:
    """Blocks of Python that do not compile."""
    broken = []
    for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S):
        try:
            compile(block, "block", "exec")
        except SyntaxError as error:
            broken.append(f"{error}: {block}")
    return broken


def unknown_names(text: str) -> list[str]:
    """Names such as patholib.model.losses.Loss that lead nowhere, after backticks, ::: or import."""
    named = re.findall(r"(?:`|::: |from )(patholib(?:\.\w+)+)", text)
    named += [
        f"{module}.{name}"
        for module, names in re.findall(r"from (patholib[\w.]*) import ([\w, ]+)", text)
        for name in names.split(", ")
    ]
    return [name for name in dict.fromkeys(named) if not leads_somewhere(name)]


def leads_somewhere(name: str) -> bool:
    """Whether this is a module, or begins with one and a name at its top."""
    place, parts = PACKAGE, name.split(".")[1:]
    while parts and (place / parts[0]).is_dir():
        place /= parts.pop(0)
    module = place / f"{parts[0]}.py" if parts else None
    if module and module.exists():
        return len(parts) == 1 or parts[1] in defined(module)
    return not parts or parts[0] in defined(place / "__init__.py")


def defined(module: Path) -> set[str]:
    """The names in a module; of a package also the texts, which may be names that are loaded when they are needed."""
    names = set()
    for node in ast.walk(ast.parse(text_of(module))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and module.name == "__init__.py":
            names.add(node.value)
    return names


@every_page
def test_every_block_of_python_on_a_page_compiles(page):
    assert broken_blocks(text_of(page)) == []


@every_page
def test_every_name_of_the_library_on_a_page_leads_somewhere(page):
    assert unknown_names(text_of(page)) == []


@every_page
def test_every_step_of_a_study_that_a_page_calls_exists(page):
    study = pytest.importorskip("patholib.study")
    called = set(re.findall(r"\bstudy\.(\w+)\(", text_of(page)))
    assert {name for name in called if not hasattr(study.Study, name)} == set()


# ------------------------------------------------------------------------------------------------------- the README


def test_the_readme_can_be_read_to_the_end():
    assert 6_000 <= (ROOT / "README.md").stat().st_size <= 8_000


def test_what_is_wrong_on_a_page_is_found():
    page = (
        "[a](nowhere.md) [b](LICENSE#mit) [c](https://example.org) ![d](run.py) [e](README.md#none) "
        "`patholib/none.py` `tests/` `patholib.none` `patholib.cli.main`\n"
        "```\npython3 run.py trian\npatholib predict m p --ot x  # --out\npatholib audti\n"
        "python3 run.py train -p epohcs 3\npython tests/none.py\n```\n```python\nx = = 1\n```\n"
    )
    assert dead_links(page, ROOT) == ["nowhere.md", "README.md#none", "patholib/none.py", "tests/none.py"]
    assert unknown_commands(page) == ["run.py trian", "patholib predict --ot", "patholib audti"]
    assert unknown_parameters(page) == ["epohcs"]
    assert unknown_names(page) == ["patholib.none"]
    assert len(broken_blocks(page)) == 1
