"""Model card of a published version: a Markdown page derived from its record alone.

It is written once, beside the report of the training: `runs/<run>/MODEL_CARD.md`. Names of classes
and paths may come from strangers: they are shown as code, in which Markdown and HTML have no
meaning.
"""

from __future__ import annotations

import re
import shlex
import unicodedata
from typing import Final

from afinar.config.train import TrainConfig
from afinar.evaluation.intervals import wilson
from afinar.models.networks.weights import licence_of
from afinar.models.registry.versions import ModelVersion
from afinar.report.command import reproduce
from afinar.storage.store import Store

CARD: Final = "MODEL_CARD.md"

_MAX_TEXT: Final = 200  # characters of a name
_MAX_CLASSES: Final = 100  # rows of the table of recalls
_FEW_SAMPLES: Final = 100
_SPLITS: Final = {"val": "validation", "test": "test"}


def put_model_card(store: Store, version: ModelVersion) -> None:
    """Write the card of a version into its run's folder, unless it is there."""
    card = model_card(store.root, version)
    store.put_if_absent(f"{version.lineage['run']}/{CARD}", card.encode())


def model_card(models: str, version: ModelVersion) -> str:
    """Return the card of a version of `models`. Leaves out what the record does not hold."""
    sections = [
        f"# Model {code(version.id)}",
        _summary(version),
        "## Data\n\n" + _data(version),
        "## Metrics\n\n" + _metrics(version),
        "## Intended use\n\n" + _intended_use(version),
        "## Limits\n\n" + _bullets(_limits(version)),
        "## Weights and licence\n\n" + _licence(version),
        "## How to use it\n\n" + _usage(models, version),
        "## How it was made\n\n" + _making(version),
    ]
    return "\n\n".join(sections) + "\n"


def code(text: object) -> str:
    """Return one line of text as Markdown code, which also fits into a cell of a table.

    Control and formatting characters become U+FFFD. The fence has one backtick more than the
    longest run in the text: a`b gives ``a`b``.
    """
    plain = _plain(text)
    longest = max((len(run) for run in re.findall("`+", plain)), default=0)
    fence = "`" * (longest + 1)
    # Spaces at both ends are removed by readers, and needed beside a backtick.
    padding = " " if plain.startswith("`") or plain.endswith("`") or not plain.strip() else ""
    return f"{fence}{padding}{plain or '(empty)'}{padding}{fence}".replace("|", "\\|")


def _plain(text: object) -> str:
    """Return text as one line of at most 200 characters, without invisible characters."""
    plain = "".join(
        "\N{REPLACEMENT CHARACTER}" if _is_invisible(character) else character
        for character in str(text)
    )
    return plain if len(plain) <= _MAX_TEXT else plain[: _MAX_TEXT - 1] + "…"


def _is_invisible(character: str) -> bool:
    """Return True for control and formatting characters, and separators of lines."""
    category = unicodedata.category(character)
    return category.startswith("C") or category in {"Zl", "Zp"}


def _block(language: str, lines: list[str]) -> str:
    """Return lines as a fenced block. The fence is longer than any run of backticks in them."""
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}{language}", *lines, fence])


def _bullets(sentences: list[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _summary(version: ModelVersion) -> str:
    network = version.architecture
    return (
        f"A classifier of images into {len(version.classes)} classes. Network: "
        f"{code(network.backbone)} cut at {code(network.cut)}, {network.head} head, "
        f"{network.input_size} px; trained as {code(version.regime)}."
    )


def _data(version: ModelVersion) -> str:
    trained_on, view = version.lineage.get("dataset") or {}, version.stored_view
    names = [code(name) for name in version.classes[:_MAX_CLASSES]]
    more = len(version.classes) - len(names)
    return _bullets(
        [
            f"Dataset: {code(trained_on.get('uri'))}, version {code(trained_on.get('version'))}.",
            f"Classes: {', '.join(names)}{f' and {more} more' if more else ''}.",
            f"Pictures: {view.size} × {view.size} px, fit {code(view.fit)}, decoded by "
            f"{code(view.decoder)}, stored as {code(view.store)}.",
        ]
    )


def _metrics(version: ModelVersion) -> str:
    """Return a table of both splits, and the recall of each class on test."""
    header = "| split | pictures | accuracy (95 % interval) | always the largest class | macro F1 "
    lines = [header + "| loss |", "| --- | --- | --- | --- | --- | --- |"]
    for split, name in _SPLITS.items():
        metrics = version.metrics.get(split)
        if not metrics:
            continue
        samples, top1 = metrics["samples"], metrics["top1"]
        interval = wilson(round(top1 * samples), samples)
        lines.append(
            f"| {name} | {samples} | {top1:.1%} ({interval.low:.1%} to {interval.high:.1%}) "
            f"| {metrics['largest_share']:.1%}, {code(metrics['largest_class'])} "
            f"| {metrics['macro_f1']:.3f} "
            f"| {metrics.get('calibrated', metrics)['loss']:.3f} |"
        )

    recalls = list((version.metrics.get("test") or {}).get("recall", {}).items())
    if recalls:
        lines += ["", "| class | recall on test |", "| --- | --- |"]
        lines += [
            f"| {code(name)} | {'no picture' if recall is None else f'{recall:.1%}'} |"
            for name, recall in recalls[:_MAX_CLASSES]
        ]
    lines += [
        "",
        "Intervals are Wilson's. The test split was used once, after the last epoch was chosen. "
        "The loss is that of the calibrated probabilities.",
    ]
    return "\n".join(lines)


def _intended_use(version: ModelVersion) -> str:
    return (
        "Batch classification of images that come from the same source as the dataset and show "
        f"one of its {len(version.classes)} classes. Probabilities are calibrated on the "
        "validation split; people should look at images whose probability is low."
    )


def _limits(version: ModelVersion) -> list[str]:
    """Return sentences on what the model cannot do, as far as its record shows."""
    sentences = [
        "An image that shows none of the classes gets one of them all the same.",
        "It was not measured on other sources: other cameras, light, places or years.",
        "It gives one class per image. It finds no objects and measures nothing.",
        "Differences between groups of people or places were not examined.",
    ]
    test = version.metrics.get("test")
    if not test:
        return sentences

    if test["samples"] < _FEW_SAMPLES:
        sentences.append(f"The test split has {test['samples']} pictures: see the interval.")
    samples = test["samples"]
    if wilson(round(test["top1"] * samples), samples).low <= test["largest_share"]:
        sentences.append("On test it is not better than always answering the largest class.")
    for recall, words in ((0, "No picture of {} was classified right on test."),
                          (None, "The test split has no picture of {}.")):  # fmt: skip
        names = [name for name, value in test.get("recall", {}).items() if value == recall]
        if names:
            shown = ", ".join(code(name) for name in names[:_MAX_CLASSES])
            sentences.append(words.format(shown))
    return sentences


def _licence(version: ModelVersion) -> str:
    weights = version.lineage.get("weights")
    if weights is None:
        return "Trained from random weights: no licence of other weights applies."
    licence = (
        "that of the weights it was trained from"
        if "parent" in version.lineage
        else licence_of(weights)
    )
    return (
        f"Trained from {code(weights)}. Licence of these weights: {licence}. The licence of the "
        "images is not recorded."
    )


def _usage(models: str, version: ModelVersion) -> str:
    name = f"{models}@{version.id}"
    lines = [
        "import afinar",
        "",
        f"model = afinar.open_model({_literal(name)})",
        'print(model.predict(["image.jpg"]))',
    ]
    command = f"afinar label IMAGES PREDICTIONS --model {shlex.quote(_plain(name))}"
    return f"{_block('python', lines)}\n\n{_block('sh', [command])}"


def _literal(text: str) -> str:
    return repr(_plain(text))


def _making(version: ModelVersion) -> str:
    command = reproduce("train", TrainConfig, version.lineage.get("config", {}))
    libraries = version.lineage.get("libraries", {})
    rows = [f"{code(name)} {code(number)}" for name, number in libraries.items()]
    seconds = version.metrics.get("seconds")
    took = "" if seconds is None else f", {seconds} s, {version.metrics.get('epochs')} epochs"
    return "\n\n".join(
        [
            _block("sh", [_plain(line) for line in command.split("\n")]),
            f"Versions: {', '.join(rows)}. Run: {code(version.lineage.get('run'))}{took}.",
        ]
    )
