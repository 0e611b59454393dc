"""The rehearsal: some pictures through the real labelling worker before the alias moves."""

from __future__ import annotations

from typing import Any, Final

from afinar.labelling.driver import LabelOutcome
from afinar.labelling.source import open_source
from afinar.models.registry.versions import ModelVersion
from afinar.nightly.jobs import Jobs
from afinar.nightly.records import Night, put_list
from afinar.predictions.part_reader import open_predictions
from afinar.storage.objects import sha256
from afinar.storage.versions import new_owner

PICTURES: Final = 50
FOLDER: Final = "rehearsal"


def rehearse(
    night: Night,
    candidate: ModelVersion,
    champion: ModelVersion | None,
    *,
    models: str,
    source: str,
    jobs: Jobs,
) -> dict[str, Any]:
    """Label up to 50 pictures of `source` with each version, and return the step's record.

    The pictures are chosen by a hash of their names. A candidate is new, so it reads all of them. A
    champion with the same network has its answers of the night in which it was a candidate. One
    with another network labels them again, to compare the times of both.
    """
    folder = night.store.uri(FOLDER)
    config = jobs.label_config(source, folder, f"{models}@{candidate.version}")
    uris = open_source(config, candidate.stored_view).listing().listing.column("uri").to_pylist()
    chosen = sorted(uris, key=lambda uri: sha256(uri.encode()))[:PICTURES]
    pictures = put_list(night.store, f"{night.name}/lists", sorted(chosen))

    outcome = jobs.label(pictures, folder, f"{models}@{candidate.version}")
    labels = _labels(folder, outcome)
    record = {
        "pictures": len(chosen),
        "labelled": len(labels),
        "usable": len(labels),
        "agreement": None,
        "forward_s": None,
    }
    if champion is None:
        return record

    is_same = candidate.architecture == champion.architecture
    if not is_same:
        folder = night.store.uri(f"{night.name}/{FOLDER}-{new_owner()[:8]}")
    other = jobs.label(pictures, folder, f"{models}@{champion.version}")
    labels_of_champion = _labels(folder, other)
    times = [_forward_s(outcome), _forward_s(other)]
    if is_same:
        times = [1.0, 1.0]  # it takes the same time
    elif not outcome.summary.read:
        times = []  # labelled before this night was killed
    usable = sum(uri in labels_of_champion for uri in chosen)
    return record | {
        "usable": usable,
        "agreement": _agreement(labels, labels_of_champion),
        "forward_s": {"candidate": times[0], "champion": times[1]} if times else None,
    }


def _forward_s(outcome: LabelOutcome) -> float:
    """Return the seconds of the forward pass of one picture."""
    return outcome.summary.stages.get("forward", 0.0) / max(1, outcome.summary.read)


def _labels(folder: str, outcome: LabelOutcome) -> dict[str, str]:
    table = open_predictions(folder, outcome.partition).table
    uris, labels = (table.column(name).to_pylist() for name in ("uri", "label"))
    return dict(zip(uris, labels, strict=True))


def _agreement(first: dict[str, str], second: dict[str, str]) -> float | None:
    common = first.keys() & second.keys()
    return sum(first[uri] == second[uri] for uri in common) / len(common) if common else None
