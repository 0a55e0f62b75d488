"""Attention maps of trained networks: Grad-CAM, and what a module itself says of positions."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from attngrid.analysis.maps import CellMaps, Maps, with_weights
from attngrid.core.errors import ConfigError
from attngrid.data.images import Images, normalised
from attngrid.study.cell import Cell
from attngrid.study.schema import Study
from attngrid.training.batches import make_batches
from attngrid.training.loop import choose_device, make_deterministic
from attngrid.training.weights import load_model

IMAGES = 4  # the first held-out image of each of the first so many classes
SIDE = 7  # positions: the last stage of the papers' networks at 224×224


def visualize(study: Study, kept: Maps) -> Maps:
    """Make the maps of every cell that has a record and weights, of its study's first seed.

    Networks run in float32 and evaluation mode. What ``kept`` has of other cells stays: an id
    carries its cell's digest, and the weights behind it may be gone.

    Raises:
        ConfigError: a map of a user's module that is not N×1×H×W, or a user's backbone without
            ``stages``.
        DataError: images that are not where they should be.
        RecordError: weights that are not the cell's.
    """
    device = choose_device(study.compute.device)
    images, cells = dict(kept.images), dict(kept.cells)

    @cache
    def fixed(dataset: str, recipe: str, classes: int | None) -> tuple[Images, Tensor]:
        """The fixed images, as they are and as the network sees them."""
        _, test = make_batches(of[dataset, recipe, classes], study.data_folder, device)
        first = test.first_of_each_class(IMAGES)
        return first, normalised(first.pixels_NCHW.to(device), test.mean_C, test.std_C)

    of = {_sees(cell): cell for cell in with_weights(study)}
    for cell in with_weights(study):
        make_deterministic(cell.seed, cell.threads, strict=study.compute.deterministic)
        first, x_NCHW = fixed(*_sees(cell))
        model = load_model(cell).to(device).eval()
        if not hasattr(model, "stages"):
            raise ConfigError(
                f"backbone {cell.backbone!r} has no attribute `stages`, the module whose output "
                "Grad-CAM looks at"
            )
        logits, own = own_map(model, x_NCHW)
        grad_cam_NHW = grad_cam(model, x_NCHW, first.labels_N.to(device))
        cells[cell.id] = CellMaps(
            labels=first.labels_N.tolist(),
            predicted=logits.argmax(1).tolist(),
            grad_cam_KHW=grad_cam_NHW.cpu().numpy(),
            own_KHW=own[1].cpu().numpy() if own else None,
            site=own[0] if own else None,
        )
        shown = first.pixels_NCHW.permute(0, 2, 3, 1).numpy()
        # the first classes' images are the first ones, however many classes a cell has
        if len(shown) >= len(images.get(cell.dataset, ())):
            images[cell.dataset] = shown
    return Maps(images, cells)


def _sees(cell: Cell) -> tuple[str, str, int | None]:
    """What cells share that see the same held-out images."""
    return cell.dataset, cell.recipe_name, cell.options.classes


def grad_cam(model: nn.Module, x_NCHW: Tensor, labels_N: Tensor) -> Tensor:
    """Grad-CAM, by captum, of each image's class on the last stage's output.

    ``ReLU(Σ_c α_c A_c)`` with α_c the mean over positions of ∂logit/∂A_c (Selvaraju et al.,
    ICCV 2017, eqs. 1 and 2).

    Returns:
        N×H×W at that stage's resolution.
    """
    from captum.attr import LayerGradCam

    method = LayerGradCam(model, model.get_submodule("stages"))
    maps_N1HW: Tensor = method.attribute(x_NCHW, target=labels_N, relu_attributions=True)
    return maps_N1HW[:, 0].detach()


@torch.no_grad()
def own_map(model: nn.Module, x_NCHW: Tensor) -> tuple[Tensor, tuple[str, Tensor] | None]:
    """The logits, and the ``spatial_map`` of the attention module nearest to them.

    Of several sites it is the last one of ``SIDE`` × ``SIDE`` positions or more, which a small
    image's last stage has not; where none has, the last of the finest.

    Returns:
        Logits N×classes; the module's name and its map N×H×W, None where no module has one.
    """
    sites: list[tuple[str, nn.Module, Tensor]] = []
    hooks = [
        module.register_forward_pre_hook(
            # a copy: what comes after may write over it
            lambda module, inputs, name=name: sites.append((name, module, inputs[0].clone()))
        )
        for name, module in model.named_modules()
        if callable(getattr(module, "spatial_map", None))
    ]
    try:
        logits: Tensor = model(x_NCHW)
    finally:
        for hook in hooks:
            hook.remove()
    if not sites:
        return logits, None
    name, module, inside = max(reversed(sites), key=lambda site: min(SIDE, *site[2].shape[2:]))
    spatial_map = module.spatial_map
    assert callable(spatial_map)
    map_N1HW: Tensor = spatial_map(inside)
    expected = (len(inside), 1, *inside.shape[2:])
    if tuple(map_N1HW.shape) != expected:
        raise ConfigError(
            f"{name}: {type(module).__name__}.spatial_map gives {tuple(map_N1HW.shape)} for an "
            f"input of {tuple(inside.shape)}, expected {expected}"
        )
    return logits, (name, map_N1HW[:, 0].float())
