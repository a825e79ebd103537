"""What a notebook's first cells need: its parameters checked, its numbers guarded, its run remembered."""

from __future__ import annotations

import ast
import dataclasses
import html
import linecache
import math
import numbers
import os
import re
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

from patholib import evaluation, files, images, manifest, processes, recipes, runs, schedules
from patholib.errors import PathoError, nearest, nearest_setting

KINDS = {"int": "a whole number", "float": "a finite number", "str": "text", "bool": "True or False"}
RECIPE_NUMBERS = recipes.RANGES.keys() & {f.name for f in dataclasses.fields(recipes.Recipe)}
RECORD = "PATHOLIB_RECORD"  # "1": guards write the reference instead of comparing with it


@dataclass(frozen=True)
class Parameter:
    """One line `name: kind = default  # help` of the parameters cell."""

    name: str
    kind: str  # a key of KINDS
    default: int | float | str | bool | None
    help: str

    @property
    def choices(self) -> list[str]:
        """What the help names after "one of:", up to a semicolon or a bracket; empty: anything goes."""
        found = re.search(r"one of:([^;()]*)", self.help)
        return [choice.strip(" \"'.") for choice in found[1].split(",")] if found else []


class Settings:
    """The checked parameters as attributes: `settings.epochs`.

    values: all of them. changed: those that differ from the parameters cell, as papermill's -p makes them.
    """

    def __init__(self, parameters: list[Parameter], values: dict, notes: dict[str, str]):
        vars(self).update(values)
        self.values = values
        self.changed = {p.name: values[p.name] for p in parameters if values[p.name] != p.default}
        self._rows = [(p.name + " *" * (p.name in self.changed), repr(values[p.name]), repr(p.default),
                       p.help + notes.get(p.name, "")) for p in parameters]

    def __repr__(self) -> str:
        rows = [("parameter", "value", "default", "meaning"), *self._rows]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join("  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]).rstrip()
                         for row in rows)

    def _repr_html_(self) -> str:
        head = "".join(f"<th style='text-align:left'>{h}</th>" for h in ("parameter", "value", "default", "meaning"))
        body = "".join("<tr>" + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in row)
                       + "</tr>" for row in self._rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def check_parameters(history: list[str], namespace: dict) -> Settings:
    """Checks every parameter of the running notebook: `settings = notebook.check_parameters(In, globals())`.

    history: the executed cells, oldest first. The last one that holds nothing but `name: kind = default  # help` is
    the parameters cell; a later one that begins with "# Parameters" is what papermill injected.
    namespace: where the values are. Numbers given as text ("1e-3", as YAML passes them) are converted where nothing is
    lost, there as well; text is never taken for True or False.
    From here on an error that ends a cell is logged with its traceback, of which a PathoError shows one line only.
    Errors: no_parameters, unknown_parameter, bad_parameter; one error names every problem at once.
    """
    _log_errors()
    parameters, injected = _declared(history if any(history) else _compiled())
    names = [p.name for p in parameters]
    unknown = [name for name in injected if name not in names and not name.startswith("PAPERMILL_")]
    problems = [f"{name} is no parameter ({nearest_setting(name, names)})" for name in unknown]
    bad, values, notes = [], {}, {}
    for p in parameters:
        given = namespace.get(p.name, p.default)
        try:
            values[p.name] = _read(p, given)
        except ValueError as error:
            bad.append(p.name)
            problems.append(f"{p.name}={given!r} {error}")
            continue
        try:
            _ask_the_library(p.name, values[p.name])
        except PathoError as error:
            bad.append(p.name)
            problems.append(error.reason if error.code == "bad_recipe" else
                            f"{error.subject} {error.reason} ({error.remedy})")
        if isinstance(given, str) and p.kind != "str":
            notes[p.name] = f" [read from the text {given!r}]"
    if problems:
        raise PathoError("unknown_parameter" if unknown else "bad_parameter", ", ".join(unknown + bad),
                         "; ".join(problems), f"The parameters are {', '.join(names)}")
    namespace.update(values)
    return Settings(parameters, values, notes)


def _declared(history: list[str]) -> tuple[list[Parameter], list[str]]:
    """The parameters of the last declaring cell, and the names that papermill assigned after it."""
    parameters, injected = [], []
    for cell in history:
        try:
            statements = ast.parse(cell).body
        except SyntaxError:  # a cell that failed stays in the history
            continue
        if statements and all(isinstance(s, ast.AnnAssign) and s.value for s in statements):
            parameters, injected = [_parameter(s, cell) for s in statements], []
        elif cell.lstrip().startswith("# Parameters"):
            injected += [s.targets[0].id for s in statements if isinstance(s, ast.Assign)]
    if not parameters:
        raise PathoError("no_parameters", "notebook", "no executed cell declares parameters",
                         "Run the cell above that holds them, one per line: name: type = value  # help")
    return parameters, injected


def _compiled() -> list[str]:
    """The cells that ran, from where IPython keeps source for tracebacks: nbval executes without a history."""
    entries = [entry for entry in linecache.cache.values() if len(entry) == 4]
    return ["".join(lines) for _, modified, lines, _ in entries if modified is None]  # no time: not a file


def _parameter(statement: ast.AnnAssign, cell: str) -> Parameter:
    name, kind = ast.unparse(statement.target), ast.unparse(statement.annotation)
    line = cell.splitlines()[statement.end_lineno - 1].encode()
    comment = line[statement.end_col_offset:].decode().strip().lstrip("#").strip()  # ast counts columns in bytes
    try:
        parameter = Parameter(name, kind, ast.literal_eval(statement.value), comment)
        if kind not in KINDS or name in ("values", "changed"):
            raise ValueError
        _read(parameter, parameter.default)
    except ValueError:
        raise PathoError("parameters_cell", name, f"is declared as {ast.unparse(statement)!r}",
                         f"Declare it as name: type = value, with a type of {', '.join(KINDS)}, a plain value of it "
                         "or None, and a name other than values and changed") from None
    return parameter


def _read(p: Parameter, given):
    """The given value as the declared kind, nothing lost, or ValueError with the reason."""
    if given is None and p.default is None:
        return None
    value = None
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


def _ask_the_library(name: str, value) -> None:
    """Raises the PathoError that the value would meet later, before an image is read."""
    if name in RECIPE_NUMBERS and value is not None:
        recipes.Recipe("any", ("a", "b"), None, **{name: value})
    elif name == "workers":
        images.threads(value)
    elif name == "processes":
        processes.check(value)
    elif name == "output":
        runs.output_folder(value)
    elif name == "repeats" or (name == "folds" and value != 0):
        manifest.check_folds(**{name: value})
    elif name == "target_sensitivity":
        evaluation.check_target(value)
    elif name == "max_hours":
        schedules.deadline(value, 0)
    elif name == "device" and value not in ("auto", "cpu"):
        from patholib import training  # with it comes torch, for which a plain first cell need not wait

        training.choose_device(value)
    elif name == "weights" and value not in (None, "none", "imagenet"):
        from patholib import models

        models.given_file(value)


class Guard:
    """Compares a notebook's numbers with notebooks/reference.json: `guard("test_auc", auc, tol=0.05)`.

    name: what the notebook is called there. settings: a notebook run with other settings than the recorded ones is
    not compared, and neither is one with active=False (real data). With PATHOLIB_RECORD=1 the numbers are recorded.
    """

    def __init__(self, name: str, settings: Settings, active: bool = True):
        self.name, self.path = name, files.project_root() / "notebooks" / "reference.json"
        known = files.read_json(self.path) if self.path.exists() else {}
        entry = known.get(name, {"settings": settings.values, "numbers": {}})
        active = active and not settings.changed
        self.recording = active and os.environ.get(RECORD) == "1"
        self.active = active and bool(known) and entry["settings"] == settings.values
        self.reference = entry["numbers"]
        if self.recording:  # from nothing, so that a number that is gone from the notebook is gone from the file
            self.reference = {}
            files.write_json(self.path, dict(sorted((known | {name: {"settings": settings.values,
                                                                      "numbers": {}}}).items())))

    def __call__(self, number: str, value: float, tol: float = 0.0) -> None:
        """Prints the number with its reference, and stops where they differ by more than `tol`, or it is NaN."""
        subject = f"{number} of {self.name}"
        value = math.nan if value is None else int(value) if isinstance(value, numbers.Integral) else float(value)
        if not (self.active or self.recording):
            print(f"{number} {value:.6g} (not compared: other data or settings than the reference, or none here)")
            return
        if not math.isfinite(value):
            raise PathoError("number_changed", subject, f"is {value}, which is no number", "Find what makes it so")
        if self.recording:
            known = files.read_json(self.path)
            known[self.name]["numbers"][number] = value
            files.write_json(self.path, known)
            print(f"{number} {value:.6g} (recorded)")
            return
        if number not in self.reference:
            raise PathoError("no_reference", subject, "has no reference number",
                             "Record it with python3 run.py notebooks, and commit notebooks/reference.json")
        reference = self.reference[number]
        if abs(value - reference) > tol:
            raise PathoError("number_changed", subject, f"is {value:.6g}, but the reference is {reference:.6g} and the "
                             f"tolerance {tol:g}", "If the change is meant, record it with python3 run.py notebooks")
        print(f"{number} {value:.6g} (reference {reference:.6g}, tolerance {tol:g})")


def remember_run(run_dir: Path) -> Path:
    """Notes the run folder in outputs/latest.json, where run.py and a person find the newest run.

    From here on the log of errors is the run's own run.jsonl.
    """
    global _run_dir
    _run_dir = Path(run_dir).resolve()
    return files.write_json(files.outputs() / "latest.json", {"run_dir": str(_run_dir)})


_run_dir: Path | None = None  # where errors are logged; None, before there is a run: the folder of all runs


def _log_errors() -> None:
    """Lets IPython, if this is it, report the outcome of every cell."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None and _log_error not in shell.events.callbacks["post_run_cell"]:
        shell.events.register("post_run_cell", _log_error)


def _log_error(result) -> None:
    """Keeps the traceback of the error that ended a cell, if one did, in run.jsonl."""
    error = result.error_in_exec
    if error is not None:
        files.append_json((_run_dir or files.outputs()) / "run.jsonl", {
            "event": "error", "code": getattr(error, "code", type(error).__name__), "error": str(error),
            "traceback": "".join(traceback.format_exception(error))})
