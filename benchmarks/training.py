"""Training a ResNet against the loops that others use: on a CPU 1.8 times torchvision's, at least.

    python benchmarks/training.py [--device cuda] [--images imagenet] [--json FILE] [--threads 2]
        [--rounds 5] [--switches]

sets ``attngrid.training.loop.train`` in bfloat16, with all that makes it fast, beside itself in
float32 (``--switches``: and with single switches off, and all of them), and beside the loops of
``benchmarks/peers``; the CBAM authors' loop is beside ours with CBAM. Each side is a process of its
own; the rounds are interleaved. A sample is a step of 64 images on a CPU, and 200 of 128 on a GPU,
or ten of a ResNet-50 at 224×224. There the images of timm's loop lie on the device, at 224×224
those of all. Printed are medians, and the share of the machine's own matrix product, measured in
the same rounds, that ours achieves. It ends non-zero where ours is not as many times as fast as is
wanted: on a CPU 1.8 times torchvision's loop, on a GPU 10 times pytorch-cifar100's, at 224×224 2.5
times torchvision's and 1.2 times timm's best. Where the device lacks bfloat16 all of it is in
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
from ours import OFF, train
from peers import cbam_authors, pytorch_cifar100, timm_train, torchvision_reference
from setting import Setting, add_options, chosen
from sides import Side, Wait, headline, interleave, paired, quartiles, report, table

OURS = "ours"
# How many times as fast as a side ours is to be, in bfloat16.
WANTED = {
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
# timm's `--torchcompile-mode`, of which the second has CUDA graphs.
COMPILED = {"compiled": "default", "graphs": "reduce-overhead"}


def multiply(wait: Wait, setting: Setting, dtype: torch.dtype) -> None:
    """Matrix products, so many a sample."""
    torch.set_num_threads(setting.threads)
    size, count = product(setting)
    a, b = (torch.randn(size, size, device=setting.device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    while True:
        for _ in range(count):
            torch.mm(a, b, out=out)
        wait()


def product(setting: Setting) -> tuple[int, int]:
    """Rows of a matrix product that keeps a device busy, and how many of them a sample is."""
    return (2048, 10) if setting.device == "cpu" else (8192, 50)


def product_flops(setting: Setting) -> int:
    """Of a sample: two a multiply-accumulate."""
    size, count = product(setting)
    return 2 * count * size**3


def make_sides(
    setting: Setting, *, switches: bool = False
) -> tuple[dict[str, Side], dict[str, str]]:
    """The sides by their names, and which of ours is beside one where that is not ``OURS``."""
    narrow = setting.precision == "bfloat16"
    cpu = setting.device == "cpu"
    # on a GPU reading images would be most of it
    there = {"resident": True} if not cpu else {}
    all_there = there if setting.images == "imagenet" else {}
    best = {"channels_last": True, "amp": narrow}
    # what fails to compile is to be no figure of what is compiled
    as_users: Mapping[str, Any] = MappingProxyType({} if cpu else {"compile": True})
    usual = "timm, amp" if narrow and cpu else "timm, channels last"
    named = usual if cpu else "timm, amp, channels last"

    def ours(
        name: str,
        performance: Mapping[str, Any] = as_users,
        *,
        attention: str = "none",
        precision: str = setting.precision,
        **options: Any,
    ) -> Side:
        return Side(name, train, setting, attention, precision, dict(performance), **options)

    def peer(name: str, work: Any, **options: Any) -> Side:
        return Side(name, work, setting, **options)

    sides = [ours(OURS)]
    if narrow and (cpu or switches):
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
            if setting.images == "cifar":  # the other has no graphs
                sides.append(ours("ours, no graphs", {"cuda_graphs": False}))
    sides.append(peer("torchvision", torchvision_reference.work, **all_there))
    if setting.images == "cifar":
        sides.append(peer("pytorch-cifar100", pytorch_cifar100.work))
    sides += [
        peer("timm", timm_train.work, **there),
        peer(named, timm_train.work, **there, **best),
    ]
    if not cpu:
        sides += [
            peer(f"{named}, {what}", timm_train.work, **there, **best, compiled=mode)
            for what, mode in COMPILED.items()
        ]
    sides += [
        ours("ours, CBAM", attention="cbam"),
        peer("CBAM authors", cbam_authors.work, **all_there),
        *([Side("bfloat16 product", multiply, setting, torch.bfloat16)] if narrow else []),
        Side("float32 product", multiply, setting, torch.float32),
    ]
    return {side.name: side for side in sides}, {"CBAM authors": "ours, CBAM"}


def main() -> int:
    """Measure, print, compare with the bounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here too")
    add_options(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--switches", action="store_true", help="and with single switches off")
    options = parser.parse_args()
    setting = chosen(options)
    run = setting.about(rounds=options.rounds)
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
            row["ours_is_times"] = paired(sides[compared.get(name, OURS)], side)
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
    wanted = WANTED[setting.device, setting.images]
    if wanted and setting.precision != "bfloat16":
        print(f"the bounds are bfloat16's, which {run['device_name']} lacks: not judged")
        return 0
    kept = {
        name: name in by_name and by_name[name]["ours_is_times"][1] >= times
        for name, times in wanted.items()
    }
    for name, times in wanted.items():
        print(f"{name}: wanted {times} times{'' if kept[name] else ', MISSED'}")
    return int(not all(kept.values()))


if __name__ == "__main__":
    sys.exit(main())
