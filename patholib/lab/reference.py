"""The numbers that a notebook is known to give on demo images, and the best that is possible there.

A run of a user's own is never stopped by them: other machines and numbers of threads end with other last digits. Only
tests set PATHOLIB_STRICT=1, and then a difference is an error.
"""

from __future__ import annotations

import math
import numbers
import os
from typing import TYPE_CHECKING

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.judge import ceilings, metrics

if TYPE_CHECKING:
    from patholib.data.manifest import Manifest
    from patholib.lab.notebook import Settings

RECORD, STRICT = "PATHOLIB_RECORD", "PATHOLIB_STRICT"  # "1": write the reference; stop where a number differs


def strict() -> bool:
    """Whether a difference is an error, as tests ask."""
    return os.environ.get(STRICT) == "1"


class Guard:
    """Compares a notebook's numbers with notebooks/reference.json: `guard("test_auc", auc, tol=0.05)`.

    name: what the notebook is called there. settings: of the notebook, or its `Options`; with other settings than the
    recorded ones nothing is compared, and neither with active=False (real data). A difference is printed; it stops the
    notebook only in tests (STRICT). With PATHOLIB_RECORD=1 the numbers are recorded.
    """

    def __init__(self, name: str, settings: Settings, active: bool = True):
        self.name, self.path = name, files.project_root() / "notebooks" / "reference.json"
        known = files.read_json(self.path) if self.path.exists() else {}
        fresh = {"settings": settings.values, "numbers": {}}
        plain, entry = active and not settings.changed, known.get(name, fresh) if known else None
        self.recording = plain and os.environ.get(RECORD) == "1"
        self.reference = entry["numbers"] if plain and entry and entry["settings"] == settings.values else None
        if self.recording:  # from nothing, so that a number that is gone from the notebook is gone from the file
            files.write_json(self.path, dict(sorted((known | {name: fresh}).items())))

    def __call__(self, number: str, value: float, tol: float = 0.0) -> None:
        """Prints the number with its reference. In tests: stops where they differ by more than `tol`, or it is NaN."""
        subject = f"{number} of {self.name}"
        value = math.nan if value is None else int(value) if isinstance(value, numbers.Integral) else float(value)
        if self.recording:
            if not math.isfinite(value):
                raise PathoError("number_changed", subject, f"is {value}, which is no number", "Find what makes it so")
            known = files.read_json(self.path)
            known[self.name]["numbers"][number] = value
            files.write_json(self.path, known)
            print(f"{number} {value:.6g} (recorded)")
            return
        if self.reference is None:
            print(f"{number} {value:.6g} (not compared: other data or settings than the reference, or none here)")
            return
        reference = self.reference.get(number, math.nan)
        near = abs(value - reference) <= tol  # False for NaN
        if strict() and not near:
            code = "number_changed" if number in self.reference else "no_reference"
            reason = f"is {value:.6g}, but the reference is {reference:.6g} and the tolerance {tol:g}"
            remedy = "If that is meant, record it with python3 run.py notebooks, and commit notebooks/reference.json"
            raise PathoError(code, subject, reason, remedy)
        print(
            f"{number} {value:.6g} (reference {reference:.6g}, tolerance {tol:g})" + (": differs" if not near else "")
        )


def check_against_best(source: Manifest, predictions, tol: float = 0.05) -> None:
    """For demo images: prints the AUC beside the best possible on the same images.

    On real images it says that no best possible is known. In tests (STRICT) it stops where the AUC is more than `tol`
    below the best possible. Errors: short_of_best.
    """
    if not source.demo:
        print("real images: the best possible AUC is not known")
        return
    ours, best = (
        metrics.summary(table, source.classes, source.positive)["metrics"]["auc"]["value"]
        for table in (predictions, ceilings.best_possible(source, predictions))
    )
    print(f"test AUC {ours:.3f}, best possible on these images {best:.3f}")
    if strict() and best - ours > tol:
        raise PathoError(
            "short_of_best",
            "test AUC",
            f"is {ours:.3f}, more than {tol:g} below the best possible {best:.3f}",
            "Look at the history: a change has made the training worse",
        )
