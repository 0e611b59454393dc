"""Reasons of rejects and the budget of a job."""

from __future__ import annotations

from afinar.pictures.rejects import TRANSIENT, Reason, exceeds_budget


def test_transient_reasons_are_written_as_in_reject_rows() -> None:
    assert {reason.value for reason in Reason if reason.transient} == TRANSIENT
    assert Reason.MISSING.transient
    assert not Reason.CORRUPT.transient


def test_budget_is_exceeded_only_above_its_rate() -> None:
    assert not exceeds_budget(5, 100, 0.05)
    assert exceeds_budget(6, 100, 0.05)
    assert not exceeds_budget(0, 0, 0.0)
    assert not exceeds_budget(100, 100, 1.0)
