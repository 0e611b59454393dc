"""Command-line arguments: recipes give defaults, flags override them, help texts are complete."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from afinar.cli.arguments import parse
from afinar.config.base import JobConfig
from afinar.config.forget import ForgetConfig
from afinar.config.ingest import IngestConfig
from afinar.config.label import LabelConfig
from afinar.config.models import ModelsConfig
from afinar.config.status import StatusConfig
from afinar.config.train import TrainConfig


def test_flags_override_a_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "nightly.toml"
    recipe.write_text('source = "a"\ndataset = "b"\nsize = 64\nmax-reject-rate = 0\n')
    assert parse_ingest("--recipe", str(recipe)) == IngestConfig(
        source="a", dataset="b", size=64, max_reject_rate=0.0, recipe=str(recipe)
    )
    assert parse_ingest("c", "d", "--recipe", str(recipe), "--size", "32").size == 32


def parse_ingest(*argv: str) -> IngestConfig:
    return parse(IngestConfig, list(argv), "afinar ingest", "afinar ingest a b")


@pytest.mark.parametrize("columns", ["60", "300"])
def test_description_is_wrapped(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit):
        parse(ModelsConfig, ["--help"], "afinar models", "afinar models models/")
    description = capsys.readouterr().out.partition("\n\n")[2].partition("Example:")[0]
    assert "without afinar." in " ".join(description.split())
    assert max(map(len, description.splitlines())) <= min(int(columns), 100)


def test_commands_without_workers_have_no_flag_for_them() -> None:
    for config_class in (ModelsConfig, StatusConfig):
        assert not {"workers", "address"} & {
            field.name for field in dataclasses.fields(config_class)
        }


@pytest.mark.parametrize(
    "config_class", [IngestConfig, TrainConfig, LabelConfig, StatusConfig, ForgetConfig]
)
def test_help_describes_every_field(
    config_class: type[JobConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse(config_class, ["--help"], "afinar job", "afinar job")
    assert exit_.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for field in dataclasses.fields(config_class):
        flag = f"--{field.name.replace('_', '-')}"
        assert flag in text or field.name.upper() in text
    assert "Format of the log on stderr" in text, "fields of the base class have their docstrings"
