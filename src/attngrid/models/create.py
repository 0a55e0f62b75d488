"""``create_model`` builds every backbone with every attention module, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from numbers import Integral, Real
from typing import Any, get_args

from torch import Tensor, nn

from attngrid.core.errors import ConfigError
from attngrid.models.external import (
    feature_sizes,
    named_errors,
    require_built,
    require_module,
    try_once,
)
from attngrid.models.placement import PLACEMENTS, Make, Placement, Sites
from attngrid.models.registry import (
    Entry,
    Initialisation,
    find_attention,
    find_backbone,
    require_width,
)
from attngrid.models.width_matching import matched_width

# Default height and width of the images in pixels, by stem.
INPUT_SIZES = {"imagenet": 224, "cifar": 32}
COUNT = "a whole number of 1 or more"


def create_model(
    backbone: str | type[nn.Module],
    attention: str | type[nn.Module] = "none",
    *,
    num_classes: int = 1000,
    stem: str = "imagenet",
    width: float = 1.0,
    input_size: int | None = None,
    initialisation: Initialisation = "family",
    **options: Any,
) -> nn.Module:
    """Build a backbone that contains an attention module, with random weights.

    Args:
        backbone: one of ``list_backbones()``; ``timm:resnet50`` or ``torchvision:resnet50`` and
            the other networks of these libraries; ``my_backbone.py:MyBackbone``; or a class.
        attention: one of ``list_attentions()``; ``timm:eca`` and the other layers of timm's
            ``create_attn``; ``my_attention.py:MyAttention``, or a class; or ``none_wide:csm``, the
            baseline widened to the number of parameters that it has with csm
            (``none_wide:csm:macs``: to the number of multiply-accumulates).
        num_classes: outputs of the classifier.
        stem: ``imagenet`` (224×224 images) or ``cifar`` (32×32 and smaller).
        width: factor on the widths of the stages. A library's network has its own stem and width.
        input_size: height and width of the images in pixels; default: 224 or 32, by the stem.
            ``none_wide:...:macs``, some modules, and the try of a user's class depend on it.
        initialisation: one rule for all networks of a ``family``, the code of the ``authors``, or
            ``pytorch``'s defaults. A user's and a library's backbone initialises itself.
        **options: options of the backbone (``placement``, ``input_bn``; a library's:
            ``pretrained``, with weights on this machine) or of the module (``reduction``).

    Returns:
        A module from N×3×H×W images to N×num_classes logits. ``torch.device("meta")`` works, too.

    Raises:
        UnknownNameError: an unknown backbone or attention; the message lists similar names.
        ConfigError: an unknown option, a value of a wrong type or out of range, a backbone that
            builds no attention module, or a user's class that does not work.

    Examples:
        >>> model = create_model("resnet18", "cbam")  # CBAM, Table 4: 11.78 M parameters
        >>> sum(parameter.numel() for parameter in model.parameters())
        11779392
    """
    names = [_name("backbone", backbone, "resnet18"), _name("attention", attention, "se")]
    network, module = find_backbone(backbone), find_attention(attention)
    _check_arguments(num_classes, stem, width, input_size, initialisation)
    require_width(backbone, attention, width)
    _check_options(" with ".join(names), (network, module), options)
    input_size = input_size or INPUT_SIZES[stem]
    module_options = {name: v for name, v in options.items() if name not in network.accepts}
    network_options = {name: v for name, v in options.items() if name in network.accepts}
    arguments = {"num_classes": num_classes, "stem": stem, **network_options}
    if not network.external:
        arguments["initialisation"] = initialisation
    elif network.package is not None:
        arguments["input_size"] = input_size
    if module.matches is not None:
        return _widened(backbone, module, width, input_size, arguments, module_options)
    named = ((names[0], network), (names[1], module))
    return _build(*named, {"width": width, **arguments}, module_options, input_size)


def _name(argument: str, given: Any, example: str) -> str:
    """The name of a backbone or an attention module, or of its class.

    Raises:
        ConfigError: neither text nor a class of modules.
    """
    if isinstance(given, str):
        return given
    if isinstance(given, type) and issubclass(given, nn.Module):
        return given.__name__
    raise ConfigError(
        f"{argument} must be a name such as {example!r}, or a class derived from torch.nn.Module, "
        f"found {_shown(given)}"
    )


def _check_arguments(
    num_classes: Any, stem: Any, width: Any, input_size: Any, initialisation: Any
) -> None:
    """Raise a ConfigError if an argument of ``create_model`` has a wrong type or value."""
    is_number = isinstance(width, Real) and not isinstance(width, bool)
    rules = get_args(Initialisation)
    for name, value, is_right, needs in (
        ("num_classes", num_classes, _is_count(num_classes), COUNT),
        ("input_size", input_size, input_size is None or _is_count(input_size), COUNT),
        ("width", width, is_number and 0.001 <= width <= 1000, "a number from 0.001 to 1000"),
        ("stem", stem, stem in tuple(INPUT_SIZES), "'imagenet' or 'cifar'"),
        ("initialisation", initialisation, initialisation in rules, f"one of {', '.join(rules)}"),
    ):
        if not is_right:
            raise ConfigError(f"{name} must be {needs}, found {_shown(value)}")


def _check_options(model: str, entries: tuple[Entry, Entry], options: Mapping[str, Any]) -> None:
    """Raise a ConfigError if an option is unknown, or one of this package has a wrong type."""
    accepted = {name for entry in entries for name in entry.accepts}
    if unknown := options.keys() - accepted:
        raise ConfigError(
            f"{model} takes no option {', '.join(sorted(unknown))}; "
            f"it takes {', '.join(sorted(accepted))}"
        )
    if (placement := options.get("placement", "default")) not in PLACEMENTS:
        raise ConfigError(
            f"placement must be one of {', '.join(PLACEMENTS)}, found {_shown(placement)}"
        )
    defaults = {k: v for entry in entries if not entry.external for k, v in entry.accepts.items()}
    for name in options.keys() & defaults:
        is_right, needs, default = True, COUNT, defaults[name]
        if isinstance(default, bool):
            is_right, needs = isinstance(options[name], bool), "True or False"
        elif isinstance(default, int):
            is_right = _is_count(options[name])
        if not is_right:
            raise ConfigError(f"{name} must be {needs}, found {_shown(options[name])}")


def _is_count(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def _shown(value: Any) -> str:
    """A value in one line."""
    if isinstance(value, nn.Module):
        return f"an instance of {type(value).__name__}"
    return " ".join(repr(value).split())


def _build(
    backbone: tuple[str, Entry],
    attention: tuple[str, Entry],
    arguments: dict[str, Any],
    module_options: Mapping[str, Any],
    input_size: int,
) -> nn.Module:
    """Build a network, and run it once if one of its two classes is external."""
    network, placement = backbone[1], arguments.pop("placement", "default")

    def build(sites: Sites) -> nn.Module:
        model: nn.Module = network.load()(sites, **arguments, **network.options)
        return model

    name, given = f"backbone {backbone[0]!r}", (*attention, placement, module_options)
    with named_errors(name, external=True) if network.external else nullcontext():
        model, places = _with_attention(build, *given, input_size)
    if network.external or attention[1].external:
        try_once(model, name, places, input_size, arguments["num_classes"])
    return model


def _widened(
    backbone: str | type[nn.Module],
    control: Entry,
    width: float,
    input_size: int,
    arguments: Mapping[str, Any],
    module_options: Mapping[str, Any],
) -> nn.Module:
    """Build the baseline whose cost is nearest to that of the network with ``control.matches``."""

    def create(attention: str, width: float) -> nn.Module:
        options = {} if attention == "none" else module_options
        keywords = {"width": width, "input_size": input_size, **arguments, **options}
        return create_model(backbone, attention, **keywords)

    assert control.matches is not None
    matched = matched_width(
        create, control.matches, control.quantity, input_size=input_size, width=width
    )
    return create("none", matched)


def _with_attention(
    build: Callable[[Sites], nn.Module],
    name: str,
    entry: Entry,
    placement: Placement,
    options: Mapping[str, Any],
    input_size: int,
) -> tuple[nn.Module, dict[nn.Module, str]]:
    """Build a backbone with attention modules; also return each module's place, in words."""

    def sites(make: Make) -> Sites:
        return Sites(make, entry.site, placement)

    sized = entry.needs_feature_size
    sizes = iter(feature_sizes(lambda make: build(sites(make)), input_size) if sized else ())
    places: dict[nn.Module, str] = {}
    initial: list[tuple[nn.Module, dict[str, Tensor]]] = []

    def make(channels: int, stage: int) -> nn.Module:
        size = next(sizes, None)
        arguments = {**entry.options, **options, **({"feat_size": size} if size else {})}
        place = f"attention {name!r} in stage {stage}, at {channels} channels"
        with named_errors(place, external=entry.external):
            module = require_module(entry.load()(channels, **arguments))
        places[module] = place
        if entry.external:
            initial.append((module, {k: v.clone() for k, v in module.state_dict().items()}))
        return module

    model = require_module(build(sites(make)))
    for module, state in initial:  # the backbone has overwritten their own initial weights
        module.load_state_dict(state)
    if name == "none":
        return model, {}
    calls = sites(make).calls
    hint = getattr(model, "attngrid_places", f"its constructor must call {calls}")
    require_built(model, places, f"attention {name!r}, placement {placement!r}", calls, hint)
    return model, places
