"""The champion: which model version is in use, as numbered records. Needs no torch.

The record with the highest number is current:

    aliases/champion/00000001.json    {"version": 1, "why": "the first version", …}
    aliases/champion/00000002.json    {"version": 3, "why": "best by validation", …}

A record is put only if its number is free, so of two promotions at once one fails and says so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Annotated, Final

from afinar.config.strict import between
from afinar.errors import RequestError, ShortfallError
from afinar.storage.records import as_record
from afinar.storage.store import Store
from afinar.storage.versions import (
    current_actor,
    latest,
    new_owner,
    publish,
    read_consistently,
    read_version,
    record_name,
)

CHAMPION: Final = "aliases/champion"


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """Record of the champion: the version, the reason, when (UTC, ISO 8601), and who moved it.

    `created` and `actor` are empty in records that were written before they were added.
    """

    version: Annotated[int, between(1, 10**8 - 1)]
    why: str = ""
    created: str = ""
    actor: str = ""


def champion_number(store: Store) -> int | None:
    """Return the number of the version that `@champion` stands for, or None if it has no record."""
    current = latest(store, CHAMPION)
    return None if current is None else _as_promotion(store, *current).version


def champion_record(store: Store) -> int:
    """Return the number of the champion's current record, 0 without one: see `promote_after`."""
    current = latest(store, CHAMPION)
    return 0 if current is None else current[0]


def promote_after(store: Store, record: int, version: int, why: str) -> None:
    """Make a version the champion if the alias has not been moved since `record` was current.

    Raises ShortfallError if it has: the decision was made against another champion.
    """
    if not _put(store, record + 1, version, why, new_owner()):
        winner = _as_promotion(store, record + 1, read_version(store, CHAMPION, record + 1))
        raise ShortfallError(
            f"{winner.actor or 'another job'} made version {winner.version} of {store.root} the "
            f"champion meanwhile ({winner.why}): version {version} was compared with another one"
        )


def promotions(store: Store) -> list[Promotion]:
    """Return all records of the champion, the oldest first."""

    def read(numbers: list[int]) -> list[Promotion]:
        return [
            _as_promotion(store, number, read_version(store, CHAMPION, number))
            for number in numbers
        ]

    return read_consistently(store, CHAMPION, read)


def set_first_champion(store: Store, owner: str) -> None:
    """Make version 1 the champion, unless the alias has a record already."""
    _put(store, 1, 1, "the first version", owner)


def count_promotions(store: Store) -> int:
    """Return the number of the current record of the champion, 0 if there is none."""
    current = latest(store, CHAMPION)
    return 0 if current is None else current[0]


def promote(store: Store, version: int, why: str, *, after: int | None = None) -> None:
    """Make a version the champion and record the reason.

    Raises ShortfallError if another job moves the champion at the same time: since it was read
    here, or since `after`, which is what `count_promotions` returned.
    """
    number = 1 + (count_promotions(store) if after is None else after)
    if not _put(store, number, version, why, new_owner()):
        winner = _as_promotion(store, number, read_version(store, CHAMPION, number))
        raise ShortfallError(
            f"another job made version {winner.version} of {store.root} the champion at the same "
            "time: look at it, and promote again if this version must replace it"
        )


def version_before(store: Store) -> int:
    """Return the version that was the champion before the current one.

    Raises RequestError if there was no other.
    """
    moved = promotions(store)
    for promotion in reversed(moved):
        if promotion.version != moved[-1].version:
            return promotion.version
    raise RequestError(f"{store.root} has had no other champion: there is nothing to return to")


def _put(store: Store, number: int, version: int, why: str, owner: str) -> bool:
    promotion = Promotion(
        version=version,
        why=why,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        actor=current_actor(),
    )
    return publish(store, CHAMPION, number, asdict(promotion), owner)


def _as_promotion(store: Store, number: int, record: dict[str, object]) -> Promotion:
    return as_record(record, Promotion, store.uri(record_name(CHAMPION, number)))
