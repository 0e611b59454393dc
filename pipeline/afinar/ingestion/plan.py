"""Plan an ingest: pictures with a known outcome keep it, every other picture goes into a unit.

A plan is a pure function of the listing, of what the parent version knows, and of the recipe.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from afinar.dataset.schema import OUTCOMES
from afinar.pictures.preprocessing import StoredView
from afinar.storage.arrow import concat_columns, fill_columns
from afinar.units.cut import even_sizes, is_up_to_date, plan_units
from afinar.units.tasks import UnitTask

_SHARD_BYTES: Final = 128 * 2**20
_JPEG_BYTES_PER_PIXEL: Final = 1.0  # of noise at quality 95; photographs take a half to a third


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask(UnitTask):
    """One unit of work: the pictures of one shard.

    Names of the entries are relative to `source`; if it is "", they are complete URIs.
    """

    source: str
    dataset: str
    view: StoredView
    forgotten: tuple[str, ...] = ()


def shard_pictures(view: StoredView) -> int:
    """Return the largest number of pictures in a shard, so that it stays within about 128 MB."""
    per_pixel = 3.0 if view.store == "pixels" else _JPEG_BYTES_PER_PIXEL
    return max(1, int(_SHARD_BYTES / (view.size * view.size * per_pixel)))


def make_plan(listing: pa.Table, known: pa.Table, view: StoredView, version: int) -> pa.Table:
    """Assign every picture without a known outcome (OUTCOMES) to a unit of the coming `version`.

    Unit names begin with the version, so that the next version retries transient rejects and
    garbage collection can find an object's plan. A picture that is probably a known one (renamed or
    touched) carries the place of that sample: if its content hash matches, decoding is skipped.

    Example, with sample s1 known at uri a.jpg under etag e1:

        listed          unit    sample_id   why
        a.jpg  e1       null    null        unchanged
        a.jpg  e2       u       s1          same uri, touched
        b.jpg  e1       u       s1          same etag, renamed
        c.jpg  e3       u       null        new
    """
    up_to_date = is_up_to_date(listing, known)
    sizes = partial(even_sizes, shard_pictures(view))
    # Training shuffles within a window of shards, so each shard must have pictures of all classes.
    plan = plan_units(listing, up_to_date, f"{view.key()}:{version}", sizes, spread=True)

    samples = known.filter(pc.is_valid(known.column("sample_id")))
    if not len(samples) or plan.column("unit").null_count == len(plan):
        return _with_version(plan, version)

    none = pa.scalar(None, pa.int32())
    position = pc.if_else(up_to_date, none, _probable_sample(plan, samples))
    for name in ("sample_id", "shard", "row"):
        column = samples.column(name).take(position)
        plan = plan.set_column(plan.column_names.index(name), plan.schema.field(name), column)
    return _with_version(plan, version)


def _with_version(plan: pa.Table, version: int) -> pa.Table:
    units = pc.binary_join_element_wise(f"{version:08d}-", plan.column("unit"), "")
    return plan.set_column(plan.column_names.index("unit"), plan.schema.field("unit"), units)


def _probable_sample(plan: pa.Table, samples: pa.Table) -> pa.ChunkedArray:
    """Return for each picture the position of the sample that it probably is, or null.

    The same uri is tried first, then the same etag and file name, then the same etag.
    """
    same_uri = pc.index_in(plan.column("uri"), samples.column("uri"))
    moved = pc.index_in(_etag_and_name(plan), _etag_and_name(samples))
    same_etag = pc.index_in(plan.column("etag"), samples.column("etag"))
    return pc.coalesce(same_uri, moved, same_etag)


def _etag_and_name(table: pa.Table) -> pa.ChunkedArray:
    name = pc.replace_substring_regex(table.column("uri"), "^.*/", "")
    return concat_columns(table.column("etag"), name, separator="\t")


def plan_name(version: int, recipe_id: str) -> str:
    """Return the name of the plan of a coming version."""
    return f"plans/{version:08d}-{recipe_id}.parquet"


def forget_plan_name(version: int) -> str:
    """Return the name of the lease of an erasure that works on a coming version."""
    return plan_name(version, "forget")


def known_outcomes(index: pa.Table, rejects: pa.Table, retried: Collection[str]) -> pa.Table:
    """Return what a version knows of its pictures, as OUTCOMES.

    Rejects with a reason in `retried` are left out, so that they are tried again.
    """
    reasons = pa.array(sorted(retried), pa.string())
    kept = rejects.filter(pc.invert(pc.is_in(rejects.column("reason"), reasons)))
    return pa.concat_tables([fill_columns(index, OUTCOMES), fill_columns(kept, OUTCOMES)])


def join_outcomes(plan: pa.Table, known: pa.Table, fresh: pa.Table) -> pa.Table:
    """Return the outcome of every listed picture: OUTCOMES, row for row with the plan.

    A picture with a unit takes the outcome that its unit found (`fresh`), any other the known one.
    Raises AssertionError for a picture without an outcome: it would be lost.
    """
    planned = pc.is_valid(plan.column("unit")).to_numpy()
    position_known = pc.index_in(plan.column("uri"), known.column("uri"))
    position_fresh = pc.index_in(plan.column("uri"), fresh.column("uri"))

    # Positions in the two tables one after the other; NaN for a picture without an outcome.
    position = np.where(
        planned,
        position_fresh.to_numpy(zero_copy_only=False) + len(known),
        position_known.to_numpy(zero_copy_only=False),
    )
    assert not np.isnan(position.astype(float)).any(), (
        "every listed picture is a sample or a reject"
    )
    outcomes = pa.concat_tables([known, fresh]).take(pa.array(position.astype(np.int64)))

    same_etags = pc.all(pc.equal(outcomes.column("etag"), plan.column("etag"))).as_py()
    assert same_etags or not len(plan), "every outcome is that of the picture as it was listed"
    return outcomes
