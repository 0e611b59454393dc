"""`afinar explain METHOD …`: features, ideal, adversarial, saliency."""

from __future__ import annotations

from typing import Any, Final

from afinar.cli.arguments import parse
from afinar.cli.formatting import format_columns, format_notes, format_table
from afinar.config.explain import (
    ExplainAdversarialConfig,
    ExplainConfig,
    ExplainFeaturesConfig,
    ExplainIdealConfig,
    ExplainSaliencyConfig,
)
from afinar.errors import RequestError
from afinar.execution.executor import JobExecutor

INTERRUPTED = "what is computed is kept; the same command continues"

_CONFIGS: Final[dict[str, type[ExplainConfig]]] = {
    "features": ExplainFeaturesConfig,
    "ideal": ExplainIdealConfig,
    "adversarial": ExplainAdversarialConfig,
    "saliency": ExplainSaliencyConfig,
}
_EXAMPLES: Final = {
    "features": "afinar explain features cat.jpg --model imagenet:vgg16 --out explained/",
    "ideal": "afinar explain ideal --class rust,moss --model models/@champion --out explained/",
    "adversarial": """afinar explain adversarial dog.jpg --target tabby --model imagenet:resnet50 \\
    --out explained/
  afinar explain adversarial dataset/ --model models/@champion --out explained/""",
    "saliency": """afinar explain saliency scan.jpg --model models/@champion --out explained/
  afinar explain saliency dataset/ --model models/@champion --out explained/""",
}
_PURPOSES: Final = {
    "features": "activations of layers for pictures, strongest channels first",
    "ideal": "the picture that a class or a channel responds to most",
    "adversarial": "changes of a few levels that make a model err; accuracy against their size",
    "saliency": "the parts of a picture that a prediction rests on, with checks",
}


def configure(argv: list[str]) -> ExplainConfig:
    """Parse the arguments. Exits with 0 after --help."""
    if not argv or argv[0] in {"-h", "--help"}:
        print(_overview())  # noqa: T201
        raise SystemExit(0 if argv else 2)
    method = argv[0]
    if method not in _CONFIGS:
        raise RequestError(f"explain {method!r}: choose {', '.join(_CONFIGS)}")
    return parse(_CONFIGS[method], argv[1:], f"afinar explain {method}", _EXAMPLES[method])


def _overview() -> str:
    width = max(map(len, _PURPOSES))
    lines = [f"  {name:<{width}}  {purpose}" for name, purpose in _PURPOSES.items()]
    return "\n".join(
        [
            "usage: afinar explain METHOD … --model MODEL --out DIR",
            "",
            "Show what a model sees. MODEL is MODELS@VERSION, or imagenet:BACKBONE for a plain",
            "backbone. Methods write PNG, JSON and one page; a rerun computes what is missing.",
            "",
            *lines,
            "",
            "afinar explain METHOD --help lists the flags.",
        ]
    )


def run(config: ExplainConfig) -> dict[str, Any]:
    """Explain, write the page, and return the summary."""
    # A wrong model is refused before torch is imported, which takes seconds.
    from afinar.explain import driver
    from afinar.explain.job import ExplainOutcome
    from afinar.report.explain import record_explanation

    executor = JobExecutor(config)
    match config:
        case ExplainFeaturesConfig():
            outcome: ExplainOutcome[Any] = driver.explain_features(config, executor)
        case ExplainIdealConfig():
            outcome = driver.explain_ideal(config, executor)
        case ExplainAdversarialConfig():
            outcome = driver.explain_adversarial(config, executor)
        case ExplainSaliencyConfig():
            outcome = driver.explain_saliency(config, executor)
        case _:
            raise TypeError(f"{type(config).__name__} is no method")
    return record_explanation(_method_of(config), config, outcome)


def _method_of(config: ExplainConfig) -> str:
    return next(name for name, kind in _CONFIGS.items() if isinstance(config, kind))


def describe(summary: dict[str, Any]) -> str:
    """Return the summary as text."""
    rows = [
        ("method", summary["method"]),
        ("model", summary["model"]),
        ("explained", f"{summary['explained']} units, {summary['computed']} computed by this run"),
        ("rejected", str(summary["rejected"])),
        ("results", summary["results"]),
        ("time", f"{summary['seconds']} s"),
        ("report", summary["report"]),
    ]
    parts = [format_table(rows)]
    if "accuracy" in summary:
        table = [("levels of 255", "accuracy, at most", "95 % interval")]
        table += [
            (
                f"{row['epsilon']:g}",
                f"{row['value']:.1%}",
                f"{row['low']:.1%} to {row['high']:.1%}",
            )
            for row in summary["accuracy"]
        ]
        parts += ["", format_columns(table)]
    return "\n".join([*parts, *format_notes(summary["notes"])])
