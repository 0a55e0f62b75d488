"""``create_model``: every backbone with every attention module, by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from attngrid import attention as attentions
from attngrid import backbones
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
        **options: of the backbone (``placement``) or of the attention module (``reduction``).

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

    placements = ("default", "every_block", "last_stage", "stage_end")
    accepted = sorted(backbone_entry.accepts | attention_entry.accepts)
    if unknown := set(options) - set(accepted):
        raise ConfigError(
            f"{backbone} with {attention} takes no option {', '.join(sorted(unknown))}; "
            f"it takes {', '.join(accepted)}"
        )
    placement = options.pop("placement", "default")
    if placement not in placements:
        raise ConfigError(f"placement must be one of {', '.join(placements)}, found {placement!r}")

    def attend(channels: int) -> nn.Module:
        if attention == "none":
            return nn.Identity()
        try:
            module: nn.Module = attention_class(channels, **attention_entry.options, **options)
        except AttngridError as error:
            raise ConfigError(f"attention {attention!r} at {channels} channels: {error}") from error
        return module

    model: nn.Module = backbone_class(
        attend,
        num_classes=num_classes,
        stem=stem,
        width=width,
        placement=placement,
        **backbone_entry.options,
    )
    return model
