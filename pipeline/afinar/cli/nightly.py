"""`afinar nightly --recipe nightly.toml`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from afinar.cli.arguments import parse
from afinar.cli.formatting import format_table
from afinar.config.base import ClusterJobConfig
from afinar.config.ingest import IngestConfig
from afinar.config.nightly import NightlyConfig
from afinar.config.recipes import load_recipe
from afinar.config.train import TrainConfig
from afinar.execution.executor import JobExecutor
from afinar.execution.shared import share_workers
from afinar.models.networks.catalogue import require_backbone
from afinar.units.executor import Executor

if TYPE_CHECKING:
    from afinar.training.driver import TrainOutcome
    from afinar.training.task import TrainTask

_LABELLING_WORKER: Final = "afinar.labelling.worker"
INTERRUPTED = "the same command continues the night"
EXAMPLE = "afinar nightly --recipe nightly.toml"


def configure(argv: list[str]) -> NightlyConfig:
    """Parse the arguments."""
    config = parse(NightlyConfig, argv, "afinar nightly", EXAMPLE)
    require_backbone(config.backbone)
    if config.training:
        load_recipe(TrainConfig, config.training)  # a mistake in it is found before the night
    return config


def run(config: NightlyConfig) -> dict[str, Any]:
    """Run a night and write its page, or renew the test set; return the summary."""
    from afinar.nightly.frozen import renew_test
    from afinar.nightly.night import run_night
    from afinar.nightly.steps import Services

    if config.action == "renew-test":
        return asdict(renew_test(config))

    services = Services(
        executor=_executor, launch=_launch, write_training_page=_write_training_page
    )
    with share_workers():
        record = run_night(config, services)
    nights = config.nights.rstrip("/")
    return {
        **asdict(record),
        "nights": config.nights,
        "report": f"{nights}/{record.night}/report.html",
        "index": f"{nights}/index.html",
    }


def _executor(config: ClusterJobConfig) -> Executor:
    # After an ingest the champion labels the new pictures.
    return JobExecutor(config, _LABELLING_WORKER if isinstance(config, IngestConfig) else "")


def _launch(task: TrainTask) -> None:
    # Imported here, so that a night without change imports neither ray nor torch.
    from afinar.execution.local_training import launch

    launch(task)


def _write_training_page(outcome: TrainOutcome) -> None:
    from afinar.report.training import write_training_page

    write_training_page(outcome)


def _version(number: int | None) -> str:
    return "none" if number is None else f"version {number}"


def describe(summary: dict[str, Any]) -> str:
    """Return the summary as text."""
    if "ids" in summary:
        return f"test set {summary['number']}: {summary['pictures']} pictures"
    gate = summary["steps"].get("gate") or {}
    rows = [
        ("night", summary["night"]),
        ("outcome", summary["outcome"]),
        *[("", reason) for reason in summary["reasons"]],
        ("champion", _version(summary["champion"])),
    ]
    if summary["candidate"] is not None:
        rows.append(("candidate", f"version {summary['candidate']}"))
    if gate.get("smallest_gain") is not None:
        gain = f"{100 * gate['smallest_gain']:.1f} points on {gate['test_pictures']} test pictures"
        rows.append(("smallest gain", f"{gain} could have been shown tonight"))
    for key, name in (("score", "candidate"), ("champion_score", "champion")):
        if score := gate.get(key):
            value = (
                f"{score['value']:.1%} (95 % interval {score['low']:.1%} to {score['high']:.1%})"
            )
            rows.append(("accuracy", f"{name} {value}, on test pictures that no gate uses"))
    alarms = (summary["steps"].get("watch") or {}).get("alarms", [])
    rows += [("alarm", alarm) for alarm in alarms]
    labelled = summary["steps"].get("label") or {}
    if "labelled" in labelled:
        rows.append(("labelled", f"{labelled['labelled']} of {labelled['listed']} in the archive"))
    rows += [("time", f"{summary['seconds']:.1f} s"), ("report", summary["report"])]
    return format_table(rows)
