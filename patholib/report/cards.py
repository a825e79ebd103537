"""The model card, the data card and the reporting checklists of a run, written from the files in its folder alone.

Model card: Mitchell et al. 2019. Data card: the questions of Gebru et al. 2021, in short. Checklists: `checklists`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from markupsafe import Markup

from patholib.base import files
from patholib.data.readers import sources
from patholib.judge import calibration as calibrating
from patholib.judge import thresholds
from patholib.judge.gains import RIVALS, not_beaten
from patholib.judge.validation import CrossValidated
from patholib.model import profiles, recipes
from patholib.report import checklists, dataparts, externals, markdown, records, sections, settings, verdict
from patholib.report.markdown import count
from patholib.report.records import NOTICE, Record

FEW_GROUPS = 30  # in the test set; fewer are named among the limits
NUMBERS = ("test", "test_tta", "baseline", "probe")  # columns of the model card


def write(run_dir: Path) -> Path:
    """Writes model_card, data_card and checklist, each as .md and .html, into the run folder; returns the model card.

    They say what the folder's files say; what is missing is named. Errors: missing_file (run.json), bad_json,
    bad_recipe.
    """
    run = Record(run_dir)
    for stem, (title, text) in texts(run).items():
        markdown.write(run.folder, stem, title, text)
    return run.folder / "model_card.html"


def texts(run: Record) -> dict[str, tuple[str, str]]:
    """{"model_card": (title, Markdown), "data_card": ..., "checklist": ...}."""
    made = {
        "model_card": ("Model card", model_card),
        "data_card": ("Data card", data_card),
        "checklist": ("Reporting checklists", checklists.facts),
    }
    shared = {"run": run, "notice": NOTICE, "sections": sections, "data": dataparts, "terms": terms(run)}
    return {
        stem: (f"{what}: {run.name}", markdown.render(f"{stem}.md", **shared, **facts(run)))
        for stem, (what, facts) in made.items()
    }


def terms(run: Record) -> sources.Source:
    """What is known of the images the run was made of."""
    return sources.of(run.data.get("source"), demo=run.demo)


# ------------------------------------------------------------------------------------------------------ the model card


def model_card(run: Record) -> dict:
    """What the template of the model card needs besides the run."""
    said, test = profiles.profile(run.recipe), run.metrics.get("test") or {}
    alert = test.get("alert") if len(run.recipe.classes) > 2 else None  # of two classes it is the decision itself
    return {
        "verdict": verdict.of(run),
        "model": _model(run),
        "training": _training(run),
        "profile": said,
        "changed": None if said else _changed(run),
        "other_predictions": run.differs("predictions_val.csv", (run.decision or {}).get("predictions_val_sha256")),
        "keys": NUMBERS,
        "alert": alert,
        "calibration": sections.calibration(run),
        "subgroups": sections.subgroups(run) if test else None,
        "limits": _limits(run),
        "externals": externals.parts(run),
    }


def of_folds(found: CrossValidated) -> Path:
    """Writes the model card of the folds as one model into the folder of the cross-validation; returns its page."""
    folder, run = Path(found.folder or ""), records.of_folds(found)
    exported, decision = files.read_json(folder / "model.json"), found.facts["decision"]
    size = {"networks": exported["members"], "exported weights": f"SHA-256 {exported['weights']['sha256']}"}
    without = ("best epoch", "strength of the head", "epochs")  # each network has its own
    facts = {**_model(run), **size}, _training(run)
    model, training = ({name: value for name, value in one.items() if name not in without} for one in facts)
    text = markdown.render(
        "folds_card.md",
        run=run,
        notice=NOTICE,
        data=dataparts,
        terms=terms(run),
        found=found,
        model=model,
        training=training,
        decision={"rule": decision["rule"], **calibrating.readable(decision), **thresholds.in_words(decision)},
        headline=found.headline(run.units),
        head=("", "pooled (95 % interval)"),
        rows=found.table["pooled (95 % interval)"].items(),
        externals=externals.parts(run),
    )
    return markdown.write(folder, "model_card", f"Model card: {run.name}", text)


def _model(run: Record) -> dict:
    recipe, code, training = run.recipe, run.run.get("code") or {}, run.run.get("training") or {}
    chosen = {"best epoch": training.get("best_epoch", "not recorded")}
    if "strength" in training:
        chosen = {"strength of the head": f"C = {training['strength']:g}"}
    exported = files.read_json(run.folder / "model.json") if run.has("model.json") else None
    weights = (
        "none (model.json is missing)"
        if exported is None
        else f"SHA-256 {(exported.get('weights') or {}).get('sha256', 'not recorded')}"
    )
    return {
        "network": settings.network(recipe),
        "classes": ", ".join(recipe.classes),
        "positive class": recipe.positive or "none",
        "initial weights": run.weights,
        **chosen,
        "exported weights": weights,
        "created": run.run.get("created", "not recorded"),
        "made with": f"patholib {code.get('version', '(version not recorded)')}, commit "
        f"{code.get('commit') or 'not recorded'}",
    }


def _training(run: Record) -> dict:
    recipe = run.recipe
    if recipe.train == "head":
        return {
            "recipe": recipe.name,
            "training": settings.optimiser(recipe),
            "frozen blocks": settings.stages(recipe),
            "strength used": settings.kept(recipe),
            "seed": recipe.seed,
        }
    return {
        "recipe": recipe.name,
        "epochs": f"{len(run.history) or 'unknown'} of at most {recipe.epochs}",
        "batch size": recipe.batch_size,
        "optimizer": settings.optimiser(recipe),
        "loss": settings.loss(recipe),
        "class balance": settings.in_words(recipe, "balance", recipe.balance),
        "frozen blocks": settings.stages(recipe),
        "epoch used": settings.kept(recipe),
        "seed": recipe.seed,
    }


def _changed(run: Record) -> Markup | None:
    """The fields that differ from the recipe as shipped; None where no such recipe ships."""
    if run.recipe.name not in recipes.RECIPES:
        return None
    fields = recipes.diff(recipes.get(run.recipe.name), run.recipe)
    return Markup(", ".join(f"`{field}`" for field in fields) + ("." if fields else ""))


def _limits(run: Record) -> list[str]:
    """Sentences on what this run's own numbers show to be weak."""
    test, found = run.metrics.get("test") or {}, []
    if isinstance(groups := test.get("groups"), int) and groups < FEW_GROUPS:
        found.append(f"The test set has only {run.so_many(groups)}, so the intervals are wide.")
    known = {
        name: row["sensitivity"]["value"]
        for name, row in test.get("per_class", {}).items()
        if row["sensitivity"]["value"] is not None
    }
    if known:
        worst = min(known, key=lambda name: known[name])
        found.append(f"Weakest class: {worst}, sensitivity {known[worst]:.3f}.")
    rows = [row for row in test.get("subgroups") or [] if row.get("accuracy") is not None and not row.get("few")]
    if len(rows) > 1:
        low = min(rows, key=lambda row: row["accuracy"])
        found.append(
            f"Lowest accuracy among the subgroups that are large enough: {low['accuracy']:.3f} "
            f"({low['column']} {low['value']}, {count(low['images'])} images)."
        )
    return found + [said for key in RIVALS if (said := not_beaten(run.metrics, key, run.recipe.monitor))]


# ------------------------------------------------------------------------------------------------------- the data card


def data_card(run: Record) -> Mapping:
    """What the template of the data card needs besides the run."""
    return {
        "by_authors": not terms(run).stated,
        "counts": (run.data_report or {}).get("counts", {}),
        "fractions": settings.in_words(run.recipe, "fractions", run.recipe.fractions),
        "split_digest": (run.run.get("split") or {}).get("sha256", "not recorded"),
    }
