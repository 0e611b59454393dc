"""Which picture is convicted of killing workers: one at which two attempts died, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest
from afinar.errors import StorageError
from afinar.inference.quarantine import ATTEMPTS, BadInputTracker
from afinar.storage.open import open_store
from afinar.storage.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def die_at(store: Store, position: int, attempt: int) -> None:
    """As a process does that is killed: nothing of the block's end runs."""
    store.put_if_absent(f"{ATTEMPTS}/unit/{position}-{attempt}", b"")


def test_one_death_may_be_an_accident_and_two_are_none(store: Store) -> None:
    die_at(store, 7, 1)
    assert BadInputTracker(store, "unit", 2).quarantined == frozenset()
    die_at(store, 7, 2)
    die_at(store, 9, 3)
    suspects = BadInputTracker(store, "unit", 4)
    assert suspects.quarantined == {7}
    suspects.clear()
    assert not list(store.walk(ATTEMPTS))


def test_an_attempt_that_fails_but_lives_leaves_no_word(store: Store) -> None:
    for attempt in (1, 2):
        with pytest.raises(StorageError), BadInputTracker(store, "unit", attempt).at(7):
            raise StorageError("no answer")
    assert not list(store.walk(ATTEMPTS))


def test_a_first_attempt_neither_leaves_nor_heeds_any(store: Store) -> None:
    die_at(store, 7, 1)
    die_at(store, 7, 2)
    first = BadInputTracker(store, "unit", 0)
    with first.at(3):
        assert len(list(store.walk(ATTEMPTS))) == 2
    assert first.quarantined == frozenset()
