"""From a folder of images to the report, by a Study: every file is there and tells the truth."""

import contextlib
import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import tiny
import torch
from torch import nn
from torchvision import models as zoo

from patholib import cli
from patholib.base import files
from patholib.data import demo, imagesets, manifest, readers, splitting
from patholib.data.readers import sources
from patholib.deploy import export, inference, loading
from patholib.judge import decisions, groupwise, judging, metrics, predicting, resampled
from patholib.model import augment, networks, profiles, recipes
from patholib.report import report
from patholib.report.figures import style
from patholib.study import Study
from patholib.train import runs

pytestmark = pytest.mark.heavy

REAL = "table"  # whose run trains torchvision's ResNet18; the others the small network of `tiny`
SMALL = {"breakhis": {"groups": 18, "images_per_group": 3}, "isic2019": {"groups": 60, "images_per_group": 1}}
FILES = {
    "run.json",
    "run.lock",
    "data_report.json",
    "data_report.html",
    "excluded.csv",
    "images.csv",
    "split.csv",
    "split.csv.sha256",
    "history.csv",
    "history.json",
    "predictions_val.csv",
    "predictions_val_tta.csv",
    "predictions_test.csv",
    "predictions_test_tta.csv",
    "predictions_baseline.csv",
    "decision.json",
    "metrics.json",
    "training_metrics.png",
    "report.md",
    "report.html",
    "model.safetensors",
    "model_card.md",
    "model_card.html",
    "data_card.md",
    "data_card.html",
    "checklist.md",
    "checklist.html",
    "model.json",
    "published.pt",
    "heatmaps/gallery.png",
    "heatmaps/gallery.csv",
    "heatmaps/gallery.html",
    "heatmaps/classes.png",
    "heatmaps/classes.csv",
    "heatmaps/classes.html",
    "trust.json",
}
FIGURES = {
    "results",
    "augmented",
    "curves",
    "unfreezing",
    "threshold",
    "confusion",
    "roc_pr",
    "calibration",
    "decision_curve",
    "abstention",
    "patients",
    "trust",
}


@dataclass
class Finished:
    """A finished run and what its study owned."""

    kind: str
    root: Path  # of the images, the cache and the run folder
    run: runs.Run
    model: networks.Classifier
    tiles: imagesets.ImageSet
    judged: judging.Judged


def own_table(folder):
    """A CSV of one's own over images whose folders say nothing: label, patient and a site."""
    truth = demo.truth(folder)
    table = pd.DataFrame(
        {
            "path": truth["path"],
            "label": truth["label"],
            "group": truth["group"],
            "site": np.where(np.arange(len(truth)) % 2, "north", "south"),
        }
    )
    files.write_table(folder / "mine.csv", table)
    return folder / "mine.csv"


def finish(root, kind):
    """A study on a few small images, one epoch."""
    layout = "isic2019" if kind == "isic2019" else "breakhis"
    where = demo.write(root / "data", layout, size=(64, 64), **SMALL[layout])
    source = readers.load(layout, own_table(where) if kind == "table" else where)
    recipe = profiles.recipe_for(layout, source, arch="resnet18", image_size=32, epochs=1, batch_size=8)
    study = Study(
        source,
        recipe=replace(recipe, head_width=16, tta_views=2),
        output=str(root / "runs"),
        device="cpu",
        workers=1,
        quiet=True,
        remember=False,
    )
    study.train()
    study.lock()
    study.judge()
    study.report()
    return Finished(kind, root, study.run, study.model, study.images, study.judged)


@pytest.fixture(scope="module", params=["breakhis", "isic2019", "table"])
def done(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "FILE_DPI", 40)  # what the figures show is not looked at here
        patch.setenv("PATHOLIB_CACHE", str(tmp_path_factory.mktemp("cache")))
        with contextlib.nullcontext() if request.param == REAL else tiny.network():
            yield finish(tmp_path_factory.mktemp(request.param), request.param)


def test_the_run_folder_is_complete_and_holds_nothing_else(done):
    found = {p.relative_to(done.run.dir).as_posix() for p in done.run.dir.rglob("*") if p.is_file()}
    heatmaps = {name for name in found if re.fullmatch(r"heatmaps/(gallery|classes)/\d\d-.+\.png", name)}
    listed = [len(pd.read_csv(done.run.dir / "heatmaps" / f"{name}.csv")) for name in ("gallery", "classes")]
    assert len(heatmaps) == sum(listed)
    drawn = {Path(name).stem.replace("lesions", "patients") for name in found if name.startswith("figures/")}
    assert drawn == FIGURES
    assert {name for name in found - heatmaps if not name.startswith("figures/")} == FILES


def test_the_readme_of_outputs_names_what_a_run_folder_holds():
    text = (Path(__file__).parents[2] / "outputs" / "README.md").read_text(encoding="utf-8")
    for name in FILES | {"figures/"}:
        assert f"`{name.split('/')[0]}{'/' * ('/' in name)}`" in text, name


def test_no_file_of_a_run_says_where_on_a_machine_it_was_made(done):
    for path in done.run.dir.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for place in (done.root, Path.home(), files.project_root()):
                assert str(place).encode() not in content, (path.name, place)


def test_the_numbers_are_those_of_the_predictions_on_disk(done):
    stored = files.read_json(done.run.dir / "metrics.json")
    classes, positive = done.run.recipe.classes, done.run.recipe.positive
    for name in ("val", "test", "test_tta", "baseline"):
        table = decisions.calibrated(done.run.dir, name)
        decision = decisions.locked(done.run.dir)
        shares = (decision["averaged"] if name == "test_tta" else decision).get("shares")
        threshold = shares or stored[name]["threshold"] or 0.5
        again = json.loads(json.dumps(metrics.summary(table, classes, positive, threshold)))
        assert {key: stored[name][key] for key in again} == again, name
        assert set(table["split"]) == {"val" if name == "val" else "test"}
    table = decisions.calibrated(done.run.dir, "test")
    who = predicting.patient_column(table)
    scores = groupwise.by_patient(table, classes, positive, who, done.judged.threshold)["score"]
    assert stored["test"]["patients"]["recognition_rate"]["value"] == pytest.approx(scores.mean(), abs=1e-12)
    assert sum(row["images"] for row in stored["test"]["subgroups"]) == len(table) * len(
        {row["column"] for row in stored["test"]["subgroups"]}
    )


def test_the_report_says_demo_on_its_face_and_nothing_is_absent(done):
    text = (done.run.dir / "report.md").read_text(encoding="utf-8")
    assert text.startswith("> **DEMO IMAGES: NOT A RESULT.**")
    assert (done.run.dir / "model_card.md").read_text(encoding="utf-8").startswith("> **DEMO IMAGES: NOT A RESULT.**")
    assert "not finished" not in text and "What is missing" not in text and "not recorded" not in text
    assert "No subgroups" not in text
    auc = metrics.readable(done.judged.summary["metrics"]["auc"])
    assert auc in text and "](training_metrics.png)" in text and "](heatmaps/gallery.png)" in text
    assert "](data_report.html)" in text
    assert files.read_json(done.run.dir / "run.json")["data"]["images_sha256"] in text
    assert done.run.note == manifest.DEMO_NOTE and re.match(r"(table|breakhis|isic2019)-demo-", done.run.dir.name)


def test_the_run_says_that_it_is_finished_and_what_made_it(done):
    facts = files.read_json(done.run.dir / "run.json")
    assert facts["status"] == "finished" and facts["demo"] and facts["training"]["best_epoch"] == 1
    assert facts["weights"] == {"kind": "none", "file": None, "sha256": None}
    assert recipes.from_json(facts["recipe"]) == done.run.recipe
    split = splitting.read_split(done.run.dir / "split.csv")
    assert facts["split"]["sha256"] == files.sha256(done.run.dir / "split.csv")
    assert facts["data"]["images"] == len(split) == len(done.tiles)


def test_a_report_before_judging_or_training_has_ended_says_so(done, tmp_path):
    for status, written, words in (
        ("started", True, "training has not ended"),
        ("trained", False, "have not been judged"),
        ("trained", True, None),
    ):
        folder = tmp_path / f"{status}{written}"
        facts = files.read_json(done.run.dir / "run.json")
        files.write_json(folder / "run.json", facts | {"status": status})
        if written:
            files.write_json(folder / "metrics.json", files.read_json(done.run.dir / "metrics.json"))
        report.write(folder)
        for name in ("report.md", "model_card.md"):
            text = (folder / name).read_text(encoding="utf-8")
            assert words in text if words else "not finished" not in text


def plain_network(recipe, kind):
    """The network without this library: torchvision's, its head replaced as the recipe describes it."""
    net, width = (zoo.resnet18(weights=None), 512) if kind == REAL else (tiny.Network(), 32)
    norm, relu = nn.BatchNorm1d(recipe.head_width), nn.ReLU()
    middle = (norm, relu) if recipe.head_order == "batchnorm_relu" else (relu, norm)
    net.fc = nn.Sequential(
        nn.Dropout(0.5),
        nn.Linear(width, recipe.head_width),
        *middle,
        nn.Dropout(0.5),
        nn.Linear(recipe.head_width, len(recipe.classes)),
    )
    return net.eval()


def test_the_published_checkpoint_answers_the_same_in_plain_torchvision(done):
    found = torch.load(done.run.dir / "published.pt", weights_only=True)
    net = plain_network(done.run.recipe, done.kind)
    net.load_state_dict(found["model_state"])
    assert list(found["class_names"].values()) == list(done.run.recipe.classes)
    views = augment.plain_views(done.tiles.part("test").pictures, found["image_size"])
    mean, std = (torch.tensor(found["normalization"][key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        ours = done.model.eval()(views)
        theirs = net((views - mean) / std)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)
    assert found["epoch"] == 1 and found["best_auc"] == found["validation"]["val_auc"]


def test_the_exported_model_is_the_trained_one_bit_by_bit(done):
    again, facts = loading.classifier(done.run.dir)
    state = safetensors.torch.load_file(done.run.dir / "model.safetensors")
    trained = done.model.net.state_dict()
    assert state.keys() == trained.keys() and all(torch.equal(state[name], trained[name]) for name in trained)
    assert facts["demo"] and facts["run"] == done.run.dir.name and facts["epoch"] == 1
    views = augment.plain_views(done.tiles.part("test").pictures, 32)
    with torch.no_grad():  # training left the tensors channels last, which other kernels sum in another order
        assert torch.allclose(again(views), done.model.eval()(views), rtol=0, atol=1e-6)


def test_the_exported_models_answers_are_those_of_the_notebook_to_the_last_bit(done):
    predictor, test = inference.Predictor(done.run.dir, "torch"), done.tiles.part("test")
    columns = [f"p_{name}" for name in done.run.recipe.classes]
    decision = files.read_json(done.run.dir / "decision.json")
    for tta, name in ((False, "test"), (True, "test_tta")):
        table = decisions.calibrated(done.run.dir, name)
        answers = predictor.answers(test.pictures, tta)
        assert [list(answer.probs.values()) for answer in answers] == table[columns].to_numpy().tolist()
        locked = decisions.for_views(decision, tta)
        threshold = decisions.deciding(locked, done.run.recipe.classes)
        called = resampled.decide(table, done.run.recipe.classes, done.run.recipe.positive, threshold)
        assert [answer.decision for answer in answers] == called.tolist()
    assert (predictor.temperature, predictor.threshold) == (decision["temperature"], decision["threshold"])
    alerts = [answer.alert for answer in answers]
    if len(columns) > 2:
        assert alerts == (table[f"p_{decision['positive']}"] >= locked["threshold"]).tolist()
    else:
        assert set(alerts) == {None}


def test_the_manifest_says_where_the_model_comes_from_and_how_its_decision_was_chosen(done):
    facts, run = files.read_json(done.run.dir / "model.json"), files.read_json(done.run.dir / "run.json")
    locked = files.read_json(done.run.dir / "decision.json")
    assert facts["decision"] | {"novelty": facts["novelty"]} == locked
    assert facts["origin"]["fingerprint"] == run["fingerprint"] and facts["data_sha256"] == run["data"]["images_sha256"]
    assert facts["origin"]["split_sha256"] == files.sha256(done.run.dir / "split.csv")
    assert facts["origin"]["data_licence"] == sources.DEMO.licence_short and facts["demo"]
    assert facts["smallest_side"] == 64 and facts["novelty"]["trained"] == len(done.tiles.part("train"))
    val = done.tiles.part("val").pictures
    assert not any(
        "unfamiliar" in text
        for answer in inference.Predictor(done.run.dir, "torch").answers(val)
        for text in answer.warnings
    )


def test_an_export_in_a_folder_of_its_own_gives_the_same_answers(done, tmp_path, capsys):
    pictures = done.tiles.part("test").pictures[:2]
    assert cli.main(["export", str(done.run.dir), "--out", str(tmp_path / "model")]) == 0
    assert str(tmp_path / "model" / "model.json") in capsys.readouterr().out
    found, own = (inference.Predictor(folder, "torch") for folder in (tmp_path / "model", done.run.dir))
    assert (found.probabilities(pictures) == own.probabilities(pictures)).all() and found.manifest == own.manifest
    assert (tmp_path / "model" / "model_card.md").is_file()
    assert cli.main(["export", str(done.run.dir), "--out", str(tmp_path / "model")]) == 2
    assert "[output_exists]" in capsys.readouterr().err


def test_an_export_of_an_older_format_or_from_before_the_decision_is_made_anew(done, tmp_path):
    run = shutil.copytree(done.run.dir, tmp_path / "run")
    facts = files.read_json(run / "model.json")
    (run / "decision.json").rename(tmp_path / "decision.json")
    export.write(run)
    assert files.read_json(run / "model.json")["decision"] is None
    assert files.read_json(run / "model.json")["novelty"] == facts["novelty"]  # of the export that was there
    (tmp_path / "decision.json").rename(run / "decision.json")
    export.copy(run, tmp_path / "late")
    assert files.read_json(tmp_path / "late" / "model.json") == facts
    files.write_json(run / "model.json", {"format": 2})
    export.copy(run, tmp_path / "old")
    assert files.read_json(tmp_path / "old" / "model.json") == facts | {
        name: files.read_json(tmp_path / "old" / "model.json")[name]
        for name in ("novelty", "weights", "manifest_sha256")
    }


def test_an_untrained_run_cannot_be_exported(done, tmp_path):
    facts = {k: v for k, v in files.read_json(done.run.dir / "run.json").items() if k != "training"}
    files.write_json(tmp_path / "run.json", facts)
    with pytest.raises(export.PathoError, match="nothing_trained"):
        export.write(tmp_path)


def test_one_patient_counts_as_one_also_where_the_split_was_by_image(done):
    who = {"breakhis": "case", "isic2019": "lesion", "table": "group"}[done.kind]
    assert predicting.patient_column(done.judged.test) == who
    leaky = done.judged.test.rename(columns={"group": "given_group"} if who == "group" else {})
    leaky = replace(done.judged, test=leaky.assign(group=leaky["path"]))
    assert list(leaky.patients["patient"]) == list(done.judged.patients["patient"])
    assert list(leaky.patients["score"]) == list(done.judged.patients["score"])
