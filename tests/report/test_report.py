import builtins
import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from patholib.base import files
from patholib.base.errors import PathoError, shown
from patholib.model import recipes
from patholib.report import cards, report

RECIPE = recipes.BREAKHIS
PNG = bytes.fromhex("89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8ffff3f"
                    "0005fe02fe0def46b80000000049454e44ae426082")


def number(value, low=None, high=None):
    return {"value": value, "low": value - 0.02 if low is None else low, "high": value + 0.02 if high is None else high}


def summary(auc=0.95, sensitivity=0.95, support=(100, 200), classes=RECIPE.classes, width=0.02):
    def near(value):
        return number(value, value - width, value + width)

    names = ["accuracy", "balanced_accuracy", "auc", "sensitivity", "specificity", "precision", "f1", "brier"]
    metrics = {n: near(0.9) for n in names} | {"auc": near(auc), "sensitivity": near(sensitivity)}
    per_class = {c: {"support": n, "groups": 9, **{m: near(0.9) for m in ("sensitivity", "specificity", "precision",
                                                                         "f1", "auc")}}
                 for c, n in zip(classes, support, strict=True)}
    per_class[classes[-1]]["sensitivity"] = near(sensitivity)
    return {"images": sum(support), "groups": 21, "classes": list(classes), "positive": RECIPE.positive,
            "threshold": 0.5, "decision": "p_malignant >= 0.5", "metrics": metrics, "per_class": per_class,
            "confusion": [[90, 10], [12, 188]], "notes": [],
            "subgroups": [{"column": "magnification", "value": "40", "images": 70, "groups": 8, "few": True,
                           "accuracy": 0.871, "accuracy_low": 0.8, "accuracy_high": 0.9, "auc": None}],
            "alert": {"positive": RECIPE.positive, "threshold": 0.3125, "flagged": 0.74, "images": 300, "groups": 21,
                      "positives": 200, "positive_groups": 14,
                      **{n: near(0.83) for n in ("sensitivity", "specificity", "ppv", "npv")}},
            "abstention": {"coverage": [0.5, 1.0], "risk": [0.012, 0.099], "aurc": 0.034, "aurc_best": 0.005,
                           "aurc_random": 0.099},
            "patients": {"column": "case", "patients": 21,
                         "one_patient": {"share": 1 / 21, "auc": {"low": 0.93, "high": 0.96}},
                         "two_labels": {"patients": 1, "names": ["14-13412"]},
                         "recognition_rate": number(0.876), "summary": None}}


def locked(recipe):
    """What metrics.json has of calibration, and the decision, which has a file of its own."""
    reached = {n: number(v) for n, v in zip(("sensitivity", "specificity", "ppv", "npv"), (0.97, 0.71, 0.88, 0.91),
                                            strict=True)}
    errors = {"temperature": 1.0, "ece_mass": 0.113, "ece_width": 0.12, "ece_chance": 0.02, "brier": 0.1,
              "log_loss": 0.4, "bins": [], "counts": []}
    return {"decision": {"format": 1, "temperature": 1.37, "positive": recipe.positive, "threshold": 0.3125,
                         "rule": "sensitivity >= 0.95 on validation", "target": {"sensitivity": 0.95},
                         "validation": reached, "notes": ["only 7 groups"], "locked": "2026-11-22T10:00:00Z",
                         "predictions_val_sha256": "ef" * 32},
            "calibration": {"test": {"before": errors, "after": errors | {"temperature": 1.37, "ece_mass": 0.041}}},
            "tta_gain": {"auc": number(0.006, -0.001, 0.013)},
            "gain_over": {"baseline": {"auc": number(0.139, 0.089, 0.181), "sensitivity": number(-0.03)}}}


def history(epochs=20, **columns):
    epoch = np.arange(1, epochs + 1)
    table = pd.DataFrame({"epoch": epoch, "lr": 1e-3, "frozen": 13, "trainable_share": 0.7,
                          "train_loss": 1 / (1 + epoch), "train_accuracy": 0.9, "val_loss": 1 / (1 + epoch),
                          "val_accuracy": 0.88, "val_balanced_accuracy": 0.87, "val_auc": 0.9, "seconds": 3.0})
    table["val_auc"] += 0.002 * np.minimum(epoch, epochs - 3)  # the best is neither early nor last
    return table.assign(**columns)


def record(**changes):
    return {"name": "a run", "created": "2026-11-22", "status": "finished", "recipe": RECIPE.to_json(),
            "published": False, "demo": False, "data": {"images": 300, "images_sha256": "ab" * 32},
            "split": {"path": "split.csv"}, "versions": {"python": "3.12.3", "torch": "2.15.0"},
            "code": {"version": "0.1.0", "commit": "3dfe567"}, "machine": {"system": "Linux"}, "seed": 0,
            "weights": {"kind": "imagenet", "sha256": "cd" * 32}} | changes


def full_run(folder, recipe=RECIPE, **changes):
    split = pd.DataFrame({"path": [f"{i}.png" for i in range(30)], "group": [f"g{i}" for i in range(30)],
                          "label": [recipe.classes[i % len(recipe.classes)] for i in range(30)],
                          "split": ["train", "val", "test"] * 10})
    files.write_table(folder / "split.csv", split)
    values = {"recipe": recipe.to_json(), "split": {"sha256": files.sha256(folder / "split.csv")}} | changes
    files.write_json(folder / "run.json", record(**values))
    classes = recipe.classes[:2]
    aucs = {"val": 0.96, "test": 0.951, "test_tta": 0.957, "baseline": 0.812}
    files.write_json(folder / "metrics.json", {k: summary(auc=auc, classes=classes) for k, auc in aucs.items()}
                     | locked(recipe))
    files.write_json(folder / "decision.json", locked(recipe)["decision"])
    files.write_json(folder / "data_report.json", {
        "counts": {"files": 301, "kept": 300, "by_code": {"corrupt": 1}}, "warnings": [],
        "excluded": [{"path": "benign/x.png", "code": "corrupt", "reason": "ends in the middle"}]})
    files.write_table(folder / "history.csv", history())
    for name in ("figures/roc curve.png", "training_metrics.png", "heatmaps/a.png"):
        files.write_bytes(folder / name, PNG)
    for name in ("predictions_val.csv", "predictions_test.csv"):
        files.write_text(folder / name, "path\n")
    return folder


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for key, value in attributes if key in ("src", "href", "srcset", "style")]
        assert not any(key.startswith("on") for key, _ in attributes)

    def handle_data(self, data):
        self.text += data


def written(folder):
    page = report.write(folder)
    assert page == folder / "report.html"
    return (folder / "report.md").read_text(), page.read_text()


def test_a_report_tells_the_whole_run_with_intervals(tmp_path):
    text, _ = written(full_run(tmp_path, replace(RECIPE, lr=5e-4)))
    for part in ("0.951 (0.931 to 0.971)", "0.812 (0.792 to 0.832)", "0.957", "0.96",
                 "| `lr` | 0.001 | 0.0005 |", "ends in the middle", "magnification: 40 &#42;", "0.876 (0.856 to 0.896)",
                 "| benign | 90 | 10 |", "2.15.0", "3dfe567", "ab" * 32, "Groups in more than one split: 0.",
                 "research use only", "20 epochs", "![roc curve](figures/roc%20curve.png)", "1 more have two labels"):
        assert part in text, part
    assert "What is absent" not in text and "DEMO" not in text


def test_the_report_tells_what_was_locked_and_what_it_gave(tmp_path):
    text, page = written(full_run(tmp_path))
    for part in ("| threshold | p\\_malignant >= 0.3125 |", "sensitivity >= 0.95 on validation", "1.37", "ef" * 32,
                 "| sensitivity | 0.970 (0.950 to 0.990) |", "- only 7 groups", "### malignant at the locked threshold",
                 "74 % of 300 images; 200 are malignant, of 14 groups.", "| test | before | 1 | 0.113 |",
                 "| test | after | 1.37 | 0.041 |", "| 50 % | 1.2 % |",
                 "| AUC | +0.006 (-0.001 to +0.013) | +0.139 (+0.089 to +0.181) |",
                 "| difference (95 % interval) | averaged minus plain | plain minus colour baseline |",
                 "One patient is 4.8 % of that rate. Leaving any one out, the AUC lies between 0.930 and 0.960."):
        assert part in text, part
    assert "alert beside the decision" not in text
    marked = html.unescape(page.partition('<tr class="few">')[2])  # an old nbconvert writes * as an entity
    assert page.count('<tr class="few">') == 1 == marked.count("magnification: 40 *")
    (tmp_path / "decision.json").unlink()
    assert "were not locked before the test images" in written(tmp_path)[0]


def test_the_report_tells_the_shares_that_decide(tmp_path):
    recipe = replace(RECIPE, classes=("MEL", "NV", "BCC"), positive="MEL")
    full_run(tmp_path, recipe)
    decision = files.read_json(tmp_path / "decision.json")
    files.write_json(tmp_path / "decision.json", decision | {"shares": {"MEL": 0.12345, "NV": 0.7, "BCC": 0.17655}})
    numbers = files.read_json(tmp_path / "metrics.json")
    numbers["test"]["decision"] = "largest probability over the share of the class"
    files.write_json(tmp_path / "metrics.json", numbers)
    text, _ = written(tmp_path)
    for part in ("| called | largest probability over the share of the class |", "| share of MEL | 0.1235 |",
                 "It is an alert beside the decision (largest probability over the share of the class)."):
        assert part in text, part


def test_the_report_is_written_from_files_alone_and_is_the_same_each_time(tmp_path):
    first = written(full_run(tmp_path))
    assert written(tmp_path) == first


def test_the_page_is_one_file_without_scripts_or_anything_from_outside(tmp_path):
    _, page = written(full_run(tmp_path))
    found = Elements(page)
    assert "script" not in found.tags and "link" not in found.tags and "iframe" not in found.tags
    images = [link for link in found.links if link.startswith("data:image/png;base64,")]
    assert len(images) == 3
    assert all(link.startswith(("data:", "#")) for link in found.links)
    assert found.tags.count("html") == 1 and "url(" not in page and "@import" not in page
    assert page.count('<div class="scroll"><table') == page.count("<table") > 5


def test_a_demo_run_says_so_before_everything_else(tmp_path):
    text, page = written(full_run(tmp_path, demo=True))
    cards.write(tmp_path)
    card = (tmp_path / "model_card.md").read_text()
    assert text.startswith("> **DEMO IMAGES: NOT A RESULT.**") and card.startswith("> **DEMO IMAGES: NOT A RESULT.**")
    shown = Elements(page.split("<main>")[1]).text.strip()
    assert shown.startswith("DEMO IMAGES: NOT A RESULT.")


def test_a_published_and_an_unfinished_run_are_marked(tmp_path):
    text, _ = written(full_run(tmp_path, recipes.as_published("breakhis"), published=True, status="stopped"))
    assert "mistakes included" in text and "its status is stopped" in text
    assert "stands in two" not in text and "one patient may stand in training and in test" in text


def test_a_run_of_one_file_gives_a_report_of_what_is_absent(tmp_path):
    files.write_json(tmp_path / "run.json", record())
    text, _ = written(tmp_path)
    for name in ("metrics.json", "data_report.json", "history.csv", "split.csv", "predictions_test.csv", "figures/",
                 "heatmaps/"):
        assert f"- `{name}`" in text
    assert "There are no test numbers" in text
    assert "no test numbers" in (tmp_path / "model_card.md").read_text()


def test_the_verdict_on_the_heatmaps_stands_beside_them_with_its_reasons(tmp_path):
    text, _ = written(full_run(tmp_path))
    assert "They were not examined: `trust.json` is absent" in text
    check = {"asked": "gain over <random> maps", "found": "0.010 (-0.020 to 0.040)", "demanded": "interval above 0",
             "passed": False}
    files.write_json(tmp_path / "trust.json", {"verdict": "Do NOT trust these heatmaps", "reasons": ["It is by chance"],
                                               "checks": {"over_random": check, "jpeg": check | {"passed": True}}})
    text, page = written(tmp_path)
    assert text.index("## Heatmaps") < text.index("**Do NOT trust these heatmaps**") < text.index("## Versions")
    assert "- It is by chance." in text and "interval above 0 | **failed** |" in text and "<random>" not in page


def test_table_rows_without_a_file_are_said_to_be_left_out(tmp_path):
    found = {"rows_without_file": {"count": 22387, "first": ["ISIC_0000000"]}, "files_without_row": {"count": 0}}
    text, _ = written(full_run(tmp_path, data={"images": 300, "found": found}))
    assert "22,387 table rows have no file and were left out" in text and "in no row of the table" not in text


def test_absent_sets_of_numbers_are_named(tmp_path):
    full_run(tmp_path)
    files.write_json(tmp_path / "metrics.json", {"test": summary()})
    text, _ = written(tmp_path)
    assert "`baseline` in `metrics.json`" in text and "`test_tta` in `metrics.json`" in text
    assert "| AUC | 0.950 (0.930 to 0.970) | absent |" in text


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(PathoError, match="missing_file"):
        report.write(tmp_path)


def test_a_changed_split_and_a_group_in_two_splits_are_shouted(tmp_path):
    full_run(tmp_path)
    table = pd.read_csv(tmp_path / "split.csv")
    table.loc[1, "group"] = "g0"
    files.write_table(tmp_path / "split.csv", table)
    text, _ = written(tmp_path)
    assert "not the one this run was made with" in text and text.count("1 groups stand in more than one split") == 2


EVIL = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "[x](javascript:alert(1))", "`a`|b",
        "$x$ \\(y\\)", "a\n\n<b>b</b>", "**bold** _it_", "![p](http://outside.example/p.png)", "1. # - > &lt;",
        "{body}{title}", "\\"]


def test_names_are_shown_and_never_run(tmp_path):
    classes = [name for name in EVIL if name.isprintable()]  # a recipe has no others
    recipe = replace(RECIPE, classes=tuple(classes), positive=None)
    full_run(tmp_path, recipe, name=EVIL[-2], created=EVIL[1], data={name: [name] for name in EVIL})
    excluded = [{"path": name, "code": name, "reason": name} for name in EVIL]
    files.write_json(tmp_path / "data_report.json", {"excluded": excluded})
    confusion = np.eye(len(classes), dtype=int).tolist()
    test = summary(classes=classes, support=[10] * len(classes)) | {"confusion": confusion}
    for row in test["per_class"].values():
        row["sensitivity"] = number(0.2)  # so that a hint names every class
    files.write_json(tmp_path / "metrics.json", {"test": test | {"decision": EVIL[3], "notes": EVIL}})
    text, page = written(tmp_path)
    found = Elements(page)
    allowed = {"html", "head", "meta", "title", "style", "body", "main", "div", "h1", "h2", "h3", "p", "strong", "code",
               "table", "thead", "tbody", "tr", "th", "td", "ul", "ol", "li", "img", "blockquote"}
    assert set(found.tags) <= allowed, set(found.tags) - allowed
    assert found.tags.count("img") == 3 and found.tags.count("main") == 1
    assert all(link.startswith("data:") for link in found.links)
    for name in EVIL:
        assert found.text.count(shown(name)) >= (8 if name in classes else 5), name
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table
    cards.write(tmp_path)


def test_without_nbconvert_the_install_line_is_given(tmp_path, monkeypatch):
    original = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("nb"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    full_run(tmp_path)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(PathoError, match=re.escape('pip install "patholib[notebooks]"')):
        report.write(tmp_path)
    assert (tmp_path / "report.md").is_file()


def over(**rivals):
    return {"gain_over": {key: {"auc": gain} for key, gain in rivals.items()}}


SOUND = {"val": summary(0.955), "test": summary(0.95), "test_tta": summary(0.96), "baseline": summary(0.8),
         **over(baseline=number(0.15))}


def test_a_sound_run_gives_no_hint():
    assert report.hints(history(), SOUND, RECIPE) == []


TROUBLE = {
    "not finite in epoch 5": {"history": {"train_loss": [1.0] * 4 + [np.nan] * 16}},
    "Overfitting: in epoch 17": {"history": {"train_accuracy": 0.99}},
    "rose by 20 %": {"history": {"val_loss": [1.0] * 10 + [1.2] * 10}},
    "The best epoch was 2 of 20": {"history": {"val_auc": [0.8, 0.9] + [0.85] * 18}},
    "The last epoch (20) was the best": {"history": {"val_auc": np.linspace(0.6, 0.9, 20)}},
    "Slow convergence": {"history": {"val_auc": [*np.linspace(0.6, 0.9, 19), 0.89]}},
    "jumped by more than 30 % in epoch 8": {"history": {"train_loss": [0.5] * 7 + [0.9] * 13}},
    "undefined in every epoch": {"history": {"val_auc": np.nan}},
    "Sensitivity for malignant is 0.700: 60 of 200": {"test": summary(sensitivity=0.7)},
    "0.100 above the test one": {"val": summary(0.99), "test": summary(0.89)},
    "not better than colour statistics: AUC 0.950, theirs 0.950": {"baseline": summary(0.95)},
    "groups, +0.010 (-0.010 to +0.030), may be none": {"baseline": summary(0.94), **over(baseline=number(0.01))},
    "and their difference has no interval": over(baseline={"value": 0.15, "low": None, "high": None}),
    "was not asked: AUC 0.950, theirs 0.800": {"gain_over": {}},
    "not better than the features of the network before its training: AUC 0.950": {"probe": summary(0.95)},
    "beats the features of the network before its training is not shown": {
        "probe": summary(0.94), **over(baseline=number(0.15), probe=number(0.01))},
    "changed the test AUC by +0.001": {"test_tta": summary(0.951)},
    "is 0.24 wide": {"test": summary(0.95, width=0.12)},
    "The split is by image": {"recipe": recipes.as_published("breakhis")},
}


@pytest.mark.parametrize("words", TROUBLE)
def test_each_trouble_is_named_with_its_numbers_and_a_field_to_change(words):
    case = TROUBLE[words]
    metrics = SOUND | {k: v for k, v in case.items() if k not in ("history", "recipe")}
    found = report.hints(history(**case.get("history", {})), metrics, case.get("recipe", RECIPE))
    hint = next(h for h in found if words in h)
    fields = {f.split("=")[0] for f in re.findall(r"`([^`]+)`", hint)}
    assert fields and fields <= set(RECIPE.to_json())


def test_a_probe_stands_beside_the_baseline_where_it_was_asked_for_and_is_missed_nowhere_else(tmp_path):
    text, _ = written(full_run(tmp_path))
    assert "probe" not in text and "probe" not in (tmp_path / "model_card.md").read_text()
    known = files.read_json(tmp_path / "metrics.json")
    known["gain_over"]["probe"] = {"auc": number(0.174, 0.124, 0.224)}
    files.write_json(tmp_path / "metrics.json", known | {"probe": summary(auc=0.777)})
    text, _ = written(tmp_path)
    assert "colour statistics alone | a linear probe | this minus colour statistics alone | this minus a li" in text
    assert "| +0.139 (+0.089 to +0.181) | +0.174 (+0.124 to +0.224) |" in text  # in short
    assert "linear probe (test)" in text
    assert text.count("0.777 (0.757 to 0.797)") == 2  # in short, and among the results
    assert "0.777 (0.757 to 0.797)" in (tmp_path / "model_card.md").read_text()


@pytest.mark.parametrize("name", ["breakhis", "isic2019"])
def test_random_weights_are_told_in_report_and_card_with_every_field_that_differs(tmp_path, name):
    recipe = recipes.from_scratch(recipes.get(name))
    text, _ = written(full_run(tmp_path, recipe))
    for page in (text, (tmp_path / "model_card.md").read_text()):
        (said,) = [line for line in page.splitlines() if line.startswith("**Profile for random weights: ")]
        assert all(field in said.replace("\\", "") for field in recipes.diff(recipes.get(name), recipe))
    text, _ = written(full_run(tmp_path, recipes.get(name)))
    assert "Profile" not in text and "Profile" not in (tmp_path / "model_card.md").read_text()


def test_a_restart_of_the_rate_is_no_instability():
    loss = [0.5] * 7 + [0.9] * 13
    found = report.hints(history(train_loss=loss, lr=[1e-6] * 7 + [1e-3] * 13), {}, RECIPE)
    assert not any("Unstable" in h for h in found)


def test_balancing_is_not_advised_where_it_lowers_the_sensitivity():
    frequent = report.hints([], {"test": summary(sensitivity=0.7, support=(100, 200))}, RECIPE)
    rare = report.hints([], {"test": summary(sensitivity=0.7, support=(200, 100))}, RECIPE)
    assert "`balance='none'`" in frequent[0] and "choose the threshold" in frequent[0]
    assert "balance" not in rare[0] and "choose the threshold" in rare[0]


def test_the_published_overview_figures_come_first(tmp_path):
    text, _ = written(full_run(tmp_path))
    assert text.index("](training_metrics.png)") < text.index("figures/roc%20curve.png")


def test_json_nan_never_reaches_the_report(tmp_path):
    full_run(tmp_path)
    files.write_table(tmp_path / "history.csv", history(train_loss=[1.0] * 19 + [np.inf]))
    text, page = written(tmp_path)
    assert "not finite" in text and not re.search(r"\bnan\b|\binf\b", text + Elements(page).text)
    assert json.loads((tmp_path / "run.json").read_text())["name"] == "a run"


def test_a_leaking_split_stands_above_report_and_card(tmp_path):
    leaks = {"case": [{"seen_in": "train", "found_in": "test", "images": 12, "of": 60, "share": 0.2,
                       "says": "12 of 60 test images have their case in train"}]}
    text, _ = written(full_run(tmp_path, leaks=leaks))
    for page in (text, (tmp_path / "model_card.md").read_text()):
        assert page.startswith("> **The split leaks:** 12 of 60 test images have their case in train.")
