"""Estimates of an ingest."""

from __future__ import annotations

from pathlib import Path

import pytest

from afinar.config.ingest import IngestConfig
from afinar.errors import RequestError
from afinar.ingestion.driver import run_ingest
from afinar.ingestion.estimate import forecast_ingest
from afinar.storage.open import open_store
from afinar.units.executor import InlineExecutor
from tests.archives import ingest
from tests.conftest import jpeg, make_archive


def test_forecast_has_the_counts_of_the_ingest_that_follows(archive: Path, tmp_path: Path) -> None:
    (archive / "moss" / "empty.jpg").write_bytes(b"")
    dataset = str(tmp_path / "dataset")
    config = IngestConfig(source=str(archive), dataset=dataset, size=32, workers=3)
    forecast = forecast_ingest(config)
    assert not Path(dataset).exists(), "a forecast writes nothing"
    assert (forecast.listed, forecast.to_read, forecast.sampled, forecast.workers) == (
        25,
        25,
        25,
        3,
    )
    assert forecast.sample_rejects == {"empty": 1}
    assert forecast.bytes_read == sum(path.stat().st_size for path in archive.rglob("*.jpg"))
    assert forecast.requests == {"LIST": 1, "GET": 25, "PUT": 8}
    assert sum(forecast.stages.values()) == pytest.approx(1, abs=0.01)
    run_ingest(config, InlineExecutor())
    written = sum(info.size for info in open_store(dataset).walk("shards"))
    assert forecast.bytes_written == pytest.approx(written, rel=0.1)
    assert (
        sum(len(list((Path(dataset) / kind).iterdir())) for kind in ("shards", "facts", "units"))
        == 3
    )
    (archive / "rust" / "new.jpg").write_bytes(jpeg(99))
    assert forecast_ingest(config).to_read == 1


def test_forecast_of_another_source_is_refused_like_the_ingest(
    archive: Path, tmp_path: Path
) -> None:
    dataset = str(tmp_path / "dataset")
    ingest(archive, dataset)
    other = make_archive(tmp_path / "other", 5)
    with pytest.raises(RequestError, match="holds the pictures of"):
        forecast_ingest(IngestConfig(source=str(other), dataset=dataset, size=64))
