"""What the data check found, as files: data_report.json, excluded.csv, and data_report.html for a person to look at."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from patholib.base import files, pages

PICTURES = 50  # of one kind of finding; the others of that kind are listed without
LISTED = 1000  # of one kind of finding; the others are in data_report.json alone
COLUMNS = ("path", "sha256", "code", "reason")  # of excluded.csv


class Finding(NamedTuple):
    """One row of the page: a file, or several files with the same pixels."""

    path: str  # whose picture stands beside it
    names: tuple[str, ...]
    reason: str


class Kind(NamedTuple):
    """All findings of one code that call for the same."""

    title: str
    code: str
    remedy: str
    findings: list[Finding]


def write(folder: Path, report: Mapping, pictures: Mapping[str, bytes]) -> Path:
    """Writes the three files into `folder` and returns the page.

    report: as `checking.check` makes it. pictures: small JPEGs by path; a file without one is listed all the same.
    """
    folder = Path(folder)
    files.write_json(folder / "data_report.json", report)
    files.write_table(folder / "excluded.csv", pd.DataFrame(report["excluded"], columns=list(COLUMNS)))
    return files.write_text(folder / "data_report.html", page(report, pictures))


def worth_a_picture(report: Mapping) -> list[str]:
    """The paths whose pictures the page would show, each once."""
    return list(dict.fromkeys(finding.path for kind in kinds(report) for finding in kind.findings[:PICTURES]))


def kinds(report: Mapping) -> list[Kind]:
    """The findings in the order of the page: what is left out first, mere warnings last."""
    problems = [problem for problem in report["problems"] if problem["code"] != "label_conflict"]
    conflicts = [problem for problem in report["problems"] if problem["code"] == "label_conflict"]
    alike = [
        Finding(
            entry["paths"][0],
            tuple(f"{path} ({label})" for path, label in zip(entry["paths"], entry["labels"], strict=True)),
            "have the same pixels but different labels",
        )
        for entry in report["label_conflicts"]
    ]
    twice = [
        Finding(
            entry["kept"],
            (entry["kept"], *entry["dropped"]),
            "have the same pixels; the first is used" + _differences(entry["differ"]),
        )
        for entry in report["duplicates"]
    ]
    found = _grouped("Cannot be used", problems)
    found += [Kind("One picture, two labels", "label_conflict", conflicts[0]["remedy"], alike)] if alike else []
    found += [Kind("One picture, several files", "duplicate", "", twice)] if twice else []
    return found + _grouped("Used, with a warning", report["warnings"])


def _grouped(title: str, entries: Sequence[Mapping]) -> list[Kind]:
    """One kind for every code and remedy; the most frequent codes first."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for entry in entries:
        key = entry["code"], entry.get("remedy", "")
        groups.setdefault(key, []).append(Finding(entry["path"], (entry["path"],), entry["reason"]))
    totals = Counter(entry["code"] for entry in entries)
    order = sorted(groups, key=lambda key: (-totals[key[0]], key[0], -len(groups[key])))
    return [Kind(title, *key, groups[key]) for key in order]


def _differences(columns: Mapping[str, list[str]]) -> str:
    return "".join(f"; they differ in {name}: {' and '.join(values)}" for name, values in columns.items())


# ---------------------------------------------------------------------------------------------------------- the page


def page(report: Mapping, pictures: Mapping[str, bytes]) -> str:
    """The whole page, HTML; names are escaped, pictures inside."""
    counts, folder = report["counts"], f" ({report['folder']})" if report["folder"] else ""
    per_class = [
        (
            name,
            *(
                f"{n:,}"
                for n in (row["files"], row["kept"], row["damaged"], row["files"] - row["kept"] - row["damaged"])
            ),
        )
        for name, row in report["per_class"].items()
    ]
    return pages.render(
        "data_report.html",
        title=f"Data check: {report['source']}{folder}",
        report=report,
        counts=counts,
        left=counts["files"] - counts["kept"],
        warnings=sum(counts["warnings"].values()),
        per_class=per_class,
        sections={title: list(of) for title, of in itertools.groupby(kinds(report), lambda kind: kind.title)},
        picture=lambda path: pages.data_url(pictures[path], "jpeg") if path in pictures else "",
        shared=_shared(report),
        notes=_notes(report["found"]),
        facts=_facts(report),
        pictures=PICTURES,
        listed=LISTED,
    )


def _shared(report: Mapping) -> list[tuple[str, str]]:
    """Pictures that two patients or lesions have in common: perhaps they are one, and a split would leak."""
    return [
        (", ".join(entry["paths"]), f"{entry['column']}: {' and '.join(entry['values'])}")
        for entry in report["groups_sharing_pixels"][:LISTED]
    ]


def _notes(found: Mapping) -> list[tuple[str, str, str]]:
    """What the reader of the data folder listed apart, in the form of `manifest.first`."""
    return [
        (name.replace("_", " "), f"{entry['count']:,}", ", ".join(entry["first"]))
        for name, entry in found.items()
        if isinstance(entry, Mapping) and entry.get("count")
    ]


def _facts(report: Mapping) -> list[tuple[str, str]]:
    rows = []
    for name, key in (("file types", "kinds"), ("colour modes", "modes"), ("sizes", "sizes")):
        more = f" and {len(report[key]) - 8:,} more" if len(report[key]) > 8 else ""
        rows.append((name, ", ".join(f"{value} ({n:,})" for value, n in list(report[key].items())[:8]) + more))
    return rows
