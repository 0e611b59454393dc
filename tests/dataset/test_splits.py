"""Splits of samples, and duplicates that are held out."""

from __future__ import annotations

import hashlib

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from afinar.config.ingest import SplitShares
from afinar.dataset.splits import (
    assign_split,
    assign_splits,
    exclude_duplicates,
    shares_of_folders,
)

SHARES = SplitShares(0.7, 0.15, 0.15)
names = st.text("abcdefgh0123456789", min_size=1, max_size=8)


@given(st.sets(names, min_size=1), names, st.integers(0, 5))
def test_sample_keeps_its_split_when_others_are_added(keys: set[str], new: str, seed: int) -> None:
    before = {key: assign_split(key, SHARES, seed) for key in keys}
    after = {key: assign_split(key, SHARES, seed) for key in keys | {new}}
    assert all(after[key] == split for key, split in before.items())


def test_splits_of_many_samples_have_their_shares() -> None:
    keys = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(20_000)]
    splits = [assign_split(key, SHARES, 7) for key in keys]
    for split, share in zip(("train", "validation", "test"), SHARES, strict=True):
        assert abs(splits.count(split) / len(keys) - share) < 0.01


def test_split_with_a_share_of_zero_is_empty() -> None:
    assert {assign_split(str(number), SplitShares(1.0, 0.0, 0.0), 0) for number in range(1000)} == {
        "train"
    }


def test_missing_folders_get_a_share_of_train() -> None:
    assert shares_of_folders(pa.chunked_array([["train", "test", None]])) == (0.85, 0.15, 0.0)
    assert shares_of_folders(pa.chunked_array([["train", "validation", "test"]])) == (1, 0, 0)


samples_of = st.lists(
    st.tuples(
        st.sampled_from("abcdef"),
        st.sampled_from(["x", "y", None]),
        st.sampled_from(["train", "test", None]),
    ),
    min_size=1,
    max_size=40,
)


@given(samples_of)
def test_no_content_is_in_two_splits_or_under_two_labels(
    rows: list[tuple[str, str | None, str | None]],
) -> None:
    ids, labels, given_splits = zip(*rows, strict=True)
    columns = {"sample_id": ids, "label": labels, "split": given_splits, "group": [None] * len(ids)}
    table = pa.table(
        {
            name: pa.chunked_array([pa.array(values, pa.string())])
            for name, values in columns.items()
        }
    )
    first = assign_splits(table, SplitShares(0.5, 0.25, 0.25), 0, carve=False)
    splits, repeats = exclude_duplicates(table.set_column(2, "split", pa.chunked_array([first])))
    assert repeats.duplicates == len(ids) - len(set(ids))
    assert repeats.held_out + repeats.two_labels <= len(ids)
    for content in set(ids):
        rows_of_content = [number for number, key in enumerate(ids) if key == content]
        final = {splits[row].as_py() for row in rows_of_content}
        seen_labels = {labels[row] for row in rows_of_content} - {None}
        before = {first[row].as_py() for row in rows_of_content}
        if len(seen_labels) > 1:
            assert final == {None}
        else:
            assert len(final - {None}) == 1
            assert ("test" in final) == ("test" in before)
