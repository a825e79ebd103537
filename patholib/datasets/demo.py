"""Generated demo images in the BreakHis and ISIC 2019 layouts, with a planted cue whose best possible AUC is known.

BreakHis: one latent z per image, z ~ N(-d/2, 1) if benign and N(+d/2, 1) if malignant, is all that tells the classes
apart; it sets how crowded, large and dark the nuclei of one cell nest are. Hence AUC <= Phi(d / sqrt(2)) and
p(malignant | z) = sigmoid(d z + log prior odds). Stain belongs to the patient and says nothing about the class.
ISIC 2019: a lesion shows the cue of its class, or, with probability q, one drawn from the class prior. Hence
p(class | cue) = (1 - q) [class = cue] + q prior(class), and no one-versus-rest AUC exceeds 1 - q / 2 in expectation.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from patholib.errors import PathoError, nearest
from patholib.files import into_place, read_json, write_json, write_table

VERSION = 3  # of the pictures: raise it whenever the same settings give other files
MARKER, TRUTH, MASKS = "DEMO.json", "truth.csv", "truth"
NOTICE = "Generated demo images, not medical data: no number obtained on them is a result."
FAULTS = ("truncated", "duplicate", "conflict", "leak")
DEFAULTS = {"breakhis": {"groups": 80, "images_per_group": 6, "size": (350, 230)},
            "isic2019": {"groups": 240, "images_per_group": 2, "size": (300, 225)}}

# Subtype code: (class, folder, number of slides at 40X in the real BreakHis, whose root sets its share here).
SUBTYPES = {
    "A": ("benign", "adenosis", 4), "DC": ("malignant", "ductal_carcinoma", 38),
    "F": ("benign", "fibroadenoma", 10), "LC": ("malignant", "lobular_carcinoma", 5),
    "TA": ("benign", "tubular_adenoma", 7), "MC": ("malignant", "mucinous_carcinoma", 9),
    "PT": ("benign", "phyllodes_tumor", 3), "PC": ("malignant", "papillary_carcinoma", 6),
}
MAGNIFICATIONS = {40: 1.0, 100: 1.4, 200: 1.9, 400: 2.6}  # size of a nucleus: far below the true ratio, so a nest fits
# Images per class in the real ISIC 2019 training set, in the order of its columns.
LESIONS = {"MEL": 4522, "NV": 12875, "BCC": 3323, "AK": 867, "BKL": 2624, "DF": 239, "VASC": 253, "SCC": 628}
SITES = ("anterior torso", "head/neck", "lower extremity", "upper extremity", "posterior torso", "palms/soles")

# The purposes of random draws: the first key after the seed, so that no two draws share a stream.
_CASE, _LATENT, _STAIN, _TISSUE, _LESION, _CUE, _FORM, _VIEW = range(8)


def write(folder: Path, layout: str = "breakhis", *, groups: int | None = None, images_per_group: int | None = None,
          size: tuple[int, int] | None = None, seed: int = 0, best_auc: float = 0.97, patient_effect: float = 0.5,
          magnifications: Iterable[int] = (40,), faults: Iterable[str] = ()) -> Path:
    """Writes demo images into `folder`, or keeps the complete set of the same settings already there; returns `folder`.

    layout: "breakhis" (groups are cases, 350 x 230 PNG) or "isic2019" (groups are lesions, 300 x 225 JPEG).
    images_per_group: exact per BreakHis case; the mean per ISIC lesion, which has one fewer, as many or one more.
    size: (width, height) in pixels. best_auc: what no classifier can exceed in expectation, in (0.5, 1).
    patient_effect: strength of what patients differ in (stain; skin and light), 0 none, 1 as real laboratories do.
    magnifications: BreakHis only, dealt out in turn to the images of a case. faults: any of FAULTS.
    Raises PathoError: `bad_demo_setting`, `unknown_layout`, `unknown_fault`, `folder_not_demo`.
    """
    folder = Path(folder)
    settings = _settings(layout, groups, images_per_group, size, seed, best_auc, patient_effect, magnifications, faults)
    if _complete(folder, settings):
        return folder
    _refuse_foreign(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part"))
    try:
        part.chmod(0o755)  # mkdtemp makes it private; the folder is to be as any other
        _fill(part, settings)
        if folder.exists() and not _complete(folder, settings):
            shutil.rmtree(folder)
        if not folder.exists():  # else another process has just finished the same set
            into_place(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def truth(folder: Path) -> pd.DataFrame:
    """What is planted in each image, one row per file, sorted by path.

    Columns: path and mask (posix, relative to `folder`), label, group (case; lesion, or the image where it has none),
    latent (z, or the class whose cue is shown), best_p_<class> (the exact posterior, which no classifier can beat).
    """
    table = pd.read_csv(Path(folder) / TRUTH, dtype=str, keep_default_na=False)
    numbers = [name for name in table if name.startswith("best_p_")]
    numbers += ["latent"] if "best_p_malignant" in numbers else []
    for name in numbers:
        table[name] = table[name].map(float)  # exact on every pandas, which its fast parser is not
    return table


def stain(seed: int, case: str, patient_effect: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A patient's stain: optical density (RGB) per unit of each dye (2, 3), and of the empty slide (3,)."""
    rng = _rng(seed, _STAIN, *case.encode())
    # Directions after Ruifrok & Johnston (2001), haematoxylin a little bluer as BreakHis shows it.
    vectors = np.array([[0.63, 0.71, 0.32], [0.17, 0.86, 0.46]])
    vectors = vectors + patient_effect * rng.normal(0, [[0.06, 0.05, 0.06], [0.05, 0.05, 0.09]])
    strength = np.exp(patient_effect * rng.normal(0, [0.27, 0.28])) * [1.0, 0.68]
    vectors = np.clip(vectors, 0.02, None)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) * strength[:, None]
    empty = 0.08 + patient_effect * np.abs(rng.normal(0, 0.045)) + patient_effect * rng.normal(0, 0.022, 3)
    return vectors, np.clip(empty, 0.01, None)


# --- settings, completeness -------------------------------------------------------------------------------------------

def _settings(layout, groups, images_per_group, size, seed, best_auc, patient_effect, magnifications, faults) -> dict:
    """All settings as JSON values, checked."""
    if layout not in DEFAULTS:
        raise PathoError("unknown_layout", str(layout), "is no demo layout", nearest(layout, DEFAULTS))
    default = DEFAULTS[layout]
    faults, magnifications = sorted(faults), sorted(magnifications)
    for fault in faults:
        if fault not in FAULTS:
            raise PathoError("unknown_fault", str(fault), "is no fault that can be planted", nearest(fault, FAULTS))
    settings = {
        "layout": layout,
        "groups": default["groups"] if groups is None else groups,
        "images_per_group": default["images_per_group"] if images_per_group is None else images_per_group,
        "size": list(default["size"] if size is None else size),
        "seed": seed, "best_auc": best_auc, "patient_effect": patient_effect,
        "magnifications": magnifications, "faults": faults,
    }
    for name, good, range_ in (
        ("groups", settings["groups"] >= 8, "at least 8, one per subtype or class"),
        ("images_per_group", settings["images_per_group"] >= 1, "at least 1"),
        ("size", len(settings["size"]) == 2 and settings["size"][0] >= settings["size"][1] >= 64,
         "(width, height), width >= height >= 64"),
        ("seed", seed >= 0, "0 or more"),
        ("best_auc", 0.5 < best_auc < 1, "between 0.5 and 1, both excluded"),
        ("patient_effect", 0 <= patient_effect <= 2, "from 0 to 2"),
        ("magnifications", bool(magnifications) and set(magnifications) <= set(MAGNIFICATIONS), "40, 100, 200, 400"),
        ("magnifications", layout == "breakhis" or magnifications == [40], "left out for isic2019"),
    ):
        if not good:
            raise PathoError("bad_demo_setting", name, f"is {settings[name]!r}", f"Allowed: {range_}")
    return settings


def _listed(folder: Path) -> set[str]:
    """Every file a finished demo folder says it holds."""
    table = truth(folder)
    return {*table["path"], *table["mask"], MARKER, TRUTH, *read_json(folder / MARKER)["tables"]}


def _complete(folder: Path, settings: dict) -> bool:
    """Whether `folder` holds exactly this demo set: same settings and version, no file missing or cut short."""
    if not (folder / MARKER).is_file() or not (folder / TRUTH).is_file():
        return False
    marker = read_json(folder / MARKER)
    if marker.get("settings") != settings or marker.get("version") != VERSION:
        return False
    paths = [folder / path for path in truth(folder)["path"]]
    return all(path.is_file() for path in paths) and sum(path.stat().st_size for path in paths) == marker["bytes"]


def _refuse_foreign(folder: Path) -> None:
    """A folder is overwritten only if it is absent, empty, or holds nothing but demo files."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    demo = folder.is_dir() and (folder / MARKER).is_file() and (folder / TRUTH).is_file()
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    known = _listed(folder) if demo else set()
    foreign = next((file for file in files if file not in known), None)
    if foreign or not folder.is_dir():
        raise PathoError("folder_not_demo", str(folder), f"holds {foreign or 'no folder'}, which is not a demo file",
                         "Choose an empty folder for demo images")


# --- what is in the folder --------------------------------------------------------------------------------------------

def _fill(folder: Path, settings: dict) -> None:
    """Writes everything, the marker last."""
    plan, tables, paint, prior = (_plan_breakhis if settings["layout"] == "breakhis" else _plan_isic)(settings)
    table = pd.DataFrame(plan)
    classes = list(prior)
    for part in {Path(path).parent for path in [*table["path"], MASKS + "/x"]}:
        (folder / part).mkdir(parents=True, exist_ok=True)

    def draw(row: dict) -> None:
        image, mask = paint(row)
        _encode(folder / row["path"], image)
        _encode(folder / row["mask"], mask)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # OpenCV leaves the interpreter lock while it draws
        list(pool.map(draw, plan))
    copies = _plant_copies(folder, table, classes, settings)
    table = pd.concat([table, pd.DataFrame(copies["rows"])], ignore_index=True)
    table = table.join(_posteriors(table["latent"], prior, settings)).sort_values("path")
    faults = copies["faults"] + _planned_leaks(table)
    for name, content in tables(table).items():
        write_table(folder / name, content)
    columns = ["path", "label", "group", "latent", *(f"best_p_{name}" for name in classes), "mask"]
    write_table(folder / TRUTH, table[columns])
    write_json(folder / MARKER, {
        "what": f"demo images in the layout of {settings['layout']}, written by patholib.datasets.demo",
        "notice": NOTICE,
        "version": VERSION,
        "settings": settings,
        "best_auc": settings["best_auc"],  # in expectation
        "best_auc_of_these_images": _auc_of_best(table, classes),
        "prior": prior,
        "images": len(table),
        "groups": int(table["group"].nunique()),
        "faults": faults,
        "tables": sorted(tables(table)),
        "bytes": sum((folder / path).stat().st_size for path in table["path"]),
    })


def _encode(path: Path, image: np.ndarray) -> None:
    """Writes an RGB or grey uint8 image as its suffix says."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix == ".jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 4]
    image = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    path.write_bytes(cv2.imencode(path.suffix, image, quality)[1].tobytes())


def _posteriors(latent: pd.Series, prior: dict[str, float], settings: dict) -> pd.DataFrame:
    """p(class | what the image shows), exactly, as columns best_p_<class>."""
    if settings["layout"] == "breakhis":
        odds = np.exp(_separation(settings) * latent.to_numpy(float)) * prior["malignant"] / prior["benign"]
        p = {"benign": 1 / (1 + odds), "malignant": odds / (1 + odds)}
    else:
        q = _confusion(settings)
        p = {name: (1 - q) * (latent == name) + q * share for name, share in prior.items()}
    return pd.DataFrame({f"best_p_{name}": column for name, column in p.items()}, index=latent.index)


def _auc_of_best(table: pd.DataFrame, classes: list[str]) -> float:
    """Macro one-versus-rest AUC of the posteriors on exactly these images, from mean ranks (ties count one half)."""
    areas = []
    for name in classes:
        here, ranks = table["label"] == name, table[f"best_p_{name}"].rank()
        positives, negatives = int(here.sum()), int((~here).sum())
        areas.append((ranks[here].sum() - positives * (positives + 1) / 2) / (positives * negatives))
    return float(np.mean(areas))


def _separation(settings: dict) -> float:
    """d in AUC = Phi(d / sqrt(2)), the equal-variance binormal model."""
    return 2**0.5 * statistics.NormalDist().inv_cdf(settings["best_auc"])


def _confusion(settings: dict) -> float:
    """q in AUC = 1 - q / 2: of a two-valued score, (1 + sensitivity - false positive rate) / 2."""
    return 2 * (1 - settings["best_auc"])


def _in_turn(weights: dict[str, float], count: int) -> list[str]:
    """`count` names, each at least once, then always the one furthest below its share (Sainte-Lague)."""
    names = list(weights)[:count]
    seen = Counter(names)
    while len(names) < count:
        names.append(max(weights, key=lambda name: weights[name] / (2 * seen[name] + 1)))
        seen[names[-1]] += 1
    return names


def _plan_breakhis(settings: dict):
    """One row per image, the tables beside them (none), the painter, and the class prior."""
    seed, d = settings["seed"], _separation(settings)
    weights = {code: slides**0.5 for code, (_, _, slides) in SUBTYPES.items()}  # the root, so that rare ones are seen
    codes = _in_turn(weights, settings["groups"])
    numbers = _rng(seed, _CASE).choice(np.arange(1000, 30000), settings["groups"], replace=False)
    cases = [f"14-{number}" for number in numbers]
    suffixes = [("", "AB", "CD", "C")[i % 4] for i in range(len(cases))]
    if "leak" in settings["faults"]:  # the first malignant case is the first benign one's patient
        cases[1], suffixes[1] = cases[0], "EF"
    rows = []
    for index, (code, case, suffix) in enumerate(zip(codes, cases, suffixes, strict=True)):
        label, subtype, _ = SUBTYPES[code]
        z = _rng(seed, _LATENT, index).standard_normal(settings["images_per_group"])
        z += d / 2 if label == "malignant" else -d / 2
        numbered: Counter = Counter()
        for image, latent in enumerate(z):
            second = suffix == "AB" and image >= len(z) / 2  # every fourth case comes as two slides
            slide = case + ("CD" if second else suffix)
            magnification = settings["magnifications"][image % len(settings["magnifications"])]
            numbered[slide, magnification] += 1
            tree = f"BreaKHis_v1/histology_slides/breast/{label}/SOB/{subtype}/SOB_{label[0].upper()}_{code}_{slide}"
            stem = f"SOB_{label[0].upper()}_{code}-{slide}-{magnification}-{numbered[slide, magnification]:03d}"
            rows.append({"path": f"{tree}/{magnification}X/{stem}.png", "mask": f"{MASKS}/{stem}_mask.png",
                         "label": label, "group": case, "latent": float(latent),
                         "magnification": magnification, "key": (index, image)})
    share = sum(row["label"] == "malignant" for row in rows) / len(rows)

    def paint(row: dict) -> tuple[np.ndarray, np.ndarray]:
        dye, mask = tissue(_rng(seed, _TISSUE, *row["key"]), settings["size"], row["latent"],
                           MAGNIFICATIONS[row["magnification"]])
        return develop(dye, *stain(seed, row["group"], settings["patient_effect"])), mask

    return rows, lambda table: {}, paint, {"benign": 1 - share, "malignant": share}


def _plan_isic(settings: dict):
    """One row per image, the two CSV tables of the challenge, the painter, and the class prior."""
    seed, mean = settings["seed"], settings["images_per_group"]
    floor = max(1, min(8, settings["groups"] // 16))  # enough lesions of the rare classes for three splits
    labels = [name for name in LESIONS for _ in range(floor)]
    labels += _in_turn(LESIONS, settings["groups"] - len(labels) + len(LESIONS))[len(LESIONS):]
    prior = {name: labels.count(name) / len(labels) for name in LESIONS}
    rng = _rng(seed, _LESION)
    swapped = rng.random(len(labels)) < _confusion(settings)
    strangers = rng.choice(list(LESIONS), len(labels), p=list(prior.values()))
    rows, seen = [], Counter()
    for index, (label, swap, stranger) in enumerate(zip(labels, swapped, strangers, strict=True)):
        seen[label] += 1
        count = mean if mean == 1 else mean + seen[label] % 3 - 1
        lesion = "" if count == 1 and index % 2 else f"DEMO_{index:07d}"
        if "leak" in settings["faults"] and index == labels.index("BCC"):
            lesion = next(row["lesion"] for row in rows if row["label"] == "NV" and row["lesion"])
        person = {
            "age": "" if rng.random() < 0.02 else str(5 * int(np.clip(rng.normal(11, 3.5), 1, 17))),
            "site": "" if rng.random() < 0.1 else str(rng.choice(SITES)),
            "sex": "" if rng.random() < 0.02 else str(rng.choice(["female", "male"])),
        }
        rows += [{"label": label, "latent": str(stranger) if swap else label, "lesion": lesion, **person,
                  "key": (index, view)} for view in range(count)]
    for number, row in zip(rng.permutation(len(rows)), rows, strict=True):  # the number says nothing about the class
        _name_isic(row, int(number))

    def paint(row: dict) -> tuple[np.ndarray, np.ndarray]:
        lesion, view = row["key"]
        return skin(_rng(seed, _FORM, lesion), _rng(seed, _VIEW, lesion, view), settings["size"], row["latent"],
                    settings["patient_effect"])

    def tables(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
        table = table.sort_values("image")
        one_hot = {name: (table["label"] == name).astype(float) for name in LESIONS}
        metadata = {"image": "image", "age": "age_approx", "site": "anatom_site_general",
                    "lesion": "lesion_id", "sex": "sex"}
        return {"ISIC_2019_Training_GroundTruth.csv": pd.DataFrame({"image": table["image"], **one_hot, "UNK": 0.0}),
                "ISIC_2019_Training_Metadata.csv": table[list(metadata)].rename(columns=metadata)}

    return rows, tables, paint, prior


def _name_isic(row: dict, number: int) -> None:
    """Gives an ISIC row its number and all that follows from it."""
    row["image"] = f"ISIC_{number:07d}"
    row["path"] = f"ISIC_2019_Training_Input/{row['image']}.jpg"
    row["mask"] = f"{MASKS}/{row['image']}_mask.png"
    row["group"] = row["lesion"] or row["image"]


# --- planted faults ---------------------------------------------------------------------------------------------------

def _planned_leaks(table: pd.DataFrame) -> list[dict]:
    """Every patient or lesion that stands under two classes (planned before drawing)."""
    mixed = table.groupby("group")["label"].nunique()
    return [{"kind": "leak", "group": group, "paths": sorted(table.loc[table["group"] == group, "path"])}
            for group in mixed.index[mixed > 1]]


def _plant_copies(folder: Path, table: pd.DataFrame, classes: list[str], settings: dict) -> dict[str, list]:
    """Plants the faults that are made of finished files: {"faults": what was done, "rows": the added images}."""
    single = table[table.groupby("group")["label"].transform("nunique") == 1].sort_values("path")
    first, second = (single[single["label"] == name] for name in classes[:2])
    done, rows = [], []
    if "truncated" in settings["faults"]:
        path = folder / first["path"].iloc[-1]
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        done.append({"kind": "truncated", "paths": [first["path"].iloc[-1]]})
    for kind, others in (("duplicate", first), ("conflict", second)):
        if kind not in settings["faults"]:
            continue
        source = first.iloc[len(rows)]  # not the same image for both kinds
        target = others[others["group"] != source["group"]].iloc[0]
        copy = _as_new_image(target.to_dict(), len(table) + len(rows)) | {"latent": source["latent"]}
        for name in ("path", "mask"):
            shutil.copyfile(folder / source[name], folder / copy[name])
        rows.append(copy)
        done.append({"kind": kind, "paths": [source["path"], copy["path"]]})
    return {"faults": done, "rows": rows}


def _as_new_image(row: dict, number: int) -> dict:
    """A row for one more image of the same patient or lesion, under a name not in use."""
    row = dict(row)
    if "image" in row:
        _name_isic(row, number)
    else:
        row["path"] = f"{row['path'][:-7]}{900 + number % 100}.png"
        row["mask"] = f"{MASKS}/{Path(row['path']).stem}_mask.png"
    return row


# --- drawing: what both pictures are made of --------------------------------------------------------------------------

def _rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def _grid(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """x and y of every pixel centre, each (height, width) float32."""
    width, height = size
    return np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))


def _field(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, long: float,
           short: float | None = None) -> np.ndarray:
    """Smooth noise in [-1, 1] over coordinates x and y, with features `long` by `short` (default: the same) units."""
    lattice = rng.integers(0, 256, (40, 40), dtype=np.uint8)
    # Eight times finer, so that a linear look-up is smooth; two points of margin, so that it wraps without a seam.
    lattice = cv2.resize(np.pad(lattice, 2, "wrap"), None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC)[16:-16, 16:-16]
    at = (x * np.float32(8 / long)).astype(np.float32), (y * np.float32(8 / (short or long))).astype(np.float32)
    return cv2.remap(lattice, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP).astype(np.float32) / 127.5 - 1


def _outline(rng: np.random.Generator, irregular: float, points: int = 64) -> np.ndarray:
    """Radius of an irregular closed curve at `points` equal angles, mean 1."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    waves = np.arange(2, 7)
    size, phase = irregular * rng.normal(size=5) / waves**0.7, rng.uniform(0, 2 * np.pi, 5)
    return np.clip(1 + (size[:, None] * np.cos(waves[:, None] * angle + phase[:, None])).sum(0), 0.55, 1.45)


def _curve(centre, radii: np.ndarray, stretch=(1.0, 1.0), turn: float = 0.0) -> np.ndarray:
    """The (points, 2) polygon of a closed curve around `centre`."""
    angle = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    local = np.stack([radii * np.cos(angle) * stretch[0], radii * np.sin(angle) * stretch[1]], 1)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return local @ rotation + np.asarray(centre)


def _fixed(value) -> np.ndarray:
    """Coordinates in sixteenths of a pixel, as OpenCV draws with shift=4."""
    return np.rint(np.asarray(value) * 16).astype(int)


def _fill_curve(canvas: np.ndarray, polygon: np.ndarray, value: int) -> None:
    cv2.fillPoly(canvas, [_fixed(polygon).astype(np.int32)], value, cv2.LINE_AA, shift=4)


def _ellipse(canvas: np.ndarray, centre, axes, turn: float, value: int) -> None:
    """Fills an ellipse; axes in pixels, turn in radians."""
    (x, y), (a, b) = _fixed(centre).tolist(), _fixed(axes).tolist()
    cv2.ellipse(canvas, (x, y), (max(a, 4), max(b, 4)), float(np.degrees(turn)), 0, 360, value, -1, cv2.LINE_AA, 4)


def _soft(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


# --- drawing: tissue --------------------------------------------------------------------------------------------------

def tissue(rng: np.random.Generator, size: tuple[int, int], z: float,
           scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Haematoxylin and eosin (height, width, 2) float32, and the mask of the nest that shows z, uint8 0 / 255."""
    width, height = size
    unit = height / 230 * scale  # the length that is one pixel at 350 x 230 and 40X
    x, y = _grid(size)

    # The nest lies anywhere inside the centre square. It grows with z, so that the cue survives any stain; room is
    # kept for the largest one, so that z changes nothing else in the picture.
    largest = 0.26 * height * scale**0.4 * rng.uniform(0.94, 1.06)
    outline = _curve((0, 0), largest * _outline(rng, 0.16))
    room = np.maximum(height / 2 - np.abs(outline).max(0) - 2, 0)
    nest = np.array([width / 2, height / 2]) + rng.uniform(-1, 1, 2) * room
    grown = np.exp(0.15 * (np.clip(z, -3, 3) - 3))  # 0.41 to 1
    radius, outline = largest * grown, outline * grown + nest

    # Stroma: wavy collagen along one direction, with pale clefts and pinker bands.
    turn = rng.uniform(0, np.pi)
    bend = [_field(rng, x, y, 75 * unit) * 26 * unit + _field(rng, x, y, 22 * unit) * 3 * unit for _ in range(2)]
    along = x * np.cos(turn) + y * np.sin(turn) + bend[0]
    across = y * np.cos(turn) - x * np.sin(turn) + bend[1]
    coarse, fine = _field(rng, along, across, 55 * unit, 6 * unit), _field(rng, along, across, 22 * unit, 2.2 * unit)
    bands = _field(rng, along, across, 120 * unit, 45 * unit)
    eosin = 0.46 + 0.13 * coarse + 0.10 * fine + 0.30 * _soft(bands, -0.1, 0.8)
    haematoxylin = 0.15 + 0.05 * coarse + 0.04 * fine
    loose = _soft(_field(rng, along, across, 45 * unit, 5 * unit), 0.35, 0.75) * (1 - _soft(bands, -0.4, 0.3))
    empty = _soft(_field(rng, x, y, rng.uniform(75, 110) * unit), rng.uniform(0.3, 0.9), 1.0)  # fat, tears, vessels
    empty = np.maximum(_soft(empty, 0.25, 0.45), 0.85 * loose)

    nuclei = np.zeros((height, width), np.uint8)  # haematoxylin in hundredths
    cells = np.zeros((height, width), np.uint8)  # epithelium, then holes
    lumina = np.zeros((height, width), np.uint8)
    slope = (bend[1][1:, 1:] - bend[1][:-1, :-1]).astype(np.float64)
    for _ in range(int(rng.integers(70, 190) / scale**2 * width / height / 1.52)):
        at = rng.uniform((0, 0), (width - 2, height - 2))
        lean = turn + 0.5 * slope[int(at[1]), int(at[0])] + rng.normal(0, 0.25)
        axes = rng.uniform([2, 0.7], [3.6, 1.1]) * unit
        _ellipse(nuclei, at, axes, lean, int(rng.integers(60, 105)))
    taken = [(*nest, 1.15 * largest)]
    for _ in range(rng.integers(0, 4)):
        _lymphocytes(rng, nuclei, size, unit, taken)
    for _ in range(rng.integers(0, 7)):
        _lobule(rng, (nuclei, cells, lumina), size, unit, taken)
    cleft = np.zeros((height, width), np.uint8)  # the tissue shrinks away from the nest here and there
    _fill_curve(cleft, (outline - nest) * 1.09 + nest, 255)
    cleft = cleft.astype(np.float32) / 255 * _soft(_field(rng, x, y, 30 * unit), -0.3, 0.5)

    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [np.rint(outline).astype(np.int32)], 255)
    nest_nuclei = np.zeros_like(nuclei)
    _nest(rng.spawn(1)[0], nest_nuclei, outline, nest, radius, unit, z)  # own stream: z changes nothing else

    inside = cv2.GaussianBlur(mask, (0, 0), 1.2 * unit).astype(np.float32) / 255
    epithelium = np.maximum(cells.astype(np.float32) / 255, inside)
    hole = lumina.astype(np.float32) / 255 * (1 - inside)
    keep = (1 - np.maximum(empty, 0.8 * cleft) * (1 - epithelium)) * (1 - hole)
    chromatin = 1 + 0.18 * _field(rng, x, y, 1.6 * unit)
    grain = _field(rng, x, y, 2.5 * unit)
    eosin = (eosin * (1 - epithelium) + (0.40 + 0.06 * grain) * epithelium) * keep
    haematoxylin = (haematoxylin * (1 - epithelium) + (0.30 + 0.05 * grain) * epithelium) * keep
    dots = np.where(mask > 0, nest_nuclei, nuclei).astype(np.float32) / 100 * chromatin
    dots *= np.where(epithelium > 0.3, 1 - hole, 1 - _soft(empty, 0.5, 0.9))
    haematoxylin = np.maximum(haematoxylin, dots)
    eosin = eosin * (1 - 0.35 * np.minimum(dots, 1))
    dye = np.stack([haematoxylin, eosin], -1)
    dye += rng.integers(-24, 25, dye.shape, dtype=np.int8).astype(np.float32) / 800
    return np.maximum(dye, 0), mask


def _nest(rng, canvas, outline, centre, radius, unit, z) -> None:
    """The cue: from few, small, pale, even nuclei (z = -4) to crowded, large, dark, uneven ones (z = +4)."""
    z = float(np.clip(z, -5.5, 5.5))
    covered = max(0.40 + 0.09 * z, 0.03)  # share of the nest that is nucleus
    step = (7.0 + 0.55 * z) * unit
    count = int(1.6 * radius / step) + 2
    column, row = np.meshgrid(np.arange(-count, count + 1), np.arange(-count, count + 1))
    points = np.stack([(column + 0.5 * (row % 2)) * step, row * step * 0.866], -1).reshape(-1, 2)
    points = points + centre + rng.normal(0, 0.13 * step, points.shape)
    uneven = 0.05 + 0.03 * (z + 5.5)
    areas = np.exp(rng.normal(0, uneven, len(points)))
    areas *= covered * 0.866 * step**2 / areas.mean()
    for at, area in zip(points, areas, strict=True):
        if cv2.pointPolygonTest(outline.astype(np.float32), (float(at[0]), float(at[1])), True) < -0.3 * step:
            continue
        longer = np.exp(abs(rng.normal(0, uneven)))
        size = np.sqrt(area / np.pi) * np.array([longer, 1 / longer])
        _ellipse(canvas, at, size, rng.uniform(0, np.pi), int(np.clip(100 + 9 * z + rng.normal(0, 6), 40, 160)))


def _lymphocytes(rng, canvas, size, unit, taken) -> None:
    """A loose swarm of small round dark nuclei, clear of the nest."""
    reach = rng.uniform(14, 30) * unit
    at = _free(rng, size, reach, taken)
    if at is None:
        return
    for point in rng.normal(at, reach / 2, (int(rng.integers(30, 90)), 2)):
        if np.hypot(*(point - taken[0][:2])) > taken[0][2]:
            _ellipse(canvas, point, np.full(2, rng.uniform(1.2, 1.7)) * unit, 0, int(rng.integers(95, 135)))


def _lobule(rng, layers, size, unit, taken) -> None:
    """A group of ducts: each a ring of nuclei around an open lumen."""
    reach = rng.uniform(20, 46) * unit
    centre = _free(rng, size, 0.6 * reach, taken)
    if centre is None:
        return
    ducts: list[tuple] = []
    for _ in range(30):
        radius = rng.uniform(8, 18) * unit
        at = centre + rng.normal(0, reach / 1.6, 2)
        clear = all(np.hypot(at[0] - x, at[1] - y) > radius + r for x, y, r in [*ducts, taken[0]])
        if clear:
            ducts.append((*at, radius * 1.1))
            _duct(rng, layers, at, radius, unit)
    taken.append((*centre, reach))


def _duct(rng, layers, at, radius, unit) -> None:
    nuclei, cells, lumina = layers
    shape = _outline(rng, 0.10)
    stretch, turn = (rng.uniform(1, 1.3), rng.uniform(0.75, 1)), rng.uniform(0, np.pi)
    wall = min(rng.uniform(4.5, 6.5) * unit, 0.75 * radius)
    _fill_curve(cells, _curve(at, radius * shape, stretch, turn), 255)
    _fill_curve(lumina, _curve(at, (radius - wall) * shape, stretch, turn), 245)
    dark = int(rng.integers(85, 115))
    ring = _curve(at, (radius - 0.5 * wall) * shape, stretch, turn)
    steps = np.r_[0, np.hypot(*np.diff(ring, axis=0, append=ring[:1]).T).cumsum()]
    places = np.arange(0, steps[-1] - 1.5 * unit, 3.4 * unit)
    for place in places:
        point = ring[np.searchsorted(steps, place, "right") - 1] + rng.normal(0, 0.35 * unit, 2)
        outward = np.arctan2(*(point - at)[::-1])
        _ellipse(nuclei, point, np.array([rng.uniform(1.7, 2.3), rng.uniform(1.2, 1.6)]) * unit, outward,
                 dark + int(rng.integers(-12, 13)))


def _free(rng, size, reach, taken) -> np.ndarray | None:
    """A random place whose disc touches none of `taken`, or None after twenty tries."""
    for _ in range(20):
        at = rng.uniform((0, 0), size)
        if all(np.hypot(at[0] - x, at[1] - y) > reach + r for x, y, r in taken):
            return at
    return None


def develop(dye: np.ndarray, vectors: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """The RGB picture of dye amounts by Beer-Lambert's law, intensity = 255 exp(-(dye @ vectors + empty)), uint8."""
    density = dye[..., :1] * vectors[0] + dye[..., 1:] * vectors[1] + empty  # (height, width, 3)
    picture = np.rint(255 * np.exp(-density)).astype(np.uint8)
    # Blurred as bytes, as a lens does it to light: OpenCV's blur of uint8 is the same to the bit on every processor.
    return cv2.GaussianBlur(picture, (0, 0), 0.55 * len(picture) / 230)


# --- drawing: skin ----------------------------------------------------------------------------------------------------

# Class: two ends of the lesion's colour (RGB, 0 to 1), irregular outline, width of the border, structures in order.
# The colours overlap on purpose: the structures are what tells the classes apart.
CUES = {
    "MEL": ((0.52, 0.33, 0.25), (0.30, 0.19, 0.16), 0.20, 0.16, ("network", "blotches", "veil")),
    "NV": ((0.66, 0.43, 0.31), (0.42, 0.26, 0.19), 0.05, 0.30, ("network", "globules")),
    "BCC": ((0.82, 0.58, 0.53), (0.66, 0.45, 0.40), 0.12, 0.35, ("nests", "vessels")),
    "AK": ((0.82, 0.54, 0.48), (0.68, 0.42, 0.36), 0.12, 0.60, ("strawberry",)),
    "BKL": ((0.70, 0.52, 0.38), (0.44, 0.29, 0.22), 0.14, 0.07, ("ridges", "milia")),
    "DF": ((0.72, 0.51, 0.44), (0.52, 0.34, 0.28), 0.06, 0.45, ("network", "scar")),
    "VASC": ((0.72, 0.36, 0.36), (0.48, 0.22, 0.26), 0.09, 0.15, ("lacunae",)),
    "SCC": ((0.80, 0.54, 0.46), (0.62, 0.40, 0.33), 0.14, 0.30, ("hairpins", "crust")),
}


def skin(form: np.random.Generator, view: np.random.Generator, size: tuple[int, int], cue: str,
         patient_effect: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A dermoscopy picture (height, width, 3) uint8 of lesion `form` in one `view`, and its mask, uint8 0 / 255."""
    width, height = size
    light, dark, irregular, border, structures = CUES[cue]

    # Where this view puts the lesion: u, v are its own coordinates, 1 at the mean radius.
    radius = height * form.uniform(0.23, 0.32) * view.uniform(0.93, 1.07)
    turn = form.uniform(0, 2 * np.pi) + view.normal(0, 0.25)
    stretch = np.exp(form.normal(0, 0.10))
    room = max(height / 2 - 1.2 * radius, 0)
    centre = np.array([width / 2, height / 2]) + (0.6 * form.uniform(-1, 1, 2) + 0.4 * view.uniform(-1, 1, 2)) * room
    x, y = _grid(size)
    u = (((x - centre[0]) * np.cos(turn) + (y - centre[1]) * np.sin(turn)) / (radius * stretch)).astype(np.float32)
    v = (((y - centre[1]) * np.cos(turn) - (x - centre[0]) * np.sin(turn)) / radius * stretch).astype(np.float32)
    outline = _outline(form, irregular)
    angle = (np.arctan2(v, u).astype(np.float64) / (2 * np.pi) * 64) % 64
    edge = np.interp(angle, np.arange(65), np.r_[outline, outline[0]]).astype(np.float32)
    ragged = 0.05 * _field(form, u, v, 0.16) if border < 0.2 else 0.03 * _field(form, u, v, 0.4)
    depth = edge - np.hypot(u, v) + ragged  # 0 at the outline, up to 1 inside
    inside = _soft(depth, -border / 2, border / 2)

    # Skin: tone and light belong to the lesion (its patient and camera), mottling and creases to the place.
    tone = np.array([0.87, 0.69, 0.64]) * np.exp(patient_effect * form.normal(0, 0.09))
    redness, warmth = patient_effect * form.uniform([-0.03, -0.14], [0.13, 0.14])
    cast = np.exp([0.2 * redness, -redness, -0.4 * redness - warmth])
    picture = np.ones((height, width, 3), np.float32) * tone.astype(np.float32)
    picture *= (1 + 0.05 * _field(form, u, v, 0.9) + 0.025 * _field(form, u, v, 0.25))[..., None]
    pink = _soft(_field(form, u, v, 0.5), 0.1, 1.0)
    picture = _blend(picture, (0.85, 0.52, 0.50), 0.30 * pink)
    creases = _cells(form, u, v, 0.11, reach=5.5)
    picture *= (1 - 0.05 * _soft(creases, 0.5, 0.8))[..., None]

    share = form.uniform()
    colour = np.array(light) * (1 - share) + np.array(dark) * share
    uneven = 0.5 + 0.5 * _field(form, u, v, 0.55) + 0.25 * _field(form, u, v, 0.2)
    opaque = inside * np.clip(0.78 + 0.2 * uneven, 0, 1) * (0.75 if border > 0.4 else 0.95)
    picture = _blend(picture, colour, opaque)
    picture *= (1 - 0.22 * inside * uneven)[..., None]
    for structure in structures:
        picture = _STRUCTURES[structure](form, picture, u, v, depth, inside, np.array(colour))

    # Nothing in skin is straight: one smooth displacement bends skin, lesion and structures together.
    bent = [c + radius * (0.07 * _field(form, u, v, 0.45) + 0.02 * _field(form, u, v, 0.13)) for c in (x, y)]
    picture, depth = (cv2.remap(a.astype(np.float32), *bent, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
                      for a in (picture, depth))
    picture = cv2.GaussianBlur(picture, (0, 0), 0.8 * height / 225)
    _hairs(form, view, picture)
    _bubbles(view, picture)
    corner = np.hypot((x - width / 2) / width, (y - height / 2) / height)
    picture *= (1 - form.uniform(0.1, 0.5) * _soft(corner, 0.35, 0.75))[..., None]
    picture *= (cast * np.exp(view.normal(0, 0.03))).astype(np.float32)
    picture += view.integers(-24, 25, picture.shape, dtype=np.int8).astype(np.float32) / 1800
    mask = np.where(depth > 0, 255, 0).astype(np.uint8)
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8), mask


def _blend(picture: np.ndarray, colour, alpha: np.ndarray) -> np.ndarray:
    """`colour` laid over `picture` with opacity `alpha` (height, width)."""
    return picture + (np.asarray(colour, np.float32) - picture) * alpha[..., None].astype(np.float32)


def _cells(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, step: float, reach: float = 2.2) -> np.ndarray:
    """Distance to the nearest point of a jittered lattice, in steps: 0 on it, about 0.6 on the walls of its cell."""
    count = int(reach / step)
    column, row = np.meshgrid(np.arange(-count, count + 1), np.arange(-count, count + 1))
    points = np.stack([column + 0.5 * (row % 2), row * 0.866], -1).reshape(-1, 2).astype(np.float64)
    points = (points + rng.normal(0, 0.2, points.shape)) * step
    at = np.rint(_to_pixels(points, u, v)).astype(int)
    height, width = u.shape
    at = at[(at[:, 0] >= 0) & (at[:, 0] < width) & (at[:, 1] >= 0) & (at[:, 1] < height)]
    canvas = np.full(u.shape, 255, np.uint8)
    canvas[at[:, 1], at[:, 0]] = 0
    return cv2.distanceTransform(canvas, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) / (step * _pixels_per_unit(u, v))


def _pixels_per_unit(u: np.ndarray, v: np.ndarray) -> float:
    """Length in pixels of one unit of the lesion's coordinates."""
    return float(1 / np.hypot(u[0, 1] - u[0, 0], v[0, 1] - v[0, 0]))


def _to_pixels(points: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Lesion coordinates (n, 2) as pixel positions (n, 2) x, y: u and v are affine in x and y."""
    matrix = np.array([[u[0, -1] - u[0, 0], u[-1, 0] - u[0, 0]], [v[0, -1] - v[0, 0], v[-1, 0] - v[0, 0]]], np.float64)
    matrix /= [u.shape[1] - 1, u.shape[0] - 1]
    return np.linalg.solve(matrix, (np.asarray(points) - [u[0, 0], v[0, 0]]).T).T


def _spots(rng, u, v, count: int, reach: float, low: float, high: float) -> np.ndarray:
    """Opacity of `count` round spots of radius `low` to `high` units within `reach` of the centre."""
    layer = np.zeros(u.shape, np.uint8)
    unit = _pixels_per_unit(u, v)
    angle, distance = rng.uniform(0, 2 * np.pi, count), reach * np.sqrt(rng.uniform(0, 1, count))
    places = _to_pixels(np.stack([distance * np.cos(angle), distance * np.sin(angle)], 1), u, v)
    for at in places:
        axes = rng.uniform(low, high) * unit * np.exp(rng.normal(0, 0.15, 2))
        _ellipse(layer, at, axes, rng.uniform(0, np.pi), 255)
    return layer.astype(np.float32) / 255


def _network(rng, picture, u, v, depth, inside, colour):
    """Pigment network: a brown mesh, thinning out towards the border."""
    mesh = _soft(_cells(rng, u, v, 0.19), 0.30, 0.52)
    return _blend(picture, 0.5 * colour, 0.5 * mesh * _soft(depth, 0.0, 0.25))


def _globules(rng, picture, u, v, depth, inside, colour):
    """A few brown dots near the centre."""
    return _blend(picture, 0.45 * colour, 0.7 * _spots(rng, u, v, int(rng.integers(3, 9)), 0.45, 0.03, 0.055) * inside)


def _blotches(rng, picture, u, v, depth, inside, colour):
    """Off-centre black-brown areas."""
    side = rng.uniform(0, 2 * np.pi)
    lean = u * np.cos(side) + v * np.sin(side)
    area = _soft(_field(rng, u, v, 0.5) + 0.9 * lean, 0.05, 0.45)
    return _blend(picture, (0.16, 0.10, 0.09), 0.75 * area * inside)


def _veil(rng, picture, u, v, depth, inside, colour):
    """A blue-white veil over a part of the lesion."""
    side, away = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.4)
    near = np.hypot(u - away * np.cos(side), v - away * np.sin(side)) + 0.25 * _field(rng, u, v, 0.35)
    return _blend(picture, (0.50, 0.51, 0.58), 0.65 * (1 - _soft(near, 0.15, 0.55)) * inside)


def _nests(rng, picture, u, v, depth, inside, colour):
    """Blue-grey ovoid nests."""
    spots = cv2.GaussianBlur(_spots(rng, u, v, int(rng.integers(4, 9)), 0.75, 0.08, 0.17), (0, 0), 1.2)
    return _blend(picture, (0.42, 0.37, 0.42), 0.65 * spots * inside)


def _vessels(rng, picture, u, v, depth, inside, colour):
    """Arborising vessels: red trunks that start at the border and branch."""
    layer, unit = np.zeros(u.shape, np.uint8), _pixels_per_unit(u, v)
    for trunk in rng.uniform(0, 2 * np.pi, int(rng.integers(4, 7))):
        start = np.array([np.cos(trunk), np.sin(trunk)]) * 0.95
        branches = [(start, trunk + np.pi + rng.normal(0, 0.5), 0.04)]
        while branches:
            at, heading, thick = branches.pop()
            line = [at]
            for _ in range(int(rng.integers(4, 8))):
                heading += rng.normal(0, 0.35)
                line.append(line[-1] + 0.09 * np.array([np.cos(heading), np.sin(heading)]))
            cv2.polylines(layer, [_fixed(_to_pixels(np.array(line), u, v)).astype(np.int32)], False, 255,
                          max(1, round(thick * unit)), cv2.LINE_AA, 4)
            if thick > 0.018:
                branches += [(line[-1], heading + turn * rng.uniform(0.4, 0.9), 0.65 * thick) for turn in (-1, 1)]
    return _blend(picture, (0.68, 0.20, 0.22), 0.75 * layer.astype(np.float32) / 255 * _soft(depth, -0.05, 0.1))


def _strawberry(rng, picture, u, v, depth, inside, colour):
    """Pale follicles in a red mesh, and whitish scale."""
    cells = _cells(rng, u, v, 0.24)
    picture = _blend(picture, (0.78, 0.34, 0.32), 0.55 * _soft(cells, 0.25, 0.5) * inside)
    picture = _blend(picture, (0.95, 0.86, 0.72), 0.85 * (1 - _soft(cells, 0.14, 0.30)) * inside)
    scale = _soft(_field(rng, u, v, 0.35, 0.12), 0.35, 0.7)
    return _blend(picture, (0.95, 0.90, 0.85), 0.55 * scale * inside)


def _ridges(rng, picture, u, v, depth, inside, colour):
    """Brain-like fissures."""
    folds = np.abs(_field(rng, u + 0.15 * _field(rng, u, v, 0.3), v, 0.22))
    return _blend(picture, 0.55 * colour, 0.6 * (1 - _soft(folds, 0.05, 0.25)) * inside)


def _milia(rng, picture, u, v, depth, inside, colour):
    """Bright milia-like cysts and dark comedo-like openings."""
    cysts = _spots(rng, u, v, int(rng.integers(9, 17)), 0.8, 0.04, 0.085)
    openings = _spots(rng, u, v, int(rng.integers(5, 10)), 0.8, 0.035, 0.075)
    picture = _blend(picture, (0.97, 0.92, 0.80), 0.9 * cysts * inside)
    return _blend(picture, (0.20, 0.12, 0.08), 0.85 * openings * inside)


def _scar(rng, picture, u, v, depth, inside, colour):
    """A white scar-like centre."""
    near = np.hypot(u, v) + 0.18 * _field(rng, u, v, 0.3)
    return _blend(picture, (0.95, 0.88, 0.84), 0.9 * (1 - _soft(near, 0.22, 0.55)))


def _lacunae(rng, picture, u, v, depth, inside, colour):
    """Sharply bounded red to purple lagoons."""
    hue = np.array([0.62, 0.10, 0.18]) * (1 - (t := rng.uniform())) + np.array([0.36, 0.08, 0.26]) * t
    lagoons = 1 - _soft(_cells(rng, u, v, rng.uniform(0.32, 0.5)) + 0.12 * _field(rng, u, v, 0.2), 0.36, 0.5)
    return _blend(picture, hue, 0.8 * lagoons * _soft(depth, 0.0, 0.12))


def _hairpins(rng, picture, u, v, depth, inside, colour):
    """Short looped vessels, radial, all along the border."""
    layer, unit = np.zeros(u.shape, np.uint8), _pixels_per_unit(u, v)
    for angle in np.linspace(0, 2 * np.pi, 20, endpoint=False) + rng.normal(0, 0.13, 20):
        ray, side = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
        inner, outer = rng.uniform(0.52, 0.7), rng.uniform(0.75, 0.92)
        line = np.array([ray * inner - side * 0.025, ray * outer - side * 0.03, ray * (outer + 0.03),
                         ray * outer + side * 0.03, ray * inner + side * 0.025])
        cv2.polylines(layer, [_fixed(_to_pixels(line, u, v)).astype(np.int32)], False, 255,
                      max(1, round(0.02 * unit)), cv2.LINE_AA, 4)
    return _blend(picture, (0.66, 0.16, 0.18), 0.7 * layer.astype(np.float32) / 255)


def _crust(rng, picture, u, v, depth, inside, colour):
    """A yellow keratin mass in the middle, with blood spots."""
    near = np.hypot(u, v) + 0.22 * _field(rng, u, v, 0.22)
    mass = 1 - _soft(near, 0.38, 0.50)
    picture = _blend(picture, (0.84, 0.70, 0.50), 0.85 * mass)
    picture = _blend(picture, (0.97, 0.92, 0.78), 0.8 * mass * _soft(_field(rng, u, v, 0.14), 0.1, 0.5))
    return _blend(picture, (0.36, 0.08, 0.06), 0.9 * _spots(rng, u, v, int(rng.integers(4, 9)), 0.4, 0.04, 0.09))


_STRUCTURES = {
    "network": _network, "globules": _globules, "blotches": _blotches, "veil": _veil, "nests": _nests,
    "vessels": _vessels, "strawberry": _strawberry, "ridges": _ridges, "milia": _milia, "scar": _scar,
    "lacunae": _lacunae, "hairpins": _hairpins, "crust": _crust,
}


def _hairs(form, view, picture: np.ndarray) -> None:
    """Draws a few curved hairs over one picture in three."""
    if form.uniform() > 0.35:
        return
    height, width = picture.shape[:2]
    layer = np.zeros((height, width), np.uint8)
    t = np.linspace(0, 1, 24)[:, None]
    for _ in range(int(view.integers(2, 10))):
        ends = view.uniform((0, 0), (width, height), (2, 2))
        bend = view.normal(0, 0.15 * height, 2)
        line = ends[0] * (1 - t) + ends[1] * t + 4 * t * (1 - t) * bend
        cv2.polylines(layer, [_fixed(line).astype(np.int32)], False, int(view.integers(110, 210)),
                      max(1, round(height / 225)), cv2.LINE_AA, 4)
    picture[:] = _blend(picture, (0.16, 0.11, 0.09), layer.astype(np.float32) / 255)


def _bubbles(view, picture: np.ndarray) -> None:
    """Draws the glints of the immersion fluid."""
    height, width = picture.shape[:2]
    layer = np.zeros((height, width), np.uint8)
    for at in view.uniform((0, 0), (width, height), (int(view.integers(0, 7)), 2)):
        axes = view.uniform(0.4, 1.6, 2) * height / 225
        _ellipse(layer, at, axes, view.uniform(0, np.pi), int(view.integers(120, 240)))
    picture[:] = _blend(picture, (1, 1, 1), layer.astype(np.float32) / 255)
