"""The command line that reproduces a run parses to the configuration of the run."""

from __future__ import annotations

import shlex

from afinar.cli.arguments import parse
from afinar.config.base import as_dict
from afinar.config.ingest import IngestConfig
from afinar.config.label import LabelConfig
from afinar.config.train import TrainConfig
from afinar.report.command import reproduce


def arguments(command: str) -> list[str]:
    """Return the words of a command after `afinar JOB`, as a shell sees them."""
    return shlex.split(command.replace("\\\n", ""))[2:]


def test_command_of_a_training_parses_to_its_configuration() -> None:
    config = TrainConfig(
        dataset="/data/it's here",
        models="/models; rm -rf",
        backbone="small_cnn",
        regime="last:2",
        learning_rate=0.0007071067811865476,
        epochs=7,
        compile=True,
        workers=3,
    )
    command = reproduce("train", TrainConfig, as_dict(config))
    assert command.startswith("afinar train '/data/it'\"'\"'s here' '/models; rm -rf'")
    parsed = parse(TrainConfig, arguments(command), "afinar train", "")
    assert as_dict(parsed) == {**as_dict(config), "workers": 0}, "workers change no result"


def test_command_of_an_ingest_and_of_a_labelling() -> None:
    config = IngestConfig(source="/p", dataset="/d", size=64, split="0.5,0.2,0.3")
    command = reproduce("ingest", IngestConfig, as_dict(config))
    assert as_dict(parse(IngestConfig, arguments(command), "afinar ingest", "")) == as_dict(config)

    label = LabelConfig(source="/a", predictions="/o", model="/m@champion", abstain_below=0.7)
    command = reproduce("label", LabelConfig, as_dict(label))
    assert as_dict(parse(LabelConfig, arguments(command), "afinar label", "")) == as_dict(label)
    assert command.count("\n") == 2


def test_unknown_fields_of_a_record_are_ignored() -> None:
    assert reproduce("train", TrainConfig, {"dataset": "/d", "models": "/m", "later": 1}) == (
        "afinar train /d /m"
    )
