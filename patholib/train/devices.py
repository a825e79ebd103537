"""The device and the arithmetic to train with, chosen by test."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from patholib.base import places
from patholib.base.errors import PathoError
from patholib.base.progress import say
from patholib.base.team import Team
from patholib.model.networks import Classifier, autocast

WORTH = 1.2  # how much faster bf16 has to be on a CPU to be taken
# Where a GPU is chosen that today's torch has kernels for.
GPU_SETTING = {"Kaggle": "Settings > Accelerator > GPU T4 x2", "Colab": "Runtime > Change runtime type > T4 GPU"}


def own_device(name: str, team: Team) -> torch.device:
    """The device of this process: of several on GPUs, each has its own."""
    device = choose_device(name)
    return torch.device("cuda", team.local) if device.type == "cuda" and team.count > 1 else device


def choose_device(name: str = "auto") -> torch.device:
    """"auto": a GPU that this torch has kernels for, otherwise the CPU; never without a word where that costs hours.

    A GPU that cannot be used is told, and refused where its hours are counted (Kaggle, Colab). Errors: no_gpu,
    bad_parameter.
    """
    usable = torch.cuda.is_available() and _has_kernels()
    if name == "auto":
        if not usable:
            _tell_why_no_gpu()
        return torch.device("cuda" if usable else "cpu")
    known = re.fullmatch(r"cpu|cuda(?::(\d+))?", str(name))
    if known is None:
        raise PathoError("bad_parameter", "device", f"is {str(name)!r}", 'Use "auto", "cpu" or "cuda"')
    if known[0] != "cpu" and not usable:
        reason = "this torch has no kernels for the GPU" if torch.cuda.is_available() else "there is no CUDA GPU"
        raise PathoError("no_gpu", "device", f"is {name!r}, but {reason}", 'Use device="auto"; on Kaggle choose T4 x2')
    if known[0] != "cpu" and int(known[1] or 0) >= torch.cuda.device_count():
        raise PathoError("no_gpu", "device", f"is {name!r}, but the GPUs end with cuda:{torch.cuda.device_count() - 1}",
                         'Use device="cuda"')
    return torch.device(known[0])


def _tell_why_no_gpu() -> None:
    """Says what is in the way of training on a GPU, and what to choose instead."""
    host = places.host()
    choose = f"On {host}, choose {GPU_SETTING[host]}" if host else "Install a torch that is built for it"
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        reason = (f"the {torch.cuda.get_device_name()} of this machine cannot be used: this torch has kernels for "
                  f"{', '.join(torch.cuda.get_arch_list())}, not for sm_{major}{minor}")
        if host:
            raise PathoError("no_gpu", "device", f"is 'auto', but {reason}; on the processor training takes hours",
                             f'{choose}, or train on the processor all the same with device="cpu"')
        say(f"NO GPU IS USED: {reason}. {choose}; training on the processor takes hours")
    elif host:
        say(f"NO GPU IS USED, because {host} has given this session none. {choose}; on the processor training on "
            "anything but demo images takes hours")


def _has_kernels() -> bool:
    major, minor = torch.cuda.get_device_capability()
    built = [a.split("_")[1] for a in torch.cuda.get_arch_list() if a.startswith("sm_")]
    return any(int(a[:-1]) == major and int(a[-1]) <= minor for a in built if a.isdigit())


def choose_precision(wanted: str, device: torch.device, model: Classifier, batch_size: int) -> tuple[str, str]:
    """The arithmetic of the forward pass and why.

    "auto" on a GPU: bf16 where it is computed and not emulated, else fp16 with scaling. On a CPU: bf16 where the
    processor computes it and one batch shows that this network gains from it, else fp32.
    """
    if wanted != "auto":
        return wanted, "as the recipe says"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "this GPU computes bf16 natively"
        return "fp16", "this GPU only emulates bf16"
    if not cpu_computes_bf16():
        return "fp32", "this processor does not compute bf16"
    seconds = step_seconds(model, ("fp32", "bf16"), device, min(8, batch_size))
    gain = seconds["fp32"] / seconds["bf16"]
    return "bf16" if gain >= WORTH else "fp32", f"a step in bf16 is {gain:.1f} times as fast as in fp32"


def cpu_computes_bf16() -> bool:
    """Whether the processor multiplies bf16 itself (AVX512-BF16, AMX); emulated it is 12 times slower than fp32."""
    info = Path("/proc/cpuinfo")
    if not info.exists():  # another system than Linux, which says it otherwise
        return False
    return bool({"avx512_bf16", "amx_bf16"} & set(info.read_text(encoding="utf-8", errors="replace").split()))


def step_seconds(model: Classifier, precisions: Sequence[str], device: torch.device, batch_size: int,
                 rounds: int = 2) -> dict[str, float]:
    """The shortest time of a forward and backward pass of a copy of the model on noise, after one to warm up.

    The precisions take turns, so that whatever else the machine does meets all of them.
    """
    trial = copy.deepcopy(model).train()
    images = torch.rand(batch_size, 3, model.image_size, model.image_size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    found = dict.fromkeys(precisions, math.inf)
    for turn in range(rounds + 1):
        for name in precisions:
            started = time.perf_counter()
            with autocast(device, name):
                logits = trial(images)
            logits.float().square().mean().backward()
            trial.zero_grad(set_to_none=True)
            if turn:
                found[name] = min(found[name], time.perf_counter() - started)
    return found


@contextlib.contextmanager
def backend(fast: bool):
    """cudnn autotuning and TF32 products where speed is asked for, deterministic kernels otherwise; put back after."""
    before = (torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision(),
              torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
              torch.utils.deterministic.fill_uninitialized_memory, torch.backends.cudnn.allow_tf32)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products on CUDA need it
    torch.backends.cudnn.benchmark = fast
    torch.set_float32_matmul_precision("high" if fast else "highest")
    torch.backends.cudnn.allow_tf32 = fast  # of convolutions, which torch lets use it unasked
    torch.use_deterministic_algorithms(not fast, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # it costs a pass per tensor
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before[0]
        torch.set_float32_matmul_precision(before[1])
        torch.use_deterministic_algorithms(before[2], warn_only=before[3])
        torch.utils.deterministic.fill_uninitialized_memory = before[4]
        torch.backends.cudnn.allow_tf32 = before[5]


def gpu_memory_mb(device: torch.device) -> float | None:
    """The most memory the process has held on the GPU, in MB; None without one."""
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None
