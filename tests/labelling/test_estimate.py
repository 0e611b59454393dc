"""Estimate of a labelling: it counts what the labelling then does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from afinar.cli.main import main
from afinar.config.label import LabelConfig
from afinar.labelling.driver import LabelJob
from afinar.labelling.estimate import forecast_error, forecast_label, read_forecast
from afinar.storage.open import open_store
from afinar.units.cores import worker_cores
from afinar.units.estimate import Launch
from afinar.units.executor import InlineExecutor
from tests.archives import ingest, label
from tests.conftest import Trained


def request(source: object, out: object, trained: Trained, **options: Any) -> LabelConfig:
    return LabelConfig(source=str(source), predictions=str(out), model=trained.champion, **options)


def test_folder_is_estimated_counts_are_those_of_the_labelling(
    archive: Path, location: str, trained: Trained
) -> None:
    (archive / "moss" / "empty.jpg").write_bytes(b"")
    config = request(archive, location, trained, workers=3)
    forecast = forecast_label(config)
    store = open_store(location)
    assert list(store.walk()) == [], "a forecast writes nothing"
    assert (forecast.listed, forecast.to_read, forecast.sampled) == (25, 25, 25)
    assert forecast.workers == 3
    assert forecast.sample_rejects == {"empty": 1}
    assert forecast.bytes_read == sum(path.stat().st_size for path in archive.rglob("*.jpg"))
    assert forecast.stages.keys() == {"fetch", "decode", "forward", "write"}
    assert sum(forecast.stages.values()) == pytest.approx(1, abs=0.01)
    label(archive, location, trained)
    folders = [info.name.split("/")[0] for info in store.walk()]
    assert {name: folders.count(name) for name in set(folders)} == dict.fromkeys(
        ("parts", "rejects", "units", "lists", "manifests"), 1
    )
    assert forecast.requests == {"LIST": 1, "GET": 25, "PUT": len(folders) + 1}, (
        "and the plan, which is deleted"
    )
    written = sum(info.size for info in store.walk("parts"))
    assert forecast.bytes_written == pytest.approx(written, rel=0.1)
    second = forecast_label(config)
    assert (second.to_read, second.sampled, second.requests["PUT"]) == (0, 0, 0)


def test_list_and_dataset_are_estimated_requests_are_counted(
    archive: Path, tmp_path: Path, trained: Trained
) -> None:
    dataset = str(tmp_path / "dataset")
    ingest(archive, dataset)
    forecast = forecast_label(request(dataset, tmp_path / "out", trained))
    assert (forecast.to_read, forecast.sampled) == (24, 24)
    assert forecast.requests == {"GET": 1, "PUT": 5}, "the shard, once"
    pixels = 24 * 64 * 64 * 3
    assert pixels <= forecast.bytes_read < 1.1 * pixels
    (tmp_path / "list.csv").write_text(
        "uri\n" + "\n".join(str(path) for path in sorted(archive.rglob("*.jpg"))[:7])
    )
    forecast = forecast_label(request(tmp_path / "list.csv", tmp_path / "out", trained))
    assert forecast.requests == {"HEAD": 7, "GET": 7, "PUT": 5}
    assert not (tmp_path / "out").exists()


def test_sample_is_labelled_with_the_cores_of_a_process_of_the_job(
    archive: Path, tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    config = request(archive, tmp_path / "out", trained)
    forecast_label(config, lambda pictures, units: Launch(processes=1, cores=3))
    assert threads == [3, torch.get_num_threads()], "and this process keeps its own"
    assert worker_cores() == 0


def test_error_of_an_estimate_is_relative_to_the_pictures_read() -> None:
    forecast = {"listing_seconds": 2.0, "start_seconds": 3.0, "images_per_second": 10.0}
    assert forecast_error(forecast, {"read": 50, "seconds": 11.0}) == {
        "seconds": 10.0,
        "error": 0.1,
    }
    assert forecast_error(forecast, {"read": 0, "seconds": 1.0}) == {"seconds": 2.0, "error": -0.5}


def test_command_prints_an_estimate_next_command_reports_its_error(
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


def _write(path: Path, config: LabelConfig) -> str:
    path.write_text(json.dumps(forecast_label(config).__dict__))
    return str(path)


def test_estimate_is_of_another_job_it_is_refused(
    archive: Path, tmp_path: Path, trained: Trained
) -> None:
    job = LabelJob(request(archive, tmp_path / "out", trained), InlineExecutor())
    path = tmp_path / "forecast.json"
    read_forecast(_write(path, request(archive, tmp_path / "out", trained)), job)
    path.unlink()
    for content, message in (
        (None, "No such file"),
        ("hours", "is not JSON"),
        ('{"seconds": 3}', "plan label"),
        (request(trained.pictures, tmp_path / "out", trained), "and this is"),
    ):
        if isinstance(content, LabelConfig):
            _write(path, content)
        elif content:
            path.write_text(content)
        with pytest.raises(Exception, match=message) as refused:
            read_forecast(str(path), job)
        assert getattr(refused.value, "exit_code", None) == 2
