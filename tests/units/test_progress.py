"""Progress of a job: lines in a log, phases, durations."""

from __future__ import annotations

import logging

import pytest

from afinar.units.progress import PhaseTimer, ProgressReporter, format_duration, limiting_phase


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5340, "89 min"), (12_000, "3 h 20 min")],
)
def test_duration_is_in_the_largest_useful_unit(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_limiting_phase_has_most_of_the_time() -> None:
    assert limiting_phase({}) is None
    assert limiting_phase({"fetch": 0.0}) is None
    assert limiting_phase({"fetch": 10.0, "decode": 50.0}) == "decode (83%)"
    assert limiting_phase({"decode": 9.9}) is None, "start-up takes longer"


def test_timer_adds_up_blocks_of_a_phase() -> None:
    timer = PhaseTimer()
    with timer.phase("decode"):
        pass
    first = timer.seconds["decode"]
    with timer.phase("decode"), timer.phase("write"):
        pass
    assert timer.seconds["decode"] > first > 0
    assert list(timer.seconds) == ["decode", "write"]


def test_log_line_has_counts_rejects_and_limiting_phase(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ProgressReporter, "EVERY_S", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    with caplog.at_level(logging.INFO, "afinar"), ProgressReporter("ingest", 10) as progress:
        progress.add(4, 1, {"decode": 30.0, "fetch": 10.0})
    (line,) = caplog.messages
    assert line.startswith("ingest: 4 of 10 pictures, ")
    assert "1 rejected, limited by decode (75%), " in line
    assert line.endswith(" left")
