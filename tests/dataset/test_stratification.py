"""Every class is in every split as far as that is possible, and no published picture moves."""

from __future__ import annotations

from collections import Counter, defaultdict

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afinar.config.ingest import SplitShares
from afinar.dataset.splits import PublishedSplits, assign_splits, exclude_duplicates
from afinar.dataset.stratification import few_notes, least_counts

SHARES = SplitShares(0.7, 0.15, 0.15)
Row = tuple[str, str | None, str | None]  # content, label, group


def table_of(rows: list[Row]) -> pa.Table:
    contents, labels, groups = zip(*rows, strict=True) if rows else ((), (), ())
    columns = {"sample_id": contents, "label": labels, "split": [None] * len(rows), "group": groups}
    return pa.table(
        {
            name: pa.chunked_array([pa.array(list(values), pa.string())])
            for name, values in columns.items()
        }
    )


def split(
    rows: list[Row], published: pa.Table | None = None, shares: SplitShares = SHARES
) -> pa.Table:
    table = table_of(rows)
    known = None if published is None else PublishedSplits(published, shares)
    splits = assign_splits(table, shares, 0, carve=False, published=known)
    return table.set_column(2, "split", splits)


def counts_of(table: pa.Table) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in table.to_pylist():
        counts[row["label"]][row["split"]] += 1
    return counts


@pytest.mark.parametrize(
    ("pictures", "shares", "least"),
    [
        (40, SHARES, (14, 3, 3)),
        (3, SHARES, (1, 1, 1)),
        (2, SHARES, (1, 0, 1)),
        (1, SHARES, (1, 0, 0)),
        (2, SplitShares(0.8, 0.2, 0.0), (1, 1, 0)),
    ],
)
def test_smallest_number_of_a_class_in_each_split(
    pictures: int, shares: SplitShares, least: tuple[int, int, int]
) -> None:
    counts = least_counts(pictures, shares)
    assert (counts["train"], counts["validation"], counts["test"]) == least


def test_every_class_of_three_pictures_is_in_every_split() -> None:
    rows: list[Row] = [
        (f"{name}-{number}", name, None)
        for name, size in {"huge": 400, "rare": 3, "small": 12, "pair": 2, "single": 1}.items()
        for number in range(size)
    ]
    counts = counts_of(split(rows))
    for name in ("huge", "small", "rare"):
        assert all(counts[name][place] for place in ("train", "validation", "test")), counts[name]
    assert counts["pair"] == {"train": 1, "test": 1}
    assert counts["single"] == {"train": 1}


rows_of = st.lists(
    st.tuples(
        st.sampled_from([f"c{number}" for number in range(30)]),
        st.sampled_from(["a", "b", None]),
        st.sampled_from([None, None, None, "g1", "g2"]),
    ),
    max_size=30,
    unique_by=lambda row: row[0],
)


@given(rows_of, rows_of)
def test_pictures_and_groups_never_move_to_another_split(first: list[Row], more: list[Row]) -> None:
    """Also if their labels change, or others leave. The order of the rows does not matter."""
    before = split(first)
    published = before.select(["sample_id", "split"])
    kept = dict(
        zip(*(before.column(name).to_pylist() for name in ("sample_id", "split")), strict=True)
    )
    groups = {row[2]: kept[row[0]] for row in first if row[2]}
    # Contents keep their group; labels may be corrected.
    old_groups = {row[0]: row[2] for row in first}
    second = [(row[0], row[1], old_groups.get(row[0], row[2])) for row in more]
    after = split(second, published)
    for row in after.to_pylist():
        if row["sample_id"] in kept:
            assert row["split"] == kept[row["sample_id"]]
        elif row["group"] in groups and any(
            other[2] == row["group"] and other[0] in kept for other in second
        ):
            assert row["split"] == groups[row["group"]]
    by_group = defaultdict(set)
    for row in after.to_pylist():
        if row["group"]:
            by_group[row["group"]].add(row["split"])
    assert all(len(places) == 1 for places in by_group.values())
    reordered = split(second[::-1], published)
    assert reordered.sort_by("sample_id") == after.sort_by("sample_id")


def test_new_pictures_fill_the_split_that_a_class_lacks() -> None:
    published = pa.table({"sample_id": [f"old{n}" for n in range(8)], "split": ["train"] * 8})
    old: list[Row] = [(f"old{number}", "moss", None) for number in range(8)]
    new: list[Row] = [(f"new{number}", "moss", None) for number in range(2)]
    after = split(old + new, published)
    assert counts_of(after.slice(0, 8)) == {"moss": {"train": 8}}
    assert counts_of(after.slice(8)) == {"moss": {"test": 1, "validation": 1}}


def test_a_move_leaves_no_other_class_with_too_few() -> None:
    """A group goes as a whole: here all groups hold both classes, so that none can be split."""
    rows: list[Row] = [
        (f"{name}{number}", name, f"g{number}") for number in range(9) for name in "ab"
    ]
    counts = counts_of(split(rows))
    assert counts["a"] == counts["b"]
    assert all(counts["a"][place] for place in ("train", "validation", "test"))


def test_pictures_that_are_held_out_do_not_count() -> None:
    """Four contents carry two labels: they are in no split, wherever their hashes are."""
    rows: list[Row] = [(f"c{number}", "moss", None) for number in range(8)]
    rows += [(f"c{number}", "rust", None) for number in range(4)]
    table = split(rows)
    final = table.set_column(2, "split", exclude_duplicates(table).splits)
    counts = counts_of(final)["moss"]
    assert all(counts[place] for place in ("train", "validation", "test"))


def test_given_splits_are_kept_and_the_others_are_carved() -> None:
    table = table_of([(f"c{number}", "moss", None) for number in range(10)])
    given_splits = ["test"] + ["train"] * 9
    table = table.set_column(2, "split", pa.chunked_array([given_splits]))
    shares = SplitShares(0.85, 0.15, 0.0)
    splits = assign_splits(table, shares, 0, carve=True).to_pylist()
    assert splits.count("test") == 1
    assert splits[0] == "test"
    assert splits.count("validation") >= 1


def test_notes_name_classes_with_few_pictures() -> None:
    labels = ["moss"] * 20 + ["rust"] * 20 + ["slate"] * 8
    splits = ["train"] * 14 + ["test"] * 6 + ["train"] * 18 + ["test"] * 2 + ["train"] * 8
    columns = (pa.chunked_array([values]) for values in (labels, splits))
    assert few_notes(*columns) == [
        "2 of 3 classes have fewer than 5 pictures in test: slate (0), rust (2)"
    ]
    assert few_notes(pa.chunked_array([], pa.string()), pa.chunked_array([], pa.string())) == []
