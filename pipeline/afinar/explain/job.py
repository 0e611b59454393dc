"""A job of `afinar explain`, of any method: it runs missing units and reads results."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Generic, TypeVar

from afinar.config.explain import ExplainConfig
from afinar.errors import ShortfallError
from afinar.explain.network import ModelFacts, ModelSpec, describe_model
from afinar.explain.units import ExplainTask, Stored, read, unit_name
from afinar.explain.worker import UnitOutcome, make_worker
from afinar.storage.contents import require_target_for
from afinar.storage.markers import committed_units
from afinar.storage.open import open_store
from afinar.storage.store import Store
from afinar.storage.versions import probe_conditional_put
from afinar.units.executor import Executor, RetryPolicy
from afinar.units.progress import ProgressReporter

_DEADLINE_S: Final = 3600.0

R = TypeVar("R")


@dataclass(kw_only=True)
class ExplainOutcome(Generic[R]):
    """Results of one run in the order of the request; `computed` of them are of this run."""

    model: ModelFacts
    store: Store
    results: list[Stored[R]]
    computed: int
    rejects: list[UnitOutcome]
    seconds: float
    notes: list[str] = field(default_factory=list)


class ExplainJob:
    """Job of any method: its model, its folder of results, and the running of its units."""

    def __init__(self, config: ExplainConfig, executor: Executor) -> None:
        self.model = describe_model(
            ModelSpec(model=config.model, weights=config.weights, input_size=config.input_size)
        )
        self.executor = executor
        self.store = open_store(config.out)
        self.store.require_target()
        require_target_for(self.store, "explanations")
        probe_conditional_put(self.store)
        self.computed = 0
        self.rejects: list[UnitOutcome] = []
        self.notes: list[str] = []
        self._started = time.monotonic()

    def unit(self, method: str, *options: Any) -> str:
        """Return the name of a unit."""
        return unit_name(method, self.model.spec.identity, *options)

    def run(self, tasks: Sequence[ExplainTask[R]], result_type: type[R]) -> list[Stored[R]]:
        """Run the tasks whose unit has no marker, and return the results of all.

        Raises ShortfallError if there are tasks and no picture of them could be used.
        """
        done = committed_units(self.store) if tasks else set()
        pending = [task for task in tasks if task.unit not in done]
        make_work = partial(make_worker, self.model.spec, self.store.root)
        policy: RetryPolicy[Any] = RetryPolicy(uses_gpus=True, deadline_s=lambda _: _DEADLINE_S)
        unusable = {}
        if pending:
            with ProgressReporter("explain", len(pending), "units") as progress:
                for outcome in self.executor.run(make_work, pending, policy):
                    progress.add(1, rejects=bool(outcome.reason))
                    if outcome.reason:
                        unusable[outcome.unit] = outcome
        self.computed += len(pending) - len(unusable)
        self.rejects += unusable.values()
        if tasks and len(unusable) == len(tasks):
            first = next(iter(unusable.values()))
            raise ShortfallError(
                f"none of the {len(tasks)} pictures can be used; the first: {first.detail}"
            )
        return [
            read(self.store, task.unit, result_type) for task in tasks if task.unit not in unusable
        ]

    def outcome(self, results: list[Stored[R]]) -> dict[str, Any]:
        """Return the fields that all outcomes share."""
        return {
            "model": self.model,
            "store": self.store,
            "results": results,
            "computed": self.computed,
            "rejects": self.rejects,
            "seconds": round(time.monotonic() - self._started, 1),
            "notes": self.notes,
        }
