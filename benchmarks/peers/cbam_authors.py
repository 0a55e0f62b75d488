"""The CBAM authors' training script, which is PyTorch's example for ImageNet, with their module.

float32, NCHW, the loop of ``torchvision_reference`` with 4 workers: it reads the loss, top-1 and
top-5 of every step, too. CBAM is taken operator by operator. (Their repository: README and
options.)
"""

from __future__ import annotations

from setting import Setting
from sides import Wait

import attngrid
from peers.torchvision_reference import train

WORKERS = 4


def work(wait: Wait, setting: Setting, *, resident: bool = False) -> None:
    """Train for ever, a sample being so many steps."""
    data = setting.data
    model = attngrid.create_model(
        setting.backbone, "cbam", num_classes=data.num_classes, stem=data.stem
    ).to(setting.device)
    train(wait, model, setting, WORKERS, resident=resident)
