"""Times what is done with a trained network beside the usual ways: predictions, averaged views, heatmaps, intervals.

  python benchmarks/speed_judge.py              about three minutes; writes the section speed judge of RESULTS.md
  python benchmarks/speed_judge.py --quick      in miniature, to see that it runs; writes nothing

All sides have the same weights and images and must give the same: probabilities to 1e-4, heatmaps to 1e-3 of their
peak, intervals to 1e-12. pytorch-grad-cam comes from the rivals' environment, which the full run makes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass, replace
from importlib import util
from pathlib import Path

import harness
import literal
import numpy as np
import pandas as pd
import torch
from harness import Mark

from patholib.deploy import export, inference, onnx_export
from patholib.judge import gradcam, metrics, resampled
from patholib.model import augment, building, networks, recipes

PUBLISHED = "as published"
NETWORKS = {"EfficientNet-B0": recipes.ISIC2019, "ResNet50": recipes.BREAKHIS}
LEAST = {"EfficientNet-B0": 1.9, "ResNet50": 1.35}  # times eager fp32 at batch 1
TTA, GALLERY, INTERVALS = "EfficientNet-B0, averaged views of a picture", "heatmaps", "intervals over patients"
BATCH = 8  # heatmaps at once
CEILING = (
    "By the profile nearly all of the time is the forward pass without a graph; captum's, with one and in NCHW, "
    "costs 1.5 times as much on ResNet50. To fold BatchNorm away first takes as long as it saves."
)
SECONDS = 1.0  # for all metrics with intervals
RESAMPLES = 2000  # of a bootstrap
SKLEARN, ALL = "scikit-learn, bootstrap of the AUC alone", "patholib, all metrics"


@dataclass(frozen=True)
class Scale:
    """How large and how often."""

    side: int = 224  # of the images a network sees
    passes: int = 8  # at batch 1 in one timing
    large: int = 16  # the other batch
    gallery: tuple[int, int] = (64, 16)  # heatmaps of EfficientNet-B0 and of ResNet50, which is four times slower
    rows: int = 5000
    loop: int = 40  # resamples of scikit-learn in one timing
    rounds: int = 5
    gallery_rounds: int = 3


QUICK = Scale(side=64, passes=1, large=2, gallery=(4, 2), rows=300, loop=20, rounds=1, gallery_rounds=1)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args(arguments).quick
    if not quick:
        harness.with_rivals()
    tables, seconds = measured(QUICK if quick else Scale())
    text, judged = report(tables, seconds), marks(tables, seconds)
    if quick:
        print("\n".join([*text, *harness.verdicts(judged)]))
        return 0
    picture = harness.bars(harness.RESULTS.with_name("speed-judge.png"), tables, "Judging, times the usual way")
    used = [name for name in ("onnxruntime", "captum", "grad-cam", "scikit-learn") if util.find_spec(MODULES[name])]
    return harness.section(
        "judge",
        "Judging: predictions, averaged views, heatmaps, intervals",
        "python3 run.py bench judge",
        "\n".join([*text, "", f"![Ratios]({picture.name})"]),
        judged,
        used,
    )


MODULES = {"onnxruntime": "onnxruntime", "captum": "captum", "grad-cam": "pytorch_grad_cam", "scikit-learn": "sklearn"}


def measured(scale: Scale) -> tuple[dict[str, pd.DataFrame], dict[str, float]]:
    """The tables of `compare` by their titles, and the seconds that all metrics of both kinds of table took."""
    tables, seconds = {}, {}
    with tempfile.TemporaryDirectory(prefix="patholib-") as folder:
        for (name, recipe), count in zip(NETWORKS.items(), scale.gallery, strict=True):
            recipe = replace(recipe, weights="none", image_size=scale.side)
            model, place = settled(recipe), Path(folder, name)
            export.save_model(place, model.state_dict(), recipe)
            if util.find_spec("onnxruntime") and util.find_spec("onnxscript"):
                onnx_export.to_onnx(place)
            tables |= predictions(name, model, place, scale)
            if name == "EfficientNet-B0":
                tables[TTA] = averaged(model, recipe, place, scale)
            tables[f"{name}, {count} {GALLERY}"] = gallery(model, count, scale)
    for title, classes in (("2 classes", 2), ("8 classes", 8)):
        tables[f"{INTERVALS}, {title}"] = intervals(classes, scale)
        seconds[title] = 1 / tables[f"{INTERVALS}, {title}"].loc[ALL, "median"]
    return tables, seconds


def settled(recipe: recipes.Recipe) -> networks.Classifier:
    """A network of random weights with statistics as after a training, laid out as training leaves it."""
    model, generator = building.build(recipe), torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
    return model.to(memory_format=torch.channels_last).eval()


def pictures(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def predictors(place: Path) -> dict[str, inference.Predictor]:
    """The engines that are there, the quickest last."""
    engines = ("torch", "onnx") if (place / onnx_export.ONNX).exists() else ("torch",)
    return {
        f"patholib, {engine}": inference.Predictor(place, engine, threads=torch.get_num_threads()) for engine in engines
    }


# --- predictions ---


def predictions(name: str, model: networks.Classifier, place: Path, scale: Scale) -> dict[str, pd.DataFrame]:
    """Eager fp32 against the engines at two batch sizes."""
    tables, net = {}, literal.twin(model)
    for batch, passes in ((1, scale.passes), (scale.large, 1)):
        views = augment.plain_views(pictures(batch, scale.side), scale.side)
        normal = literal.NORMALISE(views.contiguous())

        def published(normal=normal):
            with torch.no_grad():
                return torch.softmax(net(normal), dim=1)

        ways = {PUBLISHED: published}
        for title, predictor in predictors(place).items():
            ways[title] = lambda p=predictor, v=views: torch.from_numpy(p.logits(v)).softmax(dim=1)
            assert (ways[title]() - published()).abs().max() < 1e-4, title
        tables[f"{name}, batch {batch}"] = harness.compare(
            {title: repeated(way, passes, batch) for title, way in ways.items()}, scale.rounds
        )
    return tables


def repeated(way, passes: int, items: int):
    def case() -> int:
        for _ in range(passes):
            way()
        return passes * items

    return case


def averaged(model: networks.Classifier, recipe: recipes.Recipe, place: Path, scale: Scale) -> pd.DataFrame:
    """The recipe's views of one picture: one pass each as published, or all in one batch."""
    pixels, net = pictures(1, recipe.cache_size), literal.twin(model)

    def published():
        views = augment.tta_views(
            pixels, recipe.image_size, recipe.tta, recipe.tta_views, 0, np.arange(1), recipe.augmentation
        )
        return literal.tta(net, [literal.NORMALISE(view.contiguous()) for view in views]).numpy()

    ways = {PUBLISHED: published}
    for title, predictor in predictors(place).items():
        ways[title] = lambda p=predictor: p.probabilities(pixels, tta=True)
        assert np.abs(ways[title]() - published()).max() < 1e-4, title
    return harness.compare({title: repeated(way, scale.passes, 1) for title, way in ways.items()}, scale.rounds)


# --- heatmaps ---


def gallery(model: networks.Classifier, count: int, scale: Scale) -> pd.DataFrame:
    """A heatmap of each of `count` images for a class given beforehand, at the last block."""
    views = augment.plain_views(pictures(count, scale.side), scale.side)
    normal = literal.NORMALISE(views.contiguous())
    targets = torch.arange(count) % len(model.classes)
    parts = [slice(start, start + BATCH) for start in range(0, count, BATCH)]
    hooked = literal.twin(model)
    published = literal.GradCAM(hooked, last_block(hooked))
    ways = {
        PUBLISHED: lambda: torch.stack(
            [published.generate(image[None], int(target)) for image, target in zip(normal, targets, strict=True)]
        )
    }
    if util.find_spec("captum"):
        from captum.attr import LayerGradCam

        net = literal.twin(model)
        captum = LayerGradCam(net, last_block(net))
        ways["captum"] = lambda: torch.cat(
            [captum.attribute(normal[p], targets[p], relu_attributions=True).detach() for p in parts]
        )[:, 0]
    if util.find_spec("pytorch_grad_cam"):
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        net = literal.twin(model)
        rival = GradCAM(model=net, target_layers=[last_block(net)])
        ways["pytorch-grad-cam"] = lambda: [
            rival(input_tensor=normal[p], targets=[ClassifierOutputTarget(int(t)) for t in targets[p]]) for p in parts
        ]
    ways["patholib"] = lambda: torch.cat([gradcam.heat(model, views[p], targets[p]).maps for p in parts])
    found = {title: way() for title, way in ways.items()}
    maps = found["patholib"]
    assert torch.allclose(found[PUBLISHED].nan_to_num(), gradcam.normalise(maps), rtol=0, atol=1e-3)
    if "captum" in found:  # pytorch-grad-cam's are already as large as the images
        assert torch.allclose(found["captum"], maps, rtol=0, atol=1e-3 * float(maps.max()))
    return harness.compare(
        {title: repeated(way, 1, count) for title, way in ways.items()}, scale.gallery_rounds, warmup=0
    )  # each has just run once


def last_block(net: torch.nn.Module) -> torch.nn.Module:
    """layer4[-1] of a ResNet, features[-1] of an EfficientNet."""
    return net.layer4[-1] if hasattr(net, "layer4") else net.features[-1]


# --- intervals ---


def intervals(classes: int, scale: Scale) -> pd.DataFrame:
    """Tables per second: a bootstrap of the AUC alone in a loop of scikit-learn's, and all metrics with intervals.

    The loop draws whole patients; a few of its draws are timed, and count as that share of 2,000.
    """
    from sklearn.metrics import roc_auc_score

    rng, names = np.random.default_rng(0), [f"class{i}" for i in range(classes)]
    labels = rng.integers(0, classes, scale.rows)
    evidence = rng.normal(size=(scale.rows, classes)) + 1.2 * np.eye(classes)[labels]
    probs = np.exp(evidence) / np.exp(evidence).sum(axis=1, keepdims=True)
    patients = rng.integers(0, scale.rows // 10, scale.rows)
    table = pd.DataFrame(
        {
            "label": np.array(names)[labels],
            "group": patients.astype(str),
            **{f"p_{name}": probs[:, i] for i, name in enumerate(names)},
        }
    )
    positive = names[1] if classes == 2 else None
    groups, known = pd.factorize(table["group"], sort=True)
    rows = [np.flatnonzero(groups == group) for group in range(len(known))]

    def auc(chosen: np.ndarray) -> float:
        scores = probs[chosen, 1] if classes == 2 else probs[chosen]
        return roc_auc_score(labels[chosen], scores, multi_class="ovr", average="macro")

    def loop() -> list[float]:
        drawn = np.random.default_rng(0).integers(0, len(known), (scale.loop, len(known)))
        return [auc(np.concatenate([rows[group] for group in draw])) for draw in drawn]

    ours = resampled.values(resampled.tally(table, names, positive, 0.5))[0]["auc"]
    theirs = [auc(np.flatnonzero(groups != group)) for group in range(scale.loop)]
    assert np.abs(ours[1 : 1 + scale.loop] - theirs).max() < 1e-12, (ours, theirs)
    return harness.compare(
        {SKLEARN: lambda: len(loop()) / RESAMPLES, ALL: lambda: len([metrics.summary(table, names, positive)])},
        scale.rounds,
    )


# --- what comes out ---


def marks(tables: dict[str, pd.DataFrame], seconds: dict[str, float]) -> list[tuple[Mark, float]]:
    """The declared figures with what was reached."""
    slow = "" if util.find_spec("onnxruntime") else "The extra onnx is not installed."
    judged = []
    for name, least in LEAST.items():
        judged += [(Mark(f"{name}, batch 1", least, reason=slow), best(tables[f"{name}, batch 1"]))]
    judged += [(Mark(TTA, 2.0, reason=slow), best(tables[TTA]))]
    for title, table in tables.items():
        if title.endswith(GALLERY):
            judged += [(Mark(f"{title}, to one by one", 3.5), table.loc["patholib", "ratio"])]
            if "captum" in table.index:
                judged += [
                    (Mark(f"{title}, to captum", 1.8, reason=CEILING), harness.ratio(table, "patholib", "captum")[0])
                ]
        if title.startswith(INTERVALS):
            judged += [(Mark(title, 30.0), table.loc[ALL, "ratio"])]
    return judged + [
        (Mark(f"all metrics with intervals, {title}", SECONDS, "s", most=True), taken)
        for title, taken in seconds.items()
    ]


def best(table: pd.DataFrame) -> float:
    return table.drop(PUBLISHED)["ratio"].max()


def report(tables: dict[str, pd.DataFrame], seconds: dict[str, float]) -> list[str]:
    lines = [
        "Published: eager fp32, NCHW; heatmaps by hooks and a full backward pass, one by one; "
        f"others in batches of {BATCH}. patholib: `inference.Predictor`, `gradcam.heat`, `metrics.summary`."
    ]
    for name, table in tables.items():
        unit = "tables/s" if name.startswith(INTERVALS) else "images/s"
        lines += ["", f"### {name}", "", *harness.rate_table(table, unit)]
    return [
        *lines,
        "",
        "All metrics with intervals: " + ", ".join(f"{title} {taken:.2f} s" for title, taken in seconds.items()) + ".",
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
