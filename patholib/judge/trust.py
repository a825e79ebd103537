"""Checks of heatmaps before they are shown, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

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
CHANGED = 0.5  # highest mean rank correlation with the maps of a network whose weights are drawn anew
STEADY = 0.7  # least mean rank correlation with the maps of a picture that hardly differs
BLANK = 0.25  # highest share of maps without any evidence
LOCATED = 64  # maps held against masks, which costs one look each


@dataclass(frozen=True)
class Trust:
    """What `examine` found: `facts` as they are kept in trust.json, and the words for them."""

    facts: dict

    @property
    def trusted(self) -> bool:
        """Whether no check failed."""
        return not self.reasons

    @property
    def reasons(self) -> list[str]:
        """Why the maps are not to be trusted, a sentence with its number for every check that failed."""
        return self.facts["reasons"]

    @property
    def verdict(self) -> str:
        """The outcome in words."""
        return self.facts["verdict"]

    @property
    def table(self) -> pd.DataFrame:
        """One row per check: what was asked, the number, what is demanded, whether it passed."""
        rows = [{"check": check["asked"], "found": check["found"], "demanded": check["demanded"],
                 "": "passed" if check["passed"] else "FAILED"} for check in self.facts["checks"].values()]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        return "\n".join([self.verdict, *(f"  - {reason}" for reason in self.reasons)])


def examine(model: Classifier, pictures: imagesets.ImageSet, predictions: pd.DataFrame, run=None,
            masks: Mapping[str, np.ndarray] | None = None, positive: str | None = None,
            threshold: float | rules.Shares | None = None, count: int = 16, block: str | None = None,
            method: str = "gradcam", average: bool = False, seed: int = 0) -> Trust:
    """Examines the maps of up to `count` images, for the class each was called; writes <run>/trust.json.

    Of two classes with a positive one only images called positive are taken: what argues for the other is that
    something is absent, which lies nowhere; the verdict says so. pictures and predictions: the same images in the same
    order. masks: by path, where it is known what counts, bool (S, S) in the frame of the pixels, as `squares` and
    `planted` give them; they are held against up to 64 maps. run: an open run, or None to write nothing. block: None
    takes `gradcam.default_block`. average: ask about the maps of `gradcam.averaged`, which takes several times as long.
    Errors: as `gradcam.heat`, bad_order, no_masks.
    """
    table, of = _candidates(model, pictures, predictions, masks, positive, threshold)
    facts = {"format": 1, "method": gradcam.named(method, average),
             "block": block or gradcam.default_block(model), "of": of, "seed": seed,
             "images": 0, "groups": 0, "limits": {"changed": CHANGED, "steady": STEADY, "blank": BLANK}, "checks": {},
             "reasons": [f"No image is called {of}, so there is no map to examine"]}
    if len(table):
        ask = partial(gradcam.averaged if average else gradcam.heat, block=facts["block"], method=method)
        asked = Asked.of(model, pictures, _spread(table, count), ask, seed)
        facts |= {"images": len(asked.views), "groups": len(set(asked.groups)), "blank": int(asked.heat.blank.sum()),
                  "randomisation": heatchecks.randomisation(asked), "perturbation": heatchecks.perturbation(asked),
                  "stability": heatchecks.stability(asked)}
        if masks is not None:
            facts["localisation"] = heatchecks.localisation(Asked.of(model, pictures, _spread(table, LOCATED), ask, seed), masks)
        facts["checks"] = checks(facts)
        facts["reasons"] = [check["reason"] for check in facts["checks"].values() if not check["passed"]]
    facts["verdict"] = _verdict(facts)
    if run is not None:
        files.write_json(Path(run.dir) / FILE, facts)
    return Trust(facts)


def read(run_dir: Path) -> Trust:
    """What `examine` wrote. Errors: missing_file, bad_json."""
    return Trust(files.read_json(Path(run_dir) / FILE))


def squares(masks: Mapping[str, Path], size: int, fit: str = "crop") -> dict[str, np.ndarray]:
    """Mask files (white where something lies) as bool (size, size) in the frame of cached images, by the same keys."""
    return {name: decoding.to_square(decoding.read(path), size, fit)[..., 0] > 127 for name, path in masks.items()}


def planted(source: manifest.Manifest, pictures: imagesets.ImageSet, fit: str = "crop") -> dict[str, np.ndarray] | None:
    """Where the cue was drawn into each of these demo images, by path; None for real images."""
    if not source.demo:
        return None
    folder = demo_folder(source.root)
    known = demo.truth(folder).set_index("path")["mask"]
    return squares({path: folder / known[path] for path in pictures.table["path"]}, pictures.pixels.shape[1], fit)


def _candidates(model, pictures, predictions, masks, positive, threshold) -> tuple[pd.DataFrame, str | None]:
    """The rows of `pictures` that may be asked about, with `called`, and the class they are limited to."""
    if list(pictures.table["path"]) != list(predictions["path"]):
        raise PathoError("bad_order", "predictions", "are not of these images in this order", "Predict these images")
    called = resampled.decide(predictions, model.classes, positive, 0.5 if threshold is None else threshold)
    table = pictures.table.assign(called=called).reset_index(drop=True)
    if masks is not None:
        table = table[table["path"].isin(masks.keys())]
        if table.empty:
            raise PathoError("no_masks", "masks", "are of none of these images", "Name them by the images' paths")
    of = positive if len(model.classes) == 2 else None
    return table if of is None else table[table["called"] == of], of


def _spread(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """`count` rows that come from as many groups as there are, and from the classes they were called in turn."""
    turn = table.groupby(["called", "group"]).cumcount()
    place = table.assign(turn=turn).sort_values("turn", kind="stable").groupby("called").cumcount()
    return table.assign(place=place).sort_values(["place", "path"], kind="stable").head(count)




def checks(facts: Mapping) -> dict[str, dict]:
    """Every check by name: what was asked, the number, what is demanded, whether it passed, and the reason if not."""
    drawn, over, steady = facts["randomisation"], facts["perturbation"], facts["stability"]
    alone = float(np.mean([part["rank_correlation"] for part in drawn["alone"]]))
    blank = facts["blank"] / facts["images"]
    evidence = _most("maps without any evidence", blank, BLANK,
                     "{number:.0%} of the maps are blank: nothing argues for the class the image was called")
    if blank == 1:
        return {"evidence": evidence}  # of maps that are not there nothing else can be asked
    found = {
        "evidence": evidence,
        "cascade": _most("likeness when all weights are drawn anew", drawn["cascade"][-1]["rank_correlation"], CHANGED,
                         "The maps stay alike when all weights are drawn anew (rank correlation {number:.3f}, at most "
                         f"{CHANGED} is allowed): they show the picture, not what was learnt"),
        "alone": _most("likeness when one part is drawn anew", alone, CHANGED,
                       "The maps stay alike when a part of the network is drawn anew (mean rank correlation "
                       f"{{number:.3f}}, at most {CHANGED} is allowed): they do not depend on all that was learnt"),
        "over_random": _above("gain over random maps", over["over_random"]["gain"],
                              "Deleting and inserting what the maps mark moves the probability no more than random "
                              "regions do"),
        "over_blob": _above("gain over a blob in the middle", over["over_blob"]["gain"],
                            "Deleting and inserting what the maps mark moves the probability no more than the middle "
                            "of the picture does"),
        "shift": _least("likeness after a shift of a pixel or two", steady["shift"],
                        "The maps change when the picture moves by a pixel or two"),
        "jpeg": _least("likeness after storing as JPEG", steady["jpeg"], "The maps change when the picture is stored "
                       "as JPEG"),
    }
    for name, words in heatchecks.BASELINES.items() if facts.get("localisation", {}).get("images") else ():
        found[f"over_{name}_on_masks"] = _above(
            f"energy on the masks over {words}", facts["localisation"][f"over_{name}"]["energy"],
            f"The maps put no more of their heat where it should lie than {words} would")
    return found


def _most(asked: str, value: float, bound: float, reason: str) -> dict:
    return {"asked": asked, "number": {"value": value, "low": None, "high": None}, "found": f"{value:.3f}",
            "demanded": f"at most {bound:g}", "passed": bool(value <= bound), "reason": reason.format(number=value)}


def _least(asked: str, number: dict, reason: str) -> dict:
    return {"asked": asked, "number": number, "found": metrics.readable(number), "demanded": f"at least {STEADY:g}",
            "passed": bool(number["value"] >= STEADY),
            "reason": f"{reason} (rank correlation {number['value']:.3f}, at least {STEADY:g} is demanded)"}


def _above(asked: str, number: dict, reason: str) -> dict:
    """Passed where the whole interval lies above 0; without one, where it has none because all images agree."""
    low = number["value"] if number["low"] is None else number["low"]
    return {"asked": asked, "number": number, "found": metrics.readable(number), "demanded": "interval above 0",
            "passed": bool(low > 0), "reason": f"{reason} (difference {metrics.readable(number)})"}


def _verdict(facts: Mapping) -> str:
    """A few sentences for a person."""
    failed, total = len(facts["reasons"]), len(facts["checks"])
    if not total:
        return f"There are no heatmaps to trust: no image is called {facts['of']}."
    called = f" called {facts['of']}" if facts["of"] else ""
    of = f"{facts['images']} images{called} of {facts['groups']} groups ({facts['method']} after {facts['block']})"
    words = [f"Do NOT trust these heatmaps: {failed} of {total} checks failed on {of}." if failed else
             f"Nothing speaks against these heatmaps: all {total} checks passed on {of}. That the evidence is "
             "medically sound is not among them."]
    words += ["So few groups prove little either way."] * (facts["groups"] < intervals.FEWEST_GROUPS)
    words += ["Whether they lie on what counts was not asked: there are no masks."] * ("localisation" not in facts)
    words += ["Maps of the other images were not examined: that something is absent has no place."] * bool(called)
    return " ".join(words)
