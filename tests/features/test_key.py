"""The key changes with everything that determines features, and with nothing else."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from afinar.config.strict import structure
from afinar.features.key import FeatureSpec
from afinar.features.network import weights_hash
from afinar.features.reader import open_features
from afinar.pictures.preprocessing import InputView, StoredView
from tests.archives import ingest
from tests.conftest import make_archive
from tests.features.jobs import compute, put_weights

channels = st.tuples(*[st.floats(0.1, 0.9)] * 3)
stored_views = st.builds(
    StoredView,
    size=st.integers(8, 512),
    fit=st.sampled_from(["crop", "pad", "squash"]),
    background=st.tuples(*[st.integers(0, 255)] * 3),
    store=st.sampled_from(["pixels", "jpeg"]),
)
input_views = st.builds(
    InputView,
    input_size=st.integers(8, 512),
    mean=channels,
    std=channels,
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
values: dict[str, st.SearchStrategy[Any]] = {
    "backbone": st.sampled_from(["resnet18", "resnet50", "timm:resnet18"]),
    "weights": st.text("0123456789abcdef", min_size=64, max_size=64),
    "cut": st.sampled_from(["flatten", "layer3.1.relu_1", "layer2.0.conv1"]),
    "pool": st.sampled_from(["average", "flatten", "average+std", "token"]),
    "stored_view": stored_views,
    "input_view": input_views,
    "precision": st.sampled_from(["float32", "bfloat16", "float16"]),
    "stored_as": st.sampled_from(["float16", "float32"]),
    "augmented": st.sampled_from(["", "flip of seed 0, view 1", "flip of seed 0, view 2"]),
}
specs = st.builds(FeatureSpec, **values)


def test_every_field_is_drawn() -> None:
    assert values.keys() == {field.name for field in fields(FeatureSpec)}


@hypothesis.given(specs, st.data())
def test_any_change_changes_the_key(spec: FeatureSpec, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(values)))
    changed = replace(spec, **{name: data.draw(values[name])})
    assert (changed.key == spec.key) == (changed == spec)


@hypothesis.given(stored_views, st.data())
def test_any_change_of_the_stored_view_changes_the_key(
    view: StoredView, data: st.DataObject
) -> None:
    spec = FeatureSpec(
        backbone="resnet18",
        weights="0" * 64,
        cut="flatten",
        pool="average",
        stored_view=view,
        input_view=InputView(input_size=64, mean=(0.5,) * 3, std=(0.5,) * 3),
        precision="float32",
        stored_as="float16",
    )
    name = data.draw(st.sampled_from([field.name for field in fields(StoredView)]))
    other = getattr(data.draw(stored_views), name)
    changed = replace(spec, stored_view=replace(view, **{name: other}))
    assert (changed.key == spec.key) == (other == getattr(view, name))


@hypothesis.given(specs)
def test_record_gives_the_same_key(spec: FeatureSpec) -> None:
    assert structure(json.loads(json.dumps(spec.as_dict())), FeatureSpec).key == spec.key


@hypothesis.given(st.integers(0, 1), st.integers(0, 11), st.floats(0.5, 2.0))
def test_weights_hash_covers_every_value(tensor: int, position: int, factor: float) -> None:
    tensors = {"a": torch.arange(1.0, 13.0).reshape(3, 4), "b": torch.arange(2.0, 14.0)}
    before = weights_hash(tensors)
    name = "ab"[tensor]
    changed = {**tensors, name: tensors[name].clone()}
    changed[name].view(-1)[position] *= factor
    assert (weights_hash(changed) == before) == torch.equal(changed[name], tensors[name])
    assert weights_hash({"a": tensors["b"], "b": tensors["a"]}) != before
    assert weights_hash({**tensors, "a": tensors["a"].reshape(4, 3)}) != before


def test_weights_and_cut_of_a_job_are_in_its_key(
    archive: Path, tmp_path: Path, weights: str
) -> None:
    dataset = tmp_path / "dataset"
    ingest(archive, dataset)
    other = put_weights(tmp_path / "other.safetensors", seed=1)
    same_bytes_elsewhere = put_weights(tmp_path / "renamed.safetensors", seed=0)
    keys = [
        compute(dataset, path, cut="3").features[0].key
        for path in (weights, other, same_bytes_elsewhere)
    ]
    assert keys[0] == keys[2] != keys[1]
    assert compute(dataset, same_bytes_elsewhere, cut="3").read == 0


def test_renamed_archive_and_moved_dataset_keep_all_features(tmp_path: Path, weights: str) -> None:
    archive = make_archive(tmp_path / "pictures", 8)
    dataset = tmp_path / "dataset"
    ingest(archive, dataset)
    first = compute(dataset, weights)
    for number, path in enumerate(sorted((archive / "moss").iterdir())):
        path.rename(archive / "rust" / f"moved-{number}.jpg")  # a new name and a new label
    (archive / "moss" / "new.jpg").write_bytes((archive / "rust" / "000.jpg").read_bytes())
    ingest(archive, dataset)
    dataset.rename(tmp_path / "elsewhere")
    again = compute(tmp_path / "elsewhere", weights)
    assert again.read == 0
    assert [item.key for item in again.features] == [item.key for item in first.features]
    assert open_features(str(tmp_path / "elsewhere"), cut="3").read(
        open_features(str(tmp_path / "elsewhere"), cut="3").sample_ids
    ).shape == (16, 32)


@pytest.mark.parametrize("option", [{"size": 48}, {"fit": "crop"}])
def test_other_preprocessing_gives_other_features(
    option: dict[str, Any], archive: Path, tmp_path: Path, weights: str
) -> None:
    keys = []
    for name, options in (("a", {}), ("b", option)):
        ingest(archive, tmp_path / name, **options)
        keys.append(compute(tmp_path / name, weights, cut="3").features[0].key)
    assert keys[0] != keys[1]
