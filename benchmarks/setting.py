"""What the sides of a comparison train, and where."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from typing import Any

import synthetic
import torch
from sides import about
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
        data: random ones of that size.
        backbone: a ResNet; with 50 layers the one whose 3×3 has the stride, as all the peers' have.
        device: ``cpu`` or ``cuda``.
        batch: images a step.
        steps: of a sample; on a GPU many, of which what a peer reads ahead while others have their
            turn is a small part, and those of six samples are within an epoch.
        threads: of the processor.
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
        """In words."""
        name = find_backbone(self.backbone).label
        return f"{name} with CIFAR's stem" if self.images == "cifar" else f"{name} at 224×224"

    @property
    def usual_name(self) -> str:
        """Of the backbone, elsewhere."""
        return self.backbone.removesuffix("_v1.5")

    @property
    def precision(self) -> Precision:
        """The usual one of the device."""
        return usual_precision(self.device)

    @property
    def sample_images(self) -> int:
        """Images that a sample takes."""
        return self.batch * self.steps

    def about(self, **more: Any) -> dict[str, Any]:
        """What a benchmark says of itself."""
        return about(
            self.device,
            network=self.network,
            threads=self.threads,
            batch=self.batch,
            steps=self.steps,
            precision=self.precision,
            **more,
        )

    def sample_flops(self) -> float:
        """Of a sample, forward and backward, by torch's counter: two a multiply-accumulate."""
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
    """What the papers' studies are trained in, or float32 where that takes less time."""
    return "float32" if too_slow("bfloat16", torch.device(device)) else "bfloat16"


def add_device(parser: argparse.ArgumentParser) -> None:
    """``--device``: the GPU, where there is one."""

    def device(name: str) -> str:
        if name == "cuda" and not torch.cuda.is_available():
            raise argparse.ArgumentTypeError("found 'cuda', and no GPU is at hand")
        return name

    usual = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=device, choices=["cpu", "cuda"], default=usual)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those that ``chosen`` reads."""
    add_device(parser)
    parser.add_argument(
        "--images",
        choices=["cifar", "imagenet"],
        default="cifar",
        help="random ones of that size: a ResNet-18 on CIFAR's, a ResNet-50 on ImageNet's",
    )
    parser.add_argument("--threads", type=int, default=processors())


def chosen(options: argparse.Namespace) -> Setting:
    """The setting that a command's options name, ``--rounds`` among them."""
    (setting,) = (s for s in SETTINGS if (s.device, s.images) == (options.device, options.images))
    most = setting.data.TRAIN // setting.sample_images - 1
    if setting.device == "cuda" and options.rounds > most:
        # the test at an epoch's end compiles the network again
        sys.exit(f"--rounds: found {options.rounds}; an epoch here has {most}")
    return replace(setting, threads=options.threads)
