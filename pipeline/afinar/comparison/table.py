"""The table of a comparison: rows over seeds, intervals, ranks, and what the differences say."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from afinar.comparison.cells import CellResult
from afinar.comparison.rates import Rate
from afinar.evaluation.intervals import Interval
from afinar.evaluation.paired import (
    accuracy_interval,
    bootstrap_interval,
    half_of_seeds,
    holm,
    paired_interval,
    paired_p_value,
)

_LEVEL: Final = 0.05  # of the corrected p-value below which two rows differ


@dataclass(frozen=True)
class Evaluated:
    """Finished cells of one row, its predictions for the test split, and facts about its cut.

    `labels` int64 [n] and `predicted` int64 [n] for each seed are in the order of content hashes.
    `feature_seconds` is the time that the features took in this run.
    """

    cells: list[CellResult]
    labels: NDArray[np.int64]
    predicted: list[NDArray[np.int64]]
    rate: Rate
    feature_seconds: float
    stopped: str = ""

    @property
    def hits(self) -> list[NDArray[np.bool_]]:
        """True for each correct prediction, for each seed."""
        return [np.asarray(of_seed == self.labels, dtype=np.bool_) for of_seed in self.predicted]

    @property
    def validation(self) -> float:
        """Mean top-1 on validation over the seeds."""
        return statistics.fmean(cell.validation.top1 for cell in self.cells)

    @property
    def rank(self) -> tuple[float, float]:
        """Key by which rows are ranked, best first. The test split is not used."""
        return -self.validation, statistics.fmean(cell.validation.loss for cell in self.cells)

    @property
    def best(self) -> CellResult:
        """The seed that is published: the best on validation."""
        return min(self.cells, key=lambda cell: (-cell.validation.top1, cell.validation.loss))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table.

    - `number`: its rank on validation, from 1; what `--publish` takes.
    - `seed`, `seeds`: the seed that is published, the best on validation; all seeds.
    - `val`, `test`, `macro_f1`: means over the seeds; the last two with intervals over pictures and
      seeds.
    - `p_value`: of the difference to the best row on the test split, corrected for the number of
      rows; None for the best row. `within_noise`: it is not below 0.05.
    - `pareto`: no row is both more accurate on validation and faster.
    - `refit`: the head was solved again on training and validation pictures together.
    - `seconds`: mean of a seed's training. `images_per_second`: when labelling, on one core.
    - `bytes`: weights of the network up to the cut, and of the head.
    """

    number: int
    backbone: str
    cut: str
    pool: str
    head: str
    regime: str
    fraction: float
    seed: int
    seeds: list[int]
    val: float
    val_loss: float
    test: Interval
    macro_f1: Interval
    p_value: float | None
    within_noise: bool
    params_total: int
    params_trainable: int
    feature_seconds: float
    seconds: float
    images_per_second: float
    bytes: int
    pareto: bool
    stopped: str
    refit: bool
    cells: list[str]

    @property
    def name(self) -> str:
        """Description of the row in words."""
        cut = self.cut if self.pool == "average" else f"{self.cut} ({self.pool})"
        share = f", {self.fraction:.0%} of the labels" if self.fraction < 1 else ""
        head = "5 nearest neighbours" if self.head == "knn" else f"{self.head} head"
        head += " refit on train and validation" if self.refit else ""
        return f"{self.backbone} at {cut}, {head}, {self.regime}{share}"


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """The best transferred row against the best row from scratch, both by validation.

    `difference` is that of their accuracies on the same test pictures, with its 95 % interval.
    `gains` is True if transfer is better, False if it is worse, None within the noise.
    """

    transferred: int
    scratch: int
    difference: Interval
    gains: bool | None
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """Ranked rows, those of smaller shares of the labels, and the sentences on them.

    `transfer` is None if no row is trained from scratch, or if all are.
    """

    rows: list[Row]
    learning_curve: list[Row] = field(default_factory=list)
    recommendation: str
    notes: list[str] = field(default_factory=list)
    transfer: Transfer | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "learning_curve": [asdict(row) for row in self.learning_curve],
            "recommendation": self.recommendation,
            "notes": self.notes,
            "transfer": asdict(self.transfer) if self.transfer else None,
        }


def make_table(evaluated: Sequence[Evaluated], classes: int, notes: list[str]) -> Table:
    """Rank the rows by validation and compare each with the best on the shared test split."""
    whole = sorted((item for item in evaluated if _fraction(item) == 1), key=lambda item: item.rank)
    parts = sorted(
        (item for item in evaluated if _fraction(item) < 1),
        key=lambda item: (item.cells[0].cell.row[:5], _fraction(item)),
    )
    others = [paired_p_value(whole[0].hits, item.hits) for item in whole[1:]]
    p_values = [None, *holm(others)]
    fronts = _pareto(whole)
    rows = [
        _row(item, number, classes, p_value, pareto)
        for number, (item, p_value, pareto) in enumerate(
            zip(whole, p_values, fronts, strict=True), start=1
        )
    ]
    curve = [
        _row(item, number, classes, None, pareto=False)
        for number, item in enumerate(parts, start=len(rows) + 1)
    ]
    table = Table(
        rows=rows,
        learning_curve=curve,
        recommendation=_recommend(rows),
        notes=notes,
        transfer=_transfer(whole, rows),
    )
    return replace(table, notes=[*notes, *_learning_notes(table)])


def _fraction(item: Evaluated) -> float:
    return item.cells[0].cell.fraction


def _pareto(items: Sequence[Evaluated]) -> list[bool]:
    """Return True for each row than which no other is both more accurate and as fast, or faster."""
    points = [(item.validation, item.rate.pictures_per_s) for item in items]
    return [
        not any(
            other != point and other[0] >= point[0] and other[1] >= point[1] for other in points
        )
        for point in points
    ]


def _row(item: Evaluated, number: int, classes: int, p_value: float | None, pareto: bool) -> Row:
    cell, best = item.cells[0].cell, item.best
    trained_in_s = statistics.fmean(result.seconds for result in item.cells)
    head_bytes = 4 * max(0, best.params_total - item.rate.params)
    return Row(
        number=number,
        backbone=cell.backbone,
        cut=cell.cut,
        pool=cell.pool,
        head=cell.head,
        regime=cell.regime,
        fraction=cell.fraction,
        seed=best.cell.seed,
        seeds=[result.cell.seed for result in item.cells],
        val=item.validation,
        val_loss=statistics.fmean(result.validation.loss for result in item.cells),
        test=accuracy_interval(item.hits),
        macro_f1=_macro_f1(item, classes),
        p_value=p_value,
        within_noise=p_value is not None and p_value >= _LEVEL,
        params_total=best.params_total,
        params_trainable=best.params_trainable,
        feature_seconds=round(item.feature_seconds, 1),
        seconds=round(trained_in_s, 2),
        images_per_second=item.rate.pictures_per_s,
        bytes=item.rate.bytes + head_bytes,
        pareto=pareto,
        stopped=item.stopped,
        refit=bool(cell.settings.get("refit")),
        cells=[result.cell.id for result in item.cells],
    )


def _macro_f1(item: Evaluated, classes: int) -> Interval:
    of_seeds = [macro_f1(item.labels, predicted, classes) for predicted in item.predicted]

    def mean_of(rows: NDArray[np.int64]) -> float:
        return statistics.fmean(
            macro_f1(item.labels[rows], predicted[rows], classes) for predicted in item.predicted
        )

    return bootstrap_interval(
        statistics.fmean(of_seeds), len(item.labels), mean_of, half_of_seeds(of_seeds)
    )


def macro_f1(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> float:
    """Return the mean of 2 * correct / (true + predicted) over classes that occur."""
    correct = np.bincount(labels[labels == predicted], minlength=classes)
    total = np.bincount(labels, minlength=classes) + np.bincount(predicted, minlength=classes)
    occurs = total > 0
    return float((2 * correct[occurs] / total[occurs]).mean())


def _percent(interval: Interval) -> str:
    return f"{interval.value:.1%} on test (95 % interval {interval.low:.1%} to {interval.high:.1%})"


def _recommend(rows: list[Row]) -> str:
    """Return a sentence that says which row to take, and why."""
    best = next((row for row in rows if row.head != "knn"), rows[0])
    text = (
        f"Take row {best.number}, {best.name}: {best.val:.1%} on validation, {_percent(best.test)}."
    )
    networks = [row for row in rows if row is not best and row.head != "knn"]
    others = [row for row in networks if row.within_noise]
    if not others:
        worse = " Every other network is worse on the test split by more than chance."
        return text + (worse if networks else "")
    faster = max(others, key=lambda row: row.images_per_second)
    count = "1 other row is" if len(others) == 1 else f"{len(others)} other rows are"
    text += f" {count} within the noise of the best on the test split"
    if faster.images_per_second > 1.2 * best.images_per_second:
        factor = faster.images_per_second / best.images_per_second
        return text + (
            f"; of these, row {faster.number}, {faster.name}, labels {factor:.1f} times as many "
            f"pictures per second: take it if that counts."
        )
    return text + ", and none labels much faster."


def _transfer(items: Sequence[Evaluated], rows: Sequence[Row]) -> Transfer | None:
    """Compare the best row that begins with pretrained weights with the best one that does not."""
    pairs = [pair for pair in zip(items, rows, strict=True) if pair[1].head != "knn"]
    scratch = next((pair for pair in pairs if pair[1].regime == "scratch"), None)
    transferred = next((pair for pair in pairs if pair[1].regime != "scratch"), None)
    if scratch is None or transferred is None:
        return None
    difference = paired_interval(transferred[0].hits, scratch[0].hits)
    gains = None if difference.low <= 0 <= difference.high else difference.low > 0
    verdict = {
        True: "transfer gains",
        False: "transfer loses",
        None: "transfer neither gains nor loses by more than chance",
    }[gains]
    value, low, high = (
        100 * share for share in (difference.value, difference.low, difference.high)
    )
    sentence = (
        f"{verdict}: row {transferred[1].number}, {transferred[1].name}, minus row "
        f"{scratch[1].number}, {scratch[1].name}, is {value:+.1f} points on the test split (95 % "
        f"interval {low:+.1f} to {high:+.1f})"
    )
    if scratch[1].stopped:
        sentence += (
            f"; the latter was stopped {scratch[1].stopped}, --keep-all trains it to the end"
        )
    return Transfer(
        transferred=transferred[1].number,
        scratch=scratch[1].number,
        difference=difference,
        gains=gains,
        sentence=sentence,
    )


def _learning_notes(table: Table) -> list[str]:
    """Return a sentence for the best row that has a learning curve: would more labels pay?"""
    for row in table.rows:
        smaller = [part for part in table.learning_curve if _is_part_of(part, row)]
        if not smaller:
            continue
        curve = [*smaller, row]
        text = ", ".join(f"{part.fraction:.0%}: {part.test.value:.1%}" for part in curve)
        gain, noise = row.val - smaller[-1].val, row.test.high - row.test.value
        verdict = (
            "the curve still rises: more labels would probably pay"
            if gain > max(0.005, noise / 2)
            else "the last step gained little: more labels would probably not pay"
        )
        return [f"accuracy of {row.name} by share of the labels: {text}; {verdict}"]
    return []


def _is_part_of(part: Row, row: Row) -> bool:
    names = ("backbone", "cut", "pool", "head", "regime")
    return all(getattr(part, name) == getattr(row, name) for name in names)


def as_arrow(table: Table) -> pa.Table:
    """Return all rows as an Arrow table; intervals are three columns."""
    rows = []
    for row in [*table.rows, *table.learning_curve]:
        record = asdict(row)
        for name in ("test", "macro_f1"):
            interval = record.pop(name)
            record |= {
                name: interval["value"],
                f"{name}_low": interval["low"],
                f"{name}_high": interval["high"],
            }
        rows.append(record)
    return pa.Table.from_pylist(rows)
