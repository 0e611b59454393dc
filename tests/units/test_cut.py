"""Listings cut into units of work."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afinar.errors import UnsafePathError
from afinar.sources.entry import LISTING
from afinar.units.cut import (
    count_pending,
    even_sizes,
    is_up_to_date,
    iter_units,
    plan_units,
    tapered_sizes,
    unit_names,
)

names = st.text("abcdefgh0123456789", min_size=1, max_size=8)


def listing(uris: list[str]) -> pa.Table:
    rows = [{"uri": uri, "etag": f"e-{uri}", "size": 1} for uri in sorted(uris)]
    return pa.Table.from_pylist(rows, schema=LISTING)


@pytest.mark.parametrize("sizes", [even_sizes, tapered_sizes])
@given(st.sets(names, min_size=1, max_size=60), st.integers(1, 20))
def test_units_partition_the_pending_pictures(
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
def test_name_of_a_unit_is_a_digest_of_its_pictures_and_identity(uris: set[str]) -> None:
    sizes = partial(even_sizes, 7)
    table = listing(list(uris))
    nothing = pa.chunked_array([np.zeros(len(table), dtype=bool)])
    one = plan_units(table, nothing, "identity", sizes)
    assert one == plan_units(table, nothing, "identity", sizes)
    other = plan_units(table, nothing, "another identity", sizes)
    assert set(unit_names(one)).isdisjoint(unit_names(other))


def test_name_of_a_unit_that_leads_out_of_its_folder_is_refused() -> None:
    with pytest.raises(UnsafePathError):
        unit_names(pa.table({"unit": ["../shards/x"]}))


def test_units_in_done_are_left_out() -> None:
    table = listing(list("abcde"))
    up_to_date = is_up_to_date(table, listing(["b"]))
    plan = plan_units(table, up_to_date, "identity", lambda _: [2, 2])
    first, second = unit_names(plan)
    assert plan.column("unit").to_pylist() == [first, None, first, second, second]
    assert count_pending(plan, set()) == 4
    assert count_pending(plan, {first}) == 2
    ((unit, entries),) = iter_units(plan, "", {first})
    assert (unit, [entry.uri for entry in entries]) == (second, ["d", "e"])


def test_name_of_an_entry_is_relative_to_the_source() -> None:
    table = listing(["/archive/moss/1.jpg"])
    nothing = pa.chunked_array([np.zeros(1, dtype=bool)])
    plan = plan_units(table, nothing, "identity", partial(even_sizes, 1))
    for source, name in (("/archive", "moss/1.jpg"), ("", "/archive/moss/1.jpg")):
        ((_, (entry,)),) = iter_units(plan, source)
        assert (entry.name, entry.uri) == (name, "/archive/moss/1.jpg")


def test_even_units_are_finer_for_small_archives_and_bounded_for_large() -> None:
    assert even_sizes(500, 0) == []
    assert even_sizes(500, 10) == [10]
    assert even_sizes(500, 1_600) == [50] * 32
    assert even_sizes(500, 1_000_000) == [500] * 2_000


@given(st.integers(0, 30_000), st.integers(24, 600))
def test_tapered_units_sum_to_all_pictures_and_are_bounded(pictures: int, largest: int) -> None:
    sizes = tapered_sizes(largest, pictures)
    assert sum(sizes) == pictures
    assert all(0 < size <= largest for size in sizes)


def test_tapered_units_are_small_at_both_ends() -> None:
    sizes = tapered_sizes(512, 1_000_000)
    assert sizes[0] == 64
    assert sizes[-1] < 96
    assert max(sizes) == 512
    assert all(size % 64 == 0 for size in sizes[:-1]), "a GPU computes full batches"
    assert sum(size == 512 for size in sizes) > 0.93 * len(sizes)
    assert tapered_sizes(512, 50) == [50]
    assert tapered_sizes(512, 2_400)[:4] == [64] * 4
