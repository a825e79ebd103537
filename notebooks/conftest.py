"""Under nbval every notebook has an outputs folder of its own, and stops at a number that is not the reference."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HERE, OUTPUTS = Path(__file__).parent, os.environ.get("PATHOLIB_OUTPUTS")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Before the kernel of the notebook is started, which takes the variables over."""
    os.environ["PATHOLIB_STRICT"] = "1"
    if OUTPUTS:
        name = "-".join(item.path.relative_to(HERE).with_suffix("").parts)
        os.environ["PATHOLIB_OUTPUTS"] = str(Path(OUTPUTS, name))
