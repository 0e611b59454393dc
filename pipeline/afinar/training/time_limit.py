"""Cut of a training's steps so that the model is published in time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

_FORWARD_SHARE: Final = 1 / 3  # of a training step: forward, and backward of twice the work
_PUBLISH_S: Final = 15.0  # golden samples, weights, report and the end of the workers


def steps_that_fit(
    left_s: float, *, step_s: float, steps_per_epoch: int, validation_s: float, final_s: float
) -> int:
    """Return how many steps fit into the time that is left, each epoch with its validation.

    `final_s` is the time of what follows the last epoch. Example: of 100 s, 20 are for the end and
    5 for the validation of the last, incomplete epoch; steps of 1 s in epochs of 10 with 5 s of
    validation take 1.5 s each, so 50 of them fit.
    """
    free_s = left_s - final_s - validation_s
    return max(0, math.floor(free_s / (step_s + validation_s / steps_per_epoch)))


class TimeLimit:
    """The number of steps of a training, which falls if the time does not suffice for all.

    Rank 0 measures and calls `fitting`; every worker sets `steps` to the number that it decides.
    `deadline_s` is a time (time.time()), None without a limit. `planned` are the steps without a
    limit, `validation` and `test` the sizes of the splits.
    """

    def __init__(
        self,
        deadline_s: float | None,
        planned: int,
        *,
        steps_per_epoch: int,
        batch_size: int,
        validation: int,
        test: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.steps = self.planned = planned
        self.steps_per_epoch = steps_per_epoch
        self._deadline_s, self._clock = deadline_s, clock
        self._batch_size, self._validation, self._test = batch_size, validation, test
        self._begun: tuple[int, float] | None = None
        self._validation_s: float | None = None

    @property
    def is_cut(self) -> bool:
        """True if the training ends before its planned steps."""
        return self.steps < self.planned

    @property
    def epochs(self) -> int:
        """Number of epochs that are begun."""
        return math.ceil(self.steps / self.steps_per_epoch)

    def begin(self, step: int) -> None:
        """Start to measure, before the first step of an epoch."""
        self._begun = (step, self._clock())

    def validated(self, seconds: float) -> None:
        """Note the duration of a validation."""
        self._validation_s = seconds

    def is_over(self) -> bool:
        """Return True if there is no time for any step."""
        return self._deadline_s is not None and self._clock() > self._deadline_s - _PUBLISH_S

    def fitting(self, step: int) -> int:
        """Return the number of steps that the training should have, after `step` of them.

        It only falls. A change of less than a twentieth is not worth another schedule.
        """
        if self._deadline_s is None or self._begun is None or step <= self._begun[0]:
            return self.steps
        begun, started = self._begun
        now = self._clock()
        step_s = (now - started) / (step - begun)
        validation_s = self._validation_s
        if validation_s is None:
            validation_s = step_s * _FORWARD_SHARE * self._validation / self._batch_size
        # The last epoch is validated once more, and the test split with it.
        again = 1 + self._test / max(1, self._validation)
        fit = step + steps_that_fit(
            self._deadline_s - now,
            step_s=step_s,
            steps_per_epoch=self.steps_per_epoch,
            validation_s=validation_s,
            final_s=_PUBLISH_S + again * validation_s,
        )
        return fit if fit < 0.95 * self.steps else self.steps
