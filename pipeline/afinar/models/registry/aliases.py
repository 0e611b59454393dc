"""Aliases of model versions, such as the champion, as numbered records. Needs no torch.

The record with the highest number is current:

    aliases/champion/00000001.json    {"version": 1, "why": "the first version", …}
    aliases/champion/00000002.json    {"version": 3, "why": "best by validation", …}

A record is put only if its number is free, so of two promotions at once one fails and says so.
`champion` is the alias that `--model MODELS` uses. Other names are free, but for `latest`, the
highest version, and `previous`, the champion before the current one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Annotated, Final

from afinar.config.models import ALIAS
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

CHAMPION: Final = "champion"
LATEST: Final = "latest"
PREVIOUS: Final = "previous"

_FOLDER: Final = "aliases"


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """Record of an alias: the version, the reason, when (UTC, ISO 8601), and who moved it.

    `created` and `actor` are empty in records that were written before they were added.
    """

    version: Annotated[int, between(1, 10**8 - 1)]
    why: str = ""
    created: str = ""
    actor: str = ""


def is_alias(name: str) -> bool:
    """Return True for a name that an alias may have."""
    return ALIAS.fullmatch(name) is not None


def alias_names(store: Store) -> list[str]:
    """Return the names of all aliases that have a record, sorted."""
    parts = [info.name.split("/") for info in store.walk(_FOLDER)]
    return sorted({part[1] for part in parts if len(part) == 3 and is_alias(part[1])})


def alias_version(store: Store, alias: str = CHAMPION) -> int | None:
    """Return the number of the version that an alias stands for, or None if it has no record."""
    current = latest(store, _folder(alias))
    return None if current is None else _as_promotion(store, alias, *current).version


def champion_number(store: Store) -> int | None:
    """Return the number of the version that `@champion` stands for, or None if it has no record."""
    return alias_version(store)


def count_promotions(store: Store, alias: str = CHAMPION) -> int:
    """Return the number of the current record of an alias, 0 if there is none."""
    current = latest(store, _folder(alias))
    return 0 if current is None else current[0]


def promotions(store: Store, alias: str = CHAMPION) -> list[Promotion]:
    """Return all records of an alias, the oldest first."""

    def read(numbers: list[int]) -> list[Promotion]:
        return [
            _as_promotion(store, alias, number, read_version(store, _folder(alias), number))
            for number in numbers
        ]

    return read_consistently(store, _folder(alias), read)


def promotion_at(store: Store, alias: str, moment: datetime) -> Promotion | None:
    """Return the record of an alias that was current at a moment, None if there was none.

    A record without a time is older than those with one.
    """
    current = None
    for promotion in promotions(store, alias):
        if promotion.created and datetime.fromisoformat(promotion.created) > moment:
            break
        current = promotion
    return current


def set_first_champion(store: Store, owner: str) -> None:
    """Make version 1 the champion, unless the alias has a record already."""
    _put(store, CHAMPION, 1, 1, "the first version", owner)


def promote(
    store: Store, version: int, why: str, *, after: int | None = None, alias: str = CHAMPION
) -> None:
    """Make an alias stand for a version and record the reason.

    Raises ShortfallError if another job moves the alias at the same time: since it was read here,
    or since `after`, which is what `count_promotions` returned.
    """
    number = 1 + (count_promotions(store, alias) if after is None else after)
    if not _put(store, alias, number, version, why, new_owner()):
        winner = _as_promotion(store, alias, number, read_version(store, _folder(alias), number))
        who = winner.actor or "another job"
        reason = f" ({winner.why})" if winner.why else ""
        raise ShortfallError(
            f"{who} made version {winner.version} of {store.root} the {alias} at the same time"
            f"{reason}: look at it, and promote again if version {version} must replace it"
        )


def version_before(
    store: Store, alias: str = CHAMPION, is_usable: Callable[[int], bool] = lambda _: True
) -> int:
    """Return the version that an alias stood for before its current one, the newest usable one.

    Raises RequestError if there was no other.
    """
    moved = promotions(store, alias)
    for promotion in reversed(moved):
        if promotion.version != moved[-1].version and is_usable(promotion.version):
            return promotion.version
    raise RequestError(f"{store.root} has had no other {alias}: there is nothing to return to")


def _folder(alias: str) -> str:
    return f"{_FOLDER}/{alias}"


def _put(store: Store, alias: str, number: int, version: int, why: str, owner: str) -> bool:
    promotion = Promotion(
        version=version,
        why=why,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        actor=current_actor(),
    )
    return publish(store, _folder(alias), number, asdict(promotion), owner)


def _as_promotion(store: Store, alias: str, number: int, record: dict[str, object]) -> Promotion:
    return as_record(record, Promotion, store.uri(record_name(_folder(alias), number)))
