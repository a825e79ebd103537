"""The networks of the library and what is known of each."""

from __future__ import annotations

from torch import nn
from torchvision import models as zoo

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, of RGB in [0, 1]

# name: torchvision's network, the weights meant by "imagenet", the name of its head, channels of the last maps.
# ResNet50 takes V2: the same network after a longer training, 80.9 % instead of 76.1 % top-1 on ImageNet.
NETWORKS = {
    "resnet50": (zoo.resnet50, zoo.ResNet50_Weights.IMAGENET1K_V2, "fc", 2048),
    "resnet18": (zoo.resnet18, zoo.ResNet18_Weights.IMAGENET1K_V1, "fc", 512),
    "efficientnet_b0": (zoo.efficientnet_b0, zoo.EfficientNet_B0_Weights.IMAGENET1K_V1, "classifier", 1280),
}

Block = tuple[nn.Module, ...]
