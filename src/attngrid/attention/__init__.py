"""Attention modules: one file a module, and this registry.

A module is a class ``Module(channels, **options)`` whose ``forward`` takes and returns an
N×C×H×W tensor. Where a backbone's initialisation is not what its authors used, it defines
``initialise()``, which the backbone calls last. Where it weighs positions it says how, by a
``spatial_map(x)`` from N×C×H×W to N×1×H×W, which ``attngrid visualize`` draws.
"""

from __future__ import annotations

from attngrid import registry
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


def list_attentions() -> list[str]:
    """The attention modules that ``create_model`` knows by name."""
    return list(REGISTRY)


def find(name: str) -> Entry:
    """The entry of an attention module's name, or of a user's ``file.py:Class``."""
    return registry.find("attention", REGISTRY, name)
