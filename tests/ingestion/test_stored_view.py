"""Size, fit and store of a dataset are remembered; a change is noted with what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from afinar.config.ingest import IngestConfig
from afinar.dataset.reader import open_dataset
from afinar.ingestion.driver import IngestSummary, run_ingest
from afinar.pictures.preprocessing import StoredView
from afinar.units.executor import Executor, InlineExecutor
from tests.conftest import jpeg
from tests.executors import InterruptedExecutor


def ingest(
    archive: Path, dataset: Path, executor: Executor | None = None, **options: Any
) -> IngestSummary:
    config = IngestConfig(source=str(archive), dataset=str(dataset), **options)
    return run_ingest(config, executor or InlineExecutor()).summary


def test_second_ingest_keeps_what_the_first_was_given(archive: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    ingest(archive, dataset, size=48, fit="crop", store="jpeg")
    (archive / "moss" / "new.jpg").write_bytes(jpeg(99))
    summary = ingest(archive, dataset)
    view = open_dataset(str(dataset)).view
    assert (view.size, view.fit, view.store) == (48, "crop", "jpeg")
    assert (summary.added, summary.unchanged) == (1, 24)
    assert not any("decoded again" in note for note in summary.notes)


def test_change_of_the_fit_is_noted_with_its_cost(archive: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    ingest(archive, dataset, size=48)
    summary = ingest(archive, dataset, fit="squash")
    (note,) = [note for note in summary.notes if "decoded again" in note]
    assert "from 48 px, pad, pixels" in note
    assert "to 48 px, squash, pixels" in note
    assert "all 24 pictures" in note
    view = open_dataset(str(dataset)).view
    assert (view.size, view.fit) == (48, "squash")


def test_new_dataset_has_the_stated_defaults(archive: Path, tmp_path: Path) -> None:
    ingest(archive, tmp_path / "dataset")
    view = open_dataset(str(tmp_path / "dataset")).view
    assert (view.size, view.fit, view.store) == (256, "pad", "pixels")


def test_first_ingest_that_was_interrupted_while_cropping_was_the_default_is_resumed(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            "afinar.ingestion.stored_view._NEW", StoredView(size=256, fit="crop", store="pixels")
        )
        with pytest.raises(KeyboardInterrupt):
            ingest(archive, tmp_path / "dataset", InterruptedExecutor(0))
    ingest(archive, tmp_path / "dataset")
    assert open_dataset(str(tmp_path / "dataset")).view.fit == "crop"
