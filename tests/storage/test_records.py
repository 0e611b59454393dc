"""Records: files that are not JSON objects, and files that are too large."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from afinar.errors import IntegrityError, RecordError
from afinar.storage import records
from afinar.storage.open import open_store
from afinar.storage.records import parse_object, read_record


@dataclass(frozen=True)
class Note:
    words: list[str]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not JSON .it is empty"),
        (b"   \n", "is not JSON .it is empty"),
        (b"null", "is not a JSON object"),
        (b"[1]", "is not a JSON object"),
        (b"{", "is not JSON"),
        (b"\xff\xfe{}", "is not UTF-8"),
        (b'{"a": 1, "a": 2}', "'a' occurs twice"),
        (b'{"a": {"b": 1, "b": 2}}', "'b' occurs twice"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": -Infinity}', "-Infinity is no number"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "is not JSON"),
        (b'{"\\ud800": 1}', "is not JSON"),
    ],
)
def test_what_is_no_json_object_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(RecordError, match=f"^place/x.json .*{message}") as caught:
        parse_object(data, "place/x.json")
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_wrong_field_is_named_with_the_uri(tmp_path: Path) -> None:
    (tmp_path / "note.json").write_text('{"words": ["a", null]}')
    with pytest.raises(RecordError, match=r"note.json: words\[1\]: expected text, found null"):
        read_record(open_store(str(tmp_path)), "note.json", Note)


def test_large_record_is_refused_before_it_is_read(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "MAX_BYTES", 20)
    store = open_store(location)
    store.put_if_absent("small.json", b'{"words": ["a"]}')
    store.put_if_absent("large.json", b'{"words": ["a"], "more": "0123456789"}')
    assert read_record(store, "small.json", Note) == Note(["a"])
    with pytest.raises(IntegrityError, match="large.json is not what was committed: it is larger"):
        read_record(store, "large.json", Note)
