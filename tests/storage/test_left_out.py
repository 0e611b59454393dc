"""Files that systems leave among pictures are left out and counted, in folders and buckets."""

from __future__ import annotations

from pathlib import Path

import pytest

from afinar.storage.left_out import HIDDEN, LeftOut, system_label, system_place
from afinar.storage.open import open_reader
from tests.storage.keys import put_keys

LISTED = ["cats/1.jpg", "cats/@eaDirs/2.jpg", "tmp/3.jpg", "recycled/4.jpg", "a.b/5.jpg"]
LEFT_OUT = {
    "cats/@eaDir/1.jpg/thumb.jpg": "@eaDir",
    "cats/@eaDir/2.jpg/thumb.jpg": None,  # in a folder that is counted already
    "@EADIR/x.jpg": "@eaDir",
    "#recycle/cats/1.jpg": "#recycle",
    "#snapshot/daily/1.jpg": "#snapshot",
    "@Recycle/1.jpg": "@Recycle",
    "$Recycle.Bin/S-1-5/1.jpg": "$RECYCLE.BIN",
    "System Volume Information/1.jpg": "System Volume Information",
    "lost+found/#12.jpg": "lost+found",
    "cats/__MACOSX/1.jpg": "__MACOSX",
    "cats/Thumbs.db": "Thumbs.db",
    "cats/desktop.ini": "desktop.ini",
    "cats/._1.jpg": "._*",
    "cats/.DS_Store": ".DS_Store",
    ".Trash-1000/files/1.jpg": ".Trash*",
    ".thumbnails/large/1.jpg": ".thumbnails",
    ".AppleDouble/1.jpg": ".AppleDouble",
    ".git/objects/1.jpg": ".git",
    "cats/.ipynb_checkpoints/1.jpg": ".ipynb_checkpoints",
    ".@__thumb/1.jpg": ".@__thumb",
    "cats/.mine/1.jpg": HIDDEN,
    ".nomedia": HIDDEN,
}


def test_leftovers_are_counted_once_per_folder_and_file(location: str) -> None:
    put_keys(location, [*LISTED, *LEFT_OUT])
    left_out = LeftOut()
    names = sorted(info.name for info in open_reader(location).walk(left_out=left_out))
    assert names == sorted(LISTED)
    labels = [label for label in LEFT_OUT.values() if label is not None]
    assert left_out.counts == {label: labels.count(label) for label in labels}


def test_leftovers_of_a_prefix_with_many_folders_are_counted_once(bucket: str) -> None:
    # So many folders that each is listed with all keys below it.
    classes = [f"class{number:02d}" for number in range(20)]
    leftovers = [f"{name}/deep/@eaDir/{number}.jpg" for name in classes for number in (1, 2)]
    put_keys(bucket, [*(f"{name}/1.jpg" for name in classes), *leftovers, "class00/._1.jpg"])
    left_out = LeftOut()
    assert len(list(open_reader(bucket).walk(left_out=left_out))) == 20
    assert left_out.counts == {"@eaDir": 20, "._*": 1}


@pytest.mark.parametrize("name", ["dogs", "@tmps", "tmp", "git", "Trash", "a.git", "x@eaDir"])
def test_names_that_only_resemble_leftovers_are_listed(name: str) -> None:
    assert system_label(name) is None
    assert system_place(f"root/{name}/1.jpg", 5) is None


def test_part_of_a_key_above_the_listed_folder_is_not_looked_at(tmp_path: Path) -> None:
    assert system_place(".cache/@eaDir/1.jpg", len(".cache/@eaDir/")) is None
    (tmp_path / ".cache" / "#recycle").mkdir(parents=True)
    (tmp_path / ".cache" / "#recycle" / "1.jpg").write_bytes(b"1")
    reader = open_reader(str(tmp_path / ".cache" / "#recycle"))
    assert [info.name for info in reader.walk()] == ["1.jpg"]
