"""The catalogue of bad input, P: parameters, and data that do not go with them."""

from __future__ import annotations

import itertools
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import TINY, image_set, train

from patholib.base import cpu, files
from patholib.base.errors import PathoError
from patholib.data import checking, fetch, manifest, splitting
from patholib.data.imagesets import ImageSet
from patholib.deploy import export
from patholib.judge import metrics
from patholib.lab import notebook
from patholib.model import architectures, building, fields, losses, recipes, schedules
from patholib.model.augment import uniform
from patholib.model.recipes import BREAKHIS, ISIC2019, Augmentation, Stage
from patholib.train import devices, runs

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").rglob("*.ipynb"))
NAN, INF = float("nan"), float("inf")
CELL = """\
data: str = "auto"  # where the images are
weights: str = None  # backbone to start from
image_size: int = None  # pixels
epochs: int = None  # passes over the training images
batch_size: int = None  # images per step
lr: float = None  # learning rate
seed: int = 0  # of every draw
mixed: bool = False  # half precision
device: str = "auto"  # where to compute
workers: int = 2  # threads
max_hours: float = None  # time allowed
output: str = None  # folder for run folders
resume: str = "auto"  # one of: auto, must, never
"""


pytestmark = pytest.mark.usefixtures("small_network")


def refused(code: str, call, *args, **options) -> PathoError:
    with pytest.raises(PathoError) as stopped:
        call(*args, **options)
    assert stopped.value.code == code, stopped.value
    return stopped.value


def checked(*assignments: str, cell: str = CELL):
    """What the first cell of a notebook makes of values that papermill injects."""
    history, namespace = [cell, "\n".join(["# Parameters", *assignments])], {}
    for source in history:
        exec(source, namespace)
    return notebook.check_parameters(history, namespace)


def passed(name: str, value) -> str:
    """The input as a person types it."""
    return f"-p {name} {value}"


# --- P01, P20: names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "values", "near"),
    [
        pytest.param(recipes.Recipe, {"epohcs": 3}, ["'epochs'"], id="P01-field"),
        pytest.param(recipes.Recipe, {"batchsize": 3, "epohcs": 3}, ["'batch_size'", "'epochs'"], id="P01-two"),
        pytest.param(Augmentation, {"rotaton": 3}, ["'rotation'"], id="P01-augmentation"),
        pytest.param(Stage, {"forzen": 3}, ["'frozen'"], id="P01-stage"),
        pytest.param(recipes.Recipe, {"zzz": 3}, recipes.Recipe.__dataclass_fields__, id="P01-nothing-near"),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest_name(catalogue, cls, values, near):
    error = refused("unknown_field", cls, **values)
    assert all(name in error.remedy for name in near) and error.subject == ", ".join(values)
    catalogue("P01", f"unknown {cls.__name__} field {', '.join(values)}", error)


def test_P01_an_unknown_parameter_of_a_notebook_is_refused_with_the_nearest_name(catalogue):
    error = refused("unknown_parameter", checked, "epoch = 3")
    assert error.subject == "epoch" and "did you mean 'epochs'?" in error.reason
    assert "data, weights, image_size, epochs" in str(error) and "\n" not in str(error)
    catalogue("P01", "-p epoch 3", error)


@pytest.mark.parametrize(
    ("old", "ours"),
    [
        pytest.param(old, ours, id=f"P20-{old}")
        for old, ours in {
            "learning_rate": "lr",
            "num_epochs": "epochs",
            "lr_scheduler": "schedule",
            "scheduler": "schedule",
            "pretrained": "weights",
            "use_amp": "precision",
            "class_weights": "balance",
            "criterion": "loss",
            "num_tta": "tta_views",
            "max_norm": "clip_norm",
            "min_lr": "eta_min",
            "unfreezing_schedule": "stages",
            "early_stopping_patience": "patience",
            "model_name": "arch",
            "img_size": "image_size",
            "gamma": "focal_gamma",
        }.items()
    ],
)
def test_a_field_by_its_name_elsewhere_is_refused_with_ours(catalogue, old, ours):
    error = refused("unknown_field", replace, BREAKHIS, **{old: 1})
    assert repr(ours) in error.remedy
    catalogue("P20", f"recipe field {old}", error)


def test_P20_a_field_that_is_a_parameter_is_told_apart(catalogue):
    for old in ("num_workers", "n_workers"):
        error = refused("unknown_field", replace, BREAKHIS, **{old: 4})
        assert "'workers'" in error.remedy
        catalogue("P20", f"recipe field {old}", error)


def test_P20_an_argument_of_the_schedulers_that_torch_has_removed_has_no_counterpart(catalogue):
    with pytest.raises(TypeError, match="verbose"):  # as the description writes it
        torch.optim.lr_scheduler.ReduceLROnPlateau(torch.optim.SGD([torch.zeros(1)]), verbose=True)
    error = refused("unknown_field", replace, ISIC2019, verbose=True)
    assert "schedule" in error.remedy  # as one of all fields
    catalogue("P20", "recipe field verbose, as of ReduceLROnPlateau(verbose=True)", error)


@pytest.mark.parametrize(
    ("old", "ours"),
    [
        pytest.param(old, ours, id=f"P20-parameter-{old}")
        for old, ours in {
            "num_workers": "workers",
            "learning_rate": "lr",
            "num_epochs": "epochs",
            "pretrained": "weights",
            "output_dir": "output",
            "data_dir": "data",
            "gpu": "device",
            "random_state": "seed",
        }.items()
    ],
)
def test_a_parameter_by_its_name_elsewhere_is_refused_with_ours(catalogue, old, ours):
    error = refused("unknown_parameter", checked, f"{old} = 1")
    assert repr(ours) in error.reason
    catalogue("P20", passed(old, 1), error)


def test_P20_a_parameter_that_only_a_recipe_has_is_told_apart(catalogue):
    error = refused("unknown_parameter", checked, "use_amp = True")
    assert "'precision'" in error.reason
    catalogue("P20", "-p use_amp True", error)


# --- P02: types -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param("epochs", "10", id="P02-text"),
        pytest.param("epochs", True, id="P02-true"),
        pytest.param("epochs", 2.5, id="P02-fraction"),
        pytest.param("epochs", None, id="P02-none"),
        pytest.param("lr", [1e-3], id="P02-list-for-number"),
        pytest.param("fast", 1, id="P02-number-for-bool"),
        pytest.param("weights", None, id="P02-weights-none"),
        pytest.param("arch", ["resnet50"], id="P02-list-for-text"),
        pytest.param("fractions", [0.7, 0.15, 0.15], id="P02-list-for-tuple"),
        pytest.param("fractions", 0.7, id="P02-number-for-tuple"),
        pytest.param("head_dropout", ("a", "b"), id="P02-texts-for-numbers"),
        pytest.param("classes", "ab", id="P02-text-for-classes"),
        pytest.param("classes", ("a", 3), id="P02-number-for-class"),
        pytest.param("stages", (13,), id="P02-number-for-stage"),
        pytest.param("augmentation", {"rotation": 3}, id="P02-dict-for-augmentation"),
    ],
)
def test_a_field_of_another_type_is_refused(catalogue, field, value):
    error = refused("bad_recipe", replace, BREAKHIS, **{field: value})
    assert f"{field}={value!r}" in error.reason
    catalogue("P02", f"recipe with {field}={value!r}", error)


@pytest.mark.parametrize(
    "assignment",
    [
        pytest.param(text, id=f"P02-{text.replace(' ', '')}")
        for text in (
            "epochs = 'ten'",
            "epochs = [3]",
            "epochs = True",
            "lr = float('nan')",
            "mixed = 1",
            "mixed = 'true'",
            "data = 12",
            "data = ''",
        )
    ],
)
def test_a_parameter_of_another_type_is_refused(catalogue, assignment):
    error = refused("bad_parameter", checked, assignment)
    assert assignment.split()[0] == error.subject
    catalogue("P02", f"notebook parameter {assignment}", error)


def test_P02_all_problems_of_a_notebook_are_told_at_once(catalogue):
    error = refused(
        "unknown_parameter",
        checked,
        "epoch = 3",
        "lr = 'fast'",
        "workers = -3",
        "image_size = 10",
        "max_hours = -1",
        "resume = 'yes'",
    )
    assert error.subject == "epoch, image_size, lr, workers, max_hours, resume" and "\n" not in str(error)
    catalogue("P02", "six wrong parameters in one call", error)


# --- P03 to P07, P09 to P11, P14, P17: numbers and choices of a recipe -----------------------------------------------


@pytest.mark.parametrize(
    ("entry", "field", "value"),
    [
        pytest.param(entry, field, value, id=f"{entry}-{field}={value!r}")
        for entry, field, values in (
            ("P03", "epochs", (0, -1, 10**6)),
            ("P04", "batch_size", (0, -4, 1, 10**6)),
            ("P05", "lr", (0.0, -1e-3, NAN, INF, 1e3, 1e-7)),
            ("P06", "weight_decay", (-1e-5, 1.0, NAN)),
            ("P07", "patience", (-1,)),
            ("P09", "image_size", (16, 2048, 224.5)),
            ("P10", "fractions", ((0.5, 0.5, 0.5), (1.2, -0.1, -0.1), (1.0, 0.0, 0.0), (0.8, 0.2), (NAN, NAN, NAN))),
            ("P11", "seed", (1.5, -1, True, 2**32)),
            ("P14", "arch", ("resnet5", "vgg16")),
            ("P14", "schedule", ("cosine", "ReduceLROnPlateau")),
            ("P14", "monitor", ("acuracy", "f1")),
            ("P14", "loss", ("CrossEntropyLoss",)),
            ("P14", "optimizer", ("sgd",)),
            ("P13", "precision", ("amp", "fp64")),
            ("P17", "tta_views", (0, -1, 9)),
        )
        for value in values
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(catalogue, entry, field, value):
    error = refused("bad_recipe", replace, BREAKHIS, **{field: value})
    assert f"{field}=" in error.reason
    catalogue(entry, f"recipe with {field}={value!r}", error)


@pytest.mark.parametrize(
    ("field", "value", "meant"),
    [
        pytest.param("schedule", "CosineAnnealingWarmRestarts", "sgdr", id="P14-torch-sgdr"),
        pytest.param("schedule", "ReduceLROnPlateau", "plateau", id="P14-torch-plateau"),
        pytest.param("optimizer", "AdamW", "adamw", id="P14-torch-adamw"),
        pytest.param("arch", "EfficientNet-B0", "efficientnet_b0", id="P14-torch-efficientnet"),
        pytest.param("monitor", "val_auc", "auc", id="P14-val-auc"),
        pytest.param("precision", "bfloat16", "bf16", id="P14-torch-bf16"),
    ],
)
def test_a_choice_by_its_name_elsewhere_is_refused_with_ours(field, value, meant):
    assert repr(meant) in refused("bad_recipe", replace, BREAKHIS, **{field: value}).reason


def test_P14_an_unknown_recipe_is_refused_with_the_nearest_name(catalogue):
    error = refused("unknown_recipe", recipes.get, "breakhist")
    assert "'breakhis'" in error.remedy
    catalogue("P14", "recipe breakhist", error)


@pytest.mark.parametrize(
    ("entry", "name", "value"),
    [
        pytest.param(entry, name, value, id=f"{entry}-parameter-{name}={value}")
        for entry, name, values in (
            ("P03", "epochs", ("0",)),
            ("P04", "batch_size", ("1",)),
            ("P05", "lr", ("1e3", "0")),
            ("P08", "workers", ("-3", "0")),
            ("P09", "image_size", ("10",)),
            ("P11", "seed", ("-1", str(2**64))),
            ("P13", "device", ("'gpu'",)),
            ("P19", "resume", ("'yes'",)),
            ("P03", "max_hours", ("-1",)),
        )
        for value in values
    ],
)
def test_a_parameter_that_cannot_be_is_refused_in_the_first_cell(catalogue, entry, name, value):
    error = refused("bad_parameter", checked, f"{name} = {value}")
    assert error.subject == name and name in error.reason and "\n" not in str(error)
    catalogue(entry, passed(name, value.strip("'")), error)
    for path in NOTEBOOKS:  # and so in every notebook that has such a parameter
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        cell = "".join(next(c for c in cells if "parameters" in c["metadata"].get("tags", []))["source"])
        if re.search(rf"^{name}:", cell, re.MULTILINE):
            assert refused("bad_parameter", checked, f"{name} = {value}", cell=cell).subject == name, path


def test_values_that_can_be_are_taken_as_they_are(tmp_path):
    given = {
        "epochs": 35,
        "lr": 1e-4,
        "image_size": 96,
        "batch_size": 2,
        "seed": 7,
        "workers": 3,
        "max_hours": 0.5,
        "device": "cpu",
        "weights": "none",
        "output": str(tmp_path / "new"),
        "resume": "must",
    }
    settings = checked(*[f"{name} = {value!r}" for name, value in given.items()])
    assert settings.changed == given and not (tmp_path / "new").exists()


@pytest.mark.parametrize("hours", [pytest.param(hours, id=f"P03-{hours}-hours") for hours in (-1, NAN)])
def test_a_time_that_cannot_be_is_refused_by_training(catalogue, tmp_path, hours):
    catalogue("P03", f"max_hours={hours}", refused("bad_parameter", train, tmp_path, max_hours=hours))


def test_P07_patience_0_never_stops_early(catalogue):
    flat = [0.5] * 34
    assert schedules.should_stop(replace(BREAKHIS, schedule="constant"), flat)
    assert not schedules.should_stop(replace(BREAKHIS, schedule="constant", patience=0), flat)
    catalogue("P07", "recipe with patience=0", "accepted: training never stops early")


@pytest.mark.parametrize("side", [pytest.param(side, id=f"P09-{side}") for side in (33, 100)])
@pytest.mark.parametrize("arch", architectures.NETWORKS)
def test_an_image_size_that_is_no_multiple_of_32_is_accepted(catalogue, side, arch):
    recipe = replace(recipes.from_scratch(BREAKHIS), arch=arch, image_size=side)
    with torch.no_grad():
        logits = building.build(recipe).eval()(torch.rand(1, 3, side, side))
    assert logits.shape == (1, 2) and torch.isfinite(logits).all()
    catalogue("P09", f"recipe with image_size={side}", "accepted: the networks take any side")


def test_P11_the_largest_seed_serves_every_generator(catalogue):
    recipe = replace(TINY, seed=2**32 - 1)
    torch.Generator().manual_seed(recipe.seed)
    np.random.RandomState(recipe.seed)  # what scikit-learn makes of a seed
    np.random.default_rng([recipe.seed, 1])
    drawn = uniform(recipe.seed, 0, np.arange(2), np.arange(2))
    assert all((0 <= values).all() and (values < 1).all() for values in drawn.values())
    catalogue("P11", "recipe with seed=4294967295", "accepted: every generator takes it")


# --- P04: batches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "recipe", "number"),
    [
        pytest.param("batch_size=64 for 32 training images", {"batch_size": 64}, 32, id="P04-more-than-images"),
        pytest.param(
            "batch_size=8 for 33 training images, drop_last=False", {"drop_last": False}, 33, id="P04-one-left"
        ),
    ],
)
def test_a_batch_size_that_leaves_nothing_to_learn_from_is_refused(catalogue, tmp_path, given, recipe, number):
    error = refused("bad_parameter", train, tmp_path, replace(TINY, **recipe), image_set(train=number))
    assert error.subject == "batch_size" and not (tmp_path / "checkpoints").exists()
    catalogue("P04", given, error)


# --- P08: threads -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [pytest.param(number, id=f"P08-{number}") for number in (-3, 0, 2.5, True)])
def test_a_number_of_threads_that_cannot_be_is_refused_by_the_check_and_by_training(catalogue, tmp_path, workers):
    source = SimpleNamespace(table=pd.DataFrame({"path": ["never read.png"]}), root=tmp_path)
    error = refused("bad_parameter", checking.check, source, 37, workers=workers)
    assert str(refused("bad_parameter", train, tmp_path, workers=workers)) == str(error)
    catalogue("P08", f"workers={workers}", error)


def test_P08_more_threads_than_are_any_use_are_not_started_and_one_line_says_so(catalogue, monkeypatch):
    monkeypatch.setattr(cpu, "cores", lambda: 2)
    said = []
    assert cpu.threads(500, said.append) == 16 and cpu.threads(16, said.append) == 16
    (line,) = said
    assert "16" in line and "500" in line
    assert cpu.threads(None) == 2
    catalogue("P08", "workers=500 on 2 cores", "accepted: 16 threads, and one line says so")


# --- P10, P11: the split ----------------------------------------------------------------------------------------------


def make(labels, groups):
    table = pd.DataFrame({"path": [f"{i:03}.png" for i in range(len(labels))], "label": labels, "group": groups})
    return manifest.Manifest(
        table=table,
        root=Path("data"),
        classes=tuple(sorted(set(labels))),
        positive=None,
        group_by="group",
        levels=("group",),
        subgroups=(),
        source="table",
        demo=False,
        found={},
    )


@pytest.mark.parametrize(
    ("entry", "code", "arguments"),
    [
        pytest.param("P10", "bad_fractions", {"fractions": (0.7, 0.2, 0.2)}, id="P10-sum"),
        pytest.param("P10", "bad_fractions", {"fractions": (0.8, 0.2)}, id="P10-two"),
        pytest.param("P10", "bad_fractions", {"fractions": (1.1, -0.2, 0.1)}, id="P10-negative"),
        pytest.param("P10", "bad_fractions", {"fractions": (NAN, 0.5, 0.5)}, id="P10-nan"),
        pytest.param("P11", "bad_seed", {"seed": 1.0}, id="P11-float"),
        pytest.param("P11", "bad_seed", {"seed": -1}, id="P11-negative"),
        pytest.param("P11", "bad_seed", {"seed": True}, id="P11-true"),
    ],
)
def test_a_split_that_cannot_be_is_refused(catalogue, entry, code, arguments):
    error = refused(code, splitting.split, make(list("abab" * 5), list("abcdefghijklmnopqrst")), **arguments)
    catalogue(entry, "split with " + "".join(f"{k}={v}" for k, v in arguments.items()), error)


# --- P12, P19: run folders --------------------------------------------------------------------------------------------


def start(root: Path, output: Path, kind: str = "breakhis", **options):
    """Opens a run of three images in `root`."""
    facts = pd.DataFrame({"path": list("abc"), "bytes": 1, "sha256": ["0" * 64] * 3})
    source = replace(make(list("aba"), list("123")), root=root, source=kind)
    pictures = ImageSet(np.zeros((3, 37, 37, 3), np.uint8), source.table.assign(row=range(3)), source.classes)
    split = source.table.assign(split=["train", "val", "test"])
    checked = SimpleNamespace(manifest=source, facts=facts, images=pictures)
    return runs.start(BREAKHIS, checked, split, output=output, **options)


@pytest.mark.parametrize(
    "output", [pytest.param(place, id=f"P12-{place}") for place in ("data", "data/runs", "link/runs", "data/x/../runs")]
)
def test_a_run_is_never_put_among_the_images(catalogue, tmp_path, output):
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    error = refused("output_in_data", start, tmp_path / "data", tmp_path / output)
    assert list((tmp_path / "data").iterdir()) == []
    catalogue("P12", f"images in data, output {output}" + ", a link to data" * output.startswith("link"), error)


@pytest.mark.parametrize("output", [pytest.param(place, id=f"P12-{place}") for place in ("file", "file/runs")])
def test_an_output_that_is_a_file_is_refused_before_an_image_is_read(catalogue, tmp_path, output):
    (tmp_path / "file").touch(mode=0o777)
    error = refused("output_unwritable", start, tmp_path / "data", tmp_path / output)
    assert error.subject == str(tmp_path / output)
    first = refused("bad_parameter", checked, f"output = {str(tmp_path / output)!r}")
    assert first.subject == "output" and error.subject in first.reason
    catalogue("P12", f"output {output}, where file is a file", error)


def test_P12_an_output_that_may_only_be_read_is_refused_before_an_image_is_read(catalogue, tmp_path, monkeypatch):
    allowed = os.access  # root may write anywhere, so the permission is withheld here
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.F_OK and allowed(path, mode))
    error = refused("output_unwritable", start, tmp_path / "data", tmp_path / "new")
    assert refused("bad_parameter", checked, f"output = {str(tmp_path / 'new')!r}").subject == "output"
    assert not (tmp_path / "new").exists()
    catalogue("P12", "output in a read-only folder", error)


def test_P12_an_output_folder_that_is_not_there_yet_is_made(catalogue, tmp_path):
    assert runs.output_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    catalogue("P12", "output a/b, which does not exist", "accepted: the folders are made")


def test_P19_nothing_to_resume_is_an_error_only_where_there_must_be(catalogue, tmp_path):
    error = refused("nothing_to_resume", start, tmp_path / "data", tmp_path / "runs", resume="must")
    assert not (tmp_path / "runs").exists()
    catalogue("P19", 'resume="must" with an empty folder', error)


def test_P19_an_unknown_way_to_resume_is_refused(catalogue, tmp_path):
    catalogue("P19", 'resume="yes"', refused("bad_parameter", start, tmp_path / "data", tmp_path, resume="yes"))


# --- P13: device and precision ----------------------------------------------------------------------------------------


@pytest.fixture
def gpus(monkeypatch):
    """`gpus(count, kernels)`: a machine with so many GPUs, for which this torch has kernels or not."""

    def pretend(count: int, kernels: bool = True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 0))
        monkeypatch.setattr(devices, "_has_kernels", lambda: kernels)

    return pretend


@pytest.mark.parametrize(
    ("given", "name", "machine"),
    [
        pytest.param("device cuda without a GPU", "cuda", (0,), id="P13-no-gpu"),
        pytest.param("device cuda:7 with two GPUs", "cuda:7", (2,), id="P13-cuda7"),
        pytest.param("device cuda on a GPU too old for this torch", "cuda", (1, False), id="P13-old-gpu"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused(catalogue, gpus, given, name, machine):
    gpus(*machine)
    error = refused("no_gpu", devices.choose_device, name)
    assert refused("bad_parameter", checked, f"device = {name!r}").subject == "device"
    catalogue("P13", given, error)


@pytest.mark.parametrize("name", [pytest.param(name, id=f"P13-{name}") for name in ("gpu", "meta", "mps", "cuda:x", 0)])
def test_a_device_that_training_does_not_know_is_refused(catalogue, gpus, name):
    gpus(2)
    catalogue("P13", f"device {name!r}", refused("bad_parameter", devices.choose_device, name))


def test_P13_a_device_is_chosen_as_asked_and_by_what_there_is(gpus):
    gpus(2)
    assert [str(devices.choose_device(d)) for d in ("auto", "cpu", "cuda", "cuda:1", torch.device("cuda:0"))] == [
        "cuda",
        "cpu",
        "cuda",
        "cuda:1",
        "cuda:0",
    ]
    gpus(1, kernels=False)
    assert str(devices.choose_device()) == "cpu"


@pytest.mark.parametrize(
    ("precision", "answer"),
    [
        pytest.param("bf16", "accepted", id="P13-bf16"),
        pytest.param("fp16", "accepted: with a scaled loss, as on a GPU", id="P13-fp16"),
    ],
)
def test_half_precision_learns_on_a_cpu_and_only_where_asked(catalogue, tmp_path, precision, answer):
    _, history = train(tmp_path, replace(TINY, precision=precision, epochs=6))
    assert history["val_auc"].iloc[-1] > 0.9
    catalogue("P13", f"precision {precision} on a CPU", answer)


# --- P15 to P17: weights of classes, thresholds (P18 stands with M15) -------------------------------------------------


@pytest.mark.parametrize("counts", [pytest.param(counts, id=f"P15-{len(counts)}") for counts in ([3], [1, 2, 3])])
def test_counts_of_another_number_of_classes_are_refused(catalogue, counts):
    error = refused("bad_counts", losses.build, BREAKHIS, counts)
    catalogue("P15", f"{len(counts)} class counts for 2 classes", error)


@pytest.mark.parametrize("number", [pytest.param(number, id=f"P15-{number}") for number in (0, -1, NAN)])
def test_a_class_without_images_has_no_weight(catalogue, number):
    error = refused("empty_class", losses.class_weights, [3, number])
    assert error.subject == "class number 1"
    catalogue("P15", f"class weights from the counts 3 and {number}", error)


@pytest.mark.parametrize("threshold", [pytest.param(value, id=f"P16-{value}") for value in (1.5, -0.1, NAN)])
def test_a_threshold_that_is_no_probability_is_refused(catalogue, tmp_path, threshold):
    table = pd.DataFrame(
        {
            "id": ["a", "b"],
            "group": ["a", "b"],
            "label": ["benign", "malignant"],
            "p_benign": [0.9, 0.1],
            "p_malignant": [0.1, 0.9],
        }
    )
    error = refused("bad_threshold", metrics.summary, table, BREAKHIS.classes, "malignant", threshold)
    catalogue("P16", f"threshold={threshold}", error)
    out = tmp_path / "out"
    exported = refused("bad_manifest", export.save_model, out, small_state(), BREAKHIS, threshold=threshold)
    assert f"threshold={threshold}" in exported.reason and not out.exists()
    catalogue("P16", f"export with threshold={threshold}", exported)


def small_state():
    return {"fc.5.weight": torch.zeros(2, 8)}


# --- P21: pretrained weights ------------------------------------------------------------------------------------------


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """A project and a torch.hub folder of the test's own, and no network; gives the addresses that were asked."""
    asked = []

    def download(remote, folder, **how):
        asked.append(remote.name)
        raise PathoError("download_failed", remote.url, "no network", "Check the network")

    monkeypatch.setattr(files, "project_root", lambda: tmp_path / "project")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(fetch, "fetch", download)
    monkeypatch.setenv("PATHOLIB_WEIGHTS", str(tmp_path / "mine"))
    return asked


@pytest.mark.parametrize(
    ("arch", "name"),
    [
        pytest.param("resnet50", "resnet50-11ad3fa6.pth", id="P21-resnet50"),
        pytest.param("efficientnet_b0", "efficientnet_b0_rwightman-7f5810bc.pth", id="P21-efficientnet_b0"),
    ],
)
def test_without_network_and_file_it_stops_and_says_where_to_put_it(catalogue, tmp_path, offline, arch, name):
    recipe = replace(recipes.from_scratch(BREAKHIS), arch=arch, weights="imagenet")
    error = refused("weights_missing", building.build, recipe)
    for place in ("mine", "project/data/weights", "hub/checkpoints"):
        assert str(tmp_path / place / name) in error.reason
    for way in (f"patholib download weights-{arch}", 'weights="none"', str(tmp_path / "project/data/weights")):
        assert way in error.remedy
    assert error.subject == name and offline == [name]
    catalogue("P21", f"ImageNet weights of {arch} without a network", error)


def test_P21_a_missing_file_of_weights_is_refused_with_every_place_that_was_tried(catalogue, tmp_path, offline):
    recipe = replace(recipes.from_scratch(ISIC2019), weights="data/mine.pth")
    error = refused("weights_missing", building.build, recipe)
    assert error.subject == "data/mine.pth" and str(tmp_path / "project/data/mine.pth") in error.reason
    catalogue("P21", "weights=data/mine.pth, which does not exist", error)
    first = refused("bad_parameter", checked, "weights = 'data/mine.pth'")
    assert first.subject == "weights" and str(tmp_path / "project/data/mine.pth") in first.reason
    catalogue("P21", "-p weights data/mine.pth, which does not exist", first)


# --- P22: files of settings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "content", "code"),
    [
        pytest.param("not UTF-8", '{"name": "ä"}'.encode("cp1252"), "bad_json", id="P22-cp1252"),
        pytest.param("UTF-16", '{"name": "a"}'.encode("utf-16"), "bad_json", id="P22-utf16"),
        pytest.param("cut off", b'{"recipe": {"name": "break', "bad_json", id="P22-cut"),
        pytest.param("empty", b"", "bad_json", id="P22-empty"),
        pytest.param("YAML", b"recipe: &a [x, x]\nb: [*a, *a]\n", "bad_json", id="P22-yaml"),
        pytest.param("a million brackets deep", b"[" * 10**6, "bad_json", id="P22-deep"),
        pytest.param("a number of 5,000 digits", b'{"recipe": ' + b"1" * 5000 + b"}", "bad_json", id="P22-digits"),
        pytest.param("a list", b"[]", "bad_run", id="P22-list"),
        pytest.param("no fields", b"{}", "bad_run", id="P22-no-fields"),
        pytest.param("a folder", None, "unreadable", id="P22-folder"),
    ],
)
def test_a_run_whose_file_of_settings_is_none_is_refused(catalogue, tmp_path, given, content, code):
    path = tmp_path / "run.json"
    path.mkdir() if content is None else path.write_bytes(content)
    error = refused(code, runs.open_run, tmp_path)
    assert error.subject == str(path)
    catalogue("P22", f"run.json: {given}", error)


@pytest.mark.parametrize(
    ("given", "content", "code"),
    [
        pytest.param("not an object", '"resnet50"', "bad_recipe", id="P22-recipe-text"),
        pytest.param("without its classes", '{"name": "mine", "positive": null}', "bad_recipe", id="P22-recipe-lacks"),
        pytest.param(
            "lr of NaN",
            '{"name": "mine", "classes": ["a", "b"], "positive": null, "lr": NaN}',
            "bad_recipe",
            id="P22-recipe-nan",
        ),
        pytest.param(
            "a stage that is a number",
            '{"name": "mine", "classes": ["a", "b"], "positive": null, "stages": [1]}',
            "bad_recipe",
            id="P22-recipe-stage",
        ),
        pytest.param(
            "a field of the future",
            '{"name": "mine", "classes": ["a", "b"], "positive": null, "warmup": 3}',
            "unknown_field",
            id="P22-recipe-future",
        ),
    ],
)
def test_a_recipe_file_is_checked_as_if_it_had_been_typed(catalogue, given, content, code):
    error = refused(code, recipes.from_json, json.loads(content))
    catalogue("P22", f"recipe as JSON: {given}", error)


# --- P23 to P27: parameters and data ----------------------------------------------------------------------------------


def relabelled(part: str, label: str) -> ImageSet:
    """The images of the small training, with one class only in a part."""
    pictures = image_set()
    labels = np.where(pictures.table["split"] == part, label, pictures.table["label"])
    return replace(pictures, table=pictures.table.assign(label=labels))


def test_P23_a_class_without_training_images_is_refused_by_name(catalogue, tmp_path):
    error = refused("empty_class", train, tmp_path, TINY, relabelled("train", "benign"))
    assert error.subject == "training split" and "malignant" in error.reason
    catalogue("P23", "training split without a class", error)
    catalogue("T20", "a class without training images, whose weight would be infinite", error)


def test_P23_a_class_missing_from_the_test_images_is_named_beside_the_number(catalogue):
    table = pd.DataFrame(
        {
            "id": list("abcd"),
            "group": list("abcd"),
            "label": ["MEL", "NV", "MEL", "NV"],
            "p_MEL": [0.8, 0.1, 0.7, 0.3],
            "p_NV": [0.1, 0.8, 0.2, 0.6],
            "p_DF": [0.1, 0.1, 0.1, 0.1],
        }
    )
    found = metrics.summary(table, ("MEL", "NV", "DF"))
    assert found["metrics"]["balanced_accuracy"]["note"] == "mean over the classes that occur; absent: DF"
    catalogue("P23", "test split without one of three classes", "accepted: each mean says which class it lacks")


@pytest.mark.parametrize("monitor", [pytest.param(name, id=f"P24-{name}") for name in fields.CHOICES["monitor"]])
def test_validation_images_of_one_class_cannot_choose_the_best_epoch(catalogue, tmp_path, monitor):
    error = refused("single_class", train, tmp_path, replace(TINY, monitor=monitor), relabelled("val", "benign"))
    assert error.subject == "validation split" and not (tmp_path / "history.csv").exists()
    catalogue("P24", f"validation split of one class, monitor {monitor}", error)


def test_P24_every_problem_of_a_split_is_told_at_once(catalogue, tmp_path):
    pictures = image_set()
    benign = replace(pictures, table=pictures.table.assign(label="benign"))
    error = refused("empty_class", train, tmp_path, TINY, benign)
    assert "empty_class" in error.reason and "single_class" in error.reason
    catalogue("P24", "training and validation split of one class", error)


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(BREAKHIS, id="P24-corrected"), pytest.param(recipes.as_published("breakhis"), id="P24-published")],
)
def test_an_undefined_metric_is_never_best(catalogue, recipe):
    assert schedules.best_epoch(recipe, [NAN, 0.6, None, NAN]) == 1
    catalogue("P24", "a validation metric undefined in some epochs", "accepted: such an epoch is never the best")
    catalogue(
        "P24",
        "a validation metric undefined in every epoch",
        refused("undefined_metric", schedules.best_epoch, recipe, [NAN, None]),
    )


def test_P25_fewer_than_three_groups_of_a_class_cannot_be_split(catalogue):
    data = make(["rare"] * 8 + ["b"] * 9, ["one"] * 4 + ["two"] * 4 + list("123456789"))
    error = refused("split_infeasible", splitting.split, data)
    assert "rare: 2 groups, 8 images" in error.reason
    catalogue("P25", "a class of 8 images of 2 patients", error)


def test_P25_three_groups_per_class_that_cannot_be_shared_out_are_refused(catalogue):
    # Any three of four groups hold a class of their own, so all four would have to be in different splits.
    rows = [(f"{p}{q}{r}", g) for p, q, r in itertools.combinations("wxyz", 3) for g in (p, q, r)]
    data = make([label for label, _ in rows], [group for _, group in rows])
    error = refused("split_infeasible", splitting.split, data)
    catalogue("P25", "four patients, each three of whom share a class", error)


def test_P26_one_patient_with_all_images_of_a_class_is_refused_with_the_table(catalogue):
    data = make(["rare"] * 9 + ["b"] * 9, ["one"] * 9 + list("123456789"))
    error = refused("split_infeasible", splitting.split, data)
    for line in ("rare: 1 groups, 9 images", "b: 9 groups, 9 images"):
        assert line in error.reason
    catalogue("P26", "one patient with all positive images", error)


def test_P28_fewer_patients_of_a_class_than_folds_are_refused_with_the_table(catalogue):
    error = refused("split_infeasible", splitting.folds, make(list("aaabbbbb"), list("stuvwxyz")), 5)
    assert "at least 5 groups per class" in error.reason and "a: 3 groups, 3 images" in error.reason
    catalogue("P28", "5 folds for a class of 3 patients", error)


def test_P28_one_patient_with_all_positive_images_has_no_folds(catalogue):
    data = make(["rare"] * 9 + ["b"] * 9, ["one"] * 9 + list("123456789"))
    error = refused("split_infeasible", splitting.folds, data)
    assert "rare: 1 groups, 9 images" in error.reason
    catalogue("P28", "5 folds, and one patient with all positive images", error)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"folds": 1}, id="P28-one"),
        pytest.param({"folds": 2.0}, id="P28-float"),
        pytest.param({"repeats": 0}, id="P28-no-repeat"),
    ],
)
def test_numbers_of_folds_that_mean_nothing_are_refused(catalogue, arguments):
    error = refused("bad_parameter", splitting.folds, make(list("ab" * 9), list("abcdefghijklmnopqr")), **arguments)
    catalogue("P28", "cross-validation with " + "".join(f"{k}={v}" for k, v in arguments.items()), error)


@pytest.mark.parametrize("images", [pytest.param(number, id=f"P27-{number}") for number in (1, 2, 4)])
def test_a_handful_of_images_cannot_be_split(catalogue, images):
    data = make(["a", "b", "a", "b"][:images], list("wxyz")[:images])
    catalogue("P27", f"a data set of {images} images", refused("split_infeasible", splitting.split, data))


def test_P27_three_patients_a_class_are_the_smallest_set_that_is_split(catalogue):
    split = splitting.split(make(list("aaabbb"), list("uvwxyz")))
    assert (splitting.split_counts(split).loc[["a", "b"]] == 1).all(axis=None)
    catalogue("P27", "a data set of two classes of 3 patients", "accepted: one patient of each class in each part")
