"""Units of explanation: one picture, or one class and seed. Results on disk, and reading them back.

    <out>/units/<unit>.json                     the marker, written last
          results/<unit>-<hash>.json            numbers
          pictures/<unit>-<name>-<hash>.png     pictures
          runs/<run>/report.html                the page of one run

The name of a unit is a digest of everything that determines its result: model, method, options and
the picture. So a rerun finds what is done, and a run with other options computes anew.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeVar

from afinar.config.base import fingerprint
from afinar.explain.network import ExplainedNetwork
from afinar.storage.markers import UnitMarker, commit_unit, read_marker
from afinar.storage.objects import ObjectRef, get_object, put_object
from afinar.storage.records import as_record, parse_object
from afinar.storage.store import Store

_FORMAT: Final = 1  # counts changes of the methods that give other results
_RESULT: Final = "result"

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True)
class Rendered(Generic[R_co]):
    """Result of a unit, a dataclass of numbers, and its pictures as files by name ("map.png")."""

    result: R_co
    pictures: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Stored(Generic[R_co]):
    """A committed result and references to its pictures by name."""

    unit: str
    result: R_co
    pictures: dict[str, ObjectRef]


class ExplainTask(Protocol[R_co]):
    """Work of one unit. `title` is for messages, such as the URI of a picture."""

    @property
    def unit(self) -> str: ...

    @property
    def title(self) -> str: ...

    def run(self, network: ExplainedNetwork) -> Rendered[R_co]:
        """Compute the unit. Raises PictureError for a picture that cannot be used."""
        ...


def unit_name(method: str, model: str, *options: Any) -> str:
    """Return the name of a unit; `model` is the identity of a ModelSpec."""
    return fingerprint([_FORMAT, method, model, *options])[:20]


def commit(store: Store, unit: str, rendered: Rendered[Any]) -> None:
    """Write pictures and numbers of a unit, then its marker."""
    objects: dict[str, ObjectRef] = {}
    for name, data in rendered.pictures.items():
        stem, _, ending = name.rpartition(".")
        objects[name] = put_object(store, f"pictures/{unit}-{stem}-{{hash}}.{ending}", data, 1)
    body = json.dumps(dataclasses.asdict(rendered.result), indent=1).encode()
    objects[_RESULT] = put_object(store, f"results/{unit}-{{hash}}.json", body, 1)
    commit_unit(store, UnitMarker(unit=unit, objects=objects))


def read(store: Store, unit: str, result_type: type[R]) -> Stored[R]:
    """Read a committed unit. Raises RecordError or IntegrityError for a damaged one."""
    marker = read_marker(store, unit)
    ref = marker.objects[_RESULT]
    record = parse_object(get_object(store, ref), store.uri(ref.path))
    pictures = {name: ref for name, ref in marker.objects.items() if name != _RESULT}
    return Stored(unit, as_record(record, result_type, store.uri(ref.path)), pictures)
