"""Erasing pictures: from the current version, from the shards that hold them, and from every version before.

A version without them is published first, then the versions that had them are withdrawn and their objects removed.
Killed in between, the same command finishes. Their content hashes are kept, so that no ingest brings them back.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import ForgetConfig
from pipeline.dataset.manifest import Manifest, get_objects, now_utc, publish_manifest, read_rows
from pipeline.dataset.schema import INDEX, REJECTS
from pipeline.dataset.splits import Repeats
from pipeline.dataset.tables import from_ipc
from pipeline.dataset.upkeep import collect, manifests, open_plans
from pipeline.errors import Reason, RequestError, ShortfallError
from pipeline.ingest.compaction import Survivors, live_rows, plan_compaction, relocate
from pipeline.ingest.publishing import compact_shards, put_version_objects
from pipeline.ingest.version import Content, counts_of
from pipeline.pictures.contract import StoredView
from pipeline.storage.commit import new_owner
from pipeline.storage.objects import ObjectRef, get_object
from pipeline.storage.store import normalise, open_store
from pipeline.work import Executor

_DETAIL = "erased on request"


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
        self.dataset, self.executor = normalise(config.dataset), executor
        self.store = open_store(self.dataset)
        self.wanted = config.uris

    def run(self) -> ForgetSummary:
        """Erase, and say what was done."""
        kept = manifests(self.store)
        current = kept[-1]
        for plan in open_plans(self.store, current.version):
            raise RequestError(
                f"an ingest into {self.dataset} is under way or was interrupted ({plan.name}), and may hold these "
                "pictures: let it end, or run the same ingest again, then forget"
            )
        contents = self._contents(kept)
        tainted = {manifest.version for manifest in kept if self._holds(manifest, contents)}
        summary = ForgetSummary(dataset=self.dataset, version=current.version, contents=len(contents))
        if tainted or not contents <= set(current.forgotten):
            self._publish_without(current, contents, summary)
        else:
            tainted = set()
        tainted -= {summary.version}
        summary.versions_withdrawn = sorted(tainted)
        summary.objects_removed = len(collect(self.store, tainted))
        summary.notes.append(
            "the source still holds its files, and models trained before keep what they learned: mend those as well"
        )
        return summary

    def _contents(self, kept: list[Manifest]) -> set[str]:
        """Content hashes of the wanted pictures in every kept version. Raises RequestError for a uri that none has."""
        root = kept[-1].source["uri"].rstrip("/")
        uris = {uri if uri.startswith(("/", "s3://")) else f"{root}/{uri}" for uri in self.wanted}
        contents: set[str] = set()
        missing = set(uris)
        for manifest in kept:
            index = read_rows(self.store, manifest, "index", INDEX)
            found = index.filter(pc.is_in(index.column("uri"), pa.array(sorted(uris), pa.large_string())))
            contents |= set(found.column("sample_id").to_pylist())
            missing -= set(found.column("uri").to_pylist())
        rejects = read_rows(self.store, kept[-1], "rejects", REJECTS)
        erased = rejects.filter(pc.equal(rejects.column("reason"), str(Reason.FORGOTTEN)))
        missing -= set(erased.column("uri").to_pylist())  # an earlier run got this far
        if missing:
            raise RequestError(f"no version of {self.dataset} holds {min(missing)}: nothing was erased")
        return contents

    def _holds(self, manifest: Manifest, contents: set[str]) -> bool:
        """Whether a version's index, or a dead row of its shards, holds any of the contents."""
        index = read_rows(self.store, manifest, "index", INDEX)
        if contents & set(index.column("sample_id").to_pylist()):
            return True
        return bool(self._tainted_shards(index, get_objects(self.store, manifest, "shard"), contents))

    def _tainted_shards(self, index: pa.Table, shards: list[ObjectRef], contents: set[str]) -> list[ObjectRef]:
        """Shards with a row of these contents. Only those with dead rows need to be looked into: the index tells the
        rest."""
        named = index.filter(pc.is_in(index.column("sample_id"), pa.array(sorted(contents), pa.string())))
        found = set(named.column("shard").to_pylist())
        live = live_rows(index)
        return [ref for ref in shards if ref.path in found or (
            len(live.get(ref.path, ())) < ref.rows and contents & self._sample_ids(ref)
        )]  # fmt: skip

    def _sample_ids(self, shard: ObjectRef) -> set[str]:
        return set(from_ipc(get_object(self.store, shard)).column("sample_id").to_pylist())

    def _publish_without(self, current: Manifest, contents: set[str], summary: ForgetSummary) -> None:
        """Publish the next version: the current one without these contents, in shards without them."""
        index = read_rows(self.store, current, "index", INDEX)
        shards = get_objects(self.store, current, "shard")
        erased = pc.is_in(index.column("sample_id"), pa.array(sorted(contents), pa.string()))
        left = index.filter(pc.invert(erased))
        if not len(left):
            raise ShortfallError(f"nothing would be left of {self.dataset}: remove the whole of it instead")
        tainted = self._tainted_shards(index, shards, contents)
        version = current.version + 1
        left, shards = self._rewrite(left, shards, tainted, version, StoredView.from_dict(current.preprocessing))
        rejects = pa.concat_tables([
            read_rows(self.store, current, "rejects", REJECTS), _as_rejects(index.filter(erased)),
        ]).sort_by("uri")  # fmt: skip
        repeats = Repeats(**current.counts["repeats"])
        manifest = replace(
            current,
            version=version,
            parent=current.version,
            created=now_utc(),
            counts=counts_of(Content(left, rejects, repeats)),
            objects=put_version_objects(self.store, left, rejects, shards),
            forgotten=sorted({*current.forgotten, *contents}),
        )
        if not publish_manifest(self.store, manifest, new_owner()):
            raise ShortfallError(f"another job published version {version} of {self.dataset} first: run forget again")
        summary.version, summary.shards_rewritten = version, len(tainted)
        summary.pictures = len(index) - len(left)

    def _rewrite(
        self, index: pa.Table, shards: list[ObjectRef], tainted: list[ObjectRef], version: int, view: StoredView
    ) -> tuple[pa.Table, list[ObjectRef]]:
        live = live_rows(index)
        worn = [Survivors(ref, tuple(sorted(live[ref.path]))) for ref in tainted if ref.path in live]
        stays = [ref for ref in shards if ref not in tainted]
        tasks = plan_compaction(worn, self.dataset, version, view)
        if not tasks:
            return index, stays
        markers = compact_shards(self.store, self.executor, tasks)
        return relocate(index, tasks, markers), stays + [marker.objects["shard"] for marker in markers]


def _as_rejects(rows: pa.Table) -> pa.Table:
    reasons = pa.array([str(Reason.FORGOTTEN)] * len(rows), pa.string())
    details = pa.array([_DETAIL] * len(rows), pa.string())
    return pa.Table.from_arrays([*rows.select(["uri", "etag", "label"]).columns, reasons, details], schema=REJECTS)
