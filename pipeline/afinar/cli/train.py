"""`afinar train DATASET MODELS`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from afinar.cli.arguments import parse
from afinar.cli.formatting import format_columns, format_table
from afinar.config.train import TrainConfig
from afinar.logs import log_settings
from afinar.models.networks.catalogue import require_backbone
from afinar.training.hyperparameters import format_settings

if TYPE_CHECKING:
    from afinar.training.task import TrainTask

INTERRUPTED = "the same command resumes the training from its newest checkpoint"
EXAMPLE = "afinar train dataset/ models/ --backbone resnet18 --time-limit 30"


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
    rows += [("report", summary["report"]), ("time", time)]
    if summary["limit"]:
        rows.append(("limit", summary["limit"]))
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
        "refit on train and validation" if settings.get("refit") else "",
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

    summary = describe_network(config, classes)
    return summary | {
        "all": config.all,
        "stages_trained": config.trainable_stages,
        "is_dataset_given": bool(config.dataset),
    }


def _format_network(summary: dict[str, Any]) -> str:
    """Return the table of stages, or of all nodes, then the totals."""
    stages = list(dict.fromkeys(node["stage"] for node in summary["nodes"] if node["stage"]))
    # The last stage is 1: `last:N` trains those up to N.
    numbers = {stage: len(stages) - position for position, stage in enumerate(stages)}
    nodes = summary["nodes"] if summary["all"] else _by_stage(summary["nodes"])
    trained = len(stages) if summary["stages_trained"] is None else summary["stages_trained"]
    rows = [("last:N", "", "node", "shape", "parameters", "stage")]
    for node in nodes:
        number = numbers.get(node["stage"])
        stage = node["stage"] or "behind the cut"
        rows.append(
            (
                f"{number or ''}",
                "trained" if number and number <= trained else "",
                node["node"],
                " x ".join(map(str, node["shape"])),
                f"{node['parameters']:,}" if node["parameters"] else "",
                stage + ("  <- cut" if node["node"] == summary["cut"] else ""),
            )
        )

    total, trainable = summary["params_total"], summary["params_trainable"]
    hidden = len(summary["nodes"]) - len(nodes)
    head = f"{summary['params_head']:,} parameters for {summary['classes']:,} classes"
    if not summary["is_dataset_given"]:
        head += "; name a DATASET to count with its classes"
    totals = [
        ("network", f"{summary['backbone']} cut at {summary['cut']}, {summary['input_size']} px"),
        ("head", head),
        ("parameters", f"{total:,}, of which {summary['regime']} trains {trainable:,}"),
    ]
    if hidden:
        totals.append(("nodes", f"{hidden} within the stages are not shown: --all shows them"))
    return "\n".join([format_columns(rows), "", format_table(totals)])


def _by_stage(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each stage, that of its last node; behind the cut for each module."""
    rows: dict[tuple[str | None, str], dict[str, Any]] = {}
    for node in nodes:
        module = "" if node["stage"] else node["node"].partition(".")[0]
        key = node["stage"], module
        before = rows.pop(key, {"parameters": 0})
        rows[key] = {**node, "parameters": before["parameters"] + node["parameters"]}
    return list(rows.values())
