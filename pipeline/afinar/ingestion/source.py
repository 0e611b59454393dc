"""List the source of an ingest, and refuse one that cannot make a dataset."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from afinar.config.ingest import IngestConfig
from afinar.errors import RequestError
from afinar.sources.annotations import alike_notes, annotate, annotate_from_tables
from afinar.sources.listing import AnnotatedListing, classes_of, list_pictures
from afinar.sources.uri_list import is_list, list_base, list_named
from afinar.storage.left_out import describe_left_out
from afinar.storage.open import normalize_uri


def list_source(config: IngestConfig) -> AnnotatedListing:
    """List the source with labels, given splits and groups.

    Raises RequestError if there are no pictures, a table contradicts itself, or there are fewer
    than two classes."""
    source = normalize_uri(config.source)
    annotated = _list_rows(source, config) if is_list(source) else _list_files(source, config)
    if config.labels == "none":
        return annotated
    classes = classes_of(annotated.listing)
    if len(classes) < 2:
        raise _too_few_classes(source, config, classes, annotated.left_out)

    annotated.notes += alike_notes(classes)
    return annotated


def _list_files(source: str, config: IngestConfig) -> AnnotatedListing:
    annotated = list_pictures(source, config.endings, normalize_uri(config.dataset))
    annotate(
        annotated,
        source,
        labels=config.labels,
        split_by_folder=config.split_shares is None,
        group=config.group,
    )
    return annotated


def _list_rows(source: str, config: IngestConfig) -> AnnotatedListing:
    """List what a list names. Its columns label, split and group count unless tables are given.

    Without a column `label`, the label of a picture is the folder that it lies in.
    """
    if config.split_shares is None:
        raise RequestError(
            f"--split folder: {source} is a list. Give it a column `split`, or give shares such as "
            "--split 0.7,0.15,0.15."
        )
    has_table = config.labels not in {"folder", "none"}
    columns = [] if has_table or config.labels == "none" else ["label"]
    columns += [] if has_table else ["split"]
    columns += [] if config.group else ["group"]
    annotated = list_named(source, tuple(columns))
    if config.labels == "folder" and not annotated.has("label"):
        annotated.set_column("label", _parent_folders(annotated.listing.column("uri")))

    annotate_from_tables(
        annotated, list_base(source), config.labels, config.group, with_splits=True
    )
    return annotated


def _parent_folders(uris: pa.ChunkedArray) -> pa.ChunkedArray:
    folders = pc.replace_substring_regex(uris, r"(?s)^.*?([^/]*)/+[^/]*$", r"\1")
    none = pa.scalar(None, pa.large_string())
    return pc.cast(pc.if_else(pc.equal(folders, ""), none, folders), pa.string())


def _too_few_classes(
    source: str, config: IngestConfig, classes: list[str], left_out: dict[str, int]
) -> RequestError:
    if classes:
        content = f"only the class {classes[0]!r}"
    else:
        content = "no class folders" if config.labels == "folder" else "no labels"
    by_folder = config.split_shares is None
    where = "below train/, validation/ and test/" if by_folder else "below SOURCE"
    return RequestError(
        f"{source} holds {content}: a classifier needs two. Put each class in a folder of its own "
        f"{where}, give --labels FILE, or give --labels none."
        + (f" Left out: {describe_left_out(left_out)}." if left_out else "")
    )
