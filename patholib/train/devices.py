"""The device and the precision to train with."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any

import torch

from patholib.base import places
from patholib.base.errors import PathoError
from patholib.base.progress import say
from patholib.base.team import Team

# Where to choose a GPU that today's torch has kernels for.
GPU_SETTING = {"Kaggle": "Settings > Accelerator > GPU T4 x2", "Colab": "Runtime > Change runtime type > T4 GPU"}


def own_device(name: str, team: Team) -> torch.device:
    """The device of this process; each of several processes has a GPU of its own."""
    device = choose_device(name)
    return torch.device("cuda", team.local) if device.type == "cuda" and team.count > 1 else device


def choose_device(name: str = "auto") -> torch.device:
    """ "auto": a GPU that this torch has kernels for, otherwise the CPU, with a message where a GPU could be used.

    A GPU without kernels is an error on Kaggle and Colab, where its hours are counted. Errors: no_gpu, bad_parameter.
    """
    usable = torch.cuda.is_available() and _has_kernels()
    if name == "auto":
        if not usable:
            _say_why_no_gpu()
        return torch.device("cuda" if usable else "cpu")
    known = re.fullmatch(r"cpu|cuda(?::(\d+))?", str(name))
    if known is None:
        raise PathoError("bad_parameter", "device", f"is {str(name)!r}", 'Use "auto", "cpu" or "cuda"')
    if known[0] != "cpu" and not usable:
        reason = "this torch has no kernels for the GPU" if torch.cuda.is_available() else "there is no CUDA GPU"
        raise PathoError("no_gpu", "device", f"is {name!r}, but {reason}", 'Use device="auto"; on Kaggle choose T4 x2')
    if known[0] != "cpu" and int(known[1] or 0) >= torch.cuda.device_count():
        raise PathoError(
            "no_gpu",
            "device",
            f"is {name!r}, but the GPUs end with cuda:{torch.cuda.device_count() - 1}",
            'Use device="cuda"',
        )
    return torch.device(known[0])


def _say_why_no_gpu() -> None:
    """Says why no GPU is used and where to choose one. Errors: no_gpu on Kaggle and Colab, for one without kernels."""
    host = places.host()
    choose = f"On {host}, choose {GPU_SETTING[host]}" if host else "Install a torch that is built for it"
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        reason = (
            f"the {torch.cuda.get_device_name()} of this machine cannot be used: this torch has kernels for "
            f"{', '.join(torch.cuda.get_arch_list())}, not for sm_{major}{minor}"
        )
        if host:
            raise PathoError(
                "no_gpu",
                "device",
                f"is 'auto', but {reason}; on the CPU training takes hours",
                f'{choose}, or train on the CPU with device="cpu"',
            )
        say(f"NO GPU IS USED: {reason}. {choose}; training on the CPU takes hours")
    elif host:
        say(
            f"NO GPU IS USED: this {host} session has none. {choose}; training on the CPU takes hours, except on demo "
            "images"
        )


def _has_kernels() -> bool:
    major, minor = torch.cuda.get_device_capability()
    built = [a.split("_")[1] for a in torch.cuda.get_arch_list() if a.startswith("sm_")]
    return any(int(a[:-1]) == major and int(a[-1]) <= minor for a in built if a.isdigit())


def choose_precision(wanted: str, device: torch.device) -> tuple[str, str]:
    """The precision of the forward pass and why; "auto": bf16 unless it is emulated, else fp16 on a GPU or fp32."""
    if wanted != "auto":
        return wanted, "as the recipe says"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "this GPU computes bf16 natively"
        return "fp16", "this GPU only emulates bf16"
    return ("bf16", "this CPU computes bf16") if cpu_computes_bf16() else ("fp32", "this CPU does not compute bf16")


def cpu_computes_bf16() -> bool:
    """Whether the CPU multiplies bf16 itself (AVX512-BF16, AMX); emulated it is 12 times slower than fp32."""
    info = Path("/proc/cpuinfo")
    if not info.exists():  # not Linux
        return False
    return bool({"avx512_bf16", "amx_bf16"} & set(info.read_text(encoding="utf-8", errors="replace").split()))


@contextlib.contextmanager
def backend(fast: bool):
    """fast: cuDNN autotuning and TF32; otherwise deterministic kernels. The switches are restored afterwards."""
    deterministic: Any = torch.utils.deterministic
    before = (
        torch.backends.cudnn.benchmark,
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        deterministic.fill_uninitialized_memory,
        torch.backends.cudnn.allow_tf32,
    )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products on CUDA need it
    torch.backends.cudnn.benchmark = fast
    torch.set_float32_matmul_precision("high" if fast else "highest")
    torch.backends.cudnn.allow_tf32 = fast  # of convolutions, which torch lets use it unasked
    torch.use_deterministic_algorithms(not fast, warn_only=True)
    deterministic.fill_uninitialized_memory = False  # it costs a pass per tensor
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before[0]
        torch.set_float32_matmul_precision(before[1])
        torch.use_deterministic_algorithms(before[2], warn_only=before[3])
        deterministic.fill_uninitialized_memory = before[4]
        torch.backends.cudnn.allow_tf32 = before[5]


def gpu_memory_mb(device: torch.device) -> float | None:
    """The most memory the process has held on the GPU, in MB; None without one."""
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None
