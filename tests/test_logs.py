"""Log lines of driver and workers."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator

import pytest

from afinar.execution.worker_lines import WorkerLines
from afinar.logs import (
    COLUMNS,
    Format,
    LogSettings,
    configure_logging,
    configure_worker_logging,
    log_settings,
    parse_worker_line,
)

logger = logging.getLogger("afinar.somewhere")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    configure_logging()


def test_driver_logs_the_message_alone(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    logger.info("epoch 1")
    logger.debug("details")
    assert capsys.readouterr().err == "epoch 1\n"


def test_verbose_shows_debug_messages(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(verbose=True)
    logger.debug("details")
    assert capsys.readouterr().err == "details\n"


def test_json_line_names_logger_run_and_rank(capsys: pytest.CaptureFixture[str]) -> None:
    configure_worker_logging(LogSettings(log_format="json"), run="r1", rank=2)
    logger.info("two\nlines")
    line = json.loads(capsys.readouterr().err)
    assert line.pop("time") > 0
    assert line == {
        "logger": "afinar.somewhere",
        "level": "INFO",
        "run": "r1",
        "rank": 2,
        "message": "two\nlines",
    }


def test_timed_log_has_the_time_before_each_message(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("timed")
    logger.info("epoch 1 " + "of many " * 20)
    WorkerLines().print_log("worker", ["[afinar] unit done", "foreign"])
    first, *further, last = capsys.readouterr().err.splitlines()
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  "
    assert re.match(f"{time}epoch 1 of many", first)
    assert re.fullmatch(f"{time}unit done", last)
    assert further
    assert all(len(line) <= COLUMNS for line in (first, *further))


@pytest.mark.parametrize("log_format", ["text", "timed", "json"])
def test_lines_of_a_worker_are_recognised(
    log_format: Format, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_worker_logging(LogSettings(log_format=log_format))
    logger.info("epoch 1\nloss 0.5")
    lines = [parse_worker_line(line) for line in capsys.readouterr().err.splitlines()]
    if log_format != "json":
        assert lines == [r"epoch 1\nloss 0.5"]
    else:
        assert [json.loads(line or "")["message"] for line in lines] == ["epoch 1\nloss 0.5"]


@pytest.mark.parametrize("line", ["", "core_worker.cc:2465: Actor", '{"message": "afinar"}'])
def test_lines_of_others_are_not_recognised(line: str) -> None:
    assert parse_worker_line(line) is None


def test_settings_are_kept_in_the_environment() -> None:
    configure_logging("json", verbose=True)
    assert log_settings() == LogSettings(log_format="json", verbose=True)
    configure_logging("timed")
    assert log_settings() == LogSettings(log_format="timed")
    configure_logging()
    assert log_settings() == LogSettings()


def test_workers_lines_name_the_run_of_the_driver(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", run="r7")
    assert log_settings().run == "r7"
    configure_worker_logging()
    logger.info("unit done")
    assert json.loads(capsys.readouterr().err)["run"] == "r7"


HOSTILE = "a\x1b]0;owned\x07\r\nb\x9b31m\u202ec\u2066d\u2028e\x7f\ud800"
SHOWN = r"a\x1b]0;owned\x07\r\nb\x9b31m\u202ec\u2066d\u2028e\x7f\ud800"


@pytest.mark.parametrize("configure", [configure_logging, configure_worker_logging])
def test_control_characters_of_a_message_are_shown_escaped(
    configure: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    configure()
    logger.info(f"class {HOSTILE}, 苔 and é")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"class {SHOWN}, 苔 and é")


def test_traceback_keeps_its_lines_and_its_message_is_escaped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging()
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logger.exception("failed")
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["failed", "Traceback (most recent call last):"]
    assert "\x1b" not in "".join(lines)
    assert r"owned\x07\r" in "".join(lines)
