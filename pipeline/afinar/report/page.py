"""A training or a comparison as one HTML page: self-contained, and whatever a picture may be called stays text."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from afinar.dataset.reader import Dataset
from afinar.evaluation.comparison import RunResult, best_run, verdicts
from afinar.evaluation.intervals import calibration_error, reliability
from afinar.report.plots import confusion_matrix, curves, reliability_diagram, thumbnail
from afinar.report.rendering import template
from afinar.units.progress import format_duration

_PER_CLASS = 6
_MISTAKES = 12
_REJECTS = 50
_MATRIX_CLASSES = 30  # of more, a matrix cannot be read, and of a thousand not be drawn
_CONFUSED = 20
_LEDGER = {
    "first_batch_s": "first batch",
    "waiting_s": "waiting for data",
    "copy_s": "copying",
    "augment_s": "augmenting",
    "prepare_s": "preparing",
    "compute_s": "computing",
    "seconds": "in all",
}


@dataclass(frozen=True)
class Tile:
    """One picture of a gallery with its caption."""

    image: str
    title: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class LabelledArchive:
    """What the report says of a labelling. `note` is a sentence on how right it was, where that is known."""

    summary: dict[str, Any]
    rejects: pa.Table
    note: str = ""
    mistakes: list[Tile] = field(default_factory=list)


def comparison_page(
    title: str, dataset: Dataset, runs: list[RunResult], archive: LabelledArchive
) -> str:
    """Render the report of a comparison of regimes and of the archive labelled with the best of them."""
    best = best_run(runs)
    return template("comparison.html.j2").render(
        title=title,
        verdicts=verdicts(runs),
        runs=[_row(run, best) for run in runs],
        best=best,
        curves=data_uri(curves(runs), "png"),
        confusion=data_uri(confusion_matrix(best.confusion, best.version.classes), "png"),
        dataset=dataset.manifest,
        gallery=_gallery(dataset),
        mistakes=_mistakes(dataset, best),
        mistakes_total=int((~best.hits).sum()),
        test_total=len(best.hits),
        archive=archive,
        rejects=archive.rejects.slice(0, _REJECTS).to_pylist(),
        dataset_rejects=dataset.rejects.slice(0, _REJECTS).to_pylist(),
    )


def run_page(title: str, dataset: Dataset, run: RunResult) -> str:
    """Render the report of one training. `dataset` is the version that it learned from.

    What an older run did not keep (recall by class, the ledger of its epochs) is left out.
    """
    version, counts = run.version, run.confusion
    bins = reliability(
        run.test.column("score").to_numpy(),
        pc.equal(run.test.column("label"), run.test.column("predicted")).to_numpy(),
    )
    drawn = len(version.classes) <= _MATRIX_CLASSES
    ledger = _ledger(run.history)
    return template("run.html.j2").render(
        title=title,
        version=version,
        numbers=_numbers(run),
        curves=data_uri(curves([run]), "png"),
        mistakes=_mistakes(dataset, run),
        mistakes_total=int((~run.hits).sum()),
        test_total=len(run.hits),
        recalls=_recalls(run),
        confusion=data_uri(confusion_matrix(counts, version.classes), "png") if drawn else None,
        confusion_width=250 + 85 * len(version.classes),
        confused=_most_confused(counts, version.classes),
        calibration_error=calibration_error(bins),
        reliability=data_uri(reliability_diagram(bins), "png"),
        ledger=ledger,
        limit=ledger["limit"] if ledger else None,
        dataset=dataset.manifest,
        configuration={
            name.replace("_", "-"): value for name, value in version.lineage["config"].items()
        },
    )


def data_uri(data: bytes, kind: str) -> str:
    """Bytes of an image as an address that a page can hold."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _row(run: RunResult, best: RunResult) -> dict[str, Any]:
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
        "loss": version.metrics["test"]["loss"],
    }


def _numbers(run: RunResult) -> list[tuple[str, str]]:
    """The headline figures, those that the run has."""
    metrics, accuracy = run.version.metrics, run.accuracy
    test = metrics["test"]
    numbers = [
        (f"test top-1 ({accuracy.low:.1%} – {accuracy.high:.1%})", f"{accuracy.value:.1%}"),
        ("validation top-1", f"{metrics['val']['top1']:.1%}"),
    ]
    for name, key, form in (
        ("test top-5", "top5", ".1%"), ("test macro F1", "macro_f1", ".3f"), ("test AUROC", "auroc", ".3f"),
        ("test loss", "loss", ".3f"),
    ):  # fmt: skip
        if test.get(key) is not None:
            numbers.append((name, format(test[key], form)))
    return [
        *numbers,
        ("epochs", str(metrics["epochs"])),
        ("trained in", format_duration(metrics["seconds"])),
    ]


def _recalls(run: RunResult) -> list[dict[str, Any]]:
    """A row for each class, the lowest recall first, classes without samples last; empty where the run has none."""
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


def _most_confused(counts: NDArray[np.int64], classes: list[str]) -> list[tuple[str, str, int]]:
    wrong = counts - np.diag(np.diag(counts))
    pairs = np.argwhere(wrong)
    pairs = pairs[np.argsort(-wrong[tuple(pairs.T)], kind="stable")][:_CONFUSED]
    return [
        (classes[true], classes[predicted], int(wrong[true, predicted]))
        for true, predicted in pairs
    ]


def _ledger(history: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Where the time of each epoch went, and the last one's sentence on it."""
    kept = [(row["epoch"], row["ledger"]) for row in history if row.get("ledger")]
    if not kept:
        return None
    return {
        "columns": list(_LEDGER.values()),
        "rows": [
            {"epoch": epoch, "seconds": [spent.get(name) for name in _LEDGER]}
            for epoch, spent in kept
        ],
        "limit": kept[-1][1].get("limit"),
    }


def _gallery(dataset: Dataset) -> dict[str, list[Tile]]:
    """The first samples of every class by content hash, which is as good as drawn at random."""
    index = dataset.index.append_column("position", pa.array(range(len(dataset.index))))
    gallery = {}
    for name in dataset.classes:
        chosen = (
            index.filter(pc.equal(index.column("label"), name))
            .sort_by("sample_id")
            .slice(0, _PER_CLASS)
        )
        images = dataset.read(chosen.column("position").to_pylist())
        tiles = zip(
            images,
            chosen.column("uri").to_pylist(),
            chosen.column("split").to_pylist(),
            strict=True,
        )
        gallery[name] = [
            Tile(data_uri(thumbnail(image), "jpeg"), uri, split) for image, uri, split in tiles
        ]
    return gallery


def _mistakes(dataset: Dataset, run: RunResult) -> list[Tile]:
    """The wrong test predictions that the model was surest of."""
    test = run.test
    wrong = test.filter(pc.not_equal(test.column("label"), test.column("predicted")))
    wrong = wrong.sort_by([("score", "descending")]).slice(0, _MISTAKES)
    if not len(wrong):
        return []
    images = dataset.read(wrong.column("row").to_pylist())
    uris = dataset.index.column("uri").take(wrong.column("row").combine_chunks()).to_pylist()
    return [
        Tile(
            data_uri(thumbnail(image), "jpeg"),
            uri,
            f"{row['label']} taken for {row['predicted']}, {row['score']:.0%} sure",
        )
        for image, uri, row in zip(images, uris, wrong.to_pylist(), strict=True)
    ]
