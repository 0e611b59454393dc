"""Output on the console: lines of a training, stages of a network, widths, suggestions."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest

from afinar.cli.formatting import format_table, format_time
from afinar.cli.main import main
from afinar.cli.train import describe, run
from afinar.config.train import TrainConfig
from afinar.logs import COLUMNS, TERMINAL_VARIABLE, wrap
from tests.conftest import Trained
from tests.training.runs import config
from tests.training.runs import run as train_here

EPOCH = re.compile(
    r"epoch  ?\d+/12 train loss \d\.\d{3}  ?val loss \d\.\d{3}  ?top-1 [ \d.]+% [* ] "
    r"lr \d\.\de-\d\d \d+\.\d s, \d+ s left"
)


def test_training_logs_a_line_for_each_epoch_and_says_its_device_once(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv(TERMINAL_VARIABLE, "0")
    with caplog.at_level(logging.INFO, "afinar"):
        result = train_here(config(trained, tmp_path, epochs=12))
    lines = [line for line in caplog.messages if line.startswith("epoch")]
    assert len(lines) == 12
    assert all(EPOCH.fullmatch(line) for line in lines), lines
    assert all(len(line) <= COLUMNS for line in caplog.messages)
    starts = [line for line in caplog.messages if "no GPU found" in line]
    assert len(starts) == 1
    assert starts[0].startswith("1 worker on CPU, no GPU found, float32; scratch: 12 epochs, batch")

    best = [number for number, line in enumerate(lines, 1) if " * " in line]
    assert best[-1] == result.best[0]["epoch"], "the last mark is that of the published epoch"


def test_settings_of_the_run_are_recorded_as_they_were_resolved(
    trained: Trained, tmp_path: Path
) -> None:
    result = train_here(config(trained, tmp_path, epochs=1, batch_size=0))
    expected = {
        "epochs": 1, "augment": "flip", "workers": 1, "device": "CPU", "precision": "float32",
    }  # fmt: skip
    assert expected.items() <= result.settings.items()
    assert result.settings["learning_rate"] > 0
    assert result.settings["batch_size"] > 0
    recorded = (tmp_path / "runs/run/config.json").read_text()
    for text in ('"device": "CPU"', '"augment": "flip"', '"workers": 1', '"promote": "auto"'):
        assert text in recorded


def test_bar_is_shown_on_a_terminal_only(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv(TERMINAL_VARIABLE, "1")
    with caplog.at_level(logging.INFO, "afinar"):
        train_here(config(trained, tmp_path, epochs=2))
    first, second = (line for line in caplog.messages if line.startswith("epoch"))
    assert first.endswith(" left ━━━━━─────")
    assert second.endswith(" left ━━━━━━━━━━")
    assert len(second) <= COLUMNS


def test_bar_is_left_out_where_the_line_would_break(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Hundreds of epochs and hours left make the longest lines."""
    monkeypatch.setenv(TERMINAL_VARIABLE, "1")
    monkeypatch.setattr("afinar.training.trainer.format_duration", lambda _: "about 300 minutes")
    with caplog.at_level(logging.INFO, "afinar"):
        train_here(config(trained, tmp_path, epochs=1))
    (line,) = (line for line in caplog.messages if line.startswith("epoch"))
    assert line.endswith("about 300 minutes left")
    assert len(line) <= COLUMNS


def test_many_epochs_of_one_step_are_announced(
    trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "afinar"):
        train_here(config(trained, tmp_path, epochs=60, batch_size=64, time_limit=0.001))
    (note,) = (line for line in caplog.messages if line.startswith("note: few pictures"))
    assert "60 epochs are planned" in note


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0.0, "2.0 s"), (0.4, "2.0 s, 0.4 pictures/s"), (2345.6, "2.0 s, 2346 pictures/s")],
)
def test_time_of_a_job_has_a_rate_if_it_read_pictures(rate: float, text: str) -> None:
    assert format_time({"seconds": 2.0, "images_per_second": rate}) == text


def describe_network(**options: Any) -> str:
    return describe(run(TrainConfig(describe=True, **options)))


def test_network_is_described_by_stages_which_are_numbered(
    capfd: pytest.CaptureFixture[str],
) -> None:
    text = describe_network(backbone="inception_v3", cut="Mixed_6e", regime="last:2")
    lines = text.splitlines()
    assert len(lines) < 45
    stages = [line.split() for line in lines if line[:1].isdigit()]
    numbers = [int(words[0]) for words in stages]
    assert numbers == list(range(len(numbers), 0, -1))
    assert [words[0] for words in stages if "trained" in words] == ["2", "1"]
    assert sum("<- cut" in line for line in lines) == 1
    assert re.search(r"nodes +\d+ within the stages are not shown: --all shows them", text)

    everything = describe_network(backbone="inception_v3", cut="Mixed_6e", all=True)
    assert len(everything.splitlines()) > 300
    assert "--all" not in everything


def test_long_lines_are_broken_at_blanks_only() -> None:
    path = "/" + "x" * 120
    table = format_table([("dataset", path), ("note", "word " * 60)])
    lines = table.splitlines()
    assert lines[0] == f"dataset  {path}", "a path stays whole"
    assert all(len(line) <= COLUMNS for line in lines if path not in line)
    assert wrap("short") == "short"
    command = f"`afinar status {'m' * 80}`"
    assert command in wrap(f"2 trainings are unfinished here: {command} lists them")


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("train a b --model resnet18", "--model is called --backbone here"),
        (
            "train a b --backbone efficientnet",
            "did you mean efficientnet_lite0, efficientnet_b0, efficientnet_b1?",
        ),
        ("train a b --lr 0.01", "--lr is called --learning-rate here"),
        ("train a b --presets best", "--presets is called --preset here"),
        ("train a b --preset fast", "--preset"),
        ("train a b --time-limit -1", "--time-limit -1.0: give at least 0"),
        ("ingest a b --add-labels notes.txt", "--add-labels 'notes.txt': give a table"),
        ("ingets", "do you mean ingest?"),
    ],
)
def test_mistake_is_answered_with_what_to_write(
    words: str, answer: str, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        code: Any = main(words.split())
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert answer in capfd.readouterr().err


def test_status_has_a_table_of_classes_and_splits(
    trained: Trained, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", trained.dataset]) == 0
    lines = capfd.readouterr().out.splitlines()
    heading = next(number for number, line in enumerate(lines) if line.startswith("  class"))
    assert lines[heading].split() == ["class", "train", "validation", "test"]
    for name, line in zip(("moss", "rust"), lines[heading + 1 :], strict=False):
        assert line.split()[0] == name
        assert sum(map(int, line.split()[1:])) == 40
