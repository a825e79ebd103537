"""An explorer of a trained model: choose an image, see what the model calls it, and where the evidence for it lies.

`Explorer` is the whole of it, as traits, and can be driven and tested without a browser. `_Face` puts widgets before
it, which hold nothing of their own. Jupyter swallows what callbacks raise, so all of it is caught and told in `error`.
"""

from __future__ import annotations

import contextlib
import html
import itertools
import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import ipywidgets as widgets
import numpy as np
import pandas as pd
import torch
import traitlets

from patholib import (
    augment,
    datasets,
    evaluation,
    export,
    figures,
    files,
    gradcam,
    inference,
    manifest,
    metrics,
    models,
    recipes,
    report,
    runs,
    training,
)
from patholib.errors import PathoError, nearest, shown
from patholib.images import FORMATS, ImageSet, check

ALL, YOURS = "all", "yours"
OUTCOMES = (ALL, "right", "wrong", YOURS)
ORDERS = ("as listed", "least certain first", "surest first")
COLOURS = ("jet", "turbo", "viridis", "inferno", "cividis")  # the last three also read in grey
MARKS = {"right": "✓", "wrong": "✗", YOURS: "•"}
NOTES = "explored.csv"  # in the run folder: what was looked at, with notes
COLUMNS = ("image", "label", "called", "p", "evidence_for", "block", "method", "blank", "note")


# ------------------------------------------------------------------------------------------- what there is to explore


def find_run(run: str | Path = "latest", data: str = "auto", output: Path | None = None) -> Path:
    """The folder to explore, which is printed: a run, an exported model, or for "latest" the newest finished run.

    run: a path, or the name of a folder in `output`. data "demo" looks for runs on demo images only. Where "latest"
    finds none, a small model is trained on demo images first. Errors: missing_run.
    """
    output = runs.output_folder(output)
    if run == "latest":
        found = runs.newest(output, demo=data == "demo")
        if found is None:
            print("There is no finished run yet: a small model is trained on demo images first, for a minute or less")
            return demo_run(output)
        print(f"The newest finished run: {found.name}")
        return found
    places = (Path(run).expanduser(), output / run)
    found = next((place for place in places if (place / export.MANIFEST).exists()), None)
    if found is None:
        raise PathoError("missing_run", str(run), f"holds no {export.MANIFEST}, so there is no model to explore",
                         'Name the folder of a finished run or of an exported model, or "latest"')
    return found


def demo_run(output: Path | None = None, epochs: int = 6) -> Path:
    """The folder of a run that is made now: a small network and few epochs on demo images, judged and exported."""
    source = datasets.load("breakhis", "demo")
    recipe = runs.recipe_for("breakhis", source, small=True, arch="resnet18", epochs=epochs)
    checked = check(source, recipe.cache_size, recipe.fit)
    split = manifest.split(checked.manifest, recipe.fractions, recipe.seed, recipe.group_by)
    run = runs.start(recipe, checked, split, output=output)
    tissue, model = checked.images.with_split(split), models.build(recipe)
    training.fit(model, tissue, run, "cpu")
    evaluation.lock(model, tissue, run.dir, recipe)
    evaluation.judge(model, tissue, run.dir, recipe, subgroups=source.subgroups)
    export.write(run.dir)
    report.write(run.dir)
    run.finish()
    return run.dir


def images_of(run_dir: Path, data: str | Path = "auto", split: str = "test") -> ImageSet:
    """The images of one split of a run, read again from where they lie, and held against the bytes it was made of.

    data: as for `datasets.load`, because a run folder does not say where its images are. Those that are not there any
    more are left out. Errors: data_root, other_images, changed_file, and what reading and checking raise.
    """
    facts = files.read_json(Path(run_dir) / "run.json")
    recipe, source = recipes.from_json(facts["recipe"]), _source(facts, data)
    checked = check(source, recipe.cache_size, recipe.fit, on_bad="skip", progress=False)
    made_of = manifest.read_csv(Path(run_dir) / "images.csv", ("path", "sha256"))
    before, now = (dict(zip(t["path"], t["sha256"], strict=True)) for t in (made_of, checked.facts))
    changed = sorted(path for path in before.keys() & now.keys() if before[path] != now[path])
    if changed:
        raise PathoError("changed_file", changed[0], f"is not the file the run was made of ({len(changed)} such files)",
                         "Give the folder with the images of this run as data")
    parts = manifest.read_split(Path(run_dir) / "split.csv")
    wanted = parts.loc[parts["split"] == split, "path"]
    here = checked.images.table["path"].isin(wanted)
    if not here.any():
        raise PathoError("other_images", str(source.root.name), f"holds none of the run's {len(wanted)} {split} images",
                         "Give the folder or table of this run's images as data")
    return replace(checked.images, table=checked.images.table[here].reset_index(drop=True))


def _source(facts: dict, data: str | Path) -> manifest.Manifest:
    """The manifest of the images a run was made of."""
    kind, auto = facts["data"]["source"], str(data) == "auto"
    remedy = 'Give the images as data, or data="none" to look at files of your own only'
    if auto and facts["demo"] and not os.environ.get("PATHOLIB_DATA"):
        data = "demo"
    elif auto and kind not in datasets.KINDS:
        raise PathoError("data_root", facts["name"], "was made from a table of one's own, and does not say where it is",
                         remedy)
    elif auto and not facts["demo"] and (found := datasets.find(kind)).demo:
        raise PathoError("data_root", kind, f"is not in {', '.join(found.tried) or 'the place given'}", remedy)
    return datasets.load(kind if kind in datasets.KINDS else facts["recipe"]["name"], data, missing="skip")


def listed(predictions: pd.DataFrame, classes: Sequence[str], positive: str | None,
           threshold: float | metrics.Shares) -> pd.DataFrame:
    """What the lists need of each image, by its path: label, patient, called, p (of that), outcome, margin, p_<class>.

    label "" is unknown. margin: see `metrics.margin`.
    """
    probs = predictions[[f"p_{c}" for c in classes]].to_numpy(float)  # (N, C)
    called = metrics.called(probs, classes, positive, threshold)
    margin = metrics.margin(probs, classes, positive, threshold)
    names, labels = np.array(classes, dtype=object)[called], predictions["label"].to_numpy()
    outcome = np.where(labels == "", YOURS, np.where(labels == names, "right", "wrong"))
    known = {"case", "lesion", "given_group", "group"} & set(predictions)
    patient = predictions[evaluation.patient_column(predictions)].to_numpy() if known else ""
    table = pd.DataFrame({"label": labels, "patient": patient, "called": names, "outcome": outcome, "margin": margin,
                          "p": probs[np.arange(len(probs)), called]}, index=pd.Index(predictions["path"], name="path"))
    return table.join(pd.DataFrame(probs, index=table.index, columns=[f"p_{c}" for c in classes]))


def left_by(table: pd.DataFrame, outcome: str = ALL, label: str = ALL, patient: str = ALL,
            order: str = ORDERS[0]) -> pd.DataFrame:
    """The rows of `listed` that pass these filters, in this order."""
    for column, value in (("outcome", outcome), ("label", label), ("patient", patient)):
        if value != ALL:
            table = table[table[column] == value]
    if order == ORDERS[0]:
        return table
    return table.sort_values("margin", ascending=order == ORDERS[1], kind="stable")


def short(path: str) -> str:
    """The name of an image without its folders."""
    return PurePosixPath(path).name.removeprefix(f"{YOURS}: ")


# ---------------------------------------------------------------------------------------------------------- the state


@dataclass(frozen=True, eq=False)
class Look:
    """What is on the screen: an image, what was asked of it, and the answer."""

    path: str
    row: pd.Series  # of `listed`
    picture: np.ndarray  # (size, size, 3) uint8, what the model saw
    heat: np.ndarray  # (size, size) float32 >= 0, raw
    target: str  # the class the heat argues for
    block: str
    method: str

    @property
    def caption(self) -> str:
        """The image and what it was called, in one line."""
        truth = f"is {self.row['label']}, " if self.row["label"] else ""
        return f"{short(self.path)}: {truth}called {self.row['called']} ({self.row['p']:.0%})"


class Explorer(traitlets.HasTraits):
    """A model, its images, and one of them looked at; in Jupyter it shows itself as widgets.

    run: a run folder or an exported model. images: an ImageSet; None: those of the run, found as `images_of` does it,
    with data="none" or an exported model none but your own. split: "test" or "val". order: of the list, see ORDERS.
    Set the traits to drive it: `explorer.image = explorer.paths[0]`. Errors: as `inference.Predictor` and `images_of`;
    afterwards none is raised but for a value that does not exist: `error` has the last one in one line.
    """

    image = traitlets.Unicode(help="path of the image looked at")
    target = traitlets.Unicode(help='the class whose evidence is shown; "": the one the image was called')
    block = traitlets.Unicode(help="block of the network whose maps are shown")
    method = traitlets.Unicode(next(iter(gradcam.METHODS)), help="how the evidence is found")
    alpha = traitlets.Float(0.45, min=0, max=1, help="opacity of the heat on the picture")
    colours = traitlets.Unicode(COLOURS[0], help="colour map of the heat")
    outcome = traitlets.Unicode(ALL, help="only images with this outcome")
    label = traitlets.Unicode(ALL, help="only images of this class")
    patient = traitlets.Unicode(ALL, help="only images of this patient")
    order = traitlets.Unicode(ORDERS[0], help="order of the list")
    note = traitlets.Unicode(help="your note on the image")
    options = traitlets.List(help="(caption, path) of the images that the filters leave")
    seen = traitlets.Any(help="a Look, None before the first image")
    png = traitlets.Bytes(help="the picture on the screen")
    error = traitlets.Unicode(help="the last error, in one line")
    message = traitlets.Unicode(help="what was done last")

    def __init__(self, run: str | Path, images: ImageSet | None = None, data: str | Path = "auto",
                 split: str = "test", order: str = ORDERS[0]):
        super().__init__()
        self.run, self.predictor = Path(run), inference.Predictor(run)
        self.classes = self.predictor.classes
        self.demo = self.predictor.manifest["demo"]
        self.positive = self.predictor.recipe.positive
        if images is None and str(data) != "none" and (self.run / "run.json").exists():
            images = images_of(self.run, data, split)
        elif images is not None and "split" in images.table:
            images = images.part(split)
        self.table, self._pixels = self._known(images, split)
        self._warnings: dict[str, tuple[str, ...]] = {}  # by path, of one's own pictures
        self._heats: dict[tuple[str, str, str, str], torch.Tensor] = {}  # (1, h, w) as computed
        self._history = {row["image"]: row for row in self._earlier()}
        self.computed = 0  # heatmaps; what was looked at before is not computed again
        self._widgets: _Face | None = None
        self.block = gradcam.default_block(self.predictor.model)
        self.order = order
        self._list()
        if self.paths:
            self.image = self.paths[0]
            self._look()
        for names, step in ((("outcome", "label", "patient", "order"), self._choose),
                            (("image", "target", "block", "method"), self._look),
                            (("alpha", "colours"), self._draw), (("note",), self._keep_note)):
            self.observe(lambda _, step=step: self.attempt(step), names)

    @property
    def paths(self) -> list[str]:
        """The images that the filters leave, in order."""
        return [path for _, path in self.options]

    @property
    def history(self) -> pd.DataFrame:
        """One row per image that was looked at, the latest last; with the notes, also those of earlier sessions."""
        return pd.DataFrame(list(self._history.values()), columns=list(COLUMNS))

    @property
    def marked(self) -> tuple[str, float] | None:
        """The class that has a threshold, and which; None where the likeliest class decides and none was chosen."""
        chosen = self.predictor.threshold
        if self.positive is None or (chosen is None and len(self.classes) > 2):
            return None
        return self.positive, 0.5 if chosen is None else chosen

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why to distrust the answer on the picture of your own that is looked at, each "code: text"."""
        return self._warnings.get(self.image, ())

    @property
    def figure_note(self) -> str:
        """What stands above every figure: nothing for a model of real images."""
        return manifest.DEMO_NOTE if self.demo else ""

    def choices(self, trait: str) -> list[str]:
        """What the trait can be set to; [] where anything goes."""
        labels, patients = (sorted(set(self.table[name]) - {""}) for name in ("label", "patient"))
        return {"image": list(self.table.index), "target": ["", *self.classes], "method": list(gradcam.METHODS),
                "block": list(self.predictor.model.block_names), "colours": list(COLOURS),
                "outcome": list(OUTCOMES), "order": list(ORDERS),
                "label": [ALL, *(c for c in self.classes if c in labels)], "patient": [ALL, *patients]}.get(trait, [])

    @traitlets.validate("image", "target", "block", "method", "colours", "outcome", "label", "patient", "order")
    def _refuse_unknown(self, proposal):
        name, value, known = proposal["trait"].name, proposal["value"], self.choices(proposal["trait"].name)
        if value not in known:
            few = nearest(value, known) if len(known) < 30 else f"There are {len(known)}; see explorer.paths"
            raise PathoError("bad_parameter", name, f"is {value!r}, which there is not", few)
        return value

    def attempt(self, step: Callable, *arguments) -> None:
        """Runs a step of a callback; an error is told in `error`, and with its traceback in the run's run.jsonl."""
        self.error = self.message = ""
        try:
            step(*arguments)
        except Exception as error:  # whatever it is, nobody else would tell
            self.error = shown(error if isinstance(error, PathoError) else f"{type(error).__name__}: {error}")
            if (self.run / "run.json").exists():
                files.append_json(self.run / "run.jsonl", {
                    "event": "error", "code": getattr(error, "code", type(error).__name__), "error": str(error),
                    "traceback": "".join(traceback.format_exception(error))})

    def step(self, by: int) -> None:
        """Goes `by` images on in the list, as far as it goes."""
        paths = self.paths
        at = paths.index(self.image) + by if self.image in paths else 0
        if paths:
            self.image = paths[min(max(at, 0), len(paths) - 1)]

    def add(self, source: str | Path | bytes, name: str = "picture") -> None:
        """Shows a picture of your own, a path or bytes with a name; it is checked as any image of a data set is.

        Errors: as `images.read`.
        """
        source = Path(source).expanduser() if isinstance(source, str) else source
        name = source.name if isinstance(source, Path) else PurePosixPath(name).name
        square, warnings = self.predictor.look(source, name)
        keys = (f"{YOURS}: {shown(name)}{f' ({n})' * (n > 1)}" for n in itertools.count(1))
        path = next(k for k in keys if k not in self._pixels or np.array_equal(self._pixels[k], square))
        if path not in self._pixels:
            answer = self.predictor.answer(square, warnings=warnings)
            told = pd.DataFrame({"path": [path], "label": [""]} | {f"p_{c}": [p] for c, p in answer.probs.items()})
            rows = listed(told, self.classes, self.positive, self.predictor.deciding)
            self.table = pd.concat([self.table, rows]) if len(self.table) else rows
            self._pixels[path], self._warnings[path] = square, answer.warnings
        self.outcome = self.label = self.patient = ALL
        self._list()
        self.image = path

    def save(self, path: Path | None = None) -> Path:
        """Writes the history with its notes as CSV, into the run folder unless told otherwise."""
        path = files.write_table(Path(path or self.run / NOTES), self.history)
        notes = int((self.history["note"] != "").sum())
        self.message = f"Wrote {len(self._history)} images and {notes} notes into {path.parent.name}/{path.name}"
        return path

    def figure(self, target: str | None = None):
        """The present image as a figure, with the probabilities: for a page that shows no widgets.

        target: the class whose evidence is shown; None: the one on the screen.
        """
        if self.seen is None:
            raise PathoError("no_images", "explorer", "has no image to draw", "Add a picture of your own first")
        look = self.seen if target is None else self._asked(target)
        return figures.explored(
            look.picture, look.heat, look.target, {c: float(look.row[f"p_{c}"]) for c in self.classes}, self.marked,
            self.alpha, self.colours, f"{look.caption} - {look.method} after {look.block}", self.figure_note)

    def heat(self, path: str, target: str, block: str, method: str) -> torch.Tensor:
        """The raw map (1, h, w) of an image, computed once."""
        key = (path, target, block, method)
        if key not in self._heats:
            self.message = "Computing the evidence ..."
            found = gradcam.heat(self.predictor.model, self._view(path), [self.classes.index(target)], block, method)
            self._heats[key] = found.maps
            self.computed += 1
            self.message = ""
        return self._heats[key]

    def _view(self, path: str):
        """What the model sees of an image, (1, 3, size, size) in [0, 1]."""
        return augment.plain_views(np.array(self._pixels[path])[None], self.predictor.recipe.image_size)

    def _known(self, images: ImageSet | None, split: str) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
        """The table of all images, and their pixels by path."""
        columns = ["path", "label", *(f"p_{c}" for c in self.classes)]
        if images is None:
            return listed(pd.DataFrame(columns=columns), self.classes, self.positive, self.predictor.deciding), {}
        size = self.predictor.recipe.cache_size
        if images.pixels.shape[1] != size:
            raise PathoError("bad_images", "images", f"are {images.pixels.shape[1]} pixels wide, but this model's are "
                             f"cached with {size}", "Check them with the size and fit of the model's recipe")
        if (self.run / f"predictions_{split}.csv").exists():
            predictions = evaluation.calibrated(self.run, split)
        else:
            batches = np.array_split(images.table["row"].to_numpy(), len(images) // 64 + 1)
            probs = [self.predictor.probabilities(images.pixels[rows]) for rows in batches]
            predictions = evaluation.as_predictions(images, np.concatenate(probs))
        rows = dict(zip(images.table["path"], images.table["row"], strict=True))
        predictions = predictions[predictions["path"].isin(rows.keys())]
        if not len(predictions):
            raise PathoError("other_images", "images", f"are none of the run's {split} images",
                             "Give the images of this run")
        return listed(predictions, self.classes, self.positive, self.predictor.deciding), {
            path: images.pixels[rows[path]] for path in predictions["path"]}

    def _earlier(self) -> list[dict]:
        path = self.run / NOTES
        return manifest.read_csv(path, COLUMNS)[list(COLUMNS)].to_dict("records") if path.exists() else []

    def _list(self) -> None:
        left = left_by(self.table, self.outcome, self.label, self.patient, self.order)
        self.options = [(f"{MARKS[row.outcome]} {row.called} {row.p:.0%}  {short(row.Index)}", row.Index)
                        for row in left.itertuples()]

    def _choose(self) -> None:
        self._list()
        if not self.options:
            raise PathoError("none_left", "filters", "leave no image", f"Set one of them to {ALL}")
        if self.image not in self.paths:
            self.image = self.paths[0]

    def _asked(self, target: str) -> Look:
        """The present image with the evidence for `target`, "" for what it was called."""
        row, view = self.table.loc[self.image], self._view(self.image)
        target = target or row["called"]
        maps = self.heat(self.image, target, self.block, self.method)
        picture = view[0].permute(1, 2, 0).mul(255).round().byte().numpy()  # (size, size, 3)
        return Look(self.image, row, picture, gradcam.upsample(maps, view.shape[-1])[0].numpy(), target, self.block,
                    self.method)

    def _look(self) -> None:
        self.seen = look = self._asked(self.target)
        before = self._history.pop(look.path, {"note": ""})
        self._history[look.path] = dict(zip(COLUMNS, (
            look.path, look.row["label"], look.row["called"], round(float(look.row["p"]), 4), look.target, look.block,
            look.method, not look.heat.any(), before["note"]), strict=True))
        self.note = before["note"]
        self._draw()

    def _keep_note(self) -> None:
        if self.image in self._history:
            self._history[self.image]["note"] = self.note

    def _draw(self) -> None:
        if (look := self.seen) is not None:
            self.png = figures.panels(look.picture, look.heat, look.target, self.alpha, self.colours)

    def __repr__(self) -> str:
        note = f" - {self.figure_note}" if self.demo else ""
        return f"Explorer of {self.run.name}: {len(self.table)} images{note} (its widgets appear where it is run)"

    def _repr_mimebundle_(self, **_) -> dict:
        """What both generations of ipywidgets show, with our own line where there are no widgets."""
        self._widgets = self._widgets or _Face(self)
        return {"text/plain": repr(self), "application/vnd.jupyter.widget-view+json": {
            "version_major": 2, "version_minor": 0, "model_id": self._widgets.root.model_id}}


# ----------------------------------------------------------------------------------------------------------- the face


def uploaded(value) -> list[tuple[str, bytes]]:
    """Names and contents of a FileUpload: a dict by name in ipywidgets 7, a tuple of dicts in 8."""
    if isinstance(value, dict):
        return [(name, bytes(entry["content"])) for name, entry in value.items()]
    return [(entry["name"], bytes(entry["content"])) for entry in value]


class _Face:
    """The widgets of an explorer, linked with its traits; each has the CSS class patho-<name>, and a label."""

    def __init__(self, explorer: Explorer):
        self.explorer, self.still = explorer, False
        self.parts: dict[str, widgets.Widget] = {}
        self.root = self._named("explorer", widgets.VBox([
            self._html("header"),
            widgets.HBox([self._choosing(), self._looking()], layout=_layout(flex_flow="row wrap")),
        ]))
        self._show_header()
        self._show_options()
        self._show_look()
        explorer.observe(lambda _: self._show_options(), "options")
        explorer.observe(lambda _: self._show_look(), "seen")
        explorer.observe(lambda _: self._show_history(), ["note", "message"])
        explorer.observe(lambda _: self._show_told(), ["error", "message"])

    # --- what it is made of

    def _choosing(self) -> widgets.Widget:
        """The left column: filters, the list of images, a file of one's own."""
        chosen = self._named("image", widgets.Select(rows=10, description="image", **_wide()))
        chosen.observe(lambda change: self._choose(change["new"]), "value")
        steps = [self._button("previous", "◀ previous", lambda: self.explorer.step(-1)),
                 self._button("next", "next ▶", lambda: self.explorer.step(1)), self._html("place")]
        # JupyterLab keeps the arrow keys up and down for its cells, also on a list; a slider takes left and right.
        number = self._named("number", widgets.IntSlider(min=1, max=2, description="number", readout=False,
                                                         continuous_update=False, **_wide()))
        number.observe(lambda change: self._go(change["new"]), "value")
        upload = self._named("upload", widgets.FileUpload(
            accept=",".join(sorted(set().union(*(endings for _, endings in FORMATS.values())))),
            description="open a picture of yours", layout=_layout()))
        upload.observe(lambda change: self._take(change["new"]), "value")
        path = self._named("path", widgets.Text(description="its path", continuous_update=False, **_wide(),
                                                placeholder="from 10 MB on: type it here"))
        path.observe(lambda change: self._open(change["new"]), "value")
        filters = [self._dropdown(name, name) for name in ("outcome", "label", "patient", "order")]
        for widget in filters:
            widget.layout.flex = "1 1 200px"
        return widgets.VBox([widgets.HBox(filters, layout=_layout(flex_flow="row wrap")), chosen, number,
                             widgets.HBox(steps, layout=_layout(align_items="center")), upload, path],
                            layout=_layout(flex="1 1 300px"))

    def _looking(self) -> widgets.Widget:
        """The right column: what to ask, the answer, notes."""
        alpha = self._named("alpha", widgets.FloatSlider(min=0, max=1, step=0.05, description="opacity",
                                                         continuous_update=False, readout_format=".2f", **_wide()))
        traitlets.link((self.explorer, "alpha"), (alpha, "value"))
        asked = [self._dropdown("target", "evidence for"), self._dropdown("block", "in block"),
                 self._dropdown("method", "by"), self._dropdown("colours", "colours"), alpha]
        for widget in asked:
            widget.layout.flex, widget.style.description_width = "1 1 220px", "84px"
        picture = self._named("picture", widgets.Image(
            format="png", layout=_layout(width="calc(100% - 4px)", max_width="1200px", height="auto")))
        traitlets.link((self.explorer, "png"), (picture, "value"))
        note = self._named("note", widgets.Textarea(description="your note", continuous_update=False, rows=2,
                                                    **_wide()))
        traitlets.link((self.explorer, "note"), (note, "value"))
        save = self._button("save", "save notes", self.explorer.save)
        notes = widgets.VBox([note, widgets.HBox([save, self._html("message")]), self._html("history")],
                             layout=_layout(flex="1 1 280px"))
        probs = self._html("probs")
        probs.layout.flex = "1 1 240px"
        return widgets.VBox([
            widgets.HBox(asked, layout=_layout(flex_flow="row wrap")), self._html("error"), self._html("headline"),
            picture, widgets.HBox([probs, notes], layout=_layout(flex_flow="row wrap")),
        ], layout=_layout(flex="3 1 520px"))

    def _named(self, name: str, widget):
        self.parts[name] = widget
        widget.add_class(f"patho-{name}")
        return widget

    def _html(self, name: str) -> widgets.Widget:
        return self._named(name, widgets.HTML(layout=_layout()))

    def _tell(self, name: str, text: str) -> None:
        """Shows HTML, its lines as close as those of a page."""
        self.parts[name].value = f'<div style="line-height:1.45;overflow-wrap:break-word">{text}</div>' if text else ""

    def _button(self, name: str, text: str, press: Callable) -> widgets.Widget:
        button = self._named(name, widgets.Button(description=text, layout=_layout(flex="0 0 auto")))
        button.on_click(lambda _: self.explorer.attempt(press))
        return button

    def _dropdown(self, trait: str, text: str) -> widgets.Widget:
        dropdown = self._named(trait, widgets.Dropdown(options=self._choices(trait), description=text, **_wide()))
        traitlets.link((self.explorer, trait), (dropdown, "value"))
        return dropdown

    def _choices(self, trait: str) -> list[tuple[str, str]]:
        return [(value or "as called", value) for value in self.explorer.choices(trait)]

    # --- what a person does

    def _choose(self, path: str | None) -> None:
        if path is not None and not self.still:
            self.explorer.attempt(setattr, self.explorer, "image", path)

    def _go(self, number: int) -> None:
        if not self.still:
            self._choose(self.explorer.paths[number - 1])

    def _take(self, value) -> None:
        for name, content in uploaded(value):
            self.explorer.attempt(self.explorer.add, content, name)
        if value:
            upload = self.parts["upload"]
            upload.set_trait("value", type(upload.value)())  # emptied, so that the same file is news again

    def _open(self, path: str) -> None:
        if path.strip():
            self.explorer.attempt(self.explorer.add, path.strip())
            self.parts["path"].value = ""

    # --- what is shown

    def _show_header(self) -> None:
        explorer = self.explorer
        demo = f'<b style="color:{figures.WARNING}">{manifest.DEMO_NOTE}.</b> ' if explorer.demo else ""
        self._tell("header", (
            f"<b>{html.escape(explorer.run.name)}</b> - {html.escape(explorer.predictor.recipe.arch)}, "
            f"{len(explorer.classes)} classes. {demo}For research use only, not for any decision about a patient."))

    @contextlib.contextmanager
    def _unasked(self):
        """What widgets change by themselves meanwhile is not taken for a person's choice."""
        before, self.still = self.still, True
        try:
            yield
        finally:
            self.still = before

    def _show_options(self) -> None:
        explorer, chosen = self.explorer, self.parts["image"]
        with self._unasked():  # a list chooses its first entry by itself
            chosen.options = explorer.options
            chosen.value = explorer.image if explorer.image in explorer.paths else None
        self._show_place()

    def _show_place(self) -> None:
        paths, number = self.explorer.paths, self.parts["number"]
        at = paths.index(self.explorer.image) if self.explorer.image in paths else None
        self._tell("place", f"{0 if at is None else at + 1} of {len(paths)}")
        self.parts["previous"].disabled = not at
        self.parts["next"].disabled = at is None or at + 1 == len(paths)
        with self._unasked():
            number.max, number.disabled = max(2, len(paths)), len(paths) < 2  # a slider needs two places
            number.value = 1 if at is None else at + 1

    def _show_look(self) -> None:
        look = self.explorer.seen
        if look is None:
            self._tell("headline", "No images are known: open a picture of yours.")
            return
        with self._unasked():
            self.parts["image"].value = look.path if look.path in self.explorer.paths else None
        self._show_place()
        odd = "".join(f"<br>{html.escape(reason)}" for reason in self.explorer.warnings)
        blank = "" if look.heat.any() else f"<br>Nothing in it argues for {html.escape(look.target)}: a blank map."
        who = f" - {html.escape(look.row['patient'])}" if look.row["patient"] else ""
        self._tell("headline", f"<b>{html.escape(look.caption)}</b>{who}{blank}{odd}")
        self._tell("probs", probability_bars(self.explorer))
        self._show_history()

    def _show_history(self) -> None:
        rows = self.explorer.history.tail(6).iloc[::-1]
        cells = "".join(f"<tr><td>{html.escape(short(row.image))}</td><td>{html.escape(row.called)}</td>"
                        f"<td>{html.escape(row.note[:60])}</td></tr>" for row in rows.itertuples())
        self._tell("history", "<table style='font-size:.9em' aria-label='looked at last'><tr style='text-align:left'>"
                              f"<th>looked at last</th><th>called</th><th>note</th></tr>{cells}</table>")

    def _show_told(self) -> None:
        error, message = html.escape(self.explorer.error), html.escape(self.explorer.message)
        self._tell("error", f'<b role="alert" style="color:{figures.WARNING}">{error}</b>' if error else "")
        self._tell("message", f'<span role="status">{message}</span>' if message else "")


def probability_bars(explorer: Explorer) -> str:
    """The probabilities of the present look as an HTML table of bars, the threshold as a line across its bar."""
    row, rows, (marked, threshold) = explorer.seen.row, [], explorer.marked or (None, None)
    for name in explorer.classes:
        p, line = float(row[f"p_{name}"]), ""
        words = ", ".join(word for word, meant in (("called", row["called"]), ("true", row["label"])) if meant == name)
        if name == marked:
            line = (f"<div style='position:absolute;left:{threshold:.1%};top:-3px;bottom:-3px;"
                    f"border-left:2px solid currentColor'></div>")
        rows.append(
            f"<tr><th scope='row' style='text-align:left;padding-right:8px'>{html.escape(name)}</th>"
            f"<td style='width:100%'><div style='position:relative;background:rgba(128,128,128,.25)'>"
            f"<div style='width:{p:.1%};height:14px;background:{figures.BLUE}'></div>{line}</div></td>"
            f"<td style='text-align:right;padding:0 8px'>{p:.1%}</td><td style='white-space:nowrap'>{words}</td></tr>")
    told = f"; the line is the threshold for {html.escape(marked)}: {threshold:.3g}" if marked is not None else ""
    return (f"<table style='width:100%' aria-label='probabilities'>{''.join(rows)}</table>"
            f"<small>probability of each class{told}</small>")


def _layout(**values) -> widgets.Layout:
    """As wide as its column, and never wider."""
    return widgets.Layout(**{"width": "auto", "min_width": "0"} | values)


def _wide() -> dict:
    return {"layout": _layout(), "style": {"description_width": "76px"}}
