"""The names of attention modules and backbones; this module does not import torch."""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, Literal

from attngrid.core.errors import ConfigError, UnknownNameError
from attngrid.core.user_code import find_user_class, is_user_class, load_user_class

Quantity = Literal["params", "macs"]
Initialisation = Literal["family", "authors", "pytorch"]


@dataclass(frozen=True)
class Entry:
    """An attention module or a backbone.

    Attributes:
        target: ``package.module:Class``, imported on first use; or ``file.py:Class``.
        cls: the class itself, if a user gave it and not a name.
        label: the name in tables and figures.
        options: the keyword arguments of the class that make this variant.
        accepts: the keyword arguments that a user may set, with the class's own defaults; None if
            it has none, or none that is a literal.
        omitted: what a digest without an option means, where that is not the class's default.
        alias_of: the name of the module that computes the same function; they share records.
        site: the place of an attention module in a network (``models.placement``).
        sha256: SHA-256 of a user's class and of what it uses from its file.
        package: the optional package that contains the class.
        needs_feature_size: the class takes ``feat_size``, height and width of its feature map.
        matches: for a control (``none_wide:...``), the attention module whose cost it matches.
        quantity: the cost that the control matches.
    """

    target: str
    label: str
    options: Mapping[str, Any] = field(default_factory=dict)
    accepts: Mapping[str, Any] = field(default_factory=dict)
    omitted: Mapping[str, Any] = field(default_factory=dict)
    alias_of: str | None = None
    site: Literal["block", "expanded", "stages"] = "block"
    sha256: str | None = None
    package: str | None = None
    needs_feature_size: bool = False
    matches: str | None = None
    quantity: Quantity = "params"
    cls: type[Any] | None = None

    @property
    def external(self) -> bool:
        """Whether another package or a user has the class: it is checked and initialises itself."""
        return any(one is not None for one in (self.sha256, self.package, self.cls))

    def load(self) -> type[Any]:
        """Import the class.

        Raises:
            ConfigError: a package that is not installed, or a file that cannot be imported.
        """
        self.require_package()
        if self.cls is not None:
            return self.cls
        module_name, _, name = self.target.rpartition(":")
        cls: type[Any] = (
            load_user_class(self.target, self.sha256)
            if self.sha256 is not None
            else getattr(import_module(module_name), name)
        )
        return cls

    def require_package(self) -> None:
        """Raise a ConfigError if the class's optional package is not installed."""
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            raise ConfigError(
                f"{self.label} is from {self.package}, which is not installed: "
                f'pip install "attngrid[{self.package}]"'
            )


_SE = "attngrid.models.attention.se:SqueezeExcitation"
_SAM = "attngrid.models.attention.sam:SpatialSelfAttention"
_CSM = "attngrid.models.attention.csm:ChannelSpatialAttention"
_BAM = "attngrid.models.attention.bam:BAM"
_SRAP = "attngrid.models.attention.srap:SRAP"
_R8 = {"key_reduction": 8}
_RESIDUAL = {"residual": True}
_R = {"reduction": 16}
_RS = _R | {"statistics": None}
_RR = _R | {"rates": None}

ATTENTIONS: dict[str, Entry] = {
    "none": Entry("torch.nn:Identity", "baseline"),
    "se": Entry(_SE, "SE", accepts=_R),
    "cbam": Entry("attngrid.models.attention.cbam:CBAM", "CBAM", accepts=_R),
    "cam": Entry(_SE, "CAM", accepts=_R, alias_of="se"),
    "sam": Entry(_SAM, "SAM"),
    "sam_r8": Entry(_SAM, "SAM (C/8)", _R8),
    "sam_residual": Entry(_SAM, "SAM (residual)", _RESIDUAL),
    "sam_danet": Entry(_SAM, "SAM (C/8, residual)", _R8 | _RESIDUAL),
    "csm": Entry(_CSM, "CSM", accepts=_R),
    "csm_r8": Entry(_CSM, "CSM (C/8)", _R8, _R),
    "csm_residual": Entry(_CSM, "CSM (residual)", _RESIDUAL, _R),
    "csm_danet": Entry(_CSM, "CSM (C/8, residual)", _R8 | _RESIDUAL, _R),
    "csm_sam_first": Entry(_CSM, "CSM, SAM first", {"spatial_first": True}, _R),
    "se_v3": Entry("attngrid.models.attention.se:SqueezeExcitationV3", "SE (V3)", site="expanded"),
    "bam": Entry(_BAM, "BAM", accepts=_R, site="stages"),
    "bam_product": Entry(_BAM, "BAM (product)", {"product": True}, _R, site="stages"),
    "maf": Entry("attngrid.models.attention.maf:MAF", "MAF", accepts=_RS),
    "maf_c": Entry("attngrid.models.attention.maf:MAFInCBAM", "MAF_C", accepts=_RS),
    "maf_b": Entry("attngrid.models.attention.maf:MAFInBAM", "MAF_B", accepts=_RS, site="stages"),
    "srap": Entry(_SRAP, "SRAP", accepts=_RR, site="expanded"),
    "srap_avg_max": Entry(
        _SRAP, "SRAP (avg, max)", {"statistics": ("avg", "max")}, _RR, site="expanded"
    ),
    "srap_avg_max_std": Entry(
        _SRAP, "SRAP (avg, max, std)", {"statistics": ("avg", "max", "std")}, _RR, site="expanded"
    ),
}


# The layers of timm's ``create_attn``, with the papers' names as labels.
TIMM_ATTENTIONS: dict[str, Entry] = {
    f"timm:{layer}": Entry(
        "attngrid.models.attention.timm_layers:timm_layer",
        f"{label} (timm)",
        {"layer": layer},
        package="timm",
        needs_feature_size=layer in ("bottleneck", "halo", "bat"),
    )
    for layer, label in {
        "se": "SE",
        "ese": "eSE",
        "eca": "ECA",
        "ecam": "ECA, MLP",
        "ceca": "circular ECA",
        "ge": "GE",
        "gc": "GC",
        "gca": "GC, added",
        "cbam": "CBAM",
        "lcbam": "light CBAM",
        "coord": "CA",
        "scoord": "simple CA",
        "ela": "ELA",
        "strip": "strip",
        "sk": "SK",
        "splat": "split",
        "lambda": "lambda",
        "bottleneck": "BoT",
        "halo": "halo",
        "nl": "non-local",
        "bat": "BAT",
    }.items()
}


def list_attentions() -> list[str]:
    """The attention modules that ``create_model`` knows by name.

    ``create_model`` also takes layers of timm's ``create_attn``, ``timm:eca``; widened baselines,
    ``none_wide:csm`` or ``none_wide:csm:macs``; and a user's class, ``file.py:Class``.

    Examples:
        >>> {"none", "se", "cbam", "csm"} <= set(list_attentions())
        True
    """
    return list(ATTENTIONS)


def find_attention(name: str | type[Any]) -> Entry:
    """The entry of an attention module, a widened baseline, or a user's class or its name.

    Raises:
        UnknownNameError: the name is unknown; the message lists similar names.
        ConfigError: a user's file is wrong, or a control has no module to match.

    Examples:
        >>> find_attention("cam").label, find_attention("cam").alias_of
        ('CAM', 'se')
    """
    if isinstance(name, str) and (control := _parse_control(name)):
        return _control_entry(name, *control)
    return _find("attention", ATTENTIONS | TIMM_ATTENTIONS, name)


def trained_attention(name: str) -> str:
    """The name in an attention's record: ``se`` for ``cam``, which computes the same function."""
    # a user's file is not read, because it may be missing
    return name if ".py:" in name else find_attention(name).alias_of or name


def attention_label(name: str) -> str:
    """The name of an attention module in tables and figures; for a user's, the class name."""
    if control := _parse_control(name):
        module, quantity = control
        return f"wide ({attention_label(module)}'s {'MACs' if quantity == 'macs' else quantity})"
    entry = ATTENTIONS.get(name) or TIMM_ATTENTIONS.get(name)
    return entry.label if entry else name.rpartition(":")[2]


def _parse_control(name: str) -> tuple[str, Quantity] | None:
    """Module and quantity of ``none_wide:MODULE[:macs]``; None for the name of no control."""
    kind, _, rest = name.partition(":")
    if kind != "none_wide":
        return None
    module = rest.removesuffix(":macs")
    return module, "params" if module == rest else "macs"


def _control_entry(name: str, module: str, quantity: Quantity) -> Entry:
    """The entry of the baseline whose cost matches that of the network with a module."""
    if not module:
        raise ConfigError(
            f"attention {name!r}: names no module to match; needs none_wide:MODULE for equal "
            "parameters, or none_wide:MODULE:macs for equal multiply-accumulates"
        )
    if module.startswith("none"):
        raise ConfigError(f"attention {name!r}: {module!r} adds nothing to match; needs a module")
    entry = find_attention(module)
    suffix = ":macs" if quantity == "macs" else ""
    return Entry(
        "torch.nn:Identity",
        attention_label(name),
        accepts=entry.accepts,
        omitted=entry.omitted,
        alias_of=entry.alias_of and f"none_wide:{entry.alias_of}{suffix}",
        sha256=entry.sha256,
        package=entry.package,
        matches=module,
        quantity=quantity,
    )


_RESNET = "attngrid.models.backbones.resnet:ResNet"
_18 = {"block": "basic", "depths": (2, 2, 2, 2)}
_34 = {"block": "basic", "depths": (3, 4, 6, 3)}
_50 = {"block": "bottleneck", "depths": (3, 4, 6, 3)}
_101 = {"block": "bottleneck", "depths": (3, 4, 23, 3)}
_32X4D = {"groups": 32, "group_width": 4}
_MOBILENET = "attngrid.models.backbones.mobilenet:MobileNet"
_PLACEMENT = {"placement": "default"}
_MOBILE = _PLACEMENT | {"input_bn": True, "conv_head": True}
_SKIPS = {"residual": True}
_EXPAND = {"expand_first": True}
_HEAD = {"head_attention": True}

BACKBONES: dict[str, Entry] = {
    "resnet18": Entry(_RESNET, "ResNet-18", _18, _PLACEMENT),
    "resnet34": Entry(_RESNET, "ResNet-34", _34, _PLACEMENT),
    "resnet50": Entry(_RESNET, "ResNet-50", _50, _PLACEMENT),
    "resnet50_v1.5": Entry(_RESNET, "ResNet-50 v1.5", _50 | {"stride_on": "3x3"}, _PLACEMENT),
    "resnet101": Entry(_RESNET, "ResNet-101", _101, _PLACEMENT),
    "wrn18_1.5": Entry(_RESNET, "WRN-18 (1.5)", _18 | {"widen": 1.5}, _PLACEMENT),
    "wrn18_2.0": Entry(_RESNET, "WRN-18 (2.0)", _18 | {"widen": 2.0}, _PLACEMENT),
    "resnext50_32x4d": Entry(_RESNET, "ResNeXt-50 (32x4d)", _50 | _32X4D, _PLACEMENT),
    "resnext101_32x4d": Entry(_RESNET, "ResNeXt-101 (32x4d)", _101 | _32X4D, _PLACEMENT),
    "mobilenet_v1": Entry(_MOBILENET, "MobileNetV1", {"version": "v1"}, _MOBILE | _SKIPS),
    "mobilenet_v2": Entry(_MOBILENET, "MobileNetV2", {"version": "v2"}, _MOBILE | _EXPAND),
    "mobilenet_v3_large": Entry(
        _MOBILENET,
        "MobileNetV3-L",
        {"version": "v3_large"},
        _MOBILE | _EXPAND,
        {"expand_first": False},
    ),
    "mobilenet_v3_small": Entry(
        _MOBILENET,
        "MobileNetV3-S",
        {"version": "v3_small"},
        _MOBILE | _EXPAND | _HEAD,
        {"expand_first": False, "head_attention": False},
    ),
}


# ``timm:resnet50``, ``timm:resnet50.a1_in1k``, ``torchvision:resnet50``.
LIBRARY_BACKBONE = re.compile(r"(timm|torchvision):(\w+(?:\.\w+)?)")


def list_backbones() -> list[str]:
    """The backbones that ``create_model`` knows by name.

    ``create_model`` also takes networks of timm and torchvision, ``timm:resnet50`` and
    ``torchvision:resnet50``; and a user's class, ``file.py:Class``.

    Examples:
        >>> {"resnet18", "resnet50", "mobilenet_v2"} <= set(list_backbones())
        True
    """
    return list(BACKBONES)


def find_backbone(name: str | type[Any]) -> Entry:
    """The entry of a name, of a library's network, or of a user's class or ``file.py:Class``.

    Whether timm and torchvision have a network is found out when it is built, because that needs
    torch.

    Examples:
        >>> find_backbone("timm:resnet50").label
        'resnet50 (timm)'
    """
    if isinstance(name, str) and (match := LIBRARY_BACKBONE.fullmatch(name)):
        return Entry(
            "attngrid.models.backbones.library:build",
            f"{match[2]} ({match[1]})",
            dict(zip(("library", "model"), match.groups(), strict=True)),
            _PLACEMENT | {"pretrained": False},
            package=match[1],
        )
    entry = _find("backbone", BACKBONES, name)
    if entry.sha256 is None and entry.cls is None:
        return entry
    arguments = ("num_classes", "stem", "width")  # of create_model
    options = {name: value for name, value in entry.accepts.items() if name not in arguments}
    return replace(entry, accepts=options | _PLACEMENT)


def require_width(backbone: str | type[Any], attention: str | type[Any], width: float) -> None:
    """Check that a backbone has the width, and the widths that a control needs.

    Raises:
        ConfigError: a library's network, which has one width, and another width or a control.
    """
    if find_backbone(backbone).package is None:
        return
    if width != 1:
        raise ConfigError(f"width: found {width:g}; {backbone} has one width, and needs 1")
    if find_attention(attention).matches is not None:
        raise ConfigError(f"attention {attention!r}: cannot widen {backbone}, which has one width")


def _find(kind: str, registry: Mapping[str, Entry], name: str | type[Any]) -> Entry:
    """The entry of a registered name, or of a user's class or its name, ``file.py:Class``."""
    if isinstance(name, type):
        # skip the first argument, as below
        parameters = list(inspect.signature(name).parameters.values())[1:]
        accepts = {
            one.name: None if one.default is one.empty else one.default
            for one in parameters
            if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
        }
        return Entry(f"{name.__module__}:{name.__qualname__}", name.__name__, {}, accepts, cls=name)
    if name in registry:
        return registry[name]
    if is_user_class(name):
        user = find_user_class(kind, name)
        # skip the first argument, which is channels or a backbone's sites
        keywords = user.keywords(skip=1)
        return Entry(name, user.name, accepts=keywords, sha256=user.sha256)
    libraries = ["timm:NAME", "torchvision:NAME"] if kind == "backbone" else []
    raise UnknownNameError(
        kind, name, [*registry, *libraries, f"my_{kind}.py:My{kind.capitalize()}"]
    )
