"""Answers that the benches of labelling refuse, and figures that they compute."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from afinar.units.results import UnitResult
from tests.bench import __main__ as command
from tests.bench import labelling_gpu
from tests.bench.labelling_bound import Network, _add_bound
from tests.bench.labelling_memory import high_water
from tests.bench.labelling_outputs import Row, require_every, require_same_answers
from tests.bench.labelling_start import overhead
from tests.bench.sides.label_afinar import ENDED, TimedWork
from tests.bench.world import WrongBenchError
from tests.conftest import jpeg

COUNT = 400


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 400 files: two of them are 0.5 %."""
    folder = tmp_path_factory.mktemp("pictures")
    data = jpeg(0)
    for number in range(COUNT):
        (folder / f"{number:03d}.jpg").write_bytes(data)
    return folder


def ours(source: Path) -> list[Row]:
    """Return answers with two labels and different probabilities."""
    scores = np.random.default_rng(0).uniform(0.7, 0.95, COUNT)
    paths = sorted(map(str, source.iterdir()))
    return [
        (path, ("a", "b")[number % 2], float(scores[number])) for number, path in enumerate(paths)
    ]


def shifted(rows: list[Row], by: float) -> list[Row]:
    return [(path, label, score + by) for path, label, score in rows]


def refused(rows: Iterator[Row] | list[Row], source: Path) -> str:
    with pytest.raises(WrongBenchError) as caught:
        require_same_answers("peer", rows, ours(source), source)
    return str(caught.value)


def test_answers_near_ours_pass_in_any_order(source: Path) -> None:
    agreement = require_same_answers(
        "peer", reversed(shifted(ours(source), 0.02)), ours(source), source
    )
    assert agreement.labels == 1.0
    assert agreement.worst == pytest.approx(0.02)


def test_missing_picture_is_refused(source: Path) -> None:
    assert "399 of 400" in refused(ours(source)[1:], source)


def test_picture_labelled_twice_is_refused(source: Path) -> None:
    rows = ours(source)
    assert "twice" in refused([*rows, rows[0]], source)


def test_unknown_picture_is_refused(source: Path) -> None:
    assert "not a picture" in refused([("elsewhere.jpg", "a", 0.9), *ours(source)[1:]], source)


@pytest.mark.parametrize("wrong", [2, 3])
def test_two_other_labels_in_four_hundred_are_allowed_three_refused(
    source: Path, wrong: int
) -> None:
    # Probabilities of 0.52 and 0.48: as near as other labels can be.
    near = [(path, label, 0.52) for path, label, _ in ours(source)[:wrong]]
    base = near + ours(source)[wrong:]
    other = [(path, "ab"["ba".index(label)], 0.52) for path, label, _ in near] + ours(source)[
        wrong:
    ]
    if wrong == 2:
        assert require_same_answers("peer", other, base, source).labels == 0.995
    else:
        with pytest.raises(WrongBenchError, match=r"99\.2 % of the labels"):
            require_same_answers("peer", other, base, source)


def test_probability_far_off_is_refused(source: Path) -> None:
    first, *rest = ours(source)
    assert "a probability is 0.25 off" in refused(
        [(first[0], first[1], first[2] - 0.25), *rest], source
    )


def test_probabilities_of_other_pictures_are_refused(source: Path) -> None:
    """Each is within the tolerance, but belongs to another picture."""
    narrow = [(path, label, 0.8 + (score - 0.825) / 5) for path, label, score in ours(source)]
    moved = [
        (path, label, narrow[(number + 2) % COUNT][2])
        for number, (path, label, _) in enumerate(narrow)
    ]
    require_same_answers("peer", shifted(narrow, 0.001), narrow, source)
    with pytest.raises(WrongBenchError, match="as other pictures' are"):
        require_same_answers("peer", moved, narrow, source)


def test_missing_answers_of_afinar_are_refused_too(source: Path) -> None:
    assert len(require_every("afinar", ours(source), source)) == COUNT
    with pytest.raises(WrongBenchError, match="afinar labelled 10 of 400"):
        require_every("afinar", ours(source)[:10], source)


def test_bound_is_decoding_plus_the_cheapest_forward_pass(tmp_path: Path) -> None:
    network = Network(tmp_path, "model")
    forward = [
        [["published", 8, 0.004], ["labelling's", 16, 0.003]],
        [["published", 8, 0.004], ["labelling's", 16, 0.001]],
    ]
    _add_bound(network, {"decode": [0.001, 0.001], "forward": forward})
    assert network.candidates == (("labelling's", 16),)
    assert network.bounds == pytest.approx([250.0 + 500.0])


def test_rate_is_from_the_first_unit_to_the_end_of_the_job(tmp_path: Path) -> None:
    record = {"summary": {"labelled": 30}, "before_s": 7.0, "units_s": 2.0, "after_s": 1.0}
    assert Network(tmp_path, "model", ours=[record]).rates == [10.0]


def test_overhead_is_the_time_in_which_workers_label_nothing() -> None:
    record = {
        "seconds": 10.0,
        "before_s": 1.0,
        "units_s": 8.5,
        "after_s": 0.5,
        "busy_s": 16.0,
        "workers": 2,
    }
    shares = overhead(record)
    assert shares["in all"] == pytest.approx(0.2)
    assert list(shares.values())[1:] == pytest.approx([0.1, 0.05, 0.05])


def test_high_water_is_read_from_the_status_of_a_process() -> None:
    assert high_water("Name:\tpython\nVmPeak:\t 9 kB\nVmHWM:\t   2048 kB\nVmRSS:\t 1024 kB\n") == [
        2 * 2**20
    ]
    assert high_water("Name:\tpython\nState:\tZ (zombie)\n") == []


def test_bench_of_a_gpu_without_one_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelling_gpu, "has_gpu", lambda: False)
    assert command.main(["label_gpu"]) == 3


def test_unit_is_timed_in_its_worker() -> None:
    result = UnitResult("unit", 1, phases={"decode": 1.0})
    phases = TimedWork(lambda: lambda task: result)("unit").phases
    assert phases["decode"] == 1.0
    assert phases["bench began"] <= phases[ENDED]
