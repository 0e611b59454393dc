"""Strict conversion of parsed values: kinds of types, and the path in a message."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest

from afinar.config.strict import Count, MismatchError, between, conforms_to, structure


class Named(TypedDict):
    uri: str


class Place(Named, total=False):
    page: int
    lines: dict[str, Count]


class Numbered(TypedDict):
    number: int
    note: NotRequired[str]


@dataclass(frozen=True, kw_only=True)
class View:
    EXACT_KEYS = True

    size: Annotated[int, between(8, 64)]
    mean: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class State:
    ALL_KEYS = True

    step: Count = 0


@dataclass(frozen=True, kw_only=True)
class Head:
    names: list[str]
    place: Place
    view: View
    raw: Annotated[dict[str, Any], conforms_to(View)]
    fit: Literal["crop", "pad"]
    parent: int | None
    numbered: Numbered
    state: State
    counts: dict[str, Count] = field(default_factory=dict)


GOOD: dict[str, Any] = {
    "names": ["a", "b"],
    "place": {"uri": "s3://b", "later": 1},
    "view": {"size": 8, "mean": [1, 0.5]},
    "raw": {"size": 9},
    "fit": "pad",
    "parent": None,
    "numbered": {"number": 1},
    "state": {"step": 3},
    "added later": True,
}


def test_values_become_the_dataclass_and_unknown_keys_are_ignored() -> None:
    head = structure(GOOD, Head)
    assert head.view == View(size=8, mean=(1.0, 0.5))
    assert (head.state, head.counts, head.raw) == (State(step=3), {}, {"size": 9})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": "ab"}, "names: expected a list, found 'ab'"),
        ({"names": ["a", None]}, r"names\[1\]: expected text, found null"),
        ({"names": ["\ud800"]}, r"names\[0\]: expected text, .* not Unicode"),
        ({"place": []}, "place: expected an object, found a list"),
        ({"place": {}}, "place.uri is missing"),
        ({"place": {"uri": "u", "page": "1"}}, "place.page: expected a whole number, found '1'"),
        ({"place": {"uri": "u", "lines": {"a": -1}}}, "place.lines.a: expected 0 to"),
        ({"numbered": {}}, "numbered.number is missing"),
        ({"numbered": {"number": 1, "note": 2}}, "numbered.note: expected text, found 2"),
        ({"view": {"size": 7}}, "view.size: expected 8 to 64, found 7"),
        ({"view": {"size": True}}, "view.size: expected a whole number, found true"),
        ({"view": {"size": 8, "x": 1}}, "view: 'x' is unknown to this .*update afinar$"),
        ({"view": {"size": 8, "mean": [1]}}, "view.mean: expected 2 values, found 1"),
        ({"view": {"size": 8, "mean": [1, float("inf")]}}, "view.mean: expected a finite number"),
        ({"raw": {"size": 1}}, "raw.size: expected 8 to 64, found 1"),
        ({"raw": None}, "raw: expected an object, found null"),
        ({"fit": "squash"}, "fit: expected one of crop, pad, found 'squash'"),
        ({"fit": []}, "fit: expected one of crop, pad, found a list"),
        ({"parent": "1"}, "parent: expected a whole number, found '1'"),
        ({"parent": 10**30}, "parent: expected a number of 64 bits, found a larger number"),
        ({"state": {}}, "state.step is missing"),
        ({"state": {"step": -1}}, "state.step: expected 0 to"),
        ({"counts": {"moss": None}}, "counts.moss: expected a whole number, found null"),
    ],
)
def test_wrong_part_is_named_with_its_path(change: dict[str, Any], message: str) -> None:
    with pytest.raises(MismatchError, match=f"^{message}"):
        structure({**GOOD, **change}, Head)
    for name in GOOD.keys() - {"added later"}:
        with pytest.raises(MismatchError, match=f"^{name} is missing"):
            structure({key: value for key, value in GOOD.items() if key != name}, Head)
