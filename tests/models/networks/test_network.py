"""Networks: parameters of the recipes' networks counted by hand, input sizes, input view."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from afinar.config.recipes import load_recipe
from afinar.config.train import TrainConfig
from afinar.errors import RequestError
from afinar.models.networks.architecture import Architecture
from afinar.models.networks.describe import describe_network
from afinar.models.networks.heads import BinaryLogits
from afinar.models.networks.network import apply_input_view, build_network
from afinar.pictures.preprocessing import InputView
from tests.models.networks.helpers import (
    RECIPES,
    architecture,
    head_layers,
    parameters_by_hand,
)


def recipe(name: str) -> TrainConfig:
    return TrainConfig(
        **{
            "dataset": "dataset",
            "models": "models",
            **load_recipe(TrainConfig, str(RECIPES / name)),
        }
    )


TRAINING = sorted(
    path.name
    for path in RECIPES.glob("*.toml")
    if not path.name.startswith(("compare", "ingest", "nightly"))
)


@pytest.mark.parametrize("name", TRAINING)
def test_recipe_network_has_the_parameters_counted_by_hand(name: str) -> None:
    config = recipe(name)
    classes = 2 if config.output == "sigmoid" else 5
    network = describe_network(config, classes)
    counts = (network["params_total"], network["params_trainable"])
    assert counts == parameters_by_hand(name, classes)


def test_course_networks_have_recipes() -> None:
    course_recipes = {
        "vgg16-flatten.toml",
        "vgg16-fc2.toml",
        "resnet50-extractor.toml",
        "mobilenet-extractor.toml",
        "inception-mixed6e.toml",
        "train-scratch.toml",
    }
    assert course_recipes <= set(TRAINING)
    for name in course_recipes:
        recipe(name)
        assert (RECIPES / name).read_text().startswith("# Course practice")


def test_tuned_recipes_have_the_network_of_their_course() -> None:
    fields = ("backbone", "cut", "head", "input_size", "pool", "hidden", "dropout", "output")
    tuned = [path.name for path in RECIPES.glob("*-tuned.toml")]
    assert len(tuned) == 6
    for name in tuned:
        ours, course = recipe(name), recipe(name.replace("-tuned", ""))
        assert [getattr(ours, field) for field in (*fields, "regime")] == [
            getattr(course, field) for field in (*fields, "regime")
        ]
        assert (ours.learning_rate, ours.schedule) == (0, "cosine")


def test_inception_cut_at_mixed_6e_has_the_width_of_the_course() -> None:
    config = recipe("inception-mixed6e.toml")
    fields = set(Architecture.__dataclass_fields__) - {"classes", "revision"}
    options = {field: getattr(config, field) for field in fields}
    with torch.device("meta"):
        network, _ = build_network(architecture(**options))
    hidden, _, dropout, last, output = head_layers(network)
    assert (hidden.in_features, hidden.out_features, last.out_features) == (37632, 1024, 1)
    assert dropout.p == 0.2
    assert isinstance(output, BinaryLogits)


@pytest.mark.parametrize(
    ("name", "cut"), [("vit_b_16", "getitem"), ("shufflenet_v2_x0_5", "stage2.1.chunk")]
)
def test_cut_without_a_row_per_picture_is_refused(name: str, cut: str) -> None:
    with torch.device("meta"), pytest.raises(RequestError, match="no activations for each picture"):
        build_network(architecture(backbone=name, cut=cut, input_size=224))


def test_largest_vision_transformer_has_its_own_input_size() -> None:
    assert describe_network(TrainConfig(backbone="vit_h_14", describe=True), 2)["input_size"] == 518


def test_input_size_the_backbone_cannot_take_is_refused() -> None:
    architecture = Architecture(
        backbone="vit_b_16", cut="getitem_5", head="linear", input_size=100, classes=2
    )
    with pytest.raises(RequestError, match="--input-size 100"):
        build_network(architecture)


def test_apply_input_view_resizes_and_normalises() -> None:
    images = torch.full((2, 8, 8, 3), 255, dtype=torch.uint8)
    view = InputView(input_size=4, mean=(0.5, 0.5, 1.0), std=(0.5, 0.25, 1.0))
    inputs = apply_input_view(images, view)
    assert inputs.shape == (2, 3, 4, 4)
    torch.testing.assert_close(inputs[0, :, 0, 0], torch.tensor([1.0, 2.0, 0.0]))


def test_bicubic_input_view_is_clamped_and_bilinear_is_not_in_the_record() -> None:
    images = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    images[:, 4:] = 255
    bilinear = InputView(input_size=20, mean=(0, 0, 0), std=(1, 1, 1))
    bicubic = InputView(input_size=20, mean=(0, 0, 0), std=(1, 1, 1), interpolation="bicubic")
    assert "interpolation" not in bilinear.as_dict(), "older versions of afinar read it"
    assert bicubic.as_dict()["interpolation"] == "bicubic"
    edges = [apply_input_view(images, view)[0, 0, :, 10] for view in (bilinear, bicubic)]
    assert not torch.equal(*edges)
    assert edges[1].min() >= 0
    assert edges[1].max() <= 1 + 1e-6


def test_networks_are_built_in_several_threads() -> None:
    """torch.fx replaces the call of every module while it traces one."""
    architecture = Architecture(
        backbone="small_cnn", cut="17", head="linear", input_size=64, classes=2
    )
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # another thread runs within nearly every call
    try:
        with ThreadPoolExecutor(4) as threads:
            built = list(threads.map(build_network, [architecture] * 16))
    finally:
        sys.setswitchinterval(interval)
    assert len({tuple(each.network.state_dict()) for each in built}) == 1
