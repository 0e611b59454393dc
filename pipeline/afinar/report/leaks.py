"""Leaks between the splits of a version, by the near-duplicates that `similar` has found before."""

from __future__ import annotations

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from afinar.dataset.reader import Dataset
from afinar.errors import AfinarError
from afinar.storage.arrow import from_parquet, group_by

_TABLE: Final = "pictures.parquet"  # of a run of `similar`
_COLUMNS: Final = ("sample_id", "duplicate_group")


def leak_notes(dataset: Dataset) -> list[str]:
    """Return a sentence if near-duplicates of test pictures are in other splits of this version.

    The near-duplicates are those of the newest run of `similar` on the dataset; without one, or if
    its table cannot be read, nothing is known. Nothing is computed from pictures.
    """
    groups = _newest_groups(dataset)
    if groups is None:
        return []
    index = dataset.index
    rows = pa.table({name: index.column(name) for name in ("sample_id", "split")})
    rows = rows.filter(pc.is_valid(rows.column("split")))
    of_row = pc.index_in(rows.column("sample_id"), groups.column("sample_id").combine_chunks())
    group = groups.column("duplicate_group").take(of_row)
    members = rows.append_column("group", group).filter(pc.is_valid(group))

    splits = group_by(members, ["group"]).aggregate([("split", "count_distinct")])
    spanning = splits.filter(pc.greater(splits.column("split_count_distinct"), 1)).column("group")
    leaked = members.filter(
        pc.and_(
            pc.is_in(members.column("group"), spanning.combine_chunks()),
            pc.equal(members.column("split"), "test"),
        )
    )
    count = len(leaked.column("sample_id").unique())
    if not count:
        return []
    return [
        f"{count} test pictures have a near-duplicate in train or validation, as `afinar similar` "
        "found: ingest with --group and its groups.csv to keep duplicates in one split"
    ]


def _newest_groups(dataset: Dataset) -> pa.Table | None:
    names = [info.name for info in dataset.store.walk("runs")]
    tables = sorted(name for name in names if name.endswith(f"/{_TABLE}"))
    if not tables:
        return None
    try:
        table = from_parquet(dataset.store.get(tables[-1]), uri=dataset.store.uri(tables[-1]))
    except AfinarError:
        return None
    if not set(_COLUMNS) <= set(table.column_names):
        return None
    return table.select(list(_COLUMNS)).filter(pc.is_valid(table.column("duplicate_group")))
