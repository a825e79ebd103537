"""What the benchmarks share: cases timed in turn, declared marks, sections of RESULTS.md, and the rivals' environment.

A machine that is busy slows all cases alike only if they run side by side in time: so every round runs each case once,
and a ratio is taken within a round. Absolute figures say little about another machine; ratios say something.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also without an installation

import pandas as pd

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.train import origin

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
RIVALS = ROOT / "benchmarks" / "rivals.txt"
VENV = Path(os.environ.get("PATHOLIB_RIVALS") or ROOT / ".venv-bench").absolute()  # of the rivals
OWN = ("patholib", "pip", "setuptools", "uv")  # not held to the project's version: what installs, and the project
HEAD = """# Benchmarks

Every section is written by the command it names, from what that command measured: nothing here is typed. How to run
them is in [README.md](README.md). A mark is declared in the code before the run.
"""


# --- timing ---


def compare(
    cases: dict[str, Callable[[], float]], rounds: int = 5, warmup: int = 1, against: str | None = None
) -> pd.DataFrame:
    """Runs the cases in turn, round after round; one row per case with what it does per second.

    A case is called without arguments and returns how many items (images, steps) it has processed; `warmup` calls of
    each come first and are not timed. Columns: median, low and high of the items per second over the rounds; ratio,
    ratio_low and ratio_high of that to the case `against` (default: the first) in the same round. `attrs["rates"]`
    keeps the rate of every case in every round, for `ratio`.
    """
    for case in cases.values():
        for _ in range(warmup):
            case()
    rates: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            start = time.perf_counter()
            items = case()
            rates[name].append(items / (time.perf_counter() - start))
    table = pd.DataFrame(index=pd.Index(cases, name="case"), columns=["median", "low", "high"], dtype=float)
    table.attrs["rates"] = rates
    for name, found in rates.items():
        table.loc[name] = spread(found)
    ratios = [ratio(table, name, against or next(iter(cases))) for name in cases]
    return table.assign(
        **{column: [found[i] for found in ratios] for i, column in enumerate(("ratio", "ratio_low", "ratio_high"))}
    )


def ratio(table: pd.DataFrame, name: str, to: str) -> tuple[float, float, float]:
    """How many times as fast `name` is as `to`: median, low and high of the ratios within each round of `compare`."""
    rates = table.attrs["rates"]
    return spread([ours / theirs for ours, theirs in zip(rates[name], rates[to], strict=True)])


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and greatest."""
    return statistics.median(values), min(values), max(values)


def best(table: pd.DataFrame, names: Iterable[str]) -> str:
    """The quickest of these cases by its median."""
    return table.loc[list(names), "median"].idxmax()


# --- marks ---


@dataclass(frozen=True)
class Mark:
    """A figure that is demanded before anything is run."""

    what: str
    bound: float
    unit: str = "x"
    most: bool = False  # the figure must not exceed the bound, rather than reach it
    reason: str = ""  # why it was missed when it was, found by profiling

    def met(self, reached: float) -> bool:
        return reached <= self.bound if self.most else reached >= self.bound


def verdicts(judged: Iterable[tuple[Mark, float]]) -> list[str]:
    """The lines of a table that says of every mark what was demanded and reached, and below it why one was missed."""
    judged = list(judged)
    rows = [
        [
            mark.what,
            f"{'at most' if mark.most else 'at least'} {quantity(mark.bound, mark.unit)}",
            quantity(reached, mark.unit),
            "met" if mark.met(reached) else "**missed**",
        ]
        for mark, reached in judged
    ]
    missed = [
        f"- Missed: {mark.what}. {mark.reason or 'The reason is not known yet.'}"
        for mark, reached in judged
        if not mark.met(reached)
    ]
    return [*markdown(["mark", "demanded", "reached", ""], rows), *[""] * bool(missed), *missed]


def quantity(value: float, unit: str) -> str:
    return f"{value:,.0f} {unit}" if abs(value) >= 100 else f"{value:.3g} {unit}"


# --- sections ---


def section(
    name: str,
    title: str,
    command: str,
    text: str,
    judged: Iterable[tuple[Mark, float]] = (),
    rivals: Iterable[str] = (),
    results: Path = RESULTS,
    family: str = "speed",
) -> int:
    """Writes the section `FAMILY NAME` of the results, leaving the others alone; the exit code, 1 for a missed mark.

    It says the command, the machine, the code and library versions with those of `rivals` (distribution names), then
    `text`, then the verdicts on `judged`, pairs of a mark and the figure reached.
    """
    judged, code = list(judged), origin.code()
    versions = [f"{package} {metadata.version(package)}" for package in ("torch", "numpy", *rivals)]
    body = [
        f"## {title}",
        "",
        "```",
        *command.splitlines(),
        "```",
        "",
        machine_line(origin.machine()),
        f"- Code: version {code['version']}, commit {(code['commit'] or 'unknown')[:12]}; "
        f"{', '.join(versions)}; {datetime.now(UTC):%Y-%m-%d}",
        "",
        text.strip("\n"),
        *([""] if judged else []),
        *(verdicts(judged) if judged else []),
    ]
    old = results.read_text(encoding="utf-8") if results.exists() else HEAD
    files.write_text(results, with_section(old, f"{family} {name}", "\n".join(body)))
    print(f"The section {family} {name} of {results.name} is written")
    return 0 if all(mark.met(reached) for mark, reached in judged) else 1


def with_section(text: str, name: str, body: str) -> str:
    """The text with the section between its two marks replaced, or put at the end where there is none yet."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    before, found, rest = text.partition(begin)
    inside, closed, after = rest.partition(end)
    if bool(found) != bool(closed) or end in before or begin in inside + after or end in after:
        raise PathoError(
            "bad_marks",
            f"section {name}",
            "does not have one mark at its begin and one at its end",
            "Restore RESULTS.md",
        )
    if not found:
        before, after = text.rstrip("\n") + "\n\n", ""
    return before + begin + body.strip("\n") + "\n" + end + after


def machine_line(machine: dict) -> str:
    return (
        f"- Machine: {machine['processor']}, {machine['cores']} cores, {machine['torch_threads']} threads, "
        f"{machine['gpu'] or 'no GPU'}, {machine['system'].split('-')[0]}"
    )


def markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]


def rate_table(table: pd.DataFrame, unit: str = "images/s") -> list[str]:
    """What `compare` found, as the lines of a table."""
    reference = table.index[table["ratio_low"].eq(1) & table["ratio_high"].eq(1)][0]
    head = ["", unit, "over the rounds", f"times {reference}", "over the rounds"]
    return markdown(
        head,
        [
            [
                name,
                f"{row['median']:,.4g}",
                f"{row['low']:,.4g} to {row['high']:,.4g}",
                f"{row['ratio']:.3g}",
                f"{row['ratio_low']:.3g} to {row['ratio_high']:.3g}",
            ]
            for name, row in table.iterrows()
        ],
    )


def bars(path: Path, tables: dict[str, pd.DataFrame], title: str) -> Path:
    """A bar for the ratio of every case of every table of `compare`, with its range over the rounds; a small PNG."""
    import matplotlib
    from matplotlib.figure import Figure

    from patholib.report.figures import style

    with matplotlib.rc_context(style.STYLE):
        heights = [0.5 + 0.28 * len(table) for table in tables.values()]
        figure = Figure(figsize=(7.5, sum(heights) + 0.6), layout="constrained")
        grid = figure.subplots(len(tables), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
        for axes, (name, table) in zip(grid, tables.items(), strict=True):
            middle = table["ratio"].to_numpy()
            reach = abs(table[["ratio_low", "ratio_high"]].to_numpy().T - middle)
            best_one = table["ratio"].to_numpy().argmax()
            axes.barh(
                range(len(table)),
                middle,
                xerr=reach,
                height=0.62,
                ecolor=style.INK,
                color=[style.BLUE if i == best_one else style.FAINT for i in range(len(table))],
            )
            axes.set_yticks(range(len(table)), table.index)
            axes.invert_yaxis()
            axes.grid(axis="y", visible=False)
            axes.set_title(name)
            for i, value in enumerate(middle):
                axes.text(value + reach[1, i], i, f"  {value:.2g}", va="center", size=8.5)
            axes.margins(x=0.12)
        figure.suptitle(title, x=0.01, ha="left", weight="bold", size=11)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=100, pil_kwargs={"optimize": True})
    return path


# --- the rivals ---


def with_rivals() -> None:
    """Goes on in the environment that has the rivals: makes it where needed, runs this command there and exits."""
    if Path(sys.prefix).resolve() != VENV.resolve():
        sys.exit(subprocess.run([str(rivals_python()), *sys.argv], check=False).returncode)


def rivals_python() -> Path:
    """The interpreter of .venv-bench, which sees the packages of this one; made anew where either of them changed."""
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = VENV / "rivals.stamp"
    here = sysconfig.get_path("purelib")
    installed = sorted({f"{found.name}=={found.version}" for found in metadata.distributions() if found.name})
    wanted = hashlib.sha256("\n".join([RIVALS.read_text(), str(VENV), here, *installed]).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted and python.exists():
        return python
    if VENV.exists() and not stamp.exists():
        raise PathoError(
            "foreign_environment", str(VENV), "was not made by the benchmarks, which leave it alone", "Move it away"
        )
    print(f"Installing the rivals into {VENV}", flush=True)
    shutil.rmtree(VENV, ignore_errors=True)
    VENV.mkdir()
    stamp.write_text("installing")  # an interrupted installation starts over
    subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    own = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    Path(own, "project.pth").write_text(here + "\n", encoding="utf-8")  # behind its own packages: nothing twice
    with tempfile.TemporaryDirectory(prefix="patholib-") as folder:
        fixed = Path(folder, "constraints.txt")  # a rival that asks for another torch is refused, not obeyed
        fixed.write_text("\n".join(line for line in installed if line.split("==")[0].lower() not in OWN))
        what = ["-r", RIVALS, "-c", fixed]
        uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python, *what]
        pip = [python, "-m", "pip", "--require-virtualenv", "--disable-pip-version-check", "install", "--quiet", *what]
        # As the project's own environment is made: uv is quicker, but knows nothing of pip's configuration.
        done = any(subprocess.run(command, check=False).returncode == 0 for command in (uv, pip))
    if not done:
        raise PathoError(
            "no_rivals", str(VENV), "could not be filled, see above", "Correct benchmarks/rivals.txt, or the network"
        )
    stamp.write_text(wanted)
    return python
