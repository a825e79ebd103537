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
from patholib.judge.gradcam import Gallery
from patholib.report.figures import heatmaps, learning, overview, performance, probabilities, several, sheets, style

pytestmark = pytest.mark.heavy

NOTE = "Demo images: not a result"
TWO = ["benign", "malignant"]
EIGHT = [
    "melanoma",
    "melanocytic naevus",
    "basal cell carcinoma",
    "actinic keratosis",
    "benign keratosis-like lesion",
    "dermatofibroma",
    "vascular lesion",
    "squamous cell carcinoma of the skin",
]
ODD = ["$x_1$", "_hidden", "a\nb", "<script>", "50 %", "|", "\\alpha", "ÄÖÜ" * 40]


def history(epochs=6, **columns):
    epoch = np.arange(1, epochs + 1)
    table = pd.DataFrame(
        {
            "epoch": epoch,
            "lr": 10.0 ** -(3 + epoch % 3),
            "frozen": 13 - epoch // 2,
            "trainable_share": 0.2 + 0.05 * epoch,
            "train_loss": 1 / epoch,
            "train_accuracy": 1 - 0.4 / epoch,
            "val_loss": 1.1 / epoch,
            "val_accuracy": 0.9 - 0.3 / epoch,
            "val_balanced_accuracy": 0.88 - 0.3 / epoch,
            "val_auc": [0.6, 0.9, 0.8, 0.9, 0.7, 0.65][:epochs],
            "gap": 0.1,
            "seconds": 2.0,
        }
    )
    return table.assign(**columns)


def summary():
    names = ["accuracy", "balanced_accuracy", "auc", "sensitivity"]
    return {
        "metrics": {n: {"value": 0.9, "low": 0.8, "high": 0.95} for n in names}
        | {"f1": {"value": None, "low": None, "high": None}}
    }


def pictures(n, size=24):
    return np.random.default_rng(1).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def predictions(classes, n=80):
    rng = np.random.default_rng(2)
    labels = np.arange(n) % len(classes)
    logits = rng.normal(size=(n, len(classes))) + 2 * np.eye(len(classes))[labels]
    return labels, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def every_figure(classes, note=""):
    labels, probs = predictions(classes)
    matrix = np.diag(np.arange(len(classes)) * 100)
    patients = pd.DataFrame(
        {
            "group": [f"p{i}" for i in range(2 * len(classes))],
            "label": classes * 2,
            "score": np.linspace(0, 1, 2 * len(classes)),
            "images": 3,
        }
    )
    yield sheets.contact_sheet(pictures(len(classes)), classes, note=note)
    yield sheets.augmented(pictures(2), [pictures(2), np.ones((2, 3, 24, 24)) / 2], classes[:2], note=note)
    yield learning.schedule(history()[["epoch", "lr", "frozen"]], blocks=17, note=note)
    yield learning.curves(history(), note=note)
    yield learning.unfreezing(history(), blocks=17, note=note)
    yield performance.confusion(matrix, classes, note=note)
    yield performance.roc_pr(labels, probs, classes, classes[-1] if len(classes) == 2 else None, note=note)
    estimates = pd.DataFrame({"name": classes, "kind": classes, "value": 0.8, "low": 0.7, "high": 0.9})
    yield performance.forest(estimates, 0.75, "truth", note=note)
    found = {
        "temperature": 1.4,
        "ece_mass": 0.1,
        "ece_chance": 0.02,
        "counts": [3, 0, 5],
        "bins": [{"confidence": 0.2, "accuracy": 0.1, "n": 4}, {"confidence": 0.8, "accuracy": 0.9, "n": 4}],
    }
    yield probabilities.reliability({"before": found, "after": found}, note=note)
    yield probabilities.thresholds(labels, probs, classes, classes[-1], 0.3, 0.95, note=note)
    yield probabilities.thresholds(labels, probs, classes, None, None, note=note)
    curve = ranking.decision_curve(
        pd.DataFrame({"label": [classes[-1], "x"], f"p_{classes[-1]}": [0.9, 0.2]}), classes[-1]
    )
    yield probabilities.decision_curve(curve, 0.3, note=note)
    yield probabilities.decision_curve(None, note=note)
    yield probabilities.abstention(
        {"coverage": [0.5, 1], "risk": [0, 0.1], "aurc": 0.03, "aurc_random": 0.1}, note=note
    )
    yield performance.patients(patients, note=note)
    yield heatmaps.heat_sheet(gallery(classes), note=note)
    yield heatmaps.explored(
        pictures(1)[0],
        np.eye(24),
        classes[0],
        dict(zip(classes, probs[0], strict=True)),
        (classes[0], 0.37),
        title="true: b",
        note=note,
    )
    yield overview.training_metrics(history(), summary(), matrix, classes, labels, probs, note=note)
    yield several.histories({name: history() for name in classes}, note=note)
    yield several.roc_overlay(dict.fromkeys(classes, (labels, probs)), classes, note=note)
    yield several.differences(differences(classes), note=note)


def gallery(classes, each=2):
    """A section of each class, the first map of each blank."""
    table = pd.DataFrame(
        [
            {
                "section": f"label: {c}",
                "path": f"a/{c}-{i}.png",
                "label": c,
                "decision": classes[0],
                "p": 0.42,
                "loss": 0.5,
            }
            for c in classes
            for i in range(each)
        ]
    )
    heat = np.random.default_rng(0).random((len(table), 24, 24)) * np.arange(len(table))[:, None, None] % each
    return Gallery(pictures(len(table)), heat, table, "layer4[1]", "gradcam")


def reliability():
    return pd.DataFrame({"confidence": [0.1, 0.5, 0.9], "accuracy": [0.0, 0.6, 1.0], "n": 5})


def differences(names):
    """Of three numbers between runs of these names: one with an interval, one without, one undefined."""
    return pd.DataFrame(
        [
            {"number": number, "run": name, "value": value, "low": low, "high": high}
            for number, value, low, high in (
                ("AUC", 0.02, -0.01, 0.05),
                ("F1", -0.1, None, np.nan),
                ("log loss (lower is better)", None, None, None),
            )
            for name in names
        ]
    )


def texts(figure):
    return [t.get_text() for t in figure.findobj(Text)]


def test_every_figure_is_closed_and_says_above_its_title_that_demo_images_are_no_result():
    before = plt.get_fignums()
    for figure in every_figure(TWO, NOTE):
        assert isinstance(figure, Figure)
        note, title = figure.texts[0], figure.texts[1]
        assert note.get_text().startswith(NOTE)
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
            assert not any(a.overlaps(b) for i, a in enumerate(labels) for b in labels[i + 1 :])


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


def test_C22_a_users_own_settings_change_no_figure_also_where_a_notebook_draws_it_later(tmp_path, catalogue):
    plain = [
        style.save(figure, tmp_path / "plain.png") and (tmp_path / "plain.png").read_bytes()
        for figure in (learning.curves(history()), performance.confusion(np.eye(2), TWO))
    ]
    with matplotlib.rc_context(
        {
            "text.usetex": True,
            "axes.prop_cycle": "cycler(color='rgb')",
            "font.size": 30,
            "figure.autolayout": True,
            "savefig.bbox": "tight",
            "axes.grid": False,
        }
    ):
        for figure in every_figure(TWO):
            figure.draw_without_rendering()  # LaTeX would be asked for
        for figure, before in zip(
            (learning.curves(history()), performance.confusion(np.eye(2), TWO)), plain, strict=True
        ):
            style.save(figure, tmp_path / "own.png")
            assert (tmp_path / "own.png").read_bytes() == before
    catalogue("C22", "a user's matplotlibrc with text.usetex and other settings", "figures are the same to the byte")


@pytest.mark.parametrize("number", [30, pytest.param(114, marks=pytest.mark.slow)])
def test_C07_many_classes_are_drawn_in_a_figure_of_limited_size(number, catalogue):
    classes = [f"class {i:03}" for i in range(number)]
    for figure in every_figure(classes):
        assert figure.get_figwidth() <= 16 and figure.get_figheight() <= style.TALLEST + 1
    confusion = performance.confusion(np.eye(number, dtype=int), classes)
    confusion.draw_without_rendering()
    assert max(confusion.get_size_inches()) <= 16 and "1\n100 %" not in texts(confusion)
    assert set(classes) <= set(texts(confusion))
    catalogue("C07", f"figures of {number} classes", "limited in size; no text in the cells of the matrix")


def test_of_very_many_classes_every_second_or_third_is_named():
    figure = performance.confusion(np.eye(300, dtype=int), [str(i) for i in range(300)])
    assert {"0", "3", "297"} <= set(texts(figure)) and "1" not in texts(figure)


def test_of_many_classes_those_that_are_ranked_worst_are_named():
    labels, probs = predictions([f"class {i:02}" for i in range(30)], 3000)
    probs[:, 7] = np.random.default_rng(0).random(3000)
    figure = performance.roc_pr(labels, probs, [f"class {i:02}" for i in range(30)])
    named = [t for t in texts(figure.axes[0]) if t.startswith("AUC ")]
    assert len(named) == performance.WORST and any(t.endswith("class 07") for t in named)
    assert sum(len(line.get_xdata()) > 2 for line in figure.axes[0].lines) == 30


def test_a_sheet_of_many_sections_stays_short_and_says_what_it_left_out():
    figure = heatmaps.heat_sheet(gallery([f"c{i}" for i in range(50)]))
    assert figure.get_figheight() < 50 and any("of 50 sections" in text for text in texts(figure))


def test_the_epoch_that_was_kept_is_marked():
    for kept in (2, 5):  # the best one may have been kept because it is the last
        assert f"kept: epoch {kept}" in texts(learning.curves(history(), kept=kept))


def test_one_epoch_and_a_broken_loss_are_drawn_and_said():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        overview.training_metrics(history(1), summary(), np.eye(2), TWO).draw_without_rendering()
        figure = learning.curves(history(val_loss=[1, 0.9, np.nan, np.inf, 1, 1]))
        figure.draw_without_rendering()
    assert any("epoch 3" in text for text in texts(figure))
    with pytest.raises(PathoError, match="empty_history"):
        learning.curves([])


def test_the_confusion_matrix_shows_counts_and_shares_of_its_rows():
    shown = texts(performance.confusion([[3, 1], [0, 0]], TWO))
    assert "3\n75 %" in shown and "1\n25 %" in shown
    assert shown.count("–") == 2  # a class without images has no shares


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
    assert "threshold 0.4" in [t.get_text() for t in axes.texts] and any("0.95" in str(name) for name in lines)


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
    for wrong in (np.ones((3, 2)), np.full((2, 2), np.nan), np.full((2, 2), 1.1)):
        with pytest.raises((PathoError, ValueError)):
            heatmaps.overlay(image, wrong)


def test_a_sheet_has_one_colour_bar_and_names_blank_maps():
    found = gallery(TWO)
    figure = heatmaps.heat_sheet(found, one_scale=True)
    assert texts(figure).count("blank map") == int((~found.heat.any(axis=(1, 2))).sum()) > 0
    *tiles, bar = figure.axes
    assert len(tiles) == len(found.table) and bar.get_ylim() == (0, found.heat.max())


def test_floats_with_channels_first_and_bytes_with_channels_last_give_the_same_picture():
    image = pictures(1)[0]
    np.testing.assert_array_equal(style.picture(image.transpose(2, 0, 1) / 255), image)


def test_a_saved_figure_has_the_same_bytes_each_time(tmp_path):
    first, second = tmp_path / "a.png", tmp_path / "b" / "c.png"
    for path in (first, second):
        figure = learning.unfreezing(history())
        assert style.save(figure, path) is figure  # so that a notebook's cell can end with it
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().startswith(b"\x89PNG")


def test_classes_keep_their_order_and_colour_where_some_have_no_patient():
    table = pd.DataFrame({"group": ["a", "b"], "label": ["AK", "MEL"], "score": [0.5, 1.0]})
    found = texts(performance.patients(table, classes=("MEL", "NV", "AK"), group_name="lesion"))
    assert [t for t in found if "1 lesion" in t] == ["MEL: 1 lesion", "AK: 1 lesion"]
    dots = performance.patients(table, classes=("MEL", "NV", "AK")).axes[0].collections
    third = matplotlib.colors.to_rgba(style.COLOURS[2])
    assert any(np.allclose(dot.get_facecolor(), third) for dot in dots if len(dot.get_facecolor()))


def test_more_patients_than_dots_can_show_are_counted_by_score():
    table = pd.DataFrame(
        {
            "group": [f"p{i}" for i in range(100)],
            "label": ["AK"] * 60 + ["NV"] * 40,
            "score": [0.0] * 20 + [1.0] * 40 + [1 / 3] * 40,
        }
    )
    found = texts(performance.patients(table, group_name="lesion"))
    assert {"20", "AK: 60", "NV: 40"} <= set(found)
    assert found.count("40") == 2  # AK at 1, NV at a third


def test_patients_are_called_by_their_own_name_where_it_is_not_the_group():
    table = pd.DataFrame({"patient": ["14-1", "14-2"], "group": ["g1", "g2"], "label": TWO, "score": [0.5, 1.0]})
    found = set(texts(performance.patients(table)))
    assert {"14-1", "14-2"} <= found and "g1" not in found
    assert {"g1", "g2"} <= set(texts(performance.patients(table.drop(columns="patient"))))


def panel(content, number, size, factor):
    """One of the three pictures on the sheet of `panels`, (size, size, 3), read from the middle of its squares."""
    sheet, side = np.asarray(Image.open(io.BytesIO(content))), size * factor
    left = number * (side + 14)
    return sheet[44 : 44 + side, left : left + side][factor // 2 :: factor, factor // 2 :: factor]


def test_panels_enlarge_every_pixel_by_the_same_whole_factor():
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    heat = np.linspace(0, 0.03, 64 * 64).reshape(64, 64)
    content = heatmaps.panels(picture, heat, "malignant", opacity=0.3, cmap="viridis")
    assert np.array_equal(panel(content, 0, 64, 7), picture)
    assert np.array_equal(panel(content, 1, 64, 7), heatmaps.overlay(picture, heat / 0.03, 1, "viridis"))
    assert np.array_equal(panel(content, 2, 64, 7), heatmaps.overlay(picture, heat / 0.03, 0.3, "viridis"))


def test_panels_leave_the_picture_plain_under_a_blank_map():
    picture = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    content = heatmaps.panels(picture, np.zeros((224, 224)), "a")
    assert np.array_equal(panel(content, 2, 224, 2), picture)
    assert len(np.unique(panel(content, 1, 224, 2)[:60])) == 1


def test_an_explored_image_marks_the_threshold_on_the_bar_of_its_class():
    picture, heat = np.zeros((32, 32, 3), np.uint8), np.eye(32)
    drawn = heatmaps.explored(picture, heat, "b", {"a": 0.2, "b": 0.8}, ("b", 0.3), note="demo")
    axes = next(a for a in drawn.axes if "probability" in a.get_title(loc="center"))
    (line,) = axes.lines
    assert list(line.get_xdata()) == [0.3, 0.3] and 0.5 < min(line.get_ydata())
    assert [bar.get_width() for bar in axes.patches] == [0.2, 0.8]
    assert not heatmaps.explored(picture, heat, "b", {"a": 0.2, "b": 0.8}).axes[-1].lines


def test_a_forest_plot_says_every_number_and_what_has_none():
    table = pd.DataFrame(
        {"name": ["a", "b", "c"], "value": [0.9, 0.6, None], "low": [0.85, None, None], "high": [0.95, None, None]}
    )
    found = texts(performance.forest(table, 0.7, "truth"))
    assert {"0.900 (0.850 to 0.950)", "0.600 (no interval)", "undefined", "truth 0.700", "a", "b", "c"} <= set(found)


def test_several_runs_are_told_apart_and_their_undefined_numbers_said():
    labels, probs = predictions(TWO)
    figure = several.roc_overlay({"a": (labels, probs), "b": (labels * 0, probs)}, TWO, "malignant")
    assert any(text.startswith("AUC 0.") and text.endswith("  a") for text in texts(figure))
    assert "undefined  b" in texts(figure)
    lines = several.histories({str(i): history() for i in range(32)}).axes[0].lines
    looks = {(line.get_color(), str(line._unscaled_dash_pattern)) for line in lines if len(line.get_xdata()) > 1}
    assert len(looks) == 32


@pytest.mark.parametrize(
    "draw",
    [
        lambda names: several.histories({name: history() for name in names}),
        lambda names: several.differences(differences(names)),
        lambda names: several.roc_overlay(dict.fromkeys(names, predictions(EIGHT)), EIGHT),
    ],
    ids=["histories", "differences", "roc"],
)
def test_every_run_stands_in_the_legend_also_one_whose_name_begins_with_an_underscore(draw):
    names = ["_first", "second", "_child2"]
    (legend,) = draw(names).legends
    assert [text.get_text() for text in legend.get_texts()] == names
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in legend.get_lines()}) == 3


def test_a_difference_is_drawn_with_its_sign_and_zero_stands_in_the_middle():
    figure = several.differences(differences(["b - a"]))
    assert {"+0.020 (-0.010 to +0.050)", "-0.100 (no interval)", "undefined"} <= set(texts(figure))
    low, high = figure.axes[0].get_xlim()
    assert low == -high


def test_a_run_whose_loss_is_broken_or_whose_monitor_is_unknown_is_drawn_as_far_as_it_goes():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        several.histories(
            {
                "a": history(1),
                "b": history(val_loss=[1, 0.9, np.nan, np.inf, 1, 1]),
                "c": history().drop(columns="val_auc"),
            }
        ).draw_without_rendering()
