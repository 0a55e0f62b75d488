"""The speed of training a ResNet, compared with other projects' training loops.

    python benchmarks/training.py [--device cuda] [--images imagenet] [--json FILE] [--threads 2]
        [--rounds 5] [--switches]

It compares ``attngrid.training.loop.train`` in bfloat16, with all performance options, with itself
in float32 and with the loops in ``benchmarks/peers``. ``--switches`` adds our loop without single
options and without all of them. The CBAM authors' loop is compared with our loop with CBAM. Each
side has its own process, and the sides take turns.

A sample on a CPU is one step of 64 images at CIFAR's size or of 8 images at 224×224. On a GPU it is
200 steps of 128 images, or 10 at 224×224. On a GPU timm's loop has its images on the device, and at
224×224 all loops do. The output is medians, and our share of the speed of a matrix product, which
is measured in the same rounds.

The exit code is 1 if our loop misses a bound: on a CPU 1.8 times the speed of torchvision's loop;
on a GPU 10 times that of pytorch-cifar100's, and at 224×224 2.5 times that of torchvision's and 1.2
times that of timm's with its best options. On a device without bfloat16 instructions all sides are
in float32, and there are no bounds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from ours import OFF, train
from peers import cbam_authors, pytorch_cifar100, timm_train, torchvision_reference
from setting import Setting, add_options, select_setting
from sides import Side, Wait, headline, interleave, paired_ratios, quartiles, report, table

OURS = "ours"
# Bounds in bfloat16: our speed divided by that of another side.
BOUNDS = {
    ("cpu", "cifar"): {"torchvision": 1.8},
    ("cpu", "imagenet"): {},
    ("cuda", "cifar"): {"pytorch-cifar100": 10.0},
    ("cuda", "imagenet"): {
        "torchvision": 2.5,
        "timm, amp, channels last": 1.2,
        "timm, amp, channels last, compiled": 1.2,
        "timm, amp, channels last, graphs": 1.2,
    },
}
# Values of timm's `--torchcompile-mode`; the second uses CUDA graphs.
COMPILED = {"compiled": "default", "graphs": "reduce-overhead"}


def multiply(wait: Wait, setting: Setting, dtype: torch.dtype) -> None:
    """Multiply matrices for ever."""
    torch.set_num_threads(setting.threads)
    size, count = product(setting)
    a, b = (torch.randn(size, size, device=setting.device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    while True:
        for _ in range(count):
            torch.mm(a, b, out=out)
        wait()


def product(setting: Setting) -> tuple[int, int]:
    """The number of rows of a large matrix product, and the number of products in a sample."""
    return (2048, 10) if setting.device == "cpu" else (8192, 50)


def product_flops(setting: Setting) -> int:
    """Operations of a sample of matrix products, two for each multiply-accumulate."""
    size, count = product(setting)
    return 2 * count * size**3


def make_sides(
    setting: Setting, *, switches: bool = False
) -> tuple[dict[str, Side], dict[str, str]]:
    """Start the sides.

    Returns:
        The sides by their names, and for some peers the side of ours to compare them with, if it is
        not ``OURS``.
    """
    bfloat16 = setting.precision == "bfloat16"
    cpu = setting.device == "cpu"
    # on a GPU, reading images would take most of a peer's time
    resident = {"resident": True} if not cpu else {}
    resident_at_224 = resident if setting.images == "imagenet" else {}
    best = {"channels_last": True, "amp": bfloat16}
    # On a GPU true and not auto, so that a network that cannot be compiled is an error.
    defaults: Mapping[str, Any] = MappingProxyType({} if cpu else {"compile": True})
    best_on_cpu = "timm, amp" if bfloat16 else "timm, channels last"
    best_name = best_on_cpu if cpu else "timm, amp, channels last"

    def ours(
        name: str,
        performance: Mapping[str, Any] = defaults,
        *,
        attention: str = "none",
        precision: str = setting.precision,
        **options: Any,
    ) -> Side:
        return Side(name, train, setting, attention, precision, dict(performance), **options)

    def peer(name: str, work: Any, **options: Any) -> Side:
        return Side(name, work, setting, **options)

    sides = [ours(OURS)]
    if bfloat16 and (cpu or switches):
        sides.append(ours("ours, float32", precision="float32"))
    if not cpu:
        sides.append(ours("ours, not deterministic", deterministic=False))
    if switches:
        sides.append(ours("ours, all off", OFF, precision="float32"))
        if cpu:
            filled = {"fill_uninitialized_memory": True}
            sides.append(ours("ours, memory filled", filled))
        else:
            sides.append(ours("ours, not compiled", {"compile": False}))
            if setting.images == "cifar":  # at 224×224 there are no graphs
                sides.append(ours("ours, no graphs", {"cuda_graphs": False}))
    sides.append(peer("torchvision", torchvision_reference.work, **resident_at_224))
    if setting.images == "cifar":
        sides.append(peer("pytorch-cifar100", pytorch_cifar100.work))
    sides += [
        peer("timm", timm_train.work, **resident),
        peer(best_name, timm_train.work, **resident, **best),
    ]
    if not cpu:
        sides += [
            peer(f"{best_name}, {label}", timm_train.work, **resident, **best, compiled=mode)
            for label, mode in COMPILED.items()
        ]
    sides += [
        ours("ours, CBAM", attention="cbam"),
        peer("CBAM authors", cbam_authors.work, **resident_at_224),
        *([Side("bfloat16 product", multiply, setting, torch.bfloat16)] if bfloat16 else []),
        Side("float32 product", multiply, setting, torch.float32),
    ]
    return {side.name: side for side in sides}, {"CBAM authors": "ours, CBAM"}


def main() -> int:
    """Measure, print, compare with the bounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    add_options(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--switches", action="store_true", help="also without single options")
    options = parser.parse_args()
    setting = select_setting(options)
    run = setting.describe(rounds=options.rounds)
    flops = setting.sample_flops()
    sides, compared = make_sides(setting, switches=options.switches)
    interleave(sides.values(), options.rounds, one_by_one=setting.device == "cuda")
    rows: list[dict[str, Any]] = []
    for name, side in sides.items():
        if side.ended or sides[compared.get(name, OURS)].ended:
            continue
        is_product = name.endswith("product")
        done = product_flops(setting) if is_product else flops
        row: dict[str, Any] = {"side": name}
        if "CBAM" not in name:
            row["gflop_per_s"] = quartiles([done / seconds / 1e9 for seconds in side.seconds])
        if not is_product:
            rates = [setting.sample_images / seconds for seconds in side.seconds]
            row["images_per_s"] = quartiles(rates)
            row["ours_is_times"] = paired_ratios(sides[compared.get(name, OURS)], side)
        rows.append(row)
    by_name = {row["side"]: row for row in rows}
    if OURS not in by_name:
        return 1
    shares = {
        kind: by_name[name]["gflop_per_s"][1] / by_name[f"{kind} product"]["gflop_per_s"][1]
        for kind, name in ((setting.precision, OURS), ("float32", "ours, float32"))
        if name in by_name and f"{kind} product" in by_name
    }
    print(headline(run))
    shown = [
        {
            "side": row["side"],
            "images/s": row.get("images_per_s", [None] * 3)[1],
            "ours / it": row.get("ours_is_times", [None] * 3)[1],
            "from": row.get("ours_is_times", [None] * 3)[0],
            "to": row.get("ours_is_times", [None] * 3)[2],
            "GFLOP/s": row.get("gflop_per_s", [None] * 3)[1],
        }
        for row in rows
    ]
    formats = {"side": "", "images/s": ".1f", "ours / it": ".2f", "from": ".2f", "to": ".2f"}
    print(table(shown, formats | {"GFLOP/s": ".0f"}))
    for name, against in compared.items():
        print(f"{name}: compared with {against!r}")
    for kind, share in shares.items():
        print(f"ours reaches {share:.2f} of the speed of the machine's {kind} product")
    report(options.json, run, share_of_product=shares, sides=rows)
    bounds = BOUNDS[setting.device, setting.images]
    if bounds and setting.precision != "bfloat16":
        print(f"no bounds: {run['device_name']} has no instructions for bfloat16")
        return 0
    kept = {
        name: name in by_name and by_name[name]["ours_is_times"][1] >= times
        for name, times in bounds.items()
    }
    for name, times in bounds.items():
        print(f"{name}: bound {times} times{'' if kept[name] else ', MISSED'}")
    return int(not all(kept.values()))


if __name__ == "__main__":
    sys.exit(main())
