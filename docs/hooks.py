"""What the site needs beyond docs/: pages that live elsewhere in the project, and links that lead out of docs/.

Links in Markdown name files of the project, so that they work where the repository is read. On the site, a link to a
file that is not part of it becomes a link to the repository, or plain text where pyproject.toml names none.
"""

from __future__ import annotations

import posixpath
import re
import tomllib
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "benchmarks/RESULTS.md",
    "data/README.md",
    "outputs/README.md",
)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")  # of a file; an address has a colon


def on_files(files, config):
    """Adds the pages outside docs/, with the pictures in their folders."""
    pictures = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "benchmarks").glob("*.png"))]
    for uri in (*PAGES, *pictures):
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / uri)))
    return files


def on_page_markdown(markdown, page, config, files):
    """The page with every link to a file of the project turned into one that the site has."""
    uri = page.file.src_uri
    folder = posixpath.dirname(uri if uri in PAGES else f"docs/{uri}")

    def turned(match: re.Match) -> str:
        picture, text, target, anchor = match.group(1), match.group(2), match.group(3), match.group(4) or ""
        path = posixpath.normpath(posixpath.join(folder, target))
        on_site = path.removeprefix("docs/")
        if files.get_file_from_path(on_site):
            return f"{picture}[{text}]({posixpath.relpath(on_site, posixpath.dirname(uri) or '.')}{anchor})"
        repository = address()
        return f"[{text}]({repository}/blob/main/{path}{anchor})" if repository else text

    return LINK.sub(turned, markdown)


def address() -> str:
    """The address of the repository, "" where pyproject.toml names none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project.get("urls", {}).get("Repository", "").removesuffix(".git").rstrip("/")
