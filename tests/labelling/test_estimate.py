"""What a labelling is said to take, held against what it does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from afinar.cli.main import main
from afinar.config.ingest import IngestConfig
from afinar.config.label import LabelConfig
from afinar.ingest.driver import run_ingest
from afinar.labelling.driver import LabelJob, run_labelling
from afinar.labelling.estimate import forecast_error, forecast_label, read_forecast
from afinar.storage.open import open_store
from afinar.units.executor import InlineExecutor
from tests.conftest import Trained


def requested(source: object, out: object, trained: Trained, **options: Any) -> LabelConfig:
    return LabelConfig(source=str(source), predictions=str(out), model=trained.champion, **options)


def test_a_forecast_counts_what_the_labelling_then_does(
    archive: Path, location: str, trained: Trained
) -> None:
    (archive / "moss" / "empty.jpg").write_bytes(b"")
    config = requested(archive, location, trained, workers=3)
    forecast = forecast_label(config)
    store = open_store(location)
    assert list(store.walk()) == [], "a forecast writes nothing"
    assert (forecast.listed, forecast.to_read, forecast.sampled, forecast.workers) == (
        25,
        25,
        25,
        3,
    )
    assert forecast.sample_rejects == {"empty": 1}
    assert forecast.bytes_read == sum(path.stat().st_size for path in archive.rglob("*.jpg"))
    assert forecast.stages.keys() == {"fetch", "decode", "forward", "write"}
    assert sum(forecast.stages.values()) == pytest.approx(1, abs=0.01)
    run_labelling(config, InlineExecutor())
    left = [info.name.split("/")[0] for info in store.walk()]
    assert {kind: left.count(kind) for kind in set(left)} == dict.fromkeys(
        ("parts", "rejects", "units", "lists", "manifests"), 1
    )
    assert forecast.requests == {"LIST": 1, "GET": 25, "PUT": len(left) + 1}, (
        "and the plan, which is gone"
    )
    written = sum(info.size for info in store.walk("parts"))
    assert forecast.bytes_written == pytest.approx(written, rel=0.1)
    next_attempt = forecast_label(config)
    assert (next_attempt.to_read, next_attempt.sampled, next_attempt.requests["PUT"]) == (0, 0, 0)


def test_what_lists_and_datasets_take(archive: Path, tmp_path: Path, trained: Trained) -> None:
    dataset = str(tmp_path / "dataset")
    run_ingest(IngestConfig(source=str(archive), dataset=dataset, size=64), InlineExecutor())
    forecast = forecast_label(requested(dataset, tmp_path / "out", trained))
    assert (forecast.to_read, forecast.sampled) == (24, 24)
    assert forecast.requests == {"GET": 1, "PUT": 5}, "the shard, once"
    pixels = 24 * 64 * 64 * 3
    assert pixels <= forecast.bytes_read < 1.1 * pixels
    (tmp_path / "list.csv").write_text(
        "uri\n" + "\n".join(str(path) for path in sorted(archive.rglob("*.jpg"))[:7])
    )
    forecast = forecast_label(requested(tmp_path / "list.csv", tmp_path / "out", trained))
    assert forecast.requests == {"HEAD": 7, "GET": 7, "PUT": 5}
    assert not (tmp_path / "out").exists()


def test_how_wrong_it_was_counts_what_was_read() -> None:
    forecast = {"listing_seconds": 2.0, "start_seconds": 3.0, "images_per_second": 10.0}
    assert forecast_error(forecast, {"read": 50, "seconds": 11.0}) == {
        "seconds": 10.0,
        "error": 0.1,
    }
    assert forecast_error(forecast, {"read": 0, "seconds": 1.0}) == {"seconds": 2.0, "error": -0.5}


def test_the_command_predicts_and_the_next_one_says_how_well(
    archive: Path,
    tmp_path: Path,
    trained: Trained,
    local_ray: None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    words = ["label", str(archive), str(tmp_path / "out"), "--model", trained.champion]
    assert main(["plan", *words]) == 0
    assert "24 pictures" in capfd.readouterr().out
    assert main(["plan", *words, "--json"]) == 0
    printed = capfd.readouterr().out
    (tmp_path / "forecast.json").write_text(printed)
    assert main([*words, "--forecast", str(tmp_path / "forecast.json"), "--json"]) == 0
    summary = json.loads(capfd.readouterr().out)
    assert summary["forecast"] == forecast_error(json.loads(printed), summary)
    (run,) = (tmp_path / "out" / "runs").iterdir()
    assert json.loads((run / "summary.json").read_text())["forecast"] == summary["forecast"]
    assert main([*words, "--forecast", str(tmp_path / "forecast.json")]) == 0
    assert "forecast" in capfd.readouterr().out
    assert main(["plan", "label", str(archive), "-", "--model", trained.champion]) == 2
    assert "one picture needs no plan" in capfd.readouterr().err


def _written(path: Path, config: LabelConfig) -> str:
    path.write_text(json.dumps(forecast_label(config).__dict__))
    return str(path)


def test_a_forecast_of_something_else_is_refused(
    archive: Path, tmp_path: Path, trained: Trained
) -> None:
    job = LabelJob(requested(archive, tmp_path / "out", trained), InlineExecutor())
    path = tmp_path / "forecast.json"
    read_forecast(_written(path, requested(archive, tmp_path / "out", trained)), job)
    path.unlink()
    for said, sentence in (
        (None, "No such file"),
        ("hours", "is not JSON"),
        ('{"seconds": 3}', "plan label"),
        (requested(trained.pictures, tmp_path / "out", trained), "and this is"),
    ):
        if isinstance(said, LabelConfig):
            _written(path, said)
        elif said:
            path.write_text(said)
        with pytest.raises(Exception, match=sentence) as refused:
            read_forecast(str(path), job)
        assert getattr(refused.value, "exit_code", None) == 2
