"""A job that dies right before or after any of its writes repeats at most the unit in flight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from afinar import open_dataset
from afinar.features.gc import verify_features
from afinar.features.reader import list_all
from afinar.storage import local
from tests.archives import ingest
from tests.conftest import make_archive
from tests.executors import RecordingExecutor
from tests.features.jobs import compute


def die_at_put(number: int, before: bool, patch: pytest.MonkeyPatch) -> None:
    """End the job when it puts its object with this number."""
    save, puts = local._NewFile.save_as, []

    def deadly_save(self: local._NewFile, name: str) -> bool:
        puts.append(name)
        if before and len(puts) == number:
            raise KeyboardInterrupt
        done = save(self, name)
        if len(puts) == number:
            raise KeyboardInterrupt
        return done

    patch.setattr(local._NewFile, "save_as", deadly_save)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_archive(tmp_path_factory.mktemp("archive") / "pictures", 90)


# Of the 22 objects that a job of three units and two cuts puts, the first ones are probes and plan.
@pytest.mark.parametrize("number", np.random.default_rng(0).permutation(22)[:12].tolist())
def test_nothing_is_computed_twice_and_nothing_missing(
    number: int, pictures: Path, tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = str(tmp_path / "dataset")
    ingest(pictures, dataset)
    first, second = RecordingExecutor(), RecordingExecutor()
    with monkeypatch.context() as patch:
        die_at_put(number + 1, number % 2 == 0, patch)
        with pytest.raises(KeyboardInterrupt):
            compute(dataset, weights, first, cut="3,6")
    compute(dataset, weights, second, cut="3,6")

    assert len(first.uris) + len(second.uris) <= 180 + 64, "one unit was in flight"
    assert set(first.uris) | set(second.uris) == set(
        open_dataset(dataset).index["sample_id"].to_pylist()
    )
    for features in list_all(dataset):
        assert len(features.index) == len(features.sample_ids) == 180
    assert verify_features(dataset).damaged == []
