"""Splits and plans are pure functions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afinar.config.ingest import SplitShares
from afinar.dataset.splits import assign_split
from afinar.sources.entry import LISTING
from afinar.units.cut import (
    even_sizes,
    is_up_to_date,
    iter_units,
    plan_units,
    tapered_sizes,
    unit_names,
)

SHARES = SplitShares(*(0.7, 0.15, 0.15))
names = st.text("abcdefgh0123456789", min_size=1, max_size=8)


def listing(uris: list[str]) -> pa.Table:
    rows = [{"uri": uri, "etag": f"e-{uri}", "size": 1} for uri in sorted(uris)]
    return pa.Table.from_pylist(rows, schema=LISTING)


@given(st.sets(names, min_size=1), names, st.integers(0, 5))
def test_a_sample_keeps_its_split_whatever_is_around_it(
    keys: set[str], new: str, seed: int
) -> None:
    before = {key: assign_split(key, SHARES, seed) for key in keys}
    after = {key: assign_split(key, SHARES, seed) for key in keys | {new}}
    assert all(after[key] == split for key, split in before.items())


def test_shares_are_met() -> None:
    keys = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(20_000)]
    splits = [assign_split(key, SHARES, 7) for key in keys]
    for split, share in zip(("train", "validation", "test"), SHARES, strict=True):
        assert abs(splits.count(split) / len(keys) - share) < 0.01


def test_a_share_of_zero_gets_nothing() -> None:
    assert {assign_split(str(number), SplitShares(1.0, 0.0, 0.0), 0) for number in range(1000)} == {
        "train"
    }


either_way = pytest.mark.parametrize("sizes", [even_sizes, tapered_sizes])


@either_way
@given(st.sets(names, min_size=1, max_size=60), st.integers(1, 20))
def test_units_partition_what_is_open(
    sizes: Callable[[int, int], list[int]], uris: set[str], per_unit: int
) -> None:
    known = listing(list(uris)[::3])
    table = listing(list(uris))
    plan = plan_units(table, is_up_to_date(table, known), "identity", partial(sizes, per_unit))
    units = dict(iter_units(plan, "s"))
    planned = [entry.uri for entries in units.values() for entry in entries]
    assert sorted(planned) == sorted(
        uri for uri in uris if uri not in known.column("uri").to_pylist()
    )
    assert all(len(entries) <= per_unit for entries in units.values())


@given(st.sets(names, min_size=1, max_size=60))
def test_a_units_name_is_a_digest_of_what_it_does(uris: set[str]) -> None:
    sizes = partial(even_sizes, 7)
    table = listing(list(uris))
    nothing = pa.chunked_array([np.zeros(len(table), dtype=bool)])
    one = plan_units(table, nothing, "identity", sizes)
    assert one == plan_units(table, nothing, "identity", sizes)
    other = plan_units(table, nothing, "another identity", sizes)
    assert set(unit_names(one)).isdisjoint(unit_names(other))


def test_small_archives_are_shared_and_large_ones_bounded() -> None:
    assert even_sizes(500, 0) == []
    assert even_sizes(500, 10) == [10]
    assert even_sizes(500, 1_600) == [50] * 32
    assert even_sizes(500, 1_000_000) == [500] * 2_000


@given(st.integers(0, 30_000), st.integers(24, 600))
def test_tapered_units_are_all_of_it_and_bounded(pictures: int, largest: int) -> None:
    sizes = tapered_sizes(largest, pictures)
    assert sum(sizes) == pictures
    assert all(0 < size <= largest for size in sizes)


def test_tapered_units_are_small_at_both_ends() -> None:
    sizes = tapered_sizes(512, 1_000_000)
    assert sizes[0] == 48
    assert sizes[-1] < 96
    assert max(sizes) == 512
    assert sum(size == 512 for size in sizes) > 0.93 * len(sizes)
    assert tapered_sizes(512, 50) == [50]
    assert tapered_sizes(512, 2_400)[:4] == [48] * 4
