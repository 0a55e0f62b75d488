"""Attention modules: one file a module, and this registry.

A module is a class ``Module(channels, **options)`` whose ``forward`` takes and returns an
N×C×H×W tensor. Where a backbone's initialisation is not what its authors used, it defines
``initialise()``, which the backbone calls last. Modules of timm's and of a user's own keep the
weights that their constructors give them. Where a module weighs positions it says how, by a
``spatial_map(x)`` from N×C×H×W to N×1×H×W, which ``attngrid visualize`` draws.
"""

from __future__ import annotations

import re

from attngrid import registry
from attngrid.errors import ConfigError
from attngrid.registry import Entry

_SE = "attngrid.attention.se:SqueezeExcitation"
_SAM = "attngrid.attention.sam:SpatialSelfAttention"
_CSM = "attngrid.attention.csm:ChannelSpatialAttention"
_BAM = "attngrid.attention.bam:BAM"
_SRAP = "attngrid.attention.srap:SRAP"
_R8 = {"key_reduction": 8}
_RESIDUAL = {"residual": True}

_R = frozenset({"reduction"})
_RS = _R | {"statistics"}
_RR = _R | {"rates"}

REGISTRY: dict[str, Entry] = {
    "none": Entry("torch.nn:Identity", "baseline"),
    "se": Entry(_SE, "SE", accepts=_R),
    "cbam": Entry("attngrid.attention.cbam:CBAM", "CBAM", accepts=_R),
    "cam": Entry(_SE, "CAM", accepts=_R, same_as="se"),
    "sam": Entry(_SAM, "SAM"),
    "sam_r8": Entry(_SAM, "SAM (C/8)", _R8),
    "sam_residual": Entry(_SAM, "SAM (residual)", _RESIDUAL),
    "sam_danet": Entry(_SAM, "SAM (C/8, residual)", _R8 | _RESIDUAL),
    "csm": Entry(_CSM, "CSM", accepts=_R),
    "csm_r8": Entry(_CSM, "CSM (C/8)", _R8, _R),
    "csm_residual": Entry(_CSM, "CSM (residual)", _RESIDUAL, _R),
    "csm_danet": Entry(_CSM, "CSM (C/8, residual)", _R8 | _RESIDUAL, _R),
    "csm_sam_first": Entry(_CSM, "CSM, SAM first", {"spatial_first": True}, _R),
    "se_v3": Entry("attngrid.attention.se:SqueezeExcitationV3", "SE (V3)", site="expanded"),
    "bam": Entry(_BAM, "BAM", accepts=_R, site="stages"),
    "bam_product": Entry(_BAM, "BAM (product)", {"product": True}, _R, site="stages"),
    "maf": Entry("attngrid.attention.maf:MAF", "MAF", accepts=_RS),
    "maf_c": Entry("attngrid.attention.maf:MAFInCBAM", "MAF_C", accepts=_RS),
    "maf_b": Entry("attngrid.attention.maf:MAFInBAM", "MAF_B", accepts=_RS, site="stages"),
    "srap": Entry(_SRAP, "SRAP", accepts=_RR, site="expanded"),
    "srap_avg_max": Entry(
        _SRAP, "SRAP (avg, max)", {"statistics": ("avg", "max")}, _RR, site="expanded"
    ),
    "srap_avg_max_std": Entry(
        _SRAP, "SRAP (avg, max, std)", {"statistics": ("avg", "max", "std")}, _RR, site="expanded"
    ),
}


# timm's names of what its ``create_attn`` makes, and the papers' for the tables.
TIMM: dict[str, Entry] = {
    f"timm:{layer}": Entry(
        "attngrid.attention.timm_layers:timm_layer",
        f"{label} (timm)",
        {"layer": layer},
        package="timm",
        sized=layer in ("bottleneck", "halo", "bat"),
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

_CONTROL = re.compile(r"none_wide(:(?P<module>.+?)(:(?P<quantity>macs))?)?")


def list_attentions() -> list[str]:
    """The attention modules that ``create_model`` knows by name.

    Beside them it takes ``timm:eca`` and the other layers of timm's ``create_attn``; a control,
    ``none_wide:csm`` or ``none_wide:csm:macs``; and a class of one's own, ``file.py:Class``.
    """
    return list(REGISTRY)


def find(name: str) -> Entry:
    """The entry of an attention module's name, of a control, or of a user's ``file.py:Class``.

    Raises:
        UnknownNameError: no such name; the message lists the near ones.
        ConfigError: as ``registry.find_own`` says, or a control that matches nothing.
    """
    if control := _CONTROL.fullmatch(name):
        return _control(name, control)
    if name.startswith("timm:"):
        return registry.find("attention", TIMM, name)
    return registry.find("attention", REGISTRY, name)


def trained(name: str) -> str:
    """The name whose record an attention reads: ``cam`` computes what ``se`` does."""
    # no file of a user's is read for it: it may be gone
    return name if ".py:" in name else find(name).same_as or name


def label(name: str) -> str:
    """How tables and figures write an attention module, a user's by its class."""
    if control := _CONTROL.fullmatch(name):
        quantity = "MACs" if control["quantity"] else "params"
        return f"wide ({label(control['module'] or '')}'s {quantity})"
    entry = REGISTRY.get(name) or TIMM.get(name)
    return entry.label if entry else name.rpartition(":")[2]


def _control(name: str, control: re.Match[str]) -> Entry:
    """The baseline, widened until it has as many parameters, or MACs, as a module gives it."""
    module, macs = control["module"], control["quantity"] is not None
    if module is None:
        raise ConfigError(
            f"attention {name!r}: say which module the baseline is widened to match, "
            "none_wide:csm in parameters, none_wide:csm:macs in multiply-accumulates"
        )
    if module.startswith("none"):
        raise ConfigError(f"attention {name!r}: {module!r} adds nothing that could be matched")
    entry = find(module)
    return Entry(
        "torch.nn:Identity",
        label(name),
        accepts=entry.accepts,
        same_as=entry.same_as and f"none_wide:{entry.same_as}{':macs' if macs else ''}",
        sha256=entry.sha256,
        package=entry.package,
        matches=module,
        quantity="macs" if macs else "params",
    )
