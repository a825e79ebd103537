"""The tables of the results, which report and model card share: Markdown from metrics.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from markupsafe import Markup

from patholib.judge import calibration as calibrating
from patholib.judge import gains, thresholds
from patholib.judge import sets as prediction_sets
from patholib.judge.groupwise import of_subgroup
from patholib.judge.intervals import FEWEST_GROUPS
from patholib.judge.metric_table import headline, of_calibration, of_classes, ordered, words
from patholib.judge.metrics import ALERT, readable
from patholib.judge.rules import RULES
from patholib.report import markdown
from patholib.report.markdown import FEW, count, table, text
from patholib.report.records import SETS, Record

COLUMNS = {
    "test": "this model",
    "test_tta": "averaged views",
    "baseline": "colour statistics",
    "probe": "linear probe",
    "image_alone": "image alone",
    "val": "this model, validation images",
}
NO_REASON = ("ece",)  # has no interval by its nature, which the text says once


def judged(run: Record) -> tuple[str, Mapping]:
    """The set that details are shown of: test, else the first there is."""
    key = "test" if "test" in run.metrics else next(iter(run.sets))
    return key, run.metrics[key]


def results(run: Record, keys=tuple(COLUMNS)) -> Markup:
    """Every metric of every model that was judged, each with its 95 % interval."""
    sets = {key: run.metrics[key] for key in keys if key in run.metrics}
    names = ordered((name for found in sets.values() for name in found["metrics"]), len(run.recipe.classes) == 2)
    rows = [
        (
            f"images / {run.units}",
            *(f"{count(s.get('images', '?'))} / {count(s.get('groups', '?'))}" for s in sets.values()),
        )
    ]
    rows += [(words(name), *(readable(found["metrics"].get(name)) for found in sets.values())) for name in names]
    return table(("value (95 % interval)", *(COLUMNS[key] for key in sets)), rows)


def reasons(run: Record, keys=tuple(COLUMNS)) -> Markup:
    """Why numbers of `results` are undefined, have no interval or leave classes out."""
    found = [run.metrics[key]["metrics"] for key in keys if key in run.metrics]
    names = ordered((name for one in found for name in one), len(run.recipe.classes) == 2)
    lines: list[str] = [_why(found, names)]
    lines += [f"- {SETS[key]}: {text(note)}.\n" for key in keys for note in run.metrics.get(key, {}).get("notes", [])]
    return Markup("".join(lines))


def _why(found: Iterable[Mapping], names: Iterable[str]) -> Markup:
    """Why numbers in a table are undefined or have no interval, each reason once; the table shows which they are."""
    return markdown.why((words(name), one.get(name)) for one in list(found) for name in names if name not in NO_REASON)


def differences(run: Record) -> Markup | None:
    """The paired differences on the test images; None without any."""
    found = gains.gains(run.metrics)
    if not found:
        return None
    names = ordered((name for gain in found.values() for name in gain), len(run.recipe.classes) == 2)
    rows = [(words(name), *(readable(gain.get(name), sign="+") for gain in found.values())) for name in names]
    return Markup(f"{table(('difference (95 % interval)', *found), rows)}\n{_why(found.values(), names)}")


def per_class(run: Record) -> Markup:
    """The numbers of every class."""
    found, names = judged(run)[1].get("per_class", {}), [metric.name for metric in of_classes("classes")]
    rows = [
        (name, count(row.get("support", "?")), count(row.get("groups", "?")), *(readable(row.get(n)) for n in names))
        for name, row in found.items()
    ]
    return Markup(f"{table(('class', 'images', run.units, *map(words, names)), rows)}\n{_why(found.values(), names)}")


def confusion(run: Record) -> Markup | None:
    """The confusion matrix; None where it is not recorded."""
    found = judged(run)[1]
    if not found.get("confusion"):
        return None
    classes = found.get("classes", run.recipe.classes)
    return table(
        ("true \\ predicted", *classes),
        [(name, *(f"{int(n):,}" for n in row)) for name, row in zip(classes, found["confusion"], strict=True)],
    )


def subgroups(run: Record) -> Markup | None:
    """The numbers of every subgroup; those of few groups are marked. None where none are recorded."""
    rows = judged(run)[1].get("subgroups") or []
    if not rows:
        return None
    names = [name for name in headline() if name in rows[0]]
    cells = [
        (
            Markup(f"{text(row['column'])}: {text(row['value'])}{FEW if row.get('few') else ''}"),
            count(row["images"]),
            count(row["groups"]),
            *(readable(of_subgroup(row, name), digits=2) for name in names),
        )
        for row in rows
    ]
    few = sum(bool(row.get("few")) for row in rows)
    note = (
        f"\\* {few} of {len(rows)} subgroups have fewer than {FEWEST_GROUPS} {run.units} of a class: too few to "
        "judge, and their intervals are rough.\n"
        if few
        else ""
    )
    return Markup(f"{table(('subgroup', 'images', run.units, *map(words, names)), cells)}\n{note}")


def calibration(run: Record) -> Markup | None:
    """The numbers of `metric_table.CALIBRATION` before and after it; None where they were not measured."""
    found = run.metrics.get("calibration") or {}
    sides = [(key, when) for key in SETS if key in found for when in ("before", "after") if when in found[key]]
    if not sides:
        return None
    rows = [("temperature", *(plain(found[key][when].get("temperature")) for key, when in sides))]
    rows += [
        (words(name), *(plain(found[key][when].get(name), ".3f") for key, when in sides))
        for name in of_calibration(len(run.recipe.classes))
    ]
    return table(("", *(f"{SETS[key]}, {when}" for key, when in sides)), rows)


def plain(value, form: str = ".3g") -> str:
    """A number as text, or that there is none."""
    return "absent" if value is None else f"{value:{form}}"


def sets(run: Record) -> Markup | None:
    """How often the prediction sets hold the true class on the test images; None where none were locked."""
    found, locked = judged(run)[1].get("sets"), (run.decision or {}).get("sets")
    if not found or not locked:
        return None
    rows = [
        (name, f"{at:.3g}" if at else "always", count(locked["groups"][name]), count(one["groups"]), readable(one))
        for (name, one), at in zip(found["coverage"].items(), locked["thresholds"].values(), strict=True)
    ]
    head = ("class", "in the set from", f"validation {run.units}", f"test {run.units}", "set holds the class")
    size = f"On the test images a set has {readable(found['size'], digits=2)} classes on average; a share of "
    size += f"{readable(found['single'], digits=2)} of the sets have one class."
    unlike = judged(run)[1].get("novelty")
    size += f" Share of them found to be none of the classes: {readable(unlike['share'], digits=2)}." if unlike else ""
    return Markup(f"{table(head, rows)}\n{_why([found['coverage']], found['coverage'])}\n{size}\n")


def alert(found: Mapping) -> Markup:
    """The numbers of the positive class at the locked threshold."""
    rows = [(words(name), readable(found.get(name))) for name in ALERT]
    return Markup(f"{table(('', 'value (95 % interval)'), rows)}\n{_why([found], ALERT)}")


def patients(run: Record) -> Markup | None:
    """The numbers if each patient is decided once, by the mean probability of the images; None where not recorded."""
    inner = (judged(run)[1].get("patients") or {}).get("summary")
    if not inner:
        return None
    names = ordered(inner["metrics"], len(run.recipe.classes) == 2)
    rows = [(words(name), readable(inner["metrics"][name])) for name in names]
    return Markup(f"{table(('', 'value (95 % interval)'), rows)}\n{_why([inner['metrics']], names)}")


def patient_rule(run: Record) -> Markup:
    """What decides a patient's mean probability, in a sentence; empty where no threshold does."""
    inner = (judged(run)[1].get("patients") or {}).get("summary") or {}
    if inner.get("threshold") is None:
        return Markup("")
    chosen = (
        "the threshold that was locked for patients"
        if (run.decision or {}).get("patients")
        else "the threshold of single images: this run locked none for patients, and the sensitivity of images is "
        "not that of patients"
    )
    return Markup(f"Decision: {text(inner.get('decision', ''))}, {chosen}.")


def levels(run: Record) -> Markup | None:
    """Patients, slides or lesions: how well each is recognised; None where one level alone is known."""
    found = judged(run)[1]
    if not found.get("levels"):
        return None
    own = found["patients"]
    rows = [
        (
            name,
            count(one["patients"]),
            readable(one.get("recognition_rate")),
            readable((one.get("summary") or {"metrics": {}})["metrics"].get("accuracy")),
        )
        for name, one in ({own.get("column", "?"): own} | found["levels"]).items()
    ]
    return table(("per", "number", "recognition rate", "accuracy of the mean probability"), rows)


def decision(run: Record) -> Markup:
    """How an image gets its predicted class, in a sentence."""
    test, classes = run.metrics.get("test") or {}, run.recipe.classes
    rule = test.get("decision", "not recorded")
    if run.two_classes and test.get("threshold") is not None:
        positive, other = run.recipe.positive, next(c for c in classes if c != run.recipe.positive)
        return Markup(
            f"An image is predicted {text(positive)} if its probability of {text(positive)} is at least "
            f"{test['threshold']:.4g}, otherwise {text(other)}."
        )
    known = {
        RULES["likeliest"]: "The class with the largest probability is predicted.",
        RULES["even"]: "The class with the largest ratio of probability to its share in training is predicted.",
    }
    return Markup(known.get(rule) or f"Decision: {text(rule)}.")


def locked(run: Record) -> dict[str, str]:
    """What was fitted and chosen on the validation images before any test image was judged; empty without a record."""
    found = run.decision
    if not found:
        return {}
    facts = {
        "rule": found.get("rule") or RULES["likeliest"],
        **calibrating.readable(found),
        "positive class": found.get("positive") or "none",
    }
    facts |= thresholds.in_words(found, alert=len(run.recipe.classes) > 2) | prediction_sets.in_words(found)
    if found.get("shares"):
        facts["predicted class"] = f"{RULES['even']} in training"
        facts |= {f"share of {name}": f"{share:.4g}" for name, share in found["shares"].items()}
    facts |= {"data of the patient": ", ".join(found["patient"])} if found.get("patient") else {}
    facts |= {"none of these": found["novelty"]["words"]} if found.get("novelty") else {}
    averaged = found.get("averaged") or {}
    if averaged:
        facts |= {f"{name}, averaged views": value for name, value in calibrating.readable(averaged).items()}
    return facts | {"locked": found.get("locked", "not recorded")}
