"""Generated demo images in the BreakHis and ISIC 2019 layouts, with a planted cue whose best possible AUC is known."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from patholib.base.errors import PathoError, nearest
from patholib.base.files import into_place, read_json, write_json, write_table
from patholib.data.demo import plans
from patholib.data.demo.plans import MASKS

VERSION = 3  # of the pictures: raise it whenever the same settings give other files
MARKER, TRUTH = "DEMO.json", "truth.csv"
NOTICE = "Generated demo images, not medical data: no number obtained on them is a result."
FAULTS = ("truncated", "duplicate", "conflict", "leak")
DEFAULTS: dict[str, dict[str, Any]] = {
    "breakhis": {"groups": 80, "images_per_group": 6, "size": (350, 230)},
    "isic2019": {"groups": 240, "images_per_group": 2, "size": (300, 225)},
}
_PLANS = {"breakhis": plans.plan_breakhis, "isic2019": plans.plan_isic}


def write(
    folder: Path,
    layout: str = "breakhis",
    *,
    groups: int | None = None,
    images_per_group: int | None = None,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    best_auc: float = 0.97,
    patient_effect: float = 0.5,
    magnifications: Iterable[int] = (40,),
    faults: Iterable[str] = (),
) -> Path:
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
    _refuse_other_files(folder)
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


# --- settings, completeness -------------------------------------------------------------------------------------------


def _settings(layout, groups, images_per_group, size, seed, best_auc, patient_effect, magnifications, faults) -> dict:
    """All settings as JSON values, checked."""
    if layout not in DEFAULTS:
        raise PathoError("unknown_layout", str(layout), "is not a demo layout", nearest(layout, DEFAULTS))
    default = DEFAULTS[layout]
    faults, magnifications = sorted(faults), sorted(magnifications)
    for fault in faults:
        if fault not in FAULTS:
            raise PathoError("unknown_fault", str(fault), "is not a fault that can be planted", nearest(fault, FAULTS))
    settings = {
        "layout": layout,
        "groups": default["groups"] if groups is None else groups,
        "images_per_group": default["images_per_group"] if images_per_group is None else images_per_group,
        "size": list(default["size"] if size is None else size),
        "seed": seed,
        "best_auc": best_auc,
        "patient_effect": patient_effect,
        "magnifications": magnifications,
        "faults": faults,
    }
    for name, good, range_ in (
        ("groups", settings["groups"] >= 8, "at least 8, one per subtype or class"),
        ("images_per_group", settings["images_per_group"] >= 1, "at least 1"),
        (
            "size",
            len(settings["size"]) == 2 and settings["size"][0] >= settings["size"][1] >= 64,
            "(width, height), width >= height >= 64",
        ),
        ("seed", seed >= 0, "0 or more"),
        ("best_auc", 0.5 < best_auc < 1, "between 0.5 and 1, both excluded"),
        ("patient_effect", 0 <= patient_effect <= 2, "from 0 to 2"),
        (
            "magnifications",
            bool(magnifications) and set(magnifications) <= plans.MAGNIFICATIONS.keys(),
            "40, 100, 200, 400",
        ),
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


def _refuse_other_files(folder: Path) -> None:
    """A folder is overwritten only if it is absent, empty, or holds nothing but demo files."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    demo = folder.is_dir() and (folder / MARKER).is_file() and (folder / TRUTH).is_file()
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    known = _listed(folder) if demo else set()
    foreign = next((file for file in files if file not in known), None)
    if foreign or not folder.is_dir():
        reason = f"holds {foreign}, which is not a demo file" if foreign else "is a file, not a folder"
        raise PathoError("folder_not_demo", str(folder), reason, "Choose an empty folder for demo images")


# --- what is in the folder --------------------------------------------------------------------------------------------


def _fill(folder: Path, settings: dict) -> None:
    """Writes everything, the marker last."""
    plan = _PLANS[settings["layout"]](settings)
    table, classes = pd.DataFrame(plan.rows), list(plan.prior)
    for part in {Path(path).parent for path in [*table["path"], MASKS + "/x"]}:
        (folder / part).mkdir(parents=True, exist_ok=True)

    def draw(row: dict) -> None:
        image, mask = plan.paint(row)
        _encode(folder / row["path"], image)
        _encode(folder / row["mask"], mask)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # OpenCV leaves the interpreter lock while it draws
        list(pool.map(draw, plan.rows))
    copies = _plant_copies(folder, table, classes, settings)
    table = pd.concat([table, pd.DataFrame(copies["rows"])], ignore_index=True)
    best = {f"best_p_{name}": p for name, p in plan.posteriors(table["latent"]).items()}
    table = table.join(pd.DataFrame(best, index=table.index)).sort_values("path")
    faults = copies["faults"] + plans.planned_leaks(table)
    tables = plan.tables(table)
    for name, content in tables.items():
        write_table(folder / name, content)
    columns = ["path", "label", "group", "latent", *best, "mask"]
    write_table(folder / TRUTH, table[columns])
    write_json(
        folder / MARKER,
        {
            "what": f"demo images in the layout of {settings['layout']}, written by patholib.data.demo",
            "notice": NOTICE,
            "version": VERSION,
            "settings": settings,
            "best_auc": settings["best_auc"],  # in expectation
            "best_auc_of_these_images": _auc_of_best(table, classes),
            "prior": plan.prior,
            "images": len(table),
            "groups": int(table["group"].nunique()),
            "faults": faults,
            "tables": sorted(tables),
            "bytes": sum((folder / path).stat().st_size for path in table["path"]),
        },
    )


def _encode(path: Path, image: np.ndarray) -> None:
    """Writes an RGB or grey uint8 image as its suffix says."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix == ".jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 4]
    image = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    path.write_bytes(cv2.imencode(path.suffix, image, quality)[1].tobytes())


def _auc_of_best(table: pd.DataFrame, classes: list[str]) -> float:
    """Macro one-versus-rest AUC of the posteriors on exactly these images, from mean ranks (ties count one half)."""
    areas = []
    for name in classes:
        here, ranks = table["label"] == name, table[f"best_p_{name}"].rank()
        positives, negatives = int(here.sum()), int((~here).sum())
        areas.append((ranks[here].sum() - positives * (positives + 1) / 2) / (positives * negatives))
    return float(np.mean(areas))


def _plant_copies(folder: Path, table: pd.DataFrame, classes: list[str], settings: dict) -> dict[str, list]:
    """Plants the faults that are made of finished files: {"faults": what was done, "rows": the added images}."""
    single = table[table.groupby("group")["label"].transform("nunique") == 1].sort_values("path")
    first, second = (single[single["label"] == name] for name in classes[:2])
    done: list[dict] = []
    rows: list[dict] = []
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
        plans.name_isic(row, number)
    else:
        row["path"] = f"{row['path'][:-7]}{900 + number % 100}.png"
        row["mask"] = f"{plans.MASKS}/{Path(row['path']).stem}_mask.png"
    return row
