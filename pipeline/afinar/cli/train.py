"""`afinar train DATASET MODELS`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from afinar.cli.arguments import parse
from afinar.cli.run_folder import new_run, table
from afinar.config.train import TrainConfig
from afinar.models.networks.catalogue import require_backbone
from afinar.models.registry.versions import ModelVersion

EXAMPLE = "afinar train dataset/ models/ --backbone resnet18 --regime full --epochs 5"


def configure(words: list[str]) -> TrainConfig:
    """Parse and check."""
    config = parse(TrainConfig, words, "afinar train", EXAMPLE)
    require_backbone(config.backbone)
    return config


def run(config: TrainConfig) -> dict[str, Any]:
    """Train and publish, or with --describe only say what would be trained."""
    if config.describe:
        return _described(config)
    from afinar.dataset.reader import open_dataset
    from afinar.storage.open import open_store

    open_dataset(config.dataset)  # the two ends are looked at before torch is imported
    open_store(config.models).require_target()
    from afinar.training.task import plan_training

    task = plan_training(config, new_run())  # checks the cut, still without Ray
    from afinar.execution.train_launcher import train_on_ray
    from afinar.training.publish import finish

    version, outcome, seconds = train_on_ray(task)
    _write_report(task.config, version)
    finish(task, outcome)
    return {
        "model": f"{open_store(config.models).root}@{version.id}",
        "version": version.version,
        "params_total": outcome.params_total,
        "params_trainable": outcome.params_trainable,
        "epochs": len(outcome.history),
        "metrics": outcome.metrics,
        "temperature": outcome.temperature,
        "stall_fraction": round(outcome.stall_fraction, 4),
        "limit": outcome.history[-1]["ledger"]["limit"],
        "weights": version.lineage["weights"],
        "architecture": asdict(version.architecture),
        "run": open_store(config.models).uri(version.lineage["run"]),
        "report": open_store(config.models).uri(f"{version.lineage['run']}/report.html"),
        "seconds": round(seconds, 1),
    }


def _write_report(config: TrainConfig, version: ModelVersion) -> None:
    from afinar.dataset.reader import open_dataset
    from afinar.evaluation.comparison import read_run
    from afinar.report.page import run_page
    from afinar.storage.open import open_store

    store = open_store(config.models)
    learned = version.lineage["dataset"]
    dataset = open_dataset(learned["uri"], version=learned["version"])
    page = run_page(
        f"{version.architecture.backbone}, {version.regime}: model {version.id}",
        dataset,
        read_run(store, version),
    )
    store.put_if_absent(f"{version.lineage['run']}/report.html", page.encode())


def describe(summary: dict[str, Any]) -> str:
    """The summary for a person."""
    if "nodes" in summary:
        return _nodes_and_totals(summary)
    network = summary["architecture"]
    rows = [
        ("model", summary["model"]),
        (
            "network",
            f"{network['backbone']} cut at {network['cut']}, {network['head']} head, {network['input_size']} px",
        ),
        ("weights", summary["weights"] or "random"),
        (
            "parameters",
            f"{summary['params_total']:,}, of which {summary['params_trainable']:,} trained",
        ),
    ]
    for split, score in summary["metrics"].items():
        rows.append(
            (
                split,
                f"top-1 {score['top1']:.1%}, loss {score['loss']:.3f}, macro F1 {score['macro_f1']:.3f}",
            )
        )
    rows += [
        ("report", summary["report"]),
        (
            "time",
            f"{summary['seconds']:.1f} s, {summary['epochs']} epochs, {summary['stall_fraction']:.1%} waiting for data",
        ),
        ("limit", summary["limit"]),
    ]
    return table(rows)


def _described(config: TrainConfig) -> dict[str, Any]:
    classes = 2 if config.output == "sigmoid" else 1000
    if config.dataset:
        from afinar.dataset.reader import open_dataset

        classes = len(open_dataset(config.dataset).classes)
    from afinar.models.networks.describe import describe_network

    return describe_network(config, classes)


def _nodes_and_totals(summary: dict[str, Any]) -> str:
    rows = [("node", "shape", "parameters", "stage")]
    for node in summary["nodes"]:
        shape = " x ".join(map(str, node["shape"]))
        stage = node["stage"] or "behind the cut"
        mark = "  <- cut" if node["node"] == summary["cut"] else ""
        rows.append(
            (
                node["node"],
                shape,
                f"{node['parameters']:,}" if node["parameters"] else "",
                stage + mark,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}"
        for row in rows
    ]
    total, trained = summary["params_total"], summary["params_trainable"]
    facts = [
        ("network", f"{summary['backbone']} cut at {summary['cut']}, {summary['input_size']} px"),
        ("head", f"{summary['params_head']:,} parameters for {summary['classes']} classes"),
        ("parameters", f"{total:,}, of which {summary['regime']} trains {trained:,}"),
    ]
    return "\n".join([*lines, "", table(facts)])
