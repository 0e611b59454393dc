"""Export: files that predict the golden samples without afinar, or no file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from afinar import open_model
from afinar.cli.main import main
from afinar.config.models import ExportFormat
from afinar.errors import ModelError, RequestError
from afinar.models.networks.architecture import Architecture
from afinar.models.networks.cuts import resolve_cut
from afinar.models.networks.network import build_network
from afinar.models.networks.weights import normalisation
from afinar.models.registry import export as module
from afinar.models.registry.bundle import put_weights
from afinar.models.registry.export import METADATA, export_model
from afinar.models.registry.golden import GoldenPictures, compute_logits, put_golden
from afinar.models.registry.versions import ModelVersion, find_model, publish_model
from afinar.pictures.preprocessing import InputView, StoredView
from afinar.storage.open import open_store
from tests.conftest import Trained

SIZE = 64
FORMATS: tuple[ExportFormat, ...] = ("onnx", "torch.export")
CLASSES = ["a", "b", "c"]

ELSEWHERE = """
import sys
sys.modules["afinar"] = None  # an import of it fails
import numpy as np, onnxruntime, torch
folder = sys.argv[1]
images = np.load(f"{folder}/images.npy")
session = onnxruntime.InferenceSession(f"{folder}/model.onnx", providers=["CPUExecutionProvider"])
(from_onnx,) = session.run(["probabilities"], {"images": images})
np.save(f"{folder}/onnx.npy", from_onnx)
program = torch.export.load(f"{folder}/model.pt2")
np.save(f"{folder}/torch.export.npy", program.module()(torch.from_numpy(images)).detach().numpy())
"""


def publish_random(models: Path, backbone: str, stored_size: int) -> str:
    """Publish a network with random weights and a temperature, and return MODELS@1."""
    torch.manual_seed(0)
    mean, std = normalisation(backbone)
    view = InputView(input_size=SIZE, mean=mean, std=std)
    architecture = Architecture(
        backbone=backbone,
        cut=resolve_cut(backbone, "auto", SIZE),
        head="mlp",
        hidden=8,
        input_size=SIZE,
        classes=len(CLASSES),
    )
    network = build_network(architecture).network.eval()
    with torch.no_grad():
        network.classifier[-1].weight.mul_(5)  # type: ignore[index]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, stored_size, stored_size, 3), dtype=np.uint8)
    store = open_store(str(models))
    golden = put_golden(
        store,
        GoldenPictures([b""] * len(images), images),
        compute_logits(network, images, view),
        CLASSES,
        0.5,
    )
    weights = put_weights(store, network)
    publish_model(
        store,
        lambda number: ModelVersion(
            version=number, architecture=architecture, regime="frozen", classes=CLASSES,
            stored_view=StoredView(size=stored_size, fit="crop"), input_view=view,
            weights=weights, golden=golden, metrics={}, lineage={}, temperature=0.5,
        ),
    )  # fmt: skip
    return f"{models}@1"


@pytest.mark.parametrize(
    ("backbone", "stored_size"), [("resnet18", 64), ("efficientnet_lite0", 80)]
)
def test_files_predict_the_golden_samples_in_a_process_without_afinar(
    tmp_path: Path, backbone: str, stored_size: int
) -> None:
    model = open_model(publish_random(tmp_path / "models", backbone, stored_size))
    names: dict[ExportFormat, str] = {"onnx": "model.onnx", "torch.export": "model.pt2"}
    for file_format, name in names.items():
        exported = model.export(file_format, tmp_path / name)
        assert exported.difference < 1e-3
        assert exported.bytes == (tmp_path / name).stat().st_size
    # Another number of pictures than the exporter was shown.
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, stored_size, stored_size, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    subprocess.run([sys.executable, "-I", "-c", ELSEWHERE, str(tmp_path)], check=True, timeout=300)
    expected = model(images)
    assert expected.max() - expected.min() > 0.05, "the probabilities differ"
    for file_format in names:
        found = np.load(tmp_path / f"{file_format}.npy")
        assert np.abs(found - expected).max() < 1e-3

    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    metadata = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
    assert metadata["classes"] == CLASSES
    extra: dict[str, Any] = {METADATA: ""}
    torch.export.load(str(tmp_path / "model.pt2"), extra_files=extra)
    assert json.loads(extra[METADATA]) == metadata
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def with_error(predict: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: predict(*arguments) + 0.002


@pytest.mark.parametrize("file_format", FORMATS)
def test_file_that_predicts_otherwise_is_not_kept(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_format: ExportFormat
) -> None:
    monkeypatch.setattr(module, "_predict", with_error(module._predict))
    with pytest.raises(ModelError, match=r"differently \(by 0\.002"):
        export_model(*find_model(trained.champion), file_format, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_network_that_cannot_be_exported_leaves_no_file(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(torch.export, "export", fail)
    with pytest.raises(ModelError, match=r"cannot be exported as onnx \(no such operator\)"):
        export_model(*find_model(trained.champion), "onnx", tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_wrong_target_and_missing_extra_are_refused_before_any_work(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = find_model(trained.champion)
    (tmp_path / "there.onnx").write_bytes(b"mine")
    for path, words in (
        ("s3://bucket/model.onnx", "a local file"),
        (str(tmp_path / "none" / "model.onnx"), "there is no folder"),
        (str(tmp_path / "there.onnx"), "exists"),
    ):
        with pytest.raises(RequestError, match=words):
            export_model(*model, "onnx", path)
    assert (tmp_path / "there.onnx").read_bytes() == b"mine"

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"pip install 'afinar\[onnx\]'"):
        export_model(*model, "onnx", tmp_path / "model.onnx")


def test_export_as_a_command(
    trained: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "model.pt2"
    flags = ["--format", "torch.export", "--out", str(target)]
    assert main(["models", trained.models, "export", "1", *flags]) == 0
    out = capfd.readouterr().out
    assert out.startswith(f"{target}: torch.export, ")
    assert target.stat().st_size > 1000
    assert main(["models", trained.models, "export", *flags]) == 2
    assert "exists" in capfd.readouterr().err
    assert main(["models", trained.models, "export"]) == 2
    assert "--out FILE" in capfd.readouterr().err
    assert main(["models", trained.models, "list", "--out", "x"]) == 2
