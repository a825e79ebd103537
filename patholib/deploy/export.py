"""Writes the exported model of a run, and copies it with all that belongs to it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch

from patholib import __version__
from patholib.base import files
from patholib.base.errors import PathoError, shown
from patholib.data.readers import sources
from patholib.deploy import exportformat, loading, onnx_export, published
from patholib.judge import decisions, novelty, trust
from patholib.model import recipes
from patholib.model.recipes import Recipe
from patholib.train import checkpoints, resumable

if TYPE_CHECKING:
    from patholib.data.imagesets import ImageSet

# Copied with a model where they are: the cards, and the verdict on its heatmaps.
CARDS = ("model_card.md", "model_card.html", "data_card.md", "data_card.html", trust.FILE)
FILES = (exportformat.WEIGHTS, exportformat.MANIFEST)


def save_model(
    folder: Path,
    model_state: Mapping[str, torch.Tensor] | Sequence[Mapping[str, torch.Tensor]],
    recipe: Recipe,
    *,
    run: str = "",
    data_sha256: str = "",
    demo: bool = False,
    epoch: int | None = None,
    threshold: float | None = None,
    temperature: float | None = None,
    decision: Mapping | None = None,
    origin: Mapping | None = None,
    smallest_side: int | None = None,
    familiar: Mapping | None = None,
) -> Path:
    """Writes `model.safetensors` and `model.json` into `folder`; returns the manifest's path.

    model_state: of a network, or of each member of an `Ensemble`. run: the run's name; data_sha256: of its manifest of
    images; epoch from 1. threshold and temperature: chosen on the validation images, None where they were not;
    decision: how, as decision.json says it, which then gives the two. origin: what is known of ORIGIN. smallest_side:
    pixels, of any training image. familiar: `novelty.Familiar.to_json`.
    Errors: nonfinite_weights, class_mismatch, bad_manifest.
    """
    folder, recipe, (state, members) = Path(folder), recipes.without_folders(recipe), _plain(model_state)
    if decision is not None:
        threshold, temperature = decision["threshold"], decision["temperature"]
    use = (
        f"Research on images of the kind it was trained on, one at a time: which of {', '.join(recipe.classes)} "
        "each belongs to. Nothing it says may decide about a patient."
    )
    facts = {
        "format": exportformat.FORMAT,
        **exportformat.of_recipe(recipe),
        **members,
        "threshold": threshold,
        "temperature": temperature,
        "decision": dict(decision) if decision is not None else None,
        "recipe": recipe.to_json(),
        "run": shown(run),
        "epoch": epoch,
        "data_sha256": data_sha256,
        "origin": dict.fromkeys(exportformat.ORIGIN, "") | dict(origin or {}),
        "smallest_side": smallest_side,
        "demo": demo,
        "intended_use": use,
        "notice": f"{exportformat.DEMO_NOTICE} {exportformat.NOTICE}" if demo else exportformat.NOTICE,
        "patholib": __version__,
        "novelty": dict(familiar) if familiar is not None else None,
    }
    # One key alone: safetensors writes several in a random order, and the same model would have many digests.
    weights = safetensors.torch.save(state, metadata={exportformat.FACTS: files.digest(facts)})
    manifest = {**facts, "weights": loading.of_weights(weights, state)}
    manifest = {**manifest, "manifest_sha256": files.digest(manifest)}
    exportformat.check_manifest(manifest, folder / exportformat.MANIFEST)
    loading.check_weights(state, manifest, folder / exportformat.WEIGHTS)
    files.write_bytes(folder / exportformat.WEIGHTS, weights)  # first: no manifest without its weights
    return files.write_json(folder / exportformat.MANIFEST, manifest)


def _plain(model_state) -> tuple[dict[str, torch.Tensor], dict]:
    """The tensors of `save_model`, those of a member under its number, and what the manifest says of members."""
    if isinstance(model_state, Mapping):
        return published.plain_state(model_state), {}
    each = [published.plain_state(one) for one in model_state]
    state = {f"{number}.{name}": tensor for number, one in enumerate(each) for name, tensor in one.items()}
    return state, {"members": len(each)}


def write(run_dir: Path, images: ImageSet | None = None, *, onnx: bool = False, optimizer: bool = False) -> list[Path]:
    """Exports the best epoch of a finished training: model.safetensors, model.json and published.pt; returns them.

    Everything is read from the run folder; temperature and threshold from its decision.json, None where there is none.
    images: the run's, with their split: `novelty` is learnt from them where the decision does not hold it; without them
    it is taken from an earlier export of the same run. onnx: `to_onnx` too, which takes seconds. optimizer:
    published.pt holds its state too. Errors: missing_file, checkpoint_damaged, nothing_trained, val_changed; with onnx,
    those of `to_onnx`.
    """
    run_dir = Path(run_dir)
    facts = files.read_json(run_dir / "run.json")
    if "training" not in facts:
        raise PathoError("nothing_trained", str(run_dir), "has no finished training", "Train first")
    recipe, best = recipes.from_json(facts["recipe"]), facts["training"]["best_epoch"]
    kept = _kept(run_dir, facts, "Restore the folder from a copy, or train again")
    row, data, earlier = kept["row"], facts["data"], _earlier(run_dir, facts)
    decision, own = _decision(run_dir)
    familiar = own or (novelty.learn(images).to_json() if images is not None else earlier.get("novelty"))
    save_model(
        run_dir,
        kept["model"],
        recipe,
        run=facts["name"],
        data_sha256=data["images_sha256"],
        demo=facts["demo"],
        epoch=best,
        decision=decision,
        origin=_origin(facts),
        smallest_side=_smallest_side(run_dir),
        familiar=familiar,
    )
    published.write(
        run_dir / exportformat.PUBLISHED,
        kept["model"],
        recipe,
        epoch=best,
        best_auc=row["val_auc"],
        optimizer_state=kept["optimizer"] if optimizer else None,
        frozen_blocks=row["frozen"],
        validation={name: value for name, value in row.items() if name.startswith("val_")},
    )
    written = [run_dir / exportformat.WEIGHTS, run_dir / exportformat.MANIFEST, run_dir / exportformat.PUBLISHED]
    for name in (onnx_export.ONNX, onnx_export.ONNX_FACTS):  # they would belong to other weights
        (run_dir / name).unlink(missing_ok=True)
    if onnx:
        from patholib.model.augment import plain_views

        views = None if images is None else plain_views(images.part("val").pictures[:16], recipe.image_size)
        written.append(onnx_export.to_onnx(run_dir, views))
    return written


def write_folds(folder: Path, facts: Mapping, images: ImageSet) -> Path:
    """Exports the trainings of a cross-validation as one model, an `Ensemble`, into its folder; returns model.json.

    facts: of cross_validation.json, whose decision, chosen on the predictions out of fold, is locked with it. images:
    as of `write`, under the split of one fold. Errors: missing_file, where a fold is not there; checkpoint_damaged.
    """
    states, runs = [], [Path(folder, run["run"]) for run in facts["runs"]]
    for run_dir in runs:
        remedy = f"Restore it from a copy; or delete {run_dir.name} and cross-validate again, which trains it anew"
        if not (run_dir / "run.json").exists():
            raise PathoError("missing_file", str(run_dir), "is a fold of this model, and is not there", remedy)
        states.append(_kept(run_dir, files.read_json(run_dir / "run.json"), remedy)["model"])
    return save_model(
        folder,
        states,
        recipes.from_json(facts["recipe"]),
        run=facts["name"],
        data_sha256=facts["images_sha256"],
        demo=facts["demo"],
        decision=facts["decision"],
        origin=_origin(files.read_json(runs[0] / "run.json")) | {"fingerprint": "", "split_sha256": ""},
        smallest_side=_smallest_side(runs[0]),
        familiar=novelty.learn(images).to_json(),
    )


def _kept(run_dir: Path, facts: Mapping, remedy: str) -> dict:
    """Model, optimizer and row of the best epoch: of its checkpoint, or after that was deleted of published.pt.

    facts: of run.json. Errors: missing_file, checkpoint_damaged.
    """
    best = facts["training"]["best_epoch"]
    if facts.get("checkpoints") == resumable.DELETED:
        found = published.read(run_dir / exportformat.PUBLISHED)
        row = files.read_json(run_dir / "history.json")[best - 1]
        return {"model": found["model_state"], "optimizer": found["optimizer_state"], "row": row}
    kept = checkpoints.load(run_dir / "checkpoints", "best", best, holds=("model", "optimizer", "row"))
    if kept is None:
        reason = f"holds no weights of the best epoch ({best})"
        raise PathoError("missing_file", str(run_dir / "checkpoints"), reason, remedy)
    return kept


def _earlier(run_dir: Path, facts: dict) -> dict:
    """The manifest of an export that the run folder already holds, {} where there is none of this run."""
    try:
        manifest = files.read_json(run_dir / exportformat.MANIFEST)
        exportformat.check_manifest(manifest, run_dir / exportformat.MANIFEST)
    except PathoError:
        return {}
    same = manifest["run"] == shown(facts["name"]) and manifest["data_sha256"] == facts["data"]["images_sha256"]
    return manifest if same else {}


def _is_outdated(run_dir: Path) -> bool:
    """Whether a run folder holds no export, one of another format, or one from before its decision was locked."""
    earlier = _earlier(run_dir, files.read_json(run_dir / "run.json"))
    return not earlier or earlier["decision"] != _decision(run_dir)[0]


def _decision(run_dir: Path) -> tuple[dict | None, dict | None]:
    """What was locked on the validation images, and its novelty, which a manifest has apart; None where nothing was."""
    if not (run_dir / decisions.DECISION).exists():
        return None, None
    decision = decisions.locked(run_dir)
    return decision, decision.pop(decisions.NOVELTY, None)


def _origin(facts: dict) -> dict[str, str]:
    """Where a model comes from, out of its run.json."""
    source = facts["data"].get("source")
    known = {
        "source": source,
        "data_licence": sources.of(source, demo=facts["demo"]).licence_short,
        "fingerprint": facts.get("fingerprint"),
        "split_sha256": facts.get("split", {}).get("sha256"),
        "commit": facts.get("code", {}).get("commit"),
    }
    return {name: shown(value or "") for name, value in known.items()}


def _smallest_side(run_dir: Path) -> int | None:
    """The shorter side of the smallest image that was checked for the run, None where its report is not there."""
    if not (run_dir / "data_report.json").exists():
        return None
    sizes = files.read_json(run_dir / "data_report.json")["sizes"]  # {"700x460": 12}
    return min(min(map(int, size.split("x"))) for size in sizes)


def _refuse_others(folder: Path, run_dir: Path, names: Sequence[str]) -> None:
    """Refuses a folder that holds anything but a part of this export, and one that holds all. Errors: output_exists."""
    if not files.is_there(folder):
        return
    there = {path.name: path for path in folder.iterdir()} if folder.is_dir() else {folder.name: folder}
    known = {*names, onnx_export.ONNX, onnx_export.ONNX_FACTS}
    other = [
        name
        for name, path in there.items()
        if not re.fullmatch(r"\..*\.part", name)
        and (name not in known or (name in CARDS + FILES and files.sha256(path) != files.sha256(run_dir / name)))
    ]
    if other or there.keys() >= set(names):
        raise PathoError("output_exists", str(folder), "is there already and not empty", "Name another folder")


def copy(run_dir: Path, folder: Path, *, onnx: bool = False) -> list[Path]:
    """Puts a run's export into a folder of its own, with its cards if it has them, and loads it from there.

    The run is exported first where it is not yet. A copy that was interrupted is completed. onnx: with `model.onnx`,
    made where it is missing. Returns what is in the folder. Errors: as `write` and `load_model`; output_exists.
    """
    run_dir, folder = Path(run_dir), Path(folder)
    if (run_dir / "run.json").exists() and _is_outdated(run_dir):
        write(run_dir)
    loading.load_model(run_dir)
    names = [exportformat.WEIGHTS, exportformat.MANIFEST, *(name for name in CARDS if (run_dir / name).exists())]
    names += [onnx_export.ONNX, onnx_export.ONNX_FACTS] if (run_dir / onnx_export.ONNX).exists() else []
    _refuse_others(folder, run_dir, names if not onnx else [*names, onnx_export.ONNX_FACTS])
    files.remove_parts(folder)
    for name in names:
        files.write_bytes(folder / name, files.read_bytes(run_dir / name))
    if onnx and onnx_export.ONNX not in names:
        onnx_export.to_onnx(folder)
    _, manifest = loading.classifier(folder)
    onnx_export.onnx_file(folder, manifest)
    return sorted(folder.iterdir())
