"""Erasing pictures: from the current version, from the shards that hold them, and from every version before.

A version without them is published first, then the versions that had them are withdrawn and their objects removed.
Killed in between, the same command finishes. Their content hashes are kept, so that no ingest brings them back.

Dead rows go as well, all of them: a row that no index names may hold a state of the picture that only a withdrawn
version knew. Until it ends, a plan of its own is its lease: clean-ups leave its objects alone, ingests wait.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from afinar.config.jobs import ForgetConfig
from afinar.dataset.gc import collect, manifests, open_plans
from afinar.dataset.manifest import Manifest, get_objects, now_utc, publish_manifest, read_rows
from afinar.dataset.schema import INDEX, REJECTS
from afinar.dataset.splits import exclude_duplicates
from afinar.errors import Reason, RequestError, ShortfallError
from afinar.ingest.compaction import LiveRows, count_live, live_rows, plan_compaction, remap_index
from afinar.ingest.plan import forget_plan_name
from afinar.ingest.publishing import compact_shards, put_version_objects
from afinar.ingest.version import Content, counts_of
from afinar.pictures.preprocessing import StoredView
from afinar.sources.listing import classes_of
from afinar.storage.commit import new_owner
from afinar.storage.objects import ObjectRef
from afinar.storage.open import normalize_uri, open_store
from afinar.units.executor import Executor
from afinar.units.plan import PLAN, store_plan

_DETAIL = "erased on request"
_BEYOND_REACH = (
    "out of reach: the source's own files, models trained before, and copies of shards that machines keep in their "
    "temporary folders (afinar-cache-*)"
)


@dataclass(kw_only=True)
class ForgetSummary:
    """What was erased. `pictures` are index rows of the version that was current."""

    dataset: str
    version: int
    pictures: int = 0
    contents: int = 0
    shards_rewritten: int = 0
    versions_withdrawn: list[int] = field(default_factory=list)
    objects_removed: int = 0
    notes: list[str] = field(default_factory=list)


class Forget:
    """One erasure from one dataset."""

    def __init__(self, config: ForgetConfig, executor: Executor) -> None:
        self.dataset, self.executor = normalize_uri(config.dataset), executor
        self.store = open_store(self.dataset)
        self.wanted = config.uris

    def run(self) -> ForgetSummary:
        """Erase, and say what was done."""
        current = manifests(self.store)[-1]
        lease = forget_plan_name(current.version + 1)
        store_plan(self.store, lease, PLAN.empty_table())
        try:
            return self._run(manifests(self.store), lease)
        finally:
            self.store.delete(lease)

    def _run(self, kept: list[Manifest], lease: str) -> ForgetSummary:
        current = kept[-1]
        for plan in open_plans(self.store, current.version):
            if plan.name != lease:
                raise RequestError(
                    f"an ingest into {self.dataset} is under way or was interrupted ({plan.name}), and may hold these "
                    "pictures: let it end, run the same ingest again, or give it up with `afinar status "
                    f"{self.dataset} --gc --drop-plans`; then forget"
                )
        contents, missing = self._contents(kept)
        summary = ForgetSummary(
            dataset=self.dataset, version=current.version, contents=len(contents)
        )
        worn = self._worn(current)
        if missing and not worn:
            self._collect(lease, set())  # an erasure that was killed may have got so far
            raise RequestError(
                f"no version of {self.dataset} holds {min(missing)}: nothing was erased"
            )
        summary.notes += [
            f"no version that is kept names {uri}; all dead rows are erased"
            for uri in sorted(missing)
        ]
        if worn or not contents <= set(current.forgotten) or self._is_in(current, contents):
            self._publish_without(current, contents, summary)
        if contents or summary.version > current.version:
            summary.versions_withdrawn = [
                manifest.version for manifest in kept if manifest.version < summary.version
            ]
        summary.objects_removed = self._collect(lease, set(summary.versions_withdrawn))
        summary.notes.append(_BEYOND_REACH)
        return summary

    def _collect(self, lease: str, withdrawn: set[int]) -> int:
        """Give up the lease, which has nothing left to protect, and remove what nothing needs."""
        self.store.delete(lease)
        removed = collect(self.store, withdrawn)
        self.store.sweep(0)
        return len(removed)

    def _contents(self, kept: list[Manifest]) -> tuple[set[str], set[str]]:
        """Content hashes of the wanted pictures in every kept version, and the uris that none of them names."""
        root = kept[-1].source["uri"].rstrip("/")
        uris = {uri if uri.startswith(("/", "s3://")) else f"{root}/{uri}" for uri in self.wanted}
        contents: set[str] = set()
        missing = set(uris)
        for manifest in kept:
            index = read_rows(self.store, manifest, "index", INDEX)
            found = index.filter(
                pc.is_in(index.column("uri"), pa.array(sorted(uris), pa.large_string()))
            )
            contents |= set(found.column("sample_id").to_pylist())
            missing -= set(found.column("uri").to_pylist())
        rejects = read_rows(self.store, kept[-1], "rejects", REJECTS)
        erased = rejects.filter(pc.equal(rejects.column("reason"), str(Reason.FORGOTTEN)))
        missing -= set(erased.column("uri").to_pylist())  # an earlier run got this far
        return contents, missing

    def _is_in(self, manifest: Manifest, contents: set[str]) -> bool:
        index = read_rows(self.store, manifest, "index", INDEX)
        return len(_rows_of(index, contents)) > 0

    def _worn(self, manifest: Manifest) -> list[ObjectRef]:
        """Shards with a dead row."""
        live = count_live(read_rows(self.store, manifest, "index", INDEX))
        return [
            ref
            for ref in get_objects(self.store, manifest, "shard")
            if live.get(ref.path, 0) < ref.rows
        ]

    def _publish_without(
        self, current: Manifest, contents: set[str], summary: ForgetSummary
    ) -> None:
        """Publish the next version: the current one without these contents and without a dead row."""
        index = read_rows(self.store, current, "index", INDEX)
        erased = _rows_of(index, contents)
        left = index.filter(pc.invert(_is_of(index, contents)))
        if not len(left):
            raise ShortfallError(
                f"nothing would be left of {self.dataset}: remove the whole of it instead"
            )
        touched = set(erased.column("shard").to_pylist()) | {
            ref.path for ref in self._worn(current)
        }
        version = current.version + 1
        left, shards = self._rewrite(left, current, touched, version)
        rejects = read_rows(self.store, current, "rejects", REJECTS)
        rejects = pa.concat_tables([rejects, _as_rejects(erased)]).sort_by("uri")
        content = Content(left, rejects, exclude_duplicates(left)[1])
        manifest = replace(
            current,
            version=version,
            parent=current.version,
            created=now_utc(),
            classes=classes_of(left),
            counts=counts_of(content),
            objects=put_version_objects(self.store, left, rejects, shards),
            forgotten=sorted({*current.forgotten, *contents}),
        )
        if not publish_manifest(self.store, manifest, new_owner()):
            raise ShortfallError(
                f"another job published version {version} of {self.dataset} first: run forget again"
            )
        summary.version, summary.shards_rewritten = version, len(touched)
        summary.pictures = len(erased)

    def _rewrite(
        self, index: pa.Table, current: Manifest, touched: set[str], version: int
    ) -> tuple[pa.Table, list[ObjectRef]]:
        """Copy what lives in the touched shards into new ones."""
        shards = get_objects(self.store, current, "shard")
        live = live_rows(index, touched)
        worn = [LiveRows(ref, tuple(sorted(live[ref.path]))) for ref in shards if ref.path in live]
        stays = [ref for ref in shards if ref.path not in touched]
        tasks = plan_compaction(
            worn, self.dataset, version, StoredView.from_dict(current.preprocessing)
        )
        if not tasks:
            return index, stays
        markers = compact_shards(self.store, self.executor, tasks)
        return remap_index(index, tasks, markers), stays + [
            marker.objects["shard"] for marker in markers
        ]


def _is_of(index: pa.Table, contents: set[str]) -> pa.ChunkedArray:
    return pc.is_in(index.column("sample_id"), pa.array(sorted(contents), pa.string()))


def _rows_of(index: pa.Table, contents: set[str]) -> pa.Table:
    return index.filter(_is_of(index, contents))


def _as_rejects(rows: pa.Table) -> pa.Table:
    reasons = pa.array([str(Reason.FORGOTTEN)] * len(rows), pa.string())
    details = pa.array([_DETAIL] * len(rows), pa.string())
    return pa.Table.from_arrays(
        [*rows.select(["uri", "etag", "label"]).columns, reasons, details], schema=REJECTS
    )
