"""Optimisations: used only if the golden samples keep their predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from afinar.errors import ModelError
from afinar.inference import optimize as module
from afinar.inference.optimize import optimize_for_inference
from afinar.models.networks.architecture import Architecture
from afinar.models.networks.cuts import resolve_cut
from afinar.models.networks.network import Network, build_network
from afinar.models.networks.weights import IMAGENET_MEAN, IMAGENET_STD
from afinar.models.registry.golden import Golden, compute_logits, matches_within_tolerance
from afinar.pictures.preprocessing import InputView

SIZE = 64
VIEW = InputView(input_size=SIZE, mean=IMAGENET_MEAN, std=IMAGENET_STD)


@pytest.fixture(scope="module")
def network() -> Network:
    """ResNet-18 with BatchNorm layers that all change their input."""
    torch.manual_seed(0)
    architecture = Architecture(
        backbone="resnet18", cut="flatten", head="linear", input_size=SIZE, classes=2
    )
    network, _ = build_network(architecture)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.1)
    return network.eval()


@pytest.fixture(scope="module")
def golden(network: Network) -> Golden:
    images = np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3), dtype=np.uint8)
    return Golden([b""] * len(images), images, compute_logits(network, images, VIEW))


def batch_norms(network: nn.Module) -> int:
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())


def with_error(fold: Callable[[Network], nn.Module]) -> Callable[[Network], nn.Module]:
    """Return a folding function that scales one parameter of the result."""

    def fold_wrongly(network: Network) -> nn.Module:
        folded = fold(network)
        with torch.no_grad():
            next(folded.parameters()).mul_(1.1)
        return folded

    return fold_wrongly


def test_batch_norm_is_folded_and_logits_stay(network: Network, golden: Golden) -> None:
    optimized = optimize_for_inference(network, golden, VIEW, "float32")
    assert (batch_norms(network), batch_norms(optimized)) == (20, 0)
    assert (
        np.abs(compute_logits(optimized, golden.images, VIEW) - golden.logits).max()
        < 1e-4 * np.abs(golden.logits).max()
    )


def test_folding_that_changes_logits_is_not_used(
    network: Network, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_fold_batch_norm", with_error(module._fold_batch_norm))
    assert optimize_for_inference(network, golden, VIEW, "float32") is network


def test_network_with_other_golden_logits_is_refused(network: Network, golden: Golden) -> None:
    other = replace(golden, logits=golden.logits[::-1].copy())
    with pytest.raises(ModelError, match="other logits"):
        optimize_for_inference(network, other, VIEW, "float32")


def test_bfloat16_with_the_same_predictions_is_used(network: Network, golden: Golden) -> None:
    optimized = optimize_for_inference(network, golden, VIEW, "bfloat16")
    assert next(optimized.parameters()).dtype == torch.bfloat16
    assert next(network.parameters()).dtype == torch.float32


def test_bfloat16_with_other_predictions_is_not_used(
    network: Network,
    golden: Golden,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(module, "matches_within_tolerance", lambda *_: False)
    assert (
        next(optimize_for_inference(network, golden, VIEW, "bfloat16").parameters()).dtype
        == torch.float32
    )
    assert "this model labels in float32" in capsys.readouterr().err


def test_reduced_precision_tolerance_allows_small_differences_and_ties() -> None:
    logits = np.array([[0.0, 2.0], [0.0, 0.02]], dtype=np.float32)
    golden = Golden([b"", b""], np.zeros((2, 1, 1, 3), np.uint8), logits)
    assert matches_within_tolerance(golden, logits + 5)
    assert matches_within_tolerance(
        golden, np.array([[0.0, 2.1], [0.02, 0.0]], dtype=np.float32)
    ), "a tie may change"
    assert not matches_within_tolerance(
        golden, np.array([[0.0, 2.5], [0.0, 0.02]], dtype=np.float32)
    ), "0.04 off"
    assert not matches_within_tolerance(golden, np.full_like(logits, np.nan))


@pytest.mark.parametrize(("backbone", "supported", "reduced"), [
    ("resnet18", True, True), ("resnet18", False, False), ("mobilenet_v3_small", True, False),
])  # fmt: skip
def test_auto_without_amx_uses_bfloat16_only_for_dense_convolutions(
    backbone: str, supported: bool, reduced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported)
    monkeypatch.setattr(module, "matches_within_tolerance", lambda *_: True)
    network, _ = build_network(
        Architecture(
            backbone=backbone,
            cut=resolve_cut(backbone, "auto", SIZE),
            head="linear",
            input_size=SIZE,
            classes=2,
        )
    )
    images = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    golden = Golden([b""] * 2, images, compute_logits(network.eval(), images, VIEW))
    dtype = next(optimize_for_inference(network, golden, VIEW, "auto").parameters()).dtype
    assert dtype == (torch.bfloat16 if reduced else torch.float32)
    assert (
        next(optimize_for_inference(network, golden, VIEW, "float32").parameters()).dtype
        == torch.float32
    )
