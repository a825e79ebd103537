"""The report of a run, written from the files in its folder and from nothing else.

What a file does not say, the report does not say; what is missing is named. `write` gives report.md and report.html,
and has the cards written; `write_folds` gives the two of a cross-validation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from patholib.base import files
from patholib.judge import doubts, trust, validation
from patholib.judge.groupwise import units
from patholib.judge.metrics import readable
from patholib.judge.validation import CrossValidated
from patholib.model import profiles
from patholib.report import cards, dataparts, externals, markdown, sections, settings, verdict
from patholib.report.records import NOTICE, Record, of_folds

HEATMAPS_SHOWN = 12
CONFLICTS = {
    "label_conflicts": "the same picture has two labels",
    "groups_sharing_pixels": "the same picture is in two groups",
}
FIGURES = {
    "training_metrics": "Training and results on one page",
    "roc_pr": "ROC and precision-recall curves",
    "curves": "Losses and metrics by epoch",
    "confusion": "Confusion matrix",
    "intervals": "Results with intervals",
    "patients": "Every patient of the test set",
    "threshold": "Choice of the threshold",
    "unfreezing": "Frozen blocks by epoch",
    "trust": "Checks of the heatmaps",
    "abstention": "Errors if the least certain images are left out",
}
FOLD = ("repeat", "fold", "run", "images", "groups", "temperature", "threshold")  # of cross_validation.json


def write(run_dir: Path) -> Path:
    """Writes report.md, report.html and the cards into the run folder, from its files alone; returns report.html.

    report.html is one file: pictures inside, no script, nothing fetched. Errors: missing_file (run.json), bad_json,
    bad_recipe.
    """
    run = Record(run_dir)
    checked = run.data_report or {}
    text = markdown.render(
        "report.md",
        run=run,
        notice=NOTICE,
        sections=sections,
        settings=settings,
        data=dataparts,
        verdict=verdict.of(run),
        chart=verdict.chart(run),
        examples=verdict.examples(run),
        kept_apart=dataparts.kept_apart(run),
        conflicts=[(len(found), what) for key, what in CONFLICTS.items() if (found := checked.get(key))],
        externals=externals.parts(run),
        **_results(run),
        **_pictures(run),
        **_training(run),
        **_origin(run),
    )
    page = markdown.write(run.folder, "report", f"Report: {run.name}", text)
    cards.write(run_dir)  # last: the checklist names what is there
    return page


def write_folds(found: CrossValidated, doubted: pd.DataFrame) -> Path:
    """Writes report.md and report.html of a cross-validation into its folder, and returns report.html.

    doubted: as of `doubts.ranked`, of which the folder holds the file and the pictures.
    """
    folder, facts = Path(found.folder or ""), found.facts
    run = of_folds(found)
    text = markdown.render(
        "folds.md",
        run=run,
        notice=NOTICE,
        found=found,
        sections=sections,
        headline=found.headline(run.units),
        head=("", *found.table.columns),
        rows=[(name, *map(_short, row)) for name, *row in found.table.itertuples()],
        folds=[[_short(row[name]) for name in FOLD] for row in facts["runs"]],
        fold_head=[name.replace("_", " ") for name in FOLD],
        picture=markdown.picture(folder, folder / validation.PICTURE, "The folds"),
        model=_of_folds(folder),
        doubts=doubts,
        doubted=markdown.picture(folder, folder / doubts.PICTURE, "Labels that are doubted"),
        images=[[_short(cell) for cell in row] for row in doubted.head(doubts.SHOWN).to_numpy()],
        patients=[[_short(cell) for cell in row] for row in doubts.by_patient(doubted).head(doubts.SHOWN).to_numpy()],
    )
    cards.of_folds(found)
    return markdown.write(folder, "report", f"Cross-validation: {folder.name}", text)


def _of_folds(folder: Path) -> dict:
    """The exported model of all folds in words."""
    model = files.read_json(folder / "model.json")
    return {
        "networks": model["members"],
        "size": f"{model['weights']['bytes'] / 2**20:,.0f} MiB",
        "temperature": _short(model["temperature"]),
        "threshold": _short(model["threshold"]),
        "SHA-256": model["weights"]["sha256"],
    }


def _short(value) -> str:
    return f"{value:.3f}" if isinstance(value, float) else markdown.spoken(value)


def _results(run: Record) -> dict:
    found = sections.judged(run)[1] if run.sets else {}
    patients, test = found.get("patients") or {}, run.metrics.get("test") or {}
    return {
        "alert": test.get("alert"),
        "abstention": test.get("abstention"),
        "patients": patients,
        "unit": units(patients.get("column", ""))[:-1],
        "two_labels": (patients.get("two_labels") or {}).get("patients", 0),
        "rate": readable(patients.get("recognition_rate")),
    }


def _pictures(run: Record) -> dict:
    """Figures by name, the heatmaps to show, how many more there are, and the checks of the heatmaps."""
    names = FIGURES | ({"curves": "Losses and metrics by strength of the head"} if run.recipe.train == "head" else {})
    limit = 1 if run.heatmaps and run.heatmaps[0].stem == "gallery" else HEATMAPS_SHOWN  # the gallery has them all
    return {
        "figures": [
            (names.get(path.stem, path.stem.replace("_", " ").capitalize()), markdown.picture(run.folder, path))
            for path in run.figures
        ],
        "heatmaps": [markdown.picture(run.folder, path) for path in run.heatmaps[:limit]],
        "more": max(len(run.heatmaps) - limit, 0),
        "checks": [
            (*row, Markup(result if result in (trust.SUPPORTED, trust.PASSED[True]) else f"**{result}**"))
            for *row, result in trust.rows(run.trust)
        ],
    }


def _training(run: Record) -> dict:
    table = run.history
    return {
        "profile": profiles.profile(run.recipe),
        "changed": settings.changed(run.recipe),
        "minutes": f"{table['seconds'].sum() / 60:.1f} minutes" if "seconds" in table else "an unknown time",
        "best": None if table.empty else int(table["epoch"][settings.best_row(run)]),
    }


def _origin(run: Record) -> dict[str, Mapping]:
    """The facts that fold away: versions and hashes."""
    record, missing = run.run, "not recorded"
    origin = {
        "run": run.name,
        "created": record.get("created", missing),
        "code": record.get("code", missing),
        "machine": record.get("machine", missing),
        "seed": record.get("seed", run.recipe.seed),
        **(record.get("versions") or {"versions": missing}),
    }
    hashes = {
        "all images": run.images_digest,
        "split file": (record.get("split") or {}).get("sha256", missing),
        "initial weights": (record.get("weights") or {}).get("sha256") or "none",
        "validation predictions": (run.decision or {}).get("predictions_val_sha256", missing),
    }
    return {"origin": origin, "hashes": hashes}
