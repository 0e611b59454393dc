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


def rehearse(
    night: Night,
    versions: list[ModelVersion],
    *,
    models: str,
    source: str,
    jobs: Jobs,
) -> dict[str, Any]:
    """Label up to 50 pictures of `source` with each version, and return the step's record.

    The first version is the candidate, the second, if any, the champion. The pictures are chosen by
    a hash of their names, and go into a new folder: every picture is read.
    """
    folder = night.store.uri(f"{night.name}/rehearsal-{new_owner()[:8]}")
    config = jobs.label_config(source, folder, f"{models}@{versions[0].version}")
    uris = open_source(config, versions[0].stored_view).listing().listing.column("uri").to_pylist()
    chosen = sorted(uris, key=lambda uri: sha256(uri.encode()))[:PICTURES]
    pictures = put_list(night.store, f"{night.name}/lists", sorted(chosen))

    answers, seconds = [], []
    for version in versions:
        outcome = jobs.label(pictures, folder, f"{models}@{version.version}")
        answers.append(_labels(folder, outcome))
        read = max(1, outcome.summary.read)
        seconds.append(outcome.summary.stages.get("forward", 0.0) / read)

    is_first = len(versions) == 1
    if not is_first and versions[0].architecture == versions[1].architecture:
        seconds = [1.0, 1.0]  # the same network takes the same time; 50 pictures would add noise
    return {
        "pictures": len(chosen),
        "labelled": len(answers[0]),
        "agreement": None if is_first else _agreement(answers[0], answers[1]),
        "forward_s": None if is_first else {"candidate": seconds[0], "champion": seconds[1]},
    }


def _labels(folder: str, outcome: LabelOutcome) -> dict[str, str]:
    table = open_predictions(folder, outcome.partition).table
    return dict(
        zip(table.column("uri").to_pylist(), table.column("label").to_pylist(), strict=True)
    )


def _agreement(first: dict[str, str], second: dict[str, str]) -> float | None:
    common = first.keys() & second.keys()
    return sum(first[uri] == second[uri] for uri in common) / len(common) if common else None
