"""Splits of samples by content, group, seed and published splits; duplicates are held out. Pure."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from afinar.config.ingest import SplitShares
from afinar.dataset.stratification import stratify
from afinar.sources.entry import SPLITS
from afinar.storage.arrow import group_by

_CHUNK: Final = 65_536  # samples that are Python objects at a time
_CARVED: Final = 0.15  # share of train for a split that has no folder, as in 0.7, 0.15, 0.15
_SAFEST_FIRST: Final = ("test", "validation", "train")


@dataclass(frozen=True)
class PublishedSplits:
    """Splits of the version before: a table with sample_id and split.

    `shares` are those that it was made with, None if they are not known.
    """

    table: pa.Table
    shares: SplitShares | None


def hash_position(key: str, seed: int) -> float:
    """Return the hash of a sample's (or group's) key and the seed as a number in [0, 1).

    It is compared with the cumulative shares, so that a sample keeps its split when others are
    added, removed or renamed. Example: with shares 0.7, 0.15, 0.15 a key that hashes to 0.8 is in
    validation.
    """
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def shares_of_folders(given: pa.ChunkedArray) -> SplitShares:
    """Return the shares that carve splits without a folder out of the pictures in `train/`."""
    folders = set(given.unique().to_pylist())
    validation, test = (0.0 if split in folders else _CARVED for split in SPLITS[1:])
    return SplitShares(1 - validation - test, validation, test)


def assign_splits(
    samples: pa.Table,
    shares: SplitShares,
    seed: int,
    *,
    carve: bool,
    published: PublishedSplits | None = None,
) -> pa.ChunkedArray:
    """Return the split of each sample.

    `samples` has sample_id, label, split (null if it is not given) and group.

    1. A split that the source gives is kept. With `carve`, samples that are given to train are
       distributed by `shares`, so that missing splits are taken out of train.
    2. A published content or group keeps its split. If the shares have changed, because a folder
       came or went, it does so only if its hash agrees.
    3. Any other sample is assigned by the hash of its group, else of its content.
    4. Of those, some are moved to splits in which their class would have too few: `stratify`.
    """
    kept = SPLITS[1:] if carve else SPLITS
    is_given = pc.is_in(samples.column("split"), pa.array(kept, pa.string()))
    positions = _hash_positions(samples, seed)
    numbers = np.searchsorted(np.cumsum(shares[:2]), positions, side="right")
    hashed = pa.array(SPLITS).take(pa.array(numbers))
    splits = pc.if_else(is_given, samples.column("split"), hashed)

    is_fixed = is_given
    if published is not None and len(published.table):
        known = _known_splits(samples, is_given, shares, published.table)
        if published.shares != shares:
            known = pc.if_else(pc.equal(known, hashed), known, pa.scalar(None, pa.string()))
        splits, is_fixed = pc.coalesce(known, splits), pc.or_(is_given, pc.is_valid(known))
    splits = pa.chunked_array(splits) if isinstance(splits, pa.Array) else splits

    counted = exclude_duplicates(_with_splits(samples, splits)).splits
    fixed = is_fixed.to_numpy(zero_copy_only=False)
    return stratify(_with_splits(samples, counted), splits, positions, fixed, shares)


def _hash_positions(samples: pa.Table, seed: int) -> NDArray[np.float64]:
    keys = pc.coalesce(samples.column("group"), samples.column("sample_id"))
    positions = np.empty(len(samples))
    for start in range(0, len(samples), _CHUNK):
        chunk = keys.slice(start, _CHUNK).to_pylist()
        positions[start : start + _CHUNK] = [hash_position(key, seed) for key in chunk]
    return positions


def _known_splits(
    samples: pa.Table, is_given: pa.ChunkedArray, shares: SplitShares, published: pa.Table
) -> pa.ChunkedArray:
    """Return the published split of each sample, null where there is none.

    A group has the split of its published members; none if they are in several. Splits that are
    only given, and contents with a copy whose split is given, are left out: the folder decides.
    """
    assigned = pa.array([split for split in SPLITS if getattr(shares, split)], pa.string())
    published = published.filter(pc.is_in(published.column("split"), assigned))
    position = pc.index_in(samples.column("sample_id"), published.column("sample_id"))
    number = pc.index_in(published.column("split"), pa.array(SPLITS)).take(position)
    given = samples.column("sample_id").filter(is_given)
    none = pa.scalar(None, pa.int32())
    number = pc.if_else(pc.is_in(samples.column("sample_id"), given), none, number)

    groups = samples.column("group")
    members = group_by(pa.table({"group": groups, "number": number}), ["group"])
    ends = members.aggregate([("number", "min"), ("number", "max")])
    agreed = ends.filter(pc.equal(ends.column("number_min"), ends.column("number_max")))
    of_group = agreed.column("number_min").take(pc.index_in(groups, agreed.column("group")))
    return pa.chunked_array([SPLITS], pa.string()).take(
        pc.if_else(pc.is_valid(groups), of_group, number)
    )


def _with_splits(samples: pa.Table, splits: pa.ChunkedArray) -> pa.Table:
    return samples.set_column(samples.column_names.index("split"), "split", splits)


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Counts of repeated pictures; those in `held_out` and `two_labels` are in no split."""

    duplicates: int = 0
    """Pictures beyond the first of their content."""
    held_out: int = 0
    """Copies that left train (or validation) because the content is in test (or validation)."""
    two_labels: int = 0
    """Pictures whose content carries more than one label."""


class WithoutDuplicates(NamedTuple):
    """Splits of samples, null for a sample that is held out, and counts of repeated pictures."""

    splits: pa.ChunkedArray
    repeats: Repeats


def exclude_duplicates(samples: pa.Table) -> WithoutDuplicates:
    """Hold out copies that would make a measurement wrong; `samples` has sample_id, label, split.

    - Of a content in several splits only the copies in the safest one stay (test first): a network
      must not be tested on what it was trained on.
    - A content with two labels is in no split.

    Example: content x in train and test, y in train as cat and as dog: x's copy in train and both
    copies of y get a null split.
    """
    groups = _repeated_rows(samples.column("sample_id"))
    label_of, split_of = (_values_at(samples, name, groups) for name in ("label", "split"))

    held_out = two_labels = 0
    excluded: list[int] = []
    for rows in groups:
        if len({label_of[row] for row in rows} - {None}) > 1:
            two_labels += len(rows)
            excluded += rows
            continue
        splits = {split_of[row] for row in rows}
        safest = next((split for split in _SAFEST_FIRST if split in splits), None)
        copies = [row for row in rows if split_of[row] != safest]
        held_out += len(copies)
        excluded += copies

    mask = np.zeros(len(samples), dtype=bool)
    mask[excluded] = True
    none = pa.scalar(None, pa.string())
    duplicates = sum(len(rows) - 1 for rows in groups)
    return WithoutDuplicates(
        pc.if_else(pa.array(mask), none, samples.column("split")),
        Repeats(duplicates=duplicates, held_out=held_out, two_labels=two_labels),
    )


def _repeated_rows(sample_ids: pa.ChunkedArray) -> list[list[int]]:
    """Return the rows of each content that occurs more than once."""
    counts = pc.value_counts(sample_ids)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if not len(repeated):
        return []

    rows = pc.indices_nonzero(pc.is_in(sample_ids, repeated))
    groups: dict[str, list[int]] = defaultdict(list)
    for row, sample_id in zip(rows.to_pylist(), sample_ids.take(rows).to_pylist(), strict=True):
        groups[sample_id].append(row)
    return list(groups.values())


def _values_at(samples: pa.Table, name: str, groups: Iterable[list[int]]) -> dict[int, str | None]:
    """Return the values of a column at these rows, by row."""
    rows = [row for group in groups for row in group]
    values = samples.column(name).take(pa.array(rows, pa.int64())).to_pylist()
    return dict(zip(rows, values, strict=True))
