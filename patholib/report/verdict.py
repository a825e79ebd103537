"""The first screen of a report: the verdict, the chart of the results and a few heatmaps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from markupsafe import Markup

from patholib.base import files, pages
from patholib.data import manifest
from patholib.judge import gains, gradcam, trust
from patholib.judge.intervals import FEWEST_GROUPS
from patholib.judge.metric_table import words
from patholib.judge.metrics import readable
from patholib.report import markdown
from patholib.report.markdown import count, text
from patholib.report.records import Record

CHART = Path("figures") / "results.svg"
NAMED = 4  # classes that are counted one by one in the verdict
ENOUGH_GROUPS = 30  # of the rarer class in the test set; with fewer, cross-validation is advised
FOLDS, REPEATS = 5, 3  # what is advised
EXAMPLES = 3  # heatmaps on the first screen
SECTIONS = ("true positive", "false positive", "false negative", "true negative", "right", "wrong")
WIDTH, LEFT, SCALE = 504, 128, 214  # of the chart: all of it, up to the value 0, and from there to 1


class Verdict(NamedTuple):
    """The first lines of a report, Markdown."""

    headline: Markup  # better than colour statistics or not, by how much, on how many patients of each class
    rarer: str  # how many patients of the rarer class that rests on, what to do if few; "" without test numbers
    heatmaps: Markup
    doubt: bool  # whether one of them is bad news


def of(run: Record) -> Verdict:
    """The verdict on a run."""
    outcome, numbers = _headline(run)
    heatmaps, believed = _heatmaps(run.trust)
    return Verdict(
        Markup(f"**{outcome}**{numbers}{_tested_on(run)}."),
        _rarer(run),
        heatmaps,
        not (outcome.startswith("Better") and believed),
    )


def _headline(run: Record) -> tuple[str, str]:
    """The outcome in a few words, and the numbers behind it."""
    name = run.recipe.monitor
    test = run.metrics.get("test")
    if test is None:
        return "No result yet", ": the test images have not been judged"
    ours = test["metrics"].get(name) or {}
    found = gains.against(run.metrics, "baseline", name)
    if found is None:
        return "Not compared with colour statistics", f": {words(name)} {text(_with_interval(ours))}"
    said = f"{found.outcome.capitalize()} than colour statistics"
    numbers = f": {words(name)} {ours['value']:.3f} against {found.theirs['value']:.3f}"
    return said, f"{numbers}, a difference of {_with_interval(found.difference, '+')}" if found.difference else numbers


def _with_interval(number: Mapping, sign: str = "") -> str:
    return (
        readable(number, sign=sign).replace("(", "(95 % interval ")
        if number.get("low") is not None
        else readable(number, sign=sign)
    )


def _groups(run: Record) -> dict[str, int]:
    """How many patients (or what the split keeps together) with images of each class are in the test set."""
    rows = run.metrics.get("test", {}).get("per_class", {})
    return {name: row["groups"] for name, row in rows.items() if isinstance(row.get("groups"), int)}


def _tested_on(run: Record) -> str:
    test, groups = run.metrics.get("test"), _groups(run)
    if test is None:
        return ""
    said = f", tested on {count(test.get('images', '?'))} images"
    said += "" if run.units == "images" else f" of {run.so_many(test.get('groups', '?'))}"
    if 0 < len(groups) <= NAMED:
        said += f" ({', '.join(f'{count(n)} {text(name)}' for name, n in groups.items())})"
    return said + (f", {run.fold}" if run.fold else "")


def _rarer(run: Record) -> Markup | str:
    """How many patients of the rarer class the result rests on, and what to do where they are few."""
    groups = _groups(run)
    if not groups:
        return ""
    rarest = min(groups, key=lambda name: groups[name])
    said = (
        f"The {'rarer' if len(groups) == 2 else 'rarest'} class, {text(rarest)}, has "
        f"{run.so_many(groups[rarest])} in the test set"
    )
    few = f": with fewer than {FEWEST_GROUPS}, the intervals are rough" if groups[rarest] < FEWEST_GROUPS else ""
    return Markup(f"{said}{few}.{_all_tested(run) if groups[rarest] < ENOUGH_GROUPS else ''}")


def _all_tested(run: Record) -> str:
    """Advice to cross-validate; "" where a class has fewer groups than three folds need."""
    if run.split is None or run.fold:
        return ""
    folds = min(FOLDS, int(run.split.groupby("label")["group"].nunique().min()))
    if folds < 3:
        return ""
    return (
        f" Repeated cross-validation tests all {run.units} and shows how much the result depends on the split: add "
        f"`-p folds {folds} -p repeats {REPEATS}` to the command of this run."
    )


def _heatmaps(facts: Mapping | None) -> tuple[Markup, bool]:
    """May the heatmaps be believed, in a line; and whether all checks support it."""
    if facts is None:
        return Markup("**Heatmaps: not checked.** Do not use them to explain a prediction."), False
    state, checks = trust.state(facts), (facts.get("checks") or {}).values()
    if "state" not in facts or not checks:  # of version 0.1, or without images to check
        return Markup(f"**Heatmaps:** {text(facts.get('verdict', 'no verdict'))}"), state == trust.SUPPORTED
    counts = f"{sum(check['state'] == state for check in checks)} of {len(checks)}"
    called = f" predicted {text(facts['of'])}" if facts.get("of") else ""
    said = {
        trust.SUPPORTED: f"supported.** All {len(checks)} checks hold on {{}}. This does not show that the model's "
        "reasons are medically sound.",
        trust.NOT_SHOWN: f"not shown to be right.** {counts} checks cannot tell them from maps that explain nothing, "
        "on {}. Do not use them to explain a prediction.",
        trust.REFUTED: f"refuted.** {counts} checks found them worse than maps that explain nothing, on {{}}. Do not "
        "use them to explain a prediction.",
    }[state]
    on = f"up to {facts['images']} images{called} of {facts['groups']} groups"
    return Markup(f"**Heatmaps: {said.format(on)}"), state == trust.SUPPORTED


# ------------------------------------------------------------------------------------------------------- the pictures


def examples(run: Record) -> Markup | None:
    """Up to three heatmaps side by side with their captions, Markdown; None where they were not checked.

    Only images that the checks were about are shown: of two classes those predicted positive.
    """
    listed = run.folder / "heatmaps" / "gallery.csv"
    if run.trust is None or not listed.is_file():
        return None
    table = pd.read_csv(listed, keep_default_na=False)
    table["file"] = [
        next(iter(sorted((listed.parent / "gallery").glob(f"{i:02}-*.png"))), None) for i in range(1, len(table) + 1)
    ]
    table = table[table["file"].notna()].drop_duplicates("path")
    if run.trust.get("of"):
        table = table[table["decision"] == run.trust["of"]]
    order = table["section"].map({name: i for i, name in enumerate(SECTIONS)}).fillna(len(SECTIONS))
    place = table.assign(order=order, within=table.groupby("section").cumcount()).sort_values(["within", "order"])
    rows = list(place.head(EXAMPLES).sort_values("order", kind="stable").itertuples())
    if not rows:
        return None
    return markdown.table([""] * len(rows), [[_example(run, row) for row in rows]])


def _example(run: Record, row) -> Markup:
    """One cell: image, heatmap and overlay, why it was chosen, and its true and predicted class."""
    threshold = (run.metrics.get("test") or {}).get("threshold") if run.two_classes else None
    caption = gradcam.caption(row.label, row.decision, row.p, run.recipe.positive, threshold)
    return Markup(
        f"{markdown.picture(run.folder, row.file, row.section)}<br>"
        f"**{text(row.section[:1].upper() + row.section[1:])}**<br>{text(caption)}"
    )


def chart(run: Record) -> Markup | None:
    """Draws the headline numbers of the model beside those of simpler ones; returns the Markdown of the picture."""
    blocks = _blocks(run)
    if not blocks:
        return None
    files.write_text(
        run.folder / CHART,
        pages.render(
            "results.svg",
            blocks=blocks,
            note=manifest.DEMO_NOTE if run.demo else "",
            width=WIDTH,
            left=LEFT,
            scale=SCALE,
        ),
    )
    return markdown.picture(run.folder, run.folder / CHART, "The headline numbers with their 95 % intervals")


def headline_names(run: Record) -> list[str]:
    """The metrics that a reader asks for first."""
    further = ["sensitivity", "specificity"] if run.two_classes else ["auc", "accuracy"]
    return list(dict.fromkeys([run.recipe.monitor, "balanced_accuracy", *further]))


def _blocks(run: Record) -> list[dict]:
    """One block for each metric, with a row for each model that has it."""
    models = {"this model": "test", "colour statistics": "baseline", "linear probe": "probe"}
    found = []
    for name in headline_names(run):
        rows = []
        for title, key in models.items():
            number = (run.metrics.get(key) or {}).get("metrics", {}).get(name)
            if number and number.get("value") is not None:
                rows.append(
                    {
                        "model": title,
                        "text": readable(number),
                        "ours": key == "test",
                        **{end: _at(number.get(end)) for end in ("value", "low", "high")},
                    }
                )
        if rows:
            found.append({"name": words(name), "rows": rows})
    return found


def _at(value: float | None) -> float | None:
    """Where a value from 0 to 1 lies in the chart, in its units."""
    return None if value is None else round(LEFT + SCALE * min(max(value, 0), 1), 1)
