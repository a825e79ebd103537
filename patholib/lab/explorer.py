"""The explorer of a trained model for notebooks: choose an image, see the prediction and its heatmap."""

from __future__ import annotations

from pathlib import Path

from patholib.data.imagesets import ImageSet
from patholib.lab import explored
from patholib.lab.explorer_face import Face
from patholib.lab.explorer_state import State


class Explorer(State):
    """A model and its images; in Jupyter it shows itself as widgets.

    run: a run folder or an exported model. images: an ImageSet; None: those of the run, found by `originals.images_of`;
    with data="none", or for an exported model, none but your own. split: "test" or "val". order: of the list, one of
    `explored.ORDERS`. Errors: as `inference.Predictor` and `originals.images_of`; see `State` for later ones.
    """

    def __init__(
        self,
        run: str | Path,
        images: ImageSet | None = None,
        data: str | Path = "auto",
        split: str = "test",
        order: str = explored.ORDERS[0],
    ):
        super().__init__(run, images, data, split, order)
        self._face: Face | None = None

    def __repr__(self) -> str:
        note = f" - {self.figure_note}" if self.demo else ""
        return f"Explorer of {self.run.name}: {len(self.table)} images{note} (run this cell to see its widgets)"

    def _repr_mimebundle_(self, **_) -> dict:
        """The widgets, in the form that ipywidgets 7 and 8 both understand, with a text where there are none."""
        self._face = self._face or Face(self)
        return {
            "text/plain": repr(self),
            "application/vnd.jupyter.widget-view+json": {
                "version_major": 2,
                "version_minor": 0,
                "model_id": self._face.root.model_id,
            },
        }
