"""The time of ``attend``: at most 1.1 times that of the faster of two implementations.

    python benchmarks/spatial_attention.py [--json FILE] [--device cuda] [--threads 2] ...

It runs softmax(QKᵀ)V forward and backward for N positions, C channels and keys of d channels, with
the sizes of the ResNets, in three implementations: literal (bmm, softmax, bmm; it stores the map),
fused (PyTorch's operator) and ours (``attend``). They take turns. The output is medians, with
quartiles in brackets. A size that misses the bound is measured once more, with three times the
rounds. For N above 1,024 there is a bound on memory and none on time: at N = 3,136, batch 8 and
C = 64, ours takes at most a tenth of the literal implementation's peak memory beyond its inputs.
Each is measured in a new process (on a CPU by Linux's /proc, which includes the allocator's
overhead). The exit code is 1 if a bound is missed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from setting import add_device
from sides import headline, machine_info, quartiles, report
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attngrid.measure.cost import memory_mb
from attngrid.models.attention.sam import attend

TIME, MEMORY = 1.1, 0.1  # bounds: ours / the faster one's time, ours / literal's memory
LARGE, LARGE_BATCH, LARGE_CHANNELS = 3136, 8, 64  # where memory is measured
SAMPLE_S = 0.02  # a sample is as many calls as take this long
# (N, C): each resolution with each stage's width, the widest bottlenecks, and the digits' networks
POINTS = (
    *((n, c) for n in (49, 64, 196, 256, 784, 1024) for c in (64, 128, 256, 512)),
    *((16, 512), (16, 2048), (49, 2048), (64, 1024), (196, 1024)),
    *((4, 128), (16, 64), (64, 32), (256, 16)),
    *((LARGE, 64), (LARGE, 256)),
)


def literal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The equation with its N×N map, and the softmax in float32."""
    scores = torch.bmm(query.float(), key.float().transpose(1, 2))
    return torch.bmm(scores.softmax(-1).to(value.dtype), value)


def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """PyTorch's operator, which needs four dimensions."""
    heads = [tensor.unsqueeze(1) for tensor in (query, key, value)]
    return scaled_dot_product_attention(heads[0], heads[1], heads[2], scale=1.0).squeeze(1)


FORMS = {"literal": literal, "fused": fused, "ours": attend}


def tensors(
    n: int, c: int, d: int, batch: int, device: str, dtype: torch.dtype
) -> tuple[list[Tensor], Tensor]:
    """Query, key and value with scores of standard deviation 1, and the gradient of the output."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(width: int) -> Tensor:
        x = torch.randn(batch, n, width, generator=generator, device=device)
        return torch.mul(x, width**-0.25).to(dtype)

    return [normal(width).requires_grad_() for width in (d, d, c)], normal(c)


def step(form: str, inputs: list[Tensor], grad: Tensor) -> None:
    """Forward and backward."""
    torch.autograd.grad(FORMS[form](*inputs), inputs, grad)
    if grad.is_cuda:
        torch.cuda.synchronize()


def seconds(work: Callable[[], None], calls: int) -> float:
    """Mean time of a call in seconds."""
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - start) / calls


def measure(
    n: int, c: int, d: int, batch: int, rounds: int, device: str, dtype: torch.dtype
) -> dict[str, Any]:
    """A row of the table: quartiles in milliseconds of each implementation."""
    inputs, grad = tensors(n, c, d, batch, device, dtype)
    work = {form: lambda form=form: step(form, inputs, grad) for form in FORMS}
    for form in FORMS:
        work[form]()  # the first call is not measured
    calls = {form: max(1, round(SAMPLE_S / seconds(work[form], 1))) for form in FORMS}
    times: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(rounds):
        for form in FORMS:
            times[form].append(1e3 * seconds(work[form], calls[form]))
    row: dict[str, Any] = {"n": n, "c": c, "d": d, "batch": batch, "rounds": rounds}
    row |= {f"{form}_ms": quartiles(times[form]) for form in FORMS}
    medians = [row[f"{form}_ms"][1] for form in FORMS]
    return row | {"ratio": medians[2] / min(medians[:2])}


def peak_extra_mb(form: str, d: int, device: str, dtype: torch.dtype, threads: int) -> float:
    """Peak memory of a step beyond its inputs, in MB; to be called in a new process."""
    torch.set_num_threads(threads)
    step(form, *tensors(16, 16, 16, 1, device, dtype))  # a small step first, to load libraries
    inputs, grad = tensors(LARGE, LARGE_CHANNELS, d, LARGE_BATCH, device, dtype)
    before = memory_mb(torch.device(device))
    step(form, inputs, grad)
    return memory_mb(torch.device(device), peak=True) - before


def main() -> int:
    """Measure, print, compare with the bounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    add_device(parser)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8, help="smaller where N²·C is large")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    device, dtype = options.device, getattr(torch, options.dtype)
    torch.set_num_threads(options.threads)
    run = machine_info(device, dtype=options.dtype, threads=options.threads)
    print(f"{headline(run)}\n")

    print(f"{'N':>5}{'C':>6}{'d':>6}{'batch':>6}", *(f"{form + ', ms':>24}" for form in FORMS))
    rows, missed = [], 0
    for n, c in POINTS:
        batch = max(1, min(options.batch, 2**32 // (n * n * c)))
        for d in (c, max(1, c // 8)):
            row = measure(n, c, d, batch, options.rounds, device, dtype)
            bounded = n <= 1024
            if bounded and row["ratio"] > TIME:
                row = measure(n, c, d, batch, 3 * options.rounds, device, dtype)
            missed += (miss := bounded and row["ratio"] > TIME)
            rows.append(row)
            cells = (row[f"{form}_ms"] for form in FORMS)
            texts = (f"{median:.4g} ({low:.4g}-{high:.4g})" for low, median, high in cells)
            print(f"{n:5}{c:6}{d:6}{batch:6}", *(f"{text:>24}" for text in texts), end="")
            print(f"  {row['ratio']:.2f}{'  MISSED' if miss else ''}", flush=True)
    worst = max(row["ratio"] for row in rows if row["n"] <= 1024)
    print(f"ours / the faster of the two: at most {worst:.2f}")

    print(
        f"\npeak memory beyond the inputs, MB: N {LARGE}, C {LARGE_CHANNELS}, batch {LARGE_BATCH}"
    )
    memory = []
    for d in (LARGE_CHANNELS, LARGE_CHANNELS // 8):
        row = {"n": LARGE, "c": LARGE_CHANNELS, "d": d, "batch": LARGE_BATCH}
        for form in FORMS:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                call = fresh.submit(peak_extra_mb, form, d, device, dtype, options.threads)
                row[f"{form}_mb"] = call.result()
        row["ratio"] = row["ours_mb"] / row["literal_mb"]
        missed += (miss := row["ratio"] > MEMORY)
        memory.append(row)
        texts = (f"{form} {row[f'{form}_mb']:.0f}" for form in FORMS)
        print(f"d = {d}:", *texts, f"ratio {row['ratio']:.3f}{'  MISSED' if miss else ''}")

    report(options.json, run, time=rows, memory=memory)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
