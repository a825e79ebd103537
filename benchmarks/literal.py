"""What the source documents write, literally: their loaders, steps, heatmaps and averaged views, to measure against.

Nothing here is repaired; only what they leave open is filled in, in the usual way of torchvision and said beside it.
Weights are random, as nothing is downloaded: that changes no time.
"""

from __future__ import annotations

import copy
import os

import torch
from PIL import Image
from torch import nn, optim
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler
from torchvision import models, transforms

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
NORMALISE = transforms.Normalize(MEAN, STD)


# --- loading ---


class AddGaussianNoise:
    def __init__(self, mean: float = 0.0, std: float = 0.02):
        self.mean, self.std = mean, std

    def __call__(self, tensor):
        return tensor + torch.randn_like(tensor) * self.std


BREAKHIS = transforms.Compose(
    [
        transforms.Resize((224, 224)),
        transforms.RandomAffine(degrees=15, translate=(0.1, 0.1), scale=(0.85, 1.15), shear=5),
        transforms.RandomRotation(degrees=20),
        transforms.RandomHorizontalFlip(p=0.5),
        transforms.RandomVerticalFlip(p=0.5),
        transforms.RandomPerspective(distortion_scale=0.2, p=0.3),
        transforms.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.15, hue=0.05),
        transforms.ToTensor(),
        NORMALISE,
    ]
)
ISIC = transforms.Compose(
    [
        transforms.Resize((224, 224)),  # "resized during loading"
        transforms.RandomHorizontalFlip(p=0.3),
        transforms.RandomRotation(degrees=3),
        transforms.RandomResizedCrop(224, scale=(0.92, 1.0)),
        transforms.ColorJitter(brightness=0.05, contrast=0.05, saturation=0.05, hue=0.05),
        transforms.ToTensor(),
        NORMALISE,
        AddGaussianNoise(std=0.02),
    ]
)
PLAIN = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor(), NORMALISE])


class Images(Dataset):
    """Files decoded anew in every epoch; a file that cannot be read becomes a picture of zeros, as published."""

    def __init__(self, paths, labels, transform):
        self.paths, self.labels, self.transform = list(map(str, paths)), [int(label) for label in labels], transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index):
        try:
            image = Image.open(self.paths[index]).convert("RGB")
        except OSError:
            return torch.zeros(3, 224, 224), self.labels[index]
        return self.transform(image), self.labels[index]


def loader(images: Images, batch_size: int, balanced: bool, workers: int | None = None) -> DataLoader:
    """The training loader; balanced: BreakHis, whose sampler weighs every image by one over the size of its class."""
    workers = min(6, os.cpu_count()) if workers is None else workers
    sampler = None
    if balanced:
        counts = [images.labels.count(label) for label in range(max(images.labels) + 1)]
        sampler = WeightedRandomSampler([1 / counts[label] for label in images.labels], len(images))
    return DataLoader(
        images,
        batch_size=batch_size,
        shuffle=sampler is None,
        sampler=sampler,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        prefetch_factor=3 if workers else None,
        drop_last=True,
    )


# --- training ---


def resnet50() -> nn.Module:
    """ResNet50 with all but layer4, the last block of layer3, every BatchNorm and the head frozen."""
    model = models.resnet50(weights=None)
    for parameter in model.parameters():
        parameter.requires_grad = False
    learns = [model.layer4, model.layer3[-1], *(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))]
    for module in learns:
        for parameter in module.parameters():
            parameter.requires_grad = True
    model.fc = nn.Sequential(
        nn.Dropout(0.5), nn.Linear(2048, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Dropout(0.3), nn.Linear(512, 2)
    )
    return model


def efficientnet_b0() -> nn.Module:
    """EfficientNet-B0 with the head of the ISIC document and the first 7 of its 9 blocks frozen, as at epoch 0."""
    model = models.efficientnet_b0(weights=None)
    for block in model.features[:7]:
        for parameter in block.parameters():
            parameter.requires_grad = False
    model.classifier = nn.Sequential(
        nn.Dropout(0.5, inplace=True),
        nn.Linear(1280, 256),
        nn.ReLU(inplace=True),
        nn.BatchNorm1d(256),
        nn.Dropout(0.5, inplace=True),
        nn.Linear(256, 8),
    )
    return model


class FocalLoss(nn.Module):
    def __init__(self, alpha, gamma: float = 2.0):
        super().__init__()
        self.alpha, self.gamma = alpha, gamma

    def forward(self, logits, targets):
        ce = nn.functional.cross_entropy(logits, targets, weight=self.alpha, reduction="none")
        pt = torch.exp(-ce)
        return ((1 - pt) ** self.gamma * ce).mean()


def breakhis_step(model: nn.Module):
    """A function of images (N, 3, H, W) and labels (N,) that does one step of the BreakHis document."""
    criterion = nn.CrossEntropyLoss(weight=torch.ones(2), label_smoothing=0.1)
    optimizer = optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=1e-5)
    model.train()

    def step(images, labels) -> float:
        optimizer.zero_grad()
        loss = criterion(model(images), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()
        return loss.item()

    return step


def isic_step(model: nn.Module):
    """The same of the ISIC document, whose autocast and scaler are for CUDA and do nothing on a CPU."""
    criterion, cuda = FocalLoss(torch.ones(8)), torch.cuda.is_available()
    optimizer = optim.AdamW(model.parameters(), lr=5e-5, weight_decay=1e-5)
    scaler = torch.amp.GradScaler("cuda", enabled=cuda)
    model.train()

    def step(images, labels) -> float:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16, enabled=cuda):
            loss = criterion(model(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.item()

    return step


# --- judging and explaining ---


def tta(model: nn.Module, views) -> torch.Tensor:
    """The mean of what the model says of each view (1, 3, H, W), one pass after another."""
    with torch.no_grad():
        return torch.stack([torch.softmax(model(view), dim=1) for view in views]).mean(dim=0)


class GradCAM:
    """Hooks on the target layer and a backward pass through the whole network, one image at a time."""

    def __init__(self, model: nn.Module, target_layer: nn.Module):
        self.model = model
        target_layer.register_forward_hook(self._activations)
        target_layer.register_full_backward_hook(self._gradients)

    def _activations(self, _module, _inputs, output):
        self.activations = output

    def _gradients(self, _module, _inputs, outputs):
        self.gradients = outputs[0]

    def generate(self, image, class_idx: int) -> torch.Tensor:
        self.model.zero_grad()
        output = self.model(image)
        output[0, class_idx].backward()
        weights = self.gradients[0].mean(dim=[1, 2])
        cam = torch.relu((weights[:, None, None] * self.activations[0]).sum(dim=0))
        return (cam / cam.max()).detach()


def twin(model) -> nn.Module:
    """A `Classifier` as the source documents hold it: torchvision's network, NCHW, whole, given normalised images."""
    return copy.deepcopy(model.net).to(memory_format=torch.contiguous_format).requires_grad_(True).eval()
