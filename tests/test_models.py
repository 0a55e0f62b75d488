"""The backbones against torchvision's, and what ``create_model`` promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import attngrid
from attngrid.errors import ConfigError, UnknownNameError


def copy_in_order(source: nn.Module, target: nn.Module) -> None:
    """Copy parameters and statistics between networks that register them in another order."""

    def layers(model: nn.Module) -> list[nn.Module]:
        kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
        return [m for name, m in model.named_modules() if isinstance(m, kinds)]

    pairs = list(zip(layers(source), layers(target), strict=True))
    for theirs, ours in pairs:
        ours.load_state_dict(theirs.state_dict())


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("resnet18", "resnet18"),
        ("resnet34", "resnet34"),
        # torchvision's bottlenecks stride on the 3×3: the option v1.5, not the original
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
    """The original is torchvision's with the stride moved, weights and all."""
    reference = torchvision.models.get_model(name, weights=None)
    for block in reference.modules():
        if isinstance(block, torchvision.models.resnet.Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
    model = attngrid.create_model(name)
    copy_in_order(reference, model)
    x = torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(model.eval()(x), reference.eval()(x), rtol=1e-4, atol=1e-4)
    assert {m.groups for m in model.modules() if isinstance(m, nn.Conv2d)} == {1, groups}


def test_wide_resnet_widens_the_stages_and_not_the_stem() -> None:
    model = attngrid.create_model("wrn18_1.5")
    assert model.stem[0].out_channels == 64  # type: ignore[index,union-attr]
    assert model.classifier.in_features == 768  # type: ignore[union-attr]


def test_cifar_stem_keeps_the_resolution() -> None:
    model = attngrid.create_model("resnet18", stem="cifar", num_classes=100)
    assert model.stem(torch.zeros(1, 3, 32, 32)).shape == (1, 64, 32, 32)  # type: ignore[operator]
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 100)


@pytest.mark.parametrize(
    ("placement", "expected"),
    [("default", 8), ("every_block", 8), ("last_stage", 2), ("stage_end", 4)],
)
def test_placement_says_where_attention_sits(placement: str, expected: int) -> None:
    model = attngrid.create_model("resnet18", "se", placement=placement)
    modules = [m for m in model.modules() if type(m).__name__ == "SqueezeExcitation"]
    assert len(modules) == expected
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 1000)


def test_attention_sits_on_the_last_batch_norm_before_the_sum() -> None:
    """With a gate of 0 the block is its shortcut."""
    model = attngrid.create_model("resnet18", "se", stem="cifar").eval()
    block = model.stages[0][0]  # type: ignore[index,union-attr]
    block.attention.mlp[2].bias.data.fill_(-1e4)
    x = torch.rand(1, 64, 8, 8)
    torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize("attention", attngrid.list_attentions())
def test_models_build_without_memory(attention: str) -> None:
    with torch.device("meta"):
        model = attngrid.create_model("resnet18", attention, stem="cifar", num_classes=10)
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_initialisation_is_the_authors() -> None:
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
        ({"width": 0}, "width must be positive, found 0"),
        ({"stem": "tiny"}, "stem must be 'imagenet' or 'cifar', found 'tiny'"),
        ({"reduction": 0}, "attention 'se' at 64 channels: reduction must be at least 1"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        attngrid.create_model("resnet18", "se", **options)  # type: ignore[arg-type]


def test_a_users_own_file_is_an_attention_module(
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
    with pytest.raises(ConfigError, match=r"there is no file missing\.py"):
        attngrid.create_model("resnet18", "missing.py:Scale")
    with pytest.raises(ConfigError, match="has no class 'Other'"):
        attngrid.create_model("resnet18", "mine.py:Other")
