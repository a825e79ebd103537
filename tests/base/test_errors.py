"""A refusal names its subject, the reason and the remedy, and nothing in it can command a terminal."""

import pickle

import pytest

from patholib.base.errors import PathoError, nearest, shown


def test_a_refusal_names_code_subject_reason_and_remedy():
    error = PathoError("empty", "a.png", "has no bytes", "Download the file again")
    assert str(error) == "[empty] a.png: has no bytes. Download the file again"
    assert error._render_traceback_() == ["DataError [empty] a.png: has no bytes. Download the file again"]


def test_a_subject_with_control_characters_is_shown_and_not_obeyed():
    error = PathoError("empty", "a\nb\x1b[31m\u202egnp.c", "r", "m")
    assert error.subject == "a\\nb\\x1b[31m\\u202egnp.c" and "\n" not in str(error)
    assert error.subject == shown(error.subject)  # once is enough


@pytest.mark.parametrize("text", ["plain.png", "Präparat 7 (ä).png", "C:\\data\\a.png", "图.png"])
def test_what_prints_is_left_as_it_is(text):
    assert shown(text) == text


def test_bytes_that_are_no_text_are_shown_too():
    assert shown("a\udcff") == "a\\udcff"


def test_a_refusal_survives_pickling():
    error = pickle.loads(pickle.dumps(PathoError("code", "a\n", "reason", "remedy")))
    assert (error.code, error.subject, error.reason, error.remedy) == ("code", "a\\n", "reason", "remedy")


def test_an_unknown_name_gets_the_nearest_or_all():
    assert nearest("epoch", ["epochs", "lr"]) == "did you mean 'epochs'?"
    assert nearest("zzz", ["epochs", "lr"]) == "known: epochs, lr"
