"""The time and memory of counting models: at most 0.5 s a model on average, and at most 2 GB.

    python benchmarks/complexity.py

It counts every model of config/complexity.yaml on two threads in one process, and prints time and
memory. The exit code is 1 if a bound is missed.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time

import torch

from attngrid.core.files import read_yaml
from attngrid.core.hardware import peak_memory_mb
from attngrid.core.validation import validate
from attngrid.measure.complexity import models_of_grid
from attngrid.study.counted import CountedGrid

SECONDS, GIGABYTES = 0.5, 2.0


def main() -> int:
    """Measure, print, compare with the bounds."""
    torch.set_num_threads(2)
    file = "config/complexity.yaml"
    models = models_of_grid(validate(CountedGrid, read_yaml(file), file))
    seconds = []
    for model in models:
        start = time.perf_counter()
        model.count()
        seconds.append(time.perf_counter() - start)
    mean, slowest = (
        statistics.mean(seconds),
        max(zip(seconds, models, strict=True), key=lambda p: p[0]),
    )
    gigabytes = peak_memory_mb(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1e3
    print(f"{len(models)} models: mean {mean:.2f} s, median {statistics.median(seconds):.2f} s")
    print(f"slowest {slowest[0]:.2f} s: {slowest[1].backbone} + {slowest[1].attention}")
    print(f"peak memory {gigabytes:.2f} GB")
    return int(mean > SECONDS or gigabytes > GIGABYTES)


if __name__ == "__main__":
    sys.exit(main())
