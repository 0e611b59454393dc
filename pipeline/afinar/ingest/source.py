"""Looking at a source: its listing with labels, given splits and groups, or why it cannot serve."""

from __future__ import annotations

import pyarrow as pa

from afinar.config.ingest import IngestConfig
from afinar.errors import RequestError
from afinar.sources.annotations import annotate
from afinar.sources.listing import classes_of, list_pictures
from afinar.storage.open import normalize_uri


def list_source(config: IngestConfig) -> tuple[pa.Table, list[str]]:
    """List and annotate the source; the listing, and what a person should know of it.

    Raises RequestError where it could not serve: no pictures, tables that contradict themselves, one class only.
    """
    source = normalize_uri(config.source)
    listing = list_pictures(source, config.endings)
    by_folder = config.split_shares is None
    done = annotate(
        listing, source, labels=config.labels, split_by_folder=by_folder, group=config.group
    )
    classes = classes_of(done.listing)
    if config.labels != "none" and len(classes) < 2:
        found = (
            f"only the class {classes[0]!r}"
            if classes
            else "no class folders"
            if config.labels == "folder"
            else "no labels"
        )
        where = "below SOURCE" if not by_folder else "below train/, validation/ and test/"
        raise RequestError(
            f"{source} holds {found}: a classifier needs two. Put each class in a folder of its own "
            f"{where}, give --labels FILE, or give --labels none."
        )
    return done.listing, done.notes
