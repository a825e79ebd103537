"""The cards and checklists say what the run folder says, name what it lacks, and show names without obeying them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from runfolder import EVIL, PNG, RECIPE, TAGS, Elements, full_run, number, record, summary

from patholib.base import files
from patholib.data.readers import sources
from patholib.report import cards, checklists, report
from patholib.report.records import Record

ROOT = Path(__file__).parents[2]
STEMS = ("model_card", "data_card", "checklist")
DECISION = {
    "format": 1,
    "temperature": 1.37,
    "positive": "malignant",
    "threshold": 0.31,
    "rule": "sensitivity >= 0.95 on validation",
    "target": {"sensitivity": 0.95},
    "validation": {"sensitivity": number(0.953), "specificity": number(0.712)},
    "locked": "2026-11-25T18:00:00Z",
}


@pytest.fixture
def folder(tmp_path):
    """A run on which nothing was locked or calibrated; the tests add what they are about."""
    full_run(tmp_path, data={"source": "breakhis", "images": 30, "groups": 30, "images_sha256": "ab" * 32})
    (tmp_path / "decision.json").unlink(missing_ok=True)
    known = files.read_json(tmp_path / "metrics.json")
    kept = ("val", "test", "test_tta", "baseline", "gain_over")
    files.write_json(tmp_path / "metrics.json", {key: known[key] for key in kept})
    return tmp_path


def written(folder):
    """The three Markdown texts by stem."""
    return {stem: text for stem, (_, text) in cards.texts(Record(folder)).items()}


def change(folder, name, **values):
    path = folder / name
    files.write_json(path, (files.read_json(path) if path.exists() else {}) | values)


def test_a_changed_number_changes_the_card(folder):
    before = written(folder)["model_card"]
    assert "0.951 (0.931 to 0.971)" in before
    change(folder, "metrics.json", test=summary(auc=0.731))
    after = written(folder)["model_card"]
    assert "0.731 (0.711 to 0.751)" in after and "0.951" not in after


def test_a_model_with_colour_statistics_says_so_and_that_no_heatmap_shows_them(tmp_path):
    for width in (0, 16):
        full_run(tmp_path, replace(RECIPE, colour=width))
        change(tmp_path, "trust.json", verdict="Some trust", reasons=[])
        card = written(tmp_path)["model_card"]
        assert ("colour and grain statistics" in card) == bool(width)
        assert ("does not show what the colour statistics add" in card) == bool(width)


def test_each_card_is_a_file_of_markdown_and_a_page_without_scripts(folder):
    assert cards.write(folder) == folder / "model_card.html"
    for stem, text in written(folder).items():
        assert (folder / f"{stem}.md").read_text(encoding="utf-8") == text
        page = (folder / f"{stem}.html").read_text(encoding="utf-8")
        found = Elements(page)
        assert set(found.tags) <= TAGS, set(found.tags) - TAGS
        assert all((folder / link).is_file() or link in ("report.html", "checklist.html") for link in found.links)
        assert page.count('<div class="scroll"><table') == page.count("<table") > 1


@pytest.mark.parametrize("stem", STEMS)
def test_a_demo_run_says_so_before_everything_else(folder, stem):
    change(folder, "run.json", demo=True)
    assert written(folder)[stem].startswith("> **DEMO IMAGES: NOT A RESULT.**")


def test_a_run_of_one_file_gives_cards_of_what_is_absent(tmp_path):
    files.write_json(tmp_path / "run.json", record())
    texts = written(tmp_path)
    for stem, names in (
        ("model_card", ("decision.json", "trust.json", "metrics.json", "split.csv", "excluded.csv", "model.json")),
        ("data_card", ("split.csv", "data_report.json", "excluded.csv")),
        ("checklist", ("predictions_test.csv", "decision.json", "trust.json", "heatmaps/")),
    ):
        for name in names:
            assert name in texts[stem] and "missing" in texts[stem], (stem, name)
    assert "There are no test numbers" in texts["model_card"] and "not finished" in texts["model_card"]


@pytest.mark.parametrize(
    ("source", "licence", "weights"),
    [
        ("isic2019", "CC BY-NC 4.0", "Non-commercial"),
        ("breakhis", "CC BY 4.0", "Research"),
        ("table", "Ask whoever gave you the images", "Not stated"),
        ("unheard of", "Ask whoever", "Not stated"),
    ],
)
def test_the_licence_is_that_of_the_source(folder, source, licence, weights):
    change(folder, "run.json", data={"source": source, "images": 30})
    texts = written(folder)
    assert licence in texts["model_card"] and licence in texts["data_card"]
    assert weights.lower() in texts["model_card"].lower()
    change(folder, "run.json", demo=True)
    assert "a program drew the pictures" in written(folder)["data_card"]


@pytest.mark.parametrize(("kind", "name"), [("imagenet", "resnet50-11ad3fa6.pth"), ("file", "mine.safetensors")])
def test_where_the_weights_came_from_stands_in_card_and_report_with_its_digest(folder, kind, name):
    change(folder, "run.json", weights={"kind": kind, "file": name, "sha256": "cd" * 32})
    said = f"{kind}, {name} (SHA-256 {'cd' * 32})"
    assert said in written(folder)["model_card"]
    report.write(folder)
    assert said in (folder / "report.md").read_text(encoding="utf-8")
    change(folder, "run.json", weights={"kind": "none", "file": None, "sha256": None})
    assert "| initial weights | none |" in written(folder)["model_card"]


def test_the_licences_are_those_of_the_page_about_the_data():
    page = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    isic, breakhis = page.partition("## ISIC")[2], page.partition("## BreakHis")[2].partition("## ISIC")[0]
    assert "CC BY-NC 4.0" in isic and "CC BY-NC 4.0" in sources.SOURCES["isic2019"].licence
    assert (
        "copies state CC BY 4.0" in breakhis
        and "copies of the data set state CC BY 4.0" in sources.SOURCES["breakhis"].licence
    )


def test_the_locked_decision_is_shown_and_a_changed_file_behind_it_shouted(folder):
    digest = files.sha256(folder / "predictions_val.csv")
    change(folder, "decision.json", **DECISION, predictions_val_sha256=digest)
    text = written(folder)["model_card"]
    for part in (
        "| temperature | 1.37 |",
        "| threshold | p\\_malignant >= 0.31 |",
        "sensitivity >= 0.95 on validation",
        "0.953 (0.933 to 0.973)",
        "0.712 (0.692 to 0.732)",
    ):
        assert part in text, part
    assert "`decision.json`" not in text and "not the file the decision" not in text
    files.write_text(folder / "predictions_val.csv", "path\nother\n")
    assert "is not the file the decision" in written(folder)["model_card"]


def test_calibration_stands_there_before_and_after(folder):
    sides = {
        "before": {"ece_mass": 0.0931, "brier": 0.112, "log_loss": 0.391, "bins": []},
        "after": {"ece_mass": 0.0412, "brier": 0.098, "log_loss": 0.322, "bins": []},
    }
    assert "`metrics.json` has no calibration" in written(folder)["model_card"]
    change(folder, "metrics.json", calibration={"val": sides, "test": sides})
    text = written(folder)["model_card"]
    assert "| validation, before | validation, after | test, before | test, after |" in text
    assert "| 0.093 | 0.041 | 0.093 | 0.041 |" in text


def test_subgroups_of_few_groups_are_grey_and_no_others(folder):
    many = {
        "column": "magnification",
        "value": "100",
        "images": 230,
        "groups": 21,
        "few": False,
        "accuracy": 0.91,
        "accuracy_low": 0.88,
        "accuracy_high": 0.94,
        "auc": 0.9,
        "auc_low": None,
        "auc_high": None,
    }
    test = summary()
    test["subgroups"] = [*test["subgroups"], many]
    change(folder, "metrics.json", test=test)
    text = written(folder)["model_card"]
    assert "| magnification: 40 \\* | 70 | 8 |" in text and "| magnification: 100 | 230 | 21 |" in text
    page = cards.write(folder).read_text(encoding="utf-8")
    assert page.count('<tr class="few">') == 1
    assert "1 of 2 subgroups" in text and "Lowest accuracy" not in text  # of one large subgroup there is no lowest


def test_a_rival_that_may_do_as_well_is_told_among_the_limits(folder):
    gain = {"baseline": {"auc": number(-0.009, -0.05, 0.04)}}
    change(folder, "metrics.json", baseline=summary(auc=0.96), gain_over=gain)
    assert (
        "not shown to be better than colour statistics: AUC 0.951 against 0.960"
        in written(folder)["model_card"].partition("## Limits")[2]
    )


def test_of_more_than_two_classes_the_threshold_is_that_of_an_alert(tmp_path):
    classes = ("MEL", "NV", "BCC")
    full_run(tmp_path, replace(RECIPE, classes=classes, positive="MEL"))
    alert = {
        "positive": "MEL",
        "threshold": 0.31,
        "flagged": 0.2,
        "sensitivity": number(0.9),
        "specificity": number(0.8),
    }
    change(tmp_path, "metrics.json", test=summary(classes=classes, support=(9, 9, 9)) | {"alert": alert})
    change(tmp_path, "decision.json", **DECISION)
    text = written(tmp_path)["model_card"]
    assert "| threshold of the alert | p\\_malignant >= 0.31 |" in text
    assert "Alert for MEL" in text and "| sensitivity | 0.900 (0.880 to 0.920) |" in text and "20 % of the imag" in text
    assert "over the share" not in text
    change(tmp_path, "decision.json", **DECISION, shares={"MEL": 0.1, "NV": 0.7, "BCC": 0.2})
    assert "over the share of the class in training" in written(tmp_path)["model_card"]


def test_the_verdict_on_the_heatmaps_is_told_and_its_absence_too(folder):
    assert "`trust.json` is missing" in written(folder)["model_card"]
    files.write_json(folder / "trust.json", {"verdict": "Lean on none of them", "reasons": ["they ignore the weights"]})
    text = written(folder)["model_card"]
    assert "**Lean on none of them**" in text and "- they ignore the weights" in text


def test_what_was_left_out_is_counted_by_reason(folder):
    excluded = [{"path": f"a/{i}.png", "code": "corrupt", "reason": "ends early"} for i in range(7)]
    excluded += [{"path": "b.png", "code": "blank", "reason": "is of one grey"}]
    change(folder, "data_report.json", excluded=excluded, label_conflicts=[{}, {}], duplicates=[])
    texts = written(folder)
    for stem in ("model_card", "data_card"):
        assert "8 files were left out" in texts[stem] and "| blank | 1 | is of one grey | b.png |" in texts[stem]
        assert "| corrupt | 7 | ends early | a/0.png, a/1.png, a/2.png, a/3.png, a/4.png … |" in texts[stem]
    (folder / "data_report.json").unlink()
    files.write_table(folder / "excluded.csv", pd.DataFrame(excluded))
    texts = written(folder)
    assert "8 files were left out" in texts["data_card"] and "`data_report.json` is missing" in texts["data_card"]


def with_split(folder, table):
    files.write_table(folder / "split.csv", table)
    change(folder, "run.json", split={"sha256": files.sha256(folder / "split.csv")})


def six_images(**columns):
    return pd.DataFrame(
        {
            "path": [f"{i}.png" for i in range(6)],
            "label": ["benign"] * 3 + ["malignant"] * 3,
            "slide": list("aabccd"),
            "case": list("AABCCD"),
            "scanner": list("xxyxyy"),
            "split": ["train", "train", "val", "train", "train", "test"],
        }
        | columns
    ).assign(group=lambda table: table["case"])


def test_images_and_ids_are_counted_by_class_and_split(folder):
    with_split(folder, six_images())
    text = written(folder)["data_card"]
    assert "| images | train | val | test | all |" in text and "| benign | 2 | 1 | 0 | 3 |" in text
    assert "| all | 4 | 1 | 1 | 6 |" in text
    assert "| slides | train" in text and "| cases | train" in text and "| groups | train" not in text
    assert "| malignant | 1 | 0 | 1 | 2 |" in text  # slides c and d
    assert "| scanner | images | share of train |" in text and "| x | 3 | 75 % | 0 % | 0 % |" in text


def test_of_the_further_columns_those_reported_apart_are_spread_out(folder):
    with_split(folder, six_images(magnification=list("124124"), stain="HE"))
    text = written(folder)["data_card"]
    assert "| magnification | images |" in text and "| scanner | images" not in text
    assert "Other columns: scanner (2 values), stain (always HE)." in text


def test_what_two_splits_share_is_counted(folder):
    with_split(folder, six_images())
    files.write_table(
        folder / "images.csv", pd.DataFrame({"path": [f"{i}.png" for i in range(6)], "sha256": list("abcdef")})
    )
    text = written(folder)["data_card"]
    assert "The splits share none of these." in text and "| identical file | 0 | 0 | 0 |" in text
    with_split(folder, six_images(slide=list("aabcca")))  # the test image has the slide of the first
    files.write_table(
        folder / "images.csv", pd.DataFrame({"path": [f"{i}.png" for i in range(6)], "sha256": list("abcdec")})
    )  # and the bytes of the third
    text = written(folder)["data_card"]
    assert "| slide | 1 | 0 | 0 |" in text and "| identical file | 0 | 0 | 1 |" in text
    assert "too high by an unknown amount" in text


def test_a_changed_split_is_shouted(folder):
    assert "(verified)" in written(folder)["data_card"]
    table = pd.read_csv(folder / "split.csv")
    files.write_table(folder / "split.csv", table[::-1])
    assert "not the one this run was made with" in written(folder)["data_card"]


def test_names_are_shown_and_never_run(tmp_path):
    classes = [name for name in EVIL if name.isprintable()]
    recipe = replace(RECIPE, classes=tuple(classes), positive=None)
    full_run(
        tmp_path,
        recipe,
        name=EVIL[-2],
        created=EVIL[1],
        code={"version": EVIL[0], "commit": EVIL[2]},
        data={"source": EVIL[0], "root_name": EVIL[2], "images_sha256": EVIL[3]},
    )
    rows = len(EVIL)
    table = pd.DataFrame(
        {
            "path": EVIL,
            "label": [classes[i % len(classes)] for i in range(rows)],
            "site": EVIL,
            "group": EVIL,
            "split": (["train", "val", "test"] * rows)[:rows],
        }
    ).assign(**{EVIL[2]: "same"})
    with_split(tmp_path, table)
    excluded = [{"path": name, "code": name, "reason": name} for name in EVIL]
    files.write_json(
        tmp_path / "data_report.json",
        {"excluded": excluded, "warnings": excluded, "sizes": dict.fromkeys(EVIL, 1), "fit": EVIL[0]},
    )
    test = summary(classes=classes, support=[10] * len(classes)) | {
        "confusion": np.eye(len(classes), dtype=int).tolist(),
        "decision": EVIL[0],
        "subgroups": [
            {"column": name, "value": name, "images": 9, "groups": 9, "few": i % 2 == 0, "accuracy": 0.5}
            for i, name in enumerate(EVIL)
        ],
    }
    files.write_json(tmp_path / "metrics.json", {"test": test})
    files.write_json(tmp_path / "decision.json", DECISION | {"rule": EVIL[0], "locked": EVIL[1], "positive": EVIL[2]})
    files.write_json(tmp_path / "trust.json", {"verdict": EVIL[0], "reasons": EVIL})
    cards.write(tmp_path)
    for stem in STEMS:
        found = Elements((tmp_path / f"{stem}.html").read_text(encoding="utf-8"))
        assert set(found.tags) <= TAGS, (stem, set(found.tags) - TAGS)
        assert found.tags.count("main") == 1 and "<script>" not in "".join(found.links)


def test_every_item_of_the_checklists_is_there_once():
    assert [item.number for item in checklists.items("CLAIM 2024")] == [str(n) for n in range(1, 45)]
    numbers = [item.number for item in checklists.items("TRIPOD+AI")]
    assert len(numbers) == len(set(numbers)) == 52
    assert sorted({int(re.match(r"\d+", n)[0]) for n in numbers}) == list(range(1, 28))
    assert all(item.where or item.left for title in checklists.SOURCES for item in checklists.items(title))


def test_the_checklists_look_for_files_that_a_run_folder_has():
    known = (ROOT / "outputs" / "README.md").read_text(encoding="utf-8")
    every = [item for title in checklists.SOURCES for item in checklists.items(title)]
    named = {name for item in every for name in re.findall(r"`([^`]+)`", item.where)}
    assert [name for name in sorted(named) if f"`{name}`" not in known] == []


def test_an_item_is_open_where_its_file_is_absent(folder):
    files.write_json(folder / "decision.json", DECISION)
    files.write_json(folder / "model.json", {"weights": {"sha256": "ef" * 32}})
    files.write_text(folder / "report.md", "")
    assert "ef" * 32 in written(folder)["model_card"]

    def state(number):
        item = next(item for item in checklists.items("TRIPOD+AI") if item.number == number)
        return checklists.row(Record(folder), item)[2:]

    assert state("15") == ("filled", "`decision.json`; `model_card.md`, Decision")
    assert state("17") == ("open", "**to be written by the authors**: approval and consent")
    assert state("3b")[0] == "in part"
    (folder / "decision.json").unlink()
    assert state("15") == ("in part", "`decision.json`; `model_card.md`, Decision; missing: `decision.json`")
    assert state("24") == ("open", "`decision.json` (nothing was updated after the test); missing: `decision.json`")


def test_the_count_of_the_items_is_that_of_the_table(folder):
    text = written(folder)["checklist"]
    for title in ("CLAIM 2024", "TRIPOD+AI"):
        part = text.partition(f"## {title}")[2].partition("\n## ")[0]
        states = re.findall(r"^\| \S+ \| .*? \| (filled|in part|open) \|", part, re.M)
        said = re.search(r"(\d+) items .*: (\d+) filled by this run, (\d+) in part, (\d+) open", part)
        counted = [len(states), *(states.count(state) for state in ("filled", "in part", "open"))]
        assert counted == [int(n) for n in said.groups()]


def test_a_picture_is_no_part_of_a_card(folder):
    files.write_bytes(folder / "figures" / "other.png", PNG)
    assert all("![" not in text for text in written(folder).values())
