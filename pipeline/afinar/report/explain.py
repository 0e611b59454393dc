"""Run folder of `explain`: page, summary, and all results as JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from afinar.config.base import as_dict
from afinar.config.explain import ExplainConfig
from afinar.errors import StorageError
from afinar.explain.driver import (
    AdversarialOutcome,
    FeaturesOutcome,
    IdealOutcome,
    RobustnessOutcome,
    SaliencyOutcome,
)
from afinar.explain.job import ExplainOutcome
from afinar.logs import log_settings
from afinar.report import explain_attacks as attacks
from afinar.report import explain_blocks as blocks
from afinar.report.blocks import Block
from afinar.report.command import reproduce
from afinar.report.rendering import template
from afinar.report.run_folder import record_run, report_uri
from afinar.storage.names import new_run

METHODS = {
    "features": "What layers see",
    "ideal": "Ideal pictures",
    "adversarial": "Adversarial pictures",
    "saliency": "What predictions rest on",
}


def record_explanation(
    method: str, config: ExplainConfig, outcome: ExplainOutcome[Any]
) -> dict[str, Any]:
    """Write the run folder of an outcome, and return its summary as JSON values."""
    run = log_settings().run or new_run()
    out, name = outcome.store.root, f"runs/{run}/explanations.json"
    results = _results(outcome)
    body = json.dumps(
        {"method": method, "results": results, "rejects": _rejects(outcome)}, indent=1
    )
    if not outcome.store.put_if_absent(name, body.encode()):
        raise StorageError(f"{outcome.store.uri(name)} exists already")
    summary: dict[str, Any] = {
        "explained": len(outcome.results),
        "method": method,
        "model": outcome.model.spec.model,
        "out": out,
        "computed": outcome.computed,
        "rejected": len(outcome.rejects),
        "seconds": outcome.seconds,
        "notes": outcome.notes,
        "results": outcome.store.uri(name),
        "report": report_uri(out, run),
    }
    if isinstance(outcome, RobustnessOutcome):
        summary["accuracy"] = [
            {"epsilon": entry.epsilon, **dataclasses.asdict(entry.accuracy)}
            for entry in attacks.robust_accuracies(outcome)
        ]
    record_run(out, run, config, summary, explanation_page(method, config, outcome, summary))
    return summary


def _results(outcome: ExplainOutcome[Any]) -> list[dict[str, Any]]:
    return [
        {
            "unit": stored.unit,
            **dataclasses.asdict(stored.result),
            "pictures": {name: ref.path for name, ref in stored.pictures.items()},
        }
        for stored in outcome.results
    ]


def _rejects(outcome: ExplainOutcome[Any]) -> list[dict[str, str]]:
    return [
        {"uri": reject.title, "reason": reject.reason, "detail": reject.detail}
        for reject in outcome.rejects
    ]


def explanation_page(
    method: str, config: ExplainConfig, outcome: ExplainOutcome[Any], summary: dict[str, Any]
) -> str:
    """Return the page of a run."""
    head, sections = _content(outcome)
    version = outcome.model.version
    facts = [
        ("model", outcome.model.spec.model),
        ("network", version.architecture.backbone if version else outcome.model.spec.backbone),
        ("classes", f"{len(outcome.model.classes):,}"),
        ("pixels", f"{outcome.model.stored_view.size} × {outcome.model.stored_view.size}"),
    ]
    if not version:
        facts.append(("weights", outcome.model.spec.weights))
    return template("explain.html.j2").render(
        title=f"{METHODS[method]}: {outcome.model.spec.model.rsplit('/', 1)[-1]}",
        summary=summary,
        head=head,
        sections=sections,
        shown=min(len(outcome.results), blocks.SHOWN),
        is_whole=isinstance(outcome, RobustnessOutcome | IdealOutcome),
        rejects=_rejects(outcome)[: blocks.SHOWN],
        facts=facts,
        command=reproduce(f"explain {method}", type(config), as_dict(config)),
    )


def _content(outcome: ExplainOutcome[Any]) -> tuple[blocks.Summary, list[Block]]:
    match outcome:
        case FeaturesOutcome():
            return blocks.features_summary(outcome), blocks.features_blocks(outcome)
        case IdealOutcome():
            return blocks.ideal_summary(outcome), blocks.ideal_blocks(outcome)
        case AdversarialOutcome():
            return attacks.adversarial_summary(outcome), attacks.adversarial_blocks(outcome)
        case RobustnessOutcome():
            return attacks.robustness_summary(outcome), attacks.robustness_blocks(outcome)
        case SaliencyOutcome():
            return blocks.saliency_summary(outcome), blocks.saliency_blocks(outcome)
    raise TypeError(f"{type(outcome).__name__} has no page")
