"""The error with all performance options and bfloat16, against the error in float32 without them.

    python benchmarks/equivalence.py [--device cuda] [--json FILE] [--seeds 20]
        [--attentions none cbam csm]

It trains a quarter-width ResNet-18 on the digits for six epochs, twice from each seed: with the
performance options in bfloat16 (float32 if the device has no bfloat16 instructions), and in float32
without the options. It prints the mean difference of the top-1 errors with its 95 % t-interval,
paired by seed. The exit code is 1 if the interval of a module lies above 0, so that the options
make its error significantly higher.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ours import OFF
from scipy import stats
from setting import add_device, usual_precision
from sides import headline, machine_info, report, table

from attngrid.core.hardware import processors
from attngrid.core.validation import validate
from attngrid.study.compute import Compute
from attngrid.study.schema import Study

FORMS = ("fast", "reference")


def top1_error(device: str, attention: str, form: str, seed: int) -> float:
    """The top-1 error of one training, in percent of the test images."""
    from attngrid.training import loop

    precision: str = "float32"
    performance: dict[str, Any] = dict(OFF)
    if form == "fast":
        # By default, a CPU compiles nothing for so few images.
        precision, performance = (
            usual_precision(device),
            {"compile": device == "cuda" or "attention"},
        )
    block = {"dataset": "digits", "backbones": ["resnet18"], "attentions": [attention]}
    content = {
        "study": "equivalence",
        "grid": [{**block, "recipes": ["demo_6ep"], "seeds": [seed], "options": {"width": 0.25}}],
        "compute": {"device": device, "precision": precision, "threads": 1},
    }
    (cell,) = validate(Study, content, "equivalence").cells
    compute = Compute.model_validate({"performance": performance})
    metrics, *_ = loop.train(cell, torch.device(device), Path(), compute=compute)
    return float(metrics["top1_error"])


def main() -> int:
    """Train, print, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    add_device(parser)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--attentions", nargs="+", default=["none", "cbam"])
    options = parser.parse_args()
    precision = usual_precision(options.device)
    run = machine_info(options.device, seeds=options.seeds, precision=precision)
    runs = [
        (options.device, attention, form, seed)
        for attention in options.attentions
        for seed in range(options.seeds)
        for form in FORMS
    ]
    # one process for each training, because the compiler stops compiling after many models
    spawn = get_context("spawn")
    with ProcessPoolExecutor(processors(), mp_context=spawn, max_tasks_per_child=1) as pool:
        errors = dict(zip(runs, pool.map(top1_error, *zip(*runs, strict=True)), strict=True))
    rows: list[dict[str, Any]] = []
    for attention in options.attentions:
        fast, reference = (
            np.array(
                [errors[options.device, attention, form, seed] for seed in range(options.seeds)]
            )
            for form in FORMS
        )
        difference = fast - reference
        low, high = stats.t.interval(
            0.95, len(difference) - 1, difference.mean(), stats.sem(difference)
        )
        rows.append(
            {
                "attention": attention,
                "n": options.seeds,
                "fast": float(fast.mean()),
                "reference": float(reference.mean()),
                "difference": float(difference.mean()),
                "low": float(low),
                "high": float(high),
                "errors": {"fast": fast.tolist(), "reference": reference.tolist()},
            }
        )
    print(f"top-1 error in percent of 355 digits; {headline(run)}")
    names = ("fast", "reference", "difference", "low", "high")
    print(table(rows, {"attention": "", "n": "d", **dict.fromkeys(names, ".2f")}))
    report(options.json, run, rows=rows)
    return int(any(row["low"] > 0 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
