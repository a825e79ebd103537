"""Trains on real images with the project's own notebooks and writes what came out into RESULTS.md.

  python benchmarks/real.py isic2019 --data FOLDER     ISIC 2019 layout; table rows without a file are left out
  python benchmarks/real.py idc --data FOLDER          breast histology patches of a labels.csv, "your own CSV"
  python benchmarks/real.py breakhis --data FOLDER     too few patients to split: the notebook has to refuse

Options: --epochs, --image-size, --batch-size, --lr, --seed, --results FILE, and --run RUN_FOLDER, which trains nothing
and writes the section of a run that this command made before. Each name has its own section of RESULTS.md between two
marks; all else in the file stays. Of the images nothing is kept but numbers and curves of numbers. The exit code is 1
where a run failed or missed its mark.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import pandas as pd
from harness import HEAD, RESULTS, ROOT, machine_line, markdown, with_section  # first: it makes patholib importable

from patholib import files, manifest, runs
from patholib.errors import PathoError

FACTS = "benchmark.json"  # in the run folder: what no other file of it knows
METRICS = ("auc", "balanced_accuracy", "accuracy", "macro_f1", "sensitivity", "specificity", "log_loss", "brier")
SETS = {"val": "validation", "test": "test", "test_tta": "test, averaged views", "baseline": "colour baseline (test)"}
HISTORY = ("epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_balanced_accuracy", "val_auc", "seconds")


@dataclass(frozen=True)
class Benchmark:
    """What is run: a notebook with stated parameters, and what has to come out."""

    title: str
    notebook: str
    table: str  # the file of the data folder that the notebook is given; "": the folder
    parameters: dict
    mark: float | None = None  # least AUC on the test images (macro one-vs-rest for more than two classes)
    refusal: str | None = None  # the code of the error with which the notebook has to stop


FROM_SCRATCH = {"weights": "none", "on_bad": "skip", "resume": "never"}  # no download; a resumed run has no wall time
BENCHMARKS = {
    "isic2019": Benchmark("ISIC 2019: skin lesions, from scratch", "isic2019", "",
                          {"missing": "skip", **FROM_SCRATCH, "image_size": 64, "epochs": 30}, mark=0.80),
    "idc": Benchmark("IDC: breast histology patches, a CSV of one's own", "breakhis", "labels.csv",
                     {**FROM_SCRATCH, "image_size": 48, "epochs": 40}, mark=0.90),
    "breakhis": Benchmark("BreakHis: ten tiles are refused", "breakhis", "",
                          {**FROM_SCRATCH, "image_size": 64, "epochs": 1}, refusal="split_infeasible"),
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=BENCHMARKS)
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--data", type=Path, help="folder of the images")
    given.add_argument("--run", type=Path, help="a finished run folder of this benchmark: write its section again")
    changes = {"epochs": int, "image_size": int, "batch_size": int, "lr": float, "seed": int}
    for name, kind in changes.items():
        parser.add_argument("--" + name.replace("_", "-"), type=kind)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    benchmark = BENCHMARKS[options.name]
    if options.run:
        return write(options.name, *judged(benchmark, options.run), options.results)
    changed = {name: getattr(options, name) for name in changes if getattr(options, name) is not None}
    return write(options.name, *run(options.name, benchmark, options.data, changed), options.results)


def write(name: str, body: str, good: bool, curves: Path | None, results: Path) -> int:
    """Puts the section of a benchmark into the results, with its curves beside them; the exit code."""
    old = results.read_text(encoding="utf-8") if results.exists() else HEAD
    if curves:
        picture = files.write_bytes(results.with_name(f"{name}-curves.png"), curves.read_bytes())
        body += f"\n![Loss and validation metrics by epoch]({picture.name})\n"
    files.write_text(results, with_section(old, f"real {name}", body))
    print(f"The section {name} of {results.name} is written")
    return 0 if good else 1


# --- running ---


def run(name: str, benchmark: Benchmark, data: Path, changed: dict) -> tuple[str, bool, Path | None]:
    """Runs the notebook and times it; the section, whether it is as declared, and the picture of its curves."""
    data = (data / benchmark.table if benchmark.table and data.is_dir() else data).resolve()
    if not data.exists():
        raise PathoError("missing_file", f"--data {data.name}", "does not exist", "Give the folder of the images")
    parameters = {"data": data, **benchmark.parameters, **changed}
    command = ["run.py", "train", benchmark.notebook]
    for parameter, value in parameters.items():
        command += ["-p", parameter, str(value)]
    options = [part for field, value in changed.items() for part in ("--" + field.replace("_", "-"), str(value))]
    shown = ["python3 " + shlex.join(["DATA/" * bool(benchmark.table) + benchmark.table or "DATA" if part == str(data)
                                      else part for part in command]),
             "python " + shlex.join(["benchmarks/real.py", name, "--data", "DATA", *options])]
    outputs = Path(os.environ.get("PATHOLIB_OUTPUTS") or ROOT / "outputs")
    before = latest(outputs)
    start = time.monotonic()
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env={**os.environ, "PATHOLIB_PYTHON": sys.executable},
                          stderr=subprocess.PIPE, text=True, encoding="utf-8", check=False)
    facts = {"benchmark": name, "commands": shown[::-1], "seconds": round(time.monotonic() - start, 1)}
    print(done.stderr, file=sys.stderr)
    if benchmark.refusal:
        error = without_path(done.stderr[done.stderr.find("PathoError ["):] if done.returncode else "", data)
        return refused(benchmark, facts, error)
    run_dir = latest(outputs)
    if done.returncode or run_dir is None or run_dir == before:
        raise PathoError("run_failed", benchmark.notebook, f"ended with exit code {done.returncode}, see above",
                         "Nothing was written")
    files.write_json(run_dir / FACTS, facts)
    return judged(benchmark, run_dir)


def latest(outputs: Path) -> Path | None:
    path = outputs / "latest.json"
    return Path(files.read_json(path)["run_dir"]) if path.exists() else None


def without_path(text: str, data: Path) -> str:
    """The text without the place of the data, which is nobody else's business."""
    return text.strip().replace(str(data), "DATA").replace(str(data.parent), "..")


# --- sections ---


def refused(benchmark: Benchmark, facts: dict, error: str) -> tuple[str, bool, None]:
    """The section of a benchmark whose notebook has to refuse to train."""
    good = error.startswith(f"PathoError [{benchmark.refusal}]")
    verdict = (f"Refused with `{benchmark.refusal}`, as declared:" if good else
               f"**Not as declared:** the notebook should have stopped with `{benchmark.refusal}`.")
    lines = [*opening(benchmark, facts, runs.machine()), f"- Until the refusal: {duration(facts['seconds'])}", "",
             verdict, "", *(("```", *error.splitlines(), "```") if error else ("It ended without an error.",))]
    return "\n".join(lines) + "\n", good, None


def judged(benchmark: Benchmark, run_dir: Path) -> tuple[str, bool, Path]:
    """The section of a finished run, from the files of its folder; whether the mark was met; its curves."""
    record, found = files.read_json(run_dir / "run.json"), files.read_json(run_dir / "metrics.json")
    facts, checked = files.read_json(run_dir / FACTS), files.read_json(run_dir / "data_report.json")
    if record["demo"]:
        raise PathoError("demo_images", run_dir.name, "was made with generated images: nothing on them is a result",
                         "Give --data a folder of real images")
    if BENCHMARKS.get(facts["benchmark"]) != benchmark:
        raise PathoError("wrong_run", run_dir.name, f"is a run of {facts['benchmark']}", "Name a run of this benchmark")
    history = pd.read_csv(run_dir / "history.csv")
    split = manifest.read_split(run_dir / "split.csv")
    training, recipe, code = record["training"], record["recipe"], record["code"]
    lines = [
        *opening(benchmark, facts, record["machine"]),
        f"- Code: version {code['version']}, commit {(code['commit'] or 'unknown')[:12]}; torch "
        f"{record['versions']['torch']}; {record['finished'][:10]}",
        f"- Time: {duration(facts['seconds'])} for the whole notebook, {duration(history['seconds'].sum())} of it "
        f"training (epochs: {len(history)}, on {training['device']}, {training['precision']}, "
        f"{history['images_per_second'].median():.0f} images per second)",
        f"- Model: {recipe['arch']}, weights {recipe['weights']}, {recipe['image_size']} pixels, batches of "
        f"{recipe['batch_size']}, lr {recipe['lr']:g}, seed {record['seed']}; the epoch kept is "
        f"{training['best_epoch']}",
        f"- Images: {left_out(record['data'], checked)}",
        "", f"Images of one {record['data']['group_by']} are in one split only.", "", *split_table(split), "",
        *number_table(found), "", *mark(benchmark, found), "", *history_table(history, training["best_epoch"]),
    ]
    good = found["test"]["metrics"]["auc"]["value"] >= benchmark.mark
    return "\n".join(lines) + "\n", good, run_dir / "figures" / "curves.png"


def opening(benchmark: Benchmark, facts: dict, machine: dict) -> list[str]:
    return [f"## {benchmark.title}", "", "```", *facts["commands"], "```", "", machine_line(machine)]


def left_out(data: dict, checked: dict) -> str:
    """How many images were used, and what was left out for what reason."""
    rows = data["found"].get("rows_without_file", {}).get("count", 0)
    reasons = [f"{rows} table rows without a file"] * bool(rows)
    reasons += [f"{number} {code}" for code, number in sorted(checked["counts"]["by_code"].items())]
    return f"{data['images']} of {data['groups']} groups; left out: {', '.join(reasons) or 'none'}"


def split_table(split: pd.DataFrame) -> list[str]:
    counts = manifest.split_counts(split)
    rows = [[name, *(f"{row[f'{part} images']} / {row[f'{part} groups']}" for part in manifest.SPLITS)]
            for name, row in counts.iterrows()]
    return markdown(["images / groups", *manifest.SPLITS], rows)


def number_table(found: dict) -> list[str]:
    sets = {key: title for key, title in SETS.items() if key in found}
    rows = [[name.replace("_", " ").replace("auc", "AUC"), *(number(found[key]["metrics"].get(name)) for key in sets)]
            for name in METRICS if any(name in found[key]["metrics"] for key in sets)]
    level = {found[key]["level"] for key in sets}.pop()
    without = sorted({f"{name.replace('_', ' ')} ({sets[key]}): {value['no_interval']}" for key in sets
                      for name, value in found[key]["metrics"].items() if name in METRICS and "no_interval" in value})
    notes = sorted({f"{sets[key]}: {note}" for key in sets for note in found[key].get("notes", [])})
    return [*markdown([f"value ({level:.0%} interval over groups)", *sets.values()], rows),
            *[""] * bool(without or notes), *(f"- No interval for {line}" for line in without),
            *(f"- {line}" for line in notes)]


def number(value: dict | None) -> str:
    if value is None:
        return ""
    if value["value"] is None:
        return f"undefined: {value['undefined']}"
    interval = "" if value["low"] is None else f" ({value['low']:.3f} to {value['high']:.3f})"
    return f"{value['value']:.3f}{interval}"


def mark(benchmark: Benchmark, found: dict) -> list[str]:
    """Whether the declared mark was met, and how the network stands to the colour baseline."""
    auc = found["test"]["metrics"]["auc"]
    macro = "macro " * (len(found["test"]["classes"]) > 2)
    verdict = "met" if auc["value"] >= benchmark.mark else "**not met**"
    lines = [f"Declared mark: test {macro}AUC of at least {benchmark.mark:.2f}. It was {verdict}: {number(auc)}."]
    if "baseline" in found:
        floor = found["baseline"]["metrics"]["auc"]
        how = "above" if auc["value"] > floor["value"] else "**not above**"
        lines.append(f"The network's AUC is {how} that of the colour baseline, a logistic regression that sees no "
                     f"shapes: {number(floor)}.")
        if auc["low"] is not None and floor["low"] is not None and auc["low"] <= floor["high"] and \
                floor["low"] <= auc["high"]:
            lines.append("Their intervals overlap: on these images neither is shown to be the better one.")
    return lines


def history_table(history: pd.DataFrame, best: int) -> list[str]:
    """About ten epochs, the kept and the last one always among them."""
    every = max(1, math.ceil(len(history) / 10))
    epochs = history["epoch"]
    chosen = history[(epochs % every == 1 % every) | (epochs == best) | (epochs == epochs.max())]
    columns = [name for name in HISTORY if name in history]
    rows = [[f"{row[name]:.0f}{' (kept)' * int(row[name] == best)}" if name == "epoch" else f"{row[name]:.3g}"
             for name in columns] for _, row in chosen.iterrows()]
    return markdown([name.replace("_", " ") for name in columns], rows)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h " * bool(hours) + f"{minutes} min " * bool(hours or minutes) + f"{rest} s"


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except PathoError as error:
        sys.exit(f"PathoError {error}")
