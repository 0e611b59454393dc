"""Aliases: names of model versions, as numbered records. Needs no torch.

The record with the highest number is current:

    aliases/champion/00000001.json    {"version": 1, "why": "the first version"}
    aliases/champion/00000002.json    {"version": 3, "why": "best by validation"}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from afinar.config.strict import between
from afinar.storage.records import as_record
from afinar.storage.store import Store
from afinar.storage.versions import append_version, latest, new_owner, publish, record_name

CHAMPION: Final = "aliases/champion"


@dataclass(frozen=True, kw_only=True)
class _Alias:
    version: Annotated[int, between(1, 10**8 - 1)]
    why: str = ""


def champion_number(store: Store) -> int | None:
    """Return the number of the version that `@champion` stands for, or None if it has no record."""
    current = latest(store, CHAMPION)
    if current is None:
        return None
    number, record = current
    return as_record(record, _Alias, store.uri(record_name(CHAMPION, number))).version


def set_first_champion(store: Store, owner: str) -> None:
    """Make version 1 the champion, unless the alias has a record already."""
    publish(store, CHAMPION, 1, {"version": 1, "why": "the first version"}, owner)


def promote(store: Store, version: int, why: str) -> None:
    """Make a version the champion and record the reason."""
    append_version(store, CHAMPION, lambda _, __: {"version": version, "why": why}, new_owner())
