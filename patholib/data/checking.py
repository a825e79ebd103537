"""The data check: decode every file once, note what is wrong with it, and write the cache in the same pass."""

from __future__ import annotations

import dataclasses
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from patholib.base import cpu, files
from patholib.base.errors import PathoError, nearest, shown
from patholib.data import caching, decoding, findings, imagesets
from patholib.data.imagesets import ImageSet


@dataclass(frozen=True)
class Checked:
    """What one pass over the files found and made."""

    manifest: Any  # the manifest with its sound rows only
    images: ImageSet  # the same rows in the cache, not split yet
    report: dict  # JSON: every problem, warning, duplicate and conflict, counts, cache, seconds
    facts: pd.DataFrame  # one row per file: path, bytes, sha256, width, height, mode, kind ("" where refused)
    pictures: dict[str, bytes] = dataclasses.field(default_factory=dict, repr=False)  # small JPEGs for the report

    def write_report(self, folder: Path) -> Path:
        """Writes data_report.json, excluded.csv and data_report.html into `folder`; returns the last."""
        return findings.write(folder, self.report, self.pictures)


def check(
    manifest,
    size: int,
    fit: str = "crop",
    cache_dir: Path | None = None,
    on_bad: str = "error",
    workers: int | None = None,
    progress: bool = True,
    report_dir: Path | None = None,
) -> Checked:
    """Decodes every file of the manifest once: verified, hashed, resized into a memory-mapped cache for training.

    All problems are collected and written into `report_dir` (None: data-check/<source> in the folder of outputs).
    on_bad "error": any problem raises `bad_images`, with the report as `.report`. "skip": bad files leave the set and
    are listed in `report["excluded"]`; `too_many_bad` is raised if a class would lose more than 1 % of its files.
    Equal pictures under one label: the first path stays, the others are listed as `duplicate`. Under several labels
    they are a `label_conflict`, and none stays; these do not count towards the 1 %, as they are no sign of damage.
    `blank` pictures are a warning, and a problem where they are more than 1 % of a class. The cache depends on the
    paths, sizes, times and inodes of the files, on `size` and `fit`; where one exists nothing is decoded.
    Raises also: no_images, no_space, output_unwritable, loader_timeout, out_of_memory.
    """
    start = time.perf_counter()
    _check_settings(manifest, size, fit, on_bad)
    say, root = print if progress else (lambda text: None), Path(manifest.root)
    workers = cpu.threads(workers, say)
    facts = [_first_facts(root, path) for path in manifest.table["path"].tolist()]
    cache = caching.cache_file(facts, size, fit, cache_dir)
    known = caching.known_facts(cache, facts, size, workers, say)
    with warnings.catch_warnings():  # Pillow's warnings about damaged files, each of which has its line in the report
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        facts = known or caching.build(cache, root, facts, size, fit, workers, progress, say)
    pixels = np.load(cache, mmap_mode="r").view(np.ndarray)  # (M, S, S, 3); still mapped, and read-only

    judged, keep = _judge(manifest, facts)
    report = {"source": manifest.source, "folder": root.resolve().name, "demo": manifest.demo}
    report |= {"on_bad": on_bad, "size": size, "fit": fit} | judged
    report["cache"] = {"file": cache.name, "bytes": cache.stat().st_size, "reused": known is not None}
    report["seconds"] = round(time.perf_counter() - start, 3)
    usual = f"{manifest.source}-demo" if manifest.demo else manifest.source
    folder = Path(report_dir or files.outputs() / "data-check" / usual)
    pictures = imagesets.pictures(findings.worth_a_picture(report), facts, pixels, root)
    _finish(report, folder, pictures, say)
    return _checked(manifest, facts, keep, pixels, report, pictures)


def _finish(report: dict, folder: Path, pictures: dict[str, bytes], say: Callable) -> None:
    """Writes the report, says how it ended, and stops where it has to. Errors: bad_images, too_many_bad."""
    see = f"see {caching.short(folder / 'data_report.html')}"
    stop = _stop(report, report["on_bad"], see)
    report["stopped"] = stop and stop.code
    findings.write(folder, report, pictures)
    say(_closing_line(report, see))
    if stop is not None:
        stop.report = report
        raise stop


def _check_settings(manifest, size: int, fit: str, on_bad: str) -> None:
    if on_bad not in ("error", "skip"):
        raise PathoError(
            "bad_parameter", f"on_bad={on_bad!r}", "is neither 'error' nor 'skip'", nearest(on_bad, ("error", "skip"))
        )
    if len(manifest.table) == 0:
        raise PathoError("no_images", str(manifest.root), "has no image in its manifest", "Choose another data folder")
    decoding.to_square(Image.new("RGB", (1, 1)), size, fit)  # a wrong fit stops here, not at the first file


def _checked(
    manifest, facts: list[dict], keep: np.ndarray, pixels: np.ndarray, report: dict, pictures: dict[str, bytes]
) -> Checked:
    """The images that stay, over the whole cache."""
    table = manifest.table[keep].assign(row=np.flatnonzero(keep)).reset_index(drop=True)
    sound = dataclasses.replace(manifest, table=table.drop(columns="row"))
    columns = ("path", "bytes", "sha256", "width", "height", "mode", "kind")
    listed = pd.DataFrame({c: [fact.get(c, "") for fact in facts] for c in columns})
    copies = {path: entry["kept"] for entry in report["duplicates"] for path in entry["dropped"]}
    return Checked(sound, ImageSet(pixels, table, tuple(manifest.classes), copies), report, listed, pictures)


def _first_facts(root: Path, name: str) -> dict:
    """Path, size in bytes and `files.stamp`, or the problem that hides them; nothing is opened."""
    path = files.joined(root, name)
    try:
        found, link = files.look_at_file(path, name), os.path.islink(path)  # noqa: PTH114 - as above
        if link and not Path(name).is_absolute() and not Path(path).resolve().is_relative_to(root.resolve()):
            raise PathoError(
                "link_outside_root",
                name,
                "is a link that leaves the data folder",
                "Copy its target here, or list the target by its absolute path in a CSV of your own",
            )
    except PathoError as error:
        return {"path": name, "bytes": 0, "stamp": [], "warnings": [], "problem": caching.problem(error)}
    return {"path": name, "bytes": found.st_size, "stamp": files.stamp(found), "warnings": []}


def _judge(manifest, facts: list[dict]) -> tuple[dict, np.ndarray]:
    """The report on all files, and which of them stay, (M,) bool."""
    labels = manifest.table["label"].to_numpy()
    problems = {i: fact["problem"] for i, fact in enumerate(facts) if "problem" in fact}
    problems |= _too_blank(facts, labels) | _not_as_listed(manifest.table, facts)
    damaged = Counter(labels[i] for i in problems)
    equal = _equal_pictures(manifest, facts, problems)
    problems |= equal.problems

    def listed(i: int, code: str, reason: str) -> dict:
        return {"path": facts[i]["path"], "sha256": facts[i].get("sha256", ""), "code": code, "reason": reason}

    excluded = [listed(i, p["code"], p["reason"]) for i, p in problems.items()]
    excluded += [listed(i, "duplicate", reason) for i, reason in equal.dropped.items()]
    sound = [fact for i, fact in enumerate(facts) if i not in problems]
    odd = [{"path": f["path"], "code": code, "reason": reason} for f in sound for code, reason in f["warnings"]]
    keep = np.array([i not in problems and i not in equal.dropped for i in range(len(facts))])
    return {
        "counts": {
            "files": len(facts),
            "kept": int(keep.sum()),
            "problems": len(problems),
            "duplicates": len(equal.dropped),
            "by_code": dict(Counter(entry["code"] for entry in excluded).most_common()),
            "warnings": dict(Counter(entry["code"] for entry in odd).most_common()),
        },
        "per_class": {
            name: {
                "files": int((labels == name).sum()),
                "kept": int((labels[keep] == name).sum()),
                "damaged": damaged[name],
            }
            for name in manifest.classes
        },
        "problems": [listed(i, p["code"], p["reason"]) | {"remedy": p["remedy"]} for i, p in sorted(problems.items())],
        "excluded": sorted(excluded, key=lambda entry: entry["path"]),
        "warnings": odd,
        "duplicates": equal.duplicates,
        "label_conflicts": equal.conflicts,
        "groups_sharing_pixels": equal.shared,  # a leak if the groups stand in different splits
        "sizes": dict(Counter(f"{fact['width']}x{fact['height']}" for fact in sound).most_common()),
        "modes": dict(Counter(fact["mode"] for fact in sound).most_common()),
        "kinds": dict(Counter(fact["kind"] for fact in sound).most_common()),
        "found": manifest.found,  # what the reader counted, also of the files that are in no row
    }, keep


class _Equal(NamedTuple):
    """What was found of files with equal pixels."""

    duplicates: list[dict]  # under one label: the path that is kept, those that are dropped, columns that differ
    conflicts: list[dict]  # under several labels: paths and labels
    shared: list[dict]  # pictures of two groups: paths, column, its values
    dropped: dict[int, str]  # index of a file: the reason
    problems: dict[int, dict]  # index of a file in conflict: its problem


def _equal_pictures(manifest, facts: list[dict], problems: dict[int, dict]) -> _Equal:
    """Files with equal pixels, among those without a problem."""
    table, labels = manifest.table, manifest.table["label"].to_numpy()
    by_pixels: dict[str, list[int]] = {}
    for i, fact in enumerate(facts):
        if i not in problems:
            by_pixels.setdefault(fact["pixels"], []).append(i)
    equal = _Equal([], [], [], {}, {})
    for same in (rows for rows in by_pixels.values() if len(rows) > 1):
        paths = [facts[i]["path"] for i in same]
        if len(set(labels[same])) > 1:
            equal.conflicts.append({"paths": paths, "labels": list(labels[same])})
            for i in same:
                others = ", ".join(f"{shown(facts[j]['path'])} ({labels[j]})" for j in same if j != i)
                reason = f"is labelled {labels[i]}, but equals {others}"
                remedy = "Correct the label, or let on_bad='skip' exclude them all"
                equal.problems[i] = _problem("label_conflict", reason, remedy)
            continue
        values = {
            column: sorted(set(table[column].to_numpy()[same]))
            for column in dict.fromkeys((*manifest.levels, manifest.group_by, *manifest.subgroups))
        }
        differ = {column: several for column, several in values.items() if len(several) > 1}
        equal.duplicates.append({"kept": paths[0], "dropped": paths[1:], "differ": differ})
        equal.dropped.update({i: f"has the same pixels as {shown(paths[0])}" for i in same[1:]})
        equal.shared.extend(
            {"paths": paths, "column": column, "values": several}
            for column, several in differ.items()
            if column not in manifest.subgroups
        )
    return equal


def _problem(code: str, reason: str, remedy: str) -> dict:
    return {"code": code, "reason": reason, "remedy": remedy}


def _allowed(count: int) -> int:
    """How many of a class's `count` files may be bad: 1 %, but at least one and never all."""
    return max(0, min(max(1, count // 100), count - 1))


def _too_blank(facts: list[dict], labels: np.ndarray) -> dict[int, dict]:
    """Blank pictures as problems, by index, in every class that has more of them than is allowed."""
    blank = [i for i, fact in enumerate(facts) if "blank" in (code for code, _ in fact["warnings"])]
    sizes, found = Counter(labels), Counter(labels[i] for i in blank)
    return {
        i: _problem(
            "blank",
            f"shows one single colour, as {found[labels[i]]} of {sizes[labels[i]]} pictures of class {labels[i]} do",
            "Look at them; remove them if they are failed exports",
        )
        for i in blank
        if found[labels[i]] > _allowed(sizes[labels[i]])
    }


def _not_as_listed(table: pd.DataFrame, facts: list[dict]) -> dict[int, dict]:
    """Files whose digest is not the one in the manifest's column sha256, by index, where it has one."""
    listed = table["sha256"] if "sha256" in table else ()
    return {
        i: _problem(
            "changed_file",
            "is not the file whose SHA-256 the table lists",
            "Restore the file, or correct the column sha256 if the change was meant",
        )
        for i, digest in enumerate(listed)
        if digest and facts[i].get("sha256", digest.lower()) != digest.lower()
    }


def _closing_line(report: dict, see: str) -> str:
    counts, cache, seconds = report["counts"], report["cache"], report["seconds"] or 1e-3
    done = "Re-used" if cache["reused"] else "Wrote"
    text = f"{counts['kept']:,} of {counts['files']:,} images are sound and distinct"
    out = ", ".join(f"{number:,} {code}" for code, number in counts["by_code"].items())
    odd = sum(counts["warnings"].values())
    text += f"; left out: {out}" if out else ""
    text += f"; {odd:,} warnings" if odd else ""
    if report["groups_sharing_pixels"]:
        text += f"; {len(report['groups_sharing_pixels'])} pictures belong to two groups, see groups_sharing_pixels"
    text += f"; {see}" if out or odd else ""
    rate = "" if cache["reused"] else f", {counts['files'] / seconds:,.0f} images/s"
    return f"{text}. {done} {cache['file']} ({cache['bytes'] / 1e9:.2f} GB) in {seconds:.1f} s{rate}."


def _stop(report: dict, on_bad: str, see: str) -> PathoError | None:
    """The one error for all bad files, if they are to stop the check."""
    problems = report["problems"]
    if problems and on_bad == "error":
        counts = ", ".join(f"{n:,} {code}" for code, n in Counter(p["code"] for p in problems).most_common())
        first = "; ".join(f"{shown(p['path'])} {p['reason']}" for p in problems[:5])
        more = f"; and {len(problems) - 5:,} more" if len(problems) > 5 else ""
        return PathoError(
            "bad_images",
            f"{len(problems):,} of {report['counts']['files']:,} files",
            f"{counts} ({first}{more})",
            f"Correct them, or set on_bad='skip'; {see}",
        )
    lost = [(name, n) for name, n in report["per_class"].items() if n["damaged"] > _allowed(n["files"])]
    if not lost:
        return None
    name, n = lost[0]
    return PathoError(
        "too_many_bad",
        f"class {name}",
        f"would lose {n['damaged']:,} of {n['files']:,} files, more than 1 %",
        f"Repair the data: so many bad files are no accident; {see}",
    )
