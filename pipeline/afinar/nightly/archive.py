"""Labelling of the archive by the champion: what no champion has labelled, or all of it."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from afinar.config.label import LabelConfig
from afinar.labelling.driver import LabelOutcome
from afinar.labelling.source import open_source
from afinar.models.registry.versions import find_model
from afinar.nightly.jobs import Jobs
from afinar.nightly.records import Night, put_list
from afinar.predictions.current import read_published_rows
from afinar.predictions.manifest import read_manifest
from afinar.storage.arrow import concat_columns
from afinar.storage.open import normalize_uri, open_store


def label_archive(
    night: Night,
    config: LabelConfig,
    relabel: str,
    jobs: Jobs,
) -> dict[str, Any]:
    """Label the archive and return the step's record.

    With `relabel` "all", every picture that the champion has not labelled. With "new", only
    pictures that no model has labelled as they are now: uri and etag.
    """
    if relabel == "all":
        return _record(jobs.run_label(config))

    version = find_model(config.model).version
    listing = open_source(config, version.stored_view).listing().listing
    new = _unlabelled(listing, config)
    if not new:
        return {"listed": len(listing), "labelled": 0, "new": 0}
    pictures = put_list(night.store, f"{night.name}/lists", sorted(new))
    config = replace(config, source=pictures)
    return {**_record(jobs.run_label(config)), "new": len(new)}


def _unlabelled(listing: pa.Table, config: LabelConfig) -> list[str]:
    """Return the uris of pictures that no partition has an answer for."""
    store = open_store(normalize_uri(config.predictions))
    pictures = _keys(listing)
    pending = pa.array([True] * len(listing))
    for name in read_manifest(store).partitions:
        known = _keys(read_published_rows(store, name).known(config.retry_rejects))
        pending = pc.and_(pending, pc.invert(pc.is_in(pictures, known)))
    uris: list[str] = listing.filter(pending).column("uri").to_pylist()
    return uris


def _keys(table: pa.Table) -> pa.Array:
    """Return uri and etag of each row as one text."""
    columns = [table.column(name).cast(pa.large_string()) for name in ("uri", "etag")]
    return concat_columns(*columns, separator="\0").combine_chunks()


def _record(outcome: LabelOutcome) -> dict[str, Any]:
    names = ("listed", "labelled", "rejected", "skipped", "rejects_by_reason", "labels", "read")
    summary = asdict(outcome.summary)
    return {name: summary[name] for name in names} | {"model": outcome.summary.model}
