"""The classifier: a network with the recipe's head, split into `features` and `classify` over named blocks.

Freezing counts blocks, Grad-CAM stops between two of them, and the state dict of a network of torchvision is
torchvision's own behind "net.".
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import nn
from torch.nn import functional

from patholib.base.errors import PathoError, nearest
from patholib.model import architectures, colour
from patholib.model.recipes import Recipe

Block = tuple[nn.Module, ...]
Network = TypeVar("Network", bound=nn.Module)


class Classifier(nn.Module):
    """Images (N, 3, H, W) in [0, 1] to logits (N, C); it subtracts the mean its weights expect, and divides, itself.

    arch, classes (in the order of the logits) and image_size are the recipe's. frozen and batchnorm are what `freeze`
    was last told. weights_source says where the backbone came from: kind ("none", "file", "imagenet", "hub"), file,
    sha256.
    """

    mean: torch.Tensor  # (1, 3, 1, 1), as std
    std: torch.Tensor

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.arch, self.classes, self.image_size = recipe.arch, tuple(recipe.classes), recipe.image_size
        self.architecture = architectures.of(recipe.arch)
        self.net = architectures.construct(recipe.arch, recipe.image_size)
        _check_entry(recipe.arch, self.net)
        self.net.set_submodule(self.architecture.head, _head(recipe, self.architecture.channels))
        if recipe.colour:  # within the network, so that whoever keeps its state keeps all of it
            self.net.colour = colour.ColourHead(recipe.colour, len(recipe.classes))
        # Constants, not state: outside the state dict, so that it stays torchvision's.
        self.register_buffer("mean", torch.tensor(self.architecture.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.architecture.std).view(1, 3, 1, 1), persistent=False)
        self.frozen, self.batchnorm = 0, "frozen"
        self.weights_source = {"kind": "none", "file": None, "sha256": None}

    @property
    def blocks(self) -> dict[str, Block]:
        """The backbone from the image on, name: modules to run in turn; looked up, so that no module has two names."""
        return {name: tuple(map(self.net.get_submodule, paths)) for name, paths in self.architecture.blocks.items()}

    @property
    def block_names(self) -> tuple[str, ...]:
        """The blocks in order: resnet50 "stem", "layer1[0]" ... "layer4[2]"; efficientnet_b0 "features[0]" ..."""
        return tuple(self.architecture.blocks)

    @property
    def sees_colour(self) -> bool:
        """Whether statistics of the image's colours add to the logits, beside the maps."""
        return hasattr(self.net, "colour")

    @property
    def added(self) -> tuple[str, str]:
        """How the names of those weights begin that the recipe adds, and no file of a pretrained backbone holds."""
        return f"{self.architecture.head}.", "colour."

    @property
    def head(self) -> nn.Module:
        """The recipe's layers after the global average: a Sequential, or with head_width=0 one Linear."""
        return self.net.get_submodule(self.architecture.head)

    def features(self, images: torch.Tensor, until: str | None = None) -> torch.Tensor:
        """The maps (N, K, h, w) after block `until`, or tokens (N, K, T): see `on_grid`. By default of the last block,
        where that one pools of the one before it.

        Errors: bad_images, unknown_block.
        """
        _check_images(images, self.image_size if self.architecture.fixed_size else None)
        maps = (images.to(self.mean.dtype) - self.mean) / self.std  # (N, 3, H, W)
        return self._run(maps, stop=self._position(until) + 1)

    def classify(
        self, maps: torch.Tensor, after: str | None = None, images: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits (N, C) from the maps or tokens of block `after`, by default as of `features`. Errors: unknown_block.

        With the images too, of which the maps are: what their colours add is then in it, where the recipe has that.
        It depends on no map, so that the gradient of a logit with respect to the maps is the same with it and without.
        """
        maps = self._run(maps, start=self._position(after) + 1)
        logits = self.head(_pooled(maps))  # (N, K, h, w) -> (N, K) -> (N, C)
        return logits if images is None or not self.sees_colour else logits + self.net.get_submodule("colour")(images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classify(self.features(images), images=images)

    def freeze(self, frozen: int, batchnorm: str) -> Classifier:
        """Freezes the first `frozen` blocks; everything after them, and the head, learns.

        batchnorm, in frozen blocks: "frozen": `train()` leaves them in eval mode whole, so neither statistics nor
        stochastic depth change what they compute. "drift": in train mode with fixed parameters, so the statistics
        follow the batches. "adapt": in train mode, and BatchNorm's weight and bias learn. Errors: bad_freeze.
        """
        if isinstance(frozen, bool) or not isinstance(frozen, int) or not 0 <= frozen <= len(self.block_names):
            raise PathoError(
                "bad_freeze",
                "frozen",
                f"is {frozen!r}, not a number of blocks",
                f"Give 0 to {len(self.block_names)} blocks",
            )
        self.frozen, self.batchnorm = frozen, batchnorm
        self.requires_grad_(True)
        for module in self.frozen_modules():
            learns = batchnorm == "adapt" and isinstance(module, nn.modules.batchnorm._BatchNorm)
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(learns)
                parameter.grad = parameter.grad if learns else None  # an optimizer passes over what has no gradient
        return self.train(self.training)

    def train(self, mode: bool = True) -> Classifier:
        """Train or eval mode as in any module, except that whole frozen blocks stay in eval mode."""
        super().train(mode)
        if self.batchnorm == "frozen":
            for module in self.frozen_modules():
                module.training = False
        return self

    def trainable_share(self) -> float:
        """The share of the parameters that learn, in [0, 1], head included."""
        learning, total = count(self.parameters())
        return learning / total

    def frozen_modules(self) -> Iterator[nn.Module]:
        """Every module within the frozen blocks."""
        return (inner for outer in self._modules_of_blocks(stop=self.frozen) for inner in outer.modules())

    def _modules_of_blocks(self, start: int = 0, stop: int | None = None) -> Iterator[nn.Module]:
        return itertools.chain.from_iterable(itertools.islice(self.blocks.values(), start, stop))

    def _run(self, maps: torch.Tensor, start: int = 0, stop: int | None = None) -> torch.Tensor:
        for module in self._modules_of_blocks(start, stop):
            maps = module(maps)
        return maps

    def _position(self, block: str | None) -> int:
        names = self.block_names
        if block is None:
            return len(names) - (2 if self.architecture.pools else 1)
        if block not in names:
            raise PathoError("unknown_block", block, f"is not a block of {self.arch}", nearest(block, names))
        return names.index(block)


class Encoder(nn.Module):
    """A network without its head: images (N, 3, H, W), turned, to the mean over each map of the last block, (N, K).

    turn: one of `augment.SYMMETRIES`. The weights are those of the network, not copies.
    """

    def __init__(self, model: Classifier, turn: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.model, self.turn = model, turn

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return _pooled(self.model.features(self.turn(images), self.model.block_names[-1]))


def on_grid(model, maps: torch.Tensor) -> torch.Tensor:
    """Maps (N, K, h, w) as they are; tokens (N, K, T) of patches where these lie, those before them left out."""
    if maps.ndim == 4:
        return maps
    patches = maps[:, :, model.architecture.prefix_tokens :]  # (N, K, h w), row after row of a square
    return patches.unflatten(2, (math.isqrt(patches.shape[2]), -1))


def _pooled(maps: torch.Tensor) -> torch.Tensor:
    """(N, K, h, w) -> (N, K)"""
    return functional.adaptive_avg_pool2d(maps, 1).flatten(1)


def _head(recipe: Recipe, channels: int) -> nn.Module:
    if not recipe.head_width:
        return nn.Linear(channels, len(recipe.classes))
    first, second = recipe.head_dropout
    norm, relu = nn.BatchNorm1d(recipe.head_width), nn.ReLU()
    middle = (norm, relu) if recipe.head_order == "batchnorm_relu" else (relu, norm)
    return nn.Sequential(
        nn.Dropout(first),
        nn.Linear(channels, recipe.head_width),
        *middle,
        nn.Dropout(second),
        nn.Linear(recipe.head_width, len(recipe.classes)),
    )


def _check_entry(arch: str, net: nn.Module) -> None:
    """Stops at an entry of NETWORKS that is not of this network. Errors: bad_network, with the field as its subject."""
    entry, known = architectures.of(arch), [name for name, _ in net.named_modules()]

    def refuse(field: str, reason: str, remedy: str = "Compare the entry with the network's named_modules()"):
        raise PathoError("bad_network", f"{field} of {arch!r} in NETWORKS", reason, remedy)

    parts = [path for paths in entry.blocks.values() for path in paths]
    for field, paths in (("blocks", parts), ("head", [entry.head])):
        for path in paths:
            if path not in known:
                refuse(field, f"names {path!r}, which is no module of the network", nearest(path, known))
    own = [name for name, _ in net.named_parameters()]
    listed = [
        f"{path}.{name}" for path in (*parts, entry.head) for name, _ in net.get_submodule(path).named_parameters()
    ]
    for name, other in itertools.zip_longest(own, listed):
        if name != other:
            refuse("blocks and head", f"do not hold the network's parameters in their order: {other} instead of {name}")
    width = next((m.in_features for m in net.get_submodule(entry.head).modules() if isinstance(m, nn.Linear)), None)
    if width not in (None, entry.channels):
        refuse("channels", f"is {entry.channels}, but the network's own head takes {width}", f"Write {width}")


def _check_images(images: torch.Tensor, size: int | None) -> None:
    # Type and shape only: a look at the values would make a GPU wait.
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        kind = f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
        raise PathoError(
            "bad_images",
            "images",
            f"are {kind}, not floats in [0, 1] of shape (N, 3, H, W)",
            "Make them with augment.plain_views or training_views",
        )
    if size and images.shape[2:] != (size, size):
        raise PathoError(
            "bad_images",
            "images",
            f"are {images.shape[2]} x {images.shape[3]}, and this network takes {size} x {size} pixels alone",
            "Make them of the model's image_size",
        )


def count(parameters) -> tuple[int, int]:
    """(parameters that learn, all parameters)"""
    sizes = [(p.numel() * p.requires_grad, p.numel()) for p in parameters]
    return sum(learning for learning, _ in sizes), sum(total for _, total in sizes)


def evaluating(model: Network) -> Network:
    """The model in eval mode: itself where it already is, else a twin that shares every tensor.

    So looking at a model never switches it, not even for a moment in which another thread trains it.
    """
    if not any(module.training for module in model.modules()):
        return model
    tensors = itertools.chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(t): t for t in tensors}).eval()  # "already copied": the tensors stay the same


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The mixed-precision context; fp32 is the same context, switched off."""
    dtype = {"fp32": torch.bfloat16, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")
