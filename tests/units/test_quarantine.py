"""Quarantine: a picture at which two attempts died, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from afinar.errors import StorageError
from afinar.storage.open import open_store
from afinar.storage.store import Store
from afinar.units.quarantine import ATTEMPTS, track_bad_inputs


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def die_at(store: Store, position: int, attempt: int) -> None:
    """Leave what a process leaves when it is killed at a picture."""
    store.put_if_absent(f"{ATTEMPTS}/unit/{position}-{attempt}", b"")


def test_two_attempts_died_at_a_picture_it_is_quarantined(store: Store) -> None:
    die_at(store, 7, 1)
    assert track_bad_inputs(store, "unit", 2).quarantined == frozenset()
    die_at(store, 7, 2)
    die_at(store, 9, 3)
    tracker = track_bad_inputs(store, "unit", 4)
    assert tracker.quarantined == {7}
    tracker.clear()
    assert not list(store.walk(ATTEMPTS))


def test_attempt_raises_but_lives_no_file_is_left(store: Store) -> None:
    for attempt in (1, 2):
        tracker = track_bad_inputs(store, "unit", attempt)
        with pytest.raises(StorageError), tracker.working_on(7):
            raise StorageError("no answer")
    assert not list(store.walk(ATTEMPTS))


def test_first_attempt_neither_reads_nor_writes_attempt_files(store: Store) -> None:
    die_at(store, 7, 1)
    die_at(store, 7, 2)
    first = track_bad_inputs(store, "unit", 0)
    with first.working_on(3):
        assert len(list(store.walk(ATTEMPTS))) == 2
    assert first.quarantined == frozenset()
