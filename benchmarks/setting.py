"""The network, images and device that all sides of a comparison share."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from typing import Any

import synthetic
import torch
from sides import machine_info
from torch.utils.flop_counter import FlopCounterMode

import attngrid
from attngrid.core.hardware import processors
from attngrid.models.registry import find_backbone
from attngrid.study.options import Precision
from attngrid.training.loop import too_slow


@dataclass(frozen=True)
class Setting:
    """A network, its images and a device.

    Attributes:
        images: ``cifar`` or ``imagenet``.
        data: a dataset of random images of that size.
        backbone: a ResNet; with 50 layers the one with the stride in the 3×3, as the peers have it.
        device: ``cpu`` or ``cuda``.
        batch: images a step.
        steps: steps a sample. On a GPU they are many, so that the batches that a peer reads ahead
            between its samples are a small part, and six samples fit into an epoch.
        threads: CPU threads.
    """

    images: str
    data: type[synthetic.Cifar]
    backbone: str
    device: str
    batch: int
    steps: int
    threads: int = 1

    @property
    def network(self) -> str:
        """The network in words, for the output."""
        name = find_backbone(self.backbone).label
        return f"{name} with CIFAR's stem" if self.images == "cifar" else f"{name} at 224×224"

    @property
    def usual_name(self) -> str:
        """The backbone's name in torchvision and timm."""
        return self.backbone.removesuffix("_v1.5")

    @property
    def precision(self) -> Precision:
        """The precision of trainings on this device."""
        return usual_precision(self.device)

    @property
    def sample_images(self) -> int:
        """Images a sample."""
        return self.batch * self.steps

    def describe(self, **more: Any) -> dict[str, Any]:
        """The machine, the setting and ``more``, for a benchmark's output."""
        return machine_info(
            self.device,
            network=self.network,
            threads=self.threads,
            batch=self.batch,
            steps=self.steps,
            precision=self.precision,
            **more,
        )

    def sample_flops(self) -> float:
        """Operations of a sample, forward and backward, two for each multiply-accumulate."""
        with torch.device("meta"):
            model = attngrid.create_model(
                self.backbone, "none", num_classes=self.data.num_classes, stem=self.data.stem
            )
            images = torch.empty(self.batch, 3, self.data.input_size, self.data.input_size)
        with FlopCounterMode(display=False) as counter:
            model(images).sum().backward()
        return float(counter.get_total_flops()) * self.steps


SETTINGS = (
    Setting("cifar", synthetic.Cifar, "resnet18", "cpu", batch=64, steps=1),
    Setting("imagenet", synthetic.ImageNet, "resnet50_v1.5", "cpu", batch=8, steps=1),
    Setting("cifar", synthetic.ManyCifar, "resnet18", "cuda", batch=128, steps=200),
    Setting("imagenet", synthetic.ManyImageNet, "resnet50_v1.5", "cuda", batch=128, steps=10),
)


def usual_precision(device: str) -> Precision:
    """bfloat16, as in the papers' studies, or float32 on a device where bfloat16 is slower."""
    return "float32" if too_slow("bfloat16", torch.device(device)) else "bfloat16"


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``; the default is the GPU if there is one."""

    def device(name: str) -> str:
        if name == "cuda" and not torch.cuda.is_available():
            raise argparse.ArgumentTypeError("found 'cuda', but PyTorch finds no GPU")
        return name

    usual = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=device, choices=["cpu", "cuda"], default=usual)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that ``select_setting`` reads."""
    add_device(parser)
    parser.add_argument(
        "--images",
        choices=["cifar", "imagenet"],
        default="cifar",
        help="size of the random images: ResNet-18 for cifar, ResNet-50 for imagenet",
    )
    parser.add_argument("--threads", type=int, default=processors())


def select_setting(options: argparse.Namespace) -> Setting:
    """The setting for a command's options; too many ``--rounds`` on a GPU end the program."""
    (setting,) = (s for s in SETTINGS if (s.device, s.images) == (options.device, options.images))
    most = setting.data.TRAIN // setting.sample_images - 1
    if setting.device == "cuda" and options.rounds > most:
        # All samples must be in one epoch: the test at its end compiles the network again.
        sys.exit(f"--rounds: found {options.rounds}; at most {most} fit into an epoch")
    return replace(setting, threads=options.threads)
