"""Extrapolation from a sample to a plan."""

from __future__ import annotations

from types import SimpleNamespace

import pyarrow as pa
import pytest

from afinar.units.cut import PLAN
from afinar.units.estimate import (
    SAMPLE,
    Sample,
    extrapolate,
    list_requests,
    measure_imports,
    measure_ray_start,
    sample_pending,
)


def plan(pending: int, up_to_date: int = 0) -> pa.Table:
    """Return a plan in units of 100 pictures of 10 bytes."""
    rows = [
        {"uri": f"/s/{number}.jpg", "etag": "e", "size": 10, "unit": f"u{number // 100}"}
        for number in range(pending)
    ]
    rows += [{"uri": f"/s/known-{number}.jpg", "size": 10} for number in range(up_to_date)]
    return pa.Table.from_pylist(rows, schema=PLAN)


def test_cost_of_the_sample_is_extrapolated_to_pending_pictures_and_workers() -> None:
    sample = Sample(200, bytes=4000, start_s=3.0)
    sample.timer.seconds = {"fetch": 0.1, "decode": 0.4}
    sample.rejects["empty"] = 2
    table = plan(1000, up_to_date=50)
    estimate = extrapolate(table, sample, workers=2, listing_s=0.25, command_s=1.0)
    assert (estimate.listed, estimate.to_read, estimate.units) == (1050, 1000, 10)
    assert estimate.start_seconds == 3.0
    assert estimate.seconds == 5.5, "1 + 0.25 s listing, 3 s start, 1000 x 0.0025 s / 2 workers"
    assert estimate.images_per_second == 800.0
    assert (estimate.bytes_read, estimate.bytes_written) == (10_000, 20_000)
    assert estimate.stages == {"fetch": 0.2, "decode": 0.8}
    assert estimate.sample_rejects == {"empty": 2}
    assert sample.reject_rate == 0.01


def test_workers_without_a_unit_do_nothing() -> None:
    sample = Sample(100)
    sample.timer.seconds = {"decode": 1.0}
    estimate = extrapolate(plan(100), sample, workers=64, listing_s=0)
    assert (estimate.units, estimate.seconds) == (1, 1.0)


def test_start_is_measured_and_that_of_ray_is_a_multiple(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0, 10.0, 12.0])
    time = SimpleNamespace(monotonic=lambda: next(clock))  # other threads keep theirs
    monkeypatch.setattr("afinar.units.estimate.time", time)
    assert measure_imports("sys") == 2.0
    assert measure_ray_start() > 2.0


def test_nothing_pending_costs_only_the_listing() -> None:
    estimate = extrapolate(plan(0, up_to_date=5), Sample(0), workers=2, listing_s=0.5)
    assert (estimate.to_read, estimate.seconds, estimate.images_per_second) == (0, 0.5, 0.0)
    assert (estimate.bytes_read, estimate.bytes_written, estimate.stages) == (0, 0, {})


def test_sample_is_a_function_of_the_pictures() -> None:
    table = plan(1000, up_to_date=50)
    entries = sample_pending(table, "/s")
    assert len({entry.uri for entry in entries}) == SAMPLE
    assert not any("known" in entry.uri for entry in entries)
    fewer = sample_pending(table.slice(0, 500), "/s")
    assert {entry.uri for entry in entries if int(entry.name[:-4]) < 500} <= {
        entry.uri for entry in fewer
    }, "a picture of the first half that is in the sample of all is in the sample of the half"
    assert [entry.name for entry in sample_pending(plan(3), "/s")] == ["0.jpg", "1.jpg", "2.jpg"]


def test_one_request_lists_a_thousand_pictures() -> None:
    assert [list_requests(pictures) for pictures in (0, 1, 1000, 1001)] == [0, 1, 1, 2]
