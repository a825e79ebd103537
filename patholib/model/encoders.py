"""Any network of timm (Wightman 2019) as one of the library's: arch="timm:NAME", or "timm:NAME,depth=4".

timm runs a network by two methods: `forward_features`, and `forward_head`, which pools. `tracing` finds the modules
that the first one runs in turn, which become the blocks. What runs before them, such as adding the positions of
patches, joins the first block. Needs the extra `encoders`.
"""

from __future__ import annotations

import copy
import difflib
import functools
import re
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from patholib.base.errors import PathoError
from patholib.model import tracing
from patholib.model.architectures import IMAGENET_MEAN, IMAGENET_STD, TIMM, Architecture
from patholib.model.tracing import BEFORE

# What may follow a name, with its largest value: in these, published encoders differ from networks that timm has names
# for. Numbers within bounds alone, because a name may come with somebody else's export.
ARGUMENTS = {"depth": 64, "embed_dim": 4096, "num_heads": 64, "patch_size": 64, "reg_tokens": 16} | {
    "mlp_ratio": 16.0,
    "init_values": 1.0,
    "no_embed_class": 1,
}
NORMALISATIONS = {"imagenet": (IMAGENET_MEAN, IMAGENET_STD), "half": ((0.5,) * 3, (0.5,) * 3)}
AFTER = "(after)"  # in the place of a path, as BEFORE: what pools
FILES = ("model.safetensors", "pytorch_model.bin")  # of weights on the hub, in the order in which they are looked for
METHODS = {BEFORE: "forward_features", AFTER: "forward_head"}


@dataclass(frozen=True)
class Plan:
    """How a network is cut into blocks."""

    template: nn.Module  # the network of timm without values
    steps: dict[str, list[str]]  # of each block the modules to run in turn; the last block pools
    layouts: dict[str, tuple[str, str]]  # in which it takes its maps, and gives them: NCHW, NHWC, NLC or NC
    late: frozenset[str]  # modules that pool
    channels: int  # of the pooled features


class Pass(nn.Module):
    """Gives what it gets: in the place of a module that runs elsewhere; `told` is what that one would be told."""

    def forward(self, maps: torch.Tensor, **told) -> torch.Tensor:
        self.told = {name: value for name, value in told.items() if isinstance(value, torch.Tensor)}
        return maps


class Told(nn.Module):
    """A module that is told more than its maps, the same for all images: where its tokens lie, as angles."""

    def __init__(self, net: nn.Module, told: dict[str, torch.Tensor]):
        super().__init__()
        self.net, self.names = net, list(told)
        for name, value in told.items():
            self.register_buffer(f"told_{name}", value, persistent=False)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return self.net(maps, **{name: getattr(self, f"told_{name}") for name in self.names})


class Part(nn.Module):
    """One method of a timm network, with the modules and tensors that are left to it."""

    def __init__(self, net: nn.Module, method: str):
        super().__init__()
        self.net, self.method = net, method

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return getattr(self.net, self.method)(maps)


class Step(nn.Module):
    """A block: parts in turn. Between blocks channels come first: maps (N, K, h, w), or tokens (N, K, T)."""

    def __init__(self, parts: Iterable[nn.Module], layouts: tuple[str, str]):
        super().__init__()
        self.parts, self.layouts = nn.Sequential(*parts), layouts

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        wants, gives = self.layouts
        made = self.parts(maps if wants == "NCHW" else maps.movedim(1, -1))
        return made[:, :, None, None] if gives == "NC" else made if gives == "NCHW" else made.movedim(-1, 1)


class Net(nn.Module):
    """The blocks of a network of timm in `steps`, and a place for the head; weights are random, as timm draws them."""

    def __init__(self, arch: str, image_size: int):
        super().__init__()
        self.asked = arch, image_size
        net, plan = _sized(arch, image_size), planned(arch, image_size)
        paths = [path for some in plan.steps.values() for path in some]
        parts = {path: net.get_submodule(path) for path in paths if path not in METHODS}
        for path in parts:
            net.set_submodule(path, Pass())
        for path, told in _told(net, parts, image_size).items():
            parts[path] = Told(parts[path], told)
        for marker in set(paths) & set(METHODS):
            own, late = copy.copy(net), marker == AFTER
            own._modules = {name: one for name, one in net._modules.items() if (name in plan.late) == late}
            if late and BEFORE in paths:  # tensors of the network itself, such as positions, belong to one of the two
                own._parameters, own._buffers = {}, {}
            parts[marker] = Part(own, METHODS[marker])
        self.steps = nn.ModuleDict(
            {name: Step([parts[path] for path in some], plan.layouts[name]) for name, some in plan.steps.items()}
        )
        self.head = nn.Identity()

    def named(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of a file of timm's or its authors' names by ours, without a classifier.

        The table of positions is interpolated to the size of the images. Errors: weights_mismatch.
        """
        plan = planned(*self.asked)
        names: dict[str, str] = {}
        for name, paths in plan.steps.items():
            for i, path in enumerate(paths):
                wrapped = isinstance(self.steps[name].parts[i], Part | Told)  # type: ignore[union-attr,index]
                ours = f"steps.{name}.parts.{i}." + ("net." if wrapped else "")
                theirs = "" if path in METHODS else f"{path}."
                names |= {theirs + k.removeprefix(ours): k for k in self.state_dict() if k.startswith(ours)}
        fitting = getattr(sys.modules[type(plan.template).__module__], "checkpoint_filter_fn", None)
        try:
            state = fitting(state, plan.template) if fitting else state
        except Exception as error:  # of a file of another network, whatever timm stumbles over
            raise PathoError(
                "weights_mismatch",
                self.asked[0],
                f"is not the network of this file ({type(error).__name__}: {error})",
                "Give the weights of this network, or name the network of these weights",
            ) from error
        heads = _facts(plan.template).get("classifier") or ()
        heads = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
        return {names.get(k, k): v for k, v in state.items() if not k.startswith(heads)}


@functools.cache
def entry(arch: str) -> Architecture:
    """What is known of "timm:NAME". Errors: not_installed; unknown_arch, with the nearest names; bad_parameter."""
    name, _, normalisation = _parsed(arch)
    net, plan = _template(arch), planned(arch)
    facts = _facts(net)
    mean, std = NORMALISATIONS.get(normalisation) or (tuple(facts["mean"]), tuple(facts["std"]))
    return Architecture(
        words=f"{name} (timm)",
        constructor="",
        weights="",
        blocks={name: (f"steps.{name}",) for name in plan.steps},
        head="head",
        channels=plan.channels,
        mean=mean,
        std=std,
        terms=str(facts.get("license") or f"those of {facts.get('hf_hub_id') or 'their authors'}"),
        pools=True,
        prefix_tokens=getattr(net, "num_prefix_tokens", 0),
        fixed_size=hasattr(net, "set_input_size"),
    )


def from_hub(arch: str, weights: str) -> Path:
    """The file of weights="hub", which timm names for this network, or of "hub:OWNER/NAME", downloaded or kept before.

    Errors: weights_missing: no network, a licence that has to be accepted first, or no such file.
    """
    from huggingface_hub import errors, hf_hub_download

    facts = _facts(_template(arch))
    repository = weights.partition(":")[2] or facts.get("hf_hub_id") or ""

    def missing(reason: str, remedy: str) -> PathoError:
        return PathoError("weights_missing", repository or arch, reason, remedy)

    if not repository:
        raise missing("has no weights of a name", 'Give weights="hub:OWNER/NAME", the path of a file, or "none"')
    names = dict.fromkeys((facts.get("hf_hub_filename") or FILES[0], *FILES))
    print(f"weights of {repository} from the hub, under terms of their own: https://huggingface.co/{repository}")
    for name in names:
        by_hand = f"Elsewhere: `hf download {repository} {name}`; then give the path of that file as weights"
        try:
            return Path(hf_hub_download(repository, name))
        except errors.LocalEntryNotFoundError as error:  # before the next, of which it is a kind
            raise missing("is not on this machine, and the hub cannot be reached", by_hand) from error
        except errors.EntryNotFoundError:
            continue
        except errors.GatedRepoError as error:
            page = f"https://huggingface.co/{repository}"
            remedy = f"Accept its licence at {page}, then log in with `hf auth login`. {by_hand}"
            raise missing("is given only to those who accepted its licence", remedy) from error
        except (errors.HfHubHTTPError, OSError, ValueError) as error:  # ValueError: what can be no name there
            reason = f"cannot be fetched ({type(error).__name__})"
            raise missing(reason, f"Correct its name, or log in with `hf auth login`. {by_hand}") from error
    raise missing(f"has none of {', '.join(names)}", "Download its file of tensors, and give the path as weights")


# ------------------------------------------------------------------------------------------------- names and networks


def timm() -> ModuleType:
    """The package. Errors: not_installed."""
    try:
        import timm
    except ImportError as error:
        raise PathoError(
            "not_installed", error.name or "timm", "is needed for this network", 'pip install "patholib[encoders]"'
        ) from error
    return timm


@functools.cache
def _parsed(arch: str) -> tuple[str, dict, str]:
    """The name of a network, its arguments, and a key of NORMALISATIONS or "": "timm:NAME,depth=4,norm=imagenet"."""
    library, (name, *rest) = timm(), arch.removeprefix(TIMM).split(",")
    # Known names alone: timm itself would also take an address on the hub, or a folder, for a name.
    known = set(library.list_models()) | set(library.list_models(pretrained=True))
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
        meant = f"did you mean {', '.join(map(repr, close))}?" if close else "timm.list_models() lists them"
        raise PathoError("unknown_arch", arch, "is not a network of timm", meant)
    arguments: dict[str, int | float] = {}
    normalisation = ""
    for one in rest:
        key, _, value = one.partition("=")
        if key == "norm" and value in NORMALISATIONS:
            normalisation = value
        elif key in ARGUMENTS and re.fullmatch(r"\d+(\.\d+)?(e-?\d+)?", value) and float(value) <= ARGUMENTS[key]:
            number = float(value)
            arguments[key] = number if isinstance(ARGUMENTS[key], float) else int(number)
        else:
            numbers = ", ".join(f"{name} (up to {most})" for name, most in ARGUMENTS.items())
            raise PathoError(
                "bad_parameter", arch, f"has {one!r}", f"Known are {numbers} and norm ({', '.join(NORMALISATIONS)})"
            )
    return name, arguments, normalisation


def _created(arch: str) -> nn.Module:
    """The network of timm without a classifier, its weights random. Errors: bad_parameter."""
    name, arguments, _ = _parsed(arch)
    try:
        return timm().create_model(name, pretrained=False, num_classes=0, **arguments)
    except Exception as error:  # an argument that this network does not have, or cannot have
        raise PathoError(
            "bad_parameter", arch, f"cannot be built ({type(error).__name__}: {error})", "Change its arguments"
        ) from error


def _facts(net: Any) -> dict[str, Any]:
    """What timm knows of a network's pretrained weights."""
    return net.pretrained_cfg


@functools.cache
def _template(arch: str) -> nn.Module:
    """The same without values, at the size that it was made for."""
    with torch.device("meta"):
        return _created(arch).eval()


def _sized(arch: str, image_size: int) -> nn.Module:
    """The network for images of this size. Errors: bad_parameter."""
    net: Any = _created(arch)
    if hasattr(net, "set_input_size"):
        patch = getattr(getattr(net, "patch_embed", None), "patch_size", None) or 1
        patch = patch if isinstance(patch, int) else patch[0]
        if image_size % patch:
            low = image_size // patch * patch
            raise PathoError(
                "bad_parameter",
                f"image_size={image_size}",
                f"is not a multiple of {patch}, the side of a patch of {arch}",
                f"Use {low or patch} or {low + patch}" if low else f"Use {patch}",
            )
        with warnings.catch_warnings():  # of timm's own code
            warnings.simplefilter("ignore", UserWarning)
            net.set_input_size(img_size=(image_size, image_size))
    return net


# ------------------------------------------------------------------------------------------------------------- blocks


@functools.cache
def planned(arch: str, image_size: int | None = None) -> Plan:
    """The plan for images of this size; None: of the size that the network was made for, which changes no name.

    Errors: bad_parameter, where it does not take such images; bad_network, where it gives no maps.
    """
    with torch.device("meta"), torch.no_grad():
        net = _template(arch) if image_size is None else _sized(arch, image_size).eval()
        side = image_size or _facts(net)["input_size"][-1]
        image = torch.zeros(1, 3, side, side)
        try:
            maps, calls = tracing.traced(net, "forward_features", image)
            pooled, late = tracing.traced(net, "forward_head", maps)
            steps, cuts = tracing.blocks(net, calls, image, maps)
        except Exception as error:  # whatever it stumbles over
            raise PathoError(
                "bad_parameter",
                f"image_size={side}",
                f"is none that {arch} takes ({type(error).__name__}: {error})",
                "Use the size that it was made for, or another network",
            ) from error
    if pooled.ndim != 2 or not all(cuts.values()):
        raise PathoError("bad_network", arch, "gives no maps of its images, nor tokens", "Use another network")
    # Tokens may end in one of them that stands for all; what is seen of the others is then what it took from them in
    # the last block. So that the last maps are those before it, that block pools as well.
    if maps.ndim == 4 or len(steps) == 1:
        steps["pool"] = []
    last = list(steps)[-1]
    steps[last].append(AFTER)
    gives = {**cuts, last: "NC"}
    return Plan(
        template=net,
        steps=steps,
        layouts=dict(zip(steps, zip(["NCHW", *gives.values()], gives.values(), strict=False), strict=True)),
        late=frozenset(path.partition(".")[0] for path, *_ in late),
        channels=pooled.shape[1],
    )


def _told(net: nn.Module, paths: Iterable[str], image_size: int) -> dict[str, dict[str, torch.Tensor]]:
    """What modules are told beside their maps, by path, where they are; in their places are those of class `Pass`.

    Errors: bad_network, where that depends on the image.
    """
    found: list[dict[str, dict[str, torch.Tensor]]] = []
    training = net.training
    with torch.no_grad():
        for grey in (0.0, 1.0):
            net.eval().forward_features(torch.full((1, 3, image_size, image_size), grey))  # type: ignore[operator]
            found.append({path: getattr(net.get_submodule(path), "told", {}) for path in paths})
    net.train(training)
    black, white = ({path: told for path, told in one.items() if told} for one in found)
    same = black.keys() == white.keys() and all(
        torch.equal(value, white[path][name]) for path, told in black.items() for name, value in told.items()
    )
    if not same:
        raise PathoError(
            "bad_network", type(net).__name__, "tells its blocks something of each image", "Use another network"
        )
    return black
