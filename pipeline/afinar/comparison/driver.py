"""The comparison driver: features, heads, trainings, and the table of their results."""

from __future__ import annotations

import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from afinar.comparison.cells import (
    FOLDER,
    Cell,
    CellResult,
    finished_cells,
    read_predictions,
)
from afinar.comparison.grid import Matrix, head_cells, training_cells
from afinar.comparison.heads import HeadTask, make_head_trainer
from afinar.comparison.leaks import stored_leaks
from afinar.comparison.publishing import publish_cell
from afinar.comparison.rates import Rate, RateTask, measure_rate
from afinar.comparison.table import Evaluated, Row, Table, as_arrow, make_table
from afinar.comparison.trainings import STOPPED_AFTER, RoomOpener, RowKey, Trainings, one_at_a_time
from afinar.config.base import fingerprint
from afinar.config.compare import CompareConfig
from afinar.config.features import FeaturesConfig
from afinar.config.train import TrainConfig
from afinar.dataset.reader import Dataset, open_dataset
from afinar.errors import RequestError, ShortfallError
from afinar.features.driver import ensure_features
from afinar.features.network import FeatureRequest
from afinar.features.reader import open_key
from afinar.models.networks.catalogue import require_backbone
from afinar.models.networks.cuts import resolve_cut
from afinar.models.networks.weights import find_weights
from afinar.models.registry.versions import ModelVersion
from afinar.storage.arrow import to_parquet
from afinar.storage.contents import require_target_for
from afinar.storage.open import normalize_uri, open_store
from afinar.storage.store import Store
from afinar.storage.versions import probe_conditional_put
from afinar.training.driver import Launcher, TrainOutcome
from afinar.training.task import labelled_samples
from afinar.units.executor import Executor

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CompareOutcome:
    """Outcome of a comparison.

    `folder` is the folder of its files in `runs`. `computed` is the number of cells that this run
    computed, of `cells`. `histories` are validation curves of the best seed by the row's name.
    """

    dataset: str
    version: int
    runs: str
    folder: str
    table: Table
    histories: dict[str, list[dict[str, Any]]]
    cells: int
    computed: int
    seconds: float
    published: ModelVersion | None


def run_compare(
    config: CompareConfig,
    executor: Executor,
    launch: Launcher,
    *,
    open_room: RoomOpener = one_at_a_time,
    on_published: Callable[[TrainOutcome], None] = lambda _: None,
) -> list[CompareOutcome]:
    """Compute the cells of the grid that are not finished, and return the table of each dataset.

    `launch` runs the workers of a training and `on_published` writes the report of a published one,
    as in `run_training`; `open_room` says how many run at a time. Raises RequestError for a request
    that cannot be carried out, before anything is computed.
    """
    jobs = CompareJobs(executor, launch, open_room, on_published)
    comparisons = [
        _Comparison(replace(config, dataset=dataset), jobs) for dataset in config.datasets
    ]
    return [comparison.run() for comparison in comparisons]


class CompareJobs(NamedTuple):
    """Functions that carry out the work of a comparison; see `run_compare`."""

    executor: Executor
    launch: Launcher
    open_room: RoomOpener
    on_published: Callable[[TrainOutcome], None]


class _Comparison:
    """One comparison. The test split chooses nothing: rows are ranked by validation."""

    def __init__(self, config: CompareConfig, jobs: CompareJobs) -> None:
        self.jobs = jobs
        self.config = replace(
            config, dataset=normalize_uri(config.dataset), runs=normalize_uri(config.runs)
        )
        self.dataset: Dataset = open_dataset(self.config.dataset)
        self.store: Store = open_store(self.config.runs)
        self.store.require_target()
        require_target_for(self.store, "models", self.config.dataset)
        probe_conditional_put(self.store)
        # A dataset without enough pictures is refused before features are computed.
        sample_config = TrainConfig(dataset=self.config.dataset, models=self.config.runs)
        samples = labelled_samples(self.dataset, sample_config, self.dataset.classes)
        ids = self.dataset.index.column("sample_id").take(pa.array(samples.test.rows))
        self.test_ids, self.test_labels = ids.combine_chunks(), samples.test.targets
        self.trainings = Trainings(
            self.config,
            self.store,
            self.dataset.classes,
            (len(samples.train), len(samples.validation)),
            jobs.launch,
            jobs.open_room,
        )
        self.notes: list[str] = []
        self.feature_seconds: dict[tuple[str, str, str], float] = {}
        self.computed = 0

    def run(self) -> CompareOutcome:
        started = time.monotonic()
        matrices = [
            matrix for backbone in self.config.backbones for matrix in self._matrices(backbone)
        ]
        self._note_leaks(matrices)
        rates = self._rates(matrices)
        heads = [
            cell for matrix in matrices for cell in head_cells(self.config, self.dataset, matrix)
        ]
        self._train_heads(matrices, heads, rates)
        wanted = training_cells(self.config, self.dataset, matrices)
        if not heads and not wanted:
            raise RequestError(
                f"--regime {self.config.regime}: nothing to compare, because these backbones have "
                "no known weights; add the regime scratch"
            )
        trainings = self.trainings.run(wanted)
        self.computed += trainings.computed

        cells = [*heads, *trainings.cells]
        finished = finished_cells(self.store, cells)
        evaluated = self._evaluated(cells, finished, rates, trainings.stopped)
        table = make_table(evaluated, len(self.dataset.classes), self.notes)
        published = self._publish(table, finished)
        folder = f"{FOLDER}/{fingerprint(sorted(finished))[:16]}"
        self._write(folder, table)
        return CompareOutcome(
            dataset=self.config.dataset,
            version=self.dataset.manifest.version,
            runs=self.store.root,
            folder=folder,
            table=table,
            histories=_histories(table, finished),
            cells=len(finished),
            computed=self.computed,
            seconds=round(time.monotonic() - started, 1),
            published=published,
        )

    def _matrices(self, backbone: str) -> list[Matrix]:
        """Return the cuts of a backbone, whose missing features are computed."""
        config = self.config
        cuts = tuple((cut, pool) for cut in config.cuts_of(backbone) for pool in config.pools)
        if not _has_weights(config.weights, backbone):
            self.notes.append(
                f"{backbone} has no known weights: it is compared from random values alone"
            )
            size = config.input_size or require_backbone(backbone).input_size
            return [
                Matrix(
                    backbone=backbone, cut=resolve_cut(backbone, cut, size), pool=pool, spec=None
                )
                for cut, pool in cuts
            ]
        started = time.monotonic()
        request = FeatureRequest(
            backbone=backbone,
            weights=config.weights,
            cuts=cuts,
            input_size=config.input_size,
            stored_view=self.dataset.view,
            precision="float32",
            stored_as=config.stored_as,
        )
        features = FeaturesConfig(
            dataset=config.dataset,
            weights=config.weights,
            max_gb=config.max_gb,
            unit_timeout_s=config.unit_timeout_s,
        )
        specs = ensure_features(config.dataset, request, self.jobs.executor, features)
        seconds = time.monotonic() - started
        for spec in specs:
            self.feature_seconds[backbone, spec.cut, spec.pool] = seconds
        return [
            Matrix(backbone=backbone, cut=spec.cut, pool=spec.pool, spec=spec) for spec in specs
        ]

    def _note_leaks(self, matrices: list[Matrix]) -> None:
        """Note near-duplicates of test pictures in other splits, if there are features."""
        specs = [matrix.spec for matrix in matrices if matrix.spec is not None]
        stored = [open_key(self.config.dataset, spec.key) for spec in specs]
        found = [features for features in stored if features is not None]
        if found:
            narrowest = min(found, key=lambda features: features.manifest.width)
            sentence = stored_leaks(self.dataset, narrowest).describe()
            self.notes += [sentence] if sentence else []

    def _rates(self, matrices: list[Matrix]) -> dict[tuple[str, str, str], Rate]:
        """Return the rate of each cut, measured one after the other so that none slows another."""
        rates = {}
        for matrix in matrices:
            task = RateTask(
                runs=self.store.root,
                backbone=matrix.backbone,
                cut=matrix.cut,
                pool=matrix.pool,
                input_size=self.config.input_size,
            )
            rates[matrix.backbone, matrix.cut, str(matrix.pool)] = measure_rate(task)
        return rates

    def _train_heads(
        self, matrices: list[Matrix], cells: list[Cell], rates: dict[tuple[str, str, str], Rate]
    ) -> None:
        """Train the heads that are not finished: one task per feature matrix trains all of its."""
        done = finished_cells(self.store, cells)
        tasks = []
        for matrix in matrices:
            key = (matrix.backbone, matrix.cut, str(matrix.pool))
            missing = tuple(
                cell
                for cell in cells
                if cell.id not in done and cell.row[:3] == (*key[:2], matrix.pool)
            )
            if missing and matrix.spec is not None:
                tasks.append(
                    HeadTask(
                        dataset=self.config.dataset,
                        version=self.dataset.manifest.version,
                        runs=self.store.root,
                        key=matrix.spec.key,
                        params_backbone=rates[key].params,
                        cells=missing,
                    )
                )
        if tasks:
            count = sum(len(task.cells) for task in tasks)
            logger.info(f"compare: {count} heads on {len(tasks)} feature matrices")
        make_work: Callable[[], Callable[[HeadTask], Any]] = make_head_trainer
        for result in self.jobs.executor.run(make_work, tasks) if tasks else ():
            self.computed += result.computed

    def _evaluated(
        self,
        cells: Iterable[Cell],
        finished: dict[str, CellResult],
        rates: dict[tuple[str, str, str], Rate],
        stopped: dict[RowKey, str],
    ) -> list[Evaluated]:
        """Return the finished cells by row, with their predictions for the test split."""
        rows: dict[RowKey, list[CellResult]] = defaultdict(list)
        for cell in cells:
            if cell.id in finished:
                rows[cell.row].append(finished[cell.id])
        evaluated, expected = [], self._expected_test()
        for row, results in rows.items():
            tables = [read_predictions(self.store, result) for result in results]
            for table in tables:
                if not table.select(["sample_id", "label"]).equals(expected):
                    raise ShortfallError(
                        f"the predictions of {row[0]} are not for the test split of version "
                        f"{self.dataset.manifest.version}: remove {self.store.uri(FOLDER)}"
                    )
            key = (str(row[0]), str(row[1]), str(row[2]))
            is_head = results[0].cell.regime == "frozen"
            evaluated.append(
                Evaluated(
                    results,
                    tables[0].column("label").to_numpy().astype(np.int64),
                    [table.column("predicted").to_numpy().astype(np.int64) for table in tables],
                    rates[key],
                    self.feature_seconds.get(key, 0.0) if is_head else 0.0,
                    stopped.get(row, ""),
                )
            )
        return evaluated

    def _expected_test(self) -> pa.Table:
        """Return content hashes and class numbers of the test split, as predictions have them."""
        table = pa.table(
            {"sample_id": self.test_ids, "label": pa.array(self.test_labels, pa.int32())}
        )
        return table.sort_by([("sample_id", "ascending"), ("label", "ascending")])

    def _publish(self, table: Table, finished: dict[str, CellResult]) -> ModelVersion | None:
        wanted = self.config.publish
        if not wanted:
            return None
        rows = [row for row in table.rows if row.head != "knn" and not _is_cut(row, finished)]
        chosen = (
            rows[0]
            if wanted == "best"
            else next(
                (row for row in [*table.rows, *table.learning_curve] if row.number == int(wanted)),
                None,
            )
        )
        if chosen is None:
            raise RequestError(f"--publish {wanted}: the table has no row of this number")
        if _is_cut(chosen, finished):
            raise RequestError(
                f"--publish {wanted}: this training was stopped {chosen.stopped}; compare with "
                "--keep-all to train it to the end"
            )
        of_row = [finished[name] for name in chosen.cells]
        best = next(result for result in of_row if result.cell.seed == chosen.seed)
        return publish_cell(self.config, best, self.jobs.launch, self.jobs.on_published)

    def _write(self, folder: str, table: Table) -> None:
        """Write the table as JSON and Parquet. An equal comparison has written it before."""
        data = json.dumps(table.as_dict(), indent=1).encode()
        self.store.put_if_absent(f"{folder}/table.json", data)
        self.store.put_if_absent(f"{folder}/table.parquet", to_parquet(as_arrow(table)))


def _is_cut(row: Row, finished: dict[str, CellResult]) -> bool:
    """Return True for a row whose training was stopped within its first seed."""
    return any(STOPPED_AFTER in finished[name].cell.settings for name in row.cells)


def _has_weights(weights: str, backbone: str) -> bool:
    try:
        return find_weights(weights, backbone) is not None
    except RequestError:
        return False


def _histories(table: Table, finished: dict[str, CellResult]) -> dict[str, list[dict[str, Any]]]:
    """Return the validation curve of each row's best seed that has epochs."""

    def history_of(row: Row) -> list[dict[str, Any]]:
        return next(
            finished[name].history for name in row.cells if finished[name].cell.seed == row.seed
        )

    return {row.name: history for row in table.rows if len(history := history_of(row)) > 1}
