"""Names of files as text."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from afinar.storage.files import as_name, as_text
from afinar.storage.multi_store import MultiStore
from afinar.storage.open import open_reader

# Pieces that may be confused: bytes that are not UTF-8, escapes of them, and parts of escapes.
PIECES = [
    b"\xff",
    b"\x80",
    b"\\xff",
    b"\\x5c",
    b"\\x5cxff",
    b"\\",
    b"x",
    b"5c",
    b"ff",
    b"a",
    "é".encode(),
]
NAMES = st.lists(st.sampled_from(PIECES), max_size=8).map(b"".join) | st.binary(max_size=12)


@given(NAMES)
@example(b"\\udcff.jpg")
def test_escape_is_reversible_so_that_no_two_names_collide(name: bytes) -> None:
    text = as_text(os.fsdecode(name))
    text.encode()
    assert os.fsencode(as_name(text)) == name
    if b"\\x" not in name and name.decode("utf-8", "ignore").encode() == name:
        assert text == name.decode(), "a name that needs no escape is unchanged"


def test_names_that_are_not_utf8_are_listed_apart_and_read(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    Path(os.fsdecode(folder)).mkdir()
    names = [b"x\xff.jpg", b"x\\xff.jpg", b"x\\udcff.jpg", b"x\\x5cxff.jpg"]
    for name in names:
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(name)

    reader = open_reader(str(tmp_path))
    infos = list(reader.walk())
    assert len({info.uri for info in infos}) == 4
    assert sorted(reader.get(info.name, info.etag) for info in infos) == sorted(names)
    assert {reader.stat(info.name).etag for info in infos} == {info.etag for info in infos}
    anywhere = MultiStore(remote=False)
    assert sorted(anywhere.get(info.uri, info.etag) for info in infos) == sorted(names)
