"""Backbones of timm: trained, published, and used for predictions, without a hub."""

from __future__ import annotations

import dataclasses
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from afinar import open_predictions
from afinar.errors import RecordError, RequestError
from afinar.models.networks.backbones import build_backbone
from afinar.models.registry.bundle import load_network
from afinar.models.registry.versions import find_model
from afinar.storage.open import open_store
from afinar.training.distributed import Group
from afinar.training.driver import TrainOutcome, run_training
from afinar.training.worker import train
from tests.archives import label
from tests.conftest import Trained
from tests.training.runs import config


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def train_inline(trained: Trained, models: Path, **options: Any) -> TrainOutcome:
    configuration = config(
        trained, models, **{"input_size": 32, "epochs": 1, "augment": "none", **options}
    )
    return run_training(configuration, lambda task: void(train(task, Group())), "run")


def void(_: object) -> None:
    """Drop a result."""


@pytest.mark.parametrize("name", ["resnet18", "vit_small_patch16_224"])
def test_backbone_of_timm_trains_publishes_and_labels(
    name: str, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = train_inline(trained, tmp_path / "models", backbone=f"timm:{name}")
    version = outcome.version
    assert version.architecture.backbone == f"timm:{name}"
    assert version.lineage["libraries"]["timm"]

    model = f"{tmp_path / 'models'}@1"
    summary = label(trained.pictures, tmp_path / "out", model)
    rows = open_predictions(str(tmp_path / "out")).table.num_rows
    assert rows == summary.labelled > 0
    if name != "resnet18":
        return

    store = open_store(str(tmp_path / "models"))
    forged = dataclasses.replace(version.architecture, backbone="timm:hf-hub:somebody/network")
    with pytest.raises(RecordError, match="is unknown to timm"):
        load_network(store, dataclasses.replace(version, architecture=forged))
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(RequestError, match=r"pip install 'afinar\[timm\]'"):
        load_network(store, find_model(model).version)


def test_last_stages_of_a_vision_transformer_train_from_a_file_for_another_size(
    trained: Trained, tmp_path: Path
) -> None:
    name, path = "timm:vit_tiny_patch16_224", tmp_path / "weights.pth"
    torch.save(build_backbone(name, 64).state_dict(), path)
    # A solved head would be kept where training gains nothing, as with random weights.
    options = {"backbone": name, "weights": str(path), "regime": "last:2", "head_init": "random"}
    outcome = train_inline(trained, tmp_path / "models", **options)

    view = outcome.version.input_view
    assert (view.mean, view.std, view.interpolation) == ((0.5,) * 3, (0.5,) * 3, "bicubic")
    settings = outcome.result.settings
    assert settings["layer_decay"] == 0.75, "the default of transformers"
    network = load_network(open_store(str(tmp_path / "models")), outcome.version)
    loaded, stored = network.backbone.state_dict(), torch.load(path, weights_only=True)
    same_shape = [key for key, tensor in loaded.items() if tensor.shape == stored[key].shape]
    assert set(loaded) - set(same_shape) == {"pos_embed"}
    changed = {key for key in same_shape if not torch.equal(loaded[key], stored[key])}
    stages = {".".join(key.split(".")[:2]) for key in changed}
    assert stages == {"blocks.10", "blocks.11", "norm.weight", "norm.bias"}
    assert loaded["pos_embed"].shape == (1, 1 + 2 * 2, 192)
