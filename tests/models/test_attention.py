"""Each module equals its equation, written in NumPy with loops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import timm.layers
import torch
from numpy.typing import NDArray
from timm.layers.cbam import CbamModule
from timm.layers.non_local_attn import NonLocalAttn
from torch import nn
from torch.func import functional_call

import attngrid
from attngrid.core.errors import ConfigError, UnknownNameError
from attngrid.models.attention.bam import BAM
from attngrid.models.attention.cbam import CBAM
from attngrid.models.attention.csm import ChannelSpatialAttention
from attngrid.models.attention.maf import MAF, MAFInBAM, MAFInCBAM
from attngrid.models.attention.sam import SpatialSelfAttention
from attngrid.models.attention.se import SqueezeExcitation, SqueezeExcitationV3
from attngrid.models.attention.srap import SRAP
from attngrid.models.registry import find_attention

Array = NDArray[np.float64]

MODULES = [name for name in attngrid.list_attentions() if name != "none"]
REDUCED = ["se", "cbam", "csm", "bam", "maf", "maf_c", "maf_b", "srap"]


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 8, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def randomise(module: nn.Module) -> nn.Module:
    """Set double precision, evaluation mode, and random parameters and statistics."""
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
    """Eq. 5 for each position; B is the key, C the query and D the value."""

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
    """The standard deviation with Bessel's correction; 0 for one value."""
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
    """BatchNorm in evaluation mode; the first dimension has the channels."""
    shape = (-1,) + (1,) * (values.ndim - 1)
    mean, var, weight, bias = (
        array(getattr(module, name)).reshape(shape)
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    return (values - mean) / np.sqrt(var + module.eps) * weight + bias


def convolution(layer: nn.Conv2d, image: Array) -> Array:
    """A zero-padded convolution with stride 1: a sum over channels and kernel."""
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
    """The mean over the queries j of eq. 5's s_ij, for each position i."""
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
            shortest = min(sizes)
            selected = [values[rank] for rank in range(shortest) for values in lists]
            selected += [value for values in lists for value in values[shortest:]]
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


# the path of the submodule that has the map, and the map
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
def test_spatial_map_is_the_term_of_the_equation(name: str, x: torch.Tensor) -> None:
    module = nn.Identity() if name == "none" else randomise(build(name, 8))
    found = [path for path, part in module.named_modules() if hasattr(part, "spatial_map")]
    if name not in MAPS:  # the module has channel attention only
        assert not found
        return
    path, by_hand = MAPS[name]
    assert found == [path]
    part = module.get_submodule(path)
    expected = np.stack([by_hand(part, image).reshape(1, 5, 4) for image in x.numpy()])
    np.testing.assert_allclose(array(part.spatial_map(x)), expected, rtol=1e-9, atol=1e-11)


def test_attention_map_of_several_chunks_sums_to_one() -> None:
    module = randomise(SpatialSelfAttention(2, key_reduction=2))
    x = torch.randn(2, 2, 19, 21, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    received = array(module.spatial_map(x))  # type: ignore[operator]
    np.testing.assert_allclose(received.sum(axis=(1, 2, 3)), 1, rtol=1e-12)
    expected = [attention_received_by_hand(module, image) for image in x.numpy()]  # type: ignore[arg-type]
    np.testing.assert_allclose(received[:, 0], expected, rtol=1e-9)
    assert not received.std() < 1e-4  # the map is not uniform


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
    module = randomise(SRAP(8, statistics=names, rates=rates))
    expected = srap_by_hand(names, rates)(module, x.numpy())
    np.testing.assert_allclose(array(module(x)), expected, rtol=1e-9, atol=1e-11)


def srap_transcribed(module: SRAP, x_NCHW: torch.Tensor) -> torch.Tensor:
    """SRAP's equations with average and deviation in training mode, for autograd."""

    def deviation(x: torch.Tensor, dims: tuple[int, ...], n: int) -> torch.Tensor:
        return ((x - x.mean(dims, keepdim=True)) ** 2).sum(dims).div(n - 1).sqrt()

    channels, height, width = x_NCHW.shape[1:]
    first, _, second = module.mlp
    p_NC = (x_NCHW.mean((2, 3)), deviation(x_NCHW, (2, 3), height * width))
    largest = [p.sort(1, descending=True).values for p in p_NC]
    selected = [values[:, rank] for rank in range(channels // 2) for values in largest]
    hidden = (torch.stack(selected, 1) @ first.weight.T + first.bias).clamp(min=0)
    w_c = (hidden @ second.weight.T + second.bias + (p_NC[0] * p_NC[1]).sigmoid()).clamp(min=0)
    p_NHW = (x_NCHW.mean(1), deviation(x_NCHW, (1,), channels))
    padded = nn.functional.pad(torch.stack(p_NHW, 1), (3, 3, 3, 3))
    windows = padded.unfold(2, 7, 1).unfold(3, 7, 1)
    conv = torch.einsum("nkhwij,kij->nhw", windows, module.conv.weight[0])
    normed = (conv - conv.mean()) / (conv.var(correction=0) + module.bn.eps).sqrt()
    w_s = module.bn.weight * normed + module.bn.bias + (p_NHW[0] * p_NHW[1]).sigmoid()
    return x_NCHW * (1 + (w_c[:, :, None, None] * w_s[:, None]).sigmoid())


def test_srap_and_its_gradients_equal_the_equations(x: torch.Tensor) -> None:
    module = randomise(SRAP(8, reduction=2)).train()
    x.requires_grad_()
    found, expected = module(x), srap_transcribed(module, x)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    inputs = [x, *module.parameters()]
    gradients = [torch.autograd.grad(out.square().sum(), inputs) for out in (found, expected)]
    assert all(gradient.any() for gradient in gradients[1])
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)


def test_srap_interleaves_up_to_the_shortest_list_and_appends_the_rest() -> None:
    """The order is a1 m1 c1 a2 m2 c2 a3 a4 m3 m4, with statistics a, m and c."""
    module = SRAP(10, statistics=("avg", "max", "std"), rates=(0.4, 0.4, 0.2))
    ranks = torch.arange(10, 0, -1.0)  # descending, so a value's rank is its position
    lists = [(offset + ranks)[None] for offset in (100, 200, 300)]
    selected = module.select([values[:, torch.randperm(10)] for values in lists])
    expected = [110, 210, 310, 109, 209, 309, 108, 107, 208, 207]
    assert selected.tolist() == [expected]


def test_srap_is_initialised_as_in_its_authors_code() -> None:
    model = attngrid.create_model("mobilenet_v2", "srap", num_classes=10)
    weights = torch.cat([m.mlp[0].weight.flatten() for m in model.modules() if type(m) is SRAP])
    assert weights.std().item() == pytest.approx(0.01, rel=0.02)
    assert {m.bn.momentum for m in model.modules() if type(m) is SRAP} == {0.01}


@pytest.mark.parametrize("rates", [(0.5, 0.4), (0.5, 0.5, 0.0), (1.5, -0.5)])
def test_rates_must_be_shares_that_sum_to_one(rates: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="rates must be 2 shares that sum to 1"):
        SRAP(8, rates=rates)


@pytest.mark.parametrize("module", [MAF, MAFInCBAM, MAFInBAM, SRAP])
def test_unknown_statistics_and_an_empty_list_are_errors(module: type[nn.Module]) -> None:
    with pytest.raises(ConfigError, match="statistics must be one or more of avg, max, std"):
        module(8, statistics=())
    with pytest.raises(UnknownNameError, match="unknown statistic 'sdt': did you mean std"):
        module(8, statistics=("avg", "sdt"))


def test_every_registered_module_is_covered_by_an_equation() -> None:
    assert set(BY_HAND) | {"none"} == set(attngrid.list_attentions())


# the other modules differ from these only in width or order
DIFFERENT = [name for name in MODULES if not name.endswith(("_r8", "_residual", "_first", "_max"))]


@pytest.mark.parametrize("name", DIFFERENT)
def test_gradients_match_finite_differences(name: str) -> None:
    """These are the gradients to the input and to every parameter."""
    module = randomise(build(name, 8))
    # a smooth point: no equal maxima, no ReLU near 0, small scores
    for parameter in module.parameters():
        parameter.data.mul_(0.3)
    names, parameters = zip(*module.named_parameters(), strict=True)

    def call(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = functional_call(module, dict(zip(names, values, strict=True)), x)
        return out

    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 8, 3, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(call, (x, *parameters), fast_mode=True)


def assert_equal_with_gradient(ours: nn.Module, theirs: Callable[..., torch.Tensor]) -> None:
    x = torch.randn(2, 64, 7, 7, dtype=torch.float64, requires_grad=True)
    found, expected = ours(x), theirs(x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    gradients = (torch.autograd.grad(out.square().sum(), x)[0] for out in (found, expected))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def copy_mlp(mlp: nn.Sequential, theirs: nn.Module) -> None:
    """Copy weights to timm's pair of 1×1 convolutions."""
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
    """timm's MLP has no biases by default, and its convolution takes [avg; max], not [max; avg].

    Other differences do not show with copied weights: timm rounds C/r to the nearest integer, ours
    rounds down; timm's BatchNorm has momentum 0.1 and initial weight 1, ours has 0.01 and 0.
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
    """timm returns x + BN(z(out)): here z is the identity, and the BatchNorm scales by γ.

    Its values have as many channels as its keys, so it cannot be ``sam_r8`` or ``sam_danet``.
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


def test_residual_sam_starts_as_the_identity(x: torch.Tensor) -> None:
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


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("name", DIFFERENT)
def test_values_and_gradients_stay_finite(name: str, autocast: bool) -> None:
    for values in CRITICAL.values():
        module, x = build(name, 4), values.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            out = module(x.bfloat16() if autocast else x)
        out.float().square().sum().backward()
        for tensor in (out, x.grad, *(parameter.grad for parameter in module.parameters())):
            assert tensor is not None
            assert tensor.isfinite().all()


def test_a_bfloat16_map_is_gated_in_bfloat16() -> None:
    for name in MODULES:
        module = build(name, 16).eval()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert module(torch.randn(2, 16, 6, 6).bfloat16()).dtype == torch.bfloat16


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The relative error in the Euclidean norm."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def step(module: nn.Module, x: torch.Tensor, autocast: bool = False) -> list[torch.Tensor]:
    """The output, and the gradients of its sum of squares to input and parameters."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        out = module(x)
    out.to(torch.promote_types(out.dtype, torch.float32)).square().sum().backward()
    gradients = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    assert x.grad is not None
    return [out.detach(), x.grad, gradients]


@pytest.mark.parametrize("name", MODULES)
def test_bfloat16_autocast_stays_within_1_and_5_percent_of_float32(name: str) -> None:
    """Outputs differ by 1 % at most, gradients by 5 %; bfloat16 rounds values by up to 0.4 %."""
    torch.manual_seed(1)
    module = build(name, 32)
    for parameter in module.parameters():
        if not parameter.any():  # γ and biases: else earlier layers have no gradient
            parameter.data.fill_(0.5)
    x = torch.randn(8, 32, 6, 6).bfloat16()
    found = step(module, x, autocast=True)
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


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith("sam")])
def test_autocast_does_not_round_the_statistics(name: str) -> None:
    """Mean 30, deviation 0.01: float32 can represent this deviation, bfloat16 cannot."""
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
    if not name.startswith(("csm_sam_first", "srap")):  # SAM's output; sorted values
        torch.testing.assert_close(seen[0][:2, :4], x.mean((2, 3)))
