"""``create_model``: every backbone with every attention module, by name."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attngrid.core.errors import AttngridError, ConfigError
from attngrid.models.counter import torch_macs
from attngrid.models.placement import PLACEMENTS, Make, Sites
from attngrid.models.registry import Entry, find_attention, find_backbone

# Pixels a side where the caller does not say.
INPUT_SIZES = {"imagenet": 224, "cifar": 32}


def create_model(
    backbone: str,
    attention: str = "none",
    *,
    num_classes: int = 1000,
    stem: str = "imagenet",
    width: float = 1.0,
    input_size: int | None = None,
    pretrained: str | os.PathLike[str] | None = None,
    **options: Any,
) -> nn.Module:
    """Build a backbone with an attention module in it; random weights from torch's generator.

    Args:
        backbone: one of ``list_backbones()``, or ``my_backbone.py:MyBackbone``.
        attention: one of ``list_attentions()``; ``timm:eca`` and the other layers of timm's
            ``create_attn``; ``my_attention.py:MyAttention``; or ``none_wide:csm``, the baseline
            widened until it has as many parameters as csm gives it (``none_wide:csm:macs``: as
            many multiply-accumulates).
        num_classes: outputs of the classifier.
        stem: ``imagenet`` (224×224 images) or ``cifar`` (32×32 and smaller).
        width: scales the stages' widths.
        input_size: pixels a side of the images, 224 or 32 by the stem; only modules with weights
            for each position and MACs to be matched depend on it.
        pretrained: the record of a training whose weights were kept,
            ``results/demo/records/....json``; the other arguments are those it was trained with.
        **options: of the backbone (``placement``, ``input_bn``) or of the attention module
            (``reduction``).

    Returns:
        A module from N×3×H×W images to N×num_classes logits. It builds under
        ``torch.device("meta")`` too.

    Raises:
        UnknownNameError: an unknown backbone or attention; the message lists near matches.
        ConfigError: an option that neither takes, a value out of range, or a class of the
            user's own that is not one.
        RecordError: a record that is not of this network, or whose weights are not there.
    """
    if pretrained is not None:
        from attngrid.training.weights import load_pretrained  # it builds networks, too

        model = create_model(
            backbone,
            attention,
            num_classes=num_classes,
            stem=stem,
            width=width,
            input_size=input_size,
            **options,
        )
        trained_as = find_attention(attention).alias_of or attention
        load_pretrained(model, Path(pretrained), backbone, trained_as)
        return model
    backbone_entry, attention_entry = find_backbone(backbone), find_attention(attention)
    if stem not in INPUT_SIZES:
        raise ConfigError(f"stem must be 'imagenet' or 'cifar', found {stem!r}")
    if not width > 0:
        raise ConfigError(f"width must be positive, found {width!r}")
    input_size = input_size or INPUT_SIZES[stem]

    accepted = sorted(backbone_entry.accepts | attention_entry.accepts)
    if unknown := set(options) - set(accepted):
        raise ConfigError(
            f"{backbone} with {attention} takes no option {', '.join(sorted(unknown))}; "
            f"it takes {', '.join(accepted)}"
        )
    if attention_entry.matches is not None:
        arguments: dict[str, Any] = {
            "num_classes": num_classes,
            "stem": stem,
            "input_size": input_size,
        }
        width = _matched_width(backbone, attention_entry, width, arguments | options)
        for_backbone = {name: options[name] for name in backbone_entry.accepts & set(options)}
        return create_model(backbone, width=width, **arguments, **for_backbone)

    backbone_class, attention_class = backbone_entry.load(), attention_entry.load()
    placement = options.pop("placement", "default")
    if placement not in PLACEMENTS:
        raise ConfigError(f"placement must be one of {', '.join(PLACEMENTS)}, found {placement!r}")
    for_backbone = {name: options.pop(name) for name in backbone_entry.accepts & set(options)}

    def build(make: Make) -> nn.Module:
        model: nn.Module = backbone_class(
            Sites(make, attention_entry.site, placement),
            num_classes=num_classes,
            stem=stem,
            width=width,
            **backbone_entry.options,
            **for_backbone,
        )
        return model

    sizes = iter(_site_sizes(build, input_size) if attention_entry.needs_feature_size else ())
    foreign: list[tuple[nn.Module, dict[str, torch.Tensor]]] = []

    def make(channels: int, stage: int) -> nn.Module:
        if attention == "none":
            return nn.Identity()
        where = f"attention {attention!r} in stage {stage}, at {channels} channels"
        size = next(sizes, None)
        sized = {"feat_size": size} if size is not None else {}
        try:
            module: nn.Module = attention_class(
                channels, **attention_entry.options, **options, **sized
            )
            if attention_entry.external:
                _require_same_shape(module, channels, size or (4, 4))
                foreign.append((module, {k: v.clone() for k, v in module.state_dict().items()}))
        except AttngridError as error:
            raise ConfigError(f"{where}: {error}") from error
        except Exception as error:
            if not attention_entry.external:
                raise
            raise ConfigError(f"{where}: {type(error).__name__}: {error}") from error
        return module

    if backbone_entry.external:
        _require_logits(backbone, build, input_size, num_classes)
    model = build(make)
    for module, start in foreign:  # the backbone's own start is for the modules that it knows
        module.load_state_dict(start)
    return model


def _matched_width(backbone: str, control: Entry, width: float, arguments: dict[str, Any]) -> float:
    """The width, in steps of 1/512, at which the baseline costs most nearly what a module does.

    Args:
        backbone: whose baseline it is.
        control: names the module and what is matched.
        width: of the model with the module.
        arguments: of ``create_model``, for the model with the module.
    """
    baseline = {
        name: value
        for name, value in arguments.items()
        if name not in find_attention(control.matches or "none").accepts
    }

    def cost(attention: str, width: float, arguments: dict[str, Any]) -> int:
        with torch.device("meta"):
            model = create_model(backbone, attention, width=width, **arguments)
        if control.quantity == "macs":
            return torch_macs(model, arguments["input_size"])
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    goal = cost(control.matches or "none", width, arguments)
    steps = range(max(1, int(512 * width)), int(512 * 16 * width))
    above = bisect_left(steps, goal, key=lambda step: cost("none", step / 512, baseline))
    if above == len(steps):
        raise ConfigError(f"{backbone}: no baseline is as large as with {control.matches!r}")
    near = [steps[index] / 512 for index in (above - 1, above) if index >= 0]
    return min(near, key=lambda width: abs(cost("none", width, baseline) - goal))


class _Probe(nn.Identity):
    """Stands where an attention module will, and sees the size of what comes."""

    size: tuple[int, int] = (0, 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.size = (x.shape[2], x.shape[3])
        return x


@torch.no_grad()
def _site_sizes(build: Callable[[Make], nn.Module], input_size: int) -> list[tuple[int, int]]:
    """Height and width of the feature map at each site, in the order the sites are made."""
    probes: list[_Probe] = []

    def make(channels: int, stage: int) -> nn.Module:
        probes.append(_Probe())
        return probes[-1]

    with torch.device("meta"):
        build(make).eval()(torch.zeros(1, 3, input_size, input_size))
    return [probe.size for probe in probes]


@torch.no_grad()
def _require_same_shape(module: nn.Module, channels: int, size: tuple[int, int]) -> None:
    """Raise where a module that is not ours does not keep the shape of what it is given."""
    if not isinstance(module, nn.Module):
        raise ConfigError(f"is a {type(module).__name__}, not a torch.nn.Module")
    x = torch.zeros(2, channels, *size)  # on the device that is being built on
    shape = tuple(module.eval()(x).shape)
    module.train()
    if shape != tuple(x.shape):
        raise ConfigError(f"changes the shape of its input from {tuple(x.shape)} to {shape}")


@torch.no_grad()
def _require_logits(
    backbone: str,
    build: Callable[[Make], nn.Module],
    input_size: int,
    num_classes: int,
) -> None:
    """Raise where a user's backbone cannot be built, or gives no logits."""
    images = torch.zeros(2, 3, input_size, input_size)
    try:
        # without attention, whose cost at this size may be any; the draws are not the model's
        with torch.random.fork_rng(devices=[]):
            shape = tuple(build(lambda channels, stage: nn.Identity()).eval()(images).shape)
    except Exception as error:
        raise ConfigError(f"backbone {backbone!r}: {type(error).__name__}: {error}") from error
    if shape != (2, num_classes):
        raise ConfigError(
            f"backbone {backbone!r}: makes {shape} of images {tuple(images.shape)}; "
            f"logits are {(2, num_classes)}"
        )
