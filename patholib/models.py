"""The classifier: a torchvision network with the recipe's head, split into `features` and `classify` over named blocks.

Freezing counts blocks, Grad-CAM stops between two of them, and the state dict is torchvision's own behind "net.".
"""

from __future__ import annotations

import copy
import hashlib
import io
import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision import models as networks

from patholib import colour, fetch, files
from patholib.errors import PathoError, nearest
from patholib.places import attached
from patholib.processes import Team
from patholib.recipes import CHOICES, Recipe

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, of RGB in [0, 1]

# name: torchvision's network, the weights meant by "imagenet", the name of its head, channels of the last maps.
# ResNet50 takes V2: the same network after a longer training, 80.9 % instead of 76.1 % top-1 on ImageNet.
NETWORKS = {
    "resnet50": (networks.resnet50, networks.ResNet50_Weights.IMAGENET1K_V2, "fc", 2048),
    "resnet18": (networks.resnet18, networks.ResNet18_Weights.IMAGENET1K_V1, "fc", 512),
    "efficientnet_b0": (networks.efficientnet_b0, networks.EfficientNet_B0_Weights.IMAGENET1K_V1, "classifier", 1280),
}

Block = tuple[nn.Module, ...]

FEW = 2  # tries in a row without a byte: a training that has no network says so in seconds


class Classifier(nn.Module):
    """Images (N, 3, H, W) in [0, 1] to logits (N, C); it normalises with ImageNet's mean and deviation itself.

    arch, classes (in the order of the logits) and image_size are the recipe's. frozen and batchnorm are what `freeze`
    was last told. weights_source says where the backbone came from: kind ("none", "file", "imagenet"), file, sha256.
    """

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.arch, self.classes, self.image_size = recipe.arch, tuple(recipe.classes), recipe.image_size
        network, _, self.head_name, channels = NETWORKS[recipe.arch]
        self.net = network(weights=None)
        setattr(self.net, self.head_name, _head(recipe, channels))
        if recipe.colour:  # within the network, so that whoever keeps its state keeps all of it
            self.net.colour = colour.Beside(recipe.colour, len(recipe.classes))
        # Constants, not state: outside the state dict, so that it stays torchvision's.
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self.frozen, self.batchnorm = 0, "frozen"
        self.weights_source = {"kind": "none", "file": None, "sha256": None}

    @property
    def blocks(self) -> dict[str, Block]:
        """The backbone from the image on, name: modules to run in turn; looked up, so that no module has two names."""
        net = self.net
        if self.arch == "efficientnet_b0":
            return {f"features[{i}]": (block,) for i, block in enumerate(net.features)}
        blocks: dict[str, Block] = {"stem": (net.conv1, net.bn1, net.relu, net.maxpool)}
        for layer in ("layer1", "layer2", "layer3", "layer4"):
            blocks |= {f"{layer}[{i}]": (block,) for i, block in enumerate(getattr(net, layer))}
        return blocks

    @property
    def block_names(self) -> tuple[str, ...]:
        """The blocks in order: resnet50 "stem", "layer1[0]" ... "layer4[2]"; efficientnet_b0 "features[0]" ..."""
        return tuple(self.blocks)

    @property
    def sees_colour(self) -> bool:
        """Whether statistics of the image's colours add to the logits, beside the maps."""
        return hasattr(self.net, "colour")

    @property
    def own(self) -> tuple[str, str]:
        """How the names of the weights begin that are the recipe's, and in no file of a pretrained backbone."""
        return f"{self.head_name}.", "colour."

    @property
    def head(self) -> nn.Sequential:
        """The recipe's layers after the global average."""
        return getattr(self.net, self.head_name)

    def features(self, images: torch.Tensor, until: str | None = None) -> torch.Tensor:
        """The maps (N, K, h, w) after block `until`, the last one by default. Errors: bad_images, unknown_block."""
        _refuse_other_than_images(images)
        maps = (images.to(self.mean.dtype) - self.mean) / self.std  # (N, 3, H, W)
        for block in self._blocks(stop=self._position(until) + 1):
            for module in block:
                maps = module(maps)
        return maps

    def classify(self, maps: torch.Tensor, after: str | None = None, images: torch.Tensor | None = None
                 ) -> torch.Tensor:
        """Logits (N, C) from the maps of block `after`, the last one by default. Errors: unknown_block.

        With the images too, of which the maps are: what their colours add is then in it, where the recipe has that.
        It depends on no map, so that the gradient of a logit with respect to the maps is the same with it and without.
        """
        for block in self._blocks(start=self._position(after) + 1):
            for module in block:
                maps = module(maps)
        logits = self.head(self.net.avgpool(maps).flatten(1))  # (N, K, 1, 1) -> (N, K) -> (N, C)
        return logits if images is None or not self.sees_colour else logits + self.net.colour(images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classify(self.features(images), images=images)

    def freeze(self, frozen: int, batchnorm: str) -> Classifier:
        """Lets the first `frozen` blocks not learn; everything after them, and the head, does.

        batchnorm, in frozen blocks: "frozen": `train()` leaves them in eval mode whole, so neither statistics nor
        stochastic depth change what they compute. "drift": in train mode with fixed parameters, so the statistics
        follow the batches. "adapt": in train mode, and BatchNorm's weight and bias learn. Errors: bad_freeze.
        """
        if isinstance(frozen, bool) or not isinstance(frozen, int) or not 0 <= frozen <= len(self.blocks):
            raise PathoError("bad_freeze", "frozen", f"is {frozen!r}", f"Give 0 to {len(self.blocks)} blocks")
        if batchnorm not in CHOICES["batchnorm"]:
            raise PathoError("bad_freeze", "batchnorm", f"is {batchnorm!r}", nearest(batchnorm, CHOICES["batchnorm"]))
        self.frozen, self.batchnorm = frozen, batchnorm
        self.requires_grad_(True)
        for module in self._frozen_modules():
            learns = batchnorm == "adapt" and isinstance(module, nn.modules.batchnorm._BatchNorm)
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(learns)
                parameter.grad = parameter.grad if learns else None  # an optimizer passes over what has no gradient
        return self.train(self.training)

    def train(self, mode: bool = True) -> Classifier:
        """Train or eval mode as in any module, except that whole frozen blocks stay in eval mode."""
        super().train(mode)
        if self.batchnorm == "frozen":
            for module in self._frozen_modules():
                module.training = False
        return self

    def trainable_share(self) -> float:
        """Parameters that learn, as a share in [0, 1] of all, head included."""
        learning, total = _count(self.parameters())
        return learning / total

    def _blocks(self, start: int = 0, stop: int | None = None) -> Iterator[Block]:
        return itertools.islice(self.blocks.values(), start, stop)

    def _frozen_modules(self) -> Iterator[nn.Module]:
        return (inner for block in self._blocks(stop=self.frozen) for outer in block for inner in outer.modules())

    def _position(self, block: str | None) -> int:
        names = self.block_names
        if block is None:
            return len(names) - 1
        if block not in names:
            raise PathoError("unknown_block", block, f"is no block of {self.arch}", nearest(block, names))
        return names.index(block)


def _head(recipe: Recipe, channels: int) -> nn.Sequential:
    first, second = recipe.head_dropout
    norm, relu = nn.BatchNorm1d(recipe.head_width), nn.ReLU()
    middle = (norm, relu) if recipe.head_order == "batchnorm_relu" else (relu, norm)
    return nn.Sequential(nn.Dropout(first), nn.Linear(channels, recipe.head_width), *middle,
                         nn.Dropout(second), nn.Linear(recipe.head_width, len(recipe.classes)))


def _refuse_other_than_images(images: torch.Tensor) -> None:
    # Type and shape only: a look at the values would make a GPU wait.
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        kind = f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
        raise PathoError("bad_images", "images", f"are {kind}, not floats in [0, 1] of shape (N, 3, H, W)",
                         "Make them with augment.plain_views or training_views")


def _count(parameters) -> tuple[int, int]:
    """(those that learn, all)"""
    sizes = [(p.numel() * p.requires_grad, p.numel()) for p in parameters]
    return sum(learning for learning, _ in sizes), sum(total for _, total in sizes)


def build(recipe: Recipe, generator_seed: int | None = None) -> Classifier:
    """The recipe's classifier in train mode, frozen as its first stage says, on the CPU.

    What has no given weights (the head; with weights="none" everything) is drawn from `generator_seed`, by default
    recipe.seed, and the global generators stay as they were. recipe.weights: "none"; the path of a torchvision state
    dict (.pth or .safetensors; its head is passed over), held against `<path>.sha256` where that exists; or "imagenet":
    torchvision's file, looked for in PATHOLIB_WEIGHTS (the file or its folder), in what is attached (`places`), in
    `data/weights` of the project and torch.hub's folder, then downloaded, which is said first. Its SHA-256 must begin
    as its name says.
    Errors: weights_missing, weights_damaged, weights_unreadable, weights_mismatch.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # The CPU generator alone: torch.manual_seed would seed the GPUs too, which fork_rng does not restore here.
        torch.default_generator.manual_seed(recipe.seed if generator_seed is None else generator_seed)
        model = Classifier(recipe)
        if recipe.weights == "none":
            _begin_as_identity(model)
    if recipe.weights == "imagenet":
        _load_backbone(model, "imagenet", *_found_or_fetched(recipe.arch))
    elif recipe.weights != "none":
        path = given_file(recipe.weights)
        _load_backbone(model, "file", path, _stated(path, recipe.arch))
    return model.freeze(recipe.stages[0].frozen, recipe.batchnorm)


def _begin_as_identity(model: Classifier) -> None:
    """Lets every residual block begin as the identity: its last BatchNorm starts at 0 (Goyal et al. 2017, section 5.1).

    A deep random network then learns from the first steps on instead of the hundredth.
    """
    for module in model.modules():
        if isinstance(module, networks.resnet.Bottleneck):
            nn.init.zeros_(module.bn3.weight)
        elif isinstance(module, networks.resnet.BasicBlock):
            nn.init.zeros_(module.bn2.weight)


def given_file(weights: str) -> Path:
    """The file of a recipe's weights="<path>". Errors: weights_missing."""
    # A notebook may run in its own folder or in its caller's: a relative path counts from either or from the project.
    tried = [Path(weights).expanduser().absolute()]
    if not tried[0].is_file() and not Path(weights).expanduser().is_absolute():
        tried.append(files.project_root() / weights)
    for path in tried:
        if path.is_file():
            return path
    raise PathoError("weights_missing", weights, f"is no file (tried {', '.join(map(str, tried))})",
                     'Correct the path, or set weights="none" to train from scratch')


def imagenet_file(arch: str) -> fetch.Remote:
    """torchvision's file of ImageNet weights, whose name says how its SHA-256 begins. Errors: unknown_arch."""
    if arch not in NETWORKS:
        raise PathoError("unknown_arch", arch, "is no network of this library", nearest(arch, NETWORKS))
    url = NETWORKS[arch][1].url
    name = url.rpartition("/")[2]
    return fetch.Remote(url, name, sha256=re.search(r"-([0-9a-f]{8,})\.", name)[1])


def _found_or_fetched(arch: str) -> tuple[Path, str]:
    """torchvision's file of ImageNet weights on this machine, and how its SHA-256 must begin."""
    remote = imagenet_file(arch)
    hub = Path(torch.hub.get_dir()) / "checkpoints"  # where torchvision, and whatever else uses it, looks too
    own = dict.fromkeys(folder / "weights" / remote.name for folder in (files.project_root() / "data", files.remade()))
    places = [*attached(remote.name), *own, hub / remote.name]
    if chosen := os.environ.get("PATHOLIB_WEIGHTS"):
        chosen = Path(chosen).expanduser()
        places.insert(0, chosen if chosen.is_file() else chosen / remote.name)
    for path in places:
        if path.is_file():
            return path, remote.sha256
    print(f"downloading {remote.url} to {hub}", flush=True)
    try:
        return fetch.fetch(remote, hub, patience=FEW, wait=True), remote.sha256
    except PathoError as error:  # no network, no space; a digest that does not match
        raise PathoError("weights_missing", remote.name,
                         f"is not at {', '.join(map(str, places))}, and the download failed ({error.reason})",
                         f"Put it into {places[-2].parent}, fetched elsewhere by `patholib download weights-{arch}`, "
                         'or set weights="none" to train from scratch') from error


def _stated(path: Path, arch: str) -> str:
    """How the SHA-256 of a given file must begin: as `<path>.sha256` says (sha256sum's), or a name of torchvision's."""
    beside, official = path.with_name(f"{path.name}.sha256"), imagenet_file(arch)
    if beside.is_file():
        return beside.read_text(encoding="utf-8", errors="replace").partition(" ")[0].strip().lower()
    return official.sha256 if path.name == official.name else ""


def _load_backbone(model: Classifier, kind: str, path: Path, digest: str = "") -> None:
    """Copies the backbone of a state dict into the model; all differences are told at once."""
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if not sha256.startswith(digest):
        raise PathoError("weights_damaged", path.name, f"has SHA-256 {sha256[:12]}..., which must begin with {digest}",
                         f'Delete {path} to have it fetched again; other weights are given as weights="<path>"'
                         if kind == "imagenet" else "Copy it again from where you have it")
    given = {k: v for k, v in _state_dict(content, path.name).items() if not k.startswith(model.own)}
    wanted = {k: v for k, v in model.net.state_dict().items() if not k.startswith(model.own)}
    differences = [f"{k} is missing" for k in wanted.keys() - given.keys() if not k.endswith("num_batches_tracked")]
    differences += [f"{k} is unknown" for k in given.keys() - wanted.keys()]
    for k in sorted(wanted.keys() & given.keys()):
        if wanted[k].shape != given[k].shape:
            differences.append(f"{k} is {tuple(given[k].shape)} instead of {tuple(wanted[k].shape)}")
        elif not torch.isfinite(given[k]).all():
            differences.append(f"{k} holds values that are not finite")
    if differences:
        more = f"; and {len(differences) - 8} more" if len(differences) > 8 else ""
        raise PathoError("weights_mismatch", path.name, f"does not fit {model.arch}: "
                         + "; ".join(sorted(differences)[:8]) + more, "Give torchvision's state dict of this network")
    model.net.load_state_dict(model.net.state_dict() | given)
    model.weights_source = {"kind": kind, "file": path.name, "sha256": sha256}


def _state_dict(content: bytes, name: str) -> dict[str, torch.Tensor]:
    try:
        if name.endswith(".safetensors"):
            import safetensors.torch

            state = safetensors.torch.load(content)
        else:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # every reader has its own errors for damaged bytes
        raise PathoError("weights_unreadable", name, f"is no state dict ({type(error).__name__})",
                         "Give a file of tensors, saved by torch.save(net.state_dict(), ...) or safetensors") from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise PathoError("weights_unreadable", name, "holds something other than named tensors",
                         "Save net.state_dict() alone")
    return state


# ------------------------------------------------------------------------------------------- BatchNorm of several


def share_batchnorm(model: nn.Module, team: Team) -> None:
    """Lets every BatchNorm of the model learn from the images of all processes, which share every batch.

    In train mode alone; of one process nothing is changed. Parameters, statistics and their names stay what they are.
    """
    if team.count == 1:
        return
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if kind := SHARED.get(type(norm)):
                setattr(parent, name, kind(norm, team))


class _Shared(nn.modules.batchnorm._BatchNorm):
    """A BatchNorm whose statistics are those of the whole batch, of which this process has a share."""

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm, team: Team):
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.weight, self.bias, self.training = norm.weight, norm.bias, norm.training
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked, self.team = norm.num_batches_tracked, team

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps (N, K, h, w), or (N, K), normalised; N may be 0 here, as long as other processes have images."""
        if not self.training:
            return super().forward(maps)
        normal, mean, variance, number = _Normalised.apply(maps, self.weight, self.bias, self.eps, self.team)
        with torch.no_grad():
            seen = self.momentum * (number > 0).to(mean.dtype)  # not in a pass that only keeps others company
            self.running_mean.lerp_(mean, seen)
            self.running_var.lerp_(variance * (number / (number - 1).clamp_min(1)), seen)
            self.num_batches_tracked.add_(number > 0)
        return normal


class _Shared1d(_Shared, nn.BatchNorm1d):
    """Of (N, K)."""


class _Shared2d(_Shared, nn.BatchNorm2d):
    """Of (N, K, h, w)."""


SHARED = {nn.BatchNorm1d: _Shared1d, nn.BatchNorm2d: _Shared2d}


class _Normalised(torch.autograd.Function):
    """Batch normalisation over the images of all processes; its gradient too is that of the whole batch.

    torch's SyncBatchNorm does so on GPUs alone. Processes exchange number, mean and squared deviations, not squares,
    whose difference would lose digits (Chan, Golub & LeVeque 1983, equation 2.1).
    """

    @staticmethod
    def forward(ctx, maps, weight, bias, eps, team):
        exact = torch.promote_types(maps.dtype, torch.float32)
        over, values = [0, *range(2, maps.ndim)], maps.to(exact)
        number = maps.numel() // maps.shape[1]  # of each channel
        spread, mean = torch.var_mean(values, over, correction=0) if number else 2 * [values.new_zeros(len(weight))]
        own = torch.cat([mean.new_tensor([number]), mean, spread * number]).double()
        numbers, means, spreads = team.gather(own).split([1, len(weight), len(weight)], dim=1)  # (processes, 1 or K)
        total = numbers.sum()
        mean = (numbers * means).sum(0) / total.clamp_min(1)
        variance = (spreads + numbers * (means - mean) ** 2).sum(0) / total.clamp_min(1)
        total, mean, variance = total.to(exact), mean.to(exact), variance.to(exact)
        ctx.save_for_backward(maps, weight, mean, (variance + eps).rsqrt(), total)
        ctx.team, ctx.over = team, over
        ctx.mark_non_differentiable(mean, variance, total)
        return functional.batch_norm(maps, mean, variance, weight, bias, False, 0.0, eps), mean, variance, total

    @staticmethod
    def backward(ctx, slope, *_):
        maps, weight, mean, scale, total = ctx.saved_tensors
        shape = (1, -1, *[1] * (maps.ndim - 2))
        slope, normal = slope.to(mean.dtype), (maps.to(mean.dtype) - mean.view(shape)) * scale.view(shape)
        of_weight, of_bias = (slope * normal).sum(ctx.over), slope.sum(ctx.over)  # of the images here
        both = ctx.team.gather(torch.stack([of_weight, of_bias])).sum(0) / total.clamp_min(1)  # (2, K), of all
        rest = slope - normal * both[0].view(shape) - both[1].view(shape)
        return (rest * (weight * scale).view(shape)).to(maps.dtype), of_weight, of_bias, None, None


def evaluating(model: nn.Module) -> nn.Module:
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


def folded(model: Classifier) -> Classifier:
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
    hooks = [layer.register_forward_pre_hook(lambda layer, given: seen.update({layer: tuple(given[0].shape)}))
             for layer in packed.modules() if isinstance(layer, nn.Conv2d)]
    with torch.inference_mode():
        packed(image)
        for hook in hooks:
            hook.remove()
        try:
            for parent in list(packed.modules()):
                for name, layer in list(parent.named_children()):
                    if layer in seen:
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
        self.weight = torch._C._nn.mkldnn_reorder_conv2d_weight(layer.weight.detach().to_mkldnn(), *self.how, shape)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._convolution_pointwise(maps, self.weight, self.bias, *self.how, "none", [], "")

    @staticmethod
    def possible(model: nn.Module) -> bool:
        """Whether this PyTorch knows how; these names are its own and may go with another version."""
        names = (hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight"),
                 hasattr(torch.ops.mkldnn, "_convolution_pointwise"))
        plain = all(layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
                    for layer in model.modules() if isinstance(layer, nn.Conv2d))
        on_cpu = {(tensor.device.type, tensor.dtype) for tensor in model.parameters()} == {("cpu", torch.float32)}
        return all(names) and plain and on_cpu and torch.backends.mkldnn.is_available()


def block_maps(model: Classifier) -> Iterator[tuple[str, torch.Tensor]]:
    """Each block's name and its maps (1, K, h, w) of one black image of model.image_size; the model stays as it is."""
    still = evaluating(model)
    maps = still.mean.new_zeros(1, 3, model.image_size, model.image_size)
    for name, block in still.blocks.items():
        with torch.no_grad():
            for module in block:
                maps = module(maps)
        yield name, maps


def describe(model: Classifier) -> pd.DataFrame:
    """One row per block, then backbone, head, colour (if any) and model: parameters, trainable, share, output.

    output is the shape for one image of model.image_size, as "256 x 14 x 14". The model is left as it is.
    """
    rows = []

    def add(name: str, parameters, output: torch.Tensor) -> None:
        trainable, total = _count(parameters)
        rows.append({"block": name, "parameters": total, "trainable": trainable, "share": trainable / total,
                     "output": " x ".join(map(str, output.shape[1:]))})

    still = evaluating(model)
    for name, maps in block_maps(still):
        add(name, itertools.chain(*(module.parameters() for module in still.blocks[name])), maps)
    with torch.no_grad():
        logits = still.classify(maps)
    add("backbone", [p for k, p in still.net.named_parameters() if not k.startswith(still.own)], maps)
    add("head", still.head.parameters(), logits)
    if still.sees_colour:
        add("colour", still.net.colour.parameters(), logits)
    add("model", still.parameters(), logits)
    return pd.DataFrame(rows)


def describe_stages(recipe: Recipe) -> pd.DataFrame:
    """One row per stage of unfreezing: first epoch (from 1), frozen blocks, first block that learns, lr factor, shares.

    The shares are of the weights that learn, in the backbone and in the whole model, head included.
    """
    model = build(replace(recipe, weights="none"))
    rows = []
    for stage in recipe.stages:
        model.freeze(stage.frozen, recipe.batchnorm)
        shares = describe(model).set_index("block")["share"]
        rows.append({"from epoch": stage.first_epoch(recipe.epochs) + 1, "frozen": stage.frozen,
                     "learns from": (*model.block_names, "head")[stage.frozen], "lr factor": stage.lr_scale,
                     "backbone share": shares["backbone"], "model share": shares["model"]})
    return pd.DataFrame(rows)


def drift(model: Classifier, images: torch.Tensor, others: torch.Tensor, passes: int = 20) -> float:
    """How much the frozen blocks change their maps of `images` (N, 3, H, W) by looking at `others`, without any step.

    Both are shown in train mode, first `images` until the statistics have settled on them, then `others`; between the
    two the maps are compared: norm of the change / norm. 0 where frozen blocks stay in eval mode, or none is frozen.
    A copy of the model is used, and the random generators stay as they were.
    """
    if not model.frozen:
        return 0.0
    model, last = copy.deepcopy(model).train(), model.block_names[model.frozen - 1]
    maps = []
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # of stochastic depth, which train mode wakes as well
        for shown in (images, others):
            for _ in range(passes):
                model.features(shown, last)
            maps.append(evaluating(model).features(images, last))
    return float((maps[1] - maps[0]).norm() / maps[0].norm())
