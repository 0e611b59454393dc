"""Erase pictures from a dataset: from the current version, its shards and all earlier versions.

A version without the pictures is published first. Then the versions that had them are deleted, with
the objects that only they needed. If the command is killed in between, running it again completes
it. Content hashes of erased pictures are kept, so that no ingest adds them again.

Every dead row is dropped too: it may be an old state of an erased picture. The command stores a
plan as a lease: garbage collection skips its objects, and an ingest refuses to run."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from afinar.config.forget import ForgetConfig
from afinar.dataset.gc import collect_garbage, open_plans
from afinar.dataset.manifest import get_manifests, now_utc, publish_manifest
from afinar.dataset.reader import Dataset
from afinar.dataset.schema import REJECTS
from afinar.dataset.splits import exclude_duplicates
from afinar.errors import RequestError, ShortfallError
from afinar.ingestion.compaction import (
    LiveRows,
    compact_shards,
    count_live,
    live_rows,
    plan_compaction,
    remap_index,
)
from afinar.ingestion.plan import forget_plan_name
from afinar.ingestion.version import Content, counts_of, published_shares, put_version_objects
from afinar.pictures.rejects import Reason
from afinar.sources.listing import classes_of
from afinar.sources.uri_list import is_list, list_base
from afinar.storage.objects import ObjectRef
from afinar.storage.open import normalize_uri, open_store
from afinar.storage.versions import new_owner
from afinar.units.cut import PLAN
from afinar.units.executor import Executor
from afinar.units.gc import delete_objects
from afinar.units.plans import store_plan

_DETAIL: Final = "erased on request"
_NOTES: Final = (
    "this dataset keeps the uris of erased pictures among its rejects and their content hashes in "
    "its manifest, so that no ingest adds them again",
    "not reached: the source's own files",
    "not reached: predictions (rows and features in parts/ and single/, thumbnails and names in "
    "review/, uris in rejects/ and runs/): run `afinar forget PREDICTIONS URI` for each folder",
    "not reached: models that were trained on the pictures (weights; golden/ has original files; "
    "runs/ has thumbnails in report.html and content hashes in test.parquet)",
    "not reached: copies of shards that machines keep in their temporary folders (afinar-cache-*)",
    "a training on an earlier version that still runs will end before it publishes: start it again",
)


@dataclass(kw_only=True)
class ForgetSummary:
    """Counts of an erasure. `pictures` are index rows of the version that was current."""

    dataset: str
    version: int
    pictures: int = 0
    contents: int = 0
    shards_rewritten: int = 0
    versions_withdrawn: list[int] = field(default_factory=list)
    objects_removed: int = 0
    notes: list[str] = field(default_factory=list)


def run_forget(config: ForgetConfig, executor: Executor) -> ForgetSummary:
    """Erase pictures from a dataset.

    Raises RequestError if no version holds one of them or an ingest is unfinished, ShortfallError
    if nothing would be left or another job published first."""
    erasure = _Erasure(config, executor)

    # The lease is stored before the manifests are read again: from then on no ingest starts.
    current = get_manifests(erasure.store)[-1]
    lease = forget_plan_name(current.version + 1)
    store_plan(erasure.store, lease, PLAN.empty_table())
    try:
        return erasure.run(lease)
    finally:
        erasure.store.delete(lease)


class _Matches(NamedTuple):
    """Content hashes of the wanted pictures, and the uris that no version names."""

    contents: set[str]
    missing: set[str]


class _Erasure:
    """One erasure from one dataset. Each kept version is opened once."""

    def __init__(self, config: ForgetConfig, executor: Executor) -> None:
        self.dataset, self.executor = normalize_uri(config.path), executor
        self.store = open_store(self.dataset)
        self.wanted = config.uris

    def run(self, lease: str) -> ForgetSummary:
        kept = [Dataset(self.store, manifest) for manifest in get_manifests(self.store)]
        current = kept[-1]
        self._check_no_ingest(current.manifest.version, lease)

        matches = self._find(kept)
        dead = _shards_with_dead_rows(current)
        summary = ForgetSummary(
            dataset=self.dataset,
            version=current.manifest.version,
            contents=len(matches.contents),
            notes=[
                f"no version that is kept names {uri}; all dead rows are erased"
                for uri in sorted(matches.missing)
            ],
        )
        if matches.missing and not dead:
            self._collect(lease, set())  # an erasure that was killed may have left objects
            raise RequestError(
                f"no version of {self.dataset} holds {min(matches.missing)}: nothing was erased"
            )

        is_new = not matches.contents <= set(current.manifest.forgotten)
        if dead or is_new or len(_rows_of(current.index, matches.contents)):
            self._publish_without(current, matches.contents, dead, summary)
        if matches.contents or summary.version > current.manifest.version:
            versions = [dataset.manifest.version for dataset in kept]
            summary.versions_withdrawn = [number for number in versions if number < summary.version]
        summary.objects_removed = self._collect(lease, set(summary.versions_withdrawn))
        summary.objects_removed += self._erase_runs(summary)
        summary.notes += _NOTES
        return summary

    def _check_no_ingest(self, current: int, lease: str) -> None:
        for plan in open_plans(self.store, current):
            if plan.name != lease:
                raise RequestError(
                    f"an ingest into {self.dataset} is running or was interrupted ({plan.name}), "
                    "and may hold these pictures: let it end, run the same ingest again, or give "
                    f"it up with `afinar status {self.dataset} --gc --drop-plans`; then forget"
                )

    def _collect(self, lease: str, versions: Collection[int]) -> int:
        """Delete the lease, these versions and unreferenced objects; return the objects' number."""
        self.store.delete(lease)
        removed = collect_garbage(self.store, versions)
        # A page shows pictures of the version of its run, and cannot be made anew without it.
        pages = [info.name for info in self.store.walk("runs") if info.name.endswith(".html")]
        delete_objects(self.store, pages)
        self.store.delete_scratch(0)
        return len(removed)

    def _erase_runs(self, summary: ForgetSummary) -> int:
        """Delete what runs on this dataset wrote, except their configurations; return the number.

        Pages have thumbnails; tables and summaries have uris and content hashes.
        """
        names = [info.name for info in self.store.walk("runs")]
        erased = [name for name in names if not name.endswith("/config.json")]
        for name in erased:
            self.store.delete(name)
        if erased:
            summary.notes.append(
                f"{len(erased)} pages and tables of earlier runs in runs/ were deleted: run "
                "`afinar similar` or `afinar evaluate` again if you need them"
            )
        return len(erased)

    def _find(self, kept: list[Dataset]) -> _Matches:
        """Look the wanted pictures up in every kept version."""
        current = kept[-1]
        source = current.manifest.source["uri"].rstrip("/")
        root = list_base(source) if is_list(source) else source
        uris = {uri if uri.startswith(("/", "s3://")) else f"{root}/{uri}" for uri in self.wanted}
        contents: set[str] = set()
        missing = set(uris)
        for dataset in kept:
            wanted = pa.array(sorted(uris), pa.large_string())
            rows = dataset.index.filter(pc.is_in(dataset.index.column("uri"), wanted))
            contents |= set(rows.column("sample_id").to_pylist())
            missing -= set(rows.column("uri").to_pylist())

        # An erasure that was killed after it published has made them rejects.
        is_erased = pc.equal(current.rejects.column("reason"), str(Reason.FORGOTTEN))
        missing -= set(current.rejects.filter(is_erased).column("uri").to_pylist())
        return _Matches(contents, missing)

    def _publish_without(
        self, current: Dataset, contents: set[str], dead: set[str], summary: ForgetSummary
    ) -> None:
        """Publish the current version without these contents and without dead rows."""
        index = current.index
        erased = _rows_of(index, contents)
        left = index.filter(pc.invert(_has_content(index, contents)))
        if not len(left):
            raise ShortfallError(
                f"nothing would be left of {self.dataset}: remove the whole dataset instead"
            )

        version = current.manifest.version + 1
        touched = set(erased.column("shard").to_pylist()) | dead
        left, shards = self._rewrite(left, current, touched, version)
        rejects = pa.concat_tables([current.rejects, _as_rejects(erased)]).sort_by("uri")
        shares = published_shares(current.manifest)
        content = Content(left, rejects, exclude_duplicates(left).repeats, shares)
        manifest = replace(
            current.manifest,
            version=version,
            parent=current.manifest.version,
            created=now_utc(),
            classes=classes_of(left),
            counts=counts_of(content),
            objects=put_version_objects(
                self.store, left, rejects, shards, current.objects_of("labels")
            ),
            forgotten=sorted({*current.manifest.forgotten, *contents}),
        )
        if not publish_manifest(self.store, manifest, new_owner()):
            raise ShortfallError(
                f"another job published version {version} of {self.dataset} first: run forget again"
            )
        summary.version, summary.shards_rewritten = version, len(touched)
        summary.pictures = len(erased)

    def _rewrite(
        self, index: pa.Table, current: Dataset, touched: set[str], version: int
    ) -> tuple[pa.Table, list[ObjectRef]]:
        """Copy the live rows of the touched shards; return the index and all shards."""
        shards = current.objects_of("shard")
        rows = live_rows(index, touched)
        sources = [
            LiveRows(ref, tuple(sorted(rows[ref.path]))) for ref in shards if ref.path in rows
        ]
        untouched = [ref for ref in shards if ref.path not in touched]

        tasks = plan_compaction(sources, self.dataset, version, current.view)
        if not tasks:
            return index, untouched
        markers = compact_shards(self.store, self.executor, tasks)
        new_shards = [marker.objects["shard"] for marker in markers]
        return remap_index(index, tasks, markers), untouched + new_shards


def _shards_with_dead_rows(dataset: Dataset) -> set[str]:
    live = count_live(dataset.index)
    return {ref.path for ref in dataset.objects_of("shard") if live.get(ref.path, 0) < ref.rows}


def _has_content(index: pa.Table, contents: set[str]) -> pa.ChunkedArray:
    return pc.is_in(index.column("sample_id"), pa.array(sorted(contents), pa.string()))


def _rows_of(index: pa.Table, contents: set[str]) -> pa.Table:
    return index.filter(_has_content(index, contents))


def _as_rejects(rows: pa.Table) -> pa.Table:
    reasons = pa.array([str(Reason.FORGOTTEN)] * len(rows), pa.string())
    details = pa.array([_DETAIL] * len(rows), pa.string())
    columns = rows.select(["uri", "etag", "label"]).columns
    return pa.Table.from_arrays([*columns, reasons, details], schema=REJECTS)
