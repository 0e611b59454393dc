"""History of model versions beside their records: decisions on them, and retirements.

    decisions/00000003/00000001.json    first decision on version 3: verdict, reasons, numbers
    retired/00000002.json               version 2 must not be used any more

A version never changes. A retired one stays readable, so that predictions that it has made can be
traced. Needs no torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Final

from afinar.errors import RequestError
from afinar.models.registry.aliases import CHAMPION, alias_names, alias_version
from afinar.storage.records import as_record
from afinar.storage.store import Store
from afinar.storage.versions import (
    append_version,
    current_actor,
    new_owner,
    publish,
    read_version,
    record_name,
    versions,
)

_DECISIONS: Final = "decisions"
_RETIRED: Final = "retired"


@dataclass(frozen=True, kw_only=True)
class VersionDecision:
    """Decision of a night on a version, which was compared with the champion of that time.

    `night` is the folder of the night. Numbers are None if nothing was compared.
    """

    night: str
    outcome: str
    reasons: list[str]
    champion: int | None = None
    test_set: int | None = None
    decision: int | None = None
    p_value: float | None = None
    level: float | None = None
    created: str = ""


@dataclass(frozen=True, kw_only=True)
class Retirement:
    """Record of a retired version: the reason, when (UTC, ISO 8601), and who retired it."""

    why: str = ""
    created: str = ""
    actor: str = ""


def record_decision(store: Store, version: int, decision: VersionDecision) -> None:
    """Store a decision on a version, unless the same night has stored one."""
    if any(other.night == decision.night for other in decisions(store, version)):
        return
    record = asdict(decision)
    append_version(store, f"{_DECISIONS}/{version:08d}", lambda *_: record, new_owner())


def decisions(store: Store, version: int) -> list[VersionDecision]:
    """Return the decisions on a version, the oldest first."""
    folder = f"{_DECISIONS}/{version:08d}"
    return [
        as_record(
            read_version(store, folder, number),
            VersionDecision,
            store.uri(record_name(folder, number)),
        )
        for number in versions(store, folder)
    ]


def retirement(store: Store, version: int) -> Retirement | None:
    """Return the record of a retired version, None if it is in use."""
    if version not in versions(store, _RETIRED):
        return None
    record = read_version(store, _RETIRED, version)
    return as_record(record, Retirement, store.uri(record_name(_RETIRED, version)))


def retire(store: Store, version: int, why: str) -> None:
    """Retire a version: it cannot be promoted any more, and `@latest` and rollbacks skip it.

    Raises RequestError if it is retired already or if an alias stands for it.
    """
    for alias in alias_names(store):
        if alias_version(store, alias) == version:
            way = "roll back" if alias == CHAMPION else f"promote another one as {alias}"
            raise RequestError(
                f"version {version} of {store.root} is the {alias}: {way} before it is retired"
            )
    record = Retirement(
        why=why,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        actor=current_actor(),
    )
    if not publish(store, _RETIRED, version, asdict(record), new_owner()):
        raise RequestError(f"version {version} of {store.root} is retired already")


def retired_versions(store: Store) -> set[int]:
    """Return the numbers of all retired versions."""
    return set(versions(store, _RETIRED))


def require_usable(store: Store, version: int) -> None:
    """Raise RequestError for a version that is retired."""
    record = retirement(store, version)
    if record is not None:
        why = f" ({record.why})" if record.why else ""
        raise RequestError(
            f"version {version} of {store.root} was retired by {record.actor}{why}: choose another"
        )
