"""Aliases: names of model versions, as numbered records. Needs no torch.

The record with the highest number is current:

    aliases/champion/00000001.json    {"version": 1, "why": "the first version"}
    aliases/champion/00000002.json    {"version": 3, "why": "best by validation"}
"""

from __future__ import annotations

from typing import Final

from afinar.storage.store import Store
from afinar.storage.versions import append_version, latest, new_owner, publish

CHAMPION: Final = "aliases/champion"


def champion_number(store: Store) -> int | None:
    """Return the number of the version that `@champion` stands for, or None if it has no record."""
    current = latest(store, CHAMPION)
    return None if current is None else int(current[1]["version"])


def set_first_champion(store: Store, owner: str) -> None:
    """Make version 1 the champion, unless the alias has a record already."""
    publish(store, CHAMPION, 1, {"version": 1, "why": "the first version"}, owner)


def promote(store: Store, version: int, why: str) -> None:
    """Make a version the champion and record the reason."""
    append_version(store, CHAMPION, lambda _, __: {"version": version, "why": why}, new_owner())
