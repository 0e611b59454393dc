"""Page that compares training runs and shows the archive that the best model labelled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from afinar.config.train import TrainConfig
from afinar.dataset.reader import Dataset
from afinar.evaluation.comparison import EvaluatedRun, best_run, verdicts
from afinar.report.blocks import Block
from afinar.report.charts import curves
from afinar.report.classes import class_balance, class_rows, split_counts
from afinar.report.command import reproduce
from afinar.report.confusion import confusion_matrix, mistake_gallery, most_confused
from afinar.report.gallery import class_gallery
from afinar.report.pieces import LARGE_PX
from afinar.report.rendering import template

_MISTAKES: Final = 24  # large pictures
_REJECTS: Final = 5  # of each reason


@dataclass(frozen=True, kw_only=True)
class LabelledArchive:
    """A labelled archive: summary of the job, rejects, and a sentence on its accuracy if known."""

    summary: dict[str, Any]
    rejects: pa.Table
    note: str = ""


def comparison_page(
    title: str,
    dataset: Dataset,
    runs: list[EvaluatedRun],
    archive: LabelledArchive,
    *,
    about: str = "",
    stretch: bool = False,
    explained: Sequence[Block] = (),
) -> str:
    """Return the page of runs on one dataset, and of the archive labelled with the best of them.

    `about` says where the pictures are from. With `stretch` the contrast of mistakes is stretched,
    and the page says so: for pictures whose classes differ in faint detail. `explained` are
    sections on what the best model sees.
    """
    best = best_run(runs)
    classes = best.version.classes
    counts = best.confusion
    gallery = class_gallery(dataset)
    mistakes = mistake_gallery(dataset, best, _MISTAKES, LARGE_PX, stretch=stretch)
    targets = mistakes.targets | {
        (number, number): gallery.targets[name]
        for number, name in enumerate(classes)
        if name in gallery.targets
    }

    return template("comparison.html.j2").render(
        title=title,
        about=about,
        stretch=stretch,
        explained=explained,
        verdicts=verdicts(runs),
        runs=[_row(run, best) for run in runs],
        largest_class=best.largest_class,
        best=best,
        curves=curves(runs),
        confusion=confusion_matrix(counts, classes, targets),
        confused=most_confused(counts, classes, targets),
        classes=class_rows(counts, classes, split_counts(dataset.index), gallery.targets),
        dataset=dataset.manifest,
        balance=class_balance(dataset, gallery.targets),
        gallery=gallery,
        mistakes=mistakes,
        mistakes_total=int((~best.hits).sum()),
        test_total=len(best.hits),
        archive=archive,
        archive_labels=_shares(archive.summary.get("labels") or {}),
        rejects=_reject_rows(archive.rejects),
        dataset_rejects=_reject_rows(dataset.rejects),
        origin=[
            ("dataset", f"{dataset.store.root}, version {dataset.manifest.version}"),
            *[(run.name, f"model {run.version.id}") for run in runs],
            *best.version.lineage["libraries"].items(),
        ],
        commands=[reproduce("train", TrainConfig, run.version.lineage["config"]) for run in runs],
    )


def _row(run: EvaluatedRun, best: EvaluatedRun) -> dict[str, Any]:
    version = run.version
    network = version.architecture

    return {
        "best": run is best,
        "name": run.name,
        "model": version.id,
        "network": f"{network.backbone}, cut at {network.cut}",
        "input": network.input_size,
        "weights": version.lineage["weights"] or "random",
        "trained": version.metrics["params_trainable"],
        "total": version.metrics["params_total"],
        "epochs": version.metrics["epochs"],
        "seconds": version.metrics["seconds"],
        "validation": version.metrics["val"]["top1"],
        "accuracy": run.accuracy,
        "never_right": run.never_right,
        "loss": version.metrics["test"]["loss"],
    }


def _shares(labels: dict[str, int]) -> list[dict[str, Any]]:
    """Return a row for each predicted class, the most frequent first."""
    total, longest = sum(labels.values()) or 1, max(labels.values(), default=1) or 1
    return [
        {"name": name, "count": count, "share": count / total, "bar": 100 * count / longest}
        for name, count in sorted(labels.items(), key=lambda item: (-item[1], item[0]))
    ]


def _reject_rows(rejects: pa.Table) -> list[dict[str, Any]]:
    """Return a row for each reason, the most frequent first, with a few rejects."""
    reasons = rejects.column("reason")
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(reasons).to_pylist()}
    return [
        {
            "reason": reason,
            "count": count,
            "examples": rejects.filter(pc.equal(reasons, reason)).slice(0, _REJECTS).to_pylist(),
        }
        for reason, count in sorted(counts.items(), key=lambda item: -item[1])
    ]
