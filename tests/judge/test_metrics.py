"""Numbers against scikit-learn and by hand; intervals against what is known about clustered data."""

import json

import numpy as np
import pandas as pd
import pytest
from prediction_tables import BINARY, THREE, binary, random_table
from sklearn import metrics as reference

from patholib.base.errors import PathoError
from patholib.judge import groupwise, intervals, metric_table, metrics, ranking, resampled, rules


def values(found):
    return {name: number["value"] for name, number in found["metrics"].items()}


# ---- against scikit-learn -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [BINARY, THREE])
def test_the_numbers_without_a_group_are_the_summary_of_the_other_rows(classes):
    """With ties, and with groups that have images of several classes."""
    predictions = random_table(4, n=120, classes=classes, n_groups=12, decimals=1)
    positive = "malignant" if classes is BINARY else None
    counted = resampled.tally(predictions, classes, positive, 0.4)
    overall, of_classes = resampled.values(counted)
    for g, name in enumerate([None, *sorted(predictions["group"].unique())]):
        rest = predictions[predictions["group"] != name].reset_index(drop=True)
        found = metrics.summary(rest, classes, positive, 0.4)
        for metric, numbers in overall.items():
            assert numbers[g] == pytest.approx(found["metrics"][metric]["value"], rel=1e-12), metric
        for metric in found["per_class"][classes[0]].keys() & of_classes.keys():
            theirs = [found["per_class"][c][metric]["value"] for c in classes]
            assert of_classes[metric][g].tolist() == pytest.approx(theirs), metric


SHARES = {"MEL": 0.1, "NV": 0.7, "BCC": 0.2}


def test_with_shares_the_probability_over_the_share_decides_worked_by_hand():
    # Over the shares: 3 0.71 1; 1 1.14 0.5; the tie 1 1 1 goes to the first. Of their sum 3/4.71, 1.14/2.64, 1/3.
    probs = np.array([[0.3, 0.5, 0.2], [0.1, 0.8, 0.1], [0.1, 0.7, 0.2]])
    assert rules.predicted(probs, THREE, threshold=SHARES).tolist() == [THREE.index(n) for n in ("MEL", "NV", "MEL")]
    assert rules.prior_corrected(probs, THREE, SHARES)[:, THREE.index("MEL")] == pytest.approx(
        [3 / (3 + 5 / 7 + 1), 1 / (1 + 8 / 7 + 0.5), 1 / 3]
    )
    assert rules.margin(probs, THREE, threshold=SHARES)[1] == pytest.approx((8 / 7 - 1) / (1 + 8 / 7 + 0.5))
    assert (rules.prior_corrected(probs, THREE, 0.5) == probs).all()
    table = pd.DataFrame(probs, columns=[f"p_{name}" for name in THREE]).assign(
        label=["MEL", "NV", "BCC"], group=["a", "b", "c"]
    )
    found = metrics.summary(table, THREE, "MEL", SHARES)
    assert found["threshold"] is None and found["decision"] == "largest probability over the share of the class"
    assert values(found)["balanced_accuracy"] == pytest.approx(2 / 3)
    assert values(found)["auc"] == values(metrics.summary(table, THREE, "MEL"))["auc"]
    assert resampled.decide(table, THREE, "MEL", SHARES).tolist() == ["MEL", "NV", "MEL"]


def test_shares_of_two_classes_are_a_threshold():
    p = np.random.default_rng(0).uniform(size=500)
    probs = np.stack([1 - p, p], axis=1)
    for threshold in (0.1, 0.31, 0.8):
        shares = {"benign": 1 - threshold, "malignant": threshold}
        assert (
            rules.predicted(probs, BINARY, "malignant", threshold)
            == rules.predicted(probs, BINARY, "malignant", shares)
        ).all()


def test_of_true_probabilities_the_shares_give_the_highest_balanced_accuracy():
    """One number that is seen, normal around another mean in each class: probabilities by Bayes, known exactly."""
    rng = np.random.default_rng(1)
    shares = np.array([SHARES[name] for name in THREE])
    labels = rng.choice(3, size=60_000, p=shares)
    seen = rng.normal(np.array([-1.0, 0.0, 1.2])[labels])
    likely = np.exp(-((seen[:, None] - [-1.0, 0.0, 1.2]) ** 2) / 2) * shares
    probs = likely / likely.sum(axis=1, keepdims=True)

    def balanced(bars) -> float:
        return reference.balanced_accuracy_score(
            labels, rules.predicted(probs, THREE, threshold=dict(zip(THREE, bars, strict=True)))
        )

    best = balanced(shares)
    assert best > balanced([1, 1, 1]) + 0.1
    assert all(balanced(shares * factor) < best + 0.003 for factor in rng.uniform(0.4, 2.5, (60, 3)))


def test_the_surest_with_shares_are_those_far_ahead_over_their_share():
    table = pd.DataFrame(
        {
            "label": ["MEL", "NV", "NV"],
            "group": ["a", "b", "c"],
            "p_MEL": [0.6, 0.0, 0.05],
            "p_NV": [0.3, 0.55, 0.95],
            "p_BCC": [0.1, 0.45, 0.0],
        }
    )
    # Over the shares, of their sum: 0.87 MEL (right), 0.74 BCC (wrong), 0.73 NV (right).
    found = ranking.abstention(table, THREE, threshold=SHARES)
    assert found["risk"] == pytest.approx([0, 0.5, 1 / 3], abs=1e-6)
    assert ranking.abstention(table, THREE)["risk"] == [0, 0, 0]


@pytest.mark.parametrize(
    "shares",
    [
        {"MEL": 0.5, "NV": 0.5},
        SHARES | {"DF": 0.1},
        SHARES | {"NV": 0.0},
        SHARES | {"NV": float("nan")},
        SHARES | {"NV": float("inf")},
    ],
)
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(PathoError, match="bad_threshold"):
        metrics.summary(random_table(0, classes=THREE), THREE, "MEL", shares)


def test_two_models_that_decide_by_other_shares_are_compared():
    table = random_table(8, classes=THREE)
    found = metrics.paired(table, table, THREE, "MEL", (SHARES, 0.5))
    parts = [values(metrics.summary(table, THREE, "MEL", rule))["accuracy"] for rule in (SHARES, 0.5)]
    assert found["accuracy"]["value"] == pytest.approx(parts[0] - parts[1]) and found["auc"]["value"] == 0


@pytest.mark.parametrize(("classes", "unused"), [(BINARY, None), (THREE, None), (THREE, "NV")])
def test_classification_report_equals_scikit_learn(classes, unused):
    predictions = random_table(6, classes=classes)
    if unused:  # a class that is never predicted
        predictions["p_MEL"] += predictions["p_NV"]
        predictions["p_NV"] = 0.0
    called = resampled.decide(predictions, classes)
    theirs = reference.classification_report(predictions["label"], called, zero_division=0, output_dict=True)
    ours = metrics.classification_report(predictions, classes)
    assert ours.index.tolist() == [*classes, "accuracy", "macro avg", "weighted avg"]
    assert ours.loc["accuracy"].tolist() == pytest.approx([*[theirs.pop("accuracy")] * 3, len(predictions)])
    for name, row in theirs.items():
        assert ours.loc[name].tolist() == pytest.approx(
            [row["recall"], row["precision"], row["f1-score"], row["support"]], abs=1e-14
        ), name


# ---- by hand --------------------------------------------------------------------------------------------------------


def test_a_small_case_worked_by_hand():
    # malignant: 0.9 0.6 0.4; benign: 0.7 0.2. At 0.5: TP 2, FN 1, FP 1, TN 1. Pairs won: 2 + 1 + 1 of 6.
    found = metrics.summary(binary([1, 1, 1, 0, 0], [0.9, 0.6, 0.4, 0.7, 0.2]), BINARY, "malignant")
    got = values(found)
    assert found["confusion"] == [[1, 1], [1, 2]]
    assert found["prior"] == {"benign": 0.4, "malignant": 0.6}
    assert (found["images"], found["groups"], found["decision"]) == (5, 5, "p_malignant >= 0.5")
    assert got["accuracy"] == pytest.approx(3 / 5)
    assert got["sensitivity"] == pytest.approx(2 / 3)
    assert got["specificity"] == pytest.approx(1 / 2)
    assert got["precision"] == pytest.approx(2 / 3)
    assert got["f1"] == pytest.approx(2 / 3)
    assert got["balanced_accuracy"] == pytest.approx(7 / 12)
    assert got["auc"] == pytest.approx(4 / 6)
    assert got["log_loss"] == pytest.approx(-np.log([0.9, 0.6, 0.4, 0.3, 0.8]).mean())
    assert got["brier"] == pytest.approx((0.01 + 0.16 + 0.36 + 0.49 + 0.04) / 5)


def test_a_tie_counts_half():
    for labels, scores, auc in (
        ([1, 0], [0.5, 0.5], 0.5),
        ([1, 1, 0, 0], [0.5, 0.9, 0.5, 0.1], 3.5 / 4),
        ([1, 1, 0], [0.3, 0.3, 0.3], 0.5),
    ):
        assert values(metrics.summary(binary(labels, scores), BINARY, "malignant"))["auc"] == pytest.approx(auc)


def test_an_image_at_the_threshold_is_called_positive():
    predictions = binary([1, 0], [0.3, 0.29])
    assert resampled.decide(predictions, BINARY, "malignant", 0.3).tolist() == ["malignant", "benign"]
    assert resampled.decide(binary([1], [0.5]), BINARY).tolist() == ["benign"]  # without a positive class: named first


def test_the_threshold_is_of_the_positive_class_wherever_it_stands():
    predictions = binary([1, 0, 0], [0.8, 0.65, 0.1])
    found = metrics.summary(predictions, BINARY, "benign", 0.3)
    assert found["confusion"] == [[2, 0], [0, 1]]
    assert values(found)["auc"] == 1.0
    assert metrics.summary(predictions, BINARY, "malignant", 0.3)["confusion"] == [[1, 1], [0, 1]]


def test_more_than_two_classes_use_no_threshold():
    found = metrics.summary(random_table(7), THREE, "MEL", threshold=0.9)
    assert found["threshold"] is None
    assert found["decision"] == "largest probability"
    assert "sensitivity" not in found["metrics"]


def test_a_certain_mistake_costs_a_finite_log_loss():
    found = metrics.summary(binary([1, 0], [0.0, 0.0]), BINARY, "malignant")
    assert found["metrics"]["log_loss"]["value"] == pytest.approx(-np.log(np.finfo(float).eps) / 2)


# ---- intervals (whether they hold the truth: tests/judge/coverage) --------------------------------------------------


def alike(seed, patients=16, per_patient=30, spread=1.0, within=0.1):
    """Images of a patient that hardly differ: the patient decides the score, as in histology."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(patients), per_patient)
    label = (np.arange(patients) % 2)[group]
    logit = label - 0.5 + rng.normal(0, spread, patients)[group] + rng.normal(0, within, len(group))
    return binary(label, 1 / (1 + np.exp(-logit)), groups=group)


def width(number):
    return number["high"] - number["low"]


def test_the_order_of_the_rows_changes_nothing():
    predictions = random_table(8, classes=THREE, decimals=2)
    shuffled = predictions.sample(frac=1, random_state=0)
    a, b = (metrics.summary(t, THREE) for t in (predictions, shuffled))
    assert a["confusion"] == b["confusion"]
    for key in ("value", "chance"):
        assert a["metrics"]["ece"][key] == pytest.approx(b["metrics"]["ece"][key], rel=1e-12)
    del a["metrics"]["ece"], b["metrics"]["ece"]
    for name, number in a["metrics"].items():
        assert b["metrics"][name] == pytest.approx(number, rel=1e-12), name


def test_beside_a_calibration_error_stands_what_it_is_by_chance():
    """Twelve patients in 15 bins: right probabilities have an error of this size."""
    rng = np.random.default_rng(0)
    p = rng.uniform(0.05, 0.95, 12)
    tables = [binary((rng.random(12) < p).astype(int), p) for _ in range(200)]
    errors = [metrics.summary(table, BINARY, "malignant")["metrics"]["ece"] for table in tables]
    mean, chance = np.mean([one["value"] for one in errors]), errors[0]["chance"]
    assert mean == pytest.approx(chance, rel=0.1) and chance > 0.25
    assert metrics.readable(errors[0]) == f"{errors[0]['value']:.3f} ({chance:.3f} by chance)"
    of_class = metrics.summary(random_table(10, n=400), THREE)["metrics"]["ece"]["chance"]
    assert 0 < of_class < 0.1


def test_every_value_lies_in_its_interval_and_all_is_json():
    found = metrics.summary(random_table(10, n=400), THREE)
    assert "never negative" in found["metrics"].pop("ece")["no_interval"]
    numbers = [
        *found["metrics"].values(),
        *(row[m.name] for row in found["per_class"].values() for m in metric_table.of_classes("classes")),
    ]
    assert all(n["low"] < n["value"] < n["high"] for n in numbers)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


# ---- differences ----------------------------------------------------------------------------------------------------


def test_a_difference_is_one_number_less_the_other():
    a, b = random_table(30, classes=BINARY, skill=1.2), random_table(30, classes=BINARY, skill=1.0)
    found = metrics.paired(a, b, BINARY, "malignant")
    first, second = (metrics.summary(t, BINARY, "malignant")["metrics"] for t in (a, b))
    assert set(found) == set(first)
    for name, number in found.items():
        assert number["value"] == pytest.approx(first[name]["value"] - second[name]["value"]), name
    assert found["auc"]["low"] > 0  # the two intervals overlap, and the difference is still shown
    assert first["auc"]["low"] < second["auc"]["high"]
    turned = metrics.paired(b, a, BINARY, "malignant")
    assert turned["auc"]["low"] == pytest.approx(-found["auc"]["high"])


def test_the_interval_of_a_difference_is_narrower_where_both_err_on_the_same_patients():
    a = alike(3, patients=40, per_patient=5)
    logit = np.log(a["p_malignant"] / a["p_benign"]) + np.random.default_rng(0).normal(0, 0.3, len(a))
    b = a.assign(p_malignant=1 / (1 + np.exp(-logit)), p_benign=1 / (1 + np.exp(logit)))
    difference = metrics.paired(a, b, BINARY, "malignant")["auc"]
    assert width(difference) < 0.3 * width(metrics.summary(a, BINARY, "malignant")["metrics"]["auc"])


def test_each_side_of_a_difference_may_have_its_own_threshold():
    a = random_table(31, classes=BINARY)
    found = metrics.paired(a, a, BINARY, "malignant", threshold=(0.3, 0.7))
    low, high = (metrics.summary(a, BINARY, "malignant", t)["metrics"]["sensitivity"]["value"] for t in (0.3, 0.7))
    assert found["sensitivity"]["value"] == pytest.approx(low - high) and found["auc"]["value"] == 0


def test_only_predictions_of_the_same_images_are_compared():
    a = random_table(32, classes=BINARY)
    for b in (a[:-1], a[::-1], a.assign(group="one"), a.assign(label="benign")):
        with pytest.raises(PathoError, match="not_paired"):
            metrics.paired(a, b, BINARY, "malignant")
    same = metrics.paired(a, a, BINARY, "malignant")["auc"]
    assert same["value"] == 0 and "the same without any one group" in same["no_interval"]


# ---- thresholds -----------------------------------------------------------------------------------------------------


def test_net_benefit_worked_by_hand():
    # At 0.5 an alarm costs as much as a find is worth: (2 - 1) / 4; at 0.8 four times as much: (1 - 0) / 4.
    found = ranking.decision_curve(binary([1, 1, 0, 0], [0.9, 0.6, 0.7, 0.2]), "malignant")
    at = {t: i for i, t in enumerate(found["threshold"])}
    assert len(at) <= ranking.POINTS
    assert found["model"][at[0.5]] == 0.25 and found["model"][at[0.8]] == 0.25
    assert found["everybody"][at[0.5]] == 0 and found["everybody"][at[0.8]] == pytest.approx(0.5 - 4 * 0.5)
    assert found["model"][at[0.02]] == found["everybody"][at[0.02]]


def test_risk_and_coverage_worked_by_hand():
    # By sureness: 0.9 right, 0.8 right, 0.7 wrong, 0.6 wrong: risks 0, 0, 1/3, 1/2.
    found = ranking.abstention(binary([1, 0, 0, 1], [0.9, 0.2, 0.7, 0.4]), BINARY, "malignant")
    assert found["coverage"] == [0.25, 0.5, 0.75, 1] and found["risk"] == pytest.approx([0, 0, 1 / 3, 1 / 2], abs=1e-6)
    assert found["aurc"] == found["aurc_best"] == pytest.approx((1 / 3 + 1 / 2) / 4)
    assert found["aurc_random"] == 0.5
    # With the threshold 0.65: 0.7 and 0.4 are called wrongly, and 0.7 is the one closest to it.
    low = ranking.abstention(binary([1, 0, 0, 1], [0.9, 0.2, 0.7, 0.4]), BINARY, "malignant", 0.65)
    assert low["risk"] == pytest.approx([0, 0, 1 / 3, 1 / 2], abs=1e-6)


def test_equally_sure_images_share_their_errors_whatever_their_order():
    predictions = random_table(35, decimals=1)
    a, b = (ranking.abstention(t, THREE) for t in (predictions, predictions.sample(frac=1, random_state=1)))
    assert a["risk"] == b["risk"] and len(a["risk"]) <= ranking.POINTS
    flat = ranking.abstention(predictions.assign(p_MEL=0.5, p_NV=0.3, p_BCC=0.2), THREE)
    assert flat["risk"] == pytest.approx([flat["aurc_random"]] * len(flat["risk"]), abs=1e-6)
    assert a["aurc_best"] < a["aurc"] < a["aurc_random"]


# ---- what is undefined is said --------------------------------------------------------------------------------------


def test_one_class_leaves_auc_undefined_and_says_so():
    found = metrics.summary(binary([1, 1, 1], [0.9, 0.2, 0.6]), BINARY, "malignant")
    for name in ("auc", "balanced_accuracy", "macro_f1"):
        assert found["metrics"][name] == {
            "value": None,
            "low": None,
            "high": None,
            "undefined": "only one class among the labels",
        }
    assert found["metrics"]["specificity"]["undefined"] == "every image is of this class"
    assert found["metrics"]["sensitivity"]["value"] == pytest.approx(2 / 3)
    assert found["per_class"]["benign"]["sensitivity"]["undefined"] == "no image is of this class"
    json.dumps(found, allow_nan=False)


def test_an_absent_class_is_named_where_a_mean_leaves_it_out():
    predictions = random_table(12)
    predictions = predictions[predictions["label"] != "BCC"]
    found = metrics.summary(predictions, THREE)
    assert found["metrics"]["balanced_accuracy"]["note"] == "mean over the classes that occur; absent: BCC"
    assert "note" not in found["metrics"]["accuracy"]
    called = resampled.decide(predictions, THREE)
    assert values(found)["balanced_accuracy"] == pytest.approx(
        np.mean([(called[predictions["label"] == c] == c).mean() for c in ("MEL", "NV")])
    )


def test_a_class_never_predicted_has_no_precision_but_counts_zero_in_the_mean():
    predictions = binary([0, 0, 1], [0.1, 0.2, 0.3])
    found = metrics.summary(predictions, BINARY, "malignant")
    assert found["metrics"]["precision"]["undefined"] == "no image is predicted as this class"
    assert found["metrics"]["macro_precision"]["value"] == pytest.approx((2 / 3 + 0) / 2)


def test_one_group_of_a_class_gives_no_interval_and_few_are_named():
    label = np.repeat([1, 1, 1, 1, 1, 1, 1, 0], 10)
    predictions = binary(label, np.random.default_rng(0).random(80), groups=np.repeat(np.arange(8), 10))
    found = metrics.summary(predictions, BINARY, "malignant")
    assert "fewer than two of a class" in found["metrics"]["auc"]["no_interval"]
    assert found["metrics"]["auc"]["value"] is not None and found["metrics"]["sensitivity"]["low"] is not None
    assert found["notes"] == [
        "only 1 groups of benign, 7 groups of malignant: with fewer than 10 of a class, its intervals are rough"
    ]
    many = binary([0] * 9 + [1] * 40, np.random.default_rng(0).random(49))
    assert metrics.summary(many, BINARY)["notes"][0].startswith("only 9 groups of benign: ")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"label": "bengin"}, "unknown_class"),
        ({"p_benign": 0.9, "p_malignant": 0.9}, "bad_probabilities"),
        ({"p_benign": float("nan")}, "bad_probabilities"),
        ({"p_benign": -0.5, "p_malignant": 1.5}, "bad_probabilities"),
    ],
)
def test_a_table_that_holds_no_predictions_is_refused(change, code):
    with pytest.raises(PathoError) as refusal:
        metrics.summary(binary([1, 0], [0.9, 0.1]).assign(**change), BINARY)
    assert refusal.value.code == code


def test_what_cannot_be_judged_is_refused_by_name():
    predictions = binary([1, 0], [0.9, 0.1])
    for arguments, code in [
        ((predictions.drop(columns="p_benign"), BINARY), "missing_column"),
        ((predictions.drop(columns="group"), BINARY), "missing_column"),
        ((predictions[:0], BINARY), "no_predictions"),
        ((predictions, BINARY, "malign"), "unknown_class"),
    ]:
        with pytest.raises(PathoError) as refusal:
            metrics.summary(*arguments)
        assert refusal.value.code == code


# ---- subgroups ------------------------------------------------------------------------------------------------------


def test_a_subgroup_has_the_numbers_of_its_rows():
    predictions = random_table(13, classes=BINARY).assign(site=["", "arm", "leg"] * 100, sex=["f", "m"] * 150)
    found = groupwise.by_subgroup(predictions, BINARY, "malignant", ("site", "sex"))
    assert found[["column", "value"]].to_numpy().tolist() == [
        ["site", "(not stated)"],
        ["site", "arm"],
        ["site", "leg"],
        ["sex", "f"],
        ["sex", "m"],
    ]
    part = metrics.summary(predictions[predictions["site"] == "arm"], BINARY, "malignant")
    row = found.set_index("value").loc["arm"]
    assert (row["images"], row["groups"]) == (100, part["groups"])
    for name in ("accuracy", "balanced_accuracy", "auc", "sensitivity", "specificity"):
        assert [row[name], row[f"{name}_low"], row[f"{name}_high"]] == list(part["metrics"][name].values())
    assert not found["few"].any()


def test_a_subgroup_with_one_class_or_few_groups_says_so():
    predictions = binary(
        [1, 1, 1, 0, 1, 0],
        [0.9, 0.8, 0.2, 0.4, 0.6, 0.1],
        groups=[0, 0, 1, 2, 3, 4],
        subtype=["PC", "PC", "PC", "A", "DC", "A"],
    )
    found = groupwise.by_subgroup(predictions, BINARY, "malignant", ["subtype"]).set_index("value")
    assert found["few"].all()
    assert np.isnan(found.loc["PC", "auc"])
    assert "auc: only one class among the labels" in found.loc["PC", "note"]
    assert "only 2 groups of malignant" in found.loc["PC", "note"]
    assert found.loc["PC", "sensitivity"] == pytest.approx(2 / 3)


def test_no_columns_give_an_empty_table():
    found = groupwise.by_subgroup(binary([1, 0], [0.9, 0.1]), BINARY, "malignant", ())
    assert len(found) == 0
    assert "auc_low" in found


# ---- patients -------------------------------------------------------------------------------------------------------


def recognition_rate(*table, **options):
    return groupwise.patient_summary(*table, **options)["recognition_rate"]["value"]


def patients():
    # a: 1 of 2 right, mean 0.65; b: 3 of 4 right, mean 0.25; c: both labels.
    return binary(
        [1, 1, 0, 0, 0, 0, 1, 0], [0.9, 0.4, 0.1, 0.1, 0.2, 0.6, 0.9, 0.1], groups="aabbbbcc", case=list("aabbbbcc")
    )


def test_the_patient_score_is_the_share_of_images_that_are_right():
    found = groupwise.by_patient(patients(), BINARY, "malignant")
    assert found["patient"].tolist() == ["a", "b"]
    assert found["label"].tolist() == ["malignant", "benign"]
    assert found["images"].tolist() == [2, 4]
    assert found["right"].tolist() == [1, 3]
    assert found["score"].tolist() == [0.5, 0.75]
    assert found["p_malignant"].tolist() == pytest.approx([0.65, 0.25])
    assert found["decision"].tolist() == ["malignant", "benign"]


def test_the_recognition_rate_is_the_mean_of_the_patient_scores():
    assert recognition_rate(patients(), BINARY, "malignant") == pytest.approx((0.5 + 0.75) / 2)
    at_high = recognition_rate(patients(), BINARY, "malignant", threshold=0.7)
    assert at_high == pytest.approx((0.5 + 1) / 2)


def test_a_patient_with_two_labels_is_counted_and_left_out():
    assert groupwise.with_two_labels(patients()) == ["c"]
    found = groupwise.patient_summary(patients(), BINARY, "malignant")
    assert found["patients"] == 2
    assert found["two_labels"] == {"patients": 1, "names": ["c"]}
    only = patients()[-2:]
    assert recognition_rate(only, BINARY, "malignant") is None
    found = groupwise.patient_summary(only, BINARY, "malignant")
    assert found["recognition_rate"]["undefined"] == "every patient has two labels"
    assert found["summary"] is None


def test_patients_are_judged_by_their_mean_probability():
    predictions = random_table(14, n=400, classes=BINARY, n_groups=30).assign(label="benign")
    malignant = predictions["group"] < "g2"
    predictions.loc[malignant, "label"] = "malignant"
    predictions["case"] = predictions["group"]
    found = groupwise.patient_summary(predictions, BINARY, "malignant")
    means = predictions.groupby("group")["p_malignant"].mean()
    assert found["summary"]["images"] == found["patients"] == 30
    assert found["summary"]["metrics"]["auc"]["value"] == pytest.approx(
        reference.roc_auc_score(means.index < "g2", means)
    )
    rate = found["recognition_rate"]
    assert rate["value"] == recognition_rate(predictions, BINARY, "malignant")
    assert rate["low"] < rate["value"] < rate["high"]
    json.dumps(found, allow_nan=False)


def test_slides_of_a_case_are_drawn_with_it_and_images_of_a_split_by_image_by_patient():
    rows = binary(
        [1, 1, 0, 0], [0.9, 0.8, 0.2, 0.1], groups=["case1", "case1", "case2", "case3"], case=["A", "B", "C", "C"]
    )
    assert groupwise.by_patient(rows, BINARY, "malignant")["group"].tolist() == ["gcase1", "gcase1", "C"]


def test_images_of_unknown_patients_are_not_one_patient():
    rows = binary([1, 0, 0], [0.9, 0.2, 0.1], case=["", "", "C"])
    assert groupwise.by_patient(rows, BINARY, "malignant")["patient"].tolist() == ["C", "g0", "g1"]
    assert groupwise.with_two_labels(rows) == []


@pytest.mark.parametrize(
    ("number", "digits", "text"),
    [
        ({"value": 0.93, "low": 0.88, "high": 0.97}, 2, "0.93 (0.88 to 0.97)"),
        ({"value": 0.93, "low": 0.88, "high": 0.97}, 3, "0.930 (0.880 to 0.970)"),
        ({"value": 1.0, "low": None, "high": None, "no_interval": "too few"}, 3, "1.000 (no interval)"),
        ({"value": None, "low": None, "high": None, "undefined": "one class"}, 3, "undefined"),
        ({"value": 0.0, "low": 0.0, "high": 0.1}, 2, "0.00 (0.00 to 0.10)"),
        (None, 3, "absent"),
    ],
)
def test_a_number_is_written_with_its_interval_or_says_what_is_missing(number, digits, text):
    assert metrics.readable(number, digits) == text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_share_of_0_or_1_that_one_group_moves_has_an_interval_that_ends_there(value):
    """As a precision of 1 by one prediction: without its group there is none, which counts as 0."""
    left = np.full(10, value)
    left[0] = abs(value - 0.3)
    found = intervals.estimate(value, left, np.ones((1, 10)), "share", "")
    assert (found.low, found.high)[int(value)] == value and 0.05 < found.high - found.low < 1


def test_an_estimate_is_read_back_from_json():
    for estimate in (
        intervals.Estimate(0.5, 0.4, 0.6, note="of two classes"),
        intervals.Estimate(None, missing="why"),
        intervals.Estimate(1.0, missing="no spread"),
    ):
        assert intervals.Estimate.from_json(json.loads(json.dumps(estimate.to_json()))) == estimate
