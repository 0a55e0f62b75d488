"""torchvision's reference script for classification, with its defaults.

It uses float32, NCHW, and a DataLoader of PIL images with 16 workers, or fewer if there are fewer
processors. After every step it reads the loss, top-1 and top-5 of the batch for its meters.
(Source: README and options of references/classification.)
"""

from __future__ import annotations

import torch
from setting import Setting
from sides import Wait
from torch import nn

from attngrid.core.hardware import processors
from peers.feed import batches, network

WORKERS = 16


def work(wait: Wait, setting: Setting, *, resident: bool = False) -> None:
    """Train for ever; call ``wait`` after every ``setting.steps`` steps."""
    train(wait, network(setting), setting, WORKERS, resident=resident)


def train(
    wait: Wait, model: nn.Module, setting: Setting, workers: int, *, resident: bool = False
) -> None:
    """Train any model in the same way."""
    torch.set_num_threads(setting.threads)
    torch.backends.cudnn.benchmark = True
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    criterion = nn.CrossEntropyLoss()
    read = batches(setting, workers=min(workers, processors()), resident=resident)
    meters: dict[str, list[float]] = {"loss": [], "top1": [], "top5": []}
    model.train()
    for step, (images, labels) in enumerate(read, 1):
        output = model(images)
        loss = criterion(output, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ranked = output.topk(5).indices == labels[:, None]
        meters["loss"].append(loss.item())
        meters["top1"].append(ranked[:, 0].float().mean().item())
        meters["top5"].append(ranked.any(1).float().mean().item())
        if step % setting.steps == 0:
            wait()
