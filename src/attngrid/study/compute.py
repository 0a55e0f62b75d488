"""The hardware that a cell runs on, and options that make it faster."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from attngrid.core.types import Count, Processors, Strict
from attngrid.study.options import Precision, Share


class Performance(Strict):
    """Options that change how fast a training is.

    They change results by rounding only. A record reports them; a cell's digest omits them.
    """

    channels_last: bool = Field(True, description="channels-last memory format")
    compile: bool | Literal["auto", "attention"] = Field(
        "auto",
        description="torch.compile of the network, or of the attention modules only; "
        "auto: the network on CUDA, the attention modules in a long training on a CPU",
    )
    cuda_graphs: bool | Literal["auto"] = Field(
        "auto", description="record a compiled network as a CUDA graph; auto: if steps are small"
    )
    fused_optimizer: bool = Field(True, description="update all parameters in one kernel")
    fill_uninitialized_memory: bool = Field(
        False, description="write NaN to new memory in a deterministic training, for debugging"
    )


class Compute(Strict):
    """The hardware that the cells run on.

    Precision, threads and ``micro_batches`` are part of a cell's identity; the device and the
    number of devices are not.
    """

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA if available")
    precision: Precision = Field("float32", description="bfloat16: under autocast")
    threads: Processors = Field(1, description="CPU threads of each process, on every machine")
    gpus: Processors = Field(
        1, description="number of GPUs of a cell, one process each; on a CPU: of processes"
    )
    gradient_accumulation_steps: Count = Field(
        1, description="number of micro-batches that each process trains in turn"
    )
    sync_bn: bool = Field(False, description="BatchNorm across the GPUs; CUDA only")
    workers: Annotated[int, Field(ge=0, le=1024)] = Field(
        4, description="processes that read image files; images in memory need none"
    )
    deterministic: bool = Field(True, description="forbid operators that are not deterministic")
    performance: Performance = Performance()
    checkpoint_share: Share = Field(
        0.01, description="share of a cell's time for checkpoints; 0: only after a signal"
    )

    @model_validator(mode="after")
    def _check_combinations(self) -> Compute:
        if self.sync_bn and self.device == "cpu":
            raise ValueError("sync_bn: found true, on a CPU; needs device: cuda (or auto)")
        if (
            self.performance.cuda_graphs is True
            and self.gpus * self.gradient_accumulation_steps > 1
        ):
            raise ValueError(
                "performance.cuda_graphs: found true; needs gpus: 1 and "
                "gradient_accumulation_steps: 1, because a CUDA graph needs whole batches"
            )
        return self

    @property
    def micro_batches(self) -> int:
        """Number of parts of a batch that BatchNorm normalises separately."""
        return self.gradient_accumulation_steps * (1 if self.sync_bn else self.gpus)
