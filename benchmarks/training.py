"""Training a ResNet-18 on CIFAR's images against the loops that others use: 2.0 times, at least.

    python benchmarks/training.py [--json FILE] [--threads 2] [--rounds 5] [--switches]

sets ``attngrid.training.loop.train`` in bfloat16, with all that makes it fast, beside itself in
float32 (``--switches``: and without the tuned allocator, with new memory filled, with everything
off), and beside the loops of ``benchmarks/peers``, with and without the allocator; the CBAM
authors' loop is beside ours with CBAM. Each side is a process of its own; the rounds are
interleaved; a sample is a step of 64 images. Printed are medians, and the share of the machine's
own matrix product, measured in the same rounds, that ours achieves. It ends non-zero where ours is
less than 2.0 times torchvision's reference loop. Where the processor lacks bfloat16 all of it is in
float32, for which no bound is set.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from peers import cbam_authors, pytorch_cifar100, timm_train, torchvision_reference
from peers.pictures import Pictures
from sides import Side, Wait, about, headline, interleave, paired, quartiles, report, table
from synthetic import random_images
from torch.utils.flop_counter import FlopCounterMode

import attngrid
from attngrid.config import Study, validate
from attngrid.processor import lacks_bfloat16, processors
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


def usual_precision() -> str:
    """What the papers' studies are trained in, or float32 where that takes longer."""
    return "float32" if lacks_bfloat16() else "bfloat16"


def train(
    wait: Wait, attention: str, precision: str, fast: dict[str, Any], steps: int, threads: int
) -> None:
    """Our own loop; a sample is so many steps, as it is of the peers."""
    from attngrid.training import loop

    class Samples(Checkpoints):
        """Is asked after each step whether a checkpoint is due: never."""

        asked = 0

        def due(self) -> bool:
            if torch.is_grad_enabled():  # not after a batch of the test at an epoch's end
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


def make_sides(
    precision: str, threads: int, *, switches: bool = False
) -> tuple[dict[str, Side], dict[str, str]]:
    """The sides by their names, and which of ours is beside one where that is not ``OURS``."""
    pixels_NCHW, labels_N = random_images(2_560)
    pictures = Pictures(pixels_NCHW.transpose(0, 2, 3, 1).copy(), labels_N.tolist())
    narrow = precision == "bfloat16"
    peer = (pictures, BATCH, 1, threads, 2)
    best = {"channels_last": True, "amp": narrow}
    named = "timm, amp" if narrow else "timm, channels last"

    def ours(
        name: str,
        fast: Mapping[str, Any] = MappingProxyType({}),
        *,
        attention: str = "none",
        precision: str = precision,
        tuned: bool = True,
    ) -> Side:
        return Side(name, train, attention, precision, dict(fast), 1, threads, tuned=tuned)

    sides = [ours(OURS)]
    if narrow:
        sides.append(ours("ours, float32", precision="float32"))
    if switches:
        sides += [
            ours("ours, untuned allocator", tuned=False),
            ours("ours, memory filled", {"unfilled": False}),
            ours("ours, all off", OFF, precision="float32", tuned=False),
        ]
    sides += [
        Side(REFERENCE, torchvision_reference.work, *peer, tuned=False),
        Side("torchvision, allocator", torchvision_reference.work, *peer),
        Side("pytorch-cifar100", pytorch_cifar100.work, *peer, tuned=False),
        Side("timm", timm_train.work, *peer, tuned=False),
        Side(named, timm_train.work, *peer, tuned=False, **best),
        Side(f"{named}, allocator", timm_train.work, *peer, **best),
        ours("ours, CBAM", attention="cbam"),
        Side("CBAM authors", cbam_authors.work, *peer, tuned=False),
        *([Side("bfloat16 product", multiply, torch.bfloat16, threads)] if narrow else []),
        Side("float32 product", multiply, torch.float32, threads),
    ]
    return {side.name: side for side in sides}, {"CBAM authors": "ours, CBAM"}


def main() -> int:
    """Measure, print, compare with the bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--threads", type=int, default=processors())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--switches", action="store_true", help="and with single switches off")
    options = parser.parse_args()
    precision = usual_precision()
    run = about(threads=options.threads, batch=BATCH, rounds=options.rounds, precision=precision)
    flops = step_flops()
    sides, compared = make_sides(precision, options.threads, switches=options.switches)
    interleave(sides.values(), options.rounds)
    rows: list[dict[str, Any]] = []
    for name, side in sides.items():
        product = name.endswith("product")
        done = PRODUCT_FLOPS if product else flops
        row: dict[str, Any] = {"side": name}
        if "CBAM" not in name:
            row["gflop_per_s"] = quartiles([done / seconds / 1e9 for seconds in side.seconds])
        if not product:
            row["images_per_s"] = quartiles([BATCH / seconds for seconds in side.seconds])
            row["ours_is_times"] = paired(sides[compared.get(name, OURS)], side)
        rows.append(row)
    by_name = {row["side"]: row for row in rows}
    shares = {
        kind: by_name[name]["gflop_per_s"][1] / by_name[f"{kind} product"]["gflop_per_s"][1]
        for kind, name in ((precision, OURS), ("float32", "ours, float32"))
        if name in sides
    }
    print(f"ResNet-18 with CIFAR's stem; {headline(run)}")
    shown = [
        {
            "side": row["side"],
            "images/s": row.get("images_per_s", [None] * 3)[1],
            "ours is × that": row.get("ours_is_times", [None] * 3)[1],
            "from": row.get("ours_is_times", [None] * 3)[0],
            "to": row.get("ours_is_times", [None] * 3)[2],
            "GFLOP/s": row.get("gflop_per_s", [None] * 3)[1],
        }
        for row in rows
    ]
    formats = {"side": "", "images/s": ".1f", "ours is × that": ".2f", "from": ".2f", "to": ".2f"}
    print(table(shown, formats | {"GFLOP/s": ".0f"}))
    for name, against in compared.items():
        print(f"{name}: against {against!r}")
    for kind, share in shares.items():
        print(f"ours achieves {share:.2f} of the machine's {kind} product")
    report(options.json, run, share_of_product=shares, sides=rows)
    if precision != "bfloat16":
        print(f"the bound of {BOUND} is bfloat16's, which this processor lacks: not judged")
        return 0
    return int(by_name[REFERENCE]["ours_is_times"][1] < BOUND)


if __name__ == "__main__":
    sys.exit(main())
