"""Recipes of courses on real pictures: they train, and another process loads the same model.

ImageNet weights cannot be downloaded here, so backbones get random weights from a file.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import conformal_clip_data
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from afinar import open_model
from afinar.config.ingest import IngestConfig
from afinar.config.recipes import load_recipe
from afinar.config.train import TrainConfig
from afinar.ingestion.driver import run_ingest
from afinar.models.networks.architecture import Architecture
from afinar.models.networks.cuts import resolve_cut
from afinar.models.networks.network import build_network
from afinar.training.distributed import Group
from afinar.training.publish import publish
from afinar.training.task import plan_training
from afinar.training.worker import train
from afinar.units.executor import InlineExecutor
from tests.models.networks.helpers import RECIPES, dense_parameters, parameters_by_hand

PICTURES_PER_CLASS = 45

COURSES = {
    "vgg16-flatten.toml": {"input_size": 64, "epochs": 2},
    "vgg16-fc2.toml": {"input_size": 64, "epochs": 3},
    "resnet50-extractor.toml": {"input_size": 96, "epochs": 3},
    "mobilenet-extractor.toml": {"input_size": 96, "epochs": 3},
    "inception-mixed6e.toml": {"epochs": 3},
    "train-scratch.toml": {"input_size": 96, "epochs": 2},
}
LARGE = {"vgg16-flatten.toml", "vgg16-fc2.toml", "inception-mixed6e.toml"}


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Ingest pictures of fabric in two classes, intact and with a defect all over."""
    folder = tmp_path_factory.mktemp("fabric")
    for name in ("global", "nominal"):
        (folder / "pictures" / name).mkdir(parents=True)
        source = Path(conformal_clip_data.textile_simulated_root()) / name
        for path in sorted(source.iterdir())[:PICTURES_PER_CLASS]:
            shutil.copy2(path, folder / "pictures" / name)
    config = IngestConfig(
        source=str(folder / "pictures"), dataset=str(folder / "dataset"), size=150
    )
    summary = run_ingest(config, InlineExecutor()).summary
    assert summary.samples == 2 * PICTURES_PER_CLASS
    return str(folder / "dataset")


def random_weights(config: TrainConfig, folder: Path) -> str:
    """Write a file of random weights for the recipe's backbone."""
    size = config.input_size or 224
    cut = resolve_cut(config.backbone, config.cut, size)
    torch.manual_seed(0)
    network, _ = build_network(
        Architecture(
            backbone=config.backbone,
            cut=cut,
            head="linear",
            input_size=size,
            classes=2,
            pool=config.pool,
        )
    )
    path = folder / f"{config.backbone}.safetensors"
    save_file(network.backbone.state_dict(), path)
    return str(path)


def expected_parameters(name: str) -> tuple[int, int]:
    """Return total and trained parameters, counted by hand at the input size used here."""
    total, trained = parameters_by_hand(name, 2)
    if name == "vgg16-flatten.toml":  # 64 px leave 2 x 2 places of 7 x 7
        smaller = dense_parameters(512 * 7 * 7, 2) - dense_parameters(512 * 2 * 2, 2)
    elif name == "train-scratch.toml":  # 96 px leave 4 x 4 of 12 x 12
        smaller = dense_parameters(12 * 12 * 32, 256) - dense_parameters(4 * 4 * 32, 256)
    else:
        smaller = 0
    return total - smaller, trained - smaller


PROBE = """
import json, sys
import numpy as np
from afinar import open_model
model = open_model(sys.argv[1])
print(json.dumps(model(np.load(sys.argv[2])).tolist()))
"""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in COURSES],
)
def test_recipe_trains_and_another_process_computes_the_same_scores(
    name: str, fabric: str, tmp_path: Path
) -> None:
    overrides: dict[str, Any] = {**COURSES[name], "batch_size": 16}
    config = TrainConfig(
        **{
            **load_recipe(TrainConfig, str(RECIPES / name)),
            "dataset": fabric,
            "models": str(tmp_path / "m"),
            **overrides,
        }
    )
    if config.weights != "none":
        config = replace(config, weights=random_weights(config, tmp_path))
    task = plan_training(config, "run")
    result = train(task, Group())
    assert (result.params_total, result.params_trainable) == expected_parameters(name)
    assert len(result.history) == config.epochs
    test = result.metrics["test"]
    assert test["samples"] >= 8
    assert 0 <= test["top1"] <= 1
    assert test["auroc"] is not None

    version = publish(task, result, 1.0)
    images = np.random.default_rng(0).integers(0, 256, (5, 150, 150, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    spec = f"{tmp_path / 'm'}@{version.id}"
    command = [sys.executable, "-c", PROBE, spec, str(tmp_path / "images.npy")]
    elsewhere = json.loads(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
    )
    here = open_model(spec)(images)
    np.testing.assert_allclose(here.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(
        np.array(elsewhere), here, atol=1e-6
    )  # float32: threads may sum in another order
    shutil.rmtree(tmp_path / "m")  # half a gigabyte of VGG16
