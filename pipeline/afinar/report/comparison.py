"""Page that compares training runs and shows the archive that the best model labelled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from afinar.dataset.reader import Dataset
from afinar.evaluation.comparison import EvaluatedRun, best_run, verdicts
from afinar.report.pieces import Tile, confusion_table, data_uri, mistake_tiles, tiles
from afinar.report.plots import curves
from afinar.report.rendering import template

_TILES_PER_CLASS: Final = 6
_REJECTS: Final = 50


@dataclass(frozen=True, kw_only=True)
class LabelledArchive:
    """A labelled archive: summary of the job, rejects, and a sentence on its accuracy if known."""

    summary: dict[str, Any]
    rejects: pa.Table
    note: str = ""


def comparison_page(
    title: str, dataset: Dataset, runs: list[EvaluatedRun], archive: LabelledArchive
) -> str:
    """Return the page of runs on one dataset, and of the archive labelled with the best of them."""
    best = best_run(runs)
    return template("comparison.html.j2").render(
        title=title,
        verdicts=verdicts(runs),
        runs=[_row(run, best) for run in runs],
        largest_class=best.largest_class,
        best=best,
        curves=data_uri(curves(runs), "png"),
        confusion=confusion_table(best.confusion, best.version.classes),
        dataset=dataset.manifest,
        gallery={name: _class_tiles(dataset, name) for name in dataset.classes},
        mistakes=mistake_tiles(dataset, best),
        mistakes_total=int((~best.hits).sum()),
        test_total=len(best.hits),
        archive=archive,
        rejects=archive.rejects.slice(0, _REJECTS).to_pylist(),
        dataset_rejects=dataset.rejects.slice(0, _REJECTS).to_pylist(),
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


def _class_tiles(dataset: Dataset, name: str) -> list[Tile]:
    """Return the first samples of a class by content hash: an order that is as good as random."""
    index = dataset.index.append_column("position", pa.array(range(len(dataset.index))))
    samples = index.filter(pc.equal(index.column("label"), name))
    chosen = samples.sort_by("sample_id").slice(0, _TILES_PER_CLASS)
    positions, splits = (chosen.column(column).to_pylist() for column in ("position", "split"))
    return tiles(dataset, positions, splits)
