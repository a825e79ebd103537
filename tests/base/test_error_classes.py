"""Six classes of errors, told apart by the code."""

import ast
import pickle
from pathlib import Path

import pytest

from patholib.base.errors import CLASS_OF, CODES, DataError, ParameterError, PathoError

PACKAGE = Path(__file__).parents[2] / "patholib"


def raised() -> dict[str, str]:
    """Every code that stands in a call of PathoError, and where."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "PathoError" and node.args:
                if isinstance(node.args[0], ast.Constant):
                    found[node.args[0].value] = f"{path.relative_to(PACKAGE)}:{node.lineno}"
    return found


def test_every_code_that_is_raised_has_one_class():
    assert {code: place for code, place in raised().items() if code not in CLASS_OF} == {}
    codes = [code for text in CODES.values() for code in text.split()]
    assert len(codes) == len(set(codes))


def test_every_code_is_used_somewhere():
    """In a call of PathoError, or in a list that becomes one."""
    texts = {
        node.value
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert [code for code in CLASS_OF if code not in texts] == []


@pytest.mark.parametrize(("code", "kind"), [("csv_format", DataError), ("bad_parameter", ParameterError)])
def test_the_code_decides_the_class_and_the_class_survives_pickling(code, kind):
    error = PathoError(code, "a.csv", "is wrong", "Mend it")
    again = pickle.loads(pickle.dumps(error))
    assert type(error) is type(again) is kind and again.args == error.args and str(again) == str(error)


def test_an_unknown_code_is_a_plain_error():
    assert type(PathoError("something_new", "a", "b", "c")) is PathoError
