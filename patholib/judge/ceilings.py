"""The best possible AUC on demo images, whose true posterior is known."""

from __future__ import annotations

import pandas as pd

from patholib.base.errors import PathoError
from patholib.data import demo
from patholib.data.manifest import Manifest
from patholib.data.readers.folders import demo_folder


def best_possible(source: Manifest, predictions: pd.DataFrame) -> pd.DataFrame:
    """The same rows of demo images with the exact posterior of each class, which no classifier beats on average.

    Errors: no_truth, for other images.
    """
    if not source.demo:
        raise PathoError(
            "no_truth",
            source.root.name,
            "holds real images, of which no posterior is known",
            "Compare with the colour baseline instead",
        )
    folder = demo_folder(source.root)
    assert folder is not None, "by which a source is known to be a demo"
    known = demo.truth(folder).set_index("path").loc[predictions["path"]]
    return predictions.assign(**{f"p_{c}": known[f"best_p_{c}"].to_numpy() for c in source.classes})
