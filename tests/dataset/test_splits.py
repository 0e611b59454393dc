"""Splits of samples, and duplicates that are held out."""

from __future__ import annotations

import hashlib

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from afinar.config.ingest import SplitShares
from afinar.dataset.splits import (
    assign_splits,
    exclude_duplicates,
    hash_position,
    shares_of_folders,
)

SHARES = SplitShares(0.7, 0.15, 0.15)
names = st.text("abcdefgh0123456789", min_size=1, max_size=8)


def samples(keys: list[str], label: str | None = None, **columns: list[str | None]) -> pa.Table:
    """Return samples with these contents; columns that are not given are null."""
    known = {"sample_id": keys, "label": [label] * len(keys), **columns}
    return pa.table(
        {
            name: pa.chunked_array([pa.array(known.get(name, [None] * len(keys)), pa.string())])
            for name in ("sample_id", "label", "split", "group")
        }
    )


def splits_of(table: pa.Table, shares: SplitShares = SHARES, seed: int = 0) -> list[str]:
    values: list[str] = assign_splits(table, shares, seed, carve=False).to_pylist()
    return values


@given(st.sets(names, min_size=1), names, st.integers(0, 5))
def test_sample_keeps_its_split_when_others_are_added(keys: set[str], new: str, seed: int) -> None:
    before, after = sorted(keys), sorted(keys | {new})
    splits = dict(zip(before, splits_of(samples(before), seed=seed), strict=True))
    splits_after = dict(zip(after, splits_of(samples(after), seed=seed), strict=True))
    assert all(splits_after[key] == split for key, split in splits.items())


def test_splits_of_many_samples_have_their_shares() -> None:
    keys = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(20_000)]
    splits = splits_of(samples(keys, "one class"), seed=7)
    for split, share in zip(("train", "validation", "test"), SHARES, strict=True):
        assert abs(splits.count(split) / len(keys) - share) < 0.01


def test_split_is_where_the_hash_of_key_and_seed_falls() -> None:
    """A change of this function would move pictures of every dataset."""
    assert [round(hash_position(key, 0), 4) for key in "abc"] == [0.617, 0.8755, 0.7423]
    positions = [hash_position(key, 0) for key in "abaac"]
    table = samples(["a", "b", "c", "d", "e"], group=[None, None, "a", "a", "c"])
    expected = [("train", "validation", "test")[(at >= 0.7) + (at >= 0.85)] for at in positions]
    assert splits_of(table) == expected


def test_split_with_a_share_of_zero_is_empty() -> None:
    keys = [str(number) for number in range(1000)]
    assert set(splits_of(samples(keys, "moss"), SplitShares(1.0, 0.0, 0.0))) == {"train"}


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
