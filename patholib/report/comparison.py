"""Finished runs side by side: how they were made, on which images they were tested, and how their results differ.

Differences are computed only between runs with the same test images, byte for byte, with the same labels and groups;
other runs are only listed. The interval of a difference is not adjusted for the number of differences.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from patholib.base import files, places
from patholib.base.errors import PathoError, nearest
from patholib.data import csvfiles, manifest
from patholib.judge import decisions, metrics, rules, validation
from patholib.judge.metric_table import lower_is_better, ordered, words
from patholib.model import profiles, recipes
from patholib.report.records import Record
from patholib.train import runs

NEWEST = 4  # runs that are compared where none are named
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, eq=False)
class Finished:
    """A finished run and its calibrated predictions of the test images, sorted by the SHA-256 of the image."""

    name: str
    record: Record
    test: pd.DataFrame  # predictions, and sha256 of each image

    @property
    def threshold(self) -> float | rules.Shares:
        """How the class is predicted: see `decisions.deciding`."""
        return decisions.deciding(self.record.decision, self.record.recipe.classes)

    @property
    def task(self) -> tuple[tuple[str, ...], str | None]:
        """Classes and positive class, which two runs in one plot must share."""
        return self.record.recipe.classes, self.record.recipe.positive

    @cached_property
    def test_images(self) -> str:
        """A digest of the test images: their bytes, labels and groups, and the classes."""
        return files.digest([self.record.recipe.classes, self.test[["sha256", "label", "group"]].to_numpy().tolist()])


@dataclass(frozen=True)
class Comparison:
    """Several finished runs; the others are compared with the first."""

    runs: tuple[Finished, ...]
    made: bool = False  # whether two demo runs were trained, as there was nothing to compare

    @property
    def note(self) -> str:
        """The note of every figure: whether any run was made with demo images."""
        return manifest.DEMO_NOTE if any(run.record.demo for run in self.runs) else ""

    @property
    def overview(self) -> pd.DataFrame:
        """One row per run; the same letter in a column means the same images, split or test images."""
        digests = {
            "all images": [run.record.images_digest for run in self.runs],
            "split": [(run.record.run.get("split") or {}).get("sha256", run.name) for run in self.runs],
            "test images": [run.test_images for run in self.runs],
        }
        rows = [
            {
                "created": str(run.record.run.get("created", ""))[:10],
                "network": run.record.recipe.arch,
                "classes": len(run.record.recipe.classes),
                "demo": run.record.demo,
                "tested on": len(run.test),
                "groups": run.test["group"].nunique(),
            }
            for run in self.runs
        ]
        table = pd.DataFrame(rows, index=pd.Index([run.name for run in self.runs], name="run"))
        return table.assign(**{column: _letters(values) for column, values in digests.items()})

    @property
    def recipes(self) -> pd.DataFrame:
        """The fields in which not all recipes agree, one column per run."""
        first = self.runs[0]
        columns = {first.name: pd.Series(dtype=str)}
        for run in self.runs[1:]:
            found = profiles.differences(first.record.recipe, run.record.recipe, ("first", "run")).set_index("field")
            columns[first.name] = columns[first.name].combine_first(found["first"])
            columns[run.name] = found["run"]
        table = pd.DataFrame(columns).rename_axis("field")
        return table.apply(lambda column: column.fillna(table[first.name]))  # where only another run differs

    @property
    def numbers(self) -> pd.DataFrame:
        """The test numbers of metrics.json with their intervals, one column per run."""
        of_runs = {run.name: run.record.metrics["test"]["metrics"] for run in self.runs}
        names = ordered(number for found in of_runs.values() for number in found)
        return pd.DataFrame(
            {
                run: {words(number): metrics.readable(found.get(number)) for number in names}
                for run, found in of_runs.items()
            }
        )

    @cached_property
    def differences(self) -> pd.DataFrame:
        """Each run minus the first run with the same test images, with 95 % intervals over the same groups.

        Columns number, run ("b - a"), value, low, high, difference (text). Empty where no two runs have the same test
        images.
        """
        rows = []
        for first, run in self._pairs():
            found = metrics.paired(
                run.test.drop(columns=["path", "sha256"]),
                first.test.drop(columns=["path", "sha256"]),
                *run.task,
                threshold=(run.threshold, first.threshold),
            )
            rows += [
                {
                    "number": words(number) + (" (lower is better)" if lower_is_better(number) else ""),
                    "run": f"{run.name} - {first.name}",
                    **{end: found[number].get(end) for end in ("value", "low", "high")},
                    "difference": metrics.readable(found[number], sign="+"),
                }
                for number in ordered(found, len(run.task[0]) == 2)
            ]
        table = pd.DataFrame(rows, columns=["number", "run", "value", "low", "high", "difference"])
        order = list(dict.fromkeys(table["number"]))
        return table.sort_values("number", key=lambda names: names.map(order.index), kind="stable", ignore_index=True)

    @property
    def said(self) -> str:
        """Which runs were compared, which could not be, and what many comparisons mean for the intervals."""
        if len(self.runs) == 1:
            return "There is only one run: nothing to compare."
        number, known = len(self.differences), int(self.differences["low"].notna().sum())
        lines = (
            [
                f"{number} differences, {known} of them with a 95 % interval. The intervals are not adjusted for "
                f"multiple comparisons: without any true difference, about {0.05 * known:.1f} of them would still "
                "exclude zero."
            ]
            if number
            else []
        )
        pairs = self._pairs()
        lines += [f"{run.name} is compared with {first.name}: same test images." for first, run in pairs]
        alone = [run.name for run in self.runs if all(run not in pair for pair in pairs)]
        lines += [f"{name} has other test images: it is listed, but not compared." for name in alone]
        return "\n".join(lines)

    @cached_property
    def pooled(self) -> pd.DataFrame:
        """Results over all test images of runs that are folds of one cross-validation, one column for each of these.

        Folds are runs of one recipe on the same images, of which no two share a test image; the first row says whether
        every image was tested. Calibration and threshold come from the other folds. Intervals treat a group as one.
        Empty where no two runs are such folds.
        """
        columns = {}
        for folds in self._folds():
            recipe = folds[0].record.recipe
            judged = validation.decided_by_others([run.record.folder for run in folds])
            table = pd.concat([table for table, _ in judged], ignore_index=True)
            known = len(csvfiles.read_csv(folds[0].record.folder / "images.csv", ("path", "sha256")))
            found = validation.pooled_summary(table, recipe)["metrics"]
            columns[" + ".join(run.name for run in folds)] = {
                "images tested": f"{len(table):,} of {known:,}",
                "groups": f"{table['group'].nunique():,}",
                **{words(number): metrics.readable(found[number]) for number in ordered(found)},
            }
        return pd.DataFrame(columns)

    def _folds(self) -> list[list[Finished]]:
        """Lists of at least two runs that differ only in which images they test, and test no image twice."""
        alike: dict[str, list[Finished]] = {}
        for run in self.runs:
            mark = [recipes.without_folders(run.record.recipe).to_json(), run.record.images_digest]
            alike.setdefault(files.digest(mark), []).append(run)
        tested = {run.name: set(run.test["path"]) for run in self.runs}
        return [
            runs
            for runs in alike.values()
            if len(runs) > 1
            and len(set().union(*(tested[run.name] for run in runs))) == sum(len(tested[run.name]) for run in runs)
        ]

    @property
    def drawn(self) -> dict[str, tuple]:
        """{name: (labels (N,), probs (N, C))} of the runs that have the classes of the first, for ROC curves."""
        classes = self.classes
        return {
            self._label(run): (
                pd.Categorical(run.test["label"], categories=list(classes)).codes.astype(np.int64),
                run.test[[f"p_{c}" for c in classes]].to_numpy(),
            )
            for run in self.runs
            if run.task == self.runs[0].task
        }

    @property
    def kept(self) -> dict[str, int | None]:
        """{name: the number of the epoch whose weights were kept} of every run."""
        return {run.name: (run.record.run.get("training") or {}).get("best_epoch") for run in self.runs}

    @property
    def histories(self) -> dict[str, pd.DataFrame]:
        """{name: history} of every run that has epochs: a fitted head has none."""
        return {
            run.name: run.record.history
            for run in self.runs
            if len(run.record.history) and run.record.recipe.train != "head"
        }

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the first run."""
        return self.runs[0].record.recipe.classes

    @property
    def positive(self) -> str | None:
        """Of the first run."""
        return self.runs[0].record.recipe.positive

    @property
    def monitor(self) -> str:
        """The metric by which the first run chose its best epoch."""
        return self.runs[0].record.recipe.monitor

    def _pairs(self) -> list[tuple[Finished, Finished]]:
        """(the first run of the same test images, another one)."""
        first: dict[str, Finished] = {}
        return [(first[run.test_images], run) for run in self.runs if first.setdefault(run.test_images, run) is not run]

    def _label(self, run: Finished) -> str:
        """The name of a run, with the letter of its test images where there are several."""
        letters = _letters([other.test_images for other in self.runs])
        return run.name if len(set(letters)) == 1 else f"{run.name} (test images {letters[self.runs.index(run)]})"


def read(
    named: str = "", output: str | Path | None = None, make: Callable[[Path], list[Path]] | None = None
) -> Comparison:
    """The runs that are named, by folder name or path, separated by commas; none named: the newest finished in output.

    output: the folder of run folders, see `runs.output_folder`. make: makes two runs in it where none are named and
    fewer than two are finished, such as `Study.demo_pair`.
    Errors: unknown_run (also where there is nothing to compare), unfinished_run, output_unwritable.
    """
    folder = runs.output_folder(output)
    wanted = [name.strip() for name in named.split(",") if name.strip()]
    if wanted:
        found = dict.fromkeys(_place(name, folder).resolve() for name in wanted)  # a run named twice counts once
        return Comparison(_named(list(found)))
    newest = runs.finished(folder)[:NEWEST]
    if len(newest) >= 2:
        return Comparison(_named(newest[::-1]))  # the oldest of them is what the others are measured against
    if make is None:
        raise PathoError("unknown_run", folder.name, "holds fewer than two finished runs", "Train two, or name others")
    print("Fewer than two runs are finished here: two small ones are trained on demo images")
    return Comparison(_named(make(folder)), made=True)


def _place(name: str, output: Path) -> Path:
    """The run folder of that name in output, or at that path."""
    for place in (output / name, files.given(name), files.project_root() / name):
        if (place / "run.json").is_file():
            return place
    raise PathoError(
        "unknown_run",
        name,
        f"is not a run folder, neither in {output.name} nor as a path",
        nearest(name, [run.name for run in runs.finished(output)]) if output.is_dir() else "Name another",
    )


def _named(folders: list[Path]) -> tuple[Finished, ...]:
    """The runs in these folders, those of a sweep called as their folder there; twins with the folder above."""
    above = [folder.resolve().parent for folder in folders]
    names = [
        parent.name if (parent / places.OUTCOME).exists() and above.count(parent) == 1 else folder.name
        for folder, parent in zip(folders, above, strict=True)
    ]
    return tuple(
        _finished(folder, name if names.count(name) == 1 else f"{parent.name}/{folder.name}")
        for folder, parent, name in zip(folders, above, names, strict=True)
    )


def _finished(folder: Path, name: str) -> Finished:
    record = Record(folder)
    if record.run.get("status") != "finished" or "test" not in record.metrics:
        raise PathoError(
            "unfinished_run",
            name,
            "is not finished: it has no test results",
            "Run its notebook again, which resumes it, or name another run",
        )
    table = decisions.calibrated(folder, "test")
    known = csvfiles.read_csv(folder / "images.csv", ("path", "sha256")).set_index("path")["sha256"]
    table = table.assign(sha256=known.reindex(table["path"]).fillna("not listed").to_numpy())
    return Finished(name, record, table.sort_values(["sha256", "path"], ignore_index=True))


def _letters(values: list) -> list[str]:
    """A letter for every different value, in order of appearance: A, B, A."""
    names = (a + b for a, b in itertools.product(["", *LETTERS], LETTERS))
    known: dict = {}
    return [known[value] if value in known else known.setdefault(value, next(names)) for value in values]
