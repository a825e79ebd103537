"""A report says what the files of its run say, with intervals; it names what is missing and obeys no name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import splits
from runfolder import EVIL, PNG, RECIPE, TAGS, Elements, full_run, history, number, record, summary

from patholib.base import files
from patholib.base.errors import PathoError, shown
from patholib.data import splitting
from patholib.judge import gains, metric_table, thresholds
from patholib.judge.metrics import readable
from patholib.model import recipes
from patholib.report import report, settings

pytestmark = pytest.mark.heavy

CARDS = ("report", "model_card", "data_card", "checklist")
INTERVAL = r"[+-]?\d\.\d+ \([+-]?\d\.\d+ to [+-]?\d\.\d+\)"


def written(folder):
    """The Markdown and the page."""
    page = report.write(folder)
    assert page == folder / "report.html"
    return (folder / "report.md").read_text(encoding="utf-8"), page.read_text(encoding="utf-8")


def change(folder, name, **values):
    path = folder / name
    files.write_json(path, (files.read_json(path) if path.exists() else {}) | values)


def first_screen(text):
    """The report down to its first section."""
    return text.partition("\n## ")[0]


def numbers_in(value):
    """Every number with an interval in a JSON value, as a report writes it."""
    if isinstance(value, dict):
        if "value" in value and "low" in value:
            for digits in (2, 3):
                for sign in ("", "+"):
                    yield readable(value, digits, sign)
        for name, inner in value.items():
            if f"{name}_low" in value and inner is not None:
                yield readable({"value": inner, "low": value[f"{name}_low"], "high": value[f"{name}_high"]}, 2)
            yield from numbers_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers_in(inner)


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_every_number_of_the_report_is_in_metrics_json_with_its_interval(tmp_path):
    text, _ = written(full_run(tmp_path))
    known = set(numbers_in(files.read_json(tmp_path / "metrics.json")))
    assert set(re.findall(INTERVAL, text)) <= known | set(numbers_in(files.read_json(tmp_path / "decision.json")))
    for key in ("test", "test_tta", "baseline", "val"):
        for name, value in files.read_json(tmp_path / "metrics.json")[key]["metrics"].items():
            assert readable(value) in text, (key, name)


def test_a_metric_that_no_table_knows_is_shown_under_its_own_name(tmp_path):
    full_run(tmp_path)
    found = files.read_json(tmp_path / "metrics.json")
    found["test"]["metrics"]["cohen_kappa"] = number(0.765)
    files.write_json(tmp_path / "metrics.json", found)
    text, _ = written(tmp_path)
    for page in (text, (tmp_path / "model_card.md").read_text()):
        assert "| cohen kappa | 0.765 (0.745 to 0.785) |" in page
    assert metric_table.ordered(["cohen_kappa", "auc", "accuracy"]) == ["accuracy", "auc", "cohen_kappa"]


def test_the_facts_of_the_run_are_all_there(tmp_path):
    text, _ = written(full_run(tmp_path, replace(RECIPE, lr=5e-4)))
    for part in (
        "| `lr` | 0.001 | 0.0005 |",
        "ends in the middle",
        "| benign | 90 | 10 |",
        "2.15.0",
        "3dfe567",
        "ab" * 32,
        "ef" * 32,
        "2026-11-22T10:00:00Z",
        "![roc curve](figures/roc%20curve.png)",
        "sensitivity >= 0.95 on validation",
        "0.3125",
        "1.37",
        "only 7 groups",
    ):
        assert part in text, part
    assert "What is missing" not in text and "DEMO" not in text


def test_the_report_is_written_from_files_alone_and_is_the_same_each_time(tmp_path):
    first = written(full_run(tmp_path))
    assert written(tmp_path) == first


def test_nan_never_reaches_the_report(tmp_path):
    full_run(tmp_path)
    files.write_table(tmp_path / "history.csv", history(train_loss=[1.0] * 19 + [np.inf]))
    text, page = written(tmp_path)
    assert "not finite" in text and not re.search(r"\bnan\b|\binf\b", text + Elements(page).text)
    assert json.loads((tmp_path / "run.json").read_text())["name"] == "a run"


def test_the_shares_that_decide_are_told(tmp_path):
    recipe = replace(RECIPE, classes=("MEL", "NV", "BCC"), positive="MEL")
    full_run(tmp_path, recipe)
    change(tmp_path, "decision.json", shares={"MEL": 0.12345, "NV": 0.7, "BCC": 0.17655})
    text, _ = written(tmp_path)
    assert "| share of MEL | 0.1235 |" in text and "does not change the predicted class" in text


def test_stages_are_told_in_blocks_and_epochs():
    assert settings.stages(recipes.get("breakhis")) == "13 of 17 blocks frozen"
    two = (recipes.Stage(0, 13, 1.0), recipes.Stage(0.5, 0, 0.1))
    assert (
        settings.stages(replace(RECIPE, stages=two, epochs=20))
        == "from epoch 1: 13 of 17 blocks frozen; from epoch 11: no block frozen (learning rate x 0.1)"
    )
    assert "Stage(" not in settings.every(RECIPE)


@pytest.mark.parametrize("name", ["breakhis", "isic2019"])
def test_random_weights_are_told_in_report_and_card_with_every_field_that_differs(tmp_path, name):
    recipe = recipes.from_scratch(recipes.get(name))
    text, _ = written(full_run(tmp_path, recipe))
    for page in (text, (tmp_path / "model_card.md").read_text()):
        (said,) = [line for line in page.splitlines() if line.startswith("Profile for random weights: ")]
        assert all(field in said.replace("\\", "") for field in recipes.diff(recipes.get(name), recipe))


# --- the first screen -------------------------------------------------------------------------------------------------


def few_patients(folder, **changes):
    full_run(folder, **changes)
    splitting.write_split(splitting.split(splits.like_breakhis()), folder / "split.csv")
    return first_screen(written(folder)[0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"folds": 5, "fold": 1}, "fold 2 of 5"),
        ({"folds": 5, "fold": 0}, "fold 1 of 5"),
        ({"folds": 3, "repeats": 2, "fold": 4}, "fold 2 of 3, repeat 2 of 2"),
        ({"folds": 5}, ""),
    ],
)
def test_the_report_of_one_fold_names_it_and_does_not_advise_folds(tmp_path, options, said):
    text = few_patients(tmp_path, options={"recipe": "breakhis"} | options)
    title = next(line for line in text.splitlines() if line.startswith("# "))
    assert title.endswith(said) and (", fold" in title) == bool(said)
    assert text.count(said) == 2 if said else "fold 1" not in text
    assert ("add `-p folds 5 -p repeats 3` to the command of this run" in text) == (not said)


def test_enough_patients_need_no_advice(tmp_path):
    full_run(tmp_path)
    test = summary()
    for row in test["per_class"].values():
        row["groups"] = 30
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    change(tmp_path, "metrics.json", test=metrics["test"] | {"per_class": test["per_class"]})
    assert "-p folds" not in written(tmp_path)[0]


@pytest.mark.parametrize(
    ("gain", "says"),
    [
        (number(0.139, 0.089, 0.181), "**Better than colour statistics**"),
        (number(0.021, -0.047, 0.104), "**Not shown to be better than colour statistics**"),
        ({"value": 0.1, "low": None, "high": None}, "**Not shown to be better than colour statistics**"),
    ],
)
def test_the_first_lines_say_by_how_much_the_model_is_better_and_on_how_many_patients(tmp_path, gain, says):
    full_run(tmp_path, replace(RECIPE, group_by="case"))
    change(tmp_path, "metrics.json", gain_over={"baseline": {"auc": gain}})
    text = first_screen(written(tmp_path)[0])
    assert says in text and f"{gain['value']:+.3f}" in text and "0.951 against 0.812" in text
    assert gain["low"] is None or f"(95 % interval {gain['low']:+.3f} to {gain['high']:+.3f})" in text
    assert "300 images of 21 patients (9 benign, 9 malignant)" in text and "has 9 patients" in text
    assert "research use only" in text and "](figures/results.svg)" in text


def test_a_model_that_is_not_better_or_was_not_compared_is_said_to_be_so(tmp_path):
    full_run(tmp_path)
    for low, high, said in ((-0.04, -0.002, "Not better"), (-0.2, 0.2, "Not shown to be better")):  # the interval says
        gain = {"baseline": {"auc": number(-0.019, low, high)}}
        change(tmp_path, "metrics.json", baseline=summary(auc=0.97), gain_over=gain)
        assert f"**{said} than colour statistics**" in first_screen(written(tmp_path)[0])
    files.write_json(tmp_path / "metrics.json", {"test": summary()})
    assert "**Not compared with colour statistics**" in first_screen(written(tmp_path)[0])
    files.write_json(tmp_path / "metrics.json", {})
    text = first_screen(written(tmp_path)[0])
    assert "**No result yet**" in text and "results.svg" not in text


def with_gallery(folder):
    """The pictures and the table of a gallery."""
    rows = [
        ("true positive", "malignant", "malignant", 0.93),
        ("false positive", "benign", "malignant", 0.42),
        ("false negative", "malignant", "benign", 0.7),
    ]
    files.write_table(
        folder / "heatmaps" / "gallery.csv",
        pd.DataFrame(
            [
                {"section": section, "path": f"{i}.png", "label": label, "decision": decision, "p": p}
                for i, (section, label, decision, p) in enumerate(rows)
            ]
        ),
    )
    for i in range(len(rows)):
        files.write_bytes(folder / "heatmaps" / "gallery" / f"{i + 1:02}-x-{i}.png", PNG)
    return folder


def test_heatmaps_are_on_the_first_screen_only_with_their_verdict_and_only_those_it_is_about(tmp_path):
    full_run(with_gallery(tmp_path))
    text = first_screen(written(tmp_path)[0])
    assert "not checked" in text and "heatmaps/gallery/" not in text
    check = {"asked": "gain over <other> maps", "found": "0.010 (-0.020 to 0.040)", "demanded": "difference above 0"}
    trust = {
        "verdict": "In words",
        "state": "not shown",
        "of": "malignant",
        "images": 8,
        "groups": 7,
        "reasons": ["It is by chance"],
        "checks": {"specific": check | {"state": "not shown"}, "stable": check | {"state": "supported"}},
    }
    files.write_json(tmp_path / "trust.json", trust)
    whole, page = written(tmp_path)
    text = first_screen(whole)
    assert text.index("not shown to be right.** 1 of 2 checks") < text.index("heatmaps/gallery/01")
    assert text.index("heatmaps/gallery/01") < text.index("heatmaps/gallery/02")
    assert "true: benign, predicted: malignant (0.42, threshold 0.50)" in text and "gallery/03" not in text
    assert whole.index("**In words**") < whole.index("](heatmaps/a.png)")
    assert "- It is by chance." in whole and "**not shown**" in whole and "<other>" not in page
    files.write_json(tmp_path / "trust.json", trust | {"state": "supported"})
    assert "supported.** All 2 checks hold on up to 8 images predicted malignant" in first_screen(written(tmp_path)[0])
    refuted = trust | {"state": "refuted", "checks": {"specific": check | {"state": "refuted"}}}
    files.write_json(tmp_path / "trust.json", refuted)
    assert "refuted.** 1 of 1 checks" in first_screen(written(tmp_path)[0])


def test_a_run_of_version_0_1_shows_the_verdict_it_had(tmp_path):
    check = {"asked": "a", "found": "b", "demanded": "c", "passed": False}
    old = {"verdict": "Do NOT trust these heatmaps: 1 of 1", "reasons": ["r"], "checks": {"jpeg": check}, "images": 8}
    files.write_json(full_run(with_gallery(tmp_path)) / "trust.json", old)
    whole, _ = written(tmp_path)
    assert "Do NOT trust these heatmaps: 1 of 1" in first_screen(whole) and "**failed**" in whole


@pytest.mark.parametrize("stem", CARDS)
def test_a_demo_run_says_so_before_everything_else(tmp_path, stem):
    written(full_run(tmp_path, demo=True))
    assert (tmp_path / f"{stem}.md").read_text().startswith("> **DEMO IMAGES: NOT A RESULT.**")
    seen = Elements((tmp_path / f"{stem}.html").read_text().split("<main>")[1]).text.strip()
    assert seen.startswith("DEMO IMAGES: NOT A RESULT.")
    assert "Demo images" in (tmp_path / "figures" / "results.svg").read_text()


def test_a_leaking_split_is_told_before_everything_else(tmp_path):
    leaks = {
        "case": [
            {
                "seen_in": "train",
                "found_in": "test",
                "images": 12,
                "of": 60,
                "share": 0.2,
                "says": "12 of 60 test images have their case in train",
            }
        ]
    }
    written(full_run(tmp_path, leaks=leaks))
    for stem in CARDS:
        page = (tmp_path / f"{stem}.md").read_text()
        assert page.startswith("> **The split leaks:** 12 of 60 test images have their case in train.")


def test_a_published_and_an_unfinished_run_are_marked(tmp_path):
    text, _ = written(full_run(tmp_path, recipes.as_published("breakhis"), published=True, status="stopped"))
    assert "mistakes included" in text and "status: stopped" in text
    assert "is in more than one split" not in text and "one patient may be in training and in test" in text


# --- what is missing --------------------------------------------------------------------------------------------------


def test_a_run_of_one_file_gives_a_report_of_what_is_missing(tmp_path):
    files.write_json(tmp_path / "run.json", record())
    text, _ = written(tmp_path)
    missing = text.partition("## What is missing")[2]
    for name in (
        "metrics.json",
        "data_report.json",
        "history.csv",
        "split.csv",
        "predictions_test.csv",
        "figures/",
        "heatmaps/",
    ):
        assert f"- `{name}`" in missing
    assert "no test numbers" in (tmp_path / "model_card.md").read_text()


def test_missing_sets_of_numbers_are_named(tmp_path):
    full_run(tmp_path)
    files.write_json(tmp_path / "metrics.json", {"test": summary()})
    text, _ = written(tmp_path)
    assert "`baseline` in `metrics.json`" in text and "`test_tta` in `metrics.json`" in text and "`probe`" not in text


def test_a_decision_and_a_trust_file_with_few_fields_still_give_a_report(tmp_path):
    full_run(tmp_path)
    files.write_json(tmp_path / "decision.json", {"temperature": 1, "threshold": None})
    files.write_json(tmp_path / "trust.json", {"verdict": "none"})
    written(tmp_path)


def test_what_a_threshold_promises_is_told_and_by_which_one_patients_are_decided(tmp_path):
    full_run(tmp_path)
    decided = {"summary": summary() | {"threshold": 0.44, "decision": "p_malignant >= 0.44"}}
    test = files.read_json(tmp_path / "metrics.json")["test"]
    change(tmp_path, "metrics.json", test=test | {"patients": test["patients"] | decided})
    text, _ = written(tmp_path)  # an older run, without a promise and a threshold of patients
    assert "threshold of single images: this run locked none for patients" in text and "romise" not in text
    scores = np.linspace(0.3, 0.9, 8)
    chosen = thresholds.choose(np.ones(8), scores, np.arange(8), "malignant", 0.95, unit="patient").to_json()
    promise = {key: chosen[key] for key in ("promise", "threshold_interval")}
    change(tmp_path, "decision.json", patients={"positive": "malignant", **chosen}, **promise)
    text, _ = written(tmp_path)
    assert "p\\_malignant >= 0.44, the threshold that was locked for patients" in text
    assert "| promise | on average over such studies, at least 0.844 of" in text
    assert "one study can be below it" in text
    ends = chosen["threshold_interval"]
    row = f"| patient threshold | p\\_malignant >= 0.3 ({ends['low']:.4g} to {ends['high']:.4g} in 95 % of resamples"
    assert row in text and "no resample can undercut the lowest score" in text


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(PathoError, match="missing_file"):
        report.write(tmp_path)


def test_a_changed_split_and_a_group_in_two_splits_are_told(tmp_path):
    full_run(tmp_path)
    table = pd.read_csv(tmp_path / "split.csv")
    table.loc[1, "group"] = "g0"
    files.write_table(tmp_path / "split.csv", table)
    text, _ = written(tmp_path)
    assert "not the one this run was made with" in text and "**Patients in more than one split: 1." in text


def test_table_rows_without_a_file_are_told(tmp_path):
    found = {"rows_without_file": {"count": 22387, "first": ["ISIC_0000000"]}, "files_without_row": {"count": 0}}
    text, _ = written(full_run(tmp_path, data={"images": 300, "found": found}))
    assert "22,387 table rows have no file" in text and "in no table row" not in text


def test_a_probe_is_shown_where_it_was_asked_for(tmp_path):
    full_run(tmp_path)
    known = files.read_json(tmp_path / "metrics.json")
    known["gain_over"]["probe"] = {"auc": number(0.174, 0.124, 0.224)}
    files.write_json(tmp_path / "metrics.json", known | {"probe": summary(auc=0.777)})
    text, _ = written(tmp_path)
    assert (
        "linear probe" in text
        and "+0.174 (+0.124 to +0.224)" in text
        and "linear probe" in (tmp_path / "figures" / "results.svg").read_text()
    )
    assert "0.777 (0.757 to 0.797)" in text and "0.777 (0.757 to 0.797)" in (tmp_path / "model_card.md").read_text()


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_is_one_file_without_scripts_or_anything_from_outside(tmp_path):
    _, page = written(full_run(tmp_path))
    found = Elements(page)
    assert not {"script", "link", "iframe", "object", "embed"} & set(found.tags)
    images = [link for link in found.links if link.startswith("data:image/")]
    assert len(images) == 4 == found.tags.count("img")  # the chart, two figures and a heatmap
    beside = {link for link in found.links if not link.startswith(("data:", "#"))}
    assert beside == {"model_card.html", "data_card.html", "checklist.html"}
    assert all((tmp_path / name).is_file() for name in beside)
    assert found.tags.count("html") == 1 and "url(" not in page and "@import" not in page
    assert page.count('<div class="scroll"><table') == page.count("<table") > 5


def test_what_links_point_to_is_there(tmp_path):
    full_run(with_gallery(tmp_path))
    files.write_json(
        tmp_path / "trust.json",
        {
            "verdict": "none",
            "reasons": [],
            "checks": {"a": {"asked": "a", "found": "b", "demanded": "c", "passed": True}},
        },
    )
    _, page = written(tmp_path)
    assert "#heatmaps" in Elements(page).links and 'id="heatmaps"' in page


def test_rows_of_few_groups_are_grey(tmp_path):
    text, page = written(full_run(tmp_path))
    assert "| magnification: 40 \\* |" in text and page.count('<tr class="few">') == 1


def test_names_are_shown_and_never_run(tmp_path):
    classes = [name for name in EVIL if name.isprintable()]  # a recipe has no others
    recipe = replace(RECIPE, classes=tuple(classes), positive=None)
    full_run(with_gallery(tmp_path), recipe, name=EVIL[-2], created=EVIL[1], data={name: [name] for name in EVIL})
    excluded = [{"path": name, "code": name, "reason": name} for name in EVIL]
    files.write_json(tmp_path / "data_report.json", {"excluded": excluded})
    files.write_json(tmp_path / "trust.json", {"verdict": EVIL[0], "reasons": EVIL})
    confusion = np.eye(len(classes), dtype=int).tolist()
    test = summary(classes=classes, support=[10] * len(classes)) | {"confusion": confusion}
    for row in test["per_class"].values():
        row["sensitivity"] = number(0.2)
    files.write_json(tmp_path / "metrics.json", {"test": test | {"decision": EVIL[3], "notes": EVIL}})
    text, page = written(tmp_path)
    found = Elements(page)
    allowed = TAGS | {"details", "ol", "summary", "img", "br"}
    assert set(found.tags) <= allowed, set(found.tags) - allowed
    pictures = sum(link.startswith("data:image/") for link in found.links)
    assert found.tags.count("img") == pictures and found.tags.count("main") == 1
    assert all(link.startswith(("data:", "#")) or (tmp_path / link).is_file() for link in found.links)
    for name in EVIL:
        assert found.text.count(shown(name)) >= (8 if name in classes else 5), name
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


BLOCKED = ("nbconvert", "nbformat", "jupyter_core", "jupyter_client", "notebook", "IPython", "ipywidgets", "papermill")


def test_C21_the_core_install_writes_every_page(tmp_path, catalogue):
    full_run(tmp_path)
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({BLOCKED!r}))\n"  # None: to import it is an ImportError
        "from patholib.report import report\nreport.write(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=120)
    assert all((tmp_path / f"{stem}.html").is_file() for stem in CARDS)
    catalogue("C21", "report without the packages of the notebooks", "every page is written")


@pytest.mark.parametrize("key", gains.RIVALS)
@pytest.mark.parametrize(
    ("auc", "gain", "outcome"),
    [
        (0.70, number(-0.1), gains.NOT_BETTER),
        (0.95, number(0.01, -0.01, 0.03), gains.NOT_SHOWN),
        (0.95, number(0.01, 0.001, 0.03), gains.BETTER),
        (0.95, None, gains.NOT_SHOWN),
    ],
)
def test_a_rival_is_beaten_where_the_interval_of_the_difference_is_above_zero(key, auc, gain, outcome):
    found = {"test": summary(auc=auc), key: summary(auc=0.812), "gain_over": {key: {"auc": gain}}}
    assert gains.against(found, key, "auc").outcome == outcome
    assert bool(gains.not_beaten(found, key, "auc")) == (outcome != gains.BETTER)
    assert gains.against(found, key, "unknown") is None


def test_what_breakhis_calls_a_case_is_told_as_an_assumption_with_both_counts(tmp_path):
    full_run(tmp_path)
    change(tmp_path, "run.json", data={"source": "breakhis", "found": {"slides": 81, "cases": 70}})
    text, _ = written(tmp_path)
    assert "81 slide ids, 70 cases" in text and "is an assumption" in text
    assert "81 slide ids, 70 cases" in (tmp_path / "data_card.md").read_text()


def test_prediction_sets_and_what_is_none_of_the_classes_stand_in_the_report_with_their_promise(tmp_path):
    full_run(tmp_path)
    at = {"thresholds": {"benign": 0.41, "malignant": 0}, "groups": {"benign": 12, "malignant": 5}}
    at |= {"words": "the set holds the true class in at least 90 % of patients"}
    coverage = {"benign": {"groups": 7, **number(0.93)}, "malignant": {"groups": 14, **number(1.0)}}
    sets = {"coverage": coverage, "size": number(1.4), "single": number(0.6)}
    test = files.read_json(tmp_path / "metrics.json")["test"] | {"sets": sets, "novelty": {"share": number(0.03)}}
    change(tmp_path, "metrics.json", test=test)
    change(tmp_path, "decision.json", sets=at)
    text = written(tmp_path)[0]
    assert at["words"] in text and "| benign | 0.41 | 12 | 7 | 0.930 (0.910 to 0.950) |" in text
    assert "| malignant | always | 5 | 14 |" in text and "none of the classes: 0.03" in text
    assert "in every set" in text and "malignant (5): the promise takes 9" in text
