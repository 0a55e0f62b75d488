"""Each module against its equation written out in NumPy, loop by loop."""

from __future__ import annotations

import numpy as np
import pytest
import timm.layers
import torch
from numpy.typing import NDArray
from torch import nn

import attngrid
from attngrid import attention as attentions
from attngrid.attention.cbam import CBAM
from attngrid.attention.csm import ChannelSpatialAttention
from attngrid.attention.sam import SpatialSelfAttention
from attngrid.attention.se import SqueezeExcitation
from attngrid.errors import ConfigError

Array = NDArray[np.float64]


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 8, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def randomise(module: nn.Module) -> nn.Module:
    """Double precision, evaluation mode, and no parameter or statistic left at 0 or 1."""
    generator = torch.Generator().manual_seed(2)
    module = module.double().eval()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point():
            values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.data.copy_(values.abs() if "var" in name else values)
    return module


def array(tensor: torch.Tensor | None) -> Array:
    assert tensor is not None
    return tensor.detach().numpy()


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def mlp(module: nn.Sequential, x_C: Array) -> Array:
    first, _, second = module
    hidden = np.maximum(array(first.weight) @ x_C + array(first.bias), 0)
    return array(second.weight) @ hidden + array(second.bias)


def se_by_hand(module: SqueezeExcitation, x: Array) -> Array:
    out = np.zeros_like(x)
    for n in range(len(x)):
        average = np.array([sum(channel.flatten()) / channel.size for channel in x[n]])
        gate = sigmoid(mlp(module.mlp, average))
        for c in range(x.shape[1]):
            out[n, c] = gate[c] * x[n, c]
    return out


def cbam_by_hand(module: CBAM, x: Array) -> Array:
    channel, spatial = module
    out = np.zeros_like(x)
    for n, image in enumerate(x):
        average = np.array([plane.mean() for plane in image])
        maximum = np.array([plane.max() for plane in image])
        gate = sigmoid(mlp(channel.mlp, average) + mlp(channel.mlp, maximum))
        image = gate[:, None, None] * image
        pooled = np.pad(np.stack([image.max(0), image.mean(0)]), ((0, 0), (3, 3), (3, 3)))
        kernel = array(spatial.conv.weight)[0]
        bn = spatial.bn
        for i in range(image.shape[1]):
            for j in range(image.shape[2]):
                conv = (pooled[:, i : i + 7, j : j + 7] * kernel).sum()
                centred = (conv - array(bn.running_mean)[0]) / np.sqrt(
                    array(bn.running_var)[0] + bn.eps
                )
                logit = centred * array(bn.weight)[0] + array(bn.bias)[0]
                out[n, :, i, j] = sigmoid(logit) * image[:, i, j]
    return out


def sam_by_hand(module: SpatialSelfAttention, x: Array) -> Array:
    """Eq. 5 with B the key, C the query and D the value, position by position."""

    def conv(layer: nn.Conv2d, image: Array) -> Array:
        positions = image.reshape(len(image), -1)
        return array(layer.weight)[:, :, 0, 0] @ positions + array(layer.bias)[:, None]

    out = np.zeros_like(x)
    for n, image in enumerate(x):
        b, c, d = (conv(layer, image) for layer in (module.key, module.query, module.value))
        positions = b.shape[1]
        result = np.zeros_like(d)
        for j in range(positions):
            scores = np.array([np.exp(b[:, i] @ c[:, j]) for i in range(positions)])
            for i in range(positions):
                result[:, j] += scores[i] / scores.sum() * d[:, i]
        out[n] = result.reshape(image.shape)
        if module.gamma is not None:
            out[n] = image + array(module.gamma) * out[n]
    return out


def csm_by_hand(module: ChannelSpatialAttention, x: Array) -> Array:
    for part in module:
        by_hand = se_by_hand if isinstance(part, SqueezeExcitation) else sam_by_hand
        x = by_hand(part, x)  # type: ignore[operator]
    return x


BY_HAND = {
    "se": se_by_hand,
    "cam": se_by_hand,
    "cbam": cbam_by_hand,
    **dict.fromkeys(("sam", "sam_r8", "sam_residual", "sam_danet"), sam_by_hand),
    **dict.fromkeys(("csm", "csm_r8", "csm_residual", "csm_danet", "csm_sam_first"), csm_by_hand),
}


def build(name: str, channels: int, **options: int) -> nn.Module:
    entry = attentions.find(name)
    module: nn.Module = entry.load()(channels, **entry.options, **options)
    return module


@pytest.mark.parametrize("name", BY_HAND)
def test_module_computes_its_equation(name: str, x: torch.Tensor) -> None:
    module = randomise(build(name, 8))
    expected = BY_HAND[name](module, x.numpy())  # type: ignore[operator]
    np.testing.assert_allclose(array(module(x)), expected, rtol=1e-9, atol=1e-11)


def test_every_registered_module_is_covered_by_an_equation() -> None:
    assert set(BY_HAND) | {"none"} == set(attngrid.list_attentions())


@pytest.mark.parametrize("name", attngrid.list_attentions())
def test_gradient_matches_finite_differences(name: str) -> None:
    if name == "none":
        pytest.skip("the identity has no parameters")
    module = randomise(build(name, 8))
    # a smooth point: no ties between maxima, no kink of the ReLU nearby; modest scores
    for parameter in module.parameters():
        parameter.data.mul_(0.3)
    x = torch.randn(1, 8, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, x)


def test_se_equals_timms_with_the_same_weights(x: torch.Tensor) -> None:
    ours = randomise(SqueezeExcitation(64, reduction=16))
    theirs = timm.layers.SEModule(64, rd_channels=4).double()
    for layer, conv in ((ours.mlp[0], theirs.fc1), (ours.mlp[2], theirs.fc2)):
        conv.weight.data.copy_(layer.weight[:, :, None, None])
        conv.bias.data.copy_(layer.bias)
    x = torch.randn(2, 64, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)


def test_residual_variants_start_as_what_comes_before_them(x: torch.Tensor) -> None:
    x = x.float()
    torch.testing.assert_close(build("sam_residual", 8)(x), x)
    csm = build("csm_residual", 8)
    torch.testing.assert_close(csm(x), csm[0](x))  # type: ignore[index]


@pytest.mark.parametrize("name", attngrid.list_attentions())
def test_one_position_and_constant_input_stay_finite(name: str) -> None:
    for x in (torch.randn(2, 4, 1, 1), torch.full((2, 4, 3, 3), 5.0)):
        x.requires_grad_()
        out = x if name == "none" else build(name, 4)(x)
        out.sum().backward()
        assert out.isfinite().all()
        assert x.grad is not None
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", ["se", "cbam", "csm"])
def test_hidden_width_is_at_least_one(name: str) -> None:
    assert build(name, 8, reduction=16)(torch.randn(1, 8, 2, 2)).shape == (1, 8, 2, 2)


@pytest.mark.parametrize("name", ["se", "cbam", "csm"])
def test_reduction_below_one_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="reduction must be at least 1, found 0"):
        build(name, 8, reduction=0)


def test_autocast_does_not_round_the_statistics() -> None:
    """Mean 30, deviation 0.01: bfloat16 has no digits left for it, float32 has."""
    seen: list[torch.Tensor] = []
    module = SqueezeExcitation(4)
    module.mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = 30 + 0.01 * torch.randn(2, 4, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module(x)
    assert seen[0].dtype == torch.float32
    torch.testing.assert_close(seen[0], x.mean((2, 3)))
