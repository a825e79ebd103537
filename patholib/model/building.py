"""A network built and initialised as a recipe says."""

from __future__ import annotations

import torch
from torch import nn

from patholib.model import architectures, encoders, weights
from patholib.model.networks import Classifier
from patholib.model.recipes import Recipe


def build(recipe: Recipe, generator_seed: int | None = None) -> Classifier:
    """The recipe's classifier in train mode, frozen as its first stage says, on the CPU.

    What has no given weights (the head; with weights="none" everything) is drawn from `generator_seed`, by default
    recipe.seed, and the global generators stay as they were. recipe.weights: "none"; the path of a torchvision state
    dict (.pth or .safetensors; its head is passed over), held against `<path>.sha256` where that exists; or "imagenet":
    the published file, looked for in PATHOLIB_WEIGHTS (the file or its folder), in what is attached (`places`), in
    `data/weights` of the project, torch.hub's folder and the package that holds it, then downloaded, which is said
    first. Its SHA-256 must begin as its name says. Of a network of timm also "hub": see `encoders.from_hub`.
    Errors: bad_parameter, weights_missing, weights_damaged, weights_unreadable, weights_mismatch, bad_network.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # The CPU generator alone: torch.manual_seed would seed the GPUs too, which fork_rng does not restore here.
        torch.default_generator.manual_seed(recipe.seed if generator_seed is None else generator_seed)
        model = Classifier(recipe)
        if recipe.weights == "none":
            _begin_as_identity(model)
    architectures.check(recipe.arch, recipe.weights, recipe.image_size)
    if recipe.weights == "imagenet":
        weights.load_backbone(model, "imagenet", *weights.find_or_fetch(recipe.arch))
    elif architectures.is_file(recipe.weights):
        path = weights.given_file(recipe.weights)
        weights.load_backbone(model, "file", path, weights.expected_digest(path, recipe.arch))
    elif recipe.weights != "none":
        weights.load_backbone(model, "hub", encoders.from_hub(recipe.arch, recipe.weights))
    return model.freeze(recipe.stages[0].frozen, recipe.batchnorm)


def _begin_as_identity(model: Classifier) -> None:
    """Lets residual blocks begin as the identity: their last BatchNorm starts at 0 (Goyal et al. 2017, section 5.1)."""
    last = model.architecture.last_norm
    for module in model.modules():
        if last and hasattr(module, last):
            nn.init.zeros_(getattr(module, last).weight)
