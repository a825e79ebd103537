"""A trained model at work: pictures in, probabilities out, by the quickest engine at hand.

ONNX Runtime where it is installed and the model has its `model.onnx`, else PyTorch with every BatchNorm folded away.
Files are read, squared and cut as in training, so a picture has the same pixels here and there.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import util
from pathlib import Path

import numpy as np
import torch

from patholib import augment, export, images, models, recipes
from patholib.errors import PathoError, nearest

ENGINES = ("auto", "onnx", "torch")


class Predictor:
    """An exported model, ready to look at pictures.

    path: the folder of an export, or one of its two files. engine: "onnx", "torch", or "auto" for the first that is
    there. threads: of the processor, None for one a core. `manifest` says what the model is, `engine` what computes.
    Errors: as `export.load_model`; no_engine.
    """

    def __init__(self, path: Path, engine: str = "auto", threads: int | None = None):
        if engine not in ENGINES:
            raise PathoError("bad_parameter", "engine", f"is {engine!r}", nearest(engine, ENGINES))
        self.model, self.manifest = export.classifier(path)
        self.recipe = recipes.from_json(self.manifest["recipe"])
        self.classes = tuple(self.manifest["classes"])
        graph = export.onnx_file(path, self.manifest)
        installed = util.find_spec("onnxruntime") is not None
        if engine == "onnx" and not (graph and installed):
            raise PathoError("no_engine", "engine", "is onnx, but " + (
                "the export has no model.onnx" if installed else "onnxruntime is not installed"),
                'Call export.to_onnx(folder), or engine="torch"' if installed else 'pip install "patholib[onnx]"')
        self.engine = "onnx" if graph and installed and engine != "torch" else "torch"
        self._logits = _onnx(graph, threads) if self.engine == "onnx" else _torch(self.model)

    def logits(self, views: torch.Tensor) -> np.ndarray:
        """Views (N, 3, size, size) in [0, 1] to logits (N, C) float32. Errors: model_output."""
        found = self._logits(views)
        if not np.isfinite(found).all():
            raise PathoError("model_output", self.manifest["run"] or "model", "gave logits that are not finite",
                             "Export another checkpoint")
        return found

    def probabilities(self, pixels: np.ndarray, tta: bool = False) -> np.ndarray:
        """Pictures (N, S, S, 3) uint8, as `read` gives them, to probabilities (N, C), summing to 1, float64.

        tta: averaged over the recipe's views, which are computed as one batch.
        """
        number = len(pixels)
        views = augment.views_to_judge(pixels, self.recipe, tta, np.arange(number))
        found = torch.from_numpy(self.logits(views.flatten(0, 1)))  # (views * N, C)
        return found.double().softmax(dim=1).unflatten(0, (-1, number)).mean(dim=0).numpy()

    def read(self, source, name: str | None = None) -> np.ndarray:
        """A file, bytes or an open file as the square (S, S, 3) uint8 that `probabilities` takes."""
        return images.to_square(images.read(source, name), self.recipe.cache_size, self.recipe.fit)

    def predict(self, sources: Iterable, tta: bool = False) -> np.ndarray:
        """Files, bytes or open files to probabilities (N, C)."""
        pixels = [self.read(source) for source in sources]
        return self.probabilities(np.stack(pixels), tta) if pixels else np.empty((0, len(self.classes)))


def _torch(model: models.Classifier):
    small = models.folded(model).to(memory_format=torch.channels_last)

    def logits(views: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            return small(views.contiguous(memory_format=torch.channels_last)).numpy()

    return logits


def _onnx(graph: bytes, threads: int | None):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or images.cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # beside a busy core spinning costs most
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda views: session.run(None, {export.ONNX_INPUT: views.contiguous().numpy()})[0]
