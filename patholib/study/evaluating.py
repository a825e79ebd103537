"""External validation of a study: reads, maps, checks and audits a second labelled set, and has it judged."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from patholib.base import files
from patholib.base.errors import PathoError, nearest
from patholib.data import checking, csvfiles, overlap, readers
from patholib.data.checking import Checked
from patholib.data.imagesets import ImageSet
from patholib.data.manifest import DEMO_NOTE, Manifest
from patholib.deploy import exportformat, loading
from patholib.judge import decisions, external, metric_table, novelty, validation
from patholib.judge.external import External
from patholib.report import cards, externals, report
from patholib.report.figures import performance, probabilities, several, style
from patholib.train import devices, origin

if TYPE_CHECKING:  # it imports this module
    from patholib.study import Study

OF_FOLDS = (
    "Its own test images are those of the folds, each predicted by one network alone: calibration and threshold were "
    "chosen on them, and the mean of the networks was never judged there"
)


def run_at(folder: Path | str) -> Path:
    """The run folder at a place: itself, or the first fold of a cross-validation. Errors: not_judged for an export."""
    folder, folds = Path(folder), validation.read(folder)
    if not folds.facts and (folder / exportformat.MANIFEST).exists() and not (folder / "run.json").exists():
        reason = "is an export, which has no test images to compare with"
        raise PathoError("not_judged", str(folder), reason, "Name the folder of the run or cross-validation")
    return folds.first if folds.facts else folder


def evaluate(
    study: Study,
    data: str | Path | Manifest,
    name: str | None,
    classes: Mapping[str, str | None] | None,
    allow_leakage: bool,
    missing: str,
    on_bad: str,
    chosen: Mapping[str, str],
) -> External:
    """See `Study.evaluate`; chosen: columns, label, group and only, where given."""
    home = study.whole or study.dir
    folds = validation.read(home)
    decision = folds.facts["decision"] if folds.facts else decisions.locked(study.dir)
    if not (study.dir / "metrics.json").exists():
        raise PathoError("not_judged", study.dir.name, "has not judged its own test images", "Call judge first")
    source = data.chosen(**chosen) if isinstance(data, Manifest) else readers.read(data, missing, **chosen)
    name = _named(name, data, source)
    mapped, said = relabelled(
        source, study.recipe.classes, study.recipe.positive, classes or {}, list(decision.get("patient") or ())
    )
    checked = _checked(mapped, study, on_bad)
    facts: dict[str, Any] = {"name": name, "data": _described(checked), "classes": said}
    facts |= {"chosen": dict(chosen)} if chosen else {}
    facts["decision_sha256"] = files.digest(decision)
    folder = home / external.FOLDER / name
    before = _as_before(folder, facts)
    images = "" if before else _own_images(study)
    facts["leaks"] = before.facts["leaks"] if before else _overlap(study, checked, images).to_json()
    if not allow_leakage:
        overlap.refuse(name, facts["leaks"])
    if before:
        return before
    facts["left_out"] = {"by_map": said["left_out"], "by_check": checked.report["counts"]["by_code"]}
    facts |= {"demo": study.demo or source.demo, "versions": origin.versions(), "code": origin.code()}
    facts["note"] = _note(facts, study.note)
    facts |= {"internal": OF_FOLDS} if folds.facts else {}
    model = loading.classifier(home)[0] if folds.facts else study.model
    model = model.to(devices.choose_device(study.options.device)) if study.opened else model
    held = replace(checked.images, table=checked.images.table.assign(group=lambda table: table[mapped.group_by]))
    judged = external.judge(model, held, home, decision, _familiar(home, decision, images), mapped.subgroups)
    _write(folder, checked, *judged, facts)
    if folds.facts:
        cards.of_folds(folds)
    elif (study.dir / "report.html").exists():
        report.write(study.dir)
    return external.read(folder)


def _write(folder: Path, checked: Checked, found: dict, tables: Mapping[str, pd.DataFrame], facts: dict) -> None:
    """Writes numbers, figures and pages, so that the folder is there whole or not at all."""
    folder.parent.mkdir(exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part"))
    try:
        part.chmod(0o755)  # mkdtemp makes it private
        checked.write_report(part)
        external.write(part, found, tables, facts)
        written = external.read(part)
        _draw(written)
        externals.write(written)
        files.into_place(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def relabelled(
    source: Manifest,
    ours: tuple[str, ...],
    positive: str | None,
    given: Mapping[str, str | None],
    further: Sequence[str] = (),
) -> tuple[Manifest, dict]:
    """A manifest with the classes of the run, and how its labels became them.

    given: {theirs: ours}, None or "" leaves the images out; other labels are taken by their name. further: columns to
    keep where they are there.
    Errors: unknown_class, bad_parameter, single_class.
    """
    counts = {str(name): int(n) for name, n in source.table["label"].value_counts(sort=False).sort_index().items()}
    csvfiles.stop_on(
        [
            ("bad_parameter", f"map {name}", f"is no label of this set; {nearest(name, counts)}")
            for name in given - counts.keys()
        ]
        + [("unknown_class", f"map {a}={b}", nearest(b, ours)) for a, b in given.items() if b and b not in ours],
        f"Labels of the set are {', '.join(counts)}; classes of the run are {', '.join(ours)}",
    )
    becomes = {label: given.get(label, label) or "" for label in counts}
    unknown = {label: n for label, n in counts.items() if becomes[label] and becomes[label] not in ours}
    if unknown:
        listed = ", ".join(f"{label} ({n:,} images)" for label, n in unknown.items())
        raise PathoError(
            "unknown_class",
            listed,
            f"{'is no class' if len(unknown) == 1 else 'are no classes'} of the run, which has {', '.join(ours)}",
            "Map each to a class of the run, classes={'theirs': 'ours'} or --map theirs=ours; None (--map theirs=) "
            "leaves its images out, and the report says so",
        )
    table = source.table.assign(label=source.table["label"].map(becomes))
    table = table[table["label"] != ""]
    if table["label"].nunique() < 2:
        raise PathoError(
            "single_class",
            ", ".join(sorted(set(table["label"]))) or "no class",
            "is all that is left, and without a second class nothing can be told apart",
            "Add images of another class, or correct the map",
        )
    kept = [*dict.fromkeys(("path", "label", source.group_by, *source.levels, *source.subgroups))]
    kept += [name for name in further if name in table and name not in kept]
    kept += ["sha256"] if "sha256" in table and "sha256" not in kept else []
    kept = [name for name in kept if not name.startswith("p_")]
    subgroups = tuple(name for name in source.subgroups if name in kept)
    said = {
        "map": becomes,
        "by_name": all(a == b for a, b in becomes.items()),
        "left_out": {label: counts[label] for label, b in becomes.items() if not b},
        "lacking": [one for one in ours if one not in set(table["label"])],
    }
    return replace(source, table=table[kept], classes=ours, positive=positive, subgroups=subgroups), said


def _named(name: str | None, data: str | Path | Manifest, source: Manifest) -> str:
    """The name of the folder of results."""
    if name is None:
        usual = source.source if isinstance(data, Manifest) else Path(data).stem
        return re.sub(r"[^\w.-]+", "-", usual).strip(".-") or "external"
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise PathoError("bad_parameter", f"name={name!r}", "is no name of a folder", "Use letters, digits, - and _")
    return name


def _checked(mapped: Manifest, study: Study, on_bad: str) -> Checked:
    """The second set in the cache, at the size of the run; the report goes into the run folder later."""
    with tempfile.TemporaryDirectory(prefix="patholib-") as spare:
        size, fit, progress = study.recipe.cache_size, study.recipe.fit, len(mapped.table) > 2000
        return checking.check(mapped, size, fit, on_bad=on_bad, progress=progress, report_dir=Path(spare))


def _described(checked: Checked) -> dict:
    """What identifies the images of the second set, and how many there are."""
    source = checked.manifest
    table, sha256 = source.table, dict(zip(checked.facts["path"], checked.facts["sha256"], strict=True))
    rows = [*zip(table["path"], table["label"], table[source.group_by], table["path"].map(sha256), strict=True)]
    return {
        "digest": files.digest(rows),
        "source": source.source,
        "demo": source.demo,
        "folder": origin.root_name(source.root),
        "images": len(table),
        "groups": int(table[source.group_by].nunique()),
        "group_by": source.group_by,
        "without_group": int((table[source.group_by] == table["path"]).sum()),
        "per_class": {
            name: {"images": len(part), "groups": int(part[source.group_by].nunique())}
            for name in source.classes
            for part in [table[table["label"] == name]]
        },
    }


def _as_before(folder: Path, facts: dict) -> External | None:
    """What was found of the same images before; None where the name is free. Errors: output_exists."""
    if not (folder / external.FACTS).exists():
        return None
    found = external.read(folder)
    differing = [key for key, value in facts.items() if found.facts.get(key) != value]
    if differing:
        raise PathoError(
            "output_exists",
            f"{external.FOLDER}/{facts['name']}",
            f"holds the validation on another set: {', '.join(differing)} differ",
            "Give this one another name (name=..., --name)",
        )
    return found


def _own_images(study: Study) -> ImageSet | str:
    """The cached images of the run under its split, or why they are not at hand."""
    try:
        return replace(study.images, table=_as_seen(study, study.images.table))
    except PathoError as error:
        return f"the images of the run were not found ({error.code}; give their place with images=..., --images)"


def _as_seen(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """The table with the part each image was in; of the folds as one model, every image has trained some network."""
    return table if study.whole is None else table.assign(split="train")


def _overlap(study: Study, checked: Checked, images: ImageSet | str) -> overlap.Overlap:
    table = csvfiles.read_csv(study.dir / "images.csv", ("path", "sha256"))
    sha256 = dict(zip(table["path"], table["sha256"], strict=True))
    return overlap.overlap(_as_seen(study, study.split), sha256, checked, images, progress=len(table) > 5000)


def _familiar(home: Path, decision: Mapping, images: ImageSet | str) -> novelty.Familiar | str:
    """What the training images look like: of the decision or the export, else measured again."""
    path, known = home / exportformat.MANIFEST, decision.get(decisions.NOVELTY)
    known = known or (files.read_json(path).get("novelty") if path.exists() else None)
    if known:
        return novelty.from_json(known)
    return "the run has no export, and its images are not at hand" if isinstance(images, str) else novelty.learn(images)


def _note(facts: dict, of_run: str) -> str:
    """The warning above every figure."""
    leaks = f"External images leak: {facts['leaks']['images']:,} are not new" if facts["leaks"]["images"] else ""
    demo = DEMO_NOTE if facts["demo"] and DEMO_NOTE not in of_run else ""
    return " - ".join(filter(None, (demo, of_run, leaks)))


def _draw(found: External) -> None:
    """Writes the figures of a second set."""
    judged, recipe, note = found.judged, found.judged.recipe, found.facts["note"]
    threshold = judged.threshold if len(recipe.classes) == 2 and recipe.positive is not None else None
    gaps = found.minus["metrics"]
    gap = pd.DataFrame(
        [
            {"number": metric_table.words(name), "run": "internal minus external", **gaps[name]}
            for name in metric_table.ordered(gaps, len(recipe.classes) == 2)
            if gaps[name]["low"] is not None
        ]
    )
    title = f"Internal minus external ({found.name}), with 95 % intervals"
    drawn = {
        "confusion": performance.confusion(judged.summary["confusion"], recipe.classes, note=note),
        "roc_pr": performance.roc_pr(
            judged.labels, judged.probs, recipe.classes, recipe.positive, threshold, note=note
        ),
        "calibration": probabilities.reliability(judged.metrics["calibration"]["test"], note=note),
        "decision_curve": probabilities.decision_curve(
            judged.summary.get("decision_curve"), judged.metrics["decision"]["threshold"], note=note
        ),
        **({"difference": several.differences(gap, title, note=note)} if len(gap) else {}),
    }
    for name, figure in drawn.items():
        style.save(figure, found.folder / "figures" / f"{name}.png")
