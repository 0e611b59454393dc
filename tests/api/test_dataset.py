"""A dataset in Python: samples, arrays, torch, Ray Data, and how it is shown."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import afinar
from afinar.config.ingest import IngestConfig
from afinar.ingestion.driver import run_ingest
from afinar.units.executor import InlineExecutor
from tests.conftest import Trained, make_archive


@pytest.fixture(scope="module")
def dataset(trained: Trained) -> afinar.Dataset:
    return afinar.open_dataset(Path(trained.dataset))


def test_dataset_is_a_sequence_of_samples(dataset: afinar.Dataset) -> None:
    samples = list(dataset)
    assert len(dataset) == len(samples) == 80
    assert [sample.uri for sample in samples] == dataset.index.column("uri").to_pylist()
    assert [sample.label for sample in samples] == dataset.index.column("label").to_pylist()
    np.testing.assert_array_equal(samples[70].image, dataset.read([70])[0])
    assert dataset[-1].sample_id == samples[79].sample_id
    assert dataset[0]._repr_png_().startswith(b"\x89PNG")
    assert "64x64 px" in repr(dataset[0])
    with pytest.raises(IndexError):
        _ = dataset[80]


def test_arrays_have_the_pixels_and_labels_of_a_split(dataset: afinar.Dataset) -> None:
    images, labels = dataset.numpy("validation")
    rows = [row for row in dataset.index.to_pylist() if row["split"] == "validation"]
    assert [dataset.classes[label] for label in labels] == [row["label"] for row in rows]
    assert images.shape == (len(rows), 64, 64, 3)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert len(dataset.numpy().images) == 80
    with pytest.raises(afinar.RequestError, match="one of train, validation, test"):
        dataset.numpy("valid")  # type: ignore[arg-type]


def test_pictures_without_labels_are_in_no_arrays_and_are_samples(tmp_path: Path) -> None:
    make_archive(tmp_path / "pictures", 4)
    source, target = str(tmp_path / "pictures"), str(tmp_path / "dataset")
    run_ingest(IngestConfig(source, target, labels="none", size=32), InlineExecutor())
    dataset = afinar.open_dataset(target)
    assert {sample.label for sample in dataset} == {None}
    assert len(dataset.numpy().images) == 0
    assert "0 classes" in repr(dataset)


def test_torch_dataset_gives_a_data_loader_in_processes_the_same_pixels(
    dataset: afinar.Dataset,
) -> None:
    images, labels = dataset.numpy("train")
    # A worker that is not forked gets the dataset as a pickle, and opens it anew.
    pairs = pickle.loads(pickle.dumps(dataset.torch("train")))
    batches = list(DataLoader(pairs, batch_size=16, num_workers=2))
    pixels = torch.cat([batch for batch, _ in batches])
    assert pixels.dtype == torch.uint8
    np.testing.assert_array_equal(pixels.permute(0, 2, 3, 1).numpy(), images)
    assert torch.cat([numbers for _, numbers in batches]).tolist() == labels.tolist()


def test_torch_dataset_applies_a_transform(dataset: afinar.Dataset) -> None:
    pairs = dataset.torch("test", transform=lambda image: image.float() / 255)
    image, label = pairs[0]
    assert image.dtype == torch.float32
    assert image.max() <= 1
    assert label in (0, 1)
    assert len(pairs) == len(dataset.rows("test"))


def test_ray_dataset_reads_pixels_in_its_workers(dataset: afinar.Dataset, local_ray: None) -> None:
    rows = {row["uri"]: row for row in dataset.ray("test").take_all()}
    images, labels = dataset.numpy("test")
    uris = dataset.index.column("uri").take(dataset.rows("test")).to_pylist()
    assert sorted(rows) == sorted(uris)
    for uri, image, label in zip(uris, images, labels, strict=True):
        np.testing.assert_array_equal(rows[uri]["image"], image)
        assert rows[uri]["label"] == dataset.classes[label]


def test_dataset_shows_itself(dataset: afinar.Dataset) -> None:
    assert "version 1): 80 pictures of 64x64 px, 2 classes" in repr(dataset)
    page = dataset._repr_html_()
    train = sum(sample.split == "train" and sample.label == "moss" for sample in dataset)
    assert f"<td>moss</td><td>{train}</td>" in page
    assert dataset.show(5).width == 5 * 96
