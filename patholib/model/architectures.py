"""The networks of the library: everything that is known of one stands in its entry of NETWORKS, and nowhere else.

A network of torchvision joins with one entry. Recipes, options, freezing, head, weights, export, downloads, the table
of the documentation and the tests that go through all networks take their facts from here. Without torch: the
constructor is named here and imported by `construct`, when a network is built.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in [0, 1]
WEIGHTS = "https://download.pytorch.org/models/"  # where torchvision publishes its weights


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One network: how it is built, where it is cut into blocks, and what its pretrained weights expect."""

    words: str  # what people call it
    constructor: str  # "module:function", called with weights=None
    weights: str  # address of its ImageNet weights; the file name ends in the first digits of its SHA-256
    blocks: Mapping[str, tuple[str, ...]]  # from the image on: a block's name, and its modules to run in turn
    head: str  # attribute that the recipe's head replaces; before it come a global average and nothing else
    channels: int  # of the maps after the last block
    mean: tuple[float, float, float] = IMAGENET_MEAN  # what the weights expect to be subtracted from each channel
    std: tuple[float, float, float] = IMAGENET_STD  # and by what to divide it then
    last_norm: str = ""  # the last BatchNorm of a residual block, which starts at 0 where weights are random
    demo_epochs: int = 14  # enough to learn the demo images from random weights

    @property
    def normalization(self) -> dict[str, list[float]]:
        """Mean and standard deviation as JSON values."""
        return {"mean": list(self.mean), "std": list(self.std)}

    @property
    def weights_file(self) -> str:
        """The name of the file of ImageNet weights."""
        return self.weights.rpartition("/")[2]


def _numbered(module: str, count: int) -> dict[str, tuple[str, ...]]:
    """The parts of a Sequential as blocks: {"layer1[0]": ("layer1.0",), ...}."""
    return {f"{module}[{i}]": (f"{module}.{i}",) for i in range(count)}


def _resnet(*counts: int) -> dict[str, tuple[str, ...]]:
    """The blocks of a ResNet with so many residual blocks in each of its four layers."""
    blocks: dict[str, tuple[str, ...]] = {"stem": ("conv1", "bn1", "relu", "maxpool")}
    for number, count in enumerate(counts, 1):
        blocks |= _numbered(f"layer{number}", count)
    return blocks


NETWORKS = {
    "resnet50": Architecture(  # V2: the same network after a longer training, 80.9 % instead of 76.1 % on ImageNet
        words="ResNet50",
        constructor="torchvision.models:resnet50",
        weights=f"{WEIGHTS}resnet50-11ad3fa6.pth",
        blocks=_resnet(3, 4, 6, 3),
        head="fc",
        channels=2048,
        last_norm="bn3",
    ),
    "resnet18": Architecture(
        words="ResNet18",
        constructor="torchvision.models:resnet18",
        weights=f"{WEIGHTS}resnet18-f37072fd.pth",
        blocks=_resnet(2, 2, 2, 2),
        head="fc",
        channels=512,
        last_norm="bn2",
    ),
    "resnet34": Architecture(
        words="ResNet34",
        constructor="torchvision.models:resnet34",
        weights=f"{WEIGHTS}resnet34-b627a593.pth",
        blocks=_resnet(3, 4, 6, 3),
        head="fc",
        channels=512,
        last_norm="bn2",
    ),
    "mobilenet_v3_large": Architecture(
        words="MobileNetV3-Large",
        constructor="torchvision.models:mobilenet_v3_large",
        weights=f"{WEIGHTS}mobilenet_v3_large-5c1a4163.pth",
        blocks=_numbered("features", 17),
        head="classifier",
        channels=960,
    ),
    "efficientnet_b0": Architecture(
        words="EfficientNet-B0",
        constructor="torchvision.models:efficientnet_b0",
        weights=f"{WEIGHTS}efficientnet_b0_rwightman-7f5810bc.pth",
        blocks=_numbered("features", 9),
        head="classifier",
        channels=1280,
        demo_epochs=36,
    ),  # a step of the smaller network costs a third
}


def construct(arch: str) -> nn.Module:
    """The network itself with random weights and its own head."""
    module, name = NETWORKS[arch].constructor.split(":")
    return getattr(importlib.import_module(module), name)(weights=None)


def as_markdown() -> str:
    """The table of networks for the documentation, in Markdown."""
    lines = ["| network | blocks | first block ... last block | maps | ImageNet weights |", "|---|---|---|---|---|"]
    for arch, entry in NETWORKS.items():
        names = list(entry.blocks)
        lines.append(
            f"| `{arch}` | {len(names)} | `{names[0]}` ... `{names[-1]}` | {entry.channels} channels "
            f"| [{entry.weights_file}]({entry.weights}) |"
        )
    return "\n".join(lines) + "\n"
