"""The exported model as ONNX, checked against PyTorch."""

from __future__ import annotations

import contextlib
import hashlib
import io
import warnings
from pathlib import Path

import torch
from torch import nn

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.deploy import loading
from patholib.model import ensembles
from patholib.model.ensembles import Ensemble

ONNX, ONNX_FACTS, ONNX_INPUT = "model.onnx", "model.onnx.json", "images"
ALIKE = 1e-4  # how far a probability of ONNX Runtime may be from PyTorch's


def to_onnx(folder: Path, views: torch.Tensor | None = None) -> Path:
    """Writes `model.onnx` beside an exported model: images (N, 3, size, size) in [0, 1] to logits (N, C).

    Several networks stand in it side by side; it averages them, and has a second output, `members` (N, members, C), the
    logits of each. BatchNorm is folded away. The file is only kept if ONNX Runtime gives PyTorch's probabilities to
    1e-4, on noise and on `views` (N, 3, size, size), say of some test images; the difference stands in
    `model.onnx.json`. Needs the extra `onnx`. Errors: as `load_model`; not_installed, onnx_differs.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401, torch.onnx.export is made with it
    except ImportError as error:
        raise PathoError(
            "not_installed", error.name or "onnx", "is needed to write model.onnx", 'pip install "patholib[onnx]"'
        ) from error
    folder = Path(folder)
    model, manifest = loading.classifier(folder)
    size = manifest["image_size"]
    seen = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    seen = seen if views is None else torch.cat([seen, views.float().contiguous()])
    content = _graph(model, seen[:2])
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    theirs = map(torch.from_numpy, session.run(None, {ONNX_INPUT: seen.numpy()}))
    with torch.inference_mode():
        ours = _Outputs(model)(seen)
    difference = max(
        float((a.double().softmax(-1) - b.double().softmax(-1)).abs().max()) for a, b in zip(theirs, ours, strict=True)
    )
    if not difference <= ALIKE:
        raise PathoError(
            "onnx_differs",
            str(folder / ONNX),
            f"would give probabilities that differ by {difference:.2g}, more than {ALIKE:g}",
            "Predict with PyTorch, or try another version of onnxruntime",
        )
    files.write_bytes(folder / ONNX, content)
    files.write_json(
        folder / ONNX_FACTS,
        {
            "file": ONNX,
            "sha256": hashlib.sha256(content).hexdigest(),
            "weights_sha256": manifest["weights"]["sha256"],
            "max_difference": difference,
            "compared": len(seen),
            "notice": manifest["notice"],
        },
    )
    return folder / ONNX


class _Outputs(nn.Module):
    """A network whose outputs are those of its graph: (logits,), or of an `Ensemble` (logits, members)."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if not isinstance(self.network, Ensemble):
            return (self.network(images),)
        each = self.network.each(images)
        return ensembles.together(each), each


def _graph(model: nn.Module, two: torch.Tensor) -> bytes:
    """The network in ONNX, for any number of views like those two."""
    from patholib.model import folding

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # progress that is of no use here
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Outputs(folding.folded(model)),
            (two,),
            dynamo=True,
            input_names=[ONNX_INPUT],
            output_names=["logits", *["members"] * isinstance(model, Ensemble)],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None  # None comes with dynamo=False alone
    return program.model_proto.SerializeToString()


def onnx_file(path: Path, manifest: dict) -> bytes | None:
    """The bytes of an exported model's `model.onnx`, None where there is none. Errors: onnx_damaged, missing_file."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    if not (folder / ONNX).exists():
        return None
    facts, content = files.read_json(folder / ONNX_FACTS), files.read_bytes(folder / ONNX)
    said = [facts.get(key) for key in ("sha256", "weights_sha256")] if isinstance(facts, dict) else []
    if said != [hashlib.sha256(content).hexdigest(), manifest["weights"]["sha256"]]:
        raise PathoError(
            "onnx_damaged",
            str(folder / ONNX),
            f"is not the file that {ONNX_FACTS} describes, or belongs to other weights",
            "Delete both and write them again with onnx_export.to_onnx",
        )
    return content
