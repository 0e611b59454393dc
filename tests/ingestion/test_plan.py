"""Plans of an ingest: pure functions of a listing and of the parent's outcomes."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afinar.dataset.schema import INDEX, OUTCOMES, REJECTS
from afinar.ingestion.plan import (
    forget_plan_name,
    join_outcomes,
    known_outcomes,
    make_plan,
    plan_name,
    shard_pictures,
)
from afinar.pictures.preprocessing import StoredView
from afinar.sources.entry import LISTING
from afinar.sources.listing import list_pictures
from afinar.storage.folder_reader import FolderReader
from afinar.storage.store import ObjectInfo
from afinar.training.sampler import epoch_order, global_batches, window_balance
from afinar.units.cut import unit_names

VIEW = StoredView(size=32, fit="pad")


def listing(**etags: str) -> pa.Table:
    """Return a listing of the pictures NAME.jpg."""
    rows = [{"uri": f"{name}.jpg", "etag": etag, "size": 1} for name, etag in etags.items()]
    return pa.Table.from_pylist(rows, schema=LISTING)


def outcomes(*rows: Mapping[str, object]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=OUTCOMES)


SAMPLE = {"uri": "a.jpg", "etag": "e1", "sample_id": "s1", "shard": "shards/1", "row": 7}


@pytest.mark.parametrize(
    ("name", "etag", "pending", "sample_id"),
    [
        ("a", "e1", False, None),
        ("a", "e2", True, "s1"),
        ("b", "e1", True, "s1"),
        ("c", "e3", True, None),
    ],
    ids=["unchanged", "touched", "renamed", "new"],
)
def test_pending_picture_carries_the_sample_that_it_probably_is(
    name: str, etag: str, pending: bool, sample_id: str | None
) -> None:
    (row,) = make_plan(listing(**{name: etag}), outcomes(SAMPLE), VIEW, 2).to_pylist()
    assert (row["unit"] is not None) == pending
    assert row["sample_id"] == sample_id
    assert row["row"] == (7 if sample_id else None)


def test_same_uri_is_preferred_to_same_etag() -> None:
    other = {**SAMPLE, "uri": "b.jpg", "etag": "e2", "sample_id": "s2", "row": 8}
    plan = make_plan(listing(a="e2"), outcomes(SAMPLE, other), VIEW, 2)
    assert plan.column("sample_id").to_pylist() == ["s1"]


def test_same_name_in_another_folder_is_preferred_to_same_etag_alone() -> None:
    copies = outcomes({**SAMPLE, "uri": "x/b.jpg"}, {**SAMPLE, "uri": "x/a.jpg", "sample_id": "s2"})
    moved = listing(**{"y/a": "e1"})
    assert make_plan(moved, copies, VIEW, 2).column("sample_id").to_pylist() == ["s2"]


def test_unit_names_begin_with_the_version_and_depend_on_the_view() -> None:
    pictures, nothing = listing(a="e1", b="e2"), OUTCOMES.empty_table()
    (first,) = unit_names(make_plan(pictures, nothing, VIEW, 1))
    (second,) = unit_names(make_plan(pictures, nothing, VIEW, 2))
    (other_view,) = unit_names(make_plan(pictures, nothing, StoredView(size=48, fit="pad"), 1))
    assert (first[:9], second[:9]) == ("00000001-", "00000002-")
    assert len({first[9:], second[9:], other_view[9:]}) == 3


@given(
    st.sets(st.text("abcdefgh/01", min_size=1, max_size=9), min_size=1, max_size=50), st.randoms()
)
def test_plan_does_not_depend_on_the_order_of_listing(names: set[str], rng: random.Random) -> None:
    infos = [ObjectInfo(name, f"/archive/{name}", len(name), f"e{name}") for name in sorted(names)]
    plans = []
    for _ in range(2):
        rng.shuffle(infos)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FolderReader, "exists", lambda _: True)
            patch.setattr(FolderReader, "walk", lambda *_, **__: iter(infos))
            table = list_pictures("/archive", None).listing
        plans.append(make_plan(table, OUTCOMES.empty_table(), VIEW, 1))
    assert plans[0].equals(plans[1])


def test_shard_of_any_view_stays_within_128_mb_and_has_a_picture() -> None:
    assert shard_pictures(StoredView(size=256, fit="pad")) == 682
    assert shard_pictures(StoredView(size=256, fit="pad", store="jpeg")) == 2048
    assert shard_pictures(StoredView(size=4096, fit="pad")) == 2


def test_known_outcomes_leave_out_rejects_to_retry() -> None:
    index = pa.Table.from_pylist([{**SAMPLE, "label": "cat"}], schema=INDEX)
    rejects = pa.Table.from_pylist(
        [
            {"uri": "b.jpg", "etag": "e2", "reason": "empty"},
            {"uri": "c.jpg", "etag": "e3", "reason": "forbidden"},
        ],
        schema=REJECTS,
    )
    known = known_outcomes(index, rejects, {"forbidden"})
    assert known.schema == OUTCOMES
    assert known.column("uri").to_pylist() == ["a.jpg", "b.jpg"]
    assert known.column("shard").to_pylist() == ["shards/1", None]


def test_outcome_of_a_planned_picture_is_the_fresh_one_of_others_the_known() -> None:
    known = outcomes(SAMPLE, {"uri": "b.jpg", "etag": "e2", "reason": "empty"})
    plan = make_plan(listing(a="e1", b="e9"), known, VIEW, 2)
    fresh = outcomes({"uri": "b.jpg", "etag": "e9", "sample_id": "s2", "shard": "s", "row": 0})
    joined = join_outcomes(plan, known, fresh)
    assert joined.column("sample_id").to_pylist() == ["s1", "s2"]
    assert joined.column("reason").to_pylist() == [None, None]


def test_picture_without_outcome_or_with_that_of_another_state_is_an_error() -> None:
    plan = make_plan(listing(a="e1"), OUTCOMES.empty_table(), VIEW, 1)
    with pytest.raises(AssertionError, match="every listed picture"):
        join_outcomes(plan, OUTCOMES.empty_table(), OUTCOMES.empty_table())
    with pytest.raises(AssertionError, match="as it was listed"):
        join_outcomes(plan, OUTCOMES.empty_table(), outcomes({**SAMPLE, "etag": "e2"}))


def test_plan_of_an_erasure_has_a_name_no_ingest_has() -> None:
    assert plan_name(3, "0123abcd") == "plans/00000003-0123abcd.parquet"
    assert forget_plan_name(3) == "plans/00000003-forget.parquet"


def test_units_of_sorted_folders_have_pictures_of_every_class() -> None:
    """Training shuffles within a window of shards: a tenth of them must be like all of them."""
    names = [f"class-{label:02d}-{number:04d}" for label in range(20) for number in range(960)]
    plan = make_plan(listing(**dict.fromkeys(names, "e")), outcomes(), VIEW, 1)
    labels = pc.utf8_slice_codeunits(plan.column("uri"), 0, 8).to_numpy()
    _, units = np.unique(plan.column("unit").to_numpy(), return_inverse=True)
    targets = np.unique(labels, return_inverse=True)[1]
    count = int(units.max()) + 1
    assert count >= 20
    epoch = epoch_order(units, 0, 0, window=count // 10)
    assert window_balance(epoch, targets) >= 0.97

    shuffled = np.random.default_rng(0).permutation(len(targets))
    for batch, of_shuffle in zip(
        global_batches(epoch.order, 256), global_batches(shuffled, 256), strict=True
    ):
        classes = len(np.unique(targets[batch]))
        assert classes >= 0.9 * len(np.unique(targets[of_shuffle]))
