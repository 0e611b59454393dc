"""The incremental runner with a toy job: it counts the letters of 100 words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from afinar.errors import NotFoundError, ShortfallError
from afinar.sources.listing import as_listing
from afinar.storage.markers import UnitMarker, commit_unit, read_markers
from afinar.storage.objects import get_object, put_object
from afinar.storage.open import open_store
from afinar.storage.records import Record
from afinar.storage.versions import latest, publish
from afinar.units.cut import is_up_to_date, iter_units, plan_units, unit_names
from afinar.units.plans import Plan
from afinar.units.results import UnitResult
from afinar.units.run import IncrementalJob, Planned, Published, run_incremental

KNOWN = pa.table({"uri": pa.array([], pa.large_string()), "etag": pa.array([], pa.large_string())})


class CountLetters(IncrementalJob[Record, Record]):
    """Lists words, cuts them into units of ten, counts letters, and publishes the totals."""

    name = "letters"

    def __init__(self, target: Path, words: list[str], killed_after: int = 100) -> None:
        self.store, self.words, self.killed_after = open_store(str(target)), words, killed_after

    def open_current(self) -> Record:
        found = latest(self.store, "totals")
        return found[1] if found else {"version": 0, "letters": {}}

    def plan_name(self, current: Record) -> str:
        return f"plans/{current['version'] + 1}.parquet"

    def make_plan(self, current: Record) -> Planned:
        uris = pa.array(self.words, pa.large_string())
        sizes = pa.array([1] * len(uris), pa.int64())
        listing = as_listing(pa.table({"uri": uris, "etag": uris, "size": sizes}).sort_by("uri"))
        done = pa.array(list(current["letters"]), pa.large_string())
        up_to_date = is_up_to_date(listing, pa.table({"uri": done, "etag": done}))
        return Planned(plan_units(listing, up_to_date, "toy", lambda n: [10] * -(-n // 10)), [])

    def is_current(self, table: pa.Table, current: Record) -> bool:
        return not unit_names(table)

    def run_units(self, table: pa.Table, done: set[str], current: Record) -> Iterator[UnitResult]:
        for number, (unit, entries) in enumerate(iter_units(table, "", done)):
            if number == self.killed_after:
                raise KeyboardInterrupt
            data = json.dumps({entry.uri: len(entry.uri) for entry in entries}).encode()
            ref = put_object(self.store, f"counts/{unit}-{{hash}}.json", data, len(entries))
            commit_unit(self.store, UnitMarker(unit=unit, objects={"counts": ref}))
            yield UnitResult(unit, len(entries))

    def publish(self, plan: Plan, current: Record) -> Published[Record]:
        letters = dict(current["letters"])
        for marker in read_markers(self.store, plan.units):
            letters |= json.loads(get_object(self.store, marker.objects["counts"]))
        record = {"version": current["version"] + 1, "letters": letters}
        assert publish(self.store, "totals", record["version"], record, "toy")
        return Published(record)

    def after_publish(self, plan: Plan) -> None:
        self.store.delete(plan.name)

    def unchanged(self, table: pa.Table, current: Record) -> Record:
        return current


WORDS = [f"word-{number:03d}" + "x" * (number % 7) for number in range(100)]


def test_killed_job_is_resumed_and_later_runs_are_incremental(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_incremental(CountLetters(tmp_path, WORDS, killed_after=4))
    resumed = run_incremental(CountLetters(tmp_path, WORDS))
    assert (resumed.totals.units, resumed.totals.pictures) == (6, 60), "four units were committed"
    assert resumed.summary["letters"] == {word: len(word) for word in WORDS}

    more = run_incremental(CountLetters(tmp_path, [*WORDS, "one more", "and another"]))
    assert (more.published, more.totals.units, more.totals.pictures) == (True, 1, 2)
    assert more.summary["version"] == 2
    assert len(more.summary["letters"]) == 102

    again = run_incremental(CountLetters(tmp_path, [*WORDS, "one more", "and another"]))
    assert (again.published, again.totals.units) == (False, 0)
    assert again.summary == {**more.summary, "owner": "toy"}


class Overtaken(CountLetters):
    """Another job publishes a version and deletes what this one is reading, `times` times."""

    def __init__(self, target: Path, words: list[str], where: str, times: int) -> None:
        super().__init__(target, words)
        self.where, self.times = where, times

    def _lose(self, current: Record) -> None:
        if self.times:
            self.times -= 1
            number = current["version"] + 1
            assert publish(self.store, "totals", number, {**current, "version": number}, "other")
            raise NotFoundError("lists/deleted.parquet")

    def make_plan(self, current: Record) -> Planned:
        if self.where == "plan":
            self._lose(current)
        return super().make_plan(current)

    def is_current(self, table: pa.Table, current: Record) -> bool:
        if self.where == "compare":
            self._lose(current)
        return super().is_current(table, current)

    def publish(self, plan: Plan, current: Record) -> Published[Record]:
        if self.where == "publish":
            self._lose(current)
        return super().publish(plan, current)


@pytest.mark.parametrize("where", ["plan", "compare", "publish"])
def test_objects_that_another_job_deletes_meanwhile_are_no_error(
    where: str, tmp_path: Path
) -> None:
    run_incremental(CountLetters(tmp_path, WORDS[:50]))
    result = run_incremental(Overtaken(tmp_path, WORDS, where, times=2))
    assert result.summary["letters"] == {word: len(word) for word in WORDS}
    with pytest.raises(ShortfallError, match="run the command again"):
        run_incremental(Overtaken(tmp_path, [*WORDS, "more"], where, times=100))


def test_object_that_is_missing_without_another_job_is_an_error(tmp_path: Path) -> None:
    class Damaged(CountLetters):
        def make_plan(self, current: Record) -> Planned:
            raise NotFoundError("lists/deleted.parquet")

    with pytest.raises(NotFoundError):
        run_incremental(Damaged(tmp_path, WORDS))
