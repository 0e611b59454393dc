"""Splits and plans are pure functions."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dataset.schema import LISTING
from pipeline.dataset.splits import assign_split
from pipeline.dataset.units import count_units, plan_units, settled, unit_names, units_of

SHARES = (0.7, 0.15, 0.15)
names = st.text("abcdefgh0123456789", min_size=1, max_size=8)


def listing(uris: list[str]) -> pa.Table:
    rows = [{"uri": uri, "etag": f"e-{uri}", "size": 1} for uri in sorted(uris)]
    return pa.Table.from_pylist(rows, schema=LISTING)


@given(st.sets(names, min_size=1), names, st.integers(0, 5))
def test_a_sample_keeps_its_split_whatever_is_around_it(keys: set[str], new: str, seed: int) -> None:
    before = {key: assign_split(key, SHARES, seed) for key in keys}
    after = {key: assign_split(key, SHARES, seed) for key in keys | {new}}
    assert all(after[key] == split for key, split in before.items())


def test_shares_are_met() -> None:
    keys = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(20_000)]
    splits = [assign_split(key, SHARES, 7) for key in keys]
    for split, share in zip(("train", "validation", "test"), SHARES, strict=True):
        assert abs(splits.count(split) / len(keys) - share) < 0.01


def test_a_share_of_zero_gets_nothing() -> None:
    assert {assign_split(str(number), (1.0, 0.0, 0.0), 0) for number in range(1000)} == {"train"}


@given(st.sets(names, min_size=1, max_size=60), st.randoms(), st.integers(1, 20))
def test_units_partition_what_is_open(uris: set[str], random: object, per_unit: int) -> None:
    known = listing(list(uris)[::3])
    table = listing(list(uris))
    plan = plan_units(table, settled(table, known), "identity", per_unit)
    units = dict(units_of(plan, "s"))
    planned = [entry.uri for entries in units.values() for entry in entries]
    assert sorted(planned) == sorted(uri for uri in uris if uri not in known.column("uri").to_pylist())
    assert all(len(entries) <= per_unit for entries in units.values())


@given(st.sets(names, min_size=1, max_size=60))
def test_a_units_name_is_a_digest_of_what_it_does(uris: set[str]) -> None:
    table = listing(list(uris))
    nothing = pa.chunked_array([np.zeros(len(table), dtype=bool)])
    one = plan_units(table, nothing, "identity", 7)
    assert one == plan_units(table, nothing, "identity", 7)
    other = plan_units(table, nothing, "another identity", 7)
    assert set(unit_names(one)).isdisjoint(unit_names(other))


def test_small_archives_are_shared_and_large_ones_bounded() -> None:
    assert count_units(10, 500) == 1
    assert count_units(1_600, 500) == 32
    assert count_units(1_000_000, 500) == 2_000
