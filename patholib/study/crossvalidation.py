"""Cross-validation: one study per fold, in one folder, resumed where it stopped; see `validation` for the pooling."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from patholib.base import files, locks
from patholib.base.errors import PathoError
from patholib.deploy import export
from patholib.judge import doubts, validation
from patholib.judge.validation import CrossValidated
from patholib.lab import sessions
from patholib.model import recipes, schedules
from patholib.options import Options
from patholib.report import report
from patholib.report.figures import performance, sheets, style
from patholib.train import checkpoints, resumable, runs

if TYPE_CHECKING:
    from pandas import DataFrame

    from patholib.data.checking import Checked
    from patholib.study import Study  # it imports this module

LOCK = "cross_validation.lock"


def cross_validate(study: Study) -> CrossValidated:
    """Trains and judges the recipe of the study once per fold and repeat, and pools the test predictions.

    The folder is named after recipe, images and folds, and holds a run folder for each training, report.html, and the
    exported model of all folds together (`export.write_folds`), which `Predictor` takes. Called again after an
    interruption, it repeats no finished fold and resumes the unfinished one. Every fold chooses its epoch on its own
    validation images, and is judged as `validation.decided_by_others` says; a finished one keeps its best weights
    alone. Without folds nothing is trained, and neither where the study itself is one `fold`. max_hours is for all
    folds together.
    Errors: split_infeasible, bad_parameter, run_locked, time_is_up and others of `Study.train`.
    """
    options = study.options
    tables = runs.fold_splits(study.recipe, study.checked, options.folds, options.repeats)
    if not tables:
        return CrossValidated()
    if options.fold is not None:
        return CrossValidated(
            said=f"This run is fold {options.fold}, counted from 0, of {len(tables)}: the others are "
            "runs of their own, and notebooks/compare.ipynb pools them."
        )
    hours = sessions.hours_left() if options.max_hours is None else options.max_hours
    deadline, folder = schedules.deadline(hours, time.monotonic()), folder_of(study)
    if not folder.exists():
        sessions.take_up_named(folder)  # of an earlier session
    with files.writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = locks.take(folder / LOCK)
    if lock is None:
        raise PathoError(
            "run_locked", folder.name, f"is in use by {locks.holder(folder / LOCK)}", "Wait until it ends, or end it"
        )
    try:
        done = []
        for number, split in enumerate(tables):
            repeat, fold = divmod(number, options.folds)
            print(f"Cross-validation: fold {fold + 1} of {options.folds}, repeat {repeat + 1} of {options.repeats}")
            found = runs.finished_like(folder, resumable.fingerprint(study.recipe, study.checked, split))
            left = None if hours is None else max(deadline - time.monotonic(), 0) / 3600
            done.append(
                (
                    repeat + 1,
                    fold + 1,
                    found
                    or _trained(
                        study,
                        split,
                        replace(options, fold=number, output=str(folder), max_hours=left, resume="auto"),
                        f"repeat-{repeat + 1}-fold-{fold + 1}",
                    ),
                )
            )
        return _written(study, folder, done, tables[0])
    finally:
        lock.close()


def folder_of(study: Study) -> Path:
    """The folder of this cross-validation; another for anything that would give other numbers."""
    options, recipe, checked = study.options, study.recipe, study.checked
    mark = files.digest(
        [
            recipes.without_folders(recipe).to_json(),
            resumable.images_sha256(checked),
            checked.manifest.table["path"].tolist(),
            options.folds,
            options.repeats,
            options.target_sensitivity,
            *options.patient_columns,
        ]
    )
    images = f"{checked.manifest.source}{'-demo' if checked.manifest.demo else ''}"
    return runs.output_folder(options.output) / f"{images}-cv-{options.folds}x{options.repeats}-{mark[:12]}"


def _trained(study: Study, split, options: Options, name: str) -> runs.Run:
    """The run of one fold, trained and judged, or resumed."""
    one = type(study)(
        study.checked, recipe=study.recipe, split=split, options=options, quiet=True, remember=False, name=name
    )
    try:
        one.train()
        one.lock()
        one.judge(baselines=False)
        one.run.finish()
    finally:
        one.close()
    for path in checkpoints.list_of(one.dir / "checkpoints", "last"):  # what only an unfinished run needs
        path.unlink()
    return one.run


def _written(study: Study, folder: Path, done: list[tuple[int, int, runs.Run]], split: DataFrame) -> CrossValidated:
    """The pooled result, in its files, with its picture and the folds as one model; split: of the first fold."""
    checked, options = study.checked, study.options
    found = validation.pooled(
        folder,
        [(repeat, fold, run.dir) for repeat, fold, run in done],
        demo=checked.manifest.demo,
        note=done[0][2].note,
        folds=options.folds,
        repeats=options.repeats,
        images=len(checked.images),
        images_sha256=resumable.images_sha256(checked),
    )
    name = study.recipe.monitor
    word = {"auc": "AUC"}.get(name, name.replace("_", " "))
    figure = performance.forest(
        found.folds,
        found.facts["over_folds"][name]["mean"],
        "mean of folds",
        xlabel=f"test {word} and 95 % interval",
        title="How much does one split say?",
        note=found.note,
    )
    style.save(figure, folder / validation.PICTURE)
    export.write_folds(folder, found.facts, checked.images.with_split(split))
    report.write_folds(found, _doubts(checked, found))
    files.write_json(folder / validation.RESULT, found.facts)  # last: where it stands, all is there
    return found


def _doubts(checked: Checked, found: CrossValidated) -> DataFrame:
    """The labels that are doubted, most first, in their file, with pictures of the first."""
    folder, table = Path(found.folder or ""), doubts.ranked(found.predictions, found.facts["recipe"]["classes"])
    files.write_table(folder / doubts.FILE, table)
    row_of = dict(zip(checked.images.table["path"], checked.images.table["row"], strict=True))
    first = table.head(doubts.SHOWN)
    sheet = sheets.contact_sheet(
        [checked.images.pixels[row_of[path]] for path in first["path"]],
        [
            f"{row.rank}: {row.label} {row.p_label:.2f}, {row.suggested} {row.p_suggested:.2f}"
            for row in first.itertuples()
        ],
        title="The labels that are doubted most: label and likeliest other class, with their probabilities",
        note=found.note,
    )
    style.save(sheet, folder / doubts.PICTURE)
    return table
