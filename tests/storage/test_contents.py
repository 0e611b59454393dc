"""Targets that hold something else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from afinar.errors import RequestError
from afinar.storage.contents import is_record, require_target_for
from afinar.storage.open import open_store

RECORDS = {
    "a dataset": ("manifests", "afinar-dataset/1"),
    "predictions": ("manifests", "afinar-predictions/1"),
    "models": ("versions", "afinar-model/1"),
}


@pytest.mark.parametrize("held", RECORDS)
@pytest.mark.parametrize("wanted", RECORDS)
def test_target_with_something_else_is_refused(held: str, wanted: str, tmp_path: Path) -> None:
    folder, written_format = RECORDS[held]
    store = open_store(str(tmp_path))
    store.put_if_absent(f"{folder}/00000001.json", json.dumps({"format": written_format}).encode())
    if held == wanted:
        require_target_for(store, wanted)
        return
    with pytest.raises(RequestError, match=f"holds {held}, not {wanted}") as refused:
        require_target_for(store, wanted)
    assert refused.value.exit_code == 2


def test_empty_and_foreign_folders_may_be_targets(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "new"))
    require_target_for(store, "models")
    for name, data in {"manifests/00000001.json": b"[]", "versions/00000002.json": b"{"}.items():
        store.put_if_absent(name, data)
        require_target_for(store, "a dataset")
        assert not is_record(store, name)


def test_source_is_no_target_by_any_path(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "link").symlink_to("pictures")
    for source in ("pictures", "link"):
        with pytest.raises(RequestError, match="is the source as well as the target"):
            require_target_for(
                open_store(str(tmp_path / "pictures")), "a dataset", str(tmp_path / source)
            )
    with pytest.raises(RequestError, match="is the source"):
        require_target_for(open_store("s3://b/p"), "a dataset", "s3://b/p")
