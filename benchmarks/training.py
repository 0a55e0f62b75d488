"""Training a ResNet-18 on CIFAR's images against the loops that others use: 2.0 times, at least.

    python benchmarks/training.py [--json FILE] [--threads 2] [--rounds 5]

sets ``attngrid.training.loop.train`` in bfloat16, with all that makes it fast, beside itself in
float32, without the tuned allocator, with new memory filled, and with everything off; and beside
the loops of ``benchmarks/peers``, with and without the allocator. Each side is a process of its
own; the rounds are interleaved; a sample is a step of 64 images. Printed are medians, and the
share of the machine's own bfloat16 matrix product, measured in the same rounds, that ours achieves.
It ends non-zero where ours is less than 2.0 times torchvision's reference loop.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from peers import pytorch_cifar100, timm_train, torchvision_reference
from peers.pictures import Pictures
from sides import Side, Wait, about, headline, interleave, paired, quartiles, report, table
from synthetic import random_images
from torch.utils.flop_counter import FlopCounterMode

import attngrid
from attngrid.config import Study, validate
from attngrid.training.batches import processors
from attngrid.training.checkpoint import Checkpoints
from attngrid.training.fast import Fast

BOUND, REFERENCE, OURS = 2.0, "torchvision", "ours"
BATCH = 64
OFF = {
    "channels_last": False,
    "attention": False,
    "convolutions": False,
    "fused_sgd": False,
    "unfilled": False,
    "compile": False,
}


def train(
    wait: Wait, attention: str, precision: str, fast: dict[str, Any], steps: int, threads: int
) -> None:
    """Our own loop; a sample is so many steps, as it is of the peers."""
    from attngrid.training import loop

    class Samples(Checkpoints):
        """Is asked after each step whether a checkpoint is due: never."""

        asked = 0

        def due(self) -> bool:
            self.asked += 1
            if self.asked % steps == 0:
                wait()
            return False

    content = {
        "study": "benchmark",
        "grid": [
            {
                "dataset": f"{Path(__file__).with_name('synthetic.py')}:Synthetic",
                "backbones": ["resnet18"],
                "attentions": [attention],
                "recipes": ["benchmark"],
                "seeds": [0],
            }
        ],
        "recipes": {
            "benchmark": {
                "epochs": 10_000,
                "batch_size": BATCH,
                "learning_rate": 0.01,
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 5e-4,
                "schedule": {"kind": "step", "milestones": [9_999]},
                "train_transforms": [{"kind": "random_crop", "padding": 4}, {"kind": "flip"}],
            }
        },
        "compute": {"device": "cpu", "precision": precision, "threads": threads},
    }
    (cell,) = validate(Study, content, "benchmark").cells
    loop.train(
        cell,
        torch.device("cpu"),
        Path(),
        progress=lambda *_: None,
        checkpoints=Samples(Path("none"), cell.digest, share=0),
        fast=Fast.model_validate(fast),
    )


def multiply(wait: Wait, dtype: torch.dtype, threads: int, size: int = 2048) -> None:
    """Matrix products, ten a sample."""
    torch.set_num_threads(threads)
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    out = torch.empty(size, size, dtype=dtype)
    while True:
        for _ in range(10):
            torch.mm(a, b, out=out)
        wait()


PRODUCT_FLOPS = 10 * 2 * 2048**3


def step_flops() -> float:
    """Of a step, forward and backward, by torch's counter: two a multiply-accumulate."""
    with torch.device("meta"):
        model = attngrid.create_model("resnet18", "none", num_classes=100, stem="cifar")
        images = torch.empty(BATCH, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    return float(counter.get_total_flops())


def main() -> int:
    """Measure, print, compare with the bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--threads", type=int, default=processors())
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    run = about(threads=options.threads, batch=BATCH, rounds=options.rounds)

    pixels_NCHW, labels_N = random_images(2_560)
    pictures = Pictures(pixels_NCHW.transpose(0, 2, 3, 1).copy(), labels_N.tolist())
    steps, threads = 1, options.threads
    peer = (pictures, BATCH, steps, threads, 2)
    sides = [
        Side(OURS, train, "none", "bfloat16", {}, steps, threads),
        Side("ours, untuned allocator", train, "none", "bfloat16", {}, steps, threads, tuned=False),
        Side("ours, memory filled", train, "none", "bfloat16", {"unfilled": False}, steps, threads),
        Side("ours, float32", train, "none", "float32", {}, steps, threads),
        Side("ours, all off", train, "none", "float32", OFF, steps, threads, tuned=False),
        Side(REFERENCE, torchvision_reference.work, *peer, tuned=False),
        Side("torchvision, allocator", torchvision_reference.work, *peer),
        Side("pytorch-cifar100", pytorch_cifar100.work, *peer, tuned=False),
        Side("timm", timm_train.work, *peer, False, tuned=False),
        Side("timm, amp", timm_train.work, *peer, True, tuned=False),
        Side("timm, amp, allocator", timm_train.work, *peer, True),
        Side("bfloat16 product", multiply, torch.bfloat16, threads),
        Side("float32 product", multiply, torch.float32, threads),
    ]
    interleave(sides, options.rounds)
    ours = sides[0]
    flops = step_flops()
    rows: list[dict[str, Any]] = []
    for side in sides:
        product = side.name.endswith("product")
        done = PRODUCT_FLOPS if product else steps * flops
        rates = quartiles([done / seconds / 1e9 for seconds in side.seconds])
        row: dict[str, Any] = {"side": side.name, "gflop_per_s": rates}
        if not product:
            row["images_per_s"] = quartiles([steps * BATCH / s for s in side.seconds])
            row["ours_is_times"] = paired(ours, side)
        rows.append(row)
    by_name = {row["side"]: row for row in rows}
    shares = {
        kind: by_name[name]["gflop_per_s"][1] / by_name[f"{kind} product"]["gflop_per_s"][1]
        for kind, name in (("bfloat16", OURS), ("float32", "ours, float32"))
    }
    print(f"ResNet-18 with CIFAR's stem; {headline(run)}")
    shown = [
        {
            "side": row["side"],
            "images/s": row.get("images_per_s", [None] * 3)[1],
            "ours is × that": row.get("ours_is_times", [None] * 3)[1],
            "from": row.get("ours_is_times", [None] * 3)[0],
            "to": row.get("ours_is_times", [None] * 3)[2],
            "GFLOP/s": row["gflop_per_s"][1],
        }
        for row in rows
    ]
    formats = {"side": "", "images/s": ".1f", "ours is × that": ".2f", "from": ".2f", "to": ".2f"}
    print(table(shown, formats | {"GFLOP/s": ".0f"}))
    for kind, share in shares.items():
        print(f"ours achieves {share:.2f} of the machine's {kind} product")
    report(options.json, run, share_of_product=shares, sides=rows)
    return int(by_name[REFERENCE]["ours_is_times"][1] < BOUND)


if __name__ == "__main__":
    sys.exit(main())
