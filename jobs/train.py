"""`afinar train DATASET MODELS`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from jobs.command_line import parse
from jobs.records import new_run, table
from pipeline.config import TrainConfig, check_train
from pipeline.models.catalogue import require_backbone

EXAMPLE = "afinar train dataset/ models/ --backbone resnet18 --regime full --epochs 5"


def configure(words: list[str]) -> TrainConfig:
    """Parse and check."""
    config = parse(TrainConfig, words, "afinar train", EXAMPLE)
    check_train(config)
    require_backbone(config.backbone)
    return config


def run(config: TrainConfig) -> dict[str, Any]:
    """Train and publish."""
    from pipeline.dataset.reading import open_dataset
    from pipeline.storage.store import open_store

    open_dataset(config.dataset)  # the two ends are looked at before torch is imported
    open_store(config.models).require_target()
    from pipeline.training.job import plan_training

    task = plan_training(config, new_run())  # checks the cut, still without Ray
    from pipeline.execution.train import train_on_ray

    version, outcome, seconds = train_on_ray(task)
    return {
        "model": f"{open_store(config.models).root}@{version.id}",
        "version": version.version,
        "params_total": outcome.params_total,
        "params_trainable": outcome.params_trainable,
        "epochs": len(outcome.history),
        "metrics": outcome.metrics,
        "weights": version.lineage["weights"],
        "architecture": asdict(version.architecture),
        "run": open_store(config.models).uri(version.lineage["run"]),
        "seconds": round(seconds, 1),
    }


def describe(summary: dict[str, Any]) -> str:
    """The summary for a person."""
    network = summary["architecture"]
    rows = [
        ("model", summary["model"]),
        (
            "network",
            f"{network['backbone']} cut at {network['cut']}, {network['head']} head, {network['input_size']} px",
        ),
        ("weights", summary["weights"] or "random"),
        ("parameters", f"{summary['params_total']:,}, of which {summary['params_trainable']:,} trained"),
    ]
    for split, score in summary["metrics"].items():
        rows.append((split, f"top-1 {score['top1']:.1%}, loss {score['loss']:.3f}"))
    rows += [("run", summary["run"]), ("time", f"{summary['seconds']:.1f} s, {summary['epochs']} epochs")]
    return table(rows)
