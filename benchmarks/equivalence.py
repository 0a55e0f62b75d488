"""Whether the fast path learns what float32 does: bfloat16 and all switches against neither.

    python benchmarks/equivalence.py [--device cuda] [--json FILE] [--seeds 20]
        [--attentions none cbam csm]

trains a quarter-width ResNet-18 on the digits for six epochs, from the same seeds, with everything
that makes it fast, in bfloat16 where the device has that, and in float32 with everything off, and
prints the mean difference of their top-1 errors with its 95 % interval (t, paired by seed where
the order of the images is the same). A speed counts where that interval holds 0 or lies below it.
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
from sides import about, headline, report, table

from attngrid.core.hardware import processors
from attngrid.core.validation import validate
from attngrid.study.compute import Compute
from attngrid.study.schema import Study

FORMS = ("fast", "reference")


def top1_error(device: str, attention: str, form: str, seed: int) -> float:
    """Of a training, percent of the held-out digits."""
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
    """Train, print, and end non-zero where the fast path is worse beyond its interval."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here too")
    add_device(parser)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--attentions", nargs="+", default=["none", "cbam"])
    options = parser.parse_args()
    run = about(options.device, seeds=options.seeds, precision=usual_precision(options.device))
    runs = [
        (options.device, attention, form, seed)
        for attention in options.attentions
        for seed in range(options.seeds)
        for form in FORMS
    ]
    # a process each, as a cell has: the compiler leaves what comes after so many models uncompiled
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
