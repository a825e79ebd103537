"""The catalogue of bad input and faults: what each test saw is compared with docs/robustness.md, or recorded there.

A test calls `catalogue("D03", "PNG cut off in the middle", answer)`; the row must stand in the table as it is.
With PATHOLIB_RECORD=1 the rows of every id that was seen are written anew, so that a change is a diff to be read. Rows
that were not seen would be lost: a part of the tests is refused, and a run that failed or was ended changes nothing.
"""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

import pytest

from patholib.base.errors import PathoError

TABLE = Path(__file__).parents[1] / "docs" / "robustness.md"
RECORDING = os.environ.get("PATHOLIB_RECORD") == "1"
ROW = re.compile(r"\| ([A-Z]\d\d) \| (.*?) \| (.*) \|")
recorded: dict[tuple[str, str], str] = {}
waiting: set[str] = set()  # tests that record rows and have not passed yet


def known_rows() -> dict[tuple[str, str], str]:
    """(id, input): answer, as the table has them."""
    if not TABLE.exists():
        return {}
    found = (ROW.fullmatch(line) for line in TABLE.read_text(encoding="utf-8").splitlines())
    return {(row[1], row[2]): row[3] for row in found if row}


@pytest.fixture(scope="session", autouse=True)
def outputs_apart(tmp_path_factory):
    """What tests write where they name no folder is no output of the project's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATHOLIB_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        yield


@pytest.fixture
def catalogue(tmp_path):
    """`catalogue(id, input, answer)`: holds what happened against the table.

    answer: a PathoError, shown as its code and remedy; or a text: "accepted, with the note `alpha`".
    """
    def hold(name: str, given: str, answer: PathoError | str) -> None:
        assert re.fullmatch(r"[A-Z]\d\d", name), name
        if isinstance(answer, PathoError):
            assert answer.reason and answer.subject, "an error has to say what is wrong with what"
            answer = f"refused: `{answer.code}`. {answer.remedy}"
        shown = " ".join(answer.replace(str(tmp_path.resolve()), "...").replace(str(tmp_path), "...").split())
        row = (name, " ".join(given.split()).replace("|", "/"))
        shown = shown.replace("|", "/")
        assert recorded.setdefault(row, shown) == shown, f"{row} was answered in two ways"
        if not RECORDING:
            assert known_rows().get(row) == shown, "not as in docs/robustness.md; record with PATHOLIB_RECORD=1"

    return hold


def records(item: pytest.Item) -> bool:
    return "catalogue" in getattr(item, "fixturenames", ())


def refuse(what: str) -> None:
    raise pytest.UsageError(f"PATHOLIB_RECORD: {what}, and rows of docs/{TABLE.name} would be lost. Run all tests in "
                            "one process: PATHOLIB_RECORD=1 python3 run.py test tests")


def pytest_configure(config):
    if RECORDING and getattr(config.option, "numprocesses", None):
        refuse("-n gives each process a part of the tests")


def pytest_deselected(items):
    if RECORDING and (left := [item.nodeid for item in items if records(item)]):
        refuse(f"{left[0]} is left out by -k, -m or the like")


def pytest_collection_finish(session):
    if RECORDING:
        waiting.update(item.nodeid for item in session.items if records(item))
        there = {item.path.resolve() for item in session.items}
        left = [path.name for path in sorted(Path(__file__).resolve().parent.glob("test_*.py"))
                if path not in there and re.search(r"^ +catalogue\(", path.read_text(encoding="utf-8"), re.M)]
        if left and waiting:
            refuse(f"{left[0]} is not among the tests")


def pytest_runtest_logreport(report):
    if report.skipped or (report.when == "call" and report.passed):
        waiting.discard(report.nodeid)


def pytest_terminal_summary(terminalreporter):
    if RECORDING and recorded and waiting:
        terminalreporter.write_line(f"docs/{TABLE.name} stays as it is: {min(waiting)} did not pass")


def pytest_sessionfinish():
    """Writes the table: the rows of this session, and those of ids that this session did not touch."""
    if RECORDING and recorded and not waiting:
        seen = {name for name, _ in recorded}
        rows = {key: answer for key, answer in known_rows().items() if key[0] not in seen} | recorded
        lines = TABLE.read_text(encoding="utf-8").splitlines()
        head = lines[:next(i for i, line in enumerate(lines) if line.startswith("|")) + 2]
        body = [f"| {name} | {given} | {answer} |" for (name, given), answer in sorted(rows.items())]
        TABLE.write_text("\n".join([*head, *body]) + "\n", encoding="utf-8", newline="\n")


@pytest.fixture(scope="module")
def small_network():
    """Lets resnet18 be the network of `tiny`, of milliseconds, in a whole module."""
    from tiny import network  # with it comes torch, for which other tests need not wait

    with network():
        yield


@pytest.fixture(scope="session")
def make():
    """docs/make.py, which is a script and no module of the library."""
    spec = importlib.util.spec_from_file_location("make", Path(__file__).parents[1] / "docs" / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
