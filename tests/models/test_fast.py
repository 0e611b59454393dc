"""Shortcuts of a published network: taken where the golden samples get the same answers, and only there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from afinar.errors import ModelError
from afinar.inference import optimize as module
from afinar.inference.optimize import fast
from afinar.models.networks.backbones import check_cut
from afinar.models.networks.network import Network, build_network
from afinar.models.networks.weights import IMAGENET_MEAN, IMAGENET_STD
from afinar.models.registry.golden import Golden, matches_within_tolerance, score
from afinar.models.registry.versions import Architecture
from afinar.pictures.preprocessing import InputView
from torch import nn

SIZE = 64
VIEW = InputView(input_size=SIZE, mean=IMAGENET_MEAN, std=IMAGENET_STD)


@pytest.fixture(scope="module")
def network() -> Network:
    """ResNet-18 whose BatchNorm layers all do something."""
    torch.manual_seed(0)
    architecture = Architecture(
        backbone="resnet18", cut="flatten", head="linear", input_size=SIZE, classes=2
    )
    network, _ = build_network(architecture)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            nn.init.normal_(part.running_mean, std=0.1)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.1)
    return network.eval()


@pytest.fixture(scope="module")
def golden(network: Network) -> Golden:
    images = np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3), dtype=np.uint8)
    return Golden([b""] * len(images), images, score(network, images, VIEW))


def batch_norms(network: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in network.modules())


def spoiled(real: Callable[[Network], nn.Module]) -> Callable[[Network], nn.Module]:
    """Folding that goes wrong."""

    def folded(network: Network) -> nn.Module:
        found = real(network)
        with torch.no_grad():
            next(found.parameters()).mul_(1.1)
        return found

    return folded


def test_batch_norm_is_folded_and_the_answers_stay(network: Network, golden: Golden) -> None:
    quick = fast(network, golden, VIEW, "float32")
    assert (batch_norms(network), batch_norms(quick)) == (20, 0)
    assert (
        np.abs(score(quick, golden.images, VIEW) - golden.logits).max()
        < 1e-4 * np.abs(golden.logits).max()
    )


def test_folding_that_changes_answers_is_not_taken(
    network: Network, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_folded", spoiled(module._folded))
    assert fast(network, golden, VIEW, "float32") is network


def test_a_network_that_answers_otherwise_is_refused_with_its_shortcuts(
    network: Network, golden: Golden
) -> None:
    others = replace(golden, logits=golden.logits[::-1].copy())
    with pytest.raises(ModelError, match="score differently"):
        fast(network, others, VIEW, "float32")


def test_reduced_precision_is_taken_where_its_answers_are_the_same(
    network: Network, golden: Golden
) -> None:
    quick = fast(network, golden, VIEW, "bfloat16")
    assert next(quick.parameters()).dtype == torch.bfloat16
    assert next(network.parameters()).dtype == torch.float32


def test_reduced_precision_that_changes_answers_is_not_taken(
    network: Network,
    golden: Golden,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(module, "matches_within_tolerance", lambda *_: False)
    assert next(fast(network, golden, VIEW, "bfloat16").parameters()).dtype == torch.float32
    assert "this model labels in float32" in capsys.readouterr().err


def test_what_counts_as_the_same_answer_in_reduced_precision() -> None:
    logits = np.array([[0.0, 2.0], [0.0, 0.02]], dtype=np.float32)
    golden = Golden([b"", b""], np.zeros((2, 1, 1, 3), np.uint8), logits)
    assert matches_within_tolerance(golden, logits + 5)
    assert matches_within_tolerance(
        golden, np.array([[0.0, 2.1], [0.02, 0.0]], dtype=np.float32)
    ), "a tie may turn"
    assert not matches_within_tolerance(
        golden, np.array([[0.0, 2.5], [0.0, 0.02]], dtype=np.float32)
    ), "0.04 off"
    assert not matches_within_tolerance(golden, np.full_like(logits, np.nan))


@pytest.mark.parametrize(("backbone", "supported", "half"), [
    ("resnet18", True, True), ("resnet18", False, False), ("mobilenet_v3_small", True, False),
])  # fmt: skip
def test_without_tiles_dense_convolutions_alone_are_worth_it(
    backbone: str, supported: bool, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported)
    monkeypatch.setattr(module, "matches_within_tolerance", lambda *_: True)
    network, _ = build_network(
        Architecture(
            backbone=backbone,
            cut=check_cut(backbone, "auto", SIZE),
            head="linear",
            input_size=SIZE,
            classes=2,
        )
    )
    images = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    golden = Golden([b""] * 2, images, score(network.eval(), images, VIEW))
    dtype = next(fast(network, golden, VIEW, "auto").parameters()).dtype
    assert dtype == (torch.bfloat16 if half else torch.float32)
    assert next(fast(network, golden, VIEW, "float32").parameters()).dtype == torch.float32
