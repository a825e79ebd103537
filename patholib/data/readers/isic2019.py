"""ISIC 2019: dermoscopy of skin lesions, eight classes, listed in two official CSV files.

Combalia et al. 2019, "BCN20000: Dermoscopic Lesions in the Wild"; Tschandl et al. 2018, "The HAM10000 Dataset".
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import pandas as pd

from patholib.base.errors import PathoError
from patholib.data import columns
from patholib.data.csvfiles import read_csv, stop_on
from patholib.data.manifest import Manifest, first, in_several
from patholib.data.readers.folders import demo_folder, not_there, walk
from patholib.data.readers.reader import Reader

CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")  # in the order of the official columns
_WHAT = "ISIC 2019 (ISIC_2019_Training_GroundTruth.csv)"
TRUTH, METADATA = "ISIC_2019_Training_GroundTruth.csv", "ISIC_2019_Training_Metadata.csv"
FACTS = {"lesion_id": "lesion", "anatom_site_general": "site", "age_approx": "age", "sex": "sex"}  # official name: ours
INPUT = "ISIC_2019_Training_Input"
COPY = "_downsampled"  # ends the name of the archive's smaller copy of a picture


def holds(folder: Path) -> bool:
    """Whether the official GroundTruth file is in `folder`."""
    return (Path(folder) / TRUTH).is_file()


def read(root: Path, missing: str = "error") -> Manifest:
    """The manifest of ISIC 2019: GroundTruth joined with Metadata and with the files in ISIC_2019_Training_Input.

    root: the folder of the two CSV files; images may lie in subfolders, or beside the CSV.
    missing: "error", or "skip" to go on with the rows that have a file; either way the rest is counted in `found`.
    An image without lesion_id is a lesion of its own (its name); a smaller copy belongs to its picture's lesion.
    Classes without an image are left out. Text: age "55", age_band "50-59", "" where unknown; collection: what
    the lesion's number begins with (HAM, BCN, MSK), the clinics an image is from.
    Raises PathoError: `data_root`, `missing_file`, `csv_format`, `bad_label`, `unknown_class_in_training`,
    `name_collision`, `label_conflict`, `rows_without_files`, `files_without_rows`.
    """
    if missing not in ("error", "skip"):
        raise PathoError("bad_parameter", f"missing={missing!r}", "is not known", "Use 'error' or 'skip'")
    root = Path(root)
    if not holds(root):
        raise not_there(_WHAT, holds, root)
    rows = list_rows(root)
    paths, left = _files(root, rows["image"])
    rows["path"] = [paths.get(image, "") for image in rows["image"]]
    without = rows.loc[rows["path"] == "", "image"].tolist()
    unlisted = sorted(paths.keys() - set(rows["image"]))
    if missing == "error":
        _refuse_missing(without, unlisted)
    stop_on(
        [("label_conflict", f"lesion {lesion}", "is of two classes") for lesion in in_several(rows, "lesion", "label")],
        f"Correct the class in {TRUTH} or the lesion_id in {METADATA}: one lesion has one diagnosis",
    )
    table = rows[rows["path"] != ""].copy()
    if table.empty:
        raise PathoError(
            "rows_without_files", TRUTH, f"none of its {len(rows)} images is in {root}", f"Unpack {INPUT}.zip there"
        )
    classes = tuple(name for name in (*CLASSES, "UNK") if (table["label"] == name).any())
    counted = _counts(table) | {
        "rows": len(rows),
        "rows_without_file": first(without),
        "files_without_row": first(unlisted),
        **{name: first(names) for name, names in left.items() if names},
    }
    return Manifest(
        table=table[["path", "label", "lesion", "site", "age", "sex", "age_band", "collection"]],
        root=root,
        classes=classes,
        positive="MEL" if "MEL" in classes else None,
        group_by="lesion",
        levels=("lesion",),
        subgroups=("site", "sex", "age_band", "collection"),
        source="isic2019",
        demo=demo_folder(root) is not None,
        found=counted,
    )


def _files(root: Path, rows: Iterable[str]) -> tuple[dict[str, str], dict]:
    """The path of each image by its name, and what else lies there."""
    prefix = f"{INPUT}/" if (root / INPUT).is_dir() else ""
    images, left = walk(root / prefix)
    paths = [prefix + image for image in images]
    known = _by_name([path for path in paths if path.lower().endswith(".jpg")])
    others = [path for path in paths if path not in known.values()]  # a mirror may have PNG; a mask may lie beside JPEG
    wanted = set(rows) - known.keys()
    return known | _by_name([path for path in others if not known or PurePosixPath(path).stem in wanted]), left


def _counts(table: pd.DataFrame) -> dict:
    """What is worth knowing of the images that are there."""
    return {
        "images": len(table),
        "lesions": int(table.loc[table["lesion_known"], "lesion"].nunique()),
        "rows_without_lesion": int((~table["lesion_known"]).sum()),
        "downsampled": int(table["image"].str.endswith(COPY).sum()),
        "unknown": {name: int((table[name] == "").sum()) for name in ("site", "age", "sex")},
        "classes_without_images": [name for name in CLASSES if not (table["label"] == name).any()],
    }


def list_rows(root: Path) -> pd.DataFrame:
    """What the two CSV files say, without a look at the images: enough to split and to audit.

    Columns: image, label, lesion (never ""), lesion_known (bool), site, age, sex, age_band, collection.
    """
    truth = read_csv(Path(root) / TRUTH, ("image", *CLASSES))
    metadata = read_csv(Path(root) / METADATA, ("image", *FACTS))
    stop_on(
        [
            ("csv_format", f"{name} line {line}", f"lists {image!r} a second time" if image else "names no image")
            for name, csv in ((TRUTH, truth), (METADATA, metadata))
            for line, image in csv.loc[csv["image"].duplicated() | (csv["image"] == ""), "image"].items()
        ],
        "Remove the line",
    )
    columns.refuse_spellings(METADATA, "lesion_id", metadata["lesion_id"], placeholders=True)
    rows = pd.DataFrame({"image": truth["image"], "label": _labels(truth)})
    facts = metadata.set_index("image")[list(FACTS)].rename(columns=FACTS)
    rows = rows.join(facts, on="image")
    rows[list(FACTS.values())] = rows[list(FACTS.values())].fillna("")  # images the metadata do not list
    rows["age"] = _ages(metadata, rows)
    rows["age_band"] = rows["age"].map(age_band)
    rows["lesion_known"] = rows["lesion"] != ""
    rows["lesion"] = _lesions(rows)
    # MSK4_0011169 is of MSK; an image that is a lesion of its own is called like its file.
    rows["collection"] = rows["lesion"].str.extract("^(?!ISIC_)([A-Za-z]+)[0-9]*_", expand=False).fillna("")
    return rows.reset_index(drop=True)


def age_band(age: str) -> str:
    """The ten years an age is in: "<30", "30-39" ... "70-79", "80+"; "" if it is unknown."""
    if age == "":
        return ""
    decade = int(age) // 10 * 10
    return "<30" if decade < 30 else "80+" if decade >= 80 else f"{decade}-{decade + 9}"


def _labels(truth: pd.DataFrame) -> pd.Series:
    """The one class of every row that is 1 where all others are 0."""
    found = columns.one_hot(truth, TRUTH, ("image",))
    assert found is not None  # its columns are there
    stop_on(
        [
            ("unknown_class_in_training", f"{TRUTH} line {line}", "is of class UNK, which is what no class fits")
            for line in found[0].index[found[0] == "UNK"]
        ],
        "Take these rows out: a class defined by absence cannot be learnt from examples",
    )
    return found[0]


def _ages(metadata: pd.DataFrame, rows: pd.DataFrame) -> list[str]:
    """Ages as whole years in text; mirrors write 55.0."""
    whole = {}
    problems = []
    for line, age in metadata["age_approx"].items():
        number = age.removesuffix(".0")
        if number and not (number.isascii() and number.isdigit() and int(number) <= 120):
            problems.append(("csv_format", f"{METADATA} line {line} column age_approx", f"holds {age!r}"))
        whole[age] = number
    stop_on(problems, "Write a whole number of years, or leave the cell empty")
    return [whole.get(age, "") for age in rows["age"]]


def _lesions(rows: pd.DataFrame) -> list[str]:
    """The lesion of every row: as given, else that of its copy or original, else one named like the picture."""
    pictures = rows["image"].str.removesuffix(COPY)
    known: dict[str, str] = {}
    problems = []
    for picture, lesion in zip(pictures, rows["lesion"], strict=True):
        if lesion and known.setdefault(picture, lesion) != lesion:
            problems.append(("label_conflict", picture, f"is of lesion {known[picture]}, its copy of {lesion}"))
    stop_on(problems, f"Give a picture and its {COPY} copy the same lesion_id in {METADATA}")
    return [lesion or known.get(picture, picture) for picture, lesion in zip(pictures, rows["lesion"], strict=True)]


def _by_name(paths: list[str]) -> dict[str, str]:
    """Image name to path; the same image in two folders is refused, for either could be the changed one."""
    known: dict[str, str] = {}
    problems = []
    for path in paths:
        name = PurePosixPath(path).stem
        if known.setdefault(name, path) != path:
            problems.append(("name_collision", path, f"has the name of {known[name]}"))
    stop_on(problems, "Remove one of each pair")
    return known


def _refuse_missing(without: list[str], unlisted: list[str]) -> None:
    lists = [
        (code, names, text)
        for code, names, text in (
            ("rows_without_files", without, "rows have no image file"),
            ("files_without_rows", unlisted, "image files are in no row"),
        )
        if names
    ]
    if lists:
        reason = "; ".join(
            f"{len(names)} {text} ({', '.join(first(names)['first'])}{', ...' if len(names) > 5 else ''})"
            for _, names, text in lists
        )
        raise PathoError(
            lists[0][0], TRUTH, reason, 'Unpack all images, or pass missing="skip" to go on with those that have both'
        )


READER = Reader(name="isic2019", what=_WHAT, holds=holds, read=read, index=TRUTH)
