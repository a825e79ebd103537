"""The explorer of a trained model for notebooks: choose an image, see the prediction and its heatmap."""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import torch
import traitlets

from patholib.base import files
from patholib.base.errors import PathoError, nearest, shown
from patholib.data import csvfiles, manifest
from patholib.data.imagesets import ImageSet
from patholib.deploy import inference
from patholib.judge import decisions, gradcam, predicting
from patholib.lab import explored
from patholib.lab.explorer_face import Face
from patholib.model import augment
from patholib.report.figures import heatmaps, sheets
from patholib.train import originals


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
        return f"{explored.short(self.path)}: {truth}called {self.row['called']} ({self.row['p']:.0%})"


class Explorer(traitlets.HasTraits):
    """A model, its images, and one of them looked at; in Jupyter it shows itself as widgets.

    run: a run folder or an exported model. images: an ImageSet; None: those of the run, found as `originals.images_of`
    does it, with data="none" or an exported model none but your own. split: "test" or "val". order: of the list, see
    ORDERS. Set the traits to drive it: `explorer.image = explorer.paths[0]`. Errors: as `inference.Predictor` and
    `originals.images_of`; afterwards only for a value that does not exist: `error` has the last one in one line.
    """

    image = traitlets.Unicode(help="path of the image looked at")
    target = traitlets.Unicode(help='the class whose evidence is shown; "": the one the image was called')
    block = traitlets.Unicode(help="block of the network whose maps are shown")
    method = traitlets.Unicode(next(iter(gradcam.METHODS)), help="how the evidence is found")
    alpha = traitlets.Float(0.45, min=0, max=1, help="opacity of the heat on the picture")
    colours = traitlets.Unicode(explored.COLOURS[0], help="colour map of the heat")
    outcome = traitlets.Unicode(explored.ALL, help="only images with this outcome")
    label = traitlets.Unicode(explored.ALL, help="only images of this class")
    patient = traitlets.Unicode(explored.ALL, help="only images of this patient")
    order = traitlets.Unicode(explored.ORDERS[0], help="order of the list")
    note = traitlets.Unicode(help="your note on the image")
    options = traitlets.List(help="(caption, path) of the images that the filters leave")
    seen = traitlets.Any(help="a Look, None before the first image")
    png = traitlets.Bytes(help="the picture on the screen")
    error = traitlets.Unicode(help="the last error, in one line")
    message = traitlets.Unicode(help="what was done last")

    def __init__(self, run: str | Path, images: ImageSet | None = None, data: str | Path = "auto",
                 split: str = "test", order: str = explored.ORDERS[0]):
        super().__init__()
        self.run, self.predictor = Path(run), inference.Predictor(run)
        self.classes = self.predictor.classes
        self.demo = self.predictor.manifest["demo"]
        self.positive = self.predictor.recipe.positive
        if images is None and str(data) != "none" and (self.run / "run.json").exists():
            images = originals.images_of(self.run, data, split)
        elif images is not None and "split" in images.table:
            images = images.part(split)
        self.table, self._pixels = self._known(images, split)
        self._warnings: dict[str, tuple[str, ...]] = {}  # by path, of one's own pictures
        self._heats: dict[tuple[str, str, str, str], torch.Tensor] = {}  # (1, h, w) as computed
        self._history = {row["image"]: row for row in self._earlier()}
        self.computed = 0  # heatmaps; what was looked at before is not computed again
        self._widgets: Face | None = None
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
        return pd.DataFrame(list(self._history.values()), columns=list(explored.COLUMNS))

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
                "block": list(self.predictor.model.block_names), "colours": list(explored.COLOURS),
                "outcome": list(explored.OUTCOMES), "order": list(explored.ORDERS),
                "label": [explored.ALL, *(c for c in self.classes if c in labels)], "patient": [explored.ALL, *patients]}.get(trait, [])

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
        keys = (f"{explored.YOURS}: {shown(name)}{f' ({n})' * (n > 1)}" for n in itertools.count(1))
        path = next(k for k in keys if k not in self._pixels or np.array_equal(self._pixels[k], square))
        if path not in self._pixels:
            answer = self.predictor.answer(square, warnings=warnings)
            told = pd.DataFrame({"path": [path], "label": [""]} | {f"p_{c}": [p] for c, p in answer.probs.items()})
            rows = explored.listed(told, self.classes, self.positive, self.predictor.deciding)
            self.table = pd.concat([self.table, rows]) if len(self.table) else rows
            self._pixels[path], self._warnings[path] = square, answer.warnings
        self.outcome = self.label = self.patient = explored.ALL
        self._list()
        self.image = path

    def save(self, path: Path | None = None) -> Path:
        """Writes the history with its notes as CSV, into the run folder unless told otherwise."""
        path = files.write_table(Path(path or self.run / explored.NOTES), self.history)
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
        return heatmaps.explored(
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
            return explored.listed(pd.DataFrame(columns=columns), self.classes, self.positive, self.predictor.deciding), {}
        size = self.predictor.recipe.cache_size
        if images.pixels.shape[1] != size:
            raise PathoError("bad_images", "images", f"are {images.pixels.shape[1]} pixels wide, but this model's are "
                             f"cached with {size}", "Check them with the size and fit of the model's recipe")
        if (self.run / f"predictions_{split}.csv").exists():
            predictions = decisions.calibrated(self.run, split)
        else:
            batches = np.array_split(images.table["row"].to_numpy(), len(images) // 64 + 1)
            probs = [self.predictor.probabilities(images.pixels[rows]) for rows in batches]
            predictions = predicting.as_predictions(images, np.concatenate(probs))
        rows = dict(zip(images.table["path"], images.table["row"], strict=True))
        predictions = predictions[predictions["path"].isin(rows.keys())]
        if not len(predictions):
            raise PathoError("other_images", "images", f"are none of the run's {split} images",
                             "Give the images of this run")
        return explored.listed(predictions, self.classes, self.positive, self.predictor.deciding), {
            path: images.pixels[rows[path]] for path in predictions["path"]}

    def _earlier(self) -> list[dict]:
        path = self.run / explored.NOTES
        return csvfiles.read_csv(path, explored.COLUMNS)[list(explored.COLUMNS)].to_dict("records") if path.exists() else []

    def _list(self) -> None:
        left = explored.left_by(self.table, self.outcome, self.label, self.patient, self.order)
        self.options = [(f"{explored.MARKS[row.outcome]} {row.called} {row.p:.0%}  {explored.short(row.Index)}", row.Index)
                        for row in left.itertuples()]

    def _choose(self) -> None:
        self._list()
        if not self.options:
            raise PathoError("none_left", "filters", "leave no image", f"Set one of them to {explored.ALL}")
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
        self._history[look.path] = dict(zip(explored.COLUMNS, (
            look.path, look.row["label"], look.row["called"], round(float(look.row["p"]), 4), look.target, look.block,
            look.method, not look.heat.any(), before["note"]), strict=True))
        self.note = before["note"]
        self._draw()

    def _keep_note(self) -> None:
        if self.image in self._history:
            self._history[self.image]["note"] = self.note

    def _draw(self) -> None:
        if (look := self.seen) is not None:
            self.png = sheets.panels(look.picture, look.heat, look.target, self.alpha, self.colours)

    def __repr__(self) -> str:
        note = f" - {self.figure_note}" if self.demo else ""
        return f"Explorer of {self.run.name}: {len(self.table)} images{note} (its widgets appear where it is run)"

    def _repr_mimebundle_(self, **_) -> dict:
        """What both generations of ipywidgets show, with our own line where there are no widgets."""
        self._widgets = self._widgets or Face(self)
        return {"text/plain": repr(self), "application/vnd.jupyter.widget-view+json": {
            "version_major": 2, "version_minor": 0, "model_id": self._widgets.root.model_id}}




def uploaded(value) -> list[tuple[str, bytes]]:
    """Names and contents of a FileUpload: a dict by name in ipywidgets 7, a tuple of dicts in 8."""
    if isinstance(value, dict):
        return [(name, bytes(entry["content"])) for name, entry in value.items()]
    return [(entry["name"], bytes(entry["content"])) for entry in value]
