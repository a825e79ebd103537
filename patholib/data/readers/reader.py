"""What a reader of a data set consists of.

To add a data set, write a module of this package that ends with `READER = Reader(...)` and list it in
`readers.READERS`. Facts beside it are optional: licence, citation and address in `sources.SOURCES`, a layout of demo
images in `demo.DEFAULTS`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from patholib.data.manifest import Manifest
from patholib.data.readers.folders import folders_below


@dataclass(frozen=True, kw_only=True)
class Reader:
    """How one data set is recognised in a folder, and turned into a manifest."""

    name: str  # `source` of its manifests, and the folder below data/ in which it is looked for first
    what: str  # the data set and what its folder holds, for messages: "BreakHis (folders benign and malignant)"
    holds: Callable[[Path], bool]  # whether the data set begins in this folder
    read: Callable[..., Manifest]  # read(folder, missing="error" or "skip"); raises PathoError
    index: str = ""  # a file in that folder that may be named in its place
    reads_below: bool = False  # `read` takes a folder above the one that `holds`, too
    folder_name: str = ""  # in a search only folders with such a name count (a regular expression, ignoring case)

    def reads(self, folder: Path, most: int | None = None) -> bool:
        """Whether `read` takes this folder; most: how many folders below it are looked at, None for all."""
        if not self.reads_below:
            return self.holds(folder)
        return any(map(self.holds, itertools.islice(folders_below(folder), most)))

    def is_named_so(self, folder: Path) -> bool:
        """Whether a search may take this folder by its name."""
        return re.search(self.folder_name, folder.name, re.IGNORECASE) is not None
