"""`afinar train DATASET MODELS`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from afinar.cli.arguments import parse
from afinar.cli.formatting import format_table
from afinar.config.train import TrainConfig
from afinar.logs import log_settings
from afinar.models.networks.catalogue import require_backbone
from afinar.training.hyperparameters import format_settings

if TYPE_CHECKING:
    from afinar.training.task import TrainTask

INTERRUPTED = "the same command resumes the training from its newest checkpoint"
EXAMPLE = "afinar train dataset/ models/ --backbone resnet18 --regime full --epochs 5"


def configure(argv: list[str]) -> TrainConfig:
    """Parse the arguments, and check the name of the backbone."""
    config = parse(TrainConfig, argv, "afinar train", EXAMPLE)
    require_backbone(config.backbone)
    return config


def run(config: TrainConfig) -> dict[str, Any]:
    """Train, publish and write the report; with --describe only describe the network."""
    if config.describe:
        return _describe_network(config)

    # Check the request before torch is imported, which takes seconds.
    from afinar.training.request import check_dataset_and_target

    check_dataset_and_target(config)

    from afinar.report.training import summarize_training, write_training_page

    if config.repeats > 1:
        from afinar.training.repeats import run_repeats

        outcome, repeats = run_repeats(config, _launch, on_published=write_training_page)
        return summarize_training(outcome) | {"repeats": repeats.as_dict()}

    from afinar.training.driver import run_training

    run = log_settings().run or None
    outcome = run_training(config, _launch, run, on_published=write_training_page)
    return summarize_training(outcome)


def _launch(task: TrainTask) -> None:
    # Imported here: it imports torch, before which the request is checked.
    from afinar.execution.local_training import launch

    launch(task)


def describe(summary: dict[str, Any]) -> str:
    """Return the summary as text."""
    if "nodes" in summary:
        return _format_network(summary)

    architecture = summary["architecture"]
    network = (
        f"{architecture['backbone']} cut at {architecture['cut']}, {architecture['head']} head, "
        f"{architecture['input_size']} px"
    )
    parameters = f"{summary['params_total']:,}, of which {summary['params_trainable']:,} trained"
    rows = [
        ("model", summary["model"]),
        ("champion", _format_champion(summary)),
        ("network", network),
        ("weights", summary["weights"] or "random"),
        ("parameters", parameters),
        ("settings", _format_settings(summary)),
    ]
    for split, metrics in summary["metrics"].items():
        values = (
            f"top-1 {metrics['top1']:.1%} (always “{metrics['largest_class']}”: "
            f"{metrics['largest_share']:.1%}), loss {metrics['loss']:.3f}, "
            f"macro F1 {metrics['macro_f1']:.3f}"
        )
        rows.append((split, values))
        never_right = [name for name, recall in metrics["recall"].items() if recall == 0]
        if never_right:
            rows.append(("", f"no picture of {', '.join(never_right)} was predicted right"))

    rows += _operating_points(summary["metrics"]["test"].get("binary"))
    if "repeats" in summary:
        rows.append(("repeats", _format_repeats(summary["repeats"])))
    time = (
        f"{summary['seconds']:.1f} s, {summary['epochs']} epochs, "
        f"{summary['stall_fraction']:.1%} waiting for data"
    )
    rows += [("report", summary["report"]), ("time", time), ("limit", summary["limit"])]
    return format_table(rows)


def _format_champion(summary: dict[str, Any]) -> str:
    if summary["promoted"]:
        return f"version {summary['champion']}, this one: {summary['why']}"
    if summary["champion"] is None:
        return f"none: {summary['why']}"
    return f"version {summary['champion']} stays: {summary['why']}"


def _format_settings(summary: dict[str, Any]) -> str:
    settings, epochs = summary["settings"], summary["epochs"]
    workers = settings.get("workers", 1)
    parts = [
        f"{summary['regime']}: {format_settings(settings, epochs)}",
        f"augmentation {settings['augment']}" if epochs and "augment" in settings else "",
        f"{settings['precision']}" if "precision" in settings else "",
        f"{workers} worker{'s' if workers > 1 else ''} on {settings.get('device', 'CPU')}",
        "cut by --time-limit" if settings.get("is_cut") else "",
    ]
    return ", ".join(filter(None, parts))


def _operating_points(binary: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return a row for each operating point of two classes."""
    if binary is None:
        return []
    rows = []
    for point in binary["points"]:
        name = f"{point['measure']} {point['target']:g}"
        if point["threshold"] is None:
            rows.append((name, "not reached on validation"))
            continue
        precision, recall = (point["test"][key] for key in ("precision", "recall"))
        on_test = f"precision {'none' if precision is None else f'{precision:.1%}'}"
        rows.append(
            (
                name,
                f"{binary['positive']} from a probability of {point['threshold']:.4g}: "
                f"{on_test}, recall {recall:.1%} on test",
            )
        )
    return rows


def _format_repeats(repeats: dict[str, Any]) -> str:
    accuracies = [repeat["top1"] for repeat in repeats["seeds"]]
    return (
        f"validation top-1 {min(accuracies):.1%} to {max(accuracies):.1%} over {len(accuracies)} "
        f"seeds, mean {repeats['mean']:.1%} (95 % interval {repeats['low']:.1%} to "
        f"{repeats['high']:.1%}); seed {repeats['published_seed']} is published"
    )


def _describe_network(config: TrainConfig) -> dict[str, Any]:
    classes = 2 if config.output == "sigmoid" else 1000
    if config.dataset:
        from afinar.dataset.reader import open_dataset

        classes = len(open_dataset(config.dataset).classes)
    from afinar.models.networks.describe import describe_network

    return describe_network(config, classes)


def _format_network(summary: dict[str, Any]) -> str:
    """Return the table of nodes, then the totals."""
    rows = [("node", "shape", "parameters", "stage")]
    for node in summary["nodes"]:
        shape = " x ".join(map(str, node["shape"]))
        parameters = f"{node['parameters']:,}" if node["parameters"] else ""
        stage = node["stage"] or "behind the cut"
        if node["node"] == summary["cut"]:
            stage += "  <- cut"
        rows.append((node["node"], shape, parameters, stage))

    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        f"{name:<{widths[0]}}  {shape:<{widths[1]}}  {parameters:>{widths[2]}}  {stage}"
        for name, shape, parameters, stage in rows
    ]

    total, trained = summary["params_total"], summary["params_trainable"]
    totals = [
        ("network", f"{summary['backbone']} cut at {summary['cut']}, {summary['input_size']} px"),
        ("head", f"{summary['params_head']:,} parameters for {summary['classes']} classes"),
        ("parameters", f"{total:,}, of which {summary['regime']} trains {trained:,}"),
    ]
    return "\n".join([*lines, "", format_table(totals)])
