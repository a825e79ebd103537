"""The explorer shows what the model says, computes nothing twice, and swallows no error; no browser is needed."""

import contextlib
import html
import io
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny import TINY, image_set

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.data import decoding, demo
from patholib.deploy import export, loading
from patholib.judge import decisions, gradcam, predicting, trust
from patholib.lab import explored, explorer
from patholib.lab.explorer import Explorer
from patholib.model import augment, building, recipes
from patholib.study import Study
from patholib.train import originals, runs

CLASSES = TINY.classes


pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("small_network")]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An exported model of random weights, with statistics as after a training."""
    folder, model = tmp_path_factory.mktemp("exported"), building.build(TINY)
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    export.save_model(folder, model.state_dict(), TINY, run="tiny", demo=True)
    return folder


@pytest.fixture
def looked(exported, tmp_path):
    """An explorer of that model on six images, in a folder of its own."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in exported.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return Explorer(folder, image_set(train=0, val=6), split="val")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that the explorer makes itself, where there is none, and its few demo images."""
    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        few = {"groups": 18, "images_per_group": 3, "size": (64, 64)}
        patch.setitem(demo.DEFAULTS, "breakhis", demo.DEFAULTS["breakhis"] | few)
        patch.setattr(files, "project_root", lambda: root)
        patch.delenv("PATHOLIB_DATA", raising=False)
        patch.setenv("PATHOLIB_CACHE", str(root / "cache"))
        with contextlib.redirect_stdout(io.StringIO()) as said:
            folder = explored.find_run(output=root / "runs", make=Study.demo_run)
        yield root, folder, said.getvalue()


def a_png(seed=0, size=(50, 40)):
    stream = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, "PNG")
    return stream.getvalue()


# --- the lists ---


def a_table():
    predictions = pd.DataFrame(
        {
            "path": ["a", "b", "c", "d"],
            "label": ["benign", "malignant", "malignant", ""],
            "case": ["1", "1", "2", "3"],
            "p_benign": [0.55, 0.68, 0.2, 0.5],
            "p_malignant": [0.45, 0.32, 0.8, 0.5],
        }
    )
    return explored.listed(predictions, ("benign", "malignant"), "malignant", 0.4)


def test_outcome_and_margin_follow_the_threshold_worked_by_hand():
    table = a_table()
    assert list(table["predicted"]) == ["malignant", "benign", "malignant", "malignant"]
    assert list(table["outcome"]) == ["wrong", "wrong", "correct", "yours"]
    assert np.allclose(table["margin"], [0.05, 0.08, 0.4, 0.1])
    assert list(table["p"]) == [0.45, 0.68, 0.8, 0.5]


def test_without_a_positive_class_the_two_likeliest_decide():
    predictions = pd.DataFrame({"path": ["a"], "label": ["y"], "p_x": [0.2], "p_y": [0.35], "p_z": [0.45]})
    row = explored.listed(predictions, ("x", "y", "z"), None, 0.5).loc["a"]
    assert row["predicted"] == "z" and row["outcome"] == "wrong" and np.isclose(row["margin"], 0.1)
    assert row["patient"] == ""


def test_with_shares_what_is_called_and_how_surely_follows_them():
    predictions = pd.DataFrame({"path": ["a"], "label": ["x"], "p_x": [0.2], "p_y": [0.35], "p_z": [0.45]})
    row = explored.listed(predictions, ("x", "y", "z"), "x", {"x": 0.1, "y": 0.35, "z": 0.9}).loc["a"]  # 2, 1, 0.5
    assert row["predicted"] == "x" and row["outcome"] == "correct" and row["p"] == 0.2
    assert np.isclose(row["margin"], 1 / 3.5)


def test_filters_leave_what_they_say_in_the_order_asked_for():
    table = a_table()
    assert list(explored.left_by(table, outcome="wrong").index) == ["a", "b"]
    assert list(explored.left_by(table, label="malignant", order="least certain first").index) == ["b", "c"]
    assert list(explored.left_by(table, patient="1", order="most certain first").index) == ["b", "a"]
    assert list(explored.left_by(table).index) == list("abcd")


def test_an_upload_is_the_same_in_both_generations_of_ipywidgets():
    seven = {"a.png": {"metadata": {"name": "a.png", "size": 3}, "content": b"abc"}}
    eight = ({"name": "a.png", "type": "image/png", "size": 3, "content": memoryview(b"abc")},)
    assert explorer.uploaded(seven) == explorer.uploaded(eight) == [("a.png", b"abc")]
    assert explorer.uploaded({}) == explorer.uploaded(()) == []


# --- a model and its images ---


def test_what_is_shown_is_what_the_model_says(looked):
    own = image_set(train=0, val=6)
    model = loading.classifier(looked.run)[0]
    expected = predicting.predict(model, own, TINY, progress=False)
    assert looked.paths == list(own.table["path"])
    for place, path in enumerate(looked.paths):
        looked.image = path
        row = looked.seen.row
        assert np.allclose(
            [row[f"p_{c}"] for c in CLASSES], expected.loc[place, [f"p_{c}" for c in CLASSES]].tolist(), atol=1e-4
        )
        views = augment.plain_views(own.pictures[place : place + 1], TINY.image_size)
        found = gradcam.gradcam(model, views, [CLASSES.index(row["predicted"])], looked.block)
        assert np.array_equal(looked.seen.heat, gradcam.upsample(found.maps, TINY.image_size)[0].numpy())
        assert np.array_equal(looked.seen.picture, np.rint(views[0].permute(1, 2, 0).numpy() * 255))
    assert looked.error == ""


def test_no_heatmap_is_computed_twice(looked):
    assert looked.computed == 1
    first, other = looked.paths[0], looked.paths[1]
    looked.image = other
    looked.target = next(c for c in CLASSES if c != looked.seen.target)
    looked.block = looked.predictor.model.block_names[3]
    assert looked.computed == 4
    before = looked.png
    looked.alpha, looked.colours = 0.8, "viridis"
    assert looked.png != before and looked.computed == 4, "a drawing needs no new heat"
    looked.target, looked.block = "", gradcam.default_block(looked.predictor.model)
    computed = looked.computed
    for path in (first, other, first):
        looked.image = path
    assert looked.computed == computed
    assert looked.error == ""


def test_every_question_changes_the_picture(looked):
    looked.target = next(c for c in CLASSES if looked.heat(looked.image, c, looked.block, "gradcam").any())
    pictures = [looked.png]
    other = next(
        block
        for block in looked.choices("block")
        if block != looked.block and looked.heat(looked.image, looked.target, block, "gradcam").any()
    )
    for trait, value in (("alpha", 0.9), ("colours", "inferno"), ("block", other), ("image", looked.paths[1])):
        setattr(looked, trait, value)
        pictures.append(looked.png)
    assert len(set(pictures)) == len(pictures)
    assert Image.open(io.BytesIO(looked.png)).format == "PNG"


def test_a_value_that_does_not_exist_is_refused_and_nothing_changes(looked):
    before = (looked.image, looked.target, looked.png)
    for trait, value in (
        ("target", "malignent"),
        ("image", "nowhere.png"),
        ("block", "layer9"),
        ("outcome", "rigth"),
        ("method", "magic"),
        ("colours", "rainbow"),
    ):
        with pytest.raises(PathoError, match=f"bad_parameter.*{trait}"):
            setattr(looked, trait, value)
    assert (looked.image, looked.target, looked.png) == before
    with pytest.raises(Exception, match="alpha"):
        looked.alpha = 1.5


def test_steps_go_through_the_list_and_stop_at_its_ends(looked):
    looked.step(1)
    assert looked.image == looked.paths[1]
    looked.step(-1)
    looked.step(-1)
    assert looked.image == looked.paths[0]
    looked.step(100)
    assert looked.image == looked.paths[-1]


def test_a_filter_that_leaves_the_image_out_goes_to_the_first_that_is_left(looked):
    looked.image = looked.paths[0]
    other = next(c for c in CLASSES if c != looked.seen.row["label"])
    looked.label = other
    assert looked.image == looked.paths[0] and looked.seen.row["label"] == other
    assert all(looked.table.loc[path, "label"] == other for path in looked.paths)


def test_filters_that_leave_nothing_say_so_and_keep_the_image(looked):
    image = looked.image
    looked.outcome = "yours"
    assert "none_left" in looked.error and looked.image == image and looked.paths == []
    looked.outcome = explored.ALL
    assert looked.error == "" and len(looked.paths) == 6


def test_an_error_in_a_callback_is_told_in_one_line(looked, monkeypatch):
    def fails(*_, **__):
        raise ValueError("two\nlines")

    monkeypatch.setitem(gradcam.METHODS, "gradcam", fails)
    looked.image = looked.paths[1]
    assert looked.error == "ValueError: two\\nlines"
    monkeypatch.undo()
    looked.image = looked.paths[2]
    assert looked.error == ""


def test_an_error_is_kept_with_its_traceback_in_the_log_of_a_run(looked, monkeypatch):
    files.write_json(looked.run / "run.json", {})
    looked.attempt(looked.add, b"")
    line = (looked.run / "run.jsonl").read_text()
    assert '"code": "empty"' in line and "Traceback" in line


# --- pictures of one's own ---


def test_a_picture_of_ones_own_is_seen_as_the_same_file_would_be_in_a_data_set(looked, tmp_path):
    (tmp_path / "mine.png").write_bytes(a_png())
    looked.outcome = "correct" if (looked.table["outcome"] == "correct").any() else "wrong"
    looked.add(tmp_path / "mine.png")
    assert looked.image == "yours: mine.png" and looked.error == "" and looked.outcome == explored.ALL
    square = decoding.to_square(decoding.read(tmp_path / "mine.png"), TINY.cache_size, TINY.fit)
    assert np.allclose([looked.seen.row[f"p_{c}"] for c in CLASSES], looked.predictor.probabilities(square[None])[0])
    assert looked.seen.row["outcome"] == "yours" and looked.seen.caption.startswith("mine.png: predicted: ")
    assert looked.options[-1][1] == looked.image


def test_the_same_picture_is_not_added_twice_and_another_of_that_name_is_no_other(looked):
    looked.add(a_png(1), "a.png")
    computed = looked.computed
    looked.image = looked.paths[0]
    looked.add(a_png(1), "a.png")
    assert looked.computed == computed and looked.image == "yours: a.png"
    looked.add(a_png(2), "a.png")
    assert looked.image == "yours: a.png (2)" and len(looked.paths) == 8


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", "empty"), (b"<html>", "not_an_image"), (a_png()[:200], "corrupt"), (a_png(size=(8, 8)), "too_small")],
)
def test_a_bad_file_is_refused_by_name_and_leaves_everything_as_it_was(looked, content, code):
    before = (looked.image, looked.png, len(looked.table))
    looked.attempt(looked.add, content, "../../x\n.png")
    assert looked.error.startswith(f"[{code}] x\\n.png: ")
    assert (looked.image, looked.png, len(looked.table)) == before


def test_what_is_odd_about_a_picture_is_told(looked):
    stream = io.BytesIO()
    Image.effect_noise((64, 64), 60).save(stream, "PNG")  # grey
    looked.add(stream.getvalue(), "grey.png")
    assert looked.warnings and "no colour" in looked.warnings[0]
    looked.image = looked.paths[0]
    assert looked.warnings == ()


def test_without_images_it_waits_for_one(exported):
    empty = Explorer(exported)
    assert empty.paths == [] and empty.seen is None and empty.png == b""
    empty.step(1)
    with pytest.raises(PathoError, match="no_images"):
        empty.figure()
    assert empty._repr_mimebundle_()
    empty.add(a_png(), "a.png")
    assert empty.paths == ["yours: a.png"] and empty.png and empty.figure()


def test_images_of_another_size_are_refused(exported):
    wide = image_set(train=0, val=2)
    wide = replace(wide, pixels=np.zeros((2, 64, 64, 3), np.uint8))
    with pytest.raises(PathoError, match="bad_images"):
        Explorer(exported, wide, split="val")


# --- notes ---


def test_notes_are_kept_as_csv_and_taken_up_again(looked):
    first, second = looked.paths[:2]
    looked.note = 'a "nest", below; left\nof the middle'
    looked.image = second
    assert looked.note == ""
    looked.image = first
    assert looked.note.startswith('a "nest"')
    path = looked.save()
    assert path == looked.run / "explored.csv" and "2 images with 1 note " in looked.message
    assert str(looked.run.parent) not in looked.message
    again = Explorer(looked.run, image_set(train=0, val=6), split="val")
    assert again.note.startswith('a "nest"')
    assert set(again.history["image"]) == {first, second} and again.history["image"].iloc[-1] == first
    again.save()
    assert list(pd.read_csv(path)["note"].fillna("")) == ["", looked.note]


def test_a_folder_that_cannot_be_written_is_told(looked, monkeypatch):
    def refuse(path, _):
        raise PathoError("output_unwritable", str(path), "cannot be written", "Choose another")

    monkeypatch.setattr(files, "write_table", refuse)
    looked.attempt(looked.save)
    assert "output_unwritable" in looked.error and looked.message == ""


def test_notes_of_version_0_1_are_taken_up(looked):
    (looked.run / explored.NOTES).write_text(
        "image,label,called,p,evidence_for,block,method,blank,note\n"
        "a.png,benign,malignant,0.42,malignant,layer4[1],gradcam,False,odd\n"
    )
    row = Explorer(looked.run, data="none").history.iloc[0]
    assert row[["image", "predicted", "heatmap_for", "note"]].tolist() == ["a.png", "malignant", "malignant", "odd"]


def test_C05_a_class_called_all_is_filtered_like_any_other(tmp_path, catalogue):
    recipe = replace(TINY, classes=("all", "aml"), positive="all")
    export.save_model(tmp_path, building.build(recipe).state_dict(), recipe)
    images = image_set(train=0, val=6)
    labels = images.table["label"].map(dict(zip(CLASSES, recipe.classes, strict=True)))
    images = replace(images, table=images.table.assign(label=labels), classes=recipe.classes)
    run = Explorer(tmp_path, images, split="val")
    run.label = "all"
    assert 0 < len(run.paths) < 6 and set(run.table.loc[run.paths, "label"]) == {"all"}
    run.label = explored.ALL
    assert len(run.paths) == 6
    catalogue("C05", "explorer: a class called all", "filtered like any other")


# --- the verdict of the heatmap checks ---


def test_the_verdict_stands_beside_every_heatmap_and_says_what_was_not_checked(looked):
    assert looked.seen.verdict == trust.NOT_CHECKED
    of = looked.seen.target
    checked = {
        "verdict": "All 8 checks passed",
        "method": "gradcam",
        "block": looked.block,
        "of": of,
        "checks": {"a": {}},
        "reasons": [],
    }
    files.write_json(looked.run / trust.FILE, checked)
    run = Explorer(looked.run, image_set(train=0, val=6), split="val")
    assert run.seen.verdict == "All 8 checks passed"
    run._repr_mimebundle_()
    assert "All 8 checks passed" in run._face.parts["verdict"].value
    assert "All 8 checks passed" in run.figure()._supxlabel.get_text()
    before = run.block
    for trait, value in (
        ("method", "hirescam"),
        ("block", run.predictor.model.block_names[3]),
        ("target", next(c for c in CLASSES if c != of)),
    ):
        setattr(run, trait, value)
        assert run.seen.verdict.startswith("Not checked for this heatmap"), trait
        run.method, run.block, run.target = "gradcam", before, ""
    assert run.seen.verdict == "All 8 checks passed"


def test_heatmaps_that_were_not_checked_can_be_checked_there(exported):
    run = Explorer(exported, image_set(train=0, val=16), split="val")
    run._repr_mimebundle_()
    run._face.parts["check"].click()
    assert not run.error and run.seen.verdict.startswith("Heatmaps not shown"), run.seen.verdict
    assert run.seen.verdict in html.unescape(run._face.parts["verdict"].value)
    assert not (exported / trust.FILE).exists()
    alone = Explorer(exported, data="none")
    alone.attempt(alone.check)
    assert "no_images" in alone.error


# --- widgets ---


@pytest.fixture
def face(looked):
    looked._repr_mimebundle_()
    return looked._face.parts


def test_it_shows_itself_as_widgets_and_as_text_where_there_are_none(looked):
    bundle = looked._repr_mimebundle_(include=None, exclude=None)
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == looked._face.root.model_id
    assert "6 images - Demo images: not a result" in bundle["text/plain"] and len(bundle["text/plain"]) < 200
    assert looked._repr_mimebundle_() == bundle, "the same widgets, shown twice"


def test_every_widget_has_a_handle_and_every_input_a_label(face):
    for name, widget in face.items():
        assert f"patho-{name}" in widget._dom_classes
        if "description" in widget.trait_names() and type(widget).__name__ != "HTML":
            assert widget.description, name
    assert not face["alpha"].continuous_update and not face["note"].continuous_update


def test_widgets_move_the_traits_and_traits_the_widgets(looked, face):
    face["image"].value = looked.paths[2]
    assert looked.image == looked.paths[2] and face["picture"].value == looked.png
    face["alpha"].value = 0.9
    assert looked.alpha == 0.9 and face["picture"].value == looked.png
    other = next(c for c in CLASSES if c != looked.seen.target)
    face["target"].value = other
    assert looked.seen.target == other
    looked.image = looked.paths[4]
    assert face["image"].value == looked.paths[4] and "5 of 6" in face["place"].value
    assert face["number"].value == 5 and face["number"].max == 6
    face["number"].value = 2
    assert looked.image == face["image"].value == looked.paths[1]
    looked.image = looked.paths[4]
    face["next"].click()
    assert looked.image == looked.paths[5] and face["next"].disabled and not face["previous"].disabled
    face["note"].value = "look again"
    assert "look again" in face["history"].value and looked.history["note"].iloc[-1] == "look again"
    face["save"].click()
    assert "explored.csv" in face["message"].value


def test_a_new_list_does_not_choose_an_image_by_itself(looked, face):
    looked.image = looked.paths[3]
    computed = looked.computed
    face["order"].value = "most certain first"
    assert looked.image == face["image"].value and looked.computed == computed
    assert looked.paths != list(looked.table.index)


def test_an_upload_is_shown_a_broken_one_told_and_told_again(looked, face):
    entry = {"name": "mine.png", "type": "image/png", "size": 1, "last_modified": datetime.now(UTC)}
    upload = face["upload"]
    for content, image in ((a_png(), "yours: mine.png"), (b"broken", "yours: mine.png")):
        for _ in range(2):
            looked.error = ""
            explorer_value = (
                ({**entry, "content": memoryview(content)},)
                if isinstance(upload.value, tuple)
                else {"mine.png": {"metadata": entry, "content": content}}
            )
            upload.set_trait("value", explorer_value)  # as a browser does
            assert looked.image == image and not upload.value
            assert ("not_an_image" in face["error"].value) == (content == b"broken")
    assert face["image"].value == "yours: mine.png"


def test_a_typed_path_is_opened(looked, face, tmp_path):
    (tmp_path / "typed.png").write_bytes(a_png())
    face["path"].value = f"  {tmp_path / 'typed.png'}"
    assert looked.image == "yours: typed.png" and face["path"].value == ""
    face["path"].value = str(tmp_path / "absent.png")
    assert "missing_file" in face["error"].value and 'role="alert"' in face["error"].value


def test_names_are_text_and_never_html(looked, face):
    looked.add(a_png(3), "<img src=x onerror=alert(1)>.png")
    looked.note = "<b>bold</b>"
    for name in ("headline", "history", "error", "header", "probs"):
        assert "<img" not in face[name].value and "<b>bold" not in face[name].value
    assert "&lt;img" in face["headline"].value


def test_the_bars_mark_the_threshold_of_the_positive_class_alone(looked):
    text = explorer.probability_bars(looked)
    assert text.count("border-left") == 1 and "threshold for malignant: 0.5" in text
    looked.positive = None
    assert "threshold" not in explorer.probability_bars(looked)


# --- a run ---


def test_where_there_is_no_run_one_is_made_and_afterwards_found(finished, capsys):
    root, folder, said = finished
    assert "no finished run yet" in said and folder.parent == root / "runs"
    facts = files.read_json(folder / "run.json")
    assert facts["status"] == "finished" and facts["demo"] and (folder / "report.html").exists()
    assert explored.find_run(output=root / "runs") == folder
    assert explored.find_run(folder.name, output=root / "runs") == root.resolve() / "runs" / folder.name
    assert explored.find_run(folder) == folder
    assert folder.name in capsys.readouterr().out
    with pytest.raises(PathoError, match="missing_run"):
        explored.find_run("nothing-here", output=root / "runs")


def test_the_newest_finished_run_is_taken_and_an_unfinished_one_never(finished, tmp_path):
    assert runs.newest(tmp_path) is None
    for name, day, status in (("old-demo", 1, "finished"), ("new", 2, "finished"), ("broken-demo", 3, "trained")):
        files.write_json(
            tmp_path / name / "run.json",
            {"created": f"2026-01-0{day}", "status": status, "recipe": {}, "demo": name.endswith("demo")},
        )
        files.write_json(tmp_path / name / "model.json", {})
    assert runs.newest(tmp_path).name == "new" and runs.newest(tmp_path, demo=True).name == "old-demo"


def test_a_run_is_explored_with_the_probabilities_it_has_stored(finished, monkeypatch):
    _, folder, _ = finished
    monkeypatch.setattr("patholib.deploy.inference.Predictor.probabilities", None)  # nothing is left to compute
    run = Explorer(folder)
    table = decisions.calibrated(folder, "test")
    assert run.paths == list(table["path"]) and set(run.choices("patient")) == {explored.ALL, *table["case"]}
    assert run.table["p_malignant"].tolist() == table["p_malignant"].tolist()
    assert run.seen.caption and run.error == ""
    assert len(Explorer(folder, split="val").paths) == len(
        predicting.read_predictions(folder / "predictions_val.csv", CLASSES)
    )


def test_images_that_are_not_the_runs_are_refused(finished, tmp_path):
    _, folder, _ = finished
    other = demo.write(tmp_path / "other", "breakhis", groups=18, images_per_group=3, size=(64, 64), seed=5)
    with pytest.raises(PathoError, match=r"changed_file|other_images"):
        originals.images_of(folder, other)


def test_a_run_on_real_images_never_falls_back_on_demo_images(finished, tmp_path):
    _, folder, _ = finished
    facts = files.read_json(folder / "run.json")
    for source, reason in (("breakhis", "is not in"), ("table", "a table of one's own")):
        files.write_json(
            tmp_path / source / "run.json", facts | {"demo": False, "data": facts["data"] | {"source": source}}
        )
        with pytest.raises(PathoError, match=f"data_root.*{reason}"):
            originals.images_of(tmp_path / source)


def test_a_run_can_be_explored_without_its_images(finished):
    assert Explorer(finished[1], data="none").paths == []


def test_the_static_figure_shows_another_class_without_changing_what_is_looked_at(finished):
    run = Explorer(finished[1], order="least certain first")
    assert run.image == run.table["margin"].idxmin()
    other = next(c for c in CLASSES if c != run.seen.target)
    drawn = run.figure(target=other)
    words = [axes.get_title(loc="center") for axes in drawn.axes]
    assert "predicted probability" in words
    shown = drawn.axes[0].images[0].get_array()
    assert not np.array_equal(shown, np.asarray(Image.open(io.BytesIO(run.png))))
    assert run.seen.target != other and run.target == ""
    assert "Demo images" in " ".join(text.get_text() for text in drawn.texts)


def test_a_model_of_many_classes_is_explored_too(tmp_path):
    isic = replace(TINY, name="isic2019", classes=recipes.ISIC2019.classes, positive="MEL")
    export.save_model(tmp_path, building.build(isic).state_dict(), isic)
    run = Explorer(tmp_path)
    run.add(a_png(), "a.png")
    assert run.marked is None and run.figure() and "threshold" not in explorer.probability_bars(run)
    assert len(run.choices("target")) == 9 and Path(run.run) == tmp_path


def test_of_very_many_classes_the_most_probable_are_shown(tmp_path):
    many = replace(TINY, name="table", classes=tuple(f"class {i:03}" for i in range(114)), positive=None)
    export.save_model(tmp_path, building.build(many).state_dict(), many)
    run = Explorer(tmp_path)
    run.add(a_png(), "a.png")
    shown = explorer.probability_bars(run)
    assert shown.count("<tr>") <= explorer.ROWS + 2 and run.seen.row["predicted"] in shown
    assert run.figure()
