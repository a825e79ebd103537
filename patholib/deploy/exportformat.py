"""The format of an exported model: its manifest, and the check of every field."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from reprlib import repr as short
from typing import Any

from patholib.base import files
from patholib.base.errors import PathoError, nearest, shown
from patholib.judge import novelty
from patholib.model import architectures, recipes
from patholib.model.architectures import NETWORKS
from patholib.model.recipes import Recipe

# 2: the weights hold a digest of the manifest; 3: decision, origin, novelty; 4: a decision may hold a prior correction,
# biases and a decision for averaged views, which a reader of format 3 would leave out without a word
FORMAT = 4
READABLE = (3, FORMAT)
NOTICE = "For research use only. Not a medical device: not for diagnosis or for decisions about any patient."
DEMO_NOTICE = "Trained on generated demo images: it knows nothing about tissue or skin."
WEIGHTS, MANIFEST, PUBLISHED = "model.safetensors", "model.json", "published.pt"
ORIGIN = ("source", "data_licence", "fingerprint", "split_sha256", "commit")  # texts, "" where it is not known
FACTS = "manifest_facts_sha256"  # in the weights' header
WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "null",
}
OF_EACH_CLASS = (("shares", 0, " above 0"), ("correction", 0, " above 0"), ("bias", -math.inf, ""))  # of a decision
FIELDS = {  # of the manifest, and what each may be; only that of several networks has `members`, their number
    "arch": (str,),
    "classes": (list,),
    "positive": (str, type(None)),
    "image_size": (int,),
    "fit": (str,),
    "normalization": (dict,),
    "head": (dict,),
    "threshold": (int, float, type(None)),
    "temperature": (int, float, type(None)),
    "decision": (dict, type(None)),
    "recipe": (dict,),
    "run": (str,),
    "epoch": (int, type(None)),
    "data_sha256": (str,),
    "origin": (dict,),
    "smallest_side": (int, type(None)),
    "demo": (bool,),
    "intended_use": (str,),
    "notice": (str,),
    "patholib": (str,),
    "novelty": (dict, type(None)),
    "weights": (dict,),
}


def of_recipe(recipe: Recipe) -> dict:
    """What the manifest repeats of its recipe, for readers without patholib."""
    return {
        "arch": recipe.arch,
        "classes": list(recipe.classes),
        "positive": recipe.positive,
        "image_size": recipe.image_size,
        "fit": recipe.fit,
        "normalization": architectures.of(recipe.arch).normalization,
        "head": {"width": recipe.head_width, "order": recipe.head_order, "dropout": list(recipe.head_dropout)},
    }


def check_manifest(manifest, path: Path) -> None:
    """Stops at a manifest that was changed, that belongs to another format, or that asks for the impossible."""
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if type(found) is not int or found not in READABLE:  # by type too: True == 1
        raise PathoError(
            "model_format",
            str(path),
            f"has format {short(found)}, this version reads {' and '.join(map(str, READABLE))}",
            "Use the version of patholib that wrote it, or export once more",
        )
    rest = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    if manifest.get("manifest_sha256") != files.digest(rest):
        raise PathoError(
            "manifest_changed",
            str(path),
            "was changed after it was written",
            "Restore the file from the run; to change a setting, export once more",
        )
    stop_on(_wrong_fields(manifest), path)
    if not architectures.is_known(manifest["arch"]):
        raise PathoError(
            "unknown_arch",
            str(path),
            f"names the architecture {short(manifest['arch'])}",
            nearest(manifest["arch"], NETWORKS),
        )
    stop_on(_wrong_texts(manifest), path)
    stop_on(_wrong_values(manifest), path)


def stop_on(problems: list[str], path: Path) -> None:
    if problems:
        raise PathoError("bad_manifest", str(path), "; ".join(problems), "Export once more with a valid recipe")


def _wrong_fields(manifest: dict) -> list[str]:
    """Every field that is missing or of another type."""
    found = [f"{name} is missing" for name in FIELDS if name not in manifest]
    for name in FIELDS.keys() & manifest.keys():
        kinds, value = FIELDS[name], manifest[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            found.append(f"{name}={short(value)} is not {' or '.join(WORDS[kind] for kind in kinds)}")
    return sorted(found)


def _wrong_texts(manifest: dict) -> list[str]:
    """Class names that are none, and texts that could command a terminal."""
    names = manifest["classes"]
    found = [f"class name {short(name)} is not text" for name in names if not isinstance(name, str) or not name]
    origin, decision = manifest["origin"], manifest["decision"] or {}
    found += [f"origin {name} is not text" for name in ORIGIN if not isinstance(origin.get(name), str)]
    texts = [
        value for value in (*manifest.values(), *names, *origin.values(), *decision.values()) if isinstance(value, str)
    ]
    return found + [f"{short(text)} has control characters" for text in texts if not text.isprintable()]


def _wrong_values(manifest: dict) -> list[str]:
    """Values out of their range, or other than the recipe's."""
    try:
        recipe = recipes.from_json(manifest["recipe"])
    except PathoError as error:
        return [f"its {error.subject} {shown(error.reason)}"]
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # nothing to compare with
        return [f"its recipe cannot be read ({shown(error)})"]
    found = [
        f"{name}={short(manifest[name])} instead of its recipe's {short(value)}"
        for name, value in of_recipe(recipe).items()
        if files.digest(manifest[name]) != files.digest(value)
    ]
    threshold, temperature, epoch = manifest["threshold"], manifest["temperature"], manifest["epoch"]
    if threshold is not None and not 0 <= threshold <= 1:
        found.append(f"threshold={short(threshold)} is outside 0 to 1")
    if temperature is not None and not 0 < temperature < math.inf:
        found.append(f"temperature={short(temperature)} is not above 0")
    if "members" in manifest and not (type(manifest["members"]) is int and manifest["members"] > 1):
        found.append(f"members={short(manifest['members'])} is no whole number above 1")
    if epoch is not None and epoch < 1:
        found.append(f"epoch={short(epoch)} is below 1")
    if manifest["smallest_side"] is not None and manifest["smallest_side"] < 1:
        found.append(f"smallest_side={short(manifest['smallest_side'])} is below 1")
    return found + _wrong_decision(manifest) + _wrong_novelty(manifest)


def _wrong_decision(manifest: dict) -> list[str]:
    """How temperature and threshold were chosen, other than what they are; shares or a calibration that are none."""
    decision = manifest["decision"]
    if decision is None:
        return []
    found = [
        f"{name}={short(manifest[name])} instead of its decision's {short(decision.get(name))}"
        for name in ("temperature", "threshold", "positive")
        if files.digest(decision.get(name)) != files.digest(manifest[name])
    ]
    for one, of in _parts(decision):
        if not isinstance(one, dict):
            return [*found, f"the decision {of} {short(one)} is not {WORDS[dict]}"]
        found += [
            f"the decision's {name} {short(one[name])} are no number{above} for each class"
            for name, least, above in OF_EACH_CLASS
            if name in one and not _of_each_class(one[name], manifest["classes"], least)
        ]
        found += [
            f"the decision's {name} {short(one[name])} has no words, or no threshold from 0 to 1 for each class"
            for name in ("promise", "sets")
            if name in one and not _is_promise(one[name], manifest["classes"] if name == "sets" else [])
        ]
        if one.get("patient") and not _of_patients(one["patient"], manifest["classes"]):
            found.append(f"the decision's biases of patients {short(one['patient'])} are no number for each class")
        if of:
            temperature, threshold = one.get("temperature"), one.get("threshold")
            if not (isinstance(temperature, (int, float)) and 0 < temperature < math.inf):
                found.append(f"temperature={short(temperature)} {of} is not above 0")
            if threshold is not None and (type(threshold) not in (int, float) or not 0 <= threshold <= 1):
                found.append(f"threshold={short(threshold)} {of} is outside 0 to 1")
            if "threshold" not in one:
                found.append(f"threshold {of} is missing")
    return found


def _parts(decision: dict) -> Iterator[tuple[Any, str]]:
    """The decision and those inside it: for averaged views, and of either for the image alone."""
    yield decision, ""
    for name, of in (("averaged", "of averaged views"), ("image_alone", "of the image alone")):
        if name in decision:
            yield decision[name], of
    averaged = decision.get("averaged")
    if isinstance(averaged, dict) and "image_alone" in averaged:
        yield averaged["image_alone"], "of averaged views of the image alone"


def _of_patients(biases, classes: list) -> bool:
    """Whether these are a number for each class, by column and value."""
    columns = list(biases.values()) if isinstance(biases, dict) else [None]
    return all(
        isinstance(column, dict) and all(_of_each_class(of, classes, -math.inf) for of in column.values())
        for column in columns
    )


def _is_promise(part, classes: list) -> bool:
    """Whether this has words to show, and a threshold from 0 to 1 for each of these classes."""
    return (
        isinstance(part, dict)
        and isinstance(words := part.get("words"), str)
        and words.isprintable()
        and (not classes or _of_each_class(part.get("thresholds"), classes, -1))
        and all(0 <= value <= 1 for value in part.get("thresholds", {}).values())
    )


def _of_each_class(values, classes: list, least: float) -> bool:
    """Whether these are a finite number above `least` for each class."""
    return (
        isinstance(values, dict)
        and values.keys() == set(classes)
        and all(type(value) in (float, int) and least < value < math.inf for value in values.values())
    )


def _wrong_novelty(manifest: dict) -> list[str]:
    try:
        if manifest["novelty"] is not None:
            novelty.from_json(manifest["novelty"])
    except PathoError as error:
        return [f"novelty {shown(error.reason)}"]
    return []
