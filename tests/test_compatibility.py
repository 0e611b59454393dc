"""Datasets, models and predictions of an earlier state of the code open, resume and continue.

`data/written-by-777c397.tar.xz` holds the objects of a bucket `compat` that commit 777c397 wrote:

    pictures/      120 JPEGs of 32 x 24 px in two classes, and one file that is no picture
    dataset/       their dataset at 16 px, version 1
    interrupted/   an ingest of the same, killed after its two units and before it published
    models/        version 1 of small_cnn cut at its node 4, and run `interrupted`, killed in the
                   third of four epochs
    predictions/   labels of the pictures with --abstain-below 0.7
    unfinished/    a labelling that was killed after two of its three units
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3fs

from afinar import open_dataset, open_model, open_predictions
from afinar.config.ingest import IngestConfig
from afinar.config.label import LabelConfig
from afinar.config.train import TrainConfig
from afinar.dataset.gc import verify_dataset
from afinar.dataset.manifest import get_manifests
from afinar.ingestion.driver import run_ingest
from afinar.labelling.driver import run_labelling
from afinar.predictions.gc import require_manifest, verify
from afinar.storage.open import open_store
from afinar.training.distributed import Group
from afinar.training.task import plan_training
from afinar.training.worker import train
from afinar.units.executor import InlineExecutor
from tests.pictures.files import photograph
from tests.pictures.icc import SPACES, rgb_profile

FIXTURE = Path(__file__).parent / "data" / "written-by-777c397.tar.xz"
INGEST: dict[str, Any] = {"source": "s3://compat/pictures", "size": 16}
LABEL: dict[str, Any] = {"source": "s3://compat/pictures", "model": "s3://compat/models@1"}


@pytest.fixture(scope="module")
def compat(s3_server: str) -> Iterator[None]:
    """The bucket as commit 777c397 left it."""
    s3fs.S3FileSystem().mkdir("compat")
    store = open_store("s3://compat")
    with tarfile.open(FIXTURE) as archive:
        for member in archive:
            content = archive.extractfile(member)
            assert content is not None
            assert store.put_if_absent(member.name, content.read())
    yield
    for info in list(store.walk()):
        store.delete(info.name)


def test_a_dataset_opens_verifies_and_needs_no_new_version(compat: None) -> None:
    dataset = open_dataset("s3://compat/dataset")
    assert (len(dataset.index), len(dataset.rejects), dataset.classes) == (120, 1, ["moss", "rust"])
    assert dataset.read([0, 119]).shape == (2, 16, 16, 3)
    assert verify_dataset(dataset.store, get_manifests(dataset.store)).damaged == []
    outcome = run_ingest(IngestConfig(dataset="s3://compat/dataset", **INGEST), InlineExecutor())
    assert (outcome.published, outcome.summary.version, outcome.summary.unchanged) == (
        False,
        1,
        120,
    )


def test_an_interrupted_ingest_is_resumed(compat: None) -> None:
    config = IngestConfig(dataset="s3://compat/interrupted", **INGEST)
    summary = run_ingest(config, InlineExecutor()).summary
    assert (summary.version, summary.units_run, summary.samples, summary.rejects) == (1, 0, 120, 1)
    ours, theirs = open_dataset(config.dataset), open_dataset("s3://compat/dataset")
    assert ours.index.equals(theirs.index)
    names = {ref.path for ref in ours.objects_of("shard")}
    assert names == {ref.path for ref in theirs.objects_of("shard")}


def test_a_dataset_continues_with_a_second_version(compat: None) -> None:
    store = open_store("s3://compat/pictures")
    data = io.BytesIO(store.get("moss/000.jpg"))
    assert store.put_if_absent("moss/again.jpg", data.getvalue() + b"\0")
    config = IngestConfig(dataset="s3://compat/interrupted", **INGEST)
    summary = run_ingest(config, InlineExecutor()).summary
    store.delete("moss/again.jpg")
    assert (summary.version, summary.added, summary.unchanged) == (2, 1, 120)
    assert (summary.lineage, open_dataset(config.dataset).view.decoder) == (1, "pillow/2")


def test_a_model_labels_with_the_decoder_that_it_was_trained_on(
    compat: None, tmp_path: Path
) -> None:
    """It has learned from pixels whose colour profiles were ignored."""
    model = open_model("s3://compat/models@champion")
    photo = photograph(1, 16, 16)
    photo.save(tmp_path / "p3.png", icc_profile=rgb_profile(SPACES["Display P3"]))
    (from_file,), (from_pixels,) = (
        model.predict([tmp_path / "p3.png"]), model.predict([np.asarray(photo)])
    )  # fmt: skip
    assert from_file == from_pixels


def test_predictions_open_verify_and_need_no_new_version(compat: None) -> None:
    predictions = open_predictions("s3://compat/predictions")
    assert (len(predictions.table), len(predictions.rejects)) == (120, 1)
    store = open_store("s3://compat/predictions")
    assert verify(store, require_manifest(store)).damaged == []
    config = LabelConfig(predictions="s3://compat/predictions", abstain_below=0.7, **LABEL)
    outcome = run_labelling(config, InlineExecutor())
    assert (outcome.summary.labelled, outcome.summary.skipped, outcome.report) == (0, 120, None)
    assert outcome.summary.abstained == 39


def test_an_interrupted_labelling_is_resumed(compat: None) -> None:
    config = LabelConfig(predictions="s3://compat/unfinished", **LABEL)
    summary = run_labelling(config, InlineExecutor()).summary
    assert (summary.units_run, summary.labelled, summary.rejected) == (1, 120, 1)
    ours = open_predictions(config.predictions).table
    theirs = open_predictions("s3://compat/predictions").table
    for name in ("uri", "sample_id", "etag", "label", "model_version"):
        assert ours.column(name).equals(theirs.column(name))
    # In bfloat16, which has three digits, sums depend on the processor.
    scores = ours.column("score").to_pylist()
    assert scores == pytest.approx(theirs.column("score").to_pylist(), abs=5e-3)


def test_a_model_opens_and_an_interrupted_training_is_resumed(compat: None) -> None:
    dataset = open_dataset("s3://compat/dataset")
    (scores,) = open_model("s3://compat/models@champion").predict([dataset.read([0])[0]])
    assert max(scores, key=scores.__getitem__) == "moss"

    config = TrainConfig(
        dataset="s3://compat/dataset", models="s3://compat/models", epochs=4, backbone="small_cnn",
        cut="4", regime="scratch", weights="none", input_size=48, batch_size=16,
    )  # fmt: skip
    task = plan_training(config, "new")
    assert (task.run, task.resumed) == ("interrupted", True)
    outcome = train(task, Group())
    assert len(outcome.history) == 4
    assert outcome.metrics["test"]["top1"] == 1.0
