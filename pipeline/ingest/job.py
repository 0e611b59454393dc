"""The ingest job: listing → plan → shards → one new version of the dataset.

An interrupted run left its plan behind; the same command resumes that plan, publishes it, and then
looks at the source again, so that what changed meanwhile becomes the next version.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import IngestConfig, fingerprint, parse_extensions, parse_split
from pipeline.dataset.listing import classes_of, list_pictures
from pipeline.dataset.listing import fingerprint as listing_fingerprint
from pipeline.dataset.manifest import (
    Manifest,
    current_manifest,
    get_objects,
    publish_manifest,
    put_objects,
    read_rows,
)
from pipeline.dataset.schema import FACTS, INDEX, REJECTS, SPLITS
from pipeline.dataset.splits import assign_split
from pipeline.dataset.tables import from_parquet, to_parquet
from pipeline.dataset.units import interrupted_plan, store_plan
from pipeline.errors import Reason, RequestError, ShortfallError
from pipeline.ingest.plan import make_plan, standing_facts, tasks_of
from pipeline.ingest.shard import build_shard
from pipeline.pictures.contract import StoredView
from pipeline.storage.commit import (
    UnitMarker,
    committed_units,
    new_owner,
    read_markers,
    require_put_if_absent,
)
from pipeline.storage.objects import ObjectRef, get_object, put_object
from pipeline.storage.store import normalise, open_store
from pipeline.work import Executor, Meter, say

_INDEX_ROWS = 1_000_000
_ATTEMPTS = 20  # at publishing on top of rivals
_TRANSIENT = {str(reason) for reason in Reason if reason.transient}


@dataclass(kw_only=True)
class IngestSummary:
    """What an ingest did. listed = added + changed + unchanged + rejected."""

    dataset: str
    version: int
    listed: int
    samples: int
    rejects: int
    rejects_by_reason: dict[str, int]
    added: int
    changed: int
    removed: int
    unchanged: int
    classes: list[str]
    splits: dict[str, int]
    seconds: float = 0.0
    images_per_second: float = 0.0
    units_run: int = 0
    notes: list[str] = field(default_factory=list)


class _OvertakenError(ShortfallError):
    """Another ingest published this version's number first."""


class Ingest:
    """One ingest into one dataset."""

    def __init__(self, config: IngestConfig, executor: Executor) -> None:
        self.config = config
        self.executor = executor
        self.source, self.dataset = normalise(config.source), normalise(config.dataset)
        self.store = open_store(self.dataset)
        self.view = StoredView(size=config.size, fit=config.fit)
        self.owner = new_owner()
        # What determines the dataset besides the pictures; the budget and the workers do not.
        self.recipe = {
            "source": self.source,
            "labels": config.labels,
            "extensions": config.extensions,
            "split": config.split,
            "seed": config.seed,
        }
        self.recipe_id = fingerprint([self.recipe, self.view.as_dict()])[:8]

    def run(self) -> IngestSummary:
        """Bring the dataset up to date with its source and say what was done."""
        started = time.monotonic()
        self.store.require_target()
        read = units = 0
        summary: IngestSummary | None = None
        for _ in range(_ATTEMPTS):
            parent = current_manifest(self.store)
            self._check_parent(parent)
            name = f"plans/{parent.version + 1 if parent else 1:08d}-{self.recipe_id}.parquet"
            plan = interrupted_plan(self.store, name)
            resumed = plan is not None
            if plan is None:
                plan = self._plan(name, parent)
            if plan is None:
                assert parent is not None
                summary = summary or self._unchanged(parent)
                break
            run, pictures = self._build(plan)
            units, read = units + run, read + pictures
            try:
                summary = self._publish(name, plan, parent)
            except _OvertakenError:
                say("another ingest published first; building on its version")
                continue
            except ShortfallError as shortfall:
                if not resumed:
                    raise
                say(f"the plan of the interrupted run is dropped: {shortfall}")
                continue
            if not resumed:
                break
            say("the interrupted run is complete; looking at the source again")
        if summary is None:
            raise ShortfallError(
                f"{_ATTEMPTS} other ingests into {self.dataset} published first: run the command again"
            )
        summary.units_run = units
        summary.seconds = round(time.monotonic() - started, 3)
        summary.images_per_second = round(read / summary.seconds, 1)
        return summary

    def _check_parent(self, parent: Manifest | None) -> None:
        if parent is not None and parent.source["uri"] != self.source:
            raise RequestError(
                f"{self.dataset} holds the pictures of {parent.source['uri']}; from {self.source} all of them would be "
                "replaced. Give that source, or another DATASET."
            )

    def _plan(self, name: str, parent: Manifest | None) -> pa.Table | None:
        """Make and store the plan of the next version; None when the current one needs no successor."""
        listing = list_pictures(self.source, parse_extensions(self.config.extensions), self.config.labels)
        self._check(listing)
        known = self._known(parent)
        if parent and self._is_current(parent, listing) and not self._retries(parent):
            return None
        require_put_if_absent(self.store)
        plan = make_plan(listing, known, self.view, parent.version + 1 if parent else 1)
        return store_plan(self.store, name, plan)

    def _retire(self, name: str, markers: list[UnitMarker], facts: list[pa.Table]) -> None:
        """Let the next run plan anew: drop a plan that led to no version, and its units to be tried again."""
        for marker, table in zip(markers, facts, strict=True):
            if _TRANSIENT & set(table.column("reason").unique().to_pylist()):
                self.store.delete(f"units/{marker.unit}.json")
        self.store.delete(name)

    def _check(self, listing: pa.Table) -> None:
        classes = classes_of(listing)
        if self.config.labels == "folder" and len(classes) < 2:
            found = f"only the class {classes[0]!r}" if classes else "no class folders"
            raise RequestError(
                f"{self.source} holds {found}: a classifier needs two. Put each class in a folder of its own "
                "below SOURCE, or give --labels none."
            )

    def _known(self, parent: Manifest | None) -> pa.Table:
        if parent is None or parent.preprocessing != self.view.as_dict():
            if parent is not None:
                say("the preprocessing differs from the current version's: every picture is read anew")
            return FACTS.empty_table()
        index = read_rows(self.store, parent, "index", INDEX)
        return standing_facts(index, read_rows(self.store, parent, "rejects", REJECTS), _TRANSIENT)

    def _is_current(self, parent: Manifest, listing: pa.Table) -> bool:
        return (
            parent.recipe == self.recipe
            and parent.preprocessing == self.view.as_dict()
            and parent.source["fingerprint"] == listing_fingerprint(listing)
        )

    def _retries(self, parent: Manifest) -> bool:
        return bool(_TRANSIENT & parent.counts["rejects_by_reason"].keys())

    def _build(self, plan: pa.Table) -> tuple[int, int]:
        """Run the plan's units that no earlier run committed; how many those were, and their pictures."""
        tasks = tasks_of(plan, self.view, self.source, self.dataset)
        done = committed_units(self.store) if tasks else set()
        left = [task for task in tasks if task.unit not in done]
        if len(left) < len(tasks):
            say(f"{len(tasks) - len(left)} of {len(tasks)} units are already committed")
        pictures = sum(len(task.entries) for task in left)
        if left:
            with Meter("ingest", pictures) as meter:
                for result in self.executor.run(build_shard, left):
                    meter.add(result.pictures, result.rejects)
        return len(left), pictures

    def _publish(self, name: str, plan: pa.Table, parent: Manifest | None) -> IngestSummary:
        units = [unit for unit in plan.column("unit").unique().to_pylist() if unit is not None]
        markers = read_markers(self.store, units)
        fresh = [from_parquet(get_object(self.store, marker.objects["facts"])) for marker in markers]
        index, rejects = self._join(plan, pa.concat_tables([self._known(parent), *fresh]))
        try:
            self._check_budget(index, rejects, len(plan))
        except ShortfallError:
            self._retire(name, markers, fresh)
            raise
        manifest = Manifest(
            version=parent.version + 1 if parent else 1,
            parent=parent.version if parent else None,
            source={"uri": self.source, "fingerprint": listing_fingerprint(plan)},
            recipe=self.recipe,
            preprocessing=self.view.as_dict(),
            classes=classes_of(index),
            counts=_counts(index, rejects, len(plan)),
            objects=put_objects(self.store, self._objects(index, rejects, markers, parent)),
        )
        if parent is not None and _same_content(manifest, parent):
            self._retire(name, markers, fresh)
            return self._unchanged(parent)
        summary = self._summary(manifest, index, plan, parent)
        if not publish_manifest(self.store, manifest, self.owner):
            raise _OvertakenError(f"version {manifest.version} of {self.dataset} is another ingest's")
        return summary

    def _objects(
        self, index: pa.Table, rejects: pa.Table, markers: list[UnitMarker], parent: Manifest | None
    ) -> list[tuple[str, ObjectRef]]:
        shards = [marker.objects["shard"] for marker in markers if "shard" in marker.objects]
        if parent is not None:
            shards += get_objects(self.store, parent, "shard")
        named = set(index.column("shard").unique().to_pylist())
        objects = [("shard", ref) for ref in {ref.path: ref for ref in shards}.values() if ref.path in named]
        objects += [("index", ref) for ref in self._put_index(index)]
        if len(rejects):
            objects.append(("rejects", self._put_rejects(rejects)))
        return sorted(objects, key=lambda item: (item[0], item[1].path))

    def _join(self, plan: pa.Table, facts: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Index and rejects of the new version: the listing joined with what is known of each picture."""
        rows = plan.join(facts, keys=["uri", "etag"], join_type="left outer").sort_by("uri")
        samples = rows.filter(pc.is_valid(rows.column("sample_id")))
        rejects = rows.filter(pc.is_valid(rows.column("reason"))).select(REJECTS.names).cast(REJECTS)
        assert len(samples) + len(rejects) == len(plan), "every listed picture is a sample or a reject"
        shares = parse_split(self.config.split)
        splits = [assign_split(key, shares, self.config.seed) for key in samples.column("sample_id").to_pylist()]
        samples = samples.append_column("split", pa.array(splits, pa.string()))
        samples = samples.append_column("group", pa.nulls(len(samples), pa.string()))
        return samples.select(INDEX.names).cast(INDEX).combine_chunks(), rejects.combine_chunks()

    def _check_budget(self, index: pa.Table, rejects: pa.Table, listed: int) -> None:
        over = len(rejects) > self.config.max_reject_rate * listed
        if over or not len(index):
            table = self._put_rejects(rejects)
            raise ShortfallError(
                f"{len(rejects)} of {listed} pictures were rejected, over --max-reject-rate "
                f"{self.config.max_reject_rate:g}; no version was published. Their reasons: "
                f"{self.store.uri(table.path)}"
            )

    def _put_index(self, index: pa.Table) -> list[ObjectRef]:
        slices = [index.slice(start, _INDEX_ROWS) for start in range(0, len(index), _INDEX_ROWS)]
        return [put_object(self.store, "index/{hash}.parquet", to_parquet(part), len(part)) for part in slices]

    def _put_rejects(self, rejects: pa.Table) -> ObjectRef:
        return put_object(self.store, "rejects/{hash}.parquet", to_parquet(rejects), len(rejects))

    def _summary(self, manifest: Manifest, index: pa.Table, plan: pa.Table, parent: Manifest | None) -> IngestSummary:
        before = _etags(read_rows(self.store, parent, "index", INDEX)) if parent else {}
        now = _etags(index)
        summary = _summary_of(manifest, self.dataset)
        summary.added = sum(uri not in before for uri in now)
        summary.changed = sum(uri in before and before[uri] != etag for uri, etag in now.items())
        summary.unchanged = len(now) - summary.added - summary.changed
        summary.removed = len(before.keys() - set(plan.column("uri").to_pylist()))
        assert summary.listed == summary.added + summary.changed + summary.unchanged + summary.rejects
        return summary

    def _unchanged(self, parent: Manifest) -> IngestSummary:
        summary = _summary_of(parent, self.dataset)
        summary.unchanged = summary.samples
        summary.notes.append(f"nothing to do: version {parent.version} already holds this source as it is")
        return summary


def _summary_of(manifest: Manifest, dataset: str) -> IngestSummary:
    counts = manifest.counts
    return IngestSummary(
        dataset=dataset,
        version=manifest.version,
        listed=counts["listed"],
        samples=counts["samples"],
        rejects=counts["rejects"],
        rejects_by_reason=counts["rejects_by_reason"],
        added=0,
        changed=0,
        removed=0,
        unchanged=0,
        classes=manifest.classes,
        splits=counts["splits"],
    )


def _counts(index: pa.Table, rejects: pa.Table, listed: int) -> dict[str, Any]:
    splits = Counter(index.column("split").to_pylist())
    labels = Counter(label for label in index.column("label").to_pylist() if label is not None)
    return {
        "listed": listed,
        "samples": len(index),
        "rejects": len(rejects),
        "rejects_by_reason": dict(sorted(Counter(rejects.column("reason").to_pylist()).items())),
        "splits": {split: splits[split] for split in SPLITS},
        "labels": dict(sorted(labels.items())),
    }


def _etags(index: pa.Table) -> dict[str, str]:
    return dict(zip(index.column("uri").to_pylist(), index.column("etag").to_pylist(), strict=True))


def _same_content(one: Manifest, other: Manifest) -> bool:
    return (one.objects, one.source, one.recipe) == (other.objects, other.source, other.recipe)
