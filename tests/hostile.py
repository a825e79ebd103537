"""Pickles that would make a folder if they were executed; each by another opcode or wrapping."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import torch


class _Calls:
    """Pickled, it is the call of `function` with `argument`."""

    def __init__(self, function, argument):
        self.call = function, (argument,)

    def __reduce__(self):
        return self.call


def pickles(marker: Path) -> dict[str, bytes]:
    """name: a pickle that makes the folder `marker` as soon as pickle.loads has it."""
    path = str(marker).replace("\\", "\\\\")
    code = f"__import__('os').mkdir({str(marker)!r})"
    call = _Calls(os.mkdir, str(marker))
    dotted = (
        b"\x80\x04\x8c\x06shutil\x8c\x08os.mkdir\x93\x8c"
        + bytes([len(os.fsencode(marker))])
        + os.fsencode(marker)
        + b"\x85R."
    )
    return {
        "reduce, protocol 0": pickle.dumps(call, 0),
        "reduce, protocol 2": pickle.dumps(call, 2),
        "stack global, protocol 4": pickle.dumps(call, 4),
        "framed, protocol 5": pickle.dumps(call, 5),
        "inst": f"(V{path}\nios\nmkdir\n.".encode(),
        "obj": f"(cos\nmkdir\nV{path}\no.".encode(),
        "eval": pickle.dumps(_Calls(eval, code), 2),
        "exec": pickle.dumps(_Calls(exec, code), 2),
        "map that a list works off": f"cbuiltins\nlist\n(cbuiltins\nmap\n(cos\nmkdir\n(V{path}\nltRtR.".encode(),
        "getattr of a module": f"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(Vos\ntRVmkdir\ntR(V{path}\ntR.".encode(),
        "partial": f"cfunctools\npartial\n(cos\nmkdir\nV{path}\ntR)R.".encode(),
        "dotted name": dotted,
        "value among honest ones": pickle.dumps({"model": {}, "step": 3, "row": call}, 2),
    }


def torch_files(marker: Path) -> dict[str, bytes]:
    """The same inside of what torch.save writes, new and old."""
    found = {}
    for name, new in (("torch file", True), ("torch file of the old layout", False)):
        stream = io.BytesIO()
        torch.save(
            {"weights": torch.zeros(3), "row": _Calls(os.mkdir, str(marker))},
            stream,
            _use_new_zipfile_serialization=new,
        )
        found[name] = stream.getvalue()
    return found
