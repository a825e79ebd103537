"""Predictions of many files as one table that outlives its process: what is done is never computed again.

While it grows, a table is a journal beside its place, `<name>.part`: one line of JSON for each picture, in whatever
state a kill or a power cut leaves it. `write` goes on behind the last whole line, and the end is one rename. As every
picture is computed alone, the table of an interrupted run is, byte for byte, that of an unbroken one.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from patholib.base import cluster, cpu, files, locks
from patholib.base.errors import PathoError
from patholib.base.progress import bar
from patholib.data import csvfiles, decoding, readers
from patholib.data.readers.folders import IMAGES, walk
from patholib.deploy import journals
from patholib.deploy.inference import Picture, Predictor

AHEAD = 4  # pictures that wait decoded, for each decoding thread
LEFT = {
    "ignored": "of litter or hidden",
    "unknown_extension": "that are no pictures by their name",
    "links_not_followed": "links to folders",
}


@dataclass(frozen=True)
class Ray:
    """Pictures computed on a Ray cluster: on the one at `address`, or on one that is made of this machine."""

    model: Path  # as `Predictor` takes it; every worker loads it once
    address: str | None = None


@dataclass(frozen=True)
class Table:
    """What `write` wrote."""

    path: Path
    bad_path: Path  # lists the files without an answer, with their reasons; exists where there are any
    answered: int
    bad: int
    before: int  # of both together, those that an interrupted run had done
    left: dict[str, int]  # what lay in the folders and was not looked at, by LEFT

    def __str__(self) -> str:
        text = f"{self.answered:,} pictures answered: {self.path}"
        text += f"; {self.before:,} of all were done before" if self.before else ""
        left = ", ".join(f"{count:,} {LEFT[name]}" for name, count in self.left.items() if count)
        text += f". Passed over: {left}" if left else ""
        return text + (f". {self.bad:,} could not be used: {self.bad_path}" if self.bad else "")


def gather(places: Sequence[str]) -> tuple[list[str], dict[str, int]]:
    """The pictures in files and folders, each once, and how many other things lay there by kind.

    Folders are walked to their ends, by name; a file that is named itself is taken whatever it is called. Folders that
    cannot be listed stand among the pictures. Errors: missing_file, no_images.
    """
    found: dict[str, str] = {}
    left: Counter[str] = Counter()
    for place in map(str, places):
        folder, closed = _is_folder(place), dict[str, PathoError]()
        inside, passed = walk(Path(place), closed) if folder else ([""], {})
        alike = [name for name in passed.get("unknown_extension", ()) if decoding.is_like_a_picture(Path(place, name))]
        if alike:  # whatever its name, it is answered, or named with the reason
            passed["unknown_extension"] = sorted(set(passed["unknown_extension"]) - set(alike))
        inside = sorted([*inside, *alike, *closed])
        above, own = (place, "") if folder else os.path.split(place)
        # Under whatever name a folder is given, a picture counts once.
        real = Path(above if "\0" in place else os.path.realpath(above))
        for name in inside:
            path = files.joined(Path(place), name) if folder else place
            found.setdefault(os.path.normpath(files.joined(real, name or own)), path)
        left.update({kind: len(names) for kind, names in passed.items()})
    if not found:
        raise PathoError(
            "no_images",
            ", ".join(map(str, places)),
            "hold no picture",
            f"Name folders with files that end in {', '.join(IMAGES)}",
        )
    return list(found.values()), dict(left)


def _is_folder(place: str) -> bool:
    """Whether a place that was named is a folder; what cannot be read is listed later. Errors: missing_file."""
    try:
        return stat.S_ISDIR(files.look_at(place, remedy="Name pictures or folders that hold some").st_mode)
    except PathoError as error:
        if error.reason == files.NOT_THERE or "\0" in place:  # which no table could hold
            raise
        return False


def listed(table: str, columns: Sequence[str]) -> tuple[list[str], dict | None, str]:
    """The pictures of a table, what it says of their patients, and why it has no labels, "" if it has.

    Of the patients None, if it does not have all the columns. Errors: those of `readers.read`.
    """
    try:
        source, why = readers.read(table), ""
        rows, root = source.table, source.root
    except PathoError as error:  # of new patients no class is known
        rows, root, why = csvfiles.read_csv(Path(table)), Path(table).parent, str(error)
        if "path" not in rows or "label" in rows or "" in set(rows["path"]) or rows["path"].duplicated().any():
            raise
    pictures = [str(Path(root, path)) for path in rows["path"]]
    if not columns or not set(columns) <= set(rows):
        return pictures, None, why
    return pictures, dict(zip(pictures, rows[list(columns)].to_dict("records"), strict=True)), why


def write(
    predictor: Predictor,
    places: Sequence[str],
    out: Path,
    *,
    tta: bool = False,
    heatmaps: Path | None = None,
    workers: int | None = None,
    progress: bool = True,
    on: Ray | None = None,
    patients: Mapping[str, Mapping[str, str]] | None = None,
) -> Table:
    """Writes the table of the answers to all pictures in `places`: path, p_<class>, decision, prediction_set, ...

    Of a model of several networks with the column spread, see `Answer.spread`.
    Files that cannot be used are listed beside it, in `<name>_bad.csv`, with the reason and the remedy. heatmaps: the
    folder for one PNG a picture, of what argues for its decision, named in a column of its own. workers: threads that
    decode ahead of the model; on a cluster, processes that do all of it. patients: of each path, data of the patient as
    `Predictor` takes them; None: the image alone. After an interruption the same call goes on, here or there; a file
    that has changed since is computed again.
    Errors: as `gather`; output_exists, other_model, output_locked, output_in_data, loader_timeout, model_output; on a
    cluster no_engine, no_cluster, not_shared, cluster_failed.
    """
    out = _table_at(out)
    listed, left = gather(places)
    _refuse_outputs_among(places, heatmaps)
    bad = out.with_name(f"{out.stem}_bad{out.suffix}")
    journal = out.with_name(out.name + ".part")
    with locks.alone(out, "output_locked", "written"):
        for path in (out, bad):
            if files.is_there(path) and not journal.exists():
                raise PathoError("output_exists", str(path), "is there already", "Name another file, or move it away")
        settings = _settings(predictor, tta, heatmaps) | ({"patients": files.digest(patients)} if patients else {})
        done = journals.taken_up(journal, settings)
        todo = [path for path in listed if path not in done or journals.facts_of(path) != done[path][1]]
        before = len(listed) - len(todo)
        entries = (
            _here(predictor, todo, tta, heatmaps, cpu.threads(workers), patients or {})
            if on is None
            else _on_ray(on, predictor, todo, tta, heatmaps, workers, patients or {})
        )
        meter = bar(entries, progress, total=len(listed), initial=before, unit="image", desc="predicting")
        with contextlib.closing(entries), journals.appending(journal) as add:
            for entry in meter:
                add(entry)
                done[entry[0]] = entry
        counts = _finish(predictor, listed, journal, done, out, bad, heatmaps is not None)
    return Table(out, bad, *counts, before, left)


def _table_at(out: Path | str) -> Path:
    """The path of the table, refused where no file can be written there. Errors: output_unwritable."""
    name = str(out)
    if name.endswith(("/", os.sep)) or (files.is_there(name) and stat.S_ISDIR(files.look_at(name).st_mode)):
        remedy = f"Name a file in it: {Path(name, 'answers.csv')}"
        raise PathoError("output_unwritable", name, "is a folder, not a table", remedy)
    return Path(name)


def _refuse_outputs_among(places: Sequence[str], heatmaps: Path | None) -> None:
    """Heatmaps in a folder of pictures would be pictures the next time."""
    for place in places:
        if heatmaps and _is_folder(str(place)) and Path(heatmaps).resolve().is_relative_to(Path(place).resolve()):
            raise PathoError(
                "output_in_data",
                str(heatmaps),
                f"lies in {place}, whose pictures are asked for",
                "Name a folder outside",
            )


def _settings(predictor: Predictor, tta: bool, heatmaps: Path | None) -> dict:
    """The first line of a journal: what all its answers have in common."""
    return {
        "format": journals.FORMAT,
        "model": predictor.sha256,
        "engine": predictor.engine,
        "tta": tta,
        "heatmaps": heatmaps is not None,
        "pixels": decoding.PIXEL_VERSION,
    }


def _here(
    predictor: Predictor, todo: list[str], tta: bool, heatmaps: Path | None, workers: int, patients: Mapping
) -> Generator[list]:
    """An entry for each path, in order, decoded ahead of the model."""

    def look(path: str) -> tuple[list[int], Picture | PathoError]:
        facts = journals.facts_of(path)
        try:
            if facts and os.path.isdir(path):  # noqa: PTH112 - as `facts_of`
                raise PathoError("unreadable", path, "is a folder that cannot be listed", "Correct its permissions")
            return facts, predictor.look(path)
        except PathoError as error:
            return facts, error

    found = cpu.in_order(look, todo, workers, AHEAD * workers)
    with warnings.catch_warnings(), contextlib.closing(found):
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # the reason is in the table
        for path, (facts, seen) in zip(todo, found, strict=True):
            row = problem = None
            if isinstance(seen, PathoError):
                problem = [seen.code, seen.reason, seen.remedy]
            else:
                row = _row(predictor, path, seen, tta, heatmaps, patients.get(path))
            yield [path, facts, row, problem]


def _on_ray(
    on: Ray,
    predictor: Predictor,
    todo: list[str],
    tta: bool,
    heatmaps: Path | None,
    workers: int | None,
    patients: Mapping,
) -> Generator[list]:
    """The same from the workers of a cluster, in whatever order."""
    cpu.threads(workers)  # refuses what is no number of workers
    if not todo:
        return
    given = (
        str(Path(on.model).resolve()),
        predictor.engine,
        predictor.sha256,
        tta,
        heatmaps and str(Path(heatmaps).resolve()),
        str(Path.cwd()),
    )
    with cluster.joined(on.address) as ray:
        for line in cluster.mapped(
            ray, _worker, given, [json.dumps([path, patients.get(path)]).encode() for path in todo], workers
        ):
            entry = json.loads(line)
            if entry[3] is not None and entry[3][0] == "missing_file" and files.is_there(entry[0]):
                raise _not_shared(entry[0])
            yield entry


def _worker(
    model: str, engine: str, sha256: str, tta: bool, heatmaps: str | None, cwd: str
) -> Callable[[bytes], bytes]:
    """What a worker does with a path, as JSON: the line of the journal."""
    for place in (cwd, model):
        if not Path(place).exists():
            raise _not_shared(place)
    os.chdir(cwd)  # what the paths count from
    predictor = Predictor(Path(model), engine, threads=1, sha256=sha256)  # one picture is too small for several threads

    def answer(item: bytes) -> bytes:
        path, patient = json.loads(item)
        (entry,) = _here(predictor, [path], tta, Path(heatmaps) if heatmaps else None, 1, {path: patient})
        return journals.as_line(entry)

    return answer


def _not_shared(place: str) -> PathoError:
    return PathoError(
        "not_shared",
        place,
        "is not there on every machine of the cluster",
        "All have to see the same folders under the same names, as on a network drive: pictures, model and outputs",
    )


def _row(
    predictor: Predictor, path: str, seen: Picture, tta: bool, heatmaps: Path | None, patient: Mapping | None
) -> list:
    """[probabilities, decision, prediction set, none of these, alert, warnings, heatmap] and, of folds, the spread."""
    answer = predictor.answer(seen.pixels, tta, seen.warnings, patient)
    name = None
    if heatmaps is not None:
        name = f"{Path(path).stem[:80]}-{hashlib.sha256(path.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}.png"
        heat = _heat(predictor, seen.pixels, answer.decision)
        files.write_bytes(Path(heatmaps) / name, heat)  # before the line that says it is there
    held = None if answer.prediction_set is None else "; ".join(answer.prediction_set)
    said = [answer.decision, held, answer.none_of_these, answer.alert]
    spread = [] if answer.spread is None else [answer.spread]
    return [list(answer.probs.values()), *said, "; ".join(answer.warnings), name, *spread]


def _heat(predictor: Predictor, pixels: np.ndarray, decision: str) -> bytes:
    """PNG of what the model saw under the heat of its decision; plain where nothing argues for it."""
    from patholib.report.figures import heatmaps

    stream = io.BytesIO()
    Image.fromarray(heatmaps.overlay(*predictor.heatmap(pixels, decision))).save(stream, "PNG")
    return stream.getvalue()


def _finish(
    predictor: Predictor, listed: list[str], journal: Path, done: dict[str, list], out: Path, bad: Path, heated: bool
) -> tuple[int, int]:
    """The entries as tables in the order of `listed`, which replace the journal; how many were answered and not."""
    answers = [["path", *(f"p_{c}" for c in predictor.classes)]]
    answers[0] += ["decision", "prediction_set", "none_of_these", "alert", "warnings", "model"]
    answers[0] += ["spread"] * (predictor.members > 1) + ["heatmap"] * heated
    problems = [["path", "code", "reason", "remedy"]]
    for path in listed:
        _, _, row, problem = done[path]
        if problem is not None:
            problems.append([path, *problem])
        else:
            probs, decision, held, none, alert, text, heat, *spread = row
            known = ["" if flag is None else str(flag).lower() for flag in (none, alert)]
            last = [*map(repr, spread), *([heat] if heated else [])]
            answers.append([path, *map(repr, probs), decision, held or "", *known, text, predictor.sha256, *last])
    if len(problems) > 1:
        files.write_rows(bad, problems)
    files.write_rows(out, answers)
    journal.unlink()
    return len(answers) - 1, len(problems) - 1
