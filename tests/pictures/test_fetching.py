"""Reading of pictures: a failing store is told from failing pictures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from afinar.errors import ForbiddenError, NotFoundError, StorageError
from afinar.pictures.fetching import PictureReader, PictureRef
from afinar.pictures.rejects import PictureError, Reason
from afinar.storage.left_out import LeftOut
from afinar.storage.store import ObjectInfo, Reader

LIMIT = 20
"""Consecutive failures after which the store is at fault."""


class FailingReader(Reader):
    """A store that raises `error` for every name but `good`, and `exists` or not."""

    def __init__(self, error: StorageError, exists: bool) -> None:
        super().__init__("/store")
        self._error, self._exists = error, exists

    def walk(self, prefix: str = "", left_out: LeftOut | None = None) -> Iterator[ObjectInfo]:
        raise NotImplementedError

    def stat(self, name: str) -> ObjectInfo:
        raise NotImplementedError

    def exists(self) -> bool:
        return self._exists

    def get(self, name: str, etag: str | None = None) -> bytes:
        if name == "good":
            return b"picture"
        if name == "missing":
            raise NotFoundError(name)
        raise self._error


def read_all(reader: PictureReader, names: list[str]) -> list[bytes | PictureError]:
    with reader.read_ahead(PictureRef(name, "etag", 7) for name in names) as outcomes:
        return list(outcomes)


def test_unreachable_pictures_in_a_row_raise_storage_error() -> None:
    store = FailingReader(StorageError("timeout"), exists=True)
    outcomes = read_all(PictureReader(store), ["bad"] * (LIMIT - 1))
    assert {str(outcome) for outcome in outcomes} == {"unreachable: timeout"}
    with pytest.raises(StorageError, match="20 pictures in a row"):
        read_all(PictureReader(store), ["bad"] * LIMIT)


@pytest.mark.parametrize("answered", ["good", "missing"])
def test_picture_that_the_store_answers_for_resets_failures(answered: str) -> None:
    store = FailingReader(StorageError("timeout"), exists=True)
    names = ["bad"] * (LIMIT - 1) + [answered] + ["bad"] * (LIMIT - 1)
    assert len(read_all(PictureReader(store), names)) == 2 * LIMIT - 1


def test_picture_over_the_limit_of_bytes_does_not_reset_failures() -> None:
    """It is not read, so it does not show that the store answers."""
    store = FailingReader(StorageError("timeout"), exists=True)
    pictures = [PictureRef("bad", "etag", 7) for _ in range(LIMIT)]
    pictures.insert(1, PictureRef("large", "etag", 10**9))
    with (
        pytest.raises(StorageError, match="20 pictures in a row"),
        PictureReader(store).read_ahead(pictures) as outcomes,
    ):
        list(outcomes)


@pytest.mark.parametrize("exists", [True, False])
def test_forbidden_pictures_raise_storage_error_only_if_store_does_not_answer(exists: bool) -> None:
    reader = PictureReader(FailingReader(ForbiddenError("denied"), exists=exists))
    if exists:
        outcomes = read_all(reader, ["bad"] * 3 * LIMIT)
        assert all(isinstance(outcome, PictureError) for outcome in outcomes)
        return
    with pytest.raises(StorageError, match=f"the last: {Reason.FORBIDDEN}: denied"):
        read_all(reader, ["bad"] * LIMIT)
