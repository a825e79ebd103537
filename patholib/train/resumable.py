"""Whether a run may be resumed: its fingerprint, and in words what differs from it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.data import csvfiles
from patholib.data.checking import Checked
from patholib.model import profiles, recipes
from patholib.model.recipes import Recipe

# A change of these does not make another run; of the epochs only upwards.
RESUMABLE = ("epochs", "patience", "precision", "fast", "micro_batches", "on_nonfinite")
DELETED = "deleted"  # in run.json, of the checkpoints of a finished run: it can be opened, and not trained on


def fits(facts: dict, recipe: Recipe, mark: str) -> bool:
    """Whether this recipe, whose fingerprint with data and split is `mark`, may resume the run of these facts."""
    before = facts["recipe"]["epochs"]
    more = before < recipe.epochs and facts.get("checkpoints") != DELETED
    return facts.get("fingerprint") == mark and (before == recipe.epochs or more)


def changes(folder: Path, facts: dict, recipe: Recipe, checked: Checked, split) -> list[str]:
    """Why the run in `folder` cannot be resumed: recipe fields, images and splits that differ."""
    try:
        before = recipes.from_json(facts["recipe"])
    except (PathoError, TypeError) as error:
        return [f"its recipe is of another version of patholib ({error})"]
    lacking = _lacking(facts["recipe"], recipe)
    fields = recipes.diff(before, recipes.without_folders(recipe))
    found = [
        f"{field} {profiles.readable(old)} -> {profiles.readable(new)}"
        for field, (old, new) in fields.items()
        if field not in lacking and (field not in RESUMABLE or (field == "epochs" and new < old))
    ]
    if lacking:
        code = facts.get("code") or {}
        by = f"patholib {code.get('version')} (commit {str(code.get('commit'))[:7]})"
        found.insert(
            0, f"its run.json lacks {', '.join(lacking)} of the recipe: only {by}, which wrote it, can resume it"
        )
    if fields.keys() == {"epochs"} and facts.get("checkpoints") == DELETED:
        old, new = fields["epochs"]
        found = [f"epochs {old} -> {new}, and its checkpoints were deleted when it was finished"]
    return found + _changed_images(folder, checked, split) or ["a difference that its files do not show"]


def _changed_images(folder: Path, checked: Checked, split) -> list[str]:
    """The images that were added, removed, changed or moved to another part of the split since the run was started."""
    old = _by_path(csvfiles.read_csv(folder / "images.csv", ("path", "sha256")), "sha256")
    new = _by_path(checked.facts, "sha256")
    was = _by_path(csvfiles.read_csv(folder / "split.csv", ("path", "split")), "split")
    now = _by_path(split, "split")
    kinds = {
        "added": new.keys() - old.keys(),
        "removed": old.keys() - new.keys(),
        "changed": {path for path in old.keys() & new.keys() if old[path] != new[path]},
        "in another part of the split": {path for path in was.keys() & now.keys() if was[path] != now[path]},
    }
    return [f"{len(paths):,} images {kind} (such as {min(paths)})" for kind, paths in kinds.items() if paths]


def _by_path(table: pd.DataFrame, column: str) -> dict[str, str]:
    return dict(zip(table["path"], table[column], strict=True))


def _lacking(stored: dict, recipe: Recipe) -> list[str]:
    """The fields that a stored recipe lacks, nested ones as `augmentation.noise`: they came with a later version."""
    now, views = recipe.to_json(), stored.get("augmentation", {})
    return [name for name in now if name not in stored] + [
        f"augmentation.{name}" for name in now["augmentation"] if name not in views and "augmentation" in stored
    ]


def fingerprint(recipe: Recipe, checked: Checked, split) -> str:
    """A digest of all that decides what is learnt: recipe, image bytes, split."""
    decisive = {k: v for k, v in recipes.without_folders(recipe).to_json().items() if k not in RESUMABLE}
    return files.digest([decisive, images_sha256(checked), split[["path", "split"]].to_numpy().tolist()])


def images_sha256(checked: Checked) -> str:
    """One digest of the bytes of all checked images."""
    return files.digest(checked.facts[["path", "sha256"]].to_numpy().tolist())
