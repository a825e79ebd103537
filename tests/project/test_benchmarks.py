"""A section of the results says what was measured, in turn and against its mark, and leaves the others alone."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.data import splitting
from patholib.judge import decisions, metrics, predicting
from patholib.model import recipes

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[2]


def benchmark(name: str):
    """A file of benchmarks/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def harness():
    return benchmark("harness")


@pytest.fixture(scope="module")
def real(harness):
    return benchmark("real")


# --- the harness ---


@pytest.fixture
def clock(harness, monkeypatch):
    """A clock that only `spend` moves."""
    now = [0.0]
    monkeypatch.setattr(harness.time, "perf_counter", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_a_ratio_is_taken_within_the_round_so_a_slower_hour_changes_nothing(harness, clock):
    called = []

    def case(name, seconds, slow):
        def run():
            round_ = sum(c == name for c in called)
            called.append(name)
            clock(seconds * slow[round_])
            return 10

        return run

    busy = [1, 1, 8, 1]  # warm-up first; in the second round everything takes eight times as long
    table = harness.compare({"rival": case("rival", 5, busy), "ours": case("ours", 1, busy)}, rounds=3)
    assert called == ["rival", "ours"] * 4
    assert table.loc["rival", "median"] == 2 and table.loc["ours", ["low", "high"]].tolist() == [1.25, 10]
    assert table.loc["ours", ["ratio", "ratio_low", "ratio_high"]].tolist() == [5, 5, 5]
    assert harness.ratio(table, "rival", "ours") == (0.2, 0.2, 0.2)
    assert harness.best(table, ["rival", "ours"]) == "ours"


def test_a_mark_says_what_was_demanded_and_why_it_was_missed(harness):
    quick, small = harness.Mark("quick", 3, reason="The disk"), harness.Mark("small", 1.15, most=True)
    assert quick.met(3) and not quick.met(2.9) and small.met(1.15) and not small.met(1.2)
    text = "\n".join(harness.verdicts([(quick, 2.5), (small, 1.0)]))
    assert quick.reason in text and text.count("missed") == text.count("| met |") == 1


def test_a_section_is_written_with_its_verdicts_and_the_code_is_1_for_a_missed_mark(harness, tmp_path):
    results, mark = tmp_path / "RESULTS.md", harness.Mark("quick", 3)
    results.write_text("# Head\n\n<!-- real idc: begin -->\nkept\n<!-- real idc: end -->\n", encoding="utf-8")
    for reached, code in ((4, 0), (2, 1)):
        assert (
            harness.section(
                "input", "Input", "python x.py", "| a | table |", [(mark, reached)], ["pillow"], results=results
            )
            == code
        )
    text = results.read_text(encoding="utf-8")
    assert text.count("<!-- speed input: begin -->") == 1 and "real idc: begin -->\nkept\n" in text
    for part in ("python x.py", "| a | table |", "missed"):
        assert part in text, part


def test_the_picture_of_the_ratios_is_small(harness, clock, tmp_path):
    table = harness.compare({"published": lambda: clock(2) or 1, "ours": lambda: clock(1) or 1})
    path = harness.bars(tmp_path / "bars.png", {"input": table, "augmentation": table}, "Times the published loader")
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size < 100_000


@pytest.fixture
def rivals(harness, monkeypatch, tmp_path):
    """The harness in an empty folder, with its commands noted instead of run."""
    commands = []

    def run(command, **_):
        commands.append(" ".join(map(str, command)))
        if "venv" in command:
            (harness.VENV / "bin").mkdir()
            (harness.VENV / "Scripts").mkdir()
            for name in ("bin/python", "Scripts/python.exe"):
                (harness.VENV / name).touch()
        failed = harness.code or (harness.fails and harness.fails in command)
        return subprocess.CompletedProcess(command, int(bool(failed)), str(tmp_path), "")

    (tmp_path / "rivals.txt").write_text("timm")
    monkeypatch.setattr(harness, "RIVALS", tmp_path / "rivals.txt")
    monkeypatch.setattr(harness, "VENV", tmp_path / ".venv-bench")
    monkeypatch.setattr(harness.subprocess, "run", run)
    monkeypatch.setattr(harness, "code", 0, raising=False)
    monkeypatch.setattr(harness, "fails", "", raising=False)
    harness.commands = commands
    return harness


def test_the_rivals_are_installed_once_into_their_own_environment_and_again_when_the_list_changes(rivals):
    def installs() -> int:
        rivals.commands.clear()
        rivals.rivals_python()
        assert all(str(rivals.VENV) in line for line in rivals.commands)
        return sum(" install " in line for line in rivals.commands)

    assert installs() == 1 and f" --python {rivals.VENV}" in rivals.commands[-1] and " -c " in rivals.commands[-1]
    assert installs() == 0
    rivals.RIVALS.write_text("timm albumentations")
    assert installs() == 1


def test_pip_installs_the_rivals_where_uv_cannot_and_into_no_other_place(rivals):
    rivals.fails = "uv"
    python = str(rivals.rivals_python())
    last = rivals.commands[-1]
    assert last.startswith(f"{python} -m pip ") and "--require-virtualenv" in last and " -c " in last


def test_a_failed_installation_of_the_rivals_starts_over(rivals):
    rivals.code = 1
    with pytest.raises(PathoError, match="no_rivals"):
        rivals.rivals_python()
    rivals.code = 0
    rivals.rivals_python()
    assert any(" install " in line for line in rivals.commands)


def test_a_foreign_environment_is_left_to_its_owner(rivals):
    rivals.VENV.mkdir()
    with pytest.raises(PathoError, match="foreign_environment"):
        rivals.rivals_python()
    assert rivals.commands == [] and rivals.VENV.exists()


# --- the input ---


@pytest.fixture(scope="module")
def speed_input(harness):
    return benchmark("speed_input")


def test_the_input_benchmark_runs_in_miniature(speed_input, monkeypatch, tmp_path):
    small = {
        "BreakHis, PNG 700 x 460": (64, (70, 46), 2.0, ".png", {}),
        "ISIC, JPEG 1024 x 1024": (64, (64, 64), 2.0, ".jpg", {}),
    }
    monkeypatch.setattr(speed_input, "SETS", small)
    loaders = {name: speed_input.LOADERS[name] for name in ("published loader", "torchvision v2", "patholib")}
    text, judged = speed_input.pipeline(tmp_path, True, loaders)
    assert [mark for mark, _ in judged] == [mark for marks in speed_input.PIPELINE.values() for mark in marks]
    assert all(reached > 0 for _, reached in judged)
    for part in ("| torchvision v2 |", "| patholib |", "| check and cache |", "| decoding |"):
        assert text.count(part) == 2, part


def test_what_the_library_gives_is_normalised_as_the_rivals_batches_are(speed_input):
    views = torch.rand(2, 224, 224, 3).permute(0, 3, 1, 2)
    wanted = (views - torch.tensor(speed_input.MEAN)[:, None, None]) / torch.tensor(speed_input.STD)[:, None, None]
    assert torch.equal(speed_input.normalised(views), wanted)


def test_one_warp_is_8_dB_nearer_to_the_ideal_than_the_published_chain(speed_input):
    _, judged = speed_input.augmenting(Path(), True, names=())
    assert [(mark.what[:7], mark.met(reached)) for mark, reached in judged] == [("picture", True)]


def test_the_ideal_warp_is_the_picture_itself_where_nothing_moves(speed_input):
    still = dataclasses.replace(recipes.BREAKHIS, augmentation=recipes.Augmentation())
    cached = np.stack([speed_input.texture(np.random.default_rng(i), 256, 256, 2.0) for i in range(2)])
    assert min(speed_input.psnr(cached, still)) > 50


def test_a_second_look_at_the_same_files_finds_their_cache(speed_input, tmp_path, capsys):
    speed_input.write_small(tmp_path, 120)
    found = []
    for _ in range(2):
        speed_input.first_batch(tmp_path)
        lines = capsys.readouterr().out.splitlines()
        found.append(json.loads(lines[-1]))
        parts = ("read", "check", "split", "batch")
        assert found[-1]["first_batch"] == pytest.approx(sum(found[-1][part] for part in parts))
    assert any("Re-used" in line for line in lines)
    if sys.platform == "linux":
        assert found[1]["peak"] >= found[1]["own"] > 50  # MB


@pytest.mark.slow
def test_the_scale_is_measured_in_processes_of_their_own(speed_input, tmp_path):
    text, judged = speed_input.scale(tmp_path, True)
    assert len(judged) == len(speed_input.SCALE) and "| 200 |" in text


# --- real images ---


SCRATCH = dataclasses.replace(
    recipes.from_scratch(recipes.BREAKHIS), classes=("idc", "normal"), positive=None, group_by="group", image_size=48
)


def numbers(auc: float) -> dict:
    """What metrics.json says of one set."""
    return {
        "images": 30,
        "groups": 6,
        "classes": ["idc", "normal"],
        "level": 0.95,
        "notes": [],
        "metrics": {
            "auc": {"value": auc, "low": auc - 0.1, "high": auc + 0.05},
            "accuracy": {"value": 0.75, "low": None, "high": None, "no_interval": "too few groups"},
            "log_loss": {"value": None, "low": None, "high": None, "undefined": "one class"},
        },
    }


@pytest.fixture
def run_dir(tmp_path):
    """A made-up finished run of the idc benchmark on "real" images."""
    folder = tmp_path / "run"
    (folder / "figures").mkdir(parents=True)
    (folder / "figures" / "curves.png").write_bytes(b"curves")
    (folder / "figures" / "classes.png").write_bytes(b"pixels")
    rows = [
        (f"{label}/{g}-{i}.png", label, f"{label}-{g}", splitting.SPLITS[g % 3])
        for label in ("idc", "normal")
        for g in range(6)
        for i in range(5)
    ]
    splitting.write_split(pd.DataFrame(rows, columns=["path", "label", "group", "split"]), folder / "split.csv")
    files.write_table(
        folder / "history.csv",
        pd.DataFrame(
            {
                "epoch": e,
                "lr": 0.001,
                "train_loss": 1 / e,
                "val_loss": 0.5,
                "val_auc": 0.8,
                "seconds": 2.5,
                "images_per_second": 40.0,
            }
            for e in range(1, 24)
        ),
    )
    files.write_json(folder / "metrics.json", {"val": numbers(0.9), "test": numbers(0.914), "baseline": numbers(0.877)})
    files.write_json(
        folder / "data_report.json",
        {"counts": {"by_code": {"too_small": 1}}, "cache": {"file": "/home/somebody/cache.npy"}},
    )
    files.write_json(
        folder / "benchmark.json",
        {"benchmark": "idc", "seconds": 3725.4, "commands": ["python benchmarks/real.py idc --data DATA"]},
    )
    files.write_json(
        folder / "run.json",
        {
            "demo": False,
            "seed": 7,
            "finished": "2026-01-02T03:04:05+00:00",
            "code": {"version": "0.1.0", "commit": "0123456789abcdef"},
            "versions": {"torch": "2.10.0"},
            "recipe": SCRATCH.to_json(),
            "data": {"images": 60, "groups": 12, "group_by": "group", "found": {"rows_without_file": {"count": 9}}},
            "training": {"device": "cpu", "precision": "fp32", "best_epoch": 5},
            "machine": {"system": "Linux 6.1-x", "processor": "A CPU", "cores": 2, "torch_threads": 1, "gpu": None},
        },
    )
    return folder


def changed(run_dir: Path, name: str, change) -> None:
    value = files.read_json(run_dir / name)
    change(value)
    files.write_json(run_dir / name, value)


def written(real, run_dir: Path, name: str = "idc") -> tuple[int, str]:
    """The exit code and the results."""
    results = run_dir.parent / "RESULTS.md"
    code = real.main([name, "--run", str(run_dir), "--results", str(results)])
    return code, results.read_text(encoding="utf-8")


def test_a_section_says_what_the_files_say(real, run_dir):
    code, text = written(real, run_dir)
    assert code == 0
    for part in (
        "A CPU",
        "1 h 2 min 5 s",
        "seed 7",
        "1 too_small",
        "0.914 (0.814 to 0.964)",
        "0.877 (0.777 to 0.927)",
        "too few groups",
        "](idc-curves.png)",
    ):
        assert part in text, part
    assert "/home" not in text


def test_a_missed_mark_is_said_and_fails(real, run_dir):
    changed(run_dir, "metrics.json", lambda found: found.update(test=numbers(0.86)))
    code, text = written(real, run_dir)
    assert code == 1 and "0.860" in text


def test_what_the_folder_of_an_older_run_lacks_is_said_and_the_rest_is_written(real, run_dir):
    code, text = written(real, run_dir)
    assert code == 0 and "Left out" in text and text.count("**not there**") == len(real.KEPT)


def predicted(split: pd.DataFrame, part: str, known: float, seed: int = 0) -> pd.DataFrame:
    """Predictions of a part of the split that are noise, moved by `known` towards the truth."""
    table = split[split["split"] == part].reset_index(drop=True)
    rng = np.random.default_rng(seed)
    towards = np.where(table["label"] == "idc", known, -known)
    p = 1 / (1 + np.exp(-rng.normal(size=len(table)) - towards))
    return table.assign(p_idc=p, p_normal=1 - p)


@pytest.fixture
def whole(run_dir):
    """The same run by a version that keeps everything: a class not to be missed, its threshold, a trust report."""
    recipe = dataclasses.replace(SCRATCH, positive="idc")
    split = splitting.read_split(run_dir / "split.csv")
    for name, part, known in (("val", "val", 2), ("test", "test", 2), ("test_tta", "test", 3), ("baseline", "test", 0)):
        predicting.write_predictions(predicted(split, part, known, len(name)), run_dir / f"predictions_{name}.csv")
    val = predicting.read_predictions(run_dir / "predictions_val.csv", recipe.classes)
    decision = {
        "format": 1,
        **decisions.choose(val, recipe.classes, "idc"),
        "temperature": 0.5,
        "threshold": 0.375,
        "predictions_val_sha256": files.sha256(run_dir / "predictions_val.csv"),
        "locked": "2026-01-02Z",
    }
    files.write_json(run_dir / "decision.json", decision)
    changed(run_dir, "run.json", lambda record: record.update(recipe=recipe.to_json()))
    tables = {name: decisions.calibrated(run_dir, name) for name in ("val", "test", "test_tta", "baseline")}
    found = {
        name: metrics.summary(table, recipe.classes, "idc", 0.6 if name == "baseline" else 0.375)
        for name, table in tables.items()
    }
    found["test"]["alert"] = metrics.alert(tables["test"], recipe.classes, "idc", 0.375)
    found["calibration"] = {
        name: decisions.calibration_of(tables[name], recipe.classes, "idc", decision) for name in ("val", "test")
    }
    found["gain_over"] = {
        "baseline": metrics.paired(tables["test"], tables["baseline"], recipe.classes, "idc", (0.375, 0.6))
    }
    files.write_json(run_dir / "metrics.json", found | {"decision": decision})
    check = {
        "asked": "gain over maps of other groups",
        "found": "-0.010 (-0.020 to -0.004)",
        "demanded": "difference above 0",
        "state": "refuted",
        "reason": "no more than maps of other groups do",
    }
    files.write_json(
        run_dir / "trust.json",
        {
            "verdict": "Heatmaps refuted",
            "state": "refuted",
            "reasons": [check["reason"]],
            "checks": {"specific": check},
        },
    )
    for name, size in (("model.safetensors", 2_500_000), ("published.pt", 7_000_000), ("model.onnx", 2_400_000)):
        (run_dir / name).write_bytes(bytes(size))
    files.write_json(run_dir / "model.onnx.json", {"max_difference": 3.2e-7, "compared": 19})
    for name in ("report.html", "model_card.html", "heatmaps/gallery.html"):
        files.write_text(run_dir / name, "a page")
    return run_dir


def test_a_whole_run_is_told_to_its_end(real, whole):
    _, text = written(real, whole)
    found = files.read_json(whole / "metrics.json")
    sensitivity = found["test"]["alert"]["sensitivity"]
    before, after = (found["calibration"]["test"][when] for when in ("before", "after"))
    trust = files.read_json(whole / "trust.json")
    for part in (
        "0.375",
        real.number(sensitivity),
        f"{before['ece_mass']:.3f}",
        f"{after['ece_mass']:.3f}",
        f"{after['brier']:.3f}",
        trust["verdict"],
        *trust["reasons"],
        trust["checks"]["specific"]["found"],
        "2.5 MB",
        "7.0 MB",
        "2.4 MB",
        "3.2e-07",
    ):
        assert part in text, part
    assert "Left out" not in text


def test_what_the_network_has_over_its_rivals_is_told_with_signs_and_what_it_shows(real, whole):
    _, text = written(real, whole)
    found = files.read_json(whole / "metrics.json")["gain_over"]["baseline"]
    for name in ("auc", "sensitivity", "brier"):
        assert real.number(found[name], "+") in text, name
    assert "linear probe" not in text
    same = {name: {"value": 0.0, "low": None, "high": None, "no_interval": "too few"} for name in found}
    changed(whole, "metrics.json", lambda found: found["gain_over"].update(probe=same))
    _, text = written(real, whole)
    assert "linear probe" in text and "+0.000" in text


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [(0.01, 0.2, "better"), (-0.2, -0.01, "worse"), (-0.01, 0.2, "holds 0"), (None, None, "no interval")],
)
def test_a_difference_is_called_one_only_where_its_interval_lies_beside_0(real, low, high, says):
    assert says in real.verdict({"value": 0.1, "low": low, "high": high, "no_interval": "too few"}, "X")


def test_the_checks_on_outlined_images_stand_beside_those_on_test_images(real, whole):
    check = {"asked": "heat on the mask", "found": "0.31 against 0.12", "demanded": "above 0", "state": "supported"}
    facts = {"verdict": "Heatmaps supported", "state": "supported", "reasons": [], "checks": {"located": check}}
    found = {"images": 100, "auc": {"value": 0.87, "low": 0.8, "high": 0.9}, "trust": facts}
    changed(whole, "benchmark.json", lambda known: known.update(outlined=found))
    _, text = written(real, whole)
    for part in ("On 100 other images", "0.870 (0.800 to 0.900)", "0.31 against 0.12", "Heatmaps supported", "refuted"):
        assert part in text, part


@pytest.fixture
def patches(tmp_path, run_dir):
    """A folder of 24 patches, each of a brightness of its own, with labels.csv; their split in the run folder."""
    rng = np.random.default_rng(0)
    split = splitting.read_split(run_dir / "split.csv").groupby("group").head(2).reset_index(drop=True)
    for i, path in enumerate(split["path"]):
        (tmp_path / "data" / path).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(8 * i, 8 * i + 60, (50, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / path)
    split.drop(columns="split").to_csv(tmp_path / "data" / "labels.csv", index=False)
    splitting.write_split(split, run_dir / "split.csv")
    changed(run_dir, "run.json", lambda record: record.update(fingerprint="ab"))
    return tmp_path / "data" / "labels.csv"


def test_onnx_is_held_against_torch_on_validation_images_of_every_class(real, run_dir, patches, monkeypatch):
    seen = {}
    monkeypatch.setattr(real.onnx_export, "to_onnx", lambda folder, views: seen.update({folder: views}))
    monkeypatch.setenv("PATHOLIB_CACHE", str(run_dir.parent / "cache"))
    assert real.add_onnx(run_dir, "breakhis", {"data": patches, "on_bad": "skip"}) == ""
    split = splitting.read_split(run_dir / "split.csv")
    val = split.loc[split["split"] == "val", "path"]
    pixels = {path: np.asarray(Image.open(patches.parent / path)) for path in val}
    views = (seen[run_dir].permute(0, 2, 3, 1).numpy() * 255).round()
    size = recipes.from_json(files.read_json(run_dir / "run.json")["recipe"]).image_size
    assert len(views) == len(pixels) == 8 and views.shape[1:] == (size, size, 3)
    means = np.sort([pixels[path].mean() for path in pixels])
    assert np.abs(np.sort(views.mean(axis=(1, 2, 3))) - means).max() < 2  # cropped and resized, but these pictures
    assert not list(run_dir.parent.glob("**/data_report.html"))  # the report of the notebook's own check stays


def test_a_model_that_onnx_cannot_give_is_told_and_the_training_is_not_lost(real, run_dir, patches, monkeypatch):
    def refuse(folder, views):
        raise PathoError("onnx_differs", str(folder), "would give other probabilities", "Predict with PyTorch")

    def train(command, **_):
        files.write_json(run_dir.parent / "latest.json", {"run_dir": str(run_dir)})
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(real.onnx_export, "to_onnx", refuse)
    monkeypatch.setattr(real.subprocess, "run", train)
    monkeypatch.setattr(real.origin, "code", lambda: {})
    for name, folder in (("PATHOLIB_OUTPUTS", run_dir.parent), ("PATHOLIB_CACHE", run_dir.parent / "cache")):
        monkeypatch.setenv(name, str(folder))
    results = run_dir.parent / "RESULTS.md"
    assert real.main(["idc", "--data", str(patches.parent), "--results", str(results)]) == 0
    text = results.read_text(encoding="utf-8")
    assert "onnx_differs" in text and str(patches.parent) not in text


def test_of_real_images_only_numbers_and_their_curves_are_kept(real, run_dir):
    written(real, run_dir)
    assert sorted(p.name for p in run_dir.parent.iterdir()) == ["RESULTS.md", "idc-curves.png", "run"]


def test_other_sections_stay_to_the_letter(harness):
    text = "# Head\n\n<!-- speed: begin -->\nfast\n<!-- speed: end -->\n\ntail without end"
    once = harness.with_section(text, "real idc", "one\n")
    assert once.startswith(text + "\n\n<!-- real idc: begin -->\none\n")
    both = harness.with_section(once, "real breakhis", "refused")
    again = harness.with_section(both, "real idc", "two")
    assert again == both.replace("\none\n", "\ntwo\n")
    assert harness.with_section(again, "real idc", "two") == again


@pytest.mark.parametrize(
    "broken",
    [
        "<!-- real idc: begin -->\n",
        "<!-- real idc: end -->\n",
        "<!-- real idc: end -->\n<!-- real idc: begin -->\n",
        "<!-- real idc: begin -->\n<!-- real idc: begin -->\n<!-- real idc: end -->\n",
    ],
)
def test_damaged_marks_are_refused_before_anything_is_lost(harness, broken):
    with pytest.raises(PathoError, match="bad_marks"):
        harness.with_section(broken, "real idc", "one")


def test_a_demo_run_or_another_benchmarks_run_is_no_result(real, run_dir):
    with pytest.raises(PathoError, match="wrong_run"):
        written(real, run_dir, "isic2019")
    changed(run_dir, "run.json", lambda record: record.update(demo=True))
    with pytest.raises(PathoError, match="demo_images"):
        written(real, run_dir)
    assert not (run_dir.parent / "RESULTS.md").exists()


def outcome(real, monkeypatch, tmp_path, code: int, stderr: str) -> tuple[int, str]:
    """The exit code and the results of the breakhis benchmark, whose notebook ends so."""
    monkeypatch.setattr(
        real.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, code, "", stderr)
    )
    monkeypatch.setenv("PATHOLIB_OUTPUTS", str(tmp_path))
    monkeypatch.setattr(
        real.origin, "machine", lambda: {"system": "S", "processor": "P", "cores": 1, "torch_threads": 1, "gpu": "G"}
    )
    results = tmp_path / "RESULTS.md"
    ended = real.main(["breakhis", "--data", str(tmp_path), "--results", str(results)])
    return ended, results.read_text(encoding="utf-8")


def test_the_declared_refusal_is_recorded_without_the_place_of_the_data(real, monkeypatch, tmp_path):
    said = f"noise\nPathoError [split_infeasible] {tmp_path}/x: too few.\n  benign: 1 groups\n"
    code, text = outcome(real, monkeypatch, tmp_path, 1, said)
    assert code == 0
    assert "PathoError [split_infeasible] DATA/x: too few.\n  benign: 1 groups\n```" in text
    assert str(tmp_path) not in text and "noise" not in text


@pytest.mark.parametrize(("code", "stderr"), [(0, ""), (1, "PathoError [data_root] x: is empty"), (1, "a crash")])
def test_another_end_than_the_refusal_is_not_as_declared(real, monkeypatch, tmp_path, code, stderr):
    assert outcome(real, monkeypatch, tmp_path, code, stderr)[0] == 1


def test_a_failed_run_writes_nothing(real, monkeypatch, tmp_path):
    (tmp_path / "latest.json").write_text(json.dumps({"run_dir": str(tmp_path / "an older run")}))
    (tmp_path / "labels.csv").touch()
    monkeypatch.setattr(real.subprocess, "run", lambda c, **_: subprocess.CompletedProcess(c, 0, "", ""))
    monkeypatch.setenv("PATHOLIB_OUTPUTS", str(tmp_path))
    with pytest.raises(PathoError, match="run_failed"):  # it ended well, but the newest run is the one from before
        real.main(["idc", "--data", str(tmp_path), "--results", str(tmp_path / "RESULTS.md")])
    assert not (tmp_path / "RESULTS.md").exists()


# --- trust ---


@pytest.fixture(scope="module")
def trust_benchmark(harness):
    return benchmark("trust")


def number(value, low=None, high=None):
    return {"value": value, "low": low, "high": high}


def examined(state, over):
    """What `trust.examine` found of maps of this state, whose heat on the mask beats that of others by `over`."""
    from patholib.judge.trust import CLAIMS, Trust

    check = {"number": number(over, over - 0.1, over + 0.1), "found": "0.5 against 0.2", "state": state}
    reasons = [] if state == "supported" else ["It fails"]
    facts = {"verdict": "In words", "state": state, "reasons": reasons, "blank": 0, "images": 16, "groups": 12}
    return Trust(facts | {"of": "malignant", "checks": dict.fromkeys(CLAIMS, check)})


def test_a_trained_network_has_to_find_the_place_and_an_untrained_one_not_to_be_supported(trust_benchmark, harness):
    found = {
        (name, method): (report, 2.0)
        for method, _ in trust_benchmark.METHODS
        for name, report in (("trained", examined("supported", 0.3)), ("untrained", examined("refuted", -0.2)))
    }
    judged = trust_benchmark.marks(found)
    assert [mark.met(reached) for mark, reached in judged] == [True, True]
    assert [reached for _, reached in judged] == pytest.approx([0.2, 1])
    text = "\n".join([*trust_benchmark.tables(found), *trust_benchmark.reasons(found)])
    assert "0.5 against 0.2" in text and "It fails" in text
    beside = {key: (examined("supported", 0.05), 2.0) for key in found}  # its interval reaches below 0
    assert [mark.met(reached) for mark, reached in trust_benchmark.marks(beside)] == [False, False]


def test_images_with_outlines_are_read_and_those_trained_on_are_refused(trust_benchmark, tmp_path):
    recipe = dataclasses.replace(recipes.ISIC2019, weights="none", image_size=32)
    for folder in ("isic2019/ISIC_2019_Training_Input", "isic_masks"):
        (tmp_path / folder).mkdir(parents=True)
    rng, names = np.random.default_rng(0), ["ISIC_1", "ISIC_2"]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(tmp_path / f"isic_masks/{name}.jpg")
        mask = np.zeros((60, 90), np.uint8)
        mask[20:40, 30:60] = 255
        Image.fromarray(mask).save(tmp_path / f"isic_masks/{name}_segmentation.png")
    one_hot = {c: [float(c == "MEL"), float(c == "NV")] for c in recipe.classes}
    files.write_table(
        tmp_path / "isic2019/ISIC_2019_Training_GroundTruth.csv", pd.DataFrame({"image": names, **one_hot})
    )
    known = trust_benchmark.annotated(tmp_path / "isic_masks", tmp_path / "isic2019", recipe)
    assert list(known.images.table["label"]) == ["MEL", "NV"] and set(known.masks) == set(names)
    assert known.masks["ISIC_1"].mean() == pytest.approx(20 * 30 / 60**2, abs=0.02)  # of the central square
    (tmp_path / "isic2019/ISIC_2019_Training_Input/ISIC_2.jpg").write_bytes(b"")
    with pytest.raises(PathoError, match="bad_masks"):
        trust_benchmark.annotated(tmp_path / "isic_masks", tmp_path / "isic2019", recipe)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (65, "1 min 5 s"), (3600, "1 h 0 min 0 s")])
def test_durations_are_readable(real, seconds, text):
    assert real.duration(seconds) == text


def test_the_committed_results_have_whole_sections_and_their_pictures(harness):
    text = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    for name in re.findall(r"<!-- (.*): begin -->", text):
        harness.with_section(text, name, "new")
    pictures = {p.name for p in (ROOT / "benchmarks").glob("*") if p.suffix in (".png", ".jpg", ".npy")}
    assert pictures == set(re.findall(r"\]\(([^)]*\.png)\)", text))


# --- folds ---


def test_labels_are_turned_to_another_class_and_the_ways_to_rank_agree_where_one_label_is_absurd(harness):
    folds = benchmark("folds")
    table = pd.DataFrame({"path": [f"{i:03}" for i in range(200)], "label": ["a", "b"] * 100})
    turned, changed = folds.turn(table, ("a", "b"), draw=1)
    assert turned == set(table["path"][table["label"] != changed["label"]]) and len(turned) == 10
    p = np.where(table["label"] == "a", 0.9, 0.2)  # what it was says more than what it is called now
    found = folds.orders(changed.assign(group=changed["path"], p_a=p, p_b=1 - p), ("a", "b")).set_index("path")
    assert found.drop(columns="patient").loc[sorted(turned)].max().max() <= 0.05
    assert sorted(found["p"]) == pytest.approx(np.arange(1, 201) / 200)
