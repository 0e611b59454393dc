"""Choice of the champion: which version is promoted, by which comparison, and what is recorded."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from afinar.errors import RequestError
from afinar.models.registry.aliases import promotions
from afinar.models.registry.versions import ModelVersion, find_champion, find_model, publish_model
from afinar.storage.open import open_store
from afinar.training import promotion
from afinar.training.distributed import Group
from afinar.training.driver import TrainOutcome, run_training
from afinar.training.promotion import Rival, choose_champion, decide, find_rival
from afinar.training.worker import run_worker
from tests.conftest import Trained
from tests.training.runs import config


@pytest.fixture
def version(trained: Trained) -> ModelVersion:
    return find_model(f"{trained.models}@1").version


def validated(version: ModelVersion, top1: float, **val: Any) -> ModelVersion:
    """The version with other metrics on validation: 40 pictures, half of them in one class."""
    metrics = {"top1": top1, "samples": 40, "largest_class": "moss", "largest_share": 0.5}
    return replace(version, metrics={"val": {**metrics, "loss": 0.3, **val}})


def train_here(trained: Trained, models: Path, **options: Any) -> TrainOutcome:
    return run_training(config(trained, models, **options), lambda task: run_worker(task, Group()))


@pytest.mark.parametrize(
    ("top1", "rival", "promoted", "words"),
    [
        (0.9, Rival(1, 0.8), True, "validation 90.0%, version 1 80.0% on the same 40 pictures"),
        (0.8, Rival(1, 0.9), False, "version 2 is not better: validation 80.0%, version 1 90.0%"),
        (0.9, Rival(1, 0.9), False, "not better"),
        (0.9, Rival(1, 0.9, loss=0.4), True, "on the same 40 pictures"),
        (0.9, Rival(1, 0.9, loss=0.2), False, "not better"),
        (0.9, Rival(1, None, reason="it is gone"), False, "with version 1: it is gone"),
        (0.6, Rival(1, 0.1), False, "not shown to beat guessing: validation 60.0% (44.6% to"),
    ],
)
def test_auto_needs_a_better_version_that_beats_guessing(
    version: ModelVersion, top1: float, rival: Rival, promoted: bool, words: str
) -> None:
    choice = decide("auto", replace(validated(version, top1), version=2), 1, lambda: rival)
    assert (choice.is_promoted, choice.champion) == (promoted, 2 if promoted else 1)
    assert words in choice.why


def test_a_tie_is_decided_by_the_loss_which_the_reason_names(version: ModelVersion) -> None:
    new = validated(version, 0.9)
    better = decide("auto", new, 1, lambda: Rival(1, 0.9, 0.4))
    worse = decide("auto", new, 1, lambda: Rival(1, 0.9, 0.2))
    assert better.is_promoted
    assert better.why.endswith("loss 0.300 against 0.400")
    assert not worse.is_promoted
    assert worse.why.endswith("loss 0.300 against 0.200")


def test_a_rival_that_cannot_be_compared_stays_and_the_reason_says_how_to_replace_it(
    version: ModelVersion,
) -> None:
    choice = decide("auto", validated(version, 0.9), 1, lambda: Rival(1, None, reason="too large"))
    assert not choice.is_promoted
    assert choice.why.endswith(
        f"too large; to use it, run `afinar models MODELS promote {version.version}`"
    )


def test_always_and_never_compare_nothing(version: ModelVersion) -> None:
    def fail() -> Rival:
        raise AssertionError("compares")

    worse = replace(validated(version, 0.0), version=2)
    assert decide("always", worse, 1, fail).champion == 2
    assert decide("never", validated(version, 1.0), None, fail).champion is None


def test_first_version_that_guesses_is_published_without_a_champion(
    trained: Trained, tmp_path: Path
) -> None:
    """A learning rate of nearly zero teaches nothing."""
    outcome = train_here(trained, tmp_path, epochs=1, learning_rate=1e-12)
    assert outcome.version.version == 1
    assert (outcome.champion.is_promoted, outcome.champion.champion) == (False, None)
    assert "not shown to beat guessing" in outcome.champion.why
    assert find_model(f"{tmp_path}@1").version == outcome.version
    with pytest.raises(RequestError, match=r"has no champion: name a version, as MODELS@1"):
        find_model(str(tmp_path))


def test_better_version_replaces_the_champion_with_its_reason(
    trained: Trained, tmp_path: Path
) -> None:
    train_here(trained, tmp_path, epochs=1, learning_rate=1e-12, promote="always")
    assert find_model(str(tmp_path)).version.version == 1
    second = train_here(trained, tmp_path, epochs=6)
    assert second.champion.champion == 2
    assert find_model(str(tmp_path)).version.version == 2, "labelling takes it at once"
    assert [moved.why for moved in promotions(open_store(str(tmp_path)))] == [
        "--promote always",
        second.champion.why,
    ]

    third = train_here(trained, tmp_path, epochs=1, learning_rate=1e-12, seed=1)
    assert (third.champion.is_promoted, third.champion.champion) == (False, 2)


def test_champion_of_another_dataset_predicts_the_new_validation_pictures(
    trained: Trained, tmp_path: Path, version: ModelVersion
) -> None:
    dataset = shutil.copytree(trained.dataset, tmp_path / "copy")
    store = open_store(trained.models)
    moved = {"dataset": {"uri": str(dataset), "version": 1}}
    rival = find_rival(store, replace(version, version=2, lineage=version.lineage | moved))
    assert rival.loss is None
    assert rival.top1 == pytest.approx(version.metrics["val"]["top1"])


def test_champion_that_takes_other_pictures_is_not_compared(
    trained: Trained, tmp_path: Path, version: ModelVersion
) -> None:
    store = open_store(str(tmp_path))
    view = replace(version.stored_view, fit="crop")
    other = publish_model(store, lambda number: replace(version, stored_view=view, lineage={}))
    assert find_champion(store) == other.version == 1
    assert "another size or fit" in find_rival(store, version).reason


def test_of_two_trainings_at_once_the_second_compares_with_the_first(
    version: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 3 is promoted between the comparison of version 2 and its record."""
    store = open_store(str(tmp_path))
    compared: list[int] = []

    def find(store: Any, _: ModelVersion) -> Rival:
        number = find_champion(store)
        assert number is not None
        compared.append(number)
        if number == 1:
            choose_champion(store, replace(version, version=3), "always")
        return Rival(number, 0.1 if number == 1 else 0.99)

    choose_champion(store, version, "always")
    monkeypatch.setattr(promotion, "find_rival", find)
    choice = choose_champion(store, replace(validated(version, 0.9), version=2), "auto")
    assert compared == [1, 3]
    assert (choice.is_promoted, choice.champion) == (False, 3)


def test_version_1_of_before_is_the_champion_without_an_alias(
    trained: Trained, tmp_path: Path, version: ModelVersion
) -> None:
    """Its publisher died between the version and the alias."""
    store = open_store(str(tmp_path))
    lineage = {"config": {"backbone": "small_cnn"}}
    publish_model(store, lambda number: replace(version, lineage=lineage), sets_champion=False)
    assert find_champion(store) == 1
    record = json.loads((tmp_path / "versions/00000001.json").read_text())
    assert "promote" not in record["lineage"]["config"]
