"""Heatmaps of a study with the outcome of the trust checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from patholib.judge import gradcam, trust
from patholib.report import galleries
from patholib.report.figures.style import Figure

if TYPE_CHECKING:  # it imports this module
    from patholib.study import Study


@dataclass(frozen=True)
class Explained:
    """Heatmaps with the outcome of the trust checks, which is shown before them."""

    trust: trust.Trust
    sheet: Figure  # images that were judged rightly, wrongly and with doubt
    classes: Figure  # images of each class, from the best recognised to the worst

    def __repr__(self) -> str:
        return repr(self.trust)

    def _ipython_display_(self) -> None:
        from IPython.display import display

        for part in (self.trust, self.trust.table, self.sheet):
            display(part)


def explain(study: Study, each: int) -> Explained:
    """Examines the heatmaps, then writes the galleries with the verdict; see `Study.explain`."""
    pictures, judged, recipe = study.images.part("test"), study.judged, study.recipe
    masks = trust.planted(study.source, pictures, recipe.fit)
    believed = trust.examine(study.model, pictures, judged.test, study.run, masks, recipe.positive, judged.threshold)
    sheets = []
    for name, by, count in (
        ("gallery", "outcome", each),
        ("classes", "label", each if len(recipe.classes) < 5 else each // 2),
    ):
        found = gradcam.gallery(study.model, pictures, judged.test, recipe.positive, judged.threshold, count, by)
        sheets.append(galleries.write(found, study.dir / "heatmaps", name, note=study.note, facts=believed.facts))
    return Explained(believed, *sheets)
