"""A trained network made faster for prediction: BatchNorm folded into convolutions."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from patholib.model.networks import Classifier, Network


def folded(model: Network) -> Network:
    """A copy in eval mode that computes the same with every BatchNorm multiplied into the convolution before it.

    For inference alone: it has no BatchNorm to train. A third fewer passes over the maps on a CPU.
    """
    copied = copy.deepcopy(model).eval()
    for parent in list(copied.modules()):
        children = list(parent.named_children())
        for (name, layer), (after, norm) in itertools.pairwise(children):
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(layer, norm))
                setattr(parent, after, nn.Identity())
    return copied


def for_prediction(model: nn.Module) -> nn.Module:
    """A copy that only predicts, one image of model.image_size at a time: `folded`, and `Packed` on a processor."""
    network = folded(model).to(memory_format=torch.channels_last)
    if not (isinstance(network, Classifier) and Packed.possible(network)):
        return network
    packed, image = copy.deepcopy(network), network.mean.new_full((1, 3, network.image_size, network.image_size), 0.5)
    image = image.contiguous(memory_format=torch.channels_last)
    seen: dict[nn.Module, tuple[int, ...]] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda layer, given: seen.update({layer: tuple(given[0].shape)}))
        for layer in packed.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    with torch.inference_mode():
        packed(image)
        for hook in hooks:
            hook.remove()
        try:
            for parent in list(packed.modules()):
                for name, layer in list(parent.named_children()):
                    if isinstance(layer, nn.Conv2d) and layer in seen:
                        setattr(parent, name, Packed(layer, seen[layer]))
            # Of the maps and not of the logits, in whose larger numbers their last bits are lost.
            return packed if torch.equal(packed.features(image), network.features(image)) else network
        except (RuntimeError, TypeError):  # what it calls is PyTorch's own business, and may change
            return network


class Packed(nn.Module):
    """A convolution whose weights lie as oneDNN reads them, which otherwise orders them anew for every single image.

    It computes the same bits; one image at a time is then as quick as a batch.
    """

    def __init__(self, layer: nn.Conv2d, shape: tuple[int, ...]):
        super().__init__()
        self.how = (layer.padding, layer.stride, layer.dilation, layer.groups)
        self.bias = layer.bias
        reorder: Callable = torch._C._nn.mkldnn_reorder_conv2d_weight  # its stub knows one argument alone
        self.weight = reorder(layer.weight.detach().to_mkldnn(), *self.how, shape)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._convolution_pointwise(maps, self.weight, self.bias, *self.how, "none", [], "")

    @staticmethod
    def possible(model: nn.Module) -> bool:
        """Whether this PyTorch knows how; these names are its own and may go with another version."""
        names = (
            hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight"),
            hasattr(torch.ops.mkldnn, "_convolution_pointwise"),
        )
        plain = all(
            layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
            for layer in model.modules()
            if isinstance(layer, nn.Conv2d)
        )
        on_cpu = {(tensor.device.type, tensor.dtype) for tensor in model.parameters()} == {("cpu", torch.float32)}
        return all(names) and plain and on_cpu and torch.backends.mkldnn.is_available()
