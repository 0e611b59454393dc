"""Page and summary of one training run."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from afinar.dataset.reader import Dataset, open_dataset
from afinar.evaluation.comparison import EvaluatedRun, read_run
from afinar.evaluation.intervals import calibration_error, reliability, wilson
from afinar.report.pieces import confusion_table, data_uri, mistake_tiles
from afinar.report.plots import binary_curves, curves, reliability_diagram
from afinar.report.rendering import template
from afinar.storage.open import open_store
from afinar.units.progress import SHORT_S, format_duration

if TYPE_CHECKING:
    from afinar.training.driver import TrainOutcome

MATRIX_CLASSES: Final = 30  # the matrix of more classes is not readable
_CONFUSED_PAIRS: Final = 20
_PHASES: Final = {
    "first_batch_s": "first batch",
    "waiting_s": "waiting for data",
    "copy_s": "copying",
    "augment_s": "augmenting",
    "prepare_s": "preparing",
    "compute_s": "computing",
    "seconds": "total",
}


def write_training_page(outcome: TrainOutcome) -> None:
    """Write the page of a published training into its run folder."""
    store, version = open_store(outcome.models), outcome.version
    trained_on = version.lineage["dataset"]
    page = training_page(
        f"{version.architecture.backbone}, {version.regime}: model {version.id}",
        open_dataset(trained_on["uri"], version=trained_on["version"]),
        read_run(store, version),
    )
    store.put_if_absent(f"{outcome.run}/report.html", page.encode())


def summarize_training(outcome: TrainOutcome) -> dict[str, Any]:
    """Return the summary of a published training as JSON values."""
    store, version, result = open_store(outcome.models), outcome.version, outcome.result
    return {
        "model": f"{store.root}@{version.id}",
        "version": version.version,
        "promoted": outcome.champion.is_promoted,
        "champion": outcome.champion.champion,
        "why": outcome.champion.why,
        "params_total": result.params_total,
        "params_trainable": result.params_trainable,
        "epochs": result.epochs,
        "regime": version.regime,
        "settings": result.settings,
        "metrics": result.metrics,
        "temperature": result.temperature,
        "stall_fraction": round(result.stall_fraction, 4),
        "limit": _limit(result.history),
        "weights": version.lineage["weights"],
        "architecture": asdict(version.architecture),
        "run": store.uri(outcome.run),
        "report": store.uri(f"{outcome.run}/report.html"),
        "seconds": round(outcome.seconds, 1),
    }


def _limit(history: list[dict[str, Any]]) -> str:
    """Return the sentence on what limits the last epoch, "" for trainings of a few seconds."""
    seconds = sum(row["ledger"]["seconds"] for row in history)
    return str(history[-1]["ledger"]["limit"]) if seconds >= SHORT_S else ""


def training_page(title: str, dataset: Dataset, run: EvaluatedRun) -> str:
    """Return the page of a run. `dataset` is the version that it was trained on.

    Parts that the run did not record (recall by class, times of its epochs) are left out.
    """
    version, counts = run.version, run.confusion
    has_matrix = len(version.classes) <= MATRIX_CLASSES
    bins = reliability(
        run.test.column("score").to_numpy(),
        pc.equal(run.test.column("label"), run.test.column("predicted")).to_numpy(),
    )
    config = version.lineage["config"]

    return template("training.html.j2").render(
        title=title,
        version=version,
        numbers=_headline_numbers(run),
        curves=data_uri(curves([run]), "png"),
        mistakes=mistake_tiles(dataset, run),
        mistakes_total=int((~run.hits).sum()),
        test_total=len(run.hits),
        recalls=_recalls(run),
        never_right=run.never_right,
        select_by=config.get("select_by", "top1"),
        confusion=confusion_table(counts, version.classes) if has_matrix else None,
        confused=most_confused(counts, version.classes),
        binary=_binary(run),
        calibration_error=calibration_error(bins),
        reliability=data_uri(reliability_diagram(bins), "png"),
        times=_epoch_times(run.history),
        dataset=dataset.manifest,
        configuration={name.replace("_", "-"): value for name, value in config.items()},
    )


def _headline_numbers(run: EvaluatedRun) -> list[tuple[str, str]]:
    """Return names and values of the metrics that the run has."""
    metrics, accuracy = run.version.metrics, run.accuracy
    test = metrics["test"]
    largest, share = run.largest_class
    numbers = [
        (f"test top-1 ({accuracy.low:.1%} – {accuracy.high:.1%})", f"{accuracy.value:.1%}"),
        (f"if “{largest}” is always answered", f"{share:.1%}"),
        ("validation top-1", f"{metrics['val']['top1']:.1%}"),
    ]

    optional = {"top5": "test top-5", "macro_f1": "test macro F1", "auroc": "test AUROC"}
    for key, name in {**optional, "loss": "test loss"}.items():
        if test.get(key) is not None:
            numbers.append((name, format(test[key], ".1%" if key == "top5" else ".3f")))

    numbers.append(("epochs", str(metrics["epochs"])))
    numbers.append(("training time", format_duration(metrics["seconds"])))
    return numbers


def _recalls(run: EvaluatedRun) -> list[dict[str, Any]]:
    """Return a row for each class, the lowest recall first; classes without samples are last."""
    recall = run.version.metrics["test"].get("recall") or {}
    counts = run.confusion
    rows = [
        {
            "name": name,
            "recall": recall[name],
            "samples": int(counts[number].sum()),
            "hits": int(counts[number, number]),
        }
        for number, name in enumerate(run.version.classes)
        if name in recall
    ]

    return sorted(rows, key=lambda row: 2.0 if row["recall"] is None else row["recall"])


def _binary(run: EvaluatedRun) -> dict[str, Any] | None:
    """Return operating points and curves of two classes, None if the run has none."""
    binary = run.version.metrics["test"].get("binary")
    if binary is None:
        return None
    rows = [
        {
            "target": f"{point['measure']} at least {point['target']:.1%}",
            "threshold": point["threshold"],
            "validation": [_share(point["val"], name) for name in ("precision", "recall")],
            "test": [
                _share(point["test"], name, interval=True) for name in ("precision", "recall")
            ],
        }
        for point in binary["points"]
    ]
    return {
        "positive": binary["positive"],
        "average_precision": binary["average_precision"],
        "rows": rows,
        "plot": data_uri(binary_curves(binary), "png"),
    }


def _share(counts: dict[str, Any] | None, name: str, *, interval: bool = False) -> str:
    """Return precision or recall at an operating point as text, empty if it is not defined."""
    if counts is None or counts[name] is None:
        return ""
    others = counts["false_positives" if name == "precision" else "false_negatives"]
    share = wilson(counts["true_positives"], counts["true_positives"] + others)
    text = f"{share.value:.1%}"
    return f"{text} ({share.low:.1%} – {share.high:.1%})" if interval else text


def most_confused(counts: NDArray[np.int64], classes: list[str]) -> list[tuple[str, str, int]]:
    """Return the most frequent pairs of true and predicted class that differ, with their counts."""
    wrong = counts - np.diag(np.diag(counts))
    pairs = np.argwhere(wrong)
    order = np.argsort(-wrong[tuple(pairs.T)], kind="stable")[:_CONFUSED_PAIRS]
    return [
        (classes[true], classes[predicted], int(wrong[true, predicted]))
        for true, predicted in pairs[order]
    ]


def _epoch_times(history: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the seconds of each epoch by phase, and the sentence on the limit of the last one.

    None if the run recorded no times.
    """
    epochs = [(row["epoch"], row["ledger"]) for row in history if row.get("ledger")]
    if not epochs:
        return None
    rows = [
        {"epoch": epoch, "seconds": [times.get(phase) for phase in _PHASES]}
        for epoch, times in epochs
    ]
    _, last_times = epochs[-1]

    return {"columns": list(_PHASES.values()), "rows": rows, "limit": last_times.get("limit")}
