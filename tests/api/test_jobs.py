"""The jobs as functions: the same arguments, results and errors as the commands."""

from __future__ import annotations

import inspect
import logging
import shutil
from pathlib import Path

import pytest

import afinar
from afinar.api import jobs
from afinar.config.ingest import IngestConfig
from afinar.config.train import TrainConfig
from tests.archives import BROKEN
from tests.conftest import Trained, make_archive


def test_ingest_train_and_label(tmp_path: Path) -> None:
    pictures, dataset, models = (tmp_path / name for name in ("pictures", "dataset", "models"))
    make_archive(pictures, 12)

    ingested = afinar.ingest(str(pictures), str(dataset), size=32, split="0.5,0.25,0.25")
    assert ingested.summary["samples"] == 24
    assert ingested.dataset.view.size == 32
    assert "24 = 24 added" in repr(ingested)
    assert "24 = 24 added" in ingested._repr_html_()

    trained = afinar.train(
        str(dataset), str(models), backbone="small_cnn", regime="scratch", weights="none",
        input_size=64, epochs=1, promote="always",
    )  # fmt: skip
    assert trained.model.version.version == 1
    assert 0 <= trained.metrics["test"]["top1"] <= 1
    assert Path(trained.report).is_file()

    (pictures / "moss" / "note.jpg").write_bytes(BROKEN["unidentified"])
    labelled = afinar.label(str(pictures), str(tmp_path / "out"), model=str(models), top_k=1)
    assert len(labelled.predictions) == 24
    assert len(labelled.predictions.rejects) == 1
    assert "partition '1-" in repr(labelled.predictions)
    assert "<table>" in labelled.predictions._repr_html_()
    assert labelled.report is not None
    assert Path(labelled.report).is_file()
    with pytest.raises(afinar.ShortfallError):
        afinar.label(
            str(pictures), str(tmp_path / "strict"), model=str(models), max_reject_rate=0.0
        )


def test_one_picture_is_only_shown(trained: Trained) -> None:
    picture = next(trained.pictures.rglob("*.jpg"))
    result = afinar.label(str(picture), model=trained.models)
    assert "moss" in repr(result)
    with pytest.raises(afinar.RequestError, match="without a folder"):
        _ = result.predictions


def test_opened_predictions_say_which_partition_they_are(
    trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = str(tmp_path / "out")
    few = str(next(trained.pictures.iterdir()))
    afinar.label(few, out, model=trained.models)
    afinar.label(few, out, model=trained.models, scores=True)
    with caplog.at_level(logging.WARNING):
        newest = afinar.open_predictions(out)
    assert "2 partitions" in caplog.text
    assert newest.partition.endswith("-scores")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        first = afinar.open_predictions(out, newest.partitions[0])
    assert not caplog.text
    assert len(first) == len(newest) == 40


def test_paths_may_be_path_objects_and_recipes_give_values(tmp_path: Path) -> None:
    recipe = tmp_path / "own.toml"
    recipe.write_text("size = 48\nseed = 3\n")
    config = jobs._configure("ingest", IngestConfig, (tmp_path, "d"), {"recipe": recipe, "seed": 4})
    assert (config.source, config.size, config.seed) == (str(tmp_path), 48, 4)


def test_presets_give_values_as_on_the_command_line() -> None:
    def configure(**options: object) -> TrainConfig:
        return jobs._configure("train", TrainConfig, ("d", "m"), options)

    assert configure(preset="quick").regime == "frozen"
    assert configure(preset="quick", regime="auto").regime == "auto"
    assert configure(preset="best").repeats == 3
    with pytest.raises(afinar.RequestError, match="preset='worst'"):
        configure(preset="worst")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sise": 32}, r"unexpected keyword argument 'sise': do you mean size"),
        ({"size": "32"}, r"ingest\(size='32'\): expected a whole number"),
        ({"size": 4}, "between 8 and 4096"),
        ({"recipe": "no-such"}, "there is no recipe"),
    ],
)
def test_wrong_arguments_are_request_errors(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(afinar.RequestError, match=message):
        afinar.ingest("a", "b", **arguments)  # type: ignore[arg-type]


def test_missing_arguments_and_unknown_networks_are_request_errors(tmp_path: Path) -> None:
    with pytest.raises(afinar.RequestError, match="missing 1 required .*'dataset'"):
        afinar.ingest("a")  # type: ignore[call-arg]
    with pytest.raises(afinar.RequestError, match="resnet18"):
        afinar.train("a", "b", backbone="resnet81")
    with pytest.raises(afinar.RequestError, match="resnet18"):
        afinar.compare("a", "b", backbone="resnet34,resnet81")
    with pytest.raises(afinar.RequestError, match="holds no dataset"):
        afinar.compare(str(tmp_path), "b")


def test_functions_describe_their_arguments() -> None:
    for function in (afinar.ingest, afinar.train, afinar.compare, afinar.label):
        parameters = inspect.signature(function).parameters
        assert next(iter(parameters)) in {"source", "dataset"}
        assert function.__doc__ is not None
        for name in parameters:
            assert f"  {name}: " in function.__doc__
    assert inspect.signature(afinar.label).parameters["model"].kind.name == "KEYWORD_ONLY"


def test_logging_of_the_program_is_left_as_it_was(trained: Trained, tmp_path: Path) -> None:
    logger = logging.getLogger("afinar")
    handlers, level = list(logger.handlers), logger.level
    shutil.copytree(trained.dataset, tmp_path / "dataset")
    afinar.ingest(str(trained.pictures), str(tmp_path / "dataset"), verbose=True)
    assert (logger.handlers, logger.level) == (handlers, level)
