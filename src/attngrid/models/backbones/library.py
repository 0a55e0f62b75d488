"""Networks of timm and torchvision, with attention modules at the library's own places."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attngrid.core.errors import ConfigError
from attngrid.models.backbones.pretrained import find_weights, load_weights
from attngrid.models.external import Place
from attngrid.models.placement import Sites

Library = Literal["timm", "torchvision"]

# The files of timm whose blocks have one place for attention: `se`, or `attn` and `attn_last`.
TIMM_FILES = ("_efficientnet_blocks", "byobnet", "regnet", "res2net", "resnet", "rexnet")
# torchvision's blocks: the layer in whose output or sequence the place is; and the place in the
# sequence, before the projecting convolution. None: behind the layer, the last BatchNorm.
TORCHVISION_BLOCKS: dict[str, tuple[str, int | None]] = {
    "resnet.BasicBlock": ("bn2", None),
    "resnet.Bottleneck": ("bn3", None),
    "mobilenetv2.InvertedResidual": ("conv", -2),
    "mobilenetv3.InvertedResidual": ("block", -1),
    "efficientnet.MBConv": ("block", -1),
    "regnet.ResBottleneckBlock": ("f", -1),
}
# Modules of torchvision's networks that can be the end of a stage.
TORCHVISION_STAGES = re.compile(r"(features|trunk_output)\.\w+|layer\d|stage\d")


@dataclass(frozen=True)
class Slot:
    """The attention place of a block.

    Attributes:
        put: places a module there, in place of the library's.
        filled: whether the library has an attention module there.
    """

    put: Callable[[nn.Module], None]
    filled: bool


def build(
    sites: Sites,
    *,
    library: Library,
    model: str,
    num_classes: int,
    input_size: int,
    pretrained: bool = False,
    stem: str = "imagenet",
    width: float = 1.0,
) -> nn.Module:
    """Build a library's network and place attention modules where the library has its own.

    The library's attention modules are removed. A stage ends where timm's ``feature_info`` or
    torchvision's layers have their last map with a stride of 4, 8, 16 or 32; blocks with a stride
    of 2 belong to the first stage.

    Args:
        sites: builds the attention modules; each block has one place.
        library: ``timm`` or ``torchvision``.
        model: the library's name, ``resnet50``; a tag of timm, ``resnet50.a1_in1k``, names weights.
        num_classes: outputs of the classifier.
        input_size: height and width of the images, for networks that are built for one size.
        pretrained: load the library's weights from this machine; on the meta device nothing is
            loaded. A classifier of another number of classes keeps its random weights.
        stem: not used, because a library's network has one stem.
        width: not used, because it has one width.

    Raises:
        ConfigError: an unknown model, one with auxiliary outputs, or missing weights.
    """
    _require_known(library, model)
    device = torch.empty(0).device
    found = find_weights(library, model) if pretrained and device.type != "meta" else None
    # torchvision cannot build its RegNets on the meta device
    with torch.device("cpu" if library == "torchvision" else device):
        network, side = _create(library, model, num_classes, input_size, found and found[0])
    network.to(device)
    if getattr(network, "aux_logits", False):
        raise ConfigError("has auxiliary outputs while it trains, which no recipe uses")
    blocks, stages = _survey(deepcopy(network).to("meta"), library, side)
    slots = list(_slots(network))
    listed = [slot.filled or not any(one.filled for one in slots) for slot in slots]
    for number, (channels, stage) in blocks.items():
        slots[number].put(sites.any_block(channels, stage, len(stages), listed=listed[number]))
    for stage, (name, channels) in enumerate(stages.items(), 1):
        module = sites.after_stage(channels, stage, len(stages))
        if type(module) is not nn.Identity:
            parent, _, leaf = name.rpartition(".")
            layer = nn.Sequential(network.get_submodule(name), module)
            setattr(network.get_submodule(parent), leaf, layer)
    # read by create_model, by the record of a training, and by the attention maps
    network.attngrid_places = _in_words(bool(blocks), bool(stages))  # type: ignore[assignment]
    network.attngrid_last_stage = next(reversed(stages), "")  # type: ignore[assignment]
    if found:
        network.attngrid_weights = {"file": found[0].name, "sha256": found[1]}  # type: ignore[assignment]
    return network


def _require_known(library: Library, model: str) -> None:
    """Raise a ConfigError with similar names if the installed library does not have a model."""
    if library == "timm":
        import timm

        version, names = timm.__version__, timm.list_models()
    else:
        import torchvision

        version = torchvision.__version__
        names = torchvision.models.list_models(module=torchvision.models)
    if (name := model.partition(".")[0] if library == "timm" else model) not in names:
        near = get_close_matches(name.lower(), names, n=5, cutoff=0.5)
        hint = f"; did you mean {' or '.join(f'{library}:{one}' for one in near)}?" if near else ""
        raise ConfigError(f"{library} {version} has no model {name!r} for classification{hint}")


def _create(
    library: Library, model: str, num_classes: int, input_size: int, weights: Path | None = None
) -> tuple[nn.Module, int]:
    """The library's network, and the height and width of the images that it was designed for."""
    if library == "torchvision":
        import torchvision

        network: nn.Module = torchvision.models.get_model(
            model, weights=None, num_classes=num_classes
        )
        if weights is not None:
            load_weights(network, weights)
        return network, 224
    import timm

    found = timm.get_pretrained_cfg(model)
    side = found.input_size[-1] if found else 224
    options: dict[str, Any] = {}
    if found and found.fixed_input_size:
        side, options = input_size, {"img_size": input_size}
    if weights is not None:
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"file": str(weights)}}
    return timm.create_model(model, num_classes=num_classes, **options), side


@torch.no_grad()
def _survey(
    probe: nn.Module, library: Library, side: int
) -> tuple[dict[int, tuple[int, int]], dict[str, int]]:
    """Run a network on the meta device, and find its places.

    Returns:
        Channels and stage of each slot, by its number among ``_slots``; and the channels of each
        stage's last module, by its name. Both are in the order of execution, and empty for a
        network that has no stages of maps N×C×H×W.
    """
    events: list[tuple[int | str, tuple[int, ...]]] = []

    def record(event: int | str, found: Any) -> None:
        events.append((event, tuple(found.shape) if isinstance(found, Tensor) else ()))

    for number, slot in enumerate(_slots(probe)):
        slot.put(place := Place())
        place.register_forward_pre_hook(lambda _, inputs, number=number: record(number, inputs[0]))
    for name in _ends(probe, library):
        probe.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: record(name, output)
        )
    probe.eval()(torch.zeros(1, 3, side, side, device="meta"))
    last: dict[int, tuple[str, int]] = {}  # by the height of the map
    for event, shape in events:
        if isinstance(event, str) and len(shape) == 4 and shape[2] == shape[3] <= side // 4:
            last[shape[2]] = (event, shape[1])
    stages = dict(last.values())
    if any(name.count(".") > 1 for name in stages):  # a map from the inside of a block
        stages = {}
    blocks, ended = {}, 0
    for event, shape in events:
        if event in stages:
            ended += 1
        elif isinstance(event, int) and stages:
            blocks[event] = (shape[1], min(ended + 1, len(stages)))
    return blocks, stages


def _ends(network: nn.Module, library: Library) -> list[str]:
    """The names of the modules that can be the end of a stage."""
    if library == "timm":
        info = getattr(network, "feature_info", [])
        names = [one["module"] for one in getattr(info, "info", info)]
        known = dict(network.named_modules())
        return [name for name in dict.fromkeys(names) if name and name in known]
    from torchvision.ops import Conv2dNormActivation

    return [
        name
        for name, module in network.named_modules()
        # as children of `features`, these are the stem and the convolution before the classifier
        if TORCHVISION_STAGES.fullmatch(name) and not isinstance(module, Conv2dNormActivation)
    ]


def _slots(network: nn.Module) -> Iterator[Slot]:
    """The attention places of a network's blocks, in the order of its modules."""
    for block in list(network.modules()):
        file, _, name = f"{type(block).__module__}.{type(block).__name__}".rpartition(".")
        package, _, file = file.rpartition(".")
        if package == "timm.models" and file in TIMM_FILES:
            yield from _timm_slot(block)
        elif package == "torchvision.models" and f"{file}.{name}" in TORCHVISION_BLOCKS:
            yield _torchvision_slot(block, *TORCHVISION_BLOCKS[f"{file}.{name}"])


def _timm_slot(block: nn.Module) -> Iterator[Slot]:
    """The place of a block of timm; none if the module is no such block."""
    filled = [
        name
        for name in ("se", "attn", "attn_last")
        if type(getattr(block, name, None)) not in (type(None), nn.Identity)
    ]
    if hasattr(block, "se"):
        name = "se"
    elif hasattr(block, "attn") and hasattr(block, "attn_last"):
        last = inspect.signature(type(block)).parameters["attn_last"].default
        name = filled[0] if filled else "attn_last" if last else "attn"
    else:
        return
    yield Slot(partial(setattr, block, name), bool(filled))


def _torchvision_slot(block: nn.Module, name: str, index: int | None) -> Slot:
    """The place of a block of torchvision, in or behind its layer ``name``."""
    from torchvision.ops import SqueezeExcitation

    layer = block.get_submodule(name)
    for key, child in layer.named_children():
        if isinstance(child, SqueezeExcitation):
            return Slot(partial(setattr, layer, key), True)

    def put(module: nn.Module) -> None:
        if type(module) is not nn.Identity:
            layers = [layer] if index is None else list(layer.children())
            layers.insert(len(layers) + (index or 0), module)
            setattr(block, name, nn.Sequential(*layers))

    return Slot(put, False)


def _in_words(blocks: bool, stages: bool) -> str:
    """Where a network has attention places, for an error."""
    if blocks:
        return "it has attention places in its blocks and after its stages"
    if stages:
        return "it has attention places only after its stages; set placement: stage_end"
    return "it has no attention places; take another backbone, such as timm:resnet50"
