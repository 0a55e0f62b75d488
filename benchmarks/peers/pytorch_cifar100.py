"""pytorch-cifar100's loop: float32, NCHW, PIL images read by 4 workers, and a log of every step.

It logs the norms of the last layer's gradients after each backward pass, prints and logs the loss
after each step, and raises the learning rate in every step of the first epoch. (Source: its
README.)
"""

from __future__ import annotations

import torch
from setting import Setting
from sides import Wait
from torch import nn

from attngrid.core.hardware import processors
from peers.feed import batches, network

WORKERS = 4


def work(wait: Wait, setting: Setting) -> None:
    """Train for ever; call ``wait`` after every ``setting.steps`` steps."""
    torch.set_num_threads(setting.threads)
    model = network(setting)
    last = list(model.parameters())[-2:]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    epoch = setting.data.TRAIN // setting.batch
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 1e-3, total_iters=epoch)
    criterion = nn.CrossEntropyLoss()
    log: list[tuple[str, int, float]] = []
    model.train()
    read = batches(setting, workers=min(WORKERS, processors()))
    for step, (images, labels) in enumerate(read, 1):
        optimizer.zero_grad()
        loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        for parameter in last:
            assert parameter.grad is not None
            log.append(("last layer's gradient", step, parameter.grad.norm().item()))
        log.append((f"step {step}: {loss.item():.4f}", step, loss.item()))
        warm_up.step()
        if step % setting.steps == 0:
            wait()
