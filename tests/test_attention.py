"""Each module against its equation written out in NumPy, loop by loop."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import timm.layers
import torch
from attngrid.models.forms import literal_forms
from numpy.typing import NDArray
from timm.layers.cbam import CbamModule
from timm.layers.non_local_attn import NonLocalAttn
from torch import nn
from torch.func import functional_call

import attngrid
from attngrid.core.errors import ConfigError, UnknownNameError
from attngrid.models import forms
from attngrid.models.attention.bam import BAM
from attngrid.models.attention.cbam import CBAM
from attngrid.models.attention.csm import ChannelSpatialAttention
from attngrid.models.attention.maf import MAF, MAFInBAM, MAFInCBAM
from attngrid.models.attention.sam import SpatialSelfAttention
from attngrid.models.attention.se import SqueezeExcitation, SqueezeExcitationV3
from attngrid.models.attention.srap import SRAP, Largest
from attngrid.models.attention.statistics import CHANNEL, POSITION, STATISTICS, deviation, squeeze
from attngrid.models.registry import find_attention

Array = NDArray[np.float64]

MODULES = [name for name in attngrid.list_attentions() if name != "none"]
REDUCED = ["se", "cbam", "csm", "bam", "maf", "maf_c", "maf_b", "srap"]


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
        out[n] = spatial_gate_by_hand(spatial, ("max", "avg"), image)
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


def se_v3_by_hand(module: SqueezeExcitationV3, x: Array) -> Array:
    out = np.zeros_like(x)
    for n, image in enumerate(x):
        logits = mlp(module.mlp, np.array([plane.mean() for plane in image]))
        gate = np.clip(logits / 6 + 0.5, 0, 1)
        out[n] = gate[:, None, None] * image
    return out


def std(values: Array) -> float:
    """With Bessel's correction, 0 for one value."""
    values = values.flatten()
    if len(values) == 1:
        return 0.0
    average = sum(values) / len(values)
    return float(np.sqrt(sum((value - average) ** 2 for value in values) / (len(values) - 1)))


NUMPY = {"avg": np.mean, "max": np.max, "std": std}


def per_channel(name: str, image: Array) -> Array:
    return np.array([NUMPY[name](plane) for plane in image])


def per_position(name: str, image: Array) -> Array:
    _, height, width = image.shape
    return np.array([[NUMPY[name](image[:, i, j]) for j in range(width)] for i in range(height)])


def batch_norm(module: nn.Module, values: Array) -> Array:
    """In evaluation mode, over the first dimension's channels."""
    shape = (-1,) + (1,) * (values.ndim - 1)
    mean, var, weight, bias = (
        array(getattr(module, name)).reshape(shape)
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    return (values - mean) / np.sqrt(var + module.eps) * weight + bias


def convolution(layer: nn.Conv2d, image: Array) -> Array:
    """Sum over channels and kernel at every position, zero-padded, stride 1."""
    kernel, padding, dilation = array(layer.weight), layer.padding[0], layer.dilation[0]
    outputs, _, size, _ = kernel.shape
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    out = np.zeros((outputs, *image.shape[1:]))
    for i in range(image.shape[1]):
        for j in range(image.shape[2]):
            rows = [i + dilation * step for step in range(size)]
            columns = [j + dilation * step for step in range(size)]
            window = padded[:, rows][:, :, columns]
            out[:, i, j] = (kernel * window).sum(axis=(1, 2, 3))
    return out if layer.bias is None else out + array(layer.bias)[:, None, None]


def gate_by_hand(names: tuple[str, ...]) -> Callable[..., Array]:
    def compute(gate: nn.Module, image: Array) -> Array:
        pooled = np.stack([per_position(name, image) for name in names])
        return sigmoid(batch_norm(gate.bn, convolution(gate.conv, pooled)))

    return compute


def spatial_gate_by_hand(gate: nn.Module, names: tuple[str, ...], image: Array) -> Array:
    return gate_by_hand(names)(gate, image) * image


def maf_by_hand(module: MAF, x: Array) -> Array:
    out = np.zeros_like(x)
    for n, image in enumerate(x):
        squeezed = np.concatenate([per_channel("avg", image), per_channel("std", image)])
        out[n] = sigmoid(mlp(module.dbr.mlp, squeezed))[:, None, None] * image
    return out


def maf_c_by_hand(module: MAFInCBAM, x: Array) -> Array:
    gated = maf_by_hand(module[0], x)
    return np.stack([spatial_gate_by_hand(module[1], ("avg", "std"), image) for image in gated])


def bam_spatial_by_hand(module: BAM, image: Array) -> Array:
    for layer in module.spatial:
        if isinstance(layer, nn.Conv2d):
            image = convolution(layer, image)
        elif isinstance(layer, nn.BatchNorm2d):
            image = batch_norm(layer, image)
        else:
            image = np.maximum(image, 0)
    return image


def bam_by_hand(module: BAM, x: Array) -> Array:
    out = np.zeros_like(x)
    for n, image in enumerate(x):
        if isinstance(module, MAFInBAM):
            squeezed = np.concatenate([per_channel("avg", image), per_channel("std", image)])
            channel = mlp(module.channel.mlp, squeezed)
        else:
            first, bn, _, second = module.channel.mlp
            hidden = array(first.weight) @ per_channel("avg", image) + array(first.bias)
            hidden = np.maximum(batch_norm(bn, hidden), 0)
            channel = array(second.weight) @ hidden + array(second.bias)
        spatial = bam_spatial_by_hand(module, image)
        channel = channel[:, None, None]
        fused = channel * spatial if module.product else channel + spatial
        out[n] = image * (1 + sigmoid(fused))
    return out


def attention_received_by_hand(module: SpatialSelfAttention, image: Array) -> Array:
    """Eq. 5's s_ij, every one of them; the mean over the queries j of what each i receives."""
    b, c = (
        array(layer.weight)[:, :, 0, 0] @ image.reshape(len(image), -1) + array(layer.bias)[:, None]
        for layer in (module.key, module.query)
    )
    scores_ij = np.exp(b.T @ c)
    received = (scores_ij / scores_ij.sum(axis=0)).mean(axis=1)
    return received.reshape(image.shape[1:])


def srap_by_hand(names: tuple[str, ...], rates: tuple[float, ...]) -> Callable[..., Array]:
    def compute(module: SRAP, x: Array) -> Array:
        out = np.zeros_like(x)
        for n, image in enumerate(x):
            channels = len(image)
            sizes = [int(rate * channels) for rate in rates[:-1]]
            sizes.append(channels - sum(sizes))
            lists = [
                sorted(per_channel(name, image), reverse=True)[:size]
                for name, size in zip(names, sizes, strict=True)
            ]
            selected = []
            while any(lists):
                for values in lists:
                    if values:
                        selected.append(values.pop(0))
            product = np.prod([per_channel(name, image) for name in names], axis=0)
            w_c = np.maximum(mlp(module.mlp, np.array(selected)) + sigmoid(product), 0)
            pooled = np.stack([per_position(name, image) for name in names])
            w_s = batch_norm(module.bn, convolution(module.conv, pooled))[0]
            w_s = w_s + sigmoid(pooled.prod(axis=0))
            out[n] = image * (1 + sigmoid(w_c[:, None, None] * w_s))
        return out

    return compute


BY_HAND = {
    "se": se_by_hand,
    "cam": se_by_hand,
    "cbam": cbam_by_hand,
    **dict.fromkeys(("sam", "sam_r8", "sam_residual", "sam_danet"), sam_by_hand),
    **dict.fromkeys(("csm", "csm_r8", "csm_residual", "csm_danet", "csm_sam_first"), csm_by_hand),
    "se_v3": se_v3_by_hand,
    **dict.fromkeys(("bam", "bam_product", "maf_b"), bam_by_hand),
    "maf": maf_by_hand,
    "maf_c": maf_c_by_hand,
    "srap": srap_by_hand(("avg", "std"), (1 / 2, 1 / 2)),
    "srap_avg_max": srap_by_hand(("avg", "max"), (1 / 2, 1 / 2)),
    "srap_avg_max_std": srap_by_hand(("avg", "max", "std"), (1 / 3, 1 / 3, 1 / 3)),
}


def build(name: str, channels: int, **options: int) -> nn.Module:
    entry = find_attention(name)
    module: nn.Module = entry.load()(channels, **entry.options, **options)
    return module


@pytest.mark.parametrize("name", BY_HAND)
def test_module_computes_its_equation(name: str, x: torch.Tensor) -> None:
    module = randomise(build(name, 8))
    expected = BY_HAND[name](module, x.numpy())  # type: ignore[operator]
    np.testing.assert_allclose(array(module(x)), expected, rtol=1e-9, atol=1e-11)


def w_s_by_hand(names: tuple[str, ...]) -> Callable[..., Array]:
    def compute(module: SRAP, image: Array) -> Array:
        pooled = np.stack([per_position(name, image) for name in names])
        return batch_norm(module.bn, convolution(module.conv, pooled))[0] + sigmoid(pooled.prod(0))

    return compute


# where the module that has a map sits in the one of this name, and the map
MAPS = {
    "cbam": ("1", gate_by_hand(("max", "avg"))),
    "maf_c": ("1", gate_by_hand(("avg", "std"))),
    **dict.fromkeys(("bam", "bam_product", "maf_b"), ("", bam_spatial_by_hand)),
    "srap": ("", w_s_by_hand(("avg", "std"))),
    "srap_avg_max": ("", w_s_by_hand(("avg", "max"))),
    "srap_avg_max_std": ("", w_s_by_hand(("avg", "max", "std"))),
    **dict.fromkeys(
        ("sam", "sam_r8", "sam_residual", "sam_danet"), ("", attention_received_by_hand)
    ),
    **dict.fromkeys(
        ("csm", "csm_r8", "csm_residual", "csm_danet"), ("1", attention_received_by_hand)
    ),
    "csm_sam_first": ("0", attention_received_by_hand),
}


@pytest.mark.parametrize("name", attngrid.list_attentions())
def test_the_map_of_a_module_is_the_term_of_its_equation(name: str, x: torch.Tensor) -> None:
    module = nn.Identity() if name == "none" else randomise(build(name, 8))
    having = [where for where, part in module.named_modules() if hasattr(part, "spatial_map")]
    if name not in MAPS:  # it weighs channels only
        assert not having
        return
    where, by_hand = MAPS[name]
    assert having == [where]
    part = module.get_submodule(where)
    expected = np.stack([by_hand(part, image).reshape(1, 5, 4) for image in x.numpy()])
    np.testing.assert_allclose(array(part.spatial_map(x)), expected, rtol=1e-9, atol=1e-11)


def test_attention_received_sums_to_one_over_more_positions_than_are_scored_at_once() -> None:
    module = randomise(SpatialSelfAttention(2, key_reduction=2))
    x = torch.randn(2, 2, 19, 21, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    received = array(module.spatial_map(x))  # type: ignore[operator]
    np.testing.assert_allclose(received.sum(axis=(1, 2, 3)), 1, rtol=1e-12)
    expected = [attention_received_by_hand(module, image) for image in x.numpy()]  # type: ignore[arg-type]
    np.testing.assert_allclose(received[:, 0], expected, rtol=1e-9)
    assert not received.std() < 1e-4  # and says something


@pytest.mark.parametrize(
    ("names", "rates"),
    [
        (("avg", "std"), (0.3, 0.7)),
        (("avg", "max", "std"), (0.5, 0.2, 0.3)),
        (("max", "std"), (0, 1)),
    ],
)
def test_srap_selects_by_its_rates(
    names: tuple[str, ...], rates: tuple[float, ...], x: torch.Tensor
) -> None:
    """Lists of different lengths: what is left of the longer ones follows in order."""
    module = randomise(SRAP(8, statistics=names, rates=rates))
    expected = srap_by_hand(names, rates)(module, x.numpy())
    np.testing.assert_allclose(array(module(x)), expected, rtol=1e-9, atol=1e-11)


def test_what_srap_selects_is_on_its_device_and_in_no_checkpoint() -> None:
    module = SRAP(8, statistics=("avg", "max", "std"))
    assert module.to("meta").interleaved.device.type == "meta"
    assert not any("interleaved" in name for name in module.state_dict())


def test_what_a_gpu_selects_is_what_topk_does() -> None:
    """Largest first, whole rows too; its gradient goes to where each value was."""
    rows = torch.randn(3, 2, 7, dtype=torch.float64).requires_grad_()
    for count in (1, 4, 7):
        grad = torch.randn(3, 2, count, dtype=torch.float64)
        found, expected = Largest.apply(rows, count), rows.topk(count, -1).values
        assert found.equal(expected)
        (one,), (other,) = (torch.autograd.grad(out, rows, grad) for out in (found, expected))
        assert one.equal(other)
    assert torch.autograd.gradcheck(Largest.apply, (rows, 4))


def test_srap_starts_as_its_authors_do() -> None:
    model = attngrid.create_model("mobilenet_v2", "srap", num_classes=10)
    weights = torch.cat([m.mlp[0].weight.flatten() for m in model.modules() if type(m) is SRAP])
    assert weights.std().item() == pytest.approx(0.01, rel=0.02)
    assert {m.bn.momentum for m in model.modules() if type(m) is SRAP} == {0.01}


@pytest.mark.parametrize("rates", [(0.5, 0.4), (0.5, 0.5, 0.0), (1.5, -0.5)])
def test_rates_must_be_shares_that_sum_to_one(rates: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="rates must be 2 shares that sum to 1"):
        SRAP(8, rates=rates)


@pytest.mark.parametrize("module", [MAF, MAFInCBAM, MAFInBAM, SRAP])
def test_an_unknown_statistic_is_named_and_none_refused(module: type[nn.Module]) -> None:
    with pytest.raises(ConfigError, match="statistics must be one or more of avg, max, std"):
        module(8, statistics=())
    with pytest.raises(UnknownNameError, match="unknown statistic 'sdt': did you mean std"):
        module(8, statistics=("avg", "sdt"))


def test_deviation_is_sound_where_squares_of_float32_are_not() -> None:
    x = 30 + 0.01 * torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = x.double().std((2, 3))
    for found in (deviation(x, CHANNEL).flatten(1), squeeze(x, ["std"], CHANNEL)[1][0]):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0)
    squares = ((x**2).mean((2, 3)) - x.mean((2, 3)) ** 2).clamp(min=0).sqrt()
    assert ((squares - expected).abs() / expected).max() > 0.1  # what is avoided
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert deviation(x.bfloat16(), CHANNEL).dtype == torch.float32
        assert squeeze(x.bfloat16(), ["std"], CHANNEL)[1][0].dtype == torch.float32


def test_every_registered_module_is_covered_by_an_equation() -> None:
    assert set(BY_HAND) | {"none"} == set(attngrid.list_attentions())


@pytest.mark.parametrize("name", MODULES)
def test_gradients_match_finite_differences(name: str) -> None:
    """To the input and to every parameter."""
    module = randomise(build(name, 8))
    # a smooth point: no ties between maxima, no kink of the ReLU nearby; modest scores
    for parameter in module.parameters():
        parameter.data.mul_(0.3)
    names, parameters = zip(*module.named_parameters(), strict=True)

    def call(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = functional_call(module, dict(zip(names, values, strict=True)), x)
        return out

    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 8, 3, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(call, (x, *parameters))


def assert_equal_with_gradient(ours: nn.Module, theirs: Callable[..., torch.Tensor]) -> None:
    x = torch.randn(2, 64, 7, 7, dtype=torch.float64, requires_grad=True)
    found, expected = ours(x), theirs(x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    gradients = (torch.autograd.grad(out.square().sum(), x)[0] for out in (found, expected))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def copy_mlp(mlp: nn.Sequential, theirs: nn.Module) -> None:
    """To timm's pair of 1×1 convolutions."""
    for layer, conv in ((mlp[0], theirs.fc1), (mlp[2], theirs.fc2)):
        conv.weight.data.copy_(layer.weight[:, :, None, None])
        conv.bias.data.copy_(layer.bias)


def test_se_equals_timms_with_the_same_weights() -> None:
    ours = randomise(SqueezeExcitation(64, reduction=16))
    theirs = timm.layers.SEModule(64, rd_channels=4).double()
    copy_mlp(ours.mlp, theirs)
    assert_equal_with_gradient(ours, theirs)


@pytest.mark.parametrize("training", [False, True])
def test_cbam_equals_timms_with_the_same_weights(training: bool) -> None:
    """timm's MLP has no biases unless told, and its convolution takes [avg; max], not [max; avg].

    What copied weights do not show: it rounds C/r to the nearest where ours rounds down, and its
    BatchNorm has momentum 0.1 and starts at 1, not at 0.01 and 0.
    """
    ours = randomise(CBAM(64)).train(training)
    theirs = CbamModule(64, mlp_bias=True).double().train(training)
    channel, spatial = ours
    copy_mlp(channel.mlp, theirs.channel)
    theirs.spatial.conv.bn.load_state_dict(spatial.bn.state_dict())
    theirs.spatial.conv.conv.weight.data.copy_(spatial.conv.weight.flip(1))
    assert_equal_with_gradient(ours, theirs)


@pytest.mark.parametrize("name", ["sam", "sam_residual"])
def test_sam_is_timms_non_local_block_without_its_last_convolution(name: str) -> None:
    """timm's returns x + BN(z(out)): z is the identity here, and the BatchNorm scales by γ.

    Its values are as narrow as its keys, so that ``sam_r8`` and ``sam_danet`` are not there.
    """
    ours = randomise(build(name, 64))
    for parameter in ours.parameters():
        parameter.data.mul_(0.1)
    theirs = NonLocalAttn(64, use_scale=False, rd_channels=64).double().eval()
    for layer, conv in ((ours.query, theirs.t), (ours.key, theirs.p), (ours.value, theirs.g)):
        conv.load_state_dict(layer.state_dict())
    nn.init.dirac_(theirs.z.weight)
    nn.init.ones_(theirs.norm.weight)
    theirs.norm.eps = 1e-30
    if ours.gamma is None:
        assert_equal_with_gradient(ours, lambda x: theirs(x) - x)
    else:
        theirs.norm.weight.data.mul_(ours.gamma)
        assert_equal_with_gradient(ours, theirs)


def test_residual_variants_start_as_what_comes_before_them(x: torch.Tensor) -> None:
    x = x.float()
    torch.testing.assert_close(build("sam_residual", 8)(x), x)
    csm = build("csm_residual", 8)
    torch.testing.assert_close(csm(x), csm[0](x))  # type: ignore[index]


CRITICAL = {
    "one position": torch.randn(2, 4, 1, 1),
    "zero": torch.zeros(2, 4, 3, 3),
    "constant": torch.full((2, 4, 3, 3), 5.0),
    "far from zero": 30 + 0.01 * torch.randn(2, 4, 3, 3),
}


@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("values", CRITICAL)
@pytest.mark.parametrize("name", MODULES)
def test_values_and_gradients_stay_finite(name: str, values: str, narrow: bool) -> None:
    module, x = build(name, 4), CRITICAL[values].clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=narrow):
        out = module(x.bfloat16() if narrow else x)
    out.float().square().sum().backward()
    for tensor in (out, x.grad, *(parameter.grad for parameter in module.parameters())):
        assert tensor is not None
        assert tensor.isfinite().all()


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Of the whole, in the Euclidean norm."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def step(module: nn.Module, x: torch.Tensor, narrow: bool = False) -> list[torch.Tensor]:
    """The output, and the gradients of its squares' sum to the input and to the parameters."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=narrow):
        out = module(x)
    out.to(torch.promote_types(out.dtype, torch.float32)).square().sum().backward()
    gradients = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    assert x.grad is not None
    return [out.detach(), x.grad, gradients]


@pytest.mark.parametrize("name", MODULES)
def test_float32_agrees_with_float64_at_mean_30_and_deviation_0_01(name: str) -> None:
    """With E[x²]−E[x]² what takes a deviation would be off by 50 times the allowed and more."""
    torch.manual_seed(1)
    module = build(name, 16).eval()  # a BatchNorm in training divides rounding by the deviation
    x = 30 + 0.01 * torch.randn(4, 16, 6, 6)
    out, gradient, _ = step(module, x)
    expected_out, expected_gradient, _ = step(copy.deepcopy(module).double(), x.double())
    assert relative_error(out, expected_out) < 1e-6
    assert relative_error(gradient, expected_gradient) < 1e-3


@pytest.mark.parametrize("name", MODULES)
def test_bfloat16_autocast_stays_within_1_and_5_percent_of_float32(name: str) -> None:
    """1% of the outputs, 5% of the gradients; bfloat16 rounds every value by up to 0.4%."""
    torch.manual_seed(1)
    module = build(name, 32)
    for parameter in module.parameters():
        if not parameter.any():  # γ, biases: a gradient for all that is behind them
            parameter.data.fill_(0.5)
    x = torch.randn(8, 32, 6, 6).bfloat16()
    found = step(module, x, narrow=True)
    module.zero_grad()
    expected = step(module, x.float())
    assert found[0].dtype == x.dtype
    for tensors, allowed in zip(zip(found, expected, strict=True), (0.01, 0.05, 0.05), strict=True):
        assert relative_error(*tensors) < allowed


@pytest.mark.parametrize("name", REDUCED)
def test_hidden_width_is_at_least_one(name: str) -> None:
    assert build(name, 8, reduction=16).eval()(torch.randn(1, 8, 2, 2)).shape == (1, 8, 2, 2)


@pytest.mark.parametrize("name", REDUCED)
def test_reduction_below_one_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="reduction must be at least 1, found 0"):
        build(name, 8, reduction=0)


@pytest.mark.parametrize("over", [CHANNEL, POSITION], ids=["channel", "position"])
@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_of_bfloat16_maps_accumulate_in_float32(
    name: str, over: tuple[int, ...]
) -> None:
    x = (3 + torch.randn(2, 512, 32, 32)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, (found,) = squeeze(x, [name], over)
    assert found.dtype == torch.float32
    expected = STATISTICS[name](x.double(), over).reshape(found.shape)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("size", [(4, 16, 6, 6), (2, 8, 1, 1), (3, 16, 5, 7)], ids=str)
@pytest.mark.parametrize("piece", [1, forms.PIECE], ids=["by image", "at once"])
def test_fast_forms_agree_with_the_literal_ones(
    name: str, size: tuple[int, ...], piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs and gradients; rounded to eighths, so that maxima tie as they do in bfloat16."""
    monkeypatch.setattr(forms, "PIECE", piece)
    torch.manual_seed(2)
    module = build(name, size[1]).train(size[-1] > 1)
    for parameter in module.parameters():
        if not parameter.any():
            parameter.data.fill_(0.5)
    x = (8 * torch.randn(size)).round() / 8
    for images in (x, x.contiguous(memory_format=torch.channels_last)):
        found = step(copy.deepcopy(module), images)
        with literal_forms():
            expected = step(copy.deepcopy(module), images)
        for mine, theirs in zip(found, expected, strict=True):
            assert relative_error(mine, theirs) < 1e-5 or theirs.norm() < 1e-5


@pytest.mark.parametrize("piece", [1, forms.PIECE], ids=["by image", "at once"])
@pytest.mark.parametrize("mean", [0, 3, 30])
@pytest.mark.parametrize("over", [CHANNEL, POSITION], ids=["channel", "position"])
@pytest.mark.parametrize("names", [("avg",), ("max",), ("std",), ("avg", "max", "std")], ids=str)
def test_gradients_of_bfloat16_maps_are_rounded_a_few_times_at_most(
    names: tuple[str, ...],
    over: tuple[int, ...],
    mean: int,
    piece: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of statistics alone, and of the map with them; by float64's, and beside PyTorch's own."""
    monkeypatch.setattr(forms, "PIECE", piece)
    torch.manual_seed(4)
    x = (mean + torch.randn(3, 16, 14, 14)).bfloat16().to(memory_format=torch.channels_last)
    of_map = 3 * torch.randn(x.shape).bfloat16()
    shape = (3, 16) if over == CHANNEL else (3, 1, 14, 14)
    of_values = [torch.randn(shape) for _ in names]

    def gradient(x: torch.Tensor, alone: bool) -> torch.Tensor:
        x = x.detach().requires_grad_()
        x_out, values = squeeze(x, names, over)
        outputs, gradients = values, of_values
        if not alone:
            outputs, gradients = [x_out, *values], [of_map, *of_values]
        of = [g.to(value.dtype) for g, value in zip(gradients, outputs, strict=True)]
        torch.autograd.backward(outputs, of)
        assert x.grad is not None
        return x.grad

    for alone, times in ((True, 2), (False, 1.3)):
        ours = gradient(x, alone)
        with literal_forms():
            pytorchs, exact = gradient(x, alone), gradient(x.double(), alone)
        assert relative_error(ours, exact) < times * relative_error(pytorchs, exact) + 1e-4


def test_perceptrons_and_normalisation_of_a_bfloat16_map_are_in_float32() -> None:
    seen: list[torch.dtype] = []
    for module in (build("maf_c", 16), build("srap", 16)):
        for layer in module.modules():
            if isinstance(layer, nn.Linear | nn.BatchNorm2d):
                layer.register_forward_hook(
                    lambda _, inputs, out: seen.extend((inputs[0].dtype, out.dtype))
                )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            module(torch.randn(2, 16, 6, 6).bfloat16())
    assert len(seen) == 2 * 2 * (2 + 1)
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("name", ["se", "maf"])
def test_a_bfloat16_module_runs_under_autocast(name: str) -> None:
    """Weights and all, as ``model.bfloat16()`` makes it."""
    module = build(name, 16).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(torch.randn(2, 16, 6, 6).bfloat16())
    assert out.dtype == torch.bfloat16
    out.sum().backward()


def test_a_squeezed_map_may_be_left_or_taken_alone() -> None:
    """Gradients of the statistics alone, and of the map alone."""
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    everything = tuple(STATISTICS)
    for over in (CHANNEL, POSITION):
        assert torch.autograd.gradcheck(lambda x: tuple(squeeze(x, everything, over)[1]), x)  # noqa: B023
        assert torch.autograd.gradcheck(lambda x: squeeze(x, everything, over)[0], x)  # noqa: B023
        assert torch.autograd.gradcheck(lambda x: squeeze(x, ["avg"], over)[1][0], x)  # noqa: B023


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith("sam")])
def test_autocast_does_not_round_the_statistics(name: str) -> None:
    """Mean 30, deviation 0.01: bfloat16 has no digits left for it, float32 has."""
    seen: list[torch.Tensor] = []
    module = build(name, 4)
    for layer in module.modules():
        pooled = isinstance(layer, nn.Conv2d) and layer.kernel_size == (7, 7)
        if pooled or (isinstance(layer, nn.Sequential) and isinstance(layer[0], nn.Linear)):
            layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = 30 + 0.01 * torch.randn(2, 4, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module(x)
    assert seen
    assert {statistics.dtype for statistics in seen} == {torch.float32}
    if not name.startswith(("csm_sam_first", "srap")):  # another's output; sorted
        torch.testing.assert_close(seen[0][:2, :4], x.mean((2, 3)))
