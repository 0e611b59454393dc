"""Published models as records: versions, aliases, and finding one. Needs no torch.

`<models>/weights/<sha256>.safetensors` and `golden/<sha256>.arrow` first, `versions/<N>.json` last.
`aliases/champion/<n>.json` are numbered records; the highest says which version `@champion` is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from afinar.config.jobs import Head, Output, Pool
from afinar.errors import NotFoundError, RequestError, StorageError, UnsafePathError
from afinar.pictures.preprocessing import InputView, StoredView
from afinar.storage.commit import Record, append_version, latest, new_owner, publish, read_version
from afinar.storage.names import check_identifier, check_model_id
from afinar.storage.objects import ObjectRef
from afinar.storage.open import open_store
from afinar.storage.store import Store

FORMAT: Final = "afinar-model/1"
VERSIONS: Final = "versions"
CHAMPION: Final = "aliases/champion"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Everything needed to build a network anew, before its weights. `cut` is a resolved node name."""

    backbone: str
    cut: str
    head: Head
    input_size: int
    classes: int
    pool: Pool = "average"
    hidden: int = 256
    dropout: float = 0.2
    output: Output = "softmax"

    def __post_init__(self) -> None:
        """Raises RequestError for one sigmoid over other than two classes: no network means that."""
        if self.output == "sigmoid" and self.classes != 2:
            raise RequestError(
                f"--output sigmoid decides between two classes and there are {self.classes}: use softmax"
            )

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return dict(self.__dict__)


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """One published model: everything that is needed to use it and to know where it came from.

    `id` is `<version>-<first 8 digits of the weights' sha256>`. `lineage` holds the dataset's URI and
    version, the run's configuration, the pretrained weights' source, and the libraries' versions. `temperature`
    divides logits before they become probabilities (fitted on validation; Guo et al. 2017, arXiv 1706.04599).
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
        """JSON form."""
        nested = ("architecture", "stored_view", "input_view", "weights", "golden")
        return {
            "format": FORMAT,
            **self.__dict__,
            **{name: getattr(self, name).as_dict() for name in nested},
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> ModelVersion:
        """Inverse of `as_dict`. Raises UnsafePathError for an id, a run or an object that is no name."""
        check_model_id(record["id"])
        folder, _, run = record["lineage"]["run"].partition("/")
        if folder != "runs":
            raise UnsafePathError(
                f"{record['lineage']['run']!r} is no run of this model: its record is damaged or forged"
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


def publish_model(store: Store, make: Callable[[int], ModelVersion]) -> ModelVersion:
    """Publish `make(number)` as the next version; the first one becomes champion."""
    published: dict[int, ModelVersion] = {}

    def record(number: int, _: Record | None) -> Record:
        published[number] = make(number)
        return published[number].as_dict()

    owner = new_owner()
    number = append_version(store, VERSIONS, record, owner)
    if number == 1:
        publish(store, CHAMPION, 1, {"version": 1, "why": "the first version"}, owner)
    return published[number]


def promote(store: Store, version: int, why: str) -> None:
    """Make `version` the champion."""
    append_version(store, CHAMPION, lambda _, __: {"version": version, "why": why}, new_owner())


def find_model(spec: str) -> tuple[Store, ModelVersion]:
    """The model that MODELS@champion, MODELS@VERSION or MODELS@VERSION-HASH names.

    Raises RequestError saying what there is instead.
    """
    location, _, wanted = spec.rpartition("@")
    store = open_store(location)
    try:
        number = _number(store, wanted)
        version = ModelVersion.from_dict(read_version(store, VERSIONS, number))
    except NotFoundError:
        raise RequestError(
            f"{store.root} has no version {wanted!r}: it has {_have(store)}"
        ) from None
    except StorageError as error:
        raise RequestError(f"cannot read {store.root}: {error}") from error
    if "-" in wanted and wanted != version.id:
        raise RequestError(
            f"{store.root} has no version {wanted!r}: version {number} is {version.id}"
        )
    return store, version


def _number(store: Store, wanted: str) -> int:
    if wanted == "champion":
        champion = latest(store, CHAMPION)
        if champion is None and latest(store, VERSIONS) is not None:
            return 1  # its publisher died before it could say so
        if champion is None:
            raise RequestError(
                f"{store.root} holds no model: make one with `afinar train DATASET {store.root}`"
            )
        return int(champion[1]["version"])
    if not re.fullmatch(r"\d+(-[0-9a-f]{8})?", wanted):
        raise RequestError(f"--model …@{wanted}: write @champion, a version's number, or its id")
    return int(wanted.split("-", maxsplit=1)[0])


def _have(store: Store) -> str:
    numbers = sorted(
        int(info.name.split("/")[-1].removesuffix(".json")) for info in store.walk(VERSIONS)
    )
    return f"versions {', '.join(map(str, numbers))}" if numbers else "none yet"
