"""Planning: which run a request resumes, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from afinar.config.ingest import IngestConfig
from afinar.errors import RequestError
from afinar.ingestion.driver import run_ingest
from afinar.models.networks.backbones import build_backbone
from afinar.training import task as task_module
from afinar.training.distributed import Group
from afinar.training.task import plan_training
from afinar.training.worker import train
from afinar.units.executor import InlineExecutor
from tests.conftest import TINTS, Trained, jpeg, make_archive
from tests.training.runs import config, interrupt_after, run


def test_new_dataset_version_begins_a_new_run_and_notes_the_interrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pictures = make_archive(tmp_path / "pictures", 30)
    ingest = IngestConfig(source=str(pictures), dataset=str(tmp_path / "dataset"), size=64)
    run_ingest(ingest, InlineExecutor())
    archive = Trained(pictures, ingest.dataset, str(tmp_path / "models"))
    configuration = config(archive, tmp_path / "models", checkpoint_steps=2)
    interrupt_after(3, configuration, monkeypatch)

    (pictures / "moss" / "000.jpg").unlink()
    run_ingest(ingest, InlineExecutor())
    task = plan_training(configuration, "another")
    assert (task.run, task.resumed, task.dataset_version) == ("another", False, 2)
    note = " ".join(capfd.readouterr().err.split())  # lines are broken
    assert "note: 1 training is unfinished here: `afinar status" in note
    assert f"afinar status {tmp_path / 'models'}" in note
    epochs = [row["epoch"] for row in train(task, Group()).history]
    assert epochs == [1, 2, 3], "from its beginning"


def test_later_fields_keep_the_fingerprint_of_trainings_to_which_they_mean_nothing(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def fingerprint(value: Any) -> str:
        seen.append(value)
        return "0" * 64

    monkeypatch.setattr(task_module, "fingerprint", fingerprint)
    plan_training(config(trained, tmp_path), "run")
    ((determining, _),) = seen
    assert not {"mean", "std"} & determining.keys()


def test_weights_that_do_not_fit_are_refused_by_the_driver_and_leave_nothing(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a file of the user nor an interrupted download into torch's cache starts a run."""
    options = {"backbone": "squeezenet1_1", "regime": "full", "weights": "torchvision"}
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    cached = tmp_path / "torch" / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"half a download")
    with pytest.raises(RequestError, match=f"{cached} .* delete it"):
        run(config(trained, tmp_path / "models", **options))

    other = tmp_path / "other.pth"
    torch.save(build_backbone("small_cnn", 64).state_dict(), other)
    with pytest.raises(RequestError, match=r"other.pth.* does not fit this backbone: it lacks"):
        run(config(trained, tmp_path / "models", **{**options, "weights": str(other)}))
    assert not (tmp_path / "models").exists()


def test_weights_of_another_machine_are_left_to_the_workers_of_a_cluster(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    configuration = config(
        trained,
        tmp_path / "models",
        backbone="squeezenet1_1",
        regime="full",
        weights="torchvision",
        address="head:6379",
    )
    assert plan_training(configuration, "run").weights_source


def test_compile_without_a_compiler_is_refused_by_the_driver(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(function: Any) -> Any:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found.\nmore")

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(RequestError, match="No working C\\+\\+ compiler found\\): install"):
        run(config(trained, tmp_path / "models", compile=True))
    assert not (tmp_path / "models").exists()


def test_class_without_training_samples_is_refused(tmp_path: Path) -> None:
    folders = (
        "train/moss",
        "train/rust",
        "validation/moss",
        "validation/rust",
        "test/moss",
        "test/slate",
    )
    for number, folder in enumerate(folders):
        (tmp_path / "pictures" / folder).mkdir(parents=True)
        for position in range(6):
            picture = jpeg(100 * number + position, tint=TINTS[Path(folder).name])
            (tmp_path / "pictures" / folder / f"{position}.jpg").write_bytes(picture)
    dataset = str(tmp_path / "dataset")
    ingest = IngestConfig(
        source=str(tmp_path / "pictures"), dataset=dataset, size=64, split="folder"
    )
    run_ingest(ingest, InlineExecutor())
    with pytest.raises(RequestError, match="no training sample of slate"):
        run(config(Trained(tmp_path, dataset, ""), tmp_path / "models"))
    assert not (tmp_path / "models" / "versions").exists()


def test_natural_sampling_keeps_the_fingerprint_of_runs_that_were_begun_before(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Any] = []

    def record(values: Any) -> str:
        hashed.append(values)
        return f"{len(hashed):064x}"

    monkeypatch.setattr("afinar.training.task.fingerprint", record)
    for sampling in ("natural", "balanced"):
        plan_training(config(trained, tmp_path / sampling, sampling=sampling), "run")
    assert ["sampling" in determining for determining, _ in hashed] == [False, True]
