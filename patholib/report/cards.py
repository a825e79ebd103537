"""The model card, the data card and the reporting checklists of a run, written from the files in its folder alone.

Model card: Mitchell et al. 2019. Data card: the questions of Gebru et al. 2021, in short. Checklists: `checklists`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from patholib.base import files
from patholib.data.foreign import IDS
from patholib.data.leakage import WAYS
from patholib.data.readers.sources import SOURCES
from patholib.data.splitting import SPLITS, leaked
from patholib.judge.groupwise import of_subgroup
from patholib.judge.intervals import FEWEST_GROUPS
from patholib.judge.metrics import readable
from patholib.judge.rules import RULES
from patholib.model import profiles, recipes
from patholib.report import checklists, markdown
from patholib.report.markdown import count, pairs, short, spoken, table, text, why, words
from patholib.report.records import NOTICE, ORDER, RIVALS, SETS, Record, not_beaten

NAMED = 5  # files that are named of those left out for one reason; excluded.csv names all
VALUES = 12  # a column with more values than this is no subgroup
MEASURES = ("ece_mass", "ece_width", "ece_chance", "brier", "log_loss")


class Terms(NamedTuple):
    """What a data set's makers ask for, and what is known of how it was made."""

    title: str
    licence: str
    weights: str  # what follows for a model that learnt from it
    collected: str
    beyond: str  # use that the images themselves rule out
    cite: str


TERMS = {
    "demo": Terms(
        "Demo images, drawn by patholib",
        "None is needed: a program drew the pictures, and it is under the MIT licence.",
        "Free to use, and of no use: they know a planted cue and nothing else.",
        "Drawn by `patholib.data.demo` with a cue whose best possible AUC is known; nobody was photographed.",
        "Any image but these drawings.", ""),
    "breakhis": Terms(
        "BreakHis, breast tumour tissue under the microscope",
        SOURCES["breakhis"].licence,
        "Research, with the data set named.",
        "Slides of the P&D Laboratory in Brazil, stained with haematoxylin and eosin, photographed at four "
        "magnifications; the diagnosis is that of pathologists (Spanhol et al. 2016).",
        "Tissue other than breast, stains other than haematoxylin and eosin, whole slides, other magnifications.",
        "Spanhol et al. 2016"),
    "isic2019": Terms(
        "ISIC 2019, skin lesions under the dermatoscope",
        SOURCES["isic2019"].licence,
        "Non-commercial, as the images are.",
        "Three collections of dermoscopic images from clinics, put together for a challenge; how each diagnosis was "
        "made differs between them (see the three papers).",
        "Photographs taken without a dermatoscope; lesions of other diagnoses. Skin types are not recorded, so nothing "
        "is known about how well it does on each.",
        "Tschandl et al. 2018 (HAM10000), Codella et al. 2018, Combalia et al. 2019 (BCN20000)"),
    "table": Terms(
        "A table of one's own",
        "**Not stated. Ask whoever gave you the images**, before you pass on images or weights.",
        "Not stated: as the images allow.",
        "Not recorded: to be written by the authors.", "", ""),
}


def write(run_dir: Path) -> Path:
    """Writes model_card, data_card and checklist, each as .md and .html, into the run folder; returns the model card.

    They say what the folder's files say; what is absent is named as absent. Errors: missing_file (run.json), bad_json,
    bad_recipe, extra_missing.
    """
    run = Record(run_dir)
    for stem, (title, whole) in texts(run).items():
        files.write_text(run.folder / f"{stem}.md", whole)
        files.write_text(run.folder / f"{stem}.html", markdown.page(title, whole, run.folder))
    return run.folder / "model_card.html"


def texts(run: Record) -> dict[str, tuple[str, str]]:
    """{"model_card": (title, Markdown), "data_card": ..., "checklist": ...}."""
    made = {"model_card": ("Model card", model_card), "data_card": ("Data card", data_card),
            "checklist": ("Checklists", checklists.lines)}
    return {stem: (f"{what}: {run.name}", markdown.joined([*run.banners(), f"# {what}: {text(run.name)}", "",
                                                           *lines(run)])) for stem, (what, lines) in made.items()}


def terms(run: Record) -> Terms:
    """The terms of the images the run was made of."""
    return TERMS["demo"] if run.demo else TERMS.get(run.data.get("source"), TERMS["table"])


# ------------------------------------------------------------------------------------------------------ the model card


def model_card(run: Record) -> list[str]:
    """What the model is, what it is for, how it does and for whom, and what it cannot do: Markdown, line by line."""
    lines = [NOTICE, ""]
    for section in (_what_it_is, _uses, _images, _learning, _decision, _numbers, _calibration, _subgroups, _heatmaps,
                    _limits, _origin):
        lines += section(run)
    return lines


def _what_it_is(run: Record) -> list[str]:
    recipe, code = run.recipe, run.run.get("code") or {}
    exported = _json(run, "model.json")
    facts = {
        "network": f"{recipe.arch}, images of {recipe.image_size} pixels"
                   + "; beside it a small one on statistics of colour and grain" * bool(recipe.colour),
        "classes": ", ".join(recipe.classes),
        "positive class": recipe.positive or "none is singled out",
        "weights at the start": run.weights,
        "best epoch": (run.run.get("training") or {}).get("best_epoch", "not recorded"),
        "exported weights": _digest_of(exported) if exported else "none (model.json is absent)",
        "made": run.run.get("created", "not recorded"),
        "made with": f"patholib {code.get('version', '(version not recorded)')}, commit "
                     f"{code.get('commit') or 'not recorded'}",
    }
    return ["## Model", "", *pairs(facts),
            f"Licence: the code is under the MIT licence. The weights: {_lower(terms(run).weights)}"
            + (" ImageNet weights come under terms of their own." if recipe.weights == "imagenet" else ""), ""]


def _digest_of(exported: Mapping) -> str:
    return f"SHA-256 {(exported.get('weights') or {}).get('sha256', 'not recorded')}"


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _uses(run: Record) -> list[str]:
    beyond = terms(run).beyond
    lines = ["## Intended use", "",
             "Research on the classification of images, by people who can judge such images themselves: to compare "
             "methods, to study errors, to plan a study.", "", "Not for:", "",
             "- Any decision about a patient, alone or as one hint among others.",
             "- Images from another scanner, stain, camera, clinic or population without a new test on them.",
             "- Images that show none of its classes: it names one of them all the same."]
    return [*lines, *[f"- {beyond}"] * bool(beyond), ""]


def _images(run: Record) -> list[str]:
    known = terms(run)
    lines = ["## Data", "", f"{known.title}: {count(run.data.get('images', '?'))} images of "
             f"{count(run.data.get('groups', '?'))} groups, split by {text(run.recipe.group_by)}. {_shared(run)}", "",
             f"Licence: {known.licence}", ""]
    return [*lines, *_left_out(run), "The whole account of the images is in `data_card.md`.", ""]


def _shared(run: Record) -> str:
    """Whether a group stands in two splits, in a sentence."""
    shared, level = run.groups_in_two_splits(), text(run.recipe.group_by)
    if shared is None:
        return "Whether a group stands in two splits cannot be verified: `split.csv` is absent."
    if run.recipe.group_by == "image":
        return "**The split is by image: one patient may stand in training and in test.**"
    return f"**{shared} groups stand in more than one split: do not trust the test numbers.**" if shared else \
        f"No {level} stands in two splits."


def _left_out(run: Record) -> list[str]:
    """A table of why files were left out, with the first names."""
    if run.excluded is None:
        return ["What was left out is not known: `data_report.json` and `excluded.csv` are absent.", ""]
    if not run.excluded:
        return ["No file was left out.", ""]
    by_code: dict[str, list[Mapping]] = {}
    for entry in run.excluded:
        by_code.setdefault(str(entry.get("code", "?")), []).append(entry)
    rows = [(text(code), count(len(found)), text(short(found[0].get("reason", ""), 120)),
             ", ".join(text(entry.get("path", "?")) for entry in found[:NAMED]) + " …" * (len(found) > NAMED))
            for code, found in sorted(by_code.items(), key=lambda pair: (-len(pair[1]), pair[0]))]
    return [f"Left out: {len(run.excluded):,} files, all of them in `excluded.csv`.", "",
            *table(("why", "files", "reason of the first", "the first"), rows)]


def _learning(run: Record) -> list[str]:
    recipe = run.recipe
    facts = {
        "recipe": recipe.name, "epochs": f"{len(run.history) or 'unknown'} of at most {recipe.epochs}",
        "batches of": recipe.batch_size, "optimizer": f"{recipe.optimizer}, rate {recipe.lr:g}, {recipe.schedule}",
        "loss": f"{recipe.loss}, label smoothing {recipe.label_smoothing:g}", "class balance": recipe.balance,
        "frozen blocks": "; ".join(f"{s.frozen} from epoch {s.first_epoch(recipe.epochs) + 1}" for s in recipe.stages),
        **({"epoch kept": "the last"} if recipe.keep == "last" else
           {"best epoch by": f"validation {words(recipe.monitor)}"}), "seed": recipe.seed,
    }
    said = profiles.profile(recipe)
    lines = ["## Training", "", *pairs(facts), *[f"**{text(said)}**", ""] * bool(said)]
    if recipe.name in recipes.RECIPES and not said:
        changed = recipes.diff(recipes.get(recipe.name), recipe)
        lines += [f"Against the recipe as shipped, changed: {', '.join(f'`{field}`' for field in changed)}." if changed
                  else "It is the recipe as shipped.", ""]
    return lines


def _decision(run: Record) -> list[str]:
    locked, lines = run.decision, ["## Decision", ""]
    if locked is None:
        rule = (run.metrics.get("test") or {}).get("decision", "not recorded")
        return [*lines, f"`decision.json` is absent: the probabilities are the network's own, and no threshold was "
                f"chosen before the test images were judged. Decision: {text(rule)}.", ""]
    facts = {
        "temperature": _plain(locked.get("temperature")), "positive class": locked.get("positive") or "none",
        "threshold" + " of the alert" * (len(run.recipe.classes) > 2): _plain(locked.get("threshold")),
        "rule": locked.get("rule") or "the largest probability decides",
        **({"called": f"{RULES['even']} in training: the likeliest class if all were equally common"}
           if locked.get("shares") else {}),
        **{f"{words(name)} on validation": _number(found) for name, found in (locked.get("validation") or {}).items()},
        "locked": locked.get("locked", "not recorded"),
    }
    lines += ["Fitted and chosen on the validation images alone, and locked before the test images were judged.", "",
              *pairs(facts), *[f"- {text(note)}" for note in locked.get("notes") or []], ""]
    digest, path = locked.get("predictions_val_sha256"), run.folder / "predictions_val.csv"
    if digest and path.is_file() and files.sha256(path) != digest:
        lines += ["> **`predictions_val.csv` is not the file the decision was taken on:** its SHA-256 differs.", ""]
    return lines


def _plain(value) -> str:
    return "none" if value is None else f"{value:.4g}" if isinstance(value, (int, float)) else str(value)


def _number(found) -> str:
    """A number of metrics.json, with its interval where it has one."""
    return readable(found) if found is None or isinstance(found, Mapping) else f"{found:.3f}"


def _numbers(run: Record) -> list[str]:
    test, lines = run.metrics.get("test"), ["## Numbers", ""]
    if test is None:
        return [*lines, "There are no test numbers.", ""]
    named = {"this model": "test", "with averaged views": "test_tta", "colour statistics alone": "baseline",
             "a linear probe": "probe"}
    sets = {title: run.metrics[key] for title, key in named.items() if key in run.metrics}
    two = len(run.recipe.classes) == 2  # means over two classes say what the numbers of the positive one say
    names = [n for n in ORDER if n in test["metrics"] and not (two and n.startswith("macro"))]
    rows = [(words(n), *(readable(s["metrics"].get(n)) for s in sets.values())) for n in names]
    lines += table(("test images (95 % interval)", *sets), rows)
    lines += why((words(n), test["metrics"].get(n)) for n in names if n != "ece")
    lines += [f"{count(test.get('images', '?'))} test images of {count(test.get('groups', '?'))} groups; intervals "
              "resample whole groups. Log loss, Brier score and calibration error: lower is better; the last is a mean "
              "of distances, to which resampling only adds, so it has no interval.", ""]
    rows = [(text(c), count(row.get("support", "?")), count(row.get("groups", "?")),
             *(readable(row.get(n)) for n in ("sensitivity", "specificity", "auc")))
            for c, row in test.get("per_class", {}).items()]
    lines += table(("class", "images", "groups", "sensitivity", "specificity", "AUC"), rows) if rows else []
    return [*lines, *_alert(run, test.get("alert"))]


def _alert(run: Record, found: Mapping | None) -> list[str]:
    """What the alert for one of more than two classes is worth; of two it is the decision itself."""
    if not found or len(run.recipe.classes) == 2:
        return []
    return [f"Alert for {text(found['positive'])}, beside the decision, where its probability is at least "
            f"{_plain(found['threshold'])}: sensitivity {readable(found['sensitivity'])}, specificity "
            f"{readable(found['specificity'])}; {100 * found['flagged']:.0f} % of the images raise it.", ""]


def _calibration(run: Record) -> list[str]:
    found, lines = run.metrics.get("calibration") or {}, ["## Calibration", ""]
    sets = {key: SETS[key] for key in ("val", "test") if key in found}
    if not sets:
        return [*lines, "Not measured: `metrics.json` has no calibration numbers. Take no probability for a "
                "chance.", ""]
    sides = [(key, when) for key in sets for when in ("before", "after")]
    rows = [(words(m), *(_number((found[key].get(when) or {}).get(m)) for key, when in sides)) for m in MEASURES
            if any(m in (found[key].get(when) or {}) for key, when in sides)]
    return [*lines, *table(("", *(f"{sets[key]}, {when}" for key, when in sides)), rows),
            "Before and after the temperature of the decision above; lower is better. The temperature was fitted on "
            "the validation images, whose numbers therefore flatter.", ""]


def _subgroups(run: Record) -> list[str]:
    rows, lines = (run.metrics.get("test") or {}).get("subgroups") or [], ["## Subgroups", ""]
    if not rows:
        return [*lines, "No subgroups are recorded.", ""]
    names = [n for n in ("accuracy", "balanced_accuracy", "auc", "sensitivity", "specificity") if n in rows[0]]
    cells = [(f"{text(row['column'])}: {text(row['value'])}{' &#42;' * bool(row.get('few'))}", count(row["images"]),
              count(row["groups"]), *(readable(of_subgroup(row, n), digits=2) for n in names)) for row in rows]
    lines += table(("test images", "images", "groups", *map(words, names)), cells)
    few = sum(bool(row.get("few")) for row in rows)
    return lines + [f"&#42; Too few to judge ({few} of {len(rows)}): fewer than {FEWEST_GROUPS} groups, and the "
                    "interval is too narrow to lean on.", ""] * bool(few)


def _heatmaps(run: Record) -> list[str]:
    lines = ["## Heatmaps", ""]
    if run.trust is None:
        return [*lines, "`trust.json` is absent: whether the heatmaps can be leant on was not checked. Take them for "
                "pictures of where evidence lies, not for reasons.", ""]
    reasons = run.trust.get("reasons") or []
    return [*lines, f"**{text(run.trust.get('verdict', 'no verdict'))}**", "",
            *[f"- {text(reason)}" for reason in reasons], "",
            "A heatmap shows where the evidence lies, not whether it is sound."
            + " What statistics of colour add to a probability, no heatmap shows." * bool(run.recipe.colour), ""]


def _limits(run: Record) -> list[str]:
    test = run.metrics.get("test") or {}
    lines = ["## Limits", "",
             "- It was tested on images of the same source as it learnt from. How it does elsewhere is not known.",
             "- One split and one training: the intervals tell how the numbers vary by chance between such groups, not "
             "how another training or another hospital would change them."]
    if isinstance(groups := test.get("groups"), int) and groups < 30:
        lines += [f"- {groups} groups in the test set are few; the intervals are as wide as that makes them."]
    known = {c: row["sensitivity"]["value"] for c, row in test.get("per_class", {}).items()
             if row["sensitivity"]["value"] is not None}
    if known:
        worst = min(known, key=known.get)
        lines += [f"- Weakest class: {text(worst)}, of which {100 * known[worst]:.0f} % are found."]
    rows = [row for row in test.get("subgroups") or [] if row.get("accuracy") is not None and not row.get("few")]
    if len(rows) > 1:
        low = min(rows, key=lambda row: row["accuracy"])
        lines += [f"- Lowest accuracy of a subgroup that is large enough: {low['accuracy']:.3f} ({text(low['column'])} "
                  f"{text(low['value'])}, {count(low['images'])} images)."]
    lines += [f"- {said}" for key in RIVALS if (said := not_beaten(run.metrics, key, run.recipe.monitor))]
    return [*lines, "- Who is harmed by its errors, and how, is a question for the authors of a study.", ""]


def _origin(run: Record) -> list[str]:
    lines = ["## Origin", "", f"Images SHA-256 {text(run.images_digest)}, seed {run.recipe.seed}. The whole account is "
             "in `report.md`; what a publication has to say is in `checklist.md`. Form of this card: Mitchell et al. "
             "2019.", ""]
    cite = terms(run).cite
    lines += [f"Cite the data: {cite}.", ""] * bool(cite)
    return lines + ["Absent: " + "; ".join(run.absent) + ".", ""] * bool(run.absent)


def _json(run: Record, name: str) -> dict | None:
    return files.read_json(run.folder / name) if run.has(name) else None


# ------------------------------------------------------------------------------------------------------- the data card


def data_card(run: Record) -> list[str]:
    """What the images are, where they come from, what was found wrong with them and how they were split: Markdown."""
    known, source = terms(run), run.data.get("source", "not recorded")
    lines = ["## Motivation", "", f"{known.title}. Read as `{text(source)}` from a folder called "
             f"{text(run.data.get('root_name', '(not recorded)'))}.", "",
             *["To be written by the authors: for what the images were collected, by whom, and who paid.", ""]
             * (known is TERMS["table"])]
    lines += ["## Composition", "", *_composition(run), *_distribution(run)]
    lines += ["## Collection", "", known.collected, "",
              *["Consent, ethics approval and how the labels were made: to be written by the authors.", ""]
              * (known is TERMS["table"])]
    lines += ["## Checking and preparation", "", *_checked(run)]
    lines += ["## Split", "", *_split(run), *_leaks(run)]
    lines += ["## Uses and distribution", "", f"Licence: {known.licence}", "", f"A model that learnt from them: "
              f"{_lower(known.weights)}", "", *[f"Cite: {known.cite}.", ""] * bool(known.cite),
              "The images themselves are not in the run folder.", ""]
    lines += ["## Maintenance", "", f"SHA-256 of all images: {text(run.images_digest)}; of each: `images.csv`. An "
              "image that is changed, added or gone changes it. Form of this card: Gebru et al. 2021, in short.", ""]
    return lines


def _composition(run: Record) -> list[str]:
    """Images, and ids of every level, by class and split."""
    if run.split is None:
        return ["`split.csv` is absent: counts by class and split are not known. Recorded are "
                f"{count(run.data.get('images', '?'))} images of {count(run.data.get('groups', '?'))} groups.", ""]
    lines = _by_split(run, "images", run.split.assign(images=run.split["path"]), "images")
    for level in _levels(run.split):
        lines += _by_split(run, f"{level.replace('_', ' ')}s", run.split[run.split[level] != ""], level)
    return lines


def _levels(split: pd.DataFrame) -> list[str]:
    """The id columns; `group` only where it repeats no other."""
    named = [name for name in split if IDS.fullmatch(name) and name != "group"]
    repeats = any(split[name].equals(split["group"]) for name in (*named, "path"))
    return named + ["group"] * (not repeats)


def _by_split(run: Record, title: str, rows: pd.DataFrame, ids: str) -> list[str]:
    """How many different `ids` each class has in each split."""
    parts = [name for name in SPLITS if name in set(rows["split"])]
    classes = [*run.recipe.classes, *sorted(set(rows["label"]) - set(run.recipe.classes))]

    def cells(of: pd.DataFrame) -> list[str]:
        return [count(int(some[ids].nunique())) for some in (*(of[of["split"] == part] for part in parts), of)]

    return table((title, *parts, "all"), [*((text(c), *cells(rows[rows["label"] == c])) for c in classes),
                                          ("all", *cells(rows))])


def _distribution(run: Record) -> list[str]:
    """How the images spread, by split, over the columns that were reported apart, else over those with few values."""
    if run.split is None:
        return []
    apart = {row["column"] for row in (run.metrics.get("test") or {}).get("subgroups") or []}
    values = {name: run.split[name].nunique() for name in run.split
              if name not in ("path", "label", "group", "split", "sha256") and not IDS.fullmatch(name)}
    chosen = apart & set(values) or {name for name, number in values.items() if number <= VALUES}
    shown = [name for name, number in values.items() if name in chosen and number > 1]
    parts = [name for name in SPLITS if name in set(run.split["split"])]
    lines = []
    for name in shown:
        counted = pd.crosstab(run.split[name], run.split["split"], normalize="columns")
        images = run.split[name].value_counts()
        rows = [(text(value) or "(not stated)", count(int(images[value])),
                 *(f"{100 * counted.loc[value, part]:.0f} %" for part in parts)) for value in counted.index]
        lines += table((text(name), "images", *(f"of {part}" for part in parts)), rows)
    other = [f"{text(name)} ({number:,} values)" if number > 1 else f"{text(name)} ({text(run.split[name].iloc[0])} "
             "throughout)" for name, number in values.items() if name not in shown]
    lines += [f"Further columns: {', '.join(other)}.", ""] * bool(other)
    return lines or ["No further columns describe the images: who and what they show is not known from the table.", ""]


def _checked(run: Record) -> list[str]:
    report = run.data_report
    if report is None:
        return ["What the data check found is not known: `data_report.json` is absent.", "", *_left_out(run)]
    counts = report.get("counts", {})
    lines = [f"Every file was opened, decoded in full and compared with all others: {count(counts.get('kept', '?'))} "
             f"of {count(counts.get('files', '?'))} are used.", "", *_left_out(run)]
    found = {"the same picture twice": report.get("duplicates"), "the same picture, two labels":
             report.get("label_conflicts"), "the same picture in two groups": report.get("groups_sharing_pixels")}
    rows = [(name, count(len(entries)) if entries is not None else "not recorded") for name, entries in found.items()]
    rows += [(f"remark: {text(code)}", count(number)) for code, number in
             Counter(entry.get("code", "?") for entry in report.get("warnings") or []).most_common()]
    lines += table(("found", "cases"), rows)
    for name, what in (("rows_without_file", "rows of the table have no file"),
                       ("files_without_row", "files are in no row of the table")):
        number = ((run.data.get("found") or {}).get(name) or {}).get("count", 0)
        lines += [f"**{number:,} {what}** and are left out.", ""] * bool(number)
    facts = {name: _most(report[name]) for name in ("sizes", "modes", "kinds") if report.get(name)}
    facts |= {"brought to": f"{report.get('size', '?')} pixels a side ({report.get('fit', '?')})"}
    return [*lines, *pairs(facts)]


def _most(counts: Mapping) -> str:
    first = sorted(counts.items(), key=lambda pair: -pair[1])[:6]
    return ", ".join(f"{value} ({n:,})" for value, n in first) + (f" and {len(counts) - 6:,} more"
                                                                  if len(counts) > 6 else "")


def _split(run: Record) -> list[str]:
    recorded, path = (run.run.get("split") or {}).get("sha256"), run.folder / "split.csv"
    lines = [f"By **{text(run.recipe.group_by)}**, fractions {text(spoken(run.recipe.fractions))}, seed "
             f"{run.recipe.seed}. SHA-256 of `split.csv`: {text(recorded or 'not recorded')}"]
    if run.split is None:
        return [lines[0] + "; the file is absent.", ""]
    same = recorded and files.sha256(path) == recorded
    lines[0] += ", which it still has." if same else "."
    return [*lines, "", *["> **The split file is not the one this run was made with:** its SHA-256 differs.", ""]
            * (recorded is not None and not same)]


def _leaks(run: Record) -> list[str]:
    """Ids and files that two splits share."""
    if run.split is None:
        return ["Whether the splits share a group or a file is not known.", ""]
    keys = {level.replace("_", " "): run.split[level] for level in _levels(run.split)}
    if run.has("images.csv"):
        known = pd.read_csv(run.folder / "images.csv", dtype=str, keep_default_na=False)
        keys["file, byte for byte"] = run.split["path"].map(dict(zip(known["path"], known["sha256"], strict=True))
                                                            ).fillna("")
    there = set(run.split["split"])
    ways = [way for way in WAYS if set(way) <= there]
    rows = [(text(name), *(count(int(leaked(ids, run.split["split"], *way).sum())) for way in ways))
            for name, ids in keys.items()]
    lines = table(("shared", *(f"{found} images, known from {seen}" for seen, found in ways)), rows)
    worst = [row for row in rows if any(cell != "0" for cell in row[1:])]
    lines += ["**The splits share what the table counts: the test numbers are too high by an unknown amount.**" if worst
              else "The splits share none of these.", ""]
    if not run.has("images.csv"):
        lines += ["Equal files are not counted: `images.csv` is absent.", ""]
    return [*lines, "Equal pictures were left out by the check. Pictures that were scaled, turned or encoded again are "
            "found by `patholib audit`, which needs the files.", ""]
