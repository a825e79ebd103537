"""External validation: the locked model on a second set. What the run has seen is refused; nothing of it changes."""

from __future__ import annotations

import math
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from intervals import World, two_sets
from PIL import Image
from prediction_tables import BINARY, THREE, binary, random_table
from runfolder import full_run
from scipy import stats
from tiny import SMALL

import patholib
from patholib import cli
from patholib.base import files
from patholib.base.errors import PathoError
from patholib.data import overlap, readers
from patholib.judge import calibration, decisions, external, intervals, metrics
from patholib.judge.intervals import Estimate
from patholib.model.recipes import BREAKHIS, ISIC2019
from patholib.report import checklists, externals
from patholib.report.figures import style
from patholib.report.records import Record
from patholib.study import Study, evaluating


def refused(call, *args, **given) -> PathoError:
    with pytest.raises(PathoError) as error:
        call(*args, **given)
    return error.value


# ---- the difference of two independent sets --------------------------------------------------------------------------


def test_the_interval_of_a_difference_is_that_of_newcombe():
    """56 of 70 against 48 of 80, from Wilson's intervals: Newcombe 1998, table II, method 10."""

    def wilson(right: int, of: int) -> Estimate:
        ends = stats.binomtest(right, of).proportion_ci(method="wilson")
        return Estimate(right / of, ends.low, ends.high)

    found = intervals.apart(wilson(56, 70), wilson(48, 80))
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_a_difference_without_one_of_the_intervals_or_values_says_why():
    known, alone = Estimate(0.9, 0.8, 0.95), Estimate(0.7, missing="too few groups")
    assert intervals.apart(known, alone) == Estimate(0.9 - 0.7, missing="too few groups")
    assert intervals.apart(alone, known).missing == "too few groups"
    assert intervals.apart(known, Estimate(None, missing="no image")) == Estimate(None, missing="no image")


def test_internal_minus_external_is_the_difference_of_the_two_values():
    """Internal: 3 of 4 right, sensitivity 1, specificity 1/2. External: 2 of 4, 1/2 and 1/2. By hand."""
    internal = metrics.summary(binary([1, 1, 0, 0], [0.9, 0.8, 0.6, 0.1]), BINARY, "malignant")
    outside = metrics.summary(binary([1, 1, 0, 0], [0.9, 0.2, 0.6, 0.1]), BINARY, "malignant")
    found = external.minus(internal, outside)["metrics"]
    by_hand = {"accuracy": 0.25, "sensitivity": 0.5, "specificity": 0.0, "balanced_accuracy": 0.25, "auc": 1 - 0.75}
    assert {name: found[name]["value"] for name in by_hand} == pytest.approx(by_hand)
    for name, number in found.items():
        assert number["value"] == internal["metrics"][name]["value"] - outside["metrics"][name]["value"]
    assert external.minus(internal, outside)["per_class"]["benign"]["sensitivity"]["value"] == 0


@pytest.mark.parametrize("groups", [((16, 54), (16, 54)), ((10, 10), (40, 40))])
def test_the_interval_of_internal_minus_external_holds_the_truth(groups):
    """Two independent sets, the second harder: a known difference of AUC."""
    found = two_sets(World(skill=1.6), World(skill=0.8), groups, 200)
    assert (found["held"] >= 0.9).all() and (found["none"] < 0.02).all(), found


def test_too_narrow_an_interval_would_be_found_out(monkeypatch):
    """The same simulation with the internal set's chance forgotten."""
    kept = intervals.apart
    monkeypatch.setattr(intervals, "apart", lambda a, b: kept(replace(a, low=a.value, high=a.value), b))
    assert (two_sets(World(), World(), ((10, 10), (40, 40)), 200)["held"] < 0.85).all()


def test_other_metrics_that_differ_are_named_on_the_side_to_which_they_differ():
    """Of a loss less is better; what contains 0, or has no interval, is not named."""
    ends = {"auc": (0.1, 0.4), "balanced_accuracy": (-0.1, 0.2), "sensitivity": (-0.5, -0.1), "log_loss": (-1, -0.2)}
    gaps = {name: Estimate(sum(pair) / 2, *pair).to_json() for name, pair in ends.items()}
    gaps["brier"] = Estimate(-0.1, missing="too few groups").to_json()
    judged = SimpleNamespace(recipe=BREAKHIS, metrics={"internal_minus_external": {"metrics": gaps}})
    found = external.External(Path(), {}, judged, {}, "balanced_accuracy")
    assert found.outcome == external.NOT_SHOWN
    assert found.others.endswith(": worse AUC, log loss; better sensitivity")
    assert replace(found, monitor="auc").others.endswith(": worse log loss; better sensitivity")


def test_means_over_other_classes_are_not_subtracted():
    internal, outside = (metrics.summary(random_table(seed), THREE) for seed in (0, 1))
    assert external.minus(internal, outside)["metrics"]["auc"]["value"] is not None
    table = random_table(1)
    lacking = metrics.summary(table[table["label"] != "BCC"], THREE)
    found = external.minus(internal, lacking)
    assert found["metrics"]["auc"]["value"] is None
    assert "BCC" in found["metrics"]["balanced_accuracy"]["undefined"]
    assert found["metrics"]["accuracy"]["value"] is not None
    assert found["per_class"]["BCC"]["sensitivity"]["undefined"] == "no image is of this class"


# ---- calibration in the large, and what a new one would change -------------------------------------------------------


def test_intercept_and_slope_have_the_interval_of_the_jackknife():
    """One step of Newton's method is close to fitting again without each group."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(40), 6)
    p = 1 / (1 + np.exp(-rng.normal(0, 1.5, len(group))))
    labels = (rng.random(len(group)) < p).astype(int)
    probs = np.stack([1 - p, p], axis=1)
    found = calibration.in_the_large(labels, probs, 1, group)
    for name, formula in (("intercept", calibration.intercept), ("slope", calibration.slope)):
        left = np.array([formula(labels[group != g], probs[group != g], 1) for g in range(40)])
        strata = np.stack([np.bincount(group, labels), np.bincount(group, 1 - labels)])
        exact = intervals.estimate(formula(labels, probs, 1), left, strata, "difference")
        assert found[name].value == exact.value
        assert (found[name].low, found[name].high) == pytest.approx((exact.low, exact.high), abs=0.01), name
        assert found[name].low < {"intercept": 0, "slope": 1}[name] < found[name].high


def test_recalibration_mends_a_shift_and_gains_nothing_where_there_is_none():
    for shift, mended in ((1.5, True), (0.0, False)):
        table = shifted(binary_predictions(seed=1), shift)
        decision = decisions.choose(binary_predictions(seed=2), BINARY, "malignant")
        found, _ = external.numbers({"test": table}, BREAKHIS, decision, internal(BREAKHIS, decision))
        again, locked = found["if_recalibrated"], found["test"]["metrics"]
        gain = locked["log_loss"]["value"] - again["metrics"]["log_loss"]["value"]
        assert gain > 0.1 if mended else abs(gain) < 0.02
        wrong = [not number["low"] < 0 < number["high"] for number in intercepts(found, again)]
        assert wrong == [mended, False]


def intercepts(*found) -> list[dict]:
    return [one["in_the_large"]["intercept"] for one in found]


def test_no_image_chooses_its_own_calibration():
    """Scores that mean nothing: a calibration beats a constant on the images it was fitted to, not on others."""
    rng = np.random.default_rng(0)
    table = binary(rng.integers(0, 2, 60), rng.uniform(0.01, 0.99, 60))
    found = external.recalibrated(table, BREAKHIS, decisions.choose(table, BINARY, "malignant"))
    assert found["metrics"]["log_loss"]["value"] > math.log(2) - 0.01


def binary_predictions(seed: int) -> pd.DataFrame:
    labels, scores, group = World(skill=1.0, between=0.5, within=0.5).draw(seed, (60, 60))
    return binary(labels, 1 / (1 + np.exp(-4 * scores))).assign(group=[f"g{g}" for g in group])


def shifted(table: pd.DataFrame, by: float) -> pd.DataFrame:
    odds = np.log(table["p_malignant"] / table["p_benign"]) - by
    p = 1 / (1 + np.exp(-odds))
    return table.assign(p_malignant=p, p_benign=1 - p)


def internal(recipe, decision) -> dict:
    return external.judging.numbers({"test": binary_predictions(seed=3)}, recipe, decision)[0]["test"]


def test_neither_the_order_of_rows_nor_of_classes_changes_a_number():
    table = binary_predictions(seed=1)
    decision = decisions.choose(binary_predictions(seed=2), BINARY, "malignant")
    found, _ = external.numbers({"test": table}, BREAKHIS, decision, internal(BREAKHIS, decision))
    rows = table.sample(frac=1, random_state=0).reset_index(drop=True)
    mixed, _ = external.numbers({"test": rows}, BREAKHIS, decision, internal(BREAKHIS, decision))
    turned = replace(BREAKHIS, classes=BINARY[::-1])
    swapped, _ = external.numbers({"test": table}, turned, decision, internal(turned, decision))
    for other in (mixed, swapped):
        for key in ("internal_minus_external", "if_recalibrated"):
            for name, number in found[key]["metrics"].items():
                assert other[key]["metrics"][name]["value"] == pytest.approx(number["value"], abs=1e-9), name
        assert other["in_the_large"]["slope"]["low"] == pytest.approx(found["in_the_large"]["slope"]["low"])


# ---- a run and a second set ------------------------------------------------------------------------------------------


def pictures(folder: Path, seed: int, patients: int = 16, prefix: str = "p", label=lambda name: name) -> Path:
    """Patients of two classes, two pictures of noise each, and their table."""
    folder.mkdir(parents=True)
    rng, rows = np.random.default_rng(seed), []
    for i in range(2 * patients):
        rough = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(rough).resize((40, 40), Image.Resampling.BICUBIC).save(folder / f"{i:02}.png")
        row = {"path": f"{i:02}.png", "label": label(BREAKHIS.classes[i % 4 // 2]), "group": f"{prefix}{i // 2}"}
        rows.append({**row, "scanner": "AB"[i // 2 % 2]})
    files.write_table(folder / "mine.csv", pd.DataFrame(rows))
    return folder / "mine.csv"


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    return pictures(tmp_path_factory.mktemp("own") / "set", seed=0)


@pytest.fixture(scope="module")
def run(own, tmp_path_factory, small_network) -> Path:
    output = str(tmp_path_factory.mktemp("runs"))
    study = Study(own, recipe="breakhis", positive="malignant", **SMALL, output=output, quiet=True, remember=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "FILE_DPI", 40)
        study.train()
        study.lock()
        study.judge()
        study.report()
    return study.dir


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(style, "FILE_DPI", 40)  # what the figures show is not looked at here


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> Path:
    return pictures(tmp_path_factory.mktemp("others") / "hospital", seed=1, prefix="h")


def bytes_of(run: Path) -> dict[str, bytes]:
    pages = re.compile(r"(report|model_card|data_card|checklist)\.(md|html)")
    return {
        path.relative_to(run).as_posix(): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and "external" not in path.relative_to(run).parts[:1] and not pages.fullmatch(path.name)
    }


pytestmark = pytest.mark.heavy


def test_nothing_of_the_run_is_changed_and_the_second_call_reads_what_the_first_found(run, own, others):
    before = bytes_of(run)
    found = patholib.evaluate(run, others, images=own, name="there")
    assert bytes_of(run) == before
    written = {path: path.stat().st_mtime_ns for path in found.folder.rglob("*")}
    again = patholib.evaluate(run, others, images=own, name="there")
    assert again.judged.metrics == found.judged.metrics and again.facts == found.facts
    assert {path: path.stat().st_mtime_ns for path in found.folder.rglob("*")} == written
    assert {"predictions.csv", "metrics.json", "external.json", "external.html", "data_report.html", "figures"} <= {
        path.name for path in found.folder.iterdir()
    }
    train = pd.read_csv(run / "images.csv")["sha256"]
    sha256 = [files.sha256(others.parent / path) for path in found.judged.test["path"]]
    assert len(sha256) == 32 and not set(sha256) & set(train)


def test_the_locked_decision_is_applied_as_it_stands(run, own, others):
    found = patholib.evaluate(run, others, images=own, name="there")
    opened = Study.open(run, own)
    source = readers.read(others)
    checked = evaluating._checked(replace(source, classes=BREAKHIS.classes), opened, "error")
    raw = opened.predict(checked)
    by_hand = decisions.with_calibration(raw, BREAKHIS.classes, decisions.locked(run))
    table = found.judged.test
    np.testing.assert_allclose(table["p_malignant"], by_hand["p_malignant"], atol=1e-12)
    threshold = decisions.locked(run)["threshold"]
    assert ((table["p_malignant"] >= threshold) == (table["decision"] == "malignant")).all()
    assert found.judged.summary["threshold"] == threshold
    assert {row["value"] for row in found.judged.summary["subgroups"]} == {"A", "B"}


def test_report_card_and_checklist_say_what_was_found(run, own, others):
    found = patholib.evaluate(run, others, images=own, name="there")
    shown = metrics.readable(found.minus["metrics"]["auc"], sign="+").partition(" (")[0]
    for name in ("report.md", "model_card.md"):
        text = (run / name).read_text(encoding="utf-8").replace("&#45;", "-").replace("&#43;", "+")
        assert "## External validation" in text and shown in text, name
    text = (run / "checklist.md").read_text(encoding="utf-8")
    assert re.search(r"\| 33 \| .* \| filled \|", text)
    page = (found.folder / "external.html").read_text(encoding="utf-8")
    assert external.RECALIBRATED in page and "<script" not in page
    assert {path.stem for path in (found.folder / "figures").iterdir()} == set(externals.FIGURES)
    assert all(title in page for title in externals.FIGURES.values())


def test_another_set_under_the_same_name_is_refused(run, own, others, tmp_path):
    patholib.evaluate(run, others, images=own, name="there")
    third = pictures(tmp_path / "third", seed=2, prefix="t")
    assert refused(patholib.evaluate, run, third, images=own, name="there").code == "output_exists"
    table = pd.read_csv(others, dtype=str)
    relabelled = files.write_table(
        others.with_name("relabelled.csv"), table.assign(label=table["label"].to_numpy()[::-1])
    )
    assert refused(patholib.evaluate, run, relabelled, images=own, name="there").code == "output_exists"
    assert refused(patholib.evaluate, run, others, images=own, name="../up").code == "bad_parameter"


@pytest.mark.parametrize("way", ["same group", "same file", "same pixels", "near-duplicate", "same name"])
def test_what_the_run_has_seen_is_refused(run, own, tmp_path, way):
    table = pictures(tmp_path / "leak", seed=3, prefix="p" if way == "same group" else "x")
    theirs, ours = table.parent / "05.png", own.parent / "02.png"
    images: Path | str = own
    if way == "same file":
        theirs.write_bytes(ours.read_bytes())
    elif way == "same pixels":
        Image.open(ours).save(theirs, compress_level=1)
        assert theirs.read_bytes() != ours.read_bytes()
    elif way == "near-duplicate":
        Image.open(ours).rotate(90).save(table.parent / "05.jpg", quality=60)
        theirs.unlink()
        table.write_text(table.read_text().replace("05.png", "05.jpg"))
    elif way == "same name":
        images = "auto"  # a table of one's own is not found again, so that no pixels can be compared
    before = bytes_of(run)
    error = refused(patholib.evaluate, run, table, images=images, name="leak")
    assert error.code == "external_leak"
    assert set(error.report["by_kind"]) == {way} | ({"same pixels"} if way == "same file" else set())
    if way in ("same file", "same pixels", "near-duplicate"):
        assert {(link["path"][:2], link["other"]) for link in error.report["links"]} == {("05", "02.png")}
        assert "05" in error.reason and "02.png" in error.reason
    assert bytes_of(run) == before and not (run / "external" / "leak").exists()


def test_a_leak_that_is_allowed_stands_on_every_page(run, own, tmp_path):
    table = pictures(tmp_path / "leak", seed=3, prefix="x")
    (table.parent / "05.png").write_bytes((own.parent / "02.png").read_bytes())
    found = patholib.evaluate(run, table, images=own, name="leaky", allow_leakage=True)
    try:
        assert "1 of these images are not new" in found.leaks and "leak" in found.facts["note"]
        for name in (
            "report.html",
            "model_card.html",
            "data_card.html",
            "checklist.html",
            "external/leaky/external.html",
        ):
            assert "The external images leaky leak" in (run / name).read_text(encoding="utf-8"), name
        assert refused(patholib.evaluate, run, table, images=own, name="leaky").code == "external_leak"
    finally:
        for path in sorted(found.folder.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        found.folder.rmdir()


def test_labels_are_taken_by_name_or_by_a_map_and_never_guessed(run, own, tmp_path):
    table = pictures(tmp_path / "named", seed=4, prefix="n", label=lambda name: {"malignant": "cancer"}.get(name, name))
    rows = pd.read_csv(table, dtype=str)
    rows.loc[:1, "label"] = "artefact"
    files.write_table(table, rows)
    error = refused(patholib.evaluate, run, table, images=own)
    assert (
        error.code == "unknown_class"
        and "artefact (2 images)" in error.subject
        and "cancer (16 images)" in error.subject
    )
    assert refused(patholib.evaluate, run, table, images=own, classes={"cancr": "malignant"}).code == "bad_parameter"
    assert refused(patholib.evaluate, run, table, images=own, classes={"cancer": "malign"}).code == "unknown_class"
    one = {"cancer": None, "artefact": None}
    assert refused(patholib.evaluate, run, table, images=own, classes=one).code == "single_class"
    found = patholib.evaluate(run, table, images=own, classes={"cancer": "malignant", "artefact": ""})
    assert found.name == "mine" and found.facts["classes"]["left_out"] == {"artefact": 2}
    assert found.judged.summary["images"] == 30 and not found.facts["classes"]["by_name"]


def test_a_table_with_other_columns_is_read_as_it_is_told_and_the_page_says_how(run, own, others, capsys):
    table = pd.read_csv(others, dtype=str).rename(columns={"path": "scan", "label": "finding", "group": "person"})
    odd = files.write_table(others.with_name("odd.csv"), table)
    told = ["evaluate", str(run), str(odd), "--images", str(own)]
    for part, code in (("scan", "csv_format"), ("finding", "csv_format"), ("person", "no_groups")):
        assert cli.main(told) == cli.UNREADABLE
        assert f"[{code}]" in capsys.readouterr().err, part
        told += ["--group", part] if part == "person" else []
        told += (
            ["--columns", "path=scan", *(["label=finding"] if part == "finding" else [])] if part != "person" else []
        )
    half = "|".join(f"h{i}" for i in range(8))
    assert cli.main([*told, "--only", f"person={half}"]) == cli.OK
    found = external.read(run / "external" / "odd")
    straight = patholib.evaluate(run, readers.read(others), images=own, name="half", only=f"group={half}")
    assert found.judged.summary["images"] == 16 and found.judged.metrics == straight.judged.metrics
    page = (found.folder / "external.md").read_text(encoding="utf-8")
    assert "chosen by" in page and "person" in page and "finding" in page
    assert refused(patholib.evaluate, run, others, images=own, name="half").code == "output_exists"


@pytest.mark.parametrize(("known", "said"), [("g{}", []), ("", ["lesions: names of ISIC do not tell them"])])
def test_what_is_not_compared_is_said_without_options_that_only_the_audit_has(known, said):
    names = [f"ISIC_000000{i}.jpg" for i in range(4)]
    table = pd.DataFrame({"path": names, "group": [known.format(i) or name for i, name in enumerate(names)]})
    theirs = SimpleNamespace(table=table[2:], subgroups=(), levels=("group",), group_by="group")
    reasons = overlap._ids(table[:2], theirs)[1]
    assert [reason for reason in reasons if "lesions" in reason] == said
    assert not any("--" in reason for reason in reasons)


def test_a_set_may_lack_classes_if_two_are_left(tmp_path):
    named = {"benign": "NV", "malignant": "MEL"}
    source = readers.read(pictures(tmp_path / "two", seed=5, label=named.__getitem__))
    mapped, said = evaluating.relabelled(source, ISIC2019.classes, "MEL", {})
    assert mapped.classes == ISIC2019.classes and said["by_name"]
    assert said["lacking"] == [name for name in ISIC2019.classes if name not in ("MEL", "NV")]


def test_a_run_that_was_not_judged_is_refused(run, own, others, tmp_path):
    folder = tmp_path / "unjudged"
    folder.mkdir()
    for name in ("run.json", "decision.json", "split.csv", "split.csv.sha256", "images.csv", "predictions_val.csv"):
        (folder / name).write_bytes((run / name).read_bytes())
    for path in run.glob("predictions_val_tta.csv"):
        (folder / path.name).write_bytes(path.read_bytes())
    assert refused(patholib.evaluate, folder, others, images=own).code == "not_judged"
    (folder / "decision.json").unlink()
    assert refused(patholib.evaluate, folder, others, images=own).code == "not_locked"


def test_the_command_says_what_the_call_says(run, own, others, capsys):
    patholib.evaluate(run, others, images=own, name="there")
    assert cli.main(["evaluate", str(run), str(others), "--images", str(own), "--name", "there"]) == cli.OK
    said = capsys.readouterr().out
    assert "internal minus external" in said and "external.html" in said
    assert cli.main(["evaluate", str(run), str(own), "--images", str(own), "--name", "own"]) == cli.UNREADABLE
    assert "[external_leak]" in capsys.readouterr().err


def test_predicting_a_labelled_table_gives_the_same_numbers(run, own, others, tmp_path, capsys):
    out = tmp_path / "answers.csv"
    copied = others.with_name("predicted.csv")
    copied.write_bytes(others.read_bytes())
    assert cli.main(["predict", str(run), str(copied), "--out", str(out), "--engine", "torch"]) == cli.OK
    assert "[external_leak]" in capsys.readouterr().err  # names of files, as no picture can be compared
    assert len(pd.read_csv(out)) == 32
    Study.open(run, own).evaluate(copied, name="predicted")
    out.unlink()
    assert cli.main(["predict", str(run), str(copied), "--out", str(out), "--engine", "torch"]) == cli.OK
    assert "internal minus external" in capsys.readouterr().out
    exported = tmp_path / "export"
    assert cli.main(["export", str(run), "--out", str(exported)]) == cli.OK
    out.unlink()
    assert cli.main(["predict", str(exported), str(copied), "--out", str(out), "--engine", "torch"]) == cli.OK
    assert "No numbers" in capsys.readouterr().err


def test_a_run_without_such_a_test_leaves_item_33_open(tmp_path):
    item = next(item for item in checklists.items("CLAIM 2024") if item.number == "33")
    assert checklists.row(Record(full_run(tmp_path)), item)[2] == "open"


# ---- real images -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_on_new_patients_nothing_is_lost_and_on_turned_colours_much_is(tmp_path):
    """IDC, halved by patient; the second half as it is, and with hue turned and JPEG quality 20."""
    real = os.environ.get("PATHOLIB_REAL_DATA")
    if not real:
        pytest.skip("PATHOLIB_REAL_DATA is unset: no real images")
    table = pd.read_csv(Path(real) / "idc" / "labels.csv", dtype=str)
    table = table.rename(columns={"file": "path", "patient": "group"})
    table["path"] = [str(Path(real) / "idc" / path) for path in table["path"]]
    half = np.random.default_rng(0).permutation(sorted(set(table["group"])))[::2]
    inside = files.write_table(tmp_path / "inside.csv", table[table["group"].isin(half)])
    outside = files.write_table(tmp_path / "outside.csv", table[~table["group"].isin(half)])
    turned = []
    for i, row in enumerate(table[~table["group"].isin(half)].itertuples()):
        hue, *rest = Image.open(row.path).convert("HSV").split()
        image = Image.merge("HSV", (hue.point([(x + 20) % 256 for x in range(256)]), *rest)).convert("RGB")
        image.save(tmp_path / f"{i:04}.jpg", quality=20)
        turned.append({"path": f"{i:04}.jpg", "label": row.label, "group": row.group})
    shifted = files.write_table(tmp_path / "shifted.csv", pd.DataFrame(turned))
    how = {"train": "head", "small": True, "device": "cpu", "on_bad": "skip", "quiet": True, "remember": False}
    study = Study(inside, positive="idc", output=str(tmp_path / "runs"), **how)
    study.train()
    study.lock()
    study.judge(baselines=False)
    same, other = (study.evaluate(path, on_bad="skip") for path in (outside, shifted))
    assert same.outcome == external.NOT_SHOWN and same.facts["leaks"]["images"] == 0
    assert other.outcome == external.WORSE or "do not fit" in other.calibrated
    share = [one.judged.metrics["novelty"]["share"]["value"] for one in (same, other)]
    assert share[0] < 0.15 < share[1]
