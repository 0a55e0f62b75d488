"""TODO."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    PositiveInt,
    model_validator,
)

from attngrid.core.types import Strict
from attngrid.study.options import Precision, Share
from attngrid.training.fast import Fast


class Compute(Strict):
    """What the cells run on.

    Precision, threads and ``micro_batches`` are part of a cell; the device, and how many of them, are not.
    """

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA if there is one")
    precision: Precision = Field("float32", description="bfloat16: under autocast")
    threads: PositiveInt = Field(1, description="CPU threads a process uses, the same everywhere")
    gpus: PositiveInt = Field(1, description="of one cell, a process each; on a CPU: processes")
    gradient_accumulation_steps: PositiveInt = Field(
        1, description="parts of a batch that a process takes one after the other"
    )
    sync_bn: bool = Field(False, description="BatchNorm across the GPUs; CUDA only")
    workers: Annotated[int, Field(ge=0)] = Field(
        4, description="processes that read a cell's image files ahead; images in memory need none"
    )
    deterministic: bool = Field(True, description="refuse operators that are not")
    fast: Fast = Fast()
    checkpoint_share: Share = Field(
        0.01, description="of a cell's time that may go into checkpoints; 0: at signals only"
    )

    @model_validator(mode="after")
    def _can_be_together(self) -> Compute:
        if self.sync_bn and self.device == "cpu":
            raise ValueError("sync_bn: found true, on a CPU; needs device: cuda (or auto)")
        if self.fast.cuda_graphs is True and self.gpus * self.gradient_accumulation_steps > 1:
            raise ValueError(
                "fast.cuda_graphs: found true; needs gpus: 1 and gradient_accumulation_steps: 1, whole batches"
            )
        return self

    @property
    def micro_batches(self) -> int:
        """In how many parts each batch is normalised."""
        return self.gradient_accumulation_steps * (1 if self.sync_bn else self.gpus)
