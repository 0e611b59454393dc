"""Planning an ingest: what is known already stands, every other picture goes into a unit.

A plan is a pure function of the listing, of what the parent version knows, and of the recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from afinar.dataset.schema import OUTCOMES
from afinar.pictures.preprocessing import StoredView
from afinar.sources.entry import Entry
from afinar.storage.arrow import concat_columns
from afinar.units.plan import even_sizes, is_up_to_date, plan_units

_SHARD_BYTES: Final = 128 * 2**20
_JPEG_BYTES_PER_PIXEL: Final = 1.0  # of noise at quality 95; photographs take a half to a third


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """One unit of work: the pictures of one shard."""

    unit: str
    source: str
    dataset: str
    view: StoredView
    entries: tuple[Entry, ...]
    forgotten: tuple[str, ...] = ()


def shard_pictures(view: StoredView) -> int:
    """Pictures that a shard holds at most, so that it stays within about 128 MB."""
    per_pixel = 3.0 if view.store == "pixels" else _JPEG_BYTES_PER_PIXEL
    return max(1, int(_SHARD_BYTES / (view.size * view.size * per_pixel)))


def make_plan(listing: pa.Table, known: pa.Table, view: StoredView, version: int) -> pa.Table:
    """Assign every picture without a known fact to a unit of the coming `version`.

    `known` has FACTS' columns. The version leads a unit's name, so that a picture rejected in transit is read again by
    the next one, and so that it can be told whose plan an object belongs to. A picture that may be a known one under
    another name or change mark says which: if the content proves it, nothing is decoded.
    """
    is_settled = is_up_to_date(listing, known)
    plan = plan_units(
        listing, is_settled, f"{view.key()}:{version}", partial(even_sizes, shard_pictures(view))
    )
    samples = known.filter(pc.is_valid(known.column("sample_id")))
    if not len(samples) or plan.column("unit").null_count == len(plan):
        return _versioned(plan, version)
    at = pc.if_else(is_settled, pa.scalar(None, pa.int32()), _likely(plan, samples))
    for name in ("sample_id", "shard", "row"):
        plan = plan.set_column(
            plan.column_names.index(name), plan.schema.field(name), samples.column(name).take(at)
        )
    return _versioned(plan, version)


def _versioned(plan: pa.Table, version: int) -> pa.Table:
    prefix = f"{version:08d}-"
    named = pc.binary_join_element_wise(prefix, plan.column("unit"), "")
    return plan.set_column(plan.column_names.index("unit"), plan.schema.field("unit"), named)


def _likely(plan: pa.Table, samples: pa.Table) -> pa.ChunkedArray:
    """Position of the sample that each picture may be: the same uri changed, else the same mark moved."""
    changed = pc.index_in(plan.column("uri"), samples.column("uri"))
    moved = pc.index_in(_mark_and_name(plan), _mark_and_name(samples))
    renamed = pc.index_in(plan.column("etag"), samples.column("etag"))
    return pc.coalesce(changed, moved, renamed)


def _mark_and_name(table: pa.Table) -> pa.ChunkedArray:
    name = pc.replace_substring_regex(table.column("uri"), "^.*/", "")
    return concat_columns(table.column("etag"), name, separator="\t")


def plan_name(version: int, recipe_id: str) -> str:
    """Where the plan of a coming version lies."""
    return f"plans/{version:08d}-{recipe_id}.parquet"


def forget_plan_name(version: int) -> str:
    """Where an erasure's lease lies while it works on a coming version."""
    return plan_name(version, "forget")


def known_outcomes(index: pa.Table, rejects: pa.Table, retried: set[str]) -> pa.Table:
    """What a version knows about its pictures, as FACTS; rejects whose reason is in `retried` are unknown."""
    tried = pc.is_in(rejects.column("reason"), pa.array(sorted(retried), pa.string()))
    return pa.concat_tables([_as_facts(index), _as_facts(rejects.filter(pc.invert(tried)))])


def _as_facts(table: pa.Table) -> pa.Table:
    columns = [
        table.column(field.name)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in OUTCOMES
    ]
    return pa.Table.from_arrays(columns, schema=OUTCOMES)


def join_outcomes(plan: pa.Table, known: pa.Table, fresh: pa.Table) -> pa.Table:
    """What became of every listed picture: FACTS' columns, row for row with the plan.

    Planned pictures take what their unit found, the others what was known. Raises AssertionError for a picture of which
    nothing is known: that would be lost.
    """
    planned = pc.is_valid(plan.column("unit"))
    at_known = pc.index_in(plan.column("uri"), known.column("uri")).to_numpy(zero_copy_only=False)
    at_fresh = pc.index_in(plan.column("uri"), fresh.column("uri")).to_numpy(zero_copy_only=False)
    at = np.where(planned.to_numpy(), at_fresh + len(known), at_known)
    assert not np.isnan(at.astype(float)).any(), "every listed picture is a sample or a reject"
    facts = pa.concat_tables([known, fresh]).take(pa.array(at.astype(np.int64)))
    same = pc.all(pc.equal(facts.column("etag"), plan.column("etag"))).as_py()
    assert same or not len(plan), "every fact is of the picture as it was listed"
    return facts
