"""Trainings of a comparison: several at a time where there is room, hopeless ones stopped early.

Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943), with a margin for chance: at a
quarter and at half of the epochs of the first seed, and after each seed, the better half of the
rows goes on, and so does every other row that may be as good as the best. Example: of four rows
with validation accuracies 0.90, 0.89, 0.88 and 0.60 on 300 pictures the last one is stopped; the
third is in the lower half, too, but its 95 % interval overlaps that of the first.
"""

from __future__ import annotations

import contextlib
import logging
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

from afinar.comparison.cells import (
    Cell,
    CellResult,
    SplitScores,
    as_class_numbers,
    put_cell,
    put_predictions,
    read_cell,
)
from afinar.comparison.grid import train_config
from afinar.config.compare import CompareConfig
from afinar.config.train import TrainConfig
from afinar.evaluation.intervals import wilson
from afinar.execution.choice import ONE_TRAINING, TrainingRoom
from afinar.storage.arrow import from_parquet
from afinar.storage.store import Store
from afinar.training.driver import (
    EvaluatedRun,
    Launcher,
    Trial,
    discard_run,
    evaluate_trial,
    run_to_epoch,
    run_unpublished,
)
from afinar.training.hyperparameters import resolve

logger = logging.getLogger(__name__)

RoomOpener = Callable[[], AbstractContextManager[TrainingRoom]]
"""Opens the place where trainings run, such as a connection to a cluster."""

RowKey = tuple[Any, ...]
"""Identity of a row: `Cell.row`."""

STOPPED_AFTER: Final = "stopped_after"
"""Setting of the cell of a training that was stopped: its last epoch."""

_RUNGS: Final = (0.25, 0.5)  # of the epochs
_MIN_EPOCHS: Final = 4  # of trainings that are worth stopping


def one_at_a_time() -> AbstractContextManager[TrainingRoom]:
    """Return the room of one training: a `RoomOpener`."""
    return contextlib.nullcontext(ONE_TRAINING)


@dataclass(kw_only=True)
class TrainingsOutcome:
    """Cells of the table, why rows were stopped, and the number of cells that were computed."""

    cells: list[Cell] = field(default_factory=list)
    stopped: dict[RowKey, str] = field(default_factory=dict)
    computed: int = 0


def rungs(epochs: int) -> list[int]:
    """Return the epochs after which trainings of so many epochs are compared."""
    if epochs < _MIN_EPOCHS:
        return []
    return sorted({math.ceil(share * epochs) for share in _RUNGS})


def survivors(top1: Mapping[RowKey, float], samples: int) -> list[RowKey]:
    """Return the rows that go on, best first: the upper half, and those within the noise.

    `top1` are accuracies on `samples` validation pictures. A row of the lower half is stopped if
    its 95 % interval lies below that of the best row.
    """
    ranked = sorted(top1, key=lambda row: -top1[row])
    least = wilson(round(top1[ranked[0]] * samples), samples).low if ranked else 0.0
    return [
        row
        for rank, row in enumerate(ranked)
        if rank < math.ceil(len(ranked) / 2)
        or wilson(round(top1[row] * samples), samples).high >= least
    ]


class Trainings:
    """The trainings of one grid on one dataset. What is finished is not trained again."""

    def __init__(
        self,
        config: CompareConfig,
        store: Store,
        classes: list[str],
        samples: tuple[int, int],
        launch: Launcher,
        open_room: RoomOpener,
    ) -> None:
        """Prepare trainings on `samples` pictures of the training and the validation split."""
        self._config, self._store, self._classes = config, store, classes
        self._train_samples, self._validation_samples = samples
        self._launch, self._open_room = launch, open_room
        self._room: TrainingRoom | None = None
        self._rungs: list[int] = []
        self._stack = contextlib.ExitStack()

    def run(self, cells: Sequence[Cell]) -> TrainingsOutcome:
        """Train the cells that are not finished, seed by seed."""
        outcome = TrainingsOutcome()
        going = list(dict.fromkeys(cell.row for cell in cells))
        with self._stack:
            for seed in range(self._config.seeds):
                of_seed = [cell for cell in cells if cell.seed == seed and cell.row in going]
                if seed == 0:
                    of_seed = self._stop_by_epochs(of_seed, outcome)
                missing = [cell for cell in of_seed if read_cell(self._store, cell) is None]
                self._each(self._complete, missing)
                outcome.computed += len(missing)
                outcome.cells += of_seed
                going = self._stop_by_seeds([cell.row for cell in of_seed], seed, outcome)
        return outcome

    def _stop_by_epochs(self, cells: list[Cell], outcome: TrainingsOutcome) -> list[Cell]:
        """Return the cells that are to be trained to the end; evaluate those that are stopped."""
        if len(cells) < 2 or self._config.keep_all:
            return cells
        epochs = self._epochs(cells[0])
        self._rungs = rungs(epochs)
        for epoch in self._rungs:
            missing = [cell for cell in cells if self._known(cell, epoch) is None]
            self._each(partial(self._to_epoch, epoch=epoch), missing)
            scores = {cell.row: self._best_top1(cell, epoch) for cell in cells}
            kept = survivors(scores, self._validation_samples)
            # A training that an earlier comparison has finished costs nothing.
            lost = [
                cell
                for cell in cells
                if cell.row not in kept and read_cell(self._store, cell) is None
            ]
            unevaluated = [
                cell for cell in lost if read_cell(self._store, _stopped(cell, epoch)) is None
            ]
            self._each(partial(self._stop, epoch=epoch), unevaluated)
            outcome.computed += len(unevaluated)
            outcome.cells += [_stopped(cell, epoch) for cell in lost]
            for cell in lost:
                outcome.stopped[cell.row] = f"after {epoch} of {epochs} epochs"
            cells = [cell for cell in cells if cell not in lost]
        return cells

    def _epochs(self, cell: Cell) -> int:
        """Return the number of epochs of a training; on a GPU it may be another."""
        config = self._train_config(cell)
        workers = max(1, config.workers)
        resolved = resolve(config, self._train_samples, workers, on_gpu=False).epochs
        assert resolved != "auto", "the configuration is resolved"
        return resolved

    def _known(self, cell: Cell, epoch: int) -> CellResult | None:
        """Return the stored result of a training that has gone as far as an epoch."""
        stopped = [_stopped(cell, rung) for rung in self._rungs if rung >= epoch]
        results = (read_cell(self._store, stored) for stored in (cell, *stopped))
        return next((result for result in results if result is not None), None)

    def _best_top1(self, cell: Cell, epoch: int) -> float:
        """Return the best accuracy on validation up to an epoch, to which it has been trained."""
        result = self._known(cell, epoch)
        history = result.history if result is not None else _history(self._to_epoch(cell, epoch))
        return float(max(row["top1"] for row in history if row["epoch"] <= epoch))

    def _to_epoch(self, cell: Cell, epoch: int) -> Trial:
        logger.info(f"compare: training {cell.backbone} {cell.regime} up to epoch {epoch}")
        return run_to_epoch(self._train_config(cell), self._launch, epoch)

    def _stop(self, cell: Cell, epoch: int) -> None:
        """Evaluate the best epoch so far on the test split, and delete the run."""
        stopped = _stopped(cell, epoch)
        logger.info(f"compare: {cell.backbone} {cell.regime} is stopped after epoch {epoch}")
        run = evaluate_trial(self._to_epoch(cell, epoch), self._launch)
        put_cell(self._store, replace(self._result(stopped, run), run=""))
        # Another comparison in which it goes on must not take it for a complete run.
        discard_run(run)

    def _complete(self, cell: Cell) -> None:
        """Train a cell to the end."""
        logger.info(
            f"compare: training {cell.backbone} {cell.regime}, seed {cell.seed} of "
            f"{self._config.seeds}"
        )
        run = run_unpublished(self._train_config(cell), self._launch)
        if run.result.epochs < run.result.settings.get("epochs", 0):
            # It was stopped by a comparison that was killed before it deleted the run.
            discard_run(run)
            run = run_unpublished(self._train_config(cell), self._launch)
        put_cell(self._store, self._result(cell, run))

    def _stop_by_seeds(
        self, going: list[RowKey], seed: int, outcome: TrainingsOutcome
    ) -> list[RowKey]:
        """Return the rows that go on to the next seed."""
        seeds = self._config.seeds
        if seed + 1 >= seeds or len(going) < 2 or self._config.keep_all:
            return going
        scores: dict[RowKey, list[float]] = {row: [] for row in going}
        for cell in outcome.cells:
            result = read_cell(self._store, cell) if cell.row in scores else None
            if result is not None:
                scores[cell.row].append(result.validation.top1)
        means = {row: statistics.fmean(of_row) for row, of_row in scores.items()}
        kept = survivors(means, self._validation_samples)
        for row in going:
            if row not in kept:
                outcome.stopped[row] = f"after {seed + 1} of {seeds} seeds"
        return kept

    def _each(self, work: Callable[[Cell], object], cells: Sequence[Cell]) -> None:
        """Do the work of all cells, several at a time where there is room."""
        if not cells:
            return
        if self._room is None:
            self._room = self._stack.enter_context(self._open_room())
            if self._room.at_once > 1:
                logger.info(f"compare: {self._room.at_once} trainings at a time")
        if min(self._room.at_once, len(cells)) == 1:
            for cell in cells:
                work(cell)
            return
        pool = ThreadPoolExecutor(self._room.at_once, thread_name_prefix="training")
        try:
            list(pool.map(work, cells))
        finally:
            # After an error the trainings that still run end with the connection to the cluster.
            pool.shutdown(wait=False, cancel_futures=True)

    def _train_config(self, cell: Cell) -> TrainConfig:
        config = train_config(self._config, cell)
        if self._room is None or self._room.at_once <= 1:
            return config
        return replace(
            config, workers=self._room.workers, cores_per_worker=self._room.cores_per_worker
        )

    def _result(self, cell: Cell, run: EvaluatedRun) -> CellResult:
        name = f"runs/{run.task.run}/test.parquet"
        test = from_parquet(self._store.get(name), uri=self._store.uri(name))
        labels, predicted = (
            as_class_numbers(test.column(column), self._classes)
            for column in ("label", "predicted")
        )
        return CellResult(
            cell=cell,
            validation=_split_scores(run.result.metrics["val"]),
            test=_split_scores(run.result.metrics["test"]),
            params_total=run.result.params_total,
            params_trainable=run.result.params_trainable,
            seconds=round(_seconds(run), 2),
            predictions=put_predictions(
                self._store, test.column("sample_id").combine_chunks(), labels, predicted
            ),
            history=_history(run),
            run=run.task.run,
            temperature=run.result.temperature,
        )


def _stopped(cell: Cell, epoch: int) -> Cell:
    """Return the cell of a training that is stopped after an epoch."""
    return replace(cell, settings={**cell.settings, STOPPED_AFTER: epoch})


def _history(run: Trial | EvaluatedRun) -> list[dict[str, Any]]:
    return [
        {"epoch": row["epoch"], "loss": row["val"]["loss"], "top1": row["val"]["top1"]}
        for row in run.result.history
    ]


def _seconds(run: EvaluatedRun) -> float:
    """Return the seconds of a training: those of its epochs, in whatever job they were trained."""
    return float(sum(row.get("seconds", 0.0) for row in run.result.history))


def _split_scores(metrics: dict[str, Any]) -> SplitScores:
    return SplitScores(
        top1=metrics["top1"],
        macro_f1=metrics["macro_f1"],
        loss=metrics["loss"],
        samples=metrics["samples"],
    )
