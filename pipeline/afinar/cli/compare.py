"""`afinar compare DATASET RUNS`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from afinar.cli.arguments import parse
from afinar.cli.formatting import format_columns, format_notes, format_size, format_table
from afinar.config.compare import CompareConfig
from afinar.execution.executor import JobExecutor
from afinar.logs import wrap
from afinar.models.networks.catalogue import require_backbone

if TYPE_CHECKING:
    from afinar.training.task import TrainTask

INTERRUPTED = "the same command continues; finished rows are not computed again"
EXAMPLE = """afinar compare dataset/ runs/ --backbone resnet18 --cut auto,layer3
  afinar compare dataset/ runs/ --regime frozen,last:1,full,scratch --publish best
  afinar compare fabric/,photos/ runs/ --regime frozen,scratch"""

_HEADING: Final = (
    *("row", "network", "head", "regime", "seeds", "val", "test (95 %)", "macro F1"),
    *("s", "pictures/s", "size", ""),
)


def configure(argv: list[str]) -> CompareConfig:
    """Parse the arguments, and check the names of the backbones."""
    config = parse(CompareConfig, argv, "afinar compare", EXAMPLE)
    for backbone in config.backbones:
        require_backbone(backbone)
    return config


def run(config: CompareConfig) -> dict[str, Any]:
    """Compute what is missing, write table and page, and return the summary."""
    # Check the dataset before torch is imported, which takes seconds.
    from afinar.dataset.reader import open_dataset

    for dataset in config.datasets:
        open_dataset(dataset)

    from afinar.comparison.driver import run_compare
    from afinar.execution.training_room import open_training_room
    from afinar.report.compare import record_comparisons
    from afinar.report.training import write_training_page

    outcomes = run_compare(
        config,
        JobExecutor(config),
        _launch,
        open_room=partial(open_training_room, config),
        on_published=write_training_page,
    )
    return record_comparisons(outcomes)


def _launch(task: TrainTask) -> None:
    from afinar.execution.local_training import launch

    launch(task)


def describe(summary: dict[str, Any]) -> str:
    """Return the table and the sentences of each dataset as text."""
    several = "datasets" in summary
    parts = []
    for part in summary["datasets"] if several else [summary]:
        lines: list[tuple[str, ...]] = [_HEADING]
        lines += [_columns(row) for row in [*part["rows"], *part["learning_curve"]]]
        texts = [part["recommendation"], *_transfer_lines(part)]
        heading = [f"{part['dataset']}, version {part['version']}", ""] if several else []
        parts += [*heading, format_columns(lines), "", *map(wrap, texts)]
        parts += [*format_notes(part["notes"]), ""]
    facts = [
        ("cells", f"{summary['cells']}, of which {summary['computed']} computed now"),
        ("time", f"{summary['seconds']:.1f} s"),
        ("report", summary["report"]),
    ]
    if summary["published"]:
        facts.append(("published", summary["published"]))
        facts.append(("its report", summary["published_report"]))
    return "\n".join([*parts, format_table(facts)])


def _transfer_lines(summary: dict[str, Any]) -> list[str]:
    return [summary["transfer"]["sentence"]] if summary["transfer"] else []


def _columns(row: dict[str, Any]) -> tuple[str, ...]:
    test, f1 = row["test"], row["macro_f1"]
    pool = "" if row["pool"] == "average" else f" ({row['pool']})"
    share = f" {row['fraction']:.0%}" if row["fraction"] < 1 else ""
    marks = [
        name
        for name, holds in (
            ("Pareto", row["pareto"]),
            ("within noise", row["within_noise"]),
            (f"stopped {row['stopped']}", bool(row["stopped"])),
        )
        if holds
    ]
    return (
        str(row["number"]),
        f"{row['backbone']} {row['cut']}{pool}",
        row["head"] + (" (refit)" if row["refit"] else ""),
        f"{row['regime']}{share}",
        str(len(row["seeds"])),
        f"{row['val']:.1%}",
        f"{test['value']:.1%} ({test['low']:.1%}–{test['high']:.1%})",
        f"{f1['value']:.3f}",
        f"{row['feature_seconds']:.0f}+{row['seconds']:.1f}",
        f"{row['images_per_second']:.0f}",
        format_size(row["bytes"]),
        ", ".join(marks),
    )
