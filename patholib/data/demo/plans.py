"""Which demo images are drawn: patients, classes, stains and views, as tables."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from patholib.data.demo import drawing, skin_images, tissue_images

MASKS = "truth"  # the folder of the masks
# Subtype code: (class, folder, number of slides at 40X in the real BreakHis, whose root sets its share here).
SUBTYPES = {
    "A": ("benign", "adenosis", 4),
    "DC": ("malignant", "ductal_carcinoma", 38),
    "F": ("benign", "fibroadenoma", 10),
    "LC": ("malignant", "lobular_carcinoma", 5),
    "TA": ("benign", "tubular_adenoma", 7),
    "MC": ("malignant", "mucinous_carcinoma", 9),
    "PT": ("benign", "phyllodes_tumor", 3),
    "PC": ("malignant", "papillary_carcinoma", 6),
}
# Images per class in the real ISIC 2019 training set, in the order of its columns.
LESIONS = {"MEL": 4522, "NV": 12875, "BCC": 3323, "AK": 867, "BKL": 2624, "DF": 239, "VASC": 253, "SCC": 628}
SITES = ("anterior torso", "head/neck", "lower extremity", "upper extremity", "posterior torso", "palms/soles")


class Plan(NamedTuple):
    """What is drawn, before anything is."""

    rows: list[dict]  # one per image: path, mask, label, group, latent, key (of its random draws) ...
    tables: Callable[[pd.DataFrame], dict[str, pd.DataFrame]]  # the CSV files of the layout, of the finished rows
    paint: Callable[[dict], tuple[np.ndarray, np.ndarray]]  # a row's picture and mask, uint8
    prior: dict[str, float]  # the share of every class
    posteriors: Callable[[pd.Series], dict[str, pd.Series | np.ndarray]]  # p(class | latent), exactly, of every class


def separation(settings: dict) -> float:
    """d in AUC = Phi(d / sqrt(2)), the equal-variance binormal model."""
    return 2**0.5 * statistics.NormalDist().inv_cdf(settings["best_auc"])


def confusion(settings: dict) -> float:
    """q in AUC = 1 - q / 2: of a two-valued score, (1 + sensitivity - false positive rate) / 2."""
    return 2 * (1 - settings["best_auc"])


def _in_turn(weights: Mapping[str, float], count: int) -> list[str]:
    """`count` names, each at least once, then always the one furthest below its share (Sainte-Lague)."""
    names = list(weights)[:count]
    seen = Counter(names)
    while len(names) < count:
        names.append(max(weights, key=lambda name: weights[name] / (2 * seen[name] + 1)))
        seen[names[-1]] += 1
    return names


# --- BreakHis ---------------------------------------------------------------------------------------------------------


def plan_breakhis(settings: dict) -> Plan:
    """Cases of tissue, each with its slides and images, in the official folders."""
    seed = settings["seed"]
    weights = {code: slides**0.5 for code, (_, _, slides) in SUBTYPES.items()}  # the root, so that rare ones are seen
    codes = _in_turn(weights, settings["groups"])
    numbers = drawing.generator(seed, drawing.CASE).choice(np.arange(1000, 30000), settings["groups"], replace=False)
    cases = [f"14-{number}" for number in numbers]
    suffixes = [("", "AB", "CD", "C")[i % 4] for i in range(len(cases))]
    rows = [
        row
        for index, case in enumerate(zip(codes, cases, suffixes, strict=True))
        for row in _rows_of_case(settings, index, *case)
    ]
    share = sum(row["label"] == "malignant" for row in rows) / len(rows)

    def paint(row: dict) -> tuple[np.ndarray, np.ndarray]:
        rng = drawing.generator(seed, drawing.TISSUE, *row["key"])
        dye, mask = tissue_images.tissue(rng, settings["size"], row["latent"])
        return drawing.develop(dye, *drawing.stain(seed, row["group"], settings["patient_effect"])), mask

    def posteriors(latent: pd.Series) -> dict[str, np.ndarray]:
        odds = np.exp(separation(settings) * latent.to_numpy(float)) * share / (1 - share)
        return {"benign": 1 / (1 + odds), "malignant": odds / (1 + odds)}

    return Plan(rows, lambda table: {}, paint, {"benign": 1 - share, "malignant": share}, posteriors)


def _rows_of_case(settings: dict, index: int, code: str, case: str, suffix: str) -> list[dict]:
    """The images of one case; every fourth case comes as two slides."""
    d, rows = separation(settings), []
    label, subtype, _ = SUBTYPES[code]
    z = drawing.generator(settings["seed"], drawing.LATENT, index).standard_normal(settings["images_per_group"])
    z += d / 2 if label == "malignant" else -d / 2
    numbered: Counter = Counter()
    for image, latent in enumerate(z):
        slide = case + ("CD" if suffix == "AB" and image >= len(z) / 2 else suffix)
        numbered[slide] += 1
        tree = f"BreaKHis_v1/histology_slides/breast/{label}/SOB/{subtype}/SOB_{label[0].upper()}_{code}_{slide}"
        stem = f"SOB_{label[0].upper()}_{code}-{slide}-40-{numbered[slide]:03d}"
        rows.append(
            {
                "path": f"{tree}/40X/{stem}.png",
                "mask": f"{MASKS}/{stem}_mask.png",
                "label": label,
                "group": case,
                "latent": float(latent),
                "key": (index, image),
            }
        )
    return rows


# --- ISIC 2019 --------------------------------------------------------------------------------------------------------


def plan_isic(settings: dict) -> Plan:
    """Lesions of skin in several views, and the two CSV tables of the challenge."""
    seed = settings["seed"]
    floor = max(1, min(12, settings["groups"] // 16))  # enough lesions of the rare classes for three splits
    labels = [name for name in LESIONS for _ in range(floor)]
    labels += _in_turn(LESIONS, settings["groups"] - len(labels) + len(LESIONS))[len(LESIONS) :]
    prior = {name: labels.count(name) / len(labels) for name in LESIONS}
    rng = drawing.generator(seed, drawing.LESION)
    swapped = rng.random(len(labels)) < confusion(settings)
    others = rng.choice(list(LESIONS), len(labels), p=list(prior.values()))
    cues = [str(other) if swap else label for label, swap, other in zip(labels, swapped, others, strict=True)]
    rows = _rows_of_lesions(settings, labels, cues, rng)
    for number, row in zip(rng.permutation(len(rows)), rows, strict=True):  # the number says nothing about the class
        name_isic(row, int(number))

    def paint(row: dict) -> tuple[np.ndarray, np.ndarray]:
        lesion, view = row["key"]
        form = drawing.generator(seed, drawing.FORM, lesion)
        look = drawing.generator(seed, drawing.VIEW, lesion, view)
        return skin_images.skin(form, look, settings["size"], row["latent"], settings["patient_effect"])

    def posteriors(latent: pd.Series) -> dict[str, pd.Series]:
        q = confusion(settings)
        return {name: (1 - q) * (latent == name) + q * share for name, share in prior.items()}

    return Plan(rows, _isic_tables, paint, prior, posteriors)


def _rows_of_lesions(settings: dict, labels: list[str], cues: list[str], rng: np.random.Generator) -> list[dict]:
    """The images of all lesions: labels and the class whose cue is shown, of each lesion."""
    rows: list[dict] = []
    seen: Counter = Counter()
    mean = settings["images_per_group"]
    for index, (label, cue) in enumerate(zip(labels, cues, strict=True)):
        seen[label] += 1
        count = mean if mean == 1 else mean + seen[label] % 3 - 1
        lesion = "" if count == 1 and index % 2 else f"DEMO_{index:07d}"
        person = {
            "age": "" if rng.random() < 0.02 else str(5 * int(np.clip(rng.normal(11, 3.5), 1, 17))),
            "site": "" if rng.random() < 0.1 else str(rng.choice(SITES)),
            "sex": "" if rng.random() < 0.02 else str(rng.choice(["female", "male"])),
        }
        rows += [
            {"label": label, "latent": cue, "lesion": lesion, **person, "key": (index, view)} for view in range(count)
        ]
    return rows


def _isic_tables(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The two CSV files of the challenge."""
    table = table.sort_values("image")
    one_hot = {name: (table["label"] == name).astype(float) for name in LESIONS}
    metadata = {
        "image": "image",
        "age": "age_approx",
        "site": "anatom_site_general",
        "lesion": "lesion_id",
        "sex": "sex",
    }
    return {
        "ISIC_2019_Training_GroundTruth.csv": pd.DataFrame({"image": table["image"], **one_hot, "UNK": 0.0}),
        "ISIC_2019_Training_Metadata.csv": table[list(metadata)].rename(columns=metadata),
    }


def name_isic(row: dict, number: int) -> None:
    """Gives an ISIC row its number and all that follows from it."""
    row["image"] = f"ISIC_{number:07d}"
    row["path"] = f"ISIC_2019_Training_Input/{row['image']}.jpg"
    row["mask"] = f"{MASKS}/{row['image']}_mask.png"
    row["group"] = row["lesion"] or row["image"]
