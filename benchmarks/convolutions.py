"""Training steps with convolutions' gradients as measured best against bfloat16's own.

    python benchmarks/convolutions.py [--json FILE] [--threads 2] [--rounds 5] [--size 224]

trains MobileNetV1, V2 and V3 and ResNet-18 without attention on batches of 64 images of noise
under bfloat16: as ``attngrid train`` does, and with ``fast: {convolutions: false}``; and in
float32. Each side is a process of its own, a sample is a step, the rounds of a network are
interleaved. Printed are medians and quartiles.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from sides import Side, Wait, about, headline, interleave, paired, quartiles, report, table

from attngrid.core.hardware import lacks_bfloat16, processor_name, processors
from attngrid.measure.complexity import Model
from attngrid.measure.timing import Network
from attngrid.study.counted import CostGrid
from attngrid.training.loop import choose_device, make_deterministic

BATCH = 64
BACKBONES = ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large", "resnet18")
SIDES: dict[str, tuple[str, dict[str, bool]]] = {
    "ours": ("bfloat16", {}),
    "bfloat16's own": ("bfloat16", {"convolutions": False}),
    "float32": ("float32", {}),
}


def train(
    wait: Wait, backbone: str, size: int, precision: str, fast: dict[str, bool], threads: int
) -> None:
    """Steps, until nobody waits for the next."""
    make_deterministic(0, threads, strict=False)
    stem, classes = ("cifar", 100) if size == 32 else ("imagenet", 1000)
    grid = CostGrid.model_validate(
        {"device": "cpu", "precision": precision, "batch": BATCH, "fast": fast | {"compile": False}}
    )
    network = Network(Model(backbone, "none", stem, classes, size), grid, choose_device("cpu"))
    while True:
        network.training()
        wait()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--threads", type=int, default=processors())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=224, help="of the images; 32 has CIFAR's stem")
    options = parser.parse_args()
    if lacks_bfloat16():
        print(f"not measured: {processor_name()} has no instructions for bfloat16")
        return 0
    run = about(threads=options.threads, batch=BATCH, size=options.size, rounds=options.rounds)
    rows: list[dict[str, Any]] = []
    for backbone in BACKBONES:
        sides = {
            name: Side(name, train, backbone, options.size, precision, fast, options.threads)
            for name, (precision, fast) in SIDES.items()
        }
        interleave(sides.values(), options.rounds)
        for name, side in sides.items():
            images = quartiles([BATCH / seconds for seconds in side.seconds])
            times = paired(sides["ours"], side)
            rows.append({"backbone": backbone, "side": name, "images_per_s": images, "of": times})
    print(f"without attention; {headline(run)}")
    shown = [
        {
            "network": f"{row['backbone']}, {row['side']}",
            "images/s": row["images_per_s"][1],
            "ours is × as fast": row["of"][1],
            "from": row["of"][0],
            "to": row["of"][2],
        }
        for row in rows
    ]
    print(table(shown, dict.fromkeys(shown[0], ".2f") | {"network": "", "images/s": ".1f"}))
    report(options.json, run, rows=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
