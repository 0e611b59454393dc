"""Records of nights: their steps, their outcome, test sets and decisions.

    <nights>/<date-n>/begin.json            first: who began it, with which recipe
             <date-n>/steps/<step>.json     one record per completed step, put-if-absent
             <date-n>/night.json            last: outcome, reasons, all steps
             <date-n>/report.html
             tests/<n>.json                 frozen test set n, with the list of its sample ids
             test-<n>/decisions/<k>.json    the k-th decision on it
             lock/<n>.json                  see `nightly.lock`

A night without night.json was killed: the next run continues it from its first missing step.
"""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

import pyarrow as pa

from afinar.config.strict import between
from afinar.errors import NotFoundError
from afinar.storage.arrow import from_parquet, to_parquet
from afinar.storage.objects import sha256
from afinar.storage.records import ObjectName, parse_object, read_record
from afinar.storage.store import Store
from afinar.storage.versions import (
    current_actor,
    latest,
    new_owner,
    publish,
    read_version,
    record_name,
    versions,
)

Outcome = Literal["promoted", "held", "refused", "no change", "failed"]

_CIRCUMSTANCES: Final = frozenset(
    {
        *("recipe", "training", "json", "address", "workers", "unit_timeout_s"),
        *("lease_minutes", "hooks", "promote"),
    }
)
"""Options that may change when a killed night is continued."""

_NAME: Final = re.compile(r"\d{4}-\d\d-\d\d-\d{1,4}")
TESTS: Final = "tests"


def _night_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(f"{value[:60]!r} is not the name of a night")
    return value


NightName = Annotated[str, _night_name]
"""Date in UTC and a number, such as 2026-11-26-1."""


@dataclass(frozen=True, kw_only=True)
class Begin:
    """First record of a night. `recipe` is the configuration that it was begun with."""

    night: NightName
    began: str
    actor: str
    recipe: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class NightRecord:
    """Last record of a night: what it decided, why, and what each step did and cost.

    `champion` and `candidate` are version numbers: the champion when the night had ended. `seconds`
    is the time of all its steps, also of those before the night was killed and continued.
    """

    night: NightName
    began: str
    ended: str
    outcome: Outcome
    reasons: list[str]
    steps: dict[str, dict[str, Any]]
    champion: int | None = None
    candidate: int | None = None
    seconds: float = 0.0
    exit_code: int = 0


@dataclass(frozen=True, kw_only=True)
class FrozenTest:
    """Record of a frozen test set: the object with its sample ids, and why it was drawn."""

    number: Annotated[int, between(1, 10**8 - 1)]
    ids: ObjectName
    pictures: int
    created: str
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class GateDecision:
    """Record of one use of a frozen test set."""

    night: NightName
    candidate: int
    champion: int


@dataclass(frozen=True, kw_only=True)
class Night:
    """A night that has begun, with the records of the steps that it has completed."""

    store: Store
    begin: Begin
    done: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the night, which is its folder."""
        return self.begin.night

    def complete(self, step: str, record: dict[str, Any]) -> dict[str, Any]:
        """Store the record of a step, and return the one that is stored."""
        name = f"{self.name}/steps/{step}.json"
        if not self.store.put_if_absent(name, _as_json(record)):
            record = parse_object(self.store.get(name), self.store.uri(name))
        self.done[step] = record
        return record


def begin_night(store: Store, recipe: dict[str, Any]) -> Night:
    """Return the last night if it has not ended, otherwise a new one.

    A night that has not ended and was begun with other options is recorded as failed. The caller
    holds the lock, so that no other night begins at the same time.
    """
    names = night_names(store)
    now = datetime.now(UTC)
    if names and not has_object(store, f"{names[-1]}/night.json"):
        begin = read_record(store, f"{names[-1]}/begin.json", Begin)
        night = Night(store=store, begin=begin, done=_read_steps(store, begin.night))
        changed = _changed_options(begin.recipe, recipe)
        if not changed:
            return night
        reason = f"it was killed, and not continued because of changed options: {changed}"
        end_night(night, _as_failed(night, now, reason))

    today = now.strftime("%Y-%m-%d")
    number = 1 + max(
        (_number_of(name) for name in names if name.startswith(f"{today}-")), default=0
    )
    begin = Begin(
        night=f"{today}-{number}",
        began=now.isoformat(timespec="seconds"),
        actor=current_actor(),
        recipe=recipe,
    )
    store.put_if_absent(f"{begin.night}/begin.json", _as_json(asdict(begin)))
    return Night(store=store, begin=begin)


def end_night(night: Night, record: NightRecord) -> None:
    """Store the last record of a night."""
    night.store.put_if_absent(f"{night.name}/night.json", _as_json(asdict(record)))


def night_names(store: Store) -> list[str]:
    """Return the names of all nights that have begun, the oldest first."""
    names = {
        info.name.partition("/")[0] for info in store.walk() if info.name.endswith("/begin.json")
    }
    nights = (name for name in names if _NAME.fullmatch(name))
    return sorted(nights, key=lambda name: (name[:10], _number_of(name)))


def read_nights(store: Store) -> list[NightRecord]:
    """Return the records of all nights that have ended, the oldest first."""
    records = []
    for name in night_names(store):
        try:
            records.append(read_record(store, f"{name}/night.json", NightRecord))
        except NotFoundError:
            continue
    return records


def put_list(store: Store, folder: str, uris: list[str]) -> str:
    """Store a CSV file with the column uri, named by its content, and return its URI."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([["uri"], *([uri] for uri in uris)])
    data = text.getvalue().encode()
    name = f"{folder}/{sha256(data)[:16]}.csv"
    store.put_if_absent(name, data)
    return store.uri(name)


def current_test(store: Store) -> FrozenTest | None:
    """Return the record of the newest frozen test set, None if there is none."""
    current = latest(store, TESTS)
    return (
        None if current is None else read_record(store, record_name(TESTS, current[0]), FrozenTest)
    )


def freeze_test(store: Store, sample_ids: list[str], why: str) -> FrozenTest:
    """Store a new frozen test set and return its record."""
    current = latest(store, TESTS)
    number = 1 if current is None else current[0] + 1
    data = to_parquet(pa.table({"sample_id": pa.array(sorted(sample_ids), pa.string())}))
    name = f"test-{number}/{sha256(data)}.parquet"
    store.put_if_absent(name, data)
    record = FrozenTest(
        number=number,
        ids=name,
        pictures=len(sample_ids),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        why=why,
    )
    publish(store, TESTS, number, asdict(record), new_owner())
    return record


def read_test_ids(store: Store, test: FrozenTest) -> set[str]:
    """Return the sample ids of a frozen test set. Raises RecordError for forged ones."""
    table = from_parquet(store.get(test.ids), uri=store.uri(test.ids))
    return set(table.column("sample_id").to_pylist())


def count_decision(store: Store, test: FrozenTest, decision: GateDecision) -> int:
    """Record a decision on a test set before it is made, and return its number from 1.

    A night that was killed after this finds its own record again and uses no second number.
    """
    folder = f"test-{test.number}/decisions"
    numbers = versions(store, folder)
    for number in numbers:
        if read_version(store, folder, number).get("night") == decision.night:
            return number
    number, owner = 1 + max(numbers, default=0), new_owner()
    while not publish(store, folder, number, asdict(decision), owner):
        number += 1  # taken by a late write of a night that has lost the lock
    return number


def count_decisions(store: Store, test: FrozenTest) -> int:
    """Return the number of decisions that have used a test set."""
    return len(versions(store, f"test-{test.number}/decisions"))


def _read_steps(store: Store, night: str) -> dict[str, dict[str, Any]]:
    folder = f"{night}/steps"
    names = [info.name for info in store.walk(folder) if info.name.endswith(".json")]
    return {
        name.rpartition("/")[2].removesuffix(".json"): parse_object(
            store.get(name), store.uri(name)
        )
        for name in names
    }


def _number_of(name: str) -> int:
    return int(name.rpartition("-")[2])


def _changed_options(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return the names of the options that differ, but for those that decide nothing."""
    now = json.loads(json.dumps(now))  # tuples become lists, as in the record
    names = (before.keys() | now.keys()) - _CIRCUMSTANCES
    return ", ".join(sorted(name for name in names if before.get(name) != now.get(name)))


def _as_failed(night: Night, ended: datetime, reason: str) -> NightRecord:
    return NightRecord(
        night=night.name,
        began=night.begin.began,
        ended=ended.isoformat(timespec="seconds"),
        outcome="failed",
        reasons=[reason],
        steps=night.done,
        exit_code=1,
    )


def has_object(store: Store, name: str) -> bool:
    """Return True if a store has an object of this name."""
    try:
        store.stat(name)
    except NotFoundError:
        return False
    return True


def _as_json(record: dict[str, Any]) -> bytes:
    return json.dumps(record, indent=1).encode()
