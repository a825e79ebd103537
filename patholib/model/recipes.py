"""What is trained and how: a recipe is a frozen dataclass, and the two that ship differ in data, not in code.

`dataclasses.replace(BREAKHIS, epochs=3)` overrides a field; a typo or a contradiction stops with the nearest name.
`as_published(name)` is the literal form of the published descriptions, mistakes included, so that the difference
to the corrected defaults can be measured.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from patholib.base.errors import PathoError, nearest
from patholib.model import architectures, fields


@fields.refusing_typos
@dataclass(frozen=True)
class Augmentation:
    """How far a training view may differ from its image; every range is symmetric unless it says otherwise."""

    affine_degrees: float = 0.0  # rotation of the affine draw, +- degrees
    rotation: float = 0.0  # a second, independent rotation, +- degrees
    shift: float = 0.0  # +- share of the image side
    zoom: tuple[float, float] = (1.0, 1.0)  # factor, low to high
    shear: float = 0.0  # +- degrees along x
    flip_horizontal: float = 0.0  # probability
    flip_vertical: float = 0.0  # probability
    perspective: float = 0.0  # largest move of a corner, as share of half the side
    perspective_p: float = 0.0  # probability of any perspective
    crop_scale: tuple[float, float] | None = None  # share of the area a random crop keeps (aspect 3/4 to 4/3)
    brightness: float = 0.0  # factor 1 +- this
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0  # +- share of the colour circle
    noise: float = 0.0  # standard deviation, in `noise_unit`
    noise_unit: str = "grey"  # "grey": share of the full grey range; "normalised": after mean and std, as published
    warps: str = "one"  # "one": all geometry in one interpolation; "each": one per transform, as published
    border: str = "reflect"  # what lies outside the image: its mirror, or black as published
    interpolation: str = "bilinear"

    def __post_init__(self):
        wrong = fields.problems(self, "augmentation")
        for name, least, most in (("zoom", 0.1, 10), ("crop_scale", 0.01, 1)):
            pair = getattr(self, name)
            if pair is not None and not least <= pair[0] <= pair[1] <= most:
                wrong.append(f"{name}={pair} is not a range (low, high) within {least} to {most}")
        fields.stop_on(wrong, "augmentation")


@fields.refusing_typos
@dataclass(frozen=True)
class Stage:
    """One stage of gradual unfreezing."""

    start: float  # first epoch of the stage: a whole number counts epochs from 0, a share below 1 scales with the run
    frozen: int  # blocks that do not learn, counted from the image
    lr_scale: float  # multiplies the learning rate

    def __post_init__(self):
        wrong = fields.problems(self, "stage")
        if self.start > 1 and self.start != int(self.start):
            wrong.append(f"start={self.start} is neither an epoch nor a share of the run")
        fields.stop_on(wrong, "stage")

    def first_epoch(self, epochs: int) -> int:
        """The epoch, from 0, at which the stage begins in a run of `epochs`."""
        return round(self.start * epochs) if 0 < self.start < 1 else int(self.start)


@fields.refusing_typos
@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a network learns from a set of images."""

    name: str
    classes: tuple[str, ...]  # in the order of the model's outputs
    positive: str | None  # the class that must not be missed, decided by a threshold (of more than two: an alert)

    # Data
    group_by: str = "group"  # manifest column no value of which may stand in two splits; "image": no patient is known
    fractions: tuple[float, float, float] = (0.70, 0.15, 0.15)  # train, validation, test
    seed: int = 0
    image_size: int = 224  # pixels, side of the square the model sees
    fit: str = "crop"  # to a square: centre crop, pad, or squeeze as published (stretches nuclei 1.52 times)
    augmentation: Augmentation = field(default_factory=Augmentation)
    augmentation_strength: float = 1.0  # of training views: times its ranges (`augment.scaled`)

    # Model
    arch: str = "resnet50"
    weights: str = "imagenet"  # "imagenet", "none" (from scratch), the path of a state dict, or "hub" (of timm's)
    train: str = "fine_tuning"  # or "head": no block learns, a linear head is fitted (`overriding`)
    head_width: int = 512  # 0: one linear layer, without dropout
    head_order: str = "batchnorm_relu"
    head_dropout: tuple[float, float] = (0.5, 0.3)
    stages: tuple[Stage, ...] = (Stage(0, 0, 1.0),)
    colour: int = 0  # width of a small network on colour statistics that adds to the logits; 0: none
    batchnorm: str = "frozen"  # in frozen blocks: "frozen" whole; "drift": statistics move; "adapt": weights learn too

    # Learning
    epochs: int = 35
    batch_size: int = 32
    drop_last: bool = True  # an incomplete last batch makes BatchNorm statistics noisy
    optimizer: str = "adam"
    lr: float = 1e-3
    weight_decay: float = 1e-5
    schedule: str = "sgdr"
    t_0: float = 5  # sgdr: epochs of the first cycle; 0: one cycle over the whole run
    t_mult: int = 2  # sgdr: each cycle is this many times longer (Loshchilov & Hutter 2017, section 3)
    eta_min: float = 1e-6  # sgdr: lowest rate; plateau: floor
    plateau_factor: float = 0.5
    plateau_patience: int = 5
    warm_up: int = 0  # first epochs, in which the rate rises in equal steps to that of the schedule
    clip_norm: float | None = None  # largest gradient norm; None: no clipping
    ema: float = 0.0  # moving average of the weights, judged in their place: share kept at each step; 0: none
    loss: str = "cross_entropy"
    label_smoothing: float = 0.0
    focal_gamma: float = 2.0
    # Training corrects no imbalance: threshold and prior-corrected decision do it afterwards. On 2,944 images of ISIC
    # 2019 class weights cost 0.028 AUC (0.017 to 0.040) and changed the balanced accuracy of that decision by +0.032
    # (-0.025 to 0.092); on IDC leaving them out changed the AUC by +0.002 (-0.002 to 0.009) (benchmarks/RESULTS.md,
    # "imbalance": random weights, one fold and seed each).
    balance: str = "none"  # or one corrector; both together only as published
    adjustment: float = 1.0  # strength of logit_adjustment: 1 as if classes were equally common, 0 as they are
    monitor: str = "auc"  # validation metric that picks the best epoch
    keep: str = "best"  # epoch that is judged: "best", or "last" where validation images are too few to pick one
    patience: int = 8  # epochs without an improvement of min_delta before stopping; 0: never stop early
    min_delta: float = 0.002  # only feeds patience: best is any strict improvement
    stop: str = "cycle_end"  # stop only where a learning-rate cycle ends, or at any epoch as published
    precision: str = "auto"
    fast: bool = False  # cudnn autotuning and TF32 matrix products: quicker on a GPU, not bit-exact
    micro_batches: str = "exact"  # too little GPU memory: compute a batch in parts if that is the same, or "always"
    on_nonfinite: str = "stop"  # a NaN loss: "stop", or "rollback": go back and halve the rate, up to three times

    # Judging
    decide: str = (
        "even"  # more than two classes: as if all were equally common, or "likeliest" among images as they are
    )
    tta: str = "dihedral"  # fixed flips and quarter turns, or seeded light augmentation as published
    tta_views: int = 5

    published: bool = False  # the literal form of the source: allows what is otherwise refused as a mistake

    def __post_init__(self):
        wrong = fields.problems(self, f"recipe {self.name}")
        if not re.fullmatch(r"[\w-]+", self.name):
            wrong.append(f"name={self.name!r}, of which run folders are named, must be letters, digits, _ and -")
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            wrong.append(f"classes={self.classes} must be at least two different names")
        wrong += [f"classes hold {c!r}, with control characters" for c in self.classes if not c.isprintable()]
        if self.positive is not None and self.positive not in self.classes:
            wrong.append(f"positive={self.positive!r} is not a class ({nearest(self.positive, self.classes)})")
        if abs(sum(self.fractions) - 1) > 1e-9 or min(self.fractions) <= 0:
            wrong.append(f"fractions={self.fractions} must be three shares above 0 that sum to 1")
        if self.batch_size == 1:
            wrong.append("batch_size=1 gives BatchNorm one value per channel")
        if 0 < self.t_0 < 1:
            wrong.append(f"t_0={self.t_0} is a part of an epoch; give 0, or a number from 1 on")
        if 0 < self.lr < self.eta_min:
            wrong.append(f"lr={self.lr} is below eta_min={self.eta_min}")
        if not all(0 <= p < 1 for p in self.head_dropout):
            wrong.append(f"head_dropout={self.head_dropout} must be two shares in [0, 1)")
        if self.tta_views > 8 and self.tta == "dihedral":
            wrong.append(f"tta_views={self.tta_views}: a square has eight flips and turns")
        wrong += self._stage_problems() + self._source_mistakes()
        if self.label_smoothing and self.loss != "cross_entropy":
            wrong.append("label_smoothing belongs to cross_entropy, not to focal loss")
        fields.stop_on(wrong, f"recipe {self.name}")

    def _stage_problems(self) -> list[str]:
        if not self.stages or self.stages[0].start != 0:
            return ["stages must begin with one that starts at epoch 0"]
        starts = [s.start for s in self.stages]
        wrong: list[str] = []
        if starts != sorted(set(starts)) or len({0 < s < 1 for s in starts[1:]}) > 1:
            wrong.append(f"stages start at {starts}: give rising epochs, or rising shares of the run")
        blocks = len(architectures.of(self.arch).blocks)
        too_many = [s.frozen for s in self.stages if s.frozen > blocks]
        if too_many:
            wrong.append(f"stages freeze {max(too_many)} blocks, but {self.arch} has {blocks}")
        return wrong

    def _source_mistakes(self) -> list[str]:
        """Mistakes of the published descriptions, which only their literal form may hold."""
        wrong: list[str] = []
        if self.published:
            return wrong
        if self.balance == "sampler_and_weights":
            wrong.append("balance='sampler_and_weights' corrects the class prior twice; choose one of them")
        if self.loss == "focal_weighted_pt":
            wrong.append("loss='focal_weighted_pt' takes a class weight for a probability; use 'focal'")
        return wrong

    def stage_at(self, epoch: int) -> Stage:
        """The stage in force at `epoch`, counted from 0."""
        return [s for s in self.stages if s.first_epoch(self.epochs) <= epoch][-1]

    @property
    def cache_size(self) -> int:
        """Side in pixels of the cached images: 8/7 of what the model sees, so that a warp has a margin to draw on.

        As published there is none: pictures are brought to the model's size first, and what lies outside is black.
        """
        return self.image_size if self.augmentation.warps == "each" else math.ceil(self.image_size * 8 / 7)

    def to_json(self) -> dict:
        """Plain JSON values; `from_json` gives back an equal recipe."""
        return dataclasses.asdict(self)


BREAKHIS = Recipe(
    name="breakhis",
    classes=("benign", "malignant"),
    positive="malignant",
    group_by="case",
    arch="resnet50",
    stages=(Stage(0, 13, 1.0),),  # stem, layer1, layer2 and layer3 but its last block: 13 of 17 do not learn
    batchnorm="adapt",
    clip_norm=1.0,
    label_smoothing=0.1,
    augmentation=Augmentation(
        affine_degrees=15,
        rotation=20,
        shift=0.1,
        zoom=(0.85, 1.15),
        shear=5,
        flip_horizontal=0.5,
        flip_vertical=0.5,
        perspective=0.2,
        perspective_p=0.3,
        brightness=0.2,
        contrast=0.2,
        saturation=0.15,
        hue=0.05,
    ),
)

ISIC2019 = Recipe(
    name="isic2019",
    classes=("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC"),
    positive="MEL",
    group_by="lesion",
    arch="efficientnet_b0",
    head_width=256,
    head_order="relu_batchnorm",
    head_dropout=(0.5, 0.5),
    stages=(Stage(0, 7, 1.0), Stage(0.2, 5, 0.5), Stage(0.4, 3, 0.2), Stage(0.6, 1, 0.1), Stage(0.8, 0, 0.05)),
    epochs=100,
    optimizer="adamw",
    lr=5e-5,
    schedule="plateau",
    loss="focal",
    monitor="balanced_accuracy",
    patience=0,  # the source trains all 100 epochs
    augmentation=Augmentation(
        flip_horizontal=0.3,
        rotation=3,
        crop_scale=(0.92, 1.0),
        brightness=0.05,
        contrast=0.05,
        saturation=0.05,
        hue=0.05,
        noise=0.02,
    ),
)

FIRST_LOOK = "efficientnet_lite0"  # network of demo images: its weights come in a package, without a network
RECIPES = {recipe.name: recipe for recipe in (BREAKHIS, ISIC2019)}


def get(name: str) -> Recipe:
    """The corrected recipe of that name."""
    if name not in RECIPES:
        raise PathoError("unknown_recipe", name, "is not a recipe", nearest(name, RECIPES))
    return RECIPES[name]


def as_published(name: str) -> Recipe:
    """The recipe as its source describes it, mistakes included, to measure what they cost.

    Not reproduced, because it would train on something that is not there: a zero image in place of a missing file.
    """
    recipe = get(name)
    literal = replace(
        recipe.augmentation, warps="each", border="black", interpolation="nearest", noise_unit="normalised"
    )
    recipe = replace(recipe, published=True, group_by="image", fit="squeeze", augmentation=literal, fast=True)
    if name == "breakhis":
        return replace(recipe, balance="sampler_and_weights", stop="any_epoch", tta="random")
    whole = tuple(replace(s, start=s.first_epoch(recipe.epochs)) for s in recipe.stages)  # 0, 20, 40, 60, 80
    return replace(
        recipe, stages=whole, batchnorm="drift", balance="weights", loss="focal_weighted_pt", monitor="accuracy"
    )


def unfrozen(recipe: Recipe) -> Recipe:
    """The recipe for random weights, least changed: nothing is frozen, as a frozen random backbone learns nothing.

    One cosine cycle over the run from a rate a random network needs, instead of one for fine tuning; and no dropout
    in the head, which keeps a network that knows nothing yet from learning anything in a short run.
    """
    return replace(
        recipe,
        weights="none",
        stages=(Stage(0, 0, 1.0),),
        batchnorm="frozen",
        lr=max(recipe.lr, 1e-3),
        head_dropout=(0.0, 0.0),
        schedule="sgdr",
        t_0=0,
        stop="cycle_end",
    )


# What helps where a few hundred or thousand real images are all there is to learn from, with any first weights: every
# rotation and flip, because neither microscope nor dermatoscope has a right way up; colour jitter so small that colour
# keeps its meaning; weights averaged over the last steps.
OF_FEW = Augmentation(
    rotation=180,
    shift=0.05,
    zoom=(0.85, 1.15),
    flip_horizontal=0.5,
    flip_vertical=0.5,
    brightness=0.04,
    contrast=0.04,
    saturation=0.04,
    hue=0.008,
)
_FEW: dict[str, Any] = {
    "augmentation": OF_FEW,
    "optimizer": "adamw",
    "weight_decay": 0.05,
    "loss": "cross_entropy",
    "monitor": "auc",
    "tta_views": 8,
}
FEW_IMAGES = 5_000  # with fewer, `for_few_images`
# With random weights colour statistics join the network, because they need no pretraining (measured part by part in
# benchmarks/RESULTS.md). Tissue: the last epoch, because a dozen validation patients would pick another by luck.
_SCRATCH = {**_FEW, "warm_up": 2, "label_smoothing": 0.0}
SCRATCH: dict[str, dict[str, Any]] = {
    "breakhis": {**_SCRATCH, "colour": 32, "ema": 0.98, "keep": "last"},
    "isic2019": {**_SCRATCH, "colour": 128, "lr": 2e-3, "ema": 0.998},
}


# The reasons for `unfrozen` and for SCRATCH, as reports tell them.
WHY_UNFROZEN = (
    "Nothing is frozen, because a frozen random network learns nothing; the learning rate is higher, as "
    "random weights need it, in one cosine cycle over the run; the head has no dropout, which would keep a "
    "short run from learning"
)
WHY_FEW = (
    f"There are fewer than {FEW_IMAGES:,} images, and the recipe is made for more: most blocks keep what they learnt "
    "from photographs, and the rest learns in a few epochs with every rotation and flip"
)
WHY_SCRATCH = (
    "Statistics of colour and grain add to the logits, because they need no pretraining, and further "
    "settings change that helped when a few hundred or thousand images were all there was to learn from"
)


def from_scratch(recipe: Recipe) -> Recipe:
    """The recipe for random weights and real images: `unfrozen`, and what SCRATCH says, unless it is as published."""
    return replace(unfrozen(recipe), **({} if recipe.published else SCRATCH.get(recipe.name, {})))


def for_few_images(recipe: Recipe) -> Recipe:
    """The recipe for pretrained weights and fewer than FEW_IMAGES images.

    The first five of nine blocks, or the same share of other networks, keep what they know. The rest and a linear head
    learn in one cosine cycle.
    """
    frozen = round(len(architectures.of(recipe.arch).blocks) * 5 / 9)
    return replace(
        recipe,
        **_FEW,
        stages=(Stage(0, frozen, 1.0),),
        batchnorm="frozen",
        head_width=0,
        head_dropout=(0.0, 0.0),
        epochs=12,
        lr=5e-4,
        schedule="sgdr",
        t_0=0,
        warm_up=1,
        ema=0.99,
        label_smoothing=0.05,
        patience=0,
    )


def first_look(recipe: Recipe) -> Recipe:
    """The recipe cut down to demo images: a small network from ImageNet weights, a minute on two cores.

    The last of nine blocks and a linear head learn, in one cosine cycle. 192 pixels, because at fewer the last maps,
    of 6 x 6 cells, would be too coarse to show where.
    """
    recipe = replace(unfrozen(recipe), arch=FIRST_LOOK, weights="imagenet", stages=(Stage(0, 8, 1.0),), head_width=0)
    # The precision is not left to the clock: a demo run ends with the same numbers every time.
    recipe = replace(recipe, image_size=192, epochs=4, batch_size=16, ema=0.9, tta_views=2, precision="fp32")
    return recipe if recipe.published else replace(recipe, optimizer="adamw", loss="cross_entropy", label_smoothing=0)


def for_demo(recipe: Recipe) -> Recipe:
    """The recipe cut down to demo images with random weights: small pictures, few epochs; minutes on two cores."""
    return replace(unfrozen(recipe), image_size=64, epochs=20, batch_size=8, precision="fp32")


def without_folders(recipe: Recipe) -> Recipe:
    """The recipe with the name alone of a weights file: where it lay is nobody else's business."""
    return replace(recipe, weights=Path(recipe.weights).name) if architectures.is_file(recipe.weights) else recipe


def diff(a: Recipe | Augmentation, b: Recipe | Augmentation) -> dict[str, tuple]:
    """The fields in which two recipes differ, `{"lr": (0.001, 0.01)}`; nested fields as `augmentation.noise`."""
    changed: dict[str, tuple] = {}
    for f in dataclasses.fields(a):
        left, right = getattr(a, f.name), getattr(b, f.name)
        if isinstance(left, Augmentation):
            changed |= {f"{f.name}.{name}": pair for name, pair in diff(left, right).items()}
        elif left != right:
            changed[f.name] = (left, right)
    return changed


def from_json(values: dict) -> Recipe:
    """A recipe from `Recipe.to_json`, checked as if it had been typed."""
    if not isinstance(values, dict):
        raise PathoError(
            "bad_recipe",
            "recipe",
            f"is not an object with fields, but {type(values).__name__}",
            "Give what Recipe.to_json wrote",
        )
    values = _tuples(values)
    if isinstance(values.get("augmentation"), dict):
        values["augmentation"] = Augmentation(**_tuples(values["augmentation"]))
    if isinstance(values.get("stages"), tuple):
        values["stages"] = tuple(Stage(**s) if isinstance(s, dict) else s for s in values["stages"])
    return Recipe(**values)


def _tuples(values: dict) -> dict:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
