"""Model card: what the record holds, as text that no name can turn into markup."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from afinar.cli.main import main
from afinar.evaluation.intervals import wilson
from afinar.models.registry.versions import ModelVersion, find_model
from afinar.report.model_card import CARD, code, model_card, put_model_card
from afinar.report.training import write_training_page
from afinar.training.driver import TrainOutcome
from afinar.training.promotion import ChampionChoice
from afinar.training.publish import TrainResult
from tests.conftest import Trained
from tests.report.html import Reader

NASTY = [
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "`a``b`",
    "| x | y |",
    "# title\n\n<script>alert(1)</script>",
    "![](https://example.org/pixel.png)",
    "www.example.org",
    "\u202egnp.exe",
    "~~~",
    "$x_1$ **bold** \\",
]
TAGS = {"h1", "h2", "p", "ul", "li", "code", "pre", "table", "thead", "tbody", "tr", "th", "td"}


@pytest.fixture
def version(trained: Trained) -> ModelVersion:
    return find_model(trained.champion).version


def rendered(card: str) -> Reader:
    return Reader(MarkdownIt("gfm-like", {"linkify": False}).render(card))


def test_card_has_data_metrics_licence_use_and_origin(
    trained: Trained, version: ModelVersion
) -> None:
    card = model_card(trained.models, version)
    text = rendered(card).text
    test = version.metrics["test"]
    interval = wilson(round(test["top1"] * test["samples"]), test["samples"])
    for words in (
        version.id,
        trained.dataset,
        "moss",
        f"{test['top1']:.1%} ({interval.low:.1%} to {interval.high:.1%})",
        f"{test['largest_share']:.1%}, {test['largest_class']}",
        "random weights",
        f"afinar train {trained.dataset} {trained.models} ",
        "--backbone small_cnn",
        f"{trained.models}@{version.id}",
        version.lineage["libraries"]["torch"],
        "Intended use",
        f"The test split has {test['samples']} pictures",
    ):
        assert words in text
    assert set(rendered(card).tags) == TAGS


def test_names_of_strangers_stay_text(trained: Trained, version: ModelVersion) -> None:
    metrics = copy.deepcopy(version.metrics)
    metrics["test"] |= {"recall": {**dict.fromkeys(NASTY), NASTY[0]: 0}, "largest_class": NASTY[3]}
    lineage = {**version.lineage, "dataset": {"uri": f"s3://b/{NASTY[4]}", "version": 1}}
    lineage |= {"weights": f"{NASTY[0]}```", "config": {"dataset": f"```\n{NASTY[4]}"}}
    nasty = replace(version, classes=NASTY, metrics=metrics, lineage=lineage)
    page = rendered(model_card(f"/models/```\n{NASTY[4]}", nasty))
    assert set(page.tags) == TAGS
    assert page.addresses == []
    for name in NASTY:
        shown = "".join("\ufffd" if character in "\n\u202e" else character for character in name)
        assert shown in page.text
    assert page.tags.count("h1") == 1
    assert page.tags.count("td") == 2 * 6 + 2 * len(NASTY), "no name adds a cell"


@pytest.mark.parametrize("name", [*NASTY, "", " ", "`", "x" * 500])
def test_code_is_one_span(name: str) -> None:
    assert Reader(MarkdownIt().render(f"a {code(name)} b")).tags == ["p", "code"]


def test_record_without_metrics_or_lineage_has_a_card(
    trained: Trained, version: ModelVersion
) -> None:
    bare = replace(version, metrics={}, lineage={"weights": "torchvision:X", "parent": "m@1"})
    text = rendered(model_card(trained.models, bare)).text
    assert "Licence of these weights: that of the weights it was trained from" in text


def test_card_is_written_with_the_report_once_and_survives_garbage_collection(
    trained: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    models = Path(shutil.copytree(trained.models, tmp_path / "models"))
    store, version = find_model(f"{models}@1")
    run = version.lineage["run"]
    outcome = TrainOutcome(
        models=str(models),
        run=run,
        version=version,
        result=TrainResult(),
        seconds=1.0,
        champion=ChampionChoice(is_promoted=True, champion=1, why="the first version"),
    )
    write_training_page(outcome)
    card = models / run / CARD
    written = card.read_text()
    assert written == model_card(store.root, version)

    card.write_text("mine")
    put_model_card(store, version)
    assert card.read_text() == "mine"
    assert main(["status", str(models), "--gc"]) == 0
    assert card.exists()
