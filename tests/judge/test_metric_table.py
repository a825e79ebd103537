"""The table of metrics: each entry against a reference, with its reason, its direction and its place in every table."""

import numpy as np
import pytest
from prediction_tables import BINARY, THREE, binary, random_table
from sklearn import metrics as reference

from patholib.judge import calibration, metric_table, metrics

ZERO = {"zero_division": 0}
MACRO = {"average": "macro", **ZERO}


def macro_specificity(true, predicted, probs):
    return np.mean([reference.recall_score(true != k, predicted != k) for k in range(probs.shape[1])])


# Of true and predicted class (N,) as indices and probabilities (N, C).
OVERALL = {
    "accuracy": lambda true, predicted, probs: reference.accuracy_score(true, predicted),
    "balanced_accuracy": lambda true, predicted, probs: reference.balanced_accuracy_score(true, predicted),
    "auc": lambda true, predicted, probs: reference.roc_auc_score(
        true, probs if probs.shape[1] > 2 else probs[:, 1], multi_class="ovr", average="macro"
    ),
    "macro_precision": lambda true, predicted, probs: reference.precision_score(true, predicted, **MACRO),
    "macro_sensitivity": lambda true, predicted, probs: reference.recall_score(true, predicted, **MACRO),
    "macro_specificity": macro_specificity,
    "macro_f1": lambda true, predicted, probs: reference.f1_score(true, predicted, **MACRO),
    "log_loss": lambda true, predicted, probs: reference.log_loss(true, probs),
    "brier": lambda true, predicted, probs: (
        ((probs - np.eye(probs.shape[1])[true]) ** 2).sum(axis=1).mean() / (2 if probs.shape[1] == 2 else 1)
    ),
    "ece": lambda true, predicted, probs: calibration.ece(true, probs, of=1 if probs.shape[1] == 2 else None),
}
# Of one class against the rest: whether each image is of it and is predicted as it (N,), and its probability (N,).
OF_CLASS = {
    "auc": lambda true, predicted, scores: reference.roc_auc_score(true, scores),
    "sensitivity": lambda true, predicted, scores: reference.recall_score(true, predicted),
    "specificity": lambda true, predicted, scores: reference.recall_score(~true, ~predicted),
    "precision": lambda true, predicted, scores: reference.precision_score(true, predicted, **ZERO),
    "f1": lambda true, predicted, scores: reference.f1_score(true, predicted, **ZERO),
    "ppv": lambda true, predicted, scores: reference.precision_score(true, predicted, **ZERO),
    "npv": lambda true, predicted, scores: reference.precision_score(~true, ~predicted, **ZERO),
}
REFERENCES = {"overall": OVERALL, "mean": OVERALL, "image": OVERALL, "once": OVERALL, "class": OF_CLASS}


@pytest.mark.parametrize("metric", metric_table.METRICS, ids=lambda m: f"{m.name}, {m.kind}")
def test_a_metric_has_a_reference_to_be_compared_with(metric):
    assert metric.name in REFERENCES[metric.kind], f"{metric.name} is in METRICS but has no line in this file"


@pytest.mark.parametrize("decimals", [None, 1])
@pytest.mark.parametrize(("classes", "threshold"), [(BINARY, 0.5), (BINARY, 0.3), (THREE, 0.5)])
def test_every_metric_equals_its_reference(classes, threshold, decimals):
    predictions = random_table(1, classes=classes, decimals=decimals)
    positive = "malignant" if classes is BINARY else None
    probs = predictions[[f"p_{c}" for c in classes]].to_numpy()
    true = np.array([classes.index(name) for name in predictions["label"]])
    predicted = (probs[:, 1] >= threshold).astype(int) if positive else probs.argmax(axis=1)
    found = metrics.summary(predictions, classes, positive, threshold)
    assert found["confusion"] == reference.confusion_matrix(true, predicted).tolist()
    of_positive = {m.name for m in metric_table.of_classes("positive")} if positive else set()
    assert found["metrics"].keys() == {m.name for m in metric_table.METRICS if m.kind != "class"} | of_positive
    for name, number in found["metrics"].items():
        theirs = (
            OF_CLASS[name](true == 1, predicted == 1, probs[:, 1])
            if name in of_positive
            else OVERALL[name](true, predicted, probs)
        )
        assert number["value"] == pytest.approx(theirs, rel=1e-12), name
    for k, row in enumerate(found["per_class"].values()):
        assert (row.pop("support"), row.pop("groups")) == (
            (true == k).sum(),
            predictions.loc[true == k, "group"].nunique(),
        )
        assert row.keys() == {m.name for m in metric_table.of_classes("classes")}
        for name, number in row.items():
            assert number["value"] == pytest.approx(OF_CLASS[name](true == k, predicted == k, probs[:, k])), name


def test_every_metric_of_an_alert_equals_its_reference():
    predictions = random_table(34)
    found = metrics.alert(predictions, THREE, "MEL", 0.2)
    true, scores = (predictions["label"] == "MEL").to_numpy(), predictions["p_MEL"].to_numpy()
    for metric in metric_table.of_classes("alert"):
        number = found[metric.name]
        assert number["value"] == pytest.approx(OF_CLASS[metric.name](true, scores >= 0.2, scores)), metric.name
        assert number["low"] < number["value"] < number["high"], metric.name
    assert found["flagged"] == (scores >= 0.2).mean() and found["positives"] == true.sum()


def degenerate():
    """Tables on which numbers are undefined, with their threshold."""
    labels, scores = [0, 1, 0, 1, 1], [0.2, 0.7, 0.6, 0.4, 0.9]
    yield binary([1, 1, 1], [0.9, 0.2, 0.6]), 0.5
    yield binary([0, 0, 0], [0.9, 0.2, 0.6]), 0.5
    yield binary([1, 1], [0.9, 0.8]), 0.5
    yield binary([1, 1], [0.1, 0.2]), 0.5
    yield binary([1], [1.0]), 0.5
    yield binary(labels, scores), 0.0
    yield binary(labels, scores), 1.0


def test_every_number_without_a_value_or_an_interval_says_why():
    for predictions, threshold in degenerate():
        found = metrics.summary(predictions, BINARY, "malignant", threshold)
        raised = metrics.alert(predictions, BINARY, "malignant", threshold)
        numbers = [
            *found["metrics"].items(),
            *((name, raised[name]) for name in metrics.ALERT),
            *(item for row in found["per_class"].values() for item in row.items()),
            *metrics.paired(predictions, predictions, BINARY, "malignant", threshold).items(),
        ]
        for name, number in numbers:
            if name not in ("support", "groups"):
                key = "undefined" if number["value"] is None else "no_interval"
                assert number["low"] is not None or number.get(key), f"{name} is {number} and gives no reason"


def test_a_better_model_has_a_better_value_in_the_direction_of_each_metric():
    worse, better = (random_table(5, classes=BINARY, skill=skill) for skill in (0.0, 3.0))
    for shown, label in ((metrics.summary, "metrics"), (metrics.alert, None)):
        low, high = (shown(table, BINARY, "malignant", 0.5) for table in (worse, better))
        for metric in metric_table.METRICS:
            before, after = ((found[label] if label else found).get(metric.name) for found in (low, high))
            if before:
                rises = after["value"] > before["value"]
                assert rises == (metric.better == "higher"), f"{metric.name} says that {metric.better} is better"


def test_every_number_of_a_summary_stands_in_the_tables_of_people_under_words_of_its_own():
    found = metrics.summary(random_table(2, classes=BINARY), BINARY, "malignant")["metrics"]
    same = {m.name for m in metric_table.METRICS if m.same_as in found and found[m.name] == found[m.same_as]}
    assert set(found) - set(metric_table.order()) == same
    assert metric_table.ordered([*found, "a_new_one"])[-1] == "a_new_one"  # none is left out
    assert len({metric_table.words(name) for name in metric_table.order()}) == len(metric_table.order())
    for m in metric_table.METRICS:
        assert metric_table.words(m.name) == m.words, f"{m.name} has two entries with other words"
    of_summary = [m.name for m in metric_table.of_summary(by_threshold=True)]
    assert len(of_summary) == len(set(of_summary))
    for m in metric_table.of_kind("once"):
        assert m.no_interval, f"{m.name} does not say why it has no interval"


def test_tables_of_two_classes_leave_out_means_over_both():
    left_out = set(metric_table.order()) - set(metric_table.order(2))
    assert left_out == {"macro_precision", "macro_specificity", "macro_f1"}
    assert metric_table.order(3) == metric_table.order()
