"""A trained model at work: pictures in, probabilities and decisions out, by the quickest engine at hand.

ONNX Runtime where it is installed and the model has its `model.onnx`, else PyTorch with every BatchNorm folded away.
Files are read, squared and cut as in training, so a picture has the same pixels here and there; and every picture is
computed alone, so its answer does not depend on the rest of the batch. With PyTorch it equals, to the last bit on one
machine, what `predicting.predict` and `calibration.apply` give in a run; ONNX Runtime differs by less than 1e-4.

Of several networks (`Ensemble`) the probabilities are averaged, then calibrated.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from patholib.base import cpu
from patholib.base.errors import PathoError, nearest
from patholib.data import decoding
from patholib.deploy import loading, onnx_export
from patholib.judge import calibration, decisions, gradcam, novelty, patients, predicting, rules, sets, trust
from patholib.judge.calibration import Calibration
from patholib.model import augment, folding, networks, recipes
from patholib.model.ensembles import Ensemble

ENGINES = ("auto", "onnx", "torch")


class Picture(NamedTuple):
    """A file as the model sees it, and what was odd about it."""

    pixels: np.ndarray  # (S, S, 3) uint8
    warnings: tuple[str, ...]  # each "code: text"


@dataclass(frozen=True)
class Answer:
    """What the model says of one picture."""

    probs: dict[str, float]  # calibrated, of every class, in the model's order; they sum to 1
    decision: str  # the predicted class: by the threshold (two classes, one positive), else the likeliest
    threshold: float | None  # locked on validation images, of the positive class; None: none was, and 0.5 decides
    alert: bool | None  # more than two classes: is the positive one at its threshold? None: there is no such threshold
    none_of_these: bool | None  # unlike the training images, so maybe of none of the classes; None: it is not known
    warnings: tuple[str, ...]  # why to distrust this answer, each "code: text"
    tta: bool  # averaged over several views
    prediction_set: tuple[str, ...] | None  # classes it may be of, see `judge.sets`; None: no sets were locked
    promises: tuple[str, ...]  # what threshold and set promise, in words
    notice: str = ""  # what stands on the model: research use, demo images
    spread: float | None = None  # standard deviation, in [0, 0.5], of the members' probabilities; None: one network

    @property
    def probabilities(self) -> dict[str, float]:
        """`probs`: the calibrated probability of every class."""
        return self.probs

    def to_json(self) -> dict:
        """Plain values, fields in order."""
        fields = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


@dataclass(frozen=True)
class Explanation:
    """Grad-CAM of one picture for the predicted class."""

    predicted: str
    map: np.ndarray  # (H, W) float in [0, 1], divided by its largest value; all 0 where nothing speaks for the class
    overlay: np.ndarray  # (H, W, 3) uint8, the picture as the model saw it, with the map on top
    verdict: str  # of the checks of the run's heatmaps, or that there were none


class Predictor:
    """An exported model, ready to look at pictures, from several threads at once.

    `Predictor(folder)("picture.png")` is the answer for one file, `explain("picture.png")` its heatmap.

    path: the folder of an export or of a finished run, or one of its two files. engine: "onnx", "torch", or "auto" for
    the first that is there. threads: of the processor, None for one a core; with PyTorch they are those of the whole
    process. sha256: see `loading.classifier`. `manifest` says what the model is, `engine` what computes, `sha256` which
    weights, `demo` whether they have seen nothing but generated images.
    Errors: as `loading.classifier`; no_engine, onnx_damaged.
    """

    def __init__(self, path: Path, engine: str = "auto", *, threads: int | None = None, sha256: str | None = None):
        if engine not in ENGINES:
            raise PathoError("bad_parameter", "engine", f"is {engine!r}", nearest(engine, ENGINES))
        self.model, self.manifest = loading.classifier(path, sha256)
        self.recipe = recipes.from_json(self.manifest["recipe"])
        self.classes, self.positive = tuple(self.manifest["classes"]), self.manifest["positive"]
        self.temperature, self.threshold = self.manifest["temperature"], self.manifest["threshold"]
        decision = self.manifest["decision"] or {"temperature": self.temperature, "threshold": self.threshold}
        self._decisions = {averaged: decisions.for_views(decision, averaged) for averaged in (False, True)}
        self.patient = tuple(decision.get("patient") or ())  # the columns with data of the patient that were locked
        self.deciding = decisions.deciding(decision, self.classes)  # of one view, what `rules.predicted` takes
        self.sha256, self.demo = self.manifest["weights"]["sha256"], self.manifest["demo"]
        self.familiar = self.manifest["novelty"] and novelty.from_json(self.manifest["novelty"])
        self.folder = Path(path) if Path(path).is_dir() else Path(path).parent
        graph = onnx_export.onnx_file(path, self.manifest)
        installed = util.find_spec("onnxruntime") is not None
        if engine == "onnx" and not (graph and installed):
            raise PathoError(
                "no_engine",
                "engine",
                "is onnx, but " + ("the export has no model.onnx" if installed else "onnxruntime is not installed"),
                'Call onnx_export.to_onnx(folder), or engine="torch"' if installed else 'pip install "patholib[onnx]"',
            )
        self.members = self.manifest.get("members", 1)
        if graph and installed and engine != "torch":
            self.engine, self._logits = "onnx", _onnx(graph, threads)
        else:
            self.engine, self._logits = "torch", _torch(self.model, threads)

    def __call__(self, source, *, tta: bool = False, patient: Mapping[str, str] | None = None) -> Answer:
        """The answer for one file, bytes or an open file.

        patient: the value of every column that the lock was given, "" where unknown (`judge.patients`); None: by the
        decision of the image alone. Errors: as `decoding.read`; bad_parameter.
        """
        seen = self.look(source)
        answer = self.answer(seen.pixels, tta, seen.warnings, patient)
        return dataclasses.replace(answer, notice=self.manifest["notice"])

    def explain(self, source) -> Explanation:
        """The heatmap of one file, bytes or an open file, with the verdict of the run's checks of heatmaps."""
        from patholib.report.figures import heatmaps  # with it comes matplotlib, which the server does without

        seen = self.look(source)
        predicted = self.answer(seen.pixels).decision
        picture, heat = self.heatmap(seen.pixels, predicted)
        return Explanation(predicted, heat, heatmaps.overlay(picture, heat), self.heat_verdict(predicted))

    @functools.cached_property
    def checks(self) -> dict | None:
        """trust.json of the run, None where its heatmaps were not checked. Errors: bad_json."""
        return trust.known(self.folder)

    def heat_verdict(self, decision: str) -> str:
        """What the checks of the run say of the heatmap of a picture with this decision."""
        return trust.about(self.checks, decision, decision, gradcam.default_block(self.model))

    def logits(self, views: torch.Tensor) -> np.ndarray:
        """Views (N, 3, size, size) in [0, 1] to logits float32, each computed alone. Errors: model_output.

        (N, C), or of several networks (N, members, C).
        """
        logits = self._logits(views)
        if not np.isfinite(logits).all():
            raise PathoError(
                "model_output",
                self.manifest["run"] or "model",
                "gave logits that are not finite",
                "Export another checkpoint",
            )
        return logits

    def decision(self, tta: bool = False, patient: Mapping | None = None) -> Mapping:
        """What was locked for these views, with or without data of the patient. Errors: bad_parameter."""
        decision = self._decisions[tta]
        if patient is None:
            return decision.get(decisions.ALONE, decision)
        known = decision.get("patient") or {}
        if patient.keys() != known.keys():
            remedy = f"Give a value of each of {', '.join(known)}" if known else "Leave it out: the lock had none"
            raise PathoError("bad_parameter", "patient", f"names {', '.join(patient) or 'nothing'}", remedy)
        return decision

    def probabilities(self, pixels: np.ndarray, tta: bool = False, patient: Mapping | None = None) -> np.ndarray:
        """Pictures (N, S, S, 3) uint8, as `read` gives them, to calibrated probabilities (N, C), float64, sums 1.

        tta: averaged over the recipe's views, before the calibration of averaged views. The same for every picture: of
        seeded random views, as published, every picture gets those of a set's first image. patient: see `__call__`.
        """
        return self._calibrated(self._raw(pixels, tta).mean(axis=1), tta, patient)

    def _calibrated(self, raw: np.ndarray, tta: bool, patient: Mapping | None) -> np.ndarray:
        decision = self.decision(tta, patient)
        probs = calibration.apply(raw, Calibration.of(decision, self.classes))
        if patient is None:
            return probs
        return patients.apply(probs, {k: [v] * len(raw) for k, v in patient.items()}, self.classes, decision["patient"])

    def _raw(self, pixels: np.ndarray, tta: bool) -> np.ndarray:
        """The probabilities of pictures (N, S, S, 3) as each network gives them, (N, members, C)."""
        found = [np.empty((0, self.members, len(self.classes)))]
        for picture in pixels:
            views = augment.views_to_judge(picture[None], self.recipe, tta, np.zeros(1, int))  # (views, 1, 3, H, W)
            logits = torch.from_numpy(self.logits(views.flatten(0, 1)))
            found.append(predicting.probabilities(logits.view(len(logits), self.members, -1))[None])
        return np.concatenate(found)

    def _spread(self, raw: np.ndarray, tta: bool, patient: Mapping | None, classes: np.ndarray) -> list[float | None]:
        """`Answer.spread` of each picture for its class, from `_raw`; every member calibrated as their mean is."""
        if self.members == 1:
            return [None] * len(raw)
        each = self._calibrated(raw.reshape(-1, raw.shape[2]), tta, patient).reshape(raw.shape)
        return each.std(axis=1)[np.arange(len(raw)), classes].tolist()

    def look(self, source, name: str | None = None) -> Picture:
        """A file, bytes or an open file as the square that `answer` takes, with what was odd about it.

        name: how an error calls it. Errors: as `decoding.read`.
        """
        image = decoding.read(source, name)
        square = decoding.to_square(image, self.recipe.cache_size, self.recipe.fit)
        notes = image.warnings  # type: ignore[attr-defined]  # of `decoding.read`
        return Picture(square, self.oddities(image.size, notes))

    def oddities(self, size: tuple[int, int], notes: Iterable[decoding.Note]) -> tuple[str, ...]:
        """What `look` says of a picture of this size (width, height) and these notes, where it was read elsewhere."""
        odd = [f"{note.code}: {note.reason}" for note in notes if note.code != "greyscale"]  # see `answer`
        smallest = self.manifest["smallest_side"] or self.recipe.image_size
        if min(size) < min(smallest, self.recipe.image_size):
            odd.append(
                f"small: is {size[0]} x {size[1]} pixels, which is less than the model sees "
                f"({self.recipe.image_size}) and was trained on: it was enlarged"
            )
        return tuple(odd)

    def read(self, source, name: str | None = None) -> np.ndarray:
        """A file, bytes or an open file as the square (S, S, 3) uint8 that `probabilities` takes."""
        return self.look(source, name).pixels

    def answer(
        self, pixels: np.ndarray, tta: bool = False, warnings: Sequence[str] = (), patient: Mapping | None = None
    ) -> Answer:
        """What the model says of one picture (S, S, 3) uint8; warnings: those that `look` gave; patient: `__call__`."""
        return self.answers(pixels[None], tta, [warnings], patient)[0]

    def answers(
        self,
        pixels: np.ndarray,
        tta: bool = False,
        warnings: Sequence[Sequence[str]] | None = None,
        patient: Mapping | None = None,
    ) -> list[Answer]:
        """What the model says of each picture (N, S, S, 3) uint8 of a patient; warnings: of each, those of `look`."""
        raw, decision = self._raw(pixels, tta), self.decision(tta, patient)
        probs = self._calibrated(raw.mean(axis=1), tta, patient)
        predicted = rules.predicted(probs, self.classes, self.positive, decisions.deciding(decision, self.classes))
        threshold = decision.get("threshold")
        alerts = len(self.classes) > 2 and self.positive is not None and threshold is not None
        unlocked = tta and self.manifest["decision"] and self.recipe.tta_views > 1
        unlocked = unlocked and self._decisions[True] is self._decisions[False]
        lacking = [f"plain_lock: {decisions.PLAIN_LOCK}"] if unlocked else []
        if self.patient and patient is None:
            lacking.append(f"image_alone: the model also takes {', '.join(self.patient)}, which were not given")
        promises = self.promises(decision)
        answers = []
        warnings, those = warnings or [()] * len(pixels), self.prediction_sets(probs, decision)
        spreads = self._spread(raw, tta, patient, predicted)
        for picture, row, k, own, known, spread in zip(
            pixels, probs.tolist(), predicted, those, warnings, spreads, strict=True
        ):
            named = dict(zip(self.classes, row, strict=True))
            alert = named[self.positive] >= threshold if alerts else None
            reasons = self._unfamiliar(picture)
            none, why = bool(reasons) if self.familiar else None, (*reasons, *known, *lacking)
            answers.append(
                Answer(named, self.classes[k], threshold, alert, none, why, tta, own, promises, spread=spread)
            )
        return answers

    def promises(self, decision: Mapping) -> tuple[str, ...]:
        """What the locked sets, threshold and limit of the familiar promise for new patients, in words."""
        said = [decision[name]["words"] for name in ("sets", "promise") if decision.get(name)]
        return (*said, *filter(None, [self.familiar and self.familiar.words]))

    def prediction_sets(self, probs: np.ndarray, decision: Mapping) -> list[tuple[str, ...] | None]:
        """The classes in the set of each image with calibrated probabilities (N, C); None where no sets were locked."""
        if "sets" not in decision:
            return [None] * len(probs)
        inside = sets.members(probs, self.classes, decision, decisions.deciding(decision, self.classes))
        return [tuple(np.array(self.classes, dtype=object)[row]) for row in inside]

    def _unfamiliar(self, picture: np.ndarray) -> list[str]:
        if self.familiar is not None:
            return self.familiar.reasons(picture)
        if novelty.colourless(picture):
            return ["greyscale: has no colour; all three colour channels are equal"]
        return []

    def heat(self, pixels: np.ndarray, classes=None, block: str | None = None, method: str = "gradcam") -> gradcam.Heat:
        """Grad-CAM of each picture (N, S, S, 3) for a class, by default the likeliest: see `gradcam.heat`.

        Always by PyTorch, whatever `engine` is, and no state is left. block: None for the last that can tell where.
        Errors: as `gradcam.heat`.
        """
        views = augment.plain_views(pixels, self.recipe.image_size)
        return gradcam.heat(self.model, views, classes, block or self._block, method)

    def heatmap(self, pixels: np.ndarray, of: str) -> tuple[np.ndarray, np.ndarray]:
        """What the model sees of a picture (S, S, 3), and its Grad-CAM for a class: (H, W, 3) uint8, (H, W) in [0, 1].

        All 0 where nothing argues for the class.
        """
        size = self.recipe.image_size
        maps = self.heat(pixels[None], [self.classes.index(of)]).maps
        view = augment.plain_views(pixels[None], size)[0].permute(1, 2, 0)  # (H, W, 3)
        heat = gradcam.normalise(gradcam.upsample(maps, size))[0]
        return view.mul(255).round().to(torch.uint8).numpy(), heat.numpy()

    @functools.cached_property
    def _block(self) -> str:
        return gradcam.default_block(self.model)

    def predict(self, sources: Iterable, tta: bool = False) -> np.ndarray:
        """Files, bytes or open files to probabilities (N, C)."""
        pixels = [self.read(source) for source in sources]
        return self.probabilities(np.stack(pixels), tta) if pixels else np.empty((0, len(self.classes)))


def _torch(model: networks.Classifier | Ensemble, threads: int | None):
    if threads is not None:
        torch.set_num_threads(threads)
    network = folding.for_prediction(model)
    each = network.each if isinstance(network, Ensemble) else network
    return lambda views: predicting.one_by_one(each, views).numpy()


def _onnx(graph: bytes, threads: int | None):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or cpu.cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # beside a busy core spinning costs most
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def logits(views: torch.Tensor) -> np.ndarray:
        one = views.contiguous().numpy()
        each = [session.run(None, {onnx_export.ONNX_INPUT: one[i : i + 1]})[-1] for i in range(len(one))]
        return np.concatenate(each)  # the last output: of each member, where there are several

    return logits
