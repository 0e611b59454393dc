"""A folder of pictures: links are followed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from afinar.errors import ForbiddenError, NotFoundError
from afinar.storage.open import open_reader


def test_picture_behind_several_links_is_listed_under_same_name_in_every_walk(
    tmp_path: Path,
) -> None:
    for folder in "zyx":
        (tmp_path / folder / "deep").mkdir(parents=True)
        (tmp_path / folder / "deep" / "p.jpg").write_bytes(b"1")
    outside = tmp_path.with_name(f"{tmp_path.name}-outside")
    outside.mkdir()
    (outside / "q.jpg").write_bytes(b"1")
    (outside / "back").symlink_to(tmp_path)
    for link, target in {
        "a": tmp_path / "z",
        "b": tmp_path / "y" / "deep",
        "d": outside,
        "c": outside,
    }.items():
        (tmp_path / link).symlink_to(target)
    (tmp_path / "file").symlink_to(outside / "q.jpg")
    (tmp_path / "broken").symlink_to(outside / "nothing")
    for _ in range(20):
        listed = {info.name: info.etag for info in open_reader(str(tmp_path)).walk()}
        assert sorted(listed) == [
            "broken",
            "c/q.jpg",
            "file",
            "x/deep/p.jpg",
            "y/deep/p.jpg",
            "z/deep/p.jpg",
        ]
        assert listed["broken"] == "unreadable"


def test_link_to_parent_folder_is_followed_once(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jpg").write_bytes(b"1")
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    source = open_reader(str(tmp_path))
    assert [info.name for info in source.walk()] == ["real/a.jpg"]


def test_link_to_itself_is_listed_as_an_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"1")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "there.jpg").symlink_to("back.jpg")
    (tmp_path / "back.jpg").symlink_to("there.jpg")
    reader = open_reader(str(tmp_path))
    listed = {info.name: info.etag for info in reader.walk()}
    assert sorted(listed) == ["a.jpg", "back.jpg", "self.jpg", "there.jpg"]
    assert [name for name, etag in listed.items() if etag != "unreadable"] == ["a.jpg"]
    with pytest.raises(NotFoundError, match="symbolic links"):
        reader.get("self.jpg", "unreadable")


def test_folders_that_nest_too_deep_are_reported_in_a_short_sentence(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(40):
        os.mkdir("d" * 200, dir_fd=folder)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(folder)
    try:
        with pytest.raises(ForbiddenError, match="too long") as refused:
            list(open_reader(str(tmp_path)).walk())
        assert len(str(refused.value)) < 300
    finally:
        subprocess.run(["rm", "-rf", str(tmp_path / ("d" * 200))], check=True)
