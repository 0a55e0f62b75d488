"""Backbones: one file a family, and this registry.

A backbone is a class ``Backbone(sites, *, num_classes, stem, width)`` from N×3×H×W images to
N×num_classes logits, which asks its ``sites`` for the attention module of every place that can
have one (``backbones.sites``). The output of its ``stages`` is what Grad-CAM looks at.
"""

from __future__ import annotations

from dataclasses import replace

from attngrid import registry
from attngrid.registry import Entry

_MOBILENET = "attngrid.backbones.mobilenet:MobileNet"
_RESNET = "attngrid.backbones.resnet:ResNet"
_18 = {"block": "basic", "depths": (2, 2, 2, 2)}
_34 = {"block": "basic", "depths": (3, 4, 6, 3)}
_50 = {"block": "bottleneck", "depths": (3, 4, 6, 3)}
_101 = {"block": "bottleneck", "depths": (3, 4, 23, 3)}
_32X4D = {"groups": 32, "group_width": 4}

_PLACEMENT = frozenset({"placement"})
_MOBILE = _PLACEMENT | {"input_bn", "conv_head"}

REGISTRY: dict[str, Entry] = {
    "resnet18": Entry(_RESNET, "ResNet-18", _18, _PLACEMENT),
    "resnet34": Entry(_RESNET, "ResNet-34", _34, _PLACEMENT),
    "resnet50": Entry(_RESNET, "ResNet-50", _50, _PLACEMENT),
    "resnet50_v1.5": Entry(_RESNET, "ResNet-50 v1.5", _50 | {"stride_on": "3x3"}, _PLACEMENT),
    "resnet101": Entry(_RESNET, "ResNet-101", _101, _PLACEMENT),
    "wrn18_1.5": Entry(_RESNET, "WRN-18 (1.5)", _18 | {"widen": 1.5}, _PLACEMENT),
    "wrn18_2.0": Entry(_RESNET, "WRN-18 (2.0)", _18 | {"widen": 2.0}, _PLACEMENT),
    "resnext50_32x4d": Entry(_RESNET, "ResNeXt-50 (32x4d)", _50 | _32X4D, _PLACEMENT),
    "resnext101_32x4d": Entry(_RESNET, "ResNeXt-101 (32x4d)", _101 | _32X4D, _PLACEMENT),
    "mobilenet_v1": Entry(f"{_MOBILENET}V1", "MobileNetV1", {}, _MOBILE | {"residual"}),
    "mobilenet_v2": Entry(f"{_MOBILENET}V2", "MobileNetV2", {}, _MOBILE | {"expand_first"}),
    "mobilenet_v3_large": Entry(
        f"{_MOBILENET}V3", "MobileNetV3-L", {"size": "large"}, accepts=_MOBILE
    ),
    "mobilenet_v3_small": Entry(
        f"{_MOBILENET}V3", "MobileNetV3-S", {"size": "small"}, accepts=_MOBILE
    ),
}


def list_backbones() -> list[str]:
    """The backbones that ``create_model`` knows by name."""
    return list(REGISTRY)


def find(name: str) -> Entry:
    """The entry of a backbone's name, or of a user's ``file.py:Class``."""
    entry = registry.find("backbone", REGISTRY, name)
    if entry.sha256 is not None:
        own = entry.accepts - {"num_classes", "stem", "width"}  # create_model's own
        return replace(entry, accepts=own | _PLACEMENT)
    return entry
