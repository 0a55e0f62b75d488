"""Networks of timm and torchvision as backbones, compared with the libraries' own networks."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.layers import EcaModule, SEModule
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import nn
from torchvision.ops import SqueezeExcitation

from attngrid import create_model
from attngrid.core.errors import ConfigError
from attngrid.core.validation import validate
from attngrid.measure.attention_maps import last_stage, visualize
from attngrid.measure.complexity import Model, models_of_study, table
from attngrid.measure.maps_file import Maps
from attngrid.models.attention import se
from attngrid.models.attention.bam import BAM
from attngrid.models.registry import ATTENTIONS
from attngrid.records.record import read_record
from attngrid.study.cell import Cell
from attngrid.study.labels import backbone_label
from attngrid.study.options import Options
from attngrid.study.recipe import shipped_recipes
from attngrid.study.resources import require_runnable
from attngrid.study.schema import Study
from attngrid.training.run import run_cell
from attngrid.training.start import try_models
from attngrid.training.weights import create_network

# timm's smallest networks: their attention places are those of the whole family
RESNET, EFFICIENTNET = "timm:test_resnet", "timm:test_efficientnet"


def cell(backbone: str, attention: str = "none", **options: Any) -> Cell:
    recipe = shipped_recipes()["demo_6ep"]
    return Cell("s", "digits", backbone, attention, "demo_6ep", recipe, 0, Options(**options))


def on_meta(backbone: str, attention: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return create_model(backbone, attention, num_classes=10, **options)


def copy_in_order(ours: nn.Module, theirs: nn.Module) -> None:
    """Copy all weights; the layers have the same order, but the modules' other names."""
    ours_state, theirs_state = ours.state_dict(), theirs.state_dict()
    assert len(ours_state) == len(theirs_state)
    for value, found in zip(ours_state.values(), theirs_state.values(), strict=True):
        if value.is_floating_point():  # biases and statistics that are not at their initial values
            value += 0.1 * torch.rand_like(value)
        found.copy_(value.reshape(found.shape))


# Places


@torch.no_grad()
@pytest.mark.parametrize("layer", ["se", pytest.param("eca", marks=pytest.mark.slow)])
def test_timms_resnet_with_a_module_is_timms_resnet_with_this_attn_layer(layer: str) -> None:
    torch.manual_seed(0)
    ours = create_model("timm:resnet18", f"timm:{layer}", num_classes=10, input_size=64).eval()
    theirs = timm.create_model("resnet18", num_classes=10, block_args={"attn_layer": layer}).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(images), theirs(images))


@torch.no_grad()
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_mobilenet_v3_with_the_se_of_its_paper_is_the_librarys_own(library: str) -> None:
    if library == "timm":
        name, theirs = "mobilenetv3_small_100", timm.create_model("mobilenetv3_small_100")
    else:
        name, theirs = "mobilenet_v3_small", torchvision.models.mobilenet_v3_small()
    torch.manual_seed(0)
    ours = create_model(f"{library}:{name}", "se_v3", input_size=64).double().eval()
    copy_in_order(ours, theirs.double().eval())
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    expected = theirs(images)
    torch.testing.assert_close(ours(images), expected)
    assert expected.isfinite().all()
    assert not torch.equal(expected[0], expected[1])


@pytest.mark.parametrize(
    "name",
    [
        *("regnety_002", "test_efficientnet", "seresnet18"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("eca_resnet33ts", "rexnet_100")),
    ],
)
def test_modules_are_at_the_places_of_timms_own(name: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name)
    own = (SEModule, EcaModule, SqueezeExcite)
    places = [name for name, module in theirs.named_modules() if isinstance(module, own)]
    ours = on_meta(f"timm:{name}", "se")
    assert [
        name for name, module in ours.named_modules() if isinstance(module, se.SqueezeExcitation)
    ] == places
    baseline = on_meta(f"timm:{name}", "none")
    assert not any(isinstance(module, own) for module in baseline.modules())


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v3_small",
        pytest.param("regnet_y_400mf", marks=pytest.mark.slow),
        pytest.param("efficientnet_b0", marks=pytest.mark.slow),
    ],
)
def test_modules_are_at_the_places_of_torchvisions_own(name: str) -> None:
    theirs = torchvision.models.get_model(name)
    own = SqueezeExcitation
    places = [name for name, module in theirs.named_modules() if isinstance(module, own)]
    ours = on_meta(f"torchvision:{name}", "se")
    assert [
        name for name, module in ours.named_modules() if isinstance(module, se.SqueezeExcitation)
    ] == places
    baseline = on_meta(f"torchvision:{name}", "none")
    assert not any(isinstance(module, own) for module in baseline.modules())


def test_timms_seresnet_without_its_se_is_timms_resnet() -> None:
    """timm's ``seresnet18`` differs from its ``resnet18`` in SE only."""
    torch.manual_seed(0)
    ours = create_model("timm:seresnet18", num_classes=10, input_size=32).eval()
    theirs = timm.create_model("resnet18", num_classes=10).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_the_baseline_of_torchvision_is_torchvisions_to_the_bit(name: str) -> None:
    torch.manual_seed(0)
    ours = create_model(f"torchvision:{name}", num_classes=10, input_size=32)
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, num_classes=10)
    expected = theirs.state_dict()
    assert list(ours.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())


@torch.no_grad()
def test_torchvisions_block_has_the_module_before_the_sum() -> None:
    torch.manual_seed(0)
    block = create_model("torchvision:resnet18", "se", num_classes=10, input_size=32).layer2[0]
    x = torch.randn(2, 64, 8, 8)
    block.eval()
    norm, module = block.bn2
    assert isinstance(module, se.SqueezeExcitation)
    residual = norm(block.conv2(block.bn1(block.conv1(x)).relu()))
    shortcut = block.downsample[1](block.downsample[0](x))
    torch.testing.assert_close(block(x), (module(residual) + shortcut).relu())


def places(backbone: str, attention: str, kind: type[nn.Module], placement: str) -> list[int]:
    """The stride of the map at each module."""
    model, strides = on_meta(backbone, attention, placement=placement).eval(), []
    for module in model.modules():
        if isinstance(module, kind):
            module.register_forward_pre_hook(
                lambda _, inputs: strides.append(224 // inputs[0].shape[2])
            )
    model(torch.zeros(1, 3, 224, 224, device="meta"))
    return strides


@pytest.mark.parametrize(
    "backbone",
    [
        RESNET,
        EFFICIENTNET,
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "timm:mobilenetv3_small_100",
                "torchvision:mobilenet_v2",
                "torchvision:regnet_x_400mf",
                "timm:convnext_atto",
                "timm:densenet121",
                "timm:efficientnet_b0",
                "timm:mobilevit_xxs",
                "timm:vgg11",
                "torchvision:convnext_tiny",
                "torchvision:densenet121",
                "torchvision:efficientnet_b0",
                "torchvision:resnet18",
            )
        ),
    ],
)
def test_stages_end_at_strides_4_to_32(backbone: str) -> None:
    assert places(backbone, "se", se.SqueezeExcitation, "stage_end") == [4, 8, 16, 32]
    assert places(backbone, "bam", BAM, "default") == [4, 8, 16]


@pytest.mark.slow
def test_placements_in_blocks() -> None:
    # MobileNetV3-S: SE in 9 of 11 blocks; the last stage has three
    for name in ("timm:mobilenetv3_small_100", "torchvision:mobilenet_v3_small"):
        listed = [4, *[16] * 5, *[32] * 3]
        assert places(name, "se", se.SqueezeExcitation, "default") == listed
        assert places(name, "se", se.SqueezeExcitation, "every_block") == [4, 8, 8, *listed[1:]]
        assert places(name, "se", se.SqueezeExcitation, "last_stage") == [32] * 3


@pytest.mark.slow
@pytest.mark.parametrize("backbone", [RESNET, EFFICIENTNET])
def test_every_module_trains_in_a_librarys_network(backbone: str) -> None:
    for attention in (*ATTENTIONS, "timm:eca", "timm:halo"):
        model = create_model(backbone, attention, num_classes=10, input_size=64)
        model(torch.randn(2, 3, 64, 64)).sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# Errors


@pytest.mark.parametrize(
    ("backbone", "arguments", "message"),
    [
        ("timm:vgg11", {}, "'se', placement 'default'; .* only after its stages; set placement: "),
        ("timm:test_convnext", {"placement": "every_block"}, "only after its stages"),
        ("timm:test_vit", {"input_size": 160}, "it has no attention places; take another"),
        *(
            pytest.param(
                name,
                {"placement": "stage_end"},
                "it has no attention places",
                marks=pytest.mark.slow,
            )
            for name in ("timm:hrnet_w18_small", "torchvision:swin_t")
        ),
        ("timm:resnett18", {}, r"timm [\d.]+ has no model 'resnett18' .*mean timm:resnet18 or "),
        ("torchvision:resnet19", {}, "has no model 'resnet19' .*mean torchvision:resnet18 or"),
        ("timm:resnet18.a9", {}, r"Invalid pretrained tag \(a9\)"),
        ("torchvision:fcn_resnet50", {}, "has no model 'fcn_resnet50' for classification"),
        ("torchvision:googlenet", {}, "has auxiliary outputs while it trains"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")  # torchvision's, of GoogLeNet
def test_a_network_without_the_place_is_refused_by_name(
    backbone: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^backbone '{backbone}': .*{message}") as error:
        on_meta(backbone, "se", **{"input_size": 32} | arguments)
    assert "\n" not in str(error.value)


def test_a_network_without_places_can_be_the_baseline() -> None:
    model = create_model("timm:test_vit", num_classes=7, input_size=64)  # built for 160 pixels
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 7)


def test_another_width_is_refused_by_name(tiny: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^width: found 0.5; timm:resnet18 has one width"):
        create_model("timm:resnet18", width=0.5)
    with pytest.raises(ConfigError, match=r"^attention 'none_wide:se': cannot widen torchvision:"):
        create_model("torchvision:resnet18", "none_wide:se")
    tiny["grid"][0]["backbones"] = ["timm:resnet18"]
    with pytest.raises(ConfigError, match=r"grid.0: width: found 0.0625; timm:resnet18 has one"):
        validate(Study, tiny, "study.yaml")
    tiny["grid"][0] |= {"options": {}, "attentions": ["none_wide:se"]}
    with pytest.raises(ConfigError, match="attention 'none_wide:se': cannot widen timm:resnet18"):
        validate(Study, tiny, "study.yaml")


def test_missing_timm_is_an_error_before_the_first_job(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny["grid"][0] |= {"backbones": ["timm:resnet18"], "options": {}}
    study = validate(Study, tiny, "study.yaml")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "timm" else find(name)
    )
    with pytest.raises(ConfigError, match=r'resnet18 \(timm\) is from timm, .*"attngrid\[timm\]"'):
        require_runnable(study)


# Pretrained weights


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of torch hub's checkpoints, and no cache of Hugging Face."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub/checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_torchvisions_weights_are_read_from_this_machine(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT.value
    file = checkpoints / default.url.rpartition("/")[2]
    name, options = "torchvision:shufflenet_v2_x0_5", {"placement": "stage_end", "input_size": 32}
    with pytest.raises(ConfigError, match=f"no {file}; put it there .*does not download"):
        create_model(name, "se", pretrained=True, **options)
    torch.manual_seed(1)
    weights = torchvision.models.shufflenet_v2_x0_5().state_dict()
    torch.save(weights, file)
    with pytest.raises(ConfigError, match=f"{file}: found SHA-256 [0-9a-f]+, its name says "):
        create_model(name, "se", pretrained=True, **options)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    file = file.rename(checkpoints / f"shufflenet-{sha256[:8]}.pth")
    monkeypatch.setattr(default, "url", f"https://example.org/{file.name}")

    torch.manual_seed(2)
    ours = create_model(name, "se", pretrained=True, num_classes=10, **options)
    torch.manual_seed(2)
    random = create_model(name, "se", num_classes=10, **options).state_dict()
    assert ours.attngrid_weights == {"file": file.name, "sha256": sha256}
    for key, value in ours.state_dict().items():
        theirs = key.replace("stage2.0.", "stage2.").replace("stage3.0.", "stage3.")
        theirs = theirs.replace("stage4.0.", "stage4.")
        kept = theirs not in weights or theirs.startswith("fc.")  # SE and the classifier
        assert torch.equal(value, random[key] if kept else weights[theirs]), key
    same = create_model(name, pretrained=True, input_size=32).state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in same.items())
    file.write_bytes(b"")
    on_meta(name, "se", pretrained=True, **options)  # loads nothing


def test_timms_weights_are_read_from_the_cache_of_hugging_face(checkpoints: Path) -> None:
    name = f"{RESNET}.r160_in1k"
    with pytest.raises(
        ConfigError,
        match=r"no model.safetensors of timm/test_resnet.r160_in1k in .*/hub and no pytorch_model",
    ):
        create_model(name, pretrained=True, input_size=64)
    torch.manual_seed(1)
    weights = timm.create_model("test_resnet").state_dict()
    repository = checkpoints.parent / "models--timm--test_resnet.r160_in1k"
    for folder in ("blobs", "refs", "snapshots/abc"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs/main").write_text("abc")
    save_file(weights, repository / "blobs/new")
    sha256 = hashlib.sha256((repository / "blobs/new").read_bytes()).hexdigest()
    blob = (repository / "blobs/new").rename(repository / "blobs" / sha256)
    (repository / "snapshots/abc/model.safetensors").symlink_to(blob)

    for backbone in (name, RESNET):  # the tag is timm's default
        model = create_model(backbone, "se", pretrained=True, num_classes=10, input_size=64)
        assert model.attngrid_weights == {"file": "model.safetensors", "sha256": sha256}
        found = model.state_dict()
        assert all(
            torch.equal(value, found[key]) for key, value in weights.items() if "fc." not in key
        )
        assert found["fc.weight"].shape[0] == 10


def test_missing_weights_are_an_error_before_the_first_job(
    checkpoints: Path, tiny: dict[str, Any]
) -> None:
    tiny["grid"][0] |= {"backbones": [RESNET], "options": {"pretrained": True}}
    study = validate(Study, tiny, "study.yaml")
    with pytest.raises(ConfigError, match=f"^backbone '{RESNET}': pretrained: there is no model"):
        try_models(study.cells)
    tiny["grid"][0]["backbones"] = [RESNET, "resnet18"]
    with pytest.raises(ConfigError, match=r"options.pretrained: found true; resnet18 has no pre"):
        validate(Study, tiny, "study.yaml")
    with pytest.raises(ConfigError, match="resnet18 with none takes no option pretrained"):
        create_model("resnet18", pretrained=True)


# Cells


def test_the_cell_of_a_librarys_network() -> None:
    one = cell("timm:resnet50.a1_in1k", "se")
    assert one.id.startswith("digits-timm_resnet50.a1_in1k-se-demo_6ep-s0-")
    assert one.label == "resnet50.a1_in1k (timm) + SE, seed 0"
    assert backbone_label("torchvision:resnet50") == "resnet50 (torchvision)"
    pretrained = cell("timm:resnet50.a1_in1k", "se", pretrained=True)
    assert pretrained.digest != one.digest
    assert cell("timm:resnet50.a1_in1k", "se", pretrained=False).digest == one.digest
    # the baseline has no placement, and the package's networks have no pretrained weights
    assert cell(RESNET, placement="last_stage").digest == cell(RESNET).digest
    assert cell("resnet18", pretrained=True).digest == cell("resnet18").digest
    for known in (one, pretrained):
        config = json.loads(json.dumps(known.config()))
        assert known.matches(config)
        assert Cell.from_config(config, "s") == known
    assert pretrained.model_arguments()["pretrained"] is True


@pytest.mark.slow
def test_a_trained_cell_says_what_it_began_with(
    checkpoints: Path, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    default = torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT.value
    monkeypatch.setattr(default, "url", "https://example.org/shufflenet.pth")
    torch.save(torchvision.models.shufflenet_v2_x0_5().state_dict(), checkpoints / "shufflenet.pth")
    tiny["grid"][0] |= {
        "backbones": ["torchvision:shufflenet_v2_x0_5"],
        "attentions": ["se"],
        "options": {"pretrained": True, "placement": "stage_end"},
    }
    study = validate(Study, tiny, "study.yaml")
    trained = study.cells[0]
    run_cell(study, trained, trained.record)
    record = json.loads(trained.record.read_text())
    assert record["config"]["options"]["pretrained"] is True
    sha256 = hashlib.sha256((checkpoints / "shufflenet.pth").read_bytes()).hexdigest()
    assert record["run"]["pretrained"] == {"file": "shufflenet.pth", "sha256": sha256}
    assert record["run"]["timm"] == timm.__version__
    (checkpoints / "shufflenet.pth").unlink()
    create_network(trained)  # has its own weights by now


@pytest.mark.slow
def test_a_study_of_both_libraries_is_trained_counted_and_drawn(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny["grid"][0] |= {
        "backbones": [RESNET, "torchvision:mobilenet_v3_small"],
        "attentions": ["cbam"],
        "seeds": [0],
        "options": {},
    }
    study = validate(Study, tiny, "study.yaml")
    try_models(study.cells)
    rows = csv.DictReader(io.StringIO(table(models_of_study(study), strict=True)))
    params = {(row["backbone"], row["attention"]): int(row["params"]) for row in rows}
    for trained in study.cells:
        run_cell(study, trained, trained.record)
        measured = read_record(trained.record).metrics.params
        assert measured == params[trained.backbone, trained.attention]
    maps = visualize(study, Maps({}, {})).cells
    for one in study.cells:
        assert maps[one.id].grad_cam_KHW.shape[1:] == (1, 1)  # of a 16×16 image in the last stage
        assert maps[one.id].own_KHW is not None


@pytest.mark.parametrize(
    ("name", "attention"),
    [("shufflenet_v2_x0_5", "none"), ("mobilenet_v3_small", "se_v3")],
)
def test_counts_are_those_that_torchvision_publishes(name: str, attention: str) -> None:
    meta = torchvision.models.get_model_weights(name).DEFAULT.meta
    counts = Model(f"torchvision:{name}", attention, "imagenet", 1000, 224).count()
    assert counts["params"] == meta["num_params"]
    assert counts["macs"] / 1e9 == pytest.approx(meta["_ops"], abs=0.0005)


def test_a_network_without_stages_has_no_grad_cam() -> None:
    assert last_stage(on_meta("timm:test_vit", "none", input_size=160)) == ""
    assert last_stage(on_meta(RESNET, "none")) == "layer4"
