"""Page and summary of one training run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow.compute as pc

from afinar.config.train import TrainConfig
from afinar.dataset.reader import Dataset, open_dataset
from afinar.errors import NotFoundError
from afinar.evaluation.comparison import EvaluatedRun, read_run
from afinar.evaluation.intervals import (
    Interval,
    calibration_error,
    paired_difference,
    reliability,
    wilson,
)
from afinar.models.registry.aliases import promotions
from afinar.models.registry.versions import get_model
from afinar.report.charts import Chart, binary_charts, curves, rate_chart, reliability_charts
from afinar.report.classes import class_balance, class_rows, f1_by_class, split_counts
from afinar.report.command import reproduce
from afinar.report.confusion import (
    confusion_matrix,
    mistake_gallery,
    mistakes_of,
    most_confused,
)
from afinar.report.gallery import class_gallery
from afinar.report.index import write_index
from afinar.report.model_card import put_model_card
from afinar.report.rendering import template
from afinar.storage.arrow import group_by, to_parquet
from afinar.storage.open import open_store
from afinar.storage.store import Store
from afinar.units.progress import SHORT_S, format_duration

if TYPE_CHECKING:
    from afinar.models.registry.versions import ModelVersion
    from afinar.training.driver import TrainOutcome

MISTAKES: Final = "mistakes.parquet"
"""All wrong test predictions with their uris, beside the page."""

_RATE_POINTS: Final = 80
_PHASES: Final = {
    "first_batch_s": "first batch",
    "waiting_s": "waiting for data",
    "copy_s": "copying",
    "augment_s": "augmenting",
    "prepare_s": "preparing",
    "compute_s": "computing",
}
# What a description of a training names first; the other fields follow, folded up.
_MAIN_SETTINGS: Final = (
    "regime",
    "epochs",
    "batch_size",
    "optimizer",
    "learning_rate",
    "head_rate",
    "layer_decay",
    "schedule",
    "warmup",
    "weight_decay",
    "label_smoothing",
    "augment",
    "sampling",
    "precision",
    "device",
    "devices",
    "workers",
    "world_size",
    "select_by",
    "seed",
)


def write_training_page(outcome: TrainOutcome) -> None:
    """Write the page of a published training, its mistakes and its model card."""
    store, version = open_store(outcome.models), outcome.version
    trained_on = version.lineage["dataset"]
    dataset = open_dataset(trained_on["uri"], version=trained_on["version"])
    run = read_run(store, version)

    mistakes = mistakes_of(run)
    uris = dataset.index.column("uri").take(mistakes.column("row"))
    table = mistakes.add_column(0, "uri", uris)
    store.put_if_absent(f"{outcome.run}/{MISTAKES}", to_parquet(table))
    page = training_page(
        f"Model {version.id}: {version.architecture.backbone}, {version.regime}",
        dataset,
        run,
        champion=_champion(store, version),
        decision=outcome.champion.why,
    )
    store.put_if_absent(f"{outcome.run}/report.html", page.encode())
    put_model_card(store, version)
    write_index(outcome.models)


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
    """Return the sentence on what limited the last epoch, "" for trainings of a few seconds.

    Runs of earlier versions have no times.
    """
    ledgers = [row.get("ledger") or {} for row in history]
    seconds = sum(ledger.get("seconds") or 0.0 for ledger in ledgers)
    return str(ledgers[-1].get("limit") or "") if seconds >= SHORT_S else ""


def training_page(
    title: str,
    dataset: Dataset,
    run: EvaluatedRun,
    champion: EvaluatedRun | None = None,
    decision: str = "",
) -> str:
    """Return the page of a run. `dataset` is the version that it was trained on.

    `champion` is the model that the run is compared with, if there is one; `decision` says which of
    them is the champion now, and why. Parts that the run did
    not record (times of its epochs, the runner-up of a prediction) are left out.
    """
    version, counts = run.version, run.confusion
    classes = version.classes
    bins = reliability(
        run.test.column("score").to_numpy(),
        pc.equal(run.test.column("label"), run.test.column("predicted")).to_numpy(),
    )
    mistakes = mistake_gallery(dataset, run)
    gallery = class_gallery(dataset, run)
    targets = mistakes.targets | {
        (number, number): gallery.targets[name]
        for number, name in enumerate(classes)
        if name in gallery.targets
    }

    return template("training.html.j2").render(
        title=title,
        version=version,
        numbers=_headline_numbers(run),
        champion=None if champion is None else compare_with_champion(run, champion),
        decision=decision,
        # A head that was solved has one row, which is no curve.
        curves=curves([run]) + _rate_charts(run) if len(run.history) > 1 else [],
        epochs=_epochs(run),
        mistakes=mistakes,
        mistakes_total=int((~run.hits).sum()),
        mistakes_file=MISTAKES,
        test_total=len(run.hits),
        classes=class_rows(
            counts,
            classes,
            split_counts(dataset.index),
            gallery.targets,
            None if champion is None else f1_by_class(champion.confusion, champion.version.classes),
        ),
        balance=class_balance(dataset, gallery.targets),
        never_right=run.never_right,
        select_by=version.lineage["config"].get("select_by", "top1"),
        begins_with_head=len(run.history) > 1 and run.history[0].get("head") == "solved",
        confusion=confusion_matrix(counts, classes, targets),
        confused=most_confused(counts, classes, targets),
        gallery=gallery,
        binary=_binary(run),
        calibration_error=calibration_error(bins),
        reliability=reliability_charts(bins),
        phases=_phases(run.history),
        limit=_limit(run.history),
        dataset=dataset.manifest,
        settings=_settings(version),
        more_settings=_more_settings(version),
        origin=_origin(version),
        command=reproduce("train", TrainConfig, version.lineage["config"]),
    )


@dataclass(frozen=True, kw_only=True)
class ChampionComparison:
    """A model against the champion: on the test pictures that both have, if there are any.

    `difference` is None without common pictures, `is_better` None if chance explains the result.
    """

    champion: ModelVersion
    accuracy: Interval
    champion_accuracy: Interval
    common: int
    test_total: int
    difference: Interval | None
    only_new: int
    only_champion: int

    @property
    def is_better(self) -> bool | None:
        if self.difference is None or self.difference.low <= 0 <= self.difference.high:
            return None
        return self.difference.low > 0


def compare_with_champion(run: EvaluatedRun, champion: EvaluatedRun) -> ChampionComparison:
    """Compare two runs on their common test pictures, those with the same content and label."""
    keys = ["sample_id", "label"]
    columns = [*keys, "predicted"]
    # A dataset may hold a picture twice: each content counts once.
    mine, theirs = (
        group_by(table.select(columns), keys).aggregate([("predicted", "min")])
        for table in (run.test, champion.test)
    )
    both = mine.join(theirs, keys, join_type="inner", right_suffix="_champion", use_threads=False)
    hits, champion_hits = (
        np.asarray(both.column("label").to_numpy() == both.column(name).to_numpy(), dtype=np.bool_)
        for name in ("predicted_min", "predicted_min_champion")
    )
    if not len(both):
        accuracies, difference = (run.accuracy, champion.accuracy), None
    else:
        accuracies = wilson(int(hits.sum()), len(both)), wilson(int(champion_hits.sum()), len(both))
        difference = paired_difference(hits, champion_hits)

    return ChampionComparison(
        champion=champion.version,
        accuracy=accuracies[0],
        champion_accuracy=accuracies[1],
        common=len(both),
        test_total=len(run.test),
        difference=difference,
        only_new=int((hits & ~champion_hits).sum()),
        only_champion=int((~hits & champion_hits).sum()),
    )


def _champion(store: Store, version: ModelVersion) -> EvaluatedRun | None:
    """Return the champion that this version is compared with, None if there was no other one.

    If the version is the champion already, that is the champion before it. A champion whose run
    was deleted, or that was not made by `train`, cannot be compared.
    """
    for promotion in reversed(promotions(store)):
        if promotion.version == version.version:
            continue
        champion = get_model(store, promotion.version)
        if not champion.lineage.get("run"):
            return None
        try:
            return read_run(store, champion)
        except NotFoundError:
            return None
    return None


def _headline_numbers(run: EvaluatedRun) -> list[tuple[str, str]]:
    """Return names and values of the metrics that the run has."""
    metrics, accuracy = run.version.metrics, run.accuracy
    test = metrics["test"]
    largest, share = run.largest_class
    is_refit = run.version.lineage["config"].get("refit", False)
    numbers = [
        (f"test top-1 ({accuracy.low:.1%} – {accuracy.high:.1%})", f"{accuracy.value:.1%}"),
        (f"if “{largest}” is always answered", f"{share:.1%}"),
        (
            "validation top-1, before the refit" if is_refit else "validation top-1",
            f"{metrics['val']['top1']:.1%}",
        ),
    ]

    optional = {"top5": "test top-5", "macro_f1": "test macro F1", "auroc": "test AUROC"}
    for key, name in {**optional, "loss": "test loss"}.items():
        if test.get(key) is not None:
            numbers.append((name, format(test[key], ".1%" if key == "top5" else ".3f")))

    numbers.append(("epochs", str(metrics["epochs"])))
    numbers.append(("training time", format_duration(metrics["seconds"])))
    return numbers


def _rate_charts(run: EvaluatedRun) -> list[Chart]:
    """Return the chart of the learning rate; none for a head that was solved, or without steps."""
    from afinar.training.optim import lr_at_step

    config = run.version.lineage["config"]
    rows = [row for row in run.history if (row.get("ledger") or {}).get("steps")]
    peak, epochs = config.get("learning_rate"), config.get("epochs")
    if not rows or not peak or not isinstance(epochs, int):
        return []

    # A resumed epoch has the steps since then: the longest one is complete.
    steps = max(row["ledger"]["steps"] for row in rows)
    done = min(epochs, max(row["epoch"] for row in rows)) * steps
    numbers = sorted({round(place) for place in np.linspace(0, done - 1, _RATE_POINTS)})
    schedule, warmup = config.get("schedule", "cosine"), config.get("warmup", 0.0)
    points = [
        ((step + 1) / steps, peak * lr_at_step(schedule, warmup, step, epochs * steps))
        for step in numbers
    ]
    return [rate_chart(points)]


def _epochs(run: EvaluatedRun) -> list[dict[str, Any]]:
    """Return a row for each epoch: losses, accuracies, seconds if they were recorded."""
    return [
        {
            "epoch": row["epoch"],
            "values": [row["train"]["loss"], row["val"]["loss"]],
            "shares": [row["train"]["top1"], row["val"]["top1"]],
            "seconds": (row.get("ledger") or {}).get("seconds"),
        }
        for row in run.history
    ]


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
        "charts": binary_charts(binary),
    }


def _share(counts: dict[str, Any] | None, name: str, *, interval: bool = False) -> str:
    """Return precision or recall at an operating point as text, empty if it is not defined."""
    if counts is None or counts[name] is None:
        return ""
    others = counts["false_positives" if name == "precision" else "false_negatives"]
    share = wilson(counts["true_positives"], counts["true_positives"] + others)
    text = f"{share.value:.1%}"
    return f"{text} ({share.low:.1%} – {share.high:.1%})" if interval else text


def _phases(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the seconds of all epochs by phase, none if the run recorded no times."""
    seconds = dict.fromkeys(_PHASES, 0.0)
    for row in history:
        for phase in _PHASES:
            seconds[phase] += (row.get("ledger") or {}).get(phase) or 0.0
    total = sum(seconds.values())
    if not total:
        return []
    return [
        {"name": name, "seconds": seconds[phase], "share": seconds[phase] / total}
        for phase, name in _PHASES.items()
    ]


def _settings(version: ModelVersion) -> list[tuple[str, str]]:
    """Return the values that describe the training; zeros that stand for a default are resolved."""
    config = version.lineage["config"]
    network = version.architecture
    settings = [
        ("backbone", network.backbone),
        ("cut", network.cut),
        ("head", network.head),
        ("input", f"{network.input_size} px"),
        ("weights", version.lineage["weights"] or "random"),
    ]
    return settings + [
        (name.replace("_", " "), _value(config[name])) for name in _MAIN_SETTINGS if name in config
    ]


def _more_settings(version: ModelVersion) -> list[tuple[str, str]]:
    config = version.lineage["config"]
    return [
        (name.replace("_", "-"), _value(value))
        for name, value in config.items()
        if name not in _MAIN_SETTINGS
    ]


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _origin(version: ModelVersion) -> list[tuple[str, str]]:
    lineage = version.lineage
    return [
        ("model", version.id),
        ("dataset", f"{lineage['dataset']['uri']}, version {lineage['dataset']['version']}"),
        ("run", lineage["run"].removeprefix("runs/")),
        ("initial weights", lineage["weights"] or "random"),
        *lineage["libraries"].items(),
    ]
