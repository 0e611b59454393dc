"""Cells of a comparison: one head or training with one seed, stored when it is finished.

    <runs>/comparisons/cells/<cell>.json           put if absent, last
                       predictions/<hash>.parquet  of the test split
                       heads/<hash>.safetensors    weights of a head on features

The name of a cell is a hash of everything that determines it, so that every later comparison with
the same cell finds it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import safetensors.torch
from numpy.typing import NDArray
from torch import Tensor

from afinar.config.base import fingerprint
from afinar.config.compare import COMPARISONS
from afinar.config.strict import Count, between
from afinar.config.train import Pool
from afinar.errors import NotFoundError
from afinar.storage.arrow import get_table, to_parquet
from afinar.storage.objects import ObjectRef, get_object, put_object
from afinar.storage.records import read_record
from afinar.storage.store import Store

FOLDER: Final = COMPARISONS

HeadName = Literal["knn", "linear", "mlp"]

PREDICTIONS: Final = pa.schema(
    [("sample_id", pa.string()), ("label", pa.int32()), ("predicted", pa.int32())]
)
"""One picture of the test split: its class and the predicted one, by number."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of the grid.

    `settings` are all other options that determine it: dataset and its version, classes, views,
    weights and hyperparameters.
    """

    backbone: str
    cut: str
    pool: Pool
    head: HeadName
    regime: str
    fraction: float
    seed: Count
    settings: dict[str, Any]

    @property
    def id(self) -> str:
        """Name of the cell: 16 hex digits."""
        return fingerprint(asdict(self))[:16]

    @property
    def row(self) -> tuple[str, str, str, str, str, float]:
        """Identity of the cell's row, which has all seeds."""
        return (self.backbone, self.cut, self.pool, self.head, self.regime, self.fraction)


@dataclass(frozen=True, kw_only=True)
class SplitScores:
    """Metrics of one split."""

    top1: Annotated[float, between(0, 1)]
    macro_f1: Annotated[float, between(0, 1)]
    loss: float
    samples: Count


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """A finished cell.

    `history` has epoch, loss and top1 on validation. `run` is the run of a training, `weights` the
    object with the weights of a head on features, and `temperature` calibrates it. `chosen` are the
    weights before a refit on training and validation, which `validation` belongs to.
    """

    cell: Cell
    validation: SplitScores
    test: SplitScores
    params_total: Count
    params_trainable: Count
    seconds: float
    predictions: ObjectRef
    history: list[dict[str, Any]]
    run: str = ""
    weights: ObjectRef | None = None
    chosen: ObjectRef | None = None
    temperature: float = 1.0


def _name(cell: Cell) -> str:
    return f"{FOLDER}/cells/{cell.id}.json"


def read_cell(store: Store, cell: Cell) -> CellResult | None:
    """Return a finished cell, None if it is not finished."""
    try:
        return read_record(store, _name(cell), CellResult)
    except NotFoundError:
        return None


def finished_cells(store: Store, cells: Sequence[Cell]) -> dict[str, CellResult]:
    """Return the finished ones of these cells by their ids."""
    stored = {info.name for info in store.walk(f"{FOLDER}/cells")}
    found = {cell.id: read_cell(store, cell) for cell in cells if _name(cell) in stored}
    return {name: result for name, result in found.items() if result is not None}


def put_cell(store: Store, result: CellResult) -> None:
    """Store a finished cell. If another job has finished it first, that result stays."""
    store.put_if_absent(_name(result.cell), json.dumps(asdict(result), indent=1).encode())


def put_predictions(
    store: Store, sample_ids: pa.Array, labels: NDArray[np.int64], predicted: NDArray[np.int64]
) -> ObjectRef:
    """Write the predictions of the test split, sorted by content hash."""
    table = pa.table(
        {
            "sample_id": sample_ids,
            "label": pa.array(labels, pa.int32()),
            "predicted": pa.array(predicted, pa.int32()),
        },
        schema=PREDICTIONS,
    ).sort_by([("sample_id", "ascending"), ("label", "ascending")])
    return put_object(
        store, f"{FOLDER}/predictions/{{hash}}.parquet", to_parquet(table), len(table)
    )


def read_predictions(store: Store, result: CellResult) -> pa.Table:
    """Read the predictions of the test split: PREDICTIONS, sorted by content hash."""
    return get_table(store, result.predictions, PREDICTIONS, required=PREDICTIONS.names)


def put_head(store: Store, tensors: dict[str, Tensor]) -> ObjectRef:
    """Write the weights of a head."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(state)
    return put_object(store, f"{FOLDER}/heads/{{hash}}.safetensors", data, len(state))


def read_head(store: Store, ref: ObjectRef) -> dict[str, Tensor]:
    """Read the weights of a head."""
    return safetensors.torch.load(get_object(store, ref))


def as_class_numbers(values: pa.ChunkedArray, classes: list[str]) -> NDArray[np.int64]:
    """Return the numbers of class names."""
    numbers = pc.index_in(values, pa.array(classes, values.type))
    result: NDArray[np.int64] = numbers.to_numpy().astype(np.int64)
    return result
