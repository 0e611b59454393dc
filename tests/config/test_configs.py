"""Job configurations: validation in the constructor, parsed values, what a run records."""

from __future__ import annotations

import dataclasses
import pickle
from dataclasses import replace
from typing import Any

import pytest

from afinar.config.base import JobConfig, as_dict
from afinar.config.forget import ForgetConfig
from afinar.config.ingest import IngestConfig, SplitShares
from afinar.config.label import LabelConfig
from afinar.config.status import StatusConfig
from afinar.config.train import TrainConfig
from afinar.errors import RequestError


def ingest(**options: Any) -> IngestConfig:
    return IngestConfig(source="a", dataset="b", **options)


def train(**options: Any) -> TrainConfig:
    return TrainConfig(**{"dataset": "a", "models": "b", **options})


def label(**options: Any) -> LabelConfig:
    return LabelConfig(**{"source": "a", "predictions": "b", "model": "m@1", **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": -1}, "--workers"),
        ({"size": 4}, "between 8 and 4096"),
        ({"max_reject_rate": 1.5}, "0 to 1"),
        ({"split": "0.9,0.2"}, "three shares"),
        ({"split": "0.9,0.2,-0.1"}, "sum to 1"),
        ({"extensions": "jpg"}, "such as .jpg"),
        ({"labels": "folders"}, "ends in .csv, .tsv or .parquet"),
        ({"group": "groups"}, "ends in .csv, .tsv or .parquet"),
    ],
)
def test_wrong_ingest_value_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        ingest(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "--epochs 0: give at least 1"),
        ({"dropout": 1.0}, "from 0 to below 1"),
        ({"layer_decay": 1.5}, "a factor up to 1"),
        ({"batch_size": 1}, "at least 2, or auto"),
        ({"accumulate": 0}, "at least 1"),
        ({"sampling": "balanced", "class_weights": "sqrt"}, "give one of them"),
        ({"min_workers": 2}, "give --workers too"),
        ({"min_workers": 1, "workers": 2, "checkpoint_minutes": 0}, "give --checkpoint-minutes"),
        ({"regime": "last:0"}, "choose frozen, last:N"),
        ({"augment": "turn:40"}, "--augment"),
        ({"models": ""}, "give --describe"),
        ({"refit": True}, "--regime frozen"),
        ({"refit": True, "regime": "frozen", "head": "mlp"}, "a linear head"),
        ({"refit": True, "regime": "frozen", "augment": "flip"}, "--views"),
        ({"views": 2}, "only features of a frozen backbone"),
        ({"views": 2, "regime": "frozen"}, "give --augment"),
        (
            {"views": 2, "regime": "frozen", "augment": "flip", "sampling": "balanced"},
            "--class-weights balanced",
        ),
        ({"regime": "frozen", "weights": "none"}, "random features"),
        ({"regime": "scratch", "weights": "models@1"}, "give --regime full"),
        ({"mean": "0,0,0", "std": "1,1,1"}, "of a file of weights"),
        ({"weights": "models@1", "mean": "0,0,0", "std": "1,1,1"}, "of a file of weights"),
        ({"weights": "own.pth", "mean": "0,0,0"}, "--mean and --std together"),
        ({"weights": "own.pth", "mean": "0,0", "std": "1,1,1"}, "--mean '0,0': give three numbers"),
        ({"weights": "own.pth", "mean": "a,0,0", "std": "1,1,1"}, "give three numbers"),
        ({"weights": "own.pth", "mean": "0,0,nan", "std": "1,1,1"}, "from 0 to 1"),
        ({"weights": "own.pth", "mean": "124,116,104", "std": "1,1,1"}, "divided by 255"),
        ({"weights": "own.pth", "mean": "0,0,0", "std": "0,1,1"}, "--std 0,1,1: .* above 0 to 1"),
    ],
)
def test_wrong_train_value_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        train(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "--top-k"),
        ({"batch_size": -1}, "--batch-size"),
        ({"unit_timeout_s": 0}, "above 0"),
        ({"abstain_below": 70}, "0 to 1"),
        ({"model": ""}, "name the --model"),
        ({"predictions": "-", "single": True}, "name PREDICTIONS"),
    ],
)
def test_wrong_label_value_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        label(**options)


def test_wrong_status_and_forget_values_are_refused() -> None:
    with pytest.raises(RequestError, match="give --gc with it"):
        StatusConfig(path="a", keep=3)
    with pytest.raises(RequestError, match="at least one picture"):
        ForgetConfig(path="a", uris=())


def test_strings_are_parsed_to_values() -> None:
    assert ingest(extensions=".JPG, .png").endings == (".jpg", ".png")
    assert label(extensions="all").endings is None
    assert ingest().split_shares == SplitShares(train=0.7, validation=0.15, test=0.15)
    assert ingest(split="folder").split_shares is None
    regimes = {"full": None, "scratch": None, "frozen": 0, "last:2": 2}
    assert {regime: train(regime=regime).trainable_stages for regime in regimes} == regimes
    assert train(regime="last:2").regime_kind == "last"
    assert train(weights="own.pth").has_weights_file
    assert not train().has_weights_file
    assert train(weights="s3://bucket/models@champion").has_weights_model
    assert train(weights="models@3-1a2b3c4d").has_weights_model
    assert train(weights="models@3").paths[-1] == "models@3"
    assert train(weights="crops@2x.pth").has_weights_file
    normalised = train(weights="own.pth", mean="0,0.5,1", std="1,1,0.25").normalisation
    assert normalised == ((0, 0.5, 1), (1, 1, 0.25))


def test_copies_have_their_own_parsed_values() -> None:
    config = train(regime="last:2")
    assert replace(config, regime="frozen").trainable_stages == 0
    assert pickle.loads(pickle.dumps(config)) == config


def test_recorded_fields_leave_out_those_of_logging() -> None:
    config = train()
    assert as_dict(replace(config, verbose=True, log_format="json")) == as_dict(config)


@pytest.mark.parametrize("config", [train(), label(), ingest()])
def test_headings_of_the_help_name_each_field_once(config: JobConfig) -> None:
    names = [name for group in config.GROUPS.values() for name in group]
    fields = {field.name for field in dataclasses.fields(config)}
    assert len(names) == len(set(names))
    assert set(names) <= fields
    assert not (fields - set(names)) & set(config.GROUPS), "the parser has one name space"
