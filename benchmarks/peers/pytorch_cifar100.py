"""pytorch-cifar100's loop: float32, NCHW, PIL images, and a log of every step.

After each backward pass the norms of the last layer's gradients are logged, after each step the
loss is printed and logged, and in the first epoch the learning rate is raised every step. (Its
README.)
"""

from __future__ import annotations

import torch
from sides import Wait
from torch import nn
from torch.utils.data import DataLoader

from peers.pictures import Pictures, endless
from peers.torchvision_reference import cifar_resnet18


def work(
    wait: Wait, pictures: Pictures, batch: int, steps: int, threads: int, workers: int
) -> None:
    """Train for ever, a sample being so many steps."""
    torch.set_num_threads(threads)
    model = cifar_resnet18()
    last = list(model.parameters())[-2:]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 1e-3, total_iters=len(pictures) // batch)
    criterion = nn.CrossEntropyLoss()
    loader = DataLoader(
        pictures,
        batch,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        drop_last=True,
    )
    log: list[tuple[str, int, float]] = []
    model.train()
    for step, (images, labels) in enumerate(endless(loader), 1):
        optimizer.zero_grad()
        loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        for parameter in last:
            assert parameter.grad is not None
            log.append(("last layer's gradient", step, parameter.grad.norm().item()))
        log.append((f"step {step}: {loss.item():.4f}", step, loss.item()))
        warm_up.step()
        if step % steps == 0:
            wait()
