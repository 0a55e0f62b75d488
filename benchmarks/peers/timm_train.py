"""timm's train script: its model, its optimizer's parameter groups, its loss, its settings.

``channels_last`` is its ``--channels-last``, ``amp`` its ``--amp --amp-dtype bfloat16``; without
them it is float32 in NCHW. The loss is read every step for its meter. (timm's documentation of
training scripts.)
"""

from __future__ import annotations

import timm
import torch
from sides import Wait
from timm.loss.cross_entropy import LabelSmoothingCrossEntropy
from timm.optim._optim_factory import create_optimizer_v2
from timm.utils.metrics import AverageMeter
from torch import nn
from torch.utils.data import DataLoader

from peers.pictures import Pictures, endless


def work(
    wait: Wait,
    pictures: Pictures,
    batch: int,
    steps: int,
    threads: int,
    workers: int,
    *,
    channels_last: bool = False,
    amp: bool = False,
) -> None:
    """Train for ever, a sample being so many steps."""
    torch.set_num_threads(threads)
    model = timm.create_model("resnet18", num_classes=100)
    model.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1, momentum=0.9, weight_decay=2e-5)
    criterion = LabelSmoothingCrossEntropy(0.1)  # type: ignore[no-untyped-call]
    loader = DataLoader(
        pictures,
        batch,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        drop_last=True,
    )
    losses = AverageMeter()  # type: ignore[no-untyped-call]
    model.train()
    for step, (images, labels) in enumerate(endless(loader), 1):
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
            loss = criterion(model(images), labels)
        losses.update(loss.item(), len(images))  # type: ignore[no-untyped-call]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % steps == 0:
            wait()
