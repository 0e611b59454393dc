"""Published models as records: model versions, and finding one. Needs no torch.

A version's objects `weights/<sha256>.safetensors` and `golden/<sha256>.arrow` are written first,
its record `versions/<N>.json` last.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from afinar.errors import NotFoundError, RequestError, StorageError, UnsafePathError
from afinar.models.networks.architecture import Architecture
from afinar.models.registry.aliases import champion_number, set_first_champion
from afinar.pictures.preprocessing import InputView, StoredView
from afinar.storage.names import check_identifier, check_model_id
from afinar.storage.objects import ObjectRef
from afinar.storage.open import open_store
from afinar.storage.store import Store
from afinar.storage.versions import Record, append_version, new_owner, read_version, versions

FORMAT: Final = "afinar-model/1"
VERSIONS: Final = "versions"


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """Record of one published model: everything needed to use it and to trace its origin.

    `id` is `<version>-<first 8 digits of the weights' sha256>`. `lineage` holds the dataset's URI
    and version, the run's configuration, the source of pretrained weights, and library versions.
    Logits are divided by `temperature` before they become probabilities; it was fitted on the
    validation split (Guo et al. 2017, arXiv 1706.04599).
    """

    version: int
    id: str
    architecture: Architecture
    regime: str
    classes: list[str]
    stored_view: StoredView
    input_view: InputView
    weights: ObjectRef
    golden: ObjectRef
    metrics: dict[str, Any]
    lineage: dict[str, Any]
    temperature: float = 1.0

    def as_dict(self) -> dict[str, Any]:
        """Return the record as a JSON object."""
        nested = ("architecture", "stored_view", "input_view", "weights", "golden")
        return {
            "format": FORMAT,
            **self.__dict__,
            **{name: getattr(self, name).as_dict() for name in nested},
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> ModelVersion:
        """Read a record. Raises UnsafePathError if an id, run or object in it is not a name."""
        if record.get("format") != FORMAT:
            raise RequestError(f"the record of a model has the format {record.get('format')!r}")
        check_model_id(record["id"])
        # A model that was not made by `afinar train` may have no run.
        if "run" in record["lineage"]:
            folder, _, run = str(record["lineage"]["run"]).partition("/")
            if folder != "runs":
                raise UnsafePathError(
                    f"{record['lineage']['run']!r} is no run of this model: its record is damaged "
                    "or forged"
                )
            check_identifier(run, "the name of a run")

        fields = {name: record[name] for name in cls.__dataclass_fields__ if name in record}
        fields |= {
            "architecture": Architecture(**record["architecture"]),
            "stored_view": StoredView.from_dict(record["stored_view"]),
            "input_view": InputView.from_dict(record["input_view"]),
            "weights": ObjectRef(**record["weights"]),
            "golden": ObjectRef(**record["golden"]),
        }
        return cls(**fields)


class StoredModel(NamedTuple):
    """A model version and the store that holds its objects."""

    store: Store
    version: ModelVersion


def publish_model(store: Store, build: Callable[[int], ModelVersion]) -> ModelVersion:
    """Publish `build(number)` as the next version. The first version becomes the champion."""
    published: dict[int, ModelVersion] = {}

    def build_record(number: int, _: Record | None) -> Record:
        published[number] = build(number)
        return published[number].as_dict()

    owner = new_owner()
    number = append_version(store, VERSIONS, build_record, owner)
    if number == 1:
        set_first_champion(store, owner)
    return published[number]


def find_model(spec: str) -> StoredModel:
    """Return the model that MODELS@champion, MODELS@VERSION or MODELS@VERSION-HASH names.

    Raises RequestError if there is none; the message lists the versions that exist.
    """
    location, at, wanted = spec.rpartition("@")
    if not at:
        raise RequestError(f"{spec!r} names no version: write {spec}@champion or {spec}@NUMBER")
    store = open_store(location)
    try:
        number = _version_number(store, wanted)
        version = ModelVersion.from_dict(read_version(store, VERSIONS, number))
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
    """Return the number that `champion`, `VERSION` or `VERSION-HASH` refers to."""
    if wanted == "champion":
        number = champion_number(store)
        if number is None and versions(store, VERSIONS):
            return 1  # its publisher died between the version and the alias
        if number is None:
            raise RequestError(
                f"{store.root} holds no model: make one with `afinar train DATASET {store.root}`"
            )
        return number
    if not re.fullmatch(r"\d+(-[0-9a-f]{8})?", wanted):
        raise RequestError(f"--model …@{wanted}: write @champion, a version's number, or its id")
    return int(wanted.split("-", maxsplit=1)[0])
