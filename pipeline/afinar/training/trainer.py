"""The epochs of a training: stepping, validating, keeping checkpoints, going on from one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from afinar.config.train import TrainConfig
from afinar.errors import IntegrityError
from afinar.storage.objects import ObjectRef
from afinar.training.checkpoint import Checkpoints, TrainState
from afinar.training.loading import ShardWindows
from afinar.training.metrics import Score, score
from afinar.training.sample_log import SampleLog
from afinar.training.sampler import epoch_order, global_batches, share
from afinar.training.steps import Samples, TrainStep, predict
from afinar.training.timing import EpochTimer

logger = logging.getLogger(__name__)

_TELL_EVERY_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """One training from its newest checkpoint, or its beginning, to its last epoch.

    `module` is what is trained, `set_training` puts it into training mode; `windows` says where its samples lie.
    Rank 0 hands each row of the history to `record`.
    """

    config: TrainConfig
    classes: list[str]
    module: nn.Module
    set_training: Callable[[], None]
    stepper: TrainStep
    windows: ShardWindows
    validation: Samples
    checkpoints: Checkpoints
    audit: SampleLog
    record: Callable[[dict[str, Any]], None]

    def run(self) -> TrainState:
        """Train; afterwards the descent's `result` is the best epoch's, on every worker."""
        cursor = self._resume()
        while cursor.epoch < self.config.epochs and not self._has_stalled(cursor):
            started = time.monotonic()
            row = self._epoch(cursor)
            row["seconds"] = round(time.monotonic() - started, 3)
            self._close_epoch(cursor, row)
        best = cursor.best[0]["weights"]
        if self.stepper.group.leads:
            self.stepper.descent.result.load_state_dict(self.checkpoints.get(best))
        self.stepper.group.agree(self.stepper.descent.result)
        return cursor

    def _resume(self) -> TrainState:
        found = self.checkpoints.newest()
        if not self.stepper.group.same(found[0].step if found else -1):
            raise IntegrityError(
                "workers see different checkpoints: MODELS must be one place that every machine reaches"
            )
        if found is None:
            return TrainState()
        cursor, result, state = found
        self.stepper.descent.load(result, state)
        if self.stepper.group.leads:
            logger.info(
                f"going on from step {cursor.step}: epoch {cursor.epoch + 1}, batch {cursor.batch + 1}"
            )
        return cursor

    def _has_stalled(self, cursor: TrainState) -> bool:
        patience = self.config.patience
        return bool(patience and cursor.best and cursor.epoch - cursor.best[0]["epoch"] >= patience)

    def _epoch(self, cursor: TrainState) -> dict[str, Any]:
        """Train what is left of the epoch and validate; the history's row."""
        stepper, group = self.stepper, self.stepper.group
        order, windows = epoch_order(
            self.windows.shards, self.config.seed, cursor.epoch, self.windows.size
        )
        batches = global_batches(order, self.config.batch_size)
        # The sums so far are everybody's: one worker carries them on.
        sums = torch.tensor(
            cursor.sums if group.leads else [0.0, 0.0], dtype=torch.float64, device=group.device
        )
        self.set_training()
        ledger = EpochTimer(group.device)
        told = time.monotonic()
        with self.windows.ahead(order, windows, batches) as enter:
            for _ in stepper.run(batches[cursor.batch :], cursor, sums, ledger, enter):
                mine = share(batches[cursor.batch - 1], group.rank, group.size)
                self.audit.write(cursor, stepper.samples.rows[mine])
                if self.config.checkpoint_steps and cursor.step % self.config.checkpoint_steps == 0:
                    with ledger.measure("checkpoint"):
                        self._checkpoint(cursor, sums, len(batches))
                if group.leads and time.monotonic() - told > _TELL_EVERY_S:
                    told = time.monotonic()
                    logger.info(
                        f"{self.config.regime} epoch {cursor.epoch + 1}: step {cursor.batch} of {len(batches)}"
                    )
        account = ledger.close()
        group.average_buffers(self.module, stepper.descent.result)
        loss, hits = (float(total) / len(stepper.samples) for total in group.sum(sums))
        return {
            "epoch": cursor.epoch + 1,
            "train": {"loss": loss, "top1": hits},
            "val": asdict(self._validate()),
            "ledger": account.as_dict(),
        }

    def _checkpoint(self, cursor: TrainState, sums: Tensor, batches: int) -> None:
        if cursor.batch == batches:
            return  # the epoch's own follows
        group = self.stepper.group
        group.average_buffers(self.module, self.stepper.descent.result)
        cursor.sums = group.sum(sums.clone()).tolist()
        if group.leads:
            self._save(cursor)

    def _validate(self) -> Score:
        stepper = self.stepper
        samples = self.validation
        mine, logits = predict(
            stepper.descent.result,
            stepper.inputs,
            samples.rows,
            len(self.classes),
            stepper.group,
            stepper.threads,
        )
        return score(logits, samples.targets_on(logits.device, mine), self.classes)

    def _close_epoch(self, cursor: TrainState, row: dict[str, Any]) -> None:
        cursor.history.append(row)
        cursor.epoch, cursor.batch, cursor.sums = cursor.epoch + 1, 0, [0.0, 0.0]
        group = self.stepper.group
        weights = (
            self.checkpoints.put(self.stepper.descent.result.state_dict()) if group.leads else None
        )
        entry = {
            "epoch": cursor.epoch,
            "top1": row["val"]["top1"],
            "loss": row["val"]["loss"],
            "weights": None,
        }
        if weights is not None:
            entry["weights"] = weights.as_dict()
        ranked = sorted(
            [*cursor.best, entry], key=lambda one: (-one["top1"], one["loss"], one["epoch"])
        )
        cursor.best = ranked[: self.config.keep_best]
        if weights is not None:
            self.record(row)
            self._save(cursor, weights)
            train, val, ledger = row["train"], row["val"], row["ledger"]
            logger.info(
                f"{self.config.regime} epoch {cursor.epoch}/{self.config.epochs}: train loss {train['loss']:.3f}, "
                f"validation loss {val['loss']:.3f}, top-1 {val['top1']:.1%}, {row['seconds']:.1f} s, "
                f"of which waiting for data {ledger['waiting_s']:.1f}"
            )

    def _save(self, cursor: TrainState, weights: ObjectRef | None = None) -> None:
        descent = self.stepper.descent
        weights = weights or self.checkpoints.put(descent.result.state_dict())
        self.checkpoints.save(cursor, weights, descent.state())
