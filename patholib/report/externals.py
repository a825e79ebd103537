"""What report, model card and a page of its own say of external validation, from the files in <run>/external."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pandas as pd
from markupsafe import Markup

from patholib.judge import external, groupwise, metric_table, validation
from patholib.judge.external import External
from patholib.judge.metrics import readable
from patholib.report import markdown, sections
from patholib.report.markdown import count, spoken
from patholib.report.records import NOTICE, Record, of_folds

FIGURES = {
    "difference": "Internal minus external",
    "roc_pr": "ROC and precision-recall curves",
    "calibration": "Calibration",
    "decision_curve": "Decision curve",
    "confusion": "Confusion matrix",
}


def write(found: External) -> Path:
    """Writes external.md and external.html beside the numbers; returns the page."""
    home = found.folder.parent.parent
    folds = validation.read(home)
    run = of_folds(folds) if folds.facts else Record(home)
    if not any(one.name == found.name for one in run.externals):  # it is not in its place yet
        run.externals = [*run.externals, found]
    run.metrics, group_by = found.judged.metrics, found.facts["data"]["group_by"]
    run.recipe = replace(run.recipe, group_by=group_by)
    made = markdown.render(
        "external.md",
        run=run,
        notice=NOTICE,
        found=found,
        sections=sections,
        part=part(found),
        recalibrated=_table(found.recalibrated),
        recalibration=found.judged.metrics["if_recalibrated"],
        what=external.RECALIBRATED,
        data=_data(found),
        leaks=[(x["path"], x["kind"], x["seen_in"], x["other"]) for x in found.facts["leaks"]["links"]],
        figures=[
            (title, markdown.picture(found.folder, path, title))
            for name, title in FIGURES.items()
            if (path := found.folder / "figures" / f"{name}.png").exists()
        ],
    )
    return markdown.write(found.folder, "external", f"External validation: {found.name}", made)


def part(found: External) -> dict:
    """What a section about one set shows, Markdown: the sentences, the table of metrics, calibration and reasons."""
    gaps = found.minus
    both = [found.judged.summary["metrics"], gaps["metrics"]]
    names = metric_table.ordered(gaps["metrics"], len(found.judged.recipe.classes) == 2)
    return {
        "name": found.name,
        "outcome": found.outcome,
        "sentences": found.sentences,
        "table": _table(found.table),
        "reasons": markdown.why(
            (metric_table.words(name), one[name]) for one in both for name in names if name not in sections.NO_REASON
        ),
        "classes": _classes(found),
        "calibration": _calibration(found),
        "page": Markup(f"external/{quote(found.folder.name)}/external.html"),
    }


def parts(run: Record) -> list[dict]:
    """`part` of every external validation of a run."""
    return [part(found) for found in run.externals]


def _table(table: pd.DataFrame) -> Markup | None:
    if table.empty:
        return None
    return markdown.table(
        ("", *table.columns), [(str(i), *row) for i, row in zip(table.index, table.to_numpy(), strict=True)]
    )


def _classes(found: External) -> Markup:
    """Sensitivity of every class on both sets."""
    rows = []
    for name, gap in found.minus["per_class"].items():
        ours, theirs = found.internal["per_class"][name], found.judged.summary["per_class"][name]
        numbers = (ours["sensitivity"], theirs["sensitivity"])
        shown = (*map(readable, numbers), readable(gap["sensitivity"], sign="+"))
        rows.append((name, f"{count(theirs['support'])} / {count(theirs['groups'])}", *shown))
    return markdown.table(
        ("sensitivity of", "images / groups", "internal", "external", "internal minus external"), rows
    )


def _calibration(found: External) -> Markup:
    """The numbers of calibration under the locked decision: of these images with intervals where there are such."""
    after = found.judged.metrics["calibration"]["test"]["after"]
    large = found.judged.metrics["in_the_large"]
    rows = [
        (metric_table.words(name), readable(large[name]) if name in large else sections.plain(after.get(name), ".3f"))
        for name in metric_table.of_calibration(len(found.judged.recipe.classes))
    ]
    return markdown.table(("calibration on the external images", ""), rows)


def _data(found: External) -> Markup:
    """What the set is, how its labels were read, and what was left out and compared."""
    facts, data, classes = found.facts, found.facts["data"], found.facts["classes"]
    units = groupwise.units(data["group_by"])
    mapped = ", ".join(f"{a} = {b}" for a, b in classes["map"].items() if b)
    without = data["without_group"]
    return markdown.facts(
        {
            "images": f"{count(data['images'])} of {count(data['groups'])} {units}",
            "images without a group": f"{count(without)}, each counts as a group of its own" if without else "none",
            **({"chosen by": spoken(facts["chosen"])} if "chosen" in facts else {}),
            "labels": "taken by their names, which are those of the run" if classes["by_name"] else mapped,
            "classes that are lacking": spoken(classes["lacking"]),
            "left out by the map": spoken(classes["left_out"]),
            "left out by the data check": spoken(facts["left_out"]["by_check"]),
            "shared with the run": found.leaks or "nothing found",
            "compared with the run": spoken(facts["leaks"]["compared"]),
            "not compared": spoken(facts["leaks"]["not_compared"]),
            "digest of the set": data["digest"],
        }
    )
