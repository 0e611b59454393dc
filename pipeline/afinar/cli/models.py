"""`afinar models MODELS [list | show | promote | rollback | retire | export]`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final

from afinar.cli.arguments import parse
from afinar.cli.formatting import format_columns, format_table
from afinar.config.models import ModelsConfig
from afinar.config.train import TrainConfig
from afinar.logs import wrap

_NO_OPTIONS: Final = frozenset({"dataset", "models", "recipe", "json", "address"})
EXAMPLE = "afinar models models/ promote 3 --why 'fewer mistakes on the new camera'"


def configure(argv: list[str]) -> ModelsConfig:
    """Parse the arguments."""
    return parse(ModelsConfig, argv, "afinar models", EXAMPLE)


def run(config: ModelsConfig) -> dict[str, Any]:
    """Carry out the action, and return the summary."""
    from afinar.report.index import write_index
    from afinar.report.models import run_models

    summary = run_models(config)
    if config.action in {"promote", "rollback", "retire"}:
        write_index(config.models)  # it marks the champion
    return summary


def describe(summary: dict[str, Any]) -> str:
    """Return the summary as text."""
    if "file" in summary:
        return (
            f"{summary['file']}: {summary['format']}, {summary['bytes'] / 1e6:.1f} MB, "
            f"of {summary['models']}@{summary['id']}\n"
            f"golden samples: probabilities within {summary['difference']:.1g}"
        )
    return _list(summary) if "versions" in summary else _show(summary)


def _list(summary: dict[str, Any]) -> str:
    rows = [("", "model", "regime", "backbone", "dataset", "validation", "test", "trained")]
    for row in summary["versions"]:
        rows.append(
            (
                "*" if row["version"] == summary["champion"] else "",
                f"{row['id']} (retired)" if row["retired"] else row["id"],
                row["regime"],
                row["backbone"],
                f"version {row['dataset_version']}" if row["dataset_version"] else "",
                _share(row["val_top1"]),
                _share(row["test_top1"]),
                row["created"][:16].replace("T", " "),
            )
        )
    why = f": {summary['why']}" if summary["why"] else ""
    champion = "no champion: choose one with `afinar models MODELS promote NUMBER`"
    if summary["champion"] is not None:
        champion = f"* champion, version {summary['champion']}{why}"
    lines = [format_columns(rows), "", wrap(champion)]
    others = [
        f"@{name} is version {version}"
        for name, version in summary["aliases"].items()
        if name != "champion"
    ]
    lines += [wrap(", ".join(others))] if others else []
    if "moved" in summary:
        lines.append(f"@{summary['moved']} is version {summary['to']}: {summary['seconds']:.2f} s")
    return "\n".join(lines)


def _show(summary: dict[str, Any]) -> str:
    champion = " (champion)" if summary["champion"] else ""
    lineage = summary["lineage"]
    rows = [
        ("model", f"{summary['models']}@{summary['id']}{champion}"),
        ("network", f"{summary['backbone']} cut at {summary['cut']}, {summary['regime']}"),
        ("classes", ", ".join(summary["class_names"])),
        ("validation", _share(summary["val_top1"], summary["val_interval"])),
        ("test", _share(summary["test_top1"], summary["test_interval"])),
        ("dataset", f"{summary['dataset']}, version {summary['dataset_version']}"),
        ("parent", lineage.get("parent", "")),
        ("weights", lineage.get("weights") or "random"),
        ("recipe", _recipe(lineage.get("config"))),
        ("software", _versions(lineage.get("libraries"))),
        ("trained", summary["created"]),
        ("report", summary["report"]),
    ]
    if "at" in summary:
        since = f"since {summary['since']} ({summary['why']})"
        rows.insert(0, (f"@{summary['alias']}", f"at {summary['at']}, {since}"))
    rows += [("decided", _decision(decision)) for decision in summary["decisions"]]
    rows += [("promoted", _promotion(moved)) for moved in summary["promotions"]]
    if summary["retired"]:
        rows.append(("retired", _promotion(summary["retired"])))
    return format_table([(name, value) for name, value in rows if value])


def _recipe(options: Any) -> str:
    """Return the options of a training that differ from their defaults."""
    if not isinstance(options, dict):
        return ""
    defaults = {field.name: field.default for field in fields(TrainConfig)}
    changed = {
        name: value
        for name, value in options.items()
        if name in defaults.keys() - _NO_OPTIONS and value != defaults[name]
    }
    return ", ".join(f"{name} = {value!r}" for name, value in sorted(changed.items()))


def _versions(libraries: Any) -> str:
    if not isinstance(libraries, dict):
        return ""
    return ", ".join(f"{name} {version}" for name, version in libraries.items())


def _decision(decision: dict[str, Any]) -> str:
    reasons = "; ".join(decision["reasons"])
    return f"{decision['created']} {decision['outcome']} by {decision['night']}: {reasons}"


def _promotion(moved: dict[str, str]) -> str:
    alias = moved.get("alias", "champion")
    name = "" if alias == "champion" else f"@{alias}"
    return " ".join(filter(None, (name, moved["created"], moved["actor"], moved["why"])))


def _share(value: float | None, interval: tuple[float, float] | None = None) -> str:
    text = "" if value is None else f"{value:.1%}"
    if interval:
        low, high = interval
        text += f" (95 % interval {low:.1%} to {high:.1%})"
    return text
