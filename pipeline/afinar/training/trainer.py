"""The training loop: epochs, validation, checkpoints, and resuming from a checkpoint."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor, nn

from afinar.config.train import TrainConfig
from afinar.errors import DivergedError, IntegrityError
from afinar.logs import COLUMNS, log_settings
from afinar.training.batches import BatchLoader, Samples
from afinar.training.checkpoint import (
    Checkpoints,
    RankedEpoch,
    TrainState,
    rank_epochs,
)
from afinar.training.checkpoint_writer import CheckpointSchedule, CheckpointWriter
from afinar.training.distributed import Group
from afinar.training.evaluator import Evaluator
from afinar.training.hooks import TrainHooks
from afinar.training.loading import ShardWindows
from afinar.training.optim import Optimizer
from afinar.training.sample_log import SampleLog
from afinar.training.sampler import (
    EpochOrder,
    GlobalBatch,
    balanced_draws,
    epoch_batches,
    epoch_order,
)
from afinar.training.steps import TrainStep
from afinar.training.time_limit import TimeLimit
from afinar.training.timing import EpochTimer
from afinar.units.progress import format_duration

logger = logging.getLogger(__name__)

_LOSS_CHECK_STEPS: Final = 20
_LOG_INTERVAL_S: Final = 10.0


def _bar(share: float) -> str:
    """Return a bar of ten characters; half of one counts."""
    halves = round(20 * min(1.0, share))
    return ("━" * (halves // 2) + "╸" * (halves % 2)).ljust(10, "─")


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Trains a module from its newest checkpoint, or from the beginning, to the last epoch.

    `module` is the trained module and `set_training` switches it to training mode. `loader` and
    `windows` belong to the training samples. Rank 0 calls `on_epoch_end` with the epoch's row of
    the history. `start` is the row of epoch 0, the metrics of a module whose head was solved; that
    epoch competes for the best one. `before_steps` may change weights after it, before the first
    step. `writer` writes `checkpoints`, at the times of `schedule`. `time_limit` has the number of
    steps, and may cut it.
    """

    config: TrainConfig
    group: Group
    module: nn.Module
    set_training: Callable[[], None]
    loader: BatchLoader
    windows: ShardWindows
    train_step: TrainStep
    optimizer: Optimizer
    evaluator: Evaluator
    validation: Samples
    checkpoints: Checkpoints
    writer: CheckpointWriter
    schedule: CheckpointSchedule
    hooks: TrainHooks
    sample_log: SampleLog
    on_epoch_end: Callable[[dict[str, Any]], None]
    epochs: int
    time_limit: TimeLimit
    start: dict[str, Any] | None = None
    before_steps: Callable[[], None] = lambda: None

    def run(self) -> TrainState:
        """Train, and load the weights of the best epoch into `optimizer.eval_model` on all workers.

        Raises DivergedError on all workers if the loss becomes infinite or NaN.
        """
        with self.writer:
            state = self._resume()
            self._train_epochs(state)
        if self.group.is_rank_zero:
            self._log_kept_head(state)
        state.best = self.writer.with_weights(state.best)

        best = state.best[0].weights
        if self.group.is_rank_zero:
            assert best is not None, "rank 0 knows the weights of each epoch"
            self.optimizer.load_weights(self.checkpoints.get(best))
        self.group.broadcast_parameters(self.optimizer.eval_model)
        return state

    def _train_epochs(self, state: TrainState) -> None:
        is_stopped = False
        if self.start is not None and not state.history and not state.step:
            self._record(state, self.start)
            is_stopped = self._is_asked_to_stop(self.start)
        has_begun = bool(state.history) and not self._is_complete(state)
        if has_begun and not self.group.all_true(not self.time_limit.is_over()):
            state.history[-1]["cut"] = is_stopped = True
        while not is_stopped and not self._is_complete(state):
            if not state.step:
                self.before_steps()
            started = time.monotonic()
            row = self._run_epoch(state)
            row["seconds"] = round(time.monotonic() - started, 3)
            self._finish_epoch(state, row)
            is_stopped = self._is_asked_to_stop(row)

    def _resume(self) -> TrainState:
        """Restore the newest checkpoint; without one return the state of a new training."""
        checkpoint = self.checkpoints.newest()
        if not self.group.all_equal(checkpoint.state.step if checkpoint else -1):
            raise IntegrityError(
                "workers see different checkpoints: MODELS must be one place that every machine "
                "reaches"
            )
        if checkpoint is None:
            return TrainState()

        if checkpoint.fixed and checkpoint.fixed != self.optimizer.fixed_hash():
            raise IntegrityError(
                "the initial weights of the frozen layers are not those that this training began "
                "with: give the same --weights, or another MODELS folder"
            )
        self.optimizer.load(checkpoint.weights, checkpoint.optimizer)
        state = checkpoint.state
        if self.group.is_rank_zero:
            logger.info(
                f"resuming from step {state.step}: epoch {state.epoch + 1}, batch {state.batch + 1}"
            )
        return state

    def _is_asked_to_stop(self, row: dict[str, Any]) -> bool:
        """Pass the metrics of an epoch on. Return True, on all workers, if any is asked to stop."""
        train, val = row["train"], row["val"]
        metrics = {
            "epoch": row["epoch"],
            "train_loss": train["loss"],
            "train_top1": train["top1"],
            "val_loss": val["loss"],
            "val_top1": val["top1"],
            "val_macro_f1": val["macro_f1"],
        }
        return not self.group.all_true(not self.hooks.on_epoch_end(metrics))

    def _is_complete(self, state: TrainState) -> bool:
        was_cut = bool(state.history) and bool(state.history[-1].get("cut"))
        is_over = state.epoch >= self.epochs or state.step >= self.time_limit.steps
        return is_over or was_cut or self._is_patience_over(state)

    def _is_patience_over(self, state: TrainState) -> bool:
        patience = self.config.patience
        return bool(
            patience
            and state.history
            and state.epoch - self._most_accurate(state).epoch >= patience
        )

    def _most_accurate(self, state: TrainState) -> RankedEpoch:
        """Return the epoch with the best metric; epoch 0 has no advantage."""
        epochs = (RankedEpoch.of(row["epoch"], row["val"]) for row in state.history)
        return rank_epochs(epochs, self.config.select_by)[0]

    def _log_kept_head(self, state: TrainState) -> None:
        """Log a note if the solved head is published although an epoch has a better metric."""
        best, kept, select_by = self._most_accurate(state), state.best[0], self.config.select_by
        if kept.epoch == best.epoch:
            return
        of_best, of_head = (f"{epoch.metric(select_by):.1%}" for epoch in (best, kept))
        logger.info(
            f"note: on {len(self.validation)} validation pictures epoch {best.epoch}, {select_by} "
            f"{of_best}, is not clearly better than the solved head, {of_head}, which is kept"
        )

    def _run_epoch(self, state: TrainState) -> dict[str, Any]:
        """Train the rest of the epoch and validate. Return the epoch's row of the history."""
        config, group = self.config, self.group
        epoch = self._epoch_order(state.epoch)
        batches = epoch_batches(epoch, config.samples_per_step)

        # The sums of a checkpoint are those of all workers: one worker continues them.
        sums = torch.tensor(
            state.sums if group.is_rank_zero else [0.0, 0.0],
            dtype=torch.float64,
            device=group.device,
        )
        self.set_training()
        timer = EpochTimer(group.device)

        prefetching: AbstractContextManager[Callable[[int], None]] = (
            self.windows.prefetch_windows(epoch, [batch.positions for batch in batches])
            if self.loader.inputs.reads_shards
            else contextlib.nullcontext(lambda _: None)
        )
        with prefetching as on_batch:
            self._train_batches(batches, state, sums, timer, on_batch)

        timings = timer.close()
        group.average_buffers(self.module, self.optimizer.eval_model)
        loss, correct = group.all_reduce_sum(sums).tolist()
        samples = sum(len(batch.positions) for batch in batches[: state.batch])

        started = time.monotonic()
        validation = asdict(self.evaluator.evaluate(self.optimizer.eval_model, self.validation))
        self.time_limit.validated(time.monotonic() - started)
        is_cut = self.time_limit.is_cut and state.step >= self.time_limit.steps
        return {
            "epoch": state.epoch + 1,
            "train": {"loss": loss / samples, "top1": correct / samples},
            "val": validation,
            "ledger": timings.as_dict(),
            "learning_rate": self.optimizer.learning_rate,
            **({"cut": True} if is_cut else {}),
        }

    def _epoch_order(self, epoch: int) -> EpochOrder:
        windows, seed, chosen = self.windows, self.config.seed, None
        if self.config.sampling == "balanced":
            chosen = balanced_draws(self.loader.samples.targets, seed, epoch)
        return epoch_order(windows.shards, seed, epoch, windows.size, chosen)

    def _train_batches(
        self,
        batches: list[GlobalBatch],
        state: TrainState,
        sums: Tensor,
        timer: EpochTimer,
        on_batch: Callable[[int], None],
    ) -> None:
        """Train the batches from `state.batch` on. Advances `state` and adds to `sums`."""
        logged = time.monotonic()
        self.time_limit.begin(state.step)
        loading = self.loader.load(batches, state.batch, timer, on_batch)
        with contextlib.closing(loading):
            for batch in loading:
                sums += self.train_step(batch, epoch=state.epoch, step=state.step, timer=timer)
                state.batch, state.step = state.batch + 1, state.step + 1

                is_last, saves = state.batch == len(batches), self._saves_after(state.step)
                is_agreed = state.step >= self.schedule.next_step
                is_last = is_last or state.step >= self.time_limit.steps
                if is_last or saves or is_agreed or state.step % _LOSS_CHECK_STEPS == 0:
                    saves = self._agree(sums, state) or saves
                    is_last = is_last or state.step >= self.time_limit.steps
                self.sample_log.write(state, self.loader.samples.rows[batch.local])

                # After the last batch the checkpoint of the epoch follows, with its validation.
                if saves and not is_last:
                    with timer.measure("checkpoint"):
                        self._save_within_epoch(state, sums)
                if is_last and state.batch < len(batches):
                    return

                if self.group.is_rank_zero and time.monotonic() - logged > _LOG_INTERVAL_S:
                    logged = time.monotonic()
                    logger.info(
                        f"{self.config.regime} epoch {state.epoch + 1}: "
                        f"step {state.batch} of {len(batches)}"
                    )

    def _saves_after(self, step: int) -> bool:
        interval = self.config.checkpoint_steps
        return bool(interval and step % interval == 0)

    def _agree(self, sums: Tensor, state: TrainState) -> bool:
        """Return True, on all workers, if rank 0 finds that a checkpoint is due.

        Raises DivergedError on all workers if the loss is not finite. It is called before every
        checkpoint, so that no checkpoint holds NaN. It waits for the device and for all workers.
        """
        is_preempted = self.hooks.is_preempted()
        message = torch.zeros(4, dtype=torch.float64, device=self.group.device)
        message[0] = sums[0]
        if self.group.is_rank_zero:
            message[1] = float(self.schedule.is_due(is_preempted))
            message[2] = self.schedule.steps_ahead(state.step)
            message[3] = self.time_limit.fitting(state.step)
        loss, is_due, steps, all_steps = self.group.all_reduce_sum(message).tolist()

        if not math.isfinite(loss):
            is_narrow = self.train_step.precision == torch.float16
            raise DivergedError(
                f"the loss is not finite at step {state.step}, in epoch {state.epoch + 1}: give a "
                "smaller --learning-rate, or --clip-norm 1"
                f"{', or --precision float32' if is_narrow else ''}"
            )
        self.schedule.next_step = state.step + int(steps)
        self._set_steps(int(all_steps))
        return bool(is_due)

    def _set_steps(self, steps: int) -> None:
        """End the training and its schedule after so many steps."""
        if steps < self.time_limit.steps:
            if self.group.is_rank_zero:
                logger.info(
                    f"--time-limit {self.config.time_limit:g}: {steps} steps instead of "
                    f"{self.time_limit.steps}"
                )
            self.time_limit.steps = steps
            self.optimizer.set_steps(steps)

    def _save_within_epoch(self, state: TrainState, sums: Tensor) -> None:
        self.group.average_buffers(self.module, self.optimizer.eval_model)
        state.sums = self.group.all_reduce_sum(sums.clone()).tolist()
        self._save(state)

    def _finish_epoch(self, state: TrainState, row: dict[str, Any]) -> None:
        """Advance `state` to the next epoch, and record the finished one."""
        state.epoch, state.batch, state.sums = state.epoch + 1, 0, [0.0, 0.0]
        self._record(state, row)

    def _record(self, state: TrainState, row: dict[str, Any]) -> None:
        """Append the row to the history, rank its epoch, save and log it."""
        state.history.append(row)
        # A solved head is simpler than what is trained from it. A model that is trained on is not.
        is_solved = state.history[0].get("head") == "solved"
        ranking = rank_epochs(
            [*state.best, RankedEpoch.of(state.epoch, row["val"])],
            self.config.select_by,
            len(self.validation) if is_solved else 0,
        )
        state.best = ranking[: self.config.keep_best]

        self._save(state)
        if self.group.is_rank_zero:
            self.on_epoch_end(row)
            logger.info(self._progress_line(row, is_best=state.best[0].epoch == row["epoch"]))

    def _progress_line(self, row: dict[str, Any], *, is_best: bool) -> str:
        """Return one line on a finished epoch. On a terminal it ends with a bar."""
        epoch, seconds = row["epoch"], row["seconds"]
        numbers = (
            f"train loss {row['train']['loss']:<6.3f} val loss {row['val']['loss']:<6.3f} "
            f"top-1 {row['val']['top1']:6.1%} {'*' if is_best else ' '}"
        )
        if epoch == 0:
            head = "of the model"
            if row["head"] == "solved":
                head = "solved, C " + ", ".join(f"{choice['c']:.4g}" for choice in row["choices"])
            return f"head {head}: {numbers} {format_duration(seconds)}"

        epochs = min(self.epochs, self.time_limit.epochs)
        left = format_duration((epochs - epoch) * seconds)
        width = len(str(epochs))
        line = (
            f"epoch {epoch:>{width}}/{epochs} {numbers} lr {row['learning_rate']:.1e} "
            f"{seconds:.1f} s, {left} left"
        )
        bar = f" {_bar(epoch / epochs)}"
        fits = log_settings().terminal and len(line) + len(bar) <= COLUMNS
        return line + bar if fits else line

    def _save(self, state: TrainState) -> None:
        """Begin to write a checkpoint; before the end of a machine, wait until it is written.

        No checkpoint is of weights that were trained on shards which are not yet verified.
        """
        self.windows.dataset.wait_verified()
        if self.group.is_rank_zero:
            optimizer = self.optimizer
            self.writer.save(state, optimizer.weights(), optimizer.state(), self.fixed_hash)
            if self.schedule.is_preempted:
                self.writer.wait()
        self.schedule.saved()

    @cached_property
    def fixed_hash(self) -> str:
        """Hash of what the training does not change, for its checkpoints."""
        return self.optimizer.fixed_hash()
