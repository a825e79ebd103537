"""Generated demo images in the BreakHis and ISIC 2019 layouts, with a planted cue whose best possible AUC is known."""

from __future__ import annotations

import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from PIL import Image

from patholib.base.errors import PathoError, nearest
from patholib.base.files import into_place, read_json, write_json, write_table
from patholib.data.demo import plans
from patholib.data.demo.plans import MASKS

VERSION = 5  # of the pictures: raise it whenever the same settings give other files
MARKER, TRUTH = "DEMO.json", "truth.csv"
NOTICE = "Generated demo images, not medical data: no number obtained on them is a result."
DEFAULTS: dict[str, dict[str, Any]] = {
    "breakhis": {"groups": 120, "images_per_group": 4, "size": (350, 230), "best_auc": 0.98},
    "isic2019": {"groups": 240, "images_per_group": 2, "size": (300, 225), "best_auc": 0.99},
}
ELSEWHERE = {"seed": 1, "groups": 60, "hue": 43, "quality": 20}  # hue: of 256 steps; quality: of JPEG
_PLANS = {"breakhis": plans.plan_breakhis, "isic2019": plans.plan_isic}


def write(
    folder: Path,
    layout: str = "breakhis",
    *,
    groups: int | None = None,
    images_per_group: int | None = None,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    best_auc: float | None = None,
    patient_effect: float = 0.5,
) -> Path:
    """Writes demo images into `folder`, or keeps the complete set of the same settings already there; returns `folder`.

    layout: "breakhis" (groups are cases, 350 x 230 PNG) or "isic2019" (groups are lesions, 300 x 225 JPEG).
    images_per_group: exact per BreakHis case; the mean per ISIC lesion, which has one fewer, as many or one more.
    size: (width, height) in pixels. best_auc: what no classifier can exceed in expectation, in (0.5, 1).
    None: that of DEFAULTS, as for groups, images_per_group and size.
    patient_effect: strength of what patients differ in (stain; skin and light), 0 none, 1 as real laboratories do.
    Raises PathoError: `bad_demo_setting`, `unknown_layout`, `folder_not_demo`.
    """
    folder = Path(folder)
    settings = _settings(layout, groups, images_per_group, size, seed, best_auc, patient_effect)
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


def elsewhere(folder: Path) -> Path:
    """Demo images as another hospital might have taken them, as a table path,label,group; returns the CSV.

    Tissue of other patients, whose hue is turned and which are stored as JPEG of low quality (ELSEWHERE): a model for
    the demo images of the layout "breakhis" is worse on them. A set that is there is kept.
    Raises PathoError: `bad_demo_setting`, `folder_not_demo`.
    """
    folder, hue, quality = Path(folder), ELSEWHERE["hue"], ELSEWHERE["quality"]
    drawn = write(folder / "drawn", seed=ELSEWHERE["seed"], groups=ELSEWHERE["groups"], images_per_group=2)
    marker = {"what": "demo images as of another hospital", "notice": NOTICE, "version": VERSION, "settings": ELSEWHERE}
    table = truth(drawn)
    names = [f"{number:04}.jpg" for number in range(len(table))]
    if not (folder / MARKER).is_file() or read_json(folder / MARKER) != marker:
        for name, path in zip(names, table["path"], strict=True):
            own, *others = Image.open(drawn / path).convert("HSV").split()
            turned = Image.merge("HSV", (own.point([(x + hue) % 256 for x in range(256)]), *others))
            turned.convert("RGB").save(folder / name, quality=quality)
        rows = pd.DataFrame({"path": names, "label": table["label"], "group": "B-" + table["group"]})
        write_table(folder / "elsewhere.csv", rows)
        write_json(folder / MARKER, marker)
    return folder / "elsewhere.csv"


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


def _settings(layout, groups, images_per_group, size, seed, best_auc, patient_effect) -> dict:
    """All settings as JSON values, checked."""
    if layout not in DEFAULTS:
        raise PathoError("unknown_layout", str(layout), "is not a demo layout", nearest(layout, DEFAULTS))
    given = {"groups": groups, "images_per_group": images_per_group, "size": size, "best_auc": best_auc}
    chosen = DEFAULTS[layout] | {name: value for name, value in given.items() if value is not None}
    chosen |= {"size": list(chosen["size"]), "seed": seed, "patient_effect": patient_effect}
    width, height = chosen["size"]
    for name, good, allowed in (
        ("groups", chosen["groups"] >= 8, "at least 8, one per subtype or class"),
        ("images_per_group", chosen["images_per_group"] >= 1, "at least 1"),
        ("size", width >= height >= 64, "(width, height), width >= height >= 64"),
        ("seed", seed >= 0, "0 or more"),
        ("best_auc", 0.5 < chosen["best_auc"] < 1, "between 0.5 and 1, both excluded"),
        ("patient_effect", 0 <= patient_effect <= 2, "from 0 to 2"),
    ):
        if not good:
            raise PathoError("bad_demo_setting", name, f"is {chosen[name]!r}", f"Allowed: {allowed}")
    return {"layout": layout} | chosen


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
    table = pd.DataFrame(plan.rows)
    for part in {Path(path).parent for path in [*table["path"], MASKS + "/x"]}:
        (folder / part).mkdir(parents=True, exist_ok=True)

    def draw(row: dict) -> None:
        image, mask = plan.paint(row)
        _encode(folder / row["path"], image)
        _encode(folder / row["mask"], mask)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # OpenCV leaves the interpreter lock while it draws
        list(pool.map(draw, plan.rows))
    best = {f"best_p_{name}": p for name, p in plan.posteriors(table["latent"]).items()}
    table = table.join(pd.DataFrame(best, index=table.index)).sort_values("path")
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
            "prior": plan.prior,
            "images": len(table),
            "groups": int(table["group"].nunique()),
            "tables": sorted(tables),
            "bytes": sum((folder / path).stat().st_size for path in table["path"]),
        },
    )


def _encode(path: Path, image: np.ndarray) -> None:
    """Writes an RGB or grey uint8 image as its suffix says."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix == ".jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 4]
    image = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    path.write_bytes(cv2.imencode(path.suffix, image, quality)[1].tobytes())
