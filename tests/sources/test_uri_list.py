"""Lists of pictures in any places."""

from __future__ import annotations

from pathlib import Path

import pytest

from afinar.errors import RequestError, StorageError
from afinar.sources.entry import LISTING
from afinar.sources.uri_list import MISSING, list_named
from afinar.storage.multi_store import MultiStore
from afinar.storage.open import open_store
from afinar.storage.store import ObjectInfo


def write_list(folder: Path, *uris: object) -> str:
    path = folder / "list.csv"
    path.write_text("uri,note\n" + "".join(f"{uri},x\n" for uri in uris))
    return str(path)


def test_each_spelling_of_a_picture_is_listed_once(archive: Path) -> None:
    first, second = archive / "moss" / "000.jpg", archive / "rust" / "000.jpg"
    spellings = (second, f"file://{first}", "pictures/moss/../moss/000.jpg", first, "")
    annotated = list_named(write_list(archive.parent, *spellings))
    listing = annotated.listing
    assert listing.schema == LISTING
    assert listing.column("uri").to_pylist() == [str(first), str(second)]
    assert listing.column("size").to_pylist() == [first.stat().st_size, second.stat().st_size]
    assert "1 of 5 rows of" in annotated.notes[0]
    assert "2 of 5 rows of" in annotated.notes[1]


def test_picture_that_does_not_exist_is_listed_as_missing(archive: Path) -> None:
    listed = write_list(archive.parent, "pictures/gone.jpg", "pictures/moss/000.jpg")
    annotated = list_named(listed)
    assert annotated.listing.column("etag").to_pylist()[0] == MISSING
    assert "1 of 2 pictures of" in annotated.notes[0]


@pytest.mark.parametrize(
    ("uris", "words"),
    [((), "names no picture"), (("https://example.org/1.jpg",), "only files and s3://")],
)
def test_unusable_list_is_refused(tmp_path: Path, uris: tuple[str, ...], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        list_named(write_list(tmp_path, *uris))


def test_folder_of_many_named_pictures_is_listed_others_are_looked_up(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(bucket)
    names = [f"dense/{number}.jpg" for number in range(100)] + ["sparse/0.jpg"]
    for name in [*names, "dense/unnamed.jpg"]:
        store.put_if_absent(name, name.encode())
    looked_up = []
    stat = MultiStore.stat

    def recording_stat(self: MultiStore, uri: str) -> ObjectInfo:
        looked_up.append(uri)
        return stat(self, uri)

    monkeypatch.setattr(MultiStore, "stat", recording_stat)
    uris = [f"{bucket}/{name}" for name in [*names, "dense/missing.jpg"]]
    listing = list_named(write_list(tmp_path, *uris)).listing
    assert listing.column("uri").to_pylist() == sorted(uris)
    assert sorted(looked_up) == [f"{bucket}/dense/missing.jpg", f"{bucket}/sparse/0.jpg"]
    sizes = dict(
        zip(listing.column("uri").to_pylist(), listing.column("size").to_pylist(), strict=True)
    )
    assert sizes == {f"{bucket}/{name}": len(name) for name in names} | {uris[-1]: 0}


def test_store_that_fails_again_and_again_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing_stat(self: MultiStore, uri: str) -> ObjectInfo:
        raise StorageError("connection refused")

    monkeypatch.setattr(MultiStore, "stat", failing_stat)
    few = list_named(write_list(tmp_path, *(f"{number}.jpg" for number in range(19))))
    assert set(few.listing.column("etag").to_pylist()) == {"unreadable"}
    with pytest.raises(RequestError, match="cannot look pictures up: connection refused"):
        list_named(write_list(tmp_path, *(f"{number}.jpg" for number in range(20))))


def test_what_is_not_beside_the_list_is_looked_for_in_the_current_folder(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lists").mkdir()
    first = archive / "moss" / "000.jpg"
    monkeypatch.chdir(archive.parent)
    rows = ("./pictures//moss/000.jpg", first.as_uri(), "pictures/rust/000.jpg", "gone.jpg")
    annotated = list_named(write_list(tmp_path / "lists", *rows))
    assert annotated.listing.column("uri").to_pylist() == sorted(
        [str(tmp_path / "lists" / "gone.jpg"), str(first), str(archive / "rust" / "000.jpg")]
    )
    assert any("an earlier row names" in note for note in annotated.notes)
    assert any("1 of 3 pictures" in note for note in annotated.notes)


def test_list_of_which_nothing_exists_is_refused_with_an_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lists").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError) as refused:
        list_named(write_list(tmp_path / "lists", "p\\a.jpg", "p\\b.jpg"))
    message = str(refused.value)
    assert "none of the 2 pictures" in message
    assert f"{tmp_path}/lists/p\\a.jpg and at {tmp_path}/p\\a.jpg" in message


def test_columns_of_a_list_are_read_if_they_are_asked_for(archive: Path, tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text(f"uri,label,split\n{archive}/moss/000.jpg,a,val\n{archive}/moss/001.jpg,,\n")
    (first, second) = list_named(str(path), ("label", "split", "group")).listing.to_pylist()
    assert (first["label"], first["split"], first["group"]) == ("a", "validation", None)
    assert (second["label"], second["split"]) == (None, None)
    assert list_named(str(path)).has("label") is False
