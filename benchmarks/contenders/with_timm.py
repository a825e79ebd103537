"""The steps of timm's training script with the settings its documentation gives.

timm does not install its train.py, so its steps are done here with the library's own functions.

From pretrained weights: the fine-tuning of its model cards (--pretrained --opt adamw --opt-eps 1e-6 --weight-decay .01
--warmup-lr 0 --sched-on-updates --clip-grad 1.0, cosine), with EfficientNet-Lite0 and what train.py does unless told
otherwise: crops of 8 % to all of a picture, mirror images, label smoothing 0.1, --model-ema. RandAugment
and dropout 0.2 are those of its EfficientNets. The rate is 3e-4, as the cards' 5e-5 is for large transformers.

From random weights: those for EfficientNet-B0 (RandAugment). RMSpropTF, learning rate 0.048 per 768 images of a batch,
step decay, warm-up, RandAugment, random erasing, dropout and drop path 0.2, label smoothing. The schedule of 450 epochs
is compressed into those there is time for.

Of the moving average of the weights the epoch with the best validation accuracy is kept, of equal ones the last. The
average is warmed up (--model-ema-warmup), because 0.9999 would not leave the start in so few steps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import job as jobs
import numpy as np
import timm
import torch
from job import Clock, Job
from PIL import Image
from timm.data import auto_augment, create_loader, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, random_seed

# RandAugment asks now and then to keep 0 bits of a colour, which a newer Pillow refuses: here one is kept.
auto_augment.NAME_TO_OP |= dict.fromkeys(
    ("Posterize", "PosterizeIncreasing"), lambda image, bits, **_: auto_augment.posterize(image, max(bits, 1))
)
BATCH, EPOCHS = 32, 450  # EPOCHS: of the documented schedule from random weights


@dataclass(frozen=True)
class Settings:
    """What differs between a training from random weights and a fine-tuning."""

    network: str
    model: dict
    views: dict
    optimizer: dict
    schedule: Callable[[int], dict]  # of the number of epochs
    decay: float  # of the averaged weights
    clip: float | None = None  # largest gradient norm
    expected: dict = field(default_factory=dict)  # mean and std of the input, where they are not those of ImageNet


def settings(job: Job) -> Settings:
    if not job.options.get("pretrained"):
        return Settings(
            "efficientnet_b0",
            {"drop_rate": 0.2, "drop_path_rate": 0.2},
            {"auto_augment": "rand-m9-mstd0.5", "re_prob": 0.2, "re_mode": "pixel"},
            {"opt": "rmsproptf", "lr": 0.048 * BATCH / 768, "weight_decay": 1e-5, "eps": 1e-3},
            lambda epochs: {
                "sched": "step",
                "decay_epochs": 2.4 * epochs / EPOCHS,
                "decay_rate": 0.97,
                "warmup_lr": 1e-6,
                "warmup_epochs": 5 * epochs / EPOCHS,
            },
            0.9999,
        )
    start = jobs.pretrained(Path(job.out).parents[1])
    return Settings(
        jobs.NETWORK,
        {"drop_rate": 0.2, **start},
        {"auto_augment": "rand-m9-mstd0.5-inc1"},
        {"opt": "adamw", "lr": 3e-4, "weight_decay": 0.01, "eps": 1e-6},
        lambda epochs: {"sched": "cosine", "warmup_lr": 0.0, "warmup_epochs": epochs / 10},
        0.9998,
        clip=1.0,
        expected={name: start["pretrained_cfg_overlay"][name] for name in ("mean", "std")},
    )


class Images(torch.utils.data.Dataset):
    """The images of a split as PIL pictures, for timm's loader to transform."""

    def __init__(self, table):
        self.files, self.labels, self.transform = table["file"].tolist(), table["place"].tolist(), None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int):
        with Image.open(self.files[i]) as picture:
            return self.transform(picture.convert("RGB")), self.labels[i]


def main(job: Job) -> None:
    torch.set_num_threads(job.threads)
    first, second = (row["seconds"] for row in train(job, 2)["curve"])
    of_one = second - first  # the first one also starts the loader's processes, which go on
    epochs = jobs.epochs_within(job.seconds, of_one)
    found = train(job, epochs)
    tables = {
        split: jobs.predictions(job, split, probabilities(job, found["model"], split)) for split in ("val", "test")
    }
    jobs.leave(
        job,
        tables,
        found["curve"],
        ("timm", "torch"),
        epochs=epochs,
        best_epoch=found["best_epoch"],
        seconds=found["seconds"],
        planned=epochs * of_one,
    )


def train(job: Job, epochs: int) -> dict:
    """The averaged model of the best epoch, the curve, the seconds of training."""
    random_seed(job.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = settings(job)
    model = timm.create_model(chosen.network, num_classes=len(job.classes), **chosen.model).to(device)
    average = ModelEmaV3(model, decay=chosen.decay, use_warmup=True)
    loader = create_loader(
        Images(job.part("train")),
        (3, job.size, job.size),
        BATCH,
        is_training=True,
        interpolation="random",
        **chosen.views,
        **chosen.expected,
        num_workers=job.threads,
        use_prefetcher=False,
    )
    optimizer = create_optimizer_v2(model, **chosen.optimizer)
    scheduler, _ = create_scheduler_v2(
        optimizer, num_epochs=epochs, **chosen.schedule(epochs), step_on_epochs=False, updates_per_epoch=len(loader)
    )
    criterion, clock, curve, best, step = LabelSmoothingCrossEntropy(0.1), Clock(), [], (-1.0, 0, None), 0
    for epoch in range(1, epochs + 1):
        model.train()
        clock.start()
        for images, labels in loader:
            loss = criterion(model(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            if chosen.clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), chosen.clip)
            optimizer.step()
            step += 1
            average.update(model, step=step)
            scheduler.step_update(num_updates=step)
        clock.stop()
        probs = probabilities(job, average.module, "val")
        curve.append(jobs.point(job, epoch, clock.seconds, probs))
        accuracy = float((probs.argmax(axis=1) == job.part("val")["place"].to_numpy()).mean())
        if accuracy >= best[0]:  # of equal ones the last: as long as all is called one class they are equal
            best = accuracy, epoch, copy.deepcopy(average.module)
    return {"model": best[2], "best_epoch": best[1], "curve": curve, "seconds": clock.seconds}


def probabilities(job: Job, model: torch.nn.Module, split: str) -> np.ndarray:
    """(N, C) for the images of a split, as timm's validation sees them."""
    config = resolve_data_config({"input_size": (3, job.size, job.size)}, model=model)
    loader = create_loader(
        Images(job.part(split)),
        config["input_size"],
        64,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        crop_pct=config["crop_pct"],
        num_workers=job.threads,
        use_prefetcher=False,
        persistent_workers=False,
    )
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        return torch.cat([model(images.to(device)).double().softmax(1).cpu() for images, _ in loader]).numpy()


if __name__ == "__main__":
    jobs.run(main)
