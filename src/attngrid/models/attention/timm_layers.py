"""The attention layers of timm's ``create_attn``, as timm builds them by default."""

from __future__ import annotations

from typing import Any

from torch import nn

from attngrid.core.errors import ConfigError

# timm's block size in positions; the feature map must be divisible by it.
_BLOCK_SIZES = {"halo": 8, "bat": 7}


def timm_layer(channels: int, *, layer: str, feat_size: tuple[int, int] | None = None) -> nn.Module:
    """Build a layer; ``feat_size`` is H and W, if its weights or blocks depend on them.

    Raises:
        ConfigError: the installed timm does not have the layer.
    """
    import timm
    from timm.layers.create_attn import create_attn
    from timm.layers.mlp import ConvMlp

    options: dict[str, Any] = {}
    if layer in _BLOCK_SIZES:
        assert feat_size is not None
        # timm's size if it divides the map, else the largest smaller size that does
        sizes = range(_BLOCK_SIZES[layer], 0, -1)
        options["block_size"] = next(s for s in sizes if all(side % s == 0 for side in feat_size))
    elif feat_size is not None:
        options["feat_size"] = feat_size
    if layer == "ge":
        # timm 1.0.22 to 1.0.31 pass device and dtype to ConvMlp as widths, and fail
        options["use_mlp"] = False
    try:
        module: nn.Module = create_attn(layer, channels, **options)  # type: ignore[no-untyped-call]
    except AssertionError as error:
        raise ConfigError(f"timm {timm.__version__}: {error}") from error
    if layer == "ge":
        module.mlp = ConvMlp(channels, max(1, int(channels / 16 + 0.5)))
    return module
