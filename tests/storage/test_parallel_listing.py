"""Listing of a tree with several threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from afinar.errors import (
    ForbiddenError,
)
from afinar.storage.parallel_listing import ParallelLister
from afinar.storage.store import ObjectInfo


def test_error_in_one_thread_ends_listing() -> None:
    def visit(number: int, walk: ParallelLister[int]) -> Iterator[list[ObjectInfo]]:
        if number == 500:
            raise ForbiddenError("five hundred")
        for below in (2 * number, 2 * number + 1):
            if below < 2000:
                walk.add(below)
        yield [ObjectInfo(str(number), "", 0, "")] * 10

    with pytest.raises(ForbiddenError, match="five hundred"):
        list(ParallelLister(visit, 8).pages([1]))
