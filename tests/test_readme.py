"""What the documentation names exists and can be called."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [p for p in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md"),
                     ROOT / "data" / "README.md", ROOT / "outputs" / "README.md") if p.exists()]
COMMANDS = set(re.split(r",\s*", re.search(r"(?s)commands = \{(.*?)\}", (ROOT / "run.py").read_text("utf-8"))[1]))


@pytest.fixture
def readme():
    if not (ROOT / "README.md").exists():
        pytest.skip("no README.md yet")
    return (ROOT / "README.md").read_text(encoding="utf-8")


def dead_links(page: str, folder: Path) -> list[str]:
    """Local targets of Markdown links and images, and paths in backticks under a folder of the project, that are not.

    A folder that git ignores the contents of (outputs, data) holds examples, and <placeholders> are none.
    """
    targets = [t.partition("#")[0] for t in re.findall(r"\]\(([^)\s]+)", page) if not re.match(r"\w+:|#", t)]
    missing = [t for t in targets if t and not (folder / t).exists()]
    inside = "|".join(p.name for p in ROOT.iterdir() if p.is_dir() and p.name not in ("outputs", "data"))
    paths = re.findall(rf"`((?:{inside})/[\w./-]*)`", page)
    return missing + [p for p in paths if not (ROOT / p).exists()]


def unknown_commands(page: str) -> list[str]:
    """Subcommands of run.py that a page names and run.py does not have."""
    known = {command.split(":")[0].strip('"') for command in COMMANDS}
    return [name for name in re.findall(r"python3? run\.py ([a-z]+)", page) if name not in known]


def broken_blocks(page: str) -> list[str]:
    """Fenced Python blocks that do not compile."""
    broken = []
    for block in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S):
        try:
            compile(block, "block", "exec")
        except SyntaxError as error:
            broken.append(f"{error}: {block}")
    return broken


def test_the_two_commands_stand_in_the_readme(readme):
    assert "python3 run.py train" in readme
    assert "python3 run.py test" in readme


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_what_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    assert dead_links(text, page.parent) == []
    assert unknown_commands(text) == []
    assert broken_blocks(text) == []


def test_a_dead_link_an_unknown_command_and_a_broken_block_are_found():
    page = ("[a](nowhere.md) [b](LICENSE#mit) [c](https://example.org) ![d](run.py) `patholib/none.py` `tests/`\n"
            "python3 run.py trian\npython3 run.py train\n```python\nx = = 1\n```\n")
    assert dead_links(page, ROOT) == ["nowhere.md", "patholib/none.py"]
    assert unknown_commands(page) == ["trian"]
    assert len(broken_blocks(page)) == 1
