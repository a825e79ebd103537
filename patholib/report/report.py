"""The report of a run, written from the files in its folder and from nothing else.

What a file does not say, the report does not say; what is absent is named as absent. `write` gives report.md and
report.html, and has the cards written; `hints` what a history and its metrics suggest to change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from patholib.base import files
from patholib.base.errors import shown
from patholib.judge.groupwise import of_subgroup
from patholib.judge.metrics import ALERT, readable
from patholib.judge.rules import RULES
from patholib.model import profiles, recipes
from patholib.model.recipes import Recipe
from patholib.report import cards, markdown
from patholib.report.markdown import (
    count as _count,
)
from patholib.report.markdown import (
    pairs as _pairs,
)
from patholib.report.markdown import (
    picture,
)
from patholib.report.markdown import (
    short as _short,
)
from patholib.report.markdown import (
    table as _table,
)
from patholib.report.markdown import (
    text as _text,
)
from patholib.report.markdown import (
    why as _why,
)
from patholib.report.markdown import (
    words as _words,
)
from patholib.report.records import NOTICE, ORDER, RIVALS, SETS, Record, gains, not_beaten

HEATMAPS_SHOWN = 12
CALIBRATION = ("ece_mass", "ece_width", "ece_chance", "brier", "log_loss")


# ---------------------------------------------------------------------------------------------------------- the hints


def hints(history, metrics: Mapping, recipe: Recipe) -> list[str]:
    """What the numbers suggest to look at: what was seen, why it may be so, which recipe field to change.

    history: DataFrame or list of dicts, one row per epoch; metrics: as in metrics.json. A hint is no proof.
    """
    table = pd.DataFrame(history)
    found = []
    if len(table):
        table = table.apply(pd.to_numeric, errors="coerce")
        found += _learning_hints(table, recipe)
    return found + _judging_hints(metrics, recipe)


def _learning_hints(table: pd.DataFrame, recipe: Recipe) -> list[str]:
    epochs, monitor = table["epoch"].astype(int), f"val_{recipe.monitor}"
    broken = epochs[~np.isfinite(table[["train_loss", "val_loss"]]).all(axis=1)]
    if len(broken):
        return [f"The loss was not finite in epoch {broken.iloc[0]}: training diverged. The learning rate "
                f"({table['lr'].max():.2g}) was too high or half precision overflowed. Lower `lr`, set `clip_norm` "
                f"(now {recipe.clip_norm}), or `precision='fp32'`; nothing after that epoch counts."]
    if monitor not in table or not table[monitor].notna().any():
        return [f"The validation {_words(recipe.monitor)} was undefined in every epoch, so no epoch could be called "
                "the best. One class is missing from the validation images: change `fractions` or `seed`."]
    found, n, scores = [], len(table), table[monitor]
    at = int(scores.idxmax())
    best, last = int(epochs[at]), int(epochs.iloc[-1])

    gap = float(table["train_accuracy"][at] - table["val_accuracy"][at])
    if gap > 0.08:
        found.append(f"Overfitting: in epoch {best} the training accuracy ({table['train_accuracy'][at]:.3f}) was "
                     f"{gap:.3f} above the validation accuracy ({table['val_accuracy'][at]:.3f}), and augmented "
                     "training images make that gap look smaller than it is. Raise `head_dropout`, `weight_decay` or "
                     "`augmentation`, or freeze more blocks (`stages`).")
    low = int(table["val_loss"].idxmin())
    rise = float(table["val_loss"].iloc[-1] / table["val_loss"][low] - 1)
    if rise > 0.15 and table["train_loss"].iloc[-1] < table["train_loss"][low]:
        found.append(f"The validation loss was lowest in epoch {epochs[low]} ({table['val_loss'][low]:.3f}) and then "
                     f"rose by {100 * rise:.0f} % while the training loss fell: the model grows too sure of itself. "
                     "The temperature mends its probabilities, not its ranking; try `label_smoothing`, more "
                     "`weight_decay` or fewer `epochs`.")
    if n >= 8 and best <= epochs.iloc[0] + 0.15 * n and recipe.keep == "best":
        found.append(f"The best epoch was {best} of {last}: nothing was gained afterwards. The rate may be too high "
                     f"for pretrained weights or the backbone too free. Lower `lr` (now {recipe.lr:g}) or freeze more "
                     "blocks at first (`stages`).")
    tail = max(n // 4, 1)
    before = scores.iloc[:-tail].max() if n > tail else math.nan
    if n >= 4 and best == last:
        found.append(f"The last epoch ({last}) was the best, so training may have ended too soon. Raise `epochs` "
                     f"(now {recipe.epochs})" + (" or `patience`." if last < recipe.epochs else "."))
    elif n >= 8 and scores.iloc[-tail:].max() > before + max(recipe.min_delta, 0.005):
        found.append(f"Slow convergence: the validation {_words(recipe.monitor)} still rose from {before:.3f} to "
                     f"{scores.iloc[-tail:].max():.3f} in the last {tail} epochs. Raise `epochs` (now "
                     f"{recipe.epochs}) or `lr` (now {recipe.lr:g}).")
    # A restart of the rate shakes the loss on purpose, and an unfreezing may: neither is a sign of trouble.
    calm = table["lr"] <= table["lr"].shift() * 1.01
    if "frozen" in table:
        calm &= table["frozen"] == table["frozen"].shift()
    jumps = epochs[calm & (table["train_loss"] > 1.3 * table["train_loss"].shift())]
    if len(jumps):
        found.append(f"Unstable loss: the training loss jumped by more than 30 % in epoch "
                     f"{', '.join(map(str, jumps.iloc[:5]))} without a restart of the rate. Gradients may explode: "
                     f"set `clip_norm` (now {recipe.clip_norm}), lower `lr` (now {recipe.lr:g}) or raise `batch_size` "
                     f"(now {recipe.batch_size}).")
    return found


def _judging_hints(metrics: Mapping, recipe: Recipe) -> list[str]:
    found = []
    val, test, tta = (metrics.get(key) for key in ("val", "test", "test_tta"))
    name = recipe.monitor
    if test is not None:
        found += _sensitivity_hints(test, recipe)
        here = _value(test, name)
        if (there := _value(val, name)) is not None and here is not None and there - here > 0.05:
            found.append(f"The validation {_words(name)} ({there:.3f}) is {there - here:.3f} above the test one "
                         f"({here:.3f}). The best epoch was chosen on the validation images, which flatters them, and "
                         f"few groups ({val.get('groups', '?')} there, {test.get('groups', '?')} in the test set) "
                         "differ by chance. Quote the test number; more groups (`fractions`) would steady both.")
        found += [f"{said} Check the labels, use pretrained `weights`, train longer (`epochs`), or judge more groups "
                  "(`fractions`)." for key in RIVALS if (said := not_beaten(metrics, key, name))]
        if (many := _value(tta, name)) is not None and here is not None and many - here < 0.002:
            found.append(f"Averaging {recipe.tta_views} views changed the test {_words(name)} by {many - here:+.3f} "
                         "and costs as many passes as views. Lower `tta_views`, or judge without it.")
        width = test["metrics"].get(name, {})
        if width.get("low") is not None and width["high"] - width["low"] > 0.2:
            found.append(f"The interval of the test {_words(name)} is {width['high'] - width['low']:.2f} wide "
                         f"({width['low']:.3f} to {width['high']:.3f}) from {test.get('groups', '?')} groups: too wide "
                         "to compare models by. Only more patients help; `fractions` moves some to the test set.")
    if recipe.group_by == "image":
        found.append("The split is by image: pictures of one patient stand in training and in test, and every number "
                     "is too high by an unknown amount. Set `group_by` to the patient, case or lesion.")
    return found


def _sensitivity_hints(test: Mapping, recipe: Recipe) -> list[str]:
    per_class, found = test.get("per_class", {}), []
    support = {c: row["support"] for c, row in per_class.items()}
    if len(support) == 2 and recipe.positive in per_class:
        value = per_class[recipe.positive]["sensitivity"]["value"]
        if value is not None and value < 0.9:
            more = 2 * support[recipe.positive] > sum(support.values())
            why = (f"The class {recipe.positive} is the more frequent one, so balancing (`balance={recipe.balance!r}`) "
                   "moves decisions away from it: try `balance='none'`. Rather than that,"
                   if more and recipe.balance != "none" else "Class weights move this only indirectly:")
            n = support[recipe.positive]
            found.append(f"Sensitivity for {recipe.positive} is {value:.3f}: {round((1 - value) * n)} of {n} images "
                         f"were missed at threshold {test.get('threshold'):.4g}. {why} choose the threshold on "
                         "the validation images for the sensitivity you need, and accept the specificity that goes "
                         "with it (target_sensitivity of the notebook).")
    elif len(support) > 2 or recipe.positive is None:
        known = {c: row["sensitivity"]["value"] for c, row in per_class.items()
                 if row["sensitivity"]["value"] is not None}
        weak = sorted((c for c in known if known[c] < 0.5), key=known.get)
        if weak:
            listed = ", ".join(f"{c} {known[c]:.2f} (of {support[c]} images)" for c in weak)
            found.append(f"Less than half of the images of these classes are found: {listed}. Rare classes need more "
                         f"weight (`balance`, now {recipe.balance!r}; `focal_gamma`) or more images; see in the "
                         "confusion matrix what they are taken for.")
    return found


def _value(summary: Mapping | None, name: str) -> float | None:
    return None if summary is None else summary.get("metrics", {}).get(name, {}).get("value")


# ----------------------------------------------------------------------------------------------------------- sections


def _in_short(run: Record) -> list[str]:
    recipe, test = run.recipe, run.metrics.get("test")
    lines = ["## In short", ""]
    if test is None:
        return [*lines, "There are no test numbers: `metrics.json` has none.", ""]
    by_threshold = recipe.positive is not None and len(recipe.classes) == 2
    names = [recipe.monitor, "balanced_accuracy"] + ["sensitivity", "specificity"] * by_threshold
    names = list(dict.fromkeys(names))
    sets = {"test": "this model (95 % interval)", "baseline": "colour statistics alone"}
    sets |= {"probe": "a linear probe"} if "probe" in run.metrics else {}
    over = run.metrics.get("gain_over", {})
    rows = [(_words(n), *(readable(run.metrics[k]["metrics"].get(n)) if k in run.metrics else "absent" for k in sets),
             *(readable(gain.get(n), sign="+") for gain in over.values())) for n in names]
    lines += _table(("test images", *sets.values(), *(f"this minus {sets[k]}" for k in over)), rows)
    lines += _why((_words(n), test["metrics"].get(n)) for n in names)
    if recipe.group_by == "image":
        split = "**The split is by image: one patient may stand in training and in test.**"
    elif (shared := run.groups_in_two_splits()) is None:
        split = f"The split is by {_text(recipe.group_by)}, which cannot be verified without `split.csv`."
    elif shared:
        split = f"**{shared} groups stand in more than one split: do not trust these numbers.**"
    else:
        split = f"No {_text(recipe.group_by)} stands in two of training, validation and test."
    lines += [f"{_count(test.get('images', '?'))} test images of {_count(test.get('groups', '?'))} groups. {split} "
              f"Decision: {_text(test.get('decision', 'not recorded'))}. Intervals resample whole groups, "
              "those of a difference the same ones for both."]
    return [*lines, "", *[f"- {_text(note)}" for note in test.get("notes", [])], ""]


def _data(run: Record) -> list[str]:
    data, lines = run.run.get("data", {}), ["## Data", ""]
    lines += _pairs(data) if data else ["Not recorded.", ""]
    report = run.data_report
    if report is None:
        return [*lines, "What the data check found is not known: `data_report.json` is absent.", ""]
    excluded = report.get("excluded", report.get("problems", []))
    if excluded:
        rows = [[_text(entry.get(key, "")) for key in ("path", "code", "reason")] for entry in excluded[:20]]
        lines += [f"Left out: {len(excluded):,}.", "", *_table(("file", "code", "reason"), rows)]
        if len(excluded) > 20:
            lines += [f"… and {len(excluded) - 20:,} more in `excluded.csv`.", ""]
    else:
        lines += ["No file was left out.", ""]
    if (run.folder / "data_report.html").is_file():
        lines += ["The page [data_report.html](data_report.html) shows pictures of them, and all warnings.", ""]
    for name, what in (("rows_without_file", "table rows have no file and were left out"),
                       ("files_without_row", "files are in no row of the table and were left out")):
        count = data.get("found", {}).get(name, {}).get("count", 0)
        lines += [f"**{count:,} {what}.**", ""] * bool(count)
    for key, what in (("label_conflicts", "the same picture has two labels"),
                      ("groups_sharing_pixels", "the same picture stands in two groups")):
        if report.get(key):
            lines += [f"> **Cases in which {what}: {len(report[key]):,}.** They are listed in `data_report.json`.", ""]
    names = ("counts", "per_class", "sizes", "modes", "kinds", "size", "fit")
    facts = {name: report[name] for name in names if name in report}
    return lines + (_pairs(facts) if facts else [])


def _split(run: Record) -> list[str]:
    split, recipe = run.run.get("split", {}), run.recipe
    lines = ["## Split", "", f"By **{_text(recipe.group_by)}**, fractions {_text(recipe.fractions)}, seed "
             f"{recipe.seed}. SHA-256 of the split file: {_text(split.get('sha256', 'not recorded'))}.", ""]
    path = run.folder / "split.csv"
    if not path.is_file():
        return [*lines, "`split.csv` is absent.", ""]
    if split.get("sha256") and files.sha256(path) != split["sha256"]:
        lines += ["> **The split file is not the one this run was made with:** its SHA-256 differs.", ""]
    table = run.split
    counted = table.groupby(["label", "split"])["group"].agg(["size", "nunique"])
    names = [s for s in ("train", "val", "test") if s in set(table["split"])]
    cell = {key: f"{row['size']:,} ({row['nunique']:,})" for key, row in counted.iterrows()}
    rows = [(_text(c), *(cell.get((c, s), "0") for s in names)) for c in recipe.classes]
    total = table.groupby("split")["group"].agg(["size", "nunique"])
    rows.append(("all", *(f"{total['size'][s]:,} ({total['nunique'][s]:,})" for s in names)))
    lines += _table(("images (groups)", *names), rows)
    shared = run.groups_in_two_splits()
    lines += [f"Groups in more than one split: {shared}." if not shared else
              f"> **{shared} groups stand in more than one split.** The test numbers are not to be trusted.", ""]
    return lines


def _recipe(run: Record) -> list[str]:
    recipe, lines = run.recipe, ["## Recipe", ""]
    lines += [f"**{_text(recipe.name)}**: {_text(recipe.arch)}, weights {_text(run.weights)}, "
              f"{recipe.image_size} pixels, {recipe.epochs} epochs at most, batches of {recipe.batch_size}, "
              f"{_text(recipe.optimizer)} at {recipe.lr:g}, {_text(recipe.schedule)}, loss {_text(recipe.loss)}, "
              f"balance {_text(recipe.balance)}; " + (
                  "the last epoch is kept." if recipe.keep == "last" else
                  f"best epoch by validation {_words(recipe.monitor)}."), ""]
    said = profiles.profile(recipe)
    lines += [f"**{_text(said)}**", ""] * bool(said)
    if recipe.name not in recipes.RECIPES:
        return [*lines, "No recipe of that name ships with patholib, so there is none to compare it with; `run.json` "
                "has every field.", ""]
    changed = recipes.diff(recipes.get(recipe.name), recipe)
    if not changed:
        return [*lines, "It is the recipe as shipped.", ""]
    rows = [(f"`{key}`", _text(_short(a, 120)), _text(_short(b, 120))) for key, (a, b) in changed.items()]
    return [*lines, "What differs from the recipe as shipped:", "", *_table(("field", "shipped", "this run"), rows)]


def _training(run: Record) -> list[str]:
    table, lines = run.history, ["## Training", ""]
    if table.empty:
        return [*lines, "There is no history.", ""]
    monitor = f"val_{run.recipe.monitor}"
    best = table[monitor].idxmax() if monitor in table and table[monitor].notna().any() else table.index[-1]
    minutes = f"{table['seconds'].sum() / 60:.1f} minutes" if "seconds" in table else "an unknown time"
    lines += [f"{len(table)} epochs in {minutes}; the best was epoch {int(table['epoch'][best])}.", ""]
    columns = ["epoch", "lr", "frozen", "trainable_share", "train_loss", "val_loss", "train_accuracy", "val_accuracy",
               "val_balanced_accuracy", "val_auc", "gap", "seconds", "images_per_second", "gpu_memory_mb"]
    columns = [c for c in columns if c in table and table[c].notna().any()]
    chosen = {"first": table.index[0], "best": best, "last": table.index[-1]}
    rows = [(_words(c), *(_cell(table[c][i]) for i in chosen.values())) for c in columns]
    lines += _table(("", *chosen), rows)
    found = hints(table, run.metrics, run.recipe)
    lines += ["### What the numbers suggest", ""]
    lines += [f"- {_hint(hint)}" for hint in found] or ["Nothing stands out in the history or in the results."]
    return [*lines, ""]


def _hint(hint: str) -> str:
    """A hint as Markdown: its `field` marks stay, everything else is literal."""
    parts = shown(hint).split("`")
    return "".join(f"`{part}`" if i % 2 else _text(part) for i, part in enumerate(parts))


def _cell(value) -> str:
    if not np.isfinite(value):
        return "not finite"
    return f"{int(value):,}" if float(value).is_integer() else f"{value:.4g}"


def _decision(run: Record) -> list[str]:
    found, lines = run.decision, ["## Decision", ""]
    if not found:
        return [*lines, "No decision is recorded: temperature and threshold were not locked before the test images "
                "were judged.", ""]
    rows = {"rule": found["rule"], "temperature": f"{found['temperature']:.4g}",
            "locked": found["locked"], "SHA-256 of the validation predictions": found["predictions_val_sha256"]}
    if found["threshold"] is not None:
        what = "threshold" if len(run.recipe.classes) == 2 else "threshold of the alert"
        rows[what] = f"p_{found['positive']} >= {found['threshold']:.4g}"
    if found.get("shares"):
        rows["called"] = RULES["even"]
        rows |= {f"share of {name}": f"{share:.4g}" for name, share in found["shares"].items()}
    lines += ["Chosen on the validation images alone and locked before a test image was judged.", "",
              *_table(("", "value"), [(key, _text(value)) for key, value in rows.items()])]
    if found["validation"]:
        lines += _table(("validation, where it was chosen", "value (95 % interval)"),
                        [(_words(name), readable(number)) for name, number in found["validation"].items()])
        lines += ["These flatter, for the threshold was chosen to reach them; the test numbers are below.", ""]
    return [*lines, *[f"- {_text(note)}" for note in found["notes"]], ""]


def _results(run: Record) -> list[str]:
    lines, sets = ["## Results", ""], run.sets
    if not sets:
        return [*lines, "There are no results: `metrics.json` is absent or empty.", ""]
    head = ("value (95 % interval)", *(SETS[key] for key in sets))
    rows = [("images / groups", *(f"{_count(s.get('images', '?'))} / {_count(s.get('groups', '?'))}"
                                  for s in sets.values()))]
    rows += [(_words(name), *(readable(s["metrics"].get(name)) for s in sets.values())) for name in ORDER
             if any(name in s["metrics"] for s in sets.values())]
    rows.append(("decision", *(_text(s.get("decision", "?")) for s in sets.values())))
    lines += _table(head, rows)
    for key, s in sets.items():
        lines += [line.replace("- ", f"- {SETS[key]}: ", 1) for line in _why((_words(n), s["metrics"].get(n))
                                                                            for n in ORDER if n != "ece") if line]
    lines.append("")
    lines += ["Log loss, Brier score and calibration error: lower is better; the last is a mean of "
              "distances, to which resampling only adds, so it has no interval. The validation images chose the best "
              "epoch, the temperature and the threshold, so their numbers flatter.", ""]
    for key, s in sets.items():
        lines += [f"- {SETS[key]}: {_text(note)}" for note in s.get("notes", [])]
    lines += [""]
    for part in (_per_class, _alert, _calibration, _abstention, _gains, _subgroups, _patients):
        lines += part(run)
    return lines


def _alert(run: Record) -> list[str]:
    found = run.metrics.get("test", {}).get("alert")
    if not found:
        return []
    name = _text(found["positive"])
    apart = "" if len(run.recipe.classes) == 2 else \
        f" It is an alert beside the decision ({_text(run.metrics['test'].get('decision', 'not recorded'))})."
    lines = [f"### {name} at the locked threshold (test)", "",
             f"Called {name} where its probability is at least {found['threshold']:.4g}: "
             f"{100 * found['flagged']:.0f} % of {_count(found['images'])} images; {_count(found['positives'])} are "
             f"{name}, of {_count(found['positive_groups'])} groups.{apart}", ""]
    numbers = [(_words(n), found[n]) for n in ALERT]
    return [*lines, *_table(("", "value (95 % interval)"), [(n, readable(v)) for n, v in numbers]), *_why(numbers)]


def _calibration(run: Record) -> list[str]:
    found = run.metrics.get("calibration") or {}
    if not found:
        return []
    rows = [(SETS[key], when, f"{s['temperature']:.3g}", *(f"{s[n]:.3f}" for n in CALIBRATION))
            for key, both in found.items() for when, s in both.items()]
    head = ("", "", "temperature", "calibration error, bins of equal mass", "of equal width", "by chance",
            "Brier score", "log loss")
    return ["### Calibration", "", "Before and after the temperature that was fitted on the validation images. The "
            "error cannot be below zero, so even perfect probabilities have the one given as by chance, were the "
            "images independent.", "", *_table(head, rows)]


def _abstention(run: Record) -> list[str]:
    found = run.metrics.get("test", {}).get("abstention")
    if not found:
        return []
    places = sorted({int(np.searchsorted(found["coverage"], share - 1e-9)) for share in (0.5, 0.7, 0.8, 0.9, 1)})
    rows = [(f"{100 * found['coverage'][i]:.0f} %", f"{100 * found['risk'][i]:.1f} %") for i in places]
    return ["### If the least sure images go to a person (test)", "",
            *_table(("images answered", "of these wrong"), rows),
            f"Mean over all coverages: {found['aurc']:.3f}; leaving out by chance gives {found['aurc_random']:.3f}, "
            f"leaving out the wrong ones first {found['aurc_best']:.3f}.", ""]


def _gains(run: Record) -> list[str]:
    found = gains(run.metrics)
    if not found:
        return []
    names = [n for n in ORDER if any(n in gain for gain in found.values())]
    rows = [(_words(n), *(readable(gain.get(n), sign="+") for gain in found.values())) for n in names]
    return ["### Differences (test)", "", "The same groups are drawn for both, as what makes an image hard for one "
            "makes it hard for the other; an interval that holds 0 shows no difference.", "",
            *_table(("difference (95 % interval)", *found), rows),
            *_why((f"{_words(n)} ({what})", gain.get(n)) for what, gain in found.items() for n in names if n != "ece")]


def _judged(run: Record) -> tuple[str, dict]:
    """The set that details are shown of: test, else validation."""
    key = "test" if "test" in run.metrics else next(iter(run.sets))
    return key, run.metrics[key]


def _per_class(run: Record) -> list[str]:
    key, found = _judged(run)
    lines = [f"### Per class ({SETS[key]})", ""]
    names = ("sensitivity", "specificity", "precision", "f1", "auc")
    rows = [(_text(c), _count(row.get("support", "?")), _count(row.get("groups", "?")),
             *(readable(row.get(n)) for n in names)) for c, row in found.get("per_class", {}).items()]
    lines += _table(("class", "images", "groups", *map(_words, names)), rows) if rows else ["Not recorded.", ""]
    lines += _why((f"{_words(n)} of {_text(c)}", row.get(n)) for c, row in found.get("per_class", {}).items()
                  for n in names)
    matrix = found.get("confusion")
    if matrix:
        classes = [_text(c) for c in found.get("classes", run.recipe.classes)]
        lines += _table(("true \\ predicted", *classes),
                        [(c, *(f"{int(n):,}" for n in row)) for c, row in zip(classes, matrix, strict=True)])
    return lines


def _subgroups(run: Record) -> list[str]:
    key, found = _judged(run)
    rows = found.get("subgroups") or []
    lines = [f"### Subgroups ({SETS[key]})", ""]
    if not rows:
        return [*lines, "No subgroups are recorded.", ""]
    names = [n for n in ("accuracy", "balanced_accuracy", "auc", "sensitivity", "specificity") if n in rows[0]]
    cells = []
    for row in rows:
        numbers = [readable(of_subgroup(row, n)) for n in names]
        name = f"{_text(row['column'])}: {_text(row['value'])}{' &#42;' if row.get('few') else ''}"
        cells.append((name, _count(row["images"]), _count(row["groups"]), *numbers))
    lines += _table(("subgroup", "images", "groups", *map(_words, names)), cells)
    if any(row.get("few") for row in rows):
        lines += ["&#42; Too few to judge: fewer than ten groups, and the interval is too narrow to lean on.", ""]
    return lines


def _patients(run: Record) -> list[str]:
    key, found = _judged(run)
    patients, lines = found.get("patients"), [f"### Patients ({SETS[key]})", ""]
    if not patients:
        return [*lines, "No numbers per patient are recorded.", ""]
    both = (patients.get("two_labels") or {}).get("patients", 0)
    lines += [f"{_count(patients['patients'])} patients (column {_text(patients.get('column', '?'))})"
              + (f"; {both} more have two labels and are left out" if both else "")
              + f". Patient recognition rate: **{readable(patients.get('recognition_rate'))}**, the mean share of a "
              "patient's images that are right.", ""]
    one = patients.get("one_patient")
    if one:
        lines += [f"One patient is {100 * one['share']:.1f} % of that rate. " + " ".join(
            f"Leaving any one out, the {_words(name)} lies between {one[name]['low']:.3f} and {one[name]['high']:.3f}."
            for name in ("recognition_rate", "auc") if name in one), ""]
    levels = found.get("levels") or {}
    if levels:
        rows = [(_text(level), _count(s["patients"]), readable(s.get("recognition_rate")),
                 readable((s.get("summary") or {"metrics": {}})["metrics"].get("accuracy")))
                for level, s in ({patients.get("column", "?"): patients} | levels).items()]
        lines += _table(("gathered by", "number", "recognition rate", "accuracy of their mean probabilities"), rows)
    inner = patients.get("summary")
    if inner:
        rows = [(_words(n), readable(inner["metrics"][n])) for n in ORDER if n in inner["metrics"]]
        lines += ["Deciding each patient once, by the mean probability of the images:", "",
                  *_table(("", "value (95 % interval)"), rows),
                  *_why((_words(n), inner["metrics"].get(n)) for n in ORDER)]
    return lines


def _pictures(run: Record) -> list[str]:
    lines = ["## Figures", ""]
    for path in run.figures:
        lines += [f"### {_text(path.stem.replace('_', ' '))}", "", picture(run.folder, path), ""]
    lines += [] if run.figures else ["There are no figures in `figures/`.", ""]
    lines += ["## Heatmaps", ""]
    if not run.heatmaps:
        return [*lines, "There are no heatmaps in `heatmaps/`.", ""]
    lines += ["A heatmap shows where the evidence for a class lies (Grad-CAM). It does not show that the evidence is "
              "medically sound, and a model can be right for a wrong reason."
              + " What statistics of colour add to a probability, no heatmap shows." * bool(run.recipe.colour), ""]
    limit = 1 if run.heatmaps[0].stem == "gallery" else HEATMAPS_SHOWN  # the gallery has all the others in it
    for path in run.heatmaps[:limit]:
        lines += [picture(run.folder, path), ""]
    more = len(run.heatmaps) - limit
    return [*lines, f"… and {more} more in `heatmaps/`.", ""] if more > 0 else lines


def _trust(run: Record) -> list[str]:
    lines, facts = ["## Can the heatmaps be believed?", ""], run.trust
    if facts is None:
        return [*lines, "They were not examined: `trust.json` is absent. Take them for no reason.", ""]
    lines += [f"**{_text(facts['verdict'])}**", "", *(f"- {_text(reason)}." for reason in facts["reasons"]), ""]
    rows = [(_text(check["asked"]), _text(check["found"]), _text(check["demanded"]),
             "passed" if check["passed"] else "**failed**") for check in facts.get("checks", {}).values()]
    return [*lines, *_table(("check", "found", "demanded", ""), rows)] if rows else lines


def _origin(run: Record) -> list[str]:
    record, lines = run.run, ["## Versions and machine", ""]
    parts = {"run": record.get("name", run.folder.name), "created": record.get("created", "not recorded"),
             "code": record.get("code", "not recorded"), "machine": record.get("machine", "not recorded"),
             "seed": record.get("seed", run.recipe.seed), **(record.get("versions") or {"versions": "not recorded"})}
    lines += _pairs(parts)
    lines += ["## How to repeat this run", "",
              "1. Install the versions above (the same code version and commit).",
              f"2. Take the same images: the SHA-256 of all their bytes is {_text(run.images_digest)}.",
              "3. Give the notebook this folder's `split.csv` and the recipe in `run.json` "
              "(`recipes.from_json`), with the same seed.",
              "4. Compare `metrics.json`. Everything after the predictions can be repeated without the model, from "
              "`predictions_val.csv` and `predictions_test.csv`; on another machine the last digits may differ.", ""]
    if run.absent:
        lines += ["## What is absent", "", *[f"- {line}" for line in run.absent], ""]
    return lines


# ------------------------------------------------------------------------------------------------------------ writing


def write(run_dir: Path) -> Path:
    """Writes report.md, report.html and the cards into the run folder, from its files alone; returns report.html.

    report.html is one file: pictures inside, no script, nothing fetched. Errors: missing_file (run.json), bad_json,
    bad_recipe, extra_missing.
    """
    run = Record(run_dir)
    lines = [*run.banners(), f"# Report: {_text(run.name)}", "", NOTICE, ""]
    for section in (_in_short, _data, _split, _recipe, _training, _decision, _results, _pictures, _trust, _origin):
        lines += section(run)
    text = markdown.joined(lines)
    files.write_text(run.folder / "report.md", text)
    page = files.write_text(run.folder / "report.html", markdown.page(f"Report: {run.name}", text, run.folder))
    cards.write(run_dir)  # last: the checklist names what is there
    return page
