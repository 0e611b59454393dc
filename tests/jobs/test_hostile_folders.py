"""Jobs on datasets, models and predictions from an untrusted source: they touch nothing outside."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from afinar.cli.main import main
from afinar.config.ingest import IngestConfig
from afinar.config.label import LabelConfig
from afinar.errors import RecordError, RequestError, UnsafePathError
from afinar.ingestion.driver import run_ingest
from afinar.labelling.driver import LabelOutcome, run_labelling
from afinar.training.task import plan_training
from afinar.units.executor import InlineExecutor
from tests.conftest import Trained
from tests.training.runs import config as train_config

PRECIOUS = ("thesis.tex", "photos/a.jpg", "checkpoints/llm.ckpt")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder that is an argument of no job."""
    folder = tmp_path / "victim"
    for name in PRECIOUS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("precious")
    return folder


def untouched(victim: Path) -> bool:
    return sorted(
        str(path.relative_to(victim)) for path in victim.rglob("*") if path.is_file()
    ) == sorted(PRECIOUS)


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def label(source: str, out: Path, models: Path, **options: Any) -> LabelOutcome:
    config = LabelConfig(source=source, predictions=str(out), model=f"{models}@champion", **options)
    return run_labelling(config, InlineExecutor())


@pytest.fixture
def models(trained: Trained, tmp_path: Path) -> Path:
    """A copy of the session's model, which a test may change."""
    return Path(shutil.copytree(trained.models, tmp_path / "models"))


def rename(models: Path, suffix: str) -> None:
    edit(models / "versions/00000001.json", lambda record: record.update(id=record["id"] + suffix))


def test_model_id_with_path_is_refused_and_nothing_is_deleted(
    trained: Trained, tmp_path: Path, models: Path, victim: Path
) -> None:
    old = label(trained.dataset, tmp_path / "preds", models).partition
    evil = f"{old}/../../../victim"

    def forge(record: dict[str, Any]) -> None:
        record.update(partitions={evil: record["partitions"][old]}, current=evil)

    for manifest in (tmp_path / "preds" / "manifests").iterdir():
        edit(manifest, forge)
    rename(models, "/../../../victim")
    with pytest.raises(RequestError, match="not the id of a model version"):
        label(trained.dataset, tmp_path / "preds", models, single=True)
    assert main(["status", str(tmp_path / "preds"), "--gc"]) == 2
    assert untouched(victim)


def test_model_id_with_path_to_other_predictions_is_refused(
    trained: Trained, tmp_path: Path, models: Path
) -> None:
    old = label(trained.dataset, tmp_path / "preds", models).partition
    label(trained.dataset, tmp_path / "other", models)
    before = sorted(path for path in (tmp_path / "other").rglob("*") if path.is_file())
    rename(models, f"/../../../other/parts/model={old}")
    with pytest.raises(RequestError, match="not the id of a model version"):
        label(trained.dataset, tmp_path / "preds", models)
    assert sorted(path for path in (tmp_path / "other").rglob("*") if path.is_file()) == before


def test_unfinished_run_record_with_path_is_refused(
    trained: Trained, tmp_path: Path, victim: Path
) -> None:
    config = train_config(trained, tmp_path / "models")
    plan_training(config, "run")  # as a training that was killed
    (note,) = (tmp_path / "models" / "unfinished").iterdir()
    edit(note, lambda record: record.update(run="../../victim"))
    (tmp_path / "models" / "runs").mkdir()
    with pytest.raises(RecordError, match=r"unfinished/.*: run: .* is not the name of a run"):
        plan_training(config, "another")
    assert untouched(victim)


def test_links_below_datasets_and_predictions_are_not_followed(
    trained: Trained, tmp_path: Path, models: Path, victim: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset = Path(shutil.copytree(trained.dataset, tmp_path / "dataset"))
    label(str(trained.pictures), tmp_path / "preds", models)
    for target in (dataset, tmp_path / "preds"):
        (target / "probes").mkdir(exist_ok=True)
        (target / "probes" / "x").symlink_to(victim)
        (target / "lists" / "y").symlink_to("../../victim")
        assert main(["status", str(target), "--gc"]) == 0
        assert untouched(victim)
    assert main(["forget", str(dataset), "moss/000.jpg"]) == 0
    assert untouched(victim)
    assert (dataset / "probes" / "x").is_symlink(), "afinar deletes only what it wrote"
    capfd.readouterr()


def test_link_in_place_of_an_output_folder_is_refused(
    trained: Trained, tmp_path: Path, models: Path, victim: Path
) -> None:
    partition = label(str(trained.pictures), tmp_path / "preds", models).partition
    (tmp_path / "preds" / "single").mkdir()
    (tmp_path / "preds" / "single" / f"model={partition}").symlink_to(victim)
    with pytest.raises(UnsafePathError, match="is a symbolic link"):
        label(str(trained.pictures), tmp_path / "preds", models, single=True)
    assert untouched(victim)


def test_links_in_a_source_are_followed(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for name in ("moss", "rust"):
        (tmp_path / "source" / name).symlink_to(trained.pictures / name)
    config = IngestConfig(
        source=str(tmp_path / "source"), dataset=str(tmp_path / "dataset"), size=32
    )
    assert run_ingest(config, InlineExecutor()).summary.samples == 80


def test_locations_outside_ascii_work(local_ray: None, trained: Trained, tmp_path: Path) -> None:
    source = tmp_path / "José" / "Imágenes"
    shutil.copytree(trained.pictures, source)
    (source / "moss").rename(source / "苔")
    dataset, out, models = (tmp_path / name for name in ("Gemälde", "prédictions", "modèles"))
    shutil.copytree(trained.models, models)
    assert main(["ingest", str(source), str(dataset), "--size", "32", "--workers", "2"]) == 0
    assert (
        main(["label", str(source), str(out), "--model", f"{models}@champion", "--workers", "1"])
        == 0
    )
    assert main(["status", str(dataset), "--verify"]) == 0
