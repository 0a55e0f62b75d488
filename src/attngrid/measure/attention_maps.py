"""Attention maps of trained networks: Grad-CAM, and the spatial maps of attention modules."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from attngrid.core.errors import ConfigError
from attngrid.data.images import Split, normalize
from attngrid.measure.maps_file import CellMaps, Maps, with_weights
from attngrid.study.schema import Study
from attngrid.training.batches import make_batches
from attngrid.training.loop import choose_device, make_deterministic
from attngrid.training.weights import create_network

log = logging.getLogger(__name__)
CLASSES = 4  # maps show the first held-out image of each of this many classes
SIDE = 7  # height and width of the last stage of the papers' networks at 224×224


def visualize(study: Study, kept: Maps) -> Maps:
    """Make the maps of each model of a study whose first seed has a record and weights.

    Networks run in float32 and evaluation mode. Maps of other cells in ``kept`` stay, because
    their weights may have been deleted. A user's backbone without ``stages`` has none, with a
    warning.

    Raises:
        ConfigError: a user's module has a spatial map that is not N×1×H×W.
        DataError: missing images.
        RecordError: weights of another cell.
    """
    device = choose_device(study.compute.device)
    images, cells = dict(kept.images), dict(kept.cells)
    splits: dict[tuple[str, str, int | None], Split] = {}
    for cell in with_weights(study):
        make_deterministic(cell.seed, cell.threads, strict=study.compute.deterministic)
        held_out = (cell.dataset, cell.recipe_name, cell.options.classes)
        if held_out not in splits:
            _, splits[held_out] = make_batches(cell, study.data_folder, device)
        test = splits[held_out]
        first = test.first_of_each_class(CLASSES)
        x_NCHW = normalize(first.pixels_NCHW.to(device), test.mean_C, test.std_C)
        model = create_network(cell).to(device).eval()
        stage = last_stage(model)
        if not stage or not hasattr(model, stage.partition(".")[0]):
            what = "attribute `stages`, the module whose output" if stage else "stage, whose output"
            log.warning(
                "no attention maps of %s: backbone %r has no %s Grad-CAM needs",
                *(cell.label, cell.backbone, what),
            )
            continue
        logits, spatial = own_map(model, x_NCHW)
        grad_cam_NHW = grad_cam(model, x_NCHW, first.labels_N.to(device))
        cells[cell.id] = CellMaps(
            labels=first.labels_N.tolist(),
            predicted=logits.argmax(1).tolist(),
            grad_cam_KHW=grad_cam_NHW.cpu().numpy(),
            own_KHW=spatial[1].cpu().numpy() if spatial else None,
            site=spatial[0] if spatial else None,
        )
        # cells with fewer classes use the first of these images
        if len(first) >= len(images.get(cell.dataset, ())):
            images[cell.dataset] = first.pixels_NCHW.permute(0, 2, 3, 1).numpy()
    return Maps(images, cells)


def last_stage(model: nn.Module) -> str:
    """The name of the module that ends with the last stage; empty if a library's has no stages."""
    return getattr(model, "attngrid_last_stage", "stages")


def grad_cam(model: nn.Module, x_NCHW: Tensor, labels_N: Tensor) -> Tensor:
    """Grad-CAM (N×H×W) of each image's class on the output A of the last stage, by captum.

    ``ReLU(Σ_c α_c A_c)``, where α_c is the mean of ∂logit/∂A_c over positions (Selvaraju et al.,
    ICCV 2017, eqs. 1 and 2).
    """
    from captum.attr import LayerGradCam

    method = LayerGradCam(model, model.get_submodule(last_stage(model)))
    maps_N1HW: Tensor = method.attribute(x_NCHW, target=labels_N, relu_attributions=True)
    return maps_N1HW[:, 0].detach()


@torch.no_grad()
def own_map(model: nn.Module, x_NCHW: Tensor) -> tuple[Tensor, tuple[str, Tensor] | None]:
    """The logits, and the ``spatial_map`` of an attention module near the end of the network.

    It is the last module whose input has ``SIDE`` × ``SIDE`` positions or more. If there is none,
    it is the last of the modules with the largest input.

    Returns:
        Logits N×classes; the module's name and its map N×H×W, or None if no module has one.
    """
    sites: list[tuple[str, nn.Module, Tensor]] = []
    hooks = [
        module.register_forward_pre_hook(
            # a copy, since later modules may write in place
            lambda module, inputs, name=name: sites.append((name, module, inputs[0].clone()))
        )
        for name, module in model.named_modules()
        if callable(getattr(module, "spatial_map", None))
    ]
    logits: Tensor = model(x_NCHW)
    for hook in hooks:
        hook.remove()
    if not sites:
        return logits, None
    name, module, inputs = max(reversed(sites), key=lambda site: min(SIDE, *site[2].shape[2:]))
    spatial_map = module.spatial_map
    assert callable(spatial_map)
    map_N1HW: Tensor = spatial_map(inputs)
    expected = (len(inputs), 1, *inputs.shape[2:])
    if tuple(map_N1HW.shape) != expected:
        raise ConfigError(
            f"{name}: {type(module).__name__}.spatial_map gives {tuple(map_N1HW.shape)} for an "
            f"input of {tuple(inputs.shape)}, expected {expected}"
        )
    return logits, (name, map_N1HW[:, 0].float())
