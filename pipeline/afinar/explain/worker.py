"""Worker of an explanation: it loads the network once and computes units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any, Final

from afinar.explain.network import ExplainedNetwork, ModelSpec, load_explained
from afinar.explain.units import ExplainTask, commit
from afinar.inference.cpu import use_worker_cores
from afinar.models.networks.precision import tf32_disabled
from afinar.pictures.decode import configure_pillow
from afinar.pictures.rejects import PictureError
from afinar.storage.open import open_store

_EXPLAINING: Final = Lock()


@dataclass(frozen=True, kw_only=True)
class UnitOutcome:
    """A unit that was committed, or the reason why its picture could not be used."""

    unit: str
    title: str
    reason: str = ""
    detail: str = ""


def make_worker(model: ModelSpec, out: str) -> Callable[[ExplainTask[Any]], UnitOutcome]:
    """Load the network and open the folder of results: the entry point of a worker."""
    use_worker_cores()
    configure_pillow()
    network, store = load_explained(model), open_store(out)

    def explain(task: ExplainTask[Any]) -> UnitOutcome:
        # A worker with a GPU gets several units at once; they would share its memory.
        with _EXPLAINING, tf32_disabled(network.device):
            return _explain(network, task)

    def _explain(network: ExplainedNetwork, task: ExplainTask[Any]) -> UnitOutcome:
        try:
            rendered = task.run(network)
        except PictureError as error:
            return UnitOutcome(
                unit=task.unit, title=task.title, reason=str(error.reason), detail=error.detail
            )
        commit(store, task.unit, rendered)
        return UnitOutcome(unit=task.unit, title=task.title)

    return explain
