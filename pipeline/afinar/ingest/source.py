"""List the source of an ingest, and refuse one that cannot make a dataset."""

from __future__ import annotations

from afinar.config.ingest import IngestConfig
from afinar.errors import RequestError
from afinar.sources.annotations import AnnotatedListing, annotate
from afinar.sources.listing import classes_of, list_pictures
from afinar.storage.open import normalize_uri


def list_source(config: IngestConfig) -> AnnotatedListing:
    """List the source with labels, given splits and groups.

    Raises RequestError if there are no pictures, a table contradicts itself, or there are fewer
    than two classes."""
    source = normalize_uri(config.source)
    by_folder = config.split_shares is None
    annotated = annotate(
        list_pictures(source, config.endings),
        source,
        labels=config.labels,
        split_by_folder=by_folder,
        group=config.group,
    )

    classes = classes_of(annotated.listing)
    if config.labels == "none" or len(classes) >= 2:
        return annotated
    if classes:
        content = f"only the class {classes[0]!r}"
    else:
        content = "no class folders" if config.labels == "folder" else "no labels"
    where = "below train/, validation/ and test/" if by_folder else "below SOURCE"
    raise RequestError(
        f"{source} holds {content}: a classifier needs two. Put each class in a folder of its own "
        f"{where}, give --labels FILE, or give --labels none."
    )
