"""The catalogue of bad input and faults: what each test saw is compared with docs/robustness.md, or recorded there.

A test calls `catalogue("D03", "PNG cut off in the middle", answer)`; the row must stand in the table as it is. The
table holds codes and no wording: a message can be rewritten without touching it.

With PATHOLIB_RECORD=1 the rows that passing tests give are written, whichever tests are run. A row of the same id that
no test gave any more goes only if every test file that names this id ran whole and passed, in one process.
"""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

import hypothesis
import pytest

from patholib.base.errors import PathoError

TESTS = Path(__file__).resolve().parent
TABLE = TESTS.parent / "docs" / "robustness.md"
hypothesis.settings.register_profile("patholib", deadline=None)  # a busy machine is no fault
hypothesis.settings.load_profile("patholib")
RECORDING = os.environ.get("PATHOLIB_RECORD") == "1"
ROW = re.compile(r"\| ([A-Z]\d\d) \| (.*?) \| (.*) \|")


def known_rows() -> dict[tuple[str, str], str]:
    """(id, input): answer, as the table has them."""
    if not TABLE.exists():
        return {}
    found = (ROW.fullmatch(line) for line in TABLE.read_text(encoding="utf-8").splitlines())
    return {(row[1], row[2]): row[3] for row in found if row}


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")


@pytest.fixture
def catalogue(record_property):
    """`catalogue(id, input, answer)`: holds what happened against the table.

    answer: a PathoError, shown as its code; or words of the test: "accepted, with the note `alpha`".
    """

    def hold(name: str, given: str, answer: PathoError | str) -> None:
        assert re.fullmatch(r"[A-Z]\d\d", name), name
        if isinstance(answer, PathoError):
            assert answer.reason and answer.subject, "an error has to say what is wrong with what"
            answer = f"refused: `{answer.code}`"
        row = (name, cell(given), cell(answer))
        record_property("catalogue", row)
        if not RECORDING:
            assert known_rows().get(row[:2]) == row[2], "not as in docs/robustness.md; record with PATHOLIB_RECORD=1"

    return hold


class Recorder:
    """Writes the table at the end of a session; also with -n, where the rows arrive with the reports of the tests."""

    def __init__(self):
        self.rows: dict[tuple[str, str], str] = {}
        self.items: dict[Path, set[str]] = {}  # tests that give rows, by file
        self.partial: set[Path] = set()  # files of which some such test was left out
        self.passed: set[str] = set()
        self.said = ""

    def pytest_deselected(self, items):
        self.partial |= {item.path for item in items if "catalogue" in getattr(item, "fixturenames", ())}

    def pytest_collection_finish(self, session):
        self.partial |= {
            Path(str(given).partition("::")[0]).resolve() for given in session.config.args if "::" in str(given)
        }
        for item in session.items:
            if "catalogue" in getattr(item, "fixturenames", ()):
                self.items.setdefault(item.path, set()).add(item.nodeid)

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and report.passed:
            self.passed.add(report.nodeid)
            for name, given, answer in (row for what, row in report.user_properties if what == "catalogue"):
                self.rows[name, given] = answer  # of two answers to one input one fails in the next plain run

    def whole(self, name: str) -> bool:
        """Whether every file that may give rows of this id ran whole and passed."""
        homes = [path for path in TESTS.rglob("test_*.py") if name in told_by(path)]
        return bool(homes) and all(
            path not in self.partial and self.items.get(path, {""}) <= self.passed for path in homes
        )

    def pytest_sessionfinish(self):
        if not self.rows:
            return
        known = known_rows()
        unseen = {key for key in known.keys() - self.rows.keys() if key[0] in {name for name, _ in self.rows}}
        gone = {key for key in unseen if self.whole(key[0])}
        rows = {key: answer for key, answer in known.items() if key not in gone} | self.rows
        lines = TABLE.read_text(encoding="utf-8").splitlines()
        head = lines[: next(i for i, line in enumerate(lines) if line.startswith("|")) + 2]
        body = [f"| {name} | {given} | {answer} |" for (name, given), answer in sorted(rows.items())]
        TABLE.write_text("\n".join([*head, *body]) + "\n", encoding="utf-8", newline="\n")
        self.said = (
            f"docs/{TABLE.name}: {len(self.rows)} rows seen, {len(gone)} dropped, {len(unseen - gone)} of the "
            "same ids kept because not every test of theirs ran here"
        )

    def pytest_terminal_summary(self, terminalreporter):
        if self.said:
            terminalreporter.write_line(self.said)


def told_by(path: Path) -> str:
    """The text of a test file that gives rows, with that of the samples it takes; nothing for any other file."""
    text = path.read_text(encoding="utf-8")
    if "catalogue(" not in text:
        return ""
    if re.search(r"^(import|from) samples", text, re.M):
        text += (TESTS / "samples.py").read_text(encoding="utf-8")
    return text


def pytest_configure(config):
    if RECORDING and not hasattr(config, "workerinput"):  # a process of xdist only reports
        config.pluginmanager.register(Recorder())


@pytest.fixture(scope="session", autouse=True)
def outputs_apart(tmp_path_factory):
    """What tests write where they name no folder is no output of the project's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATHOLIB_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        yield


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
