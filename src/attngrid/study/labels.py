"""Labels of backbones, modules, options and hyperparameters in tables and figures."""

from __future__ import annotations

from typing import Any

from attngrid.models.registry import (
    BACKBONES,
    LIBRARY_BACKBONE,
    attention_label,
    find_backbone,
)


def option_text(value: Any) -> str:
    """An option's value; a list is joined with plus signs."""
    return " + ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def pairs(options: dict[str, Any]) -> str:
    """Options as ``name=value`` pairs, for the frames and the complexity table."""
    return " ".join(f"{name}={value}" for name, value in options.items())


def backbone_label(backbone: str) -> str:
    """A backbone's label, ``ResNet-50`` or ``resnet50 (timm)``; for a user's, the class's name."""
    if backbone in BACKBONES or LIBRARY_BACKBONE.fullmatch(backbone):
        return find_backbone(backbone).label
    return backbone.rpartition(":")[2]


def setting_label(learning_rate: float, weight_decay: float) -> str:
    """``learning rate 0.1, weight decay 0.0005``."""
    return f"learning rate {learning_rate:g}, weight decay {weight_decay:g}"


def model_label(backbone: str, attention: str) -> str:
    """``ResNet-18``, ``ResNet-18 + SE``, ``ResNet-18, wide (SE's params)``."""
    label = backbone_label(backbone)
    if attention == "none":
        return label
    separator = ", " if attention.startswith("none_wide:") else " + "
    return f"{label}{separator}{attention_label(attention)}"
