"""Networks in OpenVINO: the same predictions, or torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from afinar.inference import openvino as module
from afinar.inference import optimize
from afinar.inference.openvino import OpenVinoNetwork
from afinar.inference.optimize import MIN_OPENVINO_PICTURES, optimize_for_inference
from afinar.inference.predictor import load_predictor
from afinar.models.networks.architecture import Architecture
from afinar.models.networks.cuts import resolve_cut
from afinar.models.networks.network import Network, build_network
from afinar.models.networks.weights import IMAGENET_MEAN, IMAGENET_STD
from afinar.models.registry.golden import Golden, compute_logits
from afinar.models.registry.versions import find_model
from afinar.pictures.preprocessing import InputView
from tests.conftest import Trained

SIZE = 64
VIEW = InputView(input_size=SIZE, mean=IMAGENET_MEAN, std=IMAGENET_STD)
MANY = 10**9


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


def random_network(backbone: str) -> Network:
    torch.manual_seed(0)
    architecture = Architecture(
        backbone=backbone,
        cut=resolve_cut(backbone, "auto", SIZE),
        head="linear",
        input_size=SIZE,
        classes=2,
    )
    return build_network(architecture).network.eval()


def golden_of(network: Network, count: int = 4) -> Golden:
    images = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    return Golden([b""] * count, images, compute_logits(network, images, VIEW))


@pytest.fixture(scope="module")
def network() -> Network:
    return random_network("small_cnn")


@pytest.fixture(scope="module")
def golden(network: Network) -> Golden:
    return golden_of(network)


def without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)


@pytest.mark.parametrize("backbone", ["mobilenet_v3_small", "resnet18"])
def test_network_in_openvino_has_the_logits_of_torch(backbone: str) -> None:
    network = random_network(backbone)
    golden = golden_of(network, 19)
    for precision, tolerance in (("f32", 1e-4), ("bf16", 0.03)):
        converted = OpenVinoNetwork(network, SIZE, precision)
        logits = compute_logits(converted, golden.images, VIEW)
        assert np.abs(logits - golden.logits).max() < tolerance * np.abs(golden.logits).max()
        assert next(converted.parameters()).dtype == torch.float32
        assert converted._compiled.keys() == {16, 8}, "19 pictures are a full block and a rest"


def test_logits_do_not_depend_on_the_size_of_the_batch(network: Network, golden: Golden) -> None:
    converted = OpenVinoNetwork(network, SIZE, "f32")
    together = compute_logits(converted, golden.images, VIEW)
    alone = [compute_logits(converted, golden.images[i : i + 1], VIEW) for i in range(4)]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-5)


def test_torch_computes_a_single_picture(network: Network, golden: Golden) -> None:
    converted = OpenVinoNetwork(network, SIZE, "bf16")
    logits = compute_logits(converted, golden.images[:1], VIEW)
    np.testing.assert_array_equal(logits, compute_logits(network, golden.images[:1], VIEW))
    assert not converted._compiled


def test_process_survives_signals_after_its_networks_are_gone() -> None:
    code = (
        "import faulthandler, signal, torch; faulthandler.enable(); "
        "from afinar.inference.openvino import OpenVinoNetwork; "
        "from tests.inference.test_openvino import random_network; "
        "a, b = (OpenVinoNetwork(random_network('small_cnn'), 64, 'f32') for _ in range(2)); "
        "a(torch.zeros(2, 3, 64, 64)); b(torch.zeros(2, 3, 64, 64)); "
        "del a; del b; "
        "signal.signal(signal.SIGUSR1, lambda *_: print('handled')); "
        "signal.raise_signal(signal.SIGUSR1)"
    )
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (process.returncode, process.stdout) == (0, "handled\n"), process.stderr


def test_auto_uses_openvino_for_many_pictures_only(
    network: Network, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    few, many = 2 * MIN_OPENVINO_PICTURES - 1, 2 * MIN_OPENVINO_PICTURES
    assert isinstance(optimize_for_inference(network, golden, VIEW, "auto", many), OpenVinoNetwork)
    for precision, pictures in (("auto", few), ("float32", many), ("bfloat16", many)):
        optimized = optimize_for_inference(network, golden, VIEW, precision, pictures)  # type: ignore[arg-type]
        assert not isinstance(optimized, OpenVinoNetwork)

    monkeypatch.setattr(optimize, "is_installed", lambda: False)
    assert not isinstance(
        optimize_for_inference(network, golden, VIEW, "auto", many), OpenVinoNetwork
    )


def test_bfloat16_is_used_only_where_the_processor_has_it(
    network: Network, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimize, "matches_within_tolerance", lambda *_: True)
    without_bfloat16(monkeypatch)
    optimized = optimize_for_inference(network, golden, VIEW, "auto", MANY)
    assert isinstance(optimized, OpenVinoNetwork)
    assert optimized.precision == "f32"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    optimized = optimize_for_inference(network, golden, VIEW, "auto", MANY)
    assert isinstance(optimized, OpenVinoNetwork)
    assert optimized.precision == "bf16"


def test_bfloat16_with_other_predictions_openvino_computes_in_float32(
    network: Network, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(optimize, "matches_within_tolerance", lambda *_: False)
    optimized = optimize_for_inference(network, golden, VIEW, "auto", MANY)
    assert isinstance(optimized, OpenVinoNetwork)
    assert optimized.precision == "f32"


def test_other_golden_logits_torch_computes(
    network: Network,
    golden: Golden,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    without_bfloat16(monkeypatch)
    right = OpenVinoNetwork.features
    monkeypatch.setattr(OpenVinoNetwork, "features", lambda self, x: 1.1 * right(self, x))
    optimized = optimize_for_inference(network, golden, VIEW, "auto", MANY)
    assert not isinstance(optimized, OpenVinoNetwork)
    assert "torch computes this model" in capsys.readouterr().err


class Unconvertible(torch.nn.Module):
    """A network whose graph depends on its input, which cannot be recorded."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = images.mean(dim=(2, 3))
        return rows if float(rows.sum()) > 0 else -rows


def test_network_that_cannot_be_converted_stays_in_torch_with_one_line(
    network: Network, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_bfloat16(monkeypatch)
    monkeypatch.setattr(optimize, "_fold_batch_norm", lambda network: network.backbone)
    odd = Network(Unconvertible(), torch.nn.Linear(3, 2))  # type: ignore[arg-type]
    golden = golden_of(odd)
    optimized = optimize_for_inference(odd, golden, VIEW, "auto", MANY)
    assert not isinstance(optimized, OpenVinoNetwork)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "OpenVINO cannot compute this network: torch does (RuntimeError)" in lines[0]


def test_published_model_predicts_the_same_through_openvino(trained: Trained) -> None:
    store, version = find_model(trained.champion)
    plain = load_predictor(store, version)
    fast = load_predictor(store, version, precision="auto", pictures=MANY)
    assert isinstance(fast.network, OpenVinoNetwork)
    images = np.random.default_rng(1).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    scores, features = fast.outputs(images, features=True)
    expected = plain.outputs(images, features=True)
    assert np.abs(scores - expected.scores).max() < 0.02
    assert features is not None
    assert expected.features is not None
    assert features.shape == expected.features.shape


def test_openvino_is_imported_late_and_without_its_telemetry(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from afinar.inference.openvino import OpenVinoNetwork, is_installed; "
        "assert is_installed() and 'openvino' not in sys.modules; "
        "from tests.inference.test_openvino import random_network; "
        "OpenVinoNetwork(random_network('small_cnn'), 64, 'f32')(torch.zeros(2, 3, 64, 64)); "
        "assert 'openvino' in sys.modules and 'openvino_telemetry' not in sys.modules"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "CI": ""}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, env=environment)
    assert not (tmp_path / "intel").exists(), "OpenVINO's telemetry keeps its identifier there"


def test_is_installed_looks_for_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not module.is_installed()
