"""The checks of heatmaps, each against its null, and their verdict: supported, not shown or refuted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.data import decoding, demo, imagesets, manifest
from patholib.data.readers.folders import demo_folder
from patholib.judge import gradcam, heatchecks, intervals, resampled, rules
from patholib.judge.heatchecks import Asked
from patholib.model.networks import Classifier

FILE = "trust.json"  # in the run folder
SUPPORTED, NOT_SHOWN, REFUTED = "supported", "not shown", "refuted"
PASSED = {True: "passed", False: "failed"}  # of a check in version 0.1
FIRST, MOST = 32, 128  # images of the first look, and of the second if that left a check undecided
FEW = 12  # images of the checks against networks of shuffled weights, which explain them too
FEWEST = 6  # groups; of 5, all on one side are no surprise yet (2 in 2^5 is more than 5 %)
NOT_CHECKED = "Heatmaps not checked. Do not use them to explain a prediction."
NONE = 1e-9  # differences of this size are rounding
# Check: what is measured, and the claim. The null of each is in `heatchecks`.
CLAIMS = {
    "specific": (
        "gain by deletion and insertion, over maps of other groups",
        "the pixels that a map marks matter more in its image than those that maps of other groups mark",
    ),
    "faithful": (
        f"gain by deletion and insertion, over {heatchecks.NETWORKS} networks with shuffled weights",
        f"the maps explain this network better than the maps of {heatchecks.NETWORKS} networks with shuffled weights "
        "explain those",
    ),
    "stable": (
        "likeness after a small change of the image, over maps of other groups",
        "after a shift or JPEG compression a map is more like itself than like maps of other groups",
    ),
    "sensitive": (
        "likeness after a small change of the image, over shuffled weights",
        "shuffling all weights changes a map more than a shift or JPEG compression does",
    ),
    "located": (
        "share of the heat on the mask, over maps of other groups",
        "a map has more of its heat on the mask of its image than maps of other groups have",
    ),
}


@dataclass(frozen=True)
class Trust:
    """The result of `examine`: `facts`, the content of trust.json, and the words for them."""

    facts: dict

    @property
    def state(self) -> str:
        """ "supported" if every check is, "refuted" if one is, else "not shown"."""
        return state(self.facts)

    @property
    def trusted(self) -> bool:
        """Whether every check is supported."""
        return self.state == SUPPORTED

    @property
    def reasons(self) -> list[str]:
        """One sentence with its numbers for every check that is not supported."""
        return self.facts["reasons"]

    @property
    def verdict(self) -> str:
        """The outcome in words."""
        return self.facts["verdict"]

    @property
    def table(self) -> pd.DataFrame:
        """One row per check: what is measured, on how many images, its value, what is required, the outcome."""
        return pd.DataFrame(rows(self.facts), columns=["check", "images", "value", "required", "result"])

    def __repr__(self) -> str:
        return "\n".join([self.verdict, *(f"  - {reason}" for reason in self.reasons)])


def state(facts: Mapping) -> str:
    """The state of the verdict; version 0.1 had fixed limits instead: with a failed check it has shown nothing."""
    return facts.get("state") or (NOT_SHOWN if facts.get("reasons") else SUPPORTED)


def rows(facts: Mapping | None) -> list[tuple[str, str, str, str, str]]:
    """Of every check: what is measured, on how many images, its value, what is required, and its state."""
    checks = ((facts or {}).get("checks") or {}).values()
    return [
        (c["asked"], str(c.get("images", "")), c["found"], c["demanded"], c.get("state") or PASSED[c["passed"]])
        for c in checks
    ]


def summary(facts: Mapping | None) -> str:
    """The verdict in a few words, for titles; facts None: there are none."""
    if facts is None:
        return "Heatmaps not checked"
    results = [row[-1] for row in rows(facts)]
    held = len([result for result in results if result in (SUPPORTED, PASSED[True])])
    return f"Heatmaps {state(facts)}" + (f": {held} of {len(results)} checks hold" if results else "")


def covering(facts: Mapping | None, block: str, method: str) -> Mapping | None:
    """The facts if the checks were made with such heatmaps, else None; method as of `gradcam.method_title`."""
    return facts if facts and (facts.get("block", block), facts.get("method", method)) == (block, method) else None


def about(facts: Mapping | None, predicted: str, target: str, block: str, method: str = "gradcam") -> str:
    """What the checks say of a heatmap for `target` of an image of this predicted class."""
    if facts is None:
        return NOT_CHECKED
    of = facts.get("of") or predicted
    if not facts.get("checks") or (covering(facts, block, method) and (predicted, target) == (of, of)):
        return facts["verdict"]
    return (
        f"Not checked for this heatmap. The checks were made with {facts['method']} after {facts['block']}, for images "
        f"predicted as {facts.get('of') or 'the class shown'}: {facts['verdict']}"
    )


def known(folder: Path) -> dict | None:
    """trust.json of a run or export, None where there is none. Errors: bad_json."""
    path = Path(folder) / FILE
    return files.read_json(path) if path.exists() else None


def examine(
    model: Classifier,
    pictures: imagesets.ImageSet,
    predictions: pd.DataFrame,
    run=None,
    masks: Mapping[str, np.ndarray] | None = None,
    positive: str | None = None,
    threshold: float | rules.Shares | None = None,
    count: int = MOST,
    block: str | None = None,
    method: str = "gradcam",
    average: bool = False,
    seed: int = 0,
) -> Trust:
    """Checks the heatmaps of at most `count` images for their predicted class, and writes <run>/trust.json.

    Each check is the mean difference between the maps and their null over groups, each counted once. It is supported
    if its 95 % interval (Student's) lies above 0, refuted if below. 32 images come first, and all `count` if that
    decides not every check; the two looks share the 5 %. Of two classes with a positive one only images predicted
    positive are taken: the evidence for the other class is that something is absent, which has no place.

    pictures and predictions: the same images in the same order. masks: by path, where the evidence is known to lie,
    bool (S, S) in the frame of the pixels, as `squares` and `planted` give them. run: an open run, or None to write
    nothing. block: None takes `gradcam.default_block`. average: check the maps of `gradcam.averaged`, which takes
    several times as long. Errors: as `gradcam.heat`, bad_order, no_masks.
    """
    table, of = _candidates(model, pictures, predictions, masks, positive, threshold)
    table = _spread(table, count)
    facts: dict[str, Any] = {
        "format": 2,
        "method": gradcam.method_title(method, average),
        "block": block or gradcam.default_block(model),
        "of": of,
        "seed": seed,
        "images": len(table),
        "groups": table["group"].nunique(),
        "blank": 0,
        "masks": masks is not None,
        "checks": {},
    }
    if facts["groups"] >= FEWEST:
        ask = partial(gradcam.averaged if average else gradcam.heat, block=facts["block"], method=method)
        facts |= _checked(model, pictures, table, ask, seed, masks)
    facts["reasons"] = [check["reason"] for check in facts["checks"].values() if check["reason"]]
    states = {check["state"] for check in facts["checks"].values()}
    facts["state"] = REFUTED if REFUTED in states else SUPPORTED if states == {SUPPORTED} else NOT_SHOWN
    facts["verdict"] = _verdict(facts)
    if run is not None:
        files.write_json(Path(run.dir) / FILE, facts)
    return Trust(facts)


def read(run_dir: Path) -> Trust:
    """The result that `examine` wrote into a run folder. Errors: missing_file, bad_json."""
    return Trust(files.read_json(Path(run_dir) / FILE))


def squares(masks: Mapping[str, Path], size: int, fit: str = "crop") -> dict[str, np.ndarray]:
    """Mask files (white where the evidence is) as bool (size, size) in the frame of cached images, by the same keys."""
    return {name: decoding.to_square(decoding.read(path), size, fit)[..., 0] > 127 for name, path in masks.items()}


def planted(source: manifest.Manifest, pictures: imagesets.ImageSet, fit: str = "crop") -> dict[str, np.ndarray] | None:
    """Where the cue was drawn into each of these demo images, bool (S, S) by path; None for real images."""
    if not source.demo:
        return None
    folder = demo_folder(source.root)
    assert folder is not None, "by which a source is known to be a demo"
    known = demo.truth(folder).set_index("path")["mask"]
    return squares({path: folder / known[path] for path in pictures.table["path"]}, pictures.pixels.shape[1], fit)


def _candidates(model, pictures, predictions, masks, positive, threshold) -> tuple[pd.DataFrame, str | None]:
    """The rows of `pictures` whose maps may be checked, with `predicted`, and the class they are limited to."""
    if list(pictures.table["path"]) != list(predictions["path"]):
        raise PathoError("bad_order", "predictions", "are not of these images in this order", "Predict these images")
    predicted = resampled.decide(predictions, model.classes, positive, 0.5 if threshold is None else threshold)
    table = pictures.table.assign(predicted=predicted).reset_index(drop=True)
    if masks is not None:
        table = table[table["path"].isin(masks.keys())]
        if table.empty:
            raise PathoError("no_masks", "masks", "are of none of these images", "Name them by the images' paths")
    of = positive if len(model.classes) == 2 else None
    return table if of is None else table[table["predicted"] == of], of


def _spread(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """`count` rows from as many groups as possible, and from the predicted classes in turn."""
    turn = table.groupby(["predicted", "group"]).cumcount()
    place = table.assign(turn=turn).sort_values("turn", kind="stable").groupby("predicted").cumcount()
    return table.assign(place=place).sort_values(["place", "path"], kind="stable").head(count)


def _checked(model, pictures, table, ask, seed, masks) -> dict:
    """How many images were looked at, how many maps are blank, and every check."""
    looks = [FIRST, len(table)] if len(table) >= 2 * FIRST else [len(table)]
    level, asked = 1 - 0.05 / len(looks), Asked.of(model, pictures, table.head(looks[0]), ask, seed)
    checks = _against_others(asked, level, masks)
    if looks[1:] and NOT_SHOWN in [check["state"] for check in checks.values()]:
        asked = asked.and_also(Asked.of(model, pictures, table.iloc[looks[0] :], ask, seed))
        checks = _against_others(asked, level, masks)
    few = asked.first(FEW)
    checks |= {name: _check(name, *pair, few.groups) for name, pair in heatchecks.learnt(few).items()}
    return {
        "images": len(asked.paths),
        "groups": len(set(asked.groups)),
        "blank": int(asked.blank.sum()),
        "checks": {name: checks[name] for name in CLAIMS if name in checks},
    }


def _against_others(asked: Asked, level: float, masks) -> dict[str, dict]:
    """The checks against maps of other groups."""
    found = {"specific": heatchecks.specific(asked), "stable": heatchecks.stable(asked)}
    if masks is not None:
        found["located"] = heatchecks.located(asked, masks)
    return {name: _check(name, *pair, asked.groups, level) for name, pair in found.items()}


def _check(name: str, own: np.ndarray, null: np.ndarray, groups: np.ndarray, level: float = intervals.LEVEL) -> dict:
    """One check from the values of the maps and of their null (N,): the number, the state, and the reason for it."""
    number, (asked, claim) = over_groups(own - null, groups, level), CLAIMS[name]
    use = ~np.isnan(own - null)
    state = decided(number)
    found = number.text(sign="+")
    if use.any() and np.array_equal(own[use], null[use]):  # as `heatchecks.beyond` says that there is no difference
        found = f"{own[use].mean():.3f}, no more and no less than they reach"
    elif use.any():
        means = (over_groups(np.where(use, values, np.nan), groups, level).value for values in (own, null))
        found = "{:.3f} against {:.3f}: ".format(*means) + found
    return {
        "asked": asked,
        "number": number.to_json(),
        "images": int(use.sum()),
        "level": level,
        "found": found,
        "demanded": "difference above 0",
        "state": state,
        "reason": "" if state == SUPPORTED else f"{state.capitalize()}: {claim} ({found})",
    }


def over_groups(differences: np.ndarray, groups: np.ndarray, level: float = intervals.LEVEL) -> intervals.Estimate:
    """The mean of differences (N,) over groups (N,), each counted once, with Student's interval.

    Images with NaN are left out. With fewer than 6 groups there is no interval. Where all agree it has no width.
    """
    means = pd.Series(differences).groupby(np.asarray(groups, dtype=object)).mean().dropna()
    if len(means) < FEWEST:
        value = float(means.mean()) if len(means) else None
        return intervals.Estimate(value, missing=f"{len(means)} groups are too few, {FEWEST} are needed")
    found = intervals.mean_of(means, means.index, level=level)
    # Where all agree to the last digit there is no spread to measure: that so many are on one side decides.
    return replace(found, low=found.value, high=found.value, missing="") if found.low is None else found


def decided(number: intervals.Estimate) -> str:
    """The state of a check whose difference has this interval."""
    if number.low is None or number.high is None:
        return NOT_SHOWN
    return SUPPORTED if number.low > NONE else REFUTED if number.high < -NONE else NOT_SHOWN


def _verdict(facts: Mapping) -> str:
    """A few sentences for a person."""
    predicted = f" predicted as {facts['of']}" if facts["of"] else ""
    on = f"up to {facts['images']} images{predicted} of {facts['groups']} groups"
    if not facts["images"]:
        return f"Heatmaps not shown to be right: no image is predicted as {facts['of']}."
    if not facts["checks"]:
        return f"Heatmaps not shown to be right: there are {on}, and the checks need {FEWEST} groups."
    states, total = [check["state"] for check in facts["checks"].values()], len(facts["checks"])
    on += f" ({facts['method']} after {facts['block']})"
    sentences = [
        {
            SUPPORTED: f"Heatmaps supported: all {total} checks hold on {on}. This does not show that the evidence is "
            "medically sound.",
            NOT_SHOWN: f"Heatmaps not shown to be right: {states.count(NOT_SHOWN)} of {total} checks cannot tell the "
            f"maps from their null on {on}. Do not use them to explain a prediction.",
            REFUTED: f"Heatmaps refuted: {states.count(REFUTED)} of {total} checks found the maps worse than their "
            f"null on {on}. Do not use them to explain a prediction.",
        }[facts["state"]]
    ]
    if facts["blank"]:
        sentences.append(f"{facts['blank']} of the {facts['images']} maps are blank.")
    if not facts["masks"]:
        sentences.append("Without masks it was not checked whether the heat lies on the right place.")
    if predicted:
        sentences.append("Maps of the other images were not checked: that something is absent has no place.")
    return " ".join(sentences)
