"""The CBAM authors' training script: PyTorch's ImageNet example with their module.

It uses float32 and NCHW, and the loop of ``torchvision_reference`` with 4 workers, because it reads
the loss, top-1 and top-5 of every step, too. CBAM is not compiled. (Source: README and options of
their repository.)
"""

from __future__ import annotations

from setting import Setting
from sides import Wait

import attngrid
from peers.torchvision_reference import train

WORKERS = 4


def work(wait: Wait, setting: Setting, *, resident: bool = False) -> None:
    """Train for ever; call ``wait`` after every ``setting.steps`` steps."""
    data = setting.data
    model = attngrid.create_model(
        setting.backbone, "cbam", num_classes=data.num_classes, stem=data.stem
    ).to(setting.device)
    train(wait, model, setting, WORKERS, resident=resident)
