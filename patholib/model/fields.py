"""Names, ranges and types of the fields of a recipe, and the check of their values."""

from __future__ import annotations

import dataclasses
import functools
import math

from patholib.base.errors import PathoError, nearest, nearest_setting
from patholib.model import architectures

CHOICES = {
    "arch": tuple(architectures.NETWORKS),
    "fit": ("crop", "pad", "squeeze"),
    "train": ("fine_tuning", "head"),
    "head_order": ("batchnorm_relu", "relu_batchnorm"),
    "batchnorm": ("frozen", "drift", "adapt"),
    "optimizer": ("adam", "adamw"),
    "schedule": ("sgdr", "plateau", "constant"),
    "loss": ("cross_entropy", "focal", "focal_weighted_pt"),
    "balance": ("none", "weights", "sampler", "logit_adjustment", "sampler_and_weights"),
    "monitor": ("auc", "balanced_accuracy", "accuracy"),
    "keep": ("best", "last"),
    "stop": ("cycle_end", "any_epoch"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
    "micro_batches": ("exact", "always"),
    "on_nonfinite": ("stop", "rollback"),
    "decide": ("likeliest", "even"),
    "tta": ("dihedral", "random"),
    "warps": ("one", "each"),
    "border": ("reflect", "black"),
    "interpolation": ("bilinear", "nearest"),
    "noise_unit": ("grey", "normalised"),
}

# Between what a number must lie; a round bracket leaves its end out. Beyond it is a slip of the hand.
RANGES = {
    "affine_degrees": "[0, 180]",
    "rotation": "[0, 180]",
    "shift": "[0, 1]",
    "shear": "[0, 90)",
    "flip_horizontal": "[0, 1]",
    "flip_vertical": "[0, 1]",
    "perspective": "[0, 1]",
    "perspective_p": "[0, 1]",
    "brightness": "[0, 1]",
    "contrast": "[0, 1]",
    "saturation": "[0, 1]",
    "hue": "[0, 0.5]",
    "noise": "[0, 1]",
    "augmentation_strength": "[0, 2]",
    "start": "[0, 10000]",
    "frozen": "[0, 1000]",
    "lr_scale": "(0, 1000]",
    "seed": "[0, 4294967295]",
    "image_size": "[32, 1024]",
    "head_width": "[0, 8192]",
    "epochs": "[1, 10000]",
    "batch_size": "[2, 10000]",
    "lr": "(0, 1)",
    "weight_decay": "[0, 1)",
    "colour": "[0, 8192]",
    "warm_up": "[0, 10000]",
    "ema": "[0, 1)",
    "adjustment": "(0, 1]",
    "t_0": "[0, 10000]",
    "t_mult": "[1, 100]",
    "eta_min": "(0, 1)",
    "plateau_factor": "(0, 1)",
    "plateau_patience": "[0, 10000]",
    "clip_norm": "(0, inf)",
    "label_smoothing": "[0, 1)",
    "focal_gamma": "[0, 100]",
    "patience": "[0, 10000]",
    "min_delta": "[0, 1)",
    "tta_views": "[1, 100]",
}

# What a field is by its annotation, in words and as a test; `_is` takes tuples and None apart.
WORDS = {"int": "a whole number", "float": "a finite number", "bool": "True or False", "str": "text"}
TESTS = {
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf,
    "bool": lambda value: isinstance(value, bool),
    "str": lambda value: isinstance(value, str) and value != "",
}


def refusing_typos(cls):
    """Makes an unknown or missing field a PathoError, with the nearest name, in the constructor and in `replace`."""
    original = cls.__init__
    fields = dataclasses.fields(cls)
    names = [f.name for f in fields]
    required = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]

    @functools.wraps(original)
    def __init__(self, *args, **values):
        unknown = [name for name in values if name not in names]
        if unknown:
            raise PathoError(
                "unknown_field",
                ", ".join(unknown),
                f"{'is not a field' if len(unknown) == 1 else 'are not fields'} of {cls.__name__}",
                "; ".join(dict.fromkeys(nearest_setting(name, names) for name in unknown)),
            )
        missing = [name for name in required[len(args) :] if name not in values]
        stop_on([f"{name} is missing" for name in missing], cls.__name__)
        original(self, *args, **values)

    cls.__init__ = __init__
    return cls


def _is(value, kind: str) -> bool:
    """Whether the value is what the annotation says."""
    if kind.endswith(" | None"):
        return value is None or _is(value, kind.removesuffix(" | None"))
    if kind.startswith("tuple["):
        kinds = kind[6:-1].split(", ")
        if not isinstance(value, tuple):
            return False
        kinds = kinds[:1] * len(value) if kinds[-1] == "..." else kinds
        return len(value) == len(kinds) and all(map(_is, value, kinds))
    return TESTS[kind](value) if kind in TESTS else type(value).__name__ == kind


def _inside(value: float, interval: str) -> bool:
    low, high = map(float, interval[1:-1].split(", "))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    return above and below


def problems(obj, subject: str) -> list[str]:
    """Every number out of its range; a wrong type or choice stops at once, for what comes next compares values."""
    fields, wrong = [(f.name, str(f.type), getattr(obj, f.name)) for f in dataclasses.fields(obj)], []
    for name, kind, value in fields:
        if not _is(value, kind):
            wrong.append(f"{name}={value!r} is not " + " or ".join(WORDS.get(k, k) for k in kind.split(" | ")))
        elif name in CHOICES and value not in CHOICES[name] and not (name == "arch" and architectures.is_known(value)):
            wrong.append(f"{name}={value!r} ({nearest(value, CHOICES[name])})")
    stop_on(wrong, subject)
    return [
        f"{name}={value} is outside {RANGES[name]}"
        for name, _, value in fields
        if name in RANGES and value is not None and not _inside(value, RANGES[name])
    ]


def stop_on(problems: list[str], subject: str) -> None:
    if problems:
        raise PathoError("bad_recipe", subject, "; ".join(problems), "Correct these fields")
