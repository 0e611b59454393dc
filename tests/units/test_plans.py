"""Plans that are stored until their version is published."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from afinar.storage.open import open_store
from afinar.storage.store import Store
from afinar.units.cut import PLAN
from afinar.units.plans import (
    delete_plan,
    is_stored,
    load_plan,
    planned_units,
    store_plan,
    stored_plans,
)

NAME = "plans/00000001-0123abcd.parquet"


def plan_table(*units: str) -> pa.Table:
    rows = [
        {"uri": f"{number}.jpg", "etag": "e", "size": 1, "unit": unit}
        for number, unit in enumerate(units)
    ]
    return pa.Table.from_pylist(rows, schema=PLAN)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "target"))


def test_stored_plan_is_loaded_as_resumed(store: Store) -> None:
    assert load_plan(store, NAME) is None
    stored = store_plan(store, NAME, plan_table("u1", "u1", "u2"))
    loaded = load_plan(store, NAME)
    assert loaded is not None
    assert (stored.resumed, loaded.resumed) == (False, True)
    assert (loaded.units, loaded.etag) == (["u1", "u2"], stored.etag)
    assert loaded.table == stored.table


def test_plan_of_a_concurrent_run_is_returned_instead_of_an_own_one(store: Store) -> None:
    store_plan(store, NAME, plan_table("u1"))
    second = store_plan(store, NAME, plan_table("u2"))
    assert (second.units, second.resumed) == (["u1"], False)


def test_deleting_a_plan_leaves_another_one_of_that_name(store: Store) -> None:
    first = store_plan(store, NAME, plan_table("u1"))
    store.delete(NAME)
    assert not is_stored(store, first)
    second = store_plan(store, NAME, plan_table("u1", "u2"))
    delete_plan(store, first)
    assert is_stored(store, second)
    delete_plan(store, second)
    assert load_plan(store, NAME) is None


def test_stored_plans_name_the_units_of_every_plan(store: Store) -> None:
    store_plan(store, NAME, plan_table("u1", "u2"))
    store_plan(store, "plans/00000002-forget.parquet", plan_table())
    assert {plan.name: plan.units for plan in stored_plans(store)} == {
        NAME: {"u1", "u2"},
        "plans/00000002-forget.parquet": set(),
    }
    assert planned_units(store) == {"u1", "u2"}
