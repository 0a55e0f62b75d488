"""Backbones equal torchvision's, and ``create_model`` builds what its docstring says."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.layers import SEModule
from timm.layers.cbam import CbamModule
from torch import nn

import attngrid
from attngrid.core.errors import ConfigError, UnknownNameError
from attngrid.measure.complexity import count
from attngrid.models.backbones.layers import Conv2d
from attngrid.models.backbones.mobilenet import InvertedResidual
from attngrid.models.registry import find_attention


def copy_in_order(source: nn.Module, target: nn.Module) -> None:
    """Copy parameters and statistics between networks that name their layers differently.

    A 1×1 convolution in one network may be a linear layer in the other.
    """

    def layers(model: nn.Module) -> list[nn.Module]:
        kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
        return [m for name, m in model.named_modules() if isinstance(m, kinds)]

    pairs = list(zip(layers(source), layers(target), strict=True))
    for theirs, ours in pairs:
        state = theirs.state_dict()
        shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
        ours.load_state_dict({name: state[name].reshape(shapes[name]) for name in shapes})


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("resnet18", "resnet18"),
        # torchvision's bottlenecks have the stride in the 3×3, as in v1.5
        ("resnet50_v1.5", "resnet50"),
    ],
)
def test_resnet_equals_torchvisions_with_the_same_weights(ours: str, theirs: str) -> None:
    reference = torchvision.models.get_model(theirs, weights=None)
    model = attngrid.create_model(ours)
    copy_in_order(reference, model)
    x = torch.randn(2, 3, 96, 96)
    torch.testing.assert_close(model.eval()(x), reference.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "groups"), [("resnet50", 1), ("resnext50_32x4d", 32)])
def test_original_bottlenecks_stride_on_the_first_convolution(name: str, groups: int) -> None:
    """The original equals torchvision's network with the stride moved and the same weights."""
    reference = torchvision.models.get_model(name, weights=None)
    for block in reference.modules():
        if isinstance(block, torchvision.models.resnet.Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
    model = attngrid.create_model(name)
    copy_in_order(reference, model)
    x = torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(model.eval()(x), reference.eval()(x), rtol=1e-4, atol=1e-4)
    assert {m.groups for m in model.modules() if isinstance(m, nn.Conv2d)} == {1, groups}


@pytest.mark.parametrize(
    ("attention", "layer"),
    [
        ("se", partial(SEModule, rd_divisor=1)),
        ("cbam", partial(CbamModule, mlp_bias=True)),
    ],
)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("resnet18", "resnet18"),
        pytest.param("resnet50_v1.5", "resnet50", marks=pytest.mark.slow),
    ],
)
def test_resnet_with_attention_equals_timms_with_the_same_weights(
    ours: str, theirs: str, attention: str, layer: Any
) -> None:
    """timm's ``seresnet18`` would round hidden widths to multiples of 8, so 64 channels give 8.

    Its CBAM has no biases by default, and stacks [avg; max].
    """
    reference = timm.create_model(theirs, zero_init_last=False, block_args={"attn_layer": layer})
    reference.train()(torch.randn(4, 3, 96, 96))  # updates the running statistics
    model = attngrid.create_model(ours, attention)
    copy_in_order(reference, model)
    for gate in (m for m in model.modules() if type(m).__name__ == "SpatialGate"):
        gate.conv.weight.data = gate.conv.weight.data.flip(1)  # type: ignore[union-attr,operator]
    x = torch.randn(2, 3, 96, 96)
    torch.testing.assert_close(model.eval()(x), reference.eval()(x), rtol=1e-4, atol=1e-4)


def test_mobilenet_v2_equals_torchvisions_with_the_same_weights() -> None:
    """This is without the MAF and SRAP authors' changes; two widths test the rounding."""
    for width in (1.0, 0.75):
        reference = torchvision.models.mobilenet_v2(weights=None, width_mult=width)
        model = attngrid.create_model(
            "mobilenet_v2", width=width, expand_first=False, input_bn=False, conv_head=False
        )
        copy_in_order(reference, model)
        x = torch.randn(2, 3, 96, 96)
        torch.testing.assert_close(model.eval()(x), reference.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", ["large", "small"])
def test_mobilenet_v3_equals_torchvisions_with_the_same_weights(size: str) -> None:
    """The published network has ``se_v3``; ours has no bias before the classifier."""
    reference = torchvision.models.get_model(f"mobilenet_v3_{size}", weights=None).eval()
    model = attngrid.create_model(
        f"mobilenet_v3_{size}",
        "se_v3",
        expand_first=False,
        input_bn=False,
        conv_head=False,
        **({"head_attention": False} if size == "small" else {}),
    ).eval()
    copy_in_order(reference, model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.001  # torchvision uses TensorFlow's value
    reference.classifier[0].bias.data.zero_()
    x = torch.randn(2, 3, 96, 96)
    torch.testing.assert_close(model(x), reference(x), rtol=1e-4, atol=1e-4)


def test_mobilenet_v1_is_the_2017_network_without_the_authors_changes() -> None:
    """Howard et al. (2017), Table 4, prints 4.2 million parameters and 569 million MACs."""
    plain = {"residual": False, "input_bn": False, "conv_head": False}
    model = attngrid.create_model("mobilenet_v1", **plain)
    assert f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}" == "4.2"
    assert f"{count(model, 224)['macs'] / 1e6:.0f}" == "569"
    modules = attngrid.create_model("mobilenet_v1").modules()
    skips = [m.residual for m in modules if type(m) is InvertedResidual]
    assert sum(skips) == 1 + 1 + 5 + 1  # every block with equal input and output shapes
    assert len(skips) == 13


def test_mobilenets_have_the_authors_input_batch_norm_and_convolution_head() -> None:
    for name in (n for n in attngrid.list_backbones() if n.startswith("mobilenet")):
        model = attngrid.create_model(name, num_classes=120)
        first = next(m for m in model.modules() if not list(m.children()))
        assert isinstance(first, nn.BatchNorm2d)
        assert first.num_features == 3
        last = [m for m in model.modules() if isinstance(m, nn.Conv2d)][-1]
        assert last.kernel_size == (1, 1)
        assert last.out_channels == 120
        expected = (2 / (last.in_channels + 120)) ** 0.5  # Xavier
        assert last.weight.std().item() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("backbone", "attention", "channels"),
    [
        # on the projected output
        ("mobilenet_v2", "se", [16, 24, 24, *[32] * 3, *[64] * 4, *[96] * 3, *[160] * 3, 320]),
        # on the expanded channels; the first block has ratio 1
        (
            "mobilenet_v2",
            "srap",
            [32, 96, 144, 144, 192, 192, 192, *[384] * 4, *[576] * 3, *[960] * 3],
        ),
        ("mobilenet_v1", "srap", [32, 64, 128, 128, 256, 256, *[512] * 6, 1024]),
        ("mobilenet_v1", "maf", [64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]),
        # only in the blocks that have SE in MobileNetV3's tables
        ("mobilenet_v3_large", "cbam", [40, 40, 40, 112, 112, 160, 160, 160]),
        ("mobilenet_v3_large", "se_v3", [72, 120, 120, 480, 672, 672, 960, 960]),
        # the last is on the final convolution
        ("mobilenet_v3_small", "maf_c", [16, 40, 40, 40, 48, 48, 96, 96, 96, 576]),
        ("mobilenet_v3_small", "srap", [16, 96, 240, 240, 120, 144, 288, 576, 576, 576]),
        ("mobilenet_v3_small", "bam", [16, 24, 48]),
        # between stages
        ("mobilenet_v2", "bam", [16, 24, 32]),
        ("mobilenet_v1", "maf_b", [64, 128, 256]),
        ("resnet50", "bam", [256, 512, 1024]),
        ("resnet18", "srap", [64, 64, 128, 128, 256, 256, 512, 512]),
    ],
)
def test_each_module_is_at_its_authors_place(
    backbone: str, attention: str, channels: list[int]
) -> None:
    with torch.device("meta"):
        model = attngrid.create_model(backbone, attention)
    cls = find_attention(attention).load()
    found = []
    for module in model.modules():
        if type(module) is cls:
            module.register_forward_hook(lambda m, args, out: found.append(args[0].shape[1]))
    model.eval()(torch.zeros(1, 3, 64, 64, device="meta"))
    assert found == channels


@pytest.mark.parametrize(
    ("backbone", "blocks", "in_last", "stages"),
    [("resnet18", 8, 2, 4), ("mobilenet_v1", 13, 2, 5), ("mobilenet_v3_large", 15, 3, 5)],
)
def test_placement_works_for_every_backbone_and_module(
    backbone: str, blocks: int, in_last: int, stages: int
) -> None:
    for attention in ("se", "srap", "bam"):
        cls = find_attention(attention).load()
        for placement, expected in (
            ("every_block", blocks),
            ("last_stage", in_last),
            ("stage_end", stages),
        ):
            with torch.device("meta"):
                model = attngrid.create_model(backbone, attention, placement=placement, width=0.125)
            assert sum(type(m) is cls for m in model.modules()) == expected


FAMILIES = ["resnet18", "resnext50_32x4d", *(f"mobilenet_{v}" for v in ("v1", "v2", "v3_small"))]
# modules of every place and every kind of weights
REPRESENTATIVE = ["none", "se", "bam", "sam_danet", "maf_c", "srap_avg_max_std"]


@pytest.mark.parametrize(
    ("backbone", "attention", "stem"),
    [
        *((backbone, "none", "imagenet") for backbone in attngrid.list_backbones()),
        *(("resnet18", attention, "cifar") for attention in attngrid.list_attentions()),
        *((backbone, a, "cifar") for backbone in FAMILIES[1:] for a in REPRESENTATIVE[1:]),
    ],
)
def test_every_pair_builds_and_runs(backbone: str, attention: str, stem: str) -> None:
    model = attngrid.create_model(backbone, attention, stem=stem, num_classes=7, width=0.25)
    side = 64 if stem == "imagenet" else 16
    assert model(torch.zeros(2, 3, side, side)).shape == (2, 7)


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v3_small"])
def test_models_build_and_run_on_the_meta_device(backbone: str) -> None:
    with torch.device("meta"):
        model = attngrid.create_model(backbone, "csm_danet", num_classes=7)
        assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize(
    ("backbone", "attention"),
    [
        *(("resnet18", attention) for attention in REPRESENTATIVE),
        ("mobilenet_v1", "srap_avg_max_std"),
        ("mobilenet_v3_small", "maf_c"),
    ],
)
def test_save_and_load_keeps_the_outputs(backbone: str, attention: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"stem": "cifar", "num_classes": 5, "width": 0.25}
    saved, loaded = (attngrid.create_model(backbone, attention, **options) for _ in range(2))
    with torch.no_grad():
        for parameter in saved.parameters():  # parameters that start at 0 or 1 must be saved, too
            parameter += 0.1 * torch.randn_like(parameter)
    x = torch.randn(2, 3, 16, 16)
    saved.train()(x)  # updates the running statistics
    torch.save(saved.state_dict(), tmp_path / "weights.pt")
    assert not torch.equal(loaded.eval()(x), saved.eval()(x))
    state = torch.load(tmp_path / "weights.pt", weights_only=True)
    loaded.load_state_dict(state, strict=True)
    assert torch.equal(loaded(x), saved(x))
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize("channels", [8, 16])
def test_a_strided_1x1_convolution_of_few_channels_equals_pytorchs(channels: int) -> None:
    """PyTorch's convolution is in the contiguous layout, where oneDNN's gradient is correct."""
    ours = Conv2d(channels, 4, 1, 2, bias=False)
    theirs = nn.Conv2d(channels, 4, 1, 2, bias=False)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, channels, 13, 12)
    found = ours.to(memory_format=torch.channels_last)(  # type: ignore[call-overload]
        x.contiguous(memory_format=torch.channels_last)
    )
    expected = theirs(x)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


def test_wide_resnet_widens_the_stages_and_not_the_stem() -> None:
    model = attngrid.create_model("wrn18_1.5")
    assert model.stem[0].out_channels == 64  # type: ignore[index,union-attr]
    assert model.classifier.in_features == 768  # type: ignore[union-attr]


def test_cifar_stem_keeps_the_resolution() -> None:
    model = attngrid.create_model("resnet18", stem="cifar", num_classes=100)
    assert model.stem(torch.zeros(1, 3, 32, 32)).shape == (1, 64, 32, 32)  # type: ignore[operator]
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 100)


def test_attention_follows_the_last_batch_norm_before_the_sum() -> None:
    """With a gate of 0 the block returns its shortcut."""
    model = attngrid.create_model("resnet18", "se", stem="cifar").eval()
    block = model.stages[0][0]  # type: ignore[index,union-attr]
    block.attention.mlp[2].bias.data.fill_(-1e4)
    x = torch.rand(1, 64, 8, 8)
    torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize("size", ["large", "small"])
def test_the_authors_mobilenet_v3_expands_in_its_first_block_too(size: str) -> None:
    """Expand, depthwise and project, each with a BatchNorm; on 16 channels, then 288 more weights.

    (16 × 16 weights, and 16 scales and shifts.)
    """
    with torch.device("meta"):
        theirs, plain = (
            attngrid.create_model(f"mobilenet_v3_{size}", expand_first=expand)
            for expand in (True, False)
        )
    first = theirs.stages[0][0]  # type: ignore[index,union-attr]
    found = [
        (m.out_channels, m.kernel_size[0], m.groups)
        for m in first.modules()
        if hasattr(m, "groups")
    ]
    assert found == [(16, 1, 1), (16, 3, 16), (16, 1, 1)]
    more = [sum(p.numel() for p in model.parameters()) for model in (theirs, plain)]
    assert more[0] - more[1] == 16 * 16 + 2 * 16
    assert (
        sum(p.numel() for p in attngrid.create_model(f"mobilenet_v3_{size}").parameters())
        == more[0]
    )


def deviation(uniform_gain: float, fan: int) -> Any:
    """The standard deviation of Kaiming's weights, within 5 %."""
    return pytest.approx((uniform_gain / fan) ** 0.5, rel=0.05)


def test_the_cbam_authors_shortcuts_have_pytorchs_weights() -> None:
    """Their code initialises parameters with "conv" in their names, and a shortcut has none."""
    model = attngrid.create_model("resnet50", "cbam", initialisation="authors")
    block = model.stages[3][0]  # type: ignore[index,union-attr]
    assert block.shortcut[0].weight.std().item() == deviation(1 / 3, 1024)
    assert block.residual[3].weight.std().item() == deviation(2, 512 * 9)
    assert all(
        (g.bn.weight == 0).all() for g in model.modules() if type(g).__name__ == "SpatialGate"
    )  # type: ignore[union-attr]


def test_the_maf_authors_mobilenets_keep_pytorchs_perceptrons_and_gates() -> None:
    """Their code initialises convolutions and the classifier's weight, and nothing else."""
    model = attngrid.create_model("mobilenet_v1", "maf_c", initialisation="authors")
    last = model.stages[4][1]  # type: ignore[index,union-attr]
    assert last.layers[-3].weight.std().item() == deviation(2, 1024)
    maf, gate = last.attention
    assert maf.dbr.mlp[2].weight.std().item() == deviation(1 / 3, 64)
    assert maf.dbr.mlp[2].bias.std().item() == deviation(1 / 3, 64)
    assert (gate.bn.weight == 1).all()
    classifier = model.classifier[0]  # type: ignore[index]
    assert classifier.weight.std().item() == deviation(2, 1024 + 1000)  # type: ignore[union-attr,operator]
    assert classifier.bias.std().item() == deviation(1 / 3, 1024)  # type: ignore[union-attr,operator]


def test_the_srap_authors_perceptrons_start_at_a_hundredth() -> None:
    model = attngrid.create_model("mobilenet_v1", "srap", initialisation="authors")
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert torch.cat([m.weight.flatten() for m in layers]).std().item() == pytest.approx(
        0.01, rel=0.02
    )
    assert all((m.bias == 0).all() for m in layers)


def test_pytorch_cifar100_keeps_pytorchs_weights() -> None:
    model = attngrid.create_model("resnet18", "se", stem="cifar", initialisation="pytorch")
    for layer in (m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)):
        fan = layer.weight[0].numel()
        assert layer.weight.abs().max().item() == pytest.approx(fan**-0.5, rel=0.2)
        assert layer.bias is None or (layer.bias != 0).any()


def test_initialisation_follows_the_familys_rule() -> None:
    model = attngrid.create_model("resnet18", "cbam")
    conv = model.stages[3][1].residual[0]  # type: ignore[index,union-attr]
    assert conv.weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.02)
    fc = model.classifier
    assert fc.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.02)  # type: ignore[operator,union-attr]
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    assert all((bias == 0).all() for bias in biases)
    gates = [m.bn.weight for m in model.modules() if type(m).__name__ == "SpatialGate"]
    assert len(gates) == 8
    assert all((weight == 0).all() for weight in gates)


NAME = "must be a name such as '{}', or a class derived from torch.nn.Module, found {}$"


@pytest.mark.parametrize(
    ("backbone", "attention", "message"),
    [
        (18, "se", "backbone " + NAME.format("resnet18", 18)),
        (None, "se", "backbone " + NAME.format("resnet18", None)),
        ("resnet18", None, "attention " + NAME.format("se", None)),
        ("resnet18", torch.nn.Sequential(torch.nn.ReLU()), "found an instance of Sequential$"),
        ("resnet18", dict, "attention " + NAME.format("se", "<class 'dict'>")),
    ],
)
def test_a_name_of_a_wrong_type_is_one_line(backbone: Any, attention: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        attngrid.create_model(backbone, attention)


class Scale(torch.nn.Module):
    """A user's attention module."""

    def __init__(self, channels: int, *, reduction: int = 4) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((channels // reduction, 1, 1), 2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight.repeat(x.shape[1] // len(self.weight), 1, 1)


class TwoBlocks(torch.nn.Module):
    """A user's backbone."""

    def __init__(self, sites: Any, num_classes: int, stem: str, width: float) -> None:
        super().__init__()
        channels = int(16 * width)
        self.stem = torch.nn.Conv2d(3, channels, 3)
        self.site = sites.block(channels, 1, 1)
        self.head = torch.nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.site(self.stem(x)).mean((2, 3)))


def test_classes_are_built_as_their_names_are() -> None:
    model = attngrid.create_model("resnet18", Scale, width=0.25, num_classes=3)
    scales = [part for part in model.modules() if isinstance(part, Scale)]
    assert [len(one.weight) for one in scales] == [4, 4, 8, 8, 16, 16, 32, 32]  # its own r, 4
    assert all((one.weight == 2).all() for one in scales)  # its own initial weights
    model = attngrid.create_model("resnet18", Scale, width=0.25, reduction=16)
    assert len(next(part for part in model.modules() if isinstance(part, Scale)).weight) == 1
    model = attngrid.create_model(TwoBlocks, "se", num_classes=3, reduction=2)
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 3)
    assert type(model.site).__name__ == "SqueezeExcitation"
    with pytest.raises(ConfigError, match="resnet18 with Scale takes no option start; it takes"):
        attngrid.create_model("resnet18", Scale, start=2)
    with pytest.raises(ConfigError, match="backbone 'Scale': "):
        attngrid.create_model(Scale, "se")

    class Half(Scale):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, ::2]

    with pytest.raises(ConfigError, match=r"attention 'Half' in stage 1.*changes the shape"):
        attngrid.create_model("resnet18", Half)


@pytest.mark.parametrize(
    ("name", "near"),
    [("eca", "timm:eca"), ("ECA", "timm:eca"), ("timm:ecaa", "timm:eca"), ("cordatt", "coord")],
)
def test_an_unknown_attention_suggests_timms_layers(name: str, near: str) -> None:
    with pytest.raises(UnknownNameError, match=f"did you mean .*{near}"):
        attngrid.create_model("resnet18", name)


@pytest.mark.parametrize(
    ("backbone", "attention", "near"),
    [("resnet19", "none", "resnet18"), ("resnet18", "cbm", "cbam"), ("resnet18", "CSM", "csm")],
)
def test_unknown_names_list_the_near_matches(backbone: str, attention: str, near: str) -> None:
    with pytest.raises(UnknownNameError, match=f"did you mean .*{near}"):
        attngrid.create_model(backbone, attention)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reductoin": 8}, "takes no option reductoin; it takes placement, reduction"),
        ({"placement": "nowhere"}, "placement must be one of default, every_block"),
        ({"width": 0}, "width must be a number from 0.001 to 1000, found 0"),
        ({"width": 0.01}, "width is so small that a convolution has no channels"),
        ({"stem": "tiny"}, "stem must be 'imagenet' or 'cifar', found 'tiny'"),
        ({"input_size": 0}, "input_size must be a whole number of 1 or more, found 0"),
        ({"input_size": -3}, "input_size must be a whole number of 1 or more, found -3"),
        ({"num_classes": 0}, "num_classes must be a whole number of 1 or more, found 0"),
        ({"num_classes": 2.5}, "num_classes must be a whole number of 1 or more, found 2.5"),
        ({"num_classes": "10"}, "num_classes must be a whole number of 1 or more, found '10'"),
        ({"num_classes": None}, "num_classes must be a whole number of 1 or more, found None"),
        ({"num_classes": True}, "num_classes must be a whole number of 1 or more, found True"),
        ({"width": "1"}, "width must be a number from 0.001 to 1000, found '1'"),
        ({"width": float("inf")}, "width must be a number from 0.001 to 1000, found inf"),
        ({"width": float("nan")}, "width must be a number from 0.001 to 1000, found nan"),
        ({"stem": ["cifar"]}, r"stem must be 'imagenet' or 'cifar', found \['cifar'\]"),
        ({"initialisation": "authro"}, "initialisation must be one of family, .* found 'authro'"),
        ({"reduction": 0}, "reduction must be a whole number of 1 or more, found 0"),
        ({"reduction": 2.5}, "reduction must be a whole number of 1 or more, found 2.5"),
    ],
)
def test_a_wrong_option_is_named_in_the_error(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        attngrid.create_model("resnet18", "se", **options)  # type: ignore[arg-type]


def test_a_class_in_a_users_file_is_an_attention_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Scale(torch.nn.Module):\n"
        "    def __init__(self, channels, start=2.0):\n"
        "        super().__init__()\n"
        "        self.weight = torch.nn.Parameter(torch.full((channels, 1, 1), start))\n"
        "    def forward(self, x):\n"
        "        return x * self.weight\n"
    )
    monkeypatch.chdir(tmp_path)
    model = attngrid.create_model("resnet18", "mine.py:Scale", start=3.0)
    scales = [p for name, p in model.named_parameters() if "attention" in name]
    assert len(scales) == 8
    assert all((scale == 3).all() for scale in scales)
    (tmp_path / "wrong.py").write_text(
        "import torch\n"
        "class Half(torch.nn.Module):\n"
        "    def __init__(self, channels):\n"
        "        super().__init__()\n"
        "    def forward(self, x):\n"
        "        return x[:, ::2]\n"
    )
    expected = (
        r"attention 'wrong\.py:Half' in stage 1, at 64 channels: changes the shape of its input"
    )
    with pytest.raises(ConfigError, match=expected):
        attngrid.create_model("resnet18", "wrong.py:Half")
    (tmp_path / "gate.py").write_text(
        "import torch\n"
        "class Gate(torch.nn.Module):\n"
        "    def __init__(self, channels):\n"
        "        super().__init__()\n"
        "    def forward(self, x):\n"
        "        return x.mean((2, 3), keepdim=True)\n"
        "class Absent(Gate):\n"
        "    def forward(self, x):\n"
        "        return self.nothing\n"
        "class Plain:\n"
        "    def __init__(self, channels):\n"
        "        pass\n"
    )
    for name, expected in {
        "Gate": r"changes the shape of its input from \(2, 64, 56, 56\) to \(2, 64, 1, 1\)",
        "Absent": "AttributeError: 'Absent' object has no attribute 'nothing'",
        "Plain": r"is a Plain, not a torch\.nn\.Module",
    }.items():
        with pytest.raises(ConfigError, match=f"'gate.py:{name}' in stage 1.*{expected}"):
            attngrid.create_model("resnet18", f"gate.py:{name}")
    with pytest.raises(ConfigError, match=r"there is no file missing\.py"):
        attngrid.create_model("resnet18", "missing.py:Scale")
    with pytest.raises(ConfigError, match="has no class 'Other'"):
        attngrid.create_model("resnet18", "mine.py:Other")
