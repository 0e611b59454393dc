"""`--describe`: nodes, shapes, stages and counts, without weights, Ray or a models folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from afinar.config.train import TrainConfig
from afinar.errors import RequestError
from afinar.models.networks.architecture import Architecture
from afinar.models.networks.backbones import build_backbone, meta_device_context
from afinar.models.networks.describe import describe_network
from afinar.models.networks.network import build_network
from tests.conftest import Trained


def describe(classes: int = 1000, **options: Any) -> dict[str, Any]:
    return describe_network(TrainConfig(describe=True, **options), classes)


def test_describe_resnet18_lists_known_nodes_and_totals() -> None:
    description = describe(backbone="resnet18")
    nodes = {node["node"]: node for node in description["nodes"]}
    assert nodes["layer4.1.relu_1"] == {
        "node": "layer4.1.relu_1", "shape": [512, 7, 7], "stage": "layer4", "parameters": 0,
    }  # fmt: skip
    assert nodes["conv1"]["shape"] == [64, 112, 112]
    assert nodes["layer1.0.bn1"]["parameters"] == 128
    assert nodes["fc"]["stage"] is None
    assert list(nodes)[-2:] == ["flatten", "fc"]
    assert description["cut"] == "flatten"
    assert (description["params_total"], description["params_trainable"]) == (
        11_689_512,
        11_689_512,
    )


def test_describe_lists_nodes_after_the_cut_and_does_not_count_them() -> None:
    description = describe(
        5, backbone="resnet18", cut="layer2", regime="last:1", head="mlp", hidden=8
    )
    nodes = {node["node"]: node["stage"] for node in description["nodes"]}
    assert description["cut"] == "layer2.1.relu_1"
    assert nodes["layer2.1.relu_1"] == "layer2.1"
    assert nodes["layer3.0.conv1"] is None
    head = 128 * 8 + 8 + 8 * 5 + 5
    assert description["params_trainable"] == head + 2 * (128 * 128 * 9 + 2 * 128)
    before = sum(node["parameters"] for node in description["nodes"] if node["stage"])
    assert description["params_total"] == before + head


@pytest.mark.parametrize(
    "name",
    ["swin_t", "vit_b_16", "shufflenet_v2_x1_0", "convnext_tiny", "densenet121", "googlenet"],
)
def test_describe_counts_every_parameter_once(name: str) -> None:
    description = describe(backbone=name)
    with meta_device_context(name):
        whole = build_backbone(name, description["input_size"])
    assert sum(node["parameters"] for node in description["nodes"]) == sum(
        parameter.numel() for parameter in whole.parameters()
    )


@pytest.mark.parametrize(
    ("name", "size"), [("small_cnn", 64), ("shufflenet_v2_x0_5", 64), ("vit_b_32", 224)]
)
def test_describe_every_listed_node_is_a_cut_with_that_shape(name: str, size: int) -> None:
    nodes = describe(2, backbone=name, input_size=size)["nodes"]
    for node in nodes[:: max(1, len(nodes) // 8)]:
        architecture = Architecture(
            backbone=name,
            cut=node["node"],
            head="linear",
            input_size=size,
            classes=2,
            pool="flatten",
        )
        with meta_device_context(name):
            network, _ = build_network(architecture)
            assert list(network.backbone(torch.zeros(1, 3, size, size)).shape[1:]) == node["shape"]


def test_describe_more_stages_than_the_backbone_has_is_refused() -> None:
    with pytest.raises(RequestError, match="layer4"):
        describe(backbone="resnet18", regime="last:6")


PROBE = (
    "import sys; from afinar.cli.main import main; code = main(sys.argv[1:]); "
    "print(code, 'ray' in sys.modules)"
)


def run_describe(*arguments: str, cwd: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROBE, "train", "--describe", *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_describe_command_prints_a_table_and_does_not_import_ray(tmp_path: Path) -> None:
    lines = run_describe(
        "--backbone", "small_cnn", "--input-size", "64", "--weights", "none", cwd=tmp_path
    )
    assert lines[-1] == "0 False"
    assert lines[0].split() == ["last:N", "node", "shape", "parameters", "stage"]
    assert lines[1].split() == ["5", "trained", "2", "32", "x", "31", "x", "31", "896", "0"]
    (cut_line,) = [line for line in lines if line.endswith("<- cut")]
    assert cut_line.split()[:3] == ["1", "trained", "17"]
    assert any(line.endswith("behind the cut") for line in lines)
    total = 896 + 3 * 9248 + (32 * 4 + 1) * 256 + 257 * 1000
    assert any(line.startswith("parameters") and f"{total:,}" in line for line in lines)
    assert "nodes" in lines[-2]
    assert "--all" in lines[-2]
    assert not list(tmp_path.iterdir())


def test_describe_json_uses_the_classes_of_the_dataset(trained: Trained, tmp_path: Path) -> None:
    lines = run_describe(
        trained.dataset, "--backbone", "small_cnn", "--regime", "frozen", "--json", cwd=tmp_path
    )
    assert lines[-1] == "0 False"
    (description,) = map(json.loads, lines[:-1])
    assert (description["backbone"], description["cut"], description["input_size"]) == (
        "small_cnn",
        "17",
        224,
    )
    assert (description["classes"], description["params_trainable"]) == (2, 257 * 2)
