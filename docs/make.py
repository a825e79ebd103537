"""Makes what README.md and docs/ show: pictures from a run on demo images, tables from code and from RESULTS.md.

python docs/make.py [RUN_FOLDER]            without a folder: the newest run
python docs/make.py tables                  the tables alone (README, recipes, parameters), without a run
python docs/make.py example [RUN_FOLDER]    docs/example: report and cards of such a run, with small pictures
python docs/make.py notebook NOTEBOOK ...   the pictures in executed notebooks, with 256 colours where they are large
python docs/make.py parameters              the parameters cells of the notebooks, from Options
python docs/make.py places                  what follows from the addresses in pyproject.toml: the first cell of every
                                            notebook, kaggle/*/kernel-metadata.json, the badges in README.md
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
import re
import shutil
import sys
import tomllib
from itertools import dropwhile, takewhile
from pathlib import Path
from urllib.parse import unquote

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also without an installation

import torch
from PIL import Image

from patholib import options
from patholib.base import files
from patholib.base.errors import PathoError
from patholib.base.places import MOUNTS
from patholib.data import checking, manifest, readers, splitting
from patholib.data.readers import sources
from patholib.data.readers.sources import SOURCES
from patholib.judge import metric_table
from patholib.lab import notebook
from patholib.model import architectures, augment, recipes
from patholib.report import markdown
from patholib.report.figures import sheets

ROOT = Path(__file__).resolve().parents[1]
IMAGES, EXAMPLE = ROOT / "docs" / "images", ROOT / "docs" / "example"
WIDTH, LIMIT = 1200, 300_000  # pixels, bytes
PAGES = {"report": "Report", "model_card": "Model card", "data_card": "Data card", "checklist": "Checklists"}
PAGE_LIMIT, EXAMPLE_LIMIT = 85_000, 1_500_000  # bytes of a picture on these pages, of all together
NOTEBOOK_LIMIT = 200_000  # bytes of a picture in a notebook

FIRST = "find-patholib"  # the id of the first code cell of every notebook
FIRST_CELL = """\
import importlib.util, os, pathlib, subprocess, sys

if not importlib.util.find_spec("patholib"):  # on Kaggle and Colab it is installed from an attached wheel
    mounts = os.environ.get("PATHOLIB_MOUNTS", os.pathsep.join([{mounts}])).split(os.pathsep)
    wheels = [w for m in mounts for deep in range(5) for w in pathlib.Path(m).glob("*/" * deep + "patholib-*.whl")]
    source = ["--no-index", *{{f"--find-links={{w.parent}}" for w in wheels}}, "patholib"] if wheels else {otherwise}
    if not source: raise ModuleNotFoundError("{advice}")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *source], check=True)
from patholib.lab import sessions
sessions.ready()"""
ADVICE = (
    "patholib is not installed. Kaggle: attach patholib-*.whl with Add Input > Upload; Colab: put it into "
    "/content; elsewhere: pip install -e . in the folder of the project"
)
TITLES = {"breakhis": "BreakHis", "isic2019": "ISIC 2019"}  # of notebooks on Kaggle; its slugs follow from them
COLAB_BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
KAGGLE_BADGE = "https://kaggle.com/static/images/open-in-kaggle.svg"

# Why the corrected recipes differ from the published ones, by the field in which they do.
REASONS = {
    "group_by": "images of one patient or lesion are never in two splits",
    "fit": "aspect kept: squeezing 700 x 460 into a square stretches nuclei 1.52 times",
    "augmentation.warps": "one interpolation instead of one per transform",
    "augmentation.border": "mirrored: black corners mean nothing in tissue",
    "augmentation.interpolation": "nearest-neighbour rotation breaks fine structure",
    "augmentation.noise_unit": "noise of a sensor is a share of the grey range, not of the normalised one",
    "balance": "drawing evenly *and* weighting corrects the class prior twice; weights alone cost AUC, and "
    "the threshold or the prior-corrected decision does what they were for",
    "stop": "inside a warm restart the rate is high and the score low: not the place to stop",
    "fast": "bit-exact by default; speed is a choice",
    "tta": "fixed flips and quarter turns give the same number every time",
    "stages": "as shares of the run, so that a shorter run goes through all of them",
    "batchnorm": "frozen means the running statistics too",
    "loss": "the class weight is no part of the probability (Lin et al. 2017, eq. 5)",
    "monitor": "calling everything a naevus is right half of the time; balanced accuracy is the challenge's metric",
}

# What README.md shows of the sections quality: by data set, the column there and its name here.
SHOWN = {
    "isic2019": {"AUC": "AUC", "balanced accuracy, shares divided out": "balanced accuracy, prior-corrected"},
    "idc": {"AUC": "AUC"},
}
DATA_SETS = {"isic2019": "ISIC 2019", "idc": "IDC"}


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["notebook"]:
        for path in arguments[1:]:
            in_notebook(Path(path))
        return
    if arguments[:1] == ["places"]:
        everywhere()
        return
    if arguments[:1] == ["parameters"]:
        parameters()
        return
    if arguments[:1] == ["tables"]:
        tables()
        return
    make, arguments = (example, arguments[1:]) if arguments[:1] == ["example"] else (readme, arguments)
    run_dir = Path(arguments[0]) if arguments else newest()
    facts = files.read_json(run_dir / "run.json")
    if not facts["demo"]:
        raise PathoError(
            "real_images",
            run_dir.name,
            "was made from real images, which are not ours to publish",
            "Name a run on demo images: python3 run.py train breakhis -p data demo",
        )
    make(run_dir)


def readme(run_dir: Path) -> None:
    keep(IMAGES / "training_metrics.png", Image.open(run_dir / "training_metrics.png"))
    keep(IMAGES / "gradcam.png", Image.open(run_dir / "heatmaps" / "gallery.png"))
    keep(IMAGES / "augmentation.png", drawn(augmentation()))
    tables()


def example(run_dir: Path, folder: Path = EXAMPLE) -> None:
    """The pages of a run as Markdown, which a browser of repositories shows, with the pictures that they name."""
    texts = {stem: (run_dir / f"{stem}.md").read_text(encoding="utf-8") for stem in PAGES}
    shutil.rmtree(folder, ignore_errors=True)
    for stem, text in texts.items():
        for name in map(unquote, re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)):
            if name.endswith(".svg"):
                files.write_bytes(folder / name, (run_dir / name).read_bytes())
            else:
                keep(folder / name, Image.open(run_dir / name), PAGE_LIMIT)
        text = re.sub(r"\[([^\]]*)\]\([a-z_/]+\.html\)", r"\1", text)  # the source of a page would be shown
        files.write_text(folder / f"{stem}.md", text)
    lines = [
        "# What a run leaves",
        "",
        "> **DEMO IMAGES: NOT A RESULT.**",
        "",
        "The report and the cards of a run on demo images, as `python docs/make.py example` took them from its "
        "folder. The same pages are there as HTML, each one file.",
        "",
        *[f"- [{title}]({stem}.md)" for stem, title in PAGES.items()],
    ]
    files.write_text(folder / "README.md", "\n".join(lines) + "\n")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{len(texts)} pages, {size // 1000} kB in all")
    if size > EXAMPLE_LIMIT:
        raise PathoError(
            "too_large", folder.name, f"holds {size:,} bytes, more than {EXAMPLE_LIMIT:,}", "Lower PAGE_LIMIT"
        )


def in_notebook(path: Path) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    for cell in found["cells"]:
        for data in (output.get("data", {}) for output in cell.get("outputs", [])):
            content = base64.b64decode(data.get("image/png", ""))
            if len(content) > NOTEBOOK_LIMIT:
                data["image/png"] = base64.b64encode(fitted(Image.open(io.BytesIO(content)), NOTEBOOK_LIMIT)).decode()
    files.write_text(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def newest() -> Path:
    outputs = Path(os.environ.get("PATHOLIB_OUTPUTS") or ROOT / "outputs")
    return Path(files.read_json(outputs / "latest.json")["run_dir"])


# --- pictures ---


def augmentation():
    """The same random draws as corrected and as published, on a demo image."""
    source = readers.load("breakhis", "demo")
    shown = {}
    for title, recipe in (("as published", recipes.as_published("breakhis")), ("corrected", recipes.BREAKHIS)):
        checked = checking.check(source, recipe.cache_size, recipe.fit, progress=False)
        split = splitting.split(checked.manifest, recipe.fractions, recipe.seed, source.group_by)
        shown[title] = augment.preview(checked.images.with_split(split), recipe, count=1, views=5)
    pixels = [pixels[0] for pixels, _ in shown.values()]
    views = torch.cat([views for _, views in shown.values()], dim=1)  # (5, 2, 3, H, W)
    return sheets.augmented(
        pixels, views, list(shown), "The same random draws, as published and corrected", note=manifest.DEMO_NOTE
    )


def drawn(figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return Image.open(buffer)


def keep(path: Path, picture: Image.Image, limit: int = LIMIT) -> None:
    content = fitted(picture, limit)
    files.write_bytes(path, content)
    print(f"{path.name}: {Image.open(path).width} pixels wide, {len(content) // 1000} kB")


def fitted(picture: Image.Image, limit: int) -> bytes:
    """A PNG of at most `limit` bytes: in full colour if that fits, else in 256 colours, else smaller."""
    picture, width, full = picture.convert("RGB"), min(WIDTH, picture.width), True
    while len(content := encoded(picture, width, full)) > limit:
        width, full = (width, False) if full else (width * 9 // 10, False)
    return content


def encoded(picture: Image.Image, width: int, full: bool) -> bytes:
    small = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    (small if full else small.quantize(256, dither=Image.Dither.NONE)).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


# --- the tables ---


def tables() -> None:
    for name in TABLES:
        page = ROOT / name
        files.write_text(page, with_tables(name, page.read_text(encoding="utf-8")))


def with_tables(name: str, page: str) -> str:
    """The page of this name, a key of TABLES, with the tables between their marks written anew."""
    for part, made in TABLES[name].items():
        page = between(page, part, made())
    return page


def between(page: str, name: str, text: str) -> str:
    """The page with what stands between the two marks of this name written anew."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    if page.count(begin) != 1 or page.count(end) != 1:
        raise PathoError("no_marks", name, "is not marked in its page", f"Restore {begin}{end}")
    before, _, rest = page.partition(begin)
    return before + begin + text + end + rest.partition(end)[2]


def table() -> str:
    """Markdown: one row per field in which a published recipe and its corrected form differ."""
    rows = {}
    for name in recipes.RECIPES:
        for field, values in recipes.diff(recipes.as_published(name), recipes.get(name)).items():
            if field != "published":
                rows.setdefault(field, {})[name] = tuple(map(spoken, values))
    lines = ["| field | as published | corrected (the default) | why |", "|---|---|---|---|"]
    for field, by_recipe in rows.items():
        published, corrected = (either(by_recipe, side) for side in (0, 1))
        lines.append(f"| `{field}` | {published} | {corrected} | {REASONS[field]} |")
    return "\n".join(lines) + "\n"


def rivals(results: Path = ROOT / "benchmarks" / "RESULTS.md") -> str:
    """Markdown: a row per contender of `benchmarks/quality.py`, with what was measured on each data set."""
    text, found = results.read_text(encoding="utf-8"), {}
    measured = all(f"<!-- quality {name}: begin -->" in text for name in SHOWN)
    before = "" if measured else "scratch "  # from random weights, until all data sets were measured with others
    for name, numbers in SHOWN.items():
        marks = [f"<!-- quality {before}{name}: {end} -->" for end in ("begin", "end")]
        section = text.partition(marks[0])[2].partition(marks[1])[0]
        below = dropwhile(lambda line: not line.startswith("|"), section.splitlines())
        first = list(takewhile(lambda line: line.startswith("|"), below))
        if not first:
            raise PathoError(
                "no_results", results.name, f"has no section quality {name}", "Measure it: python3 run.py bench quality"
            )
        head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in first)
        for row in rows:
            found.setdefault(row[0], {}).update(
                {(name, here): row[head.index(there)] for there, here in numbers.items()}
            )
    columns = [(name, number) for name, numbers in SHOWN.items() for number in numbers.values()]
    rows = [[who, *(values.get(column, "") for column in columns)] for who, values in found.items()]
    rows = [list(map(markdown.Markup, row)) for row in rows]  # they come from a Markdown file
    return str(markdown.table(["", *(f"{DATA_SETS[name]}: {number}" for name, number in columns)], rows))


def either(by_recipe: dict, side: int) -> str:
    """One value where the recipes agree or only one has it, else each with its recipe's name."""
    values = {name: pair[side] for name, pair in by_recipe.items()}
    if len(set(values.values())) == 1:
        return next(iter(values.values())) + ("" if len(values) > 1 else f" ({next(iter(values))})")
    return ", ".join(f"{value} ({name})" for name, value in values.items())


def spoken(value) -> str:
    if isinstance(value, tuple):  # stages
        return "from " + ", ".join(f"{stage.start:g}" for stage in value)
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else f"`{value}`"


def of_options() -> str:
    """Markdown: a table of the parameters of a study for each group of them."""
    lines, group = [], None
    for field in dataclasses.fields(options.Options):
        if field.metadata["group"] != group:
            group = field.metadata["group"]
            lines += ["", f"## {group.capitalize()}", "", "| parameter | default | meaning |", "|---|---|---|"]
        default = f'"{field.default}"' if isinstance(field.default, str) else repr(field.default)
        lines.append(f"| `{field.name}` | `{default}` | {field.metadata['help']} |")
    return "\n".join([*lines, "", ""])


def of_networks() -> str:
    """Markdown: the table of networks."""
    lines = ["| network | blocks | first block ... last block | maps | ImageNet weights |", "|---|---|---|---|---|"]
    for arch, entry in architectures.NETWORKS.items():
        first, *_, last = entry.blocks
        packaged = f"{entry.weights_file}, in `patholib[weights]`"
        weights = packaged if entry.packaged else f"[{entry.weights_file}]({entry.weights})"
        lines.append(
            f"| `{arch}` | {len(entry.blocks)} | `{first}` ... `{last}` | {entry.channels} channels | {weights} |"
        )
    return "\n".join(lines) + "\n"


def of_metrics() -> str:
    """Markdown: the table of metrics, and of what else is said of a calibration."""
    lines = ["| in metrics.json | name | what it is | better | given for | undefined where |", "|" + " --- |" * 6]
    for m in metric_table.METRICS:
        shown = "all classes" if m.kind == "mean" else "all images"
        if m.kind == "class":
            shown = ", ".join(metric_table.PLACES[place] for place in m.places)
        shown += ", without interval" if m.no_interval else ""
        undefined = m.undefined or "always defined"
        lines.append(f"| `{m.name}` | {m.words} | {m.meaning} | {m.better} | {shown} | {undefined} |")
    for one in metric_table.CALIBRATION:
        if one.name not in {m.name for m in metric_table.METRICS}:
            lines.append(f"| `{one.name}` | {one.words} | {one.meaning} |  | before and after calibration |  |")
    return "\n".join(lines) + "\n"


def of_sources() -> str:
    """Markdown: the table of data sets."""
    lines = ["| name | data set | images | licence | cite |", "|---|---|---|---|---|"]
    for name, source in sources.SOURCES.items():
        title = f"[{source.title}]({source.page})" if source.page else source.title
        images = "" if source.images is None else f"{source.images:,}"
        lines.append(f"| `{name}` | {title} | {images} | {source.licence} | {source.cite_short} |")
    return "\n".join(lines) + "\n"


# What is written between marks, by page and name of the marks.
TABLES = {
    "README.md": {"quality": rivals},
    "docs/recipes.md": {"recipes": table, "networks": of_networks},
    "docs/promises.md": {"metrics": of_metrics},
    "data/README.md": {"sources": of_sources},
    "docs/parameters.md": {"parameters": of_options},
}


# --- parameters ---


def parameters(root: Path = ROOT) -> None:
    """Writes the parameters cell of every notebook that reads it with Options."""
    for path in notebooks(root):
        found = json.loads(path.read_text(encoding="utf-8"))
        code = [cell for cell in found["cells"] if cell["cell_type"] == "code"]
        if any("Options.from_notebook" in "".join(cell["source"]) for cell in code):
            (cell,) = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
            known = {p.name: p.default for p in notebook.declared(path)}
            cell["source"] = options.cell(list(known), known).splitlines(keepends=True)
            files.write_text(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")


# --- places: what a notebook needs on Kaggle and Colab ---


def everywhere(root: Path = ROOT) -> None:
    """Writes all that depends on the addresses in pyproject.toml, or on there being none."""
    urls = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {})
    for path in notebooks(root):
        found = json.loads(path.read_text(encoding="utf-8"))
        cell = next((cell for cell in found["cells"] if cell["id"] == FIRST), None)
        if cell is None:
            cell = {"cell_type": "code", "execution_count": None, "id": FIRST, "metadata": {}, "outputs": []}
            number = next(i for i, other in enumerate(found["cells"]) if other["cell_type"] == "code")
            found["cells"].insert(number, cell)
        cell["source"] = first_cell(urls.get("Repository")).splitlines(keepends=True)
        files.write_text(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    for name, facts in kernels(urls.get("Kaggle"), root).items():
        files.write_json(root / "kaggle" / name / "kernel-metadata.json", facts)
    page = root / "README.md"
    files.write_text(page, between(page.read_text(encoding="utf-8"), "badges", badges(urls.get("Repository"), root)))


def notebooks(root: Path = ROOT) -> list[Path]:
    return sorted(p for p in (root / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def first_cell(repository: str | None) -> str:
    """The first code cell of every notebook: patholib itself cannot say where it comes from before it is there."""
    return FIRST_CELL.format(
        mounts=", ".join(f'"{mount}"' for mount in MOUNTS[:2]),  # the second holds the third
        advice=ADVICE,
        otherwise=f'["git+{repository}"] * any(pathlib.Path(m).is_dir() for m in mounts)' if repository else "[]",
    )


def kernels(owner: str | None, root: Path = ROOT) -> dict[str, dict]:
    """What Kaggle wants to know of each notebook, by the name of its folder in kaggle/.

    owner: the address of an account on Kaggle; None: a name to be replaced by one's own.
    """
    account = owner.rstrip("/").rpartition("/")[2] if owner else "your-name"
    found = {}
    for path in notebooks(root):
        name = path.parent.name if path.stem == "train" else path.stem
        kind = name if name in SOURCES else None  # the others begin with demo images, for which no GPU waits
        title = f"PathoVision {TITLES.get(name, name)}"
        found[name] = {
            "id": f"{account}/{title.lower().replace(' ', '-')}",
            "title": title,
            "code_file": f"../../{path.relative_to(root).as_posix()}",
            "language": "python",
            "kernel_type": "notebook",
            "is_private": True,
            "enable_gpu": kind is not None,
            **({"machine_shape": "NvidiaTeslaT4"} if kind else {}),
            "enable_internet": True,
            "dataset_sources": [SOURCES[kind].kaggle] if kind else [],
            "competition_sources": [],
            "kernel_sources": [],
            "model_sources": [],
        }
    return found


def badges(repository: str | None, root: Path = ROOT) -> str:
    """Links that open the notebooks on Colab and Kaggle, and how to install; nothing without a public address."""
    if not repository:
        return ""
    lines = []
    if where := re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?", repository):
        lines += ["| notebook | open it |", "|---|---|"]
        for path in notebooks(root):
            name = path.relative_to(root).as_posix()
            colab = f"https://colab.research.google.com/github/{where[1]}/blob/main/{name}"
            kaggle = f"https://kaggle.com/kernels/welcome?src=https://github.com/{where[1]}/blob/main/{name}"
            lines.append(
                f"| `{name.removeprefix('notebooks/')}` | [![Colab]({COLAB_BADGE})]({colab}) "
                f"[![Kaggle]({KAGGLE_BADGE})]({kaggle}) |"
            )
        lines.append("")
    lines.append(f'Into an environment of your own: `pip install "patholib[notebooks] @ git+{repository}"`')
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except PathoError as error:
        sys.exit(f"PathoError {error}")
