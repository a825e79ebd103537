"""What lies in a run folder, read from its files alone: report, cards and comparison say what these say."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from patholib.base import files
from patholib.judge import external
from patholib.judge.external import External
from patholib.judge.groupwise import units
from patholib.judge.validation import CrossValidated
from patholib.model import recipes
from patholib.report.markdown import count, text

NOTICE = Markup(
    "**For research use only. Not a medical device:** not for diagnosis, and not for any decision about a patient."
)
DEMO = Markup(
    "**DEMO IMAGES: NOT A RESULT.** The images of this run were generated to show that the pipeline works. "
    "No number below says anything about tissue, skin or people."
)
PUBLISHED = Markup(
    "**Recipe as published, mistakes included.** This run measures what those mistakes cost. Do not "
    "quote its numbers as performance."
)
SETS = {
    "val": "validation",
    "test": "test",
    "test_tta": "test, averaged views",
    "baseline": "colour statistics (test)",
    "probe": "linear probe (test)",
    "image_alone": "image alone (test)",
}
ON_REQUEST = ("probe", "image_alone")  # not reported as missing


class Record:
    """What lies in a run folder; `absent` collects what does not."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.run = files.read_json(self.folder / "run.json")
        self.recipe = recipes.from_json(self.run["recipe"])
        self.absent: list[str] = []
        self.metrics = self._json("metrics.json", "no results") or {}
        self.decision = self._json("decision.json", "no threshold was chosen before the test images were judged")
        self.data_report = self._json("data_report.json", "the result of the data check is unknown")
        self.history = self._history()
        self.figures = [
            *sorted(self.folder.glob("*.png")),  # the overview, training_metrics.png
            *sorted((self.folder / "figures").glob("*.png")),
        ]
        self.heatmaps = sorted((self.folder / "heatmaps").glob("*.png"), key=lambda p: (p.stem != "gallery", p))
        for name, missing in (
            ("split.csv", "the images of each split are unknown"),
            ("predictions_val.csv", "the validation numbers cannot be recomputed"),
            ("predictions_test.csv", "the test numbers cannot be recomputed"),
        ):
            if not (self.folder / name).is_file():
                self.absent.append(f"`{name}`: {missing}")
        if not self.figures:
            self.absent.append("`figures/`: no figures")
        if not self.heatmaps:
            self.absent.append("`heatmaps/`: no heatmaps")
        for key, name in SETS.items():
            if self.metrics and key not in self.metrics and key not in ON_REQUEST:
                self.absent.append(f"`{key}` in `metrics.json`: no {name} numbers")

    @property
    def name(self) -> str:
        """What the run is called."""
        return str(self.run.get("name", self.folder.name))

    @property
    def fold(self) -> str:
        """Which fold of a cross-validation the test images are, `fold 2 of 5`; "" if they are none."""
        options = self.run.get("options") or {}
        if options.get("fold") is None or not options.get("folds"):
            return ""
        repeat, fold = divmod(options["fold"], options["folds"])  # counted from 0 through the repeats
        of_repeat = f", repeat {repeat + 1} of {options['repeats']}" if options.get("repeats", 1) > 1 else ""
        return f"fold {fold + 1} of {options['folds']}{of_repeat}"

    @property
    def demo(self) -> bool:
        """Whether the images were demo images."""
        return bool(self.run.get("demo"))

    @property
    def sets(self) -> dict[str, dict]:
        """The summaries there are, in the order of `SETS`."""
        return {key: self.metrics[key] for key in SETS if key in self.metrics}

    @property
    def data(self) -> Mapping:
        """What run.json says of the images."""
        return self.run.get("data") or {}

    @property
    def split_origin(self) -> str:
        """Where a split that was given is from; "" of one that was drawn."""
        return (self.run.get("split") or {}).get("origin", "")

    @property
    def split_changed(self) -> bool:
        """Whether split.csv is not the file that the run was made with."""
        return self.differs("split.csv", (self.run.get("split") or {}).get("sha256"))

    @property
    def units(self) -> str:
        """What the split keeps together, in the plural: patients, lesions, slides, images or groups."""
        return units(self.recipe.group_by)

    def so_many(self, number: int | str) -> str:
        """A number of `units`: `1 patient`, `12 patients`."""
        return f"{count(number)} {self.units[:-1] if number == 1 else self.units}"

    @property
    def two_classes(self) -> bool:
        """Whether one threshold decides: two classes, one of them positive."""
        return len(self.recipe.classes) == 2 and self.recipe.positive is not None

    @property
    def images_digest(self) -> str:
        """The SHA-256 of the bytes of all images, or that none is recorded."""
        return self.data.get("images_sha256") or "not recorded"

    @property
    def weights(self) -> str:
        """What the weights were at the start: kind, name of the file, SHA-256."""
        found = self.run.get("weights") or {}
        name = f", {found['file']}" if found.get("file") else ""
        digest = f" (SHA-256 {found['sha256']})" if found.get("sha256") else ""
        return f"{found.get('kind', self.recipe.weights)}{name}{digest}"

    @cached_property
    def split(self) -> pd.DataFrame | None:
        """split.csv, all columns text; None without it."""
        return self._table("split.csv")

    @cached_property
    def trust(self) -> dict | None:
        """trust.json: whether the heatmaps can be believed; None without it."""
        return self._optional("trust.json")

    @cached_property
    def excluded(self) -> list[dict] | None:
        """The files that were left out, each with code and reason, of the data check or excluded.csv; None: unknown."""
        if self.data_report is not None:
            return self.data_report.get("excluded", self.data_report.get("problems", []))
        table = self._table("excluded.csv")
        return None if table is None else table.to_dict("records")

    @cached_property
    def externals(self) -> list[External]:
        """The external validations of the run, by name."""
        return external.of_run(self.folder)

    def has(self, name: str) -> bool:
        """Whether there is a file or folder of this name, and something in it."""
        path = self.folder / name
        return path.is_file() or (path.is_dir() and any(path.iterdir()))

    def differs(self, name: str, digest: str | None) -> bool:
        """Whether a file is there, and is not the one whose SHA-256 was recorded."""
        path = self.folder / name
        return bool(digest) and path.is_file() and files.sha256(path) != digest

    def groups_in_two_splits(self) -> int | None:
        """Counted in split.csv; None without it."""
        if self.split is None:
            return None
        return int((self.split[["group", "split"]].drop_duplicates()["group"].value_counts() > 1).sum())

    def banners(self) -> list[Markup]:
        """The warnings that stand above everything else."""
        found = [DEMO] if self.demo else []
        if self.run.get("published", self.recipe.published):
            found.append(PUBLISHED)
        said = []
        if leaks := [row["says"] for rows in self.run.get("leaks", {}).values() for row in rows]:
            said.append(
                f"**The split leaks:** {text('; '.join(leaks))}. The model has seen these images or patients in "
                "training, so the numbers below are too high by an unknown amount."
            )
        for one in self.externals:
            if one.facts["demo"] and not self.demo:
                said.append(f"**The external images {text(one.name)} are demo images: not a result.**")
            if one.leaks:
                said.append(
                    f"**The external images {text(one.name)} leak:** {text(one.leaks)}. The numbers of their external "
                    "validation are too good by an unknown amount."
                )
        status = self.run.get("status", "not recorded")
        if status not in ("trained", "finished"):  # "finished" is written after the report
            said.append(f"**This run is not finished:** training has not ended (status: {text(status)}).")
        elif "test" not in self.metrics:
            said.append("**This run is not finished:** the test images have not been judged.")
        return found + list(map(Markup, said))

    def _json(self, name: str, missing: str):
        found = self._optional(name)
        if found is None:
            self.absent.append(f"`{name}`: {missing}")
        return found

    def _optional(self, name: str):
        return files.read_json(self.folder / name) if (self.folder / name).is_file() else None

    def _table(self, name: str) -> pd.DataFrame | None:
        path = self.folder / name
        return pd.read_csv(path, dtype=str, keep_default_na=False) if path.is_file() else None

    def _history(self) -> pd.DataFrame:
        if (self.folder / "history.csv").is_file():
            return pd.read_csv(self.folder / "history.csv")
        if (self.folder / "history.json").is_file():
            return pd.DataFrame(files.read_json(self.folder / "history.json"))
        self.absent.append("`history.csv`: the course of the training is unknown")
        return pd.DataFrame()


def of_folds(found: CrossValidated) -> Record:
    """The record of a cross-validation: that of its first fold, for recipe and images, with the pooled numbers."""
    run = Record(found.first)
    run.run = {**run.run, "name": found.facts["name"]}
    run.metrics, run.externals = {"test": found.facts["pooled"]}, external.of_run(Path(found.folder or ""))
    return run
