"""A folder of pictures: links are followed."""

from __future__ import annotations

from pathlib import Path

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
