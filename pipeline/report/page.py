"""One HTML page from a comparison: self-contained, needs no network, escapes whatever a picture may be called."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.reading import Dataset
from pipeline.evaluation.comparison import RunResult, best_run, verdicts
from pipeline.report.plots import confusion_matrix, curves, thumbnail

_PER_CLASS = 6
_MISTAKES = 12
_REJECTS = 50


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


def comparison_page(title: str, dataset: Dataset, runs: list[RunResult], archive: LabelledArchive) -> str:
    """Render the report of a comparison of regimes and of the archive labelled with the best of them."""
    best = best_run(runs)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(files("pipeline.report").joinpath("page.html.j2").read_text(encoding="utf-8"))
    return template.render(
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


def _gallery(dataset: Dataset) -> dict[str, list[Tile]]:
    """The first samples of every class by content hash, which is as good as drawn at random."""
    index = dataset.index.append_column("position", pa.array(range(len(dataset.index))))
    gallery = {}
    for name in dataset.classes:
        chosen = index.filter(pc.equal(index.column("label"), name)).sort_by("sample_id").slice(0, _PER_CLASS)
        images = dataset.read(chosen.column("position").to_pylist())
        tiles = zip(images, chosen.column("uri").to_pylist(), chosen.column("split").to_pylist(), strict=True)
        gallery[name] = [Tile(data_uri(thumbnail(image), "jpeg"), uri, split) for image, uri, split in tiles]
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
