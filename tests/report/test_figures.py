import io
import re
import warnings

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from patholib.base.errors import PathoError
from patholib.judge import ranking
from patholib.report.figures import heatmaps, learning, overview, performance, probabilities, several, sheets, style

NOTE = "Demo images: not a result"
TWO = ["benign", "malignant"]
EIGHT = ["melanoma", "melanocytic naevus", "basal cell carcinoma", "actinic keratosis", "benign keratosis-like lesion",
         "dermatofibroma", "vascular lesion", "squamous cell carcinoma of the skin"]
ODD = ["$x_1$", "_hidden", "a\nb", "<script>", "50 %", "|", "\\alpha", "ÄÖÜ" * 40]


def history(epochs=6, **columns):
    epoch = np.arange(1, epochs + 1)
    table = pd.DataFrame({
        "epoch": epoch, "lr": 10.0 ** -(3 + epoch % 3), "frozen": 13 - epoch // 2,
        "trainable_share": 0.2 + 0.05 * epoch,
        "train_loss": 1 / epoch, "train_accuracy": 1 - 0.4 / epoch, "val_loss": 1.1 / epoch,
        "val_accuracy": 0.9 - 0.3 / epoch, "val_balanced_accuracy": 0.88 - 0.3 / epoch,
        "val_auc": [0.6, 0.9, 0.8, 0.9, 0.7, 0.65][:epochs], "gap": 0.1, "seconds": 2.0})
    return table.assign(**columns)


def summary():
    names = ["accuracy", "balanced_accuracy", "auc", "sensitivity"]
    return {"metrics": {n: {"value": 0.9, "low": 0.8, "high": 0.95} for n in names}
            | {"f1": {"value": None, "low": None, "high": None}}}


def pictures(n, size=24):
    return np.random.default_rng(1).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def predictions(classes, n=80):
    rng = np.random.default_rng(2)
    labels = np.arange(n) % len(classes)
    logits = rng.normal(size=(n, len(classes))) + 2 * np.eye(len(classes))[labels]
    return labels, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def split_table(classes):
    return pd.DataFrame([(c, f"{c}{i % 7}", s) for c in classes for i, s in enumerate(["train"] * 7 + ["val", "test"])],
                        columns=["label", "group", "split"])


def every_figure(classes, note=""):
    labels, probs = predictions(classes)
    matrix = np.diag(np.arange(len(classes)) * 100)
    patients = pd.DataFrame({"group": [f"p{i}" for i in range(2 * len(classes))], "label": classes * 2,
                             "score": np.linspace(0, 1, 2 * len(classes)), "images": 3})
    heat = np.stack([np.zeros((24, 24)), *np.random.default_rng(0).random((2, 24, 24))])
    yield sheets.contact_sheet(pictures(len(classes)), classes, note=note)
    yield sheets.class_counts(split_table(classes), classes, note=note)
    yield sheets.augmented(pictures(2), [pictures(2), np.ones((2, 3, 24, 24)) / 2], classes[:2], note=note)
    yield learning.schedule(history()[["epoch", "lr", "frozen"]], blocks=17, note=note)
    yield learning.curves(history(), note=note)
    yield learning.learning_rate(history().to_dict("records"), note=note)
    yield learning.unfreezing(history(), blocks=17, note=note)
    yield performance.confusion(matrix, classes, note=note)
    yield performance.roc_pr(labels, probs, classes, classes[-1] if len(classes) == 2 else None, note=note)
    yield performance.intervals(summary(), note=note)
    yield performance.forest(pd.DataFrame({"name": classes, "kind": classes, "value": 0.8, "low": 0.7, "high": 0.9}), 0.75,
                         "truth", note=note)
    found = {"temperature": 1.4, "ece_mass": 0.1, "ece_chance": 0.02, "counts": [3, 0, 5],
             "bins": [{"confidence": 0.2, "accuracy": 0.1, "n": 4}, {"confidence": 0.8, "accuracy": 0.9, "n": 4}]}
    yield probabilities.reliability({"before": found, "after": found}, note=note)
    yield probabilities.thresholds(labels, probs, classes, classes[-1], 0.3, 0.95, note=note)
    yield probabilities.thresholds(labels, probs, classes, None, None, note=note)
    curve = ranking.decision_curve(pd.DataFrame({"label": [classes[-1], "x"], f"p_{classes[-1]}": [0.9, 0.2]}),
                                   classes[-1])
    yield probabilities.decision_curve(curve, 0.3, note=note)
    yield probabilities.decision_curve(None, note=note)
    yield probabilities.abstention({"coverage": [0.5, 1], "risk": [0, 0.1], "aurc": 0.03, "aurc_random": 0.1}, note=note)
    yield performance.patients(patients, threshold=0.5, note=note)
    yield heatmaps.gallery(pictures(3), heat, classes[:3] if len(classes) > 2 else [*classes, "x"], note=note)
    yield overview.training_metrics(history(), summary(), matrix, classes, labels, probs, note=note)
    yield several.histories({name: history() for name in classes}, note=note)
    yield several.roc_overlay(dict.fromkeys(classes, (labels, probs)), classes, note=note)
    yield several.reliability_overlay({name: reliability() for name in classes}, classes[0], note=note)
    yield several.differences(differences(classes), note=note)


def reliability():
    return pd.DataFrame({"confidence": [0.1, 0.5, 0.9], "accuracy": [0.0, 0.6, 1.0], "n": 5})


def differences(names):
    """Of three numbers between runs of these names: one with an interval, one without, one undefined."""
    return pd.DataFrame([{"number": number, "run": name, "value": value, "low": low, "high": high}
                         for number, value, low, high in (("AUC", 0.02, -0.01, 0.05), ("F1", -0.1, None, np.nan),
                                                          ("log loss (lower is better)", None, None, None))
                         for name in names])


def texts(figure):
    return [t.get_text() for t in figure.findobj(Text)]


def test_every_figure_is_closed_and_says_above_its_title_that_demo_images_are_no_result():
    before = plt.get_fignums()
    for figure in every_figure(TWO, NOTE):
        assert isinstance(figure, Figure)
        note, title = figure.texts[0], figure.texts[1]
        assert note.get_text() == NOTE
        assert note.get_position()[1] > title.get_position()[1]
    assert plt.get_fignums() == before


def test_no_text_leaves_the_figure_and_no_label_touches_its_neighbour():
    for figure in every_figure(EIGHT, NOTE):
        figure.draw_without_rendering()
        drawn = figure.get_tightbbox()  # inches
        assert drawn.x0 > -0.02 and drawn.y0 > -0.02
        assert drawn.x1 < figure.get_figwidth() + 0.02 and drawn.y1 < figure.get_figheight() + 0.02
        for axes in figure.axes:
            labels = [t.get_window_extent() for t in axes.get_yticklabels() if t.get_text()]
            assert not any(a.overlaps(b) for i, a in enumerate(labels) for b in labels[i + 1:])


def test_odd_class_names_are_shown_as_they_are_and_never_parsed():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in every_figure(ODD):
            figure.draw_without_rendering()
    shown = texts(performance.confusion(np.eye(8), ODD))
    assert "$x_1$" in shown and "a\\nb" in shown and "<script>" in shown


def test_drawing_leaves_the_callers_style_alone():
    before = dict(matplotlib.rcParams)
    learning.curves(history())
    assert dict(matplotlib.rcParams) == before


def test_the_first_of_several_equally_good_epochs_is_marked():
    assert "best: epoch 2" in texts(learning.curves(history()))
    assert "kept: epoch 5" in texts(learning.curves(history(), kept=5))
    assert "best: epoch 2" in texts(learning.curves(history(), kept=2))


def test_one_epoch_and_a_broken_loss_are_drawn_and_said():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        overview.training_metrics(history(1), summary(), np.eye(2), TWO).draw_without_rendering()
        figure = learning.curves(history(val_loss=[1, 0.9, np.nan, np.inf, 1, 1]))
        figure.draw_without_rendering()
    assert "not finite from epoch 3" in texts(figure)
    with pytest.raises(PathoError, match="empty_history"):
        learning.curves([])


def test_the_confusion_matrix_shows_counts_and_shares_of_its_rows():
    shown = texts(performance.confusion([[3, 1], [0, 0]], TWO))
    assert "3\n75 %" in shown and "1\n25 %" in shown
    assert shown.count("–") == 2  # a class without images has no shares
    with pytest.raises(PathoError, match="2 classes, but 3 names"):
        performance.confusion(np.eye(2), ["a", "b", "c"])


def auc_in(figure):
    return [re.search(r"(AUC|AP) ([\d.]+)", t).group(2) for t in texts(figure) if re.match("(AUC|AP) ", t)]


def test_areas_in_the_legend_are_scikit_learns():
    from sklearn.metrics import average_precision_score, roc_auc_score

    labels, probs = predictions(EIGHT, 300)
    probs = probs.round(1)  # many ties
    aucs = [f"{roc_auc_score(labels == k, probs[:, k]):.3f}" for k in range(8)]
    aps = [f"{average_precision_score(labels == k, probs[:, k]):.3f}" for k in range(8)]
    assert auc_in(performance.roc_pr(labels, probs, EIGHT)) == aucs + aps


def test_the_working_point_lies_where_the_threshold_puts_it():
    labels = np.array([0, 0, 1, 1, 1])
    scores = np.array([0.1, 0.6, 0.4, 0.6, 0.9])
    figure = performance.roc_pr(labels, np.stack([1 - scores, scores], 1), TWO, "malignant", threshold=0.6)
    roc, precision = [next(line for line in axes.get_lines() if line.get_marker() == "o") for axes in figure.axes]
    assert [roc.get_xdata()[0], roc.get_ydata()[0]] == [0.5, 2 / 3]
    assert [precision.get_xdata()[0], precision.get_ydata()[0]] == [2 / 3, 2 / 3]


def test_the_locked_threshold_is_marked_where_both_shares_are_what_it_gives():
    labels, scores = np.array([0, 0, 0, 1, 1]), np.array([0.1, 0.3, 0.6, 0.4, 0.9])
    axes = probabilities.thresholds(labels, np.stack([1 - scores, scores], 1), TWO, "malignant", 0.4, 0.95).axes[0]
    lines = {line.get_label(): line for line in axes.get_lines()}

    def at(name, threshold):  # of a line of steps that lead up to their point
        x, y = lines[name].get_data()
        return y[np.searchsorted(x, threshold)]

    for threshold in (0.05, 0.1, 0.35, 0.4, 0.5, 0.6, 0.95):
        assert at("sensitivity", threshold) == (scores[labels == 1] >= threshold).mean()
        assert at("specificity", threshold) == pytest.approx((scores[labels == 0] < threshold).mean())
    assert "threshold 0.4" in [t.get_text() for t in axes.texts] and "target 0.95" in lines


def test_of_more_classes_every_curve_is_drawn_also_where_one_is_watched():
    labels, probs = predictions(EIGHT, 200)
    figure = performance.roc_pr(labels, probs, EIGHT, EIGHT[0], threshold=0.1)
    assert len(auc_in(figure)) == 16 and not any("threshold" in t for t in texts(figure))


def test_a_class_without_images_has_no_curve_but_says_so():
    labels, probs = predictions(TWO)
    shown = texts(performance.roc_pr(np.zeros_like(labels), probs, TWO, "malignant"))
    assert shown.count("undefined  malignant") == 2


def test_an_overlay_mixes_picture_and_colour_and_a_blank_map_leaves_the_picture():
    image = np.full((2, 2, 3), 100, np.uint8)
    heat = np.array([[0, 1], [0.5, 0.5]])
    shown = heatmaps.overlay(image, heat, opacity=0.5)
    np.testing.assert_array_equal(shown[0, 0], [50, 50, 114])  # jet(0) is (0, 0, 0.5)
    np.testing.assert_array_equal(shown[0, 1], [114, 50, 50])  # jet(1) is (0.5, 0, 0)
    np.testing.assert_array_equal(heatmaps.overlay(image, np.zeros((2, 2))), image)
    for wrong in (np.zeros((3, 2)), np.full((2, 2), np.nan), np.full((2, 2), 1.1)):
        with pytest.raises(PathoError):
            heatmaps.overlay(image, wrong)


def test_a_gallery_has_one_colour_bar_and_names_blank_maps():
    heat = np.stack([np.zeros((24, 24)), np.full((24, 24), 2.0), np.full((24, 24), 4.0)])
    figure = heatmaps.gallery(pictures(3), heat, ["a", "b", "c"], vmax=4)
    assert texts(figure).count("blank map") == 1
    bars = [a for a in figure.axes if a.get_label() == "<colorbar>"]
    assert len(bars) == 1 and bars[0].get_ylim() == (0, 4)
    own = heatmaps.gallery(pictures(3), heat, ["a", "b", "c"])
    assert any("own maximum" in t for t in texts(own))


def test_floats_with_channels_first_and_bytes_with_channels_last_give_the_same_picture():
    image = pictures(1)[0]
    np.testing.assert_array_equal(style.picture(image.transpose(2, 0, 1) / 255), image)
    with pytest.raises(PathoError, match="not_a_picture"):
        style.picture(np.zeros((4, 4)))


def test_a_saved_figure_has_the_same_bytes_each_time(tmp_path):
    first, second = tmp_path / "a.png", tmp_path / "b" / "c.png"
    for path in (first, second):
        figure = learning.learning_rate(history())
        assert style.save(figure, path) is figure  # so that a notebook's cell can end with it
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().startswith(b"\x89PNG")


def test_classes_keep_their_order_and_colour_where_some_have_no_patient():
    table = pd.DataFrame({"group": ["a", "b"], "label": ["AK", "MEL"], "score": [0.5, 1.0]})
    found = texts(performance.patients(table, classes=("MEL", "NV", "AK"), group_name="lesion"))
    legend = [t for t in found if " lesions: " in t]
    assert legend == ["1 lesions: MEL", "1 lesions: AK"] and "One dot per lesion" in found
    dots = performance.patients(table, classes=("MEL", "NV", "AK")).axes[0].collections
    third = matplotlib.colors.to_rgba(style.COLOURS[2])
    assert any(np.allclose(dot.get_facecolor(), third) for dot in dots if len(dot.get_facecolor()))


def test_more_patients_than_dots_can_show_are_counted_by_score():
    table = pd.DataFrame({"group": [f"p{i}" for i in range(100)], "label": ["AK"] * 60 + ["NV"] * 40,
                          "score": [0.0] * 20 + [1.0] * 40 + [1 / 3] * 40})
    found = texts(performance.patients(table, group_name="lesion"))
    assert {"20", "AK: 60", "NV: 40", "Scores of 100 lesions"} <= set(found)
    assert found.count("40") == 2  # AK at 1, NV at a third


def test_patients_are_called_by_their_own_name_where_it_is_not_the_group():
    table = pd.DataFrame({"patient": ["14-1", "14-2"], "group": ["g1", "g2"], "label": TWO, "score": [0.5, 1.0]})
    assert {"14-1", "14-2"} <= set(texts(performance.patients(table))) and "g1" not in texts(performance.patients(table))
    assert {"g1", "g2"} <= set(texts(performance.patients(table.drop(columns="patient"))))


def panel(content, number, size, factor):
    """One of the three pictures on the sheet of `panels`, (size, size, 3), read from the middle of its squares."""
    sheet, side = np.asarray(Image.open(io.BytesIO(content))), size * factor
    left = number * (side + 14)
    return sheet[44:44 + side, left:left + side][factor // 2::factor, factor // 2::factor]


def test_panels_enlarge_every_pixel_by_the_same_whole_factor():
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    heat = np.linspace(0, 0.03, 64 * 64).reshape(64, 64)
    content = sheets.panels(picture, heat, "malignant", opacity=0.3, cmap="viridis")
    assert np.array_equal(panel(content, 0, 64, 7), picture)
    assert np.array_equal(panel(content, 1, 64, 7), heatmaps.overlay(picture, heat / 0.03, 1, "viridis"))
    assert np.array_equal(panel(content, 2, 64, 7), heatmaps.overlay(picture, heat / 0.03, 0.3, "viridis"))


def test_panels_leave_the_picture_plain_under_a_blank_map():
    picture = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    content = sheets.panels(picture, np.zeros((224, 224)), "a")
    assert np.array_equal(panel(content, 2, 224, 2), picture)
    assert len(np.unique(panel(content, 1, 224, 2)[:60])) == 1


def test_an_explored_image_marks_the_threshold_on_the_bar_of_its_class():
    picture, heat = np.zeros((32, 32, 3), np.uint8), np.eye(32)
    drawn = heatmaps.explored(picture, heat, "b", {"a": 0.2, "b": 0.8}, ("b", 0.3), note="demo")
    axes = next(a for a in drawn.axes if a.get_title(loc="center") == "probability")
    (line,) = axes.lines
    assert list(line.get_xdata()) == [0.3, 0.3] and 0.5 < min(line.get_ydata())
    assert [bar.get_width() for bar in axes.patches] == [0.2, 0.8]
    assert not heatmaps.explored(picture, heat, "b", {"a": 0.2, "b": 0.8}).axes[-1].lines


def test_a_forest_plot_says_every_number_and_what_has_none():
    table = pd.DataFrame({"name": ["a", "b", "c"], "value": [0.9, 0.6, None], "low": [0.85, None, None],
                          "high": [0.95, None, None]})
    found = texts(performance.forest(table, 0.7, "truth"))
    assert {"0.900 (0.850 to 0.950)", "0.600 (no interval)", "undefined", "truth 0.700", "a", "b", "c"} <= set(found)
    with pytest.raises(PathoError, match="no_estimates"):
        performance.forest(table.head(0))


def test_several_runs_are_told_apart_and_their_undefined_numbers_said():
    labels, probs = predictions(TWO)
    figure = several.roc_overlay({"a": (labels, probs), "b": (labels * 0, probs)}, TWO, "malignant")
    assert any(text.startswith("AUC 0.") and text.endswith("  a") for text in texts(figure))
    assert "undefined  b" in texts(figure)
    lines = several.histories({str(i): history() for i in range(32)}).axes[0].lines
    looks = {(line.get_color(), str(line._unscaled_dash_pattern)) for line in lines if len(line.get_xdata()) > 1}
    assert len(looks) == 32


@pytest.mark.parametrize("draw", [
    lambda names: several.histories({name: history() for name in names}),
    lambda names: several.reliability_overlay({name: reliability() for name in names}),
    lambda names: several.differences(differences(names)),
    lambda names: several.roc_overlay(dict.fromkeys(names, predictions(EIGHT)), EIGHT),
], ids=["histories", "reliability", "differences", "roc"])
def test_every_run_stands_in_the_legend_also_one_whose_name_begins_with_an_underscore(draw):
    names = ["_first", "second", "_child2"]
    (legend,) = draw(names).legends
    assert [text.get_text() for text in legend.get_texts()] == names
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in legend.get_lines()}) == 3


def test_a_difference_is_drawn_with_its_sign_and_zero_stands_in_the_middle():
    figure = several.differences(differences(["b - a"]))
    assert {"+0.020", "-0.100 (no interval)", "undefined"} <= set(texts(figure))
    low, high = figure.axes[0].get_xlim()
    assert low == -high


def test_a_run_whose_loss_is_broken_or_whose_monitor_is_unknown_is_drawn_as_far_as_it_goes():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        several.histories({"a": history(1), "b": history(val_loss=[1, 0.9, np.nan, np.inf, 1, 1]),
                           "c": history().drop(columns="val_auc")}).draw_without_rendering()


@pytest.mark.parametrize("draw", [several.histories, several.reliability_overlay, several.differences,
                                  lambda nothing: several.roc_overlay(nothing, TWO)])
def test_nothing_to_compare_is_refused(draw):
    with pytest.raises(PathoError, match="shape_mismatch"):
        draw({})
