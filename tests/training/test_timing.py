"""Sentence that names the phase which limits an epoch."""

from __future__ import annotations

from dataclasses import replace

from afinar.training.timing import EpochTimings


def timings(data_wait_s: float, compute_s: float) -> EpochTimings:
    return EpochTimings(
        first_batch_s=0.1,
        data_wait_s=data_wait_s,
        copy_s=0.0,
        augment_s=0.0,
        prepare_s=0.1,
        compute_s=compute_s,
        seconds=10.0,
        steps=5,
    )


def test_limit_names_the_slowest_phase() -> None:
    assert "arithmetic of the network is the limit" in timings(0.1, 9.0).limit
    assert timings(6.0, 3.0).limit.startswith("Waiting for data is the limit")
    assert timings(2.0, 7.0).limit.startswith("Waiting for data slows it")


def test_epoch_without_steps_has_no_limit() -> None:
    """A head that is solved is one. It may take long, and trains nothing."""
    assert replace(timings(0.0, 0.0), steps=0).limit == ""


def test_as_dict_keeps_the_keys_of_history_files() -> None:
    assert list(timings(2.0, 7.0).as_dict()) == [
        "first_batch_s",
        "waiting_s",
        "copy_s",
        "augment_s",
        "prepare_s",
        "compute_s",
        "seconds",
        "steps",
        "limit",
    ]
