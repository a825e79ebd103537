"""What the data check found, as files: data_report.json, excluded.csv, and data_report.html for a person to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from patholib.base import files, pages

PICTURES = 50  # of one kind of finding; the others of that kind are listed without
LISTED = 1000  # of one kind of finding; the others are in data_report.json alone
DEMO = "<strong>DEMO IMAGES: NOT A RESULT.</strong> These pictures were generated."
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

    report: as `images.check` makes it. pictures: small JPEGs by path; a file without one is listed all the same.
    """
    folder = Path(folder)
    files.write_json(folder / "data_report.json", report)
    files.write_table(folder / "excluded.csv", pd.DataFrame(report["excluded"], columns=list(COLUMNS)))
    return files.write_text(folder / "data_report.html", page(report, pictures))


def worth_a_picture(report: Mapping) -> list[str]:
    """The paths whose pictures the page would show, each once."""
    return list(dict.fromkeys(finding.path for kind in kinds(report) for finding in kind.findings[:PICTURES]))


def kinds(report: Mapping) -> list[Kind]:
    """The findings in the order of the page: what is left out first, what was only remarked last."""
    problems = [problem for problem in report["problems"] if problem["code"] != "label_conflict"]
    conflicts = [problem for problem in report["problems"] if problem["code"] == "label_conflict"]
    alike = [Finding(entry["paths"][0], tuple(f"{path} ({label})" for path, label in
                                              zip(entry["paths"], entry["labels"], strict=True)),
                     "have the same pixels and different labels") for entry in report["label_conflicts"]]
    twice = [Finding(entry["kept"], (entry["kept"], *entry["dropped"]),
                     "have the same pixels; the first is used" + _differences(entry["differ"]))
             for entry in report["duplicates"]]
    found = _grouped("Cannot be used", problems)
    found += [Kind("One picture, two labels", "label_conflict", conflicts[0]["remedy"], alike)] if alike else []
    found += [Kind("One picture, several files", "duplicate", "", twice)] if twice else []
    return found + _grouped("Used, with a remark", report["warnings"])


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
    name = f"Data check: {report['source']}" + f" ({report['folder']})" * bool(report["folder"])
    parts = [f"<blockquote><p>{DEMO}</p></blockquote>"] * report["demo"]
    parts += [f"<h1>{pages.text(name)}</h1>", _verdict(report), _classes(report)]
    found = kinds(report)
    for title in dict.fromkeys(kind.title for kind in found):
        links = [f'<a href="#kind-{i}">{pages.text(kind.code)}</a>\u00a0{len(kind.findings):,}'
                 for i, kind in enumerate(found) if kind.title == title]
        parts.append(f"<p>{pages.text(title)}: {', '.join(links)}</p>")
    for i, kind in enumerate(found):
        parts += [f"<h2>{pages.text(kind.title)}</h2>"] * (i == 0 or kind.title != found[i - 1].title)
        parts += [f'<h3 id="kind-{i}"><code>{pages.text(kind.code)}</code> {len(kind.findings):,}</h3>',
                  *_section(kind, pictures)]
    parts += _shared(report) + _not_read(report["found"]) + [_facts(report)]
    return pages.frame(name, "\n".join(parts))


def _verdict(report: Mapping) -> str:
    counts = report["counts"]
    text = f"<strong>{counts['kept']:,} of {counts['files']:,} images are sound and distinct.</strong> "
    left = counts["files"] - counts["kept"]
    text += {"bad_images": "The check has stopped: correct the files below, or leave them out with on_bad='skip'.",
             "too_many_bad": "The check has stopped: a class would lose more than 1 % of its files."
             }.get(report["stopped"], f"{left:,} are left out." if left else "None is left out.")
    warnings = sum(counts["warnings"].values())
    return f"<p>{text}{f' {warnings:,} remarks on images that are used.' if warnings else ''}</p>"


def _classes(report: Mapping) -> str:
    rows = [(pages.text(name), *(f"{n:,}" for n in (row["files"], row["kept"], row["damaged"],
                                               row["files"] - row["kept"] - row["damaged"])))
            for name, row in report["per_class"].items()]
    return pages.table(("class", "files", "sound", "unusable", "copies"), rows, narrow=True)


def _section(kind: Kind, pictures: Mapping[str, bytes]) -> list[str]:
    total = len(kind.findings)
    words = [f"What to do: {pages.text(kind.remedy)}."] * bool(kind.remedy)
    words += [f"Pictures are shown of the first {PICTURES}."] * (total > PICTURES)
    words += [f"{total - LISTED:,} more are listed in <code>data_report.json</code> alone."] * (total > LISTED)
    items = []
    for i, finding in enumerate(kind.findings[:LISTED]):
        content = pictures.get(finding.path) if i < PICTURES else None
        seen = f'<img src="{pages.data_url(content, "jpeg")}" alt="">' if content else "no picture"
        names = "".join(f"<strong>{pages.text(name)}</strong>" for name in finding.names)
        items.append(f"<li><span>{seen}</span><div>{names}{pages.text(finding.reason)}</div></li>\n")
    return [f"<p>{' '.join(words)}</p>"] * bool(words) + [f'<ul class="pictures">{"".join(items)}</ul>']


def _shared(report: Mapping) -> list[str]:
    """Pictures that two patients or lesions have in common: perhaps they are one, and a split would leak."""
    rows = [(", ".join(map(pages.text, entry["paths"])),
             f"{pages.text(entry['column'])}: {pages.text(' and '.join(entry['values']))}")
            for entry in report["groups_sharing_pixels"][:LISTED]]
    if not rows:
        return []
    return ["<h2>One picture in two groups</h2>", "<p>If the groups are one patient or lesion in truth, a split would "
            "put it on both sides: give them one id.</p>", pages.table(("files", "groups"), rows, narrow=True)]


def _not_read(found: Mapping) -> list[str]:
    """What the reader of the data folder listed apart, in the form of `manifest.first`."""
    rows = [(pages.text(name.replace("_", " ")), f"{entry['count']:,}", ", ".join(map(pages.text, entry["first"])))
            for name, entry in found.items() if isinstance(entry, Mapping) and entry.get("count")]
    table = pages.table(("", "count", "the first"), rows, narrow=True)
    return ["<h2>Noted while reading the folder</h2>", table] if rows else []


def _facts(report: Mapping) -> str:
    rows = []
    for name in ("kinds", "modes", "sizes"):
        counts = report[name]
        some = ", ".join(f"{pages.text(value)} ({n:,})" for value, n in list(counts.items())[:8])
        rows.append((name, some + f" and {len(counts) - 8:,} more" * (len(counts) > 8)))
    return (f"<h2>The sound images</h2>{pages.table((), rows, narrow=True)}<p>Usable files are shown as the network "
            f"gets them (fit={pages.text(report['fit'])}), damaged ones as far as they can be read.</p>")
