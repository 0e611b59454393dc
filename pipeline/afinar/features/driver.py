"""The features driver: find what is missing, run units, publish a version of each key.

The cuts of a backbone that lack the same pictures are computed in one pass. Each cut is published
under its own key, so that a later request for some of them finds its features.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from afinar.config.base import fingerprint
from afinar.config.features import FeaturesConfig
from afinar.dataset.manifest import require_not_erased
from afinar.dataset.reader import Dataset, open_dataset
from afinar.errors import RecordError, RequestError
from afinar.features.gc import collect_key, erase_features
from afinar.features.key import FeatureSpec
from afinar.features.manifest import (
    FeatureVersion,
    NewShard,
    add_shards,
    open_features_store,
    read_features,
)
from afinar.features.network import FeatureRequest, ResolvedFeatures, resolve_features
from afinar.features.worker import FeatureJobSpec, make_feature_worker
from afinar.sources.listing import as_listing
from afinar.storage.markers import committed_units, read_markers
from afinar.storage.open import normalize_uri
from afinar.storage.records import REMEDY
from afinar.storage.versions import new_owner
from afinar.units.cut import (
    is_up_to_date,
    iter_units,
    plan_units,
    tapered_sizes,
    unit_names,
)
from afinar.units.executor import Executor, RetryPolicy
from afinar.units.plans import Plan, delete_plan
from afinar.units.results import RunTotals, UnitResult
from afinar.units.run import IncrementalJob, Planned, Published, run_incremental
from afinar.units.tasks import UnitTask, retry_policy

logger = logging.getLogger(__name__)

UNIT_PICTURES: Final = 512
_ITEM_BYTES: Final = {"float16": 2, "float32": 4}
FLOAT16_ERROR: Final = 2**-11
"""Largest relative error of a value in float16: half of the distance of two numbers."""


@dataclass(frozen=True, kw_only=True)
class KeyResult:
    """Features of one cut: where they are, and for how many pictures this run computed them."""

    key: str
    backbone: str
    cut: str
    pool: str
    width: int
    pictures: int
    computed: int
    bytes: int


@dataclass(kw_only=True)
class FeaturesSummary:
    """Outcome of a job. `pictures` are distinct contents of the dataset's version.

    `read` is the number of pictures that went through a network, once for each pass.
    """

    dataset: str
    version: int
    pictures: int
    features: list[KeyResult]
    read: int = 0
    units_run: int = 0
    seconds: float = 0.0
    images_per_second: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def run_features(config: FeaturesConfig, executor: Executor) -> FeaturesSummary:
    """Compute the features that the dataset's current version lacks, and publish them.

    Raises RequestError for a request that cannot be carried out, or that would take more space than
    `max_gb`.
    """
    uri = normalize_uri(config.dataset)
    dataset = open_dataset(uri)
    requests = [_request(config, backbone, dataset) for backbone in config.backbones]
    resolved = [resolve_features(request) for request in requests]
    passes = [
        part
        for request, features in zip(requests, resolved, strict=True)
        for part in _passes(dataset, request, features)
    ]
    _check_size(passes, config)

    totals, seconds = RunTotals(), 0.0
    for part in passes:
        result = run_incremental(FeatureJob(uri, part, executor, config))
        seconds += result.seconds
        totals.units += result.totals.units
        totals.pictures += result.totals.pictures
        for phase, spent in result.totals.phases.items():
            totals.phases[phase] = totals.phases.get(phase, 0.0) + spent
    return _summary(dataset, resolved, passes, totals, seconds)


def ensure_features(
    dataset: str, request: FeatureRequest, executor: Executor, config: FeaturesConfig
) -> list[FeatureSpec]:
    """Compute what a request lacks, as `run_features` does, and return its specs."""
    uri = normalize_uri(dataset)
    features = resolve_features(request)
    passes = _passes(open_dataset(uri), request, features)
    _check_size(passes, config)
    for part in passes:
        run_incremental(FeatureJob(uri, part, executor, config))
    return features.specs


def _request(config: FeaturesConfig, backbone: str, dataset: Dataset) -> FeatureRequest:
    return FeatureRequest(
        backbone=backbone,
        weights=config.weights,
        cuts=tuple((cut, pool) for cut in config.cuts_of(backbone) for pool in config.pools),
        input_size=config.input_size,
        stored_view=dataset.view,
        precision=config.precision,
        stored_as=config.stored_as,
    )


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Cuts of one backbone that lack the same `missing` pictures: one pass computes them."""

    weights: str
    specs: list[FeatureSpec]
    widths: list[int]
    missing: int

    @property
    def bytes(self) -> int:
        """Bytes of the features that are missing."""
        return sum(
            self.missing * width * _ITEM_BYTES[spec.stored_as]
            for spec, width in zip(self.specs, self.widths, strict=True)
        )


def _passes(dataset: Dataset, request: FeatureRequest, features: ResolvedFeatures) -> list[Pass]:
    """Group the cuts by what they lack; those that lack nothing are left out."""
    wanted = _contents(dataset).column("sample_id")
    groups: dict[bytes, list[int]] = defaultdict(list)
    missing: dict[bytes, int] = {}
    for number, spec in enumerate(features.specs):
        index = read_features(open_features_store(dataset.store.root, spec.key)).index
        known = pc.is_in(wanted, index.column("sample_id")).to_numpy(zero_copy_only=False)
        mask = np.packbits(known.astype(np.bool_)).tobytes()
        groups[mask].append(number)
        missing[mask] = int((~known.astype(np.bool_)).sum())
    return [
        Pass(
            weights=request.weights,
            specs=[features.specs[number] for number in numbers],
            widths=[features.widths[number] for number in numbers],
            missing=missing[mask],
        )
        for mask, numbers in groups.items()
        if missing[mask]
    ]


def _check_size(passes: list[Pass], config: FeaturesConfig) -> None:
    """Log what will be computed, and raise RequestError if it takes too much space."""
    size = sum(part.bytes for part in passes)
    for part in passes:
        cuts = ", ".join(spec.cut_name for spec in part.specs)
        logger.info(
            f"features: {part.missing} pictures through {part.specs[0].backbone}, "
            f"{len(part.specs)} cuts in one pass ({cuts}): {part.bytes / 1e9:.3g} GB in "
            f"{part.specs[0].stored_as}"
        )
    if size > config.max_gb * 1e9:
        raise RequestError(
            f"these features take {size / 1e9:.3g} GB, more than --max-gb {config.max_gb:g}: give "
            "a larger --max-gb, --pool average, or other cuts"
        )


def _contents(dataset: Dataset) -> pa.Table:
    """Return one row per distinct content, by shard and row: sample_id, shard, row."""
    index = dataset.index.select(["sample_id", "shard", "row"])
    index = index.sort_by([("shard", "ascending"), ("row", "ascending")])
    ids = index.column("sample_id")
    first = pc.index_in(ids, ids.unique())
    _, positions = np.unique(first.to_numpy(), return_index=True)
    return index.take(pa.array(np.sort(positions)))


@dataclass(frozen=True)
class _Current:
    """The dataset's version, and the newest version of each key."""

    dataset: Dataset
    versions: list[FeatureVersion]

    def covers(self, sample_ids: pa.ChunkedArray) -> pa.ChunkedArray:
        """Return True for each picture that all keys have."""
        known = [
            pc.is_in(sample_ids, version.index.column("sample_id")) for version in self.versions
        ]
        covered = known[0]
        for mask in known[1:]:
            covered = pc.and_(covered, mask)
        return covered


class FeatureJob(IncrementalJob[_Current, int]):
    """One pass over a dataset, as the incremental runner needs it.

    A picture is identified by its content: the plan's `uri` is the content hash, so that a rename
    changes neither plan nor units. Markers and versions lie in the folder of each key, plans beside
    these folders.
    """

    name: ClassVar[str] = "features"

    def __init__(
        self, dataset: str, part: Pass, executor: Executor, config: FeaturesConfig
    ) -> None:
        self.dataset, self.part, self.executor, self.config = dataset, part, executor, config
        self.store = open_features_store(dataset)
        self.owner = new_owner()
        self.identity = fingerprint(sorted(spec.key for spec in part.specs))[:16]

    def open_current(self) -> _Current:
        stores = [open_features_store(self.dataset, spec.key) for spec in self.part.specs]
        return _Current(open_dataset(self.dataset), [read_features(store) for store in stores])

    def plan_name(self, current: _Current) -> str:
        del current
        return f"plans/{self.identity}.parquet"

    def can_resume(self, plan: Plan, current: _Current) -> bool:
        """Return False if the dataset has lost shards, or pictures, that the plan names."""
        shards = pa.array(current.dataset.shard_names, pa.string())
        gone = pc.invert(pc.is_in(plan.table.column("shard").drop_null(), shards))
        forgotten = pa.array(current.dataset.manifest.forgotten, pa.string())
        erased = pc.is_in(plan.table.column("sample_id"), forgotten)
        return not (pc.any(gone).as_py() or pc.any(erased).as_py())

    def make_plan(self, current: _Current) -> Planned:
        contents = _contents(current.dataset)
        ids = contents.column("sample_id")
        listing = as_listing(
            pa.table(
                {
                    "uri": pc.cast(ids, pa.large_string()),
                    "etag": pa.array([""] * len(ids), pa.large_string()),
                    "size": pa.array([0] * len(ids), pa.int64()),
                }
            )
        )
        for name in ("sample_id", "shard", "row"):
            listing = listing.append_column(contents.schema.field(name), contents.column(name))
        known = listing.select(["uri", "etag"]).filter(current.covers(ids))
        # A unit's name depends on its pictures alone; what else determines it is in the key. So if
        # a job dies after it has published some of its keys, the others find their units.
        sizes = partial(tapered_sizes, UNIT_PICTURES)
        table = plan_units(listing, is_up_to_date(listing, known), self.name, sizes)
        return Planned(table, [])

    def is_current(self, table: pa.Table, current: _Current) -> bool:
        del current
        return bool(table.column("unit").null_count == len(table))

    def committed(self) -> set[str]:
        """Return the units that every key has, as a marker or published."""
        done: list[set[str]] = []
        for spec in self.part.specs:
            store = open_features_store(self.dataset, spec.key)
            done.append(committed_units(store) | read_features(store).units)
        return set.intersection(*done)

    def run_units(self, table: pa.Table, done: set[str], current: _Current) -> Iterator[UnitResult]:
        tasks = (UnitTask(unit, entries) for unit, entries in iter_units(table, "", done))
        policy: RetryPolicy[UnitTask] = retry_policy(self.config.unit_timeout_s, uses_gpus=True)
        job = FeatureJobSpec(
            dataset=self.dataset,
            version=current.dataset.manifest.version,
            weights=self.part.weights,
            specs=tuple(self.part.specs),
            batch_size=self.config.batch_size,
        )
        make_work: Callable[[], Callable[[UnitTask], UnitResult]] = partial(
            make_feature_worker, job
        )
        return self.executor.run(make_work, tasks, policy)

    def is_overtaken(self, plan: Plan | None, current: _Current) -> bool:
        del plan
        now = self.open_current()
        return _numbers(now) != _numbers(current)

    def publish(self, plan: Plan, current: _Current) -> Published[int]:
        """Publish the units of the plan under each key; units that are published stay as they are.

        Raises ShortfallError if pictures have been erased from the dataset meanwhile.
        """
        dataset = current.dataset
        require_not_erased(dataset.store, dataset.manifest.version)
        for spec, width in zip(self.part.specs, self.part.widths, strict=True):
            self._publish_key(plan, spec, width)
        # An erasure may have begun after the check above, and not have seen these versions.
        forgotten = dataset.manifest.forgotten
        if open_dataset(self.dataset).manifest.forgotten != forgotten:
            erase_features(self.dataset)
        return Published(len(plan.table))

    def _publish_key(self, plan: Plan, spec: FeatureSpec, width: int) -> None:
        store = open_features_store(self.dataset, spec.key)
        published = read_features(store).units
        units = [unit for unit in plan.units if unit not in published]
        sample_ids = _sample_ids_by_unit(plan.table)
        new = []
        for marker in read_markers(store, units, required=("shard",), known=("shard",)):
            ids = sample_ids[marker.unit]
            ref = marker.objects["shard"]
            if ref.rows != len(ids):
                raise RecordError(
                    f"{store.uri(ref.path)} has {ref.rows} rows and its unit {len(ids)} pictures; "
                    f"{REMEDY}"
                )
            new.append(NewShard(ref, ids))
        add_shards(store, spec, width, new, self.owner)

    def after_publish(self, plan: Plan) -> None:
        delete_plan(self.store, plan)
        for spec in self.part.specs:
            collect_key(self.dataset, spec.key)

    def unchanged(self, table: pa.Table, current: _Current) -> int:
        del current
        return len(table)


def _sample_ids_by_unit(plan: pa.Table) -> dict[str, pa.Array]:
    """Return the content hashes of each unit, in the order in which its worker has them."""
    names = pa.array(unit_names(plan), pa.string())
    numbers = pc.fill_null(pc.index_in(plan.column("unit"), names), -1).to_numpy()
    positions = np.argsort(numbers, kind="stable")[np.count_nonzero(numbers < 0) :]
    ids = plan.column("sample_id").take(pa.array(positions)).combine_chunks()
    starts = np.searchsorted(numbers[positions], np.arange(len(names) + 1)).tolist()
    return {
        name: ids[start:end]
        for name, start, end in zip(names.to_pylist(), starts[:-1], starts[1:], strict=True)
    }


def _numbers(current: _Current) -> tuple[int, ...]:
    return (
        current.dataset.manifest.version,
        *(version.number for version in current.versions),
    )


def _summary(
    dataset: Dataset,
    resolved: Sequence[ResolvedFeatures],
    passes: list[Pass],
    totals: RunTotals,
    seconds: float,
) -> FeaturesSummary:
    computed = {spec.key: part.missing for part in passes for spec in part.specs}
    results = []
    for features in resolved:
        for spec, width in zip(features.specs, features.widths, strict=True):
            manifest = read_features(open_features_store(dataset.store.root, spec.key)).manifest
            assert manifest is not None, "every key has been published"
            results.append(
                KeyResult(
                    key=spec.key,
                    backbone=spec.backbone,
                    cut=spec.cut,
                    pool=spec.pool,
                    width=width,
                    pictures=manifest.rows,
                    computed=computed.get(spec.key, 0),
                    bytes=manifest.bytes,
                )
            )
    notes = [] if passes else ["nothing to do: every picture has these features"]
    if any(spec.stored_as == "float16" for item in resolved for spec in item.specs):
        notes.append(
            f"float16 changes each value by at most {FLOAT16_ERROR:.2%} of it; --stored-as float32 "
            "keeps all digits and takes twice the space"
        )
    return FeaturesSummary(
        dataset=dataset.store.root,
        version=dataset.manifest.version,
        pictures=len(_contents(dataset)),
        features=results,
        read=totals.pictures,
        units_run=totals.units,
        seconds=round(seconds, 3),
        images_per_second=round(totals.pictures / max(seconds, 1e-3), 1),
        stages=totals.rounded_phases(),
        notes=notes,
    )
