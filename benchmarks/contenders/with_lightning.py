"""A plain script of the kind that is written first: Lightning, torchmetrics and a network.

From pretrained weights timm's EfficientNet-Lite0 and AdamW at 3e-4; from random ones torchvision's EfficientNet-B0 and
AdamW at 1e-3. Cosine over the run, batches of 32, cross-entropy, flips, turns up to 20 degrees and colour jitter; the
epoch with the best validation AUROC is kept.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path

import job as jobs
import lightning
import numpy as np
import timm
import torch
from job import MEAN, STD, Clock, Job
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAUROC
from torchvision import models, transforms


class Images(torch.utils.data.Dataset):
    """The images of a split, read when they are asked for."""

    def __init__(self, table, transform):
        self.files, self.labels, self.transform = table["file"].tolist(), table["place"].tolist(), transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int):
        with Image.open(self.files[i]) as picture:
            return self.transform(picture.convert("RGB")), self.labels[i]


class Network(lightning.LightningModule):
    """A network with cross-entropy."""

    def __init__(self, model: nn.Module, classes: int, lr: float, epochs: int):
        super().__init__()
        self.model, self.lr, self.epochs = model, lr, epochs
        self.auroc = MulticlassAUROC(classes)

    def training_step(self, batch, _):
        images, labels = batch
        return nn.functional.cross_entropy(self.model(images), labels)

    def validation_step(self, batch, _):
        images, labels = batch
        self.auroc.update(self.model(images).softmax(1), labels)
        self.log("val_auroc", self.auroc, on_epoch=True)

    def predict_step(self, batch, _):
        return self.model(batch[0]).double().softmax(1)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)]


class Timed(Callback):
    """Runs the clock in the training part of an epoch, and notes what it says of the validation images."""

    def __init__(self, job: Job):
        self.job, self.clock, self.curve, self.probs = job, Clock(), [], []

    def on_train_epoch_start(self, *_):
        self.clock.start()

    def on_validation_epoch_start(self, *_):
        self.clock.stop()
        self.probs = []

    def on_validation_batch_end(self, trainer, module, outputs, batch, *_):
        self.probs.append(module.predict_step(batch, 0).cpu())

    def on_validation_epoch_end(self, *_):
        self.curve.append(jobs.point(self.job, len(self.curve) + 1, self.clock.seconds, torch.cat(self.probs).numpy()))


def main(job: Job) -> None:
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(job.threads)
    with tempfile.TemporaryDirectory(prefix="patholib-") as folder:
        of_one = train(job, 1, folder)[1].clock.seconds
        epochs = jobs.epochs_within(job.seconds, of_one)
        trainer, timed = train(job, epochs, folder)
        tables = {split: jobs.predictions(job, split, probabilities(job, trainer, split)) for split in ("val", "test")}
    aucs = [row["val_auc"] for row in timed.curve]
    jobs.leave(
        job,
        tables,
        timed.curve,
        ("lightning", "torchmetrics", "torchvision", "timm", "torch"),
        epochs=epochs,
        best_epoch=int(np.argmax(aucs)) + 1,
        seconds=timed.clock.seconds,
        planned=epochs * of_one,
    )


def train(job: Job, epochs: int, folder: str) -> tuple[lightning.Trainer, Timed]:
    lightning.seed_everything(job.seed, workers=True, verbose=False)
    timed = Timed(job)
    kept = ModelCheckpoint(f"{folder}/{epochs}", monitor="val_auroc", mode="max")
    trainer = lightning.Trainer(
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=[timed, kept],
    )
    trainer.fit(network(job, epochs), loader(job, "train", True), loader(job, "val"))
    return trainer, timed


def network(job: Job, epochs: int) -> Network:
    """The one that is trained, with its rate."""
    classes = len(job.classes)
    if not job.options.get("pretrained"):
        return Network(models.efficientnet_b0(weights=None, num_classes=classes), classes, 1e-3, epochs)
    model = timm.create_model(jobs.NETWORK, num_classes=classes, **jobs.pretrained(Path(job.out).parents[1]))
    return Network(model, classes, 3e-4, epochs)


def normalization(job: Job) -> tuple[tuple, tuple]:
    """Mean and deviation of the channels that the network's weights ask for."""
    if not job.options.get("pretrained"):
        return MEAN, STD
    overlay = jobs.pretrained(Path(job.out).parents[1])["pretrained_cfg_overlay"]
    return overlay["mean"], overlay["std"]


def loader(job: Job, split: str, training: bool = False) -> DataLoader:
    varied = [
        transforms.RandomHorizontalFlip(),
        transforms.RandomVerticalFlip(),
        transforms.RandomRotation(20),
        transforms.ColorJitter(0.1, 0.1, 0.1),
    ]
    transform = transforms.Compose(
        [
            transforms.Resize((job.size, job.size)),
            *varied * training,
            transforms.ToTensor(),
            transforms.Normalize(*normalization(job)),
        ]
    )
    return DataLoader(
        Images(job.part(split), transform),
        32,
        shuffle=training,
        drop_last=training,
        num_workers=job.threads,
        persistent_workers=training,
    )


def probabilities(job: Job, trainer: lightning.Trainer, split: str) -> np.ndarray:
    """(N, C) of the best epoch."""
    return torch.cat(trainer.predict(dataloaders=loader(job, split), ckpt_path="best")).cpu().numpy()


if __name__ == "__main__":
    jobs.run(main)
