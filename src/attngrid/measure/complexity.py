"""Count the parameters and multiply-accumulates (MACs) of a model with fvcore.

A multiply-accumulate counts once: fvcore calls it a flop, and CBAM's Table 4 prints it as GFLOPs.
``macs`` are those of convolutions, linear layers and attention products for one image.
``fvcore_total`` is fvcore's own sum, which adds the normalisations and poolings that it knows.
"""

from __future__ import annotations

import csv
import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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

log = logging.getLogger(__name__)

# Both products of attention, query·key and weights·value, in one operator.
FUSED_ATTENTION = "scaled_dot_product_attention"

# fvcore's names of the operators that multiply matrices, by the column of their counts.
MAC_OPERATORS = {
    "conv_macs": ("conv",),
    "linear_macs": ("addmm", "linear"),
    "product_macs": ("matmul", "mm", "bmm", "einsum", FUSED_ATTENTION),
}
NORM_OPERATORS = ("batch_norm", "group_norm", "instance_norm", "layer_norm")

# Reviewed operators that multiply no matrices: elementwise ones, reductions, poolings, reorderings,
# each also in place (`add_`).
# An operator that neither fvcore nor this list knows is an error, so that no MACs are missed.
COST_FREE_OPERATORS = (
    *("abs", "add", "addcmul", "div", "exp", "maximum", "minimum", "mul"),
    *("neg", "pow", "reciprocal", "rsqrt", "sign", "sqrt", "square", "sub", "where"),
    *("celu", "elu", "erf", "gelu", "glu", "hardsigmoid", "hardswish", "hardtanh"),
    *("leaky_relu", "log", "log_sigmoid", "log_softmax", "mish", "prelu", "relu6"),
    *("selu", "sigmoid", "silu", "softmax", "softplus", "softsign", "tanh"),
    *("adaptive_max_pool2d", "amax", "amin", "argmax", "argmin", "avg_pool2d", "max_pool2d"),
    *("linalg_vector_norm", "logsumexp", "mean", "min", "norm", "prod", "sort", "std", "std_mean"),
    *("sum", "topk", "var", "var_mean"),
    *("eq", "ge", "gt", "le", "lt", "ne", "logical_and", "logical_not", "logical_or"),
    *("channel_shuffle", "clamp_max", "clamp_min", "dropout", "expand_as", "eye"),
    *("feature_dropout", "fill", "flip", "rsub"),
    *("index_select", "native_channel_shuffle", "one_hot", "pad", "pixel_shuffle"),
    *("pixel_unshuffle", "repeat", "repeat_interleave", "roll", "tile", "tril", "triu"),
    *("unflatten", "unfold"),
    "_weight_norm",  # of the weights, once for all images
)


class UncountedOperatorError(AttngridError):
    """A model with an operator that is neither counted nor known to be free."""


@dataclass(frozen=True)
class Model:
    """A model to count; its fields are those of ``MODEL_KEY``."""

    backbone: str
    attention: str
    stem: str
    num_classes: int
    input_size: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def create(self) -> nn.Module:
        """Build the model."""
        sized = {"input_size": self.input_size, **self.options}
        return create_model(
            self.backbone, self.attention, num_classes=self.num_classes, stem=self.stem, **sized
        )

    def key(self) -> dict[str, Any]:
        """The columns that identify the model in a table."""
        fields = {name: getattr(self, name) for name in MODEL_KEY}
        return {**fields, "options": pairs(dict(self.options))}

    def count(self, *, strict: bool = True) -> dict[str, Any]:
        """The model's row of the complexity table.

        Raises:
            AttngridError: the model cannot be counted, if ``strict``; otherwise its row has only
                what is known, and a warning says why.
        """
        row = self.key()
        try:
            # The meta device has no random initialisation, which takes longer than counting.
            with torch.device("meta"):
                model = self.create()
            with suppress(NotImplementedError, RuntimeError):  # a user's module that reads values
                row["torch_macs"] = torch_macs(model, self.input_size)
            model.to_empty(device="cpu")
            for buffer in model.buffers():
                buffer.zero_()  # buffers of indices must be valid
            row["params"] = _parameters(model)
            row |= count(model, self.input_size)
        except AttngridError as error:
            message = f"{self.backbone} + {self.attention}: {error}"
            if strict:
                raise AttngridError(message) from error
            log.warning("not counted: %s", message)
        return row


def models_of_grid(grid: CountedGrid) -> list[Model]:
    """The models of a grid such as ``config/complexity.yaml``, each once."""
    return once(
        Model(backbone, attention, block.stem, block.num_classes, block.input_size)
        for block in grid.models
        for backbone in block.backbones
        for attention in block.attentions
    )


def models_of_study(study: Study) -> list[Model]:
    """The models that a study trains, each once."""
    return once(Model(*cell.model_key[:-1], cell.model_options) for cell in study.cells)


def once(models: Iterable[Model]) -> list[Model]:
    """The models without repetitions."""
    return list({repr(model): model for model in models}.values())


def table(models: Iterable[Model], *, strict: bool) -> str:
    """The models' counts as CSV; raises as ``Model.count``."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*MODEL_KEY, *COUNTED], lineterminator="\n")
    writer.writeheader()
    writer.writerows(model.count(strict=strict) for model in models)
    return text.getvalue()


def count(model: nn.Module, input_size: int) -> dict[str, int]:
    """Count a model (not on the meta device) on one image of 3×H×W with H = W = ``input_size``.

    Returns:
        ``params`` (learnable ones), ``macs`` = ``conv_macs`` + ``linear_macs`` + ``product_macs``
        (of attention), and ``fvcore_total`` = ``macs`` + ``norm_flops`` + ``other_flops`` (pooling
        and resizing).

    Raises:
        UncountedOperatorError: an operator that neither fvcore nor ``COST_FREE_OPERATORS`` knows,
            or a model that fvcore cannot trace; the message says which.

    Examples:
        >>> from attngrid.models.create import create_model
        >>> count(create_model("resnet18"), 32)["params"]
        11689512
    """
    image = torch.zeros(1, 3, input_size, input_size, device=next(model.parameters()).device)
    # fvcore logs the operators that it skips; here they are an error
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    with torch.inference_mode(), _whole_operators(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of shapes that become constants
        analysis = FlopCountAnalysis(model.eval(), image)
        analysis.set_op_handle(f"aten::{FUSED_ATTENTION}", _attention_macs)
        for name in COST_FREE_OPERATORS:
            analysis.set_op_handle(**{f"aten::{name}": None, f"aten::{name}_": None})
        try:
            by_operator = analysis.by_operator()
        except Exception as error:  # the tracer raises many types
            first = str(error).strip().partition("\n")[0]
            raise UncountedOperatorError(
                f"fvcore cannot trace it: {type(error).__name__}: {first}"
            ) from error
        if unknown := analysis.unsupported_ops():
            raise UncountedOperatorError(
                f"cannot count {', '.join(sorted(unknown))}: fvcore does not know it, and it is "
                "not in COST_FREE_OPERATORS of attngrid/measure/complexity.py"
            )

    def total(operators: Iterable[str]) -> int:
        return int(sum(by_operator[name] for name in operators))

    row = {column: total(operators) for column, operators in MAC_OPERATORS.items()}
    row["macs"] = sum(row.values())
    row |= {"params": _parameters(model), "norm_flops": total(NORM_OPERATORS)}
    row["fvcore_total"] = total(by_operator)
    row["other_flops"] = row["fvcore_total"] - row["macs"] - row["norm_flops"]
    return row


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@contextmanager
def _whole_operators() -> Iterator[None]:
    """Without the fast path of torch's transformer layers: one operator that hides the products."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _attention_macs(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Multiply-accumulates of fused attention, which fvcore does not count."""
    *batch, queries, width = get_shape(inputs[0])
    keys, value_width = get_shape(inputs[2])[-2:]
    return int(prod(batch) * queries * keys * (width + value_width))
