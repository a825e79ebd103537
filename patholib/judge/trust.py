"""The checks that heatmaps have to pass before they are shown, and their verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.data import decoding, demo, imagesets, manifest
from patholib.data.readers.folders import demo_folder
from patholib.judge import gradcam, heatchecks, intervals, metrics, resampled, rules
from patholib.judge.heatchecks import Asked
from patholib.model.networks import Classifier

FILE = "trust.json"  # in the run folder
CHANGED = 0.5  # highest mean rank correlation with the maps of a network whose weights are randomised
STEADY = 0.7  # lowest mean rank correlation with the maps of a slightly changed image
BLANK = 0.25  # highest share of blank maps
LOCATED = 64  # maps compared with masks, which costs one heatmap each


@dataclass(frozen=True)
class Trust:
    """The result of `examine`: `facts`, the content of trust.json, and the words for them."""

    facts: dict

    @property
    def trusted(self) -> bool:
        """Whether no check failed."""
        return not self.reasons

    @property
    def reasons(self) -> list[str]:
        """One sentence with its number for every check that failed."""
        return self.facts["reasons"]

    @property
    def verdict(self) -> str:
        """The outcome in words."""
        return self.facts["verdict"]

    @property
    def table(self) -> pd.DataFrame:
        """One row per check: what is measured, its value, the limit, whether it passed."""
        rows = [
            {
                "check": check["asked"],
                "value": check["found"],
                "limit": check["demanded"],
                "result": "passed" if check["passed"] else "FAILED",
            }
            for check in self.facts["checks"].values()
        ]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        return "\n".join([self.verdict, *(f"  - {reason}" for reason in self.reasons)])


def examine(
    model: Classifier,
    pictures: imagesets.ImageSet,
    predictions: pd.DataFrame,
    run=None,
    masks: Mapping[str, np.ndarray] | None = None,
    positive: str | None = None,
    threshold: float | rules.Shares | None = None,
    count: int = 16,
    block: str | None = None,
    method: str = "gradcam",
    average: bool = False,
    seed: int = 0,
) -> Trust:
    """Checks the heatmaps of up to `count` images for their predicted class, and writes <run>/trust.json.

    Of two classes with a positive one only images predicted positive are taken: the evidence for the other class is
    that something is absent, which has no place; the verdict says so. pictures and predictions: the same images in the
    same order. masks: by path, where the evidence is known to lie, bool (S, S) in the frame of the pixels, as `squares`
    and `planted` give them; they are compared with up to 64 maps. run: an open run, or None to write nothing. block:
    None takes `gradcam.default_block`. average: check the maps of `gradcam.averaged`, which takes several times as
    long. Errors: as `gradcam.heat`, bad_order, no_masks.
    """
    table, of = _candidates(model, pictures, predictions, masks, positive, threshold)
    facts: dict[str, Any] = {
        "format": 1,
        "method": gradcam.method_title(method, average),
        "block": block or gradcam.default_block(model),
        "of": of,
        "seed": seed,
        "images": 0,
        "groups": 0,
        "limits": {"changed": CHANGED, "steady": STEADY, "blank": BLANK},
        "checks": {},
        "reasons": [f"No image is predicted as {of}, so there is no map to check"],
    }
    if len(table):
        ask = partial(gradcam.averaged if average else gradcam.heat, block=facts["block"], method=method)
        asked = Asked.of(model, pictures, _spread(table, count), ask, seed)
        facts |= {
            "images": len(asked.views),
            "groups": len(set(asked.groups)),
            "blank": int(asked.heat.blank.sum()),
            "randomisation": heatchecks.randomisation(asked),
            "perturbation": heatchecks.perturbation(asked),
            "stability": heatchecks.stability(asked),
        }
        if masks is not None:
            facts["localisation"] = heatchecks.localisation(
                Asked.of(model, pictures, _spread(table, LOCATED), ask, seed), masks
            )
        facts["checks"] = checks(facts)
        facts["reasons"] = [check["reason"] for check in facts["checks"].values() if not check["passed"]]
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


def checks(facts: Mapping) -> dict[str, dict]:
    """Every check by name: what is measured, the number, the limit, whether it passed, and the reason if it did not."""
    steady = facts["stability"]
    blank = facts["blank"] / facts["images"]
    evidence = _most(
        "share of blank maps",
        blank,
        BLANK,
        "{number:.0%} of the maps are blank: they hold no evidence for the predicted class",
    )
    if blank == 1:
        return {"evidence": evidence}  # blank maps have no other property to check
    found = {
        "evidence": evidence,
        **_about_weights(facts["randomisation"]),
        **_about_pixels(facts["perturbation"]),
        "shift": _least(
            "similarity after a shift of one or two pixels",
            steady["shift"],
            "The maps change when the image moves by one or two pixels",
        ),
        "jpeg": _least(
            "similarity after JPEG compression", steady["jpeg"], "The maps change when the image is stored as JPEG"
        ),
    }
    if facts.get("localisation", {}).get("images"):
        for name, words in heatchecks.BASELINES.items():
            found[f"over_{name}_on_masks"] = _above(
                f"energy on the masks over {words}",
                facts["localisation"][f"over_{name}"]["energy"],
                f"The maps put no more of their heat on the masks than {words} would",
            )
    return found


def _about_weights(drawn: dict) -> dict[str, dict]:
    """The checks with randomised weights."""
    alone = float(np.mean([part["rank_correlation"] for part in drawn["alone"]]))
    return {
        "cascade": _most(
            "similarity after randomising all weights",
            drawn["cascade"][-1]["rank_correlation"],
            CHANGED,
            "The maps stay similar when all weights are randomised (rank correlation {number:.3f}, at "
            f"most {CHANGED} is allowed): they show the image, not what was learnt",
        ),
        "alone": _most(
            "similarity after randomising one part",
            alone,
            CHANGED,
            "The maps stay similar when one part of the network is randomised (mean rank correlation "
            f"{{number:.3f}}, at most {CHANGED} is allowed): they do not depend on all that was learnt",
        ),
    }


def _about_pixels(over: dict) -> dict[str, dict]:
    """The checks by deletion and insertion."""
    return {
        "over_random": _above(
            "gain over random maps",
            over["over_random"]["gain"],
            "Deleting and inserting the pixels that the maps mark changes the probability no more "
            "than random regions do",
        ),
        "over_blob": _above(
            "gain over a blob in the centre",
            over["over_blob"]["gain"],
            "Deleting and inserting the pixels that the maps mark changes the probability no more than "
            "the centre of the image does",
        ),
    }


def _most(asked: str, value: float, bound: float, reason: str) -> dict:
    return {
        "asked": asked,
        "number": {"value": value, "low": None, "high": None},
        "found": f"{value:.3f}",
        "demanded": f"at most {bound:g}",
        "passed": bool(value <= bound),
        "reason": reason.format(number=value),
    }


def _least(asked: str, number: dict, reason: str) -> dict:
    return {
        "asked": asked,
        "number": number,
        "found": metrics.readable(number),
        "demanded": f"at least {STEADY:g}",
        "passed": bool(number["value"] >= STEADY),
        "reason": f"{reason} (rank correlation {number['value']:.3f}, at least {STEADY:g} is needed)",
    }


def _above(asked: str, number: dict, reason: str) -> dict:
    """Passed if the whole interval lies above 0, or the value where all images agree and so there is no interval."""
    low = number["value"] if number["low"] is None else number["low"]
    return {
        "asked": asked,
        "number": number,
        "found": metrics.readable(number),
        "demanded": "interval above 0",
        "passed": bool(low > 0),
        "reason": f"{reason} (difference {metrics.readable(number)})",
    }


def _verdict(facts: Mapping) -> str:
    """A few sentences for a person."""
    failed, total = len(facts["reasons"]), len(facts["checks"])
    if not total:
        return f"There are no heatmaps to trust: no image is predicted as {facts['of']}."
    predicted = f" predicted as {facts['of']}" if facts["of"] else ""
    of = f"{facts['images']} images{predicted} of {facts['groups']} groups ({facts['method']} after {facts['block']})"
    sentences = [
        f"Do NOT trust these heatmaps: {failed} of {total} checks failed on {of}."
        if failed
        else f"These heatmaps passed all {total} checks on {of}. The checks do not show that the evidence is "
        "medically sound."
    ]
    if facts["groups"] < intervals.FEWEST_GROUPS:
        sentences.append("So few groups prove little either way.")
    if "localisation" not in facts:
        sentences.append("Without masks it was not checked whether the heat lies on the right place.")
    if predicted:
        sentences.append("Maps of the other images were not checked: that something is absent has no place.")
    return " ".join(sentences)
