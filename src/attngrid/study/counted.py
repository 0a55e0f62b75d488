"""The grids of models whose complexity is counted and whose cost is measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from attngrid.core.types import Count, CountFrom2, Pixels, Strict
from attngrid.study.compute import Performance
from attngrid.study.options import Attention, Backbone, Dataset, Listed, Precision


class CountedModels(Strict):
    """Models to count at one input size and number of classes."""

    backbones: Listed[Backbone]
    attentions: Listed[Attention]
    stem: Literal["imagenet", "cifar"]
    num_classes: Count
    input_size: Pixels


class CountedGrid(Strict):
    """``config/complexity.yaml``: the models of ``results/complexity.csv``."""

    models: Listed[CountedModels]


class CostGrid(Strict):
    """``config/cost.yaml``: the models whose time and memory are measured, and how."""

    models: Listed[CountedModels] | None = None
    backbones: Listed[Backbone] | None = None
    attentions: Listed[Attention] | None = None
    datasets: Listed[Dataset] | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "float32"
    performance: Performance = Performance(compile=False)
    batch: CountFrom2 = 64
    rounds: Annotated[int, Field(ge=5, le=10_000)] = 5
    seconds: Annotated[float, Field(ge=0, strict=False)] = 3.0
    minutes: Annotated[float, Field(gt=0, strict=False)] | None = None
