"""Erase pictures from a prediction folder: from all partitions, exports, pages and old versions.

A manifest without the pictures is published first. Then all older manifests are deleted, and what
only they needed. If the command is killed in between, running it again completes it. The manifest
keeps the content hashes of erased pictures, so that no labelling adds them again. The command
stores a plan as a lease: a labelling refuses to run beside it, and garbage collection skips its
objects."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from afinar.config.forget import ForgetConfig
from afinar.errors import RequestError, ShortfallError
from afinar.labelling.run_report import RunStats, remove_from_stats
from afinar.predictions.gc import collect, require_manifest
from afinar.predictions.manifest import (
    FORGET_PLAN,
    Part,
    Partition,
    PredictionManifest,
    get_parts,
    publish_manifest,
    put_parts,
    read_manifest,
)
from afinar.predictions.part_reader import read_part
from afinar.predictions.review_queue import FORM, delete_old_queues, review_folder
from afinar.predictions.schema import object_template
from afinar.predictions.single_file import delete_old_singles, single_folder
from afinar.storage.arrow import to_parquet
from afinar.storage.objects import put_object
from afinar.storage.open import normalize_uri, open_store
from afinar.storage.store import Store
from afinar.storage.versions import new_owner
from afinar.units.cut import PLAN
from afinar.units.plans import store_plan, stored_plans

_NOTES: Final = (
    "this folder keeps the content hashes of erased pictures in its manifest, so that no labelling "
    "adds them again; exports are written again by the next `afinar label` that asks for them",
    "not reached: the source's own files; datasets (`afinar forget DATASET URI`); other prediction "
    "folders; models that were trained on the pictures; copies of these files elsewhere",
)


@dataclass(kw_only=True)
class PredictionForgetSummary:
    """Counts of an erasure. `pictures` are rows of predictions and rejects in all partitions."""

    predictions: str
    version: int
    pictures: int = 0
    contents: int = 0
    parts_rewritten: int = 0
    files_removed: int = 0
    versions_withdrawn: list[int] = field(default_factory=list)
    objects_removed: int = 0
    notes: list[str] = field(default_factory=list)


def forget_predictions(config: ForgetConfig) -> PredictionForgetSummary:
    """Erase pictures from a prediction folder.

    Raises RequestError if it names none of them or a labelling is unfinished, ShortfallError if
    another job published first.
    """
    erasure = _Erasure(config)
    require_manifest(erasure.store)
    lease = pa.Table.from_pylist([{"unit": erasure.unit}], schema=PLAN)
    store_plan(erasure.store, FORGET_PLAN, lease)
    try:
        return erasure.run()
    finally:
        erasure.store.delete(FORGET_PLAN)


class _Erasure:
    """One erasure from one prediction folder. `unit` is in the names of the parts it writes."""

    def __init__(self, config: ForgetConfig) -> None:
        self.store = open_store(normalize_uri(config.path))
        self.wanted = config.uris
        self.unit = f"forget{new_owner()[:16]}"

    def run(self) -> PredictionForgetSummary:
        self._check_no_labelling()
        manifest = read_manifest(self.store)
        uris = self._complete_uris(manifest)
        contents, missing = self._find(manifest, uris)
        summary = PredictionForgetSummary(
            predictions=self.store.root,
            version=manifest.version,
            contents=len(contents),
            notes=[f"nothing here names {uri}" for uri in sorted(missing)],
        )
        if len(missing) < len(self.wanted):
            manifest = self._publish_without(manifest, uris, contents, summary)

        # Also if nothing was found: an erasure that was killed may have left these files.
        summary.files_removed = self._delete_exports(manifest, uris)
        self.store.delete(FORGET_PLAN)
        collected = collect(self.store, keep=1, drop_plans=False)
        self.store.delete_scratch(0)
        summary.versions_withdrawn = collected.versions
        summary.objects_removed = len(collected.objects)
        if len(missing) == len(self.wanted):
            raise RequestError(
                f"{self.store.root} names no {min(missing)}: give uris as they are in the column "
                "uri, or relative to the source. Nothing was erased."
            )
        summary.notes += _NOTES
        return summary

    def _check_no_labelling(self) -> None:
        for plan in stored_plans(self.store):
            if plan.name != FORGET_PLAN:
                raise RequestError(
                    f"a labelling into {self.store.root} is running or was interrupted "
                    f"({plan.name}), and may hold these pictures: let it end, run the same command "
                    f"again, or give it up with `afinar status {self.store.root} --gc "
                    "--drop-plans`; then forget"
                )

    def _complete_uris(self, manifest: PredictionManifest) -> dict[str, str]:
        """Return the uris that the wanted pictures may have, each with the uri as it was given."""
        roots = {
            source.rstrip("/")
            for partition in manifest.partitions.values()
            for source in partition.sources
        }
        uris = {uri: uri for uri in self.wanted}
        for uri in self.wanted:
            if not uri.startswith(("/", "s3://")):
                uris |= {f"{root}/{uri}": uri for root in roots}
        return uris

    def _find(
        self, manifest: PredictionManifest, uris: dict[str, str]
    ) -> tuple[set[str], set[str]]:
        """Return the content hashes of the wanted pictures, and those that no row names."""
        contents: set[str] = set()
        missing = set(self.wanted)
        for part in _parts_of(self.store, manifest):
            columns = ["uri", "sample_id"] if part.kind == "part" else ["uri"]
            rows = read_part(self.store, part, columns)
            rows = rows.filter(pc.is_in(rows.column("uri"), pa.array(sorted(uris), pa.string())))
            missing -= {uris[uri] for uri in rows.column("uri").to_pylist()}
            if part.kind == "part":
                contents |= set(rows.column("sample_id").to_pylist())
        return contents, missing

    def _publish_without(
        self,
        manifest: PredictionManifest,
        uris: Collection[str],
        contents: set[str],
        summary: PredictionForgetSummary,
    ) -> PredictionManifest:
        """Publish the current manifest without rows of these uris and contents."""
        partitions = {
            name: self._partition_without(name, partition, uris, contents, summary)
            for name, partition in manifest.partitions.items()
        }
        successor = replace(
            manifest,
            version=manifest.version + 1,
            partitions=partitions,
            forgotten=sorted({*manifest.forgotten, *contents}),
        )
        if not publish_manifest(self.store, successor, new_owner()):
            raise ShortfallError(
                f"another job published version {successor.version} of {self.store.root} first: "
                "run forget again"
            )
        summary.version = successor.version
        return successor

    def _partition_without(
        self,
        name: str,
        partition: Partition,
        uris: Collection[str],
        contents: set[str],
        summary: PredictionForgetSummary,
    ) -> Partition:
        """Rewrite the parts of a partition that name these pictures; return its new entry."""
        kept: list[Part] = []
        removed = RunStats()
        for part in get_parts(self.store, partition):
            table = read_part(self.store, part)
            is_erased = _is_erased(table, uris, contents)
            erased = table.filter(is_erased)
            if not len(erased):
                kept.append(part)
                continue

            summary.pictures += len(erased)
            summary.parts_rewritten += 1
            if part.kind == "part":
                removed.add_predictions(erased)
            left = table.filter(pc.invert(is_erased))
            if len(left):
                template = object_template(part.kind, name, self.unit)
                ref = put_object(self.store, template, to_parquet(left), len(left))
                kept.append(Part(part.kind, ref))

        return replace(
            partition,
            objects=put_parts(self.store, sorted(kept, key=lambda part: part.ref.path)),
            rows=sum(part.ref.rows for part in kept if part.kind == "part"),
            rejects=sum(part.ref.rows for part in kept if part.kind == "rejects"),
            accounts=remove_from_stats(partition, removed.labels),
        )

    def _delete_exports(self, manifest: PredictionManifest, uris: Collection[str]) -> int:
        """Delete exports of older rows, and what else names the pictures; return how many files.

        A form that somebody has edited is written anew without the lines of these pictures.
        """
        before = {info.name for info in self.store.walk()}
        for name, partition in manifest.partitions.items():
            singles = [info.name for info in self.store.walk(single_folder(name))]
            delete_old_singles(self.store, name, partition, singles)
            reviews = [info.name for info in self.store.walk(review_folder(name))]
            for form in delete_old_queues(self.store, name, partition, reviews):
                self._erase_lines(form, uris)

        # The page of a run shows some pictures with their uris, and those of a few rejects.
        for info in self.store.walk("runs"):
            if info.name.endswith(".html"):
                page = html.unescape(self.store.get(info.name).decode(errors="replace"))
                if any(uri in page for uri in uris):
                    self.store.delete(info.name)
        return len(before - {info.name for info in self.store.walk()})

    def _erase_lines(self, form: str, uris: Collection[str]) -> None:
        assert form.endswith(FORM)
        text = self.store.get(form).decode(errors="surrogateescape")
        lines = list(csv.reader(io.StringIO(text, newline="")))
        kept = [line for line in lines if not set(line) & set(uris)]
        if len(kept) < len(lines):
            sink = io.StringIO(newline="")
            csv.writer(sink).writerows(kept)
            self.store.delete(form)
            self.store.put_if_absent(form, sink.getvalue().encode(errors="surrogateescape"))


def _is_erased(table: pa.Table, uris: Collection[str], contents: set[str]) -> pa.ChunkedArray:
    is_erased = pc.is_in(table.column("uri"), pa.array(sorted(uris), pa.string()))
    if "sample_id" in table.column_names:
        has_content = pc.is_in(table.column("sample_id"), pa.array(sorted(contents), pa.string()))
        is_erased = pc.or_(is_erased, has_content)
    return is_erased


def _parts_of(store: Store, manifest: PredictionManifest) -> Iterator[Part]:
    for partition in manifest.partitions.values():
        yield from get_parts(store, partition)
