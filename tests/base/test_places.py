"""Kaggle, Colab and a machine of one's own: where things are kept, how long a session lasts, which GPU can be used."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from patholib.base import files, places
from patholib.base.errors import PathoError
from patholib.data import caching, demo, readers
from patholib.lab import notebook, sessions
from patholib.model import architectures, building, recipes, schedules
from patholib.train import devices

VARIABLES = (
    "KAGGLE_KERNEL_RUN_TYPE",
    "COLAB_RELEASE_TAG",
    "COLAB_GPU",
    "PATHOLIB_MOUNTS",
    "PATHOLIB_OUTPUTS",
    "PATHOLIB_CACHE",
    "PATHOLIB_DATA",
)


@pytest.fixture
def at(tmp_path, monkeypatch):
    """`at("Kaggle")`: from here on it looks as if that were the place; the folders it has there."""

    def go(host: str) -> SimpleNamespace:
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        kaggle, content = tmp_path / "kaggle", tmp_path / "content"
        there = SimpleNamespace(
            input=kaggle / "input",
            content=content,
            drive=content / "drive" / "MyDrive",
            working={"Kaggle": kaggle / "working", "Colab": content}.get(host, tmp_path / "home"),
        )
        for folder in (there.working, *[there.input] * (host == "Kaggle")):
            folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv("PATHOLIB_MOUNTS", os.pathsep.join(map(str, (there.input, content, there.drive))))
        if host:
            monkeypatch.setenv({"Kaggle": "KAGGLE_KERNEL_RUN_TYPE", "Colab": "COLAB_RELEASE_TAG"}[host], "Batch")
        monkeypatch.chdir(there.working)
        return there

    return go


def test_the_mounts_are_kaggles_and_colabs_unless_a_variable_names_others(at, monkeypatch):
    at("")
    monkeypatch.delenv("PATHOLIB_MOUNTS")
    assert [path.as_posix() for path in places.mounts()] == ["/kaggle/input", "/content", "/content/drive/MyDrive"]
    monkeypatch.setenv("PATHOLIB_MOUNTS", os.pathsep.join(["a", "", "b"]))
    assert places.mounts() == (Path("a"), Path("b"))
    monkeypatch.setenv("PATHOLIB_MOUNTS", "")
    assert places.mounts() == ()


def test_on_kaggle_runs_are_kept_in_the_working_folder_and_what_can_be_made_again_is_not(at):
    there = at("Kaggle")
    assert files.outputs() == there.working / "outputs"
    assert files.remade() == there.input.parent / "temp"
    assert caching.cache_file([], 32, "crop").is_relative_to(there.input.parent / "temp" / "cache")


def test_on_colab_runs_are_kept_in_drive_where_it_is_mounted_and_the_cache_never(at):
    there = at("Colab")
    assert files.outputs() == there.content / "outputs"
    there.drive.mkdir(parents=True)
    assert files.outputs() == there.drive / "PathoVision" / "outputs"
    assert files.remade() == there.content / "data"


def test_on_ones_own_machine_all_stays_in_the_project(at):
    there = at("")
    there.drive.mkdir(parents=True)
    assert (files.outputs(), files.remade()) == (there.working / "outputs", there.working / "data")


def test_kaggles_image_is_built_on_colabs_and_is_kaggle_all_the_same(at, monkeypatch):
    at("Kaggle")
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    assert places.host() == "Kaggle"


def test_an_attached_data_set_is_found_and_without_one_demo_images_are_made_outside_of_what_is_kept(at, capsys):
    there = at("Kaggle")
    small = {"groups": 16, "images_per_group": 1, "size": (64, 64)}
    source = readers.load("isic2019", **small)
    assert source.demo and source.root.is_relative_to(there.input.parent / "temp")
    assert str(there.input) in capsys.readouterr().out and not list(there.working.iterdir())
    place = demo.write(there.input / "datasets" / "somebody" / "isic-2019", "isic2019", **small)
    (place / "DEMO.json").unlink()
    source = readers.load("isic2019")
    assert not source.demo and source.root == place


@pytest.mark.parametrize("place", ["weights", "datasets/somebody/weights", "datasets/somebody/offline/weights"])
def test_weights_that_are_attached_are_found_without_a_network(at, place):
    there = at("Kaggle")
    name = architectures.NETWORKS["resnet18"].weights_file
    files.write_bytes(there.input / place / name, b"not these weights")
    with pytest.raises(PathoError, match="weights_damaged"):  # that is: found, read, and held against its name
        building.build(replace(recipes.for_demo(recipes.BREAKHIS), arch="resnet18", weights="imagenet"))


def test_of_a_drive_only_the_top_is_searched_for_a_file(at):
    there = at("Colab")
    for place in ("", "a/b", "a/b/c"):
        files.write_bytes(there.drive / place / "weights.pth", b"weights")
    assert set(places.attached("weights.pth")) == {there.drive / "weights.pth", there.drive / "a/b/weights.pth"}


# --- time ---


def test_on_kaggle_a_training_ends_an_hour_before_the_session_and_elsewhere_never(at, monkeypatch):
    at("Kaggle")
    monkeypatch.setattr(sessions, "STARTED", 1000.0)
    monkeypatch.setattr(sessions.time, "monotonic", lambda: 1000.0 + 3 * 3600)
    assert sessions.hours_left() == 8.0
    assert schedules.deadline(0.5, 50.0) == 50.0 + 1800  # who gives a number has it
    monkeypatch.setattr(sessions.time, "monotonic", lambda: 1000.0 + 20 * 3600)
    assert sessions.hours_left() == 0.0
    for host in ("Colab", ""):
        at(host)
        assert sessions.hours_left() is None and schedules.deadline(None, 50.0) == math.inf


# --- the GPU ---


@pytest.fixture
def gpu(monkeypatch):
    """`gpu("Tesla T4", 7, 5)`: a machine with this GPU and a torch as Kaggle has it; `gpu(None)`: with none."""

    def pretend(name: str | None, major: int = 0, minor: int = 0, bf16: bool = False) -> None:
        for function, answer in (
            ("is_available", name is not None),
            ("device_count", int(name is not None)),
            ("get_device_name", name),
            ("get_device_capability", (major, minor)),
            ("get_arch_list", ["sm_70", "sm_75", "sm_80", "sm_90", "compute_120"]),
        ):
            monkeypatch.setattr(torch.cuda, function, lambda answer=answer: answer)
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation
        )

    return pretend


@pytest.mark.parametrize(("card", "precision"), [(("Tesla T4", 7, 5, False), "fp16"), (("A100", 8, 0, True), "bf16")])
def test_a_gpu_computes_in_bf16_only_where_it_does_not_emulate_it(at, gpu, card, precision):
    at("Kaggle")
    gpu(*card)
    device = devices.choose_device()
    assert device.type == "cuda"
    assert devices.choose_precision("auto", device)[0] == precision


@pytest.mark.parametrize("host", ["Kaggle", "Colab"])
def test_a_gpu_without_kernels_is_refused_where_its_hours_are_counted_before_an_image_is_read(at, gpu, host):
    at(host)
    gpu("Tesla P100-PCIE-16GB", 6, 0)
    with pytest.raises(PathoError, match="no_gpu") as refused:
        devices.choose_device()
    for words in ("Tesla P100", "sm_60", devices.GPU_SETTING[host]):  # which GPU, what it lacks, where another is
        assert words in str(refused.value), words
    with pytest.raises(PathoError, match="bad_parameter"):
        notebook.check_parameters(['device: str = "auto"  # where to compute'], {})
    assert devices.choose_device("cpu").type == "cpu"


def test_a_gpu_without_kernels_is_told_at_home_and_the_processor_taken(at, gpu, capsys):
    at("")
    gpu("GeForce GTX 1080", 6, 1)
    assert devices.choose_device().type == "cpu"
    said = capsys.readouterr().out
    assert "GTX 1080" in said and "sm_61" in said and "Kaggle" not in said


def test_a_session_without_a_gpu_says_where_one_is_chosen_and_a_laptop_says_nothing(at, gpu, capsys):
    gpu(None)
    at("Kaggle")
    assert devices.choose_device().type == "cpu"
    assert devices.GPU_SETTING["Kaggle"] in capsys.readouterr().out
    at("")
    assert devices.choose_device().type == "cpu" and capsys.readouterr().out == ""
