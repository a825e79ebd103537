"""Every parameter of a study once: name, type, default, help, choices. All other places take them from here.

The parameters cells of the notebooks, `patholib train --help`, the check of RUN.json and docs/parameters.md are written
or checked from `Options`. What a value may be is asked of the library by `notebook.checked`, for all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from patholib.base import files
from patholib.base.errors import PathoError, nearest
from patholib.lab import notebook
from patholib.lab.notebook import Parameter, Settings
from patholib.model import architectures, fields, recipes

# The parameters that a notebook, or `patholib train NAME`, sets before the user does.
PRESETS: dict[str, dict] = {
    "breakhis": {"recipe": "breakhis"},
    "isic2019": {"recipe": "isic2019"},
    "quickstart": {"recipe": "breakhis", "data": "demo", "small": True, "train": "head"},
}
STUDY = ("images", "recipe", "judging")  # groups of parameters that say what is done, not where or how fast
RECIPE = "as the recipe says"
OF_IMAGES = ("label", "only", "group", "columns")  # for `readers.load`
OF_RECIPE = (  # its fields
    *("arch", "train", "image_size", "epochs", "batch_size", "micro_batches", "lr", "loss", "augmentation_strength"),
    *("seed", "precision"),
)


def _of(group: str, default, help: str, *choices: str, none: str = "") -> Any:
    """A field of Options; none: what None means, where it may be None."""
    text = help + (f", one of: {', '.join(choices)}" if choices else "") + (f" (None: {none})" if none else "")
    return field(default=default, metadata={"group": group, "help": text, "optional": bool(none)})


@dataclass(frozen=True, init=False, repr=False)
class Options:
    """The parameters of a study, checked: `Options(recipe="isic2019", epochs=3)`.

    Numbers may be given as text ("1e-3"). Errors: unknown_parameter, bad_parameter; one error names every problem.
    """

    recipe: str = _of("images", "breakhis", "recipe to train", *recipes.RECIPES)
    data: str = _of("images", "auto", 'images: a folder, a CSV, "demo", or "auto" to look in the usual places')
    missing: str = _of("images", "error", "rows of a table whose file is missing", "error", "skip")
    positive: str | None = _of(
        "images", None, "class that must not be missed", none="malignant or melanoma; of a table of your own none"
    )
    label: str | None = _of("images", None, "column of the classes", none="found by its name")
    only: str | None = _of("images", None, "images that count, a column and its value (docs/own-images.md)", none="all")
    group: str | None = _of(
        "images",
        None,
        'column of what must not be in two splits, or "image"',
        none="the coarsest id: patient before lesion",
    )
    columns: str | None = _of(
        "images", None, "other names of the columns of a table (docs/own-images.md)", none="found by their names"
    )
    split: str = _of(
        "images",
        "given",
        'split: "given" (the column split of a table, if it has one), "group" (drawn), or a table of one',
    )
    hold_out: str | None = _of(
        "images", None, "images to test on, a column and its value; the others are split", none="drawn"
    )
    val: float | None = _of("images", None, "share of the images for validation", none=RECIPE)
    test: float | None = _of("images", None, "share of the images for the test", none=RECIPE)
    on_bad: str = _of("images", "error", "images that cannot be used", "error", "skip")
    published: bool = _of("recipe", False, "train the recipe exactly as published, mistakes included")
    small: bool = _of("recipe", False, "a small network, small images and few epochs, for a first look")
    arch: str | None = _of(
        "recipe",
        None,
        f'network: {", ".join(fields.CHOICES["arch"])}, or any of timm as "timm:NAME" (docs/recipes.md)',
        none=RECIPE,
    )
    weights: str | None = _of(
        "recipe",
        None,
        'weights to start from: "imagenet", "none" (random), a file, or "hub" for a network of timm',
        none="imagenet",
    )
    train: str = _of(
        "recipe",
        "fine_tuning",
        "what learns: blocks that are not frozen, or a fitted head alone",
        *fields.CHOICES["train"],
    )
    frozen: int | None = _of(
        "recipe", None, "blocks that do not learn, counted from the image, in all epochs", none=RECIPE
    )
    image_size: int | None = _of("recipe", None, "side in pixels of the images that the network sees", none=RECIPE)
    epochs: int | None = _of("recipe", None, "passes over the training images", none=RECIPE)
    batch_size: int | None = _of("recipe", None, "images per step", none=RECIPE)
    micro_batches: str | None = _of(
        "recipe", None, "split a batch that does not fit into GPU memory", *fields.CHOICES["micro_batches"], none=RECIPE
    )
    lr: float | None = _of("recipe", None, "highest learning rate", none=RECIPE)
    loss: str | None = _of("recipe", None, "loss", *fields.CHOICES["loss"], none=RECIPE)
    augmentation_strength: float | None = _of(
        "recipe", None, "how far training views vary, 0 (not at all) to 2 (twice the ranges of the recipe)", none=RECIPE
    )
    seed: int = _of("recipe", 0, "seed of the split, the first weights and every random draw")
    device: str = _of("computing", "auto", 'where to compute: "auto", "cpu" or "cuda"')
    precision: str | None = _of("computing", None, "number format", *fields.CHOICES["precision"], none=RECIPE)
    workers: int = _of("computing", 2, "threads that prepare images")
    processes: int = _of("computing", 1, "number of GPU processes that share each batch")
    target_sensitivity: float = _of("judging", 0.95, "sensitivity wanted for new patients")
    patient: str | None = _of(
        "judging",
        None,
        'columns with data of the patient that join the image, "age_band, sex, site"',
        none="the image alone",
    )
    probe: bool = _of("judging", False, "also judge a linear probe of the network before training")
    folds: int = _of("judging", 0, "number of cross-validation folds (0: no cross-validation)")
    repeats: int = _of("judging", 1, "number of cross-validations, each with other folds")
    fold: int | None = _of("judging", None, "train and judge this fold only, counted from 0", none="the ordinary split")
    allow_leakage: bool = _of("judging", False, "train although the split leaks, and say so in every figure")
    max_hours: float | None = _of(
        "running", None, "stop after this many hours, saved", none="no limit, but one hour before Kaggle ends a session"
    )
    output: str | None = _of("running", None, "folder for run folders", none="outputs of the project")
    keep_checkpoints: bool = _of(
        "running", False, "keep the checkpoints of a finished run, to train on for more epochs"
    )
    resume: str = _of(
        "running", "auto", "continue an unfinished run of the same recipe, images and split", "auto", "must", "never"
    )

    _shown: ClassVar[Settings]  # of each object its own: what the table of it shows

    def __init__(self, **given):
        for name, value in notebook.checked(parameters(), list(given), given).items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_shown", Settings(parameters(), dict(vars(self))))

    @classmethod
    def from_notebook(cls, history: list[str], namespace: dict, preset: str = "breakhis") -> Options:
        """The checked parameters of the running notebook: `Options.from_notebook(In, globals())`.

        It shows them as a table in which * marks those that differ from the parameters cell. preset: a key of PRESETS.
        See `notebook.check_parameters` for what is read from where, and for its errors.
        """
        settings = notebook.check_parameters(history, namespace)
        found = cls(**(PRESETS[preset] | settings.values))
        object.__setattr__(found, "_shown", settings)
        return found

    @classmethod
    def read(
        cls, preset: str = "breakhis", path: Path | str | None = None, words: Mapping[str, str] | None = None
    ) -> Options:
        """The parameters of a command line: those of a preset, over them those of a file, over them the words.

        path: RUN.json, an object {"recipe": "isic2019", "epochs": 3}. words: all text; "true" and "false" for a bool,
        "None" where None may be. Errors: also unknown_recipe, missing_file, bad_json.
        """
        if preset not in PRESETS:
            raise PathoError("unknown_recipe", preset, "is no recipe", nearest(preset, PRESETS))
        given = files.read_json(Path(path)) if path else {}
        if not isinstance(given, dict):
            raise PathoError(
                "bad_parameter",
                Path(path or "").name,
                "is no object of parameters",
                'Write {"recipe": "breakhis", ...}',
            )
        return cls(**(PRESETS[preset] | given | notebook.from_words(parameters(), words or {})))

    @property
    def values(self) -> dict:
        """{name: value} of the parameters that are shown: all, or those of the notebook's cell."""
        return self._shown.values

    @property
    def changed(self) -> dict:
        """{name: value} of those that differ from their default, in a notebook from its parameters cell."""
        return self._shown.changed

    @property
    def of_recipe(self) -> dict:
        """{name: value} of the fields of the recipe that these parameters override; None: not overridden."""
        found = {name: value for name, value in self.to_json().items() if name in OF_RECIPE}
        shares = recipes.get(self.recipe).fractions
        val, test = (shares[i] if given is None else given for i, given in ((1, self.val), (2, self.test)))
        return found | {"fractions": None if (val, test) == shares[1:] else (1 - val - test, val, test)}

    @property
    def of_images(self) -> dict:
        """{name: value} of the parameters that say how a table is read."""
        return {name: getattr(self, name) for name in OF_IMAGES}

    @property
    def patient_columns(self) -> list[str]:
        """The columns that `patient` names."""
        return [name.strip() for name in (self.patient or "").split(",") if name.strip()]

    @property
    def of_study(self) -> dict:
        """{name: value} of recipe, and of those that differ from their default and can change what a study finds.

        Of a file or folder its name alone: where it lay is nobody else's business.
        """
        of = {f.name for f in dataclasses.fields(self) if f.metadata["group"] in STUDY} | {"precision"}
        changed = {p.name: vars(self)[p.name] for p in parameters() if p.name in of and vars(self)[p.name] != p.default}
        paths = ("data", "split", *(("weights",) if architectures.is_file(self.weights) else ()))
        names = {name: Path(changed[name]).name for name in paths if name in changed}
        return {"recipe": self.recipe} | changed | names

    def to_json(self) -> dict:
        """{name: value} of all parameters."""
        return {f.name: vars(self)[f.name] for f in dataclasses.fields(self)}

    def __repr__(self) -> str:
        return repr(self._shown)

    def _repr_html_(self) -> str:
        return self._shown._repr_html_()


def parameters() -> list[Parameter]:
    """All of them, in the order in which they are shown."""
    defaults: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(Options)}
    return [
        Parameter(f.name, str(f.type).partition(" |")[0], defaults[f.name], f.metadata["help"], f.metadata["optional"])
        for f in dataclasses.fields(Options)
    ]


def cell(names: Sequence[str], defaults: Mapping[str, Any] | None = None) -> str:
    """The parameters cell of a notebook: one line `name: type = default  # help` for each of these parameters."""
    known, defaults = {p.name: p for p in parameters()}, defaults or {}
    return "\n".join(
        f"{name}: {known[name].kind} = {_written(defaults.get(name, known[name].default))}  # {known[name].help}"
        for name in names
    )


def lines() -> list[str]:
    """One line per parameter for a terminal."""
    return [f"{p.name} ({p.kind}, default {p.default!r})\n    {p.help}" for p in parameters()]


def _written(value) -> str:
    """A value as Python source, text in double quotes."""
    return f'"{value}"' if isinstance(value, str) else repr(value)
