"""Which split a sample belongs to, and which samples are held out of all of them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from afinar.sources.entry import SPLITS

Shares = tuple[float, float, float]

_CHUNK: Final = 65_536  # Python objects of this many samples at a time
_CARVED: Final = 0.15  # share that a split with no folder of its own gets of train, as in the usual 0.7, 0.15, 0.15
_SAFEST_FIRST: Final = ("test", "validation", "train")


def assign_split(key: str, shares: Shares, seed: int) -> str:
    """Split of the sample (or group) `key`.

    The key and the seed are hashed to a number in [0, 1) that is compared with the cumulated shares, so a
    sample keeps its split whatever is added, removed or renamed around it.
    """
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    train, validation, _ = shares
    if position < train:
        return SPLITS[0]
    return SPLITS[1] if position < train + validation else SPLITS[2]


def shares_of_folders(given: pa.ChunkedArray) -> Shares:
    """Shares that carve the splits which have no folder out of the pictures in `train/`."""
    there = set(given.unique().to_pylist())
    validation, test = (0.0 if split in there else _CARVED for split in SPLITS[1:])
    return (1 - validation - test, validation, test)


def assign_splits(samples: pa.Table, shares: Shares, seed: int, *, carve: bool) -> pa.ChunkedArray:
    """Split of each sample (sample_id, split as given or null, group or null).

    A given split stands, but that with `carve` what was given to train makes up the splits that were given nothing; any
    other is a function of the sample's group, else of its content.
    """
    stands = {"validation", "test"} | (set() if carve else {"train"})

    def of(part: pa.Table) -> pa.Array:
        columns = (part.column(name).to_pylist() for name in ("sample_id", "split", "group"))
        splits = [
            given if given in stands else assign_split(group or sample_id, shares, seed)
            for sample_id, given, group in zip(*columns, strict=True)
        ]
        return pa.array(splits, pa.string())

    parts = [of(samples.slice(start, _CHUNK)) for start in range(0, len(samples), _CHUNK)]
    return pa.chunked_array(parts, pa.string())


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """What is there more than once. Counts of pictures; `held_out` and `two_labels` are in no split."""

    duplicates: int = 0
    """Pictures beyond the first of their content."""
    held_out: int = 0
    """Copies that left train (or validation) because the same content is in test (or validation)."""
    two_labels: int = 0
    """Pictures whose content carries more than one label."""


def exclude_duplicates(samples: pa.Table) -> tuple[pa.ChunkedArray, Repeats]:
    """Take out of every split what would spoil a measurement: `samples` has sample_id, label and split.

    Of a content in several splits only the copies in the safest one stay: what a network is tested on it must not have
    been trained on. A content with two labels is in no split. Returns the splits, null for what is held out.
    """
    members = _repeated(samples.column("sample_id"))
    repeated = pa.array([row for rows in members for row in rows], pa.int64())
    label_of, split_of = (
        dict(
            zip(repeated.to_pylist(), samples.column(name).take(repeated).to_pylist(), strict=True)
        )
        for name in ("label", "split")
    )
    held_out = two_labels = 0
    spoiled = []
    for rows in members:
        if len({label_of[row] for row in rows} - {None}) > 1:
            two_labels += len(rows)
            spoiled += rows
        else:
            among = {split_of[row] for row in rows}
            keep = next((split for split in _SAFEST_FIRST if split in among), None)
            copies = [row for row in rows if split_of[row] != keep]
            held_out += len(copies)
            spoiled += copies
    is_spoiled = np.zeros(len(samples), dtype=bool)
    is_spoiled[spoiled] = True
    splits = pc.if_else(pa.array(is_spoiled), pa.scalar(None, pa.string()), samples.column("split"))
    extra = sum(len(rows) - 1 for rows in members)
    return splits, Repeats(duplicates=extra, held_out=held_out, two_labels=two_labels)


def _repeated(sample_ids: pa.ChunkedArray) -> list[list[int]]:
    """Rows of each content that occurs more than once."""
    counts = pc.value_counts(sample_ids)
    several = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    rows = (
        pc.indices_nonzero(pc.is_in(sample_ids, several))
        if len(several)
        else pa.array([], pa.uint64())
    )
    members: dict[str, list[int]] = defaultdict(list)
    for row, sample_id in zip(rows.to_pylist(), sample_ids.take(rows).to_pylist(), strict=True):
        members[sample_id].append(row)
    return list(members.values())
