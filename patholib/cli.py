"""The command `patholib`: what a terminal can ask of the library, one function per command.

A command is a function that takes its sub-parser, adds arguments and returns what is to be run with them; its name and
first line are the command's name and help. To add one, write it and list it in COMMANDS.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from patholib import __version__
from patholib.base.errors import PathoError

OK, FOUND, UNREADABLE = 0, 1, 2  # exit codes; argparse uses 2 for wrong arguments as well
STOPPED = 130  # as a shell says of a command that was interrupted
ADDRESS = "the cluster to join, auto for the one of this machine (default: one is made of this machine, and stopped)"
Run = Callable[[argparse.Namespace], int]


def _add(parser: argparse.ArgumentParser, name: str, help: str, metavar: str | tuple[str, ...] = "", **more) -> None:
    """Adds an argument; an option without a metavar is a switch."""
    more |= {"metavar": metavar} if metavar else {"action": "store_true"}
    parser.add_argument(name, help=help, **more)


def train(parser: argparse.ArgumentParser) -> Run:
    """Train a network on a folder or table of images, judge it and write the report.

    Exit code: 0 the report is written, 2 refused, 130 or 143 stopped, saved. The same command resumes an interrupted
    training. Started by torchrun, all its processes train together.
    """
    from patholib import options

    text = (
        "breakhis (default), isic2019, quickstart for a small network on demo images, or a file of parameters, "
        'RUN.json: {"recipe": "isic2019", "epochs": 35}'
    )
    _add(parser, "preset", text, "RECIPE", nargs="?", default="breakhis")
    text = "set a parameter, see below: -p data my.csv -p epochs 35"
    _add(parser, "-p", text, ("NAME", "VALUE"), dest="words", nargs=2, action="append", default=[])
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join([inspect.cleandoc(parser.epilog or ""), "", "parameters:", *options.lines()])

    def run(given: argparse.Namespace) -> int:
        from patholib.base.team import joined, myself
        from patholib.study import Study
        from patholib.train import devices, launching

        team, named = myself(), given.preset.endswith(".json")
        try:
            preset, file = ("breakhis", given.preset) if named else (given.preset, None)
            chosen = options.Options.read(preset, file, dict(given.words))
            with joined(devices.choose_device(chosen.device).type == "cuda") as team:
                study = Study(options=chosen, team=team)
                study.train()
            if team.first:
                print(study.lock(), study.judge(), study.explain(), sep="\n\n", flush=True)
                print(f"Report: {study.report()}", flush=True)
                print(study.cross_validate() if chosen.folds else "", end="")
        except (PathoError, KeyboardInterrupt, SystemExit) as error:
            return launching.leave(team, error, None)
        return OK

    return run


def audit(parser: argparse.ArgumentParser) -> Run:
    """Say whether images of the test set stand in training too: patients, files, pictures.

    Exit code: 0 nothing found, 1 leaks, 2 the split cannot be read.
    """
    text = (
        "table with the columns path, label, split and ids, or others that are known; or a folder that holds train, "
        "test and perhaps val, with a folder for every class in each"
    )
    _add(parser, "split", text, "SPLIT", nargs="?")
    for name in ("train", "val", "test"):
        _add(parser, f"--{name}", f"the {name} images, instead of SPLIT", "FOLDER")
    _add(parser, "--root", "where the paths in the CSV count from (default: its folder)", "FOLDER")
    text = "how a foreign CSV calls path, label and split: --columns path=file_name split=fold"
    _add(parser, "--columns", text, "OURS=THEIRS", nargs="+", default=[], type=_pair)
    text = (
        "further columns that hold the id of something that must not be in two splits (patient, case, lesion, slide, "
        "group are known)"
    )
    _add(parser, "--ids", text, "COLUMN", nargs="+", default=[])
    _add(parser, "--metadata", "a table of ids by image name, as ISIC's official one", "CSV")
    text = "the rows that count, where a table lists several splits: --where fold=1"
    _add(parser, "--where", text, "COLUMN=VALUE")
    _add(parser, "--no-pixels", "compare ids only, open no image")
    _add(parser, "--out", "write audit.json and audit.html there", "FOLDER")

    def run(given: argparse.Namespace) -> int:
        from patholib.data import leakage

        folders = {name: getattr(given, name) for name in ("train", "val", "test") if getattr(given, name)}
        if bool(given.split) == bool(folders):
            parser.error("name either SPLIT or the folders --train, --val, --test")
        columns, pixels = dict(given.columns), not given.no_pixels
        found = leakage.audit(
            given.split or folders, given.root, columns, given.ids, given.metadata, given.where, pixels
        )
        print(found)
        if given.out:
            print(f"Written: {found.write(given.out)}")
        return OK if found.ok else FOUND

    return run


def predict(parser: argparse.ArgumentParser) -> Run:
    """Let an exported model look at pictures, and write its answers as a table.

    Exit code: 0 all pictures were answered, 1 some could not be used (listed in <out>_bad.csv), 2 refused. An
    interrupted call goes on where it stopped when it is given again. For research use only.
    """
    _add(parser, "model", "the folder of an export or of a finished run", "MODEL")
    text = (
        "files, and folders that are walked to the end; or one CSV path,label,group, which is judged too, or of path "
        "alone; with the columns of patients that the lock was given, they join the images"
    )
    _add(parser, "pictures", text, "PICTURES", nargs="+")
    text = (
        "the table to write: path, the probability of each class, decision, alert, warnings, the model's SHA-256; - is "
        "standard output, and standard error for the files that could not be used"
    )
    _add(parser, "--out", text, "CSV", required=True)
    _add(parser, "--tta", "average over several views of each picture")
    text = (
        "what computes: auto, onnx or torch (default: auto); or ray, ray:onnx, ray:torch for the same on a Ray "
        "cluster (extra cluster)"
    )
    _add(parser, "--engine", text, "ENGINE", default="auto")
    _add(parser, "--address", f"with ray: {ADDRESS}", "HOST:PORT")
    _add(parser, "--heatmaps", "write a picture of what argues for each decision there", "FOLDER")
    text = (
        "threads that decode (default: one a core); with ray, processes that decode and compute (default: one for "
        "each CPU of the cluster)"
    )
    _add(parser, "--workers", text, "N", type=int)
    text = "of the model's weights, if you know it from elsewhere: another model is refused"
    _add(parser, "--sha256", text, "DIGEST")
    return lambda given: _predicted(parser, given)


def _predicted(parser: argparse.ArgumentParser, given: argparse.Namespace) -> int:
    from patholib.deploy import predictions
    from patholib.deploy.inference import Predictor
    from patholib.judge import trust

    where, _, engine = given.engine.partition(":")
    on = predictions.Ray(given.model, given.address) if where == "ray" else None
    if given.address and not on:
        parser.error("--address is for --engine ray")
    predictor = Predictor(given.model, (engine or "auto") if on else given.engine, sha256=given.sha256)
    name, notice = predictor.manifest["run"] or "model", predictor.manifest["notice"]
    print(f"{name} by {predictor.engine}. {notice}", file=sys.stderr)
    if given.heatmaps:
        print(trust.summary(predictor.checks), file=sys.stderr)
    tables = [place for place in given.pictures if place.lower().endswith(".csv")]
    if tables and len(given.pictures) > 1:
        parser.error("a CSV stands alone: it lists all its pictures")
    pictures, patients, why = predictions.listed(tables[0], predictor.patient) if tables else (given.pictures, None, "")
    if predictor.patient and patients is None:
        print(f"By the image alone: no table with {', '.join(predictor.patient)} was given.", file=sys.stderr)
    known = dict.fromkeys(predictor.patient, "") if patients else None
    for text in predictor.promises(predictor.decision(given.tta, known)):
        print(f"Promised: {text}.", file=sys.stderr)
    options = {"tta": given.tta, "heatmaps": given.heatmaps, "workers": given.workers, "on": on, "patients": patients}
    with tempfile.TemporaryDirectory(prefix="patholib-") if given.out == "-" else contextlib.nullcontext() as spare:
        out = Path(spare, "answers.csv") if spare else given.out
        written = predictions.write(predictor, pictures, out, **options)
        if spare:
            for path, stream in ((written.path, sys.stdout), (written.bad_path, sys.stderr)):
                print(path.read_text(encoding="utf-8") if path.exists() else "", end="", file=stream)
        else:
            print(written)
    if why:
        print(f"No numbers: {why}", file=sys.stderr)
    elif tables:
        _judged(given.model, tables[0])
    return FOUND if written.bad else OK


def _judged(model: str, table: str) -> None:
    """Prints the numbers of a labelled table, as `patholib evaluate` does, or why there are none."""
    from patholib.study import evaluate as external

    try:
        found = external(model, table, on_bad="skip")
        print(f"{found}\nWritten: {found.folder / 'external.html'}")
    except PathoError as error:  # the answers are there all the same
        print(f"No numbers: {error}", file=sys.stderr)


def evaluate(parser: argparse.ArgumentParser) -> Run:
    """Judge the locked model of a finished run on a second labelled data set: external validation.

    Exit code: 0 judged and written to RUN/external/NAME, 2 refused: images that the run has seen, labels that are no
    class of it. Nothing of the run is changed, and the same call again prints the same.
    """
    _add(parser, "folder", "the folder of a finished run, or of a cross-validation", "RUN")
    _add(parser, "data", "a CSV path,label,group, or the folder of a known data set", "DATA")
    text = "labels that are called otherwise: --map carcinoma=malignant artefact= (left out)"
    _add(parser, "--map", text, "THEIRS=OURS", nargs="+", default=[], type=_pair)
    text = "how the table calls path and label: --columns path=scan label=finding"
    _add(parser, "--columns", text, "OURS=THEIRS", nargs="+", default=[], type=_pair)
    _add(parser, "--group", 'the column of patients or lesions, or "image" (default: found by its name)', "COLUMN")
    _add(parser, "--only", 'the images that count: --only "site=face, sex=male"', "COLUMN=VALUE")
    _add(parser, "--name", "of the folder of results (default: as DATA is called)", "NAME")
    _add(
        parser,
        "--images",
        "where the images of the run are, to compare pictures (default: auto)",
        "WHERE",
        default="auto",
    )
    _add(parser, "--skip", "leave out images that cannot be used and rows without a file")
    _add(parser, "--allow-leakage", "go on although images are not new to the run; every page says so")

    def run(given: argparse.Namespace) -> int:
        from patholib.study import evaluate as external

        bad = "skip" if given.skip else "error"
        how = {"name": given.name, "classes": dict(given.map), "missing": bad, "on_bad": bad}
        how |= {"columns": ", ".join(map("=".join, given.columns)), "group": given.group, "only": given.only}
        found = external(given.folder, given.data, images=given.images, allow_leakage=given.allow_leakage, **how)
        print(found)
        print(f"Written: {found.folder / 'external.html'}")
        return OK

    return run


def export(parser: argparse.ArgumentParser) -> Run:
    """Put the model of a finished run into a folder of its own, and load it from there to see that it works.

    Exit code: 0 it works, 2 refused.
    """
    _add(parser, "folder", "the folder of a finished run", "RUN")
    _add(parser, "--out", "a folder that is empty or not there yet (default: RUN/export)", "FOLDER")
    text = "with model.onnx, twice as quick on a processor; kept only if it gives the same probabilities (extra onnx)"
    _add(parser, "--onnx", text)

    def run(given: argparse.Namespace) -> int:
        from patholib.deploy.export import copy

        for path in copy(Path(given.folder), Path(given.out or Path(given.folder, "export")), onnx=given.onnx):
            print(path)
        return OK

    return run


def serve(parser: argparse.ArgumentParser) -> Run:
    """Answer over HTTP what an exported model says of a picture; with a page to drop one on.

    Exit code: 0 stopped by SIGTERM or Ctrl-C, 2 refused, 78 the model cannot be used. For research use only.
    """
    from patholib.deploy.server import serving

    _add(parser, "model", "an exported model or a finished run folder", "MODEL")
    for name, default, metavar, text in (
        ("host", "127.0.0.1", "HOST", "address to listen on; any but that of this machine alone needs a token"),
        ("port", 8000, "PORT", "0 takes a free one"),
        ("max-mib", 10.0, "N", "largest upload"),
        ("max-megapixels", 24.0, "N", "largest picture"),
        ("units", 16, "N", "plain predictions admitted at once, waiting or computed; others are told to come again"),
        ("upload-seconds", 20.0, "S", "for an upload to arrive"),
        ("decode-seconds", 10.0, "S", "for a picture to be decoded"),
        ("drain", 1.0, "S", "between SIGTERM, when /readyz says no, and the port's closing"),
    ):
        _add(parser, f"--{name}", f"{text} (default: {default})", metavar, default=default, type=type(default))
    text = f"what callers have to send; rather set {serving.TOKEN}, which other users of this machine do not see"
    _add(parser, "--token", text, "TEXT")
    _add(parser, "--insecure", "listen to other machines without a token")
    text = "another site whose pages may ask (https://example.org); may be repeated"
    _add(parser, "--origin", text, "URL", action="append", default=[])
    text = "where a proxy has put the service, if it does not strip this from the path: /models/breast"
    _add(parser, "--root-path", text, "PATH", default="")
    _add(parser, "--engine", "what computes", "ENGINE", choices=("auto", "onnx", "torch"), default="auto")
    _add(parser, "--threads", "of the processor (default: one a core)", "N", type=int)
    _add(parser, "--sha256", "of the weights, as you know it from elsewhere", "DIGEST")
    return serving.run


def download(parser: argparse.ArgumentParser) -> Run:
    """Fetch a public data set, or ImageNet weights to carry to a machine without a network.

    Exit code: 0 all is there, 2 refused, or not finished. An interrupted call goes on where it stopped when it is given
    again, at the byte; what is there already is not fetched.
    """
    text = "breakhis, isic2019, weights (of both recipes), or those of one network: weights-resnet50"
    _add(parser, "what", text, "WHAT")
    text = (
        "where to put it (default: data/WHAT of the project, where it is found without being named; weights: "
        "data/weights; on Kaggle temp instead of data)"
    )
    _add(parser, "--to", text, "FOLDER")
    _add(parser, "--accept-licence", "accept the licence, which is printed first, without being asked")
    _add(parser, "--remove-archive", "delete an archive once it is unpacked")

    def agree(given: argparse.Namespace, terms: str) -> bool:
        print(terms, flush=True)
        if given.accept_licence or not sys.stdin.isatty():
            return given.accept_licence
        try:
            return input("Do you accept this? [y/N] ").strip().lower() in ("y", "yes")
        except EOFError:
            return False

    def run(given: argparse.Namespace) -> int:
        from patholib.model.downloading import fetch_by_name

        fetch_by_name(given.what, lambda terms: agree(given, terms), given.to, given.remove_archive)
        return OK

    return run


def sweep(parser: argparse.ArgumentParser) -> Run:
    """Run a notebook once for every combination of parameters, and compare the runs.

    Exit code: 0 all runs are finished, 1 some failed (listed in the end), 2 refused. An interrupted call goes on where
    it stopped when it is given again.
    """
    _add(parser, "notebook", "breakhis, isic2019 or the path of a notebook", "NOTEBOOK")
    several = {"action": "append", "default": []}
    text = "a parameter and its values; several: every combination"
    _add(parser, "--set", text, "NAME=VALUE,VALUE", dest="grid", type=_pair, **several)
    _add(
        parser,
        "-p",
        "a parameter of all runs, as papermill takes it",
        ("NAME", "VALUE"),
        dest="common",
        nargs=2,
        **several,
    )
    text = 'a list of runs, [{"seed": 0, "lr": 0.001}, ...]; with --set, each in every combination'
    _add(parser, "--runs", text, "JSON")
    text = "gets a folder for every run, sweep.json and compare/compare.ipynb"
    _add(parser, "--out", text, "FOLDER", required=True)
    text = "local: this machine (default); ray: a Ray cluster (extra cluster)"
    _add(parser, "--engine", text, "ENGINE", default="local", choices=("local", "ray"))
    _add(parser, "--at-once", "local: so many runs beside each other", "N", type=_count, default=1)
    text = "threads of each run, which ray also reserves (default: local, all cores shared out; ray, 1)"
    _add(parser, "--cpus-per-run", text, "C", type=_amount)
    _add(parser, "--gpus-per-run", "ray: GPUs of each run, or a part of one (default: 0)", "G", type=_amount, default=0)
    _add(parser, "--address", f"ray: {ADDRESS}", "HOST:PORT")
    return lambda given: _swept(parser, given)


def _swept(parser: argparse.ArgumentParser, given: argparse.Namespace) -> int:
    from patholib.lab import sweeps

    ray = given.engine == "ray"
    if not ray and (given.gpus_per_run or given.address):
        parser.error("--gpus-per-run and --address are for --engine ray; a local run has the whole machine")
    if ray and given.at_once != 1:
        parser.error("--at-once is for --engine local; ray starts what fits into the cluster")
    cpus = given.cpus_per_run
    on = (
        sweeps.Ray(1 if cpus is None else cpus, given.gpus_per_run, given.address)
        if ray
        else sweeps.Here(given.at_once, cpus)
    )
    for names in ([name for name, _ in given.grid], [name for name, _ in given.common]):
        if len(names) != len(set(names)):
            parser.error("every parameter is set once: --set seed=0,1,2")
    notebook, listed = sweeps.find(given.notebook), sweeps.read_list(given.runs) if given.runs else ({},)
    grid = {name: values.split(",") for name, values in given.grid}
    planned = sweeps.plan(notebook, grid, dict(given.common), listed, here=not ray)
    done = sweeps.sweep(notebook, planned, given.out, on)
    print(done)
    return FOUND if done.failed else OK


COMMANDS = (train, audit, evaluate, predict, export, serve, download, sweep)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; a refusal is one line on stderr and exit code 2."""
    _open_streams()
    parser = argparse.ArgumentParser(prog="patholib", description="Medical-image classifiers one can trust.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        first, _, more = (command.__doc__ or "").partition("\n")
        own = commands.add_parser(command.__name__, help=first, description=first, epilog=more.strip())
        own.set_defaults(run=command(own))
    given = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a console of another encoding shows an escape instead of stopping
            stream.reconfigure(errors="backslashreplace")
    try:
        return given.run(given)
    except PathoError as error:
        print(error, file=sys.stderr)
        return UNREADABLE
    except KeyboardInterrupt:
        print("Interrupted; nothing that was finished is lost", file=sys.stderr)
        return STOPPED


def _open_streams() -> None:
    """Lets nothing stand for a standard stream that was closed: else the next file that is opened would."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode, closefd=False))


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return value


def _pair(text: str) -> tuple[str, str]:
    ours, equals, theirs = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not OURS=THEIRS")
    return ours, theirs
