"""The figures of a study, a method for each: drawn from what the run holds, and saved into it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patholib.judge import decisions, predicting, trust
from patholib.model import architectures, augment, profiles, schedules
from patholib.report.figures import heatmaps, learning, overview, performance, probabilities, sheets, style
from patholib.report.figures.style import Figure

if TYPE_CHECKING:  # it imports this module
    from patholib.study import Study


class Figures:
    """Every figure of a run as a method without arguments; each saves a PNG into the run folder and returns the Figure.

    Where the images are demo images, or the split leaks, the figure says so. Errors: not_locked, missing_file where
    the step that a figure shows has not been taken.
    """

    def __init__(self, study: Study):
        self._study = study

    def augmented(self) -> Figure:
        """A few images as training varies them."""
        s = self._study
        return self._saved("augmented", sheets.augmented(*augment.preview(s.images, s.recipe), note=s.note))

    def as_published(self) -> Figure:
        """The same random draws by the augmentation as published."""
        s = self._study
        literal = profiles.recipe_for(s.recipe.name, s.source, published=True, image_size=s.recipe.image_size)
        return self._saved(
            "as_published",
            sheets.augmented(*augment.preview(s.images, literal), title="The same draws, as published", note=s.note),
        )

    def schedule(self) -> Figure:
        """The planned learning rate and frozen blocks; a fitted head has none, which it says."""
        s = self._study
        if s.recipe.train == "head":
            return learning.no_epochs(note=s.note)
        return self._saved("schedule", learning.schedule(schedules.table(s.recipe), title="This run", note=s.note))

    def curves(self) -> Figure:
        """Loss and score, epoch by epoch; the epoch that was kept is marked."""
        s = self._study
        return self._saved(
            "curves", learning.curves(s.history, schedules.kept(s.recipe, s.history), s.recipe.monitor, note=s.note)
        )

    def unfreezing(self) -> Figure:
        """How many blocks were frozen in every epoch; a fitted head has none, which it says."""
        s = self._study
        if s.recipe.train == "head":
            return learning.no_epochs(note=s.note)
        return self._saved(
            "unfreezing", learning.unfreezing(s.history, len(architectures.of(s.recipe.arch).blocks), note=s.note)
        )

    def threshold(self) -> Figure:
        """Sensitivity and specificity over the threshold on validation images, with the one that is locked."""
        s, target = self._study, self._study.locked.decision["target"].get("sensitivity", decisions.TARGET)
        return self._saved(
            "threshold",
            probabilities.thresholds(
                s.locked.labels,
                s.locked.probs,
                s.recipe.classes,
                s.recipe.positive,
                s.locked.threshold,
                target,
                note=s.note,
            ),
        )

    def confusion(self) -> Figure:
        """True and predicted classes of the test images."""
        s = self._study
        return self._saved(
            "confusion", performance.confusion(s.judged.summary["confusion"], s.recipe.classes, note=s.note)
        )

    def roc_pr(self) -> Figure:
        """ROC and precision-recall curves on the test images."""
        s, judged = self._study, self._study.judged
        threshold = judged.threshold if len(s.recipe.classes) == 2 and s.recipe.positive is not None else None
        return self._saved(
            "roc_pr",
            performance.roc_pr(
                judged.labels, judged.probs, s.recipe.classes, s.recipe.positive, threshold, note=s.note
            ),
        )

    def calibration(self) -> Figure:
        """Probabilities against observed shares on the test images, before and after the temperature."""
        s = self._study
        return self._saved(
            "calibration", probabilities.reliability(s.judged.metrics["calibration"]["test"], note=s.note)
        )

    def decision_curve(self) -> Figure:
        """Net benefit of acting on the prediction, over the threshold (Vickers & Elkin 2006)."""
        s = self._study
        return self._saved(
            "decision_curve",
            probabilities.decision_curve(s.judged.summary.get("decision_curve"), s.locked.threshold, note=s.note),
        )

    def abstention(self) -> Figure:
        """Errors among the images that remain if the least certain ones go to a person."""
        s = self._study
        return self._saved("abstention", probabilities.abstention(s.judged.summary["abstention"], note=s.note))

    def patients(self) -> Figure:
        """The share of each patient's (case's, lesion's) test images that were predicted rightly."""
        s, group = self._study, predicting.patient_column(self._study.judged.test)
        return self._saved(
            "lesions" if group == "lesion" else "patients",
            performance.patients(s.judged.patients, classes=s.recipe.classes, group_name=group, note=s.note),
        )

    def trust(self) -> Figure:
        """What the trust checks of the heatmaps found."""
        s = self._study
        return self._saved("trust", heatmaps.trust(trust.read(s.dir).facts, note=s.note))

    def overview(self) -> Figure:
        """Training and results on one page: training_metrics.png, beside the report."""
        s, judged = self._study, self._study.judged
        return style.save(
            overview.training_metrics(
                s.history,
                judged.summary,
                judged.summary["confusion"],
                s.recipe.classes,
                judged.labels,
                judged.probs,
                s.recipe.positive,
                schedules.kept(s.recipe, s.history),
                s.recipe.monitor,
                note=s.note,
            ),
            s.dir / "training_metrics.png",
        )

    def complete(self) -> None:
        """Draws what a report shows and is not in the run folder yet; of an opened run only what its files tell."""
        drawn = {
            "augmented": self.augmented,
            "curves": self.curves,
            "unfreezing": self.unfreezing,
            "threshold": self.threshold,
            "confusion": self.confusion,
            "roc_pr": self.roc_pr,
            "calibration": self.calibration,
            "decision_curve": self.decision_curve,
            "abstention": self.abstention,
            "patients": self.patients,
            "trust": self.trust,
            "overview": self.overview,
        }
        if self._study.opened or self._study.recipe.train == "head":
            del drawn["augmented"]
        if self._study.recipe.train == "head":
            del drawn["unfreezing"]
        if not (self._study.dir / trust.FILE).exists():
            del drawn["trust"]
        known = {path.stem for path in [*self._study.dir.glob("*.png"), *self._study.dir.glob("figures/*.png")]}
        known |= {"patients"} if "lesions" in known else set()
        known |= {"overview"} if "training_metrics" in known else set()
        for name, draw in drawn.items():
            if name not in known:
                draw()

    def _saved(self, name: str, figure: Figure) -> Figure:
        return style.save(figure, self._study.dir / "figures" / f"{name}.png")
