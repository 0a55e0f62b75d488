"""The CBAM authors' training script, which is PyTorch's example for ImageNet, with their module.

float32, NCHW, the loop of ``torchvision_reference``: it reads the loss, top-1 and top-5 of every
step, too. CBAM is taken operator by operator. (Their repository: README and options.)
"""

from __future__ import annotations

from sides import Wait

import attngrid
from attngrid.convolution import native_convolutions
from attngrid.forms import literal_forms
from peers.pictures import Pictures
from peers.torchvision_reference import train


def work(
    wait: Wait, pictures: Pictures, batch: int, steps: int, threads: int, workers: int
) -> None:
    """Train for ever, a sample being so many steps."""
    model = attngrid.create_model("resnet18", "cbam", num_classes=100, stem="cifar")
    with literal_forms(), native_convolutions():
        train(wait, model, pictures, batch, steps, threads, workers)
