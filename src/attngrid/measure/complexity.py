"""Parameters and multiply-accumulates of a model, counted with fvcore.

One multiply-gradient_accumulation_steps counts once: what fvcore calls a flop and CBAM's Table 4 prints as
GFLOPs. ``macs`` are those of convolutions, linear layers and the attention products, at batch
1. ``fvcore_total`` is fvcore's own sum, which adds the normalisations and the poolings it knows.
"""

from __future__ import annotations

import csv
import io
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import nn

from attngrid.core.errors import AttngridError
from attngrid.models.create import create_model
from attngrid.models.width_matching import torch_macs
from attngrid.study.cell import COUNTED, MODEL_KEY
from attngrid.study.counted import CountedGrid
from attngrid.study.labels import pairs
from attngrid.study.schema import Study

with warnings.catch_warnings():
    # fvcore compiles a helper with torch.jit.script when it is imported
    warnings.simplefilter("ignore", FutureWarning)
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import get_shape

# PyTorch's fused operator of both products of attention.
ATTENTION_OPERATORS = ("aten::scaled_dot_product_attention",)

# fvcore's names of the operators whose counts are multiply-accumulates, by the column they go to.
MAC_OPERATORS = {
    "conv_macs": frozenset({"conv"}),
    "linear_macs": frozenset({"addmm", "linear"}),
    "product_macs": frozenset({"matmul", "mm", "bmm", "einsum"})
    | {name.split("::")[1] for name in ATTENTION_OPERATORS},
}
NORM_OPERATORS = frozenset({"batch_norm", "group_norm", "instance_norm", "layer_norm"})

# Reviewed: elementwise, or a reduction, pooling or reordering that multiplies no matrices. What
# neither fvcore nor this list knows is an error, so that no product is left out in silence.
COST_FREE_OPERATORS = tuple(
    f"aten::{name}"
    for name in (
        *("abs", "add", "add_", "div", "div_", "exp", "mul", "mul_", "neg", "pow", "sub", "sub_"),
        *("elu", "gelu", "hardsigmoid", "hardswish", "hardswish_", "hardtanh", "hardtanh_"),
        *("leaky_relu", "log", "relu6", "relu6_", "rsqrt"),
        *("sigmoid", "silu", "softmax", "sqrt", "tanh"),
        *("adaptive_max_pool2d", "amax", "amin", "argmax", "avg_pool2d", "max_pool2d", "mean"),
        *("min", "prod", "sort", "std", "sum", "topk", "var"),
        *("expand_as", "eye", "feature_dropout", "pad", "unfold"),
    )
)


class UncountedOperatorError(AttngridError):
    """A model runs an operator whose cost nobody has defined."""


def _attention_macs(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Both products of attention, which fvcore leaves out here: query·key and weights·value."""
    *batch, queries, width = get_shape(inputs[0])
    keys, value_width = get_shape(inputs[2])[-2:]
    return int(prod(batch) * queries * keys * (width + value_width))


@dataclass(frozen=True)
class Model:
    """A model to count; the fields are those of ``cell.MODEL_KEY``."""

    backbone: str
    attention: str
    stem: str
    num_classes: int
    input_size: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def count(self) -> dict[str, Any]:
        """The model's row of the complexity table.

        Raises:
            UncountedOperatorError: as ``count`` says, with the model's name.
        """
        # Built without numbers, then given memory as it comes: the counts depend on shapes
        # alone, and a random start would cost more time than the counting.
        with torch.device("meta"):
            model = create_model(
                self.backbone,
                self.attention,
                num_classes=self.num_classes,
                stem=self.stem,
                **self.options,
            )
        try:
            by_torch = torch_macs(model, self.input_size)
        except (NotImplementedError, RuntimeError):
            by_torch = None  # a user's module that looks at numbers
        model.to_empty(device="cpu")
        for buffer in model.buffers():
            buffer.zero_()  # places of values have to be within them
        try:
            return {**self.key(), **count(model, self.input_size), "torch_macs": by_torch}
        except UncountedOperatorError as error:
            raise UncountedOperatorError(f"{self.backbone} + {self.attention}: {error}") from None

    def key(self) -> dict[str, Any]:
        """What identifies the model in a table."""
        fields = {name: getattr(self, name) for name in MODEL_KEY}
        return {**fields, "options": pairs(dict(self.options))}


def models_of_grid(grid: CountedGrid) -> list[Model]:
    """The models of ``config/complexity.yaml``, each once."""
    models = [
        Model(backbone, attention, block.stem, block.num_classes, block.input_size)
        for block in grid.models
        for backbone in block.backbones
        for attention in block.attentions
    ]
    return _once(models)


def models_of_study(study: Study) -> list[Model]:
    """The models that a study trains, each once."""
    return _once([Model(*cell.model_key[:-1], cell.model_options) for cell in study.cells])


def _once(models: list[Model]) -> list[Model]:
    return list({repr(model): model for model in models}.values())


def table(models: Iterable[Model], on_error: Callable[[AttngridError], None]) -> str:
    """The models' counts as CSV, one row a model.

    Args:
        models: what to count.
        on_error: told of a model that cannot be counted, whose counts then stay empty.
    """
    text = io.StringIO()
    columns = [*MODEL_KEY, *COUNTED]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for model in models:
        try:
            writer.writerow(model.count())
        except AttngridError as error:
            on_error(error)
            writer.writerow(model.key())
    return text.getvalue()


def count(model: nn.Module, input_size: int) -> dict[str, int]:
    """Count a model on one N×3×H×W image of ``input_size`` pixels a side.

    Args:
        model: on a real device; fvcore traces real tensors.
        input_size: H and W.

    Returns:
        ``params`` (all learnable), ``macs`` and ``fvcore_total``, as the module says, and what
        these are sums of: ``conv_macs``, ``linear_macs``, ``product_macs`` (of attention), and
        fvcore's ``norm_flops`` and ``other_flops`` (pooling and resizing).

    Raises:
        UncountedOperatorError: an operator that fvcore does not know and that is not in
            ``COST_FREE_OPERATORS``; the message names it.
    """
    device = next(model.parameters()).device
    # A batch norm in training mode would want more than one value a channel.
    model.eval()
    # fvcore reports skipped operators through a logger; here they are an error instead.
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, about shapes that become constants
        analysis = FlopCountAnalysis(
            model, torch.zeros(1, 3, input_size, input_size, device=device)
        )
        analysis.set_op_handle(**dict.fromkeys(ATTENTION_OPERATORS, _attention_macs))
        analysis.set_op_handle(**dict.fromkeys(COST_FREE_OPERATORS))
        by_operator = analysis.by_operator()
        if unknown := analysis.unsupported_ops():
            raise UncountedOperatorError(
                f"nobody has said what {', '.join(sorted(unknown))} costs: fvcore does not know, "
                "and it is not in COST_FREE_OPERATORS of attngrid/complexity.py"
            )
    total = int(sum(by_operator.values()))
    macs = {
        column: int(sum(by_operator[name] for name in operators))
        for column, operators in MAC_OPERATORS.items()
    }
    norms = int(sum(by_operator[name] for name in NORM_OPERATORS))
    return {
        "params": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "macs": sum(macs.values()),
        **macs,
        "norm_flops": norms,
        "other_flops": total - sum(macs.values()) - norms,
        "fvcore_total": total,
    }
