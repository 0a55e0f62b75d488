"""``create_model``: every backbone with every attention module, by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from attngrid import attention as attentions
from attngrid import backbones
from attngrid.backbones.sites import PLACEMENTS, Sites
from attngrid.errors import AttngridError, ConfigError


def create_model(
    backbone: str,
    attention: str = "none",
    *,
    num_classes: int = 1000,
    stem: str = "imagenet",
    width: float = 1.0,
    **options: Any,
) -> nn.Module:
    """Build a backbone with an attention module in it; random weights from torch's generator.

    Args:
        backbone: one of ``list_backbones()``.
        attention: one of ``list_attentions()``, or ``my_module.py:MyAttention``.
        num_classes: outputs of the classifier.
        stem: ``imagenet`` (224×224 images) or ``cifar`` (32×32 and smaller).
        width: scales the stages' widths.
        **options: of the backbone (``placement``, ``input_bn``) or of the attention module
            (``reduction``).

    Returns:
        A module from N×3×H×W images to N×num_classes logits. It builds under
        ``torch.device("meta")`` too.

    Raises:
        UnknownNameError: an unknown backbone or attention; the message lists near matches.
        ConfigError: an option that neither takes, or a value out of range.
    """
    backbone_entry, attention_entry = backbones.find(backbone), attentions.find(attention)
    backbone_class, attention_class = backbone_entry.load(), attention_entry.load()
    if stem not in ("imagenet", "cifar"):
        raise ConfigError(f"stem must be 'imagenet' or 'cifar', found {stem!r}")
    if not width > 0:
        raise ConfigError(f"width must be positive, found {width!r}")

    accepted = sorted(backbone_entry.accepts | attention_entry.accepts)
    if unknown := set(options) - set(accepted):
        raise ConfigError(
            f"{backbone} with {attention} takes no option {', '.join(sorted(unknown))}; "
            f"it takes {', '.join(accepted)}"
        )
    placement = options.pop("placement", "default")
    if placement not in PLACEMENTS:
        raise ConfigError(f"placement must be one of {', '.join(PLACEMENTS)}, found {placement!r}")
    for_backbone = {name: options.pop(name) for name in backbone_entry.accepts & set(options)}

    def make(channels: int, stage: int) -> nn.Module:
        if attention == "none":
            return nn.Identity()
        where = f"attention {attention!r} in stage {stage}, at {channels} channels"
        try:
            module: nn.Module = attention_class(channels, **attention_entry.options, **options)
            if attention_entry.sha256 is not None:
                _require_same_shape(module, channels)
        except AttngridError as error:
            raise ConfigError(f"{where}: {error}") from error
        except Exception as error:
            if attention_entry.sha256 is None:
                raise
            raise ConfigError(f"{where}: {type(error).__name__}: {error}") from error
        return module

    model: nn.Module = backbone_class(
        Sites(make, attention_entry.site, placement),
        num_classes=num_classes,
        stem=stem,
        width=width,
        **backbone_entry.options,
        **for_backbone,
    )
    return model


@torch.no_grad()
def _require_same_shape(module: nn.Module, channels: int) -> None:
    """Raise where a user's module does not keep the shape of what it is given."""
    if not isinstance(module, nn.Module):
        raise ConfigError(f"is a {type(module).__name__}, not a torch.nn.Module")
    x = torch.zeros(2, channels, 4, 4)  # on the device that is being built on
    shape = tuple(module.eval()(x).shape)
    module.train()
    if shape != tuple(x.shape):
        raise ConfigError(f"changes the shape of its input from {tuple(x.shape)} to {shape}")
