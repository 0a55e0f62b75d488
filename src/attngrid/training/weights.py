"""The final weights of a training, as safetensors: loading a file never executes code."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from attngrid.core.errors import RecordError
from attngrid.core.files import write_atomically
from attngrid.models import create
from attngrid.models.registry import find_attention
from attngrid.records.record import read_record
from attngrid.study.cell import Cell


def write_weights(file: Path, cell: Cell, model: nn.Module, classes: Sequence[str]) -> None:
    """Write a trained cell's state dict, atomically, with its digest, configuration and classes."""
    tensors = {
        # safetensors refuses tensors that share memory, such as shared parameters.
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    metadata = {"digest": cell.digest, "config": json.dumps(cell.config())}
    metadata["classes"] = json.dumps(list(classes))
    write_atomically(file, save(tensors, metadata))


def create_model(
    backbone: str | type[nn.Module],
    attention: str | type[nn.Module] = "none",
    *,
    pretrained: bool | str | os.PathLike[str] | None = None,
    **arguments: Any,
) -> nn.Module:
    """Build a backbone with an attention module, with random or trained weights.

    Args:
        backbone: a name or a class, as for ``attngrid.models.create.create_model``.
        attention: a name or a class, likewise.
        pretrained: the record of a training whose weights were kept, such as
            ``results/demo/records/....json``; give the other arguments that it was trained with.
            True: the weights of timm's or torchvision's backbone, if they are on this machine.
        **arguments: the other arguments of ``attngrid.models.create.create_model``: num_classes,
            stem, width, input_size, and options of the backbone and of the attention module.

    Returns:
        A module from N×3×H×W images to N×num_classes logits.

    Raises:
        UnknownNameError, ConfigError: as ``attngrid.models.create.create_model``.
        RecordError: the record has another backbone or attention module, or no kept weights of
            this network.

    Examples:
        >>> import torch
        >>> model = create_model("resnet18", "se", num_classes=10, stem="cifar", width=0.25)
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    if pretrained is True:
        arguments["pretrained"] = True
    model = create.create_model(backbone, attention, **arguments)
    if pretrained is not None and not isinstance(pretrained, bool):
        record = Path(pretrained)
        config = read_record(record).config
        trained = (config["backbone"], config["attention"])
        wanted = (backbone, find_attention(attention).alias_of or attention)
        if not all(map(_is_name_of, trained, wanted)):
            raise RecordError(
                f"{record}: found {trained[0]!r} with {trained[1]!r}, expected {wanted[0]!r} with "
                f"{wanted[1]!r}"
            )
        load_weights(model, weights_of(record), config["digest"])
    return model


def _is_name_of(name: str, given: str | type[nn.Module]) -> bool:
    """Whether a record's name is a given name, or that of a given class."""
    return name == given if isinstance(given, str) else name.endswith(f".py:{given.__name__}")


def create_network(cell: Cell, weights: Path | None = None) -> nn.Module:
    """Build the network of a cell and load its kept weights, as ``load_weights`` does."""
    arguments = cell.model_arguments()
    if "pretrained" in arguments:  # those weights are not needed any more
        arguments["pretrained"] = False
    model = create.create_model(**arguments)
    load_weights(model, weights or cell.weights, cell.digest)
    return model


def weights_of(record: Path) -> Path:
    """The file of a record's weights; it exists if they were kept."""
    return record.absolute().parents[1] / "weights" / f"{record.stem}.safetensors"


def read_classes(file: Path) -> list[str]:
    """The names of the classes in a file of weights.

    Raises:
        RecordError: an older version wrote the file.
    """
    with safe_open(file, framework="pt") as stream:
        text = (stream.metadata() or {}).get("classes")
    if text is None:
        raise RecordError(f"{file}: has no names of classes: an older version wrote it")
    classes: list[str] = json.loads(text)
    return classes


def load_weights(model: nn.Module, file: Path, digest: str) -> None:
    """Load the weights of the cell with this digest into a network.

    Raises:
        RecordError: not a safetensors file, or the weights of another cell or network; the message
            names the file.
    """
    try:
        with safe_open(file, framework="pt") as stream:
            found = (stream.metadata() or {}).get("digest")
            weights = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RecordError(f"{file}: cannot be read: {error}") from None
    if found != digest:
        raise RecordError(
            f"{file}: belongs to another cell: found the digest {found}, expected {digest}"
        )
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise RecordError(f"{file}: does not fit its network: {reason}") from None
