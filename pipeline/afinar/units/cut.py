"""Cut a listing into units of work: pure functions, independent of the number of workers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from afinar.sources.entry import LISTING, Entry
from afinar.sources.listing import update_digest
from afinar.storage.arrow import fill_columns
from afinar.storage.names import check_identifier

PLAN: Final = pa.schema(
    [
        *LISTING,
        ("unit", pa.string()),
        ("sample_id", pa.string()),
        ("shard", pa.string()),
        ("row", pa.int32()),
    ]
)
"""Schema of a plan: the whole listing. `unit` is null for a picture that needs no work;
`sample_id`, `shard` and `row` are as in Entry."""

_SMALL_ARCHIVE_UNITS: Final = 32  # units of a small archive: a few dozen cores can share it
_MIN_UNIT: Final = 48  # pictures; a smaller unit is not worth its files
_BATCH: Final = 64  # pictures; sizes are multiples of it, so that a GPU gets few small batches
_TAPER: Final = 16  # a unit at either end has at most this fraction of the pictures beyond it

UnitSizes = Callable[[int], list[int]]
"""Function from a number of pictures to the number of pictures in each unit."""


def is_up_to_date(listing: pa.Table, known: pa.Table) -> pa.ChunkedArray:
    """Return a boolean per picture of a listing: True if `known` has the same uri and etag."""
    position = pc.index_in(listing.column("uri"), known.column("uri"))
    known_etags = known.column("etag").take(position)
    return pc.fill_null(pc.equal(known_etags, listing.column("etag")), False)


def plan_units(
    listing: pa.Table,
    up_to_date: pa.ChunkedArray,
    identity: str,
    sizes: UnitSizes,
    *,
    spread: bool = False,
) -> pa.Table:
    """Assign every picture that is not up to date to a unit, in the order of the listing.

    A unit's name is a digest of its pictures and of `identity`, which holds everything else that
    determines what the unit writes. Example: of pictures a b c d e with b up to date and sizes
    [2, 2], a and c make the first unit, d and e the second; `unit` of b is null.

    With `spread` the pictures of a unit are drawn from the whole listing, which is sorted by
    folder: a unit then has pictures of every class. The draw depends on the number of pictures
    alone.

    Returns PLAN; `sample_id`, `shard` and `row` are null where the listing has no such column.
    """
    pending = np.flatnonzero(~up_to_date.to_numpy())
    if spread:
        pending = np.random.default_rng(0).permutation(pending)
    etags = listing.select(["uri", "etag"])

    # Number of each picture's unit, -1 for one that needs no work.
    units = np.full(len(listing), -1, dtype=np.int32)
    names, start = [], 0
    for number, size in enumerate(sizes(len(pending))):
        positions = np.sort(pending[start : start + size])
        units[positions] = number
        names.append(_unit_name(_rows(etags, positions), identity))
        start += size

    unit = pa.array(names, pa.string()).take(pa.array(units, mask=units < 0))
    return fill_columns(listing.append_column("unit", unit), PLAN)


def even_sizes(largest: int, pictures: int) -> list[int]:
    """Return sizes of equal units of at most `largest` pictures.

    A small archive is cut finer, so that several cores share it: 480 pictures with a largest unit
    of 680 make 10 units of 48.
    """
    if not pictures:
        return []

    count = max(-(-pictures // largest), min(_SMALL_ARCHIVE_UNITS, pictures // _MIN_UNIT), 1)
    small, larger_ones = divmod(pictures, count)
    return [small + 1] * larger_ones + [small] * (count - larger_ones)


def tapered_sizes(largest: int, pictures: int) -> list[int]:
    """Return sizes of units that grow from small ones at the start and shrink at the end.

    No unit has more than `largest` pictures. The first results are ready early, and at the end no
    worker is left alone with a large unit. The method is guided self-scheduling (Polychronopoulos
    and Kuck, 1987), which makes a unit a fraction of what is left, applied at both ends. Sizes are
    multiples of 64, but for the last. Example: of 10,000 pictures the first units have 64 pictures,
    and the one that begins after 4,096 pictures has min(4096, 5904) / 16 = 256.
    """
    sizes: list[int] = []
    done = 0
    while left := pictures - done:
        size = min(largest, max(1, min(done, left) // _TAPER // _BATCH) * _BATCH)
        if left < size + _MIN_UNIT // 2:  # the remainder would not be worth a file
            size = min(left, largest)
        sizes.append(size)
        done += size
    return sizes


def _unit_name(pictures: pa.Table, identity: str) -> str:
    digest = hashlib.sha256(identity.encode())
    update_digest(digest, pictures, ("uri", "etag"))
    return digest.hexdigest()[:16]


def unit_names(plan: pa.Table) -> list[str]:
    """Return the names of the plan's units, in order. Raises UnsafePathError for a bad name."""
    return [
        check_identifier(unit, "the name of a unit")
        for unit in plan.column("unit").unique().drop_null().to_pylist()
    ]


def iter_units(
    plan: pa.Table, source: str, done: set[str] | None = None
) -> Iterator[tuple[str, tuple[Entry, ...]]]:
    """Yield the plan's units in order, each with its pictures, without those in `done`.

    An entry's name is its uri relative to `source`, or its whole uri if `source` is "". Lazy, since
    the entries of ten million pictures would take gigabytes as Python objects.
    """
    names = unit_names(plan)
    numbers = pc.fill_null(
        pc.index_in(plan.column("unit"), pa.array(names, pa.string())), -1
    ).to_numpy()

    # Sorted by unit: numbers [1, -1, 0, 0, 1] give positions [2, 3, 0, 4] and ends [2, 4].
    positions = np.argsort(numbers, kind="stable")[np.count_nonzero(numbers < 0) :]
    ends = np.flatnonzero(np.diff(numbers[positions], append=-1)) + 1
    start = 0
    for unit, end in zip(names, ends.tolist(), strict=True):
        if unit not in (done or ()):
            yield unit, _entries(_rows(plan, positions[start:end]), source)
        start = end


def _rows(table: pa.Table, positions: NDArray[np.int64]) -> pa.Table:
    """Return rows of a table, without a copy where they lie side by side."""
    first, count = int(positions[0]), len(positions)
    if int(positions[-1]) - first + 1 == count:
        return table.slice(first, count)
    return table.take(pa.array(positions))


def _entries(rows: pa.Table, source: str) -> tuple[Entry, ...]:
    skip = len(source.rstrip("/")) + 1 if source else 0
    columns = (
        rows.column(name).to_pylist()
        for name in ("uri", "etag", "size", "sample_id", "shard", "row")
    )
    return tuple(Entry(uri[skip:], uri, *rest) for uri, *rest in zip(*columns, strict=True))


def count_pending(plan: pa.Table, done: set[str]) -> int:
    """Return the number of pictures in units that are not in `done`."""
    counts = pc.value_counts(plan.column("unit").drop_null())
    return sum(count["counts"] for count in counts.to_pylist() if count["values"] not in done)
