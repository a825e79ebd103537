"""The numbers of metrics.json do not change unnoticed: those of a fixed table are kept in tests/stored_example.json."""

import json

import pytest
import stored_example


def same(found, stored, where=""):
    """Compares texts exactly and numbers to 9 digits, as processors add up in different orders.

    The calibration is fitted until its loss no longer falls in its last digit, which leaves a few digits open.
    """
    if isinstance(stored, dict):
        assert not stored.keys() - found.keys(), where  # a new metric is no change of the others
        for key, value in stored.items():
            same(found[key], value, f"{where} / {key}")
    elif isinstance(stored, list):
        assert len(found) == len(stored), where
        for place, value in enumerate(stored):
            same(found[place], value, f"{where} [{place}]")
    elif isinstance(stored, float):
        assert found == pytest.approx(stored, rel=1e-9, abs=1e-9), where
    else:
        assert found == stored, where


def test_the_numbers_of_a_fixed_table_stay_what_they_were():
    same(stored_example.numbers(), json.loads(stored_example.FILE.read_text(encoding="utf-8")))
