"""The run folder: started, resumed, opened and compared."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from patholib.base import files, locks
from patholib.base.errors import PathoError, nearest
from patholib.base.progress import say
from patholib.base.team import Team
from patholib.data import csvfiles, leakage, manifest, splitting
from patholib.data.checking import Checked
from patholib.data.readers.sources import TABLE
from patholib.model import recipes
from patholib.model.recipes import Recipe
from patholib.train import checkpoints, origin, resumable

TRAINING = "training.lock"  # held by the first of several processes that train, beside run.lock of their starter

# (output, whether its run.json fits, whether a finished run will do) -> the folder it was copied to, if there is one.
Bring = Callable[[Path, Callable[[dict], bool], bool], Path | None]


@dataclass(repr=False)
class Run:
    """An open run folder; it is locked until `close` or until its process ends."""

    dir: Path
    recipe: Recipe
    demo: bool
    fingerprint: str  # digest of the recipe, the data and the split
    lock: locks.Lock | None = None
    leaks: dict = field(default_factory=dict)  # what the parts of the split share, see `leakage.recorded`
    writes: bool = True  # False in all but the first of several processes

    @property
    def note(self) -> str:
        """The warning on every figure: demo images, a leaking split, or nothing."""
        notes = [manifest.DEMO_NOTE] if self.demo else []
        if self.leaks:
            notes.append(f"Leaking split: {leakage.worst(self.leaks)}")
        elif self.recipe.group_by == "image":
            notes.append("Split by image: patients may leak")
        return " - ".join(notes)

    def __repr__(self) -> str:
        return " - ".join(filter(None, [f"run {self.dir.name}", self.note]))

    def update(self, **facts) -> None:
        """Adds facts to run.json."""
        if self.writes:
            path = self.dir / "run.json"
            files.write_json(path, files.read_json(path) | facts)

    def log(self, event: str, **facts) -> None:
        """Adds a line to run.jsonl: the time, what happened, and JSON values."""
        if self.writes and self.dir.is_dir():  # a folder that was removed is not made again for a line
            files.append_json(self.dir / "run.jsonl", {"event": event} | facts)

    def finish(self, keep_checkpoints: bool = True) -> None:
        """Marks the run as complete, as the last thing that is written, and unlocks the folder.

        keep_checkpoints: False deletes them, and says so: they are several times as large as the weights of the export,
        and serve to train on alone.
        """
        files.remove_parts(self.dir)
        self.update(
            status="finished",
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            checkpoints="kept" if keep_checkpoints else resumable.DELETED,
        )
        freed = checkpoints.delete(self.dir / "checkpoints") if self.writes and not keep_checkpoints else 0
        if freed:
            say(
                f"the checkpoints were deleted ({freed / 1e6:,.0f} MB), as the weights are in the export; "
                "keep_checkpoints=True keeps them, to train on for more epochs"
            )
        self.close()

    def close(self) -> None:
        """Unlocks the folder for another process."""
        if self.lock is not None:
            self.lock.close()
            self.lock = None


def start(
    recipe: Recipe,
    checked: Checked,
    split: pd.DataFrame,
    *,
    output: Path | None = None,
    resume: str = "auto",
    name: str | None = None,
    allow_leakage: bool = False,
    bring: Bring | None = None,
    options: dict | None = None,
    origin: str = "",
) -> Run:
    """Opens the folder of a run: the newest unfinished one of the same recipe, data and split, or a new one.

    output: the folder that holds run folders; None: PATHOLIB_OUTPUTS, or outputs/ of the project.
    resume: "auto" resumes such an unfinished run; where a similar one cannot be resumed, it prints why. "must" never
    starts a new run, and also opens a finished one; "never" always starts a new run.
    bring: called where `output` has none; copies one of an earlier session there (`sessions.take_up`).
    options: the parameters that were given, for run.json; with "recipe" if they alone give the recipe.
    origin: where the split is from, if it was not drawn, for run.json, report and card.
    A split whose parts share a patient, case, lesion or picture is refused unless `allow_leakage` is True or the recipe
    is the published one; the leak is then recorded in run.json and shown on every figure and in the report.
    Errors: output_unwritable, output_in_data, csv_format (columns of the split), split_leakage, run_locked,
    nothing_to_resume, resume_changed (with the differences).
    """
    if resume not in ("auto", "must", "never"):
        raise PathoError("bad_parameter", "resume", f"is {resume!r}", "Use auto, must or never")
    output = output_folder(output)
    root = Path(checked.manifest.root).resolve()
    if checked.manifest.source != TABLE and (output == root or root in output.parents):  # a table walks no folder
        raise PathoError(
            "output_in_data", str(output), "lies inside the data folder", "Choose an output folder outside"
        )
    csvfiles.stop_on(
        [
            ("csv_format", f"split column {name}", f"is missing; {nearest(name, split.columns)}")
            for name in ("path", "label", "group", "split")
            if name not in split.columns
        ],
        "Give the table of splitting.split, or one with these columns; group is the patient",
    )
    leaks = _leaks(recipe, checked, split, allow_leakage)
    mark = resumable.fingerprint(recipe, checked, split)
    run = None
    if resume != "never":
        run = _resumed(recipe, checked, split, output, mark, resume == "must", bring)
    run = run or _new(recipe, checked, split, output, mark, name, origin)
    run.leaks = leaks
    run.update(leaks=leaks, **({} if options is None else {"options": options}))
    return run


def start_together(team: Team, recipe: Recipe, checked: Checked, split: pd.DataFrame, **how) -> Run:
    """`start` in the first process of a team; all others get the same folder, and write nothing into it.

    Errors: also data_differ, where a process sees other images or another recipe.
    """
    own: Run | None = None

    def started() -> dict:
        nonlocal own
        own = start(recipe, checked, split, **how)
        return {"folder": str(own.dir), "fingerprint": own.fingerprint, "leaks": own.leaks}

    facts = team.shared(started)
    if own is not None:
        return own
    mark = resumable.fingerprint(recipe, checked, split)
    if mark != facts["fingerprint"]:
        raise PathoError(
            "data_differ",
            f"process {team.rank}",
            "sees other images, or another recipe, than the first one",
            "Give all machines the same files and the same version of patholib",
        )
    return Run(Path(facts["folder"]), recipe, checked.manifest.demo, mark, leaks=facts["leaks"], writes=False)


def _leaks(recipe: Recipe, checked: Checked, split, allowed: bool) -> dict:
    """What the parts of the split share. Errors: split_leakage, where that is not allowed."""
    found = leakage.audit_checked(checked, split, progress=len(split) > 5000)  # fewer take a second or two
    if not (allowed or recipe.published):
        leakage.refuse(
            found, "To train on it all the same, pass allow_leakage=True: every figure and report then says what leaks"
        )
    if not found.ok:
        print(found.verdict)
    return leakage.recorded(found)


def output_folder(given: Path | str | None = None) -> Path:
    """The folder that holds run folders: as given, else PATHOLIB_OUTPUTS, else outputs/ of the project.

    It need not exist, but it must be possible to make it. Errors: output_unwritable.
    """
    folder = Path(given or files.outputs()).resolve()
    there = next((place for place in (folder, *folder.parents) if os.access(place, os.F_OK)), folder)
    if not there.is_dir():
        raise _unwritable(folder, NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)))
    if not os.access(there, os.W_OK | os.X_OK):
        raise _unwritable(folder, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    return folder


def _resumed(
    recipe: Recipe, checked: Checked, split, output: Path, mark: str, must: bool, bring: Bring | None
) -> Run | None:
    """The run to resume; None where a new one is to be started."""
    earlier = [
        (folder, facts)
        for folder, facts in _runs_in(output)
        if facts["recipe"].get("name") == recipe.name and (must or facts.get("status") != "finished")
    ]
    earlier.sort(key=lambda run: run[1].get("status") == "finished")  # what is unfinished comes first
    same = [folder for folder, facts in earlier if resumable.fits(facts, recipe, mark)]
    if not same and bring is not None:
        brought = bring(output, lambda facts: resumable.fits(facts, recipe, mark), must)
        same = [] if brought is None else [brought]
    for folder in same:
        lock = _lock(folder)
        if lock is not None:
            run = Run(folder, recipe, checked.manifest.demo, mark, lock)
            run.update(recipe=recipes.without_folders(recipe).to_json())
            return run
    if same:
        held = f"is in use by {locks.holder(same[0] / 'run.lock')}"
        if must:
            raise PathoError("run_locked", same[0].name, held, "Wait until it ends, or end it")
        print(f"{same[0].name} {held}; a new run is started")
    elif earlier:
        folder, facts = earlier[0]
        changed = "; ".join(resumable.changes(folder, facts, recipe, checked, split))
        if must:
            raise PathoError(
                "resume_changed",
                folder.name,
                f"differs: {changed}",
                'Undo these changes, or start a new run with resume="auto"',
            )
        if _same_images(facts, checked):
            print(f"A new run is started, because the unfinished {folder.name} differs: {changed}")
    elif must:
        raise PathoError(
            "nothing_to_resume",
            str(output),
            f"holds no run of the recipe {recipe.name}",
            'Pass resume="auto" to start one',
        )
    return None


def _same_images(facts: dict, checked: Checked) -> bool:
    """Whether a run was made from the same folder or table, so that its owner may have wanted to resume it."""
    data = facts.get("data") or {}
    ours = (checked.manifest.source, origin.root_name(checked.manifest.root))
    return (data.get("source"), data.get("root_name")) == ours


def open_run(folder: Path) -> Run:
    """A run folder for reading: explorer, comparison, export. Errors: missing_file, bad_json, bad_run, bad_recipe."""
    facts = files.read_json(Path(folder) / "run.json")
    lacking = [key for key in ("recipe", "demo", "fingerprint") if not isinstance(facts, dict) or key not in facts]
    if lacking:
        raise PathoError(
            "bad_run",
            str(Path(folder) / "run.json"),
            f"lacks {', '.join(lacking)}",
            "Name a folder that a run has written",
        )
    return Run(
        Path(folder),
        recipes.from_json(facts["recipe"]),
        facts["demo"],
        facts["fingerprint"],
        leaks=facts.get("leaks", {}),
    )


def finished_like(output: Path, mark: str) -> Run | None:
    """The newest finished run in the folder that has this fingerprint, for reading; None where there is none."""
    return next(
        (
            open_run(folder)
            for folder, facts in _runs_in(Path(output))
            if facts.get("fingerprint") == mark and facts.get("status") == "finished"
        ),
        None,
    )


def finished(output: Path | str | None = None) -> list[Path]:
    """The folders of the finished runs in `output` (see `output_folder`), the newest first."""
    return [folder for folder, facts in _runs_in(output_folder(output)) if facts.get("status") == "finished"]


def newest(output: Path | None = None, demo: bool = False) -> Path | None:
    """The folder of the newest finished run that holds its model, None where there is none; demo: of demo images only.

    output: as for `start`.
    """
    for folder, facts in _runs_in(output_folder(output)):
        if facts.get("status") == "finished" and (facts.get("demo") or not demo) and (folder / "model.json").exists():
            return folder
    return None


def _new(
    recipe: Recipe, checked: Checked, split, output: Path, mark: str, name: str | None, origin_of_split: str
) -> Run:
    """A new run folder with all that is known before training."""
    now = datetime.now(UTC)
    demo = "-demo" if checked.manifest.demo else ""
    folder = _made(output, name or f"{checked.manifest.source}{demo}-{now:%Y%m%d-%H%M%S}")
    lock = _lock(folder)
    checked.write_report(folder)
    files.write_table(folder / "images.csv", checked.facts[["path", "bytes", "sha256"]])
    splitting.write_split(split, folder / "split.csv")
    counts = pd.crosstab(split["split"], split["label"])
    files.write_json(
        folder / "run.json",
        {
            "name": folder.name,
            "created": now.isoformat(timespec="seconds"),
            "status": "started",
            "demo": checked.manifest.demo,
            "fingerprint": mark,
            "seed": recipe.seed,
            "published": recipe.published,
            "recipe": recipes.without_folders(recipe).to_json(),
            "data": {
                "source": checked.manifest.source,
                "root_name": origin.root_name(checked.manifest.root),
                "images": len(split),
                "groups": int(split["group"].nunique()),
                "group_by": recipe.group_by,
                "classes": list(recipe.classes),
                "images_sha256": resumable.images_sha256(checked),
                "found": checked.manifest.found,
            },
            "split": {
                "path": "split.csv",
                "origin": origin_of_split,
                "sha256": files.sha256(folder / "split.csv"),
                "counts": {part: {k: int(v) for k, v in row.items()} for part, row in counts.iterrows()},
            },
            "versions": origin.versions(),
            "code": origin.code(),
            "machine": origin.machine(),
        },
    )
    return Run(folder, recipe, checked.manifest.demo, mark, lock)


def _made(output: Path, stem: str) -> Path:
    """A new folder of this name, or with -2, -3, ... after it; two processes never get the same one."""
    folder, number = output / stem, 1
    while True:  # mkdir decides who has the name
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
            folder = output / f"{stem}-{number}"
        except OSError as error:
            raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> PathoError:
    return PathoError(
        "output_unwritable", str(folder), f"cannot be written ({error.strerror})", "Choose another output folder"
    )


def _runs_in(output: Path) -> list[tuple[Path, dict]]:
    """Run folders and their run.json, the newest first; a broken one is skipped with a warning."""
    found = []
    for path in output.glob("*/run.json"):
        try:
            facts = files.read_json(path)
            found.append((facts["created"], path.parent, facts | {"recipe": dict(facts["recipe"])}))
        except (PathoError, KeyError, TypeError, ValueError) as error:
            warnings.warn(f"{path.parent.name} is skipped: its run.json cannot be used ({error!r})", stacklevel=4)
    return [(folder, facts) for _, folder, facts in sorted(found, key=lambda run: run[:2], reverse=True)]


def _lock(folder: Path) -> locks.Lock | None:
    """The folder's lock, None where another process holds it or still trains in it. Errors: output_unwritable."""
    try:
        lock = locks.take(folder / "run.lock")
        if lock is not None and (folder / TRAINING).exists():  # several processes have trained here
            training = locks.take(folder / TRAINING)
            if training is None:  # they save and leave, after the one that had started them was killed
                lock.close()
                return None
            training.close()
        return lock
    except OSError as error:
        raise _unwritable(folder, error) from error


def fold_splits(recipe: Recipe, checked: Checked, folds: int, repeats: int = 1) -> list[pd.DataFrame]:
    """The splits that `cross_validate` will train on, refused here if they cannot be; none for folds=0."""
    if folds == 0:
        return []
    return splitting.folds(checked.manifest, folds, repeats, recipe.seed, recipe.group_by, recipe.fractions[1])


def split(
    recipe: Recipe,
    checked: Checked,
    folds: int = 0,
    repeats: int = 1,
    fold: int | None = None,
    home: pd.Series | None = None,
) -> pd.DataFrame:
    """The one split of a run; with `fold` that of this fold of a cross-validation, counted from 0 through the repeats.

    The runs of all folds together test every image once per repeat. Folds that cannot be made are refused here, before
    anything is trained. home: the part of each path where the split is given (`homes.find`).
    Errors: bad_parameter, split_infeasible, split_leakage and others of `splitting.split`, `folds` and `placed`.
    """
    if home is not None and folds:
        raise PathoError(
            "bad_parameter",
            "folds",
            "would train on the test images of the split that is given",
            'To draw folds from all images, set split="group" and no hold_out',
        )
    if fold is not None:
        splitting.check_fold(fold, folds, repeats)
    tables = fold_splits(recipe, checked, folds, repeats)
    if fold is not None:
        return tables[fold]
    if home is None:
        return splitting.split(checked.manifest, recipe.fractions, recipe.seed, recipe.group_by)
    checked.images.refuse_torn_copies(home.to_dict())
    table = splitting.placed(checked.manifest, home, recipe.fractions, recipe.seed, recipe.group_by)
    if "val" not in set(home):
        drawn = table[table["split"] == "val"]
        print(
            f"No part for validation is given: {drawn['group'].nunique():,} groups of training, {len(drawn):,} images, "
            "were drawn for it."
        )
    return table
