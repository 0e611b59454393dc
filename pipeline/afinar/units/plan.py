"""Cutting a listing into units of work: pure functions of the listing, never of the number of workers.

A plan is stored before its first unit runs, so that whoever comes after an interruption continues it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from afinar.errors import NotFoundError
from afinar.sources.entry import LISTING, Entry
from afinar.sources.listing import update_digest
from afinar.storage.arrow import from_parquet, to_parquet
from afinar.storage.names import check_identifier
from afinar.storage.store import Store

logger = logging.getLogger(__name__)

PLAN: Final = pa.schema(
    [
        *LISTING,
        ("unit", pa.string()),
        ("sample_id", pa.string()),
        ("shard", pa.string()),
        ("row", pa.int32()),
    ]
)
"""The whole listing; `unit` is null for a picture that needs no work, the rest as in Entry."""

_SMALL_ARCHIVE_UNITS: Final = 32  # enough for a few dozen cores to share a small archive …
_MIN_UNIT: Final = 48  # … in units that are still worth a file
_TAPER: Final = 16  # a unit at either end is at most this share of what lies beyond it, so that nobody waits long

Sizes = Callable[[int], list[int]]
"""How many pictures each unit gets, of so many in all."""


def is_up_to_date(listing: pa.Table, known: pa.Table) -> pa.ChunkedArray:
    """Which pictures of a listing are in `known` under the same uri and etag: booleans."""
    at = pc.index_in(listing.column("uri"), known.column("uri"))
    return pc.fill_null(pc.equal(known.column("etag").take(at), listing.column("etag")), False)


def plan_units(
    listing: pa.Table, is_settled: pa.ChunkedArray, identity: str, sizes: Sizes
) -> pa.Table:
    """Assign every picture that is not settled to a unit; `sizes` says how large each is.

    A unit's name is a digest of its pictures and of `identity`, which holds everything else that
    determines what the unit writes. Returns PLAN; what is known of a picture's content is null where the listing has
    no column that says it.
    """
    open_ones = np.flatnonzero(~is_settled.to_numpy())
    marks = listing.select(["uri", "etag"]).filter(pc.invert(is_settled))
    units = np.full(len(listing), -1, dtype=np.int32)
    names, start = [], 0
    for number, size in enumerate(sizes(len(open_ones))):
        units[open_ones[start : start + size]] = number
        names.append(_unit_name(marks.slice(start, size), identity))
        start += size
    unit = pa.array(names, pa.string()).take(pa.array(units, mask=units < 0))
    known = [
        listing.column(name)
        if name in listing.column_names
        else pa.nulls(len(listing), PLAN.field(name).type)
        for name in ("sample_id", "shard", "row")
    ]
    return pa.Table.from_arrays(
        [*(listing.column(name) for name in LISTING.names), unit, *known], schema=PLAN
    )


def even_sizes(largest: int, pictures: int) -> list[int]:
    """Units alike, of at most `largest` pictures; a small archive is cut finer, so that its cores share it."""
    if not pictures:
        return []
    count = max(-(-pictures // largest), min(_SMALL_ARCHIVE_UNITS, pictures // _MIN_UNIT), 1)
    small, larger_ones = divmod(pictures, count)
    return [small + 1] * larger_ones + [small] * (count - larger_ones)


def tapered_sizes(largest: int, pictures: int) -> list[int]:
    """Units of at most `largest` pictures that grow from small ones and shrink to small ones again.

    The first results are there early, and at the end no worker is left alone with a large unit: guided self-scheduling
    (Polychronopoulos and Kuck, 1987), which shrinks by what is left, done at both ends.
    """
    sizes: list[int] = []
    done = 0
    while left := pictures - done:
        size = min(largest, max(_MIN_UNIT, min(done, left) // _TAPER))
        if left < size + _MIN_UNIT // 2:  # what would remain is not worth a file
            size = min(left, largest)
        sizes.append(size)
        done += size
    return sizes


def _unit_name(marks: pa.Table, identity: str) -> str:
    digest = hashlib.sha256(identity.encode())
    update_digest(digest, marks, ("uri", "etag"))
    return digest.hexdigest()[:16]


def unit_names(plan: pa.Table) -> list[str]:
    """The plan's units, in order."""
    return [
        check_identifier(unit, "the name of a unit")
        for unit in plan.column("unit").unique().drop_null().to_pylist()
    ]


def iter_units(
    plan: pa.Table, source: str, done: set[str] | None = None
) -> Iterator[tuple[str, tuple[Entry, ...]]]:
    """The plan's units in order, each with its pictures, without those in `done`; a picture's name is its whole uri
    where `source` is "". Lazy: an archive's entries as Python objects would take gigabytes."""
    names = unit_names(plan)
    numbers = pc.fill_null(
        pc.index_in(plan.column("unit"), pa.array(names, pa.string())), -1
    ).to_numpy()
    positions = np.flatnonzero(numbers >= 0)
    ends = np.flatnonzero(np.diff(numbers[positions], append=-1)) + 1
    start = 0
    for unit, end in zip(names, ends.tolist(), strict=True):
        if unit not in (done or ()):
            yield unit, _entries(_rows(plan, positions[start:end]), source)
        start = end


def _rows(plan: pa.Table, positions: NDArray[np.int64]) -> pa.Table:
    """Rows of a plan; without a copy where they lie side by side, as in a first ingest all do."""
    first, count = int(positions[0]), len(positions)
    if int(positions[-1]) - first + 1 == count:
        return plan.slice(first, count)
    return plan.take(pa.array(positions))


def _entries(rows: pa.Table, source: str) -> tuple[Entry, ...]:
    skip = len(source.rstrip("/")) + 1 if source else 0
    columns = (
        rows.column(name).to_pylist()
        for name in ("uri", "etag", "size", "sample_id", "shard", "row")
    )
    return tuple(Entry(uri[skip:], uri, *rest) for uri, *rest in zip(*columns, strict=True))


def count_pending(plan: pa.Table, done: set[str]) -> int:
    """Pictures in units that are not done."""
    counts = pc.value_counts(plan.column("unit").drop_null())
    return sum(count["counts"] for count in counts.to_pylist() if count["values"] not in done)


def interrupted_plan(store: Store, name: str) -> pa.Table | None:
    """The plan that an earlier run left under `name`, if one did."""
    try:
        plan = from_parquet(store.get(name))
    except NotFoundError:
        return None
    logger.info(f"resuming the plan that an earlier run left at {store.uri(name)}")
    return plan


def store_plan(store: Store, name: str, plan: pa.Table) -> pa.Table:
    """Store a plan; the one to carry out is a rival's where that came first, so that both work on one."""
    if store.put_if_absent(name, to_parquet(plan)):
        return plan
    return from_parquet(store.get(name))


def is_stored(store: Store, name: str, plan: pa.Table) -> bool:
    """Whether it is this plan that is stored under `name`: a twin that carried it out has removed it."""
    try:
        return bool(from_parquet(store.get(name)).equals(plan))
    except NotFoundError:
        return False


def retire_plan(store: Store, name: str, plan: pa.Table) -> None:
    """Remove a plan that is carried out, unless somebody stored the next one under its name already."""
    if is_stored(store, name, plan):
        store.delete(name)


@dataclass(frozen=True)
class StoredPlan:
    """A plan that is stored: a job is carrying it out, or was interrupted."""

    name: str
    units: frozenset[str]


def stored_plans(store: Store) -> Iterator[StoredPlan]:
    """Every plan that is stored."""
    for info in store.walk("plans"):
        try:
            yield StoredPlan(
                info.name, frozenset(unit_names(from_parquet(store.get(info.name), ["unit"])))
            )
        except NotFoundError:
            continue  # carried out meanwhile


def planned_units(store: Store) -> set[str]:
    """Units of every plan that is stored: somebody is carrying it out, or will."""
    return {unit for plan in stored_plans(store) for unit in plan.units}
