"""Published models as records: model versions, and finding one. Needs no torch.

A version's objects `weights/<sha256>.safetensors` and `golden/<sha256>.arrow` are written first,
its record `versions/<N>.json` last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, NamedTuple, TypedDict

from afinar.config.base import fingerprint
from afinar.config.strict import between, conforms_to
from afinar.errors import NotFoundError, RecordError, RequestError, StorageError
from afinar.models.networks.architecture import Architecture
from afinar.models.registry.aliases import (
    CHAMPION,
    LATEST,
    PREVIOUS,
    alias_names,
    alias_version,
    champion_number,
    is_alias,
    set_first_champion,
    version_before,
)
from afinar.models.registry.history import retired_versions
from afinar.pictures.preprocessing import InputView, StoredView
from afinar.storage.names import check_model_id
from afinar.storage.objects import ObjectRef
from afinar.storage.open import open_store
from afinar.storage.records import REMEDY, Record, RunFolder, as_record
from afinar.storage.store import Store
from afinar.storage.versions import (
    append_version,
    new_owner,
    read_version,
    record_name,
    versions,
)

FORMAT: Final = "afinar-model/2"
VERSIONS: Final = "versions"

_WEIGHTS_ID_FORMAT: Final = "afinar-model/1"
"""Format of versions whose id has the hash of the weights alone. They stay readable."""

_NOT_COVERED: Final = frozenset({"id", "owner"})
"""Keys of a record that its id does not cover: itself, and the token of the writer."""


class _Lineage(TypedDict, total=False):
    run: RunFolder


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """Record of one published model: everything needed to use it and to trace its origin.

    `id` is `<version>-<first 8 digits of the SHA-256 of the record>`; `publish_model` fills it in.
    `lineage` holds the dataset's URI and version, the run's configuration, the source of pretrained
    weights, and library versions; `parent` is the model that the training began with, if any. A
    model that was not made by `afinar train` may have no run.
    Logits are divided by `temperature` before they become probabilities; it was fitted on the
    validation split (Guo et al. 2017, arXiv 1706.04599).
    """

    version: Annotated[int, between(1, 10**8 - 1)]
    id: Annotated[str, check_model_id] = ""
    architecture: Architecture
    regime: str
    classes: list[str]
    stored_view: StoredView
    input_view: InputView
    weights: ObjectRef
    golden: ObjectRef
    metrics: dict[str, Any]
    lineage: Annotated[dict[str, Any], conforms_to(_Lineage)]
    temperature: Annotated[float, between(1e-3, 1e3)] = 1.0

    def __repr__(self) -> str:
        return (
            f"ModelVersion({self.id!r}, {self.architecture.backbone}, {self.regime}, "
            f"{len(self.classes)} classes)"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the record as a JSON object."""
        nested = ("architecture", "stored_view", "input_view", "weights", "golden")
        return {
            "format": FORMAT,
            **self.__dict__,
            **{name: getattr(self, name).as_dict() for name in nested},
        }


class StoredModel(NamedTuple):
    """A model version and the store that holds its objects."""

    store: Store
    version: ModelVersion


def get_model(store: Store, number: int) -> ModelVersion:
    """Return a published version. Raises NotFoundError if there is none, RecordError for a bad one.

    The record must have the content that its id was computed from, so that classes, temperature and
    preprocessing are those that were published.
    """
    uri = store.uri(record_name(VERSIONS, number))
    record = read_version(store, VERSIONS, number)
    if record.get("format") not in (FORMAT, _WEIGHTS_ID_FORMAT):
        known = f"{_WEIGHTS_ID_FORMAT} and {FORMAT}"
        found = str(record.get("format"))[:60]
        raise RecordError(f"{uri} has the format {found!a}; this version of afinar reads {known}")

    version = as_record(record, ModelVersion, uri)
    classes = len(version.classes)
    if classes != version.architecture.classes or len(set(version.classes)) != classes:
        raise RecordError(
            f"{uri}: classes must be {version.architecture.classes} different names; {REMEDY}"
        )
    digest = version.weights.sha256 if record["format"] == _WEIGHTS_ID_FORMAT else _digest(record)
    if version.version != number or version.id != f"{number}-{digest[:8]}":
        raise RecordError(
            f"{uri} is not what was published: its content does not have the id {version.id}; "
            f"{REMEDY}"
        )
    return version


def _digest(record: Record) -> str:
    """Return the SHA-256 of a record without its id and the token of its writer."""
    return fingerprint({name: record[name] for name in record.keys() - _NOT_COVERED})


def _with_id(version: ModelVersion) -> ModelVersion:
    # JSON turns tuples into lists: the digest is that of the record as it is read back.
    record = json.loads(json.dumps(version.as_dict()))
    return replace(version, id=f"{version.version}-{_digest(record)[:8]}")


def publish_model(
    store: Store, build: Callable[[int], ModelVersion], *, sets_champion: bool = True
) -> ModelVersion:
    """Publish `build(number)` as the next version, with its id.

    The first version becomes the champion, unless the caller decides that (`sets_champion`).
    """
    published: dict[int, ModelVersion] = {}

    def build_record(number: int, _: Record | None) -> Record:
        published[number] = _with_id(build(number))
        return published[number].as_dict()

    owner = new_owner()
    number = append_version(store, VERSIONS, build_record, owner)
    if number == 1 and sets_champion:
        set_first_champion(store, owner)
    return published[number]


def find_champion(store: Store) -> int | None:
    """Return the number of the champion, None if no version is one.

    Before trainings chose the champion, version 1 became it. Its publisher may have died between
    the version and the alias, so a version 1 of that time is the champion without an alias.
    """
    number = champion_number(store)
    if number is not None or 1 not in versions(store, VERSIONS):
        return number
    config = get_model(store, 1).lineage.get("config")
    is_chosen_later = isinstance(config, dict) and "promote" in config
    return None if is_chosen_later else 1


def find_model(spec: str) -> StoredModel:
    """Return the model that a reference names.

    It is MODELS@champion, MODELS@previous (the champion before), MODELS@latest (that is not
    retired), MODELS@ALIAS, MODELS@VERSION or MODELS@VERSION-HASH. MODELS alone means its champion.

    Raises RequestError if there is none; the message lists the versions that exist.
    """
    location, at, wanted = spec.rpartition("@")
    if not at or "/" in wanted:  # an @ within the path
        location, wanted = spec, "champion"
    store = open_store(location)
    try:
        number = _version_number(store, wanted)
        version = get_model(store, number)
    except NotFoundError:
        numbers = ", ".join(map(str, versions(store, VERSIONS)))
        raise RequestError(
            f"{store.root} has no version {wanted!r}: "
            f"it has {f'versions {numbers}' if numbers else 'none yet'}"
        ) from None
    except StorageError as error:
        raise RequestError(f"cannot read {store.root}: {error}") from error

    if "-" in wanted and wanted != version.id:
        raise RequestError(
            f"{store.root} has no version {wanted!r}: version {number} is {version.id}"
        )
    return StoredModel(store, version)


def _version_number(store: Store, wanted: str) -> int:
    """Return the number that an alias, `VERSION` or `VERSION-HASH` refers to."""
    if wanted == PREVIOUS:
        return version_before(store)
    if wanted in {CHAMPION, LATEST}:
        published = versions(store, VERSIONS)
        in_use = set(published) - retired_versions(store)
        number = find_champion(store) if wanted == CHAMPION else max(in_use, default=None)
        if number is None and published:
            raise RequestError(
                f"{store.root} has no champion: name a version, as MODELS@{max(published)}, or "
                f"choose one with `afinar models {store.root} promote NUMBER`"
            )
        if number is None:
            raise RequestError(
                f"{store.root} holds no model: make one with `afinar train DATASET {store.root}`"
            )
        return number
    if not re.fullmatch(r"\d+(-[0-9a-f]{8})?", wanted):
        number = alias_version(store, wanted) if is_alias(wanted) else None
        if number is None:
            others = ", ".join(f"@{name}" for name in alias_names(store) if name != CHAMPION)
            known = f"@champion, @previous, @latest{f', {others}' if others else ''}"
            raise RequestError(f"…@{wanted}: write {known}, a version's number, or its id")
        return number
    return int(wanted.split("-", maxsplit=1)[0])
