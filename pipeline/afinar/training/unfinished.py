"""Runs that have begun and are not published. Needs no torch.

    unfinished/<fingerprint[:16]>.json     a run in progress, or an interrupted one
    unpublished/<fingerprint[:16]>.json    a complete run, such as one of a comparison

The marker of a run is put, if it is absent, before anything else of the run is written. It is
deleted when the run is published, or when the same request could not complete it. A run that is
complete and not to be published yet has the second marker instead.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final, NamedTuple

from afinar.config.strict import Count
from afinar.errors import NotFoundError
from afinar.models.registry.versions import VERSIONS, get_model
from afinar.storage.records import ObjectName, RunName, read_record
from afinar.storage.store import Store
from afinar.storage.versions import versions
from afinar.units.gc import delete_objects

UNFINISHED: Final = "unfinished"
UNPUBLISHED: Final = "unpublished"


@dataclass(frozen=True, kw_only=True)
class Marker:
    """Content of a marker."""

    run: RunName
    dataset: str
    dataset_version: Count


@dataclass(frozen=True, kw_only=True)
class UnfinishedRun(Marker):
    """A run that is not published, by its marker `name`."""

    name: str


@dataclass(frozen=True, kw_only=True)
class UnpublishedRun(Marker):
    """Content of the marker of a complete run, with its objects `weights` and `golden`."""

    weights: ObjectName
    golden: ObjectName


def read_unpublished(store: Store, name: str) -> UnpublishedRun | None:
    """Read the marker of a complete run, None if there is none."""
    try:
        return read_record(store, name, UnpublishedRun)
    except NotFoundError:
        return None


def unpublished_runs(store: Store) -> dict[str, UnpublishedRun]:
    """Return the complete runs that are not published, by the names of their markers."""
    names = [info.name for info in store.walk(UNPUBLISHED)]
    runs = {name: read_unpublished(store, name) for name in names}
    return {name: run for name, run in runs.items() if run is not None}


def read_marker(store: Store, name: str) -> UnfinishedRun:
    """Read a run's marker. Raises NotFoundError if the run was published meanwhile."""
    return UnfinishedRun(name=name, **asdict(read_record(store, name, Marker)))


def unfinished_runs(store: Store) -> list[UnfinishedRun]:
    """Return the runs that have begun and are not published, the earliest first."""
    runs = []
    for info in store.walk(UNFINISHED):
        try:
            runs.append(read_marker(store, info.name))
        except NotFoundError:  # published since it was listed
            continue
    return sorted(runs, key=lambda run: run.run)


def has_marker(store: Store, run: str) -> bool:
    """Return True if a run is not published, or was published without being cleaned up."""
    markers: list[Marker] = [*unfinished_runs(store), *unpublished_runs(store).values()]
    return any(marker.run == run for marker in markers)


def delete_run(store: Store, run: str) -> None:
    """Delete all objects in the folder of a run."""
    for info in list(store.walk(f"runs/{run}")):
        store.delete(info.name)


class CollectedModels(NamedTuple):
    """Names of the runs that were given up, and of all deleted objects."""

    runs: list[str]
    objects: list[str]


def collect_models(store: Store, drop_runs: bool) -> CollectedModels:
    """Delete folders of runs that are neither published nor unfinished, and unused objects.

    With `drop_runs` unfinished and unpublished runs are deleted too: none may be in progress. While
    any is unfinished, all weights and golden samples stay, since it may be about to publish some.
    """
    dropped: dict[str, Marker] = {}
    if drop_runs:
        dropped.update({run.name: run for run in unfinished_runs(store)})
        dropped.update(unpublished_runs(store))
    delete_objects(store, list(dropped))

    # Objects are listed before markers and versions are read. A run that writes meanwhile has a
    # marker, or it is published and its version names its objects.
    names = [info.name for folder in ("runs", "weights", "golden") for info in store.walk(folder)]
    unfinished = {run.run for run in unfinished_runs(store)}
    unpublished = list(unpublished_runs(store).values())
    models = [get_model(store, number) for number in versions(store, VERSIONS)]
    runs = unfinished | {run.run for run in unpublished}
    runs |= {str(model.lineage.get("run", "")).removeprefix("runs/") for model in models}
    used = {ref.path for model in models for ref in (model.weights, model.golden)}
    used |= {path for run in unpublished for path in (run.weights, run.golden)}

    def is_needed(name: str) -> bool:
        folder, _, rest = name.partition("/")
        if folder == "runs":
            return rest.partition("/")[0] in runs
        return bool(unfinished) or name in used

    unused = [name for name in names if not is_needed(name)]
    delete_objects(store, unused)
    return CollectedModels([run.run for run in dropped.values()], [*dropped, *unused])
