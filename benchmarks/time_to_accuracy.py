"""The time from the start of a training to an accuracy, and to its end.

    python benchmarks/time_to_accuracy.py [--device cuda] [--json FILE] [--dataset cifar100]
        [--backbone resnet18] [--attention none] [--recipe cifar_30ep] [--seeds 3] [--target 75.6]
        [--within 60]

It trains a recipe on the images in the data folder, in bfloat16, or in float32 if the device has no
bfloat16 instructions. The seeds run one after the other, each in its own process like a cell. Times
include the start of Python and torch, reading the images, compiling, and the tests after each
epoch. The compiler's cache is empty for the first seed and is kept for the others, so the
difference between the first seed and the others is the time of compiling.

The exit code is 1 if the median seed needs more than ``--within`` seconds to reach ``--target``, a
top-1 accuracy in percent, or its end if there is no ``--target``. Without the images of CIFAR-100,
use ``--dataset benchmarks/synthetic.py:LikeCifar``, which takes as long.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from setting import add_device, usual_precision
from sides import headline, machine_info, report, table

from attngrid.core.errors import AttngridError
from attngrid.core.hardware import processors
from attngrid.core.validation import validate
from attngrid.study.paths import data_folder
from attngrid.study.schema import Study


def train(block: dict[str, Any], compute: dict[str, Any], start: float) -> list[dict[str, float]]:
    """The top-1 accuracy of each epoch, and the seconds from ``start`` to the epoch's end."""
    from attngrid.training import loop

    content = {"study": "time-to-accuracy", "grid": [block], "compute": compute}
    (cell,) = validate(Study, content, "time_to_accuracy").cells
    epochs: list[dict[str, float]] = []

    def note(line: dict[str, Any], _: float) -> None:
        top1_accuracy = 100 - line["test_top1_error"]
        epochs.append({"seconds": time.time() - start, "top1_accuracy": top1_accuracy})

    loop.train(cell, torch.device(compute["device"]), data_folder(), progress=note)
    return epochs


def main() -> int:
    """Train, print, compare with the bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    add_device(parser)
    parser.add_argument("--threads", type=int, default=processors())
    parser.add_argument("--dataset", default="cifar100")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--attention", default="none")
    parser.add_argument("--recipe", default="cifar_30ep")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--target", type=float, help="top-1 accuracy in percent")
    parser.add_argument("--within", type=float, help="seconds")
    options = parser.parse_args()
    names = {name: getattr(options, name) for name in ("dataset", "backbone", "attention")}
    precision = usual_precision(options.device)
    compute = {"device": options.device, "precision": precision, "threads": options.threads}
    limits = {"target": options.target, "within_s": options.within}
    run = machine_info(**compute, **names, recipe=options.recipe)
    blocks = [
        {
            "dataset": options.dataset,
            "backbones": [options.backbone],
            "attentions": [options.attention],
            "recipes": [options.recipe],
            "seeds": [seed],
        }
        for seed in range(options.seeds)
    ]
    curves = []
    with TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        for block in blocks:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                try:
                    curves.append(alone.submit(train, block, compute, time.time()).result())
                except AttngridError as error:  # for example, missing images
                    parser.error(str(error))
    rows: list[dict[str, Any]] = []
    never = float("inf")
    within = never if options.within is None else options.within
    for seed, epochs in enumerate(curves):
        target = never if options.target is None else options.target
        rows.append(
            {
                "seed": seed,
                "top1_accuracy": epochs[-1]["top1_accuracy"],
                "first_epoch_s": epochs[0]["seconds"],
                "reached_s": next(
                    (e["seconds"] for e in epochs if e["top1_accuracy"] >= target), None
                ),
                "end_s": epochs[-1]["seconds"],
                "epochs": epochs,
            }
        )
    print(headline(run))
    formats = {"first_epoch_s": ".1f", "reached_s": ".1f", "end_s": ".1f", "top1_accuracy": ".2f"}
    print(table(rows, {"seed": "d", **formats}))
    key = "end_s" if options.target is None else "reached_s"
    median = statistics.median(never if row[key] is None else row[key] for row in rows)
    goal = "end of training" if options.target is None else f"{options.target:g} % top-1"
    found = "not reached" if median == never else f"{median:.1f} s"
    print(f"{goal}: {found} (median of the seeds), bound {within:g} s")
    median_s = None if median == never else median
    report(options.json, run, **limits, median_s=median_s, seeds=rows)
    return int(median > within or median == never)


if __name__ == "__main__":
    sys.exit(main())
