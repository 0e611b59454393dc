"""An ingest of Pillow's test images: odd, broken and hostile files."""

from __future__ import annotations

from pathlib import Path

import pytest

from afinar import open_dataset
from tests.archives import ingest
from tests.pictures.pillow_images import pillow_images


@pytest.mark.filterwarnings("ignore")  # Pillow warns about many of them
def test_each_file_is_one_sample_or_one_reject(tmp_path: Path) -> None:
    source, dataset = pillow_images(), str(tmp_path / "dataset")
    summary = ingest(source, dataset, labels="none", extensions="all", max_reject_rate=1.0)
    relative = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    visible = [path for path in relative if not any(part.startswith(".") for part in path.parts)]
    assert summary.listed == len(visible)
    assert summary.samples + summary.rejects == summary.listed
    assert summary.samples >= 790
    assert sum(summary.rejects_by_reason.values()) == summary.rejects
    opened = open_dataset(dataset)
    assert opened.index.num_rows == summary.samples
    uris = opened.index.column("uri").to_pylist() + opened.rejects.column("uri").to_pylist()
    assert len(uris) == len(set(uris)) == summary.listed
