"""Splits of samples, pure functions of content, group and seed; duplicates are held out."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from afinar.config.ingest import SplitShares
from afinar.sources.entry import SPLITS

_CHUNK: Final = 65_536  # samples that are Python objects at a time
_CARVED: Final = 0.15  # share of train for a split that has no folder, as in 0.7, 0.15, 0.15
_SAFEST_FIRST: Final = ("test", "validation", "train")


def assign_split(key: str, shares: SplitShares, seed: int) -> str:
    """Return the split of the sample (or group) `key`.

    The key and the seed are hashed to a number in [0, 1), which is compared with the cumulative
    shares. So a sample keeps its split when others are added, removed or renamed. Example: with
    shares 0.7, 0.15, 0.15 a key that hashes to 0.8 is in validation.
    """
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64

    if position < shares.train:
        return SPLITS[0]
    return SPLITS[1] if position < shares.train + shares.validation else SPLITS[2]


def shares_of_folders(given: pa.ChunkedArray) -> SplitShares:
    """Return the shares that carve splits without a folder out of the pictures in `train/`."""
    folders = set(given.unique().to_pylist())
    validation, test = (0.0 if split in folders else _CARVED for split in SPLITS[1:])
    return SplitShares(1 - validation - test, validation, test)


def assign_splits(
    samples: pa.Table, shares: SplitShares, seed: int, *, carve: bool
) -> pa.ChunkedArray:
    """Return the split of each sample; `samples` has sample_id, split (null if not given), group.

    A split that the source gives is kept. With `carve`, samples that are given to train are
    distributed by `shares`, so that missing splits are taken out of train. Any other sample is
    assigned by the hash of its group, else of its content.
    """
    kept = {"validation", "test"} if carve else {"validation", "test", "train"}

    def splits_of(part: pa.Table) -> pa.Array:
        columns = (part.column(name).to_pylist() for name in ("sample_id", "split", "group"))
        splits = [
            given if given in kept else assign_split(group or sample_id, shares, seed)
            for sample_id, given, group in zip(*columns, strict=True)
        ]
        return pa.array(splits, pa.string())

    starts = range(0, len(samples), _CHUNK)
    parts = [splits_of(samples.slice(start, _CHUNK)) for start in starts]
    return pa.chunked_array(parts, pa.string())


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
