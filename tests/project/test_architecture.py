"""Who may import whom, what no module may do, and what a notebook looks like."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.lab.notebook import check_parameters

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "patholib"

# A room imports only from rooms above it; options, study and cli stand on top, in this order.
ROOMS = ("base", "data", "model", "judge", "train", "report", "deploy", "lab")
ON_TOP = ("options", "study", "cli", "__main__")
HOMES = {
    "matplotlib": "report.figures",
    "seaborn": "report.figures",
    "tqdm": "base.progress",
    "ipywidgets": "lab",
    "fastapi": "deploy.server",
    "starlette": "deploy.server",
    "uvicorn": "deploy.server",
    "h11": "deploy.server",
    "pydantic": "deploy.server",
    "ray": "base.cluster",
    "pyarrow": "base.cluster",
    "papermill": "lab.headless",
}


def sources() -> dict[str, ast.Module]:
    """Every module of the library by its dotted name below patholib: "manifest", "datasets.breakhis"."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        found["patholib" if name == "__init__" else name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports(tree: ast.AST) -> set[str]:
    """Every dotted module that is imported anywhere in the code, also inside functions.

    `from patholib import files` counts as patholib.base.files alone, because that is a module.
    """
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {n for n in names if n.startswith("patholib.") and is_module(n)}
            found |= modules
            if names - modules:  # something that the module itself holds
                found.add(node.module or ".")
    return found


def is_module(dotted: str) -> bool:
    path = ROOT.joinpath(*dotted.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def own_imports(tree: ast.AST, modules) -> set[str]:
    """The modules of the library that the code imports, as `sources` names them."""
    return {m.removeprefix("patholib.") for m in imports(tree) if m.removeprefix("patholib.") in modules} - {"patholib"}


def test_every_module_lies_in_a_room_or_on_top():
    assert {name.partition(".")[0] for name in sources()} - {"patholib"} <= {*ROOMS, *ON_TOP}


def test_nothing_is_called_utils():
    ours = [p for p in ROOT.rglob("*.py") if not any(part.startswith(".venv") for part in p.parts)]
    assert [p for p in ours if re.search(r"utils|helpers|misc|common", p.stem)] == []


def test_a_room_imports_only_from_rooms_above_it():
    modules, place = sources(), {name: number for number, name in enumerate((*ROOMS, *ON_TOP))}
    wrong = [
        f"{name} imports {other}"
        for name, tree in modules.items()
        if name != "patholib"
        for other in own_imports(tree, modules)
        if place[other.partition(".")[0]] > place[name.partition(".")[0]]
    ]
    assert wrong == []


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """One circle of imports, or nothing."""
    done: set[str] = set()

    def walk(name, path):
        if name in path:
            return [*path[path.index(name) :], name]
        if name not in done:
            for other in sorted(graph[name]):
                if found := walk(other, [*path, name]):
                    return found
            done.add(name)
        return []

    return next((found for name in graph if (found := walk(name, []))), [])


def executed(tree: ast.Module) -> ast.Module:
    """The code without the imports that only a type checker follows."""
    typing = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return ast.Module([node for node in tree.body if node not in typing], [])


def test_no_imports_go_round_in_a_circle():
    modules = {name: executed(tree) for name, tree in sources().items()}
    assert cycle({name: own_imports(tree, modules) - {name} for name, tree in modules.items()}) == []
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_a_heavy_library_has_one_home():
    wrong = [
        f"{name} imports {library}"
        for name, tree in sources().items()
        for library in imports(tree)
        if not f"{name}.".startswith(HOMES.get(library.partition(".")[0], name) + ".")
    ]
    assert wrong == []


def forbidden(tree: ast.AST) -> list[str]:
    """What no module may do, each with its line."""
    found = []
    for node in ast.walk(tree):
        what = None
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                value = getattr(keyword.value, "value", None)
                if (keyword.arg, value) in (("weights_only", False), ("shell", True)):
                    what = f"{keyword.arg}={value}"
            called = ast.unparse(node.func)
            if called.rpartition(".")[2] in ("extractall", "decode_image", "decode_png", "decode_jpeg", "read_image"):
                what = called
            if called in ("eval", "exec", "os.system") or (
                called == "torch.load" and not any(k.arg == "weights_only" for k in node.keywords)
            ):
                what = called
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [f"{getattr(node, 'module', '')}.{alias.name}".lstrip(".") for alias in node.names]
            plain = names == ["pickle"] and not node.names[0].asname  # for its errors, see below
            what = next((n for n in names if re.match(r"c?[pP]ickle|joblib|dill|shelve|torchvision\.io", n)), None)
            what = None if plain else what
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle" and not node.attr.endswith("Error"):
            what = ast.unparse(node)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = [
                s
                for s in node.body
                if not (
                    isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant) and isinstance(s.value.value, str)
                )
            ]
            if all(isinstance(s, ast.Pass) or ast.unparse(s) == "..." for s in body):
                what = f"{node.name} has an empty body"
        if what:
            found.append(f"line {node.lineno}: {what}")
    return found


LONGEST_FILE, LONGEST_FUNCTION = 450, 60  # lines; 400 and 40 are what to aim at


def too_long(name: str, text: str) -> list[str]:
    """The file, and its functions, that are longer than one can hold in mind."""
    lines = len(text.splitlines())
    found = [f"{name}: {lines} lines"] * (lines > LONGEST_FILE)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            found += [f"{name}: {node.name} of {length} lines"] * (length > LONGEST_FUNCTION)
    return found


def test_no_file_and_no_function_is_too_long():
    found = [
        line
        for path in sorted(PACKAGE.rglob("*.py"))
        for line in too_long(path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8"))
    ]
    assert found == [], "\n".join(found)


def test_what_is_too_long_is_found():
    function = "def f():\n" + "    x = 1\n" * 60
    assert too_long("a.py", function) == ["a.py: f of 61 lines"]
    assert too_long("a.py", "x = 1\n" * 451) == ["a.py: 451 lines"]


MACHINE_PATH = re.compile(r"(?<![\w.])/(home|root|work|Users|tmp)/|[A-Z]:\\+Users|site-packages")


@pytest.mark.parametrize(
    "path", [*sorted(PACKAGE.rglob("*.py")), ROOT / "run.py"], ids=lambda p: p.relative_to(ROOT).as_posix()
)
def test_no_module_does_what_is_forbidden(path):
    text = path.read_text(encoding="utf-8")
    assert forbidden(ast.parse(text)) == []
    assert re.findall(r"TODO|FIXME|XXX", text) == []
    assert MACHINE_PATH.findall(text) == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(p, weights_only=False)",
        "torch.load(p)",
        "pickle.loads(b)",
        "from pickle import load",
        "import pickle as p",
        "from joblib import dump",
        "z.extractall(p)",
        "from torchvision import io",
        "import torchvision.io",
        "torchvision.io.decode_image(b)",
        "os.system('ls')",
        "subprocess.run(c, shell=True)",
        "def f(): pass",
        "def f():\n    'says'\n    ...",
        "eval('1')",
    ],
)
def test_forbidden_lines_are_found(line):
    assert len(forbidden(ast.parse(line))) == 1


# --- notebooks ---

NOTEBOOKS = [p for p in sorted((ROOT / "notebooks").rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
PARAMETER = re.compile(r"\w+: (int|float|str|bool) = [^=#]+  # [^=]+")


def notebook_problems(notebook: dict, size: int) -> list[str]:
    """Everything that keeps a notebook from being committed."""
    found = []
    if notebook["metadata"].get("kernelspec", {}).get("name") != "python3":
        found.append("the kernelspec is not python3")
    if size > 2.5e6:
        found.append(f"{size / 1e6:.1f} MB, more than 2.5")
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(code, 1):
        found += [f"code cell {number}: {what}" for what in cell_problems(cell, number)]
    tagged = [cell for cell in code if "parameters" in tags(cell)]
    if len(tagged) != 1:
        found.append(f"{len(tagged)} cells are tagged parameters")
    else:
        found += parameter_problems("".join(tagged[0]["source"]))
    if not any(cell["outputs"] for cell in code):
        found.append("no outputs are stored")
    texts = json.dumps([[cell["source"], cell.get("outputs")] for cell in notebook["cells"]], default=str)
    texts = re.sub(r'"image/\w+": ("[^"]*"|\[[^\]]*\])', "", texts)  # base64 has slashes too
    texts = re.sub(r"base64,[\w+/=\\]*", "", texts)
    if path := MACHINE_PATH.search(texts):
        found.append(f"a path of somebody's machine: {texts[path.start() : path.start() + 60]}")
    return found


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def cell_problems(cell: dict, number: int) -> list[str]:
    source = "".join(cell["source"])
    found = []
    if len(source.splitlines()) > 12 and "parameters" not in tags(cell):
        found.append(f"{len(source.splitlines())} lines, more than 12")
    if cell["execution_count"] != number:
        found.append(f"execution count {cell['execution_count']}: not executed in one go")
    if any(output["output_type"] == "error" for output in cell["outputs"]):
        found.append("a stored error")
    if "nbval-check-output" in tags(cell) and not cell["outputs"]:
        found.append("nothing is stored to compare with")
    for node in ast.walk(ast.parse(re.sub(r"^[%!].*$", "", source, flags=re.M))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            found.append(f"{type(node).__name__}: belongs into the library")
        if isinstance(node, ast.For) and "epoch" in ast.unparse(node.target) + ast.unparse(node.iter):
            found.append("a loop over epochs: belongs into the library")
    return found


def parameter_problems(source: str) -> list[str]:
    """papermill's --help-notebook drops a line with a second =, so the form is strict."""
    lines = [line for line in source.splitlines() if line.strip() and not line.startswith("#")]
    found = [f"parameter line {line!r}" for line in lines if not PARAMETER.fullmatch(line.rstrip())]
    try:
        check_parameters([source], {})
    except PathoError as error:
        found.append(str(error))
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_committed_notebook_is_small_whole_and_readable(path):
    assert notebook_problems(json.loads(path.read_text(encoding="utf-8")), path.stat().st_size) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_guards_of_a_notebook_compare_with_its_own_defaults(path):
    """A guard is silent where settings differ from the recorded ones: a changed default must be recorded again."""
    code = [
        "".join(c["source"]) for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"
    ]
    guards = [name for cell in code for name in re.findall(r"Guard\(\s*[\"']([^\"']+)", cell)]
    if guards:
        (name,) = guards
        reference = files.read_json(ROOT / "notebooks" / "reference.json")[name]
        assert reference["settings"] == check_parameters(code, {}).values
        assert reference["numbers"]


def test_the_problems_of_a_bad_notebook_are_found():
    def cell(source, number, *tag, outputs=()):
        return {
            "cell_type": "code",
            "metadata": {"tags": list(tag)},
            "source": source,
            "execution_count": number,
            "outputs": list(outputs),
        }

    good = [
        cell('data: str = "auto"  # where the images are\nepochs: int = None  # passes', 1, "parameters"),
        cell("settings", 2, outputs=[{"output_type": "stream", "name": "stdout", "text": "ok"}]),
    ]
    kernel = {"kernelspec": {"name": "python3"}}
    assert notebook_problems({"metadata": kernel, "cells": good}, 1000) == []
    bad = [
        cell("a: int = 1; b: int = 2\nc: float = 1  # rate (default=1)\nd = 4", 1, "parameters"),
        cell("\n".join("x" * 13), 2),
        cell("def f(): return 1", 4),
        cell("g = lambda x: x", 4, outputs=[{"output_type": "error", "ename": "E"}]),
        cell("for epoch in range(3): fit()", 5, "nbval-check-output"),
        cell("open('/home/me/data.csv')", 6, outputs=[{"output_type": "stream", "text": "read", "name": "stdout"}]),
    ]
    found = "\n".join(notebook_problems({"metadata": {}, "cells": bad}, 3_000_000))
    for what in (
        "not python3",
        "3.0 MB",
        "13 lines",
        "FunctionDef",
        "Lambda",
        "execution count 4",
        "a stored error",
        "loop over epochs",
        "nothing is stored",
        "parameter line 'a: int",
        "parameter line 'c: float",
        "parameter line 'd = 4",
        "/home/me/data.csv",
        "no_parameters",
    ):
        assert what in found, what
    assert "no outputs are stored" in "\n".join(notebook_problems({"metadata": kernel, "cells": [good[0]]}, 1))
