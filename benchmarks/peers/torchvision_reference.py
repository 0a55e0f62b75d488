"""torchvision's reference script for classification, its defaults.

float32, NCHW, a DataLoader of PIL images; after every step the loss, and top-1 and top-5 among the
batch, are read for the meters it prints. (references/classification, README and options.)
"""

from __future__ import annotations

import torch
from sides import Wait
from torch import nn
from torch.utils.data import DataLoader
from torchvision.models import resnet18

from peers.pictures import Pictures, endless


def cifar_resnet18() -> nn.Module:
    """Torchvision's ResNet-18 with the stem that CIFAR is trained with: 3×3/1, no pooling."""
    model: nn.Module = resnet18(num_classes=100)
    model.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def work(
    wait: Wait, pictures: Pictures, batch: int, steps: int, threads: int, workers: int
) -> None:
    """Train for ever, a sample being so many steps."""
    train(wait, cifar_resnet18(), pictures, batch, steps, threads, workers)


def train(
    wait: Wait,
    model: nn.Module,
    pictures: Pictures,
    batch: int,
    steps: int,
    threads: int,
    workers: int,
) -> None:
    """The same of any model."""
    torch.set_num_threads(threads)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    criterion = nn.CrossEntropyLoss()
    loader = DataLoader(
        pictures,
        batch,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        drop_last=True,
    )
    meters: dict[str, list[float]] = {"loss": [], "top1": [], "top5": []}
    model.train()
    for step, (images, labels) in enumerate(endless(loader), 1):
        output = model(images)
        loss = criterion(output, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ranked = output.topk(5).indices == labels[:, None]
        meters["loss"].append(loss.item())
        meters["top1"].append(ranked[:, 0].float().mean().item())
        meters["top5"].append(ranked.any(1).float().mean().item())
        if step % steps == 0:
            wait()
