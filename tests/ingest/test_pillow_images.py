"""An archive of odd, broken and hostile files: each is accounted for once."""

from __future__ import annotations

from pathlib import Path

import pytest

from afinar import open_dataset
from afinar.config.ingest import IngestConfig
from afinar.ingest.driver import run_ingest
from afinar.units.executor import InlineExecutor
from tests.pictures.pillow_images import pillow_images


@pytest.mark.filterwarnings("ignore")  # Pillow's remarks, which pytest lets through
def test_each_file_is_one_sample_or_one_reject(tmp_path: Path) -> None:
    source = pillow_images()
    config = IngestConfig(
        source=str(source), dataset=str(tmp_path / "dataset"), labels="none", extensions="all", max_reject_rate=1.0,
        size=64,
    )  # fmt: skip
    summary = run_ingest(config, InlineExecutor()).summary
    relative = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    visible = [path for path in relative if not any(part.startswith(".") for part in path.parts)]
    assert summary.listed == len(visible)
    assert summary.samples + summary.rejects == summary.listed
    assert summary.samples >= 790
    assert sum(summary.rejects_by_reason.values()) == summary.rejects
    dataset = open_dataset(config.dataset)
    assert dataset.index.num_rows == summary.samples
    uris = dataset.index.column("uri").to_pylist() + dataset.rejects.column("uri").to_pylist()
    assert len(uris) == len(set(uris)) == summary.listed
