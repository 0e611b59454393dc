"""What a run answered, and whether that differs from the run before: found when it does, silent when it does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afinar import open_predictions
from afinar.config.label import LabelConfig
from afinar.labelling.driver import LabelSummary, run_labelling
from afinar.labelling.run_report import RunStats, SourceStats, find_baseline, update_source_stats
from afinar.labelling.stats import (
    BINS,
    CLASSES_LIMIT,
    MIN_PICTURES,
    SIGNIFICANCE_LEVEL,
    Baseline,
    Drift,
    LabelStats,
    count_labels,
    detect_drift,
    earth_mover,
    permutation_p_value,
    total_variation,
)
from afinar.predictions.manifest import Partition, PredictionManifest
from afinar.storage.objects import ObjectRef
from afinar.storage.open import open_store
from afinar.storage.versions import Record, latest
from afinar.units.executor import InlineExecutor
from tests.conftest import Trained, jpeg

SEEDS = st.integers(0, 2**32 - 1)


def sampled(seed: int, pictures: int, shares: list[float], sureness: float = 8.0) -> LabelStats:
    """LabelStats of a model that says class n with probability shares[n], at beta(sureness, 1) confidence."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(
        [f"class {number}" for number in range(len(shares))], pictures, p=shares
    )
    scores = generator.beta(sureness, 1.0, pictures).astype(np.float32)
    return count_labels(pa.table({"label": labels, "score": scores}))


def compared(before: LabelStats, now: LabelStats) -> Drift:
    return detect_drift(Baseline(before, "the previous run"), now)


def test_answers_are_counted() -> None:
    table = pa.table(
        {
            "label": ["b", "a", "b", "b"],
            "score": pa.array([1.0, 0.0, 0.51, 0.5], pa.float32()),
        }
    )
    answers = count_labels(table)
    assert answers.labels == {"a": 1, "b": 3}
    assert [place for place, count in enumerate(answers.histogram) for _ in range(count)] == [
        0,
        10,
        10,
        BINS - 1,
    ]
    assert answers.mean == pytest.approx(2.01 / 4)
    assert LabelStats.from_dict(answers.as_dict()).as_dict() == answers.as_dict()
    assert count_labels(table.slice(0, 0)) == LabelStats()
    assert LabelStats().mean is None


@given(SEEDS, st.integers(0, 40), st.integers(0, 40))
def test_answers_add_up_and_come_apart_again(seed: int, one: int, other: int) -> None:
    first, second = sampled(seed, one, [0.5, 0.3, 0.2]), sampled(seed + 1, other, [0.1, 0.9])
    both = first.plus(second)
    assert both.pictures == one + other == sum(both.histogram)
    left = both.minus(second)
    assert (left.labels, left.histogram) == (first.labels, first.histogram)
    assert left.score_sum == pytest.approx(first.score_sum)
    assert first.minus(both).pictures == 0


@given(SEEDS, st.integers(1, 20_000), st.integers(1, 20_000), st.integers(1, 40))
@settings(
    max_examples=60, derandomize=True
)  # by design one small run in a thousand is a false alarm
def test_what_is_drawn_again_from_the_same_pictures_has_not_drifted(
    seed: int, before: int, now: int, classes: int
) -> None:
    shares = np.random.default_rng(seed).dirichlet(np.ones(classes)).tolist()
    found = compared(sampled(seed, before, shares), sampled(seed + 1, now, shares))
    assert not found.drifted, found.sentences
    assert (found.classes is None) == (min(before, now) < MIN_PICTURES)


def test_chance_is_as_rare_as_it_says() -> None:
    """Of 300 pairs of runs that do not differ, chances are spread evenly: the test is exact."""
    rare = 0
    for seed in range(300):
        one, other = (
            np.bincount(np.random.default_rng(2 * seed + more).integers(0, 6, 120))
            for more in (0, 1)
        )
        rare += permutation_p_value(one, other, total_variation) < 0.1
    assert 10 <= rare <= 50, "30 expected; these bounds are four standard deviations"


@given(SEEDS, st.integers(1000, 20_000), st.floats(0.25, 0.5))
@settings(max_examples=40)
def test_classes_that_move_are_found(seed: int, pictures: int, by: float) -> None:
    found = compared(
        sampled(seed, 5000, [0.6, 0.3, 0.1]), sampled(seed + 1, pictures, [0.6 - by, 0.3, 0.1 + by])
    )
    assert found.drifted
    assert found.classes is not None
    assert found.classes.found
    assert found.classes.distance == pytest.approx(by, abs=0.09)
    assert found.confidence is not None
    assert not found.confidence.found
    assert "Most moved: class" in found.sentences[0]
    assert "Confidence is as in the previous run" in found.sentences[1]


@given(SEEDS)
@settings(max_examples=20)
def test_a_model_that_is_less_sure_is_found(seed: int) -> None:
    found = compared(sampled(seed, 4000, [0.5, 0.5], 8.0), sampled(seed + 1, 4000, [0.5, 0.5], 3.0))
    assert found.drifted
    assert found.confidence is not None
    assert found.confidence.found
    assert found.classes is not None
    assert not found.classes.found
    assert found.confidence.distance == pytest.approx(8 / 9 - 3 / 4, abs=0.03), (
        "the means' difference"
    )


@given(SEEDS, st.integers(0, MIN_PICTURES - 1), st.integers(1, 100_000))
def test_of_a_few_pictures_nothing_is_said(seed: int, few: int, many: int) -> None:
    one, other = sampled(seed, few, [1.0]), sampled(seed, many, [0.0, 1.0], 1.0)
    for before, now in ((one, other), (other, one)):
        found = compared(before, now)
        assert not found.drifted
        assert found.classes is None
        assert found.confidence is None


def test_over_the_limit_by_chance_is_no_drift() -> None:
    before, now = (
        LabelStats({"a": 50, "b": 50}, (0,) * 19 + (100,), 97.0),
        LabelStats({"a": 62, "b": 38}, (0,) * 19 + (100,), 97.0),
    )
    found = compared(before, now)
    assert found.classes is not None
    assert found.classes.distance == 0.12 > CLASSES_LIMIT
    assert found.classes.chance is not None
    assert found.classes.chance > SIGNIFICANCE_LEVEL
    assert not found.drifted
    assert "chance alone" in found.sentences[0]


def test_a_class_that_is_new_is_a_finite_difference() -> None:
    before, now = sampled(0, 2000, [1.0]), sampled(1, 2000, [0.5, 0.5])
    found = compared(before, now)
    assert found.classes is not None
    assert found.classes.distance == pytest.approx(0.5, abs=0.05)
    assert "class 1 0.0% → " in found.sentences[0]


def test_the_distances_are_those_of_their_definitions() -> None:
    one, other = np.array([0.5, 0.5, 0.0, 0.0]), np.array([0.0, 0.5, 0.0, 0.5])
    assert total_variation(one, other) == 0.5
    assert earth_mover(one, other) == pytest.approx(0.5 * 3 / 4), (
        "half of it, three bins of a quarter far"
    )
    assert earth_mover(np.stack([one, one]), np.stack([other, one])).tolist() == [
        pytest.approx(0.375),
        0.0,
    ]


def test_more_pictures_than_the_test_can_draw_from() -> None:
    huge = np.array([10**9, 2 * 10**9])
    assert permutation_p_value(huge, huge[::-1], total_variation) <= SIGNIFICANCE_LEVEL


# --- what the manifest keeps


def partition(**accounts: SourceStats) -> Partition:
    """A partition with statistics by source."""
    objects = ObjectRef(path="lists/x.parquet", rows=0, bytes=0, sha256="0" * 64)
    return Partition(
        model="m@1", source="s", sources=["s"], objects=objects, rows=0, rejects=0, last_run={},
        accounts={name: stats.as_dict() for name, stats in accounts.items()},
    )  # fmt: skip


def test_what_a_run_is_compared_with() -> None:
    night, archive, few = sampled(0, 500, [1.0]), sampled(1, 9000, [1.0]), sampled(2, 12, [1.0])

    def before(partitions: dict[str, Partition], source: str = "s") -> LabelStats | None:
        found = find_baseline(PredictionManifest(partitions=partitions), "new", source)
        return LabelStats.from_dict(found.labels.as_dict()) if found else None

    def same(one: LabelStats | None, other: LabelStats) -> bool:
        return one is not None and one.as_dict() == other.as_dict()

    assert find_baseline(PredictionManifest(), "new", "s") is None
    assert same(before({"new": partition(s=SourceStats(3, night, archive))}), night), (
        "the previous run"
    )
    assert same(before({"new": partition(s=SourceStats(3, few, archive))}), archive), (
        "a run of twelve says nothing"
    )
    assert before({"new": partition(s=SourceStats(3, night, archive))}, "another source") is None
    older, newer = (
        partition(s=SourceStats(3, night, night)),
        partition(s=SourceStats(8, few, archive)),
    )
    assert same(before({"old": older, "newer": newer}), archive), (
        "another model: all that it had said"
    )
    assert before({"old": partition()}) is None, "written before there were statistics"


def test_a_picture_of_two_sources_is_taken_from_the_one_that_is_labelled() -> None:
    one, other = (
        LabelStats({"a": 3, "b": 1}, (4,) + (0,) * 19, 0.04),
        LabelStats({"a": 2}, (2,) + (0,) * 19, 0.02),
    )
    first = update_source_stats(None, "s", 1, one, LabelStats(), one)
    second = update_source_stats(
        replace(partition(), accounts=first),
        "t",
        2,
        other,
        LabelStats({"a": 1}, (1,) + (0,) * 19, 0.01),
        other,
    )
    assert second["s"]["standing"]["labels"] == {"a": 2, "b": 1}
    assert second["t"]["standing"]["labels"] == {"a": 2}
    assert (second["s"]["version"], second["t"]["version"]) == (1, 2)
    assert second["s"]["run"] == one.as_dict(), "what that run did stays as it was"


def test_rejects_are_counted_with_a_few_examples() -> None:
    rows = [
        {"uri": f"{number}.jpg", "reason": "empty" if number % 3 else "corrupt", "detail": "x"}
        for number in range(30)
    ]
    tally = RunStats()
    for part in (rows[:4], rows[4:]):
        tally.add_rejects(pa.Table.from_pylist(part))
    assert tally.reasons == {"empty": 20, "corrupt": 10}
    assert [row["uri"] for row in tally.examples["corrupt"]] == [
        "0.jpg",
        "3.jpg",
        "6.jpg",
        "9.jpg",
        "12.jpg",
    ]
    both = tally.plus(tally)
    assert both.reasons == {"empty": 40, "corrupt": 20}
    assert len(both.examples["empty"]) == 5


# --- a labelling


def pictures(folder: Path, first: int, moss: int, rust: int) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(moss + rust):
        tint = (60, 140, 60) if number < moss else (170, 80, 50)
        (folder / f"{first + number}.jpg").write_bytes(jpeg(first + number, tint=tint))


def label(source: Path, out: str, model: str, **options: Any) -> LabelSummary:
    config = LabelConfig(source=str(source), predictions=out, model=model, **options)
    return run_labelling(config, InlineExecutor()).summary


def standing(out: str) -> Record:
    """The only source's record of the only partition, in the newest manifest."""
    found = latest(open_store(out), "manifests")
    assert found is not None
    (one,) = found[1]["partitions"].values()
    (record,) = one["accounts"].values()
    assert isinstance(record, dict)
    return record


def test_runs_of_one_source_are_compared_without_a_look_at_old_parts(
    tmp_path: Path, trained: Trained
) -> None:
    source, out = tmp_path / "scans", str(tmp_path / "out")
    pictures(source, 0, 60, 60)
    first = label(source, out, trained.champion)
    assert first.drift["drifted"] is False
    assert "first run" in first.drift["sentences"][0]
    assert sum(first.confidence["histogram"]) == first.labelled == 120
    assert set(first.stages) >= {"decode", "forward", "write"}

    pictures(source, 1000, 55, 60)
    second = label(source, out, trained.champion)
    assert second.drift["drifted"] is False
    assert (second.drift["pictures_before"], second.drift["pictures"]) == (120, 115)
    scores = open_predictions(out).table.slice(0).column("score").to_numpy()
    assert standing(out)["standing"]["score_sum"] == pytest.approx(float(scores.sum()), abs=1e-3)

    pictures(source, 2000, 120, 0)
    third = label(source, out, trained.champion)
    assert third.drift["drifted"] is True
    assert third.drift["pictures_before"] == 115, "the run before, not the archive"
    assert third.drift["classes"]["distance"] == pytest.approx(60 / 115, abs=1e-3)
    assert third.drift["sentences"][0] in third.notes

    pictures(source, 3000, 1, 0)
    few = label(source, out, trained.champion)
    assert few.drift["drifted"] is False
    assert "fewer than 100" in few.drift["sentences"][0]
    idle = label(source, out, trained.champion)
    assert idle.confidence == {"mean": None, "histogram": [0] * BINS}
    assert "Nothing was labelled" in idle.drift["sentences"][0]


def test_what_stands_is_what_a_reader_finds(tmp_path: Path, trained: Trained) -> None:
    """Changed pictures leave the account as they leave the parts."""
    source, out = tmp_path / "scans", str(tmp_path / "out")
    pictures(source, 0, 30, 30)
    label(source, out, trained.champion)
    for number in (3, 4, 40):
        (source / f"{number}.jpg").write_bytes(jpeg(number + 7000, tint=(170, 80, 50)))
    (source / "5.jpg").write_bytes(b"no picture any more")
    summary = label(source, out, trained.champion)
    assert (summary.labelled, summary.rejected, summary.skipped) == (3, 1, 56)
    found = count_labels(open_predictions(out).table)
    kept = LabelStats.from_dict(standing(out)["standing"])
    assert (kept.labels, kept.histogram) == (found.labels, found.histogram)
    assert kept.score_sum == pytest.approx(found.score_sum, abs=1e-3)
    assert LabelStats.from_dict(standing(out)["run"]).pictures == 3


def test_another_model_is_compared_with_all_that_the_one_before_it_said(
    tmp_path: Path, trained: Trained
) -> None:
    source, out = tmp_path / "scans", str(tmp_path / "out")
    pictures(source, 0, 55, 55)
    label(source, out, trained.champion)
    pictures(source, 1000, 2, 0)
    label(source, out, trained.champion)
    next_attempt = label(source, out, trained.champion, top_k=1)
    assert (next_attempt.drift["pictures_before"], next_attempt.drift["pictures"]) == (112, 112)
    assert next_attempt.drift["drifted"] is False
    assert (
        next_attempt.drift["classes"]["distance"]
        == next_attempt.drift["confidence"]["distance"]
        == 0.0
    )
