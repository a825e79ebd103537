"""The command `patholib`: what a terminal can ask of the library, one function per command.

A command is a function that takes its sub-parser, adds arguments and returns what is to be run with them; its name and
first line are the command's name and help. To add one, write it and list it in COMMANDS.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from patholib import __version__
from patholib.errors import PathoError

OK, FOUND, UNREADABLE = 0, 1, 2  # exit codes; argparse uses 2 for wrong arguments as well


def audit(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Say whether images of the test set stand in training too: patients, files, pictures.

    Exit code: 0 nothing found, 1 leaks, 2 the split cannot be read.
    """
    parser.add_argument("split", nargs="?", metavar="SPLIT", help="CSV with the columns path, label, split and ids; or "
                        "a folder that holds train, test and perhaps val, with a folder for every class in each")
    for name in ("train", "val", "test"):
        parser.add_argument(f"--{name}", metavar="FOLDER", help=f"the {name} images, instead of SPLIT")
    parser.add_argument("--root", metavar="FOLDER", help="where the paths in the CSV count from (default: its folder)")
    parser.add_argument("--columns", metavar="OURS=THEIRS", nargs="+", default=[], type=_pair,
                        help="how a foreign CSV calls path, label and split: --columns path=file_name split=fold")
    parser.add_argument("--ids", metavar="COLUMN", nargs="+", default=[], help="further columns that hold the id of "
                        "something that must not be in two splits (patient, case, lesion, slide, group are known)")
    parser.add_argument("--metadata", metavar="CSV", help="a table of ids by image name, as ISIC's official one")
    parser.add_argument("--no-pixels", action="store_true", help="compare ids only, open no image")
    parser.add_argument("--out", metavar="FOLDER", help="write audit.json and audit.html there")

    def run(given: argparse.Namespace) -> int:
        from patholib import leakage

        folders = {name: getattr(given, name) for name in ("train", "val", "test") if getattr(given, name)}
        if bool(given.split) == bool(folders):
            parser.error("name either SPLIT or the folders --train, --val, --test")
        found = leakage.audit(given.split or folders, given.root, dict(given.columns), given.ids, given.metadata,
                              pixels=not given.no_pixels)
        print(found)
        if given.out:
            print(f"Written: {found.write(given.out)}")
        return OK if found.ok else FOUND

    return run


COMMANDS = (audit,)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; a refusal is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(prog="patholib", description="Medical-image classifiers one can trust.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        first, _, more = command.__doc__.partition("\n")
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


def _pair(text: str) -> tuple[str, str]:
    ours, equals, theirs = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not OURS=THEIRS")
    return ours, theirs
