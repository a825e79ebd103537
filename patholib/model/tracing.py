"""How a network of timm is cut into blocks: one image is followed through it.

A module belongs to the chain if it takes what the one before it gave and nothing else, up to what the network gives. So
any of them can be run again from what the one before it gave.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

BEFORE = "(before)"  # in the place of a path: what runs before the chain
Call = tuple[str, Any, torch.Tensor]  # of a module: its path, the tensor that it took, None if more, what it gave


def traced(net: nn.Module, method: str, given: torch.Tensor) -> tuple[torch.Tensor, list[Call]]:
    """What a method gives, and the calls of the network's modules and of members of its lists, in order."""
    calls: list[Call] = []

    def note(path: str):
        def hook(_, args, kwargs, made):
            alone = len(args) == 1 and all(
                v is None or v is False or isinstance(v, torch.Tensor) for v in kwargs.values()
            )
            calls.append((path, args[0] if alone else None, made))

        return hook

    handles = [one.register_forward_hook(note(path), with_kwargs=True) for path, one in _candidates(net)]
    try:
        return getattr(net, method)(given), calls
    finally:
        for handle in handles:
            handle.remove()


def blocks(net: nn.Module, calls: list[Call], image, maps) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The paths of the modules of each block, and the layout of what it gives."""
    chain, begins = _chain(calls, image, maps)
    steps: dict[str, list[str]] = {} if begins else {"stem": [BEFORE]}
    cuts = {} if begins else {"stem": _layout(net, chain[0][1] if chain else maps)}
    name = "stem"
    for path, given, made in chain:
        parts = _has_parts(net.get_submodule(path))  # layers join the block before them
        if not steps or (parts and _layout(net, given)):
            name = re.sub(r"\.(\d+)$", r"[\1]", path).rpartition(".")[2] if parts else "stem"  # a.b.3: b[3]
            while name in steps:
                name += "_"
            steps[name] = []
        steps[name].append(path)
        cuts[name] = _layout(net, made)
    return steps, cuts


def _candidates(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that may be blocks: the network's own, and instead of a list of modules with parts its members."""
    for name, child in net.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList) and any(map(_has_parts, child)):
            yield from ((f"{name}.{key}", one) for key, one in child.named_children())
        else:
            yield name, child


def _has_parts(module: nn.Module) -> bool:
    """Whether it is more than a layer: modules within it have weights."""
    return any(True for child in module.children() for _ in child.parameters())


def _chain(calls: list[Call], image: torch.Tensor, maps: torch.Tensor) -> tuple[list[Call], bool]:
    """The longest row of calls that ends in `maps`, and whether it begins with the image."""
    row: list[Call] = []
    wanted: torch.Tensor = maps
    often = Counter(path for path, *_ in calls)
    for path, given, made in reversed(calls):
        if made is wanted and given is not None and often[path] == 1:
            row.insert(0, (path, given, made))
            wanted = given
    return row, wanted is image


def _layout(net: nn.Module, maps: torch.Tensor) -> str:
    """Where a network has its channels; "" for what cannot stand between two blocks."""
    if not isinstance(maps, torch.Tensor):
        return ""  # several at once
    if maps.ndim == 4:
        _, first, second, last = maps.shape  # of a square image, so that two of them are alike
        if first == second == last:
            return str(getattr(net, "output_fmt", "NCHW")).rpartition(".")[2]
        return "NCHW" if second == last else "NHWC" if first == second else ""
    patches = maps.shape[1] - getattr(net, "num_prefix_tokens", 0) if maps.ndim == 3 else 0
    return "NLC" if patches > 0 and math.isqrt(patches) ** 2 == patches else ""
