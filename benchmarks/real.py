"""Trains on real images with the project's own notebooks and writes what came out into RESULTS.md.

  python benchmarks/real.py isic2019 --data FOLDER     ISIC 2019 layout; table rows without a file are left out
  python benchmarks/real.py idc --data FOLDER          breast histology patches of a labels.csv, "your own CSV"
  python benchmarks/real.py breakhis --data FOLDER     too few patients to split: the notebook has to refuse

The networks start from ImageNet weights, those of `patholib[weights]`. Options: --masks FOLDER (isic2019: other images
of the same table with NAME_segmentation.png, on which the heatmaps are examined too), --epochs, --image-size,
--batch-size, --lr, --seed, --results FILE, and --run RUN_FOLDER, which trains nothing and writes the section of a run
that this command made before. Each name has its own section of RESULTS.md between two
marks; all else in the file stays. The run folder keeps what the notebook makes (report, cards, galleries of heatmaps,
the exported model) and model.onnx; here nothing is kept of the images but numbers and curves of numbers. The exit code
is 1 where a run failed or missed its mark.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import pandas as pd
from harness import HEAD, RESULTS, ROOT, machine_line, markdown, with_section  # first: it makes patholib importable
from trust import annotated

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.data import checking, readers, splitting
from patholib.deploy import exportformat, onnx_export
from patholib.judge import decisions, metric_table, metrics, predicting, trust
from patholib.model import augment, profiles, recipes
from patholib.report.markdown import words
from patholib.report.records import SETS
from patholib.study import Study
from patholib.train import origin, runs

FACTS = "benchmark.json"  # in the run folder: what no other file of it knows
METRICS = ("auc", "balanced_accuracy", "accuracy", "macro_f1", "sensitivity", "specificity", "log_loss", "brier")
RIVALS = {
    "baseline": "the colour baseline, a regression that sees no shapes",
    "probe": "the linear probe, a regression on the features the training began with",
}
KEPT = {
    "report.html": "the report",
    "model_card.html": "the model card",
    "data_card.html": "the data card",
    "checklist.html": "CLAIM and TRIPOD+AI, filled in as far as a run can",
    "heatmaps/gallery.html": "heatmaps of the surest, the least sure and the worst answers",
    "heatmaps/classes.html": "heatmaps by class",
}
COMPARED = 16  # validation images, about, on which ONNX Runtime has to give PyTorch's probabilities
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


# A resumed run has no wall time; the features that the training began with are a floor beside the colours.
SHARED = {"on_bad": "skip", "resume": "never", "probe": True}
PRETRAINED = {**SHARED, "arch": "efficientnet_lite0"}  # whose weights come as a package, so that nothing is downloaded
BENCHMARKS = {
    "isic2019": Benchmark(
        "ISIC 2019: skin lesions, from ImageNet weights",
        "isic2019",
        "",
        {"missing": "skip", **PRETRAINED, "image_size": 96},
        mark=0.80,
    ),
    "idc": Benchmark(
        "IDC: breast histology patches, a CSV of one's own, from ImageNet weights",
        "breakhis",
        "labels.csv",
        {**PRETRAINED, "positive": "idc", "image_size": 96},
        mark=0.90,
    ),
    "breakhis": Benchmark(
        "BreakHis: ten tiles are refused",
        "breakhis",
        "",
        {**SHARED, "weights": "none", "image_size": 64, "epochs": 1},
        refusal="split_infeasible",
    ),
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=BENCHMARKS)
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--data", type=Path, help="folder of the images")
    given.add_argument("--run", type=Path, help="a finished run folder of this benchmark: write its section again")
    parser.add_argument("--masks", type=Path, help="folder of other images with NAME_segmentation.png")
    changes = {"epochs": int, "image_size": int, "batch_size": int, "lr": float, "seed": int}
    for name, kind in changes.items():
        parser.add_argument("--" + name.replace("_", "-"), type=kind)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    benchmark = BENCHMARKS[options.name]
    if options.masks and options.name != "isic2019":
        parser.error("--masks needs the table of isic2019")
    if options.run:
        return write(options.name, *judged(benchmark, options.run), options.results)
    changed = {name: getattr(options, name) for name in changes if getattr(options, name) is not None}
    return write(options.name, *run(options.name, benchmark, options.data, options.masks, changed), options.results)


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


def run(
    name: str, benchmark: Benchmark, data: Path, masks: Path | None, changed: dict
) -> tuple[str, bool, Path | None]:
    """Runs the notebook and times it; the section, whether it is as declared, and the picture of its curves."""
    data = (data / benchmark.table if benchmark.table and data.is_dir() else data).resolve()
    if not data.exists():
        raise PathoError("missing_file", f"--data {data.name}", "does not exist", "Give the folder of the images")
    parameters = {"data": data, **benchmark.parameters, **changed}
    command = ["run.py", "train", benchmark.notebook]
    for parameter, value in parameters.items():
        command += ["-p", parameter, str(value)]
    options = ["--masks", "MASKS"] * bool(masks)
    options += [part for field, value in changed.items() for part in ("--" + field.replace("_", "-"), str(value))]
    shown = [
        "python3 "
        + shlex.join(
            [
                "DATA/" * bool(benchmark.table) + benchmark.table or "DATA" if part == str(data) else part
                for part in command
            ]
        ),
        "python " + shlex.join(["benchmarks/real.py", name, "--data", "DATA", *options]),
    ]
    outputs = Path(os.environ.get("PATHOLIB_OUTPUTS") or ROOT / "outputs")
    before = latest(outputs)
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PATHOLIB_PYTHON": sys.executable},
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        check=False,
    )
    facts = {"benchmark": name, "commands": shown[::-1], "seconds": round(time.monotonic() - start, 1)}
    print(done.stderr, file=sys.stderr)
    if benchmark.refusal:
        error = without_path(done.stderr[done.stderr.find("PathoError [") :] if done.returncode else "", data)
        return refused(benchmark, facts, error)
    run_dir = latest(outputs)
    if done.returncode or run_dir is None or run_dir == before:
        raise PathoError(
            "run_failed",
            benchmark.notebook,
            f"ended with exit code {done.returncode}, see above",
            "Nothing was written",
        )
    files.write_json(run_dir / FACTS, facts)
    if refusal := add_onnx(run_dir, benchmark.notebook, parameters):
        facts["onnx"] = refusal
    if masks:
        facts["outlined"] = outlined(run_dir, data, masks)
    files.write_json(run_dir / FACTS, facts)
    return judged(benchmark, run_dir)


def add_onnx(run_dir: Path, notebook: str, given: dict) -> str:
    """Writes model.onnx beside the model that the notebook exported, held against it on validation images.

    Where it cannot be made, what is in the way; else "".
    """
    recipe = runs.open_run(run_dir).recipe
    source = readers.load(notebook, given["data"], missing=given.get("missing", "error"))
    with tempfile.TemporaryDirectory(prefix="patholib-") as folder:  # the notebook's report of the check is enough
        checked = checking.check(
            source, recipe.cache_size, recipe.fit, on_bad=given["on_bad"], progress=False, report_dir=Path(folder)
        )
    split = splitting.read_split(run_dir / "split.csv")
    some = checked.images.with_split(split).part("val").examples(math.ceil(COMPARED / len(recipe.classes)), "group")
    try:
        onnx_export.to_onnx(run_dir, augment.plain_views(some.pictures, recipe.image_size))
    except PathoError as error:
        return f"{error.code}: {error.reason}"
    return ""


def outlined(run_dir: Path, data: Path, masks: Path) -> dict:
    """The checks of the heatmaps on images that an expert outlined: their number, the AUC on them, and trust.json."""
    study = Study.open(run_dir, data)
    recipe = study.recipe
    known = annotated(masks, data, recipe)
    raw = predicting.predict(study.model, known.images, recipe, progress=False)
    table = decisions.with_calibration(raw, recipe.classes, decisions.locked(run_dir))
    threshold = study.judged.threshold
    found = trust.examine(study.model, known.images, table, None, known.masks, recipe.positive, threshold)
    auc = metrics.summary(table, recipe.classes, recipe.positive)["metrics"]["auc"]
    return {"images": len(table), "auc": auc, "trust": found.facts}


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
    verdict = (
        f"Refused with `{benchmark.refusal}`, as declared:"
        if good
        else f"**Not as declared:** the notebook should have stopped with `{benchmark.refusal}`."
    )
    lines = [
        *opening(benchmark, facts, origin.machine()),
        f"- Until the refusal: {duration(facts['seconds'])}",
        "",
        verdict,
        "",
        *(("```", *error.splitlines(), "```") if error else ("It ended without an error.",)),
    ]
    return "\n".join(lines) + "\n", good, None


def judged(benchmark: Benchmark, run_dir: Path) -> tuple[str, bool, Path]:
    """The section of a finished run, from the files of its folder; whether the mark was met; its curves."""
    record, found = files.read_json(run_dir / "run.json"), files.read_json(run_dir / "metrics.json")
    facts, checked = files.read_json(run_dir / FACTS), files.read_json(run_dir / "data_report.json")
    if record["demo"]:
        raise PathoError(
            "demo_images",
            run_dir.name,
            "was made with generated images: nothing on them is a result",
            "Give --data a folder of real images",
        )
    if BENCHMARKS.get(facts["benchmark"]) != benchmark:
        raise PathoError("wrong_run", run_dir.name, f"is a run of {facts['benchmark']}", "Name a run of this benchmark")
    history = pd.read_csv(run_dir / "history.csv")
    split = splitting.read_split(run_dir / "split.csv")
    training, recipe, code = record["training"], recipes.from_json(record["recipe"]), record["code"]
    lines = [
        *opening(benchmark, facts, record["machine"]),
        f"- Code: version {code['version']}, commit {(code['commit'] or 'unknown')[:12]}; torch "
        f"{record['versions']['torch']}; {record['finished'][:10]}",
        f"- Time: {duration(facts['seconds'])} for the whole notebook, {duration(history['seconds'].sum())} of it "
        f"training (epochs: {len(history)}, on {training['device']}, {training['precision']}, "
        f"{history['images_per_second'].median():.0f} images per second)",
        f"- Model: {recipe.arch}{' and a small one on statistics of colour and grain' * bool(recipe.colour)}, weights "
        f"{recipe.weights}, {recipe.image_size} pixels, batches of {recipe.batch_size}, lr {recipe.lr:g}, seed "
        f"{record['seed']}; the epoch kept is {training['best_epoch']}",
        *[f"- {note}" for note in [profiles.profile(recipe)] if note],
        f"- Images: {left_out(record['data'], checked)}",
        "",
        f"Images of one {record['data']['group_by']} are in one split only.",
        "",
        *split_table(split),
        "",
        *number_table(found),
        "",
        mark(benchmark, found),
        "",
        *difference(found),
        "",
        *alert(found),
        "",
        *calibration(found),
        "",
        *believed(run_dir),
        "",
        *on_outlines(facts),
        *exported(run_dir, facts),
        "",
        *kept(run_dir),
        "",
        "### Training",
        "",
        *history_table(history, training["best_epoch"]),
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
    counts = splitting.split_counts(split)
    rows = [
        [name, *(f"{row[f'{part} images']} / {row[f'{part} groups']}" for part in splitting.SPLITS)]
        for name, row in counts.iterrows()
    ]
    return markdown(["images / groups", *splitting.SPLITS], rows)


def number_table(found: dict) -> list[str]:
    sets = {key: title for key, title in SETS.items() if key in found}
    rows = [
        [name.replace("_", " ").replace("auc", "AUC"), *(number(found[key]["metrics"].get(name)) for key in sets)]
        for name in METRICS
        if any(name in found[key]["metrics"] for key in sets)
    ]
    level = {found[key]["level"] for key in sets}.pop()
    without = sorted(
        {
            f"{name.replace('_', ' ')} ({sets[key]}): {value['no_interval']}"
            for key in sets
            for name, value in found[key]["metrics"].items()
            if name in METRICS and "no_interval" in value
        }
    )
    notes = sorted({f"{sets[key]}: {note}" for key in sets for note in found[key].get("notes", [])})
    return [
        *markdown([f"value ({level:.0%} interval over groups)", *sets.values()], rows),
        *[""] * bool(without or notes),
        *(f"- No interval for {line}" for line in without),
        *(f"- {line}" for line in notes),
    ]


def number(value: dict | None, sign: str = "") -> str:
    """A number with its interval; sign "+": of a difference."""
    if value is None:
        return ""
    if value["value"] is None:
        return f"undefined: {value.get('undefined', 'the reason is not recorded')}"
    interval = "" if value["low"] is None else f" ({value['low']:{sign}.3f} to {value['high']:{sign}.3f})"
    return f"{value['value']:{sign}.3f}{interval}"


def mark(benchmark: Benchmark, found: dict) -> str:
    """Whether the declared mark was met."""
    auc = found["test"]["metrics"]["auc"]
    macro = "macro " * (len(found["test"]["classes"]) > 2)
    verdict = "met" if auc["value"] >= benchmark.mark else "**not met**"
    return f"Declared mark: test {macro}AUC of at least {benchmark.mark:.2f}. It was {verdict}: {number(auc)}."


def lacking(what: str) -> list[str]:
    """What stands in place of a part whose file the run folder has not, as that of an older version."""
    return [f"**Left out:** the run folder has no {what}. A run that is made now with the command above has."]


def difference(found: dict) -> list[str]:
    """The network minus each rival on the same test images, in the same draws of whole groups."""
    lines, paired = ["### The network minus its rivals", ""], found.get("gain_over")
    if not paired:
        return [*lines, *lacking("differences from its rivals")]
    rows = [
        [
            words(name) + " (lower is better)" * (name in metric_table.LOWER_IS_BETTER),
            *(number(of[name], "+") for of in paired.values()),
        ]
        for name in METRICS
        if all(name in of for of in paired.values())
    ]
    return [
        *lines,
        *markdown(
            ["difference (95% interval, the same groups drawn for both)", *(f"minus {SETS[name]}" for name in paired)],
            rows,
        ),
        "",
        *(f"- {verdict(of['auc'], RIVALS[name])}" for name, of in paired.items()),
    ]


def verdict(auc: dict, rival: str) -> str:
    """What a paired difference of AUC shows."""
    if auc["low"] is None:
        return (
            f"By AUC the network and {rival}, differ by {number(auc, '+')}; no interval, so nothing is shown: "
            f"{auc.get('no_interval', 'it is undefined')}."
        )
    if auc["low"] > 0:
        return f"By AUC the network is better than {rival}: {number(auc, '+')}."
    if auc["high"] < 0:
        return f"**By AUC the network is worse than {rival}:** {number(auc, '+')}."
    return f"**By AUC the network is not shown to be better, or worse, than {rival}:** {number(auc, '+')} holds 0."


def alert(found: dict) -> list[str]:
    """How the class that must not be missed is found at the threshold that the validation images chose."""
    lines = ["### At the locked threshold", ""]
    if "decision" not in found:
        return [*lines, *lacking("decision that was locked before the test")]
    of, decision = found["test"].get("alert"), found["decision"]
    if of is None:
        return [
            *lines,
            f"No class is singled out as the one not to be missed: the decision is by {found['test']['decision']}.",
        ]
    rows = [[f"test, {words(name)}", number(of[name])] for name in metrics.ALERT]
    rows += [[f"validation, {words(name)}", number(decision["validation"].get(name))] for name in metrics.ALERT[:2]]
    beside = "An alert beside the decision: " * (len(found["test"]["classes"]) > 2)
    return [
        *lines,
        f"{beside}{of['positive']} where its probability is at least {of['threshold']:.4g} "
        f"({decision['rule']}): {of['flagged']:.0%} of {of['images']} test images; {of['positives']} are "
        f"{of['positive']}, of {of['positive_groups']} groups.",
        "",
        *markdown(["", "value"], rows),
        *[""] * bool(decision["notes"]),
        *(f"- {note}" for note in decision["notes"]),
    ]


def calibration(found: dict) -> list[str]:
    """The errors of the probabilities before and after the calibration that fits the validation images."""
    lines = ["### Calibration", ""]
    if not found.get("calibration"):
        return [*lines, *lacking("calibration")]
    names = ("temperature", *metric_table.of_calibration(len(found["test"]["classes"])))
    rows = [
        [SETS[name], when, *("absent" if both[when].get(what) is None else f"{both[when][what]:.3f}" for what in names)]
        for name, both in found["calibration"].items()
        for when in ("before", "after")
    ]
    return [*lines, *markdown(["", "", *map(words, names)], rows)]


def believed(run_dir: Path) -> list[str]:
    """Whether the heatmaps can be believed: the verdict, its reasons, and every check with its number."""
    lines = ["### Can its heatmaps be believed", ""]
    if not (run_dir / trust.FILE).exists():
        return [*lines, *lacking("trust.json")]
    return [*lines, *verdict_table(trust.read(run_dir))]


def verdict_table(found: trust.Trust) -> list[str]:
    return [
        f"**{found.verdict}**",
        "",
        *(f"- {reason}." for reason in found.reasons),
        *[""] * bool(found.reasons),
        *markdown(list(found.table), found.table.to_numpy().tolist()),
    ]


def on_outlines(facts: dict) -> list[str]:
    """The same checks on images with an expert's outline, where it is known what counts."""
    if not (found := facts.get("outlined")):
        return []
    return [
        f"On {found['images']} other images with an expert's outline (AUC {number(found['auc'])}):",
        "",
        *verdict_table(trust.Trust(found["trust"])),
        "",
    ]


def exported(run_dir: Path, facts: dict) -> list[str]:
    """The files of the model with their sizes, and how near ONNX Runtime comes to PyTorch."""
    sizes = [
        [name, f"{(run_dir / name).stat().st_size / 1e6:.1f} MB"]
        for name in (exportformat.WEIGHTS, exportformat.PUBLISHED, onnx_export.ONNX)
        if (run_dir / name).exists()
    ]
    lines = ["### The exported model", "", *(markdown(["file", "size"], sizes) if sizes else lacking("export")), ""]
    if "onnx" in facts:
        return [*lines, f"**No {onnx_export.ONNX}:** {facts['onnx']}."]
    if not (run_dir / onnx_export.ONNX_FACTS).exists():
        return [*lines, *lacking(onnx_export.ONNX)]
    near = files.read_json(run_dir / onnx_export.ONNX_FACTS)
    return [
        *lines,
        f"ONNX Runtime's probabilities differ from PyTorch's by at most {near['max_difference']:.1e} on "
        f"{near['compared']} pictures, of validation images and of noise; {onnx_export.ALIKE:g} would be refused.",
    ]


def kept(run_dir: Path) -> list[str]:
    """Where report, cards and galleries lie: in the run folder alone, as they show pictures."""
    rows = [[name, what if (run_dir / name).exists() else f"{what}: **not there**"] for name, what in KEPT.items()]
    return [f"### In the run folder `{run_dir.name}`", "", *markdown(["file", "what it is"], rows)]


def history_table(history: pd.DataFrame, best: int) -> list[str]:
    """About ten epochs, the kept and the last one always among them."""
    every = max(1, math.ceil(len(history) / 10))
    epochs = history["epoch"]
    chosen = history[(epochs % every == 1 % every) | (epochs == best) | (epochs == epochs.max())]
    columns = [name for name in HISTORY if name in history]
    rows = [
        [
            f"{row[name]:.0f}{' (kept)' * int(row[name] == best)}" if name == "epoch" else f"{row[name]:.3g}"
            for name in columns
        ]
        for _, row in chosen.iterrows()
    ]
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
