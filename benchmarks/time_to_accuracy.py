"""How long a training takes from its command to an accuracy, and to its end.

    python benchmarks/time_to_accuracy.py [--device cuda] [--json FILE] [--dataset cifar100]
        [--backbone resnet18] [--attention none] [--recipe cifar_30ep] [--seeds 3] [--target 75.6]
        [--within 60]

trains with a recipe's settings, in bfloat16 where the device has that, each seed in a process of
its own as a cell is, one after the other, on the images in the data folder. Times are of the whole
process, with starting Python and torch, reading the images and compiling, and the tests after each
epoch. What the compiler made before it finds again: the first seed has a cache of its own, which
the others share, and says what compiling costs. It ends non-zero where the median seed has not
reached ``--target``, top-1 accuracy in percent, or its end where that is not given, within so many
seconds. Where CIFAR-100 is not at hand, ``--dataset benchmarks/synthetic.py:LikeCifar`` takes as
long as it would.
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
from sides import about, headline, report, table

from attngrid.core.errors import AttngridError
from attngrid.core.hardware import processors
from attngrid.core.validation import validate
from attngrid.study.paths import data_folder
from attngrid.study.schema import Study


def train(block: dict[str, Any], compute: dict[str, Any], start: float) -> list[dict[str, float]]:
    """Each epoch's end in seconds since ``start``, of the clock, and its top-1 accuracy."""
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
    parser.add_argument("--json", type=Path, help="write the figures here too")
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
    named = {name: getattr(options, name) for name in ("dataset", "backbone", "attention")}
    precision = usual_precision(options.device)
    compute = {"device": options.device, "precision": precision, "threads": options.threads}
    limits = {"target": options.target, "within_s": options.within}
    run = about(**compute, **named, recipe=options.recipe)
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
                except AttngridError as error:  # no images, most likely
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
    what = "its end" if options.target is None else f"{options.target:g} % top-1"
    found = "not reached" if median == never else f"{median:.1f} s"
    print(f"{what}: {found} in the median, wanted within {within:g} s")
    median_s = None if median == never else median
    report(options.json, run, **limits, median_s=median_s, seeds=rows)
    return int(median > within or median == never)


if __name__ == "__main__":
    sys.exit(main())
