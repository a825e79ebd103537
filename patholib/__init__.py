"""From a folder of medical images to a classifier one can trust, explain and use.

The public names are imported when they are first used, so `import patholib` takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patholib.data.leakage import audit as audit
    from patholib.data.readers import load as load
    from patholib.deploy.inference import Predictor as Predictor
    from patholib.options import Options as Options
    from patholib.study import Study as Study
    from patholib.study import evaluate as evaluate

__all__ = ["Options", "Predictor", "Study", "audit", "evaluate", "load"]
__version__ = "0.2.0"

HOMES = {
    "Options": "patholib.options",
    "Predictor": "patholib.deploy.inference",
    "Study": "patholib.study",
    "audit": "patholib.data.leakage",
    "evaluate": "patholib.study",
    "load": "patholib.data.readers",
}


def __getattr__(name: str):
    """The public name, from the module that holds it."""
    if name not in HOMES:
        raise AttributeError(f"module 'patholib' has no attribute {name!r}; public are {', '.join(__all__)}")
    found = getattr(importlib.import_module(HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
