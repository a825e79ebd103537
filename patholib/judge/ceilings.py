"""The best AUC that is possible on demo images, for comparison."""

from __future__ import annotations

import pandas as pd

from patholib.base.errors import PathoError
from patholib.data import demo
from patholib.data.manifest import Manifest
from patholib.data.readers.folders import demo_folder
from patholib.judge import metrics


def best_possible(source: Manifest, predictions: pd.DataFrame) -> pd.DataFrame:
    """For demo images: the same rows with each class's exact posterior, which no classifier beats on average.

    Raises PathoError: `no_truth` for other images.
    """
    if not source.demo:
        raise PathoError("no_truth", source.root.name, "holds real images, of which no posterior is known",
                         "Compare with the colour baseline instead")
    known = demo.truth(demo_folder(source.root)).set_index("path").loc[predictions["path"]]
    return predictions.assign(**{f"p_{c}": known[f"best_p_{c}"].to_numpy() for c in source.classes})


def check_against_best(source: Manifest, predictions: pd.DataFrame, tol: float = 0.05, stop: bool = True) -> None:
    """For demo images: prints the AUC beside the best possible on the same images, and stops where it falls short.

    On real images it says that no best possible is known. tol: how far below is accepted. stop=False only prints, as
    for a run with other settings than those that are known to reach it. Errors: short_of_best.
    """
    if not source.demo:
        print("real images: the best possible AUC is not known")
        return
    ours, best = (metrics.summary(table, source.classes, source.positive, resamples=0)["metrics"]["auc"]["value"]
                  for table in (predictions, best_possible(source, predictions)))
    print(f"test AUC {ours:.3f}, best possible on these images {best:.3f}")
    if stop and best - ours > tol:
        raise PathoError("short_of_best", "test AUC", f"is {ours:.3f}, more than {tol:g} below the best possible "
                         f"{best:.3f}", "Look at the history: a change has made the training worse")
