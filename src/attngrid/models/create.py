"""``create_model``: every backbone with every attention module, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from attngrid.core.errors import AttngridError, ConfigError
from attngrid.models.external import feature_sizes, require_logits, require_same_shape
from attngrid.models.placement import PLACEMENTS, Make, Sites
from attngrid.models.registry import Entry, find_attention, find_backbone
from attngrid.models.width_matching import matched_width

# The default pixels a side of the images, by stem.
INPUT_SIZES = {"imagenet": 224, "cifar": 32}


def create_model(
    backbone: str,
    attention: str = "none",
    *,
    num_classes: int = 1000,
    stem: str = "imagenet",
    width: float = 1.0,
    input_size: int | None = None,
    **options: Any,
) -> nn.Module:
    """Build a backbone with an attention module in it, with random weights.

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
            for each position, and matched MACs, depend on it.
        **options: of the backbone (``placement``, ``input_bn``) or of the attention module
            (``reduction``).

    Returns:
        A module from N×3×H×W images to N×num_classes logits. It builds under
        ``torch.device("meta")`` too.

    Raises:
        UnknownNameError: an unknown backbone or attention; the message lists near matches.
        ConfigError: an unknown option, a value out of range, or an unusable class of the user's.
    """
    backbone_entry, attention_entry = find_backbone(backbone), find_attention(attention)
    if stem not in INPUT_SIZES:
        raise ConfigError(f"stem must be 'imagenet' or 'cifar', found {stem!r}")
    if not width > 0:
        raise ConfigError(f"width must be positive, found {width!r}")
    accepted = backbone_entry.accepts | attention_entry.accepts
    if unknown := set(options) - accepted:
        raise ConfigError(
            f"{backbone} with {attention} takes no option {', '.join(sorted(unknown))}; "
            f"it takes {', '.join(sorted(accepted))}"
        )
    common = {"num_classes": num_classes, "stem": stem}
    input_size = input_size or INPUT_SIZES[stem]
    if attention_entry.matches is not None:
        arguments = {**common, "input_size": input_size, **options}
        return _widened(backbone, backbone_entry, attention_entry, width, arguments)

    placement = options.pop("placement", "default")
    if placement not in PLACEMENTS:
        raise ConfigError(f"placement must be one of {', '.join(PLACEMENTS)}, found {placement!r}")
    common |= {"width": width, **backbone_entry.options}
    common |= {name: options.pop(name) for name in backbone_entry.accepts & set(options)}
    backbone_class = backbone_entry.load()

    def build(make: Make) -> nn.Module:
        model: nn.Module = backbone_class(Sites(make, attention_entry.site, placement), **common)
        return model

    if backbone_entry.external:
        require_logits(backbone, build, input_size, num_classes)
    if attention == "none":
        return build(lambda channels, stage: nn.Identity())
    sizes = feature_sizes(build, input_size) if attention_entry.needs_feature_size else []
    return _with_attention(build, attention, attention_entry, options, sizes)


def _with_attention(
    build: Callable[[Make], nn.Module],
    name: str,
    entry: Entry,
    options: dict[str, Any],
    sizes: list[tuple[int, int]],
) -> nn.Module:
    """Build a backbone with attention modules; ``sizes`` are of their feature maps, or empty."""
    attention_class, next_sizes = entry.load(), iter(sizes)
    external: list[tuple[nn.Module, dict[str, torch.Tensor]]] = []

    def make(channels: int, stage: int) -> nn.Module:
        size = next(next_sizes, None)
        sized = {"feat_size": size} if size is not None else {}
        try:
            module: nn.Module = attention_class(channels, **entry.options, **options, **sized)
            if entry.external:
                require_same_shape(module, channels, size or (4, 4))
                external.append((module, {k: v.clone() for k, v in module.state_dict().items()}))
        except Exception as error:
            if not (entry.external or isinstance(error, AttngridError)):
                raise
            kind = "" if isinstance(error, AttngridError) else f"{type(error).__name__}: "
            raise ConfigError(
                f"attention {name!r} in stage {stage}, at {channels} channels: {kind}{error}"
            ) from error
        return module

    model = build(make)
    for module, initial in external:  # the backbone's initialisation is not for these
        module.load_state_dict(initial)
    return model


def _widened(
    backbone: str, entry: Entry, control: Entry, width: float, arguments: dict[str, Any]
) -> nn.Module:
    """Build the baseline whose cost is nearest to that of ``control.matches``."""
    matches = control.matches or "none"
    of_module = find_attention(matches).accepts - entry.accepts
    baseline = {name: value for name, value in arguments.items() if name not in of_module}
    width = matched_width(
        partial(create_model, backbone, matches, width=width, **arguments),
        lambda width: create_model(backbone, width=width, **baseline),
        name=f"{backbone} with {matches!r}",
        quantity=control.quantity,
        input_size=arguments["input_size"],
        width=width,
    )
    return create_model(backbone, width=width, **baseline)
