"""fastai as its documentation trains: `vision_learner`, presizing, `aug_transforms`, and all else as it comes.

From pretrained weights: the network of timm by its name and `fine_tune` at its rate of 2e-3, which trains the head for
one epoch with the body frozen, then everything, the body at rates down to a hundredth. From random ones: resnet34 and
`fit_one_cycle` at 1e-3. Batches of 64, Adam, the weights of the last epoch.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import job as jobs
import numpy as np
from fastai.vision.all import (
    BalancedAccuracy,
    Callback,
    CategoryBlock,
    ImageDataLoaders,
    Normalize,
    Resize,
    RocAuc,
    RocAucBinary,
    aug_transforms,
    imagenet_stats,
    resnet34,
    set_seed,
    torch,
    vision_learner,
)
from job import Clock, Job


class Timed(Callback):
    """Runs the clock while the training images of an epoch are gone through."""

    def __init__(self, clock: Clock):
        self.clock, self.after_each, self.rows = clock, [], []

    def before_train(self):
        self.clock.start()

    def after_train(self):
        self.clock.stop()
        self.after_each.append(self.clock.seconds)

    def after_fit(self):
        self.rows += self.learn.recorder.values  # of this fit; another one starts them anew


def main(job: Job) -> None:
    torch.set_num_threads(job.threads)
    with tempfile.TemporaryDirectory(prefix="patholib-") as folder:
        *frozen, first = np.diff(train(job, 1, folder)[1].after_each, prepend=0)
        of_one, before = float(first), float(sum(frozen))  # of the frozen epoch, where there is one
        epochs = jobs.epochs_within(job.seconds - before, of_one)
        learn, timed = train(job, epochs, folder)
        curve = [
            {"epoch": k + 1, "seconds": round(at, 2), "val_balanced_accuracy": row[2], "val_auc": row[3]}
            for k, (row, at) in enumerate(zip(timed.rows, timed.after_each, strict=True))
        ]
        tables = {split: jobs.predictions(job, split, probabilities(job, learn, split)) for split in ("val", "test")}
    jobs.leave(
        job,
        tables,
        curve,
        ("fastai", "torch"),
        epochs=len(curve),
        best_epoch=len(curve),
        seconds=timed.clock.seconds,
        planned=before + epochs * of_one,
    )


def train(job: Job, epochs: int, folder: str):
    """A learner after so many epochs, with a frozen one before them where weights are pretrained, and its times."""
    pretrained = job.options.get("pretrained", False)
    normal = [] if pretrained else [Normalize.from_stats(*imagenet_stats)]  # else as the weights ask for
    set_seed(job.seed, reproducible=True)
    table = job.table
    table = table[table["split"] != "test"].assign(is_valid=lambda t: t["split"] == "val")
    loaders = ImageDataLoaders.from_df(
        table,
        path=job.root,
        fn_col="path",
        label_col="label",
        valid_col="is_valid",
        bs=64,
        num_workers=job.threads,
        y_block=CategoryBlock(vocab=list(job.classes), sort=False),
        item_tfms=Resize(2 * job.size),
        batch_tfms=[*aug_transforms(size=job.size, min_scale=0.75), *normal],
    )
    ranking = RocAuc() if len(job.classes) > 2 else RocAucBinary()
    timed = Timed(Clock())
    start = jobs.pretrained(Path(job.out).parents[1]) if pretrained else {"pretrained": False}
    learn = vision_learner(
        loaders,
        jobs.NETWORK if pretrained else resnet34,
        metrics=[BalancedAccuracy(), ranking],
        path=Path(folder),
        **start,
    )
    with learn.no_bar(), learn.no_logging():
        (learn.fine_tune if pretrained else learn.fit_one_cycle)(epochs, cbs=timed)
    return learn, timed


def probabilities(job: Job, learn, split: str) -> np.ndarray:
    """(N, C) in the order of the job's classes."""
    with learn.no_bar(), learn.no_logging():
        found, _ = learn.get_preds(dl=learn.dls.test_dl(job.part(split)["file"].tolist()))
    return found.double().numpy()[:, [list(learn.dls.vocab).index(name) for name in job.classes]]


if __name__ == "__main__":
    jobs.run(main)
