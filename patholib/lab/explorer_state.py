"""What the explorer knows, without widgets: a model, its images, the image viewed, filters and notes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import torch
import traitlets

from patholib.base import files
from patholib.base.errors import PathoError, nearest, shown
from patholib.data import manifest
from patholib.data.imagesets import ImageSet
from patholib.deploy import inference
from patholib.judge import decisions, gradcam, predicting, trust
from patholib.lab import explored
from patholib.model import augment
from patholib.report.figures import heatmaps, style
from patholib.train import originals


@dataclass(frozen=True, eq=False)
class Look:
    """What is on the screen: an image, its prediction, and a heatmap."""

    path: str
    row: pd.Series  # of `explored.listed`
    picture: np.ndarray  # (size, size, 3) uint8, what the model saw
    heat: np.ndarray  # (size, size) float32 >= 0, raw
    target: str  # the class the heatmap is for
    block: str
    method: str
    caption: str  # name of the image, true and predicted class, probability, threshold
    verdict: str  # of the heatmap checks, on this heatmap


class State(traitlets.HasTraits):
    """A model, its images, and the one that is viewed. Set the traits to drive it: `image`, `target`, `block`, ...

    run: a run folder or an exported model. images: an ImageSet; None: those of the run, found by `originals.images_of`;
    with data="none", or for an exported model, none but your own. split: "test" or "val". order: of the list, one of
    `explored.ORDERS`. A value that does not exist is refused; every other error of a step goes into `error`, in one
    line. Errors: as `inference.Predictor` and `originals.images_of`.
    """

    image = traitlets.Unicode(help="path of the image viewed")
    target = traitlets.Unicode(help='the class the heatmap is for; "": the predicted class')
    block = traitlets.Unicode(help="block of the network after which the heatmap is made")
    method = traitlets.Unicode(next(iter(gradcam.METHODS)), help="method of the heatmap")
    alpha = traitlets.Float(0.45, min=0, max=1, help="opacity of the heatmap on the picture")
    colours = traitlets.Unicode(explored.COLOURS[0], help="colour map")
    outcome = traitlets.Unicode(explored.ALL, help='only images with this outcome; "": all')
    label = traitlets.Unicode(explored.ALL, help='only images of this true class; "": all')
    patient = traitlets.Unicode(explored.ALL, help='only images of this patient; "": all')
    order = traitlets.Unicode(explored.ORDERS[0], help="order of the list")
    note = traitlets.Unicode(help="a note on the image")
    options: traitlets.List = traitlets.List(help="(text, path) of the images that pass the filters")
    seen = traitlets.Any(help="a Look, None before the first image")
    png = traitlets.Bytes(help="the picture on the screen")
    error = traitlets.Unicode(help="the last error, in one line")
    message = traitlets.Unicode(help="what was done last, in one line")

    def __init__(
        self,
        run: str | Path,
        images: ImageSet | None = None,
        data: str | Path = "auto",
        split: str = "test",
        order: str = explored.ORDERS[0],
    ):
        super().__init__()
        self.run, self.predictor = Path(run), inference.Predictor(Path(run))
        self.classes = self.predictor.classes
        self.demo = self.predictor.manifest["demo"]
        self.positive = self.predictor.recipe.positive
        if images is None and str(data) != "none" and (self.run / "run.json").exists():
            images = originals.images_of(self.run, data, split)
        elif images is not None and "split" in images.table:
            images = images.part(split)
        self._images = images
        self.table, self._pixels = self._known(images, split)
        self._warnings: dict[str, tuple[str, ...]] = {}  # by path, of one's own pictures
        self._heats: dict[tuple[str, str, str, str], torch.Tensor] = {}  # (1, h, w) as computed
        self._spreads: dict[str, float | None] = {}  # by path
        self._history = {row["image"]: row for row in explored.notes(self.run)}
        self._checks = self.predictor.checks
        self.computed = 0  # number of heatmaps; none is computed twice
        self.block = gradcam.default_block(self.predictor.model)
        self.order = order
        self._list()
        if self.paths:
            self.image = self.paths[0]
            self._look()
        for names, step in (
            (("outcome", "label", "patient", "order"), self._choose),
            (("image", "target", "block", "method"), self._look),
            (("alpha", "colours"), self._draw),
        ):
            self.observe(lambda _, step=step: self.attempt(step), names)
        # Not an attempt: an error that went away would move the button below a pointer that is just pressing it.
        self.observe(lambda _: self._keep_note(), "note")

    @property
    def paths(self) -> list[str]:
        """The images that pass the filters, in order."""
        return [path for _, path in self.options]

    @property
    def history(self) -> pd.DataFrame:
        """One row per image viewed, the latest last, with the notes; also those of earlier sessions."""
        return pd.DataFrame(list(self._history.values()), columns=list(explored.COLUMNS))

    @property
    def marked(self) -> tuple[str, float] | None:
        """The class that has a threshold, and the threshold; None where the largest probability decides."""
        chosen = self.predictor.threshold
        if self.positive is None or (chosen is None and len(self.classes) > 2):
            return None
        return self.positive, 0.5 if chosen is None else chosen

    @property
    def decision(self) -> Mapping:
        """What the image viewed was judged by: of your own pictures the image alone is known."""
        yours = self.seen.row["outcome"] == explored.YOURS
        return self.predictor.decision() if yours else self.predictor.manifest["decision"] or {}

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about the picture of your own that is viewed, each "code: text"."""
        return self._warnings.get(self.image, ())

    @property
    def spread(self) -> float | None:
        """`Answer.spread` of the image viewed, computed once; None for a model of one network."""
        if self.predictor.members == 1 or not self.image:
            return None
        if self.image not in self._spreads:
            self._spreads[self.image] = self.predictor.answer(self._pixels[self.image]).spread
        return self._spreads[self.image]

    @property
    def figure_note(self) -> str:
        """What stands above every figure: nothing for a model of real images."""
        return manifest.DEMO_NOTE if self.demo else ""

    def choices(self, trait: str) -> list[str]:
        """What the trait can be set to; [] where anything goes."""
        labels, patients = (sorted(set(self.table[name]) - {""}) for name in ("label", "patient"))
        known = {
            "image": list(self.table.index),
            "target": ["", *self.classes],
            "method": list(gradcam.METHODS),
            "block": list(self.predictor.model.block_names),
            "colours": list(explored.COLOURS),
            "outcome": list(explored.OUTCOMES),
            "order": list(explored.ORDERS),
            "label": [explored.ALL, *(c for c in self.classes if c in labels)],
            "patient": [explored.ALL, *patients],
        }
        return known.get(trait, [])

    @traitlets.validate("image", "target", "block", "method", "colours", "outcome", "label", "patient", "order")
    def _refuse_unknown(self, proposal):
        name, value, known = proposal["trait"].name, proposal["value"], self.choices(proposal["trait"].name)
        if value not in known:
            few = nearest(value, known) if len(known) < 30 else f"There are {len(known)}; see explorer.paths"
            raise PathoError("bad_parameter", name, f"is {value!r}, which does not exist", few)
        return value

    def attempt(self, step: Callable, *arguments) -> None:
        """Runs a step of a callback; an error goes into `error`, and with its traceback into the run's run.jsonl."""
        self.error = self.message = ""
        try:
            step(*arguments)
        except Exception as error:  # a callback has no caller that would show it
            self.error = shown(error if isinstance(error, PathoError) else f"{type(error).__name__}: {error}")
            if (self.run / "run.json").exists():
                files.append_error(self.run / "run.jsonl", error)

    def step(self, by: int) -> None:
        """Moves by `by` images in the list, and stops at its ends."""
        paths = self.paths
        at = paths.index(self.image) + by if self.image in paths else 0
        if paths:
            self.image = paths[min(max(at, 0), len(paths) - 1)]

    def add(self, source: str | Path | bytes, name: str = "picture") -> None:
        """Shows a picture of your own, a path or bytes with a name, after the checks that every image passes.

        Errors: as `decoding.read`.
        """
        source = files.given(source) if isinstance(source, str) else source
        name = source.name if isinstance(source, Path) else PurePosixPath(name).name
        square, warnings = self.predictor.look(source, name)
        path = first = f"{explored.YOURS}: {shown(name)}"
        for number in itertools.count(2):
            if path not in self._pixels or np.array_equal(self._pixels[path], square):
                break
            path = f"{first} ({number})"
        if path not in self._pixels:
            answer = self.predictor.answer(square, warnings=warnings)
            told = pd.DataFrame({"path": [path], "label": [""]} | {f"p_{c}": [p] for c, p in answer.probs.items()})
            deciding = decisions.deciding(self.predictor.decision(), self.classes)
            rows = explored.listed(told, self.classes, self.positive, deciding)
            self.table = pd.concat([self.table, rows]) if len(self.table) else rows
            self._pixels[path], self._warnings[path], self._spreads[path] = square, answer.warnings, answer.spread
        self.outcome = self.label = self.patient = explored.ALL
        self._list()
        self.image = path

    def save(self, path: Path | None = None) -> Path:
        """Writes the images viewed, with notes, as CSV: into the run folder, or to `path`."""
        path = files.write_table(Path(path or self.run / explored.NOTES), self.history)
        images, notes = len(self._history), int((self.history["note"] != "").sum())
        self.message = (
            f"Saved {style.counted(images, 'image')} with {style.counted(notes, 'note')} in "
            f"{path.parent.name}/{path.name}"
        )
        return path

    def figure(self, target: str | None = None):
        """The image viewed as a figure, with the probabilities, for a page that shows no widgets.

        target: the class the heatmap is for; None: the one on the screen. Errors: no_images.
        """
        if self.seen is None:
            raise PathoError("no_images", "explorer", "has no image to draw", "Add a picture of your own first")
        look = self.seen if target is None else self._asked(target)
        return heatmaps.explored(
            look.picture,
            look.heat,
            look.target,
            {c: float(look.row[f"p_{c}"]) for c in self.classes},
            self.marked,
            self.alpha,
            self.colours,
            f"{look.caption}, {style.method_name(look.method)} after {look.block}",
            self.figure_note,
            look.method,
            look.verdict,
        )

    def check(self) -> None:
        """Checks the heatmaps of all images with this block and method, for this session; `Study.explain` keeps it.

        Errors: no_images, and those of `trust.examine`.
        """
        if self._images is None:
            raise PathoError("no_images", "explorer", "has no images of the run to check", "Open it with its images")
        self.message = "Checking the heatmaps ..."
        images = replace(self._images, table=self._images.table[self._images.table["path"].isin(self.table.index)])
        predictions = images.table.drop(columns="row").join(self.table.filter(like="p_"), on="path")
        self._checks = trust.examine(
            self.predictor.model,
            images,
            predictions,
            positive=self.positive,
            threshold=self.predictor.deciding,
            block=self.block,
            method=self.method,
        ).facts
        self.message = ""
        self._look()

    def heat(self, path: str, target: str, block: str, method: str) -> torch.Tensor:
        """The raw map (1, h, w) of an image, computed once."""
        key = (path, target, block, method)
        if key not in self._heats:
            self.message = "Computing the heatmap ..."
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
            none = pd.DataFrame(columns=columns)
            return explored.listed(none, self.classes, self.positive, self.predictor.deciding), {}
        size = self.predictor.recipe.cache_size
        if images.pixels.shape[1] != size:
            raise PathoError(
                "bad_images",
                "images",
                f"are {images.pixels.shape[1]} pixels wide, but this model's are cached with {size}",
                "Check them with the size and fit of the model's recipe",
            )
        if (self.run / f"predictions_{split}.csv").exists():
            predictions = decisions.calibrated(self.run, split)
        else:
            batches = np.array_split(images.table["row"].to_numpy(), len(images) // 64 + 1)
            probs = [self.predictor.probabilities(images.pixels[rows]) for rows in batches]
            predictions = predicting.as_predictions(images, np.concatenate(probs))
        rows = dict(zip(images.table["path"], images.table["row"], strict=True))
        predictions = predictions[predictions["path"].isin(rows.keys())]
        if not len(predictions):
            raise PathoError(
                "other_images", "images", f"are none of the run's {split} images", "Give the images of this run"
            )
        return explored.listed(predictions, self.classes, self.positive, self.predictor.deciding), {
            path: images.pixels[rows[path]] for path in predictions["path"]
        }

    def _list(self) -> None:
        left = explored.left_by(self.table, self.outcome, self.label, self.patient, self.order)
        self.options = [
            (f"{explored.MARKS[row.outcome]} {row.predicted} {row.p:.2f}  {explored.short(row.Index)}", row.Index)
            for row in left.itertuples()
        ]

    def _choose(self) -> None:
        self._list()
        if not self.options:
            raise PathoError("none_left", "filters", "leave no image", "Set one of them back to all")
        if self.image not in self.paths:
            self.image = self.paths[0]

    def _asked(self, target: str) -> Look:
        """The image viewed with the heatmap for `target`, "" for the predicted class."""
        row, view = self.table.loc[self.image], self._view(self.image)
        target = target or row["predicted"]
        maps = self.heat(self.image, target, self.block, self.method)
        picture = view[0].permute(1, 2, 0).mul(255).round().byte().numpy()  # (size, size, 3)
        positive, threshold = self.marked if self.marked and len(self.classes) == 2 else (None, None)
        said = gradcam.caption(row["label"], row["predicted"], float(row["p"]), positive, threshold)
        return Look(
            self.image,
            row,
            picture,
            gradcam.upsample(maps, view.shape[-1])[0].numpy(),
            target,
            self.block,
            self.method,
            f"{explored.short(self.image)}: {said}",
            trust.about(self._checks, row["predicted"], target, self.block, self.method),
        )

    def _look(self) -> None:
        self.seen = look = self._asked(self.target)
        before = self._history.pop(look.path, {"note": ""})
        row, blank = look.row, not look.heat.any()
        values = (look.path, row["label"], row["predicted"], round(float(row["p"]), 4), look.target, look.block)
        columns = dict(zip(explored.COLUMNS, (*values, look.method, blank, before["note"]), strict=True))
        self._history[look.path] = columns
        self.note = before["note"]
        self._draw()

    def _keep_note(self) -> None:
        if self.image in self._history:
            self._history[self.image]["note"] = self.note

    def _draw(self) -> None:
        if (look := self.seen) is not None:
            self.png = heatmaps.panels(look.picture, look.heat, look.target, self.alpha, self.colours, look.method)
