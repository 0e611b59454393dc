"""The features job: one pass for several cuts, incremental, resumable, bounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from afinar import open_dataset
from afinar.errors import RequestError
from afinar.features import driver as driver_module
from afinar.features.manifest import add_shards, feature_keys, open_features_store, read_features
from afinar.features.reader import Features, open_features
from afinar.models.networks.backbones import build_backbone
from afinar.models.networks.cuts import cut_at_several, cut_backbone
from afinar.models.networks.heads import pool_activations
from afinar.models.networks.network import apply_input_view
from afinar.models.networks.weights import find_weights, load_weights
from tests.archives import ingest
from tests.conftest import jpeg, make_archive
from tests.executors import InterruptedExecutor, RecordingExecutor
from tests.features.jobs import compute


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Return 120 pictures: units of 64 and 56."""
    return make_archive(tmp_path / "pictures", 60)


@pytest.fixture
def dataset(archive: Path, tmp_path: Path) -> str:
    ingest(archive, tmp_path / "dataset")
    return str(tmp_path / "dataset")


def expected(features: Features, dataset: str, weights: str) -> np.ndarray:
    """Return what the plain network computes for the rows of the index of a dataset."""
    spec, opened = features.spec, open_dataset(dataset)
    whole = build_backbone(spec.backbone, spec.input_view.input_size)
    part = cut_backbone(whole, spec.cut).module.eval()
    source = find_weights(weights, spec.backbone)
    assert source is not None
    load_weights(source, whole, part)
    images = torch.from_numpy(opened.read(range(len(opened.index))))
    with torch.no_grad():
        activations = part(apply_input_view(images, spec.input_view))
        return np.asarray(pool_activations(activations, spec.pool))


def test_several_cuts_of_one_pass_are_those_of_the_plain_network(
    dataset: str, weights: str
) -> None:
    executor = RecordingExecutor()
    summary = compute(dataset, weights, executor, stored_as="float32", pool="average,flatten")
    assert (summary.pictures, summary.read, len(executor.uris)) == (120, 120, 120)
    assert len(summary.features) == 6
    ids = open_dataset(dataset).index.column("sample_id")
    for result in summary.features:
        features = open_features(dataset, key=result.key)
        values = features.read(ids)
        assert values.shape == (120, result.width)
        np.testing.assert_allclose(values, expected(features, dataset, weights), atol=2e-5)


def test_float16_changes_values_by_its_stated_error(dataset: str, weights: str) -> None:
    ids = open_dataset(dataset).index.column("sample_id")
    exact, stored = (
        open_features(
            dataset, key=compute(dataset, weights, cut="6", stored_as=kind).features[0].key
        ).read(ids)
        for kind in ("float32", "float16")
    )
    normal = np.abs(exact) > 2**-14
    error = np.abs(stored - exact)[normal] / np.abs(exact)[normal]
    assert 0 < error.max() <= driver_module.FLOAT16_ERROR


def test_activations_are_pooled_before_a_layer_changes_them_in_place() -> None:
    """Torchvision's ReLUs work in place: a cut before one would see its output."""
    torch.manual_seed(0)
    whole = build_backbone("resnet18", 64).eval()
    images = torch.rand(2, 3, 64, 64)
    cuts = ["layer1.0.bn1", "layer2.0.bn2", "layer3"]
    with torch.no_grad():
        together = cut_at_several(whole, [(cut, "average") for cut in cuts]).module(images)
        for cut, pooled in zip(cuts, together, strict=True):
            alone = pool_activations(cut_backbone(whole, cut).module(images), "average")
            torch.testing.assert_close(pooled, alone)
    assert (together[0] < 0).any(), "the activations before the ReLU"


def test_added_picture_costs_one_forward_pass(archive: Path, dataset: str, weights: str) -> None:
    compute(dataset, weights)
    (archive / "moss" / "new.jpg").write_bytes(jpeg(777))
    (archive / "moss" / "copy.jpg").write_bytes((archive / "moss" / "001.jpg").read_bytes())
    ingest(archive, dataset)
    executor = RecordingExecutor()
    summary = compute(dataset, weights, executor)
    assert (summary.read, summary.pictures) == (1, 121)
    assert {result.pictures for result in summary.features} == {121}
    assert open_features(dataset, cut="3").has(open_dataset(dataset).index["sample_id"]).all()


def test_new_cut_does_not_compute_the_others_again(dataset: str, weights: str) -> None:
    compute(dataset, weights, cut="3")
    before = read_features(open_features_store(dataset, feature_keys(dataset)[0])).number
    summary = compute(dataset, weights, cut="3,6")
    assert [result.computed for result in summary.features] == [0, 120]
    key = summary.features[0].key
    assert read_features(open_features_store(dataset, key)).number == before


def test_interrupted_job_computes_only_what_is_left(
    archive: Path, dataset: str, weights: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        compute(dataset, weights, InterruptedExecutor(1))
    (archive / "moss" / "000.jpg").rename(archive / "moss" / "renamed.jpg")
    (archive / "moss" / "new.jpg").write_bytes(jpeg(778))
    ingest(archive, dataset)
    executor = RecordingExecutor()
    summary = compute(dataset, weights, executor)
    assert summary.read == len(executor.uris) == 121 - 64
    assert len(set(executor.uris)) == len(executor.uris)
    for cut in ("3", "6"):
        assert open_features(dataset, cut=cut).has(open_dataset(dataset).index["sample_id"]).all()
    assert list(open_features_store(dataset).walk("plans")) == []


def test_killed_between_two_keys_nothing_is_computed_again(
    dataset: str, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = add_shards
    calls: list[str] = []

    def killed(store: Any, *rest: Any) -> Any:
        calls.append(store.root)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return publish(store, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(driver_module, "add_shards", killed)
        with pytest.raises(KeyboardInterrupt):
            compute(dataset, weights)
    executor = RecordingExecutor()
    summary = compute(dataset, weights, executor)
    assert executor.uris == []
    assert {result.pictures for result in summary.features} == {120}


def test_worker_that_runs_a_unit_again_changes_nothing(dataset: str, weights: str) -> None:
    class TwiceExecutor:
        def run(self, make_work: Any, tasks: Any, policy: Any = None) -> Any:
            work, other = make_work(), make_work()
            for task in tasks:
                other(task)
                yield work(task)

    summary = compute(dataset, weights, TwiceExecutor(), cut="3")
    store = open_features_store(dataset, summary.features[0].key)
    assert len(list(store.walk("shards"))) == 2
    assert list(store.walk("units")) == [], "markers are deleted when their units are published"


def test_concurrent_jobs_publish_each_picture_once(dataset: str, weights: str) -> None:
    class RacingExecutor:
        """Runs the whole job a second time before the units of the first one."""

        def run(self, make_work: Any, tasks: Any, policy: Any = None) -> Any:
            work = make_work()
            compute(dataset, weights, cut="3")
            yield from map(work, tasks)

    summary = compute(dataset, weights, RacingExecutor(), cut="3")
    assert summary.features[0].pictures == 120
    features = open_features(dataset, cut="3")
    assert len(features.index) == len(features.sample_ids) == 120


def test_too_large_features_are_refused_before_any_work(dataset: str, weights: str) -> None:
    executor = RecordingExecutor()
    with pytest.raises(RequestError, match="more than --max-gb"):
        compute(dataset, weights, executor, pool="flatten", max_gb=0.001)
    assert executor.uris == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cut": "nothing"}, "is no node"),
        ({"pool": "token"}, "class token"),
        ({"pool": "average+std"}, "pooled already"),
        ({"pool": "best"}, "--pool 'best'"),
        ({"cut": "resnet18:layer1"}, "is not one of the backbones"),
        ({"weights": "none"}, "random weights"),
    ],
)
def test_wrong_request_is_refused(
    options: dict[str, Any], message: str, dataset: str, weights: str
) -> None:
    with pytest.raises(RequestError, match=message):
        compute(dataset, **{"weights": weights, "cut": "auto", **options})
