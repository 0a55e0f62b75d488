"""timm's train script: its model, parameter groups of the optimizer, loss and settings.

``channels_last`` is its ``--channels-last``, ``amp`` its ``--amp --amp-dtype bfloat16``, and
``compiled`` the ``--torchcompile-mode`` of its ``--torchcompile``. Without them it uses float32 and
NCHW. It has 4 workers and reads the loss of every step for its meter. (Source: timm's documentation
of training scripts.)
"""

from __future__ import annotations

import timm
import torch
from setting import Setting
from sides import Wait
from timm.loss.cross_entropy import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from timm.utils.metrics import AverageMeter

from attngrid.core.hardware import processors
from peers.feed import batches, with_stem

WORKERS = 4


def work(
    wait: Wait,
    setting: Setting,
    *,
    resident: bool = False,
    channels_last: bool = False,
    amp: bool = False,
    compiled: str | None = None,
) -> None:
    """Train for ever; call ``wait`` after every ``setting.steps`` steps."""
    torch.set_num_threads(setting.threads)
    torch.backends.cudnn.benchmark = True
    model = timm.create_model(setting.usual_name, num_classes=setting.data.num_classes)
    model = with_stem(model, setting).to(setting.device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1, momentum=0.9, weight_decay=2e-5)
    criterion = LabelSmoothingCrossEntropy(0.1)  # type: ignore[no-untyped-call]
    losses = AverageMeter()  # type: ignore[no-untyped-call]
    model.train()
    call = torch.compile(model, mode=compiled) if compiled else model
    read = batches(setting, workers=min(WORKERS, processors()), resident=resident)
    for step, (images, labels) in enumerate(read, 1):
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(setting.device, dtype=torch.bfloat16, enabled=amp):
            loss = criterion(call(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.update(loss.item(), len(images))  # type: ignore[no-untyped-call]
        if step % setting.steps == 0:
            wait()
