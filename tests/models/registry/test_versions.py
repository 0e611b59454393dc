"""Model versions: found by alias, number and id."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from afinar.api.model import open_model
from afinar.config.base import fingerprint
from afinar.errors import ModelError, RecordError, RequestError
from afinar.models.registry.aliases import promote
from afinar.models.registry.versions import find_model, publish_model
from afinar.storage.open import open_store
from tests.conftest import Trained


@pytest.fixture
def models(trained: Trained, tmp_path: Path) -> Path:
    """A copy of the session's model, which a test may change."""
    return Path(shutil.copytree(trained.models, tmp_path / "models"))


def test_find_model_accepts_alias_number_and_id(models: Path) -> None:
    store, champion = find_model(f"{models}@champion")
    assert find_model(f"{models}@1")[1] == champion
    assert find_model(f"{models}@latest")[1] == champion
    assert find_model(f"{models}@{champion.id}")[1] == champion
    promote(store, 1, "again")
    assert find_model(f"{models}@champion")[1] == champion
    for wanted, words in (
        ("7", "versions 1"),
        ("1-00000000", "version 1 is"),
        ("best", "@champion"),
    ):
        with pytest.raises(RequestError, match=words):
            find_model(f"{models}@{wanted}")


def edit(models: Path, change: Callable[[dict[str, Any]], Any], seal: bool = False) -> str:
    """Change the record of version 1; with `seal`, give it the id of its new content."""
    path = models / "versions" / "00000001.json"
    record = json.loads(path.read_text())
    change(record)
    if seal:
        content = {key: value for key, value in record.items() if key not in {"id", "owner"}}
        record["id"] = f"1-{fingerprint(content)[:8]}"
    path.write_text(json.dumps(record))
    return f"{models}@1"


def swap(record: dict[str, Any]) -> None:
    record["classes"].reverse()


@pytest.mark.parametrize(
    "change",
    [
        swap,
        lambda record: record.update(temperature=2.0),
        lambda record: record["stored_view"].update(fit="squash"),
        lambda record: record["input_view"].update(mean=[0.1, 0.1, 0.1]),
        lambda record: record["architecture"].update(dropout=0.3),
        lambda record: record["lineage"].update(run="runs/another"),
        lambda record: record.update(added_by_a_later_version=1),
        lambda record: record.update(id=f"1-{record['weights']['sha256'][:8]}"),
    ],
)
def test_record_that_was_changed_after_it_was_published_is_refused(
    change: Callable[[dict[str, Any]], Any], models: Path
) -> None:
    with pytest.raises(RecordError, match=r"00000001.json is not what was published"):
        find_model(edit(models, change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap, "these classes in this order"),
        (lambda record: record.update(temperature=record["temperature"] * 2), "the temperature"),
        (lambda record: record.update(temperature=-1.0), "temperature: expected 0.001 to 1000"),
        (lambda record: record.update(temperature=0), "temperature: expected 0.001 to 1000"),
        (lambda record: record.update(temperature=1e-300), "temperature: expected 0.001 to 1000"),
        (lambda record: record.update(temperature=float("nan")), "NaN is no number"),
        (lambda record: record["classes"].pop(), "classes must be 2 different names"),
        (lambda record: record.update(classes=["moss", "moss"]), "2 different names"),
        (lambda record: record["stored_view"].update(size=96), "pictures of 96 px"),
        (lambda record: record["input_view"].update(std=[0, 0, 0]), r"input_view.std: expected"),
        (lambda record: record["input_view"].update(mean=[0.9, 0.1, 0.9]), "other logits"),
        (
            lambda record: record["architecture"].update(backbone="resnet81"),
            "'resnet81' is unknown",
        ),
        (lambda record: record["architecture"].update(cut="nowhere"), "no node"),
        (lambda record: record["architecture"].update(head="mlp"), "head has other sizes"),
        (lambda record: record["architecture"].update(head="mlp", hidden=2**31), "other sizes"),
        (lambda record: record["architecture"].update(hidden=10**10), "hidden: expected 1 to"),
        (lambda record: record["architecture"].update(input_size=10**6), "input_size: expected"),
        (lambda record: record["architecture"].update(output="sigmoid"), "head has other sizes"),
        (lambda record: record.update(weights=record["golden"]), "holds no weights"),
        (lambda record: record.update(golden=record["weights"]), "not a readable table"),
        (lambda record: record.update(format="afinar-model/9"), "has the format 'afinar-model/9'"),
        (lambda record: record.update(version=2), "is not what was published"),
    ],
)
def test_forged_record_with_a_fitting_id_is_refused(
    change: Callable[[dict[str, Any]], Any], message: str, models: Path
) -> None:
    with pytest.raises((RecordError, ModelError), match=message):
        open_model(edit(models, change, seal=True))


def test_record_of_format_1_keeps_the_id_of_its_weights(models: Path) -> None:
    def as_before(record: dict[str, Any]) -> None:
        record.update(format="afinar-model/1", id=f"1-{record['weights']['sha256'][:8]}")

    spec = edit(models, as_before)
    assert find_model(spec).version.id.startswith("1-")
    with pytest.raises(RecordError, match="these classes in this order"):
        open_model(edit(models, swap))  # its golden samples know the classes all the same


def test_id_changes_with_anything_that_changes_a_prediction(
    trained: Trained, tmp_path: Path
) -> None:
    _, version = find_model(trained.champion)
    store = open_store(str(tmp_path))

    def publish(**changes: Any) -> str:
        published = publish_model(store, lambda number: replace(version, version=number, **changes))
        return published.id.partition("-")[2]

    changes: tuple[dict[str, Any], ...] = (
        {},
        {"temperature": 2.0},
        {"classes": ["b", "a"]},
        {"regime": "full"},
    )
    assert len({publish(**change) for change in changes}) == 4
