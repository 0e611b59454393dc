"""`<target>/index.html`: the runs of a dataset, a prediction folder or a history of models."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from afinar.errors import RecordError, StorageError
from afinar.models.registry.aliases import champion_number
from afinar.models.registry.history import retired_versions
from afinar.models.registry.versions import VERSIONS, get_model
from afinar.report.models import created_at, model_row
from afinar.report.rendering import percent, template
from afinar.storage.open import normalize_uri, open_store
from afinar.storage.records import parse_object
from afinar.storage.store import Store
from afinar.storage.versions import versions
from afinar.units.progress import format_duration

logger = logging.getLogger(__name__)

PAGE: Final = "index.html"
RUNS: Final = 200
"""Runs of an index, the newest ones."""

# A key of the summary by which a job's runs are recognised.
_JOBS: Final = {
    "added": "ingest",
    "labelled": "label",
    "corruptions": "evaluate",
    "duplicates": "similar",
    "explained": "explain",
}
_ATTEMPTS: Final = 5
_READS: Final = 16
_RUN_COLUMNS: Final = (
    "version",
    "listed",
    "added",
    "changed",
    "removed",
    "labelled",
    "explained",
    "rejected",
    "rejects",
    "skipped",
)


@dataclass(frozen=True, kw_only=True)
class IndexRow:
    """One run: link to its page (empty if it has none), its title, and the cells of its row.

    `mark` is a word that is shown beside the title.
    """

    link: str
    title: str
    cells: list[str]
    mark: str = ""


@dataclass(frozen=True, kw_only=True)
class RunIndex:
    """Runs, the newest first. `total` counts those that are not listed, too."""

    columns: list[str]
    rows: list[IndexRow]
    total: int


def write_index(target: str) -> None:
    """Write the index of a target anew. A store that refuses costs the index, not the job."""
    try:
        store = open_store(normalize_uri(target))
        for _ in range(_ATTEMPTS):
            page = index_page(store)
            store.delete(PAGE)
            # Another job may have written its own meanwhile, without the newest run.
            if store.put_if_absent(PAGE, page.encode()):
                return
    except (StorageError, RecordError) as error:
        logger.warning(f"the index of the runs in {target} was not written: {error}")


def index_page(store: Store) -> str:
    """Return the index of the runs in a store."""
    is_models = bool(versions(store, VERSIONS))
    return template("index.html.j2").render(
        title=f"{'Models' if is_models else 'Runs'} in {store.root}",
        index=_models(store) if is_models else _runs(store),
        is_models=is_models,
        root=store.root,
    )


def _models(store: Store) -> RunIndex:
    numbers = sorted(versions(store, VERSIONS), reverse=True)
    champion, retired = champion_number(store), retired_versions(store)
    rows = [
        _model(model_row(get_model(store, number)), number == champion, number in retired)
        for number in numbers[:RUNS]
    ]
    columns = ["network", "regime", "classes", "dataset", "validation", "test", "95 %", "began"]
    return RunIndex(columns=columns, rows=rows, total=len(numbers))


def _model(row: dict[str, Any], is_champion: bool, is_retired: bool) -> IndexRow:
    interval = row["test_interval"]
    return IndexRow(
        link=f"{row['run']}/report.html" if row["run"] else "",
        title=f"model {row['id']}",
        cells=[
            row["backbone"],
            row["regime"],
            f"{row['classes']:,}",
            f"version {row['dataset_version']}",
            percent(row["val_top1"]),
            percent(row["test_top1"]),
            f"{interval[0]:.1%} – {interval[1]:.1%}" if interval else "",
            _minute(row["created"]),
        ],
        mark="champion" if is_champion else "retired" if is_retired else "",
    )


def _runs(store: Store) -> RunIndex:
    names = [info.name for info in store.walk("runs")]
    runs = sorted({name.split("/")[1] for name in names if name.endswith("/summary.json")})
    newest = runs[::-1][:RUNS]
    with ThreadPoolExecutor(_READS) as pool:
        summaries = list(pool.map(lambda run: _summary(store, run), newest))

    # Columns that no run has are left out.
    columns = [name for name in _RUN_COLUMNS if any(name in summary for summary in summaries)]
    rows = [
        IndexRow(
            link=f"runs/{run}/report.html" if f"runs/{run}/report.html" in names else "",
            title=_minute(created_at(run)) or run,
            cells=[
                next((job for key, job in _JOBS.items() if key in summary), ""),
                *(_number(summary.get(name)) for name in columns),
                _seconds(summary.get("seconds")),
            ],
            mark=str(summary.get("model", "")).rpartition("@")[2],
        )
        for run, summary in zip(newest, summaries, strict=True)
    ]
    return RunIndex(columns=["job", *columns, "time"], rows=rows, total=len(runs))


def _summary(store: Store, run: str) -> dict[str, Any]:
    """Return the summary of a run, empty if it is damaged or was deleted."""
    name = f"runs/{run}/summary.json"
    try:
        return parse_object(store.get(name), store.uri(name))
    except (RecordError, StorageError):
        return {}


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else ""


def _seconds(value: Any) -> str:
    return format_duration(value) if isinstance(value, float | int) else ""


def _minute(created: str) -> str:
    return created[:16].replace("T", " ")
