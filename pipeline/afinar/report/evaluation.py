"""Run folder of `evaluate`: page, summary, predictions, and the table of corruptions."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from afinar.analysis.evaluate import EvaluateOutcome
from afinar.config.evaluate import EvaluateConfig
from afinar.evaluation.corruptions import corruptions
from afinar.evaluation.intervals import calibration_error, reliability
from afinar.logs import log_settings
from afinar.report.charts import reliability_charts
from afinar.report.confusion import confusion_matrix, most_confused
from afinar.report.pieces import Tile, data_uri, thumbnail, tiles
from afinar.report.rendering import template
from afinar.report.run_folder import record_run, report_uri
from afinar.storage.arrow import to_parquet
from afinar.storage.names import new_run
from afinar.storage.open import open_store

_MISTAKES: Final = 12

PREDICTIONS: Final = pa.schema(
    [
        ("uri", pa.large_string()),
        ("sample_id", pa.string()),
        ("label", pa.string()),
        ("predicted", pa.string()),
        ("score", pa.float32()),
    ]
)
"""The prediction for one evaluated picture, as it is stored."""


def record_evaluation(config: EvaluateConfig, outcome: EvaluateOutcome) -> dict[str, Any]:
    """Write the run folder of an outcome, and return its summary as JSON values."""
    run = log_settings().run or new_run()
    dataset = outcome.dataset.store.root
    store = open_store(dataset)
    name = f"runs/{run}/predictions.parquet"
    store.put_if_absent(name, to_parquet(predictions_table(outcome)))

    summary = {
        **summarize_evaluation(config, outcome),
        "predictions": store.uri(name),
        "report": report_uri(dataset, run),
    }
    record_run(dataset, run, config, summary, evaluation_page(outcome, summary))
    return summary


def predictions_table(outcome: EvaluateOutcome) -> pa.Table:
    """Return the prediction for each evaluated picture, PREDICTIONS."""
    index = outcome.dataset.index.take(pa.array(outcome.plan.rows))
    names = pa.array(outcome.version.classes, pa.string())
    columns = {
        **{name: index.column(name) for name in ("uri", "sample_id", "label")},
        "predicted": names.take(pa.array(outcome.predicted)),
        "score": pa.array(outcome.scores),
    }
    return pa.table(columns, schema=PREDICTIONS)


def summarize_evaluation(config: EvaluateConfig, outcome: EvaluateOutcome) -> dict[str, Any]:
    """Return the summary of an outcome as JSON values."""
    plan, accuracy = outcome.plan, outcome.accuracy
    return {
        "dataset": outcome.dataset.store.root,
        "version": outcome.dataset.manifest.version,
        "model": outcome.model,
        "split": config.split,
        "pictures": len(plan.rows),
        "classes": outcome.version.classes,
        "unknown_classes": plan.unknown,
        "missing_classes": plan.missing,
        "metrics": outcome.metrics,
        "top1": accuracy.value,
        "top1_interval": [accuracy.low, accuracy.high],
        "confusion": _confusion(outcome).tolist(),
        "corrupted_pictures": len(plan.corrupted),
        "corrupted_plain": outcome.plain.value,
        "corruptions": [
            {
                "name": row.name,
                "strength": row.strength,
                "setting": row.setting,
                "accuracy": row.accuracy.value,
                "accuracy_interval": [row.accuracy.low, row.accuracy.high],
                "difference": row.difference.value,
                "low": row.difference.low,
                "high": row.difference.high,
            }
            for row in outcome.corrupted
        ],
        "seconds": outcome.seconds,
        "notes": outcome.notes,
    }


def _confusion(outcome: EvaluateOutcome) -> NDArray[np.int64]:
    """Return counts [true class, predicted class] in the model's order of classes."""
    classes = len(outcome.version.classes)
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (outcome.plan.targets, outcome.predicted), 1)
    return counts


def evaluation_page(outcome: EvaluateOutcome, summary: dict[str, Any]) -> str:
    """Return the page of a run."""
    counts, classes = _confusion(outcome), outcome.version.classes
    bins = reliability(outcome.scores, outcome.hits)
    return template("evaluation.html.j2").render(
        title=f"Model {outcome.version.id} on {outcome.dataset.store.root.rsplit('/', 1)[-1]}",
        summary=summary,
        numbers=_headline_numbers(outcome),
        mistakes=_mistakes(outcome),
        mistakes_total=int((~outcome.hits).sum()),
        recalls=_recalls(counts, classes),
        confusion=confusion_matrix(counts, classes, {}),
        confused=most_confused(counts, classes, {}),
        examples=_examples(outcome),
        calibration_error=calibration_error(bins),
        temperature=outcome.version.temperature,
        reliability=reliability_charts(bins),
    )


def _headline_numbers(outcome: EvaluateOutcome) -> list[tuple[str, str]]:
    """Return names and values of the metrics."""
    metrics, accuracy = outcome.metrics, outcome.accuracy
    numbers = [
        (f"top-1 ({accuracy.low:.1%} – {accuracy.high:.1%})", f"{accuracy.value:.1%}"),
        (f"if “{metrics['largest_class']}” is always answered", f"{metrics['largest_share']:.1%}"),
    ]
    names = {"top5": "top-5", "macro_f1": "macro F1", "auroc": "AUROC", "loss": "loss"}
    for key, name in names.items():
        if metrics.get(key) is not None:
            numbers.append((name, format(metrics[key], ".1%" if key == "top5" else ".3f")))
    worst = min(outcome.corrupted, key=lambda row: row.accuracy.value, default=None)
    if worst:
        numbers.append((f"with {worst.name}, {worst.setting}", f"{worst.accuracy.value:.1%}"))
    return numbers


def _recalls(counts: NDArray[np.int64], classes: list[str]) -> list[dict[str, Any]]:
    """Return a row for each class, the lowest recall first; classes without pictures are last."""
    rows = []
    for number, name in enumerate(classes):
        samples, hits = int(counts[number].sum()), int(counts[number, number])
        recall = hits / samples if samples else None
        rows.append({"name": name, "samples": samples, "hits": hits, "recall": recall})
    return sorted(rows, key=lambda row: 2.0 if row["recall"] is None else row["recall"])


def _mistakes(outcome: EvaluateOutcome) -> list[Tile]:
    """Return the wrong predictions with the highest scores."""
    wrong = np.flatnonzero(~outcome.hits)
    shown = wrong[np.argsort(-outcome.scores[wrong], kind="stable")[:_MISTAKES]]
    if not len(shown):
        return []
    classes, plan = outcome.version.classes, outcome.plan
    captions = [
        f"{classes[plan.targets[place]]} predicted as {classes[outcome.predicted[place]]}, "
        f"score {outcome.scores[place]:.0%}"
        for place in shown
    ]
    return tiles(outcome.dataset, plan.rows[shown].tolist(), captions)


def _examples(outcome: EvaluateOutcome) -> list[Tile]:
    """Return the first picture under each corruption that was measured."""
    if not outcome.corrupted:
        return []
    image = outcome.dataset.read(outcome.plan.rows[outcome.plan.corrupted[:1]])
    names = tuple(dict.fromkeys(row.name for row in outcome.corrupted))
    return [
        Tile(
            data_uri(thumbnail(corruption(image)[0]), "jpeg"),
            corruption.name,
            f"{corruption.name}, {corruption.setting}",
        )
        for corruption in corruptions(names)
    ]
