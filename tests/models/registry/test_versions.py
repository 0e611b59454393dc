"""Model versions: found by alias, number and id."""

from __future__ import annotations

import pytest

from afinar.errors import RequestError
from afinar.models.registry.aliases import promote
from afinar.models.registry.versions import find_model
from tests.conftest import Trained


def test_find_model_accepts_alias_number_and_id(trained: Trained) -> None:
    store, champion = find_model(trained.champion)
    assert find_model(f"{trained.models}@1")[1] == champion
    assert find_model(f"{trained.models}@{champion.id}")[1] == champion
    promote(store, 1, "again")
    assert find_model(trained.champion)[1] == champion
    for wanted, words in (
        ("7", "versions 1"),
        ("1-00000000", "version 1 is"),
        ("best", "@champion"),
    ):
        with pytest.raises(RequestError, match=words):
            find_model(f"{trained.models}@{wanted}")
