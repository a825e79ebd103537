"""A section of the results says what the files of a run say, and leaves the others alone."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from patholib import files, manifest
from patholib.errors import PathoError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def real():
    spec = importlib.util.spec_from_file_location("real", ROOT / "benchmarks" / "real.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["real"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def numbers(auc: float) -> dict:
    """What metrics.json says of one set."""
    return {"images": 30, "groups": 6, "classes": ["idc", "normal"], "level": 0.95, "notes": [], "metrics": {
        "auc": {"value": auc, "low": auc - 0.1, "high": auc + 0.05},
        "accuracy": {"value": 0.75, "low": None, "high": None, "no_interval": "too few groups"},
        "log_loss": {"value": None, "low": None, "high": None, "undefined": "one class"}}}


@pytest.fixture
def run_dir(tmp_path):
    """A made-up finished run of the idc benchmark on "real" images."""
    folder = tmp_path / "run"
    (folder / "figures").mkdir(parents=True)
    (folder / "figures" / "curves.png").write_bytes(b"curves")
    (folder / "figures" / "classes.png").write_bytes(b"pixels")
    rows = [(f"{label}/{g}-{i}.png", label, f"{label}-{g}", manifest.SPLITS[g % 3])
            for label in ("idc", "normal") for g in range(6) for i in range(5)]
    manifest.write_split(pd.DataFrame(rows, columns=["path", "label", "group", "split"]), folder / "split.csv")
    files.write_table(folder / "history.csv", pd.DataFrame(
        {"epoch": e, "lr": 0.001, "train_loss": 1 / e, "val_loss": 0.5, "val_auc": 0.8, "seconds": 2.5,
         "images_per_second": 40.0} for e in range(1, 24)))
    files.write_json(folder / "metrics.json", {"val": numbers(0.9), "test": numbers(0.914), "baseline": numbers(0.877)})
    files.write_json(folder / "data_report.json", {"counts": {"by_code": {"too_small": 1}},
                                                   "cache": {"file": "/home/somebody/cache.npy"}})
    files.write_json(folder / "benchmark.json", {"benchmark": "idc", "seconds": 3725.4, "commands": [
        "python benchmarks/real.py idc --data DATA"]})
    files.write_json(folder / "run.json", {
        "demo": False, "seed": 7, "finished": "2026-01-02T03:04:05+00:00",
        "code": {"version": "0.1.0", "commit": "0123456789abcdef"}, "versions": {"torch": "2.10.0"},
        "recipe": {"arch": "resnet50", "weights": "none", "image_size": 48, "batch_size": 32, "lr": 0.001},
        "data": {"images": 60, "groups": 12, "group_by": "group", "found": {"rows_without_file": {"count": 9}}},
        "training": {"device": "cpu", "precision": "fp32", "best_epoch": 5},
        "machine": {"system": "Linux 6.1-x", "processor": "A CPU", "cores": 2, "torch_threads": 1, "gpu": None}})
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
    for part in ("A CPU, 2 cores, 1 threads, no GPU", "1 h 2 min 5 s for the whole notebook", "58 s of it training",
                 "epochs: 23", "40 images per second", "seed 7", "60 of 12 groups", "9 table rows without a file",
                 "1 too_small", "| idc | 10 / 2 | 10 / 2 | 10 / 2 |", "0.914 (0.814 to 0.964)",
                 "0.877 (0.777 to 0.927)", "| 5 (kept) |", "| 23 |", "undefined: one class",
                 "- No interval for accuracy (test): too few groups", "at least 0.90. It was met", "is above",
                 "![Loss and validation metrics by epoch](idc-curves.png)"):
        assert part in text, part
    assert "/home" not in text


def test_a_missed_mark_and_a_better_baseline_are_said_and_fail(real, run_dir):
    changed(run_dir, "metrics.json", lambda found: found.update(test=numbers(0.86)))
    code, text = written(real, run_dir)
    assert code == 1
    assert "neither is shown to be the better one" in text  # 0.760 to 0.910 and 0.777 to 0.927
    assert "**not met**: 0.860" in text and "**not above** that of the colour baseline" in text


def test_of_real_images_only_numbers_and_their_curves_are_kept(real, run_dir):
    written(real, run_dir)
    assert sorted(p.name for p in run_dir.parent.iterdir()) == ["RESULTS.md", "idc-curves.png", "run"]


def test_other_sections_stay_to_the_letter(real):
    text = "# Head\n\n<!-- speed: begin -->\nfast\n<!-- speed: end -->\n\ntail without end"
    once = real.with_section(text, "idc", "one\n")
    assert once.startswith(text + "\n\n<!-- real idc: begin -->\none\n")
    both = real.with_section(once, "breakhis", "refused")
    again = real.with_section(both, "idc", "two")
    assert again == both.replace("\none\n", "\ntwo\n")
    assert real.with_section(again, "idc", "two") == again


@pytest.mark.parametrize("broken", [
    "<!-- real idc: begin -->\n", "<!-- real idc: end -->\n", "<!-- real idc: end -->\n<!-- real idc: begin -->\n",
    "<!-- real idc: begin -->\n<!-- real idc: begin -->\n<!-- real idc: end -->\n"])
def test_damaged_marks_are_refused_before_anything_is_lost(real, broken):
    with pytest.raises(PathoError, match="bad_marks"):
        real.with_section(broken, "idc", "one")


def test_a_demo_run_or_another_benchmarks_run_is_no_result(real, run_dir):
    with pytest.raises(PathoError, match="wrong_run"):
        written(real, run_dir, "isic2019")
    changed(run_dir, "run.json", lambda record: record.update(demo=True))
    with pytest.raises(PathoError, match="demo_images"):
        written(real, run_dir)
    assert not (run_dir.parent / "RESULTS.md").exists()


def outcome(real, monkeypatch, tmp_path, code: int, stderr: str) -> tuple[int, str]:
    """The exit code and the results of the breakhis benchmark, whose notebook ends so."""
    monkeypatch.setattr(real.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, code, "",
                                                                                                stderr))
    monkeypatch.setenv("PATHOLIB_OUTPUTS", str(tmp_path))
    monkeypatch.setattr(real.runs, "machine", lambda: {"system": "S", "processor": "P", "cores": 1,
                                                       "torch_threads": 1, "gpu": "G"})
    results = tmp_path / "RESULTS.md"
    ended = real.main(["breakhis", "--data", str(tmp_path), "--results", str(results)])
    return ended, results.read_text(encoding="utf-8")


def test_the_declared_refusal_is_recorded_without_the_place_of_the_data(real, monkeypatch, tmp_path):
    said = f"noise\nPathoError [split_infeasible] {tmp_path}/x: too few.\n  benign: 1 groups\n"
    code, text = outcome(real, monkeypatch, tmp_path, 1, said)
    assert code == 0
    assert "as declared" in text and "PathoError [split_infeasible] DATA/x: too few.\n  benign: 1 groups\n```" in text
    assert str(tmp_path) not in text and "noise" not in text


@pytest.mark.parametrize(("code", "stderr"), [(0, ""), (1, "PathoError [data_root] x: is empty"), (1, "a crash")])
def test_another_end_than_the_refusal_is_not_as_declared(real, monkeypatch, tmp_path, code, stderr):
    ended, text = outcome(real, monkeypatch, tmp_path, code, stderr)
    assert ended == 1 and "**Not as declared:**" in text


def test_a_failed_run_writes_nothing(real, monkeypatch, tmp_path):
    (tmp_path / "latest.json").write_text(json.dumps({"run_dir": str(tmp_path / "an older run")}))
    (tmp_path / "labels.csv").touch()
    monkeypatch.setattr(real.subprocess, "run", lambda c, **_: subprocess.CompletedProcess(c, 0, "", ""))
    monkeypatch.setenv("PATHOLIB_OUTPUTS", str(tmp_path))
    with pytest.raises(PathoError, match="run_failed"):  # it ended well, but the newest run is the one from before
        real.main(["idc", "--data", str(tmp_path), "--results", str(tmp_path / "RESULTS.md")])
    assert not (tmp_path / "RESULTS.md").exists()


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (65, "1 min 5 s"), (3600, "1 h 0 min 0 s")])
def test_durations_are_readable(real, seconds, text):
    assert real.duration(seconds) == text


def test_the_committed_results_have_whole_sections_and_their_pictures(real):
    text = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    for name in real.BENCHMARKS:
        real.with_section(text, name, "new")
    pictures = {p.name for p in (ROOT / "benchmarks").glob("*") if p.suffix in (".png", ".jpg", ".npy")}
    assert pictures == {f"{name}-curves.png" for name in real.BENCHMARKS if f"{name}-curves.png" in text}
