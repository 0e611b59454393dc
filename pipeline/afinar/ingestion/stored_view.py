"""The stored view of an ingest: what its flags ask for, and what the dataset has already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from afinar.config.ingest import IngestConfig
from afinar.config.strict import structure
from afinar.dataset.manifest import Manifest, current_manifest
from afinar.pictures.preprocessing import EARLIER_DECODERS, StoredView
from afinar.storage.store import Store
from afinar.units.plans import FOLDER as PLANS

# A crop loses what reaches beyond the square: with a frozen network, padding is 2.1 and 2.4 points
# better on two sets of photographs (tests/bench/fits.py).
_NEW: Final = StoredView(size=256, fit="pad", store="pixels")
# A first ingest that was interrupted before padding was the default has cropped pictures.
_FORMER_FIT: Final = "crop"


def find_view(
    config: IngestConfig, store: Store, plan_name: Callable[[int, StoredView], str]
) -> StoredView:
    """Return the view that the flags ask for; what they leave open is that of the dataset.

    The decoder is that of the current version or of an interrupted run, whose plan has the name
    `plan_name(version, view)`. Otherwise an update of afinar would decode every picture again, and
    models of the earlier decoder could no longer label the dataset.
    """
    if not store.exists():
        return _requested(config, None)
    parent = current_manifest(store)
    view = _requested(config, parent)
    version = parent.version + 1 if parent else 1
    plans = {info.name for info in store.walk(PLANS)}
    views = [replace(view, decoder=decoder) for decoder in EARLIER_DECODERS]
    if parent is None and config.fit == "auto":
        views += [replace(known, fit=_FORMER_FIT) for known in (view, *views)]
    for earlier in views:
        is_interrupted = plan_name(version, earlier) in plans
        if is_interrupted or (parent and parent.preprocessing == earlier.as_dict()):
            return earlier
    return view


def view_notes(view: StoredView, parent: Manifest | None, listed: int) -> list[str]:
    """Return notes on a view that differs from that of the dataset, or that ignores profiles."""
    notes = []
    if parent is not None and parent.preprocessing != view.as_dict():
        before = structure(parent.preprocessing, StoredView)
        notes.append(
            f"the stored pictures change from {_describe(before)} to {_describe(view)}: all "
            f"{listed} pictures are read and decoded again"
        )
    if not view.applies_profiles:
        notes.append(
            f"this dataset was begun with the decoder {view.decoder}, which ignores embedded "
            "colour profiles, and goes on with it: ingest into another DATASET to convert them to "
            "sRGB"
        )
    return notes


def _requested(config: IngestConfig, parent: Manifest | None) -> StoredView:
    stored = structure(parent.preprocessing, StoredView) if parent else _NEW
    return StoredView(
        size=config.size or stored.size,
        fit=stored.fit if config.fit == "auto" else config.fit,
        store=stored.store if config.store == "auto" else config.store,
    )


def _describe(view: StoredView) -> str:
    return f"{view.size} px, {view.fit}, {view.store} ({view.decoder})"
