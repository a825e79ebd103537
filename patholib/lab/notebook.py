"""What a notebook's first cells need: its parameters read and checked, its errors logged, its run remembered."""

from __future__ import annotations

import ast
import dataclasses
import html
import linecache
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patholib.base import files, places
from patholib.base.errors import PathoError, nearest, nearest_setting
from patholib.model import architectures, fields, recipes

KINDS = {"int": "a whole number", "float": "a finite number", "str": "text", "bool": "True or False"}
RECIPE_NUMBERS = fields.RANGES.keys() & {f.name for f in dataclasses.fields(recipes.Recipe)}
NEXT = (
    "To go on, attach the output of this notebook to it (Kaggle: Add Input > Your Work; Colab: the zip), and run "
    "it again with the same parameters{}. The cells below were not run."
)
OF_A_MACHINE = ("device", "weights", "output")  # parameters whose values another machine may have, and this one not


@dataclass(frozen=True)
class Parameter:
    """One line `name: kind = default  # help` of the parameters cell, or one field of `options.Options`."""

    name: str
    kind: str  # a key of KINDS
    default: int | float | str | bool | None
    help: str
    optional: bool = False  # whether it may be None; where the default is None it always may

    @property
    def choices(self) -> list[str]:
        """What the help names after "one of:", up to a semicolon or a bracket; empty: anything goes."""
        found = re.search(r"one of:([^;()]*)", self.help)
        return [choice.strip(" \"'.") for choice in found[1].split(",")] if found else []


class Settings:
    """The checked parameters as attributes: `settings.epochs`.

    values: all of them. changed: those that differ from the parameters cell, as papermill's -p makes them.
    """

    def __init__(self, parameters: list[Parameter], values: dict | None = None, notes: Mapping[str, str] | None = None):
        values, notes = values or {p.name: p.default for p in parameters}, notes or {}
        vars(self).update(values)
        self.values = values
        self.changed = {p.name: values[p.name] for p in parameters if values[p.name] != p.default}
        self._rows = [
            (
                p.name + (" *" if p.name in self.changed else ""),
                repr(values[p.name]),
                repr(p.default),
                p.help + notes.get(p.name, ""),
            )
            for p in parameters
        ]

    def __repr__(self) -> str:
        rows = [("parameter", "value", "default", "meaning"), *self._rows]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join(
            "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]).rstrip() for row in rows
        )

    def _repr_html_(self) -> str:
        head = "".join(f"<th style='text-align:left'>{h}</th>" for h in ("parameter", "value", "default", "meaning"))
        body = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in self._rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def check_parameters(history: list[str], namespace: dict) -> Settings:
    """Checks every parameter of a running notebook that has some of its own; others take `Options.from_notebook`.

    history: the executed cells, oldest first. The last one that holds nothing but `name: kind = default  # help` is
    the parameters cell; a later one that begins with "# Parameters" is what papermill injected.
    namespace: where the values are. Numbers given as text ("1e-3", as YAML passes them) are converted where nothing is
    lost, there as well; text is never taken for True or False.
    From here on an error that ends a cell is logged with its traceback, of which a PathoError shows one line only.
    Errors: no_parameters, unknown_parameter, bad_parameter; one error names every problem at once.
    """
    _log_errors()
    parameters, injected = _declared(history if any(history) else _compiled())
    values = checked(parameters, [name for name in injected if not name.startswith("PAPERMILL_")], namespace)
    notes = {
        p.name: f" [read from the text {namespace[p.name]!r}]"
        for p in parameters
        if isinstance(namespace.get(p.name), str) and p.kind != "str"
    }
    namespace.update(values)
    return Settings(parameters, values, notes)


def pairs(text: str) -> dict[str, str]:
    """{theirs: ours} of a parameter "theirs=ours,artefact=". Errors: bad_parameter."""
    parts = [part.strip().partition("=") for part in text.split(",") if part.strip()]
    wrong = [theirs for theirs, equals, _ in parts if not equals]
    if wrong:
        raise PathoError(
            "bad_parameter", wrong[0], "is not theirs=ours", 'Write "theirs=ours", and "theirs=" to leave images out'
        )
    return {theirs.strip(): ours.strip() for theirs, _, ours in parts}


def declared(path: Path) -> list[Parameter]:
    """The parameters of a notebook that is not running, from its cell tagged `parameters`.

    Errors: missing_file, bad_json, no_parameters, parameters_cell.
    """
    try:
        cells = [cell for cell in files.read_json(path)["cells"] if cell["cell_type"] == "code"]
        tagged = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    except (KeyError, TypeError) as error:
        raise PathoError(
            "bad_notebook", str(path), f"is no notebook ({error!r})", "Name a file that Jupyter wrote"
        ) from None
    return _declared(tagged)[0]


def check_given(parameters: list[Parameter], given: dict, here: bool = True) -> dict:
    """The values of those parameters that are given, as their kinds; a notebook would accept every one of them.

    Text is read as in a shell: "true" and "false" for a bool, "None" where that is the default. here=False: the
    notebook will run on another machine, so nothing is asked about the devices, files and folders of this one.
    Errors: unknown_parameter, bad_parameter; one error names every problem at once.
    """
    typed = from_words(parameters, given)
    values = checked(parameters, list(given), typed, () if here else OF_A_MACHINE)
    return {name: values[name] for name in given}


def from_words(parameters: list[Parameter], given: Mapping[str, Any]) -> dict:
    """What words on a command line mean: True, False and None; all else is left to `checked`."""
    kinds = {p.name: p for p in parameters}
    return {name: _from_word(kinds[name], value) if name in kinds else value for name, value in given.items()}


def _from_word(p: Parameter, value):
    if (p.optional or p.default is None) and value == "None":
        return None
    return {"true": True, "false": False}.get(str(value).lower(), value) if p.kind == "bool" else value


def checked(parameters: list[Parameter], given: list[str], namespace: dict, unasked: tuple[str, ...] = ()) -> dict:
    """Every parameter with its value as the declared kind, checked by the library; given: the names that were set.

    unasked: parameters that the library is not asked about. Errors: unknown_parameter, bad_parameter.
    """
    names = [p.name for p in parameters]
    unknown = [name for name in given if name not in names]
    problems = [f"{name} is no parameter ({nearest_setting(name, names)})" for name in unknown]
    bad, values = [], {}
    for p in parameters:
        value = namespace.get(p.name, p.default)
        try:
            values[p.name] = _read(p, value)
        except ValueError as error:
            bad.append(p.name)
            problems.append(f"{p.name}={value!r} {error}")
            continue
        try:
            if p.name not in unasked:
                _ask_the_library(p.name, values[p.name], values)
        except PathoError as error:
            bad.append(p.name)
            problems.append(
                error.reason if error.code == "bad_recipe" else f"{error.subject} {error.reason} ({error.remedy})"
            )
    if problems:
        raise PathoError(
            "unknown_parameter" if unknown else "bad_parameter",
            ", ".join(unknown + bad),
            "; ".join(problems),
            f"The parameters are {', '.join(names)}",
        )
    return values


def _declared(history: list[str]) -> tuple[list[Parameter], list[str]]:
    """The parameters of the last declaring cell, and the names that papermill assigned after it."""
    parameters: list[Parameter] = []
    injected: list[str] = []
    for cell in history:
        try:
            statements = ast.parse(cell).body
        except SyntaxError:  # a cell that failed stays in the history
            continue
        lines = [s for s in statements if isinstance(s, ast.AnnAssign) and s.value]
        if lines and len(lines) == len(statements):
            parameters, injected = [_parameter(s, cell) for s in lines], []
        elif cell.lstrip().startswith("# Parameters"):
            injected += [ast.unparse(s.targets[0]) for s in statements if isinstance(s, ast.Assign)]
    if not parameters:
        raise PathoError(
            "no_parameters",
            "notebook",
            "no executed cell declares parameters",
            "Run the cell above that holds them, one per line: name: type = value  # help",
        )
    return parameters, injected


def _compiled() -> list[str]:
    """The cells that ran, from where IPython keeps source for tracebacks: nbval executes without a history."""
    entries = [entry for entry in linecache.cache.values() if len(entry) == 4]
    return ["".join(lines) for _, modified, lines, _ in entries if modified is None]  # no time: not a file


def _parameter(statement: ast.AnnAssign, cell: str) -> Parameter:
    name, kind = ast.unparse(statement.target), ast.unparse(statement.annotation)
    line = cell.splitlines()[(statement.end_lineno or 1) - 1].encode()
    comment = line[statement.end_col_offset :].decode().strip().lstrip("#").strip()  # ast counts columns in bytes
    try:
        parameter = Parameter(name, kind, ast.literal_eval(ast.unparse(statement.value or statement)), comment)
        if kind not in KINDS or name in ("values", "changed"):
            raise ValueError
        _read(parameter, parameter.default)
    except ValueError:
        raise PathoError(
            "parameters_cell",
            name,
            f"is declared as {ast.unparse(statement)!r}",
            f"Declare it as name: type = value, with a type of {', '.join(KINDS)}, a plain value of it "
            "or None, and a name other than values and changed",
        ) from None
    return parameter


def _read(p: Parameter, given):
    """The given value as the declared kind, nothing lost, or ValueError with the reason."""
    if given is None and (p.optional or p.default is None):
        return None
    value: Any = None
    is_number = isinstance(given, (int, float)) and not isinstance(given, bool)
    if isinstance(given, {"bool": bool, "str": str}.get(p.kind, ())):
        value = given
    elif p.kind in ("int", "float") and (is_number or isinstance(given, str)):
        value = _number(given, p.kind)
    if value is None:
        hint = "; papermill passes text with -r" if p.kind == "str" and is_number else ""
        raise ValueError(f"is not {KINDS[p.kind]}{hint}")
    if value == "" != p.default:
        raise ValueError("is empty")
    if p.choices and value not in p.choices:
        raise ValueError(f"is not one of {', '.join(p.choices)} ({nearest(value, p.choices)})")
    return value


def _number(given: int | float | str, kind: str) -> int | float | None:
    """The exact int or finite float, or None."""
    try:
        if kind == "int" and not isinstance(given, float):
            return int(given)
        value = float(given)
    except (ValueError, OverflowError):
        return None
    if kind == "int":
        return int(value) if value.is_integer() else None
    return value if math.isfinite(value) else None


def _ask_the_library(name: str, value, values: dict) -> None:
    """Raises the PathoError that the value would meet later, before an image is read; values: those before it."""
    if name in RECIPE_NUMBERS and value is not None:
        recipes.Recipe("any", ("a", "b"), None, **{name: value})
        return
    if name in ("val", "test") and value is not None and not 0 < value < 1 - (values.get("val") or 0):
        raise PathoError("bad_fractions", name, f"is {value!r}", "Use shares above 0 whose sum is below 1")
    if name in ("only", "hold_out", "columns") and value is not None:
        from patholib.data import columns

        (columns.parsed if name == "columns" else columns.conditions)(value)
        return
    if name == "arch" and value is not None:
        architectures.of(value)
        return
    if name == "frozen" and value is not None:
        recipes.Stage(0, value, 1.0)
        return
    from patholib.base import cpu
    from patholib.base.team import check_count
    from patholib.data import splitting
    from patholib.judge import thresholds
    from patholib.model import schedules
    from patholib.train import runs  # help needs none of them

    if name in ("data", "output", "split") and value is not None:
        files.given(value)
    if name == "workers":
        cpu.threads(value)
    elif name == "processes":
        check_count(value)
    elif name == "output":
        runs.output_folder(value)
    elif name == "repeats" or (name == "folds" and value != 0):
        splitting.check_folds(**{name: value})
    elif name == "fold" and value is not None:
        splitting.check_fold(value, values.get("folds", 0), values.get("repeats", 1))
    elif name == "target_sensitivity":
        thresholds.check_target(value)
    elif name == "max_hours":
        schedules.deadline(value, 0)
    elif name == "device" and value != "cpu" and (value != "auto" or places.host()):
        from patholib.train import devices  # with it comes torch, for which a plain first cell need not wait

        devices.choose_device(value)
    elif name == "weights" and architectures.is_file(value):
        from patholib.model import weights

        weights.given_file(value)


def remember_run(run_dir: Path) -> Path:
    """Notes the run folder in outputs/latest.json, where run.py and a person find the newest run.

    From here on the log of errors is the run's own run.jsonl.
    """
    global _run_dir
    _run_dir = Path(run_dir).resolve()
    return files.write_json(files.outputs() / "latest.json", {"run_dir": str(_run_dir)})


_run_dir: Path | None = None  # where errors are logged; None, before there is a run: the folder of all runs


def _log_errors() -> None:
    """Lets IPython, if this is it, report the outcome of every cell, and on Kaggle and Colab end it in good order."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None and _log_error not in shell.events.callbacks["post_run_cell"]:
        shell.events.register("post_run_cell", _log_error)
        if places.host():
            shell.set_custom_exc((PathoError,), _end_well)


class _Ended(SystemExit):
    """The end of a notebook whose time is up: at this name with code 0, papermill, which Kaggle runs, is content."""

    def __init__(self, lines: list[str]):
        super().__init__(0)
        self.lines = lines

    def _render_traceback_(self) -> list[str]:
        return self.lines


_Ended.__name__ = "SystemExit"


def _end_well(shell, kind, error: PathoError, trace, tb_offset=None) -> None:
    """Shows an error as ever; time that is up ends the notebook without one: Kaggle keeps nothing of a failed one."""
    from patholib.lab import sessions
    from patholib.train import runs

    if error.code != "time_is_up" or _run_dir is None:
        shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
        return
    try:
        left = sessions.leave(_run_dir)
    except PathoError as other:  # what was saved is in its folder all the same
        left = str(other)
    done = _run_dir in runs.finished(_run_dir.parent)  # then it was the cross-validation that had no more time
    what = f"The cross-validation beside {_run_dir.name}" if done else _run_dir.name
    also = ' and resume="must", so that the finished run is not trained anew' if done else ""
    ended = _Ended([f"The time is up: {what} is saved, and not finished.", left, NEXT.format(also)])
    shell.showtraceback((type(ended), ended, trace))


def _log_error(result) -> None:
    """Keeps the traceback of the error that ended a cell, if one did, in run.jsonl."""
    if result.error_in_exec is not None:
        files.append_error((_run_dir or files.outputs()) / "run.jsonl", result.error_in_exec)
