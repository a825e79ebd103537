"""The command `patholib`: what a terminal can ask of the library, one function per command.

A command is a function that takes its sub-parser, adds arguments and returns what is to be run with them; its name and
first line are the command's name and help. To add one, write it and list it in COMMANDS.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Sequence

from patholib import __version__
from patholib.base.errors import PathoError

OK, FOUND, UNREADABLE = 0, 1, 2  # exit codes; argparse uses 2 for wrong arguments as well
STOPPED = 130  # as a shell says of a command that was interrupted


def train(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Train a network on a folder or table of images, judge it and write the report.

    Exit code: 0 the report is written, 2 refused, 130 or 143 stopped, saved. The same command resumes an interrupted
    training. Started by torchrun, all its processes train together.
    """
    from patholib import options

    parser.add_argument(
        "preset",
        nargs="?",
        metavar="RECIPE",
        default="breakhis",
        help="breakhis (default), isic2019, quickstart for a small network on demo images, or a file "
        'of parameters, RUN.json: {"recipe": "isic2019", "epochs": 35}',
    )
    parser.add_argument(
        "-p",
        dest="words",
        nargs=2,
        metavar=("NAME", "VALUE"),
        action="append",
        default=[],
        help="set a parameter, see below: -p data my.csv -p epochs 35",
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join([inspect.cleandoc(parser.epilog or ""), "", "parameters:", *options.lines()])

    def run(given: argparse.Namespace) -> int:
        from patholib.base.team import joined, myself
        from patholib.study import Study
        from patholib.train import devices, launching

        team = myself()
        try:
            named = given.preset.endswith(".json")
            chosen = options.Options.read(
                "breakhis" if named else given.preset, given.preset if named else None, dict(given.words)
            )
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


def audit(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Say whether images of the test set stand in training too: patients, files, pictures.

    Exit code: 0 nothing found, 1 leaks, 2 the split cannot be read.
    """
    parser.add_argument(
        "split",
        nargs="?",
        metavar="SPLIT",
        help="CSV with the columns path, label, split and ids; or "
        "a folder that holds train, test and perhaps val, with a folder for every class in each",
    )
    for name in ("train", "val", "test"):
        parser.add_argument(f"--{name}", metavar="FOLDER", help=f"the {name} images, instead of SPLIT")
    parser.add_argument("--root", metavar="FOLDER", help="where the paths in the CSV count from (default: its folder)")
    parser.add_argument(
        "--columns",
        metavar="OURS=THEIRS",
        nargs="+",
        default=[],
        type=_pair,
        help="how a foreign CSV calls path, label and split: --columns path=file_name split=fold",
    )
    parser.add_argument(
        "--ids",
        metavar="COLUMN",
        nargs="+",
        default=[],
        help="further columns that hold the id of "
        "something that must not be in two splits (patient, case, lesion, slide, group are known)",
    )
    parser.add_argument("--metadata", metavar="CSV", help="a table of ids by image name, as ISIC's official one")
    parser.add_argument("--no-pixels", action="store_true", help="compare ids only, open no image")
    parser.add_argument("--out", metavar="FOLDER", help="write audit.json and audit.html there")

    def run(given: argparse.Namespace) -> int:
        from patholib.data import leakage

        folders = {name: getattr(given, name) for name in ("train", "val", "test") if getattr(given, name)}
        if bool(given.split) == bool(folders):
            parser.error("name either SPLIT or the folders --train, --val, --test")
        found = leakage.audit(
            given.split or folders,
            given.root,
            dict(given.columns),
            given.ids,
            given.metadata,
            pixels=not given.no_pixels,
        )
        print(found)
        if given.out:
            print(f"Written: {found.write(given.out)}")
        return OK if found.ok else FOUND

    return run


def predict(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Let an exported model look at pictures, and write its answers as a table.

    Exit code: 0 all pictures were answered, 1 some could not be used (listed in <out>_bad.csv), 2 refused. An
    interrupted call goes on where it stopped when it is given again. For research use only.
    """
    parser.add_argument("model", metavar="MODEL", help="the folder of an export or of a finished run")
    parser.add_argument("pictures", metavar="PICTURES", nargs="+", help="files, and folders that are walked to the end")
    parser.add_argument(
        "--out",
        metavar="CSV",
        required=True,
        help="the table to write: path, the probability of each class, decision, alert, warnings, the model's SHA-256",
    )
    parser.add_argument("--tta", action="store_true", help="average over several views of each picture")
    parser.add_argument(
        "--engine",
        default="auto",
        metavar="ENGINE",
        help="what computes: auto, onnx or torch "
        "(default: auto); or ray, ray:onnx, ray:torch for the same on a Ray cluster (extra cluster)",
    )
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="with ray: the cluster to join, auto for the one of "
        "this machine (default: one is made of this machine, and stopped in the end)",
    )
    parser.add_argument("--heatmaps", metavar="FOLDER", help="write a picture of what argues for each decision there")
    parser.add_argument(
        "--workers",
        metavar="N",
        type=int,
        help="threads that decode (default: one a core); with ray, "
        "processes that decode and compute (default: one for each CPU of the cluster)",
    )
    parser.add_argument(
        "--sha256",
        metavar="DIGEST",
        help="of the model's weights, if you know it from elsewhere: another model is refused",
    )

    def run(given: argparse.Namespace) -> int:
        from patholib.deploy import predictions
        from patholib.deploy.inference import Predictor
        from patholib.judge import trust

        where, _, engine = given.engine.partition(":")
        on = predictions.Ray(given.model, given.address) if where == "ray" else None
        if given.address and not on:
            parser.error("--address is for --engine ray")
        predictor = Predictor(given.model, (engine or "auto") if on else given.engine, sha256=given.sha256)
        print(
            f"{predictor.manifest['run'] or 'model'} by {predictor.engine}. {predictor.manifest['notice']}",
            file=sys.stderr,
        )
        if given.heatmaps:
            print(trust.summary(predictor.checks), file=sys.stderr)
        written = predictions.write(
            predictor, given.pictures, given.out, tta=given.tta, heatmaps=given.heatmaps, workers=given.workers, on=on
        )
        print(written)
        return FOUND if written.bad else OK

    return run


def export(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Put the model of a finished run into a folder of its own, and load it from there to see that it works.

    Exit code: 0 it works, 2 refused.
    """
    parser.add_argument("folder", metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--out", metavar="FOLDER", help="a folder that is empty or not there yet (default: RUN/export)")
    parser.add_argument(
        "--onnx",
        action="store_true",
        help="with model.onnx, twice as quick on a processor; kept only "
        "if it gives the same probabilities (extra onnx)",
    )

    def run(given: argparse.Namespace) -> int:
        from pathlib import Path

        from patholib.deploy.export import copy

        for path in copy(Path(given.folder), Path(given.out or Path(given.folder, "export")), onnx=given.onnx):
            print(path)
        return OK

    return run


def serve(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Answer over HTTP what an exported model says of a picture; with a page to drop one on.

    Exit code: 0 stopped by SIGTERM or Ctrl-C, 2 refused, 78 the model cannot be used. For research use only.
    """
    from patholib.deploy.server import serving

    serving.arguments(parser)
    return serving.run


def download(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Fetch a public data set, or ImageNet weights to carry to a machine without a network.

    Exit code: 0 all is there, 2 refused, or not finished. An interrupted call goes on where it stopped when it is given
    again, at the byte; what is there already is not fetched.
    """
    parser.add_argument(
        "what",
        metavar="WHAT",
        help="breakhis, isic2019, weights (of both recipes), or those of one "
        "network: weights-resnet50, weights-efficientnet_b0",
    )
    parser.add_argument(
        "--to",
        metavar="FOLDER",
        help="where to put it (default: data/WHAT of the project, where "
        "it is found without being named; weights: data/weights; on Kaggle temp instead of data)",
    )
    parser.add_argument(
        "--from",
        metavar="ORIGIN",
        dest="origin",
        default="official",
        choices=("official", "kaggle"),
        help="official, or kaggle: a copy there, with the package kagglehub (default: official)",
    )
    parser.add_argument(
        "--accept-licence", action="store_true", help="accept the licence, which is printed first, without being asked"
    )
    parser.add_argument("--remove-archive", action="store_true", help="delete an archive once it is unpacked")

    def agree(given: argparse.Namespace, terms: str) -> bool:
        print(terms, flush=True)
        if given.accept_licence or not sys.stdin.isatty():
            return given.accept_licence
        try:
            return input("Do you accept this? [y/N] ").strip().lower() in ("y", "yes")
        except EOFError:
            return False

    def run(given: argparse.Namespace) -> int:
        from patholib.model import downloading

        downloading.fetch_by_name(
            given.what, lambda terms: agree(given, terms), given.to, given.origin, given.remove_archive
        )
        return OK

    return run


def sweep(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Run a notebook once for every combination of parameters, and compare the runs.

    Exit code: 0 all runs are finished, 1 some failed (listed in the end), 2 refused. An interrupted call goes on where
    it stopped when it is given again.
    """
    _sweep_arguments(parser)

    def run(given: argparse.Namespace) -> int:
        from patholib.lab import sweeps

        ray = given.engine == "ray"
        if not ray and (given.gpus_per_run or given.address):
            parser.error("--gpus-per-run and --address are for --engine ray; a local run has the whole machine")
        if ray and given.at_once != 1:
            parser.error("--at-once is for --engine local; ray starts what fits into the cluster")
        on = (
            sweeps.Ray(1 if given.cpus_per_run is None else given.cpus_per_run, given.gpus_per_run, given.address)
            if ray
            else sweeps.Here(given.at_once, given.cpus_per_run)
        )
        for names in ([name for name, _ in given.grid], [name for name, _ in given.common]):
            if len(names) != len(set(names)):
                parser.error("every parameter is set once: --set seed=0,1,2")
        notebook = sweeps.find(given.notebook)
        planned = sweeps.plan(
            notebook,
            {name: values.split(",") for name, values in given.grid},
            dict(given.common),
            sweeps.read_list(given.runs) if given.runs else ({},),
            here=not ray,
        )
        done = sweeps.sweep(notebook, planned, given.out, on)
        print(done)
        return FOUND if done.failed else OK

    return run


def _sweep_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("notebook", metavar="NOTEBOOK", help="breakhis, isic2019 or the path of a notebook")
    parser.add_argument(
        "--set",
        dest="grid",
        metavar="NAME=VALUE,VALUE",
        action="append",
        default=[],
        type=_pair,
        help="a parameter and its values; several: every combination",
    )
    parser.add_argument(
        "-p",
        dest="common",
        metavar=("NAME", "VALUE"),
        nargs=2,
        action="append",
        default=[],
        help="a parameter of all runs, as papermill takes it",
    )
    parser.add_argument(
        "--runs",
        metavar="JSON",
        help='a list of runs, [{"seed": 0, "lr": 0.001}, ...]; with --set, each in every combination',
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        required=True,
        help="gets a folder for every run, sweep.json and compare/compare.ipynb",
    )
    parser.add_argument(
        "--engine",
        default="local",
        choices=("local", "ray"),
        help="local: this machine (default); ray: a Ray cluster (extra cluster)",
    )
    parser.add_argument("--at-once", metavar="N", type=_count, default=1, help="local: so many runs beside each other")
    parser.add_argument(
        "--cpus-per-run",
        metavar="C",
        type=_amount,
        help="threads of each run, which ray also reserves (default: local, all cores shared out; ray, 1)",
    )
    parser.add_argument(
        "--gpus-per-run",
        metavar="G",
        type=_amount,
        default=0,
        help="ray: GPUs of each run, or a part of one (default: 0)",
    )
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="ray: the cluster to join, auto for the one of this "
        "machine (default: one is made of this machine, and stopped in the end)",
    )


COMMANDS = (train, audit, predict, export, serve, download, sweep)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; a refusal is one line on stderr and exit code 2."""
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
