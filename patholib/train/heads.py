"""A fitted head: the images pass once through a frozen network, and a logistic regression of what it gives is the head.

Reading order: `fit`, the fits themselves in `_fitted`, what the network gives, and where that is kept, in `features`.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.base.progress import say
from patholib.data import caching
from patholib.data.imagesets import ImageSet
from patholib.judge import predicting, rivals
from patholib.model import losses, overriding
from patholib.model.networks import Classifier
from patholib.train import checkpoints, feeding, loop
from patholib.train.runs import Run
from patholib.train.stopping import Stop

DOES_NOT_APPLY = (
    "No block learns: a linear head is fitted to the frozen network. Augmentation, loss, class balance, learning rate, "
    "schedule, batch size and epochs of the recipe do not apply."
)


def fit(model: Classifier, images: ImageSet, run: Run, device: torch.device, max_hours: float | None) -> pd.DataFrame:
    """Fits the head of `model` on the train part of `images`; returns the history, one row per strength that was tried.

    Of the regressions with each of `rivals.STRENGTHS` the one with the lowest log loss on the validation images is
    kept. Writes the same files as any training; a finished one is not repeated. The errors are those of `training.fit`.
    """
    if run.recipe != overriding.overridden(run.recipe):
        raise PathoError(
            "bad_recipe", "recipe", "has fields that a fitted head has not", 'Use overridden(recipe, train="head")'
        )
    done = files.read_json(run.dir / "run.json").get("training")
    kept = checkpoints.load(run.dir / "checkpoints", "best", done["best_epoch"], ("model", "history")) if done else None
    if kept:
        say("the head is fitted already; its weights are loaded")
    else:
        say(DOES_NOT_APPLY)
        with Stop(max_hours) as stop:
            kept = _fitted(model.to(device), images, run, stop)
        checkpoints.save(run.dir / "checkpoints", "best", kept["row"]["epoch"], kept)
        run.update(status="trained", training=_facts(kept, run, device), weights=model.weights_source)
    model.load_state_dict(kept["model"])
    history = pd.DataFrame(kept["history"])
    files.write_table(run.dir / "history.csv", history)
    files.write_json(run.dir / "history.json", kept["history"])
    return history


def _fitted(model: Classifier, images: ImageSet, run: Run, stop: Stop) -> dict:
    """The state to keep: model, history and, of the strength that was chosen, its row; there is no optimizer."""
    recipe, train, val = run.recipe, images.part("train"), images.part("val")
    feeding.check_classes(train, val)

    def leave_if_requested() -> None:
        if stop.requested:  # the views that are done are on disk
            raise stop.error(run.dir.name)

    # The views whose mean is judged, each as an image. IDC, 616 patches, five grouped folds, AUC on the plain view:
    # 0.910; fitted on the plain view alone 0.895, on the mean of the features of all views 0.893.
    views = recipe.tta_views if recipe.tta == "dihedral" else 1
    started = time.perf_counter()
    learnt = np.concatenate([features(model, train, view, leave_if_requested) for view in range(views)])  # (V N, K)
    asked = features(model, val, 0, leave_if_requested)
    labels, counts = np.tile(train.labels, views), np.bincount(train.labels, minlength=len(recipe.classes))
    history: list[dict[str, Any]] = []
    kept: dict[str, Any] = {}
    for strength, weights, bias in rivals.regressions(learnt, labels, len(recipe.classes), views):
        weights, bias = weights.astype(np.float32), bias.astype(np.float32)  # as the head has them
        logits = [torch.from_numpy(some @ weights.T + bias) for some in (learnt, asked)]  # (V N, C), (N, C)
        row: dict[str, Any] = {
            "epoch": len(history) + 1,
            "strength": strength,
            "lr": None,
            "frozen": model.frozen,
            "trainable_share": model.trainable_share(),
            "train_loss": float(losses.build(recipe, counts)(logits[0], torch.from_numpy(labels))),
            "train_accuracy": float((logits[0].argmax(1).numpy() == labels).mean()),
            **loop.scores(logits[1], val, recipe, counts),
            "seconds": time.perf_counter() - started,  # of the first one with the passes through the network
        }
        row["gap"] = row["train_accuracy"] - row["val_accuracy"]
        history.append(row)
        better = not kept or row["val_loss"] < kept["row"]["val_loss"]
        say(
            f"strength C {strength:<7g}  train loss {row['train_loss']:.4f}  val loss {row['val_loss']:.4f}"
            f"{' *' if better else ''}"  # the lowest so far
        )
        if better:
            kept = {"model": _with_head(model, weights, bias), "row": row, "optimizer": {}}
        started = time.perf_counter()
    return kept | {"history": history, "prior": losses.effective_prior(recipe, counts).to_dict()}


def _with_head(model: Classifier, weights: np.ndarray, bias: np.ndarray) -> dict[str, torch.Tensor]:
    """The state of the model on the CPU with this head, weights (C, K) and bias (C,)."""
    head = f"net.{model.architecture.head}"
    fitted = {f"{head}.weight": torch.from_numpy(weights), f"{head}.bias": torch.from_numpy(bias)}
    return {name: tensor.cpu() for name, tensor in (model.state_dict() | fitted).items()}


def features(model: Classifier, images: ImageSet, view: int, after_batch: Callable[[], None]) -> np.ndarray:
    """`predicting.pooled` of one view of every image, (N, K): read from the image cache's folder, computed where new.

    A file there belongs to one network with its weights, one size and one view, and knows images by their pixels.
    """
    key = _key(model, view)
    seen = [hashlib.blake2b(images.pixels[row].tobytes(), digest_size=16).digest() for row in images.table["row"]]
    path = caching.folder() / f"{key[:24]}.features"
    known = _read(path, key)
    new = [place for place, image in enumerate(seen) if image not in known]
    say(f"features of view {view + 1}: {len(seen) - len(new):,} known, {len(new):,} to compute")
    if new:
        some = replace(images, table=images.table.iloc[new].reset_index(drop=True))
        made = predicting.pooled(model, some, view, after_batch=after_batch)
        known |= zip((seen[place] for place in new), made, strict=True)
        _write(path, key, known)
    return np.stack([known[image] for image in seen])


def _key(model: Classifier, view: int) -> str:
    """A digest of all that decides the features of an image."""
    digest = hashlib.sha256(f"{model.arch} {model.architecture.normalization} {model.image_size} {view}".encode())
    for name, tensor in model.net.state_dict().items():
        if not name.startswith(model.added):
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path, key: str) -> dict[bytes, np.ndarray]:
    """{digest of an image: its features (K,)}; {} where there is no such file, or not as it was written."""
    if not path.is_file():
        return {}
    content = files.read_bytes(path)
    if content[:32] != hashlib.sha256(key.encode() + content[32:]).digest():
        say(f"{path.name} is damaged, or of another network: its features are computed again")
        return {}
    with np.load(io.BytesIO(content[32:])) as held:
        return dict(zip(map(bytes, held["images"]), held["features"], strict=True))


def _write(path: Path, key: str, known: dict[bytes, np.ndarray]) -> None:
    """A digest of key and content, then the content; where it cannot be written, that is said."""
    stream = io.BytesIO()
    images = np.frombuffer(b"".join(known), np.uint8).reshape(len(known), -1)  # (N, 16)
    np.savez(stream, images=images, features=np.stack(list(known.values())))
    content = stream.getvalue()
    try:
        files.write_bytes(path, hashlib.sha256(key.encode() + content).digest() + content)
    except PathoError as error:
        say(f"features not kept, the fit continues: {error}")


def _facts(kept: dict, run: Run, device: torch.device) -> dict:
    """What run.json keeps, as of any training (`loop.facts`) as far as it has a meaning."""
    row, monitored = kept["row"], f"val_{run.recipe.monitor}"
    return {
        "ended": "head fitted",
        "epochs": len(kept["history"]),
        "best_epoch": row["epoch"],
        "strength": row["strength"],
        f"best_{monitored}": row[monitored],
        "device": str(device),
        "precision": run.recipe.precision,
        "processes": 1,
        "effective_prior": kept["prior"],
        "seconds": sum(one["seconds"] for one in kept["history"]),
    }
